"""
Who boots next. Pure.

Each client network has a line of its own, and the networks take turns: one that asks for a hundred VMs does not make
another, which asks for one, wait behind them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")


class Turns(Generic[T]):
    """Lines of waiters, by whose they are."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._lines: dict[Hashable, deque[T]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._waiting

    def add(self, waiter: T, whose: Hashable) -> None:
        """Put *waiter* at the end of the line of *whose*."""
        self._lines.setdefault(whose, deque()).append(waiter)
        self._waiting += 1

    def take(self) -> T:
        """Return who is first in the line whose turn it is; that line then waits for all others."""
        whose, line = next(iter(self._lines.items()))
        waiter = line.popleft()
        self._waiting -= 1
        del self._lines[whose]
        if line:
            self._lines[whose] = line
        return waiter
