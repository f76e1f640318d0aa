"""VMs of templates: how they are made, what is left when a step fails, and how they are forgotten."""

from __future__ import annotations

import gc
import shutil
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from jitsu_tw.backends.definition import mac_of
from jitsu_tw.backends.memory import Fault, MemorySettings
from jitsu_tw.config.vms import uuid_of
from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import (
    BackendError,
    BackendLost,
    BootFailed,
    ClusterUnavailable,
    ConfigError,
    ExistenceUnknown,
    NoCapacity,
    Prohibited,
    StoreError,
    Unproven,
)
from jitsu_tw.ijitsu import ITemplateControl, ITemplates, Power, TemplateCounts
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.store.layout import made_at, origin_path
from jitsu_tw.sync import forgetting, templates
from jitsu_tw.sync.forgetting import FORGETS_EVERY
from jitsu_tw.sync.reconfigure import ConfigChange
from jitsu_tw.sync.templates import RESTS
from jitsu_tw.vm import persistence
from test.support import EPOCH
from test.support.templates import SITE, Cloud

if TYPE_CHECKING:
    from jitsu_tw.dns.wire import Answer
    from jitsu_tw.settings import VM

DAY: Final = 86400.0


class TemplatesTestCase(SynchronousTestCase):
    """A Jitsu with one template."""

    def cloud(self, template: dict[str, str] | None = None, **more: str) -> Cloud:
        """Begin with the usual template, changed by *template*."""
        cloud = Cloud(template, **more)
        self.addCleanup(shutil.rmtree, cloud.folder)
        return cloud

    def assert_nothing(self, cloud: Cloud, name: str = "alice.site") -> None:
        """Check that nothing is left of the VM *name*: no VM, client, definition, name, address, or file."""
        self.assertNotIn(name, cloud.fleet.machines)
        self.assertNotIn(name, cloud.fleet.admission._clients)
        self.assertEqual([], [guest for guest in cloud.backend.guests.values() if guest.vm.name == name])
        self.assertEqual([], cloud.stored(name))
        self.assertNotIn(name, cloud.fleet.members.addresses.values())
        label = b"\5" + name.partition(".")[0].encode()
        has = [record for zone in cloud.zones for record in zone.records() if record.type != 5]
        self.assertEqual([], [record for record in has if label in record.owner + record.rdata])

    def refused(self, answer: Deferred[Answer], kind: type[Exception], words: str) -> None:
        """Check that *answer* is an error of a *kind* with these *words*."""
        error = self.failureResultOf(answer, kind).value
        self.assertIn(words, str(error))


