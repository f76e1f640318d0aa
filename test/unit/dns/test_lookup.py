"""What the answer to each question is; cases are tables, named after RFC terms."""

from __future__ import annotations

from ipaddress import ip_address

import dns.rdatatype
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.names.dns import SOA
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.lookup import MAX_CHAIN, Found, NoData, NxDomain, Refused, TooLong, Zones
from jitsu_tw.dns.wire import ROOT, RR, from_text, to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ZoneError
from test.support.zones import HEAD, ZoneTestCase, listing, say

#: RFC 4592, 2.2.1, with an additional SOA and SRV data.
RFC4592 = """$ORIGIN example.
example.                 3600 IN  SOA   ns.example.com. hostmaster.example.com. 1 3600 600 86400 300
example.                 3600     NS    ns.example.com.
example.                 3600     NS    ns.example.net.
*.example.               3600     TXT   "this is a wildcard"
*.example.               3600     MX    10 host1.example.
sub.*.example.           3600     TXT   "this is not a wildcard"
host1.example.           3600     A     192.0.2.1
_ssh._tcp.host1.example. 3600     SRV   0 0 22 host1.example.
_ssh._tcp.host2.example. 3600     SRV   0 0 22 host2.example.
subdel.example.          3600     NS    ns.example.com.
subdel.example.          3600     NS    ns.example.net.
"""


