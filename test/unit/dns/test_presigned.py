"""Zones that come signed: BIND's signer signs, and a validator of dnspython reads the replies."""

from __future__ import annotations

import re
import subprocess
import time
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import dns.message
import dns.rcode
import dns.rdatatype
from dns.rdatatype import NSEC, NSEC3, RRSIG
from zope.interface.verify import verifyObject

from jitsu_tw.dns.interfaces import IDenial, ISecurity
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.presigned import Presigned
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ZoneError
from test.support.zones import HEAD
from test.unit.dns.test_secure import CHILD, JITSU, OTHER, PLAIN, ROWS, SecureTestCase
from test.unit.dns.test_transfer import records_in, records_of, transferred
from test.unit.dns.validator import NOW, Bogus, Validator

#: What the file has for the VMs.
VMS: Final = "\nwww A 10.0.0.1\n*.vms A 10.0.0.2\nslow A 10.0.0.6\nbad A 10.0.0.9\n"
#: The signer's arguments for NSEC3 with a salt and iterations, and with opt-out.
CHAINS: Final = {"nsec": (), "nsec3": ("-3", "aabb", "-H", "5"), "opt-out": ("-3", "-", "-A", "-H", "0")}
#: Inception and expiration of the signatures: an hour around `NOW`.
TIMES: Final = [time.strftime("%Y%m%d%H%M%S", time.gmtime(NOW + seconds)) for seconds in (-3600, 3600)]


def signed(path: Path, apex: str, *arguments: str) -> Path:
    """Sign the zone file *path* and return the path of the signed one."""
    folder = str(path.parent)
    command = ["dnssec-keygen", "-q", "-a", "13", "-f", "KSK", "-K", folder, apex]
    key = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    path.write_text(path.read_text() + (path.parent / f"{key}.key").read_text())
    result = path.with_suffix(".signed")
    times = ["-s", TIMES[0], "-e", TIMES[1]]
    folders = ["-K", folder, "-d", folder]
    command = ["dnssec-signzone", "-q", "-P", "-z", "-O", "full", *times, *arguments, *folders, "-o", apex]
    subprocess.run([*command, "-f", str(result), str(path)], check=True, capture_output=True, timeout=60)
    return result


class PresignedTestCase(SecureTestCase):
    """Has a server with zones that come signed."""

    denial = "nsec"

    def setUp(self) -> None:
        """Serve the zones of `test_secure`, of which BIND has signed three."""
        super().setUp()
        texts = {"jitsu.test": JITSU + VMS, "other.test": OTHER, "child.jitsu.test": CHILD}
        self.paths = {apex: signed(Path(self.write(text)), apex, *CHAINS[self.denial]) for apex, text in texts.items()}
        self.serve()

    def serve(self) -> None:
        """Read the zones, and give the VMs their names."""
        self.served.replace(Zones(map(Zone.read, [*self.paths.values(), Path(self.write(PLAIN))])))
        for machine in self.world.fleet.machines.values():
            one = machine.vm
            self.served.add_vm(one.dns[0], one.name, one.ip, one.ttl)
        self.validator = Validator.of(self.served)

    def zone(self) -> Zone:
        """Return the zone `jitsu.test`."""
        found = self.served.find(from_text("jitsu.test"))
        assert found is not None
        return found

    def damaged(self, pattern: str, text: str = "") -> Zone:
        """Return the zone `other.test` of a file in which *pattern* was replaced by *text*."""
        path = self.paths["other.test"]
        whole, count = re.subn(pattern, text, path.read_text(), count=1, flags=re.MULTILINE)
        self.assertEqual(1, count, pattern)
        return Zone.read(self.write(whole))


