"""
Zone transfers: `jitsu_tw.dns.transfer`, `jitsu_tw.dns.reply.write_stream` and `jitsu_tw.dns.stream`.

dnspython is the secondary: what it has after a transfer is compared with the zone, record by record.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.xfr
import dns.zone
from dns import rdataclass, rdatatype
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.names.dns import SOA, TXT, A
from twisted.protocols.basic import Int16StringReceiver
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from jitsu_tw.dns import transfer
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.message import Query, parse
from jitsu_tw.dns.reply import STREAM_SIZE, STREAM_STEP, TCP_SIZE, Reply, udp_limit, write, write_stream
from jitsu_tw.dns.stream import SLICE, Streams
from jitsu_tw.dns.transfer import Permissions, Transfer, answer, describe
from jitsu_tw.dns.tsig import BadSignature, Key, Keyring, Signed
from jitsu_tw.dns.wire import RR, Source, from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ZoneError
from jitsu_tw.settings import Rule, split_key
from test.support import BoundedClock
from test.unit.dns.validator import Signer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from twisted.python.failure import Failure

reactor: Any = default_reactor

KEY: Final = Key("transfer.example", b"a secret of ours")
OTHER: Final = Key("other.example", b"another secret")
APEX: Final = from_text("jitsu.test")

ZONE_TEXT: Final = """
$ORIGIN jitsu.test.
$TTL 1h
@ SOA ns hostmaster 7 3600 600 86400 60
  NS ns
  MX 10 Mail
ns A 192.0.2.53
Mail A 192.0.2.25
www A 192.0.2.80
text 5 TXT "a" "b"
*.wild A 192.0.2.9
alias CNAME www
child NS ns.child
ns.child A 192.0.2.54
hidden.child TXT "occluded"
srv SRV 0 0 80 www
"""

#: serial, and "a record": owner, type, TTL, data
Records = set[tuple[bytes, int, int, bytes]]


def small_zone(case: Any) -> Zone:
    """Return a zone from a file, with two VMs in it."""
    path = case.mktemp()
    with open(path, "w") as file:  # noqa: PTH123
        file.write(ZONE_TEXT)
    zone = Zone.read(path)
    zone.add_vm(from_text("www.jitsu.test"), "www", [ip_address("10.0.0.1"), ip_address("2001:db8::1")], 60)
    zone.add_vm(from_text("*.vms.jitsu.test"), "vms", [ip_address("10.0.0.2")], 60)
    return zone


def large_zone(names: int = 5000) -> Zone:
    """Return a zone with that many VMs."""
    zone = Zone.made_up(APEX, 60)
    for number in range(names):
        zone.add_vm(from_text(f"vm{number}.jitsu.test"), f"vm{number}", [ip_address(0x0A000000 + number)], 60)
    return zone


def long_zone() -> Zone:
    """Return a zone of few records and four megabytes."""
    zone = Zone.made_up(APEX, 60)
    for number in range(80):
        zone.add(from_text(f"long{number}.jitsu.test"), 65280, 60, bytes(50000))
    return zone


def records_of(zone: Zone) -> Records:
    """Return the content of a zone."""
    return {(record.owner.lower(), record.type, record.ttl, record.rdata.lower()) for record in zone.records()}


def records_in(zone: dns.zone.Zone) -> Records:
    """Return what is in a zone of dnspython's."""
    return {
        (name.to_digestable(), rdata.rdtype, ttl, rdata.to_digestable().lower())
        for name, ttl, rdata in zone.iterate_rdatas()
    }


def axfr(name: str = "jitsu.test", key: Key | None = None, serial: int | None = None, **of: Any) -> dns.message.Message:
    """Return a query for the zone; with *serial*, for what changed since."""
    query = dns.message.make_query(name, "AXFR" if serial is None else "IXFR", **of)
    if serial is not None:
        soa = query.find_rrset(query.authority, query.question[0].name, rdataclass.IN, rdatatype.SOA, create=True)
        soa.add(dns.rdata.from_text("IN", "SOA", f". . {serial} 0 0 0 0"))
    if key is not None:
        query.use_tsig(key)
    return query


def understood(query: dns.message.Message | bytes, source: Source | None = None) -> tuple[bytes, Query]:
    """Return a query's octets, and what they ask."""
    octets = query if isinstance(query, bytes) else query.to_wire() or b""
    asks = parse(octets, source or Source("192.0.2.1", 4711, tcp=True, proven=True))
    assert isinstance(asks, Query), asks
    return octets, asks


def transferred(zone: Zone, query: dns.message.Message | None = None) -> tuple[list[bytes], dns.zone.Zone]:
    """Return the packets in which *zone* is sent, and what dnspython has then."""
    query = query or axfr(use_edns=False)
    octets, asks = understood(query)
    signed = Keyring([KEY]).verify(octets, asks, now()) if asks.tsig is not None else None
    assert not isinstance(signed, BadSignature)
    packets = [packet for packet in Transfer(asks, zone).packets((), signed, now) if packet]
    return packets, received(query, packets)


