"""
Work in slices of time, so that the reactor reads its sockets in between.

One kind of clients (`Slices`), or one long piece of work (`in_slices`), has `SLICE` seconds of each iteration of the
reactor.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from jitsu_tw.rules.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from twisted.internet.interfaces import IDelayedCall

T = TypeVar("T", bound="Hashable")

#: Seconds for which all clients of one kind together are served in one iteration of the reactor.
SLICE: Final = 0.002


async def in_slices(reactor: Any, work: Iterable[object]) -> None:
    """
    Do long work, `SLICE` seconds of it in each iteration of the reactor.

    Args:
        reactor: an `IReactorTime`.
        work: is done by iterating over it; each step is short.
    """
    until = reactor.seconds() + SLICE
    for _ in work:
        if reactor.seconds() >= until:
            await deferLater(reactor, 0.0)
            until = reactor.seconds() + SLICE


class Pace:
    """The time of work that many coroutines do together, each with many short steps."""

    def __init__(self, reactor: Any) -> None:
        """Measure by *reactor*, an `IReactorTime`; the work begins now."""
        self._reactor = reactor
        self._until = reactor.seconds() + SLICE
        self._waiting: deque[Deferred[None]] = deque()

    async def keep(self) -> None:
        """Wait, before a step, until there is time for it."""
        if not self._waiting:
            if self._reactor.seconds() < self._until:
                return
            self._reactor.callLater(0, self._go_on)
        waits: Deferred[None] = Deferred()
        self._waiting.append(waits)
        await waits

    def _go_on(self) -> None:
        """Go on with those that wait, in a new iteration of the reactor."""
        self._until = self._reactor.seconds() + SLICE
        waiting, self._waiting = self._waiting, deque()
        while waiting and self._reactor.seconds() < self._until:
            waiting.popleft().callback(None)
        if waiting and not self._waiting:
            self._reactor.callLater(0, self._go_on)
        self._waiting += waiting


class Slices(Generic[T]):
    """The time of one kind of clients. Work beyond it waits in a queue, one client network after the other."""

    def __init__(self, reactor: Any, go_on: Callable[[T], None]) -> None:
        """Measure by *reactor*, an `IReactorTime`; *go_on* is called to serve a client that has waited."""
        self._reactor, self._go_on = reactor, go_on
        self._queue: FairQueue[T] = FairQueue()
        self._next: IDelayedCall | None = None
        self._until = 0.0

    def has_time(self, one: T, whose: Hashable, group: Hashable = None, *, share: bool = True) -> bool:
        """
        Return whether *one* may be served now; if not, *go_on* is called with it later.

        Args:
            one: the client.
            whose: its network; the networks of a group are served one after the other, and so are the groups.
            group: see `FairQueue.add`.
            share: whether *one* has not used up its share; if it has, it is served only while no other client waits.
        """
        if self._next is None or ((share or not self._queue) and self._reactor.seconds() < self._until):
            return True
        self._queue.add(one, whose, group)
        return False

    def begin(self) -> None:
        """Measure the time from now on, unless that has begun in this iteration of the reactor."""
        if self._next is None:
            self._until = self._reactor.seconds() + SLICE
            self._next = self._reactor.callLater(0, self._iterate)

    def _iterate(self) -> None:
        """Serve the clients that wait, in a new iteration of the reactor."""
        self._next = None
        if self._queue:
            self.begin()
        while self._queue and self._reactor.seconds() < self._until:
            self._go_on(self._queue.take())

    def drop(self, one: T) -> None:
        """Remove *one* from the queue, if it waits."""
        self._queue.drop(one)
