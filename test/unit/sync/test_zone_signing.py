"""The service that signs zones: keys at the start, what comes with time, rollovers, lost keys; on a clock."""

from __future__ import annotations

import os
import shutil
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import capturedLogs
from twisted.names.dns import A
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.dns import dnskeys
from jitsu_tw.dns.dnskeys import Key, KeyFileError
from jitsu_tw.dns.keytimes import RolloverError, Times, plan
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.signing import Signed
from jitsu_tw.dns.wire import CDNSKEY, CDS, DNSKEY, NSEC, NSEC3, NSEC3PARAM, RRSIG, RRset, from_text, to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ConfigError, StoreError, ZoneError
from jitsu_tw.settings import Dnssec, Settings
from jitsu_tw.store.git import GitStore
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.sync import zone_signing
from jitsu_tw.sync.signed_zones import SignedZones
from jitsu_tw.sync.zone_signing import LOOK_EVERY, ZoneSigning, make_key
from test.support import BoundedClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from jitsu_tw.idnssec import ZoneStatus

NOW = 1_800_000_000.0
DAY = 86400.0
VALIDITY = 10 * DAY
APEX = from_text("a.test")
TTL = 3600


class SigningTestCase(SynchronousTestCase):
    """Signs the zone a.test with keys in an empty directory; threads are left out."""

    algorithm = 13

    def setUp(self) -> None:
        """Begin without state."""
        self.patch(zone_signing, "deferToThread", maybeDeferred)
        self.store = MemoryStore(lasting=True)
        self.keys = Path(self.mktemp())
        self.wall = NOW
        self.renewed: list[list[bytes]] = []
        self.running: list[ZoneSigning] = []

    def begin(self, *wanted: str, zones: Iterable[str] = ("a.test",), **more: Any) -> ZoneSigning:
        """Start, as a process does; one before is as good as killed."""
        self.kill()
        self.clock = BoundedClock()
        self.zones = Zones([Zone.made_up(from_text(name), TTL) for name in zones])
        self.zone = next(iter(self.zones))
        self.zone.add_vm(from_text("www.a.test"), "www", [ip_address("192.0.2.1")], 60)
        dnssec = Dnssec(self.keys, zones=tuple(map(from_text, wanted)), validity=VALIDITY, **more)
        clocks = Clocks(self.clock, wall=lambda: self.wall)
        service = ZoneSigning(dnssec, self.zones, self.store, clocks, self.note)
        service.restore(self.store.open())
        service.start()
        self.running = [service]
        return service

    def kill(self) -> None:
        """End the process without a word."""
        for one in self.running:
            one._looking.stop()
        self.running.clear()

    def tearDown(self) -> None:
        """End what runs."""
        self.kill()

    def note(self, zones: Iterable[Zone]) -> None:
        """Note whose signatures are new."""
        self.renewed.append([zone.key for zone in zones])

    def wait(self, seconds: float = LOOK_EVERY) -> None:
        """Let time pass: the service looks once then."""
        self.wall += seconds
        self.clock.advance(LOOK_EVERY)

    @property
    def signed(self) -> Signed:
        """What signs the zone."""
        assert isinstance(self.zone.security, Signed)
        return self.zone.security

    def apex(self, type_: int) -> int:
        """Return how many records the apex has of a type."""
        node = self.zone.get(APEX)
        assert node is not None
        return len(node.rrsets[type_].rdatas) if type_ in node.rrsets else 0

    def www(self) -> RRset:
        """Return the addresses of a VM."""
        node = self.zone.get(from_text("www.a.test"))
        assert node is not None
        return node.rrsets[A]

    def done(self, work: Awaitable[ZoneStatus]) -> ZoneStatus:
        """Return the result of *work*."""
        return self.successResultOf(Deferred.fromCoroutine(work))  # type: ignore[arg-type]

    def refused(self, work: Awaitable[ZoneStatus], words: str, kind: type[Exception] = ConfigError) -> None:
        """*work* fails with *words*."""
        error = self.failureResultOf(Deferred.fromCoroutine(work), kind)  # type: ignore[arg-type]
        self.assertIn(words, str(error.value))

    def files(self) -> list[str]:
        """Return the names of the private files."""
        return sorted(path.name for path in self.keys.glob("*.private"))

    def kept(self) -> str:
        """Return what the state has of the zone's keys."""
        return self.store.tree.get("jitsu/dnssec/a.test", "")


