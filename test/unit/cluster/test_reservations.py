"""The VMs of templates in a cluster: made once, known and forgotten at all nodes."""

from __future__ import annotations

import json
from functools import partial
from ipaddress import ip_address
from random import Random
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.coordinator.memory import MemoryCoordinator
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.cluster.reservations import LocalReservations
from jitsu_tw.config.build import put_name
from jitsu_tw.config.source import RawValue
from jitsu_tw.config.vms import vm_from
from jitsu_tw.dns.lookup import Found, Zones
from jitsu_tw.dns.wire import Source, from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import BackendError, BootFailed, ClusterUnavailable, NoCapacity, StoreError
from jitsu_tw.ireservations import IReservations, ISharedMembers
from jitsu_tw.rules import reservations as rules
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.reservations import Reservation, Step, reservation, step
from jitsu_tw.settings import Settings
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.sync.config_sync import but_made
from jitsu_tw.sync.reconfigure import ConfigChange, LiveConfig
from jitsu_tw.sync.shared_members import SharedMembers, SharedTemplates
from jitsu_tw.vm.fleet import Fleet
from test.support import EPOCH, vm
from test.unit.cluster.test_claims import Cluster, Mortal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM

#: One that may have anything made.
CLIENT: Final = Source("192.0.2.1", 4711, proven=True)

#: In seconds.
DAY: Final = 86400.0

A, B = ip_address("10.1.0.1"), ip_address("10.1.0.2")


class Exists:
    """All names exist."""

    def exists(self, *_: Any) -> Deferred[bool]:
        """Return True."""
        return succeed(True)  # noqa: FBT003


class Node:
    """One node, with a template, and VMs that it has made before."""

    def __init__(
        self,
        name: str,
        cluster: TemplateCluster,
        *had: tuple[str, str],
        vms: tuple[VM, ...] = (),
        store: MemoryStore | None = None,
        **top: Any,
    ) -> None:
        self.name, self.cluster = name, cluster
        self.reactor = Mortal(cluster.clock)
        self.coordinator = MemoryCoordinator(name, cluster.table)
        clocks = Clocks(self.reactor, cluster.clock.seconds, cluster.wall)  # type: ignore[arg-type]
        settings = Settings(vms=vms, templates=cluster.settings.templates, starts_per_minute=0, **top)
        make_cluster = partial(Membership, settings, None, self.coordinator, clocks)
        self.store = store or MemoryStore(lasting=True)
        self.fleet = Fleet(settings, {("memory", ""): cluster.host}, self.store, clocks, make_cluster)
        self.zones = Zones([Zone.made_up(from_text("jitsu.test"), 60, [])])
        for one in (*vms, *settings.templates):
            for dns in one.dns:
                put_name(self.zones, dns, one)
        running = self.running = LiveConfig(settings, self.fleet, self.zones, lambda _: None)
        self.templates = SharedTemplates(running, self.fleet, self.store, clocks, Exists())  # type: ignore[arg-type]
        for label, ip in had:
            running.restore(self.templates.built(settings.templates[0], label, (ip_address(ip),)))
        self.fleet.start(dict(self.store.tree))
        self.templates.start()

    def make(self, label: str) -> list[Any]:
        """Ask for a name; return the list that gets what becomes of that."""
        ends: list[Any] = []
        self.templates.make("site", label, CLIENT).addBoth(ends.append)
        return ends

    def forget(self, label: str) -> list[Any]:
        """Forget a VM; return the list that gets what becomes of that."""
        ends: list[Any] = []
        self.templates.forget(f"{label}.site").addBoth(ends.append)
        return ends

    def ip(self, label: str) -> str | None:
        """Return the address that this node answers with."""
        found = self.zones.lookup(from_text(f"{label}.site.jitsu.test"), 1)
        if not isinstance(found, Found):
            return None
        (record,) = found.answer
        return str(ip_address(record.rdata))

    def has(self, label: str) -> bool:
        """Return whether this node has a VM of that label, in its fleet or in its state."""
        in_state = f"{label}.site" in self.store.tree.values()
        in_fleet = f"{label}.site" in self.fleet.machines
        assert in_state == in_fleet, (in_state, in_fleet)
        return in_state

    def state(self, label: str) -> State:
        """Return the state of a VM."""
        return self.fleet.machines[f"{label}.site"].state

    def kill(self) -> None:
        """End the node as `kill -9` does."""
        self.reactor.alive = False
        self.coordinator.die()
        self.cluster.host.watchers.remove(self.fleet.inventory)


