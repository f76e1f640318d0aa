"""Leases: when a VM may be stopped."""

from __future__ import annotations

from collections import Counter
from math import inf

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.flows import NO_FLOWS, Flows
from jitsu_tw.rules.lease import CPU_BURST, LONGEST_LOOK, SLICE, Lease, Leases, Meter, Use
from jitsu_tw.settings import Settings


class LeaseTests(SynchronousTestCase):
    """`Lease`."""

    def test_use(self) -> None:
        """A use renews it; one that is older than the last one does nothing."""
        lease = Lease(10, 0, used=0, started=0)
        lease.use(7)
        lease.use(6)
        self.assertEqual(7, lease.used)

    def test_uses(self) -> None:
        """It knows when each kind of use was last seen, and which was the last; queries renew it without a word."""
        lease = Lease(10, 0, used=0, started=0, signs={Use.KNOWN: 0})
        self.assertIs(Use.KNOWN, lease.last_use())
        lease.used = 5
        self.assertIs(Use.QUERY, lease.last_use())
        lease.use(7, Use.PACKETS)
        self.assertEqual((Use.PACKETS, 7), (lease.last_use(), lease.used))
        self.assertEqual({Use.KNOWN: 0, Use.QUERY: 5, Use.PACKETS: 7}, lease.uses())
        lease.use(6, Use.CPU)
        self.assertEqual((Use.PACKETS, 7), (lease.last_use(), lease.used))

    def test_connections(self) -> None:
        """An open connection is a use when it is opened or closed, and when its peer gives a sign of life."""
        lease = Lease(10, 0, used=0, started=0, idle_connection=600)
        for flows, now, used in ((NO_FLOWS, 1, 0), (Flows(1, 3), 4, 3), (Flows(1, 3), 5, 3), (Flows(2, 6), 7, 6),
                                 (Flows(1, 3), 9, 9), (Flows(1, 3), 10, 9), (NO_FLOWS, 11, 11), (NO_FLOWS, 12, 11)):
            lease.connected(flows, now)
            self.assertEqual(used, lease.used, now)
            self.assertEqual(flows.last + 600 if flows.open else -inf, lease.connected_until(), now)

    def test_conversation(self) -> None:
        """What its guest transmits, however little, is a sign of life of a connection: Synjitsu sees no data."""
        lease = Lease(10, 0, used=0, started=0, idle_connection=600, meters={Use.PACKETS: Meter(30, 0, 0)})
        lease.connected(Flows(1, 3), 4)
        self.assertEqual(603, lease.connected_until())
        lease.meters[Use.PACKETS].used(1, 50)
        lease.meters[Use.PACKETS].used(1, 60)
        self.assertEqual(650, lease.connected_until())

    def test_done(self) -> None:
        """A guest that asks to be put to sleep is done for a minute, unless a client asks for it or connects to it."""
        for client, now, done in (
            (None, 50, True), (None, 99, True), (None, 101, False), ({"used": 46}, 50, False),
            ({"flows": Flows(1, 41)}, 50, False), ({"flows": Flows(1, 39)}, 50, True), ({"flows": NO_FLOWS}, 50, True),
        ):  # fmt: skip
            lease = Lease(10, 0, used=30, started=0, done_at=40)
            lease.use(45, Use.PACKETS)
            for name, value in (client or {}).items():
                setattr(lease, name, value)
            self.assertEqual(done, lease.is_done(now), (client, now))

    def test_looks(self) -> None:
        """It is looked at when it may end; with a meter, `idle` / 8 after the last look, but at most every second."""
        for idle, expected in ((80, 10), (4, 1), (3600, LONGEST_LOOK), (0.5, 0.5)):
            self.assertEqual(expected, Lease(idle, 0, 0, 0, meters={Use.PACKETS: Meter(30, 0, 0)}).look(), idle)
        self.assertEqual((80, 30), (Lease(80, 0, 0, 0).look(), Lease(80, 0, 0, 0, max_up=30).look()))
        self.assertEqual(5, Lease(80, 0, 0, 0, done_at=5).look())
        self.assertEqual(86, Lease(80, 0, 6, 0, done_at=5).look())


