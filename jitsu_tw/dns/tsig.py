"""
TSIG: verify the signatures of queries, and sign the answers (RFC 8945). dnspython computes the MACs.

Nothing here does I/O or reads a clock: times are seconds since 1970. Packets are signed as octets, and not parsed.
`Keyring.verify` returns `Signed` or `BadSignature`; both turn a reply into the form that RFC 8945 demands: signed, with
an unsigned TSIG record, or unchanged.

Only whole MACs are accepted. RFC 8945, 5.2.3 would also have a server remember each key's last time and refuse an
earlier one; this server does not: queries by UDP overtake each other, and no query changes anything.
"""

from __future__ import annotations

import binascii
import struct
from base64 import b64decode
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, cast

import attrs
import dns.exception
import dns.name
import dns.rdata
import dns.tsig
from dns.rdataclass import ANY
from dns.rdatatype import TSIG
from dns.rdtypes.ANY.TSIG import TSIG as Record  # noqa: N811 - a class, in capitals because the type is

from jitsu_tw.dns.message import FIXED, FORMERR, HEADER
from jitsu_tw.dns.wire import from_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jitsu_tw.dns.message import Query

#: The response code for a bad signature (RFC 8945, 5.2).
NOTAUTH: Final = 9
#: The errors in TSIG records of replies (RFC 8945, 3).
BADSIG: Final = 16
BADKEY: Final = 17
BADTIME: Final = 18
BADTRUNC: Final = 22

#: The greatest difference of the clocks of client and server, in seconds, as RFC 8945, 10 recommends.
FUDGE: Final = 300

#: The algorithms of RFC 8945, 6 (without HMAC-MD5, which it forbids): the fewest and the most octets of a MAC. Fewer
#: than the larger of 10 and half a hash are no MAC (RFC 8945, 5.2.2.1).
ALGORITHMS: Final = {
    "hmac-sha1": (10, 20),
    "hmac-sha224": (14, 28),
    "hmac-sha256": (16, 32),
    "hmac-sha256-128": (16, 16),
    "hmac-sha384": (24, 48),
    "hmac-sha384-192": (24, 24),
    "hmac-sha512": (32, 64),
    "hmac-sha512-256": (32, 32),
}

#: The most octets of a TSIG record that reports an error. Longer ones, with names of 255 octets for an unknown key or
#: algorithm, are not echoed: such a reply might not fit into a plain UDP packet.
_MOST_ECHO: Final = 400

#: A TSIG record's data but for the algorithm's name and the MAC, in octets (RFC 8945, 4.2); the server's time in it.
_BARE: Final = 16
_TIME: Final = 6

_COUNT: Final = struct.Struct("!H")
#: The offset of the number of additional records in a packet (RFC 1035, 4.1.1).
_ARCOUNT: Final = 10


class Key(dns.tsig.Key):
    """A name, an algorithm and a secret. Its representation does not show the secret."""

    @classmethod
    def parse(cls, text: str) -> Key:
        """
        Return the key in *text*, in the format of dig's ``-y``: ``[algorithm:]name:secret``, the secret in base64.

        Raises:
            ValueError: what is wrong with it, and what would be right. The secret is not in the message.
        """
        parts = text.split(":")
        algorithm, name, secret = ("hmac-sha256", *parts) if len(parts) == 2 else parts if len(parts) == 3 else [""] * 3
        if not (algorithm and name and secret):
            raise ValueError("is no key; write one like hmac-sha256:transfer.example.org:BASE64")
        if algorithm.lower().rstrip(".") not in ALGORITHMS:
            raise ValueError(f"{algorithm!r} is no algorithm for a key; write one of {', '.join(ALGORITHMS)}")
        from_text(name)
        try:
            return cls(name, b64decode(secret, validate=True), algorithm.lower())
        except binascii.Error:
            raise ValueError(f"the secret of the key {name} is not base64") from None

    @property
    def wire(self) -> bytes:
        """The name as octets, in lower case: the key's name in rules."""
        return self.name.to_digestable()

    def __repr__(self) -> str:
        return f"<TSIG key {self.name} {self.algorithm}>"


@attrs.frozen
class Signed:
    """
    A query whose signature is good.

    Attributes:
        key: the key that the client signed with.
        mac: the MAC of the query.
    """

    key: Key
    mac: bytes

    @property
    def room(self) -> int:
        """The octets that a signature adds to a reply: the reply must be shorter by these."""
        _, most = ALGORITHMS[_algorithm(self.key)]
        return len(_owned(self.key.name)) + len(self.key.algorithm.to_digestable()) + _BARE + most + _TIME

    def sign(self, reply: bytes, now: float) -> bytes:
        """Return *reply*, a whole packet, with its signature (RFC 8945, 5.3)."""
        return _signed(reply, self.key, _record(self.key.algorithm, reply, now), self.mac)[0]

    def sign_stream(self, packets: Iterable[bytes], now: Callable[[], float]) -> Iterator[bytes]:
        """
        Yield *packets*, which together are the answer, each with its signature (RFC 8945, 5.3.1).

        Args:
            packets: b"" among them is no packet and is yielded unchanged.
            now: returns the seconds since 1970; it is called for each packet.
        """
        context = None
        for packet in packets:
            if packet:
                record = _record(self.key.algorithm, packet, now())
                signed, context = _signed(packet, self.key, record, self.mac, context, multi=True)
                yield signed
            else:
                yield packet


