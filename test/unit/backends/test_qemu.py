"""The libvirt backend with a real QEMU, which libvirt's driver runs inside of this process."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4
from xml.etree import ElementTree

import attrs
import libvirt
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from demo import lab
from demo import unikernel as guest
from jitsu_tw.backends import domain, domain_xml, prepared
from jitsu_tw.backends import libvirt as backend_module
from jitsu_tw.backends.libvirt import LibvirtBackend
from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import ENDED, SHUT_DOWN, Power, Start
from jitsu_tw.settings import Boot, Layer, Mode
from test.contract import backends as contract_backends
from test.support import vm

if TYPE_CHECKING:
    from jitsu_tw.settings import VM

IP: Final = "10.99.0.10"

#: The disk of a template's VMs.
DISK: Final = (
    "<disk type='file'><driver name='qemu' type='qcow2'/><source file='${disk}'/>"
    "<target dev='vda' bus='virtio'/></disk>"
)


@functools.cache
def root() -> Path:
    """Return the directory of libvirt's driver in this process, which has one for as long as it lives."""
    folder = lab.directory()
    atexit.register(folder.cleanup)
    lab.embed_root(Path(folder.name))
    return Path(folder.name)


@functools.cache
def stay_open() -> libvirt.virConnect:
    """Return a connection that is never closed: with its last one the driver ends."""
    return libvirt.open(f"qemu:///embed?root={root()}")


