"""
What a client waits for: through Jitsu with Synjitsu, by other ways to hide a boot, and without Jitsu at all.

The same guest each time, one boot after the other, all ways in turn:

- **bare**: by hand, as in `bench.speed.cold`: ``create()``, and a client that knows the MAC and tries every few
milliseconds.
- **synjitsu**: the answer leaves at once, and the client's SYN is held until the guest listens.
- **port**: the answer leaves when the guest's port answers (`wait_for_port`, with an `answer_by` that is high enough).
- **delay**: the answer leaves after a `response_delay`, set as an operator would: one boot that was measured before, a
  quarter more, and up to the next half second.
- **nothing**: the answer leaves when the hypervisor's call has ended, and the client tries again until it is connected.

A client asks once. The guest's server listens before its interface is up, and the guest announces itself at that
moment, so its *network is up* from the first ARP frame of its own that the kernel sees on the bridge. An emulated guest
takes ten milliseconds and more from there until it answers a SYN, whoever sends that: it *listens* from its first SYN
ACK to anybody, and what comes after that is ours. Run it as::

    python -m bench.speed.syn [--rounds 5] [--json FILE] [--plot FILE.png]

It needs what the end-to-end tests need; times are in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click
import dpkt
from rich.console import Console

from bench.figures import json_option, p90, plot_option, pyplot, table, write
from bench.speed import cold, starts
from demo import lab
from demo.server import Jitsu, Synjitsu

if TYPE_CHECKING:
    from pathlib import Path

#: How Jitsu hides a boot, and what its configuration says of that; "bare" is without it.
WAYS: Final = {
    "synjitsu": "use_synjitsu: true, wait_for_port: 80",
    "port": "wait_for_port: 80",
    "delay": "response_delay: {delay}",
    "nothing": "response_delay: 0",
}
BARE: Final = "bare"

VM: Final = "  - {{name: {way}, dns: {way}.jitsu.test, ip: {ip}, define: {way}.xml, {more}}}\n"

#: What is to hold (DESIGN, section 11): first octet against bare, and milliseconds from listening to connected.
RATIO: Final = 1.05
CONNECTED_IN: Final = 5.0

#: Of <linux/if_ether.h>, <asm-generic/socket.h> and <linux/if_packet.h>.
_ETH_P_ALL: Final = 0x0003
_ETH_P_ARP: Final = 0x0806
_SO_TIMESTAMPNS: Final = 35
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1

#: TCP's flags of an accepted connection.
_SYN_ACK: Final = dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK


def address(number: int) -> tuple[str, str]:
    """Return the IP address and the MAC of a guest."""
    return f"10.99.0.{10 + number}", f"52:54:00:99:00:{0x10 + number:02x}"


def kind(octets: bytes) -> str | None:
    """Return what a frame says of its sender: that its network is "up", or that it "listens"."""
    frame = dpkt.ethernet.Ethernet(octets)
    if frame.type == _ETH_P_ARP:
        return "up"
    segment = getattr(frame.data, "data", None)
    if isinstance(segment, dpkt.tcp.TCP) and segment.flags & _SYN_ACK == _SYN_ACK:
        return "listens"
    return None


def watch() -> None:
    """Print what the frames on the bridge say, of whom (a MAC) and when (in seconds, CLOCK_MONOTONIC)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as frames:
        frames.bind((lab.BRIDGE, _ETH_P_ALL))
        frames.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        promiscuous = struct.pack("IHH8s", socket.if_nametoindex(lab.BRIDGE), _PACKET_MR_PROMISC, 0, b"")
        frames.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, promiscuous)
        while True:
            octets, ((_, _, stamp),), _, _ = frames.recvmsg(2048, 256)
            said = kind(octets)
            if said is not None:
                seconds, nanoseconds = struct.unpack("qq", stamp)
                when = seconds + nanoseconds / 1e9 + time.monotonic() - time.time()
                print(said, octets[6:12].hex(":"), when, flush=True)


