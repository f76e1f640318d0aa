"""One life of Jitsu in a soak, from a query's octets to the hypervisor's calls and the state, without sockets."""

from __future__ import annotations

import struct
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
import dns.message
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from bench.simulation.connection import Connection
from bench.simulation.process import Process
from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.coordinator.local import LocalCoordinator
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.config import build
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.warm import WarmAnswers
from jitsu_tw.dns.wire import Source
from jitsu_tw.errors import EDE_PROHIBITED, StoreError
from jitsu_tw.ijitsu import IStore
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.store.git import GitStore
from jitsu_tw.vm.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from bench.simulation.world import World
    from jitsu_tw.settings import Settings
    from jitsu_tw.store.memory import MemoryStore

#: A commit takes up to so many seconds.
COMMITS_IN: Final = 0.05

#: Clients who may not start anything are in this network.
OUTSIDE: Final = "203.0.113."

#: An OPT record (RFC 6891, 6.1.2): so answers say what is wrong.
OPT: Final = bytes.fromhex("00 0029 04d0 00000000 0000")

A, TXT, AAAA, HTTPS = 1, 16, 28, 65


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

    def open(self) -> Mapping[str, str]:
        """Return the tree; the Jitsu that had opened it before is no more."""
        self.release()
        return super().open()

    def release(self) -> None:
        """Release the lock, as the kernel does when a Jitsu is killed."""
        self._running.release()

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Commit at once."""
        return maybeDeferred(self.history.commit, dict(changes), message)


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
        zones = build.zones(settings)
        self.warm = WarmAnswers(clock.seconds, settings.summon_from)
        make_cluster = partial(Membership, settings, None, LocalCoordinator(), clocks)
        self.fleet = Fleet(settings, self.connections, store, clocks, make_cluster, self.warm)
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
        free = asked.joins or bool(machine.rests)
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
        source = Source(host, port, proven=True)
        (reply,), others = self.server.answer_warm(([octets[2:]], [source.client(octets[:2])]))
        if not others:
            ledger.counts["warm"] += 1
            if reply is not None:
                self._answer(asked, summons, octets[:2] + reply)
        elif self.process.alive:
            self.server.receive(octets, source, lambda packet: self._answer(asked, summons, packet))
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
        if late:
            ledger.promises(facts)
        ledger.answered(facts, ready=rcode == 0 and not late, after=self.world.now() - asked.at)
