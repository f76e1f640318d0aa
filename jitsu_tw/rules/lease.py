"""
The lease of a VM, and when to look at it. Pure: each time is an argument, in seconds of a clock that never goes back.

A use is a query for one of the VM's names, packets that its guest transmits or CPU time that it takes beyond those of
an idle one, or a TCP connection that is opened or closed.
"""

from __future__ import annotations

import enum
import heapq
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.rules.flows import NO_FLOWS, Flows
from jitsu_tw.settings import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jitsu_tw.settings import VM

#: The most leases that are looked at in one go, a millisecond of work where all have been renewed since.
SLICE: Final = 500

#: Packets beyond those of an idle guest that are no use yet: it asks for the time, and for its router's address before,
#: answers the router's ARP, and mDNS, all within a few seconds.
BURST: Final = 5.0

#: Seconds of CPU time beyond those of an idle guest that are no use yet: the job of a timer.
CPU_BURST: Final = 1.0

#: Packets that a guest may transmit when it has booted: it looks for its address in use by others, joins groups and
#: asks for routers (RFC 4862, 5.4; RFC 3810, 6.1; RFC 4861, 6.3.7); and for how many seconds it does that.
GREETING: Final = 12.0
GREETS_FOR: Final = 15.0

#: A guest that has asked to be put to sleep, and cannot be for this many seconds, is not put to sleep later.
DONE_FOR: Final = 60.0

#: A guest's packets are counted this often within the `idle` seconds of its lease; the seconds between two counts are
#: at least `SHORTEST_LOOK` and at most `LONGEST_LOOK`.
LOOKS: Final = 8
SHORTEST_LOOK: Final = 1.0
LONGEST_LOOK: Final = 60.0


class Use(enum.Enum):
    """What shows that a VM is used, in words that stand before how long ago that was."""

    KNOWN = "used"  # by an earlier process, or when its use could not be seen
    QUERY = "asked for"
    PACKETS = "its guest had traffic"
    CPU = "its guest took CPU time"
    CONNECTION = "a connection to it was opened or closed"


