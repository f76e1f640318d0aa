"""
The interfaces of this host, read by rtnetlink(7).

Of the fifty attributes that the kernel has of each interface, only those that Synjitsu wants are decoded: it reads all
ports of a bridge whenever one changes, while guests boot, and a library that decodes all of them takes 0.7 ms for each.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

#: `struct nlmsghdr` of <linux/netlink.h>: length, type, flags, number, sender.
_MESSAGE: Final = struct.Struct("=IHHII")

#: `struct ifinfomsg` of <linux/rtnetlink.h>: family, type, index, flags, changed flags.
_LINK: Final = struct.Struct("=BxHiII")

#: `struct nlattr` of <linux/netlink.h>: length, type, whose two highest bits are flags; attributes are padded.
_ATTRIBUTE: Final = struct.Struct("=HH")
_TYPE: Final = 0x3FFF
_PADDED: Final = 4

#: Of <linux/netlink.h> and <linux/rtnetlink.h>: types of messages, and flags of a request.
_ERROR: Final = 2
_DONE: Final = 3
_GETLINK: Final = 18
_REQUEST: Final = 0x1
_DUMP: Final = 0x300
_INTERRUPTED: Final = 0x10

#: How often a list is asked for that has changed meanwhile.
_TRIES: Final = 3

#: Of <linux/if_link.h>: attributes of an interface, of its kind, of a bridge and of a bridge's port.
_ADDRESS: Final = 1
_NAME: Final = 3
_MTU: Final = 4
_MASTER: Final = 10
_INFO: Final = 18
_WANTED: Final = 29
_KIND: Final = 1
_DATA: Final = 2
_PORT_DATA: Final = 5
_STP: Final = 5
_PORT_STATE: Final = 1

#: Of <linux/rtnetlink.h>: the kernel leaves out the counters (RTEXT_FILTER_SKIP_STATS).
_NO_COUNTERS: Final = 1 << 3

#: Of <linux/if_bridge.h>: the state of a port.
_FORWARDING: Final = 3

#: Of <linux/if.h>: an interface that is up, and one that has carrier.
_UP: Final = 0x1
_LOWER_UP: Final = 0x10000

#: In octets: the most that the kernel writes at once.
_PIECE: Final = 1 << 17

#: Seconds that the kernel may take.
_WITHIN: Final = 5.0


@attrs.frozen
class Interface:
    """
    An interface, as the kernel describes it.

    Attributes:
        index: its number.
        kind: ``bridge``, ``veth``, ``tun`` …; empty for hardware.
        mtu: in octets.
        master: the number of the bridge that it is a port of; 0 for none.
        up: whether it is up and has carrier: of a veth pair, both ends are up.
        forwards: whether its bridge forwards to it.
        stp: whether it is a bridge with the spanning tree protocol, which forwards nothing to a new port for a while.
    """

    index: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    master: int
    up: bool
    forwards: bool
    stp: bool

    @classmethod
    def read(cls, message: bytes) -> Interface:
        """Return the interface that an RTM_NEWLINK message describes, without the message's header."""
        _, _, index, flags, _ = _LINK.unpack_from(message)
        found = _attributes(message[_LINK.size :])
        info = _attributes(found.get(_INFO, b""))
        kind = _text(info.get(_KIND, b""))
        port = _attributes(info.get(_PORT_DATA, b"")).get(_PORT_STATE, b"\0")
        stp = _number(_attributes(info.get(_DATA, b"")).get(_STP, b"")) if kind == "bridge" else 0
        return cls(
            index, _text(found[_NAME]), kind, found.get(_ADDRESS, b""), _number(found[_MTU]),
            _number(found.get(_MASTER, b"")), flags & (_UP | _LOWER_UP) == _UP | _LOWER_UP, port[0] == _FORWARDING,
            stp != 0,
        )  # fmt: skip


def _attributes(octets: bytes) -> dict[int, bytes]:
    """Return the attributes in *octets*, by their types."""
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, at)
        found[kind & _TYPE] = octets[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, length + -length % _PADDED)
    return found


def _text(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode(errors="replace")


def _number(octets: bytes) -> int:
    return int.from_bytes(octets, "little" if struct.pack("=H", 1)[0] else "big")


def _attribute(kind: int, octets: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(octets)
    return _ATTRIBUTE.pack(length, kind) + octets + bytes(-length % _PADDED)


class Links:
    """Reads the interfaces of the network namespace that it was made in. Each method may raise an OSError."""

    def __init__(self) -> None:
        """Open the socket."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_WITHIN)
        self._number = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def called(self, name: str) -> Interface:
        """Return the interface called *name*."""
        return self._get(0, _attribute(_NAME, name.encode() + b"\0"))[0]

    def at(self, index: int) -> Interface:
        """Return the interface with this number."""
        return self._get(index, b"")[0]

    def ports(self, bridge: int) -> list[Interface]:
        """Return the ports of the bridge with this number."""
        asked = _attribute(_MASTER, struct.pack("=I", bridge))
        return [port for port in self._get(0, asked, _DUMP) if port.master == bridge]

    def _get(self, index: int, asked: bytes, flags: int = 0) -> list[Interface]:
        for _ in range(_TRIES):
            found, is_whole = self._ask(index, asked, flags)
            if is_whole:
                break
        return found

    def _ask(self, index: int, asked: bytes, flags: int) -> tuple[list[Interface], bool]:
        """Return interfaces, and whether nothing has changed while the kernel listed them."""
        self._number += 1
        found, is_whole = list[Interface](), True
        asked = _LINK.pack(0, 0, index, 0, 0) + asked + _attribute(_WANTED, struct.pack("=I", _NO_COUNTERS))
        length = _MESSAGE.size + len(asked)
        self._socket.send(_MESSAGE.pack(length, _GETLINK, _REQUEST | flags, self._number, 0) + asked)
        is_over = False
        while not is_over:
            for kind, changed, message in self._receive():
                is_whole = is_whole and not changed & _INTERRUPTED
                is_over = kind == _DONE or not flags
                if kind in {_DONE, _ERROR}:
                    code = -struct.unpack_from("=i", message)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                else:
                    found.append(Interface.read(message))
        return found, is_whole

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the next messages, as type, flags and content; those of an earlier request are passed over."""
        octets, at = self._socket.recv(_PIECE), 0
        while at + _MESSAGE.size <= len(octets):
            length, kind, flags, number, _ = _MESSAGE.unpack_from(octets, at)
            if number == self._number:
                yield kind, flags, octets[at + _MESSAGE.size : at + length]
            at += max(_MESSAGE.size, length + -length % _PADDED)
