"""
All VMs: what is asked of them by name, and what follows from their moves.

It is asked by `dns.resolver` and by people. Where the VMs are is in `inventory`, whose they are in `adoption`, who may
boot now in `admission`, who is kept in `leases`, who needs whom in `dependencies`, what is remembered in `stats`, what
people are told in `journal`. Which node owns a VM, and on which host it is, is known by `ijitsu.ICluster`.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.names.dns import QUERY_TYPES
from zope.interface import implementer

from jitsu_tw.dns.wire import Source
from jitsu_tw.errors import BackendLost, ClusterUnavailable, JitsuError, NoCapacity, NoSuchVM, Prohibited, Unproven
from jitsu_tw.ijitsu import IClusterEvents, Request
from jitsu_tw.networks import network, packed, to_text
from jitsu_tw.readiness import Strategies
from jitsu_tw.rules.lifecycle import ACTIVATING, DOWN, STOPS, WANTED, State
from jitsu_tw.rules.policy import Policy, Verdict
from jitsu_tw.settings import HOSTS, WhenFull
from jitsu_tw.store.layout import label
from jitsu_tw.vm.admission import Admission
from jitsu_tw.vm.adoption import LET_GO, Adoption
from jitsu_tw.vm.dependencies import Dependencies
from jitsu_tw.vm.health import HealthChecks
from jitsu_tw.vm.inventory import Inventory
from jitsu_tw.vm.journal import Journal
from jitsu_tw.vm.leases import LeaseKeeper
from jitsu_tw.vm.machine import Machine
from jitsu_tw.vm.problems import Problem, Problems
from jitsu_tw.vm.standins import StandInControl, StandIns
from jitsu_tw.vm.stats import StatsStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.python.failure import Failure

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.dns.wire import Question
    from jitsu_tw.ijitsu import IBackend, ICluster, IMachine, IReadiness, IStore
    from jitsu_tw.rules.lease import Lease
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.store.layout import NameUse, Stats
    from jitsu_tw.vm.leases import LeaseStatus

#: What an operator reads of a VM that the configuration has no more.
IS_REMOVED: Final = "the configuration has it no more, but Jitsu had started it; it is stopped when nobody uses it"

#: A VM in one of these states may have a lease, which is suspended while the VM stops or its guest reboots.
LEASED: Final = STOPS | {State.UP, State.WAITING}

#: At most so many refusals are logged within so many seconds; they are all counted.
MOST_TOLD: Final = 100
TOLD_AGAIN: Final = 5.0


@implementer(IClusterEvents)
class Fleet:
    """
    All VMs of a configuration.

    Attributes:
        machines: by the VM's name.
        would_start: in a dry run, how many starts there would have been: by VM, client network and type.
        standins: announces VMs to Synjitsu, where one is used.
        inventory: where the VMs are.
        cluster: the nodes and hosts.
        ownership: which node owns a VM.
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
        make_cluster: Callable[[Mapping[str, IMachine], IClusterEvents], ICluster],
        make_standins: Callable[..., StandIns] = StandInControl,
    ) -> None:
        """Keep the VMs of *settings*; *backends* are found by a VM's backend and URI."""
        self._settings = settings
        self.reactor, self.now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self.answer_by = settings.answer_by
        self._signs = Strategies(clocks.reactor)
        self.machines: dict[str, Machine] = {}
        self.journal = Journal(clocks)
        self.problems = Problems()
        endpoints = dict.fromkeys(filter(None, (settings.synjitsu, *(host.synjitsu for host in settings.hosts))))
        self.standins = StandIns()
        if endpoints:
            secret = settings.synjitsu_secret or ""
            self.standins = make_standins(endpoints, self.machines, self.reactor, self._signs, self, secret)
        self._groups = Dependencies(self.machines)
        self.cluster = make_cluster(self.machines, self)
        self.ownership = self.cluster.ownership
        self._record = StatsStore(store, self.machines, clocks, settings.commit_every, self.gather)
        self.inventory = Inventory(backends, self.machines, self._record, self.journal, clocks.reactor, self)
        self._health = HealthChecks(clocks, self._signs, self.ownership)
        self._sweep = LeaseKeeper(self.machines, clocks, self._groups.is_needed, self.ownership, self._health)
        self._wakeups = self._sweep.wakeups
        self._adoption = Adoption(self._record, self._sweep, self.ownership, clocks, dry_run=settings.dry_run)
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

    def readiness(self, machine: Machine) -> Sequence[IReadiness]:
        """Return the strategies that tell when the guest of *machine* is ready."""
        return self.standins.signs(machine.vm, self._signs.of(machine.vm, machine.backend))

    # Beginning and end.

    def start(self, tree: Mapping[str, str]) -> Deferred[Any]:
        """
        Begin with what the state remembers; ask the backends what runs; start nothing but what `keep_up` says.

        The Deferred fires when the VMs of each hypervisor are in the state, or it cannot be asked.
        """
        self._record.start(tree, {vm.name for vm in self._settings.vms})
        self._signs.start()
        self.cluster.start()
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
        await self.cluster.stop()
        await self._record.stop()
        await self._signs.stop()
        await self.standins.stop()
        await self.inventory.close()

    # Who belongs to it.

    def enlist(self, vm: VM) -> Machine:
        """Have one VM more, or let the one of that name be as *vm* says; the inventory is to find it then."""
        machine = self.machines.get(vm.name)
        if machine is None:
            machine = self.machines[vm.name] = Machine(vm, self.inventory.backend_for(vm), self)  # type: ignore[arg-type]
            self._adoption.enlist(machine)
            self.journal.states[machine.state] += 1
        else:
            self._groups.forget(machine)
            self.standins.forget(machine)
            machine.note(vm=vm)
            machine.problem(Problem.REMOVED)
            self._sweep.regrant(machine)
        self._groups.enlist(machine)
        self.standins.enlist(machine)
        return machine

    def enlist_removed(self, vm: VM) -> Machine:
        """Have *vm*, which is in the configuration no more, until it has been stopped, which is when it is idle."""
        hosts = tuple(host.name for host in self._settings.hosts) if vm.backend == HOSTS else ()
        name = vm.name if vm.name not in self.machines else f"{vm.name} ({vm.uuid})"
        machine = self.enlist(attrs.evolve(vm, name=name, hosts=hosts))
        machine.problem(Problem.REMOVED, IS_REMOVED)
        return machine

    def removed_moved(self, machine: Machine) -> None:
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
        while not self.ownership.is_others(machine) and (
            machine.state in STOPS or (machine.managed and machine.state in WANTED)
        ):
            if await self._stop_if_it_can(machine, reason) is State.UP:
                vm = attrs.evolve(machine.vm, dns=(), needs=(), keep_up=(), use_synjitsu=False, removed=True)
                self.enlist(vm).problem(Problem.REMOVED, IS_REMOVED)
                return
        self.gather()
        machine.lose(reason, NoSuchVM)
        self.journal.states[machine.state] -= 1
        del self.machines[machine.vm.name]
        self._would_end.pop(machine.vm.name, None)
        self._whose.pop(machine.vm.name, None)
        self.problems.forget(machine.vm.name)
        for part in (
            self.ownership, self._groups, self._adoption, self.inventory, self._sweep, self._record, self.standins,
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
        if not machine.joins(asker):
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
        if not machine.joinable and self.ownership.refusal:
            return fail(ClusterUnavailable(f"{name}: {self.ownership.refusal}"))
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
        verdict = self._policy.admit(source, self.now(), self._admission.crowd, free=free)
        if verdict is not Verdict.ADMITTED:
            self.journal.refuse(machine.vm.name, verdict, source.host, asker)
            return self._refused(machine, verdict, asker)
        self._whose[machine.vm.name] = network(packed(source.host)), source.proven
        return None

    def _summon(self, machine: Machine, asker: str) -> Deferred[bool]:
        """Summon *machine*; if its first packets are held, nobody need wait until it is ready."""
        ready = machine.summon(asker)
        if machine.state in ACTIVATING:
            self.ownership.note_use(machine, self.now())  # its owner may be gone when it is up
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
            return self._would_end.get(machine.vm.name, -inf) > self.now()
        lost = self.inventory.why_lost(machine.backend) or self.ownership.refusal
        return machine.is_resting or machine.is_lost or bool(lost)

    def _would_start(self, machine: Machine, question: Question) -> None:
        """Count what would be started, as if it were kept for its lease; nothing is started, held or stopped."""
        name, now = machine.vm.name, self.now()
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
        if self.ownership.is_others(self.machines[name]):
            return self.ownership.request(self.machines[name], Request.STOP)
        self.release_vm(name)
        self._wakeups.stopped(self.machines[name])
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
        if self.ownership.is_others(self.machines[name]):
            self.ownership.request(self.machines[name], Request.HOLD)
            return self.start_vm(name)
        self._wakeups.hold(self.machines[name])
        self.journal.hold(name, held=True)
        return self.start_vm(name).addErrback(self._not_held, name)

    def _not_held(self, failure: Failure, name: str) -> Failure:
        self.release_vm(name)
        return failure

    def release_vm(self, name: str) -> None:
        """Let a VM that is held have a lease as any other; it begins now."""
        if self.ownership.is_others(self.machines[name]):
            self.ownership.request(self.machines[name], Request.RELEASE)
        if self.is_held(name):
            self._wakeups.release(self.machines[name])
            self.journal.hold(name, held=False)

    def is_held(self, name: str) -> bool:
        """Say whether a person holds the VM *name*."""
        return self._wakeups.is_held(name)

    def stats(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*."""
        self.gather()
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
        status = self._sweep.status(machine)
        return None if status is None else status.left

    def is_needed(self, machine: Machine) -> bool:
        """Say whether a VM that is not down needs *machine*."""
        return self._groups.is_needed(machine)

    @property
    def is_written(self) -> bool:
        """Whether what is remembered reaches the state."""
        return self._record.is_written

    def lease_status(self, machine: Machine) -> LeaseStatus | None:
        """Return until when *machine* is kept, and why; None if it has no lease."""
        return self._sweep.status(machine)

    def rests(self, machine: Machine) -> float:
        """Return for how many seconds questions do not start *machine*, because it has failed."""
        return max(0.0, machine.failures.retry_at - self.now()) if machine.is_resting else 0.0

    @property
    def leases(self) -> int:
        """How many VMs have a lease."""
        return self._sweep.leases

    @property
    def held(self) -> int:
        """How many VMs a person holds."""
        return self._wakeups.held

    @property
    def keepers(self) -> Callable[[str], bool] | None:
        """Says of a client's address whether its questions keep VMs up; None if all do."""
        return None if self._policy.is_open else self._policy.is_inside

    def check(self, name: str) -> None:
        """See whether the VM *name*, which is up and in use, is alive."""
        self._health.check(self.machines[name])

    # Use.

    def gather(self) -> None:
        """Count what was asked for without us; the leases have been renewed where that happened."""
        count, machines, zero = self._record.count, self.machines, self._wall() - self.now()
        for name, use, times, last in self.uses():
            self.ownership.note_use(machines[name], last)
            count(name, use, times, zero + last)
            self.journal.warm += times

    def _count(self, machine: Machine, key: bytes) -> None:
        """Count a question for the name *key*, now."""
        self._record.count(machine.vm.name, self._record.use_of(machine, key), 1, self._wall())

    def _hold(self, machine: Machine) -> None:
        """Somebody wants *machine* through us: from now on it has a lease while it is up."""
        machine.note(managed=True)
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
        """Let *machine*, which is queued, boot in its turn, if this node owns it then."""
        self.ownership.claim(machine).addCallbacks(self._claimed, self._not_claimed, (machine,), errbackArgs=(machine,))

    def _claimed(self, own: bool, machine: Machine) -> None:  # noqa: FBT001
        if own and machine.state is State.QUEUED:
            self._admission.ask(machine, *self._whose.pop(machine.vm.name, ()))

    def _not_claimed(self, failure: Failure, machine: Machine) -> None:
        failure.trap(ClusterUnavailable)
        if machine.state is State.QUEUED:
            machine.refuse(failure.getErrorMessage(), ClusterUnavailable)

    def prove(self, machine: Machine) -> None:
        """Raise `ClusterUnavailable` if another node can start *machine* at this moment."""
        self.ownership.prove(machine)

    def owner_ready(self, machine: Machine) -> Deferred[bool] | None:
        """Return a Deferred that tells when *machine* is ready at its owner node (`IOwnership.owner_ready`)."""
        return self.ownership.owner_ready(machine)

    # What the cluster tells (`ijitsu.IClusterEvents`).

    def was_started(self, name: str) -> bool:
        """Return whether the state says that this node had started the VM, and has not seen it down since."""
        return name in self.machines and self._record.is_ours(self.machines[name])

    def claim_free(self, name: str) -> None:
        """Claim the VM, which is queued: its claim has become free."""
        if name in self.machines:
            self._ask_turn(self.machines[name])

    def owner_changed(self, name: str) -> None:
        """Give the VM, which is up, the lease that its owner demands."""
        machine = self.machines.get(name)
        if machine is not None and self._sweep.lease(name) is None:
            self._adoption.came_up(machine, State.UP)
        elif machine is not None:
            self._sweep.owner_changed(machine, *self.ownership.times(machine))

    def used(self, name: str, when: float) -> None:
        """Renew the lease of the VM, which was used through another node at *when*."""
        if name in self.machines:
            self._sweep.used(self.machines[name], when)

    def requested(self, name: str, request: Request) -> None:
        """Do for another node what it asks of this one, which owns the VM."""
        if request is Request.STOP:
            self.stop_vm(name)
        elif request is Request.HOLD:
            self.hold_vm(name).addErrback(lambda _: None)
        elif request is Request.RELEASE:
            self.release_vm(name)

    def speaker_changed(self, name: str) -> None:
        """Announce the VM to Synjitsu anew: its owner, or its host, may be another one."""
        if name in self.machines:
            self.standins.owner_changed(self.machines[name])

    def node_left(self) -> None:
        """Announce all VMs to Synjitsu anew: it forgets what a node has announced that is gone."""
        self.standins.reannounce()

    def configuration_published(self, commit: str) -> None:
        """Pass on that a node has published *commit* as the configuration."""
        self.on_news(commit)

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
        elif state is State.UP:
            self._adoption.came_up(machine, old)
        elif state in LET_GO:
            self._went_down(machine, old)
        if state is not State.UP:
            self._sweep.drop(machine)
        self.ownership.moved(machine)
        self.inventory.moved(machine)
        if machine.vm.removed:
            self.reactor.callLater(0, self.removed_moved, machine)
        self.journal.moved(machine, old, state)

    def _went_down(self, machine: Machine, old: State) -> None:
        self._adoption.went_down(machine, old)
        for need in self._groups.needs(machine):
            if need.managed:
                self._sweep.renew(need)
        if old in STOPS | {State.UP, State.UNKNOWN}:
            self._wakeups.went_down(machine)

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
        return self.cluster.synjitsu(machine)

    def is_others(self, machine: Machine) -> bool:
        """Return whether another node owns *machine*."""
        return self.ownership.is_others(machine)

    # What the inventory reports (`inventory.InventoryObserver`).

    def hinted(self, machine: Machine) -> None:
        """Tell Synjitsu's side that a hypervisor has sent an event for *machine*."""
        self.standins.changed(machine)

    def replaced(self, machine: Machine) -> None:
        """Disown *machine*, whose name another VM has now."""
        self._adoption.is_another(machine)

    async def found(self, machine: Machine) -> None:
        """Begin with *machine*, which was found at its hypervisor."""
        await self.standins.learn(machine)
        if not self._settings.dry_run:
            self._wakeups.watch(machine)


def _type(question: Question) -> str:
    return str(QUERY_TYPES.get(question.type, question.type))