class MakingTests(TemplatesTestCase):
    """A VM is made."""

    def test_interfaces(self) -> None:
        """It does what resolvers and operators ask for."""
        made = self.cloud().templates
        self.assertTrue(verifyObject(ITemplates, made) and verifyObject(ITemplateControl, made))

    def test_made(self) -> None:
        """The first question makes a VM, starts it and is answered with its address; it is in the state, and told."""
        cloud = self.cloud()
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()))
        machine, uuid = cloud.machine(), uuid_of("alice", cloud.fleet.templates["site"])
        self.assertEqual((State.UP, uuid, "site"), (machine.state, machine.uuid, machine.vm.template))
        self.assertEqual("10.1.0.51", cloud.store.tree[f"jitsu/vm/{uuid}/ip"])
        self.assertEqual(EPOCH + 1000, made_at(cloud.store.tree[origin_path(uuid)]))
        self.assertEqual(["made", "state"], [one.kind for one in cloud.fleet.journal.decisions("alice.site")][:2])
        self.assertEqual(TemplateCounts(made=1, asked={"exists": 1}), cloud.templates.counts("site"))

    def test_inherits(self) -> None:
        """A VM has what its template says; its folder in the state has only what is its own."""
        cloud = self.cloud({"mode": "pause", "idle": "77", "ttl": "9"})
        cloud.ask()
        vm = cloud.machine().vm
        self.assertEqual(("pause", 77.0, 9), (vm.mode.value, vm.idle, vm.ttl))
        base = f"jitsu/vm/{vm.uuid}/"
        self.assertEqual(
            {"config/name/0": "alice.site", "config/template/0": "site", "dns/alice.sites.jitsu.test/ttl": "",
             "ip": "10.1.0.51"},
            {path.removeprefix(base): value for path, value in cloud.store.tree.items() if path.startswith(base)},
        )  # fmt: skip

    def test_second_question(self) -> None:
        """From then on it is a VM like all others, whose name nobody looks up again."""
        cloud = self.cloud()
        cloud.ask()
        cloud.templates._existing.exists = None  # type: ignore[method-assign, assignment]
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()))
        self.assertEqual(1, cloud.backend.guests[cloud.machine().uuid].boots)

    def test_restart(self) -> None:
        """A new process has the VM as it was, with its address and its names; VMs are in the order of their names."""
        cloud = self.cloud()
        for name in ("user-2.sites", "alice.sites", "user-1.sites"):
            cloud.ask(name)
        before = cloud.machine().vm
        cloud.kill()
        self.assertEqual(["alice.site", "user-1.site", "user-2.site"], list(cloud.fleet.machines))
        self.assertEqual(before, cloud.machine().vm)
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()))
        self.assertEqual(1, cloud.backend.guests[cloud.machine().uuid].boots)

    def test_shared(self) -> None:
        """Many clients that ask at one moment get one VM; each has its answer, and only one spends anything."""
        cloud = self.cloud({"new_per_minute": "1"})
        found = cloud.hold(cloud.backend, "look_up")
        answers = [cloud.ask(host=f"192.0.2.{number}") for number in range(1, 6)]
        found.callback(None)
        cloud.clock.advance(0)
        self.assertEqual({"alice.sites.jitsu.test A 10.1.0.51"}, {cloud.told(one) for one in answers})
        self.assertEqual((1, 1), (len(cloud.backend.guests), cloud.templates.counts("site").made))

    def test_one_commit(self) -> None:
        """VMs that are made while the state is written are written by one commit then; a bad one stops no other."""
        cloud = self.cloud({"dns": '["*.sites.jitsu.test", "*.others.jitsu.test"]'})
        cloud.zones.add_vm(b"\3bob\6others\5jitsu\4test\0", "other", [], 5)
        messages, held, write = list[str](), Deferred[None](), cloud.store.write

        def writing(changes: Any, message: str) -> Deferred[None]:
            messages.append(message)
            return write(changes, message) if len(messages) > 1 else held.addCallback(lambda _: write(changes, message))

        self.patch(cloud.store, "write", writing)
        names = ("alice.sites", "user-1.sites", "user-2.sites", "bob.sites")
        answers = [cloud.ask(name, port=number) for number, name in enumerate(names)]
        held.callback(None)
        cloud.clock.advance(0)
        self.assertEqual(["10.1.0."] * 3, [cloud.told(one).split(" A ")[1][:7] for one in answers[:3]])
        self.refused(answers[3], ConfigError, "is the name of VM other already")
        made = [message for message in messages if message.startswith("Made by template site\n\n")]
        self.assertEqual(["alice.site", "user-1.site, user-2.site"],
                         [message.split("added: ")[1].strip() for message in made])

    def test_shared_failure(self) -> None:
        """If a making fails, all that wait for it are told."""
        cloud = self.cloud()
        found = cloud.hold(cloud.backend, "look_up")
        answers = [cloud.ask(host=f"192.0.2.{number}") for number in range(1, 4)]
        found.errback(BackendError("no"))
        for one in answers:
            self.refused(one, BackendError, "no")
        self.assert_nothing(cloud)

    def test_client_gone(self) -> None:
        """A making goes on when its first client waits no longer: the others, and the next, have the VM."""
        cloud = self.cloud()
        found = cloud.hold(cloud.backend, "look_up")
        first = cloud.ask()
        cloud.clock.advance(1)
        second = cloud.ask(host="198.51.100.1")
        cloud.clock.advance(0.3)
        self.refused(first, ExistenceUnknown, "within 1.2 s")
        found.callback(None)
        cloud.clock.advance(0)
        self.assertIn("10.1.0.51", cloud.told(second))
        self.assertIn("10.1.0.51", cloud.told(cloud.ask()))

    def test_no_names_before(self) -> None:
        """While it is made, no client is sent to the VM, or told that there is none."""
        cloud = self.cloud()
        cloud.hold(cloud.backend, "look_up")
        cloud.ask()
        self.assertIn("alice.site", cloud.fleet.machines)
        self.assertNoResult(cloud.ask(host="192.0.2.2"))

    def test_addresses_differ(self) -> None:
        """VMs have addresses of their own, of the pool, also while they are made at one moment."""
        cloud = self.cloud({"pool": "[10.1.0.0/28]"})
        found = cloud.hold(cloud.backend, "look_up")
        for number in range(14):
            cloud.ask(f"user-{number}.sites")
        found.callback(None)
        cloud.clock.advance(0)
        ips = {ip for machine in cloud.fleet.machines.values() for ip in machine.vm.ip}
        self.assertEqual({ip_address(f"10.1.0.{number}") for number in range(1, 15)}, ips)

    def test_both_families(self) -> None:
        """With a pool of both families a VM has an address of each."""
        cloud = self.cloud({"pool": '[10.1.0.0/24, "2001:db8::/64"]'})
        cloud.ask(qtype=28)
        self.assertEqual([4, 6], [ip.version for ip in cloud.machine().vm.ip])

    def test_address_is_others(self) -> None:
        """An address that another VM has, this host or one of its neighbours, is given to none; those are probed."""
        cloud = self.cloud({"pool": "[10.1.0.7-10.1.0.10]"}, vms="vms:\n  - {name: w, dns: w.jitsu.test, ip: 10.1.0.7}")
        probed: list[str] = []
        self.patch(templates, "probe", probed.append)
        self.patch(templates, "is_here", lambda host: host == "10.1.0.8")
        self.patch(templates, "mac_of", lambda host: "52:00:00:00:00:01" if host == "10.1.0.9" else None)
        cloud.ask()
        self.assertEqual((ip_address("10.1.0.10"),), cloud.machine().vm.ip)
        self.refused(cloud.ask("bob.sites"), NoCapacity, "all 4 addresses of site are taken")
        self.assertEqual({"10.1.0.9"}, set(probed))

    def test_neighbour_from_before(self) -> None:
        """A neighbour that the kernel remembers of a forgotten VM, or of this very one, does not take an address."""
        cloud = self.cloud({"pool": "[10.1.0.7-10.1.0.7]"})
        cloud.ask()
        macs = ["52:54:00:00:00:07"]
        self.patch(templates, "probe", lambda _: None)
        self.patch(forgetting, "mac_of", lambda _: macs[0])
        self.patch(templates, "mac_of", lambda _: macs[0])
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assertIn("10.1.0.7", cloud.told(cloud.ask("bob.sites")))
        self.successResultOf(cloud.templates.forget("bob.site"))
        macs[0] = "02:00:00:00:00:01"
        self.refused(cloud.ask(), NoCapacity, "are taken")
        cloud.kill()
        macs[0] = mac_of(uuid_of("alice", cloud.fleet.templates["site"]))
        self.assertIn("10.1.0.7", cloud.told(cloud.ask()))

    def test_neighbours_unknown(self) -> None:
        """Where it cannot be found out which addresses are free, nothing is made."""
        cloud = self.cloud()
        self.patch(templates, "is_here", lambda _: (_ for _ in ()).throw(OSError("no file descriptor is left")))
        self.refused(cloud.ask(), BackendError, "which addresses are free: no file descriptor is left")
        self.assert_nothing(cloud)

    def test_dry_run(self) -> None:
        """A dry run makes nothing."""
        cloud = self.cloud(top="dry_run: true")
        self.refused(cloud.ask(), Prohibited, "a dry run makes no VMs")
        self.assert_nothing(cloud)


    def test_examined(self) -> None:
        """At the start it is logged what is to be known of a template; one that can make nothing now stops nothing."""
        cloud = self.cloud()

        def examine(vm: VM) -> tuple[str, ...]:
            raise ConfigError("the base is gone", key=vm.name)

        for examined, words in ((lambda _: ("has no memory balloon",), "site: has no memory balloon"),
                                (examine, "site: it cannot make VMs now: example.site: the base is gone")):  # fmt: skip
            self.patch(cloud.backend, "examine", examined)
            with capturedLogs() as logs:
                cloud.kill()
            self.assertIn(words, [str(formatEvent(one)) for one in logs])
        self.assertIn("10.1.0.", cloud.told(cloud.ask()))


