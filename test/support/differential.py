"""
The same questions to several servers of one signed zone, and where their answers differ.

Compared are the response code, AA, TC, and the records of the answer and authority sections, as sets of owner in lower
case, type, TTL and data. Left out is what the RFCs leave free: the order of records, the additional section, and which
of the RRsets of a name answer ANY (RFC 8482, 4.1) and RRSIG. What one peer does otherwise, with the reason, is in
`FAULTS`.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
import dns.dnssec
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.zone

from test.support.validators import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

#: The types that each name is asked for, from time to time.
TYPES: Final = (
    "A", "AAAA", "NS", "DS", "DNSKEY", "NSEC", "RRSIG", "ANY", "NSEC3PARAM", "NSEC3", "SOA", "MX", "TXT", "CNAME",
    "DNAME", "HTTPS", "SVCB", "CDS", "CDNSKEY", "TYPE65280",
)  # fmt: skip

#: The types whose answers may be any of a name's RRsets.
FREE: Final = frozenset({dns.rdatatype.ANY, dns.rdatatype.RRSIG})

#: Questions on the way to a server, and seconds that it may be silent before they are asked again over TCP.
WINDOW: Final = 48
SILENT: Final = 2.0
#: Seconds that a server may take for everything.
PATIENCE: Final = 60.0


@attrs.frozen
class Question:
    """
    One question.

    Attributes:
        name: as it is asked, in any case.
        type: the type.
    """

    name: dns.name.Name
    type: dns.rdatatype.RdataType

    def __str__(self) -> str:
        """Return it as text."""
        return f"{self.name} {dns.rdatatype.to_text(self.type)}"

    def octets(self, number: int, payload: int) -> bytes:
        """Return the query with the id *number*, DO, and *payload* octets for UDP."""
        head = struct.pack("!HHHHHH", number, 0, 1, 0, 0, 1)
        name = self.name.to_wire()
        assert name is not None
        return head + name + struct.pack("!HHBHHLH", self.type, 1, 0, 41, payload, 0x8000, 0)


def read(path: Path, apex: str) -> dns.zone.Zone:
    """Return the zone of a master file."""
    return dns.zone.from_file(str(path), apex, relativize=False)


def questions(zone: dns.zone.Zone, number: int, seed: int = 1) -> list[Question]:
    """
    Return *number* different questions about *zone*, a signed zone that dnspython has read; the same for each *seed*.

    Names that exist, empty non-terminals, names just before, behind, above and below these, what wildcards match,
    the owner names of NSEC3 records, and some names outside.
    """
    rng = random.Random(seed)
    apex = zone.origin
    assert apex is not None
    found: set[dns.name.Name] = set()
    for owner, node in zone.nodes.items():
        if node.get_rdataset(dns.rdataclass.IN, dns.rdatatype.NSEC3) is not None:
            continue  # no names of the zone (RFC 5155, 7.2.8)
        name = owner
        while name != apex:
            found.add(name)
            name = name.parent()
    found.add(apex)
    names = [name for one in sorted(found) for name in (one, *_near(one, apex, rng))]
    if _nsec3param(zone) is not None:
        hashed = [_hashed(zone, name) for name in rng.sample(sorted(found), 20)]
        names += [name for one in hashed for name in (one, dns.name.Name((b"below", *one.labels)))]
    names += [apex.parent(), dns.name.from_text("www.elsewhere.test."), dns.name.root]
    every = [(name, kind) for name in dict.fromkeys(names) for kind in TYPES]
    # Each name for a type once, then what chance picks.
    first = [(name, rng.choice(TYPES)) for name in dict.fromkeys(names)]
    rest = rng.sample(every, min(len(every), number))
    chosen = list(dict.fromkeys([*first, *rest]))[:number]
    return [Question(_any_case(name, rng), dns.rdatatype.from_text(kind)) for name, kind in chosen]


def _near(name: dns.name.Name, apex: dns.name.Name, rng: random.Random) -> Iterator[dns.name.Name]:
    """Yield names around *name*."""
    def made(*labels: bytes) -> Iterator[dns.name.Name]:
        try:
            yield dns.name.Name(labels)
        except (dns.name.LabelTooLong, dns.name.NameTooLong):
            return

    for label in (b"*", b"x%d" % rng.randrange(100), rng.choice((b"\0", b"\xff"))):
        yield from made(label, *name.labels)
    yield from made(b"q", b"*", *name.labels)
    yield from made(b"low", b"high", *name.labels)
    if name != apex:
        first, *others = name.labels
        yield from made(first + b"\0", *others)
        yield from made(first[:-1] + bytes([first[-1] - 1 & 255]) + b"\xff", *others)
        yield from made(b"*", *others)


def _nsec3param(zone: dns.zone.Zone) -> Any:
    assert zone.origin is not None
    found = zone.get_rdataset(zone.origin, dns.rdatatype.NSEC3PARAM)
    return None if found is None else found[0]


def _hashed(zone: dns.zone.Zone, name: dns.name.Name) -> dns.name.Name:
    """Return the owner of the NSEC3 record of *name* (RFC 5155, 5)."""
    assert zone.origin is not None
    parameters = _nsec3param(zone)
    digest = dns.dnssec.nsec3_hash(name, parameters.salt, parameters.iterations, parameters.algorithm)
    return dns.name.Name((digest.encode(), *zone.origin.labels))


def _any_case(name: dns.name.Name, rng: random.Random) -> dns.name.Name:
    """Return *name* with a case by chance for each letter."""
    return dns.name.Name(b"".join(rng.choice((label[at:at + 1].lower(), label[at:at + 1].upper()))
                                  for at in range(len(label))) for label in name.labels)  # fmt: skip


class Asker:
    """Asks one server many questions, by UDP with a window, and over one TCP connection."""

    def __init__(self, port: int) -> None:
        """Ask the server at *port* of loopback."""
        self._port = port

    def udp(self, asked: Sequence[Question], payload: int) -> list[bytes | None]:
        """Return the answer to each question; None: there was none."""
        answers: list[bytes | None] = [None] * len(asked)
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            one.connect((HOST, self._port))
            one.settimeout(SILENT)
            sent = waiting = 0
            while waiting or sent < len(asked):
                while waiting < WINDOW and sent < len(asked):
                    one.send(asked[sent].octets(sent, payload))
                    sent, waiting = sent + 1, waiting + 1
                try:
                    octets = one.recv(65535)
                except TimeoutError:
                    if sent == len(asked):
                        break
                    waiting = 0
                    continue
                number = int.from_bytes(octets[:2], "big")
                waiting -= answers[number] is None
                answers[number] = octets
        return answers

    def tcp(self, asked: Sequence[Question]) -> list[bytes | None]:
        """Return the answer to each question, asked in pipelines on connections (RFC 7766, 6.2.1.1)."""
        answers: list[bytes | None] = [None] * len(asked)
        end, begin = time.monotonic() + PATIENCE, 0
        while begin < len(asked):  # a server may close a connection after as many questions as it likes
            with socket.create_connection((HOST, self._port), timeout=PATIENCE) as one:
                done = self._tcp(one, asked, begin, answers)
            if done == begin or time.monotonic() > end:
                break
            begin = done
        return answers

    @staticmethod
    def _tcp(one: socket.socket, asked: Sequence[Question], begin: int, answers: list[bytes | None]) -> int:
        """Ask from *begin* until all are answered or the server closes the connection; return where to go on."""
        stream, sent, got = one.makefile("rb"), begin, 0
        while begin + got < len(asked):
            packets = []
            while sent - begin - got < WINDOW and sent < len(asked):
                octets = asked[sent].octets(sent, 1232)
                packets.append(struct.pack("!H", len(octets)) + octets)
                sent += 1
            try:
                if packets:
                    one.sendall(b"".join(packets))
                size = stream.read(2)
                octets = stream.read(int.from_bytes(size, "big")) if len(size) == 2 else b""
            except OSError:
                octets = b""
            if not octets:
                break
            answers[int.from_bytes(octets[:2], "big")] = octets
            got += 1
        return next((at for at in range(begin, len(asked)) if answers[at] is None), len(asked))


def _above(name: dns.name.Name, zone: dns.zone.Zone) -> Iterator[dns.name.Name]:
    """Yield the names between *name* and the apex of *zone*, without these."""
    assert zone.origin is not None
    while name.is_subdomain(zone.origin) and (name := name.parent()).is_subdomain(zone.origin) and name != zone.origin:
        yield name


def _is_left_out(question: Question, zone: dns.zone.Zone) -> bool:
    """Return whether the name of *question*, or one above, exists for opted-out delegations only (RFC 5155, 7.1)."""
    if _nsec3param(zone) is None:
        return False
    cuts = [name for name, _ in zone.iterate_rdatasets(dns.rdatatype.NS) if name != zone.origin]
    return any(_hashed(zone, name) not in zone.nodes and any(cut.is_subdomain(name) for cut in cuts)
               for name in (question.name, *_above(question.name, zone)))  # fmt: skip


def _is_redirected(question: Question, zone: dns.zone.Zone) -> bool:
    """Return whether the name of *question* is below a DNAME."""
    return any(zone.get_rdataset(name, dns.rdatatype.DNAME) for name in _above(question.name, zone))


#: What one peer does otherwise than the RFCs, or than the other peer where the RFCs leave it free: the peer, the
#: reason, and the questions where it shows.
FAULTS: Final[tuple[tuple[str, str, Callable[[Question, dns.zone.Zone], bool]], ...]] = (
    ("knot", "takes an octet 0 in a label for the end of the label when it orders names (RFC 4034, 6.1)",
     lambda question, _: any(b"\0" in label for label in question.name.labels)),
    ("knot", "does not repeat an NSEC that is the answer as a wildcard's proof, nor follows an alias for NSEC",
     lambda question, _: question.type == dns.rdatatype.NSEC),
    ("knot", "follows the alias that a DNAME makes for ANY, and no other alias",
     lambda question, zone: question.type == dns.rdatatype.ANY and _is_redirected(question, zone)),
    ("nsd", "changes the case of names in SVCB and HTTPS records (RFC 6840, 5.1)",
     lambda question, _: question.type in {dns.rdatatype.SVCB, dns.rdatatype.HTTPS}),
    ("nsd", "follows no alias for NSEC3", lambda question, _: question.type == dns.rdatatype.NSEC3),
    ("nsd", "does not deny the wildcard for the target of a DNAME (RFC 4035, 3.1.3.2)", _is_redirected),
    ("nsd", "adds an NSEC3 record to the one that matches a wildcard's own name (RFC 5155, 7.2.3)",
     lambda question, zone: _nsec3param(zone) is not None and question.name.is_wild()),
    ("nsd", "takes a name that exists for opted-out delegations only for the closest encloser (RFC 5155, 7.2.1)",
     _is_left_out),
    ("nsd", "takes the owner of an NSEC3 record for a name above the name that is denied (RFC 5155, 7.2.8)",
     lambda question, zone: any(zone.get_rdataset(name, dns.rdatatype.NSEC3) for name in _above(question.name, zone))),
)


#: An answer as it is compared: response code, AA, TC, records of answer and authority.
Comparable = tuple[int, bool, bool, frozenset[Any], frozenset[Any]]


def comparable(question: Question, octets: bytes | None) -> Comparable | str:
    """Return what is compared of an answer; a text where there is no answer to *question*."""
    if octets is None:
        return "no answer"
    try:
        message = dns.message.from_wire(octets)
    except dns.exception.DNSException as error:
        return f"cannot be parsed: {error!r}"
    if not message.question or message.question[0].name.labels != question.name.labels:
        return "has another question"  # the case of the name included
    truncated = bool(message.flags & dns.flags.TC)
    answer, authority = map(_records, (message.answer, message.authority))
    if question.type in FREE:
        answer = authority = frozenset()
    return message.rcode(), bool(message.flags & dns.flags.AA), truncated, answer, authority


def _records(section: Iterable[Any]) -> frozenset[Any]:
    return frozenset((rrset.name, rrset.rdtype, rrset.ttl, one) for rrset in section for one in rrset)


def difference(ours: Comparable | str, theirs: Comparable | str) -> str:
    """Return how two answers differ, as text; empty if they do not, or both have TC."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return "" if ours == theirs else f"{ours if isinstance(ours, str) else 'an answer'} | {theirs}"
    parts = [f"{name} {one} | {other}" for name, one, other in zip(("rcode", "AA", "TC"), ours, theirs, strict=False)
             if one != other]  # fmt: skip
    if not (ours[2] or theirs[2]):
        for name, one, other in zip(("answer", "authority"), ours[3:], theirs[3:], strict=True):
            parts += [f"{name}: only ours {_text(record)}" for record in sorted(one - other, key=repr)]
            parts += [f"{name}: only theirs {_text(record)}" for record in sorted(other - one, key=repr)]
    return "; ".join(parts)


