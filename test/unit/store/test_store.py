"""What every store must do, on memory and on git; and what git does besides."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import StoreError
from jitsu_tw.store import git, history
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.layout import (
    STATISTICS,
    NameUse,
    Stats,
    in_folder,
    made_at,
    made_by,
    read_stats,
    stats_paths,
    vm_changes,
    vm_files,
)
from jitsu_tw.store.memory import MemoryStore
from test.contract import store as contract_store
from test.support import vm


class MemoryStoreTests(contract_store.StoreContract):
    """The contract, in memory."""

    def setUp(self) -> None:
        """Make a store."""
        self.store = MemoryStore()
        self.store.open()

    def again(self) -> Any:
        """Return the same: it ends with the process."""
        return self.store


class GitStoreTests(contract_store.StoreContract):
    """The contract, in a git repository; looked at with git itself."""

    def setUp(self) -> None:
        """Make a repository."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.path = folder / "state.git"
        self.store = GitStore(self.path)
        self.store.open()

    def again(self) -> Any:
        """Open the repository again."""
        return GitStore(self.path)

    def git(self, *arguments: str) -> str:
        """Return git's output for the repository."""
        run = subprocess.run(["git", "-C", self.path, *arguments], check=True, capture_output=True, text=True)
        return run.stdout

    async def test_readable(self) -> None:
        """Any git reads it: one file for each path, one commit for each step, with its reason."""
        await self.store.write({"jitsu/vm/1/ip": "10.0.0.1"}, "first")
        await self.store.write({"jitsu/vm/1/ip": "10.0.0.2"}, "second")
        self.assertEqual("10.0.0.2\n", self.git("show", "main:jitsu/vm/1/ip"))
        self.assertEqual("second\nfirst\n", self.git("log", "--format=%s", "main"))
        self.assertEqual("", self.git("fsck", "--strict", "--no-dangling"))

    async def test_statistics(self) -> None:
        """Statistics that follow statistics replace them; a configuration's commit stays."""
        await self.store.write({"a": "1"}, "configuration")
        for number in range(5):
            await self.store.write({"n": str(number)}, STATISTICS)
        await self.store.write({"a": "2"}, "configuration again")
        await self.store.write({"n": "9"}, STATISTICS)
        self.assertEqual(f"{STATISTICS}\nconfiguration again\n{STATISTICS}\nconfiguration\n",
                         self.git("log", "--format=%s", "main"))

    async def test_rests(self) -> None:
        """Statistics wait while those before have written much, but for a first burst; a configuration never waits."""
        self.patch(git, "RATE", 1.0)
        await self.store.write({"a": "1"}, "configuration")
        waits: list[float] = []
        with mock.patch.object(self.store._ends, "wait", waits.append):
            for number in range(3):
                await self.store.write({"n": str(number)}, STATISTICS)
            await self.store.write({"a": "2"}, "configuration again")
        self.assertEqual([False, True, True], [seconds > 0 for seconds in waits], waits)
        self.assertLess(waits[1] + 1, waits[2])

    async def test_no_rest_at_the_end(self) -> None:
        """When Jitsu ends, a commit that rests is made at once."""
        self.patch(git, "RATE", 0.01)
        for number in range(2):
            written = self.store.write({"n": str(number)}, STATISTICS)
        await self.store.close()
        await written
        self.assertEqual("1\n", self.git("show", "main:n"))

    async def test_nothing_new(self) -> None:
        """A write that changes nothing is no commit."""
        await self.store.write({"a": "1"}, "one")
        await self.store.write({"a": "1"}, "two")
        self.assertEqual("one\n", self.git("log", "--format=%s", "main"))

    async def test_lock_left_behind(self) -> None:
        """
        A lock of another process is respected; one that a killed process has left is old, and does not count.

        Neither does one from the future: the clock was set back since.
        """
        await self.store.write({"a": "1"}, "one")
        lock = self.path / "refs" / "heads" / "main.lock"
        lock.touch()
        store = self.again()
        store.open()
        await self.assertFailure(store.write({"a": "2"}, "two"), StoreError)
        self.assertEqual({"a": "1"}, self.again().open())
        for value, modified in (("2", 1.0), ("3", time.time() + 3600)):
            lock.touch()
            os.utime(lock, (modified, modified))
            await store.write({"a": value}, value)
            self.assertEqual(f"{value}\n", self.git("show", "main:a"))

    def test_memory(self) -> None:
        """A year of commits takes no more memory than a day of them: nothing is kept of what was written."""
        self.patch(history, "PUSH_TAKES", 0.0)

        def commits(number: int) -> int:
            for one in range(number):
                self.store.history.commit({f"jitsu/stats/{uuid}/start_ts": str(one) for uuid in "ab"}, STATISTICS)
            gc.collect()
            return sys.getallocatedblocks()

        before = commits(20)
        self.assertLess(commits(200) - before, 100)

    async def test_damaged(self) -> None:
        """A damaged repository is an error that names the way back, never an empty state."""
        await self.store.write({"a": "1"}, "one")
        (self.path / "refs" / "heads" / "main").write_text("0123456789012345678901234567890123456789\n")
        error = self.assertRaises(StoreError, self.again().open)
        self.assertIn("fsck", str(error))
        (self.path / "refs" / "heads" / "main").unlink()
        self.assertIn("no branch main", str(self.assertRaises(StoreError, self.again().open)))

    def test_foreign(self) -> None:
        """A folder with something else in it is not taken for a state, and not touched."""
        other = self.path.with_name("other")
        other.mkdir()
        (other / "letter.txt").write_text("dear")
        self.assertRaises(StoreError, GitStore(other).open)
        self.assertEqual(["letter.txt"], [path.name for path in other.iterdir()])

    async def test_cannot_write(self) -> None:
        """A failed write is an error and leaves the state unchanged; later ones succeed."""
        await self.store.write({"a": "1"}, "one")
        objects = self.path / "objects"
        objects.rename(self.path / "away")
        objects.touch()
        await self.assertFailure(self.store.write({"a": "2"}, "two"), StoreError)
        objects.unlink()
        (self.path / "away").rename(objects)
        await self.store.write({"a": "3"}, "three")
        self.assertEqual({"a": "3"}, self.again().open())


