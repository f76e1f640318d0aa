"""
Finds the VMs at their hypervisors, and handles what these tell of them.

The state of each machine follows what its hypervisor says: at the beginning, when a hypervisor is connected again, on
each of its events, and, while no answer came, a while later. A VM that is undefined and defined anew is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.backends import BACKENDS, backends_for
from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import IObserver, IWatcher
from jitsu_tw.rules.lifecycle import CALLING, Event, State
from jitsu_tw.slices import Pace, in_slices
from jitsu_tw.vm.memory_sizes import MemorySizes
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.settings import VM
    from jitsu_tw.vm.journal import Journal
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.observers import IInventoryObserver
    from jitsu_tw.vm.persistence import StatsStore

#: How many VMs of a backend are looked at at once.
LOOKS_AT_ONCE: Final = 16

#: Seconds after which a hypervisor that has not answered yet counts as lost, until it does; and the reason shown.
WAITS: Final = 2.0
NOT_YET: Final = "it has not answered yet; Jitsu serves the others, and waits for it"

#: Seconds after which a hypervisor that could not tell what a VM does is asked again.
LOOK_AGAIN: Final = 5.0


@attrs.define(eq=False)
class _Connection:
    """
    The connection to a hypervisor.

    Attributes:
        name: the hypervisor's kind and URI.
        problem: why it cannot be asked; None if it can.
        answers: it is connected.
        late: declares it lost if it does not answer.
        seen: fires when its VMs have been looked at, or cannot be.
    """

    name: str
    problem: str | None = None
    answers: bool = False
    late: IDelayedCall | None = None
    seen: Deferred[None] = attrs.field(factory=Deferred)

    def end_wait(self) -> None:
        """Wait for its first answer no longer."""
        if self.late is not None and self.late.active():
            self.late.cancel()

    def is_seen(self) -> None:
        """Note that its VMs have been looked at, or cannot be."""
        if not self.seen.called:
            self.seen.callback(None)


@implementer(IObserver, IWatcher)
class Inventory:
    """
    The hypervisors, and the VMs that they have.

    It owns, and nobody else writes: the connections to hypervisors, which machine has which uuid, which VMs were not
    found, and the looks to come.

    Attributes:
        sizes: asks the hypervisors how much memory the VMs have.
    """

    follows: Final = frozenset({State.UNKNOWN, State.UP})

    log = Logger()

    def __init__(
        self,
        backends: Mapping[tuple[str, str], IBackend],
        machines: Mapping[str, Machine],
        record: StatsStore,
        journal: Journal,
        reactor: IReactorTime,
        observer: IInventoryObserver,
    ) -> None:
        """
        Connect to no hypervisor yet.

        Args:
            backends: by a VM's backend and URI.
            machines: to look for, by the VM's name.
            record: what the state says of them.
            journal: is told of connections.
            reactor: calls later.
            observer: is told what is found.
        """
        self._backends, self._machines = dict(backends), machines
        self._connections = {id(one): _Connection(_name(key)) for key, one in reversed(self._backends.items())}
        self._record, self._journal, self._reactor, self._observer = record, journal, reactor, observer
        self._by_uuid: dict[str, Machine] = {}
        self._missing: set[str] = set()
        self._looked_up: dict[Machine, set[Deferred[None]]] = {}
        self._strangers = 0
        self._looks: dict[str, IDelayedCall] = {}
        self._started = False
        self.sizes = MemorySizes(record.uptime, reactor)

    # Beginning and end.

    def start(self) -> Deferred[Any]:
        """
        Connect to all hypervisors, and to those where VMs that the configuration has no more may run.

        Returns:
            A Deferred that fires when the VMs of each are in the state, or the hypervisor cannot be asked.
        """
        self._started = True
        seen = DeferredList([connection.seen for connection in self._connections.values()])
        for backend in list(self._backends.values()):
            self._connect(backend)
        self._find_removed()
        return seen

    def _connect(self, backend: IBackend) -> None:
        """Connect to *backend*, which counts as lost if it does not answer soon."""
        self._connections[id(backend)].late = self._reactor.callLater(WAITS, self.lost, backend, NOT_YET)
        backend.connect(self)

    def stop(self) -> None:
        """Look for no VM any more."""
        self.sizes.stop()
        for call in self._looks.values():
            call.cancel()
        for connection in self._connections.values():
            connection.end_wait()

    async def close(self) -> None:
        """Disconnect from all hypervisors."""
        await DeferredList([backend.close() for backend in self._backends.values()], consumeErrors=True)

    # Which there are.

    def backend_of(self, vm: VM) -> IBackend | None:
        """Return the backend of *vm*; None if it is not among those of the fleet yet."""
        return self._backends.get((vm.backend, vm.connect))

    def machine(self, uuid: str) -> Machine | None:
        """Return the machine that has that uuid at its hypervisor."""
        return self._by_uuid.get(uuid)

    def backend_for(self, vm: VM) -> IBackend:
        """Return the backend of *vm*, which is made, and connected if the others are, if there is none yet."""
        key = vm.backend, vm.connect
        if key not in self._backends:
            self._backends |= backends_for((vm,))
            self._connections[id(self._backends[key])] = _Connection(_name(key))
            if self._started:
                self._connect(self._backends[key])
        return self._backends[key]

    @property
    def hypervisors(self) -> Mapping[str, str | None]:
        """The hypervisors, by kind and URI: why one cannot be asked, None for one that can."""
        found = (self._connections[id(backend)] for backend in self._backends.values())
        return {connection.name: connection.problem for connection in found}

    def why_lost(self, backend: IBackend) -> str | None:
        """Return why *backend* cannot be asked; None if it can."""
        return self._connections[id(backend)].problem

    def why_unusable(self, backend: IBackend) -> str | None:
        """Return why *backend* cannot be asked, or that it has not answered yet; None if it can be asked."""
        connection = self._connections[id(backend)]
        return connection.problem if connection.answers else connection.problem or NOT_YET

    # What the machines do.

    def moved(self, machine: Machine, old: State) -> None:
        """Look for *machine* again if the backend does not know what it does, and at what it has booted from."""
        if machine.state is State.UNKNOWN:
            self._look_later(machine)
            self._look_if_gone(machine)
        elif old is State.WAITING:
            spawn(self.log, self._ask_advice(machine), machine.vm.name)

    def _look_if_gone(self, machine: Machine) -> None:
        """Look for *machine* if its hypervisor does not know its uuid any more: it may be there under another one."""
        is_forgotten = machine.vm.removed and machine.vm.template is not None
        if machine.is_gone and machine.vm.name not in self._missing and not is_forgotten:
            self._missing.add(machine.vm.name)
            self._reactor.callLater(0, self._look_for, machine)

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more."""
        name = machine.vm.name
        if self._by_uuid.get(machine.uuid) is machine:
            del self._by_uuid[machine.uuid]  # else another machine has it by now, under another name
        self._missing.discard(name)
        self.sizes.forget(machine)
        if name in self._looks:
            self._looks.pop(name).cancel()

    # What the backends tell (`IWatcher`).

    def changed(self, uuid: str, reason: str) -> None:
        """Look at a VM that something has happened to; an unknown uuid may be a VM that was defined anew."""
        machine = self._by_uuid.get(uuid)
        if machine is not None:
            machine.look(reason)
            self._observer.hinted(machine)
        else:
            self._strangers += 1
            for name in list(self._missing):
                self._look_for(self._machines[name])

    def rebooted(self, uuid: str) -> None:
        """Tell the machine with that uuid that its guest has rebooted itself."""
        machine = self._by_uuid.get(uuid)
        if machine is not None:
            machine.feed(Event.REBOOT, "its guest has rebooted itself")

    def lost(self, backend: IBackend, reason: str) -> None:
        """Tell the VMs of *backend* that it cannot be asked, in slices of time."""
        connection = self._connections[id(backend)]
        connection.end_wait()
        if reason != connection.problem:
            message = "{backend} cannot be asked, so nothing starts there until it can: {reason}"
            self.log.error(message, backend=connection.name, reason=reason)
        connection.problem, connection.answers = reason, False
        self._journal.backend(connection.name, reason)
        told = spawn(self.log, in_slices(self._reactor, self._losing(backend, reason)), connection.name)
        told.addCallback(lambda _: connection.is_seen())

    def _losing(self, backend: IBackend, reason: str) -> Iterator[None]:
        """Tell the VMs of *backend*, one at a time, that it cannot be asked because of *reason*, while that is so."""
        connection = self._connections[id(backend)]
        for machine in self._of(backend):
            if connection.problem != reason:
                return
            if self._machines.get(machine.vm.name) is machine:
                machine.lose(reason)
                yield

    def connected(self, backend: IBackend) -> None:
        """Look at all VMs of *backend*."""
        connection = self._connections[id(backend)]
        connection.end_wait()
        connection.problem, connection.answers = None, True
        self._journal.backend(connection.name, None)
        spawn(self.log, self._reconcile(backend), connection.name).addCallback(lambda _: connection.is_seen())

    def _of(self, backend: IBackend) -> list[Machine]:
        return [machine for machine in self._machines.values() if machine.backend is backend]

    async def _reconcile(self, backend: IBackend) -> None:
        todo, pace = iter(self._of(backend)), Pace(self._reactor)

        async def look() -> None:
            for machine in todo:
                await pace.keep()
                await self._look_at(machine)

        looks = [Deferred.fromCoroutine(look()) for _ in range(LOOKS_AT_ONCE)]
        await DeferredList(looks, fireOnOneErrback=True, consumeErrors=True)
        self._find_removed()
        await self._record.save_configuration()
        if self._record.config.has_some and all(machine.uuid for machine in self._machines.values()):
            self._record.forget_others()

    def _find_removed(self) -> None:
        """Find the VMs that Jitsu had started and that are not in the configuration any more, under whatever name."""
        if not self._record.may_run:
            return
        uuids = {self._expected(machine) for machine in self._machines.values()}
        if None in uuids:
            return  # any VM may turn out to be that machine
        for vm in self._record.removed(uuids):
            if (vm.backend, vm.connect) in self._backends or vm.backend in BACKENDS:
                machine = self._observer.enlist_removed(vm)
                if self._connections[id(machine.backend)].answers:
                    self._look_for(machine)

    def _expected(self, machine: Machine) -> str | None:
        """Return the uuid of *machine*, or, while it has not been found, that which it will have; None if any."""
        if machine.uuid or (machine.is_gone and machine.backend.has_uuids):
            return machine.uuid
        return machine.vm.uuid or self._record.uuid_of(machine.vm) or ("" if machine.is_gone else None)

    # One VM.

    def find(self, machine: Machine) -> Deferred[None]:
        """Look for *machine* at its backend, and ask for its state; that waits for `connected` if need be."""
        connection = self._connections[id(machine.backend)]
        if connection.answers:
            return Deferred.fromCoroutine(self._look_at(machine))
        if connection.problem is not None:
            machine.lose(connection.problem)
        return succeed(None)

    def _look_for(self, machine: Machine) -> None:
        """Look for *machine*, unless it is being looked up, which ends with what is so then."""
        if self._machines.get(machine.vm.name) is machine and machine not in self._looked_up:
            self.find(machine)

    def _look_later(self, machine: Machine) -> None:
        """Look at *machine* again in a while if its state is not known and its hypervisor will not tell by itself."""
        name = machine.vm.name
        is_lost = self.why_lost(machine.backend) is not None
        if machine.state is State.UNKNOWN and not (is_lost or machine.is_gone or name in self._looks):
            self._looks[name] = self._reactor.callLater(LOOK_AGAIN, self._look_again, machine)

    def _look_again(self, machine: Machine) -> None:
        del self._looks[machine.vm.name]
        if machine.state is State.UNKNOWN and self.why_lost(machine.backend) is None:
            spawn(self.log, self._look_at_late(machine), machine.vm.name)

    async def _look_at_late(self, machine: Machine) -> None:
        """Look at *machine*, which may be the last one that has not been found."""
        if self._machines.get(machine.vm.name) is machine:
            await self._look_at(machine)
            self._find_removed()

    def _with_uuid(self, machine: Machine) -> VM:
        """Return the settings of *machine*, with the uuid that the state has for its name if the backend has none."""
        vm = machine.vm
        if vm.uuid is not None or machine.backend.has_uuids:
            return vm
        uuid = machine.uuid or self._record.uuid_of(vm)
        return vm if uuid is None else attrs.evolve(vm, uuid=uuid)

    async def _look_up(self, machine: Machine) -> str:
        """
        Return the uuid of *machine*.

        Raises:
            NoSuchVM: its hypervisor does not know it.
        """
        ended: Deferred[None] = Deferred()
        looks = self._looked_up.setdefault(machine, set())
        looks.add(ended)
        try:
            while True:
                strangers = self._strangers
                try:
                    return await machine.backend.look_up(self._with_uuid(machine))
                except NoSuchVM:
                    if strangers == self._strangers:  # else one of them may be this VM, defined since we asked
                        raise
        finally:
            looks.discard(ended)
            if not looks:
                del self._looked_up[machine]
            ended.callback(None)

    async def looked_up(self, machine: Machine) -> None:
        """Wait until no call is under way that looks *machine* up, and may define it."""
        while machine in self._looked_up:
            await next(iter(self._looked_up[machine]))

    async def _look_at(self, machine: Machine) -> None:
        name = machine.vm.name
        try:
            uuid = await self._look_up(machine)
        except NoSuchVM as error:
            if name not in self._missing:
                self.log.error("{name}: {error}", name=name, error=str(error))
            self._missing.add(name)
            machine.lose(str(error), NoSuchVM)
            if machine.vm.removed:
                self._is_at(machine, str(machine.vm.uuid))
                self._observer.removed_moved(machine)
            return
        except BackendError as error:
            machine.lose(str(error))
            self.log.error("{name}: {error}", name=name, error=str(error))
            self._look_later(machine)
            return
        if self._machines.get(name) is not machine:
            return
        self._missing.discard(name)
        self._is_at(machine, uuid)
        await machine.look("found so")
        self._look_if_gone(machine)
        await self._observer.found(machine)
        self._look_later(machine)
        await self._ask_advice(machine)

    def _is_at(self, machine: Machine, uuid: str) -> None:
        """Note the uuid of *machine*, and what the state has of that."""
        if uuid != machine.uuid:
            if machine.uuid:
                self._observer.replaced(machine)
                if machine.state not in CALLING | {State.UNKNOWN}:
                    machine.lose("another VM has its name", NoSuchVM)
                self._reactor.callLater(0, self._find_removed)  # the one before may run, started by Jitsu
            self._by_uuid.pop(machine.uuid, None)
            machine.note(uuid=uuid)
            self._by_uuid[uuid] = machine
            self._record.stats.recognise(machine)

    async def _ask_advice(self, machine: Machine) -> None:
        """Ask the hypervisor what an operator should know of *machine*."""
        name = machine.vm.name
        try:
            sentences = await machine.backend.advice(machine.uuid)
        except BackendError as error:
            self.log.debug("{name}: no advice: {error}", name=name, error=str(error))
            return
        if self._machines.get(name) is machine:
            machine.problem(Problem.DEFINITION, *sentences)


def _name(key: tuple[str, str]) -> str:
    """Return the name of the hypervisor with this *key*: its kind, and its URI if it has one."""
    return " ".join(filter(None, key))
