"""Signatures of a zone that Jitsu signs; dnspython is the oracle."""

from __future__ import annotations

from ipaddress import ip_address
from math import inf
from typing import TYPE_CHECKING
from unittest.mock import Mock

import attrs
import dns.dnssec
import dns.name
import dns.rdata
import dns.rdataset
import dns.rdatatype
import dns.rrset
from twisted.names.dns import AAAA, CNAME, DNAME, MX, NS, SOA, SRV, TXT, A
from zope.interface.verify import verifyObject

from jitsu_tw.dns import signing
from jitsu_tw.dns.dnskeys import ECDSAP256SHA256, ED25519, Key
from jitsu_tw.dns.interfaces import ISecurity
from jitsu_tw.dns.keytimes import Times, ds_seen, leaving, rolled
from jitsu_tw.dns.signing import EARLIER, Signed
from jitsu_tw.dns.wire import CDNSKEY, CDS, DNSKEY, DS, NSEC, RR, RRSIG, RRset, from_text, to_text
from jitsu_tw.dns.zone import Zone
from test.support.zones import HEAD, ZoneTestCase

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = 1_800_000_000
DAY = 86400
VALIDITY = 10 * DAY
APEX = from_text("example")

TEXT = HEAD + (
    "@ NS ns\n@ NS NS2.Example.\nns A 192.0.2.1\nns2 A 192.0.2.2\n"
    "Www A 192.0.2.4\nwww A 192.0.2.3\nwww 60 TXT b a\nwww 60 TXT a b\nwww MX 10 Mail.Other.test.\n"
    "al CNAME Www.Example.\n*.w SRV 1 2 3 Www\nd DNAME Other.test.\nx.d A 192.0.2.9\n"
    "sub NS ns.sub\nsub DS 1 13 2 " + "ab" * 32 + "\nns.sub A 192.0.2.5\nsub AAAA 2001:db8::1\nbelow.sub TXT hidden\n"
)


def as_rrset(records: Sequence[RR]) -> dns.rrset.RRset:
    """Return *records* as dnspython has them."""
    first = records[0]
    type_ = dns.rdatatype.RdataType.make(first.type)
    rdatas = [dns.rdata.from_wire("IN", type_, record.rdata, 0, len(record.rdata)) for record in records]
    return dns.rrset.from_rdata_list(dns.name.from_wire(first.owner, 0)[0], first.ttl, rdatas)


class SigningTestCase(ZoneTestCase):
    """Has a zone with one key, at a time that the test sets."""

    algorithm = ECDSAP256SHA256

    def setUp(self) -> None:
        """Sign it."""
        self.now = float(NOW)
        self.zone = Zone.read(self.write("$ORIGIN example.\n" + TEXT))
        self.key = Key.made(APEX, self.algorithm, Times.beginning(NOW, 3600))
        self.signed = Signed(self.zone, [self.key], Mock(), lambda: self.now, VALIDITY, lambda _, high: high)
        self.zone.secure(self.signed)

    def rrset(self, name: str, type_: int) -> RRset:
        """Return an RRset of the zone."""
        node = self.zone.get(from_text(name).lower())
        assert node is not None
        return node.rrsets[type_]

    def validate(self, rrset: RRset, owner: str = "", now: float | None = None) -> None:
        """Validate, by dnspython, each signature of *rrset* by the zone's DNSKEY RRset."""
        keys = as_rrset(self.rrset("example", DNSKEY).records())
        records = self.signed.signatures(rrset)
        self.assertTrue(records)
        name = from_text(owner) if owner else None
        for record in records:
            signature = as_rrset([RR(name or record.owner, RRSIG, record.ttl, record.rdata)])
            dns.dnssec.validate(as_rrset(rrset.records(name)), signature, {keys.name: keys}, now=now or self.now)


