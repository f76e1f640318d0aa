"""Templates and their VMs, changed by git and by a new reading of the file. A real repository, on a clock."""

from __future__ import annotations

import uuid as uuids
from typing import TYPE_CHECKING, Any, Final

import attrs
import pygit2
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs, formatEvent

from jitsu_tw.clocks import Clocks
from jitsu_tw.config import build
from jitsu_tw.config.vms import NAMESPACE, uuid_of
from jitsu_tw.dns.wire import Source, from_text
from jitsu_tw.errors import BackendError, ConfigError, NoSuchVM
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.store.layout import UNKNOWN
from jitsu_tw.sync import change_requests
from jitsu_tw.sync.change_requests import LOOK_EVERY
from jitsu_tw.sync.folders import rebuilt
from jitsu_tw.sync.forgetting import FORGETS_EVERY
from jitsu_tw.sync.reload import Reloads
from jitsu_tw.sync.templates import Templates
from test.support import EPOCH
from test.unit.sync.test_requests import DB, FILE, WWW, RequestsTestCase, below

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.settings import VM
    from jitsu_tw.sync.reconfigure import Outcome

HERE: Final = Source("192.0.2.1", 4711, proven=True)

#: Changes of the template's folder that each of its VMs follows.
CHANGES: Final[dict[str, str | None]] = {"dns/*.sites.jitsu.test/ttl": "70", "config/idle/0": "70"}

SITE: Final = """
  - name: site
    dns: "*.sites.jitsu.test"
    pool: 10.1.0.0/24
    exists: "*"
    idle: 50
    new_per_minute: 0
"""


def template_uuid(name: str = "site") -> str:
    """Return the uuid of the template *name*, which names its folder."""
    return str(uuids.uuid5(NAMESPACE, f"template {name}"))


class TemplateCase(RequestsTestCase):
    """A Jitsu whose file has two VMs and a template."""

    def setUp(self) -> None:
        """Begin."""
        self.file: str | None = SITE
        super().setUp()
        self.clock.advance(1)

    @property
    def given(self) -> dict[str, Any]:
        """The options of the command line."""
        zone = str(self.folder / "jitsu.zone")
        return {"zones": [zone], "backend": "memory", "persistdb": str(self.path), "delay": "0"}

    def write(self, text: str | None) -> None:
        """Write the list of templates."""
        self.file = text
        path = self.folder / "jitsu.yaml"
        path.write_text(f"starts_per_minute: 0\n{'templates:' + text if text else ''}")

    def begin(self, pairs: Iterable[str] = FILE) -> None:
        """Start, as a process does."""
        self.write(self.file)
        super().begin(pairs)
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        self.templates = Templates(self.running, self.fleet, self.store, clocks)
        self.reloads = Reloads(self.running, self.fleet, lambda *_: None, self.clock)

    def make(self, label: str = "alice") -> str:
        """Make a VM, wait until it is in the state, and return its uuid."""
        self.assertTrue(self.successResultOf(self.templates.make("site", label, HERE)))
        self.clock.advance(1)
        return self.fleet.machines[f"{label}.site"].uuid

    def kill(self) -> None:
        """End, and start anew."""
        self.end()
        self.begin()
        self.clock.advance(1)

    def vm(self, name: str = "alice.site") -> Any:
        """Return the settings of a VM."""
        return self.fleet.machines[name].vm

    def read(self, text: str | None) -> Deferred[Outcome]:
        """Read a file that has these templates."""
        self.write(text)
        done = Deferred.fromCoroutine(self.reloads.apply(*build.load(self.given, FILE)))
        self.clock.advance(0)
        return done

    def reload(self, text: str | None) -> list[str]:
        """Read a file that has these templates; return what has changed, in words."""
        lines = self.successResultOf(self.read(text)).lines
        self.clock.advance(1)
        return lines


