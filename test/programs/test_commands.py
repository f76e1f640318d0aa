"""The commands ``jitsu`` and ``synjitsu`` as processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from configparser import ConfigParser
from typing import Final

from jitsu_tw import __version__
from test.programs.test_tap import HOST, PATIENCE, ROOT, VMS, ProcessTestCase

#: Runs a command as the script does that pip makes for it.
SCRIPT: Final = "from jitsu_tw.commands import {name}; {name}()"


def command(name: str, *arguments: str) -> list[str]:
    """Return a command line that runs *name* with *arguments*."""
    return [sys.executable, "-c", SCRIPT.format(name=name), *arguments]


class CommandTests(ProcessTestCase):
    """Both commands, beside twistd."""

    def test_declared(self) -> None:
        """Pip installs scripts for the functions that these tests run."""
        declared = ConfigParser()
        declared.read(ROOT / "setup.cfg")
        scripts = declared["options.entry_points"]["console_scripts"].split("\n")
        for name in ("jitsu", "synjitsu"):
            self.assertIn(f"{name} = jitsu_tw.commands:{name}", scripts)

    def test_version_and_help(self) -> None:
        """Each prints its own version, and the options of the service, without those of twistd."""
        for name, option in (("jitsu", "--zone="), ("synjitsu", "--interface=")):
            run = self.run_to_end(*command(name, "--version"))
            self.assertEqual((0, f"{name.capitalize()} {__version__}\n"), (run.returncode, run.stdout))
            run = self.run_to_end(*command(name, "--help"))
            self.assertEqual(0, run.returncode)
            self.assertTrue(run.stdout.startswith(f"Usage: {name} "), run.stdout)
            self.assertIn(option, run.stdout)
            self.assertNotIn("twistd", re.sub(r"jitsu_tw\S*", "", run.stdout))
            self.assertNotIn("--pidfile", run.stdout)

    def test_usage(self) -> None:
        """A wrong option is one line and status 2; a wrong configuration one line and status 1."""
        for status, name, arguments, words in (
            (2, "jitsu", ("--nonsense",), "option --nonsense not recognized; see jitsu --help"),
            (2, "jitsu", ("--zone",), "option --zone requires argument; see jitsu --help"),
            (2, "synjitsu", ("--standin", "a\nb"), "--standin a\\nb: write it like 10.0.0.1=52:54:00:12:34:56"),
            (1, "jitsu", ("--config", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
            (1, "synjitsu", (), "name the bridge to stand in on, with -i"),
        ):
            run = self.run_to_end(*command(name, *arguments))
            self.assertEqual((status, ""), (run.returncode, run.stdout), run.stderr)
            self.assertTrue(run.stderr.startswith(f"{name}: {words}"), run.stderr)
            self.assertEqual(1, run.stderr.count("\n"), run.stderr)

    def test_serves(self) -> None:
        """
        It serves in the foreground, logs to standard error, and writes no file.

        A second SIGTERM changes nothing.
        """
        (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\ncontrol: {self.place}\nbackend: memory\n{VMS}")
        before = set(self.folder.iterdir())
        with (self.folder / "log").open("wb") as log, (self.folder / "out").open("wb") as out:
            process = subprocess.Popen(command("jitsu", "-z", "jitsu.zone"), cwd=self.folder, stdout=out, stderr=log)
        self.addCleanup(self.end, process)
        self.until_logged(f"serving 3 names of 3 VMs on {HOST}, port {self.port}")
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
        new = {self.folder / name for name in ("log", "out", "control.sock")}
        self.assertEqual(before | new, set(self.folder.iterdir()))
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, process.wait(PATIENCE))
        self.assertNotIn("Traceback", self.log())
        self.assertEqual("", (self.folder / "out").read_text())
