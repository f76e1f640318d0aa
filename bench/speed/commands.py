"""
The cold start of a container: from a DNS query to the first octet of HTTP through Jitsu and Synjitsu, against ``podman
start`` by hand to it.

Two containers that are the same, on the same bridge, in turn: one start by hand, with a client that knows the address
and the MAC and tries to connect every few milliseconds; one by a query, with a client that asks once and connects once.
Run it as::

    python -m bench.speed.commands [--backend podman] [--rounds 10] [--json FILE]

With ``--backend docker-api`` Jitsu starts the container by podman's HTTP interface, which is compared to ``podman
start``, too.

It needs what the end-to-end tests need; figures are medians of the rounds, in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from bench.figures import json_option, write
from bench.speed.cold import IP, MAC, PORT, READY_IP, READY_MAC, by_query, compared, median_table, stage
from demo import lab
from demo.server import Jitsu, Synjitsu
from test.support.podmans import Podman

if TYPE_CHECKING:
    from pathlib import Path

#: The container that is started by hand: the same but for its name and address, which Jitsu and Synjitsu do not know.
HAND: Final = "hand"

#: More starts in a minute are refused to a client whose address no cookie proves.
MOST: Final = 24

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
backend: {{backend}}
synjitsu: {{place}}
vms:
  - name: www
    dns: www.jitsu.test
    ip: {READY_IP}
    mac: "{READY_MAC}"
    wait_for_port: {PORT}
    use_synjitsu: true
{{more}}"""


def by_hand(network: lab.Network, podman: Podman) -> dict[str, float]:
    """Start the container once by hand; return what it took."""
    network.pin("client", IP, MAC)
    program = network.command("client", [sys.executable, "-m", "bench.speed.cold", "poll"])
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as polling:
        assert polling.stdout is not None
        polling.stdout.readline()
        begin = time.monotonic()
        network.run("host", ["podman", "start", HAND])
        created = time.monotonic()
        seen = {"created": created, **json.loads(polling.stdout.read())}
    podman.run("stop", "--time", "0", HAND)
    network.run("client", ["ip", "neighbour", "del", IP, "dev", "eth0"])
    return {step: (when - begin) * 1000 for step, when in seen.items()}


def measure(rounds: int, backend: str) -> dict[str, Any]:
    """Start the container *rounds* times each way, in turn; return all figures, medians and the ratio."""
    with contextlib.ExitStack() as stack:
        directory, network = stage(stack)
        podman = Podman(network, directory / "podman")
        stack.callback(podman.close)
        podman.create(HAND, IP, MAC)
        podman.create("www", READY_IP, READY_MAC)
        os.environ.update(podman.environment)
        synjitsu = Synjitsu(directory, network)
        stack.callback(synjitsu.stop, signal.SIGKILL)
        synjitsu.start()
        more = ""
        if backend == "docker-api":
            podman.serve()
            more = f"    variables: {{socket: {podman.socket}}}\n"
        configuration = CONFIGURATION.format(place=synjitsu.place, backend=backend, more=more)
        jitsu = Jitsu(directory, configuration, lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        hands, queries = [], []
        for number in range(rounds):
            hands.append(by_hand(network, podman))
            queries.append(by_query(network, jitsu))
            jitsu.wait("off")
            print(f"round {number + 1} of {rounds}: {hands[-1]['first octet']:.0f} ms by hand, "
                  f"{queries[-1]['first octet']:.0f} ms by query", flush=True)
    return compared(hands, queries)


@click.command()
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1, MOST), help="Starts each way.")
@click.option("--backend", type=click.Choice(["podman", "docker-api"]), default="podman", show_default=True)
@json_option
def main(rounds: int, backend: str, path: Path | None) -> None:
    """Measure cold starts of a container."""
    figures = measure(rounds, backend)
    write(path, figures)
    console = Console(highlight=False)
    console.print(median_table(figures, "podman start", ("created", "answered", "connected", "first octet")))
    console.print(f"query -> first octet / podman start -> first octet: [bold]{figures['ratio']:.3f}[/] "
                  f"({figures['rounds']} rounds each)")  # fmt: skip


if __name__ == "__main__":
    main()
