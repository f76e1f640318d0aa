"""
The order of what can be seen from outside when a VM starts, stops and fails.

A real fleet with a server in front of it, on a clock. What it does is recorded in one list of (who, what): calls of the
backend, commits of the store, messages to Synjitsu and to the other nodes, answers to clients, events of the journal,
lines of the log. Whether there are warm answers and a lease is sampled whenever an effect is recorded. No test here
knows which object calls which.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rcode
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.memory import Fault, MemoryBackend
from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator, Table
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.warm import WarmAnswers
from jitsu_tw.dns.wire import Source
from jitsu_tw.dns.zone import Zone
from jitsu_tw.ijitsu import Power
from jitsu_tw.settings import Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm.fleet import Fleet
from jitsu_tw.vm.standins import StandInControl
from test.support import EPOCH, BoundedClock, alone, vm
from test.unit.vm.test_standins import FakeStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.ijitsu import Start
    from jitsu_tw.settings import Mode

#: Seconds that a commit of the store takes, and Synjitsu to do what it was told.
COMMIT_TAKES = 0.02
SYNJITSU_TAKES = 0.03

Effects = list[tuple[str, str]]

#: What comes before what, wherever both occur, and why. The lists of the tests pin more; that may change with a reason,
#: and this may not.
PROMISES: tuple[tuple[tuple[str, str], tuple[str, str], str], ...] = (
    (("store", "has written a start"), ("backend", "starts"), "after a crash it is known whose the VM is"),
    (("Synjitsu", "may run"), ("backend", "starts"), "the guest finds its packets held"),
    (("Synjitsu", "has done it"), ("backend", "starts"), "what Synjitsu broadcasts reaches no guest"),
    (("Synjitsu", "booting"), ("client", "NOERROR"), "the client's first packet is held"),
    (("cluster", "grants claims/www"), ("backend", "starts"), "no other node starts the VM"),
    (("cluster", "is told runs/www"), ("backend", "starts"), "another node finds the VM if this one dies"),
    (("backend", "start ends"), ("lease", "there"), "a boot costs nothing of the lease"),
    (("lease", "there"), ("warm answers", "there"), "each warm answer renews the lease"),
    (("warm answers", "gone"), ("backend", "stop by"), "no client is sent to a VM that is being stopped"),
    (("lease", "gone"), ("backend", "stop by"), "a VM that is being stopped is not stopped again"),
    (("Synjitsu", "asleep"), ("backend", "stop by"), "packets are held from the moment at which the guest is gone"),
    (("cluster", "is told claims/www ending"), ("backend", "stop by"), "the other nodes do not answer for the VM"),
    (("backend", "stop ends"), ("cluster", "loses claims/www"), "nobody starts the VM while it is being stopped"),
    (("backend", "stop ends"), ("store", "writes a stop"), "after a crash the VM is Jitsu's until it is down"),
)


class Backend(MemoryBackend):
    """A hypervisor of which the calls are recorded."""

    def __init__(self, clock: BoundedClock, record: Callable[[str, str], None]) -> None:
        """Record by *record*."""
        super().__init__(reactor=clock)
        self.record, self.reachable = record, True

    def start(self, uuid: str) -> Deferred[Start]:
        """Record that it is called, and how it ends."""
        self.record("backend", "starts")

        def ends(result: Any) -> Any:
            self.record("backend", "start fails" if isinstance(result, Failure) else "start ends")
            return result

        return super().start(uuid).addBoth(ends)

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Record that it is called, and when it ends."""
        self.record("backend", f"stop by {mode.value}")
        return super().stop(uuid, mode).addCallback(lambda _: self.record("backend", "stop ends"))


