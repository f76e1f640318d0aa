"""Programs in the foreground: which processes are believed to be one."""

from __future__ import annotations

import os
import subprocess
from unittest import mock
from uuid import uuid4

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from jitsu_tw.backends import foreground


class FoundTests(SynchronousTestCase):
    """What an earlier Jitsu has begun, and what only looks so."""

    def begin(self, mark: str, *before: str) -> None:
        """Begin a process that leads a session and has this mark, by the command *before*, and wait until it does."""
        marked = ["env", f"{foreground.MARK}={mark}"]
        process = subprocess.Popen([*before, *marked, "setsid", "sh", "-c", "echo; exec sleep 100"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        self.addCleanup(self.end, process)
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SkipTest(f"not allowed here: {' '.join(before)}")

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        """End it."""
        with process:
            process.kill()

    def test_other_user(self) -> None:
        """A process of another user is none of ours, whatever its environment says, even if we can read that."""
        uuid = str(uuid4())
        self.begin(uuid)
        self.assertIn(uuid, foreground.found())
        with mock.patch.object(os, "getuid", return_value=os.getuid() + 1):
            self.assertNotIn(uuid, foreground.found())

    def test_container(self) -> None:
        """Nor is one of our user in a pid namespace of its own."""
        uuid = str(uuid4())
        self.begin(uuid, "unshare", "--map-root-user", "--pid", "--fork", "--kill-child")
        self.assertNotIn(uuid, foreground.found())

    def test_no_text(self) -> None:
        """A mark that is no text harms nobody."""
        uuid = str(uuid4())
        self.begin(os.fsdecode(b"\xff"))
        self.begin(uuid)
        self.assertIn(uuid, foreground.found())
