"""
The ownership of VMs in a cluster.

From its start to its end, the node that has the claim of a VM owns it: it alone starts, keeps and stops it. The other
nodes see it run, wait until the owner tells that it is ready, and tell the owner when it is used. Before the owner
stops it, they are told, so that none of them answers for it at that moment: a node that is asked then tells that the VM
is used, and it is kept. When the owner is gone, so is the claim, and the node that claims it next adopts the VM.

What a change leads to is decided in `rules.claims`. The facts are in `cluster_state`, recorded starts in `starts`, the
uses in `usage_reports`, the announcement of a stop in `stop_notice`.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.cluster.background import begin
from jitsu_tw.cluster.facts import VM_FACTS, read
from jitsu_tw.cluster.stop_notice import ASK_AGAIN, StopNotices
from jitsu_tw.cluster.usage_reports import UsageReporter
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import IOwnership
from jitsu_tw.rules import claims as rules
from jitsu_tw.rules.claims import Action, Owner, Phase, View
from jitsu_tw.rules.lifecycle import ACTIVATING, CALLING, DOWN, PREPARES, WANTED, Event, State
from jitsu_tw.settings import STARTS_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.cluster.hosts import Hosts
    from jitsu_tw.cluster.requests import Requests
    from jitsu_tw.cluster.starts import Starts
    from jitsu_tw.ijitsu import IClusterEvents, IMachine

#: Nodes that were cut off together are together again after this many seconds: the longest pause between two of their
#: tries (`cluster.coordinator.etcd.BACK_OFF`), and as much for the try and for what they then tell.
REUNION: Final = 4.0

#: Seconds until the next try to release the claim of a VM that this node has no more.
RELEASES_AGAIN: Final = 1.0

#: How many VMs of a node that is gone are adopted at once.
ADOPTS_AT_ONCE: Final = 16


def up(machines: Mapping[str, IMachine]) -> list[IMachine]:
    """Return those of *machines* that are up."""
    return [machine for machine in machines.values() if machine.state is State.UP]


@implementer(IOwnership)
class Claims:
    """What this node owns, and what it knows of the VMs of others."""

    follows: Final = frozenset(State)

    log = Logger()

    def __init__(
        self,
        state: ClusterState,
        starts: Starts,
        hosts: Hosts,
        requests: Requests,
        clocks: Clocks,
        machines: Mapping[str, IMachine],
        events: IClusterEvents,
    ) -> None:
        """
        Own nothing yet.

        Args:
            state: the facts.
            starts: those about when and where a VM was started.
            hosts: knows on which host a VM is seen.
            requests: what this node asks of others.
            clocks: tell the time.
            machines: all VMs, by name.
            events: is told.
        """
        self._state, self._starts, self._hosts, self._requests = state, starts, hosts, requests
        self._clocks, self._machines, self._events = clocks, machines, events
        self._usage = UsageReporter(state, machines, clocks, events)
        self._notices = StopNotices(state, clocks)
        self._seen: set[str] = set()
        self._waiting: dict[str, Deferred[bool]] = {}
        self._adopting: set[str] = set()
        self._adoptions = DeferredSemaphore(ADOPTS_AT_ONCE)
        self._tidying: dict[str, IDelayedCall] = {}
        self._steps: Final[Mapping[Action, Callable[[IMachine, str], object]]] = {
            Action.CLAIM: lambda machine, _: events.claim_free(machine.vm.name),
            Action.RELEASE: lambda machine, _: begin(self._release(machine)),
            Action.RELEASE_ALL: lambda _machine, _: self.release(up(machines), self.refusal),
            Action.ADOPT: lambda machine, _: self._adopt(machine),
            Action.TIDY: lambda machine, _: self._tidy(machine),
            Action.SETTLE: self._settle,
            Action.FORGET: lambda machine, _: self._forget_run(machine),
            Action.TELL_UP: lambda machine, _: begin(state.tell(machine, Phase.UP)),
            Action.TELL_ENDING: lambda machine, _: begin(state.tell(machine, Phase.ENDING)),
            Action.REPORT_USE: lambda _machine, _: self._usage.report(),
            Action.CHANGE_OWNER: lambda machine, _: self._owner_changed(machine),
            Action.OWNER_READY: lambda machine, _: self._end_wait(machine, ready=True),
            Action.OWNER_SILENT: lambda machine, _: self._end_wait(machine, ready=False),
            Action.OWNER_FAILED: lambda machine, why: machine.feed(Event.FAIL, why),
            Action.OWNER_STOPS: lambda machine, _: machine.feed(Event.OWNER_STOPS, "to be stopped"),
            Action.OWNER_KEEPS: lambda machine, _: machine.owner_keeps(),
            Action.REFUSE: lambda machine, why: machine.refuse(why, ClusterUnavailable),
        }

    async def stop(self) -> None:
        """Tell the other nodes what was used, for the last time."""
        for call in self._tidying.values():
            call.cancel()
        self._tidying.clear()
        await self._usage.stop()

    # Who owns a VM (`ijitsu.IOwnership`).

    @property
    def refusal(self) -> str:
        """Why this node starts nothing now; empty if it may."""
        return self._state.refusal

    @property
    def connected(self) -> bool:
        """Whether this node knows what the others know."""
        return not self._state.lost

    def is_own(self, machine: IMachine) -> bool:
        """Return whether this node has the claim of *machine*, and no other can have it; this looks at the clock."""
        return self._state.holds(machine)

    def owner(self, machine: IMachine) -> str | None:
        """Return the node that has the claim of *machine*; None if none has."""
        return self._state.owner(machine)

    def is_others(self, machine: IMachine) -> bool:
        """Return whether another node has the claim of *machine*."""
        return self.owner(machine) not in {None, self._state.node}

    def is_known(self, machine: IMachine) -> bool:
        """Return whether *machine*, which runs, was started by a node of the cluster."""
        claimed = self._state.get("claims", machine) is not None
        return claimed or self._state.is_started(machine) or machine.vm.name in self._seen

    def times(self, machine: IMachine) -> tuple[float, float]:
        """Return when *machine* was last used, through any node, and started, on the clock `now`."""
        started = self._starts.started(machine)
        used = max(float(self._state.get("used", machine) or 0.0), started)
        return self._usage.last(machine, self._clocked(used)), self._clocked(started)

    def _clocked(self, when: float) -> float:
        """Return *when*, in seconds since 1970, on the clock `now`; the clocks of other nodes may be ahead."""
        return self._clocks.now() - max(0.0, self._clocks.wall() - when)

    def _view(self, machine: IMachine, claim: Mapping[str, Any] | None = None) -> View:
        """Return what is known of *machine*; its claim is *claim* if that is given, else as it is now."""
        owner, phase = self._state.parse(read(self._state.get("claims", machine)) if claim is None else claim)
        return View(
            connected=self.connected,
            refuses=bool(self.refusal),
            state=machine.state,
            unsure=machine.is_unsure,
            holds=self.is_own(machine),
            owner=owner,
            phase=phase,
            started=self._state.is_started(machine),
            known=self.is_known(machine),
        )

    # Starts.

    @deferred
    async def claim(self, machine: IMachine) -> bool:
        """Claim *machine*, which is queued, for a start (`IOwnership.claim`)."""
        while True:
            if self.refusal:
                raise ClusterUnavailable(self.refusal)
            own = await self._state.claim(machine)
            if own or self._state.get("claims", machine) is not None:
                break
            # It was free again before this node was told that it was not.
        if own and machine.state not in WANTED | PREPARES | {State.PREPARED}:
            await self._release(machine)
        elif own and machine.state is State.PREPARING:
            self._record(machine)
        return own

    def _record(self, machine: IMachine) -> None:
        """Record that this node starts *machine*, unless its hosts choose one, and record it."""
        if not self._hosts.has(machine):
            begin(self._starts.record(machine))

    def prove(self, machine: IMachine) -> None:
        """
        Return if no other node can start *machine* at this moment.

        Raises:
            ClusterUnavailable: another node may.
        """
        if not self.is_own(machine):
            raise ClusterUnavailable(self._state.lost or "another node may own it by now")

    def owner_ready(self, machine: IMachine) -> Deferred[bool] | None:
        """Return a Deferred that fires when the owner node tells that *machine* is ready (`IOwnership.owner_ready`)."""
        view = self._view(machine)
        if not view.connected or view.owner is not Owner.OTHER:
            return None
        if view.phase in {Phase.UP, Phase.ENDING}:
            return succeed(True)  # noqa: FBT003
        name = machine.vm.name
        waiting: Deferred[bool] = Deferred(lambda _: self._forget_wait(name))
        self._waiting[name] = waiting
        return waiting

    def _forget_wait(self, name: str) -> None:
        self._waiting.pop(name, None)

    def _end_wait(self, machine: IMachine, *, ready: bool) -> None:
        waiting = self._waiting.pop(machine.vm.name, None)
        if waiting is not None:
            waiting.callback(ready)

    # Use, and the end.

    def note_use(self, machine: IMachine, when: float) -> None:
        """Note that *machine* was used here, at *when*, on the clock `now`; the others are told soon."""
        self._usage.note(machine, when)

    def announce_stop(self, machine: IMachine) -> float:
        """Announce the stop of *machine*, whose lease has ended (`IOwnership.announce_stop`)."""
        if not self.is_own(machine):
            return inf
        if not self._notices.is_given(machine) and self._clocks.now() >= self._state.connected_at + REUNION:
            begin(self._notices.give(machine))
        return 0.0 if self._notices.is_over(machine) else ASK_AGAIN

    def withdraw_stop(self, machine: IMachine) -> None:
        """Tell the other nodes that *machine* is kept, if its stop was announced."""
        if self._notices.drop(machine):
            begin(self._state.tell(machine, Phase.UP))

    def moved(self, machine: IMachine, old: State) -> None:  # noqa: ARG002
        """Handle that *machine* has entered another state."""
        if machine.state is State.STARTING:
            self._record(machine)
        self._requests.moved(machine)
        self._follow(machine, rules.entered(self._view(machine)))

    def forget(self, machine: IMachine) -> None:
        """Release the claim of *machine*, which is not in the configuration any more."""
        if self.owner(machine) == self._state.node:
            begin(Deferred.fromCoroutine(self._release(machine)).addErrback(self._release_later, machine))

    def _release_later(self, failure: Failure, machine: IMachine) -> None:
        """Try again to release the claim of *machine*, unless it is in the configuration again by then."""
        failure.trap(ClusterUnavailable)
        again = self._clocks.reactor.callLater(RELEASES_AGAIN, self._release_again, machine)
        self._tidying[machine.vm.name] = again

    def _release_again(self, machine: IMachine) -> None:
        del self._tidying[machine.vm.name]
        if machine.vm.name not in self._machines:
            self.forget(machine)

    def release(self, machines: Iterable[IMachine], why: str) -> None:
        """Release the claims of those *machines* that this node does not start or stop now: other nodes adopt them."""
        for machine in machines:
            if self.is_own(machine) and machine.state not in ACTIVATING | CALLING:
                self.log.info("{name}: handed over to the other nodes: {why}", name=machine.vm.name, why=why)
                self._notices.drop(machine)
                begin(self._state.remove(machine, "claims"))

    # What the other nodes tell.

    def told(self, path: str, value: str | None, before: str | None) -> None:  # noqa: ARG002
        """Handle a fact that has changed."""
        kind, _, name = path.partition("/")
        if kind == "nodes" and name == self._state.node and value is None and self.connected:
            self._enlist()  # what a process of this node before this one had told has ended with its claims
        machine = self._machines.get(unquote(name))
        if machine is None or kind not in VM_FACTS:
            return
        if kind in {"claims", "runs"}:
            self._events.speaker_changed(machine.vm.name)
        if kind == "claims":
            self._claim_changed(machine, value)
        elif kind == "runs" and value is None:
            self._hosts.seen_down(machine)
        elif kind == "used" and value is not None:
            self._events.used(machine.vm.name, self._clocked(float(value)))

    def _claim_changed(self, machine: IMachine, value: str | None) -> None:
        if value is not None and self.connected:
            self._seen.add(machine.vm.name)
        claim = read(value)
        actions = rules.claim_changed(self._view(machine, claim))
        self._follow(machine, actions, claim.get("why", "it did not start"))

    def connect(self) -> None:
        """Handle that the facts are known, for the first time or again: look at all VMs anew."""
        self._enlist()
        self._usage.start()
        self._usage.report()
        named = self._state.named
        for machine in list(self._machines.values()):
            if machine.state is State.UP:
                self._seen.discard(machine.vm.name)
            if machine.state not in DOWN or machine.vm.name in named:  # of the others there is nothing to settle
                self._follow(machine, rules.connected(self._view(machine)))

    def lose(self, reason: str) -> None:
        """Handle that the facts are not known any more: another node may own what this one did."""
        self._notices.clear()
        for machine in list(self._machines.values()):
            self._follow(machine, rules.lost(machine.state), reason)

    def _enlist(self) -> None:
        """Tell that this node lives."""
        begin(self._state.enlist(self._clocks.wall()).addCallback(self._enlisted))

    def _enlisted(self, own: bool) -> None:  # noqa: FBT001
        if not own:
            message = "another node is called {node}, or was so until a moment ago; each needs a name of its own"
            self.log.warn(message, node=self._state.node)

    # Carrying out what follows (`rules.claims`).

    def _follow(self, machine: IMachine, actions: Iterable[Action], why: str = "") -> None:
        """Carry *actions* out, in their order; *why* goes with those that tell clients."""
        for action in actions:
            self._steps[action](machine, why)

    def _settle(self, machine: IMachine, why: str = "") -> None:
        action = rules.settle(self._view(machine))
        if action is not None:
            self._steps[action](machine, why)

    async def _release(self, machine: IMachine) -> None:
        """Release the claim of *machine*, which does not run."""
        self._notices.drop(machine)
        if machine.state is State.FAILED:
            await self._state.tell(machine, Phase.FAILED, machine.reason)
            if machine.state not in DOWN:
                return  # it is to be started again
        await self._state.remove(machine, *(VM_FACTS if self._starts.forget(machine) else ("claims", "asks")))

    def _tidy(self, machine: IMachine) -> None:
        """Remove what is recorded of *machine*, which does not run, and has no owner, when its start is over."""
        name = machine.vm.name
        if self._starts.is_over(machine):
            begin(self.claim(machine))  # the node that gets the claim releases it, with all facts
        elif name not in self._tidying:
            self._tidying[name] = self._clocks.reactor.callLater(STARTS_WITHIN, self._tidy_later, machine)

    def _tidy_later(self, machine: IMachine) -> None:
        del self._tidying[machine.vm.name]
        self._settle(machine)

    def _adopt(self, machine: IMachine) -> None:
        """Adopt *machine*, which runs without an owner, when fewer than `ADOPTS_AT_ONCE` are being adopted."""
        if machine.vm.name not in self._adopting and not self.refusal and not self._hosts.is_blind(machine):
            self._adopting.add(machine.vm.name)
            begin(self._adoptions.run(self._adopt_now, machine))

    @deferred
    async def _adopt_now(self, machine: IMachine) -> None:
        """Claim *machine* if it is found running."""
        try:
            await machine.look("its owner is gone")
            if machine.state is State.UP and await self.claim(machine):
                await self._starts.adopt(machine, self._hosts.host_of(machine))
                self.log.info("{name}: its owner is gone; adopted", name=machine.vm.name)
                self._events.owner_changed(machine.vm.name)
                await self._state.tell(machine, Phase.UP)
        finally:
            self._adopting.discard(machine.vm.name)

    def _forget_run(self, machine: IMachine) -> None:
        self._seen.discard(machine.vm.name)
        self._usage.forget(machine)

    def _owner_changed(self, machine: IMachine) -> None:
        if machine.state is State.UP:
            self._events.owner_changed(machine.vm.name)
