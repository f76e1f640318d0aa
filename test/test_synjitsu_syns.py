"""What is held: once per flow, within its limits, as long as it may; and who gives way to whom."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw.packets import SYN, TCP, Frame, Packet
from synjitsu_tw.syns import EXPIRY, OVERDUE, Held, Limits, Syns

VM = bytes([10, 0, 0, 10])


def syn(source: int = 1, port: int = 4711, vm: bytes = VM, at: float = 0.0, size: int = 60) -> Held:
    """Return a SYN that has just come."""
    packet = Packet(source.to_bytes(4), vm, TCP, port, 80, SYN)
    return Held("br0", Frame(b"", b"", b"", 0x800, bytes(size)), packet, at)


class SynsTests(SynchronousTestCase):
    """All of it."""

    def assert_sound(self, syns: Syns) -> None:
        """Check that what is counted is what is there."""
        internals: Any = syns
        held = [one for vm in internals._vms.values() for one in vm.held.values()]
        self.assertEqual((len(held), sum(one.octets for one in held)), (syns.total, syns.octets))
        self.assertEqual(len(held), sum(internals._sources.values()))
        once = {(ip, key) for ip, vm in internals._vms.items() for key in vm.once}
        self.assertEqual(once, set(internals._once))
        self.assertEqual(once, {(ip, key) for ip, vm in internals._vms.items() for key, one in vm.held.items()
                                if not one.proven})

    def test_once(self) -> None:
        """One that comes again is held once: the later copy, in the place of the first, and it waits anew."""
        syns = Syns()
        self.assertEqual((True, False), syns.hold(syn()))
        syns.hold(syn(2))
        again = syn(at=3.0, size=70)
        self.assertEqual((True, True), syns.hold(again))
        self.assertEqual([again.frame, syn(2).frame], [held.frame for held in syns.of(VM)])
        self.assertEqual([(0.0, 3.0), (0.0, 0.0)], [(held.since, held.at) for held in syns.of(VM)])
        self.assertEqual(130, syns.octets)
        self.assertEqual([2], [held.packet.src[3] for held in syns.expire(EXPIRY)])
        self.assertEqual(1, syns.count(VM))
        self.assert_sound(syns)

    def test_datagrams(self) -> None:
        """Packets of one flow that are distinct are all held."""
        syns = Syns()
        for distinct in (5, 6, 5):
            syns.hold(syn(), distinct)
        self.assertEqual(2, syns.count(VM))

    def test_release_and_drop(self) -> None:
        """What is released or given up is held no longer, and no other."""
        syns = Syns()
        for source in (1, 2, 3):
            syns.hold(syn(source))
        self.assertIsNotNone(syns.drop(syn(2).packet))
        self.assertIsNone(syns.drop(syn(2).packet))
        self.assertIsNone(syns.drop(syn(2, vm=bytes(4)).packet))
        self.assertEqual([1, 3], [held.packet.src[3] for held in syns.release(VM)])
        self.assertEqual(([], 0, 0), (syns.release(VM), syns.total, syns.octets))
        self.assert_sound(syns)

    def test_limits(self) -> None:
        """Per source, per VM, in all, and in octets."""
        other = bytes([10, 0, 0, 11])
        cases = (
            (Limits(per_source=3), [syn(port=port) for port in range(9)], 3),
            (Limits(per_vm=4), [syn(source) for source in range(9)], 4),
            (Limits(total=5), [syn(source, vm=vm) for source in range(9) for vm in (VM, other)], 5),
            (Limits(octets=300), [syn(source) for source in range(9)], 5),
        )
        for limits, held, expected in cases:
            syns = Syns(limits)
            for one in held:
                syns.hold(one)
            self.assertEqual(expected, syns.total, limits)
            self.assert_sound(syns)

    def test_first_come(self) -> None:
        """Who is held does not give way to a flood, until it should have come again and has not."""
        syns = Syns(Limits(per_vm=2))
        for source in (1, 2):
            syns.hold(syn(source))
        self.assertEqual((False, False), syns.hold(syn(3, at=OVERDUE)))
        self.assertEqual((True, False), syns.hold(syn(4, at=OVERDUE + 0.1)))
        self.assertEqual([2, 4], [held.packet.src[3] for held in syns.of(VM)])

    def test_who_comes_again(self) -> None:
        """Who was turned away and comes again takes the place of one that came once; that one keeps it for good."""
        syns = Syns(Limits(per_vm=2))
        for source in (1, 2, 3):
            syns.hold(syn(source))
        self.assertEqual((True, True), syns.hold(syn(3, at=1.0)))
        self.assertEqual([2, 3], [held.packet.src[3] for held in syns.of(VM)])
        for source in range(10, 1000):
            syns.hold(syn(source, at=2.0 + source / 100))
        self.assertIn(3, [held.packet.src[3] for held in syns.of(VM)])
        self.assert_sound(syns)

    def test_one_source(self) -> None:
        """A source that sends without end takes its own places only."""
        syns = Syns(Limits(per_source=4, per_vm=8))
        for port in range(1000):
            syns.hold(syn(1, port, at=port / 100))
        self.assertEqual(4, syns.count(VM))
        self.assertEqual((True, False), syns.hold(syn(2)))

    def test_anything(self) -> None:
        """Whatever comes in whatever order, the books agree, and nothing exceeds its limits."""
        rng = random.Random(5)
        limits = Limits(per_source=3, per_vm=6, total=12, octets=900)
        syns, now = Syns(limits), 0.0
        for _ in range(5000):
            now += rng.random() / 4
            vm = bytes([10, 0, 0, rng.randrange(5)])
            one = syn(rng.randrange(6), rng.randrange(4), vm, now, rng.randrange(40, 90))
            what = rng.randrange(20)
            if what == 0:
                syns.release(vm)
            elif what == 1:
                syns.drop(one.packet)
            elif what == 2:
                list(syns.expire(now))
            else:
                syns.hold(one, rng.randrange(2))
            self.assertLessEqual(syns.total, limits.total)
            self.assertLessEqual(syns.count(vm), limits.per_vm)
            self.assert_sound(syns)
