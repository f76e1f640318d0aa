"""
Names and resource records as octets: the types that the modules of the DNS server pass to each other.

A name is ``bytes``: its labels as in a packet, uncompressed, with the root's zero at the end. Its *key* is the same in
lower case. Length octets are under 64 and letters above it, so ``wire.lower()`` is right on whole names. Dots and any
other octets inside a label are kept, which text would not allow.

Records are also ``twisted.names`` records (`dns.RRHeader`), so that any `IResolver` can return them, but they keep
their data as octets: an authority copies, it does not interpret. Nothing here parses packets or knows about zones.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import attrs
import dns.name
from twisted.names import dns as tdns

from jitsu_tw.networks import host_of, packed, unmapped
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

#: The name of the root of all zones.
ROOT: Final = b"\0"

#: Names that need no escapes, as text and label by label: nearly all. dnspython, for the others, takes 10 us for each.
PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_*-]{1,63}\.)*[A-Za-z0-9_*-]{1,63}\.?")
_PLAIN_LABEL: Final = re.compile(rb"[A-Za-z0-9_*-]+")

#: The length octet in front of a label, by the length.
_SIZES: Final = [bytes([size]) for size in range(64)]

#: The most octets of a name (RFC 1035, 3.1). In text, one takes four characters at most: \DDD.
MAX_NAME: Final = 255
#: Characters that IDNA 2003 maps to others, and IDNA 2008 does not (UTS #46, 7): the two make different names of them.
_DEVIANT: Final = re.compile("[\u00df\u03c2\u200c\u200d]")

#: Octets of `Source.client` of an IPv4 address.
CLIENT_IPV4: Final = 16

#: Types that twisted.names has no constant for (KEY: RFC 2535; RFC 4034; NSEC3, NSEC3PARAM: RFC 5155; CDS, CDNSKEY:
#: RFC 7344; SVCB, HTTPS: RFC 9460; RFC 6672 is DNAME, which it has).
KEY: Final = 25
DS: Final = 43
RRSIG: Final = 46
NSEC: Final = 47
DNSKEY: Final = 48
NSEC3: Final = 50
NSEC3PARAM: Final = 51
CDS: Final = 59
CDNSKEY: Final = 60
SVCB: Final = 64
HTTPS: Final = 65

#: Types whose data are one name: two that differ in case are one record (RFC 4343).
ONE_NAME: Final = frozenset({tdns.NS, tdns.CNAME, tdns.DNAME, tdns.PTR})


def from_text(text: str) -> bytes:
    """
    Return the name with the presentation form *text*; a missing final dot is added.

    Raises:
        ValueError: a label is longer than 63 octets, the name longer than 255, or an escape is broken.
    """
    if PLAIN.fullmatch(text) and len(text) < 250:
        return b"".join([_SIZES[len(label)] + label for label in text.removesuffix(".").encode().split(b".")]) + ROOT
    return parse_name(text, dns.name.root).to_wire() or b""


def parse_name(text: str, origin: dns.name.Name | None) -> dns.name.Name:
    """
    Return the name with the presentation form *text*, completed with *origin* if it has no final dot.

    Characters outside ASCII are encoded by IDNA 2003, where IDNA 2008 has the same result.

    Raises:
        ValueError: *text* is no name; the message has the reason and the remedy.
    """
    reason = ""
    if len(text) > (4 * MAX_NAME if text.isascii() else MAX_NAME):
        reason = "a name has 255 octets at most"
    elif not text.isascii() and (not text.isprintable() or _DEVIANT.search(text)):
        reason = "it has a character that cannot be seen, or that IDNA 2003 and 2008 encode differently; write xn--…"
    else:
        try:
            return dns.name.from_text(text, origin)
        except (dns.exception.DNSException, UnicodeError) as error:
            reason = str(error).rstrip(".")
            if isinstance(error, dns.name.BadEscape):
                reason = "a backslash stands before a character, or before three digits up to 255"
            elif not text.isascii():
                reason += "; write what is not ASCII as xn--…"
    raise ValueError(f"{shown(text)} is not a domain name: {reason}")


def shown(text: str, most: int = 60) -> str:
    """Return the first *most* characters of *text* in quotes, for a message; unprintable ones are escaped."""
    return f"'{printable(text if len(text) <= most else f'{text[:most]}…')}'"


def to_text(name: bytes) -> str:
    """Return the presentation form of *name*, without the final dot (the root is ``"."``)."""
    labels, at = [], 0
    while name[at] and _PLAIN_LABEL.fullmatch(label := name[at + 1 : at + 1 + name[at]]):
        labels.append(label.decode())
        at += 1 + name[at]
    if labels and not name[at]:
        return ".".join(labels)
    text = dns.name.from_wire(name, 0)[0].to_text(omit_final_dot=True)
    return text or "."


def ancestors(name: bytes) -> Iterator[bytes]:
    """Yield *name*, its parent, and so on to the root."""
    while name != ROOT:
        yield name
        name = name[name[0] + 1 :]
    yield ROOT


def parent(name: bytes) -> bytes:
    """Return *name* without its first label. It must not be the root."""
    return name[name[0] + 1 :]


def next_closer(key: bytes, names: Container[bytes]) -> tuple[bytes, bytes]:
    """
    Return the ancestor of *key*, or *key*, right below its closest encloser, and this (RFC 5155, 1.3).

    The closest encloser is the closest name above *key* that exists (RFC 4592, 3.3.1): the first that is among *names*.
    """
    above = parent(key)
    while above not in names:
        key, above = above, parent(above)
    return key, above


class RR(tdns.RRHeader):
    """
    One resource record whose data are octets.

    Attributes:
        owner: the name, in the case in which it is written.
        type, cls: as in RFC 1035, 3.2.2 and 3.2.4.
        ttl: seconds.
        rdata: uncompressed.
    """

    auth = False

    def __init__(self, owner: bytes, type: int, ttl: int, rdata: bytes, cls: int = tdns.IN) -> None:
        """Store octets; `tdns.RRHeader`'s own initialiser would decode names that are seldom needed."""
        self.owner = owner
        self.type = type
        self.cls = cls
        self.ttl = ttl
        self.rdata = rdata

    @property
    def name(self) -> tdns.Name:  # type: ignore[override]
        """The owner, for twisted.names."""
        return tdns.Name(to_text(self.owner).encode())

    @property
    def payload(self) -> tdns.UnknownRecord:  # type: ignore[override]
        """The data, for twisted.names."""
        return tdns.UnknownRecord(self.rdata, self.ttl)

    @classmethod
    def of(cls, header: Any) -> RR:
        """Return *header* (any `tdns.RRHeader`) with its data as octets."""
        if isinstance(header, RR):
            return header
        data = BytesIO()
        if header.payload is not None:
            header.payload.encode(data, None)
        return cls(from_text(header.name.name.decode("latin-1")), header.type, header.ttl, data.getvalue(), header.cls)


