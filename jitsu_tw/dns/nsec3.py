"""The proofs of a zone that comes signed with NSEC3 records (RFC 5155)."""

from __future__ import annotations

from base64 import b32hexdecode
from bisect import bisect_right
from hashlib import sha1
from typing import TYPE_CHECKING, Final, NamedTuple

from twisted.names.dns import NS
from zope.interface import implementer

from jitsu_tw.dns.interfaces import IDenial
from jitsu_tw.dns.wire import DS, NSEC3, NSEC3PARAM, parent, to_text
from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jitsu_tw.dns.interfaces import Content
    from jitsu_tw.dns.wire import RRset

#: The most iterations of the hash: validators take a zone with more for insecure, or for bogus (RFC 9276, 3.2).
MOST_ITERATIONS: Final = 100
#: How often the hash function is used to see whether each name has a record: about a second.
MOST_HASHED: Final = 1_000_000
#: The only hash algorithm (RFC 5155, 11), and its octets, in a name too.
_SHA1: Final = 1
_HASH: Final = 20
_LABEL: Final = 32

_WILD: Final = b"\1*"


class Parameters(NamedTuple):
    """How names are hashed (RFC 5155, 3.1): the number of additional iterations, and the salt."""

    iterations: int
    salt: bytes

    def hash(self, key: bytes) -> bytes:
        """Return the hash of the lower-case name *key* (RFC 5155, 5)."""
        digest = key
        for _ in range(self.iterations + 1):
            digest = sha1(digest + self.salt, usedforsecurity=False).digest()
        return digest


def parameters(rdata: bytes) -> tuple[int, Parameters]:
    """Return the hash algorithm and the parameters of *rdata*, of an NSEC3 or NSEC3PARAM record."""
    return rdata[0], Parameters(int.from_bytes(rdata[2:4]), rdata[5 : 5 + rdata[4]])


def next_hash(rdata: bytes) -> bytes:
    """Return the next hashed owner name of *rdata*, of an NSEC3 record (RFC 5155, 3.1.7)."""
    at = 5 + rdata[4]
    return rdata[at + 1 : at + 1 + rdata[at]]


