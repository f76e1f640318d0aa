"""Etcd's space: whether it accepts writes, and the removal of its history, which would use the space up."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from jitsu_tw.cluster.coordinator.gateway import Refused
from jitsu_tw.errors import ClusterUnavailable

if TYPE_CHECKING:
    from jitsu_tw.cluster.coordinator.gateway import Gateway

#: Seconds of etcd's history that are kept. A watch that is begun anew needs none: everything is read before.
HISTORY: Final = 3600.0

#: Codes of gRPC by which etcd refuses writes until the operator acts: this user may not write, or the space quota is
#: used up (the alarm NOSPACE); and the operator's remedy for that.
FORBIDDEN: Final = 7
EXHAUSTED: Final = 8
MAKE_SPACE: Final = "compact and defragment etcd, then: etcdctl alarm disarm"


class Space:
    """
    What etcd says to writes.

    Attributes:
        trouble: why etcd refuses all writes; empty while it does not.
    """

    log = Logger()

    def __init__(self, gateway: Gateway, reactor: Any) -> None:
        """Expect that etcd accepts writes."""
        self._gateway, self._reactor = gateway, reactor
        self.trouble = ""
        self._has_alarm = False
        self._past = 0  # the revision that was known when history was last compacted
        self._compact_at = 0.0

    def refused(self, error: ClusterUnavailable) -> None:
        """Note that a write has failed, and log it when etcd begins to refuse all writes."""
        if not isinstance(error, Refused) or error.code not in {FORBIDDEN, EXHAUSTED}:
            return
        self._has_alarm = error.code == EXHAUSTED
        reason = f"{error}; {MAKE_SPACE}" if self._has_alarm else str(error)
        if not self.trouble:
            self.log.error("etcd refuses writes, so no VM can be claimed or started: {reason}", reason=reason)
        self.trouble = reason

    def accepted(self) -> None:
        """Note that etcd accepts writes."""
        if self.trouble:
            self.log.info("etcd accepts writes again")
        self.trouble, self._has_alarm = "", False

    async def keep(self, revision: int) -> None:
        """
        Ask whether etcd still refuses writes, and remove its history of more than `HISTORY` seconds ago.

        Only what is older than the last change of a fact is removed. Another node, or etcd by itself, may have done it.

        Args:
            revision: of etcd's, that is known now.

        Raises:
            ClusterUnavailable: etcd does not answer.
        """
        if self._has_alarm and not (await self._gateway.ask("maintenance/alarm", {"action": "GET"})).get("alarms"):
            self.accepted()
        now = self._reactor.seconds()
        if now < self._compact_at:
            return
        past, self._past, self._compact_at = self._past, revision, now + HISTORY
        if past:
            with suppress(ClusterUnavailable):
                await self._gateway.ask("kv/compaction", {"revision": str(past)})
