"""Reload one zone while Jitsu runs: its file is read anew, and checked as a whole before it is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jitsu_tw.config.build import put_name
from jitsu_tw.dns.wire import to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ConfigError, Mistakes
from jitsu_tw.sync.names import reverse_names
from jitsu_tw.text import abridged

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import VM

#: The most characters of a name from a request that an error repeats.
MOST_SHOWN: Final = 100


def reading_zone(
    zones: Zones, vms: Callable[[], Iterable[VM]], name: str, secure: Callable[[Zone], Deferred[None] | None]
) -> Generator[Deferred[None] | None, None, Zone]:
    """
    Read the file of the zone *name* anew, with pauses, and answer from it; return the zone.

    Args:
        zones: all served zones.
        vms: returns all VMs; is called when the file has been read.
        name: of the zone, as text.
        secure: signs the zone, if it is to be signed, before it is served.

    Raises:
        ConfigError: the zone is not served, has no file, or its file is bad; nothing has changed.
    """
    old = next((zone for zone in zones if to_text(zone.key) == name.lower().removesuffix(".")), None)
    if old is None or old.path is None:
        why = "is not served" if old is None else "has no file: it is made up of the VMs' names"
        raise ConfigError(f"the zone {abridged(name, MOST_SHOWN)} {why}")
    new = yield from Zone.reading(old.path)
    if new.key != old.key:
        message = f"is the zone {to_text(new.key)} now, not {to_text(old.key)}; reload all zones to serve it"
        raise ConfigError(message, str(old.path))
    mistakes = Mistakes()
    for vm in vms():
        for each in vm.dns:
            if zones.find(each) is old:
                with mistakes:
                    put_name(new, each, vm)
        for each in reverse_names(vm):
            if zones.find(each) is old:
                new.add_reverse(each, vm.name, vm.dns[0], vm.ttl)
        yield None
    mistakes.end()
    yield secure(new)
    new.raise_to(old.serial)
    zones.put(new)
    return new
