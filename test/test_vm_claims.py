"""What one node may write and do by the claims of a cluster: `Sharing` alone, between nodes that share a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.errors import CutOff
from jitsu_tw.settings import STARTS_WITHIN
from jitsu_tw.vm.lifecycle import State
from jitsu_tw.vm.sharing import Ask, Sharing
from test.support import EPOCH, BoundedClock, vm

if TYPE_CHECKING:
    from collections.abc import Callable

CLAIM = "claims/www"
RUNS = "runs/www"


class FakeMachine:
    """
    A VM as one node sees it.

    Attributes:
        state: what the node believes of it.
        told: what the node was told to do with it.
    """

    def __init__(self) -> None:
        """Begin with a VM that is off."""
        self.vm, self.uuid, self.reason = vm(), "a uuid", "it did not boot"
        self.state = State.OFF
        self.is_unsure = False
        self.told: list[str] = []

    def leave(self, reason: str) -> None:
        """Remember it."""
        self.told.append(f"leave: {reason}")

    def stay(self) -> None:
        """Remember it."""
        self.told.append("stay")

    def refuse(self, reason: str, _: type[Exception]) -> None:
        """Remember it."""
        self.told.append(f"refuse: {reason}")

    def fail(self, reason: str) -> None:
        """Remember it."""
        self.told.append(f"fail: {reason}")

    def look(self, reason: str) -> Deferred[None]:
        """Remember it; the VM is found as it is."""
        self.told.append(f"look: {reason}")
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


class Node:
    """One of the nodes, with one VM."""

    def __init__(self, name: str, clock: BoundedClock, table: Table) -> None:
        """Join."""
        self.machine: Any = FakeMachine()
        self.coordinator = MemoryCoordinator(name, table)
        clocks = Clocks(clock, clock.seconds, lambda: EPOCH + clock.seconds())
        machines: dict[str, Any] = {"www": self.machine}
        self.sharing = Sharing(self.coordinator, machines, clocks)
        self.sharing.start()


class ClaimsTestCase(SynchronousTestCase):
    """Two nodes, of which the second does nothing by itself."""

    def setUp(self) -> None:
        """Begin long after the nodes have joined."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.table = Table(self.clock)
        self.node, self.other = (Node(name, self.clock, self.table) for name in ("ns1", "ns2"))
        self.run_for(10.0)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.01] * round(seconds * 100))

    def claim(self, state: State, node: Node | None = None) -> None:
        """Let a node have the claim of the VM, which is then in *state*."""
        node = node or self.node
        node.machine.state = State.QUEUED
        claimed = node.sharing.claim(node.machine)
        self.run_for(0.1)
        self.assertTrue(self.successResultOf(claimed))
        node.machine.state = state

    def says(self) -> str:
        """Return what the owner says of the VM."""
        said: str = json.loads(self.table.facts[CLAIM])["is"]
        return said


