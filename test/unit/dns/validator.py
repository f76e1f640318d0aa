"""
A validator of replies and a signer of zones, by dnspython, for tests: what a reply must have to be believed.

It checks one reply with the keys of the zones that it comes from (RFC 4035, 5; RFC 5155, 8).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import attrs
import dns.dnssec
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.NSEC
import dns.rdtypes.ANY.NSEC3
import dns.rrset
from cryptography.hazmat.primitives.asymmetric import ec
from dns.rdatatype import CNAME, DNAME, DS, NS, NSEC, NSEC3, RRSIG, SOA
from zope.interface import implementer

from jitsu_tw.dns.chain import NsecChain
from jitsu_tw.dns.interfaces import ISecurity
from jitsu_tw.dns.wire import RR, RRset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dns.rdtypes.ANY.DNSKEY import DNSKEY

    from jitsu_tw.dns.interfaces import IDenial
    from jitsu_tw.dns.zone import Zone

#: When signatures are checked, in seconds since 1970; they are made for a day before and after.
NOW: Final = 1_800_000_000
_DAY: Final = 86400


class Bogus(Exception):  # noqa: N818 -- RFC 4033, 5 has this word
    """A reply that a validator does not believe, and why."""


def rrset_of(rrset: RRset) -> dns.rrset.RRset:
    """Return *rrset* as dnspython has it."""
    name = dns.name.from_wire(rrset.owner, 0)[0]
    rtype = dns.rdatatype.RdataType.make(rrset.type)
    rdatas = [dns.rdata.from_wire("IN", rtype, rdata, 0, len(rdata)) for rdata in rrset.rdatas]
    return dns.rrset.from_rdata_list(name, rrset.ttl, rdatas)


@implementer(ISecurity)
class Signer:
    """
    Signs a zone by dnspython.

    Attributes:
        dnskey: its key.
        denial: its NSEC chain.
    """

    def __init__(self, zone: Zone, now: float = NOW) -> None:
        """Make a key, put it into *zone*, and sign *zone*; the signatures are valid *now*, in seconds since 1970."""
        self._now = int(now)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.dnskey: DNSKEY = dns.dnssec.make_dnskey(self.key.public_key(), "ECDSAP256SHA256", 257)
        self.apex = dns.name.from_wire(zone.key, 0)[0]
        self.denial: IDenial = NsecChain(zone)
        self._zone = zone
        zone.put_keys([RRset(zone.key, 48, 300, (self.dnskey.to_wire() or b"",))])
        zone.secure(self)

    def signatures(self, rrset: RRset) -> Sequence[RR]:
        """Return the RRSIG record of *rrset*."""
        cut = self._zone.cut_over(rrset.owner.lower(), DS if rrset.type in {DS, NSEC} else rrset.type)
        if cut is not None or rrset.type == RRSIG:
            return ()
        rdata = dns.dnssec.sign(
            rrset_of(rrset), self.key, self.apex, self.dnskey, inception=self._now - _DAY, expiration=self._now + _DAY
        )
        return [RR(rrset.owner, RRSIG, rrset.ttl, rdata.to_wire() or b"")]


@attrs.define
class Validator:
    """
    Checks replies.

    Attributes:
        keys: the keys of each signed zone.
        apexes: of all served zones, signed or not.
    """

    keys: Mapping[dns.name.Name, Iterable[DNSKEY]]
    apexes: Iterable[dns.name.Name] = ()

    @classmethod
    def of(cls, zones: Iterable[Zone]) -> Validator:
        """Return the validator for *zones*, with the keys that they have."""
        keys, apexes = {}, []
        for zone in zones:
            apex = dns.name.from_wire(zone.key, 0)[0]
            apexes.append(apex)
            if zone.security is not None:
                keys[apex] = list(rrset_of(zone.nodes[zone.key].rrsets[48]))
        return cls(keys, apexes)

    def check(self, reply: dns.message.Message) -> str:
        """
        Return "secure" or "insecure", of the last name of the reply's chain; what is to be signed has been checked.

        Raises:
            Bogus: the reply would not be believed.
        """
        question = reply.question[0]
        wild = [found for rrset in reply.answer for found in self._check_rrset(rrset, reply.answer)]
        name = self._follow(reply, question.name, question.rdtype)
        answered = {rrset.rdtype for rrset in reply.answer if rrset.name == name}
        apex = self._apex(name, question.rdtype)
        is_positive = bool(answered & {question.rdtype}) or (question.rdtype == 255 and answered)
        if question.rdtype == RRSIG and answered:
            return "insecure"
        for rrset in reply.authority:
            if rrset.rdtype not in {NS, RRSIG} and self._apex(rrset.name, rrset.rdtype) in self.keys:
                self._check_rrset(rrset, reply.authority)
        nsecs = self._proofs(reply, NSEC)
        nsec3s = self._proofs(reply, NSEC3)
        for owner, labels in wild:
            closer = owner.split(labels + 2)[1]
            proven = any(_covers(nsec, closer) and _encloser(nsec, owner) == closer.parent() for nsec in nsecs)
            _require(proven or _Nsec3(nsec3s).covers(closer), f"{owner} is not proven to need the wildcard")
        if is_positive or reply.rcode() == dns.rcode.YXDOMAIN:
            return "secure" if apex in self.keys else "insecure"
        if apex not in self.keys:
            _require(not nsecs + nsec3s or bool(wild), "proofs of an unsigned zone")
            return "insecure"
        cut = next((rrset.name for rrset in reply.authority if rrset.rdtype == NS), None)
        if cut is not None:
            if any(rrset.rdtype == DS for rrset in reply.authority):
                return "secure"
            proven = _no_ds(nsecs, cut) or _Nsec3(nsec3s).no_ds(cut)
            _require(proven, f"{cut} is not proven to be an unsigned delegation")
            return "insecure"
        _require(any(rrset.rdtype == SOA for rrset in reply.authority), "no SOA")
        if reply.rcode() == dns.rcode.NXDOMAIN:
            _require(_no_name(nsecs, name) or _Nsec3(nsec3s).no_name(name), f"{name} is not proven not to exist")
        else:
            proven = _no_type(nsecs, name, question.rdtype) or _Nsec3(nsec3s).no_type(name, question.rdtype)
            _require(proven, f"{name} is not proven to have no such type")
        return "secure"

    def _check_rrset(
        self, rrset: dns.rrset.RRset, section: list[dns.rrset.RRset]
    ) -> Iterator[tuple[dns.name.Name, int]]:
        """Check the signature of *rrset*; yield its name and its wildcard's labels if it was made from one."""
        apex = self._apex(rrset.name, rrset.rdtype)
        made = rrset.rdtype == CNAME and any(
            other.rdtype == DNAME and rrset.name.is_subdomain(other.name) and rrset.name != other.name
            for other in section
        )
        if rrset.rdtype == RRSIG or apex not in self.keys or made:
            return iter(())
        of = (rrset.name, RRSIG, rrset.rdtype)
        found = [signed for signed in section if (signed.name, signed.rdtype, signed.covers) == of]
        _require(bool(found), f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} has no signature")
        keys = dns.rdataset.from_rdata_list(300, list(self.keys[apex]))
        try:
            dns.dnssec.validate(rrset, found[0], {apex: keys}, now=NOW)
        except dns.exception.ValidationFailure as error:
            raise Bogus(f"{rrset}: {error}") from None
        signature: Any = found[0][0]
        _require(found[0].ttl == rrset.ttl <= signature.original_ttl, f"{rrset.name}: TTL")
        labels = len(rrset.name) - 1 - rrset.name.is_wild()
        return iter([(rrset.name, signature.labels)] if signature.labels < labels else [])

    def _apex(self, name: dns.name.Name, rtype: int) -> dns.name.Name:
        """Return the apex of the zone that has records of *rtype* at *name*."""
        found = [apex for apex in self.apexes if name.is_subdomain(apex)]
        if rtype == DS and name in found and len(found) > 1:
            found.remove(name)
        return max(found, key=len, default=dns.name.root)

    @staticmethod
    def _follow(reply: dns.message.Message, name: dns.name.Name, qtype: int) -> dns.name.Name:
        """Return the name at the end of the chain of CNAMEs that begins with *name*."""
        for rrset in reply.answer if qtype not in {CNAME, 255} else ():
            if rrset.rdtype == CNAME and rrset.name == name:
                name = rrset[0].target
        return name

    def _proofs(self, reply: dns.message.Message, rtype: int) -> list[dns.rrset.RRset]:
        return [rrset for rrset in (*reply.answer, *reply.authority) if rrset.rdtype == rtype]


