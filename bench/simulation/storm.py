"""
A boot storm: 500 VMs that are off, all asked for within a second, by 20 clients in as many networks, of which one is
greedy. Who is served when, who is answered when, and what do those notice who only ask for what is up?

A real Jitsu serves VMs of the memory backend over UDP; dnsperf asks for VMs that are up, at a steady rate, once while
nothing else happens and once during the storm, in turn. Run it as::

    python -m bench.simulation.storm [--rounds 3] [--vms 500] [--json FILE]

Fair is: networks take turns, so while several have VMs that wait, none gets more starts than another (`spread`, counted
from the moment when all have asked; 1 is the best that can be); and each network's VMs are started in the order in
which it asked for them (`in order`, the share of pairs).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
import dns.message
from rich.console import Console

from bench.figures import json_option, table, write
from bench.speed import load
from bench.speed.dns import STEADY, questions, require_dnsperf
from bench.speed.peers import BIN, PEERS, ZONE, names, serve_jitsu, start
from bench.speed.server import HOST, LOAD_CORES, Commands, Place
from jitsu_tw.dns.wire import from_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.speed.server import Server

#: Clients, each in a /24 of its own; the first is greedy: it asks for so many times what another does, and first.
CLIENTS: Final = 20
GREED: Final = 6

#: Seconds within which all is asked.
WITHIN: Final = 1.0

#: Of the VMs: seconds that a boot takes, and those after which an unused one is stopped.
BOOT_TIME: Final = 0.3
IDLE: Final = 5

MAX_BOOTING: Final = 8
ANSWER_BY: Final = 1.2

#: Who is answered so many seconds after `ANSWER_BY` is late: one core is shared by all who ask.
LATE: Final = 0.1

#: What the client's and the server's view of a moment may differ by, in seconds; two starts of a network are ten times
#: as far apart.
JITTER: Final = 0.05

#: VMs that are up all the time.
WARM: Final = 100

#: Seconds of each measurement of these, the storm begins after the first.
SECONDS: Final = 10.0

#: Seconds that a storm may take, and its end.
PATIENCE: Final = 120.0

#: An OPT record without options (RFC 6891, 6.1.2).
OPT: Final = bytes.fromhex("00 0029 04d0 00000000 0000")


@attrs.define(eq=False)
class Asked:
    """
    A question and its answer.

    Attributes:
        name: of the VM.
        client: the number of who asks.
        at: when, in seconds of the monotonic clock; first when it is to be asked, then when it was.
        answered: when it was answered; None if it was not.
        octets: the answer.
    """

    name: str
    client: int
    at: float
    answered: float | None = None
    octets: bytes = b""

    @property
    def how(self) -> str:
        """What the answer says."""
        if not self.octets:
            return "lost"
        answer = dns.message.from_wire(self.octets)
        if answer.rcode():
            return dns.rcode.to_text(answer.rcode())
        return "starting" if answer.extended_errors() else "ready"


def serve(place: Place) -> Commands:
    """Return the command of a Jitsu whose first `WARM` VMs boot at once and stay up; the others take a while."""
    commands = serve_jitsu(place, persist=False)
    lines = [
        "zones: [jitsu.zone]", f"bind: {HOST}", f"listen: {place.port}", f"control: unix:{place.folder}/control",
        "backend: memory", "delay: 0", "starts_per_minute: 1000000", f"max_booting: {MAX_BOOTING}",
        f"answer_by: {ANSWER_BY}", "vms:",
    ]
    for number, (name, address) in enumerate(place.hosts.items()):
        kind = "idle: 86400" if number < WARM else f"idle: {IDLE}, boot_time: {BOOT_TIME}"
        lines.append(f"  - {{name: {name.partition('.')[0]}, dns: {name}, ip: {address}, {kind}}}")
    place.write("jitsu.yaml", "\n".join(lines) + "\n")
    return commands


def plan(cold: list[str]) -> list[Asked]:
    """Return who asks for which VM, and how many seconds after the storm's begin."""
    order = random.Random(1)  # noqa: S311
    greedy = GREED * len(cold) // (GREED + CLIENTS - 1)
    asked = [Asked(name, 0, WITHIN / 10 * place / greedy) for place, name in enumerate(cold[:greedy])]
    for place, name in enumerate(cold[greedy:]):
        asked.append(Asked(name, 1 + place % (CLIENTS - 1), order.uniform(0, WITHIN)))
    return sorted(asked, key=lambda one: one.at)


