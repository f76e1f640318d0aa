"""``/v1/nodes`` and ``/v1/hosts``: the Jitsus that serve the zones together, and the hosts that VMs may run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from twisted.web.server import Request

    from jitsu_tw.vm.fleet import Fleet


def nodes(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the nodes that serve the zones, this one among them, by name."""
    return [attrs.asdict(one) for one in fleet.cluster.nodes]


def hosts(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the hosts, in the order of the configuration."""
    return [attrs.asdict(one) for one in fleet.cluster.hosts]


#: What lists the members of each kind.
MEMBERS: Final = {"nodes": nodes, "hosts": hosts}


async def drain(fleet: Fleet, what: str, _: Request, name: str, *, undo: bool = False) -> list[dict[str, Any]]:
    """Take the node or the host *name* out of service, or back; return all nodes or hosts."""
    await fleet.cluster.drain(what, name, undo=undo)
    return MEMBERS[what](fleet)
