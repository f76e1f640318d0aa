"""The coordinators: one process, and etcd, which is a real one."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import itertools
import json
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogLevel, capturedLogs, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from demo.lab import free_port
from jitsu_tw.cluster.coordinator import coordinator_for, kv, space
from jitsu_tw.cluster.coordinator.etcd import EtcdCoordinator
from jitsu_tw.cluster.coordinator.gateway import AT_ONCE, Gateway
from jitsu_tw.cluster.coordinator.kv import Fact, Keys, Mirror, encoded
from jitsu_tw.cluster.coordinator.local import LocalCoordinator
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.cluster.coordinator.session import Session, boottime
from jitsu_tw.errors import ClusterUnavailable, ConfigError
from jitsu_tw.settings import Cluster
from test.contract import coordinators as contract_coordinators
from test.support import BoundedClock
from test.support.etcds import Etcds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Seconds of the tests' leases, whose shortest is one.
TTL = 1.0

#: What the tests' etcd takes for a password.
SECRET = "guess"  # noqa: S105

prefixes = (f"/jitsu-{number}" for number in itertools.count())


@functools.cache
def shared() -> Etcds:
    """Return an etcd that runs until the tests end; each test has a prefix of its own in it."""
    etcds = Etcds()
    etcds.start_all()
    atexit.register(etcds.close)
    return etcds


class Forwarder(ProxyFactory):
    """A way to an etcd that can be interrupted."""

    noisy = False

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        """Lead from an *address* of loopback's to a *port* there."""
        super().__init__("127.0.0.1", port)
        self.protocol = _Forwarding
        self.deaf = False
        self.open: set[_Forwarding] = set()
        self.address, self.listen = address, free_port()
        self._listening: Any = None
        self.mend()

    @property
    def url(self) -> str:
        """Where it begins."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.listen}"

    def silence(self) -> None:
        """Take everything from now on, and pass on nothing, as a network does that is down."""
        self.deaf = True
        for end in self.open:
            for side in (end, end.peer):
                transport: Any = side and side.transport
                if transport is not None:
                    transport.pauseProducing()

    def cut(self) -> Any:
        """End all connections, and accept none."""
        for end in list(self.open):
            end.transport.abortConnection()
        listening, self._listening = self._listening, None
        return listening.stopListening() if listening else None

    def mend(self) -> None:
        """Pass everything on. Connections that were silent are gone."""
        self.deaf = False
        for end in list(self.open):
            end.transport.abortConnection()
        if self._listening is None:
            factory: Any = self
            self._listening = reactor.listenTCP(self.listen, factory, interface=self.address)


class _Forwarding(ProxyServer):
    factory: Forwarder
    transport: Any

    def connectionMade(self) -> None:  # noqa: N802
        """Connect to where it leads."""
        self.factory.open.add(self)
        if self.factory.deaf:
            self.transport.pauseProducing()
        else:
            super().connectionMade()

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802
        """End the other side."""
        self.factory.open.discard(self)
        super().connectionLost(reason)


def sleep(seconds: float) -> Deferred[None]:
    """Wait so long."""
    return deferLater(reactor, seconds)


class LocalContractTests(contract_coordinators.CoordinatorContract):
    """The contract, for one process."""

    def make(self) -> LocalCoordinator:
        """Make one."""
        return LocalCoordinator()


class MemoryContractTests(contract_coordinators.CoordinatorContract):
    """The contract, for what imitates etcd in tests."""

    def make(self) -> MemoryCoordinator:
        """Make one at a table of its own."""
        return MemoryCoordinator("me", Table(reactor))


class EtcdContractTests(contract_coordinators.CoordinatorContract):
    """The contract, on a real etcd."""

    def make(self) -> EtcdCoordinator:
        """Make one with a prefix of its own."""
        return EtcdCoordinator(Cluster(shared().urls, "me", next(prefixes), TTL), reactor)


class LocalTests(SynchronousTestCase):
    """What only one process has."""

    def test_default(self) -> None:
        """Without a cluster, there are no others; everything has been done when the call returns."""
        coordinator = coordinator_for(None, reactor)
        self.assertTrue(coordinator.alone)
        coordinator.start(contract_coordinators.Peer())
        self.assertTrue(self.successResultOf(coordinator.claim("a", "1")))
        self.assertTrue(self.successResultOf(coordinator.put({"b": "1"})))
        self.successResultOf(coordinator.stop())
        self.assertEqual({"b": "1"}, coordinator.facts)

    def test_pays_nothing(self) -> None:
        """One process alone does not import treq."""
        program = (
            "import sys; from jitsu_tw.cluster.coordinator import coordinator_for; coordinator_for(None, None);"
            "sys.exit('treq' in sys.modules or 'twisted.web' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", program], check=True)


class EtcdCase(TestCase):
    """Nodes on an etcd."""

    timeout = 40

    def setUp(self) -> None:
        """Take a prefix."""
        self.prefix = next(prefixes)

    async def node(self, *urls: str, join: bool = True, now: Callable[[], float] = boottime, **changes: Any) -> Any:
        """Return a coordinator that has joined, with its peer."""
        name = f"node{next(prefixes)}"
        cluster = Cluster(**{"etcd": urls or shared().urls, "node": name, "prefix": self.prefix, "ttl": TTL, **changes})
        coordinator: Any = EtcdCoordinator(cluster, reactor, now)
        coordinator.peer = contract_coordinators.Peer()
        coordinator.start(coordinator.peer)
        self.addCleanup(coordinator.stop)
        if join:
            await coordinator.peer.until(lambda: coordinator.peer.connections)
        return coordinator

    def forwarder(self, port: int | None = None, **options: Any) -> Forwarder:
        """Return a way to the shared etcd, or to another."""
        forwarder = Forwarder(port or shared().members[0].port, **options)

        async def end() -> None:
            await forwarder.cut()
            while forwarder.open:
                await sleep(0.01)

        self.addCleanup(lambda: Deferred.fromCoroutine(end()))
        return forwarder

    def etcds(self, *arguments: Any, **options: Any) -> Etcds:
        """Return an etcd of this test's own, which runs."""
        etcds = Etcds(*arguments, **options)
        self.addCleanup(etcds.close)
        etcds.start_all()
        return etcds

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end)
            await sleep(0.01)

    def logged(self) -> list[str]:
        """Return where what is logged will be."""
        lines: list[str] = []

        @implementer(ILogObserver)
        def log(event: Any) -> None:
            if event["log_namespace"].startswith("jitsu_tw.cluster.coordinator"):
                lines.append(event["log_format"].format(**event))
                self.assertIn(event["log_level"], (LogLevel.info, LogLevel.warn, LogLevel.error))

        globalLogPublisher.addObserver(log)
        self.addCleanup(globalLogPublisher.removeObserver, log)
        return lines


    def assert_silent(self, logged: Sequence[Mapping[str, Any]]) -> None:
        """Check that connections were not logged one by one."""
        self.assertEqual([], [event for event in logged if "HTTP11" in repr(event.get("factory"))])


