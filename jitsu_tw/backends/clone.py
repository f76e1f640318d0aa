"""
Clones: the VMs of a template that start from one image, its seed (`boot_from: snapshot`). Every function blocks.

The seed is the image of a guest that has booted without network and without a disk of its own, and that waits for
them: it has opened the channel `CHANNEL`, by which it tells that. A clone is restored, paused, from a copy of the seed
with the name and the uuid of its VM. Then its own devices are plugged in, its disk, if the template has a `disk`, and,
last, its interfaces, and the guest goes on. When it sees its interface, it reads its name and address from the items of
its own definition for QEMU's fw_cfg (`<sysinfo type='fwcfg'>`), or asks by DHCP. libvirt gives it another generation id
(`<genid/>`) at each start, so that a kernel that knows of such ids draws new random numbers.

Until it has all its devices, a clone has the mark of a prepared domain that is out of date (`prepared.add_unfinished`).
So if Jitsu is killed meanwhile, the next process throws it away.

A seed is good as long as its definition and the files that it was made of have not changed: a sum of them is beside it,
as beside other images (`image`). A sum without a seed means that no seed could be made, or that a VM could not be
started from the seed; the next seed is made `RESTS` seconds later.

The format of an image is libvirt's (virQEMUSaveHeader in src/qemu/qemu_saveimage.h of its source): a header, the
domain's XML, a cookie, zeros, and QEMU's stream, which is copied unchanged. No function of libvirt restores a domain
under another uuid or name (virDomainDefCheckABIStability), so this module writes the XML of the copy.
"""

from __future__ import annotations

import contextlib
import copy
import os
import struct
import time
import uuid as uuids
from functools import partial
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import libvirt
from twisted.logger import Logger

from jitsu_tw.backends import definition, domain_xml, image, prepared
from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import Memory
from jitsu_tw.rules.prepare import shortage

if TYPE_CHECKING:
    from pathlib import Path

    from jitsu_tw.settings import VM

log: Final = Logger()

#: The name of the channel (a port of virtio-serial) that a guest opens to tell that it waits for its interface.
CHANNEL: Final = "jitsu.ready"

#: Seconds within which the guest of a seed must open the channel, and seconds between two looks at the channel.
OPENS_WITHIN: Final = 60.0
LOOK_EVERY: Final = 0.1

#: Seconds until the next seed is made after one that could not be made, or from which a VM could not be started.
RESTS: Final = 3600.0

#: The elements of a domain's XML that differ from VM to VM of a template, besides the devices that are plugged in.
_OWN: Final = ("name", "uuid", "genid", "title", "description", "metadata", "sysinfo[@type='fwcfg']")

#: The header of an image: the magic, the version, the octets of XML, cookie and zeros, whether the guest runs, the
#: stream's format, and the offset of the cookie, 0 for none; the last fourteen numbers are not used.
_HEADER: Final = struct.Struct("=16s5I56x")
_MAGIC: Final = b"LibvirtQemudSave"
_VERSION: Final = 2

#: The most octets of XML and cookie: libvirt takes no more of each.
_LONGEST: Final = 2 * definition.LONGEST

#: What is appended to each value of a VM, to find where two VMs' definitions differ.
_OTHER: Final = "-another"


def path(vm: VM) -> Path:
    """Return where the seed of the template of *vm* is kept."""
    return vm.images / f"{vm.template}.seed"


def is_wanted(root: ElementTree.Element) -> bool:
    """Return whether the domain *root* has the channel by which its guest tells that it waits for its interface."""
    return _channel(root) is not None


def _channel(root: ElementTree.Element) -> ElementTree.Element | None:
    return root.find(f"./devices/channel/target[@name='{CHANNEL}']")


def obstacle(vm: VM) -> str | None:
    """
    Return why *vm* cannot be a clone, as far as the file that defines it shows; None if it can.

    Raises:
        OSError: the file cannot be read.
        BackendError: it is no XML, or has a placeholder that stands for nothing.
    """
    if vm.template is None or vm.define is None:
        return "no template has made it"
    values = definition.values_of(vm)
    found = []
    for added in ("", _OTHER):
        text = definition.read(vm.define, vm, partial(_escape, added), domain_xml.uncommented)
        root = domain_xml.parse_file(text, vm.define)
        if not is_wanted(root):
            return f"it has no channel {CHANNEL}, by which its guest tells that it waits for its interface"
        if not plug(root, values.get("disk", "") + added):
            return "it has no interface that can be plugged in"
        found.append(root)
    first, other = found
    if (where := domain_xml.difference(first, other)) is not None:
        return f"its definition has a value of its own at {where}, which its guest would read before it is a clone"
    return image.obstacle(first)


