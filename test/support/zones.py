"""What tests of zones need: zones from a few lines of text, and outcomes as one line each."""

from __future__ import annotations

from pathlib import Path

import dns.rdata
import dns.rdatatype
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.lookup import Found, NoData, Outcome, Referral, Refused, Zones
from jitsu_tw.dns.wire import RR, from_text, to_text
from jitsu_tw.dns.zone import Zone

#: The first lines of a zone.
HEAD = "$TTL 3600\n@ SOA ns hostmaster 7 1h 10m 1d 60\n"


def text_of(record: RR) -> str:
    """Return *record* as ``owner TYPE data``, with dnspython's text for the data."""
    rtype = dns.rdatatype.RdataType.make(record.type)
    rdata = dns.rdata.from_wire("IN", rtype, record.rdata, 0, len(record.rdata))
    return f"{to_text(record.owner)} {dns.rdatatype.to_text(rtype)} {rdata.to_text()}"


def listing(records: list[RR]) -> str:
    """Return the *records* with semicolons between them."""
    return "; ".join(map(text_of, records))


def say(outcome: Outcome) -> str:
    """Return *outcome* as one line: its kind, the answer, ``+`` what is additional, ``vm=`` the VM."""
    parts = [type(outcome).__name__]
    if not isinstance(outcome, Refused) and outcome.answer:
        parts.append(listing(outcome.answer))
    if isinstance(outcome, Referral):
        parts += ["-> " + listing(outcome.authority), "glue " + listing(outcome.glue)]
    if isinstance(outcome, Found | Referral) and outcome.additional:
        parts.append("+ " + listing(outcome.additional))
    if isinstance(outcome, Found | NoData) and outcome.vm is not None:
        parts.append("vm=" + outcome.vm)
    return " ".join(part.strip() for part in parts)


class ZoneTestCase(SynchronousTestCase):
    """Writes zones to files, and compares tables."""

    def write(self, text: str, name: str = "") -> str:
        """Return the path of a file with *text*."""
        path = Path(self.mktemp())
        path.mkdir()
        path /= name or "a.zone"
        path.write_text(text)
        return str(path)

    def zones(self, *texts: str) -> Zones:
        """Return the zones of *texts*."""
        return Zones(Zone.read(self.write(text)) for text in texts)

    def check(self, zones: Zones, cases: list[tuple[str, str, str]]) -> None:
        """Compare the outcome of each (name, type) with the expected line."""
        for name, qtype, expected in cases:
            with self.subTest(name=name, type=qtype):
                outcome = zones.lookup(from_text(name), int(dns.rdatatype.from_text(qtype)))
                self.assertEqual(" ".join(expected.split()), say(outcome))
