"""The counters of responses: equal to what was sent, however it was, and bounded."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, Final

import attrs
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import warm
from jitsu_tw.dns.counters import MOST_ZONES, NO_ZONE, OTHER_TYPE, OTHER_ZONE, TYPES, Counters
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.rrl import Decision, Limiter
from jitsu_tw.dns.server import Server, chaos
from jitsu_tw.dns.transfer import Permissions
from jitsu_tw.dns.wire import Source, from_text
from jitsu_tw.settings import Rule
from test.unit.dns.test_server import ServerTestCase

#: Questions, some for VMs; their classes of responses.
NAMES: Final = (
    "www.jitsu.test", "wWw.jitsu.test", "a.wild.jitsu.test", "b.wild.jitsu.test", "six.jitsu.test", "bad.jitsu.test",
    "static.jitsu.test", "nobody.jitsu.test", "www.example.com", "big.jitsu.test", ".",
)
ASKED: Final = ("A", "A", "AAAA", "TXT", "ANY", "TYPE4711", "AXFR")

STEPS: Final = st.one_of(
    st.tuples(
        st.just("ask"), st.sampled_from(NAMES), st.sampled_from(ASKED), st.sampled_from([None, 512, 700]),
        st.integers(1, 3), st.sampled_from(["192.0.2.1", "127.0.0.1"]), st.booleans(), st.integers(1, 7),
    ),
    st.tuples(st.just("junk"), st.sampled_from([b"", b"short", bytes(12), bytes([0, 0, 128]) + bytes(20)])),
    st.tuples(st.sampled_from(["stop", "pump", "gather", "clear", "end"])),
)  # fmt: skip


class Sent:
    """What was sent, as dnspython reads it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.responses: Counter[tuple[str, str, str]] = Counter()
        self.zones: Counter[tuple[str, str]] = Counter()
        self.truncated = 0

    def take(self, octets: bytes, *, tcp: bool) -> None:
        """Count a response."""
        reply = dns.message.from_wire(octets)
        name = reply.question[0].name.to_text().lower() if reply.question else None
        qtype = int(reply.question[0].rdtype) if reply.question else 0
        rcode = dns.rcode.to_text(reply.rcode())
        zone = NO_ZONE if name is None or not name.endswith("jitsu.test.") else "jitsu.test"
        self.responses["tcp" if tcp else "udp", TYPES.get(qtype, OTHER_TYPE), rcode] += 1
        self.zones[zone, rcode] += 1
        self.truncated += bool(reply.flags & dns.flags.TC)


