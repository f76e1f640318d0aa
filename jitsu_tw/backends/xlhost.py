"""
The domains of a Xen host that are VMs of the configuration: what xl lists, and what Xenstore tells.

Xenstore tells when any domain comes or goes, not which, and nothing of a pause; one ``xl list`` for all callers shows
what has changed. Xen knows nothing of a VM that does not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jitsu_tw.backends import layer, xlvm
from jitsu_tw.backends.threaded import in_thread
from jitsu_tw.backends.xl import Domain, Xl
from jitsu_tw.backends.xlvm import uuid_of
from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.reconnect import Reconnector
from jitsu_tw.xenstore import Xenstore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from jitsu_tw.ijitsu import IBackend, IWatcher
    from jitsu_tw.settings import VM, Layer
    from jitsu_tw.xenstore import Watch

T = TypeVar("T")

#: Seconds after which the rest of a domain that is down is destroyed. xl removes it within one.
REMAINS: Final = 10.0

#: Seconds that Jitsu waits for a layer to be made, checked or removed, which takes milliseconds.
DISK_ANSWERS_WITHIN: Final = 20.0

#: Seconds for which a domain that is paused from its beginning is taken for one that another program is still building,
#: and between two looks at it meanwhile: Xenstore tells of a domain's beginning, and not of its unpausing.
BUILDING: Final = 30.0
LOOK_AGAIN: Final = 1.0


def is_of(vm: VM, domain: Domain) -> bool:
    """Return whether *domain* is *vm*. One that another program has started may have another uuid than Jitsu's."""
    return domain.uuid == uuid_of(vm) or (vm.uuid is None and domain.name == vm.name)


