"""Master files: the same records as in BIND; all that is wrong in a file; the limits."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Final
from unittest import mock

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest

from jitsu_tw.dns import masterfile
from jitsu_tw.dns.wire import RRSIG, to_text
from jitsu_tw.dns.zone import MAX_RRSET, Zone
from jitsu_tw.errors import ZoneError
from test.support.zones import HEAD, ZoneTestCase, text_of

TOP: Final = "$ORIGIN example.org.\n" + HEAD + "@ NS ns\nns A 192.0.2.53\n"

#: What BIND reads, too, line by line; each stands behind `TOP`.
ALIKE: Final = (
    "$GENERATE 1-3 h$ A 192.0.2.$",
    "$generate 1-2 h$ a 192.0.2.$ ; two",
    '$GENERATE 1-2 m$ MX "10 h$"',
    '$GENERATE 1-2 s$ SRV "0 5 506$ h$"',
    '$GENERATE 1-2 t$ TXT "a $"',
    '$GENERATE 1-2 t$ TXT "\\"a $; b\\" c"',
    "$GENERATE 1-2 t$ TXT a\\$$",
    '$GENERATE 1-2 t$ TXT "a$$ $"',
    "$GENERATE 1-2 a\\$$ A 192.0.2.$",
    "$GENERATE 1-2 h$ 300 IN A 192.0.2.$",
    "$GENERATE 1-2 h$ IN 5m A 192.0.2.$",
    "$GENERATE 1-2 h$ IN A 192.0.2.$",
    "$GENERATE 1-2 h$ 300 A 192.0.2.$",
    "$GENERATE 10-20/5 ${0,3,d} A 192.0.2.${1}",
    "$GENERATE 10-20/5 ${0,3} A 192.0.2.${+1}",
    "$GENERATE 10-11 x${-10} A 192.0.2.$",
    "$GENERATE 1-2 x${-10,4} A 192.0.2.$",
    "$GENERATE 254-256/2 ${0,4,x}.${0,0,X}.${0,5,o} A 192.0.2.1",
    "$GENERATE 250-256/2 ${0,7,n}.p PTR h$",
    "$GENERATE 250-256/2 p.${0,3,N} PTR h$.${0,4,n}",
    "$GENERATE 0-17 p.${0,1,n} PTR h$.${0,2,N}${0,0,n}",
    "$GENERATE 65535-65537 p.${1,10,n}example.org. PTR h.${0,6,N}",
    "$GENERATE 1-2 @ TXT $",
    "$GENERATE 1-2 $.sub.example.org. CNAME $",
    "$ORIGIN sub\n$GENERATE 1-2 $ CNAME $.h",
    "b MB host\nb MG one\nb MG two\nb MR new\nb MINFO a b.example.net.",
    "b MINFO \\# 4 01610000",
    "u TYPE65280 \\# 3 abcd ef\nu TYPE65280 \\# 0\nu TYPE1 \\# 4 c0000201\nu A \\# 4 (\n c00002 02 )",
    "x IN 300 A 192.0.2.1\ny 300 IN A 192.0.2.1\nz A 192.0.2.1\n  AAAA 2001:db8::1\n\n ; c\n IN TXT a",
    'q TXT "a;b" c\\;d "e\\"f" \\103 "" (\n "g" ; h\n i )',
    "e\\.f.g\\ h\\;i A 192.0.2.1\n\\065\\255 A 192.0.2.2\nUPPER A 192.0.2.3",
    'n NAPTR 100 50 "s" "z3950+I2L+I2C" "" _z3950._tcp',
    'h HTTPS 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1\nh SVCB 0 sub.example.net.',
    "a A 192.0.2.1\n$GENERATE 1-2 h$ A 192.0.2.$\n TXT a",
    "@ SOA ns hostmaster 7 1h 10m 1d 60\nx A 192.0.2.1",
    "$TTL 1d2h\nd A 192.0.2.1\n$TTL 0\ne A 192.0.2.1",
    "r 60 RRSIG A 13 3 60 20300101000000 20200101000000 1 @ YWJj\nr 60 A 192.0.2.1",
    "r 300 RRSIG TXT 13 3 300 20300101000000 20200101000000 1 example.org. YWJj\nr 300 TXT x",
)

#: The mistake, after `TOP`; its line, and its message.
SLIPS: Final = (
    ("a A 192.0.2.300", 6, "^A: 192.0.2.300 is no IPv4 address: four numbers from 0 to 255 with dots between"),
    ("a A 2001:db8::1", 6, "2001:db8::1 is no IPv4 address; write it like 'AAAA 2001:db8::1'"),
    ("a A @", 6, "@ is no IPv4 address"),
    ("a A host", 6, "host is no IPv4 address"),
    ("a AAAA 192.0.2.1", 6, "192.0.2.1 is no IPv6 address"),
    ("a AAAA 2001:db8::g", 6, "2001:db8::g is no IPv6 address: up to eight numbers from 0 to ffff"),
    ("a A", 6, "A: the data are not complete; write it like 'A 192.0.2.1'"),
    ("a A 192.0.2.1 192.0.2.2", 6, "'192.0.2.2' is one word too many"),
    ('a A "192.0.2.1"', 6, '"192.0.2.1" must stand without quotes'),
    ("a MX mail", 6, "MX: 'mail' is no number; write it like 'MX 10 mail'"),
    ("a MX 10", 6, "MX: the data are not complete; write it like 'MX 10 mail'"),
    ("a SRV 0 5 sip", 6, "'sip' is no number; write it like 'SRV 0 5 5060 sip'"),
    ("@ SOA ns h 1 1h 1y 1w 1d", 6, "'1y' is no TTL"),
    ("a TXT " + "x" * 256, 6, "a string of 256 octets, and 255 are the most: write it as several strings"),
    ('a TXT "' + "\\200" * 256 + '"', 6, "255 are the most"),
    ("a NULL abcd", 6, r"data of this type are written as 'NULL \\# 2 abcd'"),
    ("a TYPE65280 \\# 3 abcd", 6, "wrong length"),
    ("a AAA 192.0.2.1", 6, "unknown type 'AAA': did you mean AAAA or CAA or A?"),
    ("a OPENPGKEY x", 6, "did you mean OPENPGPKEY?"),
    (" www A 192.0.2.1", 6, "unknown type 'www'.*If it is the owner, remove the blank before it"),
    ("www 192.0.2.1", 6, "a type is missing before '192.0.2.1'"),
    ("www 2001:db8::1", 6, "a type is missing before '2001:db8::1'"),
    ("www IN", 6, "a type is missing: 'www A 192.0.2.1'"),
    ("www IN IN A 192.0.2.1", 6, "unknown type 'IN'"),
    ("www 1h 1h A 192.0.2.1", 6, "unknown type '1h'"),
    ("www 1h30 A 192.0.2.1", 6, "'1h30' is no TTL: seconds, or numbers with w, d, h, m and s behind them, as 1h30m"),
    ("$TTL never", 6, "'never' is no TTL"),
    ("$TTL 2147483648", 6, "is too long a TTL: 2147483647 seconds at most"),
    ("$TTL " + "9" * 5000, 6, "is too long a TTL"),
    ("a 1" + "0" * 40 + "w A 192.0.2.1", 6, "TTL"),
    ("a CH A 192.0.2.1", 6, "class CH: only records of class IN are served"),
    ("$ORIGIN", 6, "not complete"),
    ("$ORIGIN a b", 6, "'b' is one word too many"),
    ("$INCLUDE", 6, r"\$INCLUDE needs a file"),
    ("$INCLUDE /dev/zero", 6, "/dev/zero: a device, a pipe or a socket; a zone file must be an ordinary file"),
    ("$INCLUDE /", 6, "Is a directory"),
    ("$INCLUDE a\\000b", 6, "embedded null"),
    ("a\\256 A 192.0.2.1", 6, r"'a\\256' is not a domain name: a backslash stands before a character, or before three"),
    ("a..b A 192.0.2.1", 6, "'a..b' is not a domain name: A DNS label is empty"),
    ("x" * 64 + " A 192.0.2.1", 6, "label is > 63 octets"),
    (".".join(["x" * 60] * 5) + " A 192.0.2.1", 6, "makes a name of more than 255 octets"),
    ("x" * 2000 + " A 192.0.2.1", 6, "a name has 255 octets at most"),
    ("ü" * 2000 + " A 192.0.2.1", 6, "a name has 255 octets at most"),
    ("straße A 192.0.2.1", 6, "encode differently; write xn--"),
    ("a\u00a0b A 192.0.2.1", 6, "a character that cannot be seen"),
    ("ü" * 70 + " A 192.0.2.1", 6, "write what is not ASCII as xn--"),
    ("a A 192.0.2.1)", 6, r"a '\)' without a '\('"),
    ("a A 192.0.2.1 \\", 6, "a backslash at the end of the line"),
    ('a TXT ( "x"\n"y\n)\n', 7, "the quote that opens here is not closed in its line"),
    ("a TXT x (\ny ( z )\n", 6, "the parenthesis that opens here is not closed; what follows was not read$"),
    ("a TXT ( v=DKIM1; k=rsa )\n", 6, "perhaps a ';' hides its end"),
    ("a TXT " + "x" * masterfile.MAX_RECORD, 6, "a line of 262,150 characters; a record has 262,144 at most"),
    ("a TXT (\n" + 1100 * ("x" * 250 + "\n") + ")", 6, "parenthesis"),
    ("$GENERATE 1-300 a$ A 192.0.2.$", 6, "A: 192.0.2.256 is no IPv4 address"),
    ("$GENERATE 0-1000000000 a$ A 192.0.2.1", 6, "makes 1,000,000,001 records; a zone may have 1,000,000 lines"),
    ("$GENERATE 0-10000000000 a$ A 192.0.2.1", 6, "begins with a range, as 1-10 or 0-100/5"),
    ("$GENERATE 5-1 a$ A 192.0.2.1", 6, "begins with a range"),
    ("$GENERATE 1-5/0 a$ A 192.0.2.1", 6, "begins with a range"),
    ("$GENERATE 1-3 a$", 6, "not complete"),
    ("$GENERATE 1-3 a$ A", 6, "the data are not complete"),
    ("$GENERATE 1-3 a$ CH A 192.0.2.1", 6, "class CH"),
    ("$GENERATE 1-3 a${0,3,q} A 192.0.2.$", 6, r"'{0,3,q}' is no format: \${offset,width,base}"),
    ("$GENERATE 1-3 a${0,300} A 192.0.2.$", 6, "is no format"),
    ("$GENERATE 1-3 a${0 A 192.0.2.$", 6, "is no format"),
    ("$GENERATE 1-3 ${-2,1,n} A 192.0.2.$", 6, "-1 has no nibbles"),
    ('$GENERATE 1-2 a$ TXT "\\"a"', 6, "the quote that opens here is not closed"),
)


class PeerTests(ZoneTestCase):
    """BIND's named-compilezone reads the same files."""

    def test_alike(self) -> None:
        """Each of the lines makes the same records, their TTLs included."""
        if shutil.which("named-compilezone") is None:
            raise SkipTest("named-compilezone is not installed")
        for text in ALIKE:
            with self.subTest(text=text):
                path = self.write(f"{TOP}{text}\n")
                ours = sorted(
                    (to_text(record.owner), text_of(record).split(" ", 1)[1], record.ttl)
                    for record in Zone.read(path).records()
                )
                self.assertEqual(self.compiled(path), ours)
                self.assertGreater(len(ours), 3)

    def compiled(self, path: str) -> list[tuple[str, str, int]]:
        """Return the owner, the type and data, and the TTL of each record that BIND finds in the file at *path*."""
        command = ["named-compilezone", "-q", "-i", "none", "-k", "ignore", "-s", "full", "-o", "-", "example.org"]
        done = subprocess.run([*command, path], check=True, capture_output=True, text=True)
        found = []
        for line in done.stdout.splitlines():
            if line.startswith(";"):
                continue
            owner, ttl, _, rtype, data = line.split(None, 4)
            rdata = dns.rdata.from_text("IN", rtype, dns.tokenizer.Tokenizer(data), relativize=False)
            kind = dns.rdatatype.from_text(rtype)
            name = to_text(dns.rdata.from_text("IN", "NS", owner).to_wire() or b"")
            found.append((name, f"{dns.rdatatype.to_text(kind)} {rdata.to_text()}", int(ttl)))
        return sorted(found)


