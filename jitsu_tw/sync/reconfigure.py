"""
A configuration that changes while Jitsu runs: VMs are added, changed and removed.

A change is checked as a whole before it is applied. `change_requests` decides whether it is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import DeferredList, DeferredLock, succeed
from twisted.logger import Logger

from jitsu_tw.config.vms import UniquenessCheck
from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import ClusterUnavailable, ConfigError, ZoneError
from jitsu_tw.settings import Template
from jitsu_tw.slices import in_slices
from jitsu_tw.store.layout import MOST_NAMED, NAME, in_words
from jitsu_tw.sync import names
from jitsu_tw.sync.folders import vm_of
from jitsu_tw.sync.orphans import Orphans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.ijitsu import IForgets
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine


@attrs.frozen
class ConfigChange:
    """
    A change of the configuration.

    Attributes:
        added: VMs and templates that are new.
        changed: those that are known by that name, with their new settings.
        removed: the names of those that are no more.
    """

    added: tuple[VM, ...] = ()
    changed: tuple[VM, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def lines(self) -> str:
        """The lines of a commit's message that name the VMs."""
        added, changed = ([vm.name for vm in some] for some in (self.added, self.changed))
        return in_words("added", added) + in_words("changed", changed) + in_words("removed", self.removed)


@attrs.frozen
class Outcome:
    """
    What a reload does.

    Attributes:
        change: of the VMs.
        overruled: the names of the VMs that requests had made otherwise, and that are as the file says from now on.
        keys: the keys of the top that have changed, and are applied.
        conflicts: each value that a request and the file had both changed, as a line.
        restart: the keys of the top, and the VMs, whose changes need a restart.
    """

    change: ConfigChange
    overruled: frozenset[str]
    keys: tuple[str, ...]
    conflicts: tuple[str, ...]
    restart: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """What has changed, in words; nothing if nothing has."""
        lines = self.change.lines.splitlines() + in_words("keys", self.keys).splitlines()
        lines += self.conflicts[:MOST_NAMED]
        if len(self.conflicts) > MOST_NAMED:
            lines.append(f"{len(self.conflicts) - MOST_NAMED} more conflicts")
        return lines + in_words("needs a restart", self.restart).splitlines()


