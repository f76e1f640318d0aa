"""
The leases of VMs: granted, renewed by uses, and ended, which stops the VM. Until when one lasts, `rules.keep` decides.

A lease is looked at when it may end, and a few times before, to see what the guest does: it may be in use without a
query for its name. What a look costs depends on how many leases are due, not on how many VMs there are.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import report, spawn
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.keep import JUST_USED, Kept, Why, keep
from jitsu_tw.rules.lease import Lease, Leases, Use, counted, meters
from jitsu_tw.rules.lifecycle import DOWN, STOPS, State
from jitsu_tw.settings import KEEPS_MEMORY, Evidence
from jitsu_tw.slices import SLICE, in_slices
from jitsu_tw.vm import evidence
from jitsu_tw.vm.guests import GuestWord
from jitsu_tw.vm.health import HealthChecks
from jitsu_tw.vm.observers import IWakeupObserver
from jitsu_tw.vm.problems import Problem
from jitsu_tw.vm.wakeups import Wakeups
from jitsu_tw.vm.xenguests import XenGuests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IOwnership
    from jitsu_tw.readiness import Strategies
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.standins import StandIns
    from jitsu_tw.vm.stats import Statistics

#: Before leases are looked at, the reactor reads the sockets this many times: the first time it takes a connection, the
#: second time it reads the query that the connection brings.
READS: Final = 2

#: Seconds from one look to the next: where many leases are due one by one, they are looked at together.
REST: Final = 0.05

#: Seconds from one try to stop a VM that cannot be stopped to the next: at first (doubled each time), and at most.
STOP_AGAIN: Final = (60.0, 3600.0)


class LeaseStatus(NamedTuple):
    """
    What an operator can know of a lease.

    Attributes:
        left: seconds until the VM is stopped if it is not used; infinity while nothing ends what keeps it.
        why: what keeps it.
        words: the same in words.
        uses: how many seconds ago each kind of use was last seen.
        connections: how many are open; None if nobody knows.
    """

    left: float
    why: Why
    words: str
    uses: Mapping[Use, float]
    connections: int | None


@implementer(IObserver, IWakeupObserver)
class LeaseKeeper:
    """
    The leases of a fleet.

    It owns, and nobody else writes: the leases of the VMs that are up (but for `Lease.used`, which `dns.warm` renews,
    too, and what `vm.health` and `vm.guests` own of them), the leases that are suspended while a VM stops or reboots,
    and how often the stop of a VM has failed.

    Attributes:
        wakeups: the VMs that are kept up in weekly windows, or by an operator.
        health: the checks of guests that are in use.
        guests: what guests ask for themselves.
        xen_guests: those that ask by Xenstore.
    """

    follows: Final = DOWN | STOPS | {State.WAITING, State.UNKNOWN}

    log = Logger()

    def __init__(
        self,
        machines: Mapping[str, Machine],
        clocks: Clocks,
        is_needed: Callable[[Machine], bool],
        ownership: IOwnership,
        port: Strategies,
        standins: StandIns,
        stats: Statistics,
    ) -> None:
        """
        Begin with no lease.

        Args:
            machines: by the VM's name.
            clocks: tell the time.
            is_needed: tells whether a VM that is up, or about to be, needs this one.
            ownership: knows which node owns a VM; those of other nodes are kept by these.
            port: tries the ports of guests.
            standins: know which connections of a VM are open, and count its packets, where Synjitsu stands in for it.
            stats: remember until when guests hold their VMs.
        """
        self._machines, self._is_needed, self._ownership, self._standins = machines, is_needed, ownership, standins
        self._reactor, self._now = clocks.reactor, clocks.now
        self._leases = Leases()
        self.wakeups = Wakeups(machines, clocks, self, self.log)
        self.health = HealthChecks(self._leases, clocks, port, ownership)
        self.guests = GuestWord(self._leases, clocks, self, ownership, stats)
        self.xen_guests = XenGuests(self.guests, clocks.reactor)
        self._next: IDelayedCall | None = None
        self._is_reading = False
        self._suspended: dict[str, tuple[float, float]] = {}
        self._stop_failures: dict[str, int] = {}

    def stop(self) -> None:
        """Look at no lease any more."""
        self.wakeups.stop()
        self.health.stop()
        self.xen_guests.stop()
        if self._next is not None and self._next.active():
            self._next.cancel()

    # What is known of leases.

    @property
    def leases(self) -> int:
        """How many VMs have a lease."""
        return len(self._leases)

    def lease(self, name: str) -> Lease | None:
        """Return the lease of the VM *name*; None if it has none."""
        return self._leases.get(name)

    def left(self, machine: Machine) -> float | None:
        """Return the seconds until *machine* is stopped if it is not used; None if it has no lease."""
        status = self.status(machine)
        return None if status is None else status.left

    def status(self, machine: Machine) -> LeaseStatus | None:
        """Return until when *machine* is kept, and why; None if it has no lease."""
        lease, now = self._leases.get(machine.vm.name), self._now()
        if lease is None:
            return None
        kept = self._keep(machine, lease, lease.idle)
        words = kept.words(lease, now, self._ownership.owner(machine) or "another node")
        uses = {kind: now - when for kind, when in lease.uses().items()}
        flows = self._standins.flows(machine)
        return LeaseStatus(max(0.0, kept.until - now), kept.why, words, uses, None if flows is None else flows.open)

    def _keep(self, machine: Machine, lease: Lease, idle: float) -> Kept:
        """Return until when *machine* is kept, *idle* seconds after its last use at least, and why."""
        # What was known last holds while nothing is known: Synjitsu may be restarting.
        if machine.vm.evidence is Evidence.TRAFFIC and (flows := self._standins.flows(machine)) is not None:
            lease.connected(flows, self._now())
        return keep(
            lease,
            self._now(),
            idle=idle,
            window=self.wakeups.window(machine) if machine.vm.keep_up else -inf,
            is_own=self._ownership.is_own(machine),
            is_held=self.wakeups.is_held(machine.vm.name),
            is_needed=self._is_needed(machine),
        )

    # Grants.

    def grant(self, machine: Machine, used: float, started: float, *, is_new: bool) -> None:
        """
        Give *machine* a lease.

        Args:
            machine: is up.
            used: when it was used last.
            started: when it was started.
            is_new: its guest has just booted, so that it may greet its neighbours; if not, it can be seen only after a
                while whether the guest is in use, and it is kept until then.
        """
        vm = machine.vm
        idle_connection = 0.0 if vm.mode in KEEPS_MEMORY else vm.idle_connection
        lease = Lease(
            vm.idle, vm.min_up, used, started, vm.max_up or inf, idle_connection, signs={Use.KNOWN: used},
            held_until=self.guests.held_until(machine),
        )  # fmt: skip
        self._leases.grant(vm.name, lease)
        self.wakeups.asked(machine)
        self._suspended.pop(vm.name, None)
        self._begin(machine, lease, is_new=is_new)

    def regrant(self, machine: Machine) -> None:
        """Change the lease of *machine*, if it has one, to what its new settings say."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            self.grant(machine, lease.used, lease.started, is_new=False)

    def owner_changed(self, machine: Machine, used: float, started: float) -> None:
        """Change the lease of *machine*, which has another owner, to what the nodes know of its use and its start."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            lease.use(used, Use.KNOWN)
            lease.started, lease.meters = started, {}
            self._begin(machine, lease, is_new=False)

    def _begin(self, machine: Machine, lease: Lease, *, is_new: bool) -> None:
        """Begin to count what is evidence of *machine*'s use, and plan the first look."""
        counts = bool(counted(machine.vm)) and self._ownership.is_own(machine)
        lease.seen_from = inf if counts else -inf
        if machine.vm.check_every:
            self.health.watch(machine, lease)
        if machine.vm.keep_up:
            self.wakeups.find_window(machine)
        if counts:
            self._run(self._begin_to_count(machine, lease, is_new=is_new), machine)
        else:
            machine.problem(Problem.EVIDENCE)
            self._look_later(machine, lease)

    async def _begin_to_count(self, machine: Machine, lease: Lease, *, is_new: bool) -> None:
        totals = await evidence.totals(machine, lease, self._standins)
        if self._leases.get(machine.vm.name) is not lease:
            return
        lease.meters = meters(machine.vm, totals, self._now())
        if not is_new:
            for meter in lease.meters.values():
                meter.fill()
            lease.seen_from = max(lease.seen_from, lease.next_count())
        self._look_later(machine, lease)

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Suspend the lease of *machine*, which is not up any more."""
        self._drop(machine)

    def _drop(self, machine: Machine) -> None:
        """Suspend the lease of *machine*, which stops or reboots and may be up again; if it is down, forget it."""
        name, state, now = machine.vm.name, machine.state, self._now()
        lease = self._leases.drop(name)
        self.guests.withdraw(machine)
        if state not in STOPS | {State.WAITING}:
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
            whether a lease was suspended.
        """
        ages = self._suspended.pop(machine.vm.name, None)
        if ages is None:
            return False
        self.grant(machine, *(self._now() - age for age in ages), is_new=is_new)
        return True

    def forget(self, machine: Machine) -> None:
        """Forget *machine*, which is not in the configuration any more."""
        name = machine.vm.name
        self._drop(machine)
        self.wakeups.forget(machine)
        self._suspended.pop(name, None)
        self._stop_failures.pop(name, None)

    # Uses.

    def use(self, machine: Machine) -> None:
        """Note that Jitsu is asked for *machine*, which it manages from now on; renew its lease."""
        machine.note(managed=True)
        self.renew(machine)

    def renew(self, machine: Machine) -> None:
        """Note that *machine*, if it is up, is used now."""
        lease, now, name = self._leases.get(machine.vm.name), self._now(), machine.vm.name
        self._ownership.note_use(machine, now)
        self.wakeups.asked(machine)
        if lease is not None:
            lease.use(now)
            if now >= lease.check_at:
                self.health.check(machine)
        elif machine.state is State.UP and self._ownership.connected:
            self.grant(machine, now, now, is_new=False)
        elif name in self._suspended:
            self._suspended[name] = 0.0, self._suspended[name][1]

    def used(self, machine: Machine, when: float) -> None:
        """Note that *machine* was used through another node at *when*."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            lease.use(min(when, self._now()))
            if self._keep(machine, lease, lease.idle).until > self._now():
                self._ownership.withdraw_stop(machine)

    async def _observe(self, machine: Machine, lease: Lease) -> None:
        """Look at what the guest has done since the last look; renew its lease if that shows that it was in use."""
        found = lease.meters  # the lease may have none when the answer comes: another node may own the VM by then
        if not found:
            return
        totals, used = await evidence.totals(machine, lease, self._standins), lease.used
        for kind, meter in found.items():
            if totals is None:
                meter.at = self._now()
                lease.use(self._now(), Use.KNOWN)  # while its use cannot be seen, it is not stopped
            elif meter.used(totals[kind], self._now()):
                lease.use(self._now(), kind)
        if lease.used > used:
            self._ownership.note_use(machine, self._now())

    # What `Wakeups` reports.

    def released(self, machine: Machine) -> None:
        """Begin the lease of *machine* anew: no operator holds it any more."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None:
            lease.use(self._now())
            self.window_changed(machine)

    def window_changed(self, machine: Machine) -> None:
        """Look at the lease of *machine* when that is due now."""
        lease = self._leases.get(machine.vm.name)
        if lease is not None and lease.planned is not None:
            self._look_later(machine, lease)

    def do_in_slices(self, work: Iterable[object]) -> None:
        """Do *work*, which is done by iterating over it, in slices of time."""
        spawn(self.log, in_slices(self._reactor, work))

    # Looks.

    def _look_later(self, machine: Machine, lease: Lease, kept: Kept | None = None) -> None:
        """Plan the next look at *lease*: when it may end, as *kept* says, or to see before what the guest does."""
        when = (kept or self._keep(machine, lease, lease.idle)).until
        self._plan(machine, min(when, lease.next_count()))

    def _plan(self, machine: Machine, when: float) -> None:
        """Look at the lease of *machine* at *when*."""
        self._leases.plan(machine.vm.name, when)
        self._schedule()

    def _schedule(self, rest: float = 0.0) -> None:
        """Call `_look` when the next lease is due: if none is yet, not sooner than in *rest* seconds."""
        if self._is_reading:
            return  # the look that follows schedules the next one
        look, now = self._leases.next_look(), self._now()
        seconds = 0.0 if look is None or look <= now else max(rest, look - now)
        if self._next is not None and self._next.active():
            if look is not None and self._next.getTime() <= now + seconds:
                return
            self._next.cancel()
        if look is not None:
            self._next = self._reactor.callLater(seconds, self._look, READS)

    def _look(self, reads: int) -> None:
        """Look at leases that are due, for a slice of time, after *reads* rounds of reading sockets: a use may wait."""
        self._is_reading, until = True, self._now() + SLICE
        if reads:
            self._next = self._reactor.callLater(0, self._look, reads - 1)
            return
        try:
            for name in self._leases.due(self._now()):
                lease, machine = self._leases.get(name), self._machines[name]
                assert lease is not None
                if lease.meters:
                    self._run(self._count(machine, lease), machine)
                else:
                    self._decide(machine, lease)
                if self._now() >= until:
                    break
        finally:
            self._is_reading = False
            self._schedule(REST)

    async def _count(self, machine: Machine, lease: Lease) -> None:
        """Renew a lease whose guest was in use since the last look, or end it if it is over."""
        await self._observe(machine, lease)
        if self._leases.get(machine.vm.name) is lease:
            self._decide(machine, lease)

    def _run(self, work: Coroutine[Deferred[Any], Any, object], machine: Machine) -> None:
        """Run *work* on the lease of *machine*."""
        Deferred.fromCoroutine(work).addErrback(self._unexpected, machine)

    def _unexpected(self, failure: Failure, machine: Machine) -> None:
        """Log a fault of Jitsu, and keep the VM: a lease that is not looked at any more would never end."""
        report(self.log, machine.vm.name, failure)
        lease = self._leases.get(machine.vm.name)
        if lease is not None and lease.planned is None:
            lease.meters = {}
            lease.use(self._now(), Use.KNOWN)
            self._look_later(machine, lease)

    def _decide(self, machine: Machine, lease: Lease) -> None:
        """Stop a VM whose lease is over, when the other nodes know of it; if it is not over, look again later."""
        kept, now = self._keep(machine, lease, lease.idle), self._now()
        if kept.until > now:
            self._ownership.withdraw_stop(machine)
            self.guests.withdraw(machine)
            self._look_later(machine, lease, kept)
        elif wait := self.guests.announce_stop(machine, kept) or self._ownership.announce_stop(machine):
            self._plan(machine, now + wait)
        else:
            limit = f"up for {lease.max_up:g} s" if kept.why is Why.MAX_UP else f"idle for {lease.idle:g} s"
            self._run(self.end(machine, kept.why.value if kept.why is Why.DONE else limit, lease.idle), machine)

    # Ends.

    async def end(self, machine: Machine, reason: str, idle: float | None = None) -> bool:
        """
        Begin to stop *machine*; if it cannot be stopped, that is tried again after a while.

        Args:
            machine: has a lease.
            reason: why, for the log.
            idle: seconds that it must be idle, as a last look at what the guest does shows; None to stop it although
                its guest may be in use, but not if it was used since this was called.

        Returns:
            whether its stop has begun: not if it was used meanwhile, or it is known that it cannot be stopped.
        """
        lease = self._leases.get(machine.vm.name)
        assert lease is not None
        used, lease.planned = lease.used, None
        can = await machine.can_stop()
        if can and idle is not None:
            await self._observe(machine, lease)
        if self._leases.get(machine.vm.name) is not lease or machine.state is not State.UP:
            return False
        is_over = lease.used == used if idle is None else self._keep(machine, lease, idle).until <= self._now()
        if can and is_over:
            self._run(self._stop(machine, reason), machine)
            return True
        if not can:
            self._stop_failed(machine, lease)
        self._look_later(machine, lease)
        return False

    async def _stop(self, machine: Machine, reason: str) -> None:
        """Stop *machine* and log that, or keep it if it cannot be stopped."""
        state = await machine.stop(reason)
        name, lease = machine.vm.name, self._leases.get(machine.vm.name)
        if state is not State.UP:
            self.log.info("{name}: {reason}, stopped ({mode})", name=name, reason=reason, mode=machine.vm.mode.value)
        elif lease is not None:
            self._stop_failed(machine, lease)
            self._look_later(machine, lease)

    def _stop_failed(self, machine: Machine, lease: Lease) -> None:
        """Keep *machine*, which cannot be stopped, until that is tried again."""
        failures = self._stop_failures[machine.vm.name] = self._stop_failures.get(machine.vm.name, 0) + 1
        first, longest = STOP_AGAIN
        lease.stop_again_at = self._now() + min(longest, first * 2.0 ** (failures - 1))

    def stop_idlest(self, reason: str) -> Deferred[bool | None]:
        """
        Stop the VM that is idle the longest, to make room for another.

        The Deferred never fails; it fires with True if a stop has begun.
        """
        return spawn(self.log, self._stop_idlest(reason))

    async def _stop_idlest(self, reason: str) -> bool:
        idle = [(lease.used, name) for name, lease in self._leases.items() if self._may_go(self._machines[name], lease)]
        for _, name in sorted(idle):
            machine, lease = self._machines[name], self._leases.get(name)
            if lease is not None and self._may_go(machine, lease) and await self.end(machine, reason, JUST_USED):
                return True
        return False

    def _may_go(self, machine: Machine, lease: Lease) -> bool:
        """Return whether *machine* may be stopped so that another VM can boot."""
        return (
            lease.planned is not None  # else it is being looked at
            and machine.state is State.UP
            and self._keep(machine, lease, JUST_USED).until <= self._now()
        )
