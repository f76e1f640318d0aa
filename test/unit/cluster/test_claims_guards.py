"""What one node may write and do by the claims of a cluster: `Claims` without a fleet, of nodes that share a table."""

from __future__ import annotations

import json
from math import inf
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.claims import ADOPTS_AT_ONCE, REUNION, Claims, up
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.cluster.starts import Starts
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import Request
from jitsu_tw.rules.lifecycle import Event, State
from jitsu_tw.settings import STARTS_WITHIN, Settings
from test.support import EPOCH, BoundedClock, vm

if TYPE_CHECKING:
    from collections.abc import Callable

CLAIM = "claims/www"
RUNS = "runs/www"


class FakeMachine:
    """
    A VM as one node sees it.

    Attributes:
        state: its state at the node.
        told: the inputs that it was given.
    """

    def __init__(self, name: str = "www") -> None:
        """Begin with a VM that is off."""
        self.vm, self.uuid, self.reason = vm(name), "a uuid", "it did not boot"
        self.state = State.OFF
        self.is_unsure = False
        self.told: list[str] = []
        self.looks: Callable[[], object] = lambda: None

    def feed(self, event: Event, reason: str) -> None:
        """Remember it."""
        self.told.append(f"{event.value}: {reason}")

    def owner_keeps(self) -> None:
        """Remember it."""
        self.told.append("keeps")

    def refuse(self, reason: str, _: type[Exception]) -> None:
        """Remember it."""
        self.told.append(f"refuse: {reason}")

    def look(self, reason: str) -> Deferred[None]:
        """Remember it; the VM is found as *looks* makes it."""
        self.told.append(f"look: {reason}")
        self.looks()
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


class Node:
    """
    One of the nodes, with a VM www, and others by number.

    Attributes:
        heard: the events of www that the node was told.
        uses: the times of uses that it was told.
        requests: what it was asked for.
    """

    def __init__(self, name: str, clock: BoundedClock, table: Table, others: int = 0) -> None:
        """Connect."""
        self.machine: Any = FakeMachine()
        self.machines: dict[str, Any] = {"www": self.machine}
        self.machines |= {f"vm{number}": FakeMachine(f"vm{number}") for number in range(others)}
        self.heard: list[str] = []
        self.uses: list[float] = []
        self.requests: list[Request] = []
        self.coordinator = MemoryCoordinator(name, table)
        clocks = Clocks(clock, clock.seconds, lambda: EPOCH + clock.seconds())
        events: Any = self
        self.membership = Membership(Settings(), None, self.coordinator, clocks, self.machines, events)
        assert isinstance(self.membership.ownership, Claims)
        assert isinstance(self.membership._starts, Starts)
        self.claims, self.starts = self.membership.ownership, self.membership._starts
        hosts: Any = self.membership._hosts
        self.hosts = hosts
        hosts.seen_down = lambda _: self.heard.append("down")
        self.membership.start()

    def gather(self) -> None:
        """Have noted all uses."""

    def claim_free(self, _: str) -> None:
        """Remember it."""
        self.heard.append("free")

    def owner_changed(self, _: str) -> None:
        """Remember it."""
        self.heard.append("owner")

    def speaker_changed(self, _: str) -> None:
        """Remember it."""
        self.heard.append("claim")

    def used(self, _: str, when: float) -> None:
        """Remember it."""
        self.uses.append(when)

    def requested(self, _: str, request: Request) -> None:
        """Remember it."""
        self.requests.append(request)

    def node_left(self) -> None:
        """Do nothing: there is no Synjitsu."""


