"""What each client network has spent within a minute."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.buckets import Buckets


class BucketsTests(SynchronousTestCase):
    """`Buckets`."""

    def test_refilled(self) -> None:
        """A bucket has as many as are spent in a minute, and is refilled evenly; others' are their own."""
        buckets = Buckets(2)
        for _ in range(2):
            self.assertTrue(buckets.has(b"a", 100.0))
            buckets.spend(b"a", 100.0)
        self.assertEqual((False, True), (buckets.has(b"a", 100.0), buckets.has(b"b", 100.0)))
        self.assertEqual((False, True), (buckets.has(b"a", 129.0), buckets.has(b"a", 130.0)))

    def test_part(self) -> None:
        """A part of a bucket can be asked for."""
        buckets = Buckets(4)
        buckets.spend(b"a", 0.0)
        self.assertEqual((True, False), (buckets.has(b"a", 0.0, 2), buckets.has(b"a", 0.0, 1)))

    def test_no_limit(self) -> None:
        """Without a limit nothing is spent, or remembered."""
        buckets = Buckets(0)
        for _ in range(100):
            buckets.spend(b"a", 0.0)
        self.assertTrue(buckets.has(b"a", 0.0))
        self.assertEqual(0, len(buckets._full_at))

    def test_bounded(self) -> None:
        """No more networks are remembered than that; those whose buckets are full again are dropped by and by."""
        buckets = Buckets(1, most=10)
        for number in range(100):
            buckets.spend(bytes([number]), 0.0)
        self.assertEqual(10, len(buckets._full_at))
        for number in range(10):
            buckets.spend(bytes([200 + number]), 100.0)
        self.assertLessEqual(len(buckets._full_at), 11)
        buckets.spend(b"x", 300.0)
        self.assertLessEqual(len(buckets._full_at), 9)
