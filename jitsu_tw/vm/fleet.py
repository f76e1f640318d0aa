"""
All VMs: what is asked of them by name, and what is heard of them.

It is asked by `dns.resolver` and by people. It hears of changes from the backends, and makes sure that what it believes
is what the hypervisor says. Who may boot now is in `admission`, who is kept in `sweep`, what is remembered in `record`.
"""

from __future__ import annotations

import time
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.names.dns import QUERY_TYPES
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.backends import backends_for
from jitsu_tw.dns.wire import Source
from jitsu_tw.errors import BackendError, BackendLost, JitsuError, NoRoom, NoSuchVM, Prohibited, Unproven
from jitsu_tw.ijitsu import IWatcher
from jitsu_tw.networks import network, packed, to_text
from jitsu_tw.readiness import Signs
from jitsu_tw.store.layout import label
from jitsu_tw.vm.activation import Machine
from jitsu_tw.vm.admission import Admission
from jitsu_tw.vm.cover import Cover
from jitsu_tw.vm.lifecycle import CALLING, WANTED, Event, State
from jitsu_tw.vm.policy import Policy, Verdict
from jitsu_tw.vm.record import Record
from jitsu_tw.vm.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jitsu_tw.dns.wire import Question
    from jitsu_tw.ijitsu import IBackend, IReadiness, IStore
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.store.layout import Stats
    from jitsu_tw.vm.lease import Lease

#: At most so many refusals are logged within so many seconds; they are all counted.
MOST_TOLD: Final = 100
TOLD_AGAIN: Final = 5.0

#: How many VMs of a backend are looked at, at once.
LOOKS_AT_ONCE: Final = 16

#: What a VM is doing that nobody could say is asked again after so many seconds.
LOOK_AGAIN: Final = 5.0

#: A start whose end nobody told us may bring a VM up for so many seconds more.
STARTS_WITHIN: Final = 60.0

#: States in which a VM that we held is not held any more.
_DOWN: Final = frozenset({State.OFF, State.PAUSED, State.SAVED, State.FAILED, State.UNKNOWN})

#: States in which a VM needs others: also while it is being shut down, which may be when it writes to them.
_NEEDING: Final = WANTED | {State.STOPPING}


