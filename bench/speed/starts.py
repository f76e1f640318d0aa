"""
Cold starts through Jitsu and Synjitsu: how many clients see that the VM was off.

A client asks for a VM's name and connects at once, once, while its VM boots; then the VM is stopped, and again. Counted
are connections that failed, TCP resets that came to the client's interface for its connection, and SYNs that its kernel
sent again. The page of the guest `own` says since when it has listened: the milliseconds from there until the client is
connected are measured too, and a SYN that was sent again although the guest listened in time counts as a fault::

    python -m bench.speed.starts [--count 10] [--guest own] [--habit WORDS]... [--network NETWORK]... [--json FILE]

It runs all combinations, ends with status 1 if there was a fault, and needs what the end-to-end tests need. The guest
`own` is `demo.unikernel`, whose README.md explains the habits; `linux` is the demo's, which has none. The networks:

- ``plain``: the client is plugged into the bridge.
- ``alone``: nothing is plugged into the bridge, which has no carrier therefore; the client is the host.
- ``stp``: the same with STP and a delay of 2 s, as libvirt's own networks are: a new port forwards nothing for 4 s, so
  no boot is shorter than that.
- ``router``: nothing is plugged into the bridge; the client is in another subnet, and the host is its router.
- ``host``: a cable is plugged into the bridge, but the client is the host.
"""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from bench.figures import json_option, table, write
from bench.speed.visitor import Start
from demo import lab
from demo import unikernel as own
from demo.server import Jitsu, Synjitsu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: What the guest of our own is tried with, if no habits are named: it is as fast as it can be, resets early clients,
#: takes what is not for it, comes up late, announces nothing, has its address at another MAC, probes its address.
HABITS: Final = (
    "",
    "listen_after=200",
    "promiscuous listen_after=200",
    "net_after=300 silent",
    "mac=02:00:00:00:00:{number:02x}",
    "mac=02:00:00:00:00:{number:02x} silent listen_after=100",
    "probe",
)

#: Seconds that anything may take.
PATIENCE: Final = 60.0

#: Seconds from the end of a VM to the next client.
PAUSE: Final = 0.2

#: The client's and the host's addresses where the client is in a subnet of its own.
FAR: Final = {4: ("10.98.0.2/24", "10.98.0.1/24"), 6: ("fd98::2/64", "fd98::1/64")}

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
connect: {{uri}}
synjitsu: {{place}}
answer_by: 60
starts_per_minute: 0
vms:
"""
VM: Final = """\
  - name: {name}
    dns: {name}.jitsu.test
    ip: [{ip}, "{ip6}"]
    define: {name}.xml
    {more}
