"""
Whose a VM is when several of us serve a zone, and what all of us know of it.

From its start to its end a VM belongs to the one of us who has its claim: only that one starts, keeps and stops it.
The others see it run, wait for its owner's word that it is ready, and tell when they were asked for it. They are told
before it is stopped, so that nobody answers for it at that moment: who is asked then says so, and it goes on. When its
owner is gone, so is the claim, and whoever gets it next adopts the VM. What we agree on, as facts of
`ijitsu.ICoordinator`, by the VM's name::

    claims/NAME    {"node", "is": starting | up | ending | failed, "why"}    of its owner, for as long as that lives
    runs/NAME      {"since", "host"}    it was started through us, and has not been seen down since
    used/NAME      when it was last used, in seconds since 1970
    asks/NAME      {"do", "by"}    what somebody wants of its owner

And of ourselves: ``nodes/NODE``, a claim of each that lives, ``drained/nodes/NODE`` and ``drained/hosts/HOST``.

Where there is only one of us, everything is ours, and nobody is told anything.
"""

from __future__ import annotations

import enum
import json
from math import inf
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import attrs
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw import __version__
from jitsu_tw.errors import CutOff
from jitsu_tw.ijitsu import IPeer
from jitsu_tw.settings import STARTS_WITHIN
from jitsu_tw.vm.lifecycle import ACTIVATING, CALLING, WANTED, State

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.ijitsu import ICoordinator
    from jitsu_tw.vm.activation import Machine
    from jitsu_tw.vm.fleet import Clocks

#: What was used is told this often, in seconds.
TELL_EVERY: Final = 1.0

#: That a VM is up and used is not told more often than after this share of its lease: before it is stopped, all are
#: asked for more.
TELL_SHARE: Final = 1 / 8

#: The others hear so many seconds before it that a VM is to be stopped: time to say that it has been asked for.
NOTICE: Final = 1.5

#: Where the others cannot be told something within so many seconds, they cannot have told us all either.
SWIFT: Final = 0.3

#: Those who were cut off together are together again after so many seconds: the longest pause between two of their
#: tries (`coordinator.etcd.BACK_OFF`), and as much for the try and for what they then tell.
REUNION: Final = 4.0

#: What is agreed on for each VM.
VM_FACTS: Final = ("claims", "runs", "used", "asks")

#: How many VMs of one who is gone are adopted at once.
ADOPTS_AT_ONCE: Final = 16

#: States in which nothing of a VM runs, and somebody has seen so.
DOWN: Final = frozenset({State.OFF, State.PAUSED, State.SAVED, State.FAILED})


class Ask(enum.Enum):
    """What the owner of a VM can be asked for."""

    STOP = "stop"
    HOLD = "hold"
    RELEASE = "release"
    MOVE = "move"


@attrs.define(eq=False)
class Notice:
    """
    That the others have of a VM's end.

    Attributes:
        is_over: they had the time to say that it is used.
        is_void: they had not, or could not.
    """

    is_over: bool = False
    is_void: bool = False


