"""Several Jitsus that share VMs: fleets on one clock, which agree by a table of memory."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import fail
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import Fault, MemoryBackend
from jitsu_tw.backends.pool import Pool
from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.errors import BackendError, BootFailed, ClusterUnavailable, JitsuError
from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import HOSTS, Mode, OnHostLoss, Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm.fleet import Fleet
from test.support import EPOCH, BoundedClock, question, vm

if TYPE_CHECKING:
    from twisted.internet.task import Clock

    from jitsu_tw.ijitsu import IWatcher
    from jitsu_tw.settings import VM


class Host(MemoryBackend):
    """A hypervisor that several connect to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(reactor=clock)
        self.watchers: list[IWatcher] = []
        self._watcher = self  # type: ignore[assignment]

    def connect(self, watcher: IWatcher) -> None:
        """Have one more who is told."""
        self.watchers.append(watcher)
        watcher.connected(self)

    def changed(self, uuid: str, reason: str) -> None:
        """Tell all of them."""
        for watcher in list(self.watchers):
            watcher.changed(uuid, reason)


class Mortal:
    """A process's part of the clock: nothing happens in it when it is dead."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.alive = clock, True

    def seconds(self) -> float:
        """Return the clock's time."""
        return self.clock.seconds()

    def callLater(self, delay: float, call: Any, *args: Any, **kw: Any) -> Any:  # noqa: N802
        """Call something later, if the process lives by then."""
        return self.clock.callLater(delay, lambda: self.alive and call(*args, **kw))


class Node:
    """One of the Jitsus."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place = name, place
        self.reactor = Mortal(place.clock)
        self.coordinator = MemoryCoordinator(name, place.table)
        clocks = Clocks(self.reactor, place.clock.seconds, lambda: EPOCH + place.clock.seconds())  # type: ignore[arg-type]
        backends: dict[tuple[str, str], Any] = {("memory", ""): place.host}
        self.pool = Pool(place.hosts, place.clock.seconds)
        if place.hosts:
            backends[HOSTS, ""] = self.pool
        pool = self.pool if place.hosts else None
        make_cluster = partial(Membership, place.settings, pool, self.coordinator, clocks)
        self.fleet = Fleet(place.settings, backends, MemoryStore(lasting=True), clocks, make_cluster)
        self.answers: list[Any] = []
        self.fleet.start({})

    def ask(self, name: str = "www") -> None:
        """Ask for a VM."""
        self.fleet.summons.summon(name, question(name)).addBoth(self.answers.append)

    def state(self, name: str = "www") -> State:
        """Return what it believes of a VM."""
        return self.fleet.machines[name].state

    def kill(self) -> None:
        """End it as `kill -9` does, at a moment when it does nothing."""
        self.reactor.alive = False
        self.coordinator.die()
        self.place.forget(self)


class Place:
    """Three Jitsus and a hypervisor."""

    def __init__(self, *vms: VM, nodes: int = 3, **settings: Any) -> None:
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.table = Table(self.clock)
        self.host = Host(self.clock)
        self.hosts: dict[str, Host] = {}
        self.settings = Settings(vms=vms, **settings)
        self.nodes = [Node(f"ns{number}", self) for number in range(1, nodes + 1)]
        self.run(0.1)

    def run(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass."""
        self.clock.pump([step] * round(seconds / step))

    def forget(self, node: Node) -> None:
        """Tell a node nothing more."""
        self.host.watchers.remove(node.fleet.inventory)

    @property
    def guest(self) -> Any:
        """The first VM at its hypervisor."""
        return next(iter(self.host.guests.values()))

    def facts(self) -> dict[str, str]:
        """Return what is agreed on of VMs."""
        return {key: value for key, value in self.table.facts.items() if not key.startswith("nodes/")}

    def owner(self) -> str | None:
        """Return who has the first VM, as all of them believe."""
        fleets = [node.fleet for node in self.nodes if node.reactor.alive]
        owners = {fleet.cluster.ownership.owner(fleet.machines["www"]) for fleet in fleets}
        assert len(owners) == 1, owners
        return owners.pop()