def _text(record: Any) -> str:
    name, kind, ttl, rdata = record
    return f"{name} {ttl} {dns.rdatatype.to_text(kind)} {str(rdata)[:60]}"


@attrs.frozen
class Result:
    """
    What a comparison has found.

    Attributes:
        compared: the number of answers that were compared with that of a peer.
        differences: one line for each answer that differs from that of a peer which has no fault there.
        excused: how often an answer was not compared for the reason in `FAULTS`.
    """

    compared: int
    differences: list[str]
    excused: dict[str, int]


def compare(
    zone: dns.zone.Zone,
    asked: Sequence[Question],
    ours: Sequence[bytes | None],
    theirs: Mapping[str, Sequence[bytes | None]],
) -> Result:
    """
    Compare the answers *ours* with those of the peers.

    Args:
        zone: the zone, as dnspython has read it.
        asked: the questions.
        ours: the answers.
        theirs: the answers of each peer, by its name in `FAULTS`.
    """
    compared, differences, excused = 0, list[str](), dict[str, int]()
    for number, question in enumerate(asked):
        our = comparable(question, ours[number])
        for peer, answers in theirs.items():
            reason = next((reason for name, reason, shows in FAULTS if name == peer and shows(question, zone)), None)
            if reason is not None:
                excused[reason] = excused.get(reason, 0) + 1
                continue
            compared += 1
            if found := difference(our, comparable(question, answers[number])):
                differences.append(f"{question}: Jitsu | {peer}: {found}")
    return Result(compared, differences, excused)
