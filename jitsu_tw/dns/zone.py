"""
Zones: what is in them, and what the answer to a question is.

`Zone` is one zone, from a master file or made up; VMs' addresses are laid over it. `Zones` are all of ours; its
`lookup` is the algorithm of RFC 1034, 4.3.2, with wildcards (RFC 4592) and DNAME (RFC 6672), and always ends in one of
the six classes of `Outcome`. Apart from `Zone.read`, which reads the file it is told to, nothing here does I/O, and
nothing starts a VM: an outcome only says whose VM the name is.

A name is wire octets (`wire`). A zone is a dict from lower-case names to nodes; a name that has no records but names
below it (an empty non-terminal) is in it too, so "exists" (RFC 4592, 2.2.3; RFC 8020) is "is in the dict".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import attrs
import dns.rdatatype
from twisted.names.dns import AAAA, ALL_RECORDS, CNAME, DNAME, HINFO, MX, NS, SOA, SRV, A

from jitsu_tw.dns import masterfile
from jitsu_tw.dns.wire import ROOT, RR, ancestors, from_text, parent, to_text
from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

#: Types that twisted.names has no constant for (RFC 4034; KEY: RFC 2535).
KEY: Final = 25
DS: Final = 43
RRSIG: Final = 46
NSEC: Final = 47

#: What may stand beside a CNAME (RFC 4035, 2.5; RFC 3007, 3.1.1).
BESIDE_CNAME: Final = frozenset({KEY, RRSIG, NSEC})
#: What is served, or is glue, at a delegation's own name; below it there is only glue.
AT_CUT: Final = frozenset({NS, DS, RRSIG, NSEC, A, AAAA})
#: Where, in the data of these types, the host's name begins whose addresses are additional (RFC 1035, 3.3; RFC 2782).
TARGET_AT: Final = {NS: 0, MX: 2, SRV: 6}
#: Types whose data are one name: two that differ in case are one record (RFC 4343).
ONE_NAME: Final = frozenset({NS, CNAME, DNAME, 12})

#: How many CNAMEs are followed for one question.
MAX_CHAIN: Final = 16
#: In octets (RFC 1035, 3.1).
MAX_NAME: Final = 255
#: The data of the HINFO record that answers ANY (RFC 8482, 4.2).
MINIMAL_ANY: Final = b"\x07RFC8482\x00"


@attrs.frozen(weakref_slot=False)
class RRset:
    """The records of one type at one name: one TTL (RFC 2181, 5.2), no record twice, the owner in the file's case."""

    owner: bytes
    type: int
    ttl: int
    rdatas: tuple[bytes, ...]

    def records(self, owner: bytes | None = None) -> list[RR]:
        """Return the records, written with *owner* if it is given."""
        owner = owner or self.owner
        return [RR(owner, self.type, self.ttl, rdata) for rdata in self.rdatas]


@attrs.define(eq=False, weakref_slot=False)
class Node:
    """
    One name that exists.

    Attributes:
        rrsets: by type; a VM's addresses are among them.
        vm: the VM whose name this is.
        below: how many names exist one label below; without rrsets, vm and those, the name does not exist.
    """

    rrsets: dict[int, RRset] = attrs.Factory(dict)
    vm: str | None = None
    below: int = 0


@attrs.frozen
class Found:
    """
    There is an answer, or a chain of CNAMEs that leaves our zones or never ends.

    Attributes:
        answer: the CNAMEs that were followed, then the records; the first owner is as it was asked.
        additional: addresses of the hosts that the answer names.
        vm: whose VM the last name of the chain is; through a wildcard, whose VM the wildcard is.
    """

    answer: list[RR]
    additional: list[RR] = attrs.Factory(list)
    vm: str | None = None
    rcode: ClassVar[int] = 0
    aa: ClassVar[bool] = True


@attrs.frozen
class NoData:
    """The name (the last of the chain in *answer*) exists but has no such records; *soa* for RFC 2308's TTL."""

    answer: list[RR]
    soa: RR
    vm: str | None = None
    rcode: ClassVar[int] = 0
    aa: ClassVar[bool] = True


