"""
An xl without Xen: its output, its exit codes, its domains in a temporary directory, real nodes in a real xenstored.

`FakeXl` puts the program, `xlprogram`, on the path as ``xl``. Its output was recorded from xl 4.17. A file
``fail-VERB`` in the directory makes that verb fail with what is in it; ``hang-VERB`` makes it hang; ``stays`` keeps
what is left of a domain that has shut down until it is destroyed; ``cpu-time`` has the seconds that all have run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from test.xenlab.xenstored import Xenstored

ROOT: Final = Path(__file__).resolve().parent.parent.parent


class FakeXl:
    """
    The program on the path, with a xenstored of its own, to be used with `with`.

    Attributes:
        folder: where it keeps its domains, and looks for faults.
        daemon: the xenstored.
    """

    def __init__(self) -> None:
        """Make the directory."""
        self._folder = tempfile.TemporaryDirectory(prefix="fakexl-")
        self.folder = Path(self._folder.name)
        self.daemon = Xenstored()
        self._ends = contextlib.ExitStack()
        self._old: dict[str, str | None] = {}

    def __enter__(self) -> FakeXl:
        """Put the program on the path."""
        self._ends.callback(self._folder.cleanup)
        self._ends.enter_context(self.daemon)
        program = self.folder / "xl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "test/xenlab/xlprogram.py"} "$@"\n')
        program.chmod(0o755)
        for key, value in {
            "PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "FAKE_XL": str(self.folder),
            "XENSTORED_PATH": self.daemon.path,
        }.items():  # fmt: skip
            self._old[key] = os.environ.get(key)
            os.environ[key] = value
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it from the path."""
        for key, value in self._old.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        self._ends.close()

    def xl(self, *arguments: str) -> str:
        """Run the fake xl, as another program would, and return its output."""
        done = subprocess.run(["xl", *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    def fault(self, name: str, said: str = "") -> None:
        """Order a fault."""
        (self.folder / name).write_text(said)

    def mend(self, name: str) -> None:
        """Take it back."""
        (self.folder / name).unlink()

    def calls(self) -> list[list[str]]:
        """Return all calls so far that were no lists."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [call for line in lines if (call := json.loads(line))[0] != "list"]