class TemplateCluster(Cluster):
    """Nodes with a template."""

    def __init__(self, pool: str = "10.1.0.1-10.1.0.8", *, nodes: int = 3, **raw: str) -> None:
        super().__init__(nodes=0)
        words = {"name": "site", "dns": "*.site.jitsu.test", "pool": pool, "exists": "*", "backend": "memory", **raw}
        said = {key: [RawValue(value, "jitsu.yaml", 1)] for key, value in words.items()}
        self.settings = Settings(templates=(vm_from(said, Settings()),))  # type: ignore[arg-type]
        self.nodes: list[Any] = [Node(f"ns{number}", self) for number in range(1, nodes + 1)]
        self.run(0.1)

    def wall(self) -> float:
        """Return seconds since 1970."""
        return EPOCH + self.clock.seconds()

    def ips(self, label: str = "alice") -> set[str | None]:
        """Return what the nodes that live answer."""
        return {node.ip(label) for node in self.nodes if node.reactor.alive}

    def restart(self, at: int) -> None:
        """End a node as `kill -9` does, and start it again with its state."""
        node = self.nodes[at]
        if node.reactor.alive:
            node.kill()
        labels = {path.split("/")[2]: value.partition(".")[0] for path, value in node.store.tree.items()
                  if path.startswith("jitsu/vm/") and path.endswith("/config/name/0")}  # fmt: skip
        had = [(label, node.store.tree[f"jitsu/vm/{uuid}/ip"]) for uuid, label in labels.items() if label != "site"]
        self.nodes[at] = Node(node.name, self, *had, store=node.store)

    def kinds(self, *kinds: str) -> dict[str, str]:
        """Return the facts of these kinds."""
        return {key: value for key, value in self.table.facts.items() if key.partition("/")[0] in kinds}

    def later(self, seconds: float) -> None:
        """Let much time pass."""
        self.run(seconds, 30.0)


