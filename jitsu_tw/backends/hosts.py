"""
The hosts of a pool: which can be reached, what they tell, and what was seen last of the VMs on each.

`pool` decides by that where a VM is and where it starts.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.errors import BackendLost, NoSuchVM
from jitsu_tw.ijitsu import IPlacement, IWatcher, Power
from jitsu_tw.rules.pool import Sighting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.settings import VM


@implementer(IPlacement)
class Unplaced:
    """Of where VMs are nothing is known but what the hosts tell."""

    def claim_host(self, vm: VM, host: str) -> Deferred[bool]:  # noqa: ARG002
        """Return a Deferred that has fired with True."""
        return succeed(True)  # noqa: FBT003

    def seen_on(self, vm: VM, host: str, *, moved: bool) -> None:
        """Return."""

    def last_host(self, vm: VM) -> str | None:
        """Return None: not known."""

    def started_ago(self, vm: VM) -> float:  # noqa: ARG002
        """Return infinity: no start is known."""
        return inf

    def is_drained(self, host: str) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    def take_wanted(self, vm: VM) -> None:
        """Return None: no host is wanted."""

    def reach_changed(self, host: str) -> None:
        """Return."""


@implementer(IWatcher)
class Hosts:
    """
    The connections to all hosts of a configuration.

    Attributes:
        unreachable: why a host cannot be reached, by name.
        fenced: hosts on which nothing runs, because they have been made sure to be dead.
        reachable, has_uuids: as `IBackend` has them.
    """

    log = Logger()

    def __init__(self, hosts: Mapping[str, IBackend]) -> None:
        """Take *hosts*, by name, in the order of the configuration."""
        self._hosts = dict(hosts)
        self._names = {id(backend): name for name, backend in hosts.items()}
        self._watcher: IWatcher | None = None
        self._seen: dict[str, dict[str, Power]] = {}
        self._at: dict[str, str] = {}
        self.unreachable: dict[str, str] = {}
        self.fenced: set[str] = set()
        self._placement: IPlacement = Unplaced()
        self.reachable = all(backend.reachable for backend in hosts.values())
        self.has_uuids = all(backend.has_uuids for backend in hosts.values())

    def follow(self, placement: IPlacement) -> None:
        """Ask and tell *placement* from now on where VMs are."""
        self._placement = placement

    def __str__(self) -> str:
        """Return the names of all, for messages."""
        return " or ".join(self._hosts)

    def __iter__(self) -> Any:
        """Yield the names of all."""
        return iter(self._hosts)

    def at(self, uuid: str) -> str | None:
        """Return the host that a VM runs, is paused or has its image on; None for none."""
        return self._at.get(uuid)

    def connect(self, watcher: IWatcher) -> None:
        """Connect to all of them."""
        self._watcher = watcher
        self.unreachable = dict.fromkeys(self._hosts, "it has not answered yet")
        for backend in self._hosts.values():
            backend.connect(self)

    def close(self) -> Deferred[None]:
        """End all connections."""
        self._watcher = None
        closed = DeferredList([backend.close() for backend in self._hosts.values()], consumeErrors=True)
        return closed.addCallback(lambda _: None)

    # What the hosts tell (`IWatcher`).

    def changed(self, uuid: str, reason: str) -> None:
        """Pass a host's event on."""
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def rebooted(self, uuid: str) -> None:
        """Pass a host's event on."""
        if self._watcher is not None:
            self._watcher.rebooted(uuid)

    def connected(self, backend: IBackend) -> None:
        """Handle that a host is connected, for the first time or again."""
        name = self._names[id(backend)]
        self.unreachable.pop(name, None)
        self._placement.reach_changed(name)
        if self._watcher is not None:
            self._watcher.connected(cast("IBackend", self))

    def lost(self, backend: IBackend, reason: str) -> None:
        """Handle that a host cannot be reached, for a while."""
        name = self._names[id(backend)]
        if reason != self.unreachable.get(name):
            self.log.error("host {name}: {reason}", name=name, reason=reason)
        self.unreachable[name] = reason
        self._placement.reach_changed(name)
        if self._watcher is not None and self.unreachable.keys() == self._hosts.keys():
            reasons = "; ".join(f"{host}: {why}" for host, why in self.unreachable.items())
            self._watcher.lost(cast("IBackend", self), reasons)
        self._look_at(name, f"{name}: {reason}")

    def _look_at(self, name: str, reason: str) -> None:
        """Report a change of each VM that is, or was, on the host *name*."""
        for uuid, seen in list(self._seen.items()):
            if seen.get(name, Power.OFF) is not Power.OFF:
                self.changed(uuid, reason)

    def _seen_of(self, uuid: str) -> dict[str, Power]:
        """
        Return what was seen last of a VM on each host, to be changed.

        Raises:
            NoSuchVM: it was not looked up, or was removed meanwhile.
        """
        if uuid not in self._seen:
            raise NoSuchVM(f"no VM {uuid}")
        return self._seen[uuid]

    async def _look(self, uuid: str, name: str) -> Sighting:
        """Return what the VM is on one host, or what was last seen of it there if the host cannot be asked."""
        seen, lost = self._seen_of(uuid), ""
        if name in self.fenced:
            seen[name] = Power.OFF
        elif name in self.unreachable:
            lost = self.unreachable[name]
        else:
            try:
                seen[name] = await self._hosts[name].state(uuid)
            except NoSuchVM:
                seen.pop(name, None)
            except BackendLost as error:
                lost = str(error)
        return Sighting(name, seen.get(name), lost)

    def seen_down(self, uuid: str) -> None:
        """Handle that another node has seen that the VM runs on none of the hosts that this one cannot reach."""
        seen = self._seen.get(uuid, {})
        for name in [name for name, power in seen.items() if name in self.unreachable and power is not Power.OFF]:
            seen[name] = Power.OFF
            self.changed(uuid, f"{name}: {self.unreachable[name]}; another node has seen it down")

    def fence(self, name: str, *, undo: bool = False) -> None:
        """Note that nothing runs on the host *name* any more, because it is dead; *undo*: what it tells holds again."""
        if undo:
            self.fenced.discard(name)
        elif name not in self.fenced and name in self._hosts:
            self.fenced.add(name)
            self._look_at(name, f"its host {name} is dead")
