"""``/v1/nodes`` and ``/v1/hosts``: the Jitsus that serve the zones together, and the hosts that VMs may run on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.cluster.cluster_state import read
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from twisted.web.server import Request

    from jitsu_tw.vm.fleet import Fleet


def nodes(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the nodes, this one among them, by name."""
    sharing = fleet.sharing
    coordinator, facts = sharing.coordinator, sharing.coordinator.facts
    # Of a hundred thousand claims, there are a few kinds.
    claims = Counter(value for key, value in facts.items() if key.startswith("claims/"))
    has: Counter[str] = Counter()
    for value, number in claims.items():
        has[read(value).get("node", "")] += number
    if sharing.alone:
        has[coordinator.node] = fleet.journal.states[State.UP]
    found = {key.partition("/")[2]: read(value) for key, value in facts.items() if key.startswith("nodes/")}
    found.setdefault(coordinator.node, {})
    drained = {key.rpartition("/")[2] for key in facts if key.startswith("drained/nodes/")}
    return [
        {
            "name": name,
            "here": name == coordinator.node,
            "problem": (sharing.why_apart or coordinator.trouble or None) if name == coordinator.node else None,
            "drained": name in drained,
            "vms": has[name],
            "since": said.get("since"),
            "version": said.get("version"),
        }
        for name, said in sorted(found.items())
    ]


def hosts(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the hosts, in the order of the configuration."""
    if fleet.hosts is None:
        return []
    up = (machine for machine in fleet.machines.values() if machine.state is State.UP)
    at = Counter(fleet.hosts.at(machine.uuid) for machine in up)
    return [
        {
            "name": name,
            "problem": "it is dead: fenced" if name in fleet.hosts.dead else fleet.hosts.away.get(name),
            "drained": fleet.hosts.is_drained(name),
            "vms": at[name],
        }
        for name in fleet.hosts
    ]


#: What lists the members of each kind.
MEMBERS: Final = {"nodes": nodes, "hosts": hosts}


async def drain(fleet: Fleet, what: str, _: Request, name: str, *, undo: bool = False) -> list[dict[str, Any]]:
    """Take the node or the host *name* out of service, or back; return all nodes or hosts."""
    await fleet.moves.drain(what, name, undo=undo)
    return MEMBERS[what](fleet)