class GenerateTests(ZoneTestCase):
    """$GENERATE beyond BIND's."""

    def test_rest_of_the_line(self) -> None:
        """Data with blanks need no quotes around them; quoted strings in them stay such."""
        text = TOP + '$GENERATE 1-2 m$ 60 MX 10 h$.example.net.\n$GENERATE 7-7 t TXT "a $" (b$\n c) ; d\n'
        self.assertEqual(
            [
                "m1.example.org MX 10 h1.example.net.",
                "m2.example.org MX 10 h2.example.net.",
                't.example.org TXT "a 7" "b7" "c"',
            ],
            [text_of(record) for record in Zone.read(self.write(text)).records()][3:],
        )


class IncludeTests(ZoneTestCase):
    """$INCLUDE, as BIND has it."""

    def test_what_comes_out(self) -> None:
        """A $TTL in an included file holds behind it, too; an origin and an owner do not."""
        path = Path(self.write(f"{TOP}a TXT 1\n$INCLUDE inner\n TXT 2\nb TXT 3\n"))
        (path.parent / "inner").write_text("$TTL 77\n$ORIGIN inner\nx A 192.0.2.1\n")
        self.assertEqual(
            ["a 3600", "x.inner 77", "a 77", "b 77"],
            [f"{to_text(each.owner).removesuffix('.example.org')} {each.ttl}" for each in masterfile.read(path)][3:],
        )


