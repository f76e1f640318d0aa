"""
What many VMs cost: the time until Jitsu serves, its memory, its warm rate, its longest turns, the look for leases.

Two Jitsus with VMs of the memory backend, one with many and one with `FEW`, are asked in turn, each over all its names;
what other work the machine does meets both. In each, the turns of the reactor are recorded (`bench.speed.turns`). The
leases are those of `rules.lease`, without a server. Run it as::

    python -m bench.speed.scale [--names 100000] [--seconds 3] [--rounds 10] [--persist] [--json FILE]
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import tempfile
import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
from rich.console import Console

from bench.figures import json_option, table, write
from bench.speed import load
from bench.speed.dns import latencies, noise, questions, require_dnsperf, summary
from bench.speed.peers import PEERS, names, serve_jitsu, start
from jitsu_tw.rules.lease import Lease, Leases
from jitsu_tw.settings import COMMIT_EVERY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.speed.load import Load

#: What many VMs are measured against.
FEW: Final = 1000

#: The file of a server's folder that has the report on its turns.
REPORT: Final = "turns.json"

#: How many of all leases end at one look.
ENDING: Final = (0, 1, 100, 10_000)

IDLE: Final = 120.0

#: Seconds for which latencies are measured: two commits of statistics fit in.
STEADY_FOR: Final = 2 * COMMIT_EVERY + 1

#: No turn of the reactor should take this many seconds of CPU time; and how many of the longest turns are shown.
LONGEST_TURN: Final = 0.02
SHOWN_TURNS: Final = 5


def measure(number: int, rounds: int, seconds: float, *, persist: bool) -> dict[str, Any]:
    """Start both Jitsus, boot all VMs, ask in turn, and return all figures."""
    peer = attrs.evolve(
        PEERS["jitsu"], make=lambda place: serve_jitsu(place, persist=persist, turns=place.folder / REPORT)
    )
    figures: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True)))
        running = []
        for many in (FEW, number):
            hosts = names(many)
            asked = questions(folder / f"questions{many}", hosts)
            server = stack.enter_context(start(peer, folder / str(many), hosts))
            one: dict[str, Any] = {"names": many, "seconds to serve": server.seconds, "MB at first": server.memory()}
            begin = time.monotonic()
            boots = load.warm_up(server, asked)
            one |= {"seconds to boot all": boots, "MB": server.memory()}
            print(f"{many:,} names: served after {server.seconds:.1f} s, all up {boots:.1f} s later", flush=True)
            loads: list[Load] = []
            phases = {"its VMs boot": begin, "all are up": time.monotonic()}
            running.append((one, server, asked, loads, phases))
        for turn in range(rounds):
            for _, server, asked, loads, _ in running:
                loads.append(load.measure(server, asked, seconds))
            print(f"round {turn + 1} of {rounds}: "
                  + ", ".join(f"{loads[-1].rate:,.0f}" for _, _, _, loads, _ in running), flush=True)
        for key, (one, server, asked, loads, phases) in zip(("few", "many"), running, strict=True):
            one.update(summary(loads))
            one.update(latencies(server, asked, STEADY_FOR, one["rate"]))
            one["MB at last"] = server.memory()
            phases["it ends"] = time.monotonic()
            server.stop()
            one["turns"] = turns(folder / str(one["names"]) / REPORT, phases)
            figures[key] = one
    rates = ([run["rate"] for run in figures[key]["runs"]] for key in ("many", "few"))
    windows = [many / few for many, few in zip(*rates, strict=True)]
    return {"rounds": rounds, "seconds": seconds, "persist": persist, **figures, "windows": windows,
            "ratio": figures["many"]["rate"] / figures["few"]["rate"], "sweeps": sweeps(number)}


def turns(path: Path, phases: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return what *path*, a report on the turns of a reactor, says of the *phases*, which begin at these times."""
    report = json.loads(path.read_text(encoding="utf-8"))
    names, begins = list(phases), [*phases.values(), inf]
    rows = []
    for name, begin, end in zip(names, begins, begins[1:], strict=False):
        found = [turn for turn in report["turns"] if begin <= turn["began"] < end]
        found.sort(key=lambda turn: -turn["cpu"])
        over = sum(turn["cpu"] > LONGEST_TURN for turn in found)
        rows.append({"phase": name, "over": over, "longest": found[:SHOWN_TURNS], "left": report["left"]})
    return rows


def _all_ended(leases: Leases, now: float) -> list[str]:
    """Return whose leases have ended, by as many looks as that takes."""
    ended: list[str] = []
    while (look := leases.next_look()) is not None and look <= now:
        ended += leases.due(now)
    return ended


