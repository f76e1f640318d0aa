"""Serials of zones, kept in the state: a process begins behind all that earlier ones have served."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import StoreError
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.sync.serials import AHEAD, LOOK_EVERY, Serials
from test.support import BoundedClock


class SerialsTests(SynchronousTestCase):
    """Two zones whose files have the serial 1."""

    def setUp(self) -> None:
        """Begin with an empty state."""
        self.store = MemoryStore(lasting=True)
        self.began: list[Serials] = []
        self.begin()

    def begin(self, serial: int = 1) -> None:
        """Start, as a process does; one before is as good as killed."""
        for one in self.began:
            one._looking.stop()
        self.began.clear()
        self.zones = [Zone.made_up(from_text(name), 60) for name in ("a.test", ".")]
        self.zones[0]._set_serial(serial)
        self.clock = BoundedClock()
        self.serials = Serials(Zones(self.zones), self.store, self.clock)
        self.serials.restore(self.store.tree)
        self.serials.start()
        self.began = [self.serials]

    def end(self) -> None:
        """Stop the process."""
        self.successResultOf(Deferred.fromCoroutine(self.serials.stop()))
        self.began.clear()

    def bump(self, times: int = 1, zone: int = 0) -> int:
        """Raise the serial of a zone, and let it be looked at; return it."""
        for _ in range(times):
            self.zones[zone].bump()
        self.clock.advance(LOOK_EVERY)
        return self.zones[zone].serial

    @property
    def now(self) -> list[int]:
        """The serials."""
        return [zone.serial for zone in self.zones]

    def test_unchanged(self) -> None:
        """Of zones that nothing has raised, the state has nothing."""
        self.clock.advance(LOOK_EVERY)
        self.end()
        self.assertEqual({}, dict(self.store.tree))

    def test_comes_signed(self) -> None:
        """The serial of a zone that comes signed is that of its file, whatever the state has, and is not written."""
        self.zones[0].presigned = True
        self.serials.restore({"jitsu/serial/a.test": "500", "jitsu/serial/@": "500"})
        self.assertEqual([1, 500], self.now)
        self.bump()
        self.end()
        self.assertEqual({"jitsu/serial/@"}, set(self.store.tree))

    def test_killed(self) -> None:
        """Behind a kill, a serial is later than all that were served, at most so much; others are as in the file."""
        for times in (1, 3):
            served = self.bump(times)
            self.begin()
            self.assertTrue(served < self.now[0] <= served + AHEAD)
            self.assertEqual(1, self.now[1])
        self.bump(zone=1)
        self.begin()
        self.assertGreater(self.now[1], 2)

    def test_stopped(self) -> None:
        """Behind an end, it is later by one."""
        served = self.bump(5)
        self.end()
        self.begin()
        self.assertEqual([served + 1, 1], self.now)

    def test_seldom(self) -> None:
        """It is written again only when half of what it was ahead is used up."""
        writes: list[Any] = []
        write = self.store.write

        def noted(*what: Any) -> Deferred[None]:
            writes.append(what)
            return write(*what)

        self.patch(self.store, "write", noted)
        for _ in range(AHEAD // 2 + 2):
            self.bump()
        self.assertEqual(2, len(writes))
        self.begin()
        self.assertGreater(self.now[0], AHEAD // 2 + 3)

    def test_wraps(self) -> None:
        """After the largest serial comes 0, which is later (RFC 1982)."""
        self.begin(2**32 - 2)
        served = self.bump(3)
        self.assertEqual(1, served)
        self.begin(2**32 - 2)
        self.assertTrue(served < self.now[0] <= served + AHEAD)

    def test_damaged(self) -> None:
        """A value that is no serial is as none; a zone that is new to a running process is looked at, too."""
        self.bump()
        (path,) = self.store.tree
        for value in ("", "x", "-1", str(2**32), "²"):
            self.store.write({path: value}, "by hand")
            self.begin()
            self.assertEqual(1, self.now[0], value)
        self.serials._zones = Zones([*self.zones, Zone.made_up(from_text("b/c.test"), 60)])
        self.zones = list(self.serials._zones)
        self.clock.advance(LOOK_EVERY)
        self.bump(zone=2)
        self.assertIn("jitsu/serial/b%2Fc.test", self.store.tree)

    def test_cannot_write(self) -> None:
        """What cannot be written is written later."""
        patch = self.patch(self.store, "write", lambda *_: fail(StoreError("disk full")))
        self.bump()
        patch.restore()
        served = self.bump()
        self.begin()
        self.assertGreater(self.now[0], served)