class MeterTests(SynchronousTestCase):
    """`Meter`: use, or the trickle of an idle guest."""

    def looks(self, meter: Meter, sent: list[int], every: float = 1.0) -> str:
        """Look so often, each time after so many packets more; return U for each use seen, a dot for none."""
        now, total, found = meter.at, meter.total, ""
        for packets in sent:
            now, total = now + every, total + packets
            found += "U" if meter.used(total, now) else "."
        return found

    def test_use(self) -> None:
        """Many packets, or few but steadily more than the trickle, are a use; single ones are none."""
        for per_minute, every, sent, expected in (
            (30, 1, [100, 0, 0, 0, 0], "U...."),  # a page was fetched
            (30, 1, [2, 2, 2, 2, 2, 2], "...UUU"),  # a slow download
            (30, 1, [1] * 12, "..........UU"),  # a slower one
            (30, 1, [1, 0, 1, 0, 1, 0, 1, 0], "........"),  # what an idle guest may send
            (30, 60, [30, 30, 30, 30], "...."),  # the same, seldom looked at
            (30, 60, [36, 36, 36], "UUU"),
            (0, 1, [0, 1, 0, 1], ".U.U"),  # any packet is a use
            (600, 1, [10, 10, 10, 16], "...U"),
        ):
            meter = Meter(per_minute, 500, 0)
            meter.level = 0.0
            self.assertEqual(expected, self.looks(meter, sent, every), (per_minute, sent))

    def test_conversation(self) -> None:
        """A few packets a minute, however evenly, are a use if they are more than those of an idle guest; a page is."""
        default = Settings().idle_packets
        for every, sent in ((60, [29] * 60), (15, [7, 7, 7, 8] * 60), (15, [2] * 240), (3, [1] * 1200)):
            meter = Meter(default, 0, 0)
            self.assertIn("U" * (len(sent) - 20), self.looks(meter, sent, every), (every, sent[0]))
        meter = Meter(default, 0, 0, greeting=0)
        self.assertEqual("..U...", self.looks(meter, [0, 0, 7, 0, 0, 0], 15))

    def test_idle_guest(self) -> None:
        """ARP, NTP, DHCP renewals and answers to mDNS are no use, for an hour and however often it is looked."""
        chatter = Counter[int]()
        for second in range(0, 3600, 64):
            chatter[second] += 3  # asks its router's address, then the time; its router asks for its address
        for second in range(0, 3600, 60):
            chatter[second + 7] += 1  # mDNS, or a neighbour's ARP
        for second in (1800, 1801):
            chatter[second] += 1  # DHCP
        for every in (1, 15, 60):
            meter = Meter(Settings().idle_packets, 0, 0, greeting=0)
            sent = [sum(chatter[begin + second] for second in range(every)) for begin in range(0, 3600, every)]
            self.assertNotIn("U", self.looks(meter, sent, every), every)

    def test_cpu(self) -> None:
        """CPU time beyond that of an idle guest is a use: a job that goes on, not that of a timer."""
        meter = Meter(3, 0, 0, CPU_BURST, greeting=0)
        found = ""
        for second, total in enumerate((0.05, 0.9, 0.95, 1.0, 1.05, 2.1, 3.1, 4.1, 4.14, 4.18), 1):
            found += "U" if meter.used(total, second) else "."
        self.assertEqual(".....UUU..", found)

    def test_greeting(self) -> None:
        """What a guest says when it has just come up is no use, and does not hide one."""
        self.assertEqual("." * 12, self.looks(Meter(30, 3, 0), [2, 2, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0]))
        self.assertEqual(".UUUU", self.looks(Meter(30, 3, 0), [10, 10, 10, 10, 10]))
        self.assertEqual("...........U", self.looks(Meter(30, 3, 0), [2] * 12))
        self.assertEqual(".U", self.looks(Meter(6, 0, 0), [3, 8], every=15))

    def test_begins_again(self) -> None:
        """A counter that is smaller than before began at 0 again: the guest was restored, or its interface replaced."""
        meter = Meter(30, 1000, 0)
        self.assertFalse(meter.used(1, 1))
        self.assertTrue(meter.used(40, 2))
        self.assertTrue(Meter(30, 1000, 0).used(40, 1))


