"""
Questions to name servers, for `jitsuctl doctor` and `jitsuctl check --connect`. Every function blocks, in a thread.

No question summons a VM: they are of the types TXT and NS, for which a VM's name has no records.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver

from jitsu_tw.ctl.diagnosis.findings import Answer, Delegation

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that a server has to answer, and how many servers of a parent zone are asked.
ANSWERS_WITHIN: Final = 2.0
MOST_SERVERS: Final = 2


def servers() -> tuple[list[str], str]:
    """Return the addresses of this machine's resolver (resolv.conf(5)), and why there are none."""
    try:
        found = dns.resolver.Resolver()
    except (dns.exception.DNSException, OSError) as error:
        return [], str(error)
    return [str(one) for one in found.nameservers], ""


def probe(zone: str, hosts: Sequence[str], port: int = 53, *, recursive: bool = False) -> Answer:
    """
    Ask for a name in *zone* that is not there, one of *hosts* after the other until one answers.

    The name is new each time, so that the answer, with the zone's SOA record, comes from the zone's own server.
    """
    question = dns.message.make_query(f"_jitsu-{secrets.token_hex(4)}.{zone.strip('.')}", "TXT")
    if not recursive:
        question.flags &= ~dns.flags.RD
    error = "there is no name server to ask"
    for host in hosts:
        try:
            answer, _ = dns.query.udp_with_fallback(question, host, ANSWERS_WITHIN, port)
        except dns.exception.Timeout:
            error = f"{host} does not answer within {ANSWERS_WITHIN:g} s"
        except (dns.exception.DNSException, OSError, EOFError) as failure:
            error = f"{host}: {failure}"
        else:
            return _answer(answer)
    return Answer(error)


def _answer(message: dns.message.Message) -> Answer:
    rcode = dns.rcode.to_text(message.rcode())
    for rrset in message.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return Answer("", rcode, _text(rrset.name), _text(rrset[0].mname), rrset[0].serial)
    return Answer("", rcode)


def _text(name: dns.name.Name) -> str:
    """Return *name* in lower case, without its final dot."""
    return name.to_text(omit_final_dot=True).lower()


def delegation(zone: str) -> Delegation:
    """Return what the servers of the parent of *zone* say, which this machine's resolver finds."""
    try:
        parent, names = _parent(dns.name.from_text(zone))
        hosts = [str(one) for name in names[:MOST_SERVERS] for one in _resolve(name, "A")]
    except (dns.exception.DNSException, OSError) as error:
        return Delegation(f"the servers of its parent zone cannot be found ({type(error).__name__})")
    question = dns.message.make_query(zone, "NS")
    question.flags &= ~dns.flags.RD
    for host in hosts[:MOST_SERVERS]:
        try:
            answer, _ = dns.query.udp_with_fallback(question, host, ANSWERS_WITHIN)
        except (dns.exception.DNSException, OSError, EOFError):
            continue
        return _delegation(answer)
    return Delegation(f"no server of its parent zone {parent} answers")


def _parent(name: dns.name.Name) -> tuple[str, list[str]]:
    """
    Return the zone above *name*, and the names of its servers.

    Raises:
        dns.exception.DNSException: the resolver does not know.
    """
    parent = name.parent()
    while True:
        try:
            return parent.to_text(), [one.to_text() for one in _resolve(parent.to_text(), "NS")]
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
            if parent == dns.name.root:
                raise
            parent = parent.parent()


def _resolve(name: str, kind: str) -> dns.resolver.Answer:
    return dns.resolver.resolve(name, kind, lifetime=ANSWERS_WITHIN, search=False)


def _delegation(answer: dns.message.Message) -> Delegation:
    """Return the delegation in an answer to a question for NS records, which are an answer or a referral."""
    names: list[str] = []
    for rrset in (*answer.answer, *answer.authority):
        if rrset.rdtype == dns.rdatatype.NS and rrset.name == answer.question[0].name:
            names += [_text(one.target) for one in rrset]
    glue: dict[str, tuple[str, ...]] = {}
    for rrset in answer.additional:
        name = _text(rrset.name)
        if name in names and rrset.rdtype in {dns.rdatatype.A, dns.rdatatype.AAAA}:
            glue[name] = (*glue.get(name, ()), *(one.address for one in rrset))
    return Delegation("", tuple(names), glue)
