"""A running ``twistd jitsu`` whose configuration file is read again: by jitsuctl, by SIGHUP, as systemd reloads it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from typing import Final

from test.programs.test_tap import HOST, PATIENCE, ROOT, TOKEN, VMS, ProcessTestCase

#: The same with another address, a VM less and one more.
CHANGED: Final = """
vms:
  - {name: www, dns: www.jitsu.test, ip: 10.0.0.9, ttl: 5m}
  - {name: slow, dns: slow.jitsu.test, ip: 10.0.0.3, boot_time: 30}
  - {name: new, dns: new.jitsu.test, ip: 10.0.0.4}
"""


#: Runs Jitsu, and sends it SIGHUP when it reads its configuration for the first time.
EARLY: Final = """
import os, signal, sys
from jitsu_tw import commands, tap
load, sent = tap.Options.load, []
def loading(self):
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGHUP))
    return load(self)
tap.Options.load = loading
sys.argv[0] = "jitsu"
commands.jitsu()
"""


class ReloadTestCase(ProcessTestCase):
    """A server whose configuration changes."""

    def write(self, configuration: str) -> None:
        """Write the configuration file, as `serve` does."""
        (self.folder / "jitsu.yaml").write_text(
            f"listen: {self.port}\ncontrol: [{self.place}, '{HOST}:{self.control}']\nbackend: memory\n{configuration}"
        )

    def address(self, name: str) -> str:
        """Return the address of NAME.jitsu.test, and its TTL; "" if there is none."""
        answer = self.ask(f"{name}.jitsu.test").answer
        return f"{answer[0][0]} {answer[0].ttl}" if answer else ""

    def until(self, name: str, expected: str) -> None:
        """Wait until that is the address of NAME.jitsu.test."""
        end = time.monotonic() + PATIENCE
        while self.address(name) != expected:
            self.assertLess(time.monotonic(), end, self.log())


class ReloadTests(ReloadTestCase):
    """A server that runs."""

    def test_three_ways(self) -> None:
        """Each way reads the whole file: VMs come, change and go at once, the warm ones, too; and it is logged."""
        process = self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.assertEqual("10.0.0.1 30", self.address("www"))
        self.write(CHANGED)
        run = self.jitsuctl("reload")
        self.assertEqual("reloaded\nadded: new\nchanged: www\nremoved: bad\n", run.stdout, run.stderr)
        found = [self.address(name) for name in ("www", "new", "bad")]
        self.assertEqual(["10.0.0.9 300", "10.0.0.4 60", ""], found)
        self.until_logged("reloaded: added: new; changed: www; removed: bad")
        self.write(VMS)
        process.send_signal(signal.SIGHUP)
        self.until("www", "10.0.0.1 30")
        self.assertEqual("", self.address("new"))
        self.write(CHANGED)
        (command,) = re.findall("^ExecReload=(.*)$", (ROOT / "conf" / "jitsu.service").read_text(), re.MULTILINE)
        subprocess.run(["sh", "-c", command], env={"MAINPID": str(process.pid)}, check=True)
        self.until("www", "10.0.0.9 300")

    def test_at_the_start(self) -> None:
        """A SIGHUP that comes while the file is read at the start does not end Jitsu; the file is read again."""
        self.write(VMS)
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", EARLY, "--config", "jitsu.yaml"], cwd=self.folder, stdout=log, stderr=log
            )
        self.addCleanup(self.end, process)
        self.until_logged("reloaded: nothing has changed")
        self.assertIsNone(process.poll(), self.log())

    def test_refused(self) -> None:
        """A file with mistakes is refused with all of them, and nothing has changed."""
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.write(CHANGED.replace("10.0.0.9", "10.0.0").replace("5m", "5 min"))
        run = self.jitsuctl("reload")
        self.assertEqual(1, run.returncode)
        self.assertEqual(["6", "6"], re.findall(r"jitsu\.yaml:(\d+):", run.stderr))
        self.assertEqual(2, len(run.stderr.splitlines()), run.stderr)
        self.assertEqual(["10.0.0.1 30", ""], [self.address("www"), self.address("new")])
        (self.folder / "jitsu.yaml").unlink()
        run = self.jitsuctl("reload")
        self.assertEqual((1, "10.0.0.1 30"), (run.returncode, self.address("www")))
        self.assertIn("jitsu.yaml: cannot be read", run.stderr)

    def test_top(self) -> None:
        """The token and the limits are the new ones at once; what needs a restart is told, and the rest applied."""
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.write_token()
        self.write(f"bind: 127.0.0.9\nsummon_from: 192.0.2.0/24\ncontrol_token: token\n{CHANGED}")
        run = self.jitsuctl("reload")
        self.assertEqual(["keys: control_token, summon_from", "needs a restart: bind"], run.stdout.splitlines()[-2:])
        self.assertIn("wants the control_token", self.jitsuctl("status").stderr)
        run = self.jitsuctl("--token-file", "token", "status", "--json")
        self.assertIn("10.0.0.9", run.stdout)
        self.assertNotIn(TOKEN, self.log())
        self.assertEqual("", self.address("new"))
