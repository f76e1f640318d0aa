"""
The serials of zones, kept in the state: a secondary fetches a zone only if its serial is later than what it has.

Each change of VMs raises the serial of a zone, and the zone's file does not have that. So the state has a serial of
each zone that was raised::

    jitsu/serial/<zone>

It is later than all that were served, and ahead of them, so that it is seldom written. The serial of a zone that comes
signed is that of its file: nothing raises it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import StoreError
from jitsu_tw.store.layout import SERIALS, STATISTICS, zone_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.ijitsu import IStore

#: By how much the serial in the state is ahead of the one that is served, at most; at half of that it is written again.
AHEAD: Final = 1000

#: Seconds between two looks at the serials: in that time a host cannot make as many VMs as half of `AHEAD`.
LOOK_EVERY: Final = 2.0


class Serials:
    """Keeps the serials of zones. It owns, and nobody else writes: which serials the state has."""

    log = Logger()

    def __init__(self, zones: Zones, store: IStore, reactor: IReactorTime) -> None:
        """Keep the serials of *zones* in *store*."""
        self._zones, self._store = zones, store
        self._kept: dict[str, int] = {}
        self._began: dict[str, int] = {}
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def restore(self, tree: Mapping[str, str]) -> None:
        """Raise the serials of the zones to those of *tree*, the state; to be called before anything is served."""
        for zone in self._zones:
            if zone.presigned:
                continue
            name = zone_label(zone.key)
            self._began[name] = zone.serial
            kept = tree.get(f"{SERIALS}/{name}", "")
            if kept.isascii() and kept.isdecimal() and int(kept) < 2**32:
                self._kept[name] = int(kept)
                zone.raise_to(int(kept))

    def start(self) -> None:
        """Begin to look at the serials."""
        self._looking.start(LOOK_EVERY)

    async def stop(self) -> None:
        """End that; the state has the serials as they are."""
        if self._looking.running:
            self._looking.stop()
            await self._write(self._due(least=1, most=1))

    @deferred
    async def _look(self) -> None:
        await self._write(self._due(least=AHEAD // 2, most=AHEAD))

    def _due(self, least: int, most: int) -> dict[str, int]:
        """Return what is to be in the state, by the zones: of those not *least* to *most* ahead, one that is *most*."""
        due = {}
        for zone in self._zones:
            name, serial = zone_label(zone.key), zone.serial
            if zone.presigned:
                continue
            if name not in self._kept and serial == self._began.setdefault(name, serial):
                continue  # nothing has raised it
            if not least <= (self._kept.get(name, serial) - serial) % 2**32 <= most:
                due[name] = (serial + most) % 2**32
        return due

    async def _write(self, due: Mapping[str, int]) -> None:
        if not due:
            return
        try:
            await self._store.write({f"{SERIALS}/{name}": str(serial) for name, serial in due.items()}, STATISTICS)
        except StoreError as error:
            self.log.error("the serials of zones cannot be written, so that is tried again: {error}", error=str(error))
        else:
            self._kept |= due
