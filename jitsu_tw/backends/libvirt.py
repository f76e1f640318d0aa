"""
Hypervisors behind libvirt: QEMU, Xen, VirtualBox, libvirt's own test driver; here or far away.

Every call into the library blocks, so each is made in a thread of a pool of our own; what is done there is in
`backends.domain`. A call that hangs is given up and its thread replaced. Lifecycle events come from libvirt's event
loop, which has a thread of its own, once in a process.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

import libvirt
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from jitsu_tw.backends import domain, domain_xml, image
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start
from jitsu_tw.settings import VM, Boot, Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: How many calls to one hypervisor may be under way at once.
THREADS: Final = 32

#: How many guests' memories may be written at once, each for minutes: others shall not wait for a thread meanwhile.
SAVES: Final = 8

#: Seconds after which a call is given up: any, one that starts a VM, one that writes a guest's memory to a disk.
ANSWERS_WITHIN: Final = 30.0
STARTS_WITHIN: Final = 60.0
SAVES_WITHIN: Final = 300.0

#: So many calls may hang, each with a thread; if more do, no further one is made before some of them end.
MOST_HUNG: Final = 48

#: Seconds between signs of life on a connection, and how many may be missed (remote URIs only).
KEEP_ALIVE: Final = (5, 3)

#: What libvirt's lifecycle events mean, by type and detail; the rest is said in numbers.
_EVENTS: Final = {
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN): "the guest shut down",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED): "destroyed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED): "the guest crashed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED): "saved",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED): "the hypervisor failed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED): "migrated away",
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED): "shutting down",
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST): "the guest shuts down",
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


class _Events:
    """libvirt's event loop: registered before the first connection, turned by a thread for the process's life."""

    _log = Logger()
    _lock = threading.Lock()
    _running = False

    @classmethod
    def run(cls) -> None:
        """See to it that the loop turns."""
        with cls._lock:
            if cls._running:
                return
            # Otherwise libvirt prints every error itself; they all come to us as exceptions.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._turn, name="libvirt events", daemon=True).start()
            cls._running = True

    @classmethod
    def _turn(cls) -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                cls._log.error("libvirt's event loop: {error}", error=str(error))
                time.sleep(1.0)


class _Thread(threading.Thread):
    """A thread that the process does not wait for when it ends: its call may hang."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords, daemon=True)


