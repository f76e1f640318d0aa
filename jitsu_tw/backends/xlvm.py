"""
What a VM of the libxl backend is made of: its uuid, its files, its configuration for xl, what its image depends on.

Xen is not asked here. Files are read, which is quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
import uuid as uuids
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.backends import definition, xen
from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitsu_tw.settings import VM

#: Of the uuids that are made of names, for VMs that have none.
NAMESPACE: Final = uuids.UUID("6d1e9f0a-3c55-5c0e-9d43-0e6a0f3b7c21")

#: What the guest of a template without `define` sees its own disk as.
LAYER_DEVICE: Final = "xvda"

#: What a whole configuration says of memory, in MiB (xl.cfg(5)).
_MEMORY: Final = re.compile(r"^\s*(?:maxmem|memory)\s*=\s*[\"']?(\d+)", re.MULTILINE)


def uuid_of(vm: VM) -> str:
    """Return a VM's uuid: one that is the same each time, if it has none of its own."""
    return vm.uuid or str(uuids.uuid5(NAMESPACE, vm.name))


def guest_of(vm: VM) -> xen.XenGuest | None:
    """
    Return what the configuration says of the guest of *vm*, with what the VM of a template has of its own.

    Raises:
        ValueError: the template's command line is wrong.
    """
    guest: xen.XenGuest | None = vm.backend_settings
    if guest is None or vm.template is None:
        return guest
    try:
        cmdline = definition.filled(guest.cmdline, vm)
    except ValueError as error:
        raise ValueError(f"cmdline {error}") from error
    macs = (definition.mac_of(uuid_of(vm)),) if guest.nic else ()
    disks = () if vm.layer is None else (xen.Disk(str(vm.layer.path), LAYER_DEVICE, "qcow2"),)
    return attrs.evolve(guest, cmdline=cmdline, mac=macs, disk=disks)


def made_of(guest: xen.XenGuest) -> tuple[Path, ...]:
    """Return the files and block devices that a guest boots from and runs on."""
    files = (guest.kernel, guest.ramdisk, guest.rumprun_config, *(Path(disk.path) for disk in guest.disk))
    return tuple(path for path in files if path is not None)


def check_files(vm: VM) -> None:
    """
    Check that a VM's files are there and right.

    Raises:
        OSError: one is not there, or may not be read.
        ValueError: one is wrong; the message has the remedy.
    """
    xen.check_name(vm.name)
    if vm.define is not None:
        definition.read(vm.define, vm, xen.escaped)
    elif (guest := guest_of(vm)) is not None:
        if guest.kernel is None and guest.type is not xen.Type.HVM:
            raise ValueError(f"a {guest.type.value} guest needs a kernel")
        for path in made_of(guest):
            if vm.layer is None or path != vm.layer.path:  # that is made
                path.stat()
        rumprun(vm)


def rumprun(vm: VM) -> str | None:
    """
    Return the rumprun configuration that a VM's guest reads in Xenstore; None for none.

    Raises:
        OSError: its file is not there, or may not be read.
        BackendError: a placeholder in the file is wrong.
        ValueError: the file is wrong.
    """
    guest = guest_of(vm)
    if vm.define is not None or guest is None or guest.rumprun_config is None:
        return None
    text = definition.read(guest.rumprun_config, vm, _in_json)
    try:
        xen.check_rumprun(text)
    except ValueError as error:
        raise ValueError(f"{guest.rumprun_config} {error}") from None
    return text


def _in_json(text: str) -> str:
    """Return *text* as it stands in a string of JSON."""
    return json.dumps(text)[1:-1]


def configuration(vm: VM) -> str:
    """
    Return a VM's configuration for xl.

    Raises:
        BackendError: there is none, or its file is wrong.
        OSError: its file cannot be read.
    """
    if vm.define is not None:
        return f"{definition.read(vm.define, vm, xen.escaped)}\n{xen.named(vm.name, uuid_of(vm))}"
    guest = guest_of(vm)
    if guest is None:
        raise BackendError(f"{vm.name} is off, and nothing says how to make it")
    return xen.configuration(vm.name, uuid_of(vm), guest)


@contextlib.contextmanager
def configured(vm: VM) -> Iterator[str]:
    """Return a context with the path of a file with a VM's configuration, which xl can read."""
    with tempfile.NamedTemporaryFile("w", prefix="jitsu-", suffix=".cfg", encoding="utf-8") as file:
        file.write(configuration(vm))
        file.flush()
        yield file.name


def memory_of(vm: VM) -> int | None:
    """Return the octets that a VM takes; None if its configuration does not tell."""
    if vm.define is not None:
        found = [int(mib) for mib in _MEMORY.findall(configuration(vm))]
        return (max(found) * 2**10 + xen.SLACK) * 2**10 if found else None
    guest = guest_of(vm)
    return guest.needs * 2**10 if guest is not None else None


def image_of(vm: VM) -> Path | None:
    """
    Return where the image of the ready guest is, or would be, with the VM and its files as they are at this moment.

    None if it can have none: changes of a block device, or of a disk that only xl knows, cannot be seen.
    """
    guest = guest_of(vm)
    if guest is None or vm.define is not None or not all(path.is_file() for path in made_of(guest)):
        return None
    return vm.images / f"{uuid_of(vm)}-{sum_of(vm)[:16]}.ready"


def sum_of(vm: VM, *, disks: bool = True) -> str:
    """
    Return a sum over what a VM is made of, as far as its configuration names it: itself, its kernel, and its *disks*.

    Raises:
        OSError: a file is not there.
    """
    guest = guest_of(vm)
    made = hashlib.sha256(configuration(vm).encode())
    for path in () if guest is None else made_of(guest) if disks else filter(None, (guest.kernel, guest.ramdisk)):
        about = path.stat()
        made.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return made.hexdigest()
