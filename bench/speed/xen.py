"""
The cold start on Xen: from a DNS query to the first octet of HTTP, against a bare ``xl create`` of the same guest.

In the Xen lab (`test.xenlab.lab`), which is emulated: the figures say what Jitsu adds, not how quick Xen is. In turn:
one boot by hand, where a shell in dom0 calls xl and a client that knows the guest's MAC tries to connect all the time;
and one by a query, where the client waits for the answer and connects once. Run it as::

    python -m bench.speed.xen [--rounds 5] [--json FILE]

It needs what the tests in the Xen lab need; figures are medians of the rounds, in milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from bench.figures import json_option, write
from bench.speed.cold import IP, PORT, compared, median_table
from jitsu_tw.backends import xen
from test.xenlab.lab import DOM0_IP, KERNEL, RAMDISK, XenLab
from test.xenlab.suite import Jitsu

MAC: Final = "00:16:3e:99:00:10"
UUID: Final = "0ddba11a-0000-4000-8000-000000000010"

GUEST: Final = xen.XenGuest(
    Path(KERNEL), ramdisk=Path(RAMDISK), nic=("xenbr0",), mac=(MAC,),
    cmdline=f"console=hvc0 quiet mitigations=off lab.ip={IP} lab.key=data/ready",
)  # fmt: skip

CONFIGURATION: Final = f"""\
bind: {DOM0_IP}
answer_by: 120
starts_per_minute: 0
vms:
  - name: www
    dns: www.jitsu.test
    ip: {IP}
    backend: libxl
    kernel: {KERNEL}
    ramdisk: {RAMDISK}
    memory: 128MiB
    cmdline: {GUEST.cmdline}
    nic: xenbr0
    mac: {MAC}
    wait_for_key: data/ready
    mode: destroy
"""

STEPS: Final = ("created", "key", "answered", "connected", "first octet")


def by_hand(lab: XenLab, shell: subprocess.Popen[str]) -> dict[str, float]:
    """Boot once by hand; return what it took."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    lab.network.pin("client", IP, MAC)
    program = lab.network.command("client", [sys.executable, "-m", "bench.speed.cold", "poll"])
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as polling:
        assert polling.stdout is not None
        polling.stdout.readline()
        begin = time.monotonic()
        print("xl create -q /lab/run/bare.cfg && echo created", file=shell.stdin, flush=True)
        if shell.stdout.readline() != "created\n":
            raise SystemExit("xl cannot create the guest; see above")
        created = time.monotonic()
        seen = json.loads(polling.stdout.read())
    print("xl destroy bare; echo destroyed", file=shell.stdin, flush=True)
    shell.stdout.readline()
    lab.client(["ip", "neighbour", "del", IP, "dev", "eth0"])
    return {"created": (created - begin) * 1000} | {
        step: (seen[step] - begin) * 1000 for step in ("connected", "first octet")
    }


def by_query(lab: XenLab, jitsu: Jitsu) -> dict[str, float]:
    """Boot once by a query; return what it took, as the client and Jitsu saw it."""
    program = [sys.executable, "-m", "demo.client", DOM0_IP, "53", "www.jitsu.test", str(PORT)]
    seen = json.loads(lab.client(program).stdout)
    times = {step: (seen[step] - seen["query"]) * 1000 for step in ("answered", "connected", "first octet")}
    marks = jitsu.vms()[0]["activation_ms"]
    jitsu.ask("POST", "vms/www/stop")
    jitsu.wait("www", "off")
    lab.client(["ip", "neighbour", "del", IP, "dev", "eth0"], check=False)
    return times | {"created": marks["started"], "key": marks["ready"]}


def measure(rounds: int) -> dict[str, Any]:
    """Boot in turn, *rounds* times each way; return all figures and medians."""
    with XenLab() as lab:
        lab.put("/lab/run/bare.cfg", xen.configuration("bare", UUID, GUEST))
        jitsu = Jitsu(lab, CONFIGURATION)
        shell = lab.popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hands, queries = [], []
        for number in range(rounds):
            hands.append(by_hand(lab, shell))
            queries.append(by_query(lab, jitsu))
            print(f"round {number + 1} of {rounds}: {hands[-1]['first octet']:.0f} ms by hand, "
                  f"{queries[-1]['first octet']:.0f} ms by query; load {os.getloadavg()[0]:.1f}", flush=True)
    return compared(hands, queries)


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    console = Console(highlight=False)
    console.print(median_table(figures, "xl create", STEPS))
    console.print(f"query -> first octet / xl create -> first octet: [bold]{figures['ratio']:.3f}[/]")


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Boots each way.")
@json_option
def main(rounds: int, path: Path | None) -> None:
    """Measure cold starts on Xen."""
    figures = measure(rounds)
    write(path, figures)
    show(figures)


if __name__ == "__main__":
    main()
