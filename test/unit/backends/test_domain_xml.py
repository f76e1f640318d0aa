"""What a libvirt domain's XML tells, and what an image of its guest depends on. No hypervisor is asked."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Final
from unittest.mock import Mock
from xml.etree import ElementTree

import libvirt
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import backing, domain_xml, image
from jitsu_tw.backends.domain_xml import parse

QEMU: Final = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
EXIT: Final = "-device isa-debug-exit"


def domain(devices: str = "", arguments: str = "", head: str = "", kind: str = "kvm") -> str:
    """Return a domain with *devices*, with words of QEMU's command line, and with *head* outside of its devices."""
    words = "".join(f"<qemu:arg value='{word}'/>" for word in arguments.split())
    return (
        f"<domain type='{kind}' {QEMU}><name>x</name><os><type arch='x86_64' machine='pc'>hvm</type></os>"
        f"<features><acpi/></features>{head}<devices>{devices}</devices>"
        f"<qemu:commandline>{words}</qemu:commandline></domain>"
    )


class TellingTests(SynchronousTestCase):
    """What nobody counts, what cannot be saved, what an operator should read."""

    def test_uncounted(self) -> None:
        """Interfaces that libvirt does not count are found wherever they stand; those that it counts are not."""
        for devices, arguments, words in (
            ("<interface type='user'><mac address='52:54:00:00:00:01'/></interface>", "", "52:54:00:00:00:01 (user"),
            ("<interface type='hostdev'/>", "", "SR-IOV"),
            ("<interface type='vdpa'/>", "", "vDPA"),
            ("<interface type='bridge'/><interface type='user'/>", "", "user network"),
            ("<hostdev mode='capabilities' type='net'/>", "", "network device"),
            ("", "-netdev user,id=a -device virtio-net-pci,netdev=a", "-netdev user,id=a"),
            ("", "-nic tap", "-nic tap"),
            ("", "--net nic --net tap", "-net tap"),
            ("", "-device vfio-pci,host=01:00.0", "vfio-pci"),
        ):
            found = list(domain_xml.uncounted(parse(domain(devices, arguments))))
            self.assertEqual(1, len(found), (devices, arguments))
            self.assertIn(words, found[0])
        for devices, arguments in (
            ("<interface type='bridge'/><interface type='network'/><interface type='direct'/>", ""),
            ("<hostdev mode='subsystem' type='usb'/>", ""),
            ("", "-nic none -device isa-debug-exit -device virtio-rng-pci"),
        ):
            self.assertEqual([], list(domain_xml.uncounted(parse(domain(devices, arguments)))))

    def test_pci_devices(self) -> None:
        """PCI devices of the host have libvirt's names."""
        address = "<source><address domain='0x0000' bus='0x0a' slot='0x1f' function='0x7'/></source>"
        root = parse(domain(f"<hostdev mode='subsystem' type='pci'>{address}</hostdev>"))
        self.assertEqual(["pci_0000_0a_1f_7"], list(domain_xml.pci_devices(root)))

    def test_unsavable(self) -> None:
        """What libvirt or QEMU refuses to save is known beforehand; what they save is not refused."""
        transient = "<teaming type='transient' persistent='a'/>"
        tsc = "<cpu><feature policy='require' name='invtsc'/></cpu>"
        for devices, head in (
            ("<hostdev mode='subsystem' type='pci'/>", ""),
            ("<hostdev mode='subsystem' type='mdev'/>", ""),
            ("<hostdev mode='capabilities' type='storage'/>", ""),
            ("<interface type='hostdev'/>", ""),
            ("<interface type='vdpa'/>", ""),
            ("<disk type='nvme'/>", ""),
            ("<disk type='file'><transient/></disk>", ""),
            ("<filesystem type='mount'><driver type='virtiofs'/></filesystem>", ""),
            ("<shmem name='a'/>", ""),
            ("<shmem name='a' role='peer'/>", ""),
            ("", "<cpu mode='host-passthrough' migratable='off'/>"),
            ("", "<launchSecurity type='sev'/>"),
            ("", tsc),
        ):
            self.assertIsNotNone(domain_xml.unsavable(parse(domain(devices, "", head))), (devices, head))
        self.assertIsNotNone(domain_xml.unsavable(parse(domain("", "-device vfio-pci,host=01:00.0"))))
        for devices, head in (
            ("<hostdev mode='subsystem' type='usb'/>", ""),
            (f"<hostdev mode='subsystem' type='pci'>{transient}</hostdev>", ""),
            (f"<interface type='hostdev'>{transient}</interface>", ""),
            ("<shmem name='a' role='master'/>", ""),
            ("<disk type='file'/><interface type='bridge'/>", "<cpu mode='host-passthrough' migratable='on'/>"),
            ("", f"{tsc}<clock><timer name='tsc' frequency='2000000000'/></clock>"),
        ):
            self.assertIsNone(domain_xml.unsavable(parse(domain(devices, "", head))), (devices, head))

    def test_end_is_not_noticed(self) -> None:
        """A guest of QEMU that cannot end it, or whose crash nobody sees, is told of; one that can is not."""
        kernel = domain().replace("</os>", "<kernel>/k</kernel></os>")
        for xml, told in (
            (kernel, True),
            (domain().replace("<acpi/>", ""), True),
            (kernel.replace("type='kvm'", "type='qemu'"), True),
            (kernel.replace("<devices>", "<devices><panic model='isa'/>"), False),
            (domain("", EXIT).replace("<acpi/>", ""), False),
            (domain("", EXIT).replace("</os>", "<kernel>/k</kernel></os>"), False),
            (domain(), False),
            (kernel.replace("type='kvm'", "type='xen'"), False),
            (kernel.replace("x86_64", "aarch64"), False),
        ):
            self.assertEqual(told, any("nothing ends QEMU" in one for one in domain_xml.advice(parse(xml))), xml)


