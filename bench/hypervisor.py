"""
A hypervisor for soaks: the memory backend's, with guests that send and fall silent, and people who change them.

It outlives Jitsu. What one Jitsu knows of it comes through a `Connection`, which takes its time, breaks, and tells the
ledger what is called. A call that Jitsu does not hear of any more goes on all the same.
"""

from __future__ import annotations

import uuid as uuids
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as NobodyThere
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.backends.memory import MemoryBackend, MemoryGuest
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start
from jitsu_tw.settings import VM, Fault, Mode
from jitsu_tw.vm.lifecycle import WANTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from twisted.internet.interfaces import IDelayedCall
    from twisted.internet.task import Clock

    from bench.ledger import Facts, Ledger
    from jitsu_tw.vm.activation import Machine

#: A call that hangs is given up after so many seconds.
HANGS: Final = 60.0

#: Calls and events take up to so many seconds, each way; most take none.
LATENCY: Final = 0.4
INSTANT: Final = 0.7

#: The calls that change a VM.
CHANGING: Final = frozenset({"start", "stop", "keep_image", "drop_image"})

#: How the hypervisor's words say that a change was Jitsu's.
OURS: Final = frozenset(start.value for start in Start) | {f"stopped ({mode.value})" for mode in Mode}


class Hypervisor(MemoryBackend):
    """
    The VMs of one URI. Ports of its guests can be tried.

    Attributes:
        name: its URI.
        up: it can be reached.
        uuids: of the VMs that it knows now, by name.
        told: who is told of changes, until it ends.
    """

    reachable = True

    def __init__(self, name: str, clock: Clock, ledger: Ledger, random: Random) -> None:
        """Begin with no VM."""
        super().__init__(name, clock)
        self.name, self._clock, self._ledger, self._random = name, clock, ledger, random
        self.up = True
        self._counted: dict[str, float] = {}
        self._by_host = {str(vm.ip[0]): facts for facts in ledger.facts.values() for vm in (facts.vm,)}
        self.uuids: dict[str, str] = {}
        self.told: Connection | None = None

    def facts(self, uuid: str) -> Facts:
        """Return what the ledger has of a VM."""
        return self._ledger.facts[self.guests[uuid].vm.name]

    # What is different from the memory backend.

    def define(self, vm: VM, *, anew: bool) -> None:
        """Know *vm* from now on, by the uuid that it had or, *anew*, by another."""
        uuid = str(uuids.UUID(int=self._random.getrandbits(128)) if anew else uuids.uuid5(uuids.NAMESPACE_DNS, vm.name))
        self.uuids[vm.name] = uuid
        facts = self._ledger.facts[vm.name]
        facts.counts = self._random.random() < 0.8
        self.guests[uuid] = MemoryGuest(vm, sent=0 if facts.counts else None)
        self._ledger.changed(facts, Power.OFF, "defined", ours=False, on_its_way=False)
        self._tell(uuid, "defined")

    def undefine(self, name: str) -> None:
        """Forget a VM that is off."""
        uuid = self.uuids.pop(name)
        facts = self.facts(uuid)
        del self.guests[uuid]
        self._ledger.changed(facts, None, "undefined", ours=False, on_its_way=False)
        self._tell(uuid, "undefined")

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return the uuid of a VM that is defined."""
        return maybeDeferred(self._look_up, vm)

    def _look_up(self, vm: VM) -> str:
        if vm.name not in self.uuids:
            message = f"no VM is called {vm.name}"
            raise NoSuchVM(message)
        return self.uuids[vm.name]

    def order(self, name: str, fault: Fault) -> bool:
        """Order a fault, or end it; say whether it is on now."""
        guest = self.guests[self.uuids[name]]
        guest.vm = attrs.evolve(guest.vm, faults=guest.vm.faults ^ {fault})
        return fault in guest.vm.faults

    def _set(self, uuid: str, power: Power, reason: str) -> None:
        """Change a VM, if it is there still."""
        if uuid not in self.guests:
            return
        guest, facts = self.guests[uuid], self.facts(uuid)
        self._count(guest, facts)
        ours = reason in OURS
        if ours and power is Power.RUNNING:
            facts.how = Start(reason)
        machine = self.told.machine(facts.vm.name) if self.told is not None else None
        guest.power = power
        self._ledger.changed(
            facts, power, reason, ours=ours, on_its_way=machine is not None and machine.state in WANTED
        )
        self._tell(uuid, reason)

    def _tell(self, uuid: str, reason: str) -> None:
        if self.told is not None:
            self.told.event(uuid, reason)

    def _stop(self, uuid: str, mode: Mode) -> None:
        """Stop a VM; with a shutdown, the guest takes its time, perhaps too long."""
        guest = self._guest(uuid)
        if mode is not Mode.SHUTDOWN or guest.power is not Power.RUNNING or Fault.STOP in guest.vm.faults:
            super()._stop(uuid, mode)
            return
        starts, patience = guest.starts, guest.vm.stop_timeout
        self._clock.callLater(self._random.uniform(0, 1.2) * patience, self._shut_down, uuid, starts)

    def _shut_down(self, uuid: str, starts: int) -> None:
        guest = self.guests.get(uuid)
        if guest is not None and guest.power is Power.RUNNING and guest.starts == starts:
            self._set(uuid, Power.OFF, f"stopped ({Mode.SHUTDOWN.value})")

    def ready(self, uuid: str) -> Deferred[None]:
        """Fire at once; never for a VM that is never ready; fail for one that is not there."""
        return super().ready(uuid) if uuid in self.guests else fail(NoSuchVM(f"no VM {uuid}"))

    def keep_image(self, uuid: str) -> Deferred[None]:
        """Keep an image, if the VM is there at the end."""
        return super().keep_image(uuid).addErrback(self._no_image)

    @staticmethod
    def _no_image(failure: Failure) -> None:
        raise BackendError(failure.getErrorMessage())

    # What guests send.

    def send(self, name: str, rate: float) -> None:
        """Let the guest of a VM send so many packets a second from now on, while it runs."""
        facts = self._ledger.facts[name]
        self._count(self.guests[self.uuids[name]], facts)
        facts.rate, facts.rate_since = rate, self._clock.seconds()

    def _count(self, guest: MemoryGuest, facts: Facts) -> None:
        """Count what a guest has sent since this was last called."""
        now, then = self._clock.seconds(), self._counted.get(facts.vm.name, 0.0)
        self._counted[facts.vm.name] = now
        if guest.power is Power.RUNNING and guest.sent is not None:
            guest.sent += round((now - then) * facts.rate)

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Return what the guest has sent."""
        if uuid in self.guests:
            self._count(self.guests[uuid], self.facts(uuid))
        return super().traffic(uuid)

    def listens(self, host: str) -> bool | None:
        """Say whether a port of the VM at *host* is open; None if nobody is there."""
        facts = self._by_host.get(host)
        return None if facts is None or facts.power is not Power.RUNNING else facts.deaf > self._clock.seconds()


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
        reachable, images: as `IBackend` has them.
        machine: finds what that Jitsu believes of a VM; only its reasons are used.
        at_door: called whenever something passes: Jitsu may be killed there.
    """

    images = True

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

    def check(self, vms: Iterable[VM]) -> None:
        """Do nothing."""

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
            self._ledger.counted(self._hypervisor.facts(uuid), total)
        return total

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Say what a start takes."""
        return self._ask("memory", uuid, self._hypervisor.memory, uuid)

    def keep_image(self, uuid: str) -> Deferred[None]:
        """Keep an image."""
        return self._ask("keep_image", uuid, self._hypervisor.keep_image, uuid)

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Forget it."""
        return self._ask("drop_image", uuid, self._hypervisor.drop_image, uuid)


def _cancel(result: Any, late: IDelayedCall) -> Any:
    if late.active():
        late.cancel()
    return result


@implementer(IReactorTime)
class Process:
    """
    The reactor of one Jitsu, until that is no more: then nothing of it happens.

    Attributes:
        alive: it is.
    """

    def __init__(self, clock: Clock, listens: Callable[[str], bool | None], failed: Callable[[], None]) -> None:
        """Turn with *clock*; ports of guests are open if *listens* says so; call *failed* in an exception."""
        self._clock, self._listens, self._failed = clock, listens, failed
        self.alive = True

    def seconds(self) -> float:
        """Return the clock's time."""
        return self._clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> IDelayedCall:  # noqa: A002, N802
        """Call later, if it lives."""
        return self._clock.callLater(delay, self._call, callable, args, kwargs)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not self.alive:
            return
        try:
            function(*arguments, **keywords)
        except Exception:  # noqa: BLE001 - as a reactor does: nothing may end it
            self._failed()

    def getDelayedCalls(self) -> list[IDelayedCall]:  # noqa: N802
        """Return what will be called."""
        calls: list[Any] = list(self._clock.getDelayedCalls())
        return [call for call in calls if getattr(call.func, "__self__", None) is self]

    def end(self) -> None:
        """Be no more."""
        self.alive = False
        for call in self.getDelayedCalls():
            call.cancel()

    def connectTCP(  # noqa: N802
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None  # noqa: ARG002, N803
    ) -> Knock:
        """Connect to a guest."""
        return Knock(self, self._listens(host), factory, timeout)


class Knock:
    """A try to connect to a guest, and the transport if there is one."""

    def __init__(self, process: Process, listens: bool | None, factory: Any, timeout: float) -> None:  # noqa: FBT001
        """Try: a port is open, or closed, or nobody is there and the try takes *timeout* seconds."""
        self._factory, self._listens, self._protocol = factory, listens, None
        factory.doStart()
        factory.startedConnecting(self)
        self._end = process.callLater(timeout if listens is None else 0.001, self._ends)

    def _ends(self) -> None:
        if self._listens:
            protocol = self._protocol = self._factory.buildProtocol(None)
            assert protocol is not None
            protocol.makeConnection(self)
        else:
            why = NobodyThere() if self._listens is None else Refused()
            self._factory.clientConnectionFailed(self, Failure(why))

    def stopConnecting(self) -> None:  # noqa: N802
        """Give up."""
        if self._end.active():
            self._end.cancel()

    def getDestination(self) -> None:  # noqa: N802
        """Return where it would lead to, for messages."""

    def loseConnection(self) -> None:  # noqa: N802
        """Close it."""
        self._protocol, protocol = None, self._protocol
        if protocol is not None:
            protocol.connectionLost(Failure(ConnectionDone()))

    abortConnection = loseConnection  # noqa: N815
