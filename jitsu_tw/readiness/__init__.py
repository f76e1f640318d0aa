"""
How we know that a guest will answer its first packet: one room a strategy, one row here.

DESIGN, section 6. A strategy is used where its key is set; `delay` where no other is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitsu_tw.readiness.delay import Delay
from jitsu_tw.readiness.port import Port

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.ijitsu import IBackend, IReadiness
    from jitsu_tw.settings import VM


class Signs:
    """
    The strategies, one of each for all VMs.

    Attributes:
        port: that of `wait_for_port`.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        """Let them wait on *reactor*."""
        self._delay, self.port = Delay(reactor), Port(reactor)
        self._sets: dict[tuple[bool, bool], tuple[IReadiness, ...]] = {}

    def of(self, vm: VM, backend: IBackend) -> tuple[IReadiness, ...]:
        """Return the signs that must all hold before *vm* is taken for ready."""
        wanted = vm.response_delay is not None, has_port(vm, backend)
        signs = ((self._delay,) if wanted[0] else ()) + ((self.port,) if wanted[1] else ())
        return self._sets.setdefault(wanted, signs)


def has_port(vm: VM, backend: IBackend) -> bool:
    """Say whether *vm* has a port that can be tried from here."""
    return vm.wait_for_port is not None and backend.reachable
