"""The guests' endpoint: who may ask it, and what it does."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.control.events import STILL_HERE
from jitsu_tw.errors import BackendError
from jitsu_tw.guests import BURST, MOST_FROM_ONE, OTHER_MAC, SEARCH_EVERY, UNKNOWN
from jitsu_tw.ijitsu import Guest
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import Mode
from test.support import question, vm
from test.support.control import GuestDesk
from test.unit.control.test_events import events

WWW = ("10.0.0.1", "52:54:00:00:00:01")
DB = ("10.0.0.2", "52:54:00:00:00:02")


class GuestTestCase(SynchronousTestCase):
    """Has an endpoint and two guests."""

    def begin(self, **changes: Any) -> None:
        """Begin."""
        self.desk = GuestDesk(dict([WWW, DB]), changes, www=WWW, db=DB)

    def setUp(self) -> None:
        """Begin."""
        self.begin()

    def left(self, name: str = "www") -> float | None:
        """Return how long a VM is kept."""
        return self.desk.fleet.leases.left(self.desk.machine(name))


class WhoTests(GuestTestCase):
    """Who may ask."""

    def test_itself(self) -> None:
        """A guest sees its own VM, and nothing else of any."""
        answer = self.desk.ask("/self")
        shown = answer.value
        self.assertAlmostEqual(59, shown.pop("lease_left"))
        self.assertEqual({"name": "www", "state": "up", "mode": "destroy", "idle": 60.0, "held": False,
                          "why": "used 1 s ago", "held_by_guest": 0.0, "connections": None}, shown)
        self.assertEqual("db", self.desk.ask("/self", "10.0.0.2").value["name"])

    def test_unknown(self) -> None:
        """Another address is refused, with the reason."""
        answer = self.desk.ask("/self", "10.0.0.9")
        self.assertEqual((403, UNKNOWN), (answer.status, answer.value["error"]))

    def test_mac(self) -> None:
        """A neighbour that is not the guest, or whose MAC nobody knows, is refused; the reason names no VM."""
        for mac in (DB[1], "", None):
            self.desk.macs[WWW[0]] = mac  # type: ignore[assignment]
            answer = self.desk.ask("/self")
            self.assertEqual((403, OTHER_MAC), (answer.status, answer.value["error"]), mac)

    def test_backend_mac(self) -> None:
        """The MACs that the hypervisor knows are the guest's, too."""
        self.desk.macs[WWW[0]] = "52:54:00:00:00:77"
        self.assertEqual(403, self.desk.ask("/self").status)
        self.patch(self.desk.backend, "guest", lambda _: Deferred.fromCoroutine(self.guest()))
        self.assertEqual(200, self.desk.ask("/self").status)

    @staticmethod
    async def guest() -> Guest:
        """Return a guest with a MAC."""
        return Guest(("52:54:00:00:00:77",))

    def test_late(self) -> None:
        """A hypervisor may take its time; what the kernel says then counts, and a client that is gone is forgotten."""
        guests: list[Deferred[Guest]] = []

        def guest(_: str) -> Deferred[Guest]:
            guests.append(Deferred())
            return guests[-1]

        self.patch(self.desk.backend, "guest", guest)
        talks = [self.desk.talk(WWW[0]) for _ in range(3)]
        for talk in talks:
            talk.say("GET", "/self/events")
        talks[2].hang_up()
        guests[0].callback(Guest())
        self.desk.macs[WWW[0]] = DB[1]
        guests[1].callback(Guest())
        self.desk.macs[WWW[0]] = WWW[1]
        guests[2].callback(Guest())
        self.assertEqual((200, 403), tuple(talk.heard().status for talk in talks[:2]))
        talks[0].hang_up()
        self.assertEqual({}, self.desk.fleet.leases.guests._listeners)

    def test_hypervisor(self) -> None:
        """While the hypervisor or the kernel cannot be asked, a guest cannot be known."""
        self.patch(self.desk.site, "_mac_of", self.no_kernel)
        self.assertEqual(503, self.desk.ask("/self").status)
        self.begin()
        self.patch(self.desk.backend, "guest", lambda _: fail(BackendError("busy")))
        self.assertEqual(503, self.desk.ask("/self").status)

    @staticmethod
    def no_kernel(_: str) -> str:
        """Fail as if the kernel had no memory."""
        raise OSError("no buffer space available")

    def test_new(self) -> None:
        """A VM that is new is found, and one that is gone is not, without a search for each stranger."""
        self.assertEqual(403, self.desk.ask("/self", "10.0.0.3").status)
        self.desk.fleet.enlist(vm("new", ip=self.desk.machine("db").vm.ip))
        self.desk.fleet.enlist(attrs.evolve(self.desk.machine("db").vm, ip=(ip_address("10.0.0.3"),)))
        self.assertEqual(UNKNOWN, self.desk.ask("/self", "10.0.0.2").value["error"])
        self.assertEqual(UNKNOWN, self.desk.ask("/self", "10.0.0.3").value["error"])
        self.desk.pump(SEARCH_EVERY)
        self.assertNotEqual(UNKNOWN, self.desk.ask("/self", "10.0.0.2").value["error"])
        self.assertEqual(OTHER_MAC, self.desk.ask("/self", "10.0.0.3").value["error"])

    def test_rate(self) -> None:
        """A guest that asks too often is refused until it has been quiet, and others are served."""
        statuses = [self.desk.ask("/self").status for _ in range(15)]
        self.assertEqual([200] * int(BURST) + [429] * 5, statuses)
        self.assertEqual(200, self.desk.ask("/self", "10.0.0.2").status)
        self.desk.pump(2)
        self.assertEqual([200, 200, 429], [self.desk.ask("/self").status for _ in range(3)])

    def test_connections(self) -> None:
        """A guest has its own share of the connections, though its neighbours are in the same network."""
        talks = [self.desk.talk(WWW[0]) for _ in range(MOST_FROM_ONE)]
        other = self.desk.talk(DB[0])
        self.assertFalse(any(talk.wire.aborted for talk in talks))
        self.desk.talk(WWW[0])
        self.assertEqual([True, False, False, False], [talk.wire.aborted for talk in talks])
        self.assertFalse(other.wire.aborted)


