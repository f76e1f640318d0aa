"""
Several hypervisors as one: a VM runs on the one that is chosen for it when it starts, and never on two.

A VM stays where it runs, and where its saved image is. Otherwise it goes to the host that it prefers, or the one with
the most memory to give; one whose start fails is tried on the next. What a host that cannot be reached does with a VM
is what was last seen of it there; where nothing was seen, what we know of the VM's whereabouts. If it may run there, it
is started nowhere else.
"""

from __future__ import annotations

import time
import uuid as uuids
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.errors import BackendError, BackendLost, ClusterUnavailable, NoCapacity, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, IPlacement, IWatcher, Memory, Power, Start
from jitsu_tw.settings import STARTS_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.settings import VM, Mode

    Named = list[tuple[str, Exception]]

#: Which of several answers of hosts holds for a VM.
RANK: Final = (Power.RUNNING, Power.PAUSED, Power.SAVED, Power.OFF)

#: Uuids of VMs that a file defines on each host, and that have none of their own, are made of their names in this.
NAMESPACE: Final = uuids.uuid5(uuids.NAMESPACE_DNS, "hosts.jitsu")


@implementer(IPlacement)
class Unplaced:
    """Nothing is known of where VMs are but what the hosts say."""

    def claim_host(self, vm: VM, host: str) -> Deferred[bool]:  # noqa: ARG002
        """Agree."""
        return succeed(True)  # noqa: FBT003

    def seen_on(self, vm: VM, host: str, *, moved: bool) -> None:
        """Do nothing."""

    def last_host(self, vm: VM) -> str | None:
        """Return None: not known."""

    def started_ago(self, vm: VM) -> float:  # noqa: ARG002
        """Return infinity: no start is known."""
        return inf

    def is_drained(self, host: str) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    def reach_changed(self, host: str) -> None:
        """Do nothing."""