class HostsPlace(Place):
    """Three Jitsus and two hosts."""

    def __init__(self, *vms: VM, nodes: int = 3, **settings: Any) -> None:
        super().__init__(nodes=0)
        self.hosts = {"left": Host(self.clock), "right": Host(self.clock)}
        self.settings = Settings(vms=vms, **settings)
        self.nodes = [Node(f"ns{number}", self) for number in range(1, nodes + 1)]
        self.run(0.1)

    def forget(self, node: Node) -> None:
        """Tell a node nothing more."""
        for host in self.hosts.values():
            host.watchers.remove(node.pool)
        super().forget(node)

    def running(self) -> list[str]:
        """Return on which hosts the first VM runs."""
        return [name for name, host in self.hosts.items() for guest in list(host.guests.values())[:1]
                if guest.power is Power.RUNNING]

    def lose(self, name: str) -> None:
        """Have all nodes lose a host, with what it says."""
        for node in self.nodes:
            node.pool.lost(self.hosts[name], "the cable is out")

    def order(self, name: str, fault: Fault) -> None:
        """Let the first VM have a fault on one host."""
        (guest,) = list(self.hosts[name].guests.values())[:1]
        guest.vm = vm(faults=[fault.value])


class SharingTests(SynchronousTestCase):
    """What three of them do."""

    def test_one_start(self) -> None:
        """Asked all at once, one starts the VM; all answer when it is ready."""
        place = Place(vm(boot_time=0.5, response_delay=0.2))
        for node in place.nodes:
            node.ask()
        place.run(0.6)
        self.assertEqual([[], [], []], [node.answers for node in place.nodes])
        place.run(0.3)
        self.assertEqual([[True]] * 3, [node.answers for node in place.nodes])
        self.assertEqual(1, place.guest.starts)
        self.assertIsNotNone(place.owner())

    def test_own_word(self) -> None:
        """Who does not have the VM takes it for ready when its owner says so, and tries nothing itself."""
        place = Place(vm(boot_time=0.1, response_delay=0.9))
        place.nodes[0].ask()
        place.run(0.3)
        place.nodes[1].ask()
        place.run(0.5)
        self.assertEqual([State.WAITING] * 3, [node.state() for node in place.nodes])
        place.run(0.3)
        self.assertEqual([[True], [True]], [node.answers for node in place.nodes[:2]])

    def test_failure_is_everybodys(self) -> None:
        """A start that fails is failed for all who wait, with its owner's reason; nobody tries at the same time."""
        place = Place(vm(faults=["start"]))
        for node in place.nodes:
            node.ask()
        place.run(0.2)
        for node in place.nodes:
            (failure,) = node.answers
            failure.trap(BootFailed)
            self.assertIn("the start fails, as it was told to", failure.getErrorMessage())
        self.assertIsNone(place.owner())

    def test_use_anywhere(self) -> None:
        """A question to any of them keeps the VM up; it is stopped when nobody asks any more, by its owner, once."""
        place = Place(vm(idle=10.0))
        place.nodes[0].ask()
        place.run(1.0)
        for _ in range(6):
            place.nodes[2].ask()
            place.run(5.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(12.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual(1, place.guest.starts)
        self.assertEqual([State.OFF] * 3, [node.state() for node in place.nodes])
        self.assertEqual({}, place.facts())

    def test_counted(self) -> None:
        """A VM whose packets are counted is stopped as well, though it is looked at more often than its end is near."""
        place = Place(vm(idle=10.0))
        place.guest.sent = 0
        place.nodes[0].ask()
        place.run(20.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual({}, place.facts())

    def test_traffic_is_told(self) -> None:
        """That a guest is in use without being asked for is told the other nodes: one of them may be its next owner."""
        place = Place(vm(idle=40.0))
        place.guest.sent = 0
        place.nodes[0].ask()
        for _ in range(60):
            place.guest.sent += 1000
            place.run(1.0, 0.05)
        ago = EPOCH + place.clock.seconds() - float(place.facts()["used/www"])
        self.assertTrue(0.0 <= ago < 10.0, ago)

    def test_sends_after_notice(self) -> None:
        """A guest that sends after it was said that it is to be stopped goes on."""
        place = Place(vm(idle=10.0))
        place.guest.sent = 0
        place.nodes[0].ask()
        place.run(10.3, 0.05)
        self.assertEqual(State.OWNER_STOPPING, place.nodes[1].state())
        place.guest.sent = 1000
        place.run(5.0, 0.05)
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])

    def test_notice(self) -> None:
        """Who is asked in the moment before a stop says so, and waits until its owner goes on with the VM."""
        place = Place(vm(idle=10.0))
        place.nodes[0].ask()
        place.run(10.3)
        self.assertEqual([State.UP, State.OWNER_STOPPING, State.OWNER_STOPPING], [node.state() for node in place.nodes])
        place.nodes[1].ask()
        place.run(0.2)
        self.assertEqual([True], place.nodes[1].answers)
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
        place.run(9.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        self.assertEqual(1, place.guest.starts)

    def test_told_seldom(self) -> None:
        """That a VM is used is told some times in the time of its lease, however often that is; and before its end."""
        place = Place(vm(idle=80.0))
        place.nodes[0].ask()
        place.run(1.0)
        told: list[str] = []
        coordinator: Any = place.nodes[1].coordinator
        put = coordinator.put

        def hear(facts: dict[str, str], holding: str = "") -> Any:
            told.extend(facts)
            return put(facts, holding)

        coordinator.put = hear
        for _ in range(80):
            place.nodes[1].ask()
            place.run(1.0, 0.05)
        self.assertIn(told.count("used/www"), range(7, 10))
        place.run(76.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(10.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual({}, place.facts())

    def test_looked_for_seldom(self) -> None:
        """Where all leases are long, what was used is not counted each second to tell it."""
        place = Place(vm(idle=320.0))
        looks: list[float] = []
        usage = place.nodes[1].fleet.cluster.ownership._usage  # type: ignore[attr-defined]
        self.patch(usage, "_gather", lambda: looks.append(place.clock.seconds()))
        place.run(40.0, 0.5)
        self.assertIn(len(looks), range(3, 6))

    def test_told_again(self) -> None:
        """A use that could not be told is told when it can be."""
        place = Place(vm(idle=10.0))
        place.nodes[0].ask()
        place.run(8.0, 0.05)
        place.nodes[1].coordinator.cut()
        place.nodes[1].ask()
        place.run(1.5, 0.05)
        place.nodes[1].coordinator.heal()
        place.run(7.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(5.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)

    def test_notice_that_nobody_can_answer(self) -> None:
        """Nobody stops a VM while the others, who have notice, cannot say that it is used."""
        place = Place(vm(idle=10.0), answer_by=5.0)
        place.nodes[0].ask()
        place.run(10.3)
        self.assertEqual(State.OWNER_STOPPING, place.nodes[1].state())
        for node in place.nodes:
            node.coordinator.cut()
        place.nodes[1].ask()
        place.run(2.0)
        for node in place.nodes:
            node.coordinator.heal()
        place.run(2.0)
        self.assertEqual([True], place.nodes[1].answers)
        self.assertEqual(Power.RUNNING, place.guest.power)
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
        self.assertEqual(1, place.guest.starts)

    def test_together_again(self) -> None:
        """After all were cut off, nobody stops a VM before the others could tell what was used meanwhile."""
        place = Place(vm(idle=10.0))
        place.nodes[0].ask()
        place.run(6.0, 0.05)
        for node in place.nodes:
            node.coordinator.cut()
        place.run(3.0, 0.05)
        place.nodes[1].ask()
        self.assertEqual([True], place.nodes[1].answers)
        place.run(3.0, 0.05)
        place.nodes[0].coordinator.heal()
        place.run(2.0, 0.05)
        place.nodes[1].coordinator.heal()
        place.run(3.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(8.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)

    def test_owner_dies_while_up(self) -> None:
        """Another adopts the VM when the claim has run out, with its lease as it was, and stops it when that ends."""
        place = Place(vm(idle=30.0))
        place.nodes[0].ask()
        place.run(1.0)
        place.nodes[1].ask()
        place.run(2.0)
        place.nodes[0].kill()
        place.run(4.0, 0.05)
        self.assertEqual("ns1", place.owner())
        place.run(2.0, 0.05)
        self.assertIn(place.owner(), {"ns2", "ns3"})
        self.assertEqual(1, place.guest.starts)
        place.run(20.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(9.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual({}, place.facts())

    def test_owner_dies_while_starting(self) -> None:
        """Who waits for it starts the VM when the claim has run out, or finds it running."""
        for boot_time in (2.0, 20.0):
            place = Place(vm(boot_time=boot_time, idle=60.0))
            place.nodes[0].ask()
            place.run(0.1)
            place.nodes[1].ask()
            place.run(0.1)
            place.nodes[0].kill()
            if boot_time > 10:
                place.guest.busy = False  # its call ended with it
            place.run(27.0, 0.05)
            self.assertEqual(State.UP, place.nodes[1].state())
            self.assertEqual("ns2" if boot_time > 10 else place.owner(), place.owner())
            self.assertEqual(Power.RUNNING, place.guest.power)

    def test_restarted_soon(self) -> None:
        """One that is killed and back before its claims have run out is one of us, and has its VM again after that."""
        place = Place(vm(idle=60.0), nodes=1)
        place.nodes[0].ask()
        place.run(1.0)
        place.nodes[0].kill()
        place.nodes = [Node("ns1", place)]
        place.run(8.0, 0.05)
        self.assertIn("nodes/ns1", place.table.facts)
        self.assertTrue(place.nodes[0].fleet.cluster.ownership.is_own(place.nodes[0].fleet.machines["www"]))
        place.run(60.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual(1, place.guest.starts)

    def test_resumed_in_vain(self) -> None:
        """A VM that goes down when it is resumed is booted by the one that has it, which has it all the time."""
        place = Place(vm(mode=Mode.PAUSE, idle=60.0, response_delay=1.0))
        place.nodes[0].ask()
        place.run(2.0)
        place.nodes[0].fleet.operator.stop("www")
        place.run(1.0)
        place.nodes[0].ask()
        place.run(0.3)
        place.host.happen(next(iter(place.host.guests)), Power.OFF, "the guest crashed")
        place.run(3.0)
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
        self.assertEqual("ns1", place.owner())
        self.assertTrue(place.nodes[0].fleet.cluster.ownership.is_own(place.nodes[0].fleet.machines["www"]))
        self.flushLoggedErrors()

    def test_asked_for_before_its_owner_dies(self) -> None:
        """A question for what starts is a use, for whoever has it next as well."""
        place = Place(vm(idle=12.0, boot_time=0.5, response_delay=4.0))
        place.nodes[0].ask()
        place.run(4.4, 0.05)
        place.nodes[1].ask()
        place.run(0.05)
        place.nodes[0].kill()
        place.run(11.5, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(5.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual(1, place.guest.starts)

    def test_stop_in_order(self) -> None:
        """One that ends in order leaves its VMs to the others at once."""
        place = Place(vm(idle=60.0))
        place.nodes[0].ask()
        place.run(1.0)
        place.forget(place.nodes[0])
        place.nodes[0].coordinator.stop()
        place.nodes[0].reactor.alive = False
        place.run(0.1)
        self.assertIn(place.owner(), {"ns2", "ns3"})

    def test_cut_off(self) -> None:
        """One that is cut off answers for what is up, starts nothing, and stops nothing that may be another's."""
        place = Place(vm(idle=10.0), vm("db"))
        first = place.nodes[0]
        first.ask()
        place.run(1.0)
        first.coordinator.cut()
        place.run(4.0, 0.05)
        first.ask("db")
        place.run(0.1)
        first.answers.pop().trap(ClusterUnavailable)
        place.run(0.5, 0.05)
        self.assertTrue(first.fleet.cluster.ownership.refusal)
        first.ask("db")
        first.answers.pop().trap(ClusterUnavailable)
        first.ask()
        self.assertEqual(True, first.answers.pop())
        place.run(1.0, 0.05)
        fleet = place.nodes[1].fleet
        self.assertIn(fleet.cluster.ownership.owner(fleet.machines["www"]), {"ns2", "ns3"})
        place.nodes[1].ask("db")
        place.run(3.0, 0.05)
        self.assertEqual([True], place.nodes[1].answers)
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(4.5, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        first.coordinator.heal()
        place.run(0.1)
        first.ask()
        place.run(0.2)
        self.assertEqual(True, first.answers.pop())
        self.assertEqual("ns1", place.owner())

    def test_cut_off_while_it_waits(self) -> None:
        """Who waits for another's VM when the others are lost is told, and does not start it."""
        place = Place(vm(boot_time=60.0), answer_by=30.0)
        place.nodes[0].ask()
        place.run(0.1)
        place.nodes[1].ask()
        place.run(0.1)
        place.nodes[1].coordinator.cut()
        place.run(5.0, 0.05)
        place.nodes[1].answers.pop().trap(ClusterUnavailable)

    def test_cut_off_when_it_comes_up(self) -> None:
        """When the owner of a VM that came up while the owner was cut off is back, the others know that it is up."""
        for fails in (False, True):
            place = Place(vm(boot_time=1.0, idle=20.0))
            first, second = place.nodes[:2]
            first.ask()
            place.run(0.1)
            second.ask()
            first.coordinator.cut()
            place.run(2.0)
            self.assertEqual((State.UP, State.WAITING), (first.state(), second.state()))
            self.assertEqual([False], second.answers)
            if not fails:
                first.coordinator.heal()
            place.run(1.0)
            self.assertEqual(fails, second.state() is not State.UP)

    def test_stopped_after_an_early_answer(self) -> None:
        """A node that answered early, and did not hear that the VM came up, leaves it down when its owner stops it."""
        place = Place(vm(boot_time=1.0, idle=5.0))
        self.patch(place.nodes[1].fleet.cluster.ownership, "_end_wait", lambda *_, **__: None)
        for node in place.nodes[:2]:
            node.ask()
        place.run(2.0)
        self.assertEqual((State.UP, State.WAITING), (place.nodes[0].state(), place.nodes[1].state()))
        place.run(20.0, 0.05)
        self.assertEqual((Power.OFF, 1), (place.guest.power, place.guest.starts))

    def test_cut_off_in_the_queue(self) -> None:
        """A start that waits its turn when the node is cut off is none."""
        place = Place(vm(), vm("db", boot_time=20.0), max_booting=1)
        place.nodes[0].ask("db")
        place.run(0.1)
        place.nodes[0].ask()
        place.run(0.1)
        place.nodes[0].coordinator.cut()
        place.run(25.0, 0.05)
        self.assertEqual(0, place.guest.starts)

    def test_slow_proof(self) -> None:
        """A start that is prepared for longer than its claim can be proven is none, and another node may start it."""
        for is_cut in (False, True):
            place = Place(vm(), answer_by=30.0)
            first, second = place.nodes[:2]
            takes, clock = iter((6.0, 0.0)), place.clock
            self.patch(place.host, "memory", lambda _, takes=takes, clock=clock: deferLater(clock, next(takes)))
            first.ask()
            place.run(0.1)
            self.assertEqual(State.STARTING, first.state())
            if is_cut:
                first.coordinator.cut()
            place.run(5.5)
            self.assertEqual((0, State.STARTING), (place.guest.starts, first.state()))
            if is_cut:
                second.ask()
                place.run(0.2)
                self.assertEqual(([True], 1), (second.answers, place.guest.starts))
            place.run(1.0)
            if is_cut:
                first.answers.pop().trap(ClusterUnavailable)
                self.assertEqual("ns2", second.fleet.cluster.ownership.owner(second.fleet.machines["www"]))
            self.assertEqual(1, place.guest.starts)

    def test_slow_image(self) -> None:
        """The claim is proven when all else is done: a dead guest's image, too, may take long to drop."""
        place = Place(vm(), answer_by=30.0)
        first = place.nodes[0]
        first.ask()
        place.run(1.0)
        drop = place.host.drop_image
        self.patch(place.host, "drop_image", lambda uuid: deferLater(place.clock, 6.0, drop, uuid))
        first.fleet.machines["www"].restart("dead")
        place.run(0.1)
        self.assertEqual(State.STARTING, first.state())
        first.coordinator.cut()
        place.run(8.0)
        self.assertEqual(1, place.guest.starts)

    def test_all_restart(self) -> None:
        """When all of them have died and come back, one adopts what ran, with its lease."""
        place = Place(vm(idle=30.0))
        place.nodes[0].ask()
        place.run(3.0, 0.05)
        for node in list(place.nodes):
            node.kill()
        place.run(6.0, 0.05)
        place.nodes = [Node(f"ns{number}", place) for number in (1, 2, 3)]
        place.run(0.2)
        self.assertIsNotNone(place.owner())
        self.assertEqual(Power.RUNNING, place.guest.power)
        place.run(28.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        self.assertEqual(1, place.guest.starts)

    def test_strangers_stay_strangers(self) -> None:
        """A VM that somebody has started by hand is nobody's, whichever of us see it."""
        place = Place(vm(idle=2.0))
        place.host.happen(next(iter(place.host.guests)), Power.RUNNING, "by hand")
        place.run(20.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        self.assertIsNone(place.owner())

    def test_stop_elsewhere(self) -> None:
        """A person can stop, hold and release a VM through any of them."""
        place = Place(vm(idle=5.0))
        place.nodes[0].ask()
        place.run(1.0)
        place.nodes[1].fleet.operator.hold("www")
        place.run(20.0, 0.05)
        self.assertEqual(Power.RUNNING, place.guest.power)
        self.assertTrue(place.nodes[0].fleet.leases.wakeups.is_held("www"))
        place.nodes[1].fleet.operator.release("www")
        place.run(10.0, 0.05)
        self.assertEqual(Power.OFF, place.guest.power)
        place.nodes[0].ask()
        place.run(1.0)
        stopped = place.nodes[2].fleet.operator.stop("www")
        place.run(0.1)
        self.assertEqual(State.OFF, self.successResultOf(stopped))
        self.assertEqual(Power.OFF, place.guest.power)
        place.run(3.0, 0.05)
        self.assertEqual({}, place.facts())


class HostsTests(SynchronousTestCase):
    """What three of them do with two hosts."""

    def begin(self, nodes: int = 3, **changes: Any) -> HostsPlace:
        """Have a VM that may run on both."""
        settings = {key: changes.pop(key) for key in ("on_host_loss", "fence") if key in changes}
        values = {"backend": HOSTS, "hosts": ("left", "right"), "prefer": ("left",), "idle": 60.0, **changes}
        return HostsPlace(vm(**values), nodes=nodes, **settings)

    def test_one_host(self) -> None:
        """Asked all at once, they start it on one host, and all know which."""
        place = self.begin(boot_time=0.5)
        for node in place.nodes:
            node.ask()
        place.run(1.0)
        self.assertEqual(["left"], place.running())
        for node in place.nodes:
            self.assertEqual([True], node.answers)
            self.assertEqual("left", node.pool.at(node.fleet.machines["www"].uuid))

    def test_begun_by_the_dead(self) -> None:
        """A start that a dead one had begun on a host is gone on with on that host, whatever else is preferred."""
        place = self.begin(boot_time=20.0)
        for host in place.hosts.values():
            for guest in host.guests.values():
                guest.memory = Memory(10, 20)
        place.nodes[0].ask()
        place.run(0.2)
        place.nodes[0].kill()
        place.order("left", Fault.HANG)
        for guest in place.hosts["left"].guests.values():
            guest.busy = False
        place.nodes[1].ask()
        place.run(10.0, 0.05)
        place.nodes[1].ask()
        place.run(5.0, 0.05)
        self.assertEqual("left", json.loads(place.facts()["runs/www"])["host"])
        self.assertNotIn("right", place.running())

    def test_host_lost(self) -> None:
        """What runs on a host that is lost is started nowhere else; its answers go on."""
        place = self.begin(idle=5.0)
        place.nodes[0].ask()
        place.run(1.0)
        place.lose("left")
        for _ in range(40):
            place.nodes[1].ask()
            place.run(0.5, 0.05)
        self.assertEqual([True] * 40, place.nodes[1].answers)
        self.assertEqual(["left"], place.running())

    def test_host_lost_to_one(self) -> None:
        """Who cannot see a host any more leaves its VMs there to those who can: so one that has ended starts again."""
        place = self.begin(idle=30.0)
        first = place.nodes[0]
        first.ask()
        place.run(1.0)
        lost = place.hosts["left"]
        first.pool.lost(lost, "the cable is out")
        lost.watchers.remove(first.pool)
        place.run(5.0, 0.05)
        self.assertEqual("ns1", place.owner())
        first.ask()
        place.run(6.0, 0.05)
        self.assertIn(place.owner(), {"ns2", "ns3"})
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
        lost.happen(next(iter(lost.guests)), Power.OFF, "it crashed")
        place.run(0.1)
        place.nodes[1].ask()
        place.run(1.0)
        self.assertEqual([True], place.nodes[1].answers)
        self.assertEqual(["left"], place.running())
        first.pool.connected(lost)
        place.run(1.0)
        self.assertIn(place.owner(), {"ns2", "ns3"})
        place.run(35.0, 0.05)
        self.assertEqual([], place.running())
        self.assertIsNone(place.owner())

    def test_lost_while_it_ends(self) -> None:
        """One that cannot see a VM which another stops waits until it can, or until nobody stops it any more."""
        place = self.begin(idle=5.0)
        place.nodes[0].ask()
        place.run(1.0)
        hosts, left = place.nodes[1].pool, place.hosts["left"]
        hosts.lost(left, "the cable is out")
        place.run(4.5, 0.05)
        self.assertEqual(State.OWNER_STOPPING, place.nodes[1].state())
        place.run(4.0, 0.05)
        self.assertEqual([], place.running())
        hosts.connected(left)
        place.run(1.0, 0.05)
        self.assertEqual([State.OFF] * 3, [node.state() for node in place.nodes])

    def test_two_of_one_name(self) -> None:
        """Two nodes of one name are told."""
        heard: list[str] = []

        def hear_all(event: Any) -> None:
            heard.append(formatEvent(event))

        hear: Any = hear_all
        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)
        place = self.begin(nodes=1)
        Node("ns1", place)
        place.run(0.5)
        self.assertTrue([line for line in heard if "another node is called ns1" in line])

    def test_fence(self) -> None:
        """With `fence`, a host that all have lost is made sure to be dead, once; what ran there starts elsewhere."""
        place = self.begin(on_host_loss=OnHostLoss.RESTART, fence="fence --hard")
        ran: list[tuple[str, list[str]]] = []

        def spawn(protocol: Any, program: str, argv: list[str], **_: Any) -> Any:
            ran.append((program, argv))
            place.clock.callLater(1.0, protocol.processEnded, Failure(ProcessDone(0)))
            return self

        for node in place.nodes:
            node.reactor.spawnProcess = spawn  # type: ignore[attr-defined]
        place.nodes[0].ask()
        place.run(1.0)
        place.lose("left")
        place.nodes[2].pool.connected(place.hosts["left"])
        place.run(15.0, 0.05)
        self.assertEqual([], ran)  # one of them has it
        place.nodes[2].pool.lost(place.hosts["left"], "the cable is out")
        for guest in place.hosts["left"].guests.values():
            guest.power = Power.OFF
        place.run(25.0, 0.05)
        self.assertEqual([("fence", ["fence", "--hard", "left"])], ran)
        self.assertEqual(["right"], place.running())
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
        for node in place.nodes:
            node.pool.connected(place.hosts["left"])
        place.run(1.0)
        self.assertEqual(["right"], place.running())
        self.assertEqual([set()] * 3, [node.pool.fenced for node in place.nodes])

    def test_blind(self) -> None:
        """Who cannot reach a host answers for a VM there as long as it is up; then it can start it elsewhere."""
        place = self.begin(idle=20.0)
        first = place.nodes[0]
        first.ask()
        place.run(1.0)
        first.pool.lost(place.hosts["left"], "the cable is out")
        place.run(13.0, 0.05)
        self.assertIn(place.owner(), {"ns2", "ns3"})
        first.ask()
        self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
        place.run(40.0, 0.05)
        self.assertEqual([], place.running())
        self.assertEqual([State.OFF] * 3, [node.state() for node in place.nodes])
        first.ask()
        place.run(1.0)
        self.assertEqual(["right"], place.running())
        self.assertEqual([True] * 3, first.answers)

    def test_fence_fails(self) -> None:
        """Where nobody can say that the host is dead, nothing is started elsewhere."""
        for is_there in (True, False):
            place = self.begin(on_host_loss=OnHostLoss.RESTART, fence="fence", nodes=1)
            tried: list[Any] = []

            def spawn(protocol: Any, *_: Any, tried: list[Any] = tried, place: Place = place, **__: Any) -> Any:
                tried.append(protocol)
                if not is_there:  # noqa: B023
                    raise FileNotFoundError
                place.clock.callLater(1.0, protocol.processEnded, Failure(ProcessTerminated(1)))
                return self

            place.nodes[0].reactor.spawnProcess = spawn  # type: ignore[attr-defined]
            place.nodes[0].ask()
            place.run(1.0)
            place.lose("left")
            place.run(30.0, 0.05)
            self.assertGreater(len(tried), 1)
            self.assertEqual(["left"], place.running())

    def signalProcess(self, signal: str) -> None:  # noqa: N802
        """Be a process that ends in time."""
        self.fail(signal)

    def test_move(self) -> None:
        """A VM goes to another host by a stop and a start, through any node; its image does not keep it."""
        for asked in (0, 1):
            place = self.begin(mode=Mode.SAVE)
            place.nodes[0].ask()
            place.run(1.0)
            node = place.nodes[asked]
            moved = node.fleet.cluster.move(node.fleet.machines["www"], "right")
            place.run(2.0)
            self.successResultOf(moved)
            self.assertEqual(["right"], place.running())
            self.assertEqual([State.UP] * 3, [node.state() for node in place.nodes])
            self.assertEqual(Power.OFF, next(iter(place.hosts["left"].guests.values())).power)

    def test_moved_by_others(self) -> None:
        """A VM that somebody has moved by hand is kept where it is; so is one whose owner has ended just then."""
        for killed in (False, True):
            place = self.begin()
            first = place.nodes[0]
            first.ask()
            place.run(1.0)
            left, right = (next(iter(host.guests.values())) for host in place.hosts.values())
            uuid = next(iter(place.hosts["left"].guests))
            if killed:
                first.kill()
            left.power, right.power = Power.OFF, Power.RUNNING
            for name in place.hosts:
                place.hosts[name].changed(uuid, "moved by hand")
            place.run(8.0 if killed else 1.0, 0.05)
            self.assertEqual("right", json.loads(place.facts()["runs/www"])["host"])
            self.assertEqual([State.UP] * (3 - killed), [node.state() for node in place.nodes[killed:]])
            self.assertEqual(0, right.starts)

    def test_wrong_moves(self) -> None:
        """A move that cannot be says why."""
        place = self.begin(nodes=1)
        (node,) = place.nodes
        machine = node.fleet.machines["www"]
        for host, words in (("middle", "may run on left, right, not on middle"), ("right", "only a VM that is up")):
            failure = self.failureResultOf(node.fleet.cluster.move(machine, host), JitsuError)
            self.assertIn(words, str(failure.value))
        node.ask()
        place.run(1.0)
        self.patch(place.hosts["left"], "stop", lambda *_: fail(BackendError("its disk is busy")))
        moved = node.fleet.cluster.move(machine, "right")
        place.run(1.0)
        self.assertIn("its disk is busy", str(self.failureResultOf(moved, JitsuError).value))
        self.assertIsNone(node.pool._placement.take_wanted(machine.vm))

    def test_drain_host(self) -> None:
        """What runs on a host that is drained goes to the other; nothing new is started there until that is undone."""
        place = self.begin()
        place.nodes[0].ask()
        place.run(1.0)
        place.nodes[2].fleet.cluster.drain("hosts", "left")
        place.run(2.0)
        self.assertEqual(["right"], place.running())
        place.nodes[0].fleet.operator.stop("www")
        place.run(1.0)
        place.nodes[1].ask()
        place.run(1.0)
        self.assertEqual(["right"], place.running())
        place.nodes[1].fleet.operator.stop("www")
        place.nodes[1].fleet.cluster.drain("hosts", "left", undo=True)
        place.run(1.0)
        place.nodes[1].ask()
        place.run(1.0)
        self.assertEqual(["left"], place.running())

    def test_drain_node(self) -> None:
        """A node that is drained hands on what it has, which runs on, and starts nothing until that is undone."""
        place = self.begin()
        first = place.nodes[0]
        first.ask()
        place.run(1.0)
        first.fleet.cluster.drain("nodes", "ns1")
        place.run(1.0)
        self.assertIn(place.owner(), {"ns2", "ns3"})
        self.assertEqual(1, sum(guest.starts for host in place.hosts.values() for guest in host.guests.values()))
        place.nodes[1].fleet.operator.stop("www")
        place.run(1.0)
        first.answers.clear()
        first.ask()
        first.answers.pop().trap(ClusterUnavailable)
        first.fleet.cluster.drain("nodes", "ns1", undo=True)
        place.run(0.5)
        first.ask()
        place.run(1.0)
        self.assertEqual([True], first.answers)
