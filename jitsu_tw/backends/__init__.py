"""The hypervisors: one room each, one row here, one door: `ijitsu.IBackend`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.settings import VM

#: The name in a configuration: the class, which is imported when somebody wants it (libvirt's library is not small).
BACKENDS: Final[Mapping[str, str]] = {
    "libvirt": "jitsu_tw.backends.libvirt:LibvirtBackend",
    "libxl": "jitsu_tw.backends.libxl:LibxlBackend",
    "memory": "jitsu_tw.backends.memory:MemoryBackend",
    "xapi": "jitsu_tw.backends.xapi:XapiBackend",
}


def backend_class(kind: str) -> type[IBackend]:
    """Return the class of the backend *kind*, which is one of `BACKENDS`."""
    module, name = BACKENDS[kind].split(":")
    found: type[IBackend] = getattr(import_module(module), name)
    return found


def backends_for(vms: tuple[VM, ...]) -> dict[tuple[str, str], IBackend]:
    """Return a backend for each pair of kind and URI that *vms* name."""
    made: dict[tuple[str, str], IBackend] = {}
    for vm in vms:
        if (vm.backend, vm.connect) not in made:
            made[vm.backend, vm.connect] = backend_class(vm.backend)(vm.connect)
    return made
