"""
The VMs that templates have made in a cluster, and what a node does about one of them. Pure.

The nodes agree on each by facts of `ijitsu.ICoordinator`, which outlive the nodes::

    made/NAME       {"ips", "used"}    the VM's addresses, and when it was last used, in seconds since 1970
    addresses/IP    NAME               of each of its addresses
    gone/NAME       {"by", "ips"}      the node `by` is removing it; its addresses are free when that is done
                    {"at"}             it was removed then

A VM has a fact ``made`` or a fact ``gone``, never both: one transaction replaces the one by the other. A missing fact
does not mean that the VM was removed, for etcd may have lost its data: a node that has the VM creates the fact again.
Therefore the nodes remember for `KEPT` seconds that a VM was removed, for nodes that were away.
"""

from __future__ import annotations

import enum
import json
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from jitsu_tw.networks import Address

#: Seconds for which the nodes remember that a VM was removed, and the most such VMs that they remember. A node that was
#: away for longer tells the others of the VM again, which is removed when nobody uses it.
KEPT: Final = 30 * 86400.0
MOST_KEPT: Final = 10_000


@attrs.frozen
class Reservation:
    """
    What the nodes have agreed on about a VM of a template.

    Attributes:
        ips: its addresses; none if it was removed.
        used: when it was last used, in seconds since 1970; a use soon after that is not told (`share_use`).
        remover: the node that is removing it; None if none is.
        removed: when it was removed, in seconds since 1970; None if it was not.
    """

    ips: tuple[Address, ...] = ()
    used: float = 0.0
    remover: str | None = None
    removed: float | None = None


class Step(enum.Enum):
    """What a node does about a VM of a template."""

    NOTHING = "the node has the VM as the others have it"
    PUBLISH = "tell the other nodes of the VM, which they do not know"
    ADOPT = "add the VM, which another node has made"
    REPLACE = "drop the VM, which other nodes have removed and made anew, with other addresses"
    DROP = "drop the VM, which another node removes, or has removed"
    REMOVE = "remove the VM: this node has begun to, or the node that had begun is gone"


def reservation(made: str | None, gone: str | None) -> Reservation | None:
    """Return what the facts *made* and *gone* of a VM say; None if they say nothing that can be understood."""
    for value in (made, gone):
        try:
            fact = json.loads(value or "")
            if "at" in fact:
                return Reservation(removed=float(fact["at"]))
            ips = tuple(ip_address(ip) for ip in fact["ips"])
            if ips:
                return Reservation(ips, float(fact.get("used", 0.0)), str(fact["by"]) if value is gone else None)
        except (ValueError, TypeError, KeyError):
            continue
    return None


def made(ips: Iterable[Address], used: float) -> str:
    """Return the fact of a VM with these addresses, which was *used* then."""
    return _fact(ips=list(map(str, ips)), used=round(used, 3))


def going(ips: Iterable[Address], by: str) -> str:
    """Return the fact of a VM that the node *by* is removing."""
    return _fact(ips=list(map(str, ips)), by=by)


def gone(at: float) -> str:
    """Return the fact of a VM that was removed then."""
    return _fact(at=round(at, 3))


def _fact(**values: Any) -> str:
    return json.dumps(values)


def step(known: Reservation | None, here: Collection[Address] | None, *, removes: bool) -> Step:
    """
    Return what a node does about a VM.

    Args:
        known: what the nodes have agreed on; None for nothing.
        here: the VM's addresses at this node; None if it has no such VM.
        removes: whether the node that is removing it, if there is one, is this node, or is gone.
    """
    if known is None:
        return Step.NOTHING if here is None else Step.PUBLISH
    if known.removed is not None:
        return Step.NOTHING if here is None else Step.DROP
    if known.remover is not None:
        if removes:
            return Step.REMOVE
        return Step.NOTHING if here is None else Step.DROP
    if here is None:
        return Step.ADOPT
    return Step.NOTHING if set(here) == set(known.ips) else Step.REPLACE
