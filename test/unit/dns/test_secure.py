"""
Replies with signatures and proofs, from octets to octets, as a validator reads them.

The zones are signed by dnspython, and the validator is of dnspython, too.
"""

from __future__ import annotations

import contextlib
import random
from ipaddress import ip_address
from typing import Any, Final

import dns.dnssec
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
from dns.rdatatype import CNAME, DS, NSEC, RRSIG, SOA
from twisted.internet.defer import fail, succeed

from jitsu_tw.dns import secure
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.message import Query, parse
from jitsu_tw.dns.ondemand import TemplateResolver
from jitsu_tw.dns.reply import Reply, write
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.rrl import Limiter
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.wire import RR, RRset, Source, from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import BootFailed, Unanswerable, ZoneError
from test.support import World, vm
from test.support.zones import HEAD, ZoneTestCase
from test.unit.dns.validator import Bogus, Signer, Validator

#: The zones, the last of which is not signed.
JITSU: Final = f"""$ORIGIN jitsu.test.
{HEAD}
@ NS ns
@ MX 10 Mail
$GENERATE 1-20 many MX "$ mail"
ns A 192.0.2.53
mail A 192.0.2.25
static A 192.0.2.7
Capital TXT "x"
a.ent A 192.0.2.8
*.wild TXT "w"
*.wild MX 10 mail
*.far CNAME static
x.wild A 192.0.2.9
alias CNAME www
long CNAME alias
wildalias CNAME y.wild
toother CNAME host.other.test.
tonobody CNAME nobody.other.test.
toplain CNAME www.plain.test.
tonowhere CNAME www.example.com.
tocut CNAME www.cut
todname CNAME b.dname
loop CNAME loop
dname DNAME other.test.
here DNAME wild
cut NS ns.cut
cut NS ns
ns.cut A 192.0.2.10
c.under NS ns.other.test.
safe NS ns.other.test.
safe DS 12345 13 2 {"AB" * 32}
child NS ns.child
child DS 1 13 2 {"AB" * 32}
ns.child A 192.0.2.53
huge DNAME {"a" * 60}.{"b" * 60}.{"c" * 60}.jitsu.test.
"""
OTHER: Final = f"$ORIGIN other.test.\n{HEAD}@ NS ns\nns A 192.0.2.1\nhost A 192.0.2.2\nb A 192.0.2.3\nc TXT x\n"
CHILD: Final = f"$ORIGIN child.jitsu.test.\n{HEAD}@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.4\n"
PLAIN: Final = f"$ORIGIN plain.test.\n{HEAD}@ NS ns\nns A 192.0.2.1\nwww A 192.0.2.2\nto CNAME static.jitsu.test.\n"

