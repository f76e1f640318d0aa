"""
Write a packet: a `Reply` becomes octets within the client's limit. `message` parses the queries.

Nothing here does I/O, reads a clock, logs or knows what a zone is. Writing has three steps, as in Knot: space for the
OPT record is reserved, the sections are appended RRset by RRset, the OPT record is appended. Names are compressed. The
numbers are those of RFC 1035, 4 and RFC 6891, 6.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.dns.message import (
    CLIENT_SUBNET,
    DO,
    FIXED,
    HEADER,
    LAST_TARGET,
    NOERROR,
    OPT,
    PAIR,
    QR,
    Query,
    Reject,
    name_end,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jitsu_tw.dns.message import Edns
    from jitsu_tw.dns.wire import RR

#: The response code for errors that have no other (RFC 1035, 4.1.1).
SERVFAIL: Final = 2

#: Flags of the header that only replies have (RFC 1035, 4.1.1).
AA: Final = 0x0400
TC: Final = 0x0200
RA: Final = 0x0080

#: The EDNS option of an extended error (RFC 8914, 2).
EDE: Final = 15

#: The UDP payload that the server accepts, and the most that it sends, in octets, so that there are no fragments
#: (RFC 9715, 3; DNS flag day 2020).
UDP_SIZE: Final = 1232
#: The UDP payload that every client accepts, in octets (RFC 1035, 4.2.1).
UDP_SIZE_PLAIN: Final = 512
#: The longest packet by TCP, in octets: its length field has 16 bits (RFC 1035, 4.2.2).
TCP_SIZE: Final = 65535
#: The longest packet of a stream, in octets: pointers cannot point to names beyond (RFC 1035, 4.1.4).
STREAM_SIZE: Final = 16384
#: The number of records after which a stream can pause: less than a millisecond of work.
STREAM_STEP: Final = 64

#: The most pointers in a row that a client has to follow for one name: Go's resolver, for example, gives up after ten.
MOST_HOPS: Final = 10
#: One pointer in the values of `_Packet.names`.
_HOP: Final = LAST_TARGET + 1

_NS, _CNAME, _SOA, _PTR, _MX = 2, 5, 6, 12, 15
#: The offset of the first name in the data of a type, and the number of names. Only these types are old enough for
#: every client to expand pointers in their data (RFC 3597, 4).
_NAMES_IN: Final = {_NS: (0, 1), _CNAME: (0, 1), _PTR: (0, 1), _SOA: (0, 2), _MX: (2, 1)}

_SHORT: Final = Struct("!H")
_OPT: Final = Struct("!BHHBBHH")  # root, type, size, extended rcode, version, flags, length of the options


@attrs.frozen
class Reply:
    """
    The content of a reply.

    Attributes:
        rcode: 0 to 4095; the upper 8 bits go into the OPT record (RFC 6891, 6.1.3).
        aa: whether the server is an authority for the first owner of the answer.
        answer, authority, additional: records; neighbours of one owner, type and class are an RRset.
        ede: (code, text) of extended errors (RFC 8914); the text is a hint that may be left out.
        options: further EDNS options (code, data), such as a cookie or NSID.
        ra: whether recursion is available.
        glue: how many records, from the first of `additional`, are glue that a referral must have (RFC 9471).
    """

    rcode: int = NOERROR
    aa: bool = False
    answer: Sequence[RR] = ()
    authority: Sequence[RR] = ()
    additional: Sequence[RR] = ()
    ede: tuple[tuple[int, str], ...] = ()
    options: tuple[tuple[int, bytes], ...] = ()
    ra: bool = False
    glue: int = 0


def udp_limit(query: Query | Reject) -> int:
    """Return how many octets a reply by UDP to *query* may have (RFC 6891, 6.2.3 to 6.2.5)."""
    if query.edns is None:
        return UDP_SIZE_PLAIN
    return min(max(query.edns.size, UDP_SIZE_PLAIN), UDP_SIZE)


def write(query: Query | Reject, reply: Reply, limit: int | None) -> bytes:
    """
    Return the packet with *reply* to *query*.

    Whole RRsets that do not fit are left out. If one of the answer, the authority section or the glue does not fit, TC
    is set and nothing follows; other additional RRsets are left out silently (RFC 2181, 9). The texts of extended
    errors are left out before any RRset, then the extended errors themselves, with TC set (RFC 8914, 3). A record that
    comes twice in a section is written once.

    Args:
        query: the query, or the packet to refuse. The rcode of a `Reject` is used unless *reply* has one.
        reply: the content.
        limit: octets, at most: `udp_limit`; None stands for 65535. Under 282 (a header, the longest question, an OPT
            record) the OPT record and the question may have to be left out, too.
    """
    limit = TCP_SIZE if limit is None else min(limit, TCP_SIZE)
    edns = query.edns
    if isinstance(query, Reject):
        flags = QR | query.opcode << 11 | query.flags
        rcode = reply.rcode or query.rcode
    else:
        flags = QR | query.flags
        rcode = reply.rcode
    if edns is None and rcode > 15:  # cut to 4 bits it would be another response code
        rcode = SERVFAIL
    if reply.aa:
        flags |= AA
    if reply.ra:
        flags |= RA
    flags |= rcode & 15

    packet: _Packet | None = None
    opt, lost = b"", False
    for options, bare in _reserves(edns, reply):
        if bare and packet is not None:  # options and OPT are not left out for records
            break
        size = sum(4 + len(data) for _, data in options or ())
        room = limit - (0 if options is None else _OPT.size + size)
        trial = _Packet(query)
        if len(trial.out) > room:
            continue
        packet, opt = trial, b""
        if options is not None and edns is not None:
            opt = _opt(edns, rcode, options)
        lost = bool(reply.ede) and edns is not None and all(code != EDE for code, _ in options or ())
        if packet.fill(reply, room):
            break
    if packet is None:
        return HEADER.pack(query.id, flags | TC, 0, 0, 0, 0)
    if lost or packet.truncated:
        flags |= TC
    out = packet.out
    HEADER.pack_into(out, 0, query.id, flags, packet.questions, *packet.counts, packet.additional + bool(opt))
    out += opt
    return bytes(out)


def truncated(query: Query | Reject, options: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    """
    Return a reply with TC set and empty sections, so that the client asks by TCP.

    Args:
        query: the query.
        options: EDNS options of the reply, such as a fresh cookie; they are used only if the query had EDNS.
    """
    out = bytearray(write(query, Reply(options=options), udp_limit(query)))
    out[2] |= TC >> 8
    return bytes(out)


def write_stream(
    query: Query, records: Iterable[RR], options: tuple[tuple[int, bytes], ...] = (), reserved: int = 0
) -> Iterator[bytes]:
    """
    Yield packets that together answer *query*, with authority, by *records* in their order (RFC 5936, 2.2).

    They have up to `STREAM_SIZE` octets each, or one record. Each has the question, and an OPT record if the query had
    one. No record is left out or moved, and one that comes twice is written twice.

    Args:
        query: the query.
        records: are taken one at a time, as packets are asked for.
        options: EDNS options for each packet.
        reserved: octets that the caller will append to each packet, for its signature.

    Yields:
        packets; and between them, at least every `STREAM_STEP` records, b"": a pause for other work.

    Raises:
        ValueError: a record is too long for any packet.
    """
    edns = query.edns
    opt = _opt(edns, NOERROR, next(_reserves(edns, Reply(options=options)))[0] or []) if edns is not None else b""
    packet, count = _Packet(query), 0
    for number, record in enumerate(records, 1):
        mark = len(packet.out)
        packet.put_record(record)
        if count and len(packet.out) + len(opt) + reserved > STREAM_SIZE:
            packet.back_to(mark)
            yield packet.answered(query, count, opt)
            packet, count = _Packet(query), 0
            packet.put_record(record)
        if len(packet.out) + len(opt) + reserved > TCP_SIZE:
            raise ValueError(f"a record of {len(record.rdata)} octets is too long to be sent")
        count += 1
        if not number % STREAM_STEP:
            yield b""
    yield packet.answered(query, count, opt)


def _opt(edns: Edns, rcode: int, options: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the OPT record of a reply."""
    data = b"".join(PAIR.pack(code, len(data)) + data for code, data in options)
    return _OPT.pack(0, OPT, UDP_SIZE, rcode >> 4, 0, DO * edns.do, len(data)) + data


