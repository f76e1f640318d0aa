"""
Packets in: `jitsu_tw.dns.message`, with dnspython as the second opinion.

Packets of the tables are put together by hand, so that the wrong ones can be as wrong as they should.
"""

from __future__ import annotations

import sys
from functools import partial
from struct import pack
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.tsigkeyring
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import message
from jitsu_tw.dns.message import SIG, Drop, Edns, Query, Reject, parse
from jitsu_tw.dns.wire import ROOT, Source, from_text
from test.support.packets import (
    COOKIE,
    LONGEST,
    QUESTION,
    SOA,
    TOO_LONG,
    WWW,
    bounded,
    mutated,
    opt,
    option,
    packet,
    record,
    subnet,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def lines_of(call: Callable[[], object]) -> int:
    """Return how many lines Python executes in *call*: a measure of its cost that does not hang on the machine."""
    count = 0

    def line(_frame: object, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


#: What a SIG(0) covers, its algorithm, labels, TTL, expiry, inception, key tag, signer and signature (RFC 2931, 3).
SIGNATURE: Final = pack("!HBBIIIH", 0, 8, 0, 0, 0, 0, 0) + b"\0sig"


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
        self.assertEqual(Edns(4096, do=True, options=((10, COOKIE), (3, b""))), got.edns)

    def test_option(self) -> None:
        """Of options that stand twice, the first one counts."""
        edns = Edns(512, options=((10, b"1"), (10, b"2")))
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
            "SIG(0)": packet(QUESTION, record(type=SIG, data=SIGNATURE), ar=1),
            "compressed owner": packet(QUESTION, record(b"\xc0\x0c", type=SIG, data=SIGNATURE), ar=1),
            "partly compressed owner": packet(QUESTION, record(b"\3ftp\xc0\x10", type=SIG, data=SIGNATURE), ar=1),
            "OPT not last": packet(QUESTION, opt(), record(type=SIG, data=SIGNATURE), ar=2),
            "IXFR": packet(WWW + pack("!HH", 251, 1), record(type=SOA, data=bytes(22)), ns=1),
            "IXFR with EDNS": packet(WWW + pack("!HH", 251, 1), record(type=SOA, data=bytes(22)), opt(), ns=1, ar=1),
            "padding": packet(QUESTION, opt(option(12, bytes(200))), ar=1),
            "unknown option": packet(QUESTION, opt(option(65001, b"x")), ar=1),
            "client cookie": packet(QUESTION, opt(option(10, bytes(8))), ar=1),
            "shortest server cookie": packet(QUESTION, opt(option(10, bytes(16))), ar=1),
            "longest server cookie": packet(QUESTION, opt(option(10, bytes(40))), ar=1),
            "second cookie, which is ignored": packet(QUESTION, opt(option(10, bytes(8)), option(10, b"1")), ar=1),
            "32 options": packet(QUESTION, opt(*[option(65001)] * 32), ar=1),
            "64 records": packet(QUESTION, opt(), record(type=SIG, data=SIGNATURE) * 63, ar=64),
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
        echo, silent, plain, edns = QUESTION, b"", None, Edns(1232)
        ecs = "client subnet: "
        sig = partial(record, type=SIG, data=SIGNATURE)  # nothing is wrong with it but its owner
        cases = {
            "header only": (packet()[:12], silent, plain),
            "name cut": (packet()[:20], silent, plain),
            "type cut": (packet()[:-3], silent, plain),
            "class cut": (packet()[:-1], silent, plain),
            "trailing octet": (packet(QUESTION, b"\0"), echo, plain),
            "trailing octet after OPT": (packet(QUESTION, opt(), b"\0", ar=1), echo, edns),
            "OPT that is not counted": (packet(QUESTION, opt()), echo, plain),
            "record missing": (packet(ar=1), echo, plain),
            "record that no query has": (packet(QUESTION, record(), ar=1), echo, plain),
            "record that no query has, behind OPT": (packet(QUESTION, opt(), record(), ar=2), echo, edns),
            "record after OPT missing": (packet(QUESTION, opt(), ar=2), echo, edns),
            "record's data cut": (packet(QUESTION, record()[:-1], ar=1), echo, plain),
            "record's head cut": (packet(QUESTION, record()[:-6], ar=1), echo, plain),
            "label type 0x40": (packet(b"\x41" + QUESTION), silent, plain),
            "label of 64 octets": (packet(b"\x40" + b"a" * 64 + ROOT + pack("!HH", 1, 1)), silent, plain),
            "owner with a label of 64 octets": (
                packet(QUESTION, sig(b"\x40" + b"a" * 64 + ROOT), ar=1),
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
            "longer than any query": (packet(QUESTION, opt(option(12, bytes(4096))), ar=1), silent, plain),
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
                Edns(1232, options=((10, COOKIE),)),
            ),
            "OPT cut": (packet(QUESTION, opt(option(3, b"abc"))[:-1], ar=1), echo, plain),
            "two OPT": (packet(QUESTION, opt(), opt(size=512), ar=2), echo, edns),
            "OPT with an owner": (packet(QUESTION, opt(owner=WWW), ar=1), echo, plain),
            "OPT in the answer": (packet(QUESTION, opt(), an=1), echo, plain),
            "option's head cut": (packet(QUESTION, opt(b"\0\3\0"), ar=1), echo, edns),
            "option's data cut": (packet(QUESTION, opt(option(3, b"abc")[:-1]), ar=1), echo, edns),
            "33 options": (packet(QUESTION, opt(*[option(65001)] * 33), ar=1), echo, edns),
            "65 records": (packet(QUESTION, opt(), record() * 64, ar=65), echo, plain),
            "64 questions, EDNS": (packet(QUESTION * 64, opt(), qd=64, ar=1), silent, edns),
            "65 questions, EDNS": (packet(QUESTION * 65, opt(), qd=65, ar=1), silent, plain),
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
                packet(QUESTION, sig(pack("!H", 0xC000 + 12 + len(QUESTION))), ar=1),
                echo,
                plain,
            ),
            "owner with a pointer ahead": (packet(QUESTION, sig(b"\xc1\0"), ar=1), echo, plain),
            "owner with a pointer into the header": (packet(QUESTION, sig(b"\xc0\0"), ar=1), echo, plain),
            "owner with label type 0x40": (packet(QUESTION, sig(b"\x41a\0"), ar=1), echo, plain),
            "owner too long": (packet(QUESTION, sig(TOO_LONG), ar=1), echo, plain),
            "TSIG before OPT": (packet(QUESTION, record(type=250, cls=255), opt(), ar=2), echo, plain),
            "two TSIG": (packet(QUESTION, *[record(type=250, cls=255)] * 2, ar=2), echo, plain),
            "malformed before BADVERS": (packet(QUESTION, opt(version=1), b"\0", ar=1), echo, Edns(1232, version=1)),
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
            self.assertEqual(Edns(1232), got.edns)
        got = parse(packet(b"\x40", flags=5 << 11))
        assert isinstance(got, Reject)
        self.assertEqual((message.NOTIMP, b""), (got.rcode, got.question))

    def test_badvers(self) -> None:
        """An EDNS version above 0 is BADVERS; its options are not read."""
        for version in (1, 2, 100, 255):
            got = parse(packet(QUESTION, opt(subnet(9, 9, b""), b"\xff", version=version, flags=0x8000), ar=1))
            assert isinstance(got, Reject)
            self.assertEqual((message.BADVERS, QUESTION), (got.rcode, got.question))
            self.assertEqual(Edns(1232, do=True, version=version), got.edns)

    def test_cookie_without_question(self) -> None:
        """QDCOUNT=0 with a cookie asks for a server cookie (RFC 7873, 5.4)."""
        got = parse(packet(opt(option(10, COOKIE)), qd=0, ar=1))
        assert isinstance(got, Reject)
        self.assertEqual((message.NOERROR, b""), (got.rcode, got.question))
        self.assertEqual(Edns(1232, options=((10, COOKIE),)), got.edns)

    def test_tsig(self) -> None:
        """A signed query has the offset of its TSIG record (compressed owner and all), for its verification."""
        asked = dns.message.make_query("www.example.org", "A", use_edns=0)
        asked.use_tsig(dns.tsigkeyring.from_text({"key.example.net": "c2VjcmV0"}))
        octets = asked.to_wire()
        got = parse(octets)
        assert isinstance(got, Query)
        assert got.tsig is not None
        self.assertEqual(from_text("key.example.net") + pack("!HH", 250, 255), octets[got.tsig :][:21])
        self.assertIsNot(None, got.edns)

    def test_cost_is_bounded(self) -> None:
        """Packets of 64 KiB that are made to be slow take fewer lines of Python than they could have octets."""
        name = b"\1a" * 126 + ROOT
        cases = {
            "labels": packet(b"\1a" * 32761),
            "pointers": packet(QUESTION, record(b"\xc0\x0c", data=b"") * 5000, ar=5000),
            "roots": packet(QUESTION, record(ROOT, data=b"") * 5900, ar=5900),
            "counts": packet(QUESTION, record(ROOT, data=b"") * 5900, an=65535, ns=65535, ar=65535),
            "labels in owners": packet(QUESTION, record(name, data=bytes(740)) * 64, ar=64),
            "questions": packet((ROOT + bytes(4)) * 13100, qd=13100),
            "labels in questions": packet((name + bytes(4)) * 64, record(name, data=bytes(500)) * 60, qd=64, ar=60),
            "options": packet(QUESTION, opt(option(3) * 16000), ar=1),
            "subnets": packet(QUESTION, opt(subnet(1, 0, b"") * 8000), ar=1),
            "cookies": packet(QUESTION, opt(option(10, COOKIE), option(10) * 16000), ar=1),
            "UPDATE": packet(QUESTION, record(ROOT, data=b"") * 5900, flags=5 << 11, ns=5900),
        }
        for what, octets in cases.items():
            with self.subTest(what):
                self.assertGreater(65536, len(octets))
                self.assertGreater(65536, lines_of(partial(parse, octets)))


class PropertyTests(SynchronousTestCase):
    """What holds for every packet."""

    @bounded
    @given(st.binary(max_size=200))
    def test_any_octets(self, octets: bytes) -> None:
        """Nothing raises, whatever the octets; what has an id keeps it."""
        got = parse(pack("!HHHHHH", 1, 0, 1, 0, 0, 1) + octets)
        assert isinstance(got, (Query, Reject))
        self.assertEqual(1, got.id)
        self.assertIsInstance(parse(octets), (Query, Reject, Drop))

    @bounded
    @given(mutated())
    def test_second_opinion(self, octets: bytes) -> None:
        """A packet that `parse` and dnspython accept has the same meaning in both."""
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