#: Name below jitsu.test, type, rcode, what the validator makes of it, and the types in the answer without RRSIG.
ROWS: Final = (
    ("static", "A", "NOERROR", "secure", "A"),
    ("STATIC", "A", "NOERROR", "secure", "A"),
    ("capital", "TXT", "NOERROR", "secure", "TXT"),
    ("@", "SOA", "NOERROR", "secure", "SOA"),
    ("@", "NS", "NOERROR", "secure", "NS"),
    ("@", "MX", "NOERROR", "secure", "MX"),
    ("@", "DNSKEY", "NOERROR", "secure", "DNSKEY"),
    ("@", "DS", "NOERROR", "secure", ""),
    ("@", "NSEC", "NOERROR", "secure", "NSEC"),
    ("@", "NSEC3", "NOERROR", "secure", ""),
    ("@", "RRSIG", "NOERROR", "insecure", ""),
    ("@", "ANY", "NOERROR", "secure", "SOA"),
    ("static", "ANY", "NOERROR", "secure", "A"),
    ("y.wild", "ANY", "NOERROR", "secure", "TXT"),
    ("ent", "ANY", "NOERROR", "secure", ""),
    ("nobody", "ANY", "NXDOMAIN", "secure", ""),
    ("static", "NSEC", "NOERROR", "secure", "NSEC"),
    ("ent", "NSEC", "NOERROR", "secure", ""),
    ("alias", "NSEC", "NOERROR", "secure", "NSEC"),
    ("alias", "KEY", "NOERROR", "secure", "CNAME"),
    ("alias", "RRSIG", "NOERROR", "insecure", ""),
    ("y.wild", "NSEC", "NOERROR", "secure", "NSEC"),
    ("z.y.wild", "NSEC", "NOERROR", "secure", "NSEC"),
    ("y.far", "NSEC", "NOERROR", "secure", "NSEC"),
    ("y.far", "A", "NOERROR", "secure", "CNAME A"),
    ("x.vms", "ANY", "NOERROR", "secure", "NSEC"),
    ("static", "AAAA", "NOERROR", "secure", ""),
    ("ent", "A", "NOERROR", "secure", ""),
    ("wild", "TXT", "NOERROR", "secure", ""),
    ("nobody", "A", "NXDOMAIN", "secure", ""),
    ("a.b.nobody", "A", "NXDOMAIN", "secure", ""),
    ("b.ent", "A", "NXDOMAIN", "secure", ""),
    ("zzz", "A", "NXDOMAIN", "secure", ""),
    ("y.wild", "TXT", "NOERROR", "secure", "TXT"),
    ("z.y.wild", "TXT", "NOERROR", "secure", "TXT"),
    ("*.wild", "TXT", "NOERROR", "secure", "TXT"),
    ("y.wild", "MX", "NOERROR", "secure", "MX"),
    ("y.wild", "A", "NOERROR", "secure", ""),
    ("x.wild", "TXT", "NOERROR", "secure", ""),
    ("y.x.wild", "TXT", "NXDOMAIN", "secure", ""),
    ("*.wild", "A", "NOERROR", "secure", ""),
    ("alias", "CNAME", "NOERROR", "secure", "CNAME"),
    ("alias", "TXT", "NOERROR", "secure", "CNAME"),
    ("wildalias", "TXT", "NOERROR", "secure", "CNAME TXT"),
    ("wildalias", "A", "NOERROR", "secure", "CNAME"),
    ("toother", "A", "NOERROR", "secure", "CNAME A"),
    ("toother", "AAAA", "NOERROR", "secure", "CNAME"),
    ("tonobody", "A", "NXDOMAIN", "secure", "CNAME"),
    ("toplain", "A", "NOERROR", "insecure", "CNAME A"),
    ("toplain", "TXT", "NOERROR", "insecure", "CNAME"),
    ("to.plain.test.", "A", "NOERROR", "secure", "CNAME A"),
    ("to.plain.test.", "TXT", "NOERROR", "secure", "CNAME"),
    ("tonowhere", "A", "NOERROR", None, "CNAME"),
    ("loop", "A", "NOERROR", None, "CNAME"),
    ("tocut", "A", "NOERROR", "insecure", "CNAME"),
    ("todname", "A", "NOERROR", "secure", "CNAME DNAME CNAME A"),
    ("b.dname", "A", "NOERROR", "secure", "DNAME CNAME A"),
    ("c.dname", "A", "NOERROR", "secure", "DNAME CNAME"),
    ("d.dname", "A", "NXDOMAIN", "secure", "DNAME CNAME"),
    ("dname", "DNAME", "NOERROR", "secure", "DNAME"),
    ("dname", "A", "NOERROR", "secure", ""),
    ("y.here", "TXT", "NOERROR", "secure", "DNAME CNAME TXT"),
    ("y.here", "A", "NOERROR", "secure", "DNAME CNAME"),
    ("cut", "A", "NOERROR", "insecure", ""),
    ("www.cut", "A", "NOERROR", "insecure", ""),
    ("ns.cut", "A", "NOERROR", "insecure", ""),
    ("under", "A", "NOERROR", "secure", ""),
    ("x.under", "A", "NXDOMAIN", "secure", ""),
    ("x.c.under", "A", "NOERROR", "insecure", ""),
    ("cut", "DS", "NOERROR", "secure", ""),
    ("safe", "NS", "NOERROR", "secure", ""),
    ("www.safe", "A", "NOERROR", "secure", ""),
    ("safe", "DS", "NOERROR", "secure", "DS"),
    ("child", "DS", "NOERROR", "secure", "DS"),
    ("child", "NS", "NOERROR", "secure", "NS"),
    ("www.child", "A", "NOERROR", "secure", "A"),
    ("nobody.child", "A", "NXDOMAIN", "secure", ""),
    (f"{'d' * 60}.{'e' * 60}.huge", "A", "YXDOMAIN", "secure", "DNAME"),
    ("www", "AAAA", "NOERROR", "secure", ""),
    ("www", "TXT", "NOERROR", "secure", ""),
    ("www", "A", "NOERROR", "secure", "A"),
    ("www", "ANY", "NOERROR", "secure", "NSEC"),
    ("long", "A", "NOERROR", "secure", "CNAME CNAME A"),
    ("x.vms", "A", "NOERROR", "secure", "A"),
    ("x.vms", "AAAA", "NOERROR", "secure", ""),
    ("slow", "A", "NOERROR", "secure", "A"),
)