class StartTests(SigningTestCase):
    """Starts."""

    def test_first(self) -> None:
        """At the first start a key is made, the zone is signed before anything is served, and the state has the key."""
        service = self.begin()
        (key,) = self.signed.keys
        self.assertEqual([f"{key.stem}.private"], self.files())
        self.assertEqual((13, int(NOW), int(NOW) + TTL), (key.algorithm, key.times.activate, key.times.sync_publish))
        self.assertEqual(1, self.apex(DNSKEY))
        self.assertEqual(f"013+{key.tag:05}", self.kept())
        (status,) = service.statuses()
        self.assertEqual(("a.test", "Jitsu", (), key.tag), (status.zone, status.signer, status.problems,
                                                            status.keys[0].tag))  # fmt: skip
        self.assertTrue(status.keys[0].ds.startswith(f"a.test. IN DS {key.tag} 13 2 "))

    def test_again(self) -> None:
        """Later starts use the same key, also if the state was not written; each raises the serial once."""
        self.begin()
        (first,) = self.signed.keys
        self.store.tree.clear()
        self.begin()
        self.assertEqual((first,), self.signed.keys)
        self.assertEqual(2, self.zone.serial)

    def test_algorithm(self) -> None:
        """New keys have the algorithm of the configuration, and keys that are there stay."""
        self.begin(algorithm=15)
        self.assertEqual(15, self.signed.keys[0].algorithm)
        self.begin(algorithm=13)
        self.assertEqual([15], [key.algorithm for key in self.signed.keys])

    def test_some(self) -> None:
        """Only the zones that are named are signed; without names, all that do not come signed."""
        self.begin("B.test", zones=("a.test", "b.test"))
        self.assertEqual([False, True], [zone.security is not None for zone in self.zones])
        self.begin(zones=("a.test", "b.test", "."))
        self.assertEqual(3, len(self.files()))
        self.assertIn("jitsu/dnssec/@", self.store.tree)

    def test_lost(self) -> None:
        """A key that the state has, and the directory has not, ends the start with the remedy; none is made."""
        self.begin()
        for path in self.keys.glob("K*"):
            path.rename(path.with_name(f"away-{path.name}"))
        with self.assertRaisesRegex(KeyFileError, r"Ka\.test\.\+013.*private: a.test is signed with this key, and it "
                                    r"is gone: restore it .* jitsuctl dnssec init --lost"):  # fmt: skip
            self.begin()
        self.assertIsNone(self.zone.security)
        self.assertEqual([], [name for name in self.files() if name.startswith("K")])

    def test_unusable(self) -> None:
        """Keys that cannot be used, and keys none of which signs, end the start."""
        self.begin()
        (path,) = self.keys.glob("*.private")
        path.chmod(0o644)
        with self.assertRaisesRegex(KeyFileError, "chmod 600"):
            self.begin()
        path.chmod(0o600)
        self.wall = NOW - 1
        with self.assertRaisesRegex(KeyFileError, r"Ka\.test\.\+\*: no key signs now: restore the key files"):
            self.begin()

    def test_leftovers(self) -> None:
        """A zone with records of an earlier signing is refused with the remedy, before a key is made."""
        service = self.begin("b.test")
        for type_ in (RRSIG, NSEC, NSEC3, NSEC3PARAM):
            zone = Zone.made_up(from_text("b.test"), TTL)
            zone.add(from_text("x.b.test"), type_, TTL, b"\0\1" + bytes(20))
            with self.assertRaisesRegex(ZoneError, "x.b.test has records of an earlier signing: take RRSIG, NSEC,"):
                service.secure([zone])
            self.assertIsNone(zone.security)
        self.assertEqual([], self.files())

    def test_killed(self) -> None:
        """A start that was killed between the two files of its first key does not keep the next one from starting."""
        self.begin()
        (key,) = self.signed.keys
        self.store.tree.clear()
        (self.keys / f"{key.stem}.key").unlink()
        self.begin()
        self.assertEqual((key,), self.signed.keys)

    def test_together(self) -> None:
        """Two nodes with one directory have one key."""
        self.begin()
        (first,) = self.signed.keys
        self.store = MemoryStore(lasting=True)
        self.begin()
        self.assertEqual((first,), self.signed.keys)

    def test_cannot_write(self) -> None:
        """What cannot be written to the state is written later."""
        patch = self.patch(self.store, "write", lambda *_: fail(StoreError("disk full")))
        self.begin()
        self.assertEqual("", self.kept())
        patch.restore()
        self.wait()
        self.assertNotEqual("", self.kept())


