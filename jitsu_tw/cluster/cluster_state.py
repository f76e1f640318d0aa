"""What this node tells the other nodes of a cluster: the facts (`facts`), written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredLock

from jitsu_tw import __version__
from jitsu_tw.cluster.facts import Facts, key
from jitsu_tw.rules.claims import Phase

if TYPE_CHECKING:
    from jitsu_tw.ijitsu import ICoordinator, IMachine, Request


class ClusterState(Facts):
    """
    The facts, as they are known here, and as this node changes them.

    Every Deferred may fail with `errors.ClusterUnavailable`. Those of `tell`, `remove` and `record_start` fire with
    False, and nothing is written, if this node does not have the claim of the VM when that is done.
    """

    def __init__(self, coordinator: ICoordinator) -> None:
        """Read and write the facts of *coordinator*, which has not been started."""
        super().__init__(coordinator)
        self._telling: dict[str, DeferredLock] = {}

    def enlist(self, wall: float) -> Deferred[bool]:
        """Tell that this node lives since *wall*; the Deferred fires with False if another node has its name."""
        fact = {"since": round(wall, 3), "version": __version__}
        return self.coordinator.claim(f"nodes/{self.node}", json.dumps(fact))

    def claim(self, machine: IMachine) -> Deferred[bool]:
        """Claim *machine* for a start; the Deferred fires with whether this node has the claim now."""
        return self.coordinator.claim(key("claims", machine), self._claim(Phase.STARTING))

    def tell(self, machine: IMachine, phase: Phase, why: str = "") -> Deferred[bool]:
        """Tell the other nodes the *phase* of *machine*, and for a failure *why*; they hear it in this order."""
        claim = key("claims", machine)
        lock = self._telling.setdefault(machine.vm.name, DeferredLock())
        return lock.run(self.coordinator.put, {claim: self._claim(phase, why)}, claim)

    def _claim(self, phase: Phase, why: str = "") -> str:
        return json.dumps({"node": self.node, "is": phase.value} | ({"why": why} if why else {}))

    def remove(self, machine: IMachine, *kinds: str) -> Deferred[bool]:
        """Remove facts of *machine*, such as its claim."""
        if "claims" in kinds:
            self._telling.pop(machine.vm.name, None)
        return self.coordinator.put({key(kind, machine): None for kind in kinds}, key("claims", machine))

    def record_start(self, machine: IMachine, host: str, wall: float) -> Deferred[bool]:
        """Record that *machine* is started on *host* at *wall*."""
        fact = {"since": round(wall, 3), "host": host}
        return self.coordinator.put({key("runs", machine): json.dumps(fact)}, key("claims", machine))

    def request(self, machine: IMachine, request: Request, argument: str) -> Deferred[bool]:
        """Ask the owner node of *machine* for something."""
        fact = {"do": request.value, "word": argument, "by": self.node}
        return self.coordinator.put({key("asks", machine): json.dumps(fact)})
