"""Clones: the VMs of a template that start from one image (`backends.clone`)."""

from __future__ import annotations

import shutil
import struct
import tempfile
from errno import ENOSPC
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from unittest import mock
from urllib.request import urlopen
from uuid import uuid4

import attrs
import libvirt
import libvirt_qemu
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from demo import clones, lab
from jitsu_tw.backends import clone, domain, domain_xml, image
from jitsu_tw.backends.definition import mac_of
from jitsu_tw.backends.libvirt import LibvirtBackend, _Events
from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import Power, Start
from jitsu_tw.settings import Boot, Layer, Mode
from test.contract import backends as contract_backends
from test.support import vm
from test.unit.backends.test_qemu import root, stay_open

if TYPE_CHECKING:
    from xml.etree import ElementTree

    from jitsu_tw.settings import VM

#: A template's definition whose guests can be cloned.
DEFINITION: Final = """\
<domain type='qemu'>
  <name>${name}</name>
  <uuid>${uuid}</uuid>
  <genid/>
  <sysinfo type='fwcfg'>
    <entry name='opt/jitsu/name'>${name}</entry>
    <entry name='opt/jitsu/ip'>${ip}/24</entry>
  </sysinfo>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>/kernel</kernel><cmdline>quiet</cmdline></os>
  <devices>
    <interface type='bridge'><source bridge='br0'/><mac address='${mac}'/></interface>
    <channel type='unix'><target type='virtio' name='jitsu.ready'/></channel>
  </devices>
</domain>
"""
DISK: Final = "<disk type='file'><source file='${disk}'/><target dev='vda' bus='virtio'/></disk>"

UUID: Final = "0b7c2a4e-2d4d-5c0e-8c3f-6a1d2b3c4d5e"


def made(folder: Path, text: str = DEFINITION, label: str = "alice", **changes: Any) -> VM:
    """Return a VM that the template `site` has made, with a definition of that *text*."""
    define = folder / "site.xml"
    define.write_text(text)
    return vm(f"{label}.site", **{
        "uuid": UUID, "template": "site", "define": define, "boot_from": Boot.SNAPSHOT, "images": folder / "images",
        "ip": (ip_address("10.99.0.11"),), **changes,
    })  # fmt: skip


