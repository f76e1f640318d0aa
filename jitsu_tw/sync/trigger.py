"""When the configuration is shared between nodes: what `config_sync` waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from jitsu_tw.ijitsu import IPublications

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


@implementer(IPublications)
class SyncTrigger:
    """
    Wakes `ConfigSync` when there is something to share or to take.

    Attributes:
        is_wanted: whether there is, since the sharing began last.
        ended: whether the process ends.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        """Begin with all to share, and all to take."""
        self._reactor: Any = reactor
        self.is_wanted = self.ended = False
        self._known = ""
        self._is_behind = True
        self._is_heard = False
        self._alarm: Deferred[None] | None = None

    def changed(self) -> None:
        """Note that the configuration was changed here."""
        self.is_wanted = True
        if self._is_heard:
            self._wake()

    def published(self, commit: str = "") -> None:
        """Note that the shared branch is at *commit*, in hexadecimal; "" if that is not known."""
        if not commit or commit != self._known:
            self._is_behind = True
            self.changed()

    def merged(self, commit: str) -> None:
        """Note that this node has the shared branch's *commit*, in hexadecimal."""
        self._known = commit

    def end(self) -> None:
        """End each wait: the process ends."""
        self.ended = True
        self._wake()

    def begin(self) -> bool:
        """Note that the sharing begins; return whether the shared branch may have moved since it was fetched."""
        behind, self._is_behind, self.is_wanted = self._is_behind, False, False
        return behind

    def failed(self) -> None:
        """Note that the shared branch was not fetched, or not merged."""
        self._is_behind = True

    async def pause(self, seconds: float) -> bool:
        """Wait for that time, whatever comes; return whether it passed, and the process does not end."""
        if self.ended:
            return False
        self._alarm = Deferred()
        timer = self._reactor.callLater(seconds, self._wake)
        await self._alarm
        passed = not timer.active()
        if not passed:
            timer.cancel()
        return passed

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to share or to take; after that time, the shared branch may have moved."""
        if self.is_wanted:
            return
        self._is_heard = True
        if await self.pause(seconds):
            self._is_behind = True
        self._is_heard = False

    def _wake(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.callback(None)