class ClaimsTestCase(SynchronousTestCase):
    """Two nodes, of which the second does nothing by itself."""

    def setUp(self) -> None:
        """Begin long after the nodes were connected."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.table = Table(self.clock)
        self.node, self.other = (Node(name, self.clock, self.table) for name in ("ns1", "ns2"))
        self.run_for(10.0)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.01] * round(seconds * 100))

    def forget(self) -> None:
        """Forget what the first node was told."""
        self.node.heard.clear()
        self.node.machine.told.clear()

    def write(self, key: str, value: Any) -> None:
        """Write a fact, as a third node does; None removes it."""
        self.table.change({key: None if value is None else json.dumps(value)})
        self.run_for(0.1)

    def claim(self, state: State, node: Node | None = None) -> None:
        """Claim the VM for a node; it enters *state*."""
        node = node or self.node
        node.machine.state = State.QUEUED
        claimed = node.claims.claim(node.machine)
        self.run_for(0.1)
        self.assertTrue(self.successResultOf(claimed))
        node.machine.state = state

    def says(self) -> str:
        """Return what the owner tells of the VM."""
        said: str = json.loads(self.table.facts[CLAIM])["is"]
        return said


class ConditionTests(ClaimsTestCase):
    """A write that arrives when another node owns the VM changes nothing."""

    def test_lost_meanwhile(self) -> None:
        """No write of a former owner changes what the next owner has written: each write has a condition."""
        ask = json.dumps({"do": "hold", "word": "", "by": "ns2"})
        steps: dict[str, tuple[State, Callable[[Node, Any], object]]] = {
            "it is off": (State.OFF, lambda node, machine: node.claims.moved(machine, State.UNKNOWN)),
            "its start has failed": (State.FAILED, lambda node, machine: node.claims.moved(machine, State.UNKNOWN)),
            "it is up": (State.UP, lambda node, machine: node.claims.moved(machine, State.UNKNOWN)),
            "it stops": (State.STOPPING, lambda node, machine: node.claims.moved(machine, State.UNKNOWN)),
            "it is no more": (State.OFF, lambda node, machine: node.claims.forget(machine)),
            "it is placed": (State.STARTING, lambda node, machine: node.starts.record(machine, "left")),
            "it runs elsewhere": (State.UP, lambda node, machine: node.starts.seen_on(machine, "left")),
            "its end is near": (State.UP, lambda node, machine: node.claims.announce_stop(machine)),
            "the node is drained": (State.UP, lambda node, _: node.claims.release(up(node.machines), "drained")),
            "it was asked for": (State.UP, lambda node, _: node.membership.told("asks/www", ask, None)),
        }
        for what, (state, step) in steps.items():
            self.setUp()
            third = MemoryCoordinator("ns3", self.table)
            self.claim(state)
            self.node.starts.record(self.node.machine, "middle")
            self.run_for(0.1)
            self.assertTrue(self.node.claims.is_own(self.node.machine))
            step(self.node, self.node.machine)
            facts = {
                CLAIM: json.dumps({"node": "ns3", "is": "starting"}),
                RUNS: json.dumps({"since": self.clock.seconds() + EPOCH, "host": "right"}),
                "asks/www": ask,
            }
            self.table.change(dict(facts), third)
            self.run_for(1.0)
            self.assertEqual(facts, {key: self.table.facts.get(key) for key in facts}, what)
            self.assertIs(third, self.table.owners[CLAIM], what)

    def test_own(self) -> None:
        """What the owner writes arrives."""
        self.claim(State.STARTING)
        self.assertEqual("starting", self.says())
        self.node.starts.record(self.node.machine, "left")
        self.run_for(0.1)
        self.assertEqual("left", json.loads(self.table.facts[RUNS])["host"])
        for state, word in ((State.UP, "up"), (State.STOPPING, "ending")):
            self.node.machine.state = state
            self.node.claims.moved(self.node.machine, State.UNKNOWN)
            self.run_for(0.1)
            self.assertEqual(word, self.says())
        self.node.machine.state = State.OFF
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertEqual([], [key for key in self.table.facts if key.endswith("/www")])

    def test_runs_on(self) -> None:
        """The owner alone records the host that a VM is seen on, if that differs from the recorded one."""
        machine = self.node.machine
        self.claim(State.UP)
        self.node.starts.seen_on(machine, "left")  # on which host it was started, nobody has said
        self.run_for(0.1)
        self.assertNotIn(RUNS, self.table.facts)
        self.node.starts.record(machine, "left")
        self.run_for(0.1)
        since = self.table.facts[RUNS]
        self.run_for(1.0)
        for host in ("left", ""):
            self.node.starts.seen_on(machine, host)
            self.other.starts.seen_on(self.other.machine, "middle")
            self.run_for(0.1)
            self.assertEqual(since, self.table.facts[RUNS])
        self.assertFalse(self.other.starts.forget(self.other.machine))  # it was not that node's start
        self.node.starts.seen_on(machine, "right")
        self.run_for(0.1)
        self.assertEqual("right", json.loads(self.table.facts[RUNS])["host"])


class ProofTests(ClaimsTestCase):
    """Which node may start a VM."""

    def test_claimed(self) -> None:
        """A VM that another node owns cannot be claimed or proven."""
        self.claim(State.UP, self.other)
        claimed = self.node.claims.claim(self.node.machine)
        self.run_for(0.1)
        self.assertFalse(self.successResultOf(claimed))
        error = self.assertRaises(ClusterUnavailable, self.node.claims.prove, self.node.machine)
        self.assertIn("another node may own it by now", str(error))

    def test_not_certain(self) -> None:
        """A claim that may have expired cannot be proven; its owner knows that before the others."""
        self.claim(State.STARTING)
        self.node.claims.prove(self.node.machine)
        self.node.coordinator.cut()
        self.run_for(4.0)
        self.node.claims.prove(self.node.machine)
        self.run_for(0.7)
        self.assertIn(CLAIM, self.table.facts)
        error = self.assertRaises(ClusterUnavailable, self.node.claims.prove, self.node.machine)
        self.assertIn("etcd does not answer", str(error))

    def test_drained(self) -> None:
        """A drained node claims nothing, and releases a VM that comes up all the same."""
        self.claim(State.STARTING)
        self.table.change({"drained/nodes/ns1": "by hand"})
        self.run_for(0.1)
        self.node.machine.state = State.UP
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)
        self.node.machine.state = State.QUEUED
        failure = self.failureResultOf(self.node.claims.claim(self.node.machine), ClusterUnavailable)
        self.assertIn("ns1 is drained", failure.getErrorMessage())
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)

    def test_wanted_no_more(self) -> None:
        """A claim is released at once if the VM is not wanted any more when it is there."""
        self.node.machine.state = State.QUEUED
        claimed = self.node.claims.claim(self.node.machine)
        self.node.machine.state = State.OFF
        self.run_for(0.1)
        self.assertTrue(self.successResultOf(claimed))
        self.assertNotIn(CLAIM, self.table.facts)

    def test_cut_off(self) -> None:
        """A node that is cut off may neither claim nor stop a VM."""
        self.claim(State.UP)
        self.assertTrue(self.node.claims.is_own(self.node.machine))
        self.node.coordinator.cut()
        self.run_for(5.1)
        self.assertFalse(self.node.claims.is_own(self.node.machine))
        self.assertTrue(self.node.claims.announce_stop(self.node.machine))
        self.failureResultOf(self.node.claims.claim(self.node.machine), ClusterUnavailable)


class ReleaseTests(ClaimsTestCase):
    """What the owner releases when a VM does not run any more."""

    def test_failed(self) -> None:
        """The other nodes are told why a start has failed before its claim is released."""
        self.claim(State.FAILED)
        said: list[str | None] = []
        self.patch(self.other, "speaker_changed", lambda _: said.append(self.other.coordinator.facts.get(CLAIM)))
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(0.1)
        failed, released = said
        self.assertEqual({"node": "ns1", "is": "failed", "why": "it did not boot"}, json.loads(failed or ""))
        self.assertIsNone(released)

    def test_started_again(self) -> None:
        """A VM that is to be started again when its failure has been told keeps its claim."""
        self.claim(State.FAILED)
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.node.machine.state = State.QUEUED
        self.run_for(1.0)
        self.assertTrue(self.node.claims.is_own(self.node.machine))

    def test_may_come_up_yet(self) -> None:
        """A start that a dead node had begun is remembered as long as it may succeed, and not longer."""
        for age, is_kept in ((0.0, True), (STARTS_WITHIN - 1.0, True), (STARTS_WITHIN + 1.0, False)):
            self.setUp()
            runs = json.dumps({"since": EPOCH + self.clock.seconds() - age, "host": "left"})
            self.table.change({RUNS: runs})
            self.claim(State.OFF)
            self.node.claims.moved(self.node.machine, State.UNKNOWN)
            self.run_for(0.1)
            self.assertNotIn(CLAIM, self.table.facts)
            self.assertEqual(is_kept, RUNS in self.table.facts, age)

    def test_own_start_before(self) -> None:
        """A node that started a VM once, and saw it down, does not take a later start of another node for its own."""
        self.claim(State.STARTING)
        self.node.starts.record(self.node.machine, "left")
        self.node.machine.state = State.OFF
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertNotIn(RUNS, self.table.facts)
        self.table.change({RUNS: json.dumps({"since": EPOCH + self.clock.seconds(), "host": "left"})})
        self.claim(State.OFF)
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertIn(RUNS, self.table.facts)

    def test_unknown(self) -> None:
        """The claim of a VM is kept while its hypervisor cannot be asked: it may run."""
        self.claim(State.UP)
        for state in (State.UNKNOWN, State.FAILED):
            self.node.machine.state, self.node.machine.is_unsure = state, True
            self.node.claims.moved(self.node.machine, State.UNKNOWN)
            self.run_for(1.0)
            self.assertTrue(self.node.claims.is_own(self.node.machine))

    def test_no_more(self) -> None:
        """The owner releases a VM that the configuration has no more."""
        self.claim(State.OFF)
        self.other.claims.forget(self.other.machine)
        self.run_for(0.1)
        self.assertIn(CLAIM, self.table.facts)
        self.node.claims.forget(self.node.machine)
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)

    def test_no_more_while_cut_off(self) -> None:
        """If the owner is cut off at that moment, it releases the claim when it is connected again."""
        self.claim(State.OFF)
        self.node.coordinator.cut()
        self.node.claims.forget(self.node.machines.pop("www"))
        self.run_for(1.5)
        self.assertIn(CLAIM, self.table.facts)
        self.node.coordinator.heal()
        self.run_for(1.5)
        self.assertNotIn(CLAIM, self.table.facts)

    def test_tidied(self) -> None:
        """The record of a start without an owner is removed when that cannot succeed any more, once, by one node."""
        now = EPOCH + self.clock.seconds()
        claims: list[str] = []
        for node in (self.node, self.other):
            claim = node.coordinator.claim

            def claimed(key: str, value: str, claim: Any = claim, node: Node = node) -> Any:
                claims.append(node.coordinator.node)
                return claim(key, value)

            self.patch(node.coordinator, "claim", claimed)
        for age in (0.0, STARTS_WITHIN - 5.0):
            self.write(RUNS, {"since": now - age, "host": "left"})
            for _ in range(3):
                self.node.claims.moved(self.node.machine, State.UNKNOWN)
            self.run_for(1.0)
            self.assertEqual([], claims)
        self.run_for(STARTS_WITHIN + 1.0)
        self.assertNotIn(RUNS, self.table.facts)
        self.assertEqual(["ns1"], claims)
        self.write(RUNS, {"since": now - 2 * STARTS_WITHIN, "host": "left"})
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertNotIn(RUNS, self.table.facts)

    def test_not_tidied(self) -> None:
        """The record of a start is not removed while another node owns the VM."""
        self.claim(State.STARTING, self.other)
        self.write(RUNS, {"since": EPOCH + self.clock.seconds() - 2 * STARTS_WITHIN, "host": "left"})
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.run_for(STARTS_WITHIN + 1.0)
        self.assertIn(RUNS, self.table.facts)

    def test_handed_over(self) -> None:
        """A node releases the VMs that it is told to, and no others."""
        self.claim(State.UP)
        self.node.hosts.is_blind = lambda _: True
        self.node.claims.release([], "why")
        self.run_for(0.1)
        self.assertIn(CLAIM, self.table.facts)
        self.node.claims.release([self.node.machine], "why")
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)

    def test_in_the_middle(self) -> None:
        """A VM that its owner starts or stops is not released before that has ended."""
        for state in (State.QUEUED, State.STARTING, State.WAITING, State.STOPPING):
            self.setUp()
            self.claim(state)
            self.node.claims.release(self.node.machines.values(), "why")
            self.node.claims.release(up(self.node.machines), "why")
            self.run_for(1.0)
            self.assertTrue(self.node.claims.is_own(self.node.machine), state)

    def test_stops(self) -> None:
        """A node that has stopped changes nothing later."""
        self.table.change({RUNS: json.dumps({"since": EPOCH + self.clock.seconds(), "host": "left"})})
        self.run_for(0.1)
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        stopped = Deferred.fromCoroutine(self.node.claims.stop())
        self.run_for(0.1)
        self.successResultOf(stopped)
        self.run_for(STARTS_WITHIN + 1.0)
        self.assertIn(RUNS, self.table.facts)


class EndTests(ClaimsTestCase):
    """Which node may stop a VM, and when."""

    def end(self) -> bool:
        """Try to end the lease of the VM for as long as a notice takes; return whether it may be stopped."""
        for _ in range(3):
            if not self.node.claims.announce_stop(self.node.machine):
                return True
            self.run_for(1.0)
        return False

    def test_owner(self) -> None:
        """The owner may stop a VM after a notice; a node that does not own it never may."""
        self.assertFalse(self.end())
        self.claim(State.UP, self.other)
        self.assertFalse(self.end())
        self.assertEqual(inf, self.node.claims.announce_stop(self.node.machine))
        self.assertNotEqual("ending", self.says())
        self.setUp()
        self.claim(State.UP)
        self.assertTrue(self.end())
        self.assertEqual("ending", self.says())

    def test_notice_of_before(self) -> None:
        """A notice holds for one end: not for the next one, not after a use, and not after the node was cut off."""
        def goes_down() -> None:
            self.node.machine.state = State.OFF
            self.node.claims.moved(self.node.machine, State.UNKNOWN)
            self.run_for(0.1)
            self.claim(State.UP)

        def is_cut_off() -> None:
            self.node.coordinator.cut()
            self.run_for(4.6)
            self.node.coordinator.heal()
            self.run_for(5.0)

        def goes_on() -> None:
            self.node.claims.withdraw_stop(self.node.machine)
            self.run_for(0.1)
            self.assertEqual("", self.says().replace("up", ""))

        def is_handed_over() -> None:
            self.node.claims.release(self.node.machines.values(), "why")
            self.run_for(0.1)
            self.claim(State.UP)

        for happens in (goes_down, is_cut_off, goes_on, is_handed_over):
            self.setUp()
            self.claim(State.UP)
            self.assertTrue(self.end())
            happens()
            self.assertTrue(self.node.claims.is_own(self.node.machine), happens.__name__)
            self.assertTrue(self.node.claims.announce_stop(self.node.machine), happens.__name__)

    def test_together_again(self) -> None:
        """After a node was cut off, it gives no notice before the other nodes could tell what was used meanwhile."""
        self.claim(State.UP)
        self.node.claims.moved(self.node.machine, State.UNKNOWN)
        self.node.coordinator.cut()
        self.run_for(4.6)
        self.node.coordinator.heal()
        self.run_for(REUNION - 0.5)
        self.assertTrue(self.node.claims.is_own(self.node.machine))
        self.assertTrue(self.node.claims.announce_stop(self.node.machine))
        self.run_for(0.4)
        self.assertEqual("up", self.says())
        self.run_for(0.2)
        self.assertTrue(self.node.claims.announce_stop(self.node.machine))
        self.run_for(0.1)
        self.assertEqual("ending", self.says())

    def test_asked_to_stop(self) -> None:
        """A request for a stop is answered when the VM is down, another request at once."""
        self.claim(State.UP)
        self.other.machine.state = State.UP
        held = self.other.membership.request(self.other.machine, Request.HOLD)
        stopped = self.other.membership.request(self.other.machine, Request.STOP)
        self.run_for(0.1)
        self.assertIs(State.UP, self.successResultOf(held))
        for state in (State.STOPPING, State.UP, State.WAITING):
            self.other.machine.state = state
            self.other.claims.moved(self.other.machine, State.UNKNOWN)
            self.assertNoResult(stopped)
        self.other.machine.state = State.OFF
        self.other.claims.moved(self.other.machine, State.UNKNOWN)
        self.assertIs(State.OFF, self.successResultOf(stopped))

    def test_used_elsewhere(self) -> None:
        """A use that another node reports reaches the owner as a time of its own clock."""
        self.claim(State.UP)
        self.other.machine.state = State.UP
        self.other.claims.note_use(self.other.machine, self.clock.seconds() - 3.0)
        expected = self.clock.seconds() - 3.0
        self.run_for(5.0)
        self.assertEqual(1, len(self.node.uses))
        self.assertAlmostEqual(expected, self.node.uses[0], places=2)

    def test_asks(self) -> None:
        """The owner does once what it is asked for; other nodes do nothing."""
        self.claim(State.UP)
        self.other.membership.request(self.other.machine, Request.HOLD)
        self.run_for(1.0)
        self.assertEqual(([Request.HOLD], []), (self.node.requests, self.other.requests))
        self.assertNotIn("asks/www", self.table.facts)


class HeardTests(ClaimsTestCase):
    """What follows from a fact that another node has written."""

    def check(self, state: State, value: Any, heard: list[str], told: list[str]) -> None:
        """Check the events, and the inputs of the VM in *state*, when the claim becomes *value*."""
        self.node.machine.state = state
        self.forget()
        self.write(CLAIM, value)
        message = f"{state} {value}"
        self.assertEqual(["claim", *heard], self.node.heard, message)
        self.assertEqual(told, self.node.machine.told, message)

    def test_claims(self) -> None:
        """What an owner tells leads to an input or an event, depending on the state of the VM at this node."""
        failed = {"node": "ns3", "is": "failed", "why": "its disk is busy"}
        self.check(State.QUEUED, {"node": "ns3", "is": "starting"}, [], [])
        self.check(State.QUEUED, {"node": "ns3", "is": "up"}, [], ["keeps"])
        self.check(State.UP, {"node": "ns3", "is": "ending"}, ["owner"], ["owner stops: to be stopped"])
        self.check(State.UP, {"node": "ns3", "is": "up"}, ["owner"], ["keeps"])
        self.check(State.STOPPING, failed, [], [])
        self.check(State.QUEUED, None, ["free"], ["keeps"])
        self.check(State.QUEUED, failed, [], ["fail: its disk is busy"])
        self.check(State.OFF, None, [], ["keeps"])
        self.check(State.QUEUED, {"node": "ns3", "is": "failed"}, [], ["fail: it did not start"])

    def test_ending_is_answered(self) -> None:
        """A node that has notice of a stop reports at once that the VM was used through it."""
        self.claim(State.UP, self.other)
        self.node.machine.state = State.UP
        self.node.claims.note_use(self.node.machine, self.clock.seconds())
        self.run_for(0.1)
        self.table.change({"used/www": None})
        self.write(CLAIM, {"node": "ns2", "is": "ending"})
        self.assertIn("used/www", self.table.facts)

    def test_down(self) -> None:
        """When the record of a start is removed, the VM was seen down."""
        self.write(RUNS, {"since": 1.0, "host": "left"})
        self.assertEqual(["claim"], self.node.heard)
        self.forget()
        self.write(RUNS, None)
        self.assertEqual(["claim", "down"], self.node.heard)

    def test_unknown_vm(self) -> None:
        """Facts of VMs that the configuration does not have are ignored."""
        for key in ("claims/other", "runs/other", "asks/other"):
            self.write(key, {"node": "ns3", "is": "up", "do": "stop"})
            self.write(key, None)
        self.assertEqual(([], []), (self.node.heard, self.node.machine.told))

    def test_ready(self) -> None:
        """The wait for another node's VM ends when its owner tells that it is ready, or is gone."""
        claims, machine = self.node.claims, self.node.machine
        self.assertIsNone(claims.owner_ready(machine))
        for value, is_ready in (({"node": "ns3", "is": "up"}, True), (None, False)):
            self.write(CLAIM, {"node": "ns3", "is": "starting"})
            word = claims.owner_ready(machine)
            assert word is not None
            self.assertNoResult(word)
            self.write(CLAIM, value)
            self.assertIs(is_ready, self.successResultOf(word))
            self.write(CLAIM, None)
        for how in ("up", "ending"):
            self.write(CLAIM, {"node": "ns3", "is": how})
            word = claims.owner_ready(machine)
            assert word is not None
            self.assertTrue(self.successResultOf(word))

    def test_waits_no_more(self) -> None:
        """After a wait was cancelled, the next one works. A wait ends with False when the node is cut off."""
        claims, machine = self.node.claims, self.node.machine
        machine.state = State.WAITING
        self.write(CLAIM, {"node": "ns3", "is": "starting"})
        first = claims.owner_ready(machine)
        assert first is not None
        first.cancel()
        self.failureResultOf(first)
        second = claims.owner_ready(machine)
        assert second is not None
        self.node.coordinator.cut()
        self.run_for(4.6)
        self.assertFalse(self.successResultOf(second))
        self.assertIsNone(claims.owner_ready(machine))

    def test_lost(self) -> None:
        """When a node is cut off, queued VMs are refused, and VMs that are up stay up."""
        expected = {
            State.QUEUED: ([], ["refuse: etcd does not answer", "keeps"]),
            State.UP: (["owner"], ["keeps"]),
            State.STOPPING: ([], ["keeps"]),
        }
        for state, (heard, told) in expected.items():
            self.setUp()
            self.node.machine.state = state
            self.forget()
            self.node.coordinator.cut()
            self.run_for(4.6)
            self.assertEqual((heard, told), (self.node.heard, self.node.machine.told), state)

    def test_connected(self) -> None:
        """When a node is connected again, all VMs are looked at anew: queued ones, and those that are up."""
        starting, ending = ({"node": "ns3", "is": how} for how in ("starting", "ending"))
        cases: tuple[tuple[State, Any, list[str], list[str]], ...] = (
            (State.QUEUED, None, ["free"], []),
            (State.UP, starting, ["owner"], []),
            (State.UP, ending, ["owner"], ["owner stops: to be stopped"]),
            (State.STOPPING, ending, [], []),
            (State.OFF, starting, [], []),
        )
        for state, value, heard, told in cases:
            self.setUp()
            self.node.coordinator.cut()
            self.run_for(4.6)
            self.write(CLAIM, value)
            self.node.machine.state = state
            self.forget()
            self.node.coordinator.heal()
            self.run_for(0.1)
            self.assertEqual(heard, [one for one in self.node.heard if one != "claim"], (state, value))
            self.assertEqual(told, self.node.machine.told, (state, value))

    def test_came_up_meanwhile(self) -> None:
        """What an owner could not tell while it was cut off it tells when it is connected again, unless it is known."""
        for how, number in (("starting", 1), ("up", 0)):
            self.setUp()
            self.claim(State.UP)
            if how == "up":
                self.node.claims.moved(self.node.machine, State.UNKNOWN)
                self.run_for(0.1)
            puts: list[Any] = []
            put = self.node.coordinator.put
            self.node.coordinator.cut()
            self.run_for(4.6)
            self.patch(self.node.coordinator, "put", lambda *of, puts=puts, put=put: puts.append(of) or put(*of))
            self.node.coordinator.heal()
            self.run_for(0.1)
            self.assertEqual("up", self.says())
            self.assertEqual(number, len(puts))

    def test_enlisted_again(self) -> None:
        """A node whose own fact is gone, because a former process had written it, writes it anew."""
        self.table.change({"nodes/ns1": None})
        self.run_for(0.1)
        self.assertIs(self.node.coordinator, self.table.owners["nodes/ns1"])
        self.table.change({"nodes/ns3": None})
        self.table.change({"nodes/ns1": "a former process"})
        self.run_for(0.1)
        self.assertEqual("a former process", self.table.facts["nodes/ns1"])


