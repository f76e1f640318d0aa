"""
Which VMs are kept, and for how long: leases and what renews them, times of the week, signs of life.

A lease is looked at when it may end, and a few times before, to see whether the guest is in use without being asked
for. What a look costs depends on how many are due, not on how many VMs there are.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger

from jitsu_tw.cluster.stop_notice import NOTICE
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.readiness import has_port, port_of
from jitsu_tw.rules.lease import SHORTEST_LOOK, Lease, Leases, Meter, look_every
from jitsu_tw.rules.lifecycle import DOWN, WANTED, State
from jitsu_tw.rules.schedule import kept_until, next_begin
from jitsu_tw.rules.vitals import Sign, Window, sign_of_life
from jitsu_tw.settings import Evidence
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.claims import Claims
    from jitsu_tw.readiness import Strategies
    from jitsu_tw.vm.machine import Machine

#: A VM is started so many seconds before its time of the week begins: most guests are up by then.
EARLY: Final = 60.0

#: A VM that was used less than so many seconds ago does not make room: the client may be about to connect.
JUST_USED: Final = 5.0

#: A start for a time of the week that failed is tried again after so many seconds.
TRY_AGAIN: Final = 30.0

#: Before leases are looked at, the reactor reads the sockets in this many turns: the first takes a connection, the
#: second reads the question that it brings.
TURNS: Final = 2

#: The wall clock is compared with the steady one this often, in seconds, and counts as set when the two have moved
#: apart by this much, in seconds.
WALL_EVERY: Final = 30.0
WALL_SET: Final = 1.0

#: Whether a guest is alive: its port is tried this often for so long, in seconds; if it is silent, the guest is
#: observed without being disturbed; then its port is tried again. An idle Linux guest uses a tick of CPU within that.
CHECK_RETRY: Final = 0.5
CHECK_PATIENCE: Final = 5.0
CHECK_QUIET: Final = 20.0

#: Seconds from one try to stop a VM that cannot be stopped to the next: at first (doubled each time), and at most.
STOP_AGAIN: Final = (60.0, 3600.0)

#: What an operator reads of a VM whose use cannot be seen.
UNCOUNTED: Final = (
    "nobody counts the packets of its guest, so it is not stopped when it is idle; with evidence: queries it is, after "
    "its last question"
)


class LeaseKeeper:
    """The leases of a fleet."""

    log = Logger()

    def __init__(
        self,
        machines: Mapping[str, Machine],
        clocks: Clocks,
        port: Strategies,
        needed: Callable[[Machine], bool],
        sharing: Claims,
    ) -> None:
        """
        Begin with no lease.

        Args:
            machines: those that are looked after, by name.
            clocks: tell the time.
            port: tries ports.
            needed: says whether a VM that is up, or about to be, needs this one.
            sharing: knows whose they are; those of others are kept by them.
        """
        self._machines, self._port, self._needed, self._sharing = machines, port, needed, sharing
        self._reactor, self._now, self._wall = clocks.reactor, clocks.now, clocks.wall
        self._leases = Leases()
        self._next: IDelayedCall | None = None
        self._reading = False
        self._zero = 0.0
        self._wall_look: IDelayedCall | None = None
        self._times: dict[str, IDelayedCall] = {}
        self._waking: dict[str, IDelayedCall] = {}
        self._checking: dict[str, Deferred[None]] = {}
        self._resting: set[str] = set()
        self._by_hand: set[str] = set()
        self._suspended: dict[str, tuple[float, float]] = {}
        self._stop_failures: dict[str, int] = {}

    def stop(self) -> None:
        """Look at nothing any more."""
        for call in (self._next, self._wall_look, *self._times.values(), *self._waking.values()):
            if call is not None and call.active():
                call.cancel()
        for checking in list(self._checking.values()):
            checking.cancel()

    # Leases.

    def lease(self, name: str) -> Lease | None:
        """Return the lease of the VM *name*; None if it has none."""
        return self._leases.get(name)

    def left(self, name: str) -> float | None:
        """Return the seconds until the VM *name* is stopped if nobody uses it; None if it has no lease."""
        lease = self._leases.get(name)
        return None if lease is None else max(0.0, lease.ends() - self._now())

    def renew(self, machine: Machine) -> None:
        """Note that *machine*, if it is up, is used now."""
        self._sharing.use(machine, self._now())
        lease, now = self._leases.get(machine.vm.name), self._now()
        self._resting.discard(machine.vm.name)
        if lease is not None:
            lease.use(now)
            if now >= lease.check_at:
                self.check(machine)
        elif machine.state is State.UP and self._sharing.is_joined:
            self.grant(machine, now, now, is_new=False)
        elif machine.vm.name in self._suspended:
            self._suspended[machine.vm.name] = 0.0, self._suspended[machine.vm.name][1]

    def used(self, machine: Machine, when: float) -> None:
        """Hear that *machine* was used somewhere, at *when*."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            lease.use(min(when, self._now()))
            self._goes_on(machine, lease)

    def _goes_on(self, machine: Machine, lease: Lease) -> None:
        """Tell the others that *machine* is not to be stopped, if they believe so and there is no reason any more."""
        kept = max(lease.used + lease.idle, lease.started + lease.min_up, self._kept(machine))
        if min(kept, lease.started + self._max_up(machine)) > self._now():
            self._sharing.goes_on(machine)

    def grant(self, machine: Machine, used: float, started: float, *, is_new: bool = True) -> None:
        """Give *machine* a lease, as if it had been started and used at those times."""
        vm = machine.vm
        lease = Lease(vm.idle, vm.min_up, used, started)
        self._leases.grant(vm.name, lease, later=True)
        self._resting.discard(vm.name)
        self._suspended.pop(vm.name, None)
        self._look_after(machine, lease, is_new=is_new)

    def _look_after(self, machine: Machine, lease: Lease, *, is_new: bool) -> None:
        """Let *lease* be as the settings of *machine*, and whose that is, demand; and look at it when it is due."""
        vm = machine.vm
        if vm.check_every and has_port(vm, machine.backend) and self._sharing.is_ours(machine):
            lease.check_at = self._now() + vm.check_every
        lease.kept, lease.max_up = self._kept(machine), self._max_up(machine)
        lease.blind = self._counts(machine)
        if is_new or not self._sharing.is_ours(machine):
            self._leases.again(vm.name)
        self._plan()
        counting = Deferred.fromCoroutine(self._begin_to_count(machine, lease, is_new=is_new))
        counting.addErrback(self._unexpected, machine)

    def adopt(self, machine: Machine, used: float, started: float) -> None:
        """Give *machine*, which is found running, what is left of its lease, but time to see if it is in use."""
        self.grant(machine, used, started, is_new=False)

    def _max_up(self, machine: Machine) -> float:
        is_kept = self.is_held(machine.vm.name) or not self._sharing.is_ours(machine)
        return inf if is_kept else machine.vm.max_up or inf

    def _kept(self, machine: Machine) -> float:
        """Return until when `keep_up` keeps *machine*, on our clock, or a person does, or who has it."""
        if self.is_held(machine.vm.name) or not self._sharing.is_ours(machine):
            return inf
        spans, wall = machine.vm.keep_up, self._wall()
        until = (kept_until(spans, wall) or kept_until(spans, wall + EARLY)) if spans else None
        return -inf if until is None else self._now() + until - wall

    def _counts(self, machine: Machine) -> bool:
        """Return whether this node is to count the packets of *machine*'s guest."""
        return machine.vm.evidence is Evidence.TRAFFIC and self._sharing.is_ours(machine)

    async def _begin_to_count(self, machine: Machine, lease: Lease, *, is_new: bool) -> None:
        """Give *lease* a meter, if packets are evidence; a guest that is not new sends no greeting."""
        if self._counts(machine):
            total = await self._traffic(machine, lease)
            if self._leases.get(machine.vm.name) is not lease:
                return
            # What a guest has sent that cannot be counted yet will look like a use, once.
            lease.meter = Meter(machine.vm.idle_packets, total or 0, self._now())
            if not is_new:
                lease.meter.level = 0.0
                lease.kept = max(lease.kept, self._now() + look_every(lease.idle))
        else:
            machine.problem(Problem.EVIDENCE)
        if lease.planned is not None or not is_new:
            self._leases.again(machine.vm.name)
            self._plan()

    async def _traffic(self, machine: Machine, lease: Lease) -> int | None:
        """Return how many packets the guest has sent; None, and *lease* is blind, while that cannot be read."""
        try:
            total = await machine.backend.traffic(machine.uuid)
        except NoSuchVM as error:
            total = None
            machine.look(str(error))
        except BackendLost:
            total = None
        except BackendError as error:
            total = None
            machine.problem(Problem.EVIDENCE, f"its packets cannot be counted, so it is not stopped when idle: {error}")
        else:
            machine.problem(Problem.EVIDENCE, *((UNCOUNTED,) if total is None else ()))
        lease.blind = total is None
        return total

    def drop(self, machine: Machine) -> None:
        """Suspend the lease of *machine*, which stops or reboots and may be up again; if it is down, forget it."""
        name, state, now = machine.vm.name, machine.state, self._now()
        lease = self._leases.get(name)
        self._leases.drop(name)
        if state not in {State.STOPPING, State.WAITING}:
            self._suspended.pop(name, None)
            if state in DOWN:
                self._stop_failures.pop(name, None)
        elif lease is not None:
            self._suspended[name] = now - lease.used, now - lease.started

    def resume(self, machine: Machine, *, is_new: bool) -> bool:
        """
        Give *machine*, which is up again, the lease that was suspended, as if no time had passed meanwhile.

        Args:
            machine: has rebooted, or could not be stopped.
            is_new: its guest has booted, so that it may greet its neighbours.

        Returns:
            whether there was one.
        """
        ages = self._suspended.pop(machine.vm.name, None)
        if ages is None:
            return False
        self.grant(machine, *(self._now() - age for age in ages), is_new=is_new)
        return True

    def regrant(self, machine: Machine) -> None:
        """Let the lease and the times of *machine* be as its settings say by now."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            self.grant(machine, lease.used, lease.started, is_new=False)

    def pass_on(self, machine: Machine, used: float, started: float) -> None:
        """Let the lease of *machine*, which has another owner now, be as that demands."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            lease.used, lease.started, lease.meter, lease.check_at = max(lease.used, used), started, None, inf
            self._look_after(machine, lease, is_new=False)

    def forget(self, machine: Machine) -> None:
        """Look after *machine* no more."""
        name = machine.vm.name
        self._leases.drop(name)
        self._resting.discard(name)
        self._suspended.pop(name, None)
        self._stop_failures.pop(name, None)
        for call in (self._times.pop(name, None), self._waking.pop(name, None)):
            if call is not None and call.active():
                call.cancel()

    def _plan(self) -> None:
        """See to it that the leases are looked at when the next one is due."""
        if self._reading:
            return  # the look that follows plans again
        look = self._leases.next_look()
        if self._next is not None and self._next.active():
            self._next.cancel()
        if look is not None and look < inf:
            self._next = self._reactor.callLater(max(0.0, look - self._now()), self._look, TURNS)

    def _look(self, turns: int) -> None:
        """Look at the leases that are due, after *turns* turns of the reactor: a use may wait in a socket."""
        self._reading = turns > 0
        if turns:
            self._next = self._reactor.callLater(0, self._look, turns - 1)
            return
        for name in self._leases.due(self._now()):
            lease, machine = self._leases.get(name), self._machines[name]
            assert lease is not None
            if lease.meter is None:
                self._settle(machine, lease)
            else:
                counted = Deferred.fromCoroutine(self._count(machine, lease))
                counted.addErrback(self._unexpected, machine)
        self._plan()

    async def _count(self, machine: Machine, lease: Lease) -> None:
        """Renew a lease whose guest was in use since the last look."""
        await self.in_use(machine, lease)
        self._settle(machine, lease)
        self._plan()

    def _unexpected(self, failure: Any, machine: Machine) -> None:
        """Tell of a fault of ours, and keep the VM: a lease that nobody looks at any more would never end."""
        name = machine.vm.name
        self.log.failure("{name}: unexpected, please report", failure, name=name)
        lease = self._leases.get(name)
        if lease is not None and lease.planned is None:
            lease.meter = None
            lease.use(self._now())
            self._leases.again(name)
            self._plan()

    async def in_use(self, machine: Machine, lease: Lease) -> bool:
        """Say whether the guest was in use since the last look without being asked for; then its lease is renewed."""
        meter = lease.meter  # the lease may have none when the answer comes: another one of us may have it by then
        if meter is None:
            return False
        total = await self._traffic(machine, lease)
        if total is None:
            # Nobody knows: it is not stopped for that.
            meter.at, used = self._now(), True
        else:
            used = meter.used(total, self._now())
        if used:
            lease.use(self._now())
            self._sharing.use(machine, self._now())
        return used

    def _settle(self, machine: Machine, lease: Lease) -> None:
        """Stop a VM whose lease has ended, or look again later."""
        name, now = machine.vm.name, self._now()
        if self._leases.get(name) is not lease:
            return
        too_long = lease.started + lease.max_up <= now
        if lease.ends() <= now and not too_long:
            lease.kept = self._kept(machine)
            if self._needed(machine):
                lease.use(now)
        if lease.ends() > now:
            self._goes_on(machine, lease)
            self._leases.again(name)
            return
        if not self._sharing.may_end(machine):
            lease.kept = now + NOTICE / 3 if self._sharing.is_ours(machine) else inf
            lease.max_up = max(lease.max_up, lease.kept - lease.started)
            self._leases.again(name)
            return
        reason = f"up for {machine.vm.max_up:g} s" if too_long else f"idle for {lease.idle:g} s"
        Deferred.fromCoroutine(self.end(machine, reason)).addErrback(self._unexpected, machine)

    async def end(self, machine: Machine, reason: str) -> bool:
        """
        Begin to stop *machine*, whose lease is over; if it cannot be stopped, that is tried again after a while.

        Returns:
            whether its stop has begun: not if it was used meanwhile, or it is known that it cannot be stopped.
        """
        lease = self._leases.get(machine.vm.name)
        assert lease is not None
        used, asked, lease.planned = lease.used, self._now(), None
        can = await machine.can_stop()
        if can and self._now() - asked >= SHORTEST_LOOK:
            await self.in_use(machine, lease)  # the answer took long, and what was counted before it is old
        if self._leases.get(machine.vm.name) is not lease or machine.state is not State.UP:
            return False
        if can and lease.used == used:
            machine.stop(reason).addCallback(self._ended, machine, reason)
            return True
        if not can:
            self._leave(machine.vm.name, lease)
        self._leases.again(machine.vm.name)
        self._plan()
        return False

    def _ended(self, state: State, machine: Machine, reason: str) -> None:
        """Log that *machine* has been stopped, or keep it if it could not be."""
        name, lease = machine.vm.name, self._leases.get(machine.vm.name)
        if state is not State.UP:
            self.log.info("{name}: {reason}, stopped ({mode})", name=name, reason=reason, mode=machine.vm.mode.value)
        elif lease is not None:
            self._leave(name, lease)
            self._leases.again(name)
            self._plan()

    def _leave(self, name: str, lease: Lease) -> None:
        """Keep a VM that cannot be stopped until that is tried again."""
        failures = self._stop_failures[name] = self._stop_failures.get(name, 0) + 1
        first, longest = STOP_AGAIN
        lease.kept = max(lease.kept, self._now() + min(longest, first * 2.0 ** (failures - 1)))
        lease.max_up = max(lease.max_up, lease.kept - lease.started)

    def idlest(self) -> list[Machine]:
        """Return the VMs that may be stopped to make room, who is idle the longest first."""
        found = [(lease.used, name) for name, lease in self._leases.items() if self.may_go(self._machines[name])]
        return [self._machines[name] for _, name in sorted(found)]

    def may_go(self, machine: Machine) -> bool:
        """Say whether *machine* may be stopped to make room."""
        lease = self._leases.get(machine.vm.name)
        if lease is None or lease.planned is None or machine.state is not State.UP:
            return False
        until = max(lease.used + JUST_USED, lease.started + lease.min_up, lease.kept)
        return until <= self._now() and not self._needed(machine)

    # Held by hand.

    def hold(self, machine: Machine) -> None:
        """Keep *machine* up, and start it again if it goes down, until it is released."""
        self._by_hand.add(machine.vm.name)
        self._anew(machine)

    def release(self, machine: Machine) -> None:
        """Let *machine* have the lease of any other, if it was held."""
        self._by_hand.discard(machine.vm.name)
        self._anew(machine)

    def is_held(self, name: str) -> bool:
        """Say whether a person holds the VM *name*."""
        return name in self._by_hand

    def _anew(self, machine: Machine) -> None:
        """Count *machine*'s lease from now, by what holds for it now."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            lease.use(self._now())
            lease.kept, lease.max_up = self._kept(machine), self._max_up(machine)
            if lease.planned is not None:
                self._leases.again(machine.vm.name)
                self._plan()

    def keeps(self, machine: Machine) -> str:
        """Return in words what keeps *machine* up; nothing if it has no lease."""
        lease, now = self._leases.get(machine.vm.name), self._now()
        if lease is None:
            return ""
        if self.is_held(machine.vm.name):
            return "held by hand"
        if not self._sharing.is_ours(machine):
            return f"kept by {self._sharing.owner(machine) or 'another node'}"
        if self._needed(machine):
            return "needed by a VM that is up"
        if lease.blind:
            return "whether it is in use cannot be seen"
        if machine.vm.name in self._stop_failures and lease.kept > now:
            return "it cannot be stopped"
        if lease.kept > now:
            return "its time of the week"
        if lease.started + lease.min_up > max(now, lease.used + lease.idle):
            return f"its min_up of {lease.min_up:g} s"
        return f"used {now - lease.used:.0f} s ago"

    @property
    def leases(self) -> int:
        """How many VMs have a lease."""
        return len(self._leases)

    @property
    def held(self) -> int:
        """How many VMs a person holds."""
        return len(self._by_hand)

    # Times of the week.

    def keep_times(self, machine: Machine) -> None:
        """From now on, start *machine* whenever one of its times of the week begins; and now, if one has begun."""
        if machine.vm.keep_up:
            if self._wall_look is None:
                self._zero = self._wall() - self._now()
                self._wall_look = self._reactor.callLater(WALL_EVERY, self._look_at_wall)
            self.wake(machine)
            wall = self._wall() + EARLY
            begins = next_begin(machine.vm.keep_up, wall)
            assert begins is not None
            before = self._times.get(machine.vm.name)
            if before is not None and before.active():
                before.cancel()
            self._times[machine.vm.name] = self._reactor.callLater(begins - wall, self._time_begins, machine, begins)

    def _time_begins(self, machine: Machine, begins: float) -> None:
        """Start *machine* if its time of the week, which begins at *begins*, has come; plan for the next one."""
        if self._wall() + EARLY >= begins:
            self._resting.discard(machine.vm.name)
        self.keep_times(machine)

    def _look_at_wall(self) -> None:
        """Plan the times of the week anew if the wall clock was set, or the steady clock has stood still."""
        self._wall_look = self._reactor.callLater(WALL_EVERY, self._look_at_wall)
        before, self._zero = self._zero, self._wall() - self._now()
        if abs(self._zero - before) < WALL_SET:
            return
        self.log.info(
            "the clock is {seconds:+.0f} s from where it was expected (it was set, or this machine slept); times of "
            "the week follow it",
            seconds=self._zero - before,
        )
        for machine in self._machines.values():
            self.keep_times(machine)
            lease = self._leases.get(machine.vm.name)
            if machine.vm.keep_up and lease is not None and lease.planned is not None:
                self._leases.again(machine.vm.name)
        self._plan()

    def rest(self, machine: Machine) -> None:
        """Leave *machine*, which a person stopped, alone until it is asked for or its next time of the week begins."""
        self._resting.add(machine.vm.name)

    def wake(self, machine: Machine) -> None:
        """Start *machine* if its time of the week says that it is up now; if it is up, keep it."""
        lease, name = self._leases.get(machine.vm.name), machine.vm.name
        if lease is not None:
            lease.kept = self._kept(machine)
        elif self._kept(machine) > self._now() and machine.state not in WANTED and name not in self._resting:
            why = "held by hand" if self.is_held(name) else "its time of the week"
            machine.summon(why, insist=True, is_client=False).addErrback(lambda _: self._wake_in(TRY_AGAIN, machine))

    def went_down(self, machine: Machine) -> None:
        """Start *machine* again if it is its time of the week, or a person holds it."""
        if machine.vm.keep_up or self.is_held(machine.vm.name):
            self._wake_in(max(0.0, machine.retry_at - self._now()), machine)

    def _wake_in(self, seconds: float, machine: Machine) -> None:
        waking = self._waking.get(machine.vm.name)
        if waking is None or not waking.active():
            self._waking[machine.vm.name] = self._reactor.callLater(seconds, self.wake, machine)

    # Signs of life.

    def check(self, machine: Machine) -> None:
        """See whether the guest of *machine* is alive, and restart it if it is not; its answers go on meanwhile."""
        lease, name = self._leases.get(machine.vm.name), machine.vm.name
        if lease is None or not machine.ready or name in self._checking or not self._sharing.is_ours(machine):
            return
        lease.check_at = self._now() + machine.vm.check_every
        self._checking[name] = checking = Deferred.fromCoroutine(self._check(machine, lease))
        checking.addBoth(self._checked, machine)

    def _checked(self, result: Any, machine: Machine) -> None:
        self._checking.pop(machine.vm.name, None)
        if result is not None and not result.check(BackendError, CancelledError):
            self.log.failure("{name}: unexpected, please report", result, name=machine.vm.name)

    async def _check(self, machine: Machine, lease: Lease) -> None:
        """Restart *machine* if its port is silent, twice, and its guest has given no sign of life all the time."""
        vm, windows, before = machine.vm, list[Window](), await machine.counts()
        for tries in (True, False, True):
            if tries and await self._answers(machine):
                machine.problem(Problem.PORT)
                return
            if not tries:
                await deferLater(self._reactor, CHECK_QUIET)
            after = await machine.counts()
            if self._leases.get(vm.name) is not lease:
                return
            number = (int(CHECK_PATIENCE / CHECK_RETRY) + 1) * len(vm.ip) if tries else 0
            windows.append(Window(before, after, number))
            before, sign = after, sign_of_life(windows)
            if sign is not Sign.NONE:
                silent = f"its port {port_of(vm)} does not answer Jitsu's host"
                machine.problem(Problem.PORT, f"{silent}, but it is left alone: {sign.value}")
                return
        machine.problem(Problem.PORT)
        reason = f"dead: its port {port_of(vm)} is silent, and {sign.value}"
        self.log.error("{name}: {reason}; restarted", name=vm.name, reason=reason)
        machine.restart(reason)

    async def _answers(self, machine: Machine) -> bool:
        """Try the port for some seconds; say whether it answers."""
        answers = self._port.wait(machine.vm, await machine.backend.guest(machine.uuid), CHECK_RETRY)
        try:
            await answers.addTimeout(CHECK_PATIENCE, self._reactor)
        except DeferredTimeout:
            return False
        return True