def _escape(added: str, value: str) -> str:
    return domain_xml.escaped(value) + added


def plug(root: ElementTree.Element, disk: str) -> list[ElementTree.Element]:
    """
    Remove from the domain *root* what other VMs of the template have not; return the devices that are plugged in later.

    These are the disk in the file *disk*, and, last, the interfaces. If there is no interface, nothing is removed.
    """
    devices = root.find("./devices")
    interfaces = root.findall("./devices/interface")
    if devices is None or not interfaces:
        return []
    _take_own(root)
    disks = [one for one in devices.findall("disk") if disk in {source.get("file") for source in one.findall("source")}]
    for device in (*disks, *interfaces):
        devices.remove(device)
    return [*disks, *interfaces]


def _take_own(root: ElementTree.Element) -> None:
    """Remove the elements `_OWN` from the domain *root*."""
    for where in _OWN:
        for element in root.findall(f"./{where}"):
            root.remove(element)


def _seed_of(domain: libvirt.virDomain, vm: VM) -> tuple[ElementTree.Element, list[str], str]:
    """
    Return the XML that all VMs of the template of *domain* share, its own devices as XML, and the sum for a seed.

    Raises:
        OSError: a file that the shared XML names is not there.
    """
    root = domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
    has_id = root.find("./genid") is not None
    devices = plug(root, "" if vm.layer is None else str(vm.layer.path))
    if has_id:
        ElementTree.SubElement(root, "genid")
    sum_ = image.sum_of(ElementTree.tostring(root, encoding="unicode"))
    return root, [ElementTree.tostring(device, encoding="unicode") for device in devices], sum_


# Making a seed.


def make(connection: libvirt.virConnect, uuid: str, vm: VM, free: int | None) -> None:
    """
    Make the seed of the template of *vm*, unless it can have none, has a good one, or had a failure just now (`RESTS`).

    A guest that does not open the channel in time is logged: only its boot shows whether it can be cloned.

    Args:
        connection: to its hypervisor.
        uuid: of the domain of *vm*, which is defined.
        vm: one of those that the template has made.
        free: octets of memory that the host has; None if that is not known.

    Raises:
        OSError: a file cannot be read or written.
        BackendError: the host has not the memory for another guest and, after that, for a start.
    """
    if vm.template is None:
        return
    kept = path(vm)
    if obstacle(vm) is not None:
        image.drop(kept)
        return
    domain = connection.lookupByUUIDString(uuid)
    root, _, sum_ = _seed_of(domain, vm)
    if _is(kept, sum_) and (kept.exists() or time.time() < image.sum_file(kept).stat().st_mtime + RESTS):
        return
    if free is not None and (why := shortage(Memory(domain.maxMemory() * 1024, free))):
        raise BackendError(why)
    own = str(uuids.uuid5(uuids.NAMESPACE_URL, kept.as_uri()))
    ElementTree.SubElement(root, "name").text = f"{vm.template} (seed)"
    ElementTree.SubElement(root, "uuid").text = own
    _destroy(connection, own)  # that an earlier process has left
    kept.parent.mkdir(parents=True, exist_ok=True)
    image.drop(kept)
    new = kept.with_suffix(".new")
    new.touch(mode=0o600)  # by this process, which is to read it, not by libvirt's
    try:
        seed = _create(connection, ElementTree.tostring(root, encoding="unicode"))
        if why := _why_not(seed):
            image.sum_file(kept).write_text(sum_)
            _log_rest(vm, why)
            return
        image.save(seed, new)
        if sum_ == _seed_of(connection.lookupByUUIDString(uuid), vm)[2]:
            new.replace(kept)
            image.sum_file(kept).write_text(sum_)
            log.info("{template}: its VMs start as clones of {seed}", template=vm.template, seed=str(kept))
    finally:
        _destroy(connection, own)
        new.unlink(missing_ok=True)


def _create(connection: libvirt.virConnect, xml: str) -> libvirt.virDomain:
    """Start a domain that libvirt's daemon ends with this connection, at the latest; a driver without one leaves it."""
    try:
        return connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
    except libvirt.libvirtError:
        return connection.createXML(xml)


def _destroy(connection: libvirt.virConnect, uuid: str) -> None:
    """Destroy the domain of that *uuid*, if there is one."""
    try:
        connection.lookupByUUIDString(uuid).destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}:
            raise


def _why_not(seed: libvirt.virDomain) -> str:
    """Wait until the guest of *seed* opens the channel, and return ""; if it does not, return the reason."""
    end = time.monotonic() + OPENS_WITHIN
    while time.monotonic() < end:
        try:
            port = _channel(domain_xml.parse(seed.XMLDesc()))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return "without its interface, its guest has ended"
        if port is not None and port.get("state") == "connected":
            return ""
        time.sleep(LOOK_EVERY)
    return f"without its interface, its guest did not open the channel {CHANNEL} within {OPENS_WITHIN:g} s"