class TimeTests(SigningTestCase):
    """What comes with time."""

    def test_announced(self) -> None:
        """CDS and CDNSKEY come when their time comes; the serial is raised, and answers that are kept are dropped."""
        self.begin()
        self.wait(TTL - 1)
        self.assertEqual((0, []), (self.apex(CDS), self.renewed))
        serial = self.zone.serial
        self.wait(1)
        self.assertEqual((1, 1), (self.apex(CDS), self.apex(CDNSKEY)))
        self.assertEqual((serial + 1, [[APEX]]), (self.zone.serial, self.renewed))

    def test_renewed(self) -> None:
        """Signatures are renewed before they expire; only then are serials raised and kept answers dropped."""
        self.begin(zones=("a.test", "b.test"))
        self.wait(TTL)
        self.renewed.clear()
        made, serial = self.signed.signatures(self.www()), self.zone.serial
        for _ in range(66):
            self.wait(VALIDITY / 100)
            self.assertEqual([], self.renewed)
        self.assertEqual(serial, self.zone.serial)
        for _ in range(10):
            self.wait(VALIDITY / 100)
        self.assertEqual(([[APEX]], serial + 1), (self.renewed, self.zone.serial))
        self.assertIsNot(made, self.signed.signatures(self.www()))

    def test_reload(self) -> None:
        """A zone that was read anew is signed before it is served, and its serial is raised when it is."""
        service = self.begin()
        new = Zone.made_up(APEX, TTL)
        service.secure([new])
        assert isinstance(new.security, Signed)
        self.assertEqual(self.signed.keys, new.security.keys)
        self.zones.put(new)
        service.replaced([new])
        self.assertEqual(2, new.serial)
        self.wait(TTL)
        self.zone = new
        self.assertEqual(1, self.apex(CDS))

    def test_reload_lost(self) -> None:
        """A reload for which a key is gone is refused: what is served stays as it is."""
        service = self.begin()
        shutil.rmtree(self.keys)
        new = Zone.made_up(APEX, TTL)
        with self.assertRaisesRegex(KeyFileError, "it is gone"):
            service.secure([new])
        self.assertIsNone(new.security)
        self.assertEqual(service.statuses()[0].keys[0].tag, self.signed.keys[0].tag)

    def test_vanished(self) -> None:
        """A key that vanishes, or is damaged, is a problem; the zone stays signed with the key in memory."""
        service = self.begin()
        (path,) = self.keys.glob("*.private")
        for spoil, words in ((lambda: path.rename(path.with_suffix(".away")), "is missing; move"),
                             (lambda: path.write_text("damaged"), "is damaged"),
                             (lambda: path.chmod(0o644), "chmod 600"),
                             (lambda: shutil.rmtree(self.keys), "the directory of keys cannot be read")):  # fmt: skip
            with self.subTest(words):
                text = path.read_bytes()
                spoil()
                self.wait()
                (status,) = service.statuses()
                self.assertIn(words, str(status.problems))
                self.assertEqual((1, "active"), (self.apex(DNSKEY), status.keys[0].state))
                self.keys.mkdir(exist_ok=True)
                path.unlink(missing_ok=True)
                path.write_bytes(text)
                path.chmod(0o600)
                if not path.with_suffix(".key").exists():
                    dnskeys.write(self.keys, self.signed.keys[0])
                self.wait()
                self.assertEqual((), service.statuses()[0].problems)

    def test_gone(self) -> None:
        """Keys that vanish with both halves are a problem, and are not forgotten."""
        service = self.begin()
        for path in self.keys.glob("K*"):
            path.unlink()
        self.wait()
        self.assertIn("is signed with this key, and it is gone", str(service.statuses()[0].problems))
        self.wait()
        self.assertEqual(1, len(self.signed.signatures(self.www())))

    def test_no_key_left(self) -> None:
        """A time at which no key would sign any more is a problem: the zone stays signed."""
        service = self.begin()
        (key,) = self.signed.keys
        for at in (int(NOW) + 60, None):
            times = attrs.evolve(key.times, inactive=at, delete=at)
            dnskeys.put(self.keys, [key], {key.tag: times})
            self.wait(30)
            self.assertEqual((), service.statuses()[0].problems)
            self.wait(60)
            self.assertEqual(at is not None, "no key signs now" in str(service.statuses()[0].problems))
            self.assertEqual((1, 1), (self.apex(DNSKEY), len(self.signed.signatures(self.www()))))

    def test_set_back(self) -> None:
        """When the clock was set back, all RRsets are signed anew: their signatures would begin in the future."""
        self.begin()
        self.wait(TTL)
        made = self.signed.signatures(self.www())
        self.renewed.clear()
        self.wait(-60)
        self.assertEqual(([], made), (self.renewed, self.signed.signatures(self.www())))
        self.wall += 10 * DAY
        self.clock.advance(LOOK_EVERY)
        self.signed.signatures(self.www())
        self.renewed.clear()
        self.wait(-9 * DAY)
        self.assertEqual([[APEX]], self.renewed)
        again = self.signed.signatures(self.www())
        self.assertLess(int.from_bytes(again[0].rdata[12:16]), self.wall)

    def test_set_back_before(self) -> None:
        """A clock before the key's times is a problem as long as it lasts, and signatures are made anew."""
        service = self.begin()
        for back, forth in ((-3 * DAY, 3 * DAY), (-3 * DAY, 3650 * DAY), (-3653 * DAY, 3653 * DAY)):
            with self.subTest(back=back, forth=forth):
                self.signed.signatures(self.www())
                self.renewed.clear()
                self.wait(back)
                self.assertIn("no key signs now", str(service.statuses()[0].problems))
                self.assertEqual([[APEX]], self.renewed)
                (made,) = self.signed.signatures(self.www())
                self.assertLess(int.from_bytes(made.rdata[12:16]), self.wall)
                self.wait()
                self.assertEqual([[APEX]], self.renewed)
                self.wait(forth)
                self.assertEqual((), service.statuses()[0].problems)
                self.assertEqual(self.signed.plan, plan({key.tag: key.times for key in self.signed.keys}, self.wall))

    def test_set_back_slowly(self) -> None:
        """A clock that is set back in many steps is set back."""
        self.begin()
        self.wait(TTL)
        for _ in range(2):
            self.renewed.clear()
            self.wait(-3000)
        self.assertEqual([[APEX]], self.renewed)

    def test_announced_too_early(self) -> None:
        """What a clock that was ahead has announced is taken back when the clock is right."""
        self.begin()
        self.wait(DAY)
        self.assertEqual(1, self.apex(CDS))
        self.wait(-3 * DAY)
        self.wait(2 * DAY)
        self.assertEqual(0, self.apex(CDS))

    def test_changed_meanwhile(self) -> None:
        """Keys that change between a reload's reading and the moment in which its zones are served are followed."""
        service = self.begin()
        new = Zone.made_up(APEX, TTL)
        service.secure([new])
        (key,) = self.signed.keys
        dnskeys.put(self.keys, [key], {key.tag: attrs.evolve(key.times, sync_publish=int(NOW))})
        self.wait()
        self.zones.put(new)
        service.replaced([new])
        self.zone = new
        self.assertEqual(0, self.apex(CDS))
        self.wait()
        self.assertEqual(1, self.apex(CDS))

    def test_stop(self) -> None:
        """After its end, nothing is looked at any more."""
        service = self.begin()
        self.done(service.stop())  # type: ignore[arg-type]
        self.running.clear()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_fault(self) -> None:
        """A fault of Jitsu is logged, and does not end the renewal of signatures."""
        self.begin()
        patch = self.patch(self.signed, "renew", lambda _: 1 / 0)
        self.wait(VALIDITY)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        patch.restore()
        self.wait(TTL)
        self.assertEqual(1, self.apex(CDS))