@attrs.define(eq=False)
class Meter:
    """
    Tells use from what an idle guest transmits, or takes of its CPU: a bucket that leaks as fast as that.

    What is more than the bucket holds is a use: a burst, or a steady stream that is faster than the leak.

    Attributes:
        per_minute: what an idle guest may transmit or take in a minute (`idle_packets`, `idle_cpu`); with 0, any is a
            use.
        total: what the guest had transmitted or taken at the last look.
        at: when that was.
        burst: what the bucket holds.
        greeting: what a guest that has just booted may transmit or take besides, within `GREETS_FOR` seconds.
        changed: when *total* was last seen to be another one; minus infinity for never.
        level: what has not leaked away yet; below 0 for what is left of the greeting.
        greets_until: when that is over.
    """

    per_minute: float
    total: float
    at: float
    burst: float = BURST
    greeting: float = GREETING
    changed: float = attrs.field(default=-inf, init=False)
    level: float = attrs.field(init=False)
    greets_until: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Allow what a guest transmits when it has booted."""
        self.level = -self.greeting if self.per_minute else 0.0
        self.greets_until = self.at + GREETS_FOR

    def fill(self) -> None:
        """Fill the bucket, as of a guest that has been in use: what it does from now on shows whether it still is."""
        self.level = self.burst if self.per_minute else 0.0

    def used(self, total: float, now: float) -> bool:
        """Return whether the guest, which has transmitted or taken *total*, was in use since the last look."""
        more = total - self.total if total >= self.total else total  # it began again at 0
        if more:
            self.changed = now
        leaked = (now - self.at) * self.per_minute / 60
        self.level = max(min(0.0, self.level), self.level + more - leaked)
        self.total, self.at = total, now
        most = self.burst if self.per_minute else 0.0
        used = self.level > most
        self.level = min(self.level, most)
        if now >= self.greets_until:
            self.level = max(0.0, self.level)
        return used

    def next_look(self, idle: float) -> float:
        """Return when the guest, which has a lease of *idle* seconds, is to be looked at again."""
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
        idle_connection: seconds that an open connection keeps it after its last sign of life; 0 for not at all.
        meters: tell from what is counted of the guest whether it is used; none where nothing is counted.
        signs: when each kind of use was last seen; a query that came after all others is in `used` alone.
        flows: its open connections, as far as they are known.
        seen_from: from when on it can be seen whether the guest is in use; infinity while it cannot.
        stop_again_at: when a stop that failed is tried again.
        check_at: a use at this time or later is a reason to see whether the guest is alive.
        held_until: until when its guest holds it.
        done_at: when its guest asked to be put to sleep.
        planned: when it is to be looked at, as `Leases` knows; None while that is being decided.
    """

    idle: float
    min_up: float
    used: float
    started: float
    max_up: float = inf
    idle_connection: float = 0.0
    meters: dict[Use, Meter] = attrs.field(factory=dict)
    signs: dict[Use, float] = attrs.field(factory=dict)
    flows: Flows = NO_FLOWS
    seen_from: float = -inf
    stop_again_at: float = -inf
    check_at: float = inf
    held_until: float = -inf
    done_at: float = -inf
    planned: float | None = attrs.field(default=None, init=False)

    def use(self, when: float, kind: Use = Use.QUERY) -> None:
        """Renew the lease, because of a use of that *kind*."""
        if kind is not Use.QUERY:
            self.signs = self.uses() | {kind: max(when, self.signs.get(kind, -inf))}
        self.used = max(self.used, when)

    def uses(self) -> dict[Use, float]:
        """Return when each kind of use was last seen."""
        last = max(self.signs.values(), default=-inf)
        return {**self.signs, Use.QUERY: self.used} if self.used > last else self.signs

    def last_use(self) -> Use:
        """Return the kind of the last use."""
        uses = self.uses()
        return max(uses, key=lambda kind: uses[kind])

    def asked(self) -> float:
        """Return when it was last asked for; minus infinity if it never was."""
        return self.uses().get(Use.QUERY, -inf)

    def is_done(self, now: float) -> bool:
        """Return whether its guest has asked, lately, to be put to sleep, and no client has come since."""
        if now - self.done_at >= DONE_FOR:
            return False
        return self.asked() <= self.done_at and not (self.flows.open and self.flows.last > self.done_at)

    def connected(self, flows: Flows, now: float) -> None:
        """Note the open connections; it is a use if one was opened, gave another sign of life, or was closed."""
        if flows.open < self.flows.open:
            self.use(now, Use.CONNECTION)
        elif flows.open and flows.last > self.flows.last:
            self.use(flows.last, Use.CONNECTION)
        self.flows = flows

    def connected_until(self) -> float:
        """
        Return until when open connections keep the VM; minus infinity if there is none.

        What the guest transmits, however little, counts as their sign of life: Synjitsu does not see their data.
        """
        if not self.flows.open or not self.idle_connection:
            return -inf
        sent = self.meters[Use.PACKETS].changed if Use.PACKETS in self.meters else -inf
        return max(self.flows.last, sent) + self.idle_connection

    def look(self) -> float:
        """Return the earliest time at which it may end, as its uses say, or the guest is to be looked at."""
        is_done = self.done_at > -inf and self.done_at > self.asked()
        ends = self.done_at if is_done else self.used + self.idle
        return min(ends, self.started + self.max_up, self.next_count())

    def next_count(self) -> float:
        """Return when the guest is to be looked at again; infinity if nothing is counted."""
        return min((meter.next_look(self.idle) for meter in self.meters.values()), default=inf)


def counted(vm: VM) -> tuple[Use, ...]:
    """Return which uses of *vm* are seen by what is counted of its guest."""
    sent = (Use.PACKETS,) if vm.evidence is Evidence.TRAFFIC else ()
    return (*sent, Use.CPU) if vm.idle_cpu else sent


def meters(vm: VM, totals: Mapping[Use, float] | None, now: float) -> dict[Use, Meter]:
    """
    Return what tells the use of *vm* from *now* on.

    Args:
        vm: its settings.
        totals: what was counted of its guest by now; None if that is not known: then it will look like a use, once.
        now: the time.
    """
    known = totals or {}
    found = {
        Use.PACKETS: Meter(vm.idle_packets, known.get(Use.PACKETS, 0), now),
        Use.CPU: Meter(vm.idle_cpu, known.get(Use.CPU, 0), now, CPU_BURST, greeting=0.0),
    }
    return {kind: found[kind] for kind in counted(vm)}


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

    def due(self, now: float) -> Iterator[str]:
        """
        Yield the names whose leases are to be looked at now; each is not due again before `plan` is called for it.

        At most `SLICE` are looked at, and the caller may stop before; `next_look` tells whether there are more.
        """
        for _ in range(SLICE):
            if not self._looks or self._looks[0][0] > now:
                break
            when, _, name, lease = heapq.heappop(self._looks)
            if self._is_void(when, name, lease):
                continue
            look = lease.look()
            if look <= now:
                lease.planned = None
                yield name
            else:
                self.plan(name, look)

    def next_look(self) -> float | None:
        """Return when `due` should be called again; None if there is nothing to wait for."""
        while self._looks:
            when, _, name, lease = self._looks[0]
            if not self._is_void(when, name, lease):
                return when
            heapq.heappop(self._looks)
        return None

    def _is_void(self, when: float, name: str, lease: Lease) -> bool:
        """Return whether a look was planned for a lease that has ended, or is to be looked at at another time."""
        return self._leases.get(name) is not lease or lease.planned != when
