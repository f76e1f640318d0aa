"""What every backend must do, on memory and on libvirt's own test driver; and what each does besides."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock
from uuid import uuid4

import attrs
import libvirt
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.backends import domain, domain_xml, image
from jitsu_tw.backends import libvirt as room
from jitsu_tw.backends.libvirt import LibvirtBackend
from jitsu_tw.backends.memory import VANISHES_AFTER, Fault, MemoryBackend
from jitsu_tw.errors import BackendError, BackendLost, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import ENDED, Guest, Power, Start
from jitsu_tw.settings import Boot, Evidence, Mode
from test.contract import backends as contract_backends
from test.support import BoundedClock, vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.settings import VM

#: libvirt's hypervisor inside the library; it begins with one domain that runs, called "test".
TEST_DRIVER = "test:///default"

DOMAIN = """
<domain type='test'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>8</memory>
  <os><type>hvm</type></os>
  <devices><interface type='network'><mac address='52:54:00:AA:BB:CC'/><source network='default'/></interface></devices>
</domain>
"""


#: What a template has instead of what its VMs have of their own.
DISK = "<disk type='file'><driver name='qemu' type='qcow2'/><source file='${disk}'/><target dev='vda'/></disk>"
TEMPLATE = DOMAIN.format(name="${name}", uuid="${uuid}").replace("52:54:00:AA:BB:CC", "${mac}")


def with_exit(xml: str) -> str:
    """Return a definition with the port that a guest can end QEMU by."""
    argument = "<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='isa-debug-exit'/></qemu:commandline>"
    xml = xml.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ", 1)
    return xml.replace("</domain>", f"{argument}</domain>")


class MemoryBackendTests(contract_backends.BackendContract):
    """The contract, on memory."""

    has_disks = False

    def make(self) -> MemoryBackend:
        """Return an empty hypervisor."""
        return MemoryBackend()

    def new_vm(self) -> VM:
        """Return any VM."""
        return vm()


class MemoryFaultsTests(SynchronousTestCase):
    """What the memory backend can be told to do wrong."""

    def begin(self, *faults: str) -> tuple[Any, MemoryBackend, str]:
        """Return a clock, a backend and the uuid of a VM with *faults*."""
        clock = BoundedClock()
        backend = MemoryBackend(reactor=clock)
        return clock, backend, self.successResultOf(backend.look_up(vm(faults=faults)))

    def test_start(self) -> None:
        """The start fails."""
        _, backend, uuid = self.begin(Fault.START.value)
        self.failureResultOf(backend.start(uuid), BackendError)
        self.assertIs(Power.OFF, self.successResultOf(backend.state(uuid)))

    def test_stop(self) -> None:
        """The stop fails, and the VM runs on."""
        _, backend, uuid = self.begin(Fault.STOP.value)
        self.successResultOf(backend.start(uuid))
        self.failureResultOf(backend.stop(uuid, Mode.DESTROY), BackendError)
        self.assertIs(Power.RUNNING, self.successResultOf(backend.state(uuid)))

    def test_vanish(self) -> None:
        """The VM runs, and is gone a moment later."""
        clock, backend, uuid = self.begin(Fault.VANISH.value)
        self.successResultOf(backend.start(uuid))
        clock.advance(VANISHES_AFTER)
        self.assertIs(Power.OFF, self.successResultOf(backend.state(uuid)))

    def test_never_ready(self) -> None:
        """The VM runs and is never ready."""
        clock, backend, uuid = self.begin(Fault.NEVER_READY.value)
        self.successResultOf(backend.start(uuid))
        ready = backend.ready(uuid)
        clock.advance(1e6)
        self.assertNoResult(ready)

    def test_boot_time(self) -> None:
        """The start call takes as long as the VM says."""
        clock, backend, _ = self.begin()
        uuid = self.successResultOf(backend.look_up(vm(boot_time=2.0)))
        started = backend.start(uuid)
        clock.advance(1.9)
        self.assertNoResult(started)
        clock.advance(0.1)
        self.successResultOf(started)


class LibvirtTestCase(TestCase):
    """Has definitions, and domains that go away afterwards."""

    def definition(self, name: str) -> Path:
        """Return an XML file that defines NAME for libvirt's test driver."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        path = folder / f"{name}.xml"
        path.write_text(DOMAIN.format(name=name, uuid=uuid4()))
        return path

    def defined(self) -> VM:
        """Return a VM that libvirt does not know, with its definition."""
        name = f"vm-{uuid4().hex[:8]}"
        return vm(name, backend="libvirt", connect=TEST_DRIVER, define=self.definition(name))