class RolloverTests(SigningTestCase):
    """Rollovers, from begin to end, with a restart at each step."""

    def test_whole(self) -> None:
        """A rollover goes through its steps, whatever process takes them, and the state has the keys at each."""
        service = self.begin()
        (old,) = self.signed.keys
        self.wait(TTL)
        status = self.done(service.rollover("A.test."))
        new = next(key for key in self.signed.keys if key.tag != old.tag)
        self.assertEqual([("active", True), ("active", False)], self.states(status, old.tag, new.tag))
        self.assertEqual({f"013+{old.tag:05}", f"013+{new.tag:05}"}, set(self.kept().split()))
        self.assertEqual((2, 1, 0o600), (self.apex(DNSKEY), self.apex(CDS), (
            self.keys / f"{new.stem}.private").stat().st_mode & 0o777))  # fmt: skip
        self.refused(service.rollover("a.test"), "a rollover is under way", RolloverError)
        self.refused(service.ds_seen("a.test", 3600), "too early", RolloverError)
        service = self.begin()
        self.wait(TTL)
        self.assertEqual([("active", False), ("active", True)], self.states(service.statuses()[0], old.tag, new.tag))
        service = self.begin()
        status = self.done(service.ds_seen("a.test", 7200))
        self.assertEqual(int(self.wall) + 7200, status.next_at)
        service = self.begin()
        self.wait(7199)
        self.assertEqual(2, self.apex(DNSKEY))
        self.wait(1)
        self.assertEqual(1, self.apex(DNSKEY))
        self.assertEqual([("removed", False), ("active", True)], self.states(service.statuses()[0], old.tag, new.tag))
        self.assertEqual(f"013+{new.tag:05}", self.kept())
        for path in self.keys.glob(f"{old.stem}.*"):
            path.unlink()
        self.begin()
        self.assertEqual([new.tag], [key.tag for key in self.signed.keys])

    def states(self, status: ZoneStatus, *tags: int) -> list[tuple[str, bool]]:
        """Return the states of keys, and whether they are announced."""
        found = {key.tag: (key.state, key.announced) for key in status.keys}
        return [found[tag] for tag in tags]

    def test_wait(self) -> None:
        """The wait counts the TTL of templates, which have no addresses, and of VMs and records that are gone."""
        service = self.begin()
        self.wait(TTL)
        for ttl, change in (
            (2 * TTL, lambda: self.zone.add_vm(from_text("*.pr.a.test"), "template", (), 2 * TTL)),
            (3 * TTL, lambda: self.zone.add_vm(from_text("x.a.test"), "x", [ip_address("192.0.2.2")], 3 * TTL)),
            (3 * TTL, lambda: self.zone.remove_vm(from_text("x.a.test"))),
            (4 * TTL, lambda: self.zone.add_reverse(from_text("1.a.test"), "x", from_text("x.a.test"), 4 * TTL)),
            (5 * TTL, lambda: self.zone.add(from_text("y.a.test"), A, 5 * TTL, bytes(4))),
        ):
            change()
            self.assertEqual(ttl, self.zone.longest_ttl)
        self.assertEqual(int(self.wall) + 5 * TTL, self.done(service.rollover("a.test")).next_at)

    def test_other_node(self) -> None:
        """A rollover that another node has begun is followed within seconds."""
        self.begin()
        first, self.running = self.running, []
        zone, clock = self.zone, self.clock
        other = self.begin()
        self.done(other.rollover("a.test"))
        self.kill()
        self.running, self.zone, self.clock = first, zone, clock
        self.assertEqual(1, self.apex(DNSKEY))
        self.wait()
        self.assertEqual(2, self.apex(DNSKEY))

    def test_root(self) -> None:
        """The root zone is rolled like others."""
        service = self.begin(zones=("a.test", "."))
        self.assertEqual(".", self.done(service.rollover(".")).zone)

    def test_by_hand(self) -> None:
        """New times of a key, set with BIND's program, are followed."""
        self.begin()
        (key,) = self.signed.keys
        dnskeys.put(self.keys, [key], {key.tag: attrs.evolve(key.times, sync_publish=int(NOW))})
        self.wait()
        self.assertEqual(1, self.apex(CDS))

    def test_leave(self) -> None:
        """A zone that is to be unsigned asks its parent to remove the DS records, and the state says so."""
        service = self.begin()
        status = self.done(service.leave("a.test"))
        self.assertEqual([""], [key.ds for key in status.keys])
        self.assertIn("take the zone out of dnssec", status.next)
        self.assertTrue(self.kept().endswith(" leaving"))
        self.assertEqual((1, 1, 1), (self.apex(CDS), self.apex(CDNSKEY), self.apex(DNSKEY)))
        self.begin()
        self.assertEqual(1, self.apex(CDS))

    def test_refused(self) -> None:
        """Zones that Jitsu does not sign, and lost keys, are refused with the reason; nothing changes."""
        service = self.begin()
        for zone in ("b.test", "", "x" * 1000):
            self.refused(service.rollover(zone), "Jitsu does not sign")
        for path, words in zip([*self.keys.glob("*.private"), *self.keys.glob("*.key")],
                               ("is missing", "it is gone: restore it"), strict=True):  # fmt: skip
            path.unlink()
            for work in (service.rollover("a.test"), service.ds_seen("a.test", 1), service.leave("a.test")):
                self.refused(work, words)
        self.assertEqual((1, []), (self.apex(DNSKEY), self.files()))

    def test_tags(self) -> None:
        """The new key never has the tag of the old one."""
        service = self.begin()
        (old,) = self.signed.keys
        other = Key.made(APEX, 13, Times.beginning(int(NOW), TTL))
        made = iter([old, other])
        self.patch(Key, "made", lambda *_: next(made))
        self.done(service.rollover("a.test"))
        self.assertEqual({old.tag, other.tag}, {key.tag for key in self.signed.keys})