class MakingTests(SynchronousTestCase):
    """VMs are made."""

    def test_all_at_once(self) -> None:
        """The same name, asked of all nodes at one moment, is one VM with one address, started once."""
        cluster = TemplateCluster()
        ends = [node.make("alice") for node in cluster.nodes]
        cluster.run(2.0)
        self.assertEqual([[True]] * 3, ends)
        (ip,) = cluster.ips()
        self.assertEqual({f"addresses/{ip}": "alice.site"}, cluster.kinds("addresses"))
        self.assertEqual([ip], json.loads(cluster.table.facts["made/alice.site"])["ips"])
        self.assertEqual(1, len(cluster.host.guests))
        self.assertEqual(1, cluster.guest.boots)
        self.assertEqual({State.UP}, {node.state("alice") for node in cluster.nodes})

    def test_known_elsewhere(self) -> None:
        """What one node has made, all serve at once, and have in their states; another one's client starts it."""
        cluster = TemplateCluster()
        cluster.nodes[0].make("alice")
        cluster.run(0.2)
        self.assertEqual(1, len(cluster.ips()))
        self.assertTrue(all(node.has("alice") for node in cluster.nodes))
        cluster.nodes[0].fleet.operator.stop("alice.site")
        cluster.run(2.0)
        self.assertEqual(State.OFF, cluster.nodes[1].state("alice"))
        cluster.nodes[1].fleet.operator.start("alice.site")
        cluster.run(0.2)
        self.assertEqual("ns2", json.loads(cluster.table.facts["claims/alice.site"])["node"])
        self.assertEqual(2, cluster.guest.boots)

    def test_pool_of_two(self) -> None:
        """Two names at once, at two nodes, get the two addresses of a pool; a third gets none at any node."""
        for first, second in (("alice", "bob"), ("carol", "dave"), ("eve", "frank")):
            cluster = TemplateCluster("10.1.0.1-10.1.0.2")
            ends = cluster.nodes[0].make(first), cluster.nodes[1].make(second)
            cluster.run(1.0)
            self.assertEqual(([True], [True]), ends)
            self.assertEqual({"10.1.0.1", "10.1.0.2"}, cluster.ips(first) | cluster.ips(second))
            refused = [node.make("gina") for node in cluster.nodes]
            cluster.run(1.0)
            self.assertEqual([NoCapacity] * 3, [ends[0].type for ends in refused])
            self.assertEqual({None}, cluster.ips("gina"))
            self.assertEqual(2, len(cluster.kinds("made")))

    def test_two_pools(self) -> None:
        """The same name, asked at one moment of two nodes with different pools, is one VM with one address."""
        cluster = TemplateCluster("10.1.0.1-10.1.0.1", nodes=2)
        other = TemplateCluster("10.2.0.1-10.2.0.1", nodes=0).settings.templates[0]
        cluster.nodes[1].fleet.templates["site"] = other
        ends = [node.make("alice") for node in cluster.nodes]
        cluster.run(1.0)
        self.assertEqual([[True]] * 2, ends)
        self.assertEqual(1, len(cluster.ips()))
        self.assertEqual(1, len(cluster.kinds("addresses")))

    def test_killed_while_making(self) -> None:
        """When the node that makes a VM is killed at any moment, the others have it, once its address is its own."""
        for moment in range(12):
            cluster = TemplateCluster()
            cluster.nodes[0].make("alice")
            cluster.run(moment * 0.0005, 0.0005)
            cluster.nodes[0].kill()
            cluster.run(8.0)
            made = cluster.kinds("made", "addresses")
            self.assertEqual(len(made) == 2, cluster.ips() != {None}, moment)
            end = cluster.nodes[1].make("alice")
            cluster.run(1.0)
            self.assertEqual([True], end)
            self.assertEqual(1, len(cluster.ips() - {None}))

    def test_cut_off(self) -> None:
        """A node that is cut off makes nothing, and answers for what it knows; then it has what it has missed."""
        cluster = TemplateCluster()
        cluster.nodes[0].make("alice")
        cluster.run(0.2)
        cluster.nodes[2].coordinator.cut()
        cluster.run(6.0)
        (refused,) = cluster.nodes[2].make("bob")
        self.assertEqual(ClusterUnavailable, refused.type)
        cluster.nodes[1].make("carol")
        cluster.run(0.2)
        self.assertEqual((True, None), (len(cluster.ips()) == 1, cluster.nodes[2].ip("carol")))
        cluster.nodes[2].coordinator.heal()
        cluster.run(0.2)
        self.assertEqual(1, len(cluster.ips("carol")))

    def test_fails(self) -> None:
        """A VM whose first start fails is forgotten at all nodes, and its address is free."""
        cluster = TemplateCluster(faults="start")
        cluster.nodes[0].make("alice")
        cluster.run(2.0)
        self.assertFalse(any(node.has("alice") for node in cluster.nodes))
        self.assertEqual({}, cluster.kinds("made", "addresses"))
        self.assertEqual({}, cluster.host.guests)

    def test_state_not_written(self) -> None:
        """A VM that cannot be written into the state is not made: nothing of it is left at any node."""
        cluster = TemplateCluster()
        self.patch(cluster.nodes[0].store, "write", self.full)
        ends = cluster.nodes[0].make("alice")
        cluster.run(0.5)
        self.assertEqual([BackendError], [end.type for end in ends])
        self.assertEqual({None}, cluster.ips())
        self.assertEqual({}, cluster.kinds("made", "addresses"))

    def full(self, *_: object) -> None:
        """Fail."""
        raise StoreError("the disk is full")

    def test_no_template(self) -> None:
        """A node without the template leaves the VM alone, and says so once; it has the VM when it has the template."""
        cluster = TemplateCluster()
        late = cluster.nodes[2]
        template = late.fleet.templates.pop("site")
        cluster.nodes[0].make("alice")
        cluster.run(0.2)
        self.assertFalse(late.has("alice"))
        cluster.later(300.0)
        (error,) = self.logged_errors(late)
        self.assertIn("no template 'site'", error)
        late.fleet.templates["site"] = template
        cluster.later(120.0)
        self.assertTrue(late.has("alice"))

    def logged_errors(self, node: Node) -> list[str]:
        """Return why a node could not take VMs."""
        return list(node.templates._members._refused.values())

    def test_name_of_the_configuration(self) -> None:
        """A node whose configuration has a VM of the name, the address or the DNS name keeps that, and says so."""
        for other in (
            vm("alice.site"), vm("www", ip=(A,)), vm("www", dns=(from_text("alice.site.jitsu.test"),)),
        ):  # fmt: skip
            cluster = TemplateCluster("10.1.0.1-10.1.0.1")
            odd = Node("odd", cluster, vms=(other,))
            cluster.run(0.2)
            cluster.nodes[0].make("alice")
            cluster.run(0.2)
            self.assertEqual(1, len(self.logged_errors(odd)))
            self.assertEqual([other], [machine.vm for machine in odd.fleet.machines.values()])
            self.assertEqual({"10.1.0.1"}, cluster.ips())

    def test_dry_run(self) -> None:
        """A node in a dry run has none of it, and forgets nothing."""
        cluster = TemplateCluster()
        dry = Node("dry", cluster, ("bob", "10.1.0.7"), dry_run=True)
        cluster.run(0.2)
        cluster.nodes[0].make("alice")
        cluster.run(0.2)
        self.assertEqual(["bob.site"], [*dry.fleet.machines])
        self.assertEqual({"made/alice.site"}, set(cluster.kinds("made")))

    def test_other_pool(self) -> None:
        """A node with another pool has the VM with the address that it was given."""
        cluster = TemplateCluster("10.1.0.1-10.1.0.1")
        there = cluster.settings
        cluster.settings = TemplateCluster("10.2.0.1-10.2.0.1", nodes=0).settings
        odd = Node("odd", cluster)
        cluster.settings = there
        cluster.run(0.2)
        cluster.nodes[0].make("alice")
        cluster.run(0.2)
        self.assertEqual("10.1.0.1", odd.ip("alice"))


