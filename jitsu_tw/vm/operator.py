"""What an operator asks of the VMs, at any node: start, stop, hold, release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from jitsu_tw.ijitsu import Request
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.vm.interfaces import IOperator

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.parts import Parts


@implementer(IOperator)
class Operator:
    """The commands of operators for the VMs of a fleet."""

    def __init__(self, fleet: Parts) -> None:
        """Command the VMs of *fleet*."""
        self._fleet = fleet

    def start(self, name: str) -> Deferred[bool]:
        """Start the VM *name*; fires when it is up, however long that takes."""
        machine = self._fleet.machines[name]
        self._fleet.leases.use(machine)
        return machine.summon("a person", insist=True)

    def stop(self, name: str) -> Deferred[State]:
        """Stop the VM *name*, also one that is held; fires with the state in which that ended."""
        machine = self._fleet.machines[name]
        if self._fleet.cluster.ownership.is_others(machine):
            return self._fleet.cluster.request(machine, Request.STOP)
        self.release(name)
        self._fleet.leases.wakeups.stopped(machine)
        return self.stop_if_possible(machine, "stopped by hand")

    def stop_if_possible(self, machine: Machine, reason: str) -> Deferred[State]:
        """Stop *machine*, but leave it as it is if it is known that it cannot be stopped."""
        if machine.state is not State.UP:
            return machine.stop(reason)
        return machine.can_stop().addCallback(lambda can: machine.stop(reason) if can else machine.state)

    def hold(self, name: str) -> Deferred[bool]:
        """
        Start the VM *name* and keep it up until it is released or stopped by an operator, or this process ends.

        Fires when it is up. If it cannot be started, it is not held.
        """
        machine = self._fleet.machines[name]
        if self._fleet.cluster.ownership.is_others(machine):
            self._fleet.cluster.request(machine, Request.HOLD)
            return self.start(name)
        self._fleet.leases.wakeups.hold(machine)
        self._fleet.journal.hold(name, held=True)
        return self.start(name).addErrback(self._not_held, name)

    def _not_held(self, failure: Failure, name: str) -> Failure:
        self.release(name)
        return failure

    def release(self, name: str) -> None:
        """Give the VM *name*, if it is held, the lease of any other; it begins now."""
        machine = self._fleet.machines[name]
        if self._fleet.cluster.ownership.is_others(machine):
            self._fleet.cluster.request(machine, Request.RELEASE)
        if self._fleet.leases.wakeups.is_held(name):
            self._fleet.leases.wakeups.release(machine)
            self._fleet.journal.hold(name, held=False)
