"""
Hypervisors behind libvirt: QEMU, Xen, VirtualBox, libvirt's own test driver; here or far away.

Every call into the library blocks, so each is made in a thread of `threaded`; what it does is in `backends.domain`.
Events come on a connection of their own, which makes no calls and tells when the hypervisor is lost. libvirt's event
loop, which calls the handlers, has a thread of its own, one in a process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import libvirt
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.backends import clone, definition, domain, domain_xml, image, layer
from jitsu_tw.backends.threaded import CLOSES_WITHIN, ThreadedBackend, Workers, in_thread
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.ijitsu import SHUT_DOWN, SHUTS_DOWN, Guest, IBackend, Memory, Power, Start
from jitsu_tw.rules.life import SLOW_START
from jitsu_tw.settings import VM, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

#: How many calls to one hypervisor may be under way at once; and, in other threads, how many that write a guest's
#: memory to a disk, each for minutes.
CALLS: Final = 16
SAVES: Final = 8

#: Seconds after which a call is given up: any, one that starts a VM, one that writes its memory to a disk.
ANSWERS_WITHIN: Final = 30.0
STARTS_WITHIN: Final = 60.0
SAVES_WITHIN: Final = 300.0

#: Seconds after the start of a clone within which a boot in its place means that its guest was not ready in time: the
#: seed is removed then.
CLONE_READY_WITHIN: Final = 60.0

#: Seconds between signs of life on a connection, and how many may be missed (remote URIs only).
KEEP_ALIVE: Final = (5, 3)

#: What libvirt's lifecycle events mean, by type and detail; other events are told by their numbers.
_EVENTS: Final = {
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN): SHUT_DOWN,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED): "destroyed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED): "the guest crashed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED): "saved",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED): domain.PROCESS_ENDED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED): "migrated away",
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED): "shutting down",
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST): SHUTS_DOWN,
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST): "the host shuts it down",
    (libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED): "the guest panicked",
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR): "paused by a disk's error",
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG): "paused by its watchdog",
    (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_ADDED): "defined",
    (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_UPDATED): "defined anew",
    (libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED): "undefined",
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED): "booted",
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED): "restored",
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED): "paused",
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED): "resumed",
}

#: Events after which a guest may have run.
_RUNS: Final = frozenset({
    libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_STOPPED,
})  # fmt: skip

#: The event of a hypervisor's process that ended without a reason: by the guest, by a fault of its own, or killed.
_ENDED: Final = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)


class _Events:
    """libvirt's event loop: registered before the first connection, run by a thread until the process ends."""

    _log = Logger()
    _lock = threading.Lock()
    _running = False

    @classmethod
    def run(cls) -> None:
        """Start the loop, if it does not run."""
        with cls._lock:
            if cls._running:
                return
            # Otherwise libvirt prints every error itself; they all come as exceptions, too.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._loop, name="libvirt events", daemon=True).start()
            cls._running = True

    @classmethod
    def _loop(cls) -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                cls._log.error("libvirt's event loop: {error}", error=str(error))
                time.sleep(1.0)


