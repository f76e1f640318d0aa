"""
Many Jitsus that agree by etcd: its transactions, its leases, and a watch of everything below one prefix.

What is known is what the watch tells, in etcd's order, and nothing else: a claim or a put of ours has been done, as far
as anybody here is concerned, when the watch has told it. So every change is told once, whoever made it; and whether a
claim is ours is asked of what is known, and of a clock (`session.Session`).

All that is asked, and the watch, is asked of one member of etcd. When that one fails, the next is tried, with the same
lease; whatever has changed meanwhile is found by comparing. Only if the lease's time is over by then, has contact been
lost: `IPeer.parted`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.defer import TimeoutError as NoAnswer
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.cluster.coordinator.gateway import AT_ONCE, Gateway, Refused, Stream
from jitsu_tw.cluster.coordinator.kv import Keys, Mirror, revision
from jitsu_tw.cluster.coordinator.session import Session, boottime
from jitsu_tw.coroutines import deferred, report, spawn
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import ICoordinator
from jitsu_tw.reconnect import Reconnector, steady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jitsu_tw.cluster.coordinator.kv import Change
    from jitsu_tw.ijitsu import IPeer
    from jitsu_tw.settings import Cluster

#: Seconds until etcd's members are tried again, when all have failed: at first and at most.
_PAUSE: Final = steady(0.1, 2.0)

#: Seconds of etcd's history that are kept. A watch that is begun anew needs none: everything is read before.
HISTORY: Final = 3600.0

#: Codes of gRPC by which etcd refuses writes until the operator acts: this user may not write, or the space quota is
#: used up (the alarm NOSPACE); and the operator's remedy for that.
FORBIDDEN: Final = 7
EXHAUSTED: Final = 8
MAKE_SPACE: Final = "compact and defragment etcd, then: etcdctl alarm disarm"

#: Why contact is lost, if etcd can be asked.
ENDED: Final = "etcd has ended our lease"


@implementer(ICoordinator)
class EtcdCoordinator:
    """
    One of several that share an etcd.

    A claim that was ours before keeps its value. A put of more than `kv.OPERATIONS` facts is done in as many steps as
    it takes, and if a claim is lost meanwhile, some are done. One that fails with ClusterUnavailable may have been done
    all the same; a claim of ours that it was to remove counts as lost from then on, until it is claimed again.
    """

    log = Logger()
    alone = False

    def __init__(self, cluster: Cluster, reactor: Any, now: Callable[[], float] = boottime) -> None:
        """
        Connect to nobody yet.

        Raises:
            ConfigError: a certificate or a key cannot be read.
        """
        self.node = cluster.node
        self.trouble = ""
        self._reactor = reactor
        self._keys = Keys(cluster.prefix)
        self._gateway = Gateway(cluster, reactor)
        self._session = Session(self._gateway, self._keys, cluster.ttl, now)
        self._mirror = Mirror()
        self._released: set[str] = set()  # claims of ours that we remove, or have tried to
        self._releasing: dict[str, list[Deferred[None]]] = {}  # of those, what is being removed: who waits for it
        self._reconnector: Reconnector[Stream] = Reconnector(
            "etcd", self._connect, self._connected, self._disconnected, Stream.stop, reactor, self._next_member
        )
        self._peer: IPeer | None = None
        self._joined = False
        self._complained = False  # in the log, of the present loss
        self._why = "etcd has not been asked yet"
        self._rounds = 0  # in which all members failed, one after the other
        self._stream: Stream | None = None
        self._pausing: Deferred[None] | None = None
        self._turns = DeferredSemaphore(AT_ONCE)
        self._waiting: list[tuple[int, Deferred[None]]] = []  # for revisions
        self._deadline: Any = None
        self._past = 0  # the revision that was known when history was last compacted
        self._compact_at = 0.0
        self._has_alarm = False

    @property
    def facts(self) -> Mapping[str, str]:
        """What is known now."""
        return self._mirror.facts

    # The interface.

    def start(self, peer: IPeer) -> None:
        """Begin to connect."""
        self._peer = peer
        self._reconnector.begin()

    @deferred
    async def stop(self) -> None:
        """Give the lease back, if etcd can be asked, and disconnect."""
        self._peer, self._joined, self._why = None, False, "this node has stopped"
        self._reconnector.end()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.stop()
        self._wake()
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
        """Make a fact that is ours alone."""
        if key in self._releasing:
            waiting: Deferred[None] = Deferred()
            self._releasing[key].append(waiting)
            await waiting
        await self._commit(self._keys.claim(key, value, self._lease()))
        self._released.discard(key)
        return self._is_ours(key)

    def holds(self, key: str) -> bool:
        """Return whether *key* is a claim of ours, now."""
        return self._joined and key not in self._released and self._is_ours(key) and self._session.left() > 0

    def put(self, facts: Mapping[str, str | None], holding: str = "") -> Deferred[bool]:
        """Change facts."""
        released = {key for key, value in facts.items() if value is None and self._is_ours(key)}
        # Somebody else may have these before the watch tells us that they are gone.
        self._released |= released
        for key in released:
            self._releasing.setdefault(key, [])
        return self._put(dict(facts), holding, released).addBoth(self._put_is_done, released)

    def _put_is_done(self, result: Any, released: Iterable[str]) -> Any:
        """Continue the claims that wait for what was removed."""
        for key in released:
            for waiting in self._releasing.pop(key, ()):
                waiting.callback(None)
        return result

    # Transactions.

    @deferred
    async def _put(self, facts: Mapping[str, str | None], holding: str, released: set[str]) -> bool:
        lease = self._lease()
        ours = {key for key in facts if self._is_ours(key)}
        for transaction in self._keys.puts(facts, ours, lease, holding):
            if not await self._commit(transaction):
                self._released -= released
                return False
        self._released -= released
        return True

    async def _commit(self, transaction: Mapping[str, Any]) -> bool:
        """Do it, and wait until the watch has told what it did; say whether its conditions held."""
        try:
            answer = await self._turns.run(lambda: Deferred.fromCoroutine(self._gateway.ask("kv/txn", transaction)))
        except ClusterUnavailable as error:
            if isinstance(error, Refused) and error.code in {FORBIDDEN, EXHAUSTED}:
                self._refuses(error)
            self._wake()  # to see whether etcd can be asked at all, and knows our lease
            raise
        self._takes_writes()
        await self._reached(revision(answer))
        return bool(answer.get("succeeded"))

    def _refuses(self, refused: Refused) -> None:
        """Note that etcd refuses writes, and log that when it begins."""
        self._has_alarm = refused.code == EXHAUSTED
        reason = f"{refused}; {MAKE_SPACE}" if self._has_alarm else str(refused)
        if not self.trouble:
            self.log.error("etcd refuses writes, so no VM can be claimed or started: {reason}", reason=reason)
        self.trouble = reason

    def _takes_writes(self) -> None:
        """Note that etcd accepts writes."""
        if self.trouble:
            self.log.info("etcd accepts writes again")
        self.trouble, self._has_alarm = "", False

    async def _check_alarm(self) -> None:
        """Ask whether etcd still has the alarm by which it refuses writes."""
        if self._has_alarm and not (await self._gateway.ask("maintenance/alarm", {"action": "GET"})).get("alarms"):
            self._takes_writes()

    async def _compact(self) -> None:
        """
        Remove etcd's history of more than `HISTORY` seconds ago; without that it grows up to etcd's quota.

        Only what is older than the last change of a fact is removed. Another node, or etcd by itself, may have done it.
        """
        now = self._reactor.seconds()
        if now < self._compact_at:
            return
        revision, self._past = self._past, self._mirror.revision
        self._compact_at = now + HISTORY
        if revision:
            with suppress(ClusterUnavailable):
                await self._gateway.ask("kv/compaction", {"revision": str(revision)})

    def _lease(self) -> int:
        """Return the lease, if there is agreement."""
        if not self._joined or self._session.left() <= 0:
            if self._joined:  # this process was stopped: it joins anew now, not when the next renewal is due
                self._deadline.reset(0.0)
                self._wake()
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
            self._lost(reason)
            raise ClusterUnavailable(reason) from error

    def _fire(self, which: Callable[[int], bool], error: ClusterUnavailable | None = None) -> None:
        """Tell those who wait for such revisions."""
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
        """Have a lease, and know all facts, by the present member of etcd; return its watch."""
        if not await self._renew():
            self._released.clear()
            await self._session.begin()
        known = await self._learn()
        return await self._gateway.watch(self._keys.watch(known + 1), self._told, self._break)

    def _connected(self, stream: Stream) -> None:
        self._stream = stream
        spawn(self.log, self._stay(stream), "etcd")

    async def _stay(self, stream: Stream) -> None:
        """Join, and renew the lease while there is *stream*."""
        try:
            self._join()
            while await self._lasts(stream):
                if not await self._renew():
                    raise ClusterUnavailable(ENDED)  # noqa: TRY301
                self._join()  # again, if the lease's time was over for us though not for etcd
                self._rounds = 0
                await self._check_alarm()
                await self._compact()
        except Exception as error:  # noqa: BLE001
            # Whatever it is, a node that has given up would stay apart for ever.
            if self._stream is stream:
                if not isinstance(error, ClusterUnavailable):
                    report(self.log, "etcd")
                self._lost(str(error) or repr(error))

    def _break(self, reason: ClusterUnavailable) -> None:
        """Handle the end of the watch."""
        self._lost(str(reason))

    def _lost(self, reason: str) -> None:
        """Leave the present member of etcd, because of *reason*."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.stop()
            self._reconnector.again(reason)
            self._wake()

    def _next_member(self, _failures: int) -> float:
        """Leave the present member of etcd for the next; return the seconds until that is asked."""
        if not self._gateway.next():
            return 0.0
        self._rounds += 1
        return _PAUSE(self._rounds)

    def _disconnected(self, reason: str) -> None:
        self._why = reason
        if self._peer is not None and not self._joined and not self._complained:
            self._complained = True
            self.log.warn("etcd cannot be asked yet: {reason}; trying again", reason=reason)

    async def _renew(self) -> bool:
        """Renew the lease; say whether there still is one."""
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
        """Learn what the watch tells."""
        self._tell(self._mirror.learn(self._keys.events(result)))

    def _tell(self, changes: Iterable[Change]) -> None:
        """Tell what has changed, then those who have waited for it."""
        for key, value, before in changes:
            if self._peer is not None:
                self._call(self._peer.told, key, value, before)
        self._fire(lambda wanted: wanted <= self._mirror.revision)

    def _join(self) -> None:
        if self._joined or self._peer is None:
            return
        if self._session.left() <= 0:
            raise ClusterUnavailable("etcd was too slow for the time of a lease")
        self._joined = self._complained = True
        self.log.info("agreeing with the others by etcd at {url}", url=self._gateway.url)
        self._deadline = self._reactor.callLater(max(0.0, self._session.left()), self._look)
        self._call(self._peer.joined)

    def _look(self) -> None:
        """See whether the lease's time is over."""
        left = self._session.left()
        if left > 0:
            self._deadline = self._reactor.callLater(left, self._look)
        else:
            self._part(self._why)

    def _part(self, reason: str) -> None:
        if not self._joined or self._peer is None:
            return
        self._joined, self._why, self._complained = False, reason, True
        if self._deadline.active():
            self._deadline.cancel()
        self.log.error("cut off from the others: {reason}", reason=reason)
        self._call(self._peer.parted, reason)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Tell the peer. Whatever it fails by is its own matter."""
        try:
            function(*arguments)
        except Exception:  # noqa: BLE001
            # What we know, and whether we are connected, is the same however the peer takes it.
            self.log.failure("telling of {arguments} failed", arguments=arguments)

    async def _lasts(self, stream: Stream) -> bool:
        """Wait until the lease is to be renewed, or until woken; return whether *stream* is there still."""
        if self._stream is stream:
            self._pausing = pausing = Deferred[None]()
            await pausing.addTimeout(self._session.every, self._reactor, onTimeoutCancel=lambda *_: None)
        return self._stream is stream

    def _wake(self) -> None:
        if self._pausing is not None and not self._pausing.called:
            self._pausing.callback(None)
