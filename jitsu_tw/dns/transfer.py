"""
Zone transfers: which clients may transfer a zone, and the packets with it (AXFR: RFC 5936; IXFR: RFC 1995).

Nothing here does I/O or reads a clock. `answer` returns the answer to a query of the types AXFR and IXFR: a `Reply`, or
a `Transfer` whose packets the caller sends at the client's pace (`stream`). An IXFR is answered with the whole zone, or
with the SOA record alone if the client has that version already, or asks by UDP: the server keeps no differences.

A transfer has the zone as it was at one time, though the zone may change meanwhile. A change with a new serial
(`Zone.bump`, in the same iteration of the reactor) is detected; a change without one is invisible to secondaries, too.
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
from jitsu_tw.dns.wire import RRSIG, to_text
from jitsu_tw.errors import EDE_NOT_AUTHORITATIVE, EDE_PROHIBITED
from jitsu_tw.networks import Networks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from jitsu_tw.dns.interfaces import ISecurity
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.message import Query
    from jitsu_tw.dns.tsig import Signed
    from jitsu_tw.dns.wire import RR, RRset, Source
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.settings import Rule

#: The types of questions that this module answers.
TYPES: Final = frozenset({AXFR, IXFR})

REFUSED: Final = 5

#: The shortest data of an SOA record, in octets: two root names and five numbers (RFC 1035, 3.3.13).
_LEAST_SOA: Final = 22
#: How often a zone that changes while it is read in pieces is read again; then it is read at once.
_READINGS: Final = 3


class Permissions:
    """The clients that may transfer zones: those that match a rule."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        """Store *rules*; without a rule, no client may."""
        self._rules = [(rule.network and Networks([rule.network]), rule.key) for rule in rules]

    def permit(self, source: Source, signed: Signed | None) -> bool:
        """Return whether *source* may transfer zones; *signed* is its query's signature, None without one."""
        address = source.address
        used = None if signed is None else signed.key.wire
        return any(
            (networks is None or address in networks) and key in {None, used} for networks, key in self._rules
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
        Yield the packets with the zone (RFC 5936, 2.2), and b"" for pauses; see `write_stream`.

        The first steps read the zone as it is sent; that takes eight octets of memory for each of its RRsets. In a
        signed zone each is followed by its signatures, which are made as they are sent (RFC 4035, 3.1.5).

        Args:
            options: EDNS options for each packet.
            signed: the query's signature: then the packets are signed; None without one.
            now: returns the seconds since 1970, for signatures.

        Raises:
            ValueError: a record is too long for any packet. The packets sent are no zone: the connection must end.
        """
        rrsets = yield from _read(self.zone)
        records = _records(rrsets, self.zone.security)
        packets = write_stream(self.query, records, options, 0 if signed is None else signed.room)
        yield from packets if signed is None else signed.sign_stream(packets, now)


def answer(octets: bytes, query: Query, zones: Zones, allowed: Permissions, signed: Signed | None) -> Reply | Transfer:
    """
    Return the answer to a query of one of `TYPES`, and class IN.

    Args:
        octets: the packet, for the SOA record of an IXFR query.
        query: the query in it; its question has a source.
        zones: the served zones.
        allowed: the clients that may transfer them.
        signed: the query's signature; None without one.
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
        return Reply(FORMERR)  # RFC 5936, 4.2 has no AXFR by UDP; BIND answers the same
    return Transfer(query, zone)


def describe(transfer: Transfer) -> str:
    """Return, for the log, the zone, its serial and the client."""
    source = transfer.query.question.source
    host = source.host if source is not None else "?"
    return f"{to_text(transfer.zone.key)}, serial {transfer.zone.serial}, to {host}"


def _serial(octets: bytes, query: Query) -> int | None:
    """Return the serial in an IXFR query (RFC 1995, 3); None if it has none."""
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
    """Return whether *theirs* equals *ours* or is later (RFC 1982, 3.2); False if neither is later than the other."""
    return (theirs - ours) % 2**32 < 2**31


def _read(zone: Zone) -> Generator[bytes, None, list[RRset]]:
    """Return the RRsets that *zone* has at one time; yield b"" for pauses."""
    for _ in range(_READINGS):
        soa = zone.soa
        rrsets: list[RRset] = []
        try:
            for count, rrset in enumerate(_rrsets(zone), 1):
                rrsets.append(rrset)
                if not count % STREAM_STEP:
                    yield b""
                    if zone.soa is not soa:
                        break
            else:
                return rrsets
        except RuntimeError:  # a name was added or removed
            continue
    return list(_rrsets(zone))


def _rrsets(zone: Zone) -> Iterator[RRset]:
    """
    Yield the RRsets of *zone*, and what it proves by.

    Raises:
        RuntimeError: the zone has changed meanwhile.
    """
    for node in zone.nodes.values():
        yield from node.rrsets.values()
    if zone.security is not None:
        yield from zone.security.denial.rrsets()


def _records(rrsets: list[RRset], security: ISecurity | None) -> Iterator[RR]:
    """Yield the records of a zone, the SOA record first and last (RFC 5936, 2.2); *security* signs them."""
    (soa,) = next(rrset for rrset in rrsets if rrset.type == SOA).records()
    yield soa
    for rrset in rrsets:
        if rrset.type == RRSIG and security is not None:
            continue  # they come with what they sign
        if rrset.type != SOA:
            yield from rrset.records()
        if security is not None:
            yield from security.signatures(rrset)
    yield soa
