"""Frames: what is read, what is built, and that checksums are right; checked against dpkt and by summing."""

from __future__ import annotations

import struct

import dpkt
from dpkt import arp, ethernet, icmp, icmp6, ip, ip6, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw import packets
from synjitsu_tw.packets import Frame, Neighbour, Packet

PEER, GUEST, OURS = bytes.fromhex("020000000001"), bytes.fromhex("525400000010"), bytes.fromhex("020000000099")
CLIENT, VM = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 10])
CLIENT6, VM6 = bytes.fromhex("fd" + "00" * 14 + "02"), bytes.fromhex("fd" + "00" * 14 + "10")
TAG = bytes.fromhex("81000007")


def tcp_frame(src: bytes = CLIENT, dst: bytes = VM, to: bytes = OURS, tags: bytes = b"", **changes: object) -> bytes:
    """Return a frame with a SYN, or with what *changes* make of it; its checksums are right."""
    values = {"sport": 4711, "dport": 80, "seq": 7, "flags": tcp.TH_SYN, "win": 64240, "opts": b"", "data": b""}
    above = tcp.TCP(**{**values, **changes})
    above.off = 5 + len(above.opts) // 4
    return ip_frame(src, dst, packets.TCP, above, to, tags)


def udp_frame(data: bytes, dport: int = 443, src: bytes = CLIENT, dst: bytes = VM) -> bytes:
    """Return a frame with a datagram."""
    return ip_frame(src, dst, packets.UDP, udp.UDP(sport=4711, dport=dport, ulen=8 + len(data), data=data))


def ip_frame(src: bytes, dst: bytes, protocol: int, above: dpkt.Packet, to: bytes = OURS, tags: bytes = b"") -> bytes:
    """Return a frame with an IP packet."""
    if len(src) == 4:
        return bytes(Frame(to, PEER, tags, packets.IPV4, bytes(ip.IP(src=src, dst=dst, p=protocol, data=above))))
    packet = ip6.IP6(src=src, dst=dst, nxt=protocol, hlim=64, plen=len(above), data=above)
    packet.extension_hdrs, packet.all_extension_headers = {}, []
    return bytes(Frame(to, PEER, tags, packets.IPV6, bytes(packet)))


def arp_frame(op: int, sha: bytes, spa: bytes, tpa: bytes, to: bytes = packets.BROADCAST, tags: bytes = b"") -> bytes:
    """Return a frame with ARP, sent by *sha*."""
    return bytes(Frame(to, sha, tags, 0x0806, bytes(arp.ARP(op=op, sha=sha, spa=spa, tha=packets.NOBODY, tpa=tpa))))


def read(octets: bytes) -> Frame:
    """Return a frame that is one."""
    frame = packets.parse(octets)
    assert frame is not None
    return frame


def understood(octets: bytes) -> Neighbour | Packet | None:
    """Return what is in a frame."""
    return packets.understand(read(octets))


def sums(octets: bytes) -> list[int]:
    """Return the sums over an IP header and over what is above it, which are 0 if the checksums in them are right."""
    frame = read(octets)
    if frame.type == packets.IPV4:
        length = (frame.payload[0] & 15) * 4
        head, body, protocol = frame.payload[:length], frame.payload[length:], frame.payload[9]
        pseudo = frame.payload[12:20] + struct.pack(">HH", protocol, len(body))
        return [dpkt.in_cksum(head), dpkt.in_cksum(pseudo + body)]
    body, protocol = frame.payload[40:], frame.payload[6]
    return [dpkt.in_cksum(frame.payload[8:40] + struct.pack(">IHBB", len(body), 0, 0, protocol) + body)]


