"""What all machines of a fleet have in common: clocks, collaborators, and the observers of their states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from zope.interface import implementer

from jitsu_tw.rules.lifecycle import State
from jitsu_tw.vm.interfaces import IMachineContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.ijitsu import IObserver, IOwnership, IReadiness
    from jitsu_tw.readiness import Strategies
    from jitsu_tw.vm.interfaces import IQueue
    from jitsu_tw.vm.journal import Journal
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.persistence import StatsStore
    from jitsu_tw.vm.preparation import Preparation
    from jitsu_tw.vm.problems import Problems
    from jitsu_tw.vm.standins import StandIns


@implementer(IMachineContext)
@attrs.define(eq=False)
class Context:
    """
    The context of all machines of a fleet.

    Attributes:
        ordered: those that are told when a VM enters one of the states they want, in this order.
        is_running: the process is not about to end.
        observers: the same, by the state.
    """

    reactor: IReactorTime
    now: Callable[[], float]
    answer_by: float
    ownership: IOwnership
    queue: IQueue
    journal: Journal
    problems: Problems
    strategies: Strategies
    store: StatsStore
    standins: StandIns
    preparation: Preparation
    ordered: Sequence[IObserver]
    is_running: bool = False
    observers: Mapping[State, Sequence[IObserver]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Sort the observers by the states that they want to know of."""
        self.observers = {state: tuple(one for one in self.ordered if state in one.follows) for state in State}

    def readiness(self, machine: Machine) -> Sequence[IReadiness]:
        """Return the strategies that tell when the guest of *machine* is ready."""
        return self.standins.signs(machine.vm, self.strategies.of(machine.vm, machine.backend))

    async def remembered(self) -> None:
        """
        Wait until the last start or stop is in the state, and Synjitsu knows of it.

        What Synjitsu broadcasts must have left before the guest has a port in the bridge.
        """
        written, heard = self.store.written(), self.standins.heard()
        await heard
        await written

    def give_up_prepared(self, machine: Machine) -> Deferred[bool]:
        """Destroy a prepared VM, to free memory for *machine* at its hypervisor; fires with whether there was one."""
        return self.preparation.make_room(machine)

    def may_try_again(self) -> bool:
        """Return whether a VM whose start has failed may be started again by Jitsu itself; count it, if so."""
        self.journal.totals.retries += self.is_running
        return self.is_running
