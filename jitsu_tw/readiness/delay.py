"""Ready a fixed time after the start call: for guests that show nothing better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.task import deferLater

from jitsu_tw import parsers
from jitsu_tw.keys import Key, Limits
from jitsu_tw.readiness.strategy import EVERY, Strategy
from jitsu_tw.settings import READY_WITHIN

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.ijitsu import Guest
    from jitsu_tw.settings import VM


class Delay(Strategy):
    """`response_delay` seconds after the start call returned (the original's ``-d``)."""

    key = Key(parsers.seconds, "ready this long after its start", own=Limits(0, READY_WITHIN), example="3s")

    def wait(self, vm: VM, guest: Guest, every: float = EVERY) -> Deferred[None]:  # noqa: ARG002
        """Fire after the delay."""
        return deferLater(self._reactor, vm.readiness["response_delay"])
