"""
Bound what one client network can take of a resource that all clients share: a part of it, never all.

Clients are counted by network (`networks.network`), because a client with one address usually has its neighbours, too.
Nothing here does I/O or reads a clock, and the cost of each call does not grow with the number of clients.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from jitsu_tw.networks import network

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from jitsu_tw.dns.wire import Source

T = TypeVar("T", bound="Hashable")

#: Clients with unproven addresses have together at most 1 / `UNPROVEN_PART` of all slots: they may all be one attacker.
UNPROVEN_PART: Final = 2


class Places:
    """Slots that clients take for a while."""

    def __init__(self, most: int, of_one: int) -> None:
        """Make *most* slots, of which one client network can take *of_one*."""
        self._most, self._of_one = most, of_one
        self._taken: Counter[bytes] = Counter()
        self._all = self._unproven = 0

    def take(self, source: Source) -> bool:
        """Take a slot for *source*; return whether one was free. If so, the caller calls `leave` once."""
        client = network(source.address)
        if self._all >= self._most or self._taken[client] >= self._of_one:
            return False
        if not source.proven and self._unproven >= self._most // UNPROVEN_PART:
            return False
        self._taken[client] += 1
        self._all += 1
        self._unproven += not source.proven
        return True

    def leave(self, source: Source) -> None:
        """Free the slot of *source*."""
        client = network(source.address)
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
        self._all -= 1
        self._unproven -= not source.proven


class Line(Generic[T]):
    """Slots for which clients wait in a queue, one network after the other."""

    def __init__(self, most: int, of_one: int, give: Callable[[T], None]) -> None:
        """Make *most* slots, *of_one* for one client network; *give* is called with each client that gets one."""
        self._most, self._of_one, self._give = most, of_one, give
        self._taken: Counter[bytes] = Counter()
        self._holders: dict[T, bytes] = {}
        self._waiting: dict[bytes, dict[T, None]] = {}

    def ask(self, one: T, client: bytes) -> None:
        """Queue *one*, of the network *client*, for a slot, which it may get at once."""
        self._waiting.setdefault(client, {})[one] = None
        self._give_slots()

    def leave(self, one: T, client: bytes) -> None:
        """Free the slot of *one*, or remove it from the queue."""
        if self._holders.pop(one, None) is not None:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
        elif (queue := self._waiting.get(client)) is not None:
            queue.pop(one, None)
            if not queue:
                del self._waiting[client]
        self._give_slots()

    def _give_slots(self) -> None:
        """Give the free slots to waiting clients."""
        while len(self._holders) < self._most:
            client = next((each for each in self._waiting if self._taken[each] < self._of_one), None)
            if client is None:
                return
            queue = self._waiting.pop(client)
            one = next(iter(queue))
            del queue[one]
            if queue:
                self._waiting[client] = queue
            self._taken[client] += 1
            self._holders[one] = client
            self._give(one)


class Heaviest(Generic[T]):
    """Finds the heaviest of many items: the one that loses something when a resource is used up."""

    def __init__(self) -> None:
        """Begin with no item."""
        self._by_weight: dict[int, dict[T, None]] = {}
        self._top = 0

    def move(self, one: T, old: int, new: int) -> None:
        """Change the weight of *one* from *old* to *new*; 0 stands for an item that is not there."""
        if old:
            before = self._by_weight[old]
            del before[one]
            if not before:
                del self._by_weight[old]
        if new:
            self._by_weight.setdefault(new, {})[one] = None
        self._top = max(self._top, new)
        while self._top and self._top not in self._by_weight:  # as many steps down as there were up, at most
            self._top -= 1

    def top(self) -> T:
        """
        Return one of the items with the greatest weight.

        Raises:
            KeyError: there is no item.
        """
        return next(iter(self._by_weight[self._top]))
