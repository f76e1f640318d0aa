"""The VMs' configuration as the state has it, which may be that of an earlier run, or of a request. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from jitsu_tw.store.layout import (
    NAME,
    came,
    difference,
    differs_by_names_only,
    forgotten,
    in_words,
    origin_path,
    removed_vm,
    vm_paths,
    vms,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from jitsu_tw.settings import VM
    from jitsu_tw.store.layout import Stats
    from jitsu_tw.vm.machine import Machine


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
    changes: Mapping[str, str | None]
    message: str
    overruled: tuple[str, ...]


class StoredConfig:
    """
    What the state says of the configuration of VMs.

    It owns, and nobody else writes: the configuration of each uuid in the state that `update` has not written yet, with
    indexes by name and by address, and the requests that VMs are from.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._tree: dict[str, str] = {}
        self._written: frozenset[str] = frozenset()
        self._uuids: dict[str, str] = {}
        self._by_ip: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self._overruled: set[str] = set()

    def start(self, tree: Mapping[str, str], names: Container[str]) -> None:
        """Begin with the state; of the VMs with *names*, the configuration file overrules what requests made."""
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
                    _put(self._tree, path, value)
                    if file == NAME and value is not None:
                        self._uuids[value] = uuid
                    if file == "ip" and value is not None:
                        self._by_ip[value] = uuid

    # Asking.

    @property
    def has_some(self) -> bool:
        """Whether the state has the configuration of a VM that `update` has not written."""
        return bool(self._tree)

    def uuid_of(self, vm: VM, names: Container[str]) -> str | None:
        """Return the uuid that the state has for *vm*, renamed since or not; what is in *names* is another VM."""
        if vm.name in self._uuids:
            return self._uuids[vm.name]
        uuid = self._by_ip.get(" ".join(map(str, vm.ip)), "")
        if not uuid:
            return None
        files = vms(self._tree, {uuid}).get(uuid, {})
        is_it = files.get(NAME) not in names and differs_by_names_only(files, vm)
        return uuid if is_it else None

    def removed(self, running: Mapping[str, Stats]) -> list[VM]:
        """Return settings for the VMs *running*, by uuid, which are not in the configuration any more."""
        return [removed_vm(uuid, files, running[uuid]) for uuid, files in vms(self._tree, running).items()]

    def origin(self, machine: Machine) -> str | None:
        """Return the request that *machine* is from as it is now; None if it is as the configuration file says."""
        return self._origins.get(machine.uuid) if machine.uuid not in self._overruled else None

    # Changing.

    def update(self, machines: Iterable[Machine]) -> Update:
        """Return the commit that writes the configuration of *machines* that were found since the last one."""
        found = {
            machine.uuid: machine.vm
            for machine in machines
            if machine.uuid and machine.uuid not in self._written and not machine.vm.removed
        }
        wanted: dict[str, str] = {}
        for uuid, vm in found.items():
            wanted |= vm_paths(uuid, vm)
        overruled = self._overruled & found.keys()
        changes = difference(self._tree, wanted, found)
        del wanted  # of a hundred thousand VMs, that is a lot
        changes.update({origin_path(uuid): None for uuid in overruled})
        touched = {_uuid(path) for path in changes}
        known = {_uuid(path) for path in self._tree}
        files = {str(found[uuid].place[0]) for uuid in touched}
        message = (
            f"From {' and '.join(sorted(files))}\n\n"
            + in_words("added", [found[uuid].name for uuid in touched - known])
            + in_words("changed", [found[uuid].name for uuid in touched & known])
        )
        return Update(frozenset(found), changes, message, tuple(sorted(found[uuid].name for uuid in overruled)))

    def updated(self, update: Update) -> None:
        """Note that *update* has been committed: of its VMs, the state says what the configuration says."""
        found = update.found
        self.merged({origin_path(uuid): None for uuid in self._overruled & found})
        self._written |= found
        self._tree = {path: value for path, value in self._tree.items() if _uuid(path) not in found}
        self._uuids = {name: uuid for name, uuid in self._uuids.items() if uuid not in found}
        self._by_ip = {ip: uuid for ip, uuid in self._by_ip.items() if uuid not in found}

    def forget_others(self, kept: Iterable[str]) -> tuple[dict[str, str | None], str]:
        """
        Forget the configuration of all VMs but those with the uuids *kept*, and those that a request has brought.

        Returns:
            the changes to the state, and the message of their commit.
        """
        stay = {*kept, *(uuid for uuid, origin in self._origins.items() if came(origin))}
        changes, names = forgotten(self._tree, stay)
        changes |= {origin_path(uuid): None for uuid in names if self._origins.pop(uuid, None) is not None}
        self._tree = {path: value for path, value in self._tree.items() if _uuid(path) not in names}
        return changes, f"Not in the configuration any more\n\n{in_words('removed', names.values())}"


def _put(known: dict[str, str], key: str, value: str | None) -> None:
    """Set *key* of *known* to *value*; None removes it."""
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value


def _uuid(path: str) -> str:
    """Return the uuid of the VM that *path* is of."""
    return path.split("/", 3)[2]
