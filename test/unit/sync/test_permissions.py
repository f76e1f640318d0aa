"""A VM's own branch, ``request/VM/…``: what it may change, and what not. A real repository, on a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import pygit2
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.config.schema import BACKEND_KEYS, INHERITED, VM_KEYS
from jitsu_tw.errors import ConfigError
from jitsu_tw.store.branches import REQUEST
from jitsu_tw.store.requests import Change
from jitsu_tw.sync import change_requests as branches
from jitsu_tw.sync import permissions
from jitsu_tw.sync.change_requests import LOOK_EVERY
from jitsu_tw.sync.permissions import REQUESTS_PER_MINUTE, Budgets
from test.unit.sync.test_requests import DB, FILE, NEW, VM, WWW, RequestsTestCase, below

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What the operator lets the VM www take.
OWN: Final = "own_ip=10.0.0.0/28,own_ip=127.0.0.0/8,own_dns=*.ann.jitsu.test,own_dns=w.jitsu.test,own_dns=ns.jitsu.test"

#: What a VM's own branch may say, and what Jitsu makes of it then.
GOOD: Final = (
    ({"ip": "10.0.0.9"}, "ip"),
    ({"ip": "10.0.0.1 10.0.0.9"}, "ip"),
    ({"dns/w.jitsu.test/ttl": "60"}, "dns"),
    ({"dns/a.b.ann.jitsu.test/ttl": "60"}, "dns"),
    ({"dns/www.jitsu.test/ttl": "5"}, "ttl"),
    ({"config/idle/0": "9"}, "idle"),
    ({"config/idle": None}, "idle"),
    ({"config/idle_packets/0": "0"}, "idle_packets"),
    ({"config/evidence/0": "queries"}, "evidence"),
    ({"response_delay": "3"}, "response_delay"),
    ({"config/wait_for_port/0": "80"}, "wait_for_port"),
    ({"config/wait_for_http/0": "/ready"}, "wait_for_http"),
    ({"wait_for_key": "data/ready"}, "wait_for_key"),
)

#: What it may not, and words of the reason.
BAD: Final[tuple[tuple[dict[str, str | None], str], ...]] = (
    (below(DB, {"ip": "10.0.0.8"}), "may change the VM www only"),
    ({**below(DB, {"ip": "10.0.0.8"}), **below(WWW, {"ip": "10.0.0.7"})}, "may change the VM www only"),
    (below(NEW, VM), "may change the VM www only"),
    ({f"jitsu/vm/{WWW}": None}, "neither add nor remove"),
    *(
        (below(WWW, {f"config/{key}/0": value}), f"own branch may not set {key}; ")
        for key, value in {
            "name": "db", "connect": "x", "backend": "xapi", "uuid": NEW, "define": "/etc/shadow", "images": "/etc",
            "needs": "db", "disk": "/dev/sda@xvda", "script": "/home/ann/mine", "kernel": "/x", "mac": "52:54:00:0:0:1",
            "keep_up": "mon", "max_up": "0", "min_up": "9", "boot_from": "snapshot", "wake_udp": "53", "host": "any",
            "handover": "xenstore", "wake_by_packet": "true", "own_ip": "0.0.0.0/0", "own_dns": "*.jitsu.test",
            "commands": "start=x", "words": "x=off", "variables": "x=y", "poll": "1", "deadlines": "start=1",
            "check_every": "0.001", "stop_timeout": "9", "save_fallback": "pause", "faults": "hang", "boot_time": "9",
        }.items()
    ),
    (below(WWW, {"stop_mode": "pause"}), "own branch may not set mode; ask the operator"),
    (below(WWW, {"stop_mode": None}), "own branch may not set mode; ask the operator"),
    (below(WWW, {"use_synjitsu": "true"}), "own branch may not set use_synjitsu; ask the operator"),
    (below(WWW, {"config/max_up": None}), "own branch may not set max_up; ask the operator"),
    (below(WWW, {"config/own_ip/1": None}), "own branch may not set own_ip; ask the operator"),
    (below(WWW, {"config/mode/0": "pause"}), "write it to stop_mode"),
    (below(WWW, {"config/idel/0": "5"}), "own branch may not set idel; ask the operator"),
    (below(WWW, {"ip": "10.0.0.16"}),
     "this VM's own branch may not take 10.0.0.16, only 10.0.0.1, 10.0.0.0/28, 127.0.0.0/8; the operator allows more"),
    (below(WWW, {"ip": "10.0.0.2"}), "is that of VM db already"),
    (below(WWW, {"ip": "::ffff:10.0.0.2"}), "an IPv4 address in IPv6's form"),
    (below(WWW, {"ip": "127.0.0.1"}), "is a loopback address"),
    (below(WWW, {"ip": "224.0.0.1"}), "is a multicast address"),
    (below(WWW, {"ip": None}), "ip: is missing"),
    (below(WWW, {"ip": " ".join(f"10.0.0.{number}" for number in range(3, 13))}), "set 8 values of it at most"),
    (below(WWW, {"dns/v.jitsu.test/ttl": "60"}), "not take v.jitsu.test, only www.jitsu.test, *.ann.jitsu.test, w.j"),
    (below(WWW, {"dns/ann.jitsu.test/ttl": "60"}), "own branch may not take ann.jitsu.test, "),
    (below(WWW, {"dns/xann.jitsu.test/ttl": "60"}), "own branch may not take xann.jitsu.test, "),
    (below(WWW, {"dns/ns.jitsu.test/ttl": "60"}),
     "a VM's own branch may not take ns.jitsu.test, a name that the zone itself has"),
    (below(WWW, {"dns/*.jitsu.test/ttl": "60"}), "own branch may not take *.jitsu.test, "),
    (below(WWW, {"dns/*.ann.jitsu.test/ttl": "60"}), "own branch may not take *.ann.jitsu.test, "),
    (below(WWW, {"dns/db.jitsu.test/ttl": "60"}), "own branch may not take db.jitsu.test, "),
    (below(WWW, {"dns": None}), "dns: is missing"),
    (below(WWW, {f"dns/n{number}.ann.jitsu.test/ttl": "60" for number in range(16)}), "set 16 values of it at most"),
    (below(WWW, {"config/idle/0": "86401"}),
     "idle: a VM's own branch may not set it to 86401; write a number from 1 to 86400"),
    (below(WWW, {"config/idle/0": "0"}), "from 1 to 86400"),
    (below(WWW, {"dns/www.jitsu.test/ttl": "0"}), "ttl: a VM's own branch may not set it to 0; "),
    (below(WWW, {"dns/www.jitsu.test/ttl": "86401"}), "ttl: a VM's own branch may not set it to 86401; "),
    (below(WWW, {"config/idle": None, "dns/www.jitsu.test/ttl": "50000"}),
     "idle: a VM's own branch may not set it to 100000; "),
    (below(WWW, {"response_delay": "61"}), "from 0 to 60"),
)  # fmt: skip


class GuestTests(RequestsTestCase):
    """What a request does on the branch of a VM."""

    def begin(self, pairs: Iterable[str] = (f"{FILE[0]},max_up=3600,{OWN}", FILE[1])) -> None:
        """Start; www may take more than it has."""
        super().begin(pairs)

    def test_good(self) -> None:
        """It may change its addresses, names, TTL, how long it is kept, and when it is ready; and back."""
        for values, key in GOOD:
            with self.subTest(values=values):
                before = self.fleet.machines["www"].vm
                base, head = self.tree("jitsu/vm/"), self.head().id
                self.assertEqual("", self.ask(below(WWW, values), "www/x"))
                self.assertNotEqual(before.value(key), self.fleet.machines["www"].vm.value(key))
                back = {f"jitsu/vm/{path}": base.get(path) for path in self.tree("jitsu/vm/").keys() | base.keys()}
                self.assertEqual("", self.ask(back), f"back to {head}")
                self.clock.advance(60)

    def test_bad(self) -> None:
        """What reaches beyond the VM, what the operator has not allowed, and what is out of bounds is refused."""
        for changes, reason in BAD:
            with self.subTest(changes=changes):
                before = self.tree("jitsu/vm/")
                self.assertIn(reason, self.ask(changes, "www/x") or "it was not rejected")
                self.assertEqual(before, self.tree("jitsu/vm/"))
                self.clock.advance(60)

    def test_host(self) -> None:
        """An address of Jitsu's own host is not for guests, even where the operator allows its network."""
        self.patch(branches, "is_here", lambda host: host == "10.0.0.9")
        self.assertIn("10.0.0.9 is an address of Jitsu's own host", self.ask(below(WWW, {"ip": "10.0.0.9"}), "www/x"))
        self.assertEqual("", self.ask(below(WWW, {"ip": "10.0.0.8"}), "www/x"))

    def test_as_it_was(self) -> None:
        """Unless the operator allows more, a guest keeps to the names and addresses that it has, however many."""
        self.end()
        names = ",".join(f"dns=n{number}.jitsu.test" for number in range(20))
        self.begin((f"{FILE[0]},{names}", FILE[1]))
        self.assertIn("may not take 10.0.0.9, only 10.0.0.1; ", self.ask(below(WWW, {"ip": "10.0.0.9"}), "www/x"))
        other = below(WWW, {"dns/w.jitsu.test/ttl": "60", "dns/n3.jitsu.test": None})
        self.assertIn("may not take w.jitsu.test, only ", self.ask(other, "www/x"))
        self.assertEqual("", self.ask(below(WWW, {"dns/n3.jitsu.test": None}), "www/x"))
        self.assertEqual(20, len(self.fleet.machines["www"].vm.dns))

    def test_nobody(self) -> None:
        """A branch with a slash is a VM's own; without such a VM, it can change nothing."""
        self.assertIn("may change the VM ann only", self.ask(below(WWW, {"ip": "10.0.0.9"}), "ann/x"))

    def test_share(self) -> None:
        """A VM's branches are taken a few times a minute; further ones wait, and nobody else does."""
        base = self.head().id
        for number in range(REQUESTS_PER_MINUTE + 2):
            self.push(self.commit(below(WWW, {"config/idle/0": f"{number + 10}"}), base), f"www/{number}")
        self.push(self.commit(below(DB, {"config/idle/0": "9"}), base), "zoe")
        self.clock.advance(LOOK_EVERY)
        self.assertEqual(2, len(self.store.requests.waiting()))
        self.assertEqual(9.0, self.fleet.machines["db"].vm.idle)
        self.assertNotIn(f"{REQUEST}zoe", pygit2.Repository(str(self.path)).references)
        self.clock.pump([LOOK_EVERY] * round(60 / REQUESTS_PER_MINUTE / LOOK_EVERY + 1))
        self.assertEqual(1, len(self.store.requests.waiting()))


