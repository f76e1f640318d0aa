"""The NSEC chain of a zone that Jitsu signs: that of BIND, and no name in it that may come to exist."""

from __future__ import annotations

import random
import subprocess
from ipaddress import ip_address
from pathlib import Path

import dns.name
import dns.rdata
import dns.rdatatype
import dns.zone
from zope.interface.verify import verifyObject

from jitsu_tw.dns import canonical
from jitsu_tw.dns.chain import NsecChain
from jitsu_tw.dns.interfaces import IDenial
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.message import name_end
from jitsu_tw.dns.wire import RRset, from_text, next_closer, to_text
from jitsu_tw.dns.zone import Zone
from test.support.zones import HEAD, ZoneTestCase

#: Empty non-terminals, wildcards, delegations with and without DS, glue, DNAME, hidden names, escapes, capitals.
NASTY = f"""$ORIGIN Example.
{HEAD}
@ NS ns
@ MX 10 Mail
ns A 192.0.2.1
*.Wild TXT "a"
www.wild A 192.0.2.2
a.b.c.ent A 192.0.2.3
*.ent2.deep A 192.0.2.3
sub NS ns.sub
sub NS ns
ns.sub A 192.0.2.4
deep.below.sub A 192.0.2.5
own NS own
own A 192.0.2.11
secure NS ns.secure
secure DS 12345 13 2 {"AB" * 32}
ns.secure AAAA 2001:db8::1
*.secure TXT "hidden"
old DNAME new
old TXT "beside"
hidden.old A 192.0.2.6
x.hidden.old NS ns
new A 192.0.2.7
UPPER TXT "x"
Upper.lower TXT "x"
\\000 TXT "x"
\\001 TXT "x"
a\\000 TXT "x"
a TXT "x"
a\\001b TXT "x"
a\\.b TXT "x"
\\255 TXT "x"
{"z" * 63} TXT "x"
big TYPE65280 \\# 1 00
big TYPE1000 \\# 1 00
alias CNAME www.wild
sub-a A 192.0.2.8
"""


def describe(rrset: RRset) -> str:
    """Return an NSEC record as ``owner next types``."""
    rdata = rrset.rdatas[0]
    end = name_end(rdata, 0)
    types = map(dns.rdatatype.RdataType.make, sorted(canonical.types(rdata[end:])))
    return f"{to_text(rrset.owner)} {to_text(rdata[:end])} {' '.join(map(dns.rdatatype.to_text, types))}"


class Proven:
    """An `ISecurity` that has a denial only."""

    def __init__(self, zone: Zone) -> None:
        """Deny what *zone* does not have."""
        self.denial = NsecChain(zone)


class ChainTestCase(ZoneTestCase):
    """Makes zones, and shows proofs."""

    def zone(self, text: str) -> tuple[Zone, NsecChain]:
        """Return the zone ``example`` of *text*, and its chain."""
        zone = Zone.read(self.write(f"$ORIGIN example.\n{HEAD}@ NS ns\n{text}"))
        proven = Proven(zone)
        zone.secure(proven)  # type: ignore[arg-type]
        return zone, proven.denial

    def check_proofs(self, expected: str, rrsets: object) -> None:
        """Compare *rrsets* with the *expected* lines."""
        found = [describe(rrset) for rrset in rrsets]  # type: ignore[attr-defined]
        self.assertEqual([line.strip() for line in expected.strip().splitlines()], found)


