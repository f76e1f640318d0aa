"""Flows of a guest that goes to sleep, sleeps, wakes, or has lost its memory; and the segments held for it."""

from __future__ import annotations

import struct
from itertools import starmap
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw import packets
from synjitsu_tw.flows import LIFETIME, Stage
from synjitsu_tw.packets import ACK, FIN, RST, SYN, Packet
from synjitsu_tw.segments import Limits, Segments
from synjitsu_tw.standins import PROBE_SOURCE_PORT, PROBED_AGAIN
from synjitsu_tw.syns import EXPIRY, Held
from synjitsu_tw.table import Action, SendToHost, SetNeighbour, Summon
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
    read,
    sums,
    tcp_frame,
    udp_frame,
    understood,
)
from test.unit.synjitsu.test_standins import HOST, HOST_IP, StandinsTestCase

SUMMON: Final = Summon(VM, CLIENT, proven=True, flow=True)
DATA: Final = {"flags": ACK, "data": b"data"}


class SleepTestCase(StandinsTestCase):
    """Has a VM that is up, and can open flows to it."""

    def setUp(self) -> None:
        """Begin with the VM up."""
        super().setUp()
        self.announce(asleep=False)
        self.shown()
        self.ready()

    def open(self, *, tags: bytes = b"", src: bytes = CLIENT, dst: bytes = VM, peer: bytes = PEER, sport: int = 4711,
             to: bytes = GUEST) -> None:  # fmt: skip
        """Open a flow, whose segments come from the neighbour with the MAC *peer*."""
        syn = tcp_frame(src, dst, to, tags, sport=sport)
        self.frame(syn[:6] + peer + syn[12:])
        answer = tcp_frame(dst, src, peer, tags, sport=80, dport=sport, flags=SYN | ACK)
        self.frame(answer[:6] + to + answer[12:])
        self.assertEqual((1, 0), self.standins.flows.count(dst, self.now))

    def stages(self, ip: bytes = VM) -> list[Stage]:
        """Return the stages of the VM's flows."""
        return [flow.stage for flow in self.standins.flows.of(ip)]

    def sleep(self, **more: Any) -> list[Action]:
        """Announce that the guest is being paused."""
        return self.announce(memory=True, **more)

    def wake(self) -> list[bytes]:
        """Announce that the guest boots, see a frame of it, and hand over; return the segments that it gets."""
        self.announce(asleep=False)
        self.shown()
        return [octets for octets in self.sent(self.ready()) if octets[:6] == GUEST and octets[12:14] != b"\x08\x06"]


