"""What a stand-in does with each frame, and with each call from Jitsu."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw import handover, packets
from synjitsu_tw.packets import BROADCAST, Neighbour
from synjitsu_tw.standins import (
    ASK_WITHIN,
    ASTRAY,
    LINGER,
    LOOK_UPS_PER_SECOND,
    PROBE_SOURCE_PORT,
    RESEND_WITHIN,
    SEEN_IN_ALL,
    SEEN_PER_SECOND,
    Standins,
)
from synjitsu_tw.syns import EXPIRY
from synjitsu_tw.table import (
    CLAIM_EVERY,
    PEERS,
    Action,
    Claimed,
    Elsewhere,
    Erase,
    Handover,
    Link,
    Listens,
    LookUp,
    Record,
    Refusal,
    Seen,
    Send,
    SetNeighbour,
    State,
    Summon,
)
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
    tcp_frame,
    udp_frame,
    understood,
)

HOST: Final = bytes.fromhex("0200000000aa")
HOST_IP: Final = bytes([10, 0, 0, 1])

#: Another MAC of the guest's.
SECOND: Final = bytes.fromhex("525400000002")


class StandinsTestCase(SynchronousTestCase):
    """Has one stand-in for a VM, on one bridge."""

    now = 100.0

    def setUp(self) -> None:
        """Begin with no address announced."""
        self.link = Link(OURS, HOST, {HOST_IP}, networks=[ip_interface("10.0.0.1/24"), ip_interface("fe80::1/64")])
        self.standins = Standins({"br0": self.link})

    def announce(self, ip: bytes = VM, *, asleep: bool = True, macs: Any = (GUEST,), **more: Any) -> list[Action]:
        """Announce the VM."""
        return list(self.standins.announce(ip, macs, now=self.now, asleep=asleep, **more))

    def frame(self, octets: bytes, seconds: float = 0.0) -> list[Action]:
        """Receive a frame, *seconds* later; return the actions that follow."""
        self.now += seconds
        return list(self.standins.frame("br0", octets, self.now))

    def ready(self, ip: bytes = VM, *macs: bytes) -> list[Action]:
        """Report that the guest is ready; return the actions that hand over to it."""
        return list(handover.wire(self.standins, *self.standins.ready(ip, macs)))

    def shown(self, mac: bytes = GUEST) -> list[Action]:
        """Receive a frame of the guest that has no address in it."""
        return self.frame(mac.join((b"\x33\x33\0\0\0\x16", b"\x86\xdd\x60")) + bytes(60))

    def ask(self, sha: bytes = PEER, spa: bytes = CLIENT, tags: bytes = b"") -> bytes:
        """Return a request for the VM's address."""
        return arp_frame(1, sha, spa, VM, tags=tags)

    @staticmethod
    def sent(actions: list[Action]) -> list[bytes]:
        """Return the frames among *actions*."""
        return [action.octets for action in actions if isinstance(action, Send)]

    def advertises(self, octets: bytes, mac: bytes, to: bytes) -> None:
        """Check that a frame to the MAC *to* advertises that the VM's address is at *mac*."""
        message = understood(octets)
        assert isinstance(message, Neighbour)
        self.assertEqual((mac, VM, to), (message.mac, message.ip, octets[:6]))


