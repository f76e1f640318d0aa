"""
Control by branch: who pushes changes of the state to ``request/…`` changes the running Jitsu (DESIGN, section 10).

A request is merged if its result is a configuration that could be read from the file, too. It is applied, and its
branch removed; or the branch is put aside as ``rejected/…`` with the reason, and nothing has changed. Where the file
and a request disagree, the request holds until the next start, and then the file.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw.config.build import UniquenessCheck, check_needs, vm_from
from jitsu_tw.config.schema import VM_KEYS
from jitsu_tw.config.source import RawValue
from jitsu_tw.dns.binding import is_here
from jitsu_tw.errors import BackendError, ConfigError, NoSuchVM, StoreError
from jitsu_tw.store.layout import (
    OVER_FILE,
    VMS,
    came,
    difference,
    in_words,
    origin_path,
    sayings,
    vm_paths,
    vms,
)
from jitsu_tw.store.requests import guest_of, in_turn, shortened
from jitsu_tw.sync.permissions import Shares, check_change, check_result
from jitsu_tw.sync.reconfigure import ConfigChange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.config.source import RawConfig
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import VM, Settings
    from jitsu_tw.store.git import GitStore
    from jitsu_tw.store.requests import Change, Request
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: The folder of requests is looked at this often, in seconds. A look costs 20 us; it misses nothing on any file system.
LOOK_EVERY: Final = 0.2

#: After a failure of the state, it is looked at again after so many seconds.
TRY_AGAIN: Final = 5.0

#: In seconds: the backends that have not said within this time that they know the VMs of a request may say so later.
FOUND_WITHIN: Final = 5.0

#: What stays as long as the VM does.
FIXED: Final = ("name", "backend", "connect", "uuid")


@attrs.frozen
class ParsedRequest:
    """
    What a request means.

    Attributes:
        step: the change.
        uuids: of the VMs in it, by name.
    """

    step: ConfigChange
    uuids: Mapping[str, str]


@attrs.frozen
class _Waits:
    """
    Requests for which the state could not be used.

    Attributes:
        names: of the requests; none if the state can be used.
        since: when the first of them could not be taken, in seconds of the reactor.
        reason: the first one's.
    """

    names: frozenset[str] = frozenset()
    since: float = 0.0
    reason: str = ""


class ChangeRequests:
    """
    Looks for requests and carries them out, one after the other.

    Attributes:
        turn: who changes what runs holds this lock.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        store: GitStore,
        fleet: Fleet,
        zones: Zones,
        running: LiveConfig,
        reactor: IReactorTime,
    ) -> None:
        """Take requests from *store*; *running* has the *fleet* and the *zones* that began as *settings*."""
        self._settings, self._store, self._fleet, self._zones, self._running = settings, store, fleet, zones, running
        self._reactor = reactor
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._busy: Deferred[None] | None = None
        self._asking: Deferred[str] | None = None
        self._ended = False
        self._not_before = 0.0
        self._waits = _Waits()
        self._shares = Shares()
        self.turn = DeferredLock()

    # Beginning and end.

    def restore(self, tree: Mapping[str, str]) -> None:
        """Have the VMs, too, that only requests have brought into the state; to be called before anything runs."""
        asked = {uuid: files for uuid, files in vms(tree).items() if came(tree.get(origin_path(uuid)))}
        apart = UniquenessCheck()
        for vm in self._running.vms if asked else ():
            apart.add(vm, {})
        known = {vm.name for vm in self._settings.vms}
        found = []
        for uuid, files in asked.items():
            if files.get("config/name/0") not in known:
                try:
                    vm, said = self._vm(uuid, files, files)
                    apart.add(vm, said)
                    found.append(vm)
                except ConfigError as error:
                    self._left_out(uuid, error)
        for vm in _with_needs(found, known):
            try:
                self._running.restore(vm)
            except ConfigError as error:
                self._left_out(vm.name, error)

    def _left_out(self, what: str, error: ConfigError) -> None:
        self.log.error("{what}: came by a request, but is left out now: {error}", what=what, error=str(error))

    def start(self) -> None:
        """Begin to look."""
        self._looking.start(LOOK_EVERY)

    async def stop(self) -> None:
        """Look no more. What is being merged is merged; what is only being read waits for the next start."""
        self._ended = True
        self._looking.stop()
        self._store.end_requests()
        if self._asking is not None:
            self._asking.cancel()
        if self._busy is not None:
            await self._busy

    def problems(self) -> list[str]:
        """Return why requests wait, for `healthz`."""
        waits = self._waits
        if not waits.names:
            return []
        how = f"{len(waits.names)}, for {self._reactor.seconds() - waits.since:.0f} s"
        return [f"requests wait ({how}), because the state cannot be used: {waits.reason}"]

    # One request.

    def _look(self) -> None:
        if self._busy is None and self._reactor.seconds() >= self._not_before:
            names = self._store.waiting()
            if names:
                busy = Deferred.fromCoroutine(self._take_all(names)).addErrback(self._failed)
                if not busy.called:
                    self._busy = busy.addBoth(self._taken)
            else:
                self._waits = _Waits()

    def _taken(self, _: object) -> None:
        self._busy = None

    def _failed(self, failure: Any) -> None:
        """Look again after a while. Wide: a fault of ours must not end the looking."""
        self._not_before = self._reactor.seconds() + TRY_AGAIN
        self.log.failure("unexpected, please report", failure)

    async def _take_all(self, names: Sequence[str]) -> None:
        """Take requests, one of each sender and then one more of each, until none is there that was not tried."""
        tried: set[str] = set()
        waits: dict[str, str] = {}
        while names:
            turn = in_turn(sorted(names, key=lambda name: name in self._waits.names))
            for name in turn[: len({guest_of(name) for name in turn})]:
                if self._ended:
                    return
                tried.add(name)
                guest = guest_of(name)
                if guest and not self._shares.take(guest, self._reactor.seconds()):
                    continue
                try:
                    await self.turn.run(self._take, name)
                except StoreError as error:
                    waits[name] = str(error)
                except Exception as error:  # noqa: BLE001 -- wide: one request must not stop those after it
                    self.log.failure("request/{name}: unexpected, please report", name=name)
                    waits[name] = f"unexpected {type(error).__name__}"
            names = [name for name in self._store.waiting() if name not in tried]
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

    async def _take(self, name: str) -> None:
        request = await self._store.request(name)
        if request is None or self._running.leaving & {_name(change) for change in request.changes.values()}:
            return
        try:
            understood = self._understand(request)
            wrong: ConfigError | None = next(iter((await self.strangers(understood)).values()), None)
            step = understood.step
            changes = self._changes(request, step, understood.uuids)
            if self._ended:
                return
            if wrong is None:
                await self._store.accept(request, changes, _message(request, step))
        except ConfigError as error:
            wrong = error
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- wide: one request must not stop those after it
            self.log.failure("request/{name}: unexpected, please report", name=name)
            wrong = ConfigError(f"unexpected {type(error).__name__}: please report it")
        if wrong is not None:
            self.log.warn("request/{name} of {author} is rejected: {error}", name=name, author=request.author,
                          error=shortened(str(wrong)))
            await self._store.reject(request, str(wrong))
            return
        self._fleet.stats.merged(changes)
        self._running.apply(step)
        self.log.info("request/{name} of {author} is merged: {words}", name=name, author=request.author,
                      words="; ".join(_message(request, step).splitlines()[2:-1]) or "nothing new")

    def _changes(self, request: Request, step: ConfigChange, uuids: Mapping[str, str]) -> dict[str, str | None]:
        """Return how the state differs from what it shall say."""
        tree: dict[str, str] = {}
        wanted: dict[str, str] = {}
        for vm in (*step.come, *step.become):
            wanted |= vm_paths(uuids[vm.name], vm)
        for uuid, change in request.changes.items():
            tree |= {f"{VMS}/{uuid}/{path}": value for path, value in change.was.items()}
            name = _name(change)
            known = self._known(name, uuid) is not None
            is_file = known and not came(self._fleet.stats.origin(self._fleet.machines[name])) and bool(change.was)
            wanted[origin_path(uuid)] = f"request/{request.name} of {request.author}{OVER_FILE if is_file else ''}"
            if not change.files:
                del wanted[origin_path(uuid)]
                tree[origin_path(uuid)] = ""
        changes = difference(tree, wanted, request.changes.keys())
        return changes | dict.fromkeys(tree.keys() - wanted.keys())

    # What it means.

    def _understand(self, request: Request) -> ParsedRequest:
        """
        Return what *request* means.

        Raises:
            ConfigError: why it cannot be.
        """
        if request.refused:
            raise ConfigError(request.refused)
        understood = self.understand(request.changes, request.guest)
        if request.guest and request.guest not in self._fleet.machines:
            message = f"there is no VM {request.guest}, whose own branch this would be; use one without a slash"
            raise ConfigError(message)
        return understood

    def understand(self, changes: Mapping[str, Change], guest: str = "") -> ParsedRequest:
        """
        Return what *changes* of the state mean, which the VM *guest* wants for itself, if one is named.

        Raises:
            ConfigError: why that cannot be.
        """
        come, become, go, uuids = [], [], [], {}
        saids: dict[str, RawConfig] = {}
        for uuid, change in changes.items():
            name = _name(change)
            uuids[name] = uuid
            known = self._known(name, uuid) if change.was else None
            if guest:
                check_change(guest, name, change)
            if not change.files:
                if known is not None:
                    go.append(name)
                continue
            vm, saids[name] = self._vm(uuid, change.files, change.was)
            if known is None:
                come.append(vm)
            else:
                become.append(_as_it_was(known.vm, vm))
            uuids[vm.name] = uuid
            if guest and known is not None:
                check_result(known.vm, vm, self._zones, is_here)
        for vm in come:
            if vm.name in go:
                raise ConfigError("is the name of a VM that goes; add it when that is gone", vm.place[0], key=vm.name)
        step = ConfigChange(tuple(come), tuple(become), tuple(go))
        self._check_together(step, saids)
        self._running.check(step)
        return ParsedRequest(step, uuids)

    def _known(self, name: str, uuid: str) -> Machine | None:
        """Return the machine of that name, unless it is another one: what was left out shares its name with one."""
        machine = self._fleet.machines.get(name)
        return machine if machine is not None and machine.uuid in {"", uuid} else None

    def _vm(self, uuid: str, files: Mapping[str, str], was: Mapping[str, str]) -> tuple[VM, RawConfig]:
        """Return the VM that the *files* of its folder, which were *was*, describe; and what they say."""
        folder = f"{VMS}/{uuid}"
        said: RawConfig = defaultdict(list)
        try:
            for key, text, path in sayings(files, was):
                said[key].append(RawValue(text, f"{folder}/{path}"))
        except ValueError as error:
            raise ConfigError(str(error), folder) from error
        said = dict(said)
        for key, one in ((key, one) for key, ones in said.items() for one in ones):
            if key in VM_KEYS and VM_KEYS[key].path and not Path(one.text).is_absolute():
                raise one.wrong(key, f"{one.text} should be a whole path, beginning with /")
        if "name" not in said:
            raise ConfigError("is missing: the hypervisor's name for the VM", f"{folder}/config/name/0")
        vm = vm_from(said, self._settings)
        if vm.uuid not in {None, uuid}:
            raise ConfigError(f"is not the name of the folder, {uuid}; leave it out", f"{folder}/config/uuid/0")
        return attrs.evolve(vm, uuid=uuid, place=(folder, None)), said

    def _check_together(self, step: ConfigChange, saids: Mapping[str, RawConfig]) -> None:
        """Refuse what is right by itself, but not beside the other VMs."""
        apart, new = UniquenessCheck(), (*step.come, *step.become)
        changing = {*step.go, *(vm.name for vm in step.become)}
        everybody = [*(vm for vm in self._running.vms if vm.name not in changing), *new]
        for vm in everybody[: -len(new) or None]:
            apart.add(vm, {})
        for vm in new:
            apart.add(vm, saids[vm.name])
        check_needs(everybody, {vm.name: RawValue("", f"{vm.place[0]}") for vm in everybody if vm.needs})

    async def strangers(self, understood: ParsedRequest) -> dict[str, ConfigError]:
        """Return the uuids of VMs that their backend does not know, or under another uuid, with what is wrong."""
        found = {}
        end = self._reactor.seconds() + FOUND_WITHIN
        for vm in understood.step.come:
            asked = understood.uuids[vm.name]
            backend = self._fleet.inventory.backend_of(vm)
            left = end - self._reactor.seconds()
            if backend is None or left <= 0 or self._ended:
                continue
            try:
                self._asking = backend.look_up(vm).addTimeout(left, self._reactor)
                uuid = await self._asking
            except NoSuchVM as error:
                found[asked] = ConfigError(f"{vm.backend} knows no such VM: {error}", vm.place[0])
                continue
            except (BackendError, DeferredTimeout, CancelledError):
                continue
            finally:
                self._asking = None
            if uuid != vm.uuid:
                found[asked] = ConfigError(f"{vm.backend} has it as {uuid}; name its folder so", vm.place[0])
        return found


