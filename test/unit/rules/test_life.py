"""What follows from a change of a VM's state."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.life import LONGEST_REST, Life, rest, start_call
from jitsu_tw.rules.lifecycle import Event, Start, State, Stop
from jitsu_tw.settings import Mode


class LifeTests(SynchronousTestCase):
    """`Life`."""

    def test_rest(self) -> None:
        """After the first failure a VM is started at once, after the second one it rests, then twice as long each."""
        self.assertEqual([0.0, 0.0, 1.0, 2.0, 4.0], [rest(failures) for failures in range(5)])
        self.assertEqual(LONGEST_REST, rest(50))

    def test_order_stop(self) -> None:
        """A VM whose next start must boot is not resumed after a stop, whatever it was doing."""
        for state, order in ((State.UP, Stop(Mode.SAVE, then=Start(cold=True))), (State.OFF, Start(cold=True))):
            life = Life()
            life.state, life.order = state, Start(cold=True)
            self.assertIs(Event.STOP, life.order_stop(Mode.SAVE))
            self.assertEqual(order, life.order)


class TimelineTests(SynchronousTestCase):
    """What a timeline tells."""

    def test_start_call(self) -> None:
        """The hypervisor's part is that of the start call; a timeline without one has none."""
        self.assertEqual(2.5, start_call({"query": 1.0, "start": 2.0, "started": 4.5, "ready": 5.0}))
        for marks in ({}, {"query": 1.0, "start": 2.0}, {"query": 1.0}):
            self.assertEqual(0.0, start_call(marks))
