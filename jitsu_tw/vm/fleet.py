"""
All VMs: who may boot now, whose lease has ended, what the backends say, what is remembered.

It is asked by name for a VM, by `dns.resolver` and by people. It hears of changes from the backends, and makes sure
that what it believes is what the hypervisor says.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.names.dns import QUERY_TYPES
from zope.interface import implementer

from jitsu_tw.errors import BackendError, BackendLost, JitsuError, NoRoom, Prohibited, StoreError, Unproven
from jitsu_tw.ijitsu import IWatcher
from jitsu_tw.networks import network, packed, to_text
from jitsu_tw.readiness import Signs
from jitsu_tw.store.layout import STATISTICS, NameUse, Stats, difference, label, read_stats, stats_paths, vm_paths
from jitsu_tw.vm.activation import Machine
from jitsu_tw.vm.lease import Lease, Leases
from jitsu_tw.vm.lifecycle import BOOTING, RUNNING, Event, State
from jitsu_tw.vm.policy import Policy, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jitsu_tw.dns.wire import Question
    from jitsu_tw.ijitsu import IBackend, IStore
    from jitsu_tw.settings import VM, Settings

#: Statistics are committed at most this often, in seconds.
COMMIT_EVERY: Final = 5.0

#: After a commit, statistics rest for so many times as long as it took: it takes time from the answers.
SPARE: Final = 20.0

#: At most so many refusals are logged within `COMMIT_EVERY`; they are all counted.
MOST_TOLD: Final = 100

#: States in which a VM that we held is not held any more.
_DOWN: Final = frozenset({State.OFF, State.PAUSED, State.SAVED, State.FAILED})


@attrs.frozen
class Clocks:
    """
    The times that a fleet needs.

    Attributes:
        reactor: calls later.
        now: seconds of a clock that never goes back; leases use it.
        wall: seconds since 1970, for what is remembered.
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
        on_move: called with each machine whose state has changed.
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
    ) -> None:
        """Keep the VMs of *settings*; *backends* are found by a VM's backend and URI."""
        self._settings, self._backends, self._store = settings, backends, store
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._signs = Signs(clocks.reactor)
        self.machines = {vm.name: self._machine(vm) for vm in settings.vms}
        self._by_uuid: dict[str, Machine] = {}
        self._lost: dict[int, str] = {}
        self._turns: deque[Machine] = deque()
        self._booting: set[str] = set()
        self._running: set[str] = set()
        self._policy = Policy(
            settings.summon_from, settings.starts_per_minute, settings.verify_source, settings.max_running
        )
        self.refused: Counter[Verdict] = Counter()
        self.would_start: Counter[tuple[str, str, str]] = Counter()
        self._would_end: dict[str, float] = {}
        self._told: set[tuple[str, Verdict]] = set()
        self._leases = Leases()
        self._sweep: IDelayedCall | None = None
        self._stats: dict[str, Stats] = {}
        self._known: dict[str, Stats] = {}
        self._tree: Mapping[str, str] = {}
        self._unsaved: set[str] = set()
        self._urgent: set[str] = set()
        self._writing: Deferred[None] | None = None
        self._next_save = 0.0
        self._saving = LoopingCall(self._save_if_due)
        self._saving.clock = clocks.reactor
        self.on_move: list[Callable[[Machine], None]] = []
        self.uses: Callable[[], Iterable[tuple[str, bytes, int, float]]] = tuple

    def _machine(self, vm: VM) -> Machine:
        return Machine(
            vm,
            self._backends[vm.backend, vm.connect],
            self._signs.of(vm, self._backends[vm.backend, vm.connect]),
            self,
            self._reactor,
            self._now,
            self._settings.answer_by,
        )

    # Beginning and end.

    def start(self, tree: Mapping[str, str]) -> None:
        """Begin with what the state remembers; ask the backends what runs; start nothing."""
        self._tree = tree
        self._known = read_stats(tree)
        for backend in self._backends.values():
            backend.connect(self)
        self._saving.start(COMMIT_EVERY, now=False)

    def stop(self) -> Deferred[None]:
        """Write down what is remembered and leave all VMs as they are."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._sweep is not None and self._sweep.active():
            self._sweep.cancel()
        self._saving.stop()
        self._gather()
        self._urgent |= self._unsaved
        self._save()
        if self._writing is not None:
            await self._writing
        await DeferredList([backend.close() for backend in self._backends.values()], consumeErrors=True)
        await self._store.close()

    # What is asked of it.

    def summon(self, name: str, question: Question) -> Deferred[bool]:
        """
        Return a Deferred that fires when the VM is ready (True) or the answer is due all the same (False).

        Raises:
            Prohibited, Unproven, NoRoom: (through the Deferred) the client may not start the VM, or nobody may.
            BootFailed, BackendLost: (through the Deferred) as in `Machine.summon`.
        """
        machine = self.machines[name]
        host = question.source.host if question.source else "this process"
        asker = f"{host}, {QUERY_TYPES.get(question.type, question.type)} {label(question.key)}"
        if question.source is not None and not machine.joinable:
            verdict = self._policy.admit(question.source, self._now(), len(self._running))
            if verdict is not Verdict.ADMITTED:
                return fail(self._refused(machine, verdict, asker))
        if self._settings.dry_run:
            self._would_start(machine, question)
            return succeed(True)  # noqa: FBT003
        if not machine.booting_for(asker):
            self._used(machine, question.key)
        if id(machine.backend) in self._lost and machine.state is not State.UP:
            return fail(BackendLost(f"{name}: {self._lost[id(machine.backend)]}"))
        return machine.summon(asker)

    def _would_start(self, machine: Machine, question: Question) -> None:
        """Count what would be started, as if it were kept for its lease; nothing is started, held or stopped."""
        name, now = machine.vm.name, self._now()
        self._count(machine, question.key, 1, self._wall())
        if machine.state is not State.UP and self._would_end.get(name, now) <= now:
            source = question.source
            net = to_text(network(packed(source.host))) if source is not None else "this process"
            self.would_start[name, net, str(QUERY_TYPES.get(question.type, question.type))] += 1
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
        """Start a VM because a person wants it; as `summon`."""
        machine = self.machines[name]
        self._hold(machine)
        return machine.summon("control")

    def stop_vm(self, name: str) -> Deferred[State]:
        """Stop a VM because a person wants it; fires with the state that it ended in."""
        return self.machines[name].stop("stopped by hand")

    def stats(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*."""
        self._gather()
        return self._stats_of(machine)

    def _stats_of(self, machine: Machine) -> Stats:
        return self._stats.setdefault(machine.vm.name, Stats())

    def lease(self, name: str) -> Lease | None:
        """Return the lease of the VM *name*; None if it has none. It is another one each time that the VM comes up."""
        return self._leases.get(name)

    def lease_left(self, machine: Machine) -> float | None:
        """Return the seconds until *machine* is stopped if nobody uses it; None if it has no lease."""
        name = machine.vm.name
        return max(0.0, self._leases[name].ends() - self._now()) if name in self._leases else None

    # Use and leases.

    def _used(self, machine: Machine, key: bytes) -> None:
        """Count a question for *key* and renew the lease."""
        self._count(machine, key, 1, self._wall())
        if machine.state is State.UP:
            self._hold(machine)

    def _count(self, machine: Machine, key: bytes, times: int, last: float) -> None:
        use = self._stats_of(machine).dns.setdefault(label(key), NameUse())
        use.last_request_ts = max(use.last_request_ts, last)
        use.total_requests += times
        self._unsaved.add(machine.vm.name)

    def _gather(self) -> None:
        """Count what was asked for without us; the leases have been renewed where that happened."""
        for name, key, times, last in self.uses():
            self._count(self.machines[name], key, times, self._wall() - (self._now() - last))

    def _hold(self, machine: Machine) -> None:
        """Somebody wants *machine* through us: from now on it has a lease while it is up."""
        machine.held = True
        name, now = machine.vm.name, self._now()
        if name in self._leases:
            self._leases[name].use(now)
        elif machine.state is State.UP:
            self._grant(machine, now, now)

    def _grant(self, machine: Machine, used: float, started: float) -> None:
        self._leases.grant(machine.vm.name, Lease(machine.vm.idle, machine.vm.min_up, used, started))
        self._plan_sweep()

    def _plan_sweep(self) -> None:
        """See to it that the leases are looked at when the next one may end."""
        look = self._leases.next_look()
        if self._sweep is not None and self._sweep.active():
            self._sweep.cancel()
        if look is not None:
            self._sweep = self._reactor.callLater(max(0.0, look - self._now()), self._end_leases)

    def _end_leases(self) -> None:
        for name in self._leases.ended(self._now()):
            machine = self.machines[name]
            self.log.info("{name}: idle for {idle:g} s, stopped ({mode})", name=name, idle=machine.vm.idle,
                          mode=machine.vm.mode.value)
            machine.stop("idle")
        self._plan_sweep()

    # What the machines tell (`activation.Keeper`).

    def ask_turn(self, machine: Machine) -> None:
        """Let *machine* boot when its turn comes."""
        self._turns.append(machine)
        self._give_turns()

    def _give_turns(self) -> None:
        while self._turns and len(self._booting) < self._settings.max_booting:
            machine = self._turns.popleft()
            if machine.state is State.QUEUED:
                self._booting.add(machine.vm.name)
                machine.marks["admitted"] = self._now()
                machine.feed(Event.ADMIT)

    def moved(self, machine: Machine, old: State) -> None:
        """Keep statistics and leases in step with *machine*'s state, and give turns that became free."""
        name, stats, state = machine.vm.name, self._stats_of(machine), machine.state
        for hear in self.on_move:
            hear(machine)
        if state in RUNNING or state is State.QUEUED:
            self._running.add(name)
        else:
            self._running.discard(name)
        if state is State.STARTING:
            stats.start_ts = self._wall()
            stats.total_starts += 1
            self._remember(machine)
        elif state is State.UP:
            self._came_up(machine, old)
        elif state in _DOWN:
            if old in {State.UP, State.WAITING}:
                self.log.info("{name}: {state}: {reason}", name=name, state=state.value, reason=machine.reason)
            machine.held = False
            if max(stats.start_ts, stats.last_request_ts) > stats.stop_ts:
                stats.stop_ts = self._wall()
                self._remember(machine)
        if state is not State.UP:
            self._leases.drop(name)
        if state not in BOOTING and name in self._booting:
            self._booting.discard(name)
            if self._turns:
                self._reactor.callLater(0, self._give_turns)

    def _came_up(self, machine: Machine, old: State) -> None:
        """Give *machine* a lease: a new one if it was asked for, else what is left of the one it had."""
        stats, now, wall = self._stats_of(machine), self._now(), self._wall()
        if not machine.held and max(stats.start_ts, stats.last_request_ts) > stats.stop_ts:
            machine.held = True
            used = now - max(0.0, wall - max(stats.start_ts, stats.last_request_ts))
            self._grant(machine, used, now - max(0.0, wall - stats.start_ts))
            self.log.info(
                "{name}: runs already, adopted; {left:.0f} s of its lease are left",
                name=machine.vm.name,
                left=self.lease_left(machine),
            )
        elif machine.held:
            self._grant(machine, now, now)
        elif old is State.WAITING:
            self.log.info("{name}: runs, but nobody asked for it; left alone", name=machine.vm.name)

    # What the backends tell (`IWatcher`).

    def changed(self, uuid: str, reason: str) -> None:
        """Look at a VM that something happened to."""
        machine = self._by_uuid.get(uuid)
        if machine is not None:
            machine.look(reason)

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

    def _of(self, backend: IBackend) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.backend is backend]

    async def _reconcile(self, backend: IBackend) -> None:
        for machine in self._of(backend):
            try:
                uuid = await backend.look_up(machine.vm)
            except BackendError as error:
                machine.lost(str(error))
                self.log.error("{name}: {error}", name=machine.vm.name, error=str(error))
                continue
            if uuid != machine.uuid:
                self._identify(machine, uuid)
            await machine.look("found so")
        await self._save_configuration()

    def _identify(self, machine: Machine, uuid: str) -> None:
        """Remember which VM of the backend *machine* is, and what the state knows of it."""
        self._by_uuid.pop(machine.uuid, None)
        machine.uuid = uuid
        self._by_uuid[uuid] = machine
        known = self._known.pop(uuid, None)
        if known is not None:
            self._stats[machine.vm.name] = known

    # What is remembered.

    def _remember(self, machine: Machine) -> None:
        """Write *machine*'s statistics now, not when their time comes: a crash must not lose a start or a stop."""
        self._urgent.add(machine.vm.name)
        self._save()

    def _save_if_due(self) -> None:
        """Commit all statistics that have changed, unless that took so long the last time that it must wait."""
        self._told.clear()
        if self._store.lasting and self._writing is None and self._now() >= self._next_save:
            self._gather()
            self._urgent |= self._unsaved
            self._save()

    def _save(self) -> None:
        """Commit what is urgent, and what becomes so meanwhile; one commit at a time."""
        if self._writing is None and self._store.lasting:
            writing = Deferred.fromCoroutine(self._save_urgent())
            if not writing.called:
                self._writing = writing

    async def _save_urgent(self) -> None:
        while self._urgent:
            names, self._urgent = self._urgent, set()
            self._unsaved -= names
            changes: dict[str, str | None] = {}
            for name in names:
                machine = self.machines[name]
                if machine.uuid:
                    changes.update(stats_paths(machine.uuid, self._stats_of(machine)))
            begin = self._now()
            await self._write(changes, STATISTICS)
            self._next_save = self._now() + SPARE * (self._now() - begin)
        self._writing = None

    def _save_configuration(self) -> Deferred[None]:
        """Commit what the configuration says, where the state says otherwise."""
        machines = [machine for machine in self.machines.values() if machine.uuid and self._store.lasting]
        wanted: dict[str, str] = {}
        for machine in machines:
            wanted |= vm_paths(machine.uuid, machine.vm)
        changes = difference(self._tree, wanted, {machine.uuid for machine in machines})
        self._tree = {**self._tree, **wanted}
        return self._write(changes, "Configuration as the file and the command line have it")

    def _write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        if not changes:
            return succeed(None)
        return self._store.write(changes, message).addErrback(self._not_written)

    def _not_written(self, failure: Any) -> None:
        failure.trap(StoreError)
        self.log.error("the state is not written: {error}", error=failure.getErrorMessage())

