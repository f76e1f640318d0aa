"""
What backends with a blocking library have in common: threads for connecting and for calls.

Each call is made in a thread that has a connection of its own. A connection carries one call at a time: libvirt's
client crashes the process when a daemon that has hung goes on while several threads have calls on one connection (seen
with libvirt 9.0: 8 of 9 times; with one call at a time, never). A call that is overdue is given up, with its thread and
its connection; both end when the library returns at last.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from jitsu_tw.errors import BackendLost
from jitsu_tw.reconnect import Reconnector

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.ijitsu import IBackend, IWatcher

C = TypeVar("C")
T = TypeVar("T")

#: How many connections are being opened at once: sshd refuses more than ten (MaxStartups).
OPENING: Final = 4

#: Seconds after which opening a connection is not waited for any more.
OPENS_WITHIN: Final = 30.0

#: Seconds after which a connection that is not used is closed, if it is not the last one.
IDLE: Final = 60.0

#: Seconds that `Workers.end` waits for connections to be closed.
CLOSES_WITHIN: Final = 2.0


def in_thread(reactor: Any, name: str, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
    """Call *function* in a thread of its own, called *name*; the end of the process does not wait for it."""
    result: Deferred[T] = Deferred()

    def work() -> None:
        try:
            value = function(*arguments)
        except Exception:  # noqa: BLE001
            # Whatever it is, the Deferred fails by it.
            reactor.callFromThread(result.errback, _bare(Failure()))
        else:
            reactor.callFromThread(result.callback, value)

    threading.Thread(target=work, name=name, daemon=True).start()
    return result


@attrs.define(eq=False)
class Job:
    """
    A call.

    Attributes:
        answer: fires with its result.
        late: gives it up.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: Deferred[Any]
    late: Any = None


@attrs.define(eq=False)
class Worker:
    """
    A thread with its connection.

    Attributes:
        jobs: what it does next; None ends it.
        job: what it does now.
        late: gives up opening its connection.
    """

    jobs: SimpleQueue[Job | None] = attrs.field(factory=SimpleQueue)
    job: Job | None = None
    late: Any = None


