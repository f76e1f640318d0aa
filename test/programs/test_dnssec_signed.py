"""What programs by others say of zones that Jitsu signs: answers, transfers, changes, templates, and a rollover."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from test.programs.test_dnssec_differential import QUESTIONS, same_answers
from test.programs.test_dnssec_validators import NAMES, VMS, ValidatedTestCase
from test.programs.test_tap import HOST, PATIENCE
from test.support import differential
from test.support.signed_zones import APEX, TEXT, run
from test.support.validators import Served, delv, knot, nsd, problems_of_zone, transferred, unbound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Signs all zones, by keys in a folder of its own.
SIGNED: Final = f"""
persistdb: state.git
dnssec: {{keys: keys, zones: [{APEX}]}}
{VMS}
"""

#: A zone whose caches forget soon, in seconds.
TTL: Final = 1
SHORT: Final = f"$ORIGIN {APEX}.\n$TTL {TTL}\n@ SOA ns h 1 3600 600 86400 {TTL}\n@ NS ns\nns A {HOST}\n"

NEW: Final = "00000000-0000-4000-8000-000000000003"


class SignedTestCase(ValidatedTestCase):
    """
    Has a zone that Jitsu signs.

    Attributes:
        before: the files of the keys that have an anchor.
    """

    def setUp(self) -> None:
        """Begin without a key."""
        super().setUp()
        self.before: set[Path] = set()

    def serve_zone(self, text: str = TEXT, configuration: str = SIGNED, *more: str) -> Path:
        """Serve the zone *text*, and what the arguments *more* add; return a file with the DS record of its key."""
        (self.folder / "signed.zone").write_text(text)
        self.process = self.serve("--zone", "signed.zone", *more, configuration=configuration)
        return self.anchor()

    def anchor(self, name: str = "anchor") -> Path:
        """Write the DS records of the keys to a file, as BIND makes them from the key files; return it."""
        path = self.folder / f"{name}.ds"
        keys = self.keys()
        path.write_text("".join(run(self.folder, "dnssec-dsfromkey", "-2", str(key)) for key in keys - self.before))
        self.before = keys
        return path

    def keys(self) -> set[Path]:
        """Return the files of the keys' public halves."""
        return set((self.folder / "keys").glob("K*.key"))

    def reload(self, text: str) -> None:
        """Replace the text of the zone, and have Jitsu read it."""
        (self.folder / "signed.zone").write_text(text)
        self.process.send_signal(signal.SIGHUP)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.05)


class AnswersTests(SignedTestCase):
    """Answers and transfers of a zone that Jitsu signs."""

    def test_validated(self) -> None:
        """Every kind of answer is secure for all validators, cold and warm, and nothing is wrong with the zone."""
        anchor = self.serve_zone()
        self.validate("jitsu", anchor)
        self.check_zone(NAMES)
        told = self.jitsuctl("dnssec", "ds", APEX)
        self.assertIn("".join(anchor.read_text().split()[6:]), "".join(told.stdout.split()), told.stderr)
        status = self.jitsuctl("dnssec", "status")
        self.assertEqual(0, status.returncode, status.stdout + status.stderr)

    def test_as_secondaries(self) -> None:
        """
        NSD and Knot, which transfer the zone, give the same answers as Jitsu, and have a new version after NOTIFY.

        NSD changes the case of names in the records that it transfers, which breaks the signature of an SVCB record
        with capitals (RFC 6840, 5.1): there are none here.
        """
        peers = {name: self.started(make(self.folder, [(APEX, self.folder / name)], primary=self.port), None)
                 for name, make in (("nsd", nsd), ("knot", knot))}  # fmt: skip
        notify = ", ".join(f"{HOST}:{peer.port}" for peer in peers.values())
        text = TEXT.replace("SVCB 1 Mail", "SVCB 1 mail")
        self.serve_zone(text, f"{SIGNED}notify: [{notify}]\n")
        for peer in peers.values():
            peer.until_served(APEX)
        path = transferred(self.folder, self.port, APEX)
        zone = differential.read(path, APEX)
        asked = differential.questions(zone, QUESTIONS, seed=2)
        same_answers(self, "signed by Jitsu", zone, asked, peers)
        self.reload(text.replace("2026010100", "2026020100").replace("10.1.0.1\n", "10.9.9.9\n"))
        for peer in peers.values():
            peer.until(lambda peer=peer: "10.9.9.9" in str(peer.ask(f"mail.{APEX}", "A")))  # type: ignore[misc]
            self.assertEqual("", problems_of_zone(self.folder, peer.port, APEX), peer)

    def test_ed25519(self) -> None:
        """Answers are secure with the other algorithm, too."""
        anchor = self.serve_zone(TEXT, SIGNED.replace("keys: keys,", "keys: keys, algorithm: 15,"))
        self.assertEqual("15", anchor.read_text().split()[4])
        for one in self.resolvers(anchor):
            for name, rcode in (("www", dns.rcode.NOERROR), ("nope", dns.rcode.NXDOMAIN)):
                answer = one.ask(f"{name}.{APEX}", "A")
                self.assertEqual((rcode, True), (answer.rcode(), bool(answer.flags & dns.flags.AD)), one)
        self.assertIn("fully validated", delv(Served(APEX, self.port, anchor), f"www.{APEX}"))
        self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))

    def test_child_without_keys(self) -> None:
        """A child zone without keys in the same Jitsu is insecure, not bogus; its DS question is the parent's."""
        (self.folder / "child.zone").write_text(
            f"$ORIGIN insecure.{APEX}.\n@ 60 SOA ns h 1 2 3 4 5\n@ 60 NS ns\nns 60 A 10.3.0.2\nhost 60 A 10.3.0.9\n"
        )
        anchor = self.serve_zone(TEXT, SIGNED, "--zone", "child.zone")
        zones = [Served(APEX, self.port, anchor), Served(f"insecure.{APEX}", self.port)]
        one = self.started(unbound(self.folder, zones))
        answer = one.ask(f"host.insecure.{APEX}", "A")
        self.assertEqual((dns.rcode.NOERROR, 1, 0),
                         (answer.rcode(), len(answer.answer), answer.flags & dns.flags.AD))  # fmt: skip
        self.assertTrue(one.ask(f"insecure.{APEX}", "DS").flags & dns.flags.AD)


