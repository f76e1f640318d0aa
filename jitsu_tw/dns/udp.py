"""
DNS over UDP: a port that sends warm answers in its own loop, and passes other queries to the server.

Twisted's own port would work at half the speed: for each datagram it calls the protocol, checks three times which kind
of address it has, and it reads up to 256 KiB before anything else runs. This one reads at most `BATCH` datagrams in an
iteration of the reactor, so that boots go on under load. And it replies from the address that the query was sent to,
also where it is bound to all of them (RFC 2181, 4.1).
"""

from __future__ import annotations

import socket
from functools import partial
from ipaddress import ip_address
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import udp
from twisted.internet.protocol import DatagramProtocol

from jitsu_tw.dns.binding import set_up
from jitsu_tw.dns.wire import Source

if TYPE_CHECKING:
    from jitsu_tw.dns.server import Server
    from jitsu_tw.dns.warm import WarmAnswer

#: Datagrams in one iteration of the reactor: about a millisecond of work.
BATCH: Final = 64

#: The size of the buffer for a datagram, in octets: no query is longer.
_LONGEST: Final = 65535

#: The kernel's receive buffer, in octets: it takes the queries that arrive while many VMs are started at once.
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024

#: Of <netinet/in.h>: the interface's number, the address to send from, and one that is only for received datagrams.
_PKTINFO: Final = Struct("@I4s4s")
_PKTINFO6: Final = Struct("@16sI")
_IP_PKTINFO: Final = 8
_ANCILLARY: Final = socket.CMSG_SPACE(max(_PKTINFO.size, _PKTINFO6.size))


class UDPPort(udp.Port):
    """A UDP port of a DNS server."""

    def __init__(
        self, port: int, server: Server, interface: str, reactor: Any, bound: socket.socket | None = None
    ) -> None:
        """Listen on *port* of *interface*, an address; or on *bound*, a socket that systemd has bound there."""
        protocol = DatagramProtocol()
        protocol.noisy = False
        super().__init__(port, protocol, interface, _LONGEST, reactor)
        self._server = server
        if bound is not None:
            self._set_up(bound)
            self._preexistingSocket = bound  # type: ignore[assignment]
        if ip_address(interface).is_unspecified:
            self.doRead = self._read_any  # type: ignore[method-assign]

    def createInternetSocket(self) -> socket.socket:  # noqa: N802
        """Return a socket with a buffer for a burst, that reports the address to which a datagram was sent."""
        made: socket.socket = super().createInternetSocket()
        set_up(made)
        self._set_up(made)
        return made

    def _set_up(self, made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if self.addressFamily == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def doRead(self) -> None:  # noqa: N802
        """
        Answer the datagrams that have arrived, `BATCH` at most.

        For speed, the code of `WarmAnswers.take` is repeated here, and names are local.
        """
        receive, send, warm = self.socket.recvfrom, self.socket.sendto, self._server.warm
        limiter = self._server.limiter
        find, at, used, keepers = warm.answers.get, warm.now(), warm.used, warm.keepers
        for _ in range(BATCH):
            try:
                octets, address = receive(_LONGEST)
            except OSError:  # no more datagrams, or an ICMP error for an earlier reply
                return
            answer = find(octets[2:].lower())
            if answer is None:
                self._server.receive(octets, Source(address[0], address[1]), partial(self._send, address))
                used = warm.used
                continue
            if limiter is not None and not self._may_send(answer, octets, address):
                continue
            lease, query = answer.lease, (octets[:2], address)
            if keepers is None or keepers(address[0]):
                lease.used = at
            if query != answer.last:
                answer.last = query
                if not answer.count:
                    used.append(answer)
                answer.count += 1
            if at >= lease.check_at:
                self._server.check(answer.vm)
            try:
                send(query[0] + answer.head + octets[12 : answer.end] + answer.tail, address)
            except OSError:  # there is no route to the client, or its port is 0
                continue

    def _may_send(self, answer: WarmAnswer, octets: bytes, address: Any) -> bool:
        """Return whether a warm answer may be sent; if not, a truncated one may have been sent instead."""
        if address[0].startswith("127."):  # the limiter itself exempts loopback, at ten times the cost
            return True
        return self._server.may_send(answer, octets, Source(address[0], address[1]), partial(self._send, address))

    def _send(self, address: Any, octets: bytes) -> None:
        if self.socket is not None:
            try:
                self.socket.sendto(octets, address)
            except OSError:
                return

    def _read_any(self) -> None:
        """Answer the datagrams to any address of this host; each reply is sent from its query's destination."""
        for _ in range(BATCH):
            try:
                octets, ancillary, _flags, address = self.socket.recvmsg(_LONGEST, _ANCILLARY)
            except OSError:
                return
            send = partial(self._send_from, address, [_from_query(*item) for item in ancillary])
            source = Source(address[0], address[1])
            if not self._server.receive_warm(octets, source, send):
                self._server.receive(octets, source, send)

    def _send_from(self, address: Any, ancillary: list[tuple[int, int, bytes]], octets: bytes) -> None:
        if self.socket is not None:
            try:
                self.socket.sendmsg([octets], ancillary, 0, address)
            except OSError:
                return


def _from_query(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """
    Return the ancillary data of a reply, which is sent from the address that its query was sent to.

    The interface is left to the routes, but for a link-local address.
    """
    if level == socket.IPPROTO_IP:
        _, _, address = _PKTINFO.unpack(data)
        return level, kind, _PKTINFO.pack(0, address, address)
    address, index = _PKTINFO6.unpack(data)
    return level, kind, _PKTINFO6.pack(address, index if ip_address(address).is_link_local else 0)