class LimitTests(TemplatesTestCase):
    """What is not made, and why."""

    def check(self, cloud: Cloud, answer: Deferred[Answer], kind: type[Exception], words: str, reason: str) -> None:
        """Check that *answer* is refused, that it is counted by *reason*, and that nothing is left."""
        self.refused(answer, kind, words)
        self.assertEqual(1, cloud.templates.counts("site").refused.get(reason))
        self.assertEqual(0, cloud.templates.counts("site").failed)

    def test_max(self) -> None:
        """A template has no more VMs than it may, those that are being made among them."""
        cloud = self.cloud({"max": "2"})
        cloud.ask()
        found = cloud.hold(cloud.backend, "look_up")
        cloud.ask("bob.sites")
        self.check(cloud, cloud.ask("user-1.sites"), NoCapacity, "as many VMs as it may, 2", "max")
        found.callback(None)
        self.assertEqual({"alice.site", "bob.site"}, cloud.fleet.machines.keys())
        self.assert_nothing(cloud, "user-1.site")

    def test_last_one(self) -> None:
        """The last VM that a template may have is made also while the one before it is."""
        cloud = self.cloud({"max": "2"})
        found = cloud.hold(cloud.backend, "look_up")
        cloud.ask()
        second = cloud.ask("bob.sites")
        found.callback(None)
        cloud.clock.advance(0)
        self.assertIn("10.1.0.", cloud.told(second))

    def test_new_per_minute(self) -> None:
        """A client network makes no more in a minute than it may; another network still can."""
        cloud = self.cloud({"new_per_minute": "2"})
        for number in range(2):
            cloud.ask(f"user-{number}.sites")
        self.check(cloud, cloud.ask(host="192.0.2.200"), Prohibited, "this network has made as many", "client")
        self.assertIn("10.1.0.", cloud.told(cloud.ask(host="198.51.100.1")))
        cloud.clock.advance(31)
        self.assertIn("10.1.0.", cloud.told(cloud.ask("bob.sites")))

    def test_refusal_spends_nothing(self) -> None:
        """What is refused by another limit takes nothing of the budget."""
        cloud = self.cloud({"new_per_minute": "1", "max": "1"})
        cloud.ask("user-1.sites", host="198.51.100.1")
        for _ in range(3):
            self.refused(cloud.ask(), NoCapacity, "as it may, 1")
        cloud.templates.forget("user-1.site")
        cloud.clock.advance(0)
        self.assertIn("10.1.0.51", cloud.told(cloud.ask()))

    def test_budget_changed(self) -> None:
        """A template that is changed gives its clients what it allows now."""
        cloud = self.cloud({"new_per_minute": "1"})
        cloud.ask()
        cloud.write([{"name": "site", "dns": '"*.sites.jitsu.test"', "pool": "[10.1.0.0/24]", "exists": '["*"]',
                      "new_per_minute": "2"}])  # fmt: skip
        self.successResultOf(cloud.reload())
        self.assertIn("10.1.0.", cloud.told(cloud.ask("bob.sites")))

    def test_pool_empty(self) -> None:
        """With no address left nothing is made; when a VM is forgotten, its address is another's."""
        cloud = self.cloud({"pool": "[10.1.0.5-10.1.0.5]"})
        cloud.ask("bob.sites")
        self.check(cloud, cloud.ask(), NoCapacity, "all 1 addresses of site are taken", "pool")
        self.assert_nothing(cloud)
        self.successResultOf(cloud.templates.forget("bob.site"))
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.5", cloud.told(cloud.ask()))

    def test_pool_taken_by_others(self) -> None:
        """Where other VMs have the addresses, they are looked for once in a while, not for each name."""
        cloud = self.cloud({"pool": "[10.1.0.5-10.1.0.5]"}, vms="vms:\n  - {name: w, dns: w.jitsu.test, ip: 10.1.0.5}")
        self.refused(cloud.ask(), NoCapacity, "are taken")
        self.patch(templates, "choose", None)
        self.refused(cloud.ask("bob.sites"), BootFailed, "all 1 addresses of site are taken; tried again in 10 s")

    def test_pool_changed(self) -> None:
        """VMs with addresses of a pool that the template has no more take none of the new one."""
        cloud = self.cloud({"pool": "[10.1.0.4/30]"})
        for label in ("alice", "bob"):
            cloud.ask(f"{label}.sites")
        cloud.write([SITE | {"pool": "[10.1.0.128/30]"}])
        self.successResultOf(cloud.reload())
        for label in ("user-1", "user-2"):
            self.assertIn("A 10.1.0.1", cloud.told(cloud.ask(f"{label}.sites")))
        self.check(cloud, cloud.ask("user-3.sites"), NoCapacity, "all 2 addresses of site are taken", "pool")

    def test_no_garbage(self) -> None:
        """A name that does not exist leaves no cycles of objects for the collector of garbage."""
        cloud = self.cloud()
        cloud.told(cloud.ask("mallory.sites"))
        gc.collect()
        for _ in range(5):
            self.assertIn("Unanswerable", cloud.told(cloud.ask("mallory.sites")))
        self.assertEqual(0, gc.collect())

    def test_policy(self) -> None:
        """The limits on starts hold for the first start, too."""
        outside = self.cloud(top="summon_from: [10.0.0.0/8]")
        self.check(outside, outside.ask(), Prohibited, "this network may not start", "client")
        unproven = self.cloud(top="verify_source: true")
        self.check(unproven, unproven.ask(proven=False), Unproven, "proof", "unproven")
        self.assertIn("10.1.0.51", unproven.told(unproven.ask()))
        full = self.cloud(top="max_running: 1")
        full.ask("bob.sites")
        self.check(full, full.ask(), NoCapacity, "as many virtual machines run as may", "full")

    def test_start_is_spent(self) -> None:
        """A VM that is made has spent one start of its client's network."""
        cloud = self.cloud(starts="1")
        cloud.ask()
        self.check(cloud, cloud.ask("bob.sites"), Prohibited, "used up its starts", "client")

    def test_hypervisor_lost(self) -> None:
        """Where the hypervisor cannot be asked, nothing is made; nor before it has answered."""
        cloud = self.cloud()
        cloud.fleet.inventory.lost(cloud.backend, "the cable is out")
        self.check(cloud, cloud.ask(), BackendLost, "the cable is out", "lost")
        self.patch(cloud.backend, "connect", lambda _: None)
        cloud.kill()
        self.check(cloud, cloud.ask(), BackendLost, "it has not answered yet", "lost")
        self.assert_nothing(cloud)

    def test_cluster_lost(self) -> None:
        """Where the nodes cannot agree, nothing is made."""
        cloud = self.cloud()

        def reserve(*_: Any) -> Deferred[Any]:
            return fail(ClusterUnavailable("no quorum"))

        self.patch(cloud.fleet.cluster.reservations, "reserve", reserve)
        self.check(cloud, cloud.ask(), ClusterUnavailable, "no quorum", "lost")
        self.assert_nothing(cloud)

    def test_too_many(self) -> None:
        """At most `MOST_MAKING` VMs are made at once; `MOST_WAITING_OF_ONE` clients of a network may wait for them."""
        cloud = self.cloud()
        self.patch(templates, "MOST_MAKING", 2)
        cloud.hold(cloud.backend, "look_up")
        waiting = [cloud.ask(f"user-{number % 2}.sites", port=number + 1) for number in range(100)]
        self.refused(cloud.ask("user-1.sites"), Prohibited, "waits for too many VMs")
        self.check(cloud, cloud.ask(host="198.51.100.1"), NoCapacity, "2 VMs are being made", "busy")
        self.assertNoResult(waiting[0])


