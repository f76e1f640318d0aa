"""
The connection to etcd: a watch and a lease that is renewed, by one of its members.

When that member fails, the next is tried at once; when all have failed, after a pause that grows with each round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jitsu_tw.coroutines import report, spawn
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.reconnect import Reconnector, steady

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jitsu_tw.cluster.coordinator.gateway import Gateway, Stream

#: Returns the seconds until etcd's members are tried again, after so many rounds in which all have failed.
_PAUSE: Final = steady(0.1, 2.0)


class Link:
    """
    The connection, made again whenever it breaks.

    Attributes:
        failures: of members of etcd, one after the other, since there was a connection.
    """

    log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        every: float,
        reactor: Any,
        connect: Callable[[], Deferred[Stream]],
        connected: Callable[[], None],
        keep: Callable[[], Coroutine[Deferred[Any], Any, None]],
        lost: Callable[[str], None],
    ) -> None:
        """
        Connect to no member yet.

        Args:
            gateway: the members.
            every: seconds between two calls of *keep*.
            reactor: makes the timers.
            connect: begins a watch by the present member.
            connected: is called when there is a connection; whatever it raises ends that.
            keep: uses the connection; whatever it raises ends that, too.
            lost: is called with the reason when there is no connection any more.
        """
        self._gateway, self._every, self._reactor = gateway, every, reactor
        self._tell, self._keep = connected, keep
        self._stream: Stream | None = None
        self._rounds = 0  # in which all members failed, one after the other
        self._pausing: Deferred[None] | None = None
        self._reconnector: Reconnector[Stream] = Reconnector(
            "etcd", connect, self._connected, lost, lambda stream: stream.stop(), reactor, self._next_member
        )

    @property
    def failures(self) -> int:
        """How many members have failed since there was a connection."""
        return self._reconnector.failures

    def begin(self) -> None:
        """Connect, now and whenever the connection breaks."""
        self._reconnector.begin()

    def end(self) -> None:
        """Take no more from the watch, and make no further connection."""
        self._reconnector.end()
        self._leave()

    def lose(self, reason: str) -> None:
        """Leave the present member of etcd, because of *reason*, unless it has been left already."""
        if self._leave():
            self._reconnector.again(reason)

    def wake(self) -> None:
        """Use the connection now: that shows whether there is one, and whether etcd knows the lease."""
        if self._pausing is not None and not self._pausing.called:
            self._pausing.callback(None)

    def _leave(self) -> bool:
        stream, self._stream = self._stream, None
        if stream is None:
            return False
        stream.stop()
        self.wake()
        return True

    def _connected(self, stream: Stream) -> None:
        self._stream = stream
        spawn(self.log, self._stay(stream), "etcd")

    async def _stay(self, stream: Stream) -> None:
        """Use the connection, again and again, while it is that of *stream*."""
        try:
            self._tell()
            while await self._lasts(stream):
                await self._keep()
                self._rounds = 0
        except Exception as error:  # noqa: BLE001
            # Whatever it is, a node that has given up would stay apart for ever.
            if self._stream is stream:
                if not isinstance(error, ClusterUnavailable):
                    report(self.log, "etcd")
                self.lose(str(error) or repr(error))

    async def _lasts(self, stream: Stream) -> bool:
        """Wait until the connection is to be used, or until woken; return whether *stream* is there still."""
        if self._stream is stream:
            self._pausing = pausing = Deferred[None]()
            await pausing.addTimeout(self._every, self._reactor, onTimeoutCancel=lambda *_: None)
        return self._stream is stream

    def _next_member(self, _failures: int) -> float:
        """Leave the present member of etcd for the next; return the seconds until that is tried."""
        if not self._gateway.next():
            return 0.0
        self._rounds += 1
        return _PAUSE(self._rounds)