def storm(server: Server, cold: list[str]) -> list[Asked]:
    """Ask for all VMs; return when each question was answered."""
    todo, found = plan(cold), {}
    sockets = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for number in range(CLIENTS):
            made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.bind((f"127.0.{number + 1}.{number + 1}", 0))
            made.connect((HOST, server.port))
            made.setblocking(False)  # noqa: FBT003
            selector.register(made, selectors.EVENT_READ, number)
            sockets.append(made)
        begin, number = time.monotonic(), 0
        end = begin + WITHIN + ANSWER_BY + PATIENCE / 10
        while time.monotonic() < end and (number < len(todo) or any(one.answered is None for one in todo)):
            while number < len(todo) and begin + todo[number].at <= time.monotonic():
                one = todo[number]
                one.at = time.monotonic()
                query = struct.pack(">6H", number, 0x100, 1, 0, 0, 1) + from_text(one.name) + struct.pack(">2H", 1, 1)
                found[one.client, number] = one
                sockets[one.client].send(query + OPT)
                number += 1
            wait = begin + todo[number].at - time.monotonic() if number < len(todo) else 0.1
            for key, _ in selector.select(max(0.0, min(wait, 0.1))):
                client: Any = key.fileobj
                with contextlib.suppress(BlockingIOError):
                    while True:
                        octets = client.recv(4096)
                        one = found[key.data, struct.unpack_from(">H", octets)[0]]
                        one.answered, one.octets = time.monotonic(), octets
    return todo


def status(place: Path) -> dict[str, dict[str, Any]]:
    """Return what jitsuctl says of each VM, by its DNS name."""
    command = [str(BIN / "jitsuctl"), "--control", f"unix:{place}/control", "status", "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {f"{one['name']}.{ZONE}": one for one in said}


def wait_for(place: Path, cold: list[str], *, off: bool) -> dict[str, dict[str, Any]]:
    """Wait until all VMs have been started (they are stopped soon after), or, *off*, all are down; return all."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = status(place)
        states = [found[name]["state"] for name in cold]
        if all(state == "off" for state in states) if off else not set(states) & {"queued", "starting", "waiting"}:
            return found
        time.sleep(1)
    raise SystemExit("the storm does not end")


def fairness(asked: list[Asked], found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return how fair the order was in which the VMs were admitted."""
    admitted = {one.name: one.at + found[one.name]["activation_ms"]["admitted"] / 1000 for one in asked}
    all_asked = max(one.at for one in asked)
    waiting = {client: [one for one in asked if one.client == client and admitted[one.name] > all_asked]
               for client in range(CLIENTS)}
    counts = dict.fromkeys(range(CLIENTS), 0)
    spread = 0
    for one in sorted(asked, key=lambda one: admitted[one.name]):
        if admitted[one.name] > all_asked:
            counts[one.client] += 1
            still = [counts[client] for client, theirs in waiting.items() if counts[client] < len(theirs)]
            spread = max(spread, max(still) - min(still)) if still else spread
    ordered = [
        admitted[first.name] <= admitted[second.name] + JITTER
        for client in range(CLIENTS)
        for first, second in combinations([one for one in asked if one.client == client], 2)
    ]
    waits = {greedy: [admitted[one.name] - one.at for one in asked if (one.client == 0) is greedy]
             for greedy in (True, False)}
    begin = min(one.at for one in asked)
    return {
        "spread": spread,
        "in order": sum(ordered) / len(ordered),
        "greedy waits": statistics.median(waits[True]),
        "others wait": statistics.median(waits[False]),
        "others' first start": max(
            min(admitted[one.name] for one in asked if one.client == client) - begin for client in range(1, CLIENTS)
        ),
        "all started": max(admitted.values()) - begin,
    }


def answers(asked: list[Asked]) -> dict[str, Any]:
    """Return when the clients were answered."""
    took = sorted(one.answered - one.at for one in asked if one.answered is not None)
    hows = [one.how for one in asked]
    return {
        "p50": load.percentile(took, 0.5),
        "p99": load.percentile(took, 0.99),
        "max": took[-1] if took else 0.0,
        "late": sum(one > ANSWER_BY + LATE for one in took) + hows.count("lost"),
        "answers": {how: hows.count(how) for how in sorted(set(hows))},
    }


def measure(number: int, rounds: int) -> dict[str, Any]:
    """Return the figures of so many storms, each after a quiet time."""
    hosts = names(WARM + number)
    warm, cold = list(hosts)[:WARM], list(hosts)[WARM:]
    found: list[dict[str, Any]] = []
    os.sched_setaffinity(0, {int(core) for core in LOAD_CORES.split(",")})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True)))
        place = folder / "jitsu"
        asked = questions(folder / "questions", warm)
        server = stack.enter_context(start(attrs.evolve(PEERS["jitsu"], make=serve), place, hosts))
        pool = stack.enter_context(ThreadPoolExecutor())
        load.warm_up(server, asked)
        for turn in range(rounds):
            quiet = load.latencies(server, asked, SECONDS, STEADY)
            meanwhile = pool.submit(load.latencies, server, asked, SECONDS, STEADY)
            time.sleep(1)
            told = storm(server, cold)
            busy = meanwhile.result()
            started = wait_for(place, cold, off=False)
            one = {
                "quiet p99": load.percentile(quiet, 0.99), "storm p99": load.percentile(busy, 0.99),
                "quiet p50": load.percentile(quiet, 0.5), "storm p50": load.percentile(busy, 0.5),
                **answers(told), **fairness(told, started),
                "twice": sum(started[name]["total_starts"] != turn + 1 for name in cold),
            }
            found.append(one)
            print(f"round {turn + 1} of {rounds}: warm p99 {one['quiet p99'] * 1e6:.0f} us when quiet, "
                  f"{one['storm p99'] * 1e6:.0f} us in the storm", flush=True)
            wait_for(place, cold, off=True)
    medians = {key: statistics.median(one[key] for one in found) for key in found[0] if key != "answers"}
    return {"vms": number, "clients": CLIENTS, "max_booting": MAX_BOOTING, "answer_by": ANSWER_BY, "rounds": found,
            "medians": medians, "ratio": medians["storm p99"] / medians["quiet p99"]}


