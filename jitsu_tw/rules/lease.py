"""
When a VM may be stopped. Pure: every time is an argument, in seconds of one clock that never goes back.

A use is a question for one of its names, or packets that the guest transmits, other than the few of an idle one.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Final

import attrs

#: How many leases are looked at in one go: some milliseconds of work.
SLICE: Final = 1000

#: So many packets more than an idle guest's are no use yet: an ARP answer, a neighbour solicitation.
BURST: Final = 2.0

#: So many packets may a guest transmit to say that it is there: it looks for its address in use by others, joins groups
#: and asks for routers (RFC 4862, 5.4; RFC 3810, 6.1; RFC 4861, 6.3.7), for ten seconds or so.
GREETING: Final = 12.0

#: A guest's packets are counted this often within the `idle` seconds of its lease, but no more often than every so many
#: seconds, and no more seldom than every so many.
LOOKS: Final = 8
SHORTEST_LOOK: Final = 1.0
LONGEST_LOOK: Final = 60.0


def look_every(idle: float) -> float:
    """Return how many seconds after a look the packets of a guest with a lease of *idle* seconds are counted again."""
    return min(max(idle / LOOKS, SHORTEST_LOOK), LONGEST_LOOK)


@attrs.define(eq=False)
class Meter:
    """
    Tells use from the trickle that a guest transmits when nobody uses it: a bucket that leaks as fast as that.

    Attributes:
        per_minute: the packets that an idle guest may transmit in a minute (`idle_packets`); with 0, any is a use.
        total: what the guest had transmitted at the last look.
        at: when that was.
        level: packets that have not leaked away yet; what a guest may say at first is less than none.
    """

    per_minute: float
    total: int
    at: float
    level: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Allow the guest to say that it is there."""
        self.level = -GREETING if self.per_minute else 0.0

    def used(self, total: int, now: float) -> bool:
        """Say whether the guest, which has transmitted *total* packets, was in use since the last look."""
        sent = total - self.total if total >= self.total else total  # it began again at 0
        leaked = (now - self.at) * self.per_minute / 60
        self.level = max(min(0.0, self.level), self.level + sent - leaked)
        self.total, self.at = total, now
        most = BURST if self.per_minute else 0.0
        used = self.level > most
        self.level = min(self.level, most)
        return used


@attrs.define(eq=False)
class Lease:
    """
    The right of one VM to stay up.

    Attributes:
        idle: seconds that it is kept after its last use.
        min_up: seconds that it is kept after its start.
        used: when it was last used.
        started: when it was last started.
        max_up: seconds after its start after which it is stopped, used or not.
        kept: until when it is kept, used or not (`keep_up`, or it has just been found).
        meter: what its guest transmits; None where that is not asked.
        blind: whether the guest is in use cannot be seen now, so it is not stopped for being idle.
        check_at: a use at this time or later is a reason to see whether the guest is alive.
        planned: when it is to be looked at, as `Leases` knows; None while somebody looks.
    """

    idle: float
    min_up: float
    used: float
    started: float
    max_up: float = inf
    kept: float = -inf
    meter: Meter | None = None
    blind: bool = False
    check_at: float = inf
    planned: float | None = attrs.field(default=None, init=False)

    def use(self, now: float) -> None:
        """Renew the lease."""
        self.used = max(self.used, now)

    def ends(self) -> float:
        """Return when the VM may be stopped, if nobody uses it before."""
        until = max(self.used + self.idle, self.started + self.min_up, self.kept)
        return min(inf if self.blind else until, self.started + self.max_up)

    def look(self) -> float:
        """Return when the lease is to be looked at: when it ends, or before, to count the guest's packets."""
        if self.meter is None:
            return self.ends()
        return min(self.ends(), self.meter.at + look_every(self.idle))


class Leases:
    """
    The leases of all VMs that are up, by name, found by when they are to be looked at.

    A renewal costs nothing here: only when the time comes that was known for a lease is it looked at again. So a look
    costs what is due, not what exists.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._leases: dict[str, Lease] = {}
        self._looks: list[tuple[float, int, str, Lease]] = []
        self._turn = count()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._leases)

    def get(self, name: str) -> Lease | None:
        """Return the lease of *name*, or None."""
        return self._leases.get(name)

    def items(self) -> list[tuple[str, Lease]]:
        """Return all leases, and whose they are."""
        return list(self._leases.items())

    def grant(self, name: str, lease: Lease, *, later: bool = False) -> None:
        """Give *name* this lease, in place of the one it has; *later*: nobody looks at it until `again` is called."""
        self._leases[name] = lease
        if not later:
            self.again(name)

    def again(self, name: str) -> None:
        """Look at the lease of *name* again when that is due."""
        lease = self._leases[name]
        lease.planned = lease.look()
        heapq.heappush(self._looks, (lease.planned, next(self._turn), name, lease))

    def drop(self, name: str) -> None:
        """Forget the lease of *name*, if it has one."""
        self._leases.pop(name, None)

    def due(self, now: float) -> list[str]:
        """
        Return whose leases are to be looked at now; each is not due again before `again` is called for it.

        At most `SLICE` are looked at; `next_look` says whether there are more.
        """
        names = []
        for _ in range(SLICE):
            if not self._looks or self._looks[0][0] > now:
                break
            when, _, name, lease = heapq.heappop(self._looks)
            if self._leases.get(name) is not lease or lease.planned != when:
                continue
            if lease.look() <= now:
                lease.planned = None
                names.append(name)
            else:
                self.again(name)
        return names

    def next_look(self) -> float | None:
        """Return when `due` should be asked again; None if there is nothing to wait for."""
        return self._looks[0][0] if self._looks else None
