"""A fleet on a clock, with VMs of memory: starts, answers, leases, stops, crashes and restarts."""

from __future__ import annotations

import uuid as uuids
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any
from unittest import mock

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import MemoryBackend, MemoryGuest
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.errors import BackendError, BackendLost, BootFailed, NoSuchVM
from jitsu_tw.ijitsu import ENDED, SHUT_DOWN, Memory, Power
from jitsu_tw.readiness.port import Port
from jitsu_tw.rules.life import Failures, rest
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import COMMIT_EVERY, READY_WITHIN, RESUMED_WITHIN, STARTS_WITHIN, VM, Boot, Mode, Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.sync.reconfigure import ConfigChange, LiveConfig
from jitsu_tw.vm import persistence
from jitsu_tw.vm.fleet import IS_REMOVED
from jitsu_tw.vm.inventory import NOT_YET, WAITS
from jitsu_tw.vm.problems import Problem
from test.support import EPOCH, World, question, vm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.task import Clock


class FleetTestCase(SynchronousTestCase):
    """Has a world and a word for asking in it."""

    world: World

    def ask(self, name: str = "www", **of: Any) -> list[Any]:
        """Ask for a VM; return a list in which the answer (ready or not) or the failure will be."""
        answers: list[Any] = []
        self.world.fleet.summons.summon(name, question(name, **of)).addBoth(answers.append)
        return answers