@implementer(IDenial)
class Nsec3Records:
    """
    Proves by the NSEC3 records of a zone's file what the zone does not have. Three names are hashed for one proof.

    Attributes:
        parameters: of the chain that is used.
    """

    def __init__(self, zone: Content) -> None:
        """
        Find the chain of *zone*, whose apex has NSEC3PARAM.

        Raises:
            ZoneError: there is no chain that can be used.
        """
        self._zone = zone
        where = to_text(zone.key)
        offered = [parameters(rdata) for rdata in zone.nodes[zone.key].rrsets[NSEC3PARAM].rdatas if not rdata[1]]
        usable = [found for algorithm, found in offered if algorithm == _SHA1]
        if not usable:
            message = "no record with algorithm 1, SHA-1, and flags 0 (RFC 5155, 4.1.2): sign the zone with them"
            raise ZoneError(f"{where} NSEC3PARAM: {message}")
        usable.sort(key=lambda found: found.iterations)
        self.parameters = usable[0]
        if self.parameters.iterations > MOST_ITERATIONS:
            message = f"{self.parameters.iterations} iterations, and validators accept {MOST_ITERATIONS} at most"
            raise ZoneError(f"{where} NSEC3PARAM: {message} (RFC 9276, 3.2); sign the zone with 0")
        self._records = dict(self._read())
        self._hashes = sorted(self._records)
        if self.parameters.hash(zone.key) not in self._records:
            message = "the apex has no NSEC3 record with the parameters of NSEC3PARAM: sign the whole zone again"
            raise ZoneError(f"{where}: {message} (RFC 5155, 7.1)")

    def _read(self) -> Iterator[tuple[bytes, RRset]]:
        """Yield the NSEC3 records of the chain, by the hash in their owner."""
        for key, node in self._zone.proofs.items():
            rrset = node.rrsets.get(NSEC3)
            if rrset is None or parameters(rrset.rdatas[0]) != (_SHA1, self.parameters):
                continue
            label = key[1 : key[0] + 1]
            try:
                hashed = b32hexdecode(label.upper())
            except ValueError:
                hashed = b""
            if parent(key) != self._zone.key or len(label) != _LABEL or len(hashed) != _HASH:
                message = "the owner of an NSEC3 record is a hash of 32 letters and digits right below the zone's name"
                raise ZoneError(f"{to_text(key)}: {message} (RFC 5155, 3.3); sign the zone again")
            yield hashed, rrset

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the chain: the first gap, and names without a record, unsigned delegations apart."""
        for at, hashed in enumerate(self._hashes):
            rrset = self._records[hashed]
            if next_hash(rrset.rdatas[0]) != self._hashes[(at + 1) % len(self._hashes)]:
                yield f"{to_text(rrset.owner)} NSEC3: the chain is broken behind this record"
                break
        zone = self._zone
        if len(zone.nodes) * (self.parameters.iterations + 1) > MOST_HASHED:
            return
        for key, node in zone.nodes.items():
            is_in_file = node.vm is None and node.rrsets and zone.cut_over(key, DS) is None
            cut = zone.cuts.get(key)
            may_opt_out = cut is not None and cut.type == NS and DS not in node.rrsets
            if is_in_file and not may_opt_out and self._match(key) is None:
                yield f"{to_text(key)} has no NSEC3 record"

    def no_name(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that neither *key* exists nor a wildcard that matches it (RFC 5155, 7.2.2)."""
        closer, encloser = self._closest(key)
        return _distinct(self._match(encloser), self._cover(closer), self._cover(_WILD + encloser))

    def no_type(self, key: bytes, qtype: int) -> Sequence[RRset]:  # noqa: ARG002 -- the bitmaps have the type, or not
        """
        Return the proof that *key*, or the wildcard that matches it, exists and has no records of type *qtype*.

        See RFC 5155, 7.2.3 to 7.2.5. Under opt-out, DS of a delegation without NSEC3 record is proven as by `no_ds`.
        """
        if self._zone.get(key) is not None:
            return self.no_ds(key)
        closer, encloser = self._closest(key)
        return _distinct(self._match(encloser), self._cover(closer), self._match(_WILD + encloser))

    def not_exact(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that *key*, which a wildcard has answered for, does not exist (RFC 5155, 7.2.6)."""
        return [self._cover(self._closest(key)[0])]

    def no_ds(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that *key* has no DS records: its own, or that it may be left out (RFC 5155, 7.2.7)."""
        own = self._match(key)
        if own is not None:
            return [own]
        closer, encloser = self._closest(key)
        return _distinct(self._match(encloser), self._cover(closer))

    def rrsets(self) -> Iterator[RRset]:
        """Yield the NSEC3 records, of other chains too, for a transfer."""
        for node in self._zone.proofs.values():
            if NSEC3 in node.rrsets:
                yield node.rrsets[NSEC3]

    def changed(self, key: bytes) -> None:
        """Do nothing: the records are those of the file."""

    def _closest(self, key: bytes) -> tuple[bytes, bytes]:
        """
        Return the next closer name of *key*, and its closest encloser that has an NSEC3 record (RFC 5155, 1.3).

        Names that exist only because of delegations may have none under opt-out (RFC 5155, 7.1).
        """
        above = parent(key)
        while above != self._zone.key and (self._zone.get(above) is None or self._match(above) is None):
            key, above = above, parent(above)
        return key, above

    def _match(self, key: bytes) -> RRset | None:
        return self._records.get(self.parameters.hash(key))

    def _cover(self, key: bytes) -> RRset:
        """Return the record whose range the hash of *key* is in."""
        return self._records[self._hashes[bisect_right(self._hashes, self.parameters.hash(key)) - 1]]


def _distinct(*rrsets: RRset | None) -> list[RRset]:
    """Return *rrsets*, each once, without None."""
    return [rrset for rrset in dict.fromkeys(rrsets) if rrset is not None]
