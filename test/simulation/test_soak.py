"""A few minutes of a soak, with seeds that are always the same, so that a broken rule is noticed; and its rules."""

from __future__ import annotations

from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from bench.simulation import world
from bench.simulation.world import World
from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import Mode

#: VMs, and seconds of each round.
VMS = 40
BUSY = 200.0


class SoakTests(SynchronousTestCase):
    """Runs a world."""

    def world(self, seed: int, busy: float = BUSY) -> World:
        """Return a small world."""
        self.patch(world, "BUSY", busy)
        folder = Path(self.mktemp())
        folder.mkdir()
        return World(VMS, seed, folder)

    def test_rules_hold(self) -> None:
        """Whatever happens to VMs, people, the hypervisor and Jitsu, no rule is broken."""
        kills = 0
        for seed in (1, 2, 3):
            made = self.world(seed)
            made.round(0)
            self.assertEqual([], made.ledger.wrong, f"seed {seed}")
            self.assertLess(50, made.ledger.counts["start"])
            kills += made.ledger.counts["kills"]
        self.assertLess(0, kills)

    def test_rules_hold_with_files(self) -> None:
        """The same, with the state in a repository that each Jitsu opens anew."""
        made = self.world(4, 100.0)
        made.round(world.GIT_EVERY - 1)
        self.assertEqual([], made.ledger.wrong)
        self.assertEqual(1, made.ledger.counts["repositories"])

    def up(self) -> tuple[World, str]:
        """Return a quiet world with a VM that was asked for and is up."""
        made = self.world(5)
        made.vms = tuple(attrs.evolve(vm, prepare=False) for vm in made.vms)
        made.begin()
        made.pass_time(5.0)
        assert made.jitsu is not None
        name = next(vm.name for vm in made.vms if not (vm.needs or vm.keep_up or vm.readiness.get("wait_for_port")))
        made.jitsu.ask(name, "10.0.0.1", 4711, 1, 1)
        for _ in range(200):
            if made.jitsu.fleet.machines[name].state is State.UP:
                break
            made.pass_time(0.1)
        self.assertEqual([], made.ledger.wrong)
        return made, name

    def rules(self, made: World) -> set[str]:
        """Return which rules were broken."""
        return {words.partition(":")[0] for words in made.ledger.wrong}

    def test_stopped_in_use(self) -> None:
        """A stop soon after a question is noticed, and so is one without any reason."""
        made, name = self.up()
        assert made.jitsu is not None
        machine = made.jitsu.fleet.machines[name]
        machine.stop("idle for no time at all")
        machine.stop("bored")
        self.assertIn("in use", self.rules(made))
        made, name = self.up()
        assert made.jitsu is not None
        made.jitsu.fleet.machines[name].stop("bored")
        self.assertEqual({"stopped for nothing"}, self.rules(made))

    def test_started_twice(self) -> None:
        """A start of what runs is noticed, and so are two calls at once."""
        made, name = self.up()
        assert made.jitsu is not None
        made.pass_time(2.0)
        facts, machine = made.ledger.facts[name], made.jitsu.fleet.machines[name]
        made.ledger.healthy = dict.fromkeys(made.ledger.healthy, -1000.0)
        facts.since -= 1000.0
        facts.wanted, facts.promised = -1000.0, False
        facts.changing = "stop"
        machine.backend.start(machine.uuid)
        self.assertLessEqual({"started twice", "two calls at once", "started by nothing"}, self.rules(made))

    def test_forgotten(self) -> None:
        """At the end, a VM that runs for nobody is noticed, and so is a belief that is wrong."""
        made, _ = self.up()
        states = dict.fromkeys(made.ledger.facts, State.OFF.value)
        made.ledger.audit(states)
        self.assertEqual({"belief", "forgotten"}, self.rules(made))

    def test_answered_late(self) -> None:
        """An answer after `answer_by` is noticed, and one that says of a VM that is off that it is ready."""
        made, name = self.up()
        facts = made.ledger.facts[name]
        made.ledger.healthy = dict.fromkeys(made.ledger.healthy, -1000.0)
        facts.power, facts.since = Power.OFF, -1000.0
        made.ledger.answered(facts, ready=True, after=5.0)
        self.assertEqual({"answer_by", "said to be ready"}, self.rules(made))

    def test_not_ours(self) -> None:
        """The stop of a VM that somebody else has started is noticed."""
        made, name = self.up()
        facts = made.ledger.facts[name]
        made.ledger.healthy = dict.fromkeys(made.ledger.healthy, -1000.0)
        facts.ours, facts.since = False, -1000.0
        made.ledger.stops(facts, Mode.DESTROY, "up for 3 s")
        self.assertIn("none of ours", self.rules(made))
