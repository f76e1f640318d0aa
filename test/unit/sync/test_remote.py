"""Several Jitsus that share one configuration: real repositories, real git, all nodes in this process."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pygit2
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.backends.memory import MemoryBackend
from jitsu_tw.clocks import Clocks
from jitsu_tw.config import build
from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import ConfigError, StoreError
from jitsu_tw.store import hooks, remote
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.history import MAIN, files
from jitsu_tw.store.merge import Meeting, meet, settle
from jitsu_tw.store.remote import Remote
from jitsu_tw.store.requests import SHARED
from jitsu_tw.store.sync_branch import ASIDE, OFFER
from jitsu_tw.sync import config_sync as shared
from jitsu_tw.sync.change_requests import ChangeRequests
from jitsu_tw.sync.config_sync import ConfigSync
from jitsu_tw.sync.reconfigure import LiveConfig
from jitsu_tw.sync.trigger import SyncTrigger
from jitsu_tw.vm.fleet import Fleet
from test.programs.test_tap import ProcessTestCase
from test.support import alone
from test.unit.store.test_history import QUICK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

reactor: Any = default_reactor

WWW: Final = "00000000-0000-4000-8000-000000000001"
DB: Final = "00000000-0000-4000-8000-000000000002"
NEW: Final = "00000000-0000-4000-8000-000000000003"
NEWER: Final = "00000000-0000-4000-8000-000000000004"

FILE: Final = (f"dns=www.jitsu.test,ip=10.0.0.1,name=www,uuid={WWW}",
               f"dns=db.jitsu.test,ip=10.0.0.2,name=db,uuid={DB}")

ZONE: Final = "$ORIGIN jitsu.test.\n@ 60 SOA ns h 7 2 3 4 5\n@ 60 NS ns\nns 60 A 127.0.0.1\n"

TTL: Final = f"jitsu/vm/{WWW}/dns/www.jitsu.test/ttl"

ANN: Final = pygit2.Signature("Ann", "ann@example.org")

#: In seconds: more than anything takes here.
PATIENCE: Final = 15.0


def new(uuid: str, name: str, ip: str, zone: str = "jitsu.test") -> dict[str, str | None]:
    """Return the files of a VM that is new."""
    values = {"ip": ip, f"dns/{name}.{zone}/ttl": "5", "config/name/0": name, "stop_mode": "destroy"}
    return {f"jitsu/vm/{uuid}/{path}": value for path, value in values.items()}


def gone(uuid: str) -> dict[str, str | None]:
    """Return what removes a VM."""
    return {f"jitsu/vm/{uuid}": None}


def commit(path: Path, changes: Mapping[str, str | None], on: str, message: str = "please") -> pygit2.Oid:
    """Return a commit of Ann's with *changes* on top of the branch *on* of the repository at *path*."""
    repository = pygit2.Repository(str(path))
    base = repository.references[on].peel(pygit2.Commit)
    index = pygit2.Index()
    index.read_tree(base.tree)
    for name, value in changes.items():
        if value is None:
            index.remove_all([name, f"{name}/*"])
        else:
            blob = repository.create_blob(f"{value}\n".encode())
            index.add(pygit2.IndexEntry(name, blob, pygit2.enums.FileMode.BLOB))
    return repository.create_commit(None, ANN, ANN, message, index.write_tree(repository), [base.id])


