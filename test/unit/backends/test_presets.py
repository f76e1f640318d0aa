"""The presets of the backend of commands, on real machines of their kinds where these can be here."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import attrs
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from jitsu_tw.backends import foreground
from jitsu_tw.backends.command import CommandBackend
from jitsu_tw.backends.preset import (
    PRESETS,
    CommandSettings,
    Meaning,
    Variable,
    check_vm,
    commands_of,
    read_pair,
)
from jitsu_tw.errors import BackendError, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import ENDED, Power, Start
from jitsu_tw.settings import Mode
from test.contract import backends as contract_backends
from test.support import dockers, fakemachines, podmans, vm

if TYPE_CHECKING:
    from jitsu_tw.backends.preset import Preset
    from jitsu_tw.settings import VM


@functools.cache
def laboratory() -> tuple[lab.Network, podmans.Podman]:
    """Return a network, and podman in it: one for all tests, as the image takes it half a second."""
    ends = contextlib.ExitStack()
    atexit.register(ends.close)
    network = ends.enter_context(lab.Network())
    podman = podmans.Podman(network, Path(ends.enter_context(lab.directory())))
    ends.callback(podman.close)
    return network, podman


@functools.cache
def docker() -> dockers.Docker:
    """Return a Docker in the same network: one for all tests, too."""
    network, _ = laboratory()
    ends = contextlib.ExitStack()
    atexit.register(ends.close)
    made = dockers.Docker(network, Path(ends.enter_context(lab.directory())) / "docker")
    ends.callback(made.close)
    return made


class PodmanContractTests(contract_backends.BackendContract):
    """The contract, on containers on a bridge in a network namespace."""

    prepares, makes, has_disks, saves = False, False, False, False
    preset = "podman"

    def make(self) -> Any:
        """Return a backend that runs podman in the laboratory."""
        if missing := podmans.missing():
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        try:
            self.network, _ = laboratory()
        except lab.NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        self.engine = self.begin()
        self.addCleanup(self.engine.clear)
        self.patch(os, "environ", {**os.environ, **self.engine.environment})
        self.numbers = itertools.count(10)
        return CommandBackend(self.changed(PRESETS[self.preset]))

    def begin(self) -> podmans.Podman | dockers.Docker:
        """Return what has the containers."""
        return laboratory()[1]

    def changed(self, preset: Preset) -> Preset:
        """Return *preset* with commands that run in the laboratory's host."""
        commands = {name: tuple(self.network.command("host", words)) for name, words in preset.commands.items()}
        return attrs.evolve(preset, commands=commands)

    def new_vm(self) -> VM:
        """Return a VM with a container of its own."""
        number = next(self.numbers)
        self.engine.create(f"m{number}", f"10.99.0.{number}", f"52:54:00:99:00:{number:02x}")
        return vm(f"m{number}", backend=self.preset, stop_timeout=1.0)

    async def test_trouble(self) -> None:
        """An error has the engine's own words; a container that is not there is none."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        self.engine.run("rename", machine.name, "other")
        self.assertIsInstance(await self.failed_by(self.backend.start(uuid)), NoSuchVM)
        self.engine.create(machine.name, "10.99.0.10", "52:54:00:99:00:10", "/no-such-program")
        said = str(await self.failed_by(self.backend.start(uuid)))
        self.assertRegex(said, "was not found|no such file or directory")


class DockerContractTests(PodmanContractTests):
    """The contract, on containers of Docker."""

    preset = "docker"

    def begin(self) -> podmans.Podman | dockers.Docker:
        """Return what has the containers."""
        return docker()


class DockerApiContractTests(DockerContractTests):
    """The contract, on containers of Docker by its HTTP interface."""

    preset = "docker-api"

    def changed(self, preset: Preset) -> Preset:
        """Return *preset* for the engine's socket."""
        return attrs.evolve(preset, variables={"socket": Variable("its socket", str(self.engine.socket))})


class PodmanApiContractTests(DockerApiContractTests):
    """The contract, on containers of podman by the same interface."""

    def begin(self) -> podmans.Podman | dockers.Docker:
        """Return what has the containers, and serves."""
        _, podman = laboratory()
        podman.serve()
        return podman


