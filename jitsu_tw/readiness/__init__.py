"""How Jitsu finds out that a guest will answer its first packet: strategies, each a file, and a row here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredList

from jitsu_tw.readiness.delay import Delay
from jitsu_tw.readiness.http import HttpAnswer
from jitsu_tw.readiness.port import Port
from jitsu_tw.readiness.strategy import EVERY
from jitsu_tw.readiness.xenstore import XenstoreKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jitsu_tw.ijitsu import Guest, IBackend
    from jitsu_tw.readiness.strategy import Strategy
    from jitsu_tw.settings import VM

#: By the key of a VM that asks for it; where a VM has several, all must hold.
READINESS: Final[Mapping[str, type[Strategy]]] = {
    "response_delay": Delay,
    "wait_for_port": Port,
    "wait_for_http": HttpAnswer,
    "wait_for_key": XenstoreKey,
}


def _of(vm: VM) -> Iterator[type[Strategy]]:
    """Yield the strategies whose keys *vm* has, but for those that another one of them uses itself."""
    used = {key for name in vm.readiness for key in READINESS[name].uses}
    return (strategy for name, strategy in READINESS.items() if name in vm.readiness and name not in used)


def completed(chosen: Iterable[tuple[str, Any]], delay: float) -> dict[str, Any]:
    """Return the *chosen* keys and values with those that their strategies use; a *delay* where none is chosen."""
    found = dict(chosen)
    for key in list(found):
        for other, default in READINESS[key].uses.items():
            if default is not None:
                found.setdefault(other, default)
    return found or {"response_delay": delay}


def has_port(vm: VM, backend: IBackend) -> bool:
    """Return whether a strategy of *vm* tries a port of its guest (`port_of`), and can."""
    return backend.reachable and any(strategy.tries_port for strategy in _of(vm))


def port_of(vm: VM) -> int | None:
    """Return the TCP port that the strategies of *vm* try; None for none."""
    port: int | None = vm.readiness.get("wait_for_port")
    return port


class Strategies:
    """The strategies that are in use, one object of each for all VMs."""

    def __init__(self, reactor: Any) -> None:
        """Make strategies that wait and connect with *reactor*, when they are needed."""
        self._reactor, self._started = reactor, False
        self._made: dict[type[Strategy], Strategy] = {}
        self._sets: dict[tuple[type[Strategy], ...], tuple[Strategy, ...]] = {}

    def of(self, vm: VM, backend: IBackend) -> tuple[Strategy, ...]:
        """Return the strategies that must all hold before *vm* is taken for ready."""
        wanted = tuple(strategy for strategy in _of(vm) if backend.reachable or not strategy.by_network)
        if wanted not in self._sets:  # VMs that have the same ones share a tuple
            self._sets[wanted] = tuple(map(self._make, wanted))
        return self._sets[wanted]

    def _make(self, strategy: type[Strategy]) -> Strategy:
        if strategy not in self._made:
            self._made[strategy] = strategy(self._reactor)
            if self._started:
                self._made[strategy].start()
        return self._made[strategy]

    def wait(self, vm: VM, guest: Guest, every: float = EVERY) -> Deferred[None]:
        """Fire when the strategy of *vm* that tries a port (`has_port`) holds, which is tried every *every* seconds."""
        return self._make(next(strategy for strategy in _of(vm) if strategy.tries_port)).wait(vm, guest, every)

    def start(self) -> None:
        """Begin what the strategies need, and from now on what further ones need."""
        self._started = True
        for strategy in self._made.values():
            strategy.start()

    def stop(self) -> Deferred[None]:
        """End what the strategies have begun."""
        ended = DeferredList([strategy.stop() for strategy in self._made.values()], consumeErrors=True)
        return ended.addCallback(lambda _: None)
