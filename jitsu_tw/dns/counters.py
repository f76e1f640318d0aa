"""
Count the responses of the server, by protocol, type, response code and zone. Pure.

A client chooses what it asks, so each of these has a bounded number of values: types beyond `TYPES` count together, and
so do names that are in no served zone, and zones beyond the first `MOST_ZONES`. Warm answers are counted by what counts
their uses, and added here when those are (`WarmAnswers.taken`): an answer costs nothing more for it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dns.rcode import Rcode
from dns.rdatatype import RdataType

from jitsu_tw.dns.wire import to_text

if TYPE_CHECKING:
    from jitsu_tw.dns.rrl import Decision
    from jitsu_tw.dns.zone import Zone

#: The types that are counted by their names: those that clients of an authority ask for.
TYPES: Final = {
    int(one): one.name
    for one in (
        RdataType.A, RdataType.AAAA, RdataType.ANY, RdataType.AXFR, RdataType.CAA, RdataType.CDNSKEY, RdataType.CDS,
        RdataType.CNAME, RdataType.DNSKEY, RdataType.DS, RdataType.HTTPS, RdataType.IXFR, RdataType.MX,
        RdataType.NAPTR, RdataType.NS, RdataType.NSEC, RdataType.PTR, RdataType.RRSIG, RdataType.SOA, RdataType.SRV,
        RdataType.SVCB, RdataType.TLSA, RdataType.TXT,
    )
}  # fmt: skip

#: What stands for other types, and packets without a question that can be read.
OTHER_TYPE: Final = "other"

#: The most zones with counters of their own: the first that are asked.
MOST_ZONES: Final = 200

#: What stands for names in none of the served zones, and for further zones. No zone's name has parentheses unescaped.
NO_ZONE: Final = "(none)"
OTHER_ZONE: Final = "(other)"

#: What a response is counted by: protocol, type, response code, zone.
Label = tuple[str, str, str, str]


class Counters:
    """
    What the server has done since its start.

    Attributes:
        responses: responses by protocol (``udp``, ``tcp``), type and response code; a zone transfer is one.
        zones: the same responses by zone and response code.
        truncated: responses among them with TC.
        limited: responses that the limiter has not let out as they were: truncated ones, which are counted as
            responses, too, and dropped ones, which are not.
        ignored: packets that get no response: they are responses themselves, or shorter than a header.
        logged: lines of the query log that were ``written``, and ``dropped`` because they could not be.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.responses: Counter[tuple[str, str, str]] = Counter()
        self.zones: Counter[tuple[str, str]] = Counter()
        self.truncated = 0
        self.limited: Counter[Decision] = Counter()
        self.ignored = 0
        self.logged: Counter[str] = Counter(written=0, dropped=0)
        self._named: dict[bytes, str] = {}
        self._labels: dict[Label, Label] = {}

    def label(self, qtype: int | None, rcode: int, zone: Zone | None, *, tcp: bool) -> Label:
        """Return what a response is counted by; *qtype* is None, and *zone* too, where there is no such."""
        label = (
            "tcp" if tcp else "udp",
            OTHER_TYPE if qtype is None else TYPES.get(qtype, OTHER_TYPE),
            Rcode.to_text(rcode),
            self._zone(zone),
        )
        return self._labels.setdefault(label, label)

    def add(self, label: Label, times: int = 1, *, truncated: bool = False) -> None:
        """Count *times* responses; *truncated*: with TC."""
        protocol, qtype, rcode, zone = label
        self.responses[protocol, qtype, rcode] += times
        self.zones[zone, rcode] += times
        self.truncated += times * truncated

    def limit(self, label: Label, decision: Decision, *, sent: bool) -> None:
        """Count a response that the limiter has decided on: one that is *sent* is truncated."""
        self.limited[decision] += 1
        if sent:
            self.add(label, truncated=True)

    def _zone(self, zone: Zone | None) -> str:
        if zone is None:
            return NO_ZONE
        named = self._named.get(zone.key)
        if named is None:
            if len(self._named) >= MOST_ZONES:
                return OTHER_ZONE
            named = self._named[zone.key] = to_text(zone.key)
        return named
