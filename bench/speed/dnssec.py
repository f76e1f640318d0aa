"""
What DNSSEC costs.

- `--only signatures`: how many signatures are made in a second, against dnspython's.
- `--only warm`: warm answers with DO against those without, of one Jitsu, in turn.
- `--only zone`: `NAMES` names in a zone that is signed, against the same zone without signatures: the time until they
  are served, memory, two transfers, and the longest turns of the reactor meanwhile.

Run it as::

    python -m bench.speed.dnssec [--only signatures]... [--seconds 8] [--json FILE]
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import Mock

import attrs
import click
import dns.dnssec
import dns.name
import dns.rdata
import dns.rrset
from twisted.names.dns import SOA, A

from bench.figures import json_option, write
from bench.speed import load
from bench.speed.dns import questions, require_dnsperf
from bench.speed.peers import PEERS, ZONE, Peer, names, serve_jitsu, start
from bench.speed.scale import REPORT, turns
from bench.speed.server import HOST, LOAD_CORES
from jitsu_tw.dns.dnskeys import ECDSAP256SHA256, ED25519, Key
from jitsu_tw.dns.keytimes import Times
from jitsu_tw.dns.signing import Signed
from jitsu_tw.dns.wire import RR, RRset, from_text
from jitsu_tw.dns.zone import Zone

if TYPE_CHECKING:
    from collections.abc import Callable

APEX: Final = from_text("bench.test")

#: The validity of signatures, in seconds.
VALIDITY: Final = 14 * 86400

#: The names of the zones that are served.
WARM_NAMES: Final = 1000
NAMES: Final = 100_000

#: Lines of the configuration.
TRANSFERS: Final = f"allow_transfer: [{HOST}]\n"
SIGNED: Final = f"{TRANSFERS}dnssec: {{keys: keys}}\n"

#: How often the two sides take turns.
ROUNDS: Final = 4


def signatures(seconds: float) -> dict[str, Any]:
    """Return how many address RRsets are signed in a second of CPU time, by each algorithm and side."""
    found: dict[str, Any] = {}
    for algorithm in (ECDSAP256SHA256, ED25519):
        ours, theirs = _sides(algorithm)
        counts = {"jitsu": 0.0, "dnspython": 0.0}
        for _ in range(ROUNDS):
            for side, sign in (("jitsu", ours), ("dnspython", theirs)):
                counts[side] += _rate(sign, seconds / ROUNDS / 4) / ROUNDS
        for side, rate in counts.items():
            found[f"algorithm {algorithm}, {side}, signatures a second"] = rate
        found[f"algorithm {algorithm}, ratio"] = counts["jitsu"] / counts["dnspython"]
    return found


def _sides(algorithm: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what signs an RRset once: Jitsu, which must not find it signed already, and dnspython."""
    zone = Zone(RR(APEX, SOA, 60, APEX + APEX + bytes(20)))
    key = Key.made(APEX, algorithm, Times.beginning(int(time.time()), 0))
    signed = Signed(zone, [key], Mock(), time.time, VALIDITY)
    owner = from_text("www.bench.test")
    dnskey = dns.rdata.from_wire("IN", "DNSKEY", key.dnskey, 0, len(key.dnskey))
    text = dns.rrset.from_text("www.bench.test.", 60, "IN", "A", "192.0.2.1")
    private, signer = key.private, dns.name.from_text("bench.test.")
    return (
        lambda: signed.signatures(RRset(owner, A, 60, (bytes((192, 0, 2, 1)),))),
        lambda: dns.dnssec.sign(text, private, signer, dnskey, lifetime=VALIDITY),  # type: ignore[arg-type]
    )


def _rate(sign: Callable[[], object], seconds: float) -> float:
    """Return how often *sign* is done in a second of CPU time, measured for *seconds*."""
    count, begin = 0, time.process_time()
    while (took := time.process_time() - begin) < seconds:
        for _ in range(20):
            sign()
        count += 20
    return count / took


