"""The table of mutants fits the product."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from test.mutants.table import mutants
from test.structure import ROOT


class MutantsTests(SynchronousTestCase):
    """Reads the table, and runs none."""

    def test_rows_fit(self) -> None:
        """Each row's text is in its file once, what takes its place is Python, and its tests are there."""
        for one in mutants():
            text = (ROOT / one.file).read_text()
            self.assertEqual(1, text.count(one.old), f"{one.file}: {one.old!r}")
            compile(text.replace(one.old, one.new), one.file, "exec")
            for tests in one.tests:
                parts = tests.split(".")
                module = parts[:-1] if parts[-1][0].isupper() else parts
                self.assertTrue(ROOT.joinpath(*module).with_suffix(".py").is_file(), tests)