class NsecChainTests(ChainTestCase):
    """Compare with BIND's chain, and with what a chain must have."""

    def test_interface(self) -> None:
        """It is an `IDenial`."""
        verifyObject(IDenial, self.zone("")[1])

    def test_same_as_bind(self) -> None:
        """The chain of a zone with everything that is special in a chain is that of BIND's signer."""
        path = Path(self.write(NASTY))
        folder = str(path.parent)
        key = subprocess.run(
            ["dnssec-keygen", "-q", "-a", "13", "-f", "KSK", "-K", folder, "example"],
            check=True, capture_output=True, text=True, timeout=60,
        ).stdout.strip()  # fmt: skip
        whole = path.read_text() + (path.parent / f"{key}.key").read_text()
        path.write_text(whole)
        signed = path.with_suffix(".signed")
        arguments = ["-q", "-P", "-z", "-K", folder, "-d", folder, "-o", "example", "-f", str(signed), str(path)]
        subprocess.run(["dnssec-signzone", *arguments], check=True, capture_output=True, timeout=60)
        theirs = {}
        for name, _, rdata in dns.zone.from_file(str(signed), "example.", relativize=False).iterate_rdatas("NSEC"):
            theirs[name.to_text().lower()] = rdata.to_text().lower()
        ours = {}
        for rrset in NsecChain(Zone.read(path)).rrsets():
            self.assertEqual(60, rrset.ttl)  # the SOA's minimum (RFC 9077)
            rdata = dns.rdata.from_wire("IN", "NSEC", rrset.rdatas[0], 0, len(rrset.rdatas[0]))
            ours[dns.name.from_wire(rrset.owner, 0)[0].to_text()] = rdata.to_text().lower()
        self.assertEqual(theirs, ours)

    def test_name_error(self) -> None:
        """A name that does not exist, and the wildcard that would match it, are spanned by one or two records."""
        _, chain = self.zone("b A 192.0.2.1\nd.c A 192.0.2.1\nm A 192.0.2.1\n")
        self.check_proofs("b.example d.c.example A RRSIG NSEC\nexample b.example NS SOA RRSIG NSEC",
                          chain.no_name(from_text("bb.example")))
        self.check_proofs("example b.example NS SOA RRSIG NSEC", chain.no_name(from_text("a.a.example")))
        self.check_proofs("d.c.example m.example A RRSIG NSEC\nb.example d.c.example A RRSIG NSEC",
                          chain.no_name(from_text("e.c.example")))
        self.check_proofs("m.example example A RRSIG NSEC\nexample b.example NS SOA RRSIG NSEC",
                          chain.no_name(from_text("z.example")))

    def test_no_type(self) -> None:
        """A name without the type has its own record; for an empty non-terminal, the record spans it."""
        _, chain = self.zone("b.a A 192.0.2.1\n*.w A 192.0.2.1\ncut NS x.test.\nx.*.e A 192.0.2.1\n")
        self.check_proofs("b.a.example cut.example A RRSIG NSEC", chain.no_type(from_text("b.a.example"), 28))
        self.check_proofs("example b.a.example NS SOA RRSIG NSEC", chain.no_type(from_text("a.example"), 1))
        self.check_proofs("*.w.example example A RRSIG NSEC", chain.no_type(from_text("y.w.example"), 28))
        self.check_proofs("*.w.example example A RRSIG NSEC", chain.no_type(from_text("*.w.example"), 28))
        self.check_proofs("x.*.e.example *.w.example A RRSIG NSEC\ncut.example x.*.e.example NS RRSIG NSEC",
                          chain.no_type(from_text("y.e.example"), 28))
        self.check_proofs("cut.example x.*.e.example NS RRSIG NSEC", chain.no_ds(from_text("cut.example")))
        self.check_proofs("*.w.example example A RRSIG NSEC", chain.not_exact(from_text("y.x.w.example")))

    def test_kept(self) -> None:
        """A record is the same object until it changes, so that its signature can be kept."""
        zone, chain = self.zone("b A 192.0.2.1\nm A 192.0.2.1\n")
        apex, b, m = chain.rrsets()
        self.assertIs(b, chain.no_type(from_text("b.example"), 28)[0])
        zone.add_vm(from_text("n.example"), "n", [ip_address("192.0.2.9")], 60)
        after = list(chain.rrsets())
        self.assertIs(apex, after[0])
        self.assertIs(b, after[1])
        self.assertIsNot(m, after[2])
        zone.add_vm(from_text("b.example"), "b", [ip_address("2001:db8::9")], 60)
        self.assertEqual("b.example m.example AAAA RRSIG NSEC", describe(list(chain.rrsets())[1]))
        self.assertIs(apex, next(chain.rrsets()))

    def test_transfer_notices(self) -> None:
        """A chain that changes while it is read raises what a changed dict raises."""
        zone, chain = self.zone("b A 192.0.2.1\nm A 192.0.2.1\n")
        rrsets = chain.rrsets()
        next(rrsets)
        zone.add_vm(from_text("n.example"), "n", [ip_address("192.0.2.9")], 60)
        self.assertRaises(RuntimeError, list, rrsets)

    def test_changes(self) -> None:
        """After any changes of VMs, keys and cuts, the chain is that of a zone that is read anew."""
        chosen = random.Random(1)
        zone, chain = self.zone("cut.a NS ns.test.\nx.cut.a A 192.0.2.1\nalias DNAME b\n*.w A 192.0.2.1\n")
        names = [f"{name}example" for name in ("a.", "b.", "c.b.", "*.w.", "*.c.b.", "d.c.b.", "zz.", "*.q.")]
        for number in range(300):
            name = from_text(chosen.choice(names))
            node = zone.get(name)
            if node is not None and node.vm is not None and chosen.random() < 0.6:
                zone.remove_vm(name)
            else:
                addresses = [ip_address("192.0.2.9"), ip_address("2001:db8::1")][: chosen.randrange(3)]
                zone.add_vm(name, to_text(name), addresses, 60)
            if number == 150:
                zone.put_keys([RRset(zone.key, 48, 60, (b"\1\1\3\15abc",))])
            if number == 200:
                zone.add(from_text("zz.b.example"), 2, 60, from_text("ns.test"))
                zone.add(from_text("x.zz.b.example"), 1, 60, bytes(4))
            fresh = NsecChain(zone)
            self.assertEqual(list(fresh.rrsets()), list(chain.rrsets()))
            for qname in (*names, "x.q.example", "y.a.example", "b.w.example", "e.c.b.example"):
                key = from_text(qname)
                if zone.cut_over(key, 1) is None:
                    one, other = [
                        each.no_name(key) if zone.match(key) is None else each.no_type(key, 99)
                        for each in (fresh, chain)
                    ]
                    self.assertEqual(one, other, qname)

    def test_glue_at_cut(self) -> None:
        """A delegation to its own name has no bit for its glue (RFC 4035, 2.3)."""
        _, chain = self.zone("own NS own\nown A 192.0.2.1\n")
        self.check_proofs("own.example example NS RRSIG NSEC", chain.no_ds(from_text("own.example")))

    def test_new_cut(self) -> None:
        """Names below a delegation that is added leave the chain."""
        zone, chain = self.zone("a.b A 192.0.2.1\n")
        zone.add(from_text("b.example"), 2, 60, from_text("ns.test"))
        self.check_proofs("example b.example NS SOA RRSIG NSEC\nb.example example NS RRSIG NSEC", chain.rrsets())


