"""VMs move to another host: because an operator wants it, or because their host is drained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.errors import BackendError, JitsuError
from jitsu_tw.ijitsu import Request
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.cluster.placement import Placement
    from jitsu_tw.cluster.requests import Requests
    from jitsu_tw.ijitsu import IMachine, IOwnership


class Migration:
    """The moves of VMs from host to host."""

    log = Logger()

    def __init__(
        self,
        pool: Pool,
        placement: Placement,
        machines: Mapping[str, IMachine],
        ownership: IOwnership,
        requests: Requests,
    ) -> None:
        """
        Move nothing yet.

        Args:
            pool: the hosts.
            placement: is told on which host a VM is to be started next.
            machines: all VMs, by name.
            ownership: knows which of them this node owns.
            requests: asks other nodes to move theirs.
        """
        self._pool, self._placement, self._machines = pool, placement, machines
        self._ownership, self._requests = ownership, requests
        self._emptying: set[str] = set()

    def empty(self, host: str) -> None:
        """Move the VMs of this node on *host*, which is drained, to other hosts."""
        if host not in self._emptying:
            self._emptying.add(host)
            spawn(self.log, self._empty(host), host).addCallback(lambda _: self._emptying.discard(host))

    async def _empty(self, host: str) -> None:
        """Move them, one after the other."""
        for machine in list(self._machines.values()):
            if machine.backend is self._pool and self._pool.at(machine.uuid) == host:
                try:
                    if machine.state is State.UP and self._ownership.is_own(machine):
                        await self.move(machine, "")
                except JitsuError as error:
                    self.log.error("{name}: stays on {host}: {error}", name=machine.vm.name, host=host,
                                   error=str(error))

    @deferred
    async def move(self, machine: IMachine, host: str) -> None:
        """
        Move *machine*, which is up, to *host*, or, without one, to the best other host.

        It goes on running if its hypervisors can do that. Else it is stopped, and started there.

        Raises:
            JitsuError: it cannot move there, or is not up.
        """
        vm, pool = machine.vm, self._pool
        if machine.backend is not pool:
            raise JitsuError(f"{vm.name} is on no host that it could leave; give it host: any")
        if host and host not in vm.hosts:
            raise JitsuError(f"{vm.name} may run on {', '.join(vm.hosts)}, not on {host}")
        if self._ownership.is_others(machine):
            await self._requests.send(machine, Request.MOVE, host)
            return
        if machine.state is not State.UP:
            raise JitsuError(f"{vm.name} is {machine.state.shown}; only a VM that is up moves")
        if host and host == pool.at(machine.uuid):
            return
        if host and host in pool.unreachable:
            raise JitsuError(f"{host}: {pool.unreachable[host]}")
        target = host or await pool.best(machine.uuid)
        try:
            await pool.migrate_to(machine.uuid, target)
            self.log.info("{name}: goes on on {host}", name=vm.name, host=target)
        except BackendError as error:
            self.log.info("{name}: is stopped, and started on {host}: {error}", name=vm.name, host=target,
                          error=str(error))
            await self._restart(machine, target, error)

    async def _restart(self, machine: IMachine, host: str, why: BackendError) -> None:
        """Stop *machine*, which cannot go on on *host* because of *why*, and start it there."""
        self._placement.want(machine.vm, host)
        if await machine.stop(f"moves to {host}", off=True) is State.UP:
            self._placement.want(machine.vm, None)
            raise JitsuError(f"{machine.vm.name} cannot be stopped, so it does not move: {machine.reason}") from why
        await machine.summon(f"moves to {host}", insist=True, is_client=False)

    def requested(self, machine: IMachine, host: str) -> None:
        """Move *machine*, which this node owns, because another node asks."""
        self.move(machine, host).addErrback(self._not_moved, machine)

    def _not_moved(self, failure: Any, machine: IMachine) -> None:
        failure.trap(JitsuError)
        self.log.error("{name}: does not move: {error}", name=machine.vm.name, error=failure.getErrorMessage())