class RequestTests(TemplateCase):
    """Changes by git."""

    def test_folder(self) -> None:
        """A template has a folder as a VM has, without an address; a VM of it has only what is its own."""
        uuid = self.make()
        files = self.tree(f"jitsu/vm/{template_uuid()}/")
        self.assertEqual({"config/name/0": "site", "config/pool/0": "10.1.0.0/24", "config/exists/0": "*",
                          "config/idle/0": "50", "config/new_per_minute/0": "0", "stop_mode": "destroy",
                          "dns/*.sites.jitsu.test/ttl": "60"}, files)  # fmt: skip
        self.assertEqual(["config/name/0", "config/template/0", "dns/alice.sites.jitsu.test/ttl", "ip"],
                         sorted(self.tree(f"jitsu/vm/{uuid}/")))

    def test_template_changed(self) -> None:
        """A change of a template is one of its VMs, at once and after a restart; nothing else of the state changes."""
        uuid = self.make()
        before = self.tree(f"jitsu/vm/{uuid}/")
        self.assertEqual("", self.ask(below(template_uuid(), {"config/idle/0": "70", "stop_mode": "pause"})))
        self.assertEqual((70.0, "pause"), (self.vm().idle, self.vm().mode.value))
        self.assertEqual(before, self.tree(f"jitsu/vm/{uuid}/"))
        self.assertIn("changed: alice.site, site", self.head().message)
        self.kill()
        self.assertEqual("destroy", self.vm().mode.value)  # the file overrules it at a start
        self.assertEqual("", self.ask(below(template_uuid(), {"config/idle/0": "70"})))
        self.make("bob")
        self.assertEqual([70.0, 70.0], [self.vm(f"{label}.site").idle for label in ("alice", "bob")])

    def test_unchanged(self) -> None:
        """A change of a template that its VMs do not inherit, as how many there may be, is none of these."""
        self.make()
        vm = self.vm()
        self.assertEqual("", self.ask(below(template_uuid(), {"config/max/0": "7"})))
        self.assertIs(vm, self.vm())
        self.assertEqual(7, self.fleet.templates["site"].max)
        self.assertNotIn("alice", self.head().message)

    def test_own_value_stays(self) -> None:
        """A value that a request has given to one VM stays when the template changes, until it is removed."""
        uuid = self.make()
        self.make("bob")
        self.assertEqual("", self.ask(below(uuid, {"config/idle/0": "9"})))
        self.assertEqual("", self.ask(below(template_uuid(), {"config/idle/0": "70", "config/min_up/0": "5"})))
        self.assertEqual([(9.0, 5.0), (70.0, 5.0)],
                         [(vm.idle, vm.min_up) for vm in map(self.vm, ("alice.site", "bob.site"))])
        self.kill()
        self.assertEqual(9.0, self.vm().idle)
        self.assertEqual("", self.ask(below(uuid, {"config/idle/0": None})))
        self.assertEqual(50.0, self.vm().idle)

    def test_names_follow(self) -> None:
        """With other wildcards the VMs have other names; their uuids, and so their disks, stay."""
        uuid = self.make()
        self.assertEqual("", self.ask(below(template_uuid(), {
            "dns/*.sites.jitsu.test/ttl": None, "dns/*.new.jitsu.test/ttl": "60"})))  # fmt: skip
        self.assertIn("10.1.0.", self.answer("alice.new"))
        self.assertNotIn("10.1.0.", self.answer("alice.sites"))
        self.assertEqual(uuid, self.fleet.machines["alice.site"].uuid)
        self.clock.advance(1)
        self.kill_with(SITE.replace("sites.", "new."))
        self.assertIn("10.1.0.", self.answer("alice.new"))

    def kill_with(self, text: str | None) -> None:
        """End, and start anew with a file that has these templates."""
        self.end()
        self.file = text
        self.begin()
        self.clock.advance(1)

    def test_bad_for_a_vm(self) -> None:
        """A change of a template that one of its VMs cannot have is refused, and nothing has changed."""
        uuid = self.make()
        self.assertEqual("", self.ask(below(uuid, {"config/max_up/0": "10"})))
        why = self.ask(below(template_uuid(), {"config/min_up/0": "20"}))
        self.assertIn("max_up (10 s) is below min_up (20 s)", why)
        self.assertEqual(0.0, self.vm().min_up)

    def test_template_removed(self) -> None:
        """A template that has VMs is not removed: the remedy is named; without VMs it is."""
        self.make()
        gone = below(template_uuid(), dict.fromkeys(self.tree(f"jitsu/vm/{template_uuid()}/")))
        self.assertIn("has 1 VM; forget them first, with jitsuctl forget --template site --all", self.ask(gone))
        self.successResultOf(self.templates.forget("alice.site"))
        self.assertEqual("", self.ask(gone))
        self.assertEqual({}, self.fleet.templates)
        self.assertEqual("NxDomain", self.answer("bob.sites").split()[0])

    def test_template_added(self) -> None:
        """A template that comes by git makes VMs, also after a restart, and both are there then."""
        values = {"config/name/0": "more", "config/pool/0": "10.3.0.0/24", "config/exists/0": "*",
                  "dns/*.more.jitsu.test/ttl": "60"}  # fmt: skip
        self.assertEqual("", self.ask(below(UNKNOWN, values)))
        self.assertTrue(self.tree(f"jitsu/vm/{template_uuid('more')}/"))
        self.assertTrue(self.successResultOf(self.templates.make("more", "carol", HERE)))
        self.kill()
        self.assertEqual({"site", "more"}, self.fleet.templates.keys())
        self.assertIn("10.3.0.", self.answer("carol.more"))

    def test_bad_template(self) -> None:
        """A template that could not be in the file is refused."""
        values = {"config/name/0": "more", "config/pool/0": "10.3.0.0/24", "config/exists/0": "*"}
        for dns, words in (("more", "is no wildcard"), ("*.sites", "is that of VM site already")):
            self.assertIn(words, self.ask(below(UNKNOWN, {**values, f"dns/{dns}.jitsu.test/ttl": "60"})))
        names = {"dns/*.more.jitsu.test/ttl": "60"}
        self.assertIn("should be a whole path", self.ask(below(UNKNOWN, {**values, **names, "config/disk/0": "base"})))

    def test_member_removed(self) -> None:
        """A VM that is removed by git is stopped, and removed from its hypervisor; its name makes it anew."""
        uuid = self.make()
        self.assertEqual("", self.remove(uuid))
        messages = [one.message for one in pygit2.Repository(str(self.path)).walk(self.head().id)]
        self.assertIn("Forgotten, as the configuration was changed", messages[0])
        self.assertTrue([one for one in messages if one.startswith("Merge ") and "removed: alice.site" in one])
        self.assertNotIn("alice.site", self.fleet.machines)
        self.assertNotIn(uuid, self.backend.guests)
        self.assertNotIn("10.1.0.", self.answer("alice.sites"))
        self.assertEqual(uuid, self.make())

    def remove(self, uuid: str) -> str:
        """Ask for the end of a VM by git; return why that is refused, or ""."""
        return self.ask(below(uuid, dict.fromkeys(self.tree(f"jitsu/vm/{uuid}/"))))

    def test_member_removed_later(self) -> None:
        """Until a VM that is removed by git is gone from its hypervisor, the state has it; then nothing is left."""
        uuid = self.make()
        self.clock.advance(100)
        for is_killed in (True, False):
            broken = self.patch(self.backend, "remove", lambda _: fail(BackendError("no")))
            self.assertEqual("", self.remove(uuid))
            broken.restore()
            self.assertIn("NoData", self.answer("alice.sites"))
            self.assertIn("alice.site", str(self.tree(f"jitsu/vm/{uuid}/")))
            if is_killed:
                self.kill()
                self.assertIn("10.1.0.", self.answer("alice.sites"))
            else:
                self.templates.start()
        self.clock.pump([FORGETS_EVERY, 1])
        self.assertNotIn("alice.site", self.fleet.machines)
        self.assertNotIn(uuid, self.backend.guests)
        self.assertEqual([], [path for path in self.tree("jitsu/") if uuid in path])

    def test_reverted(self) -> None:
        """A commit that made a VM, or forgot one, can be reverted: the VM goes, or is there again at its address."""
        uuid = self.make()
        files = self.tree(f"jitsu/vm/{uuid}/")
        ip = files["ip"]
        self.successResultOf(self.templates.forget("alice.site"))
        self.assertEqual("", self.ask(below(uuid, files)))
        self.assertIn(ip, self.answer("alice.sites"))
        self.assertTrue(self.successResultOf(self.templates.make("site", "alice", HERE)))
        self.assertEqual("", self.ask(below(uuid, dict.fromkeys(self.tree(f"jitsu/vm/{uuid}/")))))
        self.assertNotIn("alice.site", self.fleet.machines)

    def test_member_added(self) -> None:
        """A VM of a template may come by git, under its right name only; its folder's name is found out."""
        ip = {"ip": "10.1.0.77", "config/template/0": "site"}
        self.assertEqual("", self.ask(below(UNKNOWN, {**ip, "config/name/0": "bob.site"})))
        self.assertEqual(uuid_of("bob", self.fleet.templates["site"]), self.fleet.machines["bob.site"].uuid)
        self.assertIn("10.1.0.77", self.answer("bob.sites"))
        patch = self.patch(self.backend, "look_up", lambda _: fail(NoSuchVM("it is made after that")))
        self.assertEqual("", self.ask(below(UNKNOWN, {**ip, "ip": "10.1.0.79", "config/name/0": "eve.site"})))
        patch.restore()
        for name in ("bob", "bob.other", "a.b.site", "-.site"):
            why = self.ask(below(UNKNOWN, {**ip, "ip": "10.1.0.78", "config/name/0": name}))
            self.assertIn("is not that of a VM of the template site, LABEL.site", why)
        why = self.ask(below(UNKNOWN, {**ip, "config/template/0": "sight", "config/name/0": "x.sight"}))
        self.assertIn("there is no template 'sight'", why)

    def test_what_is_fixed(self) -> None:
        """The names, the address and the template of a VM are not its own to change."""
        uuid = self.make()
        for change, words in (
            ({"dns/x.jitsu.test/ttl": "5"}, "its names are made of its own and its template's"),
            ({"dns/alice.sites.jitsu.test/ttl": None}, "its names are made of its own and its template's"),
            ({"config/template/0": "more"}, "there is no template"),
            ({"config/template/0": None}, "stays as it is"),
            ({"config/name/0": "carol.site"}, "stays as it is"),
            ({"ip": "10.1.0.200"}, "its address is of its template's pool, and stays"),
        ):  # fmt: skip
            with self.subTest(change=change):
                self.assertIn(words, self.ask(below(uuid, change)))
        self.assertEqual("", self.ask(below(uuid, {"dns/alice.sites.jitsu.test/ttl": "7"})))
        self.assertEqual(7, self.vm().ttl)

    def test_needs(self) -> None:
        """No VM may need one that a template has made, or a template; what its template needs must stay."""
        self.make()
        for name in ("alice.site", "site"):
            self.assertIn("not always there", self.ask(below(WWW, {"config/needs/0": name})))
        self.assertEqual("", self.ask(below(template_uuid(), {"config/needs/0": "db"})))
        self.assertEqual(("db",), self.vm().needs)
        self.assertIn("there is no VM 'db'", self.ask(below(DB, dict.fromkeys(self.tree(f"jitsu/vm/{DB}/")))))

    def test_layers(self) -> None:
        """The folder of the disks stays where it is while there are VMs, for requests and for the file."""
        base = self.folder / "base"
        base.write_text("x")
        uuid = template_uuid()
        self.assertEqual("", self.ask(below(uuid, {"config/layers/0": "/srv/a", "config/disk/0": str(base)})))
        self.make()
        self.assertIn("the disks of its VMs are in /srv/a", self.ask(below(uuid, {"config/layers/0": "/srv/b"})))
        why = self.failureResultOf(self.read(f"{SITE}    layers: /srv/c\n"), ConfigError)
        self.assertIn("the disks of its VMs are in /srv/a; leave it so, or forget the VMs first", str(why.value))

    def test_guest(self) -> None:
        """The guest of a VM of a template may change by its own branch what its template lets it, and no more."""
        uuid = self.make()
        self.push(self.commit(below(uuid, {"config/idle/0": "77"})), "alice.site/a")
        self.push(self.commit(below(uuid, {"config/mac/0": "52:00:00:00:00:09"})), "alice.site/b")
        with capturedLogs() as logs:
            self.clock.advance(LOOK_EVERY)
        self.assertEqual(77.0, self.vm().idle)
        self.assertTrue([one for one in logs if "may not set mac" in str(formatEvent(one))])

    def leaving(self) -> Deferred[None]:
        """Make alice and bob, and begin to forget alice, which is stopped when the Deferred that is returned fires."""
        self.make()
        self.make("bob")
        stops, stop = Deferred[None](), self.backend.stop
        self.patch(self.backend, "stop", lambda *args: stops.addCallback(lambda _: stop(*args)))
        self.templates.forget("alice.site")
        self.clock.advance(1)
        return stops

    def assert_gone(self) -> None:
        """Check that nothing is left of alice, and that bob has followed the template."""
        self.clock.advance(1)
        self.assertEqual((70.0, 70), (self.vm("bob.site").idle, self.vm("bob.site").ttl))
        self.assertIn("NoData", self.answer("alice.sites"))
        self.assertNotIn("alice.site", self.fleet.machines)
        self.assertNotIn("alice", str(self.tree("jitsu/")))

    def test_member_leaves(self) -> None:
        """A VM that is being forgotten gets no names again when its template is changed, and is gone afterwards."""
        stops = self.leaving()
        self.assertEqual("", self.ask(below(template_uuid(), CHANGES)))
        self.assertIn("NoData", self.answer("alice.sites"))
        stops.callback(None)
        self.assert_gone()

    def test_member_gone(self) -> None:
        """A VM that is gone when the request for its template has been written does not keep it from being applied."""
        stops, accept = self.leaving(), self.store.accept

        async def accepted(*args: Any) -> None:
            await accept(*args)
            stops.callback(None)

        self.patch(self.store, "accept", accepted)
        self.assertEqual("", self.ask(below(template_uuid(), CHANGES)))
        self.assert_gone()

    def test_member_cannot_go(self) -> None:
        """A VM that is forgotten and cannot be removed yet does not come back when its template is changed."""
        self.make()
        self.make("bob")
        self.patch(self.backend, "remove", lambda _: fail(BackendError("no")))
        self.failureResultOf(self.templates.forget("alice.site"), BackendError)
        self.assertEqual("", self.ask(below(template_uuid(), CHANGES)))
        self.assertTrue(self.vm().removed)
        self.assertIn("NoData", self.answer("alice.sites"))

    def test_member_in_conflict(self) -> None:
        """A VM that is not served, because its address is another VM's, keeps nothing from being changed."""
        self.make()
        self.make("bob")
        self.running.take_names(self.fleet.machines["alice.site"])
        self.running.leaving.clear()
        vm = attrs.evolve(self.vm(), dns=(), ip=self.vm("bob.site").ip)
        self.fleet.members.forget(self.fleet.enlist(vm))
        self.assertEqual("", self.ask(below(template_uuid(), CHANGES)))
        self.assertEqual(["changed: bob.site, site"], self.reload(SITE + "    min_up: 3\n"))
        self.assertIs(vm, self.vm())
        self.assertIn("NoData", self.answer("alice.sites"))

    def test_many(self) -> None:
        """The VMs of a template are built before the check, in slices, once each."""
        for number in range(20):
            self.make(f"u{number}")
        built: list[str] = []

        def counted(uuid: str, *args: Any) -> Any:
            built.append(uuid)
            return rebuilt(uuid, *args)

        self.patch(change_requests, "rebuilt", counted)
        self.assertEqual("", self.ask(below(template_uuid(), {"config/idle/0": "70"})))
        self.assertEqual((20, 20), (len(built), len(set(built))))
        self.assertEqual({70.0}, {machine.vm.idle for machine in self.fleet.machines.values() if machine.vm.template})

    def test_many_ttls(self) -> None:
        """A new TTL is given to the VMs of a template one by one, for there may be very many; then secondaries ask."""
        for number in range(20):
            self.make(f"u{number}")
        exchange, sizes = self.running._exchange, list[int]()

        def counted(old: Iterable[VM], new: Iterable[VM]) -> None:
            sizes.append(len([*new]))
            exchange(old, new)

        self.patch(self.running, "_exchange", counted)
        serial = next(iter(self.zones)).serial
        self.assertEqual("", self.ask(below(template_uuid(), {"dns/*.sites.jitsu.test/ttl": "70"})))
        self.assertEqual(1, max(sizes))
        ttls = [record.ttl for zone in self.zones for record in zone.records() if record.name.name.startswith(b"u")]
        self.assertEqual([70] * 20, ttls)
        self.assertEqual(serial + 1, next(iter(self.zones)).serial)


