"""
The figure of the first Jitsu's authors, made anew: from a client's DNS query to the first octet of HTTP.

Each kind of start has a VM of its own, all with the same guest, and all are visited in turn, round after round, so that
other work on the machine meets all of them. A client asks once and connects once; only its kernel tries again:

- **warm**: the VM is up.
- **prepared**: the guest was booted and paused before (`prepare`).
- **snapshot**, **saved**: it is restored from its image (`boot_from: snapshot`), or as it was saved (`mode: save`).
- **synjitsu**: the answer leaves at once, and the client's SYN is held until the guest listens.
- **port**: the answer leaves when the guest's port answers (`wait_for_port`).
- **delay**: the answer leaves after a `response_delay`, set as an operator would: one boot that was measured before, a
  quarter more, and up to the next half second.
- **nothing**: the answer leaves when the hypervisor's call has ended.
- **dropped**: the client has the address at once and knows its MAC, as a router does; its SYN is dropped because no
  guest is there, and its kernel sends it again after a second, as where nothing hides the boot.

Run it as::

    python -m bench.speed.paper [--rounds 100] [--linux-rounds 20] [--json FILE] [--plot FILE.png]

It needs what the end-to-end tests need; times are in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from bench.figures import json_option, p90, plot_option, pyplot, table, write
from bench.speed import cold, starts
from demo import lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.speed.visitor import Start
    from demo.server import Jitsu

PORT: Final = "wait_for_port: 80"

#: The kinds of starts, and what the configuration of their VMs says.
KINDS: Final = {
    "warm": PORT,
    "prepared": f"{PORT}\n    prepare: true",
    "snapshot": f"{PORT}\n    boot_from: snapshot\n    images: images",
    "saved": f"{PORT}\n    mode: save",
    "synjitsu": starts.SYNJITSU,
    "port": PORT,
    "delay": "response_delay: {delay}",
    "nothing": "response_delay: 0",
    "dropped": "response_delay: 0",
}

#: The state of a VM between two visits, where it is not off.
RESTS: Final = {"warm": "up", "prepared": "prepared", "saved": "saved"}

#: The names of the guests in the output.
GUESTS: Final = {"own": "our unikernel", "linux": "Linux"}

#: All starts of one guest, by kind.
Starts = dict[str, list[dict[str, Any]]]


def delay_of(guest: str) -> float:
    """Return the `response_delay` for a *guest*, in seconds, after one boot by hand."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(lab.directory()))
        network = stack.enter_context(lab.Network())
        stack.callback(lab.stop_qemus, directory / "bare")
        xml = directory / "bare.xml"
        xml.write_text(starts.domain(guest, "", "bare", cold.IP, starts.address(0)[1], cold.MAC))
        machine = stack.enter_context(cold.by_itself(network, directory / "bare", xml))
        return cold.response_delay(cold.by_hand(network, machine)["first octet"])


def rest(jitsu: Jitsu, kind: str) -> None:
    """Bring the VM of a *kind* back to where its next visit finds it."""
    if kind != "warm":
        jitsu.control.ask("POST", f"/v1/vms/{kind}/stop")
    if kind == "snapshot":
        starts.until(lambda: list((jitsu.directory / "images").glob("*.image")))
    jitsu.wait(RESTS.get(kind, "off"), kind)
    time.sleep(starts.PAUSE)


def measure(guest: str, kinds: Sequence[str], rounds: int, delay: float) -> Iterator[tuple[str, Start]]:
    """Visit the VM of each of the *kinds*, *rounds* times in turn; yield the kind and what the client saw."""
    vms = {kind: f"{KINDS[kind].format(delay=delay)}\n    idle: 3600" for kind in kinds}
    with starts.running("plain", [(guest, "")] * len(vms), vms) as (jitsu, place), starts.visiting(place) as visit:
        known: dict[str, list[str]] = {}
        if "dropped" in vms:
            ip, _, mac = starts.address(list(vms).index("dropped"))
            known["dropped"] = [ip]
            place.network.pin("client", ip, mac)
        for kind in sorted(vms, key=lambda kind: kind != "prepared"):  # the first visits make images and saved memory
            if kind == "prepared":
                jitsu.wait("prepared", kind)
            else:
                visit(kind, 4)
                rest(jitsu, kind)
        for _ in range(rounds):
            for kind in vms:
                yield kind, visit(kind, 4, *known.get(kind, ()))
                rest(jitsu, kind)


