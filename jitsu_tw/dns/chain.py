"""
The NSEC chain of a zone that Jitsu signs (RFC 4034, 4; RFC 4035, 2.3), and the proofs that it gives.

The chain has the names that own authoritative records, and the delegations. A name may also come to exist while a
client caches a proof: the names of templates, and those of a served zone inside this one that it does not delegate. A
cache that uses NSEC records for other questions (RFC 8198) would deny these names, and their VMs would not be started.
So no NSEC record that is given as a proof spans or matches a name that may come to exist, other than the one that was
asked for:

- All names below ``P`` of a template's wildcard ``*.P``, and all names of an undelegated zone inside, are *open*.
- Where the next name of the chain is not the next possible one, and open names lie between, a proof about a name that
  does not exist spans this name, all below it, and no other that could be a host's (RFC 4470). The NSEC record of a
  name that exists ends at the first possible name below it.
- Of a name two labels or more below ``P``, such as ``_tcp.www.P``, the proof shows that ``www.P`` exists.
- A name of a template that exists, or ``*.P`` itself, and has no records of the type that was asked for, is proven to
  exist by an NSEC record of its own, which has all types that it may come to have but that one.
- An undelegated zone inside is denied DS as a delegation is, so that its answers are insecure, not bogus.

A wildcard of the zone's file beside that of a template answers for names two labels or more below ``P``, too. To prove
that, the name right below ``P`` has to be denied; but the wildcard's own record, which a cache would need besides, has
the types of addresses.

A transfer has the whole chain, since a secondary knows no other names than those that exist.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Final

from twisted.names.dns import AAAA, NS, A
from zope.interface import implementer

from jitsu_tw.dns.canonical import bitmap, order
from jitsu_tw.dns.interfaces import IDenial
from jitsu_tw.dns.wire import DS, MAX_NAME, NSEC, ROOT, RRSIG, RRset, next_closer, parent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jitsu_tw.dns.wire import Node
    from jitsu_tw.dns.zone import Zone

_WILD: Final = b"\1*"
#: The most octets of a label (RFC 1035, 2.3.4).
_MAX_LABEL: Final = 63
#: The types of every name that has an NSEC record (RFC 4034, 4.1.2).
_PROOFS: Final = frozenset({RRSIG, NSEC})
#: What a name of a template has when its VM was made.
_ADDRESSES: Final = frozenset({A, AAAA})
#: The octets beside A and Z: no name has capitals in canonical order.
_BEFORE_A, _AFTER_Z = 0x40, 0x5B


@implementer(IDenial)
class NsecChain:
    """Proves what a zone does not have; with the zone's names, it needs some 100 octets for each."""

    def __init__(self, zone: Zone) -> None:
        """Build the chain of *zone*."""
        self._zone = zone
        self._kept: dict[bytes, RRset] = {}  # the NSEC records of names in the chain, by the name, until they change
        self._build()

    def _build(self) -> None:
        zone = self._zone
        self._edition = object()
        self._kept.clear()
        self._cuts = set(zone.cuts)
        self._chain = sorted(  # by the order of the names; the second of each pair is the name
            (order(key), key) for key, node in zone.nodes.items() if node.rrsets and zone.cut_over(key, DS) is None
        )
        self._wild = {key for key, node in zone.nodes.items() if _is_template(key, node)}
        self._open_ranges()

    def _open_ranges(self) -> None:
        """Find where open names may be: disjoint ranges of the order, sorted, each from its start to before its end."""
        zone = self._zone
        self._inside = {key for key in zone.enclosed if zone.cut_over(key, A) is None}
        ranges = [(order(parent(key)) + b"\1", _end(parent(key))) for key in self._wild]
        ranges += [(order(key), _end(key)) for key in self._inside]
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []
        for start, end in sorted(ranges):
            if not self._ends or start > self._ends[-1]:
                self._starts.append(start)
                self._ends.append(end)
            else:
                self._ends[-1] = max(end, self._ends[-1])

    def changed(self, key: bytes) -> None:
        """Note that *key* was added to the zone or removed from it, or that its types have changed."""
        zone = self._zone
        node = zone.get(key)
        if (key in zone.cuts) != (key in self._cuts):
            self._build()  # names below have become authoritative, or have ceased to be so
            return
        is_wild = node is not None and _is_template(key, node)
        if is_wild != (key in self._wild) or key in zone.enclosed:
            (self._wild.add if is_wild else self._wild.discard)(key)
            self._kept.clear()
            self._open_ranges()
        pair = order(key), key
        at = bisect_left(self._chain, pair)
        exists = node is not None and bool(node.rrsets) and zone.cut_over(key, DS) is None
        self._kept.pop(key, None)
        if exists != (self._chain[at : at + 1] == [pair]):
            self._edition = object()
            self._kept.pop(self._chain[at - 1][1], None)
            if exists:
                insort(self._chain, pair)
            else:
                del self._chain[at]

    def no_name(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that neither *key* exists nor a wildcard that matches it (NXDOMAIN; RFC 4035, 3.1.3.2)."""
        closer, encloser = next_closer(key, self._zone.nodes)
        if closer != key and _WILD + encloser in self._wild:  # the name of a template itself may come to exist
            while parent(key) != closer:
                key = parent(key)
            closer, encloser = key, closer
        return _distinct(self._cover(closer), self._cover(_WILD + encloser))

    def no_type(self, key: bytes, qtype: int) -> Sequence[RRset]:
        """
        Return the proof that *key*, or the wildcard that matches it, exists and has no records of type *qtype*.

        See RFC 4035, 3.1.3.1 and 3.1.3.4. For a name of a template, and a zone inside, see the module's text.
        """
        exact = self._zone.get(key) is not None
        owner = key if exact else _WILD + next_closer(key, self._zone.nodes)[1]
        node = self._zone.get(owner)
        assert node is not None
        if owner in self._wild or owner in self._inside:
            others = _ADDRESSES if owner in self._wild else {NS}
            return [self._made(key, (node.rrsets.keys() | others) - {qtype}, self._first_below(key))]
        own = self._own(owner) if node.rrsets else self._cover(owner)
        return [own] if exact else _distinct(self._cover(next_closer(key, self._zone.nodes)[0]), own)

    def not_exact(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that *key*, which a wildcard has answered for, does not exist (RFC 4035, 3.1.3.3)."""
        return [self._cover(next_closer(key, self._zone.nodes)[0])]

    def no_ds(self, key: bytes) -> Sequence[RRset]:
        """Return the proof that the delegation *key* has no DS records (RFC 4035, 3.1.4)."""
        return [self._own(key)]

    def rrsets(self) -> Iterator[RRset]:
        """
        Yield the whole chain, for a transfer.

        Raises:
            RuntimeError: a name was added or removed since the last record, as iterating over a dict raises it.
        """
        edition = self._edition
        for at, (_, key) in enumerate(self._chain):
            if edition is not self._edition:
                raise RuntimeError("the chain has changed")
            end = self._chain[(at + 1) % len(self._chain)][1]
            own = self._own(key)
            yield own if own.rdatas[0].startswith(end) else self._made(key, self._types(key), end)

    def _own(self, key: bytes) -> RRset:
        """Return the NSEC record of *key*, a name of the chain."""
        kept = self._kept.get(key)
        if kept is None:
            at = bisect_left(self._chain, (order(key), key))
            start, end = self._chain[at], self._chain[(at + 1) % len(self._chain)]
            below = self._first_below(key) if self._spans_open(start[0], end[0]) else end[1]
            kept = self._kept[key] = self._made(key, self._types(key), below)
        return kept

    def _cover(self, key: bytes) -> RRset:
        """Return the NSEC record that spans *key*, which is not in the chain: a name that no name, or one, is below."""
        place = order(key)
        at = bisect_right(self._chain, (place, key))
        start, end = self._chain[at - 1], self._chain[at % len(self._chain)]
        if not self._spans_open(start[0], end[0]):
            return self._own(start[1])
        before = _before(key)
        first = max((order(before), before), start)[1]
        if self._zone.get(key) is not None and key not in self._wild:  # it has no records, but names below it
            last = self._first_below(key)
        else:
            after = _after(key, self._zone.key)
            is_first = end[0] <= place or (after != self._zone.key and order(after) <= end[0])
            last = after if is_first else end[1]
        return self._made(first, self._types(first), last)

    def _spans_open(self, start: bytes, end: bytes) -> bool:
        """Return whether there may be open names between two neighbours in the chain, given by their order keys."""
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and (self._starts[at] < end or end <= start)

    def _first_below(self, key: bytes) -> bytes:
        """Return the first possible name after *key*, which exists."""
        return b"\1\0" + key if len(key) + 2 <= MAX_NAME else _after(key, self._zone.key)

    def _types(self, key: bytes) -> Iterable[int]:
        """Return the types that *key* has, of those that the zone is an authority for."""
        node = self._zone.get(key)
        if node is None:
            return ()
        cut = self._zone.cuts.get(key)
        return node.rrsets.keys() & {NS, DS} if cut is not None and cut.type == NS else node.rrsets.keys()

    def _made(self, owner: bytes, types: Iterable[int], end: bytes) -> RRset:
        """Return the NSEC record of *owner* with *types* and the next name *end* (its TTL: RFC 9077, 3)."""
        return RRset(owner, NSEC, self._zone.negative_ttl, (end + bitmap(_PROOFS.union(types)),))


def _is_template(key: bytes, node: Node) -> bool:
    """Return whether *node* is a template's wildcard: it belongs to a VM and has no address."""
    return node.vm is not None and key.startswith(_WILD) and node.rrsets.keys().isdisjoint(_ADDRESSES)


def _end(key: bytes) -> bytes:
    """Return what is greater than the order key of each name below *key*, and less than that of all names after."""
    return order(key)[:-1] + b"\1" if key != ROOT else b"\xff" * (_MAX_LABEL + 1)


def _distinct(*rrsets: RRset) -> list[RRset]:
    """Return *rrsets*, each once."""
    return list(dict.fromkeys(rrsets))


def _before(key: bytes) -> bytes:
    """
    Return a name between *key* and the names before it that could be a host's (RFC 4470, 4).

    Of a name of 254 octets or more, that may be one that could be a host's itself: there is no other.
    """
    label, above = key[1 : key[0] + 1], parent(key)
    last = label[-1]
    if label == b"\0":
        return above
    if last == 0:
        sibling = _joined(label[:-1], above)
        return b"\1\xff" + sibling if len(sibling) + 2 <= MAX_NAME else sibling
    label = label[:-1] + bytes([_BEFORE_A if last == _AFTER_Z else last - 1])
    if len(label) < _MAX_LABEL and len(key) < MAX_NAME:
        return _joined(label + b"\xff", above)
    sibling = _joined(label, above)
    return b"\1\xff" + sibling if len(sibling) + 2 <= MAX_NAME else sibling


def _after(key: bytes, apex: bytes) -> bytes:
    """Return the first possible name after *key* and all names below it; *apex* if there is none (RFC 4470, 4)."""
    while key != apex:
        label, above = key[1 : key[0] + 1], parent(key)
        if len(label) < _MAX_LABEL and len(key) < MAX_NAME:
            return _joined(label + b"\0", above)
        label = label.rstrip(b"\xff")
        if label:
            last = label[-1]
            return _joined(label[:-1] + bytes([_AFTER_Z if last == _BEFORE_A else last + 1]), above)
        key = above
    return apex


def _joined(label: bytes, above: bytes) -> bytes:
    return bytes([len(label)]) + label + above