class ActivationTests(FleetTestCase):
    """From a query to its answer."""

    def test_boots(self) -> None:
        """A query for a VM that is off starts it and is answered when it is ready."""
        self.world = World(vm(boot_time=0.5))
        answers = self.ask()
        self.assertEqual([], answers)
        self.world.pump(0.6)
        self.assertEqual([True], answers)
        self.assertEqual(1, self.world.starts())
        self.assertIs(State.UP, self.world.machine().state)

    def test_up(self) -> None:
        """A query for a VM that is up is answered at once and starts nothing."""
        self.world = World(vm())
        self.ask()
        self.assertEqual([True], self.ask())
        self.assertEqual(1, self.world.starts())

    def test_a_hundred_ask(self) -> None:
        """A hundred queries start one VM once, and each is answered."""
        self.world = World(vm(boot_time=0.5))
        answers = [self.ask(host=f"192.0.2.{number}") for number in range(100)]
        self.world.pump(0.6)
        self.assertEqual([[True]] * 100, answers)
        self.assertEqual(1, self.world.starts())
        self.assertEqual(100, self.world.fleet.stats.current(self.world.machine()).total_requests)

    def test_retransmissions_count_once(self) -> None:
        """The same client asking the same again while the VM boots joins, is answered, and counts once."""
        self.world = World(vm(boot_time=0.5))
        answers = [self.ask(port=port) for port in (1000, 1001, 1001)]
        self.world.pump(0.6)
        self.assertEqual([[True]] * 3, answers)
        self.assertEqual(1, self.world.fleet.stats.current(self.world.machine()).total_requests)

    def test_response_delay(self) -> None:
        """With a delay, the VM is ready so long after the start call has returned."""
        self.world = World(vm(boot_time=0.3, response_delay=0.4))
        answers = self.ask()
        self.world.pump(0.6)
        self.assertEqual([], answers)
        self.world.pump(0.2)
        self.assertEqual([True], answers)

    def test_answer_by(self) -> None:
        """The answer leaves in time, ready or not; the activation goes on, for all who ask later too."""
        self.world = World(vm(boot_time=3.0), answer_by=1.2)
        first = self.ask()
        self.world.pump(1.3)
        self.assertEqual([False], first)
        self.assertIs(State.STARTING, self.world.machine().state)
        self.world.pump(1.0)
        second = self.ask(host="192.0.2.2")
        self.world.pump(0.6)
        self.assertEqual([], second)
        self.world.pump(0.2)
        self.assertEqual([True], second)
        self.assertEqual(1, self.world.starts())

    def test_asks_again(self) -> None:
        """
        Who asks again is answered when the first question is due, or just was: that one's port may be closed by then.

        Who asks again later than that asks anew.
        """
        self.world = World(vm(boot_time=3.0), answer_by=1.2)
        first = self.ask(port=1)
        self.world.pump(0.5)
        second = self.ask(port=2)
        self.world.pump(0.6)
        self.assertEqual([[], []], [first, second])
        self.world.pump(0.2)
        self.assertEqual([[False], [False]], [first, second])
        third = self.ask(port=3)
        self.world.pump(0.01, step=0.01)
        self.assertEqual([False], third)
        other = self.ask(host="192.0.2.2")
        self.world.pump(1.1)
        self.assertEqual([], other)
        self.world.pump(0.1)
        anew = self.ask(port=4)
        self.world.pump(0.3)
        self.assertEqual([], anew)
        self.world.pump(0.3)
        self.assertEqual([True], anew)
        self.assertEqual((1, 2), (self.world.fleet.stats.current(self.world.machine()).total_starts,
                                  self.world.fleet.stats.current(self.world.machine()).total_requests))

    def test_asks_again_later(self) -> None:
        """A question for a new activation waits, and counts, whoever had asked for the one before."""
        self.world = World(vm("a", boot_time=3.0), vm("bb", boot_time=1.0), max_booting=1)
        self.ask("a")
        self.ask("bb")
        self.world.fleet.operator.stop("bb")
        self.world.pump(3.1)
        answers = self.ask("bb")
        self.assertEqual([], answers)
        self.world.pump(1.1)
        self.assertEqual([True], answers)
        self.assertEqual(2, self.world.fleet.stats.current(self.world.machine("bb")).total_requests)

    def test_start_fails(self) -> None:
        """A start that fails fails all who wait, with the backend's words; the next query tries again."""
        self.world = World(vm(faults=["start"]))
        for _ in range(2):
            (failure,) = self.ask()
            self.assertIn("the start fails", str(failure.trap(BootFailed) and failure.value))
            self.assertIs(State.FAILED, self.world.machine().state)
        self.assertEqual(2, self.world.fleet.stats.current(self.world.machine()).total_starts)

    def test_never_ready(self) -> None:
        """A guest that is never heard of is not an error; at last it is taken for up, so that its lease can end."""
        self.world = World(vm(faults=["never_ready"]))
        answers = self.ask()
        self.world.pump(READY_WITHIN - 1, step=1)
        self.assertEqual([False], answers)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.world.pump(2, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual([False], self.ask())
        self.world.pump(121, step=1)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_dies_while_booting(self) -> None:
        """A VM that goes down before it is ready fails those who wait."""
        self.world = World(vm(response_delay=1.0))
        answers = self.ask()
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
        self.assertIsInstance(answers[0].value, BootFailed)
        self.assertIn("the guest crashed", str(answers[0].value))

    def test_vanishes(self) -> None:
        """A VM that goes down by itself is known to be off at once, and boots again when asked for."""
        self.world = World(vm(faults=["vanish"]))
        self.ask()
        self.world.pump(0.6)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual([True], self.ask())
        self.assertEqual(2, self.world.starts())

    def test_cancelled(self) -> None:
        """A client that goes away takes only its own answer with it."""
        self.world = World(vm(boot_time=0.5))
        gone = self.world.fleet.summons.summon("www", question())
        gone.addErrback(lambda _: None)
        answers = self.ask(host="192.0.2.2")
        gone.cancel()
        self.world.pump(0.6)
        self.assertEqual([True], answers)

    def test_max_booting(self) -> None:
        """More VMs than may boot at once wait their turn, in the order they were asked for."""
        names = ["a", "bb", "ccc", "dddd"]
        self.world = World(*(vm(name, boot_time=1.0) for name in names), max_booting=2, answer_by=9)
        answers = [self.ask(name) for name in names]
        states = [self.world.machine(name).state for name in names]
        self.assertEqual([State.STARTING, State.STARTING, State.QUEUED, State.QUEUED], states)
        self.world.pump(1.1)
        self.assertEqual([[True], [True], [], []], answers)
        self.world.pump(1.1)
        self.assertEqual([[True]] * 4, answers)


class LeaseTests(FleetTestCase):
    """When a VM is stopped, and when not."""

    def test_counted_no_more(self) -> None:
        """A guest whose packets could not be counted at first, and never will be, has a lease like any other."""
        self.world = World(vm(idle=20))
        traffic = self.world.backend.traffic
        self.patch(self.world.backend, "traffic", lambda _: fail(BackendError("not yet")))
        self.ask()
        self.patch(self.world.backend, "traffic", traffic)
        self.world.pump(19.5)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(5)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_idle(self) -> None:
        """A VM that nobody asks for any more is stopped when its lease ends, and not before."""
        self.world = World(vm(idle=10))
        self.ask()
        self.world.pump(9.9)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(0.2)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual([True], self.ask())
        self.assertEqual(2, self.world.starts())

    def test_renewed(self) -> None:
        """Each query renews the lease."""
        self.world = World(vm(idle=10))
        for _ in range(5):
            self.ask()
            self.world.pump(8)
            self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(2.1)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_min_up(self) -> None:
        """A VM is not stopped before `min_up`."""
        self.world = World(vm(idle=10, min_up=60))
        self.ask()
        self.world.pump(59)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(2)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_slow_boot(self) -> None:
        """A boot longer than the lease is not cut; the lease runs from when the VM is ready."""
        self.world = World(vm(idle=10, boot_time=50))
        self.ask()
        self.world.pump(55)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(6)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_started_by_hand(self) -> None:
        """A VM that nobody asked us for is left alone; once asked for, it has a lease."""
        self.world = World(vm(idle=10))
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(100, step=1)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual([True], self.ask())
        self.world.pump(11)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual(0, self.world.starts())

    def test_by_hand_after_ours(self) -> None:
        """A VM of ours that was stopped and then started by hand is not ours any more."""
        self.world = World(vm(idle=10))
        self.ask()
        uuid = self.world.machine().uuid
        self.world.backend.happen(uuid, Power.OFF, "destroyed")
        self.world.pump(1)
        self.world.backend.happen(uuid, Power.RUNNING, "booted")
        self.world.pump(30)
        self.assertIs(State.UP, self.world.machine().state)

    def test_by_hand_after_asking_in_vain(self) -> None:
        """A VM that was asked for in vain and then started by hand is left alone, also after a restart of ours."""
        self.world = World(vm(idle=10, faults=["start"]))
        for _ in range(3):
            self.ask()
        self.world.pump(0.1)
        self.ask()
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
        self.world.pump(6)
        self.world.kill()
        self.world.pump(20)
        self.assertIs(State.UP, self.world.machine().state)

    def test_dry_run(self) -> None:
        """
        A dry run stops nothing: neither what somebody else starts, nor what it finds running and of ours.

        What would be one start costs one start, however often it is asked for.
        """
        self.world = World(vm("a", idle=5), vm("bb", idle=5))
        self.ask("bb")
        self.world.settings = evolve(self.world.settings, dry_run=True)
        self.world.kill()
        for _ in range(40):
            self.assertEqual([True], self.ask("a"))
        self.world.backend.happen(self.world.machine("a").uuid, Power.RUNNING, "booted")
        self.world.pump(20)
        for name in ("a", "bb"):
            self.assertIs(State.UP, self.world.machine(name).state)
        self.world.settings = evolve(self.world.settings, dry_run=False)
        self.world.kill()
        self.world.pump(5)
        self.assertIs(State.OFF, self.world.machine("bb").state)

    def test_stop_fails(self) -> None:
        """A VM that cannot be stopped stays up, with its problem; that is tried again after longer and longer times."""
        tries: list[float] = []
        stop = MemoryBackend.stop

        def counted(backend: MemoryBackend, uuid: str, mode: Mode) -> Deferred[None]:
            tries.append(backend._reactor.seconds() - 1000)
            return stop(backend, uuid, mode)

        self.patch(MemoryBackend, "stop", counted)
        self.world = World(vm(idle=10, faults=["stop"], max_up=200))
        with capturedLogs() as logs:
            self.ask()
            self.world.pump(11)
            self.assertIs(State.UP, self.world.machine().state)
            self.assertIn("the stop fails", self.world.machine().reason)
            self.world.pump(600, step=1)
        for expected, tried in zip((10, 70, 190, 430), tries, strict=True):
            self.assertAlmostEqual(expected, tried, delta=4)
        (problem,) = self.world.fleet.context.problems.of("www")
        self.assertIn("cannot be stopped (destroy), so it stays up: the stop fails", problem)
        self.assertEqual(1, sum("it stays up" in str(event.get("sentence")) for event in logs))
        self.assertNotIn("{name}: {reason}, stopped ({mode})", [event["log_format"] for event in logs])
        self.world.backend.guests[self.world.machine().uuid].vm = vm(idle=10)
        self.world.pump(600, step=1)
        self.assertEqual((State.OFF, []), (self.world.machine().state, self.world.fleet.context.problems.of("www")))
        self.world.backend.guests[self.world.machine().uuid].vm = vm(idle=10, faults=["stop"])
        del tries[:]
        self.ask()
        self.world.pump(90)
        self.assertEqual(2, len(tries))

    def test_asked_during_a_stop_that_fails(self) -> None:
        """A question that comes during a stop that fails is a use, and is answered as soon as it has failed."""
        self.world = World(vm(idle=100))
        self.ask()
        stopped: Deferred[None] = Deferred()
        self.patch(self.world.backend, "stop", lambda *_: stopped)
        self.world.pump(101, step=1)
        self.assertIs(State.STOPPING, self.world.machine().state)
        asked = self.world.fleet.summons.summon("www", question())
        self.world.pump(0.5)
        stopped.errback(BackendError("no disk"))
        self.assertTrue(self.successResultOf(asked))
        left = self.world.fleet.leases.left(self.world.machine())
        assert left is not None
        self.assertAlmostEqual(100, left, delta=1)

    def test_obstacle(self) -> None:
        """A VM that is known not to be savable never stops answering; once it can be saved, it is, and not in haste."""
        self.world = World(vm(idle=10, mode=Mode.SAVE))
        self.ask()
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.obstacles[Mode.SAVE] = "its nvme disk cannot be saved"
        moves: list[State] = []
        self.patch(self.world.warm, "moved", lambda machine, _: moves.append(machine.state))
        self.world.pump(300, step=1)
        self.assertEqual([], moves)
        self.assertIn("nvme", self.world.fleet.context.problems.of("www")[0])
        self.world.fleet.operator.stop("www")
        self.assertEqual([], moves)
        guest.obstacles.clear()
        self.world.pump(10)
        self.assertEqual([], moves)
        self.world.pump(300, step=1)
        self.assertEqual((State.SAVED, []), (self.world.machine().state, self.world.fleet.context.problems.of("www")))

    def test_asked_while_the_obstacle_is_asked(self) -> None:
        """A question that comes just before the stop keeps the VM up."""
        self.world = World(vm(idle=10, mode=Mode.SAVE))
        self.ask()
        answer: Deferred[str | None] = Deferred()
        self.patch(self.world.backend, "obstacle", lambda *_: answer)
        self.world.pump(11)
        self.ask()
        answer.callback(None)
        self.world.pump(5)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(8)
        self.assertIs(State.SAVED, self.world.machine().state)

    def test_used_while_the_obstacle_is_asked(self) -> None:
        """Where it took long to find out whether a VM can be stopped, its guest's packets are counted once more."""
        for mode, instead, state in ((Mode.PAUSE, None, State.PAUSED), (Mode.SAVE, Mode.PAUSE, State.SAVED)):
            self.world = World(vm(idle=10, mode=mode, save_fallback=instead))
            self.ask()
            answer: Deferred[str | None] = Deferred()
            self.patch(self.world.backend, "obstacle", lambda *_, answer=answer: answer)
            self.world.pump(30, step=1)
            self.world.backend.guests[self.world.machine().uuid].sent = 1000
            answer.callback(None)
            self.world.pump(9, step=1)
            self.assertIs(State.UP, self.world.machine().state)
            self.world.pump(5, step=1)
            self.assertIs(state, self.world.machine().state)

    def test_save_fallback(self) -> None:
        """A VM that cannot be saved, known before or found out, is stopped by `save_fallback`, and that is shown."""
        stops: list[Mode] = []
        stop = MemoryBackend.stop

        def stopped(of: MemoryBackend, uuid: str, mode: Mode) -> Deferred[None]:
            stops.append(mode)
            return stop(of, uuid, mode)

        self.patch(MemoryBackend, "stop", stopped)
        for known, modes in ((True, [Mode.PAUSE]), (False, [Mode.SAVE, Mode.PAUSE])):
            self.world = World(vm(idle=10, mode=Mode.SAVE, save_fallback=Mode.PAUSE))
            stops.clear()
            self.ask()
            guest = self.world.backend.guests[self.world.machine().uuid]
            guest.obstacles[Mode.SAVE] = "its nvme disk cannot be saved"
            if not known:
                self.patch(self.world.backend, "obstacle", lambda *_: succeed(None))
            self.world.pump(11)
            self.assertEqual((State.PAUSED, modes), (self.world.machine().state, stops))
            (problem,) = self.world.fleet.context.problems.of("www")
            self.assertEqual("it cannot be saved, so it is stopped by pause: its nvme disk cannot be saved", problem)
            self.assertEqual([], list(self.world.fleet.context.problems.degrading()))
            guest.obstacles.clear()
            self.ask()
            self.world.pump(11)
            problems = self.world.fleet.context.problems.of("www")
            self.assertEqual((State.SAVED, []), (self.world.machine().state, problems))

    def test_modes(self) -> None:
        """Each mode leaves the VM as it says, and the next query brings it back."""
        for mode, state in ((Mode.DESTROY, State.OFF), (Mode.SHUTDOWN, State.OFF), (Mode.PAUSE, State.PAUSED),
                            (Mode.SUSPEND, State.PAUSED), (Mode.SAVE, State.SAVED)):
            self.world = World(vm(idle=10, mode=mode))
            self.ask()
            self.world.pump(11)
            self.assertIs(state, self.world.machine().state)
            self.assertEqual([True], self.ask())
            self.assertEqual(2, self.world.starts())


class StopTests(FleetTestCase):
    """Stops by hand, slow stops, and summons meanwhile."""

    def stop(self, name: str = "www") -> list[State]:
        """Stop a VM by hand; return a list in which its state will be."""
        states: list[State] = []
        self.world.fleet.operator.stop(name).addCallback(states.append)
        return states

    def test_by_hand(self) -> None:
        """A VM is stopped when a person says so, and has no lease then."""
        self.world = World(vm())
        self.ask()
        self.assertEqual([State.OFF], self.stop())
        self.assertIsNone(self.world.fleet.leases.left(self.world.machine()))

    def test_while_starting(self) -> None:
        """A stop during the start call fails those who wait and stops the VM when the call has ended."""
        self.world = World(vm(boot_time=1.0))
        answers = self.ask()
        states = self.stop()
        self.assertIsInstance(answers[0].value, BootFailed)
        self.assertEqual([], states)
        self.world.pump(1.1)
        self.assertEqual([State.OFF], states)
        self.assertIs(Power.OFF, self.world.backend.guests[self.world.machine().uuid].power)

    def test_while_waiting(self) -> None:
        """A stop while the guest boots stops it."""
        self.world = World(vm(response_delay=1.0))
        self.ask()
        self.assertEqual([State.OFF], self.stop())
        self.world.pump(2)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_while_queued(self) -> None:
        """A VM that waits for its turn is not started after it was stopped."""
        self.world = World(vm("a", boot_time=1.0), vm("bb"), max_booting=1)
        self.ask("a")
        self.ask("bb")
        self.assertEqual([State.OFF], self.stop("bb"))
        self.world.pump(2)
        self.assertEqual(0, self.world.starts("bb"))

    def slow_guest(self, **changes: Any) -> tuple[VM, list[Deferred[None]]]:
        """Begin a world whose VM's stops take until told; return the VM and where the stops will be."""
        machine = vm(idle=10, **changes)
        self.world = World(machine)
        stops: list[Deferred[None]] = []
        stop = self.world.backend.stop

        def slow(uuid: str, mode: Mode) -> Deferred[None]:
            stops.append(Deferred())
            return stops[-1].addCallback(lambda _: stop(uuid, mode))

        self.patch(self.world.backend, "stop", slow)
        return machine, stops

    def test_summons_during_a_stop(self) -> None:
        """A query that comes while the VM is being stopped waits for the stop and starts it again, once."""
        _, stops = self.slow_guest()
        self.ask()
        self.world.pump(10.1)
        self.assertIs(State.STOPPING, self.world.machine().state)
        answers = [self.ask(), self.ask(host="192.0.2.2")]
        self.assertEqual([[], []], answers)
        stops[0].callback(None)
        self.assertEqual([[True], [True]], answers)
        self.assertEqual(2, self.world.starts())

    def test_summons_during_a_stop_before_a_slow_boot(self) -> None:
        """What was asked for during a stop has a whole lease when it is up, however long that took."""
        _, stops = self.slow_guest(boot_time=30.0)
        self.ask()
        self.world.pump(41)
        self.ask()
        stops[0].callback(None)
        self.world.pump(31)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(8)
        self.assertIs(State.UP, self.world.machine().state)

    def test_shutdown_escalates(self) -> None:
        """A guest that does not follow a shutdown in `stop_timeout` is destroyed."""
        self.world = World(vm(idle=10, mode=Mode.SHUTDOWN, stop_timeout=5))
        self.ask()
        asked: list[Mode] = []
        stop = self.world.backend.stop

        def deaf(uuid: str, mode: Mode) -> Deferred[None]:
            asked.append(mode)
            return stop(uuid, mode) if mode is Mode.DESTROY else self.world.backend.ready(uuid)

        self.patch(self.world.backend, "stop", deaf)
        self.world.pump(14)
        self.assertEqual([Mode.SHUTDOWN], asked)
        self.assertIs(State.STOPPING, self.world.machine().state)
        self.world.pump(1.2)
        self.assertEqual([Mode.SHUTDOWN, Mode.DESTROY], asked)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_shut_down_while_we_look(self) -> None:
        """A guest that goes down while a look, which says that it runs, is under way is known to be off at once."""
        self.world = World(vm(idle=10, mode=Mode.SHUTDOWN, stop_timeout=30))
        self.ask()
        uuid = self.world.machine().uuid
        looks: list[tuple[Deferred[Power], Power]] = []

        def state(uuid: str) -> Deferred[Power]:
            power = self.world.backend.guests[uuid].power
            looks.append((Deferred(), power))
            return looks[-1][0]

        self.patch(self.world.backend, "stop", lambda uuid, _: self.world.backend.ready(uuid))
        self.patch(self.world.backend, "state", state)
        self.world.pump(10.2)
        self.world.backend.happen(uuid, Power.OFF, "the guest shut down")
        while looks:
            look, power = looks.pop(0)
            look.callback(power)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_seen_again(self) -> None:
        """Why the backend could not tell what a VM does is its reason until the backend can tell that again."""
        self.world = World(vm(idle=60))
        self.ask()
        machine = self.world.machine()
        with mock.patch.object(self.world.backend, "state", return_value=fail(BackendError("its socket is gone"))):
            machine.look("something happened")
        self.assertEqual((State.UP, "its socket is gone"), (machine.state, machine.reason))
        machine.look("its events are told again")
        self.assertEqual((State.UP, ""), (machine.state, machine.reason))

    def test_shutdown_takes_its_time(self) -> None:
        """A guest that shuts down late, but in time, is not destroyed."""
        self.world = World(vm(idle=10, mode=Mode.SHUTDOWN, stop_timeout=5))
        self.ask()
        asked: list[Mode] = []

        def slow(uuid: str, mode: Mode) -> Deferred[None]:
            asked.append(mode)
            self.world.clock.callLater(3, self.world.backend.happen, uuid, Power.OFF, "the guest shut down")
            return self.world.backend.ready(uuid)

        self.patch(self.world.backend, "stop", slow)
        self.world.pump(14)
        self.assertEqual([Mode.SHUTDOWN], asked)
        self.assertIs(State.OFF, self.world.machine().state)


class RestartTests(FleetTestCase):
    """What a new process knows of what the old one did."""

    def test_adopts(self) -> None:
        """What was started before a crash is found, and stopped when what is left of its lease ends; once."""
        self.world = World(vm(idle=20))
        self.ask()
        self.world.pump(6)
        with capturedLogs() as logs:
            self.world.kill()
        self.assertIn("www: runs already, adopted; it was used 6 s ago", list(map(formatEvent, logs)))
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(13.8)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(0.4)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual(1, self.world.starts())

    def test_adopts_what_was_used(self) -> None:
        """After a restart, a VM has what is left since its guest was in use, not since a query; after a crash, half."""
        for ends, least in ((True, 17.0), (False, 9.9)):
            self.world = World(vm(idle=20))
            self.ask()
            guest = self.world.backend.guests[self.world.machine().uuid]
            guest.sent = 0
            for _ in range(100):
                guest.sent += 5
                self.world.pump(1)
            if ends:
                self.successResultOf(self.world.fleet.stop())
            self.world.kill()
            left = self.world.fleet.leases.left(self.world.machine())
            self.assertTrue(left is not None and least <= left <= 20, left)

    def test_no_timeline(self) -> None:
        """A VM that was found running was not activated: it has no timeline, not even a stop; the next start has."""
        self.world = World(vm(idle=20))
        self.ask()
        self.world.kill()
        self.assertEqual({}, self.world.machine().marks)
        self.world.pump(21)
        self.assertEqual((State.OFF, {}), (self.world.machine().state, self.world.machine().marks))
        self.ask()
        self.assertEqual("query", next(iter(self.world.machine().marks)))

    def test_killed_during_a_boot(self) -> None:
        """A VM whose start was under way is found running, adopted, and stopped when its lease ends."""
        self.world = World(vm(idle=20, response_delay=5.0))
        self.ask()
        self.world.pump(1)
        self.world.kill()
        self.assertIs(State.WAITING, self.world.machine().state)
        self.world.pump(18.9)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(0.3)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_adopts_what_is_in_use(self) -> None:
        """A guest that transmits is not stopped because Jitsu was restarted after its lease's end; a silent one is."""
        for takes, per_second, state in ((0, 5, State.UP), (5.0, 5, State.UP), (0, 0, State.OFF), (5.0, 0, State.OFF)):
            self.world = World(vm(idle=20))
            self.ask()
            guest = self.world.backend.guests[self.world.machine().uuid]
            guest.sent = 0
            self.world.pump(15)
            traffic = self.world.backend.traffic

            def slowly(uuid: str, takes: float = takes, traffic: Any = traffic) -> Any:
                return deferLater(self.world.clock, takes, traffic, uuid) if takes else traffic(uuid)

            self.patch(self.world.backend, "traffic", slowly)
            self.world.fleet = None  # type: ignore[assignment]
            for call in self.world.clock.getDelayedCalls():
                call.cancel()
            self.world.clock.advance(300)
            self.world.begin()
            for _ in range(30):
                guest.sent += per_second
                self.world.pump(1)
            self.assertIs(state, self.world.machine().state, (takes, per_second))

    def test_started_when_it_had_stopped(self) -> None:
        """A VM that was started in the moment of its stop is ours after a restart, also if the clock was set back."""
        self.world = World(vm(idle=20, mode=Mode.SHUTDOWN, stop_timeout=1.0))
        self.ask()
        self.world.fleet.operator.stop("www")
        self.world.fleet.operator.start("www")
        self.assertIs(State.UP, self.world.machine().state)
        self.world.kill()
        self.world.pump(21)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_foreign(self) -> None:
        """What was running and never asked for is left alone; what is off is not started."""
        self.world = World(vm("a", idle=20), vm("bb", idle=20))
        self.world.backend.happen(self.world.machine("a").uuid, Power.RUNNING, "booted")
        self.world.kill()
        self.world.pump(100, step=1)
        self.assertIs(State.UP, self.world.machine("a").state)
        self.assertIs(State.OFF, self.world.machine("bb").state)
        self.assertEqual(0, self.world.starts("bb"))

    def test_stopped_meanwhile(self) -> None:
        """A VM that was stopped while Jitsu was away, and then started by hand, is not taken for Jitsu's."""
        self.world = World(vm(idle=20))
        self.ask()
        self.world.pump(6)
        uuid = self.world.machine().uuid
        self.world.backend.guests[uuid].power = Power.OFF
        self.world.kill()
        self.assertIs(State.OFF, self.world.machine().state)
        self.world.pump(1)
        self.world.backend.happen(uuid, Power.RUNNING, "booted")
        self.world.pump(60, step=1)
        self.assertIs(State.UP, self.world.machine().state)

    def test_killed_during_the_call(self) -> None:
        """A VM that comes up by a start call which outlives Jitsu is the next Jitsu's, for as long as that may be."""
        for late, state in ((1.0, State.OFF), (STARTS_WITHIN + 1.0, State.UP)):
            self.world = World(vm(idle=20))
            self.patch(self.world.backend, "start", lambda _: Deferred())
            self.ask()
            self.world.kill()
            self.assertIs(State.OFF, self.world.machine().state)
            self.world.pump(late, step=1)
            self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
            self.world.pump(60, step=1)
            self.assertIs(state, self.world.machine().state, late)

    def test_killed_before_the_start_is_written(self) -> None:
        """Nothing is started before it is written down that it is ours; but a disk that hangs holds nothing up."""
        self.world = World(vm(idle=20))
        written: list[Deferred[None]] = []

        def write(*_: Any) -> Deferred[None]:
            written.append(Deferred())
            return written[-1]

        self.patch(self.world.store, "write", write)
        answers = self.ask()
        self.assertEqual((0, []), (self.world.starts(), answers))
        written[0].callback(None)
        self.assertEqual((1, [True]), (self.world.starts(), answers))
        self.world = World(vm(idle=20))
        self.patch(self.world.store, "write", write)
        answers = self.ask()
        self.world.pump(0.2)
        self.assertEqual((1, [True]), (self.world.starts(), answers))

    def test_statistics(self) -> None:
        """Counts and times are remembered, a start at once, requests within seconds, and go on after a restart."""
        self.world = World(vm())
        self.ask()
        self.assertEqual("1", self.world.remembered()["total_starts"])
        self.assertEqual(f"{EPOCH + 1000:.3f}", self.world.remembered()["start_ts"])
        self.ask(host="192.0.2.2")
        self.world.pump(6)
        self.assertEqual("2", self.world.remembered()["dns/www.jitsu.test/total_requests"])
        self.world.kill()
        self.ask()
        self.world.pump(6)
        self.assertEqual("3", self.world.remembered()["dns/www.jitsu.test/total_requests"])

    def test_configuration(self) -> None:
        """What the configuration says of a VM is in the state, and what it does not say any more is not."""
        self.world = World(vm(raw={"name": ("www",), "needs": ("a", "b")}))
        base = f"jitsu/vm/{self.world.machine().uuid}"
        self.assertEqual("b", self.world.store.tree[f"{base}/config/needs/1"])
        self.assertEqual("60", self.world.store.tree[f"{base}/dns/www.jitsu.test/ttl"])
        self.assertEqual("destroy", self.world.store.tree[f"{base}/stop_mode"])
        self.world.settings = type(self.world.settings)(vms=(vm(raw={"name": ("www",)}),))
        self.world.kill()
        self.assertNotIn(f"{base}/config/needs/0", self.world.store.tree)
        self.assertEqual("www", self.world.store.tree[f"{base}/config/name/0"])

    def test_clean_end(self) -> None:
        """A stop of Jitsu writes down what is not yet written, and leaves the VMs as they are."""
        self.world = World(vm())
        self.ask()
        self.ask(host="192.0.2.2")
        self.successResultOf(self.world.fleet.stop())
        self.assertEqual("2", self.world.remembered()["dns/www.jitsu.test/total_requests"])
        self.assertIs(Power.RUNNING, self.world.backend.guests[self.world.machine().uuid].power)
        self.assertEqual([], self.world.clock.getDelayedCalls())


class BackendTests(FleetTestCase):
    """A backend that cannot be asked."""

    def test_lost(self) -> None:
        """While there is no connection, cold VMs cannot be had, with the reason; warm ones are answered."""
        self.world = World(vm("a"), vm("bb"))
        self.ask("a")
        self.world.fleet.inventory.lost(self.world.backend, "the daemon is gone")
        self.assertEqual([True], self.ask("a"))
        (failure,) = self.ask("bb")
        self.assertIsInstance(failure.value, BackendLost)
        self.assertIn("the daemon is gone", str(failure.value))

    def test_lost_while_waiting(self) -> None:
        """Those who wait for a VM whose backend is lost are told at once."""
        self.world = World(vm(response_delay=5.0))
        answers = self.ask()
        self.world.fleet.inventory.lost(self.world.backend, "the daemon is gone")
        self.assertIsInstance(answers[0].value, BackendLost)

    def test_returns(self) -> None:
        """When the connection is back, everything is looked at: what went down meanwhile is off."""
        self.world = World(vm("a"), vm("bb"))
        self.ask("a")
        self.world.fleet.inventory.lost(self.world.backend, "the daemon is gone")
        self.world.backend.guests[self.world.machine("a").uuid].power = Power.OFF
        self.world.fleet.inventory.connected(self.world.backend)
        self.assertIs(State.OFF, self.world.machine("a").state)
        self.assertEqual([[True], [True]], [self.ask("a"), self.ask("bb")])

    def test_not_connected_yet(self) -> None:
        """A query that comes before the backend has answered waits for it, but not for ever."""
        self.world = World(vm())
        self.patch(self.world.backend, "connect", lambda _: None)
        self.world.kill()
        early, late = self.ask(), self.ask(host="192.0.2.2")
        self.world.pump(0.5)
        self.assertEqual([], early)
        self.world.fleet.inventory.connected(self.world.backend)
        self.assertEqual([[True], [True]], [early, late])
        self.world.kill()
        never = self.ask()
        self.world.pump(1.3)
        self.assertIsInstance(never[0].value, BackendLost)

    def test_lost_in_a_start(self) -> None:
        """A VM whose start call had no answer, and that runs in the end, is ours: it is stopped when nobody uses it."""
        for when in ("later", "at once"):
            self.world = World(vm(idle=10))
            uuid = self.world.machine().uuid

            def hang(uuid: str, when: str = when) -> Deferred[Any]:
                if when == "at once":
                    self.world.backend.guests[uuid].power = Power.RUNNING
                return fail(BackendLost("has not answered within 60 s"))

            self.patch(self.world.backend, "start", hang)
            self.assertIsInstance(self.ask()[0].value, BackendLost)
            if when == "later":
                self.world.backend.happen(uuid, Power.RUNNING, "booted")
            self.world.pump(6)
            self.assertIs(State.UP, self.world.machine().state)
            self.world.pump(12)
            self.assertIs(State.OFF, self.world.machine().state)

    def test_lost_in_a_start_that_goes_on(self) -> None:
        """A VM that is still off when we look, and comes up later by a start whose end nobody told us, is ours."""
        self.world = World(vm(idle=20))
        self.patch(self.world.backend, "start", lambda _: fail(BackendLost("the connection broke")))
        self.ask()
        self.world.pump(6)
        self.assertIs(State.OFF, self.world.machine().state)
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
        self.assertIs(State.UP, self.world.machine().state)
        self.assertIsNotNone(self.world.fleet.leases.left(self.world.machine()))
        self.world.pump(21)
        self.assertIs(State.OFF, self.world.machine().state)
        self.ask()
        self.world.pump(70, step=1)
        self.assertFalse(self.world.machine().managed)
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted by hand")
        self.world.pump(30)
        self.assertIs(State.UP, self.world.machine().state)

    def test_lost_in_a_start_that_failed(self) -> None:
        """A VM whose start had no answer, and that is off, can be asked for again, and after a while is nobody's."""
        self.world = World(vm(idle=10))
        start = self.world.backend.start
        self.patch(self.world.backend, "start", lambda _: fail(BackendLost("has not answered within 60 s")))
        self.ask()
        self.world.pump(6)
        self.assertIs(State.OFF, self.world.machine().state)
        self.world.pump(56, step=1)
        self.assertFalse(self.world.machine().managed)
        self.patch(self.world.backend, "start", start)
        self.assertEqual([True], self.ask())

    def test_looks_again(self) -> None:
        """A VM that could not be looked at once is looked at again, though nothing has happened."""
        self.world = World(vm())
        for call in ("look_up", "state"):
            works = getattr(self.world.backend, call)
            self.patch(self.world.backend, call, lambda _: fail(BackendError("has not answered within 30 s")))
            self.world.kill()
            self.assertIn("has not answered", str(self.ask()[0].value))
            self.patch(self.world.backend, call, works)
            self.world.pump(6)
            self.assertEqual([True], self.ask())
            self.assertEqual(1, self.world.starts())

    def test_found_later(self) -> None:
        """A VM that is new, at a backend that has not answered yet, or is lost, is looked for when that answers."""
        self.world = World(vm())
        self.patch(self.world.backend, "connect", lambda _: None)
        self.world.kill()
        inventory, backend, machine = self.world.fleet.inventory, self.world.backend, self.world.machine()
        self.patch(backend, "look_up", lambda _: self.fail("the backend does not answer"))
        self.successResultOf(inventory.find(machine))
        self.assertEqual("", machine.reason)
        inventory.lost(backend, "it is down")
        machine.reason = ""
        self.successResultOf(inventory.find(machine))
        self.assertEqual("it is down", machine.reason)
        self.patch(backend, "look_up", type(backend).look_up.__get__(backend))
        inventory.connected(backend)
        self.assertEqual([True], self.ask())

    def test_budget(self) -> None:
        """Questions that start nothing, because the backend is lost, cost a network none of its starts."""
        self.world = World(vm())
        self.world.fleet.inventory.lost(self.world.backend, "the daemon is gone")
        for _ in range(40):
            self.ask()
        self.world.fleet.inventory.connected(self.world.backend)
        self.assertEqual([True], self.ask())

    def test_unknown_vm(self) -> None:
        """A VM that the backend does not know is an error of that VM alone."""
        self.world = World(vm("a"), vm("bb"))

        def look_up(machine: VM) -> Deferred[str]:
            if machine.name == "a":
                raise NoSuchVM("no VM a")
            return look(machine)

        look = self.world.backend.look_up
        self.patch(self.world.backend, "look_up", look_up)
        self.world.kill()
        self.assertIn("no VM a", str(self.ask("a")[0].value))
        self.assertEqual([True], self.ask("bb"))


class SavingTests(FleetTestCase):
    """How often the state is written."""

    def test_one_at_a_time(self) -> None:
        """What must be written while a commit is under way goes into the next one, all together."""
        self.world = World(*(vm(name) for name in ("a", "bb", "ccc")))
        commits: list[tuple[set[str], Deferred[None]]] = []

        def write(changes: Any, _: str) -> Deferred[None]:
            commits.append(({path.split("/")[2] for path in changes}, Deferred()))
            return commits[-1][1]

        self.patch(self.world.store, "write", write)
        for name in ("a", "bb", "ccc"):
            self.ask(name)
        uuids = [self.world.machine(name).uuid for name in ("a", "bb", "ccc")]
        self.assertEqual([{uuids[0]}], [changed for changed, _ in commits])
        commits[0][1].callback(None)
        self.assertEqual([{uuids[0]}, {uuids[1], uuids[2]}], [changed for changed, _ in commits])

    def test_rests_after_a_long_commit(self) -> None:
        """Statistics are committed no more often than the commits' own length allows; starts are at once."""
        self.world = World(vm("a"), vm("bb"))
        self.ask("a")
        self.world.pump(6)
        commits: list[float] = []

        def write(*_: Any) -> Deferred[None]:
            commits.append(self.world.clock.seconds())
            slow: Deferred[None] = Deferred()
            self.world.clock.callLater(2, slow.callback, None)
            return slow

        self.patch(self.world.store, "write", write)
        for _ in range(60):
            self.ask("a")
            self.world.pump(1)
        self.assertEqual(2, len(commits))
        self.assertGreaterEqual(commits[1] - commits[0], 40)
        self.ask("bb")
        self.assertEqual(3, len(commits))

    def test_nothing_for_a_state_that_does_not_last(self) -> None:
        """Where the state ends with the process, nothing is written, and everything is counted."""
        self.world = World(vm())
        self.world.store.lasting = False
        before = dict(self.world.store.tree)
        self.ask()
        self.ask(host="192.0.2.2")
        self.world.pump(6)
        self.assertEqual(before, self.world.store.tree)
        self.assertEqual(2, self.world.fleet.stats.current(self.world.machine()).total_requests)


class LateStore(MemoryStore):
    """A store whose commits take a third of a second."""

    clock: Clock

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Change the tree, later."""
        write = super().write
        later: Deferred[None] = deferLater(self.clock, 0.3)
        return later.addCallback(lambda _: write(changes, message))


class BusySavingTests(FleetTestCase):
    """What is written down while much happens."""

    def test_starts_and_stops(self) -> None:
        """Statistics are committed within seconds, though others are started and stopped all the time."""
        self.world = World(vm("a", idle=600), vm("bb"))
        store = LateStore(lasting=True)
        store.clock, self.world.store = self.world.clock, store
        self.world.kill()
        self.ask("a")
        self.world.pump(2)
        self.ask("a", host="192.0.2.2")
        for _ in range(8):
            self.world.fleet.operator.start("bb")
            self.world.pump(0.7)
            self.world.fleet.operator.stop("bb")
            self.world.pump(0.7)
        self.assertEqual("2", self.world.remembered("a")["dns/a.jitsu.test/total_requests"])

    def test_asked_before_it_was_found(self) -> None:
        """What is asked for before the hypervisor has answered counts, and is written down."""
        self.world = World(vm(idle=600))
        self.ask()
        self.world.pump(6)
        found: Deferred[str] = Deferred()
        look_up = self.world.backend.look_up
        self.patch(self.world.backend, "look_up", lambda _: found)
        self.world.kill()
        self.ask(host="192.0.2.2")
        self.world.pump(1)
        look_up(self.world.machine().vm).addCallback(found.callback)
        self.world.pump(6)
        self.assertEqual(2, self.world.fleet.stats.current(self.world.machine()).total_requests)
        self.assertEqual("2", self.world.remembered()["dns/www.jitsu.test/total_requests"])
        self.assertEqual(f"{EPOCH + 1006:.3f}", self.world.remembered()["dns/www.jitsu.test/last_request_ts"])


class RetryTests(FleetTestCase):
    """Starts that fail after a client was given the address: it does not ask again."""

    def begin(self, fails: int = 1, faults: type[BackendError] = BackendError, **settings: Any) -> None:
        """Begin with a VM whose start takes two seconds, and fails so many times."""
        self.world = World(vm(boot_time=2.0, **settings.pop("vm", {})), vm("other", boot_time=2.0), **settings)
        start, self.calls = self.world.backend.start, 0

        async def started(uuid: str) -> Any:
            self.calls += 1
            number = self.calls
            how = await start(uuid)
            if number <= fails:
                self.world.backend.guests[uuid].power = Power.OFF
                message = f"no disk, the {number}th time"
                raise faults(message)
            return how

        self.patch(self.world.backend, "start", lambda uuid: Deferred.fromCoroutine(started(uuid)))

    def end(self, seconds: float = 2.2) -> tuple[State, int, int]:
        """Let time pass; return the VM's state, how often its start was tried, and how often that was by itself."""
        self.world.pump(seconds)
        return self.world.machine().state, self.calls, self.world.fleet.journal.totals.retries

    def test_once_more(self) -> None:
        """It is started once more at once, in public, and is up."""
        self.begin()
        with capturedLogs() as logged:
            answers = self.ask()
            self.assertEqual((State.STARTING, 2, 1), self.end())
        self.assertEqual([False], answers)
        (line,) = [text for event in logged if "it is tried once more" in (text := formatEvent(event) or "")]
        self.assertIn("www: its start failed: no disk, the 1th time", line)
        self.assertIn("tried once more, as clients have its address", str(self.world.fleet.journal.decisions("www")))
        self.assertEqual((State.UP, 2, 1), self.end())
        outcomes = [one.outcome for one in self.world.fleet.journal.last_activations("www", 5)]
        self.assertEqual(["up", "failed"], outcomes)
        self.assertEqual(2, self.world.fleet.stats.current(self.world.machine()).total_starts)

    def test_then_rests(self) -> None:
        """Once, and then it rests as after any second failure in a row; a client that asks later has its own try."""
        self.begin(fails=9)
        self.ask()
        self.assertEqual((State.FAILED, 2, 1), self.end(6))
        self.ask()
        self.assertEqual((State.FAILED, 4, 2), self.end(6))
        self.assertTrue(self.world.machine().rests)

    def test_not_without_an_answer(self) -> None:
        """Not if no client has the address: clients that wait are told why, and may ask again."""
        self.begin(answer_by=5.0)
        answers = self.ask()
        self.assertEqual((State.FAILED, 1, 0), self.end())
        self.assertIsInstance(answers[0].value, BootFailed)
        self.world.fleet.operator.start("www").addErrback(lambda _: None)
        self.assertEqual((State.UP, 2, 0), self.end())

    def test_who_waits(self) -> None:
        """Clients that still wait when the first start fails are answered by the second."""
        self.begin()
        self.ask()
        self.world.pump(1.9)
        late = self.ask(host="192.0.2.2")
        self.assertEqual((State.STARTING, 2, 1), self.end(0.5))
        self.assertEqual([], late)
        self.world.pump(1.2)
        self.assertEqual([False], late)

    def test_goes_down(self) -> None:
        """A guest that goes down before it was ready is booted once more, too."""
        self.begin(fails=0, vm={"response_delay": 5.0})
        self.ask()
        self.world.pump(3)
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
        self.assertEqual((State.UP, 2, 1), self.end(7.5))

    def test_in_its_turn(self) -> None:
        """It waits for its turn like others, and takes nothing of a client's budget."""
        self.begin(max_booting=1, starts_per_minute=1)
        self.ask()
        self.world.pump(1)
        self.world.fleet.operator.start("other")
        self.assertEqual((State.QUEUED, 2, 1), self.end(1.05))
        self.assertIs(State.STARTING, self.world.machine("other").state)
        self.assertEqual((State.UP, 3, 1), self.end(5))

    def test_not_if_stopped(self) -> None:
        """Not if a person has stopped it meanwhile."""
        self.begin()
        self.ask()
        self.world.pump(1.5)
        self.world.fleet.operator.stop("www")
        self.assertEqual((State.FAILED, 1, 0), self.end(9))

    def test_not_if_removed(self) -> None:
        """Not if it is being removed."""
        self.begin()
        self.ask()
        self.world.pump(1.5)
        self.world.fleet.dismiss(self.world.machine(), "it is no more")
        self.world.pump(9)
        self.assertEqual((1, 0), (self.calls, self.world.fleet.journal.totals.retries))

    def test_not_if_unknown(self) -> None:
        """Not if the hypervisor has no such VM, or is lost."""
        for kind in (NoSuchVM, BackendLost):
            self.begin(faults=kind)
            self.ask()
            self.assertEqual((1, 0), self.end(9)[1:], kind)

    def test_not_at_the_end(self) -> None:
        """Not while the process ends: what it starts then nobody would look after."""
        self.begin()
        self.ask()
        self.world.pump(1.5)
        self.world.fleet.stop()
        self.assertEqual((1, 0), self.end(9)[1:])

    def test_not_without_room(self) -> None:
        """Not if the host has no memory for it."""
        self.begin()
        self.patch(self.world.backend, "memory", lambda _: deferLater(self.world.clock, 2, lambda: Memory(2, 1)))
        self.ask()
        self.assertEqual((State.FAILED, 0, 0), self.end(9))

    def test_needs(self) -> None:
        """A VM that waits for one whose start fails is queued once more, and that one is started with it."""
        self.begin(vm={"needs": ("other",)})
        self.ask()
        self.assertEqual((State.QUEUED, 2, 1), self.end(3))
        self.assertEqual((State.UP, 3, 1), self.end(6))

    def test_kept(self) -> None:
        """A VM that came up has kept what was promised: when its guest ends, it is not started for that again."""
        self.begin(fails=0)
        self.ask()
        self.assertEqual((State.UP, 1, 0), self.end(20))
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, SHUT_DOWN)
        self.assertEqual((State.OFF, 1, 0), self.end())

    def test_asked_while_it_stops(self) -> None:
        """A client that was given the address while the VM was being stopped gets the VM when that is done."""
        self.begin(fails=0, vm={"mode": Mode.SHUTDOWN, "stop_timeout": 5.0, "idle": 3.0})
        self.ask()
        self.world.pump(3)
        stop, done = self.world.backend.stop, succeed(None)
        self.patch(self.world.backend, "stop", lambda uuid, mode: done if mode is Mode.SHUTDOWN else stop(uuid, mode))
        self.world.pump(3)
        self.assertIs(State.STOPPING, self.world.machine().state)
        answers = self.ask()
        self.world.pump(2)
        self.assertEqual(([False], State.STOPPING), (answers, self.world.machine().state))
        self.world.pump(6)
        self.assertEqual((State.UP, 2), (self.world.machine().state, self.world.starts()))