class SharingTests(EtcdCase):
    """Several nodes, and an etcd that is well."""

    async def test_one_of_many(self) -> None:
        """Of those that claim the same at the same time, one gets it, and all know who."""
        nodes = [await self.node() for _ in range(3)]
        keys = [f"claims/{number}" for number in range(20)]
        for key in keys:
            got = await gatherResults([node.claim(key, node.node) for node in nodes])
            self.assertEqual(1, sum(got))
            owner = nodes[got.index(True)]
            self.assertEqual([node is owner for node in nodes], [node.holds(key) for node in nodes])
            self.assertEqual({owner.node}, {node.facts[key] for node in nodes})

    async def test_one_of_many_creates(self) -> None:
        """Of several that create a fact at once, one does; the others know then what it is."""
        nodes = [await self.node() for _ in range(3)]
        for number in range(10):
            key = f"made/{number}"
            puts = [node.put({key: f"{index}"}, expected={key: None}) for index, node in enumerate(nodes)]
            for node, put in zip(nodes, puts, strict=True):
                put.addCallback(lambda done, node=node, key=key: (done, node.facts[key]))
            got = await gatherResults(puts)
            winner = [done for done, _ in got].index(True)
            self.assertEqual([(index == winner, f"{winner}") for index in range(3)], got)

    async def test_told(self) -> None:
        """What one changes, the others are told, once and in the same order; who comes later finds it."""
        first, second = await self.node(), await self.node()
        for number in range(10):
            await (first, second)[number % 2].put({"a": str(number), f"b/{number}": "1"})
        for node in (first, second):
            await node.peer.until(lambda node=node: len(node.peer.changes) == 20)
        self.assertEqual(first.peer.changes, second.peer.changes)
        third = await self.node()
        self.assertEqual(first.facts, third.facts)
        self.assertEqual(first.facts, {key: value for key, value, _ in third.peer.changes})

    async def test_stop_frees(self) -> None:
        """What a node that is stopped had claimed is free at once."""
        first, second = await self.node(ttl=30), await self.node(ttl=30)
        await first.claim("a", "1")
        self.assertFalse(await second.claim("a", "2"))
        await first.stop()
        self.assertTrue(await second.claim("a", "2"))
        await first.stop()
        await self.assertFailure(first.claim("a", "1"), ClusterUnavailable)

    async def test_given_up(self) -> None:
        """A claim is not held any more from the moment at which it is given up; a put without it is refused then."""
        first, second = await self.node(), await self.node()
        await first.claim("a", "1")
        giving = first.put({"a": None})
        self.assertFalse(first.holds("a"))
        self.assertTrue(await giving)
        self.assertTrue(await second.claim("a", "2"))
        self.assertFalse(await first.put({"b": "1"}, holding="a"))
        self.assertTrue(await second.put({"b": "2"}, holding="a"))

    async def test_given_up_and_claimed(self) -> None:
        """Who claims what is just being given up gets it anew, after that; it is another's if that one is quicker."""
        first, second = await self.node(), await self.node()
        for number in range(20):
            await first.claim("a", "1")
            giving, again = first.put({"a": None}), first.claim("a", "2")
            other = second.claim("a", "3") if number % 2 else succeed(False)  # noqa: FBT003
            self.assertFalse(first.holds("a"))
            gave, ours, theirs = await gatherResults([giving, again, other])
            self.assertTrue(gave)
            self.assertEqual(1, ours + theirs)
            self.assertEqual((ours, theirs), (first.holds("a"), second.holds("a")))
            self.assertEqual("2" if ours else "3", first.facts["a"])
            await (first if ours else second).put({"a": None})

    async def test_not_given_up(self) -> None:
        """A claim that was to be given up, but for want of another was not, is held."""
        node = await self.node()
        await node.claim("a", "1")
        self.assertFalse(await node.put({"a": None}, holding="b"))
        self.assertTrue(node.holds("a"))

    async def test_pages(self) -> None:
        """Facts that are too many for one answer are all found."""
        first = await self.node()
        facts = {f"f/{number}": "x" for number in range(10)}
        await first.put(facts)
        with patch.object(kv, "PAGE", 3):
            second = await self.node()
        self.assertEqual(facts, second.facts)

    async def test_neighbours(self) -> None:
        """Keys of other prefixes are not ours, even if they begin alike."""
        first = await self.node()
        self.prefix += "x"
        second = await self.node()
        await second.put({"a": "1"})
        await first.put({"b": "1"})
        self.assertEqual(({"b": "1"}, {"a": "1"}), (first.facts, second.facts))

    async def test_peer_that_fails(self) -> None:
        """A peer that raises is logged, and harms nobody."""
        node = await self.node()
        node.peer.told = lambda *_: 1 / 0
        self.assertTrue(await node.put({"a": "1"}))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual({"a": "1"}, node.facts)


    async def test_ipv6(self) -> None:
        """An etcd may have an IPv6 address, and its URL a slash at its end."""
        node = await self.node(f"{self.forwarder(address='::1').url}/")
        self.assertTrue(await node.claim("a", "1"))

    async def test_many_at_once(self) -> None:
        """Hundreds of claims at once are all made, over a few connections, and the lease is renewed meanwhile."""
        way = self.forwarder()
        with capturedLogs() as logged:
            node = await self.node(way.url, ttl=6)  # on a busy machine, 500 answers take more than the usual second
            got = await gatherResults([node.claim(f"claims/{number}", "") for number in range(500)])
        self.assertTrue(all(got))
        self.assert_silent(logged)
        self.assertLessEqual(len(way.open), AT_ONCE + 2)
        self.assertEqual(["connected"], node.peer.story)

    async def test_stopped_when_told(self) -> None:
        """A peer may stop the node when it is told that it has joined, or of a fact, and hears no more."""
        first = await self.node()
        await first.put({"a": "1", "b": "1"})
        second = await self.node(join=False)
        second.peer.told = lambda *_: second.stop()
        await self.until(lambda: second.facts)
        await second.stop()
        third = await self.node(join=False)
        third.peer.connected = third.stop
        await self.until(lambda: third.facts)
        await third.stop()
        self.assertEqual(([], []), (second.peer.story, third.peer.story))
        self.assertEqual(2, len(third.peer.changes))


