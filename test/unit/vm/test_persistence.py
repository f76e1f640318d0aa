"""When the state is written: `StatsStore` alone, on a clock, with a store that remembers its commits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.alone import Alone
from jitsu_tw.errors import StoreError
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import COMMIT_EVERY
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm.fleet import NoAnswers
from jitsu_tw.vm.journal import Journal
from jitsu_tw.vm.persistence import StatsStore
from jitsu_tw.vm.stats import Statistics
from jitsu_tw.vm.uptime import Uptime
from test.support import EPOCH, BoundedClock, vm

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "jitsu/stats/a uuid/"


class FakeMachine:
    """A VM that was found."""

    def __init__(self) -> None:
        """Be at a hypervisor, and on the way up."""
        self.vm, self.uuid, self.state = vm(), "a uuid", State.STARTING


class Store(MemoryStore):
    """
    A store that remembers its commits.

    Attributes:
        commits: when each was made, on the tests' clock, and what it changed.
        fails: the next commits fail.
        slow: the next commits end when this does.
    """

    def __init__(self, clock: BoundedClock) -> None:
        """Begin with nothing."""
        super().__init__(lasting=True)
        self.clock = clock
        self.commits: list[tuple[float, dict[str, str | None]]] = []
        self.fails = False
        self.slow: Deferred[None] | None = None

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Change the tree."""
        self.commits.append((self.clock.seconds(), dict(changes)))
        if self.fails:
            return fail(StoreError("no space left on device"))
        if self.slow is not None:
            return self.slow.addCallback(lambda _: super(Store, self).write(changes, message))
        return super().write(changes, message)


class WrittenTests(SynchronousTestCase):
    """What is in the state, and from when on."""

    def setUp(self) -> None:
        """Begin with one VM, of which nothing is remembered."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.store = Store(self.clock)
        self.machine: Any = FakeMachine()
        machines: dict[str, Any] = {"www": self.machine}
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        ownership, journal = Alone(), Journal(clocks, lambda: None)
        self.stats = Statistics(machines, clocks, NoAnswers(), journal, ownership)
        self.record = StatsStore(self.store, machines, {}, clocks, COMMIT_EVERY, self.stats, Uptime(machines, clocks))
        self.record.start({}, {"www"})
        self.clock.advance(COMMIT_EVERY / 2)

    def started(self) -> None:
        """Begin to start the VM."""
        self.record.moved(self.machine, State.QUEUED)

    def written(self, key: str) -> float:
        """Return a number that the state has."""
        return float(self.store.tree[BASE + key])

    def test_at_once(self) -> None:
        """A start and a stop are written at once, not at the next commit: a crash must lose neither."""
        self.started()
        now = self.clock.seconds()
        self.assertEqual([now], [at for at, _ in self.store.commits])
        self.assertAlmostEqual(EPOCH + now, self.written("start_ts"), places=2)
        self.assertEqual(1, self.written("total_starts"))
        self.clock.advance(0.1)
        self.record.stopped(self.machine)
        self.assertEqual(2, len(self.store.commits))
        self.assertAlmostEqual(EPOCH + now + 0.1, self.written("stop_ts"), places=2)
        self.assertFalse(self.stats.was_started(self.machine))

    def test_counts_wait(self) -> None:
        """A question is written at the next commit, not at once."""
        self.stats.count("www", self.stats.use_of(self.machine, self.machine.vm.dns[0]), 1, EPOCH + 1000.0)
        self.assertEqual([], self.store.commits)
        self.clock.advance(COMMIT_EVERY)
        self.assertEqual(1, len(self.store.commits))

    def test_stop_of_a_strangers(self) -> None:
        """The end of a VM that is not Jitsu's is not written."""
        self.record.stopped(self.machine)
        self.started()
        self.record.stopped(self.machine)
        self.record.stopped(self.machine)
        self.assertEqual(2, len(self.store.commits))

    def test_stopped_when_asked_for(self) -> None:
        """A VM that was asked for, and was never started by Jitsu, is written down as stopped."""
        self.stats.count("www", self.stats.use_of(self.machine, self.machine.vm.dns[0]), 1, EPOCH + 1000.0)
        self.assertTrue(self.stats.was_started(self.machine))
        self.record.stopped(self.machine)
        self.assertEqual(1, len(self.store.commits))
        self.assertFalse(self.stats.was_started(self.machine))

    def test_stop_and_start_within_a_millisecond(self) -> None:
        """A start is later than the stop before it, whatever the clock says: the VM is Jitsu's then."""
        for _ in range(3):
            self.started()
            self.assertTrue(self.stats.was_started(self.machine))
            self.assertGreater(self.written("start_ts"), float(self.store.tree.get(BASE + "stop_ts", "0")))
            self.record.stopped(self.machine)
            self.assertFalse(self.stats.was_started(self.machine))
            self.assertGreaterEqual(self.written("stop_ts"), self.written("start_ts"))

    def test_behind_a_commit(self) -> None:
        """A stop while a commit is under way is written as soon as that has ended, and `written` waits for both."""
        self.store.slow = slow = Deferred[None]()
        self.started()
        self.record.stopped(self.machine)
        written = self.record.written()
        self.assertEqual(1, len(self.store.commits))
        self.assertNoResult(written)
        self.store.slow = None
        slow.callback(None)
        self.successResultOf(written)
        self.assertEqual(2, len(self.store.commits))
        self.assertGreater(self.written("stop_ts"), 0.0)

    def test_tried_again(self) -> None:
        """A start that could not be written is written at the next commit that can be made."""
        self.store.fails = True
        self.started()
        self.assertFalse(self.record.is_written)
        self.successResultOf(self.record.written())
        self.clock.advance(COMMIT_EVERY)
        self.store.fails = False
        self.assertNotIn(BASE + "start_ts", self.store.tree)
        self.clock.advance(COMMIT_EVERY)
        self.assertTrue(self.record.is_written)
        self.assertEqual(1, self.written("total_starts"))

    def test_at_the_end(self) -> None:
        """What was counted last is written when Jitsu ends, which waits for a commit that is under way."""
        self.store.slow = slow = Deferred[None]()
        self.started()
        self.stats.count("www", self.stats.use_of(self.machine, self.machine.vm.dns[0]), 3, EPOCH + 1000.0)
        stopped = Deferred.fromCoroutine(self.record.stop())
        self.assertNoResult(stopped)
        self.store.slow = None
        slow.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(3, self.written("dns/www.jitsu.test/total_requests"))
