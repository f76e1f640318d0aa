"""What is remembered of what happened, and VMs that a person holds, on a clock and backends of memory."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import BootFailed, Prohibited
from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.settings import WhenFull
from jitsu_tw.vm import journal
from test.support import EPOCH, World, question, vm

if TYPE_CHECKING:
    from jitsu_tw.vm.journal import Event


class JournalTests(SynchronousTestCase):
    """Fed by a fleet."""

    def told(self, world: World) -> list[Event]:
        """Return a list that will have all events."""
        events: list[Event] = []
        world.fleet.journal.on_event.append(events.append)
        return events

    def test_activation(self) -> None:
        """An activation is there while it runs, with its steps so far, and when it has ended, with all of them."""
        world = World(vm(boot_time=2.0, response_delay=1.0), answer_by=1.2)
        book = world.fleet.journal
        asked = world.fleet.summons.summon("www", question())
        running = book.running("www")
        assert running is not None
        self.assertEqual(("running", "192.0.2.1, A www.jitsu.test"), (running.outcome, running.asker))
        self.assertEqual({"query": 0.0, "admitted": 0.0, "start": 0.0}, running.as_json()["steps"])
        world.pump(3.5)
        self.assertEqual(False, self.successResultOf(asked))
        self.assertIsNone(book.running("www"))
        (ended,) = book.last_activations("www", 10)
        said = ended.as_json()
        self.assertIs(running, ended)
        self.assertEqual(("up", "booted", 1, EPOCH + 1000.0), (ended.outcome, ended.how, ended.clients, ended.began))
        steps = {"query": 0, "admitted": 0, "start": 0, "answered": 1200, "started": 2000, "ready": 3000}
        for step, when in steps.items():
            self.assertAlmostEqual(when, said["steps"][step], delta=100.1)
        self.assertEqual({"up": 1}, dict(book.totals.outcomes))
        self.assertEqual([], book.last_activations("other", 10))

    def test_ends(self) -> None:
        """Activations end failed, stopped or lost too, with the reason, and keep their own steps."""
        world = World(vm("bad", faults=["start"]), vm("slow", boot_time=5.0), vm("lost", response_delay=9.0))
        book = world.fleet.journal
        self.failureResultOf(world.fleet.summons.summon("bad", question("bad")), BootFailed)
        slow, lost = (world.fleet.summons.summon(name, question(name)) for name in ("slow", "lost"))
        world.fleet.operator.stop("slow")
        self.failureResultOf(slow, BootFailed)
        world.pump(6)
        world.fleet.inventory.lost(world.backend, "the wire is cut")
        lost.addErrback(lambda _: None)
        self.assertEqual(
            {"bad": ("failed", "the start fails, as it was told to"), "slow": ("stopped", "stopped by hand"),
             "lost": ("lost", "the wire is cut")},
            {one.vm: (one.outcome, one.reason) for one in book.activations},
        )
        self.assertEqual({"failed": 1, "stopped": 1, "lost": 1}, dict(book.totals.outcomes))

    def test_booted_instead(self) -> None:
        """A guest that cannot go on where it was, and is booted, has two activations, each with steps of its own."""
        world = World(vm(response_delay=1.0))
        machine = world.machine()
        world.backend.happen(machine.uuid, Power.PAUSED, "by hand")
        asked = world.fleet.summons.summon("www", question())
        world.backend.happen(machine.uuid, Power.OFF, "it died")
        world.pump(3)
        self.assertEqual(True, self.successResultOf(asked))
        first, second = world.fleet.journal.activations
        self.assertEqual(("failed", "resumed", "up", "booted"), (first.outcome, first.how, second.outcome, second.how))
        self.assertEqual((False, True), ("ready" in first.as_json()["steps"], "ready" in second.as_json()["steps"]))

    def test_decisions(self) -> None:
        """The decisions on a VM tell its life: who wanted it, what it was, and why it ended."""
        world = World(vm(idle=5.0))
        self.assertEqual((), world.fleet.journal.decisions("www"), "that it was found off is no news")
        world.fleet.summons.summon("www", question())
        world.pump(6)
        told = [(one.facts["state"], one.facts["reason"]) for one in world.fleet.journal.decisions("www")]
        self.assertEqual(
            [("queued", "asked for"), ("starting", ""), ("waiting", "booted"), ("up", ""),
             ("stopping", "idle for 5 s"), ("off", "idle for 5 s")],
            told,
        )
        first = next(iter(world.fleet.journal.decisions("www")))
        self.assertEqual("192.0.2.1, A www.jitsu.test", first.facts["asker"])

    def test_states(self) -> None:
        """So many VMs are in each state."""
        world = World(vm("a"), vm("b"), vm("c", boot_time=9.0))
        for name in "abc":
            world.fleet.summons.summon(name, question(name))
        counts = {state: number for state, number in world.fleet.journal.totals.states.items() if number}
        self.assertEqual({State.UP: 2, State.STARTING: 1}, counts)

    def test_questions(self) -> None:
        """Questions are counted by whether the VM was up; those that were answered without the fleet among them."""
        world = World(vm(boot_time=1.0))
        for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            world.fleet.summons.summon("www", question(host=host))
        world.pump(2)
        world.fleet.summons.summon("www", question(host="192.0.2.3"))
        use = world.fleet.stats.use_of(world.fleet.machines["www"], question().key)
        self.patch(world.warm, "taken", lambda: [("www", use, 5, world.clock.seconds())])
        world.fleet.stats.current(world.machine())
        totals = world.fleet.journal.totals
        self.assertEqual((2, 6), (totals.cold, totals.warm), "a repetition is none")

    def test_refusals(self) -> None:
        """Refusals are kept by VM, network and reason, with how often and when; a flood tells one event a second."""
        world = World(vm(), summon_from=())
        events = self.told(world)
        for host in ("192.0.2.1", "192.0.2.9", "192.0.2.1", "2001:db8::1"):
            self.failureResultOf(world.fleet.summons.summon("www", question(host=host)), Prohibited)
        self.assertEqual({Verdict.OUTSIDE: 4}, dict(world.fleet.journal.totals.refused))
        four, six = (one.as_json() for one in world.fleet.journal.refusals.values())
        self.assertEqual(("192.0.2.0/24", 3, Verdict.OUTSIDE.value), (four["network"], four["times"], four["reason"]))
        self.assertEqual("2001:db8::/56", six["network"])
        self.assertEqual(["refused"] * 2, [one.kind for one in events])
        world.pump(1.5)
        self.failureResultOf(world.fleet.summons.summon("www", question(host="192.0.2.77")), Prohibited)
        self.assertEqual((3, 4), (len(events), events[-1].facts["times"]))
        self.assertEqual(["2001:db8::/56", "192.0.2.0/24"],
                         [one.network for one in world.fleet.journal.refusals.values()], "the last one is last")
        world.wall_set = -3600.0  # the wall clock is set back
        self.failureResultOf(world.fleet.summons.summon("www", question(host="192.0.2.77")), Prohibited)
        self.assertEqual((4, 5), (len(events), events[-1].facts["times"]))

    def test_no_room(self) -> None:
        """Who waited for room in vain was refused too."""
        world = World(vm("a", min_up=60.0), vm("b"), max_running=1, when_full=WhenFull.STOP_IDLE)
        world.fleet.summons.summon("a", question("a"))
        refused = world.fleet.summons.summon("b", question("b"))
        world.pump(1)
        self.failureResultOf(refused)
        self.assertEqual({Verdict.FULL: 1}, dict(world.fleet.journal.totals.refused))

    def test_bounds(self) -> None:
        """Everything is bounded, whatever happens how often, from wherever."""
        world = World(vm(), summon_from=())
        book = world.fleet.journal
        for number in range(2 * journal.MOST_REFUSALS):
            book.refuse("www", Verdict.OUTSIDE, f"10.{number % 200}.{number // 200}.1", "x")
        self.assertEqual(journal.MOST_REFUSALS, len(book.refusals))
        self.assertLessEqual(len(book.events), journal.MOST_TOLD + 1)
        for number in range(2 * journal.MOST_EVENTS):
            book.hold(f"vm{number % 1500}", held=True)
            book.hold("www", held=True)
        self.assertEqual(journal.MOST_EVENTS, len(book.events))
        self.assertEqual(journal.MOST_DECISIONS, len(tuple(book.decisions("www"))))
        self.assertEqual((), book.decisions("vm900"), "who nothing happened to for long is forgotten")
        self.assertEqual(1, len(tuple(book.decisions("vm499"))))

    def test_ids(self) -> None:
        """Events are numbered upwards, also beyond the end of the process."""
        world = World(vm())
        world.fleet.journal.hold("www", held=True)
        world.pump(1)
        last = world.fleet.journal.events[-1].id
        world.begin()
        world.fleet.journal.hold("www", held=True)
        self.assertGreater(world.fleet.journal.events[-1].id, last)

    def test_made(self) -> None:
        """That a template has made a VM, and for whom, is among the decisions on it, and that it is forgotten, too."""
        world = World(vm())
        events = self.told(world)
        world.fleet.journal.made("www", "site", "192.0.2.1")
        world.fleet.journal.forgotten("www", "not used")
        self.assertEqual([("made", {"template": "site", "asker": "192.0.2.1"}), ("forgotten", {"reason": "not used"})],
                         [(one.kind, one.facts) for one in events])
        self.assertEqual(events, list(world.fleet.journal.decisions("www")))

    def test_hypervisors(self) -> None:
        """A hypervisor that is lost, and there again, is told, and known."""
        world = World(vm())
        events = self.told(world)
        world.fleet.inventory.lost(world.backend, "the wire is cut")
        self.assertEqual({"memory": "the wire is cut"}, dict(world.fleet.inventory.hypervisors))
        world.fleet.inventory.connected(world.backend)
        self.assertEqual({"memory": None}, dict(world.fleet.inventory.hypervisors))
        self.assertEqual([("lost", "memory"), ("connected", "memory")],
                         [(one.kind, one.facts["backend"]) for one in events if not one.vm])

    def test_faulty_listener(self) -> None:
        """Who looks on cannot stop a boot: what goes wrong there is logged."""
        world = World(vm())

        def fail(_: Event) -> None:
            raise ZeroDivisionError

        world.fleet.journal.on_event.append(fail)
        self.assertEqual(True, self.successResultOf(world.fleet.summons.summon("www", question())))
        self.assertNotEqual([], self.flushLoggedErrors(ZeroDivisionError))


class HoldTests(SynchronousTestCase):
    """VMs that a person holds."""

    def test_kept(self) -> None:
        """A held VM stays up without a use, past `max_up`; released, it has a lease as any other."""
        world = World(vm(idle=5.0, max_up=20.0))
        self.assertEqual(True, self.successResultOf(world.fleet.operator.hold("www")))
        world.pump(60, 1)
        self.assertEqual((State.UP, inf), (world.machine().state, world.fleet.leases.left(world.machine())))
        status = world.fleet.leases.status(world.machine())
        self.assertEqual("held by hand", status and status.words)
        world.fleet.operator.release("www")
        self.assertEqual(State.UP, world.machine().state)
        world.pump(6)
        self.assertEqual(State.OFF, world.machine().state)
        self.assertEqual(["hold", "release"],
                         [one.kind for one in world.fleet.journal.events if one.kind in {"hold", "release"}])

    def test_max_up_holds_again(self) -> None:
        """What was released has its `max_up` again."""
        world = World(vm(idle=50.0, max_up=20.0))
        world.fleet.operator.hold("www")
        world.pump(10, 1)
        world.fleet.operator.release("www")
        world.pump(11, 1)
        self.assertEqual(State.OFF, world.machine().state)

    def test_goes_down(self) -> None:
        """A held VM that goes down by itself is started again."""
        world = World(vm())
        world.fleet.operator.hold("www")
        world.pump(20, 1)
        world.backend.happen(world.machine().uuid, Power.OFF, "it crashed")
        world.pump(2)
        self.assertEqual((State.UP, 2, True),
                         (world.machine().state, world.starts(), world.fleet.leases.wakeups.is_held("www")))

    def test_running_by_itself(self) -> None:
        """A VM that ran by itself can be held too."""
        world = World(vm(idle=5.0))
        world.backend.happen(world.machine().uuid, Power.RUNNING, "by hand")
        world.pump(1)
        self.assertIsNone(world.fleet.leases.left(world.machine()))
        world.fleet.operator.hold("www")
        world.pump(10, 1)
        self.assertEqual(inf, world.fleet.leases.left(world.machine()))

    def test_stopped(self) -> None:
        """A stop by hand ends a hold too: it is not started again."""
        world = World(vm())
        world.fleet.operator.hold("www")
        world.fleet.operator.stop("www")
        world.pump(20, 1)
        self.assertEqual((State.OFF, False), (world.machine().state, world.fleet.leases.wakeups.is_held("www")))

    def test_cannot_start(self) -> None:
        """What cannot be started is not held."""
        world = World(vm(faults=["start"]))
        self.failureResultOf(world.fleet.operator.hold("www"), BootFailed)
        self.assertFalse(world.fleet.leases.wakeups.is_held("www"))
        world.fleet.operator.release("www")
        self.assertEqual("release", world.fleet.journal.events[-1].kind)

    def test_room(self) -> None:
        """A held VM does not make room."""
        world = World(vm("a"), vm("b"), max_running=1, when_full=WhenFull.STOP_IDLE)
        world.fleet.operator.hold("a")
        world.pump(20, 1)
        asked = world.fleet.summons.summon("b", question("b"))
        world.pump(1)
        self.failureResultOf(asked)
        self.assertEqual(State.UP, world.machine("a").state)

    def test_metered(self) -> None:
        """A held VM whose packets are counted is looked at, and kept all the same."""
        world = World(vm(idle=5.0))
        world.backend.guests[world.machine().uuid].sent = 0
        world.fleet.operator.hold("www")
        world.pump(30, 1)
        self.assertEqual(State.UP, world.machine().state)

    def test_held_until_it_is_no_more(self) -> None:
        """A VM that is held is held no more when it is gone."""
        world = World(vm())
        fleet, machine = world.fleet, world.machine()
        fleet.operator.hold("www")
        world.pump(1)
        gone = fleet.dismiss(machine, "it is no more")
        world.pump(100)
        self.successResultOf(gone)
        self.assertEqual(0, fleet.leases.wakeups.held)

    def test_keeps(self) -> None:
        """What keeps a VM up is said in words."""
        world = World(vm("db"), vm("web", needs=("db",)), vm("young", min_up=500.0), vm("off"))
        for name in ("web", "young"):
            world.fleet.summons.summon(name, question(name))
        world.pump(3, 1)
        for name, words in (
            ("db", "it is needed by a VM that is up"), ("web", "used 3 s ago"), ("young", "its min_up of 500 s"),
            ("off", None),
        ):
            status = world.fleet.leases.status(world.machine(name))
            self.assertEqual(words, status and status.words)
