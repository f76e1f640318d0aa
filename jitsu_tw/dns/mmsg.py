"""
Receive and send many datagrams by one system call each: recvmmsg(2) and sendmmsg(2), by cffi.

The buffers are allocated once. What the kernel writes there stays octets: a client's address becomes text only for a
query that has no warm answer. On a socket that is bound to all addresses, the kernel also writes to which one each
datagram was sent, in the form in which sendmmsg takes the one to send from; only the interface is removed, of all
datagrams by one copy.

Importing this module fails where there is no cffi, or the C library has no such calls.
"""

from __future__ import annotations

import os
import socket
import sys
from array import array
from typing import TYPE_CHECKING, Any, Final, Literal

import cffi

from jitsu_tw.dns.datagrams import BATCH, IP_PKTINFO, PKTINFO, PKTINFO6, READ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.dns.datagrams import Route
    from jitsu_tw.dns.warm import Received

_FFI: Final = cffi.FFI()
_FFI.cdef("""
    struct iovec { void *iov_base; size_t iov_len; };
    struct msghdr {
        void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
        void *msg_control; size_t msg_controllen; int msg_flags;
    };
    struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
    int recvmmsg(int, struct mmsghdr *, unsigned int, int, void *);
    int sendmmsg(int, struct mmsghdr *, unsigned int, int);
""")
_C: Any = _FFI.dlopen(None)
_RECEIVE: Final = _C.recvmmsg
_SEND: Final = _C.sendmmsg
_NULL: Final = _FFI.NULL
_DO_NOT_WAIT: Final = int(socket.MSG_DONTWAIT)

_HEADER: Final = _FFI.sizeof("struct mmsghdr")
_PART: Final = _FFI.sizeof("struct iovec")

#: Octets of a client's address: of a struct sockaddr_in, and a struct sockaddr_in6.
_NAME_IPV4: Final = 16
_NAME_IPV6: Final = 28