class Store(MemoryStore):
    """A store of which the commits are recorded; each takes a while."""

    def __init__(self, clock: BoundedClock, record: Callable[[str, str], None]) -> None:
        """Record by *record*."""
        super().__init__(lasting=True)
        self.clock, self.record = clock, record
        self.written: dict[str, str | None] = {}

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Record when a start or a stop begins to be written, and when it has been."""
        written, self.written = self.written, {**self.written, **changes}
        what = ["a start" if path.endswith("/start_ts") else "a stop" for path in changes
                if path.endswith(("/start_ts", "/stop_ts")) and changes[path] != written.get(path, "0.000")]
        done: Deferred[Any] = deferLater(self.clock, COMMIT_TAKES)
        done.addCallback(lambda _: super(Store, self).write(changes, message))
        for one in what:
            self.record("store", f"writes {one}")
            done.addCallback(self.has_written, one)
        return done

    def has_written(self, _: None, what: str) -> None:
        """Record it."""
        self.record("store", f"has written {what}")


class StandIn(FakeStandIn):
    """A Synjitsu of which the messages are recorded; it takes a while to carry them out."""

    record: Callable[[str, str], None]

    def announce(self, ip: str, macs: Iterable[str], *, asleep: bool, **more: Any) -> None:
        """Record it, and whether the guest may run."""
        self.may_run = " and may run" if more["runs"] else ""
        super().announce(ip, macs, asleep=asleep, **more)

    def _say(self, ip: str, words: str) -> None:
        super()._say(ip, words)
        words = words.strip()
        self.record("Synjitsu", words + (self.may_run if words == "booting" else ""))

    def heard(self) -> Deferred[None]:
        """Record when all is done."""
        done: Deferred[None] = deferLater(self.reactor, SYNJITSU_TAKES)
        return done.addCallback(lambda _: self.record("Synjitsu", "has done it"))


class Coordinator(MemoryCoordinator):
    """The coordinator of a node that is alone in its cluster; what is written of VMs is recorded."""

    record: Callable[[str, str], None]

    def claim(self, key: str, value: str) -> Deferred[bool]:
        """Record it."""
        claimed = super().claim(key, value)
        if not key.startswith("nodes/"):
            self.record("cluster", f"is asked for {key}")
            claimed.addCallback(self.granted, key)
        return claimed

    def granted(self, ours: bool, key: str) -> bool:  # noqa: FBT001
        """Record it."""
        self.record("cluster", f"{'grants' if ours else 'refuses'} {key}")
        return ours

    def put(
        self, facts: Mapping[str, str | None], holding: str = "", expected: Mapping[str, str | None] | None = None
    ) -> Deferred[bool]:
        """Record it."""
        for key, value in sorted(facts.items()):
            how = re.search(r'"is": "(\w+)"', value or "")
            if key.startswith(("claims/", "runs/")):
                said = f"is told {key}{f' {how[1]}' if how else ''}"
                self.record("cluster", said if value is not None else f"loses {key}")
        return super().put(facts, holding, expected)


class OrderTestCase(SynchronousTestCase):
    """Has a node with one VM, and the list of its effects."""

    maxDiff = None

    def begin(self, *, synjitsu: bool = False, cluster: bool = False, **changes: Any) -> None:
        """Begin with a VM that is off; no effect is recorded yet."""
        self.effects: Effects = []
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.warm = WarmAnswers(self.clock.seconds)
        self.has: dict[str, bool] = {"warm answers": False, "lease": False}
        one = vm(**{"idle": 5.0, "boot_time": 0.5, "use_synjitsu": synjitsu, **changes})
        self.backend = Backend(self.clock, self.record)
        settings = Settings(vms=(one,), synjitsu="unix:socket" if synjitsu else None)
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        make_cluster = alone(settings, clocks)
        if cluster:
            coordinator = Coordinator("ns1", Table(self.clock))
            coordinator.record = self.record
            make_cluster = partial(Membership, settings, None, coordinator, clocks)
        make_standins = partial(StandInControl, make=self.make_standin)
        store = Store(self.clock, self.record)
        backends = {("memory", ""): self.backend}
        self.fleet = Fleet(settings, backends, store, clocks, make_cluster, self.warm, make_standins)
        path = self.mktemp()
        with open(path, "w") as file:  # noqa: PTH123
            file.write("$ORIGIN jitsu.test.\n@ 60 SOA ns hostmaster 1 60 60 60 60\n@ 60 NS ns\n")
        zones = Zones([Zone.read(path)])
        zones.add_vm(one.dns[0], one.name, one.ip, one.ttl)
        self.server = Server(Chain([JitsuResolver(zones, self.fleet), ZoneAuthority(zones)]), self.warm, self.fleet,
                             zones)
        self.fleet.start(store.open())
        self.machine = self.fleet.machines["www"]
        self.run_for(10.0)
        self.fleet.journal.on_event.append(self.on_event)
        listen: Any = self.on_log
        globalLogPublisher.addObserver(listen)
        self.addCleanup(globalLogPublisher.removeObserver, listen)
        self.effects.clear()

    def make_standin(self, *of: Any) -> Any:
        """Return a connection to a Synjitsu that is none."""
        self.standin = StandIn(*of)
        self.standin.record = self.record
        return self.standin

    def record(self, who: str, what: str) -> None:
        """Record an effect, and before it what has come or gone since the last one."""
        self.sample()
        if self.effects[-1:] != [(who, what)]:  # the same effect twice in a row is one
            self.effects.append((who, what))

    def sample(self) -> None:
        """Record whether warm answers and a lease have come or gone."""
        if not hasattr(self, "machine"):
            return
        now = {"warm answers": bool(self.warm.answers), "lease": self.fleet.leases.left(self.machine) is not None}
        for what, is_there in now.items():
            if is_there is not self.has[what]:
                self.effects.append((what, "there" if is_there else "gone"))
        self.has = now

    def on_event(self, event: Any) -> None:
        """Record an event of the journal."""
        facts = event.facts
        if event.kind == "state":
            self.record("journal", f"{facts['old']} -> {facts['state']}")
        else:
            self.record("journal", f"{event.kind} {facts['activation']['outcome']}")

    def on_log(self, event: Any) -> None:
        """Record how a line of the log begins: its words may change."""
        if event["log_namespace"].startswith("jitsu_tw"):
            self.record("log", re.split(r" after | \(|: the |, ", formatEvent(event))[0])

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.01] * round(seconds * 100))

    def ask(self) -> None:
        """Ask for the VM's address as a client; the answer is recorded."""
        query = dns.message.make_query("www.jitsu.test", "A", use_edns=0)
        octets = query.to_wire()

        def answered(reply: bytes) -> None:
            said = dns.message.from_wire(reply)
            errors = "".join(f" {str(one).partition(':')[0]}" for one in said.options)
            address = " with the address" if said.answer else ""
            self.record("client", f"{dns.rcode.to_text(said.rcode())}{address}{errors}")

        source = Source("192.0.2.1", 4711, proven=True)
        (reply,), _ = self.server.answer_warm(([octets[2:]], [source.client(octets[:2])]))
        if reply is not None:
            answered(octets[:2] + reply)
        else:
            self.server.receive(octets, source, answered)

    def begin_up(self, **changes: Any) -> None:
        """Begin with a VM that is up, and has a warm answer; no effect is recorded yet."""
        self.begin(**changes)
        self.ask()
        self.run_for(1.0)
        self.ask()
        self.sample()
        self.assertEqual({"warm answers": True, "lease": True}, self.has)
        self.effects.clear()

    def check(self, expected: Effects) -> None:
        """Compare the effects with *expected*, and check each promise for each time that it concerns."""
        self.sample()
        self.assertEqual(expected, self.effects)
        for (who, what), (whom, then), why in PROMISES:
            if any(one == who and did.startswith(what) for one, did in expected):
                is_done = False
                for one, did in expected:
                    is_done = is_done or (one == who and did.startswith(what))
                    if one == whom and did.startswith(then):
                        self.assertTrue(is_done, f"{who} {what} before {whom} {then}: {why}")
                        is_done = False


