"""
The ownership of VMs in a cluster.

From its start to its end, the node that has the claim of a VM owns it: it alone starts, keeps and stops it. The other
nodes see it run, wait until the owner tells that it is ready, and tell the owner when it is used. Before the owner
stops it, they are told, so that none of them answers for it at that moment: a node that is asked then tells that the VM
is used, and it is kept. When the owner is gone, so is the claim, and the node that claims it next adopts the VM.

The facts are in `cluster_state`, the uses in `usage_reports`, the announcement of a stop in `stop_notice`.
"""

from __future__ import annotations

import json
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw import __version__
from jitsu_tw.cluster.background import begin
from jitsu_tw.cluster.cluster_state import VM_FACTS, key, read
from jitsu_tw.cluster.stop_notice import ASK_AGAIN, StopNotices
from jitsu_tw.cluster.usage_reports import UsageReporter
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import IOwnership, Request
from jitsu_tw.rules.lifecycle import ACTIVATING, CALLING, DOWN, STOPS, WANTED, Event, State
from jitsu_tw.settings import STARTS_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.cluster.hosts import Hosts
    from jitsu_tw.ijitsu import IClusterEvents, IMachine

#: Nodes that were cut off together are together again after so many seconds: the longest pause between two of their
#: tries (`cluster.coordinator.etcd.BACK_OFF`), and as much for the try and for what they then tell.
REUNION: Final = 4.0

#: How many VMs of a node that is gone are adopted at once.
ADOPTS_AT_ONCE: Final = 16