class FailureTests(FleetTestCase):
    """VMs that fail again and again, that hang, and that cannot go on."""

    def test_back_off(self) -> None:
        """A VM that fails is left alone for longer and longer, while questions are told why, and when it is tried."""
        self.world = World(vm(faults=["start"]))
        failures = []
        for _ in range(300):
            failures += self.ask()
            self.world.pump(0.5, step=0.5)
        self.assertEqual(9, self.world.fleet.stats.current(self.world.machine()).total_starts)
        told = str(failures[-1].value)
        self.assertIn("the start fails", told)
        self.assertIn("tried again in", told)
        self.world.backend.guests[self.world.machine().uuid].vm = vm()
        started: list[Any] = []
        self.world.fleet.operator.start("www").addBoth(started.append)
        self.assertEqual([True], started)

    def test_rest(self) -> None:
        """After a first failure there is no rest; after each further one, twice the last, up to a minute."""
        table = {0: 0.0, 1: 0.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 8.0, 6: 16.0, 7: 32.0, 8: 60.0, 9: 60.0, 500: 60.0}
        self.assertEqual(table, {failures: rest(failures) for failures in table})

    def test_rests_after_the_second(self) -> None:
        """A VM that has failed once is started by the next question; one that has failed twice rests for a second."""
        self.world = World(vm(faults=["start"]))
        machine = self.world.machine()

        def fails() -> tuple[int, float]:
            self.ask()
            self.world.pump(0.01, step=0.01)
            return self.world.fleet.stats.current(machine).total_starts, machine.rests

        self.assertEqual((1, 0.0), fails())
        starts, left = fails()
        self.assertEqual(2, starts)
        self.assertAlmostEqual(1.0, left, places=1)
        self.world.pump(0.9)
        self.assertEqual(2, fails()[0])
        self.world.pump(0.2)
        self.assertEqual(3, fails()[0])

    def test_fails_after_a_while(self) -> None:
        """A VM that comes up and goes down again at once has failed too."""
        self.world = World(vm(faults=["vanish"]))
        for _ in range(60):
            self.ask()
            self.world.pump(1)
        self.assertEqual(7, self.world.starts())

    def test_ends_in_order(self) -> None:
        """A guest that ends by itself after it was ready has done its work: no failure, no rest, as often as it is."""
        for reason in (SHUT_DOWN, ENDED):
            self.world = World(vm())
            for number in range(1, 8):
                self.assertEqual([True], self.ask())
                self.world.pump(1)
                self.world.backend.happen(self.world.machine().uuid, Power.OFF, reason)
                self.assertEqual((State.OFF, 0, number),
                                 (self.world.machine().state, self.world.machine().failures.count, self.world.starts()))

    def test_ends_before_it_is_ready(self) -> None:
        """A guest that ends before it was ready has failed, however it ended; so has one that crashes soon after."""
        for delay, reason in ((5.0, ENDED), (0.5, "the guest crashed")):
            self.world = World(vm(response_delay=delay))
            for _ in range(60):
                self.ask()
                self.world.pump(1)
                if self.world.machine().state in {State.WAITING, State.UP}:
                    self.world.backend.happen(self.world.machine().uuid, Power.OFF, reason)
            self.assertEqual((7, 7), (self.world.starts(), self.world.machine().failures.count), reason)

    def begin_silent(self, sent: int | None = 0, answer_by: float = 100.0, **changes: Any) -> MemoryGuest:
        """Begin with a VM whose port never answers, and that has sent so many packets."""
        self.patch(Port, "wait", lambda *_: Deferred())
        self.patch(MemoryBackend, "reachable", True)  # noqa: FBT003
        self.world = World(vm(wait_for_port=80, idle=600, **changes), answer_by=answer_by)
        guest = self.world.backend.guests[self.world.machine().uuid]
        self.ask()
        guest.sent = sent
        return guest

    def test_silent(self) -> None:
        """A guest with a port that never listens and sends no packet has failed; it is destroyed, and tried again."""
        guest = self.begin_silent(mode=Mode.SAVE)
        self.world.pump(READY_WITHIN - 1, step=1)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.world.pump(2, step=1)
        self.assertEqual((State.FAILED, Power.OFF, 1),
                         (self.world.machine().state, guest.power, self.world.machine().failures.count))
        self.assertIn("has sent no packet", self.world.machine().reason)
        (activation,) = self.world.fleet.journal.last_activations("www", 5)
        self.assertEqual("failed", activation.outcome)
        for failures in (2, 3):
            self.ask()
            self.world.pump(READY_WITHIN + 1, step=1)
            machine = self.world.machine()
            self.assertEqual((State.FAILED, failures), (machine.state, machine.failures.count))
        self.assertIn("tried again in", str(self.ask()[0].value))

    def test_started_and_ended_by_hand(self) -> None:
        """A VM that another program has started, and ends before it is ready, is no failed start of Jitsu's."""
        self.patch(Port, "wait", lambda *_: Deferred())
        self.patch(MemoryBackend, "reachable", True)  # noqa: FBT003
        self.world = World(vm(wait_for_port=80))
        machine = self.world.machine()
        self.world.backend.happen(machine.uuid, Power.RUNNING, "booted by hand")
        self.assertIs(State.WAITING, machine.state)
        self.world.backend.happen(machine.uuid, Power.OFF, "destroyed")
        self.assertEqual((State.FAILED, 0, 0.0), (machine.state, machine.failures.count, machine.rests))

    def test_silent_after_an_answer(self) -> None:
        """If a client was given its address, it is booted once more by itself, and then left alone."""
        guest = self.begin_silent(answer_by=1.2)
        self.world.pump(READY_WITHIN + 1, step=1)
        self.assertEqual((State.WAITING, 2), (self.world.machine().state, guest.boots))
        self.world.pump(READY_WITHIN + 1, step=1)
        self.assertEqual((State.FAILED, 2, 2),
                         (self.world.machine().state, guest.boots, self.world.machine().failures.count))

    def test_not_silent(self) -> None:
        """One that has sent a packet, or that nobody counts, is taken for up; so is one that somebody else started."""
        for sent in (1, None):
            self.begin_silent(sent)
            self.world.pump(READY_WITHIN + 1, step=1)
            self.assertEqual((State.UP, False), (self.world.machine().state, self.world.machine().ready))
        self.begin_silent(faults=["start"])
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
        self.ask()
        self.world.pump(READY_WITHIN + 1, step=1)
        self.assertIs(State.UP, self.world.machine().state)

    def test_busy(self) -> None:
        """One that uses its CPU, as in a long check of its disk, or whose CPU nobody counts, is taken for up."""
        for cpu in (0.5, 0.001, None):
            guest = self.begin_silent()
            for _ in range(round(READY_WITHIN) + 1):
                guest.cpu = None if cpu is None else (guest.cpu or 0.0) + cpu
                self.world.pump(1, step=1)
            machine = self.world.machine()
            self.assertEqual((State.UP, False, 1), (machine.state, machine.ready, guest.boots), cpu)

    def test_was_busy(self) -> None:
        """One that was busy at first and then came to rest without a packet has failed."""
        guest = self.begin_silent()
        for _ in range(round(READY_WITHIN) + 1):
            guest.cpu = min(30.0, (guest.cpu or 0.0) + 1.0)
            self.world.pump(1, step=1)
        self.assertEqual((State.FAILED, Power.OFF), (self.world.machine().state, guest.power))

    def test_silent_and_cannot_be_stopped(self) -> None:
        """If it cannot be destroyed either, it is up, with its problem."""
        self.begin_silent(faults=["stop"])
        self.world.pump(READY_WITHIN + 1, step=1)
        self.assertEqual((State.UP, False), (self.world.machine().state, self.world.machine().ready))
        self.assertIn("cannot be stopped", self.world.fleet.context.problems.of("www")[0])

    def test_steady(self) -> None:
        """A VM that stayed up for a while has not failed, and is booted as soon as it is asked for."""
        self.world = World(vm())
        for _ in range(5):
            self.assertEqual([True], self.ask())
            self.world.pump(11)
            self.world.backend.happen(self.world.machine().uuid, Power.OFF, "destroyed")

    def test_resume_fails(self) -> None:
        """A VM that was paused or saved and cannot go on is booted."""
        for mode in (Mode.PAUSE, Mode.SAVE):
            self.world = World(vm(idle=10, mode=mode, faults=["resume"]))
            self.ask()
            self.world.pump(11)
            self.assertEqual([True], self.ask())
            self.assertEqual(2, self.world.backend.guests[self.world.machine().uuid].boots)

    def test_resumed_but_dead(self) -> None:
        """A VM that was resumed and is not heard of is destroyed and booted, though nobody waits for it any more."""
        self.world = World(vm(idle=10, mode=Mode.PAUSE))
        self.ask()
        self.world.pump(11)
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.vm = vm(faults=["never_ready"])
        self.assertEqual([], self.ask())
        self.world.pump(RESUMED_WITHIN - 1, step=1)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.assertEqual(1, guest.boots)
        guest.vm = vm()
        self.world.pump(1.5, step=0.5)
        self.assertEqual((State.UP, 2), (self.world.machine().state, guest.boots))

    def test_resumed_but_silent(self) -> None:
        """A VM that was resumed, and whose port is silent for Jitsu's host, is kept if it gives a sign of life."""
        for sign in ("packets", "cpu", "uncounted"):
            self.world = World(vm(idle=10, mode=Mode.PAUSE))
            self.ask()
            self.world.pump(11)
            guest = self.world.backend.guests[self.world.machine().uuid]
            guest.vm = vm(faults=["never_ready"])
            if sign == "uncounted":
                guest.sent = None
            self.assertEqual([], self.ask())
            for second in range(round(RESUMED_WITHIN) + 1):
                self.world.pump(1, step=1)
                if sign == "packets" and second % 9 == 0:
                    guest.sent = (guest.sent or 0) + 1
                guest.cpu = (guest.cpu or 0.0) + (0.01 if sign == "cpu" else 0.0)
            machine = self.world.machine()
            self.assertEqual((State.UP, False, 1), (machine.state, machine.ready, guest.boots), sign)

    def test_dies_when_restored(self) -> None:
        """A VM that was restored and dies of it is booted, once, without its image, and who waits never knows."""
        for how in ({"mode": Mode.SAVE}, {"boot_from": Boot.SNAPSHOT}):
            self.world = World(vm(idle=10, **how))
            self.ask()
            self.world.pump(12)
            guest = self.world.backend.guests[self.world.machine().uuid]

            def ready(_: str, guest: Any = guest) -> Deferred[None]:
                if guest.starts > 2:
                    return succeed(None)
                guest.power = Power.OFF
                return fail(BackendError("it went down"))

            self.patch(self.world.backend, "ready", ready)
            answers = self.ask()
            self.world.pump(0.3)
            self.assertEqual([True], answers)
            self.assertEqual((3, 2), (guest.starts, guest.boots))

    def test_nobody_can_tell(self) -> None:
        """A VM that runs, and of which nobody can tell when it is ready, is no failure: it is taken for up."""
        self.world = World(vm(idle=10))
        self.patch(self.world.backend, "ready", lambda _: fail(BackendError("it has no domain number")))
        self.assertEqual([False], self.ask())
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(11)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_no_room_is_no_failure(self) -> None:
        """A VM that its host had no memory for is tried again at once."""
        self.world = World(vm())
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.memory = Memory(needed=2, free=1)
        for _ in range(5):
            self.ask()
        guest.memory = None
        self.assertEqual([True], self.ask())

    def test_not_restarted_after_a_stop(self) -> None:
        """A person's stop ends the restart of a VM that rests before it."""
        self.world = World(vm())
        self.ask()
        self.world.pump(11)
        machine = self.world.machine()
        machine.failures = Failures(3)
        assert machine.activation is not None
        machine.activation.up_at = self.world.clock.seconds()
        machine.restart("dead")
        self.assertIs(State.OFF, machine.state)
        self.world.fleet.operator.stop("www")
        self.world.pump(30)
        self.assertIs(State.OFF, machine.state)


