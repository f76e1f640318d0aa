"""The interfaces by which the answers of a zone are proven: signatures, and the denial of what does not exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence  # noqa: TC003 -- zope.interface wants it at run time
from typing import Protocol

from zope.interface import Attribute, Interface

from jitsu_tw.dns.wire import RR, Node, RRset  # noqa: TC001 -- zope.interface wants it at run time


class IDenial(Interface):
    """
    Proves what one zone does not have, by NSEC (RFC 4035, 3.1.3) or NSEC3 (RFC 5155, 7.2) records.

    All names are lower-case, in the zone, and under no zone cut.
    """

    def no_name(key: bytes) -> Sequence[RRset]:
        """Return the proof that neither *key* exists nor a wildcard that matches it (NXDOMAIN)."""

    def no_type(key: bytes, qtype: int) -> Sequence[RRset]:
        """Return the proof that *key*, or the wildcard that matches it, exists and has no records of type *qtype*."""

    def not_exact(key: bytes) -> Sequence[RRset]:
        """Return the proof that *key*, which a wildcard has answered for, does not exist itself."""

    def no_ds(key: bytes) -> Sequence[RRset]:
        """Return the proof that the delegation *key* has no DS records; empty if there is none to be had."""

    def rrsets() -> Iterator[RRset]:
        """
        Yield, for a transfer, the records that prove and that no node of the zone has: made-up NSEC records, or NSEC3.

        Raises:
            RuntimeError: names were added or removed since the last record.
        """

    def changed(key: bytes) -> None:
        """Note that *key* was added to the zone or removed from it, or that its types have changed."""


class ISecurity(Interface):
    """What proves the answers of one zone to clients that validate."""

    denial: IDenial = Attribute("Proves what the zone does not have.")

    def signatures(rrset: RRset) -> Sequence[RR]:
        """
        Return the RRSIG records of *rrset*, which is the zone's or its denial's; their owner is that of *rrset*.

        Each has the TTL of the set that it signs (RFC 4034, 3). None where the zone is not an authority for *rrset*.
        """


class Content(Protocol):
    """
    The content of a zone that comes signed, as its proofs need it; `zone.Zone` describes it.

    Attributes:
        proofs: the names that own NSEC3 records, which are no names of the zone.
        shadowed: the addresses of the file that those of VMs have replaced.
        enclosed: the apexes of served zones inside this one.
    """

    key: bytes
    nodes: dict[bytes, Node]
    cuts: dict[bytes, RRset]
    proofs: dict[bytes, Node]
    shadowed: dict[bytes, dict[int, RRset]]
    enclosed: set[bytes]

    def get(self, key: bytes) -> Node | None:
        """Return the node of exactly this name."""

    def match(self, key: bytes) -> Node | None:
        """Return the node that answers for *key*."""

    def cut_over(self, key: bytes, qtype: int) -> RRset | None:
        """Return the NS or DNAME records that answer for *key* instead of its own."""
