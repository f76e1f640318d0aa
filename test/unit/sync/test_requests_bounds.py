"""Requests that are hostile or fail: each is put aside, and what others ask for goes on."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from typing import Any, Final

import pygit2
from pygit2.enums import FileMode, ObjectType
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import StoreError
from jitsu_tw.store import bounds, requests
from jitsu_tw.store.bounds import Reader
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.requests import Requests, can_be_named, fairly, shortened
from jitsu_tw.sync.change_requests import FOUND_WITHIN, LOOK_EVERY, TRY_AGAIN
from test.unit.sync.test_requests import ANN, DB, NEW, VM, WWW, RequestsTestCase, below

#: A change that is right, and another one.
GOOD: Final = below(WWW, {"ip": "10.0.0.9"})
OTHER: Final = below(DB, {"ip": "10.0.0.8"})


class HostileTestCase(RequestsTestCase):
    """Has the repository, too."""

    @property
    def repository(self) -> pygit2.Repository:
        """The state's repository."""
        return pygit2.Repository(str(self.path))

    def look(self) -> None:
        """Let Jitsu look at the requests."""
        self.clock.advance(LOOK_EVERY)

    def reason(self, commit: Any, name: str = "a") -> str:
        """Push *commit* as a request, and return why it was rejected; "" if it was not."""
        self.push(commit, name)
        self.look()
        references = self.repository.references
        self.assertNotIn(REQUEST + name, references)
        return references[REJECTED + name].peel(pygit2.Commit).message if REJECTED + name in references else ""

    def raw(self, text: bytes) -> pygit2.Oid:
        """Write a commit of these lines behind the tree and the parent of a good one."""
        good = self.repository[self.commit(GOOD)].peel(pygit2.Commit)
        head = f"tree {good.tree_id}\nparent {good.parent_ids[0]}\n".encode()
        return self.repository.write(ObjectType.COMMIT, head + text)

    def rejected(self) -> list[str]:
        """Return the names of the requests that are put aside."""
        names = [name for name in self.repository.references if name.startswith(REJECTED)]
        return sorted(name.removeprefix(REJECTED) for name in names)


