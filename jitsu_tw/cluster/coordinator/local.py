"""One Jitsu that agrees with itself: the default. No I/O, and nothing outlives the process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from jitsu_tw.ijitsu import ICoordinator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.ijitsu import IPeer


@implementer(ICoordinator)
class LocalCoordinator:
    """Every claim is granted. All Deferreds have fired when they are returned."""

    alone = True
    trouble = ""

    def __init__(self) -> None:
        """Begin without facts; the node has the host's name."""
        self.node = socket.gethostname()
        self.facts: dict[str, str] = {}
        self._claims: set[str] = set()
        self._peer: IPeer | None = None

    def start(self, peer: IPeer) -> None:
        """Begin to tell *peer* what changes."""
        self._peer = peer
        peer.connected()

    def stop(self) -> Deferred[None]:
        """Remove all claims, without telling the peer."""
        self._peer = None
        for key in self._claims:
            del self.facts[key]
        self._claims.clear()
        return succeed(None)

    def claim(self, key: str, value: str) -> Deferred[bool]:
        """Claim *key*, if it is no fact yet."""
        if key not in self.facts:
            self._claims.add(key)
            self._change({key: value})
        return succeed(key in self._claims)

    def holds(self, key: str) -> bool:
        """Return whether *key* was claimed."""
        return key in self._claims

    def put(
        self, facts: Mapping[str, str | None], holding: str = "", expected: Mapping[str, str | None] | None = None
    ) -> Deferred[bool]:
        """Change facts."""
        is_other = any(self.facts.get(key) != value for key, value in (expected or {}).items())
        if is_other or (holding and holding not in self._claims):
            return succeed(False)  # noqa: FBT003 -- the Deferred's result
        self._change(facts)
        return succeed(True)  # noqa: FBT003 -- the Deferred's result

    def _change(self, facts: Mapping[str, str | None]) -> None:
        """Change *facts*, then tell the peer of each that has another value now."""
        changes = [(key, value, self.facts.get(key)) for key, value in facts.items()]
        for key, value, _ in changes:
            if value is None:
                self.facts.pop(key, None)
                self._claims.discard(key)
            else:
                self.facts[key] = value
        for key, value, before in changes:
            if value != before and self._peer is not None:
                self._peer.told(key, value, before)
