"""`make demo` and `make demo-sites`: they end well, show what they promise, and their last lines have the figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from demo.__main__ import STEPS, timeline
from demo.sites import LABELS

#: Seconds that the whole demo may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 180.0


def demo(*words: str, module: str = "demo") -> tuple[int, str]:
    """Run a demo; return its exit status, and what it printed."""
    command = [sys.executable, "-m", module, *words]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    return run.returncode, run.stdout


class DemoTests(SynchronousTestCase):
    """The program, as a person runs it."""

    def test_unikernel(self) -> None:
        """Without a word it boots the unikernel, cold and prepared, and shows all steps of both."""
        if missing := lab.missing_commands():
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        status, text = demo()
        self.assertEqual(0, status, text)
        head, rows = text.partition("\n\nms ")[::2]
        self.assertIn("prepared", rows.splitlines()[0])
        for name, _, _ in STEPS:
            self.assertRegex(rows, rf"(?m)^{name} +\d+ ")
        self.assertRegex(rows, r"(?m)^first octet +\d+ +\d+  the page begins")
        self.assertRegex(rows, r"\nOK: cold query to page \d+ ms.*; prepared \d+ ms; stopped when idle after .* s\n$")
        self.assertNotIn("kernel and busybox", head)

    def test_sites(self) -> None:
        """The demo of a template has five machines say five names, and shows the ends of their lives."""
        if missing := lab.missing_commands():
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        status, text = demo(module="demo.sites")
        self.assertEqual(0, status, text)
        self.assertIn('\n    dns: "*.sites.jitsu.test"\n', text)
        rows = re.findall(r"(?m)^(\w+)\.sites\.jitsu\.test +10\.99\.0\.\d+ +name: (\w+)\.site +\d+ ms +\d+ MiB$", text)
        self.assertEqual([(label, label) for label in LABELS], rows, text)
        self.assertIn("the answer is NXDOMAIN, and nothing was made", text)
        self.assertIn("waiting until all machines are stopped", text)
        self.assertRegex(text, r"it has its address still, 10\.99\.0\.\d+: \d+ ms to its page")
        self.assertIn(f"there are {', '.join(f'{label}.site' for label in LABELS[1:])} still", text)
        self.assertRegex(text, r"\nOK: 5 names, 5 machines of \d+ MiB; query to page \d+ ms .*, \d+ ms when one is\n$")

    def test_no_such_guest(self) -> None:
        """A guest that does not exist is refused, with those that do."""
        status, text = demo("bsd")
        self.assertEqual((1, "FAILED: there is no guest bsd, only unikernel and linux\n"), (status, text))


class TimelineTests(SynchronousTestCase):
    """Times of the client and of Jitsu, together."""

    def test_steps(self) -> None:
        """Each step has its time after the query; a VM that has not been stopped has no end."""
        seen = {"query": 7.0, "answered": 7.25, "connected": 7.5, "first octet": 8.0}
        marks = {"query": 0.0, "start": 1.0, "started": 30.0, "ready": 40.0}
        times = {"query": 0.0, "start": 1.0, "started": 30.0, "ready": 40.0, "answered": 250.0, "connected": 500.0,
                 "first octet": 1000.0}
        self.assertEqual(times, timeline(seen, {"activation_ms": marks}))
        stopped = timeline(seen, {"activation_ms": marks | {"stop": 5000.0, "stopped": 5500.0}})
        self.assertEqual(times | {"idle": 5000.0, "stopped": 5500.0}, stopped)
