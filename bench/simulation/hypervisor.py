"""
A hypervisor for soaks: the memory backend's, with guests that send and fall silent, and people who change them.

It outlives Jitsu. What one Jitsu knows of it comes through a `bench.simulation.connection.Connection`.
"""

from __future__ import annotations

import uuid as uuids
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred

from jitsu_tw.backends.memory import Fault, MemoryBackend, MemoryGuest
from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import Power, Start
from jitsu_tw.rules.lifecycle import WANTED
from jitsu_tw.settings import VM, Mode

if TYPE_CHECKING:
    from random import Random

    from twisted.internet.task import Clock
    from twisted.python.failure import Failure

    from bench.simulation.connection import Connection
    from bench.simulation.ledger import Facts, Ledger

#: How the hypervisor's words say that a change was Jitsu's.
OURS: Final = frozenset(start.value for start in Start) | {f"stopped ({mode.value})" for mode in Mode} | {"prepared"}


class Hypervisor(MemoryBackend):
    """
    The VMs of one URI. Ports of its guests can be tried.

    Attributes:
        name: its URI.
        up: it can be reached.
        uuids: of the VMs that it knows now, by name.
        told: who is told of changes, until it ends.
    """

    reachable = True

    def __init__(self, name: str, clock: Clock, ledger: Ledger, random: Random) -> None:
        """Begin with no VM."""
        super().__init__(name, clock)
        self.name, self._clock, self._ledger, self._random = name, clock, ledger, random
        self.up = True
        self._counted: dict[str, float] = {}
        self._by_host = {str(vm.ip[0]): facts for facts in ledger.facts.values() for vm in (facts.vm,)}
        self.uuids: dict[str, str] = {}
        self.told: Connection | None = None

    def facts(self, uuid: str) -> Facts:
        """Return what the ledger has of a VM."""
        return self._ledger.facts[self.guests[uuid].vm.name]

    # What is different from the memory backend.

    def define(self, vm: VM, *, anew: bool) -> None:
        """Know *vm* from now on, by the uuid that it had or, *anew*, by another."""
        uuid = str(uuids.UUID(int=self._random.getrandbits(128)) if anew else uuids.uuid5(uuids.NAMESPACE_DNS, vm.name))
        self.uuids[vm.name] = uuid
        facts = self._ledger.facts[vm.name]
        facts.counts = self._random.random() < 0.8
        self.guests[uuid] = MemoryGuest(vm, sent=0 if facts.counts else None)
        self._ledger.changed(facts, Power.OFF, "defined", ours=False, on_its_way=False)
        self._tell(uuid, "defined")

    def undefine(self, name: str) -> None:
        """Forget a VM that is off."""
        uuid = self.uuids.pop(name)
        facts = self.facts(uuid)
        del self.guests[uuid]
        self._ledger.changed(facts, None, "undefined", ours=False, on_its_way=False)
        self._tell(uuid, "undefined")

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return the uuid of a VM that is defined."""
        return maybeDeferred(self._look_up, vm)

    def _look_up(self, vm: VM) -> str:
        if vm.name not in self.uuids:
            message = f"no VM is called {vm.name}"
            raise NoSuchVM(message)
        return self.uuids[vm.name]

    def order(self, name: str, fault: Fault) -> bool:
        """Order a fault, or end it; say whether it is on now."""
        guest = self.guests[self.uuids[name]]
        settings = attrs.evolve(guest.settings, faults=guest.settings.faults ^ {fault})
        guest.vm = attrs.evolve(guest.vm, backend_settings=settings)
        return fault in settings.faults

    def happen(self, uuid: str, power: Power, reason: str) -> None:
        """Change a VM, if it is there still."""
        if uuid not in self.guests:
            return
        guest, facts = self.guests[uuid], self.facts(uuid)
        self._count(guest, facts)
        ours = reason in OURS
        if ours and power is Power.RUNNING:
            facts.how = Start(reason)
        machine = self.told.machine(facts.vm.name) if self.told is not None else None
        guest.power = power
        self._ledger.changed(
            facts, power, reason, ours=ours, on_its_way=machine is not None and machine.state in WANTED
        )
        self._tell(uuid, reason)

    def _tell(self, uuid: str, reason: str) -> None:
        if self.told is not None:
            self.told.event(uuid, reason)

    def _stop(self, uuid: str, mode: Mode) -> None:
        """Stop a VM; with a shutdown, the guest takes its time, perhaps too long."""
        guest = self._guest(uuid)
        if mode is not Mode.SHUTDOWN or guest.power is not Power.RUNNING or Fault.STOP in guest.settings.faults:
            super()._stop(uuid, mode)
            return
        starts, patience = guest.starts, guest.vm.stop_timeout
        self._clock.callLater(self._random.uniform(0, 1.2) * patience, self._shut_down, uuid, starts)

    def _shut_down(self, uuid: str, starts: int) -> None:
        guest = self.guests.get(uuid)
        if guest is not None and guest.power is Power.RUNNING and guest.starts == starts:
            self.happen(uuid, Power.OFF, f"stopped ({Mode.SHUTDOWN.value})")

    def ready(self, uuid: str) -> Deferred[None]:
        """Fire at once; never for a VM that is never ready; fail for one that is not there."""
        return super().ready(uuid) if uuid in self.guests else fail(NoSuchVM(f"no VM {uuid}"))

    def keep_image(self, uuid: str, *, shared: bool = False) -> Deferred[None]:
        """Keep an image, if the VM is there at the end."""
        return super().keep_image(uuid, shared=shared).addErrback(self._no_image)

    @staticmethod
    def _no_image(failure: Failure) -> None:
        raise BackendError(failure.getErrorMessage())

    # What guests send.

    def send(self, name: str, rate: float) -> None:
        """Let the guest of a VM send so many packets a second from now on, while it runs."""
        facts = self._ledger.facts[name]
        self._count(self.guests[self.uuids[name]], facts)
        facts.rate, facts.rate_since = rate, self._clock.seconds()

    def _count(self, guest: MemoryGuest, facts: Facts) -> None:
        """Count what a guest has sent since this was last called."""
        now, then = self._clock.seconds(), self._counted.get(facts.vm.name, 0.0)
        self._counted[facts.vm.name] = now
        if guest.power is Power.RUNNING and guest.sent is not None:
            guest.sent += round((now - then) * facts.rate)

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Return what the guest has sent."""
        if uuid in self.guests:
            self._count(self.guests[uuid], self.facts(uuid))
        return super().traffic(uuid)

    def listens(self, host: str) -> bool | None:
        """Say whether a port of the VM at *host* is open; None if nobody is there."""
        facts = self._by_host.get(host)
        return None if facts is None or facts.power is not Power.RUNNING else facts.deaf > self._clock.seconds()
