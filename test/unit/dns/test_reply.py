"""Packets out: `jitsu_tw.dns.reply`, with dnspython as the second opinion."""

from __future__ import annotations

from struct import pack, unpack_from

import dns.edns
import dns.flags
import dns.message
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.message import Drop, Edns, Query, Reject, parse
from jitsu_tw.dns.reply import MOST_HOPS, TC, Reply, truncated, udp_limit, write, write_stream
from jitsu_tw.dns.wire import ROOT, RR, Question, from_text
from test.support.packets import (
    AAAA,
    CNAME,
    COOKIE,
    DNAME,
    LONGEST,
    MX,
    NS,
    PTR,
    QUESTION,
    SOA,
    SRV,
    TXT,
    WWW,
    ZONE,
    A,
    bounded,
    mutated,
    opt,
    option,
    owners,
    packet,
    packets,
    record,
    subnet,
)


def query(edns: Edns | None = None, asked: bytes = WWW, type: int = A, flags: int = 0) -> Query:
    """Return a query."""
    return Query(7, flags, Question(asked, type), edns)


def most_hops(octets: bytes) -> int:
    """Return the most pointers that a name of a reply, whose records have names alone as data, takes to read."""
    most, at, places = 0, 12, []
    for number in range(sum(counts(octets))):
        places.append(at)
        at = end(octets, at) + 4
        if number:
            (size,) = unpack_from("!H", octets, at + 4)
            places.append(at + 6)
            at += 6 + size
    for place in places:
        hops, here = 0, place
        while size := octets[here]:
            if size >= 0xC0:
                here, hops = unpack_from("!H", octets, here)[0] & 0x3FFF, hops + 1
            else:
                here += size + 1
        most = max(most, hops)
    return most


def end(octets: bytes, at: int) -> int:
    """Return where the name at *at* ends."""
    while 0 < octets[at] < 0xC0:
        at += octets[at] + 1
    return at + (2 if octets[at] else 1)


def addresses(owner: bytes, count: int, first: int = 0) -> list[RR]:
    """Return an RRset of *count* A records."""
    return [RR(owner, A, 60, pack("!I", first + i)) for i in range(count)]


def counts(octets: bytes) -> tuple[int, ...]:
    """Return the four counts of a header."""
    return unpack_from("!HHHH", octets, 4)


def flags(octets: bytes) -> int:
    """Return the flags of a header."""
    return int(unpack_from("!H", octets, 2)[0])


