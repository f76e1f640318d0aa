"""Which host a VM is on, or is to be: what `backends.hosts` is told of what we agree on, and what follows from it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from twisted.internet.defer import succeed

from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.claims import Claims
    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.inventory import Inventory
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.standins import StandIns
    from jitsu_tw.vm.stats import StatsStore


class Placement:
    """The VMs of all hosts."""

    def __init__(
        self,
        settings: Settings,
        hosts: Pool | None,
        sharing: Claims,
        inventory: Inventory,
        record: StatsStore,
        clocks: Clocks,
        standins: StandIns,
    ) -> None:
        """Tell *hosts*, if there are any, what is agreed on by *sharing*; *standins* follow a VM to its host."""
        self._settings, self._hosts, self._sharing = settings, hosts, sharing
        self._inventory, self._record, self._now, self._standins = inventory, record, clocks.now, standins
        if hosts is not None:
            hosts.place, hosts.whereabouts, hosts.began = self._place, self._whereabouts, self._began
            hosts.seen_on = self._seen_on
            sharing.host_of, sharing.on_down = self._host_of, self._seen_down

    def is_placed(self, machine: Machine) -> bool:
        """Say whether the hosts say where *machine* is started; else nobody need."""
        return machine.backend is self._hosts

    def _place(self, uuid: str, host: str) -> Deferred[bool]:
        """Agree on the host that a VM is started on."""
        machine = self._inventory.machine(uuid)
        if machine is None:
            return succeed(False)  # noqa: FBT003
        self._standins.owner_changed(machine)
        return self._sharing.place(machine, host)

    def _seen_on(self, uuid: str, host: str, moved: bool) -> None:  # noqa: FBT001
        """Hear where a VM runs; we have moved it, or somebody else has."""
        machine = self._inventory.machine(uuid)
        if machine is not None:
            self._sharing.runs_on(machine, host)
            if moved:
                self._standins.owner_changed(machine)

    def _seen_down(self, machine: Machine) -> None:
        """Hear that one of us has seen that a VM runs nowhere; we may be unable to."""
        if self._hosts is not None and self.is_placed(machine) and machine.uuid:
            self._hosts.seen_down(machine.uuid)

    def _whereabouts(self, uuid: str) -> str | None:
        """Return the host that a VM was started on by us; nothing if it was not, None if nobody knows."""
        machine = self._inventory.machine(uuid)
        if machine is None:
            return None
        if self._sharing.alone:
            return None if self._record.is_ours(machine) else ""
        return self._sharing.host(machine)

    def _began(self, uuid: str) -> float:
        """Return how many seconds ago one of us has begun to start a VM."""
        machine = self._inventory.machine(uuid)
        return inf if machine is None else self._now() - self._sharing.since(machine)[1]

    def _host_of(self, machine: Machine) -> str:
        """Return the host that a VM is seen on; nothing if it is on none."""
        return (self._hosts and self._hosts.at(machine.uuid)) or ""

    def synjitsu_of(self, machine: Machine) -> str | None:
        """Return where the Synjitsu of a VM's host listens; that of the first host that it may be on, if it is off."""
        settings = self._settings
        if not self.is_placed(machine):
            return settings.synjitsu
        at = self._host_of(machine) or self._sharing.host(machine) or machine.vm.hosts[0]
        return next((host.synjitsu for host in settings.hosts if host.name == at), None) or settings.synjitsu

    def host_is(self, name: str, *, dead: bool, machines: list[Machine]) -> None:
        """Hear that the host *name* is dead, or is not any more; what *machines* of ours ran there start elsewhere."""
        if self._hosts is None:
            return
        if not dead:
            self._hosts.unbury(name)
            return
        there = [machine for machine in machines if machine.uuid and self._host_of(machine) == name]
        used = [machine for machine in there if machine.state is State.UP and self._sharing.is_ours(machine)]
        self._hosts.bury(name)
        for machine in used:
            machine.look(f"its host {name} is dead").addCallback(self._start_elsewhere, machine)

    @staticmethod
    def _start_elsewhere(_: None, machine: Machine) -> None:
        if machine.state is State.OFF:
            machine.summon("its host is dead", insist=True, is_client=False).addErrback(lambda _: None)