class StopTests(SleepTestCase):
    """The beginning of the stop."""

    def test_peers(self) -> None:
        """The peers of open flows are sent the stand-in's MAC, in their VLAN, and only they; a router is one, too."""
        router = bytes.fromhex("020000000007")
        self.open(tags=TAG)
        self.frame(tcp_frame(sport=1, to=GUEST))
        self.open_another(router)
        sent = self.sent(self.sleep())
        self.assertEqual([(PEER, TAG), (router, b"")], [(octets[:6], read(octets).tags) for octets in sent])
        for octets in sent:
            self.advertises(octets, OURS, octets[:6])
        self.assertEqual([], self.sleep())

    def open_another(self, peer: bytes) -> None:
        """Open one more flow, from another network."""
        answer = tcp_frame(VM, bytes([192, 0, 2, 1]), peer, sport=80, dport=5, flags=SYN | ACK)
        self.frame(answer[:6] + GUEST + answer[12:])

    def test_host(self) -> None:
        """Where this host is the peer, or routes, its neighbour table is changed; it gets answers by another way."""
        self.open(src=HOST_IP, peer=HOST)
        self.assertEqual([SetNeighbour("br0", VM, OURS, create=False)], self.sleep())
        probe = tcp_frame(HOST_IP, flags=ACK, seq=99)
        probe = probe[:6] + HOST + probe[12:]
        self.frame(probe)
        (answer,) = self.frame(probe, 1.0)
        assert isinstance(answer, SendToHost)
        self.assertEqual((HOST, OURS), (answer.octets[:6], answer.octets[6:12]))
        self.announce(memory=False)
        (reset,) = self.frame(probe, 1.0)
        assert isinstance(reset, SendToHost)
        self.assertEqual(RST, _packet(reset.octets).flags)

    def test_ipv6(self) -> None:
        """The same with neighbour advertisements."""
        self.announce(VM6, asleep=False)
        self.ready(VM6)
        self.open(src=CLIENT6, dst=VM6)
        (sent,) = self.sent(self.announce(VM6, memory=True))
        message = understood(sent)
        assert isinstance(message, packets.Neighbour)
        self.assertEqual((OURS, VM6, PEER), (message.mac, message.ip, sent[:6]))

    def test_not_known(self) -> None:
        """As long as it is not known whether the memory is kept, as while a guest shuts down, no peer is told."""
        self.open()
        self.assertEqual(([], [Stage.OPEN]), (self.announce(), self.stages()))

    def test_lost(self) -> None:
        """When the memory is gone, peers are told, and each segment of a flow that was known gets a RST."""
        self.open()
        self.announce()
        (sent,) = self.sent(self.announce(memory=False))
        self.advertises(sent, OURS, PEER)
        for flags, data in ((ACK, b"data"), (ACK, b""), (FIN | ACK, b"")):
            (sent,) = self.sent(self.frame(tcp_frame(flags=flags, data=data, seq=100, ack=7)))
            reset = understood(sent)
            self.assertEqual(Packet(VM, CLIENT, packets.TCP, 80, 4711, RST, 7), reset)
            self.assertEqual((PEER, OURS), (sent[:6], sent[6:12]))
        self.assertEqual([], self.frame(tcp_frame(flags=RST, seq=100)))
        self.assertEqual((0, []), (self.standins.segments.total, self.frame(tcp_frame(**DATA))))

    def test_lost_until_up(self) -> None:
        """While the guest boots anew, its old flows get RST, too; when it is up, it answers them itself."""
        self.open()
        self.announce(memory=False)
        self.announce(asleep=False)
        self.assertEqual(1, len(self.frame(tcp_frame(**DATA))))
        self.shown()
        self.ready()
        self.assertEqual(([], 0), (self.stages(), len(self.standins.flows)))

    def test_held_are_lost(self) -> None:
        """What is held for a guest is dropped when its memory turns out to be gone."""
        self.open()
        self.sleep()
        self.frame(tcp_frame(**DATA))
        self.announce(memory=False)
        self.assertEqual((0, 1), (self.standins.segments.total, self.standins.counters["dropped"]))

    def test_another_link(self) -> None:
        """A flow that this host routes from or to another link is one of the VM's own link only."""
        answer = tcp_frame(VM, CLIENT, PEER, sport=80, flags=SYN | ACK)
        self.frame(answer[:6] + HOST + answer[12:])
        self.frame(tcp_frame(to=HOST))
        self.assertEqual([], self.stages())

    def test_probes(self) -> None:
        """The guest's answer to a probe opens no flow."""
        answer = tcp_frame(VM, HOST_IP, HOST, sport=80, dport=PROBE_SOURCE_PORT, flags=SYN | ACK)
        self.frame(answer[:6] + GUEST + answer[12:])
        self.assertEqual([], self.stages())

    def test_not_announced(self) -> None:
        """A flow that is known goes on and ends while its address is not announced, as after a restart of Synjitsu."""
        self.open()
        list(self.standins.withdraw(VM, self.now))
        self.frame(tcp_frame(to=GUEST, flags=FIN | ACK))
        self.assertEqual([Stage.CLOSING], self.stages())
        self.frame(tcp_frame(to=GUEST, flags=RST))
        self.assertEqual([], self.stages())