def _reserves(edns: Edns | None, reply: Reply) -> Iterator[tuple[list[tuple[int, bytes]] | None, bool]]:
    """
    Yield the options of the reply's OPT record (None: no such record), the most complete first.

    The second value is whether they are for a packet that is too small for any options.
    """
    if edns is None:
        yield None, False
        return
    options = list(reply.options)
    if edns.options:
        subnet = edns.option(CLIENT_SUBNET)
        # With scope 0, as a query's must be (RFC 7871, 7.2.1). Family 0 has no address, and not every client can read
        # it in a reply.
        if subnet is not None and subnet[:2] != bytes(2) and all(code != CLIENT_SUBNET for code, _ in options):
            options.insert(0, (CLIENT_SUBNET, subnet))
    if reply.ede:
        extended = [(EDE, _SHORT.pack(code) + text.encode("utf-8", "replace")) for code, text in reply.ede]
        yield options + extended, False
        yield options + [(EDE, data[:2]) for _, data in extended], False
    yield options, False
    yield [], True
    yield None, True


class _Packet:
    """
    A packet that is being written: its octets, and the offsets of names in them.

    Attributes:
        out: the octets; the header is blank.
        questions: the number of questions, 0 or 1.
        counts: the numbers of records in answer and authority.
        additional: the number of records in the additional section.
        truncated: whether a record was left out that must not be left out silently.
    """

    __slots__ = ("additional", "counts", "names", "out", "questions", "truncated")

    def __init__(self, query: Query | Reject) -> None:
        """Begin with the question of *query*."""
        self.out = bytearray(HEADER.size)
        #: A name in lower case -> its offset, plus `_HOP` for each pointer that leads on from there; by offset.
        self.names: dict[bytes, int] = {}
        self.questions = 1
        if isinstance(query, Query):
            question = query.question
            self.put_name(question.asked)
            self.out += PAIR.pack(question.type, question.cls)
        elif query.question:
            self.put_name(query.question[:-4])
            self.out += query.question[-4:]
        else:
            self.questions = 0
        self.counts = (0, 0)
        self.additional = 0
        self.truncated = False

    def fill(self, reply: Reply, room: int) -> bool:
        """Append the sections of *reply*, up to *room* octets in all; return whether the packet is not `truncated`."""
        answer, authority = reply.answer, reply.authority
        count = self.put_section(answer, room, len(answer)) if answer else 0
        self.counts = (count, 0)
        if authority and not self.truncated:
            self.counts = (count, self.put_section(authority, room, len(authority)))
        if reply.additional and not self.truncated:
            self.additional = self.put_section(reply.additional, room, reply.glue)
        return not self.truncated

    def put_section(self, records: Sequence[RR], room: int, needed: int) -> int:
        """
        Append the RRsets of *records* that fit, and return how many records these are.

        Stops, with `truncated` set, where an RRset does not fit that begins among the first *needed* records.
        """
        out = self.out
        count = set_count = mark = 0
        current: tuple[bytes, int, int] | None = None
        set_needed = skipping = False
        seen: set[tuple[tuple[bytes, int, int], bytes]] = set()
        for index, record in enumerate(records):
            rrset = (record.owner.lower(), record.type, record.cls)
            if rrset != current:
                current, mark, set_count, set_needed, skipping = rrset, len(out), count, index < needed, False
            elif skipping:
                continue
            if (rrset, record.rdata) in seen:
                continue
            seen.add((rrset, record.rdata))
            self.put_record(record)
            count += 1
            if len(out) > room:
                self.back_to(mark)
                count = set_count
                if set_needed:
                    self.truncated = True
                    break
                skipping = True
        return count

    def put_record(self, record: RR) -> None:
        """Append one record."""
        out, rdata, rtype = self.out, record.rdata, record.type
        self.put_name(record.owner)
        out += FIXED.pack(rtype, record.cls, record.ttl, len(rdata))
        if rtype not in _NAMES_IN:
            out += rdata
            return
        at, names = _NAMES_IN[rtype]
        start = len(out)
        out += rdata[:at]
        for _ in range(names):
            end = name_end(rdata, at)
            if not end:  # malformed for its type: it is copied unchanged
                break
            self.put_name(rdata[at:end])
            at = end
        out += rdata[at:]
        _SHORT.pack_into(out, start - 2, len(out) - start)

    def put_name(self, name: bytes) -> None:
        """
        Append *name*, with a pointer to its longest suffix in the packet, in whatever case (RFC 1035, 4.1.4).

        A suffix from which `MOST_HOPS` pointers lead on is not used; a shorter one is.
        """
        out, names = self.out, self.names
        key = name.lower()
        base = len(out)
        at = hops = 0
        new: list[tuple[bytes, int]] = []
        while size := key[at]:
            suffix = key[at:]
            target = names.get(suffix)
            if target is None:
                new.append((suffix, base + at))
            elif target < MOST_HOPS * _HOP:
                hops = (target | LAST_TARGET) + 1
                out += name[:at]
                out += _SHORT.pack(0xC000 | target & LAST_TARGET)
                break
            at += size + 1
        else:
            out += name
        for suffix, offset in new:
            if offset <= LAST_TARGET:
                names[suffix] = hops | offset

    def answered(self, query: Query, count: int, opt: bytes) -> bytes:
        """Return the whole packet: its *count* records are all answers; *opt* is its OPT record, or empty."""
        HEADER.pack_into(self.out, 0, query.id, QR | AA | query.flags, self.questions, count, 0, bool(opt))
        return bytes(self.out + opt)

    def back_to(self, mark: int) -> None:
        """Remove the octets from the offset *mark* on, and the names in them."""
        del self.out[mark:]
        names = self.names
        while names and next(reversed(names.values())) & LAST_TARGET >= mark:
            names.popitem()
