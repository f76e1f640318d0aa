"""What unbound, BIND's delv, Knot Resolver and programs that check zones say of a Jitsu's signed zones."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import dns.flags
import dns.message
import dns.query
import dns.rcode
from twisted.trial.unittest import SkipTest

from test.programs.test_tap import HOST, PATIENCE, ProcessTestCase
from test.support.signed_zones import APEX, TEXT, VMS_TEXT, sign
from test.support.validators import (
    Daemon,
    Served,
    delv,
    knot,
    kresd,
    nsd,
    problems_of_answers,
    problems_of_zone,
    unbound,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from test.support.signed_zones import SignedZone

PROGRAMS: Final = (
    "unbound", "delv", "kresd", "knotd", "nsd", "dig", "dnssec-signzone", "dnssec-verify", "ldns-verify-zone", "dnsviz",
)  # fmt: skip

#: VMs of which the second boots when it is asked for.
VMS: Final = f"""
vms:
  - {{name: www, dns: www.{APEX}, ip: 10.0.0.1, ttl: 300}}
  - {{name: cold, dns: cold.{APEX}, ip: 10.0.0.2, ttl: 300, boot_time: 0.3}}
  - {{name: any, dns: "*.vms.{APEX}", ip: 10.0.0.3, ttl: 300}}
allow_transfer: [{HOST}]
"""

#: Questions that each validator must find secure, by name (``@``: the apex) and type, with the response code. Those
#: with an asterisk are insecure where the zone opts out: that a name does not exist is then not proven (RFC 5155, 9.2).
SECURE: Final = """
cold A NOERROR
www A NOERROR
www A NOERROR
mail A NOERROR
ns AAAA NOERROR
@ SOA NOERROR
@ NS NOERROR
@ DNSKEY NOERROR
@ CDS NOERROR
@ MX NOERROR
www AAAA NOERROR
d.ent A NOERROR
ent2 TXT NOERROR
b.wild MX NOERROR
*.wild TXT NOERROR
one.wild TXT NOERROR *
one.wild A NOERROR *
two.three.c.wild TXT NOERROR *
one.many A NOERROR *
host.vms A NOERROR *
host.vms AAAA NOERROR *
c1 A NOERROR
c1 TXT NOERROR
cent A NOERROR
cnone A NXDOMAIN *
cwild TXT NOERROR *
some.alias A NOERROR *
a.dname A NOERROR
b.c.dname TXT NOERROR
none.dname A NXDOMAIN *
one.w.dname A NOERROR *
secure DS NOERROR
b.deep.cut DS NOERROR
insecure DS NOERROR *
nope A NXDOMAIN *
nope.www TXT NXDOMAIN *
under.exact.wild A NXDOMAIN *
big TXT NOERROR
many A NOERROR
many AAAA NOERROR
all HTTPS NOERROR
all TYPE65280 NOERROR
mixed.case TXT NOERROR
@ NSEC3PARAM NOERROR
one.star NSEC NOERROR *
"""


def questions(kind: str) -> Iterable[tuple[str, str, dns.rcode.Rcode, bool]]:
    """Yield name, type, response code and whether the answer is secure, for a zone of a kind."""
    for line in SECURE.split("\n"):
        if line:
            label, type_, rcode, *may_opt_out = line.split()
            name = APEX if label == "@" else f"{label}.{APEX}"
            yield name, type_, dns.rcode.from_text(rcode), not (may_opt_out and kind == "optout")


class ValidatedTestCase(ProcessTestCase):
    """Has a Jitsu with a signed zone, and validators around it."""

    def setUp(self) -> None:
        """Look for the programs."""
        super().setUp()
        if missing := [program for program in PROGRAMS if not shutil.which(program)]:
            raise SkipTest(f"not installed: {', '.join(missing)}")

    def started(self, daemon: Daemon, apex: str | None = APEX) -> Daemon:
        """End *daemon* with the test; wait until it serves *apex*, if that is named."""
        self.addCleanup(daemon.stop)
        if apex is not None:
            daemon.until_served(apex)
        return daemon

    def resolvers(self, anchor: Path) -> list[Daemon]:
        """Start unbound and Knot Resolver with the zone's *anchor*."""
        zones = [Served(APEX, self.port, anchor)]
        return [self.started(unbound(self.folder, zones)), self.started(kresd(self.folder, zones))]

    def validate(self, kind: str, anchor: Path) -> None:
        """Ask each validator each question, and compare what they say with what it should be."""
        wrong, resolvers, asked = [], self.resolvers(anchor), list(questions(kind))
        with ThreadPoolExecutor(4) as pool:
            served = Served(APEX, self.port, anchor)
            texts = list(pool.map(lambda question: delv(served, question[0], question[1]), asked))
        for (name, type_, rcode, secure), text in zip(asked, texts, strict=True):
            for one in resolvers:
                answer = one.ask(name, type_)
                said = answer.rcode(), bool(answer.flags & dns.flags.AD)
                if said != (rcode, secure):
                    wrong.append(f"{name} {type_}, {one!r}: {said}")
            if not ("fully validated" in text or (not secure and text.startswith("; unsigned answer"))):
                wrong.append(f"{name} {type_}, delv: {text[:200]}")
        self.assertFalse(wrong, "\n".join(wrong))

    def check_zone(self, names: Iterable[str]) -> None:
        """Expect programs that check whole zones to find nothing in a transfer and in the answers for *names*."""
        self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))
        names = [f"{name}.{APEX}" for name in names]
        self.assertEqual("", problems_of_answers(self.folder, self.port, APEX, names))


