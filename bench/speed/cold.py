"""
The cold start: from a DNS query to the first octet of HTTP through Jitsu, against ``create()`` to it without Jitsu.

The same guest, hypervisor and network, in turn: one boot by hand, one by a query, one visit of a VM that is prepared
(`prepare`), and again. By hand means a program that calls libvirt's ``create()``, and a client that knows the guest's
address and MAC and tries to connect every few milliseconds: what the guest and the hypervisor need by themselves.
Through Jitsu, the client asks once, waits for the answer and connects once. Run it as::

    python -m bench.speed.cold [--rounds 5] [--guest own] [--json FILE]

It needs what the end-to-end tests need; figures are medians of the rounds, in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import libvirt
from rich.console import Console

from bench.figures import json_option, table, write
from demo import client, lab
from demo import unikernel as guest
from demo.server import Jitsu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

IP: Final = "10.99.0.10"
MAC: Final = "52:54:00:99:00:10"
PORT: Final = 80

#: Of the VM that is prepared.
READY_IP: Final = "10.99.0.11"
READY_MAC: Final = "52:54:00:99:00:11"

#: Seconds that a try to connect may take, by hand: longer than the emulated guest's answer, and soon tried again.
TRY: Final = 0.02

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
connect: {{uri}}
answer_by: 60
vms:
  - name: www
    dns: www.jitsu.test
    ip: {IP}
    define: www.xml
    wait_for_port: {PORT}
  - name: ready
    dns: ready.jitsu.test
    ip: {READY_IP}
    define: ready.xml
    wait_for_port: {PORT}
    prepare: true
"""


def hypervisor(uri: str, xml: str) -> None:
    """Define the guest, and create or destroy it whenever standard input says so; print when, in seconds."""
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn, daemon=True).start()
    domain = libvirt.open(uri).defineXML(Path(xml).read_text())
    print("defined", flush=True)
    for line in sys.stdin:
        begin = time.monotonic()
        getattr(domain, line.strip())()
        print(begin, time.monotonic(), flush=True)