class ConditionTests(ClaimsTestCase):
    """What a node writes of a VM that has become another node's when it arrives."""

    def test_lost_meanwhile(self) -> None:
        """Nothing that a node writes of a VM touches what its next owner has written: each write has a condition."""
        ask = json.dumps({"do": "hold", "word": "", "by": "ns2"})
        steps: dict[str, tuple[State, Callable[[Sharing, Any], object]]] = {
            "it is off": (State.OFF, lambda sharing, machine: sharing.moved(machine)),
            "its start has failed": (State.FAILED, lambda sharing, machine: sharing.moved(machine)),
            "it is up": (State.UP, lambda sharing, machine: sharing.moved(machine)),
            "it stops": (State.STOPPING, lambda sharing, machine: sharing.moved(machine)),
            "it is no more": (State.OFF, lambda sharing, machine: sharing.forget(machine)),
            "it is placed": (State.STARTING, lambda sharing, machine: sharing.place(machine, "left")),
            "it runs elsewhere": (State.UP, lambda sharing, machine: sharing.runs_on(machine, "left")),
            "its end is near": (State.UP, lambda sharing, machine: sharing.may_end(machine)),
            "it is handed on": (State.UP, lambda sharing, _: sharing.hand_on()),
            "it is handed over": (State.UP, lambda sharing, _: sharing.hand_over(lambda _: True)),
            "it was asked for": (State.UP, lambda sharing, _: sharing.told("asks/www", ask, None)),
        }
        for what, (state, step) in steps.items():
            self.setUp()
            third = MemoryCoordinator("ns3", self.table)
            self.claim(state)
            self.node.sharing.place(self.node.machine, "middle")
            self.run_for(0.1)
            self.assertTrue(self.node.sharing.is_ours(self.node.machine))
            step(self.node.sharing, self.node.machine)
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
        self.node.sharing.place(self.node.machine, "left")
        self.run_for(0.1)
        self.assertEqual("left", json.loads(self.table.facts[RUNS])["host"])
        for state, word in ((State.UP, "up"), (State.STOPPING, "ending")):
            self.node.machine.state = state
            self.node.sharing.moved(self.node.machine)
            self.run_for(0.1)
            self.assertEqual(word, self.says())
        self.node.machine.state = State.OFF
        self.node.sharing.moved(self.node.machine)
        self.run_for(0.1)
        self.assertEqual([], [key for key in self.table.facts if key.endswith("/www")])

    def test_runs_on(self) -> None:
        """The host of a VM is written where it differs from the known one, by the owner alone."""
        sharing, machine = self.node.sharing, self.node.machine
        self.claim(State.UP)
        sharing.runs_on(machine, "left")  # on which host it was started, nobody has said
        self.run_for(0.1)
        self.assertNotIn(RUNS, self.table.facts)
        sharing.place(machine, "left")
        self.run_for(0.1)
        since = self.table.facts[RUNS]
        self.run_for(1.0)
        for host in ("left", ""):
            sharing.runs_on(machine, host)
            self.other.sharing.runs_on(self.other.machine, "middle")
            self.run_for(0.1)
            self.assertEqual(since, self.table.facts[RUNS])
        sharing.runs_on(machine, "right")
        self.run_for(0.1)
        self.assertEqual("right", json.loads(self.table.facts[RUNS])["host"])


class ProofTests(ClaimsTestCase):
    """Who may start a VM."""

    def test_claimed(self) -> None:
        """A VM that another node has is not this node's to start, and that is known at once."""
        self.claim(State.UP, self.other)
        claimed = self.node.sharing.claim(self.node.machine)
        self.run_for(0.1)
        self.assertFalse(self.successResultOf(claimed))
        error = self.assertRaises(CutOff, self.node.sharing.prove, self.node.machine)
        self.assertIn("another one of us may have it by now", str(error))

    def test_not_certain(self) -> None:
        """A claim proves nothing any more when it may have run out, which its owner knows before the others."""
        self.claim(State.STARTING)
        self.node.sharing.prove(self.node.machine)
        self.node.coordinator.cut()
        self.run_for(4.0)
        self.node.sharing.prove(self.node.machine)
        self.run_for(0.7)
        self.assertIn(CLAIM, self.table.facts)
        error = self.assertRaises(CutOff, self.node.sharing.prove, self.node.machine)
        self.assertIn("etcd does not answer", str(error))

    def test_drained(self) -> None:
        """A node that is drained claims nothing, and hands on what comes up all the same."""
        self.claim(State.STARTING)
        self.table.change({"drained/nodes/ns1": "by hand"})
        self.run_for(0.1)
        self.node.machine.state = State.UP
        self.node.sharing.moved(self.node.machine)
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)
        self.node.machine.state = State.QUEUED
        failure = self.failureResultOf(self.node.sharing.claim(self.node.machine), CutOff)
        self.assertIn("ns1 is drained", failure.getErrorMessage())
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)

    def test_wanted_no_more(self) -> None:
        """A claim for a VM that nobody wants any more when the claim is there is released."""
        self.node.machine.state = State.QUEUED
        claimed = self.node.sharing.claim(self.node.machine)
        self.node.machine.state = State.OFF
        self.run_for(0.1)
        self.assertTrue(self.successResultOf(claimed))
        self.assertNotIn(CLAIM, self.table.facts)

    def test_apart(self) -> None:
        """A node that has not joined, or is cut off, may neither claim nor stop anything, and hands nothing over."""
        self.claim(State.UP)
        self.assertTrue(self.node.sharing.is_ours(self.node.machine))
        self.node.coordinator.cut()
        self.run_for(5.1)
        self.assertFalse(self.node.sharing.is_ours(self.node.machine))
        self.assertFalse(self.node.sharing.may_end(self.node.machine))
        self.failureResultOf(self.node.sharing.claim(self.node.machine), CutOff)


