"""
All VMs: what is asked of them by name, and what follows from their moves.

It is asked by `dns.resolver` and by people. Where the VMs are is in `inventory`, whose they are in `adoption`, who may
boot now in `admission`, who is kept in `leases`, who needs whom in `dependencies`, what is remembered in `stats`, what
people are told in `journal`, what several of us share in `cluster.claims`, and on which host a VM is in
`cluster.placement`.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.names.dns import QUERY_TYPES

from jitsu_tw.cluster.claims import Ask, Claims
from jitsu_tw.cluster.coordinator.local import LocalCoordinator
from jitsu_tw.cluster.fencing import Fencing
from jitsu_tw.cluster.migration import Migration
from jitsu_tw.cluster.placement import Placement
from jitsu_tw.dns.wire import Source
from jitsu_tw.errors import BackendLost, ClusterUnavailable, JitsuError, NoCapacity, Prohibited, Unproven
from jitsu_tw.networks import network, packed, to_text
from jitsu_tw.readiness import Strategies
from jitsu_tw.rules.lifecycle import ACTIVATING, DOWN, WANTED, State
from jitsu_tw.rules.policy import Policy, Verdict
from jitsu_tw.settings import HOSTS, WhenFull
from jitsu_tw.store.layout import label
from jitsu_tw.vm.admission import Admission
from jitsu_tw.vm.adoption import LET_GO, Adoption
from jitsu_tw.vm.dependencies import Dependencies
from jitsu_tw.vm.inventory import Inventory
from jitsu_tw.vm.journal import Journal
from jitsu_tw.vm.leases import LeaseKeeper
from jitsu_tw.vm.machine import Machine
from jitsu_tw.vm.problems import Problem, Problems
from jitsu_tw.vm.standins import StandInControl, StandIns
from jitsu_tw.vm.stats import StatsStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.python.failure import Failure

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.clocks import Clocks
    from jitsu_tw.dns.wire import Question
    from jitsu_tw.ijitsu import IBackend, ICoordinator, IReadiness, IStore
    from jitsu_tw.rules.lease import Lease
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.store.layout import NameUse, Stats

#: What an operator reads of a VM that the configuration has no more.
IS_REMOVED: Final = "the configuration has it no more, but Jitsu had started it; it is stopped when nobody uses it"

#: A VM in one of these states may have a lease, which is suspended while the VM stops or its guest reboots.
LEASED: Final = frozenset({State.UP, State.STOPPING, State.WAITING})

#: At most so many refusals are logged within so many seconds; they are all counted.
MOST_TOLD: Final = 100
TOLD_AGAIN: Final = 5.0


class Fleet:
    """
    All VMs of a configuration.

    Attributes:
        machines: by the VM's name.
        would_start: in a dry run, how many starts there would have been: by VM, client network and type.
        standins: announces VMs to Synjitsu, where one is used.
        inventory: where the VMs are.
        sharing: whose they are, where several of us serve a zone.
        hosts: those that VMs with `host` are on; None if there are none.
        moves: where they go, and who is drained.
        journal: what happened last, and why.
        problems: what an operator should know of the VMs besides.
        trouble: says why the configuration is not shared with the others; nothing if it is, or need not be.
        on_news: called with the commit that the configuration which we share is now.
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
        make_standins: Callable[..., StandIns] = StandInControl,
        coordinator: ICoordinator | None = None,
    ) -> None:
        """Keep the VMs of *settings*; *backends* are found by a VM's backend and URI; without others, alone."""
        self._settings = settings
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._signs = Strategies(clocks.reactor)
        self.machines: dict[str, Machine] = {}
        self.journal = Journal(clocks)
        self.problems = Problems()
        endpoints = dict.fromkeys(filter(None, (settings.synjitsu, *(host.synjitsu for host in settings.hosts))))
        self.standins = StandIns()
        if endpoints:
            secret = settings.synjitsu_secret or ""
            self.standins = make_standins(endpoints, self.machines, self._reactor, self._signs, self, secret)
        self._groups = Dependencies(self.machines)
        self.sharing = Claims(coordinator or LocalCoordinator(), self.machines, clocks)
        self._record = StatsStore(store, self.machines, clocks, settings.commit_every)
        self._record.gather = self._gather
        self.inventory = Inventory(
            backends, self.machines, self._record, self.journal, clocks.reactor, self._enlist_removed,
            self._removed_moved,
        )
        self.inventory.on_found = self._found
        self.inventory.on_change = self.standins.changed
        self._sweep = LeaseKeeper(self.machines, clocks, self._signs, self._groups.is_needed, self.sharing)
        self.hosts = cast("Pool | None", backends.get((HOSTS, "")))
        self._fencing: Fencing | None = None
        if self.hosts is not None:
            self._fencing = Fencing(self.hosts, self.sharing, settings, clocks.reactor)
        self._placement = Placement(
            settings, self.hosts, self.sharing, self.inventory, self._record, clocks, self.standins
        )
        self.moves = Migration(self.hosts, self.machines, self.sharing)
        self._ownership = Adoption(self._record, self._sweep, self.sharing, clocks, dry_run=settings.dry_run)
        self.inventory.on_other = self._ownership.is_another
        self.sharing.uses.gather, self.sharing.on_use = self._gather, self._sweep.used
        self.sharing.on_free, self.sharing.on_owner = self._ask_turn, self._owner_is
        self.sharing.on_ask, self.sharing.on_fact = self._asked, self._fact_is
        self.sharing.on_claim = self.standins.owner_changed
        self._admission = Admission(settings, clocks, self._sweep)
        self._whose: dict[str, tuple[bytes, bool]] = {}
        self._policy = Policy(
            settings.summon_from, settings.starts_per_minute, settings.verify_source, settings.max_running,
            settings.when_full is WhenFull.STOP_IDLE,
        )
        self.would_start: Counter[tuple[str, str, str]] = Counter()
        self._would_end: dict[str, float] = {}
        self._told: set[tuple[str, Verdict]] = set()
        self._telling = LoopingCall(self._told.clear)
        self._telling.clock = clocks.reactor
        self.on_move: list[Callable[[Machine], None]] = []
        self.trouble: Callable[[], str] = str
        self.on_news: Callable[[str], object] = lambda _: None
        self.uses: Callable[[], Iterable[tuple[str, NameUse, int, float]]] = tuple
        for vm in settings.vms:
            self.enlist(vm)

    def _signs_of(self, vm: VM) -> tuple[IReadiness, ...]:
        return self.standins.signs(vm, self._signs.of(vm, self.inventory.backend_for(vm)))

    def _machine(self, vm: VM) -> Machine:
        return Machine(
            vm,
            self.inventory.backend_for(vm),
            self._signs_of(vm),
            self,
            self._reactor,
            self._now,
            self._settings.answer_by,
        )

    # Beginning and end.

    def start(self, tree: Mapping[str, str]) -> Deferred[Any]:
        """
        Begin with what the state remembers; ask the backends what runs; start nothing but what `keep_up` says.

        The Deferred fires when the VMs of each hypervisor are in the state, or it cannot be asked.
        """
        self._record.start(tree, {vm.name for vm in self._settings.vms})
        self._signs.start()
        self.sharing.start()
        if not self._settings.dry_run:
            self.standins.start()
        self._telling.start(TOLD_AGAIN, now=False)
        return self.inventory.start()

    def stop(self) -> Deferred[None]:
        """Write down what is remembered and leave all VMs as they are."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._telling.stop()
        self._sweep.stop()
        self.inventory.stop()
        if self._fencing is not None:
            self._fencing.stop()
        await self.sharing.stop()
        await self._record.stop()
        await self._signs.stop()
        await self.standins.stop()
        await self.inventory.close()

    # Who belongs to it.

    def enlist(self, vm: VM) -> Machine:
        """Have one VM more, or let the one of that name be as *vm* says; the inventory is to find it then."""
        machine = self.machines.get(vm.name)
        if machine is None:
            machine = self.machines[vm.name] = self._machine(vm)
            self._ownership.enlist(machine)
            self.journal.states[machine.state] += 1
        else:
            self._groups.forget(machine)
            self.standins.forget(machine)
            machine.become(vm, self._signs_of(vm))
            machine.problem(Problem.REMOVED)
            self._sweep.regrant(machine)
        self._groups.enlist(machine)
        self.standins.enlist(machine)
        return machine

    def _enlist_removed(self, vm: VM) -> Machine:
        """Have *vm*, which is in the configuration no more, until it has been stopped, which is when it is idle."""
        hosts = tuple(host.name for host in self._settings.hosts) if vm.backend == HOSTS else ()
        name = vm.name if vm.name not in self.machines else f"{vm.name} ({vm.uuid})"
        machine = self.enlist(attrs.evolve(vm, name=name, hosts=hosts))
        machine.problem(Problem.REMOVED, IS_REMOVED)
        return machine

    def _removed_moved(self, machine: Machine) -> None:
        """Forget *machine*, which is in the configuration no more, if it is down; stop it if its address is taken."""
        if self.machines.get(machine.vm.name) is not machine:
            return
        if machine.state in DOWN or machine.is_gone:
            self._record.stopped(machine)
            dismissed = Deferred.fromCoroutine(self.dismiss(machine, "it is no more"))
            dismissed.addCallback(lambda _: self._record.forget_others())
            dismissed.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))
        elif machine.state is State.UP and self._sweep.lease(machine.vm.name) is not None:
            taken = {ip for one in self.machines.values() if not one.vm.removed for ip in one.vm.ip}
            if taken.intersection(machine.vm.ip):
                ended = Deferred.fromCoroutine(self._sweep.end(machine, "its address is another VM's now"))
                ended.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))

    async def dismiss(self, machine: Machine, reason: str) -> None:
        """
        Stop *machine*, by its mode, if it is up through us; then have it no more. Its names must be gone already.

        If it cannot be stopped, that is tried again as for any other VM, and it is shown until it is down.
        """
        self.release_vm(machine.vm.name)
        while not self.sharing.is_theirs(machine) and (
            machine.state is State.STOPPING or (machine.held and machine.state in WANTED)
        ):
            if await self._stop_if_it_can(machine, reason) is State.UP:
                vm = attrs.evolve(machine.vm, dns=(), needs=(), keep_up=(), use_synjitsu=False, removed=True)
                self.enlist(vm).problem(Problem.REMOVED, IS_REMOVED)
                return
        self._gather()
        machine.gone(reason)
        self.journal.states[machine.state] -= 1
        del self.machines[machine.vm.name]
        self._would_end.pop(machine.vm.name, None)
        self._whose.pop(machine.vm.name, None)
        self.problems.forget(machine.vm.name)
        for part in (
            self.sharing, self._groups, self._ownership, self.inventory, self._sweep, self._record, self.standins,
        ):
            part.forget(machine)

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
            Prohibited, Unproven, NoCapacity: (through the Deferred) the client may not start the VM, or nobody may.
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
            self._count(machine, question.key)
            self.journal.cold += not is_up
        self.journal.warm += is_up
        if machine.state in LEASED and (source is None or self._policy.is_inside(source.host)):
            self._hold(machine)
        if refused is not None:
            # A VM that is up is nobody's to refuse, but what it needs may be.
            return succeed(False)  # noqa: FBT003
        lost = self.inventory.why_lost(machine.backend)
        if not is_up and lost is not None:
            return fail(BackendLost(f"{name}: {lost}"))
        if not machine.joinable and self.sharing.why_apart:
            return fail(ClusterUnavailable(f"{name}: {self.sharing.why_apart}"))
        down = self._groups.down(machine)
        if machine.state is not State.UP or not down:
            return self._summon(machine, asker)
        waits = DeferredList([need.summon(asker) for need in down], fireOnOneErrback=True, consumeErrors=True)
        return waits.addCallbacks(
            lambda ready: all(one for _, one in ready), lambda failure: failure.value.subFailure
        )

    def _admit(self, machine: Machine, source: Source, asker: str) -> JitsuError | None:
        """Return why *source* may not have *machine*; None if it may."""
        if all(one.joinable for one in self._groups.down(machine)):
            return None
        free = self._starts_nothing(machine)
        verdict = self._policy.admit(source, self._now(), self._admission.crowd, free=free)
        if verdict is not Verdict.ADMITTED:
            self.journal.refuse(machine.vm.name, verdict, source.host, asker)
            return self._refused(machine, verdict, asker)
        self._whose[machine.vm.name] = network(packed(source.host)), source.proven
        return None

    def _summon(self, machine: Machine, asker: str) -> Deferred[bool]:
        """Summon *machine*; if its first packets are held, nobody need wait until it is ready."""
        ready = machine.summon(asker)
        if machine.state in ACTIVATING:
            self.sharing.use(machine, self._now())  # who has it may be gone when it is up
        if ready.called or not self.standins.holds(machine):
            return ready
        ready.addErrback(lambda _: None)
        machine.promise()
        return succeed(True)  # noqa: FBT003

    def problems_of(self, machine: Machine) -> list[str]:
        """Return what an operator should know of *machine* besides its state, in sentences."""
        return [*self.problems.of(machine.vm.name), *self.standins.refusals(machine)]

    def wake(self, machine: Machine, host: str) -> None:
        """Start *machine* because *host* has sent a packet for it, as if it had asked for its name."""
        asker = f"{host}, a packet"
        if self._admit(machine, Source(host, 0), asker) is None and not self._settings.dry_run:
            self._hold(machine)
            machine.summon(asker, is_client=False, promised=True).addErrback(lambda _: None)

    def _starts_nothing(self, machine: Machine) -> bool:
        """Say whether a question for *machine*, which is not on its way up, starts nothing this time."""
        if self._settings.dry_run:
            return self._would_end.get(machine.vm.name, -inf) > self._now()
        lost = self.inventory.why_lost(machine.backend) or self.sharing.why_apart
        return machine.is_resting or machine.is_lost or bool(lost)

    def _would_start(self, machine: Machine, question: Question) -> None:
        """Count what would be started, as if it were kept for its lease; nothing is started, held or stopped."""
        name, now = machine.vm.name, self._now()
        self._count(machine, question.key)
        if machine.state is not State.UP and self._would_end.get(name, now) <= now:
            source = question.source
            net = to_text(network(packed(source.host))) if source is not None else "this process"
            self.would_start[name, net, _type(question)] += 1
            self.log.info("{name}: would be started for {net}", name=name, net=net)
        self._would_end[name] = now + machine.vm.idle

    def _refused(self, machine: Machine, verdict: Verdict, asker: str) -> JitsuError:
        """Return the error that says why a VM is not started; log it, but not for each question of a flood."""
        if len(self._told) < MOST_TOLD and (machine.vm.name, verdict) not in self._told:
            self._told.add((machine.vm.name, verdict))
            name, why = machine.vm.name, verdict.value
            self.log.info("{name}: not started for {asker}: {why}", name=name, asker=asker, why=why)
        kinds = {Verdict.UNPROVEN: Unproven, Verdict.FULL: NoCapacity}
        return kinds.get(verdict, Prohibited)(f"{machine.vm.name}: {verdict.value}")

    def start_vm(self, name: str) -> Deferred[bool]:
        """Start a VM because a person wants it; fires when it is up, however long that takes."""
        machine = self.machines[name]
        self._hold(machine)
        return machine.summon("a person", insist=True)

    def stop_vm(self, name: str) -> Deferred[State]:
        """Stop a VM because a person wants it, also one that is held; fires with the state that it ended in."""
        if self.sharing.is_theirs(self.machines[name]):
            return self.sharing.ask(self.machines[name], Ask.STOP)
        self.release_vm(name)
        self._sweep.rest(self.machines[name])
        return self._stop_if_it_can(self.machines[name], "stopped by hand")

    def _stop_if_it_can(self, machine: Machine, reason: str) -> Deferred[State]:
        """Stop *machine*, but leave it as it is if it is known that it cannot be stopped."""
        if machine.state is not State.UP:
            return machine.stop(reason)
        return machine.can_stop().addCallback(lambda can: machine.stop(reason) if can else machine.state)

    def hold_vm(self, name: str) -> Deferred[bool]:
        """
        Start a VM and keep it up, whatever happens, until it is released or stopped by hand, or this process ends.

        Fires when it is up. If it cannot be started, it is not held.
        """
        if self.sharing.is_theirs(self.machines[name]):
            self.sharing.ask(self.machines[name], Ask.HOLD)
            return self.start_vm(name)
        self._sweep.hold(self.machines[name])
        self.journal.hold(name, held=True)
        return self.start_vm(name).addErrback(self._not_held, name)

    def _not_held(self, failure: Failure, name: str) -> Failure:
        self.release_vm(name)
        return failure

    def release_vm(self, name: str) -> None:
        """Let a VM that is held have a lease as any other; it begins now."""
        if self.sharing.is_theirs(self.machines[name]):
            self.sharing.ask(self.machines[name], Ask.RELEASE)
        if self.is_held(name):
            self._sweep.release(self.machines[name])
            self.journal.hold(name, held=False)

    def is_held(self, name: str) -> bool:
        """Say whether a person holds the VM *name*."""
        return self._sweep.is_held(name)

    def stats(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*."""
        self._gather()
        return self._record.of(machine)

    def use_of(self, name: str, key: bytes) -> NameUse:
        """Return what is counted of the name *key*, which is one of the VM *name*."""
        return self._record.use_of(self.machines[name], key)

    def lease(self, name: str) -> Lease | None:
        """
        Return the lease of the VM *name*, which is ready; None if it, or a VM that it needs, is not.

        It is another one each time that the VM comes up.
        """
        ready = all(need.state is State.UP for need in self._groups.needs(self.machines[name]))
        return self._sweep.lease(name) if ready else None

    def lease_left(self, machine: Machine) -> float | None:
        """Return the seconds until *machine* is stopped if nobody uses it; None if it has no lease."""
        return self._sweep.left(machine.vm.name)

    def is_needed(self, machine: Machine) -> bool:
        """Say whether a VM that is not down needs *machine*."""
        return self._groups.is_needed(machine)

    @property
    def is_written(self) -> bool:
        """Whether what is remembered reaches the state."""
        return self._record.is_written

    def keeps(self, machine: Machine) -> str:
        """Return in words what keeps *machine* up; nothing if it has no lease."""
        return self._sweep.keeps(machine)

    def rests(self, machine: Machine) -> float:
        """Return for how many seconds questions do not start *machine*, because it has failed."""
        return max(0.0, machine.retry_at - self._now()) if machine.is_resting else 0.0

    @property
    def leases(self) -> int:
        """How many VMs have a lease."""
        return self._sweep.leases

    @property
    def held(self) -> int:
        """How many VMs a person holds."""
        return self._sweep.held

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
        count, machines, sharing, zero = self._record.count, self.machines, self.sharing, self._wall() - self._now()
        for name, use, times, last in self.uses():
            if not sharing.alone:
                sharing.use(machines[name], last)
            count(name, use, times, zero + last)
            self.journal.warm += times

    def _count(self, machine: Machine, key: bytes) -> None:
        """Count a question for the name *key*, now."""
        self._record.count(machine.vm.name, self._record.use_of(machine, key), 1, self._wall())

    def _hold(self, machine: Machine) -> None:
        """Somebody wants *machine* through us: from now on it has a lease while it is up."""
        machine.held = True
        self._sweep.renew(machine)

    # What the machines tell (`machine.MachineContext`).

    def ask_turn(self, machine: Machine) -> None:
        """Let *machine* boot when its turn comes."""
        if machine.vm.needs:
            Deferred.fromCoroutine(self._after_needs(machine))
        else:
            self._ask_turn(machine)

    async def _after_needs(self, machine: Machine) -> None:
        """Let *machine*, which is queued, boot when what it needs is up."""
        if await self._groups.summon(machine) and machine.state is State.QUEUED:
            self._ask_turn(machine)

    def _ask_turn(self, machine: Machine) -> None:
        """Let *machine*, which is queued, boot in its turn, if it is ours to boot."""
        self.sharing.claim(machine).addCallbacks(self._claimed, self._not_claimed, (machine,), errbackArgs=(machine,))

    def _claimed(self, ours: bool, machine: Machine) -> None:  # noqa: FBT001
        if ours and machine.state is State.QUEUED:
            self._admission.ask(machine, *self._whose.pop(machine.vm.name, ()))

    def _not_claimed(self, failure: Failure, machine: Machine) -> None:
        failure.trap(ClusterUnavailable)
        if machine.state is State.QUEUED:
            machine.refuse(failure.getErrorMessage(), ClusterUnavailable)

    def prove(self, machine: Machine) -> None:
        """Raise `ClusterUnavailable` unless *machine* is ours to start, at this moment."""
        self.sharing.prove(machine)

    def word(self, machine: Machine) -> Deferred[bool] | None:
        """Return what fires when who has *machine* says that it is ready (`Claims.word`)."""
        return self.sharing.word(machine)

    def _owner_is(self, machine: Machine) -> None:
        """Hear that *machine*, which is up, has another owner now, or that its owner is known now."""
        if self._sweep.lease(machine.vm.name) is None:
            self._ownership.came_up(machine, State.UP)
        else:
            self._sweep.pass_on(machine, *self.sharing.since(machine))

    def tell_news(self, commit: str) -> None:
        """Tell the others that the configuration that we share is that commit now."""
        self.sharing.coordinator.put({"news": commit}).addErrback(lambda failure: failure.trap(ClusterUnavailable))

    # What the others tell.

    def _fact_is(self, key: str, value: str | None) -> None:
        """Hear what is not about a VM: of hosts, of the others of us, of the configuration that we share."""
        room, _, name = key.partition("/")
        if room == "nodes" and value is None:
            self.standins.reannounce()
        if room == "drained":
            what, _, name = name.partition("/")
            self.moves.told(what, name, drained=value is not None)
        if room == "news":
            self.on_news(value or "")
        if room == "dead":
            self._placement.host_is(name, dead=value is not None, machines=list(self.machines.values()))

    def _asked(self, machine: Machine, what: Ask, word: str) -> None:
        """Do for another one of us what it has been asked for."""
        name = machine.vm.name
        if what is Ask.STOP:
            self.stop_vm(name)
        elif what is Ask.HOLD:
            self.hold_vm(name).addErrback(lambda _: None)
        elif what is Ask.RELEASE:
            self.release_vm(name)
        else:
            self.moves.asked(machine, word)

    def remembered(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the last start or stop is in the state, and Synjitsu has been told of it.

        What Synjitsu broadcasts must have left before the guest has a port in the bridge.
        """
        both = DeferredList([self._record.written(), self.standins.heard()], consumeErrors=True)
        return both.addCallback(lambda _: None)

    def moved(self, machine: Machine, old: State) -> None:
        """Keep everything in step with *machine*'s state."""
        state = machine.state
        self.standins.moved(machine, old)
        for hear in self.on_move:
            hear(machine)
            for needer in self._groups.needers(machine):
                hear(needer)
        self._admission.moved(machine)
        if state is State.STARTING:
            self._record.started(machine)
            if not self._placement.is_placed(machine):  # else its hosts say where, and wait for that
                self.sharing.place(machine).addErrback(lambda failure: failure.trap(ClusterUnavailable))
        elif state is State.UP:
            self._ownership.came_up(machine, old)
        elif state in LET_GO:
            self._went_down(machine, old)
        if state is not State.UP:
            self._sweep.drop(machine)
        self.sharing.moved(machine)
        self.inventory.moved(machine)
        if machine.vm.removed:
            self._reactor.callLater(0, self._removed_moved, machine)
        self.journal.moved(machine, old, state)

    def _went_down(self, machine: Machine, old: State) -> None:
        self._ownership.went_down(machine, old)
        for need in self._groups.needs(machine):
            if need.held:
                self._sweep.renew(need)
        if old in {State.UP, State.STOPPING, State.UNKNOWN}:
            self._sweep.went_down(machine)

    def booted(self, machine: Machine, outcome: str, clients: int) -> None:
        """Remember how *machine*'s activation ended."""
        self.journal.booted(machine, outcome, clients)

    def may_try_again(self) -> bool:
        """Return whether a VM whose start has failed may be started by itself: not while this process ends."""
        self.journal.retries += self._telling.running
        return self._telling.running

    def problem(self, machine: Machine, kind: Problem, sentences: tuple[str, ...]) -> None:
        """Note what an operator should know of *machine*."""
        self.problems.note(machine.vm.name, kind, sentences)

    # What Synjitsu's side asks (`standins.StandInObserver`).

    def synjitsu_of(self, machine: Machine) -> str | None:
        """Return the endpoint of the Synjitsu that stands in for *machine*; None if there is none."""
        return self._placement.synjitsu_of(machine)

    def is_theirs(self, machine: Machine) -> bool:
        """Return whether another node owns *machine*."""
        return self.sharing.is_theirs(machine)

    async def _found(self, machine: Machine) -> None:
        """Begin with *machine*, which was found at its hypervisor."""
        await self.standins.learn(machine)
        if not self._settings.dry_run:
            self._sweep.keep_times(machine)


def _type(question: Question) -> str:
    return str(QUERY_TYPES.get(question.type, question.type))
