"""
How we know that a guest will answer its first packet: one room a strategy, one row here.

DESIGN, section 6. A strategy is used where its key is set; `delay` where no other is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed

from jitsu_tw.readiness.delay import Delay
from jitsu_tw.readiness.port import Port

if TYPE_CHECKING:
    from typing import Any

    from jitsu_tw.ijitsu import IBackend, IReadiness
    from jitsu_tw.settings import VM
    from jitsu_tw.xenstore import Xenstore


class Strategies:
    """
    The strategies, one of each for all VMs.

    Attributes:
        port: that of `wait_for_port`.
    """

    def __init__(self, reactor: Any) -> None:
        """Let them wait on *reactor*."""
        self._reactor = reactor
        self._delay, self.port = Delay(reactor), Port(reactor)
        self._key: IReadiness | None = None
        self._xenstore: Xenstore | None = None
        self._sets: dict[tuple[bool, ...], tuple[IReadiness, ...]] = {}

    def of(self, vm: VM, backend: IBackend) -> tuple[IReadiness, ...]:
        """Return the signs that must all hold before *vm* is taken for ready."""
        has_key = vm.wait_for_key is not None
        # The key's own sign waits for the delay after it.
        wanted = vm.response_delay is not None and not has_key, has_port(vm, backend), has_key
        if wanted not in self._sets:
            signs = self._delay, self.port, self._key_sign() if has_key else self._delay
            self._sets[wanted] = tuple(sign for sign, is_wanted in zip(signs, wanted, strict=True) if is_wanted)
        return self._sets[wanted]

    def _key_sign(self) -> IReadiness:
        """Return the sign of `wait_for_key`; Xenstore is asked only where a VM wants it."""
        from jitsu_tw.readiness.xenstore import Key  # noqa: PLC0415
        from jitsu_tw.xenstore import Xenstore  # noqa: PLC0415

        if self._key is None:
            self._xenstore = Xenstore(self._reactor)
            self._key = Key(self._reactor, self._xenstore)
        return self._key

    def start(self) -> None:
        """Connect to what the signs need."""
        if self._xenstore is not None:
            self._xenstore.start()

    def stop(self) -> Deferred[None]:
        """End that."""
        return succeed(None) if self._xenstore is None else self._xenstore.close()


def has_port(vm: VM, backend: IBackend) -> bool:
    """Say whether *vm* has a port that can be tried from here."""
    return vm.wait_for_port is not None and backend.reachable
