"""
Control by git: changes of the state that a client pushes to ``request/…`` change the running Jitsu (DESIGN, section 9).

A request is merged if its result is a configuration that could be read from the file, too. It is applied, and its
branch removed; or the branch is put aside as ``rejected/…`` with the reason, and nothing has changed. Where the file
and a request disagree, the request holds until the next start, and then the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import CancelledError, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw.config.source import RawValue
from jitsu_tw.config.vms import UniquenessCheck, check_needs, uuid_of
from jitsu_tw.coroutines import deferred, report
from jitsu_tw.dns.binding import is_here
from jitsu_tw.errors import BackendError, ConfigError, NoSuchVM, StoreError
from jitsu_tw.settings import Template
from jitsu_tw.slices import in_slices
from jitsu_tw.store.layout import (
    NAME,
    OVER_FILE,
    TEMPLATE_OF,
    UNKNOWN,
    VMS,
    came,
    origin_path,
    vm_changes,
    vm_files,
    vms,
)
from jitsu_tw.store.requests import fairly, guest_of, shortened
from jitsu_tw.sync.folders import rebuilt, vm_of
from jitsu_tw.sync.permissions import Budgets, check_change, check_operators_keys, check_result
from jitsu_tw.sync.reconfigure import ConfigChange
from jitsu_tw.sync.reload import check_members, unread

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from typing import Any

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.config.source import RawConfig
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.store.git import GitStore
    from jitsu_tw.store.requests import Change, Request
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet

#: Seconds between two looks for requests. A look costs 20 us, and misses nothing on any file system.
LOOK_EVERY: Final = 0.2

#: Seconds after a failure of the state until the next look.
TRY_AGAIN: Final = 5.0

#: Seconds that the backends have to look up the new VMs of a request; a backend that takes longer is not waited for.
FOUND_WITHIN: Final = 5.0

#: A file that the folder of a template has, and that of no VM.
TEMPLATE_FILE: Final = "config/pool/0"

#: The keys that stay as they are as long as the VM is there.
FIXED: Final = ("name", "backend", "connect", "uuid")


@attrs.frozen
class _Waits:
    """
    Requests for which the state could not be used.

    Attributes:
        names: of the requests; none if the state can be used.
        since: when the first of them failed, in seconds of the reactor.
        reason: why the first of them failed.
    """

    names: frozenset[str] = frozenset()
    since: float = 0.0
    reason: str = ""


class ChangeRequests:
    """Looks for requests and carries them out, one after the other."""

    log = Logger()

    def __init__(
        self,
        store: GitStore,
        fleet: Fleet,
        zones: Zones,
        running: LiveConfig,
        reactor: IReactorTime,
    ) -> None:
        """Carry out the requests in *store*; *running* has the *fleet* and the *zones*."""
        self._store, self._fleet, self._zones, self._running = store, fleet, zones, running
        self._reactor = reactor
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._done: Deferred[Any] = succeed(None)
        self._looking_up: Deferred[str] | None = None
        self._ended = False
        self._not_before = 0.0
        self._waits = _Waits()
        self._budgets = Budgets()
        self._built: dict[str, tuple[VM, Template, VM | None]] = {}
        self._prepared: list[Template] = []

    # Beginning and end.

    def restore(self, tree: Mapping[str, str]) -> None:
        """Add what only requests and templates have brought into the state; to be called before anything runs."""
        brought = {uuid: files for uuid, files in vms(tree).items() if came(tree.get(origin_path(uuid)))}
        unique = UniquenessCheck()
        for vm in self._running.vms if brought else ():
            unique.add(vm, {})
        settings = self._running.settings
        known = {vm.name for vm in (*settings.vms, *settings.templates)}
        found, templates = [], list(settings.templates)
        for uuid, files in sorted(brought.items(), key=lambda item: (TEMPLATE_FILE not in item[1], _name(item[1]))):
            if (of := files.get(TEMPLATE_OF)) is not None and all(of != template.name for template in templates):
                self._running.orphans.add(uuid, files)
            elif files.get(NAME) not in known:
                try:
                    vm, raw = vm_of(uuid, files, files, settings)
                    unique.add(vm, raw)
                    found.append(vm)
                    if isinstance(vm, Template):
                        templates.append(vm)
                        settings = attrs.evolve(settings, templates=tuple(templates))
                except ConfigError as error:
                    self._left_out(files.get(NAME, uuid), error)
        for vm in _with_needs(found, known):
            try:
                self._running.restore(vm)
            except ConfigError as error:
                self._left_out(vm.name, error)
        for template, sentence in self._running.orphans.problems().items():
            self.log.error("template {name}: {sentence}", name=template, sentence=sentence)

    def _left_out(self, what: str, error: ConfigError) -> None:
        self.log.error("{what}: is in the state, but is left out now: {error}", what=what, error=str(error))

    def start(self) -> None:
        """Begin to look for requests."""
        self._done = self._looking.start(LOOK_EVERY)

    async def stop(self) -> None:
        """End it. A request that is being merged is merged; one that is being read waits for the next start."""
        self._ended = True
        self._looking.stop()
        self._store.requests.end()
        if self._looking_up is not None:
            self._looking_up.cancel()
        await self._done

    def problems(self) -> list[str]:
        """Return why requests wait, for `healthz`."""
        waits = self._waits
        if not waits.names:
            return []
        how = f"{len(waits.names)}, for {self._reactor.seconds() - waits.since:.0f} s"
        return [f"requests wait ({how}), because the state cannot be used: {waits.reason}"]

    # One request.

    def _look(self) -> Deferred[None] | None:
        """Handle the requests that are there; the next look is when that is done."""
        if self._reactor.seconds() < self._not_before:
            return None
        names = self._store.requests.waiting()
        if names:
            return self._handle_all(names).addErrback(self._failed)
        self._waits = _Waits()
        return None

    def _failed(self, failure: Any) -> None:
        """Look again after a while. Wide: a fault of Jitsu must not end the looking."""
        self._not_before = self._reactor.seconds() + TRY_AGAIN
        report(self.log, failure=failure)

    @deferred
    async def _handle_all(self, names: Sequence[str]) -> None:
        """Handle requests, one of each sender and then one more of each, until none is there that was not tried."""
        tried: set[str] = set()
        waits: dict[str, str] = {}
        while names:
            ordered = fairly(sorted(names, key=lambda name: name in self._waits.names))
            for name in ordered[: len({guest_of(name) for name in ordered})]:
                if self._ended:
                    return
                tried.add(name)
                guest = guest_of(name)
                if guest and not self._budgets.take(guest, self._reactor.seconds()):
                    continue
                try:
                    await self._running.lock.run(self._handle, name)
                except StoreError as error:
                    waits[name] = str(error)
                except Exception as error:  # noqa: BLE001 -- wide: one request must not stop those after it
                    report(self.log, f"request/{name}")
                    waits[name] = f"unexpected {type(error).__name__}"
            names = [name for name in self._store.requests.waiting() if name not in tried]
        self._wait(waits)

    def _wait(self, waits: Mapping[str, str]) -> None:
        """Try the requests *waits* again after a while: the state could not be used for them, for these reasons."""
        reason = next(iter(waits.values()), "")
        if waits and not self._ended:
            self._not_before = self._reactor.seconds() + TRY_AGAIN
            if reason != self._waits.reason:
                self.log.error("requests wait, because the state cannot be used: {error}", error=reason)
        since = self._waits.since if self._waits.names else self._reactor.seconds()
        self._waits = _Waits(frozenset(waits), since, reason)

    async def _handle(self, name: str) -> None:
        request = await self._store.run(self._store.requests.read, name)
        if request is None or self._running.leaving & {_old_name(change) for change in request.changes.values()}:
            return
        try:
            await self.prepare(request.changes if not request.refused else {})
            change = self._parse(request)
            if UNKNOWN in request.changes:
                request = await self._with_uuid(request)
                change = self._parse(request)
            wrong: ConfigError | None = next(iter((await self.missing(change)).values()), None)
            changes = self._changes(request, change)
            if self._ended:
                return
            if wrong is None:
                await self._store.accept(request, changes, _message(request, change))
        except ConfigError as error:
            wrong = error
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- wide: one request must not stop those after it
            report(self.log, f"request/{name}")
            wrong = ConfigError(f"unexpected {type(error).__name__}: please report it")
        if wrong is not None:
            self.log.warn("request/{name} of {author} is rejected: {error}", name=name, author=request.author,
                          error=shortened(str(wrong)))
            await self._store.run(self._store.requests.reject, request, str(wrong))
            return
        self._fleet.store.config.merged(changes)
        await self._running.apply(change)
        self._built.clear()
        self.log.info("request/{name} of {author} is merged: {words}", name=request.name, author=request.author,
                      words="; ".join(change.lines.splitlines()) or "nothing new")

    def _changes(self, request: Request, change: ConfigChange) -> dict[str, str | None]:
        """Return the changes of the state that *request*, which means *change*, makes."""
        vms = {vm.name: vm for vm in (*change.added, *change.changed)}
        changes: dict[str, str | None] = {}
        for uuid, one in request.changes.items():
            was, known = self._fleet.store.config.origin(uuid), self._known(_old_name(one), uuid)
            is_made = known is not None and known.template is not None
            if is_made and not one.files:
                changes[f"{VMS}/{uuid}/{NAME}"] = _old_name(one)  # `Forgetting` removes the VM from the state, at last
                continue
            changes |= vm_changes(uuid, one.was, vm_files(vms[_name(one.files)]) if one.files else {})
            if is_made:
                continue  # the origin of the VM is its template, as before
            is_file = known is not None and not came(was) and bool(one.was)
            origin = f"request/{request.name} of {request.author}{OVER_FILE if is_file else ''}"
            changes[origin_path(uuid)] = origin if one.files else None
        return changes

    # What it means.

    def _parse(self, request: Request) -> ConfigChange:
        """
        Return what *request* means.

        Raises:
            ConfigError: it cannot be merged; the message says why.
        """
        if request.refused:
            raise ConfigError(request.refused)
        change = self.parse(request.changes, request.guest)
        if request.guest and request.guest not in self._fleet.machines:
            message = f"there is no VM {request.guest}, whose own branch this would be; use one without a slash"
            raise ConfigError(message)
        return change

    def parse(self, changes: Mapping[str, Change], guest: str = "") -> ConfigChange:
        """
        Return what *changes* of the state mean; if *guest* is given, they come from that VM's own branch.

        Raises:
            ConfigError: they make no configuration that can be used; the message says why.
        """
        added, changed, removed = [], [], []
        raw: dict[str, RawConfig] = {}
        settings = self._running.settings
        for uuid, change in sorted(changes.items(), key=lambda item: TEMPLATE_FILE not in item[1].files):
            name = _old_name(change)
            known = self._known(name, uuid) if change.was else None
            if guest:
                check_change(guest, name, change)
            of = change.files.get(TEMPLATE_OF, "").strip()
            templates = (one.backend for one in settings.templates if one.name == of)
            check_operators_keys(change, next(templates, settings.backend))
            if not change.files:
                if known is not None:
                    removed.append(name)
                continue
            vm, values = vm_of(uuid, change.files, change.was, settings)
            raw[vm.name] = values
            if TEMPLATE_OF in change.files or TEMPLATE_OF in change.was:
                check_own(change)
            if known is None:
                added.append(vm)
            else:
                vm = _still(known, vm)
                changed.append(vm)
            if isinstance(vm, Template):  # the VMs after it are built by it
                settings = _with_template(settings, vm)
            if guest and known is not None:
                check_result(known, vm, self._zones, is_here)
        for vm in added:
            if vm.name in removed:
                raise ConfigError("is the name of a VM that goes; add it when that is gone", vm.place[0], key=vm.name)
        changed += self._members(changed, {vm.name for vm in changed} | set(removed))
        together = ConfigChange(tuple(added), tuple(changed), tuple(removed))
        if together != ConfigChange():  # the check of 100,000 VMs takes half a second
            self._check_together(together, raw)
            self._running.check(together)
        return together

    def _known(self, name: str, uuid: str) -> VM | None:
        """Return the VM or template of that name and uuid; a VM that was left out may have the name of another."""
        if name not in self._fleet.machines and name not in self._fleet.templates:
            return None
        its_uuid, vm = self._running.named(name)
        return vm if its_uuid in {"", uuid} else None

    def _members(self, changed: Sequence[VM], others: Container[str]) -> list[VM]:
        """Return the VMs that follow the templates among *changed*, with their new settings; not those in *others*."""
        templates = [template for template in changed if isinstance(template, Template)]
        return [
            vm
            for template in (next((one for one in self._prepared if one == each), each) for each in templates)
            for name in self._fleet.members.of(template.name)
            if name not in others
            and self._running.serves(name)
            and (vm := self._rebuilt(name, template)) is not None
        ]

    def _rebuilt(self, name: str, template: Template) -> VM | None:
        """Return the VM *name* as *template* builds it; None if that leaves all of its settings as they are."""
        uuid, vm = self._running.named(name)
        built = self._built.get(name)
        if built is None or built[0] is not vm or built[1] is not template:
            new = rebuilt(uuid, vm, _with_template(self._running.settings, template))
            built = self._built[name] = vm, template, new
        return built[2]

    async def prepare(self, changes: Mapping[str, Change]) -> None:
        """
        Build, in slices of time, the VMs of those templates that *changes* change, so that `parse` finds them built.

        Raises:
            ConfigError: a template, or a VM of it, cannot be built.
        """
        self._built.clear()
        self._prepared.clear()

        def building() -> Iterator[None]:
            for uuid, change in changes.items():
                name = _old_name(change)
                if TEMPLATE_FILE in change.files and name in self._fleet.templates:
                    template, _ = vm_of(uuid, change.files, change.was, self._running.settings)
                    if isinstance(template, Template):
                        template = attrs.evolve(template, uuid=self._fleet.templates[name].uuid)
                        self._prepared.append(template)
                        for member in self._fleet.members.of(name):
                            if member in self._fleet.machines and self._running.serves(member):
                                self._rebuilt(member, template)
                            yield

        await in_slices(self._reactor, building())

    def _check_together(self, change: ConfigChange, raw: Mapping[str, RawConfig]) -> None:
        """Refuse VMs that are right by themselves, but not beside the other VMs."""
        check_members(change.removed, change.changed, self._fleet.templates, self._fleet.members)
        unique, new = UniquenessCheck(), (*change.added, *change.changed)
        changing = {*change.removed, *(vm.name for vm in change.changed)}
        everybody = [*(vm for vm in self._running.vms if vm.name not in changing), *new]
        for vm in everybody[: -len(new) or None]:
            unique.add(vm, {})
        for vm in new:
            unique.add(vm, raw.get(vm.name) or unread(vm))
        check_needs(everybody, {vm.name: RawValue("", f"{vm.place[0]}") for vm in everybody if vm.needs})

    async def _with_uuid(self, request: Request) -> Request:
        """
        Return *request* with a folder of its own for the new VM in the folder `UNKNOWN`: the uuid at its hypervisor.

        Raises:
            ConfigError: it cannot be found out, or is that of another VM.
        """
        files, folder = request.changes[UNKNOWN].files, f"{VMS}/{UNKNOWN}"
        vm, _ = vm_of(UNKNOWN, files, files, self._running.settings)
        if isinstance(vm, Template):
            return _placed(request, str(vm.uuid))
        if vm.template is not None:
            return _placed(request, uuid_of(vm.name.partition(".")[0], self._fleet.templates[vm.template]))
        backend = self._fleet.inventory.backend_of(vm)
        if backend is None:
            message = f"Jitsu is not connected to {vm.backend} {vm.connect}; name the folder by the VM's uuid there"
            raise ConfigError(message, folder)
        try:
            self._looking_up = backend.look_up(attrs.evolve(vm, uuid=None)).addTimeout(FOUND_WITHIN, self._reactor)
            uuid = await self._looking_up
        except (BackendError, DeferredTimeout, CancelledError) as error:
            reason = str(error) if isinstance(error, BackendError) else f"no answer within {FOUND_WITHIN:g} s"
            raise ConfigError(f"{vm.backend} does not tell the uuid of VM {vm.name}: {reason}", folder) from error
        finally:
            self._looking_up = None
        known = self._fleet.inventory.machine(uuid)
        if known is not None or uuid in request.changes:
            raise ConfigError(f"is VM {known.vm.name if known is not None else uuid} already, by its uuid", folder)
        return _placed(request, uuid)

    async def missing(self, change: ConfigChange) -> dict[str, ConfigError]:
        """Return the uuids of new VMs that their backend does not know, or by another uuid, with what is wrong."""
        found = {}
        end = self._reactor.seconds() + FOUND_WITHIN
        for vm in change.added:
            if isinstance(vm, Template) or vm.template is not None:
                continue  # it is made when the change is applied
            backend = self._fleet.inventory.backend_of(vm)
            left = end - self._reactor.seconds()
            if backend is None or left <= 0 or self._ended:
                continue
            try:
                self._looking_up = backend.look_up(vm).addTimeout(left, self._reactor)
                uuid = await self._looking_up
            except NoSuchVM as error:
                found[str(vm.uuid)] = ConfigError(f"{vm.backend} knows no such VM: {error}", vm.place[0])
                continue
            except (BackendError, DeferredTimeout, CancelledError):
                continue
            finally:
                self._looking_up = None
            if uuid != vm.uuid:
                found[str(vm.uuid)] = ConfigError(f"{vm.backend} has it as {uuid}; name its folder so", vm.place[0])
        return found


def _name(files: Mapping[str, str]) -> str:
    """Return the name of the VM that has these *files*; "" if they do not say it."""
    return files.get(NAME, "").strip()


def _old_name(change: Change) -> str:
    """Return the name of the VM that a change is of: the one that it has had, if it is not new."""
    return _name(change.was or change.files)


def _placed(request: Request, uuid: str) -> Request:
    """Return *request* with its folder `UNKNOWN` named by *uuid*."""
    changes = {uuid if one == UNKNOWN else one: change for one, change in request.changes.items()}
    return attrs.evolve(request, changes=changes)


def _still(old: VM, new: VM) -> VM:
    """
    Return *new* with the uuid of *old*, the same VM.

    Raises:
        ConfigError: one of the keys `FIXED` differs.
    """
    new = attrs.evolve(new, uuid=old.uuid)
    for key in FIXED:
        if getattr(old, key) != getattr(new, key):
            message = "stays as it is: remove the VM, and add it anew in a folder of its own"
            raise ConfigError(message, new.place[0], key=key)
    return new


def _with_template(settings: Settings, template: Template) -> Settings:
    """Return *settings* with *template*, in place of the one of that name if there is one."""
    others = (one for one in settings.templates if one.name != template.name)
    return attrs.evolve(settings, templates=(*others, template))


def check_own(change: Change) -> None:
    """
    Refuse a *change* of what a VM has from its template alone.

    Raises:
        ConfigError: it changes the VM's DNS names, address or template.
    """
    for path in {*change.files, *change.was} if change.was else ():
        if path.startswith("dns/") and (path in change.files) is not (path in change.was):
            raise ConfigError("its names are made of its own and its template's; change dns of the template", path)
        if path == "ip" and change.files.get(path) != change.was.get(path):
            raise ConfigError("its address is of its template's pool, and stays: the guest has it", path)
        if path == TEMPLATE_OF and change.files.get(path) != change.was.get(path):
            raise ConfigError("stays as it is: forget the VM, and its name makes another one", path)


def _with_needs(found: Sequence[VM], known: set[str]) -> list[VM]:
    """Return those of *found* that have all the VMs that they need, a needed VM before the VM that needs it."""
    names, left = set(known), list(found)
    ready: list[VM] = []
    while True:
        now = [vm for vm in left if names.issuperset(vm.needs)]
        if not now:
            return ready
        ready += now
        names |= {vm.name for vm in now}
        left = [vm for vm in left if vm.name not in names]


def _message(request: Request, change: ConfigChange) -> str:
    """Return the message of the commit that merges *request*."""
    return f"Merge request/{request.name}: {request.subject}\n\n{change.lines}asked for by {request.author}\n"
