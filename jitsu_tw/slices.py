"""Work for many clients in slices: a kind of client has `SLICE` seconds in each turn of the reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from jitsu_tw.rules.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from twisted.internet.interfaces import IDelayedCall

T = TypeVar("T", bound="Hashable")

#: How long all clients of one kind together are worked for in one turn of the reactor, in seconds.
SLICE: Final = 0.002


class Slices(Generic[T]):
    """The time of one kind of clients. What exceeds it waits; client networks take turns."""

    def __init__(self, reactor: Any, go_on: Callable[[T], None]) -> None:
        """Measure by *reactor*, an `IReactorTime`; *go_on* is called with a client whose turn has come."""
        self._reactor, self._go_on = reactor, go_on
        self._line: FairQueue[T] = FairQueue()
        self._turn: IDelayedCall | None = None
        self._until = 0.0

    def has_time(self, one: T, whose: Hashable, group: Hashable = None, *, share: bool = True) -> bool:
        """
        Return whether *one* may be worked for now; if not, *go_on* is called with it later.

        Args:
            one: the client.
            whose: its network, which takes turns with the others of *group*, and the groups with each other.
            group: see `FairQueue.add`.
            share: whether there is a rest of its share of the time; without, it goes on only while no other waits.
        """
        if self._turn is None or ((share or not self._line) and self._reactor.seconds() < self._until):
            return True
        self._line.add(one, whose, group)
        return False

    def begin(self) -> None:
        """Measure the time from now on, unless this turn of the reactor has begun."""
        if self._turn is None:
            self._until = self._reactor.seconds() + SLICE
            self._turn = self._reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        """Go on with those whose turn it is."""
        self._turn = None
        if self._line:
            self.begin()
        while self._line and self._reactor.seconds() < self._until:
            self._go_on(self._line.take())

    def drop(self, one: T) -> None:
        """Forget *one*, if it waits."""
        self._line.drop(one)
