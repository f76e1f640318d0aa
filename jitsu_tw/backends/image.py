"""
Images of ready guests, kept as libvirt's save files: what `boot_from: snapshot` starts from. Every function blocks.

An image is good as long as nothing has changed that it depends on: the domain's definition, its kernel, its disks. What
these were is written down beside it before the guest boots: what it has read, it has read since. A disk that the guest
may write to changes as soon as it goes on, so a domain with one can have no image; for those there is mode save.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import libvirt

from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where a domain's XML names files that its image depends on.
_FILES: Final = ("./os/kernel", "./os/initrd", "./os/loader", "./devices/emulator")


def path(folder: Path, uuid: str) -> Path:
    """Return where the image of the domain *uuid* is kept; what it depends on is beside it, as ``.sum``."""
    return folder / f"{uuid}.image"


def obstacle(xml: str) -> str | None:
    """Return why a domain defined by *xml* can have no image; None if it can."""
    root = ElementTree.fromstring(xml)  # noqa: S314
    if root.find("./os/nvram") is not None:
        return "its firmware keeps variables; take them out, or use mode save"
    for disk in root.findall("./devices/disk"):
        source = disk.find("source")
        if source is None:
            continue
        where = source.get("file") or source.get("dev")
        if disk.find("readonly") is None:
            return f"its disk {where or '(on a network)'} can be written to; make it readonly, or use mode save"
        if where is None:
            return "it has a disk on a network, which may change unseen"
    return None


def prepare(kept: Path, domain: libvirt.virDomain) -> None:
    """Write down what the image of *domain*, which is about to boot, will depend on; where that fails, none is kept."""
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        drop(kept)
        _sum(kept).write_text(_depends_on(domain))


def keep(kept: Path, connection: libvirt.virConnect, domain: libvirt.virDomain) -> None:
    """
    Save *domain*, which has booted since `prepare`, to *kept* and restore it from there; it stands still meanwhile.

    Raises:
        BackendError: its image cannot be kept; unless the message says otherwise it runs on.
    """
    why = obstacle(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    if why is not None:
        raise BackendError(why)
    new = kept.with_suffix(".new")
    try:
        booted = _sum(kept).read_text()
        domain.save(str(new))
        try:
            if booted != _depends_on(domain):
                message = "its definition, its kernel or a disk has changed since it booted"
                raise BackendError(message)
            new.replace(kept)
        finally:
            connection.restore(str(kept if kept.exists() else new))
    except OSError as error:
        message = f"no image can be kept at {kept}: {error.strerror}"
        raise BackendError(message) from error
    finally:
        new.unlink(missing_ok=True)


def is_good(kept: Path, domain: libvirt.virDomain) -> bool:
    """Say whether there is an image at *kept*, and nothing has changed that it depends on."""
    try:
        return kept.exists() and _sum(kept).read_text() == _depends_on(domain)
    except OSError:
        return False


def drop(kept: Path) -> None:
    """Remove the image at *kept*, if there is one."""
    for one in (_sum(kept), kept, kept.with_suffix(".new")):
        one.unlink(missing_ok=True)


def _sum(kept: Path) -> Path:
    return kept.with_suffix(".sum")


def _depends_on(domain: libvirt.virDomain) -> str:
    """Return a sum over *domain*'s definition, and over name, size and times of the files that it names."""
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    digest = hashlib.sha256(xml.encode())
    for name in _named(ElementTree.fromstring(xml)):  # noqa: S314
        status = Path(name).stat()
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_ino
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{number}\0"))
    return digest.hexdigest()


def _named(root: ElementTree.Element) -> Iterator[str]:
    for place in _FILES:
        for found in root.findall(place):
            yield (found.text or "").strip()
    for source in root.findall("./devices/disk/source"):
        yield source.get("file") or source.get("dev") or ""
