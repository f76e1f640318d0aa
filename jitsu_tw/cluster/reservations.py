"""
The VMs that templates have made at any node, and their addresses. `rules.reservations` describes the facts.

A node makes a VM by creating all facts of the VM in one step, on condition that none of them exists. So even if several
nodes make VMs at one moment, no two VMs have one address, and no VM has two. One node forgets a VM: it first marks the
VM for all nodes. Then the other nodes drop the VM, and the marking node removes what the hypervisor has of the VM.
"""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from twisted.internet.defer import Deferred
from zope.interface import implementer

from jitsu_tw.cluster.background import begin
from jitsu_tw.cluster.facts import VM_FACTS
from jitsu_tw.errors import BootFailed, ClusterUnavailable
from jitsu_tw.ireservations import IReservations
from jitsu_tw.rules import reservations as rules
from jitsu_tw.rules.reservations import Reservation, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IClusterEvents, IMachine, IOwnership
    from jitsu_tw.networks import Address

#: How often a step is tried again because other nodes have just changed the same facts.
TRIES: Final = 10

#: The kinds of facts that tell that a VM is being used.
_IN_USE: Final = frozenset({"claims", "runs", "used"})


def _key(kind: str, name: str) -> str:
    """Return the key of the fact *kind* of the VM *name*."""
    return f"{kind}/{quote(name, safe='')}"