class FailureTests(TemplatesTestCase):
    """A step of a making fails."""

    def failed(self, cloud: Cloud, answer: Deferred[Answer], kind: type[Exception], words: str) -> None:
        """Check that *answer* is an error, that nothing is left, and that the name rests and is made then."""
        self.refused(answer, kind, words)
        self.assert_nothing(cloud)
        self.refused(cloud.ask(), BootFailed, "tried again in")
        self.assertEqual(1, cloud.templates.counts("site").refused["failing"])

    def again(self, cloud: Cloud) -> None:
        """Check that the VM is made when the name has rested, at the address that it was to have."""
        cloud.clock.advance(RESTS)
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()))

    def test_state(self) -> None:
        """The state cannot be written: nothing is made, and the address is free, for other nodes, too."""
        cloud = self.cloud()
        released: list[Any] = []
        self.patch(cloud.fleet.cluster.reservations, "release", lambda *what: released.append(what))
        patch = self.patch(cloud.store, "write", lambda *_: fail(StoreError("disk full")))
        self.failed(cloud, cloud.ask(), BackendError, "the state cannot be written: disk full")
        self.assertEqual([("alice.site", (ip_address("10.1.0.51"),))], released)
        self.assertEqual({}, cloud.backend.guests)
        patch.restore()
        self.again(cloud)

    def test_hypervisor_refuses(self) -> None:
        """The hypervisor refuses the VM: it is out of the state again."""
        cloud = self.cloud()
        patch = self.patch(cloud.backend, "look_up", lambda _: fail(BackendError("no memory")))
        self.failed(cloud, cloud.ask(), BackendError, "no memory")
        self.assertEqual(1, cloud.templates.counts("site").failed)
        patch.restore()
        self.again(cloud)

    def test_hypervisor_lost(self) -> None:
        """The hypervisor is lost while the VM is made: perhaps it is there, so it stays, and is served by and by."""
        cloud = self.cloud()
        found = cloud.hold(cloud.backend, "look_up")
        answer = cloud.ask()
        cloud.fleet.inventory.lost(cloud.backend, "the cable is out")
        found.errback(BackendLost("the cable is out"))
        self.refused(answer, BackendLost, "the cable is out")
        cloud.fleet.inventory.connected(cloud.backend)
        cloud.clock.advance(0)
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()))

    def test_hypervisor_hangs(self) -> None:
        """The hypervisor does not answer: the client is told in time, and the VM is made when it does."""
        cloud = self.cloud()
        found = cloud.hold(cloud.backend, "look_up")
        answer = cloud.ask()
        cloud.clock.advance(1.2)
        self.refused(answer, ExistenceUnknown, "within 1.2 s; ask again")
        found.callback(None)
        cloud.clock.advance(0)
        self.assertIs(State.UP, cloud.machine().state)

    def test_definition_gone(self) -> None:
        """A file of the template that is not there any more is named, and nothing is left."""
        cloud = self.cloud()
        self.patch(templates, "vm_from", lambda *_: (_ for _ in ()).throw(ConfigError("cannot be read", "site.xml")))
        self.failed(cloud, cloud.ask(), ConfigError, "site.xml: cannot be read")

    def test_first_start_fails(self) -> None:
        """A VM whose first start fails is forgotten; its address is free, and the reason is told."""
        cloud = self.cloud({"faults": "[start]"})
        with capturedLogs() as logs:
            self.refused(cloud.ask(), BootFailed, "the start fails, as it was told to")
            cloud.pump(2)
        self.assertIn("its first start has failed, so it is forgotten", "\n".join(map(str, map(formatEvent, logs))))
        self.assert_nothing(cloud)
        self.refused(cloud.ask(), BootFailed, "the start fails, as it was told to; tried again in")
        counts = cloud.templates.counts("site")
        self.assertEqual((1, 1, 0), (counts.made, counts.failed, counts.forgotten))
        (event,) = [one for one in cloud.fleet.journal.decisions("alice.site") if one.kind == "forgotten"]
        self.assertIn("because its first start has failed", event.facts["reason"])
        (problem,) = cloud.templates.problems()["site"]
        self.assertIn("its last new VM could not be made: alice.site: its first start has failed: ", problem)

    def test_trouble_ends(self) -> None:
        """That a VM could not be made is a problem of the template until another one was."""
        cloud = self.cloud()
        patch = self.patch(cloud.backend, "look_up", lambda _: fail(BackendError("no memory")))
        self.refused(cloud.ask(), BackendError, "no memory")
        self.assertIn("no memory", cloud.templates.problems()["site"][0])
        patch.restore()
        cloud.ask("bob.sites")
        self.assertEqual({}, cloud.templates.problems())

    def test_first_start_stopped(self) -> None:
        """A first start that an operator stops has failed like any other; clients and the operator are told."""
        cloud = self.cloud({"boot_time": "5"})
        answer = cloud.ask()
        stopped = cloud.fleet.operator.stop("alice.site")
        cloud.pump(6)
        self.refused(answer, BootFailed, "stopped while it was starting")
        self.assertIs(State.OFF, self.successResultOf(stopped))
        self.assert_nothing(cloud)

    def test_second_start_fails(self) -> None:
        """A VM that has once been up is kept when a start fails."""
        cloud = self.cloud()
        cloud.ask()
        cloud.fleet.operator.stop("alice.site")
        guest = cloud.backend.guests[cloud.machine().uuid]
        guest.vm = attrs.evolve(guest.vm, backend_settings=MemorySettings(faults=frozenset({Fault.START})))
        self.refused(cloud.ask(), BootFailed, "the start fails")
        cloud.pump(2)
        self.assertIn("alice.site", cloud.fleet.machines)

    def test_start_hangs(self) -> None:
        """A VM whose first start takes long is answered for in time, and stays."""
        cloud = self.cloud({"faults": "[hang]"})
        answer = cloud.ask()
        cloud.clock.advance(1.2)
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51 EDE 14", cloud.told(answer))
        self.assertIn("alice.site", cloud.fleet.machines)

    def test_lost_while_starting(self) -> None:
        """A first start that ends because the hypervisor is lost is no reason to forget the VM."""
        cloud = self.cloud()
        self.patch(cloud.backend, "start", lambda _: fail(BackendLost("gone")))
        self.refused(cloud.ask(), BackendLost, "gone")
        cloud.pump(2)
        self.assertIn("alice.site", cloud.fleet.machines)
        self.assertTrue(cloud.stored())

    def test_names_taken(self) -> None:
        """Where the zones cannot have a name, nothing is made, at the hypervisor neither."""
        cloud = self.cloud({"dns": '["*.sites.jitsu.test", "*.others.jitsu.test"]'})
        cloud.zones.add_vm(b"\5alice\6others\5jitsu\4test\0", "other", [], 5)
        self.patch(cloud.backend, "look_up", lambda _: fail(BackendError("it was asked")))
        self.failed(cloud, cloud.ask(), ConfigError, "is the name of VM other already")

    def test_name_taken(self) -> None:
        """Where a VM of the configuration has the name, at the hypervisor, of a VM to be made, the client is told."""
        cloud = self.cloud(vms="vms:\n  - {name: alice.site, dns: w.jitsu.test, ip: 10.9.0.1}")
        self.refused(cloud.ask(), BootFailed, "alice.site: a VM of the configuration is called so")

    def test_zone_entry(self) -> None:
        """A VM takes no name from an entry of the zone, below another wildcard of its template neither."""
        cloud = self.cloud({"dns": '["*.sites.jitsu.test", "*.others.jitsu.test"]'})
        cloud.zones.find(from_text("jitsu.test")).add(from_text("alice.others.jitsu.test"), 1, 5, bytes(4))
        self.refused(cloud.ask(), ConfigError, "the zone has an entry alice.others.jitsu.test")
        self.assertEqual(({}, []), (cloud.backend.guests, cloud.stored()))
        self.assertEqual("alice.others.jitsu.test A 0.0.0.0", cloud.told(cloud.ask("alice.others")))

    def test_uuid_taken(self) -> None:
        """A name whose uuid another VM has makes none: both would have one disk, one definition and one folder."""
        cloud = self.cloud()
        cloud.ask()
        moved = SITE | {"dns": '"*.new.jitsu.test"'}
        cloud.write([moved])
        self.successResultOf(cloud.reload())
        cloud.write([moved, SITE | {"name": "shop", "pool": "[10.2.0.0/24]"}])
        self.successResultOf(cloud.reload())
        before = cloud.stored()
        self.refused(cloud.ask(), BootFailed, "alice.shop: its uuid is that of VM alice.site")
        self.assertEqual((["alice.site"], before), (list(cloud.fleet.machines), cloud.stored()))
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assertIn("A 10.2.0.", cloud.told(cloud.ask()))

    def test_left_out(self) -> None:
        """A VM in the state that was left out at the start is not made anew, so that its disk is kept."""
        cloud = self.cloud()
        cloud.ask()
        before, uuid = cloud.stored(), cloud.machine().uuid
        cloud.write([SITE], vms="vms:\n  - {name: w, dns: w.jitsu.test, ip: 10.1.0.51}")
        cloud.kill()
        self.refused(cloud.ask(), BootFailed, "its uuid is that of a VM in the state that is left out")
        self.assertEqual((before, "10.1.0.51"), (cloud.stored(), cloud.store.tree[f"jitsu/vm/{uuid}/ip"]))
        cloud.write([SITE])
        cloud.kill()
        self.assertIn("A 10.1.0.51", cloud.told(cloud.ask()))

    def test_changed_meanwhile(self) -> None:
        """A template that is gone when its turn comes makes nothing; nor is a VM made twice, or at a taken address."""
        for change, words in (
            (lambda cloud: cloud.fleet.templates.pop("site"), "the configuration has just changed"),
            (lambda cloud: cloud.fleet.machines.update({"alice.site": None}), "the configuration has just changed"),
            (lambda cloud: cloud.fleet.members.reserve([ip_address("10.1.0.51")], "x"), "has just been given"),
        ):
            cloud = self.cloud()
            cloud.running.lock.acquire()
            answer = cloud.ask()
            site = cloud.fleet.templates["site"]
            change(cloud)
            cloud.running.lock.release()
            cloud.fleet.templates["site"] = site
            cloud.fleet.machines.pop("alice.site", None)
            self.refused(answer, ConfigError, words)
            self.assertEqual(({}, []), (cloud.backend.guests, cloud.stored()))

    def test_killed(self) -> None:
        """A process that is killed between two steps leaves a VM like all others, or none; its address is its own."""
        for method, thing in (("write", "store"), ("look_up", "backend"), ("start", "backend")):
            cloud = self.cloud()
            cloud.hold(getattr(cloud, thing), method)
            answer = cloud.ask()
            answer.addErrback(lambda _: None)
            delattr(getattr(cloud, thing), method)
            cloud.kill()
            self.assertEqual(bool(cloud.stored()), "alice.site" in cloud.fleet.machines)
            self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()), method)
            self.assertEqual(1, len(cloud.backend.guests))


