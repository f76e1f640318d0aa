"""
The XML that defines a libvirt domain. Everything here is pure: no hypervisor is asked.

The same functions serve a `define` file and the XML that libvirt gives.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The namespace of QEMU's own arguments in a domain (https://libvirt.org/drvqemu.html, pass-through of arguments).
QEMU: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}"

#: The namespace of what Jitsu writes into a domain's metadata.
NAMESPACE: Final = "urn:jitsu:definition"

#: Units of memory in octets (https://libvirt.org/formatdomain.html, memory allocation).
_UNITS: Final = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20, "GB": 10**9,
    "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40,
}  # fmt: skip

#: An amount of memory, as far as it can be one.
_AMOUNT: Final = re.compile("[0-9]{1,18}")

#: A comment, or another part of XML that may have what looks like one.
_COMMENT: Final = re.compile(r"<!--.*?(?:-->|\Z)|(?P<other><!\[CDATA\[.*?(?:\]\]>|\Z))", re.DOTALL)

#: Kinds of `<domain>` that QEMU runs.
_QEMUS: Final = frozenset({"kvm", "qemu", "hvf"})

#: The architectures whose CPUs libvirt checks feature by feature.
_X86: Final = frozenset({"x86_64", "i686"})

#: The name of libvirt's capability that makes it ask QEMU for each feature of a virtual CPU when it starts a domain, in
#: some 400 calls, which take longer than all else. Without it, libvirt asks in three calls, for all but those in MSRs
#: (qemuProcessFetchGuestCPU in its source, the same in 9.0 and 11.3).
CPU_QUESTIONS: Final = "cpu-unavailable-features"

#: Kinds of `<cpu>` for which libvirt does nothing by the answers (virCPUUpdateLive), and models without features in
#: MSRs. Another model may have such features, which libvirt would take for switched off: it would neither restore a
#: saved guest nor let it migrate (qemuProcessStartValidate).
_PLAIN_MODES: Final = frozenset({"host-passthrough", "maximum"})
_PLAIN_MODELS: Final = frozenset({"kvm32", "kvm64", "qemu32", "qemu64"})

#: What makes libvirt need the answers: features of the CPU by name, those of Hyper-V and KVM, a complete check.
_NEEDS_ANSWERS: Final = ("./cpu/feature", "./cpu[@check='full']", "./features/hyperv", "./features/pvspinlock")

#: Advice about slow starts: for a CPU that libvirt need not ask for, and for another one.
_ASKED: Final = "libvirt asks QEMU for each feature of its CPU when it starts, most of the time that libvirt takes; "
SLOW: Final = (
    f"{_ASKED}give it <qemu:del capability='{CPU_QUESTIONS}'/>, as the examples in conf/ do, or let Jitsu"
    " define it (define)"
)
SLOW_CPU: Final = (
    f"{_ASKED}that can be left out with <cpu mode='host-passthrough'/> and no features by name, as in conf/, but then"
    " it migrates between hosts with the same CPU only"
)

#: Kinds of `<interface>` whose packets pass nothing that libvirt counts.
_UNCOUNTED: Final = {"user": "user network", "hostdev": "SR-IOV", "vdpa": "vDPA"}

#: Advice about a guest whose end is not noticed.
NO_END: Final = (
    "nothing ends QEMU when its guest exits or crashes, so that the VM stays up; give it isa-debug-exit, as the"
    " examples in conf/ do, or, for Linux, <panic model='isa'/>"
)

#: Advice about an interface whose packets are not counted.
NOT_COUNTED: Final = "nobody counts the packets of its interface {}; Jitsu cannot tell by them whether it is used"

#: What in a domain keeps its guest's memory from being saved, and why.
_UNSAVABLE: Final = {
    "./devices/disk[@type='nvme']": "it has an NVMe drive of the host",
    "./devices/disk[@type='vhostvdpa']": "it has a disk by vDPA",
    "./devices/disk/transient": "it has a transient disk",
    "./devices/filesystem/driver[@type='virtiofs']": "it shares a directory by virtiofs",
    "./cpu[@migratable='off']": "its CPU is not migratable (migratable='off')",
    "./launchSecurity": "its memory is encrypted (launchSecurity)",
}


# Else ElementTree would call it ns0, which is right, and hard to read.
ElementTree.register_namespace("qemu", QEMU.strip("{}"))
ElementTree.register_namespace("jitsu", NAMESPACE)


def parse(xml: str) -> ElementTree.Element:
    """
    Return the root of a domain's XML.

    Raises:
        ElementTree.ParseError: it is no XML.
    """
    return ElementTree.fromstring(xml)  # noqa: S314 -- the operator's, or libvirt's


def parse_file(xml: str, file: Path) -> ElementTree.Element:
    """
    Return the root element of *xml*, the content of an operator's *file*.

    Raises:
        BackendError: it is no XML.
    """
    try:
        return parse(xml)
    except ElementTree.ParseError as error:
        raise BackendError(f"{file} is not XML: {error}") from error


def escaped(text: str) -> str:
    """Return *text* as it is written in XML, also in an attribute."""
    return escape(text, {"'": "&apos;", '"': "&quot;"})


def uncommented(text: str) -> str:
    """Return the XML *text* without comments, which may not have the ``--`` of an encoded label (``xn--…``)."""
    return _COMMENT.sub(lambda found: found["other"] or "", text)


def shared_by_all(text: str) -> Iterator[str]:
    """Yield advice about what all VMs of a template have alike, and each should have of its own; *text* is its file."""
    try:
        root = parse(text)
    except ElementTree.ParseError:  # it becomes XML when it is filled in
        return
    for mac in root.findall("./devices/interface/mac"):
        if "$" not in mac.get("address", "$"):
            yield f"all its VMs would have the MAC {mac.get('address')}; write ${{mac}} instead"
    for disk in root.findall("./devices/disk"):
        source = disk.find("source")
        path = "$" if source is None else source.get("file") or source.get("dev") or "$"
        if "$" not in path and is_writable(disk) and disk.find("shareable") is None:
            yield f"all its VMs would write to {path}; give it <readonly/>, or its VMs a disk of their own (disk)"


def is_writable(disk: ElementTree.Element) -> bool:
    """Return whether the guest may write to a disk."""
    return disk.find("readonly") is None and disk.get("device") != "cdrom"


def check_definition(octets: bytes, name: str) -> None:
    """
    Check that the *octets* of a `define` file are the XML of a domain of that *name*.

    Raises:
        ValueError: they are not; the message goes behind the file's path.
    """
    try:
        root = ElementTree.fromstring(octets)  # noqa: S314 -- the operator's
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: of its encoding
        raise ValueError(f"is not XML: {error}") from error
    found = (root.findtext("name") or "").strip()
    if root.tag != "domain" or found != name:
        raise ValueError(f"should define a domain with the name {name!r}, not {found or root.tag!r}")


def definition(text: str, uuid: str | None) -> str:
    """
    Return the XML to define for a file with *text*: with *uuid*, if it has none itself, and with its digest.

    libvirt refuses another uuid than the file's. Where it is safe, libvirt is kept from asking for the CPU's features
    (`CPU_QUESTIONS`); a file with capabilities of its own is left as it is.
    """
    root = parse(text)
    added = _adds(root)
    if added:
        capabilities = ElementTree.SubElement(root, f"{QEMU}capabilities")
        ElementTree.SubElement(capabilities, f"{QEMU}del", capability=CPU_QUESTIONS)
    if uuid is not None and root.find("uuid") is None:
        ElementTree.SubElement(root, "uuid").text = uuid
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ElementTree.SubElement(root, "metadata")
    ElementTree.SubElement(metadata, f"{{{NAMESPACE}}}file", sha256=_digest(text, added=added))
    return ElementTree.tostring(root, encoding="unicode")


def mark(text: str, root: ElementTree.Element) -> str:
    """Return the element for the metadata of the domain *root*, which is as a file with *text* says, not by Jitsu."""
    return f"<file sha256='{_digest(text, added=_adds(parse(text)) and not asks_cpu(root))}'/>"


def _digest(text: str, *, added: bool) -> str:
    """Return the sha256 of a file's *text*, and of what Jitsu has *added*: another one is another definition."""
    return hashlib.sha256((text + CPU_QUESTIONS * added).encode()).hexdigest()