class UnclearTests(FleetTestCase):
    """Calls whose end nobody tells, because the connection broke."""

    def break_off(self, name: str) -> Deferred[Any]:
        """Return what the backend's call *name* gives from now on."""
        call: Deferred[Any] = Deferred()
        self.patch(self.world.backend, name, lambda *_: call)
        return call

    def test_waiting(self) -> None:
        """A VM that runs, but was not ready yet when the connection broke, is ours when that is back."""
        self.world = World(vm(idle=20))
        ready = self.world.backend.ready
        call = self.break_off("ready")
        self.ask()
        self.assertIs(State.WAITING, self.world.machine().state)
        self.patch(self.world.backend, "ready", ready)
        call.errback(BackendLost("the connection broke"))
        self.world.fleet.inventory.lost(self.world.backend, "the connection broke")
        self.world.fleet.inventory.connected(self.world.backend)
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(21)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_started_by_hand_meanwhile(self) -> None:
        """A VM that somebody starts while our start call hangs is known to run when that has failed."""
        self.world = World(vm(idle=20))
        call = self.break_off("start")
        self.ask()
        self.world.backend.happen(self.world.machine().uuid, Power.RUNNING, "booted")
        self.assertIs(State.STARTING, self.world.machine().state)
        call.errback(BackendError("it hangs"))
        self.assertIs(State.UP, self.world.machine().state)


