"""
Fuzz `jitsu_tw.dns.message` and `.reply` with atheris: ``python test/fuzz_message.py --seconds 60``.

Anything that raises, or a reply that is too long, of another id or unreadable to dnspython, ends the program with a
status that is not 0; the input that did it is left in ``--artifacts``. Not a test module: trial does not run it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["jitsu_tw.dns.message", "jitsu_tw.dns.reply"]):
    from jitsu_tw.dns.message import Drop, Query, Reject, parse
    from jitsu_tw.dns.reply import Reply, truncated, write

import dns.message

from jitsu_tw.dns.wire import RR, from_text

WWW, NS, ZONE = (from_text(text) for text in ("www.example.org", "ns.example.org", "Example.ORG"))
LIMITS = (12, 40, 100, 512, 513, 1232, 65535, None)


def replies(seed: bytes) -> list[Reply]:
    """Return some replies, one of them with *seed* as the data of its records."""
    soa = RR(ZONE, 6, 60, NS + WWW + bytes(20))
    return [
        Reply(answer=[RR(WWW, 1, 60, b"\x0a\0\0\1")], aa=True),
        Reply(3, authority=[soa], ede=((18, "prohibited"),), options=((10, bytes(24)),)),
        Reply(
            authority=[RR(ZONE, 2, 60, NS)], additional=[RR(NS, 1, 60, bytes([i] * 4)) for i in range(40)], glue=40
        ),
        Reply(23, answer=[RR(WWW, 65280, 60, seed), RR(NS, 65281, 60, seed * 3)], ede=((22, "x" * 300),)),
    ]


def one(octets: bytes) -> None:
    """Parse all of *octets*, and say everything to whoever sent them."""
    got = parse(octets)
    if isinstance(got, Drop):
        return
    limit = LIMITS[octets[0] % len(LIMITS)]
    for said in replies(octets[12:80]):
        for out in (write(got, said, limit), truncated(got)):
            assert len(out) <= (limit or 65535) or out[2] & 2
            assert out[:2] == octets[:2]
            assert out[2] & 0x80
            if not isinstance(got, Reject) or got.opcode == 0:
                second = dns.message.from_wire(out)
                if isinstance(got, Query) and second.question:
                    assert second.question[0].name.to_wire() == got.question.asked
    for rtype in (2, 5, 6, 12, 15):  # data that is not what its type says must not raise, whatever a client makes of it
        write(got, Reply(answer=[RR(WWW, rtype, 60, octets[12:300])]), limit)


def main() -> None:
    """Fuzz for as long as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--artifacts", default=tempfile.gettempdir(), help="where an input that crashes is left")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as corpus:
        for number, qtype in enumerate(("A", "AAAA", "IXFR", "ANY", "TYPE250")):
            for edns in (False, 0, 1):
                query = dns.message.make_query("www.example.org", qtype, use_edns=edns, want_dnssec=bool(number))
                Path(corpus, f"{number}-{edns}").write_bytes(query.to_wire())
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={options.seconds}",
                "-max_len=2048",
                "-timeout=5",
                f"-artifact_prefix={options.artifacts}/",
                corpus,
            ],
            one,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
