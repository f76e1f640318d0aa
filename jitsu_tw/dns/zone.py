"""
The content of zones.

`Zone` is one zone, from a master file or made up; the addresses of VMs replace those of the file. It has the records of
a name, and the zone cut above it; `lookup` finds the answer to a question. Apart from `Zone.read`, which reads a file,
nothing here does I/O.

A name is wire octets (`wire`). A zone is a dict from lower-case names to nodes; a name that has no records but names
below it (an empty non-terminal) is in it too, so "exists" (RFC 4592, 2.2.3; RFC 8020) is "is in the dict".
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import dns.rdatatype
from twisted.names.dns import AAAA, CNAME, DNAME, NS, PTR, SOA, A

from jitsu_tw.dns import masterfile
from jitsu_tw.dns.presigned import Presigned
from jitsu_tw.dns.wire import (
    CDNSKEY,
    CDS,
    DNSKEY,
    DS,
    KEY,
    MAX_NAME,
    NSEC,
    NSEC3,
    RR,
    RRSIG,
    Node,
    RRset,
    ancestors,
    from_text,
    parent,
    to_text,
)  # fmt: skip
from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from jitsu_tw.dns.interfaces import ISecurity

T = TypeVar("T")

#: The types that a name may have beside a CNAME (RFC 4035, 2.5; RFC 3007, 3.1.1).
BESIDE_CNAME: Final = frozenset({KEY, RRSIG, NSEC})
#: The types that are served, or are glue, at a delegation's own name; below it there is only glue.
AT_CUT: Final = frozenset({NS, DS, RRSIG, NSEC, A, AAAA})
#: The types at the apex by which a zone and its parent know the zone's keys (RFC 4034, 2; RFC 7344, 3).
KEY_TYPES: Final = (DNSKEY, CDS, CDNSKEY)

#: The most octets of one RRset in a packet, names compressed. The rest of the 65,535 of a TCP message (RFC 1035, 4.2.2)
#: is for the header, the longest question, OPT, TSIG, and as many aliases as are followed for one question.
MAX_RRSET: Final = 60_000
#: The octets of a record besides its data: a pointer, type, class, TTL and length (RFC 1035, 4.1.3).
_FIXED: Final = 12


class Zone:
    """
    One zone.

    Attributes:
        key: the apex, in lower case.
        soa: the SOA record.
        path: the file, or None.
        security: what proves the zone's answers; None if the zone is not signed.
        nodes: the names that exist, in lower case.
        cuts: the NS of delegations, and DNAMEs: they decide on names below.
        enclosed: the apexes of served zones inside this one.
        presigned: whether it comes signed, with its own DNSKEY and RRSIG: then only its file changes it.
        longest_ttl: the longest TTL, in seconds, of a record or a VM that it has or had, which caches may still have.
        proofs: the names that own its NSEC3 records if it comes so, which are no names of the zone (RFC 5155, 7.2.8).
        shadowed: the addresses of the file that those of VMs have replaced.
    """

    def __init__(self, soa: RR, path: str | Path | None = None) -> None:
        """Make a zone that consists of its SOA record."""
        self.key: bytes = soa.owner.lower()
        self.soa = soa
        self.path = path
        self.security: ISecurity | None = None
        self._report = masterfile.Report()
        self.nodes: dict[bytes, Node] = {self.key: Node()}
        self.cuts: dict[bytes, RRset] = {}
        self.enclosed: set[bytes] = set()
        self.presigned = False
        self.longest_ttl = 0
        self.proofs: dict[bytes, Node] = {}
        self.shadowed: dict[bytes, dict[int, RRset]] = {}
        self._reverse: dict[bytes, str] = {}  # the VMs that PTR records are there for
        self.add(soa.owner, SOA, soa.ttl, soa.rdata)

    @classmethod
    def read(cls, path: str | Path, origin: str | None = None) -> Zone:
        """
        Return the zone of the master file *path*.

        Args:
            path: an RFC 1035 master file in UTF-8; the paths of files it includes are relative to its folder.
            origin: the zone's name; None for the owner of the SOA record.

        Raises:
            ZoneError: the file cannot be read, or its content is not one zone. The message has all mistakes
                (`masterfile.Report`).
        """
        return finish(cls.reading(path, origin))

    @classmethod
    def reading(cls, path: str | Path, origin: str | None = None) -> Generator[None, None, Zone]:
        """Read like `read`, but yield after each record, for other work."""
        report = masterfile.Report()
        entries = []
        for entry in masterfile.read(path, origin, report):
            entries.append(entry)
            yield
        soa = next((entry for entry in entries if entry.type == SOA), None)
        if soa is None:
            if not report.wants_soa:
                message = "no SOA record: add '@ SOA ns hostmaster 1 3600 600 86400 60' below $ORIGIN"
                report.mistake(ZoneError(message, path))
            report.check()
        assert soa is not None
        if origin is not None and soa.owner.lower() != from_text(origin).lower():
            message = f"the SOA record is for {to_text(soa.owner)}, but the zone is {origin}: make them the same"
            report.mistake(ZoneError(message, soa.path, soa.line))
        zone = cls(RR(*soa[:4]), path)
        zone._report = report
        signing = (entry for entry in entries if entry.type in {DNSKEY, RRSIG})
        zone.presigned = {entry.type for entry in signing if entry.owner.lower() == zone.key} == {DNSKEY, RRSIG}
        wrong: set[tuple[bytes, int]] = set()
        for entry in entries:
            yield
            if report.full:
                break
            if entry.type == SOA and (entry.owner.lower(), entry.rdata) != (soa.owner.lower(), soa.rdata):
                message = f"a second SOA record, after line {soa.line}: remove one"
                report.mistake(ZoneError(message, entry.path, entry.line))
            elif entry.type != SOA:  # a transfer ends with the same SOA record again
                try:
                    zone.add(*entry[:4], path=entry.path, line=entry.line)
                except ZoneError as error:
                    if (rrset := (entry.owner.lower(), entry.type)) not in wrong:  # once for each RRset
                        wrong.add(rrset)
                        report.mistake(error)
        report.check()
        if zone.presigned:
            try:
                zone.secure(Presigned(zone))
            except ZoneError as error:
                raise ZoneError(error.message, path) from None
        return zone

    @classmethod
    def made_up(cls, apex: bytes, ttl: int, addresses: Iterable[IPv4Address | IPv6Address] = ()) -> Zone:
        """
        Return a zone for VMs' names that are in no file, with the times of the original's SOA (its jitsu.ml).

        Args:
            apex: the zone's name.
            ttl: of its records, in seconds, and the SOA's refresh; expire and minimum are twice that, retry is 3.
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
        """The lines that can be served but are probably mistakes, with the VMs' present addresses."""
        doubts = self._doubts()
        lines = [f"{self.path}: {line}" if self.path else line for line in islice(doubts, masterfile.MOST_LISTED)]
        return self._report.warnings + masterfile.listed(lines, len(lines) + sum(1 for _ in doubts), "warnings")

    def _doubts(self) -> Iterator[str]:
        """Yield the warnings about the whole zone."""
        if NS not in self.nodes[self.key].rrsets:
            yield f"no NS record for {to_text(self.key)} (RFC 1035, 5.2): add '@ NS ns'"
        for key, node in self.nodes.items():
            yield from self._occluded(key, node)
            if NS in node.rrsets:
                yield from self._lame(node.rrsets[NS])
        if isinstance(self.security, Presigned):
            yield from self.security.faults()

    @property
    def serial(self) -> int:
        """The serial of the SOA record (RFC 1035, 3.3.13; RFC 1982). Only `bump` changes it: adding VMs does not."""
        return int.from_bytes(self.soa.rdata[-20:-16], "big")

    @property
    def negative_ttl(self) -> int:
        """How long, in seconds, a negative answer may be cached (RFC 2308, 3 and 5)."""
        return min(int(self.soa.ttl), int.from_bytes(self.soa.rdata[-4:], "big"))

    @property
    def negative_soa(self) -> RR:
        """The SOA record for the authority section of a negative answer."""
        return RR(self.soa.owner, SOA, self.negative_ttl, self.soa.rdata)

    def records(self) -> Iterator[RR]:
        """Yield every record once, the SOA first: an AXFR (RFC 5936, 2.2) without the SOA at its end."""
        yield self.soa
        for node in (*self.nodes.values(), *self.proofs.values()):
            for rrset in tuple(node.rrsets.values()):
                if rrset.type != SOA:
                    yield from rrset.records()

    def add(
        self, owner: bytes, type: int, ttl: int, rdata: bytes, *, path: str | None = None, line: int | None = None
    ) -> None:
        """
        Add one record. Of several TTLs in an RRset the smallest is used (RFC 2181, 5.2); a duplicate is ignored.

        Raises:
            ZoneError: the record cannot be in this zone, or not beside its other records, or the RRset would be too
                long for a packet. The error has *path* and *line*; the zone is unchanged.
        """
        key = owner.lower()
        if self.key not in ancestors(key):
            message = f"{to_text(owner)} is outside the zone {to_text(self.key)}: remove it, or its final dot?"
            raise ZoneError(message, path, line)
        if type in {NS, DNAME} and key.startswith(b"\1*"):
            raise ZoneError(f"a wildcard cannot have {_types(type)} records (RFC 4592, 4): name each owner", path, line)
        proves = self.presigned and NSEC3 in {type, int.from_bytes(rdata[:2]) if type == RRSIG else 0}
        node = (self.proofs if proves else self.nodes).get(key)
        rrsets = node.rrsets if node is not None else {}
        old = rrsets.get(type)
        if old is None:
            ttls = (ttl,) if type == RRSIG else ()
            rrset = RRset(key if owner == key else owner, type, ttl, (rdata,), ttls)
        else:
            rrset = old.added(ttl, rdata)
        if clash := _clash({**rrsets, type: rrset}, apex=key == self.key) or _too_long(rrset):
            raise ZoneError(f"{to_text(owner)}: {clash}", path, line)
        if old is not None and ttl != old.ttl and type != RRSIG:
            self._report.warn(f"{to_text(owner)} {_types(type)}: several TTLs, the smallest counts", path, line)
        (self.proofs.setdefault(key, Node()) if proves else self._node(key)).rrsets[type] = rrset
        self.longest_ttl = max(self.longest_ttl, ttl)
        if type == DNAME or (type == NS and key != self.key):
            self.cuts[key] = rrset
        self._changed(key)

    def add_vm(self, name: bytes, vm: str, addresses: Iterable[IPv4Address | IPv6Address], ttl: int) -> None:
        """
        Give *name* to a VM: *addresses* replace the A and AAAA records there. A second call replaces them again.

        If the zone comes signed, and has the same addresses, they stay as they are signed, with their TTL.

        Args:
            name: the owner; a first label ``*`` makes it a wildcard.
            vm: the VM's name, for outcomes.
            addresses: in the order of the answer.
            ttl: of the addresses, in seconds.

        Raises:
            ZoneError: the name is another VM's, is outside the zone, is delegated, or is an alias; or the addresses do
                not fit into a packet.
        """
        key = name.lower()
        rrsets = list(_address_rrsets(key if name == key else name, addresses, ttl))
        if why := self._why_no_vm(key, vm, rrsets):
            raise ZoneError(f"VM {vm}: {to_text(name)}{why}")
        node = self._node(key)
        old = {type_: node.rrsets.pop(type_) for type_ in (A, AAAA) if type_ in node.rrsets}
        if old and node.vm is None:
            self.shadowed[key] = old
        node.vm = vm
        self.longest_ttl = max(self.longest_ttl, ttl)
        filed = self.shadowed.get(key, {}) if self.presigned else {}
        for rrset in rrsets:
            own = filed.get(rrset.type, rrset)
            node.rrsets[rrset.type] = own if set(own.rdatas) == set(rrset.rdatas) else rrset
        self._changed(key)

    def _why_no_vm(self, key: bytes, vm: str, rrsets: Iterable[RRset]) -> str:
        """Return why *key* cannot be the name of *vm*, with the addresses *rrsets*: the end of a sentence; or ""."""
        if self.key not in ancestors(key):
            return f" is outside the zone {to_text(self.key)}: give it a name inside, or add its zone"
        if (cut := self.cut_over(key, A)) is not None:
            what = "redirected by the DNAME" if cut.type == DNAME else "delegated by the NS records"
            return f" is {what} at {to_text(cut.owner)}: remove those, or give the VM another name"
        node = self.nodes.get(key)
        if node is not None:
            for alias in (CNAME, DNAME):
                if alias in node.rrsets:
                    return f" has a {_types(alias)} record in the zone: remove it, or name the VM otherwise"
            if node.vm not in {None, vm}:
                return f" is the name of VM {node.vm} already: give one of them another name"
        reason = next(filter(None, map(_too_long, rrsets)), "")
        return f": {reason}" if reason else ""

    def remove_vm(self, name: bytes) -> None:
        """
        Take *name* from its VM: its records are those of the file again.

        Raises:
            ZoneError: the name belongs to no VM.
        """
        key = name.lower()
        node = self.nodes.get(key)
        if node is None or node.vm is None:
            raise ZoneError(f"{to_text(name)} is not the name of a VM")
        node.vm = None
        for type_ in (A, AAAA):
            node.rrsets.pop(type_, None)
        node.rrsets.update(self.shadowed.pop(key, {}))
        self._prune(key)
        self._changed(key)

    def _prune(self, key: bytes) -> None:
        """Remove the node of *key*, and those above it, that have nothing more."""
        node = self.nodes[key]
        while not (node.rrsets or node.vm or node.below):
            del self.nodes[key]
            key = parent(key)
            node = self.nodes[key]
            node.below -= 1

    def add_reverse(self, key: bytes, vm: str, target: bytes, ttl: int) -> None:
        """
        Make *target* the PTR record of *key*, a name in the zone, while the VM *vm* exists.

        Nothing is done where the zone has a PTR record or an alias there, is delegated or redirected, or comes signed.
        """
        node = self.nodes.get(key)
        is_free = node is None or node.rrsets.keys().isdisjoint({PTR, CNAME})
        if is_free and not self.presigned and self.cut_over(key, PTR) is None:
            self._node(key).rrsets[PTR] = RRset(key, PTR, ttl, (target,))
            self.longest_ttl = max(self.longest_ttl, ttl)
            self._reverse[key] = vm
            self._changed(key)

    def remove_reverse(self, key: bytes, vm: str) -> None:
        """Remove the PTR record of *key*, if it is there because of the VM *vm*."""
        if self._reverse.get(key) == vm:
            del self._reverse[key]
            del self.nodes[key].rrsets[PTR]
            self._prune(key)
            self._changed(key)

    def secure(self, security: ISecurity | None) -> None:
        """Prove the zone's answers by *security* from now on; None: by nothing."""
        self.security = security

    def put_keys(self, rrsets: Iterable[RRset]) -> None:
        """Make *rrsets*, of the types in `KEY_TYPES`, the only records of these types at the apex."""
        node = self.nodes[self.key]
        for type_ in KEY_TYPES:
            node.rrsets.pop(type_, None)
        node.rrsets.update({rrset.type: rrset for rrset in rrsets})
        self._changed(self.key)

    def _changed(self, key: bytes) -> None:
        """Tell the denial of what does not exist that the records at *key* have changed."""
        if self.security is not None:
            self.security.denial.changed(key)

    def bump(self) -> None:
        """
        Raise the serial by one; after 4294967295 comes 0, which is greater (RFC 1982, 3.1 and 3.2).

        The SOA record of a zone that comes signed is signed: it stays as it is.
        """
        self._set_serial((self.serial + 1) % 2**32)

    def _set_serial(self, serial: int) -> None:
        if self.presigned:
            return
        rdata = self.soa.rdata[:-20] + serial.to_bytes(4, "big") + self.soa.rdata[-16:]
        self.soa = RR(self.soa.owner, SOA, self.soa.ttl, rdata)
        rrsets = self.nodes[self.key].rrsets
        rrsets[SOA] = attrs.evolve(rrsets[SOA], rdatas=(rdata,))

    def raise_to(self, serial: int) -> None:
        """Raise the serial to *serial*, unless it is that or later (RFC 1982, 3.2), or the zone comes signed."""
        if not 0 <= (self.serial - serial) % 2**32 < 2**31:
            self._set_serial(serial % 2**32)

    def enclose(self, apex: bytes) -> None:
        """Make *apex*, of a served zone inside this one, exist here, so that names above it are not NXDOMAIN."""
        self._node(apex).below += 1
        self.enclosed.add(apex)
        self._changed(apex)

    def get(self, key: bytes) -> Node | None:
        """Return the node of exactly this name; None if it does not exist."""
        return self.nodes.get(key)

    def match(self, key: bytes) -> Node | None:
        """
        Return the node that answers for *key*, which must be in the zone and under no cut; None if there is none.

        It is the name's own, or that of the wildcard below its closest encloser (RFC 4592, 3.3.1). A name that exists,
        with or without records, hides wildcards further up.
        """
        nodes = self.nodes
        node = nodes.get(key)
        while node is None:
            key = key[key[0] + 1 :]
            if key in nodes:
                return nodes.get(b"\1*" + key)
        return node

    def cut_over(self, key: bytes, qtype: int) -> RRset | None:
        """
        Return the NS or DNAME records that answer for *key* (which must be in the zone) instead of its own.

        Those closest to the apex count (RFC 1034, 4.3.2, 3b). A DNAME is only for names below it (RFC 6672, 2.2). The
        DS records of a delegation belong to this zone (RFC 4035, 3.1.4.1).
        """
        cuts = self.cuts
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
        """Return the node of *key*; create it and those of the names above it where they are missing."""
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node()
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
        """Yield a line for each name server in *rrset* whose address should be in the zone, and is not."""
        for target in {rdata.lower() for rdata in rrset.rdatas}:
            if self.key not in ancestors(target):
                continue
            cut = self.cut_over(target, A)
            node = self.nodes.get(target) if cut else self.match(target)
            if (cut is None or cut is rrset) and (node is None or not node.rrsets.keys() & {A, AAAA}):
                yield f"{to_text(rrset.owner)} NS {to_text(target)}: that has no A or AAAA record (RFC 1912, 2.8)"