class WordTests(GuestTestCase):
    """What a guest may ask for."""

    def test_hold(self) -> None:
        """A guest that holds itself is not stopped; when that ends, it is."""
        answer = self.desk.ask("/self/hold?seconds=300", method="POST").value
        self.assertEqual((300.0, "held by its guest for 300 s more"), (answer["held_by_guest"], answer["why"]))
        self.desk.pump(295, step=1)
        self.assertIs(State.UP, self.desk.machine().state)
        self.assertIs(State.OFF, self.desk.machine("db").state)
        self.desk.pump(10, step=1)
        self.assertIs(State.OFF, self.desk.machine().state)

    def test_hour(self) -> None:
        """A guest that holds itself again and again is up for an hour, without a query."""
        for _ in range(60):
            self.assertEqual(200, self.desk.ask("/self/hold?seconds=90", method="POST").status)
            self.desk.pump(60, step=1)
        self.assertEqual((State.UP, 1), (self.desk.machine().state, self.desk.starts()))

    def test_release(self) -> None:
        """A release ends the hold: the VM has the lease of any other, and is stopped if that is over."""
        self.desk.ask("/self/hold?seconds=300", method="POST")
        self.desk.pump(30, step=1)
        self.assertEqual("used 31 s ago", self.desk.ask("/self/release", method="POST").value["why"])
        self.desk.ask("/self/hold?seconds=300", method="POST")
        self.desk.pump(100, step=1)
        self.desk.ask("/self/release", method="POST")
        self.desk.pump(2)
        self.assertIs(State.OFF, self.desk.machine().state)

    def test_max_up(self) -> None:
        """No hold lasts beyond `max_up`."""
        self.begin(max_up=100.0)
        self.desk.ask("/self/hold?seconds=300", method="POST")
        self.desk.pump(101, step=1)
        self.assertIs(State.OFF, self.desk.machine().state)

    def test_settings(self) -> None:
        """A hold outlasts a change of the VM's settings."""
        self.desk.ask("/self/hold?seconds=300", method="POST")
        self.desk.fleet.leases.regrant(self.desk.machine())
        self.assertAlmostEqual(300.0, self.desk.ask("/self").value["held_by_guest"])

    def test_restart(self) -> None:
        """A hold outlasts Jitsu, if it was written down; a hold of an earlier run of the VM does not come back."""
        self.desk.ask("/self/hold?seconds=300", method="POST")
        self.desk.pump(10, step=1)
        self.desk.kill()
        self.desk.pump(1)
        self.assertAlmostEqual(289, self.desk.fleet.leases.guests.held(self.desk.machine()), delta=0.1)
        self.desk.pump(200, step=1)
        self.assertIs(State.UP, self.desk.machine().state)
        self.desk.fleet.operator.stop("www")
        self.desk.pump(1)
        self.desk.fleet.summons.summon("www", question())
        self.desk.pump(10, step=1)
        self.desk.kill()
        self.desk.pump(1)
        machine = self.desk.machine()
        self.assertEqual((State.UP, 0), (machine.state, self.desk.fleet.leases.guests.held(machine)))

    def test_clock(self) -> None:
        """No hold is longer than a day because the clock was set back meanwhile."""
        self.desk.ask("/self/hold?seconds=300", method="POST")
        self.desk.pump(10, step=1)
        self.desk.wall_set = -1e7
        self.desk.kill()
        self.desk.pump(1)
        self.assertLess(self.desk.fleet.leases.guests.held(self.desk.machine()), 86401)

    def test_sleep(self) -> None:
        """A guest that asks for it is stopped by its mode, after the answer, though it still sends."""
        self.begin(mode=Mode.PAUSE)
        self.desk.pump(10, step=1)
        self.desk.ask("/self/hold?seconds=300", method="POST")
        talk = self.desk.talk(WWW[0])
        talk.say("POST", "/self/sleep")
        answer = talk.heard()
        self.assertEqual((200, "its guest asked to be put to sleep"), (answer.status, answer.value["why"]))
        self.assertIs(State.UP, self.desk.machine().state)
        self.desk.backend.guests[self.desk.machine().uuid].sent = 1000
        self.desk.pump(3)
        self.assertIs(State.PAUSED, self.desk.machine().state)
        self.assertIs(State.UP, self.desk.machine("db").state)

    def test_sleep_in_use(self) -> None:
        """It is not stopped while an operator holds it, and not within seconds of a query."""
        self.desk.fleet.operator.hold("www")
        self.desk.ask("/self/sleep", method="POST")
        self.desk.pump(10)
        self.assertIs(State.UP, self.desk.machine().state)
        self.desk.fleet.operator.release("www")
        self.desk.pump(10)
        self.assertIs(State.UP, self.desk.machine().state)

    def test_not_ours(self) -> None:
        """Where this Jitsu does not stop the VM, the guest is told so, and nothing changes."""
        self.patch(self.desk.fleet.cluster.ownership, "is_own", lambda _: False)
        for what in ("hold?seconds=5", "release", "sleep"):
            self.assertEqual(409, self.desk.ask(f"/self/{what}", method="POST").status)
        self.begin()
        self.desk.fleet.operator.stop("www")
        self.desk.pump(1)
        for what in ("hold?seconds=5", "release", "sleep"):
            self.assertEqual(409, self.desk.ask(f"/self/{what}", method="POST").status)


