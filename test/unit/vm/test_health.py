"""Whether guests are alive; on a clock, with VMs of the memory backend."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs

from jitsu_tw.errors import BackendLost
from jitsu_tw.readiness.port import Port
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.vitals import Sign
from jitsu_tw.settings import Boot, Mode
from jitsu_tw.vm.health import CHECK_PATIENCE, CHECK_QUIET
from test.support import World, reboot, vm
from test.unit.vm.test_fleet import FleetTestCase

#: Seconds from the first try of a dead guest's port to its restart.
DEAD_AFTER = 2 * CHECK_PATIENCE + CHECK_QUIET


class HealthTests(FleetTestCase):
    """A guest that died in a VM that goes on running."""

    def begin(self, **changes: Any) -> None:
        """Begin with a VM that is up and has a port, which answers until told otherwise."""
        self.world = World(vm(idle=120, wait_for_port=80, check_every=10, **changes))
        self.world.backend.reachable = True
        self.alive = True
        self.tries: list[float] = []
        self.world.kill()
        port = self.world.fleet.context.strategies._make(Port)
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
            (problem,) = self.world.fleet.context.problems.of("www")
            self.assertIn(f"its port 80 does not answer Jitsu's host, but it is left alone: {sign.value}", problem)
            self.assertEqual(1, sum(problem == event.get("sentence") for event in logs))
            self.alive = True
            self.ask()
            self.world.pump(31)
            self.ask()
            self.world.pump(12)
            self.assertEqual([], self.world.fleet.context.problems.of("www"))

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
        self.assertEqual(1, len(self.world.fleet.context.problems.of("www")))
        self.world.fleet.operator.stop("www")
        self.assertEqual([], self.world.fleet.context.problems.of("www"))

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
        before = self.world.fleet.leases.left(self.world.machine())
        answered: Deferred[None] = Deferred()
        self.patch(self.world.fleet.context.strategies._make(Port), "wait", lambda *_: answered)
        reboot(self.world.backend, self.world.machine().uuid)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.assertIn("rebooted itself", self.world.machine().reason)
        self.world.pump(40, step=1)
        self.assertEqual((State.WAITING, 1), (self.world.machine().state, self.guest.starts))
        answered.callback(None)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertAlmostEqual(before, self.world.fleet.leases.left(self.world.machine()), delta=1)
        self.assertAlmostEqual(1000 + 40, self.world.fleet.summons.lease("www").started, delta=1)  # type: ignore[union-attr]

    def test_asked_during_a_reboot(self) -> None:
        """A question for a VM whose guest reboots is a use like any other."""
        self.begin()
        idle = self.world.machine().vm.idle
        self.world.pump(idle - 5, step=1)
        answered: Deferred[None] = Deferred()
        self.patch(self.world.fleet.context.strategies._make(Port), "wait", lambda *_: answered)
        reboot(self.world.backend, self.world.machine().uuid)
        self.ask()
        answered.callback(None)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertAlmostEqual(idle, self.world.fleet.leases.left(self.world.machine()), delta=1)

    def test_boot_loop(self) -> None:
        """A guest that reboots again and again is stopped when the time in which it was up is its lease's."""
        self.begin()
        self.alive = False
        for _ in range(60):
            reboot(self.world.backend, self.world.machine().uuid)
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
        self.world.fleet.leases.stop()
        self.assertEqual({}, self.world.fleet.leases.health._checks)

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
        self.guest.image = True
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
        self.world.fleet.leases.health.check(self.world.machine())
        self.world.pump(20, step=1)
        self.assertEqual(1, self.world.starts())