class ReloadTests(TemplateCase):
    """A file that is read again."""

    def test_changed(self) -> None:
        """What the file changes of a template is changed of its VMs; what a request has given them stays."""
        uuid = self.make()
        self.make("bob")
        self.assertEqual("", self.ask(below(uuid, {"config/idle/0": "9"})))
        self.assertEqual(["changed: bob.site, site"], self.reload(SITE.replace("50", "80")))
        self.assertEqual([9.0, 80.0], [self.vm(f"{label}.site").idle for label in ("alice", "bob")])
        self.assertIn("10.1.0.", self.answer("alice.sites"))
        self.assertEqual([], self.reload(SITE.replace("50", "80")))

    def test_names(self) -> None:
        """Other wildcards are other names of its VMs."""
        self.make()
        self.reload(SITE.replace("sites.", "new."))
        self.assertIn("10.1.0.", self.answer("alice.new"))
        self.assertNotIn("10.1.0.", self.answer("alice.sites"))

    def test_removed(self) -> None:
        """A template that has VMs is not taken out of the file: the reading is refused, and all goes on as before."""
        self.make()
        why = self.failureResultOf(self.read(None), ConfigError)
        self.assertIn("site: has 1 VM; forget them first", str(why.value))
        self.assertIn("10.1.0.", self.answer("alice.sites"))
        self.successResultOf(self.templates.forget("alice.site"))
        self.assertEqual(["removed: site"], self.reload(None))
        self.assertEqual({}, self.tree(f"jitsu/vm/{template_uuid()}/"))

    def test_added(self) -> None:
        """A template that the file has anew makes VMs."""
        more = SITE.replace("site", "more").replace("10.1.", "10.3.")
        self.assertEqual(["added: more"], self.reload(SITE + more))
        self.assertTrue(self.successResultOf(self.templates.make("more", "alice", HERE)))
        self.assertIn("10.3.0.", self.answer("alice.mores"))

    def test_top(self) -> None:
        """What the file changes at its top is changed of VMs, too, that inherit it by way of their template."""
        self.make()
        path = self.folder / "jitsu.yaml"
        path.write_text(path.read_text() + "min_up: 3\n")
        self.successResultOf(Deferred.fromCoroutine(self.reloads.apply(*build.load(self.given, FILE))))
        self.assertEqual((3.0, 50.0), (self.vm().min_up, self.vm().idle))

    def test_zone_names_taken(self) -> None:
        """A VM of the file that wants the name of one that was made is refused."""
        self.make()
        self.write(SITE)
        pairs = (*FILE, "dns=alice.sites.jitsu.test,ip=10.0.0.9,name=w")
        done = Deferred.fromCoroutine(self.reloads.apply(*build.load(self.given, pairs)))
        self.assertIn("is that of VM", str(self.failureResultOf(done, ConfigError).value))
        self.assertIs(State.UP, self.fleet.machines["alice.site"].state)


