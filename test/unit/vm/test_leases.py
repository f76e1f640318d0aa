"""Which VMs are kept: evidence of use, times of the week, signs of life; on a clock, with VMs of memory."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import Power
from jitsu_tw.readiness.port import Port
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.schedule import WeeklyWindow
from jitsu_tw.rules.vitals import Sign
from jitsu_tw.settings import Boot, Evidence, Mode
from jitsu_tw.vm.leases import CHECK_PATIENCE, CHECK_QUIET, EARLY, UNCOUNTED
from test.support import EPOCH, World, vm
from test.unit.vm.test_fleet import FleetTestCase

#: Seconds from the first try of a dead guest's port to its restart.
DEAD_AFTER = 2 * CHECK_PATIENCE + CHECK_QUIET


class EvidenceTests(FleetTestCase):
    """What a guest transmits."""

    def begin(self, **changes: Any) -> None:
        """Begin with a VM whose packets are counted, and that is up."""
        self.world = World(vm(idle=16, **changes))
        self.guest = self.world.backend.guests[self.world.machine().uuid]
        self.guest.sent = 0
        self.ask()

    def send(self, seconds: float, per_second: float) -> None:
        """Let time pass in which the guest transmits."""
        for _ in range(round(seconds / 2)):
            assert self.guest.sent is not None
            self.guest.sent += round(2 * per_second)
            self.world.pump(2)

    def test_download(self) -> None:
        """A VM that transmits is not stopped, however long nobody asks for its name; `idle` after that it is."""
        self.begin()
        self.send(200, per_second=100)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(13.8)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(2.4)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_nobody(self) -> None:
        """A VM that transmits nothing, or a trickle, is stopped when its lease ends."""
        for per_second in (0, 0.5):
            self.begin()
            self.send(14, per_second)
            self.assertIs(State.UP, self.world.machine().state)
            self.send(4, per_second)
            self.assertIs(State.OFF, self.world.machine().state, per_second)

    def test_a_page(self) -> None:
        """A page that was fetched counts from when it was seen, two seconds later at most."""
        self.begin()
        self.send(2, per_second=20)
        self.world.pump(13)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(5)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_idle_packets(self) -> None:
        """What counts as a trickle can be said."""
        self.begin(idle_packets=60 * 100.0)
        self.send(20, per_second=90)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_asked_for_late(self) -> None:
        """What a guest sends that had been up for long when somebody asked for it first is no greeting."""
        self.world = World(vm(idle=3))
        machine = self.world.machine()
        self.guest = self.world.backend.guests[machine.uuid]
        self.guest.power, self.guest.sent = Power.RUNNING, 0
        machine.look("started by hand")
        self.world.pump(100)
        self.ask()
        for _ in range(20):
            self.guest.sent += 5
            self.world.pump(1)
        self.assertIs(State.UP, machine.state)
        self.world.pump(5)
        self.assertIs(State.OFF, machine.state)

    def test_asked_meanwhile(self) -> None:
        """A question that comes while the packets are being counted is not lost on the lease."""
        self.begin()
        counts: list[Deferred[int]] = []

        def traffic(_: str) -> Deferred[int]:
            counts.append(Deferred())
            return counts[-1]

        self.patch(self.world.backend, "traffic", traffic)
        self.world.pump(16.2)
        self.ask()
        for count in counts:
            count.callback(0)
        self.world.pump(0.1)
        self.assertIs(State.UP, self.world.machine().state)

    def test_nobody_knows(self) -> None:
        """A VM whose packets cannot be counted any more is not stopped for that; afterwards it is stopped as ever."""
        self.begin()
        traffic = self.world.backend.traffic
        self.patch(self.world.backend, "traffic", lambda _: fail(BackendLost("no daemon")))
        self.world.pump(60)
        self.assertIs(State.UP, self.world.machine().state)
        self.patch(self.world.backend, "traffic", traffic)
        self.world.pump(18.1)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_uncounted(self) -> None:
        """A VM whose packets nobody counts is not stopped for being idle, which is said once; but after `max_up`."""
        with capturedLogs() as logs:
            self.begin(max_up=900)
            self.guest.sent = None
            self.world.pump(800, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual([UNCOUNTED], self.world.fleet.problems.of("www"))
        self.assertEqual(1, sum(event.get("sentence") == UNCOUNTED for event in logs))
        self.assertIn("cannot be seen", self.world.fleet.keeps(self.world.machine()))
        self.world.pump(110, step=1)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_uncounted_at_first(self) -> None:
        """The same, if nobody has counted since its start; it is stopped when somebody counts and it is idle."""
        self.world = World(vm(idle=16))
        self.guest = self.world.backend.guests[self.world.machine().uuid]
        self.guest.sent = None
        self.ask()
        self.world.pump(100)
        self.assertIs(State.UP, self.world.machine().state)
        self.guest.sent = 0
        self.world.pump(20)
        self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.problems.of("www")))

    def test_uncountable(self) -> None:
        """The same, if counting them fails; that the hypervisor is lost is told elsewhere."""
        for error, problems in ((BackendError("busy"), 1), (BackendLost("no daemon"), 0)):
            self.begin()
            traffic = self.world.backend.traffic
            self.patch(self.world.backend, "traffic", lambda _, error=error: fail(error))
            self.world.pump(100, step=1)
            self.assertIs(State.UP, self.world.machine().state)
            self.assertEqual(problems, len(self.world.fleet.problems.of("www")))
            self.patch(self.world.backend, "traffic", traffic)
            self.world.pump(20)
            self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.problems.of("www")))

    def test_queries_alone(self) -> None:
        """With `evidence: queries` nobody counts packets, and the last question decides."""
        self.begin(evidence=Evidence.QUERIES)
        self.send(14, per_second=100)
        self.assertIs(State.UP, self.world.machine().state)
        self.send(4, per_second=100)
        self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.problems.of("www")))

    def test_slow_first_count(self) -> None:
        """A VM whose packets are being counted for the first time is not stopped before that is done."""
        count: Deferred[int] = Deferred()
        self.world = World(vm(idle=16))
        traffic = self.world.backend.traffic
        self.patch(self.world.backend, "traffic", lambda _: count)
        self.ask()
        self.world.pump(40)
        self.assertIs(State.UP, self.world.machine().state)
        self.patch(self.world.backend, "traffic", traffic)
        count.callback(0)
        self.world.pump(5)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_after_a_restart(self) -> None:
        """An adopted VM whose lease ran out while we were away is asked first whether it is in use."""
        self.begin()
        self.world.pump(10)
        self.world.clock.advance(0)
        self.world.kill()
        self.send(30, per_second=100)
        self.assertIs(State.UP, self.world.machine().state)


    def test_long_after_the_last_question(self) -> None:
        """A download that nobody asked about for long is not cut by a restart; `idle` after its end, the VM is down."""
        self.begin()
        self.send(120, per_second=100)
        self.world.kill()
        self.world.clock.advance(0)
        self.send(20, per_second=100)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.kill()
        self.world.pump(2.5)
        self.assertIs(State.OFF, self.world.machine().state)


    def test_asked_for_when_it_is_found(self) -> None:
        """A guest that is asked for before it is found running does not greet its neighbours: what it sends is use."""
        for per_second, state in ((5, State.UP), (0, State.OFF)):
            self.world = World(vm(idle=3))
            self.ask()
            self.guest = self.world.backend.guests[self.world.machine().uuid]
            self.guest.sent = 0
            found: Deferred[str] = Deferred()
            look_up = self.world.backend.look_up
            self.patch(self.world.backend, "look_up", lambda _, found=found: found)
            self.world.kill()
            self.ask()
            look_up(self.world.machine().vm).addCallback(found.callback)
            for _ in range(4):
                self.guest.sent += per_second
                self.world.pump(1)
            self.assertIs(state, self.world.machine().state)
            self.patch(self.world.backend, "look_up", look_up)


class LateTests(FleetTestCase):
    """The reactor is late: timers run before what waits in the sockets is read."""

    def test_question(self) -> None:
        """A question that waits in a socket when a lease is due is read, and renews it."""
        self.world = World(vm(idle=16))
        self.ask()
        later = self.world.clock.callLater
        self.patch(self.world.clock, "callLater", lambda when, *call: later(when or 1e-6, *call))  # a turn
        self.world.pump(15.9)
        self.world.clock.advance(0.9)
        self.ask()  # the reactor has read the socket
        self.world.clock.pump([1e-6] * 10)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(15)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual(1, self.world.starts())
        self.world.pump(2)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_busy(self) -> None:
        """Leases are looked at although others are granted in each turn."""
        others = [vm(f"vm{number}", idle=600) for number in range(20)]
        self.world = World(vm(idle=16), *others)
        self.ask()
        later = self.world.clock.callLater
        self.patch(self.world.clock, "callLater", lambda when, *call: later(when or 1e-6, *call))
        self.world.pump(15.9)
        self.world.clock.advance(0.2)
        for other in others:
            self.ask(other.name)
            self.world.clock.advance(1e-6)
        self.assertIsNot(State.UP, self.world.machine().state)


class LimitsTests(FleetTestCase):
    """`max_up`."""

    def test_max_up(self) -> None:
        """A VM is stopped so long after its start, used or not; the next question starts it again."""
        self.world = World(vm(idle=16, max_up=60))
        for _ in range(12):
            self.ask()
            self.world.pump(4.9)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(1.3)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertIn("up for 60 s", self.world.machine().reason)
        self.assertEqual([True], self.ask())

    def test_max_up_of_a_start_that_was_not_ours(self) -> None:
        """A VM that was started by hand, then asked for, and is found after a restart, has been up since then."""
        self.world = World(vm(idle=60, max_up=300))
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
        self.ask()
        self.world.pump(6)
        self.world.kill()
        self.world.pump(50)
        self.assertIs(State.UP, self.world.machine().state)


class TimesTests(FleetTestCase):
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
        self.world.fleet.stop_vm("www")
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
        self.assertTrue(3 <= self.world.fleet.stats(self.world.machine()).total_starts <= 5)

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

    def test_dry_run(self) -> None:
        """A dry run starts nothing."""
        self.world = World(vm(keep_up=(self.span(-300, 900),)), dry_run=True)
        self.assertIs(State.OFF, self.world.machine().state)


class LivenessTests(FleetTestCase):
    """A guest that died in a VM that goes on running."""

    def begin(self, **changes: Any) -> None:
        """Begin with a VM that is up and has a port, which answers until told otherwise."""
        self.world = World(vm(idle=120, wait_for_port=80, check_every=10, **changes))
        self.world.backend.reachable = True
        self.alive = True
        self.tries: list[float] = []
        self.world.kill()
        port = self.world.fleet._signs._made[Port]
        self.patch(port, "wait", self.wait)
        self.ask()
        self.world.pump(1.2)
        self.assertIs(State.UP, self.world.machine().state)
        self.guest = self.world.backend.guests[self.world.machine().uuid]

    def wait(self, *_: Any) -> Deferred[None]:
        """Answer as the port does."""
        self.tries.append(self.world.clock.seconds())
        answered: Deferred[None] = Deferred()
        if self.alive:
            answered.callback(None)
        return answered

    def test_alive(self) -> None:
        """A VM in use is checked every `check_every` seconds at most, and only if it is asked for."""
        self.begin()
        self.tries.clear()
        for _ in range(33):
            self.world.pump(1)
            self.ask()
        self.assertEqual(3, len(self.tries))
        self.world.pump(50, step=1)
        self.assertEqual(3, len(self.tries))
        self.assertEqual(1, self.world.starts())

    def test_dead(self) -> None:
        """A dead one is answered for as ever, destroyed, whatever its mode, booted again, and that is logged."""
        self.begin(mode=Mode.SAVE)
        self.alive = False
        self.world.pump(11)
        self.assertEqual([True], self.ask())
        self.world.pump(DEAD_AFTER - 0.5)
        self.assertEqual(([True], 1), (self.ask(), self.world.starts()))
        self.alive = True
        self.world.pump(1)
        self.assertEqual((State.UP, 2, 2), (self.world.machine().state, self.guest.starts, self.guest.boots))
        self.world.pump(121, step=1)
        self.assertIs(State.SAVED, self.world.machine().state)

    def check(self, *, seconds: float = 100, packets: float = 0, cpu: float = 0) -> None:
        """Let time pass in which the VM is asked for, its port is silent, and its guest does so much in a second."""
        self.alive = False
        self.world.pump(11)
        for number in range(round(seconds)):
            self.ask()
            self.world.pump(1)
            if self.guest.sent is not None and self.guest.cpu is not None:
                self.guest.sent += int(packets * (number + 1)) - int(packets * number)
                self.guest.cpu += cpu

    def test_signs_of_life(self) -> None:
        """A guest whose port is silent for Jitsu's host, but that gives a sign of life, is left alone and shown."""
        for does, sign in (({"packets": 10}, Sign.PACKETS), ({"cpu": 1.0}, Sign.CPU), ({"cpu": 0.0005}, Sign.CPU),
                           ({"packets": 0.1, "cpu": 0.00005}, Sign.PACKETS)):  # fmt: skip
            self.begin()
            with capturedLogs() as logs:
                self.check(**does)
            self.assertEqual((State.UP, 1), (self.world.machine().state, self.guest.starts), does)
            (problem,) = self.world.fleet.problems.of("www")
            self.assertIn(f"its port 80 does not answer Jitsu's host, but it is left alone: {sign.value}", problem)
            self.assertEqual(1, sum(problem == event.get("sentence") for event in logs))
            self.alive = True
            self.ask()
            self.world.pump(31)
            self.ask()
            self.world.pump(12)
            self.assertEqual([], self.world.fleet.problems.of("www"))

    def test_uncounted(self) -> None:
        """Where nobody counts packets, or CPU time, nobody is declared dead; nor while they cannot be read."""
        for what in ("sent", "cpu", "error"):
            self.begin()
            if what == "error":
                self.patch(self.world.backend, "cpu_time", lambda _: fail(BackendLost("no daemon")))
            else:
                setattr(self.guest, what, None)
            self.check()
            self.assertEqual((State.UP, 1), (self.world.machine().state, self.guest.starts), what)

    def test_stopped_while_silent(self) -> None:
        """That the port of a guest was silent is no problem any more when the VM is off."""
        self.begin()
        self.check(cpu=1.0)
        self.assertEqual(1, len(self.world.fleet.problems.of("www")))
        self.world.fleet.stop_vm("www")
        self.assertEqual([], self.world.fleet.problems.of("www"))

    def test_answers_late(self) -> None:
        """A guest whose service restarts, and answers while it is observed, is alive."""
        self.begin()
        self.check(seconds=DEAD_AFTER - 7)
        self.alive = True
        self.world.pump(20)
        self.assertEqual((State.UP, 1), (self.world.machine().state, self.guest.starts))

    def test_reboot(self) -> None:
        """A guest that reboots itself is waited for, as one that boots; it is not checked, and it keeps its lease."""
        self.begin(max_up=1000)
        self.alive = False
        self.world.pump(11)
        self.ask()
        self.world.pump(DEAD_AFTER - 1)
        before = self.world.fleet.lease_left(self.world.machine())
        answered: Deferred[None] = Deferred()
        self.patch(self.world.fleet._signs._made[Port], "wait", lambda *_: answered)
        self.world.backend.reboot(self.world.machine().uuid)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.assertIn("rebooted itself", self.world.machine().reason)
        self.world.pump(40, step=1)
        self.assertEqual((State.WAITING, 1), (self.world.machine().state, self.guest.starts))
        answered.callback(None)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertAlmostEqual(before, self.world.fleet.lease_left(self.world.machine()), delta=1)
        self.assertAlmostEqual(1000 + 40, self.world.fleet.lease("www").started, delta=1)  # type: ignore[union-attr]

    def test_asked_during_a_reboot(self) -> None:
        """A question for a VM whose guest reboots is a use like any other."""
        self.begin()
        idle = self.world.machine().vm.idle
        self.world.pump(idle - 5, step=1)
        answered: Deferred[None] = Deferred()
        self.patch(self.world.fleet._signs._made[Port], "wait", lambda *_: answered)
        self.world.backend.reboot(self.world.machine().uuid)
        self.ask()
        answered.callback(None)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertAlmostEqual(idle, self.world.fleet.lease_left(self.world.machine()), delta=1)

    def test_boot_loop(self) -> None:
        """A guest that reboots again and again is stopped when the time in which it was up is its lease's."""
        self.begin()
        self.alive = False
        for _ in range(60):
            self.world.backend.reboot(self.world.machine().uuid)
            self.guest.sent = (self.guest.sent or 0) + 10
            self.world.pump(70, step=1)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual(1, self.guest.starts)

    def test_end(self) -> None:
        """Nothing is observed any more when Jitsu ends."""
        self.begin()
        self.alive = False
        self.world.pump(11)
        self.ask()
        self.world.pump(CHECK_PATIENCE + 1)
        self.world.fleet._sweep.stop()
        self.assertEqual({}, self.world.fleet._sweep._checking)

    def test_again_and_again(self) -> None:
        """A guest that dies each time is restarted after longer and longer rests."""
        self.begin(boot_time=1.0)
        for _ in range(300):
            self.alive = self.world.machine().state is not State.UP
            self.ask()
            self.world.pump(1)
        self.assertTrue(3 <= self.guest.starts <= 8, self.guest.starts)

    def test_image(self) -> None:
        """The image of a guest that died is not used again."""
        self.begin(boot_from=Boot.SNAPSHOT)
        self.assertTrue(self.guest.image)
        self.alive = False
        self.world.pump(11)
        self.ask()
        self.world.pump(DEAD_AFTER - 0.5)
        self.alive = True
        self.world.pump(1)
        self.assertEqual(2, self.guest.boots)

    def test_never_ready(self) -> None:
        """A guest that never was ready is not restarted for being what it was."""
        self.world = World(vm(wait_for_port=80, check_every=10, faults=["never_ready"]))
        self.ask()
        self.world.pump(61, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.fleet.check("www")
        self.world.pump(20, step=1)
        self.assertEqual(1, self.world.starts())