@attrs.frozen
class Clocks:
    """
    The times that a fleet needs.

    Attributes:
        reactor: calls later.
        now: seconds of a clock that never goes back; leases use it.
        wall: seconds since 1970, for what is remembered, and for times of the week.
    """

    reactor: IReactorTime
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@implementer(IWatcher)
class Fleet:
    """
    All VMs of a configuration.

    Attributes:
        machines: by the VM's name.
        would_start: in a dry run, how many starts there would have been: by VM, client network and type.
        refused: how many summonses were refused, by reason.
        cover: Synjitsu, where one is used.
        on_move: called with each machine that may have become ready, or is not ready any more.
        uses: tells what was asked for without us: the VM's name, the name asked for, how often, and when last (on the
            clock `now`). It is asked before anything that depends on it.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[tuple[str, str], IBackend],
        store: IStore,
        clocks: Clocks,
        make_cover: Callable[..., Cover] = Cover,
    ) -> None:
        """Keep the VMs of *settings*; *backends* are found by a VM's backend and URI."""
        self._settings, self._backends = settings, dict(backends)
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._signs = Signs(clocks.reactor)
        self.machines: dict[str, Machine] = {}
        self.cover: Cover | None = None
        if settings.synjitsu is not None:
            self.cover = make_cover(settings.synjitsu, self.machines, clocks.reactor, self._signs.port)
            self.cover.wake = self._wake
        self._needers: dict[str, list[Machine]] = {}
        self._by_uuid: dict[str, Machine] = {}
        self._missing: set[str] = set()
        self._strangers = 0
        self._unseen: set[str] = set()
        self._doubts: dict[str, float] = {}
        self._lost: dict[int, str] = {}
        self._looks: dict[str, IDelayedCall] = {}
        self._record = Record(store, self.machines, clocks, settings.commit_every)
        self._record.gather = self._gather
        self._sweep = Sweep(self.machines, clocks, self._signs.port, self._is_needed)
        self._admission = Admission(settings, clocks, self._sweep)
        self._whose: dict[str, bytes] = {}
        self._policy = Policy(
            settings.summon_from, settings.starts_per_minute, settings.verify_source, settings.max_running
        )
        self.refused: Counter[Verdict] = Counter()
        self.would_start: Counter[tuple[str, str, str]] = Counter()
        self._would_end: dict[str, float] = {}
        self._told: set[tuple[str, Verdict]] = set()
        self._telling = LoopingCall(self._told.clear)
        self._telling.clock = clocks.reactor
        self.on_move: list[Callable[[Machine], None]] = []
        self.uses: Callable[[], Iterable[tuple[str, bytes, int, float]]] = tuple
        for vm in settings.vms:
            self.enlist(vm)

    def _signs_of(self, vm: VM) -> tuple[IReadiness, ...]:
        signs: tuple[IReadiness, ...] = self._signs.of(vm, self._backends[vm.backend, vm.connect])
        if self.cover is not None and vm.use_synjitsu:
            signs = tuple(self.cover if sign is self._signs.port else sign for sign in signs)
        return signs

    def _machine(self, vm: VM) -> Machine:
        return Machine(
            vm,
            self._backends[vm.backend, vm.connect],
            self._signs_of(vm),
            self,
            self._reactor,
            self._now,
            self._settings.answer_by,
        )

    # Beginning and end.

    def start(self, tree: Mapping[str, str]) -> None:
        """Begin with what the state remembers; ask the backends what runs; start nothing but what `keep_up` says."""
        self._record.start(tree, {vm.name for vm in self._settings.vms})
        self._signs.start()
        if self.cover is not None and not self._settings.dry_run:
            self.cover.start()
        for backend in list(self._backends.values()):
            backend.connect(self)
        self._telling.start(TOLD_AGAIN, now=False)

    def stop(self) -> Deferred[None]:
        """Write down what is remembered and leave all VMs as they are."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._telling.stop()
        self._sweep.stop()
        for look in self._looks.values():
            look.cancel()
        await self._record.stop()
        await self._signs.stop()
        if self.cover is not None:
            await self.cover.stop()
        await DeferredList([backend.close() for backend in self._backends.values()], consumeErrors=True)

    # Who belongs to it.

    def enlist(self, vm: VM) -> Machine:
        """Have one VM more, or let the one of that name be as *vm* says; then `find` it."""
        place = vm.backend, vm.connect
        is_new = place not in self._backends
        if is_new:
            self._backends |= backends_for((vm,))
        machine = self.machines.get(vm.name)
        if machine is None:
            machine = self.machines[vm.name] = self._machine(vm)
            self._unseen.add(vm.name)
        else:
            self._needed_by(machine, no_more=True)
            if self.cover is not None:
                self.cover.forget(machine)
            machine.become(vm, self._signs_of(vm))
            self._sweep.regrant(machine)
        self._needed_by(machine)
        if self.cover is not None:
            self.cover.enlist(machine)
        if is_new and self._telling.running:
            self._backends[place].connect(self)
        return machine

    def _needed_by(self, machine: Machine, *, no_more: bool = False) -> None:
        for need in machine.vm.needs:
            needers = self._needers.setdefault(need, [])
            (needers.remove if no_more else needers.append)(machine)

    def backend_of(self, vm: VM) -> IBackend | None:
        """Return where *vm* is, or would be; None if nobody is connected to that yet."""
        return self._backends.get((vm.backend, vm.connect))

    def find(self, machine: Machine) -> Deferred[None]:
        """Look for *machine*, which was enlisted, at its backend."""
        return Deferred.fromCoroutine(self._look_at(machine))

    async def dismiss(self, machine: Machine, reason: str) -> None:
        """Stop *machine*, by its mode, if it is up through us; then have it no more. Its names must be gone already."""
        while machine.state is State.STOPPING or (machine.held and machine.state in WANTED):
            if await machine.stop(reason) is State.UP:
                self.log.error("{name}: goes on running, but is none of ours any more", name=machine.vm.name)
                break
        self._gather()
        machine.gone(reason)
        self._needed_by(machine, no_more=True)
        if self.cover is not None:
            self.cover.forget(machine)
        name = machine.vm.name
        del self.machines[name]
        self._by_uuid.pop(machine.uuid, None)
        for of in (self._would_end, self._whose, self._doubts):
            of.pop(name, None)
        for among in (self._missing, self._unseen):
            among.discard(name)
        if name in self._looks:
            self._looks.pop(name).cancel()
        self._sweep.forget(machine)
        self._record.forget(machine)

    def origin(self, name: str) -> str | None:
        """Return the request that the VM *name* is from as it is now; None if the file says it."""
        return self._record.origin(self.machines[name])

    def merged(self, changes: Mapping[str, str | None]) -> None:
        """Hear that the state has been changed so, by a request."""
        self._record.merged(changes)

    # What is asked of it.

    def summon(self, name: str, question: Question) -> Deferred[bool]:
        """
        Return a Deferred that fires when the VM is ready (True) or the answer is due all the same (False).

        Raises:
            Prohibited, Unproven, NoRoom: (through the Deferred) the client may not start the VM, or nobody may.
            BootFailed, BackendLost, NoSuchVM: (through the Deferred) as in `Machine.summon`.
        """
        machine = self.machines[name]
        source = question.source
        asker = f"{source.host if source else 'this process'}, {_type(question)} {label(question.key)}"
        is_up = machine.state is State.UP
        refused = self._admit(machine, source, asker) if source is not None else None
        if refused is not None and not is_up:
            return fail(refused)
        if self._settings.dry_run:
            self._would_start(machine, question)
            return succeed(True)  # noqa: FBT003
        if not machine.booting_for(asker):
            self._record.count(machine, question.key, 1, self._wall())
        if is_up and (source is None or self._policy.is_inside(source.host)):
            self._hold(machine)
        if refused is not None:
            # A VM that is up is nobody's to refuse, but what it needs may be.
            return succeed(False)  # noqa: FBT003
        if not is_up and id(machine.backend) in self._lost:
            return fail(BackendLost(f"{name}: {self._lost[id(machine.backend)]}"))
        down = self._down(machine)
        if machine.state is not State.UP or not down:
            return self._summon(machine, asker)
        waits = DeferredList([need.summon(asker) for need in down], fireOnOneErrback=True, consumeErrors=True)
        return waits.addCallbacks(
            lambda ready: all(one for _, one in ready), lambda failure: failure.value.subFailure
        )

    def _admit(self, machine: Machine, source: Source, asker: str) -> JitsuError | None:
        """Return why *source* may not have *machine*; None if it may."""
        if all(one.joinable for one in self._down(machine)):
            return None
        free = self._starts_nothing(machine)
        verdict = self._policy.admit(source, self._now(), self._admission.crowd, free=free)
        if verdict is not Verdict.ADMITTED:
            return self._refused(machine, verdict, asker)
        self._whose[machine.vm.name] = network(packed(source.host))
        return None

    def _summon(self, machine: Machine, asker: str) -> Deferred[bool]:
        """Summon *machine*; if its first packets are held, nobody need wait until it is ready."""
        ready = machine.summon(asker)
        if ready.called or self.cover is None or not self.cover.holds(machine):
            return ready
        ready.addErrback(lambda _: None)
        machine.answered()
        return succeed(True)  # noqa: FBT003

    def _wake(self, machine: Machine, host: str) -> None:
        """Start *machine* because *host* has sent a packet for it, as if it had asked for its name."""
        asker = f"{host}, a packet"
        if self._admit(machine, Source(host, 0), asker) is None and not self._settings.dry_run:
            self._hold(machine)
            machine.summon(asker).addErrback(lambda _: None)

    def _starts_nothing(self, machine: Machine) -> bool:
        """Say whether a question for *machine*, which is not on its way up, starts nothing this time."""
        if self._settings.dry_run:
            return self._would_end.get(machine.vm.name, -inf) > self._now()
        return machine.is_resting or machine.is_lost or id(machine.backend) in self._lost

    def _would_start(self, machine: Machine, question: Question) -> None:
        """Count what would be started, as if it were kept for its lease; nothing is started, held or stopped."""
        name, now = machine.vm.name, self._now()
        self._record.count(machine, question.key, 1, self._wall())
        if machine.state is not State.UP and self._would_end.get(name, now) <= now:
            source = question.source
            net = to_text(network(packed(source.host))) if source is not None else "this process"
            self.would_start[name, net, _type(question)] += 1
            self.log.info("{name}: would be started for {net}", name=name, net=net)
        self._would_end[name] = now + machine.vm.idle

    def _refused(self, machine: Machine, verdict: Verdict, asker: str) -> JitsuError:
        """Return the error that says why a VM is not started; log it, but not for each question of a flood."""
        self.refused[verdict] += 1
        if len(self._told) < MOST_TOLD and (machine.vm.name, verdict) not in self._told:
            self._told.add((machine.vm.name, verdict))
            name, why = machine.vm.name, verdict.value
            self.log.info("{name}: not started for {asker}: {why}", name=name, asker=asker, why=why)
        kinds = {Verdict.UNPROVEN: Unproven, Verdict.FULL: NoRoom}
        return kinds.get(verdict, Prohibited)(f"{machine.vm.name}: {verdict.value}")

    def start_vm(self, name: str) -> Deferred[bool]:
        """Start a VM because a person wants it; fires when it is up, however long that takes."""
        machine = self.machines[name]
        self._hold(machine)
        return machine.summon("control", insist=True)

    def stop_vm(self, name: str) -> Deferred[State]:
        """Stop a VM because a person wants it; fires with the state that it ended in."""
        self._sweep.rest(self.machines[name])
        return self.machines[name].stop("stopped by hand")

    def stats(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*."""
        self._gather()
        return self._record.of(machine)

    def lease(self, name: str) -> Lease | None:
        """
        Return the lease of the VM *name*, which is ready; None if it, or a VM that it needs, is not.

        It is another one each time that the VM comes up.
        """
        ready = all(need.state is State.UP for need in self._needs(self.machines[name]))
        return self._sweep.lease(name) if ready else None

    def lease_left(self, machine: Machine) -> float | None:
        """Return the seconds until *machine* is stopped if nobody uses it; None if it has no lease."""
        return self._sweep.left(machine.vm.name)

    @property
    def keepers(self) -> Callable[[str], bool] | None:
        """Says of a client's address whether its questions keep VMs up; None if all do."""
        return None if self._policy.is_open else self._policy.is_inside

    def check(self, name: str) -> None:
        """See whether the VM *name*, which is up and in use, is alive."""
        self._sweep.check(self.machines[name])

    # Use.

    def _gather(self) -> None:
        """Count what was asked for without us; the leases have been renewed where that happened."""
        for name, key, times, last in self.uses():
            self._record.count(self.machines[name], key, times, self._wall() - (self._now() - last))

    def _hold(self, machine: Machine) -> None:
        """Somebody wants *machine* through us: from now on it has a lease while it is up."""
        machine.held = True
        self._sweep.renew(machine)

    # Groups.

    def _needs(self, machine: Machine) -> list[Machine]:
        return [self.machines[name] for name in machine.vm.needs]

    def _down(self, machine: Machine) -> list[Machine]:
        """Return what a question for *machine* starts or waits for: itself, or, if it is up, those that it needs."""
        if machine.state is not State.UP:
            return [machine]
        return [need for need in self._needs(machine) if need.state is not State.UP]

    def _is_needed(self, machine: Machine) -> bool:
        return any(needer.state in _NEEDING for needer in self._needers.get(machine.vm.name, ()))

    async def _after_needs(self, machine: Machine) -> None:
        """Let *machine*, which is queued, boot when what it needs is up; in the same order, however many are needed."""
        name = machine.vm.name
        waits = [need.summon(f"needed by {name}", insist=True) for need in self._needs(machine)]
        for _, failure in await DeferredList(waits, consumeErrors=True):
            if isinstance(failure, Failure) and machine.state is State.QUEUED:
                machine.feed(Event.FAIL, f"needs {failure.getErrorMessage()}")
        if machine.state is State.QUEUED:
            self._admission.ask(machine, self._whose.pop(name, None))

    # What the machines tell (`activation.Keeper`).

    def ask_turn(self, machine: Machine) -> None:
        """Let *machine* boot when its turn comes."""
        if machine.vm.needs:
            Deferred.fromCoroutine(self._after_needs(machine))
        else:
            self._admission.ask(machine, self._whose.pop(machine.vm.name, None))

    def remembered(self) -> Deferred[None]:
        """Fire when the last start or stop is in the state."""
        return self._record.written()

    def moved(self, machine: Machine, old: State) -> None:
        """Keep everything in step with *machine*'s state."""
        state = machine.state
        if self.cover is not None:
            self.cover.moved(machine)
        for hear in self.on_move:
            hear(machine)
            for needer in self._needers.get(machine.vm.name, ()):
                hear(needer)
        self._admission.moved(machine)
        if state is State.STARTING:
            self._record.started(machine)
        elif state is State.UP:
            self._came_up(machine, old)
        elif state in _DOWN:
            self._went_down(machine, old)
        if state is not State.UP:
            self._sweep.drop(machine)
        if state is State.UNKNOWN:
            self._look_later(machine)
        if machine.is_gone and machine.vm.name not in self._missing:
            # It may be there under another uuid.
            self._missing.add(machine.vm.name)
            self._reactor.callLater(0, self._look_for, machine)

    def _came_up(self, machine: Machine, old: State) -> None:
        """Give *machine* a lease: a new one if it was asked for, else what is left of the one that we find it with."""
        name, now = machine.vm.name, self._now()
        self._doubts.pop(name, None)
        if machine.held:
            self._sweep.grant(machine, now, now, is_new=name not in self._unseen)
        elif name in self._unseen and self._record.is_ours(machine) and not self._settings.dry_run:
            machine.held = True
            used, started = (now - max(0.0, self._wall() - when) for when in self._record.since(machine))
            self._sweep.adopt(machine, used, started)
            self.log.info(
                "{name}: runs already, adopted; {left:.0f} s of its lease are left",
                name=name,
                left=self.lease_left(machine),
            )
        elif old is State.WAITING:
            if not self._settings.dry_run:
                self._record.stopped(machine)
            self.log.info("{name}: runs, but nobody asked for it; left alone", name=name)
        self._unseen.discard(name)

    def _went_down(self, machine: Machine, old: State) -> None:
        if old in {State.UP, State.WAITING}:
            name, how = machine.vm.name, machine.state.value
            self.log.info("{name}: {state}: {reason}", name=name, state=how, reason=machine.reason)
        if machine.is_unsure:
            if old in CALLING:
                # What was begun may go on, and bring it up yet: then it is ours.
                self._doubts[machine.vm.name] = self._now() + STARTS_WITHIN
                self._reactor.callLater(STARTS_WITHIN, self._doubts_end, machine)
        elif self._now() >= self._doubts.get(machine.vm.name, -inf):
            machine.held = False
            self._unseen.discard(machine.vm.name)
            self._record.stopped(machine)
        for need in self._needs(machine):
            if need.held:
                self._sweep.renew(need)
        if old in {State.UP, State.STOPPING, State.UNKNOWN}:
            self._sweep.went_down(machine)

    def _doubts_end(self, machine: Machine) -> None:
        """Take *machine*, if it did not come up all the same, for nobody's."""
        if self._now() >= self._doubts.get(machine.vm.name, inf):
            del self._doubts[machine.vm.name]
            if machine.state in _DOWN - {State.UNKNOWN}:
                self._went_down(machine, machine.state)

    # What the backends tell (`IWatcher`).

    def changed(self, uuid: str, reason: str) -> None:
        """Look at a VM that something happened to; a strange one may be one of ours that was defined anew."""
        machine = self._by_uuid.get(uuid)
        if machine is not None:
            machine.look(reason)
            if self.cover is not None:
                self.cover.changed(machine)
        else:
            self._strangers += 1
            for name in list(self._missing):
                self._look_for(self.machines[name])

    def _look_for(self, machine: Machine) -> None:
        Deferred.fromCoroutine(self._look_at(machine))

    def lost(self, backend: IBackend, reason: str) -> None:
        """Tell the VMs of *backend* that it cannot be asked."""
        self._lost[id(backend)] = reason
        for machine in self._of(backend):
            machine.lost(reason)

    def connected(self, backend: IBackend) -> None:
        """Look at everything behind *backend*."""
        self._lost.pop(id(backend), None)
        Deferred.fromCoroutine(self._reconcile(backend)).addErrback(
            lambda failure: self.log.failure("cannot look at the VMs of {backend}", failure, backend=backend)
        )

    def _look_later(self, machine: Machine) -> None:
        """Look at *machine* again in a while if nobody knows what it is doing, and nothing will bring us to look."""
        name = machine.vm.name
        lost = id(machine.backend) in self._lost
        if machine.state is State.UNKNOWN and not (lost or machine.is_gone or name in self._looks):
            self._looks[name] = self._reactor.callLater(LOOK_AGAIN, self._look_again, machine)

    def _look_again(self, machine: Machine) -> None:
        del self._looks[machine.vm.name]
        if machine.state is State.UNKNOWN and id(machine.backend) not in self._lost:
            self._look_for(machine)

    def _of(self, backend: IBackend) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.backend is backend]

    async def _reconcile(self, backend: IBackend) -> None:
        todo = iter(self._of(backend))

        async def look() -> None:
            for machine in todo:
                await self._look_at(machine)

        looks = [Deferred.fromCoroutine(look()) for _ in range(LOOKS_AT_ONCE)]
        await DeferredList(looks, fireOnOneErrback=True, consumeErrors=True)
        if all(machine.uuid for machine in self.machines.values()):
            for name in self._record.forget_others():
                self.log.warn("{name}: started by us, but not in the configuration any more; left alone", name=name)
        await self._record.save_configuration()

    def _with_uuid(self, machine: Machine) -> VM:
        """Return the settings of *machine*, with the uuid that the state has for its name if the backend has none."""
        vm = machine.vm
        if vm.uuid is None and not machine.backend.has_uuids:
            return attrs.evolve(vm, uuid=self._record.uuid_of(vm.name))
        return vm

    async def _look_at(self, machine: Machine) -> None:
        """Find *machine* at its backend, and see what it is doing."""
        name, backend, strangers = machine.vm.name, machine.backend, self._strangers
        try:
            uuid = await backend.look_up(self._with_uuid(machine))
        except NoSuchVM as error:
            if strangers != self._strangers:
                # One of them may be this VM, defined since we asked.
                await self._look_at(machine)
                return
            if name not in self._missing:
                self.log.error("{name}: {error}", name=name, error=str(error))
            self._missing.add(name)
            machine.gone(str(error))
            return
        except BackendError as error:
            machine.lost(str(error))
            self.log.error("{name}: {error}", name=name, error=str(error))
            self._look_later(machine)
            return
        if self.machines.get(name) is not machine:
            return
        self._missing.discard(name)
        if uuid != machine.uuid:
            self._by_uuid.pop(machine.uuid, None)
            machine.uuid = uuid
            self._by_uuid[uuid] = machine
            self._record.recognise(machine)
        await machine.look("found so")
        if self.cover is not None:
            await self.cover.learn(machine)
        self._look_later(machine)
        if not self._settings.dry_run:
            self._sweep.keep_times(machine)


def _type(question: Question) -> str:
    return str(QUERY_TYPES.get(question.type, question.type))