def warm(seconds: float) -> dict[str, Any]:
    """Return the rate and the work of warm answers, with DO and without."""
    require_dnsperf()
    hosts, loads = names(WARM_NAMES), {"with DO": list[load.Load](), "without DO": list[load.Load]()}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True)))
        asked = questions(folder / "questions", hosts)
        server = stack.enter_context(start(_peer(SIGNED, None), folder / "signed", hosts))
        for _ in range(2):  # the first answers are cold
            load.warm_up(server, asked)
            load.warm_up(server, asked, "-D")
        for _ in range(ROUNDS):
            loads["without DO"].append(load.measure(server, asked, seconds / ROUNDS / 2))
            loads["with DO"].append(load.measure(server, asked, seconds / ROUNDS / 2, "-D"))
    rates = {key: statistics.median(one.rate for one in those) for key, those in loads.items()}
    found: dict[str, Any] = {}
    for key, those in loads.items():
        found |= {f"{key}, answers a second": rates[key],
                  f"{key}, work for an answer, us": statistics.median(one.cost() for one in those),
                  f"{key}, octets": those[0].size, f"{key}, bad": sum(one.bad() for one in those)}  # fmt: skip
    work = "work for an answer, us"
    return found | {"warm, ratio": rates["with DO"] / rates["without DO"],
                    "warm, ratio of the work": found[f"without DO, {work}"] / found[f"with DO, {work}"]}  # fmt: skip


def zone(_seconds: float) -> dict[str, Any]:
    """Return what a large zone costs, signed and unsigned."""
    hosts, found = names(NAMES), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True) as folder:
        for key, more in (("unsigned", TRANSFERS), ("signed", SIGNED)):
            with start(_peer(more, Path(folder, key, REPORT)), Path(folder, key), hosts) as server:
                phases = {"start": 0.0}
                found |= {f"{key}, s to serve": server.seconds, f"{key}, MB": server.memory()}
                for number in ("first", "second"):
                    phases[f"{number} transfer"] = begin = time.monotonic()
                    said = subprocess.run(
                        ["taskset", "-c", LOAD_CORES, "dig", f"@{HOST}", "-p", str(server.port), "+noall", "+stats",
                         "AXFR", ZONE], check=True, capture_output=True, text=True,
                    ).stdout  # fmt: skip
                    found[f"{key}, s of the {number} transfer"] = time.monotonic() - begin
                    found[f"{key}, MB after the {number} transfer"] = server.memory()
                found[f"{key}, records"] = int(said.partition("XFR size: ")[2].split()[0])
                phases["end"] = time.monotonic()
            for phase in turns(Path(folder, key, REPORT), phases):
                if phase["phase"] != "end":
                    longest = max((turn["cpu"] for turn in phase["longest"]), default=0.0)
                    found[f"{key}, ms of the longest turn, {phase['phase']}"] = longest * 1e3
    return found


def _peer(more: str, report: Path | None) -> Peer:
    """Return a Jitsu with more lines of configuration; *report* is where that on its turns is written, if anywhere."""
    return attrs.evolve(PEERS["jitsu"], make=lambda place: serve_jitsu(place, persist=True, turns=report, more=more))


#: What can be measured, by the name for ``--only``.
PARTS: Final[dict[str, Callable[[float], dict[str, Any]]]] = {"signatures": signatures, "warm": warm, "zone": zone}


@click.command()
@click.option("--only", type=click.Choice(sorted(PARTS)), multiple=True, help="Measure this alone.")
@click.option("--seconds", default=8.0, show_default=True, help="For how long each part is measured.")
@json_option
def main(only: tuple[str, ...], seconds: float, path: Path | None) -> None:
    """Measure what DNSSEC costs."""
    figures: dict[str, Any] = {}
    for name in only or sorted(PARTS):
        figures |= PARTS[name](seconds)
    write(path, figures)
    for what, figure in figures.items():
        print(f"{what:50} {figure:12,.2f}")


if __name__ == "__main__":
    main()
