"""The clients that wait for one activation of a VM, and until when. Nothing here knows what the VM does."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: At most this many askers are remembered; the one that asked first is forgotten first.
MOST_ASKERS: Final = 10_000


class Waiters:
    """
    The askers of one activation.

    Attributes:
        first: who asked first.
        since: when that was, on the reactor's clock.
        promised: a client has the VM's address already, or its packet is held: the VM is to come up for it.
    """

    def __init__(self, reactor: IReactorTime, answer_by: float, first: Hashable, since: float) -> None:
        """Begin without waiters; each is to wait for *answer_by* seconds at most."""
        self._reactor, self._answer_by = reactor, answer_by
        self.first, self.since = first, since
        self.promised = False
        self._told = 0
        self._due: OrderedDict[Hashable, float] = OrderedDict()
        self._waiting: dict[Deferred[bool], IDelayedCall | None] = {}
        self._unasked: set[Deferred[bool]] = set()

    def __bool__(self) -> bool:
        """Return whether a waiter is left."""
        return bool(self._waiting)

    def __contains__(self, asker: Hashable) -> bool:
        """Return whether *asker* has asked already; then it asks again because it got no answer yet."""
        return asker in self._due

    @property
    def are_owed(self) -> bool:
        """Whether the VM is to come up, for one that waits or has the address already."""
        return self.promised or bool(self._waiting)

    def is_client(self, waiter: Deferred[bool]) -> bool:
        """Return whether *waiter* is a client's, which gets an answer."""
        return waiter not in self._unasked

    @property
    def have_clients(self) -> bool:
        """Whether a client waits."""
        return len(self._waiting) > len(self._unasked)

    @property
    def clients(self) -> int:
        """How many clients have been answered, or wait for that."""
        return self._told + len(self._waiting) - len(self._unasked)

    def add(
        self, asker: Hashable, now: float, late: Callable[[Deferred[bool]], None] | None, *, is_client: bool = True
    ) -> Deferred[bool]:
        """
        Return a Deferred for *asker*, and call *late* with it when it is due; None: however long it takes.

        An asker that asks again is due when its first query is, at once if that has just passed: a resolver has closed
        the port of the question before (Unbound after 0.4 s), and its own client does not wait for ever. One that asks
        later than that asks anew. An asker that is no client, as a sender of packets, gets no answer that counts.
        """
        waiter: Deferred[bool] = Deferred(self.forget)
        self._forget_askers(now)
        due = self._due.setdefault(asker, now + self._answer_by)
        left = max(0.0, due - now)
        if not is_client:
            self._unasked.add(waiter)
        self._waiting[waiter] = None if late is None else self._reactor.callLater(left, late, waiter)
        return waiter

    def _forget_askers(self, now: float) -> None:
        """Forget the askers that ask anew when they ask again, and one more if there are too many."""
        while self._due and now > next(iter(self._due.values())) + self._answer_by:
            self._due.popitem(last=False)
        if len(self._due) >= MOST_ASKERS:
            self._due.popitem(last=False)

    def answer(self, waiter: Deferred[bool], *, ready: bool) -> None:
        """Answer one waiter; *ready*: the VM is."""
        self._told += self.is_client(waiter)
        self.forget(waiter)
        waiter.callback(ready)

    def answer_all(self, *, ready: bool) -> None:
        """Answer all waiters; *ready*: the VM is."""
        for waiter in list(self._waiting):
            if waiter in self._waiting:  # an earlier one may have stopped the VM, which fails the others
                self.answer(waiter, ready=ready)

    def fail(self, waiter: Deferred[bool], error: Exception) -> None:
        """Fail one waiter with *error*."""
        self._told += self.is_client(waiter)
        self.forget(waiter)
        waiter.errback(error)

    def fail_all(self, kind: type[Exception], message: str) -> None:
        """Fail all waiters, each with an error of its own."""
        for waiter in list(self._waiting):
            if waiter in self._waiting:  # an earlier one may have stopped the VM, which fails the others
                self.fail(waiter, kind(message))

    def forget(self, waiter: Deferred[bool]) -> None:
        """Remove *waiter*."""
        late = self._waiting.pop(waiter)
        self._unasked.discard(waiter)
        if late is not None and late.active():
            late.cancel()
