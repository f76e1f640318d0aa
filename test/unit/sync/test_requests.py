"""Control by branch: what a request does to a running Jitsu, and what it may not do. A real repository, on a clock."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pygit2
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import MemoryBackend
from jitsu_tw.clocks import Clocks
from jitsu_tw.config import build
from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import NoSuchVM, StoreError
from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.history import MAIN, History, files
from jitsu_tw.store.layout import UNKNOWN
from jitsu_tw.sync.change_requests import FOUND_WITHIN, LOOK_EVERY, TRY_AGAIN, ChangeRequests
from jitsu_tw.sync.reconfigure import ConfigChange, LiveConfig
from jitsu_tw.vm.fleet import Fleet
from test.support import EPOCH, BoundedClock, alone, question
from test.support.zones import say
from test.unit.store.test_history import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WWW: Final = "00000000-0000-4000-8000-000000000001"
DB: Final = "00000000-0000-4000-8000-000000000002"
NEW: Final = "00000000-0000-4000-8000-000000000003"

FILE: Final = (f"dns=www.jitsu.test,ip=10.0.0.1,name=www,uuid={WWW},idle=100",
               f"dns=db.jitsu.test,ip=10.0.0.2,name=db,uuid={DB},mode=save")

ZONE: Final = "$ORIGIN jitsu.test.\n@ 60 SOA ns h 7 2 3 4 5\n@ 60 NS ns\nns 60 A 127.0.0.1\nx CNAME www\n"

#: The files of a VM that is new.
VM: Final = {"ip": "10.0.0.3", "dns/new.jitsu.test/ttl": "5", "config/name/0": "new"}

ANN: Final = pygit2.Signature("Ann", "ann@example.org")


class NowStore(GitStore):
    """A store whose threads take no time."""

    def run(self, function: Any, *arguments: Any, **more: Any) -> Deferred[Any]:
        """Call *function* at once."""
        return maybeDeferred(function, *arguments, **more)


def below(uuid: str, values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return *values* in the folder of a VM."""
    return {f"jitsu/vm/{uuid}/{path}": value for path, value in values.items()}


class RequestsTestCase(SynchronousTestCase):
    """A Jitsu without sockets, whose backend outlives it."""

    def setUp(self) -> None:
        """Begin with two VMs."""
        self.folder = Path(tempfile.mkdtemp(dir=QUICK))
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "state.git"
        (self.folder / "jitsu.zone").write_text(ZONE)
        self.clock = BoundedClock()
        self.clock.advance(1000)
        self.backend = MemoryBackend(reactor=self.clock)
        self.begin()

    def begin(self, pairs: Iterable[str] = FILE) -> None:
        """Start, as a process with a file that says *pairs*."""
        zone = str(self.folder / "jitsu.zone")
        options = {"zones": [zone], "backend": "memory", "persistdb": str(self.path), "delay": "0"}
        self.settings, self.zones = build.load(options, tuple(pairs))
        self.store = NowStore(self.path)
        remembered = self.store.open()
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        self.fleet = Fleet(
            self.settings, {("memory", ""): self.backend}, self.store, clocks, alone(self.settings, clocks)
        )
        self.changed: list[set[str]] = []
        self.running = LiveConfig(
            self.settings, self.fleet, self.zones, lambda names: self.changed.append(set(names))
        )
        self.branches = ChangeRequests(self.store, self.fleet, self.zones, self.running, self.clock)
        self.branches.restore(remembered)
        self.fleet.start(remembered)
        self.branches.start()

    def end(self) -> None:
        """Stop, in order."""
        self.successResultOf(Deferred.fromCoroutine(self.branches.stop()))
        self.successResultOf(self.fleet.stop())

    def commit(self, changes: Mapping[str, str | None], on: pygit2.Oid | None = None, message: str = "please") -> Any:
        """Return a commit of Ann's with *changes* to the one that it is *on*, or to `main`."""
        history = History(self.path)
        history.open()
        repository = history.repository
        base = repository[on or repository.references[MAIN].target].peel(pygit2.Commit)
        return repository.create_commit(None, ANN, ANN, message, history.tree(base.tree, changes), [base.id])

    def push(self, commit: Any, name: str = "a") -> None:
        """Push *commit* as a request."""
        pygit2.Repository(str(self.path)).references.create(REQUEST + name, commit, force=True)

    def ask(self, changes: Mapping[str, str | None], name: str = "a", on: pygit2.Oid | None = None) -> str:
        """Push *changes* as a request, let it be looked at, and return why it was rejected; "" if it was not."""
        self.push(self.commit(changes, on), name)
        self.clock.advance(LOOK_EVERY)
        references = pygit2.Repository(str(self.path)).references
        self.assertNotIn(REQUEST + name, references)
        if REJECTED + name not in references:
            return ""
        reason = references[REJECTED + name].peel(pygit2.Commit).message
        references.delete(REJECTED + name)
        return reason

    def head(self) -> pygit2.Commit:
        """Return the last commit of `main`."""
        return self.head_of(MAIN)

    def head_of(self, branch: str) -> pygit2.Commit:
        """Return the last commit of *branch*."""
        return pygit2.Repository(str(self.path)).references[branch].peel(pygit2.Commit)

    def tree(self, below_: str) -> dict[str, str]:
        """Return what the state says below a path."""
        return {path.removeprefix(below_): value for path, value in files(self.head().tree).items()
                if path.startswith(below_)}

    def answer(self, name: str = "www", qtype: int = 1) -> str:
        """Return the zones' answer for NAME.jitsu.test."""
        return say(self.zones.lookup(from_text(f"{name}.jitsu.test"), qtype))

    def ttl(self, name: str = "www") -> int:
        """Return the TTL of the address of NAME.jitsu.test."""
        outcome: Any = self.zones.lookup(from_text(f"{name}.jitsu.test"), 1)
        return int(outcome.answer[-1].ttl)

    def summon(self, name: str = "www") -> None:
        """Ask for a VM by name."""
        self.fleet.summons.summon(name, question(name)).addErrback(lambda _: None)
        self.clock.advance(0)


