"""What one client may have of something scarce, as of connections, each of which takes a file descriptor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from jitsu_tw.networks import network, packed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Shares(Generic[T]):
    """
    Things that clients have, bounded for each client network and altogether.

    Where all are taken, the network that has the most loses the one that it has had longest, so that a client of
    another network gets in.
    """

    def __init__(self, most: int, most_of_one: int, give_up: Callable[[T], object]) -> None:
        """Let there be *most* things, *most_of_one* for one network; *give_up* ends one of them."""
        self._most, self._most_of_one, self._give_up = most, most_of_one, give_up
        self._owners: dict[T, bytes] = {}
        self._owned: dict[bytes, dict[T, None]] = {}

    def take(self, thing: T, peer: object) -> bool:
        """Let the client at *peer*, an address of Twisted's, have *thing*; return False if it has its share already."""
        owner = _owner(peer)
        has = len(self._owned.get(owner, ()))
        if has >= self._most_of_one:
            return False
        if len(self._owners) >= self._most:
            richest = max(self._owned.values(), key=len)
            if len(richest) <= has + 1:
                return False
            longest = next(iter(richest))
            self.give_back(longest)
            self._give_up(longest)
        self._owners[thing] = owner
        self._owned.setdefault(owner, {})[thing] = None
        return True

    def give_back(self, thing: T) -> None:
        """Let others have what *thing* took; it may have been given back before."""
        owner = self._owners.pop(thing, None)
        if owner is not None:
            del self._owned[owner][thing]
            if not self._owned[owner]:
                del self._owned[owner]


def _owner(peer: object) -> bytes:
    """Return the network of an address; those without one, on UNIX sockets, are one owner."""
    try:
        return network(packed(getattr(peer, "host", "")))
    except ValueError:
        return b""
