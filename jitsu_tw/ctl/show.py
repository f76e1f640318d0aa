"""
The output of jitsuctl: tables and lines for people, JSON for programs, and errors.

Most of it comes from outside, from a server that may be hostile and from people who have named things. So all that
jitsuctl prints is printed here, as `printable` has it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

_COLOURS: Final = {
    "up": "green", "prepared": "cyan", "off": "dim", "saved": "dim", "paused": "dim", "failed": "red", "unknown": "red",
}  # fmt: skip

#: The states of a VM that is down.
DOWN: Final = frozenset({"off", "failed", "paused", "saved", "prepared"})

#: How many VMs of a template have a row each in a table of VMs, and how many problems are listed below it.
FEW: Final = 10
MOST_PROBLEMS: Final = 100

#: The steps of an activation in words, in their order.
STEPS: Final = {
    "admitted": "its turn to boot has come",
    "start": "the hypervisor is called",
    "started": "the guest runs",
    "ready": "the guest is ready",
    "answered": "who waited is answered",
}


#: The option of each command that can print JSON.
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class FailedError(click.ClickException):
    """A command that cannot be carried out: the reason is printed, and the exit status is 1."""

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        """Print the reason."""
        for line in f"jitsuctl: {self.message}".splitlines():
            say(line, err=True)


class NoAnswerError(FailedError):
    """No Jitsu answers the command, or none has carried out the request yet; the exit status is 3."""

    exit_code = 3


def say(line: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(line), err=err)


def confirm(question: str) -> None:
    """
    Ask the user *question* on a terminal; where there is none, the answer is yes.

    Raises:
        click.Abort: the answer is no.
    """
    if sys.stdin.isatty():
        click.confirm(printable(question), abort=True)


def dump(value: object, *, indent: int | None = 2) -> None:
    """Print JSON, in ASCII."""
    click.echo(json.dumps(value, indent=indent))


class Rows:
    """A table, which rich draws, whose cells are text and nothing else: no markup of rich's, no control characters."""

    def __init__(self, *titles: str, right: tuple[str, ...] = (), cut: str = "") -> None:
        """Make the columns *titles*; those in *right* are numbers, and *cut* is cut first on a narrow terminal."""
        self._titles, self._right, self._cut = titles, right, cut
        self._rows: list[tuple[tuple[object, ...], dict[str, str]]] = []

    def add(self, *cells: object, **colours: str) -> None:
        """Append a row; *colours* are those of cells, by the titles of their columns."""
        self._rows.append((cells, colours))

    def __rich__(self) -> Table:
        """Return the table of rich's."""
        from rich.table import Table  # noqa: PLC0415 -- half of the time that a command without a table takes
        from rich.text import Text  # noqa: PLC0415

        made = Table(box=None, pad_edge=False, header_style="bold")
        for title in self._titles:
            right, whole = title in self._right, title != self._cut
            made.add_column(title, justify="right" if right else "left", no_wrap=whole)
        for cells, colours in self._rows:
            made.add_row(*(
                Text(printable(str(cell)), colours.get(title, ""), no_wrap=True, overflow="ellipsis")
                for title, cell in zip(self._titles, cells, strict=True)
            ))  # fmt: skip
        return made


def table(made: Rows) -> None:
    """Print a table."""
    from rich.console import Console  # noqa: PLC0415 -- as above

    Console().print(made)


def vms(listed: list[dict[str, Any]], *, each: bool = False) -> Rows:
    """Return the VMs as a table: those of a template that has more than `FEW` in one row, unless *each* has its own."""
    groups = {} if each else grouped(listed)
    numbers = ("lease left", "starts", "requests", "last request")
    rest = [vm for vm in listed if vm["template"] not in groups]
    asked = any(vm["origin"] for vm in rest)
    made = Rows("VM", "state", *numbers, *(["from"] if asked else []), right=numbers, cut="from")
    for vm in rest:
        left = vm["lease_left"]
        made.add(
            vm["name"],
            vm["state"],
            "held" if vm["held"] else "needed" if vm["needed"] else "-" if left is None else f"{left:.0f} s",
            vm["total_starts"],
            vm["total_requests"],
            _since(vm["last_request_ts"]),
            *([vm["origin"] or "the file"] if asked else []),
            state=_COLOURS.get(vm["state"], "yellow"),
        )
    for template, some in groups.items():
        states = Counter(vm["state"] for vm in some)
        made.add(
            f"{len(some)} of {template}",
            ", ".join(f"{number} {state}" for state, number in states.most_common()),
            "-",
            sum(vm["total_starts"] for vm in some),
            sum(vm["total_requests"] for vm in some),
            _since(max((vm["last_request_ts"] for vm in some if vm["last_request_ts"] is not None), default=None)),
            *([f"template {template}"] if asked else []),
            state=_COLOURS["failed"] if states["failed"] else "",
        )
    return made


