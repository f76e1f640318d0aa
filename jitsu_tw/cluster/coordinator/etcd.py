"""
Many Jitsus that agree by etcd: its transactions, its leases, and a watch of everything below one prefix.

What is known is what the watch tells, in etcd's order, and nothing else: a claim or a put of ours has been done, as far
as this node is concerned, when the watch has told it. So every change is told once, whichever node made it; and whether
a claim is ours is asked of what is known, and of a clock (`session.Session`).

All requests, and the watch, go to one member of etcd. When that one fails, the next is tried, with the same lease;
whatever has changed meanwhile is found by comparing. Only if the lease's time is over by then, has contact been lost:
`IPeer.lost`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.defer import TimeoutError as NoAnswer
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.cluster.coordinator.gateway import AT_ONCE, Gateway, Stream
from jitsu_tw.cluster.coordinator.kv import Keys, Mirror, revision
from jitsu_tw.cluster.coordinator.link import Link
from jitsu_tw.cluster.coordinator.session import Session, boottime
from jitsu_tw.cluster.coordinator.space import Space
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import ICoordinator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jitsu_tw.cluster.coordinator.kv import Change
    from jitsu_tw.ijitsu import IPeer
    from jitsu_tw.settings import Cluster

#: Why contact is lost, if etcd can be asked.
ENDED: Final = "etcd has ended our lease"


class _Releases:
    """Claims of this node that it removes: others may have them before the watch tells that they are gone."""

    def __init__(self) -> None:
        self._keys: set[str] = set()  # those that are removed, or may have been
        self._under_way: dict[str, list[Deferred[None]]] = {}  # those that are being removed: waiting claims

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def begin(self, keys: Iterable[str]) -> None:
        """Count *keys* as lost."""
        for key in keys:
            self._keys.add(key)
            self._under_way.setdefault(key, [])

    def end(self, keys: Iterable[str]) -> None:
        """Continue the claims that wait for *keys*."""
        for key in keys:
            for waiting in self._under_way.pop(key, ()):
                waiting.callback(None)

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """Count *keys*, or all, as they are known again."""
        self._keys.difference_update(list(self._keys) if keys is None else keys)

    async def ended(self, key: str) -> None:
        """Wait until *key* is not being removed."""
        if key in self._under_way:
            waiting: Deferred[None] = Deferred()
            self._under_way[key].append(waiting)
            await waiting


@implementer(ICoordinator)
class EtcdCoordinator:
    """
    One of several nodes that share an etcd.

    A claim of this node that it claims again keeps its value. A put of more than `kv.OPERATIONS` facts is done in
    several steps, and if a claim is lost meanwhile, some are done. A put that fails with ClusterUnavailable may have
    been done all the same; a claim of this node that it was to remove counts as lost until it is claimed again.
    """

    log = Logger()
    alone = False

    def __init__(self, cluster: Cluster, reactor: Any, now: Callable[[], float] = boottime) -> None:
        """
        Begin without a connection.

        Raises:
            ConfigError: a certificate or a key cannot be read.
        """
        self.node = cluster.node
        self._reactor = reactor
        self._keys = Keys(cluster.prefix)
        self._gateway = Gateway(cluster, reactor)
        self._session = Session(self._gateway, self._keys, cluster.ttl, now)
        self._mirror = Mirror()
        self._releases = _Releases()
        self._space = Space(self._gateway, reactor)
        self._link = Link(
            self._gateway, self._session.every, reactor, self._connect, self._join, self._keep, self._disconnected
        )
        self._peer: IPeer | None = None
        self._joined = False
        self._why = "etcd has not been asked yet"
        self._turns = DeferredSemaphore(AT_ONCE)
        self._waiting: list[tuple[int, Deferred[None]]] = []  # for revisions
        self._deadline: Any = None

    @property
    def trouble(self) -> str:
        """Why etcd refuses all writes; empty while it does not."""
        return self._space.trouble

    @property
    def facts(self) -> Mapping[str, str]:
        """The facts that are known now, by key."""
        return self._mirror.facts

    # The interface.

    def start(self, peer: IPeer) -> None:
        """Begin to connect."""
        self._peer = peer
        self._link.begin()

    @deferred
    async def stop(self) -> None:
        """Give the lease back, if etcd can be asked, and disconnect."""
        self._peer, self._joined, self._why = None, False, "this node has stopped"
        self._link.end()
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._fire(lambda _: True, ClusterUnavailable(self._why))
        try:
            await self._session.end()
        except ClusterUnavailable as error:
            self.log.warn("what was claimed is free only in a while: {reason}", reason=str(error))
        await self._gateway.close()

    @deferred
    async def claim(self, key: str, value: str) -> bool:
        """Claim *key*."""
        await self._releases.ended(key)
        await self._commit(self._keys.claim(key, value, self._lease()))
        self._releases.forget([key])
        return self._is_ours(key)

    def holds(self, key: str) -> bool:
        """Return whether *key* is a claim of this node, now."""
        return self._joined and key not in self._releases and self._is_ours(key) and self._session.left() > 0

    def put(
        self, facts: Mapping[str, str | None], holding: str = "", expected: Mapping[str, str | None] | None = None
    ) -> Deferred[bool]:
        """Change facts."""
        released = {key for key, value in facts.items() if value is None and self._is_ours(key)}
        self._releases.begin(released)

        def ended(result: Any) -> Any:
            self._releases.end(released)
            return result

        return self._put(dict(facts), holding, dict(expected or {}), released).addBoth(ended)

    # Transactions.

    @deferred
    async def _put(
        self,
        facts: Mapping[str, str | None],
        holding: str,
        expected: Mapping[str, str | None],
        released: set[str],
    ) -> bool:
        lease = self._lease()
        ours = {key for key in facts if self._is_ours(key)}
        for transaction in self._keys.puts(facts, ours, lease, holding, expected):
            if not await self._commit(transaction):
                self._releases.forget(released)
                return False
        self._releases.forget(released)
        return True

    async def _commit(self, transaction: Mapping[str, Any]) -> bool:
        """Do it, and wait until the watch has told what it did; return whether its conditions held."""
        try:
            answer = await self._turns.run(self._gateway.ask, "kv/txn", transaction)
        except ClusterUnavailable as error:
            self._space.refused(error)
            self._link.wake()
            raise
        self._space.accepted()
        await self._reached(revision(answer))
        return bool(answer.get("succeeded"))

    def _lease(self) -> int:
        """Return the number of the lease, while claims can be proven."""
        if not self._joined or self._session.left() <= 0:
            if self._joined:  # this process was stopped: it joins anew now, not when the next renewal is due
                self._deadline.reset(0.0)
                self._link.wake()
            raise ClusterUnavailable(self._why)
        return self._session.lease

    def _is_ours(self, key: str) -> bool:
        return self._mirror.leases.get(key) == self._session.lease

    async def _reached(self, revision: int) -> None:
        """Wait until everything up to *revision* is known."""
        if revision <= self._mirror.revision:
            return
        waiting: Deferred[None] = Deferred()
        self._waiting.append((revision, waiting))
        try:
            await waiting.addTimeout(self._gateway.patience, self._reactor)
        except NoAnswer as error:
            self._waiting = [(wanted, other) for wanted, other in self._waiting if other is not waiting]
            reason = f"{self._gateway.url} does not tell what has changed"
            self._link.lose(reason)
            raise ClusterUnavailable(reason) from error

    def _fire(self, which: Callable[[int], bool], error: ClusterUnavailable | None = None) -> None:
        """Fire, or fail by *error*, the Deferreds that wait for these revisions."""
        due = [waiting for wanted, waiting in self._waiting if which(wanted)]
        self._waiting = [(wanted, waiting) for wanted, waiting in self._waiting if not which(wanted)]
        for waiting in due:
            if error is None:
                waiting.callback(None)
            else:
                waiting.errback(error)

    # The connection.

    @deferred
    async def _connect(self) -> Stream:
        """Get or renew a lease, learn all facts, by the present member of etcd, and return its watch."""
        if not await self._renew():
            self._releases.forget()
            await self._session.begin()
        known = await self._learn()
        return await self._gateway.watch(
            self._keys.watch(known + 1), self._told, lambda reason: self._link.lose(str(reason))
        )

    async def _keep(self) -> None:
        """Renew the lease, and look after etcd's space."""
        if not await self._renew():
            raise ClusterUnavailable(ENDED)
        self._join()  # again, if the lease's time was over for us though not for etcd
        await self._space.keep(self._mirror.revision)

    def _disconnected(self, reason: str) -> None:
        self._why = reason
        if self._peer is not None and self._deadline is None and self._link.failures == 1:
            self.log.warn("etcd cannot be asked yet: {reason}; trying again", reason=reason)

    async def _renew(self) -> bool:
        """Renew the lease; return whether there still is one."""
        renewed = await self._session.renew()
        if not renewed:
            self._part(ENDED)
        return renewed

    async def _learn(self) -> int:
        """Learn all facts as they are at one revision of etcd's, and return that."""
        page = await self._gateway.ask("kv/range", self._keys.page())
        known = int(page["header"]["revision"])
        facts = self._keys.facts(page)
        while page.get("more"):
            if not await self._renew():
                raise ClusterUnavailable(ENDED)
            page = await self._gateway.ask("kv/range", self._keys.page(facts[-1].key, known))
            facts += self._keys.facts(page)
        self._tell(self._mirror.replace(facts, known))
        return known

    def _told(self, result: Mapping[str, Any]) -> None:
        """Handle a result of the watch."""
        self._tell(self._mirror.learn(self._keys.events(result)))

    def _tell(self, changes: Iterable[Change]) -> None:
        """Tell the peer what has changed, then continue what has waited for it."""
        for key, value, before in changes:
            if self._peer is not None:
                self._call(self._peer.told, key, value, before)
        self._fire(lambda wanted: wanted <= self._mirror.revision)

    def _join(self) -> None:
        if self._joined or self._peer is None:
            return
        if self._session.left() <= 0:
            raise ClusterUnavailable("etcd was too slow for the time of a lease")
        self._joined = True
        self.log.info("agreeing with the others by etcd at {url}", url=self._gateway.url)
        self._deadline = self._reactor.callLater(max(0.0, self._session.left()), self._look)
        self._call(self._peer.connected)

    def _look(self) -> None:
        """Lose contact, if the lease's time is over."""
        left = self._session.left()
        if left > 0:
            self._deadline = self._reactor.callLater(left, self._look)
        else:
            self._part(self._why)

    def _part(self, reason: str) -> None:
        if not self._joined or self._peer is None:
            return
        self._joined, self._why = False, reason
        if self._deadline.active():
            self._deadline.cancel()
        self.log.error("cut off from the others: {reason}", reason=reason)
        self._call(self._peer.lost, reason)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call the peer, and log its exception."""
        try:
            function(*arguments)
        except Exception:  # noqa: BLE001
            # The facts, and the connection, do not depend on the peer.
            self.log.failure("telling of {arguments} failed", arguments=arguments)