class LeasesTests(SynchronousTestCase):
    """`Leases`."""

    def setUp(self) -> None:
        """Grant leases of 10 s and 20 s at time 0."""
        self.leases = Leases()
        self.short, self.long = Lease(10, 0, 0, 0), Lease(20, 0, 0, 0)
        self.grant("short", self.short)
        self.grant("long", self.long)

    def grant(self, name: str, lease: Lease) -> None:
        """Grant a lease, and plan the first look at it."""
        self.leases.grant(name, lease)
        self.leases.plan(name, lease.look())

    def test_due(self) -> None:
        """A lease is due at its end, once, and not before."""
        self.assertEqual([], list(self.leases.due(9.9)))
        self.assertEqual(["short"], list(self.leases.due(10)))
        self.assertEqual([], list(self.leases.due(10)))
        self.assertEqual(["long"], list(self.leases.due(30)))

    def test_again(self) -> None:
        """What was looked at and is kept is due again when its time comes."""
        self.assertEqual(["short"], list(self.leases.due(10)))
        self.short.use(10)
        self.leases.plan("short", self.short.look())
        self.assertEqual([], list(self.leases.due(19.9)))
        self.assertEqual({"short", "long"}, set(self.leases.due(20)))

    def test_meter(self) -> None:
        """A lease with a meter is due before its end, to count."""
        self.grant("short", Lease(16, 0, 0, 0, meters={Use.PACKETS: Meter(30, 0, 0)}))
        self.assertEqual(["short"], list(self.leases.due(2)))

    def test_used_meanwhile(self) -> None:
        """A lease that was used is looked at again at its new end."""
        self.short.use(8)
        self.assertEqual([], list(self.leases.due(10)))
        self.assertEqual(18, self.leases.next_look())
        self.assertEqual(["short"], list(self.leases.due(18)))

    def test_planned_anew(self) -> None:
        """A lease for which another look was planned is due then, once, and not when it was to be looked at before."""
        self.short.use(-7)
        self.leases.grant("short", Lease(3, 0, 0, 0))
        for when in (8, 5):
            self.leases.plan("short", when)
        self.assertEqual(["short"], list(self.leases.due(5)))
        self.assertEqual([], list(self.leases.due(9)))

    def test_nothing_to_look_at(self) -> None:
        """A lease that has ended causes no look."""
        self.leases.drop("short")
        self.assertEqual(20, self.leases.next_look())
        self.leases.drop("long")
        self.assertIsNone(self.leases.next_look())

    def test_dropped(self) -> None:
        """A lease that was dropped, or took another's place, does not end."""
        self.leases.drop("short")
        self.grant("long", Lease(50, 0, 0, 0))
        self.assertEqual([], list(self.leases.due(30)))
        self.assertEqual(["long"], list(self.leases.due(50)))

    def test_a_look_costs_what_ends(self) -> None:
        """Many leases that do not end yet are not looked at."""
        looks = []

        class Watched(Lease):
            def look(self) -> float:
                looks.append(self)
                return super().look()

        for number in range(1000):
            self.grant(f"vm{number}", Watched(1000, 0, 0, 0))
        looks.clear()
        self.assertEqual(["short"], list(self.leases.due(15)))
        self.assertEqual([], looks)

    def test_slices(self) -> None:
        """A look takes some milliseconds at most; what is left over is found by the next one."""
        self.leases = Leases()
        for number in range(SLICE + 5):
            self.grant(f"vm{number}", Lease(5, 0, 0, 0))
        self.assertEqual(SLICE, len(list(self.leases.due(5))))
        self.assertEqual(5, self.leases.next_look())
        self.assertEqual(5, len(list(self.leases.due(5))))
        self.assertIsNone(self.leases.next_look())

    def test_never(self) -> None:
        """A lease that nothing ends is not looked at, and takes no place, until a look is planned anew."""
        self.leases = Leases()
        self.leases.grant("kept", Lease(5, 0, 0, 0))
        self.leases.plan("kept", inf)
        self.assertEqual((None, []), (self.leases.next_look(), list(self.leases.due(1e9))))
        self.leases.plan("kept", 7)
        self.assertEqual(["kept"], list(self.leases.due(7)))

    def test_same_end(self) -> None:
        """Leases that end at the same moment all end."""
        for name in "abc":
            self.grant(name, Lease(5, 0, 0, 0))
        self.assertEqual({"a", "b", "c"}, set(self.leases.due(5)))
