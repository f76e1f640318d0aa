"""VMs that are up without being asked for: in their weekly windows; on a clock, with VMs of the memory backend."""

from __future__ import annotations

from datetime import datetime

from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.schedule import WeeklyWindow
from jitsu_tw.vm.wakeups import EARLY
from test.support import EPOCH, World, vm
from test.unit.cluster.test_claims import Cluster
from test.unit.vm.test_fleet import FleetTestCase


class WindowTests(FleetTestCase):
    """`keep_up`: the clock of the tests begins in the night from Tuesday to Wednesday, UTC."""

    def span(self, begin: float, end: float) -> WeeklyWindow:
        """Return the span of today from so many seconds after the world's begin on; whole minutes."""
        times = [datetime.fromtimestamp(EPOCH + 1000 + one).astimezone().replace(second=0) for one in (begin, end)]
        return WeeklyWindow(frozenset({times[0].weekday()}), times[0].time(), times[1].time())

    def begins(self, span: WeeklyWindow) -> float:
        """Return when the span begins, in seconds after the world's begin."""
        now = datetime.fromtimestamp(EPOCH + 1000).astimezone()
        return (datetime.combine(now.date(), span.begin).astimezone() - now).total_seconds()

    def test_kept_and_started(self) -> None:
        """It is started a minute before its time begins, kept to the end without being asked for, and then stopped."""
        span = self.span(600, 1200)
        self.world = World(vm(idle=16, keep_up=(span,)))
        begins = self.begins(span)
        self.world.pump(begins - EARLY - 1, step=0.5)
        self.assertIs(State.OFF, self.world.machine().state)
        self.world.pump(1.5, step=0.5)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(EARLY + 600 - 2, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(4, step=0.5)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual(1, self.world.starts())

    def test_at_the_start(self) -> None:
        """A Jitsu that starts within the time starts the VM; one that adopts it keeps it."""
        self.world = World(vm(idle=16, keep_up=(self.span(-300, 900),)))
        self.assertIs(State.UP, self.world.machine().state)
        (activation,) = self.world.fleet.journal.last_activations("www", 5)
        self.assertEqual((0, False), (activation.clients, "answered" in self.world.machine().marks))
        self.world.kill()
        self.world.pump(100, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual(1, self.world.starts())

    def test_goes_down(self) -> None:
        """A VM that goes down in its time is started again; one that a person stops is not, until it is asked for."""
        self.world = World(vm(idle=16, keep_up=(self.span(-300, 900),)))
        self.world.pump(20)
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
        self.world.pump(0.2)
        self.assertEqual((State.UP, 2), (self.world.machine().state, self.world.starts()))
        self.world.fleet.operator.stop("www")
        self.world.pump(100, step=1)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual([True], self.ask())
        self.world.pump(100, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
        self.world.pump(0.2)
        self.assertIs(State.UP, self.world.machine().state)

    def test_cannot_start(self) -> None:
        """A VM that cannot be started is tried again, and not in haste."""
        self.world = World(vm(idle=16, keep_up=(self.span(-300, 900),), faults=["start"]))
        self.world.pump(100, step=1)
        self.assertTrue(3 <= self.world.fleet.stats.current(self.world.machine()).total_starts <= 5)

    def test_set_forward(self) -> None:
        """A wall clock that is set into a time of the week starts its VM within a minute, and out of it stops it."""
        self.world = World(vm(idle=16, keep_up=(self.span(7200, 9000),)))
        self.world.pump(100)
        self.assertEqual(0, self.world.starts())
        self.world.wall_set = 7200.0
        self.world.pump(60)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(300)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.wall_set += 3600.0
        self.world.pump(60)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_set_forward_before(self) -> None:
        """One that is set forward, but not into a time of the week, starts the VMs when that comes, so much sooner."""
        span = self.span(3000, 4800)
        self.world = World(vm("one", keep_up=(span,)), vm("two", keep_up=(span,)))
        self.world.pump(100)
        self.world.wall_set = 1800.0
        self.world.pump(self.begins(span) - 1800 - 100 - EARLY - 5, step=1)
        self.assertEqual([State.OFF] * 2, [self.world.machine(name).state for name in ("one", "two")])
        self.world.pump(10, step=1)
        self.assertEqual([State.UP] * 2, [self.world.machine(name).state for name in ("one", "two")])

    def test_set_back(self) -> None:
        """One that is set back by an hour keeps a VM until its time ends, and starts it when the time comes again."""
        self.world = World(vm(idle=16, keep_up=(self.span(-300, 900),)))
        self.world.pump(1)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.wall_set = -3600.0
        self.world.pump(60)
        self.assertIs(State.OFF, self.world.machine().state)
        self.world.pump(3600 - 300 - 60 - EARLY - 20, step=10)
        self.assertEqual(1, self.world.starts())
        self.world.pump(60)
        self.assertIs(State.UP, self.world.machine().state)

    def test_lease_and_wall(self) -> None:
        """A lease does not end sooner or later because the wall clock is set."""
        for shift in (3600.0, -3600.0):
            self.world = World(vm(idle=16))
            self.ask()
            self.world.wall_set = shift
            self.world.pump(15)
            self.assertIs(State.UP, self.world.machine().state)
            self.world.pump(2)
            self.assertIs(State.OFF, self.world.machine().state)

    def test_cluster(self) -> None:
        """In a cluster, too, a VM is started when its window begins, and not before, though no node owns it then."""
        span = self.span(600, 1200)
        cluster = Cluster(vm(idle=16, keep_up=(span,)))
        begins = self.begins(span)
        cluster.run(begins - EARLY - 5, 0.5)
        self.assertEqual(0, cluster.guest.starts)
        cluster.run(10, 0.05)
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        cluster.run(EARLY + 600 - 10, 0.5)
        cluster.run(30, 0.05)
        self.assertEqual([State.OFF] * 3, [node.state() for node in cluster.nodes])
        self.assertEqual(1, cluster.guest.starts)

    def test_new_settings(self) -> None:
        """A VM that has no weekly windows any more is stopped when it is idle; one that has them now is kept."""
        span = self.span(-300, 900)
        self.world = World(vm("old", idle=16, keep_up=(span,)), vm("new", idle=16))
        self.ask("new")
        for name, windows in (("old", ()), ("new", (span,))):
            self.world.fleet.inventory.find(self.world.fleet.enlist(vm(name, idle=16, keep_up=windows)))
        self.world.pump(20)
        self.assertEqual([State.OFF, State.UP], [self.world.machine(name).state for name in ("old", "new")])

    def test_dry_run(self) -> None:
        """A dry run starts nothing."""
        self.world = World(vm(keep_up=(self.span(-300, 900),)), dry_run=True)
        self.assertIs(State.OFF, self.world.machine().state)