class SecureTestCase(ZoneTestCase):
    """Has a server with signed zones, and VMs, in front of a validator."""

    def setUp(self) -> None:
        """Sign three zones, and serve four."""
        vms = [
            vm("www", ip=(ip_address("10.0.0.1"),)),
            vm("wild", dns=(from_text("*.vms.jitsu.test"),), ip=(ip_address("10.0.0.2"),)),
            vm("bad", ip=(ip_address("10.0.0.9"),), faults=["start"]),
            vm("slow", ip=(ip_address("10.0.0.6"),), boot_time=0.5),
        ]
        self.world = World(*vms)
        zones = [Zone.read(self.write(text)) for text in (JITSU, OTHER, CHILD, PLAIN)]
        self.served = Zones(zones)
        for zone in zones[:3]:
            Signer(zone)
        for one in vms:
            self.served.add_vm(one.dns[0], one.name, one.ip, one.ttl)
        self.chain = Chain([JitsuResolver(self.served, self.world.fleet), ZoneAuthority(self.served)])
        self.server = Server(self.chain, self.world.warm, self.world.fleet, self.served)
        self.validator = Validator.of(self.served)

    def octets(self, name: str, qtype: str, *, tcp: bool = False, payload: int = 0, **of: Any) -> bytes:
        """Return the reply to a question with DO for a name below jitsu.test, or one with a final dot."""
        full = dns.name.from_text(name, dns.name.from_text("jitsu.test"))
        query = dns.message.make_query(full, qtype, **{"want_dnssec": True, **of})
        if payload:
            query.use_edns(0, dns.flags.DO, payload)
        replies: list[bytes] = []
        self.server.receive(query.to_wire(), Source("192.0.2.1", 4711, tcp=tcp, proven=tcp), replies.append)
        if not replies:
            self.world.pump(5, until=lambda: replies)
        (reply,) = replies
        self.assertTrue(query.is_response(dns.message.from_wire(reply)))
        return reply

    def ask(self, name: str, qtype: str, **of: Any) -> dns.message.Message:
        """Return the reply, by TCP."""
        return dns.message.from_wire(self.octets(name, qtype, tcp=True, **of))


