"""``docs/contributing.md``: what it says to write is written into a copy of the tree, and passes its tests there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

ROOT: Final = Path(__file__).parents[2]


class ContributingTests(SynchronousTestCase):
    """Follows the recipes."""

    def test_recipes(self) -> None:
        """The toy backend and the toy strategy pass their tests, and a row for each is all that the tree needs."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        for name in ("jitsu_tw", "synjitsu_tw", "demo", "docs", "test"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        page = (ROOT / "docs" / "contributing.md").read_text()
        files = dict(re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL))
        for name, text in files.items():
            self.assertFalse((folder / name).exists())
            (folder / name).write_text(text)
        for row in re.findall(r"```diff\n(.*?)```", page, re.DOTALL):
            subprocess.run(["patch", "-p1"], input=row, text=True, cwd=folder, check=True, capture_output=True)
        tests = [name.removesuffix(".py").replace("/", ".") for name in files if name.startswith("test/")]
        self.assertEqual((4, 2), (len(files), len(tests)))
        run = subprocess.run([sys.executable, "-m", "twisted.trial", *tests, "test.unit.config",
                              "test.structure.test_words", "test.structure.test_layers"], check=False,
                             cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True)
        self.assertEqual(0, run.returncode, run.stdout + run.stderr)