class ReleaseTests(ClaimsTestCase):
    """What is left of a VM that does not run any more."""

    def test_failed(self) -> None:
        """The others are told why a start has failed before its claim is released."""
        self.claim(State.FAILED)
        said: list[str | None] = []
        self.other.sharing.on_claim = lambda machine: said.append(self.other.sharing.facts.get("claims", machine))
        self.node.sharing.moved(self.node.machine)
        self.run_for(0.1)
        failed, released = said
        self.assertEqual({"node": "ns1", "is": "failed", "why": "it did not boot"}, json.loads(failed or ""))
        self.assertIsNone(released)

    def test_started_again(self) -> None:
        """A VM that is to be started again when its failure has been told keeps its claim."""
        self.claim(State.FAILED)
        self.node.sharing.moved(self.node.machine)
        self.node.machine.state = State.QUEUED
        self.run_for(1.0)
        self.assertTrue(self.node.sharing.is_ours(self.node.machine))

    def test_may_come_up_yet(self) -> None:
        """A start that a dead node had begun is remembered as long as it may succeed, and not longer."""
        for age, is_kept in ((0.0, True), (STARTS_WITHIN - 1.0, True), (STARTS_WITHIN + 1.0, False)):
            self.setUp()
            runs = json.dumps({"since": EPOCH + self.clock.seconds() - age, "host": "left"})
            self.table.change({RUNS: runs})
            self.claim(State.OFF)
            self.node.sharing.moved(self.node.machine)
            self.run_for(0.1)
            self.assertNotIn(CLAIM, self.table.facts)
            self.assertEqual(is_kept, RUNS in self.table.facts, age)

    def test_own_start_before(self) -> None:
        """That a node has started a VM once, and seen it down, says nothing of another node's start later."""
        self.claim(State.STARTING)
        self.node.sharing.place(self.node.machine, "left")
        self.node.machine.state = State.OFF
        self.node.sharing.moved(self.node.machine)
        self.run_for(0.1)
        self.assertNotIn(RUNS, self.table.facts)
        self.table.change({RUNS: json.dumps({"since": EPOCH + self.clock.seconds(), "host": "left"})})
        self.claim(State.OFF)
        self.node.sharing.moved(self.node.machine)
        self.run_for(0.1)
        self.assertIn(RUNS, self.table.facts)

    def test_unknown(self) -> None:
        """The claim of a VM is kept while its hypervisor cannot say what it is doing: it may run."""
        self.claim(State.UP)
        for state in (State.UNKNOWN, State.FAILED):
            self.node.machine.state, self.node.machine.is_unsure = state, True
            self.node.sharing.moved(self.node.machine)
            self.run_for(1.0)
            self.assertTrue(self.node.sharing.is_ours(self.node.machine))

    def test_in_the_middle(self) -> None:
        """A VM that starts or stops is not handed over: its end is its owner's."""
        for state in (State.QUEUED, State.STARTING, State.WAITING, State.STOPPING):
            self.setUp()
            self.claim(state)
            self.node.sharing.hand_over(lambda _: True)
            self.node.sharing.hand_on()
            self.run_for(1.0)
            self.assertTrue(self.node.sharing.is_ours(self.node.machine), state)

    def test_stops(self) -> None:
        """At the end of a node nothing of it is left to happen."""
        self.table.change({RUNS: json.dumps({"since": EPOCH + self.clock.seconds(), "host": "left"})})
        self.run_for(0.1)
        self.node.sharing.moved(self.node.machine)
        stopped = Deferred.fromCoroutine(self.node.sharing.stop())
        self.run_for(0.1)
        self.successResultOf(stopped)
        self.run_for(STARTS_WITHIN + 1.0)
        self.assertIn(RUNS, self.table.facts)