class NsecTests(PresignedTestCase):
    """A zone with NSEC records."""

    def test_interfaces(self) -> None:
        """It is an `ISecurity` with an `IDenial`."""
        security = self.zone().security
        verifyObject(ISecurity, security)
        verifyObject(IDenial, security.denial if security is not None else None)

    def test_rows(self) -> None:
        """Each answer, positive or negative, is what a validator believes."""
        for name, qtype, rcode, security, types in ROWS:
            if qtype == "RRSIG" or (self.denial != "nsec" and "NSEC" in {qtype, types}):
                continue
            with self.subTest(name=name, type=qtype):
                reply = self.ask(name, qtype)
                found = [dns.rdatatype.to_text(rrset.rdtype) for rrset in reply.answer if rrset.rdtype != RRSIG]
                self.assertEqual(rcode, dns.rcode.to_text(reply.rcode()))
                if qtype != "ANY":
                    self.assertEqual(types, " ".join(found))
                if security is not None:
                    self.assertEqual(security, self.validator.check(reply))

    def test_tampered(self) -> None:
        """Each proof of a negative answer is needed."""
        kind = NSEC if self.denial == "nsec" else NSEC3
        for name, qtype in (("nobody", "A"), ("a.b.nobody", "A"), ("y.wild", "A"), ("y.wild", "TXT"), ("ent", "A")):
            count = sum(rrset.rdtype == kind for rrset in self.ask(name, qtype).authority)
            self.assertGreater(count, 0, name)
            for left in range(count):
                reply = self.ask(name, qtype)
                proofs = [rrset for rrset in reply.authority if rrset.rdtype == kind]
                reply.authority.remove(proofs[left])
                with self.subTest(name=name, left=left):
                    self.assertRaises(Bogus, self.validator.check, reply)

    def test_vm(self) -> None:
        """The address of a VM is served as the file has it, with the TTL that is signed, and starts the VM."""
        (a, _) = self.ask("www", "A").answer
        self.assertEqual((3600, "10.0.0.1"), (a.ttl, a[0].address))
        self.assertEqual(1, self.world.fleet.stats.current(self.world.machine()).total_starts)

    def test_serial(self) -> None:
        """Nothing raises the serial: it is signed."""
        zone = self.zone()
        zone.bump()
        zone.raise_to(100)
        self.assertEqual(7, zone.serial)
        self.assertEqual("secure", self.validator.check(self.ask("@", "SOA")))

    def test_reverse(self) -> None:
        """No PTR record is added, which would have no signature."""
        self.zone().add_reverse(from_text("new.jitsu.test"), "vm", from_text("vm"), 60)
        self.assertEqual(dns.rcode.NXDOMAIN, self.ask("new", "PTR").rcode())

    def test_transferred(self) -> None:
        """A transfer has all that the file has: signatures and proofs, too."""
        zone = self.zone()
        path = Path(self.mktemp())
        _, got = transferred(zone)
        self.assertEqual(records_of(zone), records_in(got))
        got.to_file(str(path), relativize=False)
        theirs = sorted(self._digest(path.read_text()))
        self.assertEqual(sorted(self._digest(self.paths["jitsu.test"].read_text())), theirs)

    @staticmethod
    def _digest(text: str) -> list[str]:
        """Return the owners and types of the records in *text*, as often as they are there."""
        lines = re.findall(r"^(\S+)\s+\d+\s+IN\s+(\S+)", text, re.MULTILINE)
        return [f"{owner.lower().removesuffix('.')} {rtype}" for owner, rtype in lines]

    def test_faults(self) -> None:
        """A right zone has no faults; what validators will not believe is told, with the remedy."""
        zone = self.zone()
        security = zone.security
        assert isinstance(security, Presigned)
        self.assertEqual([], list(Presigned(zone, lambda: NOW).faults()))
        for now, expected in (
            (NOW + 4000, r"\d+ signatures have expired, the first \(.*\) 400 s ago: sign the whole zone again"),
            (NOW - 4000, r"\d+ signatures are not valid yet, the last \(.*\) in 400 s: is the clock right"),
        ):
            (line,) = Presigned(zone, partial(int, now)).faults()
            self.assertRegex(line, expected)
        zone.add_vm(from_text("www.jitsu.test"), "www", [ip_address("10.9.9.9")], 60)
        zone.add_vm(from_text("new.jitsu.test"), "new", [ip_address("10.9.9.8")], 60)
        found = list(Presigned(zone, lambda: NOW).faults())
        self.assertEqual(["VM www", "VM new"], [line.split(":")[0] for line in found])
        self.assertIn("put its records into the zone before that is signed, or have Jitsu sign the zone", found[0])
        self.assertEqual([1], [rrset.rdtype for rrset in self.ask("www", "A").answer])
        zone.remove_vm(from_text("www.jitsu.test"))
        self.assertEqual([1, RRSIG], [rrset.rdtype for rrset in self.ask("www", "A").answer])

    def test_vm_with_less(self) -> None:
        """A VM without an address of a family that the file has signed does not fit."""
        zone = Zone.read(self.paths["other.test"])
        zone.add_vm(from_text("host.other.test"), "host", [ip_address("2001:db8::1")], 60)
        (line,) = Presigned(zone, lambda: NOW).faults()
        self.assertIn("VM host: the file of this signed zone has other addresses for host.other.test", line)

    def test_unsigned_rrset(self) -> None:
        """An RRset without a signature is told by its name."""
        zone = self.damaged(r"^host.other.test.\s+\d+\s+IN\s+RRSIG\s+A .*\n")
        self.assertEqual(["host.other.test A has no signature: sign the whole zone again"],
                         list(Presigned(zone, lambda: NOW).faults()))

    def test_enclosed(self) -> None:
        """A served zone inside that the file does not delegate is told."""
        zone = Zone.read(self.paths["other.test"])
        Zones([zone, Zone.made_up(from_text("in.other.test"), 60)])
        (line,) = Presigned(zone, lambda: NOW).faults()
        self.assertIn("in.other.test is served too, and this signed zone does not delegate it", line)

    def test_warnings(self) -> None:
        """The faults are warnings of the zone, with its file."""
        zone = self.damaged(r"^host.other.test.\s+\d+\s+IN\s+RRSIG\s+A .*\n")
        self.assertTrue(any(line.startswith(f"{zone.path}: host.other.test A has no") for line in zone.warnings))

    def test_broken(self) -> None:
        """A gap in the chain is told by the record before it."""
        zone = self.damaged(r"^b.other.test.\s+\d+\s+IN\s+NSEC\s.*\n")
        found = list(Presigned(zone, lambda: NOW).faults())
        self.assertIn("other.test NSEC: the chain is broken behind this record: sign the whole zone again", found)
        self.assertIn("b.other.test has no NSEC record: sign the whole zone again", found)

    def test_no_chain(self) -> None:
        """A zone with DNSKEY and signatures, without a chain at its apex, is refused."""
        error = self.assertRaises(ZoneError, self.damaged, r"^other.test.\s+\d+\s+IN\s+NSEC\s.*\n")
        self.assertRegex(str(error), r"a\.zone: other\.test: it comes signed .* neither NSEC nor NSEC3PARAM")

    def test_not_signed(self) -> None:
        """A zone with DNSKEY alone, or signatures alone, is not one that comes signed."""
        text = f"$ORIGIN a.test.\n{HEAD}@ NS ns\nns A 192.0.2.1\n@ DNSKEY 257 3 13 AAAA\nx NSEC3 1 0 0 - {'0' * 32} A\n"
        zone = Zone.read(self.write(text))
        self.assertEqual((None, False), (zone.security, zone.presigned))
        self.assertIsNotNone(zone.get(from_text("x.a.test")))