class CpuTests(SynchronousTestCase):
    """Whether libvirt asks QEMU for each feature of a CPU, and when it need not."""

    LINES = f"<qemu:capabilities><qemu:del capability='{domain_xml.CPU_QUESTIONS}'/></qemu:capabilities>"

    def test_left_out(self) -> None:
        """Where libvirt does nothing by the answers, a definition of Jitsu's leaves the questions out."""
        for head in (
            "",
            "<cpu mode='host-passthrough'/>",
            "<cpu mode='host-passthrough' check='none' migratable='on'/>",
            "<cpu mode='maximum'/>",
            "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>",
            "<cpu><topology sockets='1' cores='2' threads='1'/></cpu>",
        ):
            for kind in ("kvm", "qemu"):
                root = parse(domain(head=head, kind=kind))
                self.assertTrue(domain_xml.asks_cpu(root))
                self.assertEqual(domain_xml.SLOW, domain_xml.slow(root), head)
                defined = parse(domain_xml.definition(domain(head=head, kind=kind), None))
                self.assertFalse(domain_xml.asks_cpu(defined), head)
                self.assertIsNone(domain_xml.slow(defined))
                self.assertIsNone(domain_xml.difference(root, defined))

    def test_needed(self) -> None:
        """Where a saved guest could not be restored, or would not start, they stay; advice names another CPU."""
        for head in (
            "<cpu mode='host-model'/>",
            "<cpu mode='custom' match='exact'><model>Cooperlake</model></cpu>",
            "<cpu mode='host-passthrough'><feature policy='require' name='rdctl-no'/></cpu>",
            "<cpu mode='host-passthrough' check='full'/>",
            "<cpu mode='host-passthrough'/><features><hyperv><relaxed state='on'/></hyperv></features>",
            "<features><pvspinlock state='on'/></features>",
        ):
            defined = parse(domain_xml.definition(domain(head=head), None))
            self.assertTrue(domain_xml.asks_cpu(defined), head)
            self.assertEqual(domain_xml.SLOW_CPU, domain_xml.slow(defined), head)

    def test_of_the_file(self) -> None:
        """A file with capabilities of its own is left as it is, whatever they are."""
        for own in ("<qemu:capabilities/>", "<qemu:capabilities><qemu:add capability='a'/></qemu:capabilities>"):
            text = domain().replace("</domain>", f"{own}</domain>")
            defined = parse(domain_xml.definition(text, None))
            self.assertEqual(1, len(defined.findall(f"./{domain_xml.QEMU}capabilities")))
            self.assertEqual(domain_xml.SLOW, domain_xml.slow(defined))
        lines = domain().replace("</domain>", f"{self.LINES}</domain>")
        self.assertIsNone(domain_xml.slow(parse(lines)))
        defined = parse(domain_xml.definition(lines, None))
        self.assertEqual(1, len(defined.findall(f"./{domain_xml.QEMU}capabilities/*")))

    def test_nobody_asks(self) -> None:
        """Other hypervisors and architectures are not asked, and get no such lines."""
        for text in (
            domain(kind="xen"),
            domain(kind="test"),
            domain().replace("x86_64", "aarch64"),
            domain().replace("<os><type arch='x86_64' machine='pc'>hvm</type></os>", ""),
        ):
            self.assertIsNone(domain_xml.slow(parse(text)))
            self.assertNotIn("capabilities", domain_xml.definition(text, None))

    def test_defined_before(self) -> None:
        """A domain that was defined by the same file without the lines is defined anew; one with them is not."""
        text = domain()
        digest = hashlib.sha256(text.encode()).hexdigest()
        before = f"<metadata><file xmlns='{domain_xml.NAMESPACE}' sha256='{digest}'/></metadata>"
        root = parse(text.replace("</name>", f"</name>{before}"))
        now = parse(domain_xml.definition(text, None))
        self.assertEqual([False, True], [domain_xml.is_defined_by(text, one) for one in (root, now)])

    def test_marked(self) -> None:
        """A domain of another program, as the file says, is followed; it is defined anew if it lacks the lines."""
        for text, defined_so in (
            (domain(), False),
            (domain().replace("</domain>", f"{self.LINES}</domain>"), True),
            (domain(kind="xen"), True),
        ):
            root = parse(text)
            element = parse(domain_xml.mark(text, root))
            element.tag = f"{{{domain_xml.NAMESPACE}}}{element.tag}"
            ElementTree.SubElement(root, "metadata").append(element)
            self.assertIs(defined_so, domain_xml.is_defined_by(text, root))


