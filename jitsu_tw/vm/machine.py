"""
One VM at run time: one activation, however many clients ask.

An input goes to `Machine.feed`, which asks the table of `rules.lifecycle` for the next state and, if that is another
one, takes the step that belongs to it (`steps`). The end of a step is an input again. So at most one call to the
backend is under way for one VM, and what an input means meanwhile is in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import deferred, report, spawn
from jitsu_tw.errors import BackendError, BackendLost, BootFailed, JitsuError, NoCapacity, NoSuchVM
from jitsu_tw.rules.life import BLAMELESS, Again, Life
from jitsu_tw.rules.lifecycle import ACTIVATING, CALLING, DOWN, PREPARES, STOPS, WANTED, Event, State, Stop, after
from jitsu_tw.settings import Mode
from jitsu_tw.vm import steps
from jitsu_tw.vm.interfaces import IRunning
from jitsu_tw.vm.problems import Problem
from jitsu_tw.vm.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Coroutine, Hashable
    from typing import Any

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.rules.lifecycle import Start
    from jitsu_tw.settings import VM
    from jitsu_tw.vm.interfaces import IMachineContext


@attrs.define(eq=False)
class _Look:
    """
    The backend is to be asked what the VM does.

    Attributes:
        reason: what led to it, last.
        again: the backend is to be asked, or once more, because something has happened since it was.
        busy: it is being asked.
        done: fire when it has answered.
        hint: fires when something happens while a call of ours is under way.
    """

    reason: str = ""
    again: bool = True
    busy: bool = False
    done: list[Deferred[None]] = attrs.field(factory=list)
    hint: Deferred[None] | None = None

    def end(self) -> None:
        """Tell those who wait that the backend has answered."""
        done, self.done = self.done, []
        for one in done:
            one.callback(None)


@implementer(IRunning)
class Machine(Life):
    """
    A VM at run time. Nobody else writes its attributes.

    Attributes:
        vm: its settings.
        backend: its hypervisor.
        uuid: the backend's; empty until the backend was asked.
        waiters: the clients that wait for its activation; None where there is none.
    """

    __slots__ = ("_context", "_look", "_stopped", "_unseen", "_waiting", "backend", "uuid", "vm", "waiters")

    log = Logger()

    def __init__(self, vm: VM, backend: IBackend, context: IMachineContext) -> None:
        """Begin in the state UNKNOWN: the backend has not been asked yet."""
        super().__init__()
        self.vm, self.backend, self.uuid, self._unseen = vm, backend, "", ""
        self.waiters: Waiters | None = None
        self._context = context
        self._waiting: Deferred[None] | None = None
        self._stopped: tuple[Deferred[State], ...] = ()
        self._look: _Look | None = None

    @property
    def joinable(self) -> bool:
        """Whether a summons now starts nothing: the VM is up, or on its way, or a client waits for it already."""
        return self.state in WANTED - {State.CANCELLING} or bool(self.waiters)

    @property
    def rests(self) -> float:
        """For how many seconds a query does not start the VM, because it has failed before."""
        return 0.0 if self.joinable else max(0.0, self.failures.retry_at - self._context.now())

    @property
    def asker(self) -> str:
        """The first that asked for the activation that is under way; "nobody" if Jitsu itself began it."""
        return "nobody" if self.waiters is None else str(self.waiters.first)

    def joins(self, asker: Hashable) -> bool:
        """Return whether *asker* waits for the VM already, so that it asks again because it got no answer yet."""
        return self.waiters is not None and asker in self.waiters and self.joinable

    def note(self, *, managed: bool | None = None, vm: VM | None = None, uuid: str | None = None) -> None:
        """
        Note what is known now; a step that is under way ends as it began.

        Args:
            managed: Jitsu may stop the VM, or may not.
            vm: its settings.
            uuid: the backend's name for it.
        """
        self.managed = self.managed if managed is None else managed
        self.vm = self.vm if vm is None else vm
        self.uuid = self.uuid if uuid is None else uuid

    # Starting.

    def summon(
        self, asker: Hashable, *, insist: bool = False, is_client: bool = True, promised: bool = False
    ) -> Deferred[bool]:
        """
        Start the VM if need be; return a Deferred that fires when it is ready, or when `answer_by` has passed.

        However many callers there are, one start runs; each gets a Deferred of its own. Its value says whether the VM
        is ready.

        Args:
            asker: the client, or what else wants the VM; see `Waiters.add` for one that asks again.
            insist: wait however long it takes, and start also a VM that has just failed.
            is_client: the asker gets an answer, which is counted: neither the sender of a packet nor Jitsu itself.
            promised: the asker has the address already, and its packet is held.

        Raises:
            BootFailed, NoCapacity: (through the Deferred) the VM did not start, and why.
            BackendLost, NoSuchVM: (through the Deferred) nobody can tell what the VM does.
        """
        now = self._context.now()
        if self.state is State.UP:
            return succeed(self.ready)
        if self.is_lost:
            return fail(self.fault(f"{self.vm.name}: {self.reason}"))
        if self.rests and not insist:
            return fail(self.fault(f"{self.vm.name}: {self.reason}; tried again in {self.rests:.0f} s"))
        if self.waiters is None or not (self.waiters.are_owed or self.state in ACTIVATING):
            self.waiters = Waiters(self._context.reactor, self._context.answer_by, asker, now)
        waiter = self.waiters.add(asker, now, None if insist else self._late, is_client=is_client)
        self.waiters.promised |= promised
        self.managed = True
        self.feed(Event.SUMMON, "asked for")
        return waiter

    def promise(self) -> None:
        """Note that a client is given the VM's address before the VM is ready."""
        if self.waiters is not None:
            self.waiters.promised = self.state in ACTIVATING or self.state in STOPS
        self._answered()

    def request(self) -> None:
        """Ask for the boot of the VM, which is queued; again if its claim is free only now."""
        spawn(self.log, self._context.queue.request(self), self.vm.name)

    def admit(self) -> None:
        """Boot the VM, which is queued."""
        self.mark("admitted")
        self.feed(Event.ADMIT)

    def refuse(self, reason: str, kind: type[JitsuError] = NoCapacity) -> None:
        """Fail those who wait for the VM, which is queued, with an error of *kind*; it is not started."""
        self.fault = kind
        self._no_promise()
        self._fail_waiters(reason)
        self.feed(Event.STOP, reason)
        self.look(reason)

    # Stopping.

    @deferred
    async def can_stop(self) -> bool:
        """
        Return whether the VM, which is up, can be stopped, as far as that is known; note what is against its mode.

        A stop that fails costs the warm answers, and the time of all who ask.
        """
        obstacle = await steps.obstacle(self)
        if obstacle is None or steps.fallback(self.vm) is not None:
            return True
        self._cannot_stop(obstacle)
        return False

    def stop(self, reason: str, *, off: bool = False) -> Deferred[State]:
        """
        Stop the VM, even if clients wait for it; the Deferred fires with the state in which that ended.

        If it is to be *off*, its guest is shut down where its mode would keep its memory.
        """
        self._no_promise()
        if self.state in ACTIVATING:
            self.fault = BootFailed
            self._fail_waiters(f"stopped while it was starting: {reason}")
        queued = self.state is State.QUEUED
        self.feed(self.order_stop(Mode.SHUTDOWN if off and self.vm.mode is not Mode.DESTROY else self.vm.mode), reason)
        if queued:
            return self.look(reason).addCallback(lambda _: self.state)
        if self.state not in STOPS and self.state is not State.CANCELLING:
            return succeed(self.state)
        stopped: Deferred[State] = Deferred()
        self._stopped += (stopped,)
        return stopped

    def restart(self, reason: str) -> None:
        """Destroy the VM, which gives no sign of life, and boot it: at once, or after a rest if that happens again."""
        if self.state in {State.UP, State.WAITING}:
            self.feed(self.order_restart(self._context.now()), reason)

    def owner_keeps(self) -> None:
        """Handle that the VM is not to be stopped after all, or that it has no owner any more."""
        if self.state is State.OWNER_STOPPING:  # it may be down by now
            self.look(self.reason).addCallback(lambda _: self.feed(Event.OWNER_KEEPS, "used meanwhile"))

    # What the backend reports.

    def look(self, reason: str) -> Deferred[None]:
        """
        Ask the backend what the VM does, because of *reason*, and enter that state; the Deferred fires afterwards.

        While a call of ours is under way, that is done when the call has ended, and the Deferred fires at once.
        """
        look = self._look = self._look or _Look()
        look.reason, look.again = reason, True
        if self.state in CALLING:
            hint, look.hint = look.hint, None
            if hint is not None:
                hint.callback(None)
            return succeed(None)
        done: Deferred[None] = Deferred()
        look.done.append(done)
        if not look.busy:
            asked = self._ask(look).addErrback(lambda failure: report(self.log, self.vm.name, failure))
            asked.addCallback(lambda _: look.end())
        return done

    @deferred
    async def _ask(self, look: _Look) -> None:
        """Ask the backend until its answer is not older than the last change, and enter that state."""
        look.busy, power = True, None
        try:
            while look.again and self.state not in CALLING:
                look.again = False
                power = await self.backend.state(self.uuid)
        except NoSuchVM as error:
            look.again, power = False, None
            self.lose(str(error), NoSuchVM)
        except BackendError as error:
            look.again, power = False, None
            self.reason = self._unseen = str(error)  # until it can be asked again
        finally:
            look.busy = False
            if not look.again and self._look is look:
                self._look = None
        if power is not None and not look.again:
            self.reason, self._unseen = self.reason if self.reason != self._unseen else "", ""
            self.feed(steps.SEEN[power], look.reason)

    def hinted(self) -> Deferred[None]:
        """Return a Deferred that fires when something has happened since the last call, while a step is under way."""
        look, self._look = self._look, _Look(again=False)
        if look is not None and look.again:
            return succeed(None)
        self._look.hint = Deferred()
        return self._look.hint

    def lose(self, reason: str, kind: type[JitsuError] = BackendLost) -> None:
        """
        Handle that the backend cannot tell what the VM does, or knows no such VM any more (`NoSuchVM`).

        A VM that is up is taken to stay so where the backend cannot be asked; clients that wait are told.
        """
        self.fault = kind
        self.feed(Event.GONE if kind is NoSuchVM else Event.LOST, reason)
        self.reason = reason
        if self.state is State.UNKNOWN:
            self._fail_waiters(reason)

    def problem(self, kind: Problem, *sentences: str) -> None:
        """Note what an operator should know of the VM, without its name (`Problems.note`)."""
        self._context.problems.note(self.vm.name, kind, sentences)

    # The table, carried out.

    def feed(self, event: Event, reason: str = "") -> None:
        """Handle one input."""
        if event is Event.OWNER_STOPS:  # it was up, even if that was not known here: no start has failed
            self._no_promise()
        state = after(self.state, event)
        if state is not self.state:
            self._enter(state, reason)

    def _enter(self, state: State, reason: str) -> None:
        """Enter *state*: end what the old one was busy with, tell the observers, and take the new state's step."""
        context, waiters, now = self._context, self.waiters, self._context.now()
        promised = waiters is not None and waiters.promised
        old, again = self.enter(state, reason, now, waiters.since if waiters else now, promised=promised)
        if again is Again.PROMISED and not context.may_try_again():
            self.give_up()
        if self._look is not None and self._look.busy:
            self._look.again = True
        if old in {State.WAITING, State.SETTLING} and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.cancel()
        if state in {State.UP, State.UNKNOWN}:
            self._no_promise()
        if state in DOWN:
            self.problem(Problem.STOP)
            self.problem(Problem.PORT)
        for observer in context.observers[state]:
            observer.moved(self, old)
        if self.state is state:
            self._take_step(old, in_vain=again is Again.IN_VAIN)
            self._entered(state)

    def _take_step(self, old: State, *, in_vain: bool) -> None:
        """Take the step that belongs to entering the state."""
        state = self.state
        if state is State.QUEUED:
            self.request()
        elif state in {State.STARTING, State.PREPARING}:
            self.mark("start")
            if old is not State.PREPARING:  # else the call is under way
                self._begin(steps.start(self, self._context))
        elif state in {State.WAITING, State.SETTLING}:
            waiting = self._begin(steps.wait(self, self._context))
            if not waiting.called:
                self._waiting = waiting
        elif state is State.KEEPING:
            self._begin(steps.keep(self))
        elif state is State.UP:
            self._up()
        elif state in {State.STOPPING, State.RESTARTING} and old is not State.RESTARTING:
            assert isinstance(self.order, Stop)
            self.mark("stop")
            self._begin(steps.stop(self, self._context, self.order))
        elif state is State.OWNER_STOPPING:
            self.mark("stop")
            self.look(self.reason)
        elif state is State.FAILED:
            self._start_failed(old, in_vain=in_vain)
        elif state not in STOPS:
            self._rest(old)

    def _rest(self, old: State) -> None:
        """Start the VM again, now that it rests, if it was asked for meanwhile, or is being restarted."""
        if self.waiters is not None and self.waiters.are_owed:
            self._summon_again("asked for while it was being stopped")
        elif old is State.RESTARTING and self.state in DOWN:
            left = max(0.0, self.failures.retry_at - self._context.now())
            self._context.reactor.callLater(left, self._come_again, self.order)

    def _entered(self, state: State) -> None:
        """Tell those who wait for a stop that *state* has been entered; look at what could not be looked at before."""
        if state not in STOPS and state is not State.CANCELLING:
            stopped, self._stopped = self._stopped, ()
            for one in stopped:
                one.callback(state)
        look = self._look
        if look is not None and look.again and not look.busy and self.state not in CALLING:
            self.look("found so after the call")

    def _begin(self, step: Coroutine[Deferred[Any], Any, tuple[Event, str]]) -> Deferred[None]:
        """Take *step*, the one thing under way for this VM; its outcome is an input."""
        begun = Deferred.fromCoroutine(step).addCallback(lambda outcome: self.feed(*outcome))
        return begun.addErrback(self._step_failed)

    def _step_failed(self, failure: Any) -> None:
        """Turn a step's failure into an input. Wide: a fault of Jitsu must not leave the VM half started for ever."""
        if failure.check(CancelledError):
            return
        if not failure.check(JitsuError):
            report(self.log, self.vm.name, failure)
        reason = failure.getErrorMessage()
        if self.state not in STOPS:
            self.fault = failure.type if failure.check(*BLAMELESS, BackendLost, NoSuchVM) else BootFailed
            self.feed(Event.FAIL, reason)
            if failure.check(BackendLost) and self.state is State.FAILED:
                self.lose(reason)  # the call may have succeeded, or may yet succeed
        elif failure.check(NoSuchVM):
            self.lose(reason, NoSuchVM)
        else:
            if failure.check(BackendLost):
                self.log.error("{name}: cannot be stopped: {error}", name=self.vm.name, error=reason)
            else:
                self._cannot_stop(reason)
            self.feed(Event.STOP_FAILED, reason)
            self.look(reason)  # what was prepared is not up

    # What failures lead to.

    def _start_failed(self, old: State, *, in_vain: bool) -> None:
        """Start the VM once more if it is to be, or fail those who wait."""
        name, why = self.vm.name, self.reason
        if old in PREPARES:
            if self.waiters is not None and self.waiters.are_owed:
                self._summon_again("asked for while it was being prepared")
        elif in_vain:
            how = self.how.value
            self.log.error("{name}: {how}, but then: {why}; booted", name=name, how=how, why=why)
            self._summon_again(f"booted, because it was {how} in vain")
        elif self.boots_again:
            words = "{name}: its start failed: {why}; it is tried once more, as clients have its address"
            self.log.warn(words, name=name, why=why)
            self._tell_boot("failed")
            self._summon_again(f"tried once more, as clients have its address: {why}")
        else:
            waiters = self._end_boot("failed")
            if waiters:  # one that is told may ask anew at once, for a VM that is needed
                waiters.fail_all(self.fault, f"{name}: {why}")

    def _summon_again(self, reason: str) -> None:
        """Start the VM, which is down, once more."""
        self.managed = True
        self.feed(Event.SUMMON, reason)

    def _come_again(self, order: Start | Stop) -> None:
        """Boot after a restart, unless the VM was started or stopped meanwhile."""
        if self.order is order and not self.joinable:
            self.waiters = None
            self._summon_again("restarted")

    def _cannot_stop(self, why: str) -> None:
        """Note that the VM cannot be stopped by its mode."""
        self.problem(Problem.STOP, f"it cannot be stopped ({self.vm.mode.value}), so it stays up: {why}")

    # The timeline, and who waits.

    def mark(self, step: str) -> None:
        """Add *step* to the timeline, if there is one."""
        if self.activation is not None:
            self.activation.mark(step, self._context.now())

    def _up(self) -> None:
        assert self.activation is not None
        self.activation.up_at = self._context.now()
        if self.waiters:
            if self.waiters.have_clients:
                self._answered()
            self.waiters.answer_all(ready=self.ready)
        self._end_boot("up")

    def _late(self, waiter: Deferred[bool]) -> None:
        """Answer one waiter though the VM is not ready; where the backend has told nothing yet, with an error."""
        assert self.waiters is not None
        if self.waiters.is_client(waiter):
            self.promise()
        if self.state is State.UNKNOWN:
            self.waiters.fail(waiter, BackendLost(f"{self.vm.name}: the hypervisor has not answered yet"))
        else:
            self.waiters.answer(waiter, ready=False)

    def _no_promise(self) -> None:
        """Note that no client has the address of the VM because of this activation."""
        if self.waiters is not None:
            self.waiters.promised = False

    def _answered(self) -> None:
        """Put the first answer into the timeline."""
        if "answered" not in self.marks:
            self.mark("answered")

    def _fail_waiters(self, reason: str) -> None:
        if self.waiters:
            self.waiters.fail_all(self.fault, f"{self.vm.name}: {reason}")

    def _end_boot(self, how: str) -> Waiters | None:
        """Log the activation; return the waiters, which the machine does not know any more."""
        self._tell_boot(how)
        waiters, self.waiters = self.waiters, None
        return waiters

    def _tell_boot(self, how: str) -> None:
        """Log the whole activation in one line."""
        if self.activation is None or "query" not in self.marks:
            return
        clients, asker = 0 if self.waiters is None else self.waiters.clients, self.asker
        self._context.journal.booted(self, how, clients)
        self.log.info(
            "{name}: {how}{why} after {total} ms ({steps}) for {asker}, {clients} answered",
            name=self.vm.name, how=how, why=f" ({self.reason})" if self.reason else "",
            total=round((self._context.now() - self.marks["query"]) * 1000), steps=self.activation.steps(),
            asker=asker, clients=clients,
        )  # fmt: skip
