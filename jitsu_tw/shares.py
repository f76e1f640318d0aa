"""
What one client can hold of what all clients share: a part of it, never all.

Clients are counted by network (`networks.network`), because a client that has one address usually has its neighbours'
too. Nothing here does I/O or reads a clock, and nothing costs more the more clients there are.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from jitsu_tw.networks import network, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from jitsu_tw.dns.wire import Source

T = TypeVar("T", bound="Hashable")

#: Clients that have not proven their addresses have together at most 1 / `UNPROVEN_PART` of all places: they may all be
#: one forger.
UNPROVEN_PART: Final = 2


class Places:
    """Places that clients take for a while."""

    def __init__(self, most: int, of_one: int) -> None:
        """Have *most* places, and *of_one* for one client network."""
        self._most, self._of_one = most, of_one
        self._taken: Counter[bytes] = Counter()
        self._all = self._unproven = 0

    def take(self, source: Source) -> bool:
        """Take a place for *source*; return whether there was one. Who has it calls `leave` once."""
        whose = network(packed(source.host))
        if self._all >= self._most or self._taken[whose] >= self._of_one:
            return False
        if not source.proven and self._unproven >= self._most // UNPROVEN_PART:
            return False
        self._taken[whose] += 1
        self._all += 1
        self._unproven += not source.proven
        return True

    def leave(self, source: Source) -> None:
        """Give the place of *source* back."""
        whose = network(packed(source.host))
        self._taken[whose] -= 1
        if not self._taken[whose]:
            del self._taken[whose]
        self._all -= 1
        self._unproven -= not source.proven


class Line(Generic[T]):
    """Places that clients wait for, networks in turn."""

    def __init__(self, most: int, of_one: int, give: Callable[[T], None]) -> None:
        """Have *most* places, and *of_one* for one client network; *give* is called with each client that gets one."""
        self._most, self._of_one, self._give = most, of_one, give
        self._taken: Counter[bytes] = Counter()
        self._has: dict[T, bytes] = {}
        self._waiting: dict[bytes, dict[T, None]] = {}

    def ask(self, one: T, whose: bytes) -> None:
        """Let *one*, of the network *whose*, have a place: now, or when there is one for it."""
        self._waiting.setdefault(whose, {})[one] = None
        self._look()

    def leave(self, one: T, whose: bytes) -> None:
        """Take the place of *one* back, or its place in the line, if it has either."""
        if self._has.pop(one, None) is not None:
            self._taken[whose] -= 1
            if not self._taken[whose]:
                del self._taken[whose]
        elif (line := self._waiting.get(whose)) is not None:
            line.pop(one, None)
            if not line:
                del self._waiting[whose]
        self._look()

    def _look(self) -> None:
        """Give the places that there are."""
        while len(self._has) < self._most:
            whose = next((each for each in self._waiting if self._taken[each] < self._of_one), None)
            if whose is None:
                return
            line = self._waiting.pop(whose)
            one = next(iter(line))
            del line[one]
            if line:
                self._waiting[whose] = line
            self._taken[whose] += 1
            self._has[one] = whose
            self._give(one)


class Heaviest(Generic[T]):
    """Which one of many has the most: the one that gives way when there is no room."""

    def __init__(self) -> None:
        """Begin with none."""
        self._by_weight: dict[int, dict[T, None]] = {}
        self._top = 0

    def move(self, one: T, old: int, new: int) -> None:
        """Note that *one*, whose weight was *old*, has the weight *new*; without weight it is forgotten."""
        if old:
            before = self._by_weight[old]
            del before[one]
            if not before:
                del self._by_weight[old]
        if new:
            self._by_weight.setdefault(new, {})[one] = None
        self._top = max(self._top, new)
        while self._top and self._top not in self._by_weight:  # no more steps down than there were up
            self._top -= 1

    def top(self) -> T:
        """
        Return one of those with the greatest weight.

        Raises:
            KeyError: there is none.
        """
        return next(iter(self._by_weight[self._top]))