@attrs.frozen(weakref_slot=False)
class RRset:
    """
    The records of one type at one name, none twice; the owner has the file's case.

    Attributes:
        ttl: of all records (RFC 2181, 5.2), except RRSIG records.
        ttls: of each RRSIG record: that of the RRset it signs (RFC 4034, 3); empty for other types.
    """

    owner: bytes
    type: int
    ttl: int
    rdatas: tuple[bytes, ...]
    ttls: tuple[int, ...] = ()

    def records(self, owner: bytes | None = None) -> list[RR]:
        """Return the records; *owner*, if given, is their owner."""
        owner = owner or self.owner
        if self.ttls:
            return [RR(owner, self.type, ttl, rdata) for ttl, rdata in zip(self.ttls, self.rdatas, strict=True)]
        return [RR(owner, self.type, self.ttl, rdata) for rdata in self.rdatas]

    def added(self, ttl: int, rdata: bytes) -> RRset:
        """Return this RRset with one more record and the smaller TTL; a record that it has already is not added."""
        known = rdata in self.rdatas or (self.type in ONE_NAME and rdata.lower() in map(bytes.lower, self.rdatas))
        rdatas = self.rdatas if known else (*self.rdatas, rdata)
        ttls = self.ttls if known or self.type != RRSIG else (*self.ttls, ttl)
        return RRset(self.owner, self.type, min(ttl, self.ttl), rdatas, ttls)


@attrs.define(eq=False, weakref_slot=False)
class Node:
    """
    One name that exists.

    Attributes:
        rrsets: by type; a VM's addresses are among them.
        vm: the VM whose name this is.
        below: how many names exist one label below. A name without rrsets, vm and such names does not exist.
    """

    rrsets: dict[int, RRset] = attrs.Factory(dict)
    vm: str | None = None
    below: int = 0


