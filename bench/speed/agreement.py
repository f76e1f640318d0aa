"""
What sharing costs a Jitsu: its warm rate and its cold start, with `cluster` and without.

Warm: Jitsus with VMs of the memory backend that are up, asked in turn by dnsperf (`bench.speed.load`), on a core of
their own; half of them are each the only node of a cluster. What these share, they share with etcd, whose work is on
the other cores. There are several of each kind, for two processes that do the same differ by a few percent. Cold: two
Jitsus with VMs that start at once (`bench.simulation.twohosts`), asked in turn for one that is down. Etcd has three
members, which do not wait for their disks: what these take comes on top. Run it as::

    python -m bench.speed.agreement [--only warm|cold] [--json FILE]
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread

from bench.debian import environment, unpacked
from bench.figures import json_option, table, write
from bench.simulation.audit import Audit, Kind
from bench.simulation.nodes import ANSWER_BY, HOSTS, Node
from bench.simulation.twohosts import Hosts
from bench.speed import load
from bench.speed.client import Client
from bench.speed.dns import noise, questions, require_dnsperf, summary
from bench.speed.peers import names, serve_jitsu
from bench.speed.server import LOAD_CORES, Place, Server
from demo.lab import free_port
from test.support.etcds import LOOPBACK, Etcds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MEMBERS: Final = 3

#: VMs of the warm part, seconds of a run, runs of each Jitsu, and Jitsus of each kind.
NAMES: Final = 1000
SECONDS: Final = 3.0
ROUNDS: Final = 6
ALIKE: Final = 4

#: VMs of the cold part, and how often each is started.
STARTED: Final = 40
STARTS: Final = 3

#: Seconds that a stop by hand takes to be known to all, and an agreement that is not awaited to end.
SETTLED: Final = 0.15


def warm(folder: Path, rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure the warm rate both ways, in turn; return all figures."""
    require_dnsperf()
    hosts = names(NAMES)
    asked = questions(folder / "questions", hosts)
    taskset = [lambda command: ["taskset", "-c", LOAD_CORES, *map(str, command)]] * MEMBERS
    with contextlib.ExitStack() as stack:
        etcds = stack.enter_context(Etcds([LOOPBACK] * MEMBERS, runs=taskset))
        pairs: list[dict[str, Server]] = []
        for number in range(ALIKE):
            pairs.append({})
            for key, urls in (("off", ()), ("on", etcds.urls)):
                root, own = unpacked(), folder / f"{key}-{number}"
                own.mkdir()
                place = Place(own, free_port(), hosts, root)
                commands = serve_jitsu(place, persist=False)
                if urls:
                    with (own / "jitsu.yaml").open("a") as config:
                        config.write(f"cluster: {{etcd: {list(urls)}, node: ns1, prefix: /{number}}}\n")
                pairs[-1][key] = stack.enter_context(Server(commands, environment(root), place))
                load.warm_up(pairs[-1][key], asked)
        loads: dict[str, list[load.Load]] = {"off": [], "on": []}
        for turn in range(rounds):
            for number, pair in enumerate(pairs):
                # The second of a pair may find the machine otherwise than the first.
                for key in sorted(pair, reverse=bool((turn + number) % 2)):
                    loads[key].append(load.measure(pair[key], asked, seconds))
            print(f"round {turn + 1} of {rounds}: " + ", ".join(
                f"{key} {statistics.mean(one.rate for one in some[-ALIKE:]):,.0f}" for key, some in loads.items()
            ), flush=True)

    def ratio(value: Callable[[load.Load], float]) -> float:
        return statistics.median(map(value, loads["on"])) / statistics.median(map(value, loads["off"]))

    return {
        "rounds": rounds, "seconds": seconds, **{key: summary(some) for key, some in loads.items()},
        "ratio": ratio(lambda one: one.rate), "ratio of work": 1 / ratio(load.Load.cost),
    }