def is_defined_by(text: str, root: ElementTree.Element) -> bool | None:
    """Return whether the domain *root* was defined by a file with *text*; None if by no file of Jitsu's."""
    found = root.find(f"./metadata/{{{NAMESPACE}}}file")
    return None if found is None else found.get("sha256") == _digest(text, added=_adds(parse(text)))


def difference(wanted: ElementTree.Element, found: ElementTree.Element, where: str = "") -> str | None:
    """
    Return where *found*, a domain of libvirt's, lacks what *wanted*, a definition, has; None if it lacks nothing.

    What libvirt adds by itself (addresses, defaults) is no difference.
    """
    for name, value in wanted.attrib.items():
        if name != "unit" and not _same(found.get(name), value):
            return f"{where}@{name}"
    if not _same(_text(found), _text(wanted)):
        return where.rstrip("/")
    left = list(found)
    for one in wanted:
        if not isinstance(one.tag, str) or one.tag in {"metadata", "uuid"}:
            continue
        there = next((other for other in left if other.tag == one.tag and difference(one, other) is None), None)
        if there is None:
            alike = [other for other in left if other.tag == one.tag]
            path = f"{where}{one.tag.rpartition('}')[2]}/"
            return (difference(one, alike[0], path) if len(alike) == 1 else None) or path.rstrip("/")
        left.remove(there)
    return None


