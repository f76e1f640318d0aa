"""
The open connections of a server, and which one is closed when there are too many. Pure.

Connections are counted by the client's network. When there are as many as allowed, the network with the most loses one,
even if it is the network of the new connection: so each network gets its share, and one with hundreds of connections
excludes no other. Of a network's connections, the one that has been idle longest is closed, or, where none is idle, the
one that has waited longest for an answer: a connection that waits for a VM's boot is not kept for ever.
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
    """The connections of one client network: idle ones, and those that wait for an answer; the oldest first."""

    def __init__(self) -> None:
        """Begin with no connection."""
        self.idle: dict[T, None] = {}
        self.waiting: dict[T, None] = {}

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self.idle) + len(self.waiting)

    @property
    def weight(self) -> int:
        """The rank of the network: the greatest loses a connection. Of equal counts, one with an idle connection."""
        return 2 * self.count + bool(self.idle)

    def oldest(self) -> T:
        """Return the connection that is closed first."""
        return next(iter(self.idle or self.waiting))


class Connections(Generic[T]):
    """All connections of a server."""

    def __init__(self, most: int = MOST_CONNECTIONS, most_from_one: int = MOST_FROM_ONE) -> None:
        """Begin with no connection; allow *most* in all, and *most_from_one* from one client network."""
        self._most, self._most_from_one = most, most_from_one
        self._networks: dict[bytes, _Network[T]] = {}
        self._network_of: dict[T, bytes] = {}
        self._heaviest: Heaviest[bytes] = Heaviest()

    def __len__(self) -> int:
        """Return how many connections there are."""
        return len(self._network_of)

    def __iter__(self) -> Iterator[T]:
        """Iterate over a copy: connections may be removed meanwhile."""
        return iter(list(self._network_of))

    def add(self, one: T, network: bytes) -> T | None:
        """Add *one*, an idle connection from *network*; return the one that must be closed for it, or None."""
        known = self._networks.get(network)
        count = 0 if known is None else known.count
        displaced = None
        if count >= self._most_from_one:
            displaced = self._oldest(network)
        elif len(self._network_of) >= self._most:
            heaviest = self._heaviest.top()
            displaced = self._oldest(network if count + 1 > self._networks[heaviest].count else heaviest)
        if displaced is not None:
            self.remove(displaced)
        self._network_of[one] = network
        self._put(one, waits=False)
        return displaced

    def touch(self, one: T, *, waits: bool) -> None:
        """Make *one* the youngest, idle or waiting for an answer; ignore a connection that was removed."""
        network = self._network_of.get(one)
        if network is None:
            return
        known = self._networks[network]
        had_idle = bool(known.idle)
        known.idle.pop(one, None)
        known.waiting.pop(one, None)
        (known.waiting if waits else known.idle)[one] = None
        if had_idle != bool(known.idle):  # else, as for nearly each query, the weight has not changed
            self._heaviest.move(network, 2 * known.count + had_idle, known.weight)

    def remove(self, one: T) -> None:
        """Remove *one*, if it is there."""
        if one in self._network_of:
            self._take(one)
            del self._network_of[one]

    def _oldest(self, network: bytes) -> T:
        return self._networks[network].oldest()

    def _put(self, one: T, *, waits: bool) -> None:
        network = self._network_of[one]
        known = self._networks.setdefault(network, _Network())
        old = known.weight
        (known.waiting if waits else known.idle)[one] = None
        self._heaviest.move(network, old, known.weight)

    def _take(self, one: T) -> None:
        network = self._network_of[one]
        known = self._networks[network]
        old = known.weight
        known.idle.pop(one, None)
        known.waiting.pop(one, None)
        self._heaviest.move(network, old, known.weight)
        if not known.count:
            del self._networks[network]
