"""
Which VM boots next: after the VMs that it needs, when this node owns it, and when the host has capacity.

A VM boots when fewer than `max_booting` VMs boot. Where `max_running` VMs run already, the start was refused before
(`rules.policy`), or the VM that is idle the longest makes room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zope.interface import implementer

from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.fair_queue import FairQueue
from jitsu_tw.rules.lifecycle import BOOTING, RUNNING, STOPS, State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.settings import WhenFull
from jitsu_tw.vm.interfaces import IQueue

if TYPE_CHECKING:
    from collections.abc import Hashable

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
        self._queue: FairQueue[Machine] = FairQueue()
        self._clients: dict[str, tuple[Hashable, Hashable]] = {}
        self._booting: set[str] = set()
        self._on_host: set[str] = set()
        self._stopping: set[str] = set()
        self._running: set[str] = set()
        self._making_room = False
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Limit by *settings* from now on."""
        self._max_booting, self._max_running = settings.max_booting, settings.max_running
        self._makes_room = settings.when_full is WhenFull.STOP_IDLE

    @property
    def running(self) -> int:
        """How many VMs run, or are about to."""
        return len(self._running)

    @property
    def is_busy(self) -> bool:
        """Whether a VM that was asked for boots, or waits until it may."""
        return bool(self._booting) or len(self._running) > len(self._on_host)

    def note_client(self, name: str, network: Hashable, *, proven: bool) -> None:
        """Note for which client network the VM *name* is about to be queued, and whether its address is proven."""
        self._clients[name] = network, proven

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more."""
        self._clients.pop(machine.vm.name, None)

    async def request(self, machine: Machine) -> None:
        """Boot *machine*, which is queued, after the VMs that it needs, when it may, if this node owns it then."""
        if machine.vm.needs and not await self._dependencies.summon(machine):
            return
        try:
            own = machine.state is State.QUEUED and await self._ownership.claim(machine)
        except ClusterUnavailable as error:
            if machine.state is State.QUEUED:
                machine.refuse(str(error), ClusterUnavailable)
            return
        if own and machine.state is State.QUEUED:
            self._queue.add(machine, *self._clients.pop(machine.vm.name, (None, None)))
            self._admit()

    def _admit(self) -> None:
        """Boot as many VMs of the queue as may boot."""
        while self._queue and len(self._booting) < self._max_booting:
            if self._max_running and len(self._on_host) >= self._max_running:
                if len(self._stopping) < min(len(self._queue), self._max_booting - len(self._booting)):
                    self._make_room()
                return
            self._queue.take().admit()

    def moved(self, machine: Machine, old: State) -> None:
        """Count *machine* where its state belongs; boot the next VM if the host has capacity now."""
        name, state = machine.vm.name, machine.state
        if old is State.QUEUED:
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
        """Stop the VM that is idle the longest, if that is allowed."""
        if not self._makes_room:
            self._made_room()
        elif not self._making_room:
            self._making_room = True
            self._leases.stop_idlest("idle the longest, makes room").addCallback(self._made_room)

    def _made_room(self, stops: bool | None = None) -> None:  # noqa: FBT001
        """Boot the next VM, or refuse it where no VM can be stopped for it, and none is being stopped."""
        self._making_room = False
        if not stops and self._stopping:
            return  # when it has stopped, the next VM boots
        if not stops and self._queue:
            machine = self._queue.take()
            if machine.state is State.QUEUED:
                machine.refuse(Verdict.FULL.value)
        if self._queue:
            self._reactor.callLater(0, self._admit)