class ImageTests(FleetTestCase):
    """`boot_from: snapshot`."""

    def test_kept_and_restored(self) -> None:
        """The first client does not wait for the image: it is made from a second boot; later starts restore it."""
        self.world = World(vm(idle=10, boot_from=Boot.SNAPSHOT, boot_time=5.0, mode=Mode.DESTROY), answer_by=99)
        answers = self.ask()
        self.world.pump(5.05, step=0.05)
        self.assertEqual([True], answers)
        guest = self.world.backend.guests[self.world.machine().uuid]
        self.assertFalse(guest.image)
        self.world.pump(17)
        self.assertEqual((State.OFF, True), (self.world.machine().state, guest.image))
        answers = self.ask()
        self.world.pump(0.2)
        self.assertEqual([True], answers)
        self.assertEqual((3, 2), (guest.starts, guest.boots))
        self.world.pump(60)
        self.assertEqual(3, guest.starts, "there is an image, so no other is made")

    def test_cannot_be_kept(self) -> None:
        """Where no image can be kept, that is told, tried again ever more seldom, and no client's business."""
        self.world = World(vm(idle=10, boot_from=Boot.SNAPSHOT))
        self.patch(self.world.backend, "keep_image", lambda _: fail(BackendError("the disk is full")))
        self.assertEqual([True], self.ask())
        self.world.pump(3600, step=0.5)
        self.assertTrue(3 < self.world.starts() < 9, self.world.starts())
        (problem,) = self.world.fleet.problems_of(self.world.machine())
        self.assertIn("the disk is full", problem)
        self.assertEqual([True], self.ask())

    def test_stopped_meanwhile(self) -> None:
        """A stop while the image is being kept waits for that."""
        self.world = World(vm(idle=1, boot_from=Boot.SNAPSHOT))
        self.ask()
        self.world.pump(8, step=0.05, until=lambda: self.world.machine().state is State.KEEPING)
        states: list[State] = []
        self.world.fleet.operator.stop("www").addCallback(states.append)
        self.assertIs(State.CANCELLING, self.world.machine().state)
        self.world.pump(0.2)
        self.assertEqual([State.OFF], states)


