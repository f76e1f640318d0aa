"""
VMs that are made ready before anybody asks for them: `prepare`, and the images of `boot_from: snapshot`.

One VM at a time is started for nobody, when nothing boots for anybody, and gives way as soon as something does. When
its guest is ready, its image is kept, or the guest is paused, or both (`steps.keep`); the first client finds it so.

The image from which all VMs of a template start, its seed, is made before other images, and does not give way.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from twisted.internet.task import LoopingCall
from zope.interface import implementer

from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.errors import BackendError, ClusterUnavailable
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import ACTIVATING, PREPARES, STOPS, Event, State
from jitsu_tw.rules.prepare import Book, choose, shortage
from jitsu_tw.settings import Boot
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from twisted.internet.interfaces import IDelayedCall
    from twisted.logger import Logger

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IOwnership
    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.admission import Admission
    from jitsu_tw.vm.dependencies import Dependencies
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.stats import Statistics

#: Seconds in which nothing boots before a VM is prepared.
QUIET: Final = 0.5

#: Seconds between two checks whether what is prepared is still good.
CHECK_EVERY: Final = 15.0

#: How many VMs that wait to be prepared are considered at a time, the last used first: there may be very many.
CONSIDERED: Final = 64

#: Seconds until a VM is prepared for which its host had not the memory, if nothing else happens.
MEMORY_AGAIN: Final = 60.0


@implementer(IObserver)
class Preparation:
    """
    Decides which VM is prepared when.

    It owns, and nobody else writes: the book of the VMs that are to be prepared, and which one is being prepared.
    """

    follows: Final = frozenset(State)

    def __init__(
        self,
        settings: Settings,
        machines: Mapping[str, Machine],
        clocks: Clocks,
        admission: Admission,
        dependencies: Dependencies,
        ownership: IOwnership,
        stats: Statistics,
        log: Logger,
    ) -> None:
        """
        Prepare nothing before `start`.

        Args:
            settings: say how many VMs may be prepared.
            machines: by the VM's name.
            clocks: tell the time.
            admission: knows whether something boots.
            dependencies: knows what a VM needs: what it needs is up while it is prepared.
            ownership: knows which VMs other nodes own.
            stats: know when a VM was last asked for.
            log: gets what happens.
        """
        self.configure(settings)
        self._machines, self._admission, self._stats = machines, admission, stats
        self._dependencies, self._ownership = dependencies, ownership
        self._clocks, self._log = clocks, log
        self._book = Book()
        self._current: Machine | None = None
        self._is_running = self._chooses = False
        self._next: IDelayedCall | None = None
        self._checks = LoopingCall(self._check)
        self._checks.clock = clocks.reactor

    def configure(self, settings: Settings) -> None:
        """Prepare as many VMs as *settings* allow from now on."""
        self._most = settings.max_prepared

    def start(self) -> None:
        """Begin: what runs is known."""
        self._is_running = True
        self._book.order({name: self._used(name) for name in self._book.waiting})
        self._plan(0.0)
        self._watch(now=True)

    def stop(self) -> None:
        """Prepare nothing any more; what is prepared stays so for the next process."""
        self._is_running = False
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self._checks.running:
            self._checks.stop()

    @property
    def prepared(self) -> int:
        """How many VMs are prepared."""
        return len(self._book.prepared)

    def enlist(self, machine: Machine) -> None:
        """Note the new settings of *machine*."""
        self._book.rests.pop(machine.vm.name, None)
        self._book.sort(machine.vm, machine.state)
        self._plan(QUIET)

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more."""
        self._book.forget(machine.vm.name)
        if self._current is machine:
            self._current = None

    # What the VMs do.

    def moved(self, machine: Machine, old: State) -> None:
        """Note what *machine* does; whatever is being prepared gives way to a VM that a client has asked for."""
        name, state, current = machine.vm.name, machine.state, self._current
        if machine.vm.prepare or machine.vm.boot_from is Boot.SNAPSHOT or State.PREPARED in {old, state}:
            self._book.moved(machine.vm, old, state, machine.how, self._clocks.wall())
        if current is machine:
            self._moved_on(machine, old)
        elif current is not None and state in ACTIVATING and current.state in PREPARES - {State.KEEPING}:
            current.stop(f"{name} is started for a client")
        self._watch(now=False)
        if self._book.waiting or self._book.prepared or self._book.seeds:
            self._plan(QUIET)

    def _moved_on(self, machine: Machine, old: State) -> None:
        """Note what has become of the VM that is being prepared."""
        name, state = machine.vm.name, machine.state
        if state is State.FAILED:
            again = self._book.failed(name, self._clocks.now())
            why = f"it cannot be prepared: {machine.reason}; tried again after {again:.0f} s"
            machine.problem(Problem.PREPARE, why)
        elif state is State.PREPARED or old is State.KEEPING:
            self._book.rests.pop(name, None)
            machine.problem(Problem.PREPARE)
        if state not in PREPARES | STOPS | {State.CANCELLING}:
            self._current = None  # the preparation is over, or the VM is a client's

    # Choosing.

    def _plan(self, seconds: float) -> None:
        """Choose in *seconds*, or before if that is planned."""
        if not self._is_running:
            return
        if self._next is not None and self._next.active():
            if self._next.getTime() <= self._clocks.now() + seconds:
                return
            self._next.cancel()
        self._next = self._clocks.reactor.callLater(seconds, self._choose)

    def _choose(self) -> None:
        if self._is_running and self._current is None and not self._chooses and not self._admission.is_busy:
            self._chooses = True
            spawn(self._log, self._choose_now()).addBoth(self._chosen)

    def _chosen(self, result: object) -> object:
        self._chooses = False
        return result

    async def _choose_now(self) -> None:
        """Prepare the VM that is to be next, or give one up; where there is nothing to do, wait."""
        if unwanted := self._unwanted():
            await self._give_up(unwanted, "it is not to be prepared any more")
            return
        book = self._book
        if (template := book.next_seed(self._clocks.now())) is not None:
            await self._keep_seed(template)
            return
        may = (name for name in book.ready(self._clocks.now()) if self._may(self._machines[name]))
        ready = list(islice(may, CONSIDERED))
        choice = choose(
            {name: self._used(name) for name in ready if self._machines[name].vm.prepare},
            {name: self._used(name) for name in book.prepared},
            self._most,
        )
        if choice.give_up is not None:
            await self._give_up(self._machines[choice.give_up], f"at most {self._most} VMs are prepared")
            return
        images = (name for name in ready if not self._machines[name].vm.prepare)
        name = choice.prepare or max(images, key=self._used, default=None)
        if name is not None:
            await self._prepare(self._machines[name])
        if (when := book.next_ready()) is not None:
            self._plan(max(QUIET, when - self._clocks.now()))

    def _may(self, machine: Machine) -> bool:
        """Return whether this node may prepare *machine*, and what it needs is up."""
        return not self._ownership.is_others(machine) and not self._dependencies.down(machine)

    def _unwanted(self) -> Machine | None:
        """Return a prepared VM that its settings do not want prepared; None if there is none."""
        found = (self._machines[name] for name in self._book.prepared)
        return next((one for one in found if one.vm.removed or not one.vm.prepare), None)

    def _used(self, name: str) -> float:
        """Return when the VM *name* was last used, in seconds since 1970; 0 if never."""
        return max(self._book.up.get(name, 0.0), self._stats.of(self._machines[name]).last_request_ts)

    async def _prepare(self, machine: Machine) -> None:
        """Prepare *machine*, if its host has the memory, and it is still to be."""
        name = machine.vm.name
        try:
            why = shortage(await machine.backend.memory(machine.uuid))
        except BackendError as error:
            why = str(error)
        if why:
            self._book.wait(name, self._clocks.now() + MEMORY_AGAIN)
            machine.problem(Problem.PREPARE, f"it is not prepared: {why}")
        elif self._is_running and name in self._book.waiting and not self._admission.is_busy:
            self._current = machine
            machine.feed(Event.PREPARE, "prepared for a later start")

    async def _keep_seed(self, template: str) -> None:
        """Make the image that the VMs of *template* start from, if this node owns the VM that it is made after."""
        book = self._book
        machine = self._machines[book.seeds[template]]
        try:
            if self._ownership.is_own(machine):
                await machine.backend.keep_image(machine.uuid, shared=True)
        except BackendError as error:
            again = book.failed(template, self._clocks.now())
            self._log.error("{template}: no image of it was made; tried again after {again} s: {error}",
                            template=template, again=round(again), error=str(error))
        else:
            book.seeds.pop(template, None)
            book.rests.pop(template, None)
        self._plan(QUIET)

    # Giving up.

    async def _give_up(self, machine: Machine, reason: str) -> bool:
        """Destroy *machine*, which is prepared, if no other node starts it; return whether it is prepared no more."""
        name, own = machine.vm.name, False
        with suppress(ClusterUnavailable):
            own = await self._ownership.claim(machine)
        if own and machine.state is State.PREPARED:
            self._log.info("{name}: what is prepared of it is given up: {reason}", name=name, reason=reason)
            await machine.stop(reason)
        return machine.state is not State.PREPARED

    @deferred
    async def make_room(self, machine: Machine) -> bool:
        """Give up a prepared VM of *machine*'s hypervisor, the least recently used; return whether there was one."""
        for name in sorted(self._book.prepared, key=self._used):
            other = self._machines[name]
            if other.backend is machine.backend and other.state is State.PREPARED:
                return await self._give_up(other, f"{machine.vm.name} needs the memory")
        return False

    def _watch(self, *, now: bool) -> None:
        """Begin to check what is prepared, if there is anything, and that has not begun."""
        if self._book.prepared and self._is_running and not self._checks.running:
            self._checks.start(CHECK_EVERY, now=now)

    def _check(self) -> None:
        if self._book.prepared:
            spawn(self._log, self._check_now(sorted(self._book.prepared)))
        else:
            self._checks.stop()

    async def _check_now(self, names: Iterable[str]) -> None:
        """
        Give up those of the VMs *names* whose definition, kernel or disk has changed: they are prepared anew.

        First it is looked whether they are prepared still: nothing else would show that an event was lost.
        """
        for name in names:
            machine = self._machines.get(name)
            if machine is None or machine.state is not State.PREPARED:
                continue
            await machine.look("looked at again")
            if machine.state is not State.PREPARED:
                continue
            try:
                why = await machine.backend.stale(machine.uuid)
            except BackendError:
                continue  # its hypervisor tells what it is as soon as it can
            if why and machine.state is State.PREPARED:
                await self._give_up(machine, why)