def _require(holds: object, what: str) -> None:
    if not holds:
        raise Bogus(what)


def _types(nsec: dns.rrset.RRset) -> set[int]:
    return {window * 256 + octet * 8 + bit for window, bitmap in nsec[0].windows
            for octet, value in enumerate(bitmap) for bit in range(8) if value & 0x80 >> bit}


def _is_of_parent(nsec: dns.rrset.RRset, name: dns.name.Name) -> bool:
    """Return whether *nsec* is of a delegation or a DNAME over *name* (RFC 6840, 4.1)."""
    types = _types(nsec)
    return name.is_subdomain(nsec.name) and name != nsec.name and ((NS in types and SOA not in types) or DNAME in types)


def _covers(nsec: dns.rrset.RRset, name: dns.name.Name) -> bool:
    start, end = nsec.name, nsec[0].next
    within = start < name < end if start < end else start < name or name < end
    return within and name.is_subdomain(end if end <= start else dns.name.root) and not _is_of_parent(nsec, name)


def _encloser(nsec: dns.rrset.RRset, name: dns.name.Name) -> dns.name.Name:
    """Return the closest encloser of *name* by *nsec*, which covers it."""
    common = [name.fullcompare(other)[2] for other in (nsec.name, nsec[0].next)]
    return name.split(max(common))[1]