class LibvirtBackendTests(LibvirtTestCase, contract_backends.BackendContract):
    """The contract, on libvirt's test driver."""

    def make(self) -> LibvirtBackend:
        """Return a backend at the test driver."""
        return LibvirtBackend(TEST_DRIVER)

    def new_vm(self) -> VM:
        """Return a VM with a definition."""
        return self.defined()

    def made_vm(self, *, disk: bool = False) -> VM:
        """Return a VM with the definition of a template."""
        machine = super().made_vm(disk=disk)
        assert machine.define is not None
        machine.define.write_text(TEMPLATE.replace("<devices>", f"<devices>{DISK if disk else ''}"))
        return machine

    async def test_by_name(self) -> None:
        """A domain that libvirt knows is found by its name."""
        uuid = await self.backend.look_up(vm("test"))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_no_such_domain(self) -> None:
        """A name that libvirt does not know, and that has no definition, is an error in libvirt's words."""
        error = await self.assertFailure(self.backend.look_up(vm("nobody")), NoSuchVM)
        self.assertIn("Domain not found", str(error))

    async def test_guest(self) -> None:
        """MACs and bridges are those of the definition, and of its network; only Xen has domain ids of any use."""
        uuid = await self.backend.look_up(self.new_vm())
        self.assertEqual(Guest(("52:54:00:aa:bb:cc",), bridges=("virbr0",)), await self.backend.guest(uuid))

    async def test_reasons(self) -> None:
        """Events come with words."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        await self.backend.stop(uuid, Mode.DESTROY)
        await self.watcher.until(lambda: (uuid, "destroyed") in self.watcher.told)
        self.assertIn((uuid, "booted"), self.watcher.told)

    async def test_learns(self) -> None:
        """What libvirt does once, when the first VM is defined, is done when it is connected."""
        learned: list[str] = []
        self.patch(domain, "learn", lambda connection: learned.append(connection.getURI()))
        other = self.make()
        other.connect(self.watcher)
        self.addCleanup(other.close)
        while not learned:
            await deferLater(reactor, 0.01)
        self.assertEqual({TEST_DRIVER}, set(learned))

    async def test_removed_by_two(self) -> None:
        """A VM that another node removes at the same moment is gone, and so is its disk: that is no failure."""
        machine = self.made_vm(disk=True)
        assert machine.layer is not None
        await self.backend.look_up(machine)

        def gone(connection: Any, uuid: str) -> Power:
            connection.lookupByUUIDString(uuid).undefine()
            return Power.OFF

        self.patch(domain, "state", gone)
        await self.backend.remove(machine)
        self.assertFalse(machine.layer.path.exists())

    async def test_own_words(self) -> None:
        """What libvirt refuses is an error in its words."""
        error = await self.assertFailure(
            self.backend.look_up(vm("broken", define=self.broken())), BackendError
        )
        self.assertIn("domain type", str(error))

    def broken(self) -> Path:
        """Return a definition that libvirt does not take."""
        path = self.definition("broken")
        path.write_text("<domain><name>broken</name></domain>")
        return path

    async def test_hangs(self) -> None:
        """A call that hangs is given up, and costs no other one its thread; when it ends at last, all is as before."""
        self.patch(room, "ANSWERS_WITHIN", 0.05)
        self.patch(self.backend._calls, "_most", 5)
        held = Deferred[None]()
        uuid = await self.backend.look_up(self.new_vm())
        state = domain.state

        def stuck(connection: Any, uuid: str) -> Power:
            self.wait_for(held)
            return state(connection, uuid)

        self.patch(domain, "state", stuck)
        for number in range(5):
            failed = [self.backend._call(domain.state, uuid, within=0.05)]
            for call in failed:
                error = await self.assertFailure(call, BackendLost)
                self.assertIn("has not answered within 0.05 s", str(error))
            if number < 4:
                found = await self.backend._call(domain.guest, uuid, within=5)
                self.assertEqual(("52:54:00:aa:bb:cc",), found.macs)
        error = await self.assertFailure(self.backend.guest(uuid), BackendLost)
        self.assertIn("5 calls to", str(error))
        held.callback(None)
        while self.backend._calls.hung:
            await deferLater(reactor, 0.01)
        self.patch(domain, "state", state)
        self.assertIs(Power.OFF, await self.backend._call(domain.state, uuid, within=5))

    async def test_files_elsewhere(self) -> None:
        """A VM whose files cannot be looked at from here is started as any other, and cannot be prepared."""
        uuid = await self.backend.look_up(attrs.evolve(self.new_vm(), prepare=True))

        def made_of(*_: Any, **__: Any) -> str:
            raise FileNotFoundError(2, "No such file", "/there/kernel")

        self.patch(image, "made_of", made_of)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        error = await self.assertFailure(self.backend.prepare(uuid), BackendError)
        self.assertIn("/there/kernel", str(error))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_cannot_be_restored(self) -> None:
        """What cannot be restored is thrown away, logged, and booted; if the host is at fault, it is kept."""
        uuid = await self.backend.look_up(self.new_vm())
        for code, expected in ((libvirt.VIR_ERR_OPERATION_FAILED, Start.BOOTED), (libvirt.VIR_ERR_NO_MEMORY, None)):
            await self.backend.start(uuid)
            await self.backend.stop(uuid, Mode.SAVE)
            create = libvirt.virDomain.create
            tried: list[int] = []

            def fails_once(
                found: Any, code: int = code, tried: list[int] = tried, create: Any = create
            ) -> None:
                tried.append(code)
                if len(tried) == 1:
                    error = libvirt.libvirtError("no")
                    error.err = (code, 0, "as it was told to", 2, "", "", "", 0, 0)
                    raise error
                create(found)

            self.patch(libvirt.virDomain, "create", fails_once)
            if expected is None:
                await self.assertFailure(self.backend.start(uuid), BackendError)
                self.assertIs(Power.SAVED, await self.backend.state(uuid))
            else:
                self.assertIs(expected, await self.backend.start(uuid))
                await self.backend.stop(uuid, Mode.DESTROY)
            self.patch(libvirt.virDomain, "create", create)

    async def test_cannot_be_resumed(self) -> None:
        """What is paused and cannot go on is destroyed, logged, and booted."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        await self.backend.stop(uuid, Mode.PAUSE)

        def refuse(_: Any) -> None:
            error = libvirt.libvirtError("no")
            error.err = (libvirt.VIR_ERR_OPERATION_FAILED, 0, "as it was told to", 2, "", "", "", 0, 0)
            raise error

        self.patch(libvirt.virDomain, "resume", refuse)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_images(self) -> None:
        """
        An image is kept, and restored later, unless something has changed that it depends on.

        Whatever happens to it, the VM can be started.
        """
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        kernel = folder / "vmlinuz"
        kernel.write_text("a kernel")
        machine = attrs.evolve(self.new_vm(), boot_from=Boot.SNAPSHOT, images=folder / "images")
        assert machine.define is not None
        machine.define.write_text(machine.define.read_text().replace("</os>", f"<kernel>{kernel}</kernel></os>"))
        uuid = await self.backend.look_up(machine)
        kept = folder / "images" / f"{uuid}.image"
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        for spoil, expected in (
            (lambda: None, Start.RESTORED),
            (lambda: None, Start.RESTORED),
            (kernel.touch, Start.BOOTED),
            (lambda: kept.write_text("damaged"), Start.BOOTED),
            (kept.with_suffix(".sum").unlink, Start.BOOTED),
            (kept.unlink, Start.BOOTED),
        ):
            if not kept.exists():
                await self.backend.keep_image(uuid)
            self.assertIs(Power.RUNNING, await self.backend.state(uuid))
            self.assertEqual({f"{uuid}.image", f"{uuid}.sum"}, {path.name for path in kept.parent.iterdir()})
            await self.backend.stop(uuid, Mode.DESTROY)
            spoil()
            self.assertIs(expected, await self.backend.start(uuid))
        await self.backend.keep_image(uuid)
        await self.backend.drop_image(uuid)
        self.assertEqual([], list(kept.parent.iterdir()))

    async def test_few_calls(self) -> None:
        """A start asks libvirt for no more than it needs: over ssh, each call costs a round trip."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        made: list[str] = []
        for kind in (libvirt.virConnect, libvirt.virDomain):
            for name, call in list(vars(kind).items()):
                if callable(call) and not name.startswith("_") and name not in {"name", "UUIDString", "connect"}:
                    self.patch(kind, name, self.noted(made, name, call))
        await self.backend.memory(uuid)
        self.assertEqual(["lookupByUUIDString", "info", "getMemoryStats"], made)
        made.clear()
        await self.backend.start(uuid)
        self.assertEqual(["lookupByUUIDString", "state", "hasManagedSaveImage", "XMLDesc", "create"], made)

    @staticmethod
    def noted(made: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a *call* of the library that adds its *name* to those that were *made*."""

        def noting(*arguments: Any, **named: Any) -> Any:
            made.append(name)
            return call(*arguments, **named)

        return noting

    async def test_memory_of_running(self) -> None:
        """A start of a VM that has its memory takes none."""
        uuid = await self.backend.look_up(self.new_vm())
        self.patch(libvirt.virConnect, "getMemoryStats", lambda *_: {"free": 1024})
        for needed in (8 << 20, 0):
            memory = await self.backend.memory(uuid)
            assert memory is not None
            self.assertEqual((needed, 1 << 20), (memory.needed, memory.free))
            await self.backend.start(uuid)

    async def test_image_cannot_be_kept(self) -> None:
        """Where there is no room for an image, the VM goes on, and the error says where that was."""
        machine = attrs.evolve(self.new_vm(), boot_from=Boot.SNAPSHOT, images=Path("/proc/nowhere"))
        uuid = await self.backend.look_up(machine)
        await self.backend.start(uuid)
        error = await self.assertFailure(self.backend.keep_image(uuid), BackendError)
        self.assertIn("/proc/nowhere", str(error))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_changed_while_it_boots(self) -> None:
        """The image of a guest whose kernel has changed since it booted is not kept; that of the next boot is."""
        folder = self.definition("any").parent
        kernel = folder / "kernel"
        kernel.write_text("old")
        machine = self.defined()
        assert machine.define is not None
        xml = machine.define.read_text()
        machine.define.write_text(xml.replace("</type>", f"</type><kernel>{kernel}</kernel>", 1))
        uuid = await self.backend.look_up(attrs.evolve(machine, boot_from=Boot.SNAPSHOT, images=folder / "images"))
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        kernel.write_text("new kernel")
        error = await self.assertFailure(self.backend.keep_image(uuid), BackendError)
        self.assertIn("changed since it booted", str(error))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        for how in (Start.BOOTED, Start.RESTORED):
            await self.backend.stop(uuid, Mode.DESTROY)
            self.assertIs(how, await self.backend.start(uuid))
            if how is Start.BOOTED:
                await self.backend.keep_image(uuid)

    async def test_memory_is_kept(self) -> None:
        """A guest's saved memory is not thrown away because its network, or its disk, is not there after a reboot."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        await self.backend.stop(uuid, Mode.SAVE)
        for code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_SYSTEM_ERROR):
            error = libvirt.libvirtError("no way")
            error.err = (code, libvirt.VIR_FROM_QEMU, "network 'default' is not active", 2, "", "", "", 0, 0)

            def create(_: Any, error: Exception = error) -> None:
                raise error

            patched = self.patch(libvirt.virDomain, "create", create)
            await self.assertFailure(self.backend.start(uuid), BackendError)
            patched.restore()
            self.assertIs(Power.SAVED, await self.backend.state(uuid))
        self.assertIs(Start.RESTORED, await self.backend.start(uuid))

    async def test_paused_for_a_moment(self) -> None:
        """A domain that stands still while it moves, or a snapshot is made of it, runs; one that is paused does not."""
        uuid = await self.backend.look_up(self.new_vm())
        for reason, power in ((libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT, Power.RUNNING),
                              (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, Power.RUNNING),
                              (libvirt.VIR_DOMAIN_PAUSED_SAVE, Power.PAUSED),
                              (libvirt.VIR_DOMAIN_PAUSED_USER, Power.PAUSED)):
            self.patch(libvirt.virDomain, "state", lambda _, why=reason: [libvirt.VIR_DOMAIN_PAUSED, why])
            self.assertIs(power, await self.backend.state(uuid))

    def change(self, machine: VM, megabytes: int) -> None:
        """Let the file of *machine* give it other memory."""
        assert machine.define is not None
        xml = machine.define.read_text()
        machine.define.write_text(re.sub(r"<memory.*</memory>", f"<memory unit='MiB'>{megabytes}</memory>", xml))

    async def megabytes(self, uuid: str) -> Any:
        """Return the memory that libvirt has for a domain."""
        return await self.backend._call(lambda there: there.lookupByUUIDString(uuid).maxMemory() // 1024)

    async def test_file_has_changed(self) -> None:
        """A VM that is off is what its file says: when it is looked up, and when it boots."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        self.assertEqual((), await self.backend.advice(uuid))
        self.change(machine, 16)
        self.assertEqual(uuid, await self.backend.look_up(machine))
        self.assertEqual(16, await self.megabytes(uuid))
        self.change(machine, 24)
        await self.backend.start(uuid)
        self.assertEqual(24, await self.megabytes(uuid))

    async def test_file_has_changed_while_up(self) -> None:
        """Of a VM that runs or is saved, advice says that its file has changed; the next boot is by the file."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        await self.backend.start(uuid)
        for mode in (Mode.SAVE, Mode.DESTROY):
            self.change(machine, 16)
            await self.backend.look_up(machine)
            (sentence,) = await self.backend.advice(uuid)
            self.assertIn("has changed since it was defined", sentence)
            self.assertEqual(8, await self.megabytes(uuid))
            await self.backend.stop(uuid, mode)
            if mode is Mode.SAVE:
                await self.backend.look_up(machine)
            await self.backend.start(uuid)
        self.assertEqual(16, await self.megabytes(uuid))
        self.assertEqual((), await self.backend.advice(uuid))

    async def test_file_is_bad(self) -> None:
        """A file that libvirt does not take, or that is gone, changes nothing, and the VM boots as it is."""
        machine = self.new_vm()
        uuid = await self.backend.look_up(machine)
        assert machine.define is not None
        xml = machine.define.read_text()
        for text in ("<domain", xml.replace("type='test'", "type='none'"), None):
            if text is None:
                machine.define.unlink()
            else:
                machine.define.write_text(text)
            self.assertEqual(uuid, await self.backend.look_up(machine))
            self.assertIs(Start.BOOTED, await self.backend.start(uuid))
            await self.backend.stop(uuid, Mode.DESTROY)
            await self.backend.advice(uuid)

    async def test_template_has_changed(self) -> None:
        """Each VM of a template is what its file says when it boots next; a bad file takes none of them down."""
        machine = self.made_vm()
        other = attrs.evolve(machine, name="other", uuid=str(uuid4()))
        assert machine.define is not None
        uuids = [await self.backend.look_up(one) for one in (machine, other)]
        await self.backend.start(uuids[0])
        self.change(machine, 16)
        for uuid, now, then in zip(uuids, (8, 16), (16, 16), strict=True):
            await self.backend.start(uuid)
            self.assertEqual(now, await self.megabytes(uuid))
            await self.backend.stop(uuid, Mode.DESTROY)
            await self.backend.start(uuid)
            self.assertEqual(then, await self.megabytes(uuid))
        for text in (b"\xff", b"<domain", b"<domain>${nobody}</domain>", b"<domain>$</domain>", b"<domain/>"):
            machine.define.write_bytes(text)
            for one, uuid in zip((machine, other), uuids, strict=True):
                self.assertEqual(uuid, await self.backend.look_up(one))
                await self.backend.stop(uuid, Mode.DESTROY)
                self.assertIs(Start.BOOTED, await self.backend.start(uuid))
                await self.backend.advice(uuid)

    async def test_definition_is_refused(self) -> None:
        """A disk that was made for a VM whose definition is refused goes; one that was there before stays."""
        machine = self.made_vm(disk=True)
        assert machine.define is not None
        assert machine.layer is not None
        good = machine.define.read_text()
        for text, error in ((good.replace(" type='test'", ""), "domain type"), ("<", "is not XML")):
            machine.define.write_text(text)
            self.assertIn(error, str(await self.assertFailure(self.backend.look_up(machine), BackendError)))
            self.assertEqual([], list(machine.layer.path.parent.glob("*")))
        machine.define.write_text(good)
        await self.backend.look_up(machine)
        await self.backend._call(lambda there: there.lookupByUUIDString(machine.uuid).undefine())
        machine.define.write_text(good.replace(" type='test'", ""))
        await self.assertFailure(self.backend.look_up(machine), BackendError)
        self.assertTrue(machine.layer.path.exists())

    async def test_lost_while_it_is_defined(self) -> None:
        """If the connection breaks while a VM is defined, its disk stays: the VM may be there."""
        machine = self.made_vm(disk=True)
        assert machine.layer is not None
        error = libvirt.libvirtError("no")
        error.err = (libvirt.VIR_ERR_RPC, 0, "the cable is out", 2, "", "", "", 0, 0)
        self.patch(libvirt.virConnect, "defineXML", Mock(side_effect=error))
        self.patch(libvirt.virConnect, "isAlive", lambda _: 0)
        await self.assertFailure(self.backend.look_up(machine), BackendLost)
        self.assertTrue(machine.layer.path.exists())

    async def test_advice_once(self) -> None:
        """What the file of a template lacks is said by a look at the template, not of each of its VMs."""
        machine = attrs.evolve(self.made_vm(), evidence=Evidence.TRAFFIC)
        assert machine.define is not None
        text = machine.define.read_text().replace("type='network'", "type='user'")
        machine.define.write_text(text.replace("${mac}", "52:54:00:00:00:01"))
        first, second = self.backend.examine(machine)
        self.assertIn("nobody counts", first)
        self.assertIn("all its VMs would have the MAC 52:54:00:00:00:01", second)
        self.assertEqual((), await self.backend.advice(await self.backend.look_up(machine)))

    async def test_template_is_wrong(self) -> None:
        """A file or a base that is wrong is an error of the template, with its place."""
        machine = attrs.evolve(self.made_vm(disk=True), place=("jitsu.yaml", 7))
        assert machine.define is not None
        assert machine.layer is not None
        self.assertEqual((), self.backend.examine(machine))
        machine.layer.base.unlink()
        self.assertIn(str(machine.layer.base), str(self.assertRaises(ConfigError, self.backend.examine, machine)))
        for octets in (None, b"\xff", b"<", b"<domain>${nobody}</domain>"):
            if octets is None:
                machine.define.unlink()
            else:
                machine.define.write_bytes(octets)
            error = self.assertRaises(ConfigError, self.backend.examine, machine)
            self.assertIn("jitsu.yaml:7: templates: site:", str(error))
            self.assertIn(str(machine.define), str(error))

    async def test_defined_by_another(self) -> None:
        """A domain that Jitsu has not defined stays as it is; if its file says the same, it is followed then."""
        machine = self.new_vm()
        assert machine.define is not None
        xml = machine.define.read_text()
        await self.backend._call(lambda there: there.defineXML(xml).UUIDString())
        self.change(machine, 16)
        uuid = await self.backend.look_up(machine)
        (sentence,) = await self.backend.advice(uuid)
        self.assertIn("something else at memory", sentence)
        await self.backend.start(uuid)
        self.assertEqual(8, await self.megabytes(uuid))
        self.change(machine, 8)
        await self.backend.look_up(machine)
        self.assertEqual((), await self.backend.advice(uuid))
        await self.backend.stop(uuid, Mode.DESTROY)
        self.change(machine, 16)
        await self.backend.start(uuid)
        self.assertEqual(16, await self.megabytes(uuid))

    async def test_transient(self) -> None:
        """A transient domain is advised of, follows no file, and cannot be saved."""
        machine = self.new_vm()
        assert machine.define is not None
        xml = machine.define.read_text()
        await self.backend._call(lambda there: there.createXML(xml).UUIDString())
        with capturedLogs() as logged:
            await self.backend.look_up(machine)
        self.assertEqual([], [formatEvent(event) for event in logged])
        uuid = await self.backend.look_up(vm(machine.name))
        (sentence,) = await self.backend.advice(uuid)
        self.assertIn("it is transient", sentence)
        self.assertIn("it is transient", str(await self.backend.obstacle(uuid, Mode.SAVE)))
        self.assertIsNone(await self.backend.obstacle(uuid, Mode.DESTROY))

    async def test_advice(self) -> None:
        """What rules an image out is advice, as is what a file lacks."""
        machine = attrs.evolve(self.new_vm(), boot_from=Boot.SNAPSHOT)
        assert machine.define is not None
        share = "<devices><filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>"
        machine.define.write_text(machine.define.read_text().replace("<devices>", share))
        for (sentence,) in (
            self.backend.examine(machine),
            await self.backend.advice(await self.backend.look_up(machine)),
        ):
            self.assertIn("no image of it is kept", sentence)
            self.assertIn("/srv", sentence)
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertIn("/srv", str(await self.assertFailure(self.backend.keep_image(uuid), BackendError)))
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        machine = attrs.evolve(self.new_vm(), evidence=Evidence.TRAFFIC)
        assert machine.define is not None
        machine.define.write_text(machine.define.read_text().replace("type='network'", "type='user'"))
        self.assertIn("nobody counts", self.backend.examine(machine)[0])
        self.assertEqual((), self.backend.examine(attrs.evolve(machine, evidence=Evidence.QUERIES)))
        machine = attrs.evolve(machine, boot_from=Boot.SNAPSHOT)
        far = LibvirtBackend("qemu+ssh://host/system")
        self.assertIn("cannot be seen from here", far.examine(machine)[-1])

    async def test_traffic_and_cpu_time(self) -> None:
        """One interface that libvirt does not count is enough for None; of the CPU time, the virtual CPUs' counts."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        xml = "<domain><devices>{}</devices></domain>"
        card = "<hostdev type='pci'><source><address bus='1'/></source></hostdev>"
        for counts, devices, total in (
            ({"net.count": 2, "net.0.tx.pkts": 3, "net.1.tx.pkts": 4}, "", 7),
            ({"net.count": 2, "net.0.tx.pkts": 3}, "", None),
            ({"net.count": 1, "net.0.tx.pkts": 3}, "<hostdev type='net'/>", None),
            ({"net.count": 1, "net.0.tx.pkts": 3}, card, None),
            ({"net.count": 0}, "", None),
            ({}, "", None),
        ):
            self.patch(domain, "_stats", lambda *_, counts=counts: counts)
            self.patch(libvirt.virDomain, "XMLDesc", lambda *_, devices=devices: xml.format(devices))
            self.assertEqual(total, await self.backend.traffic(uuid))
        self.patch(domain, "_stats", lambda *_: {"vcpu.maximum": 2, "vcpu.0.time": 10**9, "vcpu.1.time": 2 * 10**9})
        self.assertEqual(3.0, await self.backend.cpu_time(uuid))
        self.patch(domain, "_stats", lambda *_: {})
        self.patch(libvirt.virDomain, "info", lambda _: [1, 0, 0, 1, 5 * 10**9])
        self.assertEqual(5.0, await self.backend.cpu_time(uuid))

    async def test_host_device(self) -> None:
        """A PCI device of the host is a network card, unless its class says something else."""
        device = "<hostdev type='pci'><source><address bus='1'/></source></hostdev>"
        root = domain_xml.parse(f"<domain><devices>{device}</devices></domain>")
        for kind, found in (("0x020000", 1), ("0x030000", 0), ("", 1)):
            xml = f"<device><capability><class>{kind}</class></capability></device>"
            there = Mock(**{"nodeDeviceLookupByName.return_value.XMLDesc.return_value": xml})
            self.assertEqual(found, len(list(domain._network_cards(there, root))), kind)

    async def test_save_holds_up_nothing(self) -> None:
        """While all guests that may be saved at once are, which takes minutes, others are started."""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend.start(uuid)
        held = Deferred[None]()
        self.patch(libvirt.virDomain, "managedSave", lambda _: self.wait_for(held))
        saving = [self.backend.stop(uuid, Mode.SAVE) for _ in range(2 * room.SAVES)]
        other = await self.backend.look_up(self.new_vm())
        self.assertIs(Start.BOOTED, await self.backend.start(other))
        self.assertFalse(any(call.called for call in saving))
        held.callback(None)
        await gatherResults(saving)

    async def test_lost(self) -> None:
        """When the connection for events breaks, what is under way fails, and there is another one soon."""
        self.addCleanup(libvirt.open(TEST_DRIVER).close)  # else the driver would forget its domains
        uuid = await self.backend.look_up(self.new_vm())
        held = Deferred[None]()
        self.patch(libvirt.virDomain, "create", lambda _: self.wait_for(held))
        starting = self.backend.start(uuid)
        self.backend._hung_up(self.backend._connection, libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE, None)
        error = await self.assertFailure(starting, BackendLost)
        self.assertIn("no sign of life", str(error))
        self.assertEqual(1, len(self.watcher.lost_reasons))
        await self.assertFailure(self.backend.state(uuid), BackendLost)
        await self.watcher.until(lambda: self.watcher.connections == 2)
        held.callback(None)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_connections(self) -> None:
        """Each call has a connection of its own, but for a driver in this process, which has one."""
        opened = []
        open_ = libvirt.open
        self.patch(libvirt, "open", lambda uri: opened.append(uri) or open_(TEST_DRIVER))  # type: ignore[func-returns-value]
        held = Deferred[None]()
        for uri, connections in (("qemu:///embed?root=/x", 1), (TEST_DRIVER, 1), ("qemu+unix:///system", 4)):
            backend, watcher = LibvirtBackend(uri), contract_backends.Watcher()
            self.addCleanup(backend.close)
            backend.connect(watcher)
            await watcher.until(lambda watcher=watcher: watcher.connections)  # type: ignore[misc]
            calls = [backend._call(lambda _, held=held: self.wait_for(held)) for _ in range(3)]
            while len(backend._calls._busy) < 3:
                await deferLater(reactor, 0.01)
            self.assertEqual([uri] * connections, opened)
            held.callback(None)
            await gatherResults(calls)
            opened.clear()
            held = Deferred[None]()

    async def test_lost_while_connecting(self) -> None:
        """A connection that breaks before it is known is given up, and made again."""
        opened = self.backend._open_events

        def breaks() -> Any:
            connection = opened()
            self.patch(self.backend, "_open_events", opened)
            self.backend._hung_up(connection, libvirt.VIR_CONNECT_CLOSE_REASON_EOF, None)
            return connection

        self.patch(self.backend, "_open_events", breaks)
        self.backend._hung_up(self.backend._connection, libvirt.VIR_CONNECT_CLOSE_REASON_EOF, None)
        await self.watcher.until(lambda: self.watcher.connections == 2)
        self.assertEqual("the connection broke while it was made", self.watcher.lost_reasons[-1])

    async def test_ended_by_itself(self) -> None:
        """A guest that can end QEMU has ended by itself where QEMU ends; of another, only QEMU's end is known."""
        plain, able = self.new_vm(), self.new_vm()
        assert able.define is not None
        able.define.write_text(with_exit(able.define.read_text()))
        ended = libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED
        # libvirt's test driver does not keep what is QEMU's.
        self.patch(domain_xml, "can_exit", lambda root: root.findtext("name") == able.name)
        for machine, reason in ((plain, domain.PROCESS_ENDED), (able, ENDED)):
            uuid = await self.backend.look_up(machine)
            self.backend._happened(uuid, *ended)
            told = uuid, reason
            await self.watcher.until(lambda told=told: told in self.watcher.told)  # type: ignore[misc]
        nobody = str(uuid4())
        self.backend._happened(nobody, *ended)
        await self.watcher.until(lambda: (nobody, domain.PROCESS_ENDED) in self.watcher.told)

    async def test_rebooted(self) -> None:
        """A guest's own reboot is told. (libvirt's test driver has no such event.)"""
        uuid = await self.backend.look_up(self.new_vm())
        await self.backend._call(lambda there: self.backend._reboot(there, there.lookupByUUIDString(uuid), None))
        await self.watcher.until(lambda: uuid in self.watcher.reboots)

    async def test_reactor_is_free(self) -> None:
        """A call that hangs in the library does not stop the reactor."""
        held = Deferred[None]()
        self.patch(libvirt.virDomain, "create", lambda _: self.wait_for(held))
        uuid = await self.backend.look_up(self.new_vm())
        starting = self.backend.start(uuid)
        await deferLater(reactor, 0.05)
        self.assertFalse(starting.called)
        held.callback(None)
        await starting

    @staticmethod
    def wait_for(held: Deferred[None]) -> None:
        """Block this thread until *held* has fired."""
        import time

        while not held.called:
            time.sleep(0.005)


