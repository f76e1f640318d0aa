"""What is published: the source distribution and the wheel of PyPI, and `NEWS.md` of a release."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("jitsu_tw", "synjitsu_tw", "twisted/plugins")


def files(*folders: str) -> Iterator[str]:
    """Yield the files below these folders of the tree."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc" and path.name != "dropin.cache":
                yield str(path.relative_to(ROOT))


class DistributionsTests(SynchronousTestCase):
    """With a copy of the tree, as tools write into what they build."""

    def setUp(self) -> None:
        """Make the copy."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.copy = self.folder / "copy"
        shutil.copytree(ROOT, self.copy, ignore=shutil.ignore_patterns(
            ".git", ".venv", ".*_cache", "build", "dist", "*.egg-info", "__pycache__"))  # fmt: skip

    def run_module(self, *words: str | Path) -> str:
        """Run a Python program in the copy; return its output."""
        run = subprocess.run([sys.executable, "-m", *words], cwd=self.copy, capture_output=True, text=True, check=False)
        self.assertEqual(0, run.returncode, run.stdout + run.stderr)
        return run.stdout

    def test_complete(self) -> None:
        """The wheel, which is made from the source distribution, has all files of the packages; PyPI takes both."""
        made = self.folder / "made"
        self.run_module("build", "--outdir", made)
        self.run_module("twine", "check", "--strict", *made.iterdir())
        (wheel,) = made.glob("*.whl")
        (source,) = made.glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            scripts = archive.read(f"jitsu_tw-{__version__}.dist-info/entry_points.txt").decode()
        self.assertEqual(set(), set(files(*PACKAGES)) - names)
        self.assertEqual(set(), {name for name in names if name.startswith("test")})
        for script in ("jitsu", "jitsuctl", "synjitsu"):
            self.assertIn(f"\n{script} = ", scripts)
        with tarfile.open(source) as packed:
            inside = {name.partition("/")[2] for name in packed.getnames()}
        wanted = {*files(*PACKAGES, "conf", "packaging", "test", ".ci"), "Makefile", "LICENSE", "NEWS.md", "setup.cfg"}
        self.assertEqual(set(), wanted - inside)

    def test_news(self) -> None:
        """A release gathers every change of CHANGES/ as one item; there is no file of another kind."""
        drawn = self.run_module("towncrier", "build", "--draft", "--version", __version__)
        items = [line for line in io.StringIO(drawn) if line.startswith("- ")]
        kept = {"README.md", "template.md.j2"}
        changes = [path for path in (ROOT / "CHANGES").iterdir() if path.name not in kept]
        self.assertEqual(set(), {path.suffixes[-2] for path in changes} - {".feature", ".fix", ".removal"})
        self.assertEqual(len(changes), len(items))
        if changes:
            self.assertIn(f"## Jitsu {__version__} (", drawn)
