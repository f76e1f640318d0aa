"""What every backend must do. A backend's tests inherit it; import this module, not the class, or it would run too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import attrs
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start
from jitsu_tw.settings import Boot, Layer, Mode
from test.support import Hearer, vm

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.settings import VM


@implementer(IWatcher)
class Watcher(Hearer):
    """Remembers what a backend tells."""

    def __init__(self) -> None:
        """Begin with nothing told."""
        super().__init__()
        self.told: list[tuple[str, str]] = []
        self.reboots: list[str] = []
        self.lost_reasons: list[str] = []
        self.connections = 0

    def changed(self, uuid: str, reason: str) -> None:
        """Remember a change."""
        self.told.append((uuid, reason))
        self.look()

    def rebooted(self, uuid: str) -> None:
        """Remember a reboot."""
        self.reboots.append(uuid)
        self.look()

    def lost(self, backend: IBackend, reason: str) -> None:  # noqa: ARG002
        """Remember a loss."""
        self.lost_reasons.append(reason)
        self.look()

    def connected(self, backend: IBackend) -> None:  # noqa: ARG002
        """Remember a connection."""
        self.connections += 1
        self.look()


class BackendContract(TestCase):
    """The tests; a subclass says how to make a backend and a VM that it can have."""

    backend: Any
    watcher: Watcher

    #: It can prepare VMs.
    prepares = True

    #: It can save a VM.
    saves = True

    #: It can make the VMs of templates, keep images of their ready guests, and give them disks of their own.
    makes = True
    has_disks = True

    #: What a VM is after the original's `suspend`.
    suspended = Power.PAUSED

    def make(self) -> Any:
        """Return the backend to be tested."""
        raise NotImplementedError

    def new_vm(self) -> VM:
        """Return a VM that the backend does not run."""
        raise NotImplementedError

    def made_vm(self, *, disk: bool = False) -> VM:
        """Return a VM as a template makes them, which the backend does not know, perhaps with a disk of its own."""
        uuid, folder = str(uuid4()), Path(self.mktemp())
        folder.mkdir()
        (folder / "base").write_bytes(bytes(4096))
        layer = Layer(folder.absolute() / "layers" / f"{uuid}.qcow2", folder.absolute() / "base")
        own: dict[str, Any] = {"uuid": uuid, "images": folder.absolute() / "images", "layer": layer if disk else None}
        return attrs.evolve(self.new_vm(), template="site", **own)

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect."""
        self.backend = self.make()
        self.watcher = Watcher()
        self.backend.connect(self.watcher)
        self.addCleanup(self.backend.close)
        await self.watcher.until(lambda: self.watcher.connections)

    def test_interface(self) -> None:
        """It implements `IBackend`."""
        self.assertTrue(verifyObject(IBackend, self.backend))

    async def test_life(self) -> None:
        """A VM is off, runs after a start, and is off after it was destroyed; each change is told."""
        uuid = await self.backend.look_up(self.new_vm())
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        await self.watcher.until(lambda: any(told[0] == uuid for told in self.watcher.told))
        before = len(self.watcher.told)
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        await self.watcher.until(lambda: len(self.watcher.told) > before)

    async def test_again(self) -> None:
        """Starting what runs and stopping what is off are no errors and change nothing."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        await self.backend.start(uuid)
        self.assertIs(Start.RAN, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_pause(self) -> None:
        """A paused VM is paused, and runs after a start; suspend is the original's word for it, or for a save."""
        uuid = await self.backend.look_up(self.new_vm())
        for mode, power in ((Mode.PAUSE, Power.PAUSED), (Mode.SUSPEND, self.suspended)):
            await self.backend.start(uuid)
            await self.backend.stop(uuid, mode)
            self.assertIs(power, await self.backend.state(uuid))
        how = Start.RESUMED if self.suspended is Power.PAUSED else Start.RESTORED
        self.assertIs(how, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_prepare(self) -> None:
        """A prepared VM is told from one that is paused, until it is started; a backend that cannot do that fails."""
        uuid = await self.backend.look_up(attrs.evolve(self.new_vm(), prepare=True))
        await self.backend.start(uuid)
        if not self.prepares:
            await self.assertFailure(self.backend.prepare(uuid), BackendError)
            self.assertEqual("", await self.backend.stale(uuid))
            return
        await self.backend.prepare(uuid)
        self.assertIs(Power.PREPARED, await self.backend.state(uuid))
        self.assertEqual("", await self.backend.stale(uuid))
        self.assertIs(Start.PREPARED, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        await self.backend.stop(uuid, Mode.PAUSE)
        while await self.backend.state(uuid) is Power.PREPARED:  # until the event of its start has come
            await deferLater(reactor, 0.01)
        self.assertIs(Power.PAUSED, await self.backend.state(uuid))

    async def test_prepared_and_destroyed(self) -> None:
        """A prepared VM can be destroyed; the next start boots it."""
        uuid = await self.backend.look_up(attrs.evolve(self.new_vm(), prepare=True))
        await self.backend.start(uuid)
        if self.prepares:
            await self.backend.prepare(uuid)
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))

    async def test_save(self) -> None:
        """A saved VM is saved, and runs after a start; a backend that cannot do that says so, and fails."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        if not self.saves:
            self.assertIsInstance(await self.backend.obstacle(uuid, Mode.SAVE), str)
            await self.assertFailure(self.backend.stop(uuid, Mode.SAVE), BackendError)
            self.assertIs(Power.RUNNING, await self.backend.state(uuid))
            return
        await self.backend.stop(uuid, Mode.SAVE)
        self.assertIs(Power.SAVED, await self.backend.state(uuid))
        self.assertIs(Start.RESTORED, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_shutdown(self) -> None:
        """A guest that is asked to shut down is off after a while."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        before = len(self.watcher.told)
        await self.backend.stop(uuid, Mode.SHUTDOWN)
        await self.watcher.until(lambda: len(self.watcher.told) > before)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_look_up(self) -> None:
        """The same VM has the same uuid each time, and can be found by it."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        self.assertEqual(uuid, await self.backend.look_up(machine))
        self.assertEqual(uuid, await self.backend.look_up(vm(machine.name, uuid=uuid)))

    async def test_unknown(self) -> None:
        """A uuid that nobody has is an error that says so."""
        await self.assertFailure(self.backend.state(str(uuid4())), NoSuchVM)

    async def test_ready(self) -> None:
        """A VM that runs is ready as far as the backend knows."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        await self.backend.ready(uuid)

    async def test_what_is_known(self) -> None:
        """Of a VM that runs one can ask what it is, what it sends, and what its start would take, or learn: nothing."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        self.assertIsInstance(await self.backend.guest(uuid), Guest)
        self.assertIsInstance(await self.backend.traffic(uuid), int | None)
        self.assertIsInstance(await self.backend.cpu_time(uuid), float | None)
        for mode in set(Mode) - (set() if self.saves else {Mode.SAVE}):
            self.assertIsNone(await self.backend.obstacle(uuid, mode))
        advice = await self.backend.advice(uuid)
        self.assertTrue(all(isinstance(sentence, str) for sentence in advice))
        memory = await self.backend.memory(uuid)
        self.assertIsInstance(memory, Memory | None)
        if memory is not None:
            self.assertEqual(0, memory.needed)
            self.assertGreater(memory.free, 0)

    async def test_examined(self) -> None:
        """A VM that can be is refused by no look at its configuration, which asks no hypervisor."""
        for sentence in self.backend.examine(self.new_vm()):
            self.assertIsInstance(sentence, str)

    async def test_removed(self) -> None:
        """What a template has made is removed with all there is of it, twice too; then it can be made again."""
        machine = self.made_vm()
        if not self.makes:
            await self.assertFailure(self.backend.remove(machine), BackendError)
            return
        await self.backend.remove(machine)
        for mode in (Mode.PAUSE, Mode.SAVE, Mode.DESTROY):
            self.assertEqual(machine.uuid, await self.backend.look_up(machine))
            self.assertIs(Power.OFF, await self.backend.state(machine.uuid))
            self.assertIs(Start.BOOTED, await self.backend.start(machine.uuid))
            await self.backend.stop(machine.uuid, mode)
            for _ in range(2):
                await self.backend.remove(machine)
                self.assertIsInstance(await self.failed_by(self.backend.state(machine.uuid)), NoSuchVM)
            self.assertEqual([], list(machine.images.glob("*")))

    @staticmethod
    async def failed_by(call: Deferred[Any]) -> BaseException | None:
        """Return the error of a *call* that fails."""
        try:
            await call
        except BackendError as error:
            return error
        return None

    async def test_removed_with_its_image(self) -> None:
        """The image of its ready guest goes with it."""
        if not self.makes:
            return
        machine = attrs.evolve(self.made_vm(), boot_from=Boot.SNAPSHOT)
        for _ in range(2):
            await self.backend.look_up(machine)
            self.assertIs(Start.BOOTED, await self.backend.start(machine.uuid))
            await self.backend.keep_image(machine.uuid)
            await self.backend.stop(machine.uuid, Mode.DESTROY)
            await self.backend.remove(machine)
            self.assertEqual([], list(machine.images.glob("*")))

    async def test_not_removed(self) -> None:
        """What runs, and what no template has made, is not removed."""
        own = self.new_vm()
        for machine in (own, self.made_vm()) if self.makes else (own,):
            uuid = await self.backend.look_up(machine)
            await self.backend.start(uuid)
            await self.assertFailure(self.backend.remove(machine), BackendError)
            self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        uuid = await self.backend.look_up(own)
        await self.backend.stop(uuid, Mode.DESTROY)
        await self.assertFailure(self.backend.remove(attrs.evolve(own, uuid=uuid)), BackendError)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_is_to_be_removed(self) -> None:
        """Of a VM that is to be removed, and is not there, nothing is made; where nothing would be, it may be known."""
        made = self.made_vm(disk=self.has_disks)
        leaving = attrs.evolve(made, removed=True, dns=())
        self.assertIsInstance(await self.failed_by(self.backend.look_up(leaving)), NoSuchVM | None)
        self.assertFalse(made.layer is not None and made.layer.path.exists())
        if not self.makes:
            return
        await self.backend.look_up(made)
        await self.backend.start(made.uuid)
        self.assertEqual(made.uuid, await self.backend.look_up(leaving))
        await self.backend.advice(made.uuid)
        await self.assertFailure(self.backend.remove(leaving), BackendError)
        await self.backend.stop(made.uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(made.uuid))
        await self.backend.look_up(leaving)
        await self.backend.remove(leaving)
        self.assertIsInstance(await self.failed_by(self.backend.state(made.uuid)), NoSuchVM)

    async def test_disk_of_its_own(self) -> None:
        """It is made with the VM, once, and goes with it."""
        if not self.has_disks:
            return
        machine = self.made_vm(disk=True)
        disk = machine.layer
        assert disk is not None
        await self.backend.look_up(machine)
        with disk.path.open("ab") as file:
            file.write(b"data")
        await self.backend.look_up(machine)
        await self.backend.start(machine.uuid)
        self.assertTrue(disk.path.read_bytes().endswith(b"data"))
        await self.backend.stop(machine.uuid, Mode.DESTROY)
        await self.backend.remove(machine)
        self.assertEqual([], list(disk.path.parent.iterdir()))
        self.assertEqual(["base"], [path.name for path in disk.base.parent.glob("base*")])

    async def test_base_has_changed(self) -> None:
        """From a disk whose base has changed nothing is booted or restored, and advice says why; what is up, stays."""
        if not self.has_disks:
            return
        for mode in (Mode.DESTROY, Mode.SAVE):
            machine = self.made_vm(disk=True)
            assert machine.layer is not None
            await self.backend.look_up(machine)
            await self.backend.start(machine.uuid)
            machine.layer.base.write_bytes(bytes(8192))
            await self.backend.look_up(machine)
            self.assertIs(Start.RAN, await self.backend.start(machine.uuid))
            await self.backend.stop(machine.uuid, mode)
            error = await self.assertFailure(self.backend.start(machine.uuid), BackendError)
            self.assertIn("has changed since", str(error))
            self.assertIn(str(error), " ".join(await self.backend.advice(machine.uuid)))
            await self.backend.remove(machine)

    async def test_no_image(self) -> None:
        """Where there is no image of a VM, there is nothing to forget."""
        await self.backend.drop_image(await self.backend.look_up(self.new_vm()))
