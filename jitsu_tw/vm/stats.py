"""The statistics of the VMs: when each was started, stopped and asked for, and how often. Pure: no I/O."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import attrs

from jitsu_tw.dns.wire import ancestors
from jitsu_tw.settings import STARTS_WITHIN
from jitsu_tw.store.layout import NameUse, Stats, label, read_stats, stats_paths

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IAnswers, IOwnership
    from jitsu_tw.vm.journal import Journal
    from jitsu_tw.vm.machine import Machine

#: The least difference of two times in the state, in seconds.
_LATER: Final = 0.001

#: How many names' uses are counted at a time, in a millisecond or two; so many names may be used within seconds that
#: all together would take tenths of a second.
USES: Final = 512


class Statistics:
    """
    The statistics of the VMs.

    It owns, and nobody else writes, but for `NameUse`, which `count` is given: the statistics of each VM, by its name,
    and of the uuids in the state that no VM has been found with.

    Attributes:
        changed: the names of VMs whose statistics are not in the state yet.
    """

    def __init__(
        self,
        machines: Mapping[str, Machine],
        clocks: Clocks,
        answers: IAnswers,
        journal: Journal,
        ownership: IOwnership,
    ) -> None:
        """
        Begin with none.

        Args:
            machines: by the VM's name.
            clocks: tell the time.
            answers: answer queries, too, and count them.
            journal: counts all queries.
            ownership: is told of the uses.
        """
        self._machines, self._now, self._wall = machines, clocks.now, clocks.wall
        self._answers, self._journal, self._ownership = answers, journal, ownership
        self._stats: dict[str, Stats] = {}
        self._known: dict[str, Stats] = {}
        self._taken: Iterator[tuple[str, Any, int, float]] = iter(())
        self.changed: set[str] = set()

    def start(self, tree: Mapping[str, str]) -> None:
        """Begin with what the state has."""
        self._known = read_stats(tree)

    # Asking.

    def current(self, machine: Machine) -> Stats:
        """
        Return the statistics of *machine*, to read, with the queries that were answered without the fleet.

        Where many names are in use, some of these queries are still to be counted (`gather`).
        """
        self.gather()
        return self.of(machine)

    def of(self, machine: Machine) -> Stats:
        """Return the statistics of *machine*, to read."""
        return self._stats.get(machine.vm.name) or Stats()

    def was_started(self, machine: Machine) -> bool:
        """Return whether *machine* was started or asked for through Jitsu since it was last seen down."""
        return self.of(machine).is_ours

    def since(self, machine: Machine) -> tuple[float, float]:
        """Return when *machine*, which `was_started`, was last used, and started; now, if not by Jitsu."""
        stats = self.of(machine)
        started = stats.start_ts if stats.start_ts > stats.stop_ts else self._wall()
        return max(stats.start_ts, stats.last_request_ts, stats.used_ts), started

    def may_come_up(self, machine: Machine) -> float:
        """Return for how many seconds *machine* may yet come up by a start call whose end is not in the state."""
        stats = self.of(machine)
        if max(stats.call_ts, stats.stop_ts) >= stats.start_ts:
            return 0.0
        return max(0.0, STARTS_WITHIN - abs(self._wall() - stats.start_ts))

    def left_running(self, kept: Container[str | None]) -> dict[str, Stats]:
        """Return the statistics of VMs that may run, started by Jitsu, and were not found; not the uuids *kept*."""
        known = self._known.items()
        return {uuid: stats for uuid, stats in known if uuid not in kept and stats.is_ours and stats.backend}

    def paths(self, machine: Machine) -> dict[str, str]:
        """Return the statistics of *machine* as paths and values of the state; none while it has no uuid."""
        if not machine.uuid:
            return {}
        stats = self._of(machine)
        stats.backend, stats.connect = machine.vm.backend, machine.vm.connect
        return stats_paths(machine.uuid, stats)

    # Counting.

    def _of(self, machine: Machine) -> Stats:
        """Return the statistics of *machine*, to change them."""
        return self._stats.setdefault(machine.vm.name, Stats())

    def use_of(self, machine: Machine, key: bytes) -> NameUse:
        """
        Return the statistics of the owner name *key*, one of *machine*, for `count`.

        A name that a wildcard made counts as the wildcard, an alias as the VM's first name: clients can make up any
        number of both, and each name that is counted takes memory, and a file in the state.
        """
        uses, names, counted = self._of(machine).dns, machine.vm.dns, label(key)
        if counted not in uses and key not in names:
            wild = (wild for name in ancestors(key) if (wild := b"\1*" + name) in names)
            counted = label(next(wild, next(iter(names), key)))
        return uses.setdefault(counted, NameUse())

    def gather(self) -> bool:
        """
        Count the queries that were answered without the fleet, of `USES` names at most.

        Leases have been renewed where that happened.

        Returns:
            whether there may be more; then this is to be called again.
        """
        some = [*islice(self._taken, USES)]
        if len(some) < USES:
            self._taken = iter(self._answers.taken())
            some += islice(self._taken, USES - len(some))
        zero = self._wall() - self._now()
        for name, use, times, last in some:
            self._ownership.note_use(self._machines[name], last)
            self.count(name, use, times, zero + last)
            self._journal.totals.warm += times
        return len(some) == USES

    def count_query(self, machine: Machine, key: bytes) -> None:
        """Count a query for the name *key* of *machine*, now."""
        self.count(machine.vm.name, self.use_of(machine, key), 1, self._wall())

    def count(self, vm: str, use: NameUse, times: int, last: float) -> None:
        """Count *times* queries for a name of the VM *vm* (`use_of`), the last at *last*, in seconds since 1970."""
        use.last_request_ts = max(use.last_request_ts, last)
        use.total_requests += times
        self.changed.add(vm)

    def used(self, machine: Machine, when: float) -> None:
        """Note that the last use of *machine*, of any kind, was at *when*, in seconds of the fleet's clock."""
        self._of(machine).used_ts = self._wall() + when - self._now()
        self.changed.add(machine.vm.name)

    def started(self, machine: Machine, *, counts: bool = True) -> None:
        """Note that Jitsu starts *machine* now; it *counts* as a start unless it is for nobody."""
        stats = self._of(machine)
        # Clocks are set back, and a stop and the start after it may share the millisecond that is written down.
        stats.start_ts = max(self._wall(), stats.stop_ts + _LATER)
        stats.total_starts += counts

    def called(self, machine: Machine) -> None:
        """Note that the hypervisor's call which starts *machine* has ended."""
        self._of(machine).call_ts = max(self._wall(), self._of(machine).start_ts)
        self.changed.add(machine.vm.name)

    def stopped(self, machine: Machine) -> bool:
        """Note that *machine* is down, or was started by hand; return False if that was known already."""
        if not self.was_started(machine):
            return False
        stats = self._of(machine)
        stats.stop_ts = max(self._wall(), stats.start_ts, stats.last_request_ts)
        stats.held_ts = min(stats.held_ts, self._wall())
        return True

    def hold(self, machine: Machine, until: float) -> None:
        """Note that the guest of *machine* holds it until *until* of the fleet's clock, which may be past."""
        self._of(machine).held_ts = self._wall() + until - self._now()
        self.changed.add(machine.vm.name)

    # Which VM is which.

    def recognise(self, machine: Machine) -> None:
        """Give *machine*, whose uuid is known now, the statistics that the state has of that uuid."""
        name, known = machine.vm.name, self._known.pop(machine.uuid, None)
        if known is not None:
            stats = self._stats.setdefault(name, known)
            if stats is not known:
                # It has been asked for before it was found, and those who count have the object that they count in.
                stats.start_ts, stats.call_ts, stats.stop_ts = known.start_ts, known.call_ts, known.stop_ts
                stats.held_ts, stats.used_ts, stats.total_starts = known.held_ts, known.used_ts, known.total_starts
                stats.backend, stats.connect = known.backend, known.connect
                for key, before in known.dns.items():
                    use = stats.dns.setdefault(key, NameUse())
                    use.last_request_ts = max(before.last_request_ts, use.last_request_ts)
                    use.total_requests += before.total_requests
        if self.of(machine).dns:
            self.changed.add(name)

    def replaced(self, machine: Machine) -> None:
        """Leave the starts of *machine* with the uuid that it had: another VM has its name now."""
        stats = self._stats.get(machine.vm.name)
        if stats is not None:
            uses = {name: attrs.evolve(use) for name, use in stats.dns.items()}
            self._known[machine.uuid] = attrs.evolve(stats, dns=uses)
            stats.start_ts, stats.total_starts, stats.held_ts, stats.used_ts = 0.0, 0, 0.0, 0.0
            stats.stop_ts = max(self._wall(), stats.last_request_ts)

    def forget(self, machine: Machine) -> None:
        """
        Forget *machine*, which is not in the configuration any more; its statistics stay with its uuid.

        Those of a VM that a template has made do not: there is no end of such VMs that come and go.
        """
        stats = self._stats.pop(machine.vm.name, None)
        if stats is not None and machine.uuid and machine.vm.template is None:
            self._known[machine.uuid] = stats