class LookupTests(ZoneTestCase):
    """RFC 1034, 4.3.2, and what later RFCs made of it."""

    def test_rfc4592_example(self) -> None:
        """The answers that RFC 4592, 2.2.1 lists for its example zone, and those that follow from 2.2.2 and 2.2.3."""
        wild = '"this is a wildcard"'
        self.check(
            self.zones(RFC4592),
            [
                ("host3.example", "MX", "Found host3.example MX 10 host1.example. + host1.example A 192.0.2.1"),
                ("host3.example", "A", "NoData"),
                ("foo.bar.example", "TXT", f"Found foo.bar.example TXT {wild}"),
                ("host1.example", "MX", "NoData"),
                ("sub.*.example", "MX", "NoData"),
                ("sub.*.example", "TXT", 'Found sub.*.example TXT "this is not a wildcard"'),
                ("_telnet._tcp.host1.example", "SRV", "NxDomain"),
                (
                    "host.subdel.example",
                    "A",
                    ("Referral -> subdel.example NS ns.example.com.; subdel.example NS ns.example.net. glue"),
                ),
                ("ghost.*.example", "MX", "NxDomain"),
                ("*.example", "TXT", f"Found *.example TXT {wild}"),
                ("host2.example", "TXT", "NoData"),
                ("x.host2.example", "TXT", "NxDomain"),
                ("_tcp.host2.example", "TXT", "NoData"),
                ("x.host1.example", "TXT", "NxDomain"),
                ("example", "TXT", "NoData"),
            ],
        )

    def test_wildcard_cname(self) -> None:
        """A wildcard's CNAME is followed, and owned by the name in the question (RFC 4592, 4.5 and 3.3.2)."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + "* CNAME a\na A 192.0.2.1\n")
        self.check(
            zones,
            [
                ("X.b.example", "A", "Found X.b.example CNAME a.example.; a.example A 192.0.2.1"),
                ("x.example", "TXT", "NoData x.example CNAME a.example."),
                ("x.a.example", "A", "NxDomain"),
                ("*.example", "CNAME", "Found *.example CNAME a.example."),
            ],
        )

    def test_wildcard_without_records(self) -> None:
        """A wildcard that is an empty non-terminal answers for names, with no data."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + "a.*.w A 192.0.2.1\n")
        self.check(
            zones, [("x.w.example", "A", "NoData"), ("a.x.w.example", "A", "NoData"), ("v.example", "A", "NxDomain")]
        )

    def test_ent(self) -> None:
        """A name with names below it exists: NODATA (RFC 8020, 3); one beside or below does not."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + "a.b.c A 192.0.2.1\n")
        self.check(
            zones,
            [
                ("c.example", "A", "NoData"),
                ("b.c.example", "NS", "NoData"),
                ("b.c.example", "ANY", "NoData"),
                ("x.c.example", "A", "NxDomain"),
                ("x.a.b.c.example", "A", "NxDomain"),
                ("b.example", "A", "NxDomain"),
            ],
        )

    def test_delegation(self) -> None:
        """At a cut and below it the answer is a referral, whatever else the file has there; DS is the parent's."""
        zones = self.zones(
            "$ORIGIN example.\n" + HEAD + "@ NS ns\nns A 192.0.2.1\n"
            "sub NS ns.sub\nsub NS NS.other\nsub NS ns.elsewhere.test.\nsub DS 1 8 2 " + "ab" * 32 + "\n"
            "sub TXT hidden\nns.sub A 192.0.2.2\nns.sub AAAA 2001:db8::2\nother NS ns.other\nns.other A 192.0.2.3\n"
            "*.sub A 192.0.2.9\nb.sub NS ns\n",
        )
        referral = (
            "Referral -> sub.example NS ns.sub.example.; sub.example NS NS.other.example.; "
            "sub.example NS ns.elsewhere.test. glue ns.sub.example A 192.0.2.2; ns.sub.example AAAA 2001:db8::2 "
            "+ ns.other.example A 192.0.2.3"
        )
        self.check(
            zones,
            [
                ("sub.example", "NS", referral),
                ("sub.example", "TXT", referral),
                ("sub.example", "ANY", referral),
                ("ns.sub.example", "A", referral),
                ("x.sub.example", "A", referral),
                ("x.b.sub.example", "A", referral),
                ("x.sub.example", "DS", referral),
                ("sub.example", "DS", f"Found sub.example DS 1 8 2 {'ab' * 32}"),
                ("other.example", "DS", "NoData"),
                ("example", "NS", "Found example NS ns.example. + ns.example A 192.0.2.1"),
                ("example", "DS", "NoData"),
            ],
        )

    def test_additional(self) -> None:
        """Addresses come with NS, MX and SRV, once each; glue only with NS; never those of a VM, but with NS."""
        zones = self.zones(
            "$ORIGIN example.\n" + HEAD + "@ NS vm\n@ NS ns.sub\n@ MX 1 A\n@ MX 2 a\n@ MX 3 vm\n@ MX 4 ns.sub\n"
            "@ MX 5 b.test.\n@ MX 6 nowhere\ns SRV 0 0 1 a\ns SRV 0 0 2 a\nn MX 0 .\n"
            "a A 192.0.2.1\na AAAA 2001:db8::1\n"
            "sub NS ns.sub\nns.sub A 192.0.2.2\n",
            "$ORIGIN b.test.\n" + HEAD + "@ A 192.0.2.4\n",
        )
        zones.add_vm(from_text("vm.example"), "v", [ip_address("192.0.2.3")], 60)
        a = "a.example A 192.0.2.1; a.example AAAA 2001:db8::1"
        for name, qtype, expected in [
            ("example", "NS", "vm.example A 192.0.2.3; ns.sub.example A 192.0.2.2"),
            ("example", "MX", f"{a}; b.test A 192.0.2.4"),
            ("s.example", "SRV", a),
            ("n.example", "MX", ""),
            ("a.example", "A", ""),
        ]:
            with self.subTest(name=name, type=qtype):
                outcome = zones.lookup(from_text(name), int(dns.rdatatype.from_text(qtype)))
                assert isinstance(outcome, Found)
                self.assertEqual(expected, listing(outcome.additional))

    def test_services(self) -> None:
        """With HTTPS and SVCB come the addresses of their targets, and what aliases lead to (RFC 9460, 4.1)."""
        zones = self.zones(
            "$ORIGIN example.\n" + HEAD + "@ HTTPS 0 a\na HTTPS 1 .\na HTTPS 2 b\na A 192.0.2.1\na AAAA 2001:db8::1\n"
            "b A 192.0.2.2\nb HTTPS 1 a\n*.w HTTPS 1 .\n*.w A 192.0.2.3\nvm HTTPS 1 .\nvm A 192.0.2.9\n"
            "to-vm HTTPS 1 vm\nalias-vm HTTPS 0 vm\nloop HTTPS 0 loop2\nloop2 HTTPS 0 loop\nself HTTPS 0 self\n"
            "none HTTPS 0 .\nnone A 192.0.2.4\nout HTTPS 1 x.test.\nto-w SVCB 1 x.w alpn=h2\n"
            "sub NS ns.sub\nns.sub A 192.0.2.5\nglue HTTPS 1 ns.sub\ncn CNAME al\nal HTTPS 1 .\nal A 192.0.2.6\n"
            "s SVCB 0 a\n" + "".join(f"many HTTPS 1 h{number}\nh{number} A 192.0.2.1\n" for number in range(40)),
        )
        zones.add_vm(from_text("vm.example"), "v", [ip_address("192.0.2.9")], 60)
        a = "a.example A 192.0.2.1; a.example AAAA 2001:db8::1"
        for name, qtype, expected in [
            ("example", "HTTPS", f"a.example HTTPS 1 .; a.example HTTPS 2 b.example.; {a}; b.example A 192.0.2.2"),
            ("a.example", "HTTPS", f"{a}; b.example A 192.0.2.2"),
            ("b.example", "HTTPS", a),
            ("x.w.example", "HTTPS", "x.w.example A 192.0.2.3"),
            ("to-w.example", "SVCB", "x.w.example A 192.0.2.3"),
            ("vm.example", "HTTPS", ""),
            ("to-vm.example", "HTTPS", ""),
            ("alias-vm.example", "HTTPS", ""),
            ("loop.example", "HTTPS", "loop2.example HTTPS 0 loop.example."),
            ("self.example", "HTTPS", ""),
            ("none.example", "HTTPS", ""),
            ("out.example", "HTTPS", ""),
            ("glue.example", "HTTPS", ""),
            ("cn.example", "HTTPS", "al.example A 192.0.2.6"),
            ("s.example", "SVCB", a),
            ("many.example", "HTTPS", "; ".join(f"h{number}.example A 192.0.2.1" for number in range(16))),
        ]:
            with self.subTest(name=name, type=qtype):
                outcome = zones.lookup(from_text(name), int(dns.rdatatype.from_text(qtype)))
                assert isinstance(outcome, Found)
                self.assertEqual(expected, listing(outcome.additional))

    def test_services_without_target(self) -> None:
        """The target of an alias may be none, and data may be broken: nothing is additional."""
        (zone,) = self.zones("$ORIGIN .\n" + HEAD + "@ A 192.0.2.1\nnone HTTPS 0 .\n")
        zone.add(from_text("broken"), 65, 60, b"\0\1\xff")
        for name in ("none", "broken"):
            outcome = Zones([zone]).lookup(from_text(name), 65)
            assert isinstance(outcome, Found)
            self.assertEqual([], outcome.additional)

    def test_cname(self) -> None:
        """A chain is followed through all zones; the rcode is of its last name (RFC 6604), the owners in order."""
        zones = self.zones(
            "$ORIGIN example.\n"
            + HEAD
            + "a CNAME b\na NSEC b CNAME\nb CNAME C.test.\ngone CNAME nowhere\nout CNAME www.invalid.\n"
            "cut CNAME x.sub\nsub NS ns.sub\nns.sub A 192.0.2.2\nself CNAME self\nl1 CNAME l2\nl2 CNAME L1\n",
            "$ORIGIN test.\n" + HEAD + "c A 192.0.2.1\nc RRSIG A 8 2 60 20300101000000 20200101000000 1 test. AAAA\n",
        )
        chain = "a.example CNAME b.example.; b.example CNAME C.test."
        loop = "l1.example CNAME l2.example.; l2.example CNAME L1.example."
        self.check(
            zones,
            [
                ("a.example", "A", f"Found {chain}; C.test A 192.0.2.1"),
                ("a.example", "AAAA", f"NoData {chain}"),
                ("a.example", "CNAME", "Found a.example CNAME b.example."),
                ("a.example", "ANY", "Found a.example CNAME b.example."),
                ("gone.example", "A", "NxDomain gone.example CNAME nowhere.example."),
                ("out.example", "A", "Found out.example CNAME www.invalid."),
                (
                    "cut.example",
                    "A",
                    (
                        "Referral cut.example CNAME x.sub.example. -> sub.example NS ns.sub.example. "
                        "glue ns.sub.example A 192.0.2.2"
                    ),
                ),
                ("self.example", "A", "Found self.example CNAME self.example."),
                ("l1.example", "A", f"Found {loop}"),
                ("c.test", "RRSIG", "Found c.test RRSIG A 8 2 60 20300101000000 20200101000000 1 test. AAAA"),
            ],
        )

    def test_long_chain(self) -> None:
        """No more than `MAX_CHAIN` CNAMEs are followed; what was found is the answer."""
        lines = "".join(f"a{i} CNAME a{i + 1}\n" for i in range(40))
        outcome = self.zones("$ORIGIN example.\n" + HEAD + lines).lookup(from_text("a0.example"), 1)
        assert isinstance(outcome, Found)
        self.assertEqual(MAX_CHAIN + 1, len(outcome.answer))

    def test_dname(self) -> None:
        """RFC 6672: names below are redirected with a made-up CNAME, the owner itself is not."""
        zones = self.zones(
            "$ORIGIN example.\n" + HEAD + "old DNAME new.test.\nold A 192.0.2.1\nhidden.old A 192.0.2.9\n"
            "loop DNAME loop\ngrow DNAME x.x.grow\ntwice DNAME d\nd DNAME twice2\nb.twice2 CNAME d\nd A 192.0.2.5\n",
            "$ORIGIN test.\n" + HEAD + "a.new A 192.0.2.2\n@ DNAME example.\n@ NS ns.invalid.\n",
        )
        old = "old.example DNAME new.test."
        self.check(
            zones,
            [
                ("old.example", "A", "Found old.example A 192.0.2.1"),
                ("old.example", "DNAME", f"Found {old}"),
                ("old.example", "TXT", "NoData"),
                ("hidden.old.example", "CNAME", f"Found {old}; hidden.old.example CNAME hidden.new.test."),
                ("hidden.old.example", "ANY", f"Found {old}; hidden.old.example CNAME hidden.new.test."),
                (
                    "A.old.example",
                    "A",
                    (
                        f"NxDomain {old}; A.old.example CNAME A.new.test.; test DNAME example.; "
                        "A.new.test CNAME A.new.example."
                    ),
                ),
                ("loop.test", "A", "NoData test DNAME example.; loop.test CNAME loop.example."),
                ("a.loop.example", "A", "Found loop.example DNAME loop.example.; a.loop.example CNAME a.loop.example."),
                (
                    "b.twice.example",
                    "A",
                    (
                        "Found twice.example DNAME d.example.; b.twice.example CNAME b.d.example.; "
                        "d.example DNAME twice2.example.; b.d.example CNAME b.twice2.example.; "
                        "b.twice2.example CNAME d.example.; d.example A 192.0.2.5"
                    ),
                ),
            ],
        )

    def test_dname_yxdomain(self) -> None:
        """A name that a DNAME makes too long is YXDOMAIN, with the DNAME as its reason; 255 octets are not too long."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + f"d DNAME {'y' * 63}.t.example.\n")
        most = 255 - (1 + 63 + 2 + 8 + 1)
        label = b"\1a"
        fits = label * (most // 2) + from_text("d.example")
        outcome = zones.lookup(fits, 1)
        self.assertIsInstance(outcome, NxDomain)
        outcome = zones.lookup(b"\2aa" + fits.removeprefix(label), 1)
        assert isinstance(outcome, TooLong)
        self.assertEqual(f"d.example DNAME {'y' * 63}.t.example.", listing(outcome.answer))
        self.assertEqual(6, outcome.rcode)

    def test_nested_zones(self) -> None:
        """The closest zone answers; the DS of its apex is its parent's; names between the two apexes exist."""
        zones = self.zones(
            "$ORIGIN example.\n" + HEAD + "@ TXT outer\nx.b.c TXT hidden\ns NS ns.s\n",
            "$ORIGIN b.c.example.\n" + HEAD + "@ TXT inner\n",
            "$ORIGIN s.example.\n" + HEAD + "s.s.example. DS 1 8 2 " + "cd" * 32 + "\n",
            "$ORIGIN d.e.example.\n" + HEAD,
        )
        self.check(
            zones,
            [
                ("example", "TXT", 'Found example TXT "outer"'),
                ("b.c.example", "TXT", 'Found b.c.example TXT "inner"'),
                ("x.b.c.example", "TXT", "NxDomain"),
                ("c.example", "TXT", "NoData"),
                ("e.example", "A", "NoData"),
                ("d.e.example", "DS", "NoData"),
                ("s.example", "NS", "NoData"),
                ("example.test", "A", "Refused"),
                ("test", "DS", "Refused"),
            ],
        )
        for name, owner in [("b.c.example", "example"), ("s.example", "example"), ("x.s.example", "s.example")]:
            with self.subTest(ds=name):
                outcome = zones.lookup(from_text(name), 43)
                assert isinstance(outcome, NoData | NxDomain)
                self.assertEqual(owner, to_text(outcome.soa.owner))

    def test_root_zone(self) -> None:
        """The root can be a zone; nothing is refused then, and its servers' addresses come from below a cut."""
        zones = self.zones(
            ". 60 SOA a.root. host.root. 1 2 3 4 5\n. 60 NS a.root.\nroot. 60 NS a.root.\na.root. 60 A 192.0.2.1\n",
        )
        glue = "a.root A 192.0.2.1"
        self.check(
            zones,
            [
                (".", "NS", f"Found . NS a.root. + {glue}"),
                (".", "DS", "NoData"),
                ("nowhere", "A", "NxDomain"),
                ("x.root", "A", f"Referral -> root NS a.root. glue {glue}"),
            ],
        )

    def test_case(self) -> None:
        """Names compare without case; the first owner has the question's case, others the file's."""
        zones = self.zones("$ORIGIN ExamPle.\n" + HEAD + "WWW A 192.0.2.1\nwww A 192.0.2.2\nal CNAME wWw\n")
        self.check(
            zones,
            [
                ("wwW.eXample", "A", "Found wwW.eXample A 192.0.2.1; wwW.eXample A 192.0.2.2"),
                (
                    "AL.example",
                    "A",
                    ("Found AL.example CNAME wWw.ExamPle.; wWw.ExamPle A 192.0.2.1; wWw.ExamPle A 192.0.2.2"),
                ),
            ],
        )
        (zone,) = zones
        self.assertEqual(["ExamPle", "WWW.ExamPle"], [to_text(r.owner) for r in zone.records()][:2])

    def test_escapes(self) -> None:
        """A dot inside a label is not a border between two, and other octets come through (RFC 1035, 5.1)."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + "a\\.b A 192.0.2.1\nc\\000\\255 A 192.0.2.2\n")
        self.check(
            zones,
            [
                (r"a\.b.example", "A", r"Found a\.b.example A 192.0.2.1"),
                ("a.b.example", "A", "NxDomain"),
                ("b.example", "A", "NxDomain"),
                (r"c\000\255.example", "A", r"Found c\000\255.example A 192.0.2.2"),
            ],
        )
        self.assertIsInstance(zones.lookup(b"\x09x" + from_text("example"), 1), Refused)

    def test_any(self) -> None:
        """ANY gets one HINFO "RFC8482" (RFC 8482, 4.2), through a wildcard too, and starts nothing by itself."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + "a A 192.0.2.1\na TXT x\n*.w A 192.0.2.2\n")
        self.check(
            zones,
            [
                ("a.example", "ANY", 'Found a.example HINFO "RFC8482" ""'),
                ("x.w.example", "ANY", 'Found x.w.example HINFO "RFC8482" ""'),
                ("x.example", "ANY", "NxDomain"),
            ],
        )

    def test_negative_ttl(self) -> None:
        """The SOA of a "no" has the smaller of its TTL and its minimum (RFC 2308, 3 and 5)."""
        for ttl, minimum, expected in [(3600, 60, 60), (30, 60, 30)]:
            with self.subTest(ttl=ttl, minimum=minimum):
                zones = self.zones(f"example. {ttl} SOA ns.test. h.test. 1 2 3 4 {minimum}\n")
                for name, kind in [("example", NoData), ("x.example", NxDomain)]:
                    outcome = zones.lookup(from_text(name), 1)
                    assert isinstance(outcome, NoData | NxDomain)
                    self.assertEqual((kind, expected, SOA), (type(outcome), outcome.soa.ttl, outcome.soa.type))

    def test_aa(self) -> None:
        """AA is of the first owner: set for a referral after a CNAME in the zones, not for a plain one, nor REFUSED."""
        zones = self.zones("$ORIGIN example.\n" + HEAD + "a CNAME x.sub\nsub NS ns.test.\n")
        for name, expected in [
            ("example", (True, 0)),
            ("nowhere.example", (True, 3)),
            ("a.example", (True, 0)),
            ("sub.example", (False, 0)),
            ("test", (False, 5)),
        ]:
            with self.subTest(name=name):
                outcome = zones.lookup(from_text(name), 1)
                self.assertEqual(expected, (outcome.aa, outcome.rcode))

    def test_twice(self) -> None:
        """Two zones of one name are an error."""
        text = "$ORIGIN example.\n" + HEAD
        with self.assertRaisesRegex(ZoneError, "is in .*a.zone already"):
            self.zones(text, text.replace("example", "EXAMPLE"))


