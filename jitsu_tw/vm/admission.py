"""
Who may boot, and when: the host's room, and turns.

A VM that is asked for gets its turn when fewer than `max_booting` boot. Where `max_running` VMs run already, the start
was refused before (`policy`), or the VM that is idle the longest makes room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from jitsu_tw.rules.fair_queue import FairQueue
from jitsu_tw.rules.lifecycle import BOOTING, RUNNING, STOPS, State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.settings import WhenFull

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.leases import LeaseKeeper
    from jitsu_tw.vm.machine import Machine


class Admission:
    """The places of a fleet."""

    log = Logger()

    def __init__(self, settings: Settings, clocks: Clocks, sweep: LeaseKeeper) -> None:
        """Give the places that *settings* allow; *sweep* knows who is idle."""
        self._reactor, self._sweep = clocks.reactor, sweep
        self._max_booting, self._max_running = settings.max_booting, settings.max_running
        self._makes_room = settings.when_full is WhenFull.STOP_IDLE
        self._turns: FairQueue[Machine] = FairQueue()
        self._booting: set[str] = set()
        self._places: set[str] = set()
        self._leaving: set[str] = set()
        self._making_room = False
        self._running: set[str] = set()

    @property
    def crowd(self) -> int:
        """How many VMs run, or are about to."""
        return len(self._running)

    def ask(self, machine: Machine, whose: Hashable = None, group: Hashable = None) -> None:
        """Let *machine*, queued for the client network *whose* of *group*, boot in its turn (`FairQueue.add`)."""
        self._turns.add(machine, whose, group)
        self._give_turns()

    def _give_turns(self) -> None:
        while self._turns and len(self._booting) < self._max_booting:
            if self._max_running and len(self._places) >= self._max_running:
                if len(self._leaving) < min(len(self._turns), self._max_booting - len(self._booting)):
                    self._make_room()
                return
            machine = self._turns.take()
            machine.admit()

    def moved(self, machine: Machine) -> None:
        """Hear that *machine* is in another state: it takes a place, or one became free."""
        name, state = machine.vm.name, machine.state
        if state is not State.QUEUED:
            self._turns.drop(machine)
        for names, has in (
            (self._running, state in RUNNING or state is State.QUEUED),
            (self._places, state in RUNNING),
            (self._booting, state in BOOTING),
            (self._leaving, state in STOPS),
        ):
            if has:
                names.add(name)
            else:
                names.discard(name)
        if self._turns:
            self._reactor.callLater(0, self._give_turns)

    def _make_room(self) -> None:
        if not self._making_room:
            self._making_room = True
            Deferred.fromCoroutine(self._stop_idlest()).addBoth(self._made_room)

    async def _stop_idlest(self) -> bool:
        """Stop the VM that is idle the longest, if that is allowed; return whether its stop has begun."""
        return self._makes_room and await self._sweep.stop_idlest("idle the longest, makes room")

    def _made_room(self, result: Any) -> None:
        """Go on; where there is no room to be made, and none is being made, whoever is next is refused."""
        self._making_room = False
        if isinstance(result, Failure):
            self.log.failure("unexpected, please report", result)
        if result is not True and self._leaving:
            return  # when it has left, turns are given
        if result is not True and self._turns:
            machine = self._turns.take()
            if machine.state is State.QUEUED:
                machine.refuse(Verdict.FULL.value)
        if self._turns:
            self._reactor.callLater(0, self._give_turns)
