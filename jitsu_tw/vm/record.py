"""
What is remembered of the VMs: their statistics, and what the configuration says of them.

Statistics live here and are committed every few seconds; a start or a stop is committed at once, because after a crash
these tell which VMs are ours. One commit is under way at a time.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw.errors import StoreError
from jitsu_tw.store.layout import (
    STATISTICS,
    NameUse,
    Stats,
    difference,
    forgotten,
    label,
    read_stats,
    stats_paths,
    vm_paths,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.vm.activation import Machine
    from jitsu_tw.vm.fleet import Clocks

#: Statistics are committed at most this often, in seconds.
COMMIT_EVERY: Final = 5.0

#: After a commit of theirs, statistics rest for so many times as long as it took: it takes time from the answers.
SPARE: Final = 20.0

#: What tells two times apart in the state, in seconds.
_LATER: Final = 0.001


class Record:
    """
    The memory of a fleet, and its state on disk.

    Attributes:
        gather: called before what depends on the counts; it counts what was asked for without us.
    """

    log = Logger()

    def __init__(self, store: IStore, machines: Mapping[str, Machine], clocks: Clocks) -> None:
        """Keep in *store* what is to be known of *machines*."""
        self._store, self._machines = store, machines
        self._now, self._wall = clocks.now, clocks.wall
        self._stats: dict[str, Stats] = {}
        self._known: dict[str, Stats] = {}
        self._tree: Mapping[str, str] = {}
        self._said: set[str] = set()
        self._unsaved: set[str] = set()
        self._urgent: set[str] = set()
        self._writing: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._due = False
        self._next_save = 0.0
        self._saving = LoopingCall(self._save_if_due)
        self._saving.clock = clocks.reactor
        self.gather: Callable[[], None] = lambda: None

    def start(self, tree: Mapping[str, str]) -> None:
        """Begin with what the state remembers."""
        self._known = read_stats(tree)
        self._tree = {path: value for path, value in tree.items() if path.startswith("jitsu/vm/")}
        self._saving.start(COMMIT_EVERY, now=False)

    async def stop(self) -> None:
        """Write down everything and close the state."""
        self._saving.stop()
        self.gather()
        self._urgent |= self._unsaved
        self._save()
        if self._writing is not None:
            await self._writing
        await self._store.close()

    def of(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*."""
        return self._stats.setdefault(machine.vm.name, Stats())

    def recognise(self, machine: Machine) -> None:
        """Take for *machine*, whose uuid is known now, what the state has of that."""
        name, known = machine.vm.name, self._known.pop(machine.uuid, None)
        if known is not None:
            # It may have been asked for before it was found.
            for key, use in self.of(machine).dns.items():
                before = known.dns.setdefault(key, NameUse())
                before.last_request_ts = max(before.last_request_ts, use.last_request_ts)
                before.total_requests += use.total_requests
            self._stats[name] = known
        if self.of(machine).dns:
            self._unsaved.add(name)

    def count(self, machine: Machine, key: bytes, times: int, last: float) -> None:
        """Count questions for the name *key*, the last at *last*, in seconds since 1970."""
        use = self.of(machine).dns.setdefault(label(key), NameUse())
        use.last_request_ts = max(use.last_request_ts, last)
        use.total_requests += times
        self._unsaved.add(machine.vm.name)

    def started(self, machine: Machine) -> None:
        """Remember that *machine* is being started by us."""
        stats = self.of(machine)
        # Clocks are set back, and a stop and the start after it may share the millisecond that is written down.
        stats.start_ts = max(self._wall(), stats.stop_ts + _LATER)
        stats.total_starts += 1
        self._remember(machine)

    def stopped(self, machine: Machine) -> None:
        """Remember that *machine* is ours no more, if it was: it is down, or somebody else has started it."""
        if self.is_ours(machine):
            stats = self.of(machine)
            stats.stop_ts = max(self._wall(), stats.start_ts, stats.last_request_ts)
            self._remember(machine)

    def since(self, machine: Machine) -> tuple[float, float]:
        """Return when *machine*, which is ours, was last asked for, and started; now, where somebody else did that."""
        stats = self.of(machine)
        started = stats.start_ts if stats.start_ts > stats.stop_ts else self._wall()
        return max(stats.start_ts, stats.last_request_ts), started

    def is_ours(self, machine: Machine) -> bool:
        """Say whether *machine* was started or asked for through us since it was last seen down."""
        stats = self.of(machine)
        return max(stats.start_ts, stats.last_request_ts) > stats.stop_ts

    def _remember(self, machine: Machine) -> None:
        """Write *machine*'s statistics now, not when their time comes: a crash must not lose a start or a stop."""
        self._urgent.add(machine.vm.name)
        self._save()

    def _save_if_due(self) -> None:
        """Commit all statistics that have changed, unless that took so long the last time that it must wait."""
        self.gather()
        if self._unsaved and self._now() >= self._next_save:
            self._due, self._next_save = True, inf
            self._urgent |= self._unsaved
            self._save()

    def _save(self) -> None:
        """Commit what is urgent, and what becomes so meanwhile; one commit at a time."""
        if not self._store.lasting:
            self._urgent.clear()
            self._unsaved.clear()
            self._next_save = 0.0
        elif self._writing is None:
            writing = Deferred.fromCoroutine(self._save_urgent())
            if not writing.called:
                self._writing = writing

    def written(self) -> Deferred[None]:
        """Fire when what is being written, and what is to be written at once after it, has been."""
        done: Deferred[None] = Deferred()
        if self._writing is None:
            done.callback(None)
        else:
            self._waiting.append(done)
        return done

    async def _save_urgent(self) -> None:
        while self._urgent:
            names, self._urgent = self._urgent, set()
            due, self._due = self._due, False
            self._unsaved -= names
            changes: dict[str, str | None] = {}
            for name in names:
                machine = self._machines[name]
                if machine.uuid:
                    changes.update(stats_paths(machine.uuid, self.of(machine)))
            begin = self._now()
            await self._write(changes, STATISTICS)
            if due:
                self._next_save = self._now() + SPARE * (self._now() - begin)
        self._writing = None
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if not done.called:
                done.callback(None)

    def save_configuration(self) -> Deferred[None]:
        """Commit what the configuration says of VMs that have been found since, where the state says otherwise."""
        machines = [machine for machine in self._machines.values() if machine.uuid and self._store.lasting]
        uuids = {machine.uuid for machine in machines} - self._said
        wanted: dict[str, str] = {}
        for machine in machines:
            if machine.uuid in uuids:
                wanted |= vm_paths(machine.uuid, machine.vm)
        changes = difference(self._tree, wanted, uuids)
        # What the state says of these is what the configuration says; of a hundred thousand VMs, that is a lot.
        self._said |= uuids
        self._tree = {path: value for path, value in self._tree.items() if _uuid(path) not in uuids}
        return self._write(changes, "Configuration as the file and the command line have it")

    def forget_others(self) -> list[str]:
        """
        Remove from the state the configuration of VMs that are none of ours any more; their statistics stay.

        Returns:
            the names of those that were started by us, and not seen down since.
        """
        changes, names = forgotten(self._tree, {machine.uuid for machine in self._machines.values()})
        self._tree = {path: value for path, value in self._tree.items() if _uuid(path) not in names}
        if self._store.lasting:
            self._write(changes, "VMs that the configuration does not have any more")
        past = {name: self._known.get(uuid, Stats()) for uuid, name in names.items()}
        return [name for name, stats in past.items() if stats.start_ts > stats.stop_ts]

    def _write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        if not changes:
            return succeed(None)
        return self._store.write(changes, message).addErrback(self._not_written)

    def _not_written(self, failure: Any) -> None:
        failure.trap(StoreError)
        self.log.error("the state is not written: {error}", error=failure.getErrorMessage())


def _uuid(path: str) -> str:
    """Return whose configuration *path* is of."""
    return path.split("/", 3)[2]