def sweeps(number: int) -> list[dict[str, float]]:
    """Return what a look at so many leases costs, by how many end; the last row: all are due, and all were renewed."""
    rows: list[dict[str, float]] = []
    for ending in sorted({min(ending, number) for ending in ENDING}):
        took = []
        for _ in range(5):
            leases = _leases(number)
            # They end one by one, 10 us apart: the look comes when so many have.
            begin = time.perf_counter()
            ended = _all_ended(leases, IDLE + (ending - 0.5) * 1e-5)
            took.append(time.perf_counter() - begin)
            assert len(ended) == ending
        rows.append({"due": ending, "ended": ending, "ms": statistics.median(took) * 1000})
    leases = _leases(number)
    all_of_them = dict(leases.items())
    for one in range(number):
        all_of_them[f"vm{one:06}"].use(IDLE)
    begin = time.perf_counter()
    ended = _all_ended(leases, IDLE + 1 + number * 1e-5)
    rows.append({"due": number, "ended": len(ended), "ms": (time.perf_counter() - begin) * 1000})
    return rows


def _leases(number: int) -> Leases:
    """Return leases that were used last at 0, 10, 20 … us, in random order."""
    leases, order = Leases(), list(range(number))
    random.Random(1).shuffle(order)  # noqa: S311
    for one in order:
        lease = Lease(IDLE, 0.0, one * 1e-5, 0.0)
        leases.grant(f"vm{one:06}", lease)
        leases.plan(f"vm{one:06}", lease.look())
    return leases


ROWS: Final = {
    "seconds to serve": ".2f", "seconds to boot all": ".1f", "MB at first": ".0f", "MB": ".0f", "MB at last": ".0f",
    "rate": ",.0f", "spread": ".0%", "cost us": ".1f", "busy": ".0%", "bad": ",", "steady rate": ",.0f",
    "p50 us": ",.0f", "p99 us": ",.0f",
}
TITLES: Final = {
    "MB at first": "MB when it serves", "MB": "MB when all are up", "rate": "answers/s (median)",
    "cost us": "work, us an answer", "busy": "core", "steady rate": "latencies at /s",
}


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    both = [figures[key] for key in ("few", "many")]
    rows = table(["names"], [f"{one['names']:,}" for one in both])
    for key, form in ROWS.items():
        rows.add_row(TITLES.get(key, key), *(format(one[key], form) for one in both))
    console = Console(highlight=False)
    console.print(rows)
    console.print(f"rate with {both[1]['names']:,} / rate with {both[0]['names']:,}: [bold]{figures['ratio']:.2f}[/]")
    worst, median = min(figures["windows"]), statistics.median(figures["windows"])
    console.print(f"the same in each of the windows: at least [bold]{worst:.2f}[/], median {median:.2f}")
    console.print(noise(both), soft_wrap=True)
    for one in both:
        show_turns(one, console)
    rows = table([], ["leases due", "of them ended", "ms for the look"])
    for row in figures["sweeps"]:
        rows.add_row(f"{row['due']:,}", f"{row['ended']:,}", f"{row['ms']:.3f}")
    console.print(rows)


def show_turns(one: Mapping[str, Any], console: Console) -> None:
    """Print the longest turns of one Jitsu's reactor, by phase, each with the stack that was seen most in it."""
    for row in one["turns"]:
        what = f"{one['names']:,} names, {row['phase']}"
        console.print(f"{what}: {row['over']} turns over {LONGEST_TURN * 1000:.0f} ms of CPU time; the longest:")
        for turn in row["longest"]:
            cpu, collector, wall = (f"{turn[key] * 1000:.1f}" for key in ("cpu", "collector", "wall"))
            stack, _ = max(turn["stacks"].items(), key=lambda item: item[1], default=("", 0))
            console.print(f"  {cpu} ms, {collector} in the collector, {wall} by the clock: {stack}", soft_wrap=True)


@click.command()
@click.option("--names", "number", default=100_000, show_default=True, help="VMs, each with one name.")
@click.option("--seconds", default=3.0, show_default=True, help="Of each run.")
@click.option("--rounds", default=10, show_default=True, help="Runs of each.")
@click.option("--persist", is_flag=True, help="Keep the state in a repository.")
@json_option
def main(number: int, seconds: float, rounds: int, persist: bool, path: Path | None) -> None:  # noqa: FBT001
    """Measure what many VMs cost."""
    require_dnsperf()
    figures = measure(number, rounds, seconds, persist=persist)
    write(path, figures)
    show(figures)


if __name__ == "__main__":
    main()