class CommitTests(HostileTestCase):
    """The commits of a request."""

    def chain(self, number: int, on: pygit2.Oid | None = None) -> pygit2.Oid:
        """Return the last of *number* commits."""
        for one in range(number):
            on = self.commit(below(WWW, {"config/idle/0": str(one + 1)}), on)
        assert on is not None
        return on

    def test_many(self) -> None:
        """A request has a bounded number of commits; one that has more is not kept."""
        self.patch(bounds, "MOST_COMMITS", 5)
        self.assertEqual("", self.reason(self.chain(5)))
        self.assertIn("more than 5 commits", self.reason(self.chain(6)))
        self.assertEqual([], self.repository.references[f"{REJECTED}a"].peel(pygit2.Commit).parent_ids)

    def test_old_clone(self) -> None:
        """How far `main` may be ahead is bounded, too."""
        base = self.head().id
        for one in range(9):
            self.assertEqual("", self.reason(self.commit(below(DB, {"config/idle/0": str(one + 1)}))))
        self.patch(bounds, "MOST_BEHIND", 5)
        self.assertIn("too old a clone", self.reason(self.commit(GOOD, base)))
        self.patch(bounds, "MOST_BEHIND", 50)
        self.assertEqual("", self.reason(self.commit(GOOD, base)))

    def test_hostile_times(self) -> None:
        """A commit from 1970, or from the future, is merged as any other."""
        for number, when in enumerate((0, 2**33)):
            who = pygit2.Signature("Ann", "ann@example.org", when, 0)
            good = self.repository[self.commit(below(WWW, {"ip": f"10.0.0.{number + 20}"}))].peel(pygit2.Commit)
            made = self.repository.create_commit(None, who, who, "please", good.tree_id, good.parent_ids)
            self.assertEqual("", self.reason(made))

    def test_merge(self) -> None:
        """A merge of two branches is a request as any other."""
        one, two = self.commit(GOOD), self.commit(OTHER)
        both = self.repository[self.commit(OTHER, one)].peel(pygit2.Commit).tree_id
        self.assertEqual("", self.reason(self.repository.create_commit(None, ANN, ANN, "both", both, [one, two])))
        self.assertEqual("Found db.jitsu.test A 10.0.0.8 vm=db", self.answer("db"))

    def test_each(self) -> None:
        """Each commit of a request changes nothing but VMs, not only the last."""
        undone = self.commit({"README": None}, self.commit({"README": "x"}))
        self.assertIn("README is not for requests", self.reason(self.commit(GOOD, undone)))

    def test_many_parents(self) -> None:
        """So is one with the same parent many times, as far as the size goes."""
        good = self.repository[self.commit(GOOD)].peel(pygit2.Commit)
        parents = list(good.parent_ids)
        self.assertEqual("", self.reason(self.repository.create_commit(None, ANN, ANN, "1", good.tree_id, parents * 9)))
        made = self.repository.create_commit(None, ANN, ANN, "2", good.tree_id, parents * 3000)
        self.assertIn("octets; at most", self.reason(made))

    def test_large(self) -> None:
        """A commit of more than 16 KB is not read."""
        self.assertIn("octets; at most 16384 are read",
                      self.reason(self.raw(b"author A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n\n" + bytes(70000))))

    def test_large_in_main(self) -> None:
        """A large commit that `main` has, of an earlier version, does not matter."""
        base = self.head().id
        self.store.history.commit({"jitsu/stats/x/y": "1"}, "x" * 50000)
        self.assertEqual("", self.reason(self.commit(GOOD, base)))
        self.store.history.commit({"jitsu/stats/x/y": "2"}, "x" * 50000)
        self.assertEqual("", self.reason(self.commit(OTHER)))

    def test_author(self) -> None:
        """What an author is called is printed within bounds, and so is the subject."""
        name = b"\x1b[2J" + b"A" * 5000
        lines = b"author %b <a@b> 0 +0000\ncommitter %b <a@b> 0 +0000\n\n%b" % (name, name, b"\xff\x1b" + b"x" * 5000)
        self.assertEqual("", self.reason(self.raw(lines)))
        message = self.head().message
        self.assertLess(len(message), 1000)
        self.assertTrue(message.replace("\n", "").isprintable(), message)

    def test_encoding(self) -> None:
        """A commit in an encoding that there is not is read all the same."""
        lines = b"author A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\nencoding nonsense\n\n\xe4"
        self.assertEqual("", self.reason(self.raw(lines)))

    def test_tag(self) -> None:
        """A tag is no commit."""
        tag = self.repository.create_tag("t", self.commit(GOOD), ObjectType.COMMIT, ANN, "tag")
        self.assertIn("is no commit", self.reason(tag))