class Watch:
    """When each guest's network was up, and when it listened."""

    def __init__(self, network: lab.Network) -> None:
        """Begin."""
        self._out = network.popen(
            "host", [sys.executable, "-m", "bench.speed.syn", "watch"], stdout=subprocess.PIPE, text=True
        ).stdout
        assert self._out is not None
        os.set_blocking(self._out.fileno(), False)

    def first(self, mac: str, after: float) -> dict[str, float]:
        """Return when a guest said each thing first, *after* a time; what was heard until now is forgotten."""
        assert self._out is not None
        said: dict[str, float] = {}
        for line in self._out.readlines():
            what, source, when = line.split()
            if source == mac and float(when) > after:
                said.setdefault(what, float(when))
        return said


def retransmitted(network: lab.Network) -> int:
    """Return how many SYNs the client's kernel has sent again."""
    return int(network.run("client", ["nstat", "-asz", "TcpExtTCPSynRetrans"]).stdout.splitlines()[-1].split()[1])


def by_hand(network: lab.Network, machine: subprocess.Popen[str], watched: Watch) -> dict[str, float]:
    """Boot once by hand; return what it took."""
    seen = cold.boot(network, machine)
    begin = seen.pop("begin")
    seen |= watched.first(cold.MAC, begin)
    return {step: (when - begin) * 1000 for step, when in seen.items()}


def by_query(network: lab.Network, jitsu: Jitsu, watched: Watch, way: str, mac: str) -> dict[str, float]:
    """Boot once by a query; return what it took, as the client saw it."""
    before = retransmitted(network)
    program = [sys.executable, "-m", "demo.client", lab.HOST_IP, "53", f"{way}.jitsu.test", str(cold.PORT)]
    seen = json.loads(network.run("client", program).stdout)
    begin = seen["query"]
    seen |= watched.first(mac, begin)
    times = {step: (seen[step] - begin) * 1000 for step in ("answered", "up", "listens", "connected", "first octet")}
    times["SYNs again"] = retransmitted(network) - before
    jitsu.control.ask("POST", f"/v1/vms/{way}/stop")
    network.run("client", ["ip", "neighbour", "flush", "dev", "eth0"])
    return times


