"""What the cluster tells of the VMs (`ijitsu.IClusterEvents`), passed on to those whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from jitsu_tw.ijitsu import IClusterEvents, Request
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from jitsu_tw.ijitsu import IPublications
    from jitsu_tw.ireservations import ISharedMembers
    from jitsu_tw.vm.parts import Parts


@implementer(IClusterEvents)
class Peers:
    """What the other nodes do, for a fleet."""

    def __init__(self, fleet: Parts) -> None:
        """Pass everything on to *fleet*."""
        self._fleet = fleet
        self._publications: list[IPublications] = []
        self._members: list[ISharedMembers] = []

    def follow(self, publications: IPublications) -> None:
        """Pass on to *publications*, too, what nodes publish as the configuration."""
        self._publications.append(publications)

    def follow_members(self, members: ISharedMembers) -> None:
        """Pass on to *members*, too, what changes about VMs of templates."""
        self._members.append(members)

    def gather(self) -> None:
        """Count the queries that were answered without the fleet."""
        while self._fleet.stats.gather():
            pass

    def was_started(self, name: str) -> bool:
        """Return whether the state says that this node had started the VM, and has not seen it down since."""
        fleet = self._fleet
        return name in fleet.machines and fleet.stats.was_started(fleet.machines[name])

    def claim_free(self, name: str) -> None:
        """Claim the VM, which is queued: its claim has become free."""
        if name in self._fleet.machines:
            self._fleet.machines[name].request()

    def owner_changed(self, name: str) -> None:
        """Give the VM, which is up, the lease that its owner demands."""
        fleet, machine = self._fleet, self._fleet.machines.get(name)
        if machine is not None and fleet.leases.lease(name) is None:
            fleet.adoption.came_up(machine, State.UP)
        elif machine is not None:
            fleet.leases.owner_changed(machine, *fleet.cluster.ownership.times(machine))

    def used(self, name: str, when: float) -> None:
        """Renew the lease of the VM, which was used through another node at *when*."""
        if name in self._fleet.machines:
            self._fleet.leases.used(self._fleet.machines[name], when)

    def requested(self, name: str, request: Request) -> None:
        """Do for another node what it asks of this one, which owns the VM."""
        if request is Request.STOP:
            self._fleet.operator.stop(name)
        elif request is Request.HOLD:
            self._fleet.operator.hold(name).addErrback(lambda _: None)
        elif request is Request.RELEASE:
            self._fleet.operator.release(name)

    def speaker_changed(self, name: str) -> None:
        """Announce the VM to Synjitsu anew: its owner, or its host, may be another one."""
        if name in self._fleet.machines:
            self._fleet.standins.owner_changed(self._fleet.machines[name])

    def node_left(self) -> None:
        """Announce all VMs to Synjitsu anew: it forgets what a node has announced that is gone."""
        self._fleet.standins.reannounce()

    def configuration_published(self, commit: str) -> None:
        """Pass on that a node has published *commit* as the configuration."""
        for one in self._publications:
            one.published(commit)

    def made_changed(self, name: str) -> None:
        """Pass on that something has changed about a VM of a template."""
        for one in self._members:
            one.made_changed(name)