class ReplyTests(SynchronousTestCase):
    """The form of replies."""

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
            octets = write(query(flags=asked), said, 512)
            self.assertEqual((7, expected), unpack_from("!HH", octets))
            self.assertEqual((1, 0, 0, 0), counts(octets))

    def test_question_is_echoed(self) -> None:
        """The question comes back octet for octet, its case included (0x20)."""
        octets = packet(from_text("wWw.ExAmPlE.oRg") + pack("!HH", 1, 1))
        got = parse(octets)
        assert isinstance(got, Query)
        said = write(got, Reply(answer=addresses(WWW, 1)), 512)
        self.assertEqual(octets[12:], said[12 : len(octets)])
        self.assertEqual(b"\xc0\x0c" + pack("!HHIHI", 1, 1, 60, 4, 0), said[len(octets) :])

    def test_reject_is_echoed(self) -> None:
        """FORMERR has the question and an OPT record if the query's could be read."""
        octets = packet(QUESTION, opt(flags=0x8000), b"\0", ar=1)
        got = parse(octets)
        assert isinstance(got, Reject)
        said = write(got, Reply(), udp_limit(got))
        self.assertEqual(packet(QUESTION, opt(flags=0x8000), flags=0x8101, ar=1), said)
        self.assertEqual(0x8105, flags(write(got, Reply(rcode=5), 512)))
        unreadable = parse(packet(b"\x40"))
        assert isinstance(unreadable, Reject)
        self.assertEqual(pack("!HHHHHH", 0x1234, 0x8101, 0, 0, 0, 0), write(unreadable, Reply(), 512))

    def test_notimp(self) -> None:
        """The opcode comes back with NOTIMP, and the question and an OPT record with it."""
        for opcode in range(1, 16):
            got = parse(packet(QUESTION, record(type=SOA), opt(), flags=opcode << 11, an=1, ar=1))
            assert isinstance(got, Reject)
            octets = write(got, Reply(), udp_limit(got))
            self.assertEqual((0x8004 | opcode << 11, (1, 0, 0, 1)), (flags(octets), counts(octets)))

    def test_badvers(self) -> None:
        """BADVERS has version 0, the query's DO, and no options of the query's."""
        for version in (1, 2, 100, 255):
            got = parse(packet(QUESTION, opt(subnet(9, 9, b""), b"\xff", version=version, flags=0x8000), ar=1))
            assert isinstance(got, Reject)
            octets = write(got, Reply(), udp_limit(got))
            second = dns.message.from_wire(octets)
            self.assertEqual((16, 0, ()), (second.rcode(), second.edns, second.options))
            self.assertEqual(dns.flags.DO, second.ednsflags & 0xFFFF)
            self.assertEqual(0x8100, flags(octets))

    def test_cookie_without_question(self) -> None:
        """A cookie without a question is answered with a server cookie and nothing else (RFC 7873, 5.4)."""
        got = parse(packet(opt(option(10, COOKIE)), qd=0, ar=1))
        assert isinstance(got, Reject)
        second = dns.message.from_wire(write(got, Reply(options=((10, bytes(24)),)), 512))
        self.assertEqual((0, []), (second.rcode(), second.question))
        self.assertEqual([dns.edns.CookieOption(bytes(8), bytes(16))], list(second.options))

    def test_opt_if_and_only_if_asked(self) -> None:
        """There is an OPT record if the query had one: 1232, version 0, DO copied."""
        self.assertEqual(0, counts(write(query(), Reply(options=((3, b"x"),), ede=((18, "no"),)), 512))[3])
        for do in (False, True):
            octets = write(query(Edns(4096, do=do)), Reply(), 512)
            self.assertEqual(opt(flags=0x8000 * do), octets[-11:])

    def test_extended_rcode(self) -> None:
        """The upper bits of the rcode are in the OPT record; without one it is SERVFAIL, not NOERROR."""
        second = dns.message.from_wire(write(query(Edns(512)), Reply(rcode=23), 512))
        self.assertEqual(23, second.rcode())
        self.assertEqual(2, dns.message.from_wire(write(query(), Reply(rcode=16), 512)).rcode())

    def test_options(self) -> None:
        """Options and extended errors are in the OPT record, as dnspython reads them."""
        said = Reply(ede=((18, "prohibited: \u00e9"), (22, "")), options=((3, b"ns1"), (10, bytes(24))))
        second = dns.message.from_wire(write(query(Edns(1232)), said, 1232))
        self.assertEqual([3, 10, 15, 15], [int(o.otype) for o in second.options])
        self.assertEqual([(18, "prohibited: \u00e9"), (22, None)], [(o.code, o.text) for o in second.options[2:]])

    def test_client_subnet(self) -> None:
        """The client's subnet comes back with scope 0; what else it sent does not."""
        ecs = subnet(1, 24, b"\xc0\0\2")
        got = parse(packet(QUESTION, opt(option(12, bytes(9)), option(3), ecs, option(10, COOKIE)), ar=1))
        assert isinstance(got, Query)
        self.assertEqual(opt(ecs), write(got, Reply(), 1232)[12 + len(QUESTION) :])
        self.assertEqual(opt(ecs, option(3, b"x")), write(got, Reply(options=((3, b"x"),)), 1232)[12 + len(QUESTION) :])

    def test_no_client_subnet(self) -> None:
        """The subnet that stands for none (what ``dig +subnet=0`` sends) does not come back."""
        got = parse(packet(QUESTION, opt(subnet(0, 0, b"")), ar=1))
        assert isinstance(got, Query)
        self.assertEqual(opt(), write(got, Reply(), 1232)[12 + len(QUESTION) :])

    def test_client_subnet_of_the_caller(self) -> None:
        """A caller that has its own idea of the scope is not contradicted."""
        got = query(Edns(1232, options=((8, b"\0\1\x18\0abc"),)))
        octets = write(got, Reply(options=((8, b"\0\1\x18\x18abc"),)), 1232)
        self.assertEqual(opt(subnet(1, 24, b"abc", 24)), octets[12 + len(QUESTION) :])

    def test_udp_limit(self) -> None:
        """512 without EDNS; with it what the client takes, from 512 to 1232."""
        for size, expected in ((0, 512), (511, 512), (512, 512), (1000, 1000), (1232, 1232), (4096, 1232)):
            self.assertEqual(expected, udp_limit(query(Edns(size))))
        self.assertEqual(512, udp_limit(query()))

    def test_truncated(self) -> None:
        """`truncated` is TC=1 with nothing but question and OPT."""
        octets = truncated(query(Edns(1232, do=True), flags=0x0100), ((10, bytes(24)),))
        expected = packet(QUESTION, opt(option(10, bytes(24)), flags=0x8000), ident=7, flags=0x8300, ar=1)
        self.assertEqual(expected, octets)
        self.assertEqual(packet(ident=7, flags=0x8200), truncated(query(), ((10, bytes(24)),)))


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
        self.assertEqual(expected, write(query(), said, 512)[12 + len(QUESTION) :])

    def test_chains_of_pointers(self) -> None:
        """No name takes more than `MOST_HOPS` pointers to read, however deep the names are nested."""
        names = [ZONE]
        for number in range(60):
            names.append(bytes([1, 97 + number % 26]) + names[-1])
        deep = [RR(name, CNAME, 0, name) for name in names]
        octets = write(query(), Reply(answer=deep), None)
        self.assertEqual(MOST_HOPS, most_hops(octets))
        self.assertEqual(names, [rrset.name.to_wire() for rrset in dns.message.from_wire(octets).answer])
        for octets in write_stream(query(), deep):
            self.assertLessEqual(most_hops(octets), MOST_HOPS)

    @bounded
    @given(st.lists(st.integers(0, 40), max_size=40), st.integers(100, 2000))
    def test_nested_names(self, depths: list[int], limit: int) -> None:
        """Nested names in any order, cut anywhere, are read back as they were, within `MOST_HOPS` pointers each."""
        labels = [b"\1" + b"abcdefgh"[number % 8 : number % 8 + 1] for number in range(40)]
        told = [RR(b"".join(labels[-depth:] if depth else []) + ROOT, NS, 0, WWW) for depth in depths]
        octets = write(query(), Reply(answer=told), limit)
        self.assertLessEqual(most_hops(octets), MOST_HOPS)
        seen = [rr.name.to_wire() for rr in dns.message.from_wire(octets, one_rr_per_rrset=True).answer]
        self.assertEqual(list(dict.fromkeys(one.owner for one in told))[: len(seen)], seen)

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
                octets = write(query(), Reply(answer=[RR(WWW, rtype, 0, rdata)]), 512)
                self.assertEqual(b"\xc0\x0c" + pack("!HHIH", rtype, 1, 0, len(expected)) + expected, octets[33:])

    def test_rdata_that_is_no_name(self) -> None:
        """Data that is malformed for its type is sent unchanged."""
        for rtype, rdata in ((NS, b""), (NS, b"\x40"), (MX, b"\1"), (SOA, b"\1a"), (CNAME, b"\3ab")):
            octets = write(query(), Reply(answer=[RR(WWW, rtype, 0, rdata)]), 512)
            self.assertEqual(rdata, octets[45:])

    def test_no_target_behind_14_bits(self) -> None:
        """Names behind 0x3FFF are never pointed at; everything still reads right."""
        owners = [from_text(f"n{i}.z{i}.example.org") for i in range(2000)]
        answer = [RR(owner, A, 1, b"aaaa") for owner in owners for _ in range(1)] + [RR(owners[-1], AAAA, 1, bytes(16))]
        octets = write(query(), Reply(answer=answer), 65535)
        self.assertGreater(len(octets), 0x8000)
        second = dns.message.from_wire(octets)
        self.assertEqual(owners + owners[-1:], [rrset.name.to_wire() for rrset in second.answer])


