"""
The keys of a VM of libxl's: from text to `XenGuest`, and from that to the configuration that xl reads.

The keys are the original's, and a few more. Nothing here does I/O: whether a kernel exists is the backend's question.
xl's syntax is described in xl.cfg(5), disks in xl-disk-configuration(5), interfaces in xl-network-configuration(5).
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw import parsers
from jitsu_tw.keys import setting
from jitsu_tw.xswire import PAYLOAD_MAX

if TYPE_CHECKING:
    from pathlib import Path

#: What libxl gives a guest besides its memory, in KiB (libxl's LIBXL_MAXMEM_CONSTANT).
SLACK: Final = 1024

#: The longest value in Xenstore, in octets: a message's payload has its path, too.
XENSTORE_VALUE: Final = PAYLOAD_MAX - 96

#: Xen's own part of the MAC addresses (an OUI); the guest's part begins with 00 to 7f where software chooses it.
OUI: Final = "00:16:3e"

_UNITS: Final = {"": 1, "kib": 1, "mib": 2**10, "gib": 2**20}
_DEVICE: Final = re.compile(r"(xvd|sd|hd)[a-z]{1,2}[0-9]{0,3}|d[0-9]{1,4}p[0-9]{1,2}")
_STRING: Final = re.compile(r'("(?:[^"\\]|\\.)*")')


class Type(enum.Enum):
    """How Xen runs a guest."""

    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"


@attrs.frozen
class Disk:
    """
    A writable disk.

    Attributes:
        path: a block device, or a file.
        device: what the guest sees: ``xvda``.
        format: raw, or qcow2.
    """

    path: str
    device: str
    format: str = "raw"


@parsers.takes("KiB, or a number with KiB, MiB or GiB", "64MiB")
def parse_memory(text: str) -> int:
    """Return KiB: of a number, which is KiB as in the original, or of one with a unit: KiB, MiB, GiB."""
    match = re.fullmatch(r"([0-9]{1,12})\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or not int(match[1]):
        raise ValueError(f"{text!r} is no amount of memory; write KiB, like 65536, or a unit, like 64MiB")
    return int(match[1]) * _UNITS[match[2]]


@parsers.takes("text in one line", "console=hvc0")
def parse_cmdline(text: str) -> str:
    """Return a kernel's command line: any text in one line."""
    quoted(text)
    return text


parse_nic: Final = parsers.matching("name of a bridge", "xenbr0", r"[A-Za-z0-9_.:-]{1,15}", "is no bridge's name")

parse_script: Final = parsers.matching(
    "name or path of a script", "vif-bridge", r"[A-Za-z0-9_./+-]+", "is no script that xl could be given"
)


@parsers.takes("PATH@DEVICE", "/srv/www.img@xvda")
def parse_disk(text: str) -> Disk:
    """Return the disk of ``PATH@DEVICE``."""
    path, _, device = text.rpartition("@")
    if not path.startswith("/") or not _DEVICE.fullmatch(device):
        raise ValueError(f"{text!r} is no disk; write a block device or a file, like /srv/www.img@xvda")
    quoted(path)
    return Disk(path, device)


@parsers.takes("one of pv, pvh, hvm", "pvh")
def parse_type(text: str) -> Type:
    """Return how Xen runs a guest."""
    try:
        return Type(text.lower())
    except ValueError:
        raise ValueError(f"{text!r} is no kind of guest; write pv, pvh or hvm") from None