class LiveConfig:
    """
    The configuration that runs.

    Attributes:
        lock: held while the configuration is changed.
        leaving: the names of VMs that are being stopped, to be no more.
        orphans: VMs in the state whose template is not in the configuration.
    """

    log = Logger()

    def __init__(
        self, settings: Settings, fleet: Fleet, zones: Zones, changed: Callable[[Iterable[str]], None]
    ) -> None:
        """
        Begin with what runs.

        Args:
            settings: what *fleet* began as.
            fleet: has the VMs, and is changed.
            zones: have the VMs' names, and are changed.
            changed: is called with the names of the VMs whose answers are stale now.
        """
        self._settings = settings
        self._fleet, self._zones, self._changed = fleet, zones, changed
        self.lock = DeferredLock()
        self.leaving: set[str] = set()
        self.orphans = Orphans(fleet.members)
        self._forgets: list[IForgets] = []
        self._touched: set[bytes] = set()

    def follow(self, forgets: IForgets) -> None:
        """Use *forgets* to forget the VMs of templates that a change removes."""
        self._forgets.append(forgets)

    @property
    def settings(self) -> Settings:
        """The top, with the templates as they are now; its VMs are those of the start."""
        return attrs.evolve(self._settings, templates=tuple(self._fleet.templates.values()))

    @property
    def vms(self) -> tuple[VM, ...]:
        """All templates and VMs of the configuration as they are now, but those that are not served."""
        machines = self._fleet.machines.items()
        return (*self._fleet.templates.values(), *(one.vm for name, one in machines if self.serves(name)))

    def serves(self, name: str) -> bool:
        """Return whether the VM *name* has its names: it does not leave, and its address is not another VM's."""
        return not self.leaves(name) and bool(self._fleet.machines[name].vm.dns)

    def leaves(self, name: str) -> bool:
        """Return whether the VM *name* is in the fleet only until it is stopped and removed: it has no names."""
        machine = self._fleet.machines.get(name)
        return name in self.leaving or (machine is not None and machine.vm.removed)

    def named(self, name: str) -> tuple[str, VM]:
        """Return the uuid, which is empty if it is not known yet, and the settings of the VM or the template *name*."""
        if name in self._fleet.templates:
            template = self._fleet.templates[name]
            return str(template.uuid), template
        machine = self._fleet.machines[name]
        return machine.uuid, machine.vm

    def check(self, change: ConfigChange) -> None:
        """
        Check that the zones can have the names of *change*; the zones stay as they are.

        Raises:
            ConfigError: they cannot.
        """
        old, new = self._names(change)
        self._exchange(old, new)
        self._exchange(new, old)

    def check_made(self, vm: VM) -> None:
        """
        Check that *vm*, which a template is about to make, can have its names, and takes none from the zones' entries.

        Raises:
            ConfigError: it cannot, or would; below another wildcard of its template, perhaps.
        """
        self.check(ConfigChange((vm,)))
        for name in vm.dns:
            zone = self._zones.find(name)
            if zone is not None and zone.get(name) is not None:
                raise ConfigError(f"the zone has an entry {to_text(name)}, so no VM is made for it", key=vm.name)

    @deferred
    async def apply(self, change: ConfigChange) -> None:
        """
        Apply *change*, the lock is held. A VM that must be stopped first is gone some time later.

        Raises:
            ConfigError: the zones cannot have the names; nothing has changed.
        """
        old, new = self._names(change)
        stale = {*(vm.name for vm in change.changed), *change.removed} | self._wildcards(new)
        self._exchange(old, new)
        self._bump(*old, *new)
        self._changed(stale)
        for vm in change.added:  # before any question for their names
            self._begin(vm)
        for name in change.removed:
            self._dismiss(name)
        await in_slices(self._fleet.context.reactor, self._changing(change.changed))
        await self._adopt(change.added)
        if any(vm.template is not None for vm in change.changed):
            spawn(self.log, self._fleet.store.save_configuration())

    def _changing(self, changed: Iterable[VM]) -> Iterator[None]:
        """Give the VMs that have *changed* their settings, step by step: a template may have very many."""
        retimed: list[VM] = []
        for vm in changed:
            before = self.named(vm.name)[1]
            if vm.template is not None:  # its template may have given it other names
                self._fleet.store.config.outdate(*self.named(vm.name), overrule=False)
            self._begin(vm)
            if before.ttl != vm.ttl and not _renames(before, vm):
                self._exchange((before,), (vm,))
                retimed.append(vm)
            yield
        if retimed:
            self._bump(*retimed)
            self._changed([vm.name for vm in retimed])

    def _begin(self, vm: VM) -> None:
        """Add *vm*, or give the one of that name these settings, and find it at its hypervisor."""
        machine = self._enlist(vm)
        if machine is not None:
            self._fleet.inventory.find(machine)

    async def _adopt(self, added: Iterable[VM]) -> None:
        """Serve the VMs in the state that templates among those *added* had made earlier; the lock is held."""
        templates = [vm for vm in added if isinstance(vm, Template)]
        if not templates:
            return

        def adopting() -> Iterator[None]:
            unique = UniquenessCheck()
            for vm in self.vms:
                unique.add(vm, {})
                yield
            for template in templates:
                for uuid, files in self.orphans.take(template.name).items():
                    try:
                        self._adopt_one(uuid, files, unique)
                    except ConfigError as error:
                        self.log.error("{what}: is in the state, but is left out now: {error}",
                                       what=files.get(NAME, uuid), error=str(error))
                    yield

        await in_slices(self._fleet.context.reactor, adopting())
        self._changed(())

    def _adopt_one(self, uuid: str, files: Mapping[str, str], unique: UniquenessCheck) -> None:
        """
        Serve the VM of the folder *uuid*, which has these *files*; one that runs is known, as one to be stopped.

        Raises:
            ConfigError: it cannot be beside the others, which *unique* has.
        """
        vm, raw = vm_of(uuid, files, files, self.settings)
        unique.add(vm, raw)
        self._exchange((), (vm,))
        self._bump(vm)
        self._begin(vm)

    def _enlist(self, vm: VM) -> Machine | None:
        """Add *vm*, or give the one of that name these settings; return its machine, which a template has not."""
        if isinstance(vm, Template):
            self._fleet.templates[vm.name] = vm
            return None
        return self._fleet.enlist(vm)

    def _dismiss(self, name: str) -> Deferred[None]:
        if self._fleet.templates.pop(name, None) is not None:
            return succeed(None)
        self.leaving.add(name)
        machine = self._fleet.machines[name]
        leaves = self._fleet.dismiss if machine.vm.template is None else self._forget
        left = spawn(self.log, leaves(machine, "as the configuration was changed"), name)
        return left.addCallback(lambda _: self.leaving.discard(name))

    async def _forget(self, machine: Machine, reason: str) -> None:
        """Forget *machine*, which a template has made; if the nodes cannot agree on its end, serve it again."""
        name = machine.vm.name
        try:
            for one in self._forgets:
                await one.retire(machine, reason)
        except ClusterUnavailable as error:
            self.log.error("{name}: is not removed: {error}", name=name, error=str(error))
            if self._fleet.machines.get(name) is machine and not machine.vm.removed:
                self.put_names(machine)

    # A reload.

    def enlisting(self, outcome: Outcome) -> Iterator[None]:
        """
        Begin, step by step, to apply *outcome*, which was checked: its VMs are there, but have no names yet.

        What the state has of them is not what the file says any more; so it is written anew in the end.
        """
        stored = self._fleet.store.config
        for name in (*(vm.name for vm in outcome.change.changed), *outcome.change.removed, *outcome.overruled):
            uuid, vm = self.named(name)
            stored.outdate(uuid, vm, overrule=name in outcome.overruled)
            self._touch(vm)
            yield
        for vm in (*outcome.change.added, *outcome.change.changed):
            self._enlist(vm)
            self._touch(vm)
            yield

    def _touch(self, vm: VM) -> None:
        """Note the zones of *vm*, which changes."""
        self._touched |= {zone.key for zone in names.zones_of(self._zones, vm)}

    def replace(self, settings: Settings, zones: Zones, outcome: Outcome) -> None:
        """Go on: answer from *zones*, and begin to limit by *settings*, the new top."""
        for zone in zones:
            before = self._zones.find(zone.key)
            if before is not None and before.key == zone.key:
                zone.raise_to(before.serial + (zone.key in self._touched))
        self._touched.clear()
        self.leaving.update(outcome.change.removed)
        self._zones.replace(zones)
        self._settings = settings
        if outcome.keys:
            self._fleet.configure(settings)

    async def finish(self, reactor: Any, outcome: Outcome) -> None:
        """End: find the new VMs, and stop those that are no more; then the state is as the configuration is."""
        left = []

        def finding() -> Iterator[None]:
            for vm in (*outcome.change.added, *outcome.change.changed):
                if (machine := self._fleet.machines.get(vm.name)) is not None:  # else the next reload has removed it
                    left.append(self._fleet.inventory.find(machine))
                yield
            for name in outcome.change.removed:
                left.append(self._dismiss(name))
                yield

        await in_slices(reactor, finding())
        await self.lock.run(self._adopt, outcome.change.added)
        await DeferredList(left, consumeErrors=True)
        await self._fleet.store.save_configuration()
        if all(machine.uuid for machine in self._fleet.machines.values()):
            self._fleet.store.forget_others()

    # Of a template.

    def put_names(self, machine: Machine) -> None:
        """
        Answer for the names of *machine*, which a template has made.

        Raises:
            ConfigError: the zones cannot have them.
        """
        self._exchange((), (machine.vm,))
        self._bump(machine.vm)
        self._changed(())

    def take_names(self, machine: Machine) -> None:
        """Remove the names of *machine*, which a template has made and which is to be removed, from the zones."""
        self.leaving.add(machine.vm.name)
        names.take(self._zones, machine.vm)
        self._bump(machine.vm)
        self._changed((machine.vm.name,))

    def restore(self, vm: VM) -> None:
        """
        Add *vm* before anything runs.

        Raises:
            ConfigError: the zones cannot have its names.
        """
        self._exchange((), (vm,))
        self._enlist(vm)

    def _bump(self, *vms: VM) -> None:
        """Raise the serials of the zones that have, or had, records of *vms*."""
        for zone in {zone for vm in vms for zone in names.zones_of(self._zones, vm)}:
            zone.bump()

    def _wildcards(self, new: Iterable[VM]) -> set[str]:
        """Return the VMs that answer now, by a wildcard, for the names of *new*."""
        found = set()
        for name in (name for vm in new for name in vm.dns):
            zone = self._zones.find(name)
            node = zone.match(name) if zone is not None else None
            if node is not None and node.vm is not None:
                found.add(node.vm)
        return found

    def _names(self, change: ConfigChange) -> tuple[list[VM], list[VM]]:
        """Return the VMs whose records go, and those whose records come; a new TTL alone is a matter of `_changing`."""
        old, new = [self.named(name)[1] for name in change.removed], [*change.added]
        for vm in change.changed:
            before = self.named(vm.name)[1]
            if _renames(before, vm):
                old.append(before)
                new.append(vm)
        return old, new

    def _exchange(self, old: Iterable[VM], new: Iterable[VM]) -> None:
        """Take the names of *old* out of the zones and put those of *new* in; or raise, and nothing has changed."""
        done: list[VM] = []
        for vm in old:
            names.take(self._zones, vm)
        try:
            for vm in new:
                names.put(self._zones, vm)
                done.append(vm)
        except ZoneError as error:
            for one in done:
                names.take(self._zones, one)
            for before in old:
                names.put(self._zones, before)
            raise ConfigError(error.message, vm.dns_place[0], None, f"{vm.name}: dns") from error


def _renames(before: VM, vm: VM) -> bool:
    """Return whether *vm* has other names or addresses than *before*."""
    return (before.dns, before.ip) != (vm.dns, vm.ip)
