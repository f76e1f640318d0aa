"""Programs in the foreground: which processes are believed to be one."""

from __future__ import annotations

import os
import signal
import subprocess
from unittest import mock
from uuid import uuid4

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from jitsu_tw.backends import foreground
from jitsu_tw.backends.programs import Programs
from jitsu_tw.ijitsu import ENDED, Power


class EndTests(TestCase):
    """When a program counts as ended."""

    async def test_not_yet(self) -> None:
        """A program that runs is not ended by what looks like its end: another one's event, or the reactor's end."""
        told: list[tuple[str, str]] = []
        kept = foreground.Foreground(Programs(reactor), lambda *change: told.append(change), reactor)
        self.addCleanup(kept.close)
        kept.start("one", "one", ["sleep", "1000"])
        kept._kept["one"].handle.connectionLost(None)
        self.assertIs(Power.RUNNING, kept.power("one"))
        kept.signal("one", signal.SIGKILL)
        while not told:
            await deferLater(reactor, 0.01)
        self.assertEqual(([("one", ENDED)], Power.OFF), (told, kept.power("one")))


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
