"""
The VMs of templates that other nodes of a cluster make and forget.

Whenever something changes about such a VM, and every `TRY_AGAIN` seconds, this node compares what the nodes have agreed
on (`ireservations.IReservations`) with the VMs that it has, and does the step that is due. So a node that was cut off,
or did not run, need not know which changes it has missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.config.vms import LABEL
from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import ConfigError, JitsuError
from jitsu_tw.ireservations import ISharedMembers
from jitsu_tw.rules.reservations import Step
from jitsu_tw.slices import Pace
from jitsu_tw.sync.templates import Templates
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.settings import VM, Template
    from jitsu_tw.sync.existence import Existing
    from jitsu_tw.sync.forgetting import Forgetting
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: Seconds after which a step that could not be done is tried again.
TRY_AGAIN: Final = 60.0

#: What an operator reads of a VM whose address the other nodes know to be another VM's.
CONFLICT: Final = (
    "its address is another VM's, as the other nodes know, so it is not served here; forget it to have it made anew"
    " with another address"
)


@implementer(ISharedMembers)
class SharedMembers:
    """
    Keeps this node's VMs of templates like those of the other nodes.

    It owns, and nobody else writes: which VMs are to be looked at, which are not served because of a conflict, and why
    others could not be taken.
    """

    log = Logger()

    def __init__(
        self, templates: Templates, forgetting: Forgetting, running: LiveConfig, fleet: Fleet, reactor: Any
    ) -> None:
        """
        Begin with no VM to be looked at.

        Args:
            templates: adopts what other nodes make.
            forgetting: drops what they forget.
            running: answers for the VMs.
            fleet: has them.
            reactor: calls later.
        """
        self._templates, self._forgetting = templates, forgetting
        self._running, self._fleet, self._reactor = running, fleet, reactor
        self._reservations = fleet.cluster.reservations
        self._due: dict[str, None] = {}
        self._is_busy, self._ended = False, running.settings.dry_run  # a dry run adds and drops nothing
        self._under_way: set[str] = set()
        self._conflicts: dict[str, VM] = {}
        self._refused: dict[str, str] = {}
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        fleet.peers.follow_members(self)

    def start(self) -> None:
        """Begin to try again what could not be done."""
        self._looking.start(TRY_AGAIN, now=False)

    def stop(self) -> None:
        """End that, and begin no step any more."""
        self._ended = True
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        """Look again at all VMs of templates: those of this node, of the others, and those that were refused here."""
        own = (name for template in self._fleet.templates for name in self._fleet.members.of(template))
        for name in sorted({*own, *self._reservations.made, *self._conflicts, *self._refused}):
            self.made_changed(name)

    def made_changed(self, name: str) -> None:
        """Look at the VM *name*, about which something has changed, after the VMs that wait for that already."""
        if self._ended:
            return
        self._due[name] = None
        if not self._is_busy:
            self._is_busy = True
            spawn(self.log, self._settle_all())

    async def _settle_all(self) -> None:
        pace = Pace(self._reactor)
        try:
            while self._due:
                name = next(iter(self._due))
                del self._due[name]
                await pace.keep()
                if not (self._ended or name in self._under_way or self._templates.is_busy(name)):
                    await self._settle(name)
        finally:
            self._is_busy = False

    async def _settle(self, name: str) -> None:
        """Do the step that is due for the VM *name*."""
        machine = self._fleet.machines.get(name)
        if machine is not None and machine.vm.template is None:
            machine = None  # of the configuration: it has the name here, and no VM that other nodes make can have it
        step = self._reservations.step(name, None if machine is None else machine.vm.ip)
        if step is Step.REMOVE:
            self._begin(name, self._remove(name, machine))
        elif step is Step.ADOPT:
            await self._done(name, self._adopt(name))
        elif machine is None or step is Step.NOTHING:
            self._refused.pop(name, None)
        elif step is Step.PUBLISH:
            await self._done(name, self._publish(name, machine))
        else:
            self._begin(name, self._drop(name, machine))

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin *work* on the VM *name*, which may take long; then look at the VM again, if it went well."""
        self._under_way.add(name)
        spawn(self.log, self._done(name, work)).addCallback(self._ended_work, name)

    def _ended_work(self, went_well: bool | None, name: str) -> None:  # noqa: FBT001
        self._under_way.discard(name)
        if went_well:
            self._reactor.callLater(0, self.made_changed, name)

    async def _done(self, name: str, work: Coroutine[Any, Any, None]) -> bool:
        """Do *work* on the VM *name*; return whether it went well. If not, it is tried again in a while."""
        try:
            await work
        except JitsuError as error:
            if self._refused.get(name) != str(error):
                self.log.error("{name}: is not here as it is at the other nodes: {error}", name=name, error=str(error))
            self._refused[name] = str(error)
            return False
        self._refused.pop(name, None)
        return True

    def _parsed(self, name: str) -> tuple[Template, str]:
        """
        Return the template and the label of the VM *name*.

        Raises:
            ConfigError: this node has no such template, or a VM of that name.
        """
        if name in self._fleet.machines:
            raise ConfigError("is a VM of this node's configuration, too", key=name)
        label, _, template = name.partition(".")
        if template not in self._fleet.templates or not LABEL.fullmatch(label):
            raise ConfigError(f"there is no template {template!r} here")
        return self._fleet.templates[template], label

    async def _adopt(self, name: str) -> None:
        await self._templates.adopt(*self._parsed(name), name, self._reservations.addresses(name))

    async def _publish(self, name: str, machine: Machine) -> None:
        """Tell the other nodes of *machine*, which they do not know; if another VM has its address, stop serving it."""
        agreed = await self._reservations.reserve(name, machine.vm.ip)
        if agreed is not None:
            vm = self._conflicts.pop(name, None)
            if vm is not None:  # the other VM is gone
                machine.problem(Problem.CONFLICT)
                self._running.put_names(self._fleet.enlist(vm))
        elif machine.vm.dns:
            self._conflicts[name] = vm = machine.vm
            await self._running.lock.run(self._running.take_names, machine)
            self._running.leaving.discard(name)
            self._fleet.enlist(attrs.evolve(vm, dns=(), needs=(), keep_up=(), use_synjitsu=False))
            self._fleet.members.forget(machine)  # its address is free for the other VM
            machine.problem(Problem.CONFLICT, CONFLICT)
            for other in self._refused:
                self.made_changed(other)
            if self._fleet.leases.lease(name) is not None:
                spawn(self.log, self._fleet.leases.end(machine, "its address is another VM's"), name)

    async def _drop(self, name: str, machine: Machine) -> None:
        """Drop *machine*, which another node removes, or has removed."""
        self._conflicts.pop(name, None)
        await self._forgetting.retire(machine, "by another node", elsewhere=True)

    async def _remove(self, name: str, machine: Machine | None) -> None:
        """Remove the VM *name*, which this node, or one that is gone, had begun to."""
        if machine is None:
            machine = await self._templates.enlist(*self._parsed(name), name, self._reservations.addresses(name))
            await self._fleet.inventory.find(machine)
        await self._forgetting.retire(machine, "as a node had begun to")


class SharedTemplates(Templates):
    """The templates of a node of a cluster: it has the VMs of the other nodes, too."""

    def __init__(self, running: LiveConfig, fleet: Fleet, store: IStore, clocks: Clocks, *existing: Existing) -> None:
        """Make nothing yet (`Templates`)."""
        super().__init__(running, fleet, store, clocks, *existing)
        self._members = SharedMembers(self, self._forgetting, running, fleet, clocks.reactor)

    def start(self) -> None:
        """Begin to forget VMs that nobody uses any more, and to have those of other nodes."""
        super().start()
        self._members.start()

    def stop(self) -> None:
        """End that."""
        self._members.stop()
        super().stop()
