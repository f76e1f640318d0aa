"""The interface between the zones that are signed, and the operator who sees and steers them."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence  # noqa: TC003 -- zope.interface wants it at run time
from typing import Any

import attrs
from zope.interface import Interface


@attrs.frozen
class KeyStatus:
    """
    A key of a zone.

    Attributes:
        tag: its key tag.
        algorithm: of its signatures.
        state: what it does (`keytimes.KeyState`).
        announced: whether Jitsu announces it to the parent, by CDS and CDNSKEY.
        ds: its DS record as text; empty for a key that the parent is not to know, as it is no entry point (RFC 4034,
            2.1.1), or as the zone is to be unsigned.
    """

    tag: int
    algorithm: int
    state: str
    announced: bool
    ds: str


@attrs.frozen
class ZoneStatus:
    """
    A zone that is signed.

    Attributes:
        zone: its name.
        signer: ``Jitsu``, ``file`` for a zone that comes signed, or ``nobody`` for one that was signed before.
        keys: its keys.
        next_at: when the next step of its keys comes, in seconds since 1970; None if no time is set for it.
        next: that step, as a sentence; or what the operator should know of a zone that Jitsu does not sign.
        earliest_expiry: when the first of its signatures expires, in seconds since 1970; None if it has none now.
        signatures: how many signatures were made; of a zone that comes signed, how many were checked.
        problems: what is wrong with it, in sentences without a full stop.
    """

    zone: str
    signer: str
    keys: tuple[KeyStatus, ...] = ()
    next_at: int | None = None
    next: str = ""
    earliest_expiry: float | None = None
    signatures: int = 0
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return attrs.asdict(self)


class IDnssec(Interface):
    """The zones that are signed, as an operator sees and steers them."""

    def statuses() -> Sequence[ZoneStatus]:
        """Return all of them, and those that were signed before; those that come signed as they were checked last."""

    def checked() -> Awaitable[None]:
        """Wait until the signatures of the zones that come signed have been checked."""

    def rollover(zone: str) -> Awaitable[ZoneStatus]:
        """
        Begin a rollover to a new key.

        Raises:
            JitsuError: Jitsu does not sign the zone, a rollover is under way, or the key cannot be written.
        """

    def ds_seen(zone: str, ds_ttl: int) -> Awaitable[ZoneStatus]:
        """
        Go on with a rollover, as the parent has the DS record of the new key.

        Args:
            zone: its name.
            ds_ttl: the TTL of the old DS record, in seconds.

        Raises:
            JitsuError: Jitsu does not sign the zone, no rollover waits for that, or a key cannot be written.
        """

    def leave(zone: str) -> Awaitable[ZoneStatus]:
        """
        Ask the parent, by CDS and CDNSKEY, to remove its DS records (RFC 8078, 4).

        Raises:
            JitsuError: Jitsu does not sign the zone, it does so already, or a key cannot be written.
        """