def received(query: dns.message.Message, packets: Iterable[bytes]) -> dns.zone.Zone:
    """Return the zone that dnspython makes of *packets*, the whole answer to *query*."""
    zone = dns.zone.Zone("jitsu.test", relativize=False)
    serial = dns.xfr.extract_serial_from_query(query)
    context = None
    with dns.xfr.Inbound(zone, query.question[0].rdtype, serial) as inbound:
        done = False
        for packet in packets:
            assert not done
            message = dns.message.from_wire(packet, keyring=KEY if query.mac else None, request_mac=query.mac,
                                            tsig_ctx=context, multi=True, xfr=True, one_rr_per_rrset=True)  # fmt: skip
            context = message.tsig_ctx
            assert query.is_response(message)
            done = inbound.process_message(message)
        assert done
    return zone


def now() -> float:
    """Return the time, as dnspython has it."""
    return time.time()


#: The question (zone, type, serial, by TCP), the client (host, key), and the answer: the zone, its SOA
#: record, or an rcode and the code of the extended error. 192.0.2.0/24 may; so may KEY, and OTHER in 198.51.100.0/24.
ROWS: Final[tuple[tuple[str, int | None, bool, str, Key | None, object], ...]] = (
    ("jitsu.test", None, True, "192.0.2.1", None, "zone"),
    ("JITSU.Test", None, True, "192.0.2.1", None, "zone"),
    ("jitsu.test", None, True, "::ffff:192.0.2.1", None, "zone"),
    ("jitsu.test", None, True, "192.0.2.1", OTHER, "zone"),
    ("jitsu.test", None, True, "203.0.113.1", KEY, "zone"),
    ("jitsu.test", None, True, "2001:db8::1", KEY, "zone"),
    ("jitsu.test", None, True, "198.51.100.1", OTHER, "zone"),
    ("jitsu.test", None, True, "203.0.113.1", None, (5, 18)),
    ("jitsu.test", None, True, "2001:db8::1", None, (5, 18)),
    ("jitsu.test", None, True, "203.0.113.1", OTHER, (5, 18)),
    ("jitsu.test", None, True, "198.51.100.1", None, (5, 18)),
    ("jitsu.test", 6, True, "203.0.113.1", None, (5, 18)),
    ("jitsu.test", 6, False, "203.0.113.1", None, (5, 18)),
    ("sub.jitsu.test", None, True, "192.0.2.1", None, (9, 20)),
    ("test", None, True, "192.0.2.1", None, (9, 20)),
    ("other.test", None, True, "192.0.2.1", None, (9, 20)),
    ("other.test", None, True, "203.0.113.1", None, (9, 20)),
    ("other.test", 7, True, "192.0.2.1", None, (9, 20)),
    ("jitsu.test", None, False, "192.0.2.1", None, (1, None)),
    ("jitsu.test", 6, True, "192.0.2.1", None, "zone"),
    ("jitsu.test", 7, True, "192.0.2.1", None, "soa"),
    ("jitsu.test", 8, True, "192.0.2.1", None, "soa"),
    ("jitsu.test", 2**31 + 6, True, "192.0.2.1", None, "soa"),
    ("jitsu.test", 2**31 + 7, True, "192.0.2.1", None, "zone"),
    ("jitsu.test", 2**31 + 8, True, "192.0.2.1", None, "zone"),
    ("jitsu.test", 2**32 - 1, True, "192.0.2.1", None, "zone"),
    ("jitsu.test", 6, False, "192.0.2.1", None, "soa"),
    ("jitsu.test", 7, False, "192.0.2.1", None, "soa"),
)

RULES: Final = (
    Rule(ip_network("192.0.2.0/24")),
    Rule(None, from_text("transfer.example")),
    Rule(ip_network("198.51.100.0/24"), from_text("other.example")),
)


