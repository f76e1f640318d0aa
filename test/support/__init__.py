"""What several tests need: VMs by a few words, and a fleet on a clock with backends of memory."""

from __future__ import annotations

import threading
import time
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from jitsu_tw.backends.memory import Fault, MemoryBackend, MemorySettings
from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.coordinator.local import LocalCoordinator
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.dns.warm import WarmAnswers
from jitsu_tw.dns.wire import Question, Source, from_text
from jitsu_tw.keys import keys_of
from jitsu_tw.readiness import READINESS
from jitsu_tw.settings import VM, Mode, Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.vm.machine import Machine

#: Seconds that a thread may take; nothing is measured.
PATIENCE: Final = 10.0

#: No advance of a clock makes this many calls; the most that one made was 50.
MOST_CALLS: Final = 1000

#: What the fleets of the tests take for seconds since 1970 when they begin.
EPOCH = 1_700_000_000.0


class BoundedClock(Clock):
    """A clock on which no moment lasts for ever: calls that plan each other for one moment make the test fail."""

    def advance(self, amount: float) -> None:
        """
        Advance the time by *amount* seconds, and make the calls that are due.

        Raises:
            AssertionError: `MOST_CALLS` calls were due.
        """
        self.rightNow += amount
        for _ in range(MOST_CALLS):
            self._sortCalls()
            if not self.calls or self.calls[0].getTime() > self.seconds():
                return
            call = self.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)
        message = f"{MOST_CALLS} calls were due within one advance, and more are: {self.calls[:3]}"
        raise AssertionError(message)


class HandClock(BoundedClock):
    """A clock, and a reactor that makes the calls of other threads when a test runs it."""

    def __init__(self) -> None:
        """Begin with no call from a thread."""
        super().__init__()
        self.told: list[Any] = []
        self.there = threading.Condition()

    def callFromThread(self, function: Any, *arguments: Any) -> None:  # noqa: N802
        """Store a call of a thread."""
        with self.there:
            self.told.append((function, arguments))
            self.there.notify()

    def turn(self) -> None:
        """Wait for calls of threads, and make them."""
        with self.there:
            assert self.there.wait_for(lambda: self.told, PATIENCE), "no thread tells anything"
            told, self.told = self.told, []
        for function, arguments in told:
            function(*arguments)

    def until(self, condition: Callable[[], object]) -> None:
        """Make the calls of threads until *condition* holds, for at most `PATIENCE` seconds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "threads tell much, but not what the test waits for"
            self.turn()


def vm(name: str = "www", **changes: Any) -> VM:
    """Return a VM of the memory backend: NAME.jitsu.test, at an address of its own."""
    readiness = {key: value for key in READINESS if (value := changes.pop(key, None)) is not None}
    memory = {key: changes.pop(key) for key in keys_of(MemorySettings) if key in changes}
    if "faults" in memory:
        memory["faults"] = map(Fault, memory["faults"])
    values: dict[str, Any] = {
        "dns": (from_text(f"{name}.jitsu.test"),),
        "ip": (ip_address(f"10.0.{len(name)}.{sum(name.encode()) % 254 + 1}"),),
        "ttl": 60,
        "mode": Mode.DESTROY,
        "backend": "memory",
        "connect": "",
        "idle": 120.0,
        "readiness": readiness,
        "backend_settings": MemorySettings(**memory) if memory else None,
    }
    return VM(name=name, **{**values, **changes})


def question(
    name: str = "www", host: str = "192.0.2.1", port: int = 4711, type: int = 1, *, proven: bool = True
) -> Question:
    """Return a question for the address of NAME.jitsu.test, from a client that has proven its address."""
    return Question(from_text(f"{name}.jitsu.test"), type, source=Source(host, port, proven=proven))


def alone(settings: Settings, clocks: Clocks, pool: Pool | None = None) -> partial[Membership]:
    """Return what makes a cluster of one node, whose hosts are those of *pool*."""
    return partial(Membership, settings, pool, LocalCoordinator(), clocks)


def _nothing() -> None:
    """Do nothing: what the calls of a killed process do."""


class Hearer:
    """Receives calls, and fires Deferreds for tests that wait for them: each call ends with `look`."""

    def __init__(self) -> None:
        """Begin with no test that waits."""
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    def until(self, condition: Callable[[], object]) -> Deferred[None]:
        """Return a Deferred that fires when *condition* holds; it is checked after each call."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self.look()
        return waiting.addTimeout(10, reactor)

    def look(self) -> None:
        """Fire the Deferreds whose conditions hold."""
        for condition, waiting in list(self._waiting):
            if condition():
                self._waiting.remove((condition, waiting))
                waiting.callback(None)


def reboot(backend: MemoryBackend, uuid: str) -> None:
    """Reboot a VM as its guest would."""
    backend.guests[uuid].boots += 1
    assert backend._watcher is not None
    backend._watcher.rebooted(uuid)


class World:
    """
    A fleet with a backend and a state of memory, on a clock.

    Attributes:
        clock: the clock of all times.
        wall_set: seconds by which the wall clock was set, forward or, below 0, back.
        backend: where the VMs are; it outlives the fleet, as a hypervisor does.
        store: the state, which outlives the fleet, too.
        warm: the warm answers of the fleet's VMs.
        fleet: the fleet, which has been started.
    """

    def __init__(self, *vms: VM, **settings: Any) -> None:
        """Start a fleet with *vms* and further *settings*."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.wall_set = 0.0
        self.backend = MemoryBackend(reactor=self.clock)
        self.store = MemoryStore(lasting=True)
        self.settings = Settings(vms=vms, **settings)
        self.begin()

    def begin(self) -> None:
        """Start a fleet, as a process that starts."""
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds() + self.wall_set)
        backends = {("memory", ""): self.backend}
        self.warm = WarmAnswers(self.clock.seconds, self.settings.summon_from)
        self.fleet = Fleet(self.settings, backends, self.store, clocks, alone(self.settings, clocks), self.warm)
        self.fleet.start(self.store.open())

    def kill(self) -> None:
        """End the fleet as `kill -9` does: nothing of it happens any more, and nothing is written down."""
        for call in self.clock.getDelayedCalls():
            call.__dict__.update(func=_nothing, args=(), kw={}, cancel=_nothing)
        self.begin()

    def machine(self, name: str = "www") -> Machine:
        """Return the machine of that name."""
        return self.fleet.machines[name]

    def starts(self, name: str = "www") -> int:
        """Return how often the backend has started the VM."""
        return self.backend.guests[self.machine(name).uuid].starts

    def pump(self, seconds: float, step: float = 0.1, until: Callable[[], object] = _nothing) -> None:
        """Advance the time in steps, or *until* something holds."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            if until():
                break

    def remembered(self, name: str = "www") -> Mapping[str, str]:
        """Return the VM's statistics in the state."""
        base = f"jitsu/stats/{self.machine(name).uuid}/"
        return {path.removeprefix(base): value for path, value in self.store.tree.items() if path.startswith(base)}
