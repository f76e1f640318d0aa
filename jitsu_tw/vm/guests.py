"""What guests ask for themselves: to be held, to be released, to be put to sleep; and what they are told."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import JitsuError
from jitsu_tw.rules.keep import Why

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IOwnership
    from jitsu_tw.rules.keep import Kept
    from jitsu_tw.rules.lease import Lease, Leases
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.observers import IWakeupObserver
    from jitsu_tw.vm.stats import Statistics

    Listener = Callable[[dict[str, Any]], object]

#: The longest that a guest can hold itself at a time, in seconds: a program that has crashed does not ask again.
LONGEST_HOLD: Final = 86400


class GuestWord:
    """
    What guests ask for themselves.

    It owns, and nobody else writes: `Lease.held_until` and `Lease.done_at`, the guests that listen, and the stops that
    they were told of.
    """

    def __init__(
        self, leases: Leases, clocks: Clocks, observer: IWakeupObserver, ownership: IOwnership, stats: Statistics
    ) -> None:
        """
        Begin with no guest that listens.

        Args:
            leases: those of the VMs that are up.
            clocks: tell the time.
            observer: looks at a lease anew that a guest has changed.
            ownership: knows which node owns a VM; the guests of other nodes must ask these.
            stats: remember until when guests hold their VMs.
        """
        self._stats, self._wall = stats, clocks.wall
        self._leases, self._now, self._observer, self._ownership = leases, clocks.now, observer, ownership
        self._listeners: dict[str, dict[object, Listener]] = {}
        self._told: dict[str, float] = {}

    # What guests ask for.

    def hold(self, machine: Machine, seconds: float) -> None:
        """
        Keep *machine* for as many *seconds* from now, at most `LONGEST_HOLD`, but not beyond its `max_up`.

        Raises:
            JitsuError: this node does not decide whether it is stopped.
        """
        self._hold(machine, self._now() + min(seconds, LONGEST_HOLD))

    def release(self, machine: Machine) -> None:
        """
        Give *machine* the lease of any other VM again.

        Raises:
            JitsuError: this node does not decide whether it is stopped.
        """
        self._hold(machine, self._now())

    def sleep(self, machine: Machine) -> None:
        """
        Stop *machine*, by its mode, as soon as only what its guest does itself keeps it (`rules.keep`).

        Raises:
            JitsuError: this node does not decide whether it is stopped.
        """
        self._lease(machine).done_at = self._now()
        self._hold(machine, self._now())

    def _hold(self, machine: Machine, until: float) -> None:
        self._lease(machine).held_until = until
        self._stats.hold(machine, until)
        self._observer.window_changed(machine)

    def _lease(self, machine: Machine) -> Lease:
        lease = self._leases.get(machine.vm.name)
        if lease is None or not self._ownership.is_own(machine):
            raise JitsuError("this Jitsu does not stop it when it is idle")
        return lease

    def held_until(self, machine: Machine) -> float:
        """Return until when the guest of *machine*, which gets a lease, holds it, as it said in this run of the VM."""
        if not (held := self._stats.of(machine).held_ts):
            return -inf
        # The wall clock, which the state is written by, may have been set back since.
        return self._now() + min(held - self._wall(), LONGEST_HOLD)

    def held(self, machine: Machine) -> float:
        """Return for how many seconds more the guest of *machine* holds it; 0 if it does not."""
        lease = self._leases.get(machine.vm.name)
        return 0.0 if lease is None else max(0.0, lease.held_until - self._now())

    # What guests are told.

    def listen(self, machine: Machine, listener: Listener) -> Callable[[], None]:
        """Call *listener* with each event for the guest of *machine*; return what ends that."""
        name, key = machine.vm.name, object()
        self._listeners.setdefault(name, {})[key] = listener

        def end() -> None:
            listeners = self._listeners[name]
            del listeners[key]
            if not listeners:
                del self._listeners[name]

        return end

    def announce_stop(self, machine: Machine, kept: Kept) -> float:
        """
        Tell the guest of *machine*, whose lease is over, that it is stopped in `notify` seconds.

        Returns:
            how many of these are left; 0 if nobody listens, or the guest itself has asked for the stop.
        """
        name, now = machine.vm.name, self._now()
        if not machine.vm.notify or name not in self._listeners or kept.why is Why.DONE:
            return 0.0
        if name not in self._told:
            self._told[name] = now + machine.vm.notify
            self._tell(name, {"kind": "stop", "seconds": machine.vm.notify})
        return max(0.0, self._told[name] - now)

    def withdraw(self, machine: Machine) -> None:
        """Tell the guest of *machine*, if it was told of a stop, that this does not come, or has come."""
        if self._told.pop(machine.vm.name, None) is not None:
            self._tell(machine.vm.name, {"kind": "stay"})

    def _tell(self, name: str, event: dict[str, Any]) -> None:
        for listener in list(self._listeners.get(name, {}).values()):
            listener(event)
