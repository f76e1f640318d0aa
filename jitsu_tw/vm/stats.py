"""
What is remembered of the VMs: their statistics, and what the configuration says of them.

Statistics live here and are committed every few seconds; a start or a stop is committed at once, because after a crash
these tell which VMs are ours. One commit is under way at a time. What cannot be written is kept, and tried again.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.dns.wire import ancestors
from jitsu_tw.errors import StoreError
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.store.layout import (
    STATISTICS,
    NameUse,
    Stats,
    came,
    difference,
    differs_by_names_only,
    forgotten,
    in_words,
    label,
    origin_path,
    read_stats,
    removed_vm,
    stats_paths,
    vm_paths,
    vms,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IAnswers, IOwnership, IStore
    from jitsu_tw.settings import VM
    from jitsu_tw.vm.journal import Journal
    from jitsu_tw.vm.machine import Machine

#: After a commit of theirs, statistics rest for so many times as long as it took: it takes time from the answers.
SPARE: Final = 20.0

#: The statistics of so many VMs are put into words at a time; then others have their turn.
SLICE: Final = 500

#: What tells two times apart in the state, in seconds.
_LATER: Final = 0.001


@implementer(IObserver)
class StatsStore:
    """The memory of a fleet, and its state on disk."""

    follows: Final = frozenset({State.STARTING})

    log = Logger()

    def __init__(
        self,
        store: IStore,
        machines: Mapping[str, Machine],
        clocks: Clocks,
        commit_every: float,
        answers: IAnswers,
        journal: Journal,
        ownership: IOwnership,
    ) -> None:
        """
        Keep statistics and configuration of *machines* in *store*.

        Args:
            store: the state.
            machines: by the VM's name.
            clocks: tell the time.
            commit_every: seconds between two commits of statistics.
            answers: answer queries, too, and count them.
            journal: counts all queries.
            ownership: is told of the uses.
        """
        self._store, self._machines = store, machines
        self._answers, self._journal, self._ownership = answers, journal, ownership
        self._now, self._wall = clocks.now, clocks.wall
        self._stats: dict[str, Stats] = {}
        self._known: dict[str, Stats] = {}
        self._tree: dict[str, str] = {}
        self._said: set[str] = set()
        self._uuids: dict[str, str] = {}
        self._by_ip: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self._overruled: set[str] = set()
        self._failing = self._unsaid = False
        self._every = commit_every
        self._unsaved: set[str] = set()
        self._urgent: set[str] = set()
        self._writing: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._due = False
        self._next_save = 0.0
        self._saving = LoopingCall(self._save_if_due)
        self._saving.clock = self._reactor = clocks.reactor

    def start(self, tree: Mapping[str, str], said: Container[str]) -> None:
        """Begin with what the state remembers; of the VMs with the names *said*, what the file says holds."""
        self._known = read_stats(tree)
        self.merged(tree)
        self._overruled = {uuid for name, uuid in self._uuids.items() if name in said and uuid in self._origins}
        self._saving.start(self._every, now=False)

    async def stop(self) -> None:
        """Write down everything and close the state."""
        self._saving.stop()
        self.gather()
        self._urgent |= self._unsaved
        self._save()
        if self._writing is not None:
            await self._writing
        await self._store.close()

    @property
    def is_written(self) -> bool:
        """Whether the last commit went well."""
        return not self._failing

    def of(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*, to look at."""
        return self._stats.get(machine.vm.name) or Stats()

    def _of(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*, to change it."""
        stats = self._stats.get(machine.vm.name)
        if stats is None:
            stats = self._stats[machine.vm.name] = Stats()
        return stats

    def use_of(self, machine: Machine, key: bytes) -> NameUse:
        """
        Return what is counted of the name *key*, for as long as *machine* is ours.

        A name that a wildcard made counts as the wildcard, an alias as the VM's first name: clients can make up any
        number of both, and each name that is counted takes memory, and a file in the state.
        """
        uses, names = self._of(machine).dns, machine.vm.dns
        if label(key) not in uses and key not in names:
            key = next((wild for name in ancestors(key) if (wild := b"\1*" + name) in names), next(iter(names), key))
        return uses.setdefault(label(key), NameUse())

    def recognise(self, machine: Machine) -> None:
        """Take for *machine*, whose uuid is known now, what the state has of that."""
        name, known = machine.vm.name, self._known.pop(machine.uuid, None)
        if known is not None:
            stats = self._stats.setdefault(name, known)
            if stats is not known:
                # It has been asked for before it was found, and who counts that holds what it is counted in.
                stats.start_ts, stats.stop_ts, stats.total_starts = known.start_ts, known.stop_ts, known.total_starts
                stats.backend, stats.connect = known.backend, known.connect
                for key, before in known.dns.items():
                    use = stats.dns.setdefault(key, NameUse())
                    use.last_request_ts = max(before.last_request_ts, use.last_request_ts)
                    use.total_requests += before.total_requests
        if self.of(machine).dns:
            self._unsaved.add(name)

    def forget(self, machine: Machine) -> None:
        """Let *machine* be none of ours any more; what is remembered of it waits for one with its uuid."""
        stats = self._stats.pop(machine.vm.name, None)
        if stats is not None and machine.uuid:
            self._known[machine.uuid] = stats

    def part(self, machine: Machine) -> None:
        """Let what is remembered of *machine*'s starts stay with its uuid: it is at another one from now on."""
        stats = self._stats.get(machine.vm.name)
        if stats is not None:
            uses = {name: attrs.evolve(use) for name, use in stats.dns.items()}
            self._known[machine.uuid] = attrs.evolve(stats, dns=uses)
            stats.start_ts, stats.total_starts = 0.0, 0
            stats.stop_ts = max(self._wall(), stats.last_request_ts)

    def uuid_of(self, vm: VM) -> str | None:
        """Return the uuid that the state has for *vm*, which has not been found yet; it may have been renamed since."""
        if vm.name in self._uuids:
            return self._uuids[vm.name]
        uuid = self._by_ip.get(" ".join(map(str, vm.ip)), "")
        files = vms(self._tree, {uuid} if uuid else ()).get(uuid, {})
        is_it = files.get("config/name/0") not in self._machines and differs_by_names_only(files, vm)
        return uuid if is_it else None

    def removed(self, kept: Container[str | None]) -> list[VM]:
        """Return the VMs that run through us, as far as is known, but for those with the uuids *kept*."""
        known = self._known.items()
        ours = {uuid: stats for uuid, stats in known if uuid not in kept and stats.is_ours and stats.backend}
        return [removed_vm(uuid, files, ours[uuid]) for uuid, files in vms(self._tree, ours).items()]

    def origin(self, machine: Machine) -> str | None:
        """Return the request that *machine* is from as it is now; None if the file says it."""
        return self._origins.get(machine.uuid) if machine.uuid not in self._overruled else None

    def merged(self, changes: Mapping[str, str | None]) -> None:
        """Hear that the state has been changed so by others: no path is above another that it has."""
        for path, value in changes.items():
            match path.split("/", 3):
                case ["jitsu", "origin", uuid]:
                    _put(self._origins, uuid, value)
                    self._overruled.discard(uuid)
                case ["jitsu", "vm", uuid, file] if uuid not in self._said:
                    _put(self._tree, path, value)
                    if file == "config/name/0" and value is not None:
                        self._uuids[value] = uuid
                    if file == "ip" and value is not None:
                        self._by_ip[value] = uuid

    def gather(self) -> None:
        """Count the queries that were answered without the fleet; leases have been renewed where that happened."""
        zero = self._wall() - self._now()
        for name, use, times, last in self._answers.taken():
            self._ownership.note_use(self._machines[name], last)
            self.count(name, use, times, zero + last)
            self._journal.warm += times

    def current(self, machine: Machine) -> Stats:
        """Return what is remembered of *machine*, with the queries that were answered without the fleet."""
        self.gather()
        return self.of(machine)

    def count_query(self, machine: Machine, key: bytes) -> None:
        """Count a query for the name *key* of *machine*, now."""
        self.count(machine.vm.name, self.use_of(machine, key), 1, self._wall())

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Remember that *machine* is being started, before the backend is called."""
        self.started(machine)

    def count(self, vm: str, use: NameUse, times: int, last: float) -> None:
        """Count questions for a name of the VM *vm* (`use_of`), the last at *last*, in seconds since 1970."""
        use.last_request_ts = max(use.last_request_ts, last)
        use.total_requests += times
        self._unsaved.add(vm)

    def started(self, machine: Machine) -> None:
        """Remember that *machine* is being started by us."""
        stats = self._of(machine)
        # Clocks are set back, and a stop and the start after it may share the millisecond that is written down.
        stats.start_ts = max(self._wall(), stats.stop_ts + _LATER)
        stats.total_starts += 1
        self._remember(machine)

    def stopped(self, machine: Machine) -> None:
        """Remember that *machine* is ours no more, if it was: it is down, or somebody else has started it."""
        if self.is_ours(machine):
            stats = self._of(machine)
            stats.stop_ts = max(self._wall(), stats.start_ts, stats.last_request_ts)
            self._remember(machine)

    def since(self, machine: Machine) -> tuple[float, float]:
        """Return when *machine*, which is ours, was last asked for, and started; now, where somebody else did that."""
        stats = self.of(machine)
        started = stats.start_ts if stats.start_ts > stats.stop_ts else self._wall()
        return max(stats.start_ts, stats.last_request_ts), started

    def is_ours(self, machine: Machine) -> bool:
        """Say whether *machine* was started or asked for through us since it was last seen down."""
        return self.of(machine).is_ours

    def _remember(self, machine: Machine) -> None:
        """Write *machine*'s statistics now, not when their time comes: a crash must not lose a start or a stop."""
        self._urgent.add(machine.vm.name)
        self._save()

    def _save_if_due(self) -> None:
        """Commit all statistics that have changed, unless that took so long the last time that it must wait."""
        self.gather()
        if self._unsaid:
            Deferred.fromCoroutine(self.save_configuration())
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
            for number, name in enumerate(names, 1):
                machine = self._machines.get(name)
                if machine is not None and machine.uuid:
                    stats = self._of(machine)
                    stats.backend, stats.connect = machine.vm.backend, machine.vm.connect
                    changes.update(stats_paths(machine.uuid, stats))
                if number % SLICE == 0:
                    await deferLater(self._reactor, 0.0)
            begin = self._now()
            if not await self._write(changes, STATISTICS):
                self._unsaved |= names | self._urgent
                self._urgent.clear()
            if due:
                self._next_save = self._now() + SPARE * (self._now() - begin)
        self._writing = None
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if not done.called:
                done.callback(None)

    async def save_configuration(self) -> None:
        """Commit what the configuration says of VMs that have been found since, where the state says otherwise."""
        found = {
            machine.uuid: machine
            for machine in self._machines.values()
            if machine.uuid and machine.uuid not in self._said and self._store.lasting and not machine.vm.removed
        }
        wanted: dict[str, str] = {}
        for uuid, machine in found.items():
            wanted |= vm_paths(uuid, machine.vm)
        overruled = self._overruled & found.keys()
        changes = difference(self._tree, wanted, found)
        del wanted  # of a hundred thousand VMs, that is a lot
        changes.update({origin_path(uuid): None for uuid in overruled})
        touched = {_uuid(path) for path in changes}
        known = {_uuid(path) for path in self._tree}
        places = {str(found[uuid].vm.place[0]) for uuid in touched}
        message = (
            f"From {' and '.join(sorted(places))}\n\n"
            + in_words("added", [found[uuid].vm.name for uuid in touched - known])
            + in_words("changed", [found[uuid].vm.name for uuid in touched & known])
        )
        self._unsaid = not await self._write(changes, message)
        if not self._unsaid:
            if overruled:
                names = ", ".join(sorted(found[uuid].vm.name for uuid in overruled))
                self.log.warn("{names}: as the file has it again, not as requests had made it", names=names)
            self.merged({origin_path(uuid): None for uuid in overruled})
            # What the state says of these is what the configuration says, so it need not be kept.
            self._said |= found.keys()
            self._tree = {path: value for path, value in self._tree.items() if _uuid(path) not in found}
            self._uuids = {name: uuid for name, uuid in self._uuids.items() if uuid not in found}
            self._by_ip = {ip: uuid for ip, uuid in self._by_ip.items() if uuid not in found}

    def forget_others(self) -> None:
        """
        Remove from the state the configuration of VMs that are none of ours any more, and that no request has brought.

        Their statistics stay; so does all of those that may still run through us.
        """
        kept = {machine.uuid for machine in self._machines.values()}
        kept |= {uuid for uuid, origin in self._origins.items() if came(origin)}
        kept |= {uuid for uuid, stats in self._known.items() if stats.is_ours and stats.backend}
        changes, names = forgotten(self._tree, kept)
        changes |= {origin_path(uuid): None for uuid in names if self._origins.pop(uuid, None) is not None}
        self._tree = {path: value for path, value in self._tree.items() if _uuid(path) not in names}
        if self._store.lasting:
            message = f"Not in the configuration any more\n\n{in_words('removed', names.values())}"
            Deferred.fromCoroutine(self._write(changes, message))

    async def _write(self, changes: Mapping[str, str | None], message: str) -> bool:
        """Commit *changes*; say whether that went well, and log it when it begins or ceases to."""
        if not changes:
            return True
        try:
            await self._store.write(changes, message)
        except StoreError as error:
            if not self._failing:
                self.log.error("the state is not written, only remembered: {error}", error=str(error))
            self._failing = True
            return False
        if self._failing:
            self.log.info("the state is written again")
        self._failing = False
        return True


def _put(known: dict[str, str], key: str, value: str | None) -> None:
    """Let *known* have that value; None is none."""
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value


def _uuid(path: str) -> str:
    """Return whose configuration *path* is of."""
    return path.split("/", 3)[2]
