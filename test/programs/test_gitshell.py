"""The ssh key of an operator or of a VM's user: `jitsuctl git-shell` as a forced command, with a real sshd and git."""

from __future__ import annotations

import getpass
import hashlib
import os
import signal
import socket
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

from demo.lab import free_port
from jitsu_tw.ctl.gitshell import environment, lock_pushes, to_run
from jitsu_tw.ctl.show import FailedError
from test.programs.test_push import PushTestCase
from test.programs.test_requests_e2e import VMS, WWW
from test.programs.test_tap import BIN, HOST, PATIENCE, ProcessTestCase

if TYPE_CHECKING:
    from collections.abc import Iterable

SSHD: Final = "/usr/sbin/sshd"

#: Everything that a client sends gets into the environment, as with a careless operator.
SSHD_CONFIG: Final = """
Port {port}
ListenAddress {host}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
AcceptEnv GIT_* JITSU_*
"""


class ToRunTests(SynchronousTestCase):
    """What is run for what a client asks for, without a client."""

    def setUp(self) -> None:
        """Make a repository."""
        self.state = Path(self.mktemp()).absolute()
        self.state.mkdir()

    def test_git(self) -> None:
        """Both spellings of both verbs are git's, on the one repository; a VM's key sees its own branches only."""
        for verb in ("upload-pack", "receive-pack"):
            for asked in (f"git-{verb} '{self.state}'", f"git {verb} '{self.state}'", f"git-{verb} {self.state}/"):
                self.assertEqual(["git", verb, str(self.state)], to_run(asked, self.state))
        run = to_run(f"git-upload-pack '{self.state}'", self.state, "www")
        self.assertIn("uploadpack.hideRefs=!refs/heads/request/www", run)
        self.assertEqual(["upload-pack", str(self.state)], run[-2:])

    def refused(self, asked: str, vm: str = "") -> str:
        """Return why *asked* is refused."""
        return str(self.assertRaises(FailedError, to_run, asked, self.state, vm))

    def test_else(self) -> None:
        """Another command, another repository, and further arguments are refused in one line."""
        only = "this key is for git only"
        for asked, words in (
            ("", only), ("sh", only), ("git", only), ("git log", only), ("git-shell", only), ("upload-pack x", only),
            (f"git-upload-archive '{self.state}'", only), (f"git-upload-pack '{self.state}' --strict", only),
            (f"git-upload-pack --timeout=1 '{self.state}'", only), (f"git-upload-pack '{self.state}", only),
            (f"git-upload-pack '{self.state}'; sh", only), (f"git-upload-pack '{self.state}' && sh", only),
            (f"git -c core.pager=sh upload-pack '{self.state}'", only), ("git-upload-pack", only),
            ("git-upload-pack '/srv/jitsu-shared.git'", f"this key is for {self.state} only"),
            (f"git-receive-pack '{self.state}/../hub.git'", "this key is for"),
            (f"git-upload-pack '{self.state}\n/etc'", "this key is for"),
            ("git-upload-pack '--help'", "this key is for"), ("git-upload-pack ''", "this key is for"),
        ):  # fmt: skip
            with self.subTest(asked=asked):
                self.assertIn(words, self.refused(asked))
        self.state.rmdir()
        self.assertIn("is not there", self.refused(f"git-upload-pack '{self.state}'"))

    def test_vm(self) -> None:
        """A VM whose name could be mistaken for another one's branch, or for none, is refused."""
        for vm in ("www/db", "a b", "..", "x~", "-/", "www.lock"):
            self.assertIn("no branch can be called so", self.refused(f"git-upload-pack '{self.state}'", vm))

    def test_environment(self) -> None:
        """Of what the client may have sent nothing is left but a sane protocol version."""
        given = {"GIT_CONFIG_COUNT": "1", "GIT_DIR": "/x", "JITSU_VM": "db", "LD_PRELOAD": "x", "PATH": "/x",
                 "GIT_PROTOCOL": "version=2"}  # fmt: skip
        made = environment(given)
        self.assertEqual({"PATH", "HOME", "USER", "LOGNAME", "LANG", "GIT_PROTOCOL"}, made.keys())
        self.assertNotEqual("/x", made["PATH"])
        self.assertEqual("www", environment(given, "www")["JITSU_VM"])
        for protocol in ("", "version=2:x=1", "version=22", "$(sh)", "version=2\n"):
            self.assertNotIn("GIT_PROTOCOL", environment({"GIT_PROTOCOL": protocol}))


def size(number: int) -> bytes:
    """Return *number* as the sizes in a delta are written (gitformat-pack(5))."""
    return bytes([number & 127]) if number < 128 else bytes([number & 127 | 128]) + size(number >> 7)


