"""The interfaces inside `vm`: what a machine needs of the fleet, and what a step needs of its machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import Attribute, Interface

from jitsu_tw.ijitsu import IMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.ijitsu import IReadiness, Start
    from jitsu_tw.rules.life import Activation
    from jitsu_tw.rules.lifecycle import Event, State
    from jitsu_tw.rules.lifecycle import Start as StartOrder
    from jitsu_tw.vm.problems import Problem


class IRunning(IMachine):
    """A machine, as its steps see it."""

    activation: Activation | None = Attribute("The last activation.")
    how: Start = Attribute("What the last start call did.")
    next: StartOrder = Attribute("How it is started next.")

    def mark(step: str) -> None:
        """Add *step* to the timeline of the activation."""

    def problem(kind: Problem, *sentences: str) -> None:
        """Note what an operator should know of the VM (`Problems.note`)."""

    def hinted() -> Deferred[None]:
        """Return a Deferred that fires when something has happened since the last call, while a step is under way."""

    def order_restart(now: float) -> Event:
        """Order that the guest, which gives no sign of life, is destroyed and booted; return the table's input."""

    def order_end() -> Event:
        """Order that the guest, which has booted and does nothing, is destroyed; return the table's input."""


class IMachineContext(Interface):
    """What a machine needs of the fleet, which has one context for all machines."""

    reactor: IReactorTime = Attribute("Calls later.")
    now: Callable[[], float] = Attribute("Returns the seconds of the reactor's clock.")
    answer_by: float = Attribute("Seconds after which a query is answered, ready or not.")

    def readiness(machine: IMachine) -> Sequence[IReadiness]:
        """Return the strategies that tell when the guest of *machine* is ready."""

    def ask_turn(machine: IMachine) -> None:
        """Call `Machine.admit` when *machine* may boot, now or later."""

    def remembered() -> Deferred[None]:
        """Return a Deferred that fires when the last start or stop is in the state, and Synjitsu knows of it."""

    def prove(machine: IMachine) -> None:
        """
        Check that no other node can start *machine* at this moment.

        Raises:
            ClusterUnavailable: another node can.
        """

    def owner_ready(machine: IMachine) -> Deferred[bool] | None:
        """Return a Deferred that tells when *machine* is ready at its owner node (`IOwnership.owner_ready`)."""

    def moved(machine: IMachine, old: State) -> None:
        """Handle that *machine* has left the state *old* for another."""

    def booted(machine: IMachine, outcome: str, clients: int) -> None:
        """Handle the end of an activation, ``up`` or ``failed``, for which *clients* clients were answered."""

    def may_try_again() -> bool:
        """Return whether a VM whose start has failed may be started again by Jitsu itself; count it, if so."""

    def problem(machine: IMachine, kind: Problem, sentences: tuple[str, ...]) -> None:
        """Note what an operator should know of *machine* (`Problems.note`)."""