class GroupTests(FleetTestCase):
    """`needs`: VMs that want others to be up."""

    def begin(self, **settings: Any) -> None:
        """Begin with a web server that needs a database, which needs a disk."""
        self.world = World(
            vm("web", idle=20, boot_time=1.0, needs=("db",)),
            vm("db", idle=10, boot_time=1.0, needs=("disk",)),
            vm("disk", idle=5, boot_time=1.0),
            **{"answer_by": 99, **settings},
        )

    def states(self) -> str:
        """Return the states of all, in words."""
        return " ".join(machine.state.value for machine in self.world.fleet.machines.values())

    def test_in_order(self) -> None:
        """What is needed is up before; also where only one may boot at a time."""
        for settings in ({}, {"max_booting": 1}):
            self.begin(**settings)
            answers = self.ask("web")
            self.assertEqual("queued queued starting", self.states())
            self.world.pump(1.2)
            self.assertEqual("queued starting up", self.states())
            self.world.pump(1.2)
            self.assertEqual("starting up up", self.states())
            self.world.pump(1.2)
            self.assertEqual([True], answers)

    def test_stay(self) -> None:
        """They stay while somebody needs them, and for their lease after that."""
        self.begin()
        self.ask("web")
        self.world.pump(22)
        self.assertEqual("up up up", self.states())
        self.world.pump(2)
        self.assertEqual("off up up", self.states())
        self.world.pump(10)
        self.assertEqual("off off up", self.states())
        self.world.pump(5.2)
        self.assertEqual("off off off", self.states())

    def test_whole_lease(self) -> None:
        """The lease of what a VM needs begins anew when that VM goes down."""
        self.world = World(vm("db", idle=30.0), vm("web", needs=("db",)))
        self.ask("web")
        self.world.pump(7)
        self.world.fleet.operator.stop("web")
        self.world.pump(0.1)
        self.assertIs(State.OFF, self.world.machine("web").state)
        self.assertTrue(29.0 < (self.world.fleet.leases.left(self.world.machine("db")) or 0.0) <= 30.0)

    def test_by_hand(self) -> None:
        """A VM that somebody else has started is not stopped because another one, which needs it, is off."""
        self.world = World(vm("db", idle=5), vm("web", needs=("db",)))
        self.world.backend.happen(self.world.machine("db").uuid, Power.RUNNING, "booted")
        self.world.kill()
        self.world.pump(20)
        self.assertEqual("up off", self.states())

    def test_fails_after_a_start_by_hand(self) -> None:
        """A VM that somebody else starts while it waits for what it needs does not fail with that."""
        self.world = World(vm("db", boot_time=1.0), vm("web", needs=("db",), response_delay=3.0))
        self.ask("web")
        self.world.backend.happen(self.world.machine("web").uuid, Power.RUNNING, "booted")
        self.world.fleet.operator.stop("db")
        self.world.pump(5)
        self.assertEqual("off up", self.states())

    def test_fails(self) -> None:
        """Who needs a VM that cannot be started is told why, and is not started."""
        self.begin()
        self.world.backend.guests[self.world.machine("disk").uuid].vm = vm("disk", faults=["start"])
        failure = self.ask("web")[0]
        self.assertIsInstance(failure.value, BootFailed)
        self.assertIn("web: needs db: needs disk: the start fails", str(failure.value))
        self.assertEqual("failed failed failed", self.states())

    def test_goes_down(self) -> None:
        """If what is needed goes down, who needs it is not warm any more: the next question starts it, and waits."""
        self.begin()
        self.ask("web")
        self.world.pump(3.5)
        self.assertIsNotNone(self.world.fleet.summons.lease("web"))
        moved: list[str] = []
        self.patch(self.world.warm, "moved", lambda machine, _: moved.append(machine.vm.name))
        self.world.pump(10)
        self.world.backend.happen(self.world.machine("db").uuid, Power.OFF, "the guest crashed")
        self.assertIsNone(self.world.fleet.summons.lease("web"))
        self.assertEqual(["db", "web"], moved)
        answers = self.ask("web")
        self.assertEqual([], answers)
        self.world.pump(1.2)
        self.assertEqual([True], answers)
        self.assertEqual((1, 2), (self.world.starts("web"), self.world.starts("db")))

    def test_not_started_for_strangers(self) -> None:
        """Who may not start VMs does not start what a VM needs either, though that one is up."""
        self.begin(summon_from=(ip_network("192.0.2.0/24"),))
        self.ask("web")
        self.world.pump(14)
        self.world.backend.happen(self.world.machine("db").uuid, Power.OFF, "the guest crashed")
        self.assertEqual([False], self.ask("web", host="198.51.100.1"))
        self.assertEqual("up off up", self.states())

    def test_stopped_while_waiting(self) -> None:
        """A VM that was stopped while it waited for what it needs does not start."""
        self.begin()
        self.ask("web")
        self.world.fleet.operator.stop("web")
        self.world.pump(5)
        self.assertEqual(0, self.world.starts("web"))


    def test_needed_while_it_shuts_down(self) -> None:
        """What a VM needs is kept while that is being shut down: it may have to write there."""
        self.begin()
        self.ask("web")
        self.world.pump(3.5)
        self.patch(self.world.backend, "stop", lambda *_: Deferred())
        self.world.fleet.operator.stop("web")
        self.assertIs(State.STOPPING, self.world.machine("web").state)
        self.world.pump(200, step=1)
        self.assertIs(State.UP, self.world.machine("db").state)


