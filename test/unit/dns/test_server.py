"""
The way of a query, from octets to octets, with a fleet on a clock: what is answered, and what starts a VM.

dnspython is the client: a second opinion on every octet.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any, Final

import attrs
import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import formatEvent, globalLogPublisher
from twisted.names import dns as tdns
from twisted.names import error
from twisted.names.resolve import ResolverChain
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import resolver, warm
from jitsu_tw.dns.cookies import Cookies
from jitsu_tw.dns.forward import MOST_OF_ONE, Forwarder
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.message import Query, parse
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.rrl import Limiter
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.wire import RR, Answer, Question, Source, from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import Unanswerable
from jitsu_tw.networks import LOOPBACK
from test.support import EPOCH, World, vm

#: Name, type, and what else of a query; what is answered (rcode, addresses); whether a VM is started. The rows of
#: DESIGN, section 4, that this server has.
ROWS: Final[tuple[tuple[str, str, dict[str, Any], tuple[str, list[str]], bool], ...]] = (
    ("www.jitsu.test", "A", {}, ("NOERROR", ["10.0.0.1"]), True),
    ("WWW.Jitsu.TEST", "A", {}, ("NOERROR", ["10.0.0.1"]), True),
    ("alias.jitsu.test", "A", {}, ("NOERROR", ["10.0.0.1"]), True),
    ("alias2.jitsu.test", "A", {}, ("NOERROR", ["10.0.0.1"]), True),
    ("anything.wild.jitsu.test", "A", {}, ("NOERROR", ["10.0.0.2"]), True),
    ("six.jitsu.test", "AAAA", {}, ("NOERROR", ["2001:db8::6"]), True),
    ("six.jitsu.test", "A", {}, ("NOERROR", ["10.0.0.3"]), True),
    ("www.jitsu.test", "AAAA", {}, ("NOERROR", []), False),
    ("alias.jitsu.test", "AAAA", {}, ("NOERROR", []), False),
    ("alias.jitsu.test", "CNAME", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "HTTPS", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "SVCB", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "TXT", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "MX", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "NS", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "SOA", {}, ("NOERROR", []), False),
    ("www.jitsu.test", "ANY", {}, ("NOERROR", []), False),
    ("deep.er.jitsu.test", "A", {}, ("NOERROR", ["10.0.0.4"]), True),
    ("er.jitsu.test", "A", {}, ("NOERROR", []), False),
    ("er.jitsu.test", "NS", {}, ("NOERROR", []), False),
    ("jitsu.test", "A", {}, ("NOERROR", []), False),
    ("nobody.jitsu.test", "A", {}, ("NXDOMAIN", []), False),
    ("under.www.jitsu.test", "A", {}, ("NXDOMAIN", []), False),
    ("static.jitsu.test", "A", {}, ("NOERROR", ["192.0.2.7"]), False),
    ("www.example.com", "A", {}, ("REFUSED", []), False),
    (".", "NS", {}, ("REFUSED", []), False),
    ("www.jitsu.test", "A", {"rdclass": dns.rdataclass.CH}, ("REFUSED", []), False),
    ("www.jitsu.test", "AXFR", {}, ("NOTAUTH", []), False),
    ("jitsu.test", "AXFR", {}, ("REFUSED", []), False),
)

ZONE_TEXT: Final = """
$ORIGIN jitsu.test.
$TTL 1h
@ SOA ns hostmaster 7 3600 600 86400 60
  NS ns
