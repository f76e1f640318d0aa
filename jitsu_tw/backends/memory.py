"""VMs that exist in this process only: for tests, benches and trying out. They have addresses but no network."""

from __future__ import annotations

import enum
import uuid as uuids
from typing import Any, Final, cast

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from jitsu_tw import parsers
from jitsu_tw.backends.definition import NOT_MADE, RUNS
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start
from jitsu_tw.keys import setting
from jitsu_tw.settings import VM, Boot, Mode

#: A VM that vanishes does so this many seconds after its start.
VANISHES_AFTER: Final = 0.5

#: Seconds that a restored VM takes, and one whose image is being kept.
RESTORES_IN: Final = 0.1

#: What a stop in each mode leaves behind ("suspend" is the original's word for a pause).
_LEAVES: Final = {
    Mode.DESTROY: Power.OFF,
    Mode.SHUTDOWN: Power.OFF,
    Mode.SUSPEND: Power.PAUSED,
    Mode.PAUSE: Power.PAUSED,
    Mode.SAVE: Power.SAVED,
}


class Fault(enum.Enum):
    """What a VM can be told to do wrong."""

    START = "start"  # the start call fails
    STOP = "stop"  # the stop call fails
    VANISH = "vanish"  # the VM is gone a moment after it was ready
    NEVER_READY = "never_ready"  # it starts, and is never ready
    RESUME = "resume"  # what was paused or saved cannot go on, and is booted
    HANG = "hang"  # the start call never ends


@attrs.frozen(kw_only=True)
class MemorySettings:
    """The keys that only VMs of this backend have."""

    boot_time: float = setting(0.0, "how long its start call takes", parsers.seconds, example="0.5")
    faults: frozenset[Fault] = setting(
        frozenset(), "what goes wrong with the VM, for tests", parsers.one_of(Fault), converter=frozenset, shown="none"
    )


#: Those of a VM whose configuration says nothing.
DEFAULTS: Final = MemorySettings()


@attrs.define
class MemoryGuest:
    """
    A VM of this process.

    Attributes:
        vm: its settings.
        power: its power state.
        starts: how often it was started, resumed or restored.
        boots: how often it was booted.
        sent: how many packets it has transmitted; None if they are not counted.
        cpu: how many seconds its virtual CPUs have run; None if that is not counted.
        obstacles: why it cannot be stopped in a mode.
        advice: for the operator.
        memory: what its start takes and its host has free; None where that is not known.
        image: an image of it is kept.
        stale: why it is no use any more, if it is prepared; empty if it is.
        busy: a call is changing it.
    """

    vm: VM
    power: Power = Power.OFF
    starts: int = 0
    boots: int = 0
    sent: int | None = 0
    cpu: float | None = 0.0
    obstacles: dict[Mode, str] = attrs.field(factory=dict)
    advice: tuple[str, ...] = ()
    memory: Memory | None = None
    image: bool = False
    stale: str = ""
    busy: bool = False

    @property
    def settings(self) -> MemorySettings:
        """What the configuration says of it."""
        return self.vm.backend_settings or DEFAULTS