def object_of(kind: int, octets: bytes, base: bytes = b"") -> bytes:
    """Return an object as it is in a pack: its kind and size, for a delta its *base*, and what is in it."""
    length = len(octets)
    assert 16 <= length < 1 << 11
    return bytes([128 | kind << 4 | length & 15, length >> 4]) + base + zlib.compress(octets)


class LimitsTests(PushTestCase):
    """What a push with a VM's key may use of the host; the command as sshd runs it, without sshd."""

    def serve(self, pushed: bytes, *more: str) -> str:
        """Return what a push is answered."""
        asked = {**os.environ, "SSH_ORIGINAL_COMMAND": f"git-receive-pack '{self.path}'"}
        run = subprocess.run([f"{BIN}/jitsuctl", "git-shell", str(self.path), *more], input=pushed, check=False,
                             capture_output=True, env=asked, timeout=PATIENCE)
        return (run.stdout + run.stderr).decode(errors="replace")

    def test_delta_of_a_gigabyte(self) -> None:
        """A delta of a few octets that stands for a gigabyte is not made."""
        base = bytes(range(256)) * 4
        oid = hashlib.sha1(b"blob %d\0" % len(base) + base, usedforsecurity=False).digest()
        delta = size(len(base)) + size(1 << 30) + b"\xb0\x00\x04" * 600  # the size alone has git take the memory
        pack = b"PACK" + struct.pack(">II", 2, 2) + object_of(3, base) + object_of(7, delta, oid)
        line = f"{'0' * 40} {oid.hex()} refs/heads/request/www/x\0report-status".encode()
        pushed = b"%04x%b0000" % (len(line) + 4, line) + pack + hashlib.sha1(pack, usedforsecurity=False).digest()
        self.assertIn("Out of memory", self.serve(pushed, "--vm", "www"))

    def test_one_at_a_time(self) -> None:
        """A push with a VM's key waits for another one of that VM, and for no other VM's; the lock ends with git."""
        asked = {**os.environ, "SSH_ORIGINAL_COMMAND": f"git-receive-pack '{self.path}'"}
        command = [f"{BIN}/jitsuctl", "git-shell", str(self.path), "--vm", "www"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, env=asked) as first:
            assert first.stdin is not None
            assert first.stdout is not None
            self.assertIn(b"refs/heads/main", first.stdout.readline())
            lock_pushes(self.path, "db", 0.0)
            error = self.assertRaises(FailedError, lock_pushes, self.path, "www", 0.0)
            self.assertIn("another push of www is under way", str(error))
            first.stdin.close()
            first.wait(PATIENCE)
        lock_pushes(self.path, "www", 0.0)

    def test_long(self) -> None:
        """A push that its client has left alone ends, so that another one can begin."""
        waits = f"import sys; sys.argv[1:] = ['{self.path}', '--vm', 'www']; from jitsu_tw.ctl import gitshell; "
        waits += "gitshell.PUSH_TAKES = 1.0; gitshell.git_shell()"
        asked = {**os.environ, "SSH_ORIGINAL_COMMAND": f"git-receive-pack '{self.path}'"}
        with subprocess.Popen([f"{BIN}/python", "-c", waits], stdin=subprocess.PIPE, env=asked,
                              stdout=subprocess.DEVNULL) as push:
            self.assertEqual(-signal.SIGALRM, push.wait(PATIENCE))

    def test_no_turn(self) -> None:
        """Where there can be no lock, the error has the reason."""
        (self.path / "jitsu.pushes").mkdir()
        self.assertIn("jitsu.pushes: Is a directory", self.serve(b"0000", "--vm", "www"))

    def test_no_vm(self) -> None:
        """An empty name, as of a variable that is not set, is no operator's key."""
        self.assertIn("--vm names no VM", self.serve(b"0000", "--vm", ""))


