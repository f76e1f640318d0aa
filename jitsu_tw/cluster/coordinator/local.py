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
        """Know nothing yet; the host's name is ours."""
        self.node = socket.gethostname()
        self.facts: dict[str, str] = {}
        self._claims: set[str] = set()
        self._peer: IPeer | None = None

    def start(self, peer: IPeer) -> None:
        """Tell *peer* what changes, from now on."""
        self._peer = peer
        peer.connected()

    def stop(self) -> Deferred[None]:
        """Free what was claimed, telling nobody."""
        self._peer = None
        for key in self._claims:
            del self.facts[key]
        self._claims.clear()
        return succeed(None)

    def claim(self, key: str, value: str) -> Deferred[bool]:
        """Make *key* ours, if it is not a fact yet."""
        if key not in self.facts:
            self._claims.add(key)
            self._change({key: value})
        return succeed(key in self._claims)

    def holds(self, key: str) -> bool:
        """Say whether *key* was claimed."""
        return key in self._claims

    def put(self, facts: Mapping[str, str | None], holding: str = "") -> Deferred[bool]:
        """Change facts."""
        if holding and holding not in self._claims:
            return succeed(False)  # noqa: FBT003 -- the Deferred's result
        self._change(facts)
        return succeed(True)  # noqa: FBT003 -- the Deferred's result

    def _change(self, facts: Mapping[str, str | None]) -> None:
        """Change them all, then tell of each that is another now."""
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