class _Taken:
    """The addresses that the facts name."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def __contains__(self, address: object) -> bool:
        return f"addresses/{address}" in self._state.coordinator.facts


@implementer(IReservations)
class Reservations:
    """
    The VMs of templates as the nodes of a cluster have agreed on them.

    It owns, and nobody else writes: which releases could not be told yet, and when this node has seen a VM in use.

    Attributes:
        taken: the addresses that are not free.
    """

    def __init__(
        self,
        state: ClusterState,
        ownership: IOwnership,
        clocks: Clocks,
        machines: Mapping[str, IMachine],
        events: IClusterEvents,
    ) -> None:
        """
        Begin without VMs.

        Args:
            state: has the facts.
            ownership: knows which node owns a VM.
            clocks: tell the time.
            machines: all VMs, by name.
            events: is told of VMs whose facts have changed.
        """
        self._state, self._ownership, self._wall = state, ownership, clocks.wall
        self._machines, self._events = machines, events
        self.taken = _Taken(state)
        self._released: dict[str, tuple[Address, ...]] = {}
        self._in_use: dict[str, float] = {}
        self._removers: dict[str, str] = {}
        self._removed: dict[str, None] = {}
        self._made: set[str] = set()
        self._waiting: defaultdict[str, list[Deferred[None]]] = defaultdict(list)

    # What is known (`ijitsu.IReservations`).

    @property
    def made(self) -> frozenset[str]:
        """The names of the VMs that are made, and not being removed."""
        return frozenset(self._made)

    def is_made(self, name: str) -> bool:
        """Return whether the VM *name* is made, and not being removed."""
        known = self._known(name)
        return known is not None and known.remover is None and known.removed is None

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Return the addresses of the VM *name*, which is made or being removed."""
        known = self._known(name)
        return () if known is None else known.ips

    def step(self, name: str, addresses: tuple[Address, ...] | None) -> Step:
        """Return what this node does about the VM *name*, which has these *addresses* here (`IReservations.step`)."""
        if self._state.lost or name in self._released:
            return Step.NOTHING  # all VMs are looked at when this node is connected; a fact is about to change
        known = self._known(name)
        return rules.step(known, addresses, removes=known is not None and self._removes(known))

    def _known(self, name: str) -> Reservation | None:
        return rules.reservation(self._fact(_key("made", name)), self._fact(_key("gone", name)))

    def _removes(self, known: Reservation) -> bool:
        """Return whether this node is to remove the VM: it has begun to, or the node that had begun is gone."""
        return known.remover == self._state.node or self._fact(f"nodes/{known.remover}") is None

    def _fact(self, key: str) -> str | None:
        return self._state.coordinator.facts.get(key)

    # Making.

    async def reserve(
        self, name: str, addresses: tuple[Address, ...]
    ) -> tuple[tuple[Address, ...], bool] | None:
        """Agree with the other nodes that the new VM *name* has *addresses* (`IReservations.reserve`)."""
        for _ in range(TRIES):
            known = self._known(name)
            if known is not None and known.remover is not None:
                raise BootFailed(f"{name}: {known.remover} is removing it; ask again when that is done")
            if known is not None and known.ips:
                return known.ips, False
            taken = {key: self._fact(key) for key in (f"addresses/{address}" for address in addresses)}
            if not {None, name}.issuperset(taken.values()):
                return None
            # The VM may be an old one, whose facts etcd has lost; its last use through other nodes is not known then.
            facts = {_key("made", name): rules.made(addresses, self._wall()), **dict.fromkeys(taken, name)}
            if await self._put(name, {_key("gone", name): None, **facts}, taken):
                return addresses, True
        raise ClusterUnavailable(f"{name}: other nodes change it again and again")

    async def _put(
        self, name: str, facts: Mapping[str, str | None], expected: Mapping[str, str | None] | None = None
    ) -> bool:
        """Change *facts*, unless the facts of the VM *name* have changed, or others are not as *expected*."""
        own = {key: self._fact(key) for key in (_key("made", name), _key("gone", name))}
        return await self._state.coordinator.put(facts, expected={**own, **(expected or {})})

    # Forgetting.

    async def retire(self, name: str, addresses: tuple[Address, ...], before: float = inf) -> bool:
        """Agree with the other nodes that this one removes the VM *name* (`IReservations.retire`)."""
        for _ in range(TRIES):
            known = self._known(name) or Reservation(addresses)
            if known.remover == self._state.node:
                return True
            if known.remover is not None and not self._removes(known):
                return False
            claim = {_key("claims", name): None} if before < inf else {}
            if known.removed is not None or known.used >= before or any(map(self._fact, claim)):
                return False
            facts = {_key("made", name): None, _key("gone", name): rules.going(known.ips, self._state.node)}
            if await self._put(name, facts, claim):
                return True
        raise ClusterUnavailable(f"{name}: other nodes change it again and again")

    async def left(self, name: str) -> None:
        """Wait until no other node owns the VM *name* (`IReservations.left`)."""
        while name in self._machines and self._ownership.is_others(self._machines[name]):
            waiting: Deferred[None] = Deferred()
            self._waiting[name].append(waiting)
            await waiting

    def release(self, name: str, addresses: tuple[Address, ...]) -> None:
        """Tell the other nodes that the VM *name* is removed: its *addresses* are free (`IReservations.release`)."""
        self._released[name] = addresses
        begin(Deferred.fromCoroutine(self._release(name, addresses)))

    async def _release(self, name: str, addresses: tuple[Address, ...]) -> None:
        for _ in range(TRIES):
            known = self._known(name)
            if known is None or known.remover != self._state.node:
                break  # another node has taken over
            keys = (f"addresses/{address}" for address in {*addresses, *known.ips})
            taken = {key: name for key in keys if self._fact(key) == name}
            facts = {_key("made", name): None, _key("gone", name): rules.gone(self._wall()), **dict.fromkeys(taken)}
            others = dict.fromkeys(_key(kind, name) for kind in VM_FACTS if kind != "claims")  # a claim ends by itself
            if await self._put(name, {**others, **facts, **self._old()}, taken):
                break
        self._released.pop(name, None)

    def _old(self) -> dict[str, str | None]:
        """Return the facts to remove of at most two VMs that are long gone; each release adds only one such fact."""
        old: dict[str, str | None] = {}
        for name in list(self._removed)[:2]:
            known = self._known(name)
            if known is None or known.removed is None:
                continue
            if known.removed < self._wall() - rules.KEPT or len(self._removed) > rules.MOST_KEPT:
                old[_key("gone", name)] = None
        return old

    # Use.

    def share_use(self, name: str, when: float, every: float) -> float:
        """Return when the VM *name* was last used, and tell the others of a later use (`IReservations.share_use`)."""
        known = self._known(name)
        if known is None or known.remover is not None or known.removed is not None:
            return when
        if self._state.lost:
            return self._wall()  # another node may use it
        when = max(when, self._in_use.get(name, 0.0))
        if when > known.used + every:
            begin(Deferred.fromCoroutine(self._put(name, {_key("made", name): rules.made(known.ips, when)})))
        return max(when, known.used + every)

    # What the coordinator tells.

    def told(self, path: str, value: str | None) -> None:
        """Handle a fact that has changed."""
        kind, _, name = path.partition("/")
        name = unquote(name)
        if kind == "made":
            self._note_made(name, value)
        elif kind == "gone":
            self._note_gone(name, value)
        elif kind == "nodes" and value is None:
            for one in [one for one, remover in self._removers.items() if remover == name]:
                self._events.made_changed(one)
        elif kind in _IN_USE and value is not None and name in self._made:
            self._in_use[name] = self._wall()
        if kind == "claims":
            for waiting in self._waiting.pop(name, ()):
                waiting.callback(None)

    def _note_made(self, name: str, value: str | None) -> None:
        if value is None:
            self._made.discard(name)
            self._in_use.pop(name, None)
        else:
            self._made.add(name)
        self._events.made_changed(name)

    def _note_gone(self, name: str, value: str | None) -> None:
        self._removers.pop(name, None)
        self._removed.pop(name, None)
        known = rules.reservation(None, value)
        if known is not None and known.remover is not None:
            self._removers[name] = known.remover
        elif known is not None:
            self._removed[name] = None
        self._events.made_changed(name)

    def connect(self) -> None:
        """Handle that the facts are known: look at all VMs of templates again, and tell what was released meanwhile."""
        for name, addresses in list(self._released.items()):
            self.release(name, addresses)
        own = {name for name, machine in self._machines.items() if machine.vm.template is not None}
        for name in sorted({*own, *self._made, *self._removers}):
            self._events.made_changed(name)

    def lose(self, reason: str) -> None:
        """Handle that the facts are not known any more: nobody knows when other nodes will have left a VM."""
        waiting = [one for ones in self._waiting.values() for one in ones]
        self._waiting.clear()
        for one in waiting:
            one.errback(ClusterUnavailable(reason))