class ChangesTests(SignedTestCase):
    """A zone that changes while it is served."""

    def test_requests(self) -> None:
        """A VM that comes and goes by git has a place in the chain, and none after it, and its name is secure."""
        anchor = self.serve_zone()
        state, clone = self.folder / "state.git", self.folder / "clone"
        self.until(lambda: self.git("-C", str(state), "ls-tree", "-r", "--name-only", "main", "jitsu/vm/", check=False))
        self.git("clone", "-q", str(state), str(clone))
        served = Served(APEX, self.port, anchor)
        self.assertIn("negative response, fully validated", delv(served, f"new.{APEX}"))
        folder = clone / "jitsu" / "vm" / NEW
        for path, value in {"ip": "10.0.0.9", f"dns/new.{APEX}/ttl": "5", "config/name/0": "new"}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(value)
        self.push(clone, "new")
        self.assertTrue(delv(served, f"new.{APEX}").startswith("; fully validated"))
        self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))
        self.assertIn(f"new.{APEX}.", transferred(self.folder, self.port, APEX).read_text())
        self.git("-C", str(clone), "rm", "-rq", f"jitsu/vm/{NEW}")
        self.push(clone, "gone")
        self.assertIn("negative response, fully validated", delv(served, f"new.{APEX}"))
        self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))

    def git(self, *words: str, check: bool = True) -> str:
        """Run git as Ann; return its output."""
        return subprocess.run(
            ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", *words], cwd=self.folder, check=check,
            capture_output=True, text=True, timeout=PATIENCE,
        ).stdout  # fmt: skip

    def push(self, clone: Path, name: str) -> None:
        """Commit all changes of the *clone* and push them as a request."""
        self.git("-C", str(clone), "add", "-A")
        self.git("-C", str(clone), "commit", "-qm", name)
        self.git("-C", str(clone), "push", "-q", "origin", f"HEAD:refs/heads/request/{name}")

    def test_reload(self) -> None:
        """While a zone is read anew, and when it has been, there is no answer without a signature."""
        self.serve_zone()
        self.reload(TEXT.replace("2026010100", "2026020100").replace("10.1.0.1\n", "10.9.9.9\n"))
        query = dns.message.make_query(f"mail.{APEX}", "A", want_dnssec=True)

        def is_new() -> bool:
            addresses, signatures = dns.query.tcp(query, HOST, timeout=PATIENCE, port=self.port).answer
            self.assertEqual((dns.rdatatype.A, dns.rdatatype.RRSIG), (addresses.rdtype, signatures.rdtype))
            return "10.9.9.9" in str(addresses)

        self.until(is_new)

    def test_templates(self) -> None:
        """
        Names of a template are secure before they are made, and after, for a resolver that uses denials aggressively.

        A name that must not be made is denied; that denial covers no name that may be (RFC 8198; RFC 4470).
        """
        configuration = SIGNED + f"""
templates:
  - {{name: site, dns: "*.sites.{APEX}", pool: 10.1.0.0/24, exists: ["a*"], new_per_minute: 0, idle: 5m}}
"""
        anchor = self.serve_zone(TEXT, configuration)
        served = Served(APEX, self.port, anchor)
        resolvers = self.resolvers(anchor)
        for label, rcode in (("no1", dns.rcode.NXDOMAIN), ("a5", dns.rcode.NOERROR), ("no2", dns.rcode.NXDOMAIN),
                             ("zz", dns.rcode.NXDOMAIN), ("a1", dns.rcode.NOERROR)):  # fmt: skip
            for one in resolvers:
                answer = one.ask(f"{label}.sites.{APEX}", "A")
                self.assertEqual((rcode, True), (answer.rcode(), bool(answer.flags & dns.flags.AD)), (label, one))
            self.assertIn("fully validated", delv(served, f"{label}.sites.{APEX}"))
        for label in ("*", "a7"):
            for one in resolvers:
                one.ask(f"{label}.sites.{APEX}", "TXT")
                self.assertTrue(one.ask(f"a{label.strip('*')}x.sites.{APEX}", "A").answer, (label, one))
        self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))


