"""
Images of ready guests, kept as libvirt's save files: what `boot_from: snapshot` starts from. Every function blocks.

An image is good as long as nothing has changed that it depends on: the domain's definition, its kernel, its disks with
all files behind them. A sum of these is written beside it before the guest boots, so that it covers all that the guest
reads. A disk that the guest may write to changes as soon as it runs on, so a domain with one can have no image, nor one
with any other state that is neither in its memory nor in such a file; for those there is mode save.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from jitsu_tw.backends import backing, domain_xml
from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.etree import ElementTree

#: Where a domain's XML names files that its image depends on, as text and as an attribute.
_FILES: Final = ("./os/kernel", "./os/initrd", "./os/dtb", "./os/loader", "./os/acpi/table", "./devices/emulator")
_ATTRIBUTES: Final = (("./sysinfo/entry", "file"), ("./devices/interface/rom", "file"))

#: Devices whose whole state is in the guest's saved memory, or which have none that matters. All others have some
#: elsewhere: on a disk, in the host, in another process.
_STATELESS: Final = frozenset({
    "audio", "channel", "console", "controller", "emulator", "graphics", "hub", "iommu", "memballoon", "panic",
    "parallel", "pstore", "rng", "serial", "sound", "video", "vsock", "watchdog",
})  # fmt: skip

#: The same of `<input>`, `<interface>` and `<memory>`: their types and models with state elsewhere.
_STATEFUL: Final = {
    "input": ("type", {"passthrough", "evdev"}),
    "interface": ("type", {"hostdev", "vdpa"}),
    "memory": ("model", {"nvdimm", "virtio-pmem", "sgx-epc"}),
}

#: QEMU's own options, on a domain's command line, that give a guest a disk, a directory or other state.
_OPTIONS: Final = frozenset({
    "blockdev", "cdrom", "drive", "fsdev", "hda", "hdb", "hdc", "hdd", "incoming", "loadvm", "mtdblock", "object",
    "pflash", "sd", "virtfs",
})  # fmt: skip

#: Formats of disks that can be looked into.
_FORMATS: Final = frozenset({"raw", "qcow2"})

#: The format of an image in which each page of the memory has a place of its own, so that QEMU reads it without
#: libvirt's helper process, and only the pages that are there: libvirt 11.2 has it, with QEMU 9.0.
SPARSE: Final = {"image_format": "sparse"}

#: The errors by which an older libvirt, an older QEMU or another hypervisor refuses that format, before it touches the
#: guest (qemuDomainSaveParams and qemuDomainSaveInternal in libvirt's source).
_NO_SPARSE: Final = frozenset(
    {libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED}
)

#: Errors about the host, not about the image that was to be restored.
HOST_ERRORS: Final = frozenset({
    libvirt.VIR_ERR_NO_MEMORY, libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_OPERATION_ABORTED,
    libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY, libvirt.VIR_ERR_RPC,
})  # fmt: skip


def path(folder: Path, uuid: str) -> Path:
    """Return where the image of the domain *uuid* is kept; what it depends on is beside it, as ``.sum``."""
    return folder / f"{uuid}.image"


def obstacle(root: ElementTree.Element) -> str | None:
    """Return why the domain *root* can have no image; None if it can."""
    if root.find("./os/nvram") is not None or root.find("./os[@firmware='efi']") is not None:
        return "its firmware keeps variables; take them out, or use mode save"
    if root.find("./memoryBacking/access[@mode='shared']") is not None:
        return "its memory is shared with other processes (memoryBacking)"
    why = next(filter(None, (_device_obstacle(device) for device in root.findall("./devices/*"))), None)
    if why is None:
        options = {argument.lstrip("-") for argument in domain_xml.qemu_arguments(root) if argument.startswith("-")}
        if options & _OPTIONS:
            why = f"QEMU's command line gives it what may change unseen (-{min(options & _OPTIONS)})"
    return why or domain_xml.unsavable(root)


def _device_obstacle(device: ElementTree.Element) -> str | None:
    """Return why a domain with that device can have no image; None if it can."""
    if device.tag == "disk":
        return _disk_obstacle(device)
    if device.tag == "filesystem":
        source = device.find("source")
        where = "" if source is None else next(iter(source.attrib.values()), "")
        return f"it shares the directory {where} with its host, which may change unseen".replace("  ", " ")
    name, kinds = _STATEFUL.get(device.tag, ("type", set()))
    if device.tag in _STATEFUL:
        kind = device.get(name)
        return f"it has a device with state of its own ({device.tag} {kind})" if kind in kinds else None
    return None if device.tag in _STATELESS else f"it has a device with state of its own ({device.tag})"


def _disk_obstacle(disk: ElementTree.Element) -> str | None:
    source = disk.find("source")
    if source is None:
        return None
    where = source.get("file") or source.get("dev") or "(on a network)"
    if domain_xml.is_writable(disk):
        return f"its disk {where} can be written to; make it readonly, or use mode save"
    if any("file" not in one.attrib for one in disk.iter("source")):
        return f"its disk {where} is no file, and may change unseen"
    kind = _format(disk)
    return None if kind in _FORMATS else f"its disk {where} is a {kind}, which cannot be looked into; raw and qcow2 can"


def _format(disk: ElementTree.Element) -> str:
    """Return the format of a disk: raw, if its XML names none."""
    driver = disk.find("driver")
    return "raw" if driver is None else driver.get("type", "raw")


def prepare(kept: Path, domain: libvirt.virDomain) -> None:
    """Write the sum of what the image of *domain*, which is about to boot, depends on; if that fails, none is kept."""
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        drop(kept)
        sum_file(kept).write_text(_depends_on(domain))


def keep(kept: Path, connection: libvirt.virConnect, domain: libvirt.virDomain) -> None:
    """
    Save *domain*, which has booted since `prepare`, to *kept* and restore it from there; it is paused meanwhile.

    Raises:
        BackendError: its image cannot be kept; it runs on, unless the message tells otherwise.
    """
    new = kept.with_suffix(".new")
    try:
        _depends_on(domain)  # why there is no sum of it, if there is none
        booted = sum_file(kept).read_text()
        save(domain, new)
        try:
            if booted != _depends_on(domain):
                raise BackendError("its definition, its kernel or a disk has changed since it booted")
            new.replace(kept)
        finally:
            connection.restore(str(kept if kept.exists() else new))
    except OSError as error:
        raise BackendError(f"no image can be kept at {kept}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


def save(domain: libvirt.virDomain, file: Path) -> None:
    """Save *domain* to *file*, in the format that is restored soonest."""
    try:
        domain.saveParams({libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: str(file), **SPARSE})
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NO_SPARSE:
            raise
        domain.save(str(file))


def is_good(kept: Path, domain: libvirt.virDomain) -> bool:
    """Return whether there is an image at *kept*, and nothing has changed that it depends on."""
    try:
        return kept.exists() and sum_file(kept).read_text() == _depends_on(domain)
    except (OSError, UnicodeError):
        return False


def drop(kept: Path) -> None:
    """Remove the image at *kept*, if there is one, and what a process that was killed may have left (`clone`)."""
    for one in (sum_file(kept), kept, *(kept.with_suffix(suffix) for suffix in (".new", ".clone"))):
        one.unlink(missing_ok=True)


def sum_file(kept: Path) -> Path:
    """Return where the sum of what the image at *kept* depends on is kept."""
    return kept.with_suffix(".sum")


def _depends_on(domain: libvirt.virDomain) -> str:
    """
    Return a sum over *domain*'s definition, and over name, size and times of the files that it names.

    Raises:
        OSError: one is not there, or the domain can have no image.
    """
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    why = obstacle(domain_xml.parse(xml))
    if why is not None:
        raise OSError(None, why)
    return sum_of(xml)


def made_of(domain: libvirt.virDomain, *, writable: bool) -> str:
    """
    Return a sum over what a boot of *domain* is made of: its definition, and the files that are its kernel and disks.

    Disks that its guest may write to count only if *writable* is True: they change while it runs.

    Raises:
        OSError: a file is not there.
    """
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    return sum_of(xml, writable=writable)


def sum_of(xml: str, *, writable: bool = True) -> str:
    """
    Return a sum over a domain's *xml*, and over name, size and times of the files that it names (`made_of`).

    Raises:
        OSError: one is not there.
    """
    digest = hashlib.sha256(xml.encode())
    for name in _named(domain_xml.parse(xml), writable=writable):
        status = Path(name).stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0"))
    return digest.hexdigest()


def _named(root: ElementTree.Element, *, writable: bool) -> Iterator[str]:
    """Yield the files that a boot of a domain depends on; disks that its guest may write to only if *writable*."""
    for place in _FILES:
        for found in root.findall(place):
            yield (found.text or "").strip()
    for place, attribute in _ATTRIBUTES:
        for found in root.findall(place):
            if attribute in found.attrib:
                yield found.attrib[attribute]
    for disk in root.findall("./devices/disk"):
        if writable or not domain_xml.is_writable(disk):
            for source in disk.iter("source"):
                if "file" in source.attrib:
                    yield from _below(Path(source.attrib["file"]), disk)


def _below(file: Path, disk: ElementTree.Element) -> Iterator[str]:
    """
    Yield the files that *disk*, which is in *file*, is made of, as far as Jitsu may read which these are.

    One that the guest writes to is QEMU's user's while it is up (virSecurityDACSetImageLabel in libvirt's source).
    """
    try:
        yield from backing.chain(file, _format(disk))
    except PermissionError:
        if not domain_xml.is_writable(disk):
            raise
