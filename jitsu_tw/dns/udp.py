"""
DNS over UDP: a port that answers what is warm in its own loop, and hands on the rest.

twisted's own port would do, at half the speed: for each datagram it makes a call for the protocol, looks three times
at what kind of address it has, and takes up to 256 KiB before anything else gets a turn. This one reads at most `BATCH`
datagrams in a turn, so that boots go on under load. And it sends from the address that was asked, also where it is
bound to all of them (RFC 2181, 4.1).
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

#: Datagrams in one turn of the reactor: a millisecond or so of work.
BATCH: Final = 64

#: In octets: no query is longer; a longer datagram is cut, and then it is malformed.
_LONGEST: Final = 65535

#: How much the kernel may keep for us while we are busy, in octets: a boot storm's worth of questions.
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024

#: Of <netinet/in.h>: the interface's number, the address to send from, and one that only matters on receipt.
_PKTINFO: Final = Struct("@I4s4s")
_PKTINFO6: Final = Struct("@16sI")
_IP_PKTINFO: Final = 8
_ANCILLARY: Final = socket.CMSG_SPACE(max(_PKTINFO.size, _PKTINFO6.size))


class UDPPort(udp.Port):
    """A UDP port of a DNS server."""

    def __init__(
        self, port: int, server: Server, interface: str, reactor: Any, bound: socket.socket | None = None
    ) -> None:
        """Listen on *port* of *interface*, an address; or on *bound*, a socket that somebody else has bound there."""
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
        """Return a socket with room for a burst, that tells where datagrams were sent to."""
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
        Take what has come.

        Written out for speed: `WarmAnswers.take` is here once more, in place; the names are local.
        """
        receive, send, warm = self.socket.recvfrom, self.socket.sendto, self._server.warm
        limiter = self._server.limiter
        find, at, used, keepers = warm.answers.get, warm.now(), warm.used, warm.keepers
        for _ in range(BATCH):
            try:
                octets, address = receive(_LONGEST)
            except OSError:  # nothing more, or news of an earlier reply that nobody wanted
                return
            answer = find(octets[2:].lower())
            if answer is None:
                self._server.receive(octets, Source(address[0], address[1]), partial(self._send, address))
                used = warm.used
                continue
            if limiter is not None and not self._may_send(answer, octets, address):
                continue
            lease, asked = answer.lease, (octets[:2], address)
            if keepers is None or keepers(address[0]):
                lease.used = at
            if asked != answer.last:
                answer.last = asked
                if not answer.count:
                    used.append(answer)
                answer.count += 1
            if at >= lease.check_at:
                self._server.check(answer.vm)
            try:
                send(asked[0] + answer.head + octets[12 : answer.end] + answer.tail, address)
            except OSError:  # no way there, or port 0
                continue

    def _may_send(self, answer: WarmAnswer, octets: bytes, address: Any) -> bool:
        """Say whether a warm answer may go out; if not, a truncated one may go in its place."""
        if address[0].startswith("127."):  # as the limiter itself would say, at a tenth of the cost
            return True
        return self._server.may_send(answer, octets, Source(address[0], address[1]), partial(self._send, address))

    def _send(self, address: Any, octets: bytes) -> None:
        if self.socket is not None:
            try:
                self.socket.sendto(octets, address)
            except OSError:
                return

    def _read_any(self) -> None:
        """Take what has come to any of our addresses; the reply leaves from the one that was asked."""
        for _ in range(BATCH):
            try:
                octets, ancillary, _flags, address = self.socket.recvmsg(_LONGEST, _ANCILLARY)
            except OSError:
                return
            send = partial(self._send_from, address, [_asked(level, kind, data) for level, kind, data in ancillary])
            source = Source(address[0], address[1])
            if not self._server.receive_warm(octets, source, send):
                self._server.receive(octets, source, send)

    def _send_from(self, address: Any, ancillary: list[tuple[int, int, bytes]], octets: bytes) -> None:
        if self.socket is not None:
            try:
                self.socket.sendmsg([octets], ancillary, 0, address)
            except OSError:
                return


def _asked(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """Return what makes a reply leave from the address that a query was sent to, by whatever way leads there."""
    if level == socket.IPPROTO_IP:
        _, _, asked = _PKTINFO.unpack(data)
        return level, kind, _PKTINFO.pack(0, asked, asked)
    asked, index = _PKTINFO6.unpack(data)
    return level, kind, _PKTINFO6.pack(asked, index if ip_address(asked).is_link_local else 0)
