"""
What libvirt itself takes to start the examples of ``conf/``, with and without the lines on the CPU's features.

libvirt asks QEMU for each feature of the virtual CPU when it starts a domain, unless the lines with
``cpu-unavailable-features`` are in its definition. Each example is defined as it is and without these lines, for a
machine without KVM, in a libvirtd of its own, and started in turn by ``create()``: from nothing, and from its saved
memory. MirageOS' and Unikraft's kernel is `demo.unikernel`, which serves its page; the disks of the others are empty,
so that nothing boots from them. Run it as::

    python -m bench.speed.create [--rounds 20] [--example NAME]... [--json FILE]

It needs what the end-to-end tests need; figures are medians of the rounds, in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import libvirt
from rich.console import Console

from bench.figures import json_option, table, write
from bench.speed import cold
from demo import lab
from demo import unikernel as guest

if TYPE_CHECKING:
    from collections.abc import Iterator

CONF: Final = Path(__file__).parents[2] / "conf"

#: The examples, and whether their guest serves a page here.
EXAMPLES: Final = {"batch": False, "mirage": True, "nanos": False, "unikraft": True}

#: The lines, as they stand in each example.
LINES: Final = re.compile(r" *<qemu:capabilities>.*?</qemu:capabilities>\n", re.DOTALL)

#: Folders of libvirtd's, empty ones of its own in the namespace; and the settings of its QEMU driver.
FOLDERS: Final = ("/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/lib/libvirt", "/var/log/libvirt")
SETTINGS: Final = """\
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
dynamic_ownership = 0
user = "root"
group = "root"
"""

#: Seconds in which libvirtd is to be there.
PATIENCE: Final = 20.0


@contextlib.contextmanager
def libvirtd(network: lab.Network, directory: Path) -> Iterator[libvirt.virConnect]:
    """Run a libvirtd of its own at the network's host, with files in *directory*; yield a connection to it."""
    for folder in FOLDERS:
        network.run("host", ["sh", "-c", f"mkdir -p {folder} && mount -t tmpfs none {folder}"])
    network.run("host", ["tee", "/etc/libvirt/qemu.conf"], input=SETTINGS)
    settings = directory / "libvirtd.conf"
    unix = f'unix_sock_dir = "{directory}"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\n'
    settings.write_text(f'{unix}log_outputs = "4:file:/dev/null"\n')
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    command = ["libvirtd", "--config", str(settings), "--pid-file", str(directory / "pid")]
    with network.popen("host", command) as daemon:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                connection = libvirt.open(f"qemu+unix:///system?socket={directory}/libvirt-sock")
                break
            except libvirt.libvirtError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        try:
            yield connection
        finally:
            connection.close()
            daemon.terminate()


def without_kvm(text: str, disk: Path) -> str:
    """Return an example's *text* as its comment says to change it: for this bridge, without KVM, with what is here."""
    changes = (
        (r"<domain type='kvm'", "<domain type='qemu'"),
        (r"<cpu mode='host-passthrough'/>", "<cpu mode='maximum'/>"),
        (r"<kernel>.*</kernel>", f"<kernel>{guest.guest().kernel}</kernel>"),
        (r" *<initrd>.*</initrd>\n", ""),
        (r"<cmdline>.*</cmdline>", f"<cmdline>ip={cold.IP}/24 gw={lab.HOST_IP}</cmdline>"),
        (r"<source file='.*'/>", f"<source file='{disk}'/>"),
        (r"type='qcow2'", "type='raw'"),
        (r"<mac address='.*'/>", f"<mac address='{cold.MAC}'/>"),
        (r"<source bridge='.*'/>", f"<source bridge='{lab.BRIDGE}'/>"),
    )
    for pattern, replacement in changes:
        text = re.sub(pattern, replacement, text)
    return text


def start(network: lab.Network, domain: libvirt.virDomain, *, serves: bool) -> dict[str, float]:
    """Start the guest; return what ``create()`` took, and all to the first octet of its page, if it *serves* one."""
    if not serves:
        begin = time.monotonic()
        domain.create()
        return {"create": (time.monotonic() - begin) * 1000}
    network.pin("client", cold.IP, cold.MAC)
    program = network.command("client", [sys.executable, "-m", "bench.speed.cold", "poll"])
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as polling:
        assert polling.stdout is not None
        polling.stdout.readline()
        begin = time.monotonic()
        domain.create()
        created = time.monotonic()
        octet = json.loads(polling.stdout.read())["first octet"]
    return {"create": (created - begin) * 1000, "first octet": (octet - begin) * 1000}


def measure(example: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Start one example *rounds* times with the lines and without, in turn; return what each start took."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(lab.directory()))
        network = stack.enter_context(lab.Network())
        connection = stack.enter_context(libvirtd(network, directory))
        disk = directory / "disk"
        disk.touch()
        os.truncate(disk, 1 << 20)
        text, name = without_kvm((CONF / f"{example}.xml").read_text(), disk), f"<name>{example}"
        ways = {"with": text, "without": LINES.sub("", text)}
        domains = {way: connection.defineXML(xml.replace(name, f"{name}-{way}")) for way, xml in ways.items()}
        found: dict[str, list[dict[str, float]]] = {way: [] for way in domains}
        for _ in range(rounds):
            for way, domain in domains.items():
                booted = start(network, domain, serves=EXAMPLES[example])
                domain.managedSave()
                restored = start(network, domain, serves=EXAMPLES[example])
                domain.destroy()
                found[way].append(booted | {f"{step}, restored": took for step, took in restored.items()})
    return found


def medians(starts: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each step."""
    return {step: statistics.median(one[step] for one in starts) for step in starts[0]}


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Starts each way.")
@click.option("--example", "examples", type=click.Choice(list(EXAMPLES)), multiple=True, default=list(EXAMPLES),
              show_default=True, help="Of conf/.")
@json_option
def main(rounds: int, examples: tuple[str, ...], path: Path | None) -> None:
    """Measure starts by libvirt with and without questions about the CPU."""
    figures: dict[str, Any] = {}
    rows = table(["example", "median ms"], ["with the lines", "without", "ratio"])
    for example in examples:
        found = measure(example, rounds)
        middle = {way: medians(starts) for way, starts in found.items()}
        ratios = {step: took / middle["without"][step] for step, took in middle["with"].items()}
        figures[example] = {"rounds": rounds, "medians": middle, "ratios": ratios, "all": found}
        for step, ratio in ratios.items():
            rows.add_row(example, step, *(f"{middle[way][step]:.0f}" for way in ("with", "without")), f"{ratio:.2f}")
    write(path, figures)
    Console(highlight=False).print(rows)


if __name__ == "__main__":
    main()
