"""
What the hypervisors say of a configuration's VMs, for `jitsuctl doctor` and `jitsuctl check --connect`.

They are asked through `IBackend`, as Jitsu itself asks them, so that all backends are covered. Nothing is defined,
started or changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import Cooperator
from zope.interface import implementer

from jitsu_tw.backends import BACKENDS
from jitsu_tw.coroutines import deferred
from jitsu_tw.ctl.diagnosis.findings import Seen
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import IWatcher
from jitsu_tw.settings import HOSTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jitsu_tw.ijitsu import IBackend
    from jitsu_tw.settings import VM, Settings, Template

#: Seconds that a hypervisor has to accept a connection.
CONNECTS_WITHIN: Final = 5.0

#: How many VMs each hypervisor is asked about at once, and seconds for which it is waited for when that ends.
AT_ONCE: Final = 8
CLOSES_WITHIN: Final = 1.0


@attrs.frozen
class Hypervisor:
    """
    A hypervisor of the configuration.

    Attributes:
        backend: not connected.
        vms: its VMs; those that may run on several are among those of each.
        is_here: whether it is this host.
        templates: those whose VMs it is to have.
    """

    name: str
    backend: IBackend
    vms: tuple[VM, ...]
    is_here: bool
    templates: tuple[Template, ...] = ()


@attrs.frozen
class Asked:
    """
    What a hypervisor said.

    Attributes:
        error: why it cannot be asked; empty if it can.
        seen: what it says of each VM, by the VM's name; VMs that it was not asked about in time are missing.
    """

    hypervisor: Hypervisor
    error: str = ""
    seen: dict[str, Seen] = attrs.field(factory=dict)


def hypervisors(settings: Settings) -> list[Hypervisor]:
    """Return the hypervisors of a configuration; several `hosts` are one each."""
    found = [
        _hypervisor(host.name, host.backend, host.connect, [one for one in settings.vms if host.name in one.hosts],
                    [one for one in settings.templates if host.name in one.hosts])
        for host in settings.hosts
    ]  # fmt: skip
    vms: dict[tuple[str, str], list[VM]] = {}
    templates: dict[tuple[str, str], list[Template]] = {}
    for vm in settings.vms:
        vms.setdefault((vm.backend, vm.connect), []).append(vm)
    for template in settings.templates:
        templates.setdefault((template.backend, template.connect), []).append(template)
    for kind, connect in {**vms, **templates}:
        if kind != HOSTS:
            mine = vms.get((kind, connect), ()), templates.get((kind, connect), ())
            found.append(_hypervisor("", kind, connect, *mine))
    return found


def _hypervisor(
    name: str, kind: str, connect: str, vms: Iterable[VM], templates: Iterable[Template]
) -> Hypervisor:
    backend = BACKENDS[kind].load()(connect)
    is_here = backend.reachable and urlsplit(connect).hostname is None
    return Hypervisor(name or f"{kind} {connect}".strip(), backend, tuple(vms), is_here, tuple(templates))


@implementer(IWatcher)
class _Watcher:
    """
    Waits for the outcome of the first attempt to connect.

    Attributes:
        outcome: fires with the reason why it failed; empty if it succeeded.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.outcome: Deferred[str] = Deferred()

    def changed(self, uuid: str, reason: str) -> None:
        """Ignore an event."""

    def rebooted(self, uuid: str) -> None:
        """Ignore an event."""

    def lost(self, backend: IBackend, reason: str) -> None:  # noqa: ARG002
        """Handle a failure."""
        self._end(reason)

    def connected(self, backend: IBackend) -> None:  # noqa: ARG002
        """Handle a connection."""
        self._end("")

    def _end(self, reason: str) -> None:
        if not self.outcome.called:
            self.outcome.callback(reason)


async def ask_all(hypervisors: Sequence[Hypervisor], reactor: Any, within: float) -> list[Asked]:
    """Ask all *hypervisors* about all their VMs; each has *within* seconds, after it has connected."""
    answers = await DeferredList([_ask(one, reactor, within) for one in hypervisors])
    return [asked for _, asked in answers]


@deferred
async def _ask(hypervisor: Hypervisor, reactor: Any, within: float) -> Asked:
    asked = Asked(hypervisor)
    error = await _connect(hypervisor.backend, reactor)
    if error:
        asked = attrs.evolve(asked, error=error)
    else:
        cooperator = Cooperator(scheduler=lambda call: reactor.callLater(0, call))
        vms = iter(hypervisor.vms)
        tasks = [cooperator.coiterate(_each(hypervisor.backend, vms, asked.seen)) for _ in range(AT_ONCE)]
        await DeferredList(tasks, consumeErrors=True).addTimeout(within, reactor, onTimeoutCancel=lambda *_: None)
        cooperator.stop()
    await hypervisor.backend.close().addTimeout(CLOSES_WITHIN, reactor, onTimeoutCancel=lambda *_: None)
    return asked


async def _connect(backend: IBackend, reactor: Any) -> str:
    """Connect, and return why that failed; empty if it did not."""
    watcher = _Watcher()
    backend.connect(watcher)
    try:
        return await watcher.outcome.addTimeout(CONNECTS_WITHIN, reactor)
    except DeferredTimeout:
        return f"no answer within {CONNECTS_WITHIN:g} s"


def _each(backend: IBackend, vms: Iterator[VM], seen: dict[str, Seen]) -> Iterator[Deferred[None]]:
    """Ask about one of *vms* after the other; other iterators take from the same ones."""
    for vm in vms:
        yield _see(backend, vm, seen)


@deferred
async def _see(backend: IBackend, vm: VM, seen: dict[str, Seen]) -> None:
    """Note in *seen* what the hypervisor says of *vm*."""
    macs: tuple[str, ...] | None = None
    bridges: tuple[str, ...] = ()
    try:
        # Without these keys nothing is defined, and a paused guest is not looked at for a new life.
        uuid = await backend.look_up(attrs.evolve(vm, define=None, prepare=False))
        advice = await backend.advice(uuid)
        obstacle = await backend.obstacle(uuid, vm.mode) or ""
        try:
            guest = await backend.guest(uuid)
            macs, bridges = guest.macs, guest.bridges
        except BackendError:  # of a VM that is off, some know nothing
            pass
    except BackendError as error:
        seen[vm.name] = Seen(str(error), is_lost=isinstance(error, BackendLost))
    except CancelledError:
        pass
    else:
        seen[vm.name] = Seen("", advice=advice, macs=macs, bridges=bridges, obstacle=obstacle)
