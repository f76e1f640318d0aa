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
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import from_text, to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ZoneError
from test.hostile import zones

SEEDS: Final = [Path("conf/jitsu.zone").read_bytes()] + [
    row.input if isinstance(row.input, bytes) else row.input.encode() for row in zones.ROWS
]

_WORDS: Final = (
    b"$ORIGIN $TTL $INCLUDE $GENERATE IN CH SOA NS A AAAA CNAME DNAME MX TXT SRV PTR HTTPS SVCB CAA NSEC RRSIG DS LOC "
    b"DNSKEY NAPTR APL TYPE65280 \\# alpn= ipv4hint= 1h 2147483648 4294967296 192.0.2.1 2001:db8::1 example.org. *.a "
    b'${0,3,d} 1-9 \\ \\255 " ( ) ; @'
)

WORDS: Final = [*_WORDS.split(), b"\n\t", b"\r\n"]

#: The records of one input: a million, which a file of one line may ask for, take a minute here.
vars(masterfile)["MAX_LINES"] = 5_000

_FOLDER: Final = Path(tempfile.mkdtemp())
_PATH: Final = _FOLDER / "a.zone"


def _written(zone: Zone) -> str:
    """Return the records of *zone* as text in which nothing is relative."""
    lines = []
    for record in zone.records():
        rtype = dns.rdatatype.RdataType.make(record.type)
        rdata = dns.rdata.from_wire(dns.rdataclass.IN, rtype, record.rdata, 0, len(record.rdata))
        owner = dns.name.from_wire(record.owner, 0)[0].to_text()
        lines.append(f"{owner} {record.ttl} IN {dns.rdatatype.to_text(rtype)} {rdata.to_generic().to_text()}\n")
    return "".join(lines)


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
    for record in records[:50]:
        for rtype in (1, 5, 255, record.type):
            zones.lookup(record.owner.lower(), rtype)
    zones.lookup(from_text("a.b.c.example.org"), 1)
    text = _written(zone)
    _PATH.write_text(text)
    again = list(Zone.read(_PATH).records())
    assert sorted(map(str, again)) == sorted(map(str, records)), to_text(zone.key)