class DefinitionTests(SynchronousTestCase):
    """Definitions of templates, without a hypervisor."""

    def setUp(self) -> None:
        """Have a folder."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def why(self, text: str, **changes: Any) -> str:
        """Return why a VM with the definition *text* cannot be a clone."""
        return clone.obstacle(made(self.folder, text, **changes)) or ""

    def test_can(self) -> None:
        """A guest that tells when it waits, with its own values in fw_cfg, interfaces and its disk, can be a clone."""
        self.assertEqual("", self.why(DEFINITION))
        layer = Layer(self.folder / "alice & bob.qcow2", self.folder / "base.qcow2")
        self.assertEqual("", self.why(DEFINITION.replace("<channel", f"{DISK}<channel"), layer=layer))

    def test_cannot(self) -> None:
        """Any other cannot, for a reason that is told."""
        self.assertIn("no template", self.why(DEFINITION, template=None))
        self.assertIn("no template", str(clone.obstacle(attrs.evolve(made(self.folder), define=None))))
        self.assertIn("no channel jitsu.ready", self.why(DEFINITION.replace("jitsu.ready", "org.qemu.guest_agent.0")))
        interface = DEFINITION[DEFINITION.index("<interface") : DEFINITION.index("<channel")]
        self.assertIn("no interface", self.why(DEFINITION.replace(interface, "")))
        layer = Layer(self.folder / "alice.qcow2", self.folder / "base.qcow2")
        own = DISK.replace("${disk}", "/shared.qcow2")
        why = self.why(DEFINITION.replace("<channel", f"{own}<channel"), layer=layer)
        self.assertIn("/shared.qcow2 can be written to", why)
        self.assertRaises(BackendError, self.why, DEFINITION.replace("</domain>", ""))
        self.assertRaises(BackendError, self.why, DEFINITION.replace("quiet", "${nonsense}"))

    def test_identity_elsewhere(self) -> None:
        """A value of its own that a guest would read before it is a clone, or that a clone would not have, is found."""
        smbios = "<sysinfo type='smbios'><system><entry name='serial'>${uuid}</entry></system></sysinfo>"
        for old, new, where in (
            ("quiet", "ip=${ip}", "cmdline"), ("quiet", "host=${label}", "cmdline"), ("<genid/>", smbios, "sysinfo"),
            ("jitsu.ready'/>", "jitsu.ready'/><source path='/run/${name}'/>", "channel"),
        ):
            self.assertIn(where, self.why(DEFINITION.replace(old, new)))

    def test_advice(self) -> None:
        """The operator is told why VMs whose guests are made for it are no clones."""

        def advice(text: str, *, far: bool = False) -> str:
            return " ".join(domain.advice_on(made(self.folder, text), domain_xml.parse(text), far=far))

        self.assertNotIn("boot_from", advice(DEFINITION))
        self.assertIn("no clone (boot_from): its definition has", advice(DEFINITION.replace("quiet", "${ip}")))
        self.assertIn("no clone (boot_from): the files of its host", advice(DEFINITION, far=True))
        self.assertNotIn("clone", advice(DEFINITION.replace("jitsu.ready", "another")))

    def test_far(self) -> None:
        """No seed is made at another host, whose files cannot be seen from here."""
        backend, machine = LibvirtBackend("qemu+ssh://host/system"), made(self.folder)
        backend._found(UUID, machine)
        self.assertIsNone(self.successResultOf(backend.keep_image(UUID, shared=True)))

    def test_forgotten_meanwhile(self) -> None:
        """Nothing is left of a seed whose template has no VMs any more when it is made."""
        for another in (True, False):
            backend, machine = LibvirtBackend("qemu:///system"), made(self.folder)
            backend._found(UUID, machine)
            if another:
                backend._found("another", attrs.evolve(machine, uuid="another"))

            def keep(_: Any, uuid: str, machine: VM, backend: LibvirtBackend = backend) -> None:
                seed = clone.path(machine)
                seed.parent.mkdir(exist_ok=True)
                for file in (seed, image.sum_file(seed)):
                    file.touch()
                backend._forget(uuid)

            self.patch(domain, "keep_seed", keep)
            self.patch(backend, "_call", lambda function, *args, **_: succeed(function(None, *args)))
            self.successResultOf(backend.keep_image(UUID, shared=True))
            self.assertEqual(another, clone.path(machine).exists())
        self.assertEqual([], list((self.folder / "images").iterdir()))

    def test_plugged_in(self) -> None:
        """The interfaces are plugged in last: they are the sign that all else is there."""
        root = domain_xml.parse(DEFINITION.replace("<channel", f"{DISK}<channel"))
        self.assertEqual(["disk", "interface"], [device.tag for device in clone.plug(root, "${disk}")])
        self.assertEqual(["channel"], [device.tag for device in root.findall("./devices/*")])
        self.assertEqual(["memory", "os", "devices"], [element.tag for element in root])


class FileTests(SynchronousTestCase):
    """Files of images, which libvirt writes and reads."""

    def setUp(self) -> None:
        """Have an image like libvirt's."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.seed = "<domain><name>seed</name><uuid>1</uuid><genid>2</genid><memory>3</memory></domain>"
        self.own = domain_xml.parse(
            "<domain><name>alice</name><uuid>4</uuid><sysinfo type='fwcfg'><entry name='opt/x'>5</entry></sysinfo>"
            "<sysinfo type='smbios'/><memory>6</memory></domain>"
        )
        self.stream = bytes(range(256)) * 1000

    def image(self, *, cookie: bytes = b"<cookie/>\0", space: int = 65536, magic: bytes = b"LibvirtQemudSave") -> Path:
        """Write an image with a *cookie* and so much *space* for a longer XML; return where."""
        xml = self.seed.encode() + b"\0"
        data = (xml + cookie).ljust(len(xml + cookie) + space, b"\0")
        header = struct.pack("=16s5I56x", magic, 2, len(data), 1, 0, len(xml) if cookie else 0)
        path = self.folder / "site.seed"
        path.write_bytes(header + data + self.stream)
        return path

    def read(self, file: Path) -> tuple[ElementTree.Element, bytes]:
        """Return the XML and the cookie of the image in *file*, as libvirt reads it; its stream is as it was."""
        octets = file.read_bytes()
        _, version, size, runs, kind, offset = struct.unpack_from("=16s5I", octets)
        self.assertEqual((2, 1, 0), (version, runs, kind))
        data = octets[92 : 92 + size]
        self.assertEqual(self.stream, octets[92 + size :])
        return domain_xml.parse(data[: offset or size].rstrip(b"\0").decode()), data[offset:] if offset else b""

    def test_copy(self) -> None:
        """A clone's image has the name, the uuid and the items for fw_cfg of its VM, and all else of the seed."""
        for cookie in (b"<cookie/>\0", b""):
            file = self.folder / "alice.clone"
            clone.write(self.image(cookie=cookie), file, self.own)
            root, found = self.read(file)
            self.assertEqual(cookie.rstrip(b"\0"), found.rstrip(b"\0"))
            texts = {one.tag: one.text for one in root}
            self.assertEqual({"name": "alice", "uuid": "4", "memory": "3", "sysinfo": None}, texts)
            self.assertEqual("5", root.findtext("./sysinfo/entry"))
            self.assertEqual(0o600, file.stat().st_mode & 0o777)

    def test_no_image(self) -> None:
        """What is no image of libvirt's, or has no space for the XML, is refused."""
        file = self.folder / "alice.clone"
        wrong: tuple[dict[str, Any], ...] = ({"magic": b"LibvirtQemudPart"}, {"space": 0})
        for options in wrong:
            seed = self.image(**options)
            error = self.assertRaises(BackendError, clone.write, seed, file, self.own)
            self.assertIn(str(seed), str(error))
        seed.write_bytes(b"Libvirt")
        self.assertRaises(BackendError, clone.write, seed, file, self.own)

    def test_damaged(self) -> None:
        """Of an image that is damaged, any number and any octet of the XML may be wrong; that is refused, too."""
        file = self.folder / "alice.clone"
        good = self.image().read_bytes()
        seed = self.folder / "site.seed"
        number = b"\xff" * 4
        for place, octets in ((20, number), (32, number), (32, b"\1\0\0\0"), (92, b"\xff"), (93, b"<")):
            seed.write_bytes(good[:place] + octets + good[place + len(octets) :])
            error = self.assertRaises(BackendError, clone.write, seed, file, self.own)
            self.assertIn(f"{seed} is damaged", str(error))
        for length in (0, 91, 92, 100, len(good) - len(self.stream) - 65536 - 20):
            seed.write_bytes(good[:length])
            self.assertRaises(BackendError, clone.write, seed, file, self.own)


