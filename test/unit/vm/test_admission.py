"""Room and turns: who may boot, and who makes room; on a clock, with VMs of memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from jitsu_tw.errors import BootFailed, NoCapacity
from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.rules.lifecycle import RUNNING, State
from jitsu_tw.settings import Evidence, Mode, WhenFull
from test.support import World, vm
from test.unit.vm.test_fleet import FleetTestCase


class TurnTests(FleetTestCase):
    """`max_booting`."""

    def test_fair(self) -> None:
        """A network that asks for many VMs does not make another one wait for all of them."""
        names = ["a" * number for number in range(1, 7)]
        self.world = World(*(vm(name, boot_time=1.0) for name in [*names, "other"]), max_booting=1, answer_by=99)
        for name in names:
            self.ask(name)
        other = self.ask("other", host="198.51.100.1")
        self.world.pump(3.3)
        self.assertEqual([True], other)
        self.assertEqual(2, sum(self.world.machine(name).state is State.UP for name in names))

    def test_forged(self) -> None:
        """Questions that name many forged networks make a client that has proven its address wait for one of them."""
        names = ["a" * number for number in range(1, 7)]
        self.world = World(*(vm(name, boot_time=1.0) for name in [*names, "other"]), max_booting=1, answer_by=99)
        for number, name in enumerate(names):
            self.ask(name, host=f"10.0.{number}.1", proven=False)
        other = self.ask("other", host="198.51.100.1")
        self.world.pump(3.3)
        self.assertEqual([True], other)

    def test_all_in_the_end(self) -> None:
        """All get their turn, also when some fail."""
        names = ["a" * number for number in range(1, 13)]
        vms = [vm(name, boot_time=0.5, faults=["start"] if len(name) % 3 == 0 else []) for name in names]
        self.world = World(*vms, max_booting=2, answer_by=99)
        answers = [self.ask(name) for name in names]
        self.world.pump(6)
        for name, (answer,) in zip(names, answers, strict=True):
            if len(name) % 3 == 0:
                self.assertIsInstance(answer.value, BootFailed)
            else:
                self.assertTrue(answer)


class RoomTests(FleetTestCase):
    """`max_running` and the host's memory."""

    def begin(self, names: str = "a bb ccc", **settings: Any) -> None:
        """Begin with VMs of those names, and room for two."""
        vms = [vm(name, idle=600, min_up=10 if name == "a" else 0) for name in names.split()]
        self.world = World(*vms, **{"max_running": 2, "when_full": WhenFull.STOP_IDLE, **settings})

    def states(self) -> list[State]:
        """Return the states of all VMs."""
        return [machine.state for machine in self.world.fleet.machines.values()]

    def test_refuses(self) -> None:
        """With `when_full: refuse`, a start more than may run is refused; nothing is stopped for it."""
        self.begin(when_full=WhenFull.REFUSE)
        self.assertEqual([[True], [True]], [self.ask("a"), self.ask("bb")])
        self.assertIsInstance(self.ask("ccc")[0].value, NoCapacity)
        self.assertEqual([State.UP, State.UP, State.OFF], self.states())
        self.world.pump(20)
        started: list[Any] = []
        self.world.fleet.operator.start("ccc").addBoth(started.append)
        self.world.pump(1)
        self.assertIsInstance(started[0].value, NoCapacity)
        self.assertEqual([State.UP, State.UP, State.OFF], self.states())

    def test_stops_the_idlest(self) -> None:
        """With `when_full: stop_idle`, the VM that is idle the longest, past its `min_up`, makes room."""
        self.begin()
        self.ask("a")
        self.world.pump(1)
        self.ask("bb")
        self.world.pump(6)
        answers = self.ask("ccc")
        self.world.pump(0.5)
        self.assertEqual([True], answers)
        self.assertEqual([State.UP, State.OFF, State.UP], self.states())
        self.world.pump(10)
        self.ask("ccc")
        self.world.pump(1)
        self.ask("bb")
        self.world.pump(0.5)
        self.assertEqual([State.OFF, State.UP, State.UP], self.states())

    def test_longest(self) -> None:
        """Of several VMs that may be stopped, the one that was used first makes room."""
        self.begin("bb ccc dddd")
        for name in ("ccc", "bb", "dddd"):
            self.ask(name)
            self.world.pump(7)
        self.assertEqual([State.UP, State.OFF, State.UP], self.states())

    def test_in_use(self) -> None:
        """A VM whose guest transmits is not idle."""
        self.begin()
        self.ask("bb")
        guest = self.world.backend.guests[self.world.machine("bb").uuid]
        guest.sent = 0
        self.world.fleet.leases.grant(self.world.machine("bb"), self.world.clock.seconds(), 0.0, is_new=True)
        self.world.pump(0.5)
        self.ask("a")
        self.world.pump(11)
        guest.sent += 1000
        self.ask("ccc")
        self.world.pump(0.5)
        self.assertEqual([State.OFF, State.UP, State.UP], self.states())

    def test_not_counted_yet(self) -> None:
        """A VM of which it is not known yet whether it is in use makes no room."""
        self.begin()
        self.ask("bb")
        self.world.pump(1)
        self.ask("a")
        self.world.pump(20)
        traffic = self.world.backend.traffic
        self.patch(self.world.backend, "traffic", lambda _: Deferred())
        long_ago = self.world.clock.seconds() - 100
        self.world.fleet.leases.grant(self.world.machine("bb"), long_ago, long_ago, is_new=False)
        self.ask("ccc")
        self.world.pump(0.5)
        self.assertIs(State.UP, self.world.machine("bb").state)
        self.patch(self.world.backend, "traffic", traffic)

    def test_uncounted(self) -> None:
        """A VM whose packets nobody counts makes no room; one that cannot be saved makes none; the next one does."""
        modes = {"a": Mode.SAVE, "bb": Mode.DESTROY, "ccc": Mode.DESTROY, "dddd": Mode.DESTROY}
        self.world = World(*(vm(name, idle=600, mode=mode) for name, mode in modes.items()), max_running=3,
                           when_full=WhenFull.STOP_IDLE)
        guests = {name: self.world.backend.guests[self.world.machine(name).uuid] for name in modes}
        guests["a"].obstacles[Mode.SAVE] = "its nvme disk cannot be saved"
        guests["bb"].sent = None
        for name in ("a", "bb", "ccc"):
            self.ask(name)
            self.world.pump(10)
        self.ask("dddd")
        self.world.pump(0.5)
        self.assertEqual([State.UP, State.UP, State.OFF, State.UP], self.states())

    def test_by_queries(self) -> None:
        """A VM of which only questions are evidence makes room when nobody has asked for it lately."""
        self.world = World(*(vm(name, idle=600, evidence=Evidence.QUERIES) for name in ("a", "bb")), max_running=1,
                           when_full=WhenFull.STOP_IDLE)
        self.ask("a")
        self.world.pump(10)
        answers = self.ask("bb")
        self.world.pump(0.5)
        self.assertEqual([True], answers)
        self.assertEqual([State.OFF, State.UP], self.states())

    def test_no_room_to_make(self) -> None:
        """Where nobody may be stopped, the start is refused, and says why; the VM has not failed."""
        self.begin("a aa")
        self.world = World(*(vm(name, idle=600, min_up=60) for name in ("a", "bb", "ccc")), max_running=2,
                           when_full=WhenFull.STOP_IDLE)
        self.ask("a")
        self.ask("bb")
        answers = self.ask("ccc")
        self.world.pump(0.5)
        self.assertIsInstance(answers[0].value, NoCapacity)
        self.assertIn("as many virtual machines run as may", str(answers[0].value))
        self.assertEqual([State.UP, State.UP, State.OFF], self.states())
        self.assertEqual(0, self.world.machine("ccc").failures.count)

    def test_a_crowd(self) -> None:
        """Never more run than may, however many are asked for; nobody who was just used makes room."""
        names = ["a" * number for number in range(1, 21)]
        self.world = World(*(vm(name, boot_time=0.5) for name in names), max_running=3, answer_by=99,
                           when_full=WhenFull.STOP_IDLE)
        answers = []
        for name in names:
            answers.append(self.ask(name))
            self.world.pump(1)
            running = sum(machine.state in RUNNING for machine in self.world.fleet.machines.values())
            self.assertLessEqual(running, 3)
        refused = [isinstance(answer, Failure) and isinstance(answer.value, NoCapacity) for (answer,) in answers]
        self.assertEqual(sum(not one for one in refused), sum(self.world.starts(name) for name in names))
        self.assertTrue(9 <= sum(refused) <= 11, refused)

    def count_slowly(self, name: str, sent: int = 0) -> None:
        """Let the packets of a guest be counted; the hypervisor takes a tenth of a second to tell."""
        self.world.backend.guests[self.world.machine(name).uuid].sent = sent
        traffic = self.world.backend.traffic
        self.patch(
            self.world.backend, "traffic", lambda uuid: deferLater(self.world.clock, 0.1, traffic, uuid)
        )
        self.world.fleet.leases.grant(self.world.machine(name), self.world.clock.seconds(), 0.0, is_new=True)

    def test_asked_for_meanwhile(self) -> None:
        """A VM that is asked for while it is seen whether its guest transmits does not make room."""
        self.begin()
        self.ask("bb")
        self.count_slowly("bb")
        self.world.pump(0.5)
        self.ask("a")
        self.world.pump(6)
        self.ask("ccc")
        self.world.pump(0.05, step=0.05)
        self.ask("bb")
        self.world.pump(0.5)
        self.assertIs(State.UP, self.world.machine("bb").state)

    def test_found_in_use(self) -> None:
        """A VM that was in use when Jitsu was killed does not make room before it has been seen that it is not."""
        self.begin()
        self.ask("bb")
        self.ask("a")
        guest = self.world.backend.guests[self.world.machine("bb").uuid]
        guest.sent = 0
        self.world.pump(5)
        self.ask("a")
        self.world.pump(6)
        self.world.kill()
        self.ask("ccc")
        self.world.pump(0.5)
        self.assertIs(State.UP, self.world.machine("bb").state)

    def test_waits_for_who_leaves(self) -> None:
        """While one VM takes its time to stop, and no other may, the queue waits, and does nothing else."""
        names = ["a" * number for number in range(1, 5)]
        self.world = World(*(vm(name, idle=600, min_up=60 if name == "aa" else 0) for name in names), max_running=2,
                           when_full=WhenFull.STOP_IDLE, answer_by=99)
        self.ask("a")
        self.ask("aa")
        self.world.pump(6)
        stopped: Deferred[None] = Deferred()
        stop = self.world.backend.stop
        self.patch(self.world.backend, "stop", lambda *_: stopped)
        third, fourth = self.ask("aaa"), self.ask("aaaa")
        self.world.clock.advance(0)
        for _ in range(20):
            self.world.clock.advance(0)
        self.assertFalse([call for call in self.world.clock.getDelayedCalls() if call.getTime() <= 1006])
        self.assertEqual([[], []], [third, fourth])
        stop(self.world.machine("a").uuid, Mode.DESTROY)
        stopped.callback(None)
        self.world.pump(0.5)
        self.assertEqual([True], third)

    def test_started_by_hand_in_the_queue(self) -> None:
        """A VM that somebody else starts while it waits its turn is not stopped when its turn comes to nothing."""
        self.world = World(*(vm(name, idle=600, min_up=600) for name in ("a", "bb", "ccc")), max_running=2,
                           when_full=WhenFull.STOP_IDLE, answer_by=99)
        self.ask("a")
        self.ask("bb")
        self.count_slowly("a")
        self.world.fleet.leases.lease("a").min_up = 0  # type: ignore[union-attr]
        self.world.pump(6)
        self.ask("ccc")
        self.world.pump(0.05, step=0.05)
        self.ask("a")
        self.world.backend.happen(self.world.machine("ccc").uuid, Power.RUNNING, "booted")
        self.world.pump(1)
        self.assertIs(State.UP, self.world.machine("ccc").state)

    def test_memory(self) -> None:
        """A VM that its host has no memory for is not started, and the answer says what lacks."""
        self.begin("a")
        guest = self.world.backend.guests[self.world.machine("a").uuid]
        guest.memory = Memory(needed=512 << 20, free=100 << 20)
        failure = self.ask("a")[0]
        self.assertIsInstance(failure.value, NoCapacity)
        self.assertIn("needs 512 MiB of memory, 100 are free", str(failure.value))
        self.assertEqual(0, guest.starts)
        guest.memory = Memory(needed=512 << 20, free=600 << 20)
        self.assertEqual([True], self.ask("a"))

    def test_queued_twice(self) -> None:
        """A VM that was stopped in the queue and asked for again has one turn; once it is up, nothing refuses it."""
        vms = vm("a", boot_time=2.0), vm("bb", boot_time=1.0)
        self.world = World(*vms, max_booting=1, max_running=2, when_full=WhenFull.STOP_IDLE, answer_by=99)
        self.ask("a")
        self.ask("bb")
        self.world.fleet.operator.stop("bb")
        answers = self.ask("bb")
        self.world.pump(10)
        self.assertEqual([True], answers)
        self.assertEqual([State.UP, State.UP], self.states())