class ReconcilingTests(FleetTestCase):
    """VMs that were changed by others."""

    def test_undefined(self) -> None:
        """A VM that was undefined by hand cannot be had, and says why; defined again, by whatever uuid, it can."""
        self.world = World(vm())
        uuid = self.world.machine().uuid
        known = self.world.backend.guests.pop(uuid)
        look_up = self.world.backend.look_up
        self.patch(self.world.backend, "look_up", lambda _: fail(NoSuchVM("no VM www")))
        self.world.fleet.inventory.changed(uuid, "undefined")
        self.world.pump(0.1)
        (failure,) = self.ask()
        self.assertIsInstance(failure.value, NoSuchVM)
        self.assertIn("no VM www", str(failure.value))
        self.world.fleet.inventory.changed("another uuid", "defined")
        self.assertIs(State.UNKNOWN, self.world.machine().state)
        other = "11111111-2222-3333-4444-555555555555"
        self.world.backend.guests[other] = known
        self.patch(self.world.backend, "look_up", lambda _: succeed(other))
        self.world.fleet.inventory.changed(other, "defined")
        self.assertEqual(other, self.world.machine().uuid)
        self.assertEqual([True], self.ask())
        self.patch(self.world.backend, "look_up", look_up)

    def test_undefined_while_it_is_found(self) -> None:
        """A VM undefined between the answers for its uuid and for its state is found when it is defined anew."""
        self.world = World(vm())
        uuid = self.world.machine().uuid
        guests, look_up = self.world.backend.guests, self.world.backend.look_up
        answers = [succeed(uuid), fail(NoSuchVM("no VM www"))]
        self.patch(self.world.backend, "look_up", lambda _: answers.pop(0))
        known = guests.pop(uuid)
        self.world.kill()
        self.world.pump(0.1)
        self.assertIs(State.UNKNOWN, self.world.machine().state)
        self.patch(self.world.backend, "look_up", look_up)
        guests[uuid] = known
        self.world.fleet.inventory.changed(uuid, "defined")
        self.world.pump(0.1)
        self.assertEqual([True], self.ask())

    def test_gone_while_advice_is_asked(self) -> None:
        """A VM that is defined anew while its hypervisor is still asked for advice on it is found."""
        self.world = World(vm())
        old = self.world.machine().uuid
        self.patch(self.world.backend, "advice", lambda _: Deferred())
        look_ups = [fail(NoSuchVM("no VM www")), succeed("another uuid")]
        self.world.fleet.inventory._look_for(self.world.machine())
        self.patch(self.world.backend, "look_up", lambda _: look_ups.pop(0))
        del self.world.backend.guests[old]
        self.world.fleet.inventory.changed(old, "undefined")
        self.world.pump(0.1)
        self.world.fleet.inventory.changed("another uuid", "defined")
        self.assertEqual("another uuid", self.world.machine().uuid)

    def test_strangers(self) -> None:
        """However many other VMs come and go, one that is missing is looked for by one call at a time."""
        self.world = World(vm())
        uuid = self.world.machine().uuid
        del self.world.backend.guests[uuid]
        calls: list[Deferred[str]] = []

        def look_up(_: VM) -> Deferred[str]:
            calls.append(Deferred())
            return calls[-1]

        self.patch(self.world.backend, "look_up", look_up)
        self.world.fleet.inventory.changed(uuid, "undefined")
        self.world.pump(0.1)
        for number in range(2000):
            self.world.fleet.inventory.changed(str(number), "booted")
            self.assertEqual(number + 1, len(calls))
            calls[-1].errback(NoSuchVM("no VM www"))
        calls[-1].errback(NoSuchVM("no VM www"))
        self.world.fleet.inventory.changed("another uuid", "defined")
        calls[-1].callback(uuid)
        self.assertEqual(2002, len(calls))

    def test_another_by_hand(self) -> None:
        """A VM that is created anew by hand, by another uuid, was not asked for through us: it is left alone."""
        self.world = World(vm(idle=10))
        self.ask()
        uuid = self.world.machine().uuid
        del self.world.backend.guests[uuid]
        self.patch(self.world.backend, "look_up", lambda _: fail(NoSuchVM("no VM www")))
        self.world.fleet.inventory.changed(uuid, "destroyed")
        self.world.pump(5)
        other = "11111111-2222-3333-4444-555555555555"
        self.world.backend.guests[other] = by_hand = MemoryGuest(self.world.machine().vm, Power.RUNNING)
        self.patch(self.world.backend, "look_up", lambda _: succeed(other))
        self.world.fleet.inventory.changed(other, "booted")
        self.assertIs(State.UP, self.world.machine().state)
        self.world.pump(60, step=1)
        self.assertIs(Power.RUNNING, by_hand.power)

    def test_undefined_while_up(self) -> None:
        """A VM that went away while it was up has no lease any more, and nobody is told that it is there."""
        self.world = World(vm())
        self.ask()
        uuid = self.world.machine().uuid
        del self.world.backend.guests[uuid]
        self.patch(self.world.backend, "look_up", lambda _: fail(NoSuchVM("no VM www")))
        self.world.fleet.inventory.changed(uuid, "undefined")
        self.assertIsNone(self.world.fleet.summons.lease("www"))
        self.assertIsInstance(self.ask()[0].value, NoSuchVM)

    def test_gone_while_stopping(self) -> None:
        """A VM that goes away while it is being stopped is gone, not up."""
        self.world = World(vm(idle=10))
        self.ask()
        uuid = self.world.machine().uuid
        self.patch(self.world.backend, "stop", lambda *_: fail(NoSuchVM("no VM www")))
        self.patch(self.world.backend, "look_up", lambda _: fail(NoSuchVM("no VM www")))
        self.world.pump(11)
        self.assertIs(State.UNKNOWN, self.world.machine().state)
        self.assertEqual(uuid, self.world.machine().uuid)

    def test_silent_hypervisor(self) -> None:
        """A hypervisor that says nothing at the start is taken for lost, until it does; each reason is logged once."""
        logged: list[str] = []
        remember: Any = lambda event: logged.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(remember)
        self.addCleanup(globalLogPublisher.removeObserver, remember)
        self.patch(MemoryBackend, "connect", lambda *_: None)
        self.world = World(vm())
        inventory, backend = self.world.fleet.inventory, self.world.backend
        self.world.pump(WAITS - 0.5)
        self.assertEqual({"memory": None}, inventory.hypervisors)
        self.world.pump(1)
        self.assertEqual({"memory": NOT_YET}, inventory.hypervisors)
        (failure,) = self.ask()
        self.assertIsInstance(failure.value, BackendLost)
        for reason in (NOT_YET, "it has not answered within 30 s", "it has not answered within 30 s"):
            inventory.lost(backend, reason)
        self.assertEqual(2, len([line for line in logged if line.startswith("memory cannot be asked, ")]))
        inventory.connected(backend)
        self.assertEqual({"memory": None}, inventory.hypervisors)

    def test_quick_hypervisor(self) -> None:
        """A hypervisor that answers, or is lost, is waited for no more."""
        self.world = World(vm())
        self.world.pump(WAITS + 1)
        self.assertEqual({"memory": None}, self.world.fleet.inventory.hypervisors)

    def test_advice(self) -> None:
        """What an operator should read about a VM is logged once, and shown until its hypervisor has no more to say."""
        logged: list[str] = []
        remember: Any = lambda event: logged.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(remember)
        self.addCleanup(globalLogPublisher.removeObserver, remember)
        self.world = World(vm())
        machine = self.world.machine()
        self.world.backend.guests[machine.uuid].advice = ("it is transient",)
        for _ in range(2):
            self.world.fleet.inventory.connected(self.world.backend)
        self.assertEqual(["it is transient"], self.world.fleet.context.problems.of("www"))
        self.assertEqual(1, logged.count("www: it is transient"))
        self.world.backend.guests[machine.uuid].advice = ()
        self.world.fleet.inventory.connected(self.world.backend)
        self.assertEqual([], self.world.fleet.context.problems.of("www"))

    def test_advice_after_a_boot(self) -> None:
        """A definition that was mended is seen at the next boot."""
        self.world = World(vm())
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.advice = ("it is transient",)
        self.world.fleet.inventory.connected(self.world.backend)
        guest.advice = ()
        self.assertEqual(["it is transient"], self.world.fleet.context.problems.of("www"))
        self.ask()
        self.assertEqual([], self.world.fleet.context.problems.of("www"))

    def test_defined_anew_while_stopping(self) -> None:
        """A VM that went away while it was being stopped, and came back by another uuid before that, is found."""
        self.world = World(vm())
        self.ask()
        known = self.world.backend.guests.pop(self.world.machine().uuid)
        known.power = Power.OFF
        other = "11111111-2222-3333-4444-555555555555"
        self.world.backend.guests[other] = known
        self.patch(self.world.backend, "look_up", lambda _: succeed(other))
        self.world.fleet.operator.stop("www")
        self.world.pump(1)
        self.assertEqual((other, State.OFF), (self.world.machine().uuid, self.world.machine().state))

    def test_defined_while_it_is_looked_up(self) -> None:
        """A VM that is defined while we hear that there is none is found."""
        self.world = World(vm())
        first: Deferred[str] = Deferred()
        answers = [first]
        look_up = self.world.backend.look_up
        self.patch(self.world.backend, "look_up", lambda vm: answers.pop() if answers else look_up(vm))
        self.world.kill()
        self.world.fleet.inventory.changed("some uuid", "defined")
        first.errback(NoSuchVM("no VM www"))
        self.assertIs(State.OFF, self.world.machine().state)

    def test_paused_by_hand(self) -> None:
        """A VM that somebody pauses is known to be paused; asked for, it goes on."""
        self.world = World(vm())
        self.ask()
        self.world.pump(11)
        self.world.backend.happen(self.world.machine().uuid, Power.PAUSED, "paused")
        self.assertIs(State.PAUSED, self.world.machine().state)
        self.assertIsNone(self.world.fleet.summons.lease("www"))
        self.assertEqual([True], self.ask())
        self.assertEqual(1, self.world.backend.guests[self.world.machine().uuid].boots)