class DefinitionTests(SynchronousTestCase):
    """What is defined, and how it is known again."""

    TEXT = (
        f"<domain type='kvm' {QEMU}><name>x</name>"
        "<qemu:commandline><qemu:arg value='-s'/></qemu:commandline></domain>"
    )

    def test_definition(self) -> None:
        """A file is defined with a uuid if it has none, with a sum of what it says, and with all that it says."""
        defined = parse(domain_xml.definition(self.TEXT, "the uuid"))
        self.assertEqual("the uuid", defined.findtext("uuid"))
        self.assertEqual(("-s",), domain_xml.qemu_arguments(defined))
        self.assertTrue(domain_xml.is_defined_by(self.TEXT, defined))
        found = [domain_xml.is_defined_by(f"{self.TEXT} ", one) for one in (defined, parse(self.TEXT))]
        self.assertEqual([False, None], found)
        own = self.TEXT.replace("</name>", "</name><uuid>own</uuid><metadata><a xmlns='urn:a'/></metadata>")
        defined = parse(domain_xml.definition(own, "the uuid"))
        self.assertEqual(["own"], [one.text for one in defined.findall("uuid")])
        self.assertEqual(2, len(defined.findall("./metadata/*")))

    def test_no_difference(self) -> None:
        """What libvirt adds, and how it writes memory, machines and MACs, is no difference."""
        wanted = parse(
            "<domain type='kvm'><name>x</name><!-- a note --><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk><target dev='vda'/></disk>"
            "<disk><target dev='vdb'/></disk><interface><mac address='52:54:00:AA:BB:CC'/></interface>"
            "</devices></domain>"
        )
        found = parse(
            "<domain type='kvm' id='7'><uuid>u</uuid><name>x</name><memory unit='KiB'>65536</memory>"
            "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os><devices>"
            "<disk><target dev='vdb' bus='virtio'/></disk><disk><target dev='vda'/></disk><controller/>"
            "<interface><mac address='52:54:00:aa:bb:cc'/><address type='pci'/></interface></devices></domain>"
        )
        self.assertIsNone(domain_xml.difference(wanted, found))
        machine = parse("<type machine='pc'/>")
        self.assertIsNone(domain_xml.difference(machine, parse("<type machine='pc-i440fx-7.2'/>")))

    def test_difference(self) -> None:
        """What a definition says and libvirt has not is named by its place."""
        found = parse("<domain><a b='1' unit='KiB'>65536</a><os><type machine='pc-q35-7.2'>hvm</type></os></domain>")
        for wanted, where in (
            ("<a>1</a>", "a"),
            ("<a b='2' unit='KiB'>65536</a>", "a/@b"),
            ("<a c='1' unit='KiB'>65536</a>", "a/@c"),
            ("<a unit='MiB'>65</a>", "a"),
            ("<c/>", "c"),
            ("<a unit='KiB'>65536</a><a unit='KiB'>65536</a>", "a"),
            ("<os><type machine='pc'>hvm</type></os>", "os/type/@machine"),
            ("<os><type machine='q3'>hvm</type></os>", "os/type/@machine"),
        ):
            self.assertEqual(where, domain_xml.difference(parse(f"<domain>{wanted}</domain>"), found), wanted)


