"""
What names of a template cost: `python -m bench.speed.names [flood NUMBER | made NUMBER]`.

``flood`` asks for random names that do not exist, one network after the other: by a pattern, by a list, and, for a
fiftieth of the names, by a program that answers at once. A line for each tenth: how many VMs there are, Python objects,
and the memory of the process. It is flat; with a program it rises to the 10,000 answers that are kept
(`existence.MOST_KEPT`).
``made`` makes VMs of the memory backend, with the state in a git repository: for each tenth, the time for one VM, and
the longest time for which the reactor did nothing else.
"""

from __future__ import annotations

import gc
import random
import resource
import shutil
import string
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall, deferLater, react

from jitsu_tw.backends.memory import MemoryBackend
from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.coordinator.local import LocalCoordinator
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.config import build
from jitsu_tw.dns.ondemand import TemplateResolver
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.wire import Question, Source, from_text
from jitsu_tw.store.git import GitStore
from jitsu_tw.sync.change_requests import ChangeRequests
from jitsu_tw.sync.reconfigure import LiveConfig
from jitsu_tw.sync.templates import Templates
from jitsu_tw.vm.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

reactor: Any = default_reactor

#: Questions that are under way at once.
AT_ONCE: Final = 64

#: The `exists` of each flood; a path is made, of a list or a program.
KINDS: Final = {"pattern": "user-*", "list": "./names", "program": "./program"}


class Names:
    """A Jitsu with one template, and no sockets."""

    def __init__(self, exists: str) -> None:
        """Begin, in a folder of its own; *exists* is the template's."""
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "names").write_text("".join(f"user-{number}\n" for number in range(100_000)))
        program = self.folder / "program"
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
        path = self.folder / "jitsu.yaml"
        path.write_text(
            "backend: memory\npersistdb: state\ndelay: 0\nstarts_per_minute: 0\ntemplates:\n  - name: site\n"
            f"    dns: '*.sites.example.org'\n    pool: 10.0.0.0/8\n    exists: '{exists}'\n    max: 1000000\n"
            "    new_per_minute: 0\n"
        )
        self.settings, self.zones = build.load({}, (), path)
        assert self.settings.persistdb is not None
        clocks = Clocks(reactor)
        self.store = GitStore(self.settings.persistdb)
        remembered = self.store.open()
        self.fleet = Fleet(
            self.settings, {("memory", ""): MemoryBackend(reactor=reactor)}, self.store, clocks,
            lambda machines, events: Membership(self.settings, None, LocalCoordinator(), clocks, machines, events),
        )  # fmt: skip
        running = LiveConfig(self.settings, self.fleet, self.zones, lambda _: None)
        self.requests = ChangeRequests(self.store, self.fleet, self.zones, running, reactor)
        self.requests.restore(remembered)
        self.templates = Templates(running, self.fleet, self.store, clocks)
        summoning = JitsuResolver(self.zones, self.fleet)
        ondemand = TemplateResolver(self.zones, self.templates, summoning, reactor, lambda: 60.0)
        self.chain = Chain([summoning, ondemand, ZoneAuthority(self.zones)])
        self.begun = self.fleet.start(remembered)
        self.failed: Counter[str] = Counter()

    def ask(self, label: str, number: int) -> Deferred[Any]:
        """Ask for the address of *label*, as a client of the network *number*."""
        host = f"10.{number >> 8 & 255}.{number & 255}.7"
        question = Question(from_text(f"{label}.sites.example.org"), 1, source=Source(host, 53, proven=True))
        return self.chain.query(question).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        """Count an answer that is an error, by its class; the first of each class is printed."""
        kind = type(failure.value).__name__
        self.failed[kind] += 1
        if self.failed[kind] == 1:
            print(f"{kind}: {failure.getErrorMessage()}", flush=True)

    def ask_next(self, first: int, number: int) -> Deferred[Any]:
        """Ask for the name with that *number* after the *first*."""
        return self.ask(f"user-{first + number}", number % 65536)

    def ask_at_random(self, number: int) -> Deferred[Any]:
        """Ask for a random name."""
        return self.ask("".join(random.choices(string.ascii_lowercase, k=12)), number % 65536)  # noqa: S311

    async def end(self) -> None:
        """End, and remove the folder."""
        await self.fleet.stop()
        shutil.rmtree(self.folder)


async def ask_all(number: int, ask: Callable[[int], Deferred[Any]]) -> None:
    """Call *ask* with each of so many numbers, `AT_ONCE` at a time; let the reactor go on in between."""
    todo = iter(range(number))

    async def some() -> None:
        for at in todo:
            await ask(at)
            if at % AT_ONCE == 0:
                await deferLater(reactor, 0)

    await DeferredList([Deferred.fromCoroutine(some()) for _ in range(AT_ONCE)], fireOnOneErrback=True)


def memory() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def flood(number: int) -> None:
    """Ask for random names by each kind of `exists`; by a program for a fiftieth of them: each is a process."""
    for kind, exists in KINDS.items():
        names, each = Names(exists), number // (50 if kind == "program" else 1)
        await names.begun
        for tenth in range(10):
            begin = time.perf_counter()
            await ask_all(each // 10, names.ask_at_random)
            took = (time.perf_counter() - begin) / (each // 10)
            gc.collect()
            print(f"{kind}: {(tenth + 1) * each // 10:>9,} names, {len(names.fleet.machines)} VMs,"
                  f" {len(gc.get_objects()):,} objects, {memory():.0f} MiB, {took * 1e6:.0f} us each", flush=True)
        await names.end()


async def make(number: int) -> None:
    """Make VMs, and watch the reactor."""
    names, pauses = Names("*"), [0.0, time.perf_counter()]
    await names.begun

    def beat() -> None:
        now = time.perf_counter()
        pauses[:] = max(pauses[0], now - pauses[1]), now

    beats = LoopingCall(beat)
    beats.start(0.002)
    gc.freeze()
    for tenth in range(10):
        begin, cpu, pauses[0] = time.perf_counter(), time.process_time(), 0.0
        first = tenth * (number // 10)
        await ask_all(number // 10, partial(names.ask_next, first))
        took, used = ((now - then) * 1e4 / number for now, then in (
            (time.perf_counter(), begin), (time.process_time(), cpu)))  # fmt: skip
        print(f"{len(names.fleet.machines):>7,} VMs, {took:.1f} ms each, {used:.1f} ms of CPU, longest pause"
              f" {pauses[0] * 1000:.0f} ms, {memory():.0f} MiB, failed: {dict(names.failed)}", flush=True)
    beats.stop()
    await names.end()


def main(what: str = "flood", number: str = "100000") -> None:
    """Measure."""
    work = {"flood": flood, "made": make}[what]
    react(lambda _: Deferred.fromCoroutine(work(int(number))))


if __name__ == "__main__":
    main(*sys.argv[1:])
