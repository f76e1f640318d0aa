"""
Whose a VM is when several of us serve a zone, and what all of us know of it.

From its start to its end a VM belongs to the one of us who has its claim: only that one starts, keeps and stops it.
The others see it run, wait for its owner's word that it is ready, and tell when they were asked for it. They are told
before it is stopped, so that nobody answers for it at that moment: who is asked then says so, and it goes on. When its
owner is gone, so is the claim, and whoever gets it next adopts the VM. What we agree on is in `cluster_state`, what we
tell of use in `usage_reports`, and how an end is told in `stop_notice`.

Where there is only one of us, everything is ours, and nobody is told anything.
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw import __version__
from jitsu_tw.cluster.cluster_state import VM_FACTS, ClusterState, key, read
from jitsu_tw.cluster.stop_notice import StopNotices
from jitsu_tw.cluster.usage_reports import UsageReporter
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.ijitsu import IPeer
from jitsu_tw.rules.lifecycle import ACTIVATING, CALLING, DOWN, STOPS, WANTED, Event, State
from jitsu_tw.settings import STARTS_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import ICoordinator
    from jitsu_tw.vm.machine import Machine

#: Those who were cut off together are together again after so many seconds: the longest pause between two of their
#: tries (`cluster.coordinator.etcd.BACK_OFF`), and as much for the try and for what they then tell.
REUNION: Final = 4.0

#: How many VMs of one who is gone are adopted at once.
ADOPTS_AT_ONCE: Final = 16


class Ask(enum.Enum):
    """What the owner of a VM can be asked for."""

    STOP = "stop"
    HOLD = "hold"
    RELEASE = "release"
    MOVE = "move"


@implementer(IPeer)
class Claims:
    """
    What we share with the others.

    Attributes:
        coordinator: by whom we agree.
        host_of: says on which host a machine is seen; nothing where there are no hosts.
        on_free: called with a machine that waits for its turn, when nobody has its claim any more.
        on_owner: called with a machine that is up and has another owner now, or whose owner is known now.
        on_down: called with a machine that one of us has seen down.
        on_use: called with a machine, and when it was used somewhere, on the clock `now`.
        on_claim: called with a machine whose owner, or host, may be another now.
        on_ask: called with a machine of ours, what somebody wants of it, and a word that goes with that.
        facts: what we agree on.
        uses: what was used, here and elsewhere.
        is_blind: says whether another one of us can see what a machine does, and we cannot.
        on_fact: called with the key and the value of what is not about a VM.
    """

    log = Logger()

    def __init__(self, coordinator: ICoordinator, machines: Mapping[str, Machine], clocks: Clocks) -> None:
        """Share *machines*, which are by the VM's name."""
        self.coordinator, self._machines = coordinator, machines
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._apart = "" if coordinator.alone else "those who share the zone have not answered yet"
        self._seen: set[str] = set()
        self.facts = ClusterState(coordinator)
        self.uses = UsageReporter(self, machines, clocks)
        self._notices = StopNotices(self._say, clocks.reactor, clocks.now)
        self._words: dict[str, Deferred[bool]] = {}
        self._leavers: dict[str, list[Deferred[State]]] = {}
        self._adopting: set[str] = set()
        self._placed: set[str] = set()
        self._tidying: dict[str, IDelayedCall] = {}
        self._saying: dict[str, DeferredLock] = {}
        self._joined_at = 0.0
        self.host_of: Callable[[Machine], str] = lambda _: ""
        self.on_free: Callable[[Machine], None] = lambda _: None
        self.on_owner: Callable[[Machine], None] = lambda _: None
        self.on_claim: Callable[[Machine], None] = lambda _: None
        self.on_down: Callable[[Machine], None] = lambda _: None
        self.on_use: Callable[[Machine, float], None] = lambda _machine, _when: None
        self.on_ask: Callable[[Machine, Ask, str], None] = lambda _machine, _ask, _word: None
        self.on_fact: Callable[[str, str | None], None] = lambda _key, _value: None
        self.is_blind: Callable[[Machine], bool] = lambda _: False

    # Beginning and end.

    def start(self) -> None:
        """Begin to agree with the others."""
        self.coordinator.start(self)
        if not self.coordinator.alone:
            self.uses.start()

    async def stop(self) -> None:
        """Tell what was used, and let go of everything: the others adopt it at once."""
        for call in self._tidying.values():
            call.cancel()
        self._tidying.clear()
        await self.uses.stop()
        await self.coordinator.stop()

    # Whose it is.

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.coordinator.alone

    @property
    def why_apart(self) -> str:
        """Why nothing new can be claimed now; empty if it can."""
        drained = not self._apart and not self.alone and (
            f"drained/nodes/{self.coordinator.node}" in self.coordinator.facts
        )
        return f"{self.coordinator.node} is drained" if drained else self._apart

    @property
    def is_joined(self) -> bool:
        """Whether we know what the others know."""
        return not self._apart

    def is_ours(self, machine: Machine) -> bool:
        """Say whether we may stop *machine*, and keep it: at this moment nobody else may."""
        return self.alone or self.coordinator.holds(key("claims", machine))

    def owner(self, machine: Machine) -> str | None:
        """Return the node that has *machine*; None if none has."""
        return self.facts.owner(machine)

    def is_theirs(self, machine: Machine) -> bool:
        """Say whether another one of us has *machine*."""
        return not self.alone and self.owner(machine) not in {None, self.coordinator.node}

    def is_shared(self, machine: Machine) -> bool:
        """Say whether *machine*, which runs, was started by one of us."""
        claimed = self.facts.get("claims", machine) is not None or self.facts.runs(machine) is not None
        return not self.alone and (claimed or machine.vm.name in self._seen)

    def since(self, machine: Machine) -> tuple[float, float]:
        """Return when *machine* was last used, by whomever, and started, on the clock `now`."""
        started = float((self.facts.runs(machine) or {}).get("since", self._wall()))
        used = max(float(self.facts.get("used", machine) or 0.0), started)
        return self.uses.last(machine, self._ours(used)), self._ours(started)

    def _ours(self, when: float) -> float:
        """Return the time on our clock of one in seconds since 1970; other machines' clocks may be ahead."""
        return self._now() - max(0.0, self._wall() - when)

    def host(self, machine: Machine) -> str | None:
        """Return the host that *machine* was started on; nothing if it was on none, None if nobody knows."""
        runs = self.facts.runs(machine)
        return None if self._apart else "" if runs is None else runs.get("host")

    # Claims.

    def claim(self, machine: Machine) -> Deferred[bool]:
        """
        Return a Deferred that says whether *machine* is ours to start.

        If it is not, `on_free` is called when it might be, or it is seen to run.

        Raises:
            ClusterUnavailable: (through the Deferred) nobody can say.
        """
        if self.alone:
            return succeed(True)  # noqa: FBT003
        return Deferred.fromCoroutine(self._claim(machine))

    async def _claim(self, machine: Machine) -> bool:
        while True:
            if self.why_apart:
                raise ClusterUnavailable(self.why_apart)
            ours = await self.coordinator.claim(key("claims", machine), self._claimed("starting"))
            if ours or self.facts.get("claims", machine) is not None:
                break
            # It was free again before we heard that it was not.
        if ours and machine.state not in WANTED:
            await self._release(machine)
        return ours

    def _claimed(self, how: str, why: str = "") -> str:
        return json.dumps({"node": self.coordinator.node, "is": how} | ({"why": why} if why else {}))

    def prove(self, machine: Machine) -> None:
        """
        See to it that nobody else can start *machine* at this moment.

        Raises:
            ClusterUnavailable: somebody can.
        """
        if not self.is_ours(machine):
            reason = self._apart or "another one of us may have it by now"
            raise ClusterUnavailable(reason)

    def place(self, machine: Machine, host: str = "") -> Deferred[bool]:
        """Agree that *machine* is started now, on *host*: nobody starts it on another from here on."""
        if self.alone:
            return succeed(True)  # noqa: FBT003
        self._placed.add(machine.vm.name)
        runs = json.dumps({"since": round(self._wall(), 3), "host": host})
        return self.coordinator.put({key("runs", machine): runs}, key("claims", machine))

    def runs_on(self, machine: Machine, host: str) -> None:
        """Hear that *machine* runs on *host*: if it is ours, and it was another one that we agreed on, agree on it."""
        if host and self.is_ours(machine) and self.host(machine) not in {host, None, ""}:
            self.begin(self.place(machine, host))

    async def _release(self, machine: Machine) -> None:
        """Let go of *machine*, which does not run."""
        self._notices.drop(machine)
        if machine.state is State.FAILED:
            await self._say(machine, "failed", machine.reason)
            if machine.state not in DOWN:
                return  # it is to be started again
        self._saying.pop(machine.vm.name, None)
        # What another one had begun to start, and we have never seen, may come up yet.
        is_known = machine.vm.name in self._placed or self._is_stale(machine)
        self._placed.discard(machine.vm.name)
        rooms = VM_FACTS if is_known else ("claims", "asks")
        await self.coordinator.put({key(room, machine): None for room in rooms}, key("claims", machine))

    def _is_stale(self, machine: Machine) -> bool:
        """Say whether what is agreed on of *machine*, which does not run, is of a start that is over by now."""
        return float((self.facts.runs(machine) or {}).get("since", 0.0)) + STARTS_WITHIN <= self._wall()

    def _say(self, machine: Machine, how: str, why: str = "") -> Deferred[bool]:
        """Tell the others how *machine*, which is ours, is; what was said of it before comes before that."""
        claim = key("claims", machine)
        lock = self._saying.setdefault(machine.vm.name, DeferredLock())
        return lock.run(self.coordinator.put, {claim: self._claimed(how, why)}, claim)

    def begin(self, step: Coroutine[Deferred[Any], Any, Any] | Deferred[Any]) -> None:
        """Take a step; where the others cannot be asked, what it was for is seen to when they can."""
        begun = step if isinstance(step, Deferred) else Deferred.fromCoroutine(step)
        begun.addErrback(lambda failure: failure.trap(ClusterUnavailable))
        begun.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))

    # What the machines do.

    def moved(self, machine: Machine) -> None:
        """Hear that *machine* has entered another state."""
        if self.alone:
            return
        name, state = machine.vm.name, machine.state
        if state in DOWN:
            self._seen.discard(name)
            self.uses.forget(machine)
        elif state is State.UP and self.is_ours(machine):
            self.begin(self._say(machine, "up"))
            if self.why_apart:
                self.hand_on()
        elif state in STOPS and self.is_ours(machine):
            self.begin(self._say(machine, "ending"))
        if state not in STOPS | {State.UP, State.WAITING}:
            for leaver in self._leavers.pop(name, ()):
                leaver.callback(state)
        self._settle(machine)

    def forget(self, machine: Machine) -> None:
        """Let go of *machine*, which is none of ours any more."""
        if not self.alone and self.is_ours(machine):
            self.begin(self._release(machine))

    def _settle(self, machine: Machine) -> None:
        """See to it that *machine* has an owner if it runs, and none if it does not."""
        if self._apart:
            return
        state, ours = machine.state, self.is_ours(machine)
        if state in DOWN and not machine.is_unsure:
            if ours:
                self.begin(self._release(machine))
            elif self.owner(machine) is None and self.facts.runs(machine) is not None:
                self._tidy(machine)
        elif state is State.UP and self.owner(machine) is None and self.is_shared(machine):
            self._adopt(machine)
        elif state is State.UP and self.is_theirs(machine) and self.facts.says(machine) == "ending":
            machine.feed(Event.OWNER_STOPS, "to be stopped")

    def _tidy(self, machine: Machine) -> None:
        """See to it that nothing is left of *machine*, which does not run, and which nobody has."""
        name = machine.vm.name
        if self._is_stale(machine):
            self.begin(self._claim(machine))  # who gets it lets go of it
        elif name not in self._tidying:
            self._tidying[name] = self._reactor.callLater(STARTS_WITHIN, self._tidy_now, machine)

    def _tidy_now(self, machine: Machine) -> None:
        del self._tidying[machine.vm.name]
        self._settle(machine)

    def _adopt(self, machine: Machine) -> None:
        if machine.vm.name not in self._adopting and not self.why_apart and not self.is_blind(machine):
            self._adopting.add(machine.vm.name)
            if len(self._adopting) <= ADOPTS_AT_ONCE:
                self.begin(self._adopt_all(machine))

    async def _adopt_all(self, machine: Machine) -> None:
        """Adopt *machine*, and then those that wait for that, one after the other."""
        done: set[str] = set()
        try:
            while True:
                done.add(machine.vm.name)
                await machine.look("its owner is gone")
                if machine.state is State.UP and await self._claim(machine):
                    self._placed.add(machine.vm.name)
                    if self.facts.runs(machine) is None:
                        await self.place(machine, self.host_of(machine))
                    self.runs_on(machine, self.host_of(machine))
                    self.log.info("{name}: its owner is gone; adopted", name=machine.vm.name)
                    self.on_owner(machine)
                    await self._say(machine, "up")
                self._adopting.discard(machine.vm.name)
                waiting = self._adopting - done
                if len(self._adopting) < ADOPTS_AT_ONCE or not waiting:
                    return
                machine = self._machines[waiting.pop()]
        finally:
            self._adopting -= done

    def hand_on(self) -> None:
        """Let go of all VMs that are up: the others adopt them."""
        for machine in self._machines.values():
            if machine.state is State.UP and self.is_ours(machine):
                self.begin(self.coordinator.put({key("claims", machine): None}, key("claims", machine)))

    def hand_over(self, which: Callable[[Machine], bool]) -> None:
        """Let others have *which* of our machines, of which they can see what they do."""
        for machine in list(self._machines.values()):
            if which(machine) and self.is_ours(machine) and machine.state not in ACTIVATING | CALLING:
                name = machine.vm.name
                self.log.warn("{name}: others can see what it does, and this node cannot; handed over", name=name)
                self._notices.drop(machine)
                self._saying.pop(machine.vm.name, None)
                claim = key("claims", machine)
                self.begin(self.coordinator.put({claim: None}, claim))

    def word(self, machine: Machine) -> Deferred[bool] | None:
        """
        Return a Deferred that fires when the owner of *machine* says that it is ready; None if we are to find out.

        Its value is False if its owner will say nothing any more: ask again.
        """
        if self._apart or not self.is_theirs(machine):
            return None
        if self.facts.says(machine) in {"up", "ending"}:
            return succeed(True)  # noqa: FBT003
        word: Deferred[bool] = Deferred(lambda _: self._forget_word(machine.vm.name))
        self._words[machine.vm.name] = word
        return word

    def _forget_word(self, name: str) -> None:
        self._words.pop(name, None)

    def _speak(self, name: str, *, ready: bool) -> None:
        word = self._words.pop(name, None)
        if word is not None:
            word.callback(ready)

    # Use.

    def use(self, machine: Machine, when: float) -> None:
        """Note that *machine* was used here, at *when*, on the clock `now`; the others are told soon."""
        if not self.alone:
            self.uses.note(machine, when)

    # The end.

    def may_end(self, machine: Machine) -> bool:
        """Say whether *machine*, whose lease is over, may be stopped now; if not, the others are told that it will."""
        if self.alone or not self.is_ours(machine):
            return self.alone
        if not self._notices.is_given(machine) and self._now() >= self._joined_at + REUNION:
            self.begin(self._notices.give(machine))
        return self._notices.is_over(machine)

    def goes_on(self, machine: Machine) -> None:
        """Tell the others, if they were told that *machine* is to be stopped, that it is not."""
        if self._notices.drop(machine):
            self.begin(self._say(machine, "up"))

    # What others want.

    def ask(self, machine: Machine, what: Ask, word: str = "") -> Deferred[State]:
        """Ask the owner of *machine*, another one of us, for something; a stop fires when it is done."""
        asked = self.coordinator.put(
            {key("asks", machine): json.dumps({"do": what.value, "word": word, "by": self.coordinator.node})}
        )
        if what is not Ask.STOP:
            return asked.addCallback(lambda _: machine.state)
        done: Deferred[State] = Deferred()
        self._leavers.setdefault(machine.vm.name, []).append(done)
        return asked.addCallback(lambda _: done)

    def _asked(self, machine: Machine, value: str) -> None:
        ask = read(value)
        self.begin(self.coordinator.put({key("asks", machine): None}, key("claims", machine)))
        self.log.info("{name}: {by} asks to {what} it", name=machine.vm.name, by=ask.get("by"), what=ask.get("do"))
        self.on_ask(machine, Ask(ask["do"]), ask.get("word", ""))

    # What is agreed on (`ijitsu.IPeer`).

    def told(self, path: str, value: str | None, before: str | None) -> None:  # noqa: ARG002
        """Hear of a fact."""
        room, _, rest = path.partition("/")
        machine = self._machines.get(unquote(rest))
        if room not in VM_FACTS:
            if path == f"nodes/{self.coordinator.node}" and value is None and self.is_joined:
                self._enlist()
            self.on_fact(path, value)
        elif self.alone or machine is None:
            return
        elif room == "claims":
            self.on_claim(machine)
            self._claim_is(machine, value)
        elif room == "runs":
            self.on_claim(machine)
            if value is None:
                self.on_down(machine)
        elif room == "used" and value is not None:
            self.on_use(machine, self._ours(float(value)))
        elif room == "asks" and value is not None and self.is_ours(machine):
            self._asked(machine, value)

    def _claim_is(self, machine: Machine, value: str | None) -> None:
        name, claim = machine.vm.name, read(value)
        if self._apart:
            return  # all of them are looked at when we have joined
        if value is None:
            self._speak(name, ready=False)
            machine.owner_keeps()
            if machine.state is State.QUEUED:
                self.on_free(machine)
            else:
                self._settle(machine)
            return
        self._seen.add(name)
        if claim["node"] == self.coordinator.node:
            return
        if claim["is"] == "failed" and machine.state is State.QUEUED:
            machine.feed(Event.FAIL, claim.get("why", "it did not start"))
        elif claim["is"] == "ending":
            machine.feed(Event.OWNER_STOPS, "to be stopped")
            self.uses.tell()
        elif claim["is"] == "up":
            self._speak(name, ready=True)
            machine.owner_keeps()
        if machine.state is State.UP:
            self.on_owner(machine)

    def joined(self) -> None:
        """Hear that we know what the others know: look at everything anew."""
        self._apart, self._joined_at = "", self._now()
        self._enlist()
        self.uses.tell()
        for machine in list(self._machines.values()):
            if machine.state is State.UP:
                self._seen.discard(machine.vm.name)
                self.on_owner(machine)
                if self.is_ours(machine) and self.facts.says(machine) != "up":  # what we said meanwhile was lost
                    self.begin(self._say(machine, "up"))
            elif machine.state is State.QUEUED:
                self.on_free(machine)
            self._settle(machine)

    def _enlist(self) -> None:
        """Say that we are there. What a process of ours before us has said goes when its time is over: then again."""
        if not self.alone:
            me = {"since": round(self._wall(), 3), "version": __version__}
            enlisted = self.coordinator.claim(f"nodes/{self.coordinator.node}", json.dumps(me))
            self.begin(enlisted.addCallback(self._enlisted))

    def _enlisted(self, ours: bool) -> None:  # noqa: FBT001
        if not ours:
            message = "another node is called {node}, or was so until a moment ago; each needs a name of its own"
            self.log.warn(message, node=self.coordinator.node)

    def parted(self, reason: str) -> None:
        """Hear that we know nothing any more: what was ours may be another's."""
        self._apart = reason
        self._notices.clear()
        for name in list(self._words):
            self._speak(name, ready=False)
        for machine in list(self._machines.values()):
            if machine.state is State.QUEUED:
                machine.refuse(reason, ClusterUnavailable)
            elif machine.state is State.UP:
                self.on_owner(machine)
            machine.owner_keeps()
