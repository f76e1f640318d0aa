"""Ready a fixed time after the start call: for guests that nothing better can be said of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.task import deferLater
from zope.interface import implementer

from jitsu_tw.ijitsu import IReadiness

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.ijitsu import Guest
    from jitsu_tw.settings import VM


@implementer(IReadiness)
class Delay:
    """`response_delay` seconds after the start call returned (the original's ``-d``)."""

    anew = True

    def __init__(self, reactor: IReactorTime) -> None:
        """Wait on *reactor*'s clock."""
        self._reactor = reactor

    def wait(self, vm: VM, guest: Guest) -> Deferred[None]:  # noqa: ARG002
        """Fire after the delay."""
        return deferLater(self._reactor, vm.response_delay or 0.0)