ns A 192.0.2.53
static A 192.0.2.7
alias CNAME www
alias2 CNAME alias
"""


class ServerTestCase(SynchronousTestCase):
    """Has a server in front of a fleet of memory."""

    def setUp(self) -> None:
        """Make zones, a fleet and a server."""
        path = self.mktemp()
        with open(path, "w") as file:  # noqa: PTH123
            file.write(ZONE_TEXT)
        vms = [
            vm("www", ip=(ip_address("10.0.0.1"),), ttl=5),
            vm("wild", dns=(from_text("*.wild.jitsu.test"),), ip=(ip_address("10.0.0.2"),)),
            vm("six", ip=(ip_address("10.0.0.3"), ip_address("2001:db8::6"))),
            vm("deep", dns=(from_text("deep.er.jitsu.test"),), ip=(ip_address("10.0.0.4"),)),
            vm("bad", faults=["start"]),
            vm("never", faults=["never_ready"]),
            vm("slow", ip=(ip_address("10.0.0.6"),), boot_time=0.5),
        ]
        self.world = World(*vms)
        self.zones = Zones([Zone.read(path)])
        for one in vms:
            self.zones.add_vm(one.dns[0], one.name, one.ip, one.ttl)
        self.chain = Chain([JitsuResolver(self.zones, self.world.fleet), ZoneAuthority(self.zones)])
        self.warm = self.world.warm
        self.server = Server(self.chain, self.warm, self.world.fleet, self.zones)

    def send(self, octets: bytes, source: Source | None = None) -> list[bytes]:
        """Send *octets*; return a list in which the replies are, or will be."""
        replies: list[bytes] = []
        self.server.receive(octets, source or Source("192.0.2.1", 4711), replies.append)
        return replies

    def ask(self, name: str, type: str = "A", **of: Any) -> dns.message.Message:
        """Ask and return the reply, which must come at once."""
        query = dns.message.make_query(name, type, **of)
        (reply,) = self.send(query.to_wire())
        answer = dns.message.from_wire(reply)
        self.assertTrue(query.is_response(answer), answer)
        return answer

    def hit(self, octets: bytes, sender: tuple[str, int] = ("192.0.2.1", 4711)) -> bytes | None:
        """Return the warm answer to *octets* from *sender*; None if there is none."""
        (reply,), _ = self.server.answer_warm(([octets[2:]], [Source(*sender).client(octets[:2])]))
        return None if reply is None else octets[:2] + reply

    def starts(self) -> int:
        """Return how many starts there have been of any VM."""
        fleet = self.world.fleet
        return sum(fleet.stats.current(machine).total_starts for machine in fleet.machines.values())


class TableTests(ServerTestCase):
    """Which questions start a VM, and their answers."""

    def test_rows(self) -> None:
        """Each question gets the table's answer, and starts one VM or none."""
        for name, type_, of, (rcode, addresses), boots in ROWS:
            self.setUp()
            reply = self.ask(name, type_, **of)
            found = [item.to_text() for rrset in reply.answer for item in rrset
                     if rrset.rdtype in {dns.rdatatype.A, dns.rdatatype.AAAA}]
            self.assertEqual((rcode, addresses, int(boots)),
                             (dns.rcode.to_text(reply.rcode()), found, self.starts()), f"{name} {type_} {of}")

    def test_negative_answers(self) -> None:
        """NODATA and NXDOMAIN are authoritative and carry the SOA, with the TTL of RFC 2308, section 3."""
        for name, type_ in (("www.jitsu.test", "AAAA"), ("nobody.jitsu.test", "A"), ("er.jitsu.test", "A")):
            reply = self.ask(name, type_)
            self.assertTrue(reply.flags & dns.flags.AA, name)
            (soa,) = reply.authority
            self.assertEqual(("jitsu.test.", dns.rdatatype.SOA, 60), (soa.name.to_text(), soa.rdtype, soa.ttl))

    def test_alias(self) -> None:
        """A CNAME is in the answer, before what it leads to."""
        reply = self.ask("alias2.jitsu.test")
        self.assertEqual(["alias2", "alias", "www"], [str(rrset.name.labels[0], "ascii") for rrset in reply.answer])

    def test_any(self) -> None:
        """ANY is answered minimally (RFC 8482)."""
        (rrset,) = self.ask("www.jitsu.test", "ANY").answer
        self.assertEqual(dns.rdatatype.HINFO, rrset.rdtype)

    def test_opcodes(self) -> None:
        """Opcodes other than QUERY are NOTIMP and start nothing."""
        for opcode in (dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE):
            query = dns.message.make_query("www.jitsu.test", "A")
            query.set_opcode(opcode)
            reply = self.send(query.to_wire())[0]
            self.assertEqual((opcode, dns.rcode.NOTIMP), ((reply[2] >> 3) & 15, reply[3] & 15))
        self.assertEqual(0, self.starts())

    def test_malformed(self) -> None:
        """What is no query is FORMERR, or dropped where an answer could be answered for ever; it starts nothing."""
        good = dns.message.make_query("www.jitsu.test", "A").to_wire()
        response = bytes([*good[:2], good[2] | 0x80, *good[3:]])
        for octets in (b"", good[:11], response):
            self.assertEqual([], self.send(octets))
        for octets in (good[:-1], good + b"x", good[:4] + b"\0\2" + good[6:], good[:12] + b"\x40" + good[13:]):
            (reply,) = self.send(octets)
            self.assertEqual((good[:2], dns.rcode.FORMERR), (reply[:2], reply[3] & 15))
        self.assertEqual(0, self.starts())

    def test_edns_version(self) -> None:
        """An EDNS version above 0 is BADVERS and starts nothing."""
        query = dns.message.make_query("www.jitsu.test", "A", use_edns=1)
        reply = dns.message.from_wire(self.send(query.to_wire())[0])
        self.assertEqual((dns.rcode.BADVERS, 0), (reply.rcode(), reply.edns))
        self.assertEqual(0, self.starts())

    def test_case_is_kept(self) -> None:
        """The reply has the question in its original case, for resolvers that check it (0x20)."""
        self.assertIn("wWw.JITSU.tEsT.", self.ask("wWw.JITSU.tEsT").question[0].to_text())