class Node:
    """One Jitsu without sockets."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        """Have its state in *folder*."""
        self.name, self.url = name, url
        self.path, self.zone = folder / f"{name}.git", folder / f"{name}.zone"
        self.zone.write_text(ZONE)
        self.backend = MemoryBackend()
        self.tells: Callable[[Node, str], None] = lambda *_: None

    def begin(self, *pairs: str) -> None:
        """Start, as a process with a file that says *pairs*."""
        options = {"zones": [str(self.zone)], "backend": "memory", "persistdb": str(self.path), "delay": "0"}
        settings, self.zones = build.load(options, pairs)
        self.trigger = SyncTrigger(reactor)
        store = GitStore(self.path, changed=self.trigger.changed)
        remembered = store.open()
        clocks = Clocks(reactor)
        self.fleet = Fleet(settings, {("memory", ""): self.backend}, store, clocks, alone(settings, clocks))
        self.running = LiveConfig(settings, self.fleet, self.zones, lambda _: None)
        self.branches = ChangeRequests(store, self.fleet, self.zones, self.running, reactor)
        self.branches.restore(remembered)
        self.shared = ConfigSync(store, self.branches, self.running, self.fleet,
                                 Remote(self.url, self.path, reactor), self.name, self.trigger)  # fmt: skip
        self.fleet.cluster.publish = lambda commit: self.tells(self, commit)  # type: ignore[method-assign]
        self.fleet.start(remembered)
        self.branches.start()
        self.shared.start()

    async def end(self) -> None:
        """Stop, in order."""
        await self.shared.stop()
        await self.branches.stop()
        await self.fleet.stop()

    def ask(self, changes: Mapping[str, str | None], name: str = "a", on: str = MAIN) -> None:
        """Push *changes* as a request."""
        repository = pygit2.Repository(str(self.path))
        repository.references.create(REQUEST + name, commit(self.path, changes, on), force=True)

    def asks(self) -> list[str]:
        """Return the requests that have not been looked at."""
        return [name for name in pygit2.Repository(str(self.path)).references if name.startswith(REQUEST)]

    def said(self) -> dict[str, str]:
        """Return what the state says of VMs."""
        return vms(self.path, MAIN)

    def runs(self) -> dict[str, tuple[str, int]]:
        """Return the address and the TTL that a client sees, by the VM's name."""
        found = {}
        for machine in self.fleet.machines.values():
            outcome: Any = self.zones.lookup(from_text(f"{machine.vm.name}.jitsu.test"), 1)
            if getattr(outcome, "vm", None) == machine.vm.name:
                found[machine.vm.name] = str(machine.vm.ip[0]), int(outcome.answer[-1].ttl)
        return found

    def rejected(self) -> dict[str, str]:
        """Return the reasons of what was put aside, by its branch."""
        return rejected(self.path)


def vms(path: Path, branch: str) -> dict[str, str]:
    """Return what a branch says of VMs; {} without it."""
    repository = pygit2.Repository(str(path))
    if branch not in repository.references:
        return {}
    tree = files(repository.references[branch].peel(pygit2.Commit).tree)
    return {name: value for name, value in tree.items() if name.startswith("jitsu/vm/")}


def rejected(path: Path) -> dict[str, str]:
    """Return the messages of the branches below ``rejected/`` of the repository at *path*."""
    references = pygit2.Repository(str(path)).references
    return {name.removeprefix(REJECTED): references[name].peel(pygit2.Commit).message
            for name in references if name.startswith(REJECTED)}


class NodesTestCase(TestCase):
    """Nodes that share a repository, and are told by each other, unless `quiet`, when there is something new."""

    def setUp(self) -> None:
        """Make the repository that is shared, and the nodes."""
        self.folder = Path(tempfile.mkdtemp(dir=QUICK))
        self.addCleanup(shutil.rmtree, self.folder)
        self.hub = self.folder / "hub.git"
        pygit2.init_repository(str(self.hub), bare=True, initial_head="main")
        self.nodes: list[Node] = []
        self.quiet = False

    def node(self, *pairs: str, url: str = "") -> Node:
        """Return one node more, which runs."""
        node = Node(f"ns{len(self.nodes) + 1}", self.folder, url or str(self.hub))
        node.tells = self.told
        self.nodes.append(node)
        node.begin(*(pairs or FILE))
        self.addCleanup(node.end)
        return node

    def told(self, by: Node, commit: str) -> None:
        """Tell the others, as etcd does."""
        for node in self.nodes:
            if node is not by and not self.quiet:
                reactor.callLater(0.01, node.trigger.published, commit)

    async def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> float:
        """Wait until *condition* holds; return how long that took, in seconds."""
        begin = time.monotonic()
        while not condition():
            said = {node.name: node.runs() for node in self.nodes}
            self.assertLess(time.monotonic() - begin, seconds, f"{said} {[n.shared.trouble for n in self.nodes]}")
            await deferLater(reactor, 0.02)
        return time.monotonic() - begin

    async def pair(self) -> tuple[Node, Node]:
        """Return two nodes that agree."""
        nodes = self.node(), self.node()
        await self.agreed()
        return nodes

    async def agreed(self) -> None:
        """Wait until what all nodes say, and what is shared, is the same, and what they say is what they run."""
        def is_shared() -> bool:
            shared = vms(self.hub, MAIN)
            return bool(shared) and all(node.said() == shared == vms(node.path, SHARED) for node in self.nodes)

        # Who asks is looked at first: what is asked for no more is said by then.
        await self.until(lambda: not any(node.asks() for node in self.nodes) and is_shared())
        for node in self.nodes:
            # What has just been written is applied a moment later.
            await node.running.lock.run(lambda: None)

    def hub_head(self) -> str:
        """Return the shared branch's commit."""
        return str(pygit2.Repository(str(self.hub)).references[MAIN].target)