class SentTests(ServerTestCase):
    """Counters and responses."""

    def begin(self) -> None:
        """Make a server with a limit, a VM with an answer that is too long for small clients, and few warm answers."""
        self.setUp()
        self.zones.add_vm(from_text("big.jitsu.test"), "www", [ip_address(f"10.1.0.{n}") for n in range(1, 60)], 5)
        self.server.limiter = Limiter(bytes(16), 3, slip=2)
        self.sent, self.dropped, self.ignored = Sent(), 0, 0
        for name, most in (("LEAST_EXACT", 2), ("MOST_KINDS", 1), ("MOST_WILD", 1)):
            self.patch(warm, name, most)

    def step(self, what: str, *of: Any) -> None:
        """Do what one of `STEPS` says."""
        if what == "ask":
            *query, times = of
            for _ in range(times):
                self.query(*query)
        elif what == "junk":
            self.ignored += not self.receive(of[0], Source("192.0.2.1", 1))
        elif what == "stop":
            self.world.fleet.operator.stop("www")
        elif what == "clear":
            self.warm.clear()
        elif what == "gather":
            self.world.fleet.stats.gather()
        else:
            self.world.pump(1.3, step=0.65)

    def query(self, name: str, qtype: str, edns: int | None, ident: int, host: str, tcp: bool) -> None:  # noqa: FBT001
        """Ask as a port does: warm answers first."""
        query = dns.message.make_query(name, qtype, use_edns=-1 if edns is None else 0, payload=edns or 0)
        query.id = ident
        octets, source = query.to_wire(), Source(host, 4711, tcp, tcp)
        if not tcp:
            (reply,), others = self.server.answer_warm(([octets[2:]], [source.client(octets[:2])]))
            if reply is not None:
                self.sent.take(octets[:2] + reply, tcp=False)
            elif not others:
                self.dropped += 1
            if not others:
                return
        self.receive(octets, source)

    def receive(self, octets: bytes, source: Source) -> bool:
        """Pass a packet to the server; return whether it is answered, now, later, or not because of the limit."""
        before = self.warm.counters.limited[Decision.DROP]
        answered = self.server.receive(octets, source, lambda reply: self.sent.take(reply, tcp=source.tcp))
        self.dropped += self.warm.counters.limited[Decision.DROP] - before
        return answered

    @settings(deadline=None, max_examples=40)
    @given(st.lists(STEPS, max_size=40))
    def test_equal(self, steps: list[tuple[Any, ...]]) -> None:
        """
        The counters equal the responses sent: warm, cold, by TCP, truncated, slipped, of answers that gave way.

        What the limiter drops is in none of them, but counted, too.
        """
        self.begin()
        for what, *of in steps:
            self.step(what, *of)
        self.world.pump(2, step=0.5)
        self.world.fleet.stats.gather()
        counters = self.warm.counters
        self.assertEqual(self.sent.responses, +counters.responses)
        self.assertEqual(self.sent.zones, +counters.zones)
        self.assertEqual((self.sent.truncated, self.dropped, self.ignored),
                         (counters.truncated, counters.limited[Decision.DROP], counters.ignored))  # fmt: skip

    def test_warm(self) -> None:
        """Warm answers are counted with retransmissions, also those of a VM that has been stopped since."""
        octets = dns.message.make_query("www.jitsu.test", "A").to_wire()
        self.send(octets)
        for ident in (b"\0\1", b"\0\2", b"\0\2"):
            self.assertIsNotNone(self.hit(ident + octets[2:]))
        self.world.fleet.operator.stop("www")
        self.world.fleet.stats.gather()
        self.assertEqual({("udp", "A", "NOERROR"): 4}, dict(self.warm.counters.responses))
        self.assertEqual({("jitsu.test", "NOERROR"): 4}, dict(self.warm.counters.zones))

    def test_slipped(self) -> None:
        """Of warm answers over the limit, what goes out truncated is a response, and what is dropped is none."""
        self.server.limiter = Limiter(bytes(16), 2, slip=2)
        octets = dns.message.make_query("www.jitsu.test", "A").to_wire()
        self.send(octets)
        self.assertEqual([True, False, True, False],
                         [self.hit(bytes([0, n]) + octets[2:]) is not None for n in range(4)])  # fmt: skip
        self.world.fleet.stats.gather()
        counters = self.warm.counters
        self.assertEqual({("udp", "A", "NOERROR"): 3}, dict(counters.responses))
        self.assertEqual(({Decision.SLIP: 1, Decision.DROP: 2}, 1), (dict(counters.limited), counters.truncated))

    def test_transfer(self) -> None:
        """A zone transfer counts as one response, and one that is refused as its refusal, by its type."""
        octets, source = dns.message.make_query("jitsu.test", "AXFR").to_wire(), Source("192.0.2.1", 1, tcp=True)
        packets: list[bytes] = []
        for allowed in (Permissions(), Permissions([Rule(None)])):
            self.server = Server(self.chain, self.warm, self.world.fleet, self.zones, allowed=allowed)
            self.server.receive(octets, source, packets.append, packets.extend)
        self.assertEqual({("tcp", "AXFR", "REFUSED"): 1, ("tcp", "AXFR", "NOERROR"): 1},
                         dict(self.warm.counters.responses))  # fmt: skip

    def test_unproven(self) -> None:
        """A request for proof of an address is a truncated response."""
        self.world.settings = attrs.evolve(self.world.settings, verify_source=True)
        self.world.begin()
        chain = Chain([JitsuResolver(self.zones, self.world.fleet), ZoneAuthority(self.zones)])
        self.server = Server(chain, self.world.warm, self.world.fleet, self.zones)
        self.assertTrue(self.ask("www.jitsu.test").flags & dns.flags.TC)
        counters = self.world.warm.counters
        self.assertEqual(({("udp", "A", "NOERROR"): 1}, 1), (dict(counters.responses), counters.truncated))


