"""Frames from interfaces: by a fake one, and by each binding of libpcap that is installed."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from unittest import mock

from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from synjitsu_tw import capture
from synjitsu_tw.capture import BATCH, BINDINGS, RETRY, Capture, CaptureError, filter_for, open_pcap
from synjitsu_tw.packets import ACK, FIN, RST, SYN
from test.support.fakepcap import FakePcap
from test.unit.synjitsu.test_conversation import ReadingClock
from test.unit.synjitsu.test_packets import CLIENT, CLIENT6, GUEST, OURS, TAG, VM, VM6, arp_frame, tcp_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from synjitsu_tw.capture import Pcap

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 30.0

CLONE_NEWNET: Final = 0x40000000

#: What ip(8) makes a cable of, which carries nothing that the test has not sent.
CABLE: Final = (
    "link add near type veth peer far",
    "link set near addrgenmode none up",
    "link set far addrgenmode none up",
)


class CaptureTests(SynchronousTestCase):
    """Frames from a fake interface."""

    def setUp(self) -> None:
        """Open a capture."""
        self.clock = ReadingClock()
        self.pcaps: list[FakePcap] = []
        self.refused = False
        self.frames: list[bytes] = []
        self.capture = Capture("br0", self.frames.extend, self.clock, self.opens)
        self.capture.open("arp")
        self.addCleanup(self.capture.close)

    def opens(self, interface: str) -> FakePcap:
        """Return a fake pcap, or refuse."""
        if self.refused:
            raise OSError(f"{interface}: No such device exists")
        self.pcaps.append(FakePcap(interface))
        return self.pcaps[-1]

    def test_reads(self) -> None:
        """All frames, some at a time."""
        self.pcaps[0].put(*(bytes([number]) for number in range(BATCH + 1)))
        self.capture.doRead()
        self.assertEqual(BATCH, len(self.frames))
        self.capture.doRead()
        self.assertEqual(BATCH + 1, len(self.frames))

    def test_goes_and_comes(self) -> None:
        """An interface that has vanished is opened again with its filter when it is back; frames between are lost."""
        self.pcaps[0].fails = OSError("The interface disappeared")
        self.refused = True
        self.capture.doRead()
        self.capture.send(b"x")
        self.capture.set_filter("ip")
        self.clock.pump([RETRY] * 3)
        self.refused = False
        self.clock.advance(RETRY)
        self.assertEqual([["arp"], ["ip"]], [pcap.filters for pcap in self.pcaps])
        self.capture.send(b"y")
        self.assertEqual([b"y"], self.pcaps[1].sent)

    def test_refused(self) -> None:
        """What cannot be opened is one line."""
        self.refused = True
        with self.assertRaises(CaptureError) as caught:
            self.capture.open("arp")
        self.assertEqual("cannot capture from br0: No such device exists", str(caught.exception))

    def test_failure_of_the_reactor(self) -> None:
        """The reactor gives up a reader whose descriptor is bad: it is opened again."""
        self.capture.connectionLost(Failure(OSError("bad")))
        self.clock.advance(RETRY)
        self.assertEqual(2, len(self.pcaps))


def ip(words: str) -> None:
    """Change the network namespace of this thread."""
    subprocess.run(["ip", *words.split()], check=True)


def in_namespace(function: Callable[[], None]) -> None:
    """Call *function* in a network namespace of its own, where ``near`` and ``far`` are the ends of a cable."""
    if os.geteuid() != 0:
        raise SkipTest("needs root")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
            for words in CABLE:
                ip(words)
            function()
        except BaseException as error:  # noqa: BLE001 -- it belongs to the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def installed() -> dict[str, Callable[..., Pcap]]:
    """Return the bindings that are installed; cypcap always is, as development needs both."""
    found = {module: opens for module, opens in BINDINGS.items() if find_spec(module) is not None}
    assert "cypcap" in found
    return found


def collect(pcap: Pcap, count: int) -> list[bytes]:
    """Return the next *count* frames of *pcap*, each taken by a call of its own."""
    frames: list[bytes] = []
    end = time.monotonic() + PATIENCE
    while len(frames) < count:
        before = len(frames)
        pcap.dispatch(1, lambda _, octets: frames.append(bytes(octets)))
        assert len(frames) <= before + 1
        assert time.monotonic() < end, frames
    return frames


class BindingTests(SynchronousTestCase):
    """Each binding of libpcap that is installed, on an Ethernet between two ports."""

    def each(self, test: Callable[[Pcap, socket.socket], None]) -> None:
        """Call *test* with each binding's pcap of a cable's near end, and a socket that is plugged into the far one."""
        for opens in installed().values():

            def run(opens: Callable[..., Pcap] = opens) -> None:
                pcap = opens("near")
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as peer:
                    peer.bind(("far", 0))
                    peer.settimeout(PATIENCE)
                    try:
                        test(pcap, peer)
                    finally:
                        pcap.close()

            in_namespace(run)

    def test_frames(self) -> None:
        """`dispatch` returns the frames that pass the filter, whole, not more than asked for, without waiting."""

        def test(pcap: Pcap, peer: socket.socket) -> None:
            self.assertEqual(capture.ETHERNET, pcap.datalink())
            pcap.setfilter("arp")
            pcap.dispatch(BATCH, lambda *_: self.fail("there is none"))
            arps = [arp_frame(1, GUEST, VM, bytes([10, 0, 0, last])) for last in range(3)]
            for frame in (arps[0], tcp_frame(), *arps[1:]):
                peer.send(frame)
            self.assertEqual(arps, collect(pcap, 3))

        self.each(test)

    def test_readable(self) -> None:
        """The file descriptor becomes readable when there are frames."""

        def test(pcap: Pcap, peer: socket.socket) -> None:
            pcap.setfilter("arp")
            peer.send(arp_frame(1, GUEST, VM, VM))
            readable, _, _ = select.select([pcap.fileno()], [], [], PATIENCE)
            self.assertEqual([pcap.fileno()], readable)

        self.each(test)

    def test_tagged(self) -> None:
        """A frame in a VLAN passes Synjitsu's filter, and has its tag."""

        def test(pcap: Pcap, peer: socket.socket) -> None:
            pcap.setfilter(filter_for(OURS, ipv4=True, ipv6=True, udp=(443,), probes=False))
            frames = [tcp_frame(tags=TAG), arp_frame(1, GUEST, VM, VM, tags=TAG), tcp_frame()]
            for frame in frames:
                peer.send(frame)
            self.assertEqual(frames, collect(pcap, 3))

        self.each(test)

    def test_connections(self) -> None:
        """Of a connection that is not the stand-in's, SYN, FIN and RST pass, in both directions, and no data."""

        def test(pcap: Pcap, peer: socket.socket) -> None:
            pcap.setfilter(filter_for(OURS, ipv4=True, ipv6=True, udp=(), probes=True))
            ends = []
            for src, dst in ((CLIENT, VM), (VM, CLIENT), (CLIENT6, VM6), (VM6, CLIENT6)):
                for flags in (SYN, SYN | ACK, ACK, FIN | ACK, ACK | 8, RST, RST | ACK):
                    frame = tcp_frame(src, dst, GUEST, flags=flags, data=b"data")
                    ends += [frame] if flags & (SYN | FIN | RST) else []
                    peer.send(frame)
            peer.send(arp_frame(1, GUEST, VM, VM))
            self.assertEqual(ends, collect(pcap, len(ends) + 1)[:-1])

        self.each(test)

    def test_sends(self) -> None:
        """A frame is sent as it is; one that is too long is an OSError."""

        def test(pcap: Pcap, peer: socket.socket) -> None:
            for frame in (tcp_frame(), tcp_frame(tags=TAG)):
                pcap.sendpacket(frame)
                self.assertEqual(frame[14 + len(TAG) * (TAG in frame):], peer.recv(65536)[14:])
            self.assertRaises(OSError, pcap.sendpacket, bytes(100_000))

        self.each(test)

    def test_gone(self) -> None:
        """An interface that vanishes is an OSError."""

        def test(pcap: Pcap, _: socket.socket) -> None:
            pcap.setfilter("arp")
            ip("link del near")
            with self.assertRaisesRegex(OSError, "disappeared"):
                collect(pcap, 1)

        self.each(test)

    def test_filters(self) -> None:
        """Libpcap accepts every filter, also with many ports; each part is in it where wanted."""

        def test(pcap: Pcap, _: socket.socket) -> None:
            for ipv4 in (False, True):
                for ipv6 in (False, True):
                    for udp in ((), (443,), range(1, 200)):
                        pcap.setfilter(filter_for(OURS, ipv4=ipv4, ipv6=ipv6, udp=udp, probes=ipv4))

        self.each(test)

    def test_cannot_open(self) -> None:
        """An interface that is not there is an OSError; so is one that has no Ethernet."""

        def test() -> None:
            ip("tuntap add tun mode tun")
            ip("link set tun up")
            for name, reason in (("none", "No such device exists"), ("tun", "it is no Ethernet")):
                with self.assertRaisesRegex(OSError, reason):
                    open_pcap(name)

        for module, opens in installed().items():
            with mock.patch.dict(BINDINGS, {module: opens}, clear=True):
                in_namespace(test)

    def test_none_installed(self) -> None:
        """Without a binding there is one line with the remedy."""
        opens = mock.Mock(side_effect=ImportError)
        with mock.patch.dict(BINDINGS, dict.fromkeys(BINDINGS, opens)), self.assertRaises(CaptureError) as caught:
            open_pcap("lo")
        self.assertEqual(
            "Synjitsu needs pypcap or cypcap: pip install 'jitsu-tw[synjitsu]'", str(caught.exception)
        )