class RequestTests(StandinsTestCase):
    """Requests for an address."""

    def test_answered(self) -> None:
        """While the VM is asleep, boots or has failed, requests get the stand-in's MAC, in the request's VLAN."""
        self.announce()
        for _ in range(2):
            (octets,) = self.sent(self.frame(self.ask(tags=TAG)))
            self.advertises(octets, OURS, PEER)
            self.assertEqual(TAG, octets[12:16])
            self.announce(asleep=False)
        list(self.standins.withdraw(VM, self.now, failed=True))
        self.assertEqual(1, len(self.frame(self.ask())))

    def test_not_answered(self) -> None:
        """A request for another address, or for one that is up or withdrawn, gets no answer; nor does the guest."""
        self.assertEqual([], self.frame(self.ask()))
        self.announce()
        self.assertEqual([], self.frame(arp_frame(1, PEER, CLIENT, bytes([10, 0, 0, 11]))))
        for spa in (bytes(4), CLIENT):
            self.assertEqual([], self.sent(self.frame(self.ask(GUEST, spa))))
        self.ready()
        self.assertEqual([], self.frame(self.ask()))
        self.announce()
        list(self.standins.withdraw(VM, self.now))
        self.assertEqual([], self.frame(self.ask()))

    def test_duplicate_check(self) -> None:
        """A duplicate check gets an answer after a look-up has shown that its MAC is not the guest's."""
        self.announce()
        look_up, answer = self.frame(self.ask(spa=bytes(4)))
        self.assertEqual(LookUp(VM, PEER, "br0"), look_up)
        (octets,) = self.sent([answer])
        self.advertises(octets, OURS, PEER)

    def test_guest_checks_duplicates(self) -> None:
        """The guest's duplicate check gets no answer, from any MAC that is known or found to be the guest's."""
        self.announce(macs=(GUEST, SECOND))
        for mac in (GUEST, SECOND):
            self.assertEqual([], self.sent(self.frame(self.ask(mac, bytes(4)))))
        actions = self.standins.frame("br0", self.ask(PEER, bytes(4)), self.now)
        self.assertEqual(LookUp(VM, PEER, "br0"), next(actions))
        self.standins.learn(VM, PEER)
        self.assertEqual([], self.sent(list(actions)))

    def test_look_ups_are_bounded(self) -> None:
        """However many unknown MACs there are, `LOOK_UPS_PER_SECOND` at most are looked up in a second."""
        self.announce()
        actions = [action for number in range(1000) for action in self.frame(self.ask(number.to_bytes(6), bytes(4)))]
        self.assertEqual(LOOK_UPS_PER_SECOND, sum(isinstance(action, LookUp) for action in actions))
        self.assertIsInstance(self.frame(self.ask(spa=bytes(4)), 1.0)[0], LookUp)

    def test_duplicate_checks_when_look_ups_are_used_up(self) -> None:
        """While look-ups are used up, no duplicate check of an unknown MAC is answered: it may be the guest's."""
        self.announce(asleep=False)
        for number in range(LOOK_UPS_PER_SECOND):
            self.frame(arp_frame(1, number.to_bytes(6), VM, VM))
        self.assertEqual([], self.frame(self.ask(SECOND, bytes(4))))
        self.assertEqual(1, len(self.sent(self.frame(self.ask(PEER, CLIENT)))))
        self.assertIsInstance(self.frame(self.ask(SECOND, bytes(4)), 1.0)[0], LookUp)

    def test_passed_on_to_a_mac_that_was_seen(self) -> None:
        """A packet is not passed on to a MAC of the guest that the bridge has not learnt: it would be flooded."""
        self.announce(asleep=False, macs=(GUEST, SECOND))
        self.shown(SECOND)
        segment = tcp_frame(flags=packets.ACK)
        self.assertEqual([], self.sent(self.frame(segment)))
        self.shown(GUEST)
        self.assertEqual([GUEST], [octets[:6] for octets in self.sent(self.frame(segment))])

    def test_host(self) -> None:
        """This host gets no frame from the bridge: its neighbour table is changed instead."""
        self.announce()
        self.assertEqual([SetNeighbour("br0", VM, OURS, create=True)], self.frame(self.ask(HOST, HOST_IP)))
        self.assertIn(SetNeighbour("br0", VM, GUEST, create=False), self.ready())

    def test_ipv6(self) -> None:
        """Neighbour solicitations are answered as ARP requests are; the guest's own duplicate check is not."""
        self.announce(VM6)
        for src, sender, answers in ((CLIENT6, PEER, 1), (bytes(16), PEER, 1), (bytes(16), GUEST, 0)):
            octets = bytearray(packets.unsolicited(VM6, sender, BROADCAST, b"", CLIENT6))
            octets[22:38], octets[54] = src, 135  # the source's address, and a solicitation's type
            octets[14 + 5] -= 8  # without the option
            sent = [answer[:6] for answer in self.sent(self.frame(bytes(octets[:-8])))]
            self.assertEqual(answers, sent.count(sender), (src, sender))

    def test_bounded(self) -> None:
        """However many peers ask, only the last `PEERS` are remembered."""
        self.announce()
        for number in range(2 * PEERS):
            self.frame(self.ask(number.to_bytes(6), b"\x0a\x01" + number.to_bytes(2)))
        self.assertEqual(PEERS, len(self.standins.table[VM].peers))