class AloneTests(OrderTestCase):
    """Without Synjitsu and without other nodes."""

    def test_cold_start(self) -> None:
        """A start is written, then made; when the VM is ready it has a lease, and the client its answer."""
        self.begin()
        self.ask()
        self.run_for(1.0)
        self.check([
            ("journal", "off -> queued"),
            ("store", "writes a start"),
            ("journal", "queued -> starting"),
            ("store", "has written a start"),
            ("backend", "starts"),
            ("backend", "start ends"),
            ("journal", "starting -> waiting"),
            ("lease", "there"),
            ("journal", "waiting -> up"),
            ("client", "NOERROR with the address"),
            ("warm answers", "there"),
            ("journal", "activation up"),
            ("log", "www: up"),
        ])

    def test_idle_stop(self) -> None:
        """Warm answers and the lease go before the VM does; when it is off, that is written."""
        self.begin_up()
        self.run_for(10.0)
        self.check([
            ("warm answers", "gone"),
            ("lease", "gone"),
            ("journal", "up -> stopping"),
            ("backend", "stop by destroy"),
            ("backend", "stop ends"),
            ("store", "writes a stop"),
            ("journal", "stopping -> off"),
            ("log", "www: idle for 5 s"),
            ("store", "has written a stop"),
        ])

    def test_failed_start(self) -> None:
        """A client is told of a start that has failed; that the VM is nobody's again is written."""
        self.begin(faults=[Fault.START.value])
        self.ask()
        self.run_for(1.0)
        self.check([
            ("journal", "off -> queued"),
            ("store", "writes a start"),
            ("journal", "queued -> starting"),
            ("store", "has written a start"),
            ("backend", "starts"),
            ("backend", "start fails"),
            ("store", "writes a stop"),
            ("journal", "starting -> failed"),
            ("journal", "activation failed"),
            ("log", "www: failed"),
            ("client", "SERVFAIL EDE 0 (Other)"),
            ("store", "has written a stop"),
        ])

    def test_asked_for_while_it_stops(self) -> None:
        """A question during a stop waits for its end and for the start that follows it."""
        self.begin_up()
        stop = self.backend.stop
        self.patch(self.backend, "stop", lambda *of: deferLater(self.clock, 0.5, stop, *of))
        self.fleet.operator.stop("www")
        self.run_for(0.1)
        self.ask()
        self.run_for(2.0)
        self.check([
            ("warm answers", "gone"),
            ("lease", "gone"),
            ("journal", "up -> stopping"),
            ("backend", "stop by destroy"),
            ("backend", "stop ends"),
            ("store", "writes a stop"),
            ("journal", "stopping -> off"),
            ("journal", "off -> queued"),
            ("journal", "queued -> starting"),
            ("store", "has written a stop"),
            ("store", "writes a start"),
            ("store", "has written a start"),
            ("backend", "starts"),
            ("backend", "start ends"),
            ("journal", "starting -> waiting"),
            ("lease", "there"),
            ("journal", "waiting -> up"),
            ("client", "NOERROR with the address"),
            ("warm answers", "there"),
            ("journal", "activation up"),
            ("log", "www: up"),
        ])

    def test_goes_down(self) -> None:
        """A VM that goes down by itself has neither warm answers nor a lease from then on."""
        self.begin_up()
        self.run_for(3.0)
        self.backend.happen(self.machine.uuid, Power.OFF, "the guest crashed")
        self.run_for(1.0)
        self.check([
            ("warm answers", "gone"),
            ("log", "www: off"),
            ("store", "writes a stop"),
            ("lease", "gone"),
            ("journal", "up -> off"),
            ("store", "has written a stop"),
        ])


