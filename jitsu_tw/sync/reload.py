"""
What a new reading of the configuration file changes of what runs.

Requests may have changed VMs since the file was read last, and a reload does not undo that: of each VM, the change from
the file as it was read last to the file as it is now is applied to the VM as it runs, value by value. Where both have
changed one value, the file holds, and the conflict is named. Some changes need a restart; the rest is applied without
them. A reading is checked as a whole before it is applied, as a request is; then `LiveConfig` applies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.logger import Logger

from jitsu_tw.config.schema import INHERITED, KEYS
from jitsu_tw.config.source import RawValue
from jitsu_tw.config.vms import UniquenessCheck, check_needs
from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import ConfigError, ZoneError
from jitsu_tw.settings import Template
from jitsu_tw.slices import in_slices
from jitsu_tw.store.layout import vm_files
from jitsu_tw.store.merge import three_way
from jitsu_tw.sync import names as zone_names
from jitsu_tw.sync.folders import rebuilt, vm_of
from jitsu_tw.sync.reconfigure import ConfigChange, Outcome
from jitsu_tw.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jitsu_tw.config.source import RawConfig
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.members import Members

#: The keys of a VM that stay as they are while it is in the configuration; and that of its uuid.
PINNED: Final = ("backend", "connect")

#: The keys that are no fields of VMs but are in them all the same.
_IN_VMS: Final = frozenset({*INHERITED, "delay"})


def check_members(
    removed: Iterable[str], changed: Iterable[VM], templates: Mapping[str, VM], members: Members
) -> None:
    """
    Refuse a change of templates by which their VMs would lose their disks.

    Raises:
        ConfigError: a template that has VMs is among *removed*, or has other `layers` than before, in *templates*.
    """
    for vm in changed:
        was, has = templates.get(vm.name), members.count(vm.name)
        if has and isinstance(vm, Template) and isinstance(was, Template) and was.layers != vm.layers:
            message = f"the disks of its VMs are in {was.layers}; leave it so, or forget the VMs first"
            raise ConfigError(message, *_place(vm), f"{vm.name}: layers")
    for name in removed:
        if number := members.count(name):
            message = f"has {counted(number, 'VM')}; forget them first, with jitsuctl forget --template {name} --all"
            raise ConfigError(message, key=name)


class Reading:
    """
    One reading of the file: `steps` merges it, then the results can be read.

    Attributes:
        settings: the top as it is from now on: keys that need a restart are as before.
        last: the VMs of the file, by name, for the next reading: those that need a restart are as before.
        added, changed, removed: as `ConfigChange` has them.
    """

    def __init__(
        self,
        settings: Settings,
        new: Settings,
        last: Mapping[str, VM],
        running: Iterable[VM],
        machines: Mapping[str, Machine],
        members: Members,
    ) -> None:
        """
        Compare nothing yet.

        Args:
            settings: the top that runs.
            new: what the file says now.
            last: the templates and VMs of the file as it was read last, by name.
            running: those of the configuration that runs, templates first.
            machines: all machines, by the VM's name.
            members: knows which of them templates have made.
        """
        self._vms: Iterable[VM] = (*new.templates, *new.vms)
        self._was, self._live, self._machines, self._members = last, running, machines, members
        self._new: dict[str, VM] = {}
        self._running: dict[str, VM] = {}
        differ = {name for name in KEYS if getattr(settings, name) != getattr(new, name)}
        taken = {name for name in differ if KEYS[name].live or name in _IN_VMS}
        if "control" in differ:  # what stays open until the restart may be open to all without the token
            taken.discard("control_token")
        self.settings = attrs.evolve(settings, **{name: getattr(new, name) for name in taken - set(PINNED)})
        self._templates: dict[str, VM] = {template.name: template for template in settings.templates}
        self._inherited: set[str | None] = set()
        self._keys = tuple(sorted(taken - set(PINNED)))
        self._restart = sorted(differ - taken)
        groups = ("cluster", "dnssec", "hosts")
        self._restart += [name for name in groups if getattr(settings, name) != getattr(new, name)]
        self._inherits = not taken.isdisjoint(_IN_VMS)
        self.last: dict[str, VM] = {}
        self.added: list[VM] = []
        self.changed: list[VM] = []
        self.removed: list[str] = []
        self._conflicts: list[str] = []
        self._overruled: set[str] = set()
        self._pinned: set[str] = set()

    @property
    def outcome(self) -> Outcome:
        """What was found."""
        change = ConfigChange(tuple(self.added), tuple(self.changed), tuple(self.removed))
        conflicts, restart = tuple(self._conflicts), tuple(self._restart)
        return Outcome(change, frozenset(self._overruled), self._keys, conflicts, restart)

    def steps(self, zones: Zones) -> Iterator[None]:
        """
        Merge VM by VM, and check the result as a whole; *zones* have the names of the file's VMs, and get the result's.

        Raises:
            ConfigError: the file and what requests have made since cannot be beside each other.
        """
        for vms, by_name in ((self._vms, self._new), (self._live, self._running)):
            for vm in vms:
                by_name[vm.name] = vm
                yield
        self._vms = self._live = ()
        first = {**self._templates, **{name: vm for name, vm in self._new.items() if isinstance(vm, Template)}}
        for name in first:
            self._merge(name, self._was.get(name), self._new.get(name), self._running.get(name))
            yield
        self._inherited = {vm.name for vm in self.changed}
        merged = {**self._templates, **{vm.name: vm for vm in (*self.added, *self.changed)}}
        templates = (vm for name, vm in merged.items() if name not in self.removed and isinstance(vm, Template))
        self.settings = attrs.evolve(self.settings, templates=tuple(templates))
        check_members(self.removed, self.changed, self._templates, self._members)
        for name in {**self._was, **self._new, **self._running}:
            if name not in first:
                self._merge(name, self._was.get(name), self._new.get(name), self._running.get(name))
                yield
        result = {**self._running, **{vm.name: vm for vm in (*self.added, *self.changed)}}
        for name in self.removed:
            del result[name]
        yield from self._check(result, zones)

    def end(self) -> Iterator[None]:
        """Free what was read, step by step: 100,000 VMs at once take 100 ms."""
        while self._new:
            self._new.popitem()
            yield

    # One VM.

    def _merge(self, name: str, was: VM | None, new: VM | None, now: VM | None) -> None:
        """Merge the VM *name*, which the file *was* and is *new*, and which is *now* as it runs; None: not there."""
        if new == was:
            if was is not None:
                self.last[name] = was  # one object is enough
            if now is not None and now != was and (self._inherits or now.template in self._inherited):
                self._inherit(now)
        elif new is None:
            if now is not None:
                self.removed.append(name)
                if now != was:
                    self._conflicts.append(f"{name}: is removed as the file says, though a request had changed it")
        elif why := self._why_pinned(new):
            self._restart.append(f"{name} ({why})")
            self._pinned.add(name)
            if was is not None:
                self.last[name] = was
        else:
            self.last[name] = new
            self._take(new, was, now)

    def _take(self, new: VM, was: VM | None, now: VM | None) -> None:
        """Add or change a VM as the file says."""
        if now is None:
            if was is not None and new.raw == was.raw:
                return  # only what it inherits has changed
            self.added.append(new)
            if was is not None:
                self._conflicts.append(f"{new.name}: is there again as the file says, though a request had removed it")
        elif now == was:
            self.changed.append(new)
        else:
            self._three_way(new, was, now)

    def _three_way(self, new: VM, was: VM | None, now: VM) -> None:
        """Merge a VM that both the file and a request have changed, or added."""
        here, there = vm_files(new), vm_files(now)
        before = vm_files(was) if was is not None else {}
        if was is not None and new.raw == was.raw:  # only what it inherits has changed, which a request beats
            merged, _ = three_way(before, there, here)
        else:
            merged, _ = three_way(before, here, there)
            self._note_conflicts(new.name, before, here, there)
        if merged == here:
            self._overruled.add(new.name)
            if new != now:
                self.changed.append(new)
            return
        vm, _ = vm_of(self._uuid(now), merged, there, self.settings)
        self._change(attrs.evolve(vm, place=new.place, dns_place=new.dns_place), now)

    def _note_conflicts(
        self, name: str, before: Mapping[str, str], here: Mapping[str, str], there: Mapping[str, str]
    ) -> None:
        """Note each value of the VM *name* that the file, from *before* to *here*, and requests have both changed."""
        for path in sorted(before.keys() | here.keys() | there.keys()):
            old, mine, other = before.get(path), here.get(path), there.get(path)
            if mine not in {old, other} and other != old:
                words = [repr(value) if value is not None else "not there" for value in (mine, other)]
                line = f"{name}: {path} is {words[0]} as the file says, no longer {words[1]} as a request said"
                self._conflicts.append(line)

    def _inherit(self, now: VM) -> None:
        """Build a VM that a request or a template has made anew, below the top as it is now."""
        vm = rebuilt(self._uuid(now), now, self.settings)
        if vm is not None:
            self._change(vm, now)

    def _change(self, vm: VM, now: VM) -> None:
        if vm == now:
            return
        if why := self._why_pinned(vm):
            self._restart.append(f"{vm.name} ({why})")
        else:
            self.changed.append(vm)

    def _uuid(self, vm: VM) -> str:
        return vm.uuid or self._machines[vm.name].uuid

    def _why_pinned(self, vm: VM) -> str:
        """Return the key that keeps *vm* from being applied without a restart; "" if there is none."""
        if vm.hosts and "hosts" in self._restart:
            return "host"
        if isinstance(vm, Template) is not (vm.name in self._templates) and vm.name in self._running:
            return "templates"
        machine = self._machines.get(vm.name)
        if machine is None:
            return ""
        if vm.uuid and machine.uuid and vm.uuid != machine.uuid:
            return "uuid"
        return next((key for key in PINNED if getattr(vm, key) != getattr(machine.vm, key)), "")

    # All VMs.

    def _check(self, result: Mapping[str, VM], zones: Zones) -> Iterator[None]:
        """Check *result*, where it is not what the file says, and put its names into *zones*."""
        others = [vm for name, vm in result.items() if vm is not self.last.get(name) or name in self._pinned]
        gone = [vm for name, vm in self._new.items() if name not in result]
        if not others and not gone:
            return
        unique, mine = UniquenessCheck(), {vm.name for vm in others}
        for vm in (*(vm for name, vm in result.items() if name not in mine), *others):
            unique.add(vm, unread(vm))
            yield
        everybody = list(result.values())
        check_needs(everybody, {vm.name: RawValue("", *_place(vm)) for vm in everybody if vm.needs})
        for vm in (*gone, *(self._new[name] for name in mine & self._new.keys())):
            for name in vm.dns:
                zones.remove_vm(name)
            yield
        for vm in others:
            try:
                zone_names.put(zones, vm)
            except ZoneError as error:
                raise ConfigError(error.message, *_place(vm), f"{vm.name}: dns") from error
            yield


def unread(vm: VM) -> RawConfig:
    """Return what errors about *vm* name where its raw configuration is not at hand: its place, for each key."""
    return {key: [RawValue("", *_place(vm))] for key in ("name", "uuid", "dns", "ip")}


def _place(vm: VM) -> tuple[str, int | None]:
    path, line = vm.place
    return str(path), line


class Reloads:
    """
    Applies what a new reading of the file says.

    It owns, and nobody else writes: the VMs of the file as it was read last.
    """

    log = Logger()

    def __init__(
        self,
        running: LiveConfig,
        fleet: Fleet,
        replaced: Callable[[Settings, Outcome], None],
        reactor: Any,
    ) -> None:
        """
        Begin with the file as *running* began.

        Args:
            running: applies changes.
            fleet: its VMs.
            replaced: is called with the new top when the zones and the VMs' names are new, in the same moment.
            reactor: the work is done in slices of its time.
        """
        self._running, self._fleet, self._replaced, self._reactor = running, fleet, replaced, reactor
        settings = running.settings
        self._last: Mapping[str, VM] = {vm.name: vm for vm in (*settings.templates, *settings.vms)}

    async def apply(self, settings: Settings, zones: Zones) -> Outcome:
        """
        Apply a file that says *settings* and *zones*, as a whole; `LiveConfig.lock` is held.

        Returns when all names are served as the file says; VMs that must be stopped are gone some time later.

        Raises:
            ConfigError: it cannot be applied; nothing has changed.
        """
        running, fleet = self._running, self._fleet
        reading = Reading(running.settings, settings, self._last, running.vms, fleet.machines, fleet.members)
        del settings
        await in_slices(self._reactor, reading.steps(zones))
        outcome = reading.outcome
        if leaving := running.leaving.intersection(vm.name for vm in outcome.change.added):
            raise ConfigError(f"still being stopped, reload again when it is gone: {', '.join(sorted(leaving))}")
        if not fleet.context.is_running:
            raise ConfigError("Jitsu is about to end")
        await in_slices(self._reactor, running.enlisting(outcome))
        running.replace(reading.settings, zones, outcome)
        self._last = reading.last
        self._replaced(reading.settings, outcome)
        spawn(self.log, running.finish(self._reactor, outcome))
        await in_slices(self._reactor, reading.end())
        return outcome