NAMES: Final = ("www", "nope", "c1", "x.wild", "a.dname", "host.vms", "many")


class PresignedTests(ValidatedTestCase):
    """Zones that come signed, by ``dnssec-signzone``."""

    def serve_signed(self, kind: str, *options: str) -> SignedZone:
        """Serve the zone, signed with *options*."""
        signed = sign(self.folder, kind, *options)
        self.serve("--zone", str(signed.path), configuration=VMS)
        return signed

    def validated(self, kind: str) -> None:
        """Serve a zone of a kind; validate its answers, and check it."""
        signed = self.serve_signed(kind)
        self.validate(kind, signed.anchor)
        self.check_zone(NAMES)

    def test_nsec(self) -> None:
        """Every kind of answer is secure for all validators, and nothing is wrong with the zone: NSEC."""
        self.validated("nsec")

    def test_nsec3(self) -> None:
        """The same with NSEC3, salt and iterations."""
        self.validated("nsec3")

    def test_opt_out(self) -> None:
        """The same with NSEC3 and opt-out, where the negative answers that it covers are insecure."""
        self.validated("optout")

    def bogus(self, signed: SignedZone, name: str) -> None:
        """Expect the answer for *name* to be bogus for all, and to be there without validation."""
        for one in self.resolvers_unchecked(signed.anchor):
            self.assertEqual(dns.rcode.SERVFAIL, one.ask(f"{name}.{APEX}", "A").rcode(), one)
            self.assertEqual(dns.rcode.NOERROR, one.ask(f"{name}.{APEX}", "A", cd=True).rcode(), one)
        self.assertIn("resolution failed", delv(Served(APEX, self.port, signed.anchor), f"{name}.{APEX}"))

    def resolvers_unchecked(self, anchor: Path) -> list[Daemon]:
        """Start the resolvers, and wait for an answer of any kind."""
        zones = [Served(APEX, self.port, anchor)]
        found = [self.started(unbound(self.folder, zones), None), self.started(kresd(self.folder, zones), None)]
        for one in found:
            one.until_served(APEX, cd=True)
        return found

    def test_tampered(self) -> None:
        """A signature that was changed is bogus for all; ``jitsuctl dnssec status`` and DNSViz find it."""
        signed = sign(self.folder, "nsec")
        text = signed.path.read_text()
        owner = f"mail.{APEX}.".lower()
        line = next(line for line in text.splitlines() if line.lower().startswith(owner) and "RRSIG\tA " in line)
        head, _, last = line.rpartition(" ")
        other = "B" if last[0] == "A" else "A"
        signed.path.write_text(text.replace(line, f"{head} {other}{last[1:]}"))
        self.serve("--zone", str(signed.path), configuration=VMS)
        self.bogus(signed, "mail")
        self.assertNotEqual("", problems_of_answers(self.folder, self.port, APEX, [f"mail.{APEX}"]))
        self.status_finds(f"mail.{APEX}")

    def test_expired(self) -> None:
        """Signatures that have expired are bogus for all; ``jitsuctl dnssec status`` says so."""
        signed = self.serve_signed("nsec", "-s", "20200101000000", "-e", "20200201000000")
        self.bogus(signed, "mail")
        self.status_finds("expired")

    def status_finds(self, word: str) -> None:
        """Expect ``jitsuctl dnssec status`` to end with a status other than 0, and to contain *word*."""
        done = self.jitsuctl("dnssec", "status")
        self.assertIn(word, (done.stdout + done.stderr).lower())
        self.assertNotEqual(0, done.returncode)