class SummonsTests(ServerTestCase):
    """Answers that wait, and answers that do not."""

    def test_not_ready(self) -> None:
        """An answer that is sent before its VM is ready has the address, and an EDE with that reason."""
        query = dns.message.make_query("never.jitsu.test", "A", use_edns=0)
        replies = self.send(query.to_wire())
        self.world.pump(1.1)
        self.assertEqual([], replies)
        self.world.pump(0.2)
        reply = dns.message.from_wire(replies[0])
        (option,) = reply.options
        self.assertEqual((dns.rcode.NOERROR, 1, dns.edns.EDECode.NOT_READY),
                         (reply.rcode(), len(reply.answer), option.code))
        self.assertIn("never is still starting", option.text)

    def test_failed(self) -> None:
        """A VM that does not start is SERVFAIL, with the reason."""
        reply = self.ask("bad.jitsu.test", use_edns=0)
        (option,) = reply.options
        self.assertEqual((dns.rcode.SERVFAIL, []), (reply.rcode(), reply.answer))
        self.assertIn("the start fails, as it was told to", option.text)

    def test_ttl(self) -> None:
        """The TTL is the VM's."""
        self.assertEqual(5, self.ask("www.jitsu.test").answer[0].ttl)

    def test_flood_of_names(self) -> None:
        """
        Of a flood of names below a wildcard, for a VM that boots, `MOST_OF_ONE` wait; others are answered at once.

        Their answer has the EDE that the VM is still starting. Clients of other networks wait as without the flood.
        """
        self.patch(resolver, "MOST_WAITING", 8)
        self.patch(resolver, "MOST_OF_ONE", 3)
        self.never_ready()
        answered = []
        for number in range(100):
            query = dns.message.make_query(f"n{number}.never.jitsu.test", "A", use_edns=0).to_wire()
            answered.append(self.send(query, Source("192.0.2.1", number)))
        self.assertEqual([0] * 3 + [1] * 97, [len(each) for each in answered])
        reply = dns.message.from_wire(answered[-1][0])
        self.assertEqual((1, dns.edns.EDECode.NOT_READY), (len(reply.answer), reply.options[0].code))
        other = self.send(dns.message.make_query("a.never.jitsu.test", "A").to_wire(), Source("192.0.3.1", 1))
        self.assertEqual([], other)
        for number in range(100):
            self.send(dns.message.make_query("a.never.jitsu.test", "A").to_wire(), Source(f"10.0.{number}.1", 1))
        proven = self.send(
            dns.message.make_query("a.never.jitsu.test", "A").to_wire(), Source("198.51.100.1", 1, proven=True)
        )
        self.assertEqual([], proven, "forged questions took all places")
        self.world.pump(1.3)
        self.assertEqual([1, 1], [len(other), len(proven)])
        self.assertEqual([1] * 100, [len(each) for each in answered])
        again = self.send(dns.message.make_query("b.never.jitsu.test", "A").to_wire())
        self.assertEqual([], again)

    def never_ready(self) -> None:
        """Make a VM with a wildcard that is never ready."""
        self.zones.add_vm(from_text("*.never.jitsu.test"), "never", [ip_address("10.0.0.5")], 60)
        self.chain.resolvers[0] = JitsuResolver(self.zones, self.world.fleet)

    def test_end(self) -> None:
        """At the end, clients that wait, and those that would have to, get an EDE; others are answered."""
        query = dns.message.make_query("never.jitsu.test", "A", use_edns=0).to_wire()
        waiting = [self.send(query, source) for source in (None, Source("192.0.2.2", 1, tcp=True, proven=True))]
        self.assertEqual([[], []], waiting)
        self.server.end()
        self.server.end()
        for replies in (*waiting, self.send(query)):
            reply = dns.message.from_wire(replies.pop())
            (option,) = reply.options
            self.assertEqual((dns.rcode.SERVFAIL, dns.edns.EDECode.NOT_READY), (reply.rcode(), option.code))
            self.assertIn("this server is being stopped", option.text)
        self.assertEqual(dns.rcode.NOERROR, self.ask("static.jitsu.test").rcode())
        self.world.pump(2)
        self.assertEqual([[], []], waiting)

    def test_retransmission(self) -> None:
        """The same question again from the same client joins, is answered, and counts once."""
        query = dns.message.make_query("never.jitsu.test", "A").to_wire()
        replies = [self.send(query), self.send(query)]
        self.world.pump(1.3)
        self.assertEqual([1, 1], [len(each) for each in replies])
        self.assertEqual(1, self.world.fleet.stats.current(self.world.machine("never")).total_requests)


