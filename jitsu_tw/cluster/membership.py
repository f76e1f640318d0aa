"""This node among the others, and the hosts of its VMs: what they tell goes to whom it concerns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.backends.pool import Pool
from jitsu_tw.cluster.alone import Alone
from jitsu_tw.cluster.background import begin
from jitsu_tw.cluster.claims import Claims, up
from jitsu_tw.cluster.cluster_state import ClusterState
from jitsu_tw.cluster.facts import read
from jitsu_tw.cluster.fencing import Fencing
from jitsu_tw.cluster.hosts import Hosts
from jitsu_tw.cluster.migration import Migration
from jitsu_tw.cluster.placement import Placement
from jitsu_tw.cluster.requests import Requests
from jitsu_tw.cluster.reservations import LocalReservations, Reservations
from jitsu_tw.cluster.starts import LocalStarts, Starts
from jitsu_tw.coroutines import deferred
from jitsu_tw.ijitsu import HostStatus, ICluster, IPeer, NodeStatus, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IClusterEvents, ICoordinator, IMachine
    from jitsu_tw.rules.lifecycle import State
    from jitsu_tw.settings import Settings


@implementer(ICluster, IPeer)
class Membership:
    """
    The cluster as this node sees it; it may be its only node.

    Attributes:
        ownership: which node owns a VM.
        reservations: the VMs that templates have made.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        pool: Pool | None,
        coordinator: ICoordinator,
        clocks: Clocks,
        machines: Mapping[str, IMachine],
        events: IClusterEvents,
    ) -> None:
        """
        Connect nothing yet.

        Args:
            settings: of the fleet.
            pool: the hosts of VMs with `host`; None if there are none.
            coordinator: reaches the other nodes.
            clocks: tell the time.
            machines: all VMs, by name.
            events: is told what concerns the VMs.
        """
        self._settings, self._pool, self._now = settings, Pool({}) if pool is None else pool, clocks.now
        self._machines, self._events = machines, events
        self._state = ClusterState(coordinator)
        self._hosts = Hosts(self._pool, self._state)
        self._requests = Requests(self._state)
        self.ownership: Alone | Claims
        self.reservations: LocalReservations | Reservations
        self._starts: LocalStarts | Starts
        if coordinator.alone:
            self.ownership, self._starts, self.reservations = Alone(), LocalStarts(events), LocalReservations()
        else:
            self._starts = Starts(self._state, clocks)
            self.ownership = Claims(
                self._state, self._starts, self._hosts, self._requests, clocks, machines, events
            )
            self.reservations = Reservations(self._state, self.ownership, clocks, machines, events)
        self._fencing = Fencing(self._pool, self._state, self.ownership, machines, settings, clocks.reactor)
        placement = Placement(self._state, self._starts, self._fencing, machines, events, clocks.wall)
        self._pool.follow(placement)
        self._migration = Migration(self._pool, placement, machines, self.ownership, self._requests)

    # `ijitsu.ICluster`.

    def start(self) -> None:
        """Begin to connect to the other nodes."""
        self._state.coordinator.start(self)

    @deferred
    async def stop(self) -> None:
        """Tell the others the last uses, and give up all claims."""
        self._fencing.stop()
        await self.ownership.stop()
        await self._state.coordinator.stop()

    @property
    def problem(self) -> str:
        """Why nothing can be started through this node now; empty if it can."""
        return self.ownership.refusal or self._state.coordinator.trouble

    @property
    def nodes(self) -> list[NodeStatus]:
        """All nodes, by name."""
        state, owned = self._state, self._state.owned
        # Where this node is alone, nothing is claimed.
        own = owned[state.node] or sum(self.ownership.is_own(machine) for machine in up(self._machines))
        return [
            NodeStatus(
                name,
                name == state.node,
                (self.problem or None) if name == state.node else None,
                state.is_drained("nodes", name),
                own if name == state.node else owned[name],
                told.get("since"),
                told.get("version"),
            )
            for name, told in sorted({state.node: {}, **state.nodes}.items())
        ]

    @property
    def hosts(self) -> list[HostStatus]:
        """All hosts, in the order of the configuration."""
        pool = self._pool
        at = Counter(pool.at(machine.uuid) for machine in up(self._machines))
        return [
            HostStatus(
                name,
                "it is dead: fenced" if name in pool.fenced else pool.unreachable.get(name),
                self._state.is_drained("hosts", name),
                at[name],
            )
            for name in pool
        ]

    def request(self, machine: IMachine, request: Request, argument: str = "") -> Deferred[State]:
        """Ask the owner node of *machine*, another one, for something (`ICluster.request`)."""
        return self._requests.send(machine, request, argument)

    def publish(self, commit: str) -> None:
        """Tell the other nodes that *commit* is the configuration now."""
        begin(self._state.coordinator.put({"news": commit}))

    def host(self, machine: IMachine) -> str | None:
        """Return the host that *machine* runs, is paused or has its image on; None if it is on none."""
        return self._hosts.host_of(machine) or None

    def synjitsu(self, machine: IMachine) -> str | None:
        """Return where the Synjitsu for *machine* listens: that of its host, or of the first that it may be on."""
        settings = self._settings
        if not self._hosts.has(machine):
            return settings.synjitsu
        at = self._hosts.host_of(machine) or self._starts.last_host(machine) or machine.vm.hosts[0]
        return next((host.synjitsu for host in settings.hosts if host.name == at), None) or settings.synjitsu

    def drain(self, kind: str, name: str, *, undo: bool = False) -> Deferred[bool]:
        """Take a host or a node out of service, or back (`ICluster.drain`)."""
        return self._state.coordinator.put({f"drained/{kind}/{name}": None if undo else "by hand"})

    def move(self, machine: IMachine, host: str) -> Deferred[None]:
        """Move *machine*, which is up, to *host*, or to the best other one if that is empty."""
        return self._migration.move(machine, host)

    # What the coordinator tells (`ijitsu.IPeer`).

    def told(self, path: str, value: str | None, before: str | None) -> None:
        """Handle a fact that has changed."""
        kind, _, name = path.partition("/")
        self.ownership.told(path, value, before)
        self.reservations.told(path, value)
        if kind == "asks" and value is not None:
            self._requested(unquote(name), value)
        elif kind == "nodes" and value is None:
            self._events.node_left()
        elif kind == "drained" and value is not None:
            self._drained(*name.partition("/")[::2])
        elif kind == "news":
            self._events.configuration_published(value or "")
        elif kind == "dead":
            self._fencing.told(name, fenced=value is not None)

    def _drained(self, kind: str, name: str) -> None:
        """Give up what this node owns, if it is drained, or what it owns on a host that is."""
        if kind == "hosts":
            self._migration.empty(name)
        elif name == self._state.node:
            self.ownership.release(up(self._machines), self.ownership.refusal)

    def _requested(self, name: str, value: str) -> None:
        """Do for another node what it asks of the owner node of the VM *name*, if that is this one."""
        machine, fact = self._machines.get(name), read(value)
        if machine is None or not self.ownership.is_own(machine):
            return
        begin(self._state.remove(machine, "asks"))
        self.log.info("{name}: {by} asks to {what} it", name=name, by=fact.get("by"), what=fact.get("do"))
        request = Request(fact["do"])
        if request is Request.MOVE:
            self._migration.requested(machine, fact.get("word", ""))
        else:
            self._events.requested(name, request)

    def connected(self) -> None:
        """Handle that the facts are known, for the first time or again."""
        self._state.connect(self._now())
        self.ownership.connect()
        self.reservations.connect()

    def lost(self, reason: str) -> None:
        """Handle that the facts are not known any more, because of *reason*."""
        self._state.lose(reason)
        self.ownership.lose(reason)
        self.reservations.lose(reason)