class SpaceTests(EtcdCase):
    """Etcd's history, and its quota."""

    async def test_compacts(self) -> None:
        """History that is older than `HISTORY` is removed, and agreement goes on; a node that comes later joins."""
        self.patch(space, "HISTORY", 0.0)
        etcds = self.etcds()
        node = await self.node(*etcds.urls)
        await node.put({"a": "1"})
        old = node._mirror.revision
        await node.put({"a": "2"})

        def compacted() -> bool:
            request = {"key": encoded("a"), "revision": str(old - 1)}
            try:
                etcds.ask(0, "kv/range", **request)
            except urllib.error.HTTPError as error:
                return b"compacted" in error.read()
            return False

        await self.until(compacted)
        await node.put({"a": "3"})
        self.assertEqual({"a": "3"}, dict((await self.node(*etcds.urls)).facts))
        self.assertEqual(["connected"], node.peer.story)

    async def test_compacted_by_others(self) -> None:
        """A watch that etcd ends because its revision has been compacted is begun anew, and what was missed is told."""
        etcds = self.etcds()
        way = self.forwarder(etcds.members[0].port)
        node = await self.node(way.url)
        other = await self.node(*etcds.urls)
        watch = node._gateway.watch

        async def late(request: Any, *more: Any) -> Any:
            """Begin to watch when what it is to begin with has been compacted."""
            self.patch(node._gateway, "watch", watch)
            await other.put({"a": "2"})
            await other.put({"a": "3"})
            etcds.ask(0, "kv/compaction", revision=str(other._mirror.revision))
            return await watch(request, *more)

        self.patch(node._gateway, "watch", late)
        node._link.lose("the wire is cut")
        await self.until(lambda: node.facts.get("a") == "3")
        self.assertEqual("", node.trouble)

    async def test_quota(self) -> None:
        """When etcd has reached its quota, that is logged once and told until there is room again."""
        lines = self.logged()
        etcds = self.etcds(options=["--quota-backend-bytes=2097152"])
        node = await self.node(*etcds.urls)
        with contextlib.suppress(urllib.error.HTTPError):
            for number in range(100):
                etcds.ask(0, "kv/put", key=encoded(f"fill{number}"), value=encoded("x" * 100000))
        for _ in range(2):
            await self.assertFailure(node.claim("a", "1"), ClusterUnavailable)
        self.assertIn("etcdctl alarm disarm", node.trouble)
        self.assertEqual(1, sum("refuses writes" in line for line in lines), lines)
        self.assertEqual(["connected"], node.peer.story)
        last = etcds.ask(0, "kv/deleterange", key=encoded("fill"), range_end=encoded("film"))["header"]["revision"]
        etcds.ask(0, "kv/compaction", revision=last, physical=True)
        etcds.ask(0, "maintenance/defragment")
        member = etcds.ask(0, "maintenance/status")["header"]["member_id"]
        etcds.ask(0, "maintenance/alarm", action="DEACTIVATE", memberID=member, alarm="NOSPACE")
        await self.until(lambda: not node.trouble)
        self.assertTrue(await node.claim("a", "1"))


