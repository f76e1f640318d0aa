"""
Which VM is prepared next for a later start, and which prepared VM is given up. Pure: times are arguments.

Two kinds of VMs are prepared: those with `prepare`, and those whose image is to be made (`boot_from: snapshot`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from jitsu_tw.ijitsu import Start as How
from jitsu_tw.rules.lifecycle import PREPARES, State
from jitsu_tw.settings import Boot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jitsu_tw.ijitsu import Memory
    from jitsu_tw.settings import VM

#: Seconds from a preparation that has failed to the next one of the same VM: at first (doubled each time), and at most.
PREPARE_AGAIN: Final = (60.0, 3600.0)

#: After a preparation, the memory of so many VMs like that one must still be free on the host, for starts.
SPARE: Final = 1


#: States from which a VM can be prepared.
IDLE: Final = frozenset({State.OFF, State.FAILED})


class Choice(NamedTuple):
    """
    What is to be done next.

    Attributes:
        prepare: the name of the VM to prepare; None for none.
        give_up: the name of the prepared VM to destroy, before anything is prepared; None for none.
    """

    prepare: str | None = None
    give_up: str | None = None


def choose(waiting: Mapping[str, float], prepared: Mapping[str, float], most: int) -> Choice:
    """
    Return which VM is to be prepared, and stays so.

    The VMs that were used last are, as they are likely to be used next.

    Args:
        waiting: the VMs that are to be prepared, by name, and when each was last used.
        prepared: the same of the VMs that are prepared.
        most: how many may be prepared.
    """
    oldest = min(prepared, key=lambda name: (prepared[name], name), default=None)
    if len(prepared) > most:
        return Choice(give_up=oldest)
    newest = max(waiting, key=lambda name: (waiting[name], name), default=None)
    if newest is None or len(prepared) < most:
        return Choice(prepare=newest)
    if oldest is not None and prepared[oldest] < waiting[newest]:
        return Choice(give_up=oldest)
    return Choice()


def shortage(memory: Memory | None) -> str:
    """Return why a VM may not be prepared, in words; empty if its host has *memory* enough, or nobody can tell."""
    if memory is None or memory.needed * (1 + SPARE) <= memory.free:
        return ""
    return memory.shortage or "then its host would have too little memory for another start"


def pause(failures: int) -> float:
    """Return the seconds until a VM is prepared again after *failures* in a row, at least one."""
    first, longest = PREPARE_AGAIN
    return min(longest, first * 2.0 ** min(failures - 1, 16))


@attrs.frozen
class Rest:
    """
    Why a VM is not prepared for a while.

    Attributes:
        failures: how often in a row its preparation has failed.
        until: when it may be tried again.
    """

    failures: int = 0
    until: float = 0.0


#: What most VMs have.
NO_REST: Final = Rest()


@attrs.define(eq=False)
class Book:
    """
    What is known of the VMs that are to be prepared, or are; each is known by its name.

    Attributes:
        waiting: those that are to be prepared, the last used last.
        images: of these, and of those that run, those whose image is to be made.
        prepared: those that are prepared.
        seeds: templates whose VMs may start from one image that is to be made, and a VM of each that has booted.
        cloned: templates whose VMs start from one image, as the last one of them that came up did.
        up: when each was last up, in seconds since 1970.
        rests: why some, and the seeds of some templates, are not tried for a while; times are those of the fleet's
            clock.
    """

    waiting: dict[str, None] = attrs.field(factory=dict)
    images: set[str] = attrs.field(factory=set)
    prepared: set[str] = attrs.field(factory=set)
    seeds: dict[str, str] = attrs.field(factory=dict)
    cloned: set[str] = attrs.field(factory=set)
    up: dict[str, float] = attrs.field(factory=dict)
    rests: dict[str, Rest] = attrs.field(factory=dict)

    def moved(self, vm: VM, old: State, state: State, how: How, wall: float) -> None:
        """Note that *vm*, which was last started as *how* says, has left the state *old* for *state*."""
        if State.UP in {old, state}:
            self.up[vm.name] = wall
        alike = vm.template if "define" not in vm.raw else None  # else its template is defined otherwise
        if alike is not None and state is State.UP and vm.boot_from is Boot.SNAPSHOT:
            if how is How.CLONED:
                self.cloned.add(alike)
            elif how is How.BOOTED:
                self.cloned.discard(alike)
                self.seeds[alike] = vm.name
        if state in IDLE and old not in PREPARES and vm.boot_from is Boot.SNAPSHOT and how is How.BOOTED:
            if alike not in self.cloned and vm.layer is None:  # with a layer, a disk to write to, it can have no image
                self.images.add(vm.name)  # there was no image to start from
        elif state is State.PREPARED or (old is State.KEEPING and state is State.OFF):
            self.images.discard(vm.name)
        self.sort(vm, state)

    def sort(self, vm: VM, state: State) -> None:
        """Note whether *vm* waits to be prepared, or is."""
        waits = state in IDLE and (vm.prepare or vm.name in self.images)
        if waits:
            self.waiting.setdefault(vm.name)
        else:
            self.waiting.pop(vm.name, None)
        if state is State.PREPARED:
            self.prepared.add(vm.name)
        else:
            self.prepared.discard(vm.name)

    def order(self, used: Mapping[str, float]) -> None:
        """Begin with those that wait in the order of their last use, which *used* has."""
        self.waiting = dict.fromkeys(sorted(self.waiting, key=lambda name: used[name]))

    def forget(self, name: str) -> None:
        """Forget a VM."""
        for names in (self.images, self.prepared):
            names.discard(name)
        for known in (self.waiting, self.up, self.rests):
            known.pop(name, None)
        self.seeds = {template: one for template, one in self.seeds.items() if one != name}

    def failed(self, name: str, now: float) -> float:
        """Note that the preparation of a VM has failed; return the seconds until it is tried again."""
        failures = self.rests.get(name, NO_REST).failures + 1
        self.rests[name] = Rest(failures, now + pause(failures))
        return pause(failures)

    def wait(self, name: str, until: float) -> None:
        """Note that a VM is not tried before *until*, without a fault of its own."""
        self.rests[name] = Rest(self.rests.get(name, NO_REST).failures, until)

    def ready(self, now: float) -> Iterator[str]:
        """Yield those that may be prepared now, the last used first."""
        return (name for name in reversed(self.waiting) if self.rests.get(name, NO_REST).until <= now)

    def next_seed(self, now: float) -> str | None:
        """Return a template whose image may be made now; None for none."""
        return next((name for name in self.seeds if now >= self.rests.get(name, NO_REST).until), None)

    def next_ready(self) -> float | None:
        """Return when the first of those that rest may be prepared; None if none rests."""
        resting = (rest.until for name, rest in self.rests.items() if name in self.waiting or name in self.seeds)
        return min(resting, default=None)
