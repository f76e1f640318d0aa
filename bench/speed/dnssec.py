"""
What DNSSEC costs. `--only signatures`: how many signatures are made in a second, against dnspython's.

Run it as::

    python -m bench.speed.dnssec [--only signatures] [--seconds 2] [--json FILE]
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import Mock

import click
import dns.dnssec
import dns.name
import dns.rdata
import dns.rrset
from twisted.names.dns import SOA, A

from bench.figures import json_option, write
from jitsu_tw.dns.dnskeys import ECDSAP256SHA256, ED25519, Key
from jitsu_tw.dns.keytimes import Times
from jitsu_tw.dns.signing import Signed
from jitsu_tw.dns.wire import RR, RRset, from_text
from jitsu_tw.dns.zone import Zone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APEX: Final = from_text("bench.test")

#: The validity of signatures, in seconds.
VALIDITY: Final = 14 * 86400

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


#: What can be measured, by the name for ``--only``.
PARTS: Final[dict[str, Callable[[float], dict[str, Any]]]] = {"signatures": signatures}


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
