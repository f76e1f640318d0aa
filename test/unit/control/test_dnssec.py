"""Signed zones at the control endpoint, and in the metrics."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from jitsu_tw.dns.keytimes import RolloverError
from jitsu_tw.idnssec import IDnssec, KeyStatus, ZoneStatus
from test.support import vm
from test.support.control import Desk

KEY = KeyStatus(7, 13, "active", announced=True, ds="a.test. IN DS 7 13 2 AB")
SIGNED = ZoneStatus("a.test", "Jitsu", (KEY,), 5, "wait", 9.5, 3)


@implementer(IDnssec)
class Zones:
    """An `IDnssec` with two signed zones, which records the calls of its methods."""

    def __init__(self) -> None:
        """Begin with nothing asked for."""
        self.asked: list[tuple[str, ...]] = []
        self.checks: Deferred[None] = succeed(None)

    def statuses(self) -> list[ZoneStatus]:
        """Return the zones."""
        return [SIGNED, ZoneStatus("b.test", "file", problems=("expired",))]

    def checked(self) -> Deferred[None]:
        """Wait as the test wants it."""
        return self.checks

    def rollover(self, zone: str) -> Deferred[ZoneStatus]:
        """Refuse."""
        return fail(RolloverError(f"{zone} is rolling"))

    def ds_seen(self, zone: str, ds_ttl: int) -> Deferred[ZoneStatus]:
        """Note it."""
        self.asked.append(("ds_seen", zone, str(ds_ttl)))
        return succeed(SIGNED)

    def leave(self, zone: str) -> Deferred[ZoneStatus]:
        """Note it."""
        self.asked.append(("leave", zone))
        return succeed(SIGNED)


class DnssecTests(SynchronousTestCase):
    """Asks the endpoint."""

    def setUp(self) -> None:
        """Serve two signed zones."""
        self.zones = Zones()
        self.desk = Desk(vm(), dnssec=self.zones)

    def test_list(self) -> None:
        """All signed zones are listed, when those that come signed have been checked."""
        self.zones.checks = Deferred()
        talk = self.desk.talk()
        talk.say("GET", "/v1/dnssec")
        self.assertEqual(b"", talk.wire.value())
        self.zones.checks.callback(None)
        value = talk.heard().value
        self.assertEqual(["a.test", "b.test"], [one["zone"] for one in value])
        self.assertEqual({"zone": "a.test", "signer": "Jitsu", "next_at": 5, "next": "wait", "earliest_expiry": 9.5,
                          "signatures": 3, "problems": [], "keys": [{"tag": 7, "algorithm": 13, "state": "active",
                          "announced": True, "ds": "a.test. IN DS 7 13 2 AB"}]}, value[0])  # fmt: skip

    def test_done(self) -> None:
        """Steps are taken for the zone that is named; a TTL is in seconds, by default a day."""
        self.assertEqual("a.test", self.desk.post("/v1/dnssec/ds-seen?zone=a.test&ds_ttl=60").value["zone"])
        self.desk.post("/v1/dnssec/ds-seen?zone=%2E")
        self.desk.post("/v1/dnssec/insecure?zone=a%2Fb.test")
        expected = [("ds_seen", "a.test", "60"), ("ds_seen", ".", "86400"), ("leave", "a/b.test")]
        self.assertEqual(expected, self.zones.asked)

    def test_refused(self) -> None:
        """What cannot be done is 409 with the reason; a request without a zone, or with a strange TTL, is 400."""
        answer = self.desk.post("/v1/dnssec/rollover?zone=a.test")
        self.assertEqual((409, "a.test is rolling"), (answer.status, answer.value["error"]))
        for path in ("rollover", "ds-seen", "insecure", "rollover?zone=", "ds-seen?zone=a.test&ds_ttl=-1",
                     "ds-seen?zone=a.test&ds_ttl=99999999"):  # fmt: skip
            self.assertEqual(400, self.desk.post(f"/v1/dnssec/{path}").status, path)
        self.assertEqual([], self.zones.asked)

    def test_metrics(self) -> None:
        """The metrics have the earliest expiry, the signatures made, and the number of problems, by zone."""
        text = self.desk.ask("/metrics").body.decode()
        for line in ('jitsu_dnssec_earliest_expiry_seconds{zone="a.test"} 9.5',
                     'jitsu_dnssec_signatures_total{zone="a.test"} 3.0', 'jitsu_dnssec_problems{zone="a.test"} 0.0',
                     'jitsu_dnssec_problems{zone="b.test"} 1.0'):  # fmt: skip
            self.assertIn(line, text.splitlines())
        self.assertNotIn('expiry_seconds{zone="b.test"}', text)
