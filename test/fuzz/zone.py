"""Zone files: refused with `ZoneError`, or a zone whose records are the same when they are written and read again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from jitsu_tw.dns import masterfile
from jitsu_tw.dns.chain import NsecChain
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.message import Edns, Query
from jitsu_tw.dns.reply import Reply, write
from jitsu_tw.dns.resolver import ZoneAuthority
from jitsu_tw.dns.secure import complete
from jitsu_tw.dns.wire import RR, RRSIG, Question, RRset, from_text, to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import Unanswerable, ZoneError
from test.hostile import zones

_SIGNATURE: Final = "13 2 60 20300101000000 20200101000000 1 example.org. AAAA"
#: Zones that come signed, with NSEC and with NSEC3 records; the hashes are those of the names, without a salt.
_SIGNED: Final = f"""$ORIGIN example.org.
$TTL 60
@ SOA ns h 1 2 3 4 5
@ NS ns
@ DNSKEY 257 3 13 AAAA
@ RRSIG SOA {_SIGNATURE}
ns A 192.0.2.1
ns RRSIG A {_SIGNATURE}
*.w TXT x
cut NS ns
alias CNAME ns
old DNAME w
"""
_NSEC: Final = "@ NSEC ns NS SOA RRSIG NSEC DNSKEY\nns NSEC *.w A RRSIG NSEC\n*.w NSEC @ TXT RRSIG NSEC\n"
_NSEC3: Final = f"""@ NSEC3PARAM 1 0 0 -
8um1kjcjmofvvmq7cb0op7jt39lg8r9j NSEC3 1 1 0 - 5vqm4iqg11nec1vv12hp2aonvg05a83i NS SOA RRSIG DNSKEY NSEC3PARAM
5vqm4iqg11nec1vv12hp2aonvg05a83i NSEC3 1 1 0 - 8um1kjcjmofvvmq7cb0op7jt39lg8r9j A RRSIG
5vqm4iqg11nec1vv12hp2aonvg05a83i RRSIG NSEC3 {_SIGNATURE}
"""

SEEDS: Final = [Path("conf/jitsu.zone").read_bytes(), (_SIGNED + _NSEC).encode(), (_SIGNED + _NSEC3).encode()] + [
    row.input if isinstance(row.input, bytes) else row.input.encode() for row in zones.ROWS
]

_WORDS: Final = (
    b"$ORIGIN $TTL $INCLUDE $GENERATE IN CH SOA NS A AAAA CNAME DNAME MX TXT SRV PTR HTTPS SVCB CAA NSEC RRSIG DS LOC "
    b"DNSKEY NSEC3 NSEC3PARAM CDS NAPTR APL TYPE65280 \\# alpn= ipv4hint= 1h 2147483648 4294967296 "
    b"192.0.2.1 2001:db8::1 example.org. *.a "
    b'${0,3,d} 1-9 \\ \\255 " ( ) ; @'
)

WORDS: Final = [*_WORDS.split(), b"\n\t", b"\r\n"]

#: The records of one input: a million, which a file of one line may ask for, take a minute here.
vars(masterfile)["MAX_LINES"] = 5_000

_FOLDER: Final = Path(tempfile.mkdtemp())
_PATH: Final = _FOLDER / "a.zone"


class Proven:
    """An `ISecurity` with an NSEC chain; its signatures are none."""

    def __init__(self, zone: Zone) -> None:
        """Prove what *zone* has not."""
        self.denial = NsecChain(zone)

    def signatures(self, rrset: RRset) -> list[RR]:
        """Return one record."""
        return [RR(rrset.owner, RRSIG, rrset.ttl, rrset.type.to_bytes(2) + bytes(90))]


def _written(zone: Zone) -> str:
    """Return the records of *zone* as text in which nothing is relative."""
    lines = []
    for record in zone.records():
        rtype = dns.rdatatype.RdataType.make(record.type)
        rdata = dns.rdata.from_wire(dns.rdataclass.IN, rtype, record.rdata, 0, len(record.rdata))
        owner = dns.name.from_wire(record.owner, 0)[0].to_text()
        lines.append(f"{owner} {record.ttl} IN {dns.rdatatype.to_text(rtype)} {rdata.to_generic().to_text()}\n")
    return "".join(lines)


def _prove(zones: Zones, key: bytes, rtype: int) -> None:
    """Answer a question with DO, with all that proves the answer."""
    query = Query(0, 0, Question(key, rtype), Edns(1232, do=True))
    try:
        answer = ZoneAuthority(zones).answer(query.question)
    except Unanswerable as fault:
        reply = Reply(fault.rcode, aa=True, answer=fault.answer, authority=fault.authority)
    else:
        reply = Reply(5) if answer is None else Reply(0, answer.aa, *answer)
    write(query, complete(query, reply, zones), 1232)


def one(octets: bytes) -> None:
    """Read a zone; look its names up; write it and read it again."""
    if b"$include" in octets.lower() and b"/" in octets:
        return  # an operator may include any file of the machine, a device as well
    _PATH.write_bytes(octets)
    try:
        zone = Zone.read(_PATH)
    except ZoneError as error:
        assert str(error).startswith(str(_PATH)), error
        return
    records = list(zone.records())
    zone.warnings  # noqa: B018
    zones = Zones([zone])
    if zone.security is None:
        zone.secure(Proven(zone))  # type: ignore[arg-type]
    for record in records[:50]:
        for rtype in (1, 5, 43, 47, 255, record.type):
            _prove(zones, record.owner.lower(), rtype)
        if len(record.owner) < 250:
            _prove(zones, b"\1a\1*" + record.owner.lower(), 1)
    _prove(zones, from_text("a.b.c.example.org"), 1)
    text = _written(zone)
    _PATH.write_text(text)
    again = list(Zone.read(_PATH).records())
    assert sorted(map(str, again)) == sorted(map(str, records)), to_text(zone.key)
