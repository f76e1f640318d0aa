"""
What a zone's keys do at a time, and the steps of a rollover by double signature (RFC 6781, 4.1.2; RFC 7583). Pure.

All is told from the times of the keys alone, which are in their files, so that a rollover goes on after a restart.
Times are seconds since 1970. A rollover has these steps:

1. The new key is published, and signs beside the old one (`rolled`).
2. When no cache has a DNSKEY RRset or a signature from before any more, CDS and CDNSKEY announce the DS record of the
   new key, and not that of the old one.
3. The operator tells that the parent has the new DS record (`ds_seen`).
4. When no cache has the old DS record any more, the old key is removed.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How the words of a step begin that is none.
NOTHING: Final = "nothing to do: "

#: Seconds that caches are taken to keep the DS records of a parent, unless the operator knows better.
DS_TTL: Final = 86400


class RolloverError(JitsuError):
    """A step of a rollover that cannot be taken now; the message has the reason and the remedy."""


class KeyState(enum.Enum):
    """What a key does."""

    WAITING = "waiting"  # it is not in the zone yet
    PUBLISHED = "published"  # it is in the DNSKEY RRset, and signs nothing yet
    ACTIVE = "active"  # it signs
    RETIRED = "retired"  # it signs nothing any more, and is in the DNSKEY RRset for the sake of caches
    REMOVED = "removed"  # it is in the zone no more


@attrs.frozen
class Times:
    """
    The times of a key, as BIND's files have them; None: never.

    Attributes:
        created: it was made.
        publish, delete: from the one to the other it is in the DNSKEY RRset.
        activate, inactive: from the one to the other it signs.
        sync_publish, sync_delete: from the one to the other CDS and CDNSKEY announce it to the parent.
    """

    created: int | None = None
    publish: int | None = None
    activate: int | None = None
    inactive: int | None = None
    delete: int | None = None
    sync_publish: int | None = None
    sync_delete: int | None = None

    @classmethod
    def beginning(cls, now: int, wait: int) -> Times:
        """Return the times of a key that signs from *now* on, and is announced *wait* seconds later."""
        return cls(created=now, publish=now, activate=now, sync_publish=now + wait)

    def state(self, now: float) -> KeyState:
        """Return what the key does at *now*."""
        if _past(self.delete, now):
            return KeyState.REMOVED
        if not _past(self.publish, now):
            return KeyState.WAITING
        if _past(self.inactive, now):
            return KeyState.RETIRED
        return KeyState.ACTIVE if _past(self.activate, now) else KeyState.PUBLISHED

    def next_after(self, now: float) -> int | None:
        """Return the first of the times that is later than *now*; None if there is none."""
        return min((at for at in attrs.astuple(self) if at is not None and at > now), default=None)


@attrs.frozen
class Step:
    """
    What comes next.

    Attributes:
        at: when, in seconds since 1970; None where it is the operator's to do, or there is nothing to do.
        words: a sentence for the operator.
    """

    at: int | None
    words: str


@attrs.frozen
class Plan:
    """
    What the keys of a zone do at a time; keys are named by their tags.

    Attributes:
        states: what each key does.
        published: the keys of the DNSKEY RRset.
        signing: those that sign.
        announced: the key that CDS and CDNSKEY announce; None for none.
        is_leaving: CDS and CDNSKEY ask the parent to remove the DS records (RFC 8078, 4), as no key of the DNSKEY RRset
            is to be announced any more.
        until: when this plan ends, as a time of a key comes; None if it does not.
        step: what comes next.
    """

    states: Mapping[int, KeyState]
    published: tuple[int, ...]
    signing: tuple[int, ...]
    announced: int | None
    is_leaving: bool
    until: int | None
    step: Step


def plan(keys: Mapping[int, Times], now: float) -> Plan:
    """Return what *keys*, by their tags, do at *now*."""
    states = {tag: times.state(now) for tag, times in keys.items()}
    published = tuple(tag for tag in _by_age(keys) if states[tag] not in {KeyState.WAITING, KeyState.REMOVED})
    signing = tuple(tag for tag in published if states[tag] is KeyState.ACTIVE)
    # Of one key the announcement has an end when another takes its place: only the end of all of them asks for removal.
    lasting = tuple(tag for tag in published if not _past(keys[tag].sync_delete, now))
    is_leaving = bool(published) and not lasting
    # The newest key counts: the announcement of an older one ends with it, also where its own file does not say so yet.
    told = next((tag for tag in reversed(lasting) if _past(keys[tag].sync_publish, now)), None)
    until = min((at for times in keys.values() if (at := times.next_after(now)) is not None), default=None)
    step = _step(keys, signing, told, is_leaving=is_leaving)
    if signing and (end := _end(keys, now)) is not None:
        words = f"{step.words.removeprefix(NOTHING)}; but at {clock(end)}, no key signs any more: before that, roll the"
        words += " key, or take its end away: dnssec-settime -I none -D none"
        step = Step(end if step.at is None else step.at, words)
    return Plan(states, published, signing, told, is_leaving, until, step)


def _step(keys: Mapping[int, Times], signing: tuple[int, ...], announced: int | None, *, is_leaving: bool) -> Step:
    """Return what comes next for *keys*, of which those in *signing* sign, the oldest first."""
    if is_leaving:
        words = "when the parent has no DS record any more, and its TTL has passed, take the zone out of dnssec"
        return Step(None, words)
    if not signing:
        words = "no key signs now: restore the key files, or correct their times (dnssec-settime), or the clock"
        return Step(None, words)
    newest, old = signing[-1], signing[:-1]
    if announced != newest:
        at = keys[newest].sync_publish
        if at is None:
            words = f"key {newest} is not announced; dnssec-settime -P sync sets from when CDS and CDNSKEY have it"
        else:
            words = f"at {clock(at)}, CDS and CDNSKEY announce key {newest} to the parent; set its DS record no sooner"
        return Step(at, words)
    if leaving := [(at, tag) for tag in old if (at := keys[tag].delete) is not None]:
        at, tag = min(leaving)
        return Step(at, f"at {clock(at)}, when no cache has its DS record any more, key {tag} is removed")
    if old:
        words = f"set the DS record of key {newest} at the parent, in place of the old one; when all servers of"
        return Step(None, f"{words} the parent have it: jitsuctl dnssec ds-seen")
    return Step(None, f"{NOTHING}key {newest} signs, and is announced to the parent")


def _end(keys: Mapping[int, Times], now: float) -> int | None:
    """Return the first time after *now* at which a key ends and none of *keys* signs any more; None without any."""
    ends = sorted(at for times in keys.values() for at in (times.inactive, times.delete) if at is not None and at > now)
    return next((at for at in ends if all(times.state(at) is not KeyState.ACTIVE for times in keys.values())), None)


def rolled(keys: Mapping[int, Times], now: int, wait: int) -> tuple[Times, dict[int, Times]]:
    """
    Begin a rollover.

    Args:
        keys: the times of the keys, by tag.
        now: seconds since 1970.
        wait: seconds for which caches may have a DNSKEY RRset, or a signature, from before.

    Returns:
        the times of the new key, and those of the keys whose times change: the old key has no end before `ds_seen`.

    Raises:
        RolloverError: a rollover is under way already, or the zone is about to be unsigned.
    """
    present = plan(keys, now)
    if present.is_leaving:
        raise RolloverError("the parent is asked to remove its DS records; a new key would not be announced")
    if len(present.signing) != 1 or any(state is KeyState.WAITING for state in present.states.values()):
        raise RolloverError(f"a rollover is under way: {present.step.words}")
    (old,) = present.signing
    # Made later than the old key, also within one second: the order of the keys is by time.
    new = attrs.evolve(Times.beginning(now, wait), created=max(now, (keys[old].created or 0) + 1))
    return new, {old: attrs.evolve(keys[old], inactive=None, delete=None, sync_delete=new.sync_publish)}


def ds_seen(keys: Mapping[int, Times], now: int, ds_ttl: int) -> dict[int, Times]:
    """
    Go on with a rollover: the parent has the DS record of the new key.

    Args:
        keys: the times of the keys, by tag.
        now: seconds since 1970.
        ds_ttl: of the DS records at the parent, in seconds.

    Returns:
        the times of the keys whose times change: the old ones, which are removed when the old DS record has expired.

    Raises:
        RolloverError: no rollover waits for the parent.
    """
    present = plan(keys, now)
    old = present.signing[:-1]
    if present.is_leaving or not old or any(keys[tag].delete is not None for tag in old):
        raise RolloverError(f"no rollover waits for the parent: {present.step.words}")
    if present.announced != present.signing[-1]:
        raise RolloverError(f"too early, as caches may have the zone without the new key: {present.step.words}")
    return {tag: attrs.evolve(keys[tag], inactive=now + ds_ttl, delete=now + ds_ttl) for tag in old}


def leaving(keys: Mapping[int, Times], now: int) -> dict[int, Times]:
    """
    Return the times of *keys* with which CDS and CDNSKEY ask the parent to remove its DS records (RFC 8078, 4).

    What was to be announced, and when, stays in the times: so that is right again when the ends of that are taken away.

    Raises:
        RolloverError: they do so already.
    """
    present = plan(keys, now)
    if present.is_leaving:
        raise RolloverError(f"the parent is asked to remove its DS records already: {present.step.words}")
    return {
        tag: attrs.evolve(times, sync_delete=now)
        for tag, times in keys.items()
        if present.states[tag] is not KeyState.REMOVED
    }


def clock(at: float) -> str:
    """Return a time as text, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _past(at: int | None, now: float) -> bool:
    return at is not None and at <= now


def _by_age(keys: Mapping[int, Times]) -> list[int]:
    """Return the tags of *keys*, the oldest first."""
    return sorted(keys, key=lambda tag: (keys[tag].activate or 0, keys[tag].created or 0, tag))
