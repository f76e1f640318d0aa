"""
Observations of this machine, for `jitsuctl doctor`: interfaces, sockets, processes, the clock, disks, KVM.

Every function here blocks, but for less than `ANSWERS_WITHIN` seconds for each program that it runs, and is called in a
thread. What this user may not see is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import grp
import json
import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import time
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from jitsu_tw.ctl.diagnosis.findings import Held, Link
from jitsu_tw.dns.binding import is_here
from jitsu_tw.networks import AddressRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Seconds that a program may take.
ANSWERS_WITHIN: Final = 3.0

#: The kernel's tables of sockets, by protocol (proc(5)), and the size of an address in hexadecimal digits.
_TABLES: Final = (("udp", "udp"), ("udp6", "udp"), ("tcp", "tcp"), ("tcp6", "tcp"))
_IPV4_DIGITS: Final = 8

#: The state of a TCP socket that listens (TCP_LISTEN of <net/tcp_states.h>), in the table.
_LISTENS: Final = "0A"

#: What libvirt writes about its networks that are active; only root may read it.
NETWORKS: Final = Path("/run/libvirt/network")

#: adjtimex(2): the size of `struct timex` on 64 bits is 208 octets; and what it returns for a clock that is not
#: synchronised.
_TIMEX: Final = 256
_TIME_ERROR: Final = 5

#: The permissions of a group that may connect to a UNIX socket (unix(7)).
_GROUP_RW: Final = stat.S_IRGRP | stat.S_IWGRP

#: KVM_CREATE_VM of <linux/kvm.h>: it succeeds where the processor, or the hypervisor below, can do it.
_CREATE_VM: Final = 0xAE01

#: What the kernel says of interfaces, and of one whose MAC was set (NET_ADDR_SET of <linux/netdevice.h>).
INTERFACES: Final = Path("/sys/class/net")
_MAC_WAS_SET: Final = "3"


def links() -> list[Link]:
    """
    Return the interfaces of this host's network namespace, as ip(8) shows them.

    Raises:
        OSError: there is no ip(8), or it fails.
    """
    ip = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if ip is None:
        raise FileNotFoundError("there is no program ip; install iproute2")
    try:
        shown = subprocess.run(  # noqa: S603 -- the arguments are constants
            [ip, "-json", "-details", "address", "show"], check=True, capture_output=True, timeout=ANSWERS_WITHIN
        ).stdout
    except subprocess.SubprocessError as error:
        raise OSError(f"ip address show: {error}") from error
    return [_link(one) for one in json.loads(shown) if "ifname" in one]


def _link(shown: dict[str, Any]) -> Link:
    """Return the interface that ip(8) has *shown*."""
    info, flags = shown.get("linkinfo", {}), shown.get("flags", ())
    bridge = info.get("info_data", {}) if info.get("info_kind") == "bridge" else {}
    return Link(
        shown["ifname"],
        is_bridge=info.get("info_kind") == "bridge",
        up="UP" in flags,
        carrier="LOWER_UP" in flags,
        stp=bridge.get("stp_state") == 1,
        forward_delay=bridge.get("forward_delay", 0) / 100,  # in units of 10 ms (USER_HZ)
        changing_mac=shown["address"] if bridge and _follows_ports(shown["ifname"]) else "",
        addresses=tuple(ip_interface(f"{one['local']}/{one['prefixlen']}") for one in shown.get("addr_info", ())
                        if "local" in one),
    )  # fmt: skip


def _follows_ports(bridge: str) -> bool:
    """Return whether the kernel makes the MAC of a *bridge* the lowest of its ports'."""
    try:
        return (INTERFACES / bridge / "addr_assign_type").read_text().strip() != _MAC_WAS_SET
    except OSError:
        return False


# Sockets and processes


def held(port: int) -> list[Held]:
    """Return the sockets of this network namespace that are bound to *port*, with their processes."""
    found = [one for table, protocol in _TABLES for one in _sockets(table, protocol) if one[2] == port]
    owners = _owners({inode for *_, inode in found})
    return [
        Held(protocol, host, port, pid, _command(pid))
        for protocol, host, port, inode in found
        for pid in (owners.get(inode, 0),)
    ]


