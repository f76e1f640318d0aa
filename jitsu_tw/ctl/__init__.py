"""
jitsuctl: sees and steers a running Jitsu over its control endpoint.

Exit status: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, 3 no Jitsu answers.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import click
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.live import Live

from jitsu_tw import __version__
from jitsu_tw.ctl import edit, gitshell, history, show
from jitsu_tw.ctl.client import Control
from jitsu_tw.ctl.show import FailedError, as_json_option
from jitsu_tw.sockets import find_control
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds between two requests: of `status --watch`, and of `start --wait` for the steps.
WATCH_EVERY: Final = 1.0
STEP_EVERY: Final = 0.1

#: Seconds that a shell waits for the names of VMs that it may complete.
COMPLETE_IN: Final = 0.5

#: What is raised for an answer that has not the shape that the endpoint describes.
STRANGE: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)

EPILOG: Final = "Exit status: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, 3 no Jitsu answers."


class Commands(click.Group):
    """Commands that Ctrl-C ends without a word."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # as shells have it: 128 and SIGINT


def _control(parameters: dict[str, Any], **more: Any) -> Control:
    path: Path | None = parameters["token_file"]
    try:
        token = None if path is None else path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from error
    return Control(parameters["control"], token, parameters["ca"], **more)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(__version__, prog_name="jitsuctl")
@click.option(
    "--control",
    default=find_control,
    envvar="JITSU_CONTROL",
    metavar="PLACE",
    help="Jitsu's control endpoint: unix:PATH, host:port or https://host:port; by default the UNIX socket of your own "
    "Jitsu, or of the one of this machine. [$JITSU_CONTROL]",
)
@click.option("--token-file", type=click.Path(path_type=Path), envvar="JITSU_TOKEN_FILE", metavar="FILE",
              help="The file with its control_token. [$JITSU_TOKEN_FILE]")  # fmt: skip
@click.option("--ca", type=click.Path(path_type=Path), envvar="JITSU_CA", metavar="FILE",
              help="With https: the authority (PEM) of its certificate, if it is not known. [$JITSU_CA]")  # fmt: skip
@click.pass_context
def main(context: click.Context, /, **parameters: Any) -> None:
    """See and steer a running Jitsu."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that a terminal's encoding does not have
    context.obj = _control(parameters)


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the control endpoint; an answer that it cannot read is FailedError."""

    @click.pass_obj
    @functools.wraps(command)
    def asking(control: Control, *arguments: Any, **more: Any) -> None:
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


def _names(context: click.Context, _: click.Parameter, begin: str) -> list[str]:
    """Return the names of VMs that a shell may complete."""
    with contextlib.suppress(click.ClickException, *STRANGE):
        control = _control(context.find_root().params, patience=COMPLETE_IN)
        names = [vm["name"] for vm in control.ask("GET", "/v1/vms")]
        return [name for name in names if name.startswith(begin) and printable(name) == name]
    return []


_name = click.argument("name", shell_complete=_names)


# What is seen.


@main.command()
@click.option("--watch", is_flag=True, help="Keep the table live; end it with Ctrl-C. With --json, a line each time.")
@as_json_option
@asks
def status(control: Control, *, watch: bool, as_json: bool) -> None:
    """Show all VMs: state, lease, counts; and who is stood in for, if Synjitsu is used."""
    vms = control.ask("GET", "/v1/vms")
    if watch and as_json:
        for listed in _again(control, vms):
            show.dump(listed, indent=None)
    elif watch and not Console().is_terminal:
        for listed in _again(control, vms):
            show.table(show.vms(show.active_first(listed)))
    elif watch:
        with Live(auto_refresh=False, screen=True) as live:
            for listed in _again(control, vms):
                live.update(show.vms(show.active_first(listed)), refresh=True)
    elif as_json:
        show.dump(vms)
    else:
        show.table(show.vms(vms))
        for line in show.problems(vms):
            show.say(line)
        show.standins(control.ask("GET", "/v1/standins"))


def _again(control: Control, vms: Any) -> Iterator[Any]:
    """Yield the VMs again and again."""
    while True:
        yield vms
        time.sleep(WATCH_EVERY)
        vms = control.ask("GET", "/v1/vms")


@main.command()
@_name
@prints(show.why)
def why(control: Control, name: str) -> Any:
    """Say why the VM NAME is up, or down: the last decisions."""
    return control.vm(name)


@main.command()
@click.option("-n", "--last", default=20, show_default=True, type=click.IntRange(0, 1000), help="How many past events.")
@click.option("-f", "--follow", is_flag=True, help="Then show what happens; end it with Ctrl-C.")
@as_json_option
@asks
def events(control: Control, last: int, *, follow: bool, as_json: bool) -> None:
    """Tell what has happened: states, activations, refusals. With --json, one object a line."""
    for one in control.events(last, follow=follow):
        show.dump(one, indent=None) if as_json else show.say(show.event(one))


@main.command()
@prints(show.starts)
def dry_run(control: Control) -> Any:
    """Show what a dry run would have started, most first."""
    return sorted(control.ask("GET", "/v1/dry-run"), key=lambda one: -one["starts"])


@main.command()
@prints(show.synjitsu)
def standins(control: Control) -> Any:
    """Show whose addresses Synjitsu stands in for, what it holds, and what it has done."""
    return control.ask("GET", "/v1/standins")


