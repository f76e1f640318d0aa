"""
One VM, once, however many ask: the table of `lifecycle`, carried out.

An input goes to `Machine.feed`, which asks the table and, if the state changes, takes the one step that belongs to
entering the new state. A step's end is an input again. So there is never more than one call to the backend under way
for one VM, and everything that may happen meanwhile is in the table.
"""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.errors import BackendError, BackendLost, BootFailed, ClusterUnavailable, JitsuError, NoCapacity, NoSuchVM
from jitsu_tw.ijitsu import ENDED, SHUT_DOWN, SHUTS_DOWN, Guest, IMachine, Power, Start
from jitsu_tw.readiness import has_port
from jitsu_tw.rules.lifecycle import ACTIVATING, CALLING, DOWN, WANTED, Event, State, after, is_tried_again
from jitsu_tw.rules.vitals import Counts, Sign, Window, sign_of_life
from jitsu_tw.settings import READY_WITHIN, RESUMED_WITHIN, Boot, Mode
from jitsu_tw.vm.problems import Problem
from jitsu_tw.vm.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Coroutine, Hashable, Mapping, Sequence
    from typing import Any

    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.ijitsu import IBackend, IReadiness
    from jitsu_tw.settings import VM

SEEN: Final = {
    Power.OFF: Event.OFF,
    Power.RUNNING: Event.RUNNING,
    Power.PAUSED: Event.PAUSED,
    Power.SAVED: Event.SAVED,
}


#: A VM that goes down sooner than this after it was up, in seconds, has failed, unless its guest ended in order.
STEADY: Final = 10.0

#: The reasons of an end in order: the guest has done its work, and the next question starts the VM again at once.
IN_ORDER: Final = frozenset({SHUTS_DOWN, SHUT_DOWN, ENDED})

#: After a second failure in a row, a VM is left alone for a second, after a third for two, and so on, up to this.
LONGEST_REST: Final = 60.0

#: For the last of the seconds in which a guest is to be ready, it is observed.
OBSERVED: Final = 10.0

#: Seconds that a start waits for the state to be written; a commit takes some milliseconds.
WRITTEN_WITHIN: Final = 0.1

#: It does not run.
NOT_RUNNING: Final = frozenset({Power.OFF, Power.PAUSED, Power.SAVED})

#: A guest goes on where it was.
RESUMED: Final = frozenset({Start.RESUMED, Start.RESTORED})

#: The timeline of a VM that was never asked for.
NO_MARKS: Final[Mapping[str, float]] = MappingProxyType({})

#: These failures are not the VM's.
_BLAMELESS: Final = (NoCapacity, ClusterUnavailable)

_MIB: Final = 1 << 20


def rest(failures: int) -> float:
    """Return for how many seconds a VM is left alone after so many failures in a row."""
    return min(LONGEST_REST, 2.0 ** (failures - 2)) if failures > 1 else 0.0


class MachineContext(Protocol):
    """Who keeps the machines: gives them their turn and hears of their moves."""

    def ask_turn(self, machine: Machine) -> None:
        """Feed `Event.ADMIT` to *machine* when it may boot, now or later."""

    def remembered(self) -> Deferred[None]:
        """Fire when what was last heard is written down."""

    def prove(self, machine: Machine) -> None:
        """Raise `ClusterUnavailable` unless *machine* is ours to start, at this moment."""

    def owner_ready(self, machine: Machine) -> Deferred[bool] | None:
        """Return a Deferred that tells when *machine* is ready at its owner node (`IOwnership.owner_ready`)."""

    def moved(self, machine: Machine, old: State) -> None:
        """Hear that *machine* has entered another state."""

    def booted(self, machine: Machine, outcome: str, clients: int) -> None:
        """Hear that *machine*'s activation has ended, ``up`` or ``failed``, and how many clients were answered."""

    def may_try_again(self) -> bool:
        """Return whether a VM whose start has failed may be started by itself; that is counted, if so."""

    def problem(self, machine: Machine, kind: Problem, sentences: tuple[str, ...]) -> None:
        """Note what an operator should know of *machine* (`Problems.note`)."""