class SharedBackend(LibvirtBackend):
    """On one connection for all tests, without events: libvirt opens the driver some twenty times, not more often."""

    def _open_events(self) -> libvirt.virConnect:
        _Events.run()
        return stay_open()

    def _discard(self, connection: libvirt.virConnect, reason: str = "closed") -> Deferred[None]:  # noqa: ARG002
        return succeed(None)


class QemuTests(TestCase):
    """Clones of a Linux guest, by libvirt's driver in this process and QEMU's own network."""

    timeout = 120
    numbers = count(11)  # no two have one name: libvirt's driver lives as long as the process

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect, with a definition whose guests can be cloned."""
        if shutil.which("qemu-system-x86_64") is None:
            raise SkipTest("qemu-system-x86_64 is not installed")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.backend = SharedBackend(f"qemu:///embed?root={root()}")
        self.watcher = contract_backends.Watcher()
        self.backend.connect(self.watcher)
        self.addCleanup(self.backend.close)
        self.addCleanup(lab.stop_qemus, root())
        await self.watcher.until(lambda: self.watcher.connections)
        self.kernel = self.folder / "kernel"
        self.kernel.symlink_to(lab.guest().kernel)
        self.text = clones.definition(kvm=False).replace(str(lab.guest().kernel), str(self.kernel))

    async def made(self, text: str = "", **changes: Any) -> VM:
        """Return another VM of the template, which is defined."""
        number = next(self.numbers)
        machine = made(self.folder, text or self.text, f"vm{number}", **{
            "uuid": str(uuid4()), "ip": (ip_address(f"10.99.0.{number}"),), "backend": "libvirt", **changes,
        })  # fmt: skip
        await self.backend.look_up(machine)
        return machine

    async def call(self, what: str, machine: VM, *arguments: Any) -> Any:
        """Call the method *what* of the backend, for a VM."""
        return await getattr(self.backend, what)(machine.uuid, *arguments)

    async def seed(self, machine: VM) -> None:
        """Keep the image that all VMs of the template start from."""
        await self.backend.keep_image(str(machine.uuid), shared=True)

    async def xml(self, machine: VM, flags: int = 0) -> ElementTree.Element:
        """Return the XML of a domain."""
        text = await self.backend._call(lambda there: there.lookupByUUIDString(machine.uuid).XMLDesc(flags))
        return domain_xml.parse(text)

    async def page(self, machine: VM) -> str:
        """Return the page of a VM, once its guest serves it at its address."""
        port = lab.free_port()
        forward = f"hostfwd_add hostnet0 tcp:{lab.LOOPBACK}:{port}-{machine.ip[0]}:80"
        hmp = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        await self.backend._call(
            lambda there: libvirt_qemu.qemuMonitorCommand(there.lookupByUUIDString(machine.uuid), forward, hmp)
        )
        while True:
            try:
                return await deferToThread(self._get, port)
            except OSError:
                await deferLater(reactor, 0.02)

    @staticmethod
    def _get(port: int) -> str:
        with urlopen(f"http://{lab.LOOPBACK}:{port}/cgi-bin/index.cgi", timeout=1) as page:
            body: bytes = page.read()
        return body.decode()

    async def test_life(self) -> None:
        """The first VM boots; the others are clones of a seed that was made for it, each with its own identity."""
        save, modes = image.save, []

        def saved(domain: libvirt.virDomain, file: Path) -> None:
            modes.append(file.stat().st_mode & 0o777)  # it is there, so that libvirt leaves it to its owner
            save(domain, file)

        self.patch(image, "save", saved)
        first = await self.made()
        self.assertIs(Start.BOOTED, await self.call("start", first))
        await self.call("stop", first, Mode.DESTROY)
        await self.seed(first)
        self.assertEqual({"site.seed", "site.sum"}, {path.name for path in (self.folder / "images").glob("site*")})
        self.assertEqual([0o600], modes)
        made_at = (self.folder / "images/site.seed").stat().st_mtime_ns
        ids: set[str | None] = set()
        others = [await self.made(), await self.made()]
        for machine in others:
            self.assertIs(Start.CLONED, await self.call("start", machine))
            self.assertIn(f"name: {machine.name}\n", await self.page(machine))
            self.assertEqual((mac_of(str(machine.uuid)),), (await self.call("guest", machine)).macs)
            ids.add((await self.xml(machine)).findtext("genid"))
            defined = await self.xml(machine, libvirt.VIR_DOMAIN_XML_INACTIVE)
            ids.add(defined.findtext("genid"))
            devices, live = (one.findall("devices")[0] for one in (defined, await self.xml(machine)))
            self.assertIsNone(domain_xml.difference(devices, live))
        self.assertEqual(4, len(ids), "a generation id is used twice")
        self.assertIs(Start.CLONED, await self.call("start", first))
        self.assertIn(f"name: {first.name}\n", await self.page(first))
        await self.seed(first)
        self.assertEqual(made_at, (self.folder / "images/site.seed").stat().st_mtime_ns)
        self.assertEqual([], list((self.folder / "images").glob("*.clone")))
        await self.call("stop", others[0], Mode.DESTROY)
        prepared = attrs.evolve(others[0], prepare=True)
        await self.backend.look_up(prepared)
        self.assertIs(Start.CLONED, await self.call("start", prepared))
        await self.page(prepared)
        await self.call("prepare", prepared)
        self.assertIs(Power.PREPARED, await self.call("state", prepared))
        self.assertEqual("", await self.call("stale", prepared))
        # Another kernel, another seed.
        self.kernel.unlink()
        shutil.copy(lab.guest().kernel, self.kernel)
        await self.call("stop", first, Mode.DESTROY)
        self.assertIs(Start.BOOTED, await self.call("start", first))
        for machine in (first, *others):
            self.assertTrue((self.folder / "images/site.seed").exists())
            await self.call("stop", machine, Mode.DESTROY)
            await self.backend.remove(machine)
        self.assertEqual([], list((self.folder / "images").iterdir()))

    async def test_not_ready(self) -> None:
        """After a clone that was not ready, the VMs of its template boot, and no seed is made for a while."""
        machine = await self.made()
        await self.seed(machine)
        self.assertIs(Start.CLONED, await self.call("start", machine))
        await self.call("stop", machine, Mode.DESTROY)
        await self.call("drop_image", machine)
        await self.seed(machine)
        self.assertIs(Start.BOOTED, await self.call("start", machine))
        self.patch(clone, "RESTS", 0.0)
        await self.seed(machine)
        await self.call("stop", machine, Mode.DESTROY)
        self.assertIs(Start.CLONED, await self.call("start", machine))

    async def test_killed_before_it_is_whole(self) -> None:
        """A clone without its interface, as Jitsu was killed, is out of date: the next start is that of a whole one."""
        machine = await self.made()
        await self.seed(machine)
        killed = self.patch(libvirt.virDomain, "attachDeviceFlags", mock.Mock(side_effect=RuntimeError("killed")))
        await self.assertFailure(self.backend.start(str(machine.uuid)), RuntimeError)
        killed.restore()
        for reason in (libvirt.VIR_DOMAIN_PAUSED_USER, libvirt.VIR_DOMAIN_PAUSED_MIGRATION):
            state = [libvirt.VIR_DOMAIN_PAUSED, reason]
            patched = self.patch(libvirt.virDomain, "state", lambda _, state=state: state)
            self.assertIs(Power.PREPARED, await self.call("state", machine))
            patched.restore()
        self.assertIn("has changed", await self.call("stale", machine))
        self.assertIs(Start.CLONED, await self.call("start", machine))
        self.assertIs(Power.RUNNING, await self.call("state", machine))
        self.assertIn(f"name: {machine.name}\n", await self.page(machine))

    async def test_host_cannot_now(self) -> None:
        """Where the host cannot start a clone now, that is the start's error, and the seed stays."""
        machine = await self.made()
        await self.seed(machine)
        error = libvirt.libvirtError("no memory")
        error.err = (libvirt.VIR_ERR_NO_MEMORY, libvirt.VIR_FROM_QEMU, "no memory", 2, "", "", "", 0, 0)
        patched = self.patch(libvirt.virDomain, "attachDeviceFlags", mock.Mock(side_effect=error))
        await self.assertFailure(self.backend.start(str(machine.uuid)), BackendError)
        self.assertIs(Power.OFF, await self.call("state", machine))
        patched.restore()
        (self.folder / "images/site.sum").write_bytes(b"\xff")
        self.assertIs(Start.BOOTED, await self.call("start", machine))

    async def test_no_memory_for_a_seed(self) -> None:
        """No seed is made where its host would have no memory left for a start."""
        machine = await self.made()
        mib = lab.guest().memory_mib
        for free, why in ((mib - 1, f"it needs {mib} MiB"), (2 * mib - 1, "too little memory for another start")):
            self.patch(libvirt.virConnect, "getMemoryStats", lambda *_, free=free: {"free": free << 10})
            failed = self.backend.keep_image(str(machine.uuid), shared=True)
            error: Any = await self.assertFailure(cast("Deferred[Any]", failed), BackendError)
            self.assertIn(why, str(error))
        self.assertEqual([], list(self.folder.glob("images/*")))

    async def test_cannot_wait(self) -> None:
        """A guest that does not tell that it waits, or ends without its interface, has no seed; nothing of it runs."""
        for old, new, within, why in (
            ("<genid/>", "", 0.5, "open the channel"), ("jitsu.fwcfg", "jitsu.exit", 60.0, "ended"),
        ):  # fmt: skip
            self.patch(clone, "OPENS_WITHIN", within)
            machine = await self.made(self.text.replace(old, new))
            logged: list[Any] = []
            observer: Any = logged.append
            self.patch(clone, "log", Logger(observer=observer))
            for _ in range(2):  # the second time does nothing
                await self.seed(machine)
                self.assertEqual(["site.sum"], [path.name for path in (self.folder / "images").iterdir()])
                self.assertEqual(0, stay_open().numOfDomains())
                (event,) = logged
                self.assertIn(why, event["why"])

    async def test_no_slot(self) -> None:
        """Where no interface can be plugged in, the VMs of the template boot."""
        text = self.text.replace("machine='pc'", "machine='q35'")
        text = text.replace("<rom enabled='no'/>", "<rom enabled='no'/><address type='pci' bus='0' slot='5'/>")
        machine = await self.made(text)
        await self.seed(machine)
        self.assertIs(Start.BOOTED, await self.call("start", machine))
        self.assertIn(f"name: {machine.name}\n", await self.page(machine))
        self.assertFalse((self.folder / "images/site.seed").exists())

    async def test_disk(self) -> None:
        """The disk of a VM is plugged in, too; the seed has none. A host without space for the copy boots it."""
        layer = Layer(self.folder / "own & mine.img", self.folder / "base.img")
        layer.path.write_bytes(bytes(1 << 20))
        disk = DISK.replace("<target", "<driver name='qemu' type='raw'/><target")
        machine = await self.made(self.text.replace("<channel", f"{disk}<channel"), layer=layer)
        await self.seed(machine)
        full = self.patch(clone, "_copy", mock.Mock(side_effect=OSError(ENOSPC, "No space left on device")))
        self.assertIs(Start.BOOTED, await self.call("start", machine))
        await self.call("stop", machine, Mode.DESTROY)
        full.restore()
        self.assertIs(Start.CLONED, await self.call("start", machine))
        found = (await self.xml(machine)).findall("./devices/disk/source")
        self.assertEqual([str(layer.path)], [source.get("file") for source in found])
        self.assertIn(f"name: {machine.name}\n", await self.page(machine))
