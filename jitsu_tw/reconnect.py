"""
Connecting to another program, and connecting again whenever the connection breaks.

A try that cannot be ended, because it is in a thread, is left alone when its deadline has passed, and another one is
made after a while: a daemon that has hung may go on, and a host that is silent may be gone. The first try that succeeds
counts, however late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.internet.error import ConnectError
from twisted.logger import Logger

from jitsu_tw.coroutines import report, spawn
from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

C = TypeVar("C")

#: How many tries may hang. With so many, none is made before one of them ends: each may keep a thread.
MOST: Final = 16

#: Seconds between tries, at most: where the other program refuses, and where it is silent.
REFUSED: Final = 10.0
SILENT: Final = 600.0


def steady(first: float, longest: float, factor: float = 1.5) -> Callable[[int], float]:
    """Return the pause in seconds after each number of failures; it grows from *first* to *longest*."""
    pause: Callable[[int], float] = backoffPolicy(first, longest, factor, jitter=lambda: 0.0)
    return lambda failures: pause(failures - 1)


class Reconnector(Generic[C]):
    """
    Makes one connection after another, of any kind.

    Attributes:
        failures: how many tries have failed since the last connection, a broken connection included.
        hung: how many tries have not returned within their deadline, and not yet.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        connect: Callable[[], Deferred[C]],
        connected: Callable[[C], None],
        lost: Callable[[str], None],
        discard: Callable[[C], object],
        reactor: Any,
        pause: Callable[[int], float] | None = None,
        within: float | None = None,
    ) -> None:
        """
        Make no try yet.

        Args:
            name: of the other program, in messages.
            connect: makes a connection.
            connected: is called with the connection.
            lost: is called with the reason for each failure.
            discard: is called with a connection that is not needed any more.
            reactor: makes the timers.
            pause: returns the seconds until the next try after so many failures; by default up to `REFUSED`.
            within: seconds that a try is waited for; None if each step of it has a deadline of its own.
        """
        self._name, self._reactor = name, reactor
        self._connect, self._connected, self._lost, self._discard = connect, connected, lost, discard
        self._pause = pause or backoffPolicy(initialDelay=0.1, maxDelay=REFUSED)
        self._silent = backoffPolicy(initialDelay=REFUSED, maxDelay=SILENT)
        self._retry: Any = None
        self._within = within
        self._wanted = self._ended = False
        self.failures = self.hung = 0

    def begin(self) -> None:
        """Connect, now and whenever `again` is called."""
        self._wanted = True
        self._try()

    def end(self) -> None:
        """Make no further try. A try that is under way is left alone, and so is the connection."""
        self._wanted, self._ended = False, True
        self._stop_waiting()

    def again(self, reason: str) -> None:
        """Connect after a pause, because the connection broke for *reason*; do nothing if that is under way."""
        if not (self._wanted or self._ended):
            self._wanted = True
            self._later(reason, self._pause)

    def _try(self) -> None:
        if self._wanted:
            late = None if self._within is None else self._reactor.callLater(self._within, self._late)
            tried = self._connect().addCallbacks(self._succeeded, self._failed, (late,), errbackArgs=(late,))
            spawn(self.log, tried, self._name)

    def _returned(self, late: Any) -> bool:
        """Note that a try has returned; return whether that was in time."""
        if late is None:
            return True
        if late.active():
            late.cancel()
            return True
        self.hung -= 1
        return False

    def _succeeded(self, connection: C, late: Any) -> None:
        self._returned(late)
        if self._wanted:
            self._stop_waiting()
            self._wanted, self.failures = False, 0
            self._connected(connection)
        else:
            self._discard(connection)

    def _failed(self, failure: Failure, late: Any) -> None:
        in_time = self._returned(late)
        if not (self._ended or failure.check(JitsuError, ConnectError, OSError)):
            report(self.log, self._name, failure)
        if in_time or not self._waits():
            self._later(failure.getErrorMessage() or repr(failure.value), self._pause)

    def _late(self) -> None:
        self.hung += 1
        reason = f"{self._name} has not answered within {self._within:g} s"
        if self.hung < MOST:
            self._later(reason, self._silent)
        elif self._wanted:
            self._lost(f"{reason}, {self.hung} times; the next try is made when one of these ends")

    def _later(self, reason: str, pause: Callable[[int], float]) -> None:
        """Make a try after a pause that grows with each failure."""
        if self._wanted:
            self.failures += 1
            self._retry = self._reactor.callLater(pause(self.failures), self._try)
            self._lost(reason)

    def _waits(self) -> bool:
        """Return whether there will be another try."""
        return self._retry is not None and bool(self._retry.active())

    def _stop_waiting(self) -> None:
        if self._waits():
            self._retry.cancel()
