"""
Writes the statistics and the configuration of VMs to the state.

Statistics are committed every few seconds; a start or a stop is committed at once, because after a crash these tell
which VMs Jitsu had started. One commit is under way at a time. What cannot be written is kept, and tried again.
"""

from __future__ import annotations

from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import StoreError
from jitsu_tw.ijitsu import IObserver
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.slices import in_slices
from jitsu_tw.store.layout import STATISTICS
from jitsu_tw.vm.stored_config import StoredConfig
from jitsu_tw.vm.uptime import PATH as UPTIME

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.settings import VM, Template
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.stats import Statistics
    from jitsu_tw.vm.stored_config import Update
    from jitsu_tw.vm.uptime import Uptime

#: After a commit of all statistics, they rest for this many times as long as it took: it takes time from the answers.
SPARE: Final = 20.0

#: The VMs whose statistics are formatted at a time; then the reactor goes on.
SLICE: Final = 500


@implementer(IObserver)
class StatsStore:
    """
    The state of a fleet.

    It owns, and nobody else writes: what is to be committed, and the commits.

    Attributes:
        stats: the statistics of the VMs.
        config: their configuration as the state has it.
        uptime: for how long they did not run.
    """

    follows: Final = frozenset({State.STARTING, State.WAITING, State.PREPARING, State.SETTLING})

    log = Logger()

    def __init__(
        self,
        store: IStore,
        machines: Mapping[str, Machine],
        templates: Mapping[str, Template],
        clocks: Clocks,
        commit_every: float,
        stats: Statistics,
        uptime: Uptime,
    ) -> None:
        """
        Write to *store* what is to be known of *machines* and *templates*.

        Args:
            store: the state.
            machines: by the VM's name.
            templates: by name.
            clocks: tell the time.
            commit_every: seconds between two commits of statistics.
            stats: the statistics of the VMs.
            uptime: for how long they did not run.
        """
        self._store, self._machines, self._templates = store, machines, templates
        self._clocks = clocks
        self.stats, self.config, self.uptime = stats, StoredConfig(), uptime
        self._failing = self._is_behind = False
        self._every = commit_every
        self._urgent: set[str] = set()
        self._commit: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._next_save = 0.0
        self._saving = LoopingCall(self._save_if_due)
        self._saving.clock = clocks.reactor

    def start(self, tree: Mapping[str, str], names: Container[str]) -> None:
        """Begin with the state *tree*; of the VMs with *names*, the configuration file overrules what requests made."""
        self.stats.start(tree)
        self.uptime.start(tree)
        self.config.start(tree, names)
        if self._store.lasting and not (tree or self._machines or self._templates):
            spawn(self.log, self._save_uptime())  # requests are commits on the state's last one
        self._saving.start(self._every, now=False)

    async def stop(self) -> None:
        """Write everything and close the state."""
        self._saving.stop()
        while self.stats.gather():
            pass
        self._urgent |= self.stats.changed
        self._save()
        if self._commit is not None:
            await self._commit
        if self._store.lasting:
            await self._save_uptime()
        await self._store.close()

    @property
    def is_written(self) -> bool:
        """Whether the last commit went well."""
        return not self._failing

    # Statistics.

    def moved(self, machine: Machine, old: State) -> None:
        """
        Write at once that Jitsu starts *machine*, before the backend is called: a crash must not lose that.

        That the call has ended is written with the next statistics.
        """
        state = machine.state
        if state in {State.STARTING, State.PREPARING} or (state is State.WAITING and old is State.SETTLING):
            self.stats.started(machine, counts=state is not State.PREPARING)
            self._save_at_once(machine)
        elif old in {State.STARTING, State.PREPARING}:
            self.stats.called(machine)

    def stopped(self, machine: Machine) -> None:
        """Write at once, if that is not known yet, that *machine* is down, or was started by hand."""
        if self.stats.stopped(machine):
            self._save_at_once(machine)

    def _save_at_once(self, machine: Machine) -> None:
        self._urgent.add(machine.vm.name)
        self._save()

    def _save_if_due(self) -> Deferred[Any] | None:
        """
        Commit all statistics that have changed, unless that took so long the last time that it must wait.

        The uses are counted before, some in each iteration of the reactor.
        """
        if not self._saving.running:
            return None
        if self.stats.gather():
            return deferLater(self._clocks.reactor, 0.0, self._save_if_due)
        if self._is_behind:
            spawn(self.log, self.save_configuration())
        if self._store.lasting and self._clocks.now() >= self.uptime.due:
            spawn(self.log, self._save_uptime())
        if self.stats.changed and self._clocks.now() >= self._next_save:
            self._next_save = inf
            if self._store.lasting:
                self._urgent |= self.stats.changed
            self._save()
        return None

    def _save(self) -> None:
        """Commit what is urgent, and what becomes so meanwhile; one commit at a time."""
        if not self._store.lasting:
            self._urgent.clear()
            self.stats.changed.clear()
            self._next_save = 0.0
        elif self._commit is None:
            commit = Deferred.fromCoroutine(self._save_urgent())
            if not commit.called:
                self._commit = commit

    def written(self) -> Deferred[None]:
        """Return a Deferred that fires when what is urgent has been written."""
        done: Deferred[None] = Deferred()
        if self._commit is None:
            done.callback(None)
        else:
            self._waiting.append(done)
        return done

    async def _save_urgent(self) -> None:
        while self._urgent:
            names, self._urgent = self._urgent, set()
            is_due = self._next_save == inf
            self.stats.changed -= names
            changes: dict[str, str | None] = {}
            for number, name in enumerate(names, 1):
                if name in self._machines:
                    changes.update(self.stats.paths(self._machines[name]))
                if number % SLICE == 0:
                    await deferLater(self._clocks.reactor, 0.0)
            begin = self._clocks.now()
            if not await self._write(changes, STATISTICS):
                self.stats.changed |= names | self._urgent
                self._urgent.clear()
            if is_due:
                self._next_save = self._clocks.now() + SPARE * (self._clocks.now() - begin)
            if len(names) > SLICE:
                await in_slices(self._clocks.reactor, _emptied(changes))
        self._commit = None
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if not done.called:
                done.callback(None)

    async def _save_uptime(self) -> None:
        lines: list[str] = []
        await in_slices(self._clocks.reactor, map(lines.append, self.uptime.lines()))
        await self._write({UPTIME: "\n".join(lines)}, STATISTICS)

    # Configuration.

    def uuid_of(self, vm: VM) -> str | None:
        """Return the uuid that the state has for *vm*, which has not been found yet; it may have been renamed since."""
        return self.config.uuid_of(vm, self._machines)

    @property
    def may_run(self) -> bool:
        """Whether VMs may run that were started by Jitsu, and that have not been found."""
        return bool(self.stats.left_running(()))

    def removed(self, kept: Container[str | None]) -> list[VM]:
        """Return the VMs that may run, started by Jitsu, and that the fleet does not have; not the uuids *kept*."""
        return self.config.removed(self.stats.left_running(kept))

    async def save_configuration(self) -> None:
        """Commit what the configuration says of VMs that have been found since, where the state says otherwise."""
        if not self._store.lasting:
            return
        updates: list[Update] = []
        templates = ((str(one.uuid), one) for one in list(self._templates.values()))
        vms = ((machine.uuid, machine.vm) for machine in list(self._machines.values()))
        await in_slices(self._clocks.reactor, self.config.update(chain(templates, vms), updates.append))
        (update,) = updates
        self._is_behind = not await self._write(update.changes, update.message)
        if not self._is_behind:
            if update.overruled:
                names = ", ".join(update.overruled)
                self.log.warn("{names}: as the file has it again, not as requests had made it", names=names)
            await in_slices(self._clocks.reactor, self.config.updated(update))
        await in_slices(self._clocks.reactor, _emptied(update.changes))

    def forget_others(self) -> None:
        """
        Remove from the state the configuration of VMs that the fleet has no more, and that no request has brought.

        Their statistics stay; so does the configuration of those that may still run, started by Jitsu.
        """
        if not self.config.has_some:
            return
        kept = {machine.uuid for machine in self._machines.values()}
        kept |= {str(template.uuid) for template in self._templates.values()}
        changes, message = self.config.forget_others(kept | self.stats.left_running(()).keys())
        if self._store.lasting:
            spawn(self.log, self._write(changes, message))

    async def _write(self, changes: Mapping[str, str | None], message: str) -> bool:
        """Commit *changes*; return whether that went well, and log it when commits begin or cease to fail."""
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


def _emptied(changes: dict[str, str | None]) -> Iterator[None]:
    """Free *changes* step by step: a million of them at once take 50 ms."""
    while changes:
        changes.popitem()
        yield