class SharedTests(NodesTestCase):
    """What is changed with one is with the others."""

    async def test_within_two_seconds(self) -> None:
        """What one node merges, all run within two seconds of the push: values, a VM that is new, one that goes."""
        nodes = [self.node(), self.node(), self.node()]
        await self.agreed()
        www, db, made = {"www": ("10.0.0.1", 5)}, {"db": ("10.0.0.2", 60)}, {"new": ("10.0.0.3", 5)}
        cases: tuple[tuple[dict[str, str | None], dict[str, tuple[str, int]]], ...] = (
            ({TTL: "5"}, {**www, **db}),
            (new(NEW, "new", "10.0.0.3"), {**www, **db, **made}),
            (gone(DB), {**www, **made}),
            (gone(NEW), www),
        )
        for number, (changes, wanted) in enumerate(cases):
            nodes[number % 3].ask(changes, f"r{number}")
            took = await self.until(partial(self._all_run, nodes, wanted))
            self.assertLess(took, 2.0)
        await self.agreed()
        self.assertEqual({}, rejected(self.hub))

    @staticmethod
    def _all_run(nodes: list[Node], wanted: dict[str, tuple[str, int]]) -> bool:
        return all(node.runs() == wanted for node in nodes)

    async def test_origin(self) -> None:
        """Each node knows who asked for what, and the shared history holds the configuration only, and says that."""
        one, two = await self.pair()
        one.ask(new(NEW, "new", "10.0.0.3"), "wish")
        await self.until(lambda: "new" in two.runs())
        origin = two.fleet.store.config.origin(two.fleet.machines["new"].uuid)
        self.assertEqual("request/wish of Ann <ann@example.org>", origin)
        head = pygit2.Repository(str(self.hub)).references[MAIN].peel(pygit2.Commit)
        self.assertEqual(("ns1", "From request/wish of Ann <ann@example.org>\n\nadded: new\n"),
                         (head.author.name, head.message))
        self.assertEqual({"vm", "origin"}, {path.split("/")[1] for path in files(head.tree)})
        main = pygit2.Repository(str(two.path)).references[MAIN].peel(pygit2.Commit)
        self.assertEqual("Shared: ns1: From request/wish of Ann <ann@example.org>\n\nadded: new\n", main.message)
        one.ask({TTL: "5"}, "more")
        await self.until(lambda: two.runs()["www"][1] == 5)
        more = "request/more of Ann <ann@example.org>"
        origins = (node.fleet.store.config.origin(node.fleet.machines["www"].uuid) for node in (one, two))
        self.assertEqual((f"{more}, over the file", more), tuple(origins))

    async def test_at_once(self) -> None:
        """Three nodes that merge at the same moment push until all have everything."""
        nodes = [self.node(), self.node(), self.node()]
        await self.agreed()
        for number, node in enumerate(nodes):
            for turn in range(3):
                uuid = f"{NEW[:-2]}{number + 1}{turn}"
                node.ask(new(uuid, f"n{number}{turn}", f"10.0.{number + 1}.{turn}"), f"r{turn}")
        await self.until(lambda: all(len(node.runs()) == 11 for node in nodes))
        await self.agreed()

    async def test_without_news(self) -> None:
        """Who is not told looks now and then."""
        self.patch(shared, "EVERY", 0.3)
        self.quiet = True
        one, two = await self.pair()
        one.ask({TTL: "5"})
        await self.until(lambda: two.runs()["www"][1] == 5)

    async def test_files(self) -> None:
        """VMs that only one file has are everybody's; where two files differ, what was shared first holds."""
        one = self.node()
        await self.agreed()
        two = self.node(f"dns=www.jitsu.test,ip=10.0.0.1,name=www,ttl=9,uuid={WWW}",
                        f"dns=new.jitsu.test,ip=10.0.0.3,name=new,uuid={NEW}")
        await self.agreed()
        self.assertEqual({"www": ("10.0.0.1", 60), "db": ("10.0.0.2", 60), "new": ("10.0.0.3", 60)}, two.runs())
        self.assertEqual(two.runs(), one.runs())
        self.assertEqual("the configuration of ns2", one.fleet.store.config.origin(one.fleet.machines["new"].uuid))
        ((name, reason),) = two.rejected().items()
        self.assertRegex(name, "^file-ns2-[0-9a-f]{7}$")
        self.assertIn("another node has added it first", reason)

    async def test_restart(self) -> None:
        """Who was away takes what it missed when it is back, and shares nothing that is not new."""
        one, two = await self.pair()
        one.ask(new(NEW, "new", "10.0.0.3"))
        await self.agreed()
        await two.end()
        one.ask({TTL: "5"}, "b")
        await self.until(lambda: vms(self.hub, MAIN).get(TTL) == "5")
        head = self.hub_head()
        two.begin(*FILE)
        await self.until(lambda: two.runs().get("www") == ("10.0.0.1", 5) and "new" in two.runs())
        await self.agreed()
        self.assertEqual(head, self.hub_head())

    async def test_file_at_restart(self) -> None:
        """What a file says at a start holds against requests, with every node: as it does with one."""
        one, two = await self.pair()
        one.ask({TTL: "5"})
        await self.until(lambda: two.runs()["www"][1] == 5)
        await two.end()
        two.begin(*FILE)
        await self.until(lambda: one.runs()["www"][1] == 60)
        await self.agreed()

    async def test_clone(self) -> None:
        """Who has cloned what is shared may ask any node, by a commit on top of that; so may who was put aside."""
        one, two = await self.pair()
        one.ask({TTL: "5"})
        await self.agreed()
        two.ask(new(NEW, "new", "10.0.0.3"), on=SHARED)
        await self.until(lambda: "new" in one.runs())
        self.assertEqual({}, two.rejected())
        self.assertEqual(("10.0.0.1", 5), two.runs()["www"])


