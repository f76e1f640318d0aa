"""The time in which VMs did not run, the starts of each day, and the last 24 hours, on a clock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import Mode
from jitsu_tw.vm import uptime
from jitsu_tw.vm.uptime import CHARACTERS, HALF_HOUR, PATH, WRITE_EVERY, Day, Strip
from test.support import EPOCH, World, question, vm

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB: Final = 1 << 30


class StripTests(SynchronousTestCase):
    """One VM's 24 hours, without a fleet."""

    def strip(self) -> Strip:
        """Return the strip of a VM that begins off, at a full half hour."""
        return Strip(100, 100 * HALF_HOUR, ".")

    def test_characters(self) -> None:
        """Each half hour has one character: the ninths that the VM ran, that it failed, or what it was at the end."""
        strip = self.strip()
        for kind, half_hours in (("r", 100.0), ("z", 100.5), ("p", 102.0), ("f", 103.2), (".", 103.3), ("-", 105.0)):
            strip.enter(kind, half_hours * HALF_HOUR)
        self.assertEqual("4zpf.-", strip.at(105.1 * HALF_HOUR))

    def test_runs_on(self) -> None:
        """A VM that runs on has run for whole half hours, and one that has just begun to run shows it."""
        strip = self.strip()
        strip.enter("r", 100.9 * HALF_HOUR)
        self.assertEqual("1", strip.at(100.9 * HALF_HOUR))
        self.assertEqual("1999", strip.at(104 * HALF_HOUR - 1))

    def test_failed_on(self) -> None:
        """A VM that stays failed has failed in each half hour."""
        strip = self.strip()
        strip.enter("f", 100 * HALF_HOUR)
        self.assertEqual("fff", strip.at(102.5 * HALF_HOUR))

    def test_clock_set(self) -> None:
        """A clock that is set back a little counts nothing twice; one that is set far forward takes no time."""
        strip = self.strip()
        strip.enter("r", 101.0 * HALF_HOUR)
        strip.account(103.0 * HALF_HOUR)
        self.assertEqual(".991", strip.at(102.5 * HALF_HOUR))
        self.assertEqual(".991", strip.at(103.0 * HALF_HOUR))
        strip.enter(".", 102.0 * HALF_HOUR)
        self.assertEqual(".99.", strip.at(103.5 * HALF_HOUR))
        strip.enter("r", 103.5 * HALF_HOUR)
        self.assertEqual(".994", strip.at(104.0 * HALF_HOUR - 1))
        self.assertEqual("9" * 47 + "1", strip.at(1e12 * HALF_HOUR))

    def test_clock_was_wrong(self) -> None:
        """A clock that is set back far begins the half hours anew from then on; a restart makes no difference."""
        for set_back, shown in ((2.0, ".9"), (3.0, "."), (48.0 * 365, "")):
            strip = self.strip()
            strip.enter("r", 101.0 * HALF_HOUR)
            strip.account(104.0 * HALF_HOUR)
            now = (104.0 - set_back) * HALF_HOUR
            for one in (strip, Strip.read(strip.number, strip.at(104.0 * HALF_HOUR), 104.0 * HALF_HOUR)):
                one.enter("r", now)
                self.assertEqual(f"{shown}1", one.at(now))
                one.enter(".", now + 2 * HALF_HOUR)
                self.assertEqual(f"{shown}99..", one.at(now + 3 * HALF_HOUR))

    @given(st.lists(st.tuples(st.sampled_from("r.zpf-"), st.floats(-1e5, 1e5)), max_size=60))
    def test_bounded(self, moves: Sequence[tuple[str, float]]) -> None:
        """Whatever the VM and the clock do, it has at most 48 characters, each of those that there are."""
        strip, now = self.strip(), 100.0 * HALF_HOUR
        for kind, passed in moves:
            now += passed
            strip.enter(kind, now)
            self.assertLessEqual(len(strip.at(now)), CHARACTERS)
            self.assertLessEqual(set(strip.at(now)), set("-.zpf123456789"))
            self.assertEqual(strip.at(now)[:-1], Strip.read(strip.number, strip.at(now), now).text)


