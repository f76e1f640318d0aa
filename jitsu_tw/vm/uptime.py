"""
How long the VMs did not run, and what each did in the last 24 hours. Pure: no I/O.

For each VM that has run, there is a strip: a character for each half hour of the last 24 hours, the present one last:

=========  ==========================================
``-``      nobody knows
``.``      off
``z``      asleep: paused or saved
``p``      prepared
``f``      a start has failed, or its guest has
``1``-``9``  up, for so many ninths of the half hour
=========  ==========================================

The state has all of it as one value (`PATH`): a line for the time that was saved, one for each day, one for each strip.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from itertools import islice
from math import log
from typing import TYPE_CHECKING, Any, Final

import attrs
from zope.interface import implementer

from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import DOWN, PREPARES, RUNNING, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.vm.machine import Machine

#: The seconds of a character of a strip, and the characters of a whole one.
HALF_HOUR: Final = 1800
CHARACTERS: Final = 48

#: The most strips, those that changed last: 1 MB of memory, and 400 kB of the state.
MOST_STRIPS: Final = 5000

#: The days that are kept, by UTC, and the seconds of each.
DAYS: Final = 30
DAY: Final = 86400

#: The last day that the state may have: the end of the year 9999.
LAST_DAY: Final = 2_932_896

#: The largest number that the state may have: 30,000 VMs with 1 TiB each that were off for 1,000 years.
LARGEST: Final = 10**30

#: Times of starts are counted by classes, each with times that are up to a tenth longer: from 1 ms to a quarter of an
#: hour.
CLASS: Final = 1.1
CLASSES: Final = 144

#: Seconds between two times that the state gets it: so much of it a crash may lose.
WRITE_EVERY: Final = 1800.0

#: Where the state has it.
PATH: Final = "jitsu/uptime"

#: The states in which no memory of the host is used.
FREES: Final = DOWN - {State.PAUSED, State.PREPARED}

_UNKNOWN, _RUNS, _FAILED = "-", "r", "f"

#: The characters of strips.
SIGNS: Final = frozenset("-.zpf123456789")

#: What a strip has of each state.
KINDS: Final = {
    **dict.fromkeys(State, "."),
    **dict.fromkeys(RUNNING, _RUNS),
    **dict.fromkeys((State.PAUSED, State.SAVED), "z"),
    **dict.fromkeys(PREPARES | {State.PREPARED}, "p"),
    State.FAILED: _FAILED,
    State.UNKNOWN: _UNKNOWN,
}  # fmt: skip


@attrs.define(eq=False)
class Strip:
    """
    The last 24 hours of a VM.

    Attributes:
        number: the half hour that its last character will be of, counted since 1970.
        since: until when it has been accounted for, in seconds since 1970.
        kind: what the VM has been since then, one of `KINDS`.
        text: the characters of the half hours that are over.
        up: for how many seconds of the present half hour the VM ran.
        failed: whether it failed in the present half hour.
    """

    number: int
    since: float
    kind: str
    text: str = ""
    up: float = 0.0
    failed: bool = False

    @classmethod
    def read(cls, number: int, text: str, now: float) -> Strip:
        """
        Return the strip of *text*, whose last character is of the half hour *number*, at *now*.

        Raises:
            ValueError: *text* has other characters than strips have.
        """
        if not set(text) <= SIGNS:
            raise ValueError(text)
        last = text[-1:]
        up = int(last) * HALF_HOUR / 9 if last.isdigit() else 0.0
        return cls(number, now, _UNKNOWN, text[-CHARACTERS:-1], up, failed=last == _FAILED)

    def enter(self, kind: str, now: float) -> None:
        """Note that the VM is *kind* from *now* on, in seconds since 1970."""
        self.account(now)
        self.kind = kind
        self.failed |= kind == _FAILED

    def account(self, now: float) -> None:
        """
        Account for the time until *now*.

        Where the clock was set back a little, there is none until it is later again. Where it was set back further,
        what the strip has of *now* and later is dropped: else the strip would stand still until then, perhaps a year.
        """
        latest = int(now // HALF_HOUR)
        if self.number > latest + 1:
            self.text = self.text[: latest - self.number]
            self.number, self.since, self.up, self.failed = latest, now, 0.0, False
        elif self.number < latest:
            self._count((self.number + 1) * HALF_HOUR)
            whole = min(latest - self.number - 1, CHARACTERS) * ("9" if self.kind == _RUNS else self.kind)
            self.text = (self.text + self._last() + whole)[1 - CHARACTERS :]
            self.number, self.up, self.failed = latest, 0.0, False
            self.since = max(self.since, latest * HALF_HOUR)
        self._count(now)

    def _count(self, until: float) -> None:
        if until > self.since:
            self.up += (until - self.since) * (self.kind == _RUNS)
            self.since = until

    def _last(self) -> str:
        """Return the character of the present half hour."""
        if self.failed or self.kind == _FAILED:
            return _FAILED
        if self.up or self.kind == _RUNS:
            return str(min(9, max(1, round(9 * self.up / HALF_HOUR))))
        return self.kind

    def at(self, now: float) -> str:
        """Return the whole strip, at *now*."""
        self.account(now)
        return self.text + self._last()


@attrs.define(eq=False)
class Day:
    """
    The starts of one day.

    Attributes:
        failed: how many have failed.
        times: how many took how long, by the class of the time.
    """

    failed: int = 0
    times: Counter[int] = attrs.field(factory=Counter)

    @property
    def median(self) -> float | None:
        """The milliseconds that half of the starts took at most, to a twentieth; None if there was none."""
        left = self.times.total() / 2
        for class_, count in sorted(self.times.items()):
            left -= count
            if left <= 0:
                return float(CLASS ** (class_ + 0.5))
        return None


@implementer(IObserver)
class Uptime:
    """
    The time in which VMs did not run, the starts of each day, and the strips.

    It owns, and nobody else writes, all of these. The time counts from when this process has found a VM.

    Attributes:
        since: from when on the saved time was counted, in seconds since 1970.
        seconds: for how long VMs did not run, all together, until the last change.
        octet_seconds: the same, each second times the octets of the VM's memory while the host had them free.
        due: when the state is to have all this, on the clock of intervals.
        sizes: the octets of each VM's memory, by its name, where the hypervisor has told them.
    """

    follows: Final = frozenset(State)

    def __init__(self, machines: Mapping[str, Machine], clocks: Clocks) -> None:
        """Begin with nothing; *machines* are the VMs, by name."""
        self._machines, self._now, self._wall = machines, clocks.now, clocks.wall
        self._counted, self._down, self._free = clocks.now(), 0, 0
        self._strips: OrderedDict[str, Strip] = OrderedDict()
        self._days: OrderedDict[int, Day] = OrderedDict()
        self.since, self.seconds, self.octet_seconds = clocks.wall(), 0.0, 0.0
        self.due = self._counted + WRITE_EVERY
        self.sizes: dict[str, int] = {}

    # Asking.

    def strip(self, vm: str) -> str:
        """Return the last 24 hours of the VM *vm*; empty if nothing has happened to it that is remembered."""
        strip = self._strips.get(vm)
        return strip.at(self._wall()) if strip is not None else ""

    def saved(self) -> dict[str, Any]:
        """Return the time in which VMs did not run, as JSON has it."""
        self._count()
        return {
            "since": self.since,
            "seconds": self.seconds,
            "byte_seconds": self.octet_seconds,
            "measured": len(self.sizes),
        }

    def days(self) -> list[dict[str, Any]]:
        """Return the starts of the last days on which there were some, oldest first, as JSON has them."""
        return [
            {"date": _date(day), "starts": one.times.total(), "failed": one.failed, "median_ms": one.median}
            for day, one in sorted(self._days.items())
        ]

    # Noting.

    def moved(self, machine: Machine, old: State) -> None:
        """Note that *machine* has left the state *old* for another."""
        name, state = machine.vm.name, machine.state
        self._count()
        self._down += (state in DOWN) - (old in DOWN)
        self._free += self.sizes.get(name, 0) * ((state in FREES) - (old in FREES))
        kind = KINDS[state]
        strip = self._strips.get(name)
        if strip is None and kind in {_RUNS, _FAILED, "p"}:
            now = self._wall()
            strip = self._strips[name] = Strip(int(now // HALF_HOUR), now, KINDS[old])
            if len(self._strips) > MOST_STRIPS:
                self._strips.popitem(last=False)
        if strip is not None and kind != strip.kind:
            strip.enter(kind, self._wall())
            self._strips.move_to_end(name)
        if state is State.FAILED:
            self._today().failed += 1
        elif state is State.UP and old is State.WAITING and "ready" in machine.marks:
            self._today().times[_class(machine.marks["ready"] - machine.marks["query"])] += 1

    def size(self, machine: Machine, octets: int) -> None:
        """Note that the memory of *machine* has *octets*, unless it is not in the configuration any more."""
        if self._machines.get(machine.vm.name) is not machine:
            return
        self._count()
        self._free += (octets - self.sizes.get(machine.vm.name, 0)) * (machine.state in FREES)
        self.sizes[machine.vm.name] = octets

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more; nobody knows its state since then."""
        self.sizes.pop(machine.vm.name, None)
        self._strips.pop(machine.vm.name, None)

    def _count(self) -> None:
        """Count the time since the last call."""
        now = self._now()
        passed, self._counted = now - self._counted, now
        self.seconds += passed * self._down
        self.octet_seconds += passed * self._free

    def _today(self) -> Day:
        today = int(self._wall() // DAY)
        day = self._days.setdefault(today, Day())
        while len(self._days) > DAYS:  # the clock may have been set back: some may be later than today
            del self._days[max(self._days, key=lambda number: abs(number - today))]
        return day

    # The state.

    def lines(self) -> Iterator[str]:
        """Yield the lines of the value that the state is to have; it may change meanwhile."""
        self._count()
        self.due, now = self._counted + WRITE_EVERY, self._wall()
        yield f"saved {self.since:.0f} {self.seconds:.0f} {self.octet_seconds:.0f}"
        for number, day in list(self._days.items()):
            times = " ".join(f"{class_}:{count}" for class_, count in sorted(day.times.items()))
            yield f"day {number} {day.failed} {times}"
        for name, strip in list(self._strips.items()):
            text = strip.at(now)
            if text.strip(".-"):
                yield f"vm {strip.number} {text} {name}"

    def start(self, tree: Mapping[str, str]) -> None:
        """Begin with what the state *tree* has; what cannot be read of it is left out."""
        for line in tree.get(PATH, "").split("\n"):
            try:
                self._read(line)
            except ValueError:
                continue

    def _read(self, line: str) -> None:
        """Read a line; a ValueError says that it is none."""
        match line.split(" ", 3):
            case ["saved", since, seconds, octet_seconds]:
                numbers = _whole(since, LAST_DAY * DAY), _whole(seconds), _whole(octet_seconds)
                self.since, self.seconds, self.octet_seconds = numbers
            case ["day", number, failed, times] if len(self._days) < DAYS:
                pairs = (pair.split(":") for pair in islice(times.split(), CLASSES + 1))
                counted = Counter({min(_whole(class_), CLASSES): _whole(count) for class_, count in pairs})
                self._days[_whole(number, LAST_DAY)] = Day(_whole(failed), counted)
            case ["vm", number, text, name] if name in self._machines and len(self._strips) < MOST_STRIPS:
                self._strips[name] = Strip.read(_whole(number), text, self._wall())


def _whole(text: str, most: int = LARGEST) -> int:
    """Return the number in *text*; a ValueError says that it is none from 0 to *most*."""
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise ValueError(text)
    return int(text)


def _class(seconds: float) -> int:
    """Return the class of a time."""
    return min(CLASSES, int(log(max(1.0, seconds * 1000), CLASS)))


def _date(day: int) -> str:
    """Return a day as ISO 8601 has it, by UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY))
