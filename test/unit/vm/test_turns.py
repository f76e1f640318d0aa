"""Work on many VMs at once, in slices of time: the reactor reads its sockets in between. On a clock, each step slow."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from unittest import mock

from twisted.internet.defer import Deferred

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.alone import Alone
from jitsu_tw.rules.lease import Leases
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.schedule import WeeklyWindow
from jitsu_tw.settings import COMMIT_EVERY, Evidence
from jitsu_tw.slices import SLICE
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm import stats
from jitsu_tw.vm.fleet import NoAnswers
from jitsu_tw.vm.journal import Journal
from jitsu_tw.vm.leases import REST
from jitsu_tw.vm.machine import Machine
from jitsu_tw.vm.persistence import StatsStore
from jitsu_tw.vm.stats import Statistics
from jitsu_tw.vm.uptime import Uptime
from jitsu_tw.vm.wakeups import EARLY, WALL_EVERY
from test.support import EPOCH, BoundedClock, World, vm
from test.unit.vm.test_fleet import FleetTestCase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitsu_tw.settings import VM

#: VMs of a test, and how many of its steps fit into a slice.
MANY = 20
FIT = 4


class Turns:
    """
    Counts the slow steps of each iteration of the reactor.

    Attributes:
        counts: of the iterations in which there was a step.
    """

    def __init__(self, clock: BoundedClock) -> None:
        """Count on *clock*; calls that are planned for at once begin an iteration."""
        self._clock, self._later = clock, clock.callLater
        self._is_new = True
        self.counts: list[int] = []

    def call_later(self, delay: float, function: Any, *args: Any, **kw: Any) -> Any:
        """Plan a call, which begins an iteration."""

        def call() -> None:
            self._is_new = True
            function(*args, **kw)

        return self._later(delay, call)

    def step(self) -> None:
        """Take a part of a slice."""
        if self._is_new:
            self.counts.append(0)
        self._is_new = False
        self.counts[-1] += 1
        self._clock.rightNow += SLICE / FIT


class TurnsTestCase(FleetTestCase):
    """Has turns that are counted."""

    def count(self, name: str) -> Turns:
        """Make the method *name* of the backend slow, and count its calls."""
        turns, method = Turns(self.world.clock), getattr(self.world.backend, name)

        def slow(*args: Any) -> Any:
            turns.step()
            return method(*args)

        self.patch(self.world.backend, name, slow)
        self.patch(self.world.clock, "callLater", turns.call_later)
        return turns

    def states(self) -> set[State]:
        """Return the states of all VMs."""
        return {machine.state for machine in self.world.fleet.machines.values()}


def many(**changes: Any) -> list[VM]:
    """Return many VMs, all alike."""
    return [vm(f"vm{number}", **changes) for number in range(MANY)]


class FleetTurnsTests(TurnsTestCase):
    """VMs that end, are found, and begin all at once."""

    def test_leases(self) -> None:
        """Leases that end at one time are looked at in slices, and all end."""
        self.world = World(*many(idle=16))
        for machine in self.world.fleet.machines.values():
            self.ask(machine.vm.name)
        turns = self.count("stop")
        self.world.pump(17)
        self.assertEqual([FIT] * (MANY // FIT), turns.counts)
        self.assertEqual({State.OFF}, self.states())

    def test_one_by_one(self) -> None:
        """Leases that end shortly after each other are looked at together, and all end."""
        self.world = World(*many(idle=16))
        for machine in self.world.fleet.machines.values():
            self.world.clock.advance(REST / 10)
            self.ask(machine.vm.name)
        looks: list[float] = []
        due = Leases.due

        def counted(leases: Leases, now: float) -> Iterator[str]:
            looks.append(now)
            return due(leases, now)

        self.patch(Leases, "due", counted)
        self.world.pump(15)
        looks.clear()
        self.world.pump(1.2, step=REST / 50)
        self.assertEqual({State.OFF}, self.states())
        self.assertLess(len(looks), MANY / 2)

    def test_fault(self) -> None:
        """After a fault of Jitsu in the look at one lease, the others are looked at."""
        self.world = World(*many(idle=16, evidence=Evidence.QUERIES))
        for machine in self.world.fleet.machines.values():
            self.ask(machine.vm.name)
        with mock.patch.object(self.world.fleet.leases, "_decide", side_effect=ZeroDivisionError):
            self.assertRaises(ZeroDivisionError, self.world.pump, 17)
        self.world.pump(1)
        states = [machine.state for machine in self.world.fleet.machines.values()]
        self.assertEqual(MANY - 1, states.count(State.OFF))

    def test_inventory(self) -> None:
        """The VMs of a hypervisor that answers at once are found in slices."""
        self.world = World(*many())
        turns = self.count("look_up")
        self.world.begin()
        self.assertEqual([FIT], turns.counts)
        self.assertEqual({State.OFF, State.UNKNOWN}, self.states())
        self.world.pump(0.1)
        self.assertEqual([FIT] * (MANY // FIT), turns.counts)
        self.assertEqual({State.OFF}, self.states())


class LostTurnsTests(TurnsTestCase):
    """A hypervisor is lost, and with it all its VMs."""

    def setUp(self) -> None:
        """Begin with many VMs, each of which takes long to be told."""
        self.world = World(*many())
        self.turns = Turns(self.world.clock)
        self.patch(self.world.clock, "callLater", self.turns.call_later)
        lose = Machine.lose

        def slow(machine: Machine, *args: Any) -> None:
            self.turns.step()
            lose(machine, *args)

        self.patch(Machine, "lose", slow)

    def reasons(self) -> list[str]:
        """Return why nobody knows what each VM does."""
        return [one.reason for one in self.world.fleet.machines.values() if one.state is State.UNKNOWN]

    def test_told(self) -> None:
        """The VMs are told in slices, and all of them."""
        self.world.fleet.inventory.lost(self.world.backend, "a test")
        self.assertEqual([FIT], self.turns.counts)
        self.world.pump(0.1)
        self.assertEqual([FIT] * (MANY // FIT), self.turns.counts)
        self.assertEqual(["a test"] * MANY, self.reasons())

    def test_connected_meanwhile(self) -> None:
        """If it is connected again meanwhile, no VM is told any more that it is lost."""
        inventory = self.world.fleet.inventory
        inventory.lost(self.world.backend, "a test")
        inventory.connected(self.world.backend)
        self.world.pump(0.1)
        self.assertEqual(([FIT], []), (self.turns.counts, self.reasons()))

    def test_another_reason(self) -> None:
        """If it is lost for another reason meanwhile, that is what all VMs show in the end."""
        for reason in ("a test", "another test"):
            self.world.fleet.inventory.lost(self.world.backend, reason)
        self.world.pump(0.1)
        self.assertEqual(["another test"] * MANY, self.reasons())

    def test_dismissed_meanwhile(self) -> None:
        """A VM that is not in the configuration any more is not told."""
        self.world.fleet.inventory.lost(self.world.backend, "a test")
        last = self.world.machine(f"vm{MANY - 1}")
        self.world.fleet.dismiss(last, "gone")
        before = sum(self.turns.counts)
        self.world.pump(0.1)
        self.assertEqual(MANY - 1 - FIT, sum(self.turns.counts) - before)


class WindowTurnsTests(TurnsTestCase):
    """The weekly windows of all VMs begin at one time, ten minutes after the world."""

    def setUp(self) -> None:
        """Begin with many VMs, a second before the time at which they are to be started."""
        begin, end = (datetime.fromtimestamp(EPOCH + 1000 + one).astimezone().replace(second=0) for one in (600, 1200))
        window = WeeklyWindow(frozenset({begin.weekday()}), begin.time(), end.time())
        self.world = World(*many(keep_up=(window,)))
        self.world.pump(begin.timestamp() - EPOCH - self.world.clock.seconds() - EARLY - 1, step=1)
        self.turns = self.count("start")

    def test_begin(self) -> None:
        """The VMs are started in slices, by one timer."""
        waiting = len(self.world.clock.calls)
        self.assertEqual({State.OFF}, self.states())
        self.world.pump(3, step=1)
        self.assertEqual([FIT] * (MANY // FIT), self.turns.counts)
        self.assertEqual({State.UP}, self.states())
        self.assertLess(waiting, MANY)

    def test_end(self) -> None:
        """When the fleet ends, no further VM is started."""
        self.patch(self.world.clock, "callLater", lambda when, *call: self.turns.call_later(when or 1e-3, *call))
        self.world.pump(1, step=1)
        self.world.clock.advance(0)
        self.world.fleet.stop()
        begun = sum(self.turns.counts)
        self.assertGreater(MANY, begun)
        self.world.pump(3, step=1)
        self.assertEqual(begun, sum(self.turns.counts))

    def test_forgotten(self) -> None:
        """A VM that is not in the configuration any more is not started."""
        for name in ("vm3", "vm4"):
            self.world.fleet.dismiss(self.world.machine(name), "a test")
        self.world.pump(3, step=1)
        self.assertEqual(MANY - 2, sum(self.turns.counts))
        for machine in list(self.world.fleet.machines.values()):
            self.world.fleet.dismiss(machine, "a test")
        self.assertEqual({}, self.world.fleet.leases.wakeups._timers)

    def test_clock_is_set(self) -> None:
        """When the wall clock is set, the windows are planned anew in slices, by one timer; they begin when due."""
        wakeups = self.world.fleet.leases.wakeups
        watch = wakeups.watch

        def slow(machine: Machine) -> None:
            self.turns.step()
            watch(machine)

        self.world.wall_set = -100.0
        with mock.patch.object(wakeups, "watch", slow):
            self.world.pump(WALL_EVERY, step=1)
        self.assertLessEqual(MANY, sum(self.turns.counts))
        self.assertLessEqual(max(self.turns.counts), 2 * FIT)  # the old timer of the windows may be due, too
        self.world.pump(100 - WALL_EVERY, step=1)
        self.assertEqual({State.OFF}, self.states())
        self.world.pump(3, step=1)
        self.assertEqual({State.UP}, self.states())


class Answers(NoAnswers):
    """
    Answers of which some have been used.

    Attributes:
        used: the names of VMs, once for each use.
    """

    def __init__(self, statistics: list[Any], step: Any) -> None:
        """Begin with no use; *statistics* will have the statistics, and *step* is called for each use."""
        self._statistics, self._step = statistics, step
        self.used: list[Any] = []

    def taken(self) -> Iterator[tuple[str, Any, int, float]]:
        """Yield the uses since the last call."""
        used, self.used = self.used, []
        for machine in used:
            self._step()
            yield machine.vm.name, self._statistics[0].use_of(machine, machine.vm.dns[0]), 1, 1000.0


class Found:
    """A VM that was found."""

    def __init__(self, of: VM) -> None:
        """Be at a hypervisor."""
        self.vm, self.uuid, self.state = of, f"uuid of {of.name}", State.UP


class UsesTests(FleetTestCase):
    """The uses of warm answers, counted in pieces of one."""

    def setUp(self) -> None:
        """Begin with many VMs, none of which has been used."""
        self.patch(stats, "USES", 1)
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        machines: dict[str, Any] = {one.name: Found(one) for one in many()}
        self.machines, self.turns = list(machines.values()), Turns(self.clock)
        statistics: list[Any] = []
        self.answers = Answers(statistics, self.turns.step)
        self.stats = Statistics(machines, clocks, self.answers, Journal(clocks, lambda: None), Alone())
        statistics.append(self.stats)
        self.patch(self.clock, "callLater", self.turns.call_later)
        self.store = MemoryStore(lasting=True)
        self.record = StatsStore(self.store, machines, {}, clocks, COMMIT_EVERY, self.stats, Uptime(machines, clocks))
        self.record.start({}, set(machines))
        self.turns._is_new = True

    def counted(self) -> list[int]:
        """Return how many uses of each VM have been counted."""
        return [self.stats.of(machine).total_requests for machine in self.machines]

    def test_pieces(self) -> None:
        """Each call counts a piece, whatever is used meanwhile: no use is lost, or counted twice."""
        self.answers.used = list(self.machines)
        self.assertEqual([True, True], [self.stats.gather() for _ in range(2)])
        self.assertEqual(2, sum(self.counted()))
        self.answers.used = [*self.machines[:3]]
        self.assertEqual({True}, {self.stats.gather() for _ in range(MANY - 1)})
        self.assertEqual([2] + [1] * (MANY - 1), self.counted())
        self.assertEqual([True, True, False], [self.stats.gather() for _ in range(3)])
        self.assertEqual([2, 2, 2] + [1] * (MANY - 3), self.counted())

    def test_last_piece(self) -> None:
        """A piece that begins with the last of earlier uses goes on with those that have come since."""
        self.patch(stats, "USES", 2)
        self.answers.used = [*self.machines[:3]]
        self.assertTrue(self.stats.gather())
        self.answers.used = [*self.machines[3:5]]
        self.assertTrue(self.stats.gather())
        self.assertFalse(self.stats.gather())
        self.assertEqual([1] * 5 + [0] * (MANY - 5), self.counted())

    def test_shown(self) -> None:
        """To show a VM counts a piece only, of however many uses there are."""
        self.answers.used = list(self.machines)
        self.stats.current(self.machines[0])
        self.assertEqual(1, sum(self.counted()))

    def test_commit(self) -> None:
        """For a commit, a piece is counted in each iteration; then all are written at once."""
        self.answers.used = list(self.machines)
        self.clock.advance(COMMIT_EVERY)
        self.assertEqual([1] * MANY, self.turns.counts)
        self.assertEqual(MANY, len([path for path in self.store.tree if path.endswith("total_requests")]))

    def test_end(self) -> None:
        """In the end all are counted and written, also while that is under way, and nothing is written later."""
        self.answers.used = list(self.machines)
        self.patch(self.clock, "callLater", lambda when, *call: self.turns.call_later(when or 1.0, *call))
        self.clock.advance(COMMIT_EVERY)
        self.assertGreater(MANY, sum(self.counted()))
        self.successResultOf(Deferred.fromCoroutine(self.record.stop()))
        self.assertEqual([1] * MANY, self.counted())
        self.assertEqual(MANY, len([path for path in self.store.tree if path.endswith("total_requests")]))
        self.patch(self.store, "write", None)
        self.stats.changed.add("vm0")
        self.clock.advance(COMMIT_EVERY)
