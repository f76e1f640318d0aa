"""The check of zones that come signed, by BIND's `dnssec-signzone`, and what it shows of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import dns.dnssec
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.sync import signature_check, signed_zones
from jitsu_tw.sync.signature_check import SOON, Checked, check
from jitsu_tw.sync.signed_zones import SignedZones

if TYPE_CHECKING:
    from jitsu_tw.idnssec import ZoneStatus

#: The signatures are valid from the one to the other: 2027-01-01 and 2027-02-01, in seconds since 1970.
FROM, UNTIL = 1798761600, 1801440000

TEXT = "$TTL 60\n@ SOA ns hostmaster 1 60 60 600 60\n NS ns\nns A 192.0.2.1\nwww A 192.0.2.2\n TXT hello\n"


class CheckTests(SynchronousTestCase):
    """Checks a zone of a file."""

    def setUp(self) -> None:
        """Sign a zone."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        (self.folder / "a.zone").write_text(TEXT)
        key = self.run_("dnssec-keygen", "-q", "-a", "13", "-f", "KSK", "a.test").strip()
        with (self.folder / "a.zone").open("a") as file:
            file.write((self.folder / f"{key}.key").read_text())
        self.run_("dnssec-signzone", "-P", "-z", "-o", "a.test", "-s", "20270101000000", "-e", "20270201000000",
                  "-f", "signed", "a.zone", key)  # fmt: skip
        self.text = (self.folder / "signed").read_text()

    def run_(self, *command: str) -> str:
        """Run a program, which must end well."""
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def zone(self, text: str = "") -> Zone:
        """Return the zone of *text*, or as it was signed."""
        (self.folder / "served").write_text(text or self.text)
        return Zone.read(self.folder / "served", "a.test")

    def check(self, text: str = "") -> Checked:
        """Check the zone of *text*, or as it was signed."""
        return check(self.zone(text), lambda _: None)

    def test_right(self) -> None:
        """Right signatures are right, whenever they are valid; their times are found."""
        found = self.check()
        self.assertEqual((UNTIL, FROM, ()), (found.earliest, found.latest, found.tampered))
        (key,) = found.keys
        ds = self.run_("dnssec-dsfromkey", "-2", "-f", "signed", "a.test").split()
        self.assertEqual(("active", ds), (key.state, key.ds.upper().replace("A.TEST.", "a.test.").split()))
        self.assertEqual(9, found.verified)  # SOA, NS, DNSKEY, 3 NSEC, 2 A, TXT
        self.assertEqual([], found.problems(FROM))

    def test_tampered(self) -> None:
        """A record that was changed after it was signed is named."""
        found = self.check(self.text.replace("192.0.2.2", "192.0.2.3"))
        self.assertEqual(("www.a.test A",), found.tampered)
        (problem,) = found.problems(FROM)
        self.assertIn("signatures of the file are wrong, so its answers are bogus: www.a.test A; sign", problem)
        many = Checked(tampered=tuple(map(str, range(9))))
        self.assertIn("0, 1, 2, 3, 4 and 4 more;", many.problems(0)[0])

    def test_times(self) -> None:
        """Signatures that have expired, expire soon, or are not valid yet are problems."""
        found = self.check()
        for now, words in ((UNTIL, "a signature has expired at 2027-02-01"), (UNTIL - SOON, "a signature expires at"),
                           (FROM - 1, "is not valid before 2027-01-01 00:00:00 UTC: see whether a clock")):  # fmt: skip
            (problem,) = found.problems(now)
            self.assertIn(words, problem)

    def test_bounded(self) -> None:
        """No more signatures are verified, and no more records are read, than the limits say."""
        self.patch(signature_check, "MOST_VERIFIED", 2)
        self.assertEqual(2, self.check().verified)
        self.patch(signature_check, "MOST_READ", 0)
        self.assertEqual(Checked(), self.check())

    def test_other_key(self) -> None:
        """Signatures of a key that the zone has not are wrong."""
        key = re.search(r"(?<=257 3 13 \(\n\t{5})\S{20}", self.text)
        assert key is not None
        self.assertIn("a.test SOA", self.check(self.text.replace(key[0], "A" * 20)).tampered)

    def test_no_extra(self) -> None:
        """Without the extra, no signature is verified, and the times of all are told."""

        def missing(*_: object, **__: object) -> None:
            raise ImportError("DNSSEC validation requires python cryptography")

        self.patch(dns.dnssec, "validate_rrsig", missing)
        found = self.check(self.text.replace("192.0.2.2", "192.0.2.3"))
        self.assertEqual((UNTIL, FROM, 0, ()), (found.earliest, found.latest, found.verified, found.tampered))
        self.assertIn("not verified; that needs: pip install 'jitsu-tw[dnssec]'", found.note)
        self.assertIn("a signature has expired", str(found.problems(UNTIL)))
        (status,) = self.checked(self.zone())
        self.assertEqual((found.note, UNTIL, ()), (status.next, status.earliest_expiry, status.problems))

    def checked(self, *zones: Zone) -> list[ZoneStatus]:
        """Return what the service shows of *zones*."""
        self.patch(signed_zones, "deferToThread", maybeDeferred)
        self.patch(signature_check, "REST", 0.0)
        for zone in zones:
            zone.secure(Mock())
        service = SignedZones(Zones(zones), lambda: FROM)
        service.start()
        self.successResultOf(Deferred.fromCoroutine(service.checked()))
        return service.statuses()

    def test_failure(self) -> None:
        """A check that fails is a problem of its zone, and the next zones are checked."""
        check_ = signature_check.check
        bad = Zone.made_up(from_text("bad.test"), 60)
        self.patch(signature_check, "check", lambda zone: 1 / 0 if zone is bad else check_(zone))
        first, last = self.checked(bad, self.zone())
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual(("a.test", UNTIL, ()), (last.zone, last.earliest_expiry, last.problems))
        self.assertIn("its signatures cannot be checked (ZeroDivisionError", str(first.problems))

    def test_other_signer(self) -> None:
        """A zone that has none of its keys of before, by a start or a reload, is told; one that has one left is not."""
        zone, unsigned = self.zone(), self.zone(TEXT)
        (key,) = self.check().keys
        name = f"013+{key.tag:05}"
        for state, first, second, words in (
            ("", zone, zone, ""), (f"{name} 013+00001", zone, zone, ""), ("013+00001 leaving", zone, zone, ""),
            ("013+00001", zone, zone, "signed by the key 013+00001, and it has other keys now"),
            ("", zone, unsigned, f"signed by the key {name}, and it is signed no more"), ("", unsigned, zone, ""),
            (name, unsigned, zone, ""), (f"{name} leaving", unsigned, unsigned, ""),
        ):
            with self.subTest(state=state, words=words):
                zones = Zones([first])
                service = SignedZones(zones)
                service.restore({"jitsu/dnssec/a.test": state} if state else {})
                self.patch(service, "_check", lambda: succeed(None))
                zones.put(second)
                service.replaced([second])
                service._checked[zone] = Checked()
                self.assertIn(words, " ".join(one.next for one in service.statuses()))
                self.assertEqual(bool(words), any(one.next for one in service.statuses()))

    def test_service(self) -> None:
        """A zone that comes signed is checked at the start and when it was read anew, and shown with its problems."""
        self.patch(signed_zones, "deferToThread", maybeDeferred)
        self.patch(signature_check, "REST", 0.0)
        good, bad = self.zone(), self.zone(self.text.replace("192.0.2.2", "192.0.2.3"))
        for zone in (good, bad):
            zone.secure(Mock())
        zones = Zones([good])
        service = SignedZones(zones, lambda: FROM)
        (status,) = service.statuses()
        self.assertEqual(("file", "its signatures are being checked", None), (
            status.signer, status.next, status.earliest_expiry))  # fmt: skip
        service.start()
        self.successResultOf(Deferred.fromCoroutine(service.checked()))
        (status,) = service.statuses()
        self.assertEqual(("a.test", UNTIL, 9), (status.zone, status.earliest_expiry, status.signatures))
        self.assertEqual(((), 1), (status.problems, len(status.keys)))
        zones.put(bad)
        service.replaced([bad])
        (status,) = service.statuses()
        self.assertIn("www.a.test A", str(status.problems))