class Host:
    """
    A Xen host.

    Attributes:
        xl: its program.
        xenstore: its Xenstore.
        vms: those of the configuration, by uuid.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Begin without VMs."""
        self._reactor = reactor
        self.xl, self.xenstore = Xl(reactor), Xenstore(reactor)
        self.vms: dict[str, VM] = {}
        self._names: dict[str, str] = {}  # the uuids of those that have none of their own
        self._known: dict[str, Domain] = {}
        self._backend: IBackend | None = None
        self._watcher: IWatcher | None = None
        self._watches: list[Watch] = []
        self._hints: list[Deferred[None]] = []
        self._built: set[int] = set()  # domains that have been seen running, or that Jitsu has made
        self._building: dict[int, float] = {}  # others, and since when
        self._again: Any = None
        self._connected = False
        self._reconnector = Reconnector(
            "Xen (xl)", self._open, self._opened, self._disconnected, lambda _: None, reactor
        )

    # The connection.

    def connect(self, backend: IBackend, watcher: IWatcher) -> None:
        """Begin to listen to Xenstore, and to ask xl until it answers; tell *watcher* for *backend*."""
        self._backend, self._watcher = backend, watcher
        self.xenstore.start()
        self._watches = [self.xenstore.watch(path, self._hint) for path in ("@introduceDomain", "@releaseDomain")]
        self._reconnector.begin()

    @deferred
    async def _open(self) -> tuple[Domain, ...]:
        """Return all domains, once Xenstore and xl answer."""
        await self.xenstore.list("/local/domain")
        return await self.xl.domains()

    def _opened(self, domains: tuple[Domain, ...]) -> None:
        if self._watcher is None or self._backend is None:
            return
        self._connected = True
        self._built = {domain.domid for domain in domains}
        self._known = self._ours(domains)
        self.log.info("{backend}: connected", backend=self._backend)
        self._watcher.connected(self._backend)

    def _lost(self, reason: str) -> None:
        """Connect again, because xl or Xenstore does not answer for *reason*."""
        self._connected = False
        self._reconnector.again(reason)

    def _disconnected(self, reason: str) -> None:
        if self._watcher is not None and self._backend is not None:
            self._watcher.lost(self._backend, reason)

    def close(self) -> Deferred[None]:
        """End the connection to Xenstore. An xl that changes a VM goes on to its end; one that lists ends first."""
        self._reconnector.end()
        self._connected, self._watcher = False, None
        if self._again is not None and self._again.active():
            self._again.cancel()
        for watch in self._watches:
            watch.stop()
        return self.xl.listed().addCallback(lambda _: self.xenstore.close())

    def call(self, call: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Carry out *call*; a connection that turns out to be lost is tried again."""
        return Deferred.fromCoroutine(call).addErrback(self._failed)

    def _failed(self, failure: Any) -> Any:
        if failure.check(BackendLost):
            self._lost(failure.getErrorMessage())
        elif failure.check(OSError, ValueError):
            # A full disk, a file that is not what it was: no fault of Jitsu's, and it concerns one VM.
            raise BackendError(failure.getErrorMessage()) from failure.value
        return failure

    # What happens.

    def _hint(self, _path: str) -> None:
        """Handle that some domain has come or gone."""
        self._wake()
        if self._connected:
            spawn(self.log, self._look(), self._backend)

    def _wake(self) -> None:
        """Continue what waits for a change of a domain."""
        hints, self._hints = self._hints, []
        for hint in hints:
            if not hint.called:
                hint.callback(None)

    async def _look(self) -> None:
        """Find out which VM it was, and tell the watcher."""
        try:
            domains = await self.xl.domains()
        except BackendError as error:
            self._lost(str(error))
            return
        self._take(domains)

    def _take(self, domains: Iterable[Domain]) -> dict[str, Domain]:
        """Take *domains*, which xl has listed, and tell the watcher what has changed, before any caller acts on it."""
        domains = tuple(domains)
        now, before = self._ours(domains), self._known
        if not self._connected:
            return now
        self._known = now
        listed = {domain.domid for domain in domains}
        self._built &= listed
        self._building = {domid: since for domid, since in self._building.items() if domid in listed}
        if self._building and not (self._again is not None and self._again.active()):
            self._again = self._reactor.callLater(LOOK_AGAIN, self._hint, "")
        for uuid in now.keys() | before.keys():
            new, old = now.get(uuid), before.get(uuid)
            if new != old and self._watcher is not None:
                gone = "it is gone" if old is None or not old.down else f"{old}, and is gone"
                self._watcher.changed(uuid, gone if new is None else str(new))
        return now

    def _ours(self, domains: Iterable[Domain]) -> dict[str, Domain]:
        """Return those of *domains* that are VMs of the configuration, by Jitsu's uuid."""
        found: dict[str, Domain] = {}
        for domain in domains:
            uuid = domain.uuid if domain.uuid in self.vms else self._names.get(domain.name)
            # The rest of one that is down may still be there when the next one runs.
            if uuid is not None and (uuid not in found or not domain.down):
                found[uuid] = domain
        for domain in found.values():
            since = self._building.setdefault(domain.domid, self._reactor.seconds())
            if not domain.paused or domain.domid in self._built or self._reactor.seconds() - since > BUILDING:
                self._built.add(domain.domid)
                del self._building[domain.domid]
        return found

    # Looking up.

    async def look_up(self, vm: VM) -> str:
        """
        Return the uuid of *vm*, and add it to `vms`.

        Raises:
            NoSuchVM: it does not run, and the configuration does not tell how to make it.
        """
        uuid = uuid_of(vm)
        if vm.backend_settings is None and vm.define is None:
            if uuid in self.vms:
                return uuid
            if not any(is_of(vm, domain) for domain in await self.xl.domains()):
                remedy = "give its kernel, or its xl configuration with define"
                raise NoSuchVM(f"xl knows no domain {vm.name!r}, and nothing says how to make it; {remedy}")
        if vm.layer is not None and not vm.removed:
            xlvm.check_files(vm)
            await self.on_disk(layer.make, vm.layer)
        self.vms[uuid] = vm
        if vm.uuid is None:
            self._names[vm.name] = uuid
        return uuid

    async def on_disk(self, function: Callable[[Layer], object], layer: Layer) -> None:
        """
        Call *function*, which blocks, with *layer*, in a thread.

        Raises:
            BackendError: as *function* does, or the file system that the layer is on does not answer.
        """

        def late(*_: object) -> NoReturn:
            raise BackendError(f"{layer.path}: its file system has not answered within {DISK_ANSWERS_WITHIN:g} s")

        done = in_thread(self._reactor, f"{layer.path}", function, layer)
        await done.addTimeout(DISK_ANSWERS_WITHIN, self._reactor, onTimeoutCancel=late)

    async def find(self, uuid: str) -> Domain | None:
        """
        Return a VM's domain, as it is now; None if it has none.

        Raises:
            NoSuchVM: it was not looked up.
        """
        if uuid not in self.vms:
            raise NoSuchVM(f"no VM {uuid}")
        return self._take(await self.xl.domains()).get(uuid)

    async def alive(self, uuid: str) -> Domain | None:
        """Return a VM's domain, which runs or is paused; None if the VM is off. Raises as `find` does."""
        domain = await self.find(uuid)
        return None if domain is None or domain.down else domain

    async def running(self, uuid: str) -> Domain:
        """
        Return a VM's domain, which runs or is paused.

        Raises:
            BackendError: it is off.
        """
        domain = await self.alive(uuid)
        if domain is None:
            raise BackendError(f"{self.vms[uuid].name} does not run")
        return domain

    def started(self, uuid: str) -> None:
        """Note that a VM runs, so that its end is told however soon it comes."""
        self._known[uuid] = Domain(self.vms[uuid].name, 0, uuid)

    async def built(self, uuid: str) -> Domain | None:
        """Return a VM's domain when it is built: one that is unpaused before has no devices yet."""
        while (domain := await self.find(uuid)) is not None and domain.domid in self._building:
            await self._hinted(LOOK_AGAIN)
        return domain

    async def gone(self, uuid: str, domain: Domain) -> None:
        """Wait until a domain that is down is removed, and destroy it if that takes long: its name is free then."""
        late = self._reactor.seconds() + REMAINS
        while (left := await self.find(uuid)) is not None and left.domid == domain.domid:
            now = self._reactor.seconds()
            if now >= late:
                await self.xl.run("destroy", str(domain.domid))
                return
            await self._hinted(late - now)

    async def _hinted(self, within: float) -> None:
        """Wait until some domain comes or goes, for *within* seconds at most."""
        hint: Deferred[None] = Deferred()
        self._hints.append(hint)
        late = self._reactor.callLater(within, self._wake)
        await hint
        if late.active():
            late.cancel()