@attrs.frozen
class NxDomain:
    """The name (the last of the chain in *answer*: RFC 6604) does not exist, nor any below it (RFC 8020)."""

    answer: list[RR]
    soa: RR
    rcode: ClassVar[int] = 3
    aa: ClassVar[bool] = True


@attrs.frozen
class Referral:
    """
    The name belongs to a zone that is delegated to others.

    Attributes:
        answer: the CNAMEs that lead there, from our zones. If there are any, they are authoritative (RFC 1034, 6.2.7).
        authority: the NS records of the delegation.
        glue: addresses of name servers inside the delegated zone: the reply needs all of them, or TC (RFC 9471).
        additional: addresses of its other name servers, as far as our zones have them.
    """

    answer: list[RR]
    authority: list[RR]
    glue: list[RR]
    additional: list[RR]
    rcode: ClassVar[int] = 0

    @property
    def aa(self) -> bool:
        """AA is for the first owner in the answer (RFC 1035, 4.1.1)."""
        return bool(self.answer)


@attrs.frozen
class TooLong:
    """The DNAME that ends *answer* makes a name of more than 255 octets: YXDOMAIN (RFC 6672, 3.2)."""

    answer: list[RR]
    rcode: ClassVar[int] = 6
    aa: ClassVar[bool] = True


@attrs.frozen
class Refused:
    """The name is in none of our zones."""

    rcode: ClassVar[int] = 5
    aa: ClassVar[bool] = False


Outcome = Found | NoData | NxDomain | Referral | TooLong | Refused


