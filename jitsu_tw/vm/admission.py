"""
Which VM boots next: after the VMs that it needs, when this node owns it, and when the host has capacity.

A VM boots when fewer than `max_booting` VMs boot. Where `max_running` VMs run already, the start was refused before
(`rules.policy`), or the VM that is idle the longest makes room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.coroutines import report, spawn
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.fair_queue import FairQueue
from jitsu_tw.rules.lifecycle import BOOTING, RUNNING, STOPS, State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.settings import WhenFull
from jitsu_tw.vm.interfaces import IQueue

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IOwnership
    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.dependencies import Dependencies
    from jitsu_tw.vm.leases import LeaseKeeper
    from jitsu_tw.vm.machine import Machine


@implementer(IObserver, IQueue)
class Admission:
    """
    The queue of VMs that are to boot.

    It owns, and nobody else writes: the queue, for which client network each VM is in it, and which VMs run, boot and
    stop.
    """

    follows: Final = frozenset(State)

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        clocks: Clocks,
        leases: LeaseKeeper,
        dependencies: Dependencies,
        ownership: IOwnership,
    ) -> None:
        """
        Begin with an empty queue.

        Args:
            settings: limit how many VMs boot and run.
            clocks: tell the time.
            leases: stops the VM that is idle the longest.
            dependencies: starts what a VM needs.
            ownership: claims a VM before it boots.
        """
        self._reactor, self._leases = clocks.reactor, leases
        self._dependencies, self._ownership = dependencies, ownership
        self._max_booting, self._max_running = settings.max_booting, settings.max_running
        self._makes_room = settings.when_full is WhenFull.STOP_IDLE
        self._queue: FairQueue[Machine] = FairQueue()
        self._clients: dict[str, tuple[Hashable, Hashable]] = {}
        self._booting: set[str] = set()
        self._on_host: set[str] = set()
        self._stopping: set[str] = set()
        self._running: set[str] = set()
        self._making_room = False

    @property
    def running(self) -> int:
        """How many VMs run, or are about to."""
        return len(self._running)

    def note_client(self, name: str, network: Hashable, *, proven: bool) -> None:
        """Note for which client network the VM *name* is about to be queued, and whether its address is proven."""
        self._clients[name] = network, proven

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more."""
        self._clients.pop(machine.vm.name, None)

    def request(self, machine: Machine) -> None:
        """Boot *machine*, which is queued, after the VMs that it needs, when it may."""
        if machine.vm.needs:
            spawn(self.log, self._after_needs(machine), machine.vm.name)
        else:
            self.claim(machine)

    async def _after_needs(self, machine: Machine) -> None:
        if await self._dependencies.summon(machine) and machine.state is State.QUEUED:
            self.claim(machine)

    def claim(self, machine: Machine) -> None:
        """Claim *machine*, which is queued; boot it when it may, if this node owns it then."""
        claimed = self._ownership.claim(machine)
        claimed.addCallbacks(self._claimed, self._not_claimed, (machine,), errbackArgs=(machine,))

    def _claimed(self, own: bool, machine: Machine) -> None:  # noqa: FBT001
        if own and machine.state is State.QUEUED:
            self._queue.add(machine, *self._clients.pop(machine.vm.name, (None, None)))
            self._admit()

    def _not_claimed(self, failure: Failure, machine: Machine) -> None:
        failure.trap(ClusterUnavailable)
        if machine.state is State.QUEUED:
            machine.refuse(failure.getErrorMessage(), ClusterUnavailable)

    def _admit(self) -> None:
        """Boot as many VMs of the queue as may boot."""
        while self._queue and len(self._booting) < self._max_booting:
            if self._max_running and len(self._on_host) >= self._max_running:
                if len(self._stopping) < min(len(self._queue), self._max_booting - len(self._booting)):
                    self._make_room()
                return
            self._queue.take().admit()

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Count *machine* where its state belongs; boot the next VM if the host has capacity now."""
        name, state = machine.vm.name, machine.state
        if state is not State.QUEUED:
            self._queue.drop(machine)
        for names, has in (
            (self._running, state in RUNNING or state is State.QUEUED),
            (self._on_host, state in RUNNING),
            (self._booting, state in BOOTING),
            (self._stopping, state in STOPS),
        ):
            if has:
                names.add(name)
            else:
                names.discard(name)
        if self._queue:
            self._reactor.callLater(0, self._admit)

    def _make_room(self) -> None:
        if not self._making_room:
            self._making_room = True
            Deferred.fromCoroutine(self._stop_idlest()).addBoth(self._made_room)

    async def _stop_idlest(self) -> bool:
        """Stop the VM that is idle the longest, if that is allowed; return whether its stop has begun."""
        return self._makes_room and await self._leases.stop_idlest("idle the longest, makes room")

    def _made_room(self, result: Any) -> None:
        """Boot the next VM, or refuse it where no VM can be stopped for it, and none is being stopped."""
        self._making_room = False
        if isinstance(result, Failure):
            report(self.log, failure=result)
        if result is not True and self._stopping:
            return  # when it has stopped, the next VM boots
        if result is not True and self._queue:
            machine = self._queue.take()
            if machine.state is State.QUEUED:
                machine.refuse(Verdict.FULL.value)
        if self._queue:
            self._reactor.callLater(0, self._admit)