class EndTests(ClaimsTestCase):
    """Who may stop a VM."""

    def end(self) -> bool:
        """Try to end the lease of the VM for as long as a notice takes; return whether it may be stopped."""
        for _ in range(3):
            if self.node.sharing.may_end(self.node.machine):
                return True
            self.run_for(1.0)
        return False

    def test_owner(self) -> None:
        """The owner may stop a VM after a notice; a node that does not own it never may."""
        self.assertFalse(self.end())
        self.claim(State.UP, self.other)
        self.assertFalse(self.end())
        self.assertNotEqual("ending", self.says())
        self.setUp()
        self.claim(State.UP)
        self.assertTrue(self.end())
        self.assertEqual("ending", self.says())

    def test_notice_of_before(self) -> None:
        """A notice holds for one end: not for the next one, not after a use, and not after the node was cut off."""
        def goes_down() -> None:
            self.node.machine.state = State.OFF
            self.node.sharing.moved(self.node.machine)
            self.run_for(0.1)
            self.claim(State.UP)

        def is_cut_off() -> None:
            self.node.coordinator.cut()
            self.run_for(4.6)
            self.node.coordinator.heal()
            self.run_for(5.0)

        def goes_on() -> None:
            self.node.sharing.goes_on(self.node.machine)
            self.run_for(0.1)
            self.assertEqual("", self.says().replace("up", ""))

        def is_handed_over() -> None:
            self.node.sharing.hand_over(lambda _: True)
            self.run_for(0.1)
            self.claim(State.UP)

        for happens in (goes_down, is_cut_off, goes_on, is_handed_over):
            self.setUp()
            self.claim(State.UP)
            self.assertTrue(self.end())
            happens()
            self.assertTrue(self.node.sharing.is_ours(self.node.machine), happens.__name__)
            self.assertFalse(self.node.sharing.may_end(self.node.machine), happens.__name__)

    def test_used_elsewhere(self) -> None:
        """A use that another node tells reaches the owner as a time of its own clock."""
        self.claim(State.UP)
        uses: list[float] = []
        self.node.sharing.on_use = lambda _, when: uses.append(when)
        self.other.machine.state = State.UP
        self.other.sharing.use(self.other.machine, self.clock.seconds() - 3.0)
        expected = self.clock.seconds() - 3.0
        self.run_for(5.0)
        self.assertEqual(1, len(uses))
        self.assertAlmostEqual(expected, uses[0], places=2)

    def test_asks(self) -> None:
        """What the owner is asked for it does once; a node that is not the owner does nothing."""
        asked: list[tuple[str, Ask]] = []
        self.node.sharing.on_ask = lambda _machine, what, _word: asked.append(("ns1", what))
        self.other.sharing.on_ask = lambda _machine, what, _word: asked.append(("ns2", what))
        self.claim(State.UP)
        self.other.sharing.ask(self.other.machine, Ask.HOLD)
        self.run_for(1.0)
        self.assertEqual([("ns1", Ask.HOLD)], asked)
        self.assertNotIn("asks/www", self.table.facts)


class SharedTests(ClaimsTestCase):
    """Which VMs that run are the cluster's, and which are a stranger's."""

    def test_signs(self) -> None:
        """A VM is the cluster's by its claim, by a start that is written down, and by a claim that was seen before."""
        machine, sharing = self.node.machine, self.node.sharing
        self.assertFalse(sharing.is_shared(machine))
        self.claim(State.STARTING, self.other)
        self.assertTrue(sharing.is_shared(machine))
        self.table.change({CLAIM: None})
        self.run_for(0.1)
        self.assertTrue(sharing.is_shared(machine))
        sharing.moved(machine)  # it is seen down
        self.assertFalse(sharing.is_shared(machine))
        self.table.change({RUNS: json.dumps({"since": EPOCH + self.clock.seconds(), "host": "left"})})
        self.run_for(0.1)
        self.assertTrue(sharing.is_shared(machine))

    def test_since(self) -> None:
        """An adopted VM was used when any node has told so, and started when its first owner has written."""
        now = self.clock.seconds()
        self.table.change({RUNS: json.dumps({"since": EPOCH + now - 500.0, "host": ""})})
        self.table.change({"used/www": f"{EPOCH + now - 100.0:.3f}"})
        self.run_for(0.1)
        used, started = self.node.sharing.since(self.node.machine)
        self.assertAlmostEqual(now - 500.0, started, places=1)
        self.assertTrue(now - 100.1 <= used <= now - 70.0, used)

    def test_adopted(self) -> None:
        """A VM that is up, and whose owner is gone, is adopted; one of a stranger, or of another node, is not."""
        machine, sharing = self.node.machine, self.node.sharing
        machine.state = State.UP
        sharing.moved(machine)
        self.run_for(0.1)
        self.assertNotIn(CLAIM, self.table.facts)
        self.claim(State.UP, self.other)
        sharing.moved(machine)
        self.run_for(0.1)
        self.assertIs(self.other.coordinator, self.table.owners[CLAIM])
        self.other.machine.state = State.UNKNOWN  # it adopts nothing
        self.table.change({CLAIM: None})
        self.run_for(0.1)
        self.assertTrue(sharing.is_ours(machine))
        self.assertEqual("up", self.says())
        self.assertIn("look: its owner is gone", machine.told)

    def test_not_adopted(self) -> None:
        """A node adopts nothing that it cannot see, nor while it is drained."""
        def is_blind() -> None:
            self.node.sharing.is_blind = lambda _: True

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