class LostTests(SigningTestCase):
    """`jitsuctl dnssec init`, while no Jitsu runs."""

    def setUp(self) -> None:
        """Sign a zone, with a state in git."""
        super().setUp()
        self.path = Path(self.mktemp())
        self.settings = Settings(persistdb=self.path, dnssec=Dnssec(self.keys))

    def make(self, zone: str = "a.test", *, lost: bool = False) -> list[str]:
        """Make a key."""
        return make_key(self.settings, Zones([Zone.made_up(APEX, TTL)]), zone, lost=lost)

    def state(self) -> str | None:
        """Return what the state has."""
        store = GitStore(self.path)
        tree = store.open()
        store.close()
        return tree.get("jitsu/dnssec/a.test")

    def test_lost(self) -> None:
        """A lost key is replaced only if the operator says that it is lost; the state has the new one then."""
        (line, ds) = self.make()
        self.assertIn("made the key Ka.test.+013+", line)
        self.assertTrue(ds.startswith("a.test. IN DS "))
        (first,) = self.files()
        (line, again) = self.make()
        self.assertIn("which signs, so no other one was made; its DS record:", line)
        self.assertEqual(ds, again)
        with self.assertRaisesRegex(ConfigError, "no key of a.test is lost"):
            self.make(lost=True)
        for path in self.keys.glob("K*"):
            path.unlink()
        with self.assertRaisesRegex(KeyFileError, "it is gone: restore it"):
            self.make()
        self.assertEqual([], self.files())
        self.assertIn("made the key", self.make(lost=True)[0])
        (second,) = self.files()
        self.assertNotEqual(first, second)
        self.assertEqual(second.removeprefix("Ka.test.+").removesuffix(".private"), self.state())

    def test_other_left(self) -> None:
        """If another key is left that signs, the lost one is forgotten, and no new one is made."""
        self.make()
        store = GitStore(self.path)
        tree = store.open()
        store.history.commit({"jitsu/dnssec/a.test": f"{tree['jitsu/dnssec/a.test']} 013+00001"}, "by hand")
        store.close()
        (before,) = self.files()
        (key,) = self.read()
        ended = attrs.evolve(key.times, inactive=2**31, delete=2**31, sync_delete=key.times.created)
        dnskeys.put(self.keys, [key], {key.tag: ended})
        self.assertIn("so no other one was made", self.make(lost=True)[0])
        self.assertEqual([before], self.files())
        self.assertNotIn("00001", str(self.state()))
        self.assertEqual((key.times,), tuple(one.times for one in self.read()))

    def read(self) -> tuple[Key, ...]:
        """Return the zone's keys."""
        keys = dnskeys.read(self.keys, [APEX])[APEX]
        assert not isinstance(keys, KeyFileError)
        return keys

    def test_damaged(self) -> None:
        """Damaged keys are as lost ones: they are set aside, and the new key is announced at once."""
        for spoil in (lambda private, _: os.truncate(private, 100), lambda private, _: private.unlink(),
                      lambda private, public: (private.unlink(), public.write_text("?"))):  # fmt: skip
            with self.subTest(self.files()):
                if not self.files():
                    self.make()
                (name,) = self.files()
                private = self.keys / name
                spoil(private, private.with_suffix(".key"))
                with self.assertRaisesRegex(KeyFileError, "no copy, end Jitsu, and: jitsuctl dnssec init --lost"):
                    self.make()
                aside, made, ds = self.make(lost=True)
                self.assertIn(f"key {private.stem}, which cannot be used, the suffix .lost", aside)
                self.assertIn("made the key", made)
                (key,) = self.read()
                self.assertEqual(key.times.created, key.times.sync_publish)
                self.assertEqual((zone_signing.ds_text(key), zone_signing.name(key)), (ds, self.state()))
                self.assertTrue((self.keys / f"{private.stem}.key.lost").exists())

    def test_public_lost(self) -> None:
        """A key whose private half is whole is not lost: its public half is written again."""
        self.make()
        (key,) = self.read()
        public = self.keys / f"{key.stem}.key"
        for spoil in (public.unlink, lambda: public.write_text("?")):
            spoil()
            self.assertIn(f"wrote {key.stem}.key again", self.make(lost=True)[0])
            self.assertEqual((key,), self.read())

    def test_open(self) -> None:
        """A private key that others may read is not lost."""
        self.make()
        (self.keys / self.files()[0]).chmod(0o640)
        with self.assertRaisesRegex(KeyFileError, "chmod 600"):
            self.make(lost=True)

    def test_nothing_made(self) -> None:
        """What is refused makes neither a state nor a directory of keys."""
        with self.assertRaisesRegex(ConfigError, "no key of a.test is lost"):
            self.make(lost=True)
        self.assertFalse(self.path.exists() or self.keys.exists())
        self.make()
        shutil.rmtree(self.keys)
        with self.assertRaisesRegex(KeyFileError, "it is gone"):
            self.make()
        self.assertFalse(self.keys.exists())

    def test_refused(self) -> None:
        """Zones that Jitsu is not to sign are refused."""
        with self.assertRaisesRegex(ConfigError, "Jitsu is not to sign b.test"):
            self.make("b.test")
        self.settings = Settings(persistdb=self.path)
        with self.assertRaisesRegex(ConfigError, "Jitsu is not to sign a.test"):
            self.make()