class Saving:
    """A domain that is saved."""

    def __init__(self, code: int | None) -> None:
        """Refuse the format by an error with that *code*, if there is one."""
        self.code, self.parameters, self.files = code, dict[str, str](), list[str]()

    def saveParams(self, parameters: dict[str, str]) -> None:  # noqa: N802 -- libvirt's
        """Note the parameters, and fail as told."""
        self.parameters = parameters
        if self.code is not None:
            error = libvirt.libvirtError("no")
            error.err = (self.code, 0, "as it was told to", 2, "", "", "", 0, 0)
            raise error

    def save(self, file: str) -> None:
        """Note the file."""
        self.files.append(file)


def qcow2(backing: str = "", kind: str = "", data: str = "", version: int = 3) -> bytes:
    """Return the header of an image file that backs on a file of a format, and has its data in another one."""
    length = 104 if version > 2 else 72
    extensions = b""
    for number, text in ((0xE2792ACA, kind), (0x44415441, data)):
        if text:
            octets = text.encode()
            extensions += struct.pack(">II", number, len(octets)) + octets + bytes(-len(octets) % 8)
    offset = length + len(extensions) + 8 if backing else 0
    header = struct.pack(">4sIQI", b"QFI\xfb", version, offset, len(backing))
    header += bytes(100 - len(header)) + struct.pack(">I", length) if version > 2 else bytes(72 - len(header))
    return header + extensions + bytes(8) + backing.encode()