class AnswerTests(SynchronousTestCase):
    """The answers to different clients."""

    def setUp(self) -> None:
        """Make zones and rules."""
        self.zone = small_zone(self)
        self.zones = Zones([self.zone])
        self.allowed = Permissions(RULES)

    def say(
        self, query: dns.message.Message | bytes, host: str = "192.0.2.1", *, tcp: bool = True, key: Key | None = None
    ) -> Reply | Transfer:
        """Return the answer to *query* from *host*, signed with *key*."""
        octets, asks = understood(query, Source(host, 4711, tcp=tcp, proven=tcp))
        return answer(octets, asks, self.zones, self.allowed, None if key is None else Signed(key, b""))

    def test_rows(self) -> None:
        """Each question has its answer."""
        for name, serial, tcp, host, key, expected in ROWS:
            said = self.say(axfr(name, serial=serial), host, tcp=tcp, key=key)
            got: object = "zone"
            if isinstance(said, Reply):
                got = said.rcode, (said.ede[0][0] if said.ede else None)
                if said.answer:
                    self.assertEqual(([self.zone.soa], True, 0), (said.answer, said.aa, said.rcode))
                    got = "soa"
            self.assertEqual(expected, got, (name, serial, tcp, host, key))

    def test_nobody(self) -> None:
        """Without rules no client may, not even this host."""
        self.allowed = Permissions()
        for host in ("127.0.0.1", "::1"):
            said = self.say(axfr(), host, key=KEY)
            assert isinstance(said, Reply)
            self.assertEqual(5, said.rcode)

    def test_ixfr_without_serial(self) -> None:
        """An IXFR query without a serial of that zone in its authority section is FORMERR (RFC 1995, 3)."""
        good = axfr(serial=6)
        bare, other, text, short = axfr(serial=6), axfr(serial=6), axfr(serial=6), axfr(serial=6)
        bare.authority.clear()
        other.authority[0] = dns.rrset.from_text("other.test.", 0, "IN", "SOA", ". . 6 0 0 0 0")
        text.authority[0] = dns.rrset.from_text("jitsu.test.", 0, "IN", "TXT", "x" * 40)
        short.authority[0] = dns.rrset.from_text("jitsu.test.", 0, "IN", "TYPE65280", r"\# 21 " + "00" * 21)
        as_soa = (short.to_wire() or b"").replace(b"\xff\x00\0\1", b"\0\6\0\1")
        self.assertIsInstance(self.say(good), Transfer)
        for query in (bare, other, text, as_soa):
            said = self.say(query)
            assert isinstance(said, Reply), query
            self.assertEqual(1, said.rcode)

    def test_zones_within(self) -> None:
        """Of nested zones each is transferred alone."""
        inner = Zone.made_up(from_text("in.jitsu.test"), 60)
        self.zones = Zones([self.zone, inner])
        for name, zone in (("jitsu.test", self.zone), ("in.jitsu.test", inner)):
            said = self.say(axfr(name))
            assert isinstance(said, Transfer)
            self.assertIs(zone, said.zone)
            self.assertEqual(f"{name}, serial {zone.serial}, to 192.0.2.1", describe(said))


class RuleTests(SynchronousTestCase):
    """Rules as the configuration writes them."""

    def test_parse(self) -> None:
        """A network, a key, or both."""
        for text, network, key in (
            ("192.0.2.0/24", "192.0.2.0/24", None),
            ("2001:db8::1", "2001:db8::1/128", None),
            ("key K.example", None, "k.example"),
            ("192.0.2.0/24  key k.example.", "192.0.2.0/24", "k.example"),
        ):
            expected = Rule(network and ip_network(network), key and from_text(key))  # type: ignore[arg-type]
            self.assertEqual(expected, Rule.parse(text), text)

    def test_wrong(self) -> None:
        """A malformed rule is a ValueError whose message has the remedy."""
        for text in ("", "key", "192.0.2.0/24 key", "192.0.2.1/24", "k.example", "any", "key a b", "k 192.0.2.1",
                     "192.0.2.1 key k..example"):
            error = self.assertRaises(ValueError, Rule.parse, text)
            self.assertTrue("write" in str(error) or "domain name" in str(error), str(error))

    def test_split_key(self) -> None:
        """A secondary is an address, with or without a port."""
        self.assertEqual(("192.0.2.1:5353", from_text("k")), split_key("192.0.2.1:5353 key K"))
        self.assertEqual(("192.0.2.1:5353", None), split_key("192.0.2.1:5353"))


