"""
Pool that are lost for good, to all of us or to one.

Who cannot reach a host that others can lets go of the VMs that it has there, and one of the others adopts them.

Nobody knows what runs on a host that cannot be reached. Where the operator has a command that makes sure that such a
host is dead (`fence`), it is called once, by one of us, when all of us have lost the host for a while. From then on
nothing runs there, and its VMs are started elsewhere; until it is reached again, and says itself what it has.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from jitsu_tw.processes import run
from jitsu_tw.settings import OnHostLoss

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.cluster.claims import Claims
    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.machine import Machine

#: A host is not taken for lost before so many seconds have passed; a daemon that is restarted is back by then.
LOST_AFTER: Final = 10.0

#: Seconds that the command may take.
ENDS_WITHIN: Final = 120.0


class Fencing:
    """The hosts that are lost, and what is done about it."""

    log = Logger()

    def __init__(self, hosts: Pool, sharing: Claims, settings: Settings, reactor: Any) -> None:
        """Look after *hosts*."""
        self._hosts, self._sharing, self._reactor = hosts, sharing, reactor
        self._command = shlex.split(settings.fence or "")
        self._acts = settings.on_host_loss is OnHostLoss.RESTART
        self._coming: dict[str, IDelayedCall] = {}
        hosts.on_lost_or_found = self._heard
        sharing.is_blind = self._is_blind

    def stop(self) -> None:
        """Do nothing any more."""
        self._hosts.on_lost_or_found = lambda _: None
        for call in self._coming.values():
            call.cancel()
        self._coming.clear()

    def _heard(self, name: str) -> None:
        """Hear that the host *name* was lost or found."""
        is_lost = name in self._hosts.away
        if not is_lost and name in self._coming:
            self._coming.pop(name).cancel()
        elif is_lost and name not in self._coming:
            self._coming[name] = self._reactor.callLater(LOST_AFTER, self._come, name)
        if not is_lost:
            self._hosts.unbury(name)
        self._sharing.begin(self._tell(name, is_lost=is_lost))

    async def _tell(self, name: str, *, is_lost: bool) -> None:
        """Let the others know that we have lost, or found, a host."""
        coordinator = self._sharing.coordinator
        key = f"lost/{name}/{coordinator.node}"
        if is_lost:
            await coordinator.claim(key, self._hosts.away[name])
        else:
            await coordinator.put({key: None, f"dead/{name}": None})

    def _come(self, name: str) -> None:
        del self._coming[name]
        if name not in self._hosts.dead:
            self._coming[name] = self._reactor.callLater(LOST_AFTER, self._come, name)
            self._sharing.begin(self._act(name))

    async def _act(self, name: str) -> None:
        """See to the VMs of a host that has been lost for a while."""
        await self._tell(name, is_lost=True)
        if self._is_seen(name):
            self._sharing.hand_over(lambda machine: self._hosts.at(machine.uuid) == name)
        elif self._acts:
            await self._fence(name)

    def _is_seen(self, name: str) -> bool:
        """Say whether another one of us reaches the host *name*."""
        coordinator = self._sharing.coordinator
        others = {key.partition("/")[2] for key in coordinator.facts if key.startswith("nodes/")} - {coordinator.node}
        return any(f"lost/{name}/{node}" not in coordinator.facts for node in others)

    def _is_blind(self, machine: Machine) -> bool:
        """Say whether another one of us can see what *machine* does, and we cannot."""
        name = self._hosts.at(machine.uuid)
        return name is not None and name in self._hosts.away and self._is_seen(name)

    async def _fence(self, name: str) -> None:
        """Make sure that the host *name*, which all of us have lost, is dead, if nobody else does."""
        coordinator = self._sharing.coordinator
        if not await coordinator.claim(f"fences/{name}", coordinator.node):
            return
        self.log.warn("{host}: lost for {limit} s; fenced", host=name, limit=LOST_AFTER)
        try:
            code, said = await self._run(name)
            if code == 0 and name in self._hosts.away:
                self.log.warn("{host}: is dead; its VMs are started elsewhere", host=name)
                await coordinator.put({f"dead/{name}": coordinator.node})
            else:
                self.log.error("{host}: nobody knows whether it is dead: fence ended with {code}: {said}", host=name,
                               code=code, said=said)
        finally:
            await coordinator.put({f"fences/{name}": None}, f"fences/{name}")

    async def _run(self, name: str) -> tuple[int | None, str]:
        try:
            ended = await run(self._reactor, [*self._command, name], within=ENDS_WITHIN, env=os.environ).ended
        except OSError as error:
            return None, str(error)
        return ended.code, ended.said.strip()
