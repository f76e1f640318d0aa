"""
Which VMs Jitsu manages: those that it has started, or was asked for; not those that were started by hand.

A managed VM gets a lease, and is stopped when it is idle; the others are left alone. A VM that a killed Jitsu had
started is adopted by the next one, with what is left of its lease.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from zope.interface import implementer

from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import CALLING, DOWN, State
from jitsu_tw.settings import STARTS_WITHIN, Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.logger import Logger

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IOwnership
    from jitsu_tw.vm.dependencies import Dependencies
    from jitsu_tw.vm.leases import LeaseKeeper
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.persistence import StatsStore

#: States in which a VM is not managed any more.
DISOWNED: Final = DOWN | {State.UNKNOWN}


@implementer(IObserver)
class Adoption:
    """
    Decides which VMs Jitsu manages.

    It owns, and nobody else writes: which VMs have not been seen in any state yet, and until when a start whose end is
    not known may still be under way.
    """

    follows: Final = DISOWNED | {State.UP}

    def __init__(
        self,
        store: StatsStore,
        leases: LeaseKeeper,
        dependencies: Dependencies,
        ownership: IOwnership,
        clocks: Clocks,
        log: Logger,
        *,
        dry_run: bool,
    ) -> None:
        """
        Manage no VM yet.

        Args:
            store: the state, which has the VMs that Jitsu had started.
            leases: gives them leases.
            dependencies: knows which VMs need which others.
            ownership: knows which node owns a VM.
            clocks: tell the time.
            log: gets what happens to VMs.
            dry_run: manage no VM.
        """
        self._store, self._leases, self._dependencies = store, leases, dependencies
        self._ownership, self._log, self._dry_run = ownership, log, dry_run
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._unseen: set[str] = set()
        self._doubts: dict[str, float] = {}

    def stop(self, machines: Iterable[Machine]) -> None:
        """Note in the state when those of *machines* that have a lease were used last, for the next Jitsu."""
        for machine in machines:
            lease = self._leases.lease(machine.vm.name)
            if lease is not None:
                self._store.stats.used(machine, lease.used)

    def enlist(self, machine: Machine) -> None:
        """Add *machine*, which has not been seen in any state yet."""
        self._unseen.add(machine.vm.name)

    def forget(self, machine: Machine) -> None:
        """Remove *machine*, which is not in the configuration any more."""
        self._unseen.discard(machine.vm.name)
        self._doubts.pop(machine.vm.name, None)

    def replaced(self, machine: Machine) -> None:
        """Stop managing *machine*, which is another VM than before, until that one has been seen."""
        machine.note(managed=False)
        self._unseen.add(machine.vm.name)
        self._doubts.pop(machine.vm.name, None)
        self._store.stats.replaced(machine)

    def moved(self, machine: Machine, old: State) -> None:
        """Give *machine* a lease if it is up; forget that Jitsu manages it if it is down."""
        if machine.state is State.UP:
            self.came_up(machine, old)
        else:
            self._went_down(machine, old)
            for need in self._dependencies.needs(machine):
                if need.managed:
                    self._leases.renew(need)

    def came_up(self, machine: Machine, old: State) -> None:
        """Give *machine* a lease if Jitsu manages it: a new one, or what is left of the one that it had."""
        name, now = machine.vm.name, self._now()
        self._doubts.pop(name, None)
        if not self._ownership.connected:
            return  # its owner is known when this node is connected again
        is_new = self._ownership.is_own(machine) and old is not State.UP
        if self._ownership.is_known(machine) and not (is_new or self._dry_run):
            machine.note(managed=True)
            self._leases.grant(machine, *self._ownership.times(machine), is_new=False)
        elif machine.managed:
            if not self._leases.resume(machine, is_new=old is State.WAITING):
                self._leases.grant(machine, now, now, is_new=name not in self._unseen)
        elif name in self._unseen and self._store.stats.was_started(machine) and not self._dry_run:
            machine.note(managed=True)
            used, started = (now - max(0.0, self._wall() - when) for when in self._store.stats.since(machine))
            if machine.vm.evidence is Evidence.TRAFFIC:
                used = max(used, now - machine.vm.idle / 2)  # a killed Jitsu has not noted its guest's last packets
            self._leases.grant(machine, used, started, is_new=False)
            # What is left of its lease is known only once its packets have been counted.
            self._log.info("{name}: runs already, adopted; it was used {ago:.0f} s ago", name=name, ago=now - used)
        elif old is State.WAITING:
            if not self._dry_run:
                self._store.stopped(machine)
            self._log.info("{name}: runs, but nobody asked for it; left alone", name=name)
        self._unseen.discard(name)

    def _went_down(self, machine: Machine, old: State) -> None:
        """Stop managing *machine*, unless a call of Jitsu may still bring it up."""
        if old in {State.UP, State.WAITING}:
            name, how = machine.vm.name, machine.state.shown
            self._log.info("{name}: {state}: {reason}", name=name, state=how, reason=machine.reason)
        if machine.is_unsure:
            if old in CALLING:
                self._doubt(machine, STARTS_WITHIN)
        elif machine.vm.name in self._unseen and (seconds := self._store.stats.may_come_up(machine)):
            self._unseen.discard(machine.vm.name)
            machine.note(managed=not self._dry_run)
            self._doubt(machine, seconds)
        if not machine.is_unsure and self._now() >= self._doubts.get(machine.vm.name, -inf):
            self._disown(machine)

    def _doubt(self, machine: Machine, seconds: float) -> None:
        """Wait *seconds* for a call that may go on at the hypervisor, and bring *machine* up: then Jitsu manages it."""
        self._doubts[machine.vm.name] = self._now() + seconds
        self._reactor.callLater(seconds, self._doubts_end, machine)

    def _doubts_end(self, machine: Machine) -> None:
        """Stop managing *machine* if it has not come up all the same."""
        if self._now() >= self._doubts.get(machine.vm.name, inf):
            del self._doubts[machine.vm.name]
            if machine.state in DISOWNED and not machine.is_unsure:
                self._disown(machine)

    def _disown(self, machine: Machine) -> None:
        machine.note(managed=False)
        self._unseen.discard(machine.vm.name)
        if machine.state is not State.PREPARED:  # else it takes memory: the next Jitsu must find it
            self._store.stopped(machine)