class SharesTests(SynchronousTestCase):
    """`Budgets`, on a clock of its own."""

    def test_evenly(self) -> None:
        """A share is refilled evenly; what is refused is not counted; another VM's share is another one."""
        budgets = Budgets()
        self.assertEqual([True] * REQUESTS_PER_MINUTE + [False] * 5,
                         [budgets.take("www", 100.0) for _ in range(REQUESTS_PER_MINUTE + 5)])
        self.assertTrue(budgets.take("db", 100.0))
        every = 60 / REQUESTS_PER_MINUTE
        self.assertEqual([False, True, False, True],
                         [budgets.take("www", 100 + when) for when in (every / 2, every, 1.5 * every, 2 * every)])

    def test_bounded(self) -> None:
        """Budgets that are full again are forgotten."""
        budgets = Budgets()
        for number in range(permissions._MOST_BUDGETS + 1):
            budgets.take(f"vm{number}", 0.0)
        budgets.take("www", 100.0)
        self.assertEqual(["www"], list(budgets._full_at))


class OperatorsTests(RequestsTestCase):
    """A request names no program that Jitsu runs, whatever rights its sender has."""

    def test_new(self) -> None:
        """A request may name a preset, and variables that reach no further than it; it may give no command or word."""
        preset = {**VM, "config/backend/0": "proxmox", "config/variables/0": "vmid=7"}
        for more, reason in (
            ({"config/commands/0": "start=x"}, "a request may not set commands, which says what Jitsu runs; write it"),
            ({"config/words/0": "x=off"}, "a request may not set words, which says what Jitsu runs"),
            ({"config/variables/1": "kind=rm"}, "kind should be one of qm, pct"),
            ({"config/variables/0": "vmid=-7"}, "begins with a dash"),
            ({"config/variables/0": "vmid=7/../../../../access/users?userid=evil@pve&x="},
             "vmid should be its number, of the form [0-9]{1,9}; "),
            ({"config/variables/0": "vmid=7 7;x"}, "vmid should be its number"),
            ({"config/variables/1": "x=y"}, "a request may not set the variable x of the backend proxmox"),
            ({"config/backend/0": "systemd", "config/variables/0": "unit=ssh.service"}, "not set the variable unit"),
            ({"config/backend/0": "proxmox-api", "config/variables/1": "token_file=/etc/shadow"}, "token_file"),
            ({"config/backend/0": "wol", "config/variables/0": "ssh=root@nowhere"}, "may not set the variable ssh"),
            ({"config/backend/0": "exec", "config/commands/0": "run=id"}, "may not set commands"),
        ):
            self.assertIn(reason, self.ask(below(NEW, {**preset, **more})))
        self.assertEqual("", self.ask(below(NEW, preset)))
        self.assertEqual("proxmox", self.fleet.machines["new"].vm.backend)

    def test_backend_of_all(self) -> None:
        """A VM may have its backend from the top of the file; a request may set the same of its variables then."""
        self.running._settings = attrs.evolve(self.running._settings, backend="proxmox", connect="")
        files = {**VM, "config/variables/0": "vmid=7"}
        self.assertEqual("", self.ask(below(NEW, files)))
        self.assertEqual("", self.ask(below(NEW, {"config/variables/0": "vmid=8"})))
        self.assertEqual((("vmid", "8"),), self.fleet.machines["new"].vm.backend_settings.variables)

    def test_change(self) -> None:
        """What the file gives, stays with a request that changes something else, and no request changes it."""
        was = {**VM, "config/backend/0": "command", "config/commands/0": "start=x", "config/commands/1": "state=x"}
        permissions.check_operators_keys(Change(was, {**was, "config/idle/0": "9"}), "command")
        permissions.check_operators_keys(Change(was, {}), "command")
        for more in ({"config/commands/0": "start=y"}, {"config/commands/2": "stop=y"}, {"config/words/0": "x=off"}):
            with self.assertRaisesRegex(ConfigError, "a request may not set (commands|words)"):
                permissions.check_operators_keys(Change(was, {**was, **more}), "command")
        with self.assertRaisesRegex(ConfigError, "a request may not set commands"):
            permissions.check_operators_keys(Change(was, {**VM, "config/backend/0": "command"}), "command")


class KeysTests(SynchronousTestCase):
    """Which keys are for guests."""

    def test_listed(self) -> None:
        """A key is for guests only if its row says so; those that reach beyond the VM never are."""
        allowed = {key for key, row in VM_KEYS.items() if row.own is not None}
        inherited = {"ttl", "idle", "idle_packets", "idle_cpu", "idle_connection", "evidence"}
        self.assertEqual(inherited | {"ip", "dns", "response_delay", "wait_for_port", "wait_for_http", "wait_for_key",
                                      "ports"}, allowed)
        self.assertFalse(allowed & BACKEND_KEYS["libxl"].keys())
        self.assertFalse({key for key in allowed if VM_KEYS[key].path})
        self.assertEqual(inherited, allowed & INHERITED.keys())