# The report


def octets(found: Sequence[dict[str, Any]]) -> list[float]:
    """Return when the first octet came, of the starts that did not fail, in order."""
    return sorted(one["octet"] for one in found if one["error"] is None)


def row(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures of one kind of start."""
    times = octets(found)
    failed = len(found) - len(times)
    again = sum(one["again"] for one in found)
    if not times:
        return [str(len(found)), str(failed), str(again), "-", "-", "-"]
    cells = (f"{one:.0f}" for one in (statistics.median(times), p90(times), times[-1]))
    return [str(len(found)), str(failed), str(again), *cells]


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    rows = table(["guest", "start"], ["starts", "failed", "SYNs sent again", "median ms", "p90", "max"])
    for guest, kinds in figures["guests"].items():
        for kind, found in kinds.items():
            rows.add_row(GUESTS[guest], kind, *row(found))
    delays = ", ".join(f"{delay:g} s for {GUESTS[guest]}" for guest, delay in figures["delay"].items())
    console = Console(highlight=False, width=max(Console().width, 100))
    console.print(rows)
    before, after = figures["load"]
    console.print(f"Query to first octet; response_delay {delays}; load {before:.1f} before and {after:.1f} after")


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the cumulative distributions, a panel for each guest; what failed never reaches the top."""
    guests = figures["guests"]
    figure, axes = pyplot().subplots(
        1, len(guests), figsize=(5.5 * len(guests), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (guest, kinds) in zip(axes[0], guests.items(), strict=True):
        for color, (kind, found) in enumerate(kinds.items()):
            times = octets(found)
            steps = [*times[:1], *times]
            shares = [100 * number / len(found) for number in range(len(steps))]
            axis.step(steps, shares, where="post", color=f"C{color}", label=kind)
        axis.set_xscale("log")
        axis.set_xlabel("DNS query to first octet of HTTP, ms")
        axis.set_title(f"{GUESTS[guest]}, {len(next(iter(kinds.values())))} starts of each kind")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("starts, %")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=100)


@click.command()
@click.option("--rounds", default=100, show_default=True, help="Starts of each kind of the unikernel; 0: none.")
@click.option("--linux-rounds", default=20, show_default=True, help="The same of Linux.")
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, default=list(KINDS), help="Only these.")
@json_option
@plot_option
def main(rounds: int, linux_rounds: int, kinds: tuple[str, ...], path: Path | None, picture: Path | None) -> None:
    """Measure what a client waits for, by the kind of start."""
    load = os.getloadavg()[0]
    figures: dict[str, Any] = {"guests": {}, "delay": {}}
    for guest, count in (("own", rounds), ("linux", linux_rounds)):
        if not count:
            continue
        delay = figures["delay"][guest] = delay_of(guest) if "delay" in kinds else 0.0
        found: Starts = {kind: [] for kind in kinds}
        figures["guests"][guest] = found
        for kind, start in measure(guest, kinds, count, delay):
            found[kind].append(asdict(start))
            if kind == kinds[-1]:
                now = ", ".join(f"{one} {many[-1]['error'] or format(many[-1]['octet'], '.0f')}"
                                for one, many in found.items())  # fmt: skip
                print(f"{GUESTS[guest]}, round {len(found[kind])} of {count}: {now} ms", flush=True)
    figures["load"] = [load, os.getloadavg()[0]]
    write(path, figures)
    show(figures)
    if picture is not None:
        plot(figures, picture)


if __name__ == "__main__":
    main()