class SignedTests(SigningTestCase):
    """What is signed."""

    def test_interface(self) -> None:
        """It is a security."""
        verifyObject(ISecurity, self.signed)

    def test_valid(self) -> None:
        """Each RRset of the zone's authority is signed: types with names, several records, any case, and cuts."""
        for name, type_ in (
            ("example", SOA), ("example", NS), ("example", DNSKEY), ("www.example", A), ("www.example", TXT),
            ("www.example", MX), ("al.example", CNAME), ("*.w.example", SRV), ("d.example", DNAME), ("sub.example", DS),
        ):
            with self.subTest(f"{name} {dns.rdatatype.RdataType.make(type_).name}"):
                self.validate(self.rrset(name, type_))

    def test_fields(self) -> None:
        """A signature has the TTL of its RRset, begins an hour earlier, and ends after the validity less the jitter."""
        rrset = self.rrset("www.example", TXT)
        (record,) = self.signed.signatures(rrset)
        (fields,) = as_rrset([record])
        self.assertEqual((rrset.owner, 60), (record.owner, record.ttl))
        self.assertEqual((60, 2, NOW - EARLIER, NOW + VALIDITY * 9 // 10, self.key.tag, self.algorithm),
                         (fields.original_ttl, fields.labels, fields.inception, fields.expiration, fields.key_tag,
                          fields.algorithm))  # fmt: skip
        self.assertEqual("example", to_text(fields.signer.to_wire()))

    def test_wildcard(self) -> None:
        """The signature of a wildcard's RRset is good for the names that it answers for (RFC 4035, 5.3.2)."""
        self.validate(self.rrset("*.w.example", SRV), "a.b.w.example")

    def test_not_signed(self) -> None:
        """The NS records of a delegation, glue, and what is below a delegation or a DNAME are not signed."""
        for name, type_ in (("sub.example", NS), ("sub.example", AAAA), ("ns.sub.example", A),
                            ("below.sub.example", TXT), ("x.d.example", A)):  # fmt: skip
            with self.subTest(name=name, type=type_):
                self.assertEqual((), self.signed.signatures(self.rrset(name, type_)))
        self.assertEqual((), self.signed.signatures(RRset(from_text("other.test"), A, 60, (bytes(4),))))

    def test_denial(self) -> None:
        """NSEC records are signed at every name, at a delegation too, but not below it."""
        for name in ("www.example", "sub.example", "nobody.example"):
            self.validate(RRset(from_text(name), NSEC, 60, (from_text("z.example") + b"\0\1\2",)))
        self.assertEqual((), self.signed.signatures(RRset(from_text("ns.sub.example"), NSEC, 60, (b"\0\0\1\2",))))

    def test_vm(self) -> None:
        """The addresses of a VM are signed, and new ones anew."""
        name = from_text("www.example")
        for address in ("192.0.2.80", "2001:db8::80"):
            self.zone.add_vm(name, "www", [ip_address(address)], 5)
            self.validate(self.rrset("www.example", AAAA if ":" in address else A))

    def test_keys(self) -> None:
        """The apex has the DNSKEY; CDS and CDNSKEY come when the key is announced, and are signed, too."""
        self.assertEqual((self.key.dnskey,), self.rrset("example", DNSKEY).rdatas)
        node = self.zone.get(APEX)
        assert node is not None
        self.assertEqual(set(), node.rrsets.keys() & {CDS, CDNSKEY})
        self.now += 3600
        self.signed.use([self.key])
        for type_, rdata in ((CDS, self.key.ds), (CDNSKEY, self.key.dnskey)):
            self.assertEqual((rdata,), self.rrset("example", type_).rdatas)
            self.validate(self.rrset("example", type_))
        cds = as_rrset(self.rrset("example", CDS).records())[0]
        dnskey = as_rrset(self.rrset("example", DNSKEY).records())[0]
        self.assertEqual(dns.dnssec.make_ds("example.", dnskey, "SHA256").to_wire(), cds.to_wire())

    def test_rollover(self) -> None:
        """Through a rollover, every RRset validates by each DNSKEY RRset and each DS record that a cache may have."""
        self.now += 3600
        now, keys = int(self.now), {self.key.tag: self.key}
        new, changed = rolled({self.key.tag: self.key.times}, now, 3600)
        second = Key.made(APEX, ED25519, new)
        keys = {tag: attrs.evolve(keys[tag], times=times) for tag, times in changed.items()} | {second.tag: second}
        self.signed.use(keys.values())
        self.assertEqual(2, len(self.signed.signatures(self.rrset("www.example", A))))
        self.validate(self.rrset("www.example", A))
        self.validate(self.rrset("example", DNSKEY))
        self.now += 3600
        self.signed.use(keys.values())
        self.assertEqual((second.ds,), self.rrset("example", CDS).rdatas)
        self.validate(self.rrset("example", CDS))
        seen = ds_seen({tag: key.times for tag, key in keys.items()}, int(self.now), DAY)
        keys |= {tag: attrs.evolve(keys[tag], times=times) for tag, times in seen.items()}
        self.now += DAY - 1
        self.signed.use(keys.values())
        self.assertEqual(2, len(self.rrset("example", DNSKEY).rdatas))
        self.now += 1
        self.signed.use(keys.values())
        self.assertEqual((second.dnskey,), self.rrset("example", DNSKEY).rdatas)
        self.assertEqual(1, len(self.signed.signatures(self.rrset("www.example", A))))
        self.validate(self.rrset("www.example", A))

    def test_leaving(self) -> None:
        """A zone that is to be unsigned asks its parent to remove the DS records (RFC 8078, 4), and stays signed."""
        tag = self.key.tag
        self.signed.use([attrs.evolve(self.key, times=leaving({tag: self.key.times}, NOW)[tag])])
        texts = {type_: as_rrset(self.rrset("example", type_).records())[0].to_text() for type_ in (CDS, CDNSKEY)}
        self.assertEqual({CDS: "0 0 0 00", CDNSKEY: "0 3 0 AA=="}, texts)
        self.validate(self.rrset("example", CDS))
        self.validate(self.rrset("www.example", A))


class Ed25519Tests(SignedTests):
    """The same with algorithm 15."""

    algorithm = ED25519


class KeptTests(SigningTestCase):
    """Which signatures are kept, and for how long."""

    def octets(self, rrset: RRset) -> list[bytes]:
        """Return the data of the signatures of *rrset*: two of ECDSA are never the same."""
        return [record.rdata for record in self.signed.signatures(rrset)]

    def test_kept(self) -> None:
        """Signatures are the same while the RRset is, and until three quarters of their validity have passed."""
        rrset = self.rrset("www.example", A)
        first = self.octets(rrset)
        self.now += VALIDITY * 0.9 * 0.75 - 1
        self.assertEqual(first, self.octets(rrset))
        self.now += 1
        second = self.octets(rrset)
        self.assertNotEqual(first, second)
        self.assertNotEqual(second, self.octets(attrs.evolve(rrset)))
        self.validate(rrset)

    def test_renew(self) -> None:
        """What is due is told once, and made anew; the earliest expiry is that of what is not due."""
        self.assertEqual(inf, self.signed.earliest)
        first = self.octets(self.rrset("www.example", A))
        self.assertEqual(NOW + VALIDITY * 0.9, self.signed.earliest)
        self.now += DAY
        second = self.octets(self.rrset("www.example", TXT))
        self.assertFalse(self.signed.renew(NOW + VALIDITY * 0.9 * 0.75 - 1))
        self.now = NOW + VALIDITY * 0.9 * 0.75
        self.assertTrue(self.signed.renew(self.now))
        self.assertFalse(self.signed.renew(self.now))
        self.assertEqual(NOW + DAY + VALIDITY * 0.9, self.signed.earliest)
        self.assertEqual(second, self.octets(self.rrset("www.example", TXT)))
        self.assertNotEqual(first, self.octets(self.rrset("www.example", A)))

    def test_bounded(self) -> None:
        """Of too many signatures those give way that were not used for longest; that they expire is not forgotten."""
        self.patch(signing, "MOST_KEPT", 2)
        first = self.octets(self.rrset("www.example", A))
        second = self.octets(self.rrset("www.example", TXT))
        self.assertEqual(first, self.octets(self.rrset("www.example", A)))
        self.now += 1
        self.octets(self.rrset("www.example", MX))
        self.assertEqual(first, self.octets(self.rrset("www.example", A)))
        self.assertNotEqual(second, self.octets(self.rrset("www.example", TXT)))
        self.octets(self.rrset("www.example", MX))
        self.assertTrue(self.signed.renew(NOW + 1 + VALIDITY * 0.9 * 0.75))

    def test_flood(self) -> None:
        """What is made up for one question is signed each time, and drives out no signature of the zone's names."""
        self.patch(signing, "MOST_KEPT", 2)
        first = self.octets(self.rrset("www.example", A))
        for number in range(10):
            self.validate(RRset(from_text(f"x{number}.example"), NSEC, 60, (b"\0\0\1\2",)))
        self.assertEqual(first, self.octets(self.rrset("www.example", A)))

    def test_jitter(self) -> None:
        """The validities of signatures differ."""
        signed = Signed(self.zone, [self.key], Mock(), lambda: self.now, VALIDITY)
        ends = {as_rrset(signed.signatures(self.rrset(name, type_)))[0].expiration
                for name, type_ in (("www.example", A), ("www.example", TXT), ("www.example", MX))}
        self.assertEqual(3, len(ends))
        self.assertTrue(all(NOW + VALIDITY * 0.9 - 1 <= end <= NOW + VALIDITY for end in ends))

    def test_made(self) -> None:
        """Signatures are counted as they are made."""
        for _ in range(2):
            self.octets(self.rrset("www.example", A))
        self.assertEqual(1, self.signed.made)
