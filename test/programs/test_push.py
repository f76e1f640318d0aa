"""The hooks of a state, by real pushes; no Jitsu runs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import SkipTest

import pygit2
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import StoreError
from jitsu_tw.store import hooks, lock, push
from jitsu_tw.store.bounds import Reader
from jitsu_tw.store.branches import REQUEST
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.history import History
from jitsu_tw.store.lock import Lock, holder
from jitsu_tw.store.push import Update, refusal
from test.hostile.requests import WWW, file, folder, paths, put, tree
from test.unit.store.test_history import QUICK
from test.unit.sync.test_requests import ANN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: A user with no rights, on any system.
NOBODY: Final = 65534

#: A commit, in hexadecimal, and none.
ONE: Final = "1" * 40
NONE: Final = "0" * 40

TTL: Final = f"jitsu/vm/{WWW}/dns/www.jitsu.test/ttl"


class PushTestCase(SynchronousTestCase):
    """Has a state, as one that Jitsu has written, and a clone."""

    def setUp(self) -> None:
        """Make both."""
        self.folder = Path(tempfile.mkdtemp(dir=QUICK))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.path, self.clone = self.folder / "state.git", self.folder / "clone"
        self.history = History(self.path)
        self.history.open()
        self.history.commit({f"jitsu/vm/{WWW}/ip": "10.0.0.1", TTL: "60"}, "first")
        self.git("clone", "-q", str(self.path), str(self.clone), folder=self.folder)
        self.repository = pygit2.Repository(str(self.clone))

    def git(
        self, *words: str, folder: Path | None = None, status: int = 0, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run git; return its output."""
        run = subprocess.run(["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", *words],
                             cwd=folder or self.clone, check=False, capture_output=True, text=True,
                             env={**os.environ, **(environment or {})})  # fmt: skip
        self.assertEqual(status, run.returncode, run.stderr)
        return run.stdout + run.stderr

    def commit(self, make: Callable[[pygit2.Repository, pygit2.Oid], pygit2.Oid] | None = None) -> str:
        """Return a commit on `main` with the tree that *make* returns; with another TTL without that."""
        head = self.repository.revparse_single("origin/main").peel(pygit2.Commit)
        blob = self.repository.create_blob(b"5")
        tree = make(self.repository, head.tree_id) if make else put(self.repository, head.tree_id, TTL, blob, 0o100644)
        return str(self.repository.create_commit(None, ANN, ANN, "please", tree, [head.id]))

    def push(self, commit: str, branch: str = "request/a", status: int = 0, **environment: str) -> str:
        """Push a commit; return git's output."""
        return self.git("push", "origin", f"{commit}:refs/heads/{branch}", status=status, environment=environment)

    def branches(self) -> set[str]:
        """Return the branches of the state."""
        return {name.removeprefix("refs/heads/") for name in pygit2.Repository(str(self.path)).references}

    def objects(self) -> set[str]:
        """Return the objects of the state."""
        return {str(oid) for oid in pygit2.Repository(str(self.path))}


class RefusalTests(SynchronousTestCase):
    """Which sender may push what."""

    def test_table(self) -> None:
        """An operator's branches, and those of one VM's own sender."""
        for branch, operator, guest in (
            ("refs/heads/request/a", "", "/www/... only"),
            ("refs/heads/request/www/a", "", ""),
            ("refs/heads/request/www2/a", "", "/www/... only"),
            ("refs/heads/request/www", "", "/www/... only"),
            ("refs/heads/wip", "", "/www/... only"),
            ("refs/heads/main", "Jitsu's own", "/www/... only"),
            ("refs/heads/rejected/www/a", "Jitsu's own", "/www/... only"),
            ("refs/notes/x", "push to refs/heads/request/NAME", "/www/... only"),
            ("refs/tags/v1", "push to refs/heads/request/NAME", "/www/... only"),
            ("refs/jitsu/shared", "push to refs/heads/request/NAME", "/www/... only"),
            ("refs/heads/request/www/\x1b[2J", "can be printed", "can be printed"),
            ("refs/heads/request/www/" + "x" * 220, "at most 220", "at most 220"),
        ):
            for vm, expected in (("", operator), ("www", guest)):
                with self.subTest(branch=branch, vm=vm):
                    said = refusal(Update(NONE, ONE, branch), vm)
                    self.assertTrue(expected in said if expected else not said, said)

    def test_removes(self) -> None:
        """What was rejected, and what waits, may be removed by its sender."""
        for branch in ("request/www/a", "rejected/www/a"):
            self.assertEqual("", refusal(Update(ONE, NONE, f"refs/heads/{branch}"), "www"))
        self.assertIn("only", refusal(Update(ONE, NONE, "refs/heads/rejected/db/a"), "www"))
        self.assertIn("Jitsu's own", refusal(Update(ONE, NONE, "refs/heads/main"), ""))