class ExecTests(contract_backends.BackendContract):
    """The contract, on programs in the foreground, and what only these do."""

    prepares, makes, has_disks, saves = False, False, False, False

    def make(self) -> Any:
        """Return a backend."""
        self.addCleanup(self.end)
        self.uuids: list[str] = []
        return CommandBackend(PRESETS["exec"])

    def end(self) -> None:
        """Kill the programs that run: they outlive a backend."""
        for pid in [pid for uuid, pid in foreground.found().items() if uuid in self.uuids]:
            os.killpg(pid, signal.SIGKILL)

    def new_vm(self) -> VM:
        """Return a VM that is a program, and no other test's."""
        self.uuids.append(str(uuid4()))
        return exec_vm(self.uuids[-1], "sleep 1000")

    async def again(self) -> None:
        """End the backend, and begin another one, as a restart of Jitsu does."""
        await self.backend.close()
        self.backend, self.watcher = CommandBackend(PRESETS["exec"]), contract_backends.Watcher()
        self.backend.connect(self.watcher)
        self.addCleanup(self.backend.close)

    async def test_outlives(self) -> None:
        """A program outlives Jitsu; the next one knows it by its environment, and is told of its end."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        await self.backend.start(uuid)
        pid = foreground.found()[uuid]
        await self.again()
        await self.backend.look_up(machine)
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        self.assertIs(Start.RAN, await self.backend.start(uuid))
        os.kill(pid, signal.SIGKILL)
        await self.watcher.until(lambda: (uuid, ENDED) in self.watcher.told)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_removed_from_the_file(self) -> None:
        """A program whose VM is removed from the file while Jitsu is off is known, and stopped, without its command."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        await self.backend.start(uuid)
        await self.again()
        await self.backend.look_up(attrs.evolve(machine, backend_settings=None, removed=True))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        await self.backend.stop(uuid, Mode.SHUTDOWN)
        await self.watcher.until(lambda: (uuid, ENDED) in self.watcher.told)

    async def test_group(self) -> None:
        """With the program, all that it has begun in its group ends; what it has begun is not taken for it."""
        uuid = str(uuid4())
        self.uuids.append(uuid)
        machine = exec_vm(uuid, "sh -c 'sleep 1000 & setsid sleep 1001 & exec sleep 1002'")
        await self.backend.look_up(machine)
        await self.backend.start(uuid)
        (pid,) = [pid for found, pid in foreground.found().items() if found == uuid]
        group = [one for one in foreground._processes() if _group(one) == pid]
        while len(group) < 2:
            await deferLater(reactor, 0.01)
            group = [one for one in foreground._processes() if _group(one) == pid]
        await self.backend.stop(uuid, Mode.SHUTDOWN)
        await self.watcher.until(lambda: (uuid, ENDED) in self.watcher.told)
        while any(foreground._state(one) not in "ZX" for one in group):
            await deferLater(reactor, 0.01)

    async def test_ends_by_itself(self) -> None:
        """A program that ends is a machine that is off; that is told at once, and it can be started again."""
        self.uuids.append(str(uuid4()))
        machine = exec_vm(self.uuids[-1], "sh -c 'exit 3'")
        uuid = await self.backend.look_up(machine)
        with contextlib.suppress(BackendError):  # it may have ended when its state is asked
            await self.backend.start(uuid)
        await self.watcher.until(lambda: (uuid, ENDED) in self.watcher.told)
        self.assertIs(Power.OFF, await self.backend.state(uuid))