class ApartTests(NodesTestCase):
    """Histories that went apart."""

    async def both(self, first: Mapping[str, str | None], second: Mapping[str, str | None]) -> tuple[Node, Node]:
        """Have the one node share *first*, and then the other, who has not heard of it, *second*."""
        one, two = await self.pair()
        self.quiet = True
        one.ask(first, "first")
        await self.until(lambda: vms(self.hub, MAIN) == one.said() != two.said())
        two.ask(second, "second")
        await self.until(lambda: vms(self.hub, MAIN) == two.said() and not two.trigger.is_wanted)
        one.trigger.published()
        await self.agreed()
        await self.until(lambda: rejected(self.hub) == one.rejected() | two.rejected())
        return one, two

    async def test_merged(self) -> None:
        """Changes of different values, of one VM too, are merged."""
        one, two = await self.both({TTL: "5", **new(NEW, "new", "10.0.0.3")},
                                   {f"jitsu/vm/{WWW}/ip": "10.0.0.9", **gone(DB)})
        self.assertEqual({"www": ("10.0.0.9", 5), "new": ("10.0.0.3", 5)}, one.runs())
        self.assertEqual(one.runs(), two.runs())
        self.assertEqual({}, rejected(self.hub) | one.rejected() | two.rejected())

    async def test_conflict(self) -> None:
        """One value changed by both: what was shared first holds, the other is aside on both sides; all else stays."""
        one, two = await self.both({TTL: "5"}, {TTL: "6", **new(NEW, "new", "10.0.0.3")})
        self.assertEqual({"www": ("10.0.0.1", 5), "db": ("10.0.0.2", 60), "new": ("10.0.0.3", 5)}, two.runs())
        self.assertEqual(two.runs(), one.runs())
        self.assertEqual(rejected(self.hub), two.rejected())
        ((name, reason),) = two.rejected().items()
        self.assertRegex(name, "^second-ns2-[0-9a-f]{7}$")
        self.assertIn(f"jitsu/vm/{WWW}: dns/www.jitsu.test/ttl: was '60', is '5' by now, should become '6'", reason)
        self.assertEqual("6", vms(self.hub, REJECTED + name)[TTL])
        self.assertEqual([], [name for name in pygit2.Repository(str(two.path)).references if name.startswith(ASIDE)])

    async def test_removed_and_changed(self) -> None:
        """A VM that one removes and the other changes is as the first had it, whichever that is."""
        one, two = await self.both({TTL: "5"}, gone(WWW))
        self.assertEqual(("10.0.0.1", 5), two.runs()["www"])
        self.assertNotIn(TTL, vms(self.hub, REJECTED + next(iter(two.rejected()))))
        self.assertEqual(one.runs(), two.runs())

    async def test_changed_and_removed(self) -> None:
        """The other way round."""
        one, two = await self.both(gone(WWW), {TTL: "5"})
        self.assertEqual(["db"], list(two.runs()))
        self.assertEqual("5", vms(self.hub, REJECTED + next(iter(two.rejected())))[TTL])
        self.assertEqual(one.runs(), two.runs())

    async def test_not_beside(self) -> None:
        """Two VMs that cannot be beside each other: the first stays; what the second could have besides stays, too."""
        one, two = await self.both(new(NEW, "new", "10.0.0.3"),
                                   {**new(NEWER, "newer", "10.0.0.3"), TTL: "6"})
        self.assertEqual({"www": ("10.0.0.1", 6), "db": ("10.0.0.2", 60), "new": ("10.0.0.3", 5)}, two.runs())
        self.assertEqual(one.runs(), two.runs())
        ((_, reason),) = two.rejected().items()
        self.assertIn("10.0.0.3 is that of VM", reason)

    async def test_not_here(self) -> None:
        """What one node cannot run stays with the others, is tried again, and keeps nobody from shared."""
        one, two = await self.pair()
        self.patch(two.running, "check", self._picky(two.running.check))
        with capturedLogs() as log:
            one.ask({**new(NEW, "new", "10.0.0.3"), TTL: "5"})
            await self.until(lambda: two.runs()["www"][1] == 5)
            two.ask({f"jitsu/vm/{DB}/ip": "10.0.0.9"}, "b")
            await self.until(lambda: one.runs()["db"] == ("10.0.0.9", 60))
        await self.agreed()
        self.assertIn("new", one.runs())
        self.assertNotIn("new", two.runs())
        said = [formatEvent(event) or "" for event in log]
        self.assertEqual(1, sum("new: what others share of it is not run here" in line for line in said), said)
        two.running.check.able = True  # type: ignore[attr-defined]
        two.trigger.published()
        await self.until(lambda: "new" in two.runs())

    @staticmethod
    def _picky(check: Any) -> Any:
        """Return what refuses the VM *new* until it is `able`."""

        def picky(step: Any) -> None:
            if any(vm.name == "new" for vm in step.added) and not picky.able:  # type: ignore[attr-defined]
                message = "not in our zones"
                raise ConfigError(message)
            check(step)

        picky.able = False  # type: ignore[attr-defined]
        return picky

    async def test_two_uuids(self) -> None:
        """A VM that has another uuid with each node is two: each node runs its own, and says so."""
        one = self.node()
        await self.agreed()
        two = self.node(f"dns=www.jitsu.test,ip=10.0.0.1,name=www,uuid={NEW}")
        with capturedLogs() as log:
            await self.until(lambda: "db" in two.runs())
            await self.agreed()
        self.assertEqual([WWW, NEW], [node.fleet.machines["www"].uuid for node in (one, two)])
        self.assertEqual([[NEW], [WWW]], [list(node.shared._left) for node in (one, two)])
        self.assertEqual({}, rejected(self.hub))
        said = [line for event in log if "www: what others share" in (line := formatEvent(event) or "")]
        self.assertEqual(2, len(said), said)

    async def test_at_random(self) -> None:
        """Whatever three nodes are asked for, some of it while they cannot hear each other, they agree in the end."""
        nodes = [self.node(), self.node(), self.node()]
        await self.agreed()
        chance = random.Random(8)
        with capturedLogs() as log:
            for turn in range(30):
                self.quiet = turn % 10 > 5
                uuid = chance.choice((WWW, DB, NEW, NEWER))
                name, node = {WWW: "www", DB: "db", NEW: "new", NEWER: "newer"}[uuid], chance.choice(nodes)
                changes = chance.choice((
                    gone(uuid if uuid != WWW else DB),
                    new(uuid, name, f"10.0.0.{chance.randrange(1, 6)}"),
                    {f"jitsu/vm/{uuid}/ip": f"10.0.0.{chance.randrange(1, 6)}"},
                ))  # fmt: skip
                node.ask(changes, f"r{turn}")
                await deferLater(reactor, chance.uniform(0, 0.3))
            self.quiet = False
            for node in nodes:
                node.trigger.published()
            await self.agreed()
        self.assertEqual([nodes[0].runs()] * 3, [node.runs() for node in nodes])
        self.assertEqual([{}, {}, {}], [node.shared._left for node in nodes])
        self.assertNotIn("unexpected", " ".join(formatEvent(event) or "" for event in log))
        for node in nodes:
            ours = {name for name in node.rejected() if f"-{node.name}-" in name}
            await self.until(partial(self._has, ours))

    def _has(self, names: set[str]) -> bool:
        return names <= rejected(self.hub).keys()

    async def test_by_hand(self) -> None:
        """What somebody pushes to the shared branch is taken like all else; what is no VM in it is left alone."""
        one, two = await self.pair()
        repository = pygit2.Repository(str(self.hub))
        made = commit(self.hub, {TTL: "7", "jitsu/vm/README": "hello", "jitsu/vm/hello/ip": "1"}, MAIN)
        repository.references.create(MAIN, made, force=True)
        for node in (one, two):
            node.trigger.published()
        await self.until(lambda: one.runs()["www"][1] == 7 == two.runs()["www"][1])
        one.ask({TTL: "8"})
        await self.until(lambda: two.runs()["www"][1] == 8)
        self.assertIn("jitsu/vm/README", vms(self.hub, MAIN))
        self.assertNotIn("jitsu/vm/README", two.said())

    async def test_damaged_by_hand(self) -> None:
        """A VM that was made unreadable in the shared branch stays so there, also when a node changes it."""
        one, two = await self.pair()
        repository = pygit2.Repository(str(self.hub))
        made = commit(self.hub, {f"jitsu/vm/{DB}/too/deep/for/a/file": "1"}, MAIN)
        repository.references.create(MAIN, made, force=True)
        for node in (one, two):
            node.trigger.published()
        await self.until(lambda: DB in one.shared._unread)
        one.ask({f"jitsu/vm/{DB}/config/idle/0": "77", TTL: "8"})
        await self.until(lambda: two.runs()["www"][1] == 8)
        self.assertEqual("77", one.said()[f"jitsu/vm/{DB}/config/idle/0"])
        self.assertNotIn(f"jitsu/vm/{DB}/config/idle/0", vms(self.hub, MAIN))

    async def test_begun_anew(self) -> None:
        """A shared repository that is lost is filled again by who has it, and nothing is lost."""
        one, two = await self.pair()
        one.ask({TTL: "5"})
        await self.agreed()
        shutil.rmtree(self.hub)
        pygit2.init_repository(str(self.hub), bare=True, initial_head="main")
        two.ask(gone(DB))
        await self.agreed()
        self.assertEqual({"www": ("10.0.0.1", 5)}, one.runs())


