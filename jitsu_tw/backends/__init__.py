"""The backends: hypervisors behind one interface, `ijitsu.IBackend`. A new one is a class, and a row here."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.backends.domain_xml import check_definition
from jitsu_tw.backends.memory import MemorySettings
from jitsu_tw.backends.pool import Pool
from jitsu_tw.backends.preset import PRESETS, CommandSettings, Preset, check_vm
from jitsu_tw.backends.xen import XenGuest
from jitsu_tw.settings import HOSTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.settings import VM, Host


@attrs.frozen(kw_only=True)
class Declaration:
    """
    What the configuration has to know of a backend, whose library need not be installed for that.

    Attributes:
        path: the class, as ``module:class``; it is imported when a configuration names the backend.
        extra: the extra of setup.cfg that installs its library; empty for none.
        connect: the hypervisor's URI where the configuration has none.
        uris: a URI tells its hypervisors apart; so a host needs one.
        host: it may be one of several `hosts`.
        images: it can keep the image of a ready guest (`boot_from: snapshot`).
        makes: it can make VMs, and remove what is left of them (`IBackend.remove`), as templates need it.
        prepares: it can tell a paused guest that no client has used from others (`prepare`).
        settings: the keys that only its VMs have: a class with a field for each (`keys.setting`); None for none. An
            instance of it is the VM's `backend_settings`, if the VM has one of these keys.
        strict: other backends' VMs must not have these keys; if not, they have no meaning there.
        check_uri: raises a ValueError for a text that cannot be the URI of one of its hypervisors; None where any may.
        check_definition: raises a ValueError if the octets of a `define` file do not define the VM of a name; None
            where that cannot be told beforehand.
        check_vm: raises a ConfigError, with the key, if a VM cannot be one of the backend of a name; None for no check.
        preset: the first argument of the class, before the URI; None for none.
    """

    path: str
    extra: str = ""
    connect: str = ""
    uris: bool = True
    host: bool = True
    images: bool = True
    makes: bool = True
    prepares: bool = True
    settings: type[attrs.AttrsInstance] | None = None
    strict: bool = True
    check_uri: Callable[[str], None] | None = None
    check_definition: Callable[[bytes, str], None] | None = None
    check_vm: Callable[[VM, str], None] | None = None
    preset: Preset | None = None

    def load(self) -> Callable[[str], IBackend]:
        """Return what makes a backend of a URI."""
        module, name = self.path.split(":")
        found: Callable[..., IBackend] = getattr(import_module(module), name)
        return found if self.preset is None else partial(found, self.preset)


def check_uri(text: str) -> None:
    """Refuse what libvirt would take for a URI, but cannot open; a text without a colon may be one of its aliases."""
    if ":" in text and "://" not in text:
        raise ValueError(f"{text!r} is no URI of libvirt's; write one like qemu:///system")


#: By the name in a configuration.
BACKENDS: Final[dict[str, Declaration]] = {
    "libvirt": Declaration(
        path="jitsu_tw.backends.libvirt:LibvirtBackend", connect="qemu:///system", check_uri=check_uri,
        check_definition=check_definition,
    ),
    "libxl": Declaration(
        path="jitsu_tw.backends.libxl:LibxlBackend", uris=False, host=False, settings=XenGuest
    ),
    "memory": Declaration(
        # A configuration that was tried with this backend keeps its keys.
        path="jitsu_tw.backends.memory:MemoryBackend", uris=False, settings=MemorySettings, strict=False
    ),
    "xapi": Declaration(
        path="jitsu_tw.backends.xapi:XapiBackend", extra="xapi", images=False, makes=False, prepares=False
    ),
    **{
        name: Declaration(
            path="jitsu_tw.backends.command:CommandBackend", uris=False, host=False, images=False, makes=False,
            prepares=False, settings=CommandSettings, check_vm=check_vm, preset=preset,
        )
        for name, preset in PRESETS.items()
    },
}  # fmt: skip


def backends_for(
    vms: tuple[VM, ...], hosts: tuple[Host, ...] = (), others: tuple[tuple[str, str], ...] = ()
) -> dict[tuple[str, str], IBackend]:
    """Return a backend for each pair of kind and URI in *others* or that *vms* name, and one for all *hosts*."""
    made: dict[tuple[str, str], IBackend] = {}
    if hosts:
        made[HOSTS, ""] = Pool({host.name: BACKENDS[host.backend].load()(host.connect) for host in hosts})
    for kind, uri in (*others, *((vm.backend, vm.connect) for vm in vms)):
        if (kind, uri) not in made:
            made[kind, uri] = BACKENDS[kind].load()(uri)
    return made