@main.command()
@prints(functools.partial(show.members, "node"))
def nodes(control: Control) -> Any:
    """Show the Jitsus that serve the zones together."""
    return control.ask("GET", "/v1/nodes")


@main.command()
@prints(functools.partial(show.members, "host"))
def hosts(control: Control) -> Any:
    """Show the hosts that VMs may run on."""
    return control.ask("GET", "/v1/hosts")


# What is done.


@main.command()
@_name
@click.option("--wait", is_flag=True, help="Tell each step on the way, on standard error if there is --json.")
@as_json_option
@asks
def start(control: Control, name: str, *, wait: bool, as_json: bool) -> None:
    """Start the VM NAME and wait until it is up. Its lease begins as if it had been asked for by name."""
    vm = _start_and_tell(control, name, err=as_json) if wait else control.vm(name, "start")
    show.dump(vm) if as_json else show.vm(vm)


def _start_and_tell(control: Control, name: str, *, err: bool) -> Any:
    """Start a VM, print the steps meanwhile, on standard error if *err*, and return the VM."""
    past = _last_activation(control, name).get("id", 0)
    printed: set[str] = set()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(control.vm, name, "start")
        while True:
            done = answer.done()
            running = _last_activation(control, name)
            if running.get("id", 0) > past or running.get("outcome") == "running":
                for step, when in running["steps"].items():
                    if step in show.STEPS and step not in printed:
                        printed.add(step)
                        show.say(show.step(step, when), err=err)
            if done:
                break
            time.sleep(STEP_EVERY)
    return answer.result()


def _last_activation(control: Control, name: str) -> dict[str, Any]:
    """Return the last activation of a VM; nothing if there is none."""
    query = urlencode({"vm": name, "last": 1})
    found: list[dict[str, Any]] = control.ask("GET", f"/v1/activations?{query}")
    return found[0] if found else {}


@main.command()
@_name
@prints(show.vm)
def stop(control: Control, name: str) -> Any:
    """Stop the VM NAME, by its mode, also if held. The next query starts it again."""
    return control.vm(name, "stop")


@main.command()
@_name
@prints(show.vm)
def hold(control: Control, name: str) -> Any:
    """Start the VM NAME and keep it up, used or not. A release or a stop ends that, and so does the end of Jitsu."""
    return control.vm(name, "hold")


@main.command()
@_name
@prints(show.vm)
def release(control: Control, name: str) -> Any:
    """Release the held VM NAME: it is stopped when idle."""
    return control.vm(name, "release")


@main.command()
@_name
@click.argument("host")
@prints(show.vm)
def move(control: Control, name: str, host: str) -> Any:
    """Move the VM NAME, which is up, to HOST: while it runs, or by a stop and a start."""
    return control.vm(name, f"move?{urlencode({'host': host})}")


@main.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take it back into service.")
@prints(show.drained)
def drain(control: Control, name: str, *, undo: bool) -> Any:
    """
    Take the host or the node NAME out of service.

    Nothing new is started on such a host, and what runs there goes to others. Such a node starts nothing, and hands its
    VMs on to the others, which keep running.
    """
    known = {what: [one["name"] for one in control.ask("GET", f"/v1/{what}")] for what in ("hosts", "nodes")}
    found = [what for what, names in known.items() if name in names]
    if len(found) != 1:
        hosts, nodes = (", ".join(known[what]) or "none" for what in ("hosts", "nodes"))
        what = "both a host and a node" if found else "no host and no node"
        raise FailedError(f"{name} is {what}; the hosts: {hosts}; the nodes: {nodes}")
    return control.ask("POST", f"/v1/{found[0]}/{quote(name, safe='')}/{'undrain' if undo else 'drain'}")


@main.command()
@prints(show.reloaded)
def reload(control: Control) -> Any:
    """Read the configuration and the zones anew. What is bad is refused with the reason, and nothing changes."""
    return control.ask("POST", "/v1/reload")


# What needs no Jitsu that runs.

for _command in (*history.COMMANDS, *edit.COMMANDS, gitshell.command):
    main.add_command(_command)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@as_json_option
def check(arguments: tuple[str, ...], *, as_json: bool) -> None:
    """
    See whether the configuration and the zones are right.

    ARGUMENTS are those of `twistd jitsu`. Without any, jitsu.yaml in this directory is checked. What the file that
    defines a VM lacks is a warning. Nothing is started or opened, and no hypervisor is asked.
    """
    from jitsu_tw.ctl.check import checked  # noqa: PLC0415 -- all of Jitsu, which the other commands do without

    result = checked(arguments or ("--config", "jitsu.yaml"))
    if as_json:
        show.dump(result)
    elif result["ok"]:
        for warning in result["warnings"]:
            show.say(f"warning: {warning}")
        show.say(f"OK: {result['vms']} VMs, {result['names']} names, zones {', '.join(result['zones'])}")
    else:
        raise FailedError(result["error"])
    raise SystemExit(0 if result["ok"] else 1)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """
    Print what completes commands and VMs in SHELL.

    For bash: eval "$(jitsuctl completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "jitsuctl", "_JITSUCTL_COMPLETE").source())