class OpenNamesTests(ChainTestCase):
    """Ask for proofs near names that may come to exist, and read each as a cache of RFC 8198 does."""

    TEXT = "a A 192.0.2.1\nz A 192.0.2.1\nfile.sites TXT x\n"

    def setUp(self) -> None:
        """Begin with a template's names, one of which has been made, between others."""
        self.served, self.chain = self.zone(self.TEXT)
        self.served.add_vm(from_text("*.sites.example"), "t", [], 60)
        self.served.add_vm(from_text("made.sites.example"), "made.t", [ip_address("192.0.2.3")], 60)

    def denied(self, rrset: RRset, key: bytes, qtype: int) -> bool:
        """Return whether *rrset* alone says of *key* that it does not exist, or has no records of type *qtype*."""
        rdata = rrset.rdatas[0]
        end = name_end(rdata, 0)
        start, last, place = map(canonical.order, (rrset.owner, rdata[:end], key))
        if place == start:
            return qtype not in canonical.types(rdata[end:])
        return start < place < last or (last <= start and (place > start or place < last))

    def test_no_name_is_denied(self) -> None:
        """No proof denies the address of a name that may come to exist, but that of the name it was made for."""
        may = [from_text(f"{label}.sites.example") for label in
               ("0", "a", "fo", "foo", "foo0", "foo-", "fop", "fon", "made", "y", "zzz", "a" * 63, "a" * 62 + "b")]
        asked = [*may, *map(from_text, (
            "m.example", "b.example", "y.example", "zz.example", "sites.example", "*.sites.example", "*.example",
            "x.y.sites.example", "w.x.y.sites.example",
            "\\000.sites.example", "foo\\000.sites.example", "a.example", "file.sites.example",
            "x.file.sites.example", "foo[.sites.example", "foo@.sites.example", "\\255.sites.example", "example"))]
        for key in asked:
            node = self.served.match(key)
            proofs: list[RRset] = []
            if self.served.get(key) is None:
                proofs += self.chain.no_name(key)
            if node is not None:
                proofs += [proof for qtype in (16, 99) for proof in self.chain.no_type(key, qtype)]
            for proof in proofs:
                for other in may:
                    if other != key:
                        self.assertFalse(self.denied(proof, other, 1), (describe(proof), to_text(other)))

    def test_proofs_hold(self) -> None:
        """Each proof denies what it is for: a name and its wildcard, or a type of a name, which it shows to exist."""
        for name in ("foo", "a" * 63, "foo\\000", "\\000", "foo\\091", "m.made", "zz"):
            key = from_text(f"{name}.sites.example")
            closer, encloser = next_closer(key, self.served.nodes)
            for wanted in (closer, b"\1*" + encloser):
                self.assertTrue(any(self.denied(proof, wanted, 1) and proof.owner != wanted
                                    for proof in self.chain.no_name(key)), name)
        self.check_proofs("w\\255.y.sites.example x\\000.y.sites.example RRSIG NSEC\n"
                          "\\)\\255.y.sites.example *\\000.y.sites.example RRSIG NSEC",
                          self.chain.no_name(from_text("a.x.y.sites.example")))
        (proof,) = self.chain.no_type(from_text("foo.sites.example"), 28)
        self.assertEqual("foo.sites.example \\000.foo.sites.example A RRSIG NSEC", describe(proof))
        (proof,) = self.chain.no_type(from_text("*.sites.example"), 1)
        self.assertEqual("*.sites.example \\000.*.sites.example AAAA RRSIG NSEC", describe(proof))
        (proof,) = self.chain.no_type(from_text("sites.example"), 1)
        self.assertEqual("siter\\255.example \\000.sites.example RRSIG NSEC", describe(proof))

    def test_records_near(self) -> None:
        """A record of a name that exists ends below it only where open names would follow."""
        self.check_proofs("made.sites.example \\000.made.sites.example A RRSIG NSEC",
                          self.chain.no_type(from_text("made.sites.example"), 28))
        self.check_proofs("z.example example A RRSIG NSEC", self.chain.no_type(from_text("z.example"), 28))
        self.check_proofs("a.example \\000.a.example A RRSIG NSEC", self.chain.no_type(from_text("a.example"), 28))

    def test_whole_chain(self) -> None:
        """A transfer has a chain without gaps."""
        self.check_proofs("""
            example a.example NS SOA RRSIG NSEC
            a.example file.sites.example A RRSIG NSEC
            file.sites.example made.sites.example TXT RRSIG NSEC
            made.sites.example z.example A RRSIG NSEC
            z.example example A RRSIG NSEC
        """, self.chain.rrsets())

    def test_longest_names(self) -> None:
        """A proof for a name of 255 octets has no longer names."""
        above = b"".join(b"\x3f" + bytes([letter]) * 63 for letter in b"abc")
        for label in (b"x" * 44, b"\0" * 44, b"\xff" * 44, b"[" * 44, b"@" * 44):
            key = bytes([len(label)]) + label + above + from_text("sites.example")
            self.assertEqual(252, len(key))
            for longer in (key, b"\1k" + key):
                zone, chain = self.zone("")
                zone.add_vm(b"\1*" + longer[longer[0] + 1 :], "t", [], 60) if len(longer) < 254 else None
                for proof in chain.no_name(longer):
                    self.assertTrue(name_end(proof.rdatas[0], 0), longer)
                    self.assertEqual(len(proof.owner), name_end(proof.owner, 0))

    def test_enclosed(self) -> None:
        """Names of a served zone inside, without a delegation, are not denied; it is shown to have no DS."""
        zone, chain = self.zone("a A 192.0.2.1\nz A 192.0.2.1\n")
        Zones([zone, Zone.made_up(from_text("inner.example"), 60)])
        key = from_text("www.inner.example")
        for name in ("b.example", "innes.example", "y.example"):
            for proof in chain.no_name(from_text(name)):
                self.assertFalse(self.denied(proof, key, 1), describe(proof))
        self.check_proofs("inner.example \\000.inner.example NS RRSIG NSEC",
                          chain.no_type(from_text("inner.example"), 43))
        zone, chain = self.zone("a A 192.0.2.1\ninner NS ns\nz A 192.0.2.1\n")
        Zones([zone, Zone.made_up(from_text("inner.example"), 60)])
        self.check_proofs("inner.example z.example NS RRSIG NSEC", chain.no_type(from_text("inner.example"), 43))