class Guests:
    """
    The VMs of a hypervisor without a machine.

    Attributes:
        guests: those that were looked up, by uuid.
        seeds: the templates whose VMs start from one image.
    """

    def __init__(self) -> None:
        """Begin without VMs."""
        self.guests: dict[str, MemoryGuest] = {}
        self.seeds: set[str | None] = set()
        self._watcher: IWatcher | None = None

    def connect(self, watcher: IWatcher) -> None:
        """Tell *watcher* of the connection at once."""
        self._watcher = watcher
        watcher.connected(cast("IBackend", self))

    def close(self) -> Deferred[None]:
        """Do nothing."""
        self._watcher = None
        return succeed(None)

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return a uuid that is always the same for the same name."""
        uuid = self._uuid_of(vm)
        if vm.removed and uuid not in self.guests:
            return fail(NoSuchVM(f"no VM {uuid}"))
        self.guests.setdefault(uuid, MemoryGuest(vm)).vm = vm
        return succeed(uuid)

    @staticmethod
    def _uuid_of(vm: VM) -> str:
        return vm.uuid or str(uuids.uuid5(uuids.NAMESPACE_DNS, f"{vm.name}.memory.jitsu"))

    def _guest(self, uuid: str) -> MemoryGuest:
        if uuid not in self.guests:
            raise NoSuchVM(f"no VM {uuid}")
        return self.guests[uuid]

    def remove(self, vm: VM) -> Deferred[None]:
        """Forget the VM, which has no disk."""
        return maybeDeferred(self._remove, vm)

    def _remove(self, vm: VM) -> None:
        guest = self.guests.get(self._uuid_of(vm))
        if vm.template is None:
            raise BackendError(NOT_MADE)
        if guest is not None and guest.power is Power.RUNNING:
            raise BackendError(RUNS)
        self.guests.pop(self._uuid_of(vm), None)

    def happen(self, uuid: str, power: Power, reason: str) -> None:
        """Change a VM, as a call does or another program would, and tell the watcher."""
        self.guests[uuid].power = power
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)


@implementer(IBackend)
class MemoryBackend(Guests):
    """A hypervisor without a machine."""

    reachable = False
    has_uuids = False

    def __init__(self, connect: str = "", reactor: Any = None) -> None:  # noqa: ARG002
        """Take a hypervisor's URI, as all backends do; it has no meaning here."""
        super().__init__()
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._reactor = reactor

    def examine(self, vm: VM) -> tuple[str, ...]:  # noqa: ARG002
        """Return no advice: any VM can exist here."""
        return ()

    def state(self, uuid: str) -> Deferred[Power]:
        """Return the VM's power state."""
        return maybeDeferred(lambda: self._guest(uuid).power)

    @deferred
    async def start(self, uuid: str) -> Start:
        """Run the VM after its boot time, or what a restored one takes; a paused one at once."""
        guest = self._guest(uuid)
        if guest.power is Power.RUNNING:
            return Start.RAN
        if guest.busy:
            raise BackendError("another call is changing it")
        if Fault.START in guest.settings.faults:
            raise BackendError("the start fails, as it was told to")
        if Fault.HANG in guest.settings.faults:
            await Deferred()
        power = Power.OFF if guest.power is Power.PREPARED and guest.stale else guest.power
        off = Start.CLONED if guest.vm.template in self.seeds else Start.BOOTED
        how = {Power.PAUSED: Start.RESUMED, Power.SAVED: Start.RESTORED, Power.PREPARED: Start.PREPARED}.get(
            power, Start.RESTORED if guest.image else off
        )
        if Fault.RESUME in guest.settings.faults:
            how, guest.image = Start.BOOTED, False
        boot_time = guest.settings.boot_time
        restores = min(RESTORES_IN, boot_time)
        takes = {Start.BOOTED: boot_time, Start.RESTORED: restores, Start.CLONED: restores}.get(how, 0.0)
        if takes:
            guest.busy = True
            await deferLater(self._reactor, takes)
            guest.busy = False
        guest.starts += 1
        guest.boots += how is Start.BOOTED
        guest.stale = ""
        if how not in {Start.RESUMED, Start.PREPARED}:
            guest.sent = None if guest.sent is None else 0
            guest.cpu = None if guest.cpu is None else 0.0
        self.happen(uuid, Power.RUNNING, how.value)
        if Fault.VANISH in guest.settings.faults:
            self._reactor.callLater(VANISHES_AFTER, self.happen, uuid, Power.OFF, "it vanished, as it was told to")
        return how

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the VM at once."""
        return maybeDeferred(self._stop, uuid, mode)

    def _stop(self, uuid: str, mode: Mode) -> None:
        guest = self._guest(uuid)
        if Fault.STOP in guest.settings.faults or mode in guest.obstacles:
            raise BackendError(guest.obstacles.get(mode, "the stop fails, as it was told to"))
        if guest.power is Power.RUNNING or (
            guest.power in {Power.PAUSED, Power.PREPARED} and mode is Mode.DESTROY
        ):
            self.happen(uuid, _LEAVES[mode], f"stopped ({mode.value})")

    def ready(self, uuid: str) -> Deferred[None]:
        """Fire at once; never for a VM that is never ready."""
        return Deferred() if Fault.NEVER_READY in self.guests[uuid].settings.faults else succeed(None)

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Return one without MACs: there is no network."""
        return self.state(uuid).addCallback(lambda _: Guest())

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Return the number of packets that the test has set."""
        return maybeDeferred(lambda: self._guest(uuid).sent)

    def cpu_time(self, uuid: str) -> Deferred[float | None]:
        """Return the seconds of its virtual CPUs that the test has set."""
        return maybeDeferred(lambda: self._guest(uuid).cpu)

    def obstacle(self, uuid: str, mode: Mode) -> Deferred[str | None]:
        """Return the obstacle to *mode* that the test has set."""
        return maybeDeferred(lambda: self._guest(uuid).obstacles.get(mode))

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Return the advice that the test has set."""
        return maybeDeferred(lambda: self._guest(uuid).advice)

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Return the memory that the test has set."""
        return maybeDeferred(lambda: self._guest(uuid).memory)

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:  # noqa: ARG002
        """Fail: such a VM is stopped and started anew."""
        return fail(BackendError("a VM of memory does not move while it runs"))

    @deferred
    async def keep_image(self, uuid: str, *, shared: bool = False) -> None:
        """Keep an image of the VM, or of its template, which takes as long as to restore it."""
        assert self._guest(uuid).vm.boot_from is Boot.SNAPSHOT
        await deferLater(self._reactor, RESTORES_IN)
        if shared:
            self.seeds.add(self._guest(uuid).vm.template)
        else:
            self._guest(uuid).image = True

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Forget the image, and that of its template."""
        guest = self._guest(uuid)
        guest.image = False
        self.seeds.discard(guest.vm.template)
        return succeed(None)

    @deferred
    async def prepare(self, uuid: str) -> None:
        """Pause the VM."""
        if self._guest(uuid).power is not Power.RUNNING:
            raise BackendError("it does not run")
        self.happen(uuid, Power.PREPARED, "prepared")

    def stale(self, uuid: str) -> Deferred[str]:
        """Return what the test has set."""
        return maybeDeferred(lambda: self._guest(uuid).stale)