class Workers:
    """
    Threads for calls to one hypervisor, started as they are needed.

    Everything but `_work` runs in the reactor's thread.

    Attributes:
        hung: how many threads do not return from the library.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        most: int,
        opens: Callable[[], Any],
        closes: Callable[[Any], None],
        reactor: Any,
    ) -> None:
        """
        Make no thread yet.

        Args:
            name: of the hypervisor, in messages.
            most: how many calls may be under way at once, and how many threads may hang besides.
            opens: opens a connection; blocks.
            closes: closes it; blocks.
            reactor: makes the timers.
        """
        self._name, self._most, self._reactor = name, most, reactor
        self._opens, self._closes = opens, closes
        self._waiting: deque[Job] = deque()
        self._opening: set[Worker] = set()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._ending: set[Worker] = set()
        self._ended: list[Deferred[None]] = []
        self._why: str | None = f"{name} cannot be reached"
        self.hung = 0

    def begin(self) -> None:
        """Take calls from now on."""
        self._why = None

    def end(self, reason: str) -> Deferred[None]:
        """
        Take no calls any more, and fail those that are under way; fire when the connections are closed.

        A connection whose call is under way is closed when the call returns; nothing waits for that.
        """
        self._why = reason
        waiting, idle, leaving = self._waiting, self._idle, self._busy | self._opening
        self._waiting, self._idle, self._busy, self._opening = deque(), [], set(), set()
        for worker in idle:
            self._dismiss(worker)
        # The callers that are answered may call again, or end this again.
        for worker in leaving:
            self._give_up(worker, reason)
        for job in waiting:
            self._answer(job, Failure(BackendLost(reason)))
        if not self._ending:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        return ended.addTimeout(CLOSES_WITHIN, self._reactor, onTimeoutCancel=lambda *_: None)

    def call(self, within: float, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Call *function* with a connection and *arguments*, in a thread.

        It fails with `BackendLost` after *within* seconds, the wait for a thread included; a call that still waits then
        is never made.
        """
        if self._why is not None:
            return fail(BackendLost(self._why))
        if self.hung >= self._most:
            return fail(BackendLost(f"{self.hung} calls to {self._name} hang"))
        job = Job(function, arguments, Deferred())
        job.late = self._reactor.callLater(within, self._overdue, job, within)
        if self._idle:
            self._give(self._idle.pop(), job)
        else:
            self._waiting.append(job)
            self._add()
        return job.answer

    def _add(self) -> None:
        """Start a further thread, if a call waits for one and there may be more."""
        there = len(self._opening) + len(self._busy) + len(self._idle)
        # Without a limit, each waiting call would have a thread that hangs for the rest of its time.
        may = there < self._most and self.hung < self._most
        if len(self._waiting) > len(self._opening) < OPENING and may:
            worker = Worker()
            worker.late = self._reactor.callLater(OPENS_WITHIN, self._opens_late, worker)
            self._opening.add(worker)
            threading.Thread(target=self._work, args=(worker,), name=self._name, daemon=True).start()

    def _work(self, worker: Worker) -> None:
        """Open a connection, make calls with it, and close it; the thread of *worker*."""
        tell = self._reactor.callFromThread
        try:
            connection = self._opens()
        except Exception:  # noqa: BLE001
            # Whatever it is, the calls that wait for this connection fail by it.
            tell(self._not_opened, worker, _bare(Failure()))
            return
        tell(self._opened, worker)
        while True:
            try:
                job = worker.jobs.get(timeout=IDLE)
            except Empty:
                tell(self._unused, worker)
                continue
            if job is None:
                break
            result: Any
            try:
                result = job.function(connection, *job.arguments)
            except Exception:  # noqa: BLE001
                result = _bare(Failure())  # whatever it is, the call fails by it
            tell(self._done, worker, result)
            del result
        self._closes(connection)
        tell(self._closed, worker)

    # What the threads call.

    def _opened(self, worker: Worker) -> None:
        if worker in self._opening:
            self._opening.remove(worker)
            worker.late.cancel()
            self._next(worker)
        else:
            self.hung -= 1
            self._dismiss(worker)
            self._add()

    def _not_opened(self, worker: Worker, failure: Failure) -> None:
        if worker not in self._opening:
            self.hung -= 1
            self._add()
            return
        self._opening.remove(worker)
        worker.late.cancel()
        if not (self._busy or self._opening):
            # No other connection will take them.
            waiting, self._waiting = self._waiting, deque()
            for job in waiting:
                self._answer(job, failure)

    def _done(self, worker: Worker, result: Any) -> None:
        job, worker.job = worker.job, None
        if job is None:  # it was given up
            self.hung -= 1
            self._dismiss(worker)
            self._add()
            return
        self._busy.remove(worker)
        if isinstance(result, Failure) and result.check(BackendLost):
            self._dismiss(worker)
            self._add()
        else:
            self._next(worker)
        self._answer(job, result)

    def _unused(self, worker: Worker) -> None:
        """Dismiss a worker that had nothing to do for `IDLE` seconds, unless it is the last one."""
        if worker in self._idle and len(self._idle) > 1:
            self._idle.remove(worker)
            self._dismiss(worker)

    def _closed(self, worker: Worker) -> None:
        self._ending.discard(worker)
        if not self._ending:
            ended, self._ended = self._ended, []
            for one in ended:
                one.callback(None)

    # Workers and calls.

    def _next(self, worker: Worker) -> None:
        """Give *worker* the call that has waited longest."""
        if self._waiting:
            self._give(worker, self._waiting.popleft())
            self._add()
        else:
            self._idle.append(worker)

    def _give(self, worker: Worker, job: Job) -> None:
        worker.job = job
        self._busy.add(worker)
        worker.jobs.put(job)

    def _dismiss(self, worker: Worker) -> None:
        """End a worker, whose thread waits for a call, or is about to."""
        self._ending.add(worker)
        worker.jobs.put(None)

    def _answer(self, job: Job, result: Any) -> None:
        if job.late.active():
            job.late.cancel()
        if isinstance(result, Failure):
            job.answer.errback(result)
        else:
            job.answer.callback(result)

    def _give_up(self, worker: Worker, reason: str) -> None:
        """Count a worker that does not return from the library as hung, and fail its call."""
        self.hung += 1
        self._opening.discard(worker)
        self._busy.discard(worker)
        if worker.late.active():
            worker.late.cancel()
        job, worker.job = worker.job, None
        if job is not None:
            self._answer(job, Failure(BackendLost(reason)))

    def _overdue(self, job: Job, within: float) -> None:
        reason = f"{self._name} has not answered within {within:g} s"
        if job in self._waiting:
            self._waiting.remove(job)
            self._answer(job, Failure(BackendLost(reason)))
            return
        worker = next(worker for worker in self._busy if worker.job is job)
        self._give_up(worker, reason)
        self.log.error("{reason}; {hung} calls hang", reason=reason, hung=self.hung)
        self._add()

    def _opens_late(self, worker: Worker) -> None:
        self._give_up(worker, "")
        self.log.error("{name}: no further connection within {within:g} s", name=self._name, within=OPENS_WITHIN)
        self._add()