Name = tuple[str, ...]
Record = tuple[Name, str, Name]


def dotted(name: Name) -> str:
    """Return *name* as text with a final dot."""
    return ".".join(name) + "."


def naive(records: list[Record], name: Name, qtype: str) -> str:
    """Return the outcome in the zone ``z``, by reading every record at every step of RFC 1034, 4.3.2."""
    answer: list[str] = []
    visited = [name]

    def done(kind: str) -> str:
        return " ".join([kind, *["; ".join(answer)] * bool(answer)])

    def at(owner: Name, rtype: str) -> list[Name]:
        return list(dict.fromkeys(data for o, t, data in records if (o, t) == (owner, rtype)))

    def exists(owner: Name) -> bool:
        return owner == ("z",) or any(o[-len(owner) :] == owner for o, _, _ in records)

    while name[-1] == "z":
        target = None
        for owner in [name[-length:] for length in range(1, len(name) + 1)]:
            if owner != ("z",) and at(owner, "NS") and not (qtype == "DS" and owner == name):
                servers = "; ".join(f"{'.'.join(owner)} NS {dotted(data)}" for data in at(owner, "NS"))
                return done("Referral") + f" -> {servers} glue"
            if at(owner, "DNAME") and owner != name:
                target = name[: -len(owner)] + at(owner, "DNAME")[0]
                line = f"{'.'.join(owner)} DNAME {dotted(at(owner, 'DNAME')[0])}"
                answer += [line] * (line not in answer)
                break
        else:
            source = name
            if not exists(name):
                source = ("*", *next(name[i:] for i in range(len(name)) if exists(name[i:])))
                if not exists(source):
                    return done("NxDomain")
            if at(source, qtype):
                answer += [f"{'.'.join(name)} {qtype} {dotted(data)}" for data in at(source, qtype)]
                return done("Found")
            if not at(source, "CNAME"):
                return done("NoData")
            target = at(source, "CNAME")[0]
        answer.append(f"{'.'.join(name)} CNAME {dotted(target)}")
        if target in visited or qtype == "CNAME" or len(visited) > MAX_CHAIN:
            return done("Found")
        visited.append(target)
        name = target
    return done("Found" if answer else "Refused")