def _is(kept: Path, sum_: str) -> bool:
    """Return whether the sum beside the seed at *kept* is *sum_*."""
    try:
        return image.sum_file(kept).read_text() == sum_
    except (OSError, UnicodeError):
        return False


def give_up(vm: VM) -> None:
    """Remove the seed of the template of *vm*, which could not be started from it; `RESTS` seconds begin."""
    kept = path(vm)
    with contextlib.suppress(FileNotFoundError):  # another one of its clones was the first
        kept.unlink()
        os.utime(image.sum_file(kept))
        _log_rest(vm, f"{vm.name} could not be started as one")


def _log_rest(vm: VM, why: str) -> None:
    log.error("{template}: its VMs boot, and are no clones, for the next {minutes} minutes: {why}",
              template=vm.template, minutes=round(RESTS / 60), why=why)


# Starting a clone.


def start(connection: libvirt.virConnect, domain: libvirt.virDomain, vm: VM) -> bool:
    """
    Start *domain*, which is off, as a clone; return whether it runs. If not, the reason is logged, and it is off.

    Raises:
        libvirt.libvirtError: its host cannot start it now.
    """
    kept = path(vm)
    if vm.template is None or not kept.exists():
        return False
    file = vm.images / f"{domain.UUIDString()}.clone"
    try:
        _, devices, sum_ = _seed_of(domain, vm)
        if not _is(kept, sum_):
            return False
        own = domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
        prepared.add_unfinished(own)
        write(kept, file, own)
        connection.restoreFlags(str(file), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        for device in devices:
            domain.attachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        prepared.remove(domain)
        domain.resume()
    except (OSError, BackendError, libvirt.libvirtError) as error:
        if domain.isActive():
            domain.destroy()
        if isinstance(error, libvirt.libvirtError) and error.get_error_code() in image.HOST_ERRORS:
            raise  # a boot would fail, too; the seed may be good
        log.error("{name}: cannot be cloned, so it is booted: {error}", name=vm.name, error=str(error))
        if not isinstance(error, OSError):
            give_up(vm)
        return False
    finally:
        file.unlink(missing_ok=True)
    return True


def write(kept: Path, file: Path, own: ElementTree.Element) -> None:
    """
    Write the image of a clone to *file*: a copy of the seed at *kept*, with the elements `_OWN` of the domain *own*.

    Where the file system can, the two files share their octets.

    Raises:
        OSError: one of the files cannot be read or written.
        BackendError: the file at *kept* is no image, or is damaged, or has too little space for the XML.
    """
    file.touch(mode=0o600)
    with kept.open("rb") as source, file.open("wb") as target:
        try:
            magic, version, size, *others, offset = _HEADER.unpack(source.read(_HEADER.size))
        except struct.error as error:
            raise BackendError(f"{kept} is too short for an image") from error
        if (magic, version) != (_MAGIC, _VERSION):
            raise BackendError(f"{kept} is no image of libvirt's, version {_VERSION}")
        if size > _LONGEST:
            raise BackendError(f"{kept} is damaged: it has {size} octets of XML")
        data = source.read(size)
        xml, cookie = (data[:offset], data[offset:].rstrip(b"\0")) if offset else (data, b"")
        try:
            text = _as(own, xml.rstrip(b"\0").decode()).encode() + b"\0"
        except (UnicodeError, ElementTree.ParseError) as error:
            raise BackendError(f"{kept} is damaged: its XML cannot be read: {error}") from error
        start = _HEADER.pack(magic, version, size, *others, len(text) if cookie else 0)
        if len(text) + len(cookie) >= size:
            raise BackendError(f"the XML of the clone is longer than the {size} octets that {kept} has for it")
        _copy(source.fileno(), target.fileno())
        target.write(start + (text + cookie).ljust(size, b"\0"))


def _copy(source: int, target: int) -> None:
    """Copy the whole file *source* to *target*, or share it, as the file system can."""
    place, size = 0, os.fstat(source).st_size
    while place < size:
        done = os.copy_file_range(source, target, size - place, place, place)
        if not done:
            raise OSError(None, "the image became shorter while it was copied")
        place += done


def _as(own: ElementTree.Element, xml: str) -> str:
    """Return the *xml* of a seed with the elements `_OWN` of the domain *own* in place of the seed's."""
    root = domain_xml.parse(xml)
    _take_own(root)
    for where in _OWN:
        root.extend(copy.deepcopy(own.findall(f"./{where}")))
    return ElementTree.tostring(root, encoding="unicode")