@implementer(IReservations)
class LocalReservations:
    """The VMs of templates where this node is the only one: it alone makes and forgets them."""

    made: Final = frozenset[str]()
    taken: Final = frozenset["Address"]()

    def is_made(self, name: str) -> bool:  # noqa: ARG002
        """Return False: there are no others."""
        return False

    def addresses(self, name: str) -> tuple[Address, ...]:  # noqa: ARG002
        """Return (): no other node has made a VM."""
        return ()

    def step(self, name: str, addresses: tuple[Address, ...] | None) -> Step:  # noqa: ARG002
        """Return `Step.NOTHING`."""
        return Step.NOTHING

    async def reserve(
        self, name: str, addresses: tuple[Address, ...]  # noqa: ARG002
    ) -> tuple[tuple[Address, ...], bool] | None:
        """Return *addresses*, and True."""
        return addresses, True

    async def retire(self, name: str, addresses: tuple[Address, ...], before: float = inf) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    async def left(self, name: str) -> None:
        """Return: no other node can own the VM *name*."""

    def release(self, name: str, addresses: tuple[Address, ...]) -> None:
        """Return: no other node need know."""

    def share_use(self, name: str, when: float, every: float) -> float:  # noqa: ARG002
        """Return *when*."""
        return when

    def told(self, path: str, value: str | None) -> None:
        """Return: the facts are about hosts."""

    def connect(self) -> None:
        """Return: nothing was missed."""

    def lose(self, reason: str) -> None:
        """Return: there is no node to lose."""