class PacketsTests(SynchronousTestCase):
    """The packets of a transfer (RFC 5936, 2.2)."""

    def test_small(self) -> None:
        """A small zone is one packet: the SOA record first and last, all others once; the VMs' addresses are in it."""
        zone = small_zone(self)
        (packet,), got = transferred(zone)
        self.assertEqual(records_of(zone), records_in(got))
        message = dns.message.from_wire(packet, one_rr_per_rrset=True)
        types = [rrset.rdtype for rrset in message.answer]
        self.assertEqual((SOA, SOA, 2), (types[0], types[-1], types.count(rdatatype.SOA)))
        self.assertEqual(len(list(zone.records())) + 1, len(types))
        texts = {rrset.to_text() for rrset in message.answer}
        self.assertLessEqual({"www.jitsu.test. 60 IN A 10.0.0.1", "www.jitsu.test. 60 IN AAAA 2001:db8::1",
                              "*.vms.jitsu.test. 60 IN A 10.0.0.2", 'hidden.child.jitsu.test. 3600 IN TXT "occluded"',
                              "Mail.jitsu.test. 3600 IN A 192.0.2.25"}, texts)  # fmt: skip
        self.assertNotIn("www.jitsu.test. 3600 IN A 192.0.2.80", texts)

    def test_dnssec(self) -> None:
        """A signed zone is transferred with all signatures and its whole NSEC chain, as BIND verifies them."""
        zone = small_zone(self)
        zone.add_vm(from_text("*.template.jitsu.test"), "template", [], 60)
        Signer(zone, time.time())
        _, got = transferred(zone)
        path = self.mktemp()
        got.to_file(path, relativize=False)
        verified = subprocess.run(
            ["dnssec-verify", "-z", "-o", "jitsu.test", path], check=False, capture_output=True, text=True, timeout=60
        )
        self.assertEqual(0, verified.returncode, verified.stderr)

    def test_dnssec_in_pieces(self) -> None:
        """A name that is added while a signed zone is read leaves no gap in the chain, and no more than 64 at once."""
        zone = large_zone(500)
        Signer(zone, time.time())
        rrsets = transfer._read(zone)
        for _ in range(10):
            self.assertEqual(b"", next(rrsets))
        zone.add_vm(from_text("vm7a.jitsu.test"), "new", [ip_address("10.0.0.1")], 60)
        with self.assertRaises(StopIteration) as end:
            while True:
                next(rrsets)
        assert zone.security is not None
        found = [rrset for rrset in end.exception.value if rrset.type == 47]
        self.assertEqual(list(zone.security.denial.rrsets()), found)

    def test_header(self) -> None:
        """Each packet has the query's id, QR, AA, the query's RD and CD, NOERROR, and the question."""
        for flags in (0, dns.flags.RD, dns.flags.CD):
            query = axfr("JITSU.Test", flags=flags)
            packets, _ = transferred(large_zone(2000), query)
            self.assertGreater(len(packets), 2)
            for packet in packets:
                message = dns.message.from_wire(packet)
                self.assertEqual((query.id, dns.flags.QR | dns.flags.AA | flags), (message.id, message.flags))
                self.assertIn(b"\5JITSU\4Test\0\0\xfc\0\1", packet[:40])
                self.assertEqual(([], []), (message.authority, message.additional))

    def test_edns(self) -> None:
        """There is an OPT record if the query had one, with the options that the server gives."""
        zone = small_zone(self)
        for of, options, expected in (
            ({"use_edns": False}, (), (-1, ())),
            ({"use_edns": False}, ((3, b"ns1"),), (-1, ())),
            ({"use_edns": 0}, (), (0, ())),
            ({"use_edns": 0}, ((3, b"ns1"),), (0, (b"ns1",))),
        ):
            _, asks = understood(axfr(**of))
            (packet,) = Transfer(asks, zone).packets(options, None, now)
            message = dns.message.from_wire(packet)
            self.assertEqual(expected, (message.edns, tuple(option.to_wire() for option in message.options)))

    def test_large(self) -> None:
        """Five thousand names, more than 64 KiB, come whole, in packets of at most 16 KiB that are nearly full."""
        zone = large_zone()
        packets, got = transferred(zone)
        self.assertEqual(records_of(zone), records_in(got))
        self.assertGreater(sum(map(len, packets)), 65535)
        for packet in packets[:-1]:
            self.assertTrue(STREAM_SIZE - 64 < len(packet) <= STREAM_SIZE, len(packet))
        self.assertLess(sum(map(len, packets)), 26 * 5000)  # 2 for the apex, 14 for A, at most 7 for vmN; compressed

    def test_signed(self) -> None:
        """Each packet of a signed transfer is signed, and no longer for it."""
        zone = large_zone()
        packets, got = transferred(zone, axfr(key=KEY))
        self.assertEqual(records_of(zone), records_in(got))
        self.assertLessEqual(max(map(len, packets)), STREAM_SIZE)
        for packet in packets:
            self.assertTrue(dns.message.from_wire(packet, keyring=False).had_tsig)

    def test_ixfr(self) -> None:
        """The answer to IXFR is the whole zone, in the form of AXFR (RFC 1995, 4)."""
        zone = large_zone(1000)
        _, got = transferred(zone, axfr(serial=0))
        self.assertEqual(records_of(zone), records_in(got))

    def test_random_names(self) -> None:
        """Whatever the names, types and sizes are, the other side has the same records."""
        chance = random.Random(4)
        zone = Zone.made_up(APEX, 60)
        for number in range(600):
            label = bytes(chance.choices(b"aB.*\0\xff-", k=chance.randint(1, 20))) + b"%d" % number
            owner = bytes([len(label)]) + label + chance.choice([b"", b"\1x", b"\1X\1y"]) + APEX
            kind = chance.choice([TXT, 65280, 5, 15, 2])
            data = {TXT: bytes([200]) + bytes(200), 65280: chance.randbytes(chance.randint(0, 300)), 5: owner,
                    15: b"\0\1" + owner, 2: owner}[kind]  # fmt: skip
            zone.add(owner, kind, 60, data)
        for query in (axfr(), axfr(key=KEY)):
            _, got = transferred(zone, query)
            self.assertEqual(records_of(zone), records_in(got))

    def test_long_records(self) -> None:
        """A record longer than a packet should be has one for itself; the zone takes none that no packet can have."""
        zone = small_zone(self)
        zone.add(from_text("long.jitsu.test"), 65280, 60, bytes(20000))
        zone.add(from_text("long.jitsu.test"), 65280, 60, b"\1" * 39000)
        with self.assertRaisesRegex(ZoneError, "TYPE65281 records of 65,547 octets: a message has room for 60,000"):
            zone.add(from_text("long.jitsu.test"), 65281, 60, bytes(65535))
        packets, got = transferred(zone)
        self.assertEqual(records_of(zone), records_in(got))
        self.assertEqual([1, 1], [len(dns.message.from_wire(packet).answer[0]) for packet in packets
                                  if len(packet) > STREAM_SIZE])  # fmt: skip
        self.assertLess(max(map(len, packets)), TCP_SIZE)

    def test_longest_record(self) -> None:
        """What is reserved is left free, to the octet."""
        _, asks = understood(axfr(use_edns=0))
        room = TCP_SIZE - 12 - len(APEX) - 4 - 2 - 10 - 11
        for reserved in (0, 100):
            fits = [RR(APEX, 65280, 0, bytes(room - reserved))]
            (packet,) = write_stream(asks, fits, (), reserved)
            self.assertEqual(TCP_SIZE - reserved, len(packet))
            with self.assertRaises(ValueError):
                list(write_stream(asks, [RR(APEX, 65280, 0, bytes(room - reserved + 1))], (), reserved))

    def test_pauses(self) -> None:
        """Between two steps not more than some records are read or written."""
        _, asks = understood(axfr())
        taken = 0

        def records() -> Iterator[RR]:
            nonlocal taken
            for number in range(1000):
                taken += 1
                yield RR(APEX, A, 60, number.to_bytes(4))

        before = 0
        for _ in write_stream(asks, records()):
            self.assertLessEqual(taken - before, STREAM_STEP)
            before = taken
        self.assertEqual(1000, taken)
        zone = large_zone(1000)
        steps = Transfer(asks, zone).packets((), None, now)
        self.assertEqual([b""] * 15, [next(steps) for _ in range(15)])


