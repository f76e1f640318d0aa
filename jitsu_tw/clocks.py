"""
The two clocks of Jitsu and Synjitsu: a steady one for intervals and timers, and the wall clock for timestamps.

Twisted's reactor reads `time.time`: if the operator sets that back by an hour, timers are late by an hour. So `install`
gives the reactor the steady clock, which is CLOCK_MONOTONIC without the time in which this process did not run:

- While the machine is suspended, CLOCK_MONOTONIC stands still (clock_gettime(2)). So do the guests, and no client can
  use them: that time must not end a lease.
- While the process alone is stopped or swapped out, CLOCK_MONOTONIC goes on, but nothing is read: no query from a
  socket, no answer of a guest or a hypervisor. Afterwards, Twisted runs all timers that are due before it reads
  anything. With the steady clock none is due because of the stop.

Claims in etcd must count real time: they use CLOCK_BOOTTIME (`cluster.coordinator.session`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

#: The reactor reads its clock at least this often, in seconds, so that a long gap between two readings is a stall.
BEAT: Final = 0.5

#: A gap longer than this between two readings is a stall, and counts as at most this long, in seconds.
STALL: Final = 2.0

#: After a stall the clock stands still for this long, in seconds: meanwhile, the reactor reads what has arrived.
CATCH_UP: Final = 1.0

#: It does so only if the last stall was longer ago than this, in seconds: on an overloaded machine each iteration of
#: the reactor may be a stall, and the timers must go on.
CALM: Final = 10.0


@attrs.frozen
class Clocks:
    """
    The clocks that a fleet needs.

    Attributes:
        reactor: schedules calls.
        now: returns the seconds of the reactor's clock, which is never set; for intervals, such as leases.
        wall: returns the seconds since 1970; for persistent data, and for times of the week.
    """

    reactor: IReactorTime
    now: Callable[[], float] = attrs.field(
        default=attrs.Factory(lambda clocks: clocks.reactor.seconds, takes_self=True)
    )
    wall: Callable[[], float] = time.time


class SteadyClock:
    """
    A clock that goes on only while this process runs.

    Attributes:
        lost: seconds in which the process did not run, so that the clock stood still.
    """

    log = Logger()

    def __init__(self, begin: float, real: Callable[[], float] = time.monotonic) -> None:
        """Begin at *begin* seconds; *real* goes on while the process does not run. Detect stalls from `beat` on."""
        self._real = real
        self._read = real()
        self._zero = begin - self._read
        self._last = begin
        self._stalled = self._read - CALM
        self._beats = False
        self.lost = self._logged = 0.0

    def seconds(self) -> float:
        """Return the seconds of this clock. Only the reactor's thread may call it."""
        read = self._real()
        gap, self._read = read - self._read, read
        if gap > STALL and self._beats:
            self.lost += gap - STALL
            if read - gap >= self._stalled + CALM:
                self.lost += STALL + CATCH_UP
            self._stalled = read
        self._last = max(self._last, read + self._zero - self.lost)
        return self._last

    def beat(self) -> None:
        """Read the clock, and log the seconds lost since the last call; to be called every `BEAT` seconds."""
        self.seconds()
        self._beats = True
        lost, self._logged = self.lost - self._logged, self.lost
        if lost:
            self.log.warn(
                "timers are {lost:.1f} s later: this process did not run for about that time (stopped, swapped out, or "
                "the machine is too busy)",
                lost=lost,
            )


def install(reactor: Any, real: Callable[[], float] = time.monotonic) -> None:
    """
    Give *reactor* a steady clock, for as long as the process runs; call it once.

    The clock goes on from the reactor's present time, so that calls which were scheduled before stay right.
    """
    clock = SteadyClock(reactor.seconds(), real)
    reactor.seconds = clock.seconds
    beats = LoopingCall(clock.beat)
    beats.clock = reactor
    reactor.callLater(0, beats.start, BEAT)  # when the reactor runs: its start may take long, and is no stall