class Zone:
    """
    One zone.

    Attributes:
        key: the apex, in lower case.
        soa: the SOA record.
        path: the file, or None.
    """

    def __init__(self, soa: RR, path: str | Path | None = None) -> None:
        """Make a zone that consists of its SOA record."""
        self.key: bytes = soa.owner.lower()
        self.soa = soa
        self.path = path
        self._notes: list[str] = []
        self._nodes: dict[bytes, Node] = {self.key: Node()}
        self._cuts: dict[bytes, RRset] = {}  # the NS of delegations, and DNAMEs: what is below is not ours to say
        self._shadowed: dict[bytes, dict[int, RRset]] = {}  # the file's addresses where a VM's are in their place
        self.add(soa.owner, SOA, soa.ttl, soa.rdata)

    @classmethod
    def read(cls, path: str | Path, origin: str | None = None) -> Zone:
        """
        Return the zone of the master file *path*.

        Args:
            path: an RFC 1035 master file in UTF-8; files it includes are looked for beside it.
            origin: the zone's name. If it is None, the owner of the SOA record is.

        Raises:
            ZoneError: the file cannot be read, or what is in it is not one zone.
        """
        entries = list(masterfile.read(path, origin))
        soas = [entry for entry in entries if entry.type == SOA]
        if not soas:
            raise ZoneError("no SOA record: add '@ SOA ns hostmaster 1 3600 600 86400 60' below $ORIGIN", path)
        soa = soas[0]
        for other in soas[1:]:
            raise ZoneError(f"a second SOA record, after line {soa.line}: remove one", other.path, other.line)
        if origin is not None and soa.owner.lower() != from_text(origin).lower():
            message = f"the SOA record is for {to_text(soa.owner)}, but the zone is {origin}: make them the same"
            raise ZoneError(message, soa.path, soa.line)
        zone = cls(RR(*soa[:4]), path)
        for entry in entries:
            if entry is not soa:
                zone.add(*entry[:4], path=entry.path, line=entry.line)
        return zone

    @classmethod
    def made_up(cls, apex: bytes, ttl: int, addresses: Iterable[IPv4Address | IPv6Address] = ()) -> Zone:
        """
        Return a zone for VMs' names that no file covers, with the times of the original's SOA (its jitsu.ml).

        Args:
            apex: the zone's name.
            ttl: in seconds: of its records, and the SOA's refresh; expire and minimum are twice that, retry is 3.
            addresses: of this server, for the ``ns`` below the apex that is the zone's only name server.

        Raises:
            ZoneError: the apex is too long to have names below it.
        """
        server, mailbox = b"\2ns" + apex, b"\x0ahostmaster" + apex
        if len(mailbox) > MAX_NAME:
            raise ZoneError(f"{to_text(apex)} is too long a name for a zone: choose one of less than 245 octets")
        times = b"".join(number.to_bytes(4, "big") for number in (1, ttl, 3, 2 * ttl, 2 * ttl))
        zone = cls(RR(apex, SOA, ttl, server + mailbox + times))
        zone.add(apex, NS, ttl, server)
        for rrset in _address_rrsets(server, addresses, ttl):
            zone._node(server.lower()).rrsets[rrset.type] = rrset
        return zone

    @property
    def warnings(self) -> list[str]:
        """What can be served but cannot be meant, with the VMs' addresses as they are now: one line each."""
        lines: list[str] = []
        if NS not in self._nodes[self.key].rrsets:
            lines.append(f"no NS record for {to_text(self.key)} (RFC 1035, 5.2): add '@ NS ns'")
        for key, node in self._nodes.items():
            lines += self._occluded(key, node)
            if NS in node.rrsets:
                lines += self._lame(node.rrsets[NS])
        return self._notes + [f"{self.path}: {line}" if self.path else line for line in lines]

    @property
    def serial(self) -> int:
        """The serial of the SOA record (RFC 1035, 3.3.13; RFC 1982). Adding and removing VMs does not change it."""
        return int.from_bytes(self.soa.rdata[-20:-16], "big")

    @property
    def negative_ttl(self) -> int:
        """How long, in seconds, "no" may be remembered (RFC 2308, 3 and 5)."""
        return min(int(self.soa.ttl), int.from_bytes(self.soa.rdata[-4:], "big"))

    @property
    def negative_soa(self) -> RR:
        """The SOA record as it stands in the authority section of a "no"."""
        return RR(self.soa.owner, SOA, self.negative_ttl, self.soa.rdata)

    def records(self) -> Iterator[RR]:
        """Yield every record once, the SOA first: what AXFR sends (RFC 5936, 2.2) but for the SOA that ends it."""
        yield self.soa
        for node in tuple(self._nodes.values()):
            for rrset in tuple(node.rrsets.values()):
                if rrset.type != SOA:
                    yield from rrset.records()

    def add(
        self, owner: bytes, type: int, ttl: int, rdata: bytes, *, path: str | None = None, line: int | None = None
    ) -> None:
        """
        Add one record. Of several TTLs in an RRset the smallest counts (RFC 2181, 5.2); a record twice is one.

        Raises:
            ZoneError: the record cannot be in this zone, or not beside the records that are. It says *path* and *line*,
                and the zone is as it was.
        """
        key = owner.lower()
        if self.key not in ancestors(key):
            message = f"{to_text(owner)} is outside the zone {to_text(self.key)}: remove it, or its final dot?"
            raise ZoneError(message, path, line)
        if type in {NS, DNAME} and key.startswith(b"\1*"):
            raise ZoneError(f"a wildcard cannot have {_types(type)} records (RFC 4592, 4): name each owner", path, line)
        node = self._nodes.get(key)
        rrsets = node.rrsets if node is not None else {}
        old = rrsets.get(type)
        if old is None:
            rrset = RRset(key if owner == key else owner, type, ttl, (rdata,))
        else:
            known = rdata in old.rdatas or (type in ONE_NAME and rdata.lower() in [one.lower() for one in old.rdatas])
            rrset = RRset(old.owner, type, min(ttl, old.ttl), old.rdatas if known else (*old.rdatas, rdata))
        if clash := _clash({**rrsets, type: rrset}, apex=key == self.key):
            raise ZoneError(f"{to_text(owner)}: {clash}", path, line)
        if old is not None and ttl != old.ttl:
            place = f"{path}:{line}: " if path else ""
            self._notes.append(f"{place}{to_text(owner)} {_types(type)}: several TTLs, the smallest counts")
        self._node(key).rrsets[type] = rrset
        if type == DNAME or (type == NS and key != self.key):
            self._cuts[key] = rrset

    def add_vm(self, name: bytes, vm: str, addresses: Iterable[IPv4Address | IPv6Address], ttl: int) -> None:
        """
        Make *name* the VM's: *addresses* take the place of the A and AAAA records there. Again: they are replaced.

        Args:
            name: the owner; a first label ``*`` makes it a wildcard.
            vm: what outcomes shall say.
            addresses: in the order they are answered in.
            ttl: of the addresses, in seconds.

        Raises:
            ZoneError: the name is another VM's, is outside the zone, is delegated, or is an alias.
        """
        key = name.lower()
        here = f"VM {vm}: {to_text(name)}"
        if self.key not in ancestors(key):
            raise ZoneError(f"{here} is outside the zone {to_text(self.key)}: give it a name inside, or add its zone")
        if (cut := self.cut_over(key, A)) is not None:
            what = "redirected by the DNAME" if cut.type == DNAME else "delegated by the NS records"
            raise ZoneError(f"{here} is {what} at {to_text(cut.owner)}: remove those, or give the VM another name")
        node = self._nodes.get(key)
        for alias in (CNAME, DNAME):
            if node is not None and alias in node.rrsets:
                raise ZoneError(f"{here} has a {_types(alias)} record in the zone: remove it, or name the VM otherwise")
        if node is not None and node.vm not in {None, vm}:
            raise ZoneError(f"{here} is the name of VM {node.vm} already: give one of them another name")
        node = self._node(key)
        old = {type_: node.rrsets.pop(type_) for type_ in (A, AAAA) if type_ in node.rrsets}
        if old and node.vm is None:
            self._shadowed[key] = old
        node.vm = vm
        for rrset in _address_rrsets(key if name == key else name, addresses, ttl):
            node.rrsets[rrset.type] = rrset

    def remove_vm(self, name: bytes) -> None:
        """
        Make *name* what the file says it is.

        Raises:
            ZoneError: the name is no VM's.
        """
        key = name.lower()
        node = self._nodes.get(key)
        if node is None or node.vm is None:
            raise ZoneError(f"{to_text(name)} is not the name of a VM")
        node.vm = None
        for type_ in (A, AAAA):
            node.rrsets.pop(type_, None)
        node.rrsets.update(self._shadowed.pop(key, {}))
        while not (node.rrsets or node.vm or node.below):
            del self._nodes[key]
            key = parent(key)
            node = self._nodes[key]
            node.below -= 1

    def enclose(self, apex: bytes) -> None:
        """Let the apex of a zone of ours that is inside this one exist here: names above it are no NXDOMAIN."""
        self._node(apex).below += 1

    def get(self, key: bytes) -> Node | None:
        """Return the node of exactly this name."""
        return self._nodes.get(key)

    def match(self, key: bytes) -> Node | None:
        """
        Return the node that answers for *key*, which must be in the zone and under no cut; None if there is none.

        That is its own, or the wildcard's that is a child of its closest encloser (RFC 4592, 3.3.1). A name that
        exists, with or without records, is in the way of wildcards further up.
        """
        nodes = self._nodes
        node = nodes.get(key)
        while node is None:
            key = key[key[0] + 1 :]
            if key in nodes:
                return nodes.get(b"\1*" + key)
        return node

    def cut_over(self, key: bytes, qtype: int) -> RRset | None:
        """
        Return the NS or DNAME records that decide about *key* (which must be in the zone) in the place of its own.

        Those next to the apex win (RFC 1034, 4.3.2, 3b). A DNAME is only for names below it (RFC 6672, 2.2). The DS
        records of a delegation are on our side of it (RFC 4035, 3.1.4.1).
        """
        cuts = self._cuts
        if not cuts:
            return None
        found = cuts.get(key)
        if found is not None and (found.type == DNAME or qtype == DS):
            found = None
        while key != self.key:
            key = key[key[0] + 1 :]
            found = cuts.get(key, found)
        return found

    def _node(self, key: bytes) -> Node:
        """Return the node of *key*; it exists from now on, and so do the names above it."""
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node()
            self._node(parent(key)).below += 1
        return node

    def _occluded(self, key: bytes, node: Node) -> Iterator[str]:
        """Yield a line if records of *node* are never served, since a cut is at or over it."""
        cut = self.cut_over(key, A)
        if cut is None:
            return
        served = AT_CUT if cut.owner.lower() == key else {A, AAAA} if cut.type == NS else frozenset()
        if hidden := node.rrsets.keys() - served:
            what = f"under the {_types(cut.type)} of {to_text(cut.owner)}, so never served"
            yield f"{to_text(key)} {_types(*hidden)}: {what}"

    def _lame(self, rrset: RRset) -> Iterator[str]:
        """Yield a line for each name server in *rrset* whose address the zone should say, and does not."""
        for target in {rdata.lower() for rdata in rrset.rdatas}:
            if self.key not in ancestors(target):
                continue
            cut = self.cut_over(target, A)
            node = self._nodes.get(target) if cut else self.match(target)
            if (cut is None or cut is rrset) and (node is None or not node.rrsets.keys() & {A, AAAA}):
                yield f"{to_text(rrset.owner)} NS {to_text(target)}: that has no A or AAAA record (RFC 1912, 2.8)"


