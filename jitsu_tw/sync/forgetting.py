"""
How VMs of templates are forgotten: by an operator, when nobody has used them for long, or when they cannot be made.

The names are removed from the zones, the VM is stopped and removed from its hypervisor, and then from the state. A step
that fails is tried again; if the process ends before the last step, the next process has a VM like all others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw.coroutines import deferred, report
from jitsu_tw.errors import BackendError, ClusterUnavailable, ConfigError, JitsuError, StoreError
from jitsu_tw.neighbours import mac_of
from jitsu_tw.rules.lifecycle import DOWN
from jitsu_tw.slices import in_slices
from jitsu_tw.store.layout import VMS, origin_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: Seconds between two looks for VMs that are to be forgotten, and between two tries of a step that has failed.
FORGETS_EVERY: Final = 60.0

#: In a cluster, a node tells the others of the use of a VM at most once in this share of `forget_after`, and the VM is
#: kept for this share longer.
TOLD_SHARE: Final = 1 / 8

#: The most forgotten VMs whose entries in the kernel's table of neighbours are remembered.
MOST_MACS: Final = 1000

#: Why a VM is forgotten.
BY_HAND: Final = "by hand"
UNUSED: Final = "nobody has used it for the time that its template says"


@attrs.frozen
class _Retired:
    """
    A VM that is being forgotten.

    Attributes:
        vm: its settings before.
        reason: why it is forgotten.
        counts: whether it counts as forgotten: not if it could not be made.
        releases: whether this node frees its addresses, and no other node does.
    """

    vm: VM
    reason: str
    counts: bool
    releases: bool


class Forgetting:
    """
    Forgets VMs of templates.

    It owns, and nobody else writes: which VMs are being forgotten.

    Attributes:
        forgotten: how many VMs of each template were forgotten since this process began.
        macs: the MACs that the kernel had at the addresses of forgotten VMs, by the address, the latest last.
    """

    log = Logger()

    def __init__(self, running: LiveConfig, fleet: Fleet, store: IStore, clocks: Clocks) -> None:
        """Forget VMs of *fleet*, whose names *running* has, and that *store*, the state, has."""
        self._running, self._fleet, self._store, self._clocks = running, fleet, store, clocks
        self.forgotten: Counter[str] = Counter()
        self.macs: OrderedDict[Address, str] = OrderedDict()
        self._retired: dict[str, _Retired] = {}
        self._looking = LoopingCall(self._look)
        self._looking.clock = clocks.reactor
        self._began = self._started = 0.0

    def start(self) -> None:
        """Begin to look for VMs that nobody has used for long; in a dry run, forget none."""
        self._began, self._started = self._clocks.wall(), self._clocks.now()
        if not self._running.settings.dry_run:
            self._looking.start(FORGETS_EVERY, now=False)

    def stop(self) -> None:
        """End the looking."""
        if self._looking.running:
            self._looking.stop()

    def has(self, name: str) -> bool:
        """Return whether the VM *name* is being forgotten, or being removed by a change of the configuration."""
        return name in self._retired or self._running.leaves(name)

    @deferred
    async def forget(self, name: str, reason: str = BY_HAND, before: float = inf) -> None:
        """
        Stop the VM *name*, which a template has made, and remove all that there is of it, at all nodes.

        If *before* is given, in seconds since 1970, nothing is done if another node knows of a use then or later.

        Raises:
            ConfigError: there is no such VM, it was not made by a template, or is being forgotten already.
            BackendError: the VM cannot be stopped or removed now, and has no names any more; the rest is tried again.
            ClusterUnavailable: the nodes cannot agree that the VM is removed.
        """
        machine = self._fleet.machines.get(name)
        if machine is None:
            raise ConfigError("is no VM", key=name)
        if machine.vm.template is None:
            raise ConfigError("was not made by a template; remove it from the configuration", key=name)
        if self.has(name):
            raise ConfigError("is on its way already", key=name)
        if not await self.retire(machine, reason, before=before):
            return
        if name in self._retired:
            known = self._fleet.machines.get(name)
            what = self._fleet.problems_of(known) if known is not None else ["is gone, but the state cannot be written"]
            raise BackendError(f"{name}: {'; '.join(what)}")
        self.log.info("{name}: forgotten, {reason}", name=name, reason=reason)

    async def retire(
        self, machine: Machine, reason: str, *, counts: bool = True, before: float = inf, elsewhere: bool = False
    ) -> bool:
        """
        Remove the names of *machine*, stop the VM, and remove it; `_look` does later what cannot be done now.

        Args:
            machine: a VM that a template has made.
            reason: why it is forgotten.
            counts: whether it counts as forgotten: not if it could not be made.
            before: see `forget`.
            elsewhere: whether another node forgets the VM, and removes what the hypervisor has of it.

        Returns:
            whether this node forgets the VM: not if the VM was used, or if another node is forgetting it, which will
            tell this node.

        Raises:
            ClusterUnavailable: the nodes cannot agree, or not any more; in the latter case a node ends later what was
                begun.
        """
        name, reservations = machine.vm.name, self._fleet.cluster.reservations
        self._retired[name] = _Retired(machine.vm, reason, counts, not elsewhere)
        is_agreed = False
        try:
            is_agreed = elsewhere or await reservations.retire(name, machine.vm.ip, before)
        finally:
            if not is_agreed:
                del self._retired[name]
        if not is_agreed:
            return False
        await self._running.lock.run(self._running.take_names, machine)
        lost: ClusterUnavailable | None = None
        if not elsewhere:
            try:
                await reservations.left(name)
            except ClusterUnavailable as error:  # any node may remove it by now, and make it anew
                lost, self._retired[name] = error, _Retired(machine.vm, reason, counts, releases=False)
        try:
            await self._fleet.dismiss(machine, reason, keep=elsewhere or lost is not None)
            if elsewhere:
                await self._fleet.remove_leftovers(machine)
        finally:
            self._running.leaving.discard(name)
        await self._running.lock.run(self._write_off)
        if lost is not None:
            raise lost
        return True

    async def _write_off(self) -> None:
        """Remove from the state the retired VMs that are gone, and free their addresses; the lock is held."""
        for name, one in tuple(self._retired.items()):
            if name in self._fleet.machines:
                continue
            await self._fleet.store.written()  # a commit of statistics that is being prepared may have those of the VM
            uuid = str(one.vm.uuid)
            self._fleet.store.config.forget(uuid)
            changes = {f"{VMS}/{uuid}": None, origin_path(uuid): None, f"jitsu/stats/{uuid}": None}
            try:
                await self._store.write(changes, f"Forgotten, {one.reason}\n\nremoved: {name}\n")
            except StoreError as error:
                self.log.error("{name}: is gone, but not from the state, so that is tried again: {error}",
                               name=name, error=str(error))
                return
            self._fleet.journal.forgotten(name, one.reason)
            if one.releases:
                self._fleet.cluster.reservations.release(name, one.vm.ip)
            if one.counts and one.vm.template is not None:
                self.forgotten[one.vm.template] += 1
            self._note_macs(one.vm)
            del self._retired[name]

    def _note_macs(self, vm: VM) -> None:
        """Note the MACs that the kernel still has at the addresses of *vm*: no other machine has these addresses."""
        for address in vm.ip:
            with suppress(OSError):
                if (mac := mac_of(str(address))) is not None:
                    self.macs[address] = mac
                    self.macs.move_to_end(address)
        while len(self.macs) > MOST_MACS:
            self.macs.popitem(last=False)

    # Looking.

    @deferred
    async def _look(self) -> None:
        """Try again the steps that have failed, and forget the VMs that nobody has used for `forget_after`."""
        try:
            for name in self._retired.keys() & self._fleet.machines.keys():
                if self._fleet.machines[name].vm.removed:
                    self._fleet.removed_moved(self._fleet.machines[name])
            await self._running.lock.run(self._write_off)
            unused: list[str] = []
            await in_slices(self._clocks.reactor, self._find_unused(unused))
            for name in unused:
                await self._forget_unused(name)
        except Exception:  # noqa: BLE001 -- wide: a fault of Jitsu must not end the looking
            report(self.log)

    def _find_unused(self, unused: list[str]) -> Iterator[None]:
        """Add to *unused*, step by step, the VMs that are to be forgotten."""
        for template in tuple(self._fleet.templates):
            for name in self._fleet.members.of(template):
                if self._is_unused(name):
                    unused.append(name)
                yield

    def _is_unused(self, name: str) -> bool:
        """Return whether nobody has used the VM *name*, which is down, for as long as its template says."""
        machine = self._fleet.machines.get(name)
        template = self._fleet.templates.get(machine.vm.template or "") if machine is not None else None
        if machine is None or template is None or not template.forget_after:
            return False
        since, used = self._now - template.forget_after, self.last_use(machine)  # this tells the other nodes of the use
        return machine.state in DOWN and not self.has(name) and used < since

    async def _forget_unused(self, name: str) -> None:
        """Forget the VM *name*, unless it has been used meanwhile."""
        if self._is_unused(name):
            template = self._fleet.templates[self._fleet.machines[name].vm.template or ""]
            try:
                await self.forget(name, UNUSED, self._now - template.forget_after)
            except JitsuError as error:
                self.log.error("{name}: is not forgotten yet: {error}", name=name, error=str(error))

    @property
    def _now(self) -> float:
        """
        The seconds since 1970, by the wall clock now, or as it was when this process began: by the earlier one.

        No disk is lost because the clock is set forward by a month; nor because the clock was wrong by a month when
        this process began, and is set back: the times of all later uses are by the right clock.
        """
        return min(self._clocks.wall(), self._began + self._clocks.now() - self._started)

    def last_use(self, machine: Machine) -> float:
        """
        Return when *machine* was last used, in seconds since 1970; if that is not known, when this process began.

        In a cluster, uses through all nodes count, and the other nodes are told of a use through this one. The result
        may then be later than the last use by `TOLD_SHARE` of `forget_after`.
        """
        name, used = machine.vm.name, self._fleet.stats.current(machine).last_use_ts
        template = self._fleet.templates.get(machine.vm.template or "")
        if template is not None:
            used = self._fleet.cluster.reservations.share_use(name, used, TOLD_SHARE * template.forget_after)
        return used or self._began
