"""
The last of what happened to the VMs, and why: told by the fleet, kept in memory, in rings of a fixed size.

Nothing is decided here, and nothing here outlives the process: what must is in `stats`. People look at it by
`control`; `Journal.on_event` tells those who want to know at once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.ijitsu import IObserver
from jitsu_tw.networks import network, packed, to_text
from jitsu_tw.rules.lifecycle import ACTIVATING, State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.vm.interfaces import IJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.vm.machine import Machine

#: How much is kept: of everything, of activations, of refusals; of the decisions on one VM, and on how many VMs.
MOST_EVENTS: Final = 1000
MOST_ACTIVATIONS: Final = 200
MOST_REFUSALS: Final = 200
MOST_DECISIONS: Final = 20
MOST_VMS: Final = 1000

#: Of a flood of refusals, so many are told within a second, and each kind once; all are counted.
MOST_TOLD: Final = 20

#: States that are no news for a VM that nothing has happened to: so it was found.
_RESTING: Final = frozenset({State.UNKNOWN, State.OFF, State.PAUSED, State.SAVED})


@attrs.frozen
class Event:
    """
    Something that happened.

    Attributes:
        id: greater than that of any earlier event, also of an earlier process.
        at: when, in seconds since 1970.
        kind: ``state``, ``activation``, ``refused``, ``hold``, ``release``, ``lost`` or ``connected``.
        vm: whose; empty for a hypervisor's.
        facts: what there is to say about it, as JSON has it.
    """

    id: int
    at: float
    kind: str
    vm: str
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {"id": self.id, "at": round(self.at, 3), "kind": self.kind, "vm": self.vm, **self.facts}


@attrs.define(eq=False)
class Activation:
    """
    One way from stopped to ready, or to where it ended.

    Attributes:
        id: greater than that of any earlier one.
        vm: whose.
        began: when it was asked for, in seconds since 1970.
        asker: who asked first.
        outcome: ``running``, ``up``, ``failed``, ``stopped`` or ``lost``.
        how: what the start call did (`ijitsu.Start`); empty if it has not ended well.
        reason: the last words.
        clients: how many were answered.
        took: seconds from the question to the end; None while it is running.
        marks: each step's time, on the clock of the machines.
        machine: who knows the marks while it is running.
    """

    id: int
    vm: str
    began: float
    asker: str
    outcome: str = "running"
    how: str = ""
    reason: str = ""
    clients: int = 0
    took: float | None = None
    marks: Mapping[str, float] = attrs.field(factory=dict)
    machine: Machine | None = None

    def freeze(self) -> None:
        """Keep the marks as they are: the machine's will be another activation's."""
        if self.machine is not None:
            self.marks, self.machine = self.machine.marks, None

    def as_json(self) -> dict[str, Any]:
        """Return it with the steps in milliseconds after the question."""
        marks = self.marks if self.machine is None else self.machine.marks
        return {
            "id": self.id,
            "vm": self.vm,
            "began": round(self.began, 3),
            "asker": self.asker,
            "outcome": self.outcome,
            "how": self.how,
            "reason": self.reason,
            "clients": self.clients,
            "took": None if self.took is None else round(self.took * 1000, 1),
            "steps": milliseconds(marks),
        }


@attrs.define(eq=False)
class Refusal:
    """
    Starts that were refused to one network, for one reason.

    Attributes:
        vm: that was not started.
        network: of the clients, a /24 or /56.
        reason: why.
        asker: who asked last.
        first, last: when, in seconds since 1970.
        times: how often.
    """

    vm: str
    network: str
    reason: str
    asker: str
    first: float
    last: float
    times: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return attrs.asdict(self)


def milliseconds(marks: Mapping[str, float]) -> dict[str, float]:
    """Return when each step was, in milliseconds after the first."""
    begin = marks.get("query", 0.0)
    return {step: round((when - begin) * 1000, 1) for step, when in marks.items()}


@implementer(IJournal, IObserver)
class Journal:
    """
    The memory of what happened.

    Attributes:
        on_event: called with each event.
        events: the last ones, oldest first.
        activations: the last ones, those that run among them, oldest first.
        refusals: the last ones, by VM, network and reason; who was refused last is last.
        states: how many VMs are in each state.
        refused: how many starts were refused, by verdict.
        outcomes: how many activations ended, by outcome.
        retries: how many starts were tried once more by themselves.
        warm, cold: how many questions there were for VMs that were up, and for others.
    """

    follows: Final = frozenset(State)

    log = Logger()

    def __init__(self, clocks: Clocks) -> None:
        """Begin with nothing."""
        self._now, self._wall = clocks.now, clocks.wall
        self._ids = count(int(clocks.wall() * 1000))
        self._running: dict[str, Activation] = {}
        self._decisions: OrderedDict[str, deque[Event]] = OrderedDict()
        self._second, self._told = 0, 0
        self.on_event: list[Callable[[Event], None]] = []
        self.events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self.activations: deque[Activation] = deque(maxlen=MOST_ACTIVATIONS)
        self.refusals: OrderedDict[tuple[str, str, Verdict], Refusal] = OrderedDict()
        self.states: Counter[State] = Counter()
        self.refused: Counter[Verdict] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.retries = self.warm = self.cold = 0

    # What it tells.

    def decisions(self, vm: str) -> Iterable[Event]:
        """Return what was last decided on a VM, oldest first."""
        return tuple(self._decisions.get(vm, ()))

    def running(self, vm: str) -> Activation | None:
        """Return the activation of a VM that is under way."""
        return self._running.get(vm)

    def last_activations(self, vm: str | None, most: int) -> list[Activation]:
        """Return the last activations, of one VM or of all, newest first."""
        found = (one for one in reversed(self.activations) if vm is None or one.vm == vm)
        return list(islice(found, most))

    # What it is told.

    def moved(self, machine: Machine, old: State) -> None:
        """Note that *machine* has gone from one state to another, and why."""
        name, state = machine.vm.name, machine.state
        self.states[old] -= 1
        self.states[state] += 1
        running = self._running.get(name)
        if state is State.QUEUED:
            if running is not None:
                self._end(running, "failed", machine.reason)
            running = self._begin(machine)
        elif running is not None:
            if state is State.WAITING and old is State.STARTING:
                running.how = machine.reason
            elif state is State.FAILED:
                running.freeze()  # another one may begin before this one is said to have ended
            elif state not in ACTIVATING and state is not State.UP and not machine.is_failing:
                self._end(running, "lost" if state is State.UNKNOWN else "stopped", machine.reason)
                if old is State.QUEUED and machine.reason == Verdict.FULL.value:
                    self.refused[Verdict.FULL] += 1
        if name in self._decisions or not {old, state} <= _RESTING:
            asker = {"asker": running.asker} if state is State.QUEUED and running is not None else {}
            facts = {"old": old.shown, "state": state.shown, "reason": machine.reason, **asker}
            self._note("state", name, facts)

    def booted(self, machine: Machine, outcome: str, clients: int) -> None:
        """Note that *machine*'s activation has ended, ``up`` or ``failed``."""
        running = self._running.get(machine.vm.name)
        if running is not None:
            running.clients = clients
            self._end(running, outcome, machine.reason)

    def refuse(self, vm: str, verdict: Verdict, host: str, asker: str) -> None:
        """Note that a VM was not started for a client."""
        now, net = self._wall(), to_text(network(packed(host)))
        self.refused[verdict] += 1
        key = vm, net, verdict
        refusal = self.refusals.get(key)
        if refusal is None:
            refusal = self.refusals[key] = Refusal(vm, net, verdict.value, asker, now, 0.0)
            if len(self.refusals) > MOST_REFUSALS:
                self.refusals.popitem(last=False)
        self.refusals.move_to_end(key)
        told = refusal.last
        refusal.last, refusal.asker = now, asker
        refusal.times += 1
        if int(now) != self._second:
            self._second, self._told = int(now), 0
        if abs(now - told) >= 1 and self._told < MOST_TOLD:  # the wall clock may be set back
            self._told += 1
            self._tell("refused", vm, refusal.as_json())

    def hold(self, vm: str, *, held: bool) -> None:
        """Note that a person holds a VM, or does not any more."""
        self._note("hold" if held else "release", vm, {})

    def backend(self, backend: str, reason: str | None) -> None:
        """Note that a hypervisor is lost, and why, or that there is a connection (None)."""
        facts = {"backend": backend} if reason is None else {"backend": backend, "reason": reason}
        self._tell("connected" if reason is None else "lost", "", facts)

    # How it is kept.

    def _begin(self, machine: Machine) -> Activation:
        """Begin an activation."""
        began = self._wall() - (self._now() - machine.marks["query"])
        running = Activation(next(self._ids), machine.vm.name, began, machine.asker, machine=machine)
        self._running[machine.vm.name] = running
        self.activations.append(running)
        return running

    def _end(self, running: Activation, outcome: str, reason: str) -> None:
        del self._running[running.vm]
        running.freeze()
        running.took = self._now() - running.marks["query"]
        running.outcome, running.reason = outcome, reason
        self.outcomes[outcome] += 1
        self._tell("activation", running.vm, {"activation": running.as_json()})

    def _note(self, kind: str, vm: str, facts: Mapping[str, Any]) -> None:
        """Tell a decision, and keep it with the VM's own."""
        decisions = self._decisions.get(vm)
        if decisions is None:
            decisions = self._decisions[vm] = deque(maxlen=MOST_DECISIONS)
            if len(self._decisions) > MOST_VMS:
                self._decisions.popitem(last=False)
        self._decisions.move_to_end(vm)
        decisions.append(self._tell(kind, vm, facts))

    def _tell(self, kind: str, vm: str, facts: Mapping[str, Any]) -> Event:
        event = Event(next(self._ids), self._wall(), kind, vm, facts)
        self.events.append(event)
        for hear in self.on_event:
            try:
                hear(event)
            except Exception:  # noqa: BLE001
                # Whatever goes wrong with who looks on, the VM's life goes on.
                self.log.failure("unexpected, please report")
        return event
