"""
jitsuctl: sees and steers a running Jitsu over its control endpoint.

Exit status: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, 3 no Jitsu answers.
"""

from __future__ import annotations

import json
import socket
import time
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table

from jitsu_tw import history_ctl

#: Seconds to wait for an answer: a stop may take as long as a guest's shutdown.
PATIENCE: Final = 120.0

_COLOURS: Final = {"up": "green", "off": "dim", "saved": "dim", "paused": "dim", "failed": "red", "unknown": "red"}


class _UnixConnection(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class NoAnswerError(ConnectionError):
    """There is no Jitsu at the place that was named."""


class RefusedError(Exception):
    """Jitsu said no; the message is its own."""


class Control:
    """A Jitsu's control endpoint, at ``host:port`` or ``unix:PATH``."""

    def __init__(self, place: str) -> None:
        """Remember the place; each call connects anew."""
        self._place = place

    def ask(self, method: str, path: str) -> Any:
        """
        Return what the endpoint answers.

        Raises:
            NoAnswerError: nobody answers there, or not in our language.
            RefusedError: it will not.
        """
        if self._place.startswith("unix:"):
            connection: HTTPConnection = _UnixConnection(self._place.removeprefix("unix:"))
        else:
            connection = HTTPConnection(self._place, timeout=PATIENCE)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            value = json.loads(answer.read())
        except (OSError, HTTPException, ValueError) as error:
            raise NoAnswerError(f"no Jitsu answers at {self._place} ({error}); see --control") from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise RefusedError(value["error"])
        return value


class Commands(click.Group):
    """Commands whose failures are a line and an exit status."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except NoAnswerError as error:
            status, reason = 3, str(error)
        except RefusedError as error:
            status, reason = 1, str(error)
        click.echo(f"jitsuctl: {reason}", err=True)
        raise SystemExit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--control",
    default="127.0.0.1:8053",
    envvar="JITSU_CONTROL",
    show_default=True,
    metavar="PLACE",
    help="Jitsu's control endpoint: host:port or unix:PATH.",
)
@click.pass_context
def main(context: click.Context, control: str) -> None:
    """See and steer a running Jitsu."""
    context.obj = Control(control)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@main.command()
@_as_json
@click.pass_obj
def status(control: Control, *, as_json: bool) -> None:
    """Show all VMs: state, lease, counts; and who is stood in for, if Synjitsu is used."""
    show(control.ask("GET", "/v1/vms"), as_json=as_json)
    if not as_json:
        show_standins(control.ask("GET", "/v1/standins"))


@main.command(name="standins")
@_as_json
@click.pass_obj
def stand_ins(control: Control, *, as_json: bool) -> None:
    """Show whose addresses Synjitsu stands in for, what it holds, and what it has done."""
    said = control.ask("GET", "/v1/standins")
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        show_standins(said)


@main.command()
@click.argument("name")
@_as_json
@click.pass_obj
def start(control: Control, name: str, *, as_json: bool) -> None:
    """Start the VM NAME; its lease begins as if it had been asked for by name."""
    show_one(control.ask("POST", f"/v1/vms/{quote(name, safe='')}/start"), as_json=as_json)


@main.command()
@click.argument("name")
@_as_json
@click.pass_obj
def stop(control: Control, name: str, *, as_json: bool) -> None:
    """Stop the VM NAME, by its mode. The next query starts it again."""
    show_one(control.ask("POST", f"/v1/vms/{quote(name, safe='')}/stop"), as_json=as_json)


@main.command()
@click.pass_obj
def reload(control: Control) -> None:
    """Read the zones anew. A bad one is refused with the reason, and the old ones go on."""
    control.ask("POST", "/v1/reload")
    click.echo("reloaded")


@main.command()
@_as_json
@click.pass_obj
def dry_run(control: Control, *, as_json: bool) -> None:
    """Show what a Jitsu that runs with --dry-run would have started, most first."""
    starts = sorted(control.ask("GET", "/v1/dry-run"), key=lambda one: -one["starts"])
    if as_json:
        click.echo(json.dumps(starts, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("VM", "client network", "type"):
        table.add_column(title, no_wrap=True)
    table.add_column("starts", justify="right")
    for one in starts:
        table.add_row(one["name"], one["network"], one["type"], str(one["starts"]))
    Console().print(table)


def show_standins(said: dict[str, Any]) -> None:
    """Print whom Synjitsu stands in for, and its counters; nothing where there is to be none."""
    if said["error"] is not None:
        click.echo(f"\n{said['error']}")
    if not said["standins"]:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stood in for", "MAC", "state", "handover"):
        table.add_column(title, no_wrap=True)
    table.add_column("held", justify="right")
    for one in said["standins"]:
        table.add_row(one["ip"], one["mac"] or "-", one["state"], one["handover"], str(one["held"]))
    Console().print("", table)
    counts = (f"{name.replace('_', ' ')} {count}" for name, count in said["counters"].items() if count)
    Console().print(f"Synjitsu: {', '.join(counts)}")


for _command in history_ctl.COMMANDS:
    main.add_command(_command)


def show_one(vm: dict[str, Any], *, as_json: bool) -> None:
    """Print one VM: as JSON an object, else a line of words."""
    click.echo(json.dumps(vm, indent=2) if as_json else f"{vm['name']}: {vm['state']}")


def show(vms: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print VMs as a table, or as JSON."""
    if as_json:
        click.echo(json.dumps(vms, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("VM", "state", "lease left", "starts", "requests", "last request"):
        table.add_column(title, justify="left" if title in {"VM", "state"} else "right", no_wrap=True)
    for vm in vms:
        colour = _COLOURS.get(vm["state"], "yellow")
        left = vm["lease_left"]
        last = vm["last_request_ts"]
        table.add_row(
            vm["name"],
            f"[{colour}]{vm['state']}[/]",
            "-" if left is None else f"{left:.0f} s",
            str(vm["total_starts"]),
            str(vm["total_requests"]),
            "never" if last is None else f"{max(0.0, time.time() - last):.0f} s ago",
        )
    Console().print(table)
