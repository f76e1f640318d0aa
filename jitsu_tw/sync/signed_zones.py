"""
The zones that are signed: those that come signed, and what the state has of those that Jitsu signs.

The state has the keys of each zone that Jitsu signs, so that a key that is lost is noticed, and so is a zone that is
not signed any more::

    jitsu/dnssec/<zone>    013+12345 013+54321

The word ``leaving`` behind them says that the parent was asked to remove its DS records.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Final

from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import report, spawn
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import ConfigError
from jitsu_tw.idnssec import IDnssec, ZoneStatus
from jitsu_tw.store.layout import DNSSEC, zone_label
from jitsu_tw.text import abridged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.sync.signature_check import Checked

#: What the state says, behind the keys, of a zone whose parent was asked to remove its DS records.
LEAVING: Final = "leaving"

#: The most characters of a name from a request that an error repeats.
MOST_SHOWN: Final = 100


@implementer(IDnssec)
class SignedZones:
    """
    Shows the zones that come signed, and tells which zones Jitsu has signed and does not sign any more.

    It owns, and nobody else writes: what the checks of signed files have found.
    """

    log = Logger()

    def __init__(self, zones: Zones, wall: Callable[[], float] = time.time) -> None:
        """
        Look at nothing yet.

        Args:
            zones: all served zones.
            wall: returns the seconds since 1970.
        """
        self._zones, self._wall = zones, wall
        self._checked: dict[Zone, Checked] = {}
        self._checking: Deferred[None] | None = None

    # The life of the service.

    def restore(self, tree: Mapping[str, str]) -> None:
        """Warn of zones that Jitsu has signed, as the state *tree* says, and does not sign; nothing is served yet."""
        served = {zone_label(zone.key): zone for zone in self._zones}
        for path, value in tree.items():
            folder, _, label = path.rpartition("/")
            zone = served.get(label) if folder == DNSSEC and not value.endswith(LEAVING) else None
            if zone is not None and zone.security is None:
                self.log.warn(
                    "{zone}: was signed by Jitsu, and is not any more: while its parent has a DS record, resolvers "
                    "that validate refuse its answers; put it back into dnssec, or have the DS record removed",
                    zone=to_text(zone.key),
                )

    def start(self) -> None:
        """Begin to check the zones that come signed."""
        self._checking = spawn(self.log, self._check())

    async def stop(self) -> None:
        """End."""

    def secure(self, zones: Iterable[Zone]) -> None:
        """Sign those of *zones*, which are not served yet, that are to be signed; this may block."""

    def replaced(self, zones: Iterable[Zone]) -> None:  # noqa: ARG002
        """Handle that *zones* were read anew, in the moment in which they begin to be served."""
        self._checking = spawn(self.log, self._check())

    async def _check(self) -> None:
        """Check, in a thread, each zone that comes signed and has not been checked."""
        signed = self._come_signed()
        self._checked = {zone: found for zone, found in self._checked.items() if zone in signed}
        for zone in signed:
            if zone not in self._checked:
                from jitsu_tw.sync.signature_check import Checked, check  # noqa: PLC0415 -- dnspython's load slowly

                try:
                    found = await deferToThread(check, zone)
                except Exception as error:  # noqa: BLE001 -- wide: what fails for one zone must not end the others' check
                    report(self.log, to_text(zone.key))
                    found = Checked(failure=repr(error))
                self._checked[zone] = found
                if found.note:
                    self.log.warn("{zone}: {note}", zone=to_text(zone.key), note=found.note)
                for problem in found.problems(self._wall()):
                    self.log.error("{zone}: {problem}", zone=to_text(zone.key), problem=problem)

    def _come_signed(self) -> list[Zone]:
        return [zone for zone in self._zones if zone.security is not None]

    # What is shown.

    def statuses(self) -> list[ZoneStatus]:
        """Return all signed zones (`IDnssec.statuses`)."""
        return [self._status(zone) for zone in self._zones if zone.security is not None]

    def _status(self, zone: Zone) -> ZoneStatus:
        """Return the status of one that comes signed."""
        found = self._checked.get(zone)
        name = to_text(zone.key)
        if found is None:
            return ZoneStatus(name, "file", next="its signatures are being checked")
        return ZoneStatus(
            name,
            "file",
            found.keys,
            next=found.note,
            earliest_expiry=None if found.earliest == inf else found.earliest,
            signatures=found.verified,
            problems=tuple(found.problems(self._wall())),
        )

    async def checked(self) -> None:
        """Wait for the checks of zones that come signed."""
        while self._checking is not None and not self._checking.called:
            await self._checking

    # What is done.

    async def rollover(self, zone: str) -> ZoneStatus:
        """Refuse: Jitsu does not sign *zone*."""
        raise self._refusal(zone)

    async def ds_seen(self, zone: str, ds_ttl: int) -> ZoneStatus:  # noqa: ARG002
        """Refuse: Jitsu does not sign *zone*."""
        raise self._refusal(zone)

    async def leave(self, zone: str) -> ZoneStatus:
        """Refuse: Jitsu does not sign *zone*."""
        raise self._refusal(zone)

    def _refusal(self, zone: str) -> ConfigError:
        """Return the error for a *zone* that Jitsu does not sign."""
        return ConfigError(f"Jitsu does not sign {abridged(zone, MOST_SHOWN)}; jitsuctl dnssec status lists the zones")