class LossTests(EtcdCase):
    """Nodes and members that fail."""

    async def test_cut_off(self) -> None:
        """
        A node that hears nothing more knows that it holds nothing before another can have it; later it joins again.

        All that there is to log are two lines.
        """
        way, other = self.forwarder(), await self.node()
        node = await self.node(way.url)
        logged = self.logged()
        await node.put({"old": "1"})
        self.assertTrue(await node.claim("a", node.node))
        way.silence()
        began = boottime()
        self.assertTrue(node.holds("a"))
        self.assertFalse(await other.claim("a", other.node))
        while not await other.claim("a", other.node):
            self.assertFalse(node.holds("a") and other.holds("a"))
            await sleep(0.01)
        self.assertFalse(node.holds("a"))
        self.assertGreater(boottime() - began, TTL / 2)
        self.assertEqual(1, len(node.peer.losses))
        await self.assertFailure(node.claim("b", ""), ClusterUnavailable)
        await self.assertFailure(node.put({"b": ""}), ClusterUnavailable)
        await other.put({"new": "1", "old": None})
        del node.peer.changes[:]
        way.mend()
        await node.peer.until(lambda: node.peer.connections == 2)
        self.assertEqual({"a": other.node, "new": "1"}, node.facts)
        expected = [("a", other.node, node.node), ("new", "1", None), ("old", None, "1")]
        self.assertEqual(expected, sorted(node.peer.changes))
        self.assertFalse(node.holds("a"))
        self.assertEqual(["connected", node.peer.losses[0], "connected"], node.peer.story)
        self.assertEqual(2, len(logged), logged)
        self.assertIn("no answer within", logged[0])

    async def test_short_cut(self) -> None:
        """A connection that breaks and comes again in time is nobody's business, but what changed meanwhile is told."""
        way, other = self.forwarder(), await self.node()
        node = await self.node(way.url, ttl=3)
        await node.claim("a", "1")
        await way.cut()
        await other.put({"b": "1", "c": "1"})
        await other.put({"c": None})
        revision = int(shared().ask(0, "kv/range", key="YQ==")["header"]["revision"])
        shared().ask(0, "kv/compaction", revision=str(revision))
        way.mend()
        await node.peer.until(lambda: node.facts.get("b"))
        self.assertTrue(node.holds("a"))
        self.assertEqual({"a": "1", "b": "1"}, node.facts)
        self.assertEqual([("a", "1", None), ("b", "1", None)], node.peer.changes)
        self.assertTrue(await node.put({"a": "2"}, holding="a"))
        self.assertEqual(["connected"], node.peer.story)

    async def test_stopped_process(self) -> None:
        """A process that was stopped for longer than its lease lasts believes nothing when it goes on."""
        shift = 0.0
        node = await self.node(ttl=300, now=lambda: boottime() + shift)
        await node.claim("a", "1")
        self.assertTrue(node.holds("a"))
        shift = 300
        self.assertFalse(node.holds("a"))
        await self.assertFailure(node.claim("b", "1"), ClusterUnavailable)
        await node.peer.until(lambda: node.peer.connections == 2)  # though it was to renew its lease in 100 s
        self.assertEqual(1, len(node.peer.losses))

    async def test_stopped_for_a_moment(self) -> None:
        """One that was stopped until it could not be sure of its lease, which etcd still has, joins again."""
        shift = 0.0
        node = await self.node(now=lambda: boottime() + shift)
        await node.claim("a", "1")
        shift = TTL
        node._look()  # as the reactor calls it, when the process goes on
        self.assertEqual(1, len(node.peer.losses))
        await node.peer.until(lambda: node.peer.connections == 2)
        self.assertTrue(node.holds("a"))
        self.assertTrue(await node.put({"a": "2"}, holding="a"))

    async def test_lease_that_is_gone(self) -> None:
        """When etcd has ended the lease, what was claimed is lost at once, and can be claimed again after joining."""
        node = await self.node(ttl=3)
        await node.claim("a", "1")
        shared().ask(0, "lease/revoke", ID=str(node._session.lease))
        await node.peer.until(lambda: node.peer.connections == 2)
        self.assertEqual(["connected", "etcd has ended our lease", "connected"], node.peer.story)
        self.assertFalse(node.holds("a"))
        self.assertEqual({}, node.facts)
        self.assertTrue(await node.claim("a", "1"))

    async def test_slow_watch(self) -> None:
        """What was done is known when the Deferred fires, however late the watch tells it."""
        node = await self.node(ttl=3)
        told = node._link._stream._told
        node._link._stream._told = lambda result: reactor.callLater(0.1, told, result)
        self.assertTrue(await node.put({"a": "1"}))
        self.assertEqual({"a": "1"}, node.facts)
        self.assertTrue(await node.claim("b", "1"))
        self.assertTrue(node.holds("b"))

    async def test_deaf_watch(self) -> None:
        """A watch that tells nothing more is found out, and replaced; claims are ours still."""
        node = await self.node()
        node._link._stream._told = lambda _: None
        await self.assertFailure(node.claim("a", "1"), ClusterUnavailable)
        self.assertFalse(node.holds("a"))
        await self.until(lambda: node.facts)
        self.assertTrue(node.holds("a"))
        self.assertTrue(await node.put({"b": "1"}, holding="a"))
        self.assertEqual([("a", "1", None), ("b", "1", None)], node.peer.changes)
        self.assertEqual(["connected"], node.peer.story)

    async def test_release_unheard(self) -> None:
        """A claim whose release nobody confirmed is not held, and can be claimed again."""
        way = self.forwarder()
        node = await self.node(way.url, ttl=3)
        await node.claim("a", "1")
        way.silence()
        await self.assertFailure(node.put({"a": None}), ClusterUnavailable)
        self.assertFalse(node.holds("a"))
        way.mend()
        with contextlib.suppress(ClusterUnavailable):
            await node.claim("a", "2")
        await self.until(lambda: node.peer.connections == 1 and node._link._pausing and not node._link._pausing.called)
        self.assertTrue(await node.claim("a", "2"))
        self.assertTrue(node.holds("a"))

    async def test_etcd_killed(self) -> None:
        """An etcd that is killed: nothing is held; when it is there again, claims are ours still, and facts whole."""
        etcds = self.etcds()
        node = await self.node(*etcds.urls, join=True)
        await node.claim("a", "1")
        await node.put({"b": "1"})
        etcds.kill(0)
        await node.peer.until(lambda: node.peer.losses)
        self.assertFalse(node.holds("a"))
        await deferToThread(etcds.start, 0)
        await node.peer.until(lambda: node.peer.connections == 2)
        self.assertEqual({"a": "1", "b": "1"}, node.facts)
        self.assertTrue(node.holds("a"))
        self.assertEqual(2, len(node.peer.changes))

    async def test_not_there_yet(self) -> None:
        """An etcd that is not there when a node starts is asked until it is; one line says so."""
        logged = self.logged()
        port = free_port()
        node = await self.node(f"http://127.0.0.1:{port}", join=False)
        await sleep(0.4)
        self.assertEqual([], node.peer.story)
        await self.assertFailure(node.claim("a", "1"), ClusterUnavailable)
        self.assertEqual(1, len(logged), logged)
        self.assertIn("refused", logged[0])

    async def test_three_members(self) -> None:
        """
        Of three members, the leader is killed; then the one that is asked stands still; then all but one are killed.

        Claims and facts survive whatever leaves a majority.
        """
        etcds = self.etcds(("127.0.0.1",) * 3)
        leader = etcds.leader()
        urls = etcds.urls[leader:] + etcds.urls[:leader]
        node, other = await self.node(*urls, ttl=3), await self.node(*urls[1:], ttl=3)
        await node.claim("a", "1")
        await node.put({"b": "1"})
        etcds.kill(leader)
        await self.until(lambda: node._gateway.url != urls[0])
        await self.eventually(lambda: node.put({"b": "2"}, holding="a"))
        await other.peer.until(lambda: other.facts == {"a": "1", "b": "2"})
        self.assertTrue(node.holds("a"))
        await deferToThread(etcds.start, leader)
        asked = urls.index(node._gateway.url)
        etcds.freeze((leader + asked) % 3)
        await self.until(lambda: node._gateway.url != urls[asked])
        await self.eventually(lambda: node.put({"b": "3"}, holding="a"))
        etcds.thaw((leader + asked) % 3)
        await other.peer.until(lambda: other.facts == {"a": "1", "b": "3"})
        self.assertTrue(node.holds("a"))
        self.assertEqual((["connected"], ["connected"]), (node.peer.story, other.peer.story))
        alone = urls.index(node._gateway.url)
        for number in range(3):
            if number != (leader + alone) % 3:
                etcds.kill(number)
        await node.peer.until(lambda: node.peer.losses)
        self.assertFalse(node.holds("a"))

    async def eventually(self, asking: Callable[[], Deferred[bool]]) -> None:
        """Ask until there is an answer, which is yes."""
        for _ in range(40):
            try:
                self.assertTrue(await asking())
            except ClusterUnavailable:
                await sleep(0.1)
            else:
                return
        self.fail("nothing can be changed")

    async def test_watch_without_leader(self) -> None:
        """A member that has lost its leader ends the watch, long before a lease would end."""
        etcds = self.etcds(("127.0.0.1",) * 2)
        gateway = Gateway(Cluster(etcds.urls[:1], "me", ttl=30), reactor)
        self.addCleanup(gateway.close)
        ended: list[ClusterUnavailable] = []
        await gateway.watch(Keys("/").watch(1), lambda _: None, ended.append)
        etcds.kill(1)
        await self.until(lambda: ended)
        self.assertIn("no leader", str(ended[0]))