class ReadTests(SynchronousTestCase):
    """What is understood."""

    def test_tcp(self) -> None:
        """Ports, flags, sequence, window, options and length, in both versions of IP, tagged or not, padded or not."""
        for src, dst in ((CLIENT, VM), (CLIENT6, VM6)):
            for tags in (b"", TAG, TAG + TAG):
                octets = tcp_frame(src, dst, tags=tags, opts=b"\2\4\5\xb4", data=b"GET") + b"padding"
                self.assertEqual(tags, read(octets).tags)
                expected = Packet(src, dst, packets.TCP, 4711, 80, packets.SYN, 7, 64240, b"\2\4\5\xb4", 3)
                self.assertEqual(expected, understood(octets))
                self.assertTrue(expected.opens)

    def test_opens(self) -> None:
        """A SYN opens; an answer to one, or a reset, does not."""
        for flags, opens in ((2, True), (0x12, False), (6, False), (0x10, False), (0xC2, True), (4, False)):
            packet = understood(tcp_frame(flags=flags))
            assert isinstance(packet, Packet)
            self.assertEqual(opens, packet.opens, flags)

    def test_fragment(self) -> None:
        """A fragment has addresses, no ports."""
        octets = bytearray(tcp_frame())
        octets[14 + 6] |= 0x20
        self.assertEqual(Packet(CLIENT, VM), understood(bytes(octets)))

    def test_arp(self) -> None:
        """Requests ask; answers and announcements, in either form, do not; a probe has no address."""
        cases = (
            (1, CLIENT, VM, True, False),
            (1, bytes(4), VM, True, True),
            (1, VM, VM, False, False),
            (2, VM, bytes(4), False, False),
            (2, VM, CLIENT, False, False),
        )
        for op, spa, tpa, asks, probes in cases:
            said = understood(arp_frame(op, PEER, spa, tpa))
            self.assertEqual(Neighbour(PEER, spa, tpa, asks), said)
            assert isinstance(said, Neighbour)
            self.assertEqual(probes, said.checks_duplicate)

    def test_discovery(self) -> None:
        """Solicitations and advertisements; only with hop limit 255, as others come from afar."""
        option = b"\1\1" + PEER
        ask = icmp6.ICMP6(type=135, code=0, data=bytes(4) + VM6 + option)
        octets = bytearray(ip_frame(CLIENT6, VM6, 58, ask))
        self.assertIsNone(understood(bytes(octets)))
        octets[14 + 7] = 255
        self.assertEqual(Neighbour(PEER, CLIENT6, VM6, asks=True), understood(bytes(octets)))
        self.assertEqual(
            Neighbour(OURS, VM6, CLIENT6, asks=False),
            understood(packets.unsolicited(VM6, OURS, PEER, b"", CLIENT6)),
        )

    @given(st.binary(max_size=120))
    @settings(max_examples=300, deadline=None)
    def test_anything(self, octets: bytes) -> None:
        """Nothing that comes from a wire raises, on any of the ways that it can take."""
        for head in (b"", *(PEER + OURS + kind for kind in (b"\x08\x06", b"\x08\x00\x45", b"\x86\xdd\x60", TAG))):
            frame = packets.parse(head + octets)
            if frame is not None:
                packets.understand(frame)
                packets.passed_on(frame, GUEST, 60)


