"""
VMs that exist in this process only: for tests, benches and trying out. They have addresses but no network.

Each has a boot time and faults to order: ``start`` (the start call fails), ``stop`` (so does the stop call), ``vanish``
(the VM is gone a moment after it was ready), ``never_ready`` (it starts and is never heard of).
"""

from __future__ import annotations

import uuid as uuids
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import IBackend, IWatcher, Power
from jitsu_tw.settings import VM, Fault, Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A VM that vanishes does so this many seconds after its start.
VANISHES_AFTER: Final = 0.5

#: What a stop in each mode leaves behind ("suspend" is the original's word for a pause).
_LEAVES: Final = {
    Mode.DESTROY: Power.OFF,
    Mode.SHUTDOWN: Power.OFF,
    Mode.SUSPEND: Power.PAUSED,
    Mode.PAUSE: Power.PAUSED,
    Mode.SAVE: Power.SAVED,
}


@attrs.define
class _Guest:
    vm: VM
    power: Power = Power.OFF
    starts: int = 0


@implementer(IBackend)
class MemoryBackend:
    """
    A hypervisor without a machine.

    Attributes:
        guests: its VMs, by uuid: those that it was ever asked for.
    """

    reachable = False

    def __init__(self, connect: str = "", reactor: Any = None) -> None:  # noqa: ARG002
        """Take a hypervisor's URI, as all backends do; it has no meaning here."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._reactor = reactor
        self._watcher: IWatcher | None = None
        self.guests: dict[str, _Guest] = {}

    def check(self, vms: Iterable[VM]) -> None:
        """Do nothing: any VM can exist here."""

    def connect(self, watcher: IWatcher) -> None:
        """Be connected at once."""
        self._watcher = watcher
        watcher.connected(self)

    def close(self) -> Deferred[None]:
        """Do nothing."""
        self._watcher = None
        return succeed(None)

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return a uuid that is always the same for the same name."""
        uuid = vm.uuid or str(uuids.uuid5(uuids.NAMESPACE_DNS, f"{vm.name}.memory.jitsu"))
        self.guests.setdefault(uuid, _Guest(vm)).vm = vm
        return succeed(uuid)

    def state(self, uuid: str) -> Deferred[Power]:
        """Return what the VM is."""
        return succeed(self.guests[uuid].power) if uuid in self.guests else fail(NoSuchVM(f"no VM {uuid}"))

    def start(self, uuid: str) -> Deferred[None]:
        """Run the VM after its boot time; a paused one at once."""
        guest = self.guests[uuid]
        if guest.power is Power.RUNNING:
            return succeed(None)
        if Fault.START in guest.vm.faults:
            return fail(BackendError("the start fails, as it was told to"))
        wait = 0.0 if guest.power is Power.PAUSED else guest.vm.boot_time
        started: Deferred[None] = deferLater(self._reactor, wait) if wait else succeed(None)
        return started.addCallback(lambda _: self._run(uuid))

    def _run(self, uuid: str) -> None:
        guest = self.guests[uuid]
        guest.starts += 1
        self._set(uuid, Power.RUNNING, "started")
        if Fault.VANISH in guest.vm.faults:
            self._reactor.callLater(VANISHES_AFTER, self._set, uuid, Power.OFF, "it vanished, as it was told to")

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the VM at once."""
        guest = self.guests[uuid]
        if Fault.STOP in guest.vm.faults:
            return fail(BackendError("the stop fails, as it was told to"))
        if guest.power is Power.RUNNING:
            self._set(uuid, _LEAVES[mode], f"stopped ({mode.value})")
        return succeed(None)

    def ready(self, uuid: str) -> Deferred[None]:
        """Fire at once; never for a VM that is never ready."""
        return Deferred() if Fault.NEVER_READY in self.guests[uuid].vm.faults else succeed(None)

    def macs(self, uuid: str) -> Deferred[tuple[str, ...]]:  # noqa: ARG002
        """Return none: there is no network."""
        return succeed(())

    def _set(self, uuid: str, power: Power, reason: str) -> None:
        """Change a VM and tell the watcher. Also for tests: that is how somebody else changes it."""
        self.guests[uuid].power = power
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def happen(self, uuid: str, power: Power, reason: str) -> None:
        """Change a VM as somebody else would, by hand."""
        self._set(uuid, power, reason)