"""

#: How the VMs become ready whose starts are counted: their configuration.
SYNJITSU: Final = "use_synjitsu: true\n    wait_for_port: 80"


# The networks


class Place:
    """
    A network, and where the client is in it.

    Attributes:
        where: the client's namespace.
        interface: the client's interface.
    """

    def __init__(self, network: lab.Network, kind: str) -> None:
        """Rebuild *network* as this *kind*."""
        self.network = network
        self.where, self.interface = ("client", "eth0") if kind in {"plain", "router"} else ("host", lab.BRIDGE)
        if kind in {"alone", "stp"}:
            self._ip("host", "link del cable")
        if kind == "stp":
            self._ip("host", f"link set {lab.BRIDGE} type bridge stp_state 1 forward_delay 200")
        if kind == "router":
            self._ip("host", "link set cable nomaster")
            network.run("host", ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
            for family, (far, router) in FAR.items():
                self._ip("client", f"-{family} address flush dev eth0 scope global")
                nodad = " nodad" * (family == 6)
                self._ip("host", f"address add {router} dev cable{nodad}")
                self._ip("client", f"address add {far} dev eth0{nodad}")
                self._ip("client", f"-{family} route add default via {router.partition('/')[0]}")

    def _ip(self, where: str, line: str) -> None:
        self.network.run(where, ["ip", *line.split()])

    def forget_neighbours(self) -> None:
        """Empty the neighbour tables of client and host."""
        for where, interface in {(self.where, self.interface), ("host", lab.BRIDGE)}:
            self._ip(where, f"neighbour flush dev {interface}")


#: The networks, and for how many milliseconds their bridge forwards nothing to a new port.
NETWORKS: Final = {"plain": 0.0, "alone": 0.0, "stp": 4000.0, "router": 0.0, "host": 0.0}


# The starts


def address(number: int) -> tuple[str, str, str]:
    """Return the addresses of the number-th VM: IPv4, IPv6, and the MAC."""
    return f"10.99.0.{10 + number}", f"fd99::{10 + number}", f"52:54:00:99:00:{10 + number:02x}"


def domain(guest: str, habit: str, name: str, ip: str, ip6: str, mac: str) -> str:
    """Return the definition of a VM that boots a *guest*."""
    if guest == "linux":
        return lab.domain_xml(name, ip, mac, lab.guest(), bridge=lab.BRIDGE, ip6=ip6)
    return own.domain_xml(name, ip, mac, habit, bridge=lab.BRIDGE, ip6=ip6)


@contextlib.contextmanager
def running(
    kind: str, guests: Sequence[tuple[str, str]], vms: Mapping[str, str] | None = None
) -> Iterator[tuple[Jitsu, Place]]:
    """
    Run a Jitsu and a Synjitsu in a network of a *kind*.

    Args:
        kind: of `NETWORKS`.
        guests: a guest and its habits, of each VM.
        vms: the name of each VM, and its own lines of the configuration; vm0, vm1 … with `SYNJITSU` if not given.
    """
    vms = vms or {f"vm{number}": SYNJITSU for number in range(len(guests))}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(lab.directory()))
        network = stack.enter_context(lab.Network())
        place = Place(network, kind)
        root = directory / "libvirt"
        stack.callback(lab.stop_qemus, root)
        synjitsu = Synjitsu(directory, network)
        stack.callback(synjitsu.stop, signal.SIGKILL)
        synjitsu.start()
        if kind == "stp":  # the host's first client comes when Synjitsu's own port forwards
            until(lambda: "NO-CARRIER" not in network.run("host", ["ip", "link", "show", lab.BRIDGE]).stdout)
        configuration = CONFIGURATION.format(uri=lab.embed_root(root), place=synjitsu.place)
        for number, ((guest, habit), (name, more)) in enumerate(zip(guests, vms.items(), strict=True)):
            ip, ip6, mac = address(number)
            (directory / f"{name}.xml").write_text(domain(guest, habit.format(number=number), name, ip, ip6, mac))
            configuration += VM.format(name=name, ip=ip, ip6=ip6, more=more)
        jitsu = Jitsu(directory, configuration, lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        until(lambda: "connected to Synjitsu" in jitsu.log())
        yield jitsu, place


@contextlib.contextmanager
def visiting(place: Place) -> Iterator[Callable[..., Start]]:
    """Run a client; yield what makes it visit a VM by its name and a family of IP, as `bench.speed.visitor.visit`."""
    program = [sys.executable, "-m", "bench.speed.visitor", place.interface]
    with place.network.popen(
        place.where, program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as visitor:
        sent, seen = visitor.stdin, visitor.stdout
        assert sent is not None
        assert seen is not None
        if seen.readline() != "ready\n":
            raise RuntimeError("the client does not start; see above")

        def visit(*words: object) -> Start:
            place.forget_neighbours()
            print(*words, file=sent, flush=True)
            return Start(**json.loads(seen.readline()))

        yield visit
        sent.close()


def until(condition: Any) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def measure(
    kind: str, guests: Sequence[tuple[str, str]], count: int, family: int = 4
) -> Iterator[tuple[int, Start]]:
    """Start each of these guests with these habits *count* times, in turn; yield its number and what its client saw."""
    with running(kind, guests) as (jitsu, place), visiting(place) as visit:
        for _ in range(count):
            for number in range(len(guests)):
                name = f"vm{number}"
                yield number, replace(visit(name, family), deaf=NETWORKS[kind])
                jitsu.control.ask("POST", f"/v1/vms/{name}/stop")
                jitsu.wait("off", name)
                time.sleep(PAUSE)


# The report


def middle(values: Iterable[float | None]) -> str:
    """Return the median of what is known, in words."""
    known = [one for one in values if one is not None]
    return f"{statistics.median(known):.1f}" if known else "-"


def row(starts: Sequence[Start]) -> list[str]:
    """Return the figures of one combination."""
    waits = [max(0.0, one.connected - max(one.listens, one.answered or 0.0))
             for one in starts if one.connected is not None and one.listens is not None]
    faults = sum(1 for one in starts if list(one.faults()))
    times = [middle(getattr(one, step) for one in starts) for step in ("answered", "listens", "connected", "octet")]
    return [
        *(str(number) for number in (len(starts), faults, sum(one.error is not None for one in starts),
                                     sum(one.resets for one in starts), sum(one.again for one in starts))),
        *times, middle(waits), f"{max(waits):.1f}" if waits else "-",
    ]


def show(figures: dict[tuple[str, str, str], list[Start]]) -> None:
    """Print the table, and the faults by kind."""
    rows = table(["network", "guest", "habit"],
                 ["starts", "faulty", "failed", "RSTs", "SYNs again", "answered", "listens", "connected", "octet",
                  "listens -> connected", "max"])  # fmt: skip
    for key, starts in figures.items():
        rows.add_row(*key, *row(starts))
    console = Console(highlight=False, width=max(Console().width, 170))
    console.print(rows)
    for key, starts in figures.items():
        for fault in sorted({fault for one in starts for fault in one.faults()}):
            console.print(f"{' '.join(key)}: {fault}")
    console.print("Times are medians in milliseconds after the query.")


@click.command()
@click.option("--count", default=10, show_default=True, help="Starts of each combination.")
@click.option("--guest", type=click.Choice(["own", "linux"]), default="own", show_default=True, help="What boots.")
@click.option("--habit", "habits", multiple=True, help="Habits of the guest of our own; all that matter if not given.")
@click.option("--network", "networks", type=click.Choice(list(NETWORKS)), multiple=True, default=list(NETWORKS),
              show_default=True, help="Where it boots.")
@click.option("--family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="Of IP.")
@json_option
def main(
    count: int, guest: str, habits: tuple[str, ...], networks: tuple[str, ...], family: str, path: Path | None
) -> None:
    """Count cold starts that clients notice."""
    guests = [(guest, habit) for habit in ([""] if guest == "linux" else habits or HABITS)]
    figures: dict[tuple[str, str, str], list[Start]] = {}
    for network in networks:
        for number, start in measure(network, guests, count, int(family)):
            key = network, guest, guests[number][1]
            figures.setdefault(key, []).append(start)
            if faults := list(start.faults()):
                print(f"{' '.join(key)}: {', '.join(faults)}", file=sys.stderr)
    keys = ("network", "guest", "habit")
    write(path, [dict(zip(keys, key, strict=True)) | asdict(one) for key, starts in figures.items() for one in starts])
    show(figures)
    sys.exit(any(list(one.faults()) for starts in figures.values() for one in starts))


if __name__ == "__main__":
    main()
