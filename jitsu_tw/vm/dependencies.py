"""Which VMs need which others (`needs`): these are summoned first, and stay while a VM that needs them is not down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zope.interface import implementer

from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import DOWN, PREPARES, STOPS, WANTED, Event, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.python.failure import Failure

    from jitsu_tw.ijitsu import IAnswers
    from jitsu_tw.vm.machine import Machine

#: States in which a VM needs others: also while it is being shut down, which may be when it writes to them.
NEEDING: Final = WANTED | STOPS | PREPARES


@implementer(IObserver)
class Dependencies:
    """
    Which VM needs which others.

    It owns, and nobody else writes: which VMs need each.
    """

    follows: Final = DOWN | STOPS | {State.WAITING, State.UNKNOWN}

    def __init__(self, machines: Mapping[str, Machine], answers: IAnswers) -> None:
        """Begin with no needs of *machines*, which are by the VM's name; *answers* depend on the VMs and needs."""
        self._machines, self._answers = machines, answers
        self._needers: dict[str, list[Machine]] = {}

    def enlist(self, machine: Machine) -> None:
        """Add what *machine* needs."""
        for need in machine.vm.needs:
            self._needers.setdefault(need, []).append(machine)

    def forget(self, machine: Machine) -> None:
        """Remove what *machine* needs."""
        for need in machine.vm.needs:
            self._needers[need].remove(machine)

    def moved(self, machine: Machine, old: State) -> None:
        """Report to the answers that *machine* has moved, and with it the VMs that need it."""
        self._answers.moved(machine, old)
        for needer in self._needers.get(machine.vm.name, ()):
            self._answers.moved(needer, needer.state)

    def needs(self, machine: Machine) -> list[Machine]:
        """Return what *machine* needs."""
        return [self._machines[name] for name in machine.vm.needs]

    def down(self, machine: Machine) -> list[Machine]:
        """Return the VMs that *machine* needs, and that are not up."""
        return [need for need in self.needs(machine) if need.state is not State.UP]

    def is_needed(self, machine: Machine) -> bool:
        """Return whether a VM that is not down needs *machine*."""
        return any(needer.state in NEEDING for needer in self._needers.get(machine.vm.name, ()))

    async def summon(self, machine: Machine) -> bool:
        """
        Summon the VMs that *machine*, which is queued, needs; fail it if one of them fails.

        Returns:
            Whether all of them are up.
        """
        why = f"needed by {machine.vm.name}"
        waits = [need.summon(why, insist=True, is_client=False) for need in self.needs(machine)]
        failures: list[Failure] = []
        for wait in waits:
            wait.addErrback(failures.append)
        for wait in waits:
            await wait
        if failures and machine.state is State.QUEUED:
            machine.feed(Event.FAIL, f"needs {failures[0].getErrorMessage()}")
        return not failures