#: From one datagram's slot to the next: an odd number of cache lines of 64 octets, so that all sets are used.
_STEP: Final = (READ // 128 * 2 + 1) * 64

#: The first octet of fe80::/10, the link-local addresses.
_LINK_LOCAL: Final = 0xFE

_NO_INTERFACES: Final = memoryview(array("I", bytes(4 * BATCH)))


class Batched:
    """
    Two system calls for up to `BATCH` datagrams (`datagrams.Datagrams`).

    Each datagram has a slot: its client's address, and right behind that its octets. The reply is written over these.
    """

    def __init__(self, bound: socket.socket, *, wildcard: bool) -> None:
        """
        Use *bound*, which is bound to all addresses if it is a *wildcard*.

        Raises:
            OSError: the kernel has no such calls, or does not allow them.
        """
        self._descriptor, self._is_ipv4 = bound.fileno(), bound.family == socket.AF_INET
        if _RECEIVE(self._descriptor, _NULL, 0, _DO_NOT_WAIT, _NULL) < 0:
            raise OSError(_FFI.errno, os.strerror(_FFI.errno))
        self._asked = _Asked(bound.family, wildcard=wildcard)
        name, step = _NAME_IPV4 if self._is_ipv4 else _NAME_IPV6, self._asked.step
        slots = _FFI.new("char[]", BATCH * _STEP)
        self._received, replies = (_FFI.new("struct mmsghdr[]", BATCH) for _ in range(2))
        into, out_of = (_FFI.new("struct iovec[]", BATCH) for _ in range(2))
        for headers, parts in ((self._received, into), (replies, out_of)):
            for index in range(BATCH):
                slot, asked = slots + index * _STEP, self._asked.memory + index * step
                parts[index] = slot + name, READ
                headers[index].msg_hdr = (slot, name, parts + index, 1, asked, step, 0)
        self._memory = slots, replies, into, out_of  # what the kernel is given pointers to
        self._replies = [replies + index for index in range(BATCH)]
        self._slots = _FFI.buffer(slots)
        #: For each slot: its client, as `Source.client` has it; where its packet is without its id, and where with it.
        starts = range(0, BATCH * _STEP, _STEP)
        self._clients = [slice(at + 2, at + name + 2) for at in starts]
        self._packets = [at + name + 2 for at in starts]
        self._places = [(at, at - 2, index) for index, at in enumerate(self._packets)]
        # One field of all slots each.
        self._sizes = _field(self._received, "I", _FFI.offsetof("struct mmsghdr", "msg_len"), _HEADER)
        self._lengths = _field(out_of, "L", _FFI.offsetof("struct iovec", "iov_len"), _PART)
        at = _FFI.offsetof("struct mmsghdr", "msg_hdr", "msg_controllen")
        self._spaces = _field(self._received, "L", at, _HEADER)
        self._whole = memoryview(array("L", [step] * BATCH))

    def receive(self) -> Received:
        """Return the datagrams that have arrived (`Datagrams.receive`)."""
        count = _RECEIVE(self._descriptor, self._received, BATCH, _DO_NOT_WAIT, _NULL)
        if count <= 0:  # there is none, or an ICMP error for an earlier reply
            return [], []
        if self._asked.step:
            self._spaces[:count] = self._whole[:count]  # the kernel has overwritten them
            self._asked.forget_interfaces(count)
        slots, sizes = self._slots, self._sizes
        if count == 1:  # the common case
            packet, octets, _ = self._places[0]
            return [slots[packet : octets + sizes[0]]], [slots[self._clients[0]]]
        packets = [slots[packet : octets + sizes[index]] for packet, octets, index in self._places[:count]]
        return packets, [slots[client] for client in self._clients[:count]]

    def route(self, index: int) -> Route:
        """Return the addresses of a reply (`Datagrams.route`)."""
        client, ancillary = self._slots[self._clients[index]], self._asked.ancillary(index)
        port = int.from_bytes(client[:2])
        if self._is_ipv4:
            return (socket.inet_ntoa(client[2:6]), port), ancillary
        scope = int.from_bytes(client[22:26], sys.byteorder)
        return (socket.inet_ntop(socket.AF_INET6, client[6:22]), port, 0, scope), ancillary

    def send(self, replies: Sequence[bytes | None]) -> None:
        """Send *replies* (`Datagrams.send`)."""
        slots, packets, lengths, count = self._slots, self._packets, self._lengths, 0
        for index, reply in enumerate(replies):
            if reply is None:
                continue
            if index != count:
                self._move(index, count)
            at, size = packets[count], len(reply)
            slots[at : at + size] = reply
            lengths[count] = size + 2
            count += 1
        done = 0
        while done < count:
            sent = _SEND(self._descriptor, self._replies[done], count - done, _DO_NOT_WAIT)
            done += max(sent, 1)  # where none is sent, the first cannot be: it has no route, or its port is 0

    def _move(self, index: int, to: int) -> None:
        """Move the client at *index*, with its query's id and the address that it asked, to another slot."""
        self._slots[self._clients[to]] = self._slots[self._clients[index]]
        self._asked.move(index, to)


class _Asked:
    """
    The addresses that datagrams were sent to, and that their replies are sent from, as ancillary data.

    Attributes:
        step: how many octets each takes; 0 where the socket is bound to one address, and no other is asked.
        memory: the octets.
    """

    def __init__(self, family: int, *, wildcard: bool) -> None:
        """Allocate the memory, for a socket of *family* that is bound to all addresses, if it is a *wildcard*."""
        self._is_ipv4 = family == socket.AF_INET
        self._info, begin = (PKTINFO if self._is_ipv4 else PKTINFO6).size, socket.CMSG_LEN(0)
        self.step = step = socket.CMSG_SPACE(self._info) if wildcard else 0
        self.memory = _FFI.new("char[]", BATCH * step or 1)
        self._octets = _FFI.buffer(self.memory)
        if wildcard:
            # in_pktinfo begins with the interface's number; in6_pktinfo ends with it.
            self._interfaces = _field(self.memory, "I", begin + (0 if self._is_ipv4 else 16), step)
            self._firsts = _field(self.memory, "B", begin, step)
            self._from, self._to = (_field(self.memory, "I", begin + at, step) for at in (4, 8))

    def ancillary(self, index: int) -> list[tuple[int, int, bytes]]:
        """Return the ancillary data of a reply, as `socket.sendmsg` takes it."""
        if not self.step:
            return []
        begin = index * self.step + socket.CMSG_LEN(0)
        info = self._octets[begin : begin + self._info]
        if self._is_ipv4:
            return [(socket.IPPROTO_IP, IP_PKTINFO, info)]
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]

    def move(self, index: int, to: int) -> None:
        """Move the address at *index*, to another one's place."""
        octets, step = self._octets, self.step
        octets[to * step : (to + 1) * step] = octets[index * step : (index + 1) * step]

    def forget_interfaces(self, count: int) -> None:
        """Leave the interface of each reply to the routes, but for a link-local address."""
        interfaces, linked = self._interfaces, {}
        if self._is_ipv4:
            self._from[:count] = self._to[:count]
        else:
            linked = {at: interfaces[at] for at, octet in enumerate(self._firsts[:count]) if octet == _LINK_LOCAL}
        interfaces[:count] = _NO_INTERFACES[:count]
        for at, number in linked.items():
            interfaces[at] = number


def _field(structures: Any, code: Literal["B", "I", "L"], begin: int, step: int) -> memoryview:
    """Return the numbers at *begin*, and every *step* octets behind that, in *structures*; *code* is struct's."""
    numbers = memoryview(_FFI.buffer(structures)).cast("B").cast(code)
    return numbers[begin // numbers.itemsize :: step // numbers.itemsize]
