"""
Warm answers: how many a second, and how late, from Jitsu and from the name servers that it is measured against.

All serve the same names, each on one core; dnsperf asks over all names in random order, with EDNS, on the other cores.
The servers take turns, round by round, so that what else the machine does meets all of them. Then each is asked at one
steady rate, for its latencies. Run it as::

    python -m bench.speed.dns [--seconds 5] [--rounds 3] [--names 1000] [--json FILE]
        [--peers nsd,knot,pdns,remote,twisted]

Everything is on loopback, unpacked into a cache and not installed (`bench.debian`). Where the machine is busy, root may
put ``chrt --rr 1`` before the command: other work then stays out of the way, and has to wait.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
from rich.console import Console

from bench.debian import UnavailableError, unpacked
from bench.figures import json_option, table, write
from bench.speed import load
from bench.speed.peers import PEERS, names, start, version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bench.speed.load import Load
    from bench.speed.server import Server

#: Questions a second while latencies are measured; a server that is hardly faster is asked at half of its own rate.
STEADY: Final = 5000.0
HARDLY: Final = 1.5

OURS: Final = "jitsu"


def questions(path: Path, hosts: Iterable[str]) -> Path:
    """Write dnsperf's questions for the addresses of *hosts*, in an order that is random but always the same."""
    order = sorted(hosts)
    random.Random(1).shuffle(order)  # noqa: S311
    path.write_text("".join(f"{host} A\n" for host in order), encoding="ascii")
    return path


def measure(wanted: Iterable[str], number: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Start all servers, ask them in turn, and return all figures; who cannot be had is named with the reason."""
    hosts, missing = names(number), {}
    loads: dict[str, list[Load]] = {}
    steady: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True)))
        asked = questions(folder / "questions", hosts)
        servers: dict[str, Server] = {}
        for key in [*wanted, OURS]:
            try:
                servers[key] = stack.enter_context(start(PEERS[key], folder / key, hosts))
            except UnavailableError as error:
                missing[key] = str(error)
                continue
            load.warm_up(servers[key], asked)
        for turn in range(rounds):
            for key, server in servers.items():
                loads.setdefault(key, []).append(load.measure(server, asked, seconds))
            print(f"round {turn + 1} of {rounds}: "
                  + ", ".join(f"{key} {loads[key][-1].rate:,.0f}" for key in servers), flush=True)
        for key, server in servers.items():
            steady[key] = latencies(server, asked, seconds, statistics.median(one.rate for one in loads[key]))
    return {
        "names": number,
        "rounds": rounds,
        "seconds": seconds,
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "missing": missing,
        "servers": {key: {"version": version(PEERS[key]), **summary(loads[key]), **steady[key]} for key in servers},
    }


def latencies(server: Server, asked: Path, seconds: float, rate: float) -> dict[str, float]:
    """Return the percentiles, in microseconds, at a rate that leaves the server room."""
    steady = STEADY if rate > STEADY * HARDLY else rate / 2
    values = load.latencies(server, asked, seconds, steady)
    return {
        "steady rate": steady,
        "p50 us": load.percentile(values, 0.5) * 1e6,
        "p99 us": load.percentile(values, 0.99) * 1e6,
    }


def summary(loads: list[Load]) -> dict[str, Any]:
    """Return the medians of one server's rounds, and the rounds."""
    rates = [one.rate for one in loads]
    return {
        "rate": statistics.median(rates),
        "spread": (max(rates) - min(rates)) / statistics.median(rates),
        "cost us": statistics.median(one.cost() for one in loads),
        "busy": statistics.median(one.server for one in loads),
        "others": statistics.median(one.others for one in loads),
        "bad": sum(one.bad() for one in loads),
        "size": loads[0].size,
        "runs": [attrs.asdict(one) for one in loads],
    }


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures as a table."""
    rows = table(["medians"], ["answers/s", "spread", "Jitsu is", "work us", "Jitsu is", "core", "octets", "bad",
                               "p50 us", "p99 us", "at /s"])  # fmt: skip
    ours = figures["servers"][OURS]
    for key, one in sorted(figures["servers"].items(), key=lambda item: -item[1]["rate"]):
        rows.add_row(
            f"{PEERS[key].title} {one['version']}",
            f"{one['rate']:,.0f}", f"{one['spread']:.0%}", f"{ours['rate'] / one['rate']:.2f} x",
            f"{one['cost us']:.1f}", f"{one['cost us'] / ours['cost us']:.2f} x", f"{one['busy']:.0%}",
            str(one["size"]), f"{one['bad']:,}",
            f"{one['p50 us']:,.0f}", f"{one['p99 us']:,.0f}", f"{one['steady rate']:,.0f}",
        )
    console = Console(highlight=False, width=max(120, Console().width))
    console.print(rows)
    for key, reason in figures["missing"].items():
        packages = " ".join(PEERS[key].packages)
        console.print(f"left out: {PEERS[key].title} ({packages}): {reason}", markup=False)
    console.print(noise(figures["servers"].values()), soft_wrap=True)


def noise(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Return a line about how far to trust the figures."""
    others = statistics.median(one["others"] for one in summaries)
    return (f"other work took {others:.0%} of a core meanwhile; where a server had not all of its core, another was\n"
            "the limit, and its work for an answer, in microseconds of its core, says more than its rate")


def _known(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    keys = [key for key in value.split(",") if key]
    for key in keys:
        if key not in PEERS:
            raise click.BadParameter(f"{key!r} is none of {', '.join(PEERS)}")
    return [key for key in keys if key != OURS]


def require_dnsperf() -> None:
    """End with one line if dnsperf cannot be had."""
    try:
        unpacked("dnsperf")
    except UnavailableError as error:
        raise SystemExit(f"dnsperf cannot be had: {error}") from error


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="Of each run.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each server.")
@click.option("--names", "number", default=1000, show_default=True, help="Names, each with one address.")
@click.option("--peers", default=",".join(key for key in PEERS if key != OURS), callback=_known, show_default=True,
              help="Whom to measure Jitsu against.")
@json_option
def main(seconds: float, rounds: int, number: int, peers: list[str], path: Path | None) -> None:
    """Measure warm answers."""
    require_dnsperf()
    figures = measure(peers, number, rounds, seconds)
    write(path, figures)
    show(figures)


if __name__ == "__main__":
    main()