names = st.lists(st.sampled_from(["a", "b", "*"]), max_size=3).map(lambda labels: (*labels, "z"))
targets = names | st.just(("a", "out"))


class NaiveTests(SynchronousTestCase):
    """The tree against the list."""

    @settings(max_examples=400, deadline=None, database=None)
    @given(
        st.lists(st.tuples(names, st.sampled_from(["PTR", "DS", "CNAME", "DNAME", "NS"]), targets), max_size=8),
        st.lists(st.tuples(targets, st.sampled_from(["PTR", "DS", "CNAME", "NS"])), min_size=1, max_size=8),
    )
    def test_same(self, records: list[Record], questions: list[tuple[Name, str]]) -> None:
        """Whatever the zone, every question has the outcome that the RFC's algorithm has on a plain list."""
        zone = Zone(RR(from_text("z"), SOA, 60, ROOT + ROOT + bytes(20)))
        taken: list[Record] = []
        for owner, rtype, data in records:
            if rtype == "DS":
                continue
            try:
                zone.add(from_text(dotted(owner)), int(dns.rdatatype.from_text(rtype)), 60, from_text(dotted(data)))
            except ZoneError:
                continue
            taken.append((owner, rtype, data))
        zones = Zones([zone])
        for name, qtype in questions:
            outcome = zones.lookup(from_text(dotted(name)), int(dns.rdatatype.from_text(qtype)))
            self.assertEqual(naive(taken, name, qtype), say(outcome))
