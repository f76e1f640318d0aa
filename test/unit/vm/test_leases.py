"""The leases of VMs: evidence of use, and `max_up`; on a clock, with VMs of the memory backend."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import ENDED, Power
from jitsu_tw.rules.keep import Why
from jitsu_tw.rules.lease import Use
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import Evidence, Mode
from jitsu_tw.vm.evidence import UNCOUNTED
from test.support import World, vm
from test.unit.vm.test_fleet import FleetTestCase


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

    def test_counted_again(self) -> None:
        """While packets cannot be counted, the guest may be in use: its lease begins anew when they can be again."""
        self.begin()
        self.guest.sent = None
        self.world.pump(40)
        self.guest.sent = 0
        self.world.pump(12)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(8)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_asked_for_late(self) -> None:
        """A guest that runs for long before the first query has no greeting: its first packets count as use."""
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

    def test_fault_of_ours(self) -> None:
        """A fault in counting keeps the VM for another lease, without its packets, and is told; then it is stopped."""
        for takes in (0.0, 0.1):
            self.begin()
            self.patch(self.world.backend, "traffic", lambda _, takes=takes: self.fail_after(takes))
            self.world.pump(15)
            self.assertIs(State.UP, self.world.machine().state)
            self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
            left = self.world.fleet.leases.left(self.world.machine())
            assert left is not None
            self.assertTrue(0 < left <= 16, left)
            self.world.pump(left - 0.3)
            self.assertIs(State.UP, self.world.machine().state)
            self.world.pump(0.5)
            self.assertIs(State.OFF, self.world.machine().state)
            self.assertEqual([], self.flushLoggedErrors())

    def fail_after(self, seconds: float) -> Any:
        """Fail in a way that no backend may, at once or later."""
        return deferLater(self.world.clock, seconds, lambda: 1 / 0) if seconds else 1 / 0

    def test_slow_count(self) -> None:
        """A hypervisor that takes its time to count packets keeps no VM up."""
        self.begin()
        traffic = self.world.backend.traffic
        self.patch(self.world.backend, "traffic", lambda uuid: deferLater(self.world.clock, 0.1, traffic, uuid))
        self.world.pump(18)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_fault_of_ours_at_the_end(self) -> None:
        """A fault in ending a lease does not leave a VM that nobody looks at: its lease is renewed, and ends again."""
        self.begin(mode=Mode.PAUSE, evidence=Evidence.QUERIES)
        self.patch(self.world.backend, "obstacle", lambda *_: 1 / 0)
        self.world.pump(16.2)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertIs(State.UP, self.world.machine().state)
        self.assertTrue(15.5 < (self.world.fleet.leases.left(self.world.machine()) or 0.0) <= 16.0)
        self.world.pump(16)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def restart(self) -> None:
        """Let the VM go down by itself and be asked for again: it is up with another lease."""
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, ENDED)
        self.assertEqual([True], self.ask(host="192.0.2.2"))

    def test_counted_for_another_lease(self) -> None:
        """What was counted of a guest's packets ends no lease but the one that it was counted for."""
        self.begin()
        counts: list[Deferred[int]] = []

        def traffic(_: str) -> Deferred[int]:
            counts.append(Deferred())
            return counts[-1]

        self.world.pump(13)
        self.patch(self.world.backend, "traffic", traffic)
        self.world.pump(1.5)
        self.assertEqual(1, len(counts))
        self.restart()
        self.world.pump(10)
        counts[0].callback(0)
        self.world.pump(1)
        self.assertIs(State.UP, self.world.machine().state)

    def test_end_of_another_lease(self) -> None:
        """A VM that goes down, and is up again, while it is asked whether it can be stopped is not stopped."""
        self.begin(mode=Mode.PAUSE, evidence=Evidence.QUERIES)
        obstacle: Deferred[str | None] = Deferred()
        self.patch(self.world.backend, "obstacle", lambda *_: obstacle)
        self.world.pump(16.5)
        self.restart()
        obstacle.callback(None)
        self.world.pump(1)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual(2, self.world.starts())

    def test_used_before_its_end(self) -> None:
        """A VM that is used while it is asked whether it can be stopped is not stopped, but `idle` after that use."""
        self.begin(mode=Mode.PAUSE, evidence=Evidence.QUERIES)
        obstacle: Deferred[str | None] = Deferred()
        self.patch(self.world.backend, "obstacle", lambda *_: obstacle)
        self.world.pump(16.5)
        self.ask()
        obstacle.callback(None)
        self.world.pump(15)
        self.assertIs(State.UP, self.world.machine().state)
        self.patch(self.world.backend, "obstacle", lambda *_: succeed(None))
        self.world.pump(2)
        self.assertIs(State.PAUSED, self.world.machine().state)

    def test_gone_down_before_its_end(self) -> None:
        """A VM that goes down while it is asked whether it can be stopped is not stopped either."""
        self.begin(mode=Mode.PAUSE, evidence=Evidence.QUERIES)
        obstacle: Deferred[str | None] = Deferred()
        self.patch(self.world.backend, "obstacle", lambda *_: obstacle)
        stops: list[Any] = []
        self.patch(self.world.backend, "stop", lambda *of: stops.append(of))
        self.world.pump(16.5)
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, ENDED)
        obstacle.callback(None)
        self.world.pump(1)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual([], stops)

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
        self.assertEqual([UNCOUNTED[Use.PACKETS]], self.world.fleet.context.problems.of("www"))
        self.assertEqual(1, sum(event.get("sentence") == UNCOUNTED[Use.PACKETS] for event in logs))
        status = self.world.fleet.leases.status(self.world.machine())
        self.assertIs(Why.UNSEEN, status and status.why)
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
        self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.context.problems.of("www")))

    def test_uncountable(self) -> None:
        """The same, if counting them fails; that the hypervisor is lost is told elsewhere."""
        for error, problems in ((BackendError("busy"), 1), (BackendLost("no daemon"), 0)):
            self.begin()
            traffic = self.world.backend.traffic
            self.patch(self.world.backend, "traffic", lambda _, error=error: fail(error))
            self.world.pump(100, step=1)
            self.assertIs(State.UP, self.world.machine().state)
            self.assertEqual(problems, len(self.world.fleet.context.problems.of("www")))
            self.patch(self.world.backend, "traffic", traffic)
            self.world.pump(20)
            self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.context.problems.of("www")))

    def test_queries_alone(self) -> None:
        """With `evidence: queries` nobody counts packets, and the last question decides."""
        self.begin(evidence=Evidence.QUERIES)
        self.send(14, per_second=100)
        self.assertIs(State.UP, self.world.machine().state)
        self.send(4, per_second=100)
        self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.context.problems.of("www")))

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
        self.world.pump(12.5)
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
