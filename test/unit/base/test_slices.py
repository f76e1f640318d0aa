"""Long work in slices of time, on a clock on which each step takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.slices import SLICE, Pace, in_slices

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Steps that fit into a slice.
FIT = 4


class SlicesTests(SynchronousTestCase):
    """How much is done in one iteration of the reactor."""

    def setUp(self) -> None:
        """Begin with no step done."""
        self.clock = Clock()
        self.done = 0

    def step(self) -> None:
        """Take a quarter of a slice."""
        self.done += 1
        self.clock.rightNow += SLICE / FIT

    def steps(self, number: int) -> Iterator[None]:
        """Take as many steps."""
        for _ in range(number):
            self.step()
            yield

    def turn(self) -> int:
        """Iterate the reactor once; return how many steps that took."""
        before, due, self.clock.calls = self.done, self.clock.calls, []
        for call in due:
            call.func(*call.args, **call.kw)
        return self.done - before

    def test_work(self) -> None:
        """Work takes no more than a slice of each iteration, and ends."""
        ended = Deferred.fromCoroutine(in_slices(self.clock, self.steps(2 * FIT + 1)))
        self.assertEqual(FIT, self.done)
        self.assertNoResult(ended)
        self.assertEqual([FIT, 1, 0], [self.turn() for _ in range(3)])
        self.successResultOf(ended)

    def test_short_work(self) -> None:
        """Work that is shorter than a slice is done at once."""
        self.successResultOf(Deferred.fromCoroutine(in_slices(self.clock, self.steps(FIT - 1))))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_together(self) -> None:
        """Many coroutines together take no more than a slice of each iteration, and none is left out."""
        pace = Pace(self.clock)

        async def work() -> None:
            for _ in range(2):
                await pace.keep()
                self.step()

        ended = [Deferred.fromCoroutine(work()) for _ in range(2 * FIT)]
        self.assertEqual(FIT, self.done)
        self.assertEqual([FIT, FIT, FIT, 0], [self.turn() for _ in range(4)])
        for one in ended:
            self.successResultOf(one)
        self.assertEqual([], self.clock.getDelayedCalls())