class KilledTests(NodesTestCase):
    """What was half done when we were killed is done at the next start."""

    async def test_before_shared(self) -> None:
        """Killed after the push, or after `main` moved, before that was noted: nothing is shared or put aside twice."""
        one, two = await self.pair()
        before = pygit2.Repository(str(two.path)).references[SHARED].target
        one.ask({TTL: "5"})
        await self.agreed()
        head = self.hub_head()
        for node in (one, two):
            await node.end()
            pygit2.Repository(str(node.path)).references.create(SHARED, before, force=True)
            (node.path / "refs/jitsu/fetched.lock").touch()
            os.utime(node.path / "refs/jitsu/fetched.lock", (1, 1))
        pairs = (FILE[0] + ",ttl=5", FILE[1])
        one.begin(*pairs)
        two.begin(*pairs)
        await self.agreed()
        self.assertEqual((head, {}), (self.hub_head(), rejected(self.hub)))

    async def test_not_heard(self) -> None:
        """A push that arrived, though we were killed before we heard of it, was no other's."""
        one = self.node()
        await self.agreed()
        await one.end()
        references = pygit2.Repository(str(one.path)).references
        references.create(OFFER, references[SHARED].target)
        references.delete(SHARED)
        pygit2.Repository(str(self.hub)).references.create(MAIN, commit(self.hub, {TTL: "7"}, MAIN), force=True)
        one.begin(*FILE)
        await self.until(lambda: one.runs().get("www") == ("10.0.0.1", 7))
        await self.agreed()
        self.assertEqual({}, one.rejected())

    async def test_aside(self) -> None:
        """What was put aside and not pushed is pushed."""
        one, two = await self.pair()
        await two.end()
        repository = pygit2.Repository(str(two.path))
        repository.references.create(f"{ASIDE}x", repository.references[SHARED].target)
        two.begin(*FILE)
        await self.until(lambda: "x" in rejected(self.hub))
        await self.until(lambda: f"{ASIDE}x" not in repository.references)
        self.assertEqual(one.runs(), two.runs())


