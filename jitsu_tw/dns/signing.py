"""
Signatures of a zone that Jitsu signs: each RRset is signed when it is first asked for, and the signatures are kept.

A signature is kept while the zone has the same RRset, until three quarters of its validity have passed. Those of an
RRset are one string of octets, so that the garbage collector has nothing to look at, and take about 500 octets.
`MOST_KEPT` RRsets have some; of more, those that were used last. Those of RRsets that are made up for one question, at
names that the zone does not have, are not kept: no flood of questions drives out those of others.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from random import uniform
from struct import Struct
from typing import TYPE_CHECKING, Final

from zope.interface import implementer

from jitsu_tw.dns import canonical
from jitsu_tw.dns.interfaces import ISecurity
from jitsu_tw.dns.keytimes import plan
from jitsu_tw.dns.wire import CDNSKEY, CDS, DNSKEY, DS, NSEC, RR, RRSIG, RRset, ancestors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jitsu_tw.dns.dnskeys import Key
    from jitsu_tw.dns.interfaces import IDenial
    from jitsu_tw.dns.keytimes import Plan
    from jitsu_tw.dns.zone import Zone

#: The most RRsets of a zone whose signatures are kept: those of 100,000 VMs, and their NSEC records.
MOST_KEPT: Final = 1 << 18

#: Seconds by which the clocks of validators may be behind ours: so much earlier signatures begin to be valid.
EARLIER: Final = 3600

#: The part of its validity after which a signature is renewed, and the part by which validities differ at random, so
#: that they are not all renewed at once.
RENEWED_AT: Final = 0.75
JITTER: Final = 0.1

#: The data of CDS and CDNSKEY records by which a zone asks its parent to remove the DS records (RFC 8078, 4).
DELETE_CDS: Final = bytes(5)
DELETE_CDNSKEY: Final = bytes((0, 0, 3, 0, 0))

#: Signatures become due by periods, of which a validity has this many: so none has to be looked for.
PERIODS: Final = 100

#: Type covered, algorithm, labels, original TTL, expiration, inception, key tag (RFC 4034, 3.1).
_RRSIG: Final = Struct("!HBBIIIH")


#: What is kept of an RRset: when its signatures are to be renewed and when they expire, in seconds since 1970; then the
#: data of each signature behind its length.
_KEPT: Final = Struct("!dd")
_LENGTH: Final = Struct("!H")


@implementer(ISecurity)
class Signed:
    """
    Proves the answers of one zone by its keys. It owns, and nobody else writes: the zone's DNSKEY, CDS and CDNSKEY.

    Attributes:
        zone: the zone.
        denial: proves what it does not have.
        keys: its keys, of which those sign that are active.
        plan: what they do now.
        made: how many signatures have been made.
    """

    def __init__(
        self,
        zone: Zone,
        keys: Iterable[Key],
        denial: IDenial,
        wall: Callable[[], float],
        validity: float,
        random: Callable[[float, float], float] = uniform,
    ) -> None:
        """
        Publish *keys* in *zone*; the caller calls `Zone.secure`.

        Args:
            zone: the zone.
            keys: its keys, of which one at least is active.
            denial: proves what the zone does not have.
            wall: returns the seconds since 1970.
            validity: of signatures, in seconds.
            random: returns a number between two others, for the jitter.
        """
        self.zone, self.denial = zone, denial
        self._wall, self._validity, self._random = wall, validity, random
        self._kept: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()  # by owner in lower case, and type
        self._rrsets: dict[tuple[bytes, int], RRset] = {}  # those that they are of
        self._due: dict[int, tuple[float, float]] = {}  # by period: the last time to renew in it, the first expiry
        self.made = 0
        self.use(keys)

    def use(self, keys: Iterable[Key]) -> None:
        """Publish *keys*, as their times want it now, and sign all RRsets anew."""
        now = self._wall()
        self.keys = tuple(keys)
        self.plan: Plan = plan({key.tag: key.times for key in self.keys}, now)
        by_tag = {key.tag: key for key in self.keys}
        self._active = [by_tag[tag] for tag in self.plan.signing]
        self.forget()
        self.zone.put_keys(self._published([by_tag[tag] for tag in self.plan.published]))

    def forget(self) -> None:
        """Sign all RRsets anew, when they are asked for next."""
        self._kept.clear()
        self._rrsets.clear()
        self._due.clear()

    def _published(self, keys: Iterable[Key]) -> list[RRset]:
        """Return the RRsets by which the zone publishes *keys* (RFC 7344, 3)."""
        found = {DNSKEY: [key.dnskey for key in keys], CDS: [], CDNSKEY: []}
        if self.plan.is_leaving:
            found |= {CDS: [DELETE_CDS], CDNSKEY: [DELETE_CDNSKEY]}
        elif self.plan.announced is not None:
            key = next(key for key in self.keys if key.tag == self.plan.announced)
            found |= {CDS: [key.ds], CDNSKEY: [key.dnskey]}
        ttl = self.zone.soa.ttl
        return [RRset(self.zone.key, type_, ttl, tuple(rdatas)) for type_, rdatas in found.items() if rdatas]

    def signatures(self, rrset: RRset) -> Sequence[RR]:
        """Return the RRSIG records of *rrset* (`ISecurity.signatures`)."""
        key = rrset.owner.lower(), rrset.type
        kept, now = self._kept.get(key), self._wall()
        if kept is not None and self._rrsets[key] is rrset and now < _KEPT.unpack_from(kept)[0]:
            self._kept.move_to_end(key)
            return _records(rrset, kept)
        if not self._is_ours(*key):
            return ()
        made = self._sign(rrset, key[0], now)
        if self.zone.get(key[0]) is not None:
            self._keep(key, rrset, made)
        return _records(rrset, made)

    def _is_ours(self, owner: bytes, type_: int) -> bool:
        """Return whether the zone is the authority for the RRset of *type_* at *owner* (RFC 4035, 2.2)."""
        if self.zone.key not in ancestors(owner) or type_ == RRSIG:
            return False
        # A delegation's DS and NSEC records are this zone's, all others at its name and below are not.
        return self.zone.cut_over(owner, DS if type_ in {DS, NSEC} else type_) is None

    def _sign(self, rrset: RRset, owner: bytes, now: float) -> bytes:
        """Sign *rrset*, whose owner in lower case is *owner* (RFC 4034, 3.1.8.1); return what is kept of it."""
        lasts = self._validity * (1 - self._random(0, JITTER))
        expires = int(now + lasts)
        labels = sum(1 for _ in ancestors(owner)) - 1 - owner.startswith(b"\1*")
        octets = canonical.rrs(rrset, owner, rrset.ttl)
        made = [_KEPT.pack(now + RENEWED_AT * lasts, expires)]
        for key in self._active:
            fields = (rrset.type, key.algorithm, labels, rrset.ttl, expires % 2**32, int(now - EARLIER) % 2**32)
            head = _RRSIG.pack(*fields, key.tag) + self.zone.key
            rdata = head + key.sign(head + octets)
            made += (_LENGTH.pack(len(rdata)), rdata)
        self.made += len(self._active)
        return b"".join(made)

    def _keep(self, key: tuple[bytes, int], rrset: RRset, made: bytes) -> None:
        """Keep the signatures *made* of *rrset*; of too many, those that were not used for longest give way."""
        self._kept[key], self._rrsets[key] = made, rrset
        self._kept.move_to_end(key)
        if len(self._kept) > MOST_KEPT:
            del self._rrsets[self._kept.popitem(last=False)[0]]
        renew_at, expires = _KEPT.unpack_from(made)
        period = int(renew_at / self._validity * PERIODS)
        last, first = self._due.get(period, (renew_at, expires))
        self._due[period] = max(last, renew_at), min(first, expires)

    @property
    def earliest(self) -> float:
        """When the first signature expires that is not due, in seconds since 1970; infinite without any."""
        return min((expires for _, expires in self._due.values()), default=inf)

    def renew(self, now: float) -> bool:
        """
        Return whether signatures have become due up to *now*, in seconds since 1970, since the last call.

        These are made anew when they are asked for. Those that have given way count, too: a secondary server may still
        have them.
        """
        past = [period for period, (last, _) in self._due.items() if last <= now]
        for period in past:
            del self._due[period]
        return bool(past)


def _records(rrset: RRset, kept: bytes) -> list[RR]:
    """Return the RRSIG records of *rrset*, of which *kept* has the data."""
    found, at = [], _KEPT.size
    while at < len(kept):
        (size,) = _LENGTH.unpack_from(kept, at)
        at += _LENGTH.size + size
        found.append(RR(rrset.owner, RRSIG, rrset.ttl, kept[at - size : at]))
    return found
