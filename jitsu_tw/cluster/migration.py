"""What people do with many machines: VMs go to another host, hosts and nodes are drained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jitsu_tw.cluster.claims import Ask
from jitsu_tw.errors import BackendError, ClusterUnavailable, JitsuError
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.cluster.claims import Claims
    from jitsu_tw.vm.machine import Machine


class Migration:
    """The moves of VMs from host to host, and what drives them from there."""

    log = Logger()

    def __init__(self, hosts: Pool | None, machines: Mapping[str, Machine], sharing: Claims) -> None:
        """Move *machines* between *hosts*; None: there are none, only nodes."""
        self._hosts, self._machines, self._sharing = hosts, machines, sharing
        self._leaving: set[str] = set()
        if hosts is not None:
            hosts.is_drained = lambda name: f"drained/hosts/{name}" in sharing.coordinator.facts

    def drain(self, what: str, name: str, *, undo: bool = False) -> Deferred[bool]:
        """
        Take a host or a node out of service, or back; *what* is ``hosts`` or ``nodes``.

        Nothing new is started on such a host, and what runs there goes to others; such a node starts nothing and hands
        its VMs on to others. It stays so until it is undone.
        """
        return self._sharing.coordinator.put({f"drained/{what}/{name}": None if undo else "by hand"})

    def told(self, what: str, name: str, *, drained: bool) -> None:
        """Hear that a host or a node is drained, or is not any more."""
        if what == "nodes" and name == self._sharing.coordinator.node and drained:
            self._sharing.hand_on()
        elif what == "hosts" and drained and name not in self._leaving:
            self._leaving.add(name)
            leaving = Deferred.fromCoroutine(self._leave(name))
            leaving.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))
            leaving.addBoth(lambda _: self._leaving.discard(name))

    async def _leave(self, host: str) -> None:
        """Move what is ours and runs on *host* to others, one after the other."""
        assert self._hosts is not None
        for machine in list(self._machines.values()):
            if machine.backend is self._hosts and self._hosts.at(machine.uuid) == host:
                try:
                    if machine.state is State.UP and self._sharing.is_ours(machine):
                        await self.move(machine, "")
                except JitsuError as error:
                    self.log.error("{name}: stays on {host}: {error}", name=machine.vm.name, host=host,
                                   error=str(error))

    async def move(self, machine: Machine, host: str) -> None:
        """
        Let *machine*, which is up, go to *host*, or, without one, to whichever is best.

        It goes on running if the hypervisors can do that between them. Else it is stopped, and started there.

        Raises:
            JitsuError: it cannot go there, or is not up.
        """
        vm, hosts = machine.vm, self._hosts
        if hosts is None or machine.backend is not hosts:
            raise JitsuError(f"{vm.name} is on no host that it could leave; give it host: any")
        if host and host not in vm.hosts:
            raise JitsuError(f"{vm.name} may run on {', '.join(vm.hosts)}, not on {host}")
        if self._sharing.is_theirs(machine):
            await self._sharing.ask(machine, Ask.MOVE, host)
            return
        if machine.state is not State.UP:
            raise JitsuError(f"{vm.name} is {machine.state.shown}; only a VM that is up moves")
        if host and host == hosts.at(machine.uuid):
            return
        if host and host in hosts.away:
            raise JitsuError(f"{host}: {hosts.away[host]}")
        target = host or await hosts.best(machine.uuid)
        try:
            await hosts.go_on(machine.uuid, target)
            self.log.info("{name}: goes on on {host}", name=vm.name, host=target)
        except BackendError as error:
            self.log.info("{name}: is stopped, and started on {host}: {error}", name=vm.name, host=target,
                          error=str(error))
            hosts.wanted[machine.uuid] = target
            if await machine.stop(f"moves to {target}", off=True) is State.UP:
                hosts.wanted.pop(machine.uuid, None)
                raise JitsuError(f"{vm.name} cannot be stopped, so it does not move: {machine.reason}") from error
            await machine.summon(f"moves to {target}", insist=True, is_client=False)

    def asked(self, machine: Machine, host: str) -> None:
        """Move *machine*, which is ours, because another one of us asks."""
        moved = Deferred.fromCoroutine(self.move(machine, host))
        moved.addErrback(self._not_moved, machine)

    def _not_moved(self, failure: Any, machine: Machine) -> None:
        failure.trap(JitsuError, ClusterUnavailable)
        self.log.error("{name}: does not move: {error}", name=machine.vm.name, error=failure.getErrorMessage())
