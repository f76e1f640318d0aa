"""Held packets: once per flow, within their limits, until they expire; and which packet displaces which."""

from __future__ import annotations

import random
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw.packets import RST, SYN, TCP, Frame, Packet
from synjitsu_tw.syns import AGAIN, EXPIRY, OVERDUE, Held, Limits, Syns

VM = bytes([10, 0, 0, 10])


ISN = 2**32 - 1


def syn(
    source: int = 1, port: int = 4711, vm: bytes = VM, at: float = 0.0, size: int = 60, distinct: int = 0
) -> Held:
    """Return a SYN that has just come, from a network of its own for each *source*."""
    packet = Packet(source.to_bytes(3) + b"\1", vm, TCP, port, 80, SYN, ISN)
    return Held("br0", Frame(b"", b"", b"", 0x800, bytes(size)), packet, at, distinct=distinct)


def sources(syns: Syns) -> list[int]:
    """Return the numbers of those whose SYNs are held."""
    return [int.from_bytes(held.packet.src[:3]) for held in syns.of(VM)]


class SynsTests(SynchronousTestCase):
    """All of it."""

    def assert_sound(self, syns: Syns) -> None:
        """Check that what is counted is what is there."""
        internals: Any = syns
        held = [one for vm in internals._vms.values() for one in vm.held.values()]
        self.assertEqual((len(held), sum(one.octets for one in held)), (syns.total, syns.octets))
        for vm in internals._vms.values():
            self.assertEqual(len(vm.held), len(vm.bag))
            self.assertEqual(len(vm.held), sum(map(len, vm.networks.values())))
            self.assertTrue(vm.held)
            self.assertTrue(all(map(len, vm.networks.values())))

    @staticmethod
    def syns(**limits: int) -> Syns:
        """Return one with these limits that picks at random, but in each run the same."""
        return Syns(Limits(**limits), random.Random(5).randrange)

    def test_once(self) -> None:
        """A SYN that comes again is held once: the later copy, in the slot of the first, with a new expiry."""
        syns = Syns()
        self.assertEqual((True, False), syns.hold(syn()))
        syns.hold(syn(2))
        again = syn(at=3.0, size=70)
        self.assertEqual((True, True), syns.hold(again))
        self.assertEqual([again.frame, syn(2).frame], [held.frame for held in syns.of(VM)])
        self.assertEqual([(0.0, 3.0), (0.0, 0.0)], [(held.since, held.at) for held in syns.of(VM)])
        self.assertEqual(130, syns.octets)
        self.assertEqual([syn(2).packet], [held.packet for held in syns.expire(EXPIRY)])
        self.assertEqual(1, syns.count(VM))
        self.assert_sound(syns)

    def test_datagrams(self) -> None:
        """Distinct packets of one flow are all held."""
        syns = Syns()
        for distinct in (5, 6, 5):
            syns.hold(syn(distinct=distinct))
        self.assertEqual(2, syns.count(VM))

    def test_release_and_drop(self) -> None:
        """A released or aborted packet is held no longer; the others are."""
        syns = Syns()
        for source in (1, 2, 3):
            syns.hold(syn(source))
        reset = attrs.evolve(syn(2).packet, flags=RST, sequence=0)
        self.assertIsNotNone(syns.drop(reset))
        self.assertIsNone(syns.drop(reset))
        self.assertIsNone(syns.drop(attrs.evolve(reset, dst=bytes(4))))
        self.assertEqual([1, 3], sources(syns))
        syns.release(VM)
        self.assertEqual(([], 0, 0), (syns.release(VM), syns.total, syns.octets))
        self.assert_sound(syns)

    def test_reset(self) -> None:
        """A RST counts only with the number after the SYN, or after its data: what a stranger does not know."""
        for length, sequence, counts in (
            (0, 0, True), (0, ISN, False), (0, 1, False), (0, 2**31, False), (5, 0, True), (5, 5, True), (5, 4, False)
        ):
            syns = Syns()
            held = syn()
            held.packet = attrs.evolve(held.packet, length=length)
            syns.hold(held)
            dropped = syns.drop(attrs.evolve(held.packet, flags=RST, sequence=sequence))
            self.assertEqual(counts, dropped is held, (length, sequence))

    def test_limits(self) -> None:
        """Per source network, per VM, in all, and in octets."""
        other = bytes([10, 0, 0, 11])
        cases = (
            (Limits(per_network=3), [syn(port=port) for port in range(9)], 3),
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
        """A flood displaces no held packet before that should have come again and has not."""
        syns = self.syns(per_vm=2)
        syns.hold(syn(1))
        syns.hold(syn(2, at=1.0))
        self.assertEqual((False, False), syns.hold(syn(3, at=OVERDUE)))
        self.assertEqual((True, False), syns.hold(syn(4, at=OVERDUE + 0.1)))
        self.assertEqual([2, 4], sources(syns))

    def test_comes_again(self) -> None:
        """A flow that got no slot and comes again in time displaces one that came once, for good."""
        syns = self.syns(per_vm=2)
        for source in (1, 2, 3):
            syns.hold(syn(source))
        self.assertEqual((False, False), syns.hold(syn(3, at=AGAIN / 2)))
        self.assertEqual((True, True), syns.hold(syn(3, at=1.0)))
        for source in range(10, 1000):
            syns.hold(syn(source, at=1.0 + source / 1000))
        self.assertIn(3, sources(syns))
        self.assert_sound(syns)

    def test_shares(self) -> None:
        """A network with fewer slots displaces packets of one with more, however often that one sends."""
        syns = self.syns(per_network=6, per_vm=8)
        for at in (0.0, 1.0, 2.0):
            for port in range(1000):
                syns.hold(syn(1, port, at=at))
            self.assertEqual(6, syns.count(VM))
        for source in (2, 3, 4, 5):
            self.assertEqual((True, False), syns.hold(syn(source, at=2.0)))
        self.assertEqual(4, sources(syns).count(1))
        self.assertEqual({1, 2, 3, 4, 5}, set(sources(syns)))

    def test_lock_out(self) -> None:
        """Flows from forged sources that have sent three times lock out no client that waits: it gets a slot."""
        syns = self.syns(per_vm=256)
        for at in (0.0, 1.0, 3.0):
            for source in range(300):
                syns.hold(syn(source, at=at))
        self.assertEqual((False, False), syns.hold(syn(1000, at=4.0)))
        self.assertEqual((True, True), syns.hold(syn(1000, at=5.0)))
        # Those have not come again for too long by now.
        self.assertEqual((True, False), syns.hold(syn(1001, at=10.0)))
        self.assertTrue({1000, 1001} <= set(sources(syns)))

    def test_one_burst(self) -> None:
        """What comes three times in one moment has proven nothing."""
        syns = self.syns(per_vm=256)
        for source in range(300):
            for count in range(3):
                syns.hold(syn(source, at=count / 100))
        self.assertFalse(any(held.proven for held in syns.of(VM)))
        self.assertEqual((True, False), syns.hold(syn(1000, at=2.0)))

    def test_anything(self) -> None:
        """Whatever comes in whatever order, the books agree, and nothing exceeds its limits."""
        rng = random.Random(5)
        limits = Limits(per_network=3, per_vm=6, total=12, octets=900)
        syns, now = Syns(limits, rng.randrange), 0.0
        for _ in range(5000):
            now += rng.random() / 4
            vm = bytes([10, 0, 0, rng.randrange(5)])
            one = syn(rng.randrange(6), rng.randrange(4), vm, now, rng.randrange(40, 90), rng.randrange(2))
            what = rng.randrange(20)
            if what == 0:
                syns.release(vm)
            elif what == 1:
                syns.drop(attrs.evolve(one.packet, sequence=0))
            elif what == 2:
                list(syns.expire(now))
            else:
                syns.hold(one)
            self.assertLessEqual(syns.total, limits.total)
            self.assertLessEqual(syns.count(vm), limits.per_vm)
            self.assert_sound(syns)