class HookTests(PushTestCase):
    """What is pushed while no Jitsu runs."""

    def test_waits(self) -> None:
        """A request waits, and the push reports that; it can be taken back."""
        self.assertIn("a waits: no Jitsu runs with this state", self.push(self.commit()))
        self.assertEqual({"main", "request/a"}, self.branches())
        self.push("", "request/a")
        self.assertEqual({"main"}, self.branches())
        self.push(self.commit(), "wip")
        self.assertEqual({"main", "wip"}, self.branches())

    def test_beyond(self) -> None:
        """What is beyond the bounds is rejected with the reason, and none of its objects is kept."""
        before = self.objects()
        for make in (folder(f"jitsu/vm/{WWW}/config/x", paths(1, 1200)), file(TTL, bytes(1 << 20))):
            said = self.push(self.commit(make), status=1)
            self.assertRegex(said, "remote: a: jitsu/vm/.* is (too deep|no value: it is too long)")
            self.assertEqual({"main", "rejected/a"}, self.branches())
            self.assertIn("jitsu/vm/", self.git("log", "-1", "--format=%B", "rejected/a", folder=self.path))
            self.push("", "rejected/a")
        self.assertLessEqual(len(self.objects() - before), 3)  # the commits with the reasons, and their empty tree

    def test_conflict(self) -> None:
        """What only Jitsu may reject, with its commit kept, waits for it."""
        self.push(self.commit(file("README", b"x")))
        self.assertIn("request/a", self.branches())

    def test_all_or_none(self) -> None:
        """One branch that is refused refuses the push."""
        commit = self.commit()
        self.git("push", "origin", f"{commit}:refs/heads/request/a", f"{commit}:refs/heads/main", status=1)
        self.assertEqual({"main"}, self.branches())

    def test_share(self) -> None:
        """Of one sender a bounded number of requests waits; others may still push."""
        commit, old = self.commit(), self.history.head
        assert old is not None
        for number in range(push.MOST_WAITING):
            (self.path / "refs/heads/request/www").mkdir(parents=True, exist_ok=True)
            (self.path / f"refs/heads/request/www/{number}").write_text(f"{old.id}\n")
        said = self.push(commit, "request/www/x", status=1, JITSU_VM="www")
        self.assertIn("100 requests of www wait already", said)
        self.push(commit, "request/www/1", JITSU_VM="www")
        self.push(commit, "request/zz")

    def test_many_objects(self) -> None:
        """A push by a VM's own sender has a bounded number of objects; an operator's may have more."""
        def many(repository: pygit2.Repository, tree: pygit2.Oid) -> pygit2.Oid:
            builder = repository.TreeBuilder()
            for number in range(push.MOST_OBJECTS + 1):
                builder.insert(f"{number}", repository.create_blob(f"{number}".encode()), 0o100644)
            return put(repository, tree, f"jitsu/vm/{WWW}/config", builder.write(), 0o40000)

        commit = self.commit(many)
        self.assertIn("at most 1000 objects", self.push(commit, "request/www/x", status=1, JITSU_VM="www"))
        self.assertIn("x waits", self.push(commit, "request/x"))

    def test_many_octets(self) -> None:
        """A push by a VM's own sender has a bounded size; a larger one where there are more VMs."""
        path = f"jitsu/vm/{WWW}/config/x"
        commit = self.commit(folder(path, lambda repository: tree(repository, ("0",), repository.create_blob(
            os.urandom(push.MOST_OCTETS)), 0o100644)))
        said = self.push(commit, "request/www/x", status=1, JITSU_VM="www")
        self.assertRegex(said, "a push has at most 26[0-9]{4} octets")
        self.assertEqual({"main", "rejected/www/x"}, self.branches())
        self.patch(push, "MOST_OCTETS", 0)
        reader = Reader(self.history.repository)
        head = self.history.head
        assert head is not None
        self.assertEqual(len(head.tree["jitsu/vm"].read_raw()), reader.width(head.id))
        most = push.MOST_TREES * reader.width(head.id)
        asked = [Update(NONE, commit, "refs/heads/request/www/x")]
        self.assertEqual([f"www/x: a push has at most {most} octets; this one has {most + 1}"],
                         list(push._beyond(self.path, asked, None, most + 1)))
        self.assertEqual([], list(push._beyond(self.path, asked, None, most)))

    def test_many_branches(self) -> None:
        """So a push has a bounded number of branches."""
        commit = self.commit()
        self.patch(push, "MOST_UPDATES", 3)
        lines = [f"{NONE} {commit} refs/heads/wip{number}\n".encode() for number in range(4)]
        self.assertEqual(["a push has at most 3 branches"], list(push.pre_receive(self.path, lines, {})))
        self.assertEqual([], list(push.pre_receive(self.path, lines[:3], {})))


