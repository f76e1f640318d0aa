"""DNS over TCP, on a clock: what comes when, and who is cut off."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.tcp import IDLE, MOST_CONNECTIONS, MOST_FROM_ONE, MOST_WAITING, TCPFactory


class Slow:
    """A server that keeps each query until told; an empty one gets no answer."""

    def __init__(self) -> None:
        """Begin with none."""
        self.asked: list[tuple[bytes, Any]] = []
        self.sources: list[Any] = []

    def receive(self, octets: bytes, source: Any, send: Any, stream: Any) -> bool:
        """Keep the query."""
        self.sources.append(source)
        if octets == b"zone":
            stream(iter([b"one", b"", b"two"]))
            return True
        if not octets:
            return False
        if octets == b"now":
            send(b"at once")
        else:
            self.asked.append((octets, send))
        return True

    def answer(self, number: int = 0) -> None:
        """Answer one of the queries."""
        octets, send = self.asked.pop(number)
        send(octets.upper())


def framed(*messages: bytes) -> bytes:
    """Return messages as TCP carries them (RFC 1035, 4.2.2)."""
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


class TCPTests(SynchronousTestCase):
    """One connection, and many."""

    def setUp(self) -> None:
        """Make a server and a clock."""
        self.clock = Clock()
        self.server = Slow()
        self.factory = TCPFactory(self.server, self.clock)  # type: ignore[arg-type]

    def connect(self, host: str = "192.0.2.1") -> tuple[Any, Any]:
        """Return a connection and its transport."""
        protocol = self.factory.buildProtocol(None)
        protocol.callLater = self.clock.callLater
        transport: Any = StringTransport(peerAddress=IPv4Address("TCP", host, 4711))
        transport.aborted = False

        def abort() -> None:
            transport.aborted = True
            protocol.connectionLost(connectionDone)

        transport.abortConnection = abort
        protocol.makeConnection(transport)
        return protocol, transport

    def test_source(self) -> None:
        """Who asks by TCP has proven its address."""
        protocol, _ = self.connect()
        protocol.dataReceived(framed(b"a"))
        source = self.server.sources[0]
        self.assertEqual(("192.0.2.1", 4711, True, True), (source.host, source.port, source.tcp, source.proven))

    def test_out_of_order(self) -> None:
        """Several queries in one connection are answered each when it can be (RFC 7766, 6.2.1.1), however they come."""
        protocol, transport = self.connect()
        octets = framed(b"a", b"b", b"c")
        for at in range(len(octets)):
            protocol.dataReceived(octets[at : at + 1])
        self.server.answer(1)
        self.server.answer(1)
        self.assertEqual(framed(b"B", b"C"), transport.value())
        self.server.answer()
        self.assertEqual(framed(b"B", b"C", b"A"), transport.value())

    def test_long(self) -> None:
        """The longest message there is passes both ways."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"x" * 65535))
        self.server.answer()
        self.assertEqual(framed(b"X" * 65535), transport.value())

    def test_idle(self) -> None:
        """A connection on which nothing happens is cut off; one that asks now and then is not."""
        protocol, transport = self.connect()
        for _ in range(3):
            self.clock.advance(IDLE - 1)
            protocol.dataReceived(framed(b"now"))
        self.clock.advance(IDLE - 1)
        self.assertFalse(transport.aborted)
        self.clock.advance(1)
        self.assertTrue(transport.aborted)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_octet_by_octet(self) -> None:
        """A query that comes too slowly does not keep a connection."""
        protocol, transport = self.connect()
        for octet in framed(b"x" * 50):
            if transport.aborted:
                break
            protocol.dataReceived(bytes([octet]))
            self.clock.advance(1)
        self.assertTrue(transport.aborted)
        self.assertEqual([], self.server.asked)

    def test_kept_waiting(self) -> None:
        """A connection that waits for us is not idle, however long that takes."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"a"))
        self.clock.pump([IDLE] * 5)
        self.assertFalse(transport.aborted)
        self.server.answer()
        self.assertEqual(framed(b"A"), transport.value())
        self.clock.advance(IDLE)
        self.assertTrue(transport.aborted)

    def test_no_answer(self) -> None:
        """What gets no answer is not waited for."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b""))
        self.assertEqual(0, protocol.waiting)
        self.clock.advance(IDLE)
        self.assertTrue(transport.aborted)

    def test_too_many_at_once(self) -> None:
        """While too many of its queries wait, a connection is not read; then it is, with nothing lost."""
        protocol, transport = self.connect()
        queries = [b"%d" % number for number in range(MOST_WAITING + 5)]
        protocol.dataReceived(framed(*queries))
        self.assertEqual(("paused", MOST_WAITING), (transport.producerState, len(self.server.asked)))
        for _ in range(3):
            self.server.answer()
        self.assertEqual(MOST_WAITING, len(self.server.asked))
        while self.server.asked:
            self.server.answer()
        self.assertEqual(("producing", framed(*queries)), (transport.producerState, transport.value()))

    def test_does_not_read(self) -> None:
        """A client that does not take its answers is not read, and cut off if it does not begin to."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"a"))
        protocol.pauseProducing()
        self.assertEqual("paused", transport.producerState)
        self.clock.advance(IDLE - 1)
        protocol.resumeProducing()
        self.assertEqual("producing", transport.producerState)
        protocol.pauseProducing()
        self.clock.advance(IDLE)
        self.assertTrue(transport.aborted)

    def test_half_closed(self) -> None:
        """A client that says that it will ask no more still gets its answers; then the connection is closed."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"a"))
        protocol.readConnectionLost()
        self.assertFalse(transport.disconnecting)
        self.server.answer()
        self.assertEqual((framed(b"A"), True), (transport.value(), transport.disconnecting))
        protocol, transport = self.connect()
        protocol.readConnectionLost()
        self.assertTrue(transport.disconnecting)

    def test_stream(self) -> None:
        """What is long is sent piece by piece, between other answers, while the client takes it."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"zone", b"now"))
        self.assertEqual((framed(b"at once"), 1), (transport.value(), protocol.waiting))
        protocol.pauseProducing()
        self.clock.advance(1)
        self.assertEqual(framed(b"at once"), transport.value())
        protocol.resumeProducing()
        self.clock.pump([0.01] * 5)
        self.assertEqual((framed(b"at once", b"one", b"two"), 0), (transport.value(), protocol.waiting))

    def test_gone(self) -> None:
        """An answer for a connection that is gone goes nowhere."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"a"))
        protocol.connected = False
        protocol.connectionLost(connectionDone)
        self.server.answer()
        self.assertEqual(b"", transport.value())

    def test_one_address(self) -> None:
        """One address has so many connections and no more; another still has its own; a free place is free."""
        connections = [self.connect() for _ in range(MOST_FROM_ONE)]
        self.assertTrue(self.connect()[1].aborted)
        self.assertFalse(self.connect("192.0.2.2")[1].aborted)
        connections[0][0].connectionLost(connectionDone)
        self.assertFalse(self.connect()[1].aborted)

    def test_all(self) -> None:
        """When there are as many as may be, the one that was longest idle gives way; who waits for us does not."""
        connections = [self.connect(f"192.0.{number >> 8}.{number & 255}") for number in range(MOST_CONNECTIONS)]
        connections[0][0].dataReceived(framed(b"a"))
        connections[1][0].dataReceived(framed(b"now"))
        self.assertFalse(self.connect("198.51.100.1")[1].aborted)
        self.assertEqual([2], [number for number, (_, transport) in enumerate(connections) if transport.aborted])
        for protocol, transport in connections:
            if not transport.aborted:
                protocol.dataReceived(framed(b"a"))
        protocol, transport = self.connect("198.51.100.2")
        self.assertFalse(transport.aborted)
        protocol.dataReceived(framed(b"a"))
        self.assertTrue(self.connect("198.51.100.3")[1].aborted)