class LayoutTests(SynchronousTestCase):
    """Where things lie."""

    def test_changes_of_a_folder(self) -> None:
        """Only files that differ are written; one that is gone is removed."""
        was, files = {"ip": "10.0.0.1", "stop_mode": "save", "config/a/0": "1"}, {"ip": "10.0.0.2", "stop_mode": "save"}
        changes = vm_changes("u", was, {**files, "dns/x/ttl": "5"})
        self.assertEqual({"jitsu/vm/u/ip": "10.0.0.2", "jitsu/vm/u/config/a/0": None, "jitsu/vm/u/dns/x/ttl": "5"},
                         changes)

    def test_made(self) -> None:
        """The origin of a VM that a template has made has the time of that, to a second; others have none."""
        self.assertEqual("template site, 2023-11-14T22:13:20Z", made_by("site", 1_700_000_000.9))
        self.assertEqual(1_700_000_000.0, made_at(made_by("site", 1_700_000_000.9)))
        for origin in ("template site", "template site, soon", "request/a, 2023-11-14T22:13:20Z", ""):
            self.assertIsNone(made_at(origin))

    def test_last_use(self) -> None:
        """A VM was last used when the last of what is known of it happened."""
        for times in ((7.0, 1.0, 1.0), (1.0, 7.0, 1.0), (1.0, 1.0, 7.0)):
            start_ts, stop_ts, used_ts = times
            stats = Stats(start_ts, stop_ts, used_ts=used_ts, dns={"a": NameUse(5.0, 1)})
            self.assertEqual(7.0, stats.last_use_ts)
        self.assertEqual(5.0, Stats(start_ts=4.0, dns={"a": NameUse(5.0, 1)}).last_use_ts)
        self.assertEqual(0.0, Stats().last_use_ts)

    def test_stats(self) -> None:
        """Statistics survive being written and read; what is no number is passed over."""
        stats = Stats(1.5, 2.25, 7, {"www.jitsu.test": NameUse(3.125, 4)})
        paths = stats_paths("u", stats)
        self.assertEqual("4", paths["jitsu/stats/u/dns/www.jitsu.test/total_requests"])
        self.assertEqual({"u": stats}, read_stats(paths))
        self.assertEqual({"u": Stats()}, read_stats({"jitsu/stats/u/total_starts": "many", "jitsu/other": "1"}))

    def test_vm(self) -> None:
        """A VM lies where the original's does."""
        said = {"nic": ("br0", "br1"), "response_delay": ("0.1",), "dns": ("www.jitsu.test",), "ttl": ("60",)}
        paths = in_folder("u", vm_files(vm(response_delay=0.1, raw=said)))
        self.assertEqual(
            {"ip", "stop_mode", "response_delay", "dns/www.jitsu.test/ttl", "config/nic/0", "config/nic/1"},
            {path.removeprefix("jitsu/vm/u/") for path in paths},
        )