class TreeTests(HostileTestCase):
    """The trees of a request."""

    def test_only_compared(self) -> None:
        """Folders that a request does not change are not looked into: neither its own nor those of `main`."""
        for number in range(3, 10):
            uuid = f"{NEW[:-1]}{number}"
            self.ask(below(uuid, {"ip": f"10.0.1.{number}", f"dns/n{number}.jitsu.test/ttl": "5",
                                  "config/name/0": f"n{number}"}))
        asked = self.commit(GOOD)
        read: list[str] = []
        good = Reader._entries

        def entries(reader: Reader, oid: pygit2.Oid, path: str, *more: Any) -> Any:
            read.append(path)
            return good(reader, oid, path, *more)

        self.patch(Reader, "_entries", entries)
        self.assertEqual("", self.reason(asked))
        self.assertEqual(set(), {path[: len("jitsu/vm/") + 36] for path in read if path.count("/") > 1}
                         - {f"jitsu/vm/{WWW}"})

    def test_damaged(self) -> None:
        """A tree that is damaged is put aside, and only the reason is kept."""
        tree = self.repository.write(ObjectType.TREE, b"x jitsu\0" + b"1" * 20)
        lines = f"tree {tree}\nparent {self.head().id}\nauthor A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n\nx"
        self.assertIn("cannot be read", self.reason(self.repository.write(ObjectType.COMMIT, lines.encode())))
        self.assertEqual([], self.repository.references[f"{REJECTED}a"].peel(pygit2.Commit).parent_ids)

    def test_not_read(self) -> None:
        """No value of a request is read before all of them were measured."""
        index = pygit2.Index()
        index.read_tree(self.head().tree)
        for name, value in (("0", b"1"), ("1", b"1" * 65537)):
            path = f"jitsu/vm/{WWW}/config/x/{name}"
            index.add(pygit2.IndexEntry(path, self.repository.create_blob(value), FileMode.BLOB))
        tree = index.write_tree(self.repository)
        asked = self.repository.create_commit(None, ANN, ANN, "large", tree, [self.head().id])
        read: list[str] = []
        self.patch(Reader, "value", lambda _, __, path: read.append(path))
        self.assertIn("too long", self.reason(asked))
        self.assertEqual([], read)

    def test_tidied(self) -> None:
        """What a request brings counts as something to tidy."""
        before = self.store.history.loose
        self.assertEqual("", self.reason(self.commit({**GOOD, **OTHER})))
        self.assertGreater(self.store.history.loose - before, 15)

    def test_conflict(self) -> None:
        """Long values that conflict are shown in part."""
        base = self.head().id
        self.assertEqual("", self.reason(self.commit(GOOD)))
        reason = self.reason(self.commit(below(WWW, {"ip": "x" * 60000}), base))
        self.assertIn("should become 'xxx", reason)
        self.assertLess(len(reason), 400)

    def test_together(self) -> None:
        """What one request changes is bounded in all, not for each VM only."""
        self.patch(bounds, "MOST_FILES_TOGETHER", 12)
        self.assertIn("too many files", self.reason(self.commit({**GOOD, **OTHER, **below(NEW, VM)})))
        self.patch(bounds, "MOST_FILES_TOGETHER", 1000)
        self.patch(bounds, "MOST_OCTETS_TOGETHER", 100)
        self.assertIn("too large", self.reason(self.commit({**GOOD, **OTHER, **below(NEW, VM)})))

    def test_ends(self) -> None:
        """When Jitsu ends, a request that is being read is given up, and waits for the next start."""
        self.push(self.commit(GOOD))
        self.store.requests.end()
        with capturedLogs() as log:
            self.end()
            self.look()
        self.assertEqual(["a"], self.store.requests.waiting())
        self.assertEqual([], [event for event in log if event.get("log_failure")])
        calls = iter([False] * 3 + [True] * 1000)
        reader = Reader(self.repository, lambda: next(calls))
        asked = self.repository.references[f"{REQUEST}a"].target
        error = self.assertRaises(StoreError, reader.measure, asked, self.head().id)
        self.assertIn("ends", str(error))