class TroubleTests(NodesTestCase):
    """A repository elsewhere that cannot be had."""

    async def test_away(self) -> None:
        """While it is away, everything goes on, with a line at the beginning and one at the end; then it is shared."""
        self.patch(shared, "AT_FIRST", 0.2)
        self.patch(shared, "EVERY", 0.4)
        shutil.rmtree(self.hub)
        with capturedLogs() as log:
            one = self.node()
            await self.until(lambda: one.shared.trouble)
            one.ask({TTL: "5"})
            await self.until(lambda: one.runs()["www"][1] == 5)
            await deferLater(reactor, 1.0)
            pygit2.init_repository(str(self.hub), bare=True, initial_head="main")
            await self.agreed()
            await self.until(lambda: not one.shared.trouble)
        said = [line for event in log if "shared" in (line := formatEvent(event) or "")]
        self.assertRegex(said[0], "not shared, but served: .*hub.git.*does not appear to be a git.*init --bare")
        counts = [sum(words in line for line in said) for words in ("but served", "shared again")]
        self.assertEqual([1, 1], counts, said)

    async def test_state(self) -> None:
        """Another Jitsu's state is refused by its hook, and the remedy is said."""
        hooks.make(self.folder / "state.git")
        one = self.node(url=str(self.folder / "state.git"))
        await self.until(lambda: one.shared.trouble)
        self.assertIn("main is Jitsu's own", one.shared.trouble)
        self.assertIn("git init --bare", one.shared.trouble)

    async def test_hangs(self) -> None:
        """A git that does not come to its end is ended; so is one that has an end while we stop."""
        script = self.folder / "ssh"
        script.write_text("#!/bin/sh\nexec sleep 60\n")
        script.chmod(0o755)
        self.patch(os, "environ", {**os.environ, "GIT_SSH_COMMAND": str(script)})
        self.patch(remote, "DEADLINE", 0.3)
        pygit2.init_repository(str(self.folder / "own.git"), bare=True)
        elsewhere = Remote("nobody@localhost:hub.git", self.folder / "own.git", reactor)
        begin = time.monotonic()
        error = await self.assertFailure(self._fetch(elsewhere), StoreError)
        self.assertIn("no end after", str(error))
        self.patch(remote, "DEADLINE", 60.0)
        fetching = self._fetch(elsewhere)
        await deferLater(reactor, 0.1)
        elsewhere.stop()
        await self.assertFailure(fetching, StoreError)
        self.assertLess(time.monotonic() - begin, 10.0)

    @staticmethod
    def _fetch(elsewhere: Remote) -> Any:
        return Deferred.fromCoroutine(elsewhere.fetch("refs/heads/main", "refs/jitsu/fetched"))

    async def test_no_hooks_of_ours(self) -> None:
        """Hooks in our own repository are none of these calls' business; those elsewhere are."""
        one = self.node()
        await self.agreed()
        for name in ("pre-push", "reference-transaction"):
            hook = one.path / "hooks" / name
            hook.write_text("#!/bin/sh\nexit 1\n")
            hook.chmod(0o755)
        one.ask({TTL: "5"})
        await self.agreed()
        hook = self.hub / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
        hook.chmod(0o755)
        one.ask({TTL: "6"})
        await self.until(lambda: "not today" in one.shared.trouble)


