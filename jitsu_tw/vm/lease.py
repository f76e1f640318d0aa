"""When a VM may be stopped. Pure: every time is an argument, in seconds of one clock that never goes back."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Final

import attrs

#: How many leases are looked at in one go: some milliseconds of work.
SLICE: Final = 1000


@attrs.define(eq=False)
class Lease:
    """
    The right of one VM to stay up.

    Attributes:
        idle: seconds that it is kept after its last use.
        min_up: seconds that it is kept after its start.
        used: when it was last used.
        started: when it was last started.
    """

    idle: float
    min_up: float
    used: float
    started: float

    def use(self, now: float) -> None:
        """Renew the lease."""
        self.used = now

    def ends(self) -> float:
        """Return when the VM may be stopped, if nobody uses it before."""
        return max(self.used + self.idle, self.started + self.min_up)


class Leases:
    """
    The leases of all VMs that are up, by name, found by when they end.

    A renewal costs nothing here: only when a lease's end as it was known comes is it looked at again. So a look costs
    what ran out, not what exists.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._leases: dict[str, Lease] = {}
        self._ends: list[tuple[float, int, str, Lease]] = []
        self._turn = count()

    def __getitem__(self, name: str) -> Lease:
        """Return the lease of *name*; KeyError where it has none."""
        return self._leases[name]

    def get(self, name: str) -> Lease | None:
        """Return the lease of *name*, or None."""
        return self._leases.get(name)

    def __contains__(self, name: str) -> bool:
        """Say whether *name* has a lease."""
        return name in self._leases

    def grant(self, name: str, lease: Lease) -> None:
        """Give *name* this lease, in place of the one it has."""
        self._leases[name] = lease
        heapq.heappush(self._ends, (lease.ends(), next(self._turn), name, lease))

    def drop(self, name: str) -> None:
        """Forget the lease of *name*, if it has one."""
        self._leases.pop(name, None)

    def ended(self, now: float) -> list[str]:
        """
        Drop the leases that have ended and return whose they were.

        At most `SLICE` are looked at; `next_look` says whether there are more.
        """
        names = []
        for _ in range(SLICE):
            if not self._ends or self._ends[0][0] > now:
                break
            _, _, name, lease = heapq.heappop(self._ends)
            if self._leases.get(name) is not lease:
                continue
            if lease.ends() <= now:
                del self._leases[name]
                names.append(name)
            else:
                heapq.heappush(self._ends, (lease.ends(), next(self._turn), name, lease))
        return names

    def next_look(self) -> float | None:
        """Return when `ended` should be asked again; None if there is nothing to wait for."""
        return self._ends[0][0] if self._ends else None
