"""Who waits for an activation: `jitsu_tw.vm.waiters`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.vm import waiters
from jitsu_tw.vm.waiters import Waiters
from test.support import BoundedClock


class WaitersTests(SynchronousTestCase):
    """`Waiters`, of whom it remembers."""

    def setUp(self) -> None:
        """Let each wait for a second."""
        self.clock = BoundedClock()
        self.waiters = Waiters(self.clock, 1.0, "first", 0.0)

    def ask(self, asker: str) -> None:
        """Let *asker* ask."""
        self.waiters.add(asker, self.clock.seconds(), lambda waiter: self.waiters.answer(waiter, ready=False))

    def test_forgets(self) -> None:
        """However long a boot takes, only those are remembered that may ask again before they ask anew."""
        for number in range(1000):
            self.ask(f"n{number}")
            self.clock.advance(0.1)
        self.assertLessEqual(len(self.waiters._due), 21)
        self.assertTrue("n999" in self.waiters and "n985" in self.waiters)
        self.assertFalse("n970" in self.waiters)

    def test_bounded(self) -> None:
        """Of more than may be remembered at once, those that have asked last are."""
        self.patch(waiters, "MOST_ASKERS", 10)
        for number in range(100):
            self.ask(f"n{number}")
        self.assertEqual([f"n{number}" for number in range(90, 100)], list(self.waiters._due))
