"""Turns: who boots next."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.fair_queue import FairQueue


class TurnsTests(SynchronousTestCase):
    """`FairQueue`."""

    def take_all(self, turns: FairQueue[str]) -> str:
        """Take all, and return them in their order."""
        return "".join(turns.take() for _ in range(len(turns)))

    def test_in_order(self) -> None:
        """Of one network, who came first is first."""
        turns: FairQueue[str] = FairQueue()
        for waiter in "abc":
            turns.add(waiter, 1)
        self.assertEqual("abc", self.take_all(turns))
        self.assertFalse(turns)

    def test_fair(self) -> None:
        """Networks take turns, however many of one wait."""
        turns: FairQueue[str] = FairQueue()
        for waiter, whose in zip("abcdefxyz", (1, 1, 1, 1, 1, 1, 2, 2, 3), strict=True):
            turns.add(waiter, whose)
        self.assertEqual("axzbycdef", self.take_all(turns))

    def test_comes_again(self) -> None:
        """Who has had a turn waits for the others."""
        turns: FairQueue[str] = FairQueue()
        turns.add("a", 1)
        turns.add("x", 2)
        turns.add("b", 1)
        self.assertEqual("a", turns.take())
        turns.add("c", 1)
        self.assertEqual("xbc", self.take_all(turns))

    def test_gone(self) -> None:
        """Who does not wait any more has no turn, and who waits already has one turn."""
        turns: FairQueue[str] = FairQueue()
        for waiter, whose in (("a", 1), ("b", 1), ("x", 2), ("a", 1)):
            turns.add(waiter, whose)
        for gone in "xbz":
            turns.drop(gone)
        self.assertEqual("a", self.take_all(turns))
        turns.add("b", 1)
        self.assertEqual("b", self.take_all(turns))

    def test_groups(self) -> None:
        """Groups of networks take turns, however many networks a group has."""
        turns: FairQueue[str] = FairQueue()
        for number, waiter in enumerate("abcdef"):
            turns.add(waiter, number, "forged")
        for waiter, whose in zip("xyz", (1, 1, 2), strict=True):
            turns.add(waiter, whose, "proven")
        turns.drop("b")
        turns.add("z", 1, "forged")
        self.assertEqual("axczdyef", self.take_all(turns))
        self.assertFalse(turns)
