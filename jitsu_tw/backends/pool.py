"""
Several hypervisors as one: a VM runs on the host that is chosen for it when it starts, and never on two.

A VM stays where it runs, and where its saved image is. Otherwise it goes to the host that it prefers, or to the one
with the most free memory; if its start fails, it is tried on the next one. Of a host that cannot be reached, what was
last seen there counts; if nothing was, what is known of the last start of the VM (`IPlacement.last_host`). If the VM
may run there, it is started nowhere else. These rules are in `rules.pool`.
"""

from __future__ import annotations

import time
import uuid as uuids
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.backends.hosts import Hosts
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import BackendError, BackendLost, ClusterUnavailable, NoCapacity, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, Memory, Power, Start
from jitsu_tw.rules.pool import Located, Sighting, Unsure, locate, pinned, rank
from jitsu_tw.settings import STARTS_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.settings import VM, Mode

    Named = list[tuple[str, Exception]]

#: Uuids of VMs that a file defines on each host, and that have none of their own, are made of their names in this.
NAMESPACE: Final = uuids.uuid5(uuids.NAMESPACE_DNS, "hosts.jitsu")


@implementer(IBackend)
class Pool(Hosts):
    """All hosts of a configuration, as one hypervisor."""

    def __init__(self, hosts: Mapping[str, IBackend], now: Callable[[], float] = time.monotonic) -> None:
        """Take *hosts*, by name, in the order of the configuration; *now* is a clock that never goes back."""
        super().__init__(hosts)
        self._now = now
        self._doubts: dict[str, float] = {}
        self._vms: dict[str, VM] = {}
        self._moving: set[str] = set()

    def _of(self, vm: VM) -> dict[str, IBackend]:
        """Return the hosts that *vm* may run on."""
        return {name: backend for name, backend in self._hosts.items() if name in vm.hosts}

    def _known(self, uuid: str) -> VM:
        if uuid not in self._vms:
            raise NoSuchVM(f"no VM {uuid}")
        return self._vms[uuid]

    def examine(self, vm: VM) -> tuple[str, ...]:
        """Return the advice of the backends of all hosts that *vm* may run on."""
        found = [backend.examine(_as_defined(vm)) for backend in self._of(vm).values()]
        return tuple(dict.fromkeys(sentence for one in found for sentence in one))

    # Finding.

    @deferred
    async def look_up(self, vm: VM) -> str:
        """Return the uuid of *vm*, which is the same on all hosts; define it where it is not known."""
        hosts, uuid = self._of(vm), vm.uuid
        bare = attrs.evolve(vm, define=None)
        # All at once: the others must not wait for a host that hangs.
        answers = await DeferredList([backend.look_up(bare) for backend in hosts.values()], consumeErrors=True)
        missing: Named = []
        errors: Named = []
        for name, (_, found) in zip(hosts, answers, strict=True):
            if isinstance(found, Failure):
                if not found.check(NoSuchVM, BackendLost):
                    found.raiseException()
                (missing if found.check(NoSuchVM) else errors).append((name, found.value))
            elif uuid is not None and found != uuid:
                raise BackendError(f"{name} has it as {found}, another host as {uuid}; define it with one uuid")
            else:
                uuid = found
        if vm.define is None or vm.removed:
            if uuid is None and errors:
                raise errors[0][1]
            if uuid is None or (missing and len(missing) == len(hosts)):
                raise NoSuchVM(f"none of its hosts ({', '.join(hosts)}) knows {vm.name}, and no file defines it")
        else:
            uuid = await self._define(vm, uuid, missing, errors)
        self._vms[uuid] = vm
        self._seen.setdefault(uuid, {})
        return uuid

    async def _define(self, vm: VM, uuid: str | None, missing: Named, errors: Named) -> str:
        """Define *vm* where it is missing, and make the other hosts compare its file with their definition."""
        hosts = self._of(vm)
        for name, _ in missing:
            uuid = await hosts[name].look_up(_as_defined(vm) if uuid is None else attrs.evolve(vm, uuid=uuid))
        if uuid is None:
            raise errors[0][1]
        there = hosts.keys() - {name for name, _ in (*missing, *errors)}
        known = attrs.evolve(vm, uuid=uuid)
        await DeferredList([hosts[name].look_up(known) for name in there], consumeErrors=True)
        return uuid

    @deferred
    async def state(self, uuid: str) -> Power:
        """Return what the VM is, on the host that it is on."""
        vm, at = self._known(uuid), self._at.get(uuid)
        if uuid in self._moving:
            return Power.RUNNING
        hosts, sightings = self._of(vm), list[Sighting]()
        for name in dict.fromkeys([at, *hosts] if at is not None else hosts):
            sighting = await self._look(uuid, name)
            sightings.append(sighting)
            if name == at and sighting == Sighting(name, Power.RUNNING):
                break  # where it was before, it is still
        self._known(uuid)  # it may have been removed meanwhile
        in_doubt = self._now() < self._doubts.get(uuid, -inf)
        located = locate(sightings, hosts, self._placement.last_host(vm), in_doubt=in_doubt)
        if located is None:
            raise NoSuchVM(f"none of its hosts ({', '.join(hosts)}) knows {vm.name}")
        if isinstance(located, Unsure):
            raise BackendLost(located.reason)
        self._is_located(uuid, located)
        return located.power

    def _is_located(self, uuid: str, located: Located) -> None:
        """Note where the VM is."""
        self._doubts.pop(uuid, None)
        if len(located.running) > 1:
            self.log.error("{name}: runs on {hosts} at once", name=self._vms[uuid].name,
                           hosts=" and ".join(located.running))
        if located.power is Power.OFF:
            self._at.pop(uuid, None)
        elif located.power is Power.RUNNING:
            self._runs_on(uuid, located.host)
        else:
            self._at[uuid] = located.host

    def _runs_on(self, uuid: str, name: str) -> None:
        moved = self._at.get(uuid) not in {None, name}
        self._at[uuid] = name
        self._placement.seen_on(self._vms[uuid], name, moved=moved)

    # Starting.

    @deferred
    async def start(self, uuid: str) -> Start:
        """Start the VM, on the host that it is pinned to, or on the best one where its start succeeds."""
        power = await self.state(uuid)
        if power is Power.RUNNING:
            return Start.RAN
        vm, failed = self._vms[uuid], list[str]()
        last = self._placement.last_host(vm)
        at = pinned(self._at.get(uuid), last, self._hosts.keys() - self.fenced)
        # A call that another node had begun on this host may be under way there, and in the way of this one.
        ago = self._placement.started_ago(vm) if at is not None and at == last else inf
        doubt = self._now() + STARTS_WITHIN - ago
        for name in [at] if at is not None else await self._choose(uuid, failed):
            self._at[uuid] = name
            if not await self._placement.claim_host(vm, name):
                raise ClusterUnavailable("another node owns it by now")
            try:
                return await self._start_on(uuid, name, power)
            except BackendLost:
                raise
            except BackendError as error:
                if self._now() < doubt:
                    self._doubts[uuid] = doubt
                    raise BackendLost(f"{name}: {error}; a start that another node had begun may go on") from error
                if power is Power.OFF:
                    del self._at[uuid]
                failed.append(f"{name}: {error}")
                self.log.error("{name}: cannot be started on {host}: {error}", name=vm.name, host=name,
                               error=str(error))
        raise BackendError("; ".join(failed))

    async def _start_on(self, uuid: str, name: str, power: Power) -> Start:
        """Start the VM, which is *power*, on the host *name*."""
        seen = self._seen_of(uuid)
        seen.pop(name, None)  # until it is seen again, it may run there
        try:
            how = await self._hosts[name].start(uuid)
        except BackendLost:
            self._doubts[uuid] = self._now() + STARTS_WITHIN  # the call may go on
            raise
        except BackendError:
            seen[name] = power
            raise
        self._at[uuid], seen[name] = name, Power.RUNNING
        return how

    async def _choose(self, uuid: str, failed: list[str]) -> list[str]:
        """Return the hosts that a VM may start on, the best first; put into *failed* why others cannot be."""
        vm, unusable = self._vms[uuid], self.unreachable.keys() | self.fenced
        names = [name for name in self._of(vm) if name not in unusable and not self._placement.is_drained(name)]
        if not names:
            raise NoCapacity(f"none of its hosts ({', '.join(self._of(vm))}) is there, or they are drained")
        answers = await DeferredList([self._memory_on(uuid, name) for name in names], consumeErrors=True)
        free: dict[str, int] = {}
        for name, (_, memory) in zip(names, answers, strict=True):
            if isinstance(memory, Failure):
                failed.append(f"{name}: {memory.getErrorMessage()}")
            elif memory is not None and memory.shortage:
                failed.append(f"{name}: {memory.shortage}")
            else:
                free[name] = 0 if memory is None else memory.free
        if not free:
            raise NoCapacity("; ".join(failed))
        return rank(vm, free, self._placement.take_wanted(vm))

    @deferred
    async def _memory_on(self, uuid: str, name: str) -> Memory | None:
        """Return the memory of the host *name*; define the VM there if it is not known, as when the host came late."""
        if name not in self._seen_of(uuid):
            await self._hosts[name].look_up(attrs.evolve(self._known(uuid), uuid=uuid))
        return await self._hosts[name].memory(uuid)

    # Moving.

    async def best(self, uuid: str) -> str:
        """
        Return the host that a VM would go to if it left the one that it is on.

        Raises:
            NoCapacity: there is none.
        """
        others = [name for name in await self._choose(uuid, []) if name != self._at.get(uuid)]
        if not others:
            raise NoCapacity(f"none of its other hosts ({', '.join(self._of(self._vms[uuid]))}) can have it")
        return others[0]

    async def migrate_to(self, uuid: str, to: str) -> None:
        """
        Move a VM that runs to another host, where it goes on running.

        Raises:
            BackendError: that cannot be; it runs where it did.
        """
        name, backend = self._where(uuid)
        self._moving.add(uuid)
        try:
            await backend.migrate(uuid, self._hosts[to])
            self._runs_on(uuid, to)
            self._seen[uuid] |= {name: Power.OFF, to: Power.RUNNING}
        finally:
            self._moving.discard(uuid)
        self.changed(uuid, f"moved to {to}")

    # What is asked of the host that has the VM.

    def _where(self, uuid: str) -> tuple[str, IBackend]:
        vm, name = self._known(uuid), self._at.get(uuid)
        if name is None:
            raise BackendError(f"{vm.name} is on none of its hosts")
        if name in self.unreachable:
            raise BackendLost(f"{name}: {self.unreachable[name]}")
        return name, self._hosts[name]

    @deferred
    async def _there(self, uuid: str, what: str, *arguments: Any) -> Any:
        """Call the method *what* of the host that has the VM."""
        return await getattr(self._where(uuid)[1], what)(uuid, *arguments)

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the VM where it is; one that is nowhere is off already."""
        return self._there(uuid, "stop", mode) if uuid in self._at else succeed(None)

    def ready(self, uuid: str) -> Deferred[None]:
        """Fire when the guest is up, as far as its host knows."""
        return self._there(uuid, "ready")

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Return what its host knows of the VM; of one that is off, what any knows."""
        return self._there(uuid, "guest") if uuid in self._at else self._any_guest(uuid)

    @deferred
    async def _any_guest(self, uuid: str) -> Guest:
        for name, backend in self._of(self._known(uuid)).items():
            if name not in self.unreachable:
                return await backend.guest(uuid)
        raise BackendLost(f"none of its hosts can be reached: {self}")

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Return what the guest has transmitted, as its host counts."""
        return self._there(uuid, "traffic")

    def cpu_time(self, uuid: str) -> Deferred[float | None]:
        """Return how long its virtual CPUs have run, as its host counts."""
        return self._there(uuid, "cpu_time")

    def obstacle(self, uuid: str, mode: Mode) -> Deferred[str | None]:
        """Return what its host knows against stopping it by *mode*; a VM that is nowhere is off already."""
        return self._there(uuid, "obstacle", mode) if uuid in self._at else succeed(None)

    @deferred
    async def advice(self, uuid: str) -> tuple[str, ...]:
        """Return the advice of the hosts that can be reached; each sentence names the hosts that give it."""
        names = [name for name in self._of(self._known(uuid)) if name not in self.unreachable]
        answers = await DeferredList([self._hosts[name].advice(uuid) for name in names], consumeErrors=True)
        advice: dict[str, list[str]] = {}
        for name, (good, sentences) in zip(names, answers, strict=True):
            for sentence in sentences if good else ():
                advice.setdefault(sentence, []).append(name)
        return tuple(f"{', '.join(hosts)}: {sentence}" for sentence, hosts in advice.items())

    def memory(self, uuid: str) -> Deferred[Memory | None]:  # noqa: ARG002
        """Return None: `start` compares the memory of all hosts."""
        return succeed(None)

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:
        """Move the VM to another hypervisor, where it goes on running."""
        return self._there(uuid, "migrate", to)

    @deferred
    async def keep_image(self, uuid: str, *, shared: bool = False) -> None:
        """Keep the image of the guest, on its host."""
        await self._where(uuid)[1].keep_image(uuid, shared=shared)

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Drop the image of the guest, on all hosts."""
        dropped = [backend.drop_image(uuid) for backend in self._of(self._known(uuid)).values()]
        return DeferredList(dropped, consumeErrors=True).addCallback(lambda _: None)

    @deferred
    async def remove(self, vm: VM) -> None:
        """Remove the VM on all hosts; while one cannot be asked, which may have its image, that fails."""
        hosts = self._of(vm)
        removed = [backend.remove(vm) for backend in hosts.values()]
        answers: list[tuple[bool, Any]] = await DeferredList(removed, consumeErrors=True)
        failed = [
            f"{name}: {error.getErrorMessage()}"
            for name, (_, error) in zip(hosts, answers, strict=True)
            if isinstance(error, Failure)
        ]
        if failed:
            raise BackendError("; ".join(failed))
        for known in (self._vms, self._seen, self._at, self._doubts):
            known.pop(str(vm.uuid), None)

    def prepare(self, uuid: str) -> Deferred[None]:
        """Pause the guest, which no client has used, on its host."""
        return self._there(uuid, "prepare")

    def stale(self, uuid: str) -> Deferred[str]:
        """Return why the prepared VM is no use any more, as its host knows."""
        return self._there(uuid, "stale")


def _as_defined(vm: VM) -> VM:
    """Return *vm* with the uuid that it is defined with where nothing else says one."""
    has_own = vm.define is None or "<uuid>" in vm.define.read_text(encoding="utf-8", errors="replace")
    return vm if vm.uuid is not None or has_own else attrs.evolve(vm, uuid=str(uuids.uuid5(NAMESPACE, vm.name)))
