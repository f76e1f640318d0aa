"""
Frames from and to an interface: pypcap as a reader of the reactor's, without a thread and without polling.

An interface that vanishes, or goes down, is opened again when it is back. `FakePcap` is a pcap without an interface.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import pcap
from twisted.internet.abstract import FileDescriptor
from twisted.logger import Logger

from jitsu_tw.errors import JitsuError
from synjitsu_tw.packets import RST, SYN
from synjitsu_tw.standins import KNOCK_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

#: Frames in one turn of the reactor: a millisecond or two of work.
BATCH: Final = 64

#: How much the kernel may keep for us while we are busy, in octets: with a place of 64 KiB for each frame, as a
#: captured TCP segment may be as long as that before a card has cut it, a burst of 250 frames.
BUFFER: Final = 16 * 1024 * 1024

#: Seconds from one try to open an interface that has gone to the next.
RETRY: Final = 0.5

#: What opens a connection, accepts it or gives it up, in IPv4 and, its header without extensions, in IPv6.
_TCP: Final = (f"tcp[13] & {SYN | RST} != 0", f"ip6[6] = 6 and ip6[53] & {SYN | RST} != 0")

#: Neighbour solicitations and advertisements.
_DISCOVERY: Final = "ip6[6] = 58 and (ip6[40] = 135 or ip6[40] = 136)"


#: What only says that somebody is there: multicast listener reports (RFC 3810, 5: they have a hop-by-hop header), which
#: most systems send in the moment that their interface is up.
_LISTENERS: Final = "ip6[6] = 0"


class CaptureError(JitsuError):
    """An interface cannot be captured from; the message says why."""


class Pcap(Protocol):
    """What `Capture` uses of `pcap.pcap`."""

    def fileno(self) -> int:
        """Return what becomes readable when there are frames."""

    def setfilter(self, value: str) -> None:
        """Let the kernel drop what *value* does not describe (pcap-filter(7))."""

    def dispatch(self, cnt: int, callback: Callable[[float, bytes], Any]) -> int:
        """Call *callback* with the time and the octets of each of at most *cnt* frames that are there."""

    def sendpacket(self, buf: bytes) -> int:
        """Send a frame."""

    def close(self) -> None:
        """End."""


def open_pcap(interface: str) -> Pcap:
    """
    Return a pcap of an interface, which never blocks and drops everything yet.

    Raises:
        OSError: there is no such interface, or we may not (CAP_NET_RAW); with libpcap's words.
    """
    opened = pcap.pcap(interface, promisc=True, immediate=True, timeout_ms=1, buffer_size=BUFFER)
    opened.setnonblock(True)  # noqa: FBT003
    if opened.datalink() != pcap.DLT_EN10MB:
        opened.close()
        raise OSError("it is no Ethernet")
    result: Pcap = opened
    return result


def filter_for(own: bytes, *, ipv4: bool, ipv6: bool, udp: Collection[int], knocks: bool) -> str:
    """
    Return the kernel filter for an interface.

    Args:
        own: the stand-in's MAC: what is sent to it is always wanted.
        ipv4: whether any IPv4 address is stood in for.
        ipv6: the same of IPv6.
        udp: ports whose datagrams may be held.
        knocks: whether any guest is knocked at.
    """
    wanted = [f"ether dst {own.hex(':')}"]
    if ipv4:
        wanted += ["arp", _TCP[0]]
    if ipv6:
        wanted += [_DISCOVERY, _TCP[1]]
    wanted += [f"udp dst port {port}" for port in sorted(udp)]
    if knocks:
        wanted += [f"tcp dst port {KNOCK_PORT}", _LISTENERS]
    words = " or ".join(f"({one})" for one in wanted)
    # After the word vlan, all offsets are those of a tagged frame. Most frames have lost their tag to the kernel when
    # they come here, and pass as untagged ones; libpcap puts it back.
    return f"{words} or (vlan and ({words}))"


class Capture(FileDescriptor):
    """
    One interface.

    Args:
        interface: its name.
        received: called with all frames that are there, at most `BATCH`.
        reactor: tells when there are some.
        opens: makes the pcap.
    """

    log = Logger()

    def __init__(
        self,
        interface: str,
        received: Callable[[list[bytes]], None],
        reactor: Any,
        opens: Callable[[str], Pcap] = open_pcap,
    ) -> None:
        """Open nothing yet."""
        super().__init__(reactor)
        self._clock = reactor
        self.interface = interface
        self._received, self._opens = received, opens
        self._pcap: Pcap | None = None
        self._filter = ""
        self._retry: Any = None

    def open(self, words: str) -> None:
        """
        Begin, with a filter.

        Raises:
            CaptureError: the interface cannot be opened.
        """
        self._filter = words
        try:
            self._pcap = self._opens(self.interface)
            self._pcap.setfilter(words)
        except OSError as error:
            self._pcap = None
            reason = str(error).removeprefix(f"{self.interface}: ").splitlines()[0]
            remedy = "; it takes CAP_NET_RAW" if "permi" in reason else ""
            raise CaptureError(f"cannot capture from {self.interface}: {reason}{remedy}") from error
        self.startReading()

    def narrow(self, words: str) -> None:
        """Have another filter from now on."""
        if words != self._filter:
            self._filter = words
            if self._pcap is not None:
                self._pcap.setfilter(words)

    def send(self, octets: bytes) -> None:
        """Send a frame; one that cannot be sent is lost, as on any wire."""
        if self._pcap is None:
            return
        try:
            self._pcap.sendpacket(octets)
        except OSError as error:
            self.log.debug("{interface}: a frame is lost: {error}", interface=self.interface, error=error)

    def close(self) -> None:
        """End for good."""
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self.stopReading()
        if self._pcap is not None:
            self._pcap.close()
            self._pcap = None

    def fileno(self) -> int:
        """Return what becomes readable when there are frames."""
        return -1 if self._pcap is None else self._pcap.fileno()

    def logPrefix(self) -> str:  # noqa: N802
        """Return what the log calls this."""
        return f"capture on {self.interface}"

    def doRead(self) -> None:  # noqa: N802
        """Take what is there, but not more than a turn's worth."""
        frames: deque[bytes] = deque()
        assert self._pcap is not None
        try:
            self._pcap.dispatch(BATCH, lambda _, octets: frames.append(bytes(octets)))
        except OSError as error:
            self._gone(str(error))
        if frames:
            self._received(list(frames))

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        """The reactor has given up this reader, because of an error of its file descriptor or its own end."""
        if self._pcap is not None:
            self._gone(reason.getErrorMessage())

    def _gone(self, reason: str) -> None:
        self.log.warn("{interface} has gone: {reason}", interface=self.interface, reason=reason)
        self.close()
        self._retry = self._clock.callLater(RETRY, self._again)

    def _again(self) -> None:
        try:
            self.open(self._filter)
        except CaptureError:
            self._retry = self._clock.callLater(RETRY, self._again)
        else:
            self.log.info("{interface} is back", interface=self.interface)