@implementer(IBackend)
class LibvirtBackend:
    """The hypervisor at one libvirt URI."""

    log = Logger()
    reachable = True
    has_uuids = True
    images = True

    def __init__(self, connect: str, reactor: Any = None) -> None:
        """Take the URI; nothing is connected yet."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._uri = connect
        self._reactor = reactor
        self._watcher: IWatcher | None = None
        self._connection: libvirt.virConnect | None = None
        self._pool = ThreadPool(0, THREADS, f"libvirt {connect}")
        self._saves = ThreadPool(0, SAVES, f"libvirt {connect}, saves")
        self._pool.threadFactory = self._saves.threadFactory = _Thread
        self._hung = 0
        self._kept: dict[str, Path] = {}
        self._backoff = backoffPolicy(initialDelay=0.1, maxDelay=10.0)
        self._failures = 0
        self._closed = False
        self._retry: Any = None

    def __str__(self) -> str:
        """Say which it is, in messages."""
        return f"libvirt at {self._uri}"

    # Connecting.

    def examine(self, vm: VM) -> tuple[str, ...]:
        """Return advice about the file that defines the VM."""
        return () if vm.define is None else domain_xml.advice(domain_xml.parse(vm.define.read_text()))

    def _open(self) -> libvirt.virConnect:
        """Connect, with events and signs of life. Blocks."""
        _Events.run()
        connection = libvirt.open(self._uri)
        try:
            connection.setKeepAlive(*KEEP_ALIVE)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._reboot, None)
        connection.registerCloseCallback(self._hung_up, None)
        return connection

    def connect(self, watcher: IWatcher) -> None:
        """Connect, now and whenever the connection breaks."""
        self._watcher = watcher
        self._pool.start()
        self._saves.start()
        self._try()

    def _try(self) -> None:
        if not self._closed:
            opened = deferToThreadPool(self._reactor, self._pool, self._open)
            opened.addCallbacks(self._opened, self._not_opened)

    def _opened(self, connection: libvirt.virConnect) -> None:
        if self._closed or self._watcher is None:
            connection.close()
            return
        self._connection, self._failures = connection, 0
        self.log.info("{backend}: connected", backend=self)
        self._watcher.connected(self)

    def _not_opened(self, failure: Any) -> None:
        failure.trap(libvirt.libvirtError)
        self._failures += 1
        if self._watcher is not None:
            self._watcher.lost(self, failure.getErrorMessage())
        self._again()

    def _again(self) -> None:
        """Try to connect after a while that grows with each failure."""
        if not self._closed:
            self._retry = self._reactor.callLater(self._backoff(self._failures), self._try)

    def _hung_up(self, connection: libvirt.virConnect, reason: int, _opaque: object) -> None:
        """Hear from libvirt's thread that the connection has ended."""
        words = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "the hypervisor's daemon closed the connection",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the hypervisor's daemon gives no sign of life",
        }
        self._reactor.callFromThread(self._lost, connection, words.get(reason, "the connection broke"))

    def _lost(self, connection: libvirt.virConnect, reason: str) -> None:
        if connection is not self._connection or self._closed:
            return
        self._connection = None
        self.log.error("{backend}: {reason}", backend=self, reason=reason)
        deferToThreadPool(self._reactor, self._saves, _close, connection)
        if self._watcher is not None:
            self._watcher.lost(self, reason)
        self._again()

    def close(self) -> Deferred[None]:
        """Close the connection and end the threads."""
        self._closed = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        connection, self._connection, self._watcher = self._connection, None, None
        if not self._pool.started:
            return succeed(None)
        if self._hung or self._pool.working or self._saves.working:
            self.log.info("{backend}: calls are still under way", backend=self)
            return succeed(None)
        closed = deferToThreadPool(self._reactor, self._pool, _close, connection)
        return closed.addBoth(self._end_threads)

    def _end_threads(self, _: object) -> None:
        for pool in (self._pool, self._saves):
            pool.stop()

    # Calls.

    def _call(self, function: Callable[..., Any], *arguments: Any, within: float = ANSWERS_WITHIN) -> Deferred[Any]:
        """Call *function* with the connection, in a thread of the pool; what takes longer than *within* s hangs."""
        if self._hung >= MOST_HUNG:
            return fail(BackendLost(f"{self._hung} calls to {self} hang"))
        answered: Deferred[Any] = Deferred()
        late = self._reactor.callLater(within, self._hangs, answered, within)
        connection = self._connection
        pool = self._saves if within == SAVES_WITHIN else self._pool
        call = deferToThreadPool(
            self._reactor, pool, self._unless_late, late, self._blocking, connection, function, *arguments
        )
        call.addBoth(self._answered, answered, late)
        return answered

    @staticmethod
    def _unless_late(late: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call *function*, if that was not given up while it waited for a thread: a stop would come out of the blue."""
        return function(*arguments) if late.active() else None

    def _hangs(self, answered: Deferred[Any], within: float) -> None:
        """Give a call up; its thread is another one's loss no more."""
        self._resize(1)
        error = BackendLost(f"{self} has not answered within {within:g} s")
        self.log.error("{error}; {hung} calls hang", error=str(error), hung=self._hung)
        answered.errback(error)

    def _answered(self, result: Any, answered: Deferred[Any], late: Any) -> None:
        if late.active():
            late.cancel()
            answered.callback(result)
        else:
            self._resize(-1)

    def _resize(self, hung: int) -> None:
        """Keep `THREADS` threads beside those that hang, of which there are *hung* more."""
        self._hung += hung
        if not self._closed:
            self._pool.adjustPoolsize(0, THREADS + self._hung)

    def _blocking(self, connection: libvirt.virConnect | None, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call *function*; turn libvirt's errors into ours, with its words."""
        if connection is None:
            message = f"{self} cannot be reached"
            raise BackendLost(message)
        try:
            return function(connection, *arguments)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise NoSuchVM(str(error)) from error
            if not _alive(connection):
                self._reactor.callFromThread(self._lost, connection, str(error))
                raise BackendLost(str(error)) from error
            raise BackendError(str(error)) from error
        except OSError as error:
            raise BackendError(str(error)) from error

    def _event(self, _connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
        """Hear of a lifecycle event, in libvirt's thread."""
        reason = _EVENTS.get((event, detail), f"libvirt's lifecycle event {event}, detail {detail}")
        self._reactor.callFromThread(self._tell, domain.UUIDString(), reason)

    def _reboot(self, _connection: object, domain: libvirt.virDomain, _opaque: object) -> None:
        """Handle a reboot event, in libvirt's thread."""
        self._reactor.callFromThread(self._rebooted, domain.UUIDString())

    def _rebooted(self, uuid: str) -> None:
        if self._watcher is not None:
            self._watcher.rebooted(uuid)

    def _tell(self, uuid: str, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def look_up(self, vm: VM) -> Deferred[str]:
        """Find a domain by uuid or name, or define it."""
        found = self._call(lambda connection: self._find(connection, vm).UUIDString())
        return found.addCallback(self._found, vm)

    def _found(self, uuid: str, vm: VM) -> str:
        if vm.boot_from is Boot.SNAPSHOT:
            self._kept[uuid] = image.path(vm.images, uuid)
        return uuid

    @staticmethod
    def _find(connection: libvirt.virConnect, vm: VM) -> libvirt.virDomain:
        try:
            return connection.lookupByUUIDString(vm.uuid) if vm.uuid else connection.lookupByName(vm.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            if vm.define is None:
                remedy = "define it there, mend the name, or give its XML file with define"
                raise NoSuchVM(f"{error}; {remedy}") from error
        return connection.defineXML(domain.definition(vm.define.read_text(), vm.uuid))

    def state(self, uuid: str) -> Deferred[Power]:
        """Return what libvirt says; a domain with a managed image is saved."""
        return self._call(domain.state, uuid)

    def start(self, uuid: str) -> Deferred[Start]:
        """Resume, restore or create the domain."""
        return self._call(domain.start, uuid, self._kept.get(uuid), within=STARTS_WITHIN)

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
        """Return what in the domain's XML is against *mode*."""
        return self._call(domain.obstacle, uuid, mode)

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Return what the domain's XML, and its file, give reason to say."""
        return self._call(domain.advice, uuid)

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Return the domain's memory, and the host's that is free or could be freed at once."""
        return self._call(domain.memory, uuid)

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:
        """Move the domain while it runs, as far as the two hypervisors can, and its disks are at both."""
        if not isinstance(to, LibvirtBackend):
            return fail(BackendError(f"{to} is none of libvirt's"))
        return self._call(domain.migrate, uuid, to._connection, within=SAVES_WITHIN)  # noqa: SLF001

    def keep_image(self, uuid: str) -> Deferred[None]:
        """Save the domain to a file and restore it from there."""
        return self._call(domain.keep_image, uuid, self._kept[uuid], within=SAVES_WITHIN)

    def drop_image(self, uuid: str) -> Deferred[None]:
        """Remove the file."""
        kept = self._kept.get(uuid)
        return succeed(None) if kept is None else self._call(lambda _: image.drop(kept))


def _close(connection: libvirt.virConnect | None) -> None:
    """Let go of a connection, which may have broken already."""
    if connection is not None:
        try:
            connection.close()
        except libvirt.libvirtError as error:
            LibvirtBackend.log.debug("a connection that had broken: {error}", error=str(error))


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
