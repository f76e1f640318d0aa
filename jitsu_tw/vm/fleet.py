"""
All VMs of a configuration, and everything that looks after them.

A query goes to `summons`, an operator's command to `operator`, what other nodes do to `peers`. Where the VMs are is in
`inventory`, which of them Jitsu manages in `adoption`, which VM boots next in `admission`, which is kept in `leases`,
which needs which in `dependencies`, what is remembered in `stats`, what has happened in `journal`, for how long they
did not run in `uptime`. Which node owns a VM, and on which host it is, is known by `ijitsu.ICluster`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import deferred, report, spawn
from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import IAnswers, IObserver
from jitsu_tw.readiness import Strategies
from jitsu_tw.rules.lifecycle import DOWN, PREPARES, STOPS, WANTED, State
from jitsu_tw.settings import HOSTS
from jitsu_tw.vm.admission import Admission
from jitsu_tw.vm.adoption import Adoption
from jitsu_tw.vm.context import Context
from jitsu_tw.vm.dependencies import Dependencies
from jitsu_tw.vm.inventory import Inventory
from jitsu_tw.vm.journal import Journal
from jitsu_tw.vm.leases import LeaseKeeper
from jitsu_tw.vm.machine import Machine
from jitsu_tw.vm.members import Members
from jitsu_tw.vm.observers import IInventoryObserver, IStandInObserver
from jitsu_tw.vm.operator import Operator
from jitsu_tw.vm.parts import Parts
from jitsu_tw.vm.peers import Peers
from jitsu_tw.vm.persistence import StatsStore
from jitsu_tw.vm.preparation import Preparation
from jitsu_tw.vm.problems import Problem, Problems
from jitsu_tw.vm.standins import StandInControl, StandIns
from jitsu_tw.vm.stats import Statistics
from jitsu_tw.vm.summons import Summons
from jitsu_tw.vm.uptime import Uptime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IBackend, ICluster, IClusterEvents, IMachine, IStore
    from jitsu_tw.settings import VM, Settings, Template

#: What an operator reads of a VM that the configuration has no more.
IS_REMOVED: Final = "the configuration has it no more, but Jitsu had started it; it is stopped when nobody uses it"

#: The same of a VM that a template has made, and that is forgotten.
IS_FORGOTTEN: Final = "it is forgotten, but what is left of it cannot be removed yet, and will be when it can"


@implementer(IAnswers)
class NoAnswers:
    """No answers are kept: each query comes to the fleet."""

    def moved(self, machine: IMachine, old: State) -> None:
        """Do nothing."""

    def taken(self) -> Iterator[Any]:
        """Yield nothing."""
        return iter(())


@implementer(IInventoryObserver, IObserver, IStandInObserver)
class Fleet(Parts):
    """
    All VMs of a configuration.

    Attributes:
        summons: what clients want.
        operator: what operators want.
        peers: what the other nodes do.
    """

    follows: Final = DOWN | {State.UP, State.UNKNOWN}

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[tuple[str, str], IBackend],
        store: IStore,
        clocks: Clocks,
        make_cluster: Callable[[Mapping[str, IMachine], IClusterEvents], ICluster],
        answers: IAnswers | None = None,
        make_standins: Callable[..., StandIns] = StandInControl,
    ) -> None:
        """
        Begin with the VMs of *settings*; connect nothing yet.

        Args:
            settings: of all.
            backends: by a VM's backend and URI.
            store: the state.
            clocks: tell the time.
            make_cluster: makes the cluster; it is given the machines, and the object to which the cluster reports.
            answers: those that are kept while VMs are up; None: none are.
            make_standins: makes what announces VMs to Synjitsu, if there is one.
        """
        self._settings, self.machines = settings, dict[str, Machine]()
        self.members = Members(settings.templates)
        answers = answers or NoAnswers()
        journal, problems = Journal(clocks, partial(report, self.log)), Problems(self.log)
        strategies = Strategies(clocks.reactor)
        endpoints = dict.fromkeys(filter(None, (settings.synjitsu, *(host.synjitsu for host in settings.hosts))))
        self.standins = StandIns()
        if endpoints:
            secret = settings.synjitsu_secret or ""
            self.standins = make_standins(endpoints, self.machines, clocks.reactor, strategies, self, secret)
        self.peers = Peers(self)
        self.cluster = make_cluster(self.machines, self.peers)
        ownership = self.cluster.ownership
        stats = Statistics(self.machines, clocks, answers, journal, ownership)
        uptime = Uptime(self.machines, clocks)
        self.store = StatsStore(
            store, self.machines, self.members.templates, clocks, settings.commit_every, stats, uptime
        )
        self.inventory = Inventory(backends, self.machines, self.store, journal, clocks.reactor, self)
        self.dependencies = Dependencies(self.machines, answers)
        self.leases = LeaseKeeper(
            self.machines, clocks, self.dependencies.is_needed, ownership, strategies, self.standins, stats
        )
        self.adoption = Adoption(
            self.store, self.leases, self.dependencies, ownership, clocks, self.log, dry_run=settings.dry_run
        )
        self.admission = Admission(settings, clocks, self.leases, self.dependencies, ownership)
        preparation = Preparation(
            settings, self.machines, clocks, self.admission, self.dependencies, ownership, stats, self.log
        )
        # The order matters: Synjitsu stands in before a guest runs, and kept answers go before anything waits; what is
        # in the state is there before the backend is called; a lease is granted before its evidence is asked for.
        observers = (
            self.standins, self.dependencies, self.admission, self.store, self.adoption, self.leases.wakeups,
            self.leases, self.leases.xen_guests, ownership, self.inventory, preparation, self, journal,
            uptime, self.inventory.sizes,
        )
        self.context = Context(
            clocks.reactor, clocks.now, settings.answer_by, ownership, self.admission, journal, problems, strategies,
            self.store, self.standins, preparation, observers,
        )
        self.summons = Summons(settings, self)
        self.operator: Operator = Operator(self)
        for vm in settings.vms:
            self.enlist(vm)

    # Beginning and end.

    def start(self, tree: Mapping[str, str]) -> Deferred[Any]:
        """
        Begin with what the state remembers; ask the backends what runs; start nothing but what `keep_up` says.

        The Deferred fires when the VMs of each hypervisor are in the state, or it cannot be asked.
        """
        self.store.start(tree, {vm.name for vm in (*self._settings.vms, *self._settings.templates)})
        self.context.strategies.start()
        self.cluster.start()
        if not self._settings.dry_run:
            self.standins.start()
        self.summons.start()
        self.context.is_running = True
        found = self.inventory.start()
        return found if self._settings.dry_run else found.addCallback(lambda _: self.preparation.start())

    @deferred
    async def stop(self) -> None:
        """Write down what is remembered and leave all VMs as they are."""
        self.context.is_running = False
        self.summons.stop()
        self.preparation.stop()
        self.adoption.stop(self.machines.values())
        self.leases.stop()
        self.inventory.stop()
        await self.cluster.stop()
        await self.store.stop()
        await self.context.strategies.stop()
        await self.standins.stop()
        await self.inventory.close()

    def configure(self, settings: Settings) -> None:
        """Limit by *settings* from now on."""
        self.context.answer_by = settings.answer_by
        for part in (self.summons, self.admission, self.preparation):
            part.configure(settings)

    # The register.

    @property
    def templates(self) -> dict[str, Template]:
        """Of VMs that are made on demand, by name; `sync.reconfigure` changes them."""
        return self.members.templates

    def enlist(self, vm: VM) -> Machine:
        """Add a VM, or give the one of that name the settings *vm*; the inventory is to find it then."""
        machine = self.machines.get(vm.name)
        if machine is None:
            machine = self.machines[vm.name] = Machine(vm, self.inventory.backend_for(vm), self.context)
            self.adoption.enlist(machine)
            self.journal.totals.states[machine.state] += 1
        else:
            self.dependencies.forget(machine)
            self.standins.forget(machine)
            machine.note(vm=vm)
            machine.problem(Problem.REMOVED)
            self.leases.regrant(machine)
        for part in (self.members, self.dependencies, self.standins, self.preparation):
            part.enlist(machine)
        return machine

    @deferred
    async def dismiss(self, machine: Machine, reason: str, *, keep: bool = False) -> None:
        """
        Stop *machine*, by its mode, if it is up and managed; then remove it. Its names must be gone already.

        If it cannot be stopped, that is tried again as for any other VM, and it is shown until it is down. What the
        hypervisor has of a VM that a template has made is removed, unless another node does that (*keep*).
        """
        name = machine.vm.name
        if self.machines.get(name) is not machine:
            return
        if not self.cluster.ownership.is_others(machine):
            self.operator.release(name)
        while not self.cluster.ownership.is_others(machine) and (
            machine.state in STOPS | PREPARES | {State.PREPARED} or (machine.managed and machine.state in WANTED)
        ):
            if await self.operator.stop_if_possible(machine, reason) is State.UP:
                self._keep_removed(machine, IS_REMOVED if machine.vm.template is None else f"{IS_FORGOTTEN}: it runs")
                return
        if self.members.is_removed(name) or self.machines.get(name) is not machine:  # it was dismissed meanwhile
            return
        is_others = self.cluster.ownership.is_others(machine) or self.cluster.reservations.is_made(name)
        keep = keep or machine.vm.template is None or is_others
        if not keep and not await self._removed(machine):
            return
        self.peers.gather()
        machine.lose(reason, NoSuchVM)
        self.journal.totals.states[machine.state] -= 1
        del self.machines[name]
        self.context.problems.forget(name)
        for part in (
            self.cluster.ownership, self.dependencies, self.adoption, self.admission, self.preparation, self.summons,
            self.inventory, self.leases, self.stats, self.standins, self.uptime, self.members,
        ):
            part.forget(machine)

    def _keep_removed(self, machine: Machine, *problem: str) -> None:
        """Keep *machine*, without its names, until it can be removed; *problem* tells an operator why."""
        vm = attrs.evolve(machine.vm, dns=(), needs=(), keep_up=(), use_synjitsu=False, removed=True)
        self.enlist(vm).problem(Problem.REMOVED, *problem)

    async def _removed(self, machine: Machine) -> bool:
        """
        Remove what its hypervisor has of *machine*, which a template has made; return whether that was done.

        The VM counts as removed from the configuration first, so that it is not defined again when it is seen gone.
        """
        name = machine.vm.name
        self._keep_removed(machine)
        if not self.cluster.ownership.connected:
            machine.problem(Problem.REMOVED, f"{IS_FORGOTTEN}: other nodes may have made it anew")
            return False
        self.members.begin_removal(name)
        try:
            await self.inventory.looked_up(machine)
            await machine.backend.remove(machine.vm)
        except NoSuchVM:
            return True
        except BackendError as error:
            machine.problem(Problem.REMOVED, f"{IS_FORGOTTEN}: {error}")
            return False
        finally:
            self.members.end_removal(name)
        return True

    async def remove_leftovers(self, machine: Machine) -> None:
        """
        Remove what the hypervisor has of *machine*, which another node removes, or has removed; not if it is made anew.

        This node may have defined the VM after that, when it was started, looked up, or connected again.
        """
        name = machine.vm.name
        await self.inventory.looked_up(machine)
        if name not in self.machines and not self.cluster.reservations.is_made(name):
            with suppress(BackendError):  # it is not there, or still runs: the other node removes it then
                await machine.backend.remove(machine.vm)

    def problems_of(self, machine: Machine) -> list[str]:
        """Return what an operator should know of *machine* besides its state, in sentences."""
        return [*self.context.problems.of(machine.vm.name), *self.standins.refusals(machine)]

    # VMs that the configuration has no more (`IInventoryObserver`, `IObserver`).

    def enlist_removed(self, vm: VM) -> Machine:
        """Return a machine for *vm*, which the configuration has no more, until it has been stopped, once idle."""
        hosts = tuple(host.name for host in self._settings.hosts) if vm.backend == HOSTS else ()
        name = vm.name if vm.name not in self.machines else f"{vm.name} ({vm.uuid})"
        machine = self.enlist(attrs.evolve(vm, name=name, hosts=hosts))
        machine.problem(Problem.REMOVED, IS_REMOVED)
        return machine

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Look at *machine* soon if the configuration has it no more: while its state changes, it must stay."""
        if machine.vm.removed:
            self.context.reactor.callLater(0, self.removed_moved, machine)

    def removed_moved(self, machine: Machine) -> None:
        """Forget *machine*, which the configuration has no more, if it is down; stop it if its address is taken."""
        if self.machines.get(machine.vm.name) is not machine:
            return
        if machine.state in DOWN - {State.PREPARED} or machine.is_gone:
            self.store.stopped(machine)
            dismissed = self.dismiss(machine, "it is no more").addCallback(lambda _: self.store.forget_others())
            spawn(self.log, dismissed, machine.vm.name)
        elif machine.state is State.UP and self.leases.lease(machine.vm.name) is not None:
            taken = {ip for one in self.machines.values() if not one.vm.removed for ip in one.vm.ip}
            if taken.intersection(machine.vm.ip):
                spawn(self.log, self.leases.end(machine, "its address is another VM's now"), machine.vm.name)

    # What the inventory reports (`IInventoryObserver`).

    def hinted(self, machine: Machine) -> None:
        """Handle a hypervisor's event for *machine*."""
        self.standins.changed(machine)

    def replaced(self, machine: Machine) -> None:
        """Handle *machine*, whose name another VM has now; it still has the uuid of the one before."""
        self.adoption.replaced(machine)

    @deferred
    async def found(self, machine: Machine) -> None:
        """Begin with *machine*, which was found at its hypervisor."""
        await self.standins.learn(machine)
        if not self._settings.dry_run:
            self.leases.wakeups.watch(machine)

    # What Synjitsu's side asks and reports (`IStandInObserver`).

    def wake(self, machine: Machine, host: str, *, proven: bool) -> None:
        """Start *machine*: a client at *host*, an address that may be *proven*, has sent to it while it was down."""
        self.summons.wake(machine, host, proven=proven)

    def problem(self, machine: Machine, kind: Problem, sentences: tuple[str, ...]) -> None:
        """Note what an operator should know of *machine* (`Problems.note`)."""
        self.context.problems.note(machine.vm.name, kind, sentences)

    def synjitsu_of(self, machine: Machine) -> str | None:
        """Return the endpoint of the Synjitsu that stands in for *machine*; None if there is none."""
        return self.cluster.synjitsu(machine)

    def is_others(self, machine: Machine) -> bool:
        """Return whether another node owns *machine*; then that node makes the announcements."""
        return self.cluster.ownership.is_others(machine)
