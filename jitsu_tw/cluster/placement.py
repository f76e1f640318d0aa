"""What the hosts are told of the facts about their VMs, and the facts that they make (`ijitsu.IPlacement`)."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from zope.interface import implementer

from jitsu_tw.ijitsu import IPlacement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.cluster.fencing import Fencing
    from jitsu_tw.cluster.starts import LocalStarts, Starts
    from jitsu_tw.ijitsu import IClusterEvents, IMachine
    from jitsu_tw.settings import VM


@implementer(IPlacement)
class Placement:
    """The VMs of all hosts."""

    def __init__(
        self,
        state: ClusterState,
        starts: LocalStarts | Starts,
        fencing: Fencing,
        machines: Mapping[str, IMachine],
        events: IClusterEvents,
        wall: Callable[[], float],
    ) -> None:
        """
        Answer for *machines*.

        Args:
            state: knows which hosts are drained.
            starts: knows where a VM was started, and when.
            fencing: is told of hosts that are lost, or connected again.
            machines: all VMs, by name.
            events: is told where a VM is started, and that it has moved.
            wall: tells the seconds since 1970.
        """
        self._state, self._starts, self._fencing = state, starts, fencing
        self._machines, self._events, self._wall = machines, events, wall
        self._wanted: dict[str, str] = {}

    def _machine(self, vm: VM) -> IMachine | None:
        """Return the machine of *vm*, if its uuid is known."""
        machine = self._machines.get(vm.name)
        return machine if machine is not None and machine.uuid else None

    async def claim_host(self, vm: VM, host: str) -> bool:
        """Agree with the other nodes that *vm* is started on *host* now, and on no other."""
        machine = self._machine(vm)
        if machine is None:
            return False
        self._events.speaker_changed(vm.name)
        return await self._starts.record(machine, host)

    def seen_on(self, vm: VM, host: str, *, moved: bool) -> None:
        """Handle that *vm* runs on *host*; *moved*: it was on another one before."""
        machine = self._machine(vm)
        if machine is not None:
            self._starts.seen_on(machine, host)
            if moved:
                self._events.speaker_changed(vm.name)

    def last_host(self, vm: VM) -> str | None:
        """Return the host that *vm* was started on; empty if it runs on none, None if that is not known."""
        machine = self._machine(vm)
        return None if machine is None else self._starts.last_host(machine)

    def started_ago(self, vm: VM) -> float:
        """Return how many seconds ago a node has begun to start *vm*."""
        machine = self._machine(vm)
        return inf if machine is None else max(0.0, self._wall() - self._starts.started(machine))

    def is_drained(self, host: str) -> bool:
        """Return whether nothing new is to be started on *host*."""
        return self._state.is_drained("hosts", host)

    def want(self, vm: VM, host: str | None) -> None:
        """Prefer *host* to all others at the next start of *vm*, once; None: prefer none."""
        if host is None:
            self._wanted.pop(vm.name, None)
        else:
            self._wanted[vm.name] = host

    def take_wanted(self, vm: VM) -> str | None:
        """Return the host to be preferred at the next start of *vm*, and prefer none after that."""
        return self._wanted.pop(vm.name, None)

    def reach_changed(self, host: str) -> None:
        """Handle that *host* was lost, or is connected."""
        self._fencing.reach_changed(host)