class SynTests(StandinsTestCase):
    """Packets to an address."""

    def test_summons(self) -> None:
        """A SYN for a VM that is asleep summons it, whatever MAC it is sent to, each time that it comes."""
        self.announce()
        self.assertEqual([Summon(VM, CLIENT, proven=False)], self.frame(tcp_frame()))
        self.assertEqual([Summon(VM, CLIENT, proven=True)], self.frame(tcp_frame(), 1.0))
        for mac in (GUEST, PEER, BROADCAST):
            actions = self.frame(tcp_frame(to=mac, sport=mac[0] + 1))
            self.assertIn(Summon(VM, CLIENT, proven=False), actions)
        self.assertEqual(4, self.standins.syns.total)
        self.assertEqual(4, self.standins.counters["held"])

    def test_boots(self) -> None:
        """A SYN for a VM that boots is held and summons nothing."""
        self.announce(asleep=False)
        self.assertEqual([], self.frame(tcp_frame()))
        self.assertEqual(1, self.standins.syns.total)

    def test_ports(self) -> None:
        """A SYN to a port that is not listed wakes nothing; while the VM boots, it is held for the guest to refuse."""
        self.announce(ports=frozenset({443}))
        self.assertEqual(([], 0), (self.frame(tcp_frame()), self.standins.syns.total))
        self.assertEqual([Summon(VM, CLIENT, proven=False)], self.frame(tcp_frame(dport=443)))
        self.announce(asleep=False, ports=frozenset({443}))
        self.frame(tcp_frame())
        self.assertEqual(2, self.standins.syns.total)

    def test_nothing_else(self) -> None:
        """Other segments, UDP, fragments, and SYNs for others wake nothing and are not held."""
        self.announce()
        fragment = bytearray(tcp_frame())
        fragment[14 + 6] |= 0x20
        others = (tcp_frame(flags=0x10), tcp_frame(flags=0x12), tcp_frame(flags=4), udp_frame(b"x"), bytes(fragment),
                  tcp_frame(dst=CLIENT), tcp_frame(VM, CLIENT), b"", bytes(14))
        for octets in others:
            self.assertEqual([], self.frame(octets), octets)
        self.assertEqual(0, self.standins.syns.total)

    def test_udp(self) -> None:
        """Datagrams to `wake_udp` are held, each distinct one, and summon."""
        self.announce(wake_udp=frozenset({443}))
        for data in (b"one", b"two", b"one"):
            self.assertIsInstance(self.frame(udp_frame(data))[0], Summon)
        self.assertEqual([], self.frame(udp_frame(b"x", dport=53)))
        self.assertEqual(2, self.standins.syns.total)
        self.shown()
        sent = self.sent(self.ready())[-2:]
        self.assertEqual([b"one", b"two"], [octets[-3:] for octets in sent])

    def test_gives_up(self) -> None:
        """A client's RST drops its own held SYN only, and not with another sequence number."""
        self.announce()
        self.frame(tcp_frame(seq=7))
        self.frame(tcp_frame(sport=5, seq=7))
        self.frame(tcp_frame(flags=4, seq=9))
        self.assertEqual(2, self.standins.syns.total)
        self.frame(tcp_frame(flags=4, seq=8))
        self.assertEqual((1, 1), (self.standins.syns.total, self.standins.counters["given_up"]))

    def test_expires(self) -> None:
        """A SYN whose client has not sent it again is dropped."""
        self.announce()
        self.frame(tcp_frame())
        list(self.standins.expire(self.now + EXPIRY - 1))
        self.assertEqual(1, self.standins.syns.total)
        list(self.standins.expire(self.now + EXPIRY))
        self.assertEqual((0, 1), (self.standins.syns.total, self.standins.counters["expired"]))

    def test_knows_the_guest(self) -> None:
        """
        A peer that sends to the guest's MAC gets the stand-in's, once a second at most.

        This host's own SYN to the guest's MAC is ignored while the guest boots, but wakes one that is asleep.
        """
        self.announce(asleep=False)
        (octets,) = self.sent(self.frame(tcp_frame(to=GUEST)))
        self.advertises(octets, OURS, PEER)
        self.assertEqual([], self.sent(self.frame(tcp_frame(to=GUEST, sport=5), 0.5)))
        self.assertEqual(1, len(self.sent(self.frame(tcp_frame(to=GUEST, sport=5), 0.5))))
        host_syn = bytearray(tcp_frame(HOST_IP, VM, GUEST))
        host_syn[6:12] = HOST
        held = self.standins.syns.total
        self.assertEqual(([], held), (self.frame(bytes(host_syn)), self.standins.syns.total))
        self.announce()
        entry = SetNeighbour("br0", VM, OURS, create=False)
        self.assertEqual([entry, Summon(VM, HOST_IP, proven=False)], self.frame(bytes(host_syn)))


