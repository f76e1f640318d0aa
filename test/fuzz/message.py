"""
Messages: `jitsu_tw.dns.message` and `.reply`.

Nothing may raise; a reply may not be too long, of another id, or unreadable to dnspython.
"""

from __future__ import annotations

from typing import Final

import dns.message

from jitsu_tw.dns.message import Drop, Query, Reject, parse
from jitsu_tw.dns.reply import Reply, truncated, write
from jitsu_tw.dns.wire import RR, from_text
from test.hostile import questions

WWW, NS, ZONE = (from_text(text) for text in ("www.example.org", "ns.example.org", "Example.ORG"))

SEEDS: Final = [row.input for row in questions.ROWS] + [
    dns.message.make_query("www.example.org", qtype, use_edns=edns, want_dnssec=qtype != "A").to_wire()
    for qtype in ("A", "AAAA", "IXFR", "ANY", "TYPE250")
    for edns in (False, 0, 1)
]

WORDS: Final = [WWW, NS, ZONE, b"\0\0\x29", b"\xc0\x0c", b"\0\x0a\0\x08", b"\0\1\0\1"]

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
    """Parse *octets*, and write each kind of reply to them."""
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
