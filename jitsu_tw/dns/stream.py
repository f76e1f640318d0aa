"""
Sends what is long over TCP at the client's pace, and a little of it in each turn of the reactor.

The connection's protocol is the transport's push producer, and hands on what it hears: the buffer is full, the buffer
has drained, the connection is gone. Cutting off a client that takes nothing is the protocol's business, too.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IDelayedCall

#: How long this works in one turn of the reactor, in seconds; then the others have theirs.
SLICE: Final = 0.001


class Streams:
    """What one connection has to send that is long: one thing after the other."""

    log = Logger()

    def __init__(self, send: Callable[[bytes], None], abort: Callable[[], None], reactor: Any) -> None:
        """
        Send nothing yet.

        Args:
            send: sends one packet, with what TCP puts before it.
            abort: cuts the connection off.
            reactor: `IReactorTime`.
        """
        self._send, self._abort, self._reactor = send, abort, reactor
        self._waiting: deque[tuple[Iterator[bytes], Deferred[bool]]] = deque()
        self._turn: IDelayedCall | None = None
        self._paused = self._lost = False

    def begin(self, packets: Iterator[bytes]) -> Deferred[bool]:
        """
        Send *packets*, after those that are being sent.

        Args:
            packets: b"" among them is none, but a place to pause. If this raises, the connection is cut off, since what
                was sent must not be taken for the whole.

        Returns:
            a Deferred of whether all were sent before the connection ended; it has no failures.
        """
        done: Deferred[bool] = Deferred()
        self._waiting.append((packets, done))
        if self._lost:
            self.stop()
        else:
            self._look()
        return done

    def pause(self) -> None:
        """Wait: the client is slower than we are."""
        self._paused = True
        self._look()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._look()

    def stop(self) -> None:
        """Stop for good: the connection is lost. May be called again."""
        self._lost = True
        waiting, self._waiting = self._waiting, deque()
        self._look()
        for _, done in waiting:
            done.callback(False)  # noqa: FBT003 - Deferreds are called so

    def _look(self) -> None:
        """Have a turn of the reactor coming if there is something to do in it."""
        wanted = bool(self._waiting) and not self._paused
        if wanted and self._turn is None:
            self._turn = self._reactor.callLater(0, self._work)
        elif self._turn is not None and not wanted:
            self._turn.cancel()
            self._turn = None

    def _work(self) -> None:
        """Send for a while. Wide: whatever is wrong with a stream, nobody may take the half of it for the whole."""
        self._turn = None
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
        self._look()
