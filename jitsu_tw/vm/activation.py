"""
One VM, once, however many ask: the table of `lifecycle`, carried out.

An input goes to `Machine.feed`, which asks the table and, if the state changes, takes the one step that belongs to
entering the new state. A step's end is an input again. So there is never more than one call to the backend under way
for one VM, and everything that may happen meanwhile is in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger

from jitsu_tw.errors import BackendError, BackendLost, BootFailed, JitsuError
from jitsu_tw.ijitsu import Power
from jitsu_tw.settings import READY_WITHIN, Mode
from jitsu_tw.vm.lifecycle import ACTIVATING, CALLING, Event, State, after

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Sequence
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jitsu_tw.ijitsu import IBackend, IReadiness
    from jitsu_tw.settings import VM

SEEN: Final = {
    Power.OFF: Event.OFF,
    Power.RUNNING: Event.RUNNING,
    Power.PAUSED: Event.PAUSED,
    Power.SAVED: Event.SAVED,
}


class Keeper(Protocol):
    """Who keeps the machines: gives them their turn and hears of their moves."""

    def ask_turn(self, machine: Machine) -> None:
        """Feed `Event.ADMIT` to *machine* when it may boot, now or later."""

    def moved(self, machine: Machine, old: State) -> None:
        """Hear that *machine* has entered another state."""


class Machine:
    """
    A VM at run time.

    Attributes:
        vm: its settings.
        backend: its hypervisor.
        uuid: the backend's; empty until the backend was asked.
        state: where it is in its life.
        ready: it is up, and something said so (False: it has only had all the time that we give).
        held: it was started by us or asked for through us, so that we may stop it.
        reason: the last words of whoever changed the state.
        marks: the last activation's timeline, to the stop that ended it: each step's time, on the clock `now`.
    """

    # One for each VM, of which there may be very many.
    __slots__ = (
        "_answer_by", "_asked", "_askers", "_first", "_hint", "_keeper", "_moves", "_now", "_reactor", "_readiness",
        "_stopping", "_waiters", "_waiting", "_wanted", "backend", "held", "marks", "ready", "reason", "state", "uuid",
        "vm",
    )  # fmt: skip

    log = Logger()

    def __init__(
        self,
        vm: VM,
        backend: IBackend,
        readiness: Sequence[IReadiness],
        keeper: Keeper,
        reactor: IReactorTime,
        now: Callable[[], float],
        answer_by: float,
    ) -> None:
        self.vm, self.backend = vm, backend
        self.uuid = ""
        self.state = State.UNKNOWN
        self.ready = False
        self.held = False
        self.reason = ""
        self.marks: dict[str, float] = {}
        self._readiness = readiness
        self._keeper = keeper
        self._reactor, self._now = reactor, now
        self._answer_by = answer_by
        self._waiters: dict[Deferred[bool], IDelayedCall] = {}
        self._askers: dict[Hashable, float] = {}
        self._first: Hashable = None
        self._asked = 0
        self._wanted = 0.0
        self._stopping: tuple[Deferred[State], ...] = ()
        self._waiting: Deferred[None] | None = None
        self._hint: Deferred[None] | None = None
        self._moves = 0

    # What others want of it.

    def summon(self, asker: Hashable) -> Deferred[bool]:
        """
        Return a Deferred that fires when the VM is ready, starting it if need be, or when `answer_by` has passed.

        However many callers there are, one start runs; each gets a Deferred of its own. Its value says whether the VM
        is ready. Who asks again while the VM boots is answered when the first question is due, at once if that has just
        passed: a resolver has closed the port of the question before (Unbound after 0.4 s), and its own client does
        not wait for ever. Who asks again later than that asks anew.

        Raises:
            BootFailed: (through the Deferred) the backend says that the VM did not start.
            BackendLost: (through the Deferred) nobody knows what the VM is doing.
        """
        if self.state is State.UP:
            return succeed(self.ready)
        if self.state is State.UNKNOWN and self.reason:
            return fail(BackendLost(f"{self.vm.name}: {self.reason}"))
        if not self._waiters:
            self._wanted = self._now()
            if self.state not in ACTIVATING:
                self._askers.clear()
        if not self._askers:
            self._first = asker
        now = self._now()
        if now > self._askers.get(asker, now) + self._answer_by:
            del self._askers[asker]
        left = max(0.0, self._askers.setdefault(asker, now + self._answer_by) - now)
        waiter: Deferred[bool] = Deferred(self._forget)
        self._waiters[waiter] = self._reactor.callLater(left, self._late, waiter)
        self.held = True
        self.feed(Event.SUMMON, "asked for")
        return waiter

    @property
    def joinable(self) -> bool:
        """Whether a summons now starts nothing: the VM is up, or on its way, or somebody waits for it already."""
        return self.state in {State.UP, State.QUEUED, State.STARTING, State.WAITING} or bool(self._waiters)

    def booting_for(self, asker: Hashable) -> bool:
        """Say whether *asker* waits for it already: then it asks again because it got no answer yet."""
        return asker in self._askers and (self.state in ACTIVATING or bool(self._waiters))

    def stop(self, reason: str) -> Deferred[State]:
        """Stop the VM, whoever may be waiting for it; the Deferred says in which state that ended."""
        if self.state in ACTIVATING:
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

    def look(self, reason: str) -> Deferred[None]:
        """Ask the backend what the VM is doing and believe it, unless a call of ours is under way."""
        return Deferred.fromCoroutine(self._look(reason))

    def lost(self, reason: str) -> None:
        """Hear that nobody can say any more what the VM is doing. Who is up stays up; who waits is told."""
        self.reason = reason
        if self.state not in CALLING and self.state is not State.UP:
            self._moves += 1
            self._enter(State.UNKNOWN)
            self._fail_waiters(reason, BackendLost)

    # The table, carried out.

    def feed(self, event: Event, reason: str = "") -> None:
        """Take one input."""
        state = after(self.state, event)
        if state is not self.state:
            self.reason = reason
            self._moves += 1
            self._enter(state)

    def _enter(self, state: State) -> None:
        """Enter *state*: leave what the old one was busy with, tell the keeper, take the new one's step."""
        old, self.state = self.state, state
        if old is State.WAITING and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.cancel()
        if old not in ACTIVATING and state is State.QUEUED:
            self.marks = {"query": self._wanted}
            self._asked = 0
        self._keeper.moved(self, old)
        if self.state is not state:
            return
        if state is State.QUEUED:
            self._keeper.ask_turn(self)
        elif state is State.STARTING:
            self.marks["start"] = self._now()
            self._begin(self._start())
        elif state is State.WAITING:
            waiting = self._begin(self._wait())
            if not waiting.called:
                self._waiting = waiting
        elif state is State.UP:
            self._up()
        elif state is State.FAILED:
            self._fail_waiters(self.reason)
            self._end_boot("failed")
        elif state is State.STOPPING:
            self.marks["stop"] = self._now()
            self._begin(self._stop())
        elif state is not State.UNKNOWN and self._waiters:
            self.feed(Event.SUMMON, "asked for while it was being stopped")
        if state not in {State.STOPPING, State.CANCELLING}:
            stopped, self._stopping = self._stopping, ()
            for deferred in stopped:
                deferred.callback(state)

    def _begin(self, step: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Run *step*, the one thing under way for this VM."""
        return Deferred.fromCoroutine(step).addErrback(self._step_failed)

    def _step_failed(self, failure: Any) -> None:
        """Turn a step's failure into an input. Wide: a fault of ours must not leave the VM half started for ever."""
        if failure.check(CancelledError):
            return
        if not failure.check(JitsuError):
            self.log.failure("{name}: unexpected, please report", failure, name=self.vm.name)
        if self.state is State.STOPPING:
            self.log.error("{name}: cannot be stopped: {error}", name=self.vm.name, error=failure.getErrorMessage())
            self.feed(Event.STOP_FAILED, failure.getErrorMessage())
        else:
            self.feed(Event.FAIL, failure.getErrorMessage())

    async def _start(self) -> None:
        await self.backend.start(self.uuid)
        self.marks["started"] = self._now()
        self.feed(Event.STARTED)

    async def _wait(self) -> None:
        """Wait until all signs of readiness hold, but not for ever."""
        patience = self._reactor.callLater(READY_WITHIN, self._give_up)
        signs: list[Deferred[None]] = [self.backend.ready(self.uuid)]
        try:
            if self._readiness:
                macs = await self.backend.macs(self.uuid)
                signs += [readiness.wait(self.vm, macs) for readiness in self._readiness]
            # It may have gone down before anybody listened: an event that came during the start call was not believed.
            if await self.backend.state(self.uuid) is Power.OFF:
                signs.insert(0, fail(BackendError("it went down while it was starting")))
            for sign in signs:
                await sign
        except Exception:
            # One sign is enough to end the wait for all, whatever it was, and so is being cancelled.
            for sign in signs:
                sign.addErrback(lambda _: None)
                sign.cancel()
            raise
        finally:
            if patience.active():
                patience.cancel()
        self.ready = True
        self.marks["ready"] = self._now()
        self._waiting = None
        self.feed(Event.READY)

    def _give_up(self) -> None:
        """Take a guest that nothing is heard of for up, so that its lease can end."""
        self.ready = False
        self.log.warn("{name}: not ready after {limit} s; taken for up", name=self.vm.name, limit=READY_WITHIN)
        self.feed(Event.READY, "not ready, but out of patience")

    async def _stop(self) -> None:
        """Stop the VM in its mode; a shutdown that is not followed becomes destroy."""
        await self.backend.stop(self.uuid, self.vm.mode)
        if self.vm.mode is Mode.SHUTDOWN and not await self._goes_down():
            self.log.warn(
                "{name}: has not shut down in {limit} s; destroyed", name=self.vm.name, limit=self.vm.stop_timeout
            )
            await self.backend.stop(self.uuid, Mode.DESTROY)
        power = await self.backend.state(self.uuid)
        if power is Power.RUNNING:
            message = "it goes on running"
            raise BackendError(message)
        self.marks["stopped"] = self._now()
        self.feed(SEEN[power], self.reason)

    async def _goes_down(self) -> bool:
        """Wait for the guest to shut down; say whether it did so in time."""
        late = self._reactor.callLater(self.vm.stop_timeout, self._hurry)
        try:
            while await self.backend.state(self.uuid) is not Power.OFF:
                if not late.active():
                    return False
                self._hint = Deferred()
                await self._hint
            return True
        finally:
            if late.active():
                late.cancel()

    def _hurry(self) -> None:
        """Make `_goes_down` look once more."""
        hint, self._hint = self._hint, None
        if hint is not None:
            hint.callback(None)

    async def _look(self, reason: str) -> None:
        if self.state in CALLING:
            self._hurry()
            return
        while True:
            moves = self._moves
            try:
                power = await self.backend.state(self.uuid)
            except BackendError as error:
                self.reason = str(error)
                return
            if self.state in CALLING:
                return
            if moves == self._moves:
                break
        self.feed(SEEN[power], reason)

    # Who waits.

    def _up(self) -> None:
        for waiter in list(self._waiters):
            self._answer(waiter, ready=self.ready)
        self._end_boot("up")

    def _late(self, waiter: Deferred[bool]) -> None:
        """Answer one waiter though the VM is not ready; where nobody knows what it is doing, with an error."""
        if self.state is State.UNKNOWN:
            self._forget(waiter)
            waiter.errback(BackendLost(f"{self.vm.name}: the hypervisor has not answered yet"))
        else:
            self._answer(waiter, ready=False)

    def _answer(self, waiter: Deferred[bool], *, ready: bool) -> None:
        """Tell one waiter how things stand."""
        self._forget(waiter)
        self._asked += 1
        self.marks.setdefault("answered", self._now())
        waiter.callback(ready)

    def _forget(self, waiter: Deferred[bool]) -> None:
        late = self._waiters.pop(waiter)
        if late.active():
            late.cancel()

    def _fail_waiters(self, reason: str, kind: type[JitsuError] = BootFailed) -> None:
        for waiter in list(self._waiters):
            self._forget(waiter)
            self._asked += 1
            waiter.errback(kind(f"{self.vm.name}: {reason}"))

    def _end_boot(self, how: str) -> None:
        """Tell the whole story of the activation in one line."""
        self._askers.clear()
        if "query" not in self.marks:
            return
        begin = self.marks["query"]
        self.log.info(
            "{name}: {how}{why} after {total} ms ({steps}) for {asker}, {clients} answered",
            name=self.vm.name,
            how=how,
            why=f" ({self.reason})" if self.reason else "",
            total=round((self._now() - begin) * 1000),
            steps=", ".join(f"{step} {(when - begin) * 1000:.0f}" for step, when in self.marks.items()),
            asker=self._first,
            clients=self._asked,
        )
