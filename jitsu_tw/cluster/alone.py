"""The ownership of VMs where this node is the only one: it owns all of them, and tells nobody."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from jitsu_tw.ijitsu import IOwnership
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.ijitsu import IClusterEvents, IMachine, Request


@implementer(IOwnership)
class Alone:
    """All VMs are this node's. What the hosts of VMs need besides is as in `claims.Claims`."""

    refusal = ""
    connected = True

    def __init__(self, node: str, machines: Mapping[str, IMachine], events: IClusterEvents) -> None:
        """Own *machines* as *node*; *events* knows which of them this node had started."""
        self._node, self._machines, self._events = node, machines, events

    def is_own(self, machine: IMachine) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def is_others(self, machine: IMachine) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    is_known = is_others

    def owner(self, machine: IMachine) -> None:
        """Return None: there is no cluster."""

    def times(self, machine: IMachine) -> tuple[float, float]:  # noqa: ARG002
        """Return 0.0 twice: no VM `is_known`."""
        return 0.0, 0.0

    def claim(self, machine: IMachine) -> Deferred[bool]:  # noqa: ARG002
        """Return a Deferred that has fired with True."""
        return succeed(True)  # noqa: FBT003

    def prove(self, machine: IMachine) -> None:
        """Return: no other node can start *machine*."""

    def owner_ready(self, machine: IMachine) -> None:
        """Return None: this node finds out by itself."""

    def note_use(self, machine: IMachine, when: float) -> None:
        """Return: the lease alone counts."""

    def announce_stop(self, machine: IMachine) -> float:  # noqa: ARG002
        """Return 0.0: no other node need know."""
        return 0.0

    def withdraw_stop(self, machine: IMachine) -> None:
        """Return: no stop was announced."""

    def request(self, machine: IMachine, request: Request, argument: str = "") -> Deferred[State]:  # noqa: ARG002
        """Return a Deferred that has fired: there is no other node to ask."""
        return succeed(machine.state)

    def moved(self, machine: IMachine, old: State) -> None:
        """Return: nothing is told."""

    def forget(self, machine: IMachine) -> None:
        """Return: nothing is told."""

    # What the rest of `cluster` needs.

    @property
    def owned(self) -> Counter[str]:
        """How many VMs each node owns: this one all that are up."""
        return Counter({self._node: sum(one.state is State.UP for one in self._machines.values())})

    def last_host(self, machine: IMachine) -> str | None:
        """Return None, for not known, if this node had started *machine*; else empty."""
        return None if self._events.was_started(machine.vm.name) else ""

    def record_start(self, machine: IMachine, host: str = "") -> Deferred[bool]:  # noqa: ARG002
        """Return a Deferred that has fired with True."""
        return succeed(True)  # noqa: FBT003

    def seen_on(self, machine: IMachine, host: str) -> None:
        """Return: the hosts know where it runs."""

    def release_where(self, which: Callable[[IMachine], bool]) -> None:
        """Return: there is no other node to adopt a VM."""

    def release_all(self) -> None:
        """Return: there is no other node to adopt a VM."""

    def start(self) -> None:
        """Return: there is nothing to tell from time to time."""

    async def stop(self) -> None:
        """Return: there is nobody to tell."""

    def told(self, kind: str, machine: IMachine, value: str | None) -> None:
        """Return: there are no facts of VMs."""

    def node_left(self, name: str) -> None:
        """Return: this node is here."""

    def connect(self) -> None:
        """Return: nothing was missed."""

    def lose(self) -> None:
        """Return: there is no node to lose."""
