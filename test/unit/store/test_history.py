"""The state's repository: what is kept of its past, what may go wrong under it, and that nothing breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Final
from unittest import mock

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.config.schema import KEYS
from jitsu_tw.errors import StoreError
from jitsu_tw.settings import Retention
from jitsu_tw.store import bulk, git, history, tidy, trees
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.history import MAIN, History, files
from jitsu_tw.store.layout import STATISTICS
from jitsu_tw.store.tidy import Tidy

#: A file system in memory, if there is one.
QUICK: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

#: Fills a disk of 400 KiB while it commits; prints the errors, frees space, and goes on.
FULL: Final = """
import os, sys
from pathlib import Path
from jitsu_tw.errors import StoreError
from jitsu_tw.store.history import History
from jitsu_tw.store.layout import STATISTICS
state = History(Path("disk/state.git"))
state.open()
state.commit({"jitsu/vm/1/ip": "10.0.0.1"}, "first")
with open("disk/filler", "wb", 0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
for turn in range(20):
    try:
        state.commit({f"jitsu/stats/{turn}/total_starts": str(turn) * 5000}, STATISTICS)
    except StoreError as error:
        print("refused:", error)
        break
os.unlink("disk/filler")
state.commit({"jitsu/stats/1/total_starts": "7"}, STATISTICS)
print(History(Path("disk/state.git")).open()["jitsu/stats/1/total_starts"])
"""

#: Removes empty folders of objects as fast as it can: argv is the path of the objects.
REMOVER: Final = """
import contextlib, os, sys
os.chdir(sys.argv[1])
while True:
    for number in range(256):
        with contextlib.suppress(OSError):
            os.rmdir(f"{number:02x}")
"""


class HistoryTestCase(SynchronousTestCase):
    """Has a repository."""

    def setUp(self) -> None:
        """Make it."""
        folder = Path(tempfile.mkdtemp(dir=QUICK))
        self.addCleanup(shutil.rmtree, folder)
        self.path = folder / "state.git"
        self.now = 1000.0
        self.history = self.opened()

    def opened(self, past: Retention | None = None) -> History:
        """Open it again."""
        opened = History(self.path, past, lambda: self.now)
        opened.open()
        return opened

    def git(self, *arguments: str) -> str:
        """Return git's output for it."""
        run = subprocess.run(["git", "-C", self.path, *arguments], check=True, capture_output=True, text=True)
        return run.stdout

    def values(self) -> dict[str, str]:
        """Return its whole tree, as a new process reads it."""
        return History(self.path).open()


class PastTests(HistoryTestCase):
    """How much of the statistics is kept."""

    def statistics(self, past: Retention, times: int, every: float = 10.0) -> list[str]:
        """Commit statistics so often; return those of `main`, the last first."""
        self.history = self.opened(past)
        for turn in range(times):
            self.now += every
            self.history.commit({"n": str(turn)}, STATISTICS)
        commits = self.git("log", "--format=%h", "main", "--", "n").split()
        return [self.git("show", f"{one}:n").strip() for one in commits]

    def test_kept(self) -> None:
        """The given number, or the given time, is kept at least, and never twice as many and one; by default one."""
        self.history.commit({"a": "1"}, "configuration")
        for past, expected in ((Retention(), 1), (Retention(number=3), 3), (Retention(seconds=45), 5)):
            with self.subTest(past=past):
                found = self.statistics(past, 23)
                self.assertEqual([str(22 - one) for one in range(len(found))], found)
                self.assertTrue(expected <= len(found) <= 2 * expected + 1, found)
        self.assertEqual("configuration\n", self.git("log", "-1", "--format=%s", "main", "--", "a"))

    def test_said(self) -> None:
        """It is given as a time or as a number of commits."""
        parse = KEYS["keep_history"].parse
        for text, expected in (("0", Retention()), ("100", Retention(number=100)),
                               ("30d", Retention(seconds=2592000.0)), ("12h", Retention(seconds=43200.0)),
                               ("5m", Retention(seconds=300.0))):
            self.assertEqual(expected, parse(text))
        for text in ("", "d", "-1", "1.5d", "3y", "often"):
            self.assertIn("write one like 30d", str(self.assertRaises(ValueError, parse, text)))

    def test_begin_with_statistics(self) -> None:
        """Statistics without any configuration before them are squashed, too."""
        self.assertEqual(["2"], self.statistics(Retention(), 3))
        self.assertEqual("1\n", self.git("rev-list", "--count", "main"))

    def test_later(self) -> None:
        """A later process that is to keep less removes more."""
        self.statistics(Retention(number=10), 8)
        self.assertEqual(["0"], self.statistics(Retention(), 1))


class FaultTests(HistoryTestCase):
    """What others do to it."""

    def test_main_moved(self) -> None:
        """A commit that another program puts into `main` is moved to `rejected/main`, not lost, and not used."""
        self.history.commit({"a": "1"}, "one")
        self.history.commit({"a": "2"}, "two")
        self.git("update-ref", "refs/heads/main", "main~1")
        self.history.commit({"b": "1"}, "three")
        self.flushLoggedErrors()
        self.assertEqual({"a": "2", "b": "1"}, self.values())
        self.assertEqual("one\n", self.git("log", "-1", "--format=%s", "rejected/main"))
        self.git("update-ref", "-d", "refs/heads/main")
        self.history.commit({"b": "2"}, "four")
        self.assertEqual({"a": "2", "b": "2"}, self.values())

    def test_work_tree(self) -> None:
        """A repository of another project is not taken for a state."""
        subprocess.run(["git", "init", "-q", self.path.with_name("project")], check=True)
        error = self.assertRaises(StoreError, History(self.path.with_name("project")).open)
        self.assertIn("work tree", str(error))

    def test_damaged(self) -> None:
        """An object that is missing or cut off ends the start with the remedy."""
        self.history.commit({"a/b": "1"}, "one")
        blob = self.git("rev-parse", "main:a/b").strip()
        object_ = self.path / "objects" / blob[:2] / blob[2:]
        object_.chmod(0o644)
        for content in (object_.read_bytes()[:10], b"", None):
            if content is not None:
                object_.write_bytes(content)
            error = self.assertRaises(StoreError, History(self.path).open)
            self.assertIn("fsck", str(error))
            self.assertIn("move it away", str(error))
            self.assertFalse(object_.exists())

    def test_cut_off(self) -> None:
        """What a loss of power has cut off, and nothing refers to, is put away; the state is as it was."""
        self.history.commit({"a/b": "1"}, "one")
        loose = self.path / "objects" / "12" / ("3" * 38)
        loose.parent.mkdir(exist_ok=True)
        loose.write_bytes(b"x\x9c1")
        self.assertEqual({"a/b": "1"}, self.values())
        self.assertEqual(["12" + "3" * 38], [path.name for path in self.path.glob("damaged/*")])

    def test_packed_branches(self) -> None:
        """`git pack-refs` changes nothing."""
        self.history.commit({"a": "1"}, "one")
        self.git("pack-refs", "--all")
        self.history.commit({"a": "2"}, "two")
        self.assertEqual({"a": "2"}, self.values())

    def in_namespace(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script where ``disk`` is a small file system of its own."""
        folder = self.path.with_name("place")
        (folder / "disk").mkdir(parents=True)
        mount = "mount -t tmpfs -o size=400k tmpfs disk"
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", f"{mount}\n{script}"], cwd=folder, check=False, capture_output=True,
            text=True, env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip

    def test_full_disk(self) -> None:
        """A full disk is an error with the reason; when there is space again, it goes on, and nothing is missing."""
        run = self.in_namespace(f"$PYTHON -c '{FULL}'\ngit -C disk/state.git fsck --strict --no-dangling")
        self.assertIn("No space left on device", run.stdout, run.stderr)
        self.assertEqual("7", run.stdout.splitlines()[-1])
        self.assertEqual(0, run.returncode, run.stderr)

    def test_read_only(self) -> None:
        """A read-only file system can be read; a write is an error with the reason; a new state is refused."""
        code = """
from pathlib import Path
from jitsu_tw.errors import StoreError
from jitsu_tw.store.history import History
state = History(Path("disk/state.git"))
print(state.open())
for act in (lambda: state.commit({"a": "2"}, "two"), History(Path("disk/new.git")).open):
    try:
        act()
    except StoreError as error:
        print(error)
"""
        make = code.split("print", maxsplit=1)[0] + 'state.open()\nstate.commit({"a": "1"}, "one")'
        run = self.in_namespace(f"$PYTHON -c '{make}'\nmount -o remount,ro disk\n$PYTHON -c '{code}'")
        first, *others = run.stdout.splitlines()
        self.assertEqual("{'a': '1'}", first, run.stderr)
        self.assertEqual([True, True], ["Read-only file system" in line for line in others], others)

    def test_killed(self) -> None:
        """Killed 200 times while it commits, merges, rejects and tidies up, it is whole each time (`git fsck`)."""
        seed = str(time.time_ns() % 10**6)
        run = subprocess.run(
            [sys.executable, "-m", "test.support.killer", self.path.with_name("killed.git"), "200", seed],
            cwd=Path(__file__).parents[3], check=False, capture_output=True, text=True,
        )  # fmt: skip
        self.assertIn("killed 200 times", run.stdout, run.stderr)


class BulkTests(HistoryTestCase):
    """Many changes at once."""

    def test_same(self) -> None:
        """The importer of git writes the same tree as libgit2, odd names, removals and lines included."""
        self.history.commit({"a/b": "1", "a/c": "2", "d/e/f": "3", "g": "4"}, "one")
        head = self.history.head
        assert head is not None
        changes = {"a/b": "9", "d/e": None, "g": None, 'h/"x" \\y ü': "two\nlines\n", "h/1": "", "i": "a file"}
        expected = self.history.tree(head.tree, changes)
        self.patch(trees, "BULK", 1)
        with mock.patch.object(bulk, "write", wraps=bulk.write) as imported:
            self.assertEqual(expected, self.history.tree(head.tree, changes))
        self.assertTrue(imported.called)
        self.assertEqual(["main"], self.git("branch", "--format=%(refname:short)").split())

    def test_used(self) -> None:
        """What is large goes that way, also as the first commit; what git refuses is an error, and no change."""
        self.patch(trees, "BULK", 3)
        self.history.commit({f"a/{one}": str(one) for one in range(10)}, "one")
        self.history.commit(dict.fromkeys(f"a/{one}" for one in range(1, 10)), "two")
        self.assertEqual({"a/0": "0"}, self.values())
        changes: dict[str, str | None] = {"a//b": "1", "c": "2", "d": "3"}
        self.assertRaises(StoreError, self.history.commit, changes, "three")
        self.assertEqual({"a/0": "0"}, self.values())
        for left in self.path.glob("fast_import_crash_*"):
            left.unlink()


class TidyTests(HistoryTestCase):
    """The repository does not grow."""

    def setUp(self) -> None:
        """Make a history with statistics."""
        super().setUp()
        self.now = time.time()
        self.tidy = Tidy(self.history)
        self.history.commit({"jitsu/vm/1/ip": "1"}, "one")

    def statistics(self, times: int) -> None:
        """Commit statistics so often."""
        for turn in range(times):
            self.history.commit({"jitsu/stats/1/start_ts": f"{self.now}{turn}"}, STATISTICS)

    def all_old(self) -> None:
        """Make all objects old."""
        self.history.recent.clear()
        for path in self.path.glob("objects/*/*"):
            os.utime(path, (1, 1))

    def run_it(self) -> None:
        """Tidy up."""
        self.tidy.pack()
        self.tidy.drop()
        self.tidy.prune()

    def count(self) -> dict[str, int]:
        """Return what git counts."""
        return {key: int(value) for key, value in
                (line.split(": ") for line in self.git("count-objects", "-v").splitlines())}

    def test_tidy(self) -> None:
        """Afterwards there is one pack with what is in use, and nothing else; and it is whole."""
        for _ in range(3):
            self.statistics(30)
            self.all_old()
            self.run_it()
            found = self.count()
            self.assertEqual((0, 1), (found["count"], found["packs"]))
            self.assertEqual(found["in-pack"], len(self.git("rev-list", "--objects", "--all").splitlines()))
        self.assertEqual("", self.git("fsck", "--strict"))
        self.assertEqual({"jitsu/vm/1/ip", "jitsu/stats/1/start_ts"}, self.values().keys())

    def test_young(self) -> None:
        """Young objects, and recent heads of main, are kept: a reference may be about to be written."""
        self.statistics(1)
        before = self.git("rev-parse", "main").strip()
        for path in self.path.glob("objects/*/*"):
            os.utime(path, (1, 1))
        self.statistics(1)
        self.run_it()
        self.git("cat-file", "-e", f"{before}^{{tree}}")
        self.history.recent.clear()
        self.statistics(1)
        self.run_it()
        self.git("cat-file", "-e", f"{before}^{{tree}}")

    def test_used_again(self) -> None:
        """What only an old pack has, and is written again while the new one is made, is not lost."""
        self.history.commit({"x": "the very same"}, "two")
        self.all_old()
        self.run_it()
        self.history.commit({"x": None}, "three")
        self.git("update-ref", "refs/heads/main", "main~2")  # as if that had never been
        self.history = self.opened()
        self.tidy = Tidy(self.history)
        self.all_old()
        time.sleep(2.1)  # libgit2 touches a pack no second time within two seconds (`tidy.SLACK`)
        self.tidy.pack()
        self.history.commit({"y": "the very same"}, "four")
        self.tidy.drop()
        self.tidy.prune()
        self.assertEqual("", self.git("fsck", "--strict", "--no-dangling"))
        self.assertEqual("the very same", self.values()["y"])

    def test_left_behind(self) -> None:
        """What killed processes have left half written is removed when it is old."""
        for name in ("tmp_pack_1", "tmp_idx_1"):
            (self.path / "objects" / "pack" / name).touch()
        (self.path / "objects" / "00").mkdir(exist_ok=True)
        (self.path / "objects" / "00" / "tmp_object_git2_x").touch()
        self.all_old()
        self.opened()
        self.run_it()
        self.assertEqual([], [path.name for path in self.path.glob("objects/*/tmp_*")])

    def test_due(self) -> None:
        """Tidying is due after many objects, or after fewer large ones; a new process counts existing ones."""
        self.patch(tidy, "MOST_LOOSE", 100)
        self.statistics(5)
        self.assertFalse(self.tidy.is_due)
        self.statistics(20)
        self.assertTrue(self.tidy.is_due)
        self.assertTrue(Tidy(self.opened()).is_due)
        self.run_it()
        self.assertFalse(self.tidy.is_due)
        self.patch(tidy, "MOST_OCTETS", 1000)
        self.statistics(10)
        self.assertTrue(self.tidy.is_due)

    def test_littered(self) -> None:
        """It is due when pushes have left much that nobody counts, and nothing of that is left; not again at once."""
        for number in range(3 * 256):
            loose = self.path / "objects" / f"{number % 256:02x}" / f"{number:038x}"
            loose.parent.mkdir(exist_ok=True)
            loose.write_bytes(zlib.compress(b"blob 100\0" + os.urandom(100)))
        self.assertFalse(self.tidy.is_due)
        for most, few in (("MOST_IN_FOLDER", 3), ("MOST_OCTETS_IN_FOLDER", 300)):
            before = getattr(tidy, most)
            self.patch(tidy, most, few)
            self.assertTrue(self.tidy.is_due)
            self.patch(tidy, most, before)
        self.tidy._began = time.time()
        self.patch(tidy, "MOST_IN_FOLDER", 3)
        self.assertFalse(self.tidy.is_due)

    def test_without_git(self) -> None:
        """Without git nothing is packed, and an error is logged."""
        self.patch(shutil, "which", lambda _: None)
        self.assertIn("not installed", str(self.assertRaises(StoreError, self.tidy.pack)))


class BesideTests(TestCase):
    """A store that is tidied while it is written to."""

    def setUp(self) -> None:
        """Make it."""
        folder = Path(tempfile.mkdtemp(dir=QUICK))
        self.addCleanup(shutil.rmtree, folder)
        self.path = folder / "state.git"

    async def test_bounded(self) -> None:
        """However long it runs, objects do not come together; a stop waits for no pack."""
        self.patch(tidy, "MOST_LOOSE", 60)
        self.patch(tidy, "GRACE", 1)
        self.patch(history, "PUSH_TAKES", 0.0)
        store = GitStore(self.path)
        store.open()
        await store.write({"a": "1"}, "one")
        most = 0
        for turn in range(300):
            await deferLater(reactor, 0.02, lambda: None)
            await store.write({"jitsu/stats/1/start_ts": str(turn)}, STATISTICS)
            most = max(most, sum(len(files) for _, _, files in os.walk(self.path / "objects")))
        await store.close()
        self.assertLess(most, 900)  # of 1800 that were written
        self.assertEqual({"a": "1", "jitsu/stats/1/start_ts": "299"}, GitStore(self.path).open())

    async def test_cannot(self) -> None:
        """Where it cannot be tidied, that is in the log, and it is written all the same."""
        self.patch(tidy, "MOST_LOOSE", 1)
        self.patch(git, "Tidy", lambda _: None)
        store = GitStore(self.path)
        store._tidy = Tidy(store.history)
        self.patch(shutil, "which", lambda _: None)
        store.open()
        await store.write({"a": "1"}, "one")
        await store.write({"a": "2"}, "two")
        await store.close()
        self.assertEqual({"a": "2"}, GitStore(self.path).open())


class RemoverTests(SynchronousTestCase):
    """A git that tidies removes empty folders, now and then the one that was just made for an object."""

    def test_held(self) -> None:
        """What is written into such a folder is written."""
        folder = Path(tempfile.mkdtemp(dir=QUICK))
        self.addCleanup(shutil.rmtree, folder)
        for number in range(12):
            state = History(folder / str(number))
            state.open()
            with subprocess.Popen([sys.executable, "-S", "-c", REMOVER, state.path / "objects"]) as remover:
                try:
                    for turn in range(100):
                        state.commit({"a": str(turn)}, "a step")
                finally:
                    remover.kill()
            self.assertEqual({"a": "99"}, History(state.path).open())


class ReadTests(HistoryTestCase):
    """How it is read."""

    def test_no_tree(self) -> None:
        """There are no files in no tree, and main is the branch."""
        self.assertEqual({}, files(None))
        self.assertNotIn(MAIN, self.history.repository.references)
        self.assertIsNone(self.history.head)
