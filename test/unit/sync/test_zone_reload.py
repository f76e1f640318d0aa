"""The reload of one zone: what its file has now, the VMs' names, and nothing else."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.lookup import Found, NoData, NxDomain, Zones
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone, finish
from jitsu_tw.errors import ConfigError, ConfigErrors
from jitsu_tw.sync.zone_reload import reading_zone
from test.support import World, vm

if TYPE_CHECKING:
    from collections.abc import Generator

HEAD: Final = "$ORIGIN {}.\n@ 60 SOA ns h {} 2 3 4 5\n@ 60 NS ns\nns 60 A 127.0.0.1\n"


class ZoneReloadTests(SynchronousTestCase):
    """`reading_zone`."""

    def setUp(self) -> None:
        """Serve a zone, one inside of it, and a zone that is made up; each has a VM."""
        self.outer, self.inner = Path(self.mktemp()), Path(self.mktemp())
        self.outer.write_text(HEAD.format("jitsu.test", 1))
        self.inner.write_text(HEAD.format("in.deep.jitsu.test", 1))
        vms = [vm("www"), vm("db"), vm("a", dns=(from_text("a.in.deep.jitsu.test"),)),
               vm("m", dns=(from_text("m.made.test"),))]  # fmt: skip
        self.world = World(*vms)
        made = Zone.made_up(from_text("made.test"), 60)
        self.secured: list[Zone] = []
        self.zones = Zones([Zone.read(self.outer), Zone.read(self.inner), made])
        for one in vms:
            self.zones.add_vm(one.dns[0], one.name, [ip_address("10.0.0.1")], one.ttl)

    def reading(self, name: str) -> Generator[None, None, Zone]:
        """Read a zone, in steps."""
        steps = reading_zone(self.zones, lambda: [one.vm for one in self.world.fleet.machines.values()], name,
                             self.secured.append)  # fmt: skip
        return cast("Generator[None, None, Zone]", steps)

    def look(self, name: str, qtype: int = dns.A) -> object:
        """Return the outcome of a look-up."""
        return self.zones.lookup(from_text(name), qtype)

    def found(self, name: str) -> str | None:
        """Return the VM whose address is found."""
        outcome = self.look(name)
        assert isinstance(outcome, Found), outcome
        return outcome.vm

    def test_read(self) -> None:
        """The zone has what its file has, and its VMs; zones inside of it are there as before, and not read."""
        self.outer.write_text(HEAD.format("jitsu.test", 5) + "new 60 A 192.0.2.9\n")
        self.inner.write_text("nonsense")
        zone = finish(self.reading("JITSU.test."))
        self.assertEqual((5, [None, "www", "db", "a", "m"]), (zone.serial, [self.found(name) for name in (
            "new.jitsu.test", "www.jitsu.test", "db.jitsu.test", "a.in.deep.jitsu.test", "m.made.test")]))  # fmt: skip
        self.assertIsInstance(self.look("deep.jitsu.test"), NoData)  # there is a name below it
        self.assertIsInstance(self.look("nobody.jitsu.test"), NxDomain)
        self.assertIs(zone, self.zones.find(from_text("x.jitsu.test")))

    def test_steps(self) -> None:
        """There is a pause for other work after each VM, too, and while the zone is signed."""
        steps = [sum(1 for _ in one) for one in (Zone.reading(self.outer), self.reading("jitsu.test"))]
        self.assertEqual(len(self.world.fleet.machines) + 1, steps[1] - steps[0])

    def test_secured(self) -> None:
        """The zone is signed when it has all its names, before it is served; one that cannot be is not served."""
        before = self.zones.find(from_text("jitsu.test"))
        steps = self.reading("jitsu.test")
        while not self.secured:
            next(steps)
        self.assertIs(before, self.zones.find(from_text("jitsu.test")))
        self.assertIsNotNone(self.secured[0].get(from_text("db.jitsu.test")))
        with self.assertRaises(ConfigError):
            steps.throw(ConfigError("a key is gone"))
        self.assertIs(before, self.zones.find(from_text("jitsu.test")))

    def test_inner(self) -> None:
        """A zone inside another one is read alone; the outer one does not get its VMs."""
        self.inner.write_text(HEAD.format("in.deep.jitsu.test", 7))
        finish(self.reading("in.deep.jitsu.test"))
        self.assertEqual(("a", "www"), (self.found("a.in.deep.jitsu.test"), self.found("www.jitsu.test")))

    def check_refused(self, name: str, words: str) -> None:
        """Reload *name*, which is refused with *words* and leaves all as it was."""
        before = list(self.zones)
        with self.assertRaises(ConfigError) as caught:
            finish(self.reading(name))
        self.assertIn(words, str(caught.exception))
        self.assertEqual(before, list(self.zones))
        self.assertEqual("www", self.found("www.jitsu.test"))

    def test_bad(self) -> None:
        """A zone whose file is bad or gone, or is another zone now, stays as it was."""
        self.outer.write_text("nonsense")
        self.check_refused("jitsu.test", f"{self.outer}:1:")
        self.outer.unlink()
        self.check_refused("jitsu.test", "No such file")
        self.outer.write_text(HEAD.format("other.test", 9))
        self.check_refused("jitsu.test", "is the zone other.test now")

    def test_names(self) -> None:
        """All VMs whose names the new file cannot have are named, and the old one is served."""
        self.outer.write_text(HEAD.format("jitsu.test", 2) + "www 60 CNAME ns\ndb 60 CNAME ns\n")
        with self.assertRaises(ConfigErrors) as caught:
            finish(self.reading("jitsu.test"))
        self.assertEqual(2, len(caught.exception.errors))
        self.check_refused("jitsu.test", "vms: www: dns")

    def test_unknown(self) -> None:
        """A zone that is not served, or has no file, is refused; a hostile name is shown safely."""
        self.check_refused("nobody.test", "the zone nobody.test is not served")
        self.check_refused("www.jitsu.test", "is not served")
        self.check_refused("made.test", "it is made up of the VMs' names")
        self.check_refused("\x1b[2J" + "x" * 100_000, r"\x1b[2J")
        with self.assertRaises(ConfigError) as caught:
            finish(self.reading("x" * 100_000))
        self.assertLess(len(str(caught.exception)), 200)
