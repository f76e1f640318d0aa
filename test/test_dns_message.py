"""
Packets in, packets out: `jitsu_tw.dns.message`, with dnspython as the second opinion.

Packets of the tables are put together by hand, so that the wrong ones can be as wrong as they should.
"""

from __future__ import annotations

from struct import pack, unpack_from

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rdatatype
import dns.tsig
import dns.tsigkeyring
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import message
from jitsu_tw.dns.message import Drop, Edns, Query, Reject, Reply, parse, reply, truncated, udp_limit
from jitsu_tw.dns.wire import ROOT, RR, Question, Source, from_text

WWW = from_text("www.example.org")
ZONE = from_text("example.org")
QUESTION = WWW + pack("!HH", 1, 1)
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, DNAME = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39
COOKIE = bytes(range(8))
#: 255 octets, the most that a name may have.
LONGEST = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + ROOT
TOO_LONG = (b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"b" * 62 + ROOT

bounded = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def packet(
    *parts: bytes, id: int = 0x1234, flags: int = 0x0100, qd: int = 1, an: int = 0, ns: int = 0, ar: int = 0
) -> bytes:
    """Return a header with these counts and the *parts* behind it; without parts, the usual question."""
    return pack("!HHHHHH", id, flags, qd, an, ns, ar) + (b"".join(parts) or QUESTION)


def option(code: int, data: bytes = b"") -> bytes:
    """Return an EDNS option."""
    return pack("!HH", code, len(data)) + data


def opt(*options: bytes, size: int = 1232, version: int = 0, flags: int = 0, owner: bytes = ROOT) -> bytes:
    """Return an OPT record."""
    data = b"".join(options)
    return owner + pack("!HHBBHH", 41, size, 0, version, flags, len(data)) + data


def record(owner: bytes = WWW, type: int = A, data: bytes = b"\x0a\0\0\1", cls: int = 1) -> bytes:
    """Return any other record."""
    return owner + pack("!HHIH", type, cls, 0, len(data)) + data


def subnet(family: int, prefix: int, address: bytes, scope: int = 0) -> bytes:
    """Return a client subnet option."""
    return option(8, pack("!HBB", family, prefix, scope) + address)


def query(edns: Edns | None = None, asked: bytes = WWW, type: int = A, flags: int = 0) -> Query:
    """Return a query."""
    return Query(7, flags, Question(asked, type), edns)


def addresses(owner: bytes, count: int, first: int = 0) -> list[RR]:
    """Return an RRset of *count* A records."""
    return [RR(owner, A, 60, pack("!I", first + i)) for i in range(count)]


def counts(octets: bytes) -> tuple[int, ...]:
    """Return the four counts of a header."""
    return unpack_from("!HHHH", octets, 4)


def flags(octets: bytes) -> int:
    """Return the flags of a header."""
    return int(unpack_from("!H", octets, 2)[0])


class ParseTests(SynchronousTestCase):
    """What packets mean."""

    def test_query(self) -> None:
        """A question comes with its case, its class, its source, and the flags that are to be echoed."""
        source = Source("192.0.2.1", 5353)
        got = parse(packet(from_text("wWw.Example.ORG") + pack("!HH", 28, 3), flags=0x0130), source)
        assert isinstance(got, Query)
        self.assertEqual((0x1234, 0x0110), (got.id, got.flags))
        self.assertEqual(from_text("wWw.Example.ORG"), got.question.asked)
        self.assertEqual(WWW, got.question.key)
        self.assertEqual((28, 3), (got.question.type, got.question.cls))
        self.assertIs(source, got.question.source)
        self.assertIs(None, got.edns)
        self.assertIs(None, got.tsig)

    def test_edns(self) -> None:
        """The OPT record's size, DO and options are kept; its Z flags are not."""
        got = parse(packet(QUESTION, opt(option(10, COOKIE), option(3), size=4096, flags=0xFFFF), ar=1))
        assert isinstance(got, Query)
        self.assertEqual(Edns(4096, True, 0, ((10, COOKIE), (3, b""))), got.edns)

    def test_option(self) -> None:
        """Of options that stand twice, the first one counts."""
        edns = Edns(512, False, 0, ((10, b"1"), (10, b"2")))
        self.assertEqual(b"1", edns.option(10))
        self.assertIs(None, edns.option(3))

    def test_accepted(self) -> None:
        """Everything that is well-formed is a query."""
        cases = {
            "root": packet(ROOT + pack("!HH", 2, 1)),
            "longest label": packet(b"\x3f" + b"a" * 63 + ROOT + pack("!HH", 1, 1)),
            "longest name": packet(LONGEST + pack("!HH", 1, 1)),
            "any octet in a label": packet(b"\4.\0\xff\\" + ROOT + pack("!HH", 1, 1)),
            "AD and Z in the header": packet(flags=0x0160),
            "AA, TC, RA and an rcode, which mean nothing in a query": packet(flags=0x068F),
            "additional record": packet(QUESTION, record(), ar=1),
            "compressed owner": packet(QUESTION, record(b"\xc0\x0c"), ar=1),
            "partly compressed owner": packet(QUESTION, record(b"\3ftp\xc0\x10"), ar=1),
            "OPT not last": packet(QUESTION, opt(), record(), ar=2),
            "IXFR": packet(WWW + pack("!HH", 251, 1), record(type=SOA, data=bytes(22)), ns=1),
            "IXFR with EDNS": packet(WWW + pack("!HH", 251, 1), record(type=SOA, data=bytes(22)), opt(), ns=1, ar=1),
            "padding": packet(QUESTION, opt(option(12, bytes(200))), ar=1),
            "unknown option": packet(QUESTION, opt(option(65001, b"x")), ar=1),
            "client cookie": packet(QUESTION, opt(option(10, bytes(8))), ar=1),
            "shortest server cookie": packet(QUESTION, opt(option(10, bytes(16))), ar=1),
            "longest server cookie": packet(QUESTION, opt(option(10, bytes(40))), ar=1),
            "second cookie, which is ignored": packet(QUESTION, opt(option(10, bytes(8)), option(10, b"1")), ar=1),
            "UDP size 0": packet(QUESTION, opt(size=0), ar=1),
            "IPv4 subnet": packet(QUESTION, opt(subnet(1, 23, b"\xc0\0\2")), ar=1),
            "IPv4 host": packet(QUESTION, opt(subnet(1, 32, b"\xc0\0\2\1")), ar=1),
            "IPv6 subnet": packet(QUESTION, opt(subnet(2, 56, bytes(7))), ar=1),
            "subnet of everybody": packet(QUESTION, opt(subnet(1, 0, b"")), ar=1),
            "subnet of no family": packet(QUESTION, opt(subnet(0, 0, b"")), ar=1),
        }
        for what, octets in cases.items():
            with self.subTest(what):
                self.assertIsInstance(parse(octets), Query)

    def test_dropped(self) -> None:
        """What is no query at all gets no reply, or two servers could answer each other for ever."""
        cases = {
            "nothing": b"",
            "under 12 octets": packet()[:11],
            "response": packet(flags=0x8000),
            "malformed response": packet(b"\x40", flags=0x8000),
            "NOTIMP response": packet(flags=0xA004),
        }
        for what, octets in cases.items():
            with self.subTest(what):
                self.assertIsInstance(parse(octets), Drop)

    def test_formerr(self) -> None:
        """What is malformed is FORMERR; the question is echoed and EDNS known if they can be read."""
        echo, silent, plain, edns = QUESTION, b"", None, Edns(1232, False, 0)
        ecs = "client subnet: "
        cases = {
            "header only": (packet()[:12], silent, plain),
            "name cut": (packet()[:20], silent, plain),
            "type cut": (packet()[:-3], silent, plain),
            "class cut": (packet()[:-1], silent, plain),
            "trailing octet": (packet(QUESTION, b"\0"), echo, plain),
            "trailing octet after OPT": (packet(QUESTION, opt(), b"\0", ar=1), echo, edns),
            "OPT that is not counted": (packet(QUESTION, opt()), echo, plain),
            "record missing": (packet(ar=1), echo, plain),
            "record after OPT missing": (packet(QUESTION, opt(), ar=2), echo, edns),
            "record's data cut": (packet(QUESTION, record()[:-1], ar=1), echo, plain),
            "record's head cut": (packet(QUESTION, record()[:-6], ar=1), echo, plain),
            "label type 0x40": (packet(b"\x41" + QUESTION), silent, plain),
            "label of 64 octets": (packet(b"\x40" + b"a" * 64 + ROOT + pack("!HH", 1, 1)), silent, plain),
            "owner with a label of 64 octets": (
                packet(QUESTION, record(b"\x40" + b"a" * 64 + ROOT), ar=1),
                echo,
                plain,
            ),
            "label type 0x80": (packet(b"\x81" + QUESTION), silent, plain),
            "pointer to itself": (packet(b"\xc0\x0c" + pack("!HH", 1, 1)), silent, plain),
            "pointer into the header": (packet(b"\1a\xc0\4" + pack("!HH", 1, 1)), silent, plain),
            "pointer ahead": (packet(b"\1a\xc0\x12" + pack("!HH", 1, 1) + WWW), silent, plain),
            "256 octets of name": (packet(TOO_LONG + pack("!HH", 1, 1)), silent, plain),
            "name too long": (packet(b"\1a" + LONGEST + pack("!HH", 1, 1)), silent, plain),
            "QDCOUNT 0": (packet(b"", qd=0)[:12], silent, plain),
            "QDCOUNT 0, EDNS": (packet(opt(), qd=0, ar=1), silent, edns),
            "QDCOUNT 2": (packet(QUESTION, QUESTION, qd=2), silent, plain),
            "QDCOUNT 2, compressed, EDNS": (
                packet(QUESTION, b"\xc0\x0c" + pack("!HH", 28, 1), opt(), qd=2, ar=1),
                silent,
                edns,
            ),
            "QDCOUNT 65535": (packet(qd=65535), silent, plain),
            "ANCOUNT 1": (packet(QUESTION, record(), an=1), echo, plain),
            "ANCOUNT 1, EDNS": (packet(QUESTION, record(), opt(), an=1, ar=1), echo, edns),
            "NSCOUNT 1": (packet(QUESTION, record(type=SOA, data=bytes(22)), ns=1), echo, plain),
            "IXFR with an answer": (
                packet(WWW + pack("!HH", 251, 1), record(), an=1),
                WWW + pack("!HH", 251, 1),
                plain,
            ),
            "IXFR with two records": (
                packet(WWW + pack("!HH", 251, 1), record(), record(), ns=2),
                WWW + pack("!HH", 251, 1),
                plain,
            ),
            "IXFR with TSIG in the authority section": (
                packet(WWW + pack("!HH", 251, 1), record(type=250, cls=255), ns=1),
                WWW + pack("!HH", 251, 1),
                plain,
            ),
            "QDCOUNT 0, a cookie and an answer": (
                packet(record(), opt(option(10, COOKIE)), qd=0, an=1, ar=1),
                silent,
                Edns(1232, False, 0, ((10, COOKIE),)),
            ),
            "OPT cut": (packet(QUESTION, opt(option(3, b"abc"))[:-1], ar=1), echo, plain),
            "two OPT": (packet(QUESTION, opt(), opt(size=512), ar=2), echo, edns),
            "OPT with an owner": (packet(QUESTION, opt(owner=WWW), ar=1), echo, plain),
            "OPT in the answer": (packet(QUESTION, opt(), an=1), echo, plain),
            "option's head cut": (packet(QUESTION, opt(b"\0\3\0"), ar=1), echo, edns),
            "option's data cut": (packet(QUESTION, opt(option(3, b"abc")[:-1]), ar=1), echo, edns),
            "cookie of 7": (packet(QUESTION, opt(option(10, bytes(7))), ar=1), echo, edns),
            "cookie of 15": (packet(QUESTION, opt(option(10, bytes(15))), ar=1), echo, edns),
            "cookie of 41": (packet(QUESTION, opt(option(10, bytes(41))), ar=1), echo, edns),
            ecs + "cut": (packet(QUESTION, opt(option(8, b"\0\1\x18")), ar=1), echo, edns),
            ecs + "scope": (packet(QUESTION, opt(subnet(1, 24, bytes(3), 24)), ar=1), echo, edns),
            ecs + "too few octets": (packet(QUESTION, opt(subnet(1, 24, bytes(2))), ar=1), echo, edns),
            ecs + "too many octets": (packet(QUESTION, opt(subnet(1, 24, bytes(4))), ar=1), echo, edns),
            ecs + "bits behind the prefix": (packet(QUESTION, opt(subnet(1, 23, b"\xc0\0\3")), ar=1), echo, edns),
            ecs + "prefix too long": (packet(QUESTION, opt(subnet(1, 33, bytes(5))), ar=1), echo, edns),
            ecs + "unknown family": (packet(QUESTION, opt(subnet(3, 8, b"\1")), ar=1), echo, edns),
            "owner with a pointer to itself": (
                packet(QUESTION, record(pack("!H", 0xC000 + 12 + 21)), ar=1),
                echo,
                plain,
            ),
            "owner with a pointer ahead": (packet(QUESTION, record(b"\xc1\0"), ar=1), echo, plain),
            "owner with a pointer into the header": (packet(QUESTION, record(b"\xc0\0"), ar=1), echo, plain),
            "owner with label type 0x40": (packet(QUESTION, record(b"\x41a\0"), ar=1), echo, plain),
            "owner too long": (packet(QUESTION, record(TOO_LONG), ar=1), echo, plain),
            "TSIG before OPT": (packet(QUESTION, record(type=250, cls=255), opt(), ar=2), echo, plain),
            "two TSIG": (packet(QUESTION, *[record(type=250, cls=255)] * 2, ar=2), echo, plain),
            "malformed before BADVERS": (packet(QUESTION, opt(version=1), b"\0", ar=1), echo, Edns(1232, False, 1)),
        }
        for what, (octets, question, known) in cases.items():
            with self.subTest(what):
                got = parse(octets)
                assert isinstance(got, Reject), got
                self.assertEqual((0x1234, 0, 0x0100, message.FORMERR), (got.id, got.opcode, got.flags, got.rcode))
                self.assertEqual((question, known), (got.question, got.edns))
                self.assertNotEqual("", got.reason)

    def test_notimp(self) -> None:
        """Every opcode but QUERY is NOTIMP, however malformed; what can be echoed is."""
        for opcode in range(1, 16):
            got = parse(packet(QUESTION, record(type=SOA), opt(), flags=opcode << 11, an=1, ar=1))
            assert isinstance(got, Reject)
            self.assertEqual((message.NOTIMP, opcode, QUESTION), (got.rcode, got.opcode, got.question))
            self.assertEqual(Edns(1232, False, 0), got.edns)
            self.assertEqual((0x8004 | opcode << 11, (1, 0, 0, 1)), self.head(got))
        got = parse(packet(b"\x40", flags=5 << 11))
        assert isinstance(got, Reject)
        self.assertEqual((message.NOTIMP, b""), (got.rcode, got.question))

    def test_badvers(self) -> None:
        """An EDNS version that is not ours is BADVERS with version 0 and no options of the query's."""
        for version in (1, 2, 100, 255):
            got = parse(packet(QUESTION, opt(subnet(9, 9, b""), b"\xff", version=version, flags=0x8000), ar=1))
            assert isinstance(got, Reject)
            self.assertEqual((message.BADVERS, QUESTION), (got.rcode, got.question))
            self.assertEqual(Edns(1232, True, version), got.edns)
            octets = reply(got, Reply(), udp_limit(got))
            second = dns.message.from_wire(octets)
            self.assertEqual((16, 0, ()), (second.rcode(), second.edns, second.options))
            self.assertEqual(dns.flags.DO, second.ednsflags & 0xFFFF)
            self.assertEqual(0x8100, flags(octets))

    def test_cookie_without_question(self) -> None:
        """QDCOUNT=0 with a cookie asks for ours (RFC 7873, 5.4)."""
        got = parse(packet(opt(option(10, COOKIE)), qd=0, ar=1))
        assert isinstance(got, Reject)
        self.assertEqual((message.NOERROR, b""), (got.rcode, got.question))
        second = dns.message.from_wire(reply(got, Reply(options=((10, bytes(24)),)), 512))
        self.assertEqual((0, []), (second.rcode(), second.question))
        self.assertEqual([dns.edns.CookieOption(bytes(8), bytes(16))], list(second.options))

    def test_tsig(self) -> None:
        """A signed query says where its TSIG record is (compressed owner and all), for the packet to be verified."""
        asked = dns.message.make_query("www.example.org", "A", use_edns=0)
        asked.use_tsig(dns.tsigkeyring.from_text({"key.example.net": "c2VjcmV0"}))
        octets = asked.to_wire()
        got = parse(octets)
        assert isinstance(got, Query)
        assert got.tsig is not None
        self.assertEqual(from_text("key.example.net") + pack("!HH", 250, 255), octets[got.tsig :][:21])
        self.assertIsNot(None, got.edns)

    def test_cost_is_bounded(self) -> None:
        """Packets of 64 KiB that are made to be slow are refused after one look at each octet, at most."""
        room = 65535 - 12
        cases = {
            "labels": packet(b"\1a" * (room // 2)),
            "pointers": packet(QUESTION, record(b"\xc0\x0c", data=b"") * 5000, ar=65535),
            "labels in owners": packet(QUESTION, record(b"\1a" * 126 + b"\xc0\x0c", data=b"") * 240, ar=65535),
            "questions": packet(QUESTION * 3000, qd=65535),
            "options": packet(QUESTION, opt(option(3) * 16000, b"\0"), ar=1),
        }
        for what, octets in cases.items():
            with self.subTest(what):
                self.assertLess(len(octets), 65536)
                got = parse(octets)
                assert isinstance(got, Reject)
                self.assertEqual(message.FORMERR, got.rcode)

    def head(self, got: Reject) -> tuple[int, tuple[int, ...]]:
        """Return flags and counts of the reply to *got*."""
        octets = reply(got, Reply(), udp_limit(got))
        return flags(octets), counts(octets)


class ReplyTests(SynchronousTestCase):
    """What replies look like."""

    def test_header(self) -> None:
        """QR=1; id, RD and CD are the query's; AA and RA the reply's; AD, Z and TC are 0."""
        cases = [
            (0x0000, Reply(), 0x8000),
            (0x0100, Reply(), 0x8100),
            (0x0010, Reply(), 0x8010),
            (0x0110, Reply(aa=True), 0x8510),
            (0x0100, Reply(ra=True), 0x8180),
            (0x0000, Reply(rcode=3, aa=True), 0x8403),
            (0x0000, Reply(rcode=5), 0x8005),
        ]
        for asked, said, expected in cases:
            octets = reply(query(flags=asked), said, 512)
            self.assertEqual((7, expected), unpack_from("!HH", octets))
            self.assertEqual((1, 0, 0, 0), counts(octets))

    def test_question_is_echoed(self) -> None:
        """The question comes back octet for octet, its case included (0x20)."""
        octets = packet(from_text("wWw.ExAmPlE.oRg") + pack("!HH", 1, 1))
        got = parse(octets)
        assert isinstance(got, Query)
        said = reply(got, Reply(answer=addresses(WWW, 1)), 512)
        self.assertEqual(octets[12:], said[12 : len(octets)])
        self.assertEqual(b"\xc0\x0c" + pack("!HHIHI", 1, 1, 60, 4, 0), said[len(octets) :])

    def test_reject_is_echoed(self) -> None:
        """FORMERR has the question and an OPT record if the query's could be read."""
        octets = packet(QUESTION, opt(flags=0x8000), b"\0", ar=1)
        got = parse(octets)
        assert isinstance(got, Reject)
        said = reply(got, Reply(), udp_limit(got))
        self.assertEqual(packet(QUESTION, opt(flags=0x8000), flags=0x8101, ar=1), said)
        self.assertEqual(0x8105, flags(reply(got, Reply(rcode=5), 512)))
        unreadable = parse(packet(b"\x40"))
        assert isinstance(unreadable, Reject)
        self.assertEqual(pack("!HHHHHH", 0x1234, 0x8101, 0, 0, 0, 0), reply(unreadable, Reply(), 512))

    def test_opt_if_and_only_if_asked(self) -> None:
        """There is an OPT record if the query had one: 1232, version 0, DO copied."""
        self.assertEqual(0, counts(reply(query(), Reply(options=((3, b"x"),), ede=((18, "no"),)), 512))[3])
        for do in (False, True):
            octets = reply(query(Edns(4096, do, 0)), Reply(), 512)
            self.assertEqual(opt(flags=0x8000 * do), octets[-11:])

    def test_extended_rcode(self) -> None:
        """The upper bits of the rcode are in the OPT record; without one it is SERVFAIL, not NOERROR."""
        second = dns.message.from_wire(reply(query(Edns(512, False, 0)), Reply(rcode=23), 512))
        self.assertEqual(23, second.rcode())
        self.assertEqual(2, dns.message.from_wire(reply(query(), Reply(rcode=16), 512)).rcode())

    def test_options(self) -> None:
        """Options and extended errors are in the OPT record, as dnspython reads them."""
        said = Reply(ede=((18, "prohibited: \u00e9"), (22, "")), options=((3, b"ns1"), (10, bytes(24))))
        second = dns.message.from_wire(reply(query(Edns(1232, False, 0)), said, 1232))
        self.assertEqual([3, 10, 15, 15], [int(o.otype) for o in second.options])
        self.assertEqual([(18, "prohibited: \u00e9"), (22, None)], [(o.code, o.text) for o in second.options[2:]])

    def test_client_subnet(self) -> None:
        """The client's subnet comes back with scope 0; what else it sent does not."""
        ecs = subnet(1, 24, b"\xc0\0\2")
        got = parse(packet(QUESTION, opt(option(12, bytes(9)), option(3), ecs, option(10, COOKIE)), ar=1))
        assert isinstance(got, Query)
        self.assertEqual(opt(ecs), reply(got, Reply(), 1232)[12 + len(QUESTION) :])
        self.assertEqual(opt(ecs, option(3, b"x")), reply(got, Reply(options=((3, b"x"),)), 1232)[12 + len(QUESTION) :])

    def test_client_subnet_of_the_caller(self) -> None:
        """A caller that has its own idea of the scope is not contradicted."""
        got = query(Edns(1232, False, 0, ((8, b"\0\1\x18\0abc"),)))
        octets = reply(got, Reply(options=((8, b"\0\1\x18\x18abc"),)), 1232)
        self.assertEqual(opt(subnet(1, 24, b"abc", 24)), octets[12 + len(QUESTION) :])

    def test_udp_limit(self) -> None:
        """512 without EDNS; with it what the client takes, from 512 to 1232."""
        for size, expected in ((0, 512), (511, 512), (512, 512), (1000, 1000), (1232, 1232), (4096, 1232)):
            self.assertEqual(expected, udp_limit(query(Edns(size, False, 0))))
        self.assertEqual(512, udp_limit(query()))

    def test_truncated(self) -> None:
        """`truncated` is TC=1 with nothing but question and OPT."""
        octets = truncated(query(Edns(1232, True, 0), flags=0x0100), ((10, bytes(24)),))
        self.assertEqual(packet(QUESTION, opt(option(10, bytes(24)), flags=0x8000), id=7, flags=0x8300, ar=1), octets)
        self.assertEqual(packet(id=7, flags=0x8200), truncated(query(), ((10, bytes(24)),)))


class CompressionTests(SynchronousTestCase):
    """Names in replies (RFC 1035, 4.1.4; RFC 3597, 4)."""

    def test_owners(self) -> None:
        """Owners point at the question or at what stands there already, whatever the case."""
        said = Reply(answer=[
            RR(from_text("WWW.example.org"), A, 1, b"aaaa"),
            RR(from_text("a.b.Example.ORG"), A, 1, b"bbbb"),
            RR(from_text("c.B.example.org"), A, 1, b"cccc"),
            RR(ROOT, A, 1, b"dddd"),
        ])  # fmt: skip
        head = pack("!HHIH", A, 1, 1, 4)
        expected = b"".join((
            b"\xc0\x0c", head, b"aaaa",
            b"\1a\1b\xc0\x10", head, b"bbbb",  # 49: a, 51: b
            b"\1c\xc0\x33", head, b"cccc",
            b"\0", head, b"dddd",
        ))  # fmt: skip
        self.assertEqual(expected, reply(query(), said, 512)[12 + len(QUESTION) :])

    def test_rdata(self) -> None:
        """Names in the data of RFC 1035's types are compressed, in all others they are not."""
        tail = bytes(20)
        host = from_text("h.example.org")
        small = b"\1h\xc0\x10"
        cases = [
            (NS, host, small),
            (CNAME, host, small),
            (PTR, host, small),
            (MX, b"\0\5" + host, b"\0\5" + small),
            (SOA, host + host + tail, small + b"\xc0\x2d" + tail),
            (SRV, bytes(6) + host, bytes(6) + host),
            (DNAME, host, host),
            (17, host + host, host + host),  # RP
            (64, b"\0\1" + host, b"\0\1" + host),  # SVCB
            (65280, host, host),
            (TXT, host, host),
        ]
        for rtype, rdata, expected in cases:
            with self.subTest(rtype):
                octets = reply(query(), Reply(answer=[RR(WWW, rtype, 0, rdata)]), 512)
                self.assertEqual(b"\xc0\x0c" + pack("!HHIH", rtype, 1, 0, len(expected)) + expected, octets[33:])

    def test_rdata_that_is_no_name(self) -> None:
        """Data that is not what its type says goes out as it is."""
        for rtype, rdata in ((NS, b""), (NS, b"\x40"), (MX, b"\1"), (SOA, b"\1a"), (CNAME, b"\3ab")):
            octets = reply(query(), Reply(answer=[RR(WWW, rtype, 0, rdata)]), 512)
            self.assertEqual(rdata, octets[45:])

    def test_no_target_behind_14_bits(self) -> None:
        """Names behind 0x3FFF are never pointed at; everything still reads right."""
        owners = [from_text(f"n{i}.z{i}.example.org") for i in range(2000)]
        answer = [RR(owner, A, 1, b"aaaa") for owner in owners for _ in range(1)] + [RR(owners[-1], AAAA, 1, bytes(16))]
        octets = reply(query(), Reply(answer=answer), 65535)
        self.assertGreater(len(octets), 0x8000)
        second = dns.message.from_wire(octets)
        self.assertEqual(owners + owners[-1:], [rrset.name.to_wire() for rrset in second.answer])


class TruncationTests(SynchronousTestCase):
    """What gives way, and who is told (RFC 2181, 9; RFC 9471)."""

    def test_whole_rrsets(self) -> None:
        """An RRset that does not fit is left out whole, TC=1, and nothing follows."""
        fits, large, small = addresses(WWW, 2), addresses(ZONE, 40), addresses(from_text("a.example.org"), 1)
        said = Reply(answer=[*fits, *large, *small], authority=small, additional=small)
        octets = reply(query(), said, 512)
        self.assertEqual((0x8200, (1, 2, 0, 0)), (flags(octets), counts(octets)))
        self.assertEqual(len(packet()) + 2 * 16, len(octets))

    def test_exact_fit(self) -> None:
        """A reply may be exactly as long as the limit, with OPT; one octet less and its RRset goes."""
        said = Reply(answer=addresses(WWW, 20))
        for edns in (None, Edns(512, False, 0)):
            whole = reply(query(edns), said, None)
            self.assertEqual(20, counts(whole)[1])
            self.assertEqual(whole, reply(query(edns), said, len(whole)))
            less = reply(query(edns), said, len(whole) - 1)
            self.assertEqual((0x8200, (1, 0, 0, int(edns is not None))), (flags(less), counts(less)))

    def test_authority(self) -> None:
        """An authority section that does not fit sets TC, and the answer stays."""
        said = Reply(answer=addresses(WWW, 1), authority=addresses(ZONE, 40), additional=addresses(WWW, 1))
        octets = reply(query(), said, 512)
        self.assertEqual((0x8200, (1, 1, 0, 0)), (flags(octets), counts(octets)))

    def test_additional(self) -> None:
        """Additional RRsets that do not fit go silently, and smaller ones behind them may stay."""
        hosts = [from_text(f"ns{i}.example.org") for i in range(3)]
        extra = [*addresses(hosts[0], 2), *addresses(hosts[1], 40), *addresses(hosts[1], 1), *addresses(hosts[2], 1)]
        extra.insert(42, RR(hosts[1], AAAA, 1, bytes(16)))
        octets = reply(query(), Reply(answer=addresses(WWW, 1), additional=extra), 512)
        second = dns.message.from_wire(octets)
        self.assertEqual((0x8000, (1, 1, 0, 4)), (flags(octets), counts(octets)))
        self.assertEqual(
            [(hosts[0], A, 2), (hosts[1], AAAA, 1), (hosts[2], A, 1)],
            [(rrset.name.to_wire(), rrset.rdtype, len(rrset)) for rrset in second.additional],
        )

    def test_glue(self) -> None:
        """Glue that does not fit sets TC=1; records behind the glue do not."""
        referral = [RR(ZONE, NS, 60, from_text("ns.example.org"))]
        glue, other = addresses(from_text("ns.example.org"), 2), addresses(from_text("x.example.org"), 40)
        cases = [
            (glue + other, 2, 0x8000, 2),
            (other + glue, 40, 0x8200, 0),
            (glue + other, 42, 0x8200, 2),
            (glue + other, 0, 0x8000, 2),
        ]
        for additional, required, expected, count in cases:
            octets = reply(query(), Reply(authority=referral, additional=additional, glue=required), 512)
            self.assertEqual((expected, (1, 0, 1, count)), (flags(octets), counts(octets)))

    def test_duplicates(self) -> None:
        """A record that stands twice in a section is written once; the case of owners does not matter."""
        one, other = addresses(WWW, 2)
        twice = [one, other, RR(WWW.upper(), A, 60, one.rdata), RR(WWW, AAAA, 60, one.rdata), one]
        octets = reply(query(), Reply(answer=twice, additional=[one]), 512)
        self.assertEqual((1, 3, 0, 1), counts(octets))

    def test_extended_errors_go_first(self) -> None:
        """Texts of extended errors give way to records, then the errors, these with TC=1 (RFC 8914, 3)."""
        asked = query(Edns(512, False, 0))
        bare = len(reply(asked, Reply(answer=addresses(WWW, 10)), None))
        said = Reply(answer=addresses(WWW, 10), ede=((3, "stale"),))
        cases = [
            (bare + 11, "stale", 0x8000),
            (bare + 10, None, 0x8000),
            (bare + 6, None, 0x8000),
            (bare + 5, "", 0x8200),
        ]
        for limit, text, expected in cases:
            octets = reply(asked, said, limit)
            second = dns.message.from_wire(octets)
            self.assertEqual([] if text == "" else [text], [o.text for o in second.options])
            self.assertEqual((expected, 10), (flags(octets), counts(octets)[1]))

    def test_long_text(self) -> None:
        """A text that has no room at all leaves its code behind."""
        second = dns.message.from_wire(reply(query(Edns(512, False, 0)), Reply(ede=((22, "x" * 70000),)), 65535))
        self.assertEqual([(22, None)], [(o.code, o.text) for o in second.options])

    def test_longest_question(self) -> None:
        """The longest question, an OPT record and its options fit where a reply has the least room."""
        octets = reply(
            query(Edns(0, False, 0), LONGEST), Reply(options=((10, bytes(40)),), answer=addresses(WWW, 40)), 512
        )
        self.assertEqual((0x8200, (1, 0, 0, 1)), (flags(octets), counts(octets)))

    def test_tcp(self) -> None:
        """No transport carries more than 65535 octets, whatever limit is given."""
        said = Reply(answer=[RR(WWW, TXT, 60, bytes(65000))], additional=[RR(ZONE, TXT, 60, bytes(600))])
        for limit in (65535, 70000, None):
            self.assertEqual((1, 1, 0, 0), counts(reply(query(), said, limit)))

    def test_never_longer(self) -> None:
        """Whatever the limit, the reply is not longer, and its counts are true."""
        asked = query(Edns(512, False, 0))
        said = Reply(answer=addresses(WWW, 9), authority=addresses(ZONE, 9), ede=((3, "x"),), options=((3, b"abc"),))
        for limit in range(12, 400):
            octets = reply(asked, said, limit)
            self.assertLessEqual(len(octets), limit)
            dns.message.from_wire(octets)


labels = st.binary(min_size=1, max_size=63)
names = (
    st.lists(labels | st.sampled_from([b"www", b"WWW", b"example", b"org"]), max_size=4)
    .map(lambda them: b"".join(bytes([len(one)]) + one for one in them) + ROOT)
    .filter(lambda name: len(name) <= 255)
)
known = st.sampled_from([WWW, ZONE, from_text("WWW.Example.org"), from_text("ns.example.org"), ROOT])
owners = names | known
rdatas = st.one_of(
    st.tuples(st.just(A), st.binary(min_size=4, max_size=4)),
    st.tuples(st.sampled_from([NS, CNAME, PTR, DNAME]), owners),
    st.tuples(st.just(MX), owners.map(lambda name: b"\0\1" + name)),
    st.tuples(st.just(SRV), owners.map(lambda name: bytes(6) + name)),
    st.tuples(st.just(SOA), st.tuples(owners, owners).map(lambda two: two[0] + two[1] + bytes(20))),
    st.tuples(st.just(TXT), st.binary(max_size=255).map(lambda text: bytes([len(text)]) + text)),
    st.tuples(st.just(65280), st.binary(max_size=400)),
)
records = st.builds(lambda owner, data: RR(owner, data[0], 60, data[1]), owners, rdatas)
sections = st.lists(records, max_size=8)
edns_options = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=24)), max_size=3)
packets = st.builds(
    lambda name, qtype, bits, options, extra: packet(
        name + pack("!HH", qtype, 1),
        *([] if options is None else [opt(*[option(*one) for one in options])]),
        *[record(*one) for one in extra],
        flags=bits,
        ar=(options is not None) + len(extra),
    ),
    owners,
    st.integers(0, 300),
    st.sampled_from([0, 0x100, 0x110, 0x2800, 0x20, 0x7FFF]),
    st.none() | edns_options,
    st.lists(st.tuples(owners | st.just(b"\xc0\x0c"), st.sampled_from([TXT, 41, 250, 65280])), max_size=2),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a packet that was well-formed before a few of its octets were changed, lost or added."""
    octets = bytearray(draw(packets))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(octets) - 1))
        change = draw(st.integers(0, 3))
        if change == 0:
            octets[at] = draw(st.integers(0, 255) | st.sampled_from([0x3F, 0x40, 0x80, 0xC0]))
        elif change == 1 and len(octets) > 1:
            del octets[at:]
        elif change == 2:
            octets[at:at] = draw(st.binary(max_size=6))
        else:
            octets[at:at] = octets[at : at + 12]
        if not octets:
            break
    return bytes(octets)


class PropertyTests(SynchronousTestCase):
    """What holds for every packet."""

    def whatever(self, octets: bytes) -> None:
        """Parse *octets*; what has a reply has one that dnspython reads."""
        got = parse(octets)
        if isinstance(got, Drop):
            return
        said = reply(got, Reply(ede=((18, "no"),)), udp_limit(got))
        self.assertEqual(octets[:2], said[:2])
        self.assertTrue(said[2] & 0x80)
        self.assertEqual(got.edns is not None, counts(said)[3] == 1)
        second = dns.message.from_wire(said) if not isinstance(got, Reject) or not got.opcode else None
        if isinstance(got, Query):
            assert second is not None
            self.assertEqual(got.question.asked, second.question[0].name.to_wire())
            self.assertEqual(octets[12 : 12 + len(got.question.asked) + 4], said[12:][: len(got.question.asked) + 4])

    @bounded
    @given(st.binary(max_size=200))
    def test_any_octets(self, octets: bytes) -> None:
        """Nothing raises, whatever the octets; replies can be read."""
        self.whatever(octets)
        self.whatever(pack("!HHHHHH", 1, 0, 1, 0, 0, 1) + octets)

    @bounded
    @given(mutated())
    def test_mutated(self, octets: bytes) -> None:
        """Nothing raises on packets that are almost right."""
        self.whatever(octets)

    @bounded
    @given(mutated())
    def test_second_opinion(self, octets: bytes) -> None:
        """What we and dnspython take means the same to both."""
        got = parse(octets)
        assume(isinstance(got, Query))
        assert isinstance(got, Query)
        try:
            second = dns.message.from_wire(octets)
        except (dns.exception.DNSException, ValueError, UnicodeError):
            return  # it looks into records and options that we skip
        self.assertEqual(second.id, got.id)
        self.assertEqual(second.flags & 0x0110, got.flags)
        question = second.question[0]
        self.assertEqual((question.name.to_wire(), question.rdtype), (got.question.asked, got.question.type))
        self.assertEqual(second.edns >= 0, got.edns is not None)
        self.assertEqual(second.had_tsig, got.tsig is not None)
        if got.edns is not None:
            self.assertEqual(second.payload, got.edns.size)
            self.assertEqual(bool(second.ednsflags & dns.flags.DO), got.edns.do)
            self.assertEqual([int(o.otype) for o in second.options], [code for code, _ in got.edns.options])

    @bounded
    @given(packets, sections, sections, sections, st.integers(0, 8), st.integers(12, 3000), st.integers(0, 3000))
    def test_replies(  # noqa: PLR0917 - hypothesis gives them by place
        self,
        octets: bytes,
        answer: list[RR],
        authority: list[RR],
        additional: list[RR],
        glue: int,
        limit: int,
        rcode: int,
    ) -> None:
        """Each reply can be read, fits, echoes the question, and says what it was told to, or TC=1."""
        got = parse(octets)
        assume(isinstance(got, Query))
        assert isinstance(got, Query)
        rcode &= 0xFFF if got.edns is not None else 0xF
        said = Reply(rcode, True, answer, authority, additional, glue=glue)
        out = reply(got, said, limit)
        self.assertLessEqual(len(out), limit)
        second = dns.message.from_wire(out, one_rr_per_rrset=True)
        self.assertEqual(got.id, second.id)
        if limit < 282 + 28:
            return
        self.assertEqual(got.question.asked, second.question[0].name.to_wire())
        self.assertEqual(rcode, second.rcode())
        lost = flags(out) & message.TC
        for told, needed, section in (
            (answer, answer, second.answer),
            (authority, authority, second.authority),
            (additional, additional[:glue], second.additional),
        ):
            # Without case: a compressed name in the data has that of the name it points at.
            seen = [
                ((rr.name.to_wire() or ROOT).lower(), rr.rdtype, (rr[0].to_wire() or b"").lower()) for rr in section
            ]
            self.assertLessEqual(set(seen), {(rr.owner.lower(), rr.type, rr.rdata.lower()) for rr in told})
            self.assertLessEqual(len(seen), len({(rr.owner.lower(), rr.type, rr.rdata) for rr in told}))
            if not lost:
                self.assertLessEqual({(rr.owner.lower(), rr.type, rr.rdata.lower()) for rr in needed}, set(seen))
        if lost:
            self.assertGreater(len(reply(got, said, None)), limit)
