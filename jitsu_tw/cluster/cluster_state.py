"""
What the nodes of a cluster agree on, as facts of `ijitsu.ICoordinator`; of each VM, by its name::

    claims/NAME    {"node", "is": starting | up | ending | failed, "why"}    by its owner node, while that lives
    runs/NAME      {"since", "host"}    a node has started it, and it has not been seen down since
    used/NAME      when it was last used, in seconds since 1970
    asks/NAME      {"do", "word", "by"}    what another node asks of the owner node

And of nodes and hosts: ``nodes/NODE``, a claim of each node that lives, ``drained/nodes/NODE``,
``drained/hosts/HOST``, ``lost/HOST/NODE``, ``fences/HOST``, ``dead/HOST`` (`fencing`) and ``news`` (`config_sync`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from jitsu_tw.ijitsu import ICoordinator, IMachine

#: The kinds of facts that there are of a VM.
VM_FACTS: Final = ("claims", "runs", "used", "asks")


def key(kind: str, machine: IMachine) -> str:
    """Return the key of the fact *kind* of *machine*."""
    return f"{kind}/{quote(machine.vm.name, safe='')}"


def read(value: str | None) -> dict[str, Any]:
    """Return the mapping that *value* is in JSON; an empty one if it is none."""
    try:
        parsed = json.loads(value or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


class ClusterState:
    """
    The facts, as they are known here.

    Attributes:
        coordinator: reads and writes them.
        lost: why they are not known now; empty if they are.
        connected_at: when they were known again the last time, on the clock `now`.
    """

    def __init__(self, coordinator: ICoordinator) -> None:
        """Read the facts of *coordinator*, which has not been started."""
        self.coordinator = coordinator
        self.lost = "the other nodes have not answered yet"
        self.connected_at = 0.0

    def connect(self, now: float) -> None:
        """Note that the facts are known from *now* on."""
        self.lost, self.connected_at = "", now

    def lose(self, reason: str) -> None:
        """Note that the facts are not known any more, because of *reason*."""
        self.lost = reason

    @property
    def node(self) -> str:
        """The name of this node."""
        return self.coordinator.node

    @property
    def refusal(self) -> str:
        """Why this node starts nothing: the facts are not known, or it is drained; empty if it may."""
        is_drained = not self.lost and self.is_drained("nodes", self.node)
        return f"{self.node} is drained" if is_drained else self.lost

    def get(self, kind: str, machine: IMachine) -> str | None:
        """Return the fact *kind* of *machine*; None if there is none."""
        return self.coordinator.facts.get(key(kind, machine))

    def owner(self, machine: IMachine) -> str | None:
        """Return the node that owns *machine*; None if none does."""
        return read(self.get("claims", machine)).get("node")

    def phase(self, machine: IMachine) -> str:
        """Return what the owner node tells of *machine*, as ``up``; empty if it has no owner."""
        return str(read(self.get("claims", machine)).get("is", ""))

    def run(self, machine: IMachine) -> dict[str, Any] | None:
        """Return when and where a node has started *machine*, which has not been seen down since; None if none has."""
        value = self.get("runs", machine)
        return None if value is None else read(value)

    def is_drained(self, kind: str, name: str) -> bool:
        """Return whether a node or a host is drained; *kind* is ``nodes`` or ``hosts``."""
        return f"drained/{kind}/{name}" in self.coordinator.facts

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """What each node that lives tells of itself, by its name."""
        facts = self.coordinator.facts
        return {key.partition("/")[2]: read(value) for key, value in facts.items() if key.startswith("nodes/")}

    def is_reached(self, host: str) -> bool:
        """Return whether another node, as far as it tells, reaches *host*."""
        others = self.nodes.keys() - {self.node}
        return any(f"lost/{host}/{node}" not in self.coordinator.facts for node in others)
