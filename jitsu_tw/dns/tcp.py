"""
DNS over TCP (RFC 7766): any number of queries in a connection, each answered when it can be, none holding up others.

A connection that does nothing, sends a query octet by octet, or does not read its answers is cut off. When there are as
many as there may be, one gives way (`connections`). All connections together are read for `SLICE` seconds in each turn
of the reactor, and client networks take turns in it: a client that sends thousands of queries at once waits for its own
answers, others do not. Connections that have had no answer yet are a group of their own, and wait only for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin
from zope.interface import implementer

from jitsu_tw.dns.binding import set_up
from jitsu_tw.dns.connections import Connections
from jitsu_tw.dns.stream import Streams
from jitsu_tw.dns.wire import Source
from jitsu_tw.networks import network, packed
from jitsu_tw.shares import Line
from jitsu_tw.slices import Slices

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from twisted.python.failure import Failure

    from jitsu_tw.dns.server import Server

#: Seconds within which something whole must happen: a query come, or an answer be taken (RFC 7766, 6.2.3).
IDLE: Final = 20.0

#: Seconds that a connection has to take what is left for it when the server ends.
ENDING: Final = 2.0

#: How many connections wait in the kernel to be accepted. Of more, it drops the SYNs, those of good clients too,
#: which then try again a second later.
BACKLOG: Final = 1024

#: How many of them are accepted in one turn of the reactor: 5 ms or so of work.
BATCH: Final = 64

#: How much is read from a connection at a time, and how much may wait to be sent, in octets. With 400 connections,
#: the 64 KiB of Twisted cost more time and memory than all else.
BUFFER: Final = 8192

#: How many queries of one connection are read before it is another's turn; of a new connection it is one.
SHARE: Final = 8

#: How many connections send zones at once, and how many of them to one client network. Each works for a millisecond in
#: a turn of the reactor, and keeps eight octets for each RRset of its zone.
MOST_TRANSFERS: Final = 8
MOST_TRANSFERS_TO_ONE: Final = 2

#: How many queries of one connection may wait for their answers; further ones are not read meanwhile.
MOST_WAITING: Final = 100


@implementer(IHalfCloseableProtocol, IPushProducer)
class TCP(Int16StringReceiver, TimeoutMixin):
    """
    One connection.

    Attributes:
        waiting: how many queries have no answer yet.
        share: how many queries may be read before it is another connection's turn.
        is_new: no query has been read yet.
    """

    factory: TCPFactory
    transport: Any
    waiting = 0
    share = 1
    is_new = True
    _stuck = False
    _ended = False
    _closing = False
    _transfers = 0
    _may_transfer = False

    def connectionMade(self) -> None:  # noqa: N802
        """Begin to count idle time."""
        peer = self.transport.getPeer()
        self.transport.bufferSize = BUFFER
        self.source = Source(peer.host, peer.port, tcp=True, proven=True)
        self.network = network(packed(peer.host))
        self.streams = Streams(self.sendString, self.transport.abortConnection, self.factory.reactor)
        self.streams.pause()
        self.factory.admit(self)
        self.transport.registerProducer(self, True)  # noqa: FBT003
        self.setTimeout(IDLE)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take octets; where the time of this turn is over, they wait for a later one."""
        self.look()
        super().dataReceived(data)

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Take one query."""
        self.resetTimeout()
        self.factory.slices.begin()
        self.waiting += 1
        self.share -= 1
        self.is_new = False
        if not self.factory.server.receive(string, self.source, self._answered, self._stream):
            self.waiting -= 1
        self.factory.connections.touch(self, waits=bool(self.waiting))
        self.look()

    def _answered(self, reply: bytes) -> None:
        if self.connected:
            self.sendString(reply)
        self._done()

    def _stream(self, packets: Iterator[bytes]) -> None:
        self._transfers += 1
        self.streams.begin(packets).addCallback(self._streamed)
        if self._transfers == 1:
            self.factory.transfers.ask(self, self.network)

    def transfer(self) -> None:
        """Send the zones that are asked for: there is a place among those that do."""
        self._may_transfer = True
        if not self._stuck:
            self.streams.resume()

    def _streamed(self, _: bool) -> None:  # noqa: FBT001
        self._transfers -= 1
        if not self._transfers:
            self._may_transfer = False
            self.streams.pause()
            self.factory.transfers.leave(self, self.network)
        self._done()

    def _done(self) -> None:
        """Wait for one answer less."""
        self.waiting -= 1
        if self.connected:
            if not self._stuck:  # else it is the client that is waited for
                self.resetTimeout()
            self.factory.connections.touch(self, waits=bool(self.waiting))
            self.look()

    def look(self) -> None:
        """Read on, or not; close a connection that has nothing more to ask and nothing to wait for."""
        if self._closing:
            return
        if self._ended:
            if not self.waiting:
                self.close()
            return
        busy = self._stuck or self.waiting >= MOST_WAITING or not self.factory.has_time(self)
        if busy and not self.paused:
            super().pauseProducing()
        elif self.paused and not busy:
            super().resumeProducing()

    def go_on(self) -> None:
        """Read on: it is the connection's turn."""
        self.share = 1 if self.is_new else SHARE
        self.look()

    def close(self) -> None:
        """Read no more, send what there is to send, and close the connection."""
        self._closing = True
        self.streams.stop()
        super().pauseProducing()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

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
        self.look()

    def resumeProducing(self) -> None:  # noqa: N802
        """Hear that the client takes them."""
        self._stuck = False
        self.setTimeout(IDLE)
        if self._may_transfer:
            self.streams.resume()
        self.look()

    def stopProducing(self) -> None:  # noqa: N802
        """Hear that the connection is gone; `connectionLost` will say so too."""

    def readConnectionLost(self) -> None:  # noqa: N802
        """Hear that the client will ask no more; it still gets what it asked for."""
        self._ended = True
        self.look()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """Hear that nothing more can be sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        """Stop counting."""
        self.connected = 0
        self.setTimeout(None)
        self.streams.stop()
        self.factory.forget(self)


class TCPFactory(Factory):
    """
    All connections of all ports.

    Attributes:
        server: answers the queries.
        connections: those that are open.
        transfers: the places of connections that send zones.
        slices: the time in which connections are read.
    """

    noisy = False

    def __init__(self, server: Server, reactor: Any) -> None:
        """Answer with *server*; *reactor* is `IReactorTime`."""
        self.server, self.reactor = server, reactor
        self.connections: Connections[TCP] = Connections()
        self.transfers: Line[TCP] = Line(MOST_TRANSFERS, MOST_TRANSFERS_TO_ONE, TCP.transfer)
        self.slices: Slices[TCP] = Slices(reactor, TCP.go_on)
        self._gone: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> Any:  # noqa: ARG002, N802
        """Return the protocol of one connection."""
        protocol = TCP()
        protocol.factory = self
        return protocol

    def admit(self, connection: TCP) -> None:
        """Count *connection* too, and cut off the one that gives way to it."""
        gone = self.connections.add(connection, connection.network)
        if gone is not None:
            gone.transport.abortConnection()

    def has_time(self, connection: TCP) -> bool:
        """Return whether *connection* may be read in this turn of the reactor; if not, it is in a later one."""
        has_time = self.slices.has_time(
            connection, connection.network, connection.is_new, share=connection.share > 0
        )
        if not has_time and connection.is_new:
            self.connections.touch(connection, waits=True)
        return has_time

    def forget(self, connection: TCP) -> None:
        """Hear that *connection* is gone."""
        self.connections.remove(connection)
        self.slices.drop(connection)
        if self._gone is not None and not self.connections:
            gone, self._gone = self._gone, None
            gone.callback(None)

    def end(self) -> Deferred[None]:
        """Close all connections; the Deferred fires when they are closed, after `ENDING` seconds at the latest."""
        for connection in self.connections:
            connection.close()
        if not self.connections:
            return succeed(None)
        self._gone = Deferred()
        late = self.reactor.callLater(ENDING, self._cut_off)
        return self._gone.addCallback(lambda _: late.active() and late.cancel())

    def _cut_off(self) -> None:
        for connection in self.connections:
            connection.transport.abortConnection()


class TCPPort(tcp.Port):
    """A TCP port of a DNS server."""

    def __init__(self, port: int, factory: TCPFactory, interface: str, reactor: Any) -> None:
        """Listen on *port* of *interface*, an address."""
        super().__init__(port, factory, BACKLOG, interface, reactor)

    def doRead(self) -> None:  # noqa: N802
        """Accept connections, `BATCH` at most; Twisted would accept more and more in each turn of the reactor."""
        self.numberAccepts = BATCH
        super().doRead()

    def createInternetSocket(self) -> socket.socket:  # noqa: N802
        """Return a socket that is bound as the UDP one is."""
        made: socket.socket = super().createInternetSocket()
        set_up(made)
        return made
