"""
What was used here, told to the others, and what they have used.

Each of us answers for VMs that another one has, and that one must know. Use is told often enough for a lease to be
right, and at once when a VM is to be stopped.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from jitsu_tw.cluster.background import begin
from jitsu_tw.cluster.cluster_state import key
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.rules.lifecycle import DOWN, STOPS, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IClusterEvents, IMachine

#: What was used is told this often, in seconds, where leases are short.
TELL_EVERY: Final = 1.0

#: What was used is not looked for more often than after this share of the shortest lease.
LOOK_SHARE: Final = 1 / 32

#: That a VM is up and used is not told more often than after this share of its lease: before it is stopped, all are
#: asked for more.
TELL_SHARE: Final = 1 / 8


class UsageReporter:
    """What was used."""

    def __init__(
        self, state: ClusterState, machines: Mapping[str, IMachine], clocks: Clocks, events: IClusterEvents
    ) -> None:
        """Report the use of *machines*, which are by the VM's name; *events* gathers what was not noted."""
        self._state, self._machines, self._gather = state, machines, events.gather
        self._now, self._wall = clocks.now, clocks.wall
        self._used: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._look_at = 0.0
        self._telling = LoopingCall(self._look)
        self._telling.clock = clocks.reactor
        self._busy = False

    def start(self) -> None:
        """Begin to tell."""
        self._telling.start(TELL_EVERY, now=False)

    async def stop(self) -> None:
        """Tell everything, and nothing more."""
        if self._telling.running:
            self._telling.stop()
            await self._tell_all()

    def note(self, machine: IMachine, when: float) -> None:
        """Note that *machine* was used here, at *when*, on the clock `now`; the others are told soon."""
        if when > self._told.get(machine.vm.name, 0.0):
            self._used[machine.vm.name] = max(when, self._used.get(machine.vm.name, 0.0))
            if machine.state in STOPS:
                self.tell()

    def forget(self, machine: IMachine) -> None:
        """Forget the use of *machine*, which is down."""
        self._used.pop(machine.vm.name, None)
        self._told.pop(machine.vm.name, None)

    def last(self, machine: IMachine, told: float) -> float:
        """Return when *machine* may have been used last, on the clock `now`; the others have *told* of that time."""
        own = self._used.get(machine.vm.name, self._told.get(machine.vm.name, 0.0))
        # Who is gone may have known of a use that it had not told yet.
        return min(max(told, own) + machine.vm.idle * (TELL_SHARE + LOOK_SHARE), self._now())

    def _look(self) -> None:
        """Tell what is due, if it is time to look for that."""
        now = self._now()
        if now >= self._look_at and not self._busy:
            self._look_at = now + min((one.vm.idle for one in self._machines.values()), default=0.0) * LOOK_SHARE
            self.tell()

    def tell(self) -> None:
        """Tell what is due, unless that is under way."""
        self._gather()
        if self._used and not self._state.lost and not self._busy:
            self._busy = True
            telling = Deferred.fromCoroutine(self._tell_all())
            begin(telling.addBoth(self._has_told))

    def _has_told(self, result: Any) -> Any:
        self._busy = False
        return result

    def _due(self) -> dict[str, float]:
        """Return when what is to be told now was used."""
        due = {}
        for name, when in self._used.items():
            machine = self._machines.get(name)
            every = 0.0 if machine is None or machine.state is not State.UP else machine.vm.idle * TELL_SHARE
            if when >= self._told.get(name, -inf) + every:
                due[name] = when
        return due

    async def _tell_all(self) -> None:
        if self._state.lost:
            return
        used = self._due() if self._telling.running else self._used
        self._used = {name: when for name, when in self._used.items() if name not in used}
        facts: dict[str, str | None] = {}
        for name, when in used.items():
            machine = self._machines.get(name)
            if machine is not None and machine.state not in DOWN:
                facts[key("used", machine)] = f"{self._wall() - (self._now() - when):.3f}"
        if not facts:
            return
        try:
            await self._state.coordinator.put(facts)
        except ClusterUnavailable:
            for name, when in used.items():
                machine = self._machines.get(name)
                if machine is not None and machine.state not in DOWN:
                    self._used[name] = max(when, self._used.get(name, 0.0))
            raise
        self._told |= used
