"""
Frames from and to an interface: libpcap as a reader of the reactor's, without a thread and without polling.

Two bindings of libpcap serve behind one `Pcap`: pypcap, which compiles up to Python 3.11, and cypcap beyond. An
interface that vanishes, or goes down, is opened again when it is back.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.logger import Logger

from jitsu_tw.errors import JitsuError
from synjitsu_tw.packets import RST, SYN
from synjitsu_tw.standins import KNOCK_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

#: Frames in one turn of the reactor: a millisecond or two of work.
BATCH: Final = 64

#: How much the kernel may keep for us while we are busy, in octets: with a place of 64 KiB for each frame, as a
#: captured TCP segment may be as long as that before a card has cut it, a burst of 250 frames.
BUFFER: Final = 16 * 1024 * 1024

#: libpcap's DLT_EN10MB.
ETHERNET: Final = 1

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
    """What `Capture` uses of libpcap. Each call may raise OSError with libpcap's words."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there are frames."""

    def datalink(self) -> int:
        """Return the kind of frames: `ETHERNET`, or another DLT_ number."""

    def setfilter(self, value: str) -> None:
        """Let the kernel drop what *value* does not describe (pcap-filter(7))."""

    def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
        """Call *callback* with a header and the octets of each of at most *cnt* frames that are there."""

    def sendpacket(self, buf: bytes) -> Any:
        """Send a frame."""

    def close(self) -> None:
        """End."""


def open_pcap(interface: str) -> Pcap:
    """
    Return a pcap of an interface, which never blocks and drops everything yet.

    Raises:
        OSError: there is no such interface, or we may not (CAP_NET_RAW); with libpcap's words.
        CaptureError: no binding of libpcap is installed.
    """
    for opens in BINDINGS.values():
        with suppress(ImportError):
            opened = opens(interface)
            if opened.datalink() != ETHERNET:
                opened.close()
                raise OSError("it is no Ethernet")
            return opened
    raise CaptureError("Synjitsu needs pypcap or cypcap: pip install 'jitsu-tw[synjitsu]'")


def _pypcap(interface: str) -> Pcap:
    import pcap  # noqa: PLC0415 -- not for every Python

    class Pypcap(pcap.pcap):  # type: ignore[misc]
        def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
            if super().dispatch(cnt, callback) < 0:
                raise OSError(self.geterr().decode())

    opened = Pypcap(interface, promisc=True, immediate=True, timeout_ms=1, buffer_size=BUFFER)
    opened.setnonblock(True)  # noqa: FBT003
    result: Pcap = opened
    return result


class _Cypcap:
    """cypcap as a `Pcap`: its errors are no OSErrors."""

    def __init__(self, interface: str) -> None:
        import cypcap  # noqa: PLC0415 -- not for every Python

        # Without a netmask given, cypcap looks for the interface's, and fails where a bridge has no address.
        self._error, self._no_netmask = cypcap.Error, cypcap.NETMASK_UNKNOWN
        with self._os_errors():
            self._pcap = cypcap.create(interface)
            self._pcap.set_pre_config(promisc=True, immediate_mode=True, timeout=0.001, buffer_size=BUFFER)
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

    def close(self) -> None:
        self._pcap.close()


#: What opens an interface, by the module that it needs; the first that is installed is used.
BINDINGS: Final[Mapping[str, Callable[[str], Pcap]]] = {"pcap": _pypcap, "cypcap": _Cypcap}


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
        """Take at most `BATCH` frames of those that are there."""
        if self._pcap is None:
            return
        frames: deque[bytes] = deque()
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