class TypesTests(ZoneTestCase):
    """Types that dnspython has no class for."""

    def test_names(self) -> None:
        """The data of MB, MD, MF, MG and MR are one name, those of MINFO two; both are completed by the origin."""
        text = TOP + "".join(f"b {rtype} x\n" for rtype in ("MB", "MD", "MF", "MG", "MR")) + "b MINFO x y.\n"
        x = b"\1x\7example\3org\0"
        self.assertEqual(
            [(7, x), (3, x), (4, x), (8, x), (9, x), (14, x + b"\1y\0")],
            [(record.type, record.rdata) for record in Zone.read(self.write(text)).records()][3:],
        )

    def test_groups(self) -> None:
        """The groups of digits in NID and L64 may be without their leading zeros, as BIND writes them."""
        zone = Zone.read(self.write(f"{TOP}n NID 10 14:4fff:0:ee64\nn L64 10 2001:db8:1140:1000\n"))
        data = {record.type: record.rdata.hex() for record in zone.records()}
        self.assertEqual(("000a00144fff0000ee64", "000a20010db811401000"), (data[104], data[106]))
        self.assertRaises(ZoneError, Zone.read, self.write(f"{TOP}n NID 10 14:4fff:0:ee64f\n"))

    def test_times(self) -> None:
        """The times of an SOA record have 32 bits (RFC 1035, 3.3.13), a TTL has 31: a longer one is 0 (RFC 2181, 8)."""
        text = "e. SOA n.e. h.e. 1 4294967295 2 3 {}\ne. NS n.e.\n"
        ttls = [entry.ttl for entry in masterfile.read(self.write(text.format(4294967295)))]
        self.assertEqual([0, 0], ttls)
        error = self.assertRaises(ZoneError, list, masterfile.read(self.write(text.format(4294967296))))
        self.assertRegex(error.message, "'4294967296' is too long a TTL: 4294967295 seconds at most")

    def test_all(self) -> None:
        """Every type with a number is read by RFC 3597, 5, but those for questions."""
        for rtype in (10, 30, 38, 103, 32768, 65280, 65535):
            for word in {f"TYPE{rtype}", dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rtype))}:
                zone = Zone.read(self.write(f"{TOP}a {word} \\# 3 abcdef\n"))
                self.assertEqual((rtype, b"\xab\xcd\xef"), [(r.type, r.rdata) for r in zone.records()][-1])


