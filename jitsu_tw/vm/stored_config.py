"""The VMs' configuration as the state has it, which may be that of an earlier run, or of a request. Pure: no I/O."""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING

import attrs

from jitsu_tw.store.layout import (
    MOST_NAMED,
    NAME,
    VMS,
    came,
    differs_by_names_only,
    in_words,
    origin_path,
    removed_vm,
    vm_changes,
    vm_files,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    from jitsu_tw.settings import VM
    from jitsu_tw.store.layout import Stats


@attrs.frozen
class Update:
    """
    A commit that makes of the state what the configuration says.

    Attributes:
        found: the uuids whose configuration it writes.
        changes: the paths and their new values; None for one that goes.
        message: of the commit.
        overruled: the names of VMs that requests had made otherwise.
    """

    found: frozenset[str]
    changes: dict[str, str | None]
    message: str
    overruled: tuple[str, ...]


class Names:
    """
    Names for a commit's message: the first of them in their order, and how many there are.

    Attributes:
        number: of all names.
        first: those that the message has.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.number = 0
        self.first: list[str] = []

    def add(self, name: str) -> None:
        """Add *name*."""
        self.number += 1
        self.first.append(name)
        if len(self.first) > 10 * MOST_NAMED:
            self.first = sorted(self.first)[:MOST_NAMED]

    def in_words(self, what: str) -> str:
        """Return the line of the message."""
        return in_words(what, self.first, self.number)


class Draft:
    """
    An update that is made VM by VM, in slices of time: of 100,000 VMs it takes seconds.

    It owns, and nobody else writes: what it has of each VM. A VM that others change in the state meanwhile is left out
    (`leave`), so that their commit is not undone by this one.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._changes: dict[str, str | None] = {}
        self._found: dict[str, VM] = {}
        self._added, self._changed = Names(), Names()
        self._files: set[str] = set()

    def add(self, uuid: str, vm: VM, was: Mapping[str, str]) -> None:
        """Write the configuration of *vm* over the files that its folder *was*."""
        self._found[uuid] = vm
        changes = vm_changes(uuid, was, vm_files(vm))
        if changes:
            self._changes |= changes
            self._files.add(str(vm.place[0]))
            (self._changed if was else self._added).add(vm.name)

    def leave(self, uuid: str, was: Mapping[str, str]) -> None:
        """Leave the VM with *uuid*, if it was added, to the next update: its folder will not be as it *was*."""
        vm = self._found.pop(uuid, None)
        for path in {**was, **vm_files(vm)} if vm is not None else ():
            self._changes.pop(f"{VMS}/{uuid}/{path}", None)

    def finish(self, overruled: Iterable[str]) -> Update:
        """Return the update, which removes the origins of the uuids *overruled*."""
        over = [uuid for uuid in overruled if uuid in self._found]
        self._changes.update({origin_path(uuid): None for uuid in over})
        message = (
            f"From {' and '.join(sorted(self._files))}\n\n"
            + self._added.in_words("added")
            + self._changed.in_words("changed")
        )
        names = tuple(sorted(self._found[uuid].name for uuid in over))
        return Update(frozenset(self._found), self._changes, message, names)


class StoredConfig:
    """
    What the state says of the configuration of VMs.

    It owns, and nobody else writes: the configuration of each uuid in the state that `update` has not written yet, with
    indexes by name and by address, and the requests that VMs are from.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._files: dict[str, dict[str, str]] = {}
        self._written: set[str] = set()
        self._uuids: dict[str, str] = {}
        self._by_ip: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self._overruled: set[str] = set()
        self._drafts: list[Draft] = []

    def start(self, tree: Mapping[str, str], names: Container[str]) -> None:
        """Begin with the state; of what has these *names*, the configuration file overrules what requests made."""
        self.merged(tree)
        self._overruled = {uuid for name, uuid in self._uuids.items() if name in names and uuid in self._origins}

    def merged(self, changes: Mapping[str, str | None]) -> None:
        """Take *changes* that others have made to the state: no path is above another that it has."""
        for path, value in changes.items():
            match path.split("/", 3):
                case ["jitsu", "origin", uuid]:
                    _put(self._origins, uuid, value)
                    self._overruled.discard(uuid)
                case ["jitsu", "vm", uuid, file] if uuid not in self._written:
                    self._merge_file(uuid, intern(file), value)
                case ["jitsu", "vm", uuid, _] if value is None and path.endswith(f"/{NAME}"):
                    self._written.discard(uuid)  # the VM is removed, and may come again

    def _merge_file(self, uuid: str, file: str, value: str | None) -> None:
        files = self._files.setdefault(uuid, {})
        for draft in self._drafts:
            draft.leave(uuid, files)
        _put(files, file, value)
        if not files:
            del self._files[uuid]
        if file == NAME and value is not None:
            self._uuids[value] = uuid
        if file == "ip" and value is not None:
            self._by_ip[value] = uuid

    # Asking.

    @property
    def has_some(self) -> bool:
        """Whether the state has the configuration of a VM that `update` has not written."""
        return bool(self._files)

    def has(self, uuid: str) -> bool:
        """Return whether the state has the configuration of *uuid*, or what has brought it there."""
        return uuid in self._files or uuid in self._written or uuid in self._origins

    def uuid_of(self, vm: VM, names: Container[str]) -> str | None:
        """Return the uuid that the state has for *vm*, renamed since or not; what is in *names* is another VM."""
        uuid = self._uuids.get(vm.name)
        if uuid is not None and uuid not in self._written:
            return uuid
        uuid = self._by_ip.get(" ".join(map(str, vm.ip)), "")
        files = self._files.get(uuid)
        if files is None:
            return None
        is_it = files.get(NAME) not in names and differs_by_names_only(files, vm)
        return uuid if is_it else None

    def removed(self, running: Mapping[str, Stats]) -> list[VM]:
        """Return settings for the VMs *running*, by uuid, which are not in the configuration any more."""
        return [removed_vm(uuid, self._files[uuid], stats) for uuid, stats in running.items() if uuid in self._files]

    def origin(self, uuid: str) -> str | None:
        """Return the request, or the template, that a VM is from as it is now; None if it is as the file says."""
        return self._origins.get(uuid) if uuid not in self._overruled else None

    # Changing.

    def outdate(self, uuid: str, vm: VM, *, overrule: bool) -> None:
        """Leave *uuid*, which is *vm* in the state, to the next `update`; *overrule* what a request made of it."""
        if uuid in self._written:
            self._written.discard(uuid)
            for file, value in vm_files(vm).items():
                self._merge_file(uuid, intern(file), value)
        if overrule and uuid in self._origins:
            self._overruled.add(uuid)

    def update(self, vms: Iterable[tuple[str, VM]], done: Callable[[Update], object]) -> Iterator[None]:
        """
        Make the commit that writes the configuration of VMs that were found since the last one, and of new templates.

        Args:
            vms: each with its uuid, empty if it has not been found; are looked at while this is iterated over, one in
                each step.
            done: is called with the commit in the last step.
        """
        draft = Draft()
        self._drafts.append(draft)
        try:
            for uuid, vm in vms:
                if uuid and uuid not in self._written and not vm.removed:
                    draft.add(uuid, vm, self._files.get(uuid, {}))
                yield
        finally:
            self._drafts.remove(draft)
        done(draft.finish(self._overruled))

    def forget(self, uuid: str) -> None:
        """Forget all that there is of *uuid*, which is about to be removed from the state."""
        files = self._files.get(uuid, {})
        for draft in self._drafts:
            draft.leave(uuid, files)
        self._drop(uuid)
        self._written.discard(uuid)
        self._overruled.discard(uuid)
        self._origins.pop(uuid, None)

    def _drop(self, uuid: str) -> None:
        """Remove the configuration of *uuid*, and what it is found by."""
        files = self._files.pop(uuid, {})
        for index, key in ((self._uuids, files.get(NAME, "")), (self._by_ip, files.get("ip", ""))):
            if index.get(key) == uuid:
                del index[key]

    def updated(self, update: Update) -> Iterator[None]:
        """Note, step by step, that *update* has been committed: the state has its VMs as the configuration has them."""
        self.merged({origin_path(uuid): None for uuid in self._overruled & update.found})
        for uuid in update.found:
            self._written.add(uuid)
            self._drop(uuid)
            yield

    def forget_others(self, kept: Iterable[str]) -> tuple[dict[str, str | None], str]:
        """
        Forget the configuration of all VMs but those with the uuids *kept*, and those that a request has brought.

        Returns:
            the changes to the state, and the message of their commit.
        """
        stay = {*kept, *(uuid for uuid, origin in self._origins.items() if came(origin))}
        names = {uuid: files.get(NAME, uuid) for uuid, files in self._files.items() if uuid not in stay}
        changes: dict[str, str | None] = {f"{VMS}/{uuid}": None for uuid in names}
        changes |= {origin_path(uuid): None for uuid in names if self._origins.pop(uuid, None) is not None}
        for uuid in names:
            del self._files[uuid]
        return changes, f"Not in the configuration any more\n\n{in_words('removed', names.values())}"


def _put(known: dict[str, str], key: str, value: str | None) -> None:
    """Set *key* of *known* to *value*; None removes it."""
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value
