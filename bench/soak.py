"""
A soak: hours of 200 VMs' lives in minutes, with everything going wrong that can, and an audit.

Jitsu runs on a fast clock, from a query's octets to the hypervisor's calls and the state on disk; only the sockets and
the threads are left out. Its VMs are the memory backend's. Meanwhile clients ask, guests send and fall silent, people
start, pause, stop and define VMs anew, faults come and go, connections break, and Jitsu is killed at any moment, in the
middle of whatever it is doing. `bench.ledger` has the rules and says at once when one is broken. Every round ends with
a quiet time, after which all must be as it should, and nothing may be left over. Run it as::

    python -m bench.soak [--minutes 1.5] [--seed N] [--vms 200] [--json FILE]

A run with the same seed does the same (Python's hashes are made the same each time).
"""

from __future__ import annotations

import gc
import json
import os
import resource
import secrets
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from ipaddress import ip_address, ip_network
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
import dns.message
from rich.console import Console
from rich.table import Table
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from bench.hypervisor import HANGS, Connection, Hypervisor, Process
from bench.ledger import Ledger
from jitsu_tw import config
from jitsu_tw.dns.authority import ZoneAuthority
from jitsu_tw.dns.resolver import JitsuResolver
from jitsu_tw.dns.server import Chain, Server
from jitsu_tw.dns.warm import WarmAnswers
from jitsu_tw.dns.wire import Source, from_text
from jitsu_tw.errors import EDE_PROHIBITED, StoreError
from jitsu_tw.ijitsu import IStore, Memory, Power
from jitsu_tw.settings import VM, Boot, Fault, Mode, Settings, WhenFull
from jitsu_tw.store.git import BRANCH, GitStore
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm.fleet import Clocks, Fleet
from jitsu_tw.vm.lifecycle import State
from jitsu_tw.vm.week import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.ledger import Facts

#: What the clock's zero is, in seconds since 1970.
EPOCH: Final = 1_700_000_000.0

#: Seconds of a round in which things happen, and in which nothing does: more than the longest lease and rest together.
BUSY: Final = 900.0
QUIET: Final = 900.0

#: Every how many seconds something happens, on the mean.
QUERY: Final = 0.2
BURST: Final = 30.0
BY_HAND: Final = 3.0
UNDEFINE: Final = 45.0
CONTROL: Final = 6.0
FAULT: Final = 3.0
LOST: Final = 120.0
KILL: Final = 60.0
TRAFFIC: Final = 4.0
DEAF: Final = 30.0

#: A commit takes up to so many seconds.
COMMITS_IN: Final = 0.05

#: Every how many-th round keeps the state in a repository.
GIT_EVERY: Final = 4

#: Memory may grow by this share, and so many octets, from the first quarter of the rounds to the last.
GROWTH: Final = 0.05
SLACK: Final = 4e6

#: So many Deferreds and coroutines more are no leak yet: those of calls that hung at the end of a round.
STRAY: Final = 100

#: Clients who may not start anything are in this network.
OUTSIDE: Final = "203.0.113."

#: An OPT record (RFC 6891, 6.1.2): so answers say what is wrong.
OPT: Final = bytes.fromhex("00 0029 04d0 00000000 0000")

A, TXT, AAAA, HTTPS = 1, 16, 28, 65

URIS: Final = ("one", "two")


