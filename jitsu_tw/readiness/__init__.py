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


def signs_for(vm: VM, backend: IBackend, reactor: IReactorTime) -> tuple[IReadiness, ...]:
    """Return the signs that must all hold before *vm* is taken for ready."""
    signs: list[IReadiness] = []
    if vm.response_delay is not None:
        signs.append(Delay(reactor))
    if vm.wait_for_port is not None and backend.reachable:
        signs.append(Port(reactor))
    return tuple(signs)