class ProxmoxContractTests(contract_backends.BackendContract):
    """The contract, on a script with the interface of qm and pct, which is no Proxmox VE."""

    prepares, makes, has_disks, saves = False, False, False, False
    preset, script, program = "proxmox", fakemachines.QM, "qm"

    def make(self) -> Any:
        """Return a backend that finds the script in its PATH."""
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        fakemachines.install(self.folder / self.program, self.script)
        self.patch(os, "environ", {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"})
        self.numbers = itertools.count(100)
        return CommandBackend(PRESETS[self.preset])

    def new_vm(self) -> VM:
        """Return a VM with a machine of its own."""
        number = str(next(self.numbers))
        (self.folder / number).write_text("stopped\n")
        return self.vm(vmid=number)

    def vm(self, **variables: str) -> VM:
        """Return a VM with these variables."""
        own = CommandSettings(variables=tuple(variables.items()))
        return vm(f"m{next(self.numbers)}", backend=self.preset, backend_settings=own)


class SystemdContractTests(ProxmoxContractTests):
    """
    The contract, on a script with the interface of systemctl, which is no systemd.

    A real one, as the manager of a user, passes it too; but it moves all processes of its control group, which may be
    that of the whole machine, into one of its own, so no test starts it.
    """

    preset, script, program = "systemd", fakemachines.SYSTEMCTL, "systemctl"

    def new_vm(self) -> VM:
        """Return a VM with a unit of its own."""
        unit = f"m{next(self.numbers)}.service"
        (self.folder / unit).write_text("inactive\n")
        return self.vm(unit=unit)

    async def test_pause(self) -> None:
        """A unit is not paused."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        self.assertEqual("it has no command pause", await self.backend.obstacle(uuid, Mode.PAUSE))

    async def test_what_is_known(self) -> None:
        """Nothing but whether it is active."""
        uuid = await self.backend.look_up(self.new_vm())
        self.assertEqual((None, None), (await self.backend.traffic(uuid), await self.backend.memory(uuid)))


class ProxmoxApiContractTests(ProxmoxContractTests):
    """The contract, on a server of the tests with this part of the interface, which is no Proxmox VE."""

    preset = "proxmox-api"

    def make(self) -> Any:
        """Return a backend, and start the server."""
        self.server = fakemachines.ProxmoxServer()
        self.addCleanup(self.server.close)
        made = super().make()
        self.token = self.folder / "token"
        self.token.write_text(f"Authorization: {fakemachines.LET_IN}\n")
        return made

    def new_vm(self) -> VM:
        """Return a VM that the server has."""
        number = str(next(self.numbers))
        self.server.machines[number] = "stopped"
        return self.vm(vmid=number, node="pve1", url=self.server.url, token_file=str(self.token))

    async def test_token(self) -> None:
        """The token is in a file, and in no argument; a wrong one is an error with the server's status."""
        uuid = await self.backend.look_up(self.new_vm())
        self.token.write_text("Authorization: PVEAPIToken=nobody\n")
        error = await self.failed_by(self.backend.state(uuid))
        self.assertIn("401", str(error))
        self.assertNotIn("nobody", str(error))

    async def test_no_pattern(self) -> None:
        """A value is taken as it is, and never as a pattern for several URLs."""
        machine = self.new_vm()
        number = next(iter(self.server.machines))
        self.assertTrue(await self.backend.look_up(machine))
        several = self.vm(vmid=number, node="{pve1,pve1}", url=self.server.url, token_file=str(self.token))
        self.assertIsInstance(await self.failed_by(self.backend.look_up(several)), NoSuchVM)

    async def test_absent(self) -> None:
        """A machine that the server does not have is none."""
        machine = self.new_vm()
        self.server.machines.clear()
        self.assertIsInstance(await self.failed_by(self.backend.look_up(machine)), NoSuchVM)


class VariablesTests(SynchronousTestCase):
    """The variables of all presets."""

    def test_bounded(self) -> None:
        """One that requests may set takes no text that could lead out of its place in a path, a URL or a command."""
        for preset in PRESETS.values():
            for name, variable in preset.variables.items():
                if variable.requests:
                    taken = variable.choices or ("7",)
                    for text in (*taken, "../x", "7?x", "7 7", "7;x", "[1-9]", "7\n", ""):
                        own = CommandSettings(variables=((name, text),))
                        said = ""
                        try:
                            check_vm(vm("m", backend=preset.name, backend_settings=own), preset.name)
                        except ConfigError as error:
                            said = str(error)
                        self.assertEqual(text not in taken, f"{name} should be" in said, (name, text, said))


class NamesTests(SynchronousTestCase):
    """The names of machines, which requests may choose."""

    def test_no_other_machine(self) -> None:
        """No name is a pattern, another server's machine or another place in a URL; where it is none, that is said."""
        for preset in ("podman", "docker", "docker-api", "incus"):
            self.assertEqual("", self.said("www-2", preset))
            if preset != "incus":
                self.assertIn("would begin the ids of other containers", self.said("db", preset))
            for name in ("other:www", "w.*", "../www", "www?t=1", "www/kill#", "w w", "www\n", "é", "^www"):
                self.assertIn(f"is no name for {preset}", self.said(name, preset))

    @staticmethod
    def said(name: str, preset: str) -> str:
        """Return the error that a VM of this name causes; empty for none."""
        try:
            check_vm(attrs.evolve(vm("www", backend=preset), name=name), preset)
        except ConfigError as error:
            return str(error)
        return ""


class LabelsTests(SynchronousTestCase):
    """What the author of an image writes into a container."""

    def test_no_state(self) -> None:
        """A label is no state."""
        meaning = commands_of(vm("www", backend="docker-api"), PRESETS["docker-api"]).meaning
        said = '{"Config":{"Labels":{"Status":"running"}},"State":{"Status":"exited","Running":false}}'
        self.assertIs(Meaning.OFF, meaning(0, said, ""))
        self.assertIsNone(meaning(0, '{"Config":{"Labels":{"Status":"running"}}}', ""))


class AbsentTests(SynchronousTestCase):
    """When a machine counts as one that is not there: that is for an operator to mend."""

    def meaning(self, preset: str, code: int, out: str, err: str) -> Meaning | None:
        """Return what a `state` of the preset means."""
        return commands_of(vm("www", backend=preset), PRESETS[preset]).meaning(code, out, err)

    def test_no_connection(self) -> None:
        """A failed connection, in the words of podman 4.3, Docker and the system, says nothing of the machine."""
        for words in (
            "unable to connect to Podman socket: dial unix /run/podman.sock: connect: no such file or directory",
            "dial unix /var/run/docker.sock: connect: no such file or directory",
            "dial tcp: lookup pve9 on 192.0.2.53:53: no such host",
            "there is nothing to connect to",
        ):
            for preset in ("podman", "docker", "incus"):
                self.assertIsNone(self.meaning(preset, 125, "", f"Error: {words}\n"))

    def test_absent(self) -> None:
        """The messages of podman and Docker, old and new, for a container that is not there."""
        for words in ('Error: inspecting object: no such container "www"', 'Error: no such object: "www"',
                      "Error response from daemon: No such container: www", "Error: No such object: www"):
            for preset in ("podman", "docker"):
                self.assertIs(Meaning.ABSENT, self.meaning(preset, 1, "", f"{words}\n"))
        self.assertIs(Meaning.ABSENT, self.meaning("incus", 0, "\n", ""))


def exec_vm(uuid: str, command: str) -> VM:
    """Return a VM that is a program in the foreground."""
    own = CommandSettings(commands=(read_pair(f"run={command}"),))
    return vm(f"exec-{uuid}", uuid=uuid, backend="exec", backend_settings=own)


def _group(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0