class LibvirtOpeningTests(LibvirtTestCase):
    """Connections that cannot be had, VMs that are not there, and what a look at a definition tells."""

    async def opened(self, uri: str, until: Callable[[contract_backends.Watcher], object]) -> Any:
        """Return a backend at *uri*, and what its watcher was told *until* enough was."""
        backend, watcher = LibvirtBackend(uri), contract_backends.Watcher()
        self.addCleanup(backend.close)
        backend.connect(watcher)
        await watcher.until(lambda: until(watcher))
        return backend, watcher

    async def test_known(self) -> None:
        """What libvirt knows, by name, by uuid or by definition, is found."""
        backend, _ = await self.opened(TEST_DRIVER, lambda watcher: watcher.connections)
        defined = self.defined()
        uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
        self.assertEqual([uuid] * 2, [await backend.look_up(one) for one in (vm("test"), vm("x", uuid=uuid))])
        await backend.look_up(defined)

    async def test_unknown_name(self) -> None:
        """A name that libvirt does not know is an error with the remedy."""
        backend, _ = await self.opened(TEST_DRIVER, lambda watcher: watcher.connections)
        error = await self.assertFailure(backend.look_up(vm("nobody")), NoSuchVM)
        self.assertIn("with define", str(error))

    async def test_no_such_driver(self) -> None:
        """A URI that libvirt can never use is told as a loss that names it."""
        for uri in ("qemu:///embed?root=relative", "no uri at all"):
            _, watcher = await self.opened(uri, lambda watcher: watcher.lost_reasons)
            self.assertTrue(watcher.lost_reasons[0])

    async def test_daemon_is_not_there(self) -> None:
        """A daemon that does not answer is tried again, and calls say so."""
        uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
        backend, watcher = await self.opened(uri, lambda watcher: len(watcher.lost_reasons) > 1)
        self.assertIn("/nonexistent/libvirt-sock", watcher.lost_reasons[0])
        await self.assertFailure(backend.state(str(uuid4())), BackendLost)