#: Title, key, factor and form of each figure.
ROWS: Final = (
    ("warm p50, quiet, us", "quiet p50", 1e6, ",.0f"), ("warm p50, storm, us", "storm p50", 1e6, ",.0f"),
    ("warm p99, quiet, us", "quiet p99", 1e6, ",.0f"), ("warm p99, storm, us", "storm p99", 1e6, ",.0f"),
    ("answered p50, s", "p50", 1, ".3f"), ("answered p99, s", "p99", 1, ".3f"), ("answered max, s", "max", 1, ".3f"),
    ("late or lost", "late", 1, ",.0f"), ("not started once", "twice", 1, ",.0f"),
    ("networks: spread", "spread", 1, ".0f"), ("one network: in order", "in order", 1, ".4f"),
    ("others' first start, s", "others' first start", 1, ".2f"), ("others wait (median), s", "others wait", 1, ".2f"),
    ("the greedy one waits, s", "greedy waits", 1, ".2f"), ("all started after, s", "all started", 1, ".2f"),
)


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures as a table."""
    title = f"{figures['vms']} VMs, {figures['clients']} clients, {figures['max_booting']} boot at once"
    rounds = [f"round {number + 1}" for number in range(len(figures["rounds"]))]
    rows = table([title], [*rounds, "median"])
    for title, key, factor, form in ROWS:
        rows.add_row(title, *(format(one[key] * factor, form) for one in (*figures["rounds"], figures["medians"])))
    console = Console(highlight=False, width=max(120, Console().width))
    console.print(rows)
    console.print(f"answers: {figures['rounds'][-1]['answers']}; answer_by is {figures['answer_by']} s")
    console.print(f"warm p99 in the storm / when quiet: [bold]{figures['ratio']:.2f}[/]")


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Storms, each after a quiet time.")
@click.option("--vms", "number", default=500, show_default=True, help="How many are asked for.")
@json_option
def main(rounds: int, number: int, path: Path | None) -> None:
    """Measure a boot storm."""
    require_dnsperf()
    figures = measure(number, rounds)
    write(path, figures)
    show(figures)


if __name__ == "__main__":
    main()