class UptimeTests(SynchronousTestCase):
    """Fed by a fleet."""

    def summon(self, world: World, name: str = "www") -> None:
        """Ask for a VM."""
        world.fleet.summons.summon(name, question(name)).addErrback(lambda _: None)

    def test_seconds(self) -> None:
        """The time of each VM that is down counts, not that of one that runs, or of which nothing is known."""
        world = World(vm("a", idle=10.0), vm("b"))
        world.clock.advance(100.0)
        self.assertEqual(200.0, world.fleet.uptime.saved()["seconds"])
        self.summon(world, "a")
        world.pump(9)
        self.assertTrue(abs(world.fleet.uptime.saved()["seconds"] - 209.0) < 0.2)
        world.pump(2)
        world.clock.advance(100.0)
        self.assertTrue(abs(world.fleet.uptime.saved()["seconds"] - 411.0) < 2)
        before = world.fleet.uptime.saved()["seconds"]
        world.fleet.inventory.lost(world.backend, "the wire is cut")
        world.clock.advance(100.0)
        self.assertEqual(before, world.fleet.uptime.saved()["seconds"])

    def test_octets(self) -> None:
        """Memory that the hypervisor tells of is free while the VM is off; a VM that is paused keeps it."""
        world = World(vm("a", mode=Mode.PAUSE, idle=10.0), vm("b"))
        for guest in world.backend.guests.values():
            guest.memory = Memory(2 * GIB, 9 * GIB)
        world.pump(1)
        saved = world.fleet.uptime.saved()
        self.assertEqual(2, saved["measured"])
        world.clock.advance(100.0)
        passed = world.fleet.uptime.saved()["byte_seconds"] - saved["byte_seconds"]
        self.assertEqual(100.0 * 4 * GIB, passed)
        self.summon(world, "a")
        world.pump(12)
        self.assertIs(State.PAUSED, world.machine("a").state)
        saved = world.fleet.uptime.saved()
        world.clock.advance(100.0)
        after = world.fleet.uptime.saved()
        self.assertEqual(100.0 * 2 * GIB, after["byte_seconds"] - saved["byte_seconds"])
        self.assertEqual(200.0, after["seconds"] - saved["seconds"])

    def test_forgotten(self) -> None:
        """What is not in the configuration any more saves nothing; the hypervisor's answer comes too late for it."""
        world = World(vm("a"), vm("b"))
        answer: Deferred[Memory | None] = Deferred()
        self.patch(world.backend, "memory", lambda _: answer)
        world.pump(1)
        a = world.machine("a")
        for name in ("a", "b"):
            self.successResultOf(world.fleet.dismiss(world.machine(name), "removed"))
        answer.callback(Memory(GIB, GIB))
        saved = world.fleet.uptime.saved()
        world.clock.advance(100.0)
        self.assertEqual(saved, world.fleet.uptime.saved())
        self.assertEqual(0, saved["measured"])
        world.fleet.uptime.size(a, GIB)
        self.assertEqual(0, world.fleet.uptime.saved()["measured"])

    def test_asked_one_by_one(self) -> None:
        """The hypervisor is asked for one VM's memory at a time; if it cannot tell, again when the VM stops next."""
        world = World(vm("a"), vm("b"), vm("c", idle=5.0))
        asked: list[Deferred[Memory | None]] = []

        def memory(_: str) -> Deferred[Memory | None]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(world.backend, "memory", memory)
        world.pump(5)
        self.assertEqual(1, len(asked))
        asked[0].errback(BackendError("it is busy"))
        world.pump(1)
        asked[1].callback(None)
        world.pump(1)
        asked[2].callback(Memory(GIB, GIB))
        world.pump(1)
        self.assertEqual({"a": GIB}, world.fleet.uptime.sizes)
        self.patch(world.backend, "memory", lambda _: fail(BackendError("it is busy")))
        self.summon(world, "c")
        world.pump(1)
        self.patch(world.backend, "memory", memory)
        world.pump(8)
        self.assertEqual(4, len(asked))

    def test_none_while_it_runs(self) -> None:
        """A VM that was started meanwhile is not asked for."""
        world = World(vm("a"))
        self.summon(world, "a")
        world.backend.guests[world.machine("a").uuid].memory = Memory(GIB, GIB)
        world.pump(1)
        self.assertEqual({}, world.fleet.uptime.sizes)

    def test_strips(self) -> None:
        """A VM that has run has a strip, and one that never did has none."""
        world = World(vm("a", idle=600.0), vm("b"), vm("bad", faults=["start"]))
        self.summon(world, "a")
        self.summon(world, "bad")
        world.pump(601, step=1.0)
        first = world.fleet.uptime.strip("a")
        self.assertRegex(first, "^[1-4]+$")
        self.assertEqual("", world.fleet.uptime.strip("b"))
        self.assertEqual("f", world.fleet.uptime.strip("bad")[-1])
        world.clock.advance(2 * HALF_HOUR)
        self.assertEqual(first + "..", world.fleet.uptime.strip("a"))

    def test_most_strips(self) -> None:
        """Of very many VMs, those keep their strips whose state changed last."""
        self.patch(uptime, "MOST_STRIPS", 2)
        world = World(vm("a"), vm("b"), vm("c"))
        for name in ("a", "b"):
            self.summon(world, name)
        world.pump(1)
        world.fleet.operator.stop("a")
        self.summon(world, "c")
        self.assertEqual([True, False, True], [bool(world.fleet.uptime.strip(name)) for name in "abc"])

    def test_days(self) -> None:
        """Each day has its starts, the failed ones, and the median time of the others, to a twentieth."""
        slow = vm("slow", boot_time=2.0, idle=5.0)
        world = World(vm("fast", boot_time=0.2, idle=5.0), slow, vm("x", faults=["start"]))
        for name in ("fast", "slow", "x"):
            self.summon(world, name)
        world.pump(20)
        self.summon(world, "slow")
        world.pump(20)
        (day,) = world.fleet.uptime.days()
        self.assertEqual((3, 1), (day["starts"], day["failed"]))
        self.assertTrue(abs(day["median_ms"] - 2000) < 200)
        self.assertRegex(day["date"], r"^\d{4}-\d\d-\d\d$")

    def test_no_starts(self) -> None:
        """A VM that was found running was not started, and a day without starts has no median."""
        world = World(vm())
        world.backend.happen(world.machine().uuid, Power.RUNNING, "by hand")
        world.pump(1)
        self.assertIs(State.UP, world.machine().state)
        self.assertEqual([], world.fleet.uptime.days())
        self.assertIsNone(Day(failed=2).median)

    def test_last_days(self) -> None:
        """The last thirty days are kept."""
        world = World(vm("x", faults=["start"]))
        for _ in range(40):
            self.summon(world, "x")
            world.clock.advance(86400.0)
        days = world.fleet.uptime.days()
        self.assertEqual(30, len(days))
        self.assertEqual(sorted(one["date"] for one in days), [one["date"] for one in days])

    def test_last_days_after_a_wrong_clock(self) -> None:
        """Days that were counted while the clock was ahead give way to the present ones."""
        world = World(vm("x", faults=["start"]))
        today = int((EPOCH + world.clock.seconds()) // 86400)
        world.fleet.uptime.start({PATH: "\n".join(f"day {today + 365 + day} 9 " for day in range(30))})
        for _ in range(3):
            self.summon(world, "x")
            world.clock.advance(86400.0)
        self.assertEqual([1, 1, 1], [one["failed"] for one in world.fleet.uptime.days()[:3]])
        self.assertEqual(30, len(world.fleet.uptime.days()))

    def test_hostile(self) -> None:
        """Of a state that another program wrote, numbers of JSON, real dates and strips are taken."""
        world = World(vm("a"))
        before, many, most = world.fleet.uptime.saved(), "9" * 400, "9" * 30
        for line in (
            "saved nan nan nan", "saved 1 inf 1", "saved 1 1 -1", f"saved {most} 1 1", f"saved 1 1 {many}",
            "saved 1 1 ²", "day 2932897 0 1:1", "day -1 0 1:1", f"day 1 0 1:{many}", f"day 1 {many} 1:1",
            "day 1 0 -9:1", "day 1 -1 1:1", "day 1_0 0 1:1", "day 1 0 1:1:1",
            "vm 1 <b> a", "vm -1 . a", f"vm {many} . a", f"vm 1 {'0' * 48} a",
        ):  # fmt: skip
            world.fleet.uptime.start({PATH: line})
            self.assertEqual(before, world.fleet.uptime.saved(), line)
            self.assertEqual(([], ""), (world.fleet.uptime.days(), world.fleet.uptime.strip("a")), line)
        days = f"day 2932896 {most} 144:{most}", f"day 0 0 0:{most} {most}:1"
        extreme = (f"saved 1 {most} {most}", *days, f"vm {most} 9 a")
        world.fleet.uptime.start({PATH: "\n".join(extreme)})
        self.assertEqual("9999-12-31", world.fleet.uptime.days()[-1]["date"])
        self.assertEqual("-", world.fleet.uptime.strip("a"))
        json.dumps([world.fleet.uptime.saved(), world.fleet.uptime.days()], allow_nan=False)
        self.assertEqual(3, len(list(world.fleet.uptime.lines())))

    def test_restart(self) -> None:
        """All of it survives a restart; for the time between, nobody knows."""
        world = World(vm("a b", idle=99999.0), vm("gone"))
        self.summon(world, "a b")
        self.summon(world, "gone")
        world.clock.advance(3 * HALF_HOUR)
        self.successResultOf(world.fleet.stop())
        saved, days = world.fleet.uptime.saved(), world.fleet.uptime.days()
        before = world.fleet.uptime.strip("a b")
        world.clock.advance(2 * HALF_HOUR)
        world.settings = type(world.settings)(vms=world.settings.vms[:1])
        world.begin()
        world.clock.advance(HALF_HOUR)
        self.assertEqual(f"{before[:-1]}", world.fleet.uptime.strip("a b")[: len(before) - 1])
        self.assertRegex(world.fleet.uptime.strip("a b")[len(before) :], r"^-(9[1-9]|[1-9])$")
        self.assertEqual("", world.fleet.uptime.strip("gone"))
        self.assertEqual(days, world.fleet.uptime.days())
        self.assertTrue(abs(world.fleet.uptime.saved()["since"] - saved["since"]) < 1)
        self.assertTrue(abs(world.fleet.uptime.saved()["seconds"] - saved["seconds"]) < 1)

    def test_written(self) -> None:
        """It is written every half hour, and what the state has of it that cannot be read is left out."""
        world = World(vm("x", faults=["start"]))
        self.summon(world, "x")
        world.pump(WRITE_EVERY - 10, step=5.0)
        self.assertNotIn(PATH, world.store.tree)
        world.pump(20, step=5.0)
        lines = world.store.tree[PATH].splitlines()
        self.assertEqual(["saved", "day", "vm"], [line.split()[0] for line in lines])
        bad = ["saved x y z", "saved 1", "day 1 2 3", "day 9 x 4:1", "day 7 0 5:", "vm x ... x", "vm 1", "", "what"]
        world.store.tree[PATH] = "\n".join([*bad, "day 20000 0 40:2"])
        world.kill()
        self.assertEqual(["2024-10-04"], [day["date"] for day in world.fleet.uptime.days()])
        self.assertEqual(EPOCH + world.clock.seconds(), world.fleet.uptime.saved()["since"])
