"""DNS over TCP, on a clock: the order of answers, and which connections are cut off."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.dns import tcp
from jitsu_tw.dns.connections import MOST_CONNECTIONS, MOST_FROM_ONE, Connections
from jitsu_tw.dns.tcp import BATCH, ENDING, IDLE, MOST_TRANSFERS_TO_ONE, MOST_WAITING, TCPFactory, TCPPort
from jitsu_tw.slices import SLICE
from test.support import BoundedClock


class Slow:
    """A server that keeps each query until a test answers it; an empty one gets no answer."""

    def __init__(self, clock: Clock) -> None:
        """Begin with no query; each takes `cost` seconds of *clock*."""
        self.clock, self.cost, self.received = clock, 0.0, 0
        self.asked: list[tuple[bytes, Any]] = []
        self.sources: list[Any] = []

    def receive(self, octets: bytes, source: Any, send: Any, stream: Any) -> bool:
        """Keep the query."""
        self.sources.append(source)
        self.received += 1
        self.clock.rightNow += self.cost
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
        self.clock = BoundedClock()
        self.server = Slow(self.clock)
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
        """A client that asks by TCP has proven its address."""
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
        """A connection without traffic is cut off; one that asks now and then is not."""
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
        """A connection that waits for the server is not idle, however long that takes."""
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

    def test_does_not_read_while_it_waits(self) -> None:
        """Answers that come for a client that takes none give it no more time."""
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"a", b"b"))
        protocol.pauseProducing()
        self.clock.advance(IDLE - 1)
        self.server.answer()
        self.clock.advance(1)
        self.assertTrue(transport.aborted)

    def test_half_closed(self) -> None:
        """A client that has closed its half of the connection still gets its answers; then the connection is closed."""
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

    def test_one_network(self) -> None:
        """One network has its share of connections, whichever addresses it uses: the idlest gives way to a new one."""
        connections = [self.connect(f"192.0.2.{number}") for number in range(MOST_FROM_ONE)]
        connections[0][0].dataReceived(framed(b"now"))
        self.assertFalse(self.connect("192.0.3.1")[1].aborted)
        self.assertFalse(self.connect("192.0.2.200")[1].aborted)
        self.assertEqual([1], [number for number, (_, transport) in enumerate(connections) if transport.aborted])
        connections[2][0].connectionLost(connectionDone)
        self.assertFalse(self.connect("192.0.2.201")[1].aborted)
        self.assertEqual([1], [number for number, (_, transport) in enumerate(connections) if transport.aborted])

    def test_all_wait(self) -> None:
        """A network whose connections all wait for booting VMs excludes no other: the longest waiting one is closed."""
        held = []
        for number in range(MOST_CONNECTIONS):
            held.append(self.connect(f"192.{number % 4}.2.1"))
            held[-1][0].dataReceived(framed(b"a"))
        protocol, transport = self.connect("198.51.100.1")
        protocol.dataReceived(framed(b"now"))
        self.assertEqual(framed(b"at once"), transport.value())
        self.assertFalse(transport.aborted)
        self.assertEqual([0], [number for number, (_, each) in enumerate(held) if each.aborted])
        self.server.answer()
        self.assertEqual(b"", held[0][1].value())

    def turn(self) -> None:
        """Advance to the next iteration of the reactor; calls that it schedules run in the one after."""
        due = [call for call in self.clock.calls if call.getTime() <= self.clock.seconds()]
        self.clock.calls = [call for call in self.clock.calls if call not in due]
        for call in due:
            call.called = 1
            call.func(*call.args, **call.kw)

    def test_turns(self) -> None:
        """A client that sends thousands of queries at once is read a little in each iteration, and others between."""
        self.server.cost = SLICE / 4
        hog, answered = self.connect()
        hog.dataReceived(framed(*[b"now"] * 100))
        self.assertEqual((4, "paused"), (self.server.received, answered.producerState))
        other, transport = self.connect("198.51.100.1")
        neighbour, _ = self.connect("192.0.2.9")
        neighbour.dataReceived(framed(*[b"now"] * 100))
        other.dataReceived(framed(b"now", b"now"))
        self.assertEqual(b"", transport.value())
        self.turn()
        self.assertEqual((8, b""), (self.server.received, transport.value()))
        for _ in range(3):
            self.turn()
        self.assertEqual(framed(b"at once", b"at once"), transport.value())
        for _ in range(60):
            self.turn()
        self.assertEqual((202, "producing"), (self.server.received, answered.producerState))
        self.clock.advance(IDLE)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_new_among_many(self) -> None:
        """A new connection has its first answer soon, however many networks send thousands of queries at once."""
        self.server.cost = SLICE / 4
        for number in range(100):
            self.connect(f"198.51.{number}.1")[0].dataReceived(framed(*[b"now"] * 1000))
        for _ in range(100):
            self.turn()
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"now"))
        for _ in range(3):
            self.turn()
        self.assertEqual(framed(b"at once"), transport.value())

    def test_not_looked_at(self) -> None:
        """A connection whose first query has not been read yet is closed after those that have been read."""
        self.server.cost = SLICE
        held = [self.connect(f"10.{number // 200}.{number % 200}.1") for number in range(MOST_CONNECTIONS - 1)]
        held[0][0].dataReceived(framed(b"now"))
        protocol, transport = self.connect()
        protocol.dataReceived(framed(b"now"))
        for each, _ in held:
            self.factory.connections.touch(each, waits=False)
        self.connect("198.51.100.1")
        self.assertFalse(transport.aborted)
        self.turn()
        self.assertEqual(framed(b"at once"), transport.value())

    def test_gone_in_the_line(self) -> None:
        """A connection that has ended before it is read again is not read."""
        self.server.cost = SLICE
        protocol, _ = self.connect()
        protocol.dataReceived(framed(b"now", b"now"))
        protocol.connectionLost(connectionDone)
        self.clock.advance(0)
        self.assertEqual((1, []), (self.server.received, self.clock.getDelayedCalls()))

    def test_transfers(self) -> None:
        """One network has its share of transfers at once, one for each connection; the others wait."""
        first, second, third, fourth, lost = (self.connect(f"192.0.2.{number}") for number in range(5))
        for protocol, _ in (first, second):
            protocol.dataReceived(framed(b"zone", b"zone"))
            protocol.pauseProducing()
        for protocol, _ in (third, fourth, lost):
            protocol.dataReceived(framed(b"zone"))
        fourth[0].pauseProducing()
        fourth[0].resumeProducing()
        lost[0].connectionLost(connectionDone)
        other, transport = self.connect("198.51.100.1")
        other.dataReceived(framed(b"zone"))
        self.clock.pump([0.01] * 10)
        zone = framed(b"one", b"two")
        self.assertEqual((2, zone), (MOST_TRANSFERS_TO_ONE, transport.value()))
        self.assertEqual([b""] * 4, [each.value() for _, each in (first, second, third, fourth)])
        first[0].resumeProducing()
        self.clock.pump([0.01] * 10)
        self.assertEqual([zone + zone, b"", zone, zone], [each.value() for _, each in (first, second, third, fourth)])
        second[0].connectionLost(connectionDone)
        other.dataReceived(framed(b"zone"))
        self.clock.pump([0.01] * 10)
        self.assertEqual((zone + zone, {}, b""), (transport.value(), self.factory.transfers._holders, lost[1].value()))

    def test_end(self) -> None:
        """At the end each connection gets what is left for it and is closed; one that takes nothing is cut off."""
        quick, slow = self.connect(), self.connect()
        slow[0].dataReceived(framed(b"zone"))
        slow[0].pauseProducing()
        ended = self.factory.end()
        for protocol, transport in (quick, slow):
            self.assertTrue(transport.disconnecting)
            protocol.dataReceived(framed(b"now"))
            self.assertEqual(b"", transport.value())
        quick[0].connectionLost(connectionDone)
        self.clock.advance(ENDING - 0.1)
        self.assertNoResult(ended)
        self.clock.advance(0.1)
        self.successResultOf(ended)
        self.assertTrue(slow[1].aborted)
        self.successResultOf(self.factory.end())
        self.assertEqual([], self.clock.getDelayedCalls())


class ConnectionsTests(SynchronousTestCase):
    """`Connections`, compared with a model that examines all of them each time."""

    def test_as_by_looking(self) -> None:
        """Whatever connections do, it is one of the network with the most that gives way: idle first, oldest first."""
        table: Connections[int] = Connections(10, 6)
        known: dict[int, tuple[int, bool]] = {}  # network, and whether it waits; the one that was longest silent first
        chance = random.Random(20261126)
        for number in range(4000):
            one, what = chance.choice(list(known)) if known else -1, chance.randrange(10)
            if what < 4:
                whose = min(chance.randrange(8), chance.randrange(8))
                counts = Counter(each for each, _ in known.values())
                gone = table.add(number, bytes([whose]))
                full = len(known) == 10
                self.assertEqual(full or counts[whose] == 6, gone is not None)
                if gone is not None:
                    owner, waits = known[gone]
                    heaviest = max(counts[each] + (each == whose) for each in range(8))
                    if counts[whose] < 6:
                        self.assertEqual(heaviest, counts[owner] + (owner == whose), number)
                    oldest = next(each for each, (its, waited) in known.items() if its == owner and waited == waits)
                    self.assertEqual(oldest, gone)
                    self.assertFalse(waits and any(its == owner and not waited for its, waited in known.values()))
                    del known[gone]
                known[number] = whose, False
            elif what < 9 and one in known:
                whose, _ = known.pop(one)
                known[one] = whose, what < 7
                table.touch(one, waits=what < 7)
            else:
                known.pop(one, None)
                table.remove(one)
            self.assertEqual(sorted(known), sorted(table))
        table.touch(-1, waits=True)
        table.remove(-1)
        self.assertEqual(len(known), len(table))


class Big:
    """A server whose answers are as long as they may be."""

    def receive(self, octets: bytes, _source: Any, send: Any, _stream: Any) -> bool:
        """Answer."""
        send(octets * 60)
        return True


class PortTests(SynchronousTestCase):
    """The port, on loopback."""

    def test_burst(self) -> None:
        """Clients that connect while the server is busy get in; it accepts some of them in each iteration."""
        factory = TCPFactory(Slow(BoundedClock()), BoundedClock())  # type: ignore[arg-type]
        port: Any = TCPPort(0, factory, "127.0.0.1", reactor)
        port.startListening()
        with contextlib.ExitStack() as clients:
            clients.callback(port.loseConnection)
            for _ in range(MOST_FROM_ONE):
                clients.enter_context(socket.create_connection(("127.0.0.1", port.getHost().port), timeout=5))
            for count in (BATCH, MOST_FROM_ONE):
                port.doRead()
                self.assertEqual(count, len(factory.connections))
            for connection in factory.connections:
                connection.setTimeout(None)
                connection.transport.connectionLost(connectionDone)


class RealTests(TestCase):
    """With real sockets."""

    timeout = 60

    async def test_end(self) -> None:
        """A client that takes its answers only when the server ends gets them, and the end waits for that."""
        self.patch(tcp, "ENDING", 9999)
        factory: Any = TCPFactory(Big(), reactor)  # type: ignore[arg-type]
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
            client.setblocking(False)  # noqa: FBT003
            query = framed(b"x" * 1000)
            while not any(connection._stuck for connection in factory.connections):
                with contextlib.suppress(BlockingIOError):
                    client.send(query)
                await deferLater(reactor, 0)
            ended = factory.end()
            taken, octets = 0, b" "
            while octets:
                try:
                    octets = client.recv(1 << 16)
                    taken += len(octets)
                except BlockingIOError:
                    await deferLater(reactor, 0)
            await ended
        self.assertEqual(0, taken % (2 + 60_000))
