"""
Zone transfers: who may have a zone, and the packets that it goes in (AXFR: RFC 5936; IXFR: RFC 1995).

Nothing here does I/O or reads a clock. `answer` says what a query of the types AXFR and IXFR gets: a `Reply`, or a
`Transfer` whose packets the caller sends at the client's pace (`stream`). An IXFR is answered by the whole zone, or by
the SOA record alone if the client has that version already, or asks by UDP: we keep no differences.

What is transferred is the zone as it was at one time, though it may change meanwhile. A change that has a new serial
(`Zone.bump`, in the same turn of the reactor) is seen; one without is one that secondaries cannot see either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import dns.exception
import dns.name
from twisted.names.dns import AXFR, IXFR, SOA

from jitsu_tw.dns.message import FIXED, FORMERR, HEADER
from jitsu_tw.dns.reply import STREAM_STEP, Reply, write_stream
from jitsu_tw.dns.tsig import NOTAUTH
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import EDE_NOT_AUTHORITATIVE, EDE_PROHIBITED
from jitsu_tw.networks import Networks, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.message import Query
    from jitsu_tw.dns.tsig import Signed
    from jitsu_tw.dns.wire import RR, Source
    from jitsu_tw.dns.zone import RRset, Zone
    from jitsu_tw.settings import Rule

#: The types of the questions that are for here.
TYPES: Final = frozenset({AXFR, IXFR})

REFUSED: Final = 5

#: The least that an SOA record's data can have, in octets: two roots and five numbers (RFC 1035, 3.3.13).
_LEAST_SOA: Final = 22
#: How often a zone that changes while it is read is read anew in pieces; then it is read at once.
_READINGS: Final = 3


class Permissions:
    """Who may have our zones: those whom one of some rules names."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        """Keep *rules*; without any nobody may."""
        self._rules = [(rule.network and Networks([rule.network]), rule.key) for rule in rules]

    def permit(self, source: Source, signed: Signed | None) -> bool:
        """Say whether *source*, whose query was signed so, may."""
        address = packed(source.host)
        has = None if signed is None else signed.key.wire
        return any(
            (networks is None or address in networks) and key in {None, has} for networks, key in self._rules
        )


@attrs.frozen
class Transfer:
    """A zone that is to be sent to a client."""

    query: Query
    zone: Zone

    def packets(
        self, options: tuple[tuple[int, bytes], ...], signed: Signed | None, now: Callable[[], float]
    ) -> Iterator[bytes]:
        """
        Yield the packets that the zone goes in (RFC 5936, 2.2), and b"" where one may pause; see `write_stream`.

        The first steps read the zone. What it has then is what is sent; memory is needed for a list of its RRsets,
        eight octets each, and for one packet.

        Args:
            options: EDNS options for each packet.
            signed: who signed the query; then the packets are signed.
            now: seconds since 1970, for that.

        Raises:
            ValueError: there is a record that no packet can have. What was sent is no zone: the connection must end.
        """
        rrsets = yield from _read(self.zone)
        packets = write_stream(self.query, _records(rrsets), options, 0 if signed is None else signed.room)
        yield from packets if signed is None else signed.sign_stream(packets, now)


def answer(octets: bytes, query: Query, zones: Zones, allowed: Permissions, signed: Signed | None) -> Reply | Transfer:
    """
    Return what a query of one of `TYPES`, and class IN, is answered with.

    Args:
        octets: the packet, for the SOA record of an IXFR query.
        query: what it says; its question has a source.
        zones: ours.
        allowed: who may have them.
        signed: who signed the query; None if nobody did.
    """
    question, source = query.question, query.question.source
    assert source is not None
    zone = zones.find(question.key)
    if zone is None or zone.key != question.key:
        return Reply(NOTAUTH, ede=((EDE_NOT_AUTHORITATIVE, "no zone of that name"),))  # RFC 5936, 2.2.1
    if not allowed.permit(source, signed):
        return Reply(REFUSED, ede=((EDE_PROHIBITED, "no transfers for this client"),))
    if question.type == IXFR:
        serial = _serial(octets, query)
        if serial is None:
            return Reply(FORMERR)
        if not source.tcp or _is_current(serial, zone.serial):  # RFC 1995, 2
            return Reply(aa=True, answer=[zone.soa])
    elif not source.tcp:
        return Reply(FORMERR)  # RFC 5936, 4.2 knows no AXFR by UDP; so does BIND
    return Transfer(query, zone)


def describe(transfer: Transfer) -> str:
    """Return, for a log, what is transferred to whom."""
    source = transfer.query.question.source
    host = source.host if source is not None else "?"
    return f"{to_text(transfer.zone.key)}, serial {transfer.zone.serial}, to {host}"


def _serial(octets: bytes, query: Query) -> int | None:
    """Return the serial in an IXFR query (RFC 1995, 3); None if it says none."""
    (_, _, _, _, nscount, _) = HEADER.unpack_from(octets)
    at = HEADER.size + len(query.question.asked) + 4
    if not nscount:
        return None
    try:
        owner, size = dns.name.from_wire(octets, at)
    except dns.exception.DNSException:
        return None
    rtype, _, _, length = FIXED.unpack_from(octets, at + size)
    if rtype != SOA or length < _LEAST_SOA or owner.to_digestable() != query.question.key:
        return None
    end = at + size + FIXED.size + length
    return int.from_bytes(octets[end - 20 : end - 16])


def _is_current(theirs: int, ours: int) -> bool:
    """Say whether *theirs* is our serial or a later one (RFC 1982, 3.2); not if neither is later than the other."""
    return (theirs - ours) % 2**32 < 2**31


def _read(zone: Zone) -> Generator[bytes, None, list[RRset]]:
    """Return the RRsets that *zone* has at one time; yield b"" where one may pause."""
    nodes = zone._nodes  # noqa: SLF001 - a zone lists its records, and RRsets take a tenth of their room
    for _ in range(_READINGS):
        soa = zone.soa
        rrsets: list[RRset] = []
        try:
            for count, node in enumerate(nodes.values(), 1):
                rrsets += node.rrsets.values()
                if not count % STREAM_STEP:
                    yield b""
                    if zone.soa is not soa:
                        break
            else:
                return rrsets
        except RuntimeError:  # a name has come or gone
            continue
    return [rrset for node in nodes.values() for rrset in node.rrsets.values()]


def _records(rrsets: list[RRset]) -> Iterator[RR]:
    """Yield the records of a zone, the SOA record first and last (RFC 5936, 2.2)."""
    (soa,) = next(rrset for rrset in rrsets if rrset.type == SOA).records()
    yield soa
    for rrset in rrsets:
        if rrset.type != SOA:
            yield from rrset.records()
    yield soa
