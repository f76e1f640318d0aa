"""
What this host's kernel knows: its interfaces' MACs, MTUs and addresses; and its neighbours, which it can be told.

A frame that is sent on a bridge goes out of its ports and never comes back to the host itself. So where the host is a
peer (its own clients, or those that it routes for), its neighbour table is written instead, by rtnetlink(7). That
takes CAP_NET_ADMIN; nothing else here does.
"""

from __future__ import annotations

import array
import errno
import fcntl
import hashlib
import os
import socket
import struct
from pathlib import Path
from typing import Final

#: Of <linux/sockios.h>.
_SIOCGIFCONF: Final = 0x8912
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFMTU: Final = 0x8921
_SIOCGIFHWADDR: Final = 0x8927

#: In octets: one entry of what SIOCGIFCONF returns, on 64-bit machines, and room for many.
_IFREQ: Final = 40
_ROOM: Final = 256 * _IFREQ

#: Of <linux/rtnetlink.h>, <linux/netlink.h> and <linux/neighbour.h>.
_RTM_NEWNEIGH: Final = 28
_REQUEST_ACK: Final = 0x1 | 0x4
_REPLACE: Final = 0x100
_CREATE: Final = 0x400
_NLMSG_ERROR: Final = 2
_REACHABLE: Final = 0x02
_STALE: Final = 0x04
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2

#: Each machine's own, whatever it is called.
_MACHINE_ID: Final = Path("/etc/machine-id")


def own_mac(interface: str) -> bytes:
    """Return the stand-in's MAC on an interface: locally administered, and the same after a restart."""
    machine = _MACHINE_ID.read_bytes() if _MACHINE_ID.exists() else b""
    seed = b"\0".join((machine.strip(), socket.gethostname().encode(), interface.encode()))
    return b"\x02" + hashlib.sha256(b"synjitsu\0" + seed).digest()[:5]


class Kernel:
    """Asks and tells the kernel of the network namespace that we are in."""

    def __init__(self) -> None:
        """Open what is needed."""
        self._asks = socket.socket(type=socket.SOCK_DGRAM)
        self._tells = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._tells.setblocking(False)  # noqa: FBT003

    def close(self) -> None:
        """Close that."""
        self._asks.close()
        self._tells.close()

    def _ask(self, request: int, interface: str) -> bytes:
        return fcntl.ioctl(self._asks, request, struct.pack("16s24x", interface.encode()))[16:]

    def mac(self, interface: str) -> bytes:
        """Return an interface's MAC. Raises OSError if it is not there."""
        return self._ask(_SIOCGIFHWADDR, interface)[2:8]

    def mtu(self, interface: str) -> int:
        """Return an interface's MTU, in octets. Raises OSError if it is not there."""
        return int(struct.unpack_from("i", self._ask(_SIOCGIFMTU, interface))[0])

    def knocks_from(self, interface: str) -> dict[int, bytes]:
        """Return an IPv4 address and an IPv6 link-local one that this host has on an interface, by their lengths."""
        local = [ip for ip, name in _ipv6_addresses() if name == interface and ip[:2] == b"\xfe\x80"]
        found = {len(ip): ip for ip in local}
        try:
            found[4] = self._ask(_SIOCGIFADDR, interface)[4:8]
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.ENODEV}:
                raise
        return found

    def addresses(self) -> frozenset[bytes]:
        """Return all addresses of this host."""
        return frozenset(_ipv4_addresses(self._asks)) | frozenset(ip for ip, _ in _ipv6_addresses())

    def tell(self, interface: str, ip: bytes, mac: bytes, *, create: bool) -> None:
        """
        Tell the kernel that a neighbour is at a MAC; unless *create*, only if it knows another one.

        Raises:
            OSError: it does not let us.
        """
        family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
        state, flags = (_REACHABLE, _REPLACE | _CREATE) if create else (_STALE, _REPLACE)
        body = struct.pack("BxxxiHBB", family, socket.if_nametoindex(interface), state, 0, 0)
        body += _attribute(_NDA_DST, ip) + _attribute(_NDA_LLADDR, mac)
        self._tells.send(struct.pack("IHHII", 16 + len(body), _RTM_NEWNEIGH, _REQUEST_ACK | flags, 0, 0) + body)
        # The kernel has done it when send() returns, and its answer is there.
        kind, code = struct.unpack_from("HxxxxxxxxxxI", self._tells.recv(4096), 4)
        problem = (2**32 - code) % 2**32
        if kind == _NLMSG_ERROR and problem and not (problem == errno.ENOENT and not create):
            raise OSError(problem, os.strerror(problem))


def _attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute of a netlink message, padded to four octets."""
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ipv4_addresses(asks: socket.socket) -> list[bytes]:
    """Return this host's IPv4 addresses (netdevice(7))."""
    room = array.array("B", bytes(_ROOM))
    where, _ = room.buffer_info()
    filled = struct.unpack("iP", fcntl.ioctl(asks, _SIOCGIFCONF, struct.pack("iP", _ROOM, where)))[0]
    octets = room.tobytes()
    return [octets[start + 20 : start + 24] for start in range(0, filled, _IFREQ)]


def _ipv6_addresses() -> list[tuple[bytes, str]]:
    """Return this host's IPv6 addresses, each with its interface."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []
    return [(bytes.fromhex(words[0]), words[-1]) for words in map(str.split, lines)]
