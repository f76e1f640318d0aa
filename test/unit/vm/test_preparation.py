"""`prepare: true`, on a clock: when VMs are prepared, what the first client finds, and what undoes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import RESTORES_IN, MemoryBackend
from jitsu_tw.control.describe import explain
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import Memory, Power, Start
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.prepare import Choice, choose, pause, shortage
from jitsu_tw.settings import RESUMED_WITHIN, VM, Boot, Layer, Settings
from jitsu_tw.sync.reconfigure import ConfigChange, LiveConfig
from jitsu_tw.vm.preparation import CHECK_EVERY, MEMORY_AGAIN, QUIET
from test.support import EPOCH, World, question, vm

#: Seconds that the VMs of these tests take to boot, and that suffice to prepare one.
BOOTS = 2.0
PREPARED_IN = BOOTS + QUIET + 1.0


class RuleTests(SynchronousTestCase):
    """`rules.prepare`."""

    def test_choose(self) -> None:
        """What was used last is prepared first, and stays so when not all can be."""
        self.assertEqual(Choice(), choose({}, {}, 2))
        self.assertEqual(Choice(prepare="b"), choose({"a": 1, "b": 2}, {}, 2))
        self.assertEqual(Choice(), choose({"a": 1}, {"b": 2, "c": 3}, 2))
        self.assertEqual(Choice(give_up="b"), choose({"a": 4}, {"b": 2, "c": 3}, 2))
        self.assertEqual(Choice(give_up="b"), choose({}, {"b": 2, "c": 3}, 1))
        self.assertEqual(Choice(), choose({"a": 4}, {}, 0))

    def test_shortage(self) -> None:
        """There must be room for another start after it; one that nobody can tell is no obstacle."""
        self.assertEqual("", shortage(None))
        self.assertEqual("", shortage(Memory(10, 20)))
        self.assertIn("another start", shortage(Memory(10, 19)))
        self.assertIn("MiB", shortage(Memory(10 << 20, 9 << 20)))

    def test_pause(self) -> None:
        """Failures make the pauses longer, up to an hour."""
        self.assertEqual([60, 120, 240, 3600, 3600], [pause(count) for count in (1, 2, 3, 9, 10**6)])


class PreparationTestCase(SynchronousTestCase):
    """Has a world with VMs that are prepared."""

    world: World

    def begin(self, *vms: VM, **settings: Any) -> None:
        """Begin with *vms*, or with one that is prepared."""
        self.world = World(*(vms or (self.vm(),)), **{"answer_by": 99, **settings})

    @staticmethod
    def vm(name: str = "www", **changes: Any) -> VM:
        """Return a VM that is prepared."""
        return vm(name, **{"prepare": True, "boot_time": BOOTS, "idle": 10.0, **changes})

    def ask(self, name: str = "www", host: str = "192.0.2.1") -> list[Any]:
        """Ask for a VM; return a list in which the answer (ready or not) or the failure will be."""
        answers: list[Any] = []
        self.world.fleet.summons.summon(name, question(name, host)).addBoth(answers.append)
        return answers

    def state(self, name: str = "www") -> State:
        """Return what Jitsu takes the VM to do."""
        return self.world.machine(name).state

    def power(self, name: str = "www") -> Power:
        """Return what the VM does."""
        return self.world.backend.guests[self.world.machine(name).uuid].power

    def happen(self, power: Power, name: str = "www") -> None:
        """Change a VM as another program does."""
        self.world.backend.happen(self.world.machine(name).uuid, power, "by hand")


class SeedTests(PreparationTestCase):
    """The image of a template, its seed."""

    def boot(self, name: str) -> None:
        """Ask for a VM, which boots, and is up then."""
        self.ask(name)
        self.world.pump(0.1)
        self.world.pump(BOOTS)
        self.assertEqual((State.UP, Start.BOOTED), (self.state(name), self.world.machine(name).how))

    def made(self, name: str, **changes: Any) -> VM:
        """Return a VM that a template has made."""
        return self.vm(name, **{"prepare": False, "template": "site", "boot_from": Boot.SNAPSHOT, **changes})

    def images(self, error: str) -> list[str]:
        """Have no image kept, because of *error*; return a list of the VMs whose template was to get one."""
        made: list[str] = []

        def cannot(uuid: str, *, shared: bool = False) -> Any:
            made.extend([uuid] * shared)
            return fail(BackendError(error))

        self.patch(self.world.backend, "keep_image", cannot)
        return made

    def test_made(self) -> None:
        """It is made once a VM of the template has booted, and nothing boots; the next VM starts from it."""
        self.begin(self.made("a.site"), self.made("b.site"))
        self.assertEqual(set(), self.world.backend.seeds)
        self.boot("a.site")
        self.world.pump(QUIET + RESTORES_IN + 0.1)
        self.assertEqual({"site"}, self.world.backend.seeds)
        self.ask("b.site")
        self.world.pump(RESTORES_IN + 0.1)
        self.assertEqual((State.UP, Start.CLONED), (self.state("b.site"), self.world.machine("b.site").how))
        self.world.pump(10 + PREPARED_IN)  # none of them needs an image of its own
        for name in ("a.site", "b.site"):
            self.assertEqual((State.OFF, 1), (self.state(name), self.world.starts(name)))

    def test_not_while_others_boot(self) -> None:
        """It is made while no VM boots for a client."""
        self.begin(self.made("a.site"), self.vm(prepare=False, boot_time=3 * BOOTS))
        self.boot("a.site")
        self.ask()
        self.world.pump(2 * BOOTS)
        self.assertEqual(set(), self.world.backend.seeds)
        self.world.pump(BOOTS + QUIET + RESTORES_IN + 0.2)
        self.assertEqual({"site"}, self.world.backend.seeds)

    def test_of_another_node(self) -> None:
        """The node that owns the VM makes it, where the guest has booted."""
        self.begin(self.made("a.site"))
        self.patch(self.world.fleet.cluster.ownership, "is_own", lambda _: False)
        made = self.images("the disk is full")
        self.boot("a.site")
        self.world.pump(QUIET + 0.1)
        self.assertEqual([], made)

    def test_others_need_none(self) -> None:
        """A VM that boots from its disk, that no template has made, or that has a definition of its own needs none."""
        own = self.made("c.site", raw={"define": ("c.xml",)})
        self.begin(self.made("a.site", boot_from=Boot.DISK), self.made("b.site", template=None), own)
        made = self.images("the disk is full")
        for name in ("a.site", "b.site", "c.site"):
            self.boot(name)
        self.world.pump(QUIET + 0.1)
        self.assertEqual([], made)

    def test_own_disk(self) -> None:
        """A VM whose disk is a layer can have no image of its own: it is not started for one."""
        layer = Layer(Path("/x/a.qcow2"), Path("/x/base"))
        self.begin(self.made("a.site", layer=layer), self.made("b.site"))
        self.images("its guest does not wait for its interface")
        for name in ("a.site", "b.site"):
            self.boot(name)
        self.world.pump(100)
        self.assertEqual(1, self.world.starts("a.site"))
        self.assertLess(1, self.world.starts("b.site"))

    def test_cannot(self) -> None:
        """If it cannot be made, that is tried again, later each time, and not when its VMs are gone."""
        self.begin(self.made("a.site"), self.made("b.site"))
        made = self.images("the disk is full")
        self.boot("a.site")
        self.world.pump(QUIET + 0.1)
        self.boot("b.site")
        self.world.pump(50)
        self.assertEqual(1, len(made))
        self.world.pump(15)
        self.assertEqual(2, len(made))
        self.world.pump(100)
        self.assertEqual(2, len(made))
        self.world.fleet.dismiss(self.world.machine("b.site"), "it is forgotten")
        self.world.pump(60)
        self.assertEqual(2, len(made))

    def test_not_ready(self) -> None:
        """A clone that is not ready in its time is booted, and so are the others from then on."""
        self.begin(self.made("a.site", faults=["never_ready"]), self.made("b.site"))
        self.world.backend.seeds.add("site")
        self.ask("a.site")
        self.world.pump(RESTORES_IN + 0.1)
        self.assertIs(Start.CLONED, self.world.machine("a.site").how)
        self.assertIs(State.WAITING, self.state("a.site"))
        self.world.pump(RESUMED_WITHIN + 1 + BOOTS)
        self.assertIs(Start.BOOTED, self.world.machine("a.site").how)
        self.boot("b.site")


class PreparationTests(PreparationTestCase):
    """One VM."""

    def test_first_client(self) -> None:
        """The VM is prepared when Jitsu starts; the first client finds it ready at once; then it is prepared anew."""
        self.begin()
        self.world.pump(PREPARED_IN)
        self.assertEqual((State.PREPARED, Power.PREPARED), (self.state(), self.power()))
        self.assertEqual([True], self.ask())
        self.assertIs(Start.PREPARED, self.world.machine().how)
        guest = self.world.backend.guests[self.world.machine().uuid]
        self.assertEqual(1, guest.boots)
        self.world.pump(10 + PREPARED_IN)
        self.assertEqual((State.PREPARED, 2), (self.state(), guest.boots))

    def test_counts_nowhere(self) -> None:
        """What is prepared, or is being prepared, is neither running nor booting, has no lease, and is no start."""
        self.begin(max_running=1)
        fleet = self.world.fleet
        for _ in range(round(PREPARED_IN / 0.1)):
            self.world.pump(0.1)
            self.assertEqual((0, False, 0), (fleet.admission.running, fleet.admission.is_busy, fleet.leases.leases))
        self.assertIs(State.PREPARED, self.state())
        self.assertEqual("0", self.world.remembered().get("total_starts", "0"))
        self.assertEqual(1, fleet.preparation.prepared)
        self.assertEqual([], list(fleet.journal.activations))
        self.ask()
        self.assertEqual(1, fleet.stats.current(self.world.machine()).total_starts)

    def test_shown(self) -> None:
        """It is shown as what it is, on its way and then."""
        self.begin()
        shown = set()
        for _ in range(round(PREPARED_IN / 0.1)):
            self.world.pump(0.1)
            now = EPOCH + self.world.clock.seconds()
            seen = explain(self.world.fleet, self.world.machine(), now)
            shown.add((seen["state"], seen["why"][0].partition(" for ")[0]))
        self.assertIn(("preparing", "It is preparing"), shown)
        self.assertIn(("prepared", "It is prepared: its guest is ready, and paused"), shown)

    def test_asked_while_it_boots(self) -> None:
        """A client that comes while the VM boots for nobody gets that boot, at once or when it has begun."""
        for after in (QUIET + 0.2, QUIET + BOOTS + 0.2):
            self.begin(self.vm(response_delay=1.0))
            self.world.pump(after)
            answers = self.ask()
            self.assertIn(self.state(), {State.STARTING, State.WAITING})
            self.world.pump(PREPARED_IN)
            self.assertEqual([True], answers)
            self.assertEqual((State.UP, 1), (self.state(), self.world.starts()))
            (activation,) = self.world.fleet.journal.activations
            self.assertEqual(("up", "booted"), (activation.outcome, activation.how))
            self.assertEqual("1", self.world.remembered()["total_starts"])

    def test_asked_while_it_is_paused(self) -> None:
        """A client that comes while the guest is being paused finds it prepared right after."""
        self.begin(self.vm(boot_from=Boot.SNAPSHOT))
        self.world.pump(PREPARED_IN, step=0.05, until=lambda: self.state() is State.KEEPING)
        answers = self.ask()
        self.assertEqual((State.KEEPING, []), (self.state(), answers))
        self.world.pump(0.2, step=0.05)
        self.assertEqual([True], answers)
        self.assertIs(Start.PREPARED, self.world.machine().how)

    def test_image_first(self) -> None:
        """With `boot_from: snapshot`, the image is kept at the first preparation; later ones restore it."""
        self.begin(self.vm(boot_from=Boot.SNAPSHOT))
        self.world.pump(PREPARED_IN)
        guest = self.world.backend.guests[self.world.machine().uuid]
        self.assertEqual((State.PREPARED, True), (self.state(), guest.image))
        self.ask()
        self.world.pump(10 + PREPARED_IN)
        self.assertEqual((State.PREPARED, 1), (self.state(), guest.boots))

    def test_cannot(self) -> None:
        """If it cannot be prepared, that is told and tried again; it is off meanwhile, and clients boot it."""
        self.begin()
        self.patch(self.world.backend, "prepare", lambda _: fail(BackendError("its disk has changed")))
        self.world.pump(PREPARED_IN)
        self.assertEqual((State.FAILED, Power.OFF), (self.state(), self.power()))
        (problem,) = self.world.fleet.problems_of(self.world.machine())
        self.assertIn("it cannot be prepared: its disk has changed; tried again after 60 s", problem)
        self.world.pump(50)
        self.assertEqual(1, self.world.starts())
        self.assertEqual([], self.ask())
        self.world.pump(BOOTS + 0.1)
        self.assertIs(State.UP, self.state())

    def test_never_ready(self) -> None:
        """A guest that is never ready is not kept; it is destroyed, and a client does not wait for that."""
        self.begin(self.vm(faults=["never_ready"]))
        self.world.pump(90, step=0.5, until=lambda: self.state() in {State.FAILED, State.OFF} and self.world.starts())
        self.assertEqual((State.FAILED, Power.OFF), (self.state(), self.power()))
        self.assertIn("not known to be ready", self.world.fleet.problems_of(self.world.machine())[0])

    def test_vanishes(self) -> None:
        """Jitsu prepares a VM again when its prepared QEMU has died, or a person has destroyed it."""
        self.begin()
        self.world.pump(PREPARED_IN)
        self.happen(Power.OFF)
        self.assertIs(State.OFF, self.state())
        self.world.pump(PREPARED_IN)
        self.assertIs(State.PREPARED, self.state())

    def test_event_is_lost(self) -> None:
        """If nobody tells that a prepared VM is gone, that is found out soon."""
        self.begin()
        self.world.pump(PREPARED_IN)
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.power = Power.OFF
        self.world.pump(CHECK_EVERY + PREPARED_IN)
        self.assertEqual((State.PREPARED, 2), (self.state(), guest.boots))

    def test_resumed_by_hand(self) -> None:
        """One that a person resumes is left alone until it is off, and is prepared then."""
        self.begin()
        self.world.pump(PREPARED_IN)
        self.happen(Power.RUNNING)
        self.world.pump(300, step=1)
        self.assertEqual((State.UP, Power.RUNNING), (self.state(), self.power()))
        self.happen(Power.OFF)
        self.world.pump(PREPARED_IN)
        self.assertIs(State.PREPARED, self.state())

    def test_changed(self) -> None:
        """If what it was made of changes, it is destroyed and prepared anew; a client before that boots it."""
        self.begin()
        self.world.pump(PREPARED_IN)
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.stale = "its kernel has changed"
        self.world.pump(CHECK_EVERY + PREPARED_IN)
        self.assertEqual((State.PREPARED, 2, ""), (self.state(), guest.boots, guest.stale))
        guest.stale = "its kernel has changed"
        self.ask()
        self.world.pump(BOOTS + 0.1)
        self.assertEqual((State.UP, Start.BOOTED), (self.state(), self.world.machine().how))

    def test_resumed_in_vain(self) -> None:
        """A prepared guest that does not come to life is booted."""
        self.begin()
        self.world.pump(PREPARED_IN)
        guest = self.world.backend.guests[self.world.machine().uuid]
        patch = self.patch(self.world.backend, "ready", lambda _: Deferred())
        answers = self.ask()
        self.assertIs(State.WAITING, self.state())
        patch.restore()
        self.happen(Power.OFF)
        self.world.pump(BOOTS + 0.2)
        self.assertEqual([True], answers)
        self.assertEqual(2, guest.boots)

    def test_stopped_by_an_operator(self) -> None:
        """A prepared VM can be stopped; so can one on its way."""
        self.begin()
        self.world.pump(PREPARED_IN)
        states: list[State] = []
        self.world.fleet.operator.stop("www").addCallback(states.append)
        self.assertEqual(([State.OFF], Power.OFF), (states, self.power()))
        self.world.pump(QUIET + 0.2)
        self.assertIs(State.PREPARING, self.state())
        self.world.fleet.operator.stop("www").addCallback(states.append)
        self.assertIs(State.CANCELLING, self.state())
        self.world.pump(BOOTS)
        self.assertEqual([State.OFF, State.OFF], states)

    def test_cannot_be_stopped(self) -> None:
        """A prepared VM that cannot be destroyed is still prepared, and serves."""
        self.begin(self.vm(faults=["stop"]))
        self.world.pump(PREPARED_IN)
        states: list[State] = []
        self.world.fleet.operator.stop("www").addCallback(states.append)
        self.world.pump(0.1)
        self.assertEqual((State.PREPARED, Power.PREPARED), (self.state(), self.power()))
        self.assertEqual([True], self.ask())

    def test_dry_run(self) -> None:
        """Nothing is prepared on trial."""
        self.begin(dry_run=True)
        self.world.pump(60)
        self.assertEqual((State.OFF, 0), (self.state(), self.world.starts()))


class OthersTests(PreparationTestCase):
    """Several VMs, and what the host has."""

    def test_one_at_a_time(self) -> None:
        """VMs are prepared one after the other."""
        self.begin(*(self.vm(f"vm{number}") for number in range(3)))
        for _ in range(100):
            self.world.pump(0.1)
            under_way = [name for name in self.world.fleet.machines if self.state(name).shown == "preparing"]
            self.assertTrue(len(under_way) <= 1, under_way)
        self.assertEqual(3, self.world.fleet.preparation.prepared)

    def test_gives_way(self) -> None:
        """While anything boots for a client nothing is prepared, and what was being prepared gives way."""
        self.begin(self.vm(boot_time=5.0), vm("other", boot_time=BOOTS))
        self.world.pump(QUIET + 1.0)
        self.assertIs(State.PREPARING, self.state())
        answers = self.ask("other")
        self.assertIs(State.CANCELLING, self.state())
        self.world.pump(BOOTS + 0.1)
        self.assertEqual([True], answers)
        self.world.pump(15)
        self.assertEqual((State.PREPARED, 2), (self.state(), self.world.starts()))
        self.assertEqual([], self.world.fleet.problems_of(self.world.machine()))

    def test_not_while_others_boot(self) -> None:
        """A VM that is down waits until all that boot for clients are up."""
        self.begin(self.vm(), vm("other", boot_time=20.0))
        self.ask("other")
        self.world.pump(19.9)
        self.assertEqual(0, self.world.starts())
        self.world.pump(PREPARED_IN)
        self.assertIs(State.PREPARED, self.state())

    def test_most(self) -> None:
        """At most `max_prepared` are prepared: those that were used last."""
        self.begin(*(self.vm(f"vm{number}") for number in range(3)), max_prepared=1)
        self.world.pump(4 * PREPARED_IN)
        self.assertEqual(1, self.world.fleet.preparation.prepared)
        for name in ("vm0", "vm2", "vm1"):
            self.ask(name)
            self.world.pump(10 + BOOTS + 2 * PREPARED_IN)
            self.assertEqual(
                {name}, {one for one in self.world.fleet.machines if self.state(one) is State.PREPARED}
            )
            self.assertIs(Power.PREPARED, self.power(name))

    def test_memory(self) -> None:
        """A VM is not prepared while its host has not the memory for it and another; it is when that has changed."""
        self.begin()
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.memory = Memory(10, 19)
        self.world.pump(30)
        self.assertEqual((State.OFF, 0), (self.state(), guest.boots))
        self.assertIn("it is not prepared", self.world.fleet.problems_of(self.world.machine())[0])
        guest.memory = Memory(10, 20)
        self.world.pump(MEMORY_AGAIN + PREPARED_IN)
        self.assertIs(State.PREPARED, self.state())
        self.assertEqual([], self.world.fleet.problems_of(self.world.machine()))

    def test_gives_memory(self) -> None:
        """A start for which the host has not the memory gets that of prepared VMs, as many as it takes."""
        self.begin(self.vm("vm0"), self.vm("vm1"), vm("other"))
        self.world.pump(2 * PREPARED_IN)
        self.assertEqual(2, self.world.fleet.preparation.prepared)
        freed = {2: 5, 1: 10, 0: 20}
        left = self.world.fleet.preparation
        self.patch(self.world.backend, "memory", lambda _: _memory(15, freed[left.prepared]))
        self.assertEqual([True], self.ask("other"))
        self.assertEqual((0, Power.OFF, Power.OFF), (left.prepared, self.power("vm0"), self.power("vm1")))

    def test_another_hypervisor(self) -> None:
        """What is prepared at another hypervisor stays."""
        self.begin(self.vm("vm0"), vm("other"))
        self.world.pump(PREPARED_IN)
        self.world.machine("vm0").backend = MemoryBackend(reactor=self.world.clock)
        self.patch(self.world.backend, "memory", lambda _: _memory(15, 5))
        self.ask("other")
        self.assertEqual((State.PREPARED, Power.PREPARED), (self.state("vm0"), self.power("vm0")))

    def test_needs(self) -> None:
        """The image of a VM that needs another is made while that is up, which stays up meanwhile."""
        web = vm("web", boot_from=Boot.SNAPSHOT, needs=("db",), boot_time=BOOTS, idle=5.0)
        self.begin(web, vm("db", idle=5.5, boot_time=BOOTS))
        self.ask("web")
        self.world.pump(30, until=lambda: self.state("web") is State.PREPARING)
        self.assertIs(State.UP, self.state("db"))
        self.world.pump(30, until=lambda: self.state("web") is State.OFF)
        guest = self.world.backend.guests[self.world.machine("web").uuid]
        self.assertEqual((State.UP, True), (self.state("db"), guest.image))
        self.begin(web, vm("db", idle=60.0))
        self.ask("web")
        self.world.pump(2 * BOOTS + 0.5)
        self.world.fleet.operator.stop("web")
        self.world.fleet.operator.stop("db")
        self.world.pump(30)
        self.assertEqual((State.OFF, 1), (self.state("web"), self.world.starts("web")))

    def test_not_enough(self) -> None:
        """If that is not enough, the start fails as it did."""
        self.begin(self.vm("vm0"), vm("other"))
        self.world.pump(PREPARED_IN)
        self.patch(self.world.backend, "memory", lambda _: _memory(15, 5))
        (failure,) = self.ask("other")
        self.assertIn("MiB of memory", str(failure.value))
        self.assertEqual(0, self.world.fleet.preparation.prepared)

    def test_configuration_changes(self) -> None:
        """A VM that is not to be prepared any more is destroyed, and one that is removed, too."""
        for change in (ConfigChange(changed=(self.vm(prepare=False),)), ConfigChange(removed=("www",))):
            self.begin()
            self.world.pump(PREPARED_IN)
            uuid = self.world.machine().uuid
            zones = Zones([Zone.made_up(from_text("jitsu.test"), 60)])
            zones.add_vm(from_text("www.jitsu.test"), "www", self.vm().ip, 60)
            LiveConfig(Settings(), self.world.fleet, zones, lambda _: None).apply(change)
            self.world.pump(PREPARED_IN)
            self.assertIs(Power.OFF, self.world.backend.guests[uuid].power)


def _memory(needed: int, free: int) -> Deferred[Memory]:
    """Return how much memory a start needs, and the host has, in MiB."""
    return succeed(Memory(needed << 20, free << 20))


class RestartTests(PreparationTestCase):
    """What the next Jitsu finds."""

    def test_found(self) -> None:
        """A prepared VM is found so, and is not made anew."""
        self.begin()
        self.world.pump(PREPARED_IN)
        self.world.kill()
        self.world.pump(PREPARED_IN)
        self.assertEqual((State.PREPARED, 1), (self.state(), self.world.starts()))
        self.assertEqual([True], self.ask())
        self.assertIs(Start.PREPARED, self.world.machine().how)

    def test_changed_meanwhile(self) -> None:
        """What has changed while no Jitsu ran is prepared anew at once."""
        self.begin()
        self.world.pump(PREPARED_IN)
        guest = self.world.backend.guests[self.world.machine().uuid]
        guest.stale = "its definition has changed"
        self.world.kill()
        self.world.pump(PREPARED_IN)
        self.assertEqual((State.PREPARED, 2, ""), (self.state(), guest.boots, guest.stale))

    def test_killed_on_the_way(self) -> None:
        """A VM whose preparation a killed Jitsu had begun is adopted, stopped when idle, and prepared."""
        for after in (QUIET + 0.5, QUIET + BOOTS + 0.5):
            self.begin(self.vm(response_delay=1.0))
            self.world.pump(after)
            self.assertIs(State.PREPARING if after < BOOTS else State.SETTLING, self.state())
            self.world.kill()
            self.world.backend.guests[self.world.machine().uuid].busy = False
            self.happen(Power.RUNNING)  # the hypervisor's call goes on
            self.world.pump(120, until=lambda: self.state() is State.PREPARED)
            self.assertEqual((State.PREPARED, Power.PREPARED), (self.state(), self.power()))

    def test_not_wanted_any_more(self) -> None:
        """What is prepared and is not to be is destroyed by the next Jitsu, also if its VM is configured no more."""
        for settings in ((self.vm(prepare=False),), ()):
            self.begin()
            self.world.pump(PREPARED_IN)
            uuid = self.world.machine().uuid
            self.world.settings = type(self.world.settings)(vms=settings, answer_by=99)
            self.world.kill()
            self.world.pump(PREPARED_IN)
            self.assertIs(Power.OFF, self.world.backend.guests[uuid].power)

    def test_last_used_first(self) -> None:
        """After a restart, Jitsu prepares the VM first that clients have asked for last."""
        self.begin(*(self.vm(f"vm{number}") for number in range(3)), max_prepared=0)
        for name in ("vm2", "vm0", "vm1"):
            self.ask(name)
            self.world.pump(10 + 2 * PREPARED_IN)
        self.world.settings = attrs.evolve(self.world.settings, max_prepared=1)
        self.world.kill()
        self.world.pump(PREPARED_IN)
        self.assertIs(State.PREPARED, self.state("vm1"))

    def test_unused(self) -> None:
        """A VM that was prepared and never used is stopped by nobody, however long it waits."""
        self.begin()
        self.world.pump(7200, step=5)
        self.assertEqual((State.PREPARED, 1), (self.state(), self.world.starts()))
