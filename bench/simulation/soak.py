"""
A soak: hours of 200 VMs' lives in minutes, with everything going wrong that can, and an audit.

Jitsu runs on a fast clock, from a query's octets to the hypervisor's calls and the state on disk; only the sockets and
the threads are left out. Its VMs are the memory backend's. Meanwhile clients ask, guests send and fall silent, people
start, pause, stop and define VMs anew, faults come and go, connections break, and Jitsu is killed at any moment, in the
middle of whatever it is doing. `bench.simulation.ledger` has the rules and says at once when one is broken. Every round
ends with a quiet time, after which all must be as it should, and nothing may be left over. Run it as::

    python -m bench.simulation.soak [--minutes 1.5] [--seed N] [--vms 200] [--json FILE]

A run with the same seed does the same (Python's hashes are made the same each time).
"""

from __future__ import annotations

import gc
import os
import resource
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
from rich.console import Console
from twisted.logger import formatEvent, globalLogBeginner, globalLogPublisher

from bench.figures import json_option, write
from bench.simulation.outcome import Outcome
from bench.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.simulation.ledger import Ledger

#: Memory may grow by this share, and so many octets, from the first quarter of the rounds to the last.
GROWTH: Final = 0.05
SLACK: Final = 4e6

#: So many Deferreds and coroutines more are no leak yet: those of calls that hung at the end of a round.
STRAY: Final = 100


@attrs.frozen
class Rest:
    """
    What is there when a round is over and no Jitsu lives.

    Attributes:
        objects: Deferreds and coroutines.
        threads, files: of the process.
        memory: in octets, of the process.
    """

    objects: int
    threads: int
    files: int
    memory: int

    @classmethod
    def now(cls) -> Rest:
        """Look."""
        gc.collect()
        kinds = Counter(type(one).__name__ for one in gc.get_objects())
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return cls(
            kinds["Deferred"] + kinds["coroutine"],
            threading.active_count(),
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            pages * resource.getpagesize(),
        )


@attrs.frozen
class SoakOutcome(Outcome):
    """
    What a soak in one process showed.

    Attributes:
        hours: that passed for the VMs.
        seconds: that it took.
        rests: what was there after each round.
    """

    hours: float
    seconds: float
    rests: list[Rest]


def soak(seed: int, number: int, minutes: float, rounds: float = inf) -> SoakOutcome:
    """Soak so many VMs until the time is over (a round is ended), or so many rounds, or a rule is broken."""
    begin = time.monotonic()
    rests: list[Rest] = []
    with tempfile.TemporaryDirectory(prefix="jitsu-soak-") as folder:
        world = World(number, seed, Path(folder))

        def hear_all(event: Mapping[str, Any]) -> None:
            if "log_failure" in event or event.get("isError"):
                world.ledger.against("logged", None, f"{formatEvent(dict(event))}\n{event.get('log_failure', '')}")

        hear: Any = hear_all
        globalLogPublisher.addObserver(hear)
        try:
            while len(rests) < rounds and time.monotonic() < begin + minutes * 60 and not world.ledger.wrong:
                world.round(len(rests))
                rests.append(Rest.now())
            _compare(world.ledger, rests)
        finally:
            globalLogPublisher.removeObserver(hear)
    ledger = world.ledger
    return SoakOutcome(seed, ledger.wrong, ledger.counts, world.now() / 3600, time.monotonic() - begin, rests)


def _compare(ledger: Ledger, rests: list[Rest]) -> None:
    """See whether anything grows from round to round."""
    if ledger.wrong or len(rests) < 2:
        return
    # The first round opens what stays open. What nobody refers to any more may not have been collected yet.
    first, last = rests[0], rests[-1]
    for what, more in (("objects", STRAY), ("threads", 0), ("files", 0)):
        before, after = getattr(first, what), getattr(last, what)
        if after > before + more:
            ledger.against("leak", None, f"{what}: {before} after the first round, {after} after the last")
    quarter = len(rests) // 4
    if quarter:
        before, after = (statistics.median(one.memory for one in some) for some in (rests[:quarter], rests[-quarter:]))
        if after > before * (1 + GROWTH) + SLACK:
            ledger.against("memory", None, f"{before / 1e6:.1f} MB in the first quarter, {after / 1e6:.1f} in the last")


def show(outcome: SoakOutcome) -> None:
    """Print what a soak showed."""
    console = Console(highlight=False)
    for words in outcome.wrong:
        console.print(words, markup=False, soft_wrap=True)
    outcome.print_counts(console)
    rests = outcome.rests
    quarter = max(1, len(rests) // 4)
    if rests:
        memory = [statistics.median(one.memory for one in some) / 1e6 for some in (rests[:quarter], rests[-quarter:])]
        console.print(f"memory {memory[0]:.1f} MB in the first quarter, {memory[1]:.1f} MB in the last; at last "
                      f"{rests[-1].objects} Deferreds and coroutines ({rests[0].objects} after the first round), "
                      f"{rests[-1].threads} threads, {rests[-1].files} files", soft_wrap=True)
    console.print(f"seed {outcome.seed}: {len(rests)} rounds, {outcome.hours:.1f} hours in {outcome.seconds:.0f} s: "
                  f"{outcome.verdict}")


@click.command()
@click.option("--minutes", default=1.5, show_default=True, help="Of real time; the round that is under way is ended.")
@click.option("--seed", type=int, help="Of a run to be had again; by itself, a new one.")
@click.option("--vms", "number", default=200, show_default=True, help="How many.")
@json_option
def main(minutes: float, seed: int | None, number: int, path: Path | None) -> None:
    """Soak Jitsu."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of names is part of what happens.
        command = [sys.executable, "-m", "bench.simulation.soak", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606
    # Until somebody has begun to log, Twisted keeps what is logged, and by it a Jitsu that has ended.
    globalLogBeginner.beginLoggingTo((), discardBuffer=True, redirectStandardIO=False)
    outcome = soak(secrets.randbelow(10**6) if seed is None else seed, number, minutes)
    write(path, attrs.asdict(outcome))
    show(outcome)
    sys.exit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
