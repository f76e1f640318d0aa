"""What a fleet is made of, for those of its parts that need the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jitsu_tw.ijitsu import ICluster
    from jitsu_tw.vm.admission import Admission
    from jitsu_tw.vm.adoption import Adoption
    from jitsu_tw.vm.context import Context
    from jitsu_tw.vm.dependencies import Dependencies
    from jitsu_tw.vm.interfaces import IOperator
    from jitsu_tw.vm.inventory import Inventory
    from jitsu_tw.vm.journal import Journal
    from jitsu_tw.vm.leases import LeaseKeeper
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.persistence import StatsStore
    from jitsu_tw.vm.preparation import Preparation
    from jitsu_tw.vm.standins import StandIns
    from jitsu_tw.vm.stats import Statistics
    from jitsu_tw.vm.uptime import Uptime


class Parts:
    """
    The parts of a fleet.

    Attributes:
        machines: the VMs, by name.
        members: which of them templates have made, and the addresses of all.
        context: what they have in common.
        cluster: the nodes and hosts.
        standins: announces VMs to Synjitsu, where one is used.
        inventory: where the VMs are.
        store: the state, which has that, and their configuration.
        leases: which of them are kept.
        dependencies: which of them need which others.
        adoption: which of them Jitsu manages.
        admission: which of them boots next.
        operator: what operators want.
    """

    machines: dict[str, Machine]
    context: Context
    cluster: ICluster
    standins: StandIns
    inventory: Inventory
    store: StatsStore
    leases: LeaseKeeper
    dependencies: Dependencies
    adoption: Adoption
    admission: Admission
    operator: IOperator

    @property
    def stats(self) -> Statistics:
        """When and how often they were started and asked for."""
        return self.store.stats

    @property
    def preparation(self) -> Preparation:
        """Which of them is made ready before a client asks for it."""
        return self.context.preparation

    @property
    def uptime(self) -> Uptime:
        """For how long they did not run, and what each did in the last 24 hours."""
        return self.store.uptime

    @property
    def journal(self) -> Journal:
        """What has happened."""
        return self.context.journal