class SlipTests(ZoneTestCase):
    """How mistakes are reported."""

    def test_slips(self) -> None:
        """Each names its file, its line, what is wrong, and what would be right."""
        for text, line, words in SLIPS:
            with self.subTest(text=text[:60]):
                path = self.write(f"{TOP}{text}\n")
                error = self.assertRaises(ZoneError, Zone.read, path)
                self.assertEqual((path, line), (error.path, error.line))
                self.assertRegex(error.message, words)
                self.assertNotIn("\n", error.message)
                self.assertLess(len(error.message), 300)

    def test_all_at_once(self) -> None:
        """All mistakes are reported, of syntax and of the zone, in included files too; good records are still read."""
        path = Path(self.write(TOP + "a A 1\nb A 192.0.2.1\n$INCLUDE i\nb CNAME c\n)\n$X\nc A 2\nd.net. A 192.0.2.1\n"))
        (path.parent / "i").write_text("e MX x\nf A 192.0.2.1\n")
        error = self.assertRaises(ZoneError, Zone.read, path)
        places = [line.removeprefix(f"{path.parent}/").split(": ")[0] for line in str(error).splitlines()]
        self.assertEqual(["a.zone:6", "a.zone:9", "a.zone:10", "a.zone:11", "a.zone:12", "a.zone:13", "i:1"], places)

    def test_too_many(self) -> None:
        """Twenty are listed, and the number of the others; warnings likewise."""
        text = TOP + "".join(f"a{number} A x\n" for number in range(50))
        lines = str(self.assertRaises(ZoneError, Zone.read, self.write(text))).splitlines()
        self.assertEqual((21, "and 30 more mistakes"), (len(lines), lines[-1]))
        text = TOP + "".join(f"a{number}.example.org TXT x\n" for number in range(50))
        warnings = Zone.read(self.write(text)).warnings
        self.assertEqual((21, "and 30 more warnings"), (len(warnings), warnings[-1]))

    def test_soa(self) -> None:
        """A missing SOA record is not reported where one has a mistake."""
        for text, missing in (
            ("$ORIGIN e.\n$TTL 60\n@ SOA ns h 1 2 3 4\n", False),
            ("$ORIGIN e.\n$TTL 60\n@ 1y SOA ns h 1 2 3 4 5\n", False),
            ("$ORIGIN e.\n$TTL 60\n@ SOA ns h ( 1 2 3 4 5\n", False),
            ("$ORIGIN e.\n$TTL 60\n@ TXT (\n", True),
        ):
            with self.subTest(text=text):
                error = self.assertRaises(ZoneError, Zone.read, self.write(text))
                self.assertEqual(missing, "no SOA record" in str(error))

    def test_owner(self) -> None:
        """A line without an owner does not get that of a line before the one whose owner was wrong."""
        error = self.assertRaises(ZoneError, Zone.read, self.write(TOP + "a A 192.0.2.1\nb..c A 192.0.2.2\n TXT x\n"))
        self.assertRegex(str(error), "7: 'b..c'.*\n.*8: no owner")
        error = self.assertRaises(ZoneError, Zone.read, self.write(" A 192.0.2.1\n" + TOP))
        self.assertRegex(str(error), "1: no owner")

    def test_warnings(self) -> None:
        """What can be served and cannot be meant is a warning with its line."""
        for text, words in (
            ("a CNAME b.example.org", "'b.example.org' has no final dot, so it is 'b.example.org.example.org.'"),
            ("B.Example.ORG A 192.0.2.1", "'B.Example.ORG' has no final dot"),
            ("example.org A 192.0.2.1", "'example.org' has no final dot"),
            ("$ORIGIN sub\na.example.org MX 1 x", "'a.example.org' has .* so it is 'a.example.org.sub.example.org.'"),
            ("$GENERATE 1-1 a$.example.org A 192.0.2.1", "'a1.example.org' has no final dot"),
            ("a TXT v=DKIM1; k=rsa", "the text ends at the ';', which begins a comment"),
            ("a RP me@example.org. .", "'me@example.org.' has an @ in a name: a mailbox is written with a dot"),
            ("a MX 10 192.0.2.1", "192.0.2.1 is an address where a name belongs"),
            ("a TXT v=DKIM1 ; k=rsa", ""),
            ('a TXT "v=DKIM1; k=rsa";', ""),
            ("a RP me\\@there .", ""),
            ("a.example.org.x A 192.0.2.1", ""),
            ("xexample.org A 192.0.2.1", ""),
            ("org A 192.0.2.1", ""),
        ):
            with self.subTest(text=text):
                path = self.write(f"{TOP}{text}\n")
                warnings = "\n".join(Zone.read(path).warnings)
                self.assertRegex(warnings, f"^{path}:[67]: {words}" if words else "^$")


