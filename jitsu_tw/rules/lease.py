"""
The lease of a VM, and when to look at it. Pure: each time is an argument, in seconds of a clock that never goes back.

A use is a query for one of the VM's names, or packets that its guest transmits beyond the trickle of an idle one.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Final

import attrs

#: How many leases are looked at in one go: some milliseconds of work.
SLICE: Final = 1000

#: Packets beyond those of an idle guest that are no use yet: an ARP answer, a neighbour solicitation.
BURST: Final = 2.0

#: Packets that a guest may transmit when it has booted: it looks for its address in use by others, joins groups and
#: asks for routers (RFC 4862, 5.4; RFC 3810, 6.1; RFC 4861, 6.3.7), for ten seconds or so.
GREETING: Final = 12.0

#: A guest's packets are counted this often within the `idle` seconds of its lease; the seconds between two counts are
#: at least `SHORTEST_LOOK` and at most `LONGEST_LOOK`.
LOOKS: Final = 8
SHORTEST_LOOK: Final = 1.0
LONGEST_LOOK: Final = 60.0


@attrs.define(eq=False)
class Meter:
    """
    Tells use from the trickle that a guest transmits when it is idle: a bucket that leaks as fast as that.

    Attributes:
        per_minute: the packets that an idle guest may transmit in a minute (`idle_packets`); with 0, any is a use.
        total: packets that the guest had transmitted at the last look.
        at: when that was.
        level: packets that have not leaked away yet; below 0 for what a guest may transmit when it has booted.
    """

    per_minute: float
    total: int
    at: float
    level: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Allow what a guest transmits when it has booted."""
        self.level = -GREETING if self.per_minute else 0.0

    def used(self, total: int, now: float) -> bool:
        """Return whether the guest, which has transmitted *total* packets, was in use since the last look."""
        sent = total - self.total if total >= self.total else total  # it began again at 0
        leaked = (now - self.at) * self.per_minute / 60
        self.level = max(min(0.0, self.level), self.level + sent - leaked)
        self.total, self.at = total, now
        most = BURST if self.per_minute else 0.0
        used = self.level > most
        self.level = min(self.level, most)
        return used

    def next_look(self, idle: float) -> float:
        """Return when the packets of the guest, which has a lease of *idle* seconds, are to be counted again."""
        return self.at + min(max(idle / LOOKS, SHORTEST_LOOK), LONGEST_LOOK)


@attrs.define(eq=False)
class Lease:
    """
    The right of one VM to stay up. `rules.keep` says until when.

    Attributes:
        idle: seconds that the VM is kept after its last use.
        min_up: seconds that it is kept after its start.
        used: when it was last used.
        started: when it was last started.
        max_up: seconds after its start after which it is stopped, used or not.
        meter: counts what its guest transmits; None while that is not counted.
        seen_from: from when on it can be seen whether the guest is in use; infinity while it cannot.
        stop_again_at: when a stop that failed is tried again.
        check_at: a use at this time or later is a reason to see whether the guest is alive.
        planned: when it is to be looked at, as `Leases` knows; None while that is being decided.
    """

    idle: float
    min_up: float
    used: float
    started: float
    max_up: float = inf
    meter: Meter | None = None
    seen_from: float = -inf
    stop_again_at: float = -inf
    check_at: float = inf
    planned: float | None = attrs.field(default=None, init=False)

    def use(self, now: float) -> None:
        """Renew the lease."""
        self.used = max(self.used, now)

    def look(self) -> float:
        """Return the earliest time at which it may end, as its uses say, or the guest's packets are to be counted."""
        ends = min(self.used + self.idle, self.started + self.max_up)
        return ends if self.meter is None else min(ends, self.meter.next_look(self.idle))


class Leases:
    """
    The leases of all VMs that are up, by name, found by when they are to be looked at.

    A renewal costs nothing here: only when the time comes that was planned for a lease is it looked at again. So a look
    costs what is due, not what exists.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._leases: dict[str, Lease] = {}
        self._looks: list[tuple[float, int, str, Lease]] = []
        self._order = count()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._leases)

    def get(self, name: str) -> Lease | None:
        """Return the lease of *name*, or None."""
        return self._leases.get(name)

    def items(self) -> list[tuple[str, Lease]]:
        """Return all leases with their names."""
        return list(self._leases.items())

    def grant(self, name: str, lease: Lease) -> None:
        """Give *name* this lease, in place of the one it has; it is not looked at until `plan` is called."""
        self._leases[name] = lease

    def plan(self, name: str, when: float) -> None:
        """Look at the lease of *name* at *when*, or later if it is used before that; never if that is infinity."""
        lease = self._leases[name]
        lease.planned = when
        if when < inf:
            heapq.heappush(self._looks, (when, next(self._order), name, lease))

    def drop(self, name: str) -> Lease | None:
        """Forget the lease of *name*, and return it; None if it has none."""
        return self._leases.pop(name, None)

    def due(self, now: float) -> list[str]:
        """
        Return the names whose leases are to be looked at now; each is not due again before `plan` is called for it.

        At most `SLICE` are looked at; `next_look` tells whether there are more.
        """
        names = []
        for _ in range(SLICE):
            if not self._looks or self._looks[0][0] > now:
                break
            when, _, name, lease = heapq.heappop(self._looks)
            if self._leases.get(name) is not lease or lease.planned != when:
                continue
            look = lease.look()
            if look <= now:
                lease.planned = None
                names.append(name)
            else:
                self.plan(name, look)
        return names

    def next_look(self) -> float | None:
        """Return when `due` should be called again; None if there is nothing to wait for."""
        return self._looks[0][0] if self._looks else None