class UserTests(PushTestCase):
    """A repository that two users write to."""

    def setUp(self) -> None:
        """Change the owner of the state."""
        super().setUp()
        if os.geteuid():
            raise SkipTest("needs root")
        for inside, _, names in os.walk(self.path):
            for name in (".", *names):
                os.chown(Path(inside, name), NOBODY, NOBODY)

    def test_root_pushes(self) -> None:
        """Root is refused with the command that works, though git trusts the folder; no file of root's is left."""
        trust = self.folder / "gitconfig"
        trust.write_text("[safe]\n\tdirectory = *\n")
        said = self.push(self.commit(), status=1, GIT_CONFIG_GLOBAL=str(trust))
        self.assertIn(f"push as {hooks.user(NOBODY)}, or by git push --receive-pack=", said)
        self.assertEqual({"main"}, self.branches())
        self.assertEqual([], [path for path in self.path.rglob("*") if path.stat().st_uid != NOBODY])

    def test_recipe(self) -> None:
        """The documented commands for another user work; here a script is sudo, as nobody cannot run root's Python."""
        tools = self.folder / "tools"
        tools.mkdir()
        (tools / "sudo").write_text(f"""#!/bin/sh
shift 2
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=+dac_read_search \\
    --ambient-caps=+dac_read_search "$@"
""")
        (tools / "sudo").chmod(0o755)
        text = (Path(__file__).parents[2] / "docs" / "how-to" / "git.md").read_text()
        recipe = text[text.index("git clone -u") :].partition("```")[0]
        recipe = recipe.replace("/var/lib/jitsu/state.git", str(self.path))
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["sh", "-ec", recipe], cwd=self.folder, check=True, capture_output=True,
                       env={**os.environ, "PATH": path})  # fmt: skip
        said = self.git("push", "origin", f"HEAD:{REQUEST}a", folder=self.folder / "state",
                        environment={"PATH": path})
        self.assertIn("a waits: no Jitsu runs", said)
        self.assertEqual([], [file for file in self.path.rglob("*") if file.stat().st_uid != NOBODY])

    def test_cannot_write(self) -> None:
        """Where folders are root's all the same, the error names one, and `chown`."""
        (self.path / "refs" / "heads").chmod(0o755)
        os.chown(self.path / "refs" / "heads", 0, 0)
        child = os.fork()
        if not child:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                self.history.commit({TTL: "7"}, "second")
            except StoreError as error:
                me = hooks.user(NOBODY)
                words = f"refs/heads belongs to root, and Jitsu runs as {me}: as root, run `chown -R {me} {self.path}`"
                os._exit(0 if words in str(error) else 1)
            os._exit(2)
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