def _text(element: ElementTree.Element) -> str:
    """Return an element's own text; an amount of memory in KiB, as libvirt writes it."""
    text = (element.text or "").strip()
    unit = element.get("unit", "")
    return str(int(text) * _UNITS[unit] // 1024) if unit in _UNITS and _AMOUNT.fullmatch(text) else text


def _same(found: str | None, wanted: str) -> bool:
    """Return whether libvirt means *wanted* by *found*: it writes keywords small, and a machine type in full."""
    return found is not None and (
        found.lower() == wanted.lower()
        or re.fullmatch(rf"pc-(i440fx-|{re.escape(wanted)}-)[0-9.]+", found) is not None
    )


def qemu_arguments(root: ElementTree.Element) -> tuple[str, ...]:
    """Return the arguments that the domain gives to QEMU itself."""
    return tuple(one.get("value", "") for one in root.findall(f"./{QEMU}commandline/{QEMU}arg"))


def can_exit(root: ElementTree.Element) -> bool:
    """Return whether the guest can end QEMU by itself without ACPI: by the port of isa-debug-exit."""
    return any("isa-debug-exit" in argument for argument in qemu_arguments(root))


def uncounted(root: ElementTree.Element) -> Iterator[str]:
    """Yield the interfaces of a domain whose packets are not counted, as an operator would name them."""
    for interface in root.findall("./devices/interface"):
        kind = interface.get("type", "")
        if kind in _UNCOUNTED:
            mac = interface.find("mac")
            yield f"{'' if mac is None else mac.get('address', '')} ({_UNCOUNTED[kind]})".strip()
    if root.find("./devices/hostdev[@type='net']") is not None:
        yield "a network device of the host"
    arguments = qemu_arguments(root)
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option = before.lstrip("-") if before.startswith("-") else ""
        if (option in {"netdev", "nic", "net"} and argument.partition(",")[0] not in {"none", "nic"}) or (
            option == "device" and "vfio-pci" in argument
        ):
            yield f"-{option} {argument} (on QEMU's command line)"


def pci_devices(root: ElementTree.Element) -> Iterator[str]:
    """Yield libvirt's names of the PCI devices of the host that a domain has, ``pci_0000_01_00_0``."""
    for where in root.findall("./devices/hostdev[@type='pci']/source/address"):
        parts = (int(where.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function"))
        yield "pci_{:04x}_{:02x}_{:02x}_{:x}".format(*parts)


def unsavable(root: ElementTree.Element) -> str | None:
    """
    Return why the memory of a domain's guest cannot be saved to a file; None if its XML shows no reason.

    These are libvirt's own reasons (qemuMigrationSrcIsAllowed in its source), and QEMU's as far as they are certain.
    """
    for device in root.findall("./devices/hostdev"):
        if device.get("type") != "usb" and not _leaves(device):
            return f"it has a device of the host ({device.get('type')})"
    for interface in root.findall("./devices/interface"):
        if interface.get("type") in {"hostdev", "vdpa"} and not _leaves(interface):
            return f"it has an interface that is a device of the host ({_UNCOUNTED[interface.get('type', '')]})"
    for where, why in _UNSAVABLE.items():
        if root.find(where) is not None:
            return why
    if any(shared.get("role") != "master" for shared in root.findall("./devices/shmem")):
        return "it shares memory with others (shmem)"
    if root.find("./cpu/feature[@name='invtsc'][@policy='require']") is not None and not any(
        timer.get("frequency") for timer in root.findall("./clock/timer[@name='tsc']")
    ):
        return "its CPU has invtsc, and no frequency is given for its timer tsc"
    if any("vfio-" in argument for argument in qemu_arguments(root)):
        return "it has a device of the host (vfio, on QEMU's command line)"
    return None


def _leaves(device: ElementTree.Element) -> bool:
    """Return whether QEMU unplugs the device by itself before it saves."""
    return device.find("./teaming[@type='transient']") is not None


def _adds(root: ElementTree.Element) -> bool:
    """Return whether Jitsu, when it defines *root*, keeps libvirt from asking for the features of its CPU."""
    return asks_cpu(root) and is_cpu_plain(root) and root.find(f"./{QEMU}capabilities") is None


def asks_cpu(root: ElementTree.Element) -> bool:
    """Return whether libvirt asks QEMU for the features of the domain's CPU one by one when it starts it."""
    kind = root.find("./os/type")
    if root.get("type") not in {"kvm", "qemu"} or kind is None or kind.get("arch", "x86_64") not in _X86:
        return False
    left_out = root.findall(f"./{QEMU}capabilities/{QEMU}del")
    return all(one.get("capability") != CPU_QUESTIONS for one in left_out)


def is_cpu_plain(root: ElementTree.Element) -> bool:
    """Return whether libvirt does not need the answers, so that it need not ask (`CPU_QUESTIONS`)."""
    if any(root.find(where) is not None for where in _NEEDS_ANSWERS):
        return False
    cpu = root.find("./cpu")
    if cpu is None or cpu.get("mode") in _PLAIN_MODES:
        return True
    model = (cpu.findtext("./model") or "qemu64").strip()
    return cpu.get("mode", "custom") == "custom" and model in _PLAIN_MODELS


def slow(root: ElementTree.Element) -> str | None:
    """Return what makes the starts of a domain slow, and the remedy; None if nothing is known."""
    if not asks_cpu(root):
        return None
    return SLOW if is_cpu_plain(root) else SLOW_CPU


def advice(root: ElementTree.Element) -> tuple[str, ...]:
    """Return advice for the operator about a domain."""
    return (NO_END,) if root.get("type") in _QEMUS and _cannot_tell_end(root) else ()


def _cannot_tell_end(root: ElementTree.Element) -> bool:
    """Return whether a guest of QEMU that exits, or one that is booted from a kernel and crashes, is not noticed."""
    kind = root.find("./os/type")
    if kind is None or kind.get("arch", "x86_64") not in _X86 or can_exit(root):
        return False
    if root.find("./features/acpi") is None:
        return True
    return root.find("./os/kernel") is not None and root.find("./devices/panic") is None