class OrphanTests(TemplateCase):
    """VMs in the state whose template is missing."""

    def setUp(self) -> None:
        """Make two VMs, and begin without their template."""
        super().setUp()
        self.uuids = [self.make(label) for label in ("alice", "bob")]
        self.addresses = [self.tree(f"jitsu/vm/{uuid}/")["ip"] for uuid in self.uuids]
        self.end()
        self.file = None
        with capturedLogs() as logs:
            self.begin()
        self.lines = [str(formatEvent(one)) for one in logs]
        self.clock.advance(1)

    def test_told(self) -> None:
        """They are not served, and stay in the state; that is logged once, and told to operators."""
        told = "it is not in the configuration, so what it has made, 2 VMs, is not served; put it back"
        self.assertEqual(1, len([line for line in self.lines if told in line]), self.lines)
        self.assertIn(told, self.templates.problems()["site"][0])
        running = [name for name, machine in self.fleet.machines.items() if not machine.vm.removed]
        self.assertEqual({"www", "db"}, set(running))
        self.assertEqual("NxDomain", self.answer("alice.sites"))
        self.assertTrue(self.tree(f"jitsu/vm/{self.uuids[0]}/"))

    def test_put_back(self) -> None:
        """When a reading of the file has the template again, they are served as before, and no problem is told."""
        self.assertEqual(["added: site"], self.reload(SITE))
        self.assertEqual(self.addresses, [str(self.vm(f"{label}.site").ip[0]) for label in ("alice", "bob")])
        self.assertIn(self.addresses[0], self.answer("alice.sites"))
        self.assertEqual({}, self.templates.problems())

    def test_put_back_alone(self) -> None:
        """Nothing else changes the configuration while they are served again: their names would be lost, or made."""
        take, locked = self.running.orphans.take, list[bool]()

        def taken(name: str) -> Any:
            locked.append(self.running.lock.locked)
            return take(name)

        self.patch(self.running.orphans, "take", taken)
        self.reload(SITE)
        self.assertEqual([True], locked)

    def test_put_back_by_git(self) -> None:
        """So it is when the template comes by git."""
        values = {"config/name/0": "site", "config/pool/0": "10.1.0.0/24", "config/exists/0": "*",
                  "dns/*.sites.jitsu.test/ttl": "60"}  # fmt: skip
        self.assertEqual("", self.ask(below(UNKNOWN, values)))
        self.assertIn(self.addresses[1], self.answer("bob.sites"))

    def test_addresses_taken(self) -> None:
        """Their addresses are given to no other VM."""
        pool = f"{self.addresses[0]}-{self.addresses[0]}"
        self.reload(SITE.replace("site", "more").replace("10.1.0.0/24", pool))
        self.failureResultOf(self.templates.make("more", "x", HERE))
        self.assertNotIn("x.more", self.fleet.machines)

    def test_restart(self) -> None:
        """A start with the template has them."""
        self.end()
        self.file = SITE
        self.begin()
        self.assertEqual({"www", "db", "alice.site", "bob.site"}, self.fleet.machines.keys())

    def test_conflict(self) -> None:
        """One whose address is another VM's by now is left out, and named."""
        self.assertEqual("", self.ask(below(UNKNOWN, {
            "ip": self.addresses[0], "dns/new.jitsu.test/ttl": "5", "config/name/0": "new"})))  # fmt: skip
        with capturedLogs() as logs:
            self.reload(SITE)
        self.assertIs(State.UP, self.fleet.machines["bob.site"].state)
        self.assertIn("bob.site", [vm.name for vm in self.running.vms])
        self.assertNotIn("alice.site", [vm.name for vm in self.running.vms])
        lines = [str(formatEvent(one)) for one in logs]
        self.assertTrue([line for line in lines if "alice.site: is in the state, but is left out" in line], lines)


class ZoneTests(TemplateCase):
    """What a repository and the zones have."""

    def test_commits(self) -> None:
        """A VM is one commit when it is made, and one when it is forgotten, that says why."""
        self.make()
        log = [commit.message for commit in pygit2.Repository(str(self.path)).walk(self.head().id)]
        self.assertTrue(any(message.startswith("Made by template site\n\nadded: alice.site") for message in log))
        self.successResultOf(self.templates.forget("alice.site"))
        self.assertEqual("Forgotten, by hand\n\nremoved: alice.site\n", self.head().message)

    def test_transfer(self) -> None:
        """A transfer of the zone has the names that exist."""
        self.make()
        zone = self.zones.find(from_text("jitsu.test"))
        assert zone is not None
        owners = {record.owner for record in zone.records()}
        self.assertIn(from_text("alice.sites.jitsu.test"), owners)
        self.assertNotIn(from_text("bob.sites.jitsu.test"), owners)
