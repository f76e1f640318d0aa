"""
Connecting to a hypervisor, again whenever it must be: each try in a thread of its own, because it blocks.

A try that does not return is left alone, and another one is made after a while: a daemon that has hung may go on, a
host that is silent may be gone. The first try that succeeds counts, however late it is.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from twisted.application.internet import backoffPolicy
from twisted.logger import Logger

from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after which a try is not waited for any more.
WITHIN: Final = 30.0

#: How many tries may hang, each with a thread; if more do, no further one is made before one of them ends.
MOST: Final = 16

#: Seconds between tries, at most: where the hypervisor refuses, and where it is silent.
REFUSED: Final = 10.0
SILENT: Final = 600.0


class Reconnector:
    """
    Connects. Everything but `_work` runs in the reactor's thread.

    Attributes:
        hung: how many tries have not returned in time, and not yet.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        opens: Callable[[], Any],
        opened: Callable[[Any], None],
        lost: Callable[[str], None],
        leave: Callable[[Any], None],
        reactor: Any,
    ) -> None:
        """
        Make no try yet.

        Args:
            name: of the hypervisor, in messages.
            opens: makes a connection, in a thread; blocks.
            opened: is told of the connection.
            lost: is told why there is none, each time.
            leave: is given a connection that is not needed any more.
            reactor: makes the timers.
        """
        self._name, self._reactor = name, reactor
        self._opens, self._opened, self._lost, self._leave = opens, opened, lost, leave
        self._refused = backoffPolicy(initialDelay=0.1, maxDelay=REFUSED)
        self._silent = backoffPolicy(initialDelay=REFUSED, maxDelay=SILENT)
        self._failures = 0
        self._retry: Any = None
        self._wanted = self._ended = False
        self.hung = 0

    def begin(self) -> None:
        """Connect, now and whenever `again` is called."""
        self._wanted = True
        self._try()

    def end(self) -> None:
        """Make no further try. One that is under way is left alone."""
        self._wanted, self._ended = False, True
        self._stop_waiting()

    def again(self, reason: str) -> None:
        """Connect after a while, because the connection broke for *reason*."""
        self._wanted = not self._ended
        self._later(reason, self._refused)

    def _try(self) -> None:
        if self._wanted:
            late = self._reactor.callLater(WITHIN, self._late)
            name = f"{self._name}, connecting"
            threading.Thread(target=self._work, args=(late,), name=name, daemon=True).start()

    def _work(self, late: Any) -> None:
        """Make a try, in a thread, and tell how it went."""
        try:
            connection = self._opens()
        except JitsuError as error:
            self._reactor.callFromThread(self._failed, late, str(error))
        except Exception as error:  # noqa: BLE001
            # A fault of ours must not end the tries for ever.
            self.log.failure("{name}: unexpected, please report", name=self._name)
            self._reactor.callFromThread(self._failed, late, str(error) or repr(error))
        else:
            self._reactor.callFromThread(self._succeeded, late, connection)

    def _returned(self, late: Any) -> bool:
        """Note that a try has returned; return whether that was in time."""
        if late.active():
            late.cancel()
            return True
        self.hung -= 1
        return False

    def _succeeded(self, late: Any, connection: Any) -> None:
        self._returned(late)
        if self._wanted:
            self._stop_waiting()
            self._wanted, self._failures = False, 0
            self._opened(connection)
        else:
            self._leave(connection)

    def _failed(self, late: Any, reason: str) -> None:
        if self._returned(late) or not self._waits():
            self._later(reason, self._refused)

    def _late(self) -> None:
        self.hung += 1
        reason = f"{self._name} has not answered within {WITHIN:g} s"
        if self.hung < MOST:
            self._later(reason, self._silent)
        elif self._wanted:
            self._lost(f"{reason}, {self.hung} times; the next try is made when one of these ends")

    def _later(self, reason: str, pause: Callable[[int], float]) -> None:
        """Make a try after a pause that grows with each failure."""
        if self._wanted:
            self._failures += 1
            self._retry = self._reactor.callLater(pause(self._failures), self._try)
            self._lost(reason)

    def _waits(self) -> bool:
        """Return whether there will be another try."""
        return self._retry is not None and bool(self._retry.active())

    def _stop_waiting(self) -> None:
        if self._waits():
            self._retry.cancel()