class IdentityTests(EtcdCase):
    """Users, passwords and certificates."""

    def folder(self) -> Path:
        """Return a directory."""
        folder = Path(self.mktemp())
        folder.mkdir()
        return folder

    async def test_user(self) -> None:
        """A user and a password get a token, and another when etcd does not know it any more; without, nothing is."""
        etcds = self.etcds()
        etcds.ask(0, "auth/user/add", name="root", password=SECRET)
        etcds.ask(0, "auth/user/grant", user="root", role="root")
        etcds.ask(0, "auth/enable")
        node = await self.node(*etcds.urls, user="root", password=SECRET, ttl=3)
        self.assertTrue(await node.claim("a", "1"))
        node._gateway._token = f"x{node._gateway._token}"
        self.assertTrue(await node.put({"a": "2", "b": "1"}, holding="a"))
        self.assertEqual({"a": "2", "b": "1"}, node.facts)
        logged = self.logged()
        await self.node(*etcds.urls, join=False)
        await self.until(lambda: logged)
        await self.node(*etcds.urls, join=False, user="root", password=f"not {SECRET}")
        await self.until(lambda: len(logged) == 2)
        self.assertIn("user name is empty", logged[0])
        self.assertIn("invalid user ID or password", logged[1])

    async def test_tls(self) -> None:
        """Etcd's certificate is looked at, and ours is shown; without them nothing is agreed on."""
        ca, (cert, key) = certificates(self.folder())
        options = ("--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file", str(ca))
        etcds = self.etcds(options=options, scheme="https")
        with capturedLogs() as logged:
            node = await self.node(*etcds.urls, ca=ca, cert=cert, key=key)
            self.assertTrue(await node.claim("a", "1"))
            await node.put({"b": "1"})
        self.assert_silent(logged)
        self.assertEqual({"a": "1", "b": "1"}, node.facts)
        others = (
            await self.node(*etcds.urls, join=False, cert=cert, key=key),
            await self.node(*etcds.urls, join=False, ca=ca),
        )
        await self.until(lambda: all("asked yet" not in other._why for other in others))
        self.assertEqual([[], []], [other.peer.story for other in others])
        way = self.forwarder(etcds.members[0].port)
        node = await self.node(way.url.replace("http", "https"), ca=ca, cert=cert, key=key)
        way.silence()
        await node.peer.until(lambda: node.peer.losses)

    def test_no_certificates(self) -> None:
        """Files that are not there, or are none, are said before anything is connected."""
        folder = self.folder()
        wrong = folder / "wrong.pem"
        wrong.write_text("nothing")
        cluster = Cluster(("https://h:1",), "n")
        for changed in (
            attrs.evolve(cluster, ca=folder / "no.pem"),
            attrs.evolve(cluster, ca=wrong),
            attrs.evolve(cluster, cert=wrong, key=wrong),
        ):
            error: Any = self.assertRaises(ConfigError, coordinator_for, changed, reactor)
            self.assertIn(str(folder), str(error))


