"""The steady clock: it goes on while the process runs, however the wall clock is set, and reads sockets first."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import BEAT, CALM, CATCH_UP, STALL, Clocks, SteadyClock, install
from test.support import BoundedClock


class SteadyClockTests(SynchronousTestCase):
    """`SteadyClock`."""

    def setUp(self) -> None:
        """Begin long ago."""
        self.real = Clock()
        self.clock = SteadyClock(1000.0, self.real.seconds)
        self.clock.beat()

    def run_for(self, seconds: float) -> None:
        """Run: the clock is read all the time."""
        for _ in range(round(seconds / BEAT)):
            self.real.advance(BEAT)
            self.clock.seconds()

    def test_runs(self) -> None:
        """It goes on from its given beginning, as fast as the real one."""
        self.run_for(60)
        self.assertAlmostEqual(1060.0, self.clock.seconds())
        self.assertEqual(0.0, self.clock.lost)

    def test_stall(self) -> None:
        """Of a stall it knows nothing, and after it stands still until the sockets are read; then it goes on."""
        self.run_for(60)
        self.real.advance(3600.0)
        self.assertAlmostEqual(1060.0, self.clock.seconds())
        self.run_for(CATCH_UP)
        self.assertAlmostEqual(1060.0, self.clock.seconds())
        self.run_for(60)
        self.assertAlmostEqual(1120.0, self.clock.seconds())

    def test_always_late(self) -> None:
        """Where each iteration is a stall, it goes on all the same, and never back."""
        before = self.clock.seconds()
        for _ in range(100):
            self.real.advance(3 * STALL)
            now = self.clock.seconds()
            self.assertGreaterEqual(now, before)
            before = now
        self.assertGreater(before, 1000.0 + 90 * STALL)

    def test_again(self) -> None:
        """A stall some time after another is one like the first."""
        for number in range(3):
            self.real.advance(50.0)
            self.assertAlmostEqual(1000.0 + number * (CALM + 2.0), self.clock.seconds())
            self.run_for(CATCH_UP + CALM + 2.0)

    def test_log(self) -> None:
        """What was lost is logged once."""
        messages: list[str] = []
        self.patch(SteadyClock, "log", type("Log", (), {"warn": lambda _, text, **values: messages.append(
            text.format(**values))})())
        self.real.advance(7.0)
        self.clock.beat()
        self.clock.beat()
        self.assertEqual(1, len(messages))
        self.assertIn("timers are 8.0 s later", messages[0])


class Waits(DatagramProtocol):
    """Notes each datagram."""

    noisy = False

    def __init__(self, events: list[str]) -> None:
        """Append the call to *events*."""
        self._events = events

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002, N802
        """Append the call."""
        self._events.append(datagram.decode())


class InstallTests(SynchronousTestCase):
    """A reactor of Twisted's with the steady clock."""

    def setUp(self) -> None:
        """Make a reactor that nobody runs but the test."""
        self.real = Clock()
        self.reactor = SelectReactor()
        self.events: list[str] = []
        self.addCleanup(self.reactor.removeAll)
        self.addCleanup(self.end)

    def end(self) -> None:
        """End what is scheduled."""
        for call in self.reactor.getDelayedCalls():
            call.cancel()

    def turn(self, seconds: float = 0.0) -> None:
        """Advance the time, then run one iteration of the reactor."""
        self.real.advance(seconds)
        self.reactor.iterate(0)

    def test_stall(self) -> None:
        """What waits in a socket after a stall of an hour is read before the timers that were due in that hour run."""
        install(self.reactor, self.real.seconds)
        port = self.reactor.listenUDP(0, Waits(self.events), interface="127.0.0.1")
        self.reactor.callLater(4.0, self.events.append, "lease ends")
        client = self.reactor.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        self.turn(BEAT)
        client.write(b"question", ("127.0.0.1", port.getHost().port))
        self.turn(3600.0)
        self.assertEqual(["question"], self.events)
        for _ in range(round((CATCH_UP + 4.0) / BEAT)):
            self.turn(BEAT)
        self.assertEqual(["question", "lease ends"], self.events)

    def test_long_start(self) -> None:
        """What a start takes, before the reactor runs, is no stall."""
        before = self.reactor.seconds()
        install(self.reactor, self.real.seconds)
        self.turn(60.0)
        self.assertGreaterEqual(self.reactor.seconds(), before + 60.0)

    def test_scheduled_before(self) -> None:
        """What was scheduled by the old clock comes when it is due."""
        self.reactor.callLater(2.0, self.events.append, "due")
        install(self.reactor, self.real.seconds)
        for seconds, due in ((1.0, []), (0.5, []), (0.6, ["due"])):
            self.turn(seconds)
            self.assertEqual(due, self.events)

    def test_set_back(self) -> None:
        """A wall clock that is set back, or forward, by an hour moves no timer."""
        install(self.reactor, self.real.seconds)
        wall = time.time()
        self.reactor.callLater(1.0, self.events.append, "due")
        for shift, due in ((-3600.0, []), (3600.0, []), (0.0, ["due"])):
            self.patch(time, "time", lambda shift=shift: wall + shift)
            self.turn(0.4)
            self.assertEqual(due, self.events)

    def test_intervals(self) -> None:
        """By default, intervals are counted by the reactor's clock."""
        install(self.reactor, self.real.seconds)
        clocks = Clocks(self.reactor)
        self.assertEqual(self.reactor.seconds(), clocks.now())


class BoundedClockTests(SynchronousTestCase):
    """The clock of the other tests."""

    def test_endless(self) -> None:
        """A call that plans itself for the same moment makes the test fail, and does not hang it."""
        clock = BoundedClock()

        def again() -> None:
            clock.callLater(0, again)

        again()
        error = self.assertRaises(AssertionError, clock.advance, 1.0)
        self.assertIn("again", str(error))

    def test_as_twisted(self) -> None:
        """Calls are made when they are due, in the order of their times, and those that they plan as well."""
        made: list[tuple[str, list[str]]] = []
        for kind in (Clock, BoundedClock):
            clock, calls = kind(), list[str]()
            clock.callLater(2.0, calls.append, "late")
            clock.callLater(1.0, calls.append, "early")
            clock.callLater(1.0, clock.callLater, 0.0, calls.append, "planned")
            clock.callLater(9.0, calls.append, "not due")
            clock.advance(3.0)
            made.append((str(clock.seconds()), calls))
        self.assertEqual(("3.0", ["early", "late", "planned"]), made[0])
        self.assertEqual(made[0], made[1])
