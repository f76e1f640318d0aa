"""The packets of conversations: which ones the kernel counts, and of which guests."""

from __future__ import annotations

import socket
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw.capture import COUNTER_BUFFER
from synjitsu_tw.counts import CHATTER, MOST, UNREAD, Counts, Port, conversation
from synjitsu_tw.packets import ACK, BROADCAST, FIN, RST, SYN
from test.support.fakepcap import FakePcap
from test.unit.synjitsu.test_capture import in_namespace, installed
from test.unit.synjitsu.test_packets import (
    CLIENT,
    CLIENT6,
    GUEST,
    PEER,
    VM,
    VM6,
    arp_frame,
    ip_frame,
    tcp_frame,
    udp_frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from synjitsu_tw.capture import Pcap

PORT: Final = Port(7, "vnet0")

#: Frames to the guest that are part of a conversation, and others.
COUNTED: Final = {
    "data": tcp_frame(flags=ACK, data=b"ping", to=GUEST),
    "data by IPv6": tcp_frame(CLIENT6, VM6, flags=ACK, data=b"ping", to=GUEST),
    "an acknowledgement": tcp_frame(flags=ACK, to=GUEST),
    "the end of a connection": tcp_frame(flags=FIN | ACK, to=GUEST),
    "syslog": GUEST + udp_frame(b"<13>hello", 514)[6:],
}
NOT_COUNTED: Final = {
    "a scan": tcp_frame(flags=SYN, to=GUEST),
    "a scan by IPv6": tcp_frame(CLIENT6, VM6, flags=SYN, to=GUEST),
    "a refusal": tcp_frame(flags=RST | ACK, to=GUEST),
    "a refusal by IPv6": tcp_frame(CLIENT6, VM6, flags=RST, to=GUEST),
    "ARP": arp_frame(1, PEER, CLIENT, VM, to=GUEST),
    "a solicitation": ip_frame(CLIENT6, VM6, 58, struct.pack("!BBHI", 135, 0, 0, 0) + VM6, GUEST),
    "a broadcast": BROADCAST + udp_frame(b"hello", 514)[6:],
    "flooded for another": PEER + udp_frame(b"hello", 514)[6:],
    **{f"UDP port {port}": GUEST + udp_frame(b"hello", port)[6:] for port in CHATTER},
}


class FilterTests(SynchronousTestCase):
    """The kernel's filter, with each binding of libpcap, at the end of a cable that stands for a guest's port."""

    def test_filter(self) -> None:
        """Packets of conversations count, to and from the guest, and nothing else."""
        self._with_each(self._check)

    def _with_each(self, check: Callable[[Pcap], None]) -> None:
        """Call *check* with each binding's pcap of the cable's near end, which counts."""
        for opens in installed().values():

            def run(opens: Callable[..., Pcap] = opens) -> None:
                with closing(opens("near", COUNTER_BUFFER)) as pcap:
                    pcap.setfilter(conversation(GUEST))
                    check(pcap)

            in_namespace(run)

    def _check(self, pcap: Pcap) -> None:
        for name, device in (("to the guest", "near"), ("from the guest", "far")):
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind((device, 0))
                for frames, more in ((COUNTED, 1), (NOT_COUNTED, 0)):
                    for what, frame in frames.items():
                        turned = frame if device == "near" else frame[6:12] + frame[:6] + frame[12:]
                        if what == "a broadcast" and device == "far":
                            turned = BROADCAST + GUEST + frame[12:]
                        before = pcap.received()
                        sender.send(turned)
                        self.assertEqual(more, pcap.received() - before, f"{what}, {name}")

    def test_full_buffer(self) -> None:
        """Packets count also when nobody reads them."""

        def check(pcap: Pcap) -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind(("near", 0))
                for _ in range(5000):
                    sender.send(COUNTED["syslog"])
            self.assertEqual(5000, pcap.received())

        self._with_each(check)


class VanishingPcap(FakePcap):
    """A pcap of an interface that vanishes as soon as it is open."""

    def setfilter(self, value: str) -> None:
        """Raise the error of an interface that has vanished."""
        raise OSError(f"{value}: the interface has vanished")


class CountsTests(SynchronousTestCase):
    """The counters of several guests, on fake ports."""

    def setUp(self) -> None:
        """Count nothing yet."""
        self.pcaps: list[FakePcap] = []
        self.counts = Counts(self.opens)
        self.addCleanup(self.counts.close_all)
        self.port: Port | None = PORT

    def opens(self, interface: str) -> FakePcap:
        """Return a fake pcap."""
        if interface == "gone":
            raise OSError("No such device exists")
        self.pcaps.append(VanishingPcap(interface) if interface == "vanishing" else FakePcap(interface))
        return self.pcaps[-1]

    def read(self, now: float = 0.0, mac: bytes = GUEST) -> int | None:
        """Return the count of a guest."""
        return self.counts.read(mac, lambda: self.port, now)

    def test_counts(self) -> None:
        """A guest is counted from the first time that it is asked for, at its port, by its MAC."""
        self.assertEqual(0, self.read())
        self.assertEqual(["vnet0"], [pcap.interface for pcap in self.pcaps])
        self.assertEqual([conversation(GUEST)], self.pcaps[0].filters)
        self.pcaps[0].count = 3
        self.assertEqual([3, 3], [self.read(), self.read()])
        self.assertEqual(1, len(self.pcaps))

    def test_port_is_not_known(self) -> None:
        """A guest of which no port is known is not counted; one that was counted there goes on to be."""
        self.port = None
        self.assertIsNone(self.read())
        self.port = PORT
        self.read()
        self.pcaps[0].count = 3
        self.port = None
        self.assertEqual([3, 3], [self.read(), self.read()])

    def test_port_vanishes(self) -> None:
        """A port that is gone when it is opened, or soon after that, is as one that is not known, and is closed."""
        for name in ("gone", "vanishing"):
            self.port = Port(8, name)
            self.assertIsNone(self.read())
        self.assertEqual([True], [pcap.closed for pcap in self.pcaps])
        self.port = PORT
        self.assertEqual(0, self.read())

    def test_another_port(self) -> None:
        """A guest that is behind another port, also one with the name of the old one, is counted anew there."""
        for port in (PORT, Port(8, "vnet1"), Port(9, "vnet1")):
            self.port = port
            self.assertEqual(0, self.read())
            self.pcaps[-1].count = 3
            self.read()
        self.assertEqual(["vnet0", "vnet1", "vnet1"], [pcap.interface for pcap in self.pcaps])
        self.assertEqual([True, True, False], [pcap.closed for pcap in self.pcaps])

    def test_expires(self) -> None:
        """A counter that is not read for long is closed; one that is read stays."""
        self.read(0.0)
        self.read(0.0, PEER)
        self.read(UNREAD - 1, PEER)
        self.counts.expire(UNREAD)
        self.assertEqual([True, False], [pcap.closed for pcap in self.pcaps])

    def test_most(self) -> None:
        """So many guests are counted at a time, and no more."""
        macs = [bytes([2, 0, 0, 0, *divmod(number, 256)]) for number in range(MOST + 1)]
        self.assertEqual([0] * MOST + [None], [self.read(0.0, mac) for mac in macs])
        self.assertEqual(MOST, len(self.pcaps))