class SynjitsuTests(OrderTestCase):
    """With Synjitsu."""

    def test_cold_start(self) -> None:
        """Synjitsu holds packets before the client is answered, at once, and has done all before the backend starts."""
        self.begin(synjitsu=True)
        self.ask()
        self.run_for(1.0)
        self.check([
            ("Synjitsu", "booting"),
            ("journal", "off -> queued"),
            ("Synjitsu", "booting and may run"),
            ("store", "writes a start"),
            ("journal", "queued -> starting"),
            ("client", "NOERROR with the address"),
            ("store", "has written a start"),
            ("Synjitsu", "has done it"),
            ("backend", "starts"),
            ("backend", "start ends"),
            ("Synjitsu", "booting and may run"),
            ("journal", "starting -> waiting"),
            ("Synjitsu", "ready"),
            ("lease", "there"),
            ("journal", "waiting -> up"),
            ("journal", "activation up"),
            ("log", "www: up"),
        ])

    def test_woken(self) -> None:
        """A packet starts the VM as a question does, and gets no answer."""
        self.begin(synjitsu=True)
        self.standin.summon(str(self.machine.vm.ip[0]), "192.0.2.1")
        self.run_for(1.0)
        self.check([
            ("Synjitsu", "booting"),
            ("journal", "off -> queued"),
            ("Synjitsu", "booting and may run"),
            ("store", "writes a start"),
            ("journal", "queued -> starting"),
            ("store", "has written a start"),
            ("Synjitsu", "has done it"),
            ("backend", "starts"),
            ("backend", "start ends"),
            ("Synjitsu", "booting and may run"),
            ("journal", "starting -> waiting"),
            ("Synjitsu", "ready"),
            ("lease", "there"),
            ("journal", "waiting -> up"),
            ("journal", "activation up"),
            ("log", "www: up"),
        ])

    def test_idle_stop(self) -> None:
        """Synjitsu stands in for the VM before that is stopped."""
        self.begin_up(synjitsu=True)
        self.run_for(10.0)
        self.check([
            ("Synjitsu", "asleep"),
            ("warm answers", "gone"),
            ("lease", "gone"),
            ("journal", "up -> stopping"),
            ("backend", "stop by destroy"),
            ("backend", "stop ends"),
            ("Synjitsu", "asleep"),
            ("store", "writes a stop"),
            ("journal", "stopping -> off"),
            ("log", "www: idle for 5 s"),
            ("store", "has written a stop"),
        ])

    def test_failed_start(self) -> None:
        """A start that fails for a client that has the address is made once more; packets are held until that ends."""
        self.begin(synjitsu=True, faults=[Fault.START.value])
        self.ask()
        self.run_for(1.0)
        self.check([
            ("Synjitsu", "booting"),
            ("journal", "off -> queued"),
            ("Synjitsu", "booting and may run"),
            ("store", "writes a start"),
            ("journal", "queued -> starting"),
            ("client", "NOERROR with the address"),
            ("store", "has written a start"),
            ("Synjitsu", "has done it"),
            ("backend", "starts"),
            ("backend", "start fails"),
            ("store", "writes a stop"),
            ("journal", "starting -> failed"),
            ("log", "www: its start failed"),
            ("journal", "activation failed"),
            ("log", "www: failed"),
            ("Synjitsu", "booting"),
            ("journal", "failed -> queued"),
            ("Synjitsu", "booting and may run"),
            ("journal", "queued -> starting"),
            ("store", "has written a stop"),
            ("store", "writes a start"),
            ("Synjitsu", "has done it"),
            ("store", "has written a start"),
            ("backend", "starts"),
            ("backend", "start fails"),
            ("Synjitsu", "failed"),
            ("store", "writes a stop"),
            ("journal", "starting -> failed"),
            ("journal", "activation failed"),
            ("log", "www: failed"),
            ("store", "has written a stop"),
        ])