class ForgettingTests(SynchronousTestCase):
    """VMs are forgotten."""

    def gone(self, cluster: TemplateCluster) -> None:
        """Assert that nothing of the VM is left at a node that lives, at the hypervisor, or among the facts."""
        self.assertEqual({None}, cluster.ips())
        self.assertFalse(any(node.has("alice") for node in cluster.nodes if node.reactor.alive))
        self.assertEqual({}, cluster.host.guests)
        self.assertEqual({}, cluster.kinds("made", "addresses", "claims", "runs", "used", "asks"))

    def made(self, cluster: TemplateCluster, at: int = 0) -> None:
        """Make a VM at a node."""
        cluster.nodes[at].make("alice")
        cluster.run(0.5)
        self.assertEqual(1, len(cluster.ips() - {None}))

    def test_by_another_node(self) -> None:
        """What is forgotten at one node, and runs at another's order, is stopped and gone at all."""
        cluster = TemplateCluster()
        self.made(cluster, at=0)
        ends = cluster.nodes[1].forget("alice")
        cluster.run(3.0)
        self.assertEqual([None], ends)
        self.gone(cluster)
        self.assertEqual({"gone/alice.site"}, set(cluster.kinds("gone")))

    def test_asked_for_again(self) -> None:
        """A name that is asked for while its VM is being removed is made anew after that, not before."""
        cluster = TemplateCluster()
        self.made(cluster)
        cluster.nodes[1].forget("alice")
        cluster.run(0.005, 0.001)
        (refused,) = cluster.nodes[2].make("alice")
        self.assertEqual(BootFailed, refused.type)
        cluster.run(15.0)
        self.gone(cluster)
        ends = cluster.nodes[2].make("alice")
        cluster.run(1.0)
        self.assertEqual([True], ends)
        self.assertEqual(1, len(cluster.ips()))
        self.assertEqual({}, cluster.kinds("gone"))

    def test_two_at_once(self) -> None:
        """Forgotten at two nodes at one moment, it is removed by one of them."""
        cluster = TemplateCluster()
        self.made(cluster)
        for node in cluster.nodes:
            node.forget("alice")
        cluster.run(3.0)
        self.gone(cluster)

    def test_was_away(self) -> None:
        """A node that was cut off when a VM was forgotten drops it; one that was made anew meanwhile it has anew."""
        for anew in (False, True):
            cluster = TemplateCluster()
            self.made(cluster)
            away = cluster.nodes[2]
            away.coordinator.cut()
            cluster.run(6.0)
            cluster.nodes[0].forget("alice")
            cluster.run(5.0)
            if anew:
                cluster.table.change({f"addresses/{away.ip('alice')}": "bob.site"})  # its address is another's now
                cluster.run(0.1)
                cluster.nodes[0].make("alice")
                cluster.run(0.5)
            self.assertTrue(away.has("alice"))
            away.coordinator.heal()
            cluster.run(3.0)
            self.assertEqual(anew, away.has("alice"))
            self.assertEqual(1, len(cluster.ips()))

    def test_was_down(self) -> None:
        """A node that did not run when a VM was forgotten, and defines it when it starts, leaves nothing of it."""
        cluster = TemplateCluster()
        self.made(cluster)
        cluster.nodes[2].kill()
        cluster.nodes[0].forget("alice")
        cluster.run(8.0)
        self.assertEqual({}, cluster.host.guests)
        cluster.restart(2)
        self.assertEqual(1, len(cluster.host.guests))
        cluster.run(1.0)
        self.gone(cluster)

    def test_order_of_facts(self) -> None:
        """It does not matter which of the facts that change in one step is told first."""
        for turn in (1, -1):
            cluster = TemplateCluster(nodes=1)
            self.made(cluster)
            cluster.nodes[0].fleet.operator.stop("alice.site")
            cluster.run(3.0)
            ips = [ip_address(ip) for ip in json.loads(cluster.table.facts["made/alice.site"])["ips"]]
            facts = [("gone/alice.site", rules.going(ips, "ns9")), ("made/alice.site", None)]
            cluster.table.change(dict(facts[::turn]))
            cluster.run(1.0)
            self.gone(cluster)

    def test_other_address(self) -> None:
        """A node that ends the removal of a VM frees its address, though it had the VM with another one itself."""
        cluster = TemplateCluster(nodes=0)
        cluster.table.facts |= {"gone/alice.site": rules.going([A], "ns9"), "addresses/10.1.0.1": "alice.site"}
        cluster.nodes = [Node("ns1", cluster, ("alice", "10.1.0.2"))]
        cluster.run(1.0)
        self.gone(cluster)

    def test_retire(self) -> None:
        """A VM is not removed for being unused if it was used later than is known here, or has an owner."""
        cluster = TemplateCluster()
        self.made(cluster, at=0)
        self.assertEqual([False], self.retired(cluster, cluster.wall()))
        cluster.nodes[0].fleet.operator.stop("alice.site")
        cluster.run(1.0)
        used = json.loads(cluster.table.facts["made/alice.site"])["used"]
        self.assertEqual([False], self.retired(cluster, used))
        self.assertEqual([True], self.retired(cluster, used + 0.001))

    def retired(self, cluster: TemplateCluster, before: float) -> list[bool]:
        """Return whether the second node may remove the VM, if it was not used since *before*."""
        ends: list[bool] = []
        reservations = cluster.nodes[1].fleet.cluster.reservations
        Deferred.fromCoroutine(reservations.retire("alice.site", (A,), before)).addCallback(ends.append)
        cluster.run(0.1)
        return ends

    def test_remover_killed(self) -> None:
        """When the node that removes a VM is killed at any moment, another one ends that."""
        for moment in range(30):
            cluster = TemplateCluster()
            self.made(cluster, at=1)
            cluster.nodes[0].forget("alice")
            cluster.run(moment * 0.0005, 0.0005)
            cluster.nodes[0].kill()
            cluster.run(10.0)
            if not cluster.kinds("made"):
                self.gone(cluster)

    def test_remover_comes_back(self) -> None:
        """A node that was killed while it removed a VM removes it when it is back, be the VM in its state or not."""
        for had in ((("alice", "10.1.0.1"),), ()):
            cluster = TemplateCluster("10.1.0.1-10.1.0.1", nodes=1)
            cluster.table.facts |= {
                "gone/alice.site": rules.going([A], "ns9"), "addresses/10.1.0.1": "alice.site",
            }  # fmt: skip
            cluster.nodes = [Node("ns9", cluster, *had)]
            cluster.run(1.0)
            self.gone(cluster)

    def test_cut_off_while_removing(self) -> None:
        """A node that is cut off while it waits for the owner's stop goes on when it is connected again."""
        cluster = TemplateCluster(mode="shutdown")
        self.made(cluster, at=1)
        cluster.nodes[0].coordinator.cut()
        ends = cluster.nodes[0].forget("alice")
        cluster.run(7.0)
        self.assertEqual([ClusterUnavailable], [end.type for end in ends])
        self.assertNotIn("gone/alice.site", cluster.table.facts)
        cluster.nodes[0].coordinator.heal()
        cluster.run(1.0)
        cluster.nodes[0].forget("alice")
        cluster.run(3.0)
        self.gone(cluster)

    def test_cut_off_after_mark(self) -> None:
        """A node that is cut off when it has begun to forget a VM has it anew, if others have made it anew."""
        for anew in (False, True):
            cluster = TemplateCluster()
            self.made(cluster, at=1)
            ends = cluster.nodes[0].forget("alice")
            cluster.run(0.0025, 0.0005)
            self.assertIn("gone/alice.site", cluster.table.facts)
            cluster.nodes[0].coordinator.cut()
            cluster.run(7.0)
            self.assertEqual([ClusterUnavailable], [end.type for end in ends])
            if anew:
                cluster.nodes[2].make("alice")
                cluster.run(1.0)
            cluster.nodes[0].coordinator.heal()
            cluster.run(1.0)
            if anew:
                self.assertEqual(1, len(cluster.ips()))
                self.assertEqual(1, len(cluster.host.guests))
            else:
                self.gone(cluster)

    def test_late_removal(self) -> None:
        """A node that could not remove a VM in time leaves alone the one that others have made anew meanwhile."""
        cluster = TemplateCluster()
        self.made(cluster, at=1)
        refuses = self.patch(cluster.host, "remove", lambda _: fail(BackendError("not now")))
        cluster.nodes[0].forget("alice")
        cluster.run(3.0)
        cluster.nodes[0].coordinator.cut()
        refuses.restore()
        cluster.run(8.0)
        cluster.nodes[1].make("alice")
        cluster.run(1.0)
        cluster.nodes[1].fleet.operator.stop("alice.site")
        guest = cluster.guest
        for _ in range(2):  # while it is cut off, and then
            cluster.later(90.0)
            cluster.run(1.0)
            self.assertIs(guest, cluster.guest)
            cluster.nodes[0].coordinator.heal()
            cluster.run(1.0)
        self.assertEqual(1, len(cluster.ips()))

    def test_release_not_told(self) -> None:
        """What was removed by a node that is cut off then is told when it is connected again."""
        cluster = TemplateCluster(nodes=1)
        self.made(cluster)
        (node,) = cluster.nodes
        dismiss = node.fleet.dismiss

        def cut(*args: Any, **kw: Any) -> Any:
            node.coordinator.cut()
            return dismiss(*args, **kw)

        self.patch(node.fleet, "dismiss", cut)
        node.forget("alice")
        cluster.run(7.0)
        self.assertIn("by", json.loads(cluster.table.facts["gone/alice.site"]))
        node.coordinator.heal()
        cluster.run(0.5)
        self.gone(cluster)
        self.assertIn("at", json.loads(cluster.table.facts["gone/alice.site"]))

    def test_by_a_request(self) -> None:
        """A VM that a request has removed at one node, its owner or not, is gone at all."""
        for at in range(2):
            cluster = TemplateCluster()
            self.made(cluster)
            node = cluster.nodes[at]
            node.store.write({f"jitsu/vm/{cluster.guest.vm.uuid}": None}, "")
            node.running.lock.run(node.running.apply, ConfigChange(removed=("alice.site",)))
            cluster.run(3.0)
            self.gone(cluster)

    def start_and_stop(self, cluster: TemplateCluster, at: int) -> None:
        """Start the VM at a node, and stop it."""
        operator = cluster.nodes[at].fleet.operator
        operator.stop("alice.site")
        cluster.run(0.5)
        self.assertEqual({State.OFF}, {node.state("alice") for node in cluster.nodes})
        operator.start("alice.site")
        cluster.run(0.5)
        operator.stop("alice.site")
        cluster.run(0.5)

    def test_by_git(self) -> None:
        """What other nodes share by git removes no VM that is made, as the nodes know: it may be of an earlier one."""
        change = ConfigChange(removed=("alice.site", "www"))
        self.assertEqual(ConfigChange(removed=("www",)), but_made(change, {"alice.site", "bob.site"}))

    def test_used_elsewhere(self) -> None:
        """A VM is kept while it is used through any node, and forgotten when it is used through none."""
        cluster = TemplateCluster(forget_after="8h", idle="60")
        self.made(cluster, at=0)
        for _ in range(12):
            cluster.later(2 * 3600.0)
            self.start_and_stop(cluster, at=2)
        cluster.later(7 * 3600.0)
        self.assertTrue(all(node.has("alice") for node in cluster.nodes))
        cluster.later(2.2 * 3600.0)
        cluster.run(1.0)
        self.gone(cluster)

    def test_use_is_told_rarely(self) -> None:
        """The use of a VM is told to the others once in an eighth of the time that it is kept for."""
        cluster = TemplateCluster(forget_after="8h", idle="60")
        self.made(cluster)
        told: list[str] = []
        change = cluster.table.change

        def changed(facts: Mapping[str, str | None], *args: Any) -> None:
            told.extend(key for key in facts if key.startswith("made/"))
            change(facts, *args)

        self.patch(cluster.table, "change", changed)
        for _ in range(16):
            cluster.later(900.0)
            self.start_and_stop(cluster, at=0)
        self.assertIn(len(told), {3, 4, 5})

    def test_facts_lost(self) -> None:
        """When etcd has lost its data, nothing is forgotten: the nodes tell each other what they have."""
        cluster = TemplateCluster()
        self.made(cluster)
        (ip,) = cluster.ips()
        for node in cluster.nodes:
            node.coordinator.cut()
        cluster.run(6.0)
        cluster.table.facts.clear()
        cluster.table.owners.clear()
        for node in cluster.nodes:
            node.coordinator.heal()
        cluster.run(5.0)
        self.assertEqual({ip}, cluster.ips())
        self.assertEqual({f"addresses/{ip}": "alice.site"}, cluster.kinds("addresses"))

    def test_conflict(self) -> None:
        """
        Of two VMs with one address, as two nodes have them that have never met, the first that is told of is served.

        The other one is not, and its node says so. When the first is forgotten, the other is served; when it is
        forgotten itself, it is made anew.
        """
        for forgets in ("first", "second"):
            cluster = TemplateCluster("10.1.0.1-10.1.0.2", nodes=0)
            first = Node("ns1", cluster, ("alice", "10.1.0.1"))
            cluster.run(0.2)
            second = Node("ns2", cluster, ("bob", "10.1.0.1"))
            cluster.nodes = [first, second]
            cluster.run(0.2)
            self.assertEqual({"10.1.0.1"}, cluster.ips("alice"))
            self.assertEqual({None}, cluster.ips("bob"))
            (problem,) = second.fleet.problems_of(second.fleet.machines["bob.site"])
            self.assertIn("another VM's", problem)
            if forgets == "first":
                first.forget("alice")
                cluster.run(1.0)
                cluster.later(90.0)
                cluster.run(1.0)
                self.assertEqual({"10.1.0.1"}, cluster.ips("bob"))
                self.assertEqual([], second.fleet.problems_of(second.fleet.machines["bob.site"]))
            else:
                second.forget("bob")
                cluster.run(1.0)
                first.make("bob")
                cluster.run(1.0)
                self.assertEqual({"10.1.0.2"}, cluster.ips("bob"))
                self.assertEqual({"10.1.0.1"}, cluster.ips("alice"))


