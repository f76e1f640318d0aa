"""How trees are written: those of many VMs as octets, without libgit2; each as git itself would have it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import pygit2
from pygit2.enums import FileMode, ObjectType
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import StoreError
from jitsu_tw.store import bulk, trees
from jitsu_tw.store.history import History
from jitsu_tw.store.layout import STATISTICS
from jitsu_tw.store.trees import Rows, Trees

#: Enough VMs for a wide tree of statistics.
MANY = trees.WIDE // 63 + 10


def uuid(number: int) -> str:
    """Return a uuid."""
    return str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)))


class TreesTestCase(SynchronousTestCase):
    """Has a repository."""

    def setUp(self) -> None:
        """Make it."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.path = folder / "state.git"
        self.history = History(self.path)
        self.history.open()
        self.repository = self.history.repository
        self.trees = self.history.trees

    def fsck(self) -> None:
        """Check all objects by git."""
        run = subprocess.run(["git", "-C", self.path, "fsck", "--strict", "--no-dangling"], check=False,
                             capture_output=True, text=True)  # fmt: skip
        self.assertEqual((0, ""), (run.returncode, run.stdout), run.stderr)

    def plainly(self, changes: dict[str, str | None], tree: pygit2.Oid | None = None) -> pygit2.Oid:
        """Write *tree* with *changes* by libgit2 only."""
        with mock.patch.object(trees, "WIDE", 1 << 40), mock.patch.object(trees, "BULK", 1 << 40):
            return Trees(self.repository).write(tree, changes)

    def no_libgit2(self) -> Any:
        """Fail when libgit2 reads or writes a wide tree."""
        builder = self.repository.TreeBuilder

        def build(*tree: pygit2.Tree) -> Any:
            for one in tree:
                self.assertLess(len(one), MANY // 2)
            return builder(*tree)

        return mock.patch.object(self.repository, "TreeBuilder", build, create=True)


class WideTests(TreesTestCase):
    """Trees of many VMs."""

    def test_as_git_has_it(self) -> None:
        """VMs are added, changed and removed, first, last and between, and the tree is the one that libgit2 writes."""
        chance = random.Random(1)
        wide: pygit2.Oid | None = None
        plain: pygit2.Oid | None = None
        for turn in range(8):
            numbers = range(MANY + 200) if turn == 0 else chance.sample(range(2 * MANY), 60)
            changes: dict[str, str | None] = {}
            for number in numbers:
                path = f"jitsu/stats/{uuid(number)}"
                if turn and chance.random() < 0.4:
                    changes[path] = None
                else:
                    changes[f"{path}/start_ts"] = str(turn)
            if turn:
                assert wide is not None
                folder = self.repository[wide].peel(pygit2.Tree)["jitsu/stats"].peel(pygit2.Tree)
                there = sorted(entry.name or "" for entry in folder)
                changes |= {f"jitsu/stats/{there[0]}": None, f"jitsu/stats/{there[-1]}": None,
                            f"jitsu/stats/{UUID(int=turn)}/start_ts": "0"}
            self.trees.write(wide, {"a": "1"})
            with self.no_libgit2():
                wide = self.trees.write(wide, changes)
            plain = self.plainly(changes, plain)
            self.assertEqual(plain, wide)
        self.fsck()

    def test_emptied(self) -> None:
        """When its last VM goes, so does a folder; a wide one becomes narrow, and is as libgit2 has it."""
        all_ = [f"jitsu/stats/{uuid(number)}" for number in range(MANY)]
        changes: dict[str, str | None] = {f"{path}/start_ts": "1" for path in all_}
        wide = self.trees.write(None, changes)
        self.assertEqual(self.plainly({f"{all_[0]}/start_ts": "1"}), self.trees.write(wide, dict.fromkeys(all_[1:])))
        self.assertEqual(self.plainly({"a": "1"}), self.trees.write(wide, {"a": "1", **dict.fromkeys(all_)}))

    def test_odd(self) -> None:
        """A folder with other entries than VMs' folders is written by libgit2, whether it had them or gets them."""
        changes: dict[str, str | None] = {f"jitsu/vm/{uuid(number)}/ip": "1" for number in range(MANY)}
        wide = self.trees.write(None, changes)
        for odd in ("jitsu/vm/file", "jitsu/vm/folder/ip", f"jitsu/vm/{'x' * 35}./ip", f"jitsu/vm/{uuid(7)[:-1]}ü/ip",
                    f"jitsu/vm/{uuid(MANY + 9)}"):  # fmt: skip
            plain = self.plainly({**changes, odd: "1"})
            self.assertEqual(plain, self.trees.write(wide, {odd: "1"}), odd)
            more: dict[str, str | None] = {f"jitsu/vm/{uuid(MANY + 1)}/ip": "1"}
            self.assertEqual(self.plainly(more, plain), self.trees.write(plain, more), odd)
        self.fsck()

    def test_read(self) -> None:
        """A tree is taken for one of VMs' folders only if each of its octets says so."""
        row = b"40000 " + uuid(1).encode() + bytes(21)
        self.assertEqual(Rows(row * 2), Rows.read(row * 2))
        self.assertIsNone(Rows.read(row + row[:-1]))
        for at in (*range(6), 20, 42):
            other = row[:at] + (b"x" if at == 42 else b"\0") + row[at + 1 :]
            self.assertIsNone(Rows.read(row + other), at)

    def test_sizes(self) -> None:
        """A zlib stream of any number of blocks is read as what was written."""
        for size in (1, 65534, 65535, 65536, 131070, 131071):
            octets = os.urandom(size)
            stream = b"".join(trees._stored(b"head", octets))
            self.assertEqual(b"head" + octets, zlib.decompress(stream), size)

    def test_kept(self) -> None:
        """After the start, and after a commit, no wide tree is read again; a few are kept, and no more."""
        changes: dict[str, str | None] = {f"jitsu/{kind}/{uuid(number)}/ip": kind
                                          for number in range(MANY) for kind in ("vm", "stats")}  # fmt: skip
        self.history.commit(changes, "one")
        again = History(self.path)
        again.open(lambda: None)
        with mock.patch.object(Rows, "read", side_effect=AssertionError("a wide tree is read")):
            for turn in range(3):
                for kind in ("vm", "stats"):
                    again.commit({f"jitsu/{kind}/{uuid(turn)}/ip": str(turn)}, STATISTICS)
        tree = self.history.head
        assert tree is not None
        for turn in range(10):
            self.trees.write(tree.tree_id, {f"jitsu/vm/{uuid(turn)}/ip": str(turn)})
        self.assertLessEqual(len(self.trees._kept), trees.KEPT)

    def test_refused(self) -> None:
        """What cannot be written is an error, and leaves neither half of a file nor a commit."""
        changes: dict[str, str | None] = {f"jitsu/vm/{uuid(number)}/ip": "1" for number in range(MANY)}
        self.history.commit(changes, "one")
        before = self.history.head
        with mock.patch.object(trees, "_stored", side_effect=OSError(28, "No space left on device")):
            self.assertRaises(StoreError, self.history.commit, {f"jitsu/vm/{uuid(1)}/ip": "2"}, "two")
        self.assertEqual([], [*self.path.glob("objects/*/tmp*")])
        self.assertEqual(before, self.history.head)
        self.history.commit({f"jitsu/vm/{uuid(1)}/ip": "2"}, "two")
        self.assertEqual("2", History(self.path).open()[f"jitsu/vm/{uuid(1)}/ip"])
        self.fsck()

    def test_left(self) -> None:
        """Half of a wide tree that a killed process has left is removed at the next start."""
        left = self.path / "objects/ab" / f"{trees.TEMPORARY}1"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"x")
        History(self.path).open(lambda: None)
        self.assertFalse(left.exists())
        self.assertFalse((self.path / "damaged").exists())

    def test_on_disk(self) -> None:
        """A wide tree is on the disk before the branch moves."""
        synced: list[str] = []
        self.patch(trees, "sync_file", lambda path: synced.append(str(path)))
        changes: dict[str, str | None] = {f"jitsu/vm/{uuid(number)}/ip": "1" for number in range(MANY)}
        self.patch(trees, "MANY", 1 << 40)
        tree = self.trees.write(None, changes)
        self.trees.sync()
        name = str(self.repository[tree].peel(pygit2.Tree)["jitsu/vm"].id)
        self.assertIn(f"{self.repository.path}/objects/{name[:2]}/{name[2:]}", synced)