class NoticeTests(GuestTestCase):
    """`notify`."""

    def listen(self) -> Any:
        """Return a connection of the guest's that gets events."""
        talk = self.desk.talk(WWW[0])
        talk.say("GET", "/self/events")
        self.assertEqual(b"retry: 1000\n\n", talk.heard().body)
        return talk

    def test_stop(self) -> None:
        """Before it is stopped for being idle, a guest that listens is told, and then it is stopped."""
        self.begin(notify=5.0)
        talk = self.listen()
        self.desk.pump(58)
        self.assertEqual([], events(talk.heard()))
        self.desk.pump(2)
        self.assertEqual([{"kind": "stop", "seconds": 5.0}], events(talk.heard()))
        self.desk.pump(3)
        self.assertEqual((State.UP, State.OFF), (self.desk.machine().state, self.desk.machine("db").state))
        self.desk.pump(3)
        self.assertIs(State.OFF, self.desk.machine().state)

    def test_not_now(self) -> None:
        """It may answer by a hold: then it stays, which it is told; its next stop is announced anew."""
        self.begin(notify=5.0)
        talk = self.listen()
        self.desk.pump(61)
        self.desk.ask("/self/hold?seconds=30", method="POST")
        self.desk.pump(20)
        self.assertEqual(["stop", "stay"], [one["kind"] for one in events(talk.heard())])
        self.assertIs(State.UP, self.desk.machine().state)
        self.desk.pump(12)
        self.assertEqual(["stop"], [one["kind"] for one in events(talk.heard())])

    def test_nobody(self) -> None:
        """No time is lost if it does not listen any more, is not to be told, or has asked for the stop itself."""
        self.begin(notify=5.0)
        self.listen().hang_up()
        self.desk.pump(60)
        self.assertIs(State.OFF, self.desk.machine().state)
        self.begin()
        talk = self.listen()
        self.desk.pump(60)
        self.assertEqual((State.OFF, []), (self.desk.machine().state, events(talk.heard())))
        self.begin(notify=5.0)
        talk = self.listen()
        self.desk.pump(10)
        self.desk.ask("/self/sleep", method="POST")
        self.desk.pump(1)
        self.assertEqual((State.OFF, []), (self.desk.machine().state, events(talk.heard())))

    def test_still_here(self) -> None:
        """A stream has a comment now and then, so that a dead connection is noticed."""
        talk = self.listen()
        self.desk.pump(STILL_HERE + 1)
        self.assertIn(b"still here", talk.heard().body)
