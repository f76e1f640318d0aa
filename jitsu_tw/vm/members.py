"""The templates, which VMs they have made, and which addresses are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM, Template
    from jitsu_tw.vm.machine import Machine


class Members:
    """
    The VMs of the templates, and the addresses of all VMs.

    It owns, and nobody else writes: which VMs a template has made, which of them is being removed from its hypervisor,
    and which VM has which address.

    Attributes:
        templates: by name; `sync.reconfigure` changes them.
        addresses: of all VMs, by the address; the VM's name.
    """

    def __init__(self, templates: Iterable[Template]) -> None:
        """Begin with *templates* that have no VM."""
        self.templates = {template.name: template for template in templates}
        self._removing: set[str] = set()
        self._of: dict[str, set[str]] = {}
        self._vms: dict[str, VM] = {}
        self.addresses: dict[Address, str] = {}

    def enlist(self, machine: Machine) -> None:
        """Note *machine*, which is new, or has new settings."""
        self.forget(machine)
        vm = self._vms[machine.vm.name] = machine.vm
        self.reserve(vm.ip, vm.name)
        if vm.template is not None:
            self._of.setdefault(vm.template, set()).add(vm.name)

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is no more."""
        vm = self._vms.pop(machine.vm.name, None)
        if vm is None:
            return
        for address in vm.ip:
            if self.addresses.get(address) == vm.name:
                del self.addresses[address]
        if vm.template is not None:
            names = self._of[vm.template]
            names.discard(vm.name)
            if not names:
                del self._of[vm.template]

    def reserve(self, addresses: Iterable[Address], name: str) -> None:
        """Note that *addresses* are those of the VM *name*, which is not in the fleet."""
        for address in addresses:
            self.addresses.setdefault(address, name)

    def begin_removal(self, name: str) -> None:
        """Note that the VM *name* is being removed from its hypervisor."""
        self._removing.add(name)

    def end_removal(self, name: str) -> None:
        """Note that the removal of the VM *name* has ended, or has failed."""
        self._removing.discard(name)

    def is_removed(self, name: str) -> bool:
        """Return whether the VM *name* is being removed from its hypervisor."""
        return name in self._removing

    def of(self, template: str) -> frozenset[str]:
        """Return the names of the VMs that *template* has made."""
        return frozenset(self._of.get(template, ()))

    def count(self, template: str) -> int:
        """Return how many VMs *template* has made."""
        return len(self._of.get(template, ()))