class QemuTests(TestCase):
    """What QEMU and libvirt do by themselves."""

    timeout = 120
    port: int

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect."""
        if shutil.which("qemu-system-x86_64") is None:
            raise SkipTest("qemu-system-x86_64 is not installed")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.backend = LibvirtBackend(f"qemu:///embed?root={root()}")
        self.watcher = contract_backends.Watcher()
        self.backend.connect(self.watcher)
        self.addCleanup(self.backend.close)
        self.addCleanup(lab.stop_qemus, root())
        await self.watcher.until(lambda: self.watcher.connections)
        stay_open()

    def make(self, habits: str = "", *, debug_exit: bool = True, port: int | None = None) -> VM:
        """Return a VM with the guest that has *habits*, defined in a file; *port* of loopback leads to its port 80."""
        name = f"vm-{uuid4().hex[:8]}"
        xml = guest.domain_xml(
            name, IP, "52:54:00:00:00:01", habits, debug_exit=debug_exit, memory_mib=16,
            forward=(port or lab.free_port(), 80),
        )  # fmt: skip
        path = self.folder / f"{name}.xml"
        path.write_text(xml.replace("<on_reboot>destroy", "<on_reboot>restart"))
        return vm(name, backend="libvirt", define=path, images=self.folder / "images")

    async def start(self, machine: VM) -> str:
        """Start a VM; return its uuid."""
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        return uuid

    async def fetch(self, port: int) -> bytes:
        """Return what the guest says, once it does."""
        while True:
            try:
                return await deferToThread(self._get, port)
            except OSError:
                await deferLater(reactor, 0.05)

    @staticmethod
    def _get(port: int) -> bytes:
        import urllib.request

        with urllib.request.urlopen(f"http://{lab.LOOPBACK}:{port}/", timeout=10) as page:
            body: bytes = page.read()
        return body

    async def test_exits(self) -> None:
        """A guest that exits has ended by itself; later QEMUs call that a shutdown."""
        port = lab.free_port()
        uuid = await self.start(self.make("exit_after=1", port=port))
        await self.fetch(port)
        await self.watcher.until(lambda: {(uuid, ENDED), (uuid, SHUT_DOWN)} & set(self.watcher.told))
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_killed(self) -> None:
        """A QEMU that is killed, and that its guest cannot end, has ended; nothing is said of the guest."""
        machine = self.make(debug_exit=False)
        uuid = await self.start(machine)
        os.kill(int((root() / f"run/qemu/{machine.name}.pid").read_text()), signal.SIGKILL)
        await self.watcher.until(lambda: (uuid, domain.PROCESS_ENDED) in self.watcher.told)

    async def test_reboots(self) -> None:
        """A guest that reboots itself is told of, and runs."""
        port = lab.free_port()
        uuid = await self.start(self.make("reboot_after=1", port=port))
        await self.fetch(port)
        await self.watcher.until(lambda: uuid in self.watcher.reboots)
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    async def test_counts(self) -> None:
        """Packets of an interface on QEMU's command line are counted by nobody; virtual CPUs' time is."""
        port = lab.free_port()
        uuid = await self.start(self.make(port=port))
        await self.fetch(port)
        self.assertIsNone(await self.backend.traffic(uuid))
        first = await self.backend.cpu_time(uuid)
        assert first is not None
        while True:  # it is counted in ticks, of which a guest that has just booted may have had none
            await self.fetch(port)
            second = await self.backend.cpu_time(uuid)
            assert second is not None
            if second > first:
                break
        self.assertIn("QEMU's command line", (await self.backend.advice(uuid))[0])
        self.assertIsNone(await self.backend.obstacle(uuid, Mode.SAVE))

    async def test_prepared(self) -> None:
        """A prepared guest goes on where it was, also by the hand of the next process; then it is so no more."""
        port = lab.free_port()
        machine = attrs.evolve(self.make(port=port), prepare=True)
        uuid = await self.start(machine)
        await self.fetch(port)
        await self.backend.prepare(uuid)
        other = LibvirtBackend(f"qemu:///embed?root={root()}")  # as the next process has it
        watcher = contract_backends.Watcher()
        other.connect(watcher)
        self.addCleanup(other.close)
        await watcher.until(lambda: watcher.connections)
        await other.look_up(machine)
        self.assertEqual((Power.PREPARED, ""), (await other.state(uuid), await other.stale(uuid)))
        self.assertIs(Start.PREPARED, await other.start(uuid))
        await self.fetch(port)
        self.assertIs(Power.RUNNING, await other.state(uuid))
        await other.stop(uuid, Mode.PAUSE)
        while await other.state(uuid) is Power.PREPARED:  # until the event of its start has come
            await deferLater(reactor, 0.01)
        self.assertIs(Power.PAUSED, await other.state(uuid))

    async def test_prepared_is_stale(self) -> None:
        """It is thrown away if its definition or its kernel has changed, or another program has let it run."""
        port = self.port = lab.free_port()
        machine = attrs.evolve(self.make(port=port), prepare=True)
        assert machine.define is not None
        text = machine.define.read_text()
        kernel = self.folder / "kernel"
        (found,) = domain_xml.parse(text).findall("./os/kernel")
        shutil.copy(found.text or "", kernel)
        machine.define.write_text(text.replace(found.text or "", str(kernel)))
        uuid = await self.start(machine)
        self.patch(domain, "unmark", lambda *_: None)  # as if nobody saw that its guest runs
        changes = (
            (lambda _: kernel.touch(), "has changed"), (self.redefine, "has changed"), (self.run_on, "let its guest"),
        )  # fmt: skip
        for change, why in changes:
            await self.fetch(port)
            await self.backend.prepare(uuid)
            self.assertEqual("", await self.backend.stale(uuid))
            await deferToThread(change, uuid)
            self.assertIn(why, await self.backend.stale(uuid))
            self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        kernel.touch()
        await self.assertFailure(self.backend.prepare(uuid), BackendError)
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))

    @staticmethod
    def redefine(uuid: str) -> None:
        """Change the definition of a domain."""
        connection = stay_open()
        xml = connection.lookupByUUIDString(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        connection.defineXML(xml.replace("</name>", "</name><title>another</title>", 1))

    def run_on(self, uuid: str) -> None:
        """Let the guest of a prepared domain run, until it has used its CPU, and pause it again."""
        found = stay_open().lookupByUUIDString(uuid)
        before = prepared._done(found)[0]
        found.resume()
        while prepared._done(found)[0] < before + 2 * prepared.CPU_TICKS:
            self._get(self.port)
        found.suspend()

    async def test_many_at_once(self) -> None:
        """Several VMs start at once, each by a call of its own, and are saved and restored at once."""
        uuids = [await self.backend.look_up(self.make()) for _ in range(4)]
        for expected in (Start.BOOTED, Start.RESTORED):
            self.assertEqual([expected] * 4, await gatherResults([self.backend.start(uuid) for uuid in uuids]))
            await gatherResults([self.backend.stop(uuid, Mode.SAVE) for uuid in uuids])
            self.assertEqual({Power.SAVED}, {await self.backend.state(uuid) for uuid in uuids})

    def made(self, *, disk: bool = True, **changes: Any) -> VM:
        """Return another VM of one template; its label is the port of loopback that leads to its port 80."""
        file, base = self.folder / "site.xml", self.folder / "base.img"
        if not file.exists():
            base.write_bytes(bytes(1 << 20))
            xml = guest.domain_xml("${name}", IP, "${mac}", memory_mib=16, forward=("${label}", 80))
            file.write_text(xml.replace("<devices>", f"<devices>{DISK if disk else ''}"))
        port, uuid = lab.free_port(), str(uuid4())
        layer = Layer(self.folder / "layers" / f"{uuid}.qcow2", base) if disk else None
        return vm(
            f"{port}.site", uuid=uuid, template="site", backend="libvirt", define=file, layer=layer,
            images=self.folder / "images", **changes,
        )  # fmt: skip

    async def serves(self, machine: VM) -> None:
        """Wait for the page of *machine*, and check that it has its own name."""
        page = await self.fetch(int(machine.name.partition(".")[0]))
        self.assertIn(machine.name.encode(), page)

    async def test_template(self) -> None:
        """Each VM of a template serves its own page; saved, it goes on with its disk, and its base must be the same."""
        machines = [self.made(), self.made()]
        uuids = [await self.start(machine) for machine in machines]
        for machine, uuid in zip(machines, uuids, strict=True):
            await self.serves(machine)
            await self.backend.stop(uuid, Mode.SAVE)
        layer = machines[0].layer
        assert layer is not None
        time = layer.base.stat().st_mtime_ns
        layer.base.touch()
        error = await self.assertFailure(self.backend.start(uuids[0]), BackendError)
        self.assertIn("has changed since", str(error))
        os.utime(layer.base, ns=(time, time))
        self.assertIs(Start.RESTORED, await self.backend.start(uuids[0]))
        await self.serves(machines[0])
        await self.backend.stop(uuids[0], Mode.DESTROY)
        for machine in machines:
            await self.backend.remove(machine)
            left = [path for path in root().rglob(f"*{machine.name}*") if path.suffix != ".log"]
            self.assertEqual([], left)
        self.assertEqual([], list(layer.path.parent.iterdir()))

    async def test_template_prepared(self) -> None:
        """A VM of a template can be prepared; that is no use once its base has changed, and is removed as any other."""
        machine = self.made(prepare=True)
        uuid = await self.start(machine)
        await self.serves(machine)
        await self.backend.prepare(uuid)
        self.assertEqual("", await self.backend.stale(uuid))
        self.assertIs(Start.PREPARED, await self.backend.start(uuid))
        await self.serves(machine)
        await self.backend.stop(uuid, Mode.DESTROY)
        await self.backend.start(uuid)
        await self.backend.prepare(uuid)
        assert machine.layer is not None
        machine.layer.base.touch()
        self.assertIn("has changed", await self.backend.stale(uuid))
        await self.backend.remove(machine)
        await self.assertFailure(self.backend.state(uuid), NoSuchVM)

    async def test_template_snapshot(self) -> None:
        """Without a disk, each VM of a template starts from the image of its own guest, which goes with it."""
        machines = [self.made(disk=False, boot_from=Boot.SNAPSHOT) for _ in range(2)]
        for machine in machines:
            uuid = await self.start(machine)
            await self.serves(machine)
            await self.backend.keep_image(uuid)
            await self.backend.stop(uuid, Mode.DESTROY)
        for machine in machines:
            self.assertIs(Start.RESTORED, await self.backend.start(str(machine.uuid)))
            await self.serves(machine)
            await self.backend.stop(str(machine.uuid), Mode.DESTROY)
            await self.backend.remove(machine)
        self.assertEqual([], list((self.folder / "images").iterdir()))

    async def test_snapshot(self) -> None:
        """An image of the ready guest is kept, and used, until the kernel changes."""
        port = lab.free_port()
        machine = attrs.evolve(self.make(port=port), boot_from=Boot.SNAPSHOT)
        uuid = await self.start(machine)
        await self.fetch(port)
        await self.backend.keep_image(uuid)
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Start.RESTORED, await self.backend.start(uuid))
        await self.fetch(port)

    async def test_follows_its_file(self) -> None:
        """What libvirt makes of a definition is what the file says, and another file is another definition."""
        machine = self.make()
        uuid = await self.backend.look_up(machine)
        assert machine.define is not None
        self.assertEqual(1, len(await self.backend.advice(uuid)))
        text = machine.define.read_text()
        found = await self.backend._call(lambda there: domain._defined(there.lookupByUUIDString(uuid)))
        self.assertIsNone(domain_xml.difference(domain_xml.parse(text), found))
        machine.define.write_text(text.replace(">16</memory>", ">24</memory>"))
        await self.start(machine)
        memory = await self.backend._call(lambda there: there.lookupByUUIDString(uuid).maxMemory())
        self.assertEqual(24 * 1024, memory)

    async def xml(self, uuid: str, flags: int = 0) -> ElementTree.Element:
        """Return a domain's XML."""
        text = await self.backend._call(lambda there: there.lookupByUUIDString(uuid).XMLDesc(flags))
        return domain_xml.parse(text)

    async def test_cpu_questions(self) -> None:
        """By what Jitsu defines, and saves, libvirt asks for no feature of the CPU, and the CPU is the same."""
        cpus = []
        for own in ("", "<qemu:capabilities/>"):
            machine = self.make()
            assert machine.define is not None
            text = re.sub("<qemu:capabilities>.*</qemu:capabilities>", own, machine.define.read_text())
            machine.define.write_text(text)
            uuid = await self.start(machine)
            cpus.append(ElementTree.tostring((await self.xml(uuid)).findall("./cpu")[0]))
            self.assertEqual(bool(own), domain_xml.asks_cpu(await self.xml(uuid, libvirt.VIR_DOMAIN_XML_MIGRATABLE)))
            await self.backend.stop(uuid, Mode.SAVE)
            self.assertIs(Start.RESTORED, await self.backend.start(uuid))
            self.assertEqual(bool(own), domain_xml.asks_cpu(await self.xml(uuid)))
            for limit in (0.0, 60.0):
                self.patch(backend_module, "SLOW_START", limit)
                await self.backend.stop(uuid, Mode.DESTROY)
                await self.backend.start(uuid)
                self.assertEqual(bool(own) and not limit, domain_xml.SLOW in await self.backend.advice(uuid))
            self.assertEqual(bool(own), domain_xml.SLOW in self.backend.examine(machine))
        self.assertEqual(cpus[0], cpus[1])

    async def test_examples(self) -> None:
        """QEMU's driver takes each example of ``conf/``, as it is without KVM, and keeps all that it says."""
        conf = Path(__file__).parents[3] / "conf"
        for path in sorted(set(conf.glob("*.xml")) - {conf / "site.xml"}):  # that is a template's
            text = path.read_text().replace("<domain type='kvm'", "<domain type='qemu'")
            text = text.replace("<cpu mode='host-passthrough'/>", "<cpu mode='maximum'/>")
            self.assertIn("<cpu mode='maximum'/>", text)
            file = self.folder / path.name
            file.write_text(text)
            uuid = await self.backend.look_up(vm(path.stem, backend="libvirt", define=file))
            found = await self.backend._call(lambda there, uuid=uuid: domain._defined(there.lookupByUUIDString(uuid)))
            self.assertIsNone(domain_xml.difference(domain_xml.parse(text), found))
            self.assertEqual(path.stem != "batch", domain_xml.can_exit(found))
            self.assertFalse(domain_xml.asks_cpu(found))
            self.assertEqual((), await self.backend.advice(uuid))
