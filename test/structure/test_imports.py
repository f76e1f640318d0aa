"""What `jitsuctl` imports: a command loads only the libraries that it needs, as people and shells wait for it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from typing import Final

import click
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import ctl
from test.structure import ROOT

#: Libraries that take long to import.
SLOW: Final = ("OpenSSL", "attr", "concurrent.futures", "dns", "libvirt", "pygit2", "rich", "twisted", "yaml")

#: Runs jitsuctl with the arguments that follow; then prints the modules that are loaded.
PROGRAM: Final = """\
import sys
from jitsu_tw.ctl import main
try:
    main(sys.argv[1:], "jitsuctl")
finally:
    print(*sys.modules, file=sys.stderr)
"""


class ImportsTests(SynchronousTestCase):
    """Runs jitsuctl in processes of their own."""

    def imported(self, *arguments: str, **variables: str) -> set[str]:
        """Return those of `SLOW` that jitsuctl imports when it runs with *arguments*."""
        command = [sys.executable, "-c", PROGRAM, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT,
                             env={**os.environ, "PYTHONPATH": str(ROOT), **variables})  # fmt: skip
        loaded = set(run.stderr.splitlines()[-1].split())
        self.assertIn("jitsu_tw.ctl", loaded, run.stderr)
        return loaded.intersection(SLOW)

    def test_at_once(self) -> None:
        """The version, the list of commands and their completion import none of the slow libraries."""
        self.assertEqual(set(), self.imported("--version"))
        self.assertEqual(set(), self.imported("--help"))
        variables = {"_JITSUCTL_COMPLETE": "bash_complete", "COMP_WORDS": "jitsuctl st", "COMP_CWORD": "1"}
        self.assertEqual(set(), self.imported(**variables))

    def test_asking(self) -> None:
        """Commands to a running Jitsu, and the completion of its VMs' names, import none but the HTTP client's."""
        control = ("--control", "unix:/nonexistent")
        for command in (("status",), ("why", "www"), ("events",), ("stop", "www")):
            self.assertEqual({"attr"}, self.imported(*control, *command), command)
        variables = {"_JITSUCTL_COMPLETE": "bash_complete", "COMP_WORDS": "jitsuctl why w", "COMP_CWORD": "2",
                     "JITSU_CONTROL": control[1]}  # fmt: skip
        self.assertEqual({"attr"}, self.imported(**variables))

    def test_rows(self) -> None:
        """Each row of the table is a command of its name, whose line ends as a sentence and fits on a terminal."""
        for name, (module, line) in ctl.COMMANDS.items():
            command = getattr(import_module(f"jitsu_tw.ctl.{module}"), name.replace("-", "_"))
            self.assertIsInstance(command, click.Command)
            self.assertEqual(name, command.name)
            self.assertTrue(line.endswith(".") and len(line) <= 60, line)