def _name(change: Change) -> str:
    """Return the name of the VM that a change is of, as it was; the new one if it is new."""
    return (change.was or change.files).get("config/name/0", "").strip()


def _as_it_was(old: VM, new: VM) -> VM:
    """
    Return *new* with what a VM keeps as long as it is there.

    Raises:
        ConfigError: it should become what it cannot.
    """
    new = attrs.evolve(new, uuid=old.uuid)
    for key in FIXED:
        if getattr(old, key) != getattr(new, key):
            message = "stays as it is: remove the VM, and add it anew in a folder of its own"
            raise ConfigError(message, new.place[0], key=key)
    return new


def _with_needs(found: Sequence[VM], known: set[str]) -> list[VM]:
    """Return those of *found* that have all the VMs that they need, those that are needed first."""
    names, left = set(known), list(found)
    ready: list[VM] = []
    while True:
        now = [vm for vm in left if names.issuperset(vm.needs)]
        if not now:
            return ready
        ready += now
        names |= {vm.name for vm in now}
        left = [vm for vm in left if vm.name not in names]


def _message(request: Request, step: ConfigChange) -> str:
    """Return the message of the commit that merges *request*."""
    return (
        f"Merge request/{request.name}: {request.subject}\n\n"
        + in_words("added", [vm.name for vm in step.come])
        + in_words("changed", [vm.name for vm in step.become])
        + in_words("removed", step.go)
        + f"asked for by {request.author}\n"
    )
