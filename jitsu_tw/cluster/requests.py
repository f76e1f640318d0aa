"""What this node asks of the owner node of a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from jitsu_tw.ijitsu import Request
from jitsu_tw.rules.lifecycle import STOPS, State

if TYPE_CHECKING:
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IMachine


class Requests:
    """The requests, and who waits for stops."""

    def __init__(self, state: ClusterState) -> None:
        """Write them into *state*."""
        self._state = state
        self._stopping: dict[str, list[Deferred[State]]] = {}

    def send(self, machine: IMachine, request: Request, argument: str = "") -> Deferred[State]:
        """Ask the owner node of *machine*, another one, for something; after a stop, fire when it has stopped."""
        sent = self._state.request(machine, request, argument)
        if request is not Request.STOP:
            return sent.addCallback(lambda _: machine.state)
        stopped: Deferred[State] = Deferred()
        self._stopping.setdefault(machine.vm.name, []).append(stopped)
        return sent.addCallback(lambda _: stopped)

    def moved(self, machine: IMachine) -> None:
        """Answer those who wait for the stop of *machine*, if its state ends that."""
        if machine.state not in STOPS | {State.UP, State.WAITING}:
            for stopped in self._stopping.pop(machine.vm.name, ()):
                stopped.callback(machine.state)