class SecureTests(SecureTestCase):
    """Ask with DO."""

    def test_rows(self) -> None:
        """Each answer, positive or negative, is what a validator believes; AD is never set."""
        for name, qtype, rcode, security, types in ROWS:
            with self.subTest(name=name, type=qtype):
                reply = self.ask(name, qtype)
                found = [dns.rdatatype.to_text(rrset.rdtype) for rrset in reply.answer if rrset.rdtype != RRSIG]
                self.assertEqual((rcode, types), (dns.rcode.to_text(reply.rcode()), " ".join(found)))
                self.assertFalse(reply.flags & dns.flags.AD)
                if security is not None:
                    self.assertEqual(security, self.validator.check(reply))

    def test_without_do(self) -> None:
        """Without DO, a reply has no signatures and proofs that were not asked for, and ANY has a real RRset."""
        for name, qtype, rcode, _, types in ROWS:
            with self.subTest(name=name, type=qtype):
                reply = self.ask(name, qtype, want_dnssec=False)
                found = [rrset.rdtype for section in reply.sections[1:] for rrset in section]
                self.assertEqual(rcode, dns.rcode.to_text(reply.rcode()))
                self.assertFalse({RRSIG, NSEC} & set(found) - {dns.rdatatype.from_text(qtype), *map(
                    dns.rdatatype.from_text, types.split())})  # fmt: skip

    def test_rrsig_question(self) -> None:
        """A question for RRSIG is answered by the signatures of one RRset of the name."""
        for do in (True, False):
            (rrset,) = self.ask("@", "RRSIG", want_dnssec=do).answer
            self.assertEqual([SOA], [signature.type_covered for signature in rrset])

    def test_tampered(self) -> None:
        """The validator of these tests sees a signature or a proof that is wrong or missing."""
        for name, qtype in (("static", "A"), ("nobody", "A"), ("static", "TXT"), ("y.wild", "TXT"), ("cut", "A"),
                            ("safe", "NS"), ("ent", "A"), ("y.wild", "A"), ("b.dname", "A"), ("toother", "A")):
            for section, rtype in (("answer", RRSIG), ("authority", RRSIG), ("authority", NSEC), ("authority", DS)):
                reply = self.ask(name, qtype)
                kept = [rrset for rrset in getattr(reply, section) if rrset.rdtype != rtype]
                if len(kept) < len(getattr(reply, section)):
                    setattr(reply, section, kept)
                    with self.subTest(name=name, type=qtype, without=rtype):
                        self.assertRaises(Bogus, self.validator.check, reply)
        reply = self.ask("static", "A")
        reply.answer[0] = dns.rrset.from_text(reply.answer[0].name, 3600, "IN", "A", "192.0.2.66")
        self.assertRaises(Bogus, self.validator.check, reply)

    def test_negative_ttl(self) -> None:
        """The SOA and the NSEC records of a negative answer, and their signatures, have the TTL of RFC 9077."""
        self.assertEqual({60}, {rrset.ttl for rrset in self.ask("nobody", "A").authority})

    def test_dname(self) -> None:
        """The CNAME that a DNAME makes is not signed (RFC 6672, 5.3.1)."""
        signed = [(rrset.name.to_text(), rrset.covers) for rrset in self.ask("b.dname", "A").answer
                  if rrset.rdtype == RRSIG]
        self.assertNotIn(("b.dname.jitsu.test.", CNAME), signed)

    def test_additional(self) -> None:
        """Addresses beside an answer are signed, glue is not; their signatures are the first to be left out."""
        reply = self.ask("@", "MX")
        self.assertEqual([1, RRSIG], [rrset.rdtype for rrset in reply.additional])
        reply = self.ask("cut", "A")
        self.assertEqual([("ns.cut.jitsu.test.", 1), ("ns.jitsu.test.", 1), ("ns.jitsu.test.", RRSIG)],
                         [(rrset.name.to_text(), rrset.rdtype) for rrset in reply.additional])
        for payload, expected in ((1232, [1, RRSIG]), (512, [1])):
            reply = dns.message.from_wire(self.octets("many", "MX", payload=payload))
            self.assertEqual(expected, [rrset.rdtype for rrset in reply.additional])
            self.assertFalse(reply.flags & dns.flags.TC)

    def test_truncated(self) -> None:
        """An answer or a proof that does not fit into UDP has TC, and is whole by TCP."""
        for name, qtype in (("tonobody", "A"), ("wildalias", "A")):
            reply = dns.message.from_wire(self.octets(name, qtype, payload=512))
            self.assertTrue(reply.flags & dns.flags.TC, name)
            self.assertEqual("secure", self.validator.check(self.ask(name, qtype)))

    def test_warm(self) -> None:
        """The answer for a VM that is up is kept with its signature, apart from the one without."""
        for do in (True, False):
            cold = self.octets("www", "A", want_dnssec=do, use_edns=0, id=1)
            self.assertEqual(do, RRSIG in {rrset.rdtype for rrset in dns.message.from_wire(cold).answer})
            full = dns.name.from_text("www.jitsu.test")
            query = dns.message.make_query(full, "A", want_dnssec=do, use_edns=0, id=1).to_wire()
            (reply,), _ = self.server.answer_warm(([query[2:]], [Source("192.0.2.1", 1).client(query[:2])]))
            self.assertEqual(cold[2:], reply)

    def test_errors(self) -> None:
        """Errors, forwarded replies and answers of the class CH are left alone."""
        reply = self.ask("bad", "A")
        self.assertEqual((dns.rcode.SERVFAIL, [], []), (reply.rcode(), reply.answer, reply.authority))
        self.assertEqual(dns.rcode.REFUSED, self.ask("www.example.com.", "A").rcode())
        self.assertEqual(dns.rcode.REFUSED, self.ask("static", "A", rdclass="CH").rcode())
        self.assertEqual([], self.ask("static", "AXFR").authority)

    def test_left_alone(self) -> None:
        """Records of another server, and those that the zone does not have any more, get no signatures."""
        query = parse(dns.message.make_query("static.jitsu.test", "A", want_dnssec=True).to_wire())
        assert isinstance(query, Query)
        name = from_text("static.jitsu.test")
        served, other = RR(name, 1, 3600, bytes((192, 0, 2, 7))), RR(name, 1, 3600, bytes((192, 0, 2, 66)))
        for reply, count in ((Reply(answer=[served]), 2), (Reply(answer=[served], ra=True), 1),
                             (Reply(answer=[other]), 1), (Reply(answer=[served, other]), 2)):
            completed = secure.complete(query, reply, self.served)
            self.assertEqual(count, len(completed.answer))

    def test_raised_serial(self) -> None:
        """A negative answer has the SOA of now, which is signed, if the serial was raised while the client waited."""
        octets = dns.message.make_query("nobody.jitsu.test", "A", want_dnssec=True).to_wire()
        query = parse(octets)
        assert isinstance(query, Query)
        zone = self.served.find(query.question.key)
        assert zone is not None
        reply = Reply(3, aa=True, authority=[zone.negative_soa])
        zone.bump()
        completed = dns.message.from_wire(write(query, secure.complete(query, reply, self.served), None))
        self.assertEqual("secure", self.validator.check(completed))
        self.assertEqual(8, completed.authority[0][0].serial)

    def test_limited(self) -> None:
        """A reply that the limiter holds back is not signed."""
        self.server.limiter = Limiter(bytes(16), 5)
        signed: list[RRset] = []

        def sign(rrset: RRset) -> Any:
            signed.append(rrset)
            return original(rrset)

        zone = self.served.find(from_text("static.jitsu.test"))
        assert zone is not None
        security: Any = zone.security
        original = security.signatures
        self.patch(security, "signatures", sign)
        query = dns.message.make_query("static.jitsu.test", "A", want_dnssec=True).to_wire()
        for _ in range(40):
            self.server.receive(query, Source("198.51.100.1", 1), list[bytes]().append)
        self.assertEqual(5, len(signed))

    def test_vm_gone(self) -> None:
        """When the name of a VM that starts is taken from it, the answer that goes out is proven: there is no name."""
        replies: list[bytes] = []
        query = dns.message.make_query("slow.jitsu.test", "A", want_dnssec=True)
        self.server.receive(query.to_wire(), Source("192.0.2.1", 1, proven=True), replies.append)
        self.served.remove_vm(from_text("slow.jitsu.test"))
        self.world.pump(5, until=lambda: replies)
        reply = dns.message.from_wire(replies[0])
        self.assertEqual((dns.rcode.NXDOMAIN, "secure"), (reply.rcode(), self.validator.check(reply)))


