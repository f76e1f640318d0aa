"""A reload: what a new reading of the configuration file changes, beside what requests have changed since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.config import build
from jitsu_tw.config.schema import INHERITED, KEYS
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ConfigError
from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.store.layout import origin_path
from jitsu_tw.sync.reload import Reloads
from test.unit.sync.test_requests import DB, FILE, NEW, VM, WWW, ZONE, RequestsTestCase, below

if TYPE_CHECKING:
    from jitsu_tw.settings import Settings
    from jitsu_tw.sync.reconfigure import Outcome

THIRD: Final = f"dns=third.jitsu.test,ip=10.0.0.7,name=third,uuid={NEW}"


class ReloadTests(RequestsTestCase):
    """A Jitsu whose file is read again."""

    def setUp(self) -> None:
        """Begin with two VMs."""
        super().setUp()
        self.replaced: list[Settings] = []
        self.reloads = self.make_reloads()

    def make_reloads(self) -> Reloads:
        """Return what reloads, as a new process has it."""
        return Reloads(self.running, self.fleet, lambda settings, _: self.replaced.append(settings), self.clock)

    def read(self, *pairs: str, **options: Any) -> Deferred[Outcome]:
        """Read a file that says *pairs* and *options*."""
        given = {"zones": [str(self.folder / "jitsu.zone")], "backend": "memory", "persistdb": str(self.path),
                 "delay": "0", **options}  # fmt: skip
        done = Deferred.fromCoroutine(self.reloads.apply(*build.load(given, pairs)))
        self.clock.advance(0)
        return done

    def reload(self, *pairs: str, **options: Any) -> list[str]:
        """Read a file that says *pairs* and *options*; return what has changed, in words."""
        return self.successResultOf(self.read(*pairs, **options)).lines

    def refused(self, *pairs: str, **options: Any) -> str:
        """Read a file that is refused; return why."""
        return str(self.failureResultOf(self.read(*pairs, **options), ConfigError).value)

    def test_all_at_once(self) -> None:
        """VMs come, change and go as the file says; the zones and the state follow, the serial rises once."""
        www = FILE[0].replace("10.0.0.1", "10.0.0.9")
        self.assertEqual(["added: third", "changed: www", "removed: db"], self.reload(www, THIRD))
        self.assertEqual({"www", "third"}, self.fleet.machines.keys())
        self.assertIn("10.0.0.9", self.answer())
        self.assertIn("10.0.0.7", self.answer("third"))
        self.assertNotIn("10.0.0.2", self.answer("db"))
        self.assertEqual([8], [zone.serial for zone in self.zones])
        self.assertEqual("10.0.0.9", self.tree(f"jitsu/vm/{WWW}/")["ip"])
        self.assertEqual("10.0.0.7", self.tree(f"jitsu/vm/{NEW}/")["ip"])
        self.assertEqual({}, self.tree(f"jitsu/vm/{DB}/"))
        self.summon("third")
        self.assertIs(State.UP, self.fleet.machines["third"].state)

    def test_nothing(self) -> None:
        """A file that says the same changes nothing, and makes no commit; the serial stays what it is."""
        self.ask(below(WWW, {"dns/www.jitsu.test/ttl": "5"}))
        head = self.head().id
        self.assertEqual([], self.reload(*FILE))
        self.assertEqual((head, 5, [8]), (self.head().id, self.ttl(), [zone.serial for zone in self.zones]))

    def test_kept(self) -> None:
        """What requests have changed, added and removed since the start stays so where the file says nothing new."""
        self.assertEqual("", self.ask(below(WWW, {"dns/www.jitsu.test/ttl": "5", "config/min_up/0": "3"})))
        self.assertEqual("", self.ask(below(NEW, VM)))
        self.assertEqual("", self.ask(below(DB, dict.fromkeys(self.tree(f"jitsu/vm/{DB}/")))))
        self.clock.advance(1)
        www = FILE[0].replace("idle=100", "idle=200")
        self.assertEqual(["changed: www"], self.reload(www, FILE[1]))
        vm = self.fleet.machines["www"].vm
        self.assertEqual((5, 200.0, 3.0, {"www", "new"}), (vm.ttl, vm.idle, vm.min_up, self.fleet.machines.keys()))
        self.assertIn("10.0.0.3", self.answer("new"))
        self.assertNotIn("10.0.0.2", self.answer("db"))
        state = self.tree(f"jitsu/vm/{WWW}/")
        self.assertEqual(("5", "200", "3"), (state["dns/www.jitsu.test/ttl"], *(
            state[f"config/{key}/0"] for key in ("idle", "min_up"))))  # fmt: skip
        self.assertIn("over the file", self.tree(origin_path(WWW))[""])
        self.assertEqual([], self.reload(www, FILE[1]))

    def test_conflict(self) -> None:
        """Of one value that both have changed, the file's holds, and that is told; what else a request said stays."""
        self.ask(below(WWW, {"config/idle/0": "300", "config/min_up/0": "3"}))
        self.assertEqual(
            ["changed: www", "www: config/idle/0 is '200' as the file says, no longer '300' as a request said"],
            self.reload(FILE[0].replace("idle=100", "idle=200"), FILE[1]),
        )
        vm = self.fleet.machines["www"].vm
        self.assertEqual((200.0, 3.0), (vm.idle, vm.min_up))

    def test_overruled(self) -> None:
        """A VM that is as the file says again is from no request any more."""
        self.ask(below(WWW, {"config/idle/0": "300"}))
        self.reload(FILE[0].replace("idle=100", "idle=200"), FILE[1])
        self.assertEqual({}, self.tree(origin_path(WWW)))
        self.assertIsNone(self.fleet.store.config.origin(self.fleet.machines["www"].uuid))
        self.assertEqual("200", self.tree(f"jitsu/vm/{WWW}/")["config/idle/0"])

    def test_whole_conflicts(self) -> None:
        """The file holds, too, where a request had added, changed or removed a VM that it adds, removes or changes."""
        self.ask(below(NEW, VM))
        self.ask(below(WWW, {"config/idle/0": "300"}))
        self.ask(below(DB, dict.fromkeys(self.tree(f"jitsu/vm/{DB}/"))))
        self.clock.advance(1)
        lines = self.reload(f"dns=new.jitsu.test,ip=10.0.0.8,name=new,uuid={NEW}", FILE[1].replace("save", "pause"))
        self.assertEqual([
            "added: db", "changed: new", "removed: www",
            "www: is removed as the file says, though a request had changed it",
            "db: is there again as the file says, though a request had removed it",
            "new: dns/new.jitsu.test/ttl is '60' as the file says, no longer '5' as a request said",
            "new: ip is '10.0.0.8' as the file says, no longer '10.0.0.3' as a request said",
        ], lines)  # fmt: skip
        self.assertEqual({"new", "db"}, self.fleet.machines.keys())
        self.assertEqual({}, self.tree(f"jitsu/vm/{WWW}/") | self.tree("jitsu/origin/"))
        self.assertEqual("pause", self.tree(f"jitsu/vm/{DB}/")["stop_mode"])

    def test_undone_after_restart(self) -> None:
        """A new process agrees with what a reload has written, and writes nothing."""
        pairs = (FILE[0].replace("idle=100", "idle=1h"), THIRD)
        self.reload(*pairs)
        self.end()
        head = self.head().id
        self.begin(pairs)
        self.assertEqual((head, {"www", "third"}), (self.head().id, self.fleet.machines.keys()))

    def test_crash(self) -> None:
        """If the process ends before a reload is in the state, the next one writes what the file says."""
        self.ask(below(WWW, {"config/idle/0": "300"}))
        self.patch(self.fleet.store, "save_configuration", lambda: succeed(None))
        self.patch(self.fleet.store, "forget_others", lambda: None)
        pairs = (FILE[0].replace("10.0.0.1", "10.0.0.9"), THIRD)
        self.reload(*pairs)
        self.assertEqual("10.0.0.1", self.tree(f"jitsu/vm/{WWW}/")["ip"])
        self.end()
        self.begin(pairs)
        self.clock.advance(1)
        state = self.tree(f"jitsu/vm/{WWW}/")
        self.assertEqual(("10.0.0.9", "100", {"www", "third"}),
                         (state["ip"], state["config/idle/0"], self.fleet.machines.keys()))  # fmt: skip
        self.assertEqual(({}, {}), (self.tree(f"jitsu/vm/{DB}/"), self.tree(origin_path(WWW))))

    def test_refused(self) -> None:
        """A file that cannot be beside what requests have made is refused, and nothing has changed."""
        self.assertEqual("", self.ask(below(NEW, VM)))
        head, before = self.head().id, self.running.vms
        for pairs, why in (
            ((FILE[0], "dns=o.jitsu.test,ip=10.0.0.3,name=o"), "10.0.0.3 is that of VM o already"),
            ((FILE[0], "dns=new.jitsu.test,ip=10.0.0.8,name=o"), "new.jitsu.test is that of VM o already"),
        ):
            self.assertIn(why, self.refused(*pairs))
        self.assertEqual((head, before), (self.head().id, self.running.vms))
        self.assertIn("10.0.0.2", self.answer("db"))
        self.assertEqual([], self.replaced)
        self.assertEqual([], self.reload(*FILE))

    def test_needs(self) -> None:
        """A VM that a request has made to need another one keeps the file from removing that."""
        self.assertEqual("", self.ask(below(WWW, {"config/needs/0": "db"})))
        self.assertIn("www: needs: there is no VM 'db'", self.refused(FILE[0]))
        self.assertEqual({"www", "db"}, self.fleet.machines.keys())

    def test_no_zone(self) -> None:
        """A VM that a request has brought keeps the zone that its name is in."""
        self.assertEqual("", self.ask(below(NEW, VM)))
        (self.folder / "jitsu.zone").write_text(ZONE.replace("jitsu.test", "jitsu.example"))
        pairs = [one.replace("jitsu.test", "jitsu.example") for one in FILE]
        self.assertIn("new.jitsu.test is in none of the zones", self.refused(*pairs))

    def test_in_use(self) -> None:
        """A VM that is removed while it is up is stopped, by its mode, as a request that removes it does."""
        self.summon("db")
        self.assertIs(Power.RUNNING, self.backend.guests[DB].power)
        self.assertEqual(["removed: db"], self.reload(FILE[0]))
        self.clock.advance(1)
        self.assertEqual((Power.SAVED, {"www"}), (self.backend.guests[DB].power, self.fleet.machines.keys()))

    def test_leaving(self) -> None:
        """A VM that is still being stopped cannot be added; nothing has changed then."""
        self.running.leaving.add("third")
        self.assertIn("still being stopped, reload again when it is gone: third", self.refused(*FILE, THIRD))
        self.assertNotIn("third", self.fleet.machines)

    def test_renamed(self) -> None:
        """A VM that has another name at its hypervisor is another VM, with the same address and uuid."""
        pairs = (FILE[0].replace("name=www", "name=web"), FILE[1])
        self.assertEqual(["added: web", "removed: www"], self.reload(*pairs))
        machine = self.fleet.machines["web"]
        self.assertEqual((WWW, machine), (machine.uuid, self.fleet.inventory.machine(WWW)))
        self.assertEqual("web", self.tree(f"jitsu/vm/{WWW}/")["config/name/0"])

    def test_restart(self) -> None:
        """What needs a restart is named, each time, and stays as it is; the rest is applied."""
        www = FILE[0] + ",connect=memory:///other"
        for _ in range(2):
            lines = self.reload(www, FILE[1].replace("save", "pause"), listen="5300", bind="127.0.0.9")
            self.assertEqual("needs a restart: bind, listen, www (connect)", lines[-1])
        vms = {name: machine.vm for name, machine in self.fleet.machines.items()}
        self.assertEqual(("", "pause"), (vms["www"].connect, vms["db"].mode.value))
        self.assertEqual(53, self.running.settings.listen)
        self.assertIn("10.0.0.1", self.answer())
        self.assertEqual([], self.reload(FILE[0], FILE[1].replace("save", "pause")))

    def test_uuid(self) -> None:
        """A uuid that a VM does not have at its hypervisor needs a restart."""
        self.assertEqual(["needs a restart: www (uuid)"], self.reload(FILE[0].replace(WWW, NEW), FILE[1]))
        self.assertEqual(WWW, self.fleet.machines["www"].uuid)

    def test_inherited(self) -> None:
        """What all VMs inherit changes for those of the file and for those of requests that do not say otherwise."""
        self.assertEqual("", self.ask(below(NEW, VM)))
        self.assertEqual("", self.ask(below(WWW, {"config/min_up/0": "3"})))
        self.assertEqual(["changed: db, new", "keys: min_up"], self.reload(*FILE, min_up="1m"))
        vms = {name: machine.vm.min_up for name, machine in self.fleet.machines.items()}
        self.assertEqual({"www": 3.0, "db": 60.0, "new": 60.0}, vms)
        self.assertEqual("", self.ask(below(NEW, {"config/idle/0": "9"})))
        self.assertEqual(60.0, self.fleet.machines["new"].vm.min_up)

    def test_inherited_by_none(self) -> None:
        """A VM that a request has removed stays so where only what it would inherit changes."""
        self.assertEqual("", self.ask(below(DB, dict.fromkeys(self.tree(f"jitsu/vm/{DB}/")))))
        self.clock.advance(1)
        self.assertEqual(["changed: www", "keys: min_up"], self.reload(*FILE, min_up="1m"))
        self.assertNotIn("db", self.fleet.machines)
        self.assertEqual([], self.reload(*FILE, min_up="1m"))

    def test_inherited_ttl(self) -> None:
        """A TTL or a mode that a request has set stays where only the top changes; the other VMs follow."""
        self.assertEqual("", self.ask(below(WWW, {"dns/www.jitsu.test/ttl": "5", "stop_mode": "shutdown"})))
        self.assertEqual(["changed: db", "keys: mode, ttl"],
                         self.reload(*FILE, ttl="7", mode="pause"))  # fmt: skip
        vms = {name: (machine.vm.ttl, machine.vm.mode.value) for name, machine in self.fleet.machines.items()}
        self.assertEqual({"www": (5, "shutdown"), "db": (7, "save")}, vms)
        self.assertIn("over the file", self.tree(origin_path(WWW))[""])

    def test_limits(self) -> None:
        """The limits of the fleet are the new ones at once."""
        self.assertEqual(["keys: max_running, summon_from"],
                         self.reload(*FILE, max_running="1", summon_from="192.0.2.0/24"))  # fmt: skip
        self.summon()
        self.assertEqual([1], [one.max_running for one in self.replaced])
        self.assertEqual(1, self.fleet.admission._max_running)

    def test_token_of_open_endpoints(self) -> None:
        """The token stays until the restart if the endpoints do: one that is open may need it."""
        token = self.folder / "token"
        token.write_text("0123456789abcdef")
        token.chmod(0o600)
        lines = self.reload(*FILE, control="off", control_token=str(token))
        self.assertEqual((["needs a restart: control, control_token"], None),
                         (lines, self.running.settings.control_token))  # fmt: skip
        self.assertEqual(["keys: control_token"], self.reload(*FILE, control_token=str(token)))

    def test_again_while_the_last_ends(self) -> None:
        """A VM that a reload removes is no more from its names on; the next one may remove what this one would find."""
        seen = []
        self.reloads = Reloads(
            self.running, self.fleet, lambda *_: seen.append({vm.name for vm in self.running.vms}), self.clock
        )
        outcome = self.successResultOf(self.read(FILE[1].replace("save", "pause"), THIRD))
        self.assertEqual([{"db", "third"}], seen)
        self.reload(THIRD)
        self.successResultOf(Deferred.fromCoroutine(self.running.finish(self.clock, attrs.evolve(
            outcome, change=attrs.evolve(outcome.change, removed=("third",))))))  # fmt: skip
        self.assertEqual((set(), set()), (self.fleet.machines.keys(), self.running.leaving))

    def test_ended(self) -> None:
        """Nothing is changed any more while Jitsu ends."""
        self.fleet.context.is_running = False
        self.assertIn("about to end", self.refused(*FILE, THIRD))
        self.assertNotIn("third", self.fleet.machines)
        self.fleet.context.is_running = True


class KeyTests(SynchronousTestCase):
    """Which keys a reload applies."""

    def test_live(self) -> None:
        """Each key of the top is in VMs, is live, or needs a restart; those that are opened at the start do."""
        live = {name for name, key in KEYS.items() if key.live}
        self.assertEqual(set(), live & INHERITED.keys())
        self.assertEqual(set(), live & {"bind", "listen", "control", "guests", "persistdb", "remote", "synjitsu"})
        self.assertIn("zones", live)

    def test_serial(self) -> None:
        """A zone that is read again never has an earlier serial; one whose VMs have changed has a later one."""
        for before, now, changed, serial in (
            (7, 7, False, 7), (8, 7, False, 8), (8, 7, True, 9), (7, 9, True, 9), (2**32 - 1, 1, True, 1),
            (2**32 - 1, 2**32 - 1, True, 0),
        ):  # fmt: skip
            old, new = (Zone.made_up(from_text("a.test"), 60) for _ in range(2))
            old._set_serial(before)
            new._set_serial(now)
            new.raise_to(old.serial + changed)
            self.assertEqual(serial, new.serial)
