"""
The VMs of templates: made when their names are first asked for, and forgotten when nobody has used them for long.

A VM is made in one activation: its name exists (`existence`), the client may start VMs, an address is chosen, the VM is
written into the state, made at its hypervisor, named in the zones, and started. If one of these steps fails, those
before it are undone; if the process ends between two of them, the state has a VM like all others, which is off. From
then on it is one: what it needs, keeps and answers is no business of this module.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.config.source import RawValue
from jitsu_tw.config.vms import NAMESPACE, TEMPLATE, name_of, vm_from
from jitsu_tw.coroutines import deferred, report
from jitsu_tw.dns.binding import is_here
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import (
    BackendError,
    BackendLost,
    BootFailed,
    ClusterUnavailable,
    ConfigError,
    JitsuError,
    NoCapacity,
    Prohibited,
    StoreError,
)
from jitsu_tw.ijitsu import ITemplateControl, ITemplates, TemplateCounts
from jitsu_tw.neighbours import mac_of, routers
from jitsu_tw.networks import network
from jitsu_tw.rules.addresses import choose, size
from jitsu_tw.rules.buckets import Buckets
from jitsu_tw.rules.lifecycle import DOWN
from jitsu_tw.store.layout import VMS, in_folder, made_by, origin_path, vm_changes, vm_files
from jitsu_tw.sync.existence import Existing

if TYPE_CHECKING:
    from collections.abc import Container

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.dns.wire import Source
    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM, Template
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: What a label must be like to be the name of a VM (RFC 1123, 2.1): other names do not exist.
LABEL: Final = re.compile(rb"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

#: Seconds for which a name whose VM could not be made, or did not start, is not tried again.
RESTS: Final = 10.0

#: The most such names that are remembered.
MOST_FAILED: Final = 1000

#: Seconds between two looks for VMs that are to be forgotten.
FORGETS_EVERY: Final = 60.0


class _Taken:
    """The addresses that no new VM can have: those of other VMs, of this host, its routers and its neighbours."""

    def __init__(self, *known: Container[Address]) -> None:
        """Take those that are *known*."""
        self._known, self._routers = known, routers()

    def __contains__(self, address: Any) -> bool:
        """Return whether *address* is taken."""
        if any(address in known for known in self._known) or address.packed in self._routers:
            return True
        host = str(address)
        return is_here(host) or mac_of(host) is not None


@implementer(ITemplates, ITemplateControl)
class Templates:
    """
    Makes and forgets the VMs of templates.

    It owns, and nobody else writes: which VMs are being made, what each client network has made, and what has failed.

    """

    log = Logger()

    def __init__(
        self, running: LiveConfig, fleet: Fleet, store: IStore, clocks: Clocks, existing: Existing | None = None
    ) -> None:
        """
        Make nothing yet.

        Args:
            running: the configuration, which gets the VMs.
            fleet: has them then.
            store: the state.
            clocks: tell the time.
            existing: finds out which names exist.
        """
        self._running, self._fleet, self._store = running, fleet, store
        self._reactor, self._wall = clocks.reactor, clocks.wall
        self._existing = existing or Existing(clocks.reactor)
        self._making: dict[str, set[Deferred[bool]]] = {}
        self._chosen: dict[Address, str] = {}
        self._failed: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._budgets: dict[str, tuple[int, Buckets]] = {}
        self._retired: dict[str, tuple[VM, str]] = {}
        self._forgetting = LoopingCall(self._look)
        self._forgetting.clock = clocks.reactor
        self._began = 0.0

    def start(self) -> None:
        """Begin to forget VMs that nobody uses any more."""
        self._began = self._wall()
        self._forgetting.start(FORGETS_EVERY, now=False)

    def stop(self) -> None:
        """End that."""
        if self._forgetting.running:
            self._forgetting.stop()

    # What resolvers ask (`ITemplates`).

    def label_of(self, name: bytes, template: str) -> str | None:
        """Return the label that *name*, in lower case, has in *template*; None if it can have no VM."""
        label, above = name[1 : 1 + name[0]], name[1 + name[0] :]
        is_below = any(wildcard[2:] == above for wildcard in self._fleet.templates[template].dns)
        return label.decode() if is_below and LABEL.fullmatch(label) else None

    def has(self, template: str) -> bool:
        """Return whether there is a template of that name."""
        return template in self._fleet.templates

    def serves(self, template: str, version: int) -> bool:
        """Return whether the VMs of *template* have addresses of the IP *version*."""
        return any(one.first.version == version for one in self._fleet.templates[template].pool)

    def exists(self, template: str, label: str, source: Source) -> Deferred[bool]:
        """Return whether *label* exists in *template* (`Existing.exists`)."""
        return self._existing.exists(self._fleet.templates[template], label, source)

    @deferred
    async def make(self, template: str, label: str, source: Source) -> bool:
        """Make the VM of *label*, and begin to start it, if it exists (`ITemplates.make`)."""
        if not await self.exists(template, label, source):
            return False
        name = f"{label}.{template}"
        if name in self._fleet.machines:
            if name in self._running.leaving or self._fleet.machines[name].vm.removed:
                raise BootFailed(f"{name}: it is being forgotten; ask again when that is done")
            return True
        if name in self._making:
            waiter: Deferred[bool] = Deferred(self._making[name].discard)
            self._making[name].add(waiter)
            return await waiter
        self._check(self._fleet.templates[template], name, source)
        waiters = self._making[name] = set()
        try:
            await self._make(self._fleet.templates[template], label, name, source)
        except Exception as error:
            self._note_failure(name, str(error))
            for waiter in waiters:
                waiter.errback(error)
            raise
        finally:
            del self._making[name]
        for waiter in tuple(waiters):
            waiter.callback(True)  # noqa: FBT003
        return True

    # Making.

    def _check(self, template: Template, name: str, source: Source) -> None:
        """
        Spend what *source* may make, or raise why the VM *name* is not made now.

        Raises:
            Prohibited, Unproven, NoCapacity: the client may not, or no client may.
            BootFailed: it has just failed.
            BackendLost, ClusterUnavailable: it cannot be made now.
        """
        now, fleet = self._reactor.seconds(), self._fleet
        until, reason = self._failed.get(name, (0.0, ""))
        if now < until:
            raise BootFailed(f"{name}: {reason}; tried again in {until - now:.0f} s")
        backend = fleet.inventory.backend_for(template)
        if (lost := fleet.inventory.why_lost(backend)) is not None:
            raise BackendLost(f"{name}: {lost}")
        if refusal := fleet.cluster.ownership.refusal:
            raise ClusterUnavailable(f"{name}: {refusal}")
        making = sum(one.endswith(f".{template.name}") for one in self._making)
        if fleet.members.count(template.name) + making >= template.max:
            raise NoCapacity(f"{template.name} has as many VMs as it may, {template.max}")
        client, budget = network(source.address), self._budget(template)
        if not budget.has(client, now):
            raise Prohibited(f"this network has made as many VMs of {template.name} as it may for now")
        fleet.summons.admit_new(name, source)
        budget.spend(client, now)

    def _budget(self, template: Template) -> Buckets:
        """Return what the client networks have spent of *template*, which may allow them more or less by now."""
        most, budget = self._budgets.get(template.name, (-1, None))
        if budget is None or most != template.new_per_minute:
            budget = Buckets(template.new_per_minute)
            self._budgets[template.name] = template.new_per_minute, budget
        return budget

    async def _make(self, template: Template, label: str, name: str, source: Source) -> None:
        """Do all steps after `_check`, or undo them."""
        addresses = await self._address(template, name)
        try:
            machine = await self._enlisted(template, label, name, addresses)
        finally:
            for address in addresses:
                del self._chosen[address]
        try:
            await self._fleet.inventory.find(machine)
            if machine.is_lost or not machine.uuid:
                raise BackendError(f"{name}: {machine.reason}")
            self._running.put_names(machine)
        except JitsuError:
            if self._fleet.inventory.why_lost(machine.backend) is None:
                await self._retire(machine, "it could not be made")
            else:  # perhaps it was made: it stays, as a VM like all others
                self._running.put_names(machine)
            raise
        self._fleet.journal.made(name, template.name, source.host)
        self.log.info("{name}: made for {client}, with {ips}", name=name, client=source.host,
                      ips=" and ".join(map(str, machine.vm.ip)))
        self._fleet.leases.use(machine)
        started = machine.summon(f"{source.host}, a new name", insist=True, is_client=False)
        started.addErrback(self._did_not_start, machine).addErrback(lambda failure: report(self.log, name, failure))

    async def _address(self, template: Template, name: str) -> tuple[Address, ...]:
        """
        Choose addresses for the VM *name*, on which all nodes agree.

        Raises:
            NoCapacity: the pool has none left.
            ClusterUnavailable: the nodes cannot agree.
        """
        refused: set[Address] = set()
        while True:
            chosen = choose(template.pool, name, _Taken(self._fleet.members.addresses, self._chosen, refused))
            if chosen is None:
                raise NoCapacity(f"all {size(template.pool)} addresses of {template.name} are taken")
            self._chosen |= dict.fromkeys(chosen, name)
            agreed: tuple[Address, ...] | None = None
            try:
                agreed = await self._fleet.cluster.reserve(name, chosen)
            finally:
                if agreed != chosen:
                    for address in chosen:
                        del self._chosen[address]
            if agreed == chosen:
                return chosen
            refused.update(chosen)

    async def _enlisted(self, template: Template, label: str, name: str, addresses: tuple[Address, ...]) -> Machine:
        """Write the VM *name* into the state, and add it to the fleet, without its names."""
        await self._running.lock.acquire()
        try:
            vm = self.built(self._fleet.templates.get(template.name, template), label, addresses)
            uuid = str(vm.uuid)
            changes = {**in_folder(uuid, vm_files(vm)), origin_path(uuid): made_by(template.name, self._wall())}
            try:
                await self._store.write(dict(changes), f"Made by template {template.name}\n\nadded: {name}\n")
            except StoreError as error:
                raise BackendError(f"{name} is not made, because the state cannot be written: {error}") from error
            self._fleet.store.config.merged(changes)
            return self._fleet.enlist(vm)
        finally:
            self._running.lock.release()

    def built(self, template: Template, label: str, addresses: tuple[Address, ...]) -> VM:
        """
        Return the VM that *template* makes for *label*, with *addresses*.

        Raises:
            ConfigError: there can be no such VM; a file of the template is not there any more, perhaps.
        """
        name = f"{label}.{template.name}"
        uuid = str(uuids.uuid5(NAMESPACE, to_text(name_of(label, template.dns[0]))))
        raw = {"name": name, "uuid": uuid, TEMPLATE: template.name}
        place = f"{VMS}/{uuid}"
        said = {key: [RawValue(text, place)] for key, text in raw.items()}
        said["ip"] = [RawValue(str(address), place) for address in addresses]
        return attrs.evolve(vm_from(said, self._running.settings), place=(place, None))

    def _did_not_start(self, failure: Any, machine: Machine) -> Any:
        """Forget *machine*, whose first start has failed, unless that was because its hypervisor was lost."""
        failure.trap(JitsuError)
        if failure.check(BackendLost, ClusterUnavailable) or self._fleet.machines.get(machine.vm.name) is not machine:
            return None
        self._note_failure(machine.vm.name, failure.getErrorMessage())
        self.log.warn("{name}: its first start has failed, so it is forgotten: {error}", name=machine.vm.name,
                      error=failure.getErrorMessage())
        return self.forget(machine.vm.name).addErrback(lambda failure: failure.trap(JitsuError))

    def _note_failure(self, name: str, reason: str) -> None:
        self._failed[name] = self._reactor.seconds() + RESTS, reason
        self._failed.move_to_end(name)
        if len(self._failed) > MOST_FAILED:
            self._failed.popitem(last=False)

    # What an operator sees (`ITemplateControl`).

    def counts(self, template: str) -> TemplateCounts:  # noqa: ARG002
        """Return what *template* has done."""
        return TemplateCounts()

    def problems(self) -> dict[str, list[str]]:
        """Return what is wrong with templates, by the template's name."""
        return {}

    # Forgetting.

    @deferred
    async def forget(self, name: str) -> None:
        """
        Stop the VM *name*, which a template has made, and remove all that there is of it.

        Raises:
            ConfigError: it was not made by a template, or is on its way already.
            BackendError: it cannot be stopped or removed now; that is tried again, and it has no names any more.
        """
        machine = self._fleet.machines[name]
        if machine.vm.template is None:
            raise ConfigError("was not made by a template; remove it from the configuration", key=name)
        if name in self._running.leaving or machine.vm.removed:
            raise ConfigError("is on its way already", key=name)
        await self._retire(machine, "it is forgotten")
        if name in self._retired:
            raise BackendError("; ".join(self._fleet.problems_of(self._fleet.machines[name])))
        self.log.info("{name}: forgotten", name=name)

    async def _retire(self, machine: Machine, reason: str) -> None:
        """Take away the names of *machine*, stop it, and remove it; if that must wait, `_look` writes its end."""
        name, vm = machine.vm.name, machine.vm
        self._retired[name] = vm, reason
        await self._running.lock.run(self._running.take_names, machine)
        try:
            await self._fleet.dismiss(machine, reason)
        finally:
            self._running.leaving.discard(name)
        await self._write_off()

    async def _write_off(self) -> None:
        """Remove from the state those that were retired and are gone, and free their addresses."""
        for name, (vm, reason) in [one for one in self._retired.items() if one[0] not in self._fleet.machines]:
            uuid = str(vm.uuid)
            changes = {**vm_changes(uuid, vm_files(vm), {}), origin_path(uuid): None}
            statistics = {f"jitsu/stats/{uuid}": None}
            try:
                await self._store.write({**changes, **statistics}, f"Forgotten\n\nremoved: {name}\n")
            except StoreError as error:
                self.log.error("{name}: is gone, but not from the state: {error}", name=name, error=str(error))
                return
            self._fleet.store.config.merged(changes)
            self._fleet.journal.forgotten(name, reason)
            self._fleet.cluster.release(name, vm.ip)
            del self._retired[name]

    @deferred
    async def _look(self) -> None:
        """Forget the VMs that nobody has used for as long as their template says."""
        await self._write_off()
        for template in list(self._fleet.templates.values()):
            before = self._wall() - template.forget_after
            for name in self._fleet.members.of(template.name) if template.forget_after else ():
                machine = self._fleet.machines[name]
                if machine.state in DOWN and name not in self._retired and self._last_use(machine) < before:
                    try:
                        await self.forget(name)
                    except JitsuError as error:
                        self.log.error("{name}: is not forgotten yet: {error}", name=name, error=str(error))

    def _last_use(self, machine: Machine) -> float:
        """Return when *machine* was last used, in seconds since 1970; if that is not known, when this process began."""
        return self._fleet.stats.current(machine).last_use_ts or self._began
