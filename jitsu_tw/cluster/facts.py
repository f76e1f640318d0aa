"""
What the nodes of a cluster agree on, as facts of `ijitsu.ICoordinator`, to read. Pure. Of each VM, by its name::

    claims/NAME    {"node", "is": starting | up | ending | failed, "why"}    by its owner node, while that lives
    runs/NAME      {"since", "host"}    a node has started it, and it has not been seen down since
    used/NAME      when it was last used, in seconds since 1970
    asks/NAME      {"do", "word", "by"}    what another node asks of the owner node

And of nodes and hosts: ``nodes/NODE``, a claim of each node that lives, ``drained/nodes/NODE``,
``drained/hosts/HOST``, ``lost/HOST/NODE``, ``fences/HOST``, ``dead/HOST`` (`fencing`) and ``news`` (`config_sync`); of
VMs of templates, ``made/NAME``, ``gone/NAME`` and ``addresses/IP`` (`rules.reservations`).
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from jitsu_tw.rules.claims import Owner, Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.ijitsu import ICoordinator, IMachine

#: The kinds of facts that there are of a VM.
VM_FACTS: Final = ("claims", "runs", "used", "asks")

PHASES: Final[Mapping[str, Phase]] = {phase.value: phase for phase in Phase}


def key(kind: str, machine: IMachine) -> str:
    """Return the key of the fact *kind* of *machine*."""
    return f"{kind}/{quote(machine.vm.name, safe='')}"


def read(value: str | None) -> dict[str, Any]:
    """Return the mapping that *value* is in JSON; an empty one if it is none."""
    if not value:
        return {}
    try:
        parsed = json.loads(value)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


class Facts:
    """
    The facts, as they are known here.

    Attributes:
        coordinator: has them.
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

    # Nodes and hosts.

    @property
    def node(self) -> str:
        """The name of this node."""
        return self.coordinator.node

    @property
    def refusal(self) -> str:
        """Why this node starts nothing: the facts are not known, or it is drained; empty if it may."""
        is_drained = not self.lost and self.is_drained("nodes", self.node)
        return f"{self.node} is drained" if is_drained else self.lost

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """What each node that lives tells of itself, by its name."""
        facts = self.coordinator.facts
        return {key.partition("/")[2]: read(value) for key, value in facts.items() if key.startswith("nodes/")}

    @property
    def owned(self) -> Counter[str]:
        """How many VMs each node has claimed."""
        # Of a hundred thousand claims, there are a few kinds.
        claims = Counter(value for key, value in self.coordinator.facts.items() if key.startswith("claims/"))
        owned: Counter[str] = Counter()
        for value, number in claims.items():
            owned[read(value).get("node", "")] += number
        return owned

    def is_drained(self, kind: str, name: str) -> bool:
        """Return whether a node or a host is drained; *kind* is ``nodes`` or ``hosts``."""
        return f"drained/{kind}/{name}" in self.coordinator.facts

    def is_reached(self, host: str) -> bool:
        """Return whether another node, as far as it tells, reaches *host*."""
        others = self.nodes.keys() - {self.node}
        return any(f"lost/{host}/{node}" not in self.coordinator.facts for node in others)

    # VMs.

    @property
    def named(self) -> set[str]:
        """The names of VMs that have an owner, or of which a start is recorded."""
        keys = (key for key in self.coordinator.facts if key.startswith(("claims/", "runs/")))
        return {unquote(key.partition("/")[2]) for key in keys}

    def get(self, kind: str, machine: IMachine) -> str | None:
        """Return the fact *kind* of *machine*; None if there is none."""
        return self.coordinator.facts.get(key(kind, machine))

    def owner(self, machine: IMachine) -> str | None:
        """Return the node that has the claim of *machine*; None if none has."""
        return read(self.get("claims", machine)).get("node")

    def parse(self, claim: Mapping[str, Any]) -> tuple[Owner, Phase | None]:
        """Return what *claim*, as `read` from a fact, says of a VM."""
        node = claim.get("node")
        owner = Owner.NOBODY if node is None else Owner.THIS if node == self.node else Owner.OTHER
        return owner, PHASES.get(claim.get("is", ""))

    def run(self, machine: IMachine) -> dict[str, Any] | None:
        """Return when and where a node has started *machine*, which has not been seen down since; None if none has."""
        value = self.get("runs", machine)
        return None if value is None else read(value)

    def is_started(self, machine: IMachine) -> bool:
        """Return whether a node has started *machine*, which has not been seen down since."""
        return self.get("runs", machine) is not None

    def holds(self, machine: IMachine) -> bool:
        """Return whether this node has the claim of *machine*, and no other can have it; this looks at the clock."""
        return self.coordinator.holds(key("claims", machine))
