"""
DNS over UDP: a port that answers what is warm at once, and passes other queries to the server.

It is Twisted's port, but for how it reads. Twisted makes two system calls for each datagram, calls the protocol, and
checks three times which kind of address it has; it does so for up to 256 KiB before anything else runs, and replies
from whatever address the routes prefer. This port reads and sends up to `BATCH` datagrams by one call each (`mmsg`), or
one by one where that cannot be had (`datagrams.Single`). It takes a bounded number in an iteration of the reactor, so
that boots go on under load. And it replies from the address that the query was sent to, also where it is bound to all
of them (RFC 2181, 4.1).
"""

from __future__ import annotations

import socket
from collections import deque
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import udp
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from jitsu_tw.dns import datagrams
from jitsu_tw.dns.binding import set_up
from jitsu_tw.dns.datagrams import BATCH, IP_PKTINFO, READ, Single
from jitsu_tw.dns.wire import Source

if TYPE_CHECKING:
    from jitsu_tw.dns.datagrams import Datagrams, Route
    from jitsu_tw.dns.server import Server

#: The kernel's receive buffer, in octets: it takes the queries that arrive while many VMs are started at once.
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024

#: How often datagrams are received in one iteration of the reactor, if all have warm answers: a millisecond of work.
ROUNDS: Final = 4

#: How many queries without a warm answer are looked at in one iteration: milliseconds of work, if each starts a VM.
COLD: Final = 16


class UDPPort(udp.Port):
    """A UDP port of a DNS server."""

    log = Logger()

    def __init__(
        self, port: int, server: Server, interface: str, reactor: Any, bound: socket.socket | None = None
    ) -> None:
        """Listen on *port* of *interface*, an address; or on *bound*, a socket that systemd has bound there."""
        protocol = DatagramProtocol()
        protocol.noisy = False
        super().__init__(port, protocol, interface, READ, reactor)
        self._server, self._wildcard = server, ip_address(interface).is_unspecified
        self._cold: deque[tuple[bytes, bytes, Route]] = deque()
        if bound is not None:
            self._set_up(bound)
            self._preexistingSocket = bound  # type: ignore[assignment]

    def createInternetSocket(self) -> socket.socket:  # noqa: N802
        """Return a socket with a buffer for a burst, that reports the address to which a datagram was sent."""
        made: socket.socket = super().createInternetSocket()
        set_up(made)
        self._set_up(made)
        return made

    def _set_up(self, made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if self._wildcard and self.addressFamily == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._wildcard:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self._datagrams = self._best_for(made)

    def _best_for(self, made: socket.socket) -> Datagrams:
        """Return the fastest way to receive from *made* and to send, that this system has."""
        try:
            from jitsu_tw.dns.mmsg import Batched  # noqa: PLC0415 -- there may be no cffi

            return Batched(made, wildcard=self._wildcard)
        except (ImportError, AttributeError, OSError) as error:
            self.log.warn("UDP: queries are read one by one, which takes longer: {error}", error=error)
            return Single(made)

    def doRead(self) -> None:  # noqa: N802
        """
        Answer the datagrams that have arrived, `ROUNDS` times `BATCH` at most, or those until a query takes longer.

        Warm answers go out first, together: none of them waits for a query that takes longer. Nothing is read while
        such queries wait for the next iteration.
        """
        for _ in range(0 if self._cold else ROUNDS):
            packets, clients = received = self._datagrams.receive()
            replies, others = self._server.answer_warm(received)
            routes = [self._datagrams.route(index) for index in others] if others else ()
            self._datagrams.send(replies)
            if others:
                self._cold.extend((packets[at], clients[at], route) for at, route in zip(others, routes, strict=True))
                self._look()
            if others or len(packets) < BATCH:
                break

    def _look(self) -> None:
        """Pass `COLD` queries to the server, and the others in the next iteration of the reactor."""
        for _ in range(min(COLD, len(self._cold))):
            self._receive(*self._cold.popleft())
        if self._cold and self.connected:
            self.reactor.callLater(0, self._look)  # type: ignore[attr-defined]

    def _receive(self, packet: bytes, client: bytes, route: Route) -> None:
        """Pass a query to the server. A fault there must not close the port, nor keep others from their answers."""
        try:
            self._server.receive(client[-2:] + packet, Source.of_client(client), partial(self._send, route))
        except Exception:  # noqa: BLE001 -- whatever it is
            self.log.failure("unexpected, please report")

    def _send(self, route: Route, reply: bytes) -> None:
        if self.connected:
            datagrams.send(self.socket, route, reply)