def _sockets(table: str, protocol: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield protocol, address, port and inode of each socket in a *table*; of TCP, of those that listen."""
    with contextlib.suppress(OSError):  # a kernel without IPv6
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            digits, _, port = local.partition(":")
            if protocol == "udp" or state == _LISTENS:
                yield protocol, _address(digits), int(port, 16), inode


def _address(digits: str) -> str:
    """Return the address in a table of sockets: words of 32 bits in the machine's order of octets."""
    words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    kind = IPv4Address if len(digits) == _IPV4_DIGITS else IPv6Address
    return str(kind(b"".join(words)))


def _owners(inodes: Iterable[str]) -> dict[str, int]:
    """Return the process that has each socket, by its inode; without root, of this user's processes only."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[str, int] = {}
    # What systemd (process 1) has opened for another process is that one's.
    for pid in sorted(_processes()) if wanted else ():
        with contextlib.suppress(OSError):  # another user's, or it has ended
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.fspath(file.readlink()))
                    if inode is not None:
                        owners[inode] = pid
    return owners


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> tuple[str, ...]:
    """Return the words of the command line of the process *pid*; none if it has ended, or *pid* is 0."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
        return tuple(word for word in words if word)
    return ()


def here(hosts: Iterable[str]) -> set[str]:
    """Return those of the addresses *hosts* that this host has."""
    return {host for host in hosts if is_here(host)}


# The rest


def nat_networks() -> dict[str, str]:
    """Return the names of libvirt's networks behind NAT, by their bridges; none where this user may not read them."""
    found: dict[str, str] = {}
    for name, root in _networks():
        forward, bridge = root.find(".//forward"), root.find(".//bridge")
        if forward is not None and bridge is not None and forward.get("mode", "nat") == "nat":
            found[bridge.get("name", "")] = name
    return found


def leased() -> dict[str, list[AddressRange]]:
    """Return the addresses that libvirt's networks give by DHCP, by the network's name; none that may not be read."""
    found: dict[str, list[AddressRange]] = {}
    for name, root in _networks():
        for one in root.iterfind(".//dhcp/range"):
            with contextlib.suppress(ValueError):
                found.setdefault(name, []).append(AddressRange.parse(f"{one.get('start')}-{one.get('end')}"))
    return found


def _networks() -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield libvirt's networks that are active: the name, and the root of the XML."""
    with contextlib.suppress(OSError):
        for path in NETWORKS.glob("*.xml"):
            with contextlib.suppress(OSError, ElementTree.ParseError):
                yield path.stem, ElementTree.parse(path).getroot()  # noqa: S314 -- libvirt's


def is_synchronised() -> bool:
    """Return whether the kernel counts its clock as synchronised (adjtimex(2), which only reads here)."""
    return bool(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)) != _TIME_ERROR)


def disk(path: Path) -> tuple[str, int, int]:
    """Return the nearest folder to *path* that is there, and the free and all octets of its disk."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return str(path), found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def may_open() -> int:
    """Return how many files a process of this user may open, once it has raised its own limit as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def kvm() -> dict[str, bool]:
    """Return what `findings.kvm` takes of this machine."""
    device = Path("/dev/kvm")
    present, usable = device.exists(), os.access(device, os.R_OK | os.W_OK)
    if present and usable:
        try:
            with device.open("rb+", buffering=0) as file:
                os.close(fcntl.ioctl(file, _CREATE_VM, 0))
        except OSError:  # the node is there, and no driver behind it, or no hardware
            present = False
    flags = set(Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split())
    cpu = bool(flags & {"vmx", "svm"}) or platform.machine() not in {"x86_64", "i686"}
    return {"present": present, "usable": usable, "cpu": cpu}


def connects(path: str) -> str:
    """Return why no process can be reached at the UNIX socket *path*; empty if one can."""
    with socket.socket(socket.AF_UNIX) as tries:
        tries.settimeout(ANSWERS_WITHIN)
        try:
            tries.connect(path)
        except OSError as error:
            return error.strerror or "it does not answer"
    return ""


def ahead(state: Path) -> float | None:
    """Return by how many seconds the last change of the *state* is in the future; None if there is none."""
    times = [one.stat().st_mtime for name in ("refs/heads/main", "packed-refs") if (one := state / name).exists()]
    return max(times) - time.time() if times else None


def access(path: str) -> tuple[str, bool] | None:
    """Return the group of the UNIX socket *path*, and whether that may connect; None if there is no such socket."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return group, found.st_mode & _GROUP_RW == _GROUP_RW
