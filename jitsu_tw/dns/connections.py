"""
The open connections of a server, and which one gives way when there are too many. Pure.

Connections are counted by the client's network. When all places are taken, the network with the most gives one up, be
that the one that wants another: so each network gets its share, and a network that holds hundreds keeps nobody out. Of
a network's connections the one gives way that has been idle longest, or, where none is idle, that has waited longest:
waiting for a VM's boot keeps no place for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from jitsu_tw.shares import Heaviest

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

T = TypeVar("T", bound="Hashable")

#: How many connections there may be, and how many of them from one client network.
MOST_CONNECTIONS: Final = 400
MOST_FROM_ONE: Final = 100


class _Network(Generic[T]):
    """The connections of one client network: those that are idle, and those that wait, the oldest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self.idle: dict[T, None] = {}
        self.waiting: dict[T, None] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.idle) + len(self.waiting)

    @property
    def weight(self) -> int:
        """What decides which network gives way: of those with the same count, one that has an idle connection."""
        return 2 * self.count + bool(self.idle)

    def oldest(self) -> T:
        """Return the connection that gives way."""
        return next(iter(self.idle or self.waiting))


class Connections(Generic[T]):
    """All of them."""

    def __init__(self, most: int = MOST_CONNECTIONS, most_from_one: int = MOST_FROM_ONE) -> None:
        """Begin with none; let there be *most*, and *most_from_one* from one client network."""
        self._most, self._most_from_one = most, most_from_one
        self._networks: dict[bytes, _Network[T]] = {}
        self._whose: dict[T, bytes] = {}
        self._heaviest: Heaviest[bytes] = Heaviest()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._whose)

    def __iter__(self) -> Iterator[T]:
        """Iterate over those that there are now; they may be removed meanwhile."""
        return iter(list(self._whose))

    def add(self, one: T, whose: bytes) -> T | None:
        """Add *one*, idle, of the network *whose*; return the one that gives way to it, or None."""
        known = self._networks.get(whose)
        count = 0 if known is None else known.count
        gone = None
        if count >= self._most_from_one:
            gone = self._oldest(whose)
        elif len(self._whose) >= self._most:
            heaviest = self._heaviest.top()
            gone = self._oldest(whose if count + 1 > self._networks[heaviest].count else heaviest)
        if gone is not None:
            self.remove(gone)
        self._whose[one] = whose
        self._put(one, waits=False)
        return gone

    def touch(self, one: T, *, waits: bool) -> None:
        """Note that *one* has done something, and whether it waits for an answer now. One that is gone stays gone."""
        whose = self._whose.get(one)
        if whose is None:
            return
        known = self._networks[whose]
        had_idle = bool(known.idle)
        known.idle.pop(one, None)
        known.waiting.pop(one, None)
        (known.waiting if waits else known.idle)[one] = None
        if had_idle != bool(known.idle):  # else, as for nearly each query, the weight is what it was
            self._heaviest.move(whose, 2 * known.count + had_idle, known.weight)

    def remove(self, one: T) -> None:
        """Forget *one*, if it is known."""
        if one in self._whose:
            self._take(one)
            del self._whose[one]

    def _oldest(self, whose: bytes) -> T:
        return self._networks[whose].oldest()

    def _put(self, one: T, *, waits: bool) -> None:
        whose = self._whose[one]
        known = self._networks.setdefault(whose, _Network())
        old = known.weight
        (known.waiting if waits else known.idle)[one] = None
        self._heaviest.move(whose, old, known.weight)

    def _take(self, one: T) -> None:
        whose = self._whose[one]
        known = self._networks[whose]
        old = known.weight
        known.idle.pop(one, None)
        known.waiting.pop(one, None)
        self._heaviest.move(whose, old, known.weight)
        if not known.count:
            del self._networks[whose]
