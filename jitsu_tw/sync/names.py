"""
Which records the zones have of a VM: its names, and the reverse names of one that a template has made.

Where a served zone covers the reverse name of such a VM's address and has no records of its own there, the VM's first
name is its PTR record while the VM exists (RFC 1035, 3.5; RFC 3596, 2.5). The PTR records of other VMs are those of the
zone's file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.settings import VM


def reverse_names(vm: VM) -> Iterator[bytes]:
    """Yield the reverse names of the addresses of *vm*, if a template has made it."""
    for address in vm.ip if vm.template is not None and vm.dns else ():
        yield from_text(address.reverse_pointer)


def put(zones: Zones, vm: VM) -> None:
    """
    Answer for *vm* from *zones*.

    Raises:
        ZoneError: *zones* cannot have one of its names; then they have none of its names.
    """
    done: list[bytes] = []
    try:
        for name in vm.dns:
            zones.add_vm(name, vm.name, vm.ip, vm.ttl)
            done.append(name)
    except ZoneError:
        for name in done:
            zones.remove_vm(name)
        raise
    for name in reverse_names(vm):
        if (zone := zones.find(name)) is not None:
            zone.add_reverse(name, vm.name, vm.dns[0], vm.ttl)


def take(zones: Zones, vm: VM) -> None:
    """Remove the names of *vm* from *zones*; a name that *zones* have not, or that is another VM's, stays as it is."""
    for name in vm.dns:
        zone = zones.find(name)
        node = zone.get(name) if zone is not None else None
        if node is not None and node.vm == vm.name:
            zones.remove_vm(name)
    for name in reverse_names(vm):
        if (zone := zones.find(name)) is not None:
            zone.remove_reverse(name, vm.name)


def zones_of(zones: Zones, vm: VM) -> Iterator[Zone]:
    """Yield those of *zones* that have, or could have, records of *vm*."""
    for name in (*vm.dns, *reverse_names(vm)):
        if (zone := zones.find(name)) is not None:
            yield zone