class RenewTests(PushTestCase):
    """Hooks and settings of a state that is there already."""

    def test_renewed(self) -> None:
        """An earlier version's hooks give way when Jitsu starts; the operator's own hooks and settings stay."""
        inside = self.path / "hooks"
        for name in hooks.PURPOSES:
            (inside / name).unlink()
        for name in ("update", "post-receive"):
            (inside / name).write_text("#!/bin/sh\n# Jitsu's: as it was\n")
        (inside / "post-update").write_text("#!/bin/sh\n")
        config = pygit2.Repository(str(self.path)).config
        config["receive.maxInputSize"] = "1g"
        del config["receive.procReceiveRefs"]
        store = GitStore(self.path)
        store.open()
        self.successResultOf(store.close())  # else the push waits for it
        self.assertEqual({"pre-receive", "proc-receive", "post-update"},
                         {path.name for path in inside.iterdir() if path.suffix != ".sample"})
        self.assertTrue((inside / "pre-receive").stat().st_mode & stat.S_IXUSR)
        self.assertEqual("1g\nrefs/heads/request\n",
                         self.git("config", "receive.maxInputSize", folder=self.path)
                         + self.git("config", "receive.procReceiveRefs", folder=self.path))
        self.push(self.commit())

    def test_foreign(self) -> None:
        """A hook of the operator's with the same name is left alone, with a line in the log."""
        hook = self.path / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\n")
        with capturedLogs() as log:
            GitStore(self.path).open()
        self.assertEqual("#!/bin/sh\n", hook.read_text())
        self.assertIn("Jitsu does not check pushes", "".join(formatEvent(event) or "" for event in log))
        self.assertRaises(OSError, hooks.make, self.path)

    def test_no_interpreter(self) -> None:
        """Without the Python that it was made with, a hook refuses, and prints the remedy."""
        self.patch(sys, "executable", "/nowhere/python")
        hooks.renew(pygit2.Repository(str(self.path)))
        self.assertIn("run jitsuctl init, to renew the hooks", self.push(self.commit(), status=1))


class LockTests(PushTestCase):
    """One Jitsu at a time."""

    def in_child(self, program: str) -> str:
        """Run *program* in another process; return what it prints."""
        run = subprocess.run([sys.executable, "-c", program, self.path], cwd=Path(__file__).parents[2], check=False,
                             capture_output=True, text=True)  # fmt: skip
        return run.stdout + run.stderr

    def test_second(self) -> None:
        """A second Jitsu is refused, with the first one's process id; a reader is not; later the lock is free."""
        store = GitStore(self.path)
        store.open()
        second = ("import sys; from pathlib import Path; from jitsu_tw.store import lock; lock.PATIENCE = 0.1\n"
                  "from jitsu_tw.store.git import GitStore; GitStore(Path(sys.argv[1])).open(); print('open')")
        self.assertIn(f"in use by the Jitsu of process {os.getpid()}: end that, or use another", self.in_child(second))
        read = "import sys; from pathlib import Path; from jitsu_tw.store.{}; print({}(Path(sys.argv[1])){})"
        self.assertIn("'60'", self.in_child(read.format("history import History", "History", ".open()")))
        self.assertEqual(f"{os.getpid()}\n", self.in_child(read.format("lock import holder", "holder", "")))
        self.successResultOf(store.close())
        self.assertEqual("open\n", self.in_child(second))
        self.assertIsNone(holder(self.path))

    def test_restart(self) -> None:
        """A process that is about to end is waited for."""
        code = ("import sys; from pathlib import Path; from jitsu_tw.store.lock import Lock\n"
                "Lock(Path(sys.argv[1])).take(); print('taken', flush=True); sys.stdin.read()")
        first = subprocess.Popen([sys.executable, "-c", code, self.path], cwd=Path(__file__).parents[2],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert first.stdin is not None
        assert first.stdout is not None
        self.assertEqual(b"taken\n", first.stdout.readline())
        self.patch(lock, "PATIENCE", 60.0)
        self.patch(time, "sleep", lambda _: first.stdin.close() if not first.stdin.closed else None)
        Lock(self.path).take()
        first.wait()
        first.stdout.close()

    def test_nothing_to_lock(self) -> None:
        """A foreign folder gets no lock, and one that cannot be written to is opened without."""
        other = self.folder / "other"
        other.mkdir()
        (other / "letter").write_text("dear")
        self.assertRaises(StoreError, GitStore(other).open)
        self.assertEqual(["letter"], [path.name for path in other.iterdir()])
        self.patch(os, "open", lambda *_: self._raise())
        Lock(self.path).take()

    @staticmethod
    def _raise() -> int:
        raise PermissionError(13, "Permission denied")
