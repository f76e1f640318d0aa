"""
What a VM per name costs: the first query for a name, the VMs that sleep, and names that do not exist.

``cold``: a boot by hand, the first query for a name, and a query for the same name when its VM is off, in turn, as
`bench.speed.cold` does it. ``clones``: new names of a template with Linux whose VMs boot, and of one whose VMs are
clones, with what each VM takes of the memory. ``sleepers``: so many VMs of the memory backend are made, one for each
name, and stopped; ``flood``: so many random names are asked for, none of which exists by a list, a pattern or a
program. Run it as::

    python -m bench.speed.templates cold [--rounds 5] [--json FILE]
    python -m bench.speed.templates clones [--rounds 5] [--json FILE]
    python -m bench.speed.templates sleepers [--vms 1000 --vms 10000] [--json FILE]
    python -m bench.speed.templates flood [--names 1000000] [--exists list|pattern|program] [--json FILE]

The first two need root and QEMU, the others nothing. Times are in milliseconds, memory is in MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import signal
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import dns.message
from rich.console import Console

from bench.figures import json_option, table, write
from bench.speed.cold import IP, MAC, by_hand, by_itself, by_query, stage
from bench.speed.sleepers import memory
from demo import clones as cloneable
from demo import lab
from demo import unikernel as guest
from demo.server import Jitsu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SITES: Final = "sites.jitsu.test"
CONFIGURATION: Final = """\
bind: {server}
listen: {port}
persistdb: state.git
starts_per_minute: 0
rate_limit: 0
{top}
templates:
  - name: site
    dns: "*.{sites}"
    pool: {pool}
    exists: {exists}
    max: 1000000
    new_per_minute: 0
    {more}