class TemplatesTests(SecureTestCase):
    """Ask for names of a template."""

    def setUp(self) -> None:
        """Begin with a template whose name `alice` exists."""
        super().setUp()
        self.served.add_vm(from_text("*.sites.jitsu.test"), "site", [], 60)
        self.served.add_vm(from_text("*.both.jitsu.test"), "site", [], 60)
        zone = self.served.find(from_text("jitsu.test"))
        assert zone is not None
        zone.add(from_text("*.both.jitsu.test"), 16, 60, b"\1x")
        templates: Any = _Templates()
        resolver = JitsuResolver(self.served, self.world.fleet)
        ondemand = TemplateResolver(self.served, templates, resolver, self.world.clock, lambda: 1.2)
        self.chain.resolvers.insert(1, ondemand)

    def test_rows(self) -> None:
        """Names of a template that do not exist, and types that those have not that do, are proven."""
        for name, qtype, rcode, types in (
            ("alice.sites", "TXT", "NOERROR", ""),
            ("alice.sites", "DS", "NOERROR", ""),
            ("alice.sites", "ANY", "NOERROR", "NSEC"),
            ("alice.sites", "NSEC", "NOERROR", "NSEC"),
            ("mallory.sites", "A", "NXDOMAIN", ""),
            ("_tcp.alice.sites", "A", "NXDOMAIN", ""),
            ("*.sites", "A", "NOERROR", ""),
            ("sites", "A", "NOERROR", ""),
            ("mallory.both", "TXT", "NOERROR", "TXT"),
            ("mallory.both", "A", "NOERROR", ""),
            ("alice.both", "MX", "NOERROR", ""),
            ("mallory.both", "NSEC", "NOERROR", "NSEC"),
        ):
            with self.subTest(name=name, type=qtype):
                reply = self.ask(name, qtype)
                found = [dns.rdatatype.to_text(rrset.rdtype) for rrset in reply.answer if rrset.rdtype != RRSIG]
                self.assertEqual((rcode, types), (dns.rcode.to_text(reply.rcode()), " ".join(found)))
                self.assertEqual("secure", self.validator.check(reply))


