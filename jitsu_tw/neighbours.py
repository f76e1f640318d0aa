"""Which MAC a neighbour of this host has, as the kernel knows (rtnetlink(7)): by the same calls for IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jitsu_tw.networks import packed

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of <linux/rtnetlink.h> and <linux/neighbour.h>.
_NEWROUTE: Final = 24
_GETROUTE: Final = 26
_NEWNEIGH: Final = 28
_GETNEIGH: Final = 30
_DST: Final = 1  # RTA_DST, NDA_DST
_LLADDR: Final = 2  # NDA_LLADDR
_OIF: Final = 4  # RTA_OIF
_GATEWAY: Final = 5  # RTA_GATEWAY
_VIA: Final = 18  # RTA_VIA

#: Of an entry that has no valid MAC: NUD_INCOMPLETE, NUD_FAILED.
_INVALID: Final = 0x01 | 0x20

#: `nlmsghdr`; `rtmsg`, and `ndmsg`, which a message has after it; `rtattr`.
_HEAD: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=8BI")
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")
_ATTRIBUTE: Final = struct.Struct("=HH")

#: The port of the service that answers nothing (RFC 863).
DISCARD: Final = 9

_REQUEST: Final = 1  # NLM_F_REQUEST
_LONGEST: Final = 65536
_MAC: Final = 6


def mac_of(host: str) -> str | None:
    """
    Return the MAC of the neighbour with the address *host*, ``aa:bb:cc:dd:ee:ff``.

    None if it is none, or the kernel does not know its MAC: a host that is behind a router, or this host itself. It
    takes some microseconds: the kernel answers while it takes the question.

    Raises:
        OSError: the kernel cannot be asked.
    """
    address, zone = packed(host), host.partition("%")[2]
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        index = socket.if_nametoindex(zone) if zone else _interface(kernel, family, address)
        if index is None:
            return None
        body = _NEIGHBOUR.pack(family, index, 0, 0, 0) + _attribute(_DST, address)
        found = _ask(kernel, _GETNEIGH, _NEWNEIGH, body)
    if found is None:
        return None
    state, attributes = _NEIGHBOUR.unpack_from(found)[2], dict(_attributes(found[_NEIGHBOUR.size :]))
    mac = attributes.get(_LLADDR, b"")
    return mac.hex(":") if len(mac) == _MAC and any(mac) and not state & _INVALID else None


def probe(host: str) -> None:
    """
    Make the kernel find out, within seconds, whether the neighbour *host* is still there.

    The kernel remembers for good what it has once known (gc_thresh1 in arp(7)), and asks when it is to send something:
    here a datagram without content, to the port `DISCARD`. That can fail, and then nothing is found out.
    """
    family = socket.AF_INET if len(packed(host)) == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as one:
        one.sendto(b"", (host, DISCARD))


def routers() -> frozenset[bytes]:
    """Return the addresses (`networks.packed`) of the routers that this host sends by; none where that is not known."""
    found = set()
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            found.add(int(line.split()[2], 16).to_bytes(4, sys.byteorder))
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/net/ipv6_route").read_text().splitlines():
            found.add(bytes.fromhex(line.split()[4]))
    return frozenset(one for one in found if any(one))


def _interface(kernel: socket.socket, family: int, address: bytes) -> int | None:
    """Return the number of the interface on whose link *address* is; None if it is behind a router."""
    body = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0) + _attribute(_DST, address)
    found = _ask(kernel, _GETROUTE, _NEWROUTE, body)
    attributes = {} if found is None else dict(_attributes(found[_ROUTE.size :]))
    if _OIF not in attributes or _GATEWAY in attributes or _VIA in attributes:
        return None
    return int.from_bytes(attributes[_OIF], sys.byteorder)


def _ask(kernel: socket.socket, kind: int, answer: int, body: bytes) -> bytes | None:
    """Return the body of the kernel's *answer* to a message of that *kind*; None for an error."""
    kernel.send(_HEAD.pack(_HEAD.size + len(body), kind, _REQUEST, 1, 0) + body)
    octets = kernel.recv(_LONGEST, socket.MSG_DONTWAIT)
    length, found, *_ = _HEAD.unpack_from(octets)
    return octets[_HEAD.size : length] if found == answer else None


def _attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute; addresses need no padding."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def _attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in *octets*, by their kind."""
    while len(octets) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(octets)
        yield kind, octets[_ATTRIBUTE.size : length]
        octets = octets[max(_ATTRIBUTE.size, (length + 3) & ~3) :]
