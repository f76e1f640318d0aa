"""
Ethernet frames for Synjitsu, which stands in for VMs by IPv4 and IPv6.

`Row.input` is the frame; `Row.expected` is empty: nothing is sent, held or summoned. `test.unit.synjitsu.test_packets`
has what puts frames together.
"""

from __future__ import annotations

from typing import Final

from synjitsu_tw.packets import IPV4, IPV6, NOBODY
from test.hostile import Row
from test.unit.synjitsu.test_packets import CLIENT, CLIENT6, GUEST, OURS, PEER, VM, VM6, arp_frame, tcp_frame

_ARP: Final = arp_frame(1, PEER, CLIENT, VM)
_IP4: Final = OURS + PEER + IPV4.to_bytes(2)
_IP6: Final = OURS + PEER + IPV6.to_bytes(2)
_SYN: Final = tcp_frame()
_SYN6: Final = tcp_frame(CLIENT6, VM6)
_NEIGHBOUR: Final = _IP6 + b"\x60\0\0\0\0\x20\x3a\xff" + CLIENT6 + VM6 + b"\x87\0\0\0\0\0\0\0" + VM6

ROWS: Final = (
    Row("nothing", b"", ""),
    Row("addresses alone", OURS + PEER, ""),
    Row("tags without end", OURS + PEER + b"\x81\0\0\7" * 400, ""),
    Row("ARP that is cut", _ARP[:30], ""),
    Row("ARP for addresses of 255 octets", _ARP[:18] + b"\xff\xff" + _ARP[20:], ""),
    Row("ARP from the stand-in itself", arp_frame(1, OURS, CLIENT, VM), ""),
    Row("an IPv4 header of 60 octets in 20", _IP4 + b"\x4f" + _SYN[15:34], ""),
    Row("an IPv4 packet that is longer than its frame", _IP4 + b"\x45\0\xff\xff" + _SYN[18:34], ""),
    Row("a TCP header of 60 octets in 20", _SYN[:46] + b"\xf0" + _SYN[47:], ""),
    Row("a SYN that is a fragment", _SYN[:20] + b"\x20\0" + _SYN[22:], ""),
    Row("an IPv6 header that is cut", _SYN6[:40], ""),
    Row("a solicitation with an option of length 0", _NEIGHBOUR + b"\1\0" + NOBODY, ""),
    Row("a SYN from the guest itself", OURS + GUEST + _SYN[12:], ""),
)
