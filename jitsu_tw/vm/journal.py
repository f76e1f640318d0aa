"""
The last events of all VMs, and why they happened: noted by the fleet, kept in memory, in rings of a fixed size. Pure.

Nothing is decided here, and nothing here outlives the process; `stats` has what must. `control` shows it to operators;
`Journal.on_event` calls those who follow the events.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final

import attrs
from zope.interface import implementer

from jitsu_tw.ijitsu import IObserver
from jitsu_tw.networks import network, packed, to_text
from jitsu_tw.rules.lifecycle import ACTIVATING, PREPARES, State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.vm.interfaces import IJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.vm.machine import Machine

#: How much is kept: events, activations, refusals; decisions on one VM, and VMs with decisions.
MOST_EVENTS: Final = 1000
MOST_ACTIVATIONS: Final = 200
MOST_REFUSALS: Final = 200
MOST_DECISIONS: Final = 20
MOST_VMS: Final = 1000

#: The most events of refusals within a second, one of each kind; all refusals are counted.
MOST_TOLD: Final = 20

#: States in which a VM may be found: a change between them is no event for a VM of which there was none yet.
_RESTING: Final = frozenset({State.UNKNOWN, State.OFF, State.PAUSED, State.SAVED, State.PREPARED})


@attrs.frozen
class Event:
    """
    Something that happened.

    Attributes:
        id: greater than that of any earlier event, also of an earlier process.
        at: when, in seconds since 1970.
        kind: ``state``, ``activation``, ``refused``, ``hold``, ``release``, ``made``, ``forgotten``, ``lost`` or
            ``connected``.
        vm: the VM's name; empty for an event of a hypervisor.
        facts: the fields of that kind, as JSON has them.
    """

    id: int
    at: float
    kind: str
    vm: str
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the event as JSON has it."""
        return {"id": self.id, "at": round(self.at, 3), "kind": self.kind, "vm": self.vm, **self.facts}


