"""
Hosts that are lost, to one node or to all.

A node that cannot reach a host which others reach gives up the claims of its VMs there, and one of the others adopts
them.

What runs on a host that no node reaches is not known. Where the operator has a command that makes sure that such a host
is dead (`fence`), one of the nodes runs it when all have lost the host for a while. From then on nothing runs there,
and its VMs are started elsewhere; until the host is connected again, and tells itself what runs there.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from jitsu_tw.cluster.background import begin
from jitsu_tw.processes import Process
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import OnHostLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.cluster.alone import Alone
    from jitsu_tw.cluster.claims import Claims
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IMachine
    from jitsu_tw.settings import Settings

#: A host counts as lost after this many seconds; a daemon that is restarted is back by then.
LOST_AFTER: Final = 10.0

#: Seconds that the command may take.
ENDS_WITHIN: Final = 120.0


class Fencing:
    """The hosts that are lost, and what is done about it."""

    log = Logger()

    def __init__(
        self,
        pool: Pool,
        state: ClusterState,
        ownership: Alone | Claims,
        machines: Mapping[str, IMachine],
        settings: Settings,
        reactor: Any,
    ) -> None:
        """Look after the hosts of *pool*, where *machines* run; *ownership* gives up those that others can see."""
        self._pool, self._state, self._ownership, self._machines = pool, state, ownership, machines
        self._coordinator, self._reactor = state.coordinator, reactor
        self._command = shlex.split(settings.fence or "")
        self._acts = settings.on_host_loss is OnHostLoss.RESTART
        self._due: dict[str, IDelayedCall] = {}
        self._stopped = False

    def stop(self) -> None:
        """Do nothing any more."""
        self._stopped = True
        for call in self._due.values():
            call.cancel()
        self._due.clear()

    def reach_changed(self, host: str) -> None:
        """Handle that *host* was lost, or is connected."""
        if self._stopped:
            return
        is_lost = host in self._pool.unreachable
        if not is_lost and host in self._due:
            self._due.pop(host).cancel()
        elif is_lost and host not in self._due:
            self._due[host] = self._reactor.callLater(LOST_AFTER, self._is_due, host)
        if not is_lost:
            self._pool.fence(host, undo=True)
        begin(self._tell(host, is_lost=is_lost))

    async def _tell(self, host: str, *, is_lost: bool) -> None:
        """Tell the other nodes that this one has lost *host*, or is connected to it."""
        key = f"lost/{host}/{self._state.node}"
        if is_lost:
            await self._coordinator.claim(key, self._pool.unreachable[host])
        else:
            await self._coordinator.put({key: None, f"dead/{host}": None})

    def _is_due(self, host: str) -> None:
        del self._due[host]
        if host not in self._pool.fenced:
            self._due[host] = self._reactor.callLater(LOST_AFTER, self._is_due, host)
            begin(self._act(host))

    async def _act(self, host: str) -> None:
        """Give up the VMs on *host*, which has been lost for a while, or fence it."""
        await self._tell(host, is_lost=True)
        if self._state.is_reached(host):
            why = f"{host} cannot be reached from here, and by others"
            self._ownership.release(self._on(host), why)
        elif self._acts:
            await self._fence(host)

    def _on(self, host: str) -> list[IMachine]:
        """Return the VMs that were last seen on *host*."""
        return [machine for machine in self._machines.values() if self._pool.at(machine.uuid) == host]

    async def _fence(self, host: str) -> None:
        """Make sure that *host*, which all nodes have lost, is dead, unless another node does that now."""
        if not await self._coordinator.claim(f"fences/{host}", self._state.node):
            return
        self.log.warn("{host}: lost for {limit} s; fenced", host=host, limit=LOST_AFTER)
        try:
            code, output = await self._run(host)
            if code == 0 and host in self._pool.unreachable:
                self.log.warn("{host}: is dead; its VMs are started elsewhere", host=host)
                await self._coordinator.put({f"dead/{host}": self._state.node})
            else:
                self.log.error("{host}: it is not known whether it is dead: fence ended with {code}: {output}",
                               host=host, code=code, output=output)
        finally:
            await self._coordinator.put({f"fences/{host}": None}, f"fences/{host}")

    async def _run(self, host: str) -> tuple[int | None, str]:
        """Run the command for *host*; return its exit code, None if it cannot be run, and its output."""
        try:
            ended = await Process(self._reactor, [*self._command, host], within=ENDS_WITHIN, env=os.environ).ended
        except OSError as error:
            return None, str(error)
        return ended.code, ended.said.strip()

    def told(self, host: str, *, fenced: bool) -> None:
        """Handle that *host* is fenced, or is not any more; the VMs of this node that ran there start elsewhere."""
        if not fenced:
            self._pool.fence(host, undo=True)
            return
        used = [one for one in self._on(host) if one.state is State.UP and self._ownership.is_own(one)]
        self._pool.fence(host)
        for machine in used:
            machine.look(f"its host {host} is dead").addCallback(self._start_elsewhere, machine)

    @staticmethod
    def _start_elsewhere(_: None, machine: IMachine) -> None:
        if machine.state is State.OFF:
            machine.summon("its host is dead", insist=True, is_client=False).addErrback(lambda _: None)
