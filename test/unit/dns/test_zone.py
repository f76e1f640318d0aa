"""The content of zones: records of master files, and VMs' addresses that replace them; cases are tables."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from jitsu_tw.dns.lookup import Found, Zones
from jitsu_tw.dns.wire import ROOT, from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ZoneError
from test.support.zones import HEAD, ZoneTestCase, text_of


class VMTests(ZoneTestCase):
    """VMs' addresses in place of the file's."""

    def setUp(self) -> None:
        """Make a zone with one VM of each kind."""
        self.served = self.zones(
            "$ORIGIN example.\n"
            + HEAD
            + "www A 192.0.2.1\nwww AAAA 2001:db8::1\nwww TXT kept\nal CNAME www\nd DNAME e\n"
            "sub NS ns.test.\nout CNAME www.invalid.\n",
        )
        self.add("www", "192.0.2.80")
        self.add("*.w", "2001:db8::80", "192.0.2.81", "2001:db8::80")
        self.add("a.b", "192.0.2.82")

    def add(self, label: str, *addresses: str, vm: str = "") -> None:
        """Add a VM called *vm*, by default like its *label*."""
        self.served.add_vm(from_text(f"{label}.example"), vm or label, map(ip_address, addresses), 5)

    def test_addresses(self) -> None:
        """They replace A and AAAA, other types stay; outcomes have the VM through a CNAME and a wildcard."""
        self.check(
            self.served,
            [
                ("www.example", "A", "Found www.example A 192.0.2.80 vm=www"),
                ("www.example", "AAAA", "NoData vm=www"),
                ("www.example", "TXT", 'Found www.example TXT "kept" vm=www'),
                ("www.example", "ANY", 'Found www.example HINFO "RFC8482" "" vm=www'),
                ("al.example", "A", "Found al.example CNAME www.example.; www.example A 192.0.2.80 vm=www"),
                ("al.example", "CNAME", "Found al.example CNAME www.example."),
                ("out.example", "A", "Found out.example CNAME www.invalid."),
                ("x.y.w.example", "A", "Found x.y.w.example A 192.0.2.81 vm=*.w"),
                ("x.w.example", "AAAA", "Found x.w.example AAAA 2001:db8::80 vm=*.w"),
                ("x.w.example", "HTTPS", "NoData vm=*.w"),
                ("b.example", "A", "NoData"),
                ("example", "A", "NoData"),
            ],
        )
        outcome = self.served.lookup(from_text("www.example"), 1)
        assert isinstance(outcome, Found)
        self.assertEqual(5, outcome.answer[0].ttl)

    def test_too_many(self) -> None:
        """More addresses than fit into a message are refused, and those before stay."""
        many = [f"10.0.{number >> 8}.{number & 255}" for number in range(3751)]
        with self.assertRaisesRegex(ZoneError, "VM www: www.example: A records of 60,016 octets: a message has room"):
            self.add("www", *many)
        self.check(self.served, [("www.example", "A", "Found www.example A 192.0.2.80 vm=www")])
        self.add("www", *many[1:])

    def test_replace(self) -> None:
        """The same VM again replaces its addresses; another VM at that name is an error."""
        self.add("WWW", "192.0.2.83", vm="www")
        self.check(self.served, [("www.example", "A", "Found www.example A 192.0.2.83 vm=www")])
        with self.assertRaisesRegex(ZoneError, "is the name of VM www already"):
            self.add("www", "192.0.2.84", vm="other")

    def test_remove(self) -> None:
        """The file's records return, however often the VM changed; names that existed for the VM alone vanish."""
        self.add("www", "192.0.2.83")
        for label in ("www", "*.w", "a.b"):
            self.served.remove_vm(from_text(f"{label}.example"))
        self.check(
            self.served,
            [
                ("www.example", "A", "Found www.example A 192.0.2.1"),
                ("www.example", "AAAA", "Found www.example AAAA 2001:db8::1"),
                ("x.w.example", "A", "NxDomain"),
                ("w.example", "A", "NxDomain"),
                ("b.example", "A", "NxDomain"),
            ],
        )
        for label in ("www", "nowhere"):
            with self.assertRaisesRegex(ZoneError, "not the name of a VM"):
                self.served.remove_vm(from_text(f"{label}.example"))

    def test_remove_keeps_names_above_others(self) -> None:
        """A name above goes with the last name below it, not before."""
        self.add("c.b", "192.0.2.85")
        self.served.remove_vm(from_text("a.b.example"))
        self.check(self.served, [("a.b.example", "A", "NxDomain"), ("b.example", "A", "NoData")])

    def test_refused_names(self) -> None:
        """A VM's name must be in the zone and no other VM's; the error has the reason, and nothing has changed."""
        for name, reason in [
            ("al.example", "has a CNAME record"),
            ("d.example", "has a DNAME record"),
            ("x.d.example", "redirected by the DNAME at d.example"),
            ("sub.example", "delegated by the NS records at sub.example"),
            ("x.sub.example", "delegated by the NS records at sub.example"),
            ("example.test", "in none of the zones"),
        ]:
            with self.subTest(name=name), self.assertRaisesRegex(ZoneError, reason):
                self.served.add_vm(from_text(name), "v", [ip_address("192.0.2.9")], 5)
        self.check(
            self.served, [("al.example", "A", "Found al.example CNAME www.example.; www.example A 192.0.2.80 vm=www")]
        )

    def test_records(self) -> None:
        """AXFR order: the SOA first and once, every record once, VMs' addresses instead of the file's."""
        (zone,) = self.served
        lines = [text_of(record) for record in zone.records()]
        self.assertTrue(lines[0].startswith("example SOA"))
        self.assertEqual(
            [
                "*.w.example A 192.0.2.81",
                "*.w.example AAAA 2001:db8::80",
                "a.b.example A 192.0.2.82",
                "al.example CNAME www.example.",
                "d.example DNAME e.example.",
                "out.example CNAME www.invalid.",
                "sub.example NS ns.test.",
                "www.example A 192.0.2.80",
                'www.example TXT "kept"',
            ],
            sorted(lines[1:]),
        )

    def test_made_up(self) -> None:
        """A zone without a file has the original's times: refresh TTL, retry 3, expire and minimum twice the TTL."""
        zones = Zones([Zone.made_up(from_text("example.org"), 60, [ip_address("192.0.2.53")])])
        ns = "ns.example.org"
        self.check(
            zones,
            [
                ("example.org", "SOA", f"Found example.org SOA {ns}. hostmaster.example.org. 1 60 3 120 120"),
                ("example.org", "NS", f"Found example.org NS {ns}. + {ns} A 192.0.2.53"),
            ],
        )
        (zone,) = zones
        self.assertEqual(([], 60), (zone.warnings, zone.negative_ttl))
        with self.assertRaisesRegex(ZoneError, "too long"):
            Zone.made_up((b"\1a" * 125) + ROOT, 60)


