"""
Until when a VM is kept up, and why. Pure: each time is an argument, in seconds of the clock that the lease has.

This is the only place that decides it: leases end by it, VMs give way to others by it, and operators read it.
"""

from __future__ import annotations

import enum
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from jitsu_tw.rules.lease import Lease

#: A VM that was asked for less than this many seconds ago is not stopped for another VM to boot, nor because its guest
#: asks for it: the client may be about to connect.
JUST_USED: Final = 5.0


class Why(enum.Enum):
    """What keeps a VM up, in words, with places for the figures of `Kept.words`."""

    HELD = "held by hand"
    OWNER = "kept by {owner}"
    NEEDED = "it is needed by a VM that is up"
    UNSEEN = "whether it is in use cannot be seen"
    STOP_FAILED = "it cannot be stopped"
    WINDOW = "its time of the week"
    MIN_UP = "its min_up of {min_up:g} s"
    USED = "{use} {ago:.0f} s ago"
    CONNECTED = "{connections}"
    GUEST = "held by its guest for {more:.0f} s more"
    DONE = "its guest asked to be put to sleep"
    MAX_UP = "up for its max_up of {max_up:g} s"


class Kept(NamedTuple):
    """
    What `keep` decides.

    Attributes:
        until: when the VM may be stopped; infinity while nothing ends what keeps it.
        why: what keeps it until then, or kept it.
    """

    until: float
    why: Why

    def words(self, lease: Lease, now: float, owner: str) -> str:
        """Return in words what keeps the VM with *lease*, which the node *owner* owns, *now*."""
        number = lease.flows.open
        return self.why.value.format(
            owner=owner, min_up=lease.min_up, max_up=lease.max_up, use=lease.last_use().value, ago=now - lease.used,
            more=lease.held_until - now,
            connections="an open connection" if number == 1 else f"{number} open connections",
        )  # fmt: skip


def keep(
    lease: Lease, now: float, *, idle: float, window: float, is_own: bool, is_held: bool, is_needed: bool
) -> Kept:
    """
    Return until when a VM is kept, and why.

    Args:
        lease: what its settings and its life so far say.
        now: the time.
        idle: seconds that it is kept after its last use: those of the lease, or fewer to make room for another VM.
        window: when the weekly window ends in which it is kept now; minus infinity outside of all windows.
        is_own: this node owns it; if not, the owner node decides.
        is_held: an operator holds it up.
        is_needed: a VM that is up, or about to be, needs it.
    """
    if is_held:
        return Kept(inf, Why.HELD)
    if not is_own:
        return Kept(inf, Why.OWNER)
    ends = [(lease.started + lease.min_up, Why.MIN_UP), (window, Why.WINDOW)]
    if lease.is_done(now):  # then what the guest itself does keeps it no more
        idle = min(idle, JUST_USED)
        until, why = max(lease.asked() + idle, lease.done_at), Why.DONE
    else:
        until, why = lease.used + idle, Why.USED
        ends += [
            (lease.connected_until(), Why.CONNECTED),
            (lease.seen_from, Why.UNSEEN),
            (lease.held_until, Why.GUEST),
        ]
    for end, reason in ends:
        if end > until:
            until, why = end, reason
    if is_needed and now + idle >= until:
        until, why = now + idle, Why.NEEDED
    last = lease.started + lease.max_up
    if last <= now:
        until, why = last, Why.MAX_UP
    until = min(until, last)
    if lease.stop_again_at > max(now, until):
        until, why = lease.stop_again_at, Why.STOP_FAILED
    return Kept(until, why)
