"""
Hypervisors in this process, for Jitsus in others (`bench.simulation.node`): they see every call, and enter it in an
`audit`.

They are reached by one UNIX socket, with lines of JSON: ``{"id", "call", ...}``, answered by ``{"id", "result"}`` or
``{"id", "error"}``; what changes is told to all who are connected to that host, ``{"changed", "reason"}``.
"""

from __future__ import annotations

import json
import uuid as uuids
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineOnlyReceiver

from jitsu_tw.ijitsu import Power, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from twisted.python.failure import Failure

    from bench.simulation.audit import Audit, Kind

#: A guest's memory and a host's, in octets.
GUEST: Final = 1 << 28
HOST: Final = 1 << 36


@attrs.define(eq=False)
class Guest:
    """
    A VM on one host.

    Attributes:
        kind: what it is.
        runs: it does.
        starting: by which connection, while it does not run yet.
        since: when it began to run.
        rate, sent: packets that it sends in a second, and has sent until `counted`.
    """

    kind: Kind
    runs: bool = False
    starting: Door | None = None
    rate: float = 0.0
    sent: float = 0.0
    counted: float = 0.0
    waiting: list[Deferred[str]] = attrs.field(factory=list)

    def count(self, now: float) -> int:
        """Return how many packets it has sent."""
        self.sent, self.counted = self.sent + self.rate * (now - self.counted), now
        return int(self.sent)


class Door(LineOnlyReceiver):
    """A node's connection to a host."""

    delimiter = b"\n"
    host = node = ""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Do what is asked for."""
        said = json.loads(line)
        number, what = said.pop("id"), said.pop("call")
        called = Deferred.fromCoroutine(self._hosts.call(self, what, said))
        called.addCallbacks(lambda result: {"result": result}, lambda failure: {"error": failure.getErrorMessage()})
        called.addCallback(lambda answer: self.tell({"id": number, **answer}))

    def tell(self, words: Mapping[str, Any]) -> None:
        """Say something to the node."""
        self.sendLine(json.dumps(words).encode())

    def abort(self) -> None:
        """End it at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]  # noqa: ARG002, N802
        """Have a node less."""
        self._hosts.left(self)


class Hosts:
    """
    The hosts.

    Attributes:
        away: those that cannot be reached.
        on_start: called with the VM's name and the node, when a start begins.
    """

    def __init__(self, names: tuple[str, ...], kinds: Mapping[str, Kind], audit: Audit, reactor: Any) -> None:
        """Have all VMs on each of them, off."""
        self._audit, self._reactor = audit, reactor
        self._uuids = {name: str(uuids.uuid5(uuids.NAMESPACE_DNS, f"{name}.cluster.test")) for name in kinds}
        self.guests = {
            host: {self._uuids[name]: Guest(kind) for name, kind in kinds.items()} for host in names
        }
        self._doors: set[Door] = set()
        self._lost: set[Door] = set()
        self.away: set[str] = set()
        self.on_start: Callable[[str, str], None] = lambda _name, _node: None

    def listen(self, path: Path) -> Any:
        """Listen at *path*."""
        return self._reactor.listenUNIX(str(path), Factory.forProtocol(lambda: Door(self)))

    def lose(self, host: str) -> None:
        """End all connections to *host*, and take no others until `find`."""
        self.away.add(host)
        for door in [door for door in self._doors if door.host == host]:
            self._lost.add(door)
            door.abort()

    def find(self, host: str) -> None:
        """Let *host* be reached again."""
        self.away.discard(host)

    def left(self, door: Door) -> None:
        """Hear that a node is not connected any more: some starts end with it."""
        self._doors.discard(door)
        if door in self._lost:
            self._lost.discard(door)
            return
        for guest in self.guests.get(door.host, {}).values():
            if guest.starting is door and not guest.kind.lives_on:
                guest.starting = None
                self._audit.in_vain(guest.kind.name, door.host)
                self._has_started(guest, "its start has ended with who asked for it")

    def running(self) -> list[str]:
        """Return the names of the VMs that run."""
        return [guest.kind.name for guests in self.guests.values() for guest in guests.values() if guest.runs]

    def off(self, name: str) -> None:
        """Switch a VM off, by hand, wherever it is."""
        for host in self.guests:
            self._off(host, self._uuids[name], "")

    def send(self, name: str, rate: float, now: float) -> None:
        """Let a guest that runs send so many packets in a second."""
        for guests in self.guests.values():
            guest = guests[self._uuids[name]]
            if guest.runs and guest.rate != rate:
                guest.count(now)
                guest.rate = rate
                self._audit.accounts[name].sends = now if rate else None
                self._audit.note(self._audit.accounts[name], f"sends {rate:g} packets in a second")

    # Calls.

    async def call(self, door: Door, what: str, said: Mapping[str, Any]) -> Any:
        """Do what a node asks for."""
        if what == "hello":
            door.host, door.node = said["host"], said["by"]
            if door.host in self.away:
                self._lost.add(door)
                door.abort()
            else:
                self._doors.add(door)
            return True
        if what == "look_up":
            return self._uuids[said["name"]]
        guest = self.guests[door.host][said["uuid"]]
        if what == "state":
            return (Power.RUNNING if guest.runs else Power.OFF).value
        if what == "start":
            return await self._start(door, guest, said["uuid"])
        if what == "stop":
            self._off(door.host, said["uuid"], door.node)
            return None
        if what == "traffic":
            return guest.count(self._reactor.seconds())
        assert what == "memory", what
        running = sum(one.runs or one.starting is not None for one in self.guests[door.host].values())
        return 0 if guest.runs else GUEST, HOST - running * GUEST

    async def _start(self, door: Door, guest: Guest, uuid: str) -> str:
        if guest.runs:
            return Start.RAN.value
        if guest.starting is not None:
            waiting: Deferred[str] = Deferred()
            guest.waiting.append(waiting)
            return await waiting
        guest.starting = door
        self._audit.starts(guest.kind.name, door.host, door.node)
        self.on_start(guest.kind.name, door.node)
        if guest.kind.boot_time:
            await deferLater(self._reactor, guest.kind.boot_time)
            if guest.starting is not door:
                raise RuntimeError("it has ended")
        guest.runs, guest.starting, guest.rate, guest.sent = True, None, 0.0, 0.0
        self._audit.runs(guest.kind.name, door.host)
        self._has_started(guest, "")
        self._tell(door.host, uuid, "started")
        return Start.BOOTED.value

    @staticmethod
    def _has_started(guest: Guest, error: str) -> None:
        waiting, guest.waiting = guest.waiting, []
        for one in waiting:
            if error:
                one.errback(RuntimeError(error))
            else:
                one.callback(Start.RAN.value)

    def _off(self, host: str, uuid: str, node: str) -> None:
        guest = self.guests[host][uuid]
        if guest.runs:
            guest.runs = False
            self._audit.stops(guest.kind.name, host, node)
            self._tell(host, uuid, "stopped")

    def _tell(self, host: str, uuid: str, reason: str) -> None:
        for door in list(self._doors):
            if door.host == host:
                door.tell({"changed": uuid, "reason": reason})
