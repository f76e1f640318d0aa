"""Control by branch as people use it: a running twistd, `git clone`, edit, `git push`, dig, and jitsuctl."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.rcode

from demo.lab import free_port
from test.programs.test_tap import BIN, HOST, PATIENCE, ProcessTestCase

if TYPE_CHECKING:
    from collections.abc import Callable

WWW = "00000000-0000-4000-8000-000000000001"
NEW = "00000000-0000-4000-8000-000000000003"

VMS = f"""
persistdb: state.git
vms:
  - {{name: www, dns: www.jitsu.test, ip: 10.0.0.1, ttl: 30, uuid: {WWW}}}
"""


class PushTests(ProcessTestCase):
    """A Jitsu that is steered by git."""

    def setUp(self) -> None:
        """Start it, and clone its state."""
        super().setUp()
        self.process = self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.state, self.clone = self.folder / "state.git", self.folder / "clone"
        self.until(lambda: self.vm_files("main"))
        self.git("clone", "-q", self.state, self.clone, folder=self.folder)
        self.ttl = self.clone / "jitsu" / "vm" / WWW / "dns" / "www.jitsu.test" / "ttl"

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.02)

    def vm_files(self, branch: str) -> str:
        """Return the files of VMs in a branch of the state; "" if there is none yet."""
        return self.run_to_end("git", "-C", self.state, "ls-tree", "-r", "--name-only", branch, "jitsu/vm/").stdout

    def git(self, *arguments: str | Path, folder: Path | None = None, status: int = 0, **environment: str) -> str:
        """Run git as Ann; return its output."""
        run = subprocess.run(
            ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", *arguments], cwd=folder or self.clone,
            check=False, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **environment},
        )  # fmt: skip
        self.assertEqual(status, run.returncode, run.stderr)
        return run.stdout + run.stderr

    def push(self, name: str, message: str = "please", status: int = 0) -> str:
        """Commit all changes of the clone and push them as a request; return the push's output."""
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("push", "origin", f"HEAD:refs/heads/request/{name}", status=status)

    def digs(self, name: str = "www.jitsu.test") -> tuple[str, int]:
        """Return the address and the TTL that dig sees."""
        said = self.run_to_end("dig", f"@{HOST}", "-p", str(self.port), "+noall", "+answer", name).stdout.split()
        return (said[4], int(said[1])) if said else ("", 0)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run jitsuctl on the state."""
        return self.run_to_end(BIN / "jitsuctl", *arguments, env={**os.environ, "JITSU_STATE": str(self.state)})

    def test_change_and_revert(self) -> None:
        """A pushed TTL is in dig's answer when the push ends, though a warm answer was there; a revert undoes it."""
        self.assertEqual(("10.0.0.1", 30), self.digs())
        self.ttl.write_text("5\n")
        self.assertIn("remote: fast is merged", self.push("fast", "www: a TTL of 5"))
        self.assertEqual(("10.0.0.1", 5), self.digs())
        self.git("revert", "--no-edit", "HEAD")
        self.assertIn("undo is merged", self.git("push", "origin", "HEAD:refs/heads/request/undo"))
        self.assertEqual(("10.0.0.1", 30), self.digs())
        self.assertEqual("", self.git("fsck", "--strict", "--no-dangling", folder=self.state))
        self.assertEqual("", self.git("for-each-ref", "refs/heads/request", folder=self.state))

    def test_new_and_gone(self) -> None:
        """A folder is a VM: a new one can be asked for; when it is removed, its name is gone, and it is stopped."""
        folder = self.clone / "jitsu" / "vm" / NEW
        for path, value in {"ip": "10.0.0.3", "dns/new.jitsu.test/ttl": "5", "config/name/0": "new"}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(value)
        self.push("new")
        self.assertEqual(("10.0.0.3", 5), self.digs("new.jitsu.test"))
        self.git("rm", "-rq", f"jitsu/vm/{NEW}")
        self.push("gone")
        self.assertEqual(dns.rcode.NXDOMAIN, self.ask("new.jitsu.test").rcode())
        self.assertEqual(["www"], [vm["name"] for vm in json.loads(self.jitsuctl("status", "--json").stdout)])

    def test_recipes(self) -> None:
        """The documented commands clone the state, change a VM, and add one; here a script is virsh."""
        virsh = self.folder / "tools" / "virsh"
        virsh.parent.mkdir()
        virsh.write_text(f"#!/bin/sh\necho {NEW}\n")
        virsh.chmod(0o755)
        page = (Path(__file__).parents[2] / "docs" / "how-to" / "git.md").read_text()
        recipe = "".join(re.findall("```sh\n(.*?)```", page, re.DOTALL)[:3])
        for documented, here in {"/var/lib/jitsu/state.git": str(self.state), "vm.example.org": "jitsu.test",
                                 "192.0.2.90": "10.0.0.3"}.items():
            self.assertIn(documented, recipe)
            recipe = recipe.replace(documented, here)
        recipe = re.sub(r"(?<=jitsu/vm/)[0-9a-f]{8}-[0-9a-f-]{27}", WWW, recipe)
        ann = {f"GIT_{who}_{what}": "ann@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        subprocess.run(["sh", "-ec", recipe], cwd=self.folder, check=True, capture_output=True, timeout=PATIENCE,
                       env={**os.environ, **ann, "PATH": f"{virsh.parent}:{os.environ['PATH']}"})  # fmt: skip
        self.assertEqual(("10.0.0.1", 300), self.digs())
        self.assertEqual(("10.0.0.3", 60), self.digs("new.jitsu.test"))

    def test_rejected(self) -> None:
        """A conflict and a wrong value are printed by the push, kept as ``rejected/…``, and change nothing."""
        self.ttl.write_text("5\n")
        self.push("first")
        self.git("reset", "-q", "--hard", "HEAD~1")
        self.ttl.write_text("6")
        self.assertIn("was '30', is '5' by now, should become '6'", self.push("second", status=1))
        self.ttl.write_text("five")
        self.assertIn("remote: Rejected: ", self.push("third", status=1))
        self.assertEqual(("10.0.0.1", 5), self.digs())
        self.git("fetch", "-qp")
        self.assertEqual("origin/rejected/second\norigin/rejected/third\n",
                         self.git("branch", "-r", "--format=%(refname:short)", "--list", "*/rejected/*"))
        self.git("push", "origin", ":rejected/second")

    def test_wait(self) -> None:
        """While the state cannot be written a push waits, `healthz` has the reason; the push ends when it can be."""
        lock = self.state / "refs" / "heads" / "main.lock"
        lock.touch()
        self.ttl.write_text("5\n")
        self.git("commit", "-qam", "www: a TTL of 5")
        push = subprocess.Popen(["git", "push", "origin", "HEAD:refs/heads/request/slow"], cwd=self.clone,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip

        def is_told() -> bool:
            os.utime(lock)  # an old one would be removed
            said = json.loads(self.run_to_end("curl", "-s", f"http://{HOST}:{self.control}/healthz").stdout)
            return said["status"] == "degraded" and "requests wait (1, for" in said["problems"][0]

        self.until(is_told)
        lock.unlink()
        said = push.communicate(timeout=PATIENCE)[1]
        self.assertIn("slow is merged", said)
        self.assertEqual((0, 5), (push.returncode, self.digs()[1]))

    def test_second(self) -> None:
        """A second Jitsu on the same state does not start, and names the process that has it; the first one goes on."""
        others = f"--listen {free_port()} --control off"
        run = self.run_to_end(BIN / "twistd", "-n", "--pidfile=", "jitsu", *others.split(), "--config", "jitsu.yaml")
        self.assertEqual(1, run.returncode, run.stdout)
        self.assertIn(f"state.git is in use by the Jitsu of process {self.process.pid}: end that", run.stderr)
        self.assertEqual(("10.0.0.1", 30), self.digs())

    def test_several_at_once(self) -> None:
        """Ten clones that push at the same time are all merged."""
        for number in range(10):
            folder = self.clone / "jitsu" / "vm" / f"{NEW[:-2]}{10 + number}"
            for path, value in {"ip": f"10.0.1.{number}", f"dns/n{number}.jitsu.test/ttl": "5",
                                "config/name/0": f"n{number}"}.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(value)
            self.git("checkout", "-q", "--detach", "origin/main")
            self.git("add", str(folder))
            self.git("commit", "-qm", f"n{number}")
            self.git("update-ref", f"refs/heads/n{number}", "HEAD")
        pushes = [subprocess.Popen(["git", "push", "-q", "origin", f"n{number}:refs/heads/request/n{number}"],
                                   cwd=self.clone, stderr=subprocess.PIPE, text=True) for number in range(10)]
        said = [push.communicate(timeout=PATIENCE)[1] for push in pushes]
        self.assertEqual([0] * 10, [push.returncode for push in pushes], said)
        for number in range(10):
            self.assertEqual((f"10.0.1.{number}", 5), self.digs(f"n{number}.jitsu.test"))

    def test_hooks(self) -> None:
        """`main` and ``rejected/…`` are Jitsu's own; a VM's own user may push only for that VM."""
        self.ttl.write_text("5\n")
        self.git("commit", "-qam", "mine")
        self.assertIn("main is Jitsu's own", self.git("push", "-f", "origin", "HEAD:main", status=1))
        self.assertIn("Jitsu's own", self.git("push", "origin", "HEAD:rejected/mine", status=1))
        self.assertIn("push to refs/heads/request", self.git("push", "origin", "HEAD:refs/notes/x", status=1))
        for branch in ("request/mine", "request/db/mine", "request/www", "wip"):
            said = self.git("push", "origin", f"HEAD:refs/heads/{branch}", status=1, JITSU_VM="www")
            self.assertIn("refs/heads/request/www/... only", said)
        self.assertIn("merged", self.git("push", "origin", "HEAD:refs/heads/request/www/mine", JITSU_VM="www"))
        self.assertEqual(5, self.digs()[1])

    def test_jitsuctl(self) -> None:
        """Jitsuctl shows the state and its past, merges branches, and reverts commits."""
        self.assertRegex(self.ctl("tree", f"jitsu/vm/{WWW}/ip").stdout, rf"^/jitsu/vm/{WWW}/ip\.+10\.0\.0\.1\n$")
        self.ttl.write_text("5\n")
        self.git("commit", "-qam", "www: a TTL of 5")
        self.git("push", "-q", "origin", "HEAD:refs/heads/wip")
        change = f"/jitsu/vm/{WWW}/dns/www.jitsu.test/ttl: 30 -> 5\n"
        self.assertEqual(change, self.ctl("diff", "wip").stdout)
        self.assertEqual("merged; changed: www\n", self.ctl("merge", "wip").stdout)
        self.assertEqual(5, self.digs()[1])
        self.assertEqual(change, self.ctl("diff").stdout)
        entries: list[dict[str, Any]] = json.loads(self.ctl("log", "www", "--json").stdout)
        self.assertEqual(["www: a TTL of 5", "From jitsu.yaml\n\nadded: www"], [one["message"] for one in entries])
        self.assertEqual("merged; changed: www\n", self.ctl("revert", entries[0]["commit"]).stdout)
        self.assertEqual(30, self.digs()[1])
        again = self.ctl("revert", entries[0]["commit"])
        self.assertEqual((1, True), (again.returncode, "nothing of that is left" in again.stderr))
        self.assertIn("Ann: www: a TTL of 5", self.ctl("log", WWW).stdout)
        for command, words in (
            ("merge nothing", "there is no commit or branch nothing in the state"),
            ("diff x", "there is no commit or branch x in the state"),
            ("tree x", "the state has nothing at /x"),
            ("log nobody", "the state never had a VM nobody"),
        ):
            run = self.ctl(*command.split())
            self.assertEqual((1, f"jitsuctl: {words}\n"), (run.returncode, run.stderr))

    def test_log_of_anything(self) -> None:
        """What a commit in between has, that Jitsu never looked at, is in nobody's way."""
        name = self.ttl.parents[2] / "config" / "name" / "0"
        for octets in (b"\xff\n", bytes(1 << 20), b"www\n"):
            name.write_bytes(octets)
            self.ttl.write_text(f"{len(octets)}\n")
            self.git("commit", "-qam", "a name")
        self.git("push", "-q", "origin", "HEAD:refs/heads/request/odd")
        self.assertEqual("jitsuctl: the state never had a VM nobody\n", self.ctl("log", "nobody").stderr)

    def test_nobody(self) -> None:
        """Without a Jitsu, a request waits, and is merged when one begins."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self.ttl.write_text("5\n")
        self.git("commit", "-qam", "www: a TTL of 5")
        self.git("push", "-q", "origin", "HEAD:refs/heads/wip")
        run = self.ctl("merge", "wip")
        self.assertEqual(3, run.returncode)
        self.assertIn("does a Jitsu run", run.stderr)
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.until(lambda: self.digs()[1] == 5)
        run = self.run_to_end(BIN / "jitsuctl", "tree", "--state", "nowhere")
        self.assertEqual(1, run.returncode)
        self.assertIn("--state", run.stderr)


class DiskTests(ProcessTestCase):
    """A Jitsu whose state is on a disk of its own."""

    def test_full(self) -> None:
        """While the disk is full Jitsu reports it once and serves; when there is space again, everything is written."""
        self.serve_on("dd if=/dev/zero of=disk/filler bs=4k 2>/dev/null || true")
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
        self.until_logged("the state is not written, only remembered")
        (self.disk / "filler").unlink()
        self.until_logged("the state is written again")
        self.assertEqual(1, self.log().count("not written, only remembered"))
        self.assertNotIn("Traceback", self.log())
        inside = ("nsenter", "--mount", f"--target={self.process.pid}")
        run = self.run_to_end(*inside, "git", "-C", self.folder / "disk" / "state.git", "log", "-p", "main")
        said = run.stdout
        self.assertIn("total_requests", said, run.stderr)
        self.assertIn("From jitsu.yaml", said)

    def test_read_only(self) -> None:
        """On a file system that is read-only Jitsu serves, and reports it."""
        self.serve_on("mount -o remount,ro disk")
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
        self.until_logged("Read-only file system")
        self.assertNotIn("Traceback", self.log())

    def serve_on(self, script: str) -> None:
        """Start Jitsu where ``disk`` is small, has an empty state, and *script* was run."""
        (self.folder / "disk").mkdir()
        text = VMS.replace("persistdb: state.git", "persistdb: disk/state.git\ncommit_every: 1")
        (self.folder / "jitsu.yaml").write_text(
            f"listen: {self.port}\ncontrol: off\nbackend: memory\nzones: jitsu.zone\n{text}"
        )
        steps = ("mount -t tmpfs -o size=600k tmpfs disk", f"{BIN}/jitsuctl init disk/state.git", script,
                 f"exec {BIN}/twistd -n --pidfile= jitsu --config jitsu.yaml")
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(["unshare", "--mount", "sh", "-ec", "\n".join(steps)], cwd=self.folder,
                                       stdout=log, stderr=log)
        self.addCleanup(self.end, process)
        self.process, self.disk = process, Path(f"/proc/{process.pid}/root/{self.folder}/disk")
        self.until_logged("serving 1 name ")


class KilledTests(ProcessTestCase):
    """A Jitsu that is killed while requests come."""

    def push(self, state: Path, turn: int) -> None:
        """Ask for another TTL; try again while the state is being written, as a user would after git's error."""
        for _ in range(10):
            run = self.run_to_end(sys.executable, "-c", f"""
import sys; sys.path.insert(0, {str(BIN.parent.parent)!r})
from pathlib import Path
from test.support.killer import push
from jitsu_tw.store.history import History
state = History(Path({str(state)!r})); state.open()
push(state, "t{turn}", {{"jitsu/vm/{WWW}/dns/www.jitsu.test/ttl": "{turn + 40}"}})
""")
            if not run.returncode:
                return
        self.fail(run.stderr)

    def test_killed(self) -> None:
        """
        Killed and restarted during pushes, Jitsu handles each request once, and the state is complete.

        A request on a configuration that the file has overridden at the start is rejected.
        """
        process = self.serve("--zone", "jitsu.zone", configuration=VMS)
        state = self.folder / "state.git"
        for turn in range(3):
            self.push(state, turn)
            time.sleep(0.1 * turn)
            process.kill()
            process.wait()
            process = self.serve("--zone", "jitsu.zone", configuration=VMS)
            end = time.monotonic() + PATIENCE
            while (state / "refs/heads/request" / f"t{turn}").exists():
                self.assertLess(time.monotonic(), end)
                time.sleep(0.05)
        self.assertEqual("", self.run_to_end("git", "-C", state, "fsck", "--strict", "--no-dangling").stderr)
        subjects = self.run_to_end("git", "-C", state, "log", "--format=%s", "main").stdout
        merged = [subjects.count(f"Merge request/t{turn}") for turn in range(3)]
        aside = [(state / "refs/heads/rejected" / f"t{turn}").exists() for turn in range(3)]
        self.assertEqual([1, 1, 1], [once + other for once, other in zip(merged, aside, strict=True)], self.log())
