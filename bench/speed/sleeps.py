"""
What a sleep costs a client whose connection is open: is it alive afterwards, and how much longer does an answer take?

A guest that sends back what it gets, and a client on its bridge. For each mode (`pause`, `save`), by turns: the guest
is put to sleep, and the client sends on its connections, which wakes the guest.

- **alive**: how many of `--sessions` connections go on after `--sleeps` sleeps each, with all that was sent, once.
- **awake**, **woken**: milliseconds from sending to the answer on one connection, of a guest that is up, and of one
  that sleeps. Their difference is the added round trip.

Run it as::

    python -m bench.speed.sleeps [--sessions 100] [--sleeps 10] [--json FILE]

It needs what the end-to-end tests need.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table

from demo import lab
from demo import unikernel as guest
from demo.server import Jitsu, Synjitsu
from test.support.echoes import PROGRAM, Echoes

if TYPE_CHECKING:
    from collections.abc import Callable

#: Modes, each with the state of a VM that sleeps by it.
MODES: Final = {"pause": "paused", "save": "saved"}

IP: Final = "10.99.0.10"
MAC: Final = "52:54:00:99:00:10"

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
connect: {{uri}}
synjitsu: {{place}}
starts_per_minute: 0
ttl: 600
mode: {{mode}}
vms:
  - {{{{name: www, dns: www.jitsu.test, ip: {IP}, define: www.xml, use_synjitsu: true, wait_for_port: 80}}}}
"""


class Sleeper:
    """A guest, and clients of it."""

    def __init__(self, stack: contextlib.ExitStack, mode: str) -> None:
        """Start Synjitsu and Jitsu; the guest boots for the first client."""
        directory = Path(stack.enter_context(lab.directory()))
        self._stack, self._network, self._mode = stack, stack.enter_context(lab.Network()), mode
        root = directory / "root"
        stack.callback(lab.stop_qemus, root)
        (directory / "www.xml").write_text(guest.domain_xml("www", IP, MAC, "echo", bridge=lab.BRIDGE))
        synjitsu = Synjitsu(directory, self._network)
        stack.callback(synjitsu.stop, signal.SIGKILL)
        synjitsu.start()
        text = CONFIGURATION.format(uri=lab.embed_root(root), place=synjitsu.place, mode=mode)
        self._jitsu = Jitsu(directory, text, lab.HOST_IP, self._network)
        stack.callback(self._jitsu.stop, signal.SIGKILL)
        self._jitsu.start()

    def connect(self, connections: int) -> Echoes:
        """Open connections to the guest."""
        line = self._network.command("client", [sys.executable, "-c", PROGRAM, json.dumps([IP] * connections)])
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(process.kill)
        return Echoes(process)

    def sleep(self) -> None:
        """Put the guest to sleep, and wait until it does."""
        self._jitsu.wait("up")
        self._jitsu.control.vm("www", "stop")
        self._jitsu.wait(MODES[self._mode])

    def resets(self) -> int:
        """Return how many connections the client's kernel has seen reset."""
        words = ["nstat", "-asz", "TcpEstabResets"]
        return int(self._network.run("client", words).stdout.splitlines()[-1].split()[1])


def answered(echoes: Echoes) -> dict[str, Any]:
    """Send on each connection, and return how that has ended."""
    echoes.send()
    return echoes.answers()


def measure(mode: str, sessions: int, sleeps: int, tell: Callable[[str], object]) -> dict[str, Any]:
    """Put a guest to sleep as often for one connection as for all; return the figures of a mode."""
    with contextlib.ExitStack() as stack:
        sleeper = Sleeper(stack, mode)
        one = sleeper.connect(1)
        awake, woken = [], []
        for _ in range(sleeps):
            answered(one)
            time.sleep(0.2)
            awake += answered(one)["took"]
            sleeper.sleep()
            woken += answered(one)["took"]
        tell(f"{mode}: woken after {statistics.median(woken) * 1000:.0f} ms (median)")
        many = sleeper.connect(sessions)
        alive, extra = sessions, 0
        for _ in range(sleeps):
            answered(many)
            sleeper.sleep()
            answers = answered(many)
            alive, extra = len(answers["took"]), extra + len(answers["extra"])
        tell(f"{mode}: {alive} of {sessions} sessions alive after {sleeps} sleeps")
        times = {name: [seconds * 1000 for seconds in found] for name, found in (("awake", awake), ("woken", woken))}
        return {"alive": alive, "sessions": sessions, "doubled": extra, "resets": sleeper.resets(), **times}


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("mode")
    for title in ("alive", "doubled", "RSTs", "awake ms", "woken ms", "p90", "max", "added"):
        table.add_column(title, justify="right")
    for mode, found in figures["modes"].items():
        awake, woken = statistics.median(found["awake"]), statistics.median(found["woken"])
        p90 = statistics.quantiles(found["woken"], n=10, method="inclusive")[-1]
        cells = [f"{found['alive']} of {found['sessions']}", str(found["doubled"]), str(found["resets"])]
        table.add_row(mode, *cells, *(f"{one:.1f}" for one in (awake, woken, p90, max(found["woken"]), woken - awake)))
    console = Console(highlight=False, width=max(Console().width, 100))
    console.print(table)
    before, after = figures["load"]
    console.print(f"{figures['sleeps']} sleeps, load {before:.1f} before and {after:.1f} after")


@click.command()
@click.option("--sessions", default=100, show_default=True, help="Connections that are open at once.")
@click.option("--sleeps", default=10, show_default=True, help="Sleeps of each.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all figures to this file.")
def main(sessions: int, sleeps: int, path: Path | None) -> None:
    """Measure what sleeps cost open connections."""
    load = os.getloadavg()[0]
    modes = {mode: measure(mode, sessions, sleeps, print) for mode in MODES}
    figures = {"sleeps": sleeps, "modes": modes, "load": [load, os.getloadavg()[0]]}
    if path is not None:
        path.write_text(json.dumps(figures, indent=2))
    show(figures)


if __name__ == "__main__":
    main()
