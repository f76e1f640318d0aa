"""Which VMs need which others (`needs`): these are summoned first, and stay while a VM that needs them is not down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import DeferredList
from twisted.python.failure import Failure

from jitsu_tw.rules.lifecycle import STOPS, WANTED, Event, State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitsu_tw.vm.machine import Machine

#: States in which a VM needs others: also while it is being shut down, which may be when it writes to them.
NEEDING: Final = WANTED | STOPS


class Dependencies:
    """Who needs whom."""

    def __init__(self, machines: Mapping[str, Machine]) -> None:
        """Know nobody yet; *machines* are by the VM's name."""
        self._machines = machines
        self._needers: dict[str, list[Machine]] = {}

    def enlist(self, machine: Machine) -> None:
        """Know what *machine* needs."""
        for need in machine.vm.needs:
            self._needers.setdefault(need, []).append(machine)

    def forget(self, machine: Machine) -> None:
        """Let *machine* need nothing any more."""
        for need in machine.vm.needs:
            self._needers[need].remove(machine)

    def needs(self, machine: Machine) -> list[Machine]:
        """Return what *machine* needs."""
        return [self._machines[name] for name in machine.vm.needs]

    def needers(self, machine: Machine) -> Sequence[Machine]:
        """Return who needs *machine*."""
        return self._needers.get(machine.vm.name, ())

    def down(self, machine: Machine) -> list[Machine]:
        """Return what a question for *machine* starts or waits for: itself, or, if it is up, those that it needs."""
        if machine.state is not State.UP:
            return [machine]
        return [need for need in self.needs(machine) if need.state is not State.UP]

    def is_needed(self, machine: Machine) -> bool:
        """Say whether a VM that is not down needs *machine*."""
        return any(needer.state in NEEDING for needer in self.needers(machine))

    async def summon(self, machine: Machine) -> bool:
        """
        Summon what *machine*, which is queued, needs, in the same order for however many; fail it if one of them does.

        Returns:
            Whether all of it is up.
        """
        name = machine.vm.name
        waits = [need.summon(f"needed by {name}", insist=True, is_client=False) for need in self.needs(machine)]
        for _, failure in await DeferredList(waits, consumeErrors=True):
            if isinstance(failure, Failure):
                if machine.state is State.QUEUED:
                    machine.feed(Event.FAIL, f"needs {failure.getErrorMessage()}")
                return False
        return True
