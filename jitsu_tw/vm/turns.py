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
        self._whose: dict[T, Hashable] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._whose)

    def add(self, waiter: T, whose: Hashable) -> None:
        """Put *waiter* at the end of the line of *whose*, unless it waits already."""
        if waiter not in self._whose:
            self._lines.setdefault(whose, deque()).append(waiter)
            self._whose[waiter] = whose

    def drop(self, waiter: T) -> None:
        """Let *waiter*, if it waits, wait no more."""
        if waiter in self._whose:
            whose = self._whose.pop(waiter)
            self._lines[whose].remove(waiter)
            if not self._lines[whose]:
                del self._lines[whose]

    def take(self) -> T:
        """Return who is first in the line whose turn it is; that line then waits for all others."""
        whose, line = next(iter(self._lines.items()))
        waiter = line.popleft()
        del self._whose[waiter], self._lines[whose]
        if line:
            self._lines[whose] = line
        return waiter