class LargeTests(ValidatedTestCase):
    """Answers that do not fit into a datagram."""

    def test_truncated(self) -> None:
        """An answer with signatures that is too large has TC by UDP, with no part of an RRset, and is whole by TCP."""
        signed = sign(self.folder, "nsec")
        self.serve("--zone", str(signed.path), configuration=VMS)
        for name in ("big", "many"):
            query = dns.message.make_query(f"{name}.{APEX}", "TXT" if name == "big" else "A", want_dnssec=True,
                                           payload=1232)  # fmt: skip
            small = dns.query.udp(query, HOST, timeout=PATIENCE, port=self.port)
            self.assertTrue(small.flags & dns.flags.TC)
            self.assertLessEqual(len(small.to_wire()), 1232)
            whole = dns.query.tcp(query, HOST, timeout=PATIENCE, port=self.port)
            self.assertEqual(2, len(whole.answer))
            self.assertFalse(whole.flags & dns.flags.TC)


class SecondariesTests(ValidatedTestCase):
    """NSD and Knot as secondaries."""

    def test_presigned(self) -> None:
        """They have what Jitsu has, and its new version after a reload; a validator is content with each."""
        secondaries = [make(self.folder, [(APEX, self.folder / name)], primary=self.port)
                       for name, make in (("of-nsd", nsd), ("of-knot", knot))]  # fmt: skip
        for one in secondaries:
            self.started(one, None)
        notify = "".join(f"  - {HOST}:{one.port}\n" for one in secondaries)
        signed = sign(self.folder, "nsec3")
        process = self.serve("--zone", str(signed.path), configuration=f"notify:\n{notify}{VMS}")
        self.same(secondaries, signed.anchor)
        new = sign(self.folder, "nsec3", text=(TEXT + VMS_TEXT).replace("2026010100", "2026010101")
                   .replace("10.1.0.1\n", "10.9.9.9\n"))
        self.assertEqual(new.path, signed.path)
        process.send_signal(signal.SIGHUP)
        for one in secondaries:
            one.until(lambda one=one: "10.9.9.9" in str(one.ask(f"mail.{APEX}", "A")))  # type: ignore[misc]
        self.same(secondaries, new.anchor)

    def same(self, secondaries: Iterable[Daemon], anchor: Path) -> None:
        """Expect some answers of *secondaries* to be those of Jitsu, and to be secure."""
        for one in secondaries:
            one.until_served(APEX)
            self.assertEqual("", problems_of_zone(self.folder, self.port, APEX))
            for name in (APEX, f"nope.{APEX}", f"www.{APEX}", f"secure.{APEX}"):
                for type_ in ("SOA", "A", "DS", "TXT"):
                    ours, theirs = (
                        {str(rrset).lower() for section in (answer.answer, answer.authority) for rrset in section}
                        for answer in (self.ask_do(name, type_), one.ask(name, type_))
                    )
                    self.assertEqual(ours, theirs, (name, type_, one))
            self.assertIn("fully validated", delv(Served(APEX, one.port, anchor), f"www.{APEX}"))

    def ask_do(self, name: str, type_: str) -> dns.message.Message:
        """Ask Jitsu with DO."""
        query = dns.message.make_query(name, type_, want_dnssec=True)
        return dns.query.tcp(query, HOST, timeout=PATIENCE, port=self.port)
