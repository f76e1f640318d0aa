"""Frames and calls of Jitsu's in any order: Synjitsu's laws hold, and what it keeps is bounded."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any, Final

import atheris

from synjitsu_tw import handover, packets, segments
from synjitsu_tw.packets import Neighbour
from synjitsu_tw.standins import Standins
from synjitsu_tw.syns import Limits
from synjitsu_tw.table import PEERS, Link, Send
from test.hostile import frames
from test.unit.synjitsu.test_packets import (
    CLIENT,
    CLIENT6,
    GUEST,
    OURS,
    PEER,
    TAG,
    VM,
    VM6,
    arp_frame,
    tcp_frame,
    udp_frame,
)

_FRAMES: Final = (
    *(row.input for row in frames.ROWS), arp_frame(1, PEER, CLIENT, VM), arp_frame(1, GUEST, VM, VM), tcp_frame(),
    arp_frame(1, GUEST, bytes(4), VM), arp_frame(2, PEER, CLIENT, VM, tags=TAG), tcp_frame(CLIENT6, VM6),
    udp_frame(b"x"), tcp_frame(flags=4), tcp_frame(flags=0x10, data=b"x" * 3000), tcp_frame(src=VM, dst=CLIENT),
    tcp_frame(VM, CLIENT, sport=80, dport=4711, flags=0x12), tcp_frame(flags=0x11), tcp_frame(flags=0x10),
)  # fmt: skip

#: An input is a list of steps: a kind, then what it takes.
SEEDS: Final = [*(b"\0" + frame for frame in _FRAMES), *(bytes([number] * 40) for number in range(0, 256, 16))]

WORDS: Final = [PEER, GUEST, OURS, VM, CLIENT, VM6, CLIENT6, TAG, b"\x08\x06", b"\x08\x00", b"\x86\xdd", b"\xff" * 6]

_HOST: Final = bytes.fromhex("0200000000aa")


def _begin() -> Standins:
    link = Link(OURS, _HOST, {bytes([10, 0, 0, 1])}, networks=[ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")])
    return Standins({"br0": link}, Limits())


def _step(data: Any, standins: Standins, now: float) -> list[Any]:
    """Do one thing; return what is to be done for it."""
    kind, ip = data.ConsumeIntInRange(0, 15), data.PickValueInList([VM, VM6])
    if kind == 8:
        macs = data.PickValueInList([(GUEST,), (), (GUEST, PEER)])
        how: dict[str, Any] = {name: data.ConsumeBool() for name in ("asleep", "runs")}
        how |= {"ports": data.PickValueInList([None, frozenset({80})]), "probe_port": data.PickValueInList([None, 80]),
                "memory": data.PickValueInList([None, True, False]), "wake_udp": frozenset({443})}  # fmt: skip
        return list(standins.announce(ip, macs, now=now, **how))
    if kind == 9:
        standin, held = standins.ready(ip, data.PickValueInList([(), (GUEST,)]))
        return list(handover.wire(standins, standin, held))
    if kind == 10:
        return list(standins.withdraw(ip, now, failed=data.ConsumeBool()))
    if kind == 11:
        return [*standins.expire(now), *standins.probe(now), *standins.resend(now)]
    if kind == 12 and ip in standins.table:
        standins.learn(ip, bytes([data.ConsumeIntInRange(0, 127) * 2]) + data.ConsumeBytes(5).ljust(5, b"\2"))
        return []
    octets = data.PickValueInList(list(_FRAMES)) if kind < 4 else data.ConsumeBytes(data.ConsumeIntInRange(0, 300))
    if kind in {2, 3} and octets:
        at = data.ConsumeIntInRange(0, len(octets) - 1)
        octets = octets[:at] + data.ConsumeBytes(4) + octets[at + 4 :]
    frame = packets.parse(octets)
    assert frame is None or bytes(frame) == octets
    return list(standins.frame("br0", octets, now))


def one(octets: bytes) -> None:
    """See frames, and hear calls."""
    standins, now = _begin(), 100.0
    if octets[:1] == b"\0":
        list(standins.announce(VM, (GUEST,), now=now, asleep=True))
        list(standins.frame("br0", octets[1:], now))
        return
    data = atheris.FuzzedDataProvider(octets)
    while data.remaining_bytes():
        now += data.PickValueInList([0.0, 0.001, 0.5, 20.0])
        for action in _step(data, standins, now):
            if isinstance(action, Send):
                _check(standins, action)
    for standin in standins.table.values():
        assert len(standin.peers) <= PEERS
    limits = Limits()
    assert standins.syns.octets <= limits.octets
    assert standins.syns.total <= limits.total
    most = segments.Limits()
    assert standins.segments.octets <= most.octets
    assert standins.segments.total <= most.total


def _check(standins: Standins, action: Send) -> None:
    """Check a frame that is sent: it is valid, and gives no guest the stand-in's MAC for its own address."""
    frame = packets.parse(action.octets)
    assert frame is not None
    said = packets.understand(frame)
    if isinstance(said, Neighbour) and said.mac == OURS and said.ip in standins.table:
        assert not standins.table[said.ip].is_guest(frame.dst)
