"""
Send zone transfers over TCP at the client's pace, a little in each iteration of the reactor.

The connection's protocol is the transport's push producer, and calls `Streams` when the send buffer is full or has
drained, and when the connection is lost. The protocol also cuts off a client that reads nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IDelayedCall

#: Seconds for which one connection sends in one iteration of the reactor.
SLICE: Final = 0.001


class Streams:
    """The transfers of one connection, sent one after the other."""

    log = Logger()

    def __init__(self, send: Callable[[bytes], None], abort: Callable[[], None], reactor: Any) -> None:
        """
        Send nothing yet.

        Args:
            send: sends one packet, preceded by its length.
            abort: cuts the connection off.
            reactor: `IReactorTime`.
        """
        self._send, self._abort, self._reactor = send, abort, reactor
        self._waiting: deque[tuple[Iterator[bytes], Deferred[bool]]] = deque()
        self._scheduled: IDelayedCall | None = None
        self._paused = self._lost = False

    def begin(self, packets: Iterator[bytes]) -> Deferred[bool]:
        """
        Send *packets* after those of earlier calls.

        Args:
            packets: b"" among them is no packet, but a pause. If the iterator raises, the connection is cut off, since
                a client must not take a part for the whole.

        Returns:
            a Deferred of whether all were sent before the connection ended; it has no failures.
        """
        done: Deferred[bool] = Deferred()
        self._waiting.append((packets, done))
        if self._lost:
            self.stop()
        else:
            self._schedule()
        return done

    def pause(self) -> None:
        """Stop sending until `resume`: the client reads more slowly."""
        self._paused = True
        self._schedule()

    def resume(self) -> None:
        """Continue sending."""
        self._paused = False
        self._schedule()

    def stop(self) -> None:
        """Stop for good: the connection is lost. May be called again."""
        self._lost = True
        waiting, self._waiting = self._waiting, deque()
        self._schedule()
        for _, done in waiting:
            done.callback(False)  # noqa: FBT003 - Deferreds are called so

    def _schedule(self) -> None:
        """Schedule `_work` if there are packets to send; cancel it if there are none."""
        wanted = bool(self._waiting) and not self._paused
        if wanted and self._scheduled is None:
            self._scheduled = self._reactor.callLater(0, self._work)
        elif self._scheduled is not None and not wanted:
            self._scheduled.cancel()
            self._scheduled = None

    def _work(self) -> None:
        """Send for `SLICE` seconds. On any exception, abort: a client must not take a part for the whole."""
        self._scheduled = None
        until = self._reactor.seconds() + SLICE
        try:
            while self._waiting and not self._paused:
                packets, done = self._waiting[0]
                packet = next(packets, None)
                if packet is None:
                    self._waiting.popleft()
                    done.callback(True)  # noqa: FBT003
                elif packet:
                    self._send(packet)
                if self._reactor.seconds() >= until:
                    break
        except Exception:  # noqa: BLE001
            self.log.failure("a zone transfer breaks off: unexpected, please report")
            self.stop()
            self._abort()
        self._schedule()
