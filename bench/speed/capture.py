"""
What it costs Synjitsu to watch a VM that is up, while data pass through its bridge.

A client sends through the bridge to a guest (both are namespaces) as fast as it can, on some connections; or opens and
closes connections, one after the other. In turn:

- **none**: without Synjitsu.
- **syn**: Synjitsu captures segments with SYN and RST, as before it knew flows.
- **flows**: also those with FIN, and it knows the flows.
- **all**: all segments of TCP, as it would if it had to see the data.

Printed are what passed (Gbit/s, or connections a second), and Synjitsu's CPU as a part of one core. Run it as::

    python -m bench.speed.capture [--seconds 5] [--rounds 3] [--json FILE]

It needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from test.support.netns_lab import NetnsLab

#: What is captured, as the flags that a segment must have one of; None is without Synjitsu.
WAYS: Final = {"none": None, "syn": 2 | 4, "flows": 1 | 2 | 4, "all": 0xFF}

IP: Final = "10.9.0.10"
MAC: Final = "52:54:00:09:00:10"

#: Starts Synjitsu with a filter for segments with one of these flags; without FIN, it does not know the flows.
SYNJITSU: Final = """
import sys
from synjitsu_tw import capture
from synjitsu_tw.standins import Standins
flags = int(sys.argv.pop(1))
capture._TCP = (f"tcp[13] & {flags} != 0", f"ip6[6] = 6 and ip6[53] & {flags} != 0")
if not flags & 1:
    Standins._note_flow = lambda *_: None
sys.argv[0] = "twistd"
from twisted.scripts.twistd import run
run()
"""

#: Takes all that connections send, and closes each when its client does.
SERVER: Final = f"""
import socket, threading
server = socket.create_server(("{IP}", 80), backlog=1024)
print("ready", flush=True)
def take(one, buffer):
    while one.recv_into(buffer):
        pass
    one.close()
while True:
    one, _ = server.accept()
    threading.Thread(target=take, args=(one, bytearray(1 << 20)), daemon=True).start()
"""

#: Sends on four connections for some seconds; prints how many octets were sent.
BULK: Final = f"""
import socket, sys, threading, time
until, sent = time.monotonic() + float(sys.argv[1]), [0] * 4
def send(number):
    one, octets = socket.create_connection(("{IP}", 80)), bytes(1 << 20)
    while time.monotonic() < until:
        sent[number] += one.send(octets)
    one.close()
threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
[one.start() for one in threads], [one.join() for one in threads]
print(sum(sent))
"""

#: Opens and closes connections for some seconds; prints how many.
SHORT: Final = f"""
import socket, sys, time
until, count = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < until:
    with socket.create_connection(("{IP}", 80)) as one:
        one.send(b"x")
    count += 1
print(count)
"""


def cpu(process: subprocess.Popen[bytes] | None) -> float:
    """Return the seconds of CPU that a process has used (proc(5), utime and stime)."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(lab: NetnsLab, flags: int, folder: Path, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Start a Synjitsu that watches the guest, and wait until it listens."""
    place = folder / "socket"
    words = [sys.executable, "-c", SYNJITSU, str(flags), "-n", "--pidfile=", "synjitsu", "-i", "br0",
             "--listen", f"unix:{place}", "--standin", f"{IP}={MAC}"]  # fmt: skip
    process = subprocess.Popen(lab.command("host", *words), cwd=folder, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    while not place.exists():
        if process.poll() is not None:
            raise SystemExit("Synjitsu has ended; see above")
        time.sleep(0.01)
    return process


def once(way: str, seconds: float) -> dict[str, float]:
    """Measure one way; return Gbit/s, connections a second, and Synjitsu's part of a core in both."""
    flags, found = WAYS[way], {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = NetnsLab(stack.callback)
        lab.plug("client", "10.9.0.2/24")
        lab.plug("guest", up=False)
        lab.run("guest", f"ip link set eth0 address {MAC}")
        synjitsu = None if flags is None else start(lab, flags, folder, stack)
        lab.batch("guest", "link set eth0 up", f"address add {IP}/24 dev eth0")
        lab.start("guest", sys.executable, "-c", SERVER).line()
        for name, program, scale in (("gbit", BULK, 8e-9), ("connections", SHORT, 1.0)):
            subprocess.run(lab.command("client", sys.executable, "-c", program, "0.3"), check=True, capture_output=True)
            before, begun = cpu(synjitsu), time.monotonic()
            line = lab.command("client", sys.executable, "-c", program, str(seconds))
            said = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
            lasted = time.monotonic() - begun
            found[name] = int(said) * scale / seconds
            found[f"{name} CPU"] = (cpu(synjitsu) - before) / lasted
    return found


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="How long each measurement lasts.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each way.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all figures to this file.")
def main(seconds: float, rounds: int, path: Path | None) -> None:
    """Measure what Synjitsu costs while data pass."""
    load = os.getloadavg()[0]
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way, found in figures.items():
            found.append(once(way, seconds))
        print(f"round {number + 1} of {rounds}: " + ", ".join(
            f"{way} {found[-1]['gbit']:.1f} Gbit/s" for way, found in figures.items()))  # fmt: skip
    if path is not None:
        path.write_text(json.dumps({"ways": figures, "load": [load, os.getloadavg()[0]]}, indent=2))
    table = Table(box=None, pad_edge=False)
    table.add_column("captured")
    for title in ("Gbit/s", "CPU", "connections/s", "CPU", "CPU us/connection"):
        table.add_column(title, justify="right")
    for way, found in figures.items():
        median: dict[str, Any] = {name: statistics.median(one[name] for one in found) for name in found[0]}
        each = median["connections CPU"] / median["connections"] * 1e6
        table.add_row(way, f"{median['gbit']:.2f}", f"{median['gbit CPU']:.1%}", f"{median['connections']:.0f}",
                      f"{median['connections CPU']:.1%}", f"{each:.0f}")  # fmt: skip
    console = Console(highlight=False, width=max(Console().width, 100))
    console.print(table)
    console.print(f"medians of {rounds} rounds, load {load:.1f} before and {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
