"""
A configuration that changes while everything runs: VMs come, become others, and go.

What is wrong is found out before anything has changed. Whether the changes are allowed, and where they come from,
others say (`change_requests`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from twisted.logger import Logger

from jitsu_tw.errors import ConfigError, ZoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import VM
    from jitsu_tw.vm.fleet import Fleet


@attrs.frozen
class ConfigChange:
    """
    One change.

    Attributes:
        come: VMs that are new.
        become: VMs as they shall be, which are known by that name already.
        go: the names of VMs that are no more.
    """

    come: tuple[VM, ...] = ()
    become: tuple[VM, ...] = ()
    go: tuple[str, ...] = ()


class LiveConfig:
    """
    The configuration that runs.

    Attributes:
        leaving: the names of VMs that are being stopped, to be no more.
    """

    log = Logger()

    def __init__(self, fleet: Fleet, zones: Zones, changed: Callable[[Iterable[str]], None]) -> None:
        """Change *fleet* and *zones*, and call *changed* with the names of the VMs whose answers are not right now."""
        self._fleet, self._zones, self._changed = fleet, zones, changed
        self.leaving: set[str] = set()

    @property
    def vms(self) -> tuple[VM, ...]:
        """All VMs of the configuration as they are now, but those that are leaving."""
        machines = self._fleet.machines.items()
        return tuple(one.vm for name, one in machines if name not in self.leaving and not one.vm.removed)

    def check(self, step: ConfigChange) -> None:
        """
        See whether the zones can have the names that *step* wants; they are as they were afterwards.

        Raises:
            ConfigError: they cannot.
        """
        old, new = self._names(step)
        self._exchange(old, new)
        self._exchange(new, old)

    def apply(self, step: ConfigChange) -> None:
        """
        Carry *step* out. What must be stopped is gone a while later.

        Raises:
            ConfigError: the zones cannot have the names; nothing has changed.
        """
        old, new = self._names(step)
        stale = {vm.name for vm in old} | self._wildcards(new)
        self._exchange(old, new)
        for zone in {zone for vm in (*old, *new) for name in vm.dns if (zone := self._zones.find(name)) is not None}:
            zone.bump()
        self._changed(stale)
        for vm in (*step.come, *step.become):
            self._fleet.inventory.find(self._fleet.enlist(vm))
        for name in step.go:
            self.leaving.add(name)
            left = self._fleet.dismiss(self._fleet.machines[name], "it is no more")
            left.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))
            left.addBoth(lambda _, name: self.leaving.discard(name), name)

    def restore(self, vm: VM) -> None:
        """
        Have *vm*, too, before anything runs.

        Raises:
            ConfigError: the zones cannot have its names.
        """
        self._exchange((), (vm,))
        self._fleet.enlist(vm)

    def _wildcards(self, new: Iterable[VM]) -> set[str]:
        """Return the VMs that answer now, by a wildcard, for the names of *new*."""
        found = set()
        for name in (name for vm in new for name in vm.dns):
            zone = self._zones.find(name)
            node = zone.match(name) if zone is not None else None
            if node is not None and node.vm is not None:
                found.add(node.vm)
        return found

    def _names(self, step: ConfigChange) -> tuple[list[VM], list[VM]]:
        """Return the VMs whose names go, and those whose names come."""
        machines = self._fleet.machines
        old = [machines[name].vm for name in (*(vm.name for vm in step.become), *step.go)]
        return old, [*step.come, *step.become]

    def _exchange(self, old: Iterable[VM], new: Iterable[VM]) -> None:
        """Take the names of *old* out of the zones and put those of *new* in; or raise, and nothing has changed."""
        done: list[tuple[bytes, VM]] = []
        for vm in old:
            for name in vm.dns:
                self._zones.remove_vm(name)
        try:
            for vm in new:
                for name in vm.dns:
                    self._zones.add_vm(name, vm.name, vm.ip, vm.ttl)
                    done.append((name, vm))
        except ZoneError as error:
            for name, _ in done:
                self._zones.remove_vm(name)
            for before in old:
                for name in before.dns:
                    self._zones.add_vm(name, before.name, before.ip, before.ttl)
            raise ConfigError(error.message, vm.dns_place[0], None, f"{vm.name}: dns") from error
