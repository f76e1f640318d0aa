"""When a VM was started by a node, and on which host: the facts ``runs/NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed

from jitsu_tw.cluster.background import begin
from jitsu_tw.settings import STARTS_WITHIN

if TYPE_CHECKING:
    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IClusterEvents, IMachine


class Starts:
    """The starts that the nodes of a cluster have recorded."""

    def __init__(self, state: ClusterState, clocks: Clocks) -> None:
        """Read and write them in *state*."""
        self._state, self._clocks = state, clocks
        self._own: set[str] = set()

    def record(self, machine: IMachine, host: str = "") -> Deferred[bool]:
        """Agree that *machine* is started now, on *host* and no other; fires with False if this node has no claim."""
        self._own.add(machine.vm.name)
        return self._state.record_start(machine, host, self._clocks.wall())

    async def adopt(self, machine: IMachine, host: str) -> None:
        """Answer for the start of *machine*, which this node owns now, and which runs on *host*."""
        self._own.add(machine.vm.name)
        if not self._state.is_started(machine):
            await self.record(machine, host)
        self.seen_on(machine, host)

    def seen_on(self, machine: IMachine, host: str) -> None:
        """Record that *machine* runs on *host*, if this node owns it, and another host is recorded."""
        if host and self._state.holds(machine) and self.last_host(machine) not in {host, None, ""}:
            begin(self.record(machine, host))

    def last_host(self, machine: IMachine) -> str | None:
        """Return the host that *machine* was started on; empty if it was on none, None if that is not known."""
        run = self._state.run(machine)
        return None if self._state.lost else "" if run is None else run.get("host")

    def started(self, machine: IMachine) -> float:
        """Return when *machine* was started, in seconds since 1970; now, if no start is recorded."""
        return float((self._state.run(machine) or {}).get("since", self._clocks.wall()))

    def is_over(self, machine: IMachine) -> bool:
        """Return whether the start of *machine*, which does not run, cannot bring it up any more."""
        return float((self._state.run(machine) or {}).get("since", 0.0)) + STARTS_WITHIN <= self._clocks.wall()

    def forget(self, machine: IMachine) -> bool:
        """Answer for the start of *machine* no longer; return whether what is recorded of it may be removed."""
        # What another node had begun to start, and this one has never seen, may come up yet.
        is_over = machine.vm.name in self._own or self.is_over(machine)
        self._own.discard(machine.vm.name)
        return is_over


class LocalStarts:
    """The starts of a node that is alone: its hosts know where a VM runs, and its own state that it was started."""

    def __init__(self, events: IClusterEvents) -> None:
        """Ask *events* what was started."""
        self._events = events

    def record(self, machine: IMachine, host: str = "") -> Deferred[bool]:  # noqa: ARG002
        """Return a Deferred that has fired with True."""
        return succeed(True)  # noqa: FBT003

    def seen_on(self, machine: IMachine, host: str) -> None:
        """Return: nothing is recorded."""

    def last_host(self, machine: IMachine) -> str | None:
        """Return None, for not known, if this node had started *machine*; else empty."""
        return None if self._events.was_started(machine.vm.name) else ""

    def started(self, machine: IMachine) -> float:  # noqa: ARG002
        """Return 0.0, which nobody uses: it counts only with a host that `last_host` names, and there is none."""
        return 0.0