class Nsec3Tests(PresignedTestCase):
    """A zone with NSEC3 records, with a salt and iterations."""

    denial = "nsec3"
    test_rows, test_tampered, test_vm = NsecTests.test_rows, NsecTests.test_tampered, NsecTests.test_vm
    test_transferred, _digest = NsecTests.test_transferred, staticmethod(NsecTests._digest)
    test_faults, test_interfaces = NsecTests.test_faults, NsecTests.test_interfaces
    test_unsigned_rrset = NsecTests.test_unsigned_rrset

    def hashed(self) -> list[bytes]:
        """Return the owners of NSEC3 records."""
        return list(self.zone().proofs)

    def test_owners(self) -> None:
        """The owner of an NSEC3 record is no name of the zone (RFC 5155, 7.2.8)."""
        owner = dns.name.from_wire(self.hashed()[0], 0)[0].to_text()
        for name, qtype in ((owner, "NSEC3"), (owner, "A"), (f"x.{owner}", "A"), (owner, "RRSIG")):
            reply = self.ask(name, qtype)
            self.assertEqual((dns.rcode.NXDOMAIN, []), (reply.rcode(), reply.answer))
            self.assertEqual("secure", self.validator.check(reply))

    def test_nsec_at_alias(self) -> None:
        """A question for NSEC at an alias, which has none, follows the alias."""
        reply = self.ask("alias", "NSEC")
        self.assertEqual(["alias"], [rrset.name.labels[0].decode() for rrset in reply.answer if rrset.rdtype != RRSIG])
        self.assertEqual("secure", self.validator.check(reply))

    def test_iterations(self) -> None:
        """More than 100 iterations are refused, with the remedy."""
        path = Path(self.write(OTHER))
        zone = signed(path, "other.test", "-3", "aabb", "-H", "101")
        error = self.assertRaises(ZoneError, Zone.read, zone)
        self.assertRegex(str(error), "other.test NSEC3PARAM: 101 iterations, .* 100 at most .* sign the zone with 0")

    def test_two_chains(self) -> None:
        """Of two chains, as there are while a salt is changed (RFC 5155, 10.4), one proves; a transfer has both."""
        text = self.paths["other.test"].read_text()
        second = signed(Path(self.write(OTHER)), "other.test", "-3", "ccdd", "-H", "5").read_text()
        others = re.findall(r"^.*\sNSEC3\s+1 .*\n", second, re.MULTILINE)
        zone = Zone.read(self.write(text + "".join(others)))
        security = zone.security
        assert isinstance(security, Presigned)
        self.assertFalse([line for line in security.faults() if "broken" in line])
        for name in ("nobody", "x.y", "host.ns"):
            salts = {rrset.rdatas[0][5:7] for rrset in security.denial.no_name(from_text(f"{name}.other.test"))}
            self.assertEqual({b"\xaa\xbb"}, salts)
        self.assertEqual(2 * len(others), len(list(security.denial.rrsets())))

    def test_damaged(self) -> None:
        """A chain with a gap is told; without the apex, with another algorithm, or with odd owners, it is refused."""
        lines = self.paths["other.test"].read_text().splitlines()
        names = [line for line in lines if re.search(r"\sNSEC3\s+1 ", line)]
        apex = next(line for line in names if " NS " in f"{line} " and "SOA" in line)
        other = next(line for line in names if "SOA" not in line)
        zone = self.damaged(re.escape(other))
        found = list(Presigned(zone, lambda: NOW).faults())
        self.assertTrue(any("NSEC3: the chain is broken behind this record" in line for line in found), found)
        self.assertEqual(1, sum(line.endswith("has no NSEC3 record: sign the whole zone again") for line in found))
        zone = self.damaged(rf"^{re.escape(other.split()[0])}\s+\d+\s+IN\s+RRSIG\s.*\n")
        (line,) = Presigned(zone, lambda: NOW).faults()
        self.assertIn("NSEC3 has no signature", line)
        for pattern, text, expected in (
            (re.escape(apex), "", "the apex has no NSEC3 record with the parameters of NSEC3PARAM"),
            (r"NSEC3PARAM\s+1 ", "NSEC3PARAM 2 ", "no record with algorithm 1, SHA-1, and flags 0"),
            (r"NSEC3PARAM\s+1 0 ", "NSEC3PARAM 1 1 ", "no record with algorithm 1, SHA-1, and flags 0"),
            (re.escape(other.split()[0]), "abc.other.test.", "abc.other.test: the owner of an NSEC3 record is a hash"),
        ):
            error = self.assertRaises(ZoneError, self.damaged, pattern, text)
            self.assertIn(expected, str(error))


class OptOutTests(PresignedTestCase):
    """A zone whose unsigned delegations have no NSEC3 records."""

    denial = "opt-out"
    test_rows, test_faults, test_transferred = NsecTests.test_rows, NsecTests.test_faults, NsecTests.test_transferred
    _digest = staticmethod(NsecTests._digest)

    def test_opt_out(self) -> None:
        """An unsigned delegation is proven by the range that it may be in."""
        reply = self.ask("www.cut", "A")
        flags: set[Any] = {rrset[0].flags for rrset in reply.authority if rrset.rdtype == NSEC3}
        self.assertEqual({1}, flags)
        self.assertEqual("insecure", self.validator.check(reply))
        self.assertEqual("secure", self.validator.check(self.ask("cut", "DS")))
