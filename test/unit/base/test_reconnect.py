"""Connecting to a hypervisor that is silent, refuses, or hangs for a while."""

from __future__ import annotations

import threading

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import reconnect
from jitsu_tw.backends.threaded import in_thread
from jitsu_tw.errors import BackendLost
from jitsu_tw.reconnect import Reconnector
from test.support import PATIENCE, HandClock

#: Seconds that a try is waited for.
WITHIN = 30.0


class ReconnectorTests(SynchronousTestCase):
    """A hypervisor that accepts the connection and does not answer, or refuses it."""

    def setUp(self) -> None:
        """Begin to connect, on a clock, to what does not answer until it is let."""
        self.clock = HandClock()
        self.opens = threading.Semaphore(0)
        self.refuses: Exception | None = None
        self.opened, self.left, self.lost = list[int](), list[int](), list[str]()
        self.made = 0
        self.addCleanup(self.opens.release, 2 * reconnect.MOST)
        self.reconnector = Reconnector(
            "here",
            lambda: in_thread(self.clock, "here", self.open),
            self.opened.append,
            self.lost.append,
            self.left.append,
            self.clock,
            within=WITHIN,
        )
        self.reconnector.begin()

    def open(self) -> int:
        """Open a connection, when it is let."""
        assert self.opens.acquire(timeout=PATIENCE)
        if self.refuses is not None:
            raise self.refuses
        self.made += 1
        return self.made

    def pause(self) -> float:
        """Return how long the pause is that is under way."""
        (again,) = self.clock.getDelayedCalls()
        return float(again.getTime() - self.clock.seconds())

    def test_silent(self) -> None:
        """A try that does not return is left alone; the next one is made, after pauses that grow, but not for ever."""
        self.clock.advance(WITHIN)
        self.assertEqual(["here has not answered within 30 s"], self.lost)
        self.assertEqual(1, self.reconnector.hung)
        pauses = []
        for _ in range(reconnect.MOST - 1):
            pauses.append(self.pause())
            self.clock.advance(pauses[-1])
            self.clock.advance(WITHIN)
        self.assertEqual(reconnect.MOST, self.reconnector.hung)
        self.assertGreater(min(pauses), 1.0)
        self.assertLessEqual(max(pauses), reconnect.SILENT + 1)
        self.assertGreater(pauses[-1], 10 * pauses[0])
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertIn("16 times; the next try is made when one of these ends", self.lost[-1])
        self.refuses = BackendLost("at last")
        self.opens.release()
        self.clock.turn()
        self.assertEqual(1, len(self.clock.getDelayedCalls()))

    def test_late(self) -> None:
        """A try that returns late is as good as another; of two that return, one connection is left."""
        self.clock.advance(WITHIN)
        self.clock.advance(self.pause())
        for left in (0, 1):
            self.opens.release()
            self.clock.turn()
            self.assertEqual((1, left), (len(self.opened), len(self.left)))
        self.assertEqual(0, self.reconnector.hung)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_refused(self) -> None:
        """A connection that is refused is tried again soon, and less often while it goes on being refused."""
        self.refuses = BackendLost("Connection refused")
        pauses = []
        for number in range(20):
            self.opens.release()
            self.clock.turn()
            pauses.append(self.pause())
            self.assertEqual(["Connection refused"] * (number + 1), self.lost)
            self.clock.advance(pauses[-1])
        self.assertLess(pauses[0], 1.5)
        self.assertGreater(pauses[-1], 5.0)
        self.refuses = None
        self.opens.release()
        self.clock.turn()
        self.assertEqual([1], self.opened)

    def test_again(self) -> None:
        """A connection that breaks is made again, after a pause."""
        self.opens.release(2)
        self.clock.turn()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.reconnector.again("it broke")
        self.assertEqual(["it broke"], self.lost)
        self.clock.advance(self.pause())
        self.clock.turn()
        self.assertEqual([1, 2], self.opened)

    def test_again_twice(self) -> None:
        """A connection that is lost twice, or while another one is made, is made once."""
        self.reconnector.again("it broke before it was there")
        self.assertEqual([], self.lost)
        self.opens.release()
        self.clock.turn()
        for _ in range(2):
            self.reconnector.again("it broke")
        self.assertEqual(["it broke"], self.lost)
        self.clock.advance(self.pause())
        self.reconnector.again("it broke")
        self.assertEqual((1, ["it broke"]), (self.reconnector.failures, self.lost))

    def test_end(self) -> None:
        """After the end there is no further try, and what one that was under way has made is left."""
        self.reconnector.end()
        self.reconnector.again("it broke, too late")
        self.opens.release()
        self.clock.turn()
        self.assertEqual(([], [1], []), (self.opened, self.left, self.clock.getDelayedCalls()))

    def test_end_of_what_hangs(self) -> None:
        """After the end an attempt that does not return has no effect."""
        self.reconnector.end()
        self.clock.advance(WITHIN)
        self.assertEqual(([], []), (self.lost, self.clock.getDelayedCalls()))

    def test_fault_of_ours(self) -> None:
        """Whatever goes wrong in a try is reported, and there is another one."""
        self.refuses = ZeroDivisionError("no")
        self.opens.release()
        self.clock.turn()
        self.assertEqual(["no"], self.lost)
        self.assertEqual(1, len(self.clock.getDelayedCalls()))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))


class PauseTests(SynchronousTestCase):
    """A try that is no thread: it has no deadline here."""

    def test_steady(self) -> None:
        """Pauses grow from the first to the longest, and begin anew with each connection."""
        clock, tries, lost = Clock(), list[Deferred[int]](), list[str]()

        def connect() -> Deferred[int]:
            tries.append(Deferred())
            return tries[-1]

        reconnector = Reconnector(
            "here", connect, lambda _: None, lost.append, lambda _: None, clock, reconnect.steady(1.0, 5.0, 2.0)
        )
        reconnector.begin()
        self.assertEqual([], clock.getDelayedCalls())
        for failures, pause in enumerate((1.0, 2.0, 4.0, 5.0, 5.0), 1):
            tries.pop().errback(BackendLost("no"))
            (again,) = clock.getDelayedCalls()
            self.assertEqual((failures, pause), (reconnector.failures, again.getTime() - clock.seconds()))
            clock.advance(pause)
        tries.pop().callback(1)
        reconnector.again("it broke")
        clock.advance(1.0)
        self.assertEqual((1, ["no"] * 5 + ["it broke"]), (len(tries), lost))
        tries.pop().errback(ConnectionRefusedError())
        reconnector.end()
        self.assertEqual([], clock.getDelayedCalls())
