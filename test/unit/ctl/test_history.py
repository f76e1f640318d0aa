"""jitsuctl's commands on the state; what they do with one is in `test.programs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pygit2
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.ctl import history
from jitsu_tw.ctl.show import FailedError


class OpenedTests(SynchronousTestCase):
    """A state that cannot be used."""

    def test_remedies(self) -> None:
        """The remedy is another path where there is no state, and another user where it may not be changed."""
        for reason, remedy in (
            ("failed to create temporary file 'x': Permission denied", "run this as root, or as the user that Jitsu"),
            ("no such file", "name Jitsu's persistdb with --state"),
        ):

            def refuse(*_: Any, reason: str = reason) -> None:
                raise OSError(reason)

            self.patch(pygit2, "Repository", refuse)
            error = self.assertRaises(FailedError, history.opened(Path()).__enter__)
            self.assertIn(f"{reason}; {remedy}", error.message)
