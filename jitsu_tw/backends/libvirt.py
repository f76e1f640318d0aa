"""
Hypervisors behind libvirt: QEMU, Xen, VirtualBox, libvirt's own test driver; here or far away.

Every call into the library blocks, so each is made in a thread of a pool of our own. A domain is looked up by its uuid
each time: libvirt's objects outlive what they name. Lifecycle events come from libvirt's event loop, which has a thread
of its own, once in a process.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import libvirt
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from jitsu_tw.errors import BackendError, BackendLost, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import IBackend, IWatcher, Power
from jitsu_tw.settings import VM, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: How many calls to one hypervisor may be under way at once.
THREADS: Final = 16

#: Seconds between signs of life on a connection, and how many may be missed (remote URIs only).
KEEP_ALIVE: Final = (5, 3)

#: Errors that no later try can change: no driver knows the URI (which libvirt cannot say without a daemon to ask), or a
#: driver in this process cannot work as it is set up.
_NEVER: Final = frozenset({libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_INVALID_ARG})

_POWER: Final = {
    libvirt.VIR_DOMAIN_RUNNING: Power.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: Power.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
}

#: What libvirt's lifecycle events mean, by type and detail; the rest is said in numbers.
_EVENTS: Final = {
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN): "the guest shut down",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED): "destroyed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED): "the guest crashed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED): "saved",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED): "the hypervisor failed",
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED): "migrated away",
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED): "booted",
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED): "restored",
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED): "paused",
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED): "resumed",
}


class _Events:
    """libvirt's event loop: registered before the first connection, turned by a thread for the process's life."""

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

    @staticmethod
    def _turn() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


@implementer(IBackend)
class LibvirtBackend:
    """The hypervisor at one libvirt URI."""

    log = Logger()
    reachable = True

    def __init__(self, connect: str, reactor: Any = None) -> None:
        """Take the URI; nothing is connected yet."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._uri = connect
        self._reactor = reactor
        self._watcher: IWatcher | None = None
        self._connection: libvirt.virConnect | None = None
        self._pool = ThreadPool(0, THREADS, f"libvirt {connect}")
        self._backoff = backoffPolicy(initialDelay=0.1, maxDelay=10.0)
        self._failures = 0
        self._closed = False
        self._retry: Any = None

    def __str__(self) -> str:
        """Say which it is, in messages."""
        return f"libvirt at {self._uri}"

    # Connecting.

    def check(self, vms: Iterable[VM]) -> None:
        """Connect and look at the VMs; keep the connection for `connect`."""
        try:
            self._connection = self._open()
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NEVER or error.get_error_domain() == libvirt.VIR_FROM_URI:
                message = f"{self._uri!r} is no hypervisor that libvirt can use: {error}"
                raise ConfigError(message, key="connect") from error
            self.log.error("{backend} cannot be reached yet: {error}", backend=self, error=str(error))
            return
        for vm in vms:
            try:
                self._find(self._connection, vm)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    remedy = "define it there, mend the name, or give its XML file with define"
                    message = f"{self} knows no such VM: {remedy}"
                    raise ConfigError(message, *vm.place, f"vms: {vm.name}") from error
                message = f"{self} does not take it: {error}"
                raise ConfigError(message, *vm.place, f"vms: {vm.name}") from error

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
        connection.registerCloseCallback(self._hung_up, None)
        return connection

    def connect(self, watcher: IWatcher) -> None:
        """Use the connection that `check` made, or make one, now and whenever it breaks."""
        self._watcher = watcher
        self._pool.start()
        if self._connection is not None:
            watcher.connected(self)
        else:
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
        closed = deferToThreadPool(self._reactor, self._pool, connection.close if connection else lambda: 0)
        return closed.addBoth(lambda _: self._pool.stop())

    # Calls.

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Call *function* with the connection, in a thread of the pool."""
        return deferToThreadPool(self._reactor, self._pool, self._blocking, self._connection, function, *arguments)

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

    def _event(self, _connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
        """Hear of a lifecycle event, in libvirt's thread."""
        reason = _EVENTS.get((event, detail), f"libvirt's lifecycle event {event}, detail {detail}")
        self._reactor.callFromThread(self._tell, domain.UUIDString(), reason)

    def _tell(self, uuid: str, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def look_up(self, vm: VM) -> Deferred[str]:
        """Find a domain by uuid or name, or define it."""
        return self._call(lambda connection: self._find(connection, vm).UUIDString())

    @staticmethod
    def _find(connection: libvirt.virConnect, vm: VM) -> libvirt.virDomain:
        try:
            return connection.lookupByUUIDString(vm.uuid) if vm.uuid else connection.lookupByName(vm.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN or vm.define is None:
                raise
        return connection.defineXML(vm.define.read_text())

    def state(self, uuid: str) -> Deferred[Power]:
        """Return what libvirt says; a domain with a managed image is saved."""
        return self._call(_state, uuid)

    def start(self, uuid: str) -> Deferred[None]:
        """Create or resume the domain. libvirt restores it by itself where there is a managed image."""
        return self._call(_start, uuid)

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the domain."""
        return self._call(_stop, uuid, mode)

    def ready(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fire at once: libvirt does not know what a guest is doing."""
        return succeed(None)

    def macs(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Read the MACs out of the domain's XML."""
        return self._call(_macs, uuid)


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _state(connection: libvirt.virConnect, uuid: str) -> Power:
    domain = connection.lookupByUUIDString(uuid)
    power = _POWER.get(domain.state()[0], Power.OFF)
    return Power.SAVED if power is Power.OFF and _has_image(domain) else power


def _has_image(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.hasManagedSaveImage())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return False
        raise


def _start(connection: libvirt.virConnect, uuid: str) -> None:
    domain = connection.lookupByUUIDString(uuid)
    state = domain.state()[0]
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()
    elif state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    elif state in {libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED}:
        if domain.isActive():
            domain.destroy()
        try:
            domain.create()
        except libvirt.libvirtError:
            # Somebody else may have been quicker.
            if not domain.isActive():
                raise


def _stop(connection: libvirt.virConnect, uuid: str, mode: Mode) -> None:
    domain = connection.lookupByUUIDString(uuid)
    actions: dict[Mode, Callable[[], object]] = {
        Mode.DESTROY: domain.destroy,
        Mode.SHUTDOWN: domain.shutdown,
        Mode.SUSPEND: domain.suspend,
        Mode.PAUSE: domain.suspend,
        Mode.SAVE: domain.managedSave,
    }
    try:
        actions[mode]()
    except libvirt.libvirtError:
        # It may have gone down by itself meanwhile, which is what was wanted.
        if domain.isActive():
            raise


def _macs(connection: libvirt.virConnect, uuid: str) -> tuple[str, ...]:
    xml = ElementTree.fromstring(connection.lookupByUUIDString(uuid).XMLDesc())  # noqa: S314
    return tuple(mac.get("address", "").lower() for mac in xml.findall("./devices/interface/mac"))
