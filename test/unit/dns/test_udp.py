"""The UDP port, on loopback, with real sockets."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from unittest import mock

import dns.edns
import dns.message
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.dns import mmsg
from jitsu_tw.dns.datagrams import BATCH, PKTINFO, PKTINFO6, Single, send
from jitsu_tw.dns.message import FORMERR, LONGEST, Query, Reject, parse
from jitsu_tw.dns.mmsg import Batched
from jitsu_tw.dns.udp import COLD, ROUNDS, UDPPort
from jitsu_tw.dns.warm import WarmAnswer, WarmAnswers
from jitsu_tw.dns.wire import Source
from jitsu_tw.rules.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.dns.warm import Received, Taken

ALL = ("0.0.0.0", "::")  # noqa: S104


class Echo:
    """A server that answers each query that has no warm answer with its own octets, and stores what it was given."""

    def __init__(self) -> None:
        """Begin with no source."""
        self.warm = WarmAnswers(lambda: 77.0)
        self.sources: list[Any] = []
        self.octets: list[bytes] = []
        self.sends: list[Any] = []
        self.checked: list[str] = []

    def answer_warm(self, received: Received) -> Taken:
        """Answer what is warm; limit nothing."""
        taken, due = self.warm.take(received, 77.0)
        self.checked += due
        return taken

    def receive(self, octets: bytes, source: Any, send: Any) -> None:
        """Answer."""
        self.sources.append(source)
        self.octets.append(octets)
        self.sends.append(send)
        if octets == b"a fault":
            raise RuntimeError("a fault")
        if octets != b"silence":
            send(octets)


class Client(DatagramProtocol):
    """Sends to a port and gathers what comes back, and from where."""

    noisy = False

    def __init__(self) -> None:
        """Begin with nothing."""
        self.replies: list[tuple[bytes, str]] = []
        self._waiting: tuple[int, Deferred[None]] | None = None

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: N802
        """Take a reply."""
        self.replies.append((datagram, addr[0]))
        if self._waiting is not None and len(self.replies) >= self._waiting[0]:
            (_, waiting), self._waiting = self._waiting, None
            waiting.callback(None)

    def until(self, count: int) -> Deferred[None]:
        """Fire when *count* replies are here."""
        waiting: Deferred[None] = Deferred()
        self._waiting = count, waiting
        return waiting.addTimeout(10, reactor)


class UDPPortTests(TestCase):
    """`UDPPort`."""

    kind: type = Batched

    def listen(self, interface: str) -> int:
        """Open a port; return its number."""
        self.server = Echo()
        self.port = port = UDPPort(0, self.server, interface, reactor)  # type: ignore[arg-type]
        port.startListening()
        self.addCleanup(port.stopListening)
        self.assertIsInstance(port._datagrams, self.kind)
        number: int = port.getHost().port
        return number

    def client(self, host: str) -> Any:
        """Return a client of that family."""
        client = Client()
        port = reactor.listenUDP(0, client, interface="::1" if ":" in host else "127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return client

    def plain(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a socket that the reactor does not know, with which a test puts datagrams into the port's queue."""
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, 0))
        made.settimeout(10)
        self.addCleanup(made.close)
        return made

    def keep(self, query: bytes, rest: bytes = b"TAIL", check_at: float = 77.0) -> WarmAnswer:
        """Keep a warm answer to *query*; return it."""
        reply, end = b"HEAD------" + query[12:].lower() + rest, len(query) - 2
        lease, label = Lease(10, 0, 0, 0, check_at=check_at), ("udp", "A", "NOERROR", "test")
        answer = WarmAnswer(reply, end, lease, "www", None, b"", label)
        self.server.warm.answers[query[2:].lower()] = answer
        return answer

    async def test_answers(self) -> None:
        """A query is answered to where it came from, over IPv4 and IPv6."""
        for host in ("127.0.0.1", "::1"):
            port, client = self.listen(host), self.client(host)
            client.transport.write(b"hello", (host, port))
            await client.until(1)
            self.assertEqual([(b"hello", host)], client.replies)
            self.assertEqual(Source(host, client.transport.getHost().port), self.server.sources[0])
            self.assertEqual((host, False, False), (self.server.sources[0].host, self.server.sources[0].tcp,
                                                    self.server.sources[0].proven))

    async def test_from_the_address_that_was_asked(self) -> None:
        """Bound to all addresses, a reply is sent from its query's destination, whatever the routing table prefers."""
        for anywhere, hosts in zip(ALL, (("127.0.0.1", "127.0.0.2", "127.9.9.9"), ("::1",)), strict=True):
            port = self.listen(anywhere)
            self.keep(b"12warm question")
            for host in hosts:
                client = self.client(host)
                client.transport.write(b"hello", (host, port))
                await client.until(1)
                client.transport.write(b"12warm question", (host, port))
                await client.until(2)
                self.assertEqual([host, host], [where for _, where in client.replies])

    def test_mixed(self) -> None:
        """Of queries that came together, each gets its own reply, from the address that it was sent to."""
        port, clients = self.listen(ALL[0]), [self.plain() for _ in range(8)]
        self.keep(b"12warm question")
        for number, client in enumerate(clients):
            packet = b"%02dwarm question" if number % 3 else b"%02dother"
            client.sendto(packet % number, (f"127.0.0.{number + 2}", port))
        self.port.doRead()
        for number, client in enumerate(clients):
            reply, (host, _) = client.recvfrom(99)
            expected = b"%02dHEAD------ionTAIL" if number % 3 else b"%02dother"
            self.assertEqual((expected % number, f"127.0.0.{number + 2}"), (reply, host))

    async def test_warm(self) -> None:
        """
        A warm answer is sent without the server, counted, and renews the lease.

        A retransmission is not counted again; a check whether the VM is alive is asked for when it is due.
        """
        query = dns.message.make_query("wWw.jitsu.test", "A").to_wire()
        for anywhere in ("127.0.0.1", ALL[0]):
            port, client = self.listen(anywhere), self.client("127.0.0.1")
            answer = self.keep(query)
            other = bytes([query[0] ^ 1]) + query[1:]
            for packet in (query, query, other):
                client.transport.write(packet, ("127.0.0.1", port))
            await client.until(3)
            self.assertEqual(query[:2] + b"HEAD------" + query[12:] + b"TAIL", client.replies[0][0])
            self.assertEqual((2, 77.0, []), (answer.count, answer.lease.used, self.server.sources))
            self.assertEqual([("www", None, 2, 77.0)], list(self.server.warm.taken()))
            self.assertEqual(["www"] * 3, self.server.checked)

    def test_warm_first(self) -> None:
        """What is warm is sent before a query that came earlier, and takes longer, is looked at."""
        port, client = self.listen("127.0.0.1"), self.plain()
        self.keep(b"12warm question")
        found = []
        self.patch(self.server, "receive", lambda *_: found.append(client.recv(99)))
        for packet in (b"12other", b"34warm question"):
            client.sendto(packet, ("127.0.0.1", port))
        self.port.doRead()
        self.assertEqual([b"34HEAD------ionTAIL"], found)

    def test_fault(self) -> None:
        """A query at which the server has a fault is logged; the others are answered, and so are those that follow."""
        port, client = self.listen("127.0.0.1"), self.plain()
        for packet in (b"a fault", b"one"):
            client.sendto(packet, ("127.0.0.1", port))
        self.port.doRead()
        self.assertEqual(b"one", client.recv(99))
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))

    async def test_burst(self) -> None:
        """More than one batch at once is all answered."""
        port, client = self.listen("127.0.0.1"), self.client("127.0.0.1")
        for number in range(3 * BATCH):
            client.transport.write(b"%03d" % number, ("127.0.0.1", port))
        await client.until(3 * BATCH)
        self.assertEqual({b"%03d" % number for number in range(3 * BATCH)}, {octets for octets, _ in client.replies})

    async def test_many_sources(self) -> None:
        """Of 10,000 queries from 250 sources, each is answered to its own; what others sent is no matter."""
        port, clients = self.listen("127.0.0.1"), [self.plain(f"127.1.{number}.1") for number in range(250)]
        self.keep(b"12warm question", b"", float("inf"))
        for client in clients:
            client.settimeout(0)
        for turn in range(40):
            for number, client in enumerate(clients):
                packet = b"%c%cwarm question" if turn % 8 else b"%c%cother"
                client.sendto(packet % (number, turn), ("127.0.0.1", port))
            await deferLater(reactor, 0)
            for number, client in enumerate(clients):
                while True:
                    try:
                        reply = client.recv(99)
                        break
                    except BlockingIOError:
                        await deferLater(reactor, 0)
                self.assertEqual(b"%c%c" % (number, turn), reply[:2])
        self.assertEqual(40 / 8 * 250, len(self.server.sources))
        self.assertEqual(35 * 250, sum(count for _, _, count, _ in self.server.warm.taken()))

    async def test_turn(self) -> None:
        """In an iteration of the reactor, a bounded number of queries is answered, fewer if they take longer."""
        for packet, most in ((b"12other", COLD), (b"12warm question", ROUNDS * BATCH)):
            port, client = self.listen("127.0.0.1"), self.plain()
            answer = self.keep(b"12warm question")
            self.port.stopReading()
            for number in range(ROUNDS * BATCH + 10):
                client.sendto(number.to_bytes(2) + packet[2:], ("127.0.0.1", port))
            self.port.doRead()
            self.assertEqual(most, len(self.server.sources) + answer.count)
            self.port.doRead()
            self.assertEqual(most if most == COLD else most + 10, len(self.server.sources) + answer.count)
            await deferLater(reactor, 0.05)  # what was left has been looked at
            self.assertEqual(BATCH if most == COLD else 0, len(self.server.sources))

    async def test_replies_that_nobody_takes(self) -> None:
        """A reply that cannot be sent, or that the client does not want, does no harm."""
        port, client = self.listen("127.0.0.1"), self.client("127.0.0.1")
        with socket.socket(type=socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            gone.sendto(b"hello", ("127.0.0.1", port))
        await deferLater(reactor, 0.05)
        client.transport.write(b"silence", ("127.0.0.1", port))
        client.transport.write(b"x" * 60000, ("127.0.0.1", port))
        client.transport.write(b"", ("127.0.0.1", port))
        client.transport.write(b"hello", ("127.0.0.1", port))
        await client.until(3)
        self.assertEqual(b"hello", client.replies[-1][0])

    async def test_reply_after_the_end(self) -> None:
        """A reply that comes when the port is closed is lost."""
        port, client = self.listen("127.0.0.1"), self.plain()
        client.sendto(b"silence", ("127.0.0.1", port))
        self.port.doRead()
        await self.port.stopListening()
        self.server.sends[0](b"late")

    def test_too_long(self) -> None:
        """A query that is longer than any may be is malformed, even if what fits into the buffer is a query."""
        port, client = self.listen("127.0.0.1"), self.plain()
        query = dns.message.make_query("www.jitsu.test", "A", use_edns=0)
        room = LONGEST - len(query.to_wire()) - 4
        query.use_edns(0, options=[dns.edns.GenericOption(dns.edns.OptionType.PADDING, bytes(room))])
        longest = query.to_wire(max_size=LONGEST)
        for junk, kind in ((b"", Query), (b"x", Reject), (b"x" * 9000, Reject)):
            client.sendto(longest + junk, ("127.0.0.1", port))
            self.port.doRead()
            parsed = parse(self.server.octets[-1])
            self.assertIsInstance(parsed, kind, len(junk))
            if isinstance(parsed, Reject):
                self.assertEqual(FORMERR, parsed.rcode)

    def test_short(self) -> None:
        """A datagram without octets, or with fewer than a header, is none that the server answers."""
        port, client = self.listen("127.0.0.1"), self.plain()
        for size in range(12):
            client.sendto(bytes(size), ("127.0.0.1", port))
        self.port.doRead()
        self.assertEqual([True] * 12, [len(octets) < 12 for octets in self.server.octets])
        self.assertEqual([2, *range(3, 12)], [len(octets) for octets in self.server.octets[2:]])


class SingleTests(UDPPortTests):
    """The same where there is no cffi."""

    kind = Single

    def setUp(self) -> None:
        """Take cffi away."""
        without_cffi(self)


def without_cffi(test: Any) -> None:
    """Make imports of cffi fail during *test*."""
    modules = mock.patch.dict(sys.modules, {"cffi": None})
    modules.start()
    test.addCleanup(modules.stop)
    del sys.modules["jitsu_tw.dns.mmsg"]


class BatchedTests(SynchronousTestCase):
    """`Batched`."""

    def open(self, host: str = "127.0.0.1", *, count: int = 0) -> Batched:
        """Bind a socket, to which a client sends *count* datagrams, which are received."""
        family, wildcard = socket.AF_INET6 if ":" in host else socket.AF_INET, ip_address(host).is_unspecified
        self.bound, self.client = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        for one in (self.bound, self.client):
            self.addCleanup(one.close)
        self.bound.bind((host, 0))
        batched = Batched(self.bound, wildcard=wildcard)
        for number in range(count):
            self.client.sendto(b"%02d" % number, ("::1" if ":" in host else "127.0.0.1", self.bound.getsockname()[1]))
        packets, _ = batched.receive()
        self.assertEqual(count, len(packets))
        return batched

    def fake(self, name: str, *results: int) -> list[int]:
        """Make the system call *name* return *results*; return a list in which the numbers of datagrams will be."""
        calls, left = [], list(results)

        def call(_descriptor: int, _headers: Any, count: int, *_: Any) -> int:
            calls.append(count)
            return left.pop(0)

        self.patch(mmsg, name, call)
        return calls

    def replies(self) -> list[bytes]:
        """Return what the client has received."""
        found: list[bytes] = []
        self.client.settimeout(0)
        try:
            while True:
                found.append(self.client.recv(99))
        except BlockingIOError:
            return found

    def test_client_with_port_0(self) -> None:
        """A reply that the kernel refuses is lost, and no other."""
        batched = self.open(count=4)
        for index in (0, 2):
            client = batched._clients[index]
            batched._slots[client.start : client.start + 2] = bytes(2)
        batched.send([b"a", b"b", b"c", b"d"])
        self.assertEqual([b"01b", b"03d"], self.replies())

    def test_partly_sent(self) -> None:
        """Where the kernel sends only some, the others are tried again, but for one that it cannot send."""
        calls = self.fake("_SEND", 2, -1, 0, 1)
        self.open(count=5).send([b"x"] * 5)
        self.assertEqual([5, 3, 2, 1], calls)

    def test_nothing_to_send(self) -> None:
        """Nothing is asked of the kernel where there is no reply."""
        calls = self.fake("_SEND")
        self.open(count=2).send([None, None])
        self.assertEqual([], calls)

    def test_not_received(self) -> None:
        """An error of the kernel is as if nothing had come: nothing of the last batch is taken for new."""
        batched = self.open(count=3)
        self.fake("_RECEIVE", -1, 0)
        for _ in range(2):
            self.assertEqual(([], []), batched.receive())

    def test_clients(self) -> None:
        """A client is written as `Source.client` does it, in either family."""
        for host in ("127.0.0.1", "::1", "::"):
            batched = self.open(host)
            self.client.sendto(b"id", ("::1" if ":" in host else host, self.bound.getsockname()[1]))
            _, (client,) = batched.receive()
            address, port = self.client.getsockname()[:2]
            source = Source("::1" if ":" in host else "127.0.0.1", port)
            self.assertEqual((source.client(b"id"), source), (client, Source.of_client(client)), address)

    def test_scope(self) -> None:
        """A reply to a link-local client goes out of the interface that the query came by."""
        batched = self.open("::1", count=1)
        scoped = struct.pack("!HI", 4711, 0) + ip_address("fe80::1").packed + struct.pack("=I", 3)
        batched._slots[batched._clients[0].start : batched._clients[0].stop - 2] = scoped
        self.assertEqual((("fe80::1", 4711, 0, 3), []), batched.route(0))

    def infos(self, host: str, infos: Sequence[bytes]) -> list[bytes]:
        """Return what a reply is sent with where a query was received with each of *infos*."""
        batched, begin = self.open(host, count=len(infos)), socket.CMSG_LEN(0)
        for index, info in enumerate(infos):
            at = index * batched._asked.step + begin
            batched._asked._octets[at : at + len(info)] = info
        batched._asked.forget_interfaces(len(infos))
        return [batched.route(index)[1][0][2] for index in range(len(infos))]

    def test_interface(self) -> None:
        """A reply leaves from the address that was asked; its interface is the routes' matter, if not link-local."""
        asked, other = b"\xfe\0\0\1", b"\x7f\0\0\1"
        for index in (1, 0xFE, 0xFEFE):
            (info,) = self.infos(ALL[0], [PKTINFO.pack(index, other, asked)])
            self.assertEqual((0, asked, asked), PKTINFO.unpack(info))
        hosts = [ip_address(host).packed for host in ("2001:db8::1", "fe80::1", "::1", "febf::1")]
        infos = self.infos(ALL[1], [PKTINFO6.pack(host, 7) for host in hosts])
        self.assertEqual([(host, index) for host, index in zip(hosts, (0, 7, 0, 7), strict=True)],
                         [PKTINFO6.unpack(info) for info in infos])

    def test_mapped(self) -> None:
        """An IPv4 client of a socket for both families is an IPv4 client, and answered from where it asked."""
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound, self.client_of_ipv4() as client:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            bound.bind((ALL[1], 0))
            batched = Batched(bound, wildcard=True)
            client.sendto(b"id", ("127.0.0.7", bound.getsockname()[1]))
            _, (sender,) = batched.receive()
            self.assertEqual(Source(*client.getsockname()), Source.of_client(sender))
            batched.send([b"warm"])
            send(bound, batched.route(0), b"cold")
            for reply in (b"idwarm", b"cold"):
                self.assertEqual((reply, ("127.0.0.7", bound.getsockname()[1])), client.recvfrom(99))

    def client_of_ipv4(self) -> socket.socket:
        """Return a bound socket."""
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind(("127.0.0.1", 0))
        client.settimeout(10)
        return client

    def test_without_information(self) -> None:
        """Where the kernel did not write which address was asked, it does for the next datagram."""
        batched = self.open(ALL[0], count=1)
        batched._spaces[0] = 0
        for _ in range(2):
            self.client.sendto(b"id", ("127.0.0.9", self.bound.getsockname()[1]))
            batched.receive()
        self.assertEqual(32, batched._spaces[0])

    def test_no_such_call(self) -> None:
        """A kernel that has not the calls, or does not allow them, is noticed at once."""
        self.fake("_RECEIVE", -1, -1)
        self.assertRaises(OSError, self.open)
        port = UDPPort(0, Echo(), "127.0.0.1", reactor)  # type: ignore[arg-type]
        port.startListening()
        self.addCleanup(port.stopListening)
        self.assertIsInstance(port._datagrams, Single)