class SerialTests(ZoneTestCase):
    """The serial of the SOA record."""

    def test_bump(self) -> None:
        """The new serial is greater by RFC 1982 everywhere; the SOA's other fields, owner and TTL stay."""
        for before, after in [(7, 8), (0x7FFFFFFF, 0x80000000), (0xFFFFFFFF, 0)]:
            with self.subTest(before=before):
                zones = self.zones(f"$ORIGIN Example.\n$TTL 3600\n@ SOA ns hostmaster {before} 1h 10m 1d 60\n")
                (zone,) = zones
                zone.bump()
                self.assertEqual(after, zone.serial)
                fields = f"ns.Example. hostmaster.Example. {after} 3600 600 86400 60"
                self.check(zones, [("Example", "SOA", f"Found Example SOA {fields}")])
                self.assertEqual([(f"Example SOA {fields}", 3600)], [(text_of(r), r.ttl) for r in zone.records()])
                self.assertEqual((f"Example SOA {fields}", 60), (text_of(zone.negative_soa), zone.negative_ttl))

    def test_vms(self) -> None:
        """Adding, replacing and removing a VM leave the serial unchanged: only `bump` changes it."""
        (zone,) = self.zones("$ORIGIN example.\n" + HEAD)
        for address in ("192.0.2.1", "192.0.2.2"):
            zone.add_vm(from_text("www.example"), "www", [ip_address(address)], 5)
            self.assertEqual(7, zone.serial)
        zone.remove_vm(from_text("www.example"))
        self.assertEqual(7, zone.serial)
        zone.bump()
        zone.add_vm(from_text("www.example"), "www", [ip_address("192.0.2.1")], 5)
        self.assertEqual(8, zone.serial)


