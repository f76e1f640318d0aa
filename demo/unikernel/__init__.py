"""
A guest without a kernel, for the demo and tests: it serves its page a few milliseconds after QEMU and libvirt are up.

It is C, built by gcc and kept in the cache like the Linux guest. README.md beside this file explains the words of its
command line: each is a habit that some real unikernel has.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from demo import lab

HERE: Final = Path(__file__).resolve().parent

#: The compiler's options: a program for a bare i686, without what needs a C library or an operating system.
FLAGS: Final = (
    "-m32 -march=i686 -mgeneral-regs-only -Os -std=gnu17 -Wall -Wextra -ffreestanding -fno-pic "
    "-fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -nostdlib -static -s "
    "-Wl,--build-id=none,--no-warn-rwx-segments"
)

#: QEMU ends when the guest writes its exit code there; without it the VM of a guest that has ended runs for ever.
DEBUG_EXIT: Final = ("-device", "isa-debug-exit")


@functools.cache
def guest() -> lab.Guest:
    """
    Return this guest, building it first if it is not in the cache.

    Raises:
        subprocess.CalledProcessError: gcc could not build it; it has said why on standard error.
    """
    sources = sorted([*HERE.glob("*.S"), *HERE.glob("*.c")])
    script, header = HERE / "guest.ld", HERE / "guest.h"
    key = hashlib.sha256(FLAGS.encode())
    for path in (*sources, script, header):
        key.update(path.read_bytes())
    built = lab.CACHE / "own-guest" / key.hexdigest()[:16]
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as work:
            output = Path(work) / "guest"
            subprocess.run(["gcc", *FLAGS.split(), f"-Wl,-T,{script}", *sources, "-o", output], check=True)
            output.replace(built)
    return lab.Guest(built)


def command(ip: str, mac: str, netdev: str, habits: str = "") -> list[str]:
    """
    Return the command line of a QEMU that boots this guest, without libvirt; its serial port is standard output.

    Args:
        ip: the guest's IPv4 address, in a /24; its router is the laboratory's host.
        mac: its network device's MAC address.
        netdev: what QEMU connects the network device to, as in ``tap,ifname=tap0,script=no,downscript=no``.
        habits: more words of the guest's command line.
    """
    line = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "16", "-nodefaults", "-no-user-config"]
    line += ["-display", "none", "-serial", "stdio"]
    line += ["-bios", str(lab.QBOOT)] if lab.QBOOT.exists() else []
    line += ["-kernel", str(guest().kernel), "-append", f"ip={ip}/24 gw={lab.HOST_IP} {habits}"]
    line += ["-netdev", f"{netdev},id=net", "-device", f"virtio-net-pci,netdev=net,mac={mac},addr=3,romfile="]
    return [*line, *DEBUG_EXIT]


def domain_xml(
    name: str, ip: str, mac: str, habits: str = "", *, debug_exit: bool = True, kvm: bool = False, **options: Any
) -> str:
    """
    Return libvirt's XML for a VM that boots this guest.

    Args:
        name: the domain's name, which the guest's page shows.
        ip: its IPv4 address, in the laboratory's /24.
        mac: its first interface's MAC address.
        habits: words of the guest's command line.
        debug_exit: whether QEMU ends when the guest exits.
        kvm: whether to use KVM, which makes no difference to so short a boot.
        options: the others of `demo.lab.domain_xml`.
    """
    arguments = [*options.pop("arguments", ()), *(DEBUG_EXIT if debug_exit else ())]
    habits = f"name={name} {habits}"
    return lab.domain_xml(name, ip, mac, guest(), options=habits, arguments=arguments, kvm=kvm, **options)
