"""
What a call of jitsuctl takes, in CPU time and by the clock, beside `virsh list` and a Python that does nothing.

All run in turn, so that other work on the machine meets all of them. The Jitsu that is asked has the memory backend.
Run it as ``python -m bench.speed.ctl``.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click
from rich.console import Console

from bench.debian import environment, unpacked
from bench.figures import json_option, table, write
from demo.lab import free_port
from demo.server import Jitsu

if TYPE_CHECKING:
    from collections.abc import Mapping

JITSUCTL: Final = str(Path(sys.executable).with_name("jitsuctl"))

CONFIGURATION: Final = """\
listen: {port}
backend: memory
vms:
"""

#: The VMs have the addresses that follow.
FIRST_IP: Final = IPv4Address("10.9.0.0")

#: What the others are compared with: the client of libvirt's, and the interpreter alone.
VIRSH: Final = "virsh list"
PYTHON: Final = "python -c pass"


@attrs.frozen
class Call:
    """
    A program that is called.

    Attributes:
        command: its command line.
        variables: of its environment.
        cpu, wall: the seconds that each call took.
    """

    command: list[str]
    variables: Mapping[str, str]
    cpu: list[float] = attrs.field(factory=list)
    wall: list[float] = attrs.field(factory=list)

    def make(self) -> None:
        """Call it once."""
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(self.command, env=dict(self.variables), check=True, stdout=subprocess.DEVNULL)
        self.wall.append(time.perf_counter() - begun)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def calls(place: str, configuration: Path) -> dict[str, Call]:
    """Return what is called, by its name: commands to the Jitsu at *place*, and of a *configuration*; and the peers."""
    ours = {**os.environ, "JITSU_CONTROL": place}
    tab = {"_JITSUCTL_COMPLETE": "bash_complete", "COMP_WORDS": "jitsuctl why vm1", "COMP_CWORD": "2"}
    virsh = ["virsh", "--connect", "test:///default", "list", "--all"]
    return {
        PYTHON: Call([sys.executable, "-c", "pass"], ours),
        VIRSH: Call(virsh, environment(unpacked("libvirt-clients"))),
        "jitsuctl --version": Call([JITSUCTL, "--version"], ours),
        "jitsuctl --help": Call([JITSUCTL, "--help"], ours),
        "jitsuctl status": Call([JITSUCTL, "status"], ours),
        "jitsuctl why vm1": Call([JITSUCTL, "why", "vm1"], ours),
        "completion of a VM": Call([JITSUCTL], {**ours, **tab}),
        "jitsuctl check": Call([JITSUCTL, "check", "--config", str(configuration)], ours),
    }


@click.command()
@click.option("--times", default=20, show_default=True, type=click.IntRange(1), help="How often each is called.")
@click.option("--vms", default=100, show_default=True, type=click.IntRange(1), help="How many VMs Jitsu has.")
@json_option
def main(times: int, vms: int, path: Path | None) -> None:
    """Measure what a call of jitsuctl takes."""
    listed = "".join(
        f"  - {{name: vm{number}, dns: vm{number}.jitsu.test, ip: {FIRST_IP + number}}}\n"
        for number in range(1, vms + 1)
    )
    with tempfile.TemporaryDirectory() as folder:
        jitsu = Jitsu(Path(folder), CONFIGURATION.format(port=free_port()) + listed, "127.0.0.1")
        jitsu.start()
        try:
            found = calls(f"unix:{jitsu.socket}", Path(folder, "jitsu.yaml"))
            for _ in range(times):
                for call in found.values():
                    call.make()
        finally:
            jitsu.stop(signal.SIGKILL)
    made = table(["call"], ["CPU, ms", "clock, ms", f"CPU / {PYTHON}", f"CPU / {VIRSH}"])
    cpu = {name: statistics.median(call.cpu) for name, call in found.items()}
    for name, call in found.items():
        wall = statistics.median(call.wall)
        ratios = (f"{cpu[name] / cpu[peer]:.1f}" for peer in (PYTHON, VIRSH))
        made.add_row(name, f"{cpu[name] * 1000:.0f}", f"{wall * 1000:.0f}", *ratios)
    Console().print(made)
    write(path, {name: {"cpu": call.cpu, "wall": call.wall} for name, call in found.items()})


if __name__ == "__main__":
    main()