class ImportedTests(TreesTestCase):
    """Many changes at once."""

    def setUp(self) -> None:
        """Count the importer's runs, and their parts."""
        super().setUp()
        self.parts: list[int] = []
        write = bulk.write

        def counted(repository: pygit2.Repository, parts: Any) -> Any:
            parts = [(tree, list(values)) for tree, values in parts]
            self.parts.append(len(parts))
            return write(repository, parts)

        self.patch(bulk, "write", counted)

    def test_part_by_part(self) -> None:
        """What many VMs have is imported VM by VM, and is as libgit2 has it: new, changed, and removed."""
        first: dict[str, str | None] = {}
        for number in range(MANY):
            base = f"jitsu/vm/{uuid(number)}"
            first |= {f"{base}/ip": str(number), f"{base}/dns/vm{number}.test/ttl": "60", f"{base}/config/nic/0": "br0"}
        later: dict[str, str | None] = {f"jitsu/origin/{uuid(1)}": "request/a of b", f"jitsu/vm/{uuid(2)}": None}
        for number in range(3, MANY + 50):
            base = f"jitsu/vm/{uuid(number)}"
            later |= {f"{base}/ip": "" if number % 3 else None, f"{base}/config/nic": None, f"{base}/config/a/0": "\n"}
        later |= {path: None for path in first if path.startswith(f"jitsu/vm/{uuid(3)}/")}
        later.pop(f"jitsu/vm/{uuid(3)}/config/a/0")
        tree = self.trees.write(None, first)
        self.assertEqual(self.plainly(first), tree)
        after = self.trees.write(tree, later)
        self.assertEqual(self.plainly(later, tree), after)
        self.assertEqual([MANY, MANY + 47], self.parts)
        self.fsck()

    def test_one_large_folder(self) -> None:
        """One VM with very many values among many does not hide the others; few folders are gone into."""
        large: dict[str, str | None] = {f"jitsu/vm/{uuid(0)}/config/a/{number}": "1" for number in range(trees.BULK)}
        few: dict[str, str | None] = {f"jitsu/vm/{uuid(number)}/ip": "1" for number in range(trees.FORKS)}
        for changes, parts in ((large, [trees.BULK]), (large | few, [trees.FORKS])):
            self.parts.clear()
            self.assertEqual(self.plainly(changes), self.trees.write(None, changes))
            self.assertEqual(parts, self.parts)

    def test_shards(self) -> None:
        """The importer has no folder with a number of entries near that of the VMs: it is quadratic in that."""
        commands = b"".join(bulk._commands((None, (("ip", "1"),)) for _ in range(10 * bulk.SHARDS)))
        folders = [line.split(b'"')[1].split(b"/")[0] for line in commands.splitlines() if line.startswith(b"M ")]
        self.assertEqual({10}, {folders.count(folder) for folder in set(folders)})

    def test_modes(self) -> None:
        """A file among the parts stays a file."""
        blob = self.repository.create_blob(b"1\n")
        tree = self.repository.odb.write(ObjectType.TREE, b"100644 ip\0" + blob.raw)
        expected = [(0, (blob, FileMode.BLOB)), (1, (tree, FileMode.TREE))]
        self.assertEqual(expected, bulk.write(self.repository, [(None, [("", "1")]), (None, [("ip", "1")])]))