class ChangeTests(SynchronousTestCase):
    """Zones that change while they are transferred."""

    def setUp(self) -> None:
        """Make a zone, and begin to transfer it."""
        self.zone = large_zone(1000)
        self.old = records_of(self.zone)
        self.query = axfr()
        _, asks = understood(self.query)
        self.steps = Transfer(asks, self.zone).packets((), None, now)

    def change(self) -> None:
        """Remove a VM, move one, add one, and raise the serial."""
        self.zone.remove_vm(from_text("vm900.jitsu.test"))
        self.zone.add_vm(from_text("vm1.jitsu.test"), "vm1", [ip_address("10.9.9.9")], 60)
        self.zone.add_vm(from_text("vm901.jitsu.test"), "vm901", [ip_address("10.9.9.9")], 60)
        self.zone.add_vm(from_text("new.jitsu.test"), "new", [ip_address("10.9.9.9")], 60)
        self.zone.bump()

    def finish(self, packets: Iterable[bytes] = ()) -> Records:
        """Return what the client has after the other packets."""
        packets = [*packets, *self.steps]
        return records_in(received(self.query, [packet for packet in packets if packet]))

    def test_after_the_first_packet(self) -> None:
        """A change during the transfer does not concern it: the client has the zone as it was."""
        first = next(packet for packet in self.steps if packet)
        self.change()
        self.assertEqual(self.old, self.finish([first]))

    def test_while_it_is_read(self) -> None:
        """A change while the zone is being read is in the transfer, whole."""
        for _ in range(5):
            self.assertEqual(b"", next(self.steps))
        self.change()
        self.assertEqual(records_of(self.zone), self.finish())

    def test_moved_while_it_is_read(self) -> None:
        """So is one that adds and removes no name, but raises the serial."""
        for _ in range(5):
            next(self.steps)
        self.zone.add_vm(from_text("vm1.jitsu.test"), "vm1", [ip_address("10.9.9.9")], 60)
        self.zone.add_vm(from_text("vm901.jitsu.test"), "vm901", [ip_address("10.9.9.9")], 60)
        self.zone.bump()
        self.assertEqual(records_of(self.zone), self.finish())

    def test_without_serial(self) -> None:
        """A name that comes or goes without a new serial is no harm: the transfer has it, or not, and ends well."""
        next(self.steps)
        self.zone.add_vm(from_text("new.jitsu.test"), "new", [ip_address("10.9.9.9")], 60)
        next(self.steps)
        self.zone.remove_vm(from_text("vm1.jitsu.test"))
        self.assertEqual(records_of(self.zone), self.finish())

    def test_always(self) -> None:
        """A zone that changes all the time is transferred all the same."""
        packets: list[bytes] = []
        expected = self.old
        for count, step in enumerate(self.steps):
            if step:
                packets.append(step)
            elif not packets and count < 100:
                self.zone.add_vm(from_text(f"new{count}.jitsu.test"), f"new{count}", [ip_address("10.9.9.9")], 60)
                self.zone.bump()
                expected = records_of(self.zone) if count < 3 else expected
        got = records_in(received(self.query, packets))
        self.assertEqual(expected, got)


