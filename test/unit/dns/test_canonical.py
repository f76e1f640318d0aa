"""The canonical forms and orders of DNSSEC; dnspython is the oracle."""

from __future__ import annotations

import itertools
import random

import dns.name
import dns.rdata
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import canonical
from jitsu_tw.dns.wire import RRset, from_text

#: The example of RFC 4034, 6.1, in its order.
EXAMPLE = (
    "example", "a.example", "yljkjljk.a.example", "Z.a.example", "zABC.a.EXAMPLE", "z.example", "\\001.z.example",
    "*.z.example", "\\200.z.example",
)  # fmt: skip

#: One record of each type that has names in its data, with capitals in all of them.
RECORDS = (
    "NS Ns.Example.", "CNAME Ns.Example.", "PTR Ns.Example.", "DNAME Ns.Example.", "MX 10 Ns.Example.",
    "SOA Ns.Example. Me.Example. 1 2 3 4 5", "RP Ns.Example. Me.Example.", "AFSDB 1 Ns.Example.", "RT 1 Ns.Example.",
    "KX 1 Ns.Example.", "PX 1 Ns.Example. Me.Example.", "SRV 1 2 3 Ns.Example.", "NSEC Ns.Example. A",
    'NAPTR 1 2 "S" "Sip" "!A!B!" Ns.Example.', "RRSIG A 13 2 60 20300101000000 20200101000000 1 Ns.Example. AAAA",
    "HTTPS 1 Ns.Example. alpn=h2", 'TXT "Text"', 'HINFO "Cpu" "Os"', "DNSKEY 257 3 13 AAAA",
)  # fmt: skip


class CanonicalTests(SynchronousTestCase):
    """Compare with dnspython, and with the example of the RFC."""

    def test_example(self) -> None:
        """The names of RFC 4034, 6.1 have its order."""
        names = [from_text(name) for name in EXAMPLE]
        shuffled = random.Random(3).sample(names, len(names))
        self.assertEqual(names, sorted(shuffled, key=canonical.order))

    def test_order(self) -> None:
        """Names with labels of any octets have dnspython's order, and an ancestor's key begins those below it."""
        labels = [b"a", b"A", b"a\0", b"a\0b", b"a\1", b"a\1\1", b"a\2", b"\0", b"\1", b"*", b"b", b"\xff", b"z-", b"."]
        names = [dns.name.Name((*some, b"")) for count in range(3) for some in itertools.product(labels, repeat=count)]
        random.Random(1).shuffle(names)
        key = {name: canonical.order(name.to_wire() or b"") for name in names}
        self.assertEqual(sorted(names), sorted(names, key=key.__getitem__))
        for name in names:
            if name != dns.name.root:
                self.assertTrue(key[name].startswith(key[name.parent()]), name)
        self.assertEqual(key[dns.name.Name((b"a", b""))], key[dns.name.Name((b"A", b""))])

    def test_rdata(self) -> None:
        """Names in the data of the types of RFC 4034, 6.2 are in lower case; those of newer types and NSEC are not."""
        for text in RECORDS:
            rtype, _, data = text.partition(" ")
            rdata = dns.rdata.from_text("IN", rtype, data)
            with self.subTest(text):
                expected = rdata.to_digestable()
                if rtype == "RRSIG":  # dnspython does not follow RFC 6840, 5.1 here
                    expected = expected.replace(b"\2Ns\7Example", b"\2ns\7example")
                self.assertEqual(expected, canonical.rdata(int(rdata.rdtype), rdata.to_wire() or b""))

    def test_malformed(self) -> None:
        """Data that are too short for their type are left as they are."""
        for rtype in range(66):
            for octets in (b"", b"\xff", b"\0\1\0\1\5A"):
                self.assertEqual(octets, canonical.rdata(rtype, octets))

    def test_rrs(self) -> None:
        """An RRset is sorted by its canonical data, and records that differ in case only are one."""
        datas = tuple(map(from_text, ("b.example", "A.example", "a.example", "ab.example")))
        sorted_datas = [from_text(name) for name in ("a.example", "b.example", "ab.example")]
        found = canonical.rrs(RRset(b"\1X\0", 2, 60, datas), b"\1x\0", 300)
        one = b"\1x\0\0\2\0\1\0\0\1\x2c"
        self.assertEqual(b"".join(one + bytes([0, len(each)]) + each for each in sorted_datas), found)

    def test_bitmap(self) -> None:
        """A type bitmap is dnspython's, for any set of types, and is read back."""
        chosen = random.Random(2)
        for types in ({1}, {255, 256, 65535}, set(chosen.sample(range(1, 65536), 40)), {1, 46, 47, 6, 2, 15, 1234}):
            rdata = dns.rdata.from_text("IN", "NSEC", "a. " + " ".join(f"TYPE{rtype}" for rtype in types))
            wire = (rdata.to_wire() or b"")[3:]
            self.assertEqual(wire, canonical.bitmap(types))
            self.assertEqual(types, canonical.types(wire))

    def test_damaged_bitmap(self) -> None:
        """A type bitmap that is cut short, has an empty window, or windows in the wrong order, is refused."""
        for octets in (b"\0", b"\0\1", b"\0\0", b"\0\x21" + bytes(33), b"\1\1\x40\0\1\x40", b"\0\1\x40\0\1\x40"):
            with self.assertRaises(ValueError, msg=octets):
                canonical.types(octets)