def finish(steps: Generator[None, None, T]) -> T:
    """Run the generator *steps* to its end, and return its result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: T = end.value
        return result


def _types(*types: int) -> str:
    return ", ".join(dns.rdatatype.to_text(dns.rdatatype.RdataType.make(type_)) for type_ in sorted(types))


def _clash(rrsets: dict[int, RRset], *, apex: bool) -> str:
    """Return what is wrong with the types that one name has, or ""."""
    types = rrsets.keys()
    for single in (CNAME, DNAME):
        if single in types and len(rrsets[single].rdatas) > 1:
            return f"a second {_types(single)} record: a name has one (RFC 2181, 10.1; RFC 6672, 2.4); remove the other"
    if CNAME in types and (others := types - BESIDE_CNAME - {CNAME}):
        return f"CNAME and {_types(*others)}: a CNAME record stands alone at its owner (RFC 2181, 10.1); remove one"
    if not apex and {NS, DNAME} <= types:
        return "NS and DNAME: together they are only at the apex (RFC 6672, 2.3); remove one"
    return ""


def _too_long(rrset: RRset) -> str:
    """Return what is wrong with the size of *rrset*, or ""."""
    size = sum(map(len, rrset.rdatas)) + _FIXED * len(rrset.rdatas)
    if size <= MAX_RRSET:
        return ""
    return f"{_types(rrset.type)} records of {size:,} octets: a message has room for {MAX_RRSET:,}; remove some"


def _address_rrsets(owner: bytes, addresses: Iterable[IPv4Address | IPv6Address], ttl: int) -> Iterator[RRset]:
    """Yield an A RRset of the IPv4 *addresses* and an AAAA RRset of the IPv6 ones."""
    by_type: dict[int, dict[bytes, None]] = {}
    for address in addresses:
        by_type.setdefault(A if address.version == 4 else AAAA, {})[address.packed] = None
    for type_, rdatas in by_type.items():
        yield RRset(owner, type_, ttl, tuple(rdatas))