class ProgramTests(ProcessTestCase):
    """The program, with ``remote`` in its file."""

    def test_remote(self) -> None:
        """It shares what its file says; what others have shared meanwhile, it serves from its start on."""
        hub = self.folder / "hub.git"
        pygit2.init_repository(str(hub), bare=True, initial_head="main")
        said = f"persistdb: state.git\nremote: {hub}\nvms:\n"
        said += f"  - {{name: www, dns: www.jitsu.test, ip: 10.0.0.1, ttl: 30, uuid: {WWW}}}\n"
        process = self.serve("--zone", "jitsu.zone", configuration=said)
        self._until(lambda: vms(hub, MAIN).get(TTL) == "30")
        process.terminate()
        process.wait(PATIENCE)
        self.assertNotIn("Traceback", self.log())
        pygit2.Repository(str(hub)).references.create(MAIN, commit(hub, {TTL: "7"}, MAIN), force=True)
        self.serve("--zone", "jitsu.zone", configuration=said)
        self._until(lambda: self.ask("www.jitsu.test").answer[0].ttl == 7)

    def _until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.05)


class MeetTests(SynchronousTestCase):
    """One VM where two histories meet."""

    def test_table(self) -> None:
        """Each way in which the three can differ."""
        a, b, c = {"ip": "1"}, {"ip": "2"}, {"ip": "3"}
        both = {"ip": "2", "ttl": "5"}
        for base, ours, theirs, merged, new_, conflict in (
            (a, a, a, a, False, ""),
            (a, b, a, b, False, ""),
            (a, a, b, b, True, ""),
            (a, b, b, b, True, ""),
            (a, b, c, c, True, "ip: was '1', is '3' by now, should become '2'"),
            (a, {"ip": "1", "ttl": "5"}, b, both, True, ""),
            (a, b, {"ip": "1", "ttl": "5"}, both, True, ""),
            ({}, a, {}, a, False, ""),
            ({}, {}, a, a, True, ""),
            ({}, a, a, a, True, ""),
            ({}, a, both, both, True, "another node has added it first"),
            (a, {}, a, {}, False, ""),
            (a, a, {}, {}, True, ""),
            (a, {}, {}, {}, True, ""),
            (a, {}, b, b, True, "it was changed meanwhile, and should be removed"),
            (a, b, {}, {}, True, "it was removed meanwhile"),
        ):
            with self.subTest(base=base, ours=ours, theirs=theirs):
                one = meet(base, ours, theirs)
                self.assertEqual((merged, new_, conflict), (one.merged, one.new, "; ".join(one.conflicts)))


