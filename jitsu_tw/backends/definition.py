"""
The file that defines a VM at its hypervisor (`define`).

In the file of a template, placeholders stand for what each of its VMs has of its own.
"""

from __future__ import annotations

import io
from string import Template as Text
from typing import TYPE_CHECKING, Final
from uuid import UUID

from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from jitsu_tw.settings import VM

#: The placeholders, and what stands there instead.
PLACEHOLDERS: Final[Mapping[str, str]] = {
    "name": "the hypervisor's name for the VM",
    "label": "the first label of its DNS names",
    "dns": "its first DNS name",
    "uuid": "its uuid",
    "ip": "its address, the IPv4 one if it has two",
    "ip6": "its IPv6 address, if it has one",
    "mac": "a MAC address made of its uuid",
    "disk": "the path of its own disk, if the template has a disk",
}

#: Why a VM is not removed from its hypervisor.
NOT_MADE: Final = "it was not made by a template, so it stays"
RUNS: Final = "it runs"

#: In octets: what libvirt takes as one text (VIR_NET_MESSAGE_STRING_MAX in src/rpc/virnetprotocol.x).
LONGEST: Final = 4 << 20

#: What MACs begin with: locally administered, and for one machine (IEEE 802, 8.2).
_LOCAL: Final = b"\x52"


def mac_of(uuid: str) -> str:
    """Return the MAC address of a VM of a template, by its uuid, whose first octets are those of a SHA-1 sum."""
    return (_LOCAL + UUID(uuid).bytes[:5]).hex(":")


def read(file: Path, vm: VM, escape: Callable[[str], str], clean: Callable[[str], str] = str) -> str:
    """
    Return the text of a *file* of *vm*; in a template's, the VM's values are filled in.

    Args:
        file: where it is.
        vm: whose file it is.
        escape: writes a value as the format of the file needs it.
        clean: takes out of a template's text what no value may stand in.

    Raises:
        OSError: it cannot be read.
        BackendError: it is no text, or has an unknown placeholder; the message has the remedy.
    """
    try:
        text = unfilled(file)
        return filled(text if vm.template is None else clean(text), vm, escape)
    except ValueError as error:
        raise BackendError(f"{file} {error}") from error


def unfilled(file: Path) -> str:
    """
    Return the text of a *file*, as it is but for the ends of its lines.

    Raises:
        OSError: it cannot be read.
        BackendError: it is no text, or is longer than a hypervisor takes.
    """
    with file.open("rb") as one:
        octets = one.read(LONGEST + 1)
    if len(octets) > LONGEST:
        raise BackendError(f"{file} is larger than {LONGEST >> 20} MiB; is it the right file?")
    try:
        return io.StringIO(octets.decode(), newline=None).read()  # lines end as Python reads them from a file
    except UnicodeError as error:
        raise BackendError(f"{file} is not text") from error


def filled(text: str, vm: VM, escape: Callable[[str], str] = str) -> str:
    """
    Return *text*, in a template's with the values of *vm* as *escape* writes them.

    Raises:
        ValueError: it has an unknown placeholder; the message goes behind the name of the file or the key.
    """
    if vm.template is None:
        return text
    return fill(text, {key: escape(value) for key, value in values_of(vm).items()})


def wrong(vm: VM, error: Exception) -> ConfigError:
    """Return the error of a configuration with *vm*, or with the template that makes *vm*, which can never start."""
    where = f"vms: {vm.name}" if vm.template is None else f"templates: {vm.template}"
    return ConfigError(str(error), *vm.place, where)


def fill(text: str, values: Mapping[str, str]) -> str:
    """
    Return *text* with *values* for its placeholders.

    Raises:
        ValueError: one of its placeholders is none of *values*; the message goes behind the file's path.
    """
    try:
        return Text(text).substitute(values)
    except KeyError as error:
        (name,) = error.args
        meaning = f", {PLACEHOLDERS[name]}" if name in PLACEHOLDERS else ""
        known = ", ".join(f"${{{one}}}" for one in values)
        raise ValueError(f"has ${{{name}}}{meaning}, which the template does not give; it gives {known}") from None
    except ValueError as error:  # a $ that begins no placeholder; the message has its line
        raise ValueError(f"has a $ that begins no placeholder ({error}); write $$ for the sign itself") from None


def values_of(vm: VM) -> dict[str, str]:
    """Return the values of the placeholders for *vm*; a VM that is being removed has no DNS name."""
    name, uuid = to_text(vm.dns[0]) if vm.dns else "", str(vm.uuid)
    values = {
        "name": vm.name, "label": vm.name.partition(".")[0], "dns": name, "uuid": uuid, "ip": str(vm.ip[0]),
        "mac": mac_of(uuid),
    }  # fmt: skip
    ip6 = next((address for address in vm.ip if address.version == 6), None)
    if ip6 is not None:
        values["ip6"] = str(ip6)
    if vm.layer is not None:
        values["disk"] = str(vm.layer.path)
    return values
