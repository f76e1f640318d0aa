"""``jitsuctl dnssec``: what it asks the endpoint, prints, and ends with."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.ctl import main
from jitsu_tw.ctl.client import Control
from jitsu_tw.ctl.show import FailedError

KEY = {"tag": 7, "algorithm": 13, "state": "active", "announced": True, "ds": "a.test. IN DS 7 13 2 AB"}
SIGNED: dict[str, Any] = {"zone": "a.test", "signer": "Jitsu", "keys": [KEY], "next_at": 5, "next": "wait",
                          "earliest_expiry": 9.5, "signatures": 3, "problems": []}  # fmt: skip
FILE: dict[str, Any] = {**SIGNED, "zone": "b.test", "signer": "file", "keys": [], "next": ""}

CONFIGURATION = """persistdb: state.git
backend: memory
dnssec: {keys: keys}
vms: [{name: www, dns: www.a.test, ip: 10.0.0.1}]
"""


class DnssecTests(SynchronousTestCase):
    """Runs the command against answers that the test has."""

    def setUp(self) -> None:
        """Answer with two zones."""
        self.listed = [SIGNED, FILE]
        self.asked: list[tuple[str, str]] = []
        self.patch(Control, "ask", lambda _, method, path: self.answer(method, path))

    def answer(self, method: str, path: str) -> Any:
        """Answer a request to the control endpoint, and record its method and path."""
        self.asked.append((method, path))
        return self.listed if method == "GET" else SIGNED

    def run_(self, *arguments: str, code: int = 0) -> Result:
        """Run the command, which must end with *code*."""
        run = CliRunner().invoke(main, ["--control", "unix:/none", "dnssec", *arguments])
        self.assertEqual(code, run.exit_code, run.output)
        return run

    def test_status(self) -> None:
        """Each key has a row; what comes next, and problems, stand below; a problem makes the exit status 1."""
        lines = self.run_("status").output.splitlines()
        self.assertEqual(["a.test", "Jitsu", "7", "13", "active", "yes"], lines[1].split()[:6])
        self.assertEqual(["b.test", "file", "-"], lines[2].split()[:3])
        self.assertEqual("a.test: wait", lines[3])
        self.listed = [{**FILE, "problems": ["expired"]}, SIGNED]
        self.assertIn("b.test: PROBLEM: expired", self.run_("status", code=1).output)
        self.assertNotIn("b.test", self.run_("status", "A.test.").output)
        self.assertEqual([SIGNED], json.loads(self.run_("status", "--json", "a.test").output))
        self.assertIn("c.test is no zone that is signed", self.run_("status", "c.test", code=1).output)
        self.listed = []
        self.assertEqual("no zone is signed\n", self.run_("status").output)

    def test_ds(self) -> None:
        """The DS record of the announced key is printed; before any is announced, that of the key that signs."""
        self.assertEqual("a.test. IN DS 7 13 2 AB\n", self.run_("ds", "a.test").stdout)
        other = {**KEY, "tag": 8, "announced": False, "ds": "other"}
        self.listed = [{**SIGNED, "keys": [KEY, other]}]
        self.assertEqual("a.test. IN DS 7 13 2 AB\n", self.run_("ds", "a.test").stdout)
        self.listed = [{**SIGNED, "keys": [other]}]
        run = self.run_("ds", "a.test")
        self.assertEqual(("other\n", "a.test: wait\n"), (run.stdout, run.stderr))
        keys = [{**other, "state": "published"}, {**other, "ds": ""}, {**other, "ds": "signs DNSKEY"}]
        self.listed = [{**FILE, "keys": keys}]
        self.assertEqual("signs DNSKEY\n", self.run_("ds", "b.test").output)

    def test_steps(self) -> None:
        """Steps are asked for, and what comes next is printed; hours become seconds."""
        for arguments, path in (
            (("rollover", "a.test"), "rollover?zone=a.test"), (("insecure", "a/b.test"), "insecure?zone=a%2Fb.test"),
            (("ds-seen", "a.test"), "ds-seen?zone=a.test&ds_ttl=86400"),
            (("ds-seen", "a.test", "--ds-ttl", "0.5"), "ds-seen?zone=a.test&ds_ttl=1800"),
        ):
            self.assertEqual("a.test: wait\n", self.run_(*arguments).output)
            self.assertEqual(("POST", f"/v1/dnssec/{path}"), self.asked[-1])
        self.run_("ds-seen", "a.test", "--ds-ttl", "-1", code=2)

        def refuse(*_: object) -> None:
            raise FailedError("a rollover is under way")

        self.patch(Control, "ask", refuse)
        self.assertIn("jitsuctl: a rollover is under way", self.run_("rollover", "a.test", code=1).output)

    def test_not_a_number(self) -> None:
        """A TTL that is no number is refused before anything is asked for."""
        for hours in ("nan", "inf", "-1", "x"):
            self.run_("ds-seen", "a.test", f"--ds-ttl={hours}", code=2)
        self.assertEqual([], self.asked)

    def test_init(self) -> None:
        """A key is made without a running Jitsu, and replaced only if it is said to be lost."""
        folder = Path(tempfile.mkdtemp())
        (folder / "jitsu.yaml").write_text(CONFIGURATION)
        here = Path.cwd()
        os.chdir(folder)
        self.addCleanup(os.chdir, here)
        self.assertIn("a.test. IN DS ", self.run_("init", "a.test").output)
        check = lambda: CliRunner().invoke(main, ["check"])  # noqa: E731
        self.assertEqual(0, check().exit_code)
        (key,) = Path("keys").glob("*.private")
        key.chmod(0o644)
        self.assertIn("others than its owner may read the private key", check().output)
        key.chmod(0o600)
        subprocess.run(["dnssec-settime", "-K", "keys", "-A", "+1d", key.stem], check=True, capture_output=True)
        self.assertIn("no key signs now", check().output)
        Path("keys").rename("away")
        Path("keys").write_text("")
        self.assertIn("the directory of keys cannot be read: Not a directory", check().output)
        Path("keys").unlink()
        self.assertEqual(0, check().exit_code)
        Path("away").rename("keys")
        for path in Path("keys").glob("K*"):
            path.unlink()
        self.assertIn("it is gone: restore it", self.run_("init", "a.test", code=1).output)
        self.assertIn("made the key", self.run_("init", "--lost", "a.test", "--config", "jitsu.yaml").output)
        self.assertIn("Jitsu is not to sign b.test", self.run_("init", "b.test", code=1).output)
        self.assertEqual([], self.asked)

    def test_owner(self) -> None:
        """As root, what is made belongs to the owner of the state, or of the directory in which it will be."""
        folder = Path(tempfile.mkdtemp())
        (folder / "jitsu.yaml").write_text(CONFIGURATION.replace("state.git", f"{folder}/new/state.git"))
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        became: list[int] = []
        self.patch(os, "geteuid", lambda: 0)
        self.patch(os, "setegid", became.append)
        self.patch(os, "seteuid", became.append)
        for state in (folder, folder / "new/state.git"):
            self.run_("init", "--lost", "a.test", "--config", f"{folder}/jitsu.yaml", code=1)
            self.assertEqual([state.stat().st_gid, state.stat().st_uid], became)
            became.clear()
            (folder / "new/state.git").mkdir(parents=True, exist_ok=True)