class AsleepTests(SleepTestCase):
    """Segments for a guest that sleeps."""

    def setUp(self) -> None:
        """Begin with a guest that sleeps, and has a flow."""
        super().setUp()
        self.open()
        self.sleep()

    def test_wakes(self) -> None:
        """Data wake the guest, and are delivered once, in order, with right checksums."""
        later = tcp_frame(**DATA, seq=14)
        for octets in (later, tcp_frame(**DATA, seq=10), later):
            self.assertEqual([SUMMON], self.frame(octets))
        self.assertEqual((2, 2), (self.standins.segments.total, self.standins.counters["held"]))
        delivered = self.wake()
        self.assertEqual([tcp_frame(to=GUEST, **DATA, seq=seq) for seq in (10, 14)], delivered)
        self.assertEqual([[0, 0]] * 2, list(map(sums, delivered)))
        self.assertEqual(0, self.standins.segments.total)

    def test_wraps(self) -> None:
        """Sequence numbers begin again at zero."""
        for seq in (2**32 - 2, 2, 2**32 - 6):
            self.frame(tcp_frame(**DATA, seq=seq))
        self.assertEqual([2**32 - 6, 2**32 - 2, 2], [_packet(octets).sequence for octets in self.wake()])

    def test_scan(self) -> None:
        """Segments of no known flow, and of one that is not open, wake nothing, and get no answer."""
        asked = tcp_frame(VM, CLIENT, PEER, sport=81, dport=6)
        self.frame(asked[:6] + GUEST + asked[12:])
        self.standins.table[VM].ports = frozenset({80})
        for sport in (5, 6):
            for flags in (ACK, FIN | ACK, RST, FIN, 0, SYN | ACK, FIN | 0x28):
                self.assertEqual([], self.frame(tcp_frame(sport=sport, dport=81, flags=flags, data=b"x")))
        self.assertEqual((0, 1), (self.standins.segments.total, self.standins.flows.count(VM, self.now)[0]))

    def test_shown_meanwhile(self) -> None:
        """A guest that was seen while its stop was under way gets nothing until it is handed over."""
        self.shown()
        self.assertEqual([], self.frame(tcp_frame(sport=5, **DATA)))
        self.assertEqual([SUMMON], self.frame(tcp_frame(**DATA)))

    def test_fin(self) -> None:
        """A FIN wakes nothing, and is delivered when the guest wakes for another reason; with data it wakes."""
        self.assertEqual([], self.frame(tcp_frame(flags=FIN | ACK, seq=14)))
        self.assertEqual([Stage.CLOSING], self.stages())
        self.now += LIFETIME - 1
        list(self.standins.expire(self.now))
        self.assertEqual([tcp_frame(to=GUEST, flags=FIN | ACK, seq=14)], self.wake())

    def test_fin_with_data(self) -> None:
        """A FIN with data wakes the guest."""
        self.assertEqual([SUMMON], self.frame(tcp_frame(flags=FIN | ACK, data=b"x")))

    def test_reset(self) -> None:
        """A RST ends the flow, wakes nothing, takes the client's data back, and is delivered at the next wake."""
        self.frame(tcp_frame(**DATA, seq=10))
        self.assertEqual([], self.frame(tcp_frame(flags=RST | ACK, seq=14)))
        self.assertEqual(([], 1), (self.stages(), self.standins.counters["given_up"]))
        self.assertEqual([], self.frame(tcp_frame(**DATA, seq=10)))
        self.assertEqual([tcp_frame(to=GUEST, flags=RST | ACK, seq=14)], self.wake())

    def test_expires(self) -> None:
        """Data that no guest has taken are dropped after a while: their client sends them again."""
        self.frame(tcp_frame(**DATA))
        self.now += EXPIRY
        list(self.standins.expire(self.now))
        self.assertEqual((0, 1), (self.standins.segments.total, self.standins.counters["expired"]))
        self.assertEqual([SUMMON], self.frame(tcp_frame(**DATA)))

    def test_booting(self) -> None:
        """While the guest wakes, segments are held until it is up; afterwards they are passed on."""
        self.frame(tcp_frame(**DATA, seq=10))
        self.announce(asleep=False)
        self.assertEqual([], self.frame(tcp_frame(**DATA, seq=14)))
        self.shown()
        self.assertEqual([], self.frame(tcp_frame(**DATA, seq=18)))  # not before those that are held
        delivered = [octets for octets in self.sent(self.ready()) if octets[:6] == GUEST]
        self.assertEqual([tcp_frame(to=GUEST, **DATA, seq=seq) for seq in (10, 14, 18)], delivered)
        passed, _ = self.sent(self.frame(tcp_frame(**DATA, seq=22)))
        self.assertEqual(tcp_frame(to=GUEST, **DATA, seq=22), passed)

    def test_runs_again(self) -> None:
        """To a guest that runs again and has nothing to catch up with, segments are passed on at once."""
        self.announce(asleep=False)
        self.shown()
        (passed,) = self.sent(self.frame(tcp_frame(**DATA)))
        self.assertEqual(tcp_frame(to=GUEST, **DATA), passed)
        self.assertEqual([], self.frame(tcp_frame(to=GUEST, flags=FIN | ACK))[2:])

    def test_sent_to_the_guest(self) -> None:
        """A peer that still sends to the guest's MAC gets the stand-in's again."""
        sent = self.sent(self.frame(tcp_frame(to=GUEST, flags=FIN | ACK), 1.0))
        self.advertises(sent[0], OURS, PEER)
        self.assertEqual(1, self.standins.segments.total)

    def test_peers_return(self) -> None:
        """When the guest is up again, each peer of a flow gets its MAC, also one that came by another neighbour."""
        another = bytes.fromhex("020000000007")
        data = tcp_frame(**DATA)
        self.frame(data[:6] + another + data[12:])
        self.announce(asleep=False)
        self.shown()
        told = {octets[:6] for octets in self.sent(self.ready()) if octets[12:14] == b"\x08\x06"}
        self.assertLessEqual({PEER, another}, told)

    def test_failed(self) -> None:
        """After a failed start, data are held, as the memory may be there still, but wake nothing until announced."""
        list(self.standins.withdraw(VM, self.now, failed=True))
        self.assertEqual([], self.frame(tcp_frame(**DATA)))
        self.announce()
        self.assertEqual([SUMMON], self.frame(tcp_frame(**DATA)))

    def test_udp(self) -> None:
        """Datagrams wake as before, on the ports of `wake_udp` alone."""
        self.sleep(wake_udp=frozenset({443}))
        self.assertEqual([], self.frame(udp_frame(b"x", 444)))
        self.assertEqual([Summon(VM, CLIENT, proven=False)], self.frame(udp_frame(b"x")))

    def test_guest_shows_itself(self) -> None:
        """If the guest announces itself while it is being stopped, its flows' peers get the stand-in's MAC again."""
        sent = self.sent(self.frame(arp_frame(1, GUEST, VM, VM)))
        self.assertEqual([PEER], [octets[:6] for octets in sent])
        self.advertises(sent[0], OURS, PEER)


