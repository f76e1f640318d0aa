"""`wait_for_key`, against Xen's own xenstored: what a guest writes makes it ready."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import Guest, IReadiness
from jitsu_tw.readiness.xenstore import XenstoreKey
from test.support import BoundedClock, vm
from test.unit.base.test_xenstore import XenstoreTestCase


class KeyTests(XenstoreTestCase):
    """`XenstoreKey`."""

    def wait(self, domid: int | None = 5, clock: Any = reactor, **keys: Any) -> Deferred[None]:
        """Wait for the guest's key."""
        sign = XenstoreKey(clock, self.store)
        self.assertTrue(verifyObject(IReadiness, sign))
        return sign.wait(vm(**{"wait_for_key": "data/ready", **keys}), Guest(domid=domid))

    async def settled(self) -> None:
        """Let everything happen that is under way."""
        for _ in range(3):
            await self.store.read("/")
            await deferLater(reactor, 0.01)

    async def test_appears(self) -> None:
        """The guest is ready when it writes its key, whatever the value, and not by other keys or other guests."""
        for value in ("1", ""):
            with self.daemon.guest(5) as guest, self.daemon.guest(6) as other:
                ready = self.wait()
                other.write("data/ready", "1")
                guest.write("data/ready2", "1")
                guest.write("data/rea", "1")
                await self.settled()
                self.assertFalse(ready.called)
                guest.write("data/ready", value)
                await ready
        self.assertEqual({}, self.store._watches)

    async def test_below(self) -> None:
        """A key is there once something below it is."""
        with self.daemon.guest(5) as guest:
            ready = self.wait()
            guest.write("data/ready/http", "80")
            await ready

    async def test_there_already(self) -> None:
        """A key of this very domain that is there already is enough."""
        with self.daemon.guest(5) as guest:
            guest.write("data/ready", "1")
            await self.wait()

    async def test_an_earlier_boot(self) -> None:
        """The key of the boot before is not the new one's, though it is there still."""
        with self.daemon.guest(5) as old, self.daemon.guest(6) as new:
            old.write("data/ready", "1")
            ready = self.wait(6)
            await self.settled()
            old.write("data/ready", "2")
            await self.settled()
            self.assertFalse(ready.called)
            new.write("data/ready", "1")
            await ready

    async def test_before_the_domain(self) -> None:
        """The wait may begin before the domain has its nodes."""
        ready = self.wait()
        await self.settled()
        with self.daemon.guest(5) as guest:
            guest.write("data/ready", "1")
            await ready

    async def test_then_delay(self) -> None:
        """`response_delay` begins when the key is there."""
        clock = BoundedClock()
        with self.daemon.guest(5) as guest:
            ready = self.wait(clock=clock, response_delay=2.0)
            await self.settled()
            clock.advance(10)
            self.assertEqual([], clock.getDelayedCalls())
            guest.write("data/ready", "1")
            await self.settled()
            clock.advance(1.9)
            self.assertFalse(ready.called)
            clock.advance(0.2)
            self.assertTrue(ready.called)
            await ready

    async def test_cancelled(self) -> None:
        """Who cancels ends the watch, or the delay after it."""
        clock = BoundedClock()
        with self.daemon.guest(5) as guest:
            ready = self.wait(clock=clock, response_delay=2.0)
            self.assertEqual(1, len(self.store._watches))
            ready.cancel()
            await self.assertFailure(ready, CancelledError)
            self.assertEqual({}, self.store._watches)
            guest.write("data/ready", "1")
            ready = self.wait(clock=clock, response_delay=2.0)
            await self.settled()
            ready.cancel()
            await self.assertFailure(ready, CancelledError)
            self.assertEqual(({}, []), (self.store._watches, clock.getDelayedCalls()))

    async def test_the_daemon_dies(self) -> None:
        """A wait outlives the daemon, and sees what the guest has written to the next one."""
        with self.daemon.guest(5):
            ready = self.wait()
            await self.settled()
            self.daemon.kill()
            await deferLater(reactor, 0.2)
            self.assertFalse(ready.called)
        self.daemon.start()
        with self.daemon.guest(5) as guest:
            guest.write("data/ready", "1")
            await ready

    async def test_lost_while_looking(self) -> None:
        """A look that the connection's end cuts short is not the last one."""
        looks: list[str] = []
        read = self.store.read

        async def lost_at_first(path: str) -> str | None:
            looks.append(path)
            if len(looks) == 1:
                raise BackendLost("gone")
            return await read(path)

        self.patch(self.store, "read", lost_at_first)
        with self.daemon.guest(5) as guest:
            ready = self.wait()
            while not looks:
                await deferLater(reactor, 0.002)
            self.assertFalse(ready.called)
            guest.write("data/ready", "1")
            await ready

    async def test_no_domain(self) -> None:
        """A guest that is none of Xen's cannot be waited for; nor can a key that is none."""
        for domid, key, words in ((None, "data/ready", "no domain number"), (5, "no key", "no path of Xenstore")):
            try:
                await self.wait(domid, wait_for_key=key)
            except BackendError as error:
                self.assertIn(words, str(error))
            else:
                self.fail("it waits")

    async def test_many(self) -> None:
        """Many guests are waited for at once; each is ready by its own key."""
        domids = range(5, 45)
        guests = [self.daemon.guest(domid) for domid in domids]
        for guest in guests:
            guest.create()
            self.addCleanup(guest.destroy)
        waits = [self.wait(domid) for domid in domids]
        for number in (7, 0, 39):
            guests[number].write("data/ready", "1")
            await waits[number]
        await self.settled()
        self.assertEqual(len(waits) - 3, sum(not ready.called for ready in waits))
        for guest in guests:
            guest.write("data/ready", "1")
        for ready in waits:
            await ready
