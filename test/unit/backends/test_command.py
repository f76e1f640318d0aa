"""The backend of commands: the contract on a program of the tests, and what can go wrong."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock
from uuid import uuid4

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from jitsu_tw.backends import command, foreground, programs
from jitsu_tw.backends.command import CommandBackend
from jitsu_tw.backends.preset import PRESETS, read_pair, uuid_of
from jitsu_tw.errors import BackendError, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import Power, Start
from jitsu_tw.processes import Process
from jitsu_tw.settings import Mode
from test.contract import backends as contract_backends
from test.support.fakemachines import FakeMachines

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.settings import VM


ROOT: Final = Path(__file__).parents[3]

#: A Jitsu that starts a machine in a folder by a command.
STARTS: Final = """\
import sys
from pathlib import Path
from twisted.internet import reactor
from jitsu_tw.backends.command import CommandBackend
from jitsu_tw.backends.preset import PRESETS
from test.support.fakemachines import FakeMachines
machines, backend = FakeMachines(Path(sys.argv[1])), CommandBackend(PRESETS["command"])
machine = machines.vm("www", settings={"commands": machines.commands("start", start=sys.argv[2])})
backend.look_up(machine).addCallback(backend.start).addErrback(print)
reactor.run()
"""


def folder(test: TestCase) -> Path:
    """Return a new folder."""
    made = Path(test.mktemp()).absolute()
    made.mkdir()
    return made


class CommandContractTests(contract_backends.BackendContract):
    """The contract, for own commands."""

    prepares, makes, has_disks = False, False, False

    def make(self) -> Any:
        """Return a backend."""
        self.machines, self.names = FakeMachines(folder(self)), itertools.count()
        return CommandBackend(PRESETS["command"])

    def new_vm(self) -> VM:
        """Return a VM with a machine of its own."""
        return self.machines.vm(f"machine{next(self.names)}")


class CommandTestCase(TestCase):
    """Has machines, and a backend that is connected."""

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect."""
        self.machines = FakeMachines(folder(self))
        self.backend = CommandBackend(PRESETS["command"])
        self.watcher = contract_backends.Watcher()
        self.backend.connect(self.watcher)
        self.addCleanup(self.backend.close)

    async def failing(self, call: Deferred[Any], kind: type[BackendError] = BackendError) -> str:
        """Return the message of the error that a *call* fails by."""
        return str(await self.assertFailure(call, kind))

    def running(self) -> list[str]:
        """Return the processes of the machines' program."""
        return self.pids(str(self.machines.program))

    @staticmethod
    def pids(pattern: str) -> list[str]:
        """Return the processes whose command lines match a regular expression."""
        found = subprocess.run(["pgrep", "-f", f"^{pattern}"], capture_output=True, text=True, check=False)
        return found.stdout.split()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds."""
        for _ in range(3000):
            if condition():
                return
            await deferLater(reactor, 0.01)
        self.fail("it never holds")


class TroubleTests(CommandTestCase):
    """Commands that fail, hang and write what nobody knows."""

    async def test_fails(self) -> None:
        """The error has the exit status and the last lines of the program's messages, printable."""
        uuid = await self.backend.look_up(self.machines.vm("www"))
        self.machines.fault("www", "start fails")
        said = await self.failing(self.backend.start(uuid))
        self.assertIn("/machine ended with status 3: one of the lines; it cannot \\x1b[1mbe", said)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_output_is_limited(self) -> None:
        """Of a program that writes without end, a little is kept."""
        self.machines.fault("www", "state floods")
        self.patch(programs, "LONGEST_OUTPUT", 1000)
        ended = await self.backend._programs.run([str(self.machines.program), "state", "www"], 10.0, "state")
        self.assertLess(len(ended.out), 3_000_000 / 2)
        self.assertEqual(1, ended.code)

    async def test_hangs(self) -> None:
        """A command that hangs is killed with its whole group at its deadline."""
        slow = self.machines.vm("slow", settings={"deadlines": (("start", 0.5),)})
        uuid = await self.backend.look_up(slow)
        self.machines.fault("slow", "start hangs")
        self.patch(programs, "GRACE", 0.2)
        self.assertIn("has not ended within 0.5 s, and was killed", await self.failing(self.backend.start(uuid)))
        sleepers = [int(line) for line in (self.machines.folder / "sleepers").read_text().split()]
        self.assertEqual(2, len(sleepers))
        await self.until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in sleepers))

    async def test_holds_up_nobody(self) -> None:
        """While a command hangs, other machines are started."""
        slow, other = [await self.backend.look_up(self.machines.vm(name)) for name in ("slow", "other")]
        self.machines.fault("slow", "start hangs")
        self.patch(programs, "GRACE", 0.2)
        begun = Deferred.fromCoroutine(self.failing(self.backend.start(slow)))
        self.assertIs(Start.BOOTED, await self.backend.start(other).addTimeout(10, reactor))
        self.assertNoResult(begun)
        await self.backend.close()
        await begun

    async def test_closed_while_it_hangs(self) -> None:
        """When Jitsu ends, so do the commands that run, and the stream of events, with their groups."""
        uuid = await self.backend.look_up(self.machines.vm("slow"))
        self.machines.fault("slow", "start hangs")
        self.patch(programs, "GRACE", 0.2)
        hangs = self.failing(self.backend.start(uuid))
        sleepers = self.machines.folder / "sleepers"
        await self.until(lambda: sleepers.exists() and len(sleepers.read_text().split()) == 2)
        await self.backend.close()
        self.assertIn("Jitsu ends", await hangs)
        await self.until(lambda: not self.running())

    async def test_at_once(self) -> None:
        """Some programs run at once, further ones wait."""
        self.patch(programs, "GRACE", 0.0)
        self.backend._programs._slots["start"] = DeferredSemaphore(2)
        uuids = []
        for number in range(3):
            machine = self.machines.vm(f"m{number}", settings={"deadlines": (("start", 0.6),)})
            uuids.append(await self.backend.look_up(machine))
            self.machines.fault(f"m{number}", "start hangs")
        hang = [self.failing(self.backend.start(uuid)) for uuid in uuids]
        await self.until(lambda: len([call for call in self.machines.calls() if call.startswith("start")]) == 2)
        await hang[0]
        await hang[1]
        self.assertIn("was killed", await hang[2])
        self.assertEqual(3, len([call for call in self.machines.calls() if call.startswith("start")]))

    async def test_stops_hold_up_no_start(self) -> None:
        """Machines that take their time to end, or to tell their state, hold up no start of another one."""
        self.patch(programs, "GRACE", 0.0)
        for use in programs.USES:
            self.backend._programs._slots[use] = DeferredSemaphore(2)
        *slow, other = [await self.backend.look_up(self.machines.vm(f"m{number}")) for number in range(5)]
        hang = []
        for number, uuid in enumerate(slow):
            await self.backend.start(uuid)
            await self.backend.state(uuid)  # as the start has shown it
            what = "stop" if number < 2 else "state"
            self.machines.fault(f"m{number}", f"{what} hangs")
            call = self.backend.stop(uuid, Mode.SHUTDOWN) if number < 2 else self.backend.state(uuid)
            hang.append(call.addErrback(lambda failure: failure.trap(BackendError)))
        sleepers = self.machines.folder / "sleepers"
        await self.until(lambda: sleepers.exists() and len(sleepers.read_text().split()) == 2 * len(slow))
        self.assertIs(Start.BOOTED, await self.backend.start(other).addTimeout(10, reactor))
        for call in hang:
            self.assertNoResult(call)
        await self.backend.close()
        for call in hang:
            await call

    async def test_no_secrets(self) -> None:
        """An error, which DNS clients read, has no argument of a command, and little of what it has written."""
        for end in ("exit 0", "exit 3", "exec sleep 9"):
            state = f"sh -c 'head -c 9000 /dev/zero; {end}' secret"
            commands = self.machines.commands("events", state=state, packets=state)
            own = {"commands": commands, "deadlines": (("state", 0.5),)}
            machine = self.machines.vm("www", settings=own)
            said = [await self.failing(self.backend.look_up(machine)),
                    await self.failing(self.backend.traffic(uuid_of(machine, "command")))]  # fmt: skip
            for text in said:
                self.assertNotIn("secret", text)
                self.assertLess(len(text), 300)

    async def test_unknown_word(self) -> None:
        """A word that nobody knows is an error with the word, the command and the remedy."""
        uuid = await self.backend.look_up(self.machines.vm("www"))
        self.machines.become("www", "upside down")
        said = await self.failing(self.backend.state(uuid))
        self.assertIn("its command state says 'upside down', which is none of its words; add it to words", said)

    async def test_absent(self) -> None:
        """A machine that is removed is no VM any more; one that is made again is found, and told."""
        machine = self.machines.vm("www")
        uuid = await self.backend.look_up(machine)
        (self.machines.folder / "www").unlink()
        self.assertIn("knows no www", await self.failing(self.backend.state(uuid), NoSuchVM))
        self.assertIn("knows no www", await self.failing(self.backend.look_up(machine), NoSuchVM))
        await self.until(lambda: "events " in self.machines.calls())
        self.machines.become("www", "running")
        await self.watcher.until(lambda: any(told[0] == uuid for told in self.watcher.told))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_removed_from_the_file(self) -> None:
        """Of a VM whose commands went with its lines in the file, the log says that it is not stopped."""
        machine = attrs.evolve(self.machines.vm("www"), backend_settings=None, removed=True, uuid=str(uuid4()))
        said = await self.failing(self.backend.look_up(machine), NoSuchVM)
        self.assertIn("NOT stopped if it runs: stop it by hand; or write its lines back", said)

    async def test_program_is_missing(self) -> None:
        """A command whose program is not there fails with a clear line."""
        commands = self.machines.commands("start", start="no-such-program ${name}")
        machine = self.machines.vm("www", settings={"commands": commands})
        uuid = await self.backend.look_up(machine)
        self.assertIn("there is no program no-such-program here", await self.failing(self.backend.start(uuid)))
        self.assertEqual(1, len(self.backend.examine(machine)))
        commands = self.machines.commands("start", start="/no/such/program")
        with self.assertRaisesRegex(ConfigError, "/no/such/program is not there"):
            self.backend.examine(self.machines.vm("www", settings={"commands": commands}))

    async def test_preset_is_missing(self) -> None:
        """A preset whose program is not there is a hypervisor that cannot be asked, until it is there."""
        preset = attrs.evolve(PRESETS["podman"], commands={"state": ("no-such-podman", "${name}"), "start": ("x",)})
        backend, watcher = CommandBackend(preset), contract_backends.Watcher()
        self.addCleanup(backend.close)
        backend.connect(watcher)
        self.assertIn("there is no program no-such-podman here", watcher.lost_reasons[0])
        place = self.machines.folder / "no-such-podman"
        backend._programs.environment = {"PATH": str(self.machines.folder)}
        place.symlink_to(self.machines.program)
        await watcher.until(lambda: watcher.connections)

    async def test_one_program_is_missing(self) -> None:
        """The program of one machine that is not there is this machine's trouble, not that of all machines."""
        commands = dict(self.machines.commands("start", "events"))
        preset = attrs.evolve(PRESETS["command"], commands={**commands, "start": ("true",)})
        backend, watcher = CommandBackend(preset), contract_backends.Watcher()
        self.addCleanup(backend.close)
        backend.connect(watcher)
        own = {"commands": (read_pair("start=no-such-program ${name}"),)}
        uuid = await backend.look_up(self.machines.vm("own", settings=own))
        said = await self.failing(backend.start(uuid))
        self.assertIn("there is no program no-such-program here", said)
        self.assertEqual([], watcher.lost_reasons)
        self.assertIs(Power.OFF, await backend.state(uuid))

    async def test_starts_later(self) -> None:
        """A `start` that returns before the machine runs is waited for, until its time is up."""
        uuid = await self.backend.look_up(self.machines.vm("www"))
        self.machines.fault("www", "start is slow")
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        other = await self.backend.look_up(self.machines.vm("other", settings={"deadlines": (("start", 0.3),)}))
        self.machines.fault("other", "start is nothing")
        self.assertIn("does not run", await self.failing(self.backend.start(other)))

    async def test_not_resumed(self) -> None:
        """What cannot be resumed is started anew."""
        uuid = await self.backend.look_up(self.machines.vm("www"))
        await self.backend.start(uuid)
        await self.backend.stop(uuid, Mode.PAUSE)
        self.machines.fault("www", "resume fails")
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertIn("kill www", self.machines.calls())

    async def test_ends_later(self) -> None:
        """A machine that ends some time after the command has is waited for, until its time is up."""
        uuid = await self.backend.look_up(self.machines.vm("www"))
        await self.backend.start(uuid)
        self.machines.fault("www", "kill is slow")
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        other = await self.backend.look_up(self.machines.vm("other", settings={"deadlines": (("stop", 0.3),)}))
        await self.backend.start(other)
        self.machines.fault("other", "kill is nothing")
        self.assertIn("it is not off", await self.failing(self.backend.stop(other, Mode.DESTROY)))

    async def test_tied_by_another(self) -> None:
        """A setpriv that cannot do it, as busybox has one, is left out."""
        place = self.machines.folder / "bin"
        place.mkdir()
        (place / "setpriv").symlink_to("/bin/busybox")
        self.backend._programs.environment = {"PATH": f"{place}:/usr/bin:/bin"}
        self.assertEqual("", await self.backend._programs.done(["true"], 10.0, "start", tied=True))

    async def test_killed(self) -> None:
        """The start that runs when Jitsu is killed is ended: the next Jitsu does not run a second one beside it."""
        start = f"{shutil.which('sleep')} 87654{os.getpid()}"
        self.addCleanup(subprocess.run, ["pkill", "-f", f"^{start}$"], check=False)
        jitsu = Process(
            reactor, [sys.executable, "-c", STARTS, str(self.machines.folder), start],
            within=60.0, env=os.environ, path=str(ROOT),
        )  # fmt: skip
        await self.until(lambda: self.pids(start) or jitsu.ended.called)
        jitsu.end()
        self.assertEqual("", (await jitsu.ended).said)
        await self.until(lambda: not self.pids(start))

    async def test_no_command(self) -> None:
        """What there is no command for fails, and says so; what cannot be stopped is advised of."""
        uuid = await self.backend.look_up(self.machines.vm("www", "pause", "stop", "kill"))
        await self.backend.start(uuid)
        self.assertIn("no command pause", await self.failing(self.backend.stop(uuid, Mode.PAUSE)))
        self.assertIn("no command stop", await self.failing(self.backend.stop(uuid, Mode.DESTROY)))
        self.assertIn("stays up until it goes down by itself", " ".join(await self.backend.advice(uuid)))

    async def test_one_argument(self) -> None:
        """A value is one argument, whatever is in it; no shell sees it."""
        commands = self.machines.commands("packets", packets="printf %s 1${what}")
        machine = self.machines.vm("www", settings={"commands": commands, "variables": (("what", "2; echo $(id) 3"),)})
        uuid = await self.backend.look_up(machine)
        said = await self.failing(self.backend.traffic(uuid))
        self.assertIn("says 12; echo $(id) 3, which is no number of packets", said)


