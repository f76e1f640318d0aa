"""What the parts of a fleet report to it: the interfaces by which calls go up, given to each part at construction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import Interface

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from jitsu_tw.settings import VM
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.problems import Problem


class IInventoryObserver(Interface):
    """What `Inventory` reports to the fleet."""

    def enlist_removed(vm: VM) -> Machine:
        """Return a machine for *vm*, which is not in the configuration any more and may still run."""

    def removed_moved(machine: Machine) -> None:
        """Handle a new state of *machine*, which is not in the configuration any more; it may be gone."""

    def hinted(machine: Machine) -> None:
        """Handle a hypervisor's event for *machine*."""

    def found(machine: Machine) -> Awaitable[None]:
        """Handle *machine*, which was found at its hypervisor."""

    def replaced(machine: Machine) -> None:
        """Handle *machine*, whose name another VM has now; it still has the uuid of the one before."""


class IStandInObserver(Interface):
    """What `StandInControl` asks of the fleet and reports to it."""

    def wake(machine: Machine, host: str, *, proven: bool) -> None:
        """Start *machine*: a client at *host*, an address that may be *proven*, has sent to it while it was down."""

    def problem(machine: Machine, kind: Problem, sentences: tuple[str, ...]) -> None:
        """Note what an operator should know of *machine* (`Problems.note`)."""

    def synjitsu_of(machine: Machine) -> str | None:
        """Return the endpoint of the Synjitsu that stands in for *machine*; None if there is none."""

    def is_others(machine: Machine) -> bool:
        """Return whether another node owns *machine*; then that node makes the announcements."""


class IWakeupObserver(Interface):
    """What `Wakeups` reports to the keeper of leases."""

    def released(machine: Machine) -> None:
        """Begin the lease of *machine* anew: no operator holds it any more."""

    def window_changed(machine: Machine) -> None:
        """Look at the lease of *machine* when that is due now: its weekly windows begin and end at other times."""

    def do_in_slices(work: Iterable[object]) -> None:
        """Do *work*, which is done by iterating over it, in slices of time (`slices.in_slices`)."""
