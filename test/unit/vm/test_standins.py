"""What the moves of a VM mean for Synjitsu, and what Synjitsu sees for a VM; on a clock, with a Synjitsu of our own."""

from __future__ import annotations

import itertools
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import MemoryBackend
from jitsu_tw.backends.pool import Pool
from jitsu_tw.clocks import Clocks
from jitsu_tw.control.describe import standins
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.errors import BootFailed, NoStandIn
from jitsu_tw.ijitsu import Guest, Power, Start
from jitsu_tw.rules.flows import Flows
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import HOSTS, Boot, Handover, Host, Mode, Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.sync.reconfigure import ConfigChange, LiveConfig
from jitsu_tw.vm.fleet import Fleet
from jitsu_tw.vm.standins import LATE_BY, REFUSES_FOR, StandInControl
from jitsu_tw.vm.steps import WRITTEN_WITHIN
from test.support import EPOCH, World, alone, question, reboot, vm
from test.unit.vm.test_fleet import FleetTestCase

if TYPE_CHECKING:
    from collections.abc import Iterable

MAC = "52:54:00:00:00:01"


class FakeStandIn:
    """
    Remembers what is announced.

    Attributes:
        said: by address, in words.
        ever: the same, in the order in which it was said.
        more: by address, the rest of the last announcement.
        runs: whether the guest may have run, for each announcement.
        hears: fires when all that was announced has been carried out.
    """

    def __init__(self, place: str, on_summon: Any, on_seen: Any, reactor: Any, *more: Any) -> None:
        """Take what a `StandIn` takes."""
        on_ready, self.elsewhere, self.secret, self.on_change = more
        self.refused: dict[str, str] = {}
        self.open: dict[str, Flows] = {}
        self.exchanged: dict[str, int] = {}
        self.place, self.reactor = place, reactor
        self.summon, self.seen, self.listens = on_summon, on_seen, on_ready
        self.connected = True
        self.said: dict[str, str] = {}
        self.ever: list[tuple[str, str]] = []
        self.more: dict[str, Any] = {}
        self.runs: list[bool] = []
        self.hears: Deferred[None] = succeed(None)

    def start(self) -> None:
        """Be connected already."""

    def stop(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def heard(self) -> Deferred[None]:
        """Return a Deferred that fires when `hears` does."""
        waiter: Deferred[None] = Deferred()
        self.hears.addCallback(waiter.callback)
        return waiter

    def change(self, *, connected: bool) -> None:
        """Come or go."""
        self.connected = connected
        self.on_change(self)

    def announce(self, ip: str, macs: Iterable[str], *, asleep: bool, **more: Any) -> None:
        """Remember it."""
        self._say(ip, f"{'asleep' if asleep else 'booting'} {' '.join(macs)}")
        self.more[ip] = more
        self.runs.append(more["runs"])

    def ready(self, ip: str, macs: Iterable[str]) -> None:
        """Remember it."""
        self._say(ip, f"ready {' '.join(macs)}")

    def withdraw(self, ip: str, *, failed: bool = False) -> None:
        """Remember it."""
        self._say(ip, "failed" if failed else "withdrawn")

    def stop_announcing(self, ip: str) -> None:
        """Remember it."""
        self._say(ip, "another node's")

    def flows(self, ip: str) -> Flows | None:
        """Return those of `open`."""
        return self.open.get(ip)

    def packets(self, ip: str) -> Deferred[int | None]:
        """Return those of `exchanged`."""
        return succeed(self.exchanged.get(ip))

    def _say(self, ip: str, words: str) -> None:
        self.said[ip] = words
        self.ever.append((ip, words))


class CoverTests(FleetTestCase):
    """`StandInControl`, and a fleet with one."""

    def begin(self, **changes: Any) -> None:
        """Begin with a VM that is stood in for, and has a port."""
        values = {"idle": 10.0, "boot_time": 1.0, "wait_for_port": 80, "use_synjitsu": True, **changes}
        self.world = World(vm("off"))
        self.world.settings = type(self.world.settings)(vms=(vm(**values), vm("other")), synjitsu="unix:socket")
        self.world.backend.reachable = True
        self.patch(self.world.backend, "guest", lambda _: succeed(Guest((MAC,))))
        self.port: list[Deferred[None]] = []
        clocks = Clocks(self.world.clock, self.world.clock.seconds, lambda: EPOCH + self.world.clock.seconds())
        self.world.fleet = Fleet(
            self.world.settings, {("memory", ""): self.world.backend}, self.world.store, clocks,
            alone(self.world.settings, clocks), make_standins=self.make_standins,
        )
        self.world.fleet.start(self.world.store.open())
        self.ip = str(self.world.machine().vm.ip[0])

    def make_standins(
        self, endpoints: Any, machines: Any, reactor: Any, port: Any, observer: Any, secret: str
    ) -> StandInControl:
        """Return stand-ins with a Synjitsu that is none."""
        self.patch(port, "wait", self.wait)
        make: Any = FakeStandIn
        made = StandInControl(endpoints, machines, reactor, port, observer, secret, make)
        (self.standin,) = cast("Any", made.clients.values())
        return made

    def wait(self, *_: Any) -> Deferred[None]:
        """Wait for the port without Synjitsu."""
        self.port.append(Deferred())
        return self.port[-1]

    @property
    def said(self) -> str:
        """What was said last of the VM's address."""
        said: str = self.standin.said[self.ip]
        return said

    def test_life(self) -> None:
        """It is stood in for while it is off and while it boots, handed over when it is up, and then anew."""
        self.begin()
        self.assertEqual(f"asleep {MAC}", self.said)
        self.assertEqual([self.ip], list(self.standin.said))
        self.ask()
        self.assertEqual(f"booting {MAC}", self.said)
        self.assertEqual(80, self.standin.more[self.ip]["knock"])
        self.world.pump(1.2)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.standin.listens(self.ip)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual(f"ready {MAC}", self.said)
        self.world.pump(11)
        self.assertEqual((State.OFF, f"asleep {MAC}"), (self.world.machine().state, self.said))

    def test_another_node(self) -> None:
        """A VM that another node owns is announced by that node."""
        self.begin()
        machine = self.world.machine()
        self.standin.ever.clear()
        self.patch(cast("Any", self.world.fleet.standins)._observer, "is_others", lambda _: True)
        for _ in range(2):
            self.world.fleet.standins.owner_changed(machine)
        self.assertEqual([(self.ip, "another node's")], self.standin.ever)

    def test_told_before_it_runs(self) -> None:
        """A guest is started when Synjitsu has broadcast what that guest must not read."""
        self.begin()
        calls: list[str] = []
        start = self.world.backend.start

        def begins(uuid: str) -> Deferred[Start]:
            calls.append(uuid)
            return start(uuid)

        self.patch(self.world.backend, "start", begins)
        self.standin.hears = Deferred()
        self.ask()
        self.assertEqual((f"booting {MAC}", []), (self.said, calls))
        self.assertFalse(all(self.standin.runs[1:]))
        self.standin.hears.callback(None)
        self.world.pump(0.01)
        self.assertEqual(1, len(calls))
        self.assertTrue(self.standin.more[self.ip]["runs"])

    def test_hung_synjitsu(self) -> None:
        """A Synjitsu that hangs delays a start by little."""
        self.begin()
        self.standin.hears = Deferred()
        self.ask()
        self.world.pump(WRITTEN_WITHIN + 1.5)
        self.assertIs(State.WAITING, self.world.machine().state)

    def test_answers_at_once(self) -> None:
        """The answer does not wait for the boot, and says nothing of one; a VM that is not stood in for waits."""
        self.begin()
        self.assertEqual([True], self.ask())
        self.assertIs(State.STARTING, self.world.machine().state)
        self.assertEqual([True], self.ask(host="192.0.2.2"))
        self.standin.connected = False
        self.assertEqual([], self.ask(host="192.0.2.3"))
        self.world.backend.guests[self.world.machine("other").uuid].vm = vm("other", boot_time=1.0)
        self.standin.connected = True
        self.assertEqual([], self.ask("other"))

    def test_wakes(self) -> None:
        """A packet for a VM that is off starts it, within the same limits as a question; one for another does not."""
        self.begin()
        self.standin.summon("203.0.113.99", "192.0.2.1")
        self.standin.summon(self.ip, "192.0.2.1")
        self.assertIs(State.STARTING, self.world.machine().state)
        self.world.pump(1.2)
        self.standin.listens(self.ip)
        self.world.pump(5)
        self.standin.summon(self.ip, "192.0.2.1")
        self.assertEqual(10.0, self.world.fleet.leases.left(self.world.machine()))
        self.begin()
        self.world.fleet.summons._policy.verify_source = True
        self.standin.summon(self.ip, "192.0.2.1")
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual(1, sum(self.world.fleet.journal.totals.refused.values()))
        self.standin.summon(self.ip, "192.0.2.1", True)  # noqa: FBT003 -- of an open connection
        self.assertIs(State.STARTING, self.world.machine().state)

    def test_nobody_asked(self) -> None:
        """A packet gets no answer, so none is counted, whenever the guest listens; a question meanwhile does."""
        for before, after, clients in ((0.5, 1, 0), (5.0, 1, 0), (0.5, 1, 1)):
            self.begin()
            self.standin.summon(self.ip, "192.0.2.1")
            self.world.pump(before)
            if clients:
                self.assertEqual([True], self.ask())
            self.world.pump(after)
            self.standin.listens(self.ip)
            self.assertIs(State.UP, self.world.machine().state)
            (activation,) = self.world.fleet.journal.last_activations("www", 5)
            self.assertEqual((clients, bool(clients)), (activation.clients, "answered" in self.world.machine().marks))

    def test_listens_early(self) -> None:
        """A guest that listens before the call that starts it has ended, as a restored one, is handed over for good."""
        self.begin()
        self.ask()
        self.assertEqual(80, self.standin.more[self.ip]["knock"])
        self.standin.listens(self.ip)
        self.standin.ever.clear()
        self.world.pump(1.2)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual([(self.ip, f"ready {MAC}")], self.standin.ever)

    def test_reboots(self) -> None:
        """A guest that reboots itself is stood in for until it listens again."""
        self.begin(idle=100.0)
        self.ask()
        self.world.pump(1.2)
        self.standin.listens(self.ip)
        self.assertEqual((State.UP, f"ready {MAC}"), (self.world.machine().state, self.said))
        reboot(self.world.backend, self.world.machine().uuid)
        self.assertEqual((State.WAITING, f"booting {MAC}"), (self.world.machine().state, self.said))
        self.assertEqual(80, self.standin.more[self.ip]["knock"])
        self.standin.listens(self.ip)
        self.assertEqual((State.UP, f"ready {MAC}"), (self.world.machine().state, self.said))

    def test_booted_instead(self) -> None:
        """Packets for a guest that could not go on where it was, and is booted, are held for that boot, not refused."""
        self.begin(mode=Mode.PAUSE)
        self.ask()
        self.world.pump(1.2)
        self.standin.listens(self.ip)
        self.world.pump(11)
        self.assertIs(State.PAUSED, self.world.machine().state)
        self.standin.ever.clear()
        self.ask()
        self.world.pump(0.3)
        self.assertIs(State.WAITING, self.world.machine().state)
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
        self.assertIs(State.STARTING, self.world.machine().state)
        self.assertEqual({(self.ip, f"booting {MAC}")}, set(self.standin.ever))
        self.world.pump(1.2)
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
        self.assertEqual((State.FAILED, "failed"), (self.world.machine().state, self.said))

    def test_address_is_anothers(self) -> None:
        """A VM whose address another one has now says nothing of that address while it stops, nor when it is gone."""
        self.begin(mode=Mode.SHUTDOWN, stop_timeout=5.0, dns=())
        self.ask()
        self.world.pump(1.2)
        self.standin.listens(self.ip)
        running = LiveConfig(Settings(), self.world.fleet, Zones(()), lambda _: None)
        new = attrs.evolve(self.world.machine().vm, name="new")
        running.apply(ConfigChange(added=(new,), removed=("www",)))
        self.standin.ever.clear()
        self.world.pump(10)
        self.assertEqual(["other", "new"], list(self.world.fleet.machines))
        self.assertEqual([], self.standin.ever)
        self.standin.summon(self.ip, "192.0.2.1")
        self.assertIs(State.STARTING, self.world.machine("new").state)
        running.apply(ConfigChange(removed=("new",)))
        self.world.pump(10)
        self.assertEqual("withdrawn", self.said)

    def test_second_address(self) -> None:
        """A guest that listens at one address is up; packets for the other one are held a little longer."""
        other = "2001:db8::80"
        self.begin(ip=(ip_address("192.0.2.80"), ip_address(other)))
        self.ask()
        self.world.pump(1.2)
        self.standin.listens(self.ip)
        self.assertIs(State.UP, self.world.machine().state)
        self.assertEqual((f"ready {MAC}", f"booting {MAC}"), (self.said, self.standin.said[other]))
        self.assertEqual(80, self.standin.more[other]["knock"])
        self.world.pump(LATE_BY)
        self.assertEqual((f"ready {MAC}", f"ready {MAC}"), (self.said, self.standin.said[other]))
        self.world.pump(6)
        self.assertEqual(State.OFF, self.world.machine().state)
        self.ask()
        self.world.pump(1.2)
        self.standin.listens(other)
        self.standin.listens(self.ip)
        self.world.fleet.operator.stop("www")
        self.world.pump(LATE_BY)
        self.assertEqual({f"asleep {MAC}"}, set(self.standin.said.values()))

    def test_not_by_packets(self) -> None:
        """A VM that packets shall not wake is stood in for only while it boots."""
        self.begin(wake_by_packet=False)
        self.assertEqual("withdrawn", self.said)
        self.ask()
        self.assertEqual(f"booting {MAC}", self.said)

    def test_fails(self) -> None:
        """The packets for a VM that does not start are refused for a while; then it can be woken again."""
        self.begin(faults=["start"])
        (failure,) = self.ask()
        self.assertIsInstance(failure.value, BootFailed)
        self.assertEqual("failed", self.said)
        self.world.pump(REFUSES_FOR + 0.2)
        self.assertEqual(f"asleep {MAC}", self.said)

    def test_fails_once(self) -> None:
        """What is held for a VM whose start fails is held on for the second one, and refused if that fails, too."""
        for wants in (self.ask, lambda: self.standin.summon(self.ip, "192.0.2.1")):
            self.begin()
            wants()
            self.world.pump(1.05)
            self.standin.ever.clear()
            for state, said in ((State.STARTING, f"booting {MAC}"), (State.FAILED, "failed")):
                self.assertIs(State.WAITING, self.world.machine().state)
                self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest crashed")
                self.assertEqual((state, said), (self.world.machine().state, self.said))
                self.world.pump(1.05)
            self.assertEqual([f"booting {MAC}", "failed"], [words for _, words in self.standin.ever][-2:])
            self.assertEqual(1, [words for _, words in self.standin.ever].count("failed"))

    def test_no_room(self) -> None:
        """A packet for a VM for which there is no room starts nothing, and is not tried again."""
        self.begin()
        self.world.fleet.operator.start("other")
        self.patch(self.world.fleet.admission, "_max_running", 1)
        self.standin.summon(self.ip, "192.0.2.1")
        self.world.pump(3)
        self.assertEqual((State.OFF, 0), (self.world.machine().state, self.world.starts()))

    def test_image(self) -> None:
        """While the image of a VM is made, Synjitsu stands in for it as for one that is asleep."""
        self.begin(boot_from=Boot.SNAPSHOT, idle=2, wait_for_port=None, response_delay=1.0)
        self.ask()
        self.world.pump(2.2)
        self.assertEqual(f"ready {MAC}", self.said)
        self.world.pump(9, step=0.05, until=lambda: self.world.machine().state is State.SETTLING)
        self.assertEqual((f"asleep {MAC}", None), (self.said, self.standin.more[self.ip]["knock"]))

    def test_number(self) -> None:
        """
        A guest that takes its SYNs from Xenstore is announced with its domain's number as soon as that is there, with
        or without a port, and without the number once the domain is gone.
        """
        for port, made in itertools.product((80, None), (True, False)):
            self.begin(handover=Handover.XENSTORE, wait_for_port=port, response_delay=1.0)
            numbers: list[int | None] = []
            self.patch(self.standin, "announce", lambda *_, _n=numbers, **more: _n.append(more["domid"]))
            self.patch(self.world.backend, "guest", lambda _: succeed(Guest((MAC,), 5)))
            self.ask()
            if made:
                self.world.backend.happen(self.world.machine().uuid, Power.OFF, "its domain is being made")
            self.assertEqual((State.STARTING, 5 if made else None), (self.world.machine().state, numbers[-1]))
            self.world.pump(1.05)
            self.assertEqual((State.WAITING, 5), (self.world.machine().state, numbers[-1]))
            self.world.fleet.operator.stop("www")
            self.assertEqual((State.OFF, None), (self.world.machine().state, numbers[-1]))

    def test_while_stopping(self) -> None:
        """A packet that comes while the VM is being stopped starts it again after that."""
        self.begin(mode=Mode.SHUTDOWN)
        self.ask()
        self.world.pump(1.2)
        self.standin.listens(self.ip)
        self.patch(self.world.backend, "stop", lambda *_: succeed(None))
        self.world.pump(10.2)
        self.assertEqual((State.STOPPING, f"asleep {MAC}"), (self.world.machine().state, self.said))
        self.standin.summon(self.ip, "192.0.2.1")
        self.world.backend.happen(self.world.machine().uuid, Power.OFF, "the guest shut down")
        self.assertIs(State.STARTING, self.world.machine().state)

    def test_memory(self) -> None:
        """Synjitsu is told whether the guest's memory is kept, from the beginning of the stop on."""
        for mode, memories in ((Mode.PAUSE, [True, True]), (Mode.SAVE, [True, True]), (Mode.DESTROY, [None, False]),
                               (Mode.SHUTDOWN, [None, False])):  # fmt: skip
            self.begin(mode=mode)
            self.assertEqual("False", str(self.standin.more[self.ip]["memory"]))
            self.ask()
            self.assertIsNone(self.standin.more[self.ip]["memory"])
            self.world.pump(1.2)
            self.standin.listens(self.ip)
            self.world.pump(9)
            stop, stopped = self.world.backend.stop, Deferred[None]()
            self.patch(self.world.backend, "stop", lambda *_, stopped=stopped: stopped)
            self.world.pump(2)
            told = [self.standin.more[self.ip]["memory"]]
            self.assertIs(State.STOPPING, self.world.machine().state)
            stop(self.world.machine().uuid, mode).chainDeferred(stopped)
            self.world.pump(0.1)
            self.assertEqual(memories, [*told, self.standin.more[self.ip]["memory"]], mode)

    def test_memory_not_known(self) -> None:
        """Of a paused VM whose start is given up, nobody says that its memory is gone; nor of one that has failed."""
        self.begin(mode=Mode.PAUSE)
        machine = self.world.machine()
        self.world.backend.happen(machine.uuid, Power.PAUSED, "paused by hand")
        self.assertTrue(self.standin.more[self.ip]["memory"])
        asked: list[str] = []
        announce = self.standin.announce

        def note(*what: Any, memory: bool | None, **more: Any) -> None:
            asked.append(str(memory))
            announce(*what, memory=memory, **more)

        self.patch(self.standin, "announce", note)
        self.world.fleet.operator.start("other")
        self.patch(self.world.fleet.admission, "_max_running", 1)
        self.standin.summon(self.ip, "192.0.2.1")
        self.world.pump(1)
        self.assertIs(State.PAUSED, machine.state)
        self.assertNotIn("False", asked)
        self.patch(self.world.fleet.admission, "_max_running", 2)
        self.patch(self.world.backend, "start", lambda _: fail(BootFailed("no")))
        self.standin.summon(self.ip, "192.0.2.1")
        self.world.pump(REFUSES_FOR + 1)
        self.assertNotIn("False", asked)

    def test_flows(self) -> None:
        """The open connections of a VM are those at all its addresses; None where no Synjitsu watches one."""
        self.begin(ip=tuple(map(ip_address, ("10.0.0.7", "fd00::7"))))
        flows, machine = self.world.fleet.standins.flows, self.world.machine()
        self.assertIsNone(flows(machine))
        self.standin.open = {"10.0.0.7": Flows(2, 5.0)}
        self.assertEqual(Flows(2, 5.0), flows(machine))
        self.standin.open["fd00::7"] = Flows(1, 7.0)
        self.assertEqual(Flows(3, 7.0), flows(machine))
        self.assertIsNone(flows(self.world.machine("other")))
        self.patch(self.world.fleet, "is_others", lambda _: True)
        self.world.fleet.standins.owner_changed(machine)
        self.assertIsNone(flows(machine))

    def test_packets(self) -> None:
        """The packets of a VM are those of its first address; None where no Synjitsu counts them."""
        self.begin(ip=tuple(map(ip_address, ("10.0.0.7", "fd00::7"))))
        packets, machine = self.world.fleet.standins.packets, self.world.machine()
        self.standin.exchanged = {"fd00::7": 3}
        for known in (None, 5):
            self.assertEqual(known, self.successResultOf(Deferred.fromCoroutine(packets(machine))))
            self.standin.exchanged["10.0.0.7"] = 5
        other = Deferred.fromCoroutine(packets(self.world.machine("other")))
        self.assertIsNone(self.successResultOf(other))

    def test_without_synjitsu(self) -> None:
        """Where Synjitsu is away, or goes away meanwhile, the port is tried from here, as long as it is away."""
        self.begin()
        self.ask()
        self.world.pump(1.2)
        self.assertEqual([], self.port)
        self.standin.change(connected=False)
        (tried,) = self.port
        self.standin.change(connected=True)
        self.assertTrue(tried.called)  # it was cancelled
        self.assertEqual(1, len(self.port))
        self.assertIs(State.WAITING, self.world.machine().state)
        self.standin.change(connected=False)
        self.port[1].callback(None)
        self.assertIs(State.UP, self.world.machine().state)

    def test_there_again(self) -> None:
        """Synjitsu that is back while the guest boots finds out that it listens."""
        self.begin()
        self.ask()
        self.world.pump(1.2)
        self.standin.change(connected=False)
        self.standin.change(connected=True)
        self.standin.listens(self.ip)
        self.assertIs(State.UP, self.world.machine().state)

    def test_stopped_while_it_boots(self) -> None:
        """A stop ends the wait for the guest."""
        self.begin()
        self.ask()
        self.world.pump(1.2)
        self.world.fleet.operator.stop("www")
        self.assertIs(State.OFF, self.world.machine().state)
        self.standin.listens(self.ip)
        self.assertIs(State.OFF, self.world.machine().state)

    def test_becomes_another(self) -> None:
        """A VM that gets another address by request is stood in for there, and nowhere when it is no more."""
        self.begin()
        fleet, machine = self.world.fleet, self.world.machine()
        fleet.inventory.find(fleet.enlist(attrs.evolve(machine.vm, ip=(ip_address("10.9.9.9"),))))
        self.assertEqual({self.ip: "withdrawn", "10.9.9.9": f"asleep {MAC}"}, self.standin.said)
        self.standin.summon("10.9.9.9", "10.0.0.1")
        self.assertIs(State.STARTING, machine.state)
        self.standin.summon(self.ip, "10.0.0.1")  # nobody's any more
        self.world.pump(2)
        self.standin.listens("10.9.9.9")
        self.assertIs(State.UP, machine.state)
        gone = fleet.dismiss(machine, "it is no more")
        self.world.pump(1)
        self.successResultOf(gone)
        self.assertEqual("withdrawn", self.standin.said["10.9.9.9"])
        self.assertNotIn("www", fleet.machines)

    def test_announces_itself(self) -> None:
        """A guest that announces itself though it is thought to be off is looked at."""
        self.begin()
        self.world.backend.guests[self.world.machine().uuid].power = Power.RUNNING
        self.standin.seen(self.ip)
        self.assertIs(State.WAITING, self.world.machine().state)

    def test_shown(self) -> None:
        """What Synjitsu says of itself is shown; that there is none, too."""
        self.begin()
        said = {"standins": [{"ip": self.ip, "mac": MAC, "state": "asleep", "handover": "wire", "held": 2}],
                "counters": {"held": 5, "handed_over": 3, "held_now": 2}}
        self.standin.status = lambda: succeed(said)
        self.assertEqual({"configured": True, "error": None, **said}, self.result(standins(self.world.fleet)))
        self.standin.status = lambda: fail(NoStandIn("no Synjitsu answers at unix:socket"))
        self.assertEqual("no Synjitsu answers at unix:socket", self.result(standins(self.world.fleet))["error"])
        self.world = World(vm())
        self.assertFalse(self.result(standins(self.world.fleet))["configured"])

    def test_macs(self) -> None:
        """All MACs that are known are announced: the configuration's first, then the hypervisor's."""
        self.begin(mac=("52:54:00:00:00:09", MAC))
        self.assertEqual(f"asleep 52:54:00:00:00:09 {MAC}", self.said)

    def test_two_interfaces(self) -> None:
        """The MACs of a guest with several interfaces are told in their order, in each state: the first one counts."""
        self.begin(mac=("52:54:00:00:00:09",))
        self.patch(self.world.backend, "guest", lambda _: succeed(Guest((MAC, "52:54:00:00:00:02"))))
        macs = f"52:54:00:00:00:09 {MAC} 52:54:00:00:00:02"
        self.ask()
        self.world.pump(1.2)
        self.assertEqual(f"booting {macs}", self.said)
        self.standin.listens(self.ip)
        self.assertEqual(f"ready {macs}", self.said)
        self.world.pump(11)
        self.assertEqual(f"asleep {macs}", self.said)

    def test_refused(self) -> None:
        """Where Synjitsu does not stand in for a VM's address, the port is tried without it."""
        self.begin()
        self.ask()
        self.world.pump(1.2)
        self.assertEqual(0, len(self.port))
        self.standin.refused[self.ip] = "it is the host's"
        self.standin.on_change(self.standin)
        sentence = f"Synjitsu does not stand in for {self.ip}: it is the host's"
        self.assertEqual([sentence], self.world.fleet.problems_of(self.world.machine()))
        self.assertEqual([], self.world.fleet.problems_of(self.world.machine("other")))
        self.assertEqual(1, len(self.port))
        self.port[0].callback(None)
        self.assertIs(State.UP, self.world.machine().state)

    def test_elsewhere(self) -> None:
        """That a guest uses another address is a problem of its VM while it does."""
        self.begin()
        sentence = "its guest uses 192.0.2.9, and not 192.0.2.80: correct the address in the guest, or the VM's ip"
        sentence = sentence.replace("192.0.2.80", self.ip)
        self.standin.elsewhere(self.ip, "192.0.2.9")  # it is off
        self.assertEqual([], self.world.fleet.context.problems.of("www"))
        self.ask()
        self.world.pump(1.2)
        for found, expected in (("192.0.2.9", [sentence]), ("", []), ("192.0.2.9", [sentence])):
            self.standin.elsewhere(self.ip, found)
            self.assertEqual(expected, self.world.fleet.context.problems.of("www"))
        self.standin.listens(self.ip)
        self.world.pump(11)
        self.assertIs(State.OFF, self.world.machine().state)
        self.assertEqual([], self.world.fleet.context.problems.of("www"))

    def result(self, asked: Any) -> Any:
        """Return what a coroutine returns at once."""
        return self.successResultOf(Deferred.fromCoroutine(asked))

    def test_nobody_knows(self) -> None:
        """An address is left alone while nobody knows what its VM is doing."""
        self.begin()
        self.world.fleet.inventory.lost(self.world.backend, "no daemon")
        self.assertEqual("withdrawn", self.said)


class HostsTests(SynchronousTestCase):
    """A VM on one of two hosts, each of which has a Synjitsu."""

    def test_chosen(self) -> None:
        """The Synjitsu of the host that is chosen stands in; where the VM goes, that one does."""
        world = World()
        hosts = {name: MemoryBackend(reactor=world.clock) for name in ("left", "right")}
        for host in hosts.values():
            host.reachable = True
            self.patch(host, "guest", lambda _: succeed(Guest((MAC,))))
        both = tuple(Host(name=name, backend="memory", connect=name, synjitsu=f"unix:{name}") for name in hosts)
        www = vm(backend=HOSTS, hosts=tuple(hosts), prefer=("right",), boot_time=1.0, wait_for_port=80,
                 use_synjitsu=True)  # fmt: skip
        clocks = Clocks(world.clock, world.clock.seconds, lambda: EPOCH + world.clock.seconds())
        pool = Pool(hosts, world.clock.seconds)
        backends: Any = {(HOSTS, ""): pool}
        settings = Settings(vms=(www,), hosts=both)
        made = partial(StandInControl, make=FakeStandIn)  # type: ignore[arg-type]
        fleet = Fleet(settings, backends, MemoryStore(), clocks, alone(settings, clocks, pool), make_standins=made)
        fleet.start({})
        left, right = cast("Any", fleet.standins.clients.values())
        ip = str(www.ip[0])

        def said() -> tuple[str | None, str | None]:
            return left.said.get(ip), right.said.get(ip)

        fleet.summons.summon("www", question("www"))
        world.pump(1.2)
        self.assertEqual(("withdrawn", f"booting {MAC}"), said())
        right.listens(ip)
        self.assertIs(State.UP, fleet.machines["www"].state)
        self.assertEqual(("withdrawn", f"ready {MAC}"), said())
        uuid = fleet.machines["www"].uuid
        hosts["right"].guests[uuid].power = Power.OFF
        hosts["left"].happen(uuid, Power.RUNNING, "moved by hand")
        self.assertEqual(f"ready {MAC}", left.said[ip])
