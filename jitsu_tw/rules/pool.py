"""
On which host of several a VM is, and where it may be started. Nothing here does I/O or reads a clock.

A VM must never run on two hosts. So where a host cannot be asked, and the VM may run there, it is not known what the VM
does, and it is started nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.ijitsu import Power

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from jitsu_tw.settings import VM

#: What a VM is that runs nowhere: the first of these that any host tells.
RANK: Final = (Power.PREPARED, Power.PAUSED, Power.SAVED, Power.OFF)

#: Why a VM may come up although it is seen on no host.
IN_DOUBT: Final = "a start that another node, or a call of this one, has begun may yet go on"


@attrs.frozen
class Sighting:
    """
    What a host tells of a VM.

    Attributes:
        host: its name.
        power: what the VM is there; None if the host does not know it, or has never been asked.
        lost: why *power* is only what was last seen: the host cannot be asked now; empty if it was asked.
    """

    host: str
    power: Power | None
    lost: str = ""


@attrs.frozen
class Located:
    """
    Where a VM is.

    Attributes:
        power: what it is.
        host: where it is that; meaningless for one that is off.
        running: all hosts that tell that it runs there; more than one is a fault.
    """

    power: Power
    host: str
    running: tuple[str, ...] = ()


@attrs.frozen
class Unsure:
    """
    It is not known what a VM does.

    Attributes:
        reason: why.
    """

    reason: str


def locate(
    sightings: Iterable[Sighting], hosts: Container[str], last_host: str | None, *, in_doubt: bool
) -> Located | Unsure | None:
    """
    Return where a VM is.

    Args:
        sightings: one of each host that was looked at, those that count more first.
        hosts: those that it may run on, by the configuration. Of another host, a sighting counts if the VM runs there,
            or if the host cannot be asked.
        last_host: the host that it was started on; empty if it was started on none, None if that is not known.
        in_doubt: whether a start that was begun before may bring it up yet, though it is seen on no host.

    Returns:
        None if no host knows the VM.
    """
    sightings = [one for one in sightings if one.host in hosts or one.power is Power.RUNNING or one.lost]
    running = tuple(one.host for one in sightings if one.power is Power.RUNNING and not one.lost)
    if running:
        return Located(Power.RUNNING, running[0], running)
    for one in sightings:
        if one.lost and _may_run(one, last_host):
            return Unsure(f"it may run on {one.host}: {one.lost}")
    powers = {one.host: _unless_lost(one) for one in sightings}
    found = next(((power, host) for power in RANK for host in powers if powers[host] is power), None)
    if found is None:
        return None
    return Unsure(IN_DOUBT) if in_doubt else Located(*found)


def _unless_lost(sighting: Sighting) -> Power | None:
    """Return what a VM is on a host; where that cannot be asked, what may be there counts if it cannot be made anew."""
    lost = sighting.lost and sighting.power in {None, Power.PREPARED}
    return Power.OFF if lost else sighting.power


def _may_run(sighting: Sighting, last_host: str | None) -> bool:
    """Return whether a VM may run on a host that cannot be asked."""
    unknown = last_host is None and sighting.power is not Power.OFF
    return unknown or last_host == sighting.host or sighting.power is Power.RUNNING


def pinned(at: str | None, last_host: str | None, usable: Iterable[str]) -> str | None:
    """
    Return the only host that a VM which does not run may be started on; None if it may be started on any.

    Args:
        at: where it is paused, or has its image; None if it is nowhere.
        last_host: as in `locate`. It has not been seen down there since: a call may be under way.
        usable: the hosts but for those that are fenced.
    """
    return at or next((host for host in usable if host == last_host), None)


def rank(vm: VM, free: Mapping[str, int], wanted: str | None) -> list[str]:
    """
    Return hosts in the order in which they are tried for a start of *vm*.

    Args:
        vm: prefers some hosts, in their order, and avoids others.
        free: the free memory of each host that it may start on, in octets.
        wanted: a host that goes before all others; None if none does.
    """

    def key(host: str) -> tuple[bool, int, bool, int]:
        preferred = vm.prefer.index(host) if host in vm.prefer else len(vm.prefer)
        return host != wanted, preferred, host in vm.avoid, -free[host]

    return sorted(free, key=key)