def certificates(folder: Path) -> tuple[Path, tuple[Path, Path]]:
    """Make an authority, and a certificate for loopback; return the files of the one, and of the other and its key."""
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl(
        *new, "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=etcd", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:false",
    )
    return folder / "ca.pem", (folder / "cert.pem", folder / "key.pem")


class Answers:
    """A gateway that gives prepared answers, each after so many seconds of a clock that nobody else turns."""

    def __init__(self, clock: Clock, *answers: tuple[float, dict[str, Any]]) -> None:
        """Take the answers."""
        self._clock, self._answers = clock, list(answers)

    async def ask(self, call: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Give the next answer."""
        seconds, answer = self._answers.pop(0)
        self._clock.advance(seconds)
        return answer


def term(number: int, **said: Any) -> dict[str, Any]:
    """Return an answer of that term of etcd's."""
    return {"header": {"raft_term": str(number)}, **said}


class SessionTests(SynchronousTestCase):
    """How long a lease certainly lives."""

    def session(self, *answers: tuple[float, dict[str, Any]]) -> tuple[Session, Clock]:
        """Return a session that has a lease of ten seconds, granted at 0."""
        clock = BoundedClock()
        gateway: Any = Answers(clock, (0.0, {"ID": "7", "TTL": "10"}), *answers)
        session = Session(gateway, Keys("/p"), 9.5, clock.seconds)
        self.successResultOf(Deferred.fromCoroutine(session.begin()))
        return session, clock

    def renewed(self, session: Session) -> bool:
        """Renew it."""
        return self.successResultOf(Deferred.fromCoroutine(session.renew()))

    def test_margin(self) -> None:
        """It lives for nine tenths of the time that etcd gives."""
        session, clock = self.session()
        self.assertEqual((7, 9.0), (session.lease, session.left()))
        clock.advance(9.0)
        self.assertEqual(0.0, session.left())

    def test_counts_from_the_question(self) -> None:
        """The time of a renewal counts from when it was asked for, not from the answer."""
        session, clock = self.session((2.0, {"result": term(1, TTL="10")}), (1.0, term(1)))
        clock.advance(5.0)
        self.assertTrue(self.renewed(session))
        self.assertEqual((8.0, 6.0), (clock.seconds(), session.left()))

    def test_too_late(self) -> None:
        """An answer that comes when the time is over proves nothing."""
        session, _ = self.session((9.5, {"result": term(1, TTL="10")}), (0.0, term(1)))
        self.failureResultOf(Deferred.fromCoroutine(session.renew()), ClusterUnavailable)
        self.assertLess(session.left(), 0)

    def test_gone(self) -> None:
        """A lease that etcd does not know is none, at once."""
        session, _ = self.session((0.0, {"result": term(1)}))
        self.assertFalse(self.renewed(session))
        self.assertEqual(0, session.lease)
        self.assertLess(session.left(), 0)

    def test_deposed_leader(self) -> None:
        """A renewal by a leader that was deposed meanwhile is not believed; the next one is."""
        session, clock = self.session(
            (0.0, {"result": term(1, TTL="10")}), (1.0, term(2)),
            (0.0, {"result": term(2, TTL="10")}), (0.0, term(2)),
        )
        clock.advance(5.0)
        self.assertTrue(self.renewed(session))
        self.assertEqual(9.0, session.left())

    def test_leaders_without_end(self) -> None:
        """Where each answer is of another term, nothing is proven."""
        session, clock = self.session(*(
            (0.0, {"result": term(number, TTL="10")} if number % 2 else term(number)) for number in range(1, 7)
        ))
        clock.advance(1.0)
        self.failureResultOf(Deferred.fromCoroutine(session.renew()), ClusterUnavailable)
        self.assertEqual(8.0, session.left())


class KeysTests(SynchronousTestCase):
    """What is said to etcd, and what is known."""

    def test_octets(self) -> None:
        """What others write that is no UTF-8 survives."""
        said = {"key": base64.b64encode(b"/p/\xff").decode(), "value": "/w==", "mod_revision": "3"}
        fact = Keys("/p/").fact(said)
        self.assertEqual(Fact("\udcff", "\udcff", 0, 3), fact)
        self.assertEqual("/w==", kv.encoded(fact.value or ""))

    def test_conditions(self) -> None:
        """Each transaction depends on the claim to be held and on those that it changes; these keep their lease."""
        facts = {f"k{number}": "v" for number in range(kv.OPERATIONS + 1)}
        first, second = Keys("/p").puts(facts, {"k0", "k1"}, 7, "k0", {})
        self.assertEqual([2, 1], [len(one["compare"]) for one in (first, second)])
        self.assertEqual([kv.OPERATIONS, 1], [len(one["success"]) for one in (first, second)])
        leases = [operation["request_put"]["lease"] for operation in first["success"]]
        self.assertEqual(["7", "7", "0"], leases[:3])
        self.assertEqual(json.dumps(first["compare"][0]), json.dumps(second["compare"][0]))

    def test_mirror(self) -> None:
        """A younger etcd, as one restored from an old copy is, replaces what was known."""
        mirror = Mirror()
        self.assertEqual([("a", "1", None)], mirror.replace([Fact("a", "1", 7, 90)], 100))
        self.assertEqual(({"a": 7}, 100), (mirror.leases, mirror.revision))
        changes = mirror.replace([Fact("b", "1", 0, 5)], 6)
        self.assertEqual([("a", None, "1"), ("b", "1", None)], changes)
        self.assertEqual(({"b": "1"}, {}, 6), (mirror.facts, mirror.leases, mirror.revision))
