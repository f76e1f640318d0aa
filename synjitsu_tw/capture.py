"""
Capture and send frames on an interface: libpcap as a reader of the reactor, without a thread and without polling.

`Pcap` is one interface to two bindings of libpcap: pypcap, which compiles up to Python 3.11, and cypcap for later
versions. An interface that vanishes, or goes down, is opened again when it is back.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.logger import Logger

from jitsu_tw.errors import JitsuError
from synjitsu_tw.packets import FIN, RST, SYN
from synjitsu_tw.standins import PROBE_SOURCE_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

#: Frames in one iteration of the reactor: a millisecond or two of work.
BATCH: Final = 64

#: The kernel's capture buffer, in octets. It takes a burst of 250 frames: a slot has 64 KiB, as a captured TCP segment
#: may be as long as that before a network card has cut it.
BUFFER: Final = 16 * 1024 * 1024

#: The buffer of a capture that only counts, in octets: one slot.
COUNTER_BUFFER: Final = 64 * 1024

#: libpcap's DLT_EN10MB.
ETHERNET: Final = 1

#: Seconds between two attempts to open an interface that has vanished.
RETRY: Final = 0.5

#: Segments with SYN, FIN or RST: in IPv4, and in IPv6 without extension headers.
_ENDS: Final = SYN | FIN | RST
_TCP: Final = (f"tcp[13] & {_ENDS} != 0", f"ip6[6] = 6 and ip6[53] & {_ENDS} != 0")

#: Neighbour solicitations and advertisements.
_DISCOVERY: Final = "ip6[6] = 58 and (ip6[40] = 135 or ip6[40] = 136)"


#: Multicast listener reports (RFC 3810, 5: they have a hop-by-hop header). Most systems send one as soon as their
#: interface is up, so that the guest's MAC is seen early.
_LISTENERS: Final = "ip6[6] = 0"


class CaptureError(JitsuError):
    """An interface cannot be captured from; the message says why."""


class Pcap(Protocol):
    """What `Capture` uses of libpcap. Each call may raise OSError with libpcap's message."""

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when there are frames."""

    def datalink(self) -> int:
        """Return the kind of frames: `ETHERNET`, or another DLT_ number."""

    def setfilter(self, value: str) -> None:
        """Make the kernel drop the frames that the filter *value* does not match (pcap-filter(7))."""

    def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
        """Call *callback* with the header and the octets of each captured frame, of at most *cnt* frames."""

    def sendpacket(self, buf: bytes) -> Any:
        """Send a frame."""

    def received(self) -> int:
        """Return how many frames have passed the filter, also those that the full buffer could not take."""

    def close(self) -> None:
        """Close the capture."""


def open_counter(interface: str) -> Pcap:
    """Return a pcap of an interface, like `open_pcap`, that is not to be read: its buffer is as small as can be."""
    return open_pcap(interface, COUNTER_BUFFER)


def open_pcap(interface: str, buffer: int = BUFFER) -> Pcap:
    """
    Return a pcap of an interface, which never blocks; *buffer* is the size of the kernel's buffer in octets.

    Raises:
        OSError: there is no such interface, or capturing is not allowed (CAP_NET_RAW); with libpcap's message.
        CaptureError: no binding of libpcap is installed.
    """
    for opens in BINDINGS.values():
        with suppress(ImportError):
            opened = opens(interface, buffer)
            if opened.datalink() != ETHERNET:
                opened.close()
                raise OSError("it is no Ethernet")
            return opened
    raise CaptureError("Synjitsu needs pypcap or cypcap: pip install 'jitsu-tw[synjitsu]'")


def _pypcap(interface: str, buffer: int = BUFFER) -> Pcap:
    import pcap  # noqa: PLC0415 -- not for every Python

    class Pypcap(pcap.pcap):  # type: ignore[misc]
        def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
            if super().dispatch(cnt, callback) < 0:
                raise OSError(self.geterr().decode())

        def received(self) -> int:
            count: int = super().stats()[0]
            return count

    opened = Pypcap(interface, promisc=True, immediate=True, timeout_ms=1, buffer_size=buffer)
    opened.setnonblock(True)  # noqa: FBT003
    result: Pcap = opened
    return result


class _Cypcap:
    """cypcap as a `Pcap`: its own errors become OSErrors."""

    def __init__(self, interface: str, buffer: int = BUFFER) -> None:
        import cypcap  # noqa: PLC0415 -- not for every Python

        # Without a given netmask, cypcap reads the interface's, and fails where a bridge has no address.
        self._error, self._no_netmask = cypcap.Error, cypcap.NETMASK_UNKNOWN
        with self._os_errors():
            self._pcap = cypcap.create(interface)
            self._pcap.set_pre_config(promisc=True, immediate_mode=True, timeout=0.001, buffer_size=buffer)
            self._pcap.activate()
            self._pcap.setnonblock(True)  # noqa: FBT003

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(error.args[-1]) from error

    def fileno(self) -> int:
        descriptor: int = self._pcap.get_selectable_fd()
        return descriptor

    def datalink(self) -> int:
        return int(self._pcap.datalink())

    def setfilter(self, value: str) -> None:
        with self._os_errors():
            self._pcap.setfilter(value, netmask=self._no_netmask)

    def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
        with self._os_errors():
            self._pcap.dispatch(cnt, callback)

    def sendpacket(self, buf: bytes) -> None:
        with self._os_errors():
            self._pcap.sendpacket(buf)

    def received(self) -> int:
        with self._os_errors():
            return int(self._pcap.stats().recv)

    def close(self) -> None:
        self._pcap.close()


#: The bindings, each by the name of its module; the first that is installed is used.
BINDINGS: Final[Mapping[str, Callable[..., Pcap]]] = {"pcap": _pypcap, "cypcap": _Cypcap}


def filter_for(own: bytes, *, ipv4: bool, ipv6: bool, udp: Collection[int], probes: bool) -> str:
    """
    Return the kernel filter for an interface.

    Args:
        own: the stand-in's MAC: frames to it always pass.
        ipv4: whether there is a stand-in for any IPv4 address.
        ipv6: whether there is a stand-in for any IPv6 address.
        udp: the UDP ports whose datagrams may be held.
        probes: whether any guest is probed.
    """
    wanted = [f"ether dst {own.hex(':')}"]
    if ipv4:
        wanted += ["arp", _TCP[0]]
    if ipv6:
        wanted += [_DISCOVERY, _TCP[1]]
    wanted += [f"udp dst port {port}" for port in sorted(udp)]
    if probes:
        wanted += [f"tcp dst port {PROBE_SOURCE_PORT}", _LISTENERS]
    untagged = " or ".join(f"({one})" for one in wanted)
    # After `vlan`, all offsets are those of a tagged frame. The kernel has taken the tag off most frames before the
    # filter sees them, and they pass as untagged ones; libpcap puts the tag back.
    return f"{untagged} or (vlan and ({untagged}))"


class Capture(FileDescriptor):
    """
    Captures and sends frames on one interface.

    Args:
        interface: its name.
        received: called with the captured frames, at most `BATCH` of them.
        reactor: Twisted's.
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
        """Store the arguments; `open` opens the interface."""
        super().__init__(reactor)
        self._clock = reactor
        self.interface = interface
        self._received, self._opens = received, opens
        self._pcap: Pcap | None = None
        self._filter = ""
        self._retry: Any = None

    def open(self, kernel_filter: str) -> None:
        """
        Open the interface and capture the frames that pass *kernel_filter*.

        Raises:
            CaptureError: the interface cannot be opened.
        """
        self._filter = kernel_filter
        try:
            self._pcap = self._opens(self.interface)
            self._pcap.setfilter(kernel_filter)
        except OSError as error:
            self._pcap = None
            reason = str(error).removeprefix(f"{self.interface}: ").splitlines()[0]
            remedy = "; it takes CAP_NET_RAW" if "permi" in reason else ""
            raise CaptureError(f"cannot capture from {self.interface}: {reason}{remedy}") from error
        self.startReading()

    def set_filter(self, kernel_filter: str) -> None:
        """Replace the kernel filter."""
        if kernel_filter != self._filter:
            self._filter = kernel_filter
            if self._pcap is not None:
                self._pcap.setfilter(kernel_filter)

    def send(self, octets: bytes) -> None:
        """Send a frame; a frame that cannot be sent is lost, as on any network."""
        if self._pcap is None:
            return
        try:
            self._pcap.sendpacket(octets)
        except OSError as error:
            self.log.debug("{interface}: a frame is lost: {error}", interface=self.interface, error=error)

    def close(self) -> None:
        """Close the interface and do not open it again."""
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self.stopReading()
        if self._pcap is not None:
            self._pcap.close()
            self._pcap = None

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when there are frames; -1 while the interface is closed."""
        return -1 if self._pcap is None else self._pcap.fileno()

    def logPrefix(self) -> str:  # noqa: N802
        """Return the name of this reader in the log."""
        return f"capture on {self.interface}"

    def doRead(self) -> None:  # noqa: N802
        """Read at most `BATCH` of the captured frames."""
        if self._pcap is None:
            return
        frames: list[bytes] = []
        try:
            self._pcap.dispatch(BATCH, lambda _, octets: frames.append(bytes(octets)))
        except OSError as error:
            self._vanished(str(error))
        if frames:
            self._received(frames)

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        """Handle that the reactor has dropped this reader: its file descriptor has an error, or the reactor stops."""
        if self._pcap is not None:
            self._vanished(reason.getErrorMessage())

    def _vanished(self, reason: str) -> None:
        self.log.warn("{interface} has vanished: {reason}", interface=self.interface, reason=reason)
        self.close()
        self._retry = self._clock.callLater(RETRY, self._reopen)

    def _reopen(self) -> None:
        try:
            self.open(self._filter)
        except CaptureError:
            self._retry = self._clock.callLater(RETRY, self._reopen)
        else:
            self.log.info("{interface} is back", interface=self.interface)