def _bare(failure: Failure) -> Failure:
    """
    Return *failure* without the frames that it came through.

    Their variables are libvirt's objects: the last reference to one closes its connection, which blocks, and must not
    happen in the reactor's thread.
    """
    failure.cleanFailure()
    error: BaseException | None = failure.value
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    return failure


class ThreadedBackend(ABC, Generic[C]):
    """
    A hypervisor whose library blocks: how its connection is made, lost, made again and closed.

    There is one connection for events, of the kind *C*; calls are made by `Workers`.
    """

    log = Logger()
    reachable = True

    def __init__(self, reactor: Any = None) -> None:
        """Connect to nothing yet; a subclass sets `_pools`."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._reactor = reactor
        self._watcher: IWatcher | None = None
        self._connection: C | None = None
        self._broken: C | None = None
        self._pools: tuple[Workers, ...] = ()
        self._reconnector: Reconnector[C] = Reconnector(
            str(self), self._open_in_thread, self._connected, self._disconnected, self._discard, reactor,
            within=OPENS_WITHIN,
        )  # fmt: skip

    @abstractmethod
    def _open_events(self) -> C:
        """
        Return a new connection that tells events. Blocks.

        Raises:
            JitsuError: it cannot be made.
        """

    @abstractmethod
    def _discard(self, connection: C, reason: str = "closed") -> object:
        """Give *connection* up because of *reason*, without waiting."""

    @abstractmethod
    def _close_events(self, connection: C) -> Deferred[Any]:
        """Close *connection* in an orderly way, within some seconds."""

    def connect(self, watcher: IWatcher) -> None:
        """Connect, now and whenever the connection breaks."""
        self._watcher = watcher
        self._reconnector.begin()

    def _open_in_thread(self) -> Deferred[C]:
        return in_thread(self._reactor, f"{self}, connecting", self._open_events)

    def _connected(self, connection: C) -> None:
        if connection is self._broken:
            self._discard(connection)
            self._reconnector.again("the connection broke while it was made")
            return
        self._connection = connection
        for workers in self._pools:
            workers.begin()
        self.log.info("{backend}: connected", backend=self)
        if self._watcher is not None:
            self._watcher.connected(cast("IBackend", self))

    def _disconnected(self, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.lost(cast("IBackend", self), reason)

    def _lost(self, connection: C, reason: str) -> None:
        """Handle the end of *connection*, which `_connected` may be about to take."""
        if connection is not self._connection:
            self._broken = connection
            return
        self._connection = None
        self._discard(connection, reason)
        self._reconnector.again(reason)
        for workers in self._pools:
            workers.end(reason)

    def _changed(self, uuid: str, reason: str) -> None:
        """Tell the watcher that a VM's state has changed."""
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def close(self) -> Deferred[None]:
        """Close the connections. A call that is under way goes on to its end."""
        self._reconnector.end()
        connection, self._connection, self._watcher = self._connection, None, None
        closed = [workers.end(f"{self} is closed") for workers in self._pools]
        if connection is not None:
            closed.append(self._close_events(connection))
        return DeferredList(closed).addCallback(lambda _: None)
