"""Several hypervisors as one (`backends.pool`): where a VM is started, and that it never runs on two."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import defer
from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.domain_xml import definition
from jitsu_tw.backends.hosts import Unplaced
from jitsu_tw.backends.memory import RESTORES_IN, Fault, MemoryBackend
from jitsu_tw.backends.pool import Pool
from jitsu_tw.errors import BackendError, BackendLost, ClusterUnavailable, NoCapacity, NoSuchVM
from jitsu_tw.ijitsu import Memory, Power, Start
from jitsu_tw.settings import HOSTS, STARTS_WITHIN, Boot, Mode
from test.contract import backends as contract_backends
from test.support import BoundedClock, reboot, vm

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.settings import VM

NAMES = ("left", "middle", "right")


class Lossy(MemoryBackend):
    """A hypervisor whose connection breaks."""

    def __init__(self, connect: str = "", reactor: Any = None) -> None:
        super().__init__(connect, reactor)
        self.is_lost = False

    def state(self, uuid: str) -> Deferred[Power]:
        """Return what the VM is, unless the host is lost."""
        return super().state(uuid).addCallback(self._unless_lost)

    def start(self, uuid: str) -> Deferred[Start]:
        """Start the VM, unless the host is lost."""
        return super().start(uuid).addCallback(self._unless_lost)

    def _unless_lost(self, result: Any) -> Any:
        if self.is_lost:
            raise BackendLost("the cable is out")
        return result


class Facts(Unplaced):
    """What the cluster knows of where VMs are, set by a test."""

    def __init__(self) -> None:
        self.claimed: list[str] = []
        self.agrees = True
        self.drained: set[str] = set()
        self.last: str | None = None
        self.ago = inf

    def claim_host(self, vm: VM, host: str) -> Deferred[bool]:  # noqa: ARG002
        """Return whether that is agreed."""
        self.claimed.append(host)
        return succeed(self.agrees)

    def last_host(self, vm: VM) -> str | None:  # noqa: ARG002
        """Return the same for all VMs."""
        return self.last

    def started_ago(self, vm: VM) -> float:  # noqa: ARG002
        """Return the same for all VMs."""
        return self.ago

    def is_drained(self, host: str) -> bool:
        """Return whether *host* is among `drained`."""
        return host in self.drained


def a_vm(**changes: Any) -> VM:
    """Return a VM for all hosts."""
    return vm(**{"backend": HOSTS, "hosts": NAMES, **changes})


class HostsContractTests(contract_backends.BackendContract):
    """The contract, on three of memory."""

    has_disks = False

    def make(self) -> Pool:
        """Return empty hosts."""
        return Pool({name: MemoryBackend(name) for name in NAMES})

    def new_vm(self) -> VM:
        """Return any VM."""
        return a_vm()


class HostsTests(SynchronousTestCase):
    """Where VMs go."""

    def setUp(self) -> None:
        """Begin with three hosts."""
        self.clock = BoundedClock()
        self.each = {name: Lossy(name, self.clock) for name in NAMES}
        self.hosts = Pool(self.each, self.clock.seconds)
        self.watcher = contract_backends.Watcher()
        self.facts = Facts()
        self.hosts.follow(self.facts)
        self.hosts.connect(self.watcher)

    def have(self, vm: VM, **memory: int) -> str:
        """Define a VM that needs 10 octets of memory; *memory* is free on each host. Return its uuid."""
        uuid = self.successResultOf(self.hosts.look_up(vm))
        for name, free in memory.items():
            self.each[name].guests[uuid].memory = Memory(10, free)
        return uuid

    def start(self, uuid: str) -> str | None:
        """Start a VM and return where it is."""
        self.successResultOf(self.hosts.start(uuid))
        running = [name for name in NAMES for guest in [self.each[name].guests.get(uuid)]
                   if guest is not None and guest.power is Power.RUNNING]
        self.assertEqual([self.hosts.at(uuid)], running)
        return self.hosts.at(uuid)

    def lose(self, name: str) -> None:
        """Lose a host."""
        self.each[name].is_lost = True
        self.hosts.lost(self.each[name], "the cable is out")

    def find(self, name: str) -> None:
        """Connect to a host again."""
        self.each[name].is_lost = False
        self.hosts.connected(self.each[name])

    def test_most_memory(self) -> None:
        """A VM starts where most memory is free, and nowhere where there is not enough."""
        uuid = self.have(a_vm(), left=20, middle=30, right=5)
        self.assertEqual("middle", self.start(uuid))
        self.assertEqual(["middle"], self.facts.claimed)
        other = self.have(a_vm(name="db"), left=9, middle=9, right=9)
        failure = self.failureResultOf(self.hosts.start(other), NoCapacity)
        self.assertIn("left: it needs 0 MiB", str(failure.value))

    def test_prefer_and_avoid(self) -> None:
        """A VM starts on the hosts that it prefers, in their order, and on those that it avoids only if it must."""
        uuid = self.have(a_vm(prefer=("right", "left")), left=20, middle=30, right=20)
        self.assertEqual("right", self.start(uuid))
        uuid = self.have(a_vm(name="db", avoid=("middle",)), left=20, middle=30, right=19)
        self.assertEqual("left", self.start(uuid))
        uuid = self.have(a_vm(name="x", hosts=("left", "middle"), avoid=("middle",)), left=5, middle=30)
        self.assertEqual("middle", self.start(uuid))

    def test_drained(self) -> None:
        """Nothing new is started on a host that is drained."""
        self.facts.drained = {"middle", "left"}
        self.assertEqual("right", self.start(self.have(a_vm(), left=20, middle=30, right=10)))

    def test_next_host(self) -> None:
        """A start that fails on one host is tried on the next; if all fail, the error has the reason of each."""
        uuid = self.have(a_vm(), left=20, middle=30, right=40)
        for name in ("right", "middle"):
            self.order(name, uuid, Fault.START)
        self.assertEqual("left", self.start(uuid))
        self.successResultOf(self.hosts.stop(uuid, Mode.DESTROY))
        self.order("left", uuid, Fault.START)
        failure = self.failureResultOf(self.hosts.start(uuid), BackendError)
        for name in NAMES:
            self.assertIn(f"{name}: the start fails", str(failure.value))
        self.flushLoggedErrors()

    def order(self, name: str, uuid: str, fault: Fault) -> None:
        """Order a fault on one host."""
        guest = self.each[name].guests[uuid]
        guest.vm = vm(faults=[fault.value])

    def test_stays_with_its_image(self) -> None:
        """A VM that is saved or paused goes on where it is, whichever host would be better."""
        for mode in (Mode.SAVE, Mode.PAUSE):
            uuid = self.have(a_vm(name=mode.value), left=20, middle=30, right=10)
            self.assertEqual("middle", self.start(uuid))
            self.successResultOf(self.hosts.stop(uuid, mode))
            self.have(a_vm(name=mode.value), left=200, middle=11, right=10)
            self.assertEqual("middle", self.start(uuid))

    def test_shared_image(self) -> None:
        """The image that the VMs of a template share is made on the host where one of them is."""
        uuid = self.have(a_vm(template="site", boot_from=Boot.SNAPSHOT), left=20, middle=30, right=10)
        self.start(uuid)
        kept = self.hosts.keep_image(uuid, shared=True)
        self.clock.advance(RESTORES_IN)
        self.successResultOf(kept)
        self.assertEqual([set(), {"site"}, set()], [self.each[name].seeds for name in NAMES])

    def test_found_running(self) -> None:
        """A VM that was started by hand on any host is found there, and not started."""
        uuid = self.have(a_vm())
        self.each["right"].happen(uuid, Power.RUNNING, "by hand")
        self.assertEqual(Power.RUNNING, self.successResultOf(self.hosts.state(uuid)))
        self.assertEqual(Start.RAN, self.successResultOf(self.hosts.start(uuid)))
        self.assertEqual([], self.facts.claimed)

    def test_lost_while_up(self) -> None:
        """A VM whose host is lost is not started elsewhere: it may run there. When the host is back, it does."""
        uuid = self.have(a_vm(prefer=("left",)))
        self.start(uuid)
        self.lose("left")
        failure = self.failureResultOf(self.hosts.start(uuid), BackendLost)
        self.assertIn("it may run on left: the cable is out", str(failure.value))
        self.find("left")
        self.assertEqual(Power.RUNNING, self.successResultOf(self.hosts.state(uuid)))

    def test_lost_while_off(self) -> None:
        """A VM that was last seen off on a host is started on another when that is lost."""
        uuid = self.have(a_vm(prefer=("left",)))
        self.successResultOf(self.hosts.state(uuid))
        self.lose("left")
        self.assertIn(self.start(uuid), {"middle", "right"})

    def test_lost_while_prepared(self) -> None:
        """A VM that is prepared on a host goes on there; if that is lost, it is booted on another."""
        uuid = self.have(a_vm(), left=20, middle=30, right=10)
        self.start(uuid)
        self.successResultOf(self.hosts.prepare(uuid))
        self.assertEqual(Power.PREPARED, self.successResultOf(self.hosts.state(uuid)))
        self.have(a_vm(), left=200, middle=11, right=10)
        self.assertEqual(Start.PREPARED, self.successResultOf(self.hosts.start(uuid)))
        self.successResultOf(self.hosts.prepare(uuid))
        self.successResultOf(self.hosts.state(uuid))
        self.facts.last = ""
        self.lose("middle")
        self.assertEqual(Start.BOOTED, self.successResultOf(self.hosts.start(uuid)))
        self.assertEqual("left", self.hosts.at(uuid))

    def test_lost_while_starting(self) -> None:
        """A start whose call was lost with its host is not tried elsewhere."""
        uuid = self.lost_while_starting()
        self.failureResultOf(self.hosts.start(uuid), BackendLost)

    def lost_while_starting(self) -> str:
        """Lose a host while it starts a VM, and return that."""
        uuid = self.have(a_vm(prefer=("left",), boot_time=1.0))
        started = self.hosts.start(uuid)
        self.lose("left")
        self.clock.advance(1)
        self.failureResultOf(started, BackendLost)
        return uuid

    def test_lost_for_long(self) -> None:
        """A VM whose start call was lost with its host may run there, for as long as the host is away."""
        uuid = self.lost_while_starting()
        self.clock.advance(STARTS_WITHIN + 1)
        self.failureResultOf(self.hosts.start(uuid), BackendLost)

    def test_never_seen(self) -> None:
        """On a host that was never reached a VM may run, unless it is known that it was started on none, or another."""
        for where, starts in ((None, False), ("left", False), ("", True), ("right", True)):
            hosts = Pool(self.each)
            self.lose("left")
            hosts.connect(self.watcher)
            hosts.unreachable["left"] = "the cable is out"
            facts = Facts()
            facts.last = where
            hosts.follow(facts)
            uuid = self.successResultOf(hosts.look_up(a_vm(name=f"vm-{where}")))
            if starts:
                self.successResultOf(hosts.start(uuid))
                self.assertEqual("right" if where else "middle", hosts.at(uuid))
            else:
                self.failureResultOf(hosts.start(uuid), BackendLost)

    def test_not_defined_yet(self) -> None:
        """On a host that does not know the VM, as it was away when that was looked for, it is defined and started."""
        uuid = self.have(a_vm())
        del self.each["right"].guests[uuid]
        self.facts.drained = {"left", "middle"}
        self.assertEqual("right", self.start(uuid))
        self.assertIs(Power.RUNNING, self.each["right"].guests[uuid].power)

    def test_pinned(self) -> None:
        """A start that a dead node had begun on a host is begun there again, not on another."""
        uuid = self.have(a_vm(), left=20, middle=30, right=40)
        self.facts.last = "left"
        self.assertEqual("left", self.start(uuid))

    def test_begun_and_lost(self) -> None:
        """A start whose call was lost with its host is not tried elsewhere while it may go on."""
        uuid = self.lost_while_starting()
        self.each["left"].guests[uuid].power = Power.OFF  # as it is while it boots
        self.find("left")
        self.failureResultOf(self.hosts.start(uuid), BackendLost)
        self.each["left"].happen(uuid, Power.RUNNING, "booted")
        self.assertEqual(Start.RAN, self.successResultOf(self.hosts.start(uuid)))

    def test_begun_by_another(self) -> None:
        """After a start failed where another node had begun one, the VM is unknown while that one may go on."""
        uuid = self.have(a_vm(prefer=("right",)))
        self.facts.last, self.facts.ago = "left", 20.0
        self.order("left", uuid, Fault.START)
        self.failureResultOf(self.hosts.start(uuid), BackendLost)
        self.facts.last, self.facts.ago = "", 0.0
        self.clock.advance(39)
        self.failureResultOf(self.hosts.state(uuid), BackendLost)
        self.failureResultOf(self.hosts.start(uuid), BackendLost)
        self.clock.advance(2)
        self.assertEqual("right", self.start(uuid))

    def test_begun_by_another_in_the_end(self) -> None:
        """When such a VM is seen to run after all, it is known again."""
        uuid = self.have(a_vm())
        self.facts.last, self.facts.ago = "left", 0.0
        self.order("left", uuid, Fault.START)
        self.failureResultOf(self.hosts.start(uuid), BackendLost)
        self.each["left"].happen(uuid, Power.RUNNING, "booted")
        self.assertEqual(Power.RUNNING, self.successResultOf(self.hosts.state(uuid)))
        self.assertEqual(Start.RAN, self.successResultOf(self.hosts.start(uuid)))

    def test_dead(self) -> None:
        """A VM on a fenced host is off, and starts elsewhere; when the host is back, its answers count again."""
        uuid = self.have(a_vm(prefer=("left",)))
        self.start(uuid)
        self.facts.last = "left"
        self.lose("left")
        self.watcher.told.clear()
        self.hosts.fence("left")
        self.assertEqual([(uuid, "its host left is dead")], self.watcher.told)
        self.assertEqual(Power.OFF, self.successResultOf(self.hosts.state(uuid)))
        self.each["left"].guests[uuid].power = Power.OFF
        self.assertIn(self.start(uuid), {"middle", "right"})
        self.hosts.fence("left", undo=True)
        self.find("left")
        self.assertEqual(Power.RUNNING, self.successResultOf(self.hosts.state(uuid)))

    def test_not_ours(self) -> None:
        """A VM that another node owns is not started."""
        uuid = self.have(a_vm())
        self.facts.agrees = False
        self.failureResultOf(self.hosts.start(uuid), ClusterUnavailable)
        self.assertEqual(Power.OFF, self.successResultOf(self.hosts.state(uuid)))

    def test_all_lost(self) -> None:
        """The pool counts as lost only when all hosts are."""
        for name in NAMES:
            self.assertEqual([], self.watcher.lost_reasons)
            self.lose(name)
        (reason,) = self.watcher.lost_reasons
        self.assertIn("right: the cable is out", reason)

    def test_definition(self) -> None:
        """A definition without a uuid is given the one that the VM has on other hosts."""
        uuid = "11111111-2222-3333-4444-555555555555"
        self.assertIn(f"<uuid>{uuid}</uuid>", definition("<domain><name>www</name></domain>", uuid))
        own = "<domain><name>www</name><uuid>x</uuid></domain>"
        self.assertIn("<uuid>x</uuid>", definition(own, uuid))
        self.assertNotIn("<uuid>", definition("<domain/>", None))

    def test_one_hangs(self) -> None:
        """A host that hangs does not keep the others from being asked."""
        asked: list[str] = []
        for name in NAMES:
            look_up = self.each[name].look_up

            def look(vm: VM, name: str = name, look_up: Any = look_up) -> Any:
                asked.append(name)
                return defer.Deferred() if name == "left" else look_up(vm)

            self.patch(self.each[name], "look_up", look)
        self.assertNoResult(self.hosts.look_up(a_vm()))
        self.assertEqual(list(NAMES), asked)

    def test_one_refuses(self) -> None:
        """What a host refuses is the VM's error, though other hosts know it."""
        self.patch(self.each["middle"], "look_up", lambda _: defer.fail(BackendError("two VMs are called so")))
        failure = self.failureResultOf(self.hosts.look_up(a_vm()), BackendError)
        self.assertIn("two VMs", failure.getErrorMessage())

    def test_looks_at_the_file(self) -> None:
        """A host that knows the VM compares the file with its definition; another one defines the VM."""
        file = Path(self.mktemp())
        file.write_text("<domain><name>www</name></domain>")
        asked: list[tuple[str, bool]] = []
        for name in NAMES:

            def look(vm: VM, name: str = name) -> Any:
                asked.append((name, vm.define is not None))
                return defer.succeed("a uuid") if name == "left" or vm.define else defer.fail(NoSuchVM("no www"))

            self.patch(self.each[name], "look_up", look)
        self.assertEqual("a uuid", self.successResultOf(self.hosts.look_up(a_vm(define=file))))
        self.assertEqual({(name, True) for name in NAMES}, set(asked[3:]))

    def test_advice(self) -> None:
        """Advice names the hosts that give it; advice about a file is given once."""
        uuid = self.have(a_vm())
        self.each["left"].guests[uuid].advice = ("one", "two")
        self.each["right"].guests[uuid].advice = ("one",)
        self.assertEqual(("left, right: one", "left: two"), self.successResultOf(self.hosts.advice(uuid)))
        self.lose("left")
        self.assertEqual(("right: one",), self.successResultOf(self.hosts.advice(uuid)))
        for backend in self.each.values():
            self.patch(backend, "examine", lambda _: ("the file lacks something",))
        self.assertEqual(("the file lacks something",), self.hosts.examine(a_vm()))

    def test_removed(self) -> None:
        """What a template has made is removed when all hosts can be asked; one that is away may have its image."""
        machine = a_vm(template="site", uuid="0b5f2a52-6d4f-5ab8-8f6e-4f1a2b3c4d5e")
        uuid = self.have(machine, left=5, middle=30, right=20)
        self.start(uuid)
        self.failureResultOf(self.hosts.remove(machine), BackendError)
        self.successResultOf(self.hosts.stop(uuid, Mode.SAVE))
        removes = self.each["middle"].remove
        self.patch(self.each["middle"], "remove", lambda _: defer.fail(BackendLost("the cable is out")))
        failure = self.failureResultOf(self.hosts.remove(machine), BackendError)
        self.assertEqual("middle: the cable is out", failure.getErrorMessage())
        leaving = a_vm(template="site", uuid=uuid, removed=True, define=Path("/nowhere"))
        self.assertEqual(uuid, self.successResultOf(self.hosts.look_up(leaving)))
        self.assertEqual(["middle"], [name for name in NAMES if uuid in self.each[name].guests])
        self.patch(self.each["middle"], "remove", removes)
        self.successResultOf(self.hosts.remove(machine))
        self.failureResultOf(self.hosts.look_up(leaving), NoSuchVM)
        self.assertIsNone(self.hosts.at(uuid))

    def test_removed_while_it_is_looked_at(self) -> None:
        """A VM that is removed while its hosts are asked what it does is known no more; that is no fault."""
        for last in (False, True):
            machine = a_vm(template="site", uuid="0b5f2a52-6d4f-5ab8-8f6e-4f1a2b3c4d5e")
            uuid = self.have(machine)
            held = defer.Deferred[Power]()
            name = NAMES[-1] if last else NAMES[0]
            patched = self.patch(self.each[name], "state", lambda _, held=held: held)
            state, begun = self.hosts.state(uuid), self.hosts.start(uuid)
            self.successResultOf(self.hosts.remove(machine))
            held.callback(Power.OFF)
            for call in (state, begun):
                self.failureResultOf(call, NoSuchVM)
            patched.restore()

    def test_where_it_is(self) -> None:
        """Counts, and obstacles to a stop, come from the host that the VM is on."""
        uuid = self.have(a_vm(), left=5, middle=30, right=20)
        self.assertIsNone(self.successResultOf(self.hosts.obstacle(uuid, Mode.SAVE)))
        self.start(uuid)
        self.each["middle"].guests[uuid].cpu = 3.0
        self.each["middle"].guests[uuid].obstacles[Mode.SAVE] = "a device"
        self.assertEqual(3.0, self.successResultOf(self.hosts.cpu_time(uuid)))
        self.assertEqual("a device", self.successResultOf(self.hosts.obstacle(uuid, Mode.SAVE)))
        reboot(self.each["middle"], uuid)
        self.assertEqual([uuid], self.watcher.reboots)
