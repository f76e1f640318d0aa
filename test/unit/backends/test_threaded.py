"""Threads that make blocking calls, one at a time on a connection."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import threaded as workers
from jitsu_tw.backends.threaded import Workers
from jitsu_tw.errors import BackendError, BackendLost
from test.support import PATIENCE, HandClock

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred


class Library:
    """
    A library that blocks.

    Attributes:
        opened: how many connections were opened.
        closed: those that were closed.
        refuses: why no connection can be opened.
        at_once: how many calls were under way on one connection at a time, at most.
    """

    def __init__(self) -> None:
        """Begin with nothing that blocks."""
        self.opened, self.closed, self.refuses = 0, list[int](), ""
        self.opens, self.go = threading.Event(), threading.Event()
        self.opens.set()
        self.at_once, self._busy = 0, dict[int, int]()
        self.made: list[Any] = []

    def open(self) -> int:
        """Open a connection, when it is let."""
        assert self.opens.wait(PATIENCE)
        if self.refuses:
            raise BackendLost(self.refuses)
        self.opened += 1
        return self.opened

    def close(self, connection: int) -> None:
        """Close a connection."""
        self.closed.append(connection)

    def quick(self, connection: int, what: Any = None) -> Any:
        """Return *what* at once, or raise it."""
        self.made.append((connection, what))
        if isinstance(what, Exception):
            raise what
        return what

    def slow(self, connection: int) -> str:
        """Return when it is let."""
        self._busy[connection] = self._busy.get(connection, 0) + 1
        self.at_once = max(self.at_once, *self._busy.values())
        assert self.go.wait(PATIENCE)
        self._busy[connection] -= 1
        return "slow"


class WorkersTests(SynchronousTestCase):
    """They make calls, give them up, and end."""

    def setUp(self) -> None:
        """Have workers that take calls."""
        self.clock, self.library = HandClock(), Library()
        self.workers = Workers("here", 3, self.library.open, self.library.close, self.clock)
        self.workers.begin()

    def until(self, *calls: Deferred[Any]) -> list[Any]:
        """Return what *calls* come to."""
        results: list[Any] = []
        for call in calls:
            call.addBoth(results.append)
        self.clock.until(lambda: len(results) == len(calls))
        return results

    def until_hung(self, number: int) -> None:
        """Wait until *number* threads hang."""
        self.clock.until(lambda: self.workers.hung == number)

    def test_one_at_a_time(self) -> None:
        """Calls at the same time have a connection each, no more than there may be; the others wait."""
        calls = [self.workers.call(5, self.library.slow) for _ in range(7)]
        self.clock.until(lambda: len(self.workers._busy) == 3)
        self.library.go.set()
        self.assertEqual(["slow"] * 7, self.until(*calls))
        self.assertEqual((3, 1), (self.library.opened, self.library.at_once))
        self.assertEqual([1], self.until(self.workers.call(5, self.library.quick, 1)))
        self.assertEqual(3, self.library.opened)

    def test_errors(self) -> None:
        """An error is the call's; a connection that is lost is not used again."""
        (failure,) = self.until(self.workers.call(5, self.library.quick, BackendError("no")))
        self.assertEqual("no", failure.getErrorMessage())
        self.until(self.workers.call(5, self.library.quick, 1))
        self.assertEqual(1, self.library.opened)
        (failure,) = self.until(self.workers.call(5, self.library.quick, BackendLost("gone")))
        self.assertTrue(failure.check(BackendLost))
        self.until(self.workers.call(5, self.library.quick, 1))
        end = time.monotonic() + PATIENCE
        while not self.library.closed and time.monotonic() < end:  # its thread may still be at it
            time.sleep(0.01)
        self.assertEqual((2, [1]), (self.library.opened, self.library.closed))

    def test_nothing_is_kept_of_a_call(self) -> None:
        """No frame of a call, and so none of its objects, gets into the reactor's thread with its error."""

        def fails(_: int) -> None:
            try:
                int("no")
            except ValueError as error:
                raise BackendError("no") from error

        (failure,) = self.until(self.workers.call(5, fails))
        self.assertIsNone(failure.value.__traceback__)
        self.assertIsNone(failure.value.__cause__.__traceback__)

    def test_overdue(self) -> None:
        """A call that is overdue fails and counts as hung; its connection is closed when it returns, not before."""
        call = self.workers.call(5, self.library.slow)
        self.clock.until(lambda: self.workers._busy)
        self.clock.advance(5)
        self.failureResultOf(call, BackendLost)
        self.assertEqual(1, self.workers.hung)
        self.assertEqual([1], self.until(self.workers.call(5, self.library.quick, 1)))
        self.assertEqual([], self.library.closed)
        self.library.go.set()
        self.until_hung(0)
        self.until(self.workers.end("enough"))
        self.assertEqual([1, 2], sorted(self.library.closed))

    def test_overdue_in_the_queue(self) -> None:
        """A call that was given up before there was a thread for it is never made."""
        slow = [self.workers.call(50, self.library.slow) for _ in range(3)]
        late = self.workers.call(5, self.library.quick, "late")
        self.clock.advance(5)
        self.failureResultOf(late, BackendLost)
        self.library.go.set()
        self.until(*slow)
        for _ in range(3):
            self.until(self.workers.call(5, self.library.quick, "next"))
        self.assertEqual({"next"}, {what for _, what in self.library.made})

    def test_too_many_hang(self) -> None:
        """When as many threads hang as there may be, no further call is made until one returns."""
        for number in range(1, 4):
            call = self.workers.call(5, self.library.slow)
            self.clock.until(lambda: self.workers._busy)
            self.clock.advance(5)
            self.failureResultOf(call, BackendLost)
            self.assertEqual(number, self.workers.hung)
        failure = self.failureResultOf(self.workers.call(5, self.library.quick), BackendLost)
        self.assertIn("3 calls to here hang", failure.getErrorMessage())
        self.library.go.set()
        self.until_hung(0)
        self.until(self.workers.call(5, self.library.quick))

    def test_many_wait(self) -> None:
        """Calls that wait are not given threads one after the other to hang, but are made when one returns."""
        calls = [self.workers.call(within, self.library.slow) for within in (5, 5, 5, *range(6, 56))]
        for call in calls:
            call.addErrback(lambda failure: failure.trap(BackendLost))
        last = self.workers.call(1000, self.library.quick, "last")
        for _ in range(60):
            self.clock.until(self._is_settled)
            self.clock.advance(1)
        self.assertLess(self.workers.hung, 2 * 3)
        self.assertNoResult(last)
        self.library.go.set()
        self.assertEqual(["last"], self.until(last))

    def _is_settled(self) -> bool:
        """Return whether no thread opens a connection, and those that are busy, if any, have calls to make."""
        busy = self.workers._busy
        return not self.workers._opening and (not busy or any(worker.job for worker in busy))

    def test_opening_hangs(self) -> None:
        """A connection that does not open is given up; one that opens too late is closed."""
        self.library.opens.clear()
        call = self.workers.call(50, self.library.quick, 1)
        self.clock.advance(workers.OPENS_WITHIN)
        self.assertEqual(1, self.workers.hung)
        self.library.opens.set()
        self.assertEqual([1], self.until(call))
        self.until_hung(0)
        self.until(self.workers.end("enough"))
        self.assertEqual([1, 2], sorted(self.library.closed))

    def test_opening_is_refused(self) -> None:
        """Where no connection can be opened, the calls fail; where there is one, they wait for it."""
        self.library.refuses = "no more"
        (failure,) = self.until(self.workers.call(5, self.library.quick))
        self.assertIn("no more", failure.getErrorMessage())
        self.library.refuses = ""
        slow = self.workers.call(50, self.library.slow)
        self.clock.until(lambda: self.workers._busy)
        self.library.refuses = "no more"
        quick = self.workers.call(50, self.library.quick, 1)
        self.clock.turn()
        self.assertNoResult(quick)
        self.library.go.set()
        self.assertEqual(["slow", 1], self.until(slow, quick))

    def test_end(self) -> None:
        """At the end all calls fail, and none is taken, until there is another beginning."""
        slow = self.workers.call(50, self.library.slow)
        self.clock.until(lambda: self.workers._busy)
        waiting = [self.workers.call(50, self.library.quick) for _ in range(5)]
        self.successResultOf(self.workers.end("the daemon is gone"))
        for call in (slow, *waiting, self.workers.call(50, self.library.quick)):
            self.assertIn("the daemon is gone", self.failureResultOf(call, BackendLost).getErrorMessage())
        self.library.go.set()
        self.until_hung(0)
        self.workers.begin()
        self.until(self.workers.call(5, self.library.quick))

    def test_ends_while_it_ends(self) -> None:
        """A call that fails at the end may end it again: each thread hangs once all the same."""
        calls = [self.workers.call(50, self.library.slow) for _ in range(3)]
        self.clock.until(lambda: len(self.workers._busy) == 3)
        for call in calls:
            call.addErrback(lambda _: self.workers.end("again"))
        self.workers.end("the daemon is gone")
        self.assertEqual(3, self.workers.hung)
        self.library.go.set()
        self.until_hung(0)

    def test_end_is_not_waited_for(self) -> None:
        """A connection that does not close keeps nothing waiting for long."""
        self.until(self.workers.call(5, self.library.quick))
        stuck = threading.Event()
        self.patch(self.workers, "_closes", lambda _: stuck.wait(PATIENCE))
        ended = self.workers.end("enough")
        self.assertNoResult(ended)
        self.clock.advance(workers.CLOSES_WITHIN)
        self.successResultOf(ended)
        stuck.set()

    def test_idle(self) -> None:
        """Of connections that nobody uses, one stays."""
        self.patch(workers, "IDLE", 0.01)
        calls = [self.workers.call(5, self.library.slow) for _ in range(3)]
        self.clock.until(lambda: len(self.workers._busy) == 3)
        self.library.go.set()
        self.until(*calls)
        self.clock.until(lambda: len(self.library.closed) == 2)
        for _ in range(5):
            self.clock.turn()
        self.assertEqual((2, 1), (len(self.library.closed), len(self.workers._idle)))
