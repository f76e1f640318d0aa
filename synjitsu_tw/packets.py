"""
Read and build frames: Ethernet with VLAN tags, ARP, IPv4, IPv6, neighbour discovery, TCP and UDP.

Pure: octets come in, octets or small values go out. MACs and addresses are packed octets here (6, and 4 or 16). A frame
that is malformed, or of no use to a stand-in, is read as None; nothing raises.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs
import dpkt
from dpkt import arp, icmp, icmp6, ip, ip6, tcp

BROADCAST: Final = b"\xff" * 6
NOBODY: Final = b"\0" * 6

#: All nodes of the link: the multicast address and its MAC (RFC 4291, 2.7.1; RFC 2464, 7).
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC: Final = bytes.fromhex("333300000001")

#: Solicited-node multicast address and MAC, without the address's last three octets (RFC 4291, 2.7.1; RFC 2464, 7).
_SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")
_SOLICITED_NODE_MAC: Final = bytes.fromhex("3333ff")

#: EtherTypes.
_ARP: Final = 0x0806
IPV4: Final = 0x0800
IPV6: Final = 0x86DD

#: EtherTypes of VLAN tags: 802.1Q and 802.1ad. A tag has four octets with its EtherType.
_TAGS: Final = (b"\x81\x00", b"\x88\xa8")

#: Protocols above IP.
TCP: Final = 6
UDP: Final = 17

SYN: Final = tcp.TH_SYN
ACK: Final = tcp.TH_ACK
RST: Final = tcp.TH_RST
FIN: Final = tcp.TH_FIN

#: The first octets of a TCP header: ports, sequence and acknowledgment numbers, flags, window (RFC 9293, 3.1).
_SEGMENT: Final = struct.Struct(">HHIIxBH")

#: The hop limit of valid messages of neighbour discovery (RFC 4861, 7.1).
_HOPS: Final = 255

#: The flags of an advertisement: solicited, override (RFC 4861, 4.4).
_SOLICITED: Final = 0x40000000
_OVERRIDE: Final = 0x20000000

#: Type and code of "host unreachable" and "address unreachable" (RFC 792; RFC 4443, 3.1).
_UNREACHABLE: Final = (icmp.ICMP_UNREACH, icmp.ICMP_UNREACH_HOST)
_UNREACHABLE6: Final = (icmp6.ICMP6_DST_UNREACH, 3)

#: The window, not scaled, in answers to keep-alive probes.
_SMALL_WINDOW: Final = 1024

#: Octets of the undeliverable packet that an ICMP message quotes: all SYNs fit.
_QUOTED: Final = 512


#: Protocol, source and ports.
Flow = tuple[int, bytes, int, int]


@attrs.frozen
class Frame:
    """
    An Ethernet frame.

    Attributes:
        tags: its VLAN tags as octets of the frame, the outer one first.
        type: the EtherType of the payload.
    """

    dst: bytes
    src: bytes
    tags: bytes
    type: int
    payload: bytes

    def __bytes__(self) -> bytes:
        return b"".join((self.dst, self.src, self.tags, self.type.to_bytes(2), self.payload))


@attrs.frozen
class Neighbour:
    """
    A message of ARP or neighbour discovery: a request for the MAC of an address, or a reply or announcement with one.

    Attributes:
        mac: the MAC of *ip* according to the message; the frame's source where the message has none.
        ip: the sender's address according to the message; all zeros in a duplicate check.
        target: the address that is asked for; in a reply or announcement, its destination.
        asks: whether it is a request, and no announcement.
    """

    mac: bytes
    ip: bytes
    target: bytes
    asks: bool

    @property
    def checks_duplicate(self) -> bool:
        """Whether the sender has no address yet and checks that *target* is free (RFC 5227, 2.1.1; RFC 4862, 5.4)."""
        return not any(self.ip)


@attrs.frozen
class Packet:
    """
    An IP packet; ports and the rest are 0 where it is neither TCP nor UDP, or a fragment.

    Attributes:
        flags: the TCP flags.
        acknowledged: the TCP acknowledgment number.
        length: the length of the TCP or UDP data, in octets.
    """

    src: bytes
    dst: bytes
    protocol: int = 0
    sport: int = 0
    dport: int = 0
    flags: int = 0
    sequence: int = 0
    window: int = 0
    options: bytes = b""
    length: int = 0
    acknowledged: int = 0

    @property
    def opens(self) -> bool:
        """Whether it is a SYN that opens a connection (RFC 9293, 3.5)."""
        return self.protocol == TCP and self.flags & (SYN | ACK | RST) == SYN

    @property
    def flow(self) -> Flow:
        """Protocol, source and ports: these and the destination address identify a connection."""
        return self.protocol, self.src, self.sport, self.dport

    @property
    def answers(self) -> Flow:
        """The flow of the packets to which this one may be an answer."""
        return self.protocol, self.dst, self.dport, self.sport

    def takes_back(self, syn: Packet) -> bool:
        """
        Return whether this packet, a RST of the same flow, aborts the connection that *syn* opens.

        Its sender knows the sequence number after the SYN, or after the SYN's data (RFC 9293, 3.10.7.4; RFC 7413).
        """
        return (self.sequence - syn.sequence) % 2**32 in {1, 1 + syn.length}


def parse(octets: bytes) -> Frame | None:
    """Return the frame in *octets*; None if they are too short to be one."""
    end = 12
    while octets[end : end + 2] in _TAGS:
        end += 4
    if len(octets) < end + 2:
        return None
    return Frame(octets[:6], octets[6:12], octets[12:end], int.from_bytes(octets[end : end + 2]), octets[end + 2 :])


def understand(frame: Frame) -> Neighbour | Packet | None:
    """Return the message or packet in a frame; None if it is malformed or of no use here."""
    try:
        if frame.type == _ARP:
            return _arp(frame.payload)
        if frame.type == IPV4:
            return _ipv4(frame.payload)
        if frame.type == IPV6:
            return _ipv6(frame)
    except (dpkt.Error, struct.error, IndexError, ValueError, AttributeError):
        return None  # dpkt's own errors, and those that malformed octets cause in it
    return None


def _arp(octets: bytes) -> Neighbour | None:
    message = arp.ARP(octets)
    if (message.hrd, message.pro, message.hln, message.pln) != (arp.ARP_HRD_ETH, IPV4, 6, 4):
        return None
    if message.op not in {arp.ARP_OP_REQUEST, arp.ARP_OP_REPLY}:
        return None
    asks = message.op == arp.ARP_OP_REQUEST and message.spa != message.tpa
    return Neighbour(message.sha, message.spa, message.tpa, asks)


def _ipv4(octets: bytes) -> Packet | None:
    version, length = octets[0] >> 4, octets[0] & 15
    if version != 4 or length < 5 or len(octets) < length * 4:
        return None
    src, dst = octets[12:16], octets[16:20]
    if int.from_bytes(octets[6:8]) & 0x3FFF:  # a fragment
        return Packet(src, dst)
    total = int.from_bytes(octets[2:4]) or len(octets)
    return _transport(src, dst, octets[9], octets[length * 4 : total])


def _ipv6(frame: Frame) -> Neighbour | Packet | None:
    octets = frame.payload
    if len(octets) < 40 or octets[0] >> 4 != 6:
        return None
    src, dst, above = octets[8:24], octets[24:40], octets[40 : 40 + int.from_bytes(octets[4:6])]
    if octets[6] == ip.IP_PROTO_ICMP6 and above[:1] in {b"\x87", b"\x88"}:
        return _discovery(src, dst, above, octets[7], frame.src)
    return _transport(src, dst, octets[6], above)


def _discovery(src: bytes, dst: bytes, octets: bytes, hops: int, mac: bytes) -> Neighbour | None:
    """Read a neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4)."""
    if hops != _HOPS or len(octets) < 24 or octets[1]:
        return None
    asks, target = octets[0] == icmp6.ND_NEIGHBOR_SOLICIT, octets[8:24]
    options = octets[24:]
    while options:
        if not 0 < 8 * options[1] <= len(options):  # such a message is discarded (7.1.1, 7.1.2)
            return None
        if options[0] == (1 if asks else 2) and options[1] == 1:
            mac = options[2:8]
        options = options[8 * options[1] :]
    return Neighbour(mac, src, target, asks=True) if asks else Neighbour(mac, target, dst, asks=False)


def _transport(src: bytes, dst: bytes, protocol: int, octets: bytes) -> Packet | None:
    if protocol == TCP and len(octets) >= 20:
        end = (octets[12] >> 4) * 4
        if not 20 <= end <= len(octets):  # no TCP stack accepts it, so it must start no VM
            return None
        sport, dport, sequence, acknowledged, flags, window = _SEGMENT.unpack_from(octets)
        options, length = octets[20:end], len(octets) - end
        return Packet(src, dst, TCP, sport, dport, flags, sequence, window, options, length, acknowledged)
    if protocol == UDP and len(octets) >= 8:
        return Packet(src, dst, UDP, int.from_bytes(octets[:2]), int.from_bytes(octets[2:4]), length=len(octets) - 8)
    return Packet(src, dst, protocol)


# Frames that a stand-in sends


def answer(frame: Frame, request: Neighbour, mac: bytes) -> bytes:
    """Return the reply to *request*, which came in *frame*: its target is at *mac*."""
    if len(request.target) == 4:
        return _arp_frame(frame.src, mac, frame.tags, arp.ARP_OP_REPLY, request.target, request.mac, request.ip)
    to = ALL_NODES if request.checks_duplicate else request.ip
    flags = 0 if request.checks_duplicate else _SOLICITED
    return _advertisement(frame.src, mac, frame.tags, request.target, to, flags)


def unsolicited(address: bytes, mac: bytes, to: bytes, tags: bytes, peer: bytes | None = None) -> bytes:
    """
    Return an unsolicited frame which advertises that *address* is at *mac*, sent to the MAC *to*.

    With *peer*, the address of a peer, it has the form of a reply to that peer. Without, it has that of gratuitous ARP:
    Linux accepts this at any time, while it ignores replies for an entry that is less than a second old.
    """
    if len(address) == 4:
        if peer is not None:
            return _arp_frame(to, mac, tags, arp.ARP_OP_REPLY, address, to, peer)
        # A request for the sender's own address: the form that most systems understand (RFC 5227, 3).
        return _arp_frame(to, mac, tags, arp.ARP_OP_REQUEST, address, NOBODY, address)
    return _advertisement(ALL_NODES_MAC if to == BROADCAST else to, mac, tags, address, peer or ALL_NODES, 0)


def solicitation(address: bytes, mac: bytes, to: bytes, tags: bytes, target: bytes) -> bytes:
    """
    Return a request for *target* in the name of *address*, which is at *mac*, sent to the MAC *to*.

    The owner of *target* learns from it the MAC of *address*, and need not request it (RFC 826; RFC 4861, 7.2.3).
    """
    if len(address) == 4:
        return _arp_frame(to, mac, tags, arp.ARP_OP_REQUEST, address, NOBODY, target)
    body = struct.pack(">I16sBB6s", 0, target, 1, 1, mac)
    message = icmp6.ICMP6(type=icmp6.ND_NEIGHBOR_SOLICIT, code=0, data=body)
    dst = target
    if to == BROADCAST:
        dst, to = _SOLICITED_NODE + target[-3:], _SOLICITED_NODE_MAC + target[-3:]
    return bytes(Frame(to, mac, tags, IPV6, _ipv6_packet(address, dst, ip.IP_PROTO_ICMP6, message)))


def _arp_frame(to: bytes, mac: bytes, tags: bytes, op: int, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    message = arp.ARP(op=op, sha=mac, spa=spa, tha=tha, tpa=tpa)
    return bytes(Frame(to, mac, tags, _ARP, bytes(message)))


def _advertisement(to: bytes, mac: bytes, tags: bytes, target: bytes, peer: bytes, flags: int) -> bytes:
    body = struct.pack(">I16sBB6s", flags | _OVERRIDE, target, 2, 1, mac)
    message = icmp6.ICMP6(type=icmp6.ND_NEIGHBOR_ADVERT, code=0, data=body)
    return bytes(Frame(to, mac, tags, IPV6, _ipv6_packet(target, peer, ip.IP_PROTO_ICMP6, message)))


def _ipv6_packet(src: bytes, dst: bytes, protocol: int, above: dpkt.Packet, hops: int = _HOPS) -> bytes:
    packet = ip6.IP6(src=src, dst=dst, nxt=protocol, hlim=hops, plen=len(above), data=above)
    packet.extension_hdrs = {}
    packet.all_extension_headers = []
    return bytes(packet)


def probe(link_mac: bytes, mac: bytes, src: bytes, dst: bytes, sport: int, dport: int) -> bytes:
    """Return a SYN of this host, from *src* at *link_mac* to *dst* at *mac*, which a guest that listens answers."""
    above = tcp.TCP(sport=sport, dport=dport, seq=1, flags=SYN, win=1024)
    if len(dst) == 4:
        return bytes(Frame(mac, link_mac, b"", IPV4, bytes(ip.IP(src=src, dst=dst, p=TCP, ttl=64, data=above))))
    return bytes(Frame(mac, link_mac, b"", IPV6, _ipv6_packet(src, dst, TCP, above, 64)))


def reset(frame: Frame, packet: Packet, mac: bytes) -> bytes:
    """Return the RST that refuses the segment in *frame*, as a guest without its flow sends it (RFC 9293, 3.10.7.1)."""
    above = tcp.TCP(sport=packet.dport, dport=packet.sport, seq=packet.acknowledged, flags=RST, win=0)
    if not packet.flags & ACK:
        octets = packet.length + bool(packet.flags & SYN) + bool(packet.flags & FIN)
        above.seq, above.ack, above.flags = 0, (packet.sequence + octets) % 2**32, RST | ACK
    return _back(frame, packet, mac, TCP, above)


def keepalive_answer(frame: Frame, packet: Packet, mac: bytes) -> bytes:
    """
    Return the ACK that a guest sends to the keep-alive probe in *frame*, which has no data (RFC 9293, 3.8.4).

    The probe has the sequence number before the next one, and acknowledges all that the guest has sent. Its timestamps
    are sent back; the guest's own is the last that the far end has received (RFC 7323, 3.2). The window is small, as
    its scale is not known, but not zero.
    """
    times = _timestamps(packet.options)
    options = b"" if times is None else struct.pack(">BBBBII", 1, 1, 8, 10, times[1], times[0])
    above = tcp.TCP(sport=packet.dport, dport=packet.sport, seq=packet.acknowledged, ack=(packet.sequence + 1) % 2**32,
                    flags=ACK, win=_SMALL_WINDOW, opts=options, off=5 + len(options) // 4)  # fmt: skip
    return _back(frame, packet, mac, TCP, above)


def _timestamps(options: bytes) -> tuple[int, int] | None:
    """Return the timestamps in TCP options: the sender's, and the one that it sends back (RFC 7323, 3.2)."""
    while options and options[0]:
        if options[0] == 1:
            options = options[1:]
            continue
        if len(options) < 2 or not 2 <= options[1] <= len(options):
            return None
        if options[0] == 8 and options[1] == 10:
            return struct.unpack(">II", options[2:10])
        options = options[options[1] :]
    return None