class SettleTests(SynchronousTestCase):
    """All VMs where two histories meet."""

    #: What differs: theirs alone, ours alone, both, a conflict.
    MEETINGS: Final[Mapping[str, Meeting]] = {
        "theirs": meet({}, {}, {"ip": "1"}),
        "ours": meet({}, {"ip": "2"}, {}),
        "both": meet({"a": "0", "b": "0"}, {"a": "1", "b": "0"}, {"a": "0", "b": "1"}),
        "conflict": meet({"a": "0"}, {"a": "1"}, {"a": "2"}),
    }

    def test_table(self) -> None:
        """What is theirs holds; what is ours is kept as far as it can be beside that."""
        theirs, both, conflict = {"theirs": {"ip": "1"}}, {"both": {"a": "1", "b": "1"}}, {"conflict": {"a": "2"}}
        second = "conflict: a: was '0', is '2' by now, should become '1'"
        for never, run, left, aside in (
            ((), {**theirs, **both, **conflict}, [], []),
            ((("theirs", {"ip": "1"}), ("ours", {"ip": "2"})),
             {**theirs, **both, **conflict, "ours": {}}, [], ["ours"]),
            ((("theirs", {"ip": "1"}),), {**both, **conflict}, ["theirs"], []),
            ((("both", {"a": "1", "b": "1"}),), {**theirs, **conflict, "both": {"a": "0", "b": "1"}}, [], ["both"]),
            ((("conflict", {"a": "2"}),), {**theirs, **both}, ["conflict"], []),
        ):
            with self.subTest(never=never):
                settled = settle(self.MEETINGS, self._refusing(never), {})
                self.assertEqual(run, settled.run)
                self.assertEqual(left, sorted(settled.left))
                self.assertEqual(sorted({*aside, "conflict"}), sorted(settled.aside))
                self.assertEqual(second, f"conflict: {settled.aside['conflict']}")

    def _refusing(self, never: tuple[tuple[str, Mapping[str, str]], ...]) -> Callable[[Any], str]:
        """Return what refuses VMs of these files all together, if they are as they are now where nobody says."""

        def refused(run: Mapping[str, Mapping[str, str]]) -> str:
            now = {uuid: run.get(uuid, self.MEETINGS[uuid].ours) for uuid, _ in never}
            return "no" if never and all(now[uuid] == said for uuid, said in never) else ""

        return refused

    def test_needs(self) -> None:
        """One that needs another is taken, whichever comes first."""
        meetings = {name: meet({}, {}, {"ip": name}) for name in ("a", "b", "bad", "c", "d")}

        def refused(run: Mapping[str, Any]) -> str:
            return "bad" if "bad" in run else "a needs d" if "a" in run and "d" not in run else ""

        settled = settle(meetings, refused, {})
        self.assertEqual((set("abcd"), {"bad": "bad"}), (set(settled.run), settled.left))

    def test_unknown(self) -> None:
        """What the hypervisor does not know is left, whatever else can be had."""
        settled = settle(self.MEETINGS, lambda _: "", {"theirs": "no such VM"})
        self.assertEqual({"theirs": "no such VM"}, settled.left)
        self.assertEqual({"both", "conflict"}, set(settled.run))


class ConfigurationTests(SynchronousTestCase):
    """The key ``remote``."""

    def test_key(self) -> None:
        """It takes what git takes, by its whole name, and needs a state to keep what is shared in."""
        for url in ("/srv/jitsu.git", "ssh://git@host/jitsu.git", "git@host:jitsu.git", "https://host/jitsu.git"):
            settings, _ = build.load({"remote": url, "persistdb": "x.git"}, FILE)
            self.assertEqual(url, settings.remote)
        for options, words in (
            ({"remote": "/srv/jitsu.git"}, "command line: remote: what is shared is kept in the state; say where"),
            ({"remote": "jitsu.git", "persistdb": "x.git"}, "is no git repository's URL; write one like"),
            ({"remote": "--upload-pack=x:y", "persistdb": "x.git"}, "is no git repository's URL"),
        ):
            with self.assertRaises(ConfigError) as raised:
                build.load(options, FILE)
            self.assertIn(words, str(raised.exception))