class RulesTests(SynchronousTestCase):
    """What the facts say, and what follows."""

    def test_facts(self) -> None:
        """What is written is read; what others write that is none of it says nothing."""
        self.assertEqual(Reservation((A, B), 5.0), reservation(rules.made([A, B], 5.0), None))
        self.assertEqual(Reservation((A,), remover="ns1"), reservation(None, rules.going([A], "ns1")))
        self.assertEqual(Reservation(removed=7.0), reservation(None, rules.gone(7.0)))
        for odd in (None, "", "nothing", "[]", "7", "{}", '{"ips": []}', '{"ips": ["x"]}', '{"ips": 7}', '{"at": []}',
                    '{"ips": ["10.0.0.1"], "used": "x"}'):
            self.assertIsNone(reservation(odd, odd), odd)

    def test_steps(self) -> None:
        """Each case of what the nodes know, and what this node has."""
        here: tuple[Address, ...] = (A,)
        made, other = Reservation((A,)), Reservation((B,))
        going = Reservation((A,), remover="ns1")
        removed = Reservation(removed=1.0)
        nothing = Step.NOTHING
        table = (
            (None, nothing, Step.PUBLISH), (made, Step.ADOPT, nothing), (other, Step.ADOPT, Step.REPLACE),
            (going, nothing, Step.DROP), (removed, nothing, Step.DROP),
        )  # fmt: skip
        for known, without, with_it in table:
            self.assertEqual(without, step(known, None, removes=False), known)
            self.assertEqual(with_it, step(known, here, removes=False), known)
        for addresses in (None, here):
            self.assertEqual(Step.REMOVE, step(going, addresses, removes=True))

    def test_old(self) -> None:
        """What was removed is remembered for a while, and of no more than so many VMs."""
        self.patch(rules, "MOST_KEPT", 3)
        cluster = TemplateCluster(nodes=1)
        (node,) = cluster.nodes
        for number in range(6):
            node.make(f"n{number}")
            cluster.run(0.2)
            node.forget(f"n{number}")
            cluster.run(2.0)
        self.assertEqual({f"gone/n{number}.site" for number in range(2, 6)}, set(cluster.kinds("gone")))
        cluster.later(31 * DAY)
        node.make("alice")
        cluster.run(0.2)
        node.forget("alice")
        cluster.run(2.0)
        self.assertEqual(3, len(cluster.kinds("gone")))

    def test_interfaces(self) -> None:
        """The classes have what their interfaces say."""
        cluster = TemplateCluster(nodes=1)
        self.assertTrue(IReservations.providedBy(cluster.nodes[0].fleet.cluster.reservations))
        self.assertTrue(IReservations.implementedBy(LocalReservations))
        self.assertTrue(ISharedMembers.implementedBy(SharedMembers))


