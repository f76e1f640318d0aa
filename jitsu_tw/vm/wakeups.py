"""VMs that are up without being asked for: in their weekly windows (`keep_up`), or held by an operator."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from zope.interface import implementer

from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import DOWN, STOPS, WANTED, State
from jitsu_tw.rules.schedule import kept_until, next_begin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from twisted.internet.interfaces import IDelayedCall
    from twisted.logger import Logger

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.observers import IWakeupObserver

#: Seconds before the begin of a weekly window at which its VM is started: most guests are up by then.
EARLY: Final = 60.0

#: Seconds after which a start for a weekly window that failed is tried again.
TRY_AGAIN: Final = 30.0

#: The wall clock is compared with the steady clock this often, in seconds, and counts as set when the two have moved
#: apart by this much, in seconds.
WALL_EVERY: Final = 30.0
WALL_SET: Final = 1.0


@implementer(IObserver)
class Wakeups:
    """
    Starts VMs in their weekly windows, and those that an operator holds when they go down.

    It owns, and nobody else writes: which VMs are held, which an operator has stopped, until when the present windows
    last, when the next ones begin, and the timers of starts to come. The windows of many VMs may begin at one time:
    there is one timer for each time, and VMs are looked at in slices of time.
    """

    follows: Final = DOWN | {State.UNKNOWN}

    def __init__(
        self, machines: Mapping[str, Machine], clocks: Clocks, observer: IWakeupObserver, log: Logger
    ) -> None:
        """Start none of *machines*, which are by the VM's name, before it is watched; *log* gets jumps of the clock."""
        self._machines, self._observer, self._log = machines, observer, log
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._held: set[str] = set()
        self._stopped: set[str] = set()
        self._windows: dict[str, float] = {}
        self._begins: dict[str, float] = {}
        self._timers: dict[float, tuple[IDelayedCall, dict[str, Machine]]] = {}
        self._wakes: dict[str, IDelayedCall] = {}
        self._zero = 0.0
        self._wall_look: IDelayedCall | None = None

    def stop(self) -> None:
        """Start no VM any more."""
        self._begins.clear()
        timers = (timer for timer, _ in self._timers.values())
        for call in (self._wall_look, *timers, *self._wakes.values()):
            if call is not None and call.active():
                call.cancel()

    def forget(self, machine: Machine) -> None:
        """Start *machine*, which is not in the configuration any more, no more."""
        name = machine.vm.name
        self._stopped.discard(name)
        self._windows.pop(name, None)
        self._unplan(name)
        wake = self._wakes.pop(name, None)
        if wake is not None and wake.active():
            wake.cancel()

    # Held by an operator.

    def hold(self, machine: Machine) -> None:
        """Start *machine* again whenever it goes down, until it is released."""
        self._held.add(machine.vm.name)

    def release(self, machine: Machine) -> None:
        """Give *machine* the lease of any other VM, if it was held."""
        self._held.discard(machine.vm.name)
        self._observer.released(machine)

    def is_held(self, name: str) -> bool:
        """Return whether an operator holds the VM *name*."""
        return name in self._held

    @property
    def held(self) -> int:
        """How many VMs operators hold."""
        return len(self._held)

    def stopped(self, machine: Machine) -> None:
        """Leave *machine*, which an operator stops, down until it is asked for or its next weekly window begins."""
        self._stopped.add(machine.vm.name)

    def asked(self, machine: Machine) -> None:
        """Note that *machine* is asked for, or up, since an operator has stopped it."""
        self._stopped.discard(machine.vm.name)

    def moved(self, machine: Machine, old: State) -> None:
        """Start *machine*, which is down, again if it is held or has windows: at once, or after its rest."""
        if old in STOPS | {State.UP, State.UNKNOWN} and (machine.vm.keep_up or self.is_held(machine.vm.name)):
            self._wake_in(max(0.0, machine.failures.retry_at - self._now()), machine)

    # Weekly windows.

    def window(self, machine: Machine) -> float:
        """Return when the weekly window ends, on the clock `now`, that *machine* is in; minus infinity for none."""
        end = self._windows.get(machine.vm.name, -inf)
        return self.find_window(machine) if -inf < end <= self._now() else end

    def find_window(self, machine: Machine) -> float:
        """Return the same after a look at the wall clock, which may have run apart from `now`, and the settings."""
        spans, wall = machine.vm.keep_up, self._wall()
        end = kept_until(spans, wall) or kept_until(spans, wall + EARLY)
        if end is None:
            self._windows.pop(machine.vm.name, None)
            return -inf
        self._windows[machine.vm.name] = self._now() + end - wall
        return self._windows[machine.vm.name]

    def watch(self, machine: Machine) -> None:
        """Start *machine* whenever one of its weekly windows begins; and now, if it is in one."""
        self._unplan(machine.vm.name)
        if not machine.vm.keep_up:
            return
        if self._wall_look is None:
            self._zero = self._wall() - self._now()
            self._wall_look = self._reactor.callLater(WALL_EVERY, self._look_at_wall)
        self.find_window(machine)
        self._wake(machine)
        wall = self._wall() + EARLY
        begins = next_begin(machine.vm.keep_up, wall)
        assert begins is not None
        self._begins[machine.vm.name] = begins
        if begins in self._timers:
            self._timers[begins][0].reset(begins - wall)
        else:
            self._timers[begins] = self._reactor.callLater(begins - wall, self._windows_begin, begins), {}
        self._timers[begins][1][machine.vm.name] = machine

    def _unplan(self, name: str) -> None:
        """Plan no begin of a window of the VM *name*."""
        begins = self._begins.pop(name, None)
        if begins is None or begins not in self._timers:
            return
        timer, machines = self._timers[begins]
        machines.pop(name, None)
        if not machines:
            timer.cancel()
            del self._timers[begins]

    def _windows_begin(self, begins: float) -> None:
        """Start the VMs whose windows begin at *begins* of the wall clock, if that has come; plan the next windows."""
        _, machines = self._timers.pop(begins)
        self._observer.do_in_slices(self._beginning(machines, begins))

    def _beginning(self, machines: Mapping[str, Machine], begins: float) -> Iterator[None]:
        """Do the same with *machines*, one at a time, but for those that have been planned anew or forgotten since."""
        for name, machine in machines.items():
            if self._begins.get(name) == begins:
                if self._wall() + EARLY >= begins:
                    self._stopped.discard(name)
                self.watch(machine)
                yield

    def _look_at_wall(self) -> None:
        """Plan all weekly windows anew if the wall clock was set, or the steady clock has stood still."""
        self._wall_look = self._reactor.callLater(WALL_EVERY, self._look_at_wall)
        before, self._zero = self._zero, self._wall() - self._now()
        if abs(self._zero - before) < WALL_SET:
            return
        self._log.info(
            "the clock is {seconds:+.0f} s from where it was expected (it was set, or this machine slept); times of "
            "the week follow it",
            seconds=self._zero - before,
        )
        self._observer.do_in_slices(self._planning_anew())

    def _planning_anew(self) -> Iterator[None]:
        """Plan the weekly windows of all VMs anew, one VM at a time."""
        for machine in list(self._machines.values()):
            if machine.vm.name in self._begins:
                self.watch(machine)
                self._observer.window_changed(machine)
                yield

    def _wake(self, machine: Machine) -> None:
        """Start *machine* if it is held or in a weekly window, unless an operator has stopped it."""
        name = machine.vm.name
        is_due = self.is_held(name) or (machine.vm.keep_up and self.window(machine) > self._now())
        if is_due and machine.state not in WANTED and name not in self._stopped:
            why = "held by hand" if self.is_held(name) else "its time of the week"
            machine.summon(why, insist=True, is_client=False).addErrback(lambda _: self._wake_in(TRY_AGAIN, machine))

    def _wake_in(self, seconds: float, machine: Machine) -> None:
        """Start *machine* in *seconds*, if that is still due then."""
        wake = self._wakes.get(machine.vm.name)
        if wake is None or not wake.active():
            self._wakes[machine.vm.name] = self._reactor.callLater(seconds, self._wake, machine)