class ClusterTests(OrderTestCase):
    """In a cluster, of which the other nodes are silent."""

    def test_cold_start(self) -> None:
        """The VM is claimed before anything else, and its host is agreed on before the start."""
        self.begin(cluster=True)
        self.ask()
        self.run_for(1.0)
        self.check([
            ("journal", "off -> queued"),
            ("cluster", "is asked for claims/www"),
            ("cluster", "grants claims/www"),
            ("cluster", "is told runs/www"),
            ("journal", "queued -> starting"),
            ("store", "writes a start"),
            ("store", "has written a start"),
            ("backend", "starts"),
            ("backend", "start ends"),
            ("journal", "starting -> waiting"),
            ("lease", "there"),
            ("cluster", "is told claims/www up"),
            ("journal", "waiting -> up"),
            ("client", "NOERROR with the address"),
            ("warm answers", "there"),
            ("journal", "activation up"),
            ("log", "www: up"),
        ])

    def test_idle_stop(self) -> None:
        """The other nodes have notice of the end while the VM is still up; its claim ends after it."""
        self.begin_up(cluster=True)
        self.run_for(10.0)
        self.check([
            ("cluster", "is told claims/www ending"),
            ("warm answers", "gone"),
            ("lease", "gone"),
            ("cluster", "is told claims/www ending"),
            ("journal", "up -> stopping"),
            ("backend", "stop by destroy"),
            ("backend", "stop ends"),
            ("store", "writes a stop"),
            ("cluster", "loses claims/www"),
            ("cluster", "loses runs/www"),
            ("journal", "stopping -> off"),
            ("log", "www: idle for 5 s"),
            ("store", "has written a stop"),
        ])

    def test_failed_start(self) -> None:
        """The other nodes hear why a start has failed before its claim ends."""
        self.begin(cluster=True, faults=[Fault.START.value])
        self.ask()
        self.run_for(1.0)
        self.check([
            ("journal", "off -> queued"),
            ("cluster", "is asked for claims/www"),
            ("cluster", "grants claims/www"),
            ("cluster", "is told runs/www"),
            ("journal", "queued -> starting"),
            ("store", "writes a start"),
            ("store", "has written a start"),
            ("backend", "starts"),
            ("backend", "start fails"),
            ("store", "writes a stop"),
            ("cluster", "is told claims/www failed"),
            ("journal", "starting -> failed"),
            ("journal", "activation failed"),
            ("log", "www: failed"),
            ("client", "SERVFAIL EDE 0 (Other)"),
            ("cluster", "loses claims/www"),
            ("cluster", "loses runs/www"),
            ("store", "has written a stop"),
        ])
