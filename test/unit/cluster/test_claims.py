"""Nodes of a cluster that share VMs: fleets on one clock, which agree by a table in memory."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import Fault, MemoryBackend
from jitsu_tw.backends.pool import Pool
from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster import fencing
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.errors import BackendError, BootFailed, ClusterUnavailable, JitsuError
from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.processes import Ended
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import HOSTS, Mode, OnHostLoss, Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm.fleet import Fleet
from test.support import EPOCH, BoundedClock, question, vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.task import Clock

    from jitsu_tw.ijitsu import IWatcher
    from jitsu_tw.settings import VM


class Host(MemoryBackend):
    """A hypervisor that several nodes connect to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(reactor=clock)
        self.watchers: list[IWatcher] = []
        self._watcher = self  # type: ignore[assignment]

    def connect(self, watcher: IWatcher) -> None:
        """Report events to one more watcher."""
        self.watchers.append(watcher)
        watcher.connected(self)

    def changed(self, uuid: str, reason: str) -> None:
        """Report an event to all watchers."""
        for watcher in list(self.watchers):
            watcher.changed(uuid, reason)


class Mortal:
    """The clock of one process: when that is dead, nothing happens in it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.alive = clock, True

    def seconds(self) -> float:
        """Return the clock's time."""
        return self.clock.seconds()

    def callLater(self, delay: float, call: Any, *args: Any, **kw: Any) -> Any:  # noqa: N802
        """Call something later, if the process lives by then."""
        return self.clock.callLater(delay, lambda: self.alive and call(*args, **kw))


