"""
Prepared VMs: what they take, and a storm on all of them.

So many VMs with `prepare` and the guest of `demo.unikernel` are prepared, one after the other. Then a client asks for
all of them within a second, and fetches each one's page by one connection. Run it as::

    python -m bench.speed.prepared [--vms 50] [--json FILE]

It needs what the end-to-end tests need. Memory is in MiB: of all QEMUs, what they have of their own and their share of
what they have together (``Pss`` of ``/proc/PID/smaps_rollup``). Latencies are milliseconds from the query to the first
octet; for comparison, the same storm is made once more while the same VMs are up.
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from bench.figures import json_option, table, write
from demo import client, lab
from demo import unikernel as guest
from demo.server import Jitsu

CONFIGURATION: Final = """\
bind: {server}
connect: {uri}
answer_by: 60
max_prepared: {number}
starts_per_minute: 0
max_booting: 100
vms:
"""
VM: Final = (
    "  - {{name: vm{0}, dns: vm{0}.jitsu.test, ip: 10.99.0.{0}, define: vm{0}.xml, wait_for_port: 80, prepare: true, "
    "idle: 3600}}\n"
)

#: The last octets of the VMs' addresses begin here.
FIRST: Final = 10

#: Seconds that one VM may take to be prepared.
PATIENCE: Final = 10.0

#: Seconds within which all VMs are asked for.
STORM: Final = 1.0


def storm(numbers: list[int]) -> None:
    """Visit each of the VMs by a thread of its own, all within `STORM` seconds; print the times as JSON."""
    visits: dict[int, float] = {}

    def visit(number: int, when: float) -> None:
        time.sleep(max(0.0, when - time.monotonic()))
        seen = client.fetch(lab.HOST_IP, 53, f"vm{number}.jitsu.test", 80)
        visits[number] = (seen["first octet"] - seen["query"]) * 1000

    begin = time.monotonic() + 0.5
    every = STORM / len(numbers)
    threads = [threading.Thread(target=visit, args=(one, begin + at * every)) for at, one in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(visits))


def memory(pids: list[int]) -> float:
    """Return the memory of the processes, in MiB."""
    rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(found) for text in rollups for found in re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)) / 1024


def measure(number: int) -> dict[str, Any]:
    """Prepare *number* VMs, and visit all of them twice; return all figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(lab.directory()))
        network = stack.enter_context(lab.Network())
        stack.callback(lab.stop_qemus, directory / "root")
        numbers = list(range(FIRST, FIRST + number))
        for one in numbers:
            xml = guest.domain_xml(f"vm{one}", f"10.99.0.{one}", f"52:54:00:99:00:{one:02x}", bridge=lab.BRIDGE)
            (directory / f"vm{one}.xml").write_text(xml)
        top = CONFIGURATION.format(server=lab.HOST_IP, uri=lab.embed_root(directory / "root"), number=number)
        jitsu = Jitsu(directory, top + "".join(VM.format(one) for one in numbers), lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        begin = time.monotonic()
        while any(vm["state"] != "prepared" for vm in jitsu.vms()):
            if time.monotonic() > begin + PATIENCE * number:
                raise SystemExit("not all VMs are prepared; see the log")
            time.sleep(0.1)
        took = time.monotonic() - begin
        pids = network.processes("qemu-system")
        before = memory(pids)
        program = [sys.executable, "-m", "bench.speed.prepared", "storm", *map(str, numbers)]
        storms = [list(json.loads(network.run("client", program).stdout).values()) for _ in range(2)]
        return {"vms": number, "prepared in": took, "memory": before, "memory after": memory(pids),
                "prepared": storms[0], "up": storms[1]}  # fmt: skip


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    rows = table([f"{figures['vms']} VMs asked for in a second"], ["median ms", "p99 ms", "slowest ms"])
    for way in ("prepared", "up"):
        found = sorted(figures[way])
        cells = statistics.median(found), found[-(-len(found) * 99 // 100) - 1], found[-1]
        rows.add_row(way, *(f"{cell:.1f}" for cell in cells))
    each = figures["memory"] / figures["vms"]
    words = f"{figures['memory']:.0f} MiB in all, {each:.1f} each; all prepared after {figures['prepared in']:.0f} s"
    Console(highlight=False).print(rows, words, sep="\n")


@click.group(invoke_without_command=True)
@click.option("--vms", "number", default=50, show_default=True, type=click.IntRange(1, 200), help="How many.")
@json_option
@click.pass_context
def main(context: click.Context, number: int, path: Path | None) -> None:
    """Measure prepared VMs."""
    if context.invoked_subcommand is None:
        figures = measure(number)
        write(path, figures)
        show(figures)


@main.command("storm", hidden=True)
@click.argument("numbers", type=int, nargs=-1)
def storm_command(numbers: tuple[int, ...]) -> None:
    """Visit VMs, from the client's side."""
    storm(list(numbers))


if __name__ == "__main__":
    main()