class TruncationTests(SynchronousTestCase):
    """What is left out, and when TC is set (RFC 2181, 9; RFC 9471)."""

    def test_whole_rrsets(self) -> None:
        """An RRset that does not fit is left out whole, TC=1, and nothing follows."""
        fits, large, small = addresses(WWW, 2), addresses(ZONE, 40), addresses(from_text("a.example.org"), 1)
        said = Reply(answer=[*fits, *large, *small], authority=small, additional=small)
        octets = write(query(), said, 512)
        self.assertEqual((0x8200, (1, 2, 0, 0)), (flags(octets), counts(octets)))
        self.assertEqual(len(packet()) + 2 * 16, len(octets))

    def test_exact_fit(self) -> None:
        """A reply may be exactly as long as the limit, with OPT; one octet less and its RRset goes."""
        said = Reply(answer=addresses(WWW, 20))
        for edns in (None, Edns(512)):
            whole = write(query(edns), said, None)
            self.assertEqual(20, counts(whole)[1])
            self.assertEqual(whole, write(query(edns), said, len(whole)))
            less = write(query(edns), said, len(whole) - 1)
            self.assertEqual((0x8200, (1, 0, 0, int(edns is not None))), (flags(less), counts(less)))

    def test_authority(self) -> None:
        """An authority section that does not fit sets TC, and the answer stays."""
        said = Reply(answer=addresses(WWW, 1), authority=addresses(ZONE, 40), additional=addresses(WWW, 1))
        octets = write(query(), said, 512)
        self.assertEqual((0x8200, (1, 1, 0, 0)), (flags(octets), counts(octets)))

    def test_additional(self) -> None:
        """Additional RRsets that do not fit go silently, and smaller ones behind them may stay."""
        hosts = [from_text(f"ns{i}.example.org") for i in range(3)]
        extra = [*addresses(hosts[0], 2), *addresses(hosts[1], 40), *addresses(hosts[1], 1), *addresses(hosts[2], 1)]
        extra.insert(42, RR(hosts[1], AAAA, 1, bytes(16)))
        octets = write(query(), Reply(answer=addresses(WWW, 1), additional=extra), 512)
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
            octets = write(query(), Reply(authority=referral, additional=additional, glue=required), 512)
            self.assertEqual((expected, (1, 0, 1, count)), (flags(octets), counts(octets)))

    def test_duplicates(self) -> None:
        """A record that stands twice in a section is written once; the case of owners does not matter."""
        one, other = addresses(WWW, 2)
        twice = [one, other, RR(WWW.upper(), A, 60, one.rdata), RR(WWW, AAAA, 60, one.rdata), one]
        octets = write(query(), Reply(answer=twice, additional=[one]), 512)
        self.assertEqual((1, 3, 0, 1), counts(octets))

    def test_extended_errors_go_first(self) -> None:
        """Texts of extended errors give way to records, then the errors, these with TC=1 (RFC 8914, 3)."""
        asked = query(Edns(512))
        bare = len(write(asked, Reply(answer=addresses(WWW, 10)), None))
        said = Reply(answer=addresses(WWW, 10), ede=((3, "stale"),))
        cases = [
            (bare + 11, "stale", 0x8000),
            (bare + 10, None, 0x8000),
            (bare + 6, None, 0x8000),
            (bare + 5, "", 0x8200),
        ]
        for limit, text, expected in cases:
            octets = write(asked, said, limit)
            second = dns.message.from_wire(octets)
            self.assertEqual([] if text == "" else [text], [o.text for o in second.options])
            self.assertEqual((expected, 10), (flags(octets), counts(octets)[1]))

    def test_long_text(self) -> None:
        """A text that does not fit leaves its code behind."""
        second = dns.message.from_wire(write(query(Edns(512)), Reply(ede=((22, "x" * 70000),)), 65535))
        self.assertEqual([(22, None)], [(o.code, o.text) for o in second.options])

    def test_longest_question(self) -> None:
        """The longest question, an OPT record and its options fit into the shortest limit of a reply."""
        octets = write(
            query(Edns(0), LONGEST), Reply(options=((10, bytes(40)),), answer=addresses(WWW, 40)), 512
        )
        self.assertEqual((0x8200, (1, 0, 0, 1)), (flags(octets), counts(octets)))

    def test_tcp(self) -> None:
        """No transport carries more than 65535 octets, whatever limit is given."""
        said = Reply(answer=[RR(WWW, TXT, 60, bytes(65000))], additional=[RR(ZONE, TXT, 60, bytes(600))])
        for limit in (65535, 70000, None):
            self.assertEqual((1, 1, 0, 0), counts(write(query(), said, limit)))

    def test_never_longer(self) -> None:
        """Whatever the limit, the reply is not longer, and its counts are true."""
        asked = query(Edns(512))
        said = Reply(answer=addresses(WWW, 9), authority=addresses(ZONE, 9), ede=((3, "x"),), options=((3, b"abc"),))
        for limit in range(12, 400):
            octets = write(asked, said, limit)
            self.assertLessEqual(len(octets), limit)
            dns.message.from_wire(octets)


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