class RandomTests(ZoneTestCase):
    """Ask zones of random records of few names, where wildcards, aliases and cuts often meet."""

    LABELS = ("a", "b", "*", "d\\000", "Z")
    RECORDS = ("A 192.0.2.1", "TXT x", "CNAME {}", "NS ns", "DNAME {}", f"DS 1 13 2 {'AB' * 32}", "MX 1 {}")
    TYPES = ("A", "TXT", "NS", "DS", "NSEC", "ANY", "CNAME", "DNAME", "SOA")

    def name(self, chosen: random.Random) -> str:
        """Return a random name of one to three labels."""
        return ".".join(chosen.choices(self.LABELS, k=chosen.randint(1, 3)))

    def zone(self, chosen: random.Random) -> Zone:
        """Return a signed zone of random records, templates and VMs; records that clash are left out."""
        zone = Zone.read(self.write(f"$ORIGIN x.test.\n{HEAD}@ NS ns\nns A 192.0.2.1\n"))
        for _ in range(chosen.randint(2, 12)):
            rtype, _, data = chosen.choice(self.RECORDS).format(f"{self.name(chosen)}.x.test.").partition(" ")
            rdata = dns.rdata.from_text("IN", rtype, data, dns.name.from_text("x.test"), relativize=False)
            with contextlib.suppress(ZoneError):
                zone.add(from_text(f"{self.name(chosen)}.x.test"), int(rdata.rdtype), 300, rdata.to_wire() or b"")
        Signer(zone)
        for number in range(chosen.randint(0, 4)):
            name = self.name(chosen)
            addresses = [] if name[0] == "*" and number % 2 else [ip_address("10.0.0.1")]
            with contextlib.suppress(ZoneError):
                zone.add_vm(from_text(f"{name}.x.test"), f"{number}", addresses, 60)
        return zone

    def test_random(self) -> None:
        """Each answer is believed, if its chain of aliases has an end in the zone."""
        for seed in range(12):
            chosen = random.Random(seed)
            zones = Zones([self.zone(chosen)])
            validator, authority = Validator.of(zones), ZoneAuthority(zones)
            for _ in range(30):
                full = dns.name.from_text(f"{self.name(chosen)}.x.test.")
                octets = dns.message.make_query(full, chosen.choice(self.TYPES), want_dnssec=True).to_wire()
                query = parse(octets)
                assert isinstance(query, Query)
                try:
                    answer = authority.answer(query.question)
                except Unanswerable as fault:
                    reply = Reply(fault.rcode, aa=True, answer=fault.answer, authority=fault.authority)
                else:
                    assert answer is not None
                    reply = Reply(0, answer.aa, *answer)
                if (len(reply.answer) > 1 and not reply.authority) or full.is_wild():
                    continue
                message = dns.message.from_wire(write(query, secure.complete(query, reply, zones), None))
                with self.subTest(seed=seed, message=str(message)):
                    validator.check(message)


class _Templates:
    """An `ITemplates` of which the name `alice` exists."""

    def has(self, _: str) -> bool:
        return True

    def serves(self, *_: object) -> bool:
        return True

    def label_of(self, name: bytes, _: str) -> str | None:
        label = name[1 : 1 + name[0]].decode()
        return label if name[1 + name[0] :].startswith((b"\5sites", b"\4both")) else None

    def exists(self, _: str, label: str, __: object) -> Any:
        return succeed(label == "alice")

    def make(self, _: str, label: str, source: object) -> Any:
        return self.exists(_, label, source) if label != "alice" else fail(BootFailed("not here"))