class Zones:
    """All our zones. Of nested ones the closest answers."""

    def __init__(self, zones: Iterable[Zone]) -> None:
        """
        Take *zones*, none of which may be in another `Zones`.

        Raises:
            ZoneError: two have the same apex.
        """
        self._zones: dict[bytes, Zone] = {}
        for zone in zones:
            if zone.key in self._zones:
                other = self._zones[zone.key].path or "the configuration"
                raise ZoneError(f"the zone {to_text(zone.key)} is in {other} already: list it once", zone.path)
            self._zones[zone.key] = zone
        for key in self._zones:
            if key != ROOT and (outer := self.find(parent(key))) is not None:
                outer.enclose(key)

    def __iter__(self) -> Iterator[Zone]:
        """Iterate over the zones as they were given."""
        return iter(self._zones.values())

    def find(self, key: bytes) -> Zone | None:
        """Return the zone that the lower-case name *key* is in."""
        zones = self._zones
        zone = zones.get(key)
        while zone is None and key != ROOT:
            key = key[key[0] + 1 :]
            zone = zones.get(key)
        return zone

    def add_vm(self, name: bytes, vm: str, addresses: Iterable[IPv4Address | IPv6Address], ttl: int) -> None:
        """
        Make *name* the VM's in the zone that it is in (`Zone.add_vm`).

        Raises:
            ZoneError: it is in none, or its zone cannot have it.
        """
        zone = self.find(name.lower())
        if zone is None:
            raise ZoneError(f"VM {vm}: {to_text(name)} is in none of the zones: add one that it is in")
        zone.add_vm(name, vm, addresses, ttl)

    def remove_vm(self, name: bytes) -> None:
        """
        Make *name* what its zone's file says it is (`Zone.remove_vm`).

        Raises:
            ZoneError: the name is no VM's.
        """
        zone = self.find(name.lower())
        if zone is None:
            raise ZoneError(f"{to_text(name)} is not the name of a VM")
        zone.remove_vm(name)

    def lookup(self, asked: bytes, qtype: int) -> Outcome:
        """
        Return what RFC 1034, 4.3.2 says is the answer.

        Args:
            asked: the name, as it was written in the question; the answer's first owner is written so, too.
            qtype: the type. ANY gets one made-up HINFO record (RFC 8482, 4.2). AXFR and the like are not for here.
        """
        key = asked.lower()
        answer: list[RR] = []
        seen: set[bytes] = set()
        redirected: set[RRset] = set()
        while True:
            zone = self._authority(key, qtype)
            if zone is None:
                return Found(answer) if answer else Refused()
            cut = zone.cut_over(key, qtype)
            if cut is None:
                node = zone.match(key)
                if node is None:
                    return NxDomain(answer, zone.negative_soa)
                rrset = node.rrsets.get(qtype)
                if rrset is not None:
                    answer += rrset.records(asked)
                    return Found(answer, self._additional(rrset), node.vm)
                alias = node.rrsets.get(CNAME)
                if alias is None:
                    if qtype != ALL_RECORDS or not node.rrsets:
                        return NoData(answer, zone.negative_soa, node.vm)
                    answer.append(RR(asked, HINFO, zone.negative_ttl, MINIMAL_ANY))
                    return Found(answer, [], node.vm)
                answer += alias.records(asked)
                target = alias.rdatas[0]
            elif cut.type == NS:
                return self._referral(answer, cut)
            else:
                if cut not in redirected:
                    redirected.add(cut)
                    answer += cut.records()
                target = asked[: -len(cut.owner)] + cut.rdatas[0]
                if len(target) > MAX_NAME:
                    return TooLong(answer)
                answer.append(RR(asked, CNAME, cut.ttl, target))
            seen.add(key)
            asked, key = target, target.lower()
            if qtype in {CNAME, ALL_RECORDS} or key in seen or len(seen) > MAX_CHAIN:
                return Found(answer)

    def _authority(self, key: bytes, qtype: int) -> Zone | None:
        """Return the zone that answers: where both are ours, a child's DS is its parent's (RFC 4035, 3.1.4.1)."""
        zone = self.find(key)
        if qtype == DS and zone is not None and zone.key == key != ROOT:
            return self.find(parent(key)) or zone
        return zone

    def _referral(self, answer: list[RR], cut: RRset) -> Referral:
        glue: list[RR] = []
        additional: list[RR] = []
        below = cut.owner.lower()
        for target in dict.fromkeys(rdata.lower() for rdata in cut.rdatas):
            (glue if below in ancestors(target) else additional).extend(self._addresses(target, NS))
        return Referral(answer, cut.records(), glue, additional)

    def _additional(self, rrset: RRset) -> list[RR]:
        start = TARGET_AT.get(rrset.type)
        if start is None:
            return []
        targets = dict.fromkeys(rdata[start:].lower() for rdata in rrset.rdatas)
        return [record for target in targets for record in self._addresses(target, rrset.type)]

    def _addresses(self, key: bytes, wanted_by: int) -> list[RR]:
        """
        Return the addresses of the host *key*, as far as its zone has them.

        For NS that may be glue. For other types it is not, and not a VM's address either: who finds it in an
        additional section may use it without a question for it, and then the VM would not be started.
        """
        zone = self.find(key)
        node = zone.get(key) if zone is not None else None
        if zone is None or node is None:
            return []
        if wanted_by != NS and (node.vm is not None or zone.cut_over(key, A) is not None):
            return []
        return [record for type_ in (A, AAAA) if type_ in node.rrsets for record in node.rrsets[type_].records()]


