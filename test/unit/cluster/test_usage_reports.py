"""What a node reports of the use of VMs: `UsageReporter` alone, on a clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.cluster_state import ClusterState
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.cluster.usage_reports import GATHER_SHARE, REPORT_EVERY, REPORT_SHARE, UsageReporter
from jitsu_tw.rules.lifecycle import State
from test.support import EPOCH, BoundedClock, vm

IDLE = 80.0


class FakeMachine:
    """A VM that is up."""

    def __init__(self) -> None:
        """Be up."""
        self.vm, self.state = vm(idle=IDLE), State.UP


class UsageTests(SynchronousTestCase):
    """One node of a cluster, and its facts."""

    def setUp(self) -> None:
        """Begin connected."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.table = Table(self.clock)
        self.coordinator = MemoryCoordinator("ns1", self.table)
        peer: Any = self
        self.coordinator.start(peer)
        self.state = ClusterState(self.coordinator)
        self.state.connect(0.0)
        self.machine: Any = FakeMachine()
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        events: Any = self
        machines: dict[str, Any] = {"www": self.machine}
        self.gathered = 0
        self.usage = UsageReporter(self.state, machines, clocks, events)
        self.usage.start()
        self.run_for(0.1)

    def told(self, *_: object) -> None:
        """Be a peer (`IPeer`) that does nothing."""

    connected = lost = told

    def gather(self) -> None:
        """Have nothing more to note."""
        self.gathered += 1

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.01] * round(seconds * 100))

    def fact(self) -> float | None:
        """Return when the VM was used, as the nodes agree, on the clock."""
        value = self.table.facts.get("used/www")
        return None if value is None else float(value) - EPOCH

    def check(self, used: float) -> None:
        """Check that the last use that is reported was at *used*."""
        self.assertAlmostEqual(used, self.fact() or 0.0, places=2)

    def write(self, when: float) -> None:
        """Report a use as another node does."""
        self.table.change({"used/www": f"{EPOCH + when:.3f}"})
        self.run_for(0.1)

    def test_reported_soon(self) -> None:
        """A use is reported within the time that its lease allows, and the next one not before a share of it."""
        used = self.clock.seconds()
        self.usage.note(self.machine, used)
        self.run_for(REPORT_EVERY + IDLE * GATHER_SHARE + 0.1)
        self.check(used)
        self.usage.note(self.machine, used + IDLE * REPORT_SHARE - 1.0)
        self.run_for(2 * IDLE * GATHER_SHARE)
        self.check(used)
        self.usage.note(self.machine, used + IDLE * REPORT_SHARE)
        self.run_for(REPORT_EVERY + IDLE * GATHER_SHARE + 0.1)
        self.check(used + IDLE * REPORT_SHARE)

    def test_reported_at_once(self) -> None:
        """The use of a VM that is being stopped is reported at once."""
        used = self.clock.seconds()
        self.machine.state = State.OWNER_STOPPING
        self.usage.note(self.machine, used)
        self.run_for(0.01)
        self.check(used)

    def test_later_is_kept(self) -> None:
        """A use that was noted while the node was cut off does not replace a later one of another node."""
        used = self.clock.seconds()
        self.usage.note(self.machine, used)
        self.write(used + 0.05)
        self.run_for(10.0)
        self.check(used + 0.05)
        self.usage.note(self.machine, used + 60.0)
        self.run_for(70.0)
        self.check(used + 60.0)

    def test_clock_ahead(self) -> None:
        """What a node reports whose clock is ahead hides no use that was later."""
        self.write(self.clock.seconds() + 3600.0)
        used = self.clock.seconds()
        self.usage.note(self.machine, used)
        self.run_for(10.0)
        self.check(used)

    def test_reported_again(self) -> None:
        """A use that could not be reported is reported later, unless the VM went down."""
        for state, is_reported in ((State.UP, True), (State.OFF, False)):
            self.setUp()
            used = self.clock.seconds()
            self.usage.note(self.machine, used)
            self.coordinator.cut()
            self.run_for(4.0)
            if state is State.OFF:
                self.machine.state = state
                self.usage.forget(self.machine)
            self.coordinator.heal()
            self.run_for(5.0)
            self.check(used if is_reported else 0.0)

    def test_not_connected(self) -> None:
        """Nothing is reported while the node does not know the facts."""
        self.state.lose("etcd does not answer")
        self.usage.note(self.machine, self.clock.seconds())
        self.run_for(10.0)
        self.assertIsNone(self.fact())

    def test_stop(self) -> None:
        """In the end all is reported, also what is not due; then nothing is gathered any more."""
        used = self.clock.seconds()
        self.usage.note(self.machine, used)
        self.run_for(5.0)
        self.usage.note(self.machine, used + 1.0)
        self.usage.note(self.machine, used + 0.5)
        stopped = Deferred.fromCoroutine(self.usage.stop())
        self.run_for(0.1)
        self.successResultOf(stopped)
        self.check(used + 1.0)
        gathered = self.gathered
        self.run_for(20.0)
        self.assertEqual(gathered, self.gathered)

    def test_last(self) -> None:
        """A use may have been later than what is reported, by as much as a node waits with a report."""
        now = self.clock.seconds()
        late = IDLE * (REPORT_SHARE + GATHER_SHARE)
        self.assertAlmostEqual(now - 50.0 + late, self.usage.last(self.machine, now - 50.0))
        self.usage.note(self.machine, now - 20.0)
        self.assertAlmostEqual(now - 20.0 + late, self.usage.last(self.machine, now - 50.0))
        self.assertEqual(now, self.usage.last(self.machine, now - 1.0))