class LimitTests(ZoneTestCase):
    """What there is an end to, before the work."""

    def test_octets(self) -> None:
        """A file that is too large is not read; all files of a zone count together, and what $GENERATE writes."""
        path = Path(self.write(TOP))
        with path.open("ab") as file:
            file.truncate(2**40)
        error = self.assertRaises(ZoneError, Zone.read, path)
        self.assertEqual("a zone may have 134,217,728 octets in all, and this is more: split it", error.message)
        path = Path(self.write(TOP + "$INCLUDE i\n" * 3 + "a A x\n"))
        (path.parent / "i").write_text(";" * 900)
        with mock.patch.object(masterfile, "MAX_OCTETS", 2500):
            error = self.assertRaises(ZoneError, Zone.read, path)
        self.assertEqual(8, error.line)
        self.assertRegex(error.message, r"^\$INCLUDE .*/i: a zone may have 2,500 octets in all, .*split it$")
        path.write_text(f"{TOP}$GENERATE 1-900000 a$ TXT {'x' * 250}\n")
        with mock.patch.object(masterfile, "MAX_OCTETS", 2500):
            error = self.assertRaises(ZoneError, Zone.read, path)
        self.assertEqual(6, error.line)
        self.assertEqual("a zone may have 2,500 octets in all, and this is more: split it", error.message)

    def test_lines(self) -> None:
        """Lines and what $GENERATE makes have one limit; it comes before the records."""
        with mock.patch.object(masterfile, "MAX_LINES", 12):
            for text, expected in (
                (TOP + "\n" * 8, ": a zone may have 12 lines in all, and this is more: split it"),
                (TOP + "$GENERATE 1-7 a$ A 192.0.2.1\n", r":6: \$GENERATE makes 7 records; a zone may have 12 lines"),
                (TOP + "$GENERATE 1-4 a$ A 192.0.2.1\n" * 2, r":7: \$GENERATE makes 4 records"),
                (TOP + "$INCLUDE i\n" * 3, r":8: \$INCLUDE .*/i: a zone may have 12 lines"),
            ):
                with self.subTest(text=text):
                    path = Path(self.write(text))
                    (path.parent / "i").write_text("\n\n")
                    error = self.assertRaises(ZoneError, Zone.read, path)
                    self.assertRegex(str(error).removeprefix(str(path)), f"^{expected}[^\n]*$")
            Zone.read(self.write(TOP + "$GENERATE 1-6 a$ A 192.0.2.1\n"))

    def test_mistakes(self) -> None:
        """After a thousand mistakes nothing more is read."""
        for text in ("a A x\n", "a{0}.net. A 192.0.2.1\na{0}.net. A 192.0.2.2\n"):
            path = self.write(TOP + "".join(text.format(number) for number in range(1005)))
            lines = str(self.assertRaises(ZoneError, Zone.read, path)).splitlines()
            self.assertEqual(["and 980 more mistakes", "the rest was not read"], lines[20:])

    def test_includes(self) -> None:
        """A file that includes itself, by whatever way, many files, and deep ones are refused."""
        path = Path(self.write(TOP + "$INCLUDE b\n"))
        (path.parent / "b").write_text("$INCLUDE sub/../c\n")
        (path.parent / "sub").mkdir()
        os.link(path, path.parent / "c")
        error = self.assertRaises(ZoneError, Zone.read, path)
        self.assertRegex(str(error), r"/b:1: \$INCLUDE .*does the file include itself\?")

        for deep, after in pairwise(range(13)):
            (path.parent / f"d{deep}").write_text(f"$INCLUDE d{after}\n" * 2)
        path.write_text(TOP + "$INCLUDE d0\n")
        error = self.assertRaises(ZoneError, Zone.read, path)
        self.assertRegex(str(error), r"/d9:1: \$INCLUDE is nested more than 10 deep")

        (path.parent / "e").write_text("")
        path.write_text(TOP + "$INCLUDE e\n" * 5 + "a A x\n")
        with mock.patch.object(masterfile, "MAX_FILES", 5):
            error = self.assertRaises(ZoneError, Zone.read, path)
        self.assertRegex(str(error), r"a.zone:10: .*a zone may have 5 files in all[^\n]*$")

    def test_pipe(self) -> None:
        """A pipe is not opened: reading would wait for a writer."""
        path = Path(self.write(TOP + "$INCLUDE pipe\n"))
        os.mkfifo(path.parent / "pipe")
        for place in (path, path.parent / "pipe"):
            self.assertRegex(str(self.assertRaises(ZoneError, Zone.read, place)), "a device, a pipe or a socket")

    def test_rrset(self) -> None:
        """An RRset that is too long for a message is refused, with the line that makes it so; one that fits is not."""
        most = MAX_RRSET // 16
        text = TOP + "".join(f"a A 10.0.{number >> 8}.{number & 255}\n" for number in range(most))
        self.assertEqual(most + 3, sum(1 for _ in Zone.read(self.write(text)).records()))
        error = self.assertRaises(ZoneError, Zone.read, self.write(text + "a A 192.0.2.1\n" * 2 + "a A 192.0.2.2\n"))
        self.assertEqual(6 + most, error.line)
        self.assertRegex(str(error), "a.example.org: A records of 60,016 octets: a message has room for 60,000[^\n]*$")
        error = self.assertRaises(ZoneError, Zone.read, self.write(TOP + f"a TYPE65280 \\# 65535 {'00' * 65535}\n"))
        self.assertRegex(str(error), ":6: a.example.org: TYPE65280 records of 65,547 octets")


