"""
What sleeping VMs cost, and how soon a packet wakes one.

So many VMs of the memory backend sleep (`mode: pause`), and Synjitsu stands in for all of them on the bridge of a
network namespace of its own. What Jitsu and Synjitsu together use while nothing happens is read from the kernel
(``/proc/PID/task/*/schedstat``); then a client sends a SYN to some of the VMs, and it is measured until Jitsu tells
that the hypervisor, which takes no time, has resumed the VM. Run it as::

    python -m bench.speed.sleepers [--vms 500 --vms 2000 --vms 10000] [--seconds 30] [--json FILE]

It needs root, but no hypervisor. CPU is in percent of one core, memory in MiB, latencies are in milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from demo import lab
from demo.server import Jitsu, Synjitsu
from jitsu_tw.ctl.client import Control

#: The addresses of the VMs, and that of the host among them.
NETWORK: Final = IPv4Network("10.98.0.0/16")
HOST: Final = NETWORK[-2]
CLIENT: Final = NETWORK[-3]

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
synjitsu: {{place}}
max_booting: 100
starts_per_minute: 0
backend: memory
vms:
"""
VM: Final = "  - {{name: vm{0}, dns: vm{0}.jitsu.test, ip: {1}, mode: pause, use_synjitsu: true, idle: 3600}}\n"

#: The most that 10,000 sleeping VMs may cost, in percent of a core.
MOST: Final = 1.0

#: How many VMs are started, or put to sleep, at once.
AT_ONCE: Final = 16

#: Seconds after which what the last announcements and looks at leases lead to is over.
SETTLES: Final = 70.0

#: Seconds that a VM may take to wake.
PATIENCE: Final = 10.0


def address(number: int) -> IPv4Address:
    """Return the address of a VM."""
    return NETWORK[number + 1]


def wake(place: str, numbers: list[int]) -> None:
    """Send a SYN to each of these VMs in turn; print the milliseconds until the hypervisor's call has ended."""
    for number in numbers:
        events = Control(place).events(1, follow=True)
        assert next(events, None) is not None  # it is connected
        with socket.socket() as client:
            client.settimeout(0)
            begin = time.monotonic()
            client.connect_ex((str(address(number)), 80))
            for event in events:
                if event["kind"] == "state" and event["vm"] == f"vm{number}" and event["state"] == "waiting":
                    print((time.monotonic() - begin) * 1000, flush=True)
                    break


def cpu(pids: list[int]) -> float:
    """Return the seconds of CPU that the processes have used, to the nanosecond: ticks are too coarse."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure(number: int, seconds: float, wakes: int) -> dict[str, Any]:
    """Let *number* VMs sleep for *seconds*, then wake *wakes* of them; return all figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(lab.directory()))
        network = stack.enter_context(lab.Network())
        for where, device, ip in (("host", lab.BRIDGE, HOST), ("client", "eth0", CLIENT)):
            network.run(where, ["ip", "address", "add", f"{ip}/16", "dev", device])
        synjitsu = Synjitsu(directory, network)
        stack.callback(synjitsu.stop, signal.SIGKILL)
        synjitsu.start()
        vms = "".join(VM.format(one, address(one)) for one in range(number))
        jitsu = Jitsu(directory, CONFIGURATION.format(place=synjitsu.place) + vms, lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        with ThreadPoolExecutor(AT_ONCE) as pool:  # a start is answered when the VM is up
            for word in ("start", "stop"):
                paths = (f"/v1/vms/vm{one}/{word}" for one in range(number))
                list(pool.map(partial(jitsu.control.ask, "POST"), paths))
        states = {vm["state"] for vm in jitsu.vms()}
        if states != {"paused"}:
            raise SystemExit(f"not all VMs sleep: {states}")
        time.sleep(SETTLES)
        assert jitsu.process is not None
        assert synjitsu.process is not None
        pids = [jitsu.process.pid, synjitsu.process.pid]
        before = [cpu([pid]) for pid in pids]
        time.sleep(seconds)
        used = [(cpu([pid]) - was) / seconds * 100 for pid, was in zip(pids, before, strict=True)]
        woken = range(0, number, -(-number // wakes))
        program = [sys.executable, "-m", "bench.speed.sleepers", "wake", f"unix:{jitsu.socket}", *map(str, woken)]
        took = [float(one) for one in network.run("client", program, timeout=PATIENCE * wakes).stdout.split()]
        return {"vms": number, "cpu": used, "memory": [memory(pid) for pid in pids], "wakes": took}


def show(figures: list[dict[str, Any]], seconds: float) -> None:
    """Print the figures as a table."""
    table = Table(box=None, pad_edge=False)
    for title in ("VMs", "CPU of Jitsu, %", "of Synjitsu, %", "together, %", "MiB of Jitsu", "of Synjitsu", "wake, ms",
                  "slowest, ms"):
        table.add_column(title, justify="right")
    for one in figures:
        table.add_row(f"{one['vms']:,}", *(f"{share:.2f}" for share in (*one["cpu"], sum(one["cpu"]))),
                      *(f"{size:.0f}" for size in one["memory"]), f"{statistics.median(one['wakes']):.1f}",
                      f"{max(one['wakes']):.1f}")
    limit = f"over {seconds:g} s; 10,000 may cost {MOST:g}% together"
    Console(highlight=False, width=110).print(table, limit, sep="\n")


@click.group(invoke_without_command=True)
@click.option("--vms", "numbers", multiple=True, default=(500, 2000, 10000), show_default=True, help="How many.")
@click.option("--seconds", default=30.0, show_default=True, help="For which they sleep.")
@click.option("--wakes", default=20, show_default=True, help="How many are woken.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all figures to this file.")
@click.pass_context
def main(context: click.Context, numbers: tuple[int, ...], seconds: float, wakes: int, path: Path | None) -> None:
    """Measure what sleeping VMs cost."""
    if context.invoked_subcommand is None:
        figures = [measure(number, seconds, wakes) for number in numbers]
        if path is not None:
            path.write_text(json.dumps(figures, indent=2))
        show(figures, seconds)


@main.command("wake", hidden=True)
@click.argument("place")
@click.argument("numbers", type=int, nargs=-1)
def wake_command(place: str, numbers: tuple[int, ...]) -> None:
    """Wake VMs, from the client's side."""
    wake(place, list(numbers))


if __name__ == "__main__":
    main()