class ReadTests(ZoneTestCase):
    """Master files: what they may contain, and the errors for wrong ones."""

    def test_master_file(self) -> None:
        """What RFC 1035, 5 and RFC 2308, 4 allow, and BIND's units and $GENERATE."""
        path = Path(
            self.write(
                "; comment\n$ORIGIN org.\n$TTL 1h\nexample IN SOA ns.example (\n  host.example ; mail\n"
                "  2026110101 1h\n 15m 1w 1m )\n  NS ns.example\n$ORIGIN example\n@ 2d IN MX 10 mail\n"
                '   TXT "a b" "c;d"\n'
                "ns IN 5m A 192.0.2.1\n$INCLUDE more.inc inner\nx A 192.0.2.3\n$GENERATE 1-2 h$ A 192.0.2.$\n"
                "u TYPE65280 \\# 2 abcd\n",
            ),
        )
        (path.parent / "more.inc").write_text("\nin A 192.0.2.2\n$ORIGIN lost.\n")
        zone = Zone.read(str(path))
        self.assertEqual((from_text("example.org"), 2026110101, []), (zone.key, zone.serial, zone.warnings))
        self.assertEqual(
            [
                "SOA ns.example.org. host.example.org. 2026110101 3600 900 604800 60 3600",
                "NS ns.example.org. 3600",
                "MX 10 mail.example.org. 172800",
                'TXT "a b" "c;d" 3600',
                "ns A 192.0.2.1 300",
                "in.inner A 192.0.2.2 3600",
                "x A 192.0.2.3 3600",
                "h1 A 192.0.2.1 3600",
                "h2 A 192.0.2.2 3600",
                "u TYPE65280 \\# 2 abcd 3600",
            ],
            [
                f"{text_of(r)} {r.ttl}".replace(".example.org ", " ", 1).removeprefix("example.org ")
                if not text_of(r).startswith("example.org ")
                else f"{text_of(r)} {r.ttl}".removeprefix("example.org ")
                for r in zone.records()
            ],
        )

    def test_origin(self) -> None:
        """The origin is the caller's, or $ORIGIN, or the owner of the SOA."""
        for text, origin in [
            (HEAD + "a A 192.0.2.1\n", "example.org"),
            ("$ORIGIN example.org.\n" + HEAD + "a A 192.0.2.1\n", None),
            ("$TTL 60\nExample.org. SOA n.test. h.test. 1 2 3 4 5\na A 192.0.2.1\n", None),
            ("\ufeff$ORIGIN example.org.\n" + HEAD + "a A 192.0.2.1\n", "example.org."),
        ]:
            with self.subTest(text=text):
                zones = Zones([Zone.read(self.write(text), origin)])
                self.check(zones, [("a.example.org", "A", "Found a.example.org A 192.0.2.1")])

    def test_default_ttl(self) -> None:
        """Without $TTL the TTL is the SOA's minimum, then the last one given; $TTL overrides both (RFC 2308, 4)."""
        text = "$ORIGIN e.\n@ SOA n h 1 2 3 4 5\na A 192.0.2.1\nb 7 A 192.0.2.1\nc A 192.0.2.1\n$TTL 9\nd A 192.0.2.1\n"
        self.assertEqual([5, 5, 7, 7, 9], [record.ttl for record in Zone.read(self.write(text)).records()])

    def test_rrset(self) -> None:
        """The smallest TTL of an RRset is that of all (RFC 2181, 5.2); a record that is there twice is there once."""
        zone = Zone.read(
            self.write(
                "$ORIGIN e.\n"
                + HEAD
                + "@ NS ns\n@ NS NS.e.\nns 60 A 192.0.2.1\nns 30 A 192.0.2.2\nns 60 A 192.0.2.1\n",
            ),
        )
        self.assertEqual(
            [("e NS ns.e.", 3600), ("ns.e A 192.0.2.1", 30), ("ns.e A 192.0.2.2", 30)],
            [(text_of(record), record.ttl) for record in zone.records()][1:],
        )
        self.assertEqual(2, len(zone.warnings))
        self.assertRegex(zone.warnings[0], r"a\.zone:7: ns\.e A: several TTLs")

    def test_errors(self) -> None:
        """Each names the file and the line that the record begins on, in one line, and what would be right."""
        top = "$ORIGIN example.\n" + HEAD
        for text, place, reason in [
            ("", "", "no SOA record: add"),
            ("$ORIGIN example.\n$TTL 60\na A 192.0.2.1\n", "", "no SOA record"),
            (top + "@ SOA ns h 1 2 3 4 5\n", ":4", "second SOA record, after line 3"),
            (HEAD, ":2", r"put '\$ORIGIN example.org.' at the top"),
            ("e. 60 SOA n.e. h 1 2 3 4 5\n", ":1", r"put '\$ORIGIN"),
            (top + "a A 192.0.2.1\nb.test. A 192.0.2.1\n", ":5", r"b\.test is outside the zone example"),
            (top + "xexample. A 192.0.2.1\n", ":4", "outside the zone"),
            (top + "x\\007example. A 192.0.2.1\n", ":4", "outside the zone"),
            (top + "a CNAME b\na CNAME c\n", ":5", "second CNAME"),
            (top + "a CNAME b\na A 192.0.2.1\n", ":5", "CNAME and A: a CNAME record stands alone"),
            (top + "a TXT x\n\na CNAME b\n", ":6", "CNAME and TXT"),
            (top + "@ CNAME b\n", ":4", "CNAME and SOA"),
            (top + "a DNAME b\na DNAME c\n", ":5", "second DNAME"),
            (top + "a DNAME b\na NS c\n", ":5", "only at the apex"),
            (top + "* NS b\n", ":4", "wildcard cannot have NS"),
            (top + "*.a DNAME b\n", ":4", "wildcard cannot have DNAME"),
            (top + "a A 192.0.2.256\n", ":4", "A: 192.0.2.256 is no IPv4 address"),
            (top + "a MX mail\n", ":4", "'mail' is no number"),
            (top + "a WHAT mail\n", ":4", "unknown type 'WHAT'"),
            (top + "a CH A 192.0.2.1\n", ":4", "class"),
            (top + "a TYPE251 \\# 0\n", ":4", "type for questions"),
            (top + "a TXT (\n x\n", ":4", "parenthes"),
            (top + 'a TXT "x\n', ":4", "the quote that opens here"),
            (top + "a" * 64 + " A 192.0.2.1\n", ":4", "label"),
            (top + "$TTL never\n", ":4", "'never' is no TTL"),
            (top + "$NO\n", ":4", r"no such directive: '\$NO'"),
            (top + "$INCLUDE nowhere\n", ":4", "INCLUDE .*nowhere: cannot read the zone file: No such file"),
            (top + "$INCLUDE a.zone\n", ":4", "include itself"),
            ("a A 192.0.2.1\n\0", ":2", "NUL"),
        ]:
            with self.subTest(text=text):
                path = self.write(text)
                with self.assertRaisesRegex(ZoneError, reason) as caught:
                    Zone.read(path)
                self.assertTrue(str(caught.exception).startswith(f"{path}{place}: "), str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))

    def test_unreadable(self) -> None:
        """A file that is not there, is a directory or is not text is an error as any other."""
        binary = Path(self.write(""))
        binary.write_bytes(b"; fine\n\xff\xfe")
        for path, reason in [
            ("/nonexistent/a.zone", "a.zone: cannot read the zone file: No such file"),
            ("/", "/: cannot read the zone file: Is a directory"),
            (str(binary), "a.zone:2: not text in UTF-8"),
        ]:
            with self.subTest(path=path), self.assertRaisesRegex(ZoneError, reason):
                Zone.read(path)

    def test_wrong_origin(self) -> None:
        """A zone that the caller calls otherwise than its SOA, or by no name at all, is an error."""
        path = self.write("$ORIGIN example.\n" + HEAD)
        for origin, reason in [("example.org", "SOA record is for example, but"), ("a..b", "not a domain name")]:
            with self.subTest(origin=origin), self.assertRaisesRegex(ZoneError, reason):
                Zone.read(path, origin)

    def test_error_in_included_file(self) -> None:
        """An error has the file that its record is in."""
        path = Path(self.write("$ORIGIN example.\n" + HEAD + "$INCLUDE b.inc\n"))
        (path.parent / "b.inc").write_text("a A 192.0.2.1\na CNAME b\n")
        with self.assertRaisesRegex(ZoneError, r"/b\.inc:2: a\.example: CNAME and A") as caught:
            Zone.read(str(path))
        self.assertEqual(2, caught.exception.line)

    def test_warnings(self) -> None:
        """Name servers without addresses and records that are never served; a VM's address is one, too."""
        zone = Zone.read(
            self.write(
                "$ORIGIN example.\n" + HEAD + "@ NS ns\n@ NS ns.test.\n@ NS w.w\n*.w A 192.0.2.1\nsub NS ns.sub\n"
                "sub NS ns.oth\noth NS n.test.\nsub TXT x\nx.sub MX 1 a\nd DNAME e\na.d A 192.0.2.1\n",
            ),
        )
        self.assertEqual(
            [
                "a.d.example A: under the DNAME of d.example, so never served",
                "example NS ns.example: that has no A or AAAA record (RFC 1912, 2.8)",
                "sub.example NS ns.sub.example: that has no A or AAAA record (RFC 1912, 2.8)",
                "sub.example TXT: under the NS of sub.example, so never served",
                "x.sub.example MX: under the NS of sub.example, so never served",
            ],
            sorted(line.removeprefix(f"{zone.path}: ") for line in zone.warnings),
        )
        zone.add_vm(from_text("ns.example"), "ns", [ip_address("192.0.2.1")], 5)
        self.assertEqual(4, len(zone.warnings))
        self.assertRegex(Zone.read(self.write("$ORIGIN e.\n" + HEAD)).warnings[0], "no NS record for e ")