class RandomTests(SynchronousTestCase):
    """Nodes make, use and forget VMs, and are killed and cut off, at random moments."""

    #: How many histories there are, and how many steps each has.
    HISTORIES = 8
    STEPS = 25

    def test_histories(self) -> None:
        """When all are well again, all have the same VMs, each with its own address, and nothing else is left."""
        for seed in range(self.HISTORIES):
            self.history(Random(seed), seed)

    def history(self, random: Random, seed: int) -> None:
        """Have one history, and look at what is there in the end."""
        cluster = TemplateCluster("10.1.0.1-10.1.0.3")
        for _ in range(self.STEPS):
            at = random.randrange(3)
            node, label = cluster.nodes[at], random.choice(("alice", "bob", "carol", "dave"))
            match random.choice(("make", "make", "make", "forget", "stop", "kill", "cut", "heal")):
                case "make":
                    node.make(label)
                case "forget":
                    node.forget(label)
                case "stop" if f"{label}.site" in node.fleet.machines:
                    node.fleet.operator.stop(f"{label}.site").addErrback(lambda _: None)
                case "kill":
                    cluster.restart(at)
                case "cut" if node.coordinator._reached:
                    node.coordinator.cut()
                case "heal":
                    node.coordinator.heal()
            cluster.run(random.choice((0.001, 0.003, 0.01, 0.1, 0.5, 4.0)), random.choice((0.0005, 0.01)))
            self.one_each(cluster, seed)
        for node in cluster.nodes:
            node.coordinator.heal()
        cluster.run(12.0)
        for _ in range(3):  # what runs without an owner is adopted first, and stopped when its lease ends
            cluster.later(120.0)
            cluster.run(6.0)
        self.same(cluster, seed)

    def one_each(self, cluster: TemplateCluster, seed: int) -> None:
        """Assert that no two VMs that are made have one address."""
        ips = [ip for value in cluster.kinds("made").values() for ip in json.loads(value)["ips"]]
        self.assertEqual(len(ips), len(set(ips)), seed)
        self.assertLessEqual({*ips}, {key.partition("/")[2] for key in cluster.kinds("addresses")}, seed)

    def same(self, cluster: TemplateCluster, seed: int) -> None:
        """Assert that all nodes, and the hypervisor, have what the facts say."""
        made = {key[5:-5]: json.loads(value)["ips"][0] for key, value in cluster.kinds("made").items()}
        self.assertEqual({f"addresses/{ip}": f"{label}.site" for label, ip in made.items()}, cluster.kinds("addresses"))
        for node in cluster.nodes:
            labels = {label: node.ip(label) for label in ("alice", "bob", "carol", "dave") if node.has(label)}
            self.assertEqual(made, labels, (seed, node.name))
        guests = {one.vm.name for one in cluster.host.guests.values()}
        self.assertEqual({f"{label}.site" for label in made}, guests, seed)
        self.assertEqual([], [key for key, value in cluster.kinds("gone").items() if "by" in json.loads(value)], seed)
