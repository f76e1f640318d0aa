"""The UDP port, on loopback, with real sockets."""

from __future__ import annotations

import socket
from typing import Any

import dns.message
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from jitsu_tw.dns.server import Server
from jitsu_tw.dns.udp import BATCH, UDPPort
from jitsu_tw.dns.warm import WarmAnswer, WarmAnswers
from jitsu_tw.rules.lease import Lease


class Echo:
    """A server that answers each query that has no warm answer with its own octets, and stores its source."""

    receive_warm = Server.receive_warm

    def __init__(self) -> None:
        """Begin with no source."""
        self.warm = WarmAnswers(lambda: 77.0)
        self.sources: list[Any] = []
        self.checked: list[str] = []
        self.check = self.checked.append
        self.limiter = None

    def may_send(self, *_: object) -> bool:
        """Limit nothing."""
        return True

    def receive(self, octets: bytes, source: Any, send: Any) -> None:
        """Answer."""
        self.sources.append(source)
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

    def listen(self, interface: str) -> int:
        """Open a port; return its number."""
        self.server = Echo()
        port = UDPPort(0, self.server, interface, reactor)  # type: ignore[arg-type]
        port.startListening()
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def client(self, host: str) -> Any:
        """Return a client of that family."""
        client = Client()
        port = reactor.listenUDP(0, client, interface="::1" if ":" in host else "127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return client

    async def test_answers(self) -> None:
        """A query is answered to where it came from, over IPv4 and IPv6."""
        for host in ("127.0.0.1", "::1"):
            port, client = self.listen(host), self.client(host)
            client.transport.write(b"hello", (host, port))
            await client.until(1)
            self.assertEqual([(b"hello", host)], client.replies)
            self.assertEqual((host, False, False), (self.server.sources[0].host, self.server.sources[0].tcp,
                                                    self.server.sources[0].proven))

    async def test_from_the_address_that_was_asked(self) -> None:
        """Bound to all addresses, a reply is sent from its query's destination, whatever the routing table prefers."""
        for anywhere, hosts in (("0.0.0.0", ("127.0.0.1", "127.0.0.2", "127.9.9.9")), ("::", ("::1",))):  # noqa: S104
            port = self.listen(anywhere)
            for host in hosts:
                client = self.client(host)
                client.transport.write(b"hello", (host, port))
                await client.until(1)
                self.assertEqual([(b"hello", host)], client.replies)

    async def test_warm(self) -> None:
        """
        A warm answer is sent without the server, counted, and renews the lease; in both kinds of port.

        A retransmission is not counted again; a check whether the VM is alive is asked for when it is due.
        """
        query = dns.message.make_query("wWw.jitsu.test", "A").to_wire()
        for anywhere in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
            port, client = self.listen(anywhere), self.client("127.0.0.1")
            lease = Lease(10, 0, 0, 0, check_at=77.0)
            answer = WarmAnswer(b"HEAD------", len(query), b"TAIL", lease, "www", None, b"")
            self.server.warm.answers[query[2:].lower()] = answer
            other = bytes([query[0] ^ 1]) + query[1:]
            for packet in (query, query, other):
                client.transport.write(packet, ("127.0.0.1", port))
            await client.until(3)
            self.assertEqual(query[:2] + b"HEAD------" + query[12:] + b"TAIL", client.replies[0][0])
            self.assertEqual((2, 77.0, [answer], []), (answer.count, lease.used, self.server.warm.used,
                                                       self.server.sources))
            self.assertEqual(["www"] * 3, self.server.checked)

    async def test_burst(self) -> None:
        """More than one batch at once is all answered."""
        port, client = self.listen("127.0.0.1"), self.client("127.0.0.1")
        for number in range(3 * BATCH):
            client.transport.write(b"%d" % number, ("127.0.0.1", port))
        await client.until(3 * BATCH)
        self.assertEqual({b"%d" % number for number in range(3 * BATCH)}, {octets for octets, _ in client.replies})

    async def test_replies_that_nobody_takes(self) -> None:
        """A reply that cannot be sent, or that the client does not want, does no harm."""
        port, client = self.listen("127.0.0.1"), self.client("127.0.0.1")
        with socket.socket(type=socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            gone.sendto(b"hello", ("127.0.0.1", port))
        await deferLater(reactor, 0.05)
        client.transport.write(b"silence", ("127.0.0.1", port))
        client.transport.write(b"x" * 60000, ("127.0.0.1", port))
        client.transport.write(b"hello", ("127.0.0.1", port))
        await client.until(2)
        self.assertEqual(b"hello", client.replies[-1][0])
