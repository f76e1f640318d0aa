"""Leases: when a VM may be stopped."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.vm.lease import SLICE, Lease, Leases


class LeaseTests(SynchronousTestCase):
    """`Lease`."""

    def test_ends(self) -> None:
        """It ends `idle` after the last use, but not before `min_up` after the start."""
        for idle, min_up, used, started, expected in ((10, 0, 5, 0, 15), (10, 60, 5, 0, 60), (10, 60, 100, 0, 110)):
            self.assertEqual(expected, Lease(idle, min_up, used, started).ends())

    def test_use(self) -> None:
        """A use renews it."""
        lease = Lease(10, 0, used=0, started=0)
        lease.use(7)
        self.assertEqual(17, lease.ends())


class LeasesTests(SynchronousTestCase):
    """`Leases`."""

    def setUp(self) -> None:
        """Grant leases of 10 s and 20 s at time 0."""
        self.leases = Leases()
        self.short, self.long = Lease(10, 0, 0, 0), Lease(20, 0, 0, 0)
        self.leases.grant("short", self.short)
        self.leases.grant("long", self.long)

    def test_ended(self) -> None:
        """A lease ends at its end, once, and not before."""
        self.assertEqual([], self.leases.ended(9.9))
        self.assertEqual(["short"], self.leases.ended(10))
        self.assertEqual([], self.leases.ended(10))
        self.assertNotIn("short", self.leases)
        self.assertEqual(["long"], self.leases.ended(30))

    def test_used_meanwhile(self) -> None:
        """A lease that was used is looked at again at its new end."""
        self.short.use(8)
        self.assertEqual([], self.leases.ended(10))
        self.assertEqual(18, self.leases.next_look())
        self.assertEqual(["short"], self.leases.ended(18))

    def test_dropped(self) -> None:
        """A lease that was dropped, or took another's place, does not end."""
        self.leases.drop("short")
        self.leases.grant("long", Lease(50, 0, 0, 0))
        self.assertEqual([], self.leases.ended(30))
        self.assertEqual(["long"], self.leases.ended(50))

    def test_a_look_costs_what_ends(self) -> None:
        """Many leases that do not end yet are not looked at."""
        looks = []

        class Watched(Lease):
            def ends(self) -> float:
                looks.append(self)
                return super().ends()

        for number in range(1000):
            self.leases.grant(f"vm{number}", Watched(1000, 0, 0, 0))
        looks.clear()
        self.assertEqual(["short"], self.leases.ended(15))
        self.assertEqual([], looks)

    def test_slices(self) -> None:
        """A look takes some milliseconds at most; what is left over is found by the next one."""
        leases = Leases()
        for number in range(SLICE + 5):
            leases.grant(f"vm{number}", Lease(5, 0, 0, 0))
        self.assertEqual(SLICE, len(leases.ended(5)))
        self.assertEqual(5, leases.next_look())
        self.assertEqual(5, len(leases.ended(5)))
        self.assertIsNone(leases.next_look())

    def test_same_end(self) -> None:
        """Leases that end at the same moment all end."""
        for name in "abc":
            self.leases.grant(name, Lease(5, 0, 0, 0))
        self.assertEqual({"a", "b", "c"}, set(self.leases.ended(5)))