@implementer(IBackend)
class LibvirtBackend(ThreadedBackend[libvirt.virConnect]):
    """The hypervisor at one libvirt URI."""

    has_uuids = True

    def __init__(self, connect: str, reactor: Any = None) -> None:
        """Take the URI; nothing is connected yet."""
        self._uri = connect
        parts = urlsplit(connect)
        self._far = parts.hostname is not None
        # A driver in this process has no daemon that may hang, and libvirt opens it some twenty times, not more often.
        self._shares = parts.path == "/embed" or parts.scheme == "test"
        super().__init__(reactor)
        self._pools = self._calls, self._saves = tuple(
            Workers(str(self), most, self._open_another, self._close_another, self._reactor) for most in (CALLS, SAVES)
        )
        self._vms: dict[str, VM] = {}
        self._prepared: set[str] = set()  # by this process, and paused since
        self._slow: set[str] = set()
        self._cloned: dict[str, float] = {}  # when each was last started as a clone

    def __str__(self) -> str:
        """Return its name for messages."""
        return f"libvirt at {self._uri}"

    def examine(self, vm: VM) -> tuple[str, ...]:
        """Return advice about the file that defines the VM, and check the image below its disk."""
        if vm.define is None:
            return ()
        try:
            text = domain.text(vm)
            raw = definition.unfilled(vm.define)
            alike = () if vm.template is None else tuple(domain_xml.shared_by_all(raw))
            if vm.layer is not None:
                layer.check_base(vm.layer)
        except (OSError, BackendError) as error:
            raise definition.wrong(vm, error) from error
        why = domain_xml.slow(domain_xml.parse(domain_xml.definition(text, None)))
        return domain.advice_on(vm, domain_xml.parse(text), far=self._far) + alike + ((why,) if why else ())

    # Connecting.

    def _open(self) -> libvirt.virConnect:
        """Connect, with signs of life. Blocks."""
        _Events.run()
        try:
            connection = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            raise BackendLost(str(error)) from error
        with contextlib.suppress(libvirt.libvirtError):  # only what has a daemon gives them
            connection.setKeepAlive(*KEEP_ALIVE)
        return connection

    def _open_another(self) -> libvirt.virConnect:
        """Return a connection for calls. Blocks."""
        if not self._shares:
            return self._open()
        if self._connection is None:
            raise BackendLost(f"{self} cannot be reached")
        return self._connection

    def _close_another(self, connection: libvirt.virConnect) -> None:
        if not self._shares:
            _close(connection)

    def _open_events(self) -> libvirt.virConnect:
        connection = self._open()
        try:
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None)
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._reboot, None)
            connection.registerCloseCallback(self._hung_up, None)
        except libvirt.libvirtError as error:
            _close(connection)
            raise BackendLost(str(error)) from error
        return connection

    def _hung_up(self, connection: libvirt.virConnect, reason: int, _opaque: object) -> None:
        """Handle the end of the connection for events, in libvirt's thread."""
        reasons = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "the hypervisor's daemon closed the connection",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the hypervisor's daemon gives no sign of life",
        }
        self._reactor.callFromThread(self._lost, connection, reasons.get(reason, "the connection broke"))

    def _discard(self, connection: libvirt.virConnect, reason: str = "closed") -> Deferred[None]:  # noqa: ARG002
        return in_thread(self._reactor, f"{self}, closing", _close, connection)

    def _close_events(self, connection: libvirt.virConnect) -> Deferred[Any]:
        return self._discard(connection).addTimeout(CLOSES_WITHIN, self._reactor, onTimeoutCancel=lambda *_: None)

    def _connected(self, connection: libvirt.virConnect) -> None:
        self._prepared.clear()  # what has happened meanwhile is not known
        super()._connected(connection)
        in_thread(self._reactor, f"{self}, learning", domain.learn, connection).addErrback(lambda _: None)

    # Calls.

    def _call(self, function: Callable[..., Any], *arguments: Any, within: float = ANSWERS_WITHIN) -> Deferred[Any]:
        """Call *function* with a connection, in a thread; it is given up after *within* seconds."""
        workers = self._saves if within == SAVES_WITHIN else self._calls
        return workers.call(within, _blocking, function, *arguments)

    # Events.

    def _event(self, _connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
        """Handle a lifecycle event, in libvirt's thread."""
        self._reactor.callFromThread(self._happened, domain.UUIDString(), event, detail)

    def _happened(self, uuid: str, event: int, detail: int) -> None:
        reason = _EVENTS.get((event, detail), f"libvirt's lifecycle event {event}, detail {detail}")
        if event in _RUNS:
            self._prepared.discard(uuid)
            if event == libvirt.VIR_DOMAIN_EVENT_RESUMED and (vm := self._vms.get(uuid)) is not None and vm.prepare:
                self._call(domain.unmark, uuid).addErrback(lambda _: None)  # it may be gone
        if (event, detail) == _ENDED:
            # The domain's devices tell whether the guest can have ended it.
            self._call(domain.why_ended, uuid).addErrback(lambda _: reason).addCallback(
                lambda known: self._changed(uuid, known)
            )
        else:
            self._changed(uuid, reason)

    def _reboot(self, _connection: object, domain: libvirt.virDomain, _opaque: object) -> None:
        """Handle a reboot event, in libvirt's thread."""
        self._reactor.callFromThread(self._rebooted, domain.UUIDString())

    def _rebooted(self, uuid: str) -> None:
        if self._watcher is not None:
            self._watcher.rebooted(uuid)

    # Observing and changing.

    def look_up(self, vm: VM) -> Deferred[str]:
        """Find a domain by uuid or name, or define it."""
        return self._call(domain.look_up, vm).addCallback(self._found, vm)

    def _found(self, uuid: str, vm: VM) -> str:
        self._vms[uuid] = vm
        return uuid

    def state(self, uuid: str) -> Deferred[Power]:
        """Return the domain's power state; a domain with a managed image is saved."""
        return self._call(domain.state, uuid)

    def start(self, uuid: str) -> Deferred[Start]:
        """Resume, restore or create the domain."""
        begun = self._reactor.seconds()
        start = partial(domain.start, paused_since=uuid in self._prepared)
        started = self._call(start, uuid, self._vms.get(uuid), within=STARTS_WITHIN)
        return started.addCallback(self._started, uuid, begun)

    def _started(self, how: Start, uuid: str, begun: float) -> Start:
        """Note whether the start was slow, by which `advice` tells why."""
        (self._slow.add if self._reactor.seconds() - begun >= SLOW_START else self._slow.discard)(uuid)
        if how is Start.CLONED:
            self._cloned[uuid] = begun
        return how

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the domain."""
        return self._call(domain.stop, uuid, mode, within=SAVES_WITHIN if mode is Mode.SAVE else ANSWERS_WITHIN)

    def ready(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fire at once: libvirt does not know what a guest is doing."""
        return succeed(None)

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Read the MACs out of the domain's XML."""
        return self._call(domain.guest, uuid)

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Add up what the domain's interfaces have transmitted, as the guest sees it."""
        return self._call(domain.traffic, uuid)

    def cpu_time(self, uuid: str) -> Deferred[float | None]:
        """Return the time of the domain's virtual CPUs, or of the whole emulator if they are not told apart."""
        return self._call(domain.cpu_time, uuid)

    def obstacle(self, uuid: str, mode: Mode) -> Deferred[str | None]:
        """Return what in the domain's XML prevents *mode*."""
        return self._call(domain.obstacle, uuid, mode)

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Return advice about the domain's XML, and its file."""
        return self._call(domain.advice, uuid, self._vms.get(uuid), self._far, uuid in self._slow)

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Return the domain's memory, and the host's that is free or could be freed at once."""
        return self._call(domain.memory, uuid)

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:
        """Move the domain while it runs, as far as the two hypervisors can, and its disks are at both."""
        if not isinstance(to, LibvirtBackend):
            return fail(BackendError(f"{to} is none of libvirt's"))
        return self._call(domain.migrate, uuid, to._open, within=SAVES_WITHIN)  # noqa: SLF001

    def keep_image(self, uuid: str, *, shared: bool = False) -> Deferred[None]:
        """Save the domain to a file and restore it from there; a *shared* image is saved from another domain."""
        vm = self._vms[uuid]
        if shared and self._far:
            return succeed(None)
        if shared:  # the last VM of the template may be forgotten meanwhile
            made: Deferred[None] = self._call(domain.keep_seed, uuid, vm, within=SAVES_WITHIN)
            return made.addCallback(lambda _: self._forget_seed(vm))
        return self._call(domain.keep_image, uuid, vm.images, within=SAVES_WITHIN)

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Remove the VM's image, and the seed if the VM was cloned just now and is to be booted instead."""
        vm = self._vms.get(uuid)
        begun = self._cloned.pop(uuid, None)
        is_in_vain = begun is not None and self._reactor.seconds() < begun + CLONE_READY_WITHIN
        return succeed(None) if vm is None else self._call(_drop_image, uuid, vm, is_in_vain)

    def remove(self, vm: VM) -> Deferred[None]:
        """Undefine the domain, with what libvirt keeps of it, and remove its image and its disk."""
        removed: Deferred[None] = self._call(domain.remove, vm).addCallback(lambda _: self._forget(str(vm.uuid)))
        return removed.addCallback(lambda _: self._forget_seed(vm))

    def _forget(self, uuid: str) -> None:
        self._vms.pop(uuid, None)
        self._slow.discard(uuid)
        self._cloned.pop(uuid, None)

    def _forget_seed(self, vm: VM) -> Deferred[None] | None:
        """Remove the seed of the template of *vm*, if the template has no VMs any more."""
        if any(other.template == vm.template for other in self._vms.values()):
            return None
        return self._call(lambda _: image.drop(clone.path(vm)))

    def prepare(self, uuid: str) -> Deferred[None]:
        """Pause the domain, and mark it as prepared in its live metadata."""
        return self._call(domain.prepare, uuid).addCallback(lambda _: self._prepared.add(uuid))

    def stale(self, uuid: str) -> Deferred[str]:
        """Return why the domain, which is prepared, is no use any more."""
        return self._call(domain.stale, uuid, self._vms.get(uuid))


def _blocking(connection: libvirt.virConnect, function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call *function* with *connection*, in a thread.

    Raises:
        BackendLost: the connection is broken.
        BackendError: with libvirt's message; `NoSuchVM` if it knows no such domain.
    """
    try:
        return function(connection, *arguments)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise NoSuchVM(str(error)) from error
        kind = BackendError if domain.alive(connection) else BackendLost
        raise kind(str(error)) from error
    except OSError as error:
        raise BackendError(str(error)) from error


def _drop_image(_: libvirt.virConnect, uuid: str, vm: VM, seed: bool) -> None:  # noqa: FBT001
    """Remove the image of *vm*; the *seed* of its template, too."""
    image.drop(image.path(vm.images, uuid))
    if seed:
        clone.give_up(vm)


def _close(connection: libvirt.virConnect) -> None:
    """Close a connection, which may be broken. Blocks."""
    # Handlers that are registered keep the connection open.
    for number in list(getattr(connection, "domainEventCallbackID", ())):
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(number)
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()