class SharedTests(ClaimsTestCase):
    """Which VMs that run were started by the cluster, and are adopted."""

    def test_signs(self) -> None:
        """A VM is known by its claim, by a recorded start, and by a claim that was seen since it was last down."""
        machine, claims = self.node.machine, self.node.claims
        self.assertFalse(claims.is_known(machine))
        self.claim(State.STARTING, self.other)
        self.assertTrue(claims.is_known(machine))
        self.table.change({CLAIM: None})
        self.run_for(0.1)
        self.assertTrue(claims.is_known(machine))
        claims.moved(machine, State.UNKNOWN)  # it is seen down
        self.assertFalse(claims.is_known(machine))
        self.table.change({RUNS: json.dumps({"since": EPOCH + self.clock.seconds(), "host": "left"})})
        self.run_for(0.1)
        self.assertTrue(claims.is_known(machine))

    def test_since(self) -> None:
        """An adopted VM was used when any node has reported, and started when its first owner has recorded."""
        now = self.clock.seconds()
        self.table.change({RUNS: json.dumps({"since": EPOCH + now - 500.0, "host": ""})})
        self.table.change({"used/www": f"{EPOCH + now - 100.0:.3f}"})
        self.run_for(0.1)
        used, started = self.node.claims.times(self.node.machine)
        self.assertAlmostEqual(now - 500.0, started, places=1)
        self.assertTrue(now - 100.1 <= used <= now - 70.0, used)

    def test_adopted(self) -> None:
        """A VM that is up without its owner is adopted; one that was started by hand, or has an owner, is not."""
        machine, claims = self.node.machine, self.node.claims
        machine.state = State.UP
        claims.moved(machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)
        self.claim(State.UP, self.other)
        claims.moved(machine, State.UNKNOWN)
        self.run_for(0.1)
        self.assertIs(self.other.coordinator, self.table.owners[CLAIM])
        self.other.machine.state = State.UNKNOWN  # it adopts nothing
        self.table.change({CLAIM: None})
        self.run_for(0.1)
        self.assertTrue(claims.is_own(machine))
        self.assertEqual("up", self.says())
        self.assertIn("look: its owner is gone", machine.told)
        self.assertIn(RUNS, self.table.facts)

    def test_many(self) -> None:
        """All VMs of a dead node are adopted, some at a time, each once; and those only that are found running."""
        self.node = Node("ns9", self.clock, self.table, 3 * ADOPTS_AT_ONCE)
        self.run_for(0.1)
        machines = [machine for name, machine in self.node.machines.items() if name != "www"]
        most, looking = 0, 0
        for machine in machines:
            self.table.change({f"claims/{machine.vm.name}": json.dumps({"node": "ns3", "is": "up"})})
            machine.state = State.UP
        self.run_for(1.0)

        async def looks(machine: Any) -> None:
            nonlocal most, looking
            machine.told.append("looked at")
            looking += 1
            most = max(most, looking)
            await deferLater(self.clock, 0.5)
            looking -= 1
            if machine.vm.name.endswith("7"):
                machine.state = State.OFF

        for machine in machines:
            machine.look = lambda _, machine=machine: Deferred.fromCoroutine(looks(machine))
            machine.told.clear()
        claimed: list[str] = []
        claim = self.node.coordinator.claim
        self.patch(self.node.coordinator, "claim", lambda key, value: claimed.append(key) or claim(key, value))  # type: ignore[func-returns-value]
        self.table.change({f"claims/{machine.vm.name}": None for machine in machines})
        self.run_for(0.2)
        for machine in machines:
            self.node.claims.moved(machine, State.UNKNOWN)
        self.run_for(5.0)
        self.assertEqual(ADOPTS_AT_ONCE, most)
        self.assertEqual({1}, {machine.told.count("looked at") for machine in machines})
        for machine in machines:
            runs = not machine.vm.name.endswith("7")
            self.assertIs(runs, self.node.claims.is_own(machine), machine.vm.name)
            self.assertIs(runs, f"runs/{machine.vm.name}" in self.table.facts, machine.vm.name)
            self.assertIs(runs, f"claims/{machine.vm.name}" in claimed, machine.vm.name)

    def test_not_up(self) -> None:
        """A VM that starts or stops is not adopted before that has ended."""
        self.claim(State.WAITING, self.other)
        self.node.machine.state, self.other.machine.state = State.WAITING, State.UNKNOWN
        self.run_for(0.1)
        self.write(CLAIM, None)
        self.run_for(1.0)
        self.assertNotIn(CLAIM, self.table.facts)

    def test_not_adopted(self) -> None:
        """A node adopts no VM that it cannot see, and none while it is drained."""
        def is_blind() -> None:
            self.node.hosts.is_blind = lambda _: True

        def is_drained() -> None:
            self.table.change({"drained/nodes/ns1": "by hand"})

        for happens in (is_blind, is_drained):
            self.setUp()
            self.claim(State.UP, self.other)
            happens()
            self.node.machine.state, self.other.machine.state = State.UP, State.UNKNOWN
            self.run_for(0.1)
            self.table.change({CLAIM: None})
            self.run_for(1.0)
            self.assertNotIn(CLAIM, self.table.facts, happens.__name__)
