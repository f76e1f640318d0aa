"""Programs that are run to their end."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from jitsu_tw import processes
from jitsu_tw.processes import Ended, Process

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE = 30.0


class ProcessTests(TestCase):
    """`Process`."""

    def run_it(self, script: str, within: float = PATIENCE, **options: Any) -> Process:
        """Run a shell command."""
        return Process(reactor, ["sh", "-c", script], within=within, env=os.environ, **options)

    async def test_said(self) -> None:
        """The result has both outputs, apart and together, and the exit status; standard input is empty."""
        ended = await self.run_it("echo one; sleep 0.1; echo two >&2; cat; exit 3").ended
        self.assertEqual(Ended(3, "one\n", "two\n", "one\ntwo\n", late=False), ended)

    async def test_place(self) -> None:
        """It runs in the given folder and environment."""
        process = Process(reactor, ["words", "-c", 'pwd; echo "$A"'], program="/bin/sh", path="/", within=PATIENCE,
                      env={"A": "b"})  # fmt: skip
        self.assertEqual("/\nb\n", (await process.ended).out)

    async def test_signals(self) -> None:
        """What Jitsu ignores, as below nohup(1) or in the background of a shell, its programs do not."""
        for number in (signal.SIGHUP, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        ended = await self.run_it("grep SigIgn /proc/self/status").ended
        self.assertEqual(0, int(ended.out.split()[1], 16) & 0b11)

    def test_arguments(self) -> None:
        """Arguments that no program can have are an error like any other."""
        self.assertRaises(OSError, Process, reactor, ["echo", "a\0b"], within=PATIENCE, env={})

    def test_none(self) -> None:
        """A program that is not there is an error."""
        self.assertRaises(OSError, Process, reactor, ["/no/such"], within=PATIENCE, env={})

    async def test_late(self) -> None:
        """When its time is up, it is killed."""
        ended = await self.run_it("echo one; exec sleep 60", within=0.2).ended
        self.assertEqual((None, "one\n", True), (ended.code, ended.said, ended.late))

    async def test_asked(self) -> None:
        """Where it is given time to end, it is asked first; one that does not listen is killed."""
        script = "trap 'echo bye; exit 4' TERM; while :; do sleep 0.05; done"
        ended = await self.run_it(script, within=0.5, grace=PATIENCE).ended
        self.assertEqual((4, "bye\n", True), (ended.code, ended.said, ended.late))
        ended = await self.run_it("trap '' TERM; while :; do sleep 0.05; done", within=0.5, grace=0.2).ended
        self.assertEqual((None, True), (ended.code, ended.late))

    async def test_pipes_kept(self) -> None:
        """Nobody waits for what it leaves behind, whether it ends by itself or is killed."""
        self.patch(processes, "OUTPUT_WITHIN", 0.1)
        for script, late in (("sleep 60 & echo $!; exit 5", False), ("sleep 60 & echo $!; wait", True)):
            ended = await self.run_it(script, within=0.3 if late else PATIENCE).ended
            os.kill(int(ended.out), signal.SIGKILL)
            self.assertEqual((None if late else 5, late), (ended.code, ended.late))

    async def test_end(self) -> None:
        """It can be made to end before its time is up; one that has ended, too."""
        process = self.run_it("exec sleep 60")
        process.end()
        ended = await process.ended
        self.assertEqual((None, True), (ended.code, ended.late))
        process.end()

    async def group_ends(self, number: int) -> None:
        """Wait until no process of a group is left."""
        with self.assertRaises(ProcessLookupError):
            for _ in range(1000):
                os.killpg(number, 0)
                await deferLater(reactor, 0.01)

    async def test_group(self) -> None:
        """With a group of its own, all that it has begun ends at its deadline, also what ignores SIGTERM."""
        script = "trap '' TERM; sleep 60 & (trap - TERM; exec sleep 60) & echo $$; wait"
        process = self.run_it(script, within=0.3, group=True, grace=0.2)
        ended = await process.ended
        self.assertTrue(ended.late)
        await self.group_ends(int(ended.out))

    async def test_group_of_an_obedient(self) -> None:
        """What an obedient program has begun, and what ignores SIGTERM, is killed when the program has ended by it."""
        script = "(trap '' TERM; exec sleep 60) & sleep 0.1; echo $$; exec sleep 60"
        ended = await self.run_it(script, within=0.3, group=True, grace=PATIENCE).ended
        await self.group_ends(int(ended.out))
