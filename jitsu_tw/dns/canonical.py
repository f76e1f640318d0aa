"""
The canonical forms and orders of DNSSEC (RFC 4034, 6): of names, of the data of records, of the records of an RRset.

A signature is over octets in these forms, and an NSEC chain has names in this order. Nothing here does I/O.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from twisted.names import dns

from jitsu_tw.dns.message import FIXED, name_end
from jitsu_tw.dns.wire import RRSIG

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.dns.wire import RRset

#: Types of RFC 1035, 3.3, RFC 1183, RFC 2163, RFC 2230 and RFC 2535 that twisted.names has no constant for.
_MD, _MF, _MB, _MG, _MR, _MINFO, _RT, _SIG, _PX, _NXT, _KX = 3, 4, 7, 8, 9, 14, 21, 24, 26, 30, 36

#: The offset of the first name in the data of a type, and the number of names: the types whose names are in lower case
#: in the canonical form (RFC 4034, 6.2; RFC 6840, 5.1: RRSIG, but not NSEC), but for NAPTR, and A6, which is historic.
_NAMES_IN: Final = {
    **dict.fromkeys((dns.NS, _MD, _MF, dns.CNAME, _MB, _MG, _MR, dns.PTR, _NXT, dns.DNAME), (0, 1)),
    **dict.fromkeys((dns.SOA, _MINFO, dns.RP), (0, 2)),
    **dict.fromkeys((dns.MX, dns.AFSDB, _RT, _KX), (2, 1)),
    **dict.fromkeys((_SIG, RRSIG), (18, 1)),
    _PX: (2, 2), dns.SRV: (6, 1),
}  # fmt: skip
#: The offset of the first string in the data of NAPTR, and the number of strings (RFC 3403, 4.1).
_STRINGS_AT, _STRINGS = 4, 3

_WINDOW: Final = Struct("!BB")  # number, octets of the bitmap


def order(name: bytes) -> bytes:
    """
    Return a key by which names sort in canonical order (RFC 4034, 6.1).

    It has the labels in lower case, the root's first, each followed by a zero. A label that is the beginning of another
    one is less, so octets that are 0 or 1 in a label are written as 1 1 and 1 2. The key of an ancestor is the
    beginning of the keys of all names below it.
    """
    labels, at, name = [b""], 0, name.lower()
    while size := name[at]:
        label = name[at + 1 : at + 1 + size]
        if b"\0" in label or b"\1" in label:
            label = label.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")
        labels.append(label)
        at += size + 1
    labels.reverse()
    return b"\0".join(labels)


def rdata(rtype: int, octets: bytes) -> bytes:
    """Return the canonical form of *octets*, the uncompressed data of a record of type *rtype* (RFC 4034, 6.2)."""
    if rtype == dns.NAPTR:
        at, count = _STRINGS_AT, 1
        for _ in range(_STRINGS):
            at += 1 + octets[at] if at < len(octets) else 0
    elif rtype in _NAMES_IN:
        at, count = _NAMES_IN[rtype]
    else:
        return octets
    end = at
    for _ in range(count):
        end = name_end(octets, end) or end  # data that are malformed for their type are left as they are
    return octets[:at] + octets[at:end].lower() + octets[end:]


def rrs(rrset: RRset, owner: bytes, ttl: int) -> bytes:
    """
    Return *rrset* in canonical form and order, as it is signed (RFC 4034, 3.1.8.1 and 6.3); class IN.

    Args:
        rrset: the records.
        owner: the owner in the signature: the RRset's in lower case, or the wildcard that it was made from.
        ttl: the original TTL of the signature, in seconds.
    """
    datas = sorted({rdata(rrset.type, octets) for octets in rrset.rdatas})
    return b"".join(owner + FIXED.pack(rrset.type, dns.IN, ttl, len(octets)) + octets for octets in datas)


def bitmap(types: Iterable[int]) -> bytes:
    """Return the type bitmap of *types* (RFC 4034, 4.1.2)."""
    windows: dict[int, bytearray] = {}
    for rtype in sorted(types):
        window, bit = divmod(rtype, 256)
        octets = windows.setdefault(window, bytearray())
        octets.extend(bytes(bit // 8 + 1 - len(octets)))
        octets[bit // 8] |= 0x80 >> bit % 8
    return b"".join(_WINDOW.pack(window, len(octets)) + octets for window, octets in windows.items())


def types(octets: bytes) -> frozenset[int]:
    """
    Return the types in the type bitmap *octets* (RFC 4034, 4.1.2).

    Raises:
        ValueError: *octets* are no type bitmap.
    """
    found: set[int] = set()
    at, least = 0, 0
    while at < len(octets):
        window, size = _WINDOW.unpack_from(octets.ljust(at + 2, b"\0"), at)
        at += 2
        if window < least or not 1 <= size <= 32 or at + size > len(octets):
            raise ValueError("the type bitmap is damaged")
        found.update(window * 256 + bit for bit in range(size * 8) if octets[at + bit // 8] & 0x80 >> bit % 8)
        at, least = at + size, window + 1
    return frozenset(found)
