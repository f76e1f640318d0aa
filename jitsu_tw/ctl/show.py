"""How jitsuctl shows what Jitsu says: tables and lines for people, JSON for programs."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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


def dump(value: object) -> None:
    """Print JSON."""
    click.echo(json.dumps(value, indent=2))


def table(*titles: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns in *right* are numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        made.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    return made


def vms(listed: list[dict[str, Any]]) -> Table:
    """Return the VMs as a table."""
    numbers = ("lease left", "starts", "requests", "last request")
    made = table("VM", "state", *numbers, right=numbers)
    asked = any(vm["origin"] for vm in listed)
    if asked:
        made.add_column("from")  # the one that gives way on a narrow terminal
    for vm in listed:
        colour = _COLOURS.get(vm["state"], "yellow")
        left, last = vm["lease_left"], vm["last_request_ts"]
        made.add_row(
            escape(vm["name"]),
            f"[{colour}]{vm['state']}[/]",
            "held" if vm["held"] else "needed" if vm["needed"] else "-" if left is None else f"{left:.0f} s",
            str(vm["total_starts"]),
            str(vm["total_requests"]),
            "never" if last is None else f"{max(0.0, time.time() - last):.0f} s ago",
            *([Text(vm["origin"] or "the file", no_wrap=True, overflow="ellipsis")] if asked else []),
        )
    return made


def problems(listed: list[dict[str, Any]]) -> list[str]:
    """Return the VMs' problems as lines, after an empty one."""
    lines = [f"{vm['name']}: {problem}" for vm in listed for problem in vm["problems"]]
    return ["", *lines] if lines else []


def members(what: str, listed: list[dict[str, Any]]) -> Table:
    """Return nodes or hosts as a table."""
    made = table(what, "VMs", "state", right=("VMs",))
    for one in listed:
        state = "[yellow]drained[/]" if one["drained"] else "[green]well[/]"
        if one["problem"] is not None:
            state = f"[red]{escape(one['problem'])}[/]"
        here = " (here)" if one.get("here") else ""
        made.add_row(f"{escape(one['name'])}{here}", str(one["vms"]), state)
    return made


def standins(said: dict[str, Any]) -> None:
    """Print whom Synjitsu stands in for, and its counters; nothing where there is to be none."""
    if said["error"] is not None:
        click.echo(f"\n{said['error']}")
    if not said["standins"]:
        return
    made = table("stood in for", "MAC", "state", "handover", "held", right=("held",))
    for one in said["standins"]:
        made.add_row(one["ip"], one["mac"] or "-", one["state"], one["handover"], str(one["held"]))
    Console().print("", made)
    counts = (f"{name.replace('_', ' ')} {count}" for name, count in said["counters"].items() if count)
    Console().print(f"Synjitsu: {', '.join(counts)}")


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
    words = {
        "state": lambda: f"{said['old']} -> {said['state']}",
        "activation": lambda: activation(said["activation"]),
        "refused": lambda: f"not started for {said['asker']}: {said['reason']} ({said['times']} times)",
        "hold": lambda: "held by hand",
        "release": lambda: "released",
        "lost": lambda: f"{said['backend']} is lost: {said['reason']}",
        "connected": lambda: f"{said['backend']} can be asked",
    }[kind]()
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
