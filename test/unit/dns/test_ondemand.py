"""Questions for names of a template: what makes a VM, what does not, and what the answer is."""

from __future__ import annotations

import shutil
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred
from twisted.names.dns import AAAA, ALL_RECORDS, CNAME, HINFO, MX, NS, PTR, SOA, TXT, A
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.wire import HTTPS, SVCB, from_text
from jitsu_tw.errors import EDE_NOT_READY, BootFailed, ExistenceUnknown, Unanswerable
from test.support.templates import Cloud

if TYPE_CHECKING:
    from jitsu_tw.dns.wire import Answer

#: The answer where there are no such records: the SOA, in the authority section.
NODATA: Final = ""
NXDOMAIN: Final = "Unanswerable: rcode 3"
ALICE: Final = "alice.sites.jitsu.test A 10.1.0.51"


class OnDemandTests(SynchronousTestCase):
    """`TemplateResolver`, in its chain."""

    def cloud(self, template: dict[str, str] | None = None, **more: str) -> Cloud:
        """Begin with a template."""
        cloud = Cloud(template, **more)
        self.addCleanup(shutil.rmtree, cloud.folder)
        return cloud

    def check(self, rows: list[tuple[str, int, str, int]], **template: str) -> None:
        """Ask each name and type of the *rows* of a new Jitsu; compare the answer, and how many VMs were made."""
        for name, qtype, expected, made in rows:
            cloud = self.cloud(template)
            with self.subTest(name=name, type=qtype):
                self.assertEqual(expected, cloud.told(cloud.ask(name, qtype)))
                self.assertEqual(made, len(cloud.fleet.machines))

    def test_types(self) -> None:
        """Only a question for an address that its VMs have makes a VM; for a name that exists, others have no data."""
        hinfo = 'alice.sites.jitsu.test HINFO "RFC8482" ""'
        self.check([
            ("alice.sites", A, ALICE, 1),
            *(("alice.sites", qtype, NODATA, 0) for qtype in (AAAA, NS, SOA, TXT, MX, CNAME, HTTPS, SVCB, PTR, HINFO)),
            ("alice.sites", ALL_RECORDS, hinfo, 0),
            *(("mallory.sites", qtype, NXDOMAIN, 0) for qtype in (A, AAAA, TXT, HTTPS, ALL_RECORDS)),
        ])  # fmt: skip

    def test_families(self) -> None:
        """With addresses of IPv6 only, questions for these make VMs."""
        six = "alice.sites.jitsu.test AAAA 2001:db8::8c88:9b6b:d2c0:1233"
        cloud = self.cloud({"pool": '["2001:db8::/64"]'})
        self.assertEqual((NODATA, 0), (cloud.told(cloud.ask()), len(cloud.fleet.machines)))
        self.assertEqual(six.split("::", maxsplit=1)[0], cloud.told(cloud.ask(qtype=AAAA)).split("::", maxsplit=1)[0])

    def test_both_at_once(self) -> None:
        """A browser's questions for A, AAAA and HTTPS at one moment make one VM, and each has its answer."""
        cloud = self.cloud({"pool": '[10.1.0.0/24, "2001:db8::/64"]'})
        found = cloud.hold(cloud.backend, "look_up")
        answers = [cloud.ask(qtype=qtype, port=qtype) for qtype in (A, AAAA, HTTPS)]
        found.callback(None)
        cloud.clock.advance(0)
        told = [cloud.told(one) for one in answers]
        self.assertEqual(["A", "AAAA", ""], [[*text.split(), "", ""][1] for text in told])
        self.assertEqual(1, len(cloud.fleet.machines))

    def test_names(self) -> None:
        """Which names can have a VM: those right below the wildcard's own, by a label of letters, digits and dashes."""
        long = "a" * 63
        self.check([
            (f"{long}.sites", A, f"{long}.sites.jitsu.test A 10.1.0.117", 1),
            ("xn--mller-kva.sites", A, "xn--mller-kva.sites.jitsu.test A 10.1.0.81", 1),
            ("1.sites", A, "1.sites.jitsu.test A 10.1.0.95", 1),
            *((f"{label}.sites", A, NXDOMAIN, 0)
              for label in ("_tcp", "-a", "a-", "a_b", "a\\.b", "m\\252ller", "\\000", "a\\032b", "a\\/b")),
            ("deeper.alice.sites", A, NXDOMAIN, 0),
            ("_acme-challenge.alice.sites", TXT, NXDOMAIN, 0),
            ("*.sites", A, NODATA, 0),
            ("sites", A, NODATA, 0),
            ("sites", NS, NODATA, 0),
        ], exists='["*"]')  # fmt: skip

    def test_zone_file(self) -> None:
        """A name of the zone's file hides the wildcard, whatever its types, and so do names below (RFC 4592, 2.2.1)."""
        self.check([
            ("fixed.sites", A, "fixed.sites.jitsu.test A 192.0.2.99", 0),
            ("text.sites", A, NODATA, 0),
            ("text.sites", TXT, 'text.sites.jitsu.test TXT "x"', 0),
            ("below.text.sites", A, NXDOMAIN, 0),
        ], exists='["*"]')  # fmt: skip

    def test_minimised(self) -> None:
        """A resolver that asks for one label after the other (RFC 9156) finds that each name above exists."""
        cloud = self.cloud()
        steps = [cloud.told(cloud.ask(name, NS)) for name in ("sites", "alice.sites")]
        self.assertEqual(([NODATA, NODATA], {}), (steps, cloud.fleet.machines))
        self.assertEqual(ALICE, cloud.told(cloud.ask()))

    def test_alias(self) -> None:
        """A CNAME that leads to such a name makes its VM; where that does not exist, NXDOMAIN is its (RFC 6604)."""
        cloud = self.cloud()
        self.assertEqual(f"alias.jitsu.test CNAME alice.sites.jitsu.test.; {ALICE}", cloud.told(cloud.ask("alias")))
        error = self.failureResultOf(cloud.ask("nowhere"), Unanswerable).value
        self.assertEqual((3, 1, 1), (error.rcode, len(error.answer), len(error.authority)))
        self.assertEqual("alias.jitsu.test CNAME alice.sites.jitsu.test.", cloud.told(cloud.ask("alias", TXT)))
        told = cloud.told(self.cloud().ask("alias", ALL_RECORDS))
        self.assertEqual("alias.jitsu.test CNAME alice.sites.jitsu.test.", told)

    def test_case(self) -> None:
        """Names compare without case, and the answer has the question's."""
        cloud = self.cloud()
        self.assertEqual(ALICE.replace("alice.sites", "aLiCe.SITES"), cloud.told(cloud.ask("aLiCe.SITES")))
        self.assertEqual(ALICE, cloud.told(cloud.ask()))
        self.assertEqual(["alice.site"], list(cloud.fleet.machines))

    def test_negative(self) -> None:
        """A name that does not exist, and data that do not, are answered with the SOA (RFC 2308)."""
        cloud = self.cloud()
        error = self.failureResultOf(cloud.ask("mallory.sites"), Unanswerable).value
        self.assertEqual([(b"\5jitsu\4test\0", SOA, 5)], [(one.owner, one.type, one.ttl) for one in error.authority])
        answer = self.successResultOf(cloud.ask(qtype=TXT))
        self.assertEqual(([], [SOA], True), (answer[0], [one.type for one in answer[1]], answer.aa))

    def test_no_client(self) -> None:
        """What this process itself asks makes nothing."""
        cloud = self.cloud()
        self.assertEqual(NODATA, cloud.told(cloud.ask_for(from_text("alice.sites.jitsu.test"), host=None)))
        self.assertEqual({}, cloud.fleet.machines)

    def test_too_late(self) -> None:
        """Where it is not known in time whether a name exists, the answer is SERVFAIL, and says that it may be soon."""
        cloud = self.cloud()
        self.patch(cloud.templates, "exists", lambda *_: Deferred())
        for qtype in (A, TXT):
            answer = cloud.ask(qtype=qtype)
            cloud.clock.advance(1.1)
            self.assertNoResult(answer)
            cloud.clock.advance(0.1)
            error = self.failureResultOf(answer, ExistenceUnknown).value
            self.assertEqual((2, EDE_NOT_READY), (error.rcode, error.ede))

    def test_time_of_both(self) -> None:
        """What the making took is not waited for once more: the whole answer comes in time, ready or not."""
        cloud = self.cloud({"boot_time": "9"})
        found = cloud.hold(cloud.backend, "look_up")
        answer = cloud.ask()
        cloud.clock.advance(1)
        found.callback(None)
        cloud.clock.advance(0.1)
        self.assertNoResult(answer)
        cloud.clock.advance(0.1)
        self.assertEqual(f"{ALICE} EDE 14", cloud.told(answer))
        cloud.pump(10)
        self.assertEqual(ALICE, cloud.told(cloud.ask()))

    def test_gone_at_once(self) -> None:
        """A VM that has gone by the time of the answer is SERVFAIL, not a wrong address."""
        cloud = self.cloud()
        done: Deferred[bool] = Deferred()
        self.patch(cloud.templates, "make", lambda *_: done)
        answer = cloud.ask()
        done.callback(True)  # noqa: FBT003
        self.assertIn("it has gone already", str(self.failureResultOf(answer, BootFailed).value))

    def test_changed_meanwhile(self) -> None:
        """A client that waits while the zones change is answered as they are then."""
        cloud = self.cloud(vms="vms:\n  - {name: www, dns: www.jitsu.test, ip: 10.2.0.1}")
        made: Deferred[bool] = Deferred()
        self.patch(cloud.templates, "make", lambda *_: made)
        answer = cloud.ask()
        cloud.zones.add_vm(from_text("alice.sites.jitsu.test"), "www", [ip_address("10.2.0.1")], 60)
        made.callback(False)  # noqa: FBT003
        cloud.pump(1)
        self.assertEqual("alice.sites.jitsu.test A 10.2.0.1", cloud.told(answer))
        exists: Deferred[bool] = Deferred()
        self.patch(cloud.templates, "exists", lambda *_: exists)
        answer = cloud.ask("bob.sites", TXT)
        cloud.zones.remove_vm(from_text("*.sites.jitsu.test"))
        exists.callback(True)  # noqa: FBT003
        self.assertEqual(NXDOMAIN, cloud.told(answer))

    def test_beside_a_wildcard(self) -> None:
        """A name that the template does not have exists by a wildcard of the file that has other records for it."""
        cloud = self.cloud()
        zone = cloud.zones.find(from_text("jitsu.test"))
        assert zone is not None
        zone.add(from_text("*.sites.jitsu.test"), TXT, 60, b"\1x")
        self.assertEqual('mallory.sites.jitsu.test TXT "x"', cloud.told(cloud.ask("mallory.sites", TXT)))
        self.assertEqual(NODATA, cloud.told(cloud.ask("mallory.sites")))
        self.assertEqual(ALICE, cloud.told(cloud.ask()))

    def test_ready(self) -> None:
        """The answer for a VM that is up may be kept, as that for any other."""
        answer: Answer = self.successResultOf(self.cloud().ask())
        self.assertEqual(("alice.site", ()), (answer.vm, answer.ede))

    def test_other_names(self) -> None:
        """Names that are none of a template's are answered as without one."""
        cloud = self.cloud(vms="vms:\n  - {name: www, dns: www.jitsu.test, ip: 10.2.0.1}")
        table = {"www": "www.jitsu.test A 10.2.0.1", "ns": "ns.jitsu.test A 127.0.0.1", "x": NXDOMAIN}
        self.assertEqual(table, {name: cloud.told(cloud.ask(name)) for name in table})


