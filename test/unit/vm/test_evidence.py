"""What shows that a VM is in use without a query: an hour of its guest's life, on a clock, on the memory backend."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater

from jitsu_tw.errors import BackendError
from jitsu_tw.rules.flows import NO_FLOWS, Flows
from jitsu_tw.rules.keep import Why
from jitsu_tw.rules.lease import Use
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import Evidence, Mode
from jitsu_tw.vm.evidence import UNCOUNTED
from test.support import World, vm
from test.unit.vm.test_fleet import FleetTestCase

#: Seconds.
HOUR = 3600


class GuestTestCase(FleetTestCase):
    """Has a VM that is up, and whose packets, CPU time and connections are counted."""

    def begin(self, **changes: Any) -> None:
        """Begin with a VM with `idle` of a minute."""
        self.world = World(vm(**{"idle": 60, **changes}))
        self.guest = self.world.backend.guests[self.world.machine().uuid]
        self.guest.sent, self.guest.cpu = 0, 0.0
        self.flows: Flows | None = None
        self.patch(self.world.fleet.standins, "flows", lambda _: self.flows)
        self.exchanged: int | None = None
        self.patch(self.world.fleet.standins, "packets", self.packets)
        self.ask()

    async def packets(self, _: object) -> int | None:
        """Return how many packets of conversations Synjitsu has counted; None if there is none."""
        return self.exchanged

    def live(self, seconds: int, *, every: int = 0, sends: int = 0, cpu: float = 0.0) -> None:
        """
        Let time pass.

        Args:
            seconds: how many pass.
            every: after how many seconds the guest sends again; 0: it sends nothing.
            sends: how many packets it sends then.
            cpu: seconds of CPU time that it takes in each second.
        """
        for second in range(seconds):
            assert self.guest.sent is not None
            assert self.guest.cpu is not None
            if every and second % every == 0:
                self.guest.sent += sends
            self.guest.cpu += cpu
            self.world.pump(1, step=0.5)

    @property
    def state(self) -> State:
        """The VM's."""
        return self.world.machine().state

    def words(self) -> str:
        """Return in words what keeps the VM."""
        status = self.world.fleet.leases.status(self.world.machine())
        assert status is not None
        return status.words


class HourTests(GuestTestCase):
    """An hour without a query."""

    def test_conversation(self) -> None:
        """A packet every three seconds, as of server-sent events or a slow terminal, is a use."""
        self.begin()
        self.live(HOUR, every=3, sends=1)
        self.assertIs(State.UP, self.state)
        self.assertIn("its guest had traffic", self.words())
        self.live(70)
        self.assertIs(State.OFF, self.state)

    def test_receives(self) -> None:
        """What a guest receives is a use where Synjitsu counts it, and what it sends besides conversations is none."""
        self.begin()
        self.exchanged = 0
        for _ in range(60):
            self.exchanged += 60
            self.live(60)
        self.assertIs(State.UP, self.state)
        self.live(100, every=1, sends=20)
        self.assertIs(State.OFF, self.state)

    def test_killed(self) -> None:
        """A guest that is in use when Jitsu is killed is not stopped by the next one, and one that is not, is."""
        self.begin(idle=1)
        self.live(30, every=1, sends=50)
        self.world.kill()
        self.live(30, every=1, sends=5)
        self.assertIs(State.UP, self.state)
        self.world.kill()
        self.live(3)
        self.assertIs(State.OFF, self.state)

    def test_synjitsu_comes_and_goes(self) -> None:
        """While Synjitsu is away, what the guest sends counts in place of its conversations."""
        self.begin()
        self.exchanged = 5000
        self.live(30)
        self.exchanged = None
        self.live(300, every=1, sends=1)
        self.assertIs(State.UP, self.state)
        self.exchanged = 0
        self.live(70)
        self.assertIs(State.OFF, self.state)

    def test_websocket(self) -> None:
        """An open connection with a ping every 30 seconds keeps the VM, and ends with it; `idle` later it is off."""
        self.begin(idle_connection=600)
        self.flows = Flows(1, self.world.clock.seconds())
        self.live(HOUR, every=30, sends=1)
        self.assertIs(State.UP, self.state)
        self.assertEqual("an open connection", self.words())
        self.flows = NO_FLOWS
        self.live(50)
        self.assertIs(State.UP, self.state)
        self.assertRegex(self.words(), "a connection to it was opened or closed")
        self.live(40)
        self.assertIs(State.OFF, self.state)

    def test_silent_connection(self) -> None:
        """A connection that gives no sign of life keeps the VM for `idle_connection`, also while nobody reports it."""
        self.begin(idle_connection=600)
        self.flows = Flows(3, self.world.clock.seconds())
        self.live(300)
        self.assertEqual("3 open connections", self.words())
        self.flows = None
        self.live(290)
        self.assertIs(State.UP, self.state)
        self.live(80)
        self.assertIs(State.OFF, self.state)

    def test_connection_that_sleeps(self) -> None:
        """A mode that keeps the guest's memory keeps its connections: these do not keep it up."""
        for mode, state in ((Mode.PAUSE, State.PAUSED), (Mode.SAVE, State.SAVED), (Mode.SUSPEND, State.PAUSED)):
            self.begin(mode=mode)
            self.flows = Flows(1, self.world.clock.seconds())
            self.live(70)
            self.assertIs(state, self.state)

    def test_queries_alone(self) -> None:
        """With `evidence: queries` connections are none."""
        self.begin(evidence=Evidence.QUERIES)
        self.flows = Flows(1, self.world.clock.seconds())
        self.live(70)
        self.assertIs(State.OFF, self.state)

    def test_batch_job(self) -> None:
        """CPU time beyond `idle_cpu` is a use, whatever the evidence of the network is; without the key it is none."""
        for changes, state in (
            ({"idle_cpu": 6}, State.UP), ({"idle_cpu": 6, "evidence": Evidence.QUERIES}, State.UP), ({}, State.OFF),
            ({"idle_cpu": 12}, State.OFF),
        ):  # fmt: skip
            self.begin(**changes)
            self.live(HOUR, cpu=0.15)
            self.assertIs(state, self.state, changes)
            if state is State.UP:
                self.assertIn("its guest took CPU time", self.words())
                self.live(75, cpu=0.05)
                self.assertIs(State.OFF, self.state)

    def test_nobody(self) -> None:
        """ARP, NTP, DHCP renewals and mDNS keep no VM up; a port scan is taken for one use."""
        self.begin()
        self.live(40, every=16, sends=1)
        self.guest.sent = (self.guest.sent or 0) + 1000
        self.live(60, every=16, sends=1)
        self.assertIs(State.UP, self.state)
        self.live(10, every=16, sends=1)
        self.assertIs(State.OFF, self.state)
        self.assertEqual(1, self.world.starts())