@implementer(IBackend, IWatcher)
class Pool:
    """
    All hosts of a configuration.

    Attributes:
        unreachable: why a host cannot be reached, by name.
        fenced: hosts on which nothing runs, because they have been made sure to be dead.
    """

    log = Logger()

    def __init__(self, hosts: Mapping[str, IBackend], now: Callable[[], float] = time.monotonic) -> None:
        """Have these hosts, by name, in their order; *now* is a clock that never goes back."""
        self._hosts, self._now = dict(hosts), now
        self._doubts: dict[str, float] = {}
        self._names = {id(backend): name for name, backend in hosts.items()}
        self._watcher: IWatcher | None = None
        self._vms: dict[str, VM] = {}
        self._seen: dict[str, dict[str, Power]] = {}
        self._at: dict[str, str] = {}
        self.unreachable: dict[str, str] = {}
        self.fenced: set[str] = set()
        self._wanted: dict[str, str] = {}
        self._moving: set[str] = set()
        self._placement: IPlacement = Unplaced()
        self.reachable = all(backend.reachable for backend in hosts.values())
        self.has_uuids = all(backend.has_uuids for backend in hosts.values())

    def follow(self, placement: IPlacement) -> None:
        """Ask and tell *placement* from now on where VMs are."""
        self._placement = placement

    def __str__(self) -> str:
        """Say which they are, in messages."""
        return " or ".join(self._hosts)

    def __iter__(self) -> Any:
        """Yield the names of all."""
        return iter(self._hosts)

    def at(self, uuid: str) -> str | None:
        """Return the host that a VM runs, is paused or has its image on; None for none."""
        return self._at.get(uuid)

    def _of(self, vm: VM) -> dict[str, IBackend]:
        """Return the hosts that *vm* may run on."""
        return {name: backend for name, backend in self._hosts.items() if name in vm.hosts}

    def _known(self, uuid: str) -> VM:
        if uuid not in self._vms:
            raise NoSuchVM(f"no VM {uuid}")
        return self._vms[uuid]

    # Connecting.

    def examine(self, vm: VM) -> tuple[str, ...]:
        """Return the advice of the backends of all hosts that *vm* may run on."""
        found = [backend.examine(_as_defined(vm)) for backend in self._of(vm).values()]
        return tuple(dict.fromkeys(sentence for one in found for sentence in one))

    def connect(self, watcher: IWatcher) -> None:
        """Connect to all of them."""
        self._watcher = watcher
        self.unreachable = dict.fromkeys(self._hosts, "it has not answered yet")
        for backend in self._hosts.values():
            backend.connect(self)

    def close(self) -> Deferred[None]:
        """End all connections."""
        self._watcher = None
        closed = DeferredList([backend.close() for backend in self._hosts.values()], consumeErrors=True)
        return closed.addCallback(lambda _: None)

    # What the hosts tell (`IWatcher`).

    def changed(self, uuid: str, reason: str) -> None:
        """Pass it on."""
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def rebooted(self, uuid: str) -> None:
        """Pass it on."""
        if self._watcher is not None:
            self._watcher.rebooted(uuid)

    def connected(self, backend: IBackend) -> None:
        """Have a host, for the first time or again."""
        name = self._names[id(backend)]
        self.unreachable.pop(name, None)
        self._placement.reach_changed(name)
        if self._watcher is not None:
            self._watcher.connected(self)

    def lost(self, backend: IBackend, reason: str) -> None:
        """Have a host no more, for a while."""
        name = self._names[id(backend)]
        if reason != self.unreachable.get(name):
            self.log.error("host {name}: {reason}", name=name, reason=reason)
        self.unreachable[name] = reason
        self._placement.reach_changed(name)
        if self._watcher is not None and self.unreachable.keys() == self._hosts.keys():
            self._watcher.lost(self, "; ".join(f"{host}: {why}" for host, why in self.unreachable.items()))
        self._look_at(name, f"{name}: {reason}")

    def _look_at(self, name: str, reason: str) -> None:
        """Have everybody look at the VMs that are, or were, on the host *name*."""
        for uuid, seen in list(self._seen.items()):
            if seen.get(name, Power.OFF) is not Power.OFF:
                self.changed(uuid, reason)

    # Finding.

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return the uuid of *vm*, which is the same on all hosts; define it where it is not known."""
        return Deferred.fromCoroutine(self._look_up(vm))

    async def _look_up(self, vm: VM) -> str:
        hosts, uuid = self._of(vm), vm.uuid
        bare = attrs.evolve(vm, define=None)
        # All at once: one that hangs must not keep the others waiting.
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
        if vm.define is None:
            if uuid is None and errors:
                raise errors[0][1]
            if uuid is None:
                raise NoSuchVM(f"none of its hosts ({', '.join(hosts)}) knows {vm.name}, and no file defines it")
        else:
            uuid = await self._define(vm, uuid, missing, errors)
        self._vms[uuid] = vm
        self._seen.setdefault(uuid, {})
        return uuid

    async def _define(self, vm: VM, uuid: str | None, missing: Named, errors: Named) -> str:
        """Define *vm* where it is missing, and let the other hosts look whether its file has changed."""
        hosts = self._of(vm)
        for name, _ in missing:
            uuid = await hosts[name].look_up(_as_defined(vm) if uuid is None else attrs.evolve(vm, uuid=uuid))
        if uuid is None:
            raise errors[0][1]
        there = hosts.keys() - {name for name, _ in (*missing, *errors)}
        known = attrs.evolve(vm, uuid=uuid)
        await DeferredList([hosts[name].look_up(known) for name in there], consumeErrors=True)
        return uuid

    def state(self, uuid: str) -> Deferred[Power]:
        """Return what the VM is, wherever it is."""
        return Deferred.fromCoroutine(self._state(uuid))

    async def _state(self, uuid: str) -> Power:
        hosts, at = self._of(self._known(uuid)), self._at.get(uuid)
        if uuid in self._moving:
            return Power.RUNNING
        unsure: dict[str, str] = {}
        if at is not None and await self._ask(uuid, at, unsure) is Power.RUNNING and not unsure:
            self._runs_on(uuid, at)
            return Power.RUNNING
        powers = {name: await self._ask(uuid, name, unsure) for name in hosts}
        running = [name for name, power in powers.items() if power is Power.RUNNING]
        if len(running) > 1:
            self.log.error("{name}: runs on {hosts} at once", name=self._vms[uuid].name, hosts=" and ".join(running))
        for power in RANK:
            found = next((name for name in hosts if powers[name] is power), None)
            if found is not None:
                break
        else:
            raise NoSuchVM(f"none of its hosts ({', '.join(hosts)}) knows {self._vms[uuid].name}")
        if power is not Power.RUNNING or found in unsure:
            for name, reason in unsure.items():
                if self._may_run(uuid, name):
                    raise BackendLost(f"it may run on {name}: {reason}")
        if power is not Power.RUNNING and self._now() < self._doubts.get(uuid, -inf):
            raise BackendLost("what another one of us has begun may yet go on")
        self._doubts.pop(uuid, None)
        if power is Power.OFF:
            self._at.pop(uuid, None)
        elif power is Power.RUNNING:
            self._runs_on(uuid, found)
        else:
            self._at[uuid] = found
        return power

    def _runs_on(self, uuid: str, name: str) -> None:
        moved = self._at.get(uuid) not in {None, name}
        self._at[uuid] = name
        self._placement.seen_on(self._vms[uuid], name, moved=moved)

    async def _ask(self, uuid: str, name: str, unsure: dict[str, str]) -> Power | None:
        """
        Return what a VM is on one host; None where it is not known.

        Of a host that cannot be asked, what was last seen is returned, and why that is so put into *unsure*.
        """
        seen = self._seen[uuid]
        if name in self.fenced:
            seen[name] = Power.OFF
        elif name in self.unreachable:
            unsure[name] = self.unreachable[name]
        else:
            try:
                seen[name] = await self._hosts[name].state(uuid)
            except NoSuchVM:
                seen.pop(name, None)
                return None
            except BackendLost as error:
                unsure[name] = str(error)
        return seen.get(name, Power.OFF)

    def _may_run(self, uuid: str, name: str) -> bool:
        """Say whether a VM may run on a host that cannot be reached."""
        if name in self.fenced:
            return False
        seen, where = self._seen[uuid].get(name), self._placement.last_host(self._vms[uuid])
        return where == name or (where is None and seen is not Power.OFF) or seen is Power.RUNNING

    def seen_down(self, uuid: str) -> None:
        """Hear from somebody who can reach them that the VM runs on none of the hosts that we cannot reach."""
        seen = self._seen.get(uuid, {})
        for name in [name for name, power in seen.items() if name in self.unreachable and power is not Power.OFF]:
            seen[name] = Power.OFF
            self.changed(uuid, f"{name}: {self.unreachable[name]}; another one of us has seen it down")

    # Starting.

    def start(self, uuid: str) -> Deferred[Start]:
        """Start the VM on a host of its own."""
        return Deferred.fromCoroutine(self._start(uuid))

    async def _start(self, uuid: str) -> Start:
        power = await self._state(uuid)
        if power is Power.RUNNING:
            return Start.RAN
        where = self._placement.last_host(self._vms[uuid])
        at = self._at.get(uuid) or (where if where in self._hosts and where not in self.fenced else None)
        failed: list[str] = []
        # A call that somebody had begun on this host before us may be under way there, and in our way.
        ago = self._placement.started_ago(self._vms[uuid]) if at is not None and at == where else inf
        doubt = self._now() + STARTS_WITHIN - ago
        for name in [at] if at is not None else await self._choose(uuid, failed):
            self._at[uuid] = name
            if not await self._placement.claim_host(self._vms[uuid], name):
                raise ClusterUnavailable("another one of us has it by now")
            self._seen[uuid].pop(name, None)  # until it is seen again, it may run there
            try:
                how = await self._hosts[name].start(uuid)
            except BackendLost:
                self._doubts[uuid] = self._now() + STARTS_WITHIN  # our own call may go on as well
                raise
            except BackendError as error:
                self._seen[uuid][name] = power
                if self._now() < doubt:
                    self._doubts[uuid] = doubt
                    raise BackendLost(f"{name}: {error}; what another one of us has begun there may go on") from error
                if power is Power.OFF:
                    del self._at[uuid]
                failed.append(f"{name}: {error}")
                self.log.error("{name}: cannot be started on {host}: {error}", name=self._vms[uuid].name, host=name,
                               error=str(error))
                continue
            self._at[uuid], self._seen[uuid][name] = name, Power.RUNNING
            return how
        raise BackendError("; ".join(failed))

    async def _choose(self, uuid: str, failed: list[str]) -> list[str]:
        """Return the hosts that a VM may start on, the best first; put into *failed* why others cannot be."""
        vm = self._vms[uuid]
        names = [name for name in self._of(vm) if name not in self.unreachable and name not in self.fenced]
        names = [name for name in names if not self._placement.is_drained(name)]
        if not names:
            raise NoCapacity(f"none of its hosts ({', '.join(self._of(vm))}) is there, or they are drained")
        answers = await DeferredList([self._hosts[name].memory(uuid) for name in names], consumeErrors=True)
        free: dict[str, int] = {}
        for name, (_, memory) in zip(names, answers, strict=True):
            if isinstance(memory, Failure):
                failed.append(f"{name}: {memory.getErrorMessage()}")
            elif memory is not None and memory.needed > memory.free:
                failed.append(f"{name}: it needs {memory.needed >> 20} MiB of memory, {memory.free >> 20} are free")
            else:
                free[name] = 0 if memory is None else memory.free
        if not free:
            raise NoCapacity("; ".join(failed))

        wanted = self._wanted.pop(uuid, None)

        def rank(name: str) -> tuple[bool, int, bool, int]:
            preferred = vm.prefer.index(name) if name in vm.prefer else len(vm.prefer)
            return name != wanted, preferred, name in vm.avoid, -free[name]

        return sorted(free, key=rank)

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

    def start_next_on(self, uuid: str, host: str | None) -> None:
        """Prefer *host* to all others at the next start of the VM, once; None: prefer none."""
        if host is None:
            self._wanted.pop(uuid, None)
        else:
            self._wanted[uuid] = host

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

    def _there(self, uuid: str, what: str, *arguments: Any) -> Deferred[Any]:
        async def ask() -> Any:
            return await getattr(self._where(uuid)[1], what)(uuid, *arguments)

        return Deferred.fromCoroutine(ask())

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the VM where it is; one that is nowhere is off already."""
        return self._there(uuid, "stop", mode) if uuid in self._at else succeed(None)

    def ready(self, uuid: str) -> Deferred[None]:
        """Fire when the guest is up, as far as its host knows."""
        return self._there(uuid, "ready")

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Return what its host knows of the VM; of one that is off, what any knows."""
        if uuid in self._at:
            return self._there(uuid, "guest")
        return Deferred.fromCoroutine(self._any_guest(uuid))

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

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Return what the hosts that can be reached give reason to say; each sentence names the hosts it is of."""
        return Deferred.fromCoroutine(self._advice(uuid))

    async def _advice(self, uuid: str) -> tuple[str, ...]:
        names = [name for name in self._of(self._known(uuid)) if name not in self.unreachable]
        answers = await DeferredList([self._hosts[name].advice(uuid) for name in names], consumeErrors=True)
        said: dict[str, list[str]] = {}
        for name, (good, sentences) in zip(names, answers, strict=True):
            for sentence in sentences if good else ():
                said.setdefault(sentence, []).append(name)
        return tuple(f"{', '.join(hosts)}: {sentence}" for sentence, hosts in said.items())

    def memory(self, uuid: str) -> Deferred[Memory | None]:  # noqa: ARG002
        """Return None: `start` looks at the memory of each host."""
        return succeed(None)

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:
        """Let the VM go on on another hypervisor."""
        return self._there(uuid, "migrate", to)

    def keep_image(self, uuid: str) -> Deferred[None]:
        """Keep the image of the guest, on its host."""
        return self._there(uuid, "keep_image")

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Forget it, on all hosts."""
        dropped = [backend.drop_image(uuid) for backend in self._of(self._known(uuid)).values()]
        return DeferredList(dropped, consumeErrors=True).addCallback(lambda _: None)

    # Hosts that are lost for good.

    def fence(self, name: str) -> None:
        """Note that nothing runs on the host *name* any more."""
        if name not in self.fenced and name in self._hosts:
            self.fenced.add(name)
            self._look_at(name, f"its host {name} is dead")

    def unfence(self, name: str) -> None:
        """Note that the host *name* is alive again: what it says holds."""
        self.fenced.discard(name)


def _as_defined(vm: VM) -> VM:
    """Return *vm* with the uuid that it is defined with where nothing else says one."""
    has_own = vm.define is None or "<uuid>" in vm.define.read_text(encoding="utf-8", errors="replace")
    return vm if vm.uuid is not None or has_own else attrs.evolve(vm, uuid=str(uuids.uuid5(NAMESPACE, vm.name)))
