"""
Parse a packet: octets become a `Query`, a `Reject` or a `Drop`. `reply` writes the answers.

Nothing here does I/O, reads a clock, logs or knows what a zone is. `parse` never raises, whatever the octets are; its
cost is linear in the packet's length, and packets with more questions or records than any client sends are refused by
these counts before they are read. Each refusal has its reason for the log: `Reject.reason` and `Drop.reason`. The
numbers are those of RFC 1035, 4 and RFC 6891, 6.
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.dns.wire import Question

if TYPE_CHECKING:
    from jitsu_tw.dns.wire import Source

#: Response codes (RFC 1035, 4.1.1; RFC 6891, 9).
NOERROR: Final = 0
FORMERR: Final = 1
NOTIMP: Final = 4
BADVERS: Final = 16

#: Flags of the header that a query has or must not have (RFC 1035, 4.1.1; CD is RFC 4035, 3.1.6).
QR: Final = 0x8000
RD: Final = 0x0100
CD: Final = 0x0010
#: Of the OPT record's flags (RFC 3225, 3).
DO: Final = 0x8000

#: Record types: RFC 2931, 3; RFC 6891, 6.1; RFC 8945, 4.1; RFC 1995, 3.
SIG: Final = 24
OPT: Final = 41
TSIG: Final = 250
IXFR: Final = 251

#: EDNS options: RFC 7871, 6; RFC 7873, 4.
CLIENT_SUBNET: Final = 8
COOKIE: Final = 10

#: The last offset that a compression pointer can point to: it has 14 bits (RFC 1035, 4.1.4).
LAST_TARGET: Final = 0x3FFF

#: The most EDNS options that are read. IANA has assigned some twenty codes, of which a client sends three or four. More
#: options are FORMERR, not ignored: an unread option might be malformed, or be the cookie. 64 KiB of them would cost
#: 7 ms.
MOST_OPTIONS: Final = 32
#: The most questions and the most records that are read. A query has one question and three records (an SOA, OPT,
#: TSIG); a packet with more is FORMERR, and they are not read. Only an UPDATE may have more, and that is NOTIMP anyway.
MOST_RECORDS: Final = 64

#: The longest packet that is read, in octets: a query with a cookie, padding (RFC 8467: multiples of 128 octets) and a
#: signature has less than a fourth. A longer one is FORMERR, and neither read nor kept.
LONGEST: Final = 4096

#: The most bits in an address of a family (RFC 7871, 6); 0 is what `dig +subnet=0` sends.
_ADDRESS_BITS: Final = {0: 0, 1: 32, 2: 128}

#: The parts of a packet with a fixed length.
HEADER: Final = Struct("!HHHHHH")  # id, flags, four counts
PAIR: Final = Struct("!HH")  # type and class of a question; code and length of an option
FIXED: Final = Struct("!HHIH")  # of a record behind its owner: type, class, TTL, length of the data
_SUBNET: Final = Struct("!HBB")  # family, source prefix length, scope prefix length


@attrs.frozen
class Edns:
    """
    The OPT record of a query (RFC 6891, 6.1).

    Attributes:
        size: the UDP payload that the client accepts, in octets, unchecked.
        do: whether the client wants DNSSEC records (RFC 3225).
        version: of EDNS; this server has version 0.
        options: (code, data) in their order; none if the version is another, or they cannot be read.
    """

    size: int
    do: bool = False
    version: int = 0
    options: tuple[tuple[int, bytes], ...] = ()

    def option(self, code: int) -> bytes | None:
        """Return the data of the first option with *code*; None if there is none."""
        for known, data in self.options:
            if known == code:
                return data
        return None


@attrs.frozen
class Drop:
    """A packet that must not be answered: it is shorter than a header, or is a response itself."""

    reason: str


@attrs.frozen
class Reject:
    """
    A packet that is answered with an error, or (rcode 0) with nothing but a server cookie.

    Attributes:
        id: the query's.
        opcode: the query's, to be echoed.
        flags: RD and CD of the query.
        question: the octets of the question section to echo; empty if there is not exactly one readable question.
        edns: the query's OPT record, if it could be read: then the reply has one too (RFC 6891, 7).
        rcode: FORMERR, NOTIMP or BADVERS; NOERROR for a cookie without a question (RFC 7873, 5.4).
        reason: what is wrong, for the log.
    """

    id: int
    opcode: int
    flags: int
    question: bytes
    edns: Edns | None
    rcode: int
    reason: str


@attrs.frozen
class Query:
    """
    One well-formed question.

    Attributes:
        id: to be echoed.
        flags: RD and CD of the query.
        question: the question and its source.
        edns: the OPT record, if there was one; its version is 0.
        tsig: the offset of the TSIG record in the packet (RFC 8945), if there is one; it has not been verified.
    """

    id: int
    flags: int
    question: Question
    edns: Edns | None = None
    tsig: int | None = None


def parse(octets: bytes, source: Source | None = None) -> Query | Reject | Drop:
    """
    Return the query in a packet, or how to refuse it.

    If a packet has several faults, the opcode is refused first, then its form, then the version of EDNS.

    Args:
        octets: a whole packet; from TCP without its length.
        source: the client, for `Question.source`.
    """
    if len(octets) < HEADER.size:
        return Drop("shorter than a header")
    ident, flags, qdcount, ancount, nscount, arcount = HEADER.unpack_from(octets)
    if flags & QR:
        return Drop("a response")
    opcode, flags = flags >> 11 & 15, flags & (RD | CD)
    if len(octets) > LONGEST:
        return Reject(ident, opcode, flags, b"", None, NOTIMP if opcode else FORMERR, f"{len(octets)} octets")

    if qdcount == 1:
        asked = name_end(octets, HEADER.size)
        at = asked + 4 if asked else 0
    else:
        at = _skip_questions(octets, qdcount)
    edns, tsig, fault, raw = None, None, "the question is cut short, no name, or one of many", b""
    if 0 < at <= len(octets):
        if qdcount == 1:
            raw = octets[HEADER.size : at]
        edns, tsig, fault = _records(octets, at, ancount + nscount, arcount)

    if opcode:
        return Reject(ident, opcode, flags, raw, edns, NOTIMP, f"opcode {opcode}")
    if fault:
        return Reject(ident, 0, flags, raw, edns, FORMERR, fault)
    if qdcount != 1:
        if not (qdcount or ancount or nscount) and edns is not None and edns.option(COOKIE) is not None:
            return Reject(ident, 0, flags, b"", edns, NOERROR, "a cookie without a question")
        return Reject(ident, 0, flags, b"", edns, FORMERR, f"{qdcount} questions")  # RFC 9619
    qtype, qclass = PAIR.unpack_from(octets, asked)
    if ancount or (nscount and (qtype != IXFR or nscount > 1)):
        return Reject(ident, 0, flags, raw, edns, FORMERR, "a query with answers")
    if edns is not None and edns.version:
        return Reject(ident, 0, flags, raw, edns, BADVERS, f"EDNS version {edns.version}")
    return Query(ident, flags, Question(octets[HEADER.size : asked], qtype, qclass, source), edns, tsig)


def name_end(octets: bytes, start: int) -> int:
    """
    Return the offset of the end of the uncompressed name at *start*, or 0 if there is no such name.

    Such a name has no pointers: in a first question they could lead only to itself or into the header.
    """
    octets = octets[start : start + 255]  # RFC 1035, 2.3.4
    at = 0
    try:
        while size := octets[at]:
            if size > 63:  # RFC 1035, 2.3.4; above are pointers and the abandoned label types
                return 0
            at += size + 1
    except IndexError:
        return 0
    return start + at + 1


def _skip_name(octets: bytes, start: int) -> int:
    """
    Return the offset of the end of the name at *start*, which may be compressed; 0 if it is malformed.

    A pointer must lead back before *start* (RFC 1035, 4.1.4: "a prior occurrence"). It is not followed.

    Raises:
        IndexError: the packet ends within the name.
    """
    at = start
    while size := octets[at]:
        if size > 63:
            target = (size << 8 | octets[at + 1]) & LAST_TARGET
            return at + 2 if size >= 0xC0 and HEADER.size <= target < start else 0
        at += size + 1
        if at - start >= 255:
            return 0
    return at + 1


def _skip_questions(octets: bytes, count: int) -> int:
    """Return the offset of the end of *count* questions, or 0. They are not answered, but OPT comes after them."""
    if count > MOST_RECORDS:
        return 0
    at = HEADER.size
    try:
        for _ in range(count):
            at = _skip_name(octets, at)
            if not at:
                return 0
            at += 4
    except IndexError:
        return 0
    return at


def _records(octets: bytes, at: int, before: int, count: int) -> tuple[Edns | None, int | None, str]:
    """
    Read the records from *at* to the end of the packet, of which only OPT and TSIG matter.

    Args:
        octets: the packet.
        at: the offset of the first record.
        before: how many records there are in the sections before the additional one.
        count: how many records there are in the additional one.

    Returns:
        the OPT record (even if there is a fault elsewhere), the offset of TSIG, and what is wrong with the packet, or
        "".
    """
    edns: Edns | None = None
    tsig: int | None = None
    fault = ""
    if before + count > MOST_RECORDS:
        return None, None, f"{before + count} records"
    try:
        for left in range(before + count - 1, -1, -1):
            start = at
            at = _skip_name(octets, at)
            if not at:
                return edns, None, "a record's owner is no name"
            rtype, rclass, ttl, size = FIXED.unpack_from(octets, at)
            at += FIXED.size
            data = at
            at += size
            if at > len(octets):
                return edns, None, "a record is cut short"
            if rtype == OPT:
                if edns is not None:
                    return edns, None, "two OPT records"  # RFC 6891, 6.1.1
                if octets[start] or left >= count:
                    return None, None, "OPT with an owner, or among the answers"  # RFC 6891, 6.1.1, 6.1.2
                version = ttl >> 16 & 255
                edns = Edns(rclass, ttl & DO != 0, version)
                if size and not version:
                    options = _options(octets, data, at)
                    if isinstance(options, str):
                        return edns, None, options
                    edns = Edns(rclass, edns.do, version, options)
            elif rtype == TSIG:
                if left or not count:
                    return edns, None, "TSIG is not last"  # RFC 8945, 5.1
                tsig = start
            elif left < count and rtype != SIG:
                fault = f"an additional record of type {rtype}"  # as NSD: no query has one, junk does
    except (IndexError, struct.error):
        return edns, None, "a record is cut short"
    if at != len(octets):
        return edns, None, "octets behind the last record"
    return edns, tsig, fault


def _options(octets: bytes, at: int, end: int) -> tuple[tuple[int, bytes], ...] | str:
    """Return the EDNS options between *at* and *end* (RFC 6891, 6.1.2), or what is wrong with them."""
    options: list[tuple[int, bytes]] = []
    cookie = False
    while at < end:
        if len(options) == MOST_OPTIONS:
            return f"more than {MOST_OPTIONS} EDNS options"
        if at + 4 > end:
            return "an EDNS option is cut short"
        code, size = PAIR.unpack_from(octets, at)
        at += 4
        if at + size > end:
            return "an EDNS option is cut short"
        data = octets[at : at + size]
        at += size
        if code == CLIENT_SUBNET and not _is_subnet(data):
            return "a client subnet that is none"
        if code == COOKIE and not cookie:  # further ones are ignored (RFC 7873, 5.2)
            cookie = True
            if size != 8 and not 16 <= size <= 40:  # RFC 7873, 5.2.2
                return f"a cookie of {size} octets"
        options.append((code, data))
    return tuple(options)


def _is_subnet(data: bytes) -> bool:
    """Return whether *data* may stand in the client subnet option of a query (RFC 7871, 6 and 7.1.2)."""
    if len(data) < _SUBNET.size:
        return False
    family, prefix, scope = _SUBNET.unpack_from(data)
    if scope or prefix > _ADDRESS_BITS.get(family, -1) or len(data) - _SUBNET.size != (prefix + 7) // 8:
        return False
    return not (prefix % 8 and data[-1] & 0xFF >> prefix % 8)
