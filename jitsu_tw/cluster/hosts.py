"""On which host a VM is seen, and whether this node can see what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IMachine


class Hosts:
    """What the hosts of this node see of VMs."""

    def __init__(self, pool: Pool, state: ClusterState) -> None:
        """Ask *pool*; *state* knows which of its hosts other nodes reach."""
        self._pool, self._state = pool, state

    def has(self, machine: IMachine) -> bool:
        """Return whether *machine* is on hosts."""
        return machine.backend is self._pool

    def host_of(self, machine: IMachine) -> str:
        """Return the host that *machine* is seen on; empty if it is on none."""
        return self._pool.at(machine.uuid) or ""

    def is_blind(self, machine: IMachine) -> bool:
        """Return whether another node can see what *machine* does, and this one cannot."""
        host = self.host_of(machine)
        return host in self._pool.unreachable and self._state.is_reached(host)

    def seen_down(self, machine: IMachine) -> None:
        """Handle that a node has seen that *machine* runs nowhere; this one may be unable to see it."""
        if self.has(machine) and machine.uuid:
            self._pool.seen_down(machine.uuid)