@attrs.frozen
class BadSignature:
    """
    A query that must not be answered, because of its signature.

    Attributes:
        rcode: of the reply: NOTAUTH, or FORMERR if the TSIG record is malformed.
        error: the error in the reply's TSIG record: BADSIG, BADKEY, BADTIME or BADTRUNC; 0 for no such record.
        reason: what is wrong, for the log.
        record: the query's TSIG record.
        owner: the owner of that record: the name of the key.
        signed: signs the reply (RFC 8945, 5.3.2), if the query proves that the client has the key.
    """

    rcode: int
    error: int
    reason: str
    record: Record | None = None
    owner: dns.name.Name = dns.name.root
    signed: Signed | None = None

    @property
    def room(self) -> int:
        """The octets that `sign` adds."""
        if self.signed is not None:
            return self.signed.room
        if self.record is None:
            return 0
        room = len(_owned(self.owner)) + len(self.record.algorithm.to_digestable()) + _BARE
        return room if room <= _MOST_ECHO else 0

    def sign(self, reply: bytes, now: float) -> bytes:
        """Return *reply*, a whole packet, with the TSIG record that reports the error."""
        if not self.room or self.record is None:
            return reply
        record = _record(self.record.algorithm, reply, now, self.error)
        if self.signed is None:
            return _with(reply, self.owner, record)
        if self.error == BADTIME:  # RFC 8945, 5.2.3: the client's time, so that it can check the MAC, and the server's
            own = int(now).to_bytes(_TIME)
            record = cast("Record", record.replace(time_signed=self.record.time_signed, other=own))
        return _signed(reply, self.signed.key, record, self.signed.mac)[0]


class Keyring:
    """The keys that the server shares with clients and secondaries."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        """
        Store *keys*.

        Raises:
            ValueError: two have the same name.
        """
        self._keys: dict[dns.name.Name, Key] = {}
        for key in keys:
            if key.name in self._keys:
                raise ValueError(f"there are two keys of the name {key.name}: remove one")
            self._keys[key.name] = key

    def get(self, name: bytes) -> Key | None:
        """Return the key called *name*, octets in any case; None if there is none."""
        return self._keys.get(dns.name.from_wire(name, 0)[0])

    def verify(self, octets: bytes, query: Query, now: float) -> Signed | BadSignature:
        """
        Return the verified signature of a query, or what is wrong with it: the first of RFC 8945, 5.2.1 to 5.2.4.

        Args:
            octets: the packet.
            query: the query in it; its `tsig` is not None.
            now: in seconds since 1970.
        """
        start = query.tsig
        assert start is not None
        try:
            owner, size = dns.name.from_wire(octets, start)
            _, cls, ttl, length = FIXED.unpack_from(octets, start + size)
            record = cast("Record", dns.rdata.from_wire(ANY, TSIG, octets, start + size + FIXED.size, length))
        except dns.exception.DNSException as error:
            return BadSignature(FORMERR, 0, f"no TSIG record: {error}")
        if cls != ANY or ttl or record.error:  # RFC 8945, 4.2
            return BadSignature(FORMERR, 0, "a TSIG record of the wrong class, with a TTL, or with an error")

        key = self._keys.get(owner)
        if key is None or key.algorithm != record.algorithm:
            return BadSignature(NOTAUTH, BADKEY, f"no key {owner} {record.algorithm}", record, owner)

        least, whole = ALGORITHMS[_algorithm(key)]
        given = len(record.mac)
        if not least <= given <= whole:
            return BadSignature(FORMERR, 0, f"a MAC of {given} octets")
        bare = octets[:_ARCOUNT] + _COUNT.pack(_arcount(octets) - 1) + octets[HEADER.size : start]
        right, _ = dns.tsig.sign(bare, key, record, record.time_signed)
        if not compare_digest(right.mac[:given], record.mac):
            return BadSignature(NOTAUTH, BADSIG, f"not signed with the key {owner}", record, owner)

        signed = Signed(key, record.mac)
        if abs(now - record.time_signed) > record.fudge:
            off = record.time_signed - int(now)
            return BadSignature(NOTAUTH, BADTIME, f"signed {off:+d} s from now by {owner}", record, owner, signed)
        if given < whole:
            return BadSignature(NOTAUTH, BADTRUNC, f"a MAC cut to {given} octets by {owner}", record, owner, signed)
        return signed


def _algorithm(key: Key) -> str:
    return key.algorithm.to_text(omit_final_dot=True)


def _arcount(packet: bytes) -> int:
    return int(_COUNT.unpack_from(packet, _ARCOUNT)[0])


def _owned(owner: dns.name.Name) -> bytes:
    """Return octets as long as those of a TSIG record before its data."""
    return owner.to_digestable() + bytes(FIXED.size)


def _record(algorithm: dns.name.Name, reply: bytes, now: float, error: int = 0) -> Record:
    """Return the data of a TSIG record for *reply* that has no MAC yet."""
    original = _COUNT.unpack_from(reply)[0]
    return Record(ANY, TSIG, algorithm, int(now), FUDGE, b"", original, error, b"")


def _signed(
    packet: bytes, key: Key, record: Record, request: bytes, context: object = None, *, multi: bool = False
) -> tuple[bytes, object]:
    """Return *packet* with *record*, completed with its MAC, and dnspython's context for the next packet."""
    made, context = dns.tsig.sign(packet, key, record, record.time_signed, request, context, multi)
    return _with(packet, key.name, made), context


def _with(packet: bytes, owner: dns.name.Name, record: Record) -> bytes:
    """Return *packet* with *record* as its last additional record."""
    data = record.to_digestable()
    count = _COUNT.pack(_arcount(packet) + 1)
    fixed = FIXED.pack(TSIG, ANY, 0, len(data))
    return b"".join((packet[:_ARCOUNT], count, packet[HEADER.size :], owner.to_digestable(), fixed, data))