class RRSIGTests(ZoneTestCase):
    """RRSIG records: each belongs to the RRset of the type that it covers."""

    def test_ttls(self) -> None:
        """Their TTLs are never merged (RFC 4034, 3), and differ without a warning; others' are."""
        line = "a {0} RRSIG {1} 13 3 {0} 20300101000000 20200101000000 {2} example.org. YWJj\n"
        rows = ((60, "A", 1), (300, "TXT", 1), (300, "TXT", 2), (60, "A", 1))
        text = TOP + "".join(line.format(*row) for row in rows)
        zone = Zone.read(self.write(text))
        found = [(text_of(record).split()[2], record.ttl) for record in zone.records() if record.type == RRSIG]
        self.assertEqual(([("A", 60), ("TXT", 300), ("TXT", 300)], []), (found, zone.warnings))


#: What random files are made of.
PARTS: Final = (
    *' \n()";\\$@.', "$GENERATE ", "1-3 ", "${0,3,n}", "$INCLUDE a.zone", "$ORIGIN ", "a ", "A ", "192.0.2.1", "TXT ",
    "MX 1 ", "IN ", "300 ", "\\#", " 4 ", "00", "\\300", "ü", "HTTPS 1 . ", "alpn=", "LOC ", "APL ", "SOA ", "NSEC ",
    "\x1b", "\r", "\u2028", "9" * 30,
)  # fmt: skip


class FuzzTests(ZoneTestCase):
    """Whatever is in a file: records, or mistakes with lines."""

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(PARTS), max_size=30))
    def test_random(self, parts: list[str]) -> None:
        """It ends in a zone, or in one error that a terminal can show."""
        try:
            Zone.read(self.write(TOP + "".join(parts)))
        except ZoneError as error:
            self.assertIsNotNone(error.line)
            self.assertTrue(all(line.isprintable() for line in str(error).splitlines()), str(error))