@implementer(IPeer)
class Sharing:
    """
    What we share with the others.

    Attributes:
        coordinator: by whom we agree.
        host_of: says on which host a machine is seen; nothing where there are no hosts.
        on_free: called with a machine that waits for its turn, when nobody has its claim any more.
        on_owner: called with a machine that is up and has another owner now, or whose owner is known now.
        on_use: called with a machine, and when it was used somewhere, on the clock `now`.
        on_claim: called with a machine whose owner, or host, may be another now.
        on_ask: called with a machine of ours, what somebody wants of it, and a word that goes with that.
        gather: called before what was used is told; it calls `use` for what was asked for without us.
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
        self._used: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._ending: dict[str, Notice] = {}
        self._words: dict[str, Deferred[bool]] = {}
        self._leavers: dict[str, list[Deferred[State]]] = {}
        self._adopting: set[str] = set()
        self._placed: set[str] = set()
        self._tidying: dict[str, IDelayedCall] = {}
        self._telling = LoopingCall(self._tell)
        self._telling.clock = clocks.reactor
        self._saying: dict[str, DeferredLock] = {}
        self._joined_at = 0.0
        self._busy = False
        self.host_of: Callable[[Machine], str] = lambda _: ""
        self.on_free: Callable[[Machine], None] = lambda _: None
        self.on_owner: Callable[[Machine], None] = lambda _: None
        self.on_claim: Callable[[Machine], None] = lambda _: None
        self.on_use: Callable[[Machine, float], None] = lambda _machine, _when: None
        self.on_ask: Callable[[Machine, Ask, str], None] = lambda _machine, _ask, _word: None
        self.on_fact: Callable[[str, str | None], None] = lambda _key, _value: None
        self.gather: Callable[[], object] = lambda: None
        self.is_blind: Callable[[Machine], bool] = lambda _: False

    # Beginning and end.

    def start(self) -> None:
        """Begin to agree with the others."""
        self.coordinator.start(self)
        if not self.coordinator.alone:
            self._telling.start(TELL_EVERY, now=False)

    async def stop(self) -> None:
        """Tell what was used, and let go of everything: the others adopt it at once."""
        for call in self._tidying.values():
            call.cancel()
        self._tidying.clear()
        if self._telling.running:
            self._telling.stop()
            await self._tell_all()
        await self.coordinator.stop()

    # Whose it is.

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.coordinator.alone

    @property
    def why_apart(self) -> str:
        """Why nothing new can be claimed now; empty if it can."""
        drained = not self._apart and not self.alone and f"drained/nodes/{self.coordinator.node}" in self._facts
        return f"{self.coordinator.node} is drained" if drained else self._apart

    @property
    def is_joined(self) -> bool:
        """Whether we know what the others know."""
        return not self._apart

    @property
    def _facts(self) -> Mapping[str, str]:
        return self.coordinator.facts

    def is_ours(self, machine: Machine) -> bool:
        """Say whether we may stop *machine*, and keep it: at this moment nobody else may."""
        return self.alone or self.coordinator.holds(_key("claims", machine))

    def owner(self, machine: Machine) -> str | None:
        """Return the node that has *machine*; None if none has."""
        return _read(self._facts.get(_key("claims", machine))).get("node")

    def is_theirs(self, machine: Machine) -> bool:
        """Say whether another one of us has *machine*."""
        return not self.alone and self.owner(machine) not in {None, self.coordinator.node}

    def is_shared(self, machine: Machine) -> bool:
        """Say whether *machine*, which runs, was started by one of us."""
        claimed = _key("claims", machine) in self._facts or _key("runs", machine) in self._facts
        return not self.alone and (claimed or machine.vm.name in self._seen)

    def since(self, machine: Machine) -> tuple[float, float]:
        """Return when *machine* was last used, by whomever, and started, on the clock `now`."""
        now, runs = self._wall(), _read(self._facts.get(_key("runs", machine)))
        started = float(runs.get("since", now))
        used = max(float(self._facts.get(_key("used", machine), 0.0)), started)
        own = self._used.get(machine.vm.name, self._told.get(machine.vm.name, 0.0))
        # Who is gone may have known of a use that it had not told yet.
        untold = machine.vm.idle * TELL_SHARE
        return min(max(self._ours(used), own) + untold, self._now()), self._ours(started)

    def _ours(self, when: float) -> float:
        """Return the time on our clock of one in seconds since 1970; other machines' clocks may be ahead."""
        return self._now() - max(0.0, self._wall() - when)

    def host(self, machine: Machine) -> str | None:
        """Return the host that *machine* was started on; nothing if it was on none, None if nobody knows."""
        if self._apart:
            return None
        return _read(self._facts.get(_key("runs", machine), '{"host": ""}')).get("host")

    # Claims.

    def claim(self, machine: Machine) -> Deferred[bool]:
        """
        Return a Deferred that says whether *machine* is ours to start.

        If it is not, `on_free` is called when it might be, or it is seen to run.

        Raises:
            CutOff: (through the Deferred) nobody can say.
        """
        if self.alone:
            return succeed(True)  # noqa: FBT003
        return Deferred.fromCoroutine(self._claim(machine))

    async def _claim(self, machine: Machine) -> bool:
        key = _key("claims", machine)
        while True:
            if self.why_apart:
                raise CutOff(self.why_apart)
            ours = await self.coordinator.claim(key, self._claimed("starting"))
            if ours or key in self._facts:
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
            CutOff: somebody can.
        """
        if not self.is_ours(machine):
            reason = self._apart or "another one of us may have it by now"
            raise CutOff(reason)

    def place(self, machine: Machine, host: str = "") -> Deferred[bool]:
        """Agree that *machine* is started now, on *host*: nobody starts it on another from here on."""
        if self.alone:
            return succeed(True)  # noqa: FBT003
        self._placed.add(machine.vm.name)
        runs = json.dumps({"since": round(self._wall(), 3), "host": host})
        return self.coordinator.put({_key("runs", machine): runs}, _key("claims", machine))

    async def _release(self, machine: Machine) -> None:
        """Let go of *machine*, which does not run."""
        self._ending.pop(machine.vm.name, None)
        if machine.state is State.FAILED:
            await self._say(machine, "failed", machine.reason)
            if machine.state not in DOWN:
                return  # it is to be started again
        self._saying.pop(machine.vm.name, None)
        # What another one had begun to start, and we have never seen, may come up yet.
        is_known = machine.vm.name in self._placed or self._is_stale(machine)
        self._placed.discard(machine.vm.name)
        rooms = VM_FACTS if is_known else ("claims", "asks")
        await self.coordinator.put({_key(room, machine): None for room in rooms}, _key("claims", machine))

    def _is_stale(self, machine: Machine) -> bool:
        """Say whether what is agreed on of *machine*, which does not run, is of a start that is over by now."""
        runs = _read(self._facts.get(_key("runs", machine)))
        return float(runs.get("since", 0.0)) + STARTS_WITHIN <= self._wall()

    def _say(self, machine: Machine, how: str, why: str = "") -> Deferred[bool]:
        """Tell the others how *machine*, which is ours, is; what was said of it before comes before that."""
        key = _key("claims", machine)
        lock = self._saying.setdefault(machine.vm.name, DeferredLock())
        return lock.run(self.coordinator.put, {key: self._claimed(how, why)}, key)

    def _begin(self, step: Coroutine[Deferred[Any], Any, Any] | Deferred[Any]) -> None:
        """Take a step; where the others cannot be asked, what it was for is seen to when they can."""
        begun = step if isinstance(step, Deferred) else Deferred.fromCoroutine(step)
        begun.addErrback(lambda failure: failure.trap(CutOff))
        begun.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))

    # What the machines do.

    def moved(self, machine: Machine) -> None:
        """Hear that *machine* has entered another state."""
        if self.alone:
            return
        name, state = machine.vm.name, machine.state
        if state in DOWN:
            self._seen.discard(name)
            self._used.pop(name, None)
            self._told.pop(name, None)
        elif state is State.UP and self.is_ours(machine):
            self._begin(self._say(machine, "up"))
            if self.why_apart:
                self.hand_on()
        elif state is State.STOPPING and self.is_ours(machine):
            self._begin(self._say(machine, "ending"))
        if state not in {State.UP, State.STOPPING, State.WAITING}:
            for leaver in self._leavers.pop(name, ()):
                leaver.callback(state)
        self._settle(machine)

    def forget(self, machine: Machine) -> None:
        """Let go of *machine*, which is none of ours any more."""
        if not self.alone and self.is_ours(machine):
            self._begin(self._release(machine))

    def _settle(self, machine: Machine) -> None:
        """See to it that *machine* has an owner if it runs, and none if it does not."""
        if self._apart:
            return
        state, ours = machine.state, self.is_ours(machine)
        if state in DOWN and not machine.is_unsure:
            if ours:
                self._begin(self._release(machine))
            elif self.owner(machine) is None and _key("runs", machine) in self._facts:
                self._tidy(machine)
        elif state is State.UP and self.owner(machine) is None and self.is_shared(machine):
            self._adopt(machine)
        elif state is State.UP and self.is_theirs(machine) and self._is(machine) == "ending":
            machine.leave("to be stopped")

    def _tidy(self, machine: Machine) -> None:
        """See to it that nothing is left of *machine*, which does not run, and which nobody has."""
        name = machine.vm.name
        if self._is_stale(machine):
            self._begin(self._claim(machine))  # who gets it lets go of it
        elif name not in self._tidying:
            self._tidying[name] = self._reactor.callLater(STARTS_WITHIN, self._tidy_now, machine)

    def _tidy_now(self, machine: Machine) -> None:
        del self._tidying[machine.vm.name]
        self._settle(machine)

    def _is(self, machine: Machine) -> str:
        """Return how *machine* is in the words of who has it; nothing if nobody has."""
        return str(_read(self._facts.get(_key("claims", machine))).get("is", ""))

    def _adopt(self, machine: Machine) -> None:
        if machine.vm.name not in self._adopting and not self.why_apart and not self.is_blind(machine):
            self._adopting.add(machine.vm.name)
            if len(self._adopting) <= ADOPTS_AT_ONCE:
                self._begin(self._adopt_all(machine))

    async def _adopt_all(self, machine: Machine) -> None:
        """Adopt *machine*, and then those that wait for that, one after the other."""
        done: set[str] = set()
        try:
            while True:
                done.add(machine.vm.name)
                await machine.look("its owner is gone")
                if machine.state is State.UP and await self._claim(machine):
                    self._placed.add(machine.vm.name)
                    if _key("runs", machine) not in self._facts:
                        await self.place(machine, self.host_of(machine))
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
                self._begin(self.coordinator.put({_key("claims", machine): None}, _key("claims", machine)))

    def hand_over(self, which: Callable[[Machine], bool]) -> None:
        """Let others have *which* of our machines, of which they can see what they do."""
        for machine in list(self._machines.values()):
            if which(machine) and self.is_ours(machine) and machine.state not in ACTIVATING | CALLING:
                name = machine.vm.name
                self.log.warn("{name}: others can see what it does, and this node cannot; handed over", name=name)
                self._ending.pop(machine.vm.name, None)
                self._saying.pop(machine.vm.name, None)
                key = _key("claims", machine)
                self._begin(self.coordinator.put({key: None}, key))

    def word(self, machine: Machine) -> Deferred[bool] | None:
        """
        Return a Deferred that fires when the owner of *machine* says that it is ready; None if we are to find out.

        Its value is False if its owner will say nothing any more: ask again.
        """
        if self._apart or not self.is_theirs(machine):
            return None
        if self._is(machine) in {"up", "ending"}:
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
        if not self.alone and when > self._told.get(machine.vm.name, 0.0):
            self._used[machine.vm.name] = max(when, self._used.get(machine.vm.name, 0.0))
            if machine.state is State.STOPPING:
                self._tell()

    def _tell(self) -> None:
        self.gather()
        if self._used and not self._apart and not self._busy:
            self._busy = True
            telling = Deferred.fromCoroutine(self._tell_all())
            self._begin(telling.addBoth(self._has_told))

    def _has_told(self, result: Any) -> Any:
        self._busy = False
        return result

    def _due(self) -> dict[str, float]:
        """Return when what is to be told now was used."""
        due = {}
        for name, when in self._used.items():
            machine = self._machines.get(name)
            every = 0.0 if machine is None or machine.state is not State.UP else machine.vm.idle * TELL_SHARE
            if when >= self._told.get(name, -inf) + every:
                due[name] = when
        return due

    async def _tell_all(self) -> None:
        if self._apart:
            return
        used = self._due() if self._telling.running else self._used
        self._used = {name: when for name, when in self._used.items() if name not in used}
        facts: dict[str, str | None] = {}
        for name, when in used.items():
            machine = self._machines.get(name)
            if machine is not None and machine.state not in DOWN:
                facts[_key("used", machine)] = f"{self._wall() - (self._now() - when):.3f}"
        if not facts:
            return
        try:
            await self.coordinator.put(facts)
        except CutOff:
            for name, when in used.items():
                machine = self._machines.get(name)
                if machine is not None and machine.state not in DOWN:
                    self._used[name] = max(when, self._used.get(name, 0.0))
            raise
        self._told |= used

    # The end.

    def may_end(self, machine: Machine) -> bool:
        """Say whether *machine*, whose lease is over, may be stopped now; if not, the others are told that it will."""
        if self.alone or not self.is_ours(machine):
            return self.alone
        notice = self._ending.get(machine.vm.name)
        if (notice is None or notice.is_void) and self._now() >= self._joined_at + REUNION:
            notice = self._ending[machine.vm.name] = Notice()
            self._begin(self._give_notice(machine, notice))
        return notice is not None and notice.is_over

    async def _give_notice(self, machine: Machine, notice: Notice) -> None:
        try:
            notice.is_over = await self._is_heard(machine, notice)
        except CutOff:
            notice.is_over = False
        notice.is_void = not notice.is_over

    async def _is_heard(self, machine: Machine, notice: Notice) -> bool:
        """Tell the others that *machine* is to be stopped, until all had the time to say that it is used."""
        while await self._say(machine, "ending"):
            await deferLater(self._reactor, NOTICE)
            begin = self._now()
            if self._ending.get(machine.vm.name) is not notice or not await self._say(machine, "ending"):
                return False
            if self._now() < begin + SWIFT:
                return True
        return False

    def goes_on(self, machine: Machine) -> None:
        """Tell the others, if they were told that *machine* is to be stopped, that it is not."""
        if self._ending.pop(machine.vm.name, None) is not None:
            self._begin(self._say(machine, "up"))

    # What others want.

    def ask(self, machine: Machine, what: Ask, word: str = "") -> Deferred[State]:
        """Ask the owner of *machine*, another one of us, for something; a stop fires when it is done."""
        asked = self.coordinator.put(
            {_key("asks", machine): json.dumps({"do": what.value, "word": word, "by": self.coordinator.node})}
        )
        if what is not Ask.STOP:
            return asked.addCallback(lambda _: machine.state)
        done: Deferred[State] = Deferred()
        self._leavers.setdefault(machine.vm.name, []).append(done)
        return asked.addCallback(lambda _: done)

    def _asked(self, machine: Machine, value: str) -> None:
        ask = _read(value)
        self._begin(self.coordinator.put({_key("asks", machine): None}, _key("claims", machine)))
        self.log.info("{name}: {by} asks to {what} it", name=machine.vm.name, by=ask.get("by"), what=ask.get("do"))
        self.on_ask(machine, Ask(ask["do"]), ask.get("word", ""))

    # What is agreed on (`ijitsu.IPeer`).

    def told(self, key: str, value: str | None, before: str | None) -> None:  # noqa: ARG002
        """Hear of a fact."""
        room, _, rest = key.partition("/")
        machine = self._machines.get(unquote(rest))
        if room not in VM_FACTS:
            if key == f"nodes/{self.coordinator.node}" and value is None and self.is_joined:
                self._enlist()
            self.on_fact(key, value)
        elif self.alone or machine is None:
            return
        elif room == "claims":
            self.on_claim(machine)
            self._claim_is(machine, value)
        elif room == "runs":
            self.on_claim(machine)
        elif room == "used" and value is not None:
            self.on_use(machine, self._ours(float(value)))
        elif room == "asks" and value is not None and self.is_ours(machine):
            self._asked(machine, value)

    def _claim_is(self, machine: Machine, value: str | None) -> None:
        name, claim = machine.vm.name, _read(value)
        if self._apart:
            return  # all of them are looked at when we have joined
        if value is None:
            self._speak(name, ready=False)
            machine.stay()
            if machine.state is State.QUEUED:
                self.on_free(machine)
            else:
                self._settle(machine)
            return
        self._seen.add(name)
        if claim["node"] == self.coordinator.node:
            return
        if claim["is"] == "failed" and machine.state is State.QUEUED:
            machine.fail(claim.get("why", "it did not start"))
        elif claim["is"] == "ending":
            machine.leave("to be stopped")
            self._tell()
        elif claim["is"] == "up":
            self._speak(name, ready=True)
            machine.stay()
        if machine.state is State.UP:
            self.on_owner(machine)

    def joined(self) -> None:
        """Hear that we know what the others know: look at everything anew."""
        self._apart, self._joined_at = "", self._now()
        self._enlist()
        self._tell()
        for machine in list(self._machines.values()):
            if machine.state is State.UP:
                self._seen.discard(machine.vm.name)
                self.on_owner(machine)
                if self.is_ours(machine) and self._is(machine) == "ending":
                    self._begin(self._say(machine, "up"))
            elif machine.state is State.QUEUED:
                self.on_free(machine)
            self._settle(machine)

    def _enlist(self) -> None:
        """Say that we are there. What a process of ours before us has said goes when its time is over: then again."""
        if not self.alone:
            me = {"since": round(self._wall(), 3), "version": __version__}
            self._begin(self.coordinator.claim(f"nodes/{self.coordinator.node}", json.dumps(me)))

    def parted(self, reason: str) -> None:
        """Hear that we know nothing any more: what was ours may be another's."""
        self._apart = reason
        self._ending.clear()
        for name in list(self._words):
            self._speak(name, ready=False)
        for machine in list(self._machines.values()):
            if machine.state is State.QUEUED:
                machine.refuse(reason, CutOff)
            elif machine.state is State.UP:
                self.on_owner(machine)
            machine.stay()


def _key(room: str, machine: Machine) -> str:
    return f"{room}/{quote(machine.vm.name, safe='')}"


def _read(value: str | None) -> dict[str, Any]:
    """Return what a fact says; nothing if it is not there, or not one of ours."""
    try:
        said = json.loads(value or "{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
