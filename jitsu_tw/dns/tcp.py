"""
DNS over TCP (RFC 7766): any number of queries in a connection, each answered when it can be, none holding up others.

A connection that does nothing, sends a query octet by octet, or does not read its answers is cut off. When there are as
many as there may be, a new one takes the place of the one that has been idle longest; while all are busy, new ones are
turned away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin
from zope.interface import implementer

from jitsu_tw.dns.binding import set_up
from jitsu_tw.dns.stream import Streams
from jitsu_tw.dns.wire import Source

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from twisted.python.failure import Failure

    from jitsu_tw.dns.server import Server

#: Seconds within which something whole must happen: a query come, or an answer be taken (RFC 7766, 6.2.3).
IDLE: Final = 20.0

#: How many connections there may be, and how many of them from one address.
MOST_CONNECTIONS: Final = 400
MOST_FROM_ONE: Final = 100

#: How many queries of one connection may wait for their answers; further ones are not read meanwhile.
MOST_WAITING: Final = 100


@implementer(IHalfCloseableProtocol, IPushProducer)
class TCP(Int16StringReceiver, TimeoutMixin):
    """
    One connection.

    Attributes:
        waiting: how many queries have no answer yet.
    """

    factory: TCPFactory
    transport: Any
    waiting = 0
    _stuck = False
    _ended = False

    def connectionMade(self) -> None:  # noqa: N802
        """Begin to count idle time."""
        peer = self.transport.getPeer()
        self.source = Source(peer.host, peer.port, tcp=True, proven=True)
        self.streams = Streams(self.sendString, self.transport.abortConnection, self.factory.reactor)
        if not self.factory.admit(self):
            self.transport.abortConnection()
            return
        self.transport.registerProducer(self, True)  # noqa: FBT003
        self.setTimeout(IDLE)

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Take one query."""
        self.resetTimeout()
        self.factory.touch(self)
        self.waiting += 1
        if not self.factory.server.receive(string, self.source, self._answered, self._stream):
            self.waiting -= 1
        self._look()

    def _answered(self, reply: bytes) -> None:
        self.waiting -= 1
        if self.connected:
            self.resetTimeout()
            self.sendString(reply)
            self._look()

    def _stream(self, packets: Iterator[bytes]) -> None:
        self.streams.begin(packets).addCallback(self._streamed)

    def _streamed(self, _: bool) -> None:  # noqa: FBT001
        self.waiting -= 1
        if self.connected:
            self.resetTimeout()
            self._look()

    def _look(self) -> None:
        """Read on, or not; close a connection that has nothing more to ask and nothing to wait for."""
        if self._ended:
            if not self.waiting:
                self.transport.loseConnection()
            return
        busy = self._stuck or self.waiting >= MOST_WAITING
        if busy and not self.paused:
            super().pauseProducing()
        elif self.paused and not busy:
            super().resumeProducing()

    def timeoutConnection(self) -> None:  # noqa: N802
        """Cut the connection off, unless it is we who keep it waiting."""
        if self.waiting and not self._stuck:
            self.setTimeout(IDLE)
        else:
            self.transport.abortConnection()

    def pauseProducing(self) -> None:  # noqa: N802
        """Hear that the client does not take its answers: it has `IDLE` seconds to begin, and is not read meanwhile."""
        self._stuck = True
        self.setTimeout(IDLE)
        self.streams.pause()
        self._look()

    def resumeProducing(self) -> None:  # noqa: N802
        """Hear that the client takes them."""
        self._stuck = False
        self.setTimeout(IDLE)
        self.streams.resume()
        self._look()

    def stopProducing(self) -> None:  # noqa: N802
        """Hear that the connection is gone; `connectionLost` will say so too."""

    def readConnectionLost(self) -> None:  # noqa: N802
        """Hear that the client will ask no more; it still gets what it asked for."""
        self._ended = True
        self._look()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """Hear that nothing more can be sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        """Stop counting."""
        self.setTimeout(None)
        self.streams.stop()
        self.factory.forget(self)


class TCPFactory(Factory):
    """
    All connections of one port.

    Attributes:
        server: answers the queries.
    """

    noisy = False

    def __init__(self, server: Server, reactor: Any) -> None:
        """Answer with *server*; *reactor* is for what is long."""
        self.server, self.reactor = server, reactor
        self._connections: dict[TCP, None] = {}  # the one that was longest silent first

    def buildProtocol(self, addr: Any) -> Any:  # noqa: ARG002, N802
        """Return the protocol of one connection."""
        protocol = TCP()
        protocol.factory = self
        return protocol

    def admit(self, connection: TCP) -> bool:
        """Say whether there may be this connection too; make room for it if need be."""
        if sum(one.source.host == connection.source.host for one in self._connections) >= MOST_FROM_ONE:
            return False
        if len(self._connections) >= MOST_CONNECTIONS:
            idle = next((one for one in self._connections if not one.waiting), None)
            if idle is None:
                return False
            del self._connections[idle]
            idle.transport.abortConnection()
        self._connections[connection] = None
        return True

    def touch(self, connection: TCP) -> None:
        """Hear that *connection* does something."""
        if connection in self._connections:
            del self._connections[connection]
            self._connections[connection] = None

    def forget(self, connection: TCP) -> None:
        """Hear that *connection* is gone."""
        self._connections.pop(connection, None)


class TCPPort(tcp.Port):
    """A TCP port of a DNS server."""

    def createInternetSocket(self) -> socket.socket:  # noqa: N802
        """Return a socket that is bound as the UDP one is."""
        made: socket.socket = super().createInternetSocket()
        set_up(made)
        return made
