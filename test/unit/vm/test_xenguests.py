"""What guests of Xen ask for themselves, against Xen's own xenstored: what they write, and what they are told."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from zope.interface import alsoProvides

from jitsu_tw.ijitsu import Guest, IXenBackend, Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.vm.guests import LONGEST_HOLD
from jitsu_tw.vm.xenguests import LOOK_EVERY
from test.support import World, vm
from test.unit.base.test_xenstore import XenstoreTestCase, until

HOLD = "data/jitsu/hold"
STOP = "data/jitsu/stop"


class XenGuestsTests(XenstoreTestCase):
    """`XenGuests`, with a fleet of the memory backend whose guests have numbers of Xen's."""

    async def begin(self, domid: int | None = 5, **settings: Any) -> None:
        """Start a VM whose guest has the number *domid*."""
        self.world = World(vm(**{"idle": 20, "response_delay": 0.0, **settings}))
        backend: Any = self.world.backend
        backend.xenstore = self.store
        alsoProvides(backend, IXenBackend)
        self.patch(backend, "guest", lambda _: succeed(Guest(domid=domid)))
        self.world.fleet.operator.hold("www")
        self.world.pump(0.5)
        self.world.fleet.operator.release("www")
        self.addCleanup(self.world.fleet.leases.stop)
        self.assertIs(State.UP, self.world.machine().state)
        await self.settled()

    async def settled(self) -> None:
        """Let everything happen that is under way."""
        for _ in range(3):
            await self.store.read("/")
            await deferLater(reactor, 0.005)

    def held(self) -> float:
        """Return for how many seconds more the guest holds its VM."""
        return self.world.fleet.leases.guests.held(self.world.machine())

    async def writes(self, guest: Any, value: str) -> None:
        """Write to the guest's key, and let Jitsu look at it."""
        guest.write(HOLD, value)
        await self.settled()
        self.world.pump(LOOK_EVERY)
        await self.settled()

    async def test_hold(self) -> None:
        """A guest holds its VM, for longer or shorter, and releases it; each write is taken away and counts once."""
        with self.daemon.guest(5) as guest:
            await self.begin()
            for value, seconds in (("300", 300), ("100", 100), ("0", 0), ("100", 100), ("999999", LONGEST_HOLD)):
                await self.writes(guest, value)
                self.assertAlmostEqual(seconds, self.held(), delta=2 * LOOK_EVERY, msg=value)
                self.assertIsNone(await self.store.read(f"/local/domain/5/{HOLD}"))
            self.world.pump(60, step=1)
            self.assertIs(State.UP, self.world.machine().state)
            await self.writes(guest, "0")
            self.world.pump(60, step=1)
            self.assertIs(State.OFF, self.world.machine().state)

    async def test_written_before(self) -> None:
        """A guest may write before it is known to be up."""
        with self.daemon.guest(5) as guest:
            guest.write(HOLD, "300")
            await self.begin()
            self.assertAlmostEqual(300, self.held(), delta=2 * LOOK_EVERY)

    async def test_malformed(self) -> None:
        """What is no number of seconds is logged, in short, and changes nothing."""
        with self.daemon.guest(5) as guest, capturedLogs() as logs:
            await self.begin()
            await self.writes(guest, "100")
            for value in ("", "-5", "1e3", "1000000", "\u0663", "x" * 2000):
                await self.writes(guest, value)
            self.assertTrue(85 < self.held() < 100, self.held())
        lines = [formatEvent(event) for event in logs if "data/jitsu/hold" in (formatEvent(event) or "")]
        self.assertEqual((6, True), (len(lines), max(map(len, lines)) < 100), lines)

    async def test_others(self) -> None:
        """The keys of another guest, and of a boot before, are not looked at; nor those of a guest without number."""
        with self.daemon.guest(5) as guest, self.daemon.guest(6) as other:
            await self.begin()
            await self.writes(other, "300")
            self.assertEqual(0.0, self.held())
            self.world.backend.happen(self.world.machine().uuid, Power.OFF, "by hand")
            await self.writes(guest, "300")
            self.assertEqual({}, self.store._watches)
            await self.begin(None)
            self.assertEqual({}, self.store._watches)

    async def test_floods(self) -> None:
        """A guest that writes all the time is looked at once a second."""
        with self.daemon.guest(5) as guest:
            await self.begin()
            self.world.pump(LOOK_EVERY)
            holds: list[float] = []
            self.patch(self.world.fleet.leases.guests, "hold", lambda _, seconds: holds.append(seconds))
            for number in range(20):
                guest.write(HOLD, f"{number + 1}")
                await self.settled()
            self.assertEqual(1, len(holds))
            self.world.pump(LOOK_EVERY)
            await until(lambda: len(holds) > 1)
            self.assertEqual((2, 20), (len(holds), holds[-1]))

    async def test_told(self) -> None:
        """With `notify`, a guest reads in how many seconds it is stopped, and that it is not after all."""
        with self.daemon.guest(5) as guest:
            await self.begin(notify=5.0)
            self.assertEqual("5", await self.told(there=True))
            self.assertEqual(b"5", guest.read(STOP))
            await self.writes(guest, "300")
            self.assertIsNone(await self.told(there=False))
            self.world.pump(60, step=1)
            self.assertIs(State.UP, self.world.machine().state)

    async def told(self, *, there: bool) -> str | None:
        """Let time pass until the guest's key for stops is *there*, or is not; return its value."""
        for _ in range(60):
            value = await self.store.read(f"/local/domain/5/{STOP}")
            if (value is not None) is there:
                break
            self.world.pump(1)
            await self.settled()
        return value