class Node:
    """One of the nodes."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self.cluster = name, cluster
        self.reactor = Mortal(cluster.clock)
        self.coordinator = MemoryCoordinator(name, cluster.table)
        clocks = Clocks(self.reactor, cluster.clock.seconds, lambda: EPOCH + cluster.clock.seconds())  # type: ignore[arg-type]
        backends: dict[tuple[str, str], Any] = {("memory", ""): cluster.host}
        self.pool = Pool(cluster.hosts, cluster.clock.seconds)
        if cluster.hosts:
            backends[HOSTS, ""] = self.pool
        pool = self.pool if cluster.hosts else None
        make_cluster = partial(Membership, cluster.settings, pool, self.coordinator, clocks)
        self.fleet = Fleet(cluster.settings, backends, MemoryStore(lasting=True), clocks, make_cluster)
        self.answers: list[Any] = []
        self.fleet.start({})

    def ask(self, name: str = "www") -> None:
        """Ask for a VM."""
        self.fleet.summons.summon(name, question(name)).addBoth(self.answers.append)

    def state(self, name: str = "www") -> State:
        """Return the state of a VM at this node."""
        return self.fleet.machines[name].state

    def kill(self) -> None:
        """End the node as `kill -9` does, at a moment when it does nothing."""
        self.reactor.alive = False
        self.coordinator.die()
        self.cluster.forget(self)


class Cluster:
    """Three nodes and a hypervisor."""

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
        """Report nothing more to a node."""
        self.host.watchers.remove(node.fleet.inventory)

    @property
    def guest(self) -> Any:
        """The first VM, as its hypervisor has it."""
        return next(iter(self.host.guests.values()))

    def facts(self) -> dict[str, str]:
        """Return the facts of VMs."""
        return {key: value for key, value in self.table.facts.items() if not key.startswith("nodes/")}

    def owner(self) -> str | None:
        """Return the owner of the first VM, on which all nodes agree."""
        fleets = [node.fleet for node in self.nodes if node.reactor.alive]
        owners = {fleet.cluster.ownership.owner(fleet.machines["www"]) for fleet in fleets}
        assert len(owners) == 1, owners
        return owners.pop()


class HostsCluster(Cluster):
    """Three nodes and two hosts."""

    def __init__(self, *vms: VM, nodes: int = 3, **settings: Any) -> None:
        super().__init__(nodes=0)
        self.hosts = {"left": Host(self.clock), "right": Host(self.clock)}
        self.settings = Settings(vms=vms, **settings)
        self.nodes = [Node(f"ns{number}", self) for number in range(1, nodes + 1)]
        self.run(0.1)

    def forget(self, node: Node) -> None:
        """Report nothing more to a node."""
        for host in self.hosts.values():
            host.watchers.remove(node.pool)
        super().forget(node)

    def running(self) -> list[str]:
        """Return on which hosts the first VM runs."""
        return [name for name, host in self.hosts.items() for guest in list(host.guests.values())[:1]
                if guest.power is Power.RUNNING]

    def lose(self, name: str) -> None:
        """Make all nodes lose a host."""
        for node in self.nodes:
            node.pool.lost(self.hosts[name], "the cable is out")

    def order(self, name: str, fault: Fault) -> None:
        """Give the first VM a fault on one host."""
        (guest,) = list(self.hosts[name].guests.values())[:1]
        guest.vm = vm(faults=[fault.value])


class SharingTests(SynchronousTestCase):
    """Three nodes share the VMs of one hypervisor."""

    def test_one_start(self) -> None:
        """When all nodes are asked at once, one starts the VM, and all answer when it is ready."""
        cluster = Cluster(vm(boot_time=0.5, response_delay=0.2))
        for node in cluster.nodes:
            node.ask()
        cluster.run(0.6)
        self.assertEqual([[], [], []], [node.answers for node in cluster.nodes])
        cluster.run(0.3)
        self.assertEqual([[True]] * 3, [node.answers for node in cluster.nodes])
        self.assertEqual(1, cluster.guest.starts)
        self.assertIsNotNone(cluster.owner())

    def test_own_word(self) -> None:
        """A node that does not own the VM takes it for ready when its owner tells so, and does not probe it."""
        cluster = Cluster(vm(boot_time=0.1, response_delay=0.9))
        cluster.nodes[0].ask()
        cluster.run(0.3)
        cluster.nodes[1].ask()
        cluster.run(0.5)
        self.assertEqual([State.WAITING] * 3, [node.state() for node in cluster.nodes])
        cluster.run(0.3)
        self.assertEqual([[True], [True]], [node.answers for node in cluster.nodes[:2]])

    def test_failure_is_everybodys(self) -> None:
        """A start fails for the clients of all nodes, with the owner's reason; no other node tries meanwhile."""
        cluster = Cluster(vm(faults=["start"]))
        for node in cluster.nodes:
            node.ask()
        cluster.run(0.2)
        for node in cluster.nodes:
            (failure,) = node.answers
            failure.trap(BootFailed)
            self.assertIn("the start fails, as it was told to", failure.getErrorMessage())
        self.assertIsNone(cluster.owner())

    def test_use_anywhere(self) -> None:
        """A query to any node keeps the VM up; its owner stops it, once, when there are no queries any more."""
        cluster = Cluster(vm(idle=10.0))
        cluster.nodes[0].ask()
        cluster.run(1.0)
        for _ in range(6):
            cluster.nodes[2].ask()
            cluster.run(5.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(12.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual(1, cluster.guest.starts)
        self.assertEqual([State.OFF] * 3, [node.state() for node in cluster.nodes])
        self.assertEqual({}, cluster.facts())

    def test_counted(self) -> None:
        """A VM whose packets are counted is stopped as well, though it is looked at more often than its end is near."""
        cluster = Cluster(vm(idle=10.0))
        cluster.guest.sent = 0
        cluster.nodes[0].ask()
        cluster.run(20.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual({}, cluster.facts())

    def test_traffic_is_told(self) -> None:
        """The owner reports use that it sees by packets to the other nodes: one of them may be the next owner."""
        cluster = Cluster(vm(idle=40.0))
        cluster.guest.sent = 0
        cluster.nodes[0].ask()
        for _ in range(60):
            cluster.guest.sent += 1000
            cluster.run(1.0, 0.05)
        ago = EPOCH + cluster.clock.seconds() - float(cluster.facts()["used/www"])
        self.assertTrue(0.0 <= ago < 10.0, ago)

    def test_sends_after_notice(self) -> None:
        """A guest that sends packets after its stop was announced is kept."""
        cluster = Cluster(vm(idle=10.0))
        cluster.guest.sent = 0
        cluster.nodes[0].ask()
        cluster.run(10.3, 0.05)
        self.assertEqual(State.OWNER_STOPPING, cluster.nodes[1].state())
        cluster.guest.sent = 1000
        cluster.run(5.0, 0.05)
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])

    def test_notice(self) -> None:
        """A node that is asked in the moment before a stop reports that, and answers when the owner keeps the VM."""
        cluster = Cluster(vm(idle=10.0))
        cluster.nodes[0].ask()
        cluster.run(10.3)
        states = [node.state() for node in cluster.nodes]
        self.assertEqual([State.UP, State.OWNER_STOPPING, State.OWNER_STOPPING], states)
        cluster.nodes[1].ask()
        cluster.run(0.2)
        self.assertEqual([True], cluster.nodes[1].answers)
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        cluster.run(9.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        self.assertEqual(1, cluster.guest.starts)

    def test_told_seldom(self) -> None:
        """Use is reported a few times during a lease, however often the VM is used, and again before the lease ends."""
        cluster = Cluster(vm(idle=80.0))
        cluster.nodes[0].ask()
        cluster.run(1.0)
        told: list[str] = []
        coordinator: Any = cluster.nodes[1].coordinator
        put = coordinator.put

        def hear(facts: dict[str, str], holding: str = "") -> Any:
            told.extend(facts)
            return put(facts, holding)

        coordinator.put = hear
        for _ in range(80):
            cluster.nodes[1].ask()
            cluster.run(1.0, 0.05)
        self.assertIn(told.count("used/www"), range(7, 10))
        cluster.run(76.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(10.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual({}, cluster.facts())

    def test_looked_for_seldom(self) -> None:
        """Where all leases are long, uses are not gathered each second."""
        cluster = Cluster(vm(idle=320.0))
        looks: list[float] = []
        usage = cluster.nodes[1].fleet.cluster.ownership._usage  # type: ignore[attr-defined]
        self.patch(usage, "_gather", lambda: looks.append(cluster.clock.seconds()))
        cluster.run(40.0, 0.5)
        self.assertIn(len(looks), range(3, 6))

    def test_told_again(self) -> None:
        """A use that could not be reported is reported when the node is connected again."""
        cluster = Cluster(vm(idle=10.0))
        cluster.nodes[0].ask()
        cluster.run(8.0, 0.05)
        cluster.nodes[1].coordinator.cut()
        cluster.nodes[1].ask()
        cluster.run(1.5, 0.05)
        cluster.nodes[1].coordinator.heal()
        cluster.run(7.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(5.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)

    def test_notice_that_nobody_can_answer(self) -> None:
        """The owner stops no VM while the other nodes, which have notice, cannot report that it is used."""
        cluster = Cluster(vm(idle=10.0), answer_by=5.0)
        cluster.nodes[0].ask()
        cluster.run(10.3)
        self.assertEqual(State.OWNER_STOPPING, cluster.nodes[1].state())
        for node in cluster.nodes:
            node.coordinator.cut()
        cluster.nodes[1].ask()
        cluster.run(2.0)
        for node in cluster.nodes:
            node.coordinator.heal()
        cluster.run(2.0)
        self.assertEqual([True], cluster.nodes[1].answers)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        self.assertEqual(1, cluster.guest.starts)

    def test_together_again(self) -> None:
        """After all nodes were cut off, no VM is stopped before the others could report what was used meanwhile."""
        cluster = Cluster(vm(idle=10.0))
        cluster.nodes[0].ask()
        cluster.run(6.0, 0.05)
        for node in cluster.nodes:
            node.coordinator.cut()
        cluster.run(3.0, 0.05)
        cluster.nodes[1].ask()
        self.assertEqual([True], cluster.nodes[1].answers)
        cluster.run(3.0, 0.05)
        cluster.nodes[0].coordinator.heal()
        cluster.run(2.0, 0.05)
        cluster.nodes[1].coordinator.heal()
        cluster.run(3.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(8.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)

    def test_owner_dies_while_up(self) -> None:
        """When the claim of a dead owner has expired, another node adopts the VM, with its lease, and stops it."""
        cluster = Cluster(vm(idle=30.0))
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.nodes[1].ask()
        cluster.run(2.0)
        cluster.nodes[0].kill()
        cluster.run(4.0, 0.05)
        self.assertEqual("ns1", cluster.owner())
        cluster.run(2.0, 0.05)
        self.assertIn(cluster.owner(), {"ns2", "ns3"})
        self.assertEqual(1, cluster.guest.starts)
        cluster.run(20.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(9.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual({}, cluster.facts())

    def test_owner_dies_while_starting(self) -> None:
        """A node that waits for the VM starts it when the claim of its dead owner has expired, or finds it running."""
        for boot_time in (2.0, 20.0):
            cluster = Cluster(vm(boot_time=boot_time, idle=60.0))
            cluster.nodes[0].ask()
            cluster.run(0.1)
            cluster.nodes[1].ask()
            cluster.run(0.1)
            cluster.nodes[0].kill()
            if boot_time > 10:
                cluster.guest.busy = False  # its call ended with it
            cluster.run(27.0, 0.05)
            self.assertEqual(State.UP, cluster.nodes[1].state())
            self.assertEqual("ns2" if boot_time > 10 else cluster.owner(), cluster.owner())
            self.assertEqual(Power.RUNNING, cluster.guest.power)

    def test_restarted_soon(self) -> None:
        """A node that is killed, and back before its claims have expired, adopts its own VM after that."""
        cluster = Cluster(vm(idle=60.0), nodes=1)
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.nodes[0].kill()
        cluster.nodes = [Node("ns1", cluster)]
        cluster.run(8.0, 0.05)
        self.assertIn("nodes/ns1", cluster.table.facts)
        self.assertTrue(cluster.nodes[0].fleet.cluster.ownership.is_own(cluster.nodes[0].fleet.machines["www"]))
        cluster.run(60.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual(1, cluster.guest.starts)

    def test_resumed_in_vain(self) -> None:
        """A VM that goes down when it is resumed is booted by its owner, which keeps the claim all the time."""
        cluster = Cluster(vm(mode=Mode.PAUSE, idle=60.0, response_delay=1.0))
        cluster.nodes[0].ask()
        cluster.run(2.0)
        cluster.nodes[0].fleet.operator.stop("www")
        cluster.run(1.0)
        cluster.nodes[0].ask()
        cluster.run(0.3)
        cluster.host.happen(next(iter(cluster.host.guests)), Power.OFF, "the guest crashed")
        cluster.run(3.0)
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        self.assertEqual("ns1", cluster.owner())
        self.assertTrue(cluster.nodes[0].fleet.cluster.ownership.is_own(cluster.nodes[0].fleet.machines["www"]))
        self.flushLoggedErrors()

    def test_asked_for_before_its_owner_dies(self) -> None:
        """A query for a VM that starts is a use, which the next owner knows of, too."""
        cluster = Cluster(vm(idle=12.0, boot_time=0.5, response_delay=4.0))
        cluster.nodes[0].ask()
        cluster.run(4.4, 0.05)
        cluster.nodes[1].ask()
        cluster.run(0.05)
        cluster.nodes[0].kill()
        cluster.run(11.5, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(5.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual(1, cluster.guest.starts)

    def test_stop_in_order(self) -> None:
        """The VMs of a node that ends in order are adopted at once."""
        cluster = Cluster(vm(idle=60.0))
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.forget(cluster.nodes[0])
        cluster.nodes[0].coordinator.stop()
        cluster.nodes[0].reactor.alive = False
        cluster.run(0.1)
        self.assertIn(cluster.owner(), {"ns2", "ns3"})

    def test_cut_off(self) -> None:
        """A node that is cut off answers for VMs that are up, starts none, and stops none that another node may own."""
        cluster = Cluster(vm(idle=10.0), vm("db"))
        first = cluster.nodes[0]
        first.ask()
        cluster.run(1.0)
        first.coordinator.cut()
        cluster.run(4.0, 0.05)
        first.ask("db")
        cluster.run(0.1)
        first.answers.pop().trap(ClusterUnavailable)
        cluster.run(0.5, 0.05)
        self.assertTrue(first.fleet.cluster.ownership.refusal)
        first.ask("db")
        first.answers.pop().trap(ClusterUnavailable)
        first.ask()
        self.assertEqual(True, first.answers.pop())
        cluster.run(1.0, 0.05)
        fleet = cluster.nodes[1].fleet
        self.assertIn(fleet.cluster.ownership.owner(fleet.machines["www"]), {"ns2", "ns3"})
        cluster.nodes[1].ask("db")
        cluster.run(3.0, 0.05)
        self.assertEqual([True], cluster.nodes[1].answers)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(4.5, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        first.coordinator.heal()
        cluster.run(0.1)
        first.ask()
        cluster.run(0.2)
        self.assertEqual(True, first.answers.pop())
        self.assertEqual("ns1", cluster.owner())

    def test_cut_off_while_it_waits(self) -> None:
        """A node that waits for another node's VM when it is cut off fails the query, and does not start the VM."""
        cluster = Cluster(vm(boot_time=60.0), answer_by=30.0)
        cluster.nodes[0].ask()
        cluster.run(0.1)
        cluster.nodes[1].ask()
        cluster.run(0.1)
        cluster.nodes[1].coordinator.cut()
        cluster.run(5.0, 0.05)
        cluster.nodes[1].answers.pop().trap(ClusterUnavailable)

    def test_cut_off_when_it_comes_up(self) -> None:
        """When an owner is connected again whose VM came up meanwhile, the other nodes know that it is up."""
        for fails in (False, True):
            cluster = Cluster(vm(boot_time=1.0, idle=20.0))
            first, second = cluster.nodes[:2]
            first.ask()
            cluster.run(0.1)
            second.ask()
            first.coordinator.cut()
            cluster.run(2.0)
            self.assertEqual((State.UP, State.WAITING), (first.state(), second.state()))
            self.assertEqual([False], second.answers)
            if not fails:
                first.coordinator.heal()
            cluster.run(1.0)
            self.assertEqual(fails, second.state() is not State.UP)

    def test_stopped_after_an_early_answer(self) -> None:
        """A node that answered early, and did not hear that the VM came up, leaves it down when its owner stops it."""
        cluster = Cluster(vm(boot_time=1.0, idle=5.0))
        self.patch(cluster.nodes[1].fleet.cluster.ownership, "_end_wait", lambda *_, **__: None)
        for node in cluster.nodes[:2]:
            node.ask()
        cluster.run(2.0)
        self.assertEqual((State.UP, State.WAITING), (cluster.nodes[0].state(), cluster.nodes[1].state()))
        cluster.run(20.0, 0.05)
        self.assertEqual((Power.OFF, 1), (cluster.guest.power, cluster.guest.starts))

    def test_cut_off_in_the_queue(self) -> None:
        """A VM that is queued when its node is cut off is not started."""
        cluster = Cluster(vm(), vm("db", boot_time=20.0), max_booting=1)
        cluster.nodes[0].ask("db")
        cluster.run(0.1)
        cluster.nodes[0].ask()
        cluster.run(0.1)
        cluster.nodes[0].coordinator.cut()
        cluster.run(25.0, 0.05)
        self.assertEqual(0, cluster.guest.starts)

    def test_slow_proof(self) -> None:
        """A start whose claim cannot be proven any more when it is prepared is given up; another node may start."""
        for is_cut in (False, True):
            cluster = Cluster(vm(), answer_by=30.0)
            first, second = cluster.nodes[:2]
            takes, clock = iter((6.0, 0.0)), cluster.clock
            self.patch(cluster.host, "memory", lambda _, takes=takes, clock=clock: deferLater(clock, next(takes)))
            first.ask()
            cluster.run(0.1)
            self.assertEqual(State.STARTING, first.state())
            if is_cut:
                first.coordinator.cut()
            cluster.run(5.5)
            self.assertEqual((0, State.STARTING), (cluster.guest.starts, first.state()))
            if is_cut:
                second.ask()
                cluster.run(0.2)
                self.assertEqual(([True], 1), (second.answers, cluster.guest.starts))
            cluster.run(1.0)
            if is_cut:
                first.answers.pop().trap(ClusterUnavailable)
                self.assertEqual("ns2", second.fleet.cluster.ownership.owner(second.fleet.machines["www"]))
            self.assertEqual(1, cluster.guest.starts)

    def test_slow_image(self) -> None:
        """The claim is proven after all else, also after the image of a dead guest was dropped, which may take long."""
        cluster = Cluster(vm(), answer_by=30.0)
        first = cluster.nodes[0]
        first.ask()
        cluster.run(1.0)
        drop = cluster.host.drop_image
        self.patch(cluster.host, "drop_image", lambda uuid: deferLater(cluster.clock, 6.0, drop, uuid))
        first.fleet.machines["www"].restart("dead")
        cluster.run(0.1)
        self.assertEqual(State.STARTING, first.state())
        first.coordinator.cut()
        cluster.run(8.0)
        self.assertEqual(1, cluster.guest.starts)

    def test_prepared(self) -> None:
        """One node prepares a VM; each can start it then, and it is prepared again after its use, by one node."""
        cluster = Cluster(vm(prepare=True, boot_time=1.0, idle=5.0))
        cluster.run(5)
        self.assertEqual([State.PREPARED] * 3, [node.state() for node in cluster.nodes])
        self.assertEqual(1, cluster.guest.starts)
        self.assertEqual({}, cluster.facts())
        cluster.nodes[1].ask()
        cluster.run(0.2)
        self.assertEqual([True], cluster.nodes[1].answers)
        self.assertEqual((Power.RUNNING, 1), (cluster.guest.power, cluster.guest.boots))
        cluster.run(25, step=0.1)
        self.assertEqual(([State.PREPARED] * 3, 2), ([node.state() for node in cluster.nodes], cluster.guest.boots))

    def test_given_up_while_it_starts(self) -> None:
        """What one node starts for a client is not given up by another, which does not know of that yet."""
        cluster = Cluster(vm(prepare=True, boot_time=1.0, idle=5.0))
        cluster.run(5)
        first, second, _ = cluster.nodes
        self.patch(cluster.host, "start", lambda _: Deferred())  # it takes its time
        first.ask()
        cluster.run(0.5)
        preparation = second.fleet.preparation
        given_up = Deferred.fromCoroutine(preparation._give_up(second.fleet.machines["www"], "its kernel has changed"))
        cluster.run(1)
        self.assertTrue(given_up.called)
        self.assertEqual((State.STARTING, Power.PREPARED), (first.state(), cluster.guest.power))

    def test_dies_while_it_prepares(self) -> None:
        """What a node that dies was preparing is adopted by another one, stopped when it is idle, and prepared."""
        cluster = Cluster(vm(prepare=True, boot_time=1.0, response_delay=1.0, idle=5.0))
        cluster.run(2.0)
        (node,) = (node for node in cluster.nodes if node.state() is State.SETTLING)
        node.kill()
        cluster.run(60, step=0.1)
        left = [one for one in cluster.nodes if one is not node]
        self.assertEqual(([State.PREPARED] * 2, 2), ([one.state() for one in left], cluster.guest.boots))

    def test_all_restart(self) -> None:
        """When all nodes have died and come back, one adopts the VM that ran, with its lease."""
        cluster = Cluster(vm(idle=30.0))
        cluster.nodes[0].ask()
        cluster.run(3.0, 0.05)
        for node in list(cluster.nodes):
            node.kill()
        cluster.run(6.0, 0.05)
        cluster.nodes = [Node(f"ns{number}", cluster) for number in (1, 2, 3)]
        cluster.run(0.2)
        self.assertIsNotNone(cluster.owner())
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        cluster.run(28.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        self.assertEqual(1, cluster.guest.starts)

    def test_strangers_stay_strangers(self) -> None:
        """A VM that was started by hand has no owner, and is left alone by all nodes."""
        cluster = Cluster(vm(idle=2.0))
        cluster.host.happen(next(iter(cluster.host.guests)), Power.RUNNING, "by hand")
        cluster.run(20.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        self.assertIsNone(cluster.owner())

    def test_stop_elsewhere(self) -> None:
        """The operator can stop, hold and release a VM through any node."""
        cluster = Cluster(vm(idle=5.0))
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.nodes[1].fleet.operator.hold("www")
        cluster.run(20.0, 0.05)
        self.assertEqual(Power.RUNNING, cluster.guest.power)
        self.assertTrue(cluster.nodes[0].fleet.leases.wakeups.is_held("www"))
        cluster.nodes[1].fleet.operator.release("www")
        cluster.run(10.0, 0.05)
        self.assertEqual(Power.OFF, cluster.guest.power)
        cluster.nodes[0].ask()
        cluster.run(1.0)
        stopped = cluster.nodes[2].fleet.operator.stop("www")
        cluster.run(0.1)
        self.assertEqual(State.OFF, self.successResultOf(stopped))
        self.assertEqual(Power.OFF, cluster.guest.power)
        cluster.run(3.0, 0.05)
        self.assertEqual({}, cluster.facts())


class HostsTests(SynchronousTestCase):
    """Three nodes share the VMs of two hosts."""

    def begin(self, nodes: int = 3, **changes: Any) -> HostsCluster:
        """Begin with a VM that may run on both hosts."""
        settings = {key: changes.pop(key) for key in ("on_host_loss", "fence") if key in changes}
        values = {"backend": HOSTS, "hosts": ("left", "right"), "prefer": ("left",), "idle": 60.0, **changes}
        return HostsCluster(vm(**values), nodes=nodes, **settings)

    def fence_by(
        self, cluster: Cluster, began: Callable[[list[str]], None], code: int | None = 0, after: float = 1.0
    ) -> None:
        """Have each command `fence` end with *code* after some seconds; with None there is no such program."""

        def begin(_: Any, argv: list[str], **__: Any) -> Any:
            began(argv)
            if code is None:
                raise FileNotFoundError
            return SimpleNamespace(ended=deferLater(cluster.clock, after, Ended, code, "", "", "", late=False))

        self.patch(fencing, "Process", begin)

    def test_one_host(self) -> None:
        """When all nodes are asked at once, the VM is started on one host, and all nodes know which."""
        cluster = self.begin(boot_time=0.5)
        for node in cluster.nodes:
            node.ask()
        cluster.run(1.0)
        self.assertEqual(["left"], cluster.running())
        for node in cluster.nodes:
            self.assertEqual([True], node.answers)
            self.assertEqual("left", node.pool.at(node.fleet.machines["www"].uuid))

    def test_begun_by_the_dead(self) -> None:
        """A start that a dead node had begun on a host is tried again on that host, whichever the VM prefers."""
        cluster = self.begin(boot_time=20.0)
        for host in cluster.hosts.values():
            for guest in host.guests.values():
                guest.memory = Memory(10, 20)
        cluster.nodes[0].ask()
        cluster.run(0.2)
        cluster.nodes[0].kill()
        cluster.order("left", Fault.HANG)
        for guest in cluster.hosts["left"].guests.values():
            guest.busy = False
        cluster.nodes[1].ask()
        cluster.run(10.0, 0.05)
        cluster.nodes[1].ask()
        cluster.run(5.0, 0.05)
        self.assertEqual("left", json.loads(cluster.facts()["runs/www"])["host"])
        self.assertNotIn("right", cluster.running())

    def test_host_lost(self) -> None:
        """A VM on a host that all nodes have lost is started nowhere else, and its answers go on."""
        cluster = self.begin(idle=5.0)
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.lose("left")
        for _ in range(40):
            cluster.nodes[1].ask()
            cluster.run(0.5, 0.05)
        self.assertEqual([True] * 40, cluster.nodes[1].answers)
        self.assertEqual(["left"], cluster.running())

    def test_host_lost_to_one(self) -> None:
        """A node that alone loses a host releases its VMs there; the next owner sees one end, and starts it again."""
        cluster = self.begin(idle=30.0)
        first = cluster.nodes[0]
        first.ask()
        cluster.run(1.0)
        lost = cluster.hosts["left"]
        first.pool.lost(lost, "the cable is out")
        lost.watchers.remove(first.pool)
        cluster.run(5.0, 0.05)
        self.assertEqual("ns1", cluster.owner())
        first.ask()
        cluster.run(6.0, 0.05)
        self.assertIn(cluster.owner(), {"ns2", "ns3"})
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        lost.happen(next(iter(lost.guests)), Power.OFF, "it crashed")
        cluster.run(0.1)
        cluster.nodes[1].ask()
        cluster.run(1.0)
        self.assertEqual([True], cluster.nodes[1].answers)
        self.assertEqual(["left"], cluster.running())
        first.pool.connected(lost)
        cluster.run(1.0)
        self.assertIn(cluster.owner(), {"ns2", "ns3"})
        cluster.run(35.0, 0.05)
        self.assertEqual([], cluster.running())
        self.assertIsNone(cluster.owner())

    def test_lost_while_it_ends(self) -> None:
        """A node that cannot see a VM which its owner stops waits until it can."""
        cluster = self.begin(idle=5.0)
        cluster.nodes[0].ask()
        cluster.run(1.0)
        hosts, left = cluster.nodes[1].pool, cluster.hosts["left"]
        hosts.lost(left, "the cable is out")
        cluster.run(4.5, 0.05)
        self.assertEqual(State.OWNER_STOPPING, cluster.nodes[1].state())
        cluster.run(4.0, 0.05)
        self.assertEqual([], cluster.running())
        hosts.connected(left)
        cluster.run(1.0, 0.05)
        self.assertEqual([State.OFF] * 3, [node.state() for node in cluster.nodes])

    def test_two_of_one_name(self) -> None:
        """That another node has the same name is logged."""
        heard: list[str] = []

        def hear_all(event: Any) -> None:
            heard.append(formatEvent(event))

        hear: Any = hear_all
        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)
        cluster = self.begin(nodes=1)
        Node("ns1", cluster)
        cluster.run(0.5)
        self.assertTrue([line for line in heard if "another node is called ns1" in line])

    def test_fence(self) -> None:
        """With `fence`, a host that all nodes have lost is fenced once, and what ran there starts elsewhere."""
        cluster = self.begin(on_host_loss=OnHostLoss.RESTART, fence="fence --hard")
        ran: list[list[str]] = []
        self.fence_by(cluster, ran.append)
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.lose("left")
        cluster.nodes[2].pool.connected(cluster.hosts["left"])
        cluster.run(15.0, 0.05)
        self.assertEqual([], ran)  # one of them has it
        cluster.nodes[2].pool.lost(cluster.hosts["left"], "the cable is out")
        for guest in cluster.hosts["left"].guests.values():
            guest.power = Power.OFF
        cluster.run(25.0, 0.05)
        self.assertEqual([["fence", "--hard", "left"]], ran)
        self.assertEqual(["right"], cluster.running())
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        for node in cluster.nodes:
            node.pool.connected(cluster.hosts["left"])
        cluster.run(1.0)
        self.assertEqual(["right"], cluster.running())
        self.assertEqual([set()] * 3, [node.pool.fenced for node in cluster.nodes])

    def test_back_while_fenced(self) -> None:
        """A host that is connected again when `fence` ends does not count as dead, although that has succeeded."""
        cluster = self.begin(on_host_loss=OnHostLoss.RESTART, fence="fence", nodes=1)
        (node,) = cluster.nodes
        self.fence_by(cluster, lambda _: node.pool.connected(cluster.hosts["left"]))
        node.ask()
        cluster.run(1.0)
        cluster.lose("left")
        cluster.run(15.0, 0.05)
        self.assertNotIn("dead/left", cluster.table.facts)
        self.assertEqual(["left"], cluster.running())

    def test_fence_connected(self) -> None:
        """A host that is connected again while the command runs is not taken for dead."""
        place = self.begin(on_host_loss=OnHostLoss.RESTART, fence="fence", nodes=1)
        ran: list[list[str]] = []
        self.fence_by(place, ran.append, after=3.0)
        place.nodes[0].ask()
        place.run(1.0)
        place.lose("left")
        place.run(11.0, 0.05)
        self.assertEqual(1, len(ran))
        place.nodes[0].pool.connected(place.hosts["left"])
        place.run(5.0, 0.05)
        self.assertEqual((set(), ["left"]), (place.nodes[0].pool.fenced, place.running()))
        self.assertNotIn("dead/left", place.facts())

    def test_blind(self) -> None:
        """A node that cannot reach a host answers for a VM there while it is up, and then may start it elsewhere."""
        cluster = self.begin(idle=20.0)
        first = cluster.nodes[0]
        first.ask()
        cluster.run(1.0)
        first.pool.lost(cluster.hosts["left"], "the cable is out")
        cluster.run(13.0, 0.05)
        self.assertIn(cluster.owner(), {"ns2", "ns3"})
        first.ask()
        self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
        cluster.run(40.0, 0.05)
        self.assertEqual([], cluster.running())
        self.assertEqual([State.OFF] * 3, [node.state() for node in cluster.nodes])
        first.ask()
        cluster.run(1.0)
        self.assertEqual(["right"], cluster.running())
        self.assertEqual([True] * 3, first.answers)

    def test_fence_fails(self) -> None:
        """Where fencing fails, nothing is started elsewhere."""
        for code in (1, None):
            cluster = self.begin(on_host_loss=OnHostLoss.RESTART, fence="fence", nodes=1)
            tried: list[list[str]] = []
            self.fence_by(cluster, tried.append, code)
            cluster.nodes[0].ask()
            cluster.run(1.0)
            cluster.lose("left")
            cluster.run(30.0, 0.05)
            self.assertGreater(len(tried), 1)
            self.assertEqual(["left"], cluster.running())

    def test_move(self) -> None:
        """A VM is moved by a stop and a start, through any node; it is not kept where its image was."""
        for asked in (0, 1):
            cluster = self.begin(mode=Mode.SAVE)
            cluster.nodes[0].ask()
            cluster.run(1.0)
            node = cluster.nodes[asked]
            moved = node.fleet.cluster.move(node.fleet.machines["www"], "right")
            cluster.run(2.0)
            self.successResultOf(moved)
            self.assertEqual(["right"], cluster.running())
            self.assertEqual([State.UP] * 3, [node.state() for node in cluster.nodes])
            self.assertEqual(Power.OFF, next(iter(cluster.hosts["left"].guests.values())).power)

    def test_moved_by_others(self) -> None:
        """A VM that was moved by hand stays where it is, also if its owner has died just then."""
        for killed in (False, True):
            cluster = self.begin()
            first = cluster.nodes[0]
            first.ask()
            cluster.run(1.0)
            left, right = (next(iter(host.guests.values())) for host in cluster.hosts.values())
            uuid = next(iter(cluster.hosts["left"].guests))
            if killed:
                first.kill()
            left.power, right.power = Power.OFF, Power.RUNNING
            for name in cluster.hosts:
                cluster.hosts[name].changed(uuid, "moved by hand")
            cluster.run(8.0 if killed else 1.0, 0.05)
            self.assertEqual("right", json.loads(cluster.facts()["runs/www"])["host"])
            self.assertEqual([State.UP] * (3 - killed), [node.state() for node in cluster.nodes[killed:]])
            self.assertEqual(0, right.starts)

    def test_wrong_moves(self) -> None:
        """A move that is impossible fails with the reason."""
        cluster = self.begin(nodes=1)
        (node,) = cluster.nodes
        machine = node.fleet.machines["www"]
        for host, words in (("middle", "may run on left, right, not on middle"), ("right", "only a VM that is up")):
            failure = self.failureResultOf(node.fleet.cluster.move(machine, host), JitsuError)
            self.assertIn(words, str(failure.value))
        node.ask()
        cluster.run(1.0)
        self.patch(cluster.hosts["left"], "stop", lambda *_: fail(BackendError("its disk is busy")))
        moved = node.fleet.cluster.move(machine, "right")
        cluster.run(1.0)
        self.assertIn("its disk is busy", str(self.failureResultOf(moved, JitsuError).value))
        self.assertIsNone(node.pool._placement.take_wanted(machine.vm))

    def test_drain_host(self) -> None:
        """The VMs of a drained host move to the other; nothing is started there until that is undone."""
        cluster = self.begin()
        cluster.nodes[0].ask()
        cluster.run(1.0)
        cluster.nodes[2].fleet.cluster.drain("hosts", "left")
        cluster.run(2.0)
        self.assertEqual(["right"], cluster.running())
        cluster.nodes[0].fleet.operator.stop("www")
        cluster.run(1.0)
        cluster.nodes[1].ask()
        cluster.run(1.0)
        self.assertEqual(["right"], cluster.running())
        cluster.nodes[1].fleet.operator.stop("www")
        cluster.nodes[1].fleet.cluster.drain("hosts", "left", undo=True)
        cluster.run(1.0)
        cluster.nodes[1].ask()
        cluster.run(1.0)
        self.assertEqual(["left"], cluster.running())

    def test_drain_node(self) -> None:
        """Other nodes adopt the VMs of a drained node, which starts nothing until that is undone."""
        cluster = self.begin()
        first = cluster.nodes[0]
        first.ask()
        cluster.run(1.0)
        first.fleet.cluster.drain("nodes", "ns1")
        cluster.run(1.0)
        self.assertIn(cluster.owner(), {"ns2", "ns3"})
        self.assertEqual(1, sum(guest.starts for host in cluster.hosts.values() for guest in host.guests.values()))
        cluster.nodes[1].fleet.operator.stop("www")
        cluster.run(1.0)
        first.answers.clear()
        first.ask()
        first.answers.pop().trap(ClusterUnavailable)
        first.fleet.cluster.drain("nodes", "ns1", undo=True)
        cluster.run(0.5)
        first.ask()
        cluster.run(1.0)
        self.assertEqual([True], first.answers)