class BuildTests(SynchronousTestCase):
    """What is sent."""

    def test_arp(self) -> None:
        """An answer goes to the asking MAC, in its VLAN; gratuitous ARP is a request for the sender's own address."""
        asked = arp_frame(1, PEER, CLIENT, VM, tags=TAG)
        frame, said = read(asked), understood(asked)
        assert isinstance(said, Neighbour)
        answer = packets.answer(frame, said, OURS)
        self.assertEqual((PEER, OURS, TAG), (answer[:6], answer[6:12], answer[12:16]))
        body = arp.ARP(answer[18:])
        self.assertEqual((2, OURS, VM, PEER, CLIENT), (body.op, body.sha, body.spa, body.tha, body.tpa))
        body = ethernet.Ethernet(packets.unsolicited(VM, OURS, packets.BROADCAST, b"")).data
        self.assertEqual((1, OURS, VM, VM), (body.op, body.sha, body.spa, body.tpa))

    def test_advertisement(self) -> None:
        """It is solicited or not, overrides, has the MAC in it and a right checksum."""
        asked = Neighbour(PEER, CLIENT6, VM6, asks=True)
        frame = Frame(OURS, PEER, b"", packets.IPV6, b"")
        for octets, to, flags in (
            (packets.answer(frame, asked, OURS), PEER, 0x60),
            (packets.unsolicited(VM6, OURS, PEER, b""), PEER, 0x20),
            (packets.unsolicited(VM6, OURS, packets.BROADCAST, b""), packets.ALL_NODES_MAC, 0x20),
        ):
            self.assertEqual(to, octets[:6])
            self.assertEqual(flags, octets[14 + 44])
            self.assertEqual(255, octets[14 + 7])
            self.assertEqual([0], sums(octets))
            self.assertTrue(octets.endswith(VM6 + b"\2\1" + OURS))

    def test_asked(self) -> None:
        """A request has the asker's address and MAC and the target; it goes to one MAC, with a right checksum."""
        for asker, target in ((CLIENT, VM), (CLIENT6, VM6)):
            octets = packets.solicitation(asker, PEER, GUEST, TAG, target)
            self.assertEqual((GUEST, PEER, TAG), (octets[:6], octets[6:12], octets[12:16]))
            self.assertEqual(Neighbour(PEER, asker, target, asks=True), understood(octets))
        self.assertEqual([0], sums(octets))

    def test_refusals(self) -> None:
        """RST acknowledges the SYN and its data; ICMP has the packet's beginning; both come from the VM's address."""
        for src, dst in ((CLIENT, VM), (CLIENT6, VM6)):
            octets = tcp_frame(src, dst, data=b"12345", tags=TAG)
            frame, packet = read(octets), understood(octets)
            assert isinstance(packet, Packet)
            refused = packets.reset(frame, packet, OURS)
            self.assertEqual({0}, set(sums(refused)))
            self.assertEqual((PEER, OURS, TAG), (refused[:6], refused[6:12], refused[12:16]))
            segment = tcp.TCP(read(refused).payload[20 if len(src) == 4 else 40 :])
            self.assertEqual((80, 4711, 0, 7 + 1 + 5, 0x14), (segment.sport, segment.dport, segment.seq, segment.ack,
                                                              segment.flags))
            told = read(packets.unreachable(frame, packet, OURS)).payload
            self.assertIn(frame.payload, told)
            if len(src) == 4:
                self.assertEqual((3, 1, 0), (*told[20:22], dpkt.in_cksum(told[20:])))
                self.assertIsInstance(ip.IP(told).data, icmp.ICMP)
            else:
                self.assertEqual((1, 3), tuple(told[40:42]))

    def test_passed_on(self) -> None:
        """A frame is passed on to another MAC unchanged, but without padding, and with new checksums."""
        for octets in (
            tcp_frame(data=b"x" * 7), tcp_frame(CLIENT6, VM6, data=b"x"), udp_frame(b"abc"),
            udp_frame(b"abc", src=CLIENT6, dst=VM6),
        ):
            length = 20 if octets[12:14] == b"\x08\x00" else 40
            broken = bytearray(octets)
            place = 14 + length + (16 if octets[23 if length == 20 else 20] == 6 else 6)
            broken[place : place + 2] = b"\x12\x34"
            (sent,) = packets.passed_on(read(bytes(broken) + bytes(9)), GUEST, 1500)
            self.assertEqual(GUEST + octets[6:], sent)

    def test_no_checksum(self) -> None:
        """A datagram over IPv4 that was sent without a checksum stays so (RFC 768)."""
        octets = bytearray(udp_frame(b"abc"))
        octets[14 + 26 : 14 + 28] = bytes(2)
        (sent,) = packets.passed_on(read(bytes(octets)), GUEST, 1500)
        self.assertEqual(bytes(octets[6:]), sent[6:])

    def test_cut(self) -> None:
        """A segment that a card was to cut is cut: sequence numbers go on, PSH and FIN are in the last piece only."""
        data = bytes(range(256)) * 16
        for src, dst in ((CLIENT, VM), (CLIENT6, VM6)):
            octets = tcp_frame(src, dst, flags=0x19, seq=2**32 - 100, data=data, opts=b"\1" * 12)
            pieces = packets.passed_on(read(octets), GUEST, 1500)
            self.assertEqual({0}, {one for piece in pieces for one in sums(piece)})
            segments = [tcp.TCP(read(piece).payload[20 if len(src) == 4 else 40 :]) for piece in pieces]
            self.assertEqual(data, b"".join(segment.data for segment in segments))
            self.assertEqual([0x10] * (len(pieces) - 1) + [0x19], [segment.flags for segment in segments])
            at = 2**32 - 100
            for piece, segment in zip(pieces, segments, strict=True):
                self.assertLessEqual(len(piece), 1514)
                self.assertEqual((at, b"\1" * 12), (segment.seq, segment.opts))
                at = (at + len(segment.data)) % 2**32