def vms(number: int, random: Random) -> tuple[VM, ...]:
    """Return so many VMs, no two of a kind."""
    made: list[VM] = []
    for one in range(number):
        name = f"vm{one:03}"
        # Groups of ten: the second to fourth need the first, the fifth the second, the sixth two others.
        needs = {1: (0,), 2: (0,), 3: (0,), 4: (1,), 5: (0, 6)}.get(one % 10, ()) if one % 20 < 10 else ()
        if one % 10 == 6:
            needs = ()
        group = one - one % 10
        kept = one % 25 == 7
        uri = URIS[one // 10 % 2]
        made.append(VM(
            name=name,
            dns=(from_text(f"{name}.soak.test"),),
            ip=tuple(ip_address(text) for text in (f"10.0.{one // 250}.{one % 250 + 1}", f"2001:db8::{one + 1:x}")
                     [: 1 + (one % 3 == 0)]),
            ttl=60,
            mode=random.choice(list(Mode)),
            backend="memory",
            connect=uri,
            idle=random.choice((3.0, 5.0, 10.0, 20.0, 45.0, 90.0)),
            response_delay=random.choice((None, None, 0.2, 1.5)),
            wait_for_port=80 if one % 20 == 8 else None,
            min_up=random.choice((0.0, 0.0, 0.0, 15.0, 60.0)),
            max_up=0.0 if kept else random.choice((0.0, 0.0, 0.0, 90.0, 300.0)),
            keep_up=tuple(_spans(one)) if kept else (),
            needs=tuple(made[group + other].name if group + other < one else f"vm{group + other:03}"
                        for other in needs if group + other < number),
            boot_from=random.choice((Boot.DISK, Boot.DISK, Boot.SNAPSHOT)),
            check_every=5.0,
            stop_timeout=random.choice((3.0, 10.0)),
            boot_time=random.choice((0.0, 0.1, 0.5, 2.0, 6.0)),
        ))
    return tuple(made)


def _spans(number: int) -> Iterator[Span]:
    """Yield times of day: 20 to 40 minutes of every second hour."""
    for hour in range(number % 2, 24, 2):
        yield Span.parse(f"{hour:02}:{number % 30:02}-{hour:02}:{number % 20 + 35:02}")


@implementer(IStore)
class LateStore:
    """A store whose commits take a moment, one after the other; those of a Jitsu that is no more are not made."""

    def __init__(self, store: MemoryStore | FileStore, process: Process, random: Random) -> None:
        """Write to *store*."""
        self._store, self._process, self._random = store, process, random
        self._lock = DeferredLock()
        self.lasting = True

    def open(self) -> Mapping[str, str]:
        """Return the tree."""
        return self._store.open()

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Write a moment later."""
        return self._lock.run(self._write, changes, message)

    def _write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        if not self._process.alive:
            return Deferred()
        later: Deferred[None] = deferLater(self._process, self._random.uniform(0, COMMITS_IN))
        return later.addCallback(lambda _: self._store.write(dict(changes), message))

    def close(self) -> Deferred[None]:
        """Wait until what is being written is written."""
        return self._lock.run(succeed, None)


class FileStore(GitStore):
    """The state in a repository, written in this thread."""

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Commit at once."""
        return maybeDeferred(self._commit, changes, message)


@attrs.define(eq=False)
class Asked:
    """A question that waits for its answer."""

    name: str
    host: str
    type: int
    at: float
    joins: bool


class Jitsu:
    """One life of Jitsu, without sockets."""

    def __init__(self, world: World, settings: Settings) -> None:
        """Start it."""
        self.world, self.settings, self.ledger = world, settings, world.ledger
        clock, random = world.clock, world.random
        self.process = Process(clock, world.listens, world.exception)
        self.waiting: dict[Asked, None] = {}
        self.connections = {
            ("memory", uri): Connection(
                hypervisor, clock, world.ledger, random, lambda name: self.fleet.machines[name], self._door
            )
            for uri, hypervisor in world.hypervisors.items()
        }
        #: How many times something passes a door until it is killed there.
        self.killed_in: float = inf
        self._dying = False
        store = LateStore(world.store, self.process, random)
        clocks = Clocks(self.process, clock.seconds, world.wall)
        zones = config.zones(settings)
        self.fleet = Fleet(settings, self.connections, store, clocks)
        self.warm = WarmAnswers(clock.seconds)
        resolver = Chain([JitsuResolver(zones, self.fleet), ZoneAuthority(zones)])
        self.server = Server(resolver, self.warm, self.fleet, zones, wall=world.wall)
        self.ledger.begins(settings)
        try:
            self.fleet.start(store.open())
        except StoreError as error:
            self.ledger.against("state", None, str(error))
            raise

    def _door(self) -> None:
        """Perhaps be killed here."""
        self.killed_in -= 1
        if self.killed_in <= 0 and self.process.alive and not self._dying:
            self._dying = True
            self.world.kill()

    def end(self) -> None:
        """Be no more, from one moment to the next."""
        self.process.end()
        for connection in self.connections.values():
            connection.end()

    def ask(self, name: str, host: str, port: int, number: int, type: int, *, again: bool = False) -> None:
        """Take a question, perhaps *again*."""
        facts, machine, ledger = self.ledger.facts[name], self.fleet.machines[name], self.ledger
        octets = struct.pack(">6H", number, 0, 1, 0, 0, 1) + facts.vm.dns[0] + struct.pack(">2H", type, 1) + OPT
        asked = Asked(name, host, type, self.world.now(), machine.joinable)
        free = asked.joins or machine.is_resting
        summons = type == A or (type == AAAA and len(facts.vm.ip) > 1)
        up = machine.state is State.UP
        may = not host.startswith(OUTSIDE)
        self.waiting[asked] = None
        if summons:
            if asked.joins or may:
                ledger.wants(facts)
            ledger.waits(facts, 1)
            ledger.note(facts, f"asked by {host}, {machine.state.value}")
        failed = ledger.counts["refused"], ledger.counts["failed"]
        warm = self.warm.get(octets, (host, port))
        if warm is not None:
            ledger.counts["warm"] += 1
            self._answer(asked, summons, warm)
        elif self.process.alive:
            self.server.receive(octets, Source(host, port), lambda packet: self._answer(asked, summons, packet))
        if summons and may and self.process.alive and (ledger.counts["refused"], ledger.counts["failed"]) == failed:
            if not again and (up or not asked.joins):
                ledger.uses(facts, up=up)
            if not free:
                ledger.spends(host)

    def _answer(self, asked: Asked, summons: bool, packet: bytes) -> None:  # noqa: FBT001
        """Look at an answer."""
        if not self.process.alive:
            return
        ledger, facts = self.ledger, self.ledger.facts[asked.name]
        if asked not in self.waiting:
            ledger.against("answered twice", facts)
            return
        del self.waiting[asked]
        rcode, answers = packet[3] & 15, struct.unpack_from(">H", packet, 6)[0]
        if not summons:
            ledger.counts["no summons"] += 1
            if rcode or answers:
                ledger.against("no summons", facts, f"type {asked.type} is answered with {answers}, rcode {rcode}")
            return
        ledger.waits(facts, -1)
        # An OPT record without options ends with its length, 0; most have none, and to read them takes a while.
        ede = () if packet.endswith(bytes(2)) else {one.code for one in dns.message.from_wire(packet).extended_errors()}
        late = rcode == 0 and bool(ede)
        if rcode == 5:
            ledger.counts["refused"] += 1
            if asked.joins:
                ledger.against("refused", facts, f"{asked.host}, though it joins")
            if ede and EDE_PROHIBITED not in ede:
                ledger.against("refused", facts, f"with {ede}")
        else:
            ledger.counts["failed" if rcode else "late" if late else "ready"] += 1
            if asked.host.startswith(OUTSIDE) and not asked.joins:
                ledger.against("outside", facts, f"{asked.host} is answered with {rcode}")
        ledger.note(facts, f"answered {asked.host}: {rcode} {'late' if late else ''}")
        ledger.answered(facts, ready=rcode == 0 and not late, after=self.world.now() - asked.at)


class World:
    """Everything around Jitsu, on one clock."""

    def __init__(self, number: int, seed: int, folder: Path) -> None:
        """Begin with so many VMs, all off, and a Jitsu; the seed decides what happens."""
        self.random, self.folder = Random(seed), folder  # noqa: S311
        self.clock = Clock()
        self.vms = vms(number, self.random)
        self.ledger = Ledger(self.vms, self.now, self.wall)
        self.hypervisors = {uri: Hypervisor(uri, self.clock, self.ledger, self.random) for uri in URIS}
        for vm in self.vms:
            self.hypervisors[vm.connect].define(vm, anew=False)
        self.store: MemoryStore | FileStore = MemoryStore(lasting=True)
        self.jitsu: Jitsu | None = None
        self.busy = False
        self._weights = [random_weight(self.random) for _ in self.vms]
        self._sources = [f"10.{net}.{net % 7}.{host}" for net in range(24) for host in (1, 2, 3)]
        self._sources += [f"2001:db8:{net:x}:{net:x}::{host}" for net in range(8) for host in (1, 2)]
        self._sources += [f"{OUTSIDE}{host}" for host in (1, 2)]

    def now(self) -> float:
        """Return the clock's time."""
        return self.clock.seconds()

    def wall(self) -> float:
        """Return the seconds since 1970."""
        return EPOCH + self.clock.seconds()

    def listens(self, host: str) -> bool | None:
        """Say whether a guest's port is open; None if nobody is there."""
        found = [hypervisor.listens(host) for hypervisor in self.hypervisors.values()]
        return next((one for one in found if one is not None), None)

    def exception(self) -> None:
        """Hear of an exception that nobody caught; it is being handled."""
        self.ledger.against("exception", None, Failure().getTraceback())

    # Jitsu's lives.

    def begin(self) -> None:
        """Start a Jitsu, with other limits than the last."""
        choose = self.random.choice
        settings = Settings(
            vms=self.vms,
            listen=0,
            answer_by=choose((0.5, 1.2)),
            max_booting=choose((2, 8, 20)),
            max_running=choose((0, 0, 60, 100)),
            when_full=choose(list(WhenFull)),
            starts_per_minute=choose((0, 30, 60)),
            summon_from=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
        )
        self.ledger.counts["Jitsus"] += 1
        self.jitsu = Jitsu(self, settings)

    def kill(self) -> None:
        """End Jitsu as `kill -9` does, and start another soon."""
        if self.jitsu is None:
            return
        self.ledger.counts["kills"] += 1
        jitsu, self.jitsu = self.jitsu, None
        jitsu.end()
        self.ledger.killed()
        if isinstance(self.store, FileStore):
            if self.random.random() < 0.3:
                (self.folder / f"{self.ledger.counts['repositories']}.git" / f"{BRANCH}.lock").touch()
            self.reopen()
        self.clock.callLater(self.random.choice((0.0, 0.5, self.random.uniform(0, 20))), self.begin)

    def end(self) -> None:
        """End Jitsu as its service does; nothing may be left of it but what was under way."""
        jitsu, self.jitsu = self.jitsu, None
        if jitsu is not None:
            stopped: list[Any] = []
            jitsu.fleet.stop().addBoth(stopped.append)
            limit = self.now() + 10
            while not stopped and self.clock.calls and (when := self.clock.calls[0].getTime()) < limit:
                self.clock.advance(max(0.0, when - self.now()))
            if stopped != [None]:
                self.ledger.against("end", None, f"the service ends with {stopped}")
            if not self.busy and (calls := jitsu.process.getDelayedCalls()):
                self.ledger.against("leak", None, f"calls are left: {calls}")
            jitsu.end()
            self.ledger.ended()

    def reopen(self) -> None:
        """Let the next Jitsu read the repository anew."""
        self.store = FileStore(self.folder / f"{self.ledger.counts['repositories']}.git")

    # What happens.

    def every(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something every so many seconds, on the mean, while the world is busy."""
        def again() -> None:
            if self.busy:
                act()
                self.clock.callLater(self.random.expovariate(1 / seconds), again)

        self.clock.callLater(self.random.expovariate(1 / seconds), again)

    def shake(self) -> None:
        """Begin with everything that happens."""
        self.busy = True
        if self.jitsu is None:
            self.begin()
        for seconds, act in (
            (QUERY, self._query), (BURST, self._burst), (BY_HAND, self._by_hand), (UNDEFINE, self._undefine),
            (CONTROL, self._control), (FAULT, self._fault), (LOST, self._lose), (KILL, self._kill),
            (TRAFFIC, self._traffic), (DEAF, self._fall_silent),
        ):
            self.every(seconds, act)

    def _query(self) -> None:
        self._ask(self.random.choices(self.vms, self._weights)[0].name, self.random.choice(self._sources))

    def _burst(self) -> None:
        """Ask for many at once, from one network or from many."""
        number = self.random.randint(5, 60)
        sources = self._sources if self.random.random() < 0.5 else [self.random.choice(self._sources)]
        for vm in self.random.choices(self.vms, k=number):
            self._ask(vm.name, self.random.choice(sources))

    def _ask(self, name: str, host: str) -> None:
        if self.jitsu is None:
            return
        kind = self.random.choices((A, AAAA, TXT, HTTPS), (85, 8, 3, 4))[0]
        question = name, host, self.random.randrange(1024, 65536), self.random.getrandbits(16), kind
        self.jitsu.ask(*question)
        if self.random.random() < 0.15:
            self.clock.callLater(self.random.choice((0.4, 0.8, 1.5)), self._ask_again, question)

    def _ask_again(self, question: tuple[str, str, int, int, int]) -> None:
        if self.jitsu is not None:
            self.jitsu.ask(*question, again=True)

    def _defined(self) -> tuple[Hypervisor, str, str]:
        """Return a VM that is defined: where, its name and its uuid."""
        while True:
            vm = self.random.choice(self.vms)
            hypervisor = self.hypervisors[vm.connect]
            if vm.name in hypervisor.uuids:
                return hypervisor, vm.name, hypervisor.uuids[vm.name]

    def _by_hand(self) -> None:
        """Change a VM without Jitsu; those that others have started are stopped by them sooner or later."""
        hypervisor, name, uuid = self._defined()
        others = [facts for facts in self.ledger.facts.values() if facts.power is Power.RUNNING and not facts.by_us]
        powers = [Power.OFF, Power.OFF, Power.PAUSED, Power.SAVED, Power.RUNNING, Power.RUNNING, Power.RUNNING]
        power = self.random.choice(powers)
        if len(others) > 15:
            name, power = self.random.choice(others).vm.name, Power.OFF
            hypervisor = self.hypervisors[self.ledger.facts[name].vm.connect]
            uuid = hypervisor.uuids[name]
        guest = hypervisor.guests[uuid]
        if guest.busy or guest.power is power or (guest.power is not Power.RUNNING and power is not Power.RUNNING):
            return
        self.ledger.counts["by hand"] += 1
        if power is Power.RUNNING:
            guest.starts += 1
            guest.sent = guest.sent if guest.power is Power.PAUSED or guest.sent is None else 0
        hypervisor.happen(uuid, power, "by hand")

    def _undefine(self) -> None:
        """Undefine a VM that is off, and define it again a while later."""
        hypervisor, name, uuid = self._defined()
        guest = hypervisor.guests[uuid]
        if guest.power is Power.RUNNING and not guest.busy:
            hypervisor.happen(uuid, Power.OFF, "by hand")
        if not guest.busy:
            self.ledger.counts["undefined"] += 1
            hypervisor.undefine(name)
            anew, vm = self.random.random() < 0.5, self.ledger.facts[name].vm
            self.clock.callLater(self.random.uniform(0.1, 40), lambda: hypervisor.define(vm, anew=anew))

    def _control(self) -> None:
        """Start or stop a VM through Jitsu, as a person does."""
        jitsu = self.jitsu
        if jitsu is None:
            return
        facts = self.ledger.facts[self.random.choice(self.vms).name]
        name, up = facts.vm.name, jitsu.fleet.machines[facts.vm.name].state is State.UP
        if self.random.random() < 0.5:
            self.ledger.counts["control: start"] += 1
            self.ledger.wants(facts)
            self.ledger.waits(facts, 1)
            self.ledger.note(facts, "control: start")
            started = jitsu.fleet.start_vm(name)
            if jitsu.process.alive:
                self.ledger.uses(facts, up=up, person=True)
            started.addBoth(self._controlled, jitsu, lambda: self.ledger.waits(facts, -1))
        else:
            self.ledger.counts["control: stop"] += 1
            self.ledger.note(facts, "control: stop")
            facts.by_hand, facts.rested = facts.by_hand + 1, self.now()
            stopped = jitsu.fleet.stop_vm(name)
            stopped.addBoth(self._controlled, jitsu, lambda: setattr(facts, "by_hand", facts.by_hand - 1))

    @staticmethod
    def _controlled(_result: Any, jitsu: Jitsu, then: Callable[[], None]) -> None:
        if jitsu.process.alive:
            then()

    def _fault(self) -> None:
        """Order a fault for a while, or let a host have no memory."""
        hypervisor, name, uuid = self._defined()
        fault = self.random.choice([*Fault, None])
        if fault is None:
            guest = hypervisor.guests[uuid]
            guest.memory = None if guest.memory is not None else Memory(1 << 30, self.random.choice((0, 1 << 31)))
            return
        self.ledger.counts[f"fault: {fault.value}"] += 1
        self._order(name, fault)
        self.clock.callLater(self.random.uniform(1, 60), self._order, name, fault)

    def _order(self, name: str, fault: Fault) -> None:
        hypervisor, facts = self.hypervisors[self.ledger.facts[name].vm.connect], self.ledger.facts[name]
        if name in hypervisor.uuids:
            self.ledger.note(facts, f"fault {fault.value} {'on' if hypervisor.order(name, fault) else 'off'}")

    def _lose(self) -> None:
        """Break a connection, for a while."""
        hypervisor = self.random.choice(list(self.hypervisors.values()))
        if hypervisor.up:
            self.ledger.counts["lost"] += 1
            hypervisor.up = False
            if hypervisor.told is not None:
                hypervisor.told.broken()
            self.clock.callLater(self.random.choice((0.05, 2.0, self.random.uniform(0, 40))), self._find, hypervisor)

    def _find(self, hypervisor: Hypervisor) -> None:
        hypervisor.up = True
        if hypervisor.told is not None:
            hypervisor.told.found()

    def _kill(self) -> None:
        """End Jitsu: in order, between two things that it does, or within the next few."""
        how = self.random.random()
        if self.jitsu is None:
            return
        if how < 0.2:
            self.end()
            if self.jitsu is None:
                self.begin()
        elif how < 0.5:
            self.kill()
        else:
            self.jitsu.killed_in = self.random.randint(1, 30)

    def _traffic(self) -> None:
        """Let a guest send, for a while: a trickle, or as much as one in use does."""
        hypervisor, name, _ = self._defined()
        rate = self.random.choice((0.0, 0.25, 5.0, 50.0, 2000.0))
        hypervisor.send(name, rate)
        self.ledger.note(self.ledger.facts[name], f"sends {rate:g}/s")
        self.clock.callLater(self.random.uniform(1, 200), self._calm, hypervisor, name)

    def _calm(self, hypervisor: Hypervisor, name: str) -> None:
        if name in hypervisor.uuids:
            hypervisor.send(name, 0.0)

    def _fall_silent(self) -> None:
        """Let a guest that has a port close it, until its next start."""
        found = [facts for facts in self.ledger.facts.values() if facts.vm.wait_for_port]
        facts = self.random.choice(found)
        if facts.power is Power.RUNNING and facts.deaf == inf:
            self.ledger.counts["deaf"] += 1
            self.ledger.note(facts, "falls silent")
            facts.deaf = self.now()
            self.clock.callLater(self.random.uniform(1, 40), self._speak_again, facts)

    def _speak_again(self, facts: Facts) -> None:
        if facts.deaf < inf:
            facts.deaf, facts.opened = inf, self.now()

    # Rounds.

    def pass_time(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        end = self.now() + seconds
        while self.clock.calls and (when := self.clock.calls[0].getTime()) <= end and not self.ledger.wrong:
            self.clock.advance(max(0.0, when - self.now()))
        if not self.ledger.wrong:
            self.clock.advance(max(0.0, end - self.now()))

    def round(self, number: int) -> None:
        """Let everything happen for a while, then nothing, and look whether all is as it should be."""
        in_files = number % GIT_EVERY == GIT_EVERY - 1
        if in_files:
            self.end()
            tree = self.store.open()
            self.ledger.counts["repositories"] += 1
            self.reopen()
            self.store.open()
            if tree:
                self.store.write(tree, "From the round before")
        self.shake()
        self.pass_time(BUSY)
        self.busy = False
        self._calm_down()
        self.pass_time(QUIET)
        if not self.ledger.wrong:
            self._audit()
        if in_files and not self.ledger.wrong:
            self.end()
            tree, self.store = self.store.open(), MemoryStore(lasting=True)
            self.store.write(tree, "From the repository")

    def _calm_down(self) -> None:
        """End all faults; what others did ends by itself within a minute."""
        def calm() -> None:
            for hypervisor in self.hypervisors.values():
                for name, uuid in hypervisor.uuids.items():
                    guest = hypervisor.guests[uuid]
                    guest.memory = None
                    for fault in guest.vm.faults:
                        self._order(name, fault)
                    hypervisor.send(name, 0.0)
            for facts in self.ledger.facts.values():
                facts.deaf = inf

        self.clock.callLater(61, calm)

    def _audit(self) -> None:
        jitsu, ledger = self.jitsu, self.ledger
        assert jitsu is not None
        ledger.audit({name: machine.state.value for name, machine in jitsu.fleet.machines.items()})
        for asked in jitsu.waiting:
            ledger.against("answer_by", ledger.facts[asked.name], f"{asked.host} waits since {asked.at:.3f}")
        kept = sum(bool(vm.keep_up) for vm in self.vms)
        calls = jitsu.process.getDelayedCalls()
        # The record's, the log's, the sweep's; and what starts VMs at their times.
        if len(calls) > 3 + 2 * kept:
            ledger.against("leak", None, f"{len(calls)} calls are due")
        self.end()
        self.pass_time(2 * HANGS)
        if self.clock.calls:
            ledger.against("leak", None, f"nobody lives, and these are due: {self.clock.calls}")


def random_weight(random: Random) -> float:
    """Return how much a VM is asked for: a few are all the time, many hardly ever."""
    return random.paretovariate(1.2)


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
class Outcome:
    """
    What a soak showed.

    Attributes:
        seed: of it.
        wrong: the rules that were broken, with what led there.
        counts: how often what happened.
        hours: that passed for the VMs.
        seconds: that it took.
        rests: what was there after each round.
    """

    seed: int
    wrong: list[str]
    counts: Mapping[str, int]
    hours: float
    seconds: float
    rests: list[Rest]


def soak(seed: int, number: int, minutes: float, rounds: float = inf) -> Outcome:
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
    return Outcome(seed, ledger.wrong, ledger.counts, world.now() / 3600, time.monotonic() - begin, rests)


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


def show(outcome: Outcome) -> None:
    """Print what a soak showed."""
    console = Console(highlight=False)
    for words in outcome.wrong:
        console.print(words, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("what")
    table.add_column("how often", justify="right")
    for what, often in sorted(outcome.counts.items()):
        table.add_row(what, f"{often:,}")
    console.print(table)
    rests = outcome.rests
    quarter = max(1, len(rests) // 4)
    if rests:
        memory = [statistics.median(one.memory for one in some) / 1e6 for some in (rests[:quarter], rests[-quarter:])]
        console.print(f"memory {memory[0]:.1f} MB in the first quarter, {memory[1]:.1f} MB in the last; at last "
                      f"{rests[-1].objects} Deferreds and coroutines ({rests[0].objects} after the first round), "
                      f"{rests[-1].threads} threads, {rests[-1].files} files", soft_wrap=True)
    console.print(f"seed {outcome.seed}: {len(rests)} rounds, {outcome.hours:.1f} hours in {outcome.seconds:.0f} s: "
                  f"[bold]{'all held' if not outcome.wrong else f'{len(outcome.wrong)} broken rules'}[/]")


@click.command()
@click.option("--minutes", default=1.5, show_default=True, help="Of real time; the round that is under way is ended.")
@click.option("--seed", type=int, help="Of a run to be had again; by itself, a new one.")
@click.option("--vms", "number", default=200, show_default=True, help="How many.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all figures to this file.")
def main(minutes: float, seed: int | None, number: int, path: Path | None) -> None:
    """Soak Jitsu."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of names is part of what happens.
        command = [sys.executable, "-m", "bench.soak", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606
    outcome = soak(secrets.randbelow(10**6) if seed is None else seed, number, minutes)
    if path is not None:
        path.write_text(json.dumps(attrs.asdict(outcome), indent=2))
    show(outcome)
    sys.exit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