class KeepaliveTests(SleepTestCase):
    """Keep-alive probes of idle clients."""

    def setUp(self) -> None:
        """Begin with a guest that sleeps, and has a flow."""
        super().setUp()
        self.open()
        self.sleep()
        stamps = struct.pack(">BBBBII", 1, 1, 8, 10, 1000, 77)
        self.probe = tcp_frame(flags=ACK, seq=99, ack=50, opts=stamps)

    def test_answered(self) -> None:
        """A probe that is sent again is answered as the guest would, and wakes nothing; so is each one after it."""
        self.assertEqual([], self.frame(self.probe))
        for pause in (1.0, 75.0, 7200.0):
            (sent,) = self.sent(self.frame(self.probe, pause))
            answer = _packet(sent)
            self.assertEqual((ACK, 50, 100), (answer.flags, answer.sequence, answer.acknowledged))
            self.assertEqual((80, 4711), (answer.sport, answer.dport))
            self.assertEqual(struct.pack(">BBBBII", 1, 1, 8, 10, 77, 1000), answer.options)
            self.assertEqual(([0, 0], PEER, OURS), (sums(sent), sent[:6], sent[6:12]))
            self.assertTrue(answer.window)
        self.assertEqual((0, (1, 0)), (self.standins.segments.total, self.standins.flows.count(VM, self.now)))

    def test_acknowledgments(self) -> None:
        """An ACK is not answered: the answer would acknowledge what nobody has received. Nor is one soon after."""
        ack = tcp_frame(flags=ACK, seq=100, ack=50)
        for octets, pause in ((ack, 0), (ack, PROBED_AGAIN / 2), (self.probe, 1), (ack, 1), (self.probe, 1)):
            self.assertEqual([], self.frame(octets, pause))

    def test_without_timestamps(self) -> None:
        """Without timestamps, or with options that are malformed, the answer has none."""
        for options in (b"", b"\2\4\5\xb4", b"\x08\x0a\0\0", b"\1\1\1\0", b"\x08\2\0\0", b"\3\0\0\0"):
            probe = tcp_frame(flags=ACK, seq=99, ack=50, opts=options)
            self.frame(probe, 1.0)
            (sent,) = self.sent(self.frame(probe, 1.0))
            self.assertEqual(b"", _packet(sent).options)

    def test_one_octet(self) -> None:
        """A probe with an octet of data wakes the guest: nobody can tell it from one octet that was typed."""
        self.assertEqual([SUMMON], self.frame(tcp_frame(flags=ACK, seq=99, data=b"\0")))


