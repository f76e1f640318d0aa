"""
The life of one VM: its state, and what follows from each change of it. Pure: the time is an argument.

Times are in seconds of one clock that never goes back. `vm.machine` carries out what is decided here.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.errors import BackendLost, BootFailed, ClusterUnavailable, JitsuError, NoCapacity, NoSuchVM
from jitsu_tw.ijitsu import ENDED, SHUT_DOWN, SHUTS_DOWN
from jitsu_tw.ijitsu import Start as How
from jitsu_tw.rules.lifecycle import ACTIVATING, DOWN, PREPARES, STOPS, WANTED, Event, Start, State, Stop
from jitsu_tw.settings import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A VM that goes down sooner than this after it was up, in seconds, has failed, unless its guest ended in order.
STEADY: Final = 10.0

#: The reasons of an end in order: the guest has done its work, and the next query starts the VM again at once.
IN_ORDER: Final = frozenset({SHUTS_DOWN, SHUT_DOWN, ENDED})

#: After a second failure in a row, a VM is left alone for a second, after a third for two, and so on, up to this.
LONGEST_REST: Final = 60.0

#: These failures are not the VM's.
BLAMELESS: Final = (NoCapacity, ClusterUnavailable)

#: The guest goes on where it, or the guest of its template's image, was.
RESUMED: Final = frozenset({How.RESUMED, How.RESTORED, How.PREPARED, How.CLONED})

#: Seconds of a start call from which on the operator is told of them.
SLOW_START: Final = 0.25

#: The timeline of a VM that was never summoned.
NO_MARKS: Final[Mapping[str, float]] = MappingProxyType({})


def rest(failures: int) -> float:
    """Return for how many seconds a VM is left alone after that many failures in a row."""
    return min(LONGEST_REST, 2.0 ** (failures - 2)) if failures > 1 else 0.0


def start_call(marks: Mapping[str, float]) -> float:
    """Return for how many seconds the hypervisor was busy with the start call of a timeline; 0 if there was none."""
    return marks.get("started", 0.0) - marks["start"] if "start" in marks and "started" in marks else 0.0


@attrs.frozen
class Failures:
    """
    What a VM's last failures lead to.

    Attributes:
        count: how often in a row the VM did not come up, or did not stay so.
        retry_at: before this time, a query does not start the VM.
    """

    count: int = 0
    retry_at: float = 0.0


#: What most VMs have.
NO_FAILURES: Final = Failures()


@attrs.define(eq=False)
class Activation:
    """
    One way of a VM from stopped to ready, until the stop that ends it.

    Attributes:
        marks: when each step was taken; empty for a VM that was found running.
        how: what the start call did; `ijitsu.Start.RAN` for a VM that another program has started.
        ready: the guest is known to be ready; False if it has only had all the time that it is given.
        up_at: when the VM came up.
    """

    marks: Mapping[str, float] = NO_MARKS
    how: How = How.RAN
    ready: bool = False
    up_at: float = 0.0

    def mark(self, step: str, now: float) -> None:
        """Add *step* to the timeline, if there is one."""
        if self.marks:
            self.marks = {**self.marks, step: now}

    def steps(self) -> str:
        """Return the steps with their milliseconds after the query, for the log."""
        begin = self.marks["query"]
        return ", ".join(f"{step} {(when - begin) * 1000:.0f}" for step, when in self.marks.items())


class Again(enum.Enum):
    """Whether Jitsu itself starts a VM once more whose start has failed."""

    NO = enum.auto()
    IN_VAIN = enum.auto()  # its guest was to go on where it was, and could not: it is booted
    PROMISED = enum.auto()  # a client has its address already


class Life:
    """
    What is known of one VM, and decided for it.

    Attributes:
        state: what it is doing.
        reason: why it entered that state.
        managed: Jitsu started it, or was asked for it, so that Jitsu may stop it.
        order: how it is to be started, or is being stopped.
        failures: what its last failures lead to.
        fault: the kind of error that those who wait get, if it does not come up.
        activation: the last one; None for a VM that has never been summoned, or found running.
    """

    # One for each VM, of which there may be very many.
    __slots__ = ("activation", "failures", "fault", "managed", "order", "reason", "state")

    def __init__(self) -> None:
        """Begin in the state UNKNOWN: the backend has not been asked yet."""
        self.state, self.reason = State.UNKNOWN, ""
        self.managed = False
        self.order: Start | Stop = Start()
        self.failures = NO_FAILURES
        self.fault: type[JitsuError] = BackendLost
        self.activation: Activation | None = None

    # What it is.

    @property
    def is_lost(self) -> bool:
        """Whether the backend cannot tell what the VM does, and the reason is known."""
        return self.state is State.UNKNOWN and bool(self.reason)

    @property
    def is_gone(self) -> bool:
        """Whether the backend knows no such VM any more."""
        return self.state is State.UNKNOWN and self.fault is NoSuchVM

    @property
    def is_unsure(self) -> bool:
        """Whether the VM may run although its state does not say so."""
        return self.state is State.UNKNOWN or (self.state is State.FAILED and self.fault is BackendLost)

    @property
    def boots_again(self) -> bool:
        """Whether the VM, whose start has failed, is about to be started once more by Jitsu itself."""
        return self.state is State.FAILED and self.next.retry

    @property
    def is_failing(self) -> bool:
        """Whether the VM is being stopped because its boot has failed."""
        return self.state is State.STOPPING and isinstance(self.order, Stop) and self.order.fails

    @property
    def ready(self) -> bool:
        """Whether the guest is known to be ready."""
        return self.activation is not None and self.activation.ready

    @property
    def marks(self) -> Mapping[str, float]:
        """The timeline of the last activation: when each step was taken."""
        return NO_MARKS if self.activation is None else self.activation.marks

    @property
    def how(self) -> How:
        """What the last start call did."""
        return How.RAN if self.activation is None else self.activation.how

    @property
    def next(self) -> Start:
        """How the VM is started next."""
        return self.order.then if isinstance(self.order, Stop) else self.order

    # What follows from an input.

    def enter(self, state: State, reason: str, now: float, since: float, *, promised: bool) -> tuple[State, Again]:
        """
        Enter *state*, because of *reason*.

        Args:
            state: the new one, which is another.
            reason: in words.
            now: the time.
            since: when the first of those who wait asked.
            promised: a client has the address already, or its packet is held. It does not ask again.

        Returns:
            The state before, and whether Jitsu itself is to start the VM once more.
        """
        old, self.state = self.state, state
        if state is not State.STOPPING or old is not State.CANCELLING:
            self.reason = reason  # else the reason of the stop is there already
        if state is State.QUEUED:
            self.activation = Activation({"query": since})
        elif state is State.PREPARING:
            self.activation = Activation()
        elif old in PREPARES and state in {State.STARTING, State.WAITING} and self.activation is not None:
            self.activation.marks = {"query": since}
        elif state is State.WAITING and old is not State.STARTING:
            self.activation = Activation(self.marks if old is State.QUEUED else NO_MARKS)
        if self.activation is not None and old in STOPS and state in DOWN:
            self.activation.mark("stopped", now)
        if state in ACTIVATING | PREPARES:
            self.fault = BootFailed
        self._count_failures(old, now)
        again = self._again(old, promised=promised)
        self._plan(again, in_vain=old in {State.WAITING, State.SETTLING} and self._is_in_vain())
        return old, again

    def _count_failures(self, old: State, now: float) -> None:
        """Count the failure that the new state is, or forget earlier ones."""
        fell = old is State.UP and self.state is State.OFF and self.reason not in IN_ORDER
        started = self.how is not How.RAN  # else another program had started it
        failed = self.state is State.FAILED and (started or old is not State.WAITING)
        if failed or (fell and started and not self._is_steady(now)):
            self.fail(now)
        elif old is State.UP and self.state is not State.RESTARTING:
            self.failures = NO_FAILURES

    def _again(self, old: State, *, promised: bool) -> Again:
        """Return whether the VM is to be started once more, because it could not go on, or its start has failed."""
        if self.state is not State.FAILED:
            return Again.NO
        if old is State.WAITING and self._is_in_vain():
            return Again.IN_VAIN
        is_second = self.next.retry
        return Again.PROMISED if promised and self.fault is BootFailed and not is_second else Again.NO

    def _is_in_vain(self) -> bool:
        """Return whether the VM has failed because its guest could not go on where it was."""
        return self.state is State.FAILED and self.how in RESUMED

    def _plan(self, again: Again, *, in_vain: bool) -> None:
        """Decide how the VM is started next, now that going on where its guest was may have been *in_vain*."""
        plan = self.order
        if self.state is State.UP:
            plan = Start()
        elif self.state in DOWN:
            plan = Start(cold=self.next.cold or in_vain, retry=again is not Again.NO)
        if plan != self.order:  # what waits for an order knows it by its identity
            self.order = plan

    def give_up(self) -> None:
        """Do not start the VM once more after all."""
        self.order = Start(cold=self.next.cold)

    def order_stop(self, mode: Mode) -> Event:
        """Order a stop by *mode*, or that a VM which is down stays so; return the input for the table."""
        then = Start(cold=self.next.cold)
        if self.state in PREPARES or self.state is State.PREPARED:
            self.order = Stop(Mode.DESTROY, then=then)  # there is nothing to lose, nor to wait for
        elif self.state in WANTED - {State.QUEUED}:
            self.order = Stop(mode, then=then)
        elif self.state not in STOPS:
            self.order = then
        return Event.STOP

    def order_restart(self, now: float) -> Event:
        """Order that the guest, which gives no sign of life, is destroyed and booted; return the table's input."""
        if self.state is State.UP and self._is_steady(now):
            self.failures = NO_FAILURES
        self.order = Stop(Mode.DESTROY, then=Start(cold=True))
        self.fail(now)
        return Event.RESTART

    def order_end(self) -> Event:
        """Order that the guest, which has booted and does nothing, is destroyed; return the input for the table."""
        self.order, self.fault = Stop(Mode.DESTROY, fails=True, then=self.next), BootFailed
        return Event.STOP

    def fail(self, now: float) -> None:
        """Count a failure, and rest before the next try; that a host has no memory left is not the VM's."""
        if self.fault not in BLAMELESS:
            count = self.failures.count + 1
            self.failures = Failures(count, now + rest(count))

    def _is_steady(self, now: float) -> bool:
        return self.activation is None or now >= self.activation.up_at + STEADY
