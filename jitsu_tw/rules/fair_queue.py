"""
Who boots next. Pure.

Each client network has a line of its own, and the networks take turns: one that asks for a hundred VMs does not make
another, which asks for one, wait behind them. Networks are in groups, and the groups take turns too: questions that
name a thousand forged networks are all in the group of those that have proven nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Lines of waiters, by group and by whose they are."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._groups: dict[Hashable, dict[Hashable, deque[T]]] = {}
        self._place: dict[T, tuple[Hashable, Hashable]] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._place)

    def add(self, waiter: T, whose: Hashable, group: Hashable = None) -> None:
        """Put *waiter* at the end of the line of *whose*, which is in *group*, unless it waits already."""
        if waiter not in self._place:
            self._groups.setdefault(group, {}).setdefault(whose, deque()).append(waiter)
            self._place[waiter] = group, whose

    def drop(self, waiter: T) -> None:
        """Remove *waiter*, if it is in the queue."""
        if waiter in self._place:
            group, whose = self._place.pop(waiter)
            lines = self._groups[group]
            lines[whose].remove(waiter)
            if not lines[whose]:
                del lines[whose]
            if not lines:
                del self._groups[group]

    def take(self) -> T:
        """Return who is first in the line whose turn it is; that line, and its group, then wait for all others."""
        group, lines = next(iter(self._groups.items()))
        whose, line = next(iter(lines.items()))
        waiter = line.popleft()
        del self._place[waiter], lines[whose], self._groups[group]
        if line:
            lines[whose] = line
        if lines:
            self._groups[group] = lines
        return waiter