def show_warm(figures: Mapping[str, Any]) -> None:
    """Print the warm part."""
    rows = table(["warm, cluster"], ["answers/s (median)", "spread", "work, us an answer", "core", "bad"])
    for key in ("off", "on"):
        one = figures[key]
        rows.add_row(key, f"{one['rate']:,.0f}", f"{one['spread']:.0%}", f"{one['cost us']:.1f}", f"{one['busy']:.0%}",
                      f"{one['bad']:,}")
    console = Console(highlight=False)
    console.print(rows)
    console.print(f"warm rate on / off: [bold]{figures['ratio']:.3f}[/]; work for an answer off / on: "
                  f"{figures['ratio of work']:.3f} (medians of {figures['rounds']} rounds with {ALIKE} of each)")
    console.print(noise([figures["off"], figures["on"]]), soft_wrap=True)


async def cold(reactor: Any, folder: Path, client: Client, starts: int = STARTS) -> dict[str, Any]:
    """Measure the cold start both ways, in turn; return all figures."""
    kinds = {name: Kind(name, f"10.2.0.{one}", 3600.0) for one in range(1, STARTED + 1) for name in [f"vm{one:03}"]}
    port = reactor.listenUDP(0, client, interface=LOOPBACK)
    took: dict[str, list[float]] = {"off": [], "on": []}
    etcds = Etcds([LOOPBACK] * MEMBERS)
    nodes: dict[str, Node] = {}
    doors, hosts = [], {}
    try:
        await deferToThread(etcds.start_all)
        for key, ports in (("off", []), ("on", [member.port for member in etcds.members])):
            (folder / f"cold-{key}").mkdir()
            audit = Audit(kinds, reactor.seconds, 0.0)
            hosts[key] = Hosts(HOSTS, kinds, audit, reactor)
            doors.append(hosts[key].listen(folder / f"cold-{key}" / "hosts.sock"))
            nodes[key] = Node("ns1", folder / f"cold-{key}", kinds.values(), ports, reactor)
            nodes[key].start()
            await client.until_served(nodes[key].port)
        await deferLater(reactor, 2.0)
        for _ in range(starts):
            for name in kinds:
                for key, node in nodes.items():
                    begin = time.perf_counter()
                    answer = await client.ask(name, node.port, ANSWER_BY * 2)
                    took[key].append((time.perf_counter() - begin) * 1000)
                    if not answer.answer:
                        raise SystemExit(f"not answered with cluster {key}: {answer}")
                    await deferLater(reactor, SETTLED)
                    hosts[key].off(name)
                    await deferLater(reactor, SETTLED)
    finally:
        for node in nodes.values():
            node.close()
        for door in (*doors, port):
            await door.stopListening()
        await deferToThread(etcds.close)
    medians = {key: statistics.median(all_of_them) for key, all_of_them in took.items()}
    return {"medians": medians, "price ms": medians["on"] - medians["off"], "all": took,
            "p90": {key: sorted(some)[int(0.9 * len(some))] for key, some in took.items()}}


def show_cold(figures: Mapping[str, Any]) -> None:
    """Print the cold part."""
    console = Console(highlight=False)
    for key in ("off", "on"):
        console.print(f"cold start, cluster {key}: {figures['medians'][key]:.1f} ms (median of "
                      f"{len(figures['all'][key])}; one in ten takes over {figures['p90'][key]:.1f} ms)")
    console.print(f"a cold start pays [bold]{figures['price ms']:.1f} ms[/] for agreement")


@click.command()
@click.option("--only", type=click.Choice(["warm", "cold"]), help="Only this part.")
@json_option
def main(only: str | None, path: Path | None) -> None:
    """Measure what `cluster` costs."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)

        async def run(reactor: Any) -> None:
            figures["cold"] = await cold(reactor, folder, Client(reactor))
            show_cold(figures["cold"])

        if only != "cold":
            figures["warm"] = warm(folder)
            show_warm(figures["warm"])
        if only != "warm":
            with contextlib.suppress(SystemExit):
                react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    write(path, figures)
    if only != "warm" and "cold" not in figures:
        sys.exit(1)


if __name__ == "__main__":
    main()
