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
from jitsu_tw.dns.wire import DNSKEY, key_tag, to_text
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
    Shows the zones that come signed, and tells which zones have lost all keys by which they were signed before.

    It owns, and nobody else writes: what the checks of signed files have found, and the keys of these files.
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
        self._kept: dict[str, str] = {}
        self._came: dict[bytes, frozenset[str]] = {}
        self._broken: dict[bytes, str] = {}

    # The life of the service.

    def restore(self, tree: Mapping[str, str]) -> None:
        """
        Sign the zones, and warn of those that the state *tree* has other keys of; nothing is served yet.

        Raises:
            JitsuError: a zone cannot be signed (`secure`).
        """
        prefix = f"{DNSSEC}/"
        self._kept = {path.removeprefix(prefix): value for path, value in tree.items() if path.startswith(prefix)}
        self.secure(self._zones)
        self._compare(self._zones)

    def start(self) -> None:
        """Begin to check the zones that come signed."""
        self._checking = spawn(self.log, self._check())

    async def stop(self) -> None:
        """End."""

    def secure(self, zones: Iterable[Zone]) -> None:
        """Sign those of *zones*, which are not served yet, that are to be signed; this may block."""

    def replaced(self, zones: Iterable[Zone]) -> None:
        """Handle that *zones* were read anew, in the moment in which they begin to be served."""
        self._compare(zones)
        self._checking = spawn(self.log, self._check())

    def _compare(self, zones: Iterable[Zone]) -> None:
        """Warn of those of *zones* that have none of the keys by which they were signed before."""
        for zone in zones:
            self._broken.pop(zone.key, None)
            if zone.security is not None and not zone.presigned:
                continue  # Jitsu signs it, and keeps to the keys that the state has
            kept = self._kept.get(zone_label(zone.key), "").split()
            before = frozenset(kept) if kept and LEAVING not in kept else self._came.get(zone.key, frozenset())
            keys = _keys(zone)
            if before and before.isdisjoint(keys):
                now = "it has other keys now" if keys else "it is signed no more"
                self._broken[zone.key] = text = (
                    f"was signed by the key {', '.join(sorted(before))}, and {now}: while its parent has the old DS "
                    "record, resolvers that validate refuse its answers; sign it as before, or have that record changed"
                )
                self.log.warn("{zone}: {text}", zone=to_text(zone.key), text=text)
            elif keys:
                self._came[zone.key] = keys

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
        return [self._status(zone) for zone in self._zones if zone.security is not None or zone.key in self._broken]

    def _status(self, zone: Zone) -> ZoneStatus:
        """Return the status of one that Jitsu does not sign."""
        found = self._checked.get(zone)
        name, broken = to_text(zone.key), self._broken.get(zone.key, "")
        if zone.security is None:
            return ZoneStatus(name, "nobody", next=broken)
        if found is None:
            return ZoneStatus(name, "file", next="its signatures are being checked")
        return ZoneStatus(
            name,
            "file",
            found.keys,
            next="; ".join(filter(None, (broken, found.note))),
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


def _keys(zone: Zone) -> frozenset[str]:
    """Return the keys of a *zone* that comes signed, as the state names those of others."""
    node = zone.get(zone.key) if zone.presigned else None
    rdatas = node.rrsets[DNSKEY].rdatas if node is not None else ()
    return frozenset(f"{rdata[3]:03}+{key_tag(rdata):05}" for rdata in rdatas)
