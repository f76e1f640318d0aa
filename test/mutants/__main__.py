"""
Which mutants the tests catch: `python -m test.mutants [--only WORD]...`.

Each is put into a scratch copy of the tree, its tests are run there, and it is taken out again. First all tests run
without any. A mutant that makes its tests run for much longer than that counts as caught, too, and is shown. Ends with
status 1 if a guard of the cluster survives, or if less than 95% of all are caught.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from test.mutants.table import CLUSTER, mutants
from test.structure import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from test.mutants.table import Mutant

#: The share that must be caught.
ENOUGH: Final = 0.95

#: How long the tests of a mutant may take: this factor times what they take without it, and these seconds more.
LONGER: Final = 5.0
MORE: Final = 30.0

#: Seconds that tests may take without a mutant.
PATIENCE: Final = 600.0

_UNNEEDED: Final = shutil.ignore_patterns(".*", "__pycache__", "_trial_temp*", "*.egg-info")


class Copy:
    """A copy of the tree in which tests run."""

    def __init__(self, folder: Path) -> None:
        """Make it in *folder*."""
        self._root = folder / "tree"
        self._temporary = folder / "trial"
        shutil.copytree(ROOT, self._root, ignore=_UNNEEDED)
        # Python takes compiled code for new that is as old, in seconds, and as large as its source.
        self._environment = {**os.environ, "PYTHONPATH": str(self._root), "PYTHONDONTWRITEBYTECODE": "1"}

    @contextlib.contextmanager
    def with_mutant(self, one: Mutant) -> Iterator[None]:
        """Let the copy have a mutant."""
        path = self._root / one.file
        text = path.read_text()
        if text.count(one.old) != 1:
            raise SystemExit(f"{one.file} has {text.count(one.old)} times what it should have once: {one.old!r}")
        path.write_text(text.replace(one.old, one.new))
        yield
        path.write_text(text)

    def run(self, tests: Sequence[str], patience: float) -> str:
        """Run *tests*; return "" if they pass, else why they do not."""
        command = [sys.executable, "-m", "twisted.trial", "--exitfirst", "--reporter=text",
                   f"--temp-directory={self._temporary}", *tests]
        with subprocess.Popen(command, cwd=self._root, env=self._environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              start_new_session=True) as process:
            try:
                output, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                return "they do not end"
        if not process.returncode:
            return ""
        failed = [line for line in output.splitlines() if line.startswith("test.")]
        return failed[-1] if failed else output[-500:]


@click.command()
@click.option("--only", "words", multiple=True, help="Only mutants with this word in kind, file, text or fault.")
def main(words: tuple[str, ...]) -> None:
    """Put faults into the product, one at a time, and see whether tests notice."""
    chosen = [one for one in mutants() if all(word in " ".join(map(str, (one.kind, one.file, one.old, one.fault)))
                                              for word in words)]
    total, caught = Counter(one.kind for one in chosen), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="jitsu-mutants-") as folder:
        copy = Copy(Path(folder))
        took: dict[tuple[str, ...], float] = {}
        for tests in dict.fromkeys(one.tests for one in chosen):
            begin = time.monotonic()
            if why := copy.run(tests, PATIENCE):
                raise SystemExit(f"{' '.join(tests)} fail without a mutant: {why}")
            took[tests] = time.monotonic() - begin
        for one in chosen:
            with copy.with_mutant(one):
                why = copy.run(one.tests, took[one.tests] * LONGER + MORE)
            caught[one.kind] += bool(why)
            print(f"{'caught  ' if why else 'SURVIVES'} {one.file}: it {one.fault} ({why or ' '.join(one.tests)})",
                  flush=True)
    for kind, number in total.items():
        print(f"{kind}: {caught[kind]} of {number} caught")
    share = caught.total() / max(1, total.total())
    print(f"all: {caught.total()} of {total.total()} caught, {share:.0%}")
    sys.exit(share < ENOUGH or caught[CLUSTER] < total[CLUSTER])


if __name__ == "__main__":
    main()
