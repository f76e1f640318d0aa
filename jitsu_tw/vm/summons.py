"""What queries and packets of clients lead to: a VM is started, waited for, or refused."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.names.dns import QUERY_TYPES

from jitsu_tw.dns.wire import Source
from jitsu_tw.errors import Prohibited
from jitsu_tw.networks import network, to_text
from jitsu_tw.rules.admit import Answer, JoinNeeds, Refuse, admit, refuse
from jitsu_tw.rules.lifecycle import ACTIVATING, STOPS, State
from jitsu_tw.rules.policy import Policy, Verdict
from jitsu_tw.settings import WhenFull
from jitsu_tw.store.layout import label

if TYPE_CHECKING:
    from jitsu_tw.dns.wire import Question
    from jitsu_tw.rules.lease import Lease
    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.parts import Parts

#: A VM in one of these states may have a lease, which is suspended while the VM stops or its guest reboots.
LEASED: Final = STOPS | {State.UP, State.WAITING}

#: At most this many refusals are logged within this many seconds; all are counted.
MOST_LOGGED: Final = 100
LOG_AGAIN: Final = 5.0


class Summons:
    """
    Summons the VMs of a fleet for clients.

    It owns, and nobody else writes: the budgets of client networks, and what a dry run would have started.

    Attributes:
        would_start: in a dry run, how many starts there would have been: by VM, client network and type.
    """

    log = Logger()

    def __init__(self, settings: Settings, fleet: Parts) -> None:
        """Summon the VMs of *fleet* as *settings* allow."""
        self._fleet, self._context, self._dry_run = fleet, fleet.context, settings.dry_run
        self.configure(settings)
        self.would_start: Counter[tuple[str, str, str]] = Counter()
        self._would_end: dict[str, float] = {}
        self._logged: set[tuple[str, Verdict]] = set()
        self._logging = LoopingCall(self._logged.clear)
        self._logging.clock = fleet.context.reactor

    def configure(self, settings: Settings) -> None:
        """Refuse by *settings* from now on; the budgets of all client networks are full."""
        self._policy = Policy(
            settings.summon_from, settings.starts_per_minute, settings.verify_source, settings.max_running,
            settings.when_full is WhenFull.STOP_IDLE,
        )

    def start(self) -> None:
        """Begin to forget which refusals were logged."""
        self._logging.start(LOG_AGAIN, now=False)

    def stop(self) -> None:
        """End that."""
        self._logging.stop()

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more."""
        self._would_end.pop(machine.vm.name, None)

    def summon(self, name: str, question: Question) -> Deferred[bool]:
        """
        Return a Deferred that fires when the VM is ready (True) or the answer is due all the same (False).

        Raises:
            Prohibited, Unproven, NoCapacity: (through the Deferred) the client may not start the VM, or no client may.
            BootFailed, BackendLost, NoSuchVM: (through the Deferred) as in `Machine.summon`.
        """
        fleet, source = self._fleet, question.source
        machine = fleet.machines[name]
        asker = f"{source.host if source else 'this process'}, {_type(question)} {label(question.key)}"
        is_up, needs = machine.state is State.UP, fleet.dependencies.down(machine)
        verdict = self._verdict(machine, needs, source, asker)
        if self._dry_run and (is_up or verdict is Verdict.ADMITTED):
            self._would_start(machine, question)
            return succeed(True)  # noqa: FBT003
        lost = fleet.inventory.why_lost(machine.backend)
        refusal = fleet.cluster.ownership.refusal
        outcome = admit(
            verdict, is_up=is_up, joinable=machine.joinable, needs_down=needs, lost=lost, refusal=refusal
        )
        if is_up or verdict is Verdict.ADMITTED:
            self._count(machine, question, asker)
        if isinstance(outcome, Refuse):
            return fail(outcome.error(f"{name}: {outcome.reason}"))
        if isinstance(outcome, Answer):
            return succeed(False)  # noqa: FBT003
        if isinstance(outcome, JoinNeeds):
            waits = DeferredList([need.summon(asker) for need in needs], fireOnOneErrback=True, consumeErrors=True)
            return waits.addCallbacks(
                lambda ready: all(one for _, one in ready), lambda failure: failure.value.subFailure
            )
        return self._join(machine, asker)

    def admit_new(self, name: str, source: Source) -> None:
        """
        Spend a start of the client *source* for the VM *name*, which is about to be made.

        Raises:
            Prohibited, Unproven, NoCapacity: the client may not start VMs, or no client may.
        """
        if self._dry_run:
            raise Prohibited("a dry run makes no VMs")
        verdict = self._policy.admit(source, self._context.now(), self._fleet.admission.running)
        if verdict is not Verdict.ADMITTED:
            self._note_refusal(verdict, name, source, f"{source.host}, a new name")
            refusal = refuse(verdict)
            raise refusal.error(f"{name}: {refusal.reason}")

    def wake(self, machine: Machine, host: str, *, proven: bool = False) -> None:
        """Start *machine* because the client at *host*, an address that may be *proven*, has sent a packet to it."""
        asker = f"{host}, a packet"
        verdict = self._verdict(machine, self._fleet.dependencies.down(machine), Source(host, 0, proven=proven), asker)
        if verdict is Verdict.ADMITTED and not self._dry_run:
            self._fleet.leases.use(machine)
            machine.summon(asker, is_client=False, promised=True).addErrback(lambda _: None)

    def lease(self, name: str) -> Lease | None:
        """
        Return the lease of the VM *name*, which is ready; None if it, or a VM that it needs, is not.

        It is another one each time that the VM comes up.
        """
        machine = self._fleet.machines[name]
        return None if self._fleet.dependencies.down(machine) else self._fleet.leases.lease(name)

    def _join(self, machine: Machine, asker: str) -> Deferred[bool]:
        """Summon *machine*; if its first packets are held, no client need wait until it is ready."""
        ready = machine.summon(asker)
        if machine.state in ACTIVATING:
            self._fleet.cluster.ownership.note_use(machine, self._context.now())  # its owner may be gone when it is up
        if ready.called or not self._fleet.standins.holds(machine):
            return ready
        ready.addErrback(lambda _: None)
        machine.promise()
        return succeed(True)  # noqa: FBT003

    def _verdict(self, machine: Machine, needs: list[Machine], source: Source | None, asker: str) -> Verdict:
        """Return whether *source* may start *machine*, or the *needs* of one that is up; if so, that is spent."""
        starts = needs if machine.state is State.UP else [machine]
        if source is None or all(one.joinable for one in starts):
            return Verdict.ADMITTED
        free = self._starts_nothing(machine)
        verdict = self._policy.admit(source, self._context.now(), self._fleet.admission.running, free=free)
        name = machine.vm.name
        if verdict is Verdict.ADMITTED:
            self._fleet.admission.note_client(name, network(source.address), proven=source.proven)
        else:
            self._note_refusal(verdict, name, source, asker)
        return verdict

    def _note_refusal(self, verdict: Verdict, name: str, source: Source, asker: str) -> None:
        """Note, for the operator, that the VM *name* is not started for *source*."""
        self._context.journal.refuse(name, verdict, source.host, asker)
        if len(self._logged) < MOST_LOGGED and (name, verdict) not in self._logged:
            self._logged.add((name, verdict))
            self.log.info("{name}: not started for {asker}: {why}", name=name, asker=asker, why=verdict.value)

    def _starts_nothing(self, machine: Machine) -> bool:
        """Return whether a query for *machine*, which is not on its way up, starts nothing this time."""
        if self._dry_run:
            return self._would_end.get(machine.vm.name, -inf) > self._context.now()
        lost = self._fleet.inventory.why_lost(machine.backend) or self._fleet.cluster.ownership.refusal
        return bool(machine.rests) or machine.is_lost or bool(lost)

    def _count(self, machine: Machine, question: Question, asker: str) -> None:
        """Count a query; it renews the lease of a VM that has one, if the client may keep it."""
        is_up, source = machine.state is State.UP, question.source
        if not machine.joins(asker):
            self._fleet.stats.count_query(machine, question.key)
            self._context.journal.totals.cold += not is_up
        self._context.journal.totals.warm += is_up
        if machine.state in LEASED and (source is None or self._policy.is_inside(source.address)):
            self._fleet.leases.use(machine)

    def _would_start(self, machine: Machine, question: Question) -> None:
        """Count what would be started, as if it were kept for its lease; nothing is started, held or stopped."""
        name, now = machine.vm.name, self._context.now()
        self._fleet.stats.count_query(machine, question.key)
        if machine.state is not State.UP and self._would_end.get(name, now) <= now:
            source = question.source
            net = to_text(network(source.address)) if source is not None else "this process"
            self.would_start[name, net, _type(question)] += 1
            self.log.info("{name}: would be started for {net}", name=name, net=net)
        self._would_end[name] = now + machine.vm.idle


def _type(question: Question) -> str:
    return str(QUERY_TYPES.get(question.type, question.type))