@attrs.frozen
class XenGuest:
    """What libxl has to know of a VM without `define`."""

    kernel: Path | None = setting(
        None,
        "the kernel that its guest boots; an HVM guest can do without one, and boots from its disk",
        parsers.text,
        example="www.xen",
        path=True,
    )
    memory: int = setting(128 * 2**10, "the memory of its guest", parse_memory, shown="128MiB")
    cmdline: str = setting("", "the command line of its kernel", parse_cmdline)
    nic: tuple[str, ...] = setting((), "the bridges of its interfaces, one for each", parse_nic)
    script: tuple[str, ...] = setting((), "what sets the interfaces up, taken in turn", parse_script, shown="xl's own")
    disk: tuple[Disk, ...] = setting((), "the disks of its guest", parse_disk)
    rumprun_config: Path | None = setting(
        None,
        "a rumprun unikernel's configuration, JSON, which it finds in Xenstore",
        parsers.text,
        example="www.json",
        path=True,
    )
    type: Type = setting(Type.PV, "how Xen runs its guest: pv, pvh or hvm", parse_type)
    ramdisk: Path | None = setting(
        None, "the initial RAM disk of its kernel", parsers.text, example="initrd.img", path=True
    )
    vcpus: int = setting(1, "how many processors its guest sees", parsers.whole(1, 512, "number of processors"))
    mac: tuple[str, ...] = setting((), "its interfaces' MACs, in their order", parsers.mac, shown="made of the uuid")

    @property
    def needs(self) -> int:
        """The memory that Xen has to have for it, in KiB: its own, slack, and page tables (libxl's estimate)."""
        shadow = 4 * (256 * self.vcpus + 2 * self.memory // 2**10) if self.type is not Type.PV else 0
        return self.memory + SLACK + shadow


def check_name(name: str) -> None:
    """See to it that xl can have a domain of that name: not one that it takes for a number, a path or its own."""
    quoted(name)
    if not name or name == "Domain-0" or name.isdigit() or "/" in name or name.strip() != name or len(name) > 80:
        raise ValueError(f"Xen can have no domain called {name!r}; take a word like www")


def check_rumprun(text: str) -> None:
    """
    See to it that *text* is a configuration that rumprun reads, and that fits into Xenstore.

    That is JSON, with two liberties that rumprun's own tool (``rumprun -T``) takes: a comma may also stand before the
    first and after the last thing in a list, and keys may be there twice.
    """
    try:
        found = json.loads(_strict(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError('is no configuration of rumprun: it begins with {, like {"cmdline": "…"}')  # noqa: TRY004
    if len(text.encode()) > XENSTORE_VALUE:
        raise ValueError(f"has more than the {XENSTORE_VALUE} octets that fit into Xenstore; make it smaller")


def _strict(text: str) -> str:
    """Return *text* with as many commas as JSON has, outside its strings."""
    parts = _STRING.split(text.rstrip(", \t\r\n"))
    for index in range(0, len(parts), 2):
        part = re.sub(r",[,\s]*", ", ", parts[index])
        part = re.sub(r"([\[{]\s*),", r"\1", part)
        parts[index] = re.sub(r",(\s*[\]}])", r"\1", part)
    return "".join(parts)


# What xl reads.


def quoted(text: str) -> str:
    r"""
    Return *text* as a string of xl's, which takes ``\"`` and ``\\`` as they are meant.

    Raises:
        ValueError: there are control characters in it.
    """
    if not text.isprintable():
        raise ValueError(f"{text!r} has characters that cannot be printed; leave them out")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def escaped(text: str) -> str:
    """Return *text* as it stands inside of a string of xl's (`quoted`)."""
    return quoted(text)[1:-1]


def macs(guest: XenGuest, uuid: str) -> tuple[str, ...]:
    """Return the MACs of a guest's interfaces: the same at each start, so that no ARP table goes stale."""
    number = max(len(guest.nic), len(guest.mac))
    return guest.mac + tuple(_mac(uuid, index) for index in range(len(guest.mac), number))


def _mac(uuid: str, index: int) -> str:
    made = bytearray(hashlib.sha256(f"{uuid} {index}".encode()).digest()[:3])
    made[0] &= 0x7F
    return f"{OUI}:{made.hex(':')}"


def configuration(name: str, uuid: str, guest: XenGuest) -> str:
    """Return the xl configuration of a guest that is gone for good once it is down."""
    vifs = []
    for index, mac in enumerate(macs(guest, uuid)):
        words = [f"mac={mac}"]
        if guest.nic[index:]:
            words.append(f"bridge={guest.nic[index]}")
        if guest.script:
            words.append(f"script={guest.script[index % len(guest.script)]}")
        vifs.append(",".join(words))
    # What follows target= is the path to the last character, whatever is in it.
    disks = [f"vdev={disk.device},access=rw,format={disk.format},target={disk.path}" for disk in guest.disk]
    values = {
        "type": quoted(guest.type.value),
        "kernel": quoted(str(guest.kernel)) if guest.kernel is not None else "",
        "ramdisk": quoted(str(guest.ramdisk)) if guest.ramdisk is not None else "",
        "cmdline": quoted(guest.cmdline) if guest.cmdline else "",
        "memory": str(-(-guest.memory // 2**10)),
        "vcpus": str(guest.vcpus),
        "vif": f"[ {', '.join(map(quoted, vifs))} ]" if vifs else "",
        "disk": f"[ {', '.join(map(quoted, disks))} ]" if disks else "",
        "on_poweroff": quoted("destroy"),
        "on_reboot": quoted("destroy"),
        "on_crash": quoted("destroy"),
    }
    return "".join(f"{key} = {value}\n" for key, value in values.items() if value) + named(name, uuid)


def named(name: str, uuid: str) -> str:
    """Return what gives a configuration its name and uuid: behind a whole one it beats what stands there."""
    return f"name = {quoted(name)}\nuuid = {quoted(uuid)}\n"