@implementer(IOwnership)
class Claims:
    """What this node owns, and what it knows of the VMs of others."""

    log = Logger()

    def __init__(
        self,
        state: ClusterState,
        hosts: Hosts,
        clocks: Clocks,
        machines: Mapping[str, IMachine],
        events: IClusterEvents,
    ) -> None:
        """
        Own nothing yet.

        Args:
            state: the facts.
            hosts: knows on which host a VM is seen.
            clocks: tell the time.
            machines: all VMs, by name.
            events: is told.
        """
        self._state, self._hosts, self._clocks = state, hosts, clocks
        self._coordinator, self._machines, self._events = state.coordinator, machines, events
        self._usage = UsageReporter(state, machines, clocks, events)
        self._notices = StopNotices(self._say, clocks.reactor, clocks.now)
        self._seen: set[str] = set()
        self._waiting: dict[str, Deferred[bool]] = {}
        self._stopping: dict[str, list[Deferred[State]]] = {}
        self._adopting: set[str] = set()
        self._recorded: set[str] = set()
        self._tidying: dict[str, IDelayedCall] = {}
        self._saying: dict[str, DeferredLock] = {}

    # Beginning and end.

    def start(self) -> None:
        """Begin to tell what is used."""
        self._usage.start()

    async def stop(self) -> None:
        """Tell what was used, for the last time."""
        for call in self._tidying.values():
            call.cancel()
        self._tidying.clear()
        await self._usage.stop()

    # Who owns a VM.

    @property
    def refusal(self) -> str:
        """Why this node starts nothing now; empty if it may."""
        return self._state.refusal

    @property
    def connected(self) -> bool:
        """Whether this node knows what the others know."""
        return not self._state.lost

    def is_own(self, machine: IMachine) -> bool:
        """Return whether this node has the claim of *machine* at this moment; this looks at the clock."""
        return self._coordinator.holds(key("claims", machine))

    def owner(self, machine: IMachine) -> str | None:
        """Return the node that has the claim of *machine*; None if none has."""
        return self._state.owner(machine)

    def is_others(self, machine: IMachine) -> bool:
        """Return whether another node has the claim of *machine*."""
        return self.owner(machine) not in {None, self._state.node}

    def is_known(self, machine: IMachine) -> bool:
        """Return whether *machine*, which runs, was started by a node of the cluster."""
        claimed = self._state.get("claims", machine) is not None or self._state.run(machine) is not None
        return claimed or machine.vm.name in self._seen

    @property
    def owned(self) -> Counter[str]:
        """How many VMs each node owns."""
        # Of a hundred thousand claims, there are a few kinds.
        facts = self._coordinator.facts
        claims = Counter(value for key, value in facts.items() if key.startswith("claims/"))
        owned: Counter[str] = Counter()
        for value, number in claims.items():
            owned[read(value).get("node", "")] += number
        return owned

    def times(self, machine: IMachine) -> tuple[float, float]:
        """Return when *machine* was last used, through any node, and started, on the clock `now`."""
        started = float((self._state.run(machine) or {}).get("since", self._clocks.wall()))
        used = max(float(self._state.get("used", machine) or 0.0), started)
        return self._usage.last(machine, self._here(used)), self._here(started)

    def _here(self, when: float) -> float:
        """Return *when*, in seconds since 1970, on the clock `now`; other machines' clocks may be ahead."""
        return self._clocks.now() - max(0.0, self._clocks.wall() - when)

    def last_host(self, machine: IMachine) -> str | None:
        """Return the host that *machine* was started on; empty if it was on none, None if that is not known."""
        run = self._state.run(machine)
        return None if self._state.lost else "" if run is None else run.get("host")

    # Claims.

    def claim(self, machine: IMachine) -> Deferred[bool]:
        """Claim *machine*, which is queued, for a start (`IOwnership.claim`)."""
        return Deferred.fromCoroutine(self._claim(machine))

    async def _claim(self, machine: IMachine) -> bool:
        while True:
            if self.refusal:
                raise ClusterUnavailable(self.refusal)
            own = await self._coordinator.claim(key("claims", machine), self._claimed("starting"))
            if own or self._state.get("claims", machine) is not None:
                break
            # It was free again before this node was told that it was not.
        if own and machine.state not in WANTED:
            await self._release(machine)
        return own

    def _claimed(self, phase: str, why: str = "") -> str:
        return json.dumps({"node": self._state.node, "is": phase} | ({"why": why} if why else {}))

    def prove(self, machine: IMachine) -> None:
        """
        Return if no other node can start *machine* at this moment.

        Raises:
            ClusterUnavailable: another node may.
        """
        if not self.is_own(machine):
            reason = self._state.lost or "another node may own it by now"
            raise ClusterUnavailable(reason)

    def record_start(self, machine: IMachine, host: str = "") -> Deferred[bool]:
        """Agree that *machine* is started now, on *host*, and on no other; fires with False if it is not owned."""
        self._recorded.add(machine.vm.name)
        run = json.dumps({"since": round(self._clocks.wall(), 3), "host": host})
        return self._coordinator.put({key("runs", machine): run}, key("claims", machine))

    def seen_on(self, machine: IMachine, host: str) -> None:
        """Handle that *machine* runs on *host*: if this node owns it, and another host is recorded, record that one."""
        if host and self.is_own(machine) and self.last_host(machine) not in {host, None, ""}:
            begin(self.record_start(machine, host))

    async def _release(self, machine: IMachine) -> None:
        """Give up the claim of *machine*, which does not run."""
        self._notices.drop(machine)
        if machine.state is State.FAILED:
            await self._say(machine, "failed", machine.reason)
            if machine.state not in DOWN:
                return  # it is to be started again
        self._saying.pop(machine.vm.name, None)
        # What another node had begun to start, and this one has never seen, may come up yet.
        is_over = machine.vm.name in self._recorded or self._is_stale(machine)
        self._recorded.discard(machine.vm.name)
        kinds = VM_FACTS if is_over else ("claims", "asks")
        await self._coordinator.put({key(kind, machine): None for kind in kinds}, key("claims", machine))

    def _is_stale(self, machine: IMachine) -> bool:
        """Return whether the recorded start of *machine*, which does not run, is over by now."""
        return float((self._state.run(machine) or {}).get("since", 0.0)) + STARTS_WITHIN <= self._clocks.wall()

    def _say(self, machine: IMachine, phase: str, why: str = "") -> Deferred[bool]:
        """Tell the other nodes the *phase* of *machine*, which this one owns, in the order of the calls."""
        claim = key("claims", machine)
        lock = self._saying.setdefault(machine.vm.name, DeferredLock())
        return lock.run(self._coordinator.put, {claim: self._claimed(phase, why)}, claim)

    # What the machines do.

    def moved(self, machine: IMachine, old: State) -> None:  # noqa: ARG002
        """Handle that *machine* has entered another state."""
        name, state = machine.vm.name, machine.state
        if state in DOWN:
            self._seen.discard(name)
            self._usage.forget(machine)
        elif state is State.STARTING and not self._hosts.has(machine):  # else its hosts choose one, and record that
            begin(self.record_start(machine))
        elif state is State.UP and self.is_own(machine):
            begin(self._say(machine, "up"))
            if self.refusal:
                self.release_all()
        elif state in STOPS and self.is_own(machine):
            begin(self._say(machine, "ending"))
        if state not in STOPS | {State.UP, State.WAITING}:
            for stopping in self._stopping.pop(name, ()):
                stopping.callback(state)
        self._settle(machine)

    def forget(self, machine: IMachine) -> None:
        """Give up the claim of *machine*, which is not in the configuration any more."""
        if self.is_own(machine):
            begin(self._release(machine))

    def _settle(self, machine: IMachine) -> None:
        """Claim *machine* if it runs and no node owns it; give up its claim if it does not run."""
        if self._state.lost:
            return
        state, own = machine.state, self.is_own(machine)
        if state in DOWN and not machine.is_unsure:
            if own:
                begin(self._release(machine))
            elif self.owner(machine) is None and self._state.run(machine) is not None:
                self._tidy(machine)
        elif state is State.UP and self.owner(machine) is None and self.is_known(machine):
            self._adopt(machine)
        elif state is State.UP and self.is_others(machine) and self._state.phase(machine) == "ending":
            machine.feed(Event.OWNER_STOPS, "to be stopped")

    def _tidy(self, machine: IMachine) -> None:
        """Remove the facts of *machine*, which does not run, and has no owner, when its start is over."""
        name = machine.vm.name
        if self._is_stale(machine):
            begin(self._claim(machine))  # the node that gets the claim gives it up, with all facts
        elif name not in self._tidying:
            self._tidying[name] = self._clocks.reactor.callLater(STARTS_WITHIN, self._tidy_now, machine)

    def _tidy_now(self, machine: IMachine) -> None:
        del self._tidying[machine.vm.name]
        self._settle(machine)

    def _adopt(self, machine: IMachine) -> None:
        if machine.vm.name not in self._adopting and not self.refusal and not self._hosts.is_blind(machine):
            self._adopting.add(machine.vm.name)
            if len(self._adopting) <= ADOPTS_AT_ONCE:
                begin(self._adopt_all(machine))

    async def _adopt_all(self, machine: IMachine) -> None:
        """Adopt *machine*, and then those that wait for that, one after the other."""
        done: set[str] = set()
        try:
            while True:
                done.add(machine.vm.name)
                await machine.look("its owner is gone")
                if machine.state is State.UP and await self._claim(machine):
                    self._recorded.add(machine.vm.name)
                    host = self._hosts.host_of(machine)
                    if self._state.run(machine) is None:
                        await self.record_start(machine, host)
                    self.seen_on(machine, self._hosts.host_of(machine))
                    self.log.info("{name}: its owner is gone; adopted", name=machine.vm.name)
                    self._events.owner_changed(machine.vm.name)
                    await self._say(machine, "up")
                self._adopting.discard(machine.vm.name)
                waiting = self._adopting - done
                if len(self._adopting) < ADOPTS_AT_ONCE or not waiting:
                    return
                machine = self._machines[waiting.pop()]
        finally:
            self._adopting -= done

    def release_all(self) -> None:
        """Give up the claims of all VMs that are up: other nodes adopt them."""
        for machine in self._machines.values():
            if machine.state is State.UP and self.is_own(machine):
                begin(self._coordinator.put({key("claims", machine): None}, key("claims", machine)))

    def release_where(self, which: Callable[[IMachine], bool]) -> None:
        """Give up the claims of those VMs of *which* other nodes can see what they do, and this one cannot."""
        for machine in list(self._machines.values()):
            if which(machine) and self.is_own(machine) and machine.state not in ACTIVATING | CALLING:
                name = machine.vm.name
                self.log.warn("{name}: others can see what it does, and this node cannot; handed over", name=name)
                self._notices.drop(machine)
                self._saying.pop(machine.vm.name, None)
                claim = key("claims", machine)
                begin(self._coordinator.put({claim: None}, claim))

    def owner_ready(self, machine: IMachine) -> Deferred[bool] | None:
        """Return a Deferred that fires when the owner node tells that *machine* is ready (`IOwnership.owner_ready`)."""
        if self._state.lost or not self.is_others(machine):
            return None
        if self._state.phase(machine) in {"up", "ending"}:
            return succeed(True)  # noqa: FBT003
        name = machine.vm.name
        waiting: Deferred[bool] = Deferred(lambda _: self._forget_wait(name))
        self._waiting[name] = waiting
        return waiting

    def _forget_wait(self, name: str) -> None:
        self._waiting.pop(name, None)

    def _end_wait(self, name: str, *, ready: bool) -> None:
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            waiting.callback(ready)

    # Use.

    def note_use(self, machine: IMachine, when: float) -> None:
        """Note that *machine* was used here, at *when*, on the clock `now`; the others are told soon."""
        self._usage.note(machine, when)

    # The end.

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
            begin(self._say(machine, "up"))

    def request(self, machine: IMachine, request: Request, argument: str = "") -> Deferred[State]:
        """Ask the owner node of *machine*, another one, for something; after a stop, fire when it has stopped."""
        fact = {"do": request.value, "word": argument, "by": self._state.node}
        asked = self._coordinator.put({key("asks", machine): json.dumps(fact)})
        if request is not Request.STOP:
            return asked.addCallback(lambda _: machine.state)
        stopped: Deferred[State] = Deferred()
        self._stopping.setdefault(machine.vm.name, []).append(stopped)
        return asked.addCallback(lambda _: stopped)

    # What the other nodes tell.

    def told(self, kind: str, machine: IMachine, value: str | None) -> None:
        """Handle a fact of *machine* that has changed."""
        if kind == "claims":
            self._events.speaker_changed(machine.vm.name)
            self._claim_is(machine, value)
        elif kind == "runs":
            self._events.speaker_changed(machine.vm.name)
            if value is None:
                self._hosts.seen_down(machine)
        elif kind == "used" and value is not None:
            self._events.used(machine.vm.name, self._here(float(value)))

    def _claim_is(self, machine: IMachine, value: str | None) -> None:
        name, claim = machine.vm.name, read(value)
        if self._state.lost:
            return  # all VMs are looked at when this node is connected again
        if value is None:
            self._end_wait(name, ready=False)
            machine.owner_keeps()
            if machine.state is State.QUEUED:
                self._events.claim_free(name)
            else:
                self._settle(machine)
            return
        self._seen.add(name)
        if claim["node"] == self._state.node:
            return
        if claim["is"] == "failed" and machine.state is State.QUEUED:
            machine.feed(Event.FAIL, claim.get("why", "it did not start"))
        elif claim["is"] == "ending":
            machine.feed(Event.OWNER_STOPS, "to be stopped")
            self._usage.tell()
        elif claim["is"] == "up":
            self._end_wait(name, ready=True)
            machine.owner_keeps()
        if machine.state is State.UP:
            self._events.owner_changed(name)

    def connect(self) -> None:
        """Handle that the facts are known now: look at all VMs anew."""
        self._enlist()
        self._usage.tell()
        for machine in list(self._machines.values()):
            if machine.state is State.UP:
                self._seen.discard(machine.vm.name)
                self._events.owner_changed(machine.vm.name)
                if self.is_own(machine) and self._state.phase(machine) != "up":  # what was told meanwhile was lost
                    begin(self._say(machine, "up"))
            elif machine.state is State.QUEUED:
                self._events.claim_free(machine.vm.name)
            self._settle(machine)

    def node_left(self, name: str) -> None:
        """Handle that a node is gone; if it was a process of this node before this one, tell that this one lives."""
        if name == self._state.node and self.connected:
            self._enlist()

    def _enlist(self) -> None:
        """Tell that this node lives."""
        facts = {"since": round(self._clocks.wall(), 3), "version": __version__}
        enlisted = self._coordinator.claim(f"nodes/{self._state.node}", json.dumps(facts))
        begin(enlisted.addCallback(self._enlisted))

    def _enlisted(self, own: bool) -> None:  # noqa: FBT001
        if not own:
            message = "another node is called {node}, or was so until a moment ago; each needs a name of its own"
            self.log.warn(message, node=self._state.node)

    def lose(self) -> None:
        """Handle that the facts are not known any more: another node may own what this one did."""
        self._notices.clear()
        for name in list(self._waiting):
            self._end_wait(name, ready=False)
        for machine in list(self._machines.values()):
            if machine.state is State.QUEUED:
                machine.refuse(self._state.lost, ClusterUnavailable)
            elif machine.state is State.UP:
                self._events.owner_changed(machine.vm.name)
            machine.owner_keeps()