class FakePcap:
    """
    A pcap without an interface: what a test puts there is captured.

    Attributes:
        sent: what was sent, in order.
        filters: what it was told to let pass, in order.
        fails: if set, what the next dispatch raises.
    """

    def __init__(self, interface: str = "br0") -> None:
        """Begin with nothing to capture."""
        self.interface = interface
        self.sent: list[bytes] = []
        self.filters: list[str] = []
        self.fails: OSError | None = None
        self._there: deque[bytes] = deque()
        self._ours, self._theirs = socket.socketpair()

    def put(self, *frames: bytes) -> None:
        """Have *frames* captured."""
        self._there.extend(frames)
        self._theirs.send(b"." * len(frames))

    def fileno(self) -> int:
        """Return what becomes readable when there are frames."""
        return self._ours.fileno()

    def setfilter(self, value: str) -> None:
        """Remember a filter; nothing is filtered."""
        self.filters.append(value)

    def dispatch(self, cnt: int, callback: Callable[[float, bytes], Any]) -> int:
        """Hand out at most *cnt* frames."""
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        count = min(cnt, len(self._there))
        os.read(self.fileno(), count)
        for _ in range(count):
            callback(0.0, self._there.popleft())
        return count

    def sendpacket(self, buf: bytes) -> int:
        """Remember a frame."""
        self.sent.append(buf)
        return len(buf)

    def close(self) -> None:
        """Close the sockets."""
        self._ours.close()
        self._theirs.close()
