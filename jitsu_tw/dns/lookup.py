"""
Find the answer to a question in the zones.

`Zones` are all served zones; its `lookup` is the algorithm of RFC 1034, 4.3.2, with wildcards (RFC 4592) and DNAME
(RFC 6672), and always returns one of the six classes of `Outcome`. Nothing here does I/O, and nothing starts a VM: an
outcome only names the VM that the name belongs to. `zone` has the content of one zone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import attrs
from twisted.names.dns import AAAA, ALL_RECORDS, CNAME, HINFO, MX, NS, SRV, A

from jitsu_tw.dns.message import name_end
from jitsu_tw.dns.wire import DS, HTTPS, MAX_NAME, NSEC, ROOT, RR, RRSIG, SVCB, ancestors, parent, to_text
from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from jitsu_tw.dns.wire import Node, RRset
    from jitsu_tw.dns.zone import Zone

#: The offset, in the data of these types, of the host's name whose addresses are additional (RFC 1035, 3.3; RFC 2782).
TARGET_AT: Final = {NS: 0, MX: 2, SRV: 6}

#: The types that each name of a zone that Jitsu signs has itself, an alias as well (RFC 4035, 2.5).
PROOFS: Final = frozenset({NSEC, RRSIG})

#: How many CNAMEs are followed for one question.
MAX_CHAIN: Final = 16
#: How many hosts' addresses go with an HTTPS or SVCB answer, aliases included.
MAX_SERVICES: Final = 16
#: The data of the HINFO record that answers ANY (RFC 8482, 4.2).
MINIMAL_ANY: Final = b"\x07RFC8482\x00"


@attrs.frozen
class Found:
    """
    There is an answer, or a chain of CNAMEs that leaves the served zones or never ends.

    Attributes:
        answer: the CNAMEs that were followed, then the records; the first owner is written as in the question.
        additional: addresses of the hosts that the answer names.
        vm: the VM that the last name of the chain, or the wildcard that it matches, belongs to; None for no VM.
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
        answer: the CNAMEs that lead there. If there are any, they are authoritative (RFC 1034, 6.2.7).
        authority: the NS records of the delegation.
        glue: addresses of name servers inside the delegated zone: the reply needs all of them, or TC (RFC 9471).
        additional: addresses of its other name servers that are in the served zones.
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
    """The name is in none of the served zones."""

    rcode: ClassVar[int] = 5
    aa: ClassVar[bool] = False


Outcome = Found | NoData | NxDomain | Referral | TooLong | Refused