class EventTests(CommandTestCase):
    """The stream of events, and what is done without one."""

    async def until_told(self, uuid: str, number: int = 1) -> None:
        """Wait until as many changes of a machine have been told."""
        await self.watcher.until(lambda: [told[0] for told in self.watcher.told].count(uuid) >= number)

    async def two(self) -> list[str]:
        """Return the uuids of two machines that share a stream, which runs."""
        uuids = [await self.backend.look_up(self.machines.vm(name)) for name in ("one", "other")]
        await self.until(lambda: "events " in self.machines.calls())
        await deferLater(reactor, 0.1)  # until tail(1) has opened the file
        return uuids

    async def test_named(self) -> None:
        """A line is a hint for the machines that it names; one stream serves all machines."""
        one, other = await self.two()
        self.machines.tell("at 12:00 nobody was seen")
        self.machines.become("one", "running")
        await self.until_told(one)
        self.assertNotIn(other, [told[0] for told in self.watcher.told])
        self.assertEqual(1, self.machines.calls().count("events "))

    def has_reason(self, uuid: str, reason: str) -> bool:
        """Return whether this is the last reason for a hint."""
        return self.backend._machine(uuid).reason == reason

    async def test_reason(self) -> None:
        """The reason is the last of the events that came; a long one is not shown, for it has more than that."""
        one, _ = await self.two()
        await self.until_told(one)
        for line in ("one is dying", "one died", f"one {'x' * 200}"):
            self.machines.tell(line)
            said = f"command says: {line}" if line[-1] != "x" else "command tells of a change"
            await self.until(partial(self.has_reason, one, said))
            if line == "one died":
                await self.until_told(one, 2)
        await self.until_told(one, 3)
        self.assertEqual(
            ["command says: one died", "command tells of a change"],
            [reason for uuid, reason in self.watcher.told if uuid == one][1:],
        )

    async def test_of_others(self) -> None:
        """An event of a preset's that names others is none of the only machine's, as one of its own events would be."""
        self.patch(command, "HINT_EVERY", 0.0)
        preset = attrs.evolve(PRESETS["command"], commands={"events": (str(self.machines.program), "events")})
        backend = CommandBackend(preset)
        backend.connect(self.watcher)
        self.addCleanup(backend.close)
        uuid = await backend.look_up(self.machines.vm("www", "events"))
        await self.until_told(uuid)  # that the stream runs
        await self.until(lambda: "events " in self.machines.calls())
        await deferLater(reactor, 0.1)  # until tail(1) has opened the file
        for name in ("other", "www"):
            await deferLater(reactor, 2 * programs.READ_EVERY)
            self.machines.tell(f"{name} started")
        await self.until_told(uuid, 2)
        self.assertEqual((uuid, "command says: www started"), self.watcher.told[1])

    async def test_bounded(self) -> None:
        """A thousand lines are few hints."""
        one, _ = await self.two()
        for _ in range(1000):
            self.machines.tell("one hundred")
        await self.until_told(one, 2)
        self.assertLess(len(self.watcher.told), 5)

    async def test_own_start(self) -> None:
        """What a start has shown counts once; the events that it causes are one hint, a while later."""
        one, _ = await self.two()
        await self.until_told(one)  # that the stream runs
        await self.backend.start(one)
        asked = self.machines.calls().count("state one")
        await deferLater(reactor, 0.1)
        self.assertIs(Power.RUNNING, await self.backend.state(one))
        self.assertEqual(asked, self.machines.calls().count("state one"))
        self.assertEqual(["booted"], [reason for uuid, reason in self.watcher.told if uuid == one][1:])
        await self.until_told(one, 3)
        self.machines.become("one", "off")
        self.assertIs(Power.OFF, await self.backend.state(one))

    async def test_begun_again(self) -> None:
        """A stream that ends is begun again, and what happened meanwhile is asked for."""
        self.patch(programs, "AGAIN", 0.05)
        machine = self.machines.vm("www", "events", settings={"commands": self.machines.commands(
            "events", events=f"{self.machines.program} state nobody")})  # fmt: skip
        uuid = await self.backend.look_up(machine)
        await self.until_told(uuid, 2)
        await self.until(lambda: self.machines.calls().count("state nobody") > 1)

    async def test_leaves_a_child(self) -> None:
        """A stream that ends is begun again though a child of it keeps its pipe open; of its group, nothing is left."""
        self.patch(programs, "AGAIN", 0.05)
        within, beside = f"sleep 98765{os.getpid()}", f"sleep 43210{os.getpid()}"
        self.addCleanup(subprocess.run, ["pkill", "-f", f"^{beside}$"], check=False)
        events = f"sh -c '{within} & setsid {beside} & exit 0'"
        machine = self.machines.vm("www", settings={"commands": self.machines.commands("events", events=events)})
        uuid = await self.backend.look_up(machine)
        await self.until_told(uuid, 2)
        await self.backend.close().addTimeout(3, reactor)
        await self.until(lambda: subprocess.run(["pgrep", "-f", f"^{within}$"], check=False).returncode)

    async def test_floods(self) -> None:
        """After each piece of a stream, nothing is read for a moment: one that writes without end holds up nobody."""
        clock, told, child = Clock(), list[list[str]](), mock.Mock(pid=1 << 22)
        self.patch(programs, "Child", mock.Mock(return_value=child))
        stream = programs.Stream(self.backend._programs, ["yes"], told.append, begun := mock.Mock(), clock)
        stream.begin()
        for number in (1, 2):
            stream._received(number, b"one\nother\nand so")
        self.assertEqual([["one", "other"]], told)
        begun.assert_called_once_with()
        child.resume.assert_not_called()
        child.pause.assert_called()
        clock.advance(programs.READ_EVERY)
        child.resume.assert_called_once_with()
        self.assertEqual([], clock.getDelayedCalls())
        stream._received(1, programs.LONGEST_OUTPUT * b"x")  # whom it is about, is not known: all are asked for
        self.assertEqual(2, begun.call_count)

    async def test_other_kind_of_commands(self) -> None:
        """A machine that is up is ended by the commands that it was started by before those of another kind hold."""
        own = self.machines.vm("www")
        kept = self.machines.vm("www", settings={"commands": (read_pair(f"run=sleep 76543{os.getpid()}"),)})
        for first, then in ((own, kept), (kept, own)):
            uuid = await self.backend.look_up(first)
            self.assertIs(Start.BOOTED, await self.backend.start(uuid))
            await self.backend.look_up(then)
            self.assertIs(Power.RUNNING, await self.backend.state(uuid))
            await self.backend.stop(uuid, Mode.DESTROY)
            self.assertIs(Power.OFF, await self.backend.state(uuid))
            self.assertEqual(then is kept, self.backend._machines[uuid].is_kept)
        self.assertEqual("off\n", (self.machines.folder / "www").read_text())
        self.assertNotIn(uuid, foreground.found())

    async def test_missed(self) -> None:
        """A machine that is made again is found, even if its stream does not tell that."""
        machine = self.machines.vm("www", settings={"poll": 0.05})
        uuid = await self.backend.look_up(machine)
        await self.until(lambda: "events " in self.machines.calls())
        (self.machines.folder / "www").unlink()
        await self.failing(self.backend.state(uuid), NoSuchVM)
        told = len(self.watcher.told)
        (self.machines.folder / "www").write_text("running\n")
        await self.watcher.until(lambda: len(self.watcher.told) > told)
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_other_commands(self) -> None:
        """New commands of a machine hold from then on; a stream that no machine has any more is ended."""
        await self.two()
        for name in ("one", "other"):
            commands = self.machines.commands("events", state="echo running")
            uuid = await self.backend.look_up(self.machines.vm(name, settings={"commands": commands}))
            self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        await self.until(lambda: not self.running())

    async def test_polled(self) -> None:
        """Without a stream, the state of a machine that is up is asked from time to time; of one that is off, not."""
        commands = self.machines.commands("events")
        own = {"commands": commands, "poll": 0.05}
        up = await self.backend.look_up(self.machines.vm("up", settings=own))
        await self.backend.look_up(self.machines.vm("down", settings=own))
        await self.backend.start(up)
        told = len(self.watcher.told)
        self.machines.become("up", "off")
        await self.watcher.until(lambda: len(self.watcher.told) > told)
        self.assertEqual(1, self.machines.calls().count("state down"))