class ChangeTests(RequestsTestCase):
    """What can be changed."""

    def test_ttl(self) -> None:
        """A TTL is another one at once, for the zones and the state; the serial rises, old answers are dropped."""
        self.assertEqual("", self.ask(below(WWW, {"dns/www.jitsu.test/ttl": "5"})))
        self.assertEqual(5, self.ttl())
        self.assertEqual([8], [zone.serial for zone in self.zones])
        self.assertEqual([{"www"}, {"www"}], self.changed)  # before its settings are others, and when its records are
        self.assertEqual("5", self.tree(f"jitsu/vm/{WWW}/")["dns/www.jitsu.test/ttl"])

    def test_unknown_uuid(self) -> None:
        """A new VM in the folder of no uuid gets that of its hypervisor, if that tells one that no other VM has."""
        self.assertEqual("", self.ask(below(UNKNOWN, VM)))
        uuid = self.fleet.machines["new"].uuid
        self.assertEqual("10.0.0.3", self.tree(f"jitsu/vm/{uuid}/")["ip"])
        self.assertEqual({}, self.tree(f"jitsu/vm/{UNKNOWN}/"))
        other = {"ip": "10.0.0.4", "dns/other.jitsu.test/ttl": "5", "config/name/0": "other"}
        for found, why in ((succeed(WWW), "is VM www already"), (fail(NoSuchVM("no such VM")), "no such VM"),
                           (Deferred(), "no answer within 5 s")):  # fmt: skip
            self.patch(self.backend, "look_up", lambda _, found=found: found)
            self.push(self.commit(below(UNKNOWN, other)))
            self.clock.advance(LOOK_EVERY)
            self.clock.advance(FOUND_WITHIN)
            self.assertIn(why, self.head_of(REJECTED + "a").message)
        self.assertNotIn("other", self.fleet.machines)

    def test_ttl_of_the_top(self) -> None:
        """An empty TTL is that of the top of the file."""
        self.assertEqual("", self.ask(below(WWW, {"dns/www.jitsu.test/ttl": "5"})))
        self.assertEqual("", self.ask(below(WWW, {"dns/www.jitsu.test/ttl": ""})))
        self.assertEqual((60, "60"), (self.ttl(), self.tree(f"jitsu/vm/{WWW}/")["dns/www.jitsu.test/ttl"]))

    def test_message(self) -> None:
        """The commit says who and what; the request's own commit is a parent, so it and its author are in the log."""
        asked = self.commit(below(WWW, {"ip": "10.0.0.9"}), message="www moves\n\nat last")
        self.push(asked)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual("Merge request/a: www moves\n\nchanged: www\nasked for by Ann <ann@example.org>\n",
                         self.head().message)
        self.assertEqual(asked, self.head().parent_ids[1])

    def test_values(self) -> None:
        """All that a configuration can say for a VM is read by the same rules as there, and kept up while it runs."""
        self.assertEqual("", self.ask(below(WWW, {
            "ip": "10.0.0.9 2001:db8::9", "stop_mode": "pause", "dns/w.jitsu.test/ttl": "60", "config/idle/0": "7",
            "config/min_up/0": "3", "wait_for_key": "data/ready", "config/keep_up/0": "mon 08:00-09:00",
            "config/needs/0": "db", "config/faults/0": "stop",
        })))  # fmt: skip
        vm = self.fleet.machines["www"].vm
        self.assertEqual(["10.0.0.9", "2001:db8::9"], [str(one) for one in vm.ip])
        self.assertEqual(("pause", 7.0, 3.0, "data/ready", ("db",)),
                         (vm.mode.value, vm.idle, vm.min_up, vm.readiness["wait_for_key"], vm.needs))
        self.assertEqual("Found w.jitsu.test. AAAA 2001:db8::9 vm=www".replace("test. ", "test "), self.answer("w", 28))
        self.assertEqual(vm, self.backend.guests[WWW].vm)

    def test_remove_value(self) -> None:
        """What is said no more is as the top of the file has it."""
        self.ask(below(WWW, {"stop_mode": "save", "config/min_up/0": "9"}))
        self.assertEqual("", self.ask(below(WWW, {"stop_mode": None, "config/min_up": None, "config/idle": None})))
        vm = self.fleet.machines["www"].vm
        self.assertEqual(("destroy", 0.0, 120.0), (vm.mode.value, vm.min_up, vm.idle))
        self.assertEqual("destroy", self.tree(f"jitsu/vm/{WWW}/")["stop_mode"])

    def test_nothing(self) -> None:
        """If nothing changes, the VMs that run are not checked again: a node that shares asks each minute."""
        self.patch(LiveConfig, "vms", property(lambda _: self.fail("all VMs are checked")))
        self.assertEqual(ConfigChange(), self.branches.parse({}))

    def test_lease(self) -> None:
        """A VM that is up is kept as long as it says now."""
        self.summon()
        self.assertEqual(100.0, self.fleet.leases.left(self.fleet.machines["www"]))
        self.ask(below(WWW, {"config/idle/0": "50"}))
        self.assertEqual(50, round(self.fleet.leases.left(self.fleet.machines["www"]) or 0))
        self.clock.advance(51)
        self.assertIs(State.OFF, self.fleet.machines["www"].state)

    def test_new(self) -> None:
        """A new folder is a new VM, which can be asked for at once; its files are made complete."""
        self.assertEqual("", self.ask(below(NEW, VM)))
        self.assertEqual("Found new.jitsu.test A 10.0.0.3 vm=new", self.answer("new"))
        self.summon("new")
        self.assertIs(State.UP, self.fleet.machines["new"].state)
        self.assertEqual({**VM, "stop_mode": "destroy"}, self.tree(f"jitsu/vm/{NEW}/"))
        config = self.fleet.store.config
        self.assertEqual("request/a of Ann <ann@example.org>", config.origin(self.fleet.machines["new"].uuid))
        self.assertIsNone(config.origin(self.fleet.machines["www"].uuid))

    def test_new_elsewhere(self) -> None:
        """A new VM may be at a backend that nobody else is at."""
        self.assertEqual("", self.ask(below(NEW, {**VM, "config/connect/0": "other"})))
        self.summon("new")
        self.assertIs(State.UP, self.fleet.machines["new"].state)
        self.assertNotIn(NEW, self.backend.guests)

    def test_wildcard(self) -> None:
        """Answers that another VM's wildcard gave for a name that is new are dropped, too."""
        self.ask(below(WWW, {"dns/*.jitsu.test/ttl": "60"}))
        self.ask(below(NEW, VM))
        self.assertEqual({"www"}, self.changed[-1])

    def test_remove(self) -> None:
        """A folder that is gone is a VM that is gone: stopped by its mode, its names as the zone's file has them."""
        self.summon("db")
        self.assertEqual("", self.ask({f"jitsu/vm/{DB}": None}))
        self.assertIs(Power.SAVED, self.backend.guests[DB].power)
        self.assertEqual({"www"}, set(self.fleet.machines))
        self.assertTrue(self.answer("db").startswith("NxDomain"))
        self.assertEqual({}, self.tree(f"jitsu/vm/{DB}/") | self.tree(f"jitsu/origin/{DB}"))
        self.assertEqual("1", self.tree(f"jitsu/stats/{DB}/")["total_starts"])
        self.end()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_remove_while_booting(self) -> None:
        """A VM that is removed while it boots is stopped when it can be; one of its name can come only then."""
        self.ask(below(NEW, {**VM, "config/boot_time/0": "5"}))
        self.summon("new")
        self.ask({f"jitsu/vm/{NEW}": None})
        self.push(self.commit(below(NEW, {**VM, "ip": "10.0.0.4"})), "again")
        self.clock.advance(1)
        self.assertEqual(["again"], self.store.requests.waiting())
        self.clock.advance(4)
        self.assertIs(Power.OFF, self.backend.guests[NEW].power)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual("Found new.jitsu.test A 10.0.0.4 vm=new", self.answer("new"))
        self.summon("new")
        self.clock.advance(5)
        self.assertEqual("2", self.tree(f"jitsu/stats/{NEW}/")["total_starts"])

    def test_remove_not_ours(self) -> None:
        """A VM that runs, but not through us, is left alone."""
        self.backend.happen(DB, Power.RUNNING, "booted by hand")
        self.ask({f"jitsu/vm/{DB}": None})
        self.assertIs(Power.RUNNING, self.backend.guests[DB].power)
        self.assertNotIn("db", self.fleet.machines)
        self.backend.happen(DB, Power.OFF, "stopped by hand")

    def test_remove_that_does_not_stop(self) -> None:
        """A VM that cannot be stopped has no names any more, and stays in sight until it can; it can come again."""
        self.ask(below(NEW, {**VM, "config/faults/0": "stop"}))
        self.summon("new")
        self.ask({f"jitsu/vm/{NEW}": None})
        self.assertEqual("", self.answer("new").partition(" A ")[2])
        self.assertTrue(self.fleet.machines["new"].vm.removed)
        self.assertEqual("", self.ask(below(NEW, VM)))
        self.assertFalse(self.fleet.machines["new"].vm.removed)
        self.assertEqual("Found new.jitsu.test A 10.0.0.3 vm=new", self.answer("new"))

    def test_swap(self) -> None:
        """In one request, two VMs may change names and addresses with each other."""
        self.assertEqual("", self.ask({
            **below(WWW, {"ip": "10.0.0.2", "dns/www.jitsu.test": None, "dns/db.jitsu.test/ttl": "60"}),
            **below(DB, {"ip": "10.0.0.1", "dns/db.jitsu.test": None, "dns/www.jitsu.test/ttl": "60"}),
        }))  # fmt: skip
        self.assertEqual("Found www.jitsu.test A 10.0.0.1 vm=db", self.answer("www"))

    def test_several(self) -> None:
        """Several at once are merged one after the other."""
        base = self.head().id
        for number in range(5):
            uuid = NEW[:-1] + str(number + 3)
            self.push(self.commit(below(uuid, {"ip": f"10.0.1.{number}", f"dns/n{number}.jitsu.test/ttl": "5",
                                               "config/name/0": f"n{number}"}), base), f"n{number}")
        self.clock.advance(LOOK_EVERY)
        self.assertEqual(7, len(self.fleet.machines))
        self.assertEqual([], self.store.requests.waiting())

    def test_revert(self) -> None:
        """What undoes a request, pushed the same way, undoes it: a value, a new VM, one that was removed."""
        for changes in (below(WWW, {"ip": "10.0.0.9"}), below(NEW, VM), {f"jitsu/vm/{DB}": None}):
            before = self.tree("jitsu/vm/")
            self.assertEqual("", self.ask(changes))
            self.assertNotEqual(before, self.tree("jitsu/vm/"))
            merge = self.head()
            while len(merge.parent_ids) < 2:  # statistics may have been written since
                merge = merge.parents[0]
            with tempfile.TemporaryDirectory(dir=QUICK) as clone:
                push = "push -q origin HEAD:refs/heads/request/r"
                for words in ("clone -q {} .", "revert --no-edit -m 1 {merge}", push):
                    command = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org",
                               *words.format(self.path, merge=merge.id).split()]
                    run = subprocess.Popen(command, cwd=clone, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                    while run.poll() is None:
                        self.clock.advance(LOOK_EVERY)
                    _, why = run.communicate()
                    self.assertEqual(0, run.returncode, why)
            self.assertEqual(before, self.tree("jitsu/vm/"))
            self.assertEqual({"www", "db"}, set(self.fleet.machines))

    def test_remove_what_was_completed(self) -> None:
        """Who takes the commit back that brought a VM takes the VM back, though we have completed its files."""
        base = self.head().id
        asked = self.commit(below(NEW, VM))
        self.push(asked)
        self.clock.advance(LOOK_EVERY)
        self.assertIn("stop_mode", self.tree(f"jitsu/vm/{NEW}/"))
        repository = pygit2.Repository(str(self.path))
        before = repository[base].peel(pygit2.Commit).tree_id
        self.push(repository.create_commit(None, ANN, ANN, "back", before, [asked]))
        self.clock.advance(LOOK_EVERY)
        self.assertNotIn("new", self.fleet.machines)
        self.assertEqual({}, self.tree(f"jitsu/vm/{NEW}/"))

    def test_after_statistics(self) -> None:
        """A clone's statistics are squashed away meanwhile; its request is merged all the same, with none of them."""
        self.summon()
        base = self.head().id
        self.assertEqual("Statistics", self.head().message)
        self.clock.advance(1000)
        self.summon("db")
        self.assertNotEqual(base, self.head().id)
        self.assertEqual("", self.ask(below(WWW, {"ip": "10.0.0.9"}), on=base))
        self.assertEqual("1", self.tree(f"jitsu/stats/{DB}/")["total_starts"])

    def test_nothing_new(self) -> None:
        """A branch that main has already is only removed."""
        head = self.head().id
        self.push(head)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual(([], head), (self.store.requests.waiting(), self.head().id))

    def test_packed(self) -> None:
        """A request is found among packed branches, too."""
        self.push(self.commit(below(WWW, {"ip": "10.0.0.9"})))
        subprocess.run(["git", "-C", self.path, "pack-refs", "--all"], check=True)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual([], self.store.requests.waiting())
        self.assertEqual("Found www.jitsu.test A 10.0.0.9 vm=www", self.answer())


class RejectedTests(RequestsTestCase):
    """What cannot be, and changes nothing."""

    def test_wrong(self) -> None:
        """Each wrong request is put aside with the place, the reason and the remedy, and nothing else has changed."""
        www, new = f"jitsu/vm/{WWW}/", f"jitsu/vm/{NEW}/"
        for changes, reason in (
            (below(WWW, {"ip": "10.0"}), f"{www}ip: vms: www: ip: '10.0' is no IP address"),
            (below(WWW, {"stop_mode": "pausee"}), "did you mean pause?"),
            (below(WWW, {"dns": None}), "dns: is missing"),
            (below(WWW, {"ip": None}), "ip: is missing"),
            (below(WWW, {"config/idel/0": "5"}), f"{www}config/idel/0: idel: no such key; did you mean idle?"),
            (below(WWW, {"config/idle/1": "5"}), "is there twice"),
            (below(WWW, {"hello": "5"}), "hello is no file of a VM's; a key of the configuration is at config/KEY/0"),
            (below(WWW, {"dns/w.jitsu.test/ttl": "5", "dns/www.jitsu.test/ttl": "6"}), "new TTLs of 5 and 6"),
            (below(WWW, {"config/define/0": "www.xml"}), "should be a whole path"),
            (below(WWW, {"config/name/0": "other"}), "name: stays as it is"),
            (below(WWW, {"config/connect/0": "other"}), "connect: stays as it is"),
            (below(WWW, {"config/uuid/0": NEW}), "is not the name of the folder"),
            (below(WWW, {"config/name": None}), "is missing: the hypervisor's name"),
            (below(WWW, {"ip": "10.0.0.2"}), "10.0.0.2 is that of VM db already"),
            (below(WWW, {"config/needs/0": "nobody"}), "there is no VM 'nobody'"),
            (below(WWW, {"dns/www.example.org/ttl": "60"}), "is in none of the zones"),
            (below(WWW, {"dns/x.jitsu.test/ttl": "60"}), "has a CNAME record in the zone"),
            (below(NEW, {**VM, "config/name/0": "db"}), "db is that of another VM already"),
            (below(NEW, {**VM, "dns/db.jitsu.test/ttl": "5"}), "db.jitsu.test is that of VM db already"),
            (below(NEW, {**VM, "ip": None}), f"{new}config/name/0: vms: new: ip: is missing"),
            (below("mine", VM), "named by its uuid"),
            (below("0000000A-0000-4000-8000-000000000003", VM), "in lower case"),
            (below(WWW, {"config/a/b/c/0": "5"}), "too deep"),
            ({"jitsu/vm/README": "x"}, "named by its uuid"),
            ({f"jitsu/vm/{NEW}": "x"}, "is no plain file"),
            (below(WWW, {"ip": "x" * 70000}), "is no value"),
            (below(WWW, {"ip": "\0"}), "is no value"),
            ({"README": "x"}, "README is not for requests"),
            ({f"jitsu/stats/{WWW}/total_starts": "0"}, "jitsu/stats is not for requests"),
            ({**below(NEW, VM), **below(WWW, {"ip": "10.0.0.3"})}, "is that of VM"),
        ):  # fmt: skip
            with self.subTest(changes=changes):
                before = self.head().id, self.answer(), self.answer("db"), dict(self.fleet.machines)
                self.assertIn(reason, self.ask(changes) or "it was not rejected")
                self.assertEqual(before, (self.head().id, self.answer(), self.answer("db"), dict(self.fleet.machines)))
        self.assertEqual([7], [zone.serial for zone in self.zones])

    def test_conflict(self) -> None:
        """What two have changed differently is not merged: the second is told by which values."""
        base = self.head().id
        self.assertEqual("", self.ask(below(WWW, {"ip": "10.0.0.8"}), on=base))
        reason = self.ask(below(WWW, {"ip": "10.0.0.9"}), on=base)
        self.assertIn(f"jitsu/vm/{WWW}/ip: was '10.0.0.1', is '10.0.0.8' by now, should become '10.0.0.9'", reason)
        self.assertIn("conflicts", self.ask({f"jitsu/vm/{WWW}": None}, on=base))
        self.assertEqual("", self.ask(below(WWW, {"ip": "10.0.0.8", "stop_mode": "save"}), on=base))

    def test_unrelated(self) -> None:
        """A branch that has nothing to do with the state is put aside."""
        repository = pygit2.Repository(str(self.path))
        blob = repository.create_blob(b"x")
        builder = repository.TreeBuilder()
        builder.insert("jitsu", blob, pygit2.enums.FileMode.BLOB)
        self.push(repository.create_commit(None, ANN, ANN, "mine", builder.write(), []))
        self.push(blob, "b")
        self.clock.advance(LOOK_EVERY)
        said = {name: repository.references[REJECTED + name].peel(pygit2.Commit).message for name in "ab"}
        self.assertIn("no commit in common", said["a"])
        self.assertIn("is no commit", said["b"])

    def test_links(self) -> None:
        """Links and folders of others' repositories are no values."""
        repository = pygit2.Repository(str(self.path))
        for mode, to in ((pygit2.enums.FileMode.LINK, repository.create_blob(b"/etc/passwd")),
                         (pygit2.enums.FileMode.COMMIT, self.head().id)):
            index = pygit2.Index()
            index.read_tree(self.head().tree)
            index.add(pygit2.IndexEntry(f"jitsu/vm/{WWW}/config/idle/1", to, mode))
            tree = index.write_tree(repository)
            self.push(repository.create_commit(None, ANN, ANN, "link", tree, [self.head().id]))
            self.clock.advance(LOOK_EVERY)
            self.assertIn("no plain file", repository.references[f"{REJECTED}a"].peel(pygit2.Commit).message)

    def test_names_in_the_way(self) -> None:
        """Whatever a rejected branch is called, it can be put aside; there are only so many."""
        for name in ("www/a", "www", "www/a/b", "www"):
            self.assertNotEqual("", self.ask(below(DB, {"ip": "x"}), name))
        for name in ("x", "x/y", "x"):
            self.push(self.commit(below(DB, {"ip": "x"})), name)
            self.clock.advance(LOOK_EVERY)
        self.assertIn("refs/heads/rejected/x", pygit2.Repository(str(self.path)).references)

    def test_unknown_to_backend(self) -> None:
        """A new VM that its backend does not know, or knows under another uuid, is put aside."""
        def unknown(_: object) -> Deferred[str]:
            return maybeDeferred(self._raise)

        self.patch(self.backend, "look_up", unknown)
        self.assertIn("memory knows no such VM: no such thing", self.ask(below(NEW, VM)))
        self.patch(self.backend, "look_up", lambda _: maybeDeferred(lambda: DB))
        self.assertIn(f"memory has it as {DB}; name its folder so", self.ask(below(NEW, VM)))

    @staticmethod
    def _raise() -> str:
        message = "no such thing"
        raise NoSuchVM(message)


class RestartTests(RequestsTestCase):
    """What a request has changed, and the file."""

    def restart(self, *pairs: str) -> None:
        """End, and begin with a file that says *pairs*."""
        self.end()
        self.begin(pairs)

    def test_stays(self) -> None:
        """A VM that only a request has brought is there after a restart, marked; what the file has is as it says."""
        self.ask(below(NEW, VM))
        self.ask(below(WWW, {"ip": "10.0.0.9"}), "b")
        origin = self.fleet.store.config.origin(self.fleet.machines["www"].uuid)
        self.assertEqual("request/b of Ann <ann@example.org>, over the file", origin)
        self.summon("new")
        with capturedLogs() as log:
            self.restart(*FILE)
        self.assertIn("www: as the file has it again", " ".join(formatEvent(event) or "" for event in log))
        self.assertEqual({"www", "db", "new"}, set(self.fleet.machines))
        self.assertEqual("Found www.jitsu.test A 10.0.0.1 vm=www", self.answer())
        self.assertEqual("10.0.0.1", self.tree(f"jitsu/vm/{WWW}/")["ip"])
        config = self.fleet.store.config
        self.assertEqual((None, "request/a of Ann <ann@example.org>"),
                         tuple(config.origin(self.fleet.machines[name].uuid) for name in ("www", "new")))
        self.assertEqual("From command line\n\nchanged: www\n", self.head().parents[0].message
                         if self.head().message == "Statistics" else self.head().message)
        self.clock.advance(0)
        self.assertIs(State.UP, self.fleet.machines["new"].state)
        self.assertTrue(self.fleet.machines["new"].managed)

    def test_file_takes_it(self) -> None:
        """A VM that the file has by now is the file's; one that the file has no more goes."""
        self.ask(below(NEW, VM))
        self.restart(*FILE, f"dns=n.jitsu.test,ip=10.0.0.7,name=new,uuid={NEW}")
        self.assertEqual("Found n.jitsu.test A 10.0.0.7 vm=new", self.answer("n"))
        self.assertIsNone(self.fleet.store.config.origin(self.fleet.machines["new"].uuid))
        self.restart(*FILE)
        self.assertEqual({"www", "db"}, set(self.fleet.machines))
        self.assertEqual({}, self.tree(f"jitsu/vm/{NEW}/"))

    def test_leaves_the_file(self) -> None:
        """A VM of the file that requests have changed, and the file has no more, goes all the same, with its origin."""
        for name, idle in (("www/a", "7"), ("b", "8")):
            self.assertEqual("", self.ask(below(WWW, {"config/idle/0": idle}), name))
        self.restart(FILE[1])
        self.assertEqual({"db"}, set(self.fleet.machines))
        self.assertEqual({}, self.tree(f"jitsu/vm/{WWW}/") | self.tree(f"jitsu/origin/{WWW}"))
        self.restart(*FILE)
        self.assertIsNone(self.fleet.store.config.origin(self.fleet.machines["www"].uuid))

    def test_left_out(self) -> None:
        """What cannot be beside the file is left out, with the reason, and there again when it can be."""
        self.ask(below(NEW, {**VM, "config/needs/0": "db"}))
        for pairs in ((*FILE, "dns=other.jitsu.test,ip=10.0.0.3,name=other"), FILE[:1]):
            self.restart(*pairs)
            self.assertNotIn("new", self.fleet.machines)
            self.assertEqual("10.0.0.3", self.tree(f"jitsu/vm/{NEW}/")["ip"])
        self.restart(*FILE)
        self.assertIn("new", self.fleet.machines)

    def test_left_out_and_renamed(self) -> None:
        """A VM that was left out comes back by a request that mends it, also under another name."""
        self.ask(below(NEW, {**VM, "config/idle/0": "50"}))
        self.restart(*FILE, "dns=other.jitsu.test,ip=10.0.0.3,name=other")
        self.assertNotIn("new", self.fleet.machines)
        self.assertEqual("", self.ask(below(NEW, {"config/name/0": "newer", "ip": "10.0.0.4"})))
        self.assertEqual("Found new.jitsu.test A 10.0.0.4 vm=newer", self.answer("new"))

    def test_uuid(self) -> None:
        """A name keeps the uuid that the state has for it, where the backend has none."""
        self.ask(below(NEW, VM))
        self.restart(*FILE, "dns=n.jitsu.test,ip=10.0.0.7,name=new")
        self.assertEqual(NEW, self.fleet.machines["new"].uuid)

    def test_half_done(self) -> None:
        """A request that was merged when we were killed, and not removed, is only removed."""
        commit = self.commit(below(NEW, VM))
        self.push(commit)
        self.clock.advance(LOOK_EVERY)
        self.push(commit)
        self.restart(*FILE)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual([], self.store.requests.waiting())
        self.assertIn("new", self.fleet.machines)


class FaultTests(RequestsTestCase):
    """A state that cannot be written."""

    def test_waits(self) -> None:
        """While the state cannot be written a request waits, nothing changes, and later it is taken."""
        good, calls = self.store.accept, []

        def full(*_: object) -> Deferred[None]:
            calls.append(self.clock.seconds())
            message = "no space left"
            return maybeDeferred(self._raise, message)

        self.patch(self.store, "accept", full)
        self.push(self.commit(below(WWW, {"ip": "10.0.0.9"})))
        for _ in range(10):
            self.clock.advance(LOOK_EVERY)
        self.assertEqual(1, len(calls))
        self.assertEqual("Found www.jitsu.test A 10.0.0.1 vm=www", self.answer())
        self.patch(self.store, "accept", good)
        self.clock.pump([LOOK_EVERY] * round(TRY_AGAIN / LOOK_EVERY + 1))
        self.assertEqual("Found www.jitsu.test A 10.0.0.9 vm=www", self.answer())

    @staticmethod
    def _raise(message: str) -> None:
        raise StoreError(message)

    def test_statistics_are_kept(self) -> None:
        """Statistics that cannot be written are remembered, and written when they can be."""
        good = self.store.write
        self.patch(self.store, "write", lambda *_: maybeDeferred(self._raise, "no space left"))
        self.summon()
        self.clock.advance(60)
        self.patch(self.store, "write", good)
        self.clock.advance(60)
        self.assertEqual("1", self.tree(f"jitsu/stats/{WWW}/")["total_starts"])
