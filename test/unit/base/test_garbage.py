"""The pauses of the garbage collector: which of its collections look at what."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.garbage import GROWTH, LONG, Pauses, left_alone


class Collector:
    """
    Takes the place of the module `gc`.

    Attributes:
        calls: to it, in their order.
    """

    def __init__(self) -> None:
        """Begin with no call."""
        self.calls: list[str] = []

    def freeze(self) -> None:
        """Note a call."""
        self.calls.append("freeze")

    def unfreeze(self) -> None:
        """Note a call."""
        self.calls.append("unfreeze")


class PausesTests(SynchronousTestCase):
    """What a collection leads to."""

    def setUp(self) -> None:
        """Begin with a thousand pages of memory."""
        self.pages, self.now = 1000, 0.0
        self.collector: Any = Collector()
        self.pauses = Pauses(lambda: self.pages, lambda: self.now, self.collector)

    def collect(self, seconds: float = 2 * LONG, generation: int = 2) -> list[str]:
        """Collect garbage for *seconds*; return what that has led to."""
        self.collector.calls.clear()
        self.pauses("start", {"generation": generation})
        self.now += seconds
        self.pauses("stop", {"generation": generation})
        return list(self.collector.calls)

    def test_start(self) -> None:
        """What there is at the beginning is left alone."""
        self.assertEqual(["freeze"], self.collector.calls)

    def test_long(self) -> None:
        """What survives a long collection of all is left alone, so that the next one is shorter."""
        self.assertEqual(["freeze"], self.collect())

    def test_short(self) -> None:
        """A short collection leads to nothing: what it looked at is looked at again."""
        self.assertEqual([], self.collect(LONG / 2))

    def test_young(self) -> None:
        """Collections of the young are short anyway."""
        self.assertEqual([], self.collect(generation=1))

    def test_growth(self) -> None:
        """When memory has grown much, one collection looks at everything; then it must grow as much again."""
        self.pages = int(1000 * GROWTH)
        self.assertEqual(["unfreeze"], self.collect())
        self.assertEqual([], self.collect(LONG / 2))
        self.assertEqual(["freeze"], self.collect())
        self.pages = int(1000 * GROWTH**2)
        self.assertEqual(["unfreeze"], self.collect())
        self.pages = 1500
        self.assertEqual(["freeze"], self.collect())
        self.pages = int(1500 * GROWTH)
        self.assertEqual(["unfreeze"], self.collect())

    def test_left_alone(self) -> None:
        """While much is made that stays, nothing is collected; then it is left alone, also after an error."""
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.enable if gc.isenabled() else gc.disable)
        gc.enable()
        before = gc.get_freeze_count()
        with contextlib.suppress(ValueError), left_alone():
            self.assertFalse(gc.isenabled())
            raise ValueError
        self.assertTrue(gc.isenabled())
        self.assertGreater(gc.get_freeze_count(), before)

    def test_cpython(self) -> None:
        """A cycle that was left alone is found when everything is looked at."""

        class Cycle:
            """Refers to itself."""

            def __init__(self) -> None:
                self.own = self

        cycle: Any = Cycle()
        gone = weakref.ref(cycle)
        self.addCleanup(gc.unfreeze)
        pauses = Pauses(lambda: self.pages, lambda: self.now)
        del cycle
        gc.collect()
        self.assertIsNotNone(gone())
        self.pages *= 10
        pauses("start", {"generation": 2})
        self.now += 2 * LONG
        pauses("stop", {"generation": 2})
        gc.collect()
        self.assertIsNone(gone())
