"""
The service that signs zones: their keys, the renewal of signatures, and rollovers.

Keys are read at the start and with each reload, before the zones are served, and again when a file in their directory
has changed: so the nodes of a cluster that share a directory follow a rollover that one of them began. What cannot be
read then is a problem, and the zones stay signed with the keys in memory.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import DeferredLock
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from jitsu_tw.coroutines import deferred, report
from jitsu_tw.dns import dnskeys, keytimes
from jitsu_tw.dns.chain import NsecChain
from jitsu_tw.dns.dnskeys import KeyFileError
from jitsu_tw.dns.keytimes import Times
from jitsu_tw.dns.signing import EARLIER, Signed
from jitsu_tw.dns.wire import NSEC, NSEC3, NSEC3PARAM, RRSIG, to_text
from jitsu_tw.errors import ConfigError, StoreError, ZoneError
from jitsu_tw.idnssec import KeyStatus, ZoneStatus
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.layout import DNSSEC, STATISTICS, zone_label
from jitsu_tw.sync.signed_zones import LEAVING, SignedZones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.dns.dnskeys import Key
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.settings import Dnssec, Settings

    #: Computes the new times of the keys of a zone, by their tags, and those of a new key, if there is to be one.
    Change = Callable[[Mapping[int, Times], Zone], tuple[Times | None, Mapping[int, Times]]]

#: Seconds between two looks at the directory, and at the times of the keys.
LOOK_EVERY: Final = 5.0

#: The types by which a zone was signed, beside its keys.
PROOFS: Final = frozenset({RRSIG, NSEC, NSEC3, NSEC3PARAM})

#: The parts of the validity of signatures between two looks for those that are to be renewed: secondaries fetch the
#: zone each time that there are some.
RENEWALS: Final = 100


class ZoneSigning(SignedZones):
    """
    Signs zones. It owns, and nobody else writes: the files of keys, and what the state has of them.

    The signed zones themselves are those in `Zones` whose `security` is a `Signed`.
    """

    def __init__(
        self, dnssec: Dnssec, zones: Zones, store: IStore, clocks: Clocks, renewed: Callable[[Iterable[Zone]], None]
    ) -> None:
        """
        Sign nothing yet.

        Args:
            dnssec: the configuration.
            zones: all served zones.
            store: the state.
            clocks: the clocks.
            renewed: is called with zones whose signatures are new: answers that are kept are stale.
        """
        super().__init__(zones, clocks.wall)
        self._dnssec, self._store, self._renewed = dnssec, store, renewed
        self._seen: object = None
        self._problems: dict[bytes, str] = {}
        self._lock = DeferredLock()
        self._renew_at = self._latest = -inf
        self._looking = LoopingCall(self._look)
        self._looking.clock = clocks.reactor

    # The life of the service.

    def restore(self, tree: Mapping[str, str]) -> None:
        """
        Sign the zones, with new keys where neither the directory nor *tree*, the state, has any; nothing is served yet.

        Raises:
            KeyFileError: a key is missing, or cannot be used.
        """
        self._seen = dnskeys.seen(self._dnssec.keys)
        super().restore(tree)
        self._bump(self._zones)

    def start(self) -> None:
        """Begin to look at the keys and the signatures."""
        super().start()
        self._looking.start(LOOK_EVERY)

    async def stop(self) -> None:
        """End that."""
        if self._looking.running:
            self._looking.stop()
        await self._lock.acquire()

    def replaced(self, zones: Iterable[Zone]) -> None:
        """Handle that *zones* were read anew, in the moment in which they begin to be served."""
        self._bump(zones)
        self._seen = object()  # keys may have changed after these zones were signed with them
        super().replaced(zones)

    @staticmethod
    def _bump(zones: Iterable[Zone]) -> None:
        """Raise the serials of those of *zones* that Jitsu signs: secondaries would keep signatures that expire."""
        for zone in zones:
            if isinstance(zone.security, Signed):
                zone.bump()

    def secure(self, zones: Iterable[Zone]) -> None:
        """
        Sign those of *zones*, which are not served yet, that are to be signed; this blocks, and may be in a thread.

        Raises:
            KeyFileError: a key is missing, or cannot be used.
            ZoneError: a zone has records of an earlier signing.
        """
        todo = {zone.key: zone for zone in zones if is_wanted(self._dnssec, zone)}
        if not todo:
            return
        for zone in todo.values():
            _check_unsigned(zone)
        with dnskeys.locked(self._dnssec.keys):
            found = dnskeys.read(self._dnssec.keys, todo)
            for key, zone in todo.items():
                keys = _whole(self._dnssec.keys, key, self._kept, found[key])
                if gone := _gone(self._dnssec.keys, key, self._kept, keys):
                    raise gone
                if not keys:
                    times = Times.beginning(int(self._wall()), zone.longest_ttl)
                    keys = (dnskeys.make(self._dnssec.keys, key, self._dnssec.algorithm, times),)
                    self.log.info("{zone}: made the key {key}, as it had none", zone=to_text(key), key=keys[0].stem)
                if problem := idle(self._dnssec.keys, key, keys, self._wall()):
                    raise problem
                zone.secure(Signed(zone, keys, NsecChain(zone), self._wall, self._dnssec.validity))

    def _signed(self) -> list[Signed]:
        found: list[Signed] = []
        for zone in self._zones:
            security = zone.security
            if isinstance(security, Signed):
                found.append(security)
        return found

    def _come_signed(self) -> list[Zone]:
        return [zone for zone in super()._come_signed() if not isinstance(zone.security, Signed)]

    # What comes with time.

    @deferred
    async def _look(self) -> None:
        """Follow the times of the keys, renew signatures, and read keys whose files have changed."""
        try:
            await self._lock.run(self._look_at_all)
        except Exception:  # noqa: BLE001 -- wide: a fault of Jitsu must not end the renewal of signatures
            report(self.log)

    @deferred
    async def _look_at_all(self) -> None:
        now = self._wall()
        was_set_back = now < self._latest - EARLIER  # so that signatures begin to be valid in the future
        self._latest = now if was_set_back else max(now, self._latest)
        for signed in self._signed():
            if was_set_back or (signed.plan.until is not None and signed.plan.until <= now):
                if idle(self._dnssec.keys, signed.zone.key, signed.keys, now) is None:
                    self._use(signed, signed.keys)
                    continue
                self._seen = object()  # the look at the files notes the problem
                if was_set_back:
                    signed.forget()
                    self._tell([signed.zone])
        if was_set_back or now >= self._renew_at:
            self._renew_at = now + self._dnssec.validity / RENEWALS
            self._tell([one.zone for one in self._signed() if one.renew(now)])
        await self._look_at_files()
        await self._write()

    async def _look_at_files(self) -> None:
        """Read the keys if a file in their directory has changed, or while there is a problem."""
        seen = await deferToThread(dnskeys.seen, self._dnssec.keys)
        if seen == self._seen and not self._problems:
            return
        zones = [one.zone.key for one in self._signed()]
        self._seen = seen
        try:
            found = await deferToThread(dnskeys.read, self._dnssec.keys, zones)
        except KeyFileError as error:
            self._note(dict.fromkeys(zones, str(error)))
            return
        problems = {}
        for signed in self._signed():
            key = signed.zone.key
            keys = found.get(key, signed.keys)
            if isinstance(keys, KeyFileError):
                problems[key] = str(keys)
            elif problem := (
                _gone(self._dnssec.keys, key, self._kept, keys) or idle(self._dnssec.keys, key, keys, self._wall())
            ):
                problems[key] = str(problem)
            elif keys != signed.keys or key in self._problems:
                self._use(signed, keys)
        self._note(problems)

    def _note(self, problems: Mapping[bytes, str]) -> None:
        """Note the *problems* of zones, and log those that are new."""
        for key, problem in problems.items():
            if self._problems.get(key) != problem:
                self.log.error(
                    "{problem}; until then, {zone} stays signed with the keys in memory, so do not end Jitsu",
                    problem=problem, zone=to_text(key),
                )  # fmt: skip
        for key in self._problems.keys() - problems.keys():
            self.log.info("{zone}: its keys can be used again", zone=to_text(key))
        self._problems = dict(problems)

    def _use(self, signed: Signed, keys: Iterable[Key]) -> None:
        """Sign with *keys* from now on, as their times want it."""
        signed.use(keys)
        self.log.info("{zone}: {step}", zone=to_text(signed.zone.key), step=signed.plan.step.words)
        self._tell([signed.zone])

    def _tell(self, zones: list[Zone]) -> None:
        """Tell that the signatures of *zones* are new, if there are some."""
        if zones:
            self._bump(zones)
            self._renewed(zones)

    async def _write(self) -> None:
        """Write into the state which keys the zones are signed with, where it says otherwise."""
        due = {}
        for signed in self._signed():
            names = [name(key) for key in signed.keys if key.tag in signed.plan.published]
            value = " ".join([*names, *[LEAVING] * signed.plan.is_leaving])
            if self._kept.get(label := zone_label(signed.zone.key)) != value:
                due[label] = value
        if not due:
            return
        try:
            await self._store.write({f"{DNSSEC}/{label}": value for label, value in due.items()}, STATISTICS)
        except StoreError as error:
            self.log.error("the keys of zones cannot be written to the state: {error}", error=str(error))
        else:
            self._kept |= due

    # What is shown.

    def _status(self, zone: Zone) -> ZoneStatus:
        """Return the status of a zone."""
        signed = zone.security
        if not isinstance(signed, Signed):
            return super()._status(zone)
        plan = signed.plan
        keys = tuple(
            KeyStatus(key.tag, key.algorithm, plan.states[key.tag].value, key.tag == plan.announced, ds)
            for key in signed.keys
            for ds in ["" if plan.is_leaving else ds_text(key)]
        )
        problem = self._problems.get(zone.key)
        return ZoneStatus(
            to_text(zone.key),
            "Jitsu",
            keys,
            plan.step.at,
            plan.step.words,
            None if signed.earliest == inf else signed.earliest,
            signed.made,
            () if problem is None else (problem,),
        )

    # What is done.

    async def rollover(self, zone: str) -> ZoneStatus:
        """Begin a rollover (`IDnssec.rollover`)."""

        def change(times: Mapping[int, Times], of: Zone) -> tuple[Times | None, Mapping[int, Times]]:
            return keytimes.rolled(times, int(self._wall()), of.longest_ttl)

        return await self._lock.run(self._change, zone, change)

    async def ds_seen(self, zone: str, ds_ttl: int) -> ZoneStatus:
        """Go on with a rollover (`IDnssec.ds_seen`)."""

        def change(times: Mapping[int, Times], _: Zone) -> tuple[Times | None, Mapping[int, Times]]:
            return None, keytimes.ds_seen(times, int(self._wall()), ds_ttl)

        return await self._lock.run(self._change, zone, change)

    async def leave(self, zone: str) -> ZoneStatus:
        """Ask the parent to remove its DS records (`IDnssec.leave`)."""

        def change(times: Mapping[int, Times], _: Zone) -> tuple[Times | None, Mapping[int, Times]]:
            return None, keytimes.leaving(times, int(self._wall()))

        return await self._lock.run(self._change, zone, change)

    @deferred
    async def _change(self, zone: str, change: Change) -> ZoneStatus:
        """Write what *change* makes of the keys of *zone*, and use them."""
        signed = next((one for one in self._signed() if to_text(one.zone.key) == plain(zone)), None)
        if signed is None:
            raise self._refusal(zone)
        keys = await deferToThread(self._changed_files, signed.zone, change)
        if isinstance(signed.zone.security, Signed):
            self._use(signed.zone.security, keys)
        await self._write()
        return self._status(signed.zone)

    def _changed_files(self, zone: Zone, change: Change) -> tuple[Key, ...]:
        """Change the files of the keys of *zone*, and return its keys; in a thread."""
        directory = self._dnssec.keys
        with dnskeys.locked(directory):
            keys = _whole(directory, zone.key, self._kept, dnskeys.read(directory, [zone.key])[zone.key])
            if gone := _gone(directory, zone.key, self._kept, keys):
                raise gone
            new, changed = change({key.tag: key.times for key in keys}, zone)
            if new is not None:
                dnskeys.make(directory, zone.key, self._dnssec.algorithm, new, [key.tag for key in keys])
            dnskeys.put(directory, keys, changed)
            again = dnskeys.read(directory, [zone.key])[zone.key]
        if isinstance(again, KeyFileError):
            raise again
        return again


def _gone(directory: Path, zone: bytes, kept: Mapping[str, str], keys: Iterable[Key]) -> KeyFileError | None:
    """Return the error if the state, which has *kept*, has a key of *zone* that is not among *keys* in *directory*."""
    known = {LEAVING, *map(name, keys)}
    for one in kept.get(zone_label(zone), "").split():
        if one not in known:
            path = directory / f"{dnskeys.stem(zone)}+{one}.private"
            message = f"{to_text(zone)} is signed with this key, and it is gone: restore it and its .key file; or,"
            return KeyFileError(f"{message} if it is lost, end Jitsu, and: jitsuctl dnssec init --lost", path)
    return None


def _check_unsigned(zone: Zone) -> None:
    """
    Refuse *zone* if it has signatures or proofs of an earlier signing: beside Jitsu's own, these would be wrong.

    Raises:
        ZoneError: it has; a name has one NSEC record (RFC 4035, 2.3), and NSEC3PARAM is for its chain (RFC 5155, 4).
    """
    for key, node in zone.nodes.items():
        if not PROOFS.isdisjoint(node.rrsets):
            message = f"{to_text(key)} has records of an earlier signing: take RRSIG, NSEC, NSEC3 and NSEC3PARAM out,"
            message += " as Jitsu is to sign the zone; or sign the whole zone again, with DNSKEY"
            raise ZoneError(message, zone.path)


def _whole(
    directory: Path, zone: bytes, kept: Mapping[str, str], keys: tuple[Key, ...] | KeyFileError
) -> tuple[Key, ...]:
    """
    Return *keys*, those of *zone*, or finish what a process has begun that was killed; the directory is `locked`.

    A key that the state does not have, in *kept*, has signed nothing that was served.

    Raises:
        KeyFileError: a key cannot be used.
    """
    if isinstance(keys, KeyFileError):
        dnskeys.finish(directory, zone, kept.get(zone_label(zone), "").split())
        keys = dnskeys.read(directory, [zone])[zone]
    if isinstance(keys, KeyFileError):
        raise keys
    return keys


def idle(directory: Path, zone: bytes, keys: Iterable[Key], now: float) -> KeyFileError | None:
    """Return the error if none of *keys*, those of *zone* in *directory*, signs at *now*, in seconds since 1970."""
    plan = keytimes.plan({key.tag: key.times for key in keys}, now)
    return None if plan.signing else KeyFileError(plan.step.words, directory / f"{dnskeys.stem(zone)}+*")


def is_wanted(dnssec: Dnssec, zone: Zone) -> bool:
    """Return whether Jitsu is to sign *zone*, as *dnssec* says, and does not sign it yet."""
    return zone.security is None and (not dnssec.zones or zone.key in {name.lower() for name in dnssec.zones})


def make_key(settings: Settings, zones: Zones, zone: str, *, lost: bool) -> list[str]:
    """
    Make a key for *zone* while Jitsu does not run.

    Args:
        settings: the configuration.
        zones: its zones.
        zone: the name of one.
        lost: keys that the state has, and that are gone, are forgotten.

    Returns:
        what was done, as lines.

    Raises:
        JitsuError: Jitsu runs, or does not sign the zone; or keys are gone, and *lost* is not set; or the reverse.
    """
    found = next((one for one in zones if to_text(one.key) == plain(zone)), None)
    if settings.dnssec is None or found is None or not is_wanted(settings.dnssec, found):
        raise ConfigError(f"Jitsu is not to sign {zone}; the configuration names the zones, in the group dnssec")
    assert settings.persistdb is not None
    store, directory = GitStore(settings.persistdb), settings.dnssec.keys
    label, is_first = zone_label(found.key), not settings.persistdb.exists()
    before = "" if is_first else store.open().get(f"{DNSSEC}/{label}", "")
    kept = {label: before}
    if not directory.exists():  # what is refused makes nothing
        _check_lost(directory, zone, _gone(directory, found.key, kept, ()), lost=lost)
    with dnskeys.locked(directory):
        lines = dnskeys.salvage(directory, found.key) if lost else []
        keys = _whole(directory, found.key, kept, dnskeys.read(directory, [found.key])[found.key])
        gone = _gone(directory, found.key, kept, keys)
        if not lines:
            _check_lost(directory, zone, gone, lost=lost)
        now = time.time()
        plan = keytimes.plan({key.tag: key.times for key in keys}, now)
        used = [name(key) for key in keys if key.tag in plan.published]
        if plan.signing:
            key = next(key for key in keys if key.tag == plan.signing[-1])
            if gone is not None and LEAVING not in before:  # the one that was to take its place may be lost
                times = attrs.evolve(key.times, inactive=None, delete=None, sync_delete=None)
                dnskeys.put(directory, [key], {key.tag: times})
            lines.append(f"{zone} has the key {key.stem}, which signs, so no other one was made; its DS record:")
        else:
            # Where a key is lost, resolvers refuse the zone already: the new DS record cannot come too early.
            wait = found.longest_ttl if gone is None or LEAVING in before else 0
            times = Times.beginning(int(now), wait)
            taken = [key.tag for key in keys]
            key = dnskeys.make(directory, found.key, settings.dnssec.algorithm, times, taken)
            used.append(name(key))
            lines.append(f"made the key {key.stem}; its DS record for the parent:")
        lines.append(ds_text(key))
    if is_first:
        store.open()
    after = " ".join(used)
    message = f"Keys of {to_text(found.key)}: {after}, before {before or 'none'}"
    store.history.commit({f"{DNSSEC}/{label}": after}, message)
    store.close()
    return lines


def _check_lost(directory: Path, zone: str, gone: KeyFileError | None, *, lost: bool) -> None:
    """Refuse to go on if a key of *zone* is *gone*, and the operator has not said that it is *lost*; or the reverse."""
    if gone is not None and not lost:
        raise gone
    if gone is None and lost:
        raise ConfigError(f"no key of {zone} is lost: all that the state has are in {directory}")


def plain(zone: str) -> str:
    """Return the name of a zone that an operator has written, as `to_text` has it."""
    return zone.lower().removesuffix(".") or "."


def name(key: Key) -> str:
    """Return what the state calls *key*: the end of the name of its files."""
    return f"{key.algorithm:03}+{key.tag:05}"


def ds_text(key: Key) -> str:
    """Return the DS record of *key* as text, as a zone file of the parent has it."""
    ds = key.ds
    owner = to_text(key.zone).removesuffix(".") + "."
    return f"{owner} IN DS {key.tag} {key.algorithm} {ds[3]} {ds[4:].hex().upper()}"
