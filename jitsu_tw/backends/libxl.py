"""
Xen by its own tools: `xl` to change VMs, Xenstore to learn of their changes.

A VM is a domain with a uuid of Jitsu's; what it is made of comes from the configuration, each time.
"""

from __future__ import annotations

import contextlib
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.backends import definition, layer, xen, xlvm
from jitsu_tw.backends.xlhost import Host
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, IXenBackend, Memory, Power, Start
from jitsu_tw.settings import VM, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jitsu_tw.backends.xl import Domain

#: Seconds that a domain may yet run until its pause is complete.
CPU_SLACK: Final = 0.01

P = ParamSpec("P")
T = TypeVar("T")


def _by_host(
    method: Callable[Concatenate[LibxlBackend, P], Coroutine[Deferred[Any], Any, T]],
) -> Callable[Concatenate[LibxlBackend, P], Deferred[T]]:
    """Make a method return a Deferred; what it fails by may be the end of the connection, see `Host.call`."""

    @wraps(method)
    def call(self: LibxlBackend, /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return self._host.call(method(self, *args, **kwargs))

    return call


@implementer(IXenBackend)
class LibxlBackend:
    """
    The Xen of this host.

    Attributes:
        interfaces: where the kernel counts what network interfaces carry.
    """

    log = Logger()
    reachable = True
    has_uuids = False
    interfaces = Path("/sys/class/net")

    def __init__(self, connect: str = "", reactor: Any = None) -> None:  # noqa: ARG002
        """Take a hypervisor's URI, as all backends do; xl knows only the one that it runs on."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._reactor = reactor
        self._host = Host(reactor)
        self.xenstore = self._host.xenstore
        self._booted: dict[str, str] = {}

    def __str__(self) -> str:
        """Return its name for messages."""
        return "Xen (xl)"

    # Connecting.

    def examine(self, vm: VM) -> tuple[str, ...]:
        """Check that the VM's files are there."""
        try:
            xlvm.check_files(vm)
            if vm.layer is not None:
                layer.check_base(vm.layer)
        except (OSError, ValueError, BackendError) as error:
            raise definition.wrong(vm, error) from error
        return ()

    def connect(self, watcher: IWatcher) -> None:
        """Begin to listen to Xenstore, and to ask xl until it answers."""
        self._host.connect(self, watcher)

    def close(self) -> Deferred[None]:
        """End the connection to Xenstore. An xl that does something goes on to its end."""
        return self._host.close()

    # Observing.

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return the uuid: the configuration's, or one made of the name."""
        return self._host.call(self._host.look_up(vm))

    @_by_host
    async def state(self, uuid: str) -> Power:
        """Return what xl says; a VM that is off and has an image is saved."""
        domain = await self._host.alive(uuid)
        if domain is None:
            return Power.SAVED if self._saved(uuid).exists() else Power.OFF
        if not domain.paused:
            return Power.RUNNING
        return Power.PAUSED if await self._mark(domain) is None else Power.PREPARED

    def ready(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fire at once: Xen does not know what a guest is doing."""
        return succeed(None)

    @_by_host
    async def guest(self, uuid: str) -> Guest:
        """Return the domain's number, and its MACs from Xenstore; those that it will have, if it is off."""
        domain, vm = await self._host.alive(uuid), self._host.vms[uuid]
        made_of = xlvm.guest_of(vm)
        given = xen.macs(made_of, uuid) if made_of is not None else ()
        if domain is None:
            if not given:
                raise BackendError(f"{vm.name} does not run")
            return Guest(given)
        devices = f"{await self._host.xenstore.domain_path(domain.domid)}/device/vif"
        numbers = sorted((name for name in await self._host.xenstore.list(devices) if name.isdigit()), key=int)
        found = [await self._host.xenstore.read(f"{devices}/{number}/mac") for number in numbers]
        # While xl makes the domain, they are not in Xenstore yet.
        return Guest(tuple(mac.lower() for mac in found if mac) or given, domain.domid)

    @_by_host
    async def traffic(self, uuid: str) -> int | None:
        """Return what dom0 has received of the guest; None if an interface of it is another domain's, or a device."""
        domain = await self._host.running(uuid)
        devices = f"{await self._host.xenstore.domain_path(domain.domid)}/device"
        numbers = [name for name in await self._host.xenstore.list(f"{devices}/vif") if name.isdigit()]
        if not numbers or await self._host.xenstore.list(f"{devices}/pci"):
            return None
        try:
            return sum(
                int((self.interfaces / f"vif{domain.domid}.{number}" / "statistics" / "rx_packets").read_text())
                for number in numbers
            )
        except OSError:  # it went down at this moment, or its network is not dom0's business
            return None

    @_by_host
    async def cpu_time(self, uuid: str) -> float | None:
        """Return the time of the domain's virtual CPUs, which is what Xen counts."""
        return (await self._host.running(uuid)).cpu_time

    def obstacle(self, uuid: str, mode: Mode) -> Deferred[str | None]:  # noqa: ARG002
        """Return None: Xen's tools tell only by failing what they cannot save."""
        return succeed(None)

    @_by_host
    async def advice(self, uuid: str) -> tuple[str, ...]:
        """Return what keeps the VM from being started: a file that is missing, a configuration that xl refuses."""
        vm = self._host.vms[uuid]
        try:
            xlvm.check_files(vm)
            if vm.layer is not None:
                await self._host.on_disk(layer.check, vm.layer)
            if vm.define is not None:
                with xlvm.configured(vm) as file:
                    await self._host.xl.run("create", "-n", file)
        except BackendLost:
            raise
        except (BackendError, OSError, ValueError) as error:
            return (f"it cannot be started: {error}",)
        return ()

    @_by_host
    async def memory(self, uuid: str) -> Memory | None:
        """Return what the VM would take, and what Xen has; None where dom0 has it, see `parse_free`."""
        off = await self._host.alive(uuid) is None
        return await self._memory(xlvm.memory_of(self._host.vms[uuid]) if off else 0)

    async def _memory(self, needed: int | None) -> Memory | None:
        free = await self._host.xl.free()
        return None if needed is None or free is None else Memory(needed, free)

    # Changing.

    @_by_host
    async def start(self, uuid: str) -> Start:
        """Create the domain, unpause it, or restore it."""
        did = await self._start(uuid)
        if did is not Start.RAN:
            self._host.started(uuid)
        return did

    async def _start(self, uuid: str) -> Start:
        domain = await self._host.built(uuid)
        if domain is not None and domain.down:
            await self._host.gone(uuid, domain)
            domain = None
        if domain is not None:
            mark = await self._mark(domain)
            why = self._why_stale(uuid, domain, mark)
            if not why:
                return await self._resume(uuid, domain, mark)
            self.log.info("{name}: what was prepared is thrown away: {why}", name=domain.name, why=why)
            await self._host.xl.run("destroy", str(domain.domid))
        vm = self._host.vms[uuid]
        if vm.layer is not None:
            await self._host.on_disk(layer.check, vm.layer)
        saved = self._saved(uuid)
        if saved.exists():
            await self._check_memory(uuid)
            # What has been restored must never be restored again, not even if we end at this moment.
            image = saved.rename(saved.with_suffix(".restoring"))
            if await self._restored(uuid, image):
                image.unlink()
                return Start.RESTORED
        if vm.prepare:
            with contextlib.suppress(OSError, BackendError):  # then xl tells what is wrong
                self._booted[uuid] = xlvm.sum_of(vm, disks=False)
        kept = self._image(uuid)
        for old in self._folder(uuid).glob(f"{uuid}-*.ready"):
            if old != kept:
                old.unlink()
        if kept is not None and kept.exists():
            await self._check_memory(uuid)
            if await self._restored(uuid, kept):
                return Start.RESTORED
        await self._boot(uuid)
        return Start.BOOTED

    async def _resume(self, uuid: str, domain: Domain, mark: str | None) -> Start:
        """Unpause a domain with that mark, or return that it runs."""
        if not domain.paused:
            return Start.RAN
        try:
            await self._host.xl.run("unpause", str(domain.domid))
        except BackendError:
            # Another program may have unpaused it meanwhile.
            again = await self._host.alive(uuid)
            if again is None or again.paused:
                raise
        if mark is None:
            return Start.RESUMED
        await self._host.xenstore.remove(await self._place(domain))
        return Start.PREPARED

    async def _check_memory(self, uuid: str) -> None:
        """
        Check that there is memory to restore a VM that is off: a lack of memory is no reason to throw an image away.

        Raises:
            BackendError: there is not enough.
        """
        memory = await self._memory(xlvm.memory_of(self._host.vms[uuid]))
        if memory is not None and memory.shortage:
            raise BackendError(f"it cannot be restored: {memory.shortage}")

    async def _restored(self, uuid: str, image: Path) -> bool:
        """Restore a VM and return whether that worked; an image that does not work is thrown away."""
        try:
            await self._host.xl.run("restore", str(image))
        except BackendLost:
            raise
        except BackendError as error:
            name = self._host.vms[uuid].name
            self.log.error("{name}: its image is thrown away: {error}", name=name, error=str(error))
            _discard(image)
            await self._clear(uuid)
            return False
        return True

    async def _boot(self, uuid: str) -> None:
        vm = self._host.vms[uuid]
        cfg = xlvm.rumprun(vm)
        with xlvm.configured(vm) as file:
            try:
                await self._host.xl.run("create", *(["-p"] if cfg else []), file)
                if cfg:
                    await self._configure(uuid, cfg)
            except BackendError:
                domain = await self._host.alive(uuid)
                # Another program may have started it meanwhile.
                if domain is None or domain.paused:
                    await self._clear(uuid)
                    raise

    async def _configure(self, uuid: str, cfg: str) -> None:
        """Write a new domain's rumprun configuration where the guest reads it, and unpause the domain."""
        domain = await self._host.running(uuid)
        await self._host.xenstore.write(f"{await self._host.xenstore.domain_path(domain.domid)}/rumprun/cfg", cfg)
        await self._host.xl.run("unpause", str(domain.domid))

    async def _clear(self, uuid: str) -> None:
        """Destroy the domain that a failed xl of Jitsu's has left; one with another uuid is another program's."""
        domain = await self._host.find(uuid)
        if domain is not None and domain.uuid == uuid:
            with contextlib.suppress(BackendError):
                await self._host.xl.run("destroy", str(domain.domid))

    @_by_host
    async def stop(self, uuid: str, mode: Mode) -> None:
        """Stop the domain."""
        domain = await self._host.find(uuid)
        if domain is None or (domain.down and mode is not Mode.DESTROY):
            return
        number = str(domain.domid)
        try:
            if mode is Mode.DESTROY:
                await self._host.xl.run("destroy", number)
            elif mode in {Mode.PAUSE, Mode.SUSPEND}:
                if not domain.paused:
                    await self._host.xl.run("pause", number)
            else:
                # A guest that is paused can do neither by itself.
                if domain.paused:
                    await self._host.xl.run("unpause", number)
                if mode is Mode.SHUTDOWN:
                    await self._host.xl.run("shutdown", "-F", number)
                else:
                    await self._save(number, self._saved(uuid))
        except BackendError:
            # It may have gone down by itself meanwhile, which is what was wanted.
            if await self._host.alive(uuid) is not None:
                raise

    # Images.

    def _folder(self, uuid: str) -> Path:
        return self._host.vms[uuid].images

    def _saved(self, uuid: str) -> Path:
        return self._folder(uuid) / f"{uuid}.saved"

    async def _save(self, number: str, image: Path, *options: str) -> None:
        """Write an image, which is there as a whole or not at all."""
        image.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = image.with_suffix(".part")
        try:
            await self._host.xl.run("save", *options, number, str(part))
        except BackendError:
            _discard(part)
            raise
        part.rename(image)

    def _image(self, uuid: str) -> Path | None:
        return xlvm.image_of(self._host.vms[uuid])

    @_by_host
    async def keep_image(self, uuid: str, *, shared: bool = False) -> None:
        """Save the guest's memory and unpause it. A disk whose changes cannot be seen, a block device, rules it out."""
        if shared:
            return
        if self._image(uuid) is None:
            message = "its image cannot be kept: its disks are no files, or only its xl configuration knows them"
            raise BackendError(message)
        domain = await self._host.running(uuid)
        written = self._folder(uuid) / f"{uuid}.keeping"
        try:
            await self._save(str(domain.domid), written, "-p")
        except BackendError:
            await self._go_on(uuid)
            raise
        # It is paused until its disks have been looked at: the image belongs to their present state.
        image = self._image(uuid)
        if image is not None:
            written.rename(image)
        await self._go_on(uuid)

    async def _go_on(self, uuid: str) -> None:
        """Unpause a guest that is paused."""
        domain = await self._host.find(uuid)
        if domain is not None and domain.paused:
            await self._host.xl.run("unpause", str(domain.domid))

    # Prepared guests: the mark is in Xenstore, where it goes with the domain.

    async def _mark(self, domain: Domain) -> str | None:
        """Return the mark of a domain, if it is paused and was prepared."""
        return await self._host.xenstore.read(await self._place(domain)) if domain.paused else None

    async def _place(self, domain: Domain) -> str:
        """Return the path of a domain's mark."""
        return f"{await self._host.xenstore.domain_path(domain.domid)}/jitsu-prepared"

    @_by_host
    async def prepare(self, uuid: str) -> None:
        """Pause the guest, and note in Xenstore what it was made of and how long it has run."""
        vm, domain = self._host.vms[uuid], await self._host.running(uuid)
        if self._booted.pop(uuid, None) != xlvm.sum_of(vm, disks=False):
            raise BackendError("its configuration or its kernel has changed since it booted")
        await self._host.xl.run("pause", str(domain.domid))
        domain = await self._host.running(uuid)
        await self._host.xenstore.write(await self._place(domain), f"{xlvm.sum_of(vm)} {domain.cpu_time}")

    @_by_host
    async def stale(self, uuid: str) -> str:
        """Return why the domain is no use any more, if it is prepared."""
        domain = await self._host.running(uuid)
        return self._why_stale(uuid, domain, await self._mark(domain))

    def _why_stale(self, uuid: str, domain: Domain, mark: str | None) -> str:
        if mark is None:
            return ""
        made_of, _, cpu_time = mark.partition(" ")
        try:
            if made_of != xlvm.sum_of(self._host.vms[uuid]):
                return "its configuration, its kernel or a disk has changed"
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return "another program has let its guest run" if domain.cpu_time > float(cpu_time) + CPU_SLACK else ""

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:  # noqa: ARG002
        """Fail: such a VM is stopped and started anew."""
        return fail(BackendError(f"{self} does not move VMs that run"))

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Remove the image."""
        for image in self._folder(uuid).glob(f"{uuid}-*.ready"):
            image.unlink(missing_ok=True)
        return succeed(None)

    @_by_host
    async def remove(self, vm: VM) -> None:
        """Remove the images and the disk, and the domain if it is paused; Xen has nothing of a VM that is off."""
        if vm.template is None:
            raise BackendError(definition.NOT_MADE)
        uuid = xlvm.uuid_of(vm)
        self._host.vms[uuid] = vm
        domain = await self._host.alive(uuid)
        if domain is not None and not domain.paused:
            raise BackendError(definition.RUNS)
        if domain is not None:
            await self._host.xl.run("destroy", str(domain.domid))
        for image in vm.images.glob(f"{uuid}[.-]*"):
            _discard(image)
        if vm.layer is not None:
            await self._host.on_disk(layer.remove, vm.layer)
        self._host.vms.pop(uuid, None)
        self._booted.pop(uuid, None)


def _discard(image: Path) -> None:
    """Throw an image away, as far as it is there."""
    image.unlink(missing_ok=True)