def unreachable(frame: Frame, packet: Packet, mac: bytes) -> bytes:
    """Return the ICMP message that the packet in *frame* cannot be delivered; it quotes the packet's beginning."""
    quoted = frame.payload[:_QUOTED]
    if len(packet.dst) == 4:
        type_, code = _UNREACHABLE
        return _back(frame, packet, mac, ip.IP_PROTO_ICMP, icmp.ICMP(type=type_, code=code, data=bytes(4) + quoted))
    type_, code = _UNREACHABLE6
    return _back(frame, packet, mac, ip.IP_PROTO_ICMP6, icmp6.ICMP6(type=type_, code=code, data=bytes(4) + quoted))


def _back(frame: Frame, packet: Packet, mac: bytes, protocol: int, above: dpkt.Packet) -> bytes:
    """Return a frame from the packet's destination to its source."""
    if len(packet.dst) == 4:
        payload = bytes(ip.IP(src=packet.dst, dst=packet.src, p=protocol, ttl=64, data=above))
    else:
        payload = _ipv6_packet(packet.dst, packet.src, protocol, above, 64)
    return bytes(Frame(frame.src, mac, frame.tags, frame.type, payload))


# Frames that are passed on


def passed_on(frame: Frame, mac: bytes, mtu: int) -> list[bytes]:
    """
    Return the frames that carry *frame* to *mac*: without padding, with new checksums.

    A frame captured on a virtual interface may have a checksum that the network card was to complete, and may be a TCP
    segment of up to 64 KiB that the card was to cut: so it is cut here, into packets of at most *mtu* octets.
    """
    pieces = [frame.payload] if len(frame.payload) <= mtu else _cut(frame, mtu)
    return [bytes(attrs.evolve(frame, dst=mac, payload=_summed(frame.type, piece))) for piece in pieces]


