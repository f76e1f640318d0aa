"""
What libvirt itself takes to start the examples of ``conf/``, with and without the lines on the CPU's features.

libvirt asks QEMU for each feature of the virtual CPU when it starts a domain, unless the lines with
``cpu-unavailable-features`` are in its definition. Each example is defined as it is and without these lines, for a
machine without KVM, and started in turn by ``create()``, from nothing and from its saved memory. The kernel of
MirageOS' and Unikraft's is `test.guest`, which serves its page; the disks of the others are empty, so that nothing
boots from them. Run it as::

    python -m bench.speed.create [--rounds 20] [--example NAME]... [--json FILE]

It needs what the end-to-end tests need; figures are medians of the rounds, in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from bench.figures import json_option, table, write
from bench.speed import cold
from demo import lab
from test import guest

if TYPE_CHECKING:
    import subprocess

CONF: Final = Path(__file__).parents[2] / "conf"

#: The examples, and whether their guest serves a page here.
EXAMPLES: Final = {"batch": False, "mirage": True, "nanos": False, "unikraft": True}

#: The lines, as they stand in each example.
LINES: Final = re.compile(r" *<qemu:capabilities>.*?</qemu:capabilities>\n", re.DOTALL)


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


def started(network: lab.Network, machine: subprocess.Popen[str], *, serves: bool) -> dict[str, float]:
    """Start the guest once, and destroy it; return what ``create()`` took, and all to the first octet of its page."""
    if serves:
        seen = cold.by_hand(network, machine)
        return {"create": seen["created"], "first octet": seen["first octet"]}
    begin, end = cold.tell(machine, "create")
    cold.tell(machine, "destroy")
    return {"create": (end - begin) * 1000}


def restored(network: lab.Network, machine: subprocess.Popen[str], *, serves: bool) -> dict[str, float]:
    """Start the guest, save it, and start it from there; return what that took."""
    cold.tell(machine, "create")
    cold.tell(machine, "managedSave")
    seen = started(network, machine, serves=serves)
    return {f"{step}, restored": took for step, took in seen.items()}


def measure(example: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Start one example *rounds* times with the lines and without, in turn; return what each start took."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(lab.directory()))
        network = stack.enter_context(lab.Network())
        disk = directory / "disk"
        disk.touch()
        os.truncate(disk, 1 << 20)
        text = without_kvm((CONF / f"{example}.xml").read_text(), disk)
        machines = {}
        for way, xml in (("with", text), ("without", LINES.sub("", text))):
            root = directory / way
            stack.callback(lab.stop_qemus, root)
            file = directory / f"{way}.xml"
            file.write_text(xml)
            machines[way] = stack.enter_context(cold.by_itself(network, root, file))
        found: dict[str, list[dict[str, float]]] = {way: [] for way in machines}
        for _ in range(rounds):
            for way, machine in machines.items():
                serves = EXAMPLES[example]
                found[way].append(started(network, machine, serves=serves) | restored(network, machine, serves=serves))
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
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")  # else each start is three warnings
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
