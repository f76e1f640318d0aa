"""
How the VMs of templates are made when their names are first asked for.

A VM is made in one activation: its name exists (`existence`), the client may start VMs, an address is chosen, the VM is
written into the state, made at its hypervisor, named in the zones, and started. If one of these steps fails, those
before it are undone (`forgetting`); if the process ends between two of them, the state has a VM like all others, which
is off. This module has nothing to do with a VM that has been started. The making goes on when the clients that have
asked wait no longer.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.backends.definition import mac_of as mac_made_of
from jitsu_tw.config.source import RawValue
from jitsu_tw.config.vms import LABEL, TEMPLATE, example, uuid_of, vm_from
from jitsu_tw.coroutines import deferred, report, spawn
from jitsu_tw.dns.binding import is_here
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
    Unproven,
)
from jitsu_tw.ijitsu import IForgets, ITemplateControl, ITemplates, TemplateCounts
from jitsu_tw.neighbours import mac_of, probe, routers
from jitsu_tw.networks import network
from jitsu_tw.rules.addresses import choose, size
from jitsu_tw.rules.buckets import Buckets
from jitsu_tw.shares import Places
from jitsu_tw.store.layout import VMS, in_folder, in_words, made_by, origin_path, vm_files
from jitsu_tw.sync.existence import Existing
from jitsu_tw.sync.forgetting import Forgetting

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.dns.wire import Source
    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.networks import Address, AddressRange
    from jitsu_tw.settings import VM, Template
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: Seconds for which a name whose VM could not be made, or did not start, is not tried again.
RESTS: Final = 10.0

#: The most such names that are remembered.
MOST_FAILED: Final = 1000

#: The most VMs that are made at once: each is written into the state and made at its hypervisor.
MOST_MAKING: Final = 64

#: The most questions that wait for VMs which are being made: of all clients, and of one client network.
MOST_WAITING: Final = 1000
MOST_WAITING_OF_ONE: Final = 100

#: The most neighbours that are probed for one VM.
MOST_PROBES: Final = 16

#: Errors that tell that a hypervisor, or the other nodes, cannot be asked.
_LOST: Final = (BackendLost, ClusterUnavailable)

#: The names of limits (`ijitsu.TemplateCounts.refused`), by the class of the error with which a client is refused.
_VERDICTS: Final = {Prohibited: "client", Unproven: "unproven", NoCapacity: "full"}


class _Taken:
    """The addresses that a new VM cannot have: those of other VMs, of this host, its routers and its neighbours."""

    def __init__(self, mac: str, forgotten: Mapping[Address, str], *known: Container[Address]) -> None:
        """
        Begin with the addresses that are *known* to be taken.

        A neighbour that the kernel remembers may be a VM that was forgotten, and even the new VM itself; any other is
        probed, so that an address that no machine has any more is free some seconds later.

        Args:
            mac: the new VM's.
            forgotten: the MACs that the kernel had at the addresses of forgotten VMs, by the address.
            known: addresses that are taken.
        """
        self._mac, self._forgotten = mac, forgotten
        self._known, self._routers, self._probes = known, routers(), MOST_PROBES

    def __contains__(self, address: Any) -> bool:
        """Return whether *address* is taken."""
        if any(address in known for known in self._known) or address.packed in self._routers:
            return True
        host = str(address)
        if is_here(host):
            return True
        if mac_of(host) in {None, self._mac, self._forgotten.get(address)}:
            return False
        if self._probes:
            self._probes -= 1
            probe(host)
        return True


class _Making:
    """
    A VM that is being made.

    Attributes:
        template: the name of its template.
    """

    def __init__(self, template: str) -> None:
        """Begin without a question that waits."""
        self.template = template
        self._waiters: set[Deferred[bool]] = set()
        self._result: Failure | bool | None = None

    def wait(self) -> Deferred[bool]:
        """Return a Deferred that fires when the VM is made, or fails when it cannot be made."""
        waiter: Deferred[bool] = Deferred(self._waiters.discard)
        if self._result is None:
            self._waiters.add(waiter)
        else:
            waiter.callback(self._result)
        return waiter

    def end(self, failure: Failure | None) -> None:
        """Tell the questions that wait, and those to come, that the VM is made, or by *failure* why it is not."""
        self._result = failure or True
        for waiter in tuple(self._waiters):
            waiter.callback(self._result)


@attrs.frozen(eq=False)
class _Unwritten:
    """
    A VM that is to be written into the state.

    Attributes:
        template: the name of its template.
        label: the first label of the VM's DNS names.
        name: of the VM.
        addresses: of the VM.
        enlisted: fires with the VM's machine when the VM is in the state.
    """

    template: str
    label: str
    name: str
    addresses: tuple[Address, ...]
    enlisted: Deferred[Machine] = attrs.field(factory=Deferred)


@attrs.define
class _Tally:
    """
    What a template has done since this process began: the counts of `ijitsu.TemplateCounts`, and its limits.

    Attributes:
        budget: how many new VMs the client networks have had.
        per_minute: how many of them a client network may have in a minute, when `budget` was made.
        outside: how many of its VMs have addresses outside its pool, which was another one when they were made; with
            the pool and the number of VMs that were counted.
        trouble: why its last new VM was not made, or did not start; empty if that VM did.
    """

    per_minute: int
    budget: Buckets
    outside: tuple[tuple[AddressRange, ...], int, int] = ((), 0, 0)
    made: int = 0
    failed: int = 0
    trouble: str = ""
    refused: Counter[str] = attrs.field(factory=Counter)
    asked: Counter[str] = attrs.field(factory=Counter)

    def fail(self, reason: str) -> None:
        """Count a VM that was not made, or did not start, because of *reason*."""
        self.failed, self.trouble = self.failed + 1, reason


@implementer(ITemplates, ITemplateControl, IForgets)
class Templates:
    """
    Makes the VMs of templates.

    It owns, and nobody else writes: which VMs are being made, what each client network has made, and what has failed.
    """

    log = Logger()

    def __init__(
        self, running: LiveConfig, fleet: Fleet, store: IStore, clocks: Clocks, existing: Existing | None = None
    ) -> None:
        """
        Make nothing yet.

        Args:
            running: the configuration, to which new VMs are added.
            fleet: has all VMs.
            store: the state.
            clocks: tell the time.
            existing: finds out which names exist.
        """
        self._running, self._fleet, self._store = running, fleet, store
        self._reactor, self._wall = clocks.reactor, clocks.wall
        self._existing = existing or Existing(clocks.reactor)
        self._forgetting = Forgetting(running, fleet, store, clocks)
        self._making: dict[str, _Making] = {}
        self._unwritten: list[_Unwritten] = []
        self._places = Places(MOST_WAITING, MOST_WAITING_OF_ONE)
        self._chosen: dict[Address, str] = {}
        self._failed: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._tallies: dict[str, _Tally] = {}
        running.follow(self)

    def start(self) -> None:
        """Begin to forget VMs that nobody uses any more; log what an operator should know of the templates."""
        self._forgetting.start()
        for name, template in self._fleet.templates.items():
            try:
                for sentence in self._fleet.inventory.backend_for(template).examine(example(template)):
                    self.log.warn("{name}: {sentence}", name=name, sentence=sentence)
            except ConfigError as error:
                self.log.error("{name}: it cannot make VMs now: {error}", name=name, error=str(error))

    def stop(self) -> None:
        """Forget no VM any more, and end the programs that find out which names exist."""
        self._forgetting.stop()
        self._existing.stop()

    # What resolvers ask (`ITemplates`).

    def label_of(self, name: bytes, template: str) -> str | None:
        """Return the label that *name*, in lower case, has in *template*; None if it can have no VM."""
        label, above = name[1 : 1 + name[0]], name[1 + name[0] :]
        is_below = any(wildcard[2:] == above for wildcard in self._fleet.templates[template].dns)
        text = label.decode("latin-1")
        return text if is_below and LABEL.fullmatch(text) else None

    def has(self, template: str) -> bool:
        """Return whether there is a template of that name."""
        return template in self._fleet.templates

    def serves(self, template: str, version: int) -> bool:
        """Return whether the VMs of *template* have addresses of the IP *version*."""
        return any(one.first.version == version for one in self._fleet.templates[template].pool)

    def exists(self, template: str, label: str, source: Source) -> Deferred[bool]:
        """Return whether *label* exists in *template* (`Existing.exists`)."""
        found = self._existing.exists(self._fleet.templates[template], label, source)
        return found.addBoth(self._found, self._tally(self._fleet.templates[template]))

    def _found(self, result: Any, tally: _Tally) -> Any:
        """Count an answer to whether a name exists."""
        tally.asked[{True: "exists", False: "missing"}.get(result, "unknown")] += 1
        return result

    @deferred
    async def make(self, template: str, label: str, source: Source) -> bool:
        """Make the VM of *label*, if that exists, and begin to start the VM (`ITemplates.make`)."""
        if not await self.exists(template, label, source):
            return False
        name = f"{label}.{template}"
        making = self._making.get(name)
        if making is None:
            if self._forgetting.has(name):
                raise BootFailed(f"{name}: it is being forgotten; ask again when that is done")
            if name in self._fleet.machines:
                if self._fleet.machines[name].vm.template is None:
                    raise BootFailed(f"{name}: a VM of the configuration is called so, so the template can make none")
                return True
        if not self._places.take(source):
            raise Prohibited("this network waits for too many VMs that are being made")
        try:
            return await (making or self._begin(name, template, label, source)).wait()
        finally:
            self._places.leave(source)

    def _begin(self, name: str, template: str, label: str, source: Source) -> _Making:
        """
        Begin to make the VM *name*, if the client *source* may have VMs made.

        Raises:
            JitsuError: as `_check`.
        """
        found = self._fleet.templates.get(template)
        if found is None:
            raise BootFailed(f"{name}: the template {template} is not in the configuration any more")
        self._check(found, name, source)
        making = self._making[name] = _Making(template)
        spawn(self.log, self._run(making, found, label, name, source), name)
        return making

    # Making.

    def _check(self, template: Template, name: str, source: Source) -> None:
        """
        Spend one new VM of the client *source*, or raise why the VM *name* is not made now.

        Raises:
            Prohibited, Unproven, NoCapacity: this client, or any client, may have no VM made now.
            BootFailed: the VM, or another VM of its template, has just failed, or another VM has its uuid.
            BackendLost, ClusterUnavailable: the hypervisor, or the other nodes, cannot be asked.
        """
        now, tally = self._reactor.seconds(), self._tally(template)
        reason, error = self._why_not(template, name, network(source.address), tally, now)
        if error is None:
            try:
                self._fleet.summons.admit_new(name, source)
            except JitsuError as refusal:
                reason, error = _VERDICTS.get(type(refusal), "client"), refusal
        if error is not None:
            tally.refused[reason] += 1
            raise error
        tally.budget.spend(network(source.address), now)

    def _why_not(
        self, template: Template, name: str, client: bytes, tally: _Tally, now: float
    ) -> tuple[str, JitsuError | None]:
        """Return the limit that keeps the VM *name* from being made, and the error; None if there is none."""
        fleet = self._fleet
        for failed in (name, template.name):
            until, reason = self._failed.get(failed, (0.0, ""))
            if now < until:
                return "failing", BootFailed(f"{name}: {reason}; tried again in {until - now:.0f} s")
        if whose := self._whose(uuid_of(name.partition(".")[0], template), name):
            return "failing", BootFailed(f"{name}: its uuid is that of {whose}, which must be forgotten first")
        if (lost := fleet.inventory.why_unusable(fleet.inventory.backend_for(template))) is not None:
            return "lost", BackendLost(f"{name}: {lost}")
        if refusal := fleet.cluster.ownership.refusal:
            return "lost", ClusterUnavailable(f"{name}: {refusal}")
        making = (one.template == template.name and who not in fleet.machines for who, one in self._making.items())
        number, addresses = fleet.members.count(template.name) + sum(making), size(template.pool)
        if number >= template.max:
            return "max", NoCapacity(f"{template.name} has as many VMs as it may, {template.max}")
        if number >= addresses and number - self._outside(template, tally) >= addresses:
            return "pool", NoCapacity(_all_taken(template))
        if not tally.budget.has(client, now):
            return "client", Prohibited(f"this network has made as many VMs of {template.name} as it may for now")
        if len(self._making) >= MOST_MAKING:
            return "busy", NoCapacity(f"{MOST_MAKING} VMs are being made; ask again")
        return "", None

    def _whose(self, uuid: str, name: str) -> str:
        """
        Return which VM has the *uuid* of a VM *name* that is to be made, with its disk; "" if none has.

        It may have been made by another template, which had the wildcard then, or be left out since the last start.
        """
        machine = self._fleet.inventory.machine(uuid)
        if machine is not None:
            return f"VM {machine.vm.name}"
        is_left_out = self._fleet.store.config.has(uuid) and not self._fleet.cluster.reservations.is_made(name)
        return "a VM in the state that is left out, as the log says" if is_left_out else ""

    def _outside(self, template: Template, tally: _Tally) -> int:
        """Return how many VMs of *template* have an address outside its pool; they are counted if that has changed."""
        number = self._fleet.members.count(template.name)
        if tally.outside[:2] != (template.pool, number):
            vms = (self._fleet.machines[name].vm for name in self._fleet.members.of(template.name))
            outside = [vm for vm in vms if not all(any(ip in one for one in template.pool) for ip in vm.ip)]
            tally.outside = template.pool, number, len(outside)
        return tally.outside[2]

    def _tally(self, template: Template) -> _Tally:
        """Return the tally of *template*, with an empty budget if `new_per_minute` of the template has changed."""
        tally = self._tallies.get(template.name)
        if tally is None:
            tally = self._tallies[template.name] = _Tally(template.new_per_minute, Buckets(template.new_per_minute))
        if tally.per_minute != template.new_per_minute:
            tally.per_minute, tally.budget = template.new_per_minute, Buckets(template.new_per_minute)
        return tally

    async def _run(self, making: _Making, template: Template, label: str, name: str, source: Source) -> None:
        """Make the VM *name*, also if no question waits for it any more, and tell the questions that wait."""
        failure: Failure | None = None
        is_new = False
        try:
            is_new = await self._make(template, label, name, source)
        except Exception as error:  # noqa: BLE001 -- wide: each waiter is to have an answer
            failure = Failure()
            if not isinstance(error, JitsuError):
                report(self.log, name, failure)
            self._note_failure(name, str(error))
            self._count(self._tally(template), error)
            self.log.warn("{name}: not made for {client}: {error}", name=name, client=source.host, error=str(error))
        del self._making[name]
        if is_new:
            self._start(self._fleet.machines[name], source)
            if name in self._failed:
                failure = Failure(BootFailed(self._failed[name][1]))
        making.end(failure)

    def _start(self, machine: Machine, source: Source) -> None:
        """Start *machine*, which is new, for its first client."""
        self._failed.pop(machine.vm.name, None)
        self._fleet.admission.note_client(machine.vm.name, network(source.address), proven=source.proven)
        self._fleet.leases.use(machine)
        started = machine.summon(f"{source.host}, a new name", insist=True, is_client=False)
        ended = started.addCallback(self._has_started, machine).addErrback(self._did_not_start, machine)
        spawn(self.log, ended, machine.vm.name, ignore=(ClusterUnavailable,))

    @staticmethod
    def _count(tally: _Tally, error: Exception) -> None:
        """Count a VM that was not made: by the limit if *error* is one, else as one that has failed."""
        reason = "pool" if isinstance(error, NoCapacity) else "lost" if isinstance(error, _LOST) else ""
        if reason:
            tally.refused[reason] += 1
        else:
            tally.fail(str(error))

    async def _make(self, template: Template, label: str, name: str, source: Source) -> bool:
        """Do all steps but the last, the start, or undo them; return False if another node has just made it."""
        addresses, is_new = await self._address(template, name)
        if not is_new:
            await self._adopt(template, label, name, addresses)
            return False
        try:
            machine = await self.enlist(template, label, name, addresses)
        except BaseException:
            await self._give_up(name, addresses)
            raise
        finally:
            for address in addresses:
                del self._chosen[address]
        try:
            await self._find(machine)
            self._running.put_names(machine)
        except Exception as error:
            try:
                lost = self._fleet.inventory.why_unusable(machine.backend) is not None
                if not lost:
                    await self._forgetting.retire(machine, f"because it could not be made: {error}", counts=False)
            except ClusterUnavailable:
                lost = True
            if lost:  # the hypervisor, or another node, may have the VM by now: it stays, as a VM like all others
                self._running.put_names(machine)
            raise
        self._tally(template).made += 1
        self._fleet.journal.made(name, template.name, source.host)
        self.log.info("{name}: made for {client}, with {ips}", name=name, client=source.host,
                      ips=" and ".join(map(str, machine.vm.ip)))
        return True

    async def _give_up(self, name: str, addresses: tuple[Address, ...]) -> None:
        """Free the *addresses* of the VM *name*, which is not made, at the other nodes, too."""
        reservations = self._fleet.cluster.reservations
        with suppress(ClusterUnavailable):  # then the others keep the VM, and this node adopts it when it is connected
            if await reservations.retire(name, addresses):
                reservations.release(name, addresses)

    async def _find(self, machine: Machine) -> None:
        """
        Make *machine* at its hypervisor.

        Raises:
            BackendError: the hypervisor refuses the VM, or cannot be asked.
        """
        await self._fleet.inventory.find(machine)
        if machine.is_lost or not machine.uuid:
            lost = self._fleet.inventory.why_unusable(machine.backend) is not None
            raise (BackendLost if lost else BackendError)(f"{machine.vm.name}: {machine.reason}")

    async def _address(self, template: Template, name: str) -> tuple[tuple[Address, ...], bool]:
        """
        Choose addresses for the VM *name*, on which all nodes agree.

        Returns:
            the VM's addresses, and whether they were chosen now; if not, another node has just made the VM.

        Raises:
            NoCapacity: the pool has no address left.
            ClusterUnavailable: the nodes cannot agree.
            BootFailed: another node is removing a VM of that name.
        """
        refused: set[Address] = set()
        mac = mac_made_of(uuid_of(name.partition(".")[0], template))
        others = self._fleet.cluster.reservations.taken
        known: tuple[Container[Address], ...] = (self._fleet.members.addresses, others, self._chosen, refused)
        while True:
            try:
                chosen = choose(template.pool, name, _Taken(mac, self._forgetting.macs, *known))
            except OSError as error:
                raise BackendError(f"{name}: it cannot be found out which addresses are free: {error}") from error
            if chosen is None:
                self._note_failure(template.name, _all_taken(template))  # to look for one among many takes long
                raise NoCapacity(_all_taken(template))
            self._chosen |= dict.fromkeys(chosen, name)
            agreed: tuple[tuple[Address, ...], bool] | None = None
            try:
                agreed = await self._fleet.cluster.reservations.reserve(name, chosen)
            finally:
                if agreed is None or not agreed[1]:
                    for address in chosen:
                        del self._chosen[address]
            if agreed is not None:
                return agreed
            refused.update(chosen)

    # Of other nodes.

    def is_busy(self, name: str) -> bool:
        """Return whether the VM *name* is being made, or being forgotten."""
        return name in self._making or self._forgetting.has(name)

    async def adopt(self, template: Template, label: str, name: str, addresses: tuple[Address, ...]) -> None:
        """
        Add the VM *name*, which another node has made with these *addresses*, and answer for it.

        Raises:
            ConfigError: this node cannot have the VM beside its other VMs; nothing has changed.
            BackendError: the state cannot be written; nothing has changed.
        """
        making = self._making[name] = _Making(template.name)
        failure: Failure | None = None
        try:
            await self._adopt(template, label, name, addresses)
        except Exception:
            failure = Failure()
            raise
        finally:
            del self._making[name]
            making.end(failure)

    async def _adopt(self, template: Template, label: str, name: str, addresses: tuple[Address, ...]) -> None:
        machine = await self.enlist(template, label, name, addresses)
        await self._fleet.inventory.find(machine)
        try:
            self._running.put_names(machine)
        except ConfigError:  # another VM was given the name meanwhile
            await self._forgetting.retire(machine, "because this node cannot serve it", counts=False, elsewhere=True)
            raise
        self.log.info("{name}: made by another node, with {ips}", name=name, ips=" and ".join(map(str, addresses)))

    def enlist(self, template: Template, label: str, name: str, addresses: tuple[Address, ...]) -> Deferred[Machine]:
        """
        Write the VM *name* into the state, and add it to the fleet, without its names.

        All VMs that wait to be written are written by one commit.

        Raises:
            ConfigError: (through the Deferred) there can be no such VM, by what the configuration has become meanwhile.
            BackendError: (through the Deferred) the state cannot be written.
        """
        one = _Unwritten(template.name, label, name, addresses)
        self._unwritten.append(one)
        if len(self._unwritten) == 1:
            spawn(self.log, self._running.lock.run(self._write))
        return one.enlisted

    async def _write(self) -> None:
        """Write the VMs that wait to be written into the state; the lock is held."""
        waiting, self._unwritten = self._unwritten, []
        changes: dict[str, str | None] = {}
        written: list[tuple[VM, _Unwritten]] = []
        for one in waiting:
            try:
                vm = self._checked(one)
            except Exception as error:  # noqa: BLE001 -- wide: each waiter is to have an answer
                one.enlisted.errback(error)
                continue
            written.append((vm, one))
            changes |= in_folder(str(vm.uuid), vm_files(vm))
            changes[origin_path(str(vm.uuid))] = made_by(one.template, self._wall())
        if not written:
            return
        templates = ", ".join(sorted({one.template for _, one in written}))
        message = f"Made by template {templates}\n\n{in_words('added', [vm.name for vm, _ in written])}"
        try:
            await self._store.write(dict(changes), message)
        except StoreError as error:
            for vm, one in written:
                why = f"{vm.name} is not made, because the state cannot be written: {error}"
                one.enlisted.errback(BackendError(why))
            return
        self._fleet.store.config.merged(changes)
        for vm, one in written:
            one.enlisted.callback(self._fleet.enlist(vm))

    def _checked(self, one: _Unwritten) -> VM:
        """
        Return the settings of a VM that is to be written.

        Raises:
            ConfigError: there can be no such VM, by what the configuration has become meanwhile.
        """
        if one.template not in self._fleet.templates or one.name in self._fleet.machines:
            raise ConfigError("the configuration has just changed; ask again", key=one.name)
        vm = self.built(self._fleet.templates[one.template], one.label, one.addresses)
        if taken := [address for address in one.addresses if address in self._fleet.members.addresses]:
            raise ConfigError(f"{taken[0]} has just been given to another VM; ask again", key=one.name)
        self._running.check_made(vm)
        return vm

    def built(self, template: Template, label: str, addresses: tuple[Address, ...]) -> VM:
        """
        Return the VM that *template* makes for *label*, with *addresses*.

        Raises:
            ConfigError: there can be no such VM; a file of the template is not there any more, perhaps.
        """
        uuid = uuid_of(label, template)
        raw = {"name": f"{label}.{template.name}", "uuid": uuid, TEMPLATE: template.name}
        place = f"{VMS}/{uuid}"
        values = {key: [RawValue(text, place)] for key, text in raw.items()}
        values["ip"] = [RawValue(str(address), place) for address in addresses]
        return attrs.evolve(vm_from(values, self._running.settings), place=(place, None))

    def _has_started(self, ready: bool, machine: Machine) -> bool:  # noqa: FBT001
        """Note that *machine*, which is new, has started."""
        tally = self._tallies.get(machine.vm.template or "")
        if tally is not None:
            tally.trouble = ""
        return ready

    def _did_not_start(self, failure: Any, machine: Machine) -> Deferred[bool] | None:
        """Forget *machine*, whose first start has failed, unless that was because its hypervisor was lost."""
        failure.trap(JitsuError)
        name, error = machine.vm.name, failure.getErrorMessage()
        if failure.check(*_LOST) or self._fleet.machines.get(name) is not machine:
            return None
        self._note_failure(name, error)
        if self._forgetting.has(name):
            return None
        if machine.vm.template in self._fleet.templates:
            self._tally(self._fleet.templates[machine.vm.template]).fail(f"{name}: its first start has failed: {error}")
        self.log.warn("{name}: its first start has failed, so it is forgotten: {error}", name=name, error=error)
        reason = f"because its first start has failed: {error}"
        return Deferred.fromCoroutine(self._forgetting.retire(machine, reason, counts=False))

    def _note_failure(self, name: str, reason: str) -> None:
        """Note why the VM *name*, or any VM of the template *name*, is not made for the next `RESTS` seconds."""
        self._failed[name] = self._reactor.seconds() + RESTS, reason
        self._failed.move_to_end(name)
        if len(self._failed) > MOST_FAILED:
            self._failed.popitem(last=False)

    # What an operator sees and steers (`ITemplateControl`).

    def counts(self, template: str) -> TemplateCounts:
        """Return what *template* has done."""
        tally, forgotten = self._tallies.get(template), self._forgetting.forgotten[template]
        if tally is None:
            return TemplateCounts(forgotten=forgotten)
        return TemplateCounts(tally.made, tally.failed, forgotten, dict(tally.refused), dict(tally.asked))

    def problems(self) -> dict[str, list[str]]:
        """Return what is wrong with templates, also with missing ones that have VMs, by the template's name."""
        found = {name: [sentence] for name, sentence in self._running.orphans.problems().items()}
        for name, template in self._fleet.templates.items():
            troubles = [self._existing.troubles.get(one.text) for one in template.exists]
            sentences = [f"whether its names exist is not known: {why}" for why in troubles if why]
            if name in self._tallies and (why := self._tallies[name].trouble):
                sentences.append(f"its last new VM could not be made: {why}")
            if sentences:
                found[name] = sentences
        return found

    @deferred
    async def forget(self, name: str) -> None:
        """Stop and remove the VM *name* (`Forgetting.forget`), when its making has ended."""
        await self._end_making(name)
        await self._forgetting.forget(name)

    @deferred
    async def retire(self, machine: Machine, reason: str) -> bool:
        """Stop and remove *machine* (`Forgetting.retire`), when its making has ended."""
        await self._end_making(machine.vm.name)
        return self._fleet.machines.get(machine.vm.name) is machine and await self._forgetting.retire(machine, reason)

    async def _end_making(self, name: str) -> None:
        """Wait until the VM *name* is made, or not: what is removed before its definition is written would stay."""
        if name in self._making:
            with suppress(Exception):  # wide: the questions that wait are told
                await self._making[name].wait()


def _all_taken(template: Template) -> str:
    """Return why *template* makes no VM that needs a new address."""
    return f"all {size(template.pool)} addresses of {template.name} are taken"