def _headers(type_: int, payload: bytes) -> tuple[int, int, int]:
    """Return the lengths of the IP header and the packet, and the protocol: 0 if there is no checksum to compute."""
    if type_ == IPV4 and len(payload) >= 20:
        fragment = int.from_bytes(payload[6:8]) & 0x3FFF
        total = int.from_bytes(payload[2:4]) or len(payload)
        return (payload[0] & 15) * 4, total, 0 if fragment else payload[9]
    if type_ == IPV6 and len(payload) >= 40:
        return 40, 40 + (int.from_bytes(payload[4:6]) or len(payload) - 40), payload[6]
    return 0, len(payload), 0


def _summed(type_: int, payload: bytes) -> bytes:
    """Return an IP packet with its checksums computed anew, and without padding."""
    start, total, protocol = _headers(type_, payload)
    packet = bytearray(payload[:total])
    if type_ == IPV4 and 20 <= start <= len(packet):
        packet[10:12] = bytes(2)
        packet[10:12] = dpkt.in_cksum(bytes(packet[:start])).to_bytes(2)
    offset = {TCP: start + 16, UDP: start + 6}.get(protocol, 0)
    if not start or not offset or len(packet) < offset + 2:
        return bytes(packet)
    if protocol == UDP and type_ == IPV4 and packet[offset : offset + 2] == bytes(2):
        return bytes(packet)  # sent without a checksum (RFC 768)
    packet[offset : offset + 2] = bytes(2)
    addresses = packet[12:20] if type_ == IPV4 else packet[8:40]
    above = bytes(packet[start:])
    total_sum = dpkt.dpkt.in_cksum_add(0, bytes(addresses) + struct.pack(">HH", protocol, len(above)))
    checksum = dpkt.dpkt.in_cksum_done(dpkt.dpkt.in_cksum_add(total_sum, above))
    packet[offset : offset + 2] = (checksum or (0xFFFF if protocol == UDP else 0)).to_bytes(2)
    return bytes(packet)


def _cut(frame: Frame, mtu: int) -> list[bytes]:
    """Return the packets of at most *mtu* octets into which a TCP packet is cut; another packet is returned whole."""
    start, total, protocol = _headers(frame.type, frame.payload)
    if protocol != TCP or len(frame.payload) < start + 20:
        return [frame.payload]
    above = start + (frame.payload[start + 12] >> 4) * 4
    size = mtu - above
    data = frame.payload[above:total]
    if size <= 0 or len(data) <= size:
        return [frame.payload]
    sequence = int.from_bytes(frame.payload[start + 4 : start + 8])
    pieces = []
    for begin in range(0, len(data), size):
        piece = bytearray(frame.payload[:above]) + data[begin : begin + size]
        piece[start + 4 : start + 8] = ((sequence + begin) % 2**32).to_bytes(4)
        if begin + size < len(data):
            piece[start + 13] &= ~(tcp.TH_FIN | tcp.TH_PUSH)
        if frame.type == IPV4:
            piece[2:4] = len(piece).to_bytes(2)
        else:
            piece[4:6] = (len(piece) - 40).to_bytes(2)
        pieces.append(bytes(piece))
    return pieces
