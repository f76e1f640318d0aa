"""
Add to a finished reply what proves it: RRSIG records behind the RRsets, and proofs of what does not exist.

`complete` is one step for all replies, whatever resolver made them: it finds the RRsets of a reply in the zones again.
In a zone without an `ISecurity` it adds nothing. RFC 4035, 3.1 says what a reply needs.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

import attrs
from twisted.names.dns import AAAA, ALL_RECORDS, AXFR, CNAME, ENAME, HINFO, IN, IXFR, NS, SOA, A

from jitsu_tw.dns.lookup import MINIMAL_ANY
from jitsu_tw.dns.message import NOERROR
from jitsu_tw.dns.wire import DS, NSEC, RR, RRSIG, next_closer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jitsu_tw.dns.interfaces import ISecurity
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.message import Query
    from jitsu_tw.dns.reply import Reply
    from jitsu_tw.dns.wire import Question, RRset
    from jitsu_tw.dns.zone import Zone

#: Questions of these types are answered by one RRset of the name (RFC 8482, 4.1 and 7), or are about proofs.
TYPES: Final = frozenset({ALL_RECORDS, NSEC, RRSIG})

_ADDRESSES: Final = frozenset({A, AAAA})


def complete(query: Query, reply: Reply, zones: Zones) -> Reply:
    """
    Return *reply*, an answer from *zones*, with signatures and proofs if *query* has DO (RFC 4035, 3.1).

    Replies of other servers, errors and transfers are returned as they are. In a signed zone, a question for ANY, NSEC
    or RRSIG is answered by records that can be proven, with DO or without it.
    """
    question = query.question
    is_plain = question.cls == IN and question.type not in {AXFR, IXFR}
    if reply.ra or not is_plain:
        return reply
    completion = _Completion(question, zones)
    reply = completion.answered(reply)
    return completion.proven(reply) if query.edns is not None and query.edns.do else reply


class _Completion:
    """
    The completion of one reply.

    Attributes:
        question: the question.
        last: the name in lower case at which the chain of CNAMEs in the answer ends.
    """

    def __init__(self, question: Question, zones: Zones) -> None:
        """Complete a reply to *question* from *zones*."""
        self.question, self.last = question, question.key
        self._zones = zones
        self._proofs: dict[RRset, ISecurity] = {}  # each once, in the order of the reply

    def answered(self, reply: Reply) -> Reply:
        """Return *reply* with an answer that can be proven to a question of one of `TYPES`."""
        qtype, owner = self.question.type, self.question.asked
        for record in reply.answer:
            if record.type == CNAME and qtype not in {CNAME, ALL_RECORDS} and record.owner.lower() == self.last:
                self.last, owner = record.rdata.lower(), record.rdata
        zone = self._secure(self.last, qtype)
        if zone is None or qtype not in TYPES or reply.rcode != NOERROR:
            return reply
        made_up = [record for record in reply.answer if record.type == HINFO and record.rdata == MINIMAL_ANY]
        if not made_up and not any(record.type == SOA for record in reply.authority):
            return reply
        chosen = _chosen(zone, self.last, qtype)
        if chosen is None:
            return reply
        answer = [record for record in reply.answer if record not in made_up]
        if qtype == RRSIG and zone.security is not None:
            answer += _written(zone.security.signatures(chosen), owner, chosen.ttl)
        else:
            answer += chosen.records(owner)
        return attrs.evolve(reply, answer=answer, authority=())

    def proven(self, reply: Reply) -> Reply:
        """Return *reply* with signatures and proofs."""
        answer = [record for records in _rrsets(reply.answer) for record in (*records, *self._signed(records))]
        current = [self._current(record) for record in reply.authority]
        authority = [record for records in _rrsets(current) for record in (*records, *self._signed(records))]
        rcode = reply.rcode
        first = reply.authority[0] if reply.authority else None
        if first is not None and first.type == NS:
            authority += self._delegated(first.owner.lower())
        elif first is not None and first.type == SOA:
            rcode = self._denied(rcode)
        for rrset, security in self._proofs.items():
            authority += [*rrset.records(), *_written(security.signatures(rrset), rrset.owner, rrset.ttl)]
        additional = [*reply.additional]  # signatures last: they are the first to be left out
        for records in _rrsets(reply.additional):
            additional += self._signed(records, expand=False)
        return attrs.evolve(reply, rcode=rcode, answer=answer, authority=authority, additional=additional)

    def _secure(self, key: bytes, qtype: int) -> Zone | None:
        """Return the zone that is the authority for records of type *qtype* at *key*; None if it is not signed."""
        zone = self._zones.authority(key, qtype)
        return None if zone is None or zone.security is None else zone

    def _current(self, record: RR) -> RR:
        """Return *record*; an SOA as its zone has it now: the serial may have been raised while a client waited."""
        zone = self._secure(record.owner.lower(), SOA) if record.type == SOA else None
        return record if zone is None else zone.negative_soa

    def _signed(self, records: Sequence[RR], *, expand: bool = True) -> Iterator[RR]:
        """
        Yield the signatures of *records*, an RRset; if a wildcard answers, note the proof that its name is no other's.

        There are none for what the zones do not have: a CNAME that DNAME makes (RFC 6672, 5.3.1), records that have
        changed meanwhile; nor, without *expand*, for what a wildcard answers.
        """
        key, rtype = records[0].owner.lower(), records[0].type
        zone = self._secure(key, rtype)
        if zone is None or zone.security is None or rtype == RRSIG:
            return
        node = zone.match(key)
        rrset = node.rrsets.get(rtype) if node is not None and (expand or zone.get(key) is not None) else None
        if rtype == NSEC and node is not None and rrset is None:  # the chain has answered
            rrset = _nsec(zone, zone.security, key)
        if rrset is None or rrset.rdatas != tuple(record.rdata for record in records):
            return
        yield from _written(zone.security.signatures(rrset), records[0].owner, records[0].ttl)
        if rrset.owner.lower() != key:
            self._prove(zone, zone.security.denial.not_exact(key))

    def _delegated(self, key: bytes) -> Iterable[RR]:
        """Return the signed DS records of the delegation *key*, or note the proof that there are none."""
        zone = self._secure(key, DS)
        node = zone.get(key) if zone is not None else None
        if zone is None or zone.security is None or node is None:
            return ()
        if DS not in node.rrsets:
            self._prove(zone, zone.security.denial.no_ds(key))
            return ()
        ds = node.rrsets[DS].records()
        return *ds, *self._signed(ds)

    def _denied(self, rcode: int) -> int:
        """Note the proof that there is no answer; return the response code, as the zones are now."""
        zone = self._secure(self.last, self.question.type)
        if zone is None or zone.security is None:
            return rcode
        denial, node = zone.security.denial, zone.match(self.last)
        if node is None or (rcode == ENAME and not node.rrsets):  # such a node may be a template's
            self._prove(zone, denial.no_name(self.last))
            return ENAME
        self._prove(zone, denial.no_type(self.last, self.question.type))
        return NOERROR

    def _prove(self, zone: Zone, proofs: Iterable[RRset]) -> None:
        """Add the *proofs* of *zone*."""
        if zone.security is not None:
            self._proofs.update(dict.fromkeys(proofs, zone.security))


def _chosen(zone: Zone, key: bytes, qtype: int) -> RRset | None:
    """
    Return the RRset that answers a question for one of `TYPES` at *key*; None if there is none.

    It is not an address of a VM, if there is any other: a client may use that, and the VM would not be started.
    """
    node = zone.match(key)
    if node is None or zone.security is None:
        return None
    nsec = _nsec(zone, zone.security, key)
    if qtype == NSEC:
        return nsec
    types = [rtype for rtype in node.rrsets if rtype not in {RRSIG, NSEC}]
    others = types if node.vm is None else [rtype for rtype in types if rtype not in _ADDRESSES]
    if others:
        return node.rrsets[others[0]]
    if nsec is None and types:
        return node.rrsets[types[0]]
    return nsec


def _nsec(zone: Zone, security: ISecurity, key: bytes) -> RRset | None:
    """Return the NSEC record of *key*, or of the wildcard that matches it; None if there is none (RFC 4592, 4.7)."""
    owners = {key} if zone.get(key) is not None else {key, b"\1*" + next_closer(key, zone.nodes)[1]}
    proofs = security.denial.no_type(key, NSEC)
    return next((rrset for rrset in proofs if rrset.type == NSEC and rrset.owner.lower() in owners), None)


def _rrsets(records: Iterable[RR]) -> Iterator[list[RR]]:
    """Yield the RRsets of *records*, a section."""
    for _, group in groupby(records, key=lambda record: (record.owner.lower(), record.type)):
        yield list(group)


def _written(signatures: Iterable[RR], owner: bytes, ttl: int) -> Iterator[RR]:
    """Yield *signatures* with the owner and the TTL of the RRset in the reply (RFC 4034, 3)."""
    for record in signatures:
        yield RR(owner, RRSIG, min(record.ttl, ttl), record.rdata)