class StreamsTests(SynchronousTestCase):
    """Iterations of the reactor, pauses and ends."""

    def setUp(self) -> None:
        """Make a connection, and something to send."""
        self.clock = BoundedClock()
        self.sent: list[bytes] = []
        self.aborted = 0
        self.streams = Streams(self.sent.append, self.abort, self.clock)

    def abort(self) -> None:
        """Store that the connection was aborted."""
        self.aborted += 1

    def turn(self) -> None:
        """Advance to the next iteration of the reactor; calls that it schedules run in the one after."""
        due, self.clock.calls = self.clock.calls, []
        for call in due:
            call.called = 1
            call.func(*call.args, **call.kw)

    def packets(self, count: int, cost: float = 0.0, name: bytes = b"p") -> Iterator[bytes]:
        """Yield packets, each of which takes *seconds* to make."""
        for number in range(count):
            self.clock.rightNow += cost
            yield name + b"%d" % number

    def test_nothing_at_once(self) -> None:
        """No packet is made in the iteration that begins the stream."""
        done = self.streams.begin(self.packets(1))
        self.assertEqual([], self.sent)
        self.turn()
        self.assertEqual([b"p0"], self.sent)
        self.assertTrue(self.successResultOf(done))

    def test_slices(self) -> None:
        """One iteration does about a millisecond of work; the rest is done in later ones."""
        done = self.streams.begin(self.packets(100, SLICE * 0.4))
        for turns in range(1, 34):
            self.turn()
            self.assertEqual(3 * turns, len(self.sent))
        self.assertNoResult(done)
        self.turn()
        self.assertTrue(self.successResultOf(done))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_empty_steps(self) -> None:
        """b"" is not sent."""
        self.streams.begin(iter([b"", b"a", b"", b"b"]))
        self.turn()
        self.assertEqual([b"a", b"b"], self.sent)

    def test_in_turn(self) -> None:
        """Several streams of a connection are sent one after the other."""
        done = [self.streams.begin(self.packets(2, SLICE, name)) for name in (b"a", b"b")]
        for _ in range(6):
            self.turn()
        self.assertEqual([b"a0", b"a1", b"b0", b"b1"], self.sent)
        self.assertEqual([True, True], [self.successResultOf(each) for each in done])

    def test_pause(self) -> None:
        """A full buffer stops the stream at once, until it has drained; nothing is scheduled meanwhile."""
        streams = Streams(self.take_two, self.abort, self.clock)
        self.streams = streams
        done = streams.begin(self.packets(5))
        self.turn()
        self.assertEqual([b"p0", b"p1"], self.sent)
        self.assertEqual([], self.clock.getDelayedCalls())
        streams.resume()
        self.turn()
        self.assertEqual(4, len(self.sent))
        streams.resume()
        self.turn()
        self.assertTrue(self.successResultOf(done))

    def take_two(self, packet: bytes) -> None:
        """Take a packet into a buffer that two of them fill."""
        self.sent.append(packet)
        if len(self.sent) % 2 == 0:
            self.streams.pause()

    def test_paused_before(self) -> None:
        """A stream that begins while the buffer is full waits."""
        self.streams.pause()
        self.streams.begin(self.packets(1))
        self.turn()
        self.assertEqual([], self.sent)
        self.streams.resume()
        self.turn()
        self.assertEqual([b"p0"], self.sent)

    def test_stop(self) -> None:
        """When the connection is lost, no more packets are made, and the Deferreds fire."""
        done = [self.streams.begin(self.packets(5, SLICE)), self.streams.begin(self.packets(5))]
        self.turn()
        self.streams.stop()
        self.streams.stop()
        self.assertEqual([False, False], [self.successResultOf(each) for each in done])
        self.assertFalse(self.successResultOf(self.streams.begin(self.packets(1))))
        self.streams.resume()
        self.turn()
        self.assertEqual(([b"p0"], 0, []), (self.sent, self.aborted, self.clock.getDelayedCalls()))

    def test_fault(self) -> None:
        """A stream that cannot go on cuts the connection off: the half of a zone is not taken for the whole."""

        def broken() -> Iterator[bytes]:
            yield b"a"
            raise ValueError

        done = [self.streams.begin(broken()), self.streams.begin(self.packets(1))]
        self.turn()
        self.assertEqual(([b"a"], 1), (self.sent, self.aborted))
        self.assertEqual([False, False], [self.successResultOf(each) for each in done])
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))


