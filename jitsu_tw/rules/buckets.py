"""Budgets of client networks, each a bucket that is refilled evenly within a minute. Pure: the time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

#: The most networks whose budgets are remembered.
MOST_NETWORKS: Final = 65536

#: In how many seconds an empty bucket is full again.
_MINUTE: Final = 60.0

#: What sums of floats may be wrong by, in seconds.
_SLACK: Final = 1e-6


class Buckets:
    """
    A bucket for each client network, from which it spends.

    There is a bound on their number. A bucket that is dropped because of the bound counts as full.
    """

    def __init__(self, per_minute: int, most: int = MOST_NETWORKS) -> None:
        """Begin with full buckets of *per_minute* things, for *most* networks; with 0, there is no limit."""
        self._per_minute, self._most = per_minute, most
        #: When each network's bucket will be full again, the one that was longest not spent from first.
        self._full_at: OrderedDict[bytes, float] = OrderedDict()

    def has(self, whose: bytes, now: float, most: int | None = None) -> bool:
        """Return whether the network *whose* may spend one more thing, and has spent at most *most* things then."""
        if not self._per_minute:
            return True
        one = _MINUTE / self._per_minute
        left = self._full_at.get(whose, now) - now
        return max(left, 0.0) + one <= (self._per_minute if most is None else most) * one + _SLACK

    def spend(self, whose: bytes, now: float) -> None:
        """Take one thing from the bucket of the network *whose*."""
        if not self._per_minute:
            return
        self._full_at[whose] = max(self._full_at.get(whose, now), now) + _MINUTE / self._per_minute
        self._full_at.move_to_end(whose)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """
        Drop at most two buckets that are full, and one more if there are too many.

        One is added at a time, so dropping two keeps up, and no call pays for many.
        """
        for _ in range(2):
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now:
                break
            del self._full_at[oldest]
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