class ReverseTests(SynchronousTestCase):
    """The reverse names of VMs that were made."""

    def setUp(self) -> None:
        """Begin with a template."""
        self.cloud = Cloud()
        self.addCleanup(shutil.rmtree, self.cloud.folder)

    def pointer(self, number: int, qtype: int = PTR) -> str:
        """Return the answer for the reverse name of 10.1.0.NUMBER."""
        return self.cloud.told(self.cloud.ask_for(from_text(f"{number}.0.1.10.in-addr.arpa"), qtype))

    def test_while_it_exists(self) -> None:
        """An address has a PTR record while its VM exists; a question for it starts nothing."""
        self.assertEqual(NXDOMAIN, self.pointer(51))
        self.cloud.ask()
        self.cloud.fleet.operator.stop("alice.site")
        before = self.cloud.backend.guests[self.cloud.machine().uuid].starts
        self.assertEqual("51.0.1.10.in-addr.arpa PTR alice.sites.jitsu.test.", self.pointer(51))
        self.assertEqual(NODATA, self.pointer(51, A))
        self.assertEqual(before, self.cloud.backend.guests[self.cloud.machine().uuid].starts)
        self.successResultOf(self.cloud.templates.forget("alice.site"))
        self.assertEqual(NXDOMAIN, self.pointer(51))
        self.assertEqual(NXDOMAIN, self.cloud.told(self.cloud.ask_for(from_text("0.1.10.in-addr.arpa"), PTR)))

    def test_restart(self) -> None:
        """A new process has it, and so has a zone that is read again."""
        self.cloud.ask()
        self.cloud.kill()
        self.assertIn("PTR alice.sites", self.pointer(51))
        (self.cloud.folder / "jitsu.yaml").write_text(
            (self.cloud.folder / "jitsu.yaml").read_text().replace("delay: 0", "delay: 0.1"))
        self.successResultOf(self.cloud.reload())
        self.assertIn("PTR alice.sites", self.pointer(51))
        self.assertIn("10.1.0.51", self.cloud.told(self.cloud.ask()))

    def test_serial(self) -> None:
        """The serial of the reverse zone rises when a VM comes, and when it goes; a transfer has what exists."""
        zone = self.cloud.zones.find(from_text("1.10.in-addr.arpa"))
        assert zone is not None
        serials = [zone.serial]
        self.cloud.ask()
        serials.append(zone.serial)
        self.assertEqual([b"\5alice\5sites\5jitsu\4test\0"], [one.rdata for one in zone.records() if one.type == PTR])
        self.successResultOf(self.cloud.templates.forget("alice.site"))
        serials.append(zone.serial)
        self.assertEqual([7, 8, 9], serials)
        self.assertEqual([], [one.rdata for one in zone.records() if one.type == PTR])

    def test_file(self) -> None:
        """What the zone's file says of an address stays."""
        zone = self.cloud.folder / "r.zone"
        zone.write_text(zone.read_text() + "51.0 PTR mine.jitsu.test.\n1.0 CNAME x\n2.0 NS ns.jitsu.test.\n")
        self.cloud.begin()
        self.cloud.ask()
        self.assertIn("PTR mine.jitsu.test.", self.pointer(51))
        self.successResultOf(self.cloud.templates.forget("alice.site"))
        self.assertIn("PTR mine.jitsu.test.", self.pointer(51))
        found = self.cloud.zones.find(from_text("1.10.in-addr.arpa"))
        assert found is not None
        before = list(map(str, found.records()))
        for number in (1, 2):
            found.add_reverse(from_text(f"{number}.0.1.10.in-addr.arpa"), "x", b"\1x\0", 5)
            found.remove_reverse(from_text(f"{number}.0.1.10.in-addr.arpa"), "x")
        self.assertEqual(len(before), len(list(found.records())))
