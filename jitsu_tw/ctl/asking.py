"""What commands to a running Jitsu share: the control endpoint, the completion of VMs' names, and how they print."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

import click

from jitsu_tw.ctl import show
from jitsu_tw.ctl.show import as_json_option
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jitsu_tw.ctl.client import Control

#: Seconds that a shell waits for the names of VMs that it may complete.
COMPLETE_IN: Final = 0.5

#: What is raised for an answer that has not the shape that the endpoint describes.
STRANGE: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def control_of(context: click.Context, **more: Any) -> Control:
    """
    Return the control endpoint that the options of `jitsuctl` name; *more* are further fields of `Control`.

    Raises:
        click.UsageError: the file with the token cannot be read.
    """
    from jitsu_tw.ctl.client import Control  # noqa: PLC0415 -- HTTP and TLS, which the other commands do without

    parameters = context.find_root().params
    path: Path | None = parameters["token_file"]
    try:
        token = None if path is None else path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from error
    return Control(parameters["control"], token, parameters["ca"], **more)


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the control endpoint; an answer that it cannot read is FailedError."""

    @click.pass_context
    @functools.wraps(command)
    def asking(context: click.Context, *arguments: Any, **more: Any) -> None:
        control = control_of(context)
        try:
            command(control, *arguments, **more)
        except STRANGE as error:
            raise control.strange(f"{type(error).__name__}: {error}") from error

    return asking


def prints(text: Callable[[Any], None]) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command the control endpoint, and print what it returns: as JSON if ``--json`` is given, or by *text*."""

    def printing(command: Callable[..., Any]) -> Callable[..., None]:
        @as_json_option
        @asks
        @functools.wraps(command)
        def run(control: Control, *, as_json: bool, **parameters: Any) -> None:
            answer = command(control, **parameters)
            show.dump(answer) if as_json else text(answer)

        return run

    return printing


def _completed(
    context: click.Context, begin: str, path: str, wanted: Callable[[Any], Any], field: str = "name"
) -> list[str]:
    """Return the names that complete *begin*: each *field* of what the endpoint lists at *path* and is *wanted*."""
    with contextlib.suppress(click.ClickException, *STRANGE):
        control = control_of(context, patience=COMPLETE_IN)
        names = [one[field] for one in control.ask("GET", path) if wanted(one)]
        return [name for name in names if name.startswith(begin) and printable(name) == name]
    return []


def _complete_vms(context: click.Context, _: click.Parameter, begin: str) -> list[str]:
    return _completed(context, begin, "/v1/vms", lambda _: True)


def _complete_made(context: click.Context, _: click.Parameter, begin: str) -> list[str]:
    return _completed(context, begin, "/v1/vms", lambda vm: vm["template"] is not None)


def complete_templates(context: click.Context, _: click.Parameter, begin: str) -> list[str]:
    """Return the names of templates that a shell may complete."""
    return _completed(context, begin, "/v1/templates", lambda _: True)


def complete_zones(context: click.Context, _: click.Parameter, begin: str) -> list[str]:
    """Return the names of signed zones that a shell may complete."""
    return _completed(context, begin, "/v1/dnssec", lambda _: True, "zone")


def _complete_both(context: click.Context, parameter: click.Parameter, begin: str) -> list[str]:
    return [*complete_templates(context, parameter, begin), *_complete_vms(context, parameter, begin)]


#: Arguments of commands: the name of a VM; names of VMs or of templates; names of VMs that templates have made.
vm_name = click.argument("name", shell_complete=_complete_vms)
vm_names = click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete_both)
made_names = click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete_made)