@contextlib.contextmanager
def by_itself(network: lab.Network, root: Path, xml: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `hypervisor` below *root* for the guest that the file *xml* defines, and kill it at the end."""
    program = [sys.executable, "-m", "bench.speed.cold", "hypervisor", lab.embed_root(root), str(xml)]
    machine = network.popen("host", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert machine.stdout is not None
        if machine.stdout.readline() != "defined\n":
            raise SystemExit("the hypervisor cannot be had; see above")
        yield machine
    finally:
        machine.kill()


def _turn() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def poll() -> None:
    """Try to connect until it succeeds, fetch the page, and print when, as JSON."""
    print("trying", flush=True)
    while True:
        with socket.socket() as tried:
            tried.settimeout(TRY)
            try:
                tried.connect((IP, PORT))
            except OSError:
                time.sleep(TRY / 4)
                continue
            connected = time.monotonic()
            tried.settimeout(client.PATIENCE)
            tried.sendall(b"GET / HTTP/1.0\r\n\r\n")
            tried.recv(1)
            print(json.dumps({"connected": connected, "first octet": time.monotonic()}))
            return


def boot(network: lab.Network, machine: subprocess.Popen[str]) -> dict[str, float]:
    """Boot once by hand; return when what happened, in seconds."""
    network.pin("client", IP, MAC)
    program = network.command("client", [sys.executable, "-m", "bench.speed.cold", "poll"])
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as polling:
        assert polling.stdout is not None
        polling.stdout.readline()
        begin, created = tell(machine, "create")
        seen: dict[str, float] = json.loads(polling.stdout.read())
    tell(machine, "destroy")
    network.run("client", ["ip", "neighbour", "del", IP, "dev", "eth0"])
    return {"begin": begin, "created": created, **seen}


def by_hand(network: lab.Network, machine: subprocess.Popen[str]) -> dict[str, float]:
    """Boot once by hand; return what it took."""
    seen = boot(network, machine)
    begin = seen.pop("begin")
    return {step: (when - begin) * 1000 for step, when in seen.items()}


def tell(machine: subprocess.Popen[str], word: str) -> tuple[float, float]:
    """Make `hypervisor` do something; return when it began and ended."""
    assert machine.stdin is not None
    assert machine.stdout is not None
    machine.stdin.write(f"{word}\n")
    machine.stdin.flush()
    begin, end = map(float, machine.stdout.readline().split())
    return begin, end


def by_query(
    network: lab.Network, jitsu: Jitsu, name: str = "www", zone: str = "jitsu.test", *, stop: bool = True
) -> dict[str, float]:
    """
    Start a VM once by a query for the first label of its *name* in *zone*; return what it took, for the client.

    The VM is stopped then, if *stop* is set.
    """
    program = [sys.executable, "-m", "demo.client", lab.HOST_IP, "53", f"{name.partition('.')[0]}.{zone}", str(PORT)]
    seen = json.loads(network.run("client", program).stdout)
    times = {step: (seen[step] - seen["query"]) * 1000 for step in ("answered", "connected", "first octet")}
    times["created"] = jitsu.vm(name)["activation_ms"]["started"]
    if stop:
        jitsu.control.ask("POST", f"/v1/vms/{name}/stop")
    network.run("client", ["ip", "neighbour", "del", seen["address"], "dev", "eth0"], check=False)
    return times


def definition(kind: str, name: str, ip: str, mac: str) -> str:
    """Return the XML of a VM with the guest of that *kind*."""
    if kind == "own":
        return guest.domain_xml(name, ip, mac, bridge=lab.BRIDGE)
    return lab.domain_xml(name, ip, mac, lab.guest(), bridge=lab.BRIDGE)


def stage(stack: contextlib.ExitStack, *roots: str) -> tuple[Path, lab.Network]:
    """Return a directory, with *roots* of libvirt's in it, and a network; *stack* removes both, and stops all QEMUs."""
    directory = Path(stack.enter_context(lab.directory()))
    network = stack.enter_context(lab.Network())
    for root in roots:
        stack.callback(lab.stop_qemus, directory / root)
    return directory, network


def measure(rounds: int, kind: str) -> dict[str, Any]:
    """Start in turn, *rounds* times each way, a guest of that *kind*; return all figures, medians and ratios."""
    with contextlib.ExitStack() as stack:
        directory, network = stage(stack, "bare", "ours")
        bare, ours = directory / "bare", directory / "ours"
        for name, ip, mac in (("www", IP, MAC), ("ready", READY_IP, READY_MAC)):
            (directory / f"{name}.xml").write_text(definition(kind, name, ip, mac))
        machine = stack.enter_context(by_itself(network, bare, directory / "www.xml"))
        jitsu = Jitsu(directory, CONFIGURATION.format(uri=lab.embed_root(ours)), lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        hands, queries, readies = [], [], []
        for number in range(rounds):
            jitsu.wait("prepared", "ready")
            hands.append(by_hand(network, machine))
            queries.append(by_query(network, jitsu))
            readies.append(by_query(network, jitsu, "ready"))
            print(f"round {number + 1} of {rounds}: {hands[-1]['first octet']:.0f} ms by hand, "
                  f"{queries[-1]['first octet']:.0f} ms by query, {readies[-1]['first octet']:.0f} ms prepared",
                  flush=True)
    medians = {step: statistics.median(one[step] for one in readies) for step in readies[0]}
    figures = compared(hands, queries)
    ratio = medians["first octet"] / figures["by hand"]["medians"]["first octet"]
    return {"kvm": lab.kvm_works(), **figures, "prepared": {"medians": medians, "all": readies, "ratio": ratio}}


def response_delay(octet: float) -> float:
    """Return the `response_delay`, in seconds, that an operator would set whose boot took *octet* milliseconds once."""
    return math.ceil(octet * 1.25 / 500) / 2


def compared(hands: list[dict[str, float]], queries: list[dict[str, float]]) -> dict[str, Any]:
    """Return the figures of boots by hand and by query: each, the medians, and the ratio of the first octets."""
    medians = [{step: statistics.median(one[step] for one in many) for step in many[0]} for many in (hands, queries)]
    return {
        "rounds": len(hands),
        "by hand": {"medians": medians[0], "all": hands},
        "by query": {"medians": medians[1], "all": queries},
        "ratio": medians[1]["first octet"] / medians[0]["first octet"],
    }


def median_table(figures: dict[str, Any], hand: str, steps: Iterable[str]) -> Table:
    """Return a table of the medians of *steps*; *hand* names a boot by hand."""
    rows = table(["median ms"], [hand, "by query"])
    for step in steps:
        cells = [figures[way]["medians"].get(step) for way in ("by hand", "by query")]
        rows.add_row(step, *("-" if cell is None else f"{cell:.0f}" for cell in cells))
    return rows


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    console = Console(highlight=False)
    console.print(median_table(figures, "by hand", ("created", "answered", "connected", "first octet")))
    console.print(
        f"query -> first octet / create() -> first octet: [bold]{figures['ratio']:.3f}[/] "
        f"({figures['rounds']} rounds each, {'KVM' if figures['kvm'] else 'software emulation'})"
    )
    prepared = figures["prepared"]
    console.print(
        f"the same of a prepared VM, {prepared['medians']['first octet']:.0f} ms: [bold]{prepared['ratio']:.3f}[/]"
    )


@click.group(invoke_without_command=True)
@click.option("--rounds", default=5, show_default=True, help="Boots each way.")
@click.option(
    "--guest", "kind", default="own", show_default=True, type=click.Choice(["own", "linux"]), help="What boots."
)
@json_option
@click.pass_context
def main(context: click.Context, rounds: int, kind: str, path: Path | None) -> None:
    """Measure cold starts."""
    if context.invoked_subcommand is None:
        figures = measure(rounds, kind)
        write(path, figures)
        show(figures)


main.command("hypervisor", hidden=True)(click.argument("uri")(click.argument("xml")(hypervisor)))
main.command("poll", hidden=True)(poll)

if __name__ == "__main__":
    main()
