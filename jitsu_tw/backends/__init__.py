"""The hypervisors: one room each, one row here, one door: `ijitsu.IBackend`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from jitsu_tw.backends.pool import Pool
from jitsu_tw.settings import HOSTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.settings import VM, Host

#: The name in a configuration: the class, which is imported when somebody wants it (libvirt's library is not small).
BACKENDS: Final[Mapping[str, str]] = {
    "libvirt": "jitsu_tw.backends.libvirt:LibvirtBackend",
    "libxl": "jitsu_tw.backends.libxl:LibxlBackend",
    "memory": "jitsu_tw.backends.memory:MemoryBackend",
    "xapi": "jitsu_tw.backends.xapi:XapiBackend",
}

#: The extra in setup.cfg that installs what a backend imports, for those that need one.
EXTRAS: Final[Mapping[str, str]] = {"xapi": "xapi"}


def backend_class(kind: str) -> type[IBackend]:
    """Return the class of the backend *kind*, which is one of `BACKENDS`."""
    module, name = BACKENDS[kind].split(":")
    found: type[IBackend] = getattr(import_module(module), name)
    return found


def backends_for(vms: tuple[VM, ...], hosts: tuple[Host, ...] = ()) -> dict[tuple[str, str], IBackend]:
    """Return a backend for each pair of kind and URI that *vms* name, and one for all *hosts* together."""
    made: dict[tuple[str, str], IBackend] = {}
    if hosts:
        made[HOSTS, ""] = Pool({host.name: backend_class(host.backend)(host.connect) for host in hosts})
    for vm in vms:
        if (vm.backend, vm.connect) not in made:
            made[vm.backend, vm.connect] = backend_class(vm.backend)(vm.connect)
    return made
