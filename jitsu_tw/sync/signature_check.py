"""Check the signatures of a zone that comes signed: how long they are valid, and whether they are the zone's keys'."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import islice
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs
import dns.dnssec
import dns.exception
import dns.name
import dns.rdata
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.rrset
from dns.rdtypes.dnskeybase import Flag

from jitsu_tw.dns.keytimes import KeyState, clock
from jitsu_tw.dns.wire import DNSKEY, RRSIG, to_text
from jitsu_tw.idnssec import KeyStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    from jitsu_tw.dns.wire import RR
    from jitsu_tw.dns.zone import Zone

#: The most records of a zone that are read, and RRsets whose signatures are verified, the apex's first: dnspython takes
#: a fifth of a millisecond for each.
MOST_READ: Final = 200_000
MOST_VERIFIED: Final = 2000

#: Seconds between two RRsets that are verified: a thread that never rests makes answers late.
REST: Final = 0.001

#: The most RRsets that a problem names.
MOST_NAMED: Final = 5

#: Seconds before its expiry from which on a signature of a file is a problem.
SOON: Final = 3 * 86400

#: Of an RRSIG record's data: type covered, expiration, inception, key tag (RFC 4034, 3.1).
_TIMES: Final = Struct("!H6xIIH")


@attrs.frozen
class Checked:
    """
    What a check has found.

    Attributes:
        verified: the signatures of how many RRsets were verified.
        earliest: when the first signature expires, in seconds since 1970.
        latest: when the last signature begins to be valid.
        tampered: RRsets without a right signature, as text.
        keys: the zone's keys; those that sign the DNSKEY RRset are active.
        note: why signatures were not verified, and the remedy; empty if they were.
        failure: why the check ended early; empty if it did not.
    """

    verified: int = 0
    earliest: float = inf
    latest: float = 0.0
    tampered: tuple[str, ...] = ()
    keys: tuple[KeyStatus, ...] = ()
    note: str = ""
    failure: str = ""

    def problems(self, now: float) -> list[str]:
        """Return what is wrong, at *now*."""
        found = []
        if self.failure:
            found.append(f"its signatures cannot be checked ({self.failure}): report the fault that the log has")
        if self.tampered:
            more = f" and {len(self.tampered) - MOST_NAMED} more" if len(self.tampered) > MOST_NAMED else ""
            named = f"{', '.join(self.tampered[:MOST_NAMED])}{more}"
            found.append(f"signatures of the file are wrong, so its answers are bogus: {named}; sign the zone again")
        if self.earliest <= now + SOON:
            when = "has expired" if self.earliest <= now else "expires"
            found.append(f"a signature {when} at {clock(self.earliest)}: sign the zone again, and reload it")
        if self.latest > now:
            found.append(f"a signature is not valid before {clock(self.latest)}: see whether a clock is wrong")
        return found


def check(zone: Zone, rest: Callable[[float], None] = time.sleep) -> Checked:
    """
    Check the signatures of *zone*, as its file has them; this blocks, for seconds, and is for a thread.

    Their times are told without the extra `dnssec`, too; they are verified with it.

    Args:
        zone: it comes signed.
        rest: waits for some seconds.
    """
    sets: dict[tuple[bytes, int], list[RR]] = defaultdict(list)
    signatures: dict[tuple[bytes, int], list[RR]] = defaultdict(list)
    earliest, latest = inf, 0.0
    for record in islice(zone.records(), MOST_READ):
        owner = record.owner.lower()
        if record.type == RRSIG:
            covered, expiration, inception, _ = _TIMES.unpack_from(record.rdata)
            earliest, latest = min(earliest, expiration), max(latest, inception)
            signatures[owner, covered].append(record)
        else:
            sets[owner, record.type].append(record)
    apex = dns.name.from_wire(zone.key, 0)[0]
    keys = {apex: _rrset(found)} if (found := sets[zone.key, DNSKEY]) else {}
    signing = {_TIMES.unpack_from(record.rdata)[3] for record in signatures[zone.key, DNSKEY]}
    tampered = []
    verified = 0
    note = ""
    for (owner, type_), signed in islice(signatures.items(), MOST_VERIFIED):
        if not sets.get((owner, type_)):
            continue
        try:
            is_right = _is_right(sets[owner, type_], signed, keys)
        except ImportError as error:
            note = f"its signatures are not verified; that needs: pip install 'jitsu-tw[dnssec]' ({error})"
            break
        verified += 1
        if not is_right:
            tampered.append(f"{to_text(owner)} {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(type_))}")
        rest(REST)
    return Checked(verified, earliest, latest, tuple(tampered), tuple(_statuses(keys, signing)), note)


def _statuses(keys: Mapping[dns.name.Name, dns.rrset.RRset], signing: Container[int]) -> Iterator[KeyStatus]:
    """Yield the status of each of *keys*; the tags of those that sign the DNSKEY RRset are *signing*."""
    for apex, rrset in keys.items():
        for key in rrset:
            assert isinstance(key, dns.rdtypes.ANY.DNSKEY.DNSKEY)
            tag = dns.dnssec.key_id(key)
            ds = f"{apex} IN DS {dns.dnssec.make_ds(apex, key, 'SHA256')}" if key.flags & Flag.SEP else ""
            state = KeyState.ACTIVE if tag in signing else KeyState.PUBLISHED
            yield KeyStatus(tag, int(key.algorithm), state.value, announced=False, ds=ds)


def _is_right(records: Sequence[RR], signed: Sequence[RR], keys: dict[dns.name.Name, dns.rrset.RRset]) -> bool:
    """Return whether one of the signatures *signed* of *records* is that of one of *keys*, whenever it is valid."""
    rrset = _rrset(records)
    for one in _rrset(signed):
        try:
            dns.dnssec.validate_rrsig(rrset, one, keys, now=one.inception)  # type: ignore[arg-type]
        except dns.exception.ValidationFailure:
            continue
        except dns.exception.UnsupportedAlgorithm:
            return True
        return True
    return False


def _rrset(records: Sequence[RR]) -> dns.rrset.RRset:
    """Return *records*, which have one owner and type, as dnspython has them."""
    first = records[0]
    type_ = dns.rdatatype.RdataType.make(first.type)
    rdatas = [dns.rdata.from_wire("IN", type_, record.rdata, 0, len(record.rdata)) for record in records]
    return dns.rrset.from_rdata_list(dns.name.from_wire(first.owner, 0)[0], first.ttl, rdatas)
