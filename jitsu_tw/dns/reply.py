"""
What a packet says: a `Reply` to octets that fit. The way in is in `message`.

Nothing here does I/O, reads a clock, logs or knows what a zone is. Writing goes in three steps, as in Knot: the OPT
record's room is *reserved*, the sections are put in RRset by RRset, the OPT record is put behind them. Names are
compressed. The numbers are those of RFC 1035, 4 and RFC 6891, 6.
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

#: The response code for what has none (RFC 1035, 4.1.1).
SERVFAIL: Final = 2

#: Flags of the header that only replies have (RFC 1035, 4.1.1).
AA: Final = 0x0400
TC: Final = 0x0200
RA: Final = 0x0080

#: The EDNS option of an extended error (RFC 8914, 2).
EDE: Final = 15

#: What we take, and the most that we send, by UDP, in octets: no fragments (RFC 9715, 3; DNS flag day 2020).
UDP_SIZE: Final = 1232
#: What everybody takes, in octets (RFC 1035, 4.2.1).
UDP_SIZE_PLAIN: Final = 512
#: The length field of TCP, in octets (RFC 1035, 4.2.2).
TCP_SIZE: Final = 65535
#: The most that a packet of several has, in octets: names further behind could not be pointed at (RFC 1035, 4.1.4).
STREAM_SIZE: Final = 16384
#: After so many records a stream can pause: less than a millisecond of work.
STREAM_STEP: Final = 64

#: The most pointers in a row that a reader of a name has to follow: Go's, as one example, gives up after ten.
MOST_HOPS: Final = 10
#: In the values of `_Packet.names`: one pointer.
_HOP: Final = LAST_TARGET + 1

_NS, _CNAME, _SOA, _PTR, _MX = 2, 5, 6, 12, 15
#: Where the names in the data of a type begin, and how many there are. Only these types are old enough for every
#: client to expand pointers in their data (RFC 3597, 4).
_NAMES_IN: Final = {_NS: (0, 1), _CNAME: (0, 1), _PTR: (0, 1), _SOA: (0, 2), _MX: (2, 1)}

_SHORT: Final = Struct("!H")
_OPT: Final = Struct("!BHHBBHH")  # root, type, size, extended rcode, version, flags, length of the options


@attrs.frozen
class Reply:
    """
    What is to be said.

    Attributes:
        rcode: 0 to 4095; the upper 8 bits go into the OPT record (RFC 6891, 6.1.3).
        aa: we are an authority for the first owner of the answer.
        answer, authority, additional: records; neighbours of one owner, type and class are an RRset.
        ede: (code, text) of extended errors (RFC 8914), the text being a hint that may be left out.
        options: further EDNS options (code, data), such as a cookie or NSID.
        ra: recursion is available.
        glue: so many records at the head of `additional` are glue without which a referral is not whole (RFC 9471).
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
    Return the packet that says *reply* to *query*.

    Whole RRsets are left out where there is no room. If one of the answer, the authority section or the glue is, TC=1
    and nothing follows; other additional ones go silently (RFC 2181, 9). The texts of extended errors go before that,
    then the extended errors, these with TC=1 (RFC 8914, 3). A record that stands twice in a section is written once.

    Args:
        query: what is answered. If it is a `Reject`, its rcode holds unless *reply* has one.
        reply: what to say.
        limit: octets, at most: `udp_limit` or 65535, which None stands for. Under 282 (a header, the longest question,
            an OPT record) the OPT record and the question may have to go too.
    """
    limit = TCP_SIZE if limit is None else min(limit, TCP_SIZE)
    edns = query.edns
    if isinstance(query, Reject):
        flags = QR | query.opcode << 11 | query.flags
        rcode = reply.rcode or query.rcode
    else:
        flags = QR | query.flags
        rcode = reply.rcode
    if edns is None and rcode > 15:  # cut to 4 bits it would say something else
        rcode = SERVFAIL
    if reply.aa:
        flags |= AA
    if reply.ra:
        flags |= RA
    flags |= rcode & 15

    packet: _Packet | None = None
    opt, lost = b"", False
    for options, bare in _reserves(edns, reply):
        if bare and packet is not None:  # options and OPT do not give way to records
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
    Return a packet that says nothing but "ask by TCP": TC=1, empty sections.

    Args:
        query: what is answered.
        options: EDNS options to go with it, such as a fresh cookie; they count only if the query had EDNS.
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
    one. No record is left out or put elsewhere, and one that comes twice is written twice.

    Args:
        query: what is answered.
        records: are taken one at a time, as packets are asked for.
        options: EDNS options for each packet.
        reserved: octets that somebody wants to append to each packet.

    Yields:
        packets; and in between, at least every `STREAM_STEP` records, b"", so that one can do something else.

    Raises:
        ValueError: a record is so long that no packet can have it.
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
    Yield the options of the reply's OPT record (None: no such record), from the most to the least.

    With each goes whether it is so bare that it serves only a packet that is too small for anything better.
    """
    if edns is None:
        yield None, False
        return
    options = list(reply.options)
    if edns.options:
        subnet = edns.option(CLIENT_SUBNET)
        # With scope 0, as a query's must be (RFC 7871, 7.2.1). Family 0 has no address that an answer could be for, and
        # not every client can read it in a reply.
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
    A packet that is being written: its octets, and where in them names stand.

    Attributes:
        out: the octets; the header is blank.
        questions: how many there are, 0 or 1.
        counts: the records in answer and authority.
        additional: the records in the additional section.
        truncated: a record that matters was left out.
    """

    __slots__ = ("additional", "counts", "names", "out", "questions", "truncated")

    def __init__(self, query: Query | Reject) -> None:
        """Begin with the question of *query*."""
        self.out = bytearray(HEADER.size)
        #: a name in lower case -> where it stands, and above `_HOP` how many pointers lead on from there; in order of
        #: their places
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
        """Put the sections of *reply* in, up to *room* octets in all; return whether all that matters fitted."""
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
            if not end:  # not what its type says: it goes as it is
                break
            self.put_name(rdata[at:end])
            at = end
        out += rdata[at:]
        _SHORT.pack_into(out, start - 2, len(out) - start)

    def put_name(self, name: bytes) -> None:
        """
        Append *name*, with a pointer to the longest suffix that stands there in whatever case (RFC 1035, 4.1.4).

        A suffix from which `MOST_HOPS` pointers lead on is passed over for a shorter one.
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
        for suffix, place in new:
            if place <= LAST_TARGET:
                names[suffix] = hops | place

    def answered(self, query: Query, count: int, opt: bytes) -> bytes:
        """Return the packet whole: its *count* records are all answers, and *opt* is its OPT record or nothing."""
        HEADER.pack_into(self.out, 0, query.id, QR | AA | query.flags, self.questions, count, 0, bool(opt))
        return bytes(self.out + opt)

    def back_to(self, mark: int) -> None:
        """Undo what was appended from *mark* on."""
        del self.out[mark:]
        names = self.names
        while names and next(reversed(names.values())) & LAST_TARGET >= mark:
            names.popitem()
