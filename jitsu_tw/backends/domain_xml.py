"""
What a libvirt domain's XML tells of it. Everything here is pure: no hypervisor is asked.

The same functions serve a `define` file and the XML that libvirt gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The namespace of QEMU's own arguments in a domain (https://libvirt.org/drvqemu.html, pass-through of arguments).
QEMU: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}"

#: Kinds of `<domain>` that QEMU runs.
_QEMUS: Final = frozenset({"kvm", "qemu", "hvf"})

#: Kinds of `<interface>` whose packets pass nothing that libvirt counts.
_UNCOUNTED: Final = {"user": "user network", "hostdev": "SR-IOV", "vdpa": "vDPA"}

#: Kinds of `<hostdev>` of which libvirt can save no state (qemuMigrationSrcIsAllowedHostdev).
_FIXED: Final = frozenset({"pci", "mdev", "scsi_host"})


def parse(xml: str) -> ElementTree.Element:
    """
    Return the root of a domain's XML.

    Raises:
        ElementTree.ParseError: it is no XML.
    """
    return ElementTree.fromstring(xml)  # noqa: S314 -- the operator's, or libvirt's


def definition(xml: str, uuid: str | None) -> str:
    """Return a definition with that uuid, if it has none of its own; with another it is libvirt's to refuse."""
    root = parse(xml)
    if uuid is None or root.find("uuid") is not None:
        return xml
    ElementTree.SubElement(root, "uuid").text = uuid
    return ElementTree.tostring(root, encoding="unicode")


def qemu_arguments(root: ElementTree.Element) -> tuple[str, ...]:
    """Return the arguments that the domain gives to QEMU beside what libvirt makes of it."""
    return tuple(one.get("value", "") for one in root.findall(f"./{QEMU}commandline/{QEMU}arg"))


def can_exit(root: ElementTree.Element) -> bool:
    """Return whether the guest can end QEMU by itself without ACPI: by the port of isa-debug-exit."""
    return any("isa-debug-exit" in argument for argument in qemu_arguments(root))


def uncounted(root: ElementTree.Element) -> Iterator[str]:
    """Yield the interfaces of a domain whose packets nobody counts, as an operator would call them."""
    for interface in root.findall("./devices/interface"):
        kind = interface.get("type", "")
        if kind in _UNCOUNTED:
            mac = interface.find("mac")
            yield f"{'' if mac is None else mac.get('address', '')} ({_UNCOUNTED[kind]})".strip()
    for device in root.findall("./devices/hostdev"):
        if device.get("type") == "net":
            yield "a network device of the host"
        elif device.get("type") == "pci":
            yield f"{pci_address(device)} (a PCI device of the host, which may be a network card)"
    arguments = qemu_arguments(root)
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option = before.lstrip("-") if before.startswith("-") else ""
        if (option in {"netdev", "nic", "net"} and argument != "none") or (
            option == "device" and ("netdev" in argument or argument.startswith("vfio-pci"))
        ):
            yield f"-{option} {argument} (on QEMU's command line)"


def pci_address(device: ElementTree.Element) -> str:
    """Return the address of a PCI device of the host, ``0000:01:00.0``."""
    where = device.find("./source/address")
    parts = [0 if where is None else int(where.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function")]
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*parts)


def unsavable(root: ElementTree.Element) -> str | None:
    """Return why the memory of a domain's guest cannot be saved to a file; None if its XML tells nothing against it."""
    for device in root.findall("./devices/hostdev"):
        if device.get("type") in _FIXED or device.get("mode") == "capabilities":
            return f"it has a device of the host ({device.get('type')})"
    for interface in root.findall("./devices/interface"):
        if interface.get("type") in {"hostdev", "vdpa"}:
            return f"it has an interface that is a device of the host ({_UNCOUNTED[interface.get('type', '')]})"
    for disk in root.findall("./devices/disk"):
        if disk.get("type") in {"nvme", "vhostuser", "vhostvdpa"}:
            return f"it has a disk of the type {disk.get('type')}"
    for share in root.findall("./devices/filesystem"):
        driver = share.find("driver")
        if driver is not None and driver.get("type") == "virtiofs":
            return "it shares a directory by virtiofs"
    if root.find("./devices/shmem") is not None:
        return "it has memory that it shares (shmem)"
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("migratable") == "off":
        return "its CPU is not migratable (migratable='off')"
    if root.find("./cpu/feature[@name='invtsc'][@policy='require']") is not None:
        return "its CPU has invtsc, which cannot be saved"
    if any(argument.startswith("vfio-pci") for argument in qemu_arguments(root)):
        return "it has a device of the host (vfio-pci, on QEMU's command line)"
    return None


def advice(root: ElementTree.Element) -> tuple[str, ...]:
    """Return what an operator should read about a domain that is defined so."""
    found = []
    if root.get("type") in _QEMUS and _cannot_tell_end(root):
        found.append(
            "nothing ends QEMU when its guest exits or crashes, so that the VM stays up; give it isa-debug-exit, as"
            " the examples in conf/ do, or, for Linux, <panic model='isa'/>"
        )
    found += [
        f"nobody counts the packets of its interface {name}; Jitsu cannot tell by them whether it is used"
        for name in uncounted(root)
    ]
    return tuple(found)


def _cannot_tell_end(root: ElementTree.Element) -> bool:
    """Return whether a guest of QEMU that exits, or one that is booted from a kernel and crashes, is not noticed."""
    kind = root.find("./os/type")
    if kind is None or kind.get("arch", "x86_64") not in {"x86_64", "i686"} or can_exit(root):
        return False
    if root.find("./features/acpi") is None:
        return True
    return root.find("./os/kernel") is not None and root.find("./devices/panic") is None
