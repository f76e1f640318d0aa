"""A few seconds of `bench.simulation.cluster`, with three faults that are always the same; and its rules."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from bench.simulation.audit import Audit, Kind
from bench.simulation.cluster import HEALS, Lab

IDLE = 5.0


class ClusterTests(TestCase):
    """Runs three Jitsus with three etcds and two hosts."""

    timeout = 120.0

    def test_rules_hold(self) -> Deferred[None]:
        """With a node killed, one cut off, and etcd's leader killed, all rules hold."""
        return Deferred.fromCoroutine(self._rules_hold())

    async def _rules_hold(self) -> None:
        # A UNIX socket's path is to be short.
        folder = tempfile.TemporaryDirectory(prefix="jitsu-cluster-")
        self.addCleanup(folder.cleanup)
        lab = Lab(1, Path(folder.name), reactor, 12, (2.0, 4.0))
        try:
            await lab.start()
            lab.ask_on()
            await lab.pause(2.0)
            faults = lab.killed(after=0.0), lab.cut_off(3.0), lab.member_killed(leader=True, seconds=2.0)
            await gatherResults([Deferred.fromCoroutine(fault) for fault in faults])
            await lab.pause(HEALS + 1.0)
            await lab.end()
        finally:
            await lab.close()
        self.assertEqual([], lab.audit.wrong)
        counts: Any = lab.audit.counts
        self.assertEqual(
            [1, 1, 1], [counts[f"fault: {kind}"] for kind in ("node killed", "node cut off", "etcd killed")]
        )
        self.assertLess(20, counts["answers"])
        self.assertLessEqual(12, counts["starts"])
        self.assertEqual(counts["starts"], counts["stops"] + counts["starts that ended with their node"])


class AuditTests(SynchronousTestCase):
    """The rules."""

    def setUp(self) -> None:
        """Begin an account."""
        self.clock = Clock()
        self.audit = Audit({"vm": Kind("vm", "10.0.0.1", IDLE)}, self.clock.seconds, HEALS)
        self.clock.advance(100.0)
        self.patch(self.audit, "tell", lambda _: None)

    def rules(self) -> list[str]:
        """Return which rules were broken."""
        return [words.partition(":")[0] for words in self.audit.wrong]

    def up(self) -> None:
        """Have the VM up and asked for."""
        self.audit.starts("vm", "left", "ns1")
        self.audit.runs("vm", "left")
        self.audit.answered("vm", "ns2", self.clock.seconds(), "")

    def test_twice(self) -> None:
        """A start of what runs is noticed."""
        self.up()
        self.audit.starts("vm", "right", "ns2")
        self.assertEqual(["twice"], self.rules())

    def test_in_use(self) -> None:
        """A stop soon after an answer is noticed, unless who gave it was in trouble; one in time is not."""
        for after, trouble, expected in ((IDLE - 0.5, "", ["in use"]), (IDLE - 0.5, "ns2", []), (IDLE, "", [])):
            self.setUp()
            self.up()
            self.clock.advance(1.0)
            if trouble:
                self.audit.fault("killed", trouble)
            self.clock.advance(after - 1.0)
            self.audit.stops("vm", "left", "ns1")
            self.assertEqual(expected, self.rules(), (after, trouble))

    def test_sends(self) -> None:
        """A stop of a guest that has sent for longer than its lease is noticed."""
        self.up()
        self.audit.accounts["vm"].sends = self.clock.seconds()
        self.clock.advance(IDLE * 2)
        self.audit.stops("vm", "left", "ns1")
        self.assertEqual(["in use"], self.rules())

    def test_off(self) -> None:
        """An answer that says of a VM that is off that it is ready is noticed."""
        self.up()
        self.clock.advance(IDLE)
        self.audit.stops("vm", "left", "ns1")
        self.clock.advance(1.0)
        self.audit.answered("vm", "ns1", self.clock.seconds(), "")
        self.assertEqual(["answered for what is off"], self.rules())

    def test_unanswered(self) -> None:
        """A question that nobody answers is noticed when all has had time to heal."""
        ended = self.audit.fault("killed", "ns1", lasting=True)
        self.clock.advance(100.0)
        self.audit.unanswered("vm", self.clock.seconds(), ["ns1"])
        ended()
        self.audit.unanswered("vm", self.clock.seconds() + HEALS / 2, ["ns1"])
        self.assertEqual([], self.rules())
        self.audit.unanswered("vm", self.clock.seconds() + HEALS * 2, ["ns1"])
        self.assertEqual(["unanswered"], self.rules())

    def test_left(self) -> None:
        """At the end, what runs is noticed, and what is left of it in etcd."""
        self.up()
        self.audit.end({"claims/vm": "{}", "nodes/ns1": "{}"})
        self.assertEqual(["lost", "left over"], self.rules())