class FailureTests(HostileTestCase):
    """Requests that fail for a reason that nobody thought of, and a state that cannot be used."""

    def test_while_read(self) -> None:
        """A request that cannot be read for such a reason is rejected; the ones after it are merged."""
        good = Requests._changes

        def changes(this: Requests, reader: Reader, commit: pygit2.Commit, head: Any) -> Any:
            if commit.raw_message == b"bad":
                raise RecursionError
            return good(this, reader, commit, head)

        self.patch(Requests, "_changes", changes)
        self.push(self.commit(GOOD, message="bad"), "a")
        self.push(self.commit(OTHER), "b")
        self.look()
        self.assertEqual(["a"], self.rejected())
        self.assertEqual("Found db.jitsu.test A 10.0.0.8 vm=db", self.answer("db"))
        self.assertEqual(1, len(self.flushLoggedErrors(RecursionError)))

    def test_pushed_again(self) -> None:
        """A branch that has become another request while it was read stays, and is read anew."""
        self.push(self.commit(GOOD), "a")
        reading = Requests(self.store.history)
        request, other = reading.read("a"), self.commit(OTHER)
        assert request is not None
        self.push(other, "a")
        reading.reject(request, "no")
        self.assertEqual(other, self.repository.references[f"{REQUEST}a"].target)

    def test_while_understood(self) -> None:
        """So is one that fails when its meaning is looked at, or when it is merged."""
        parse, accept = self.branches.parse, self.store.accept

        def parsed(changes: Any, guest: str = "") -> Any:
            if DB in changes:
                raise TypeError
            return parse(changes, guest)

        def accepted(request: Any, *more: Any) -> Any:
            return maybeDeferred(lambda: 1 // 0) if request.name == "b" else accept(request, *more)

        self.patch(self.branches, "parse", parsed)
        self.patch(self.store, "accept", accepted)
        for name, changes in (("a", OTHER), ("b", below(NEW, VM)), ("c", GOOD)):
            self.push(self.commit(changes), name)
        self.look()
        self.assertEqual(["a", "b"], self.rejected())
        self.assertEqual("Found www.jitsu.test A 10.0.0.9 vm=www", self.answer())
        self.assertEqual(2, len(self.flushLoggedErrors(TypeError, ZeroDivisionError)))

    def test_state(self) -> None:
        """One for which the state cannot be used waits, `healthz` says so, and the ones after it are merged."""
        good, tries = self.store.accept, []

        def accept(request: Any, *more: Any) -> Any:
            if request.name == "a":
                tries.append(self.clock.seconds())
                return maybeDeferred(self._raise)
            return good(request, *more)

        self.patch(self.store, "accept", accept)
        self.push(self.commit(GOOD), "a")
        self.push(self.commit(OTHER), "b")
        with capturedLogs() as log:
            self.clock.pump([LOOK_EVERY] * 40)
        self.assertEqual("Found db.jitsu.test A 10.0.0.8 vm=db", self.answer("db"))
        self.assertEqual(["a"], self.store.requests.waiting())
        self.assertEqual(2, len(tries))
        self.assertGreaterEqual(tries[1] - tries[0], TRY_AGAIN)
        self.assertEqual(["requests wait (1, for 8 s), because the state cannot be used: no space"],
                         self.branches.problems())
        self.assertEqual(1, sum("requests wait" in (formatEvent(event) or "") for event in log))
        self.patch(self.store, "accept", good)
        self.clock.pump([LOOK_EVERY] * 30)
        self.assertEqual([], self.branches.problems())

    @staticmethod
    def _raise() -> None:
        message = "no space"
        raise StoreError(message)

    def test_silent_backend(self) -> None:
        """A silent backend holds a request up for some seconds, however many VMs are new, and a stop not at all."""
        asked: list[Deferred[str]] = []

        def look_up(_: object) -> Deferred[str]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(self.backend, "look_up", look_up)
        more = {f"{NEW[:-1]}{number}": {"ip": f"10.0.0.{number}", f"dns/n{number}.jitsu.test/ttl": "5",
                                        "config/name/0": f"n{number}"} for number in (3, 4, 6)}  # fmt: skip
        changes = {path: value for uuid, files in more.items() for path, value in below(uuid, files).items()}
        self.push(self.commit(changes))
        self.look()
        self.clock.advance(FOUND_WITHIN - 1)
        asked[0].callback(NEW)
        self.assertEqual(["a"], self.store.requests.waiting())
        self.clock.advance(1)
        self.assertEqual([], self.store.requests.waiting())
        self.assertEqual(2 + 3, len(asked))  # each new VM is looked for once more when it is there
        self.assertIn("n6", self.fleet.machines)
        last = {"ip": "10.0.0.5", "dns/m.jitsu.test/ttl": "5", "config/name/0": "m"}
        self.push(self.commit(below(f"{NEW[:-1]}5", last)), "b")
        self.look()
        self.end()
        self.assertEqual(["b"], self.store.requests.waiting())


class SenderTests(HostileTestCase):
    """What one sender can use is a share."""

    def test_turns(self) -> None:
        """Requests are taken one of each sender, then one more of each."""
        self.assertEqual(["a", "db/1", "www/1", "b", "www/2", "www/3"],
                         fairly(["a", "b", "db/1", "www/1", "www/2", "www/3"]))

    def test_order(self) -> None:
        """An operator's request is taken after at most one of each VM's own, however many wait."""
        taken: list[str] = []
        self.patch(self.branches, "_handle", lambda name: maybeDeferred(taken.append, name))
        commit = self.commit(GOOD)
        for name in (*(f"a/{number}" for number in range(20)), "zz"):
            self.push(commit, name)
        self.look()
        self.assertEqual(["a/0", "zz", "a/1"], taken[:3])

    def test_rejected(self) -> None:
        """Of the rejected ones the oldest of the sender that has most gives way."""
        self.patch(requests, "MOST_REJECTED", 4)
        self.reason(self.commit(below(WWW, {"ip": "x"})), "mine")
        for number in range(9):
            self.reason(self.commit(below(WWW, {"ip": "x"})), f"www/{number}")
        self.assertEqual(4, len(self.rejected()))
        self.assertIn("mine", self.rejected())

    def test_names(self) -> None:
        """A branch whose name is too long, or no text, is passed over with one line; others are taken."""
        folder = os.fsencode(self.path / REQUEST)
        self.push(self.commit(GOOD), "zz")
        for name in (b"\xff", b"\x1b[2J", b"x" * 220):
            with open(os.path.join(folder, name), "w") as file:  # noqa: PTH118, PTH123 -- the names are octets
                file.write(f"{self.head().id}\n")
        with capturedLogs() as log:
            self.look()
            self.look()
        self.assertEqual("Found www.jitsu.test A 10.0.0.9 vm=www", self.answer())
        lines = [formatEvent(event) or "" for event in log if "passed over" in (formatEvent(event) or "")]
        self.assertEqual(3, len(lines))
        self.assertTrue(all(line.isprintable() for line in lines), lines)
        self.assertEqual([False, False, False, True],
                         [can_be_named(name) for name in ("\udcff", "\x1b", "x" * 201, "dns für alle")])

    def test_reason(self) -> None:
        """A reason is of bounded length, and can be printed."""
        self.assertEqual("a\\x1b\nb", shortened("a\x1b\nb"))
        for text in ("x" * 10**6, "\x1b" * 10**6):
            self.assertLess(len(shortened(text)), 4100)

    def test_merged_after_all(self) -> None:
        """A request that is merged takes what was put aside under its name with it."""
        self.assertNotEqual("", self.reason(self.commit(below(WWW, {"ip": "x"}))))
        self.assertEqual("", self.reason(self.commit(GOOD)))


class TTLTests(HostileTestCase):
    """A VM's TTL, which each of its names has."""

    def test_one_file(self) -> None:
        """Of a VM with two names one file is changed; the other follows."""
        self.assertEqual("", self.reason(self.commit(below(WWW, {"dns/w.jitsu.test/ttl": "60"}))))
        for name in ("w", "www"):
            ttl = "7" if name == "w" else "8"
            self.assertEqual("", self.reason(self.commit(below(WWW, {f"dns/{name}.jitsu.test/ttl": ttl}))))
            self.assertEqual([int(ttl)] * 2, [self.ttl("w"), self.ttl("www")])
            self.assertEqual({ttl}, {value for path, value in self.tree(f"jitsu/vm/{WWW}/dns/").items()})
        both = below(WWW, {"dns/w.jitsu.test/ttl": "1", "dns/www.jitsu.test/ttl": "2"})
        self.assertIn("new TTLs of 1 and 2", self.reason(self.commit(both)))

    def test_guest(self) -> None:
        """So it is from the VM's own branch."""
        self.assertEqual("", self.reason(self.commit(below(WWW, {"dns/w.jitsu.test/ttl": "60"}))))
        self.assertEqual("", self.reason(self.commit(below(WWW, {"dns/w.jitsu.test/ttl": "61"})), "www/x"))
        self.assertEqual(61, self.ttl("www"))


class WalkTests(SynchronousTestCase):
    """Which commits are new, as git itself finds it."""

    def test_like_git(self) -> None:
        """On random graphs, with many commits in a second, it is what `git rev-list` says."""
        with tempfile.TemporaryDirectory() as folder:
            repository = pygit2.init_repository(folder, bare=True)
            empty = repository.TreeBuilder().write()
            chance = random.Random(4711)
            commits: list[pygit2.Oid] = []
            for number in range(60):
                who = pygit2.Signature("a", "a@b", 1000 + number // 20, 0)
                parents = chance.sample(commits, chance.choice([1, 1, 2])) if number > 2 else commits[-1:]
                commits.append(repository.create_commit(None, who, who, str(number), empty, parents))
            for _ in range(60):
                new, *known = chance.sample(commits, 3)
                found = Reader(repository).arrivals(new, known)
                expected = self.git(folder, "rev-list", str(new), *(f"^{one}" for one in known))
                self.assertEqual(expected, {str(one) for one in found})

    def git(self, folder: str, *words: str) -> set[str]:
        """Return the lines that git says."""
        run = subprocess.run(["git", "-C", folder, *words], check=False, capture_output=True, text=True)
        return set(run.stdout.split())