@attrs.define(eq=False)
class Activation:
    """
    One way from stopped to ready, or to where it ended.

    Attributes:
        id: greater than that of any earlier one.
        vm: the VM's name.
        began: when it was asked for, in seconds since 1970.
        asker: the first that asked.
        outcome: ``running``, ``up``, ``failed``, ``stopped`` or ``lost``.
        how: what the start call did (`ijitsu.Start`); empty if it has not ended well.
        reason: why it ended so.
        clients: how many were answered.
        took: seconds from the first query to the end; None while it is running.
        marks: each step's time, on the clock of the machines.
        machine: has the marks while it is running.
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
        """Keep the marks as they are: those of the machine will be another activation's."""
        if self.machine is not None:
            self.marks, self.machine = self.machine.marks, None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it, with the steps in milliseconds after the first query."""
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
        vm: the name of the VM that was not started.
        network: of the clients, a /24 or /56.
        reason: why.
        asker: the last that asked.
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
        """Return it as JSON has it."""
        return attrs.asdict(self)


def milliseconds(marks: Mapping[str, float]) -> dict[str, float]:
    """Return when each step was, in milliseconds after the first."""
    begin = marks.get("query", 0.0)
    return {step: round((when - begin) * 1000, 1) for step, when in marks.items()}


@attrs.define(eq=False)
class Totals:
    """
    Numbers since this process began.

    Attributes:
        states: how many VMs are in each state now.
        refused: how many starts were refused, by verdict.
        outcomes: how many activations ended, by outcome.
        retries: how many starts were tried once more by themselves.
        warm, cold: how many queries there were for VMs that were up, and for others.
    """

    states: Counter[State] = attrs.field(factory=Counter)
    refused: Counter[Verdict] = attrs.field(factory=Counter)
    outcomes: Counter[str] = attrs.field(factory=Counter)
    retries: int = 0
    warm: int = 0
    cold: int = 0


@implementer(IJournal, IObserver)
class Journal:
    """
    The last events.

    Attributes:
        on_event: called with each event.
        events: the last ones, oldest first.
        activations: the last ones, those under way among them, oldest first.
        refusals: the last ones, by VM, network and reason, the latest last.
        totals: numbers of all that has happened.
    """

    follows: Final = frozenset(State)

    def __init__(self, clocks: Clocks, failed: Callable[[], object]) -> None:
        """Begin without events; *failed* reports the exception of a follower in `on_event`, while it is handled."""
        self._now, self._wall, self._failed = clocks.now, clocks.wall, failed
        self._ids = count(int(clocks.wall() * 1000))
        self._running: dict[str, Activation] = {}
        self._decisions: OrderedDict[str, deque[Event]] = OrderedDict()
        self._second, self._told = 0, 0
        self.on_event: list[Callable[[Event], None]] = []
        self.events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self.activations: deque[Activation] = deque(maxlen=MOST_ACTIVATIONS)
        self.refusals: OrderedDict[tuple[str, str, Verdict], Refusal] = OrderedDict()
        self.totals = Totals()

    # Asking.

    def decisions(self, vm: str) -> Iterable[Event]:
        """Return the last events of a VM that tell what was decided, oldest first."""
        return tuple(self._decisions.get(vm, ()))

    def running(self, vm: str) -> Activation | None:
        """Return the activation of a VM that is under way."""
        return self._running.get(vm)

    def last_activations(self, vm: str | None, most: int) -> list[Activation]:
        """Return the last activations, of one VM or of all, newest first."""
        found = (one for one in reversed(self.activations) if vm is None or one.vm == vm)
        return list(islice(found, most))

    # Noting.

    def moved(self, machine: Machine, old: State) -> None:
        """Note that *machine* has left the state *old* for another, and why."""
        name, state = machine.vm.name, machine.state
        self.totals.states[old] -= 1
        self.totals.states[state] += 1
        running = self._running.get(name)
        if state is State.QUEUED or (old in PREPARES and state in {State.STARTING, State.WAITING}):
            if running is not None:
                self._end(running, "failed", machine.reason)
            running = self._begin(machine)
        if running is not None and state is not State.QUEUED:
            if state is State.WAITING and old in {State.STARTING, State.SETTLING}:
                running.how = machine.how.value
            elif state is State.FAILED:
                running.freeze()  # another one may begin before the end of this one is noted
            elif state not in ACTIVATING and state is not State.UP and not machine.is_failing:
                self._end(running, "lost" if state is State.UNKNOWN else "stopped", machine.reason)
                if old is State.QUEUED and machine.reason == Verdict.FULL.value:
                    self.totals.refused[Verdict.FULL] += 1
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
        self.totals.refused[verdict] += 1
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
        """Note that an operator holds a VM, or does not any more."""
        self._note("hold" if held else "release", vm, {})

    def made(self, vm: str, template: str, asker: str) -> None:
        """Note that *template* has made the VM *vm* for the client *asker*."""
        self._note("made", vm, {"template": template, "asker": asker})

    def forgotten(self, vm: str, reason: str) -> None:
        """Note that the VM *vm*, which a template had made, is forgotten, and why."""
        self._note("forgotten", vm, {"reason": reason})

    def backend(self, backend: str, reason: str | None) -> None:
        """Note that a hypervisor is lost, and why, or that it is connected (None)."""
        facts = {"backend": backend} if reason is None else {"backend": backend, "reason": reason}
        self._tell("connected" if reason is None else "lost", "", facts)

    # Keeping.

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
        self.totals.outcomes[outcome] += 1
        self._tell("activation", running.vm, {"activation": running.as_json()})

    def _note(self, kind: str, vm: str, facts: Mapping[str, Any]) -> None:
        """Make an event of a decision, and keep it with those of the VM."""
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
                self._failed()  # whatever goes wrong with a follower, the VM's life goes on
        return event