def grouped(listed: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the VMs of each template that has more than `FEW` of those *listed*, by the template's name."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for vm in listed:
        if vm["template"] is not None:
            groups.setdefault(vm["template"], []).append(vm)
    return {template: some for template, some in groups.items() if len(some) > FEW}


def _since(last: float | None) -> str:
    """Return how long ago a time in seconds since 1970 is."""
    return "never" if last is None else f"{max(0.0, time.time() - last):.0f} s ago"


def problems(listed: list[dict[str, Any]]) -> list[str]:
    """Return why VMs have failed, and their problems, as lines after an empty one: the first `MOST_PROBLEMS`."""
    lines = [f"{vm['name']}: {vm['reason']}" for vm in listed if vm["state"] == "failed"]
    lines += [f"{vm['name']}: {problem}" for vm in listed for problem in vm["problems"]]
    more = len(lines) - MOST_PROBLEMS
    if more > 0:
        lines[MOST_PROBLEMS:] = [f"{more} more; --json has all of them"]
    return ["", *lines] if lines else []


def templates(listed: list[dict[str, Any]]) -> None:
    """Print the templates as a table, and what is wrong with them."""
    if not listed:
        say("no templates are configured")
        return
    numbers = ("VMs", "at most", "up", "free addresses")
    made = Rows("template", *numbers, "names", right=numbers, cut="names")
    for one in listed:
        names, free = ", ".join(one["wildcards"]), one["pool"]["free"]
        made.add(one["name"], one["vms"], one["max"], one["states"].get("up", 0), free, names)
    table(made)
    lines = [f"{one['name']}: {problem}" for one in listed for problem in one["problems"]]
    for line in ["", *lines] if lines else []:
        say(line)


def vm(answer: dict[str, Any]) -> None:
    """Print a VM in a line."""
    say(f"{answer['name']}: {answer['state']}{', held' if answer['held'] else ''}")


def why(answer: dict[str, Any]) -> None:
    """Print why a VM is up or down, and the last decisions."""
    for sentence in answer["why"]:
        say(sentence)
    for one in answer["decisions"]:
        say(f"  {event(one)}")


def members(what: str, listed: list[dict[str, Any]]) -> None:
    """Print nodes or hosts as a table."""
    if not listed:
        say(f"no {what}s are configured")
        return
    made = Rows(what, "VMs", "state", right=("VMs",))
    for one in listed:
        state, colour = ("drained", "yellow") if one["drained"] else ("well", "green")
        if one["problem"] is not None:
            state, colour = one["problem"], "red"
        made.add(f"{one['name']}{' (here)' if one.get('here') else ''}", one["vms"], state, state=colour)
    table(made)


def drained(listed: list[dict[str, Any]]) -> None:
    """Print the nodes or the hosts, one of which was drained; only nodes say which one answers."""
    members("node" if listed and "here" in listed[0] else "host", listed)


def reloaded(answer: dict[str, Any]) -> None:
    """Print what a reload has changed."""
    for line in ("reloaded", *answer["changes"]):
        say(line)


def starts(listed: list[dict[str, Any]]) -> None:
    """Print what a dry run would have started as a table."""
    made = Rows("VM", "client network", "type", "starts", right=("starts",))
    for one in listed:
        made.add(one["name"], one["network"], one["type"], one["starts"])
    table(made)


def synjitsu(answer: dict[str, Any]) -> None:
    """Print what `standins` prints, or that no Synjitsu is configured."""
    if answer["configured"]:
        standins(answer)
    else:
        say("no Synjitsu is used")


def standins(answer: dict[str, Any]) -> None:
    """Print the addresses that Synjitsu stands in for, and its counters; nothing where none is configured."""
    if answer["error"] is not None:
        say("")
        say(answer["error"])
    if not answer["standins"]:
        return
    made = Rows("stood in for", "MAC", "state", "handover", "held", right=("held",))
    for one in answer["standins"]:
        made.add(one["ip"], one["mac"] or "-", one["state"], one["handover"], one["held"])
    say("")
    table(made)
    counts = (f"{name.replace('_', ' ')} {count}" for name, count in answer["counters"].items() if count)
    say(f"Synjitsu: {', '.join(counts)}")


def active_first(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the VMs, those that are not at rest first."""
    return sorted(listed, key=lambda vm: vm["state"] in DOWN - {"failed"})


def few(names: Sequence[str]) -> str:
    """Return *names* as part of a sentence: the first `FEW`, and how many more there are."""
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")


def clock(seconds: float) -> str:
    """Return a time of day, as it is here."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%H:%M:%S.%f}"[:-3]


def date(seconds: float) -> str:
    """Return a time, to the minute, as it is here."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"


def event(one: dict[str, Any]) -> str:
    """Return an event as a line."""
    kind = one["kind"]
    if kind == "missed":
        return f"{'':14}{one['events']} events were left out: this was too slow"
    known: dict[str, Callable[[], str]] = {
        "state": lambda: f"{one['old']} -> {one['state']}",
        "activation": lambda: activation(one["activation"]),
        "refused": lambda: f"not started for {one['asker']}: {one['reason']} ({one['times']} times)",
        "hold": lambda: "held by hand",
        "release": lambda: "released",
        "made": lambda: f"made by the template {one['template']} for {one['asker']}",
        "forgotten": lambda: f"forgotten: {one['reason']}",
        "lost": lambda: f"{one['backend']} is lost: {one['reason']}",
        "connected": lambda: f"{one['backend']} can be asked",
    }
    words = known.get(kind, lambda: str(kind))()  # a newer Jitsu has other kinds
    if kind == "state":
        words += f", {for_whom(one['asker'])}" if "asker" in one else f": {one['reason']}" if one["reason"] else ""
    return f"{clock(one['at'])}  {one['vm'] or '-'}: {words}"


def activation(one: dict[str, Any]) -> str:
    """Return an activation as words."""
    steps = ", ".join(f"{step} {when:.0f}" for step, when in one["steps"].items())
    why = f" ({one['reason']})" if one["reason"] else ""
    return f"{one['outcome']}{why} after {one['took']:.0f} ms ({steps}) {for_whom(one['asker'])}"


def for_whom(asker: str) -> str:
    """Return the client that a VM was started for, as the end of a sentence."""
    return asker if asker.startswith("needed by ") else f"for {asker}"


def step(name: str, when: float) -> str:
    """Return a step of an activation as a line."""
    return f"{when:8.0f} ms  {STEPS[name]}"