def _types(*types: int) -> str:
    return ", ".join(dns.rdatatype.to_text(dns.rdatatype.RdataType.make(type_)) for type_ in sorted(types))


def _clash(rrsets: dict[int, RRset], *, apex: bool) -> str:
    """Return what is wrong with the types that stand together at one name, or ""."""
    types = rrsets.keys()
    for single in (CNAME, DNAME):
        if single in types and len(rrsets[single].rdatas) > 1:
            return f"a second {_types(single)} record: a name has one (RFC 2181, 10.1; RFC 6672, 2.4); remove the other"
    if CNAME in types and (others := types - BESIDE_CNAME - {CNAME}):
        return f"CNAME and {_types(*others)}: a CNAME record stands alone at its owner (RFC 2181, 10.1); remove one"
    if not apex and {NS, DNAME} <= types:
        return "NS and DNAME: together they are only at the apex (RFC 6672, 2.3); remove one"
    return ""


def _address_rrsets(owner: bytes, addresses: Iterable[IPv4Address | IPv6Address], ttl: int) -> Iterator[RRset]:
    """Yield an A and an AAAA RRset of those *addresses* that are such."""
    by_type: dict[int, dict[bytes, None]] = {}
    for address in addresses:
        by_type.setdefault(A if address.version == 4 else AAAA, {})[address.packed] = None
    for type_, rdatas in by_type.items():
        yield RRset(owner, type_, ttl, tuple(rdatas))
