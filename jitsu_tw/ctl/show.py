"""
How jitsuctl shows what Jitsu says: tables and lines for people, JSON for programs.

Most of it comes from outside, from a server that may be hostile and from people who have named things. All that
jitsuctl prints, it prints here, as `printable` has it.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

_COLOURS: Final = {"up": "green", "off": "dim", "saved": "dim", "paused": "dim", "failed": "red", "unknown": "red"}

#: What is told of an activation's steps, in the order in which they come.
STEPS: Final = {
    "admitted": "its turn to boot has come",
    "start": "the hypervisor is called",
    "started": "the guest runs",
    "ready": "the guest is ready",
    "imaged": "its image is kept",
    "answered": "who waited is answered",
}


def say(line: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(line), err=err)


def dump(value: object, *, indent: int | None = 2) -> None:
    """Print JSON, in ASCII."""
    click.echo(json.dumps(value, indent=indent))


class Rows(Table):
    """A table whose cells are text and nothing else: no markup of rich's, no control characters."""

    def __init__(self, *titles: str, right: tuple[str, ...] = ()) -> None:
        """Begin with no row; the columns in *right* are numbers."""
        super().__init__(box=None, pad_edge=False, header_style="bold")
        for title in titles:
            self.add_column(title, justify="right" if title in right else "left", no_wrap=True)

    def add(self, *cells: object, **colours: str) -> None:
        """Append a row; *colours* are those of cells, by the titles of their columns."""
        styles = [colours.get(str(column.header), "") for column in self.columns]
        self.add_row(*(
            Text(printable(str(cell)), style, no_wrap=True, overflow="ellipsis")
            for cell, style in zip(cells, styles, strict=True)
        ))  # fmt: skip


def table(made: Rows) -> None:
    """Print a table."""
    Console().print(made)


def vms(listed: list[dict[str, Any]]) -> Rows:
    """Return the VMs as a table."""
    numbers = ("lease left", "starts", "requests", "last request")
    made = Rows("VM", "state", *numbers, right=numbers)
    asked = any(vm["origin"] for vm in listed)
    if asked:
        made.add_column("from")  # the one that gives way on a narrow terminal
    for vm in listed:
        left, last = vm["lease_left"], vm["last_request_ts"]
        made.add(
            vm["name"],
            vm["state"],
            "held" if vm["held"] else "needed" if vm["needed"] else "-" if left is None else f"{left:.0f} s",
            vm["total_starts"],
            vm["total_requests"],
            "never" if last is None else f"{max(0.0, time.time() - last):.0f} s ago",
            *([vm["origin"] or "the file"] if asked else []),
            state=_COLOURS.get(vm["state"], "yellow"),
        )
    return made


def problems(listed: list[dict[str, Any]]) -> list[str]:
    """Return the VMs' problems as lines, after an empty one."""
    lines = [f"{vm['name']}: {problem}" for vm in listed for problem in vm["problems"]]
    return ["", *lines] if lines else []


def members(what: str, listed: list[dict[str, Any]]) -> Rows:
    """Return nodes or hosts as a table."""
    made = Rows(what, "VMs", "state", right=("VMs",))
    for one in listed:
        state, colour = ("drained", "yellow") if one["drained"] else ("well", "green")
        if one["problem"] is not None:
            state, colour = one["problem"], "red"
        made.add(f"{one['name']}{' (here)' if one.get('here') else ''}", one["vms"], state, state=colour)
    return made


def starts(listed: list[dict[str, Any]]) -> Rows:
    """Return what a dry run would have started as a table."""
    made = Rows("VM", "client network", "type", "starts", right=("starts",))
    for one in listed:
        made.add(one["name"], one["network"], one["type"], one["starts"])
    return made


def standins(said: dict[str, Any]) -> None:
    """Print whom Synjitsu stands in for, and its counters; nothing where there is to be none."""
    if said["error"] is not None:
        say("")
        say(said["error"])
    if not said["standins"]:
        return
    made = Rows("stood in for", "MAC", "state", "handover", "held", right=("held",))
    for one in said["standins"]:
        made.add(one["ip"], one["mac"] or "-", one["state"], one["handover"], one["held"])
    say("")
    table(made)
    counts = (f"{name.replace('_', ' ')} {count}" for name, count in said["counters"].items() if count)
    say(f"Synjitsu: {', '.join(counts)}")


def active_first(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the VMs with those first that somebody looks for: not at rest."""
    return sorted(listed, key=lambda vm: vm["state"] in {"off", "paused", "saved"})


def clock(seconds: float) -> str:
    """Return a time of day, as it is here."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%H:%M:%S.%f}"[:-3]


def event(said: dict[str, Any]) -> str:
    """Return an event as a line."""
    kind = said["kind"]
    if kind == "missed":
        return f"{'':14}{said['events']} events were left out: this was too slow"
    known: dict[str, Callable[[], str]] = {
        "state": lambda: f"{said['old']} -> {said['state']}",
        "activation": lambda: activation(said["activation"]),
        "refused": lambda: f"not started for {said['asker']}: {said['reason']} ({said['times']} times)",
        "hold": lambda: "held by hand",
        "release": lambda: "released",
        "lost": lambda: f"{said['backend']} is lost: {said['reason']}",
        "connected": lambda: f"{said['backend']} can be asked",
    }
    words = known.get(kind, lambda: str(kind))()  # one that a newer Jitsu has
    if kind == "state":
        words += f", {for_whom(said['asker'])}" if "asker" in said else f": {said['reason']}" if said["reason"] else ""
    return f"{clock(said['at'])}  {said['vm'] or '-'}: {words}"


def activation(said: dict[str, Any]) -> str:
    """Return an activation as words."""
    steps = ", ".join(f"{step} {when:.0f}" for step, when in said["steps"].items())
    why = f" ({said['reason']})" if said["reason"] else ""
    return f"{said['outcome']}{why} after {said['took']:.0f} ms ({steps}) {for_whom(said['asker'])}"


def for_whom(asker: str) -> str:
    """Return who has asked, as the end of a sentence."""
    return asker if asker.startswith("needed by ") else f"for {asker}"


def step(name: str, when: float) -> str:
    """Return a step of an activation as a line."""
    return f"{when:8.0f} ms  {STEPS.get(name, name)}"
