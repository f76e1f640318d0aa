"""Asks the hypervisors how much memory the VMs have, one VM at a time, when these are off: the last to stop first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.vm.uptime import FREES

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jitsu_tw.rules.lifecycle import State
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.uptime import Uptime

#: Seconds between two questions. The first comes so much later than a stop that the stop's own calls are over.
PACE: Final = 0.05


@implementer(IObserver)
class MemorySizes:
    """
    Asks for the memory of each VM that has come to be off, and tells `Uptime` of it.

    It owns, and nobody else writes: which VMs are to be asked for.
    """

    follows: Final = FREES

    log = Logger()

    def __init__(self, uptime: Uptime, reactor: IReactorTime) -> None:
        """Tell *uptime*; *reactor* calls later."""
        self._uptime, self._reactor = uptime, reactor
        self._waiting: dict[Machine, None] = {}
        self._next: IDelayedCall | None = None
        self._stopped = False

    def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        if self._next is not None and self._next.active():
            self._next.cancel()

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Ask for the memory of *machine*, which is off, soon."""
        self._waiting[machine] = None
        self._plan()

    def forget(self, machine: Machine) -> None:
        """Do not ask for *machine*, which is not in the configuration any more."""
        self._waiting.pop(machine, None)

    def _plan(self) -> None:
        if self._waiting and self._next is None and not self._stopped:
            self._next = self._reactor.callLater(PACE, self._ask)

    def _ask(self) -> None:
        machine = self._waiting.popitem()[0] if self._waiting else None
        spawn(self.log, self._ask_for(machine)).addCallback(self._asked)

    def _asked(self, _: object) -> None:
        self._next = None
        self._plan()

    async def _ask_for(self, machine: Machine | None) -> None:
        if machine is None or machine.state not in FREES:
            return
        try:
            memory = await machine.backend.memory(machine.uuid)
        except BackendError:
            return  # it is asked again when the VM stops the next time
        if memory is not None and memory.needed:
            self._uptime.size(machine, memory.needed)