class RemovedTests(FleetTestCase):
    """VMs that were renamed in, or taken out of, the configuration while Jitsu was off."""

    def begin(self, *configured: VM, **changes: Any) -> MemoryGuest:
        """Begin with a VM a, which is asked for; then only the VMs *configured* are in the configuration."""
        self.world = World(vm("a", **{"idle": 20, "raw": {"name": ("a",), "idle": ("20",)}, **changes}), vm("bb"))
        self.ask("a")
        guest = self.world.backend.guests[self.world.machine("a").uuid]
        self.world.settings = evolve(self.world.settings, vms=configured or (vm("bb"),))
        self.world.kill()
        return guest

    def paths(self, room: str) -> list[str]:
        """Return what the state has of a in a part of it."""
        uuid = str(uuids.uuid5(uuids.NAMESPACE_DNS, "a.memory.jitsu"))
        return [path for path in self.world.store.tree if path.startswith(f"jitsu/{room}/{uuid}/")]

    def test_stopped_when_idle(self) -> None:
        """What Jitsu had started is shown, and stopped by its last mode when it is idle; then it is forgotten."""
        guest = self.begin(mode=Mode.SAVE)
        self.assertIs(State.UP, self.world.machine("a").state)
        self.assertEqual([IS_REMOVED], self.world.fleet.context.problems.of("a"))
        self.assertEqual(1, self.world.fleet.context.problems.counts[Problem.REMOVED])
        self.assertTrue(self.paths("vm"))
        self.world.pump(21)
        self.assertIs(Power.SAVED, guest.power)
        self.assertEqual((["bb"], []), (list(self.world.fleet.machines), self.world.fleet.context.problems.of("a")))
        self.assertEqual(1, sum(self.world.fleet.journal.totals.states.values()))
        self.assertEqual([], self.paths("vm"))
        self.assertTrue(self.paths("stats"))
        self.world.kill()
        self.assertEqual(["bb"], list(self.world.fleet.machines))

    def test_in_use(self) -> None:
        """One that is in use is kept, also by the next process."""
        guest = self.begin()
        for number in range(60):
            self.world.pump(1)
            guest.sent = (guest.sent or 0) + 100
            if number == 30:
                self.world.kill()
        self.assertIs(State.UP, self.world.machine("a").state)
        self.world.pump(25)
        self.assertIs(Power.OFF, guest.power)

    def test_down_already(self) -> None:
        """One that is down, or was not started by Jitsu, is no concern; its configuration goes out of the state."""
        guest = self.begin(vm("a"), vm("bb"))
        self.world.settings = evolve(self.world.settings, vms=(vm("bb"),))
        guest.power = Power.OFF
        self.world.kill()
        self.world.pump(1)
        self.assertEqual((["bb"], []), (list(self.world.fleet.machines), self.paths("vm")))
        guest.power = Power.RUNNING
        self.world.kill()
        self.world.pump(100, step=1)
        self.assertEqual((["bb"], Power.RUNNING), (list(self.world.fleet.machines), guest.power))

    def test_renamed(self) -> None:
        """One that was renamed, and is the same but for its name and names, is the same VM: it is adopted."""
        said = {"name": ("new",), "idle": ("20",)}
        guest = self.begin(vm("new", ip=vm("a").ip, idle=20, raw=said), vm("bb"))
        self.assertEqual((State.UP, ["new", "bb"]), (self.world.machine("new").state, list(self.world.fleet.machines)))
        self.assertEqual([True], self.ask("new"))
        self.assertEqual(1, guest.starts)
        self.world.pump(6)
        self.assertEqual("new", self.world.store.tree[f"jitsu/vm/{self.world.machine('new').uuid}/config/name/0"])

    def test_address_taken(self) -> None:
        """One whose address another VM has now is stopped at once."""
        guest = self.begin(vm("new", ip=vm("a").ip, mode=Mode.SAVE), vm("bb"))
        self.world.pump(1)
        self.assertEqual((Power.OFF, ["new", "bb"]), (guest.power, list(self.world.fleet.machines)))

    def test_name_taken(self) -> None:
        """One whose name another VM has now, with another uuid, is shown by its uuid too."""
        uuid = "11111111-2222-3333-4444-555555555555"
        guest = self.begin(vm("a", uuid=uuid, ip=vm("ccc").ip))
        (name,) = set(self.world.fleet.machines) - {"a"}
        self.assertIn(self.world.machine(name).uuid, name)
        self.world.pump(21)
        self.assertEqual((Power.OFF, ["a"]), (guest.power, list(self.world.fleet.machines)))

    def test_gone(self) -> None:
        """One that its hypervisor does not know any more is forgotten, and not looked for again."""
        looks: list[str] = []
        look_up = MemoryBackend.look_up

        def unknown(backend: MemoryBackend, one: VM) -> Deferred[str]:
            looks.append(one.name)
            return fail(NoSuchVM(f"no VM {one.name}")) if one.removed else look_up(backend, one)

        self.patch(MemoryBackend, "look_up", unknown)
        self.begin()
        self.world.pump(1)
        self.assertEqual((["bb"], []), (list(self.world.fleet.machines), self.paths("vm")))
        looks.clear()
        self.world.kill()
        self.world.pump(10)
        self.assertEqual({"bb"}, set(looks))

    def test_not_found(self) -> None:
        """A VM that the configuration has is none of them while its hypervisor does not know it."""
        self.begin(vm("a"), vm("bb"))
        looks: list[str] = []

        def unknown(_: MemoryBackend, one: VM) -> Deferred[str]:
            looks.append(one.name)
            return fail(NoSuchVM(f"no VM {one.name}"))

        self.patch(MemoryBackend, "look_up", unknown)
        self.world.kill()
        self.world.pump(1)
        self.assertEqual({"a", "bb"}, set(looks))

    def test_another_uri(self) -> None:
        """One that is the same VM by another URI, which is found there by its uuid, is no other VM."""
        uuid = "11111111-2222-3333-4444-555555555555"
        guest = self.begin(vm("new", uuid=uuid, connect="near"), uuid=uuid)
        self.world.pump(60, step=1)
        self.assertEqual((["new"], Power.RUNNING), (list(self.world.fleet.machines), guest.power))

    def test_while_another_is_looked_for(self) -> None:
        """One is found while the uuid of another VM, that may be it, is not known, only when it is."""
        self.world = World(vm("a", idle=20, raw={"name": ("a",)}), vm("bb"))
        self.ask("a")
        found: Deferred[str] = Deferred()
        look_up = MemoryBackend.look_up
        late = vm("late")
        self.patch(MemoryBackend, "look_up", lambda own, one: found if one.name == "late" else look_up(own, one))
        self.world.settings = evolve(self.world.settings, vms=(late, vm("bb")))
        self.world.kill()
        self.world.pump(1)
        self.assertEqual({"late", "bb"}, self.world.fleet.machines.keys())
        found.callback(self.successResultOf(look_up(self.world.backend, late)))
        self.assertEqual({"late", "bb", "a"}, self.world.fleet.machines.keys())

    def test_not_configured(self) -> None:
        """One is none of the configuration's: its name and its address are free."""
        self.begin()
        running = LiveConfig(Settings(), self.world.fleet, Zones(()), lambda _: None)
        self.assertEqual(["bb"], [one.name for one in running.vms])

    def test_name_is_anothers(self) -> None:
        """A VM that gets the name of one, and was started by hand, is left alone; the one before is still stopped."""
        before = self.begin()
        other = "11111111-2222-3333-4444-555555555555"
        new = vm("a", idle=20, uuid=other, dns=())
        self.world.backend.guests[other] = by_hand = MemoryGuest(new, Power.RUNNING)
        LiveConfig(Settings(), self.world.fleet, Zones(()), lambda _: None).apply(ConfigChange(added=(new,)))
        machine = self.world.machine("a")
        self.assertEqual((other, State.UP, None), (machine.uuid, machine.state, self.world.fleet.summons.lease("a")))
        self.world.pump(60, step=1)
        self.assertEqual((Power.RUNNING, Power.OFF), (by_hand.power, before.power))
        self.assertEqual(["bb", "a"], list(self.world.fleet.machines))
        self.ask("a")
        self.world.pump(60, step=1)
        self.assertIs(Power.OFF, by_hand.power)

    def test_cannot_be_stopped(self) -> None:
        """One that cannot be stopped stays in sight."""
        guest = self.begin()
        guest.vm = vm("a", faults=["stop"])
        self.patch(self.world.backend, "look_up", lambda _: succeed(self.world.machine("a").uuid))
        self.world.pump(25)
        self.assertEqual((State.UP, 2), (self.world.machine("a").state, len(self.world.fleet.context.problems.of("a"))))

    def test_taken_out_while_jitsu_runs(self) -> None:
        """One that is taken out by a request and cannot be stopped stays in sight until it can."""
        self.world = World(vm("a", idle=20, faults=["stop"]), vm("bb"))
        self.ask("a")
        guest = self.world.backend.guests[self.world.machine("a").uuid]
        self.world.fleet.dismiss(self.world.machine("a"), "it is no more")
        self.world.pump(1)
        self.assertEqual((State.UP, ()), (self.world.machine("a").state, self.world.machine("a").vm.dns))
        self.assertIn(IS_REMOVED, self.world.fleet.context.problems.of("a"))
        guest.vm = vm("a")
        self.world.pump(200, step=1)
        self.assertEqual((Power.OFF, ["bb"]), (guest.power, list(self.world.fleet.machines)))

    def test_another_hypervisor(self) -> None:
        """One at a hypervisor where no VM of the configuration is, is asked for there."""
        self.world = World(vm("a", connect="far", raw={"name": ("a",)}), vm("bb"))
        self.ask("a")
        far = self.world.fleet.machines["a"].backend
        self.world.settings = evolve(self.world.settings, vms=(vm("bb"),))
        asked: list[str] = []
        look_up = MemoryBackend.look_up

        def noted(backend: MemoryBackend, one: VM) -> Deferred[str]:
            asked.append(f"{one.connect} {one.name}")
            return look_up(backend, one)

        self.patch(MemoryBackend, "look_up", noted)
        self.world.kill()
        self.assertIn("far a", asked)
        self.assertIn("memory far", self.world.fleet.inventory.hypervisors)
        self.assertIsNot(far, self.world.backend)


class ManyTests(SynchronousTestCase):
    """The statistics of very many VMs."""

    def test_in_slices(self) -> None:
        """They are not put into words in one go: others have their turn meanwhile."""
        self.patch(persistence, "SLICE", 10)
        names = [f"vm{number}" for number in range(1, 46)]
        world = World(*(vm(name, ip=f"10.1.0.{number}") for number, name in enumerate(names, 1)))
        stats = world.fleet.stats
        uses = [(name, stats.use_of(world.machine(name), question(name).key), 2, 1001.0) for name in names]
        self.patch(world.warm, "taken", lambda: [uses.pop() for _ in list(uses)])
        meanwhile: list[int] = []

        def written() -> list[str]:
            return [world.remembered(name)["total_starts"] for name in names if world.remembered(name)]

        world.clock.callLater(COMMIT_EVERY, lambda: meanwhile.append(len(written())))
        world.clock.advance(COMMIT_EVERY)
        self.assertEqual([0], meanwhile)
        self.assertEqual(["0"] * 45, written())