class ImageTests(SynchronousTestCase):
    """What rules an image of a ready guest out, and what an image depends on."""

    def setUp(self) -> None:
        """Make a folder for disks."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def why(self, devices: str = "", arguments: str = "", head: str = "") -> str | None:
        """Return why a domain with *devices* can have no image."""
        return image.obstacle(parse(domain(devices, arguments, head)))

    def test_disks(self) -> None:
        """A disk that may be written to, or that is no file here, rules an image out."""
        for disk, words in (
            ("<source file='/a'/>", "can be written to"),
            ("<source protocol='rbd' name='a'/>", "(on a network) can be written to"),
            ("<source protocol='rbd'/><readonly/>", "(on a network) is no file"),
            ("<source dev='/dev/a'/><readonly/>", "/dev/a is no file"),
            ("<source pool='a' volume='b'/><readonly/>", "is no file"),
            ("<source file='/a'/><backingStore><source dev='/dev/b'/></backingStore><readonly/>", "is no file"),
            ("<driver type='vmdk'/><source file='/a'/><readonly/>", "is a vmdk"),
        ):
            self.assertIn(words, str(self.why(f"<disk type='file'>{disk}</disk>")), disk)
        for fine in (
            "<source file='/a'/><readonly/>",
            "<driver type='qcow2'/><source file='/a'/><readonly/>",
            "<target dev='sda'/>",
        ):
            self.assertIsNone(self.why(f"<disk type='file'>{fine}</disk>"), fine)
        self.assertIsNone(self.why("<disk type='file' device='cdrom'><source file='/a'/></disk>"))

    def test_state_elsewhere(self) -> None:
        """Whatever keeps state outside of the guest's memory rules an image out, also what nobody has thought of."""
        for devices in (
            "<filesystem><source dir='/srv'/></filesystem>",
            "<filesystem><source dir='/srv'/><readonly/></filesystem>",
            "<memory model='nvdimm'/>",
            "<memory model='virtio-pmem'/>",
            "<shmem name='a' role='master'/>",
            "<tpm model='tpm-tis'/>",
            "<hostdev mode='subsystem' type='usb'/>",
            "<interface type='hostdev'/>",
            "<redirdev bus='usb'/>",
            "<smartcard mode='host'/>",
            "<lease/>",
            "<input type='evdev'/>",
            "<input type='passthrough'/>",
            "<nobody-has-thought-of/>",
        ):
            self.assertIsNotNone(self.why(devices), devices)
        for head in (
            "<memoryBacking><access mode='shared'/></memoryBacking>",
            "<launchSecurity type='sev'/>",
            "<cpu migratable='off'/>",
        ):
            self.assertIsNotNone(self.why(head=head), head)
        for change in (("</os>", "<nvram>/n</nvram></os>"), ("<os>", "<os firmware='efi'>")):
            self.assertIn("firmware", str(image.obstacle(parse(domain().replace(*change)))))
        for arguments in ("-drive file=/a", "-virtfs local,path=/a", "-object memory-backend-file,mem-path=/a"):
            self.assertIn("command line", str(self.why("", arguments)))

    def test_no_state_elsewhere(self) -> None:
        """What an ordinary guest has does not."""
        devices = (
            "<emulator>/q</emulator><controller type='usb'/><interface type='bridge'/><serial type='pty'/>"
            "<console type='pty'/><channel type='unix'/><input type='tablet'/><graphics type='vnc'/><video/>"
            "<memballoon model='virtio'/><rng model='virtio'/><watchdog/><panic model='isa'/><memory model='dimm'/>"
        )
        self.assertIsNone(self.why(devices, EXIT))

    def test_sparse(self) -> None:
        """An image is sparse where libvirt and QEMU have that; where they refuse it, it is as before."""
        for code, saved in (
            (None, False),
            (libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, True),
            (libvirt.VIR_ERR_NO_SUPPORT, True),
            (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, True),
        ):
            saving = Saving(code)
            image.save(saving, self.folder / "image")
            self.assertEqual({"file": str(self.folder / "image"), "image_format": "sparse"}, saving.parameters)
            self.assertEqual([str(self.folder / "image")] if saved else [], saving.files)
        saving = Saving(libvirt.VIR_ERR_OPERATION_FAILED)
        self.assertRaises(libvirt.libvirtError, image.save, saving, self.folder / "image")
        self.assertEqual([], saving.files)

    def write(self, name: str, octets: bytes = b"") -> Path:
        """Write a file in the folder."""
        path = self.folder / name
        path.write_bytes(octets)
        return path

    def test_chain(self) -> None:
        """A disk is all files behind it: those that it backs on, and data files, in both versions of the format."""
        for version in (2, 3):
            base = self.write("base", b"raw")
            middle = self.write("middle", qcow2("base", "raw", version=version))
            top = self.write("top", qcow2(str(middle), "qcow2", data="" if version == 2 else "data", version=version))
            expected = [str(one) for one in (top, middle, base)]
            if version == 3:
                expected.insert(1, str(self.folder / "data"))
            self.assertEqual(expected, list(backing.chain(top, "qcow2")))
            self.assertEqual([str(top)], list(backing.chain(top, "raw")))

    def test_hidden_chain(self) -> None:
        """What is below a disk that its guest writes to may be hidden from Jitsu; another one must not be."""
        top = self.write("top", qcow2("base", "raw"))
        disk = f"<disk type='file'><driver type='qcow2'/><source file='{top}'/>{{}}</disk>"
        self.patch(Path, "open", Mock(side_effect=PermissionError(13, "Permission denied", str(top))))
        self.assertEqual([str(top)], list(image._named(parse(domain(disk.format(""))), writable=True)))
        with self.assertRaises(PermissionError):
            list(image._named(parse(domain(disk.format("<readonly/>"))), writable=True))

    def test_chain_of_unknown_format(self) -> None:
        """Where the format of a file behind a disk is not said, it is looked into."""
        base = self.write("base", b"raw" * 100)
        middle = self.write("middle", qcow2("base"))
        top = self.write("top", qcow2("middle"))
        self.assertEqual([str(one) for one in (top, middle, base)], list(backing.chain(top, "qcow2")))

    def test_odd_chains(self) -> None:
        """A circle has an end; where a file is missing or on a network there is an error, and so no image."""
        circle = self.write("circle", qcow2("circle", "qcow2"))
        self.assertEqual([str(circle)] * 2, list(backing.chain(circle, "qcow2")))
        for octets in (qcow2("nbd://host/disk"), qcow2("json:{}"), qcow2("missing")):
            self.assertRaises(OSError, list, backing.chain(self.write("odd", octets), "qcow2"))
        self.assertEqual(1, len(list(backing.chain(self.write("short", b"QFI"), "qcow2"))))
