"""The interfaces inside `vm`: what is called by what stands below; each *machine* is a `machine.Machine`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

from jitsu_tw.ijitsu import IMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.ijitsu import IObserver, IOwnership, IReadiness, Start
    from jitsu_tw.rules.life import Activation
    from jitsu_tw.rules.lifecycle import Event, State
    from jitsu_tw.rules.lifecycle import Start as StartOrder
    from jitsu_tw.vm.problems import Problem, Problems


class IRunning(IMachine):
    """A machine, as its steps see it."""

    activation: Activation | None = Attribute("The last activation.")
    how: Start = Attribute("What the last start call did.")
    ready: bool = Attribute("Whether the guest is known to be ready.")
    next: StartOrder = Attribute("How it is started next.")

    def admit() -> None:
        """Boot the VM, which is queued."""

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


class IQueue(Interface):
    """Where machines wait until they may boot."""

    def request(machine: Any) -> Coroutine[Deferred[Any], Any, None]:
        """Ask for the boot of *machine*, which is queued; `Machine.admit` is called when it may boot, now or later."""


class IJournal(Interface):
    """Where machines report their activations."""

    def booted(machine: Any, outcome: str, clients: int) -> None:
        """Note that the activation of *machine* has ended, ``up`` or ``failed``, and how many clients were answered."""


class IOperator(Interface):
    """The commands of operators, by the VM's name."""

    def stop(name: str) -> Deferred[State]:
        """Stop the VM, also one that is held; fires with the state in which that ended."""

    def hold(name: str) -> Deferred[bool]:
        """Start the VM and keep it up until it is released or stopped by an operator; fires when it is up."""

    def release(name: str) -> None:
        """Give the VM, if it is held, the lease of any other."""


class IMachineContext(Interface):
    """What a machine needs of the fleet, which has one context for all machines."""

    reactor: IReactorTime = Attribute("Calls later.")
    now: Callable[[], float] = Attribute("Returns the seconds of the reactor's clock.")
    answer_by: float = Attribute("Seconds after which a query is answered, ready or not.")
    ownership: IOwnership = Attribute("Which node owns a VM.")
    queue: IQueue = Attribute("Where machines wait until they may boot.")
    journal: IJournal = Attribute("What has happened.")
    problems: Problems = Attribute("What an operator should know of the VMs.")
    observers: Mapping[State, Sequence[IObserver]] = Attribute("Those that want to know when a VM enters a state.")

    def readiness(machine: Any) -> Sequence[IReadiness]:
        """Return the strategies that tell when the guest of *machine* is ready."""

    def remembered() -> Coroutine[Deferred[Any], Any, None]:
        """Wait until the last start or stop is in the state, and Synjitsu knows of it."""

    def give_up_prepared(machine: Any) -> Deferred[bool]:
        """Destroy a prepared VM, to free memory for *machine* at its hypervisor; fires with whether there was one."""

    def may_try_again() -> bool:
        """Return whether a VM whose start has failed may be started again by Jitsu itself; count it, if so."""