class GuestTests(StandinsTestCase):
    """Frames of the guest before it is ready."""

    def test_announces_itself(self) -> None:
        """The guest's announcement is reported; the peers that have its MAC get the stand-in's again, and no others."""
        self.announce(asleep=False)
        self.frame(self.ask())
        for announcement in (arp_frame(1, GUEST, VM, VM), arp_frame(2, GUEST, VM, bytes(4))):
            seen, *sent = self.frame(announcement)
            self.assertEqual(Seen(VM), seen)
            self.assertEqual(2, len(sent))
            for octets in self.sent(sent):
                self.advertises(octets, OURS, PEER)

    def test_seen_is_bounded(self) -> None:
        """A guest that announces its address all the time, or forges others' announcements, is rate-limited."""
        ips = [bytes([10, 0, 1, number]) for number in range(2 * SEEN_IN_ALL // SEEN_PER_SECOND)]

        def seen(ips: list[bytes]) -> int:
            actions = [one for ip in ips for _ in range(100) for one in self.frame(arp_frame(1, GUEST, ip, ip))]
            return sum(isinstance(action, Seen) for action in actions)

        for ip in ips:
            self.announce(ip)
        self.assertEqual(SEEN_PER_SECOND, seen(ips[:1]))
        self.assertEqual(SEEN_IN_ALL - SEEN_PER_SECOND, seen(ips))
        self.now += 1.0
        self.assertEqual(SEEN_PER_SECOND, seen(ips[-1:]))

    def test_asks(self) -> None:
        """A peer that the guest asks for learns the guest's MAC: it gets the stand-in's as soon as it has replied."""
        self.announce(asleep=False)
        self.frame(arp_frame(1, GUEST, VM, CLIENT))
        actions = self.frame(arp_frame(2, PEER, CLIENT, VM, to=GUEST))
        self.assertEqual(2, len(actions))
        for octets in self.sent(actions):
            self.advertises(octets, OURS, PEER)

    def test_uses_the_network(self) -> None:
        """A packet that opens no connection is passed on to the guest, once that has shown itself."""
        self.announce(asleep=False)
        self.assertEqual([], self.frame(tcp_frame(flags=0x12)))
        self.frame(arp_frame(1, GUEST, VM, CLIENT))
        (octets,) = self.sent(self.frame(tcp_frame(flags=0x12)))
        self.assertEqual(GUEST, octets[:6])
        self.assertEqual([], self.frame(tcp_frame()))

    def test_claims(self) -> None:
        """An unknown MAC that claims the VM's address is reported every `CLAIM_EVERY` seconds, and else ignored."""
        self.announce(asleep=False)
        self.frame(self.ask())
        claim, look_up = arp_frame(1, PEER, VM, VM), LookUp(VM, PEER, "br0")
        self.assertEqual([look_up, Claimed(VM, PEER, "br0")], self.frame(claim))
        self.assertEqual([look_up], self.frame(claim, CLAIM_EVERY - 1))
        self.assertEqual([look_up, Claimed(VM, PEER, "br0")], self.frame(claim, 1.0))
        self.assertEqual({}, self.standins.table[VM].seen_on)
        self.ready()
        self.assertEqual(GUEST, self.standins.table[VM].mac)

    def test_other_macs(self) -> None:
        """Hand-over goes to the MAC that the guest uses for the address: announced, or found behind its port."""
        self.announce(macs=(GUEST, SECOND), asleep=False)
        self.assertEqual(GUEST, self.standins.table[VM].mac)
        self.frame(arp_frame(1, SECOND, VM, CLIENT))
        self.assertEqual(SECOND, self.standins.table[VM].mac)
        actions = self.standins.frame("br0", arp_frame(1, PEER, VM, VM), self.now)
        self.assertEqual(LookUp(VM, PEER, "br0"), next(actions))
        self.standins.learn(VM, PEER)
        self.assertIn(Seen(VM), list(actions))
        self.announce(macs=(GUEST, SECOND), asleep=False)  # announced again
        self.advertises(self.sent(self.ready(VM, GUEST, SECOND))[0], PEER, BROADCAST)
        self.announce(macs=(GUEST, SECOND))  # another boot
        self.assertEqual((GUEST, False), (self.standins.table[VM].mac, self.standins.table[VM].is_guest(PEER)))

    def test_peer_that_is_the_guest(self) -> None:
        """A MAC that asked as a peer, and turns out to be the guest's, gets no advertisement of its own address."""
        self.announce()
        self.frame(self.ask(SECOND))
        self.assertIn(SECOND, [octets[:6] for octets in self.sent(self.ready())])
        self.announce()
        self.frame(self.ask(SECOND))
        self.assertNotIn(SECOND, [octets[:6] for octets in self.sent(self.ready(VM, GUEST, SECOND))])

    def test_late_proof(self) -> None:
        """Where the guest shows only after the hand-over which MAC it uses, that MAC is advertised to all once."""
        self.announce(macs=(GUEST, SECOND), asleep=False)
        self.advertises(self.sent(self.ready())[0], GUEST, BROADCAST)
        answer = arp_frame(2, SECOND, VM, CLIENT, to=PEER)
        (octets,) = self.sent(self.frame(answer))
        self.advertises(octets, SECOND, BROADCAST)
        self.assertEqual([], self.sent(self.frame(answer)))
        self.assertEqual([], self.sent(self.frame(arp_frame(2, GUEST, VM, CLIENT, to=PEER))))

    def test_elsewhere(self) -> None:
        """A guest that uses another address is reported after a while, once; and again when it uses its own."""
        other = bytes([10, 0, 0, 77])
        self.frame(arp_frame(1, GUEST, other, other))
        self.announce()
        self.frame(arp_frame(1, GUEST, other, other))  # it is about to end
        self.announce(asleep=False)
        self.assertEqual([], list(self.standins.expire(self.now + 2 * ASTRAY)))
        for address in (bytes(4), other, other):
            self.frame(arp_frame(1, GUEST, address, CLIENT))
        self.ready()
        self.assertEqual([], list(self.standins.expire(self.now + ASTRAY - 1)))
        self.assertEqual([Elsewhere(VM, other)], list(self.standins.expire(self.now + ASTRAY)))
        self.assertEqual([], list(self.standins.expire(self.now + 2 * ASTRAY)))
        self.assertEqual([Elsewhere(VM, b""), Seen(VM)], self.frame(arp_frame(2, GUEST, VM, bytes(4))))
        self.frame(arp_frame(1, GUEST, other, CLIENT))
        self.assertEqual([], list(self.standins.expire(self.now + 2 * ASTRAY)))

    def test_anothers_address(self) -> None:
        """A guest that uses the address of another VM is reported, as a clone with its original's address."""
        clone, mac = bytes([10, 0, 0, 11]), PEER
        self.announce()
        self.announce(clone, asleep=False, macs=(mac,))
        self.frame(arp_frame(1, mac, VM, VM))
        self.assertEqual([Elsewhere(clone, VM)], list(self.standins.expire(self.now + ASTRAY)))

    def test_two_addresses(self) -> None:
        """A guest that uses another of its VM's addresses, or its own soon afterwards, is not reported."""
        second = bytes([10, 0, 0, 11])
        self.announce(asleep=False)
        self.announce(second, asleep=False)
        self.frame(arp_frame(1, GUEST, second, CLIENT))
        self.assertEqual([], list(self.standins.expire(self.now + 2 * ASTRAY)))
        self.frame(arp_frame(1, GUEST, bytes([10, 0, 0, 12]), CLIENT))
        self.frame(arp_frame(1, GUEST, VM, CLIENT), ASTRAY - 1)
        self.assertEqual([], list(self.standins.expire(self.now + 2 * ASTRAY)))

    def probes_for(self, seconds: float) -> list[bytes]:
        """Advance the time by *seconds*; return the frames sent meanwhile to probe guests: each when it is due."""
        sent = []
        for _ in range(round(seconds / 0.005)):
            self.now += 0.005
            is_due = self.standins.due() <= self.now
            frames = self.sent(list(self.standins.probe(self.now)))
            self.assertEqual(is_due, bool(frames))
            sent += frames
        return sent

    def test_silent(self) -> None:
        """Until a guest has shown itself, nothing is sent to its MAC; requests for its address are few."""
        self.announce(asleep=False, probe_port=80)
        question = arp_frame(1, HOST, HOST_IP, VM, to=BROADCAST)
        sent = self.probes_for(2.0)
        self.assertEqual({question}, set(sent))
        self.assertLess(len(sent), 25)
        self.assertTrue(2 <= len(self.probes_for(0.6)) <= 4, "it is found soon after 2 seconds, too")
        self.probes_for(20)
        self.assertTrue(58 <= len(self.probes_for(60)) * ASK_WITHIN <= 62)
        self.standins.ask_now()  # there is a new port
        self.assertEqual([question], self.probes_for(0.005))
        for _ in range(2):
            answered = self.frame(arp_frame(2, GUEST, VM, HOST_IP, to=HOST))
            self.assertEqual(GUEST, self.sent(answered)[-1][:6])
            self.standins.await_guests_again()  # its tap has vanished, and it is restored
            self.assertEqual([question], self.probes_for(0.005))

    def test_ipv6_silent(self) -> None:
        """Over IPv6, the request goes to the solicited-node address, from the host's link-local one."""
        self.announce(VM6, asleep=False, probe_port=80)
        (octets,) = self.probes_for(0.005)
        self.assertEqual(b"\x33\x33\xff" + VM6[-3:], octets[:6])
        message = understood(octets)
        assert isinstance(message, Neighbour)
        expected = ip_interface("fe80::1/64").ip.packed, VM6, True
        self.assertEqual(expected, (message.ip, message.target, message.asks))
        self.assertEqual(bytes.fromhex("ff0200000000000000000001ff") + VM6[-3:], octets[14 + 24 : 14 + 40])

    def test_probes_less_and_less_often(self) -> None:
        """A guest that has shown itself gets this host's MAC once, and is probed ever less often while it is silent."""
        self.announce(asleep=False, probe_port=80)
        question, probe = self.sent(self.shown())
        self.assertEqual((arp_frame(1, HOST, HOST_IP, VM, to=GUEST), GUEST), (question, probe[:6]))
        self.assertLess(len(self.probes_for(1)), 30)
        self.assertLess(len(self.probes_for(60)), 300)
        self.shown()
        self.assertEqual(4, len(self.probes_for(0.02)))
        self.announce()
        self.announce(asleep=False, probe_port=80)
        self.assertEqual(BROADCAST, self.probes_for(0.005)[0][:6])

    def test_probes(self) -> None:
        """A guest that boots is probed; a SYN-ACK from that port and its own MAC shows that it listens, no RST does."""
        self.announce(asleep=False, probe_port=80)
        _, octets = self.sent(self.shown())
        self.assertEqual((GUEST, HOST), (octets[:6], octets[6:12]))
        self.assertEqual(tcp_frame(HOST_IP, VM, GUEST, sport=PROBE_SOURCE_PORT, seq=1, win=1024)[14:], octets[14:])

        def answer(mac: bytes = GUEST, **changes: Any) -> bytes:
            values = {"sport": 80, "dport": PROBE_SOURCE_PORT, "flags": 0x12, **changes}
            octets = bytearray(tcp_frame(VM, HOST_IP, HOST, **values))
            octets[6:12] = mac
            return bytes(octets)

        self.assertEqual([LookUp(VM, PEER, "br0")], self.frame(answer(PEER)))
        for wrong in (answer(flags=0x14), answer(sport=81), answer(dport=5)):
            self.assertEqual([], self.frame(wrong))
        self.assertEqual([Listens(VM)], self.frame(answer()))
        self.ready()
        self.assertEqual(([], []), (list(self.standins.probe(self.now)), self.frame(answer())))


class JitsuTests(StandinsTestCase):
    """Calls from Jitsu."""

    def test_announced(self) -> None:
        """A VM that boots is advertised to all and to this host; one that is asleep, or announced again, is not."""
        self.assertEqual([], self.announce())
        sent, entry = self.announce(asleep=False)
        assert isinstance(sent, Send)
        self.advertises(sent.octets, OURS, BROADCAST)
        self.assertEqual(SetNeighbour("br0", VM, OURS, create=False), entry)
        self.assertEqual([], self.announce(asleep=False))

    def test_announced_while_it_runs(self) -> None:
        """Nothing is broadcast while the guest may read it: it would give up the address that it checks."""
        self.assertEqual([SetNeighbour("br0", VM, OURS, create=False)], self.announce(asleep=False, runs=True))

    def test_ready(self) -> None:
        """All get the guest's MAC, then each peer; the guest gets the peers' MACs, and then the held packets."""
        self.announce()
        self.frame(self.ask())
        for port in (7, 5, 6):
            self.frame(tcp_frame(sport=port))
        self.shown()
        everybody, unasked, answer, question, *syns = self.sent(self.ready())
        for octets, to in ((everybody, BROADCAST), (unasked, PEER), (answer, PEER)):
            self.advertises(octets, GUEST, to)
        self.assertEqual(arp_frame(1, PEER, CLIENT, VM, to=GUEST), question)
        self.assertEqual([tcp_frame(sport=port, to=GUEST) for port in (7, 5, 6)], syns)
        self.assertEqual((0, 3), (self.standins.syns.total, self.standins.counters["handed_over"]))

    def test_not_shown(self) -> None:
        """Packets handed over to a guest that has not shown itself wait until it does, and are not flooded."""
        self.announce(asleep=False)
        self.frame(self.ask(tags=TAG))
        self.frame(tcp_frame(tags=TAG))
        self.assertEqual([], [octets for octets in self.sent(self.ready()) if octets[:6] == GUEST])
        asked = self.sent(list(self.standins.resend(self.now)))
        own = arp_frame(1, HOST, HOST_IP, VM, to=BROADCAST)
        self.assertEqual({own, arp_frame(1, PEER, CLIENT, VM, to=BROADCAST, tags=TAG)}, set(asked))
        self.assertEqual([], list(self.standins.resend(self.now)))
        question, syn = self.sent(self.shown())
        self.assertEqual((arp_frame(1, PEER, CLIENT, VM, to=GUEST, tags=TAG), GUEST), (question, syn[:6]))

    def test_never_shown(self) -> None:
        """Packets that wait for a guest which never shows itself are dropped when their clients have given up."""
        self.announce(asleep=False)
        self.frame(tcp_frame())
        self.ready()
        list(self.standins.resend(self.now + EXPIRY))
        list(self.standins.resend(self.now + EXPIRY))
        self.assertEqual({}, self.standins.handed)

    def test_not_answered(self) -> None:
        """A SYN that the guest does not answer is sent again, ever more seldom, with its sender's MAC, for a while."""
        self.announce()
        self.frame(self.ask())
        self.frame(tcp_frame(sport=5))
        self.frame(tcp_frame(sport=6))
        self.frame(udp_frame(b"first"))
        self.shown()
        self.ready()

        def again(seconds: float) -> list[bytes]:
            sent = []
            for _ in range(round(seconds / 0.005)):
                self.now += 0.005
                is_due = self.standins.due() <= self.now
                frames = self.sent(list(self.standins.resend(self.now)))
                self.assertTrue(is_due or not frames)
                sent += frames
            return sent

        question, *syns = again(0.02)
        self.assertEqual(arp_frame(1, PEER, CLIENT, VM, to=GUEST), question)
        self.assertEqual([tcp_frame(sport=port, to=GUEST) for port in (5, 6)], syns)
        answer = tcp_frame(VM, CLIENT, PEER, sport=80, dport=5, flags=0x12)
        self.frame(answer)  # not by the guest's MAC
        self.assertEqual(3, len(again(0.01)))
        self.frame(answer[:6] + GUEST + answer[12:])
        self.assertEqual([arp_frame(1, PEER, CLIENT, VM, to=GUEST), tcp_frame(sport=6, to=GUEST)], again(0.02))
        self.assertEqual(2 * 6, len(again(2 * RESEND_WITHIN)))
        self.assertEqual({}, self.standins.handed)

    def test_settled(self) -> None:
        """Nothing is sent again for a guest that refuses, a client that gave up, or a VM that is off or gone."""
        refusal = tcp_frame(VM, CLIENT, PEER, sport=80, dport=5, flags=0x14)
        for settles in (
            lambda: self.frame(refusal[:6] + GUEST + refusal[12:]),
            lambda: self.frame(tcp_frame(sport=5, to=GUEST, flags=4, seq=8)),
            self.announce,
            lambda: list(self.standins.withdraw(VM, self.now)),
        ):
            self.announce(asleep=False)
            self.frame(tcp_frame(sport=5))
            self.shown()
            self.ready()
            self.assertIn(VM, self.standins.handed)
            list(self.standins.resend(self.now))
            settles()
            self.assertEqual([], list(self.standins.resend(self.now + 0.5)))
            self.assertEqual({}, self.standins.handed)

    def test_forged_reset(self) -> None:
        """A RST without the SYN's sequence number, or that of a flow which was not handed over, settles nothing."""
        self.announce(asleep=False)
        self.frame(tcp_frame(sport=5))
        self.shown()
        self.ready()
        list(self.standins.resend(self.now))
        for sport, seq in ((5, 0), (5, 7), (5, 9), (6, 8)):
            self.frame(tcp_frame(to=GUEST, sport=sport, flags=4, seq=seq))
        self.assertIn(tcp_frame(sport=5, to=GUEST), self.sent(list(self.standins.resend(self.now + 0.5))))

    def test_ready_elsewhere(self) -> None:
        """The MACs of the last call count; an address that was never announced can be ready, too."""
        self.announce()
        self.frame(tcp_frame())
        self.advertises(self.sent(self.ready(VM, PEER))[0], PEER, BROADCAST)
        self.assertEqual(PEER, self.sent(self.shown(PEER))[-1][:6])
        self.ready(CLIENT, GUEST)
        self.assertIs(State.UP, self.standins.table[CLIENT].state)

    def test_afterwards(self) -> None:
        """A packet that still comes to the stand-in's MAC is passed on; its sender gets the guest's once a second."""
        self.announce()
        self.ready()
        passed, sent = self.sent(self.frame(tcp_frame()))
        self.assertEqual(tcp_frame(to=GUEST), passed)
        self.advertises(sent, GUEST, PEER)
        self.assertEqual(1, len(self.frame(tcp_frame(flags=0x10), 0.5)))
        self.assertEqual(2, len(self.frame(udp_frame(b"x"), 0.5)))
        self.assertEqual([], self.frame(tcp_frame(to=GUEST)))

    def test_withdrawn(self) -> None:
        """The held packets are dropped."""
        self.announce()
        self.frame(tcp_frame())
        self.assertEqual([], list(self.standins.withdraw(VM, self.now)))
        self.assertEqual((0, {}), (self.standins.syns.total, self.standins.table))
        self.assertEqual([], list(self.standins.withdraw(VM, self.now)))

    def test_failed(self) -> None:
        """After a failed start, SYNs are refused for a while; after a new announcement, only held ones."""
        for refusal, answers in ((Refusal.SILENCE, 0), (Refusal.RST, 1), (Refusal.UNREACHABLE, 1)):
            self.standins = Standins({"br0": self.link}, refusal=refusal)
            self.announce()
            self.frame(tcp_frame())
            list(self.standins.withdraw(VM, self.now, failed=True))
            self.assertEqual(answers, len(self.frame(tcp_frame())))
            self.assertEqual(answers, len(self.frame(tcp_frame(sport=5))))
            self.announce()
            self.assertEqual(answers, len(self.frame(tcp_frame())))
            self.assertEqual([Summon(VM, CLIENT, proven=False)], self.frame(tcp_frame(sport=5)))
            self.assertEqual([Summon(VM, CLIENT, proven=False)], self.frame(tcp_frame(), LINGER))
            list(self.standins.withdraw(VM, self.now, failed=True))
            list(self.standins.expire(self.now + LINGER))
            self.assertEqual({}, self.standins.table)

    def test_xenstore(self) -> None:
        """ARP carries the guest's MAC; SYNs are recorded once, erased when they are dropped, and never sent."""
        self.announce(handover=Handover.XENSTORE)
        (octets,) = self.sent(self.frame(self.ask()))
        self.advertises(octets, GUEST, PEER)
        record, summon = self.frame(tcp_frame(to=GUEST))
        self.assertIsInstance(record, Record)
        self.assertIsInstance(summon, Summon)
        self.assertEqual([Summon(VM, CLIENT, proven=True)], self.frame(tcp_frame(to=GUEST), 1.0))
        (erase,) = self.frame(tcp_frame(flags=4, seq=8))
        self.assertIsInstance(erase, Erase)
        self.frame(tcp_frame(to=GUEST))
        self.assertEqual([], self.ready())
        self.assertEqual([], self.frame(tcp_frame(to=GUEST)))


class FrameTests(StandinsTestCase):
    """The stand-in's own frames."""

    def test_own(self) -> None:
        """A frame of the stand-in that comes back is ignored."""
        self.announce(asleep=False)
        for octets in (packets.unsolicited(VM, OURS, BROADCAST, b""), packets.unsolicited(VM, GUEST, BROADCAST, b"")):
            own = octets[:6] + OURS + octets[12:]
            self.assertEqual([], self.frame(own))
        self.assertEqual({}, self.standins.table[VM].seen_on)
        self.assertEqual(OURS, read(own).src)
