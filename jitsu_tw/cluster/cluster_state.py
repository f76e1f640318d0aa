"""
What several Jitsus agree on of each VM, as facts of `ijitsu.ICoordinator`, by the VM's name::

    claims/NAME    {"node", "is": starting | up | ending | failed, "why"}    of its owner, for as long as that lives
    runs/NAME      {"since", "host"}    it was started through us, and has not been seen down since
    used/NAME      when it was last used, in seconds since 1970
    asks/NAME      {"do", "word", "by"}    what somebody wants of its owner

And of themselves: ``nodes/NODE``, a claim of each that lives, ``drained/nodes/NODE``, ``drained/hosts/HOST``,
``lost/HOST/NODE``, ``fences/HOST``, ``dead/HOST`` (`fencing`) and ``news`` (`config_sync`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from jitsu_tw.ijitsu import ICoordinator
    from jitsu_tw.vm.machine import Machine

#: What is agreed on for each VM.
VM_FACTS: Final = ("claims", "runs", "used", "asks")


def key(room: str, machine: Machine) -> str:
    """Return what a fact of *machine*'s is found by."""
    return f"{room}/{quote(machine.vm.name, safe='')}"


def read(value: str | None) -> dict[str, Any]:
    """Return what a fact says; nothing if it is not there, or not one of ours."""
    try:
        said = json.loads(value or "{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


class ClusterState:
    """What is agreed on, as it is known here."""

    def __init__(self, coordinator: ICoordinator) -> None:
        """Ask *coordinator*."""
        self._coordinator = coordinator

    def get(self, room: str, machine: Machine) -> str | None:
        """Return a fact of *machine*'s."""
        return self._coordinator.facts.get(key(room, machine))

    def owner(self, machine: Machine) -> str | None:
        """Return the node that has *machine*; None if none has."""
        return read(self.get("claims", machine)).get("node")

    def says(self, machine: Machine) -> str:
        """Return how *machine* is in the words of who has it; nothing if nobody has."""
        return str(read(self.get("claims", machine)).get("is", ""))

    def runs(self, machine: Machine) -> dict[str, Any] | None:
        """Return since when *machine* runs, and where, as far as we have started it; None if we have not."""
        said = self.get("runs", machine)
        return None if said is None else read(said)