@implementer(IMachine)
class Machine:
    """
    A VM at run time.

    Attributes:
        vm: its settings.
        backend: its hypervisor.
        uuid: the backend's; empty until the backend was asked.
        state: where it is in its life.
        ready: it is up, and something said so (False: it has only had all the time that we give).
        managed: Jitsu started it, or was asked for it, so that Jitsu may stop it.
        reason: the last words of whoever changed the state.
        failures: how often in a row it did not come up, or did not stay so.
        retry_at: before this time, a question does not start it.
        boots_instead: it could not go on where it was, or its start has failed, and it is about to be booted.
        marks: the last activation's timeline, to the stop that ended it: each step's time, on the clock `now`.
    """

    # One for each VM, of which there may be very many.
    __slots__ = (
        "_again", "_answer_by", "_cold", "_fault", "_hint", "_hinted", "_how", "_keeper", "_kill", "_missed", "_moves",
        "_now", "_obstacle", "_off", "_promised", "_reactor", "_readiness", "_second", "_silent", "_stopping",
        "_theirs", "_up_at", "_waiters", "_waiting", "_word", "backend", "boots_instead", "failures", "managed",
        "marks", "ready", "reason", "retry_at", "state", "uuid", "vm",
    )  # fmt: skip

    log = Logger()

    def __init__(
        self,
        vm: VM,
        backend: IBackend,
        readiness: Sequence[IReadiness],
        keeper: MachineContext,
        reactor: IReactorTime,
        now: Callable[[], float],
        answer_by: float,
    ) -> None:
        self.vm, self.backend = vm, backend
        self.uuid = ""
        self.state = State.UNKNOWN
        self.ready = False
        self.managed = False
        self.boots_instead = False
        self.reason = self._word = ""
        self.marks: Mapping[str, float] = NO_MARKS
        self.failures = 0
        self.retry_at = 0.0
        self._readiness = readiness
        self._keeper = keeper
        self._reactor, self._now = reactor, now
        self._answer_by = answer_by
        self._waiters: Waiters | None = None
        self._stopping: tuple[Deferred[State], ...] = ()
        self._waiting: Deferred[None] | None = None
        self._hint: Deferred[None] | None = None
        self._moves = 0
        self._how = Start.RAN
        self._up_at = 0.0
        self._kill = self._again = self._cold = self._hinted = self._missed = self._theirs = self._off = False
        self._silent = self._promised = self._second = False
        self._obstacle: str | None = None
        self._fault: type[JitsuError] = BackendLost

    def become(self, vm: VM, readiness: Sequence[IReadiness]) -> None:
        """Be as *vm* says from now on; what is under way ends as it began."""
        self.vm, self._readiness = vm, readiness

    # What others want of it.

    def summon(
        self, asker: Hashable, *, insist: bool = False, is_client: bool = True, promised: bool = False
    ) -> Deferred[bool]:
        """
        Return a Deferred that fires when the VM is ready, starting it if need be, or when `answer_by` has passed.

        However many callers there are, one start runs; each gets a Deferred of its own. Its value says whether the VM
        is ready.

        Args:
            asker: who asks; see `Waiters.add` for one that asks again.
            insist: wait however long it takes, and also for a VM that has just failed.
            is_client: the asker gets an answer, which is counted: not who sends a packet, nor Jitsu itself.
            promised: the asker has the address already, and its packet is held.

        Raises:
            BootFailed, NoCapacity: (through the Deferred) the VM did not start, and why.
            BackendLost, NoSuchVM: (through the Deferred) nobody knows what the VM is doing.
        """
        now = self._now()
        if self.state is State.UP:
            return succeed(self.ready)
        if self.is_lost:
            return fail(self._fault(f"{self.vm.name}: {self.reason}"))
        if self.is_resting and not insist:
            left = f"tried again in {self.retry_at - now:.0f} s"
            return fail(self._fault(f"{self.vm.name}: {self.reason}; {left}"))
        if self._waiters is None or not (self._waiters or self.state in ACTIVATING):
            self._waiters = Waiters(self._reactor, self._answer_by, asker, now)
        waiter = self._waiters.add(asker, now, None if insist else self._late, is_client=is_client)
        self.managed = True
        self._promised |= promised
        self.feed(Event.SUMMON, "asked for")
        return waiter

    @property
    def joinable(self) -> bool:
        """Whether a summons now starts nothing: the VM is up, or on its way, or somebody waits for it already."""
        return self.state in WANTED - {State.CANCELLING} or bool(self._waiters)

    @property
    def asker(self) -> str:
        """Who asked first for what is under way; "nobody" if nobody did."""
        return "nobody" if self._waiters is None else str(self._waiters.first)

    @property
    def is_resting(self) -> bool:
        """Whether a question would not start the VM, because it has failed before."""
        return not self.joinable and self._now() < self.retry_at

    @property
    def is_lost(self) -> bool:
        """Whether nobody can say what the VM is doing, and somebody has said why."""
        return self.state is State.UNKNOWN and bool(self.reason)

    @property
    def is_gone(self) -> bool:
        """Whether the backend knows no such VM any more."""
        return self.state is State.UNKNOWN and self._fault is NoSuchVM

    @property
    def is_unsure(self) -> bool:
        """Whether nobody knows what the VM is doing: it may run."""
        return self.state is State.UNKNOWN or (self.state is State.FAILED and self._fault is BackendLost)

    @property
    def is_failing(self) -> bool:
        """Whether the VM is being stopped because its start has failed."""
        return self._silent and self.state is State.STOPPING

    def booting_for(self, asker: Hashable) -> bool:
        """Say whether *asker* waits for it already: then it asks again because it got no answer yet."""
        return self._waiters is not None and asker in self._waiters and self.joinable

    def can_stop(self) -> Deferred[bool]:
        """
        Return a Deferred that says whether the VM, which is up, can be stopped, as far as that is known.

        What is against its mode is noted. A stop that fails costs the warm answers, and the time of all who ask.
        """
        return Deferred.fromCoroutine(self._can_stop())

    async def _can_stop(self) -> bool:
        mode, self._obstacle = self.vm.mode, None
        if mode in {Mode.DESTROY, Mode.SHUTDOWN}:
            return True
        with contextlib.suppress(BackendError):  # then the stop itself tells
            self._obstacle = await self.backend.obstacle(self.uuid, mode)
        if self._obstacle is None or self._instead is not None:
            return True
        self._cannot_stop(self._obstacle)
        return False

    @property
    def _instead(self) -> Mode | None:
        """By which mode the VM is stopped if it cannot be saved; None if by no other."""
        return self.vm.save_fallback if self.vm.mode is Mode.SAVE else None

    def _cannot_stop(self, why: str) -> None:
        """Note that the VM cannot be stopped by its mode."""
        self.problem(Problem.STOP, f"it cannot be stopped ({self.vm.mode.value}), so it stays up: {why}")

    def stop(self, reason: str, *, off: bool = False) -> Deferred[State]:
        """
        Stop the VM, whoever may be waiting for it; the Deferred says in which state that ended.

        If it is to be *off*, its guest is shut down where its mode would keep it for later.
        """
        self._again, self._off, self._promised = False, off, False
        if self.state in ACTIVATING:
            self._fault = BootFailed
            self._fail_waiters(f"stopped while it was starting: {reason}")
        queued = self.state is State.QUEUED
        self.feed(Event.STOP, reason)
        if queued:
            return self.look(reason).addCallback(lambda _: self.state)
        if self.state not in {State.STOPPING, State.CANCELLING}:
            return succeed(self.state)
        stopped: Deferred[State] = Deferred()
        self._stopping += (stopped,)
        return stopped

    def refuse(self, reason: str, kind: type[JitsuError] = NoCapacity) -> None:
        """Hear, in the queue, that there is no room for the VM, or why else it is not to be."""
        self._fault, self._promised = kind, False
        self._fail_waiters(reason)
        self.feed(Event.STOP, reason)
        self.look(reason)

    def owner_failed(self, reason: str) -> None:
        """Handle, in the queue, that the owner node could not start the VM."""
        self.feed(Event.FAIL, reason)

    def owner_stops(self, reason: str) -> None:
        """
        Wait for the owner node to stop the VM, or to keep it; clients that ask meanwhile wait, too.

        It was up, even if that was not heard of here: no start has failed for which clients were answered early.
        """
        self._promised = False
        if self.state is State.UP:
            self._theirs = True
            self.feed(Event.STOP, reason)

    def owner_keeps(self) -> None:
        """Handle that the VM is not to be stopped after all, or that it has no owner any more."""
        if self._theirs:
            self._theirs = False
            self._hurry()

    def restart(self, reason: str) -> None:
        """Destroy the VM, which gives no sign of life, and boot it: at once, or after a rest if that happens again."""
        if self.state not in {State.UP, State.WAITING}:
            return
        if self.state is State.UP and self._is_steady():
            self.failures = 0
        self._kill = self._again = self._cold = True
        self._failed()
        self.feed(Event.STOP, reason)

    def problem(self, kind: Problem, *sentences: str) -> None:
        """
        Note what an operator should know of the VM; it is logged when it is new, and shown until it is noted anew.

        Args:
            kind: of the problem; each kind is noted on its own.
            sentences: those of that kind, without the VM's name and a full stop; none if there are none any more.
        """
        self._keeper.problem(self, kind, sentences)

    def rebooted(self) -> None:
        """Wait until the guest, which has rebooted itself, is ready again: for a while it cannot be heard of."""
        self.feed(Event.REBOOT, "its guest has rebooted itself")

    def look(self, reason: str) -> Deferred[None]:
        """Ask the backend what the VM is doing and believe it; if a call of ours is under way, when that has ended."""
        self._word = reason
        return Deferred.fromCoroutine(self._look())

    def lost(self, reason: str) -> None:
        """Hear that nobody can say any more what the VM is doing. Who is up stays up; who waits is told."""
        self._fault = BackendLost
        self.feed(Event.LOST, reason)
        self._nobody_knows(reason)

    def gone(self, reason: str) -> None:
        """Hear that the backend knows no such VM any more."""
        self._fault = NoSuchVM
        self.feed(Event.GONE, reason)
        self._nobody_knows(reason)

    def _nobody_knows(self, reason: str) -> None:
        self.reason = reason
        if self.state is State.UNKNOWN:
            self._fail_waiters(reason)

    # The table, carried out.

    def feed(self, event: Event, reason: str = "") -> None:
        """Take one input."""
        state = after(self.state, event)
        if state is not self.state:
            if state is not State.STOPPING or self.state is not State.CANCELLING:
                self.reason = reason  # else why it is stopped has been said already
            self._moves += 1
            self._enter(state)

    def _enter(self, state: State) -> None:
        """Enter *state*: leave what the old one was busy with, tell the keeper, take the new one's step."""
        old, self.state = self.state, state
        in_vain = state is State.FAILED and self._how in RESUMED and old is State.WAITING
        self._leave(old)
        self.boots_instead = in_vain or (state is State.FAILED and self._is_tried_again())
        if state is State.UP or state in DOWN:
            self._second = self.boots_instead
        self._keeper.moved(self, old)
        if self.state is not state:
            return
        if state is State.QUEUED:
            self._keeper.ask_turn(self)
        elif state is State.STARTING:
            self.mark("start")
            self._begin(self._start())
        elif state is State.WAITING:
            waiting = self._begin(self._wait())
            if not waiting.called:
                self._waiting = waiting
        elif state is State.IMAGING:
            self._begin(self._keep_image())
        elif state is State.UP:
            self._up()
        elif in_vain:
            self._boot_instead()
        elif self.boots_instead:
            self._try_again()
        elif state is State.FAILED:
            waiters = self._end_boot("failed")
            if waiters:  # one that is told may ask anew at once, for a VM that is needed
                waiters.fail_all(self._fault, f"{self.vm.name}: {self.reason}")
        elif state is State.STOPPING:
            self.mark("stop")
            self._begin(self._stop())
        elif self._waiters or self._promised:
            self.managed = True
            self.feed(Event.SUMMON, "asked for while it was being stopped")
        elif self._again:
            self._reactor.callLater(max(0.0, self.retry_at - self._now()), self._come_again)
        self._entered(state)

    def _leave(self, old: State) -> None:
        """Leave what the state *old* was busy with, and note what the new one means for the next start."""
        state = self.state
        if old is State.WAITING and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.cancel()
        if state is State.QUEUED:
            self.marks = {"query": self._waiters.since if self._waiters else self._now()}
        if state in ACTIVATING:
            self._fault = BootFailed
        if state is State.WAITING and old is not State.STARTING:
            self._how = Start.RAN
            self.marks = self.marks if old is State.QUEUED else NO_MARKS
        fell = old is State.UP and state is State.OFF and not self._is_steady() and self.reason not in IN_ORDER
        if state is State.FAILED or (fell and self._how is not Start.RAN):  # else another program had started it
            self._failed()
        elif old is State.UP and not self._kill:
            self.failures = 0
        if state in {State.UP, State.UNKNOWN}:
            self._promised = False
        if state in DOWN:
            self.problem(Problem.STOP)
            self.problem(Problem.PORT)

    def _entered(self, state: State) -> None:
        """Tell who waited for a stop that *state* has been entered, and look at what was not looked at before."""
        if state not in {State.STOPPING, State.CANCELLING}:
            stopped, self._stopping = self._stopping, ()
            for deferred in stopped:
                deferred.callback(state)
        if self._missed and self.state not in CALLING:
            self._missed = False
            self.look("found so after the call")

    def _boot_instead(self) -> None:
        """Boot a guest that could not go on where it was."""
        name, how = self.vm.name, self._how.value
        self.log.error("{name}: {how}, but then: {why}; booted", name=name, how=how, why=self.reason)
        self._cold = self.managed = True
        self.feed(Event.SUMMON, f"booted, because it was {how} in vain")

    def _is_tried_again(self) -> bool:
        """Return whether the VM, whose start has failed, is started once more for the clients that have its address."""
        promised = self._promised and self._fault is BootFailed
        return is_tried_again(promised=promised, is_second=self._second) and self._keeper.may_try_again()

    def _try_again(self) -> None:
        """Start the VM once more; the clients that wait still go on waiting."""
        name, why = self.vm.name, self.reason
        words = "{name}: its start failed: {why}; it is tried once more, as clients have its address"
        self.log.warn(words, name=name, why=why)
        self._tell_boot("failed")
        self.managed = True
        self.feed(Event.SUMMON, f"tried once more, as clients have its address: {why}")

    def _is_steady(self) -> bool:
        return self._now() >= self._up_at + STEADY

    def _failed(self) -> None:
        """Count a failure, and rest before the next try; that a host has no room is not the VM's."""
        if self._fault in _BLAMELESS:
            return
        self.failures += 1
        self.retry_at = self._now() + rest(self.failures)

    def _come_again(self) -> None:
        """Boot after a restart, unless that has been done, or undone, meanwhile."""
        again, self._again = self._again, False
        if again and not self.joinable:
            self.managed, self._waiters = True, None
            self.feed(Event.SUMMON, "restarted")

    def _begin(self, step: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Run *step*, the one thing under way for this VM."""
        return Deferred.fromCoroutine(step).addErrback(self._step_failed)

    def _step_failed(self, failure: Any) -> None:
        """Turn a step's failure into an input. Wide: a fault of ours must not leave the VM half started for ever."""
        if failure.check(CancelledError):
            return
        if not failure.check(JitsuError):
            self.log.failure("{name}: unexpected, please report", failure, name=self.vm.name)
        reason = failure.getErrorMessage()
        if self.state is State.STOPPING:
            self._kill = self._again = False
            if failure.check(NoSuchVM):
                self.gone(reason)
                return
            self._silent = False
            if failure.check(BackendLost):
                self.log.error("{name}: cannot be stopped: {error}", name=self.vm.name, error=reason)
            else:
                self._cannot_stop(reason)
            self.feed(Event.STOP_FAILED, reason)
        else:
            self._fault = failure.type if failure.check(*_BLAMELESS, BackendLost, NoSuchVM) else BootFailed
            self.feed(Event.FAIL, reason)
            if failure.check(BackendLost) and self.state is State.FAILED:
                # What became of the call, nobody knows: it may have gone well, or yet go well.
                self.lost(reason)

    async def _start(self) -> None:
        # That it is ours must outlive us from here on; but nobody waits long for a slow disk.
        remembered = self._keeper.remembered().addTimeout(WRITTEN_WITHIN, self._reactor)
        remembered.addErrback(lambda failure: failure.trap(DeferredTimeout))
        memory = None
        with contextlib.suppress(BackendError):
            memory = await self.backend.memory(self.uuid)
        await remembered
        if memory is not None and memory.needed > memory.free:
            message = f"it needs {memory.needed // _MIB} MiB of memory, its host has {memory.free // _MIB} MiB"
            raise NoCapacity(message)
        if self._cold:
            await self.backend.drop_image(self.uuid)
            self._cold = False
        self._keeper.prove(self)
        self._how = await self.backend.start(self.uuid)
        self.mark("started")
        self.feed(Event.STARTED, self._how.value)

    async def _wait(self) -> None:
        """Wait until all signs of readiness hold, but not for ever."""
        limit = RESUMED_WITHIN if self._how in RESUMED else READY_WITHIN
        patience = self._reactor.callLater(limit - OBSERVED, self._give_up, limit)
        signs: list[Deferred[None]] = []
        try:
            if not await self._is_told():
                signs.append(self.backend.ready(self.uuid))
                guest = await self.backend.guest(self.uuid) if self._readiness else Guest()
                restored = self._how is Start.RESTORED
                signs += [sign.wait(self.vm, guest) for sign in self._readiness if sign.anew or not restored]
            # It may have gone down before anybody listened: an event that came during the start call was not believed.
            if await self.backend.state(self.uuid) is Power.OFF:
                signs.insert(0, fail(BackendError("it went down while it was starting")))
            for sign in signs:
                await sign
        except BackendError as error:
            self._drop_signs(signs)
            if isinstance(error, BackendLost) or await self.backend.state(self.uuid) is not Power.RUNNING:
                raise
            self._waiting = None
            self.log.error("{name}: nobody can tell when it is ready: {error}", name=self.vm.name, error=str(error))
            self._not_known_to_be_ready()
            return
        except Exception:
            # One sign is enough to end the wait for all, whatever it was, and so is being cancelled.
            self._drop_signs(signs)
            raise
        finally:
            if patience.active():
                patience.cancel()
        self.ready = True
        self.mark("ready")
        self._waiting = None
        wanted = self.vm.boot_from is Boot.SNAPSHOT and self._how is Start.BOOTED
        how = "" if self._how is Start.BOOTED else self._how.value
        self.feed(Event.IMAGE if wanted else Event.READY, how)

    async def _is_told(self) -> bool:
        """Wait until the owner node tells that the VM is ready; return False if this node is to find out by itself."""
        while (ready := self._keeper.owner_ready(self)) is not None:
            if await ready:
                return True
        return False

    @staticmethod
    def _drop_signs(signs: list[Deferred[None]]) -> None:
        for sign in signs:
            sign.addErrback(lambda _: None)
            sign.cancel()

    def _not_known_to_be_ready(self) -> None:
        """Take a guest for up all the same: so it has a lease, which can end."""
        self.ready = False
        self.feed(Event.READY, "not known to be ready")

    def _give_up(self, limit: float) -> None:
        """Decide on a guest that will not have been ready in *limit* seconds."""
        judged = Deferred.fromCoroutine(self._judge(limit, self._moves))
        judged.addErrback(
            lambda failure: self.log.failure("{name}: unexpected, please report", failure, name=self.vm.name)
        )

    async def _judge(self, limit: float, moves: int) -> None:
        """
        Observe a guest for the rest of its time, and take it for up if it gives a sign of life.

        If it gives none, one that was resumed is booted; one that we have started, and that has a port and has never
        sent a packet, has failed.
        """
        before = await self.counts()
        await deferLater(self._reactor, OBSERVED)
        after = await self.counts()
        if moves != self._moves:
            return
        # How often Synjitsu tries meanwhile, if it does, nobody counts: any packet is a sign of life.
        name, how, sign = self.vm.name, self._how, sign_of_life([Window(before, after)])
        if sign is Sign.NONE and how in RESUMED:
            self.log.error("{name}: {how}, but not ready after {limit} s, so it is booted: {sign}", name=name,
                           how=how.value, limit=limit, sign=sign.value)
            self.restart(f"not ready after it was {how.value}")
        elif sign is Sign.NONE and not after.packets and how is Start.BOOTED and has_port(self.vm, self.backend):
            self._silent = self._kill = True
            self.ready = False
            self._fault = BootFailed
            why = f"its guest did not listen within {limit:g} s, has sent no packet, and does nothing any more"
            self.feed(Event.STOP, why)
        else:
            self.log.warn("{name}: not ready after {limit} s; taken for up", name=name, limit=limit)
            self._not_known_to_be_ready()

    def counts(self) -> Deferred[Counts]:
        """Return what the hypervisor has counted of the guest, as far as that can be read."""
        return Deferred.fromCoroutine(self._counts())

    async def _counts(self) -> Counts:
        try:
            packets = await self.backend.traffic(self.uuid)
            return Counts(packets, await self.backend.cpu_time(self.uuid))
        except BackendError:
            return Counts(None, None)

    async def _keep_image(self) -> None:
        """Keep the image of the guest as it is now; where there can be none, go on without."""
        try:
            await self.backend.keep_image(self.uuid)
            self.mark("imaged")
        except BackendError as error:
            if await self.backend.state(self.uuid) is not Power.RUNNING:
                raise
            self.log.error("{name}: its image is not kept: {error}", name=self.vm.name, error=str(error))
        self.feed(Event.READY)

    async def _stop(self) -> None:
        """Stop the VM in its mode, or, if it is dead, at once; a shutdown that is not followed becomes destroy."""
        mode = Mode.DESTROY if self._kill else self.vm.mode
        if self._off and mode is not Mode.DESTROY:
            mode = Mode.SHUTDOWN
        self._off = False
        if self._theirs:
            if not await self._stops(NOT_RUNNING, lambda: not self._theirs):
                self.feed(Event.STOP_FAILED, "used meanwhile")
                return
            self._theirs = False
        else:
            mode = await self._stop_by(mode)
            if mode is Mode.SHUTDOWN and not await self._goes_down():
                self.log.warn(
                    "{name}: has not shut down in {limit} s; destroyed", name=self.vm.name, limit=self.vm.stop_timeout
                )
                await self.backend.stop(self.uuid, Mode.DESTROY)
        power = await self.backend.state(self.uuid)
        if power is Power.RUNNING:
            message = "it goes on running"
            raise BackendError(message)
        self._kill = False
        self.mark("stopped")
        silent, self._silent = self._silent, False
        self.feed(Event.FAIL if silent else SEEN[power], self.reason)

    async def _stop_by(self, mode: Mode) -> Mode:
        """Ask the backend to stop the VM by *mode*, or by `save_fallback` if it cannot be saved; return by which."""
        instead = self._instead if mode is Mode.SAVE else None
        why, self._obstacle = self._obstacle, None
        if instead is None:
            await self.backend.stop(self.uuid, mode)
            return mode
        if why is None:
            try:
                await self.backend.stop(self.uuid, mode)
            except (BackendLost, NoSuchVM):
                raise
            except BackendError as error:
                why = str(error)
        if why is None:
            self.problem(Problem.FALLBACK)
            return mode
        self.problem(Problem.FALLBACK, f"it cannot be saved, so it is stopped by {instead.value}: {why}")
        await self.backend.stop(self.uuid, instead)
        return instead

    async def _goes_down(self) -> bool:
        """Wait for the guest to shut down; say whether it did so in time."""
        late = self._reactor.callLater(self.vm.stop_timeout, self._hurry)
        try:
            return await self._stops({Power.OFF}, lambda: not late.active())
        finally:
            if late.active():
                late.cancel()

    async def _stops(self, ends: Container[Power], enough: Callable[[], bool]) -> bool:
        """Wait until the VM is one of *ends*, and say so, or for *enough*, looking whenever it is hinted at."""
        self._hinted = False
        while True:
            try:
                if await self.backend.state(self.uuid) in ends:
                    return True
            except BackendLost:
                if not self._theirs:
                    raise
            if enough():
                return False
            if not self._hinted:
                self._hint = Deferred()
                await self._hint
            self._hinted = False

    def _hurry(self) -> None:
        """Make `_stops` look once more."""
        self._hinted = True
        hint, self._hint = self._hint, None
        if hint is not None:
            hint.callback(None)

    async def _look(self) -> None:
        if self.state in CALLING:
            self._missed = True
            self._hurry()
            return
        while True:
            moves = self._moves
            try:
                power = await self.backend.state(self.uuid)
            except NoSuchVM as error:
                self.gone(str(error))
                return
            except BackendError as error:
                self.reason = str(error)
                return
            if self.state in CALLING:
                self._missed = True
                return
            if moves == self._moves:
                break
        # The last that was heard goes with what is seen, and not what made us look.
        self.feed(SEEN[power], self._word)

    # Who waits.

    def mark(self, step: str) -> None:
        """Put *step* into the timeline, if there is one: a VM that was found running has none."""
        if self.marks:
            self.marks = {**self.marks, step: self._now()}

    def _up(self) -> None:
        self._up_at, self._again = self._now(), False
        if self._waiters:
            if self._waiters.have_clients:
                self.answered()
            self._waiters.answer_all(ready=self.ready)
        self._end_boot("up")

    def _late(self, waiter: Deferred[bool]) -> None:
        """Answer one waiter though the VM is not ready; where nobody knows what it is doing, with an error."""
        assert self._waiters is not None
        if self._waiters.is_client(waiter):
            self.promise()
        if self.state is State.UNKNOWN:
            message = f"{self.vm.name}: the hypervisor has not answered yet"
            self._waiters.fail(waiter, BackendLost(message))
        else:
            self._waiters.answer(waiter, ready=False)

    def promise(self) -> None:
        """Note that a client is given the VM's address before the VM is ready."""
        self._promised = self.state in ACTIVATING or self.state is State.STOPPING
        self.answered()

    def answered(self) -> None:
        """Put the first answer into the timeline."""
        if "answered" not in self.marks:
            self.mark("answered")

    def _fail_waiters(self, reason: str) -> None:
        if self._waiters:
            self._waiters.fail_all(self._fault, f"{self.vm.name}: {reason}")

    def _end_boot(self, how: str) -> Waiters | None:
        """Tell the story of the activation; return who still waits for it, and is no more known here."""
        self._tell_boot(how)
        waiters, self._waiters = self._waiters, None
        return waiters

    def _tell_boot(self, how: str) -> None:
        """Tell the whole story of the activation in one line."""
        if "query" not in self.marks:
            return
        asker = self.asker
        begin, clients = self.marks["query"], 0 if self._waiters is None else self._waiters.clients
        self._keeper.booted(self, how, clients)
        self.log.info(
            "{name}: {how}{why} after {total} ms ({steps}) for {asker}, {clients} answered",
            name=self.vm.name,
            how=how,
            why=f" ({self.reason})" if self.reason else "",
            total=round((self._now() - begin) * 1000),
            steps=", ".join(f"{step} {(when - begin) * 1000:.0f}" for step, when in self.marks.items()),
            asker=asker,
            clients=clients,
        )