class Answer(tuple[list[RR], list[RR], list[RR]]):  # noqa: SLOT001 - Python gives a tuple no slots but none
    """
    The answer of an `IResolver`: answers, authority, additional; with attributes that the triple has no fields for.

    Attributes:
        aa: whether the answer is authoritative.
        glue: how many of the additional records, from the first, a referral must have (RFC 9471).
        ede: Extended DNS Errors: code and text.
        ra: whether it comes from another server.
        vm: the VM that is up and whose address it is; None if there is none, or if it is not ready.
    """

    aa: bool
    vm: str | None
    ra: bool
    glue: int
    ede: tuple[tuple[int, str], ...]

    def __new__(
        cls,
        answer: Iterable[RR] = (),
        authority: Iterable[RR] = (),
        additional: Iterable[RR] = (),
        *,
        aa: bool = True,
        glue: int = 0,
        ede: tuple[tuple[int, str], ...] = (),
        ra: bool = False,
        vm: str | None = None,
    ) -> Answer:
        """Make the triple."""
        self = super().__new__(cls, (list(answer), list(authority), list(additional)))
        self.aa, self.glue, self.ede, self.ra, self.vm = aa, glue, ede, ra, vm
        return self


def octets_of(host: str | bytes) -> bytes:
    """
    Return the address *host* in octets.

    Raises:
        ValueError: *host* is no address.
    """
    return packed(host) if isinstance(host, str) else host


@attrs.frozen
class Source:
    """
    The client of a query, and whether its address is proven.

    Attributes:
        address: an IPv4 or IPv6 address, in octets (`networks.packed`); it may be given as text.
        port: the source port.
        tcp: whether the query came by TCP.
        proven: whether the address is certainly not forged: TCP, or a valid DNS cookie (RFC 7873).
    """

    address: bytes = attrs.field(converter=octets_of)
    port: int
    tcp: bool = False
    proven: bool = False

    @property
    def host(self) -> str:
        """The address as text."""
        return host_of(self.address)

    def client(self, ident: bytes) -> bytes:
        """
        Return what the kernel writes of a client, and behind that *ident*, the id of the client's query.

        That is a ``struct sockaddr_in`` or ``sockaddr_in6`` without its family: port, address, 8 octets 0; or port,
        flow, address, scope, of which a `Source` knows neither flow nor scope.
        """
        port = self.port.to_bytes(2)
        if len(self.address) == 4:
            return port + self.address + bytes(8) + ident
        return port + bytes(4) + self.address + bytes(4) + ident

    @classmethod
    def of_client(cls, client: bytes) -> Source:
        """Return the source that *client*, a result of `client`, stands for; its address is not proven."""
        return cls(address_of(client), int.from_bytes(client[:2]))


def address_of(client: bytes) -> bytes:
    """Return the address (`networks.packed`) of *client*, a result of `Source.client`."""
    return client[2:6] if len(client) == CLIENT_IPV4 else unmapped(client[6:22])


class Question(tdns.Query):
    """
    One question, as the argument of `IResolver.query`, with its source.

    Attributes:
        asked: the name in the case of the question (it is echoed, for resolvers that check it).
        key: the same in lower case, for look-ups in zones.
        outcome: the result of the look-up in the zones (`lookup.Outcome`), once a resolver of the chain has done it.
        met: the state of the VM whose address is wanted (`lifecycle.State`), as it was then.
    """

    outcome: Any = None
    met: Any = None

    def __init__(self, asked: bytes, type: int, cls: int = tdns.IN, source: Source | None = None) -> None:
        """Store octets; `name` turns them into text for twisted.names."""
        self.asked = asked
        self.key = asked.lower()
        self.type = type
        self.cls = cls
        self.source = source

    @property
    def name(self) -> tdns.Name:  # type: ignore[override]
        """The name, for twisted.names."""
        return tdns.Name(to_text(self.asked).encode())

    @classmethod
    def of(cls, query: Any) -> Question:
        """Return *query* (any `tdns.Query`) as a `Question`."""
        if isinstance(query, Question):
            return query
        return cls(from_text(query.name.name.decode("latin-1")), query.type, query.cls)


def key_tag(rdata: bytes) -> int:
    """Return the key tag of the DNSKEY record with the data *rdata* (RFC 4034, appendix B)."""
    total = sum(int.from_bytes(rdata[at : at + 2].ljust(2, b"\0")) for at in range(0, len(rdata), 2))
    return (total + (total >> 16)) & 0xFFFF