class SshTests(ProcessTestCase):
    """A Jitsu, an sshd, and two keys: an operator's, and that of the user of the VM www."""

    def setUp(self) -> None:
        """Start both."""
        super().setUp()
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.state, self.hub = self.folder / "state.git", self.folder / "hub.git"
        self.run_to_end("git", "init", "-q", "--bare", self.hub)
        self.ssh_port = free_port()
        for name in ("host", "operator", "www"):
            self.run_to_end("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
        (self.folder / "authorized_keys").write_text("".join(self.lines()))
        config = SSHD_CONFIG.format(port=self.ssh_port, host=HOST, folder=self.folder)
        (self.folder / "sshd_config").write_text(config)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("wb") as log:
            sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=log, stderr=log)
        self.addCleanup(self.end, sshd)
        self.until_it_listens()
        self.clone = self.folder / "clone"

    def lines(self) -> Iterable[str]:
        """Yield the lines of authorized_keys, as docs/how-to/per-user-keys.md has them."""
        for name, more in (("operator", ""), ("www", " --vm www")):
            key = (self.folder / f"{name}.pub").read_text()
            yield f'restrict,command="{BIN}/jitsuctl git-shell {self.folder}/state.git{more}" {key}'

    def until_it_listens(self) -> None:
        """Wait for sshd."""
        end = time.monotonic() + PATIENCE
        with socket.socket() as client:
            while client.connect_ex((HOST, self.ssh_port)):
                self.assertLess(time.monotonic(), end, (self.folder / "sshd.log").read_text())
                time.sleep(0.02)

    def ssh(self, who: str, **sent: str) -> str:
        """Return the ssh command of a key, which sends that environment; git itself keeps most of its own back."""
        options = f"-F none -p {self.ssh_port} -i {self.folder}/{who} -o IdentitiesOnly=yes -o BatchMode=yes"
        sets = " ".join(f"{name}={value}" for name, value in sent.items())
        options += f" -o StrictHostKeyChecking=no -o UserKnownHostsFile={self.folder}/known"
        return f"env {sets} ssh {options} -o SendEnv=GIT_* -o SendEnv=JITSU_*"

    def git(self, who: str, *words: str | Path, status: int = 0, **sent: str) -> str:
        """Run git with a key, and send the environment *sent*; return its output."""
        run = subprocess.run(
            ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", *words], check=False,
            cwd=self.clone if self.clone.exists() else self.folder, capture_output=True, text=True, timeout=PATIENCE,
            env={**os.environ, "GIT_SSH_COMMAND": self.ssh(who, **sent)},
        )  # fmt: skip
        self.assertEqual(status, run.returncode, run.stdout + run.stderr)
        return run.stdout + run.stderr

    def url(self, path: Path) -> str:
        """Return the URL of a repository on the host."""
        return f"{getpass.getuser()}@{HOST}:{path}"

    def test_vm(self) -> None:
        """A VM's key clones the state and changes its VM, and nothing else; what is an operator's is out of sight."""
        self.git("www", "clone", "-q", self.url(self.state), self.clone)
        self.git("operator", "push", "-q", "origin", "HEAD:refs/heads/wip")
        ttl = self.clone / "jitsu" / "vm" / WWW / "dns" / "www.jitsu.test" / "ttl"
        ttl.write_text("5\n")
        self.git("www", "commit", "-qam", "a TTL of 5")
        for branch in ("main", "request/mine", "request/db/mine", "wip"):
            self.assertIn("request/www/", self.git("www", "push", "origin", f"HEAD:refs/heads/{branch}", status=1))
        self.assertIn("merged", self.git("www", "push", "origin", "HEAD:refs/heads/request/www/mine", JITSU_VM="db"))
        self.assertEqual(5, self.ask("www.jitsu.test").answer[0].ttl)
        self.assertEqual({"HEAD", "refs/heads/main"}, self.refs("www"))
        self.assertEqual({"HEAD", "refs/heads/main", "refs/heads/wip"}, self.refs("operator"))

    def refs(self, who: str) -> set[str]:
        """Return the branches that a key sees."""
        return {line.split()[1] for line in self.git(who, "ls-remote", "--quiet", self.url(self.state)).splitlines()}

    def test_elsewhere(self) -> None:
        """No key opens another repository of that user, such as the hub of a cluster, or runs anything else."""
        for who in ("www", "operator"):
            said = self.git(who, "clone", self.url(self.hub), self.clone, status=128)
            self.assertIn(f"jitsuctl: this key is for {self.state} only; name it so", said)
            run = self.run_to_end(*self.ssh(who).split(), self.url(self.hub).partition(":")[0], "id")
            self.assertEqual((1, "", "jitsuctl: this key is for git only: clone, fetch, and push\n"),
                             (run.returncode, run.stdout, run.stderr.splitlines(keepends=True)[-1]))

    def test_sent_environment(self) -> None:
        """What a client sends in its environment changes nothing."""
        self.git("www", "clone", "-q", self.url(self.state), self.clone)
        config = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "uploadpack.hideRefs", "GIT_CONFIG_VALUE_0": "!refs"}
        self.git("operator", "push", "-q", "origin", "HEAD:refs/heads/wip")
        words = ("ls-remote", "--quiet", self.url(self.state))
        sent = {**config, "GIT_DIR": str(self.hub), "GIT_NAMESPACE": "x"}
        self.assertNotIn("wip", self.git("www", *words, status=0, **sent))