def measure(rounds: int) -> dict[str, Any]:
    """Boot in turn, *rounds* times each way; return all figures."""
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        directory, network = cold.stage(stack, "bare", "ours")
        bare, ours = directory / "bare", directory / "ours"
        guests = {way: address(number) for number, way in enumerate((BARE, *WAYS))}
        for way, (ip, mac) in guests.items():
            xml = lab.domain_xml(way, ip, mac, lab.guest(), bridge=lab.BRIDGE, options="jitsu.garp")
            (directory / f"{way}.xml").write_text(xml)
        machine = stack.enter_context(cold.by_itself(network, bare, directory / "bare.xml"))
        watched = Watch(network)
        delay = cold.response_delay(by_hand(network, machine, watched)["first octet"])
        synjitsu = Synjitsu(directory, network)
        stack.callback(synjitsu.stop, signal.SIGKILL)
        synjitsu.start()
        configuration = starts.CONFIGURATION.format(uri=lab.embed_root(ours), place=synjitsu.place)
        for way, more in WAYS.items():
            configuration += VM.format(way=way, ip=guests[way][0], more=more.format(delay=delay))
        jitsu = Jitsu(directory, configuration, lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        figures: dict[str, list[dict[str, float]]] = {way: [] for way in guests}
        for number in range(rounds):
            for way, (_, mac) in guests.items():
                if way == BARE:
                    figures[way].append(by_hand(network, machine, watched))
                else:
                    figures[way].append(by_query(network, jitsu, watched, way, mac))
            octets = ", ".join(f"{way} {many[-1]['first octet']:.0f}" for way, many in figures.items())
            print(f"round {number + 1} of {rounds}: first octet after {octets} ms", flush=True)
    hypervisor = "KVM" if lab.kvm_works() else "software emulation"
    loads = [load, os.getloadavg()[0]]
    return {"rounds": rounds, "hypervisor": hypervisor, "delay": delay, "load": loads, "ways": figures}


def waited(figures: dict[str, Any], way: str, since: str) -> list[float]:
    """Return for how many milliseconds a guest was "up", or did "listen", each time, until the client was connected."""
    return [one["connected"] - one[since] for one in figures["ways"][way]]


def median(figures: dict[str, Any], way: str, step: str) -> float:
    """Return the median of a step's times."""
    found: float = statistics.median(one[step] for one in figures["ways"][way])
    return found


def ratio(figures: dict[str, Any], way: str) -> float:
    """Return by what factor the first octet comes later than from the bare guest."""
    return median(figures, way, "first octet") / median(figures, BARE, "first octet")


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    rows = table(["ms (medians)"], ["answered", "connected", "first octet", "/ bare", "SYNs again", "up -> connected",
                                    "listens -> connected", "p90", "max"])
    for way, rounds in figures["ways"].items():
        waits = waited(figures, way, "listens")
        cells = [
            f"{median(figures, way, step):.0f}" if step in rounds[0] else "-"
            for step in ("answered", "connected", "first octet")
        ]
        again = f"{median(figures, way, 'SYNs again'):.0f}" if way != BARE else "-"
        cells += [f"{ratio(figures, way):.3f}", again]
        since_up = statistics.median(waited(figures, way, "up"))
        cells += [f"{one:.1f}" for one in (since_up, statistics.median(waits), p90(waits), max(waits))]
        rows.add_row(way, *cells)
    console = Console(highlight=False, width=max(Console().width, 110))
    console.print(rows)
    held, waits = ratio(figures, "synjitsu"), waited(figures, "synjitsu", "listens")
    console.print(
        f"query -> first octet, with Synjitsu / create() -> first octet, bare: [bold]{held:.3f}[/] (at most {RATIO})\n"
        f"listens -> connected, with Synjitsu: [bold]{statistics.median(waits):.1f} ms[/] (at most {CONNECTED_IN:.0f})"
    )
    console.print(
        f"{figures['rounds']} rounds, {figures['hypervisor']}, response_delay {figures['delay']:g} s, "
        f"load {figures['load'][0]:.1f} before and {figures['load'][1]:.1f} after"
    )


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw both distributions: one mark for each boot, and a line at the median."""
    ways = list(figures["ways"])
    panels = (
        (
            "query (or create()) to first HTTP octet, ms",
            [[one["first octet"] for one in figures["ways"][way]] for way in ways],
        ),
        (
            "guest listens to client connected, ms",
            [[max(0.1, one) for one in waited(figures, way, "listens")] for way in ways],
        ),
    )
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 3.2), sharey=True, layout="constrained")
    for axis, (title, distributions) in zip(axes, panels, strict=True):
        for row, values in enumerate(distributions):
            axis.plot(values, [row] * len(values), "o", alpha=0.5, color=f"C{row}")
            axis.plot(statistics.median(values), row, "|", markersize=22, color=f"C{row}")
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_xlim(left=0)
    axes[0].set_yticks(range(len(ways)), ways)
    axes[0].invert_yaxis()
    axes[1].set_xscale("log")
    axes[1].axvline(CONNECTED_IN, linestyle="--", color="grey")
    figure.suptitle(f"A cold start, {figures['rounds']} times each way ({figures['hypervisor']})")
    figure.savefig(path, dpi=120)


@click.group(invoke_without_command=True)
@click.option("--rounds", default=5, show_default=True, help="Boots each way.")
@json_option
@plot_option
@click.pass_context
def main(context: click.Context, rounds: int, path: Path | None, picture: Path | None) -> None:
    """Measure what a client waits for."""
    if context.invoked_subcommand is None:
        figures = measure(rounds)
        write(path, figures)
        show(figures)
        if picture is not None:
            plot(figures, picture)


main.command("watch", hidden=True)(watch)

if __name__ == "__main__":
    main()
