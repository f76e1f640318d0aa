"""
One Jitsu's way to a soak's hypervisor: it takes its time, breaks, and tells the ledger what is called.

A call that Jitsu does not hear of any more goes on all the same.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from twisted.internet.interfaces import IDelayedCall
    from twisted.internet.task import Clock

    from bench.simulation.hypervisor import Hypervisor
    from bench.simulation.ledger import Facts, Ledger
    from jitsu_tw.settings import VM, Mode
    from jitsu_tw.vm.machine import Machine

#: A call that hangs is given up after so many seconds.
HANGS: Final = 60.0

#: Calls and events take up to so many seconds, each way; most take none.
LATENCY: Final = 0.4
INSTANT: Final = 0.7

#: The calls that change a VM.
CHANGING: Final = frozenset({"start", "stop", "keep_image", "drop_image", "prepare"})


@attrs.define(eq=False)
class _Call:
    """A call that Jitsu waits for."""

    what: str
    answer: Deferred[Any]
    facts: Facts | None


@implementer(IBackend)
class Connection:
    """
    One Jitsu's way to a hypervisor.

    Attributes:
        reachable, has_uuids: as `IBackend` has them.
        machine: finds what that Jitsu believes of a VM; only its reasons are used.
        at_door: called whenever something passes: Jitsu may be killed there.
    """

    has_uuids = True

    def __init__(
        self,
        hypervisor: Hypervisor,
        clock: Clock,
        ledger: Ledger,
        random: Random,
        machine: Callable[[str], Machine],
        at_door: Callable[[], None],
    ) -> None:
        """Lead to *hypervisor*."""
        self._hypervisor, self._clock, self._ledger, self._random = hypervisor, clock, ledger, random
        self.machine, self.at_door = machine, at_door
        self.reachable = hypervisor.reachable
        self._watcher: IWatcher | None = None
        self._up = self._ended = False
        self._calls: dict[_Call, None] = {}
        self._next_event = 0.0

    # The connection.

    def examine(self, vm: VM) -> tuple[str, ...]:  # noqa: ARG002
        """Return no advice."""
        return ()

    def connect(self, watcher: IWatcher) -> None:
        """Connect, if the hypervisor can be reached."""
        self._watcher = watcher
        self._hypervisor.told = self
        if self._hypervisor.up:
            self.found()
        else:
            watcher.lost(self, "nobody answers")

    def found(self) -> None:
        """Be connected."""
        if self._watcher is not None and not self._up:
            self._up = True
            self._ledger.healthy[self._hypervisor.name] = self._clock.seconds()
            self._watcher.connected(self)

    def broken(self) -> None:
        """Lose the connection: what Jitsu waits for fails, and goes on at the hypervisor."""
        self._up = False
        self._ledger.healthy[self._hypervisor.name] = inf
        for call in list(self._calls):
            self._answer(Failure(BackendLost("the connection broke")), call)
        if self._watcher is not None:
            self._watcher.lost(self, "the connection broke")

    def end(self) -> None:
        """Be abandoned, by a Jitsu that is no more."""
        self._up, self._ended, self._watcher = False, True, None
        self._calls.clear()
        if self._hypervisor.told is self:
            self._hypervisor.told = None

    def close(self) -> Deferred[None]:
        """End the connection."""
        self.end()
        return succeed(None)

    def event(self, uuid: str, reason: str) -> None:
        """Tell of a change, now or soon, one after the other."""
        if not self._up:
            return
        now = self._clock.seconds()
        self._next_event = max(now + self._latency(), self._next_event)
        if self._next_event > now:
            self._clock.callLater(self._next_event - now, self._tell, uuid, reason)
        else:
            self._tell(uuid, reason)

    def _tell(self, uuid: str, reason: str) -> None:
        if self._up and self._watcher is not None:
            self._watcher.changed(uuid, reason)
            self.at_door()

    def _latency(self) -> float:
        return 0.0 if self._random.random() < INSTANT else self._random.uniform(0, LATENCY)

    # Calls.

    def _ask(self, what: str, uuid: str, function: Callable[..., Deferred[Any]], *arguments: Any) -> Deferred[Any]:
        """Ask the hypervisor; the answer comes when it has got there and back, or fails when the connection breaks."""
        call = _Call(what, Deferred(lambda _: self._forget(call)), None)
        if self._ended:
            return call.answer
        self.at_door()
        if not self._up:
            return call.answer if self._ended else fail(BackendLost("there is no connection"))
        self._calls[call] = None
        if what in CHANGING and uuid in self._hypervisor.guests:
            call.facts = self._hypervisor.facts(uuid)
            self._ledger.calls(call.facts, what)
            machine = self.machine(call.facts.vm.name)
            if what == "start":
                self._ledger.starts(call.facts, machine.reason)
            elif what == "stop":
                self._ledger.stops(call.facts, arguments[1], machine.reason)
        way = self._latency()
        if way:
            self._clock.callLater(way, self._arrive, call, function, arguments)
        else:
            self._arrive(call, function, arguments)
        if not call.answer.called and what != "ready":
            late = self._clock.callLater(HANGS, self._answer, Failure(BackendLost(f"{what} hangs")), call)
            call.answer.addBoth(_cancel, late)
        return call.answer

    def _arrive(self, call: _Call, function: Callable[..., Deferred[Any]], arguments: tuple[Any, ...]) -> None:
        maybeDeferred(function, *arguments).addBoth(self._come_back, call)

    def _come_back(self, result: Any, call: _Call) -> None:
        way = self._latency()
        if way:
            self._clock.callLater(way, self._answer, result, call)
        else:
            self._answer(result, call)

    def _answer(self, result: Any, call: _Call) -> None:
        """Give Jitsu the answer, if it waits for it."""
        if call not in self._calls:
            return
        self._forget(call)
        if call.facts is not None:
            end = result.getErrorMessage() if isinstance(result, Failure) else getattr(result, "value", "done")
            self._ledger.called(call.facts, call.what, end)
        if call.answer.called:
            return
        if isinstance(result, Failure):
            call.answer.errback(result)
        else:
            call.answer.callback(result)
        self.at_door()

    def _forget(self, call: _Call) -> None:
        self._calls.pop(call, None)

    def look_up(self, vm: VM) -> Deferred[str]:
        """Find a VM."""
        return self._ask("look_up", "", self._hypervisor.look_up, vm)

    def state(self, uuid: str) -> Deferred[Power]:
        """Say what a VM is."""
        return self._ask("state", uuid, self._hypervisor.state, uuid)

    def start(self, uuid: str) -> Deferred[Start]:
        """Start a VM."""
        return self._ask("start", uuid, self._hypervisor.start, uuid)

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop a VM."""
        return self._ask("stop", uuid, self._hypervisor.stop, uuid, mode)

    def ready(self, uuid: str) -> Deferred[None]:
        """Wait until a guest is up."""
        return self._ask("ready", uuid, self._hypervisor.ready, uuid)

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Say what is known of a VM."""
        return self._ask("guest", uuid, self._hypervisor.guest, uuid)

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Say what a guest has sent."""
        return self._ask("traffic", uuid, self._hypervisor.traffic, uuid).addCallback(self._counted, uuid)

    def _counted(self, total: int | None, uuid: str) -> int | None:
        if total is not None and uuid in self._hypervisor.guests:
            facts = self._hypervisor.facts(uuid)
            machine = self.machine(facts.vm.name)
            if machine is not None and machine.state is State.UP:  # before, it is asked for signs of life, not of use
                self._ledger.counted(facts, total)
        return total

    def cpu_time(self, uuid: str) -> Deferred[float | None]:
        """Return how long the guest's virtual CPUs have run."""
        return self._ask("cpu_time", uuid, self._hypervisor.cpu_time, uuid)

    def obstacle(self, uuid: str, mode: Mode) -> Deferred[str | None]:
        """Return what is against stopping the VM by *mode*."""
        return self._ask("obstacle", uuid, self._hypervisor.obstacle, uuid, mode)

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Return what an operator should read about a VM."""
        return self._ask("advice", uuid, self._hypervisor.advice, uuid)

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Say what a start takes."""
        return self._ask("memory", uuid, self._hypervisor.memory, uuid)

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:  # noqa: ARG002
        """Fail: there is nowhere to go."""
        return fail(BackendError("there is one hypervisor"))

    def keep_image(self, uuid: str, *, shared: bool = False) -> Deferred[None]:
        """Keep an image."""
        return self._ask("keep_image", uuid, partial(self._hypervisor.keep_image, shared=shared), uuid)

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Forget it."""
        return self._ask("drop_image", uuid, self._hypervisor.drop_image, uuid)

    def remove(self, vm: VM) -> Deferred[None]:
        """Remove a VM of a template."""
        return self._ask("remove", str(vm.uuid), self._hypervisor.remove, vm)

    def prepare(self, uuid: str) -> Deferred[None]:
        """Pause a VM that nobody has used."""
        return self._ask("prepare", uuid, self._hypervisor.prepare, uuid)

    def stale(self, uuid: str) -> Deferred[str]:
        """Say why what is prepared is no use."""
        return self._ask("stale", uuid, self._hypervisor.stale, uuid)


def _cancel(result: Any, late: IDelayedCall) -> Any:
    if late.active():
        late.cancel()
    return result