"""

#: The `exists` of each flood; a list and a program are files.
KINDS: Final = {"list": "./sites", "pattern": '"user-*"', "program": "./program"}

#: How many questions wait for an answer at once: for names that do not exist, and for those whose VMs are made.
AT_ONCE: Final = 50
MADE_AT_ONCE: Final = 32

#: Seconds after which a question is asked again.
AGAIN: Final = 10.0

#: Seconds that what happens after the last answer may take: statistics are written, VMs are stopped.
SETTLES: Final = 30.0


def cold(rounds: int) -> dict[str, Any]:
    """Boot in turn, *rounds* times each way; return all figures."""
    ways: dict[str, list[dict[str, float]]] = {"create()": [], "a new name": [], "the same, off": []}
    with contextlib.ExitStack() as stack:
        directory, network = stage(stack, "bare", "ours")
        bare, ours = directory / "bare", directory / "ours"
        for name, ip, mac, uuid in (("www", IP, MAC, None), ("site", "${ip}", "${mac}", "${uuid}")):
            xml = guest.domain_xml("${name}" if uuid else name, ip, mac, uuid=uuid, bridge=lab.BRIDGE)
            (directory / f"{name}.xml").write_text(xml)
        machine = stack.enter_context(by_itself(network, bare, directory / "www.xml"))
        top = f"connect: {lab.embed_root(ours)}\nanswer_by: 60"
        configuration = CONFIGURATION.format(
            server=lab.HOST_IP, port=53, top=top, sites=SITES, pool="10.99.0.100-10.99.0.250", exists='"n*"',
            more="define: site.xml\n    wait_for_port: 80",
        )  # fmt: skip
        jitsu = Jitsu(directory, configuration, lab.HOST_IP, network)
        stack.callback(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        for number in range(rounds):
            ways["create()"].append(by_hand(network, machine))
            for way in ("a new name", "the same, off"):
                ways[way].append(by_query(network, jitsu, f"n{number}.site", SITES))
            print(f"round {number + 1} of {rounds}", flush=True)
    medians = {
        way: {step: statistics.median(one[step] for one in figures) for step in figures[0]}
        for way, figures in ways.items()
    }
    return {"medians": medians, "all": ways}


def clones(rounds: int) -> dict[str, Any]:
    """Ask for *rounds* names whose VMs boot, and as many whose VMs are clones; return all figures."""
    found = {}
    for way, boot_from in (("booted", "disk"), ("cloned", "snapshot")):
        with contextlib.ExitStack() as stack:
            directory, network = stage(stack, "libvirt")
            root = directory / "libvirt"
            (directory / "site.xml").write_text(cloneable.definition(lab.BRIDGE))
            top = f"connect: {lab.embed_root(root)}\nanswer_by: 60\nimages: images"
            configuration = CONFIGURATION.format(
                server=lab.HOST_IP, port=53, top=top, sites=SITES, pool="10.99.0.100-10.99.0.250", exists='"n*"',
                more=f"define: site.xml\n    wait_for_port: 80\n    idle: 600\n    boot_from: {boot_from}",
            )  # fmt: skip
            jitsu = Jitsu(directory, configuration, lab.HOST_IP, network)
            stack.callback(jitsu.stop, signal.SIGKILL)
            jitsu.start()
            by_query(network, jitsu, "n.site", SITES)
            while boot_from == "snapshot" and not (directory / "images" / "site.seed").exists():
                time.sleep(0.1)
            times = [by_query(network, jitsu, f"n{number}.site", SITES, stop=False) for number in range(rounds)]
            are_clones = {jitsu.vm(f"n{number}.site")["reason"] == "cloned" for number in range(rounds)}
            assert are_clones == {way == "cloned"}
            found[way] = {"times": times, "MiB": lab.memory(root)}
    return found


class Asking(asyncio.DatagramProtocol):
    """
    Asks for names, so many at a time.

    Attributes:
        codes: how often each code was the answer.
        longest: the most seconds that a question has waited.
        ended: fires when all names have an answer.
    """

    def __init__(self, names: Iterable[str], at_once: int) -> None:
        """Ask for *names*, *at_once* at a time."""
        self._names, self._at_once, self._numbers = iter(names), at_once, itertools.cycle(range(65536))
        self._waiting: dict[int, tuple[bytes, float, float]] = {}
        self.codes: dict[int, int] = {}
        self.longest = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        for _ in range(self._at_once):
            self._next()
        asyncio.get_running_loop().call_later(1, self._ask_again)

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        """Count the answer, and ask for the next name."""
        waited = self._waiting.pop(int.from_bytes(data[:2]), None)
        if waited is not None:
            self.longest = max(self.longest, time.monotonic() - waited[1])
            self.codes[data[3] & 15] = self.codes.get(data[3] & 15, 0) + 1
            self._next()

    def _next(self) -> None:
        name = next(self._names, None)
        if name is not None:
            number = next(self._numbers)
            octets = number.to_bytes(2) + dns.message.make_query(name, "A").to_wire()[2:]
            self._waiting[number] = octets, time.monotonic(), time.monotonic()
            self._transport.sendto(octets)
        elif not self._waiting and not self.ended.done():
            self.ended.set_result(None)

    def _ask_again(self) -> None:
        """Ask again for what has no answer for long."""
        now = time.monotonic()
        for number, (octets, begin, since) in self._waiting.items():
            if since + AGAIN < now:
                self._waiting[number] = octets, begin, now
                self._transport.sendto(octets)
        if not self.ended.done():
            asyncio.get_running_loop().call_later(1, self._ask_again)


def ask(port: int, names: Iterable[str], at_once: int = AT_ONCE) -> tuple[dict[int, int], float]:
    """Ask the Jitsu at *port* for *names*; return how often each code was the answer, and the longest wait in s."""

    async def all_of_them() -> tuple[dict[int, int], float]:
        transport, asking = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Asking(names, at_once), remote_addr=(lab.LOOPBACK, port)
        )
        await asking.ended
        transport.close()
        return asking.codes, asking.longest

    return asyncio.run(all_of_them())


@contextlib.contextmanager
def in_memory(exists: str, more: str) -> Any:
    """Start a Jitsu with a template of the memory backend; yield it, its port, and its memory."""
    with lab.directory() as name:
        directory, port = Path(name), lab.free_port()
        (directory / "sites").write_text("".join(f"s{one}\n" for one in range(1000)))
        (directory / "program").write_text("#!/bin/sh\nexit 1\n")
        (directory / "program").chmod(0o755)
        configuration = CONFIGURATION.format(
            server=lab.LOOPBACK, port=port, top="backend: memory\nmax_booting: 100\nanswer_by: 60", sites=SITES,
            pool="10.64.0.0/10", exists=exists, more=more,
        )  # fmt: skip
        jitsu = Jitsu(directory, configuration, lab.LOOPBACK)
        try:
            jitsu.start()
            assert jitsu.process is not None
            yield jitsu, port, jitsu.process.pid
        finally:
            jitsu.stop(signal.SIGKILL)


def sleepers(number: int) -> dict[str, Any]:
    """Make *number* VMs, and stop them; return all figures."""
    with in_memory('"s*"', "ttl: 1\n    idle: 5") as (jitsu, port, pid):
        before, begin = memory(pid), time.monotonic()
        codes, longest = ask(port, (f"s{one}.{SITES}" for one in range(number)), MADE_AT_ONCE)
        took = time.monotonic() - begin
        end = begin + took + SETTLES + number / 20
        while any(vm["state"] != "off" for vm in jitsu.vms()) and time.monotonic() < end:
            time.sleep(2)
        asleep = memory(pid)
        off = sum(vm["state"] == "off" for vm in jitsu.vms())
        return {
            "vms": number, "off": off, "codes": codes, "made per second": number / took, "longest": longest,
            "before": before, "asleep": asleep, "KiB each": (asleep - before) * 1024 / number,
        }  # fmt: skip


def missing(number: int) -> Iterator[str]:
    """Yield *number* random names."""
    return (f"{secrets.token_hex(12)}.{SITES}" for _ in range(number))


def flood(number: int, kind: str) -> dict[str, Any]:
    """Ask for *number* random names, none of which exists; return the memory before, at each tenth, and after."""
    with in_memory(KINDS[kind], "") as (jitsu, port, pid):
        ask(port, missing(min(number, 20_000)))
        sizes, codes, begin = [memory(pid)], dict[int, int](), time.monotonic()
        for _ in range(10):
            for code, count in ask(port, missing(number // 10))[0].items():
                codes[code] = codes.get(code, 0) + count
            sizes.append(memory(pid))
        took = time.monotonic() - begin
        vms = len(jitsu.vms())
        return {"names": number, "exists": kind, "codes": codes, "per second": number / took, "MiB": sizes, "vms": vms}


@click.group()
def main() -> None:
    """Measure templates."""


@main.command("cold")
@click.option("--rounds", default=5, show_default=True, help="Boots each way.")
@json_option
def cold_command(rounds: int, path: Path | None) -> None:
    """Measure the first query for a name."""
    figures = cold(rounds)
    write(path, figures)
    medians = figures["medians"]
    rows = table(["median ms"], medians)
    for step in ("created", "answered", "connected", "first octet"):
        rows.add_row(step, *(f"{medians[way][step]:.0f}" if step in medians[way] else "-" for way in medians))
    console = Console(highlight=False)
    console.print(rows)
    new, off, bare = (medians[way]["first octet"] for way in ("a new name", "the same, off", "create()"))
    console.print(f"a new name / the same, off: [bold]{new / off:.3f}[/]; / create(): [bold]{new / bare:.3f}[/]")


@main.command("clones")
@click.option("--rounds", default=5, show_default=True, help="Names each way.")
@json_option
def clones_command(rounds: int, path: Path | None) -> None:
    """Measure VMs that are clones."""
    figures = clones(rounds)
    write(path, figures)
    for way, one in figures.items():
        first = statistics.median(times["first octet"] for times in one["times"])
        print(f"{way}: {first:.0f} ms from query to first octet,"
              f" {statistics.median(one['MiB'].values()):.0f} MiB each")  # fmt: skip


@main.command("sleepers")
@click.option("--vms", "numbers", multiple=True, default=[1000, 10000], show_default=True, help="How many are made.")
@json_option
def sleepers_command(numbers: tuple[int, ...], path: Path | None) -> None:
    """Measure VMs that were made and are off."""
    figures = []
    for number in numbers:
        figures.append(sleepers(number))
        print(figures[-1], flush=True)
    write(path, figures)


@main.command("flood")
@click.option("--names", default=1_000_000, show_default=True, help="How many names are asked for.")
@click.option("--exists", "kind", type=click.Choice(list(KINDS)), default="list", show_default=True, help="Who knows.")
@json_option
def flood_command(names: int, kind: str, path: Path | None) -> None:
    """Measure names that do not exist."""
    figures = flood(names, kind)
    write(path, figures)
    print(figures)


if __name__ == "__main__":
    main()
