"""
The use of VMs through this node, reported to the other nodes, and what they have reported.

Each node answers for VMs that another one owns, and the owner must know. Uses are reported often enough for a lease to
be right, and at once when a VM is to be stopped.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from jitsu_tw.cluster.background import begin
from jitsu_tw.cluster.facts import key
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.rules.lifecycle import DOWN, STOPS, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IClusterEvents, IMachine

#: Seconds from one report to the next where leases are short.
REPORT_EVERY: Final = 1.0

#: Uses are gathered for a report at most once in this share of the shortest lease.
GATHER_SHARE: Final = 1 / 32

#: The use of a VM that is up is reported at most once in this share of its lease: before it is stopped, all nodes are
#: asked for more.
REPORT_SHARE: Final = 1 / 8


class UsageReporter:
    """The uses that this node has noted, and when the other nodes were told of them."""

    def __init__(
        self, state: ClusterState, machines: Mapping[str, IMachine], clocks: Clocks, events: IClusterEvents
    ) -> None:
        """Report the use of *machines*, which are by the VM's name; *events* gathers what was not noted."""
        self._state, self._machines, self._gather = state, machines, events.gather
        self._now, self._wall = clocks.now, clocks.wall
        self._used: dict[str, float] = {}
        self._reported: dict[str, float] = {}
        self._gather_at = 0.0
        self._reporting = LoopingCall(self._look)
        self._reporting.clock = clocks.reactor
        self._busy = False

    def start(self) -> None:
        """Begin to report from time to time, if that has not begun."""
        if not self._reporting.running:
            self._reporting.start(REPORT_EVERY, now=False)

    async def stop(self) -> None:
        """Report everything that is noted, and nothing more."""
        if self._reporting.running:
            self._reporting.stop()
            await self._report()

    def note(self, machine: IMachine, when: float) -> None:
        """Note that *machine* was used through this node at *when*, on the clock `now`."""
        if when > self._reported.get(machine.vm.name, 0.0):
            self._used[machine.vm.name] = max(when, self._used.get(machine.vm.name, 0.0))
            if machine.state in STOPS:
                self.report()

    def forget(self, machine: IMachine) -> None:
        """Forget the use of *machine*, which is down."""
        self._used.pop(machine.vm.name, None)
        self._reported.pop(machine.vm.name, None)

    def last(self, machine: IMachine, reported: float) -> float:
        """Return when *machine* may have been used last, on the clock `now`; the other nodes have *reported* a use."""
        own = self._used.get(machine.vm.name, self._reported.get(machine.vm.name, 0.0))
        # A node that is gone may have known of a use that it had not reported yet.
        return min(max(reported, own) + machine.vm.idle * (REPORT_SHARE + GATHER_SHARE), self._now())

    def _look(self) -> None:
        """Report what is due, if it is time to gather that."""
        now = self._now()
        if now >= self._gather_at and not self._busy:
            idles = (one.vm.idle for one in self._machines.values())
            self._gather_at = now + min(idles, default=0.0) * GATHER_SHARE
            self.report()

    def report(self) -> None:
        """Report what is due, unless that is under way."""
        self._gather()
        if self._used and not self._state.lost and not self._busy:
            self._busy = True
            begin(Deferred.fromCoroutine(self._report()).addBoth(self._has_reported))

    def _has_reported(self, result: Any) -> Any:
        self._busy = False
        return result

    def _due(self) -> dict[str, float]:
        """Return when the VMs whose use is to be reported now were used."""
        due = {}
        for name, when in self._used.items():
            machine = self._machines.get(name)
            every = 0.0 if machine is None or machine.state is not State.UP else machine.vm.idle * REPORT_SHARE
            if when >= self._reported.get(name, -inf) + every:
                due[name] = when
        return due

    async def _report(self) -> None:
        if self._state.lost:
            return
        used = self._due() if self._reporting.running else self._used
        self._used = {name: when for name, when in self._used.items() if name not in used}
        running = {
            name: machine
            for name in used
            if (machine := self._machines.get(name)) is not None and machine.state not in DOWN
        }
        facts: dict[str, str | None] = {}
        for name, machine in running.items():
            stamp = self._wall() - (self._now() - used[name])
            if self._is_news(machine, stamp):
                facts[key("used", machine)] = f"{stamp:.3f}"
        try:
            if facts:
                await self._state.coordinator.put(facts)
        except ClusterUnavailable:
            for name, machine in running.items():
                if machine.state not in DOWN:
                    self._used[name] = max(used[name], self._used.get(name, 0.0))
            raise
        self._reported |= {name: used[name] for name in running}

    def _is_news(self, machine: IMachine, stamp: float) -> bool:
        """Return whether no later use of *machine* than one at *stamp*, in seconds since 1970, is reported already."""
        known = float(self._state.get("used", machine) or 0.0)
        # The clock of another node may be ahead; then what it reports says nothing of a use that was later.
        return not stamp <= known <= self._wall()
