"""
The lease by which this node owns what it has claimed, and until when that can be proven.

Etcd removes the claims of a lease that was not renewed for its time. Here it counts as lost a little earlier, and the
time counts from the moment at which a request that succeeded was sent: so no other node can have a claim of this one
while this one believes that it has it, however slow the network is, and however long this process was stopped.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from jitsu_tw.cluster.coordinator.gateway import Refused
from jitsu_tw.errors import ClusterUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.cluster.coordinator.gateway import Gateway
    from jitsu_tw.cluster.coordinator.kv import Keys

#: The share of a lease's time that is not used: clocks differ in their speed.
MARGIN: Final = 0.1

#: How often a lease is renewed in its time.
RENEWALS: Final = 3

#: How often a renewal is tried while etcd's leader changes.
TRIES: Final = 3

#: gRPC's code of the error that there is no such lease.
NOT_FOUND: Final = 5


def boottime() -> float:
    """Return seconds of a clock that is never set, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Session:
    """
    One lease after another.

    Attributes:
        lease: etcd's number of the present one; 0 for none.
        every: seconds after which it is to be renewed.
    """

    def __init__(self, gateway: Gateway, keys: Keys, ttl: float, now: Callable[[], float] = boottime) -> None:
        """Begin without a lease. One lasts *ttl* seconds, rounded up, or longer if etcd grants that."""
        self._gateway, self._keys, self._now = gateway, keys, now
        self._ttl = max(1, math.ceil(ttl))
        self.every = ttl / RENEWALS
        self.lease = 0
        self._deadline = -math.inf

    def left(self) -> float:
        """Return the seconds for which the lease certainly lives; zero or less where it may have ended."""
        return self._deadline - self._now()

    async def begin(self) -> None:
        """
        Get a new lease; what was claimed with another one is not this node's any more.

        Raises:
            ClusterUnavailable: etcd does not give one, or was too slow.
        """
        self.lease, self._deadline = 0, -math.inf
        sent = self._now()
        given = await self._gateway.ask("lease/grant", {"TTL": str(self._ttl)})
        self.lease = int(given["ID"])
        self._prolong(sent, int(given["TTL"]))

    async def renew(self) -> bool:
        """
        Renew the lease; return whether there still is one.

        A leader that was deposed without knowing it still renews leases, though they count no more. So a renewal is
        believed only once a read, which needs a majority, has followed it in the same term.

        Raises:
            ClusterUnavailable: etcd does not tell.
        """
        if not self.lease:
            return False
        for _ in range(TRIES):
            sent = self._now()
            try:
                renewed = (await self._gateway.ask("lease/keepalive", {"ID": str(self.lease)}))["result"]
            except Refused as refused:
                if refused.code != NOT_FOUND:
                    raise
                renewed = {}
            ttl = int(renewed.get("TTL", 0))
            if ttl <= 0:
                self.lease, self._deadline = 0, -math.inf
                return False
            read = await self._gateway.ask("kv/range", self._keys.nothing())
            if read["header"]["raft_term"] == renewed["header"]["raft_term"]:
                self._prolong(sent, ttl)
                return True
        raise ClusterUnavailable("etcd's leader changes again and again")

    def _prolong(self, sent: float, ttl: int) -> None:
        self._deadline = max(self._deadline, sent + ttl * (1 - MARGIN))
        if self.left() <= 0:
            raise ClusterUnavailable(f"etcd took more than the {ttl} s of a lease to answer")

    async def end(self) -> None:
        """Give the lease back: the claims end with it at once."""
        lease, self.lease, self._deadline = self.lease, 0, -math.inf
        if lease:
            await self._gateway.ask("lease/revoke", {"ID": str(lease)})