class CountedTests(GuestTestCase):
    """What cannot be counted, and what is counted last."""

    def test_uncounted_cpu(self) -> None:
        """A VM with `idle_cpu` whose CPU time nobody counts is kept, and that is told."""
        self.begin(idle_cpu=6)
        self.guest.cpu = None
        self.world.pump(100, step=1)
        self.assertIs(State.UP, self.state)
        status = self.world.fleet.leases.status(self.world.machine())
        self.assertIs(Why.UNSEEN, status and status.why)
        self.assertEqual([UNCOUNTED[Use.CPU]], self.world.fleet.context.problems.of("www"))
        self.guest.cpu = 5.0
        self.live(70)
        self.assertIs(State.OFF, self.state)

    def test_uncountable_cpu(self) -> None:
        """The same if counting it fails."""
        self.begin(idle_cpu=6)
        self.patch(self.world.backend, "cpu_time", lambda _: fail(BackendError("busy")))
        self.world.pump(100, step=1)
        self.assertIs(State.UP, self.state)
        self.assertIn("busy", self.world.fleet.context.problems.of("www")[0])

    def test_last_look(self) -> None:
        """What the guest sends after the look that ended its lease, and before the stop, keeps the VM."""
        self.begin(mode=Mode.PAUSE)
        obstacle: Deferred[str | None] = Deferred()
        self.patch(self.world.backend, "obstacle", lambda *_: obstacle)
        self.live(61)
        self.guest.sent = 100
        obstacle.callback(None)
        self.assertIs(State.UP, self.state)
        self.live(50)
        self.assertIs(State.UP, self.state)

    def test_last_connection(self) -> None:
        """So does a connection that is opened then."""
        self.begin()
        self.flows = NO_FLOWS
        count = self.world.backend.traffic
        waits: Deferred[None] = Deferred()
        self.live(58)
        self.patch(self.world.backend, "traffic", lambda uuid: waits.addCallback(lambda _: count(uuid)))
        self.live(5)
        self.flows = Flows(1, self.world.clock.seconds())
        waits.callback(None)
        self.live(100)
        self.assertIs(State.UP, self.state)

    def test_busy(self) -> None:
        """A guest that sends all the time is stopped for its `max_up`, and when it has asked to be put to sleep."""
        for changes in ({"max_up": 30.0}, {}):
            self.begin(**changes)
            traffic = self.world.backend.traffic

            def count(uuid: str, traffic: Any = traffic) -> Any:
                self.guest.sent = (self.guest.sent or 0) + 100
                return deferLater(self.world.clock, 0.1, traffic, uuid)

            self.patch(self.world.backend, "traffic", count)
            self.live(20)
            self.assertIs(State.UP, self.state)
            if not changes:
                self.world.fleet.leases.guests.sleep(self.world.machine())
            self.live(15)
            self.assertIs(State.OFF, self.state)
            self.patch(self.world.backend, "traffic", traffic)

    def test_shown(self) -> None:
        """Each kind of use is told with how long ago it was, and how many connections are open."""
        self.begin(idle_cpu=6)
        self.flows = Flows(2, self.world.clock.seconds())
        self.live(10)
        self.guest.sent = 100
        self.live(10)
        status = self.world.fleet.leases.status(self.world.machine())
        assert status is not None
        self.assertEqual(2, status.connections)
        self.assertTrue(2 <= status.uses[Use.PACKETS] <= 10, status.uses)
        self.assertTrue(19 <= status.uses[Use.CONNECTION] <= 21, status.uses)