@implementer(IPushProducer)
class Connection(Int16StringReceiver):
    """A server that has only transfers to offer, put together as `server` and `tcp` do it."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:  # noqa: N802
        """Register as the transport's producer; bound the kernel's send buffer."""
        self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.streams = Streams(self.sendString, self.transport.abortConnection, reactor)
        self.transport.registerProducer(self, True)  # noqa: FBT003

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Handle a query."""
        peer = self.transport.getPeer()
        octets, query = understood(string, Source(peer.host, peer.port, tcp=True, proven=True))
        signed = self.factory.keys.verify(octets, query, now()) if query.tsig is not None else None
        if isinstance(signed, BadSignature):
            self.sendString(signed.sign(write(query, Reply(signed.rcode), TCP_SIZE - signed.room), now()))
            return
        said = answer(octets, query, self.factory.zones, self.factory.allowed, signed)
        if isinstance(said, Reply):
            packet = write(query, said, TCP_SIZE - (signed.room if signed else 0))
            self.sendString(signed.sign(packet, now()) if signed else packet)
        else:
            packets = self.counted(said.packets((), signed, now))
            self.streams.begin(packets).addCallback(self.factory.ended.append)

    def counted(self, packets: Iterator[bytes]) -> Iterator[bytes]:
        """Yield *packets*, and count their octets."""
        for packet in packets:
            self.factory.made += len(packet)
            yield packet

    def pauseProducing(self) -> None:  # noqa: N802
        """Hand it on."""
        self.factory.pauses += 1
        self.streams.pause()

    def resumeProducing(self) -> None:  # noqa: N802
        """Hand it on."""
        self.streams.resume()

    def stopProducing(self) -> None:  # noqa: N802
        """Leave it to `connectionLost`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        """End the transfer."""
        self.streams.stop()
        self.factory.lost.callback(None)


class LoopbackTests(TestCase):
    """Over TCP, from a real socket of dnspython's."""

    timeout = 60

    def listen(self, zone: Zone, rules: Iterable[Rule] = (Rule(ip_network("127.0.0.0/8")),)) -> int:
        """Serve *zone*; return the port."""
        factory: Any = Factory.forProtocol(Connection)
        factory.noisy = False
        factory.zones, factory.allowed, factory.keys = Zones([zone]), Permissions(rules), Keyring([KEY])
        factory.ended, factory.made, factory.pauses, factory.lost = [], 0, 0, Deferred()
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.factory = factory
        return int(port.getHost().port)

    async def fetch(self, port: int, query: dns.message.Message) -> dns.zone.Zone:
        """Return what dnspython gets for *query*, when the connection has ended."""
        zone = dns.zone.Zone("jitsu.test", relativize=False)
        self.factory.lost = Deferred()
        try:
            await deferToThread(dns.query.inbound_xfr, "127.0.0.1", zone, query, port=port, lifetime=30)
        finally:
            await self.factory.lost
        return zone

    async def test_axfr(self) -> None:
        """The five thousand names come to dnspython."""
        zone = large_zone()
        got = await self.fetch(self.listen(zone), axfr())
        self.assertEqual(records_of(zone), records_in(got))
        self.assertEqual([True], self.factory.ended)

    async def test_signed(self) -> None:
        """A client with the key gets the zone, too."""
        zone = large_zone()
        got = await self.fetch(self.listen(zone, [Rule(None, KEY.wire)]), axfr(key=KEY))
        self.assertEqual(records_of(zone), records_in(got))

    async def test_ixfr(self) -> None:
        """A client with an older serial gets the whole zone."""
        zone = large_zone(1000)
        zone.bump()
        got = await self.fetch(self.listen(zone), axfr(serial=1))
        self.assertEqual(records_of(zone), records_in(got))

    async def test_current(self) -> None:
        """A client with the present serial gets the SOA record, and keeps its zone."""
        zone = large_zone(1000)
        got = await self.fetch(self.listen(zone), axfr(serial=1))
        self.assertEqual((set(), []), (records_in(got), self.factory.ended))

    async def test_refused(self) -> None:
        """A refused client gets REFUSED, signed if its query was; one with another or unknown key gets NOTAUTH."""
        port = self.listen(large_zone(1), [Rule(ip_network("192.0.2.0/24"))])
        wrong = Key(str(KEY.name), b"guess")
        for key, fault in ((None, dns.xfr.TransferError), (KEY, dns.xfr.TransferError),
                           (OTHER, dns.tsig.PeerBadKey), (wrong, dns.tsig.PeerBadSignature)):  # fmt: skip
            with self.assertRaises(fault) as caught:
                await self.fetch(port, axfr(key=key))
            if isinstance(caught.exception, dns.xfr.TransferError):
                self.assertEqual(dns.rcode.REFUSED, caught.exception.rcode)

    async def test_several(self) -> None:
        """One connection may ask for the zone several times, and for other things meanwhile (RFC 5936, 4.1.1)."""
        zone = large_zone(3000)
        port = self.listen(zone)
        queries = [axfr(), axfr("other.test"), axfr()]
        answers = await deferToThread(self.ask_all, port, queries)
        for query in (queries[0], queries[2]):
            got = received(query, answers[query.id])
            self.assertEqual(records_of(zone), records_in(got))
        (refused,) = answers[queries[1].id]
        self.assertEqual(dns.rcode.NOTAUTH, dns.message.from_wire(refused).rcode())
        await self.factory.lost

    @staticmethod
    def ask_all(port: int, queries: list[dns.message.Message]) -> dict[int, list[bytes]]:
        """Return what comes until it has two zones, by id."""
        answers: dict[int, list[bytes]] = {query.id: [] for query in queries}
        ends = 0
        with socket.create_connection(("127.0.0.1", port), 30) as connection, connection.makefile("rb") as stream:
            for query in queries:
                connection.sendall(query.to_wire(prepend_length=True) or b"")
            while ends < 2:
                packet = stream.read(int.from_bytes(stream.read(2)))
                message = dns.message.from_wire(packet, one_rr_per_rrset=True)
                answers[message.id].append(packet)
                ends += bool(message.answer) and message.answer[-1].rdtype == rdatatype.SOA
        return answers

    def connect(self, port: int) -> socket.socket:
        """Return a socket that asks for the zone and has a small receive buffer."""
        connection = socket.socket()
        self.addCleanup(connection.close)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(("127.0.0.1", port))
        self.query = axfr()
        connection.sendall(self.query.to_wire(prepend_length=True) or b"")
        connection.settimeout(30)
        return connection

    async def stuck(self) -> int:
        """Wait until the client's slowness is felt; return how much has been made by then, and some time later."""
        while not self.factory.pauses:
            await deferLater(reactor, 0.01)
        made = int(self.factory.made)
        await deferLater(reactor, 0.1)
        self.assertEqual(made, self.factory.made)
        return made

    async def test_slow(self) -> None:
        """For a client that does not read only so much is made as buffers take; when it reads it gets all."""
        zone = long_zone()
        connection = self.connect(self.listen(zone))
        made = await self.stuck()
        packets = await deferToThread(self.read_all, connection)
        self.assertLess(made, sum(map(len, packets)))
        self.assertEqual(records_of(zone), records_in(received(self.query, packets)))
        connection.close()
        await self.factory.lost

    @staticmethod
    def read_all(connection: socket.socket) -> list[bytes]:
        """Return the packets until the last, which ends with the SOA record."""
        packets: list[bytes] = []
        with connection.makefile("rb") as stream:
            while not packets or dns.message.from_wire(packets[-1], one_rr_per_rrset=True).answer[-1].rdtype != SOA:
                packets.append(stream.read(int.from_bytes(stream.read(2))))
        return packets

    async def test_hangs_up(self) -> None:
        """A client that goes away ends it: nothing more is made."""
        connection = self.connect(self.listen(long_zone()))
        made = await self.stuck()
        connection.close()
        await self.factory.lost
        self.assertEqual(([False], made), (self.factory.ended, self.factory.made))


class UDPTests(SynchronousTestCase):
    """What fits a datagram."""

    def test_soa_only(self) -> None:
        """The answer to IXFR by UDP is dnspython's cue to come by TCP, or to be content (RFC 1995, 2)."""
        zone = small_zone(self)
        zones, allowed = Zones([zone]), Permissions(RULES)
        for serial, fault in ((6, dns.xfr.UseTCP), (7, None)):
            query = axfr(serial=serial)
            octets, asks = understood(query, Source("192.0.2.1", 4711))
            said = answer(octets, asks, zones, allowed, None)
            assert isinstance(said, Reply)
            message = dns.message.from_wire(write(asks, said, udp_limit(asks)), xfr=True, one_rr_per_rrset=True)
            secondary = dns.zone.Zone("jitsu.test", relativize=False)
            with dns.xfr.Inbound(secondary, rdatatype.IXFR, serial, is_udp=True) as inbound:
                take = partial(inbound.process_message, message)
                if fault is None:
                    self.assertTrue(take())
                else:
                    self.assertRaises(fault, take)
