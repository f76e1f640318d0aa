"""
Zones that come signed: the signatures and the NSEC records of their files (RFC 4035, 2 and 3; `nsec3` for NSEC3).

Nothing of such a zone can change but by a new file: what it has besides is bogus for validators. So the address of a VM
is served as the file has it; `Presigned.faults` tells which VM the file does not fit.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import dns.rdatatype
from twisted.names.dns import AAAA, NS, A
from zope.interface import implementer

from jitsu_tw.dns.canonical import order
from jitsu_tw.dns.interfaces import IDenial, ISecurity
from jitsu_tw.dns.message import name_end
from jitsu_tw.dns.nsec3 import Nsec3Records
from jitsu_tw.dns.wire import DS, NSEC, NSEC3, NSEC3PARAM, RR, RRSIG, next_closer, to_text
from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jitsu_tw.dns.interfaces import Content
    from jitsu_tw.dns.wire import Node, RRset

_WILD: Final = b"\1*"
_ADDRESSES: Final = (A, AAAA)
#: The remedy for a file that is not right.
_AGAIN: Final = "sign the whole zone again"
_INSTEAD: Final = "put its records into the zone before that is signed, or have Jitsu sign the zone (dnssec)"


@implementer(ISecurity)
class Presigned:
    """
    Proves the answers of a zone by what its file has.

    Attributes:
        denial: the NSEC or the NSEC3 records.
    """

    def __init__(self, zone: Content, wall: Callable[[], float] = time.time) -> None:
        """
        Find the proofs of *zone*, whose apex has DNSKEY and RRSIG; *wall* returns the seconds since 1970.

        Raises:
            ZoneError: it has none for what it does not have, or none that can be used.
        """
        self._zone, self._wall = zone, wall
        rrsets = zone.nodes[zone.key].rrsets
        self.denial: NsecRecords | Nsec3Records
        if NSEC3PARAM in rrsets:
            self.denial = Nsec3Records(zone)
        elif NSEC in rrsets:
            self.denial = NsecRecords(zone)
        else:
            message = "it comes signed (DNSKEY, RRSIG), but has neither NSEC nor NSEC3PARAM at its apex"
            raise ZoneError(f"{to_text(zone.key)}: {message}: {_AGAIN}, or leave DNSKEY out")

    def signatures(self, rrset: RRset) -> Sequence[RR]:
        """Return the RRSIG records that the file has of *rrset*; none if the zone has other records there now."""
        key = rrset.owner.lower()
        node = (self._zone.proofs if rrset.type == NSEC3 else self._zone.nodes).get(key)
        signed = node.rrsets.get(RRSIG) if node is not None else None
        filed = self._zone.shadowed.get(key, {}).get(rrset.type, rrset)
        if signed is None or rrset.type == RRSIG or filed.rdatas != rrset.rdatas:
            return ()
        return [
            RR(rrset.owner, RRSIG, ttl, rdata)
            for ttl, rdata in zip(signed.ttls, signed.rdatas, strict=True)
            if int.from_bytes(rdata[:2]) == rrset.type
        ]

    def faults(self) -> Iterator[str]:
        """Yield what validators will not believe of the zone, and the remedy: one line each."""
        yield from self._times()
        for fault in self.denial.faults():
            yield f"{fault}: {_AGAIN}"
        for key, node in self._zone.proofs.items():
            if NSEC3 in node.rrsets and not self.signatures(node.rrsets[NSEC3]):
                yield f"{_named(key, NSEC3)} has no signature: {_AGAIN}"
        for key in self._zone.enclosed:
            if self._zone.cut_over(key, A) is None:
                what = "is served too, and this signed zone does not delegate it, so that it is bogus to validators"
                yield f"{to_text(key)} {what}: add its NS records and {_AGAIN}"
        for key, node in self._zone.nodes.items():
            if node.vm is not None:
                yield from self._unfit(key, node, node.vm)
            if self._zone.cut_over(key, DS) is not None:
                continue
            cut = self._zone.cuts.get(key)
            for rtype, rrset in node.rrsets.items():
                is_signed = rtype in {DS, NSEC} if cut is not None and cut.type == NS else rtype != RRSIG
                if is_signed and not (node.vm and rtype in _ADDRESSES) and not self.signatures(rrset):
                    yield f"{_named(key, rtype)} has no signature: {_AGAIN}"

    def _times(self) -> Iterator[str]:
        """Yield a line if signatures have expired, and one if some are not valid yet (RFC 4034, 3.1.5)."""
        now = int(self._wall())
        expired: list[tuple[int, bytes, int]] = []
        early: list[tuple[int, bytes, int]] = []
        for nodes in (self._zone.nodes, self._zone.proofs):
            for key, node in nodes.items():
                for rdata in node.rrsets[RRSIG].rdatas if RRSIG in node.rrsets else ():
                    covered = int.from_bytes(rdata[:2])
                    if (late := _seconds(now, rdata[8:12])) > 0:
                        expired.append((late, key, covered))
                    if (left := -_seconds(now, rdata[12:16])) > 0:
                        early.append((left, key, covered))
        if expired:
            late, key, covered = max(expired)
            first = f"the first ({_named(key, covered)}) {late:,} s ago"
            yield f"{len(expired):,} signatures have expired, {first}: {_AGAIN}"
        if early:
            left, key, covered = max(early)
            what = f"{len(early):,} signatures are not valid yet, the last ({_named(key, covered)}) in {left:,} s"
            yield f"{what}: is the clock right, here and where the zone was signed?"

    def _unfit(self, key: bytes, node: Node, vm: str) -> Iterator[str]:
        """Yield a line if the addresses of *vm* at *key* are not those that the file has signed."""
        filed = self._zone.shadowed.get(key, {})
        types = [rtype for rtype in _ADDRESSES if rtype in node.rrsets]
        signed = all(self.signatures(node.rrsets[rtype]) for rtype in types)
        if not types or not signed or not filed.keys() <= node.rrsets.keys():
            what = f"the file of this signed zone has other addresses for {to_text(key)}, or none"
            yield f"VM {vm}: {what}, so validators will not believe its own: {_INSTEAD}"


@implementer(IDenial)
class NsecRecords:
    """Proves by the NSEC records of a zone's file what the zone does not have."""

    def __init__(self, zone: Content) -> None:
        """Find the NSEC records of *zone*."""
        self._zone = zone
        found = [(order(key), node.rrsets[NSEC]) for key, node in zone.nodes.items() if NSEC in node.rrsets]
        found.sort(key=lambda pair: pair[0])
        self._places = [place for place, _ in found]
        self._records = [rrset for _, rrset in found]

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the chain: the first gap, and names without NSEC record."""
        for at, rrset in enumerate(self._records):
            rdata = rrset.rdatas[0]
            if order(rdata[: name_end(rdata, 0)]) != self._places[(at + 1) % len(self._places)]:
                yield f"{_named(rrset.owner, NSEC)}: the chain is broken behind this record"
                break
        for key, node in self._zone.nodes.items():
            if node.vm is None and node.rrsets and NSEC not in node.rrsets and self._zone.cut_over(key, DS) is None:
                yield f"{to_text(key)} has no NSEC record"

    def no_name(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that neither *key* exists nor a wildcard that matches it (RFC 4035, 3.1.3.2)."""
        return list(dict.fromkeys((self._at(key), self._at(_WILD + next_closer(key, self._zone.nodes)[1]))))

    def no_type(self, key: bytes, qtype: int) -> Sequence[RRset]:  # noqa: ARG002 -- the bitmaps have the type, or not
        """Return the proof that *key*, or the wildcard that matches it, has no records of type *qtype*."""
        if self._zone.get(key) is not None:
            return [self._at(key)]
        return self.no_name(key)  # RFC 4035, 3.1.3.4: that of the wildcard matches it, or spans it if it is empty

    def not_exact(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that *key*, which a wildcard has answered for, does not exist (RFC 4035, 3.1.3.3)."""
        return [self._at(key)]

    def no_ds(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that the delegation *key* has no DS records (RFC 4035, 3.1.4)."""
        return [self._at(key)]

    def rrsets(self) -> Iterator[RRset]:
        """Yield nothing: the NSEC records are those of the zone's names."""
        return iter(())

    def changed(self, key: bytes) -> None:
        """Do nothing: the records are those of the file."""

    def _at(self, key: bytes) -> RRset:
        """Return the NSEC record of *key*, or the one that spans it."""
        return self._records[bisect_right(self._places, order(key)) - 1]


def _seconds(now: int, time: bytes) -> int:
    """Return how many seconds *now* is after the *time* of a signature, which has 32 bits (RFC 1982, 3.2)."""
    return (now - int.from_bytes(time) + 2**31) % 2**32 - 2**31


def _named(key: bytes, rtype: int) -> str:
    return f"{to_text(key)} {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rtype))}"