class UnsignedTests(SynchronousTestCase):
    """Zones that Jitsu has signed, and does not sign any more."""

    def warned(self, state: str, name: str = "a.test") -> list[str]:
        """Return the zones that a start warns of."""
        service = SignedZones(Zones([Zone.made_up(APEX, TTL)]))
        with capturedLogs() as logged:
            service.restore({f"jitsu/dnssec/{name}": state, "jitsu/serial/a.test": "5"})
        warned = [event["zone"] for event in logged]
        self.assertEqual(warned, [one.zone for one in service.statuses() if "it is signed no more" in one.next])
        return warned

    def test_warning(self) -> None:
        """A zone whose parent may have a DS record is warned of; one that has left, or is not served, is not."""
        self.assertEqual([to_text(APEX)], self.warned("013+12345"))
        self.assertEqual([], self.warned("013+12345 leaving"))
        self.assertEqual([], self.warned("013+12345", "b.test"))

    def test_refused(self) -> None:
        """Nothing can be rolled where Jitsu signs nothing."""
        service = SignedZones(Zones([Zone.made_up(APEX, TTL)]))
        for work in (service.rollover("a.test"), service.ds_seen("a.test", 1), service.leave("a.test")):
            error = self.failureResultOf(Deferred.fromCoroutine(work), ConfigError)
            self.assertIn("Jitsu does not sign a.test", str(error.value))
        self.assertEqual([], service.statuses())
