"""
Receive and send the datagrams of a UDP socket by two system calls for each.

That works with any kernel and C library. `mmsg` does the same by two calls for up to `BATCH` datagrams.
"""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, Protocol

from jitsu_tw.dns.message import LONGEST
from jitsu_tw.dns.wire import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.dns.warm import Received

#: The most datagrams that are received at once: about half a millisecond of work.
BATCH: Final = 64

#: The most octets of a datagram that are read: a longer one is cut, to one more than a query may have, and so FORMERR.
READ: Final = LONGEST + 1

#: The address that a datagram was sent to, of IPv4 (ip(7)): the interface's number, the address to send from, and that
#: of the datagram; and of IPv6 (RFC 3542, 6): the address, and the interface's number.
PKTINFO: Final = Struct("@I4s4s")
PKTINFO6: Final = Struct("@16sI")
#: Of <linux/in.h>; the socket module has no name for it yet.
IP_PKTINFO: Final = 8

#: The addresses of a reply, as `socket.sendmsg` takes them: the client's, and as ancillary data the server's.
Route = tuple[Any, list[tuple[int, int, bytes]]]


class Datagrams(Protocol):
    """What a port needs: `Single` here, and `mmsg.Batched`."""

    def receive(self) -> Received:
        """Return the datagrams that have arrived, `BATCH` at most."""

    def route(self, index: int) -> Route:
        """Return the addresses of a reply to the datagram at *index* of the last `receive`, before `send`."""

    def send(self, replies: Sequence[bytes | None]) -> None:
        """Send *replies*, without their ids, to the datagrams of the last `receive`; what cannot be sent is lost."""


class Single:
    """One system call for each datagram."""

    def __init__(self, bound: socket.socket) -> None:
        """Use *bound*, which does not block."""
        self._socket = bound
        self._clients: list[bytes] = []
        self._routes: list[Route] = []

    def receive(self) -> Received:
        """Return the datagrams that have arrived (`Datagrams.receive`)."""
        packets: list[bytes] = []
        self._clients, self._routes = [], []
        for _ in range(BATCH):
            try:
                octets, ancillary, _, address = self._socket.recvmsg(READ, socket.CMSG_SPACE(PKTINFO6.size))
            except OSError:  # no more, or an ICMP error for an earlier reply
                break
            self._routes.append((address, [_from_query(*item) for item in ancillary]))
            packets.append(octets[2:])
            self._clients.append(Source(address[0], address[1]).client(octets[:2]))
        return packets, self._clients

    def route(self, index: int) -> Route:
        """Return the addresses of a reply (`Datagrams.route`)."""
        return self._routes[index]

    def send(self, replies: Sequence[bytes | None]) -> None:
        """Send *replies* (`Datagrams.send`)."""
        for client, route, reply in zip(self._clients, self._routes, replies, strict=True):
            if reply is not None:
                send(self._socket, route, client[-2:] + reply)


def send(bound: socket.socket, route: Route, reply: bytes) -> None:
    """Send *reply*; it is lost if there is no way to the client, its port is 0, or no buffer is free."""
    address, ancillary = route
    with contextlib.suppress(OSError):
        bound.sendmsg([reply], ancillary, 0, address)


def _from_query(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """
    Return the ancillary data of a reply, which is sent from the address that its query was sent to.

    The interface is left to the routes, but for a link-local address.
    """
    if level == socket.IPPROTO_IP:
        _, _, address = PKTINFO.unpack(data)
        return level, kind, PKTINFO.pack(0, address, address)
    address, index = PKTINFO6.unpack(data)
    return level, kind, PKTINFO6.pack(address, index if ip_address(address).is_link_local else 0)