class ForgettingTests(TemplatesTestCase):
    """A VM is forgotten."""

    def test_by_hand(self) -> None:
        """A VM that is up is stopped and removed; its name makes another one, at the same address."""
        cloud = self.cloud()
        cloud.ask()
        serial = cloud.zones.find(b"\5jitsu\4test\0").serial
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assert_nothing(cloud)
        self.assertEqual(serial + 1, cloud.zones.find(b"\5jitsu\4test\0").serial)
        self.assertEqual({"alice.site"}, cloud.changed[-1])
        self.assertEqual(1, cloud.templates.counts("site").forgotten)
        self.assertEqual("by hand", [*cloud.fleet.journal.decisions("alice.site")][-1].facts["reason"])
        self.assertEqual("alice.sites.jitsu.test A 10.1.0.51", cloud.told(cloud.ask()))
        self.assertEqual(1, cloud.fleet.stats.current(cloud.machine()).total_starts)

    def test_nothing_remembered(self) -> None:
        """What has been forgotten takes no memory: neither its configuration nor its statistics."""
        cloud = self.cloud()
        cloud.ask()
        uuid, known = cloud.machine().uuid, cloud.fleet.store.config
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assertEqual((None, False), (known.origin(uuid), known.has_some))
        self.assertEqual(({}, {}), (cloud.fleet.stats._known, cloud.fleet.stats._stats))

    def test_not_made(self) -> None:
        """A VM of the file is not forgotten, nor one that there is not, nor one twice."""
        cloud = self.cloud(vms="vms:\n  - {name: www, dns: www.jitsu.test, ip: 10.2.0.1}")
        for name, words in (("www", "was not made by a template"), ("alice.site", "is no VM")):
            self.assertIn(words, str(self.failureResultOf(cloud.templates.forget(name), ConfigError).value))
        cloud.ask()
        held = cloud.hold(cloud.backend, "remove")
        first = cloud.templates.forget("alice.site")
        second = cloud.templates.forget("alice.site")
        self.assertIn("on its way already", str(self.failureResultOf(second, ConfigError).value))
        held.callback(None)
        self.assertIsNone(self.successResultOf(first))

    def test_while_made(self) -> None:
        """A VM that is being made is forgotten when it is made, so that no definition is written afterwards."""
        for way in ("forgotten", "removed"):
            cloud = self.cloud()
            held = cloud.hold(cloud.backend, "look_up")
            answer = cloud.ask()
            if way == "forgotten":
                done = cloud.templates.forget("alice.site")
            else:
                done = cloud.running.apply(ConfigChange(removed=("alice.site",)))
            cloud.pump(1)
            held.callback(None)
            cloud.pump(1)
            self.successResultOf(done)
            self.successResultOf(answer.addErrback(lambda _: None))
            self.assert_nothing(cloud)

    def test_while_looked_up(self) -> None:
        """A VM is removed when no call is under way any more that looks it up: such a call may define it."""
        cloud = self.cloud()
        cloud.ask()
        cloud.pump(200)
        cloud.backend.guests.clear()
        held = cloud.hold(cloud.backend, "look_up")
        cloud.kill()
        done = cloud.templates.forget("alice.site")
        cloud.pump(1)
        held.callback(None)
        self.successResultOf(done)
        self.assert_nothing(cloud)

    def test_statistics_prepared(self) -> None:
        """Statistics that are being prepared for a commit, in slices of time, are not written behind the removal."""
        cloud = self.cloud()
        cloud.ask()
        cloud.pump(200)
        self.patch(persistence, "SLICE", 1)
        cloud.fleet.stats.changed.add("alice.site")
        cloud.fleet.store._save_if_due()
        self.assertFalse(cloud.fleet.store.written().called)
        forgotten = cloud.templates.forget("alice.site")
        cloud.pump(1)
        self.successResultOf(forgotten)
        self.assert_nothing(cloud)

    def test_asked_meanwhile(self) -> None:
        """While a VM is being forgotten its name makes none; afterwards it does, and the new one is in the state."""
        cloud = self.cloud()
        cloud.ask()
        held = cloud.hold(cloud.backend, "remove")
        done = cloud.templates.forget("alice.site")
        self.refused(cloud.ask(), BootFailed, "it is being forgotten")
        held.callback(None)
        self.successResultOf(done)
        cloud.ask()
        self.assertTrue(cloud.stored())

    def test_asked_while_written_off(self) -> None:
        """A name makes no VM while the state forgets the one before; a VM that is made then stays in the state."""
        cloud = self.cloud()
        cloud.ask()
        held = cloud.hold(cloud.store, "write")
        done = cloud.templates.forget("alice.site")
        self.assertNotIn("alice.site", cloud.fleet.machines)
        self.refused(cloud.ask(), BootFailed, "it is being forgotten")
        held.callback(None)
        self.successResultOf(done)
        cloud.ask()
        self.assertTrue(cloud.stored())

    def test_two_at_once(self) -> None:
        """Two VMs that are forgotten at one moment are both gone."""
        cloud = self.cloud()
        cloud.ask()
        cloud.ask("bob.sites")
        held = cloud.hold(cloud.store, "write")
        done = [cloud.templates.forget(name) for name in ("alice.site", "bob.site")]
        cloud.clock.advance(FORGETS_EVERY)
        held.callback(None)
        self.assertEqual([None, None], [self.successResultOf(one) for one in done])
        self.assert_nothing(cloud)
        self.assert_nothing(cloud, "bob.site")

    def test_seen_gone(self) -> None:
        """A VM that is seen gone while it is removed is neither looked up, which would define it, nor removed twice."""
        cloud = self.cloud()
        cloud.ask()
        machine, remove, calls = cloud.machine(), cloud.backend.remove, list[str]()
        done: Deferred[None] = Deferred()

        def removing(vm: VM) -> Deferred[None]:
            calls.append("remove")
            remove(vm)
            cloud.backend._watcher.changed(str(vm.uuid), "undefined")  # type: ignore[union-attr]
            return done

        self.patch(cloud.backend, "remove", removing)
        self.patch(cloud.backend, "look_up", lambda _: calls.append("look_up"))
        forgotten = cloud.templates.forget("alice.site")
        cloud.pump(2)
        done.callback(None)
        self.successResultOf(forgotten)
        self.assertEqual(["remove"], calls)
        self.assertIsNone(cloud.fleet.inventory.machine(machine.uuid))
        self.assert_nothing(cloud)

    def test_removed_elsewhere(self) -> None:
        """What a look-up defines of a VM that another node removes goes when the look-up ends; a VM made anew stays."""
        for anew in (False, True):
            cloud = self.cloud()
            cloud.ask()
            machine, held = cloud.machine(), cloud.hold(cloud.backend, "look_up")
            cloud.fleet.inventory.find(machine)
            dropped = Deferred.fromCoroutine(cloud.templates._forgetting.retire(machine, "there", elsewhere=True))
            self.patch(cloud.fleet.cluster.reservations, "is_made", lambda _, anew=anew: anew)
            held.callback(None)
            cloud.clock.advance(0)
            self.successResultOf(dropped)
            self.assertEqual(anew, bool(cloud.backend.guests))

    def test_cannot_stop(self) -> None:
        """A VM that cannot be stopped has no name any more, is shown, and goes when it can."""
        cloud = self.cloud()
        cloud.ask()
        guest = cloud.backend.guests[cloud.machine().uuid]
        guest.obstacles = {guest.vm.mode: "a device is in use"}
        error = self.failureResultOf(cloud.templates.forget("alice.site"), BackendError)
        self.assertIn("cannot be stopped", str(error.value))
        self.assertIn("it is forgotten, but what is left of it cannot be removed yet", str(error.value))
        self.refused(cloud.ask(), BootFailed, "it is being forgotten")
        self.assertTrue(cloud.machine().vm.removed)
        guest.obstacles = {}
        cloud.backend.happen(str(guest.vm.uuid), Power.OFF, "it was shut down")
        cloud.pump(2)
        cloud.clock.advance(FORGETS_EVERY)
        self.assert_nothing(cloud)

    def test_cannot_remove(self) -> None:
        """What the hypervisor cannot remove now is removed when it can: that is tried each minute."""
        cloud = self.cloud()
        cloud.ask()
        patch = self.patch(cloud.backend, "remove", lambda _: fail(BackendError("the disk is busy")))
        error = self.failureResultOf(cloud.templates.forget("alice.site"), BackendError)
        self.assertIn("the disk is busy", str(error.value))
        self.assertTrue(cloud.stored())
        cloud.clock.advance(FORGETS_EVERY)
        self.assertIn("alice.site", cloud.fleet.machines)
        patch.restore()
        cloud.clock.advance(FORGETS_EVERY)
        cloud.clock.advance(FORGETS_EVERY)
        self.assert_nothing(cloud)

    def test_state_cannot_be_written(self) -> None:
        """What cannot be removed from the state is removed when it can be; its address is taken until then."""
        cloud = self.cloud()
        cloud.ask()
        released: list[Any] = []
        self.patch(cloud.fleet.cluster.reservations, "release", lambda *what: released.append(what))
        patch = self.patch(cloud.store, "write", lambda *_: fail(StoreError("disk full")))
        error = self.failureResultOf(cloud.templates.forget("alice.site"), BackendError)
        self.assertIn("the state cannot be written", str(error.value))
        self.assertEqual([], released)
        patch.restore()
        cloud.clock.advance(FORGETS_EVERY)
        self.assert_nothing(cloud)
        self.assertEqual(1, len(released))

    def test_killed(self) -> None:
        """A process that ends in between leaves a VM like all others, which can be forgotten."""
        cloud = self.cloud()
        cloud.ask()
        cloud.hold(cloud.backend, "remove")
        cloud.templates.forget("alice.site")
        del cloud.backend.remove
        cloud.kill()
        self.assertIn("alice.site", cloud.fleet.machines)
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assert_nothing(cloud)

    def test_forget_after(self) -> None:
        """A VM that nobody has used for `forget_after` is forgotten; one that was used is not, nor one that is up."""
        cloud = self.cloud({"forget_after": "2h", "idle": "60"})
        for name in ("alice.sites", "bob.sites", "user-1.sites"):
            cloud.ask(name)
        cloud.fleet.operator.hold("user-1.site")
        cloud.pump(3600, 60)
        cloud.ask("bob.sites")
        cloud.pump(3720, 60)
        self.assertEqual({"bob.site", "user-1.site"}, cloud.fleet.machines.keys())
        self.assert_nothing(cloud)
        self.assertIn("nobody has used it", [*cloud.fleet.journal.decisions("alice.site")][-1].facts["reason"])

    def test_forget_after_restart(self) -> None:
        """The time counts from the last use that the state knows, also by a new process."""
        cloud = self.cloud({"forget_after": "2h", "idle": "60"})
        cloud.ask()
        cloud.pump(3600, 60)
        cloud.kill()
        cloud.pump(3480, 60)
        self.assertIn("alice.site", cloud.fleet.machines)
        cloud.pump(300, 60)
        self.assertNotIn("alice.site", cloud.fleet.machines)

    def test_dry_run(self) -> None:
        """A dry run forgets nothing, however long nobody has used it."""
        cloud = self.cloud({"forget_after": "1h"})
        cloud.ask()
        cloud.write([{**SITE, "forget_after": "1h"}], top="dry_run: true")
        cloud.kill()
        cloud.pump(3 * DAY, 3600)
        self.assertIn("alice.site", cloud.fleet.machines)

    def test_never(self) -> None:
        """With a `forget_after` of 0 a VM is kept for ever."""
        cloud = self.cloud({"forget_after": "0"})
        cloud.ask()
        cloud.pump(60 * DAY, DAY)
        self.assertIn("alice.site", cloud.fleet.machines)

    def test_clock_set(self) -> None:
        """A wall clock that is set while Jitsu runs forgets nothing: forward, or back because it was wrong before."""
        for days in (60, -60):
            cloud = self.cloud({"forget_after": "1d"})
            cloud.ask()
            cloud.pump(600, 60)
            cloud.wall_set = days * DAY
            cloud.pump(600, 60)
            self.assertIn("alice.site", cloud.fleet.machines)
            cloud.ask("bob.sites")
            cloud.pump(600, 60)
            self.assertIs(State.OFF, cloud.machine("bob.site").state)

    def test_hypervisor_lost(self) -> None:
        """While the hypervisor cannot be asked, nothing is forgotten: nobody knows whether a VM is in use."""
        cloud = self.cloud({"forget_after": "1d"})
        cloud.ask()
        cloud.pump(600, 60)
        cloud.fleet.inventory.lost(cloud.backend, "gone")
        cloud.pump(3 * DAY, 3600)
        self.assertIn("alice.site", cloud.fleet.machines)

    def test_fault(self) -> None:
        """A fault of Jitsu in one look does not end the looking."""
        cloud = self.cloud({"forget_after": "1h"})
        cloud.ask()
        patch = self.patch(cloud.templates._forgetting, "_find_unused", lambda _: 1 / 0)
        cloud.pump(7200, 60)
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        patch.restore()
        cloud.pump(120, 60)
        self.assertNotIn("alice.site", cloud.fleet.machines)