class WarmTests(ServerTestCase):
    """Answers for VMs that are up, found by the question's octets."""

    def setUp(self) -> None:
        """Make a server whose answers have odd EDNS sizes."""
        super().setUp()
        self.sizes = iter(range(1300, 9999))

    def wire(self, name: str = "www.jitsu.test", type_: str = "A", **of: Any) -> bytes:
        """Return a query as octets."""
        return dns.message.make_query(name, type_, **of).to_wire()

    def long_way(self, octets: bytes) -> bytes:
        """Return what the server answers without the cache, but for the id."""
        (reply,) = self.send(octets)
        return reply

    def test_same_as_the_long_way(self) -> None:
        """A warm answer equals, to the octet, the answer of the resolvers, in whatever case and with whatever id."""
        for of in ({}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True}, {"use_edns": 0, "payload": 512},
                   {"flags": 0}, {"flags": dns.flags.RD | dns.flags.CD}):
            first = self.wire("www.jitsu.test", **of)
            self.assertIsNone(self.hit(first), of)
            self.long_way(first)
            other = self.wire("wWw.JITSU.tesT", **of)
            found = self.hit(other)
            self.assertEqual(self.long_way(other), found, of)
            assert found is not None
            self.assertTrue(dns.message.from_wire(other).is_response(dns.message.from_wire(found)))

    def test_other_questions(self) -> None:
        """Another type, class, opcode, length or option is another question."""
        query = self.wire(use_edns=0)
        self.long_way(query)
        end = 12 + len(from_text("www.jitsu.test"))
        for at in (2, 3, 5, end + 1, end + 3, len(query) - 1, len(query) - 4, len(query) - 5):
            changed = bytearray(query)
            changed[at] ^= 0x20
            self.assertIsNone(self.hit(bytes(changed)), at)
        for octets in (query[:-1], query + b"\0", b"", query[:2], self.wire("www.jitsu.test", "AAAA", use_edns=0)):
            self.assertIsNone(self.hit(octets))

    def test_letters_that_are_none(self) -> None:
        """An EDNS size that looks like letters is not taken for another."""
        for size, other in ((0x4141, 0x6161), (0x6161, 0x4141)):
            self.setUp()
            self.long_way(self.wire(use_edns=0, payload=size))
            found = self.hit(self.wire(use_edns=0, payload=other))
            if found is not None:
                self.assertEqual(self.long_way(self.wire(use_edns=0, payload=other))[2:], found[2:])

    def test_signed(self) -> None:
        """The answer to a signed question is signed for that question alone, and not kept."""
        octets = self.wire()
        reply, query, lease = self.long_way(octets), parse(octets), self.world.fleet.summons.lease("www")
        assert isinstance(query, Query)
        assert lease is not None
        self.warm.clear()
        key = query.question.key
        use = self.world.fleet.stats.use_of(self.world.machine(), key)
        for tsig, kept in ((len(octets), 0), (None, 1)):
            signed, label = attrs.evolve(query, tsig=tsig), ("udp", "A", "NOERROR", "jitsu.test")
            self.warm.put(octets, signed, reply, "www", lease, use, key, label)
            self.assertEqual(kept, len(self.warm.answers))

    def test_options(self) -> None:
        """A question with options is not kept: they may differ from client to client."""
        query = self.wire(use_edns=0, options=[dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")])
        self.long_way(query)
        self.assertIsNone(self.hit(query))

    def test_only_while_up(self) -> None:
        """Nothing is kept for a VM that is not ready, and nothing is left when it goes down."""
        self.send(self.wire("never.jitsu.test"))
        self.world.pump(1.3)
        self.assertIsNone(self.hit(self.wire("never.jitsu.test")))
        query = self.wire()
        self.long_way(query)
        self.assertIsNotNone(self.hit(query))
        self.world.fleet.operator.stop("www")
        self.assertIsNone(self.hit(query))
        self.assertEqual({}, self.warm.answers)

    def test_changed_meanwhile(self) -> None:
        """A client that waits while the VM's address changes gets the new one, and the old one is not kept."""
        answer, kept = self.given_meanwhile("slow", "10.0.0.9")
        self.assertIn("10.0.0.9", answer)
        self.assertIn(b"\x0a\0\0\x09", kept or b"")

    def test_moved_meanwhile(self) -> None:
        """A client that waits while another VM gets the name gets the other one's address, and that VM is summoned."""
        answer, kept = self.given_meanwhile("www", "10.0.0.1")
        self.assertIn("10.0.0.1", answer)
        self.assertIn(b"\x0a\0\0\x01", kept or b"")
        self.assertEqual("up", self.world.machine("www").state.value)

    def test_removed_meanwhile(self) -> None:
        """A client that waits while the name is removed learns that it does not exist."""
        answer, kept = self.given_meanwhile("", "")
        self.assertEqual(("NXDOMAIN", None), (answer, kept))

    def given_meanwhile(self, vm: str, ip: str) -> tuple[str, bytes | None]:
        """
        Give a VM's name to *vm*, at *ip*, or to none, while a client waits.

        Return the client's answer, or what the error is, and what is kept.
        """
        query, name = self.wire("slow.jitsu.test"), from_text("slow.jitsu.test")
        replies = self.send(query)
        self.zones.remove_vm(name)
        if vm:
            self.zones.add_vm(name, vm, [ip_address(ip)], 60)
        self.warm.clear()
        self.world.pump(1)
        reply = dns.message.from_wire(replies[0])
        return str(reply.answer) if reply.answer else dns.rcode.to_text(reply.rcode()), self.hit(query)

    def test_renews_the_lease(self) -> None:
        """A warm answer is a use: the lease is renewed and the question counted, for status and for the state."""
        query = self.wire()
        self.long_way(query)
        for number in range(6):
            self.world.pump(100, step=1)
            self.assertIsNotNone(self.hit(number.to_bytes(2) + query[2:]))
        machine = self.world.machine()
        self.assertEqual(7, self.world.fleet.stats.current(machine).total_requests)
        self.assertEqual(self.world.clock.seconds(), self.world.fleet.stats.current(machine).last_request_ts - EPOCH)
        self.world.pump(6)
        self.assertEqual("7", self.world.remembered()["dns/www.jitsu.test/total_requests"])
        self.world.pump(115, step=1)
        self.assertIsNone(self.hit(query))
        self.assertEqual("off", machine.state.value)

    def test_retransmission(self) -> None:
        """The same question again from the same source is answered, renews the lease, and is not counted."""
        query = self.wire()
        self.long_way(query)
        for sender in (("192.0.2.1", 1), ("192.0.2.1", 1), ("192.0.2.1", 2), ("192.0.2.1", 2)):
            self.world.pump(100, step=1)
            self.assertIsNotNone(self.hit(query, sender))
        self.assertEqual(3, self.world.fleet.stats.current(self.world.machine()).total_requests)
        self.assertEqual(120.0, self.world.fleet.leases.left(self.world.machine()))

    def test_time_for_a_check(self) -> None:
        """A use when a check is due asks for the check, and is answered all the same."""
        query = self.wire()
        self.long_way(query)
        checked: list[str] = []
        self.patch(self.world.fleet.leases.health, "check", lambda machine: checked.append(machine.vm.name))
        self.assertIsNotNone(self.hit(query))
        self.assertEqual([], checked)
        lease = self.world.fleet.summons.lease("www")
        assert lease is not None
        lease.check_at = self.world.clock.seconds()
        self.assertIsNotNone(self.hit(query))
        self.assertEqual(["www"], checked)

    def shares(self, least: int = 8, kinds: int = 4, exact: int = 1000, wild: int = 8) -> None:
        """Set the limits of stored answers: `warm.LEAST_EXACT`, `MOST_KINDS`, `MOST_EXACT` and `MOST_WILD`."""
        for name, most in (("LEAST_EXACT", least), ("MOST_KINDS", kinds), ("MOST_EXACT", exact), ("MOST_WILD", wild)):
            self.patch(warm, name, most)

    def odd(self, count: int, name: str = "www.jitsu.test") -> None:
        """Ask for *name* in *count* ways, no two of which are alike."""
        for _ in range(count):
            size = next(size for size in self.sizes if not chr(size & 255).isupper())
            query = self.wire(name, use_edns=0, payload=size)
            self.long_way(query)
            self.hit(query)

    def test_odd_questions(self) -> None:
        """A client that asks in every possible way gets a bounded memory, and takes it from unused answers."""
        self.shares()
        query, other = self.wire(), self.wire("six.jitsu.test")
        for octets in (other, query):
            self.long_way(octets)
        for number in range(20):
            for client in range(2):
                self.assertIsNotNone(self.hit(bytes([number, client]) + query[2:]))
            self.odd(10)
        self.assertEqual(8 + 2 * 4, len(self.warm.answers))
        self.assertIsNotNone(self.hit(query))
        self.assertIsNotNone(self.hit(other), "the VM with fewer answers gave one up")
        self.world.fleet.operator.stop("www")
        self.assertEqual([other[2:]], list(self.warm.answers))

    def test_odd_at_first(self) -> None:
        """Questions that come after all the odd ones are kept too."""
        self.shares()
        self.odd(100)
        self.long_way(self.wire())
        self.assertIsNotNone(self.hit(self.wire()))

    def test_all_in_use(self) -> None:
        """Where all answers are used, one is dropped all the same, after a bounded number of comparisons."""
        self.shares(least=200, kinds=0)
        for number in range(300):
            query = self.wire(use_edns=0, payload=600 + number)
            self.long_way(query)
            for known in list(self.warm.answers):
                self.hit(b"\0\0" + known)
        self.assertEqual(200, len(self.warm.answers))

    def test_many_vms(self) -> None:
        """All VMs together have no more answers than may be."""
        self.shares(least=8, kinds=100, exact=10)
        for name in ("www", "six", "deep.er"):
            self.odd(9, f"{name}.jitsu.test")
        self.assertEqual(10, len(self.warm.answers))

    def test_wildcards(self) -> None:
        """Names below a wildcard have a share of their own: they push out each other, and no name that exists."""
        self.shares(least=1, kinds=0)
        query = self.wire()
        self.long_way(query)
        for number in range(100):
            self.long_way(self.wire(f"n{number}.wild.jitsu.test"))
        self.assertEqual(1 + 8, len(self.warm.answers))
        self.assertIsNotNone(self.hit(query))
        self.assertIsNotNone(self.hit(self.wire("n99.wild.jitsu.test")))

    def test_names_below_a_wildcard(self) -> None:
        """However many names are asked for below a wildcard, they are counted as one, in memory and in the state."""
        for number in range(100):
            self.long_way(self.wire(f"n{number}.wild.jitsu.test"))
        self.assertIsNotNone(self.hit(self.wire("n99.wild.jitsu.test")))
        stats = self.world.fleet.stats.current(self.world.machine("wild"))
        self.assertEqual({"*.wild.jitsu.test": 101}, {name: use.total_requests for name, use in stats.dns.items()})
        self.long_way(self.wire("alias.jitsu.test"))
        self.assertEqual(["www.jitsu.test"], list(self.world.fleet.stats.current(self.world.machine()).dns))

    def test_tcp(self) -> None:
        """An answer by TCP is not repeated by UDP: it may be longer than UDP allows."""
        self.send(self.wire(), Source("192.0.2.1", 1, tcp=True))
        self.assertEqual({}, self.warm.answers)


class PolicyTests(ServerTestCase):
    """Which clients may start a VM. Each refusal starts nothing; a VM that is up is answered to all."""

    def restart(self, **settings: Any) -> None:
        """Make a new server with *settings*."""
        self.world.settings = attrs.evolve(self.world.settings, **settings)
        self.world.begin()
        self.chain = Chain([JitsuResolver(self.zones, self.world.fleet), ZoneAuthority(self.zones)])
        self.warm = self.world.warm
        self.cookies = Cookies(b"0123456789abcdef")
        self.server = Server(
            self.chain, self.warm, self.world.fleet, self.zones, cookies=self.cookies, nsid=b"ns1", wall=lambda: EPOCH
        )

    def ask_from(self, host: str, name: str = "www", options: Any = (), *, tcp: bool = False) -> dns.message.Message:
        """Ask for a VM's address from *host*."""
        query = dns.message.make_query(f"{name}.jitsu.test", "A", use_edns=0, options=options)
        (reply,) = self.send(query.to_wire(), Source(host, 4711, tcp, tcp))
        return dns.message.from_wire(reply)

    def refusals(self, reply: dns.message.Message) -> tuple[int, list[int]]:
        """Return a reply's rcode and its Extended DNS Errors."""
        return reply.rcode(), [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]

    def test_strangers_keep_nothing_up(self) -> None:
        """A client that may not start a VM gets its address while it is up, and does not keep it up."""
        self.restart(summon_from=(ip_network("192.0.2.0/24"),))
        query = dns.message.make_query("www.jitsu.test", "A").to_wire()
        self.send(query, Source("192.0.2.1", 4711))
        self.world.pump(60, step=1)
        self.assertIsNotNone(self.hit(query, ("198.51.100.1", 1)))
        self.ask_from("198.51.100.1")
        self.assertLess(self.world.fleet.leases.left(self.world.machine()) or 0, 61)
        self.assertIsNotNone(self.hit(query, ("192.0.2.9", 1)))
        self.assertEqual(120.0, self.world.fleet.leases.left(self.world.machine()))

    def test_summon_from(self) -> None:
        """A source outside `summon_from` is REFUSED with EDE 18, until a permitted client has started the VM."""
        self.restart(summon_from=(ip_network("192.0.2.0/24"),))
        self.assertEqual((dns.rcode.REFUSED, [18]), self.refusals(self.ask_from("198.51.100.1")))
        self.assertEqual(0, self.starts())
        self.assertEqual(0, self.world.fleet.stats.current(self.world.machine()).total_requests)
        self.assertEqual((dns.rcode.NOERROR, []), self.refusals(self.ask_from("192.0.2.9")))
        self.assertEqual((dns.rcode.NOERROR, []), self.refusals(self.ask_from("198.51.100.1")))
        self.assertEqual(1, self.starts())

    def test_budget(self) -> None:
        """A network that has used up its starts is REFUSED; others are not, and what is up goes on for all."""
        self.restart(starts_per_minute=1)
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.2.1", tcp=True).rcode())
        self.assertEqual((dns.rcode.REFUSED, [18]), self.refusals(self.ask_from("192.0.2.2", "six")))
        self.assertEqual((dns.rcode.REFUSED, [18]), self.refusals(self.ask_from("192.0.2.2", "six", tcp=True)))
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.2.2").rcode())
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.3.1", "six", tcp=True).rcode())
        self.assertEqual(2, self.starts())
        self.world.pump(61)
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.2.1", "deep.er", tcp=True).rcode())

    def test_forged(self) -> None:
        """
        Whatever an attacker sends by UDP from forged addresses of a network, clients of that network start VMs.

        They have to prove their addresses by TCP or a cookie, as with `verify_source`, but only from half of the budget
        on.
        """
        self.restart(starts_per_minute=2)
        self.assertFalse(self.ask_from("192.0.2.66").flags & dns.flags.TC)
        for _ in range(100):
            self.assertTrue(self.ask_from("192.0.2.66", "six").flags & dns.flags.TC)
        self.assertEqual(1, self.starts())
        mine = dns.edns.CookieOption(b"12345678", b"")
        reply = self.ask_from("192.0.2.1", "six", [mine])
        self.assertEqual(dns.rcode.BADCOOKIE, reply.rcode())
        (cookie,) = [option for option in reply.options if isinstance(option, dns.edns.CookieOption)]
        self.assertEqual(1, len(self.ask_from("192.0.2.1", "six", [cookie]).answer))
        self.assertEqual(2, self.starts())

    def test_joining_costs_nothing(self) -> None:
        """A query for a VM that is booting joins, with no budget."""
        self.restart(starts_per_minute=2)
        query = dns.message.make_query("never.jitsu.test", "A").to_wire()
        replies = [self.send(query, Source("192.0.2.1", port)) for port in range(5)]
        self.world.pump(1.3)
        self.assertEqual([dns.rcode.NOERROR] * 5, [dns.message.from_wire(each[0]).rcode() for each in replies])

    def test_max_running(self) -> None:
        """Over `max_running` nothing more is started: SERVFAIL, so that a resolver may ask elsewhere."""
        self.restart(max_running=2)
        self.ask_from("192.0.2.1")
        self.assertTrue(self.ask_from("192.0.2.1", "deep.er").flags & dns.flags.TC)
        self.ask_from("192.0.2.1", "deep.er", tcp=True)
        for tcp in (False, True):
            self.assertEqual((dns.rcode.SERVFAIL, [0]), self.refusals(self.ask_from("192.0.2.1", "six", tcp=tcp)))
        self.assertEqual(2, self.starts())
        self.world.fleet.operator.stop("www")
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.2.1", "six", tcp=True).rcode())

    def test_verify_source(self) -> None:
        """
        Without proof of its address, a client is sent to TCP, or given a cookie if it knows cookies.

        With TCP, or the cookie, it starts the VM. What is up is answered without.
        """
        self.restart(verify_source=True)
        reply = self.ask_from("192.0.2.1")
        self.assertTrue(reply.flags & dns.flags.TC)
        self.assertEqual([], reply.answer)
        mine = b"12345678"
        reply = self.ask_from("192.0.2.1", options=[dns.edns.CookieOption(mine, b"")])
        self.assertEqual(dns.rcode.BADCOOKIE, reply.rcode())
        (cookie,) = [option for option in reply.options if isinstance(option, dns.edns.CookieOption)]
        self.assertEqual(mine, cookie.client)
        self.assertEqual(0, self.starts())
        self.assertEqual(dns.rcode.BADCOOKIE, self.ask_from("192.0.2.2", options=[cookie]).rcode())
        self.assertEqual(0, self.starts())
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.2.1", options=[cookie]).rcode())
        self.assertEqual(1, self.starts())
        self.assertFalse(self.ask_from("198.51.100.1").flags & dns.flags.TC)
        self.assertEqual(dns.rcode.NOERROR, self.ask_from("192.0.2.1", "six", tcp=True).rcode())
        self.assertEqual(2, self.starts())

    def test_nsid(self) -> None:
        """A client that asks for the server's identity gets it (RFC 5001)."""
        self.restart()
        reply = self.ask_from("192.0.2.1", options=[dns.edns.NSIDOption(b"")])
        self.assertEqual([b"ns1"], [option.nsid for option in reply.options if isinstance(option, dns.edns.NSIDOption)])

    def test_cookie_without_question(self) -> None:
        """A query that only wants a cookie gets one (RFC 7873, 5.4)."""
        self.restart()
        query = dns.message.Message()
        query.use_edns(0, options=[dns.edns.CookieOption(b"12345678", b"")])
        reply = dns.message.from_wire(self.send(query.to_wire())[0])
        self.assertEqual((dns.rcode.NOERROR, 1), (reply.rcode(), len(reply.options)))

    def test_dry_run(self) -> None:
        """In a dry run everything is answered as if it were up, and nothing is started or stopped, but counted."""
        self.restart(dry_run=True)
        for host in ("192.0.2.1", "192.0.2.9", "198.51.100.1"):
            reply = self.ask_from(host)
            self.assertEqual((dns.rcode.NOERROR, 1, ()), (reply.rcode(), len(reply.answer), reply.options))
        self.world.pump(130, step=1)
        self.ask_from("198.51.100.1")
        self.assertEqual(0, self.starts())
        self.assertEqual({("www", "192.0.2.0/24", "A"): 1, ("www", "198.51.100.0/24", "A"): 1},
                         dict(self.world.fleet.summons.would_start))
        self.assertEqual(4, self.world.fleet.stats.current(self.world.machine()).total_requests)

    def test_first_summons_is_told(self) -> None:
        """The log line of an activation names the client and the question; so does that of a refusal."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.restart(starts_per_minute=2)
        self.ask_from("192.0.2.1")
        for _ in range(10):
            self.ask_from("192.0.2.1", "six")
        lines = [formatEvent(event) for event in events]
        self.assertEqual(1, len([line for line in lines if "for 192.0.2.1, A www.jitsu.test, 1 answered" in line]))
        refusals = [line for line in lines if "six: not started for 192.0.2.1, A six.jitsu.test" in line]
        self.assertEqual(1, len(refusals), lines)


class LimitTests(ServerTestCase):
    """Response rate limiting, as it meets the server. What it counts is `rrl`'s own matter."""

    def setUp(self) -> None:
        """Limit to two responses a second."""
        super().setUp()
        self.server.limiter = Limiter(bytes(16), 2, slip=2)

    def outcomes(self, name: str, count: int, source: Source) -> str:
        """Ask *count* times; return a letter for each: whole, truncated, or dropped."""
        query = dns.message.make_query(name, "A").to_wire()
        found = ""
        for _ in range(count):
            replies = self.send(query, source)
            found += "-" if not replies else "t" if dns.message.from_wire(replies[0]).flags & dns.flags.TC else "w"
        return found

    def test_kinds(self) -> None:
        """Each kind of response has a limit of its own, which names made up by the asker do not get around."""
        source = Source("192.0.2.1", 1)
        for name in ("static.jitsu.test", "nobody.jitsu.test", "er.jitsu.test", "www.example.com", "www.jitsu.test"):
            self.assertEqual("ww-t-t", self.outcomes(name, 6, source), name)
        self.assertEqual("-t", "".join(self.outcomes(f"no{n}.jitsu.test", 1, source) for n in range(2)))

    def test_exempt(self) -> None:
        """TCP, whose client has proven its address, and loopback are not limited."""
        for source in (Source("192.0.2.1", 1, tcp=True, proven=True), Source("192.0.2.1", 1, proven=True),
                       Source("127.0.0.1", 1), Source("::1", 1)):
            self.assertEqual("wwwwww", self.outcomes("static.jitsu.test", 6, source))

    def test_warm(self) -> None:
        """Warm answers count with the others, and slip as they do."""
        source = Source("192.0.2.1", 1)
        query = dns.message.make_query("www.jitsu.test", "A").to_wire()
        self.assertEqual("ww-", self.outcomes("www.jitsu.test", 3, source))
        use = self.world.fleet.stats.current(self.world.machine()).total_requests
        slipped, dropped, again = (self.hit(query, ("192.0.2.1", 1)) for _ in range(3))
        self.assertIsNone(dropped)
        for reply in (slipped, again):
            assert reply is not None
            message = dns.message.from_wire(reply)
            self.assertTrue(dns.message.from_wire(query).is_response(message))
            self.assertTrue(message.flags & dns.flags.TC)
        self.assertEqual(use, self.world.fleet.stats.current(self.world.machine()).total_requests)
        self.world.pump(2)
        whole = self.hit(query, ("192.0.2.1", 1))
        assert whole is not None
        self.assertTrue(dns.message.from_wire(whole).answer)
        for host in ("127.0.0.1", "::1"):
            self.assertNotIn(None, [self.hit(query, (host, 1)) for _ in range(10)])
        mapped = [self.hit(query, ("::ffff:192.0.2.1", 1)) for _ in range(4)]
        self.assertIn(None, mapped)


class ResolverInterfaceTests(ServerTestCase):
    """The resolvers, queried as twisted.names queries any."""

    def test_lookups(self) -> None:
        """`IResolver`'s methods give records that twisted.names can use."""
        answer, authority, _ = self.successResultOf(self.chain.lookupAddress("www.jitsu.test"))
        self.assertEqual((b"www.jitsu.test", tdns.A, 5), (answer[0].name.name, answer[0].type, answer[0].ttl))
        self.assertEqual([], authority)
        self.assertEqual(b"\x0a\0\0\1", answer[0].payload.data)
        self.failureResultOf(self.chain.lookupAddress("nobody.jitsu.test"), Unanswerable)
        self.failureResultOf(self.chain.lookupAddress("www.example.com"), error.DomainError)

    def test_one_lookup(self) -> None:
        """A name is looked up once, whichever of the resolvers answers, and not again for another question."""
        asked: list[tuple[bytes, int]] = []
        lookup = self.zones.lookup

        def counted(*question: Any) -> Any:
            asked.append(question)
            return lookup(*question)

        self.patch(self.zones, "lookup", counted)
        for name, type_ in (("static.jitsu.test", "A"), ("static.jitsu.test", "TXT"), ("www.jitsu.test", "A"),
                            ("www.jitsu.test", "AAAA"), ("alias2.jitsu.test", "A"), ("nobody.jitsu.test", "A")):
            self.ask(name, type_)
            self.assertEqual([(from_text(name), dns.rdatatype.from_text(type_))], asked)
            asked.clear()

    def test_in_a_chain_of_twisted_names(self) -> None:
        """They work in twisted.names' own chain too."""
        chain = ResolverChain([JitsuResolver(self.zones, self.world.fleet), ZoneAuthority(self.zones)])
        answer, _, _ = self.successResultOf(chain.query(tdns.Query("six.jitsu.test", tdns.AAAA)))
        self.assertEqual(1, len(answer))
        self.assertEqual(1, self.starts())


class ForwarderTests(ServerTestCase):
    """Names outside the zones."""

    def setUp(self) -> None:
        """Put a forwarder into the chain; the test answers for its server."""
        super().setUp()
        self.forwarder = Forwarder(("192.0.2.99", 53), LOOPBACK)
        self.chain.resolvers.append(self.forwarder)
        self.asked: list[Question] = []
        self.result: Any = None
        self.patch(self.forwarder._client, "query", self.answer)

    def answer(self, question: Question) -> Any:
        """Answer for the server."""
        self.asked.append(question)
        return self.result

    def test_permitted(self) -> None:
        """A client on loopback gets the other server's answer, which is not authoritative."""
        header = tdns.RRHeader(b"www.example.com", tdns.MX, tdns.IN, 9, tdns.Record_MX(5, b"mail.example.com", 9))
        for host in ("127.0.0.1", "::ffff:127.0.0.1"):  # the latter by a socket for both families
            self.result = succeed(([header], [], []))
            (reply,) = self.send(dns.message.make_query("www.example.com", "MX").to_wire(), Source(host, 1))
            answer = dns.message.from_wire(reply)
            self.assertEqual("www.example.com. 9 IN MX 5 mail.example.com.", answer.answer[0].to_text())
            self.assertEqual((0, dns.flags.RA), (answer.flags & dns.flags.AA, answer.flags & dns.flags.RA))

    def test_strangers(self) -> None:
        """Questions of other clients are not forwarded."""
        self.assertEqual(dns.rcode.REFUSED, self.ask("www.example.com").rcode())
        self.assertEqual([], self.asked)

    def test_ours(self) -> None:
        """A name that the zones deny is not forwarded."""
        (reply,) = self.send(dns.message.make_query("nobody.jitsu.test", "A").to_wire(), Source("127.0.0.1", 1))
        self.assertEqual(dns.rcode.NXDOMAIN, dns.message.from_wire(reply).rcode())
        self.assertEqual([], self.asked)

    def test_bounded(self) -> None:
        """`AT_ONCE` questions are forwarded at once; more are SERVFAIL, until there are answers."""
        query = dns.message.make_query("www.example.com", "MX").to_wire()
        source, replies, waiting = Source("127.0.0.1", 1), [], []
        for _ in range(MOST_OF_ONE + 1):
            self.result = Deferred()
            waiting.append(self.result)
            replies.append(self.send(query, source))
        self.assertEqual([0] * MOST_OF_ONE + [1], [len(each) for each in replies])
        self.assertEqual(dns.rcode.SERVFAIL, dns.message.from_wire(replies[-1][0]).rcode())
        waiting[0].callback(([], [], []))
        self.assertEqual([], self.send(query, source))

    def test_failures(self) -> None:
        """The other server's response code is passed on; its silence is SERVFAIL."""
        for fault, rcode in ((error.DNSNameError(tdns.Message()), dns.rcode.NXDOMAIN),
                             (error.DNSQueryRefusedError(tdns.Message()), dns.rcode.REFUSED),
                             (error.DNSQueryTimeoutError(1), dns.rcode.SERVFAIL)):
            self.result = fail(fault)
            (reply,) = self.send(dns.message.make_query("www.example.com", "A").to_wire(), Source("::1", 1))
            self.assertEqual(rcode, dns.message.from_wire(reply).rcode())


class FaultTests(ServerTestCase):
    """Internal errors."""

    def test_servfail(self) -> None:
        """An unexpected error is SERVFAIL and a traceback in the log, not silence."""
        self.patch(self.chain.resolvers[1], "answer", lambda _: 1 / 0)
        self.assertEqual(dns.rcode.SERVFAIL, self.ask("static.jitsu.test").rcode())
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))


class TransportTests(ServerTestCase):
    """What fits."""

    def big(self, _: Question) -> Answer:
        """Answer with more than UDP can carry."""
        owner = from_text("static.jitsu.test")
        return Answer([RR(owner, 16, 60, bytes([250]) + bytes([number]) * 250) for number in range(40)])

    def test_truncated(self) -> None:
        """What does not fit a datagram is cut, with TC; the same over TCP is whole."""
        self.patch(self.chain.resolvers[1], "answer", self.big)
        reply = self.ask("static.jitsu.test", "TXT")
        self.assertTrue(reply.flags & dns.flags.TC)
        query = dns.message.make_query("static.jitsu.test", "TXT").to_wire()
        (octets,) = self.send(query, Source("192.0.2.1", 1, tcp=True))
        whole = dns.message.from_wire(octets)
        self.assertEqual((40, 0), (len(whole.answer[0]), whole.flags & dns.flags.TC))