def _is_empty(nsecs: list[dns.rrset.RRset], name: dns.name.Name) -> bool:
    """Return whether *name* is an empty non-terminal."""
    return any(_covers(nsec, name) and nsec[0].next.is_subdomain(name) for nsec in nsecs)


def _no_name(nsecs: list[dns.rrset.RRset], name: dns.name.Name) -> bool:
    if any(nsec.name == name for nsec in nsecs) or _is_empty(nsecs, name):
        return False
    return any(
        _covers(nsec, name)
        and not _is_empty(nsecs, _wildcard(_encloser(nsec, name)))
        and any(_covers(other, _wildcard(_encloser(nsec, name))) for other in nsecs)
        for nsec in nsecs
    )


def _no_type(nsecs: list[dns.rrset.RRset], name: dns.name.Name, qtype: int) -> bool:
    for nsec in nsecs:
        types = _types(nsec)
        if nsec.name == name:
            is_cut = NS in types and SOA not in types
            return not types & {qtype, CNAME} and (not is_cut or qtype == DS)
    if _is_empty(nsecs, name):
        return True
    for nsec in nsecs:
        if _covers(nsec, name):
            wildcard = _wildcard(_encloser(nsec, name))
            return _is_empty(nsecs, wildcard) or any(
                other.name == wildcard and not _types(other) & {qtype, CNAME} for other in nsecs
            )
    return False


def _no_ds(nsecs: list[dns.rrset.RRset], name: dns.name.Name) -> bool:
    return any(nsec.name == name and NS in _types(nsec) and not _types(nsec) & {DS, SOA} for nsec in nsecs)


def _wildcard(above: dns.name.Name) -> dns.name.Name:
    return dns.name.Name((b"*", *above.labels))


class _Nsec3:
    """Proofs by NSEC3 records (RFC 5155, 8)."""

    def __init__(self, rrsets: list[dns.rrset.RRset]) -> None:
        self._rrsets = rrsets

    def _hash(self, name: dns.name.Name) -> str:
        rdata = self._rrsets[0][0]
        return dns.dnssec.nsec3_hash(name, rdata.salt, rdata.iterations, rdata.algorithm).lower()

    def match(self, name: dns.name.Name) -> dns.rrset.RRset | None:
        if not self._rrsets:
            return None
        hashed = self._hash(name).encode()
        return next((rrset for rrset in self._rrsets if rrset.name.labels[0].lower() == hashed), None)

    def covers(self, name: dns.name.Name, *, opt_out: bool = False) -> bool:
        if not self._rrsets:
            return False
        hashed = self._hash(name)
        for rrset in self._rrsets:
            start, end = rrset.name.labels[0].decode().lower(), _base32(rrset[0].next)
            if start < hashed < end or (end <= start and (hashed > start or hashed < end)):
                return bool(rrset[0].flags & 1) or not opt_out
        return False

    def _closest(self, name: dns.name.Name) -> tuple[dns.name.Name, dns.name.Name] | None:
        """Return the closest encloser and the next closer name, if both are proven."""
        closer = name
        while closer != dns.name.root:
            above = closer.parent()
            found = self.match(above)
            if found is not None:
                types = _types(found)
                is_fine = self.covers(closer) and not (DNAME in types or (NS in types and SOA not in types))
                return (above, closer) if is_fine else None
            closer = above
        return None

    def no_name(self, name: dns.name.Name) -> bool:
        closest = self._closest(name)
        return self.match(name) is None and closest is not None and self.covers(_wildcard(closest[0]))

    def no_type(self, name: dns.name.Name, qtype: int) -> bool:
        found = self.match(name)
        if found is not None:
            types = _types(found)
            is_cut = NS in types and SOA not in types
            return not types & {qtype, CNAME} and (not is_cut or qtype == DS)
        closest = self._closest(name)
        if closest is None:
            return False
        if self.covers(closest[1], opt_out=True):  # an unsigned delegation, or only such are below
            return True
        found = self.match(_wildcard(closest[0]))
        return found is not None and not _types(found) & {qtype, CNAME}

    def no_ds(self, name: dns.name.Name) -> bool:
        found = self.match(name)
        if found is not None:
            return NS in _types(found) and not _types(found) & {DS, SOA}
        closest = self._closest(name)
        return closest is not None and self.covers(closest[1], opt_out=True)


def _base32(octets: bytes) -> str:
    return base64.b32hexencode(octets).decode().lower().rstrip("=")