class PropertyTests(SynchronousTestCase):
    """What holds for every packet and every reply."""

    def whatever(self, octets: bytes) -> None:
        """Parse *octets*; what has a reply has one that dnspython reads."""
        got = parse(octets)
        if isinstance(got, Drop):
            return
        said = write(got, Reply(ede=((18, "no"),)), udp_limit(got))
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
    @given(packets, sections, sections, sections, st.integers(0, 8), st.integers(12, 3000), st.integers(0, 3000))
    def test_replies(
        self,
        octets: bytes,
        answer: list[RR],
        authority: list[RR],
        additional: list[RR],
        glue: int,
        limit: int,
        rcode: int,
    ) -> None:
        """Each reply can be read, fits, echoes the question, and has the given content, or TC=1."""
        got = parse(octets)
        assume(isinstance(got, Query))
        assert isinstance(got, Query)
        rcode &= 0xFFF if got.edns is not None else 0xF
        said = Reply(rcode, aa=True, answer=answer, authority=authority, additional=additional, glue=glue)
        out = write(got, said, limit)
        self.assertLessEqual(len(out), limit)
        second = dns.message.from_wire(out, one_rr_per_rrset=True)
        self.assertEqual(got.id, second.id)
        if limit < 282 + 28:
            return
        self.assertEqual(got.question.asked, second.question[0].name.to_wire())
        self.assertEqual(rcode, second.rcode())
        lost = flags(out) & TC
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
            self.assertGreater(len(write(got, said, None)), limit)