class OrdinaryTests(TemplatesTestCase):
    """A VM that was made is one like all others."""

    def test_needs(self) -> None:
        """It needs what its template says: that starts before it, and is kept while it is up."""
        cloud = self.cloud({"needs": "db"}, vms="vms:\n  - {name: db, dns: db.jitsu.test, ip: 10.2.0.1, idle: 5}")
        self.assertIn("10.1.0.51", cloud.told(cloud.ask()))
        cloud.pump(30)
        self.assertEqual([State.UP, State.UP], [cloud.machine(name).state for name in ("db", "alice.site")])

    def test_needs_fail(self) -> None:
        """Where what it needs does not start, neither does it: it is forgotten, and the reason is told."""
        db = "vms:\n  - {name: db, dns: db.jitsu.test, ip: 10.2.0.1, faults: start}"
        cloud = self.cloud({"needs": "db"}, vms=db)
        self.refused(cloud.ask(), BootFailed, "needs db: the start fails")
        cloud.pump(1)
        self.assert_nothing(cloud)

    def test_lease(self) -> None:
        """It is stopped when nobody uses it, and started by the next question."""
        cloud = self.cloud({"idle": "20"})
        cloud.ask()
        cloud.pump(60)
        self.assertIs(State.OFF, cloud.machine().state)
        cloud.ask()
        self.assertIs(State.UP, cloud.machine().state)

    def test_modes(self) -> None:
        """Paused or saved it keeps its memory, and is forgotten from there."""
        for mode, state in (("pause", State.PAUSED), ("save", State.SAVED)):
            cloud = self.cloud({"idle": "20", "mode": mode})
            cloud.ask()
            cloud.pump(60)
            self.assertIs(state, cloud.machine().state)
            self.successResultOf(cloud.templates.forget("alice.site"))
            self.assert_nothing(cloud)

    def test_prepared(self) -> None:
        """It can be prepared for its next client, and forgotten then."""
        cloud = self.cloud({"idle": "20", "prepare": "true"})
        cloud.ask()
        cloud.pump(120)
        self.assertIs(State.PREPARED, cloud.machine().state)
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assert_nothing(cloud)

    def test_held(self) -> None:
        """The operator can hold it, and forget it all the same."""
        cloud = self.cloud({"idle": "20"})
        cloud.ask()
        cloud.fleet.operator.hold("alice.site")
        cloud.pump(60)
        self.assertIs(State.UP, cloud.machine().state)
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assert_nothing(cloud)

    def test_events(self) -> None:
        """Webhooks are told what happens to it, from its making to its end."""
        cloud = self.cloud()
        kinds: list[str] = []
        cloud.fleet.journal.on_event.append(lambda event: kinds.append(event.kind))
        cloud.ask()
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assertEqual("made", kinds[0])
        self.assertEqual("forgotten", kinds[-1])
        self.assertIn("activation", kinds)

    def test_secondaries(self) -> None:
        """Secondary servers are notified, and warm answers dropped, when it comes and when it goes."""
        cloud = self.cloud()
        cloud.ask()
        self.assertEqual([set()], cloud.changed)
        self.successResultOf(cloud.templates.forget("alice.site"))
        self.assertEqual([set(), {"alice.site"}], cloud.changed)