class Zones:
    """
    All served zones. Of nested zones the closest one answers.

    Attributes:
        edition: is another object after each change, so that it shows whether what was looked up may be stale.
    """

    def __init__(self, zones: Iterable[Zone]) -> None:
        """
        Serve *zones*, none of which may be in another `Zones`.

        Raises:
            ZoneError: two have the same apex.
        """
        self.edition = object()
        self._zones: dict[bytes, Zone] = {}
        for zone in zones:
            if zone.key in self._zones:
                other = self._zones[zone.key].path or "the configuration"
                raise ZoneError(f"the zone {to_text(zone.key)} is in {other} already: list it once", zone.path)
            self._zones[zone.key] = zone
        for key in self._zones:
            if key != ROOT and (outer := self.find(parent(key))) is not None:
                outer.enclose(key)

    def replace(self, others: Zones) -> None:
        """Answer from the zones of *others* from now on; *others* must not be used any more."""
        self.__dict__.update(others.__dict__)

    def put(self, zone: Zone) -> None:
        """Answer from *zone* from now on, and not from the zone that has the same apex, which must be served."""
        self.edition = object()
        self._zones[zone.key] = zone
        for key in self._zones:
            if key.endswith(zone.key) and key != zone.key and self.find(parent(key)) is zone:
                zone.enclose(key)

    def __iter__(self) -> Iterator[Zone]:
        """Iterate over the zones in the order in which they were given."""
        return iter(self._zones.values())

    def find(self, key: bytes) -> Zone | None:
        """Return the zone that the lower-case name *key* is in."""
        zones = self._zones
        zone = zones.get(key)
        while zone is None and key != ROOT:
            key = key[key[0] + 1 :]
            zone = zones.get(key)
        return zone

    def authority(self, key: bytes, qtype: int) -> Zone | None:
        """
        Return the zone that answers a question for *qtype* at the lower-case name *key*.

        For a child's DS, that is the parent if both are served (RFC 4035, 3.1.4.1).
        """
        zone = self.find(key)
        if qtype == DS and zone is not None and zone.key == key != ROOT:
            return self.find(parent(key)) or zone
        return zone

    def add_vm(self, name: bytes, vm: str, addresses: Iterable[IPv4Address | IPv6Address], ttl: int) -> None:
        """
        Give *name* to the VM *vm* in the zone that the name is in (`Zone.add_vm`).

        Raises:
            ZoneError: the name is in no zone, or its zone cannot have it.
        """
        zone = self.find(name.lower())
        if zone is None:
            raise ZoneError(f"VM {vm}: {to_text(name)} is in none of the zones: add one that it is in")
        zone.add_vm(name, vm, addresses, ttl)
        self.edition = object()

    def remove_vm(self, name: bytes) -> None:
        """
        Take *name* from its VM: its records are those of the zone's file again (`Zone.remove_vm`).

        Raises:
            ZoneError: the name belongs to no VM.
        """
        zone = self.find(name.lower())
        if zone is None:
            raise ZoneError(f"{to_text(name)} is not the name of a VM")
        zone.remove_vm(name)
        self.edition = object()

    def lookup(self, asked: bytes, qtype: int) -> Outcome:
        """
        Return the answer by the algorithm of RFC 1034, 4.3.2.

        Args:
            asked: the name, in the case of the question; the answer's first owner has the same case.
            qtype: the type. ANY gets one synthesized HINFO record (RFC 8482, 4.2). AXFR and IXFR are for `transfer`.
        """
        key = asked.lower()
        answer: list[RR] = []
        seen: set[bytes] = set()
        redirected: set[RRset] = set()
        while True:
            zone = self.authority(key, qtype)
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
                    return Found(answer, self._additional(rrset, key), node.vm)
                alias = node.rrsets.get(CNAME)
                if alias is None or (qtype in PROOFS and zone.security is not None and not zone.presigned):
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

    def _referral(self, answer: list[RR], cut: RRset) -> Referral:
        glue: list[RR] = []
        additional: list[RR] = []
        below = cut.owner.lower()
        for target in dict.fromkeys(rdata.lower() for rdata in cut.rdatas):
            (glue if below in ancestors(target) else additional).extend(self._addresses(target, NS))
        return Referral(answer, cut.records(), glue, additional)

    def _additional(self, rrset: RRset, key: bytes) -> list[RR]:
        """Return the addresses of the hosts that *rrset*, the answer for *key*, names."""
        if rrset.type in {HTTPS, SVCB}:
            return self._services(rrset, key)
        start = TARGET_AT.get(rrset.type)
        if start is None:
            return []
        targets = dict.fromkeys(rdata[start:].lower() for rdata in rrset.rdatas)
        return [record for target in targets for record in self._addresses(target, rrset.type)]

    def _services(self, rrset: RRset, key: bytes) -> list[RR]:
        """
        Return the addresses of the targets of *rrset*, HTTPS or SVCB records of *key* (RFC 9460, 4.1).

        Where one is an alias (priority 0), the records of its type at its target are added, and their targets'
        addresses. The target "." is *key* itself; an alias with it has no target (2.5).
        """
        found: list[RR] = []
        todo, known = [(rrset, key)], {key}
        targets: dict[bytes, None] = {}
        for services, owner in todo:
            for rdata in services.rdatas:
                target = rdata[2 : name_end(rdata, 2)].lower()
                is_alias = rdata[:2] == bytes(2)
                if target == ROOT and not is_alias:
                    target = owner
                if target in {ROOT, b""} or len(targets) == MAX_SERVICES:
                    continue
                targets[target] = None
                if is_alias and target not in known:
                    known.add(target)
                    node = self._host(target)
                    if node is not None and rrset.type in node.rrsets:
                        todo.append((node.rrsets[rrset.type], target))
                        found += _written(node.rrsets[rrset.type], target)
        return found + [record for target in targets for record in self._addresses(target, rrset.type)]

    def _addresses(self, key: bytes, wanted_by: int) -> list[RR]:
        """Return the addresses of the host *key* that are in its zone; for NS they may be glue or a VM's."""
        if wanted_by == NS:
            zone = self.find(key)
            node = zone.get(key) if zone is not None else None
        else:
            node = self._host(key)
        if node is None:
            return []
        return [record for type_ in (A, AAAA) if type_ in node.rrsets for record in _written(node.rrsets[type_], key)]

    def _host(self, key: bytes) -> Node | None:
        """
        Return the node that answers for the host *key*, unless that is glue or a VM's.

        A client that finds a VM's address in an additional section may use it without asking for it, and then the VM
        would not be started.
        """
        zone = self.find(key)
        if zone is None or zone.cut_over(key, A) is not None:
            return None
        node = zone.match(key)
        return None if node is None or node.vm is not None else node


def _written(rrset: RRset, key: bytes) -> list[RR]:
    """Return the records of *rrset* at *key*: with *key* as owner if they are a wildcard's, else as in the file."""
    return rrset.records(key if rrset.owner[:2] == b"\1*" else None)