class RolloverTests(SignedTestCase):
    """A rollover, once for real."""

    def test_rollover(self) -> None:
        """At each step of a rollover a resolver that has the parent's DS record finds the zone secure."""
        vms = "vms: [{name: www, dns: www.jitsu.test, ip: 10.0.0.1, ttl: 1}]\n"
        old = self.serve_zone(SHORT, f"persistdb: state.git\ndnssec: {{keys: keys}}\nallow_transfer: [{HOST}]\n{vms}")
        kept = self.started(unbound(self.folder, [Served(APEX, self.port, old)]))
        self.secure(old)
        self.assertEqual(0, self.jitsuctl("dnssec", "rollover", APEX).returncode)
        self.assertEqual(2, len(self.rrset("DNSKEY")))
        self.secure(old)
        before = self.rrset("CDS")
        self.until(lambda: self.rrset("CDS") not in (before, []))
        new = self.anchor("new")
        self.assertNotEqual(old.read_text(), new.read_text())
        self.secure(old)
        self.secure(new)
        self.assertTrue(kept.ask(f"www.{APEX}", "A").flags & dns.flags.AD)
        self.assertEqual(new.read_text().split(), self.of_parent(old).split())
        done = self.jitsuctl("dnssec", "ds-seen", APEX, "--ds-ttl", f"{TTL / 3600:.6f}")
        self.assertEqual(0, done.returncode, done.stderr)
        self.until(lambda: len(self.rrset("DNSKEY")) == 1)
        self.secure(new)
        self.assertIn("resolution failed", delv(Served(APEX, self.port, old), f"www.{APEX}"))
        self.assertEqual(0, self.jitsuctl("dnssec", "status").returncode)

    def of_parent(self, anchor: Path) -> str:
        """Return the DS records that a parent, which has *anchor*, takes from CDS in their place (RFC 7344, 4.1)."""
        records = self.folder / "cds"
        with records.open("w") as file:
            for type_ in ("CDS", "CDNSKEY", "DNSKEY"):
                query = dns.message.make_query(APEX, type_, want_dnssec=True)
                for rrset in dns.query.tcp(query, HOST, timeout=PATIENCE, port=self.port).answer:
                    file.write(f"{rrset}\n")
        return run(self.folder, "dnssec-cds", "-s", "-7200", "-f", str(records), "-d", str(anchor), APEX)

    def rrset(self, type_: str) -> list[str]:
        """Return the records of a type at the apex."""
        return sorted(record.to_text() for rrset in self.ask(APEX, type_).answer for record in rrset)

    def secure(self, anchor: Path) -> None:
        """Expect all to be secure by *anchor*, and the zone to be right as a whole."""
        one = self.started(unbound(self.folder, [Served(APEX, self.port, anchor)]))
        for name, type_, rcode in (("www", "A", "NOERROR"), ("nope", "A", "NXDOMAIN"), ("www", "TXT", "NOERROR")):
            answer = one.ask(f"{name}.{APEX}", type_)
            self.assertEqual((rcode, True), (dns.rcode.to_text(answer.rcode()), bool(answer.flags & dns.flags.AD)))
        for type_ in ("DNSKEY", "CDS", "CDNSKEY"):
            self.assertTrue(one.ask(APEX, type_).flags & dns.flags.AD, type_)
        one.stop()
        self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))
