"""The notice that the other nodes have before a VM is stopped: `StopNotices` on a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.stop_notice import NOTICE, SWIFT, StopNotices
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.rules.claims import Phase
from test.support import BoundedClock, vm

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred


class FakeMachine:
    """A VM, of which only its name matters."""

    def __init__(self, name: str = "www") -> None:
        """Be called *name*."""
        self.vm = vm(name)


class NoticeTests(SynchronousTestCase):
    """When a notice is over, so that the VM may be stopped."""

    def setUp(self) -> None:
        """Begin without a notice; the other nodes get each message after the next of `takes` seconds."""
        self.clock = BoundedClock()
        self.takes: list[float] = []
        self.said: list[float] = []
        self.is_ours, self.is_cut_off = True, False
        state: Any = self
        self.notices = StopNotices(state, Clocks(self.clock, self.clock.seconds))
        self.machine: Any = FakeMachine()

    def tell(self, _: Any, phase: Phase) -> Deferred[bool]:
        """Tell the other nodes that the VM is to be stopped (`ClusterState.tell`)."""
        self.assertIs(Phase.ENDING, phase)
        self.said.append(self.clock.seconds())
        return deferLater(self.clock, self.takes.pop(0) if self.takes else 0.0, self.heard)

    def heard(self) -> bool:
        """Return whether this node owns the VM."""
        if self.is_cut_off:
            message = "etcd does not answer"
            raise ClusterUnavailable(message)
        return self.is_ours

    def give(self, *takes: float) -> Deferred[None]:
        """Give notice; each message takes as long as *takes* say, in seconds, and then no time at all."""
        self.takes = list(takes)
        return self.notices.give(self.machine)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.05] * round(seconds * 20))

    def test_over(self) -> None:
        """A notice is over when the other nodes have had it for its time, and could be told something at its end."""
        self.assertFalse(self.notices.is_given(self.machine))
        self.give()
        self.assertTrue(self.notices.is_given(self.machine))
        self.run_for(NOTICE - 0.1)
        self.assertFalse(self.notices.is_over(self.machine))
        self.run_for(0.2)
        self.assertTrue(self.notices.is_over(self.machine))
        self.assertEqual(2, len(self.said))
        other: Any = FakeMachine("other")
        self.assertEqual((False, False), (self.notices.is_given(other), self.notices.is_over(other)))

    def test_slow(self) -> None:
        """A notice counts only if etcd was there all the while: one whose end is heard late is given anew."""
        self.give(0.0, SWIFT + 0.2)
        self.run_for(NOTICE + SWIFT + 0.3)
        self.assertFalse(self.notices.is_over(self.machine))
        self.assertTrue(self.notices.is_given(self.machine))
        self.run_for(NOTICE - 0.1)
        self.assertFalse(self.notices.is_over(self.machine))
        self.run_for(0.3)
        self.assertTrue(self.notices.is_over(self.machine))

    def test_late_begin(self) -> None:
        """The time of a notice begins when the other nodes have it, however long the message has taken."""
        self.give(5.0)
        self.run_for(5.0 + NOTICE - 0.1)
        self.assertFalse(self.notices.is_over(self.machine))
        self.run_for(0.3)
        self.assertTrue(self.notices.is_over(self.machine))

    def test_anothers(self) -> None:
        """A notice is void if another node owns the VM, from the beginning or at the end."""
        for first in (True, False):
            self.setUp()
            self.is_ours = not first
            self.give()
            self.run_for(NOTICE / 2)
            self.is_ours = False
            self.run_for(NOTICE)
            self.assertFalse(self.notices.is_over(self.machine))
            self.assertFalse(self.notices.is_given(self.machine))

    def test_cut_off(self) -> None:
        """A notice is void if the other nodes cannot be told, at the beginning or at the end; it can be given again."""
        for first in (True, False):
            self.setUp()
            self.is_cut_off = first
            given = self.give()
            self.run_for(NOTICE / 2)
            self.is_cut_off = True
            self.run_for(NOTICE)
            self.successResultOf(given)
            self.assertFalse(self.notices.is_over(self.machine))
            self.assertFalse(self.notices.is_given(self.machine))
            self.is_cut_off = False
            self.give()
            self.run_for(NOTICE + 0.1)
            self.assertTrue(self.notices.is_over(self.machine))

    def test_dropped(self) -> None:
        """A notice that was taken back, alone or with all others, does not count, and nothing more is told of it."""
        for of_all in (False, True):
            for seconds in (NOTICE / 2, NOTICE + 0.1):
                self.setUp()
                self.give()
                self.run_for(seconds)
                said = len(self.said)
                if of_all:
                    self.notices.clear()
                else:
                    self.notices.drop(self.machine)
                self.assertFalse(self.notices.is_given(self.machine))
                self.assertFalse(self.notices.is_over(self.machine))
                self.run_for(2 * NOTICE)
                self.assertFalse(self.notices.is_over(self.machine))
                self.assertEqual(said, len(self.said))

    def test_drop_tells(self) -> None:
        """Taking a notice back returns whether there was one, void or not: the other nodes may have it."""
        self.assertFalse(self.notices.drop(self.machine))
        self.is_ours = False
        self.give()
        self.run_for(NOTICE)
        self.assertTrue(self.notices.drop(self.machine))
        self.assertFalse(self.notices.drop(self.machine))

    def test_given_anew(self) -> None:
        """The end of an older notice does not end a newer one."""
        self.give()
        self.run_for(NOTICE - 0.2)
        self.notices.drop(self.machine)
        self.give()
        self.run_for(0.4)
        self.assertFalse(self.notices.is_over(self.machine))
        self.run_for(NOTICE)
        self.assertTrue(self.notices.is_over(self.machine))