class BoundTests(SynchronousTestCase):
    """The labels."""

    def test_types(self) -> None:
        """Types that no client of an authority asks for count together."""
        counters = Counters()
        labels = {counters.label(qtype, 0, None, tcp=False) for qtype in range(65536)}
        self.assertEqual(len(TYPES) + 1, len(labels))

    def test_zones(self) -> None:
        """The first zones are counted by their names, the others together, however many there are."""
        counters = Counters()
        for number in range(MOST_ZONES + 50):
            zone: Any = SimpleNamespace(key=from_text(f"z{number}.test"))
            for _ in range(2):
                counters.add(counters.label(1, 0, zone, tcp=True))
        self.assertEqual(MOST_ZONES + 1, len(counters.zones))
        self.assertEqual((2, 100), (counters.zones["z0.test", "NOERROR"], counters.zones[OTHER_ZONE, "NOERROR"]))

    def test_codes(self) -> None:
        """Each response code has a name."""
        counters = Counters()
        self.assertEqual(["BADVERS", "BADCOOKIE", "15"],
                         [counters.label(1, code, None, tcp=False)[2] for code in (16, 23, 15)])  # fmt: skip


class ChaosTests(ServerTestCase):
    """Questions of the class CH for who this server is."""

    def text(self, name: str, type_: str = "TXT", rdclass: int = dns.rdataclass.CH) -> str:
        """Return the response code of a question, or the text of the answer."""
        reply = self.ask(name, type_, rdclass=rdclass)
        if not reply.answer:
            return dns.rcode.to_text(reply.rcode())
        ((record,),) = reply.answer
        self.assertTrue(reply.flags & dns.flags.AA)
        self.assertEqual((rdclass, 0), (reply.answer[0].rdclass, reply.answer[0].ttl))
        return str(record.to_text())

    def restart(self, version: bytes | None, identity: bytes | None) -> None:
        """Tell *version* and *identity*."""
        self.server = Server(self.chain, self.warm, self.world.fleet, self.zones, chaos=chaos(version, identity))

    def test_refused(self) -> None:
        """By itself the server tells nothing."""
        self.restart(None, None)
        for name in ("version.bind", "version.server", "id.server", "hostname.bind"):
            self.assertEqual("REFUSED", self.text(name))

    def test_told(self) -> None:
        """What is configured is told, to these names only, of this class and type only."""
        self.restart(b"DNS 1", b"ns1")
        for name, expected in (("version.bind", '"DNS 1"'), ("VERSION.server", '"DNS 1"'), ("id.server", '"ns1"'),
                               ("hostname.bind", '"ns1"'), ("authors.bind", "REFUSED")):  # fmt: skip
            self.assertEqual(expected, self.text(name), name)
        for type_, cls in (("A", dns.rdataclass.CH), ("ANY", dns.rdataclass.CH), ("TXT", dns.rdataclass.HS),
                           ("TXT", dns.rdataclass.IN)):  # fmt: skip
            self.assertEqual("REFUSED", self.text("version.bind", type_, cls))

    def test_one(self) -> None:
        """Each of the two is configured by itself."""
        self.restart(None, b"ns1")
        self.assertEqual(("REFUSED", '"ns1"'), (self.text("version.bind"), self.text("id.server")))

    def test_longest(self) -> None:
        """The longest text fits into one string."""
        self.restart(b"v" * 255, None)
        self.assertEqual('"' + "v" * 255 + '"', self.text("version.bind"))

    def test_limited(self) -> None:
        """These answers are limited as all others are."""
        self.restart(b"v", None)
        self.server.limiter = Limiter(bytes(16), 1, slip=0)
        octets = dns.message.make_query("version.bind", "TXT", rdclass=dns.rdataclass.CH).to_wire()
        self.assertEqual([1, 0, 0], [len(self.send(octets)) for _ in range(3)])

