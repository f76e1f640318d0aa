"""When the configuration is shared between nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from jitsu_tw.ijitsu import IPublications
from jitsu_tw.sync.trigger import SyncTrigger

if TYPE_CHECKING:
    from collections.abc import Coroutine


class TriggerTests(SynchronousTestCase):
    """`SyncTrigger`, on a clock."""

    def setUp(self) -> None:
        """Make one whose node has begun to share."""
        self.clock = Clock()
        self.trigger = SyncTrigger(self.clock)
        self.assertTrue(self.trigger.begin())

    def begin(self, waits: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        """Return the Deferred of a wait, which lasts."""
        begun = Deferred.fromCoroutine(waits)
        self.assertNoResult(begun)
        return begun

    def test_interface(self) -> None:
        """It takes what nodes publish."""
        verifyObject(IPublications, self.trigger)

    def test_changed(self) -> None:
        """A change here ends the wait at once, and nothing need be fetched."""
        waits = self.begin(self.trigger.wait(60.0))
        self.clock.advance(59)
        self.assertNoResult(waits)
        self.trigger.changed()
        self.successResultOf(waits)
        self.assertFalse(self.trigger.begin())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_published(self) -> None:
        """A commit that another node has published ends the wait, and is fetched; one that this node has, does not."""
        self.trigger.merged("abc")
        waits = self.begin(self.trigger.wait(60.0))
        self.trigger.published("abc")
        self.assertNoResult(waits)
        for commit in ("def", ""):
            self.trigger.published(commit)
            self.successResultOf(waits)
            self.assertTrue(self.trigger.begin())
            waits = self.begin(self.trigger.wait(60.0))

    def test_silence(self) -> None:
        """After a wait in which nothing came, the shared branch is fetched: a message may be lost."""
        waits = self.begin(self.trigger.wait(60.0))
        self.clock.advance(60)
        self.successResultOf(waits)
        self.assertTrue(self.trigger.begin())

    def test_while_busy(self) -> None:
        """What comes while the node shares is not waited for again."""
        self.trigger.changed()
        self.successResultOf(Deferred.fromCoroutine(self.trigger.wait(60.0)))
        self.assertTrue(self.trigger.is_wanted)

    def test_pause(self) -> None:
        """A pause lasts, whatever comes; what came ends the wait after it."""
        pause = self.begin(self.trigger.pause(2.0))
        self.trigger.published("def")
        self.assertNoResult(pause)
        self.clock.advance(2)
        self.assertTrue(self.successResultOf(pause))
        self.successResultOf(Deferred.fromCoroutine(self.trigger.wait(60.0)))
        self.assertTrue(self.trigger.begin())

    def test_failed(self) -> None:
        """What could not be fetched is fetched the next time."""
        self.trigger.failed()
        self.assertTrue(self.trigger.begin())

    def test_end(self) -> None:
        """The end of the process ends a pause and a wait, and begins none."""
        pause = self.begin(self.trigger.pause(2.0))
        self.trigger.end()
        self.assertFalse(self.successResultOf(pause))
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(self.trigger.pause(2.0))))
        self.successResultOf(Deferred.fromCoroutine(self.trigger.wait(60.0)))
        self.assertEqual([], self.clock.getDelayedCalls())
