"""
DNS over TCP (RFC 7766): any number of queries in a connection, each answered as soon as possible, in any order.

A connection that does nothing, sends a query octet by octet, or does not read its answers is cut off. When there are as
many as allowed, one is closed for a new one (`connections`). All connections together are read for `SLICE` seconds in
each iteration of the reactor, one client network after another: a client that sends thousands of queries at once waits
for its own answers, others do not. Connections without an answer yet are a group of their own, and wait only for each
other.
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
from jitsu_tw.networks import of_peer
from jitsu_tw.shares import Line
from jitsu_tw.slices import Slices

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from twisted.python.failure import Failure

    from jitsu_tw.dns.server import Server

#: Seconds within which a whole query must arrive, or the client must read an answer (RFC 7766, 6.2.3).
IDLE: Final = 20.0

#: Seconds that a client has to read its last answers when the server ends.
ENDING: Final = 2.0

#: How many connections wait in the kernel to be accepted. It drops further SYNs, those of good clients too, which then
#: try again a second later.
BACKLOG: Final = 1024

#: How many connections are accepted in one iteration of the reactor: about 5 ms of work.
BATCH: Final = 64

#: How much is read from a connection at a time, and how much may wait to be sent, in octets. With 400 connections,
#: Twisted's 64 KiB cost more time and memory than everything else.
BUFFER: Final = 8192

#: How many queries of one connection are read before another connection is read; of a new connection it is one.
SHARE: Final = 8

#: How many connections send zones at once, and how many of them to one client network. Each takes a millisecond of an
#: iteration of the reactor, and eight octets for each RRset of its zone.
MOST_TRANSFERS: Final = 8
MOST_TRANSFERS_TO_ONE: Final = 2

#: How many queries of one connection may wait for their answers; meanwhile, no more are read.
MOST_WAITING: Final = 100


@implementer(IHalfCloseableProtocol, IPushProducer)
class TCP(Int16StringReceiver, TimeoutMixin):
    """
    One connection.

    Attributes:
        waiting: how many queries have no answer yet.
        share: how many queries may be read before another connection is read.
        is_new: whether no query has been read yet.
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
        """Count the connection, and start its timeout."""
        peer = self.transport.getPeer()
        self.transport.bufferSize = BUFFER
        self.source = Source(peer.host, peer.port, tcp=True, proven=True)
        self.network = of_peer(peer)
        self.streams = Streams(self.sendString, self.transport.abortConnection, self.factory.reactor)
        self.streams.pause()
        self.factory.admit(self)
        self.transport.registerProducer(self, True)  # noqa: FBT003
        self.setTimeout(IDLE)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Handle octets; they wait if the time of this iteration of the reactor is used up."""
        self.update_reading()
        super().dataReceived(data)

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Handle one query."""
        self.resetTimeout()
        self.factory.slices.begin()
        self.waiting += 1
        self.share -= 1
        self.is_new = False
        if not self.factory.server.receive(string, self.source, self._answered, self._stream):
            self.waiting -= 1
        self.factory.connections.touch(self, waits=bool(self.waiting))
        self.update_reading()

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
        """Send the requested zones: fewer than `MOST_TRANSFERS` connections are sending."""
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
        """Handle that a query has got its answer, or will get none."""
        self.waiting -= 1
        if self.connected:
            if not self._stuck:  # else the timeout is for the client to read
                self.resetTimeout()
            self.factory.connections.touch(self, waits=bool(self.waiting))
            self.update_reading()

    def update_reading(self) -> None:
        """Pause or resume reading; close the connection if the client has ended it and has all its answers."""
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
        """Read on, up to a new share: the other connections that waited have been read."""
        self.share = 1 if self.is_new else SHARE
        self.update_reading()

    def close(self) -> None:
        """Stop reading, send the remaining answers, and close the connection."""
        self._closing = True
        self.streams.stop()
        super().pauseProducing()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def timeoutConnection(self) -> None:  # noqa: N802
        """Abort the connection, unless the client waits for an answer of the server."""
        if self.waiting and not self._stuck:
            self.setTimeout(IDLE)
        else:
            self.transport.abortConnection()

    def pauseProducing(self) -> None:  # noqa: N802
        """Handle a client that does not read its answers: give it `IDLE` seconds to begin, and read no more queries."""
        self._stuck = True
        self.setTimeout(IDLE)
        self.streams.pause()
        self.update_reading()

    def resumeProducing(self) -> None:  # noqa: N802
        """Handle a client that reads its answers again: read its queries again."""
        self._stuck = False
        self.setTimeout(IDLE)
        if self._may_transfer:
            self.streams.resume()
        self.update_reading()

    def stopProducing(self) -> None:  # noqa: N802
        """Do nothing: Twisted calls `connectionLost`, too."""

    def readConnectionLost(self) -> None:  # noqa: N802
        """Handle a client that has closed its half of the connection: it still gets its answers."""
        self._ended = True
        self.update_reading()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """Do nothing: Twisted calls `connectionLost`, too."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        """Handle the end of the connection: stop its timeout and its transfers, and forget it."""
        self.connected = 0
        self.setTimeout(None)
        self.streams.stop()
        self.factory.forget(self)


class TCPFactory(Factory):
    """
    All connections of all ports.

    Attributes:
        server: answers the queries.
        connections: the open connections.
        transfers: the connections that send zones, and those that wait to.
        slices: the time for reading connections.
    """

    noisy = False

    def __init__(self, server: Server, reactor: Any) -> None:
        """Answer with *server*; *reactor* is `IReactorTime`."""
        self.server, self.reactor = server, reactor
        self.connections: Connections[TCP] = Connections()
        self.transfers: Line[TCP] = Line(MOST_TRANSFERS, MOST_TRANSFERS_TO_ONE, TCP.transfer)
        self.slices: Slices[TCP] = Slices(reactor, TCP.go_on)
        self._all_closed: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> Any:  # noqa: ARG002, N802
        """Return the protocol of one connection."""
        protocol = TCP()
        protocol.factory = self
        return protocol

    def admit(self, connection: TCP) -> None:
        """Add *connection*; abort another one if there are too many."""
        displaced = self.connections.add(connection, connection.network)
        if displaced is not None:
            displaced.transport.abortConnection()

    def has_time(self, connection: TCP) -> bool:
        """Return whether *connection* may be read in this iteration of the reactor; if not, it is in a later one."""
        has_time = self.slices.has_time(
            connection, connection.network, connection.is_new, share=connection.share > 0
        )
        if not has_time and connection.is_new:
            self.connections.touch(connection, waits=True)
        return has_time

    def forget(self, connection: TCP) -> None:
        """Forget *connection*, which has ended."""
        self.connections.remove(connection)
        self.slices.drop(connection)
        if self._all_closed is not None and not self.connections:
            all_closed, self._all_closed = self._all_closed, None
            all_closed.callback(None)

    def end(self) -> Deferred[None]:
        """Close all connections; the Deferred fires when they are closed, after `ENDING` seconds at the latest."""
        for connection in self.connections:
            connection.close()
        if not self.connections:
            return succeed(None)
        self._all_closed = Deferred()
        late = self.reactor.callLater(ENDING, self._cut_off)
        return self._all_closed.addCallback(lambda _: late.active() and late.cancel())

    def _cut_off(self) -> None:
        for connection in self.connections:
            connection.transport.abortConnection()


class TCPPort(tcp.Port):
    """A TCP port of a DNS server."""

    def __init__(self, port: int, factory: TCPFactory, interface: str, reactor: Any) -> None:
        """Listen on *port* of *interface*, an address."""
        super().__init__(port, factory, BACKLOG, interface, reactor)

    def doRead(self) -> None:  # noqa: N802
        """Accept connections, `BATCH` at most; Twisted would accept ever more in each iteration of the reactor."""
        self.numberAccepts = BATCH
        super().doRead()

    def createInternetSocket(self) -> socket.socket:  # noqa: N802
        """Return a socket with the same options for binding as the UDP one."""
        made: socket.socket = super().createInternetSocket()
        set_up(made)
        return made
