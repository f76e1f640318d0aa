"""
Several Jitsus in one process that agree: for tests and benches. It imitates `etcd`, on a clock that the test advances.

What one node does reaches the table after `latency` seconds, and the others as long after that. A node that is cut off
can do nothing, is told nothing, and loses its claims after `ttl` seconds; it counts them as lost a little sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from zope.interface import implementer

from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import ICoordinator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.ijitsu import IPeer

#: The share of `ttl` after which a node that is cut off counts its claims as lost.
SURE: Final = 0.9


class Table:
    """
    What the nodes agree on.

    Attributes:
        facts: by key.
        owners: of the facts that are claims.
        members: the nodes that are there.
    """

    def __init__(self, reactor: Any, ttl: float = 5.0, latency: float = 0.001) -> None:
        """Begin empty; a claim lasts *ttl* seconds after its owner was cut off, a message takes *latency* seconds."""
        self.reactor, self.ttl, self.latency = reactor, ttl, latency
        self.facts: dict[str, str] = {}
        self.owners: dict[str, MemoryCoordinator] = {}
        self.members: list[MemoryCoordinator] = []

    def change(self, facts: Mapping[str, str | None], owner: MemoryCoordinator | None = None) -> None:
        """Change facts, and tell all members."""
        for key, value in facts.items():
            if value is None:
                self.facts.pop(key, None)
                self.owners.pop(key, None)
            else:
                self.facts[key] = value
                if owner is not None:
                    self.owners[key] = owner
        for member in self.members:
            self.reactor.callLater(self.latency, member.change, dict(facts))

    def end(self, member: MemoryCoordinator) -> None:
        """Remove all claims of *member*."""
        self.change({key: None for key, owner in list(self.owners.items()) if owner is member})


@implementer(ICoordinator)
class MemoryCoordinator:
    """A node of those that share a table."""

    alone = False
    trouble = ""

    def __init__(self, node: str, table: Table) -> None:
        """Take the name of the node."""
        self.node, self._table = node, table
        self.facts: dict[str, str] = {}
        self._peer: IPeer | None = None
        self._reached = True
        self._sure_until = 0.0
        self._ends: list[Any] = []
        self._waiting: set[Deferred[bool]] = set()

    def start(self, peer: IPeer) -> None:
        """Join."""
        self._peer = peer
        self._table.members.append(self)
        self._table.reactor.callLater(self._table.latency, self._join)

    def _join(self) -> None:
        if self._peer is None or not self._reached:
            return
        before, self.facts = self.facts, dict(self._table.facts)
        self._sure_until = float("inf")
        for key in before.keys() | self.facts.keys():
            if before.get(key) != self.facts.get(key):
                self._peer.told(key, self.facts.get(key), before.get(key))
        self._peer.connected()

    def change(self, facts: Mapping[str, str | None]) -> None:
        """Take facts that have changed in the table, and tell the peer."""
        if self._peer is None or not self._reached or self._sure_until == 0:
            return
        before = {key: self.facts.get(key) for key in facts}
        for key, value in facts.items():
            if value is None:
                self.facts.pop(key, None)
            else:
                self.facts[key] = value
        for key, value in facts.items():
            if before[key] != value and self._peer is not None:
                self._peer.told(key, value, before[key])

    def stop(self) -> Deferred[None]:
        """Leave; messages that are under way arrive before that is over."""
        self._leave()
        self._table.end(self)
        for waiting in list(self._waiting):
            self._answer(waiting, ClusterUnavailable("this node has stopped"))
        return deferLater(self._table.reactor, 4 * self._table.latency)

    def _leave(self) -> None:
        self._peer = None
        if self in self._table.members:
            self._table.members.remove(self)

    def die(self) -> None:
        """End as `kill -9` does: the claims are free after `ttl` seconds."""
        self._leave()
        self._waiting.clear()
        self._table.reactor.callLater(self._table.ttl, self._table.end, self)

    def cut(self) -> None:
        """Lose the connection to the table."""
        now = self._table.reactor.seconds()
        self._reached, self._sure_until = False, now + SURE * self._table.ttl
        self._ends = [
            self._table.reactor.callLater(SURE * self._table.ttl, self._part),
            self._table.reactor.callLater(self._table.ttl, self._table.end, self),
        ]

    def _part(self) -> None:
        if self._peer is not None:
            self._peer.lost("etcd does not answer")

    def heal(self) -> None:
        """Connect to the table again."""
        self._reached = True
        for end in self._ends:
            if end.active():
                end.cancel()
        self._table.reactor.callLater(self._table.latency, self._join)

    def holds(self, key: str) -> bool:
        """Return whether *key* is a claim of this node."""
        sure = self._peer is not None and self._table.reactor.seconds() < self._sure_until
        return sure and self._table.owners.get(key) is self

    def claim(self, key: str, value: str) -> Deferred[bool]:
        """Claim *key*, if it is no fact yet."""
        def do() -> bool:
            if key not in self._table.facts:
                self._table.change({key: value}, self)
            return self._table.owners.get(key) is self

        return self._do(do)

    def put(
        self, facts: Mapping[str, str | None], holding: str = "", expected: Mapping[str, str | None] | None = None
    ) -> Deferred[bool]:
        """Change facts."""
        def do() -> bool:
            if holding and self._table.owners.get(holding) is not self:
                return False
            if any(self._table.facts.get(key) != value for key, value in (expected or {}).items()):
                return False
            self._table.change(facts)
            return True

        return self._do(do)

    def _do(self, step: Callable[[], bool]) -> Deferred[bool]:
        """Do *step* at the table, unless this node is cut off."""
        if not self._reached or self._peer is None:
            return fail(ClusterUnavailable("etcd does not answer"))
        done: Deferred[bool] = Deferred()
        self._waiting.add(done)

        def reach() -> None:
            if not self._reached or self._peer is None:
                self._answer(done, ClusterUnavailable("etcd does not answer"))
                return
            # The peer is told of the change before this Deferred fires.
            self._table.reactor.callLater(2 * self._table.latency, self._answer, done, step())

        self._table.reactor.callLater(self._table.latency, reach)
        return done

    def _answer(self, done: Deferred[bool], result: object) -> None:
        if done not in self._waiting:
            return  # it is dead, or has stopped
        self._waiting.remove(done)
        if isinstance(result, Exception):
            done.errback(result)
        else:
            done.callback(bool(result))