class SegmentsTests(SynchronousTestCase):
    """The limits of what is held."""

    def setUp(self) -> None:
        """Begin with nothing held, and small limits."""
        self.segments = Segments(Limits(per_flow=3, flow_octets=1000, vm_octets=1500, total=6, octets=2000))

    def hold(
        self, seq: int, size: int = 10, sport: int = 1, dst: bytes = VM, *, flags: int = ACK, at: float = 0.0
    ) -> bool:
        """Hold a segment."""
        octets = tcp_frame(dst=dst, sport=sport, seq=seq, flags=flags, data=bytes(size))
        return self.segments.hold(Held("br0", read(octets), _packet(octets), at))

    def test_flow(self) -> None:
        """A flow has so many slots, and octets; a segment that is sent again takes no other slot."""
        self.assertEqual([True] * 3 + [False], [self.hold(seq) for seq in range(4)])
        self.assertEqual([False] * 3, [self.hold(seq) for seq in range(3)])
        self.assertEqual((3, 3 * 50), (self.segments.total, self.segments.octets))
        self.assertEqual([True, False, True], [self.hold(1, size, 2) for size in (800, 300, 50)])

    def test_vm(self) -> None:
        """So has a VM, and all together."""
        others = bytes([10, 0, 0, 11]), bytes([10, 0, 0, 12])
        self.assertEqual([True, False, True], list(starmap(self.hold, ((1, 900, 1), (1, 900, 2), (1, 400, 2)))))
        self.assertEqual([True, False], [self.hold(1, 400, 1, others[0]), self.hold(1, 400, 1, others[1])])
        self.segments.release(VM)
        self.assertEqual([True] * 3 + [False], [self.hold(1, 1, port, others[1]) for port in (1, 2, 3)] + [
            self.hold(1, 1, 1, VM) and self.hold(1, 1, 2, VM) and self.hold(1, 1, 3, VM)])  # fmt: skip

    def test_empties(self) -> None:
        """What is released, dropped or expired leaves nothing behind."""
        self.hold(1, at=1.0)
        self.hold(1, 0, 2, flags=FIN | ACK, at=1.0)
        self.assertEqual((2, 0), (self.segments.count(VM), self.segments.count(CLIENT)))
        self.assertEqual(1, len(list(self.segments.expire(1.0 + EXPIRY))))
        self.assertEqual(1, len(list(self.segments.expire(1.0 + LIFETIME))))
        self.hold(1)
        self.assertEqual(1, len(self.segments.drop(VM, (packets.TCP, CLIENT, 1, 80))))
        self.assertEqual([], self.segments.drop(VM, (packets.TCP, CLIENT, 1, 80)))
        self.hold(1)
        self.assertEqual((1, 0), (len(self.segments.release(VM)), len(self.segments.release(VM))))
        self.assertEqual((0, 0, {}), (self.segments.total, self.segments.octets, self.segments._vms))

    def test_since(self) -> None:
        """A segment that is sent again was held since it came first, and expires after the last copy."""
        self.hold(1, at=1.0)
        self.hold(1, at=30.0)
        self.assertEqual([], list(self.segments.expire(29.0 + EXPIRY)))
        (held,) = self.segments.release(VM)
        self.assertEqual((1.0, 30.0), (held.since, held.at))


def _packet(octets: bytes) -> Packet:
    """Return the packet in a frame."""
    packet = understood(octets)
    assert isinstance(packet, Packet)
    return packet
