"""
What a VM's own branch, ``request/VM/…``, may change: its VM, by the keys whose row in `schema` says so, within limits.

A guest may use the names and addresses that it has, and those that the operator's `own_dns` and `own_ip` allow. A value
that is removed is checked like one that is set: its default comes in its place. Pure; the time is an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.backends.preset import by_request
from jitsu_tw.config.schema import VM_KEYS
from jitsu_tw.dns.wire import ancestors, parent, to_text
from jitsu_tw.errors import ConfigError
from jitsu_tw.store.layout import sayings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM
    from jitsu_tw.store.requests import Change

#: How many requests of one VM's own branches are taken in a minute; further ones wait.
REQUESTS_PER_MINUTE: Final = 20

#: After how many VMs the budgets that are full again are forgotten.
_MOST_BUDGETS: Final = 1000

_MINUTE: Final = 60.0


def check_change(guest: str, name: str, change: Change) -> None:
    """
    Refuse what the branch of the VM *guest* may not do to the VM *name*, whatever the values mean.

    Raises:
        ConfigError: it is another VM, it comes or goes, or a key is changed that is not for guests.
    """
    if name != guest or not (change.was and change.files):
        raise ConfigError(f"request/{guest}/… may change the VM {guest} only, and neither add nor remove it")
    was, wanted = _values(change.was, change.was), _values(change.files, change.was)
    for key in sorted(was.keys() | wanted.keys()):
        before, after = was.get(key, {}), wanted.get(key, {})
        if list(before.values()) != list(after.values()) and (key not in VM_KEYS or VM_KEYS[key].own is None):
            path = min((after or before).keys())
            raise ConfigError(f"a VM's own branch may not set {key}; ask the operator", path)


def check_operators_keys(change: Change, inherited: str) -> None:
    """
    Refuse what no request may do, and no configuration that others share: to say which programs Jitsu runs.

    Args:
        change: of the files of a VM.
        inherited: the backend of a VM that names none itself.

    Raises:
        ConfigError: a key is changed that only the configuration file may set, or such a variable of commands.
    """
    if not change.files:
        return
    was, wanted = _values(change.was, change.was), _values(change.files, change.was)
    backend = next(iter(wanted.get("backend", {}).values()), inherited)
    for key in sorted(was.keys() | wanted.keys()):
        before, after = list(was.get(key, {}).values()), wanted.get(key, {})
        if before == list(after.values()) or key not in VM_KEYS:
            continue
        path = min((after or was[key]).keys())
        if VM_KEYS[key].operator:
            raise ConfigError(f"a request may not set {key}, which says what Jitsu runs; write it to the file", path)
        names = {text.partition("=")[0].strip() for text in {*before} ^ {*after.values()}} if key == "variables" else ()
        for name in sorted(names):
            if not by_request(backend, name):
                message = f"a request may not set the variable {name} of the backend {backend}"
                raise ConfigError(f"{message}; write it to the file", path)


def _values(files: Mapping[str, str], was: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return what the *files* of a VM's folder, which were *was*, say: by key, the values by their paths."""
    found: dict[str, dict[str, str]] = {}
    try:
        for key, value, path in sayings(files, was):
            of_key = found.setdefault(key, {})
            of_key[f"{path} {len(of_key)}" if path in of_key else path] = value
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return found


def check_result(old: VM, new: VM, zones: Zones, is_here: Callable[[str], bool]) -> None:
    """
    Refuse what a VM's own branch may not make of it: values out of bounds, and names and addresses that are not its.

    Args:
        old: the VM as it is, with what the operator allows.
        new: as it would be.
        zones: what they have is not for guests to take.
        is_here: returns whether this host has an address.

    Raises:
        ConfigError: says which.
    """
    for key, row in VM_KEYS.items():
        if row.own is not None and old.value(key) != (value := new.value(key)):
            _check_limits(key, old.value(key), value, new)
    for address in set(new.ip) - set(old.ip):
        _check_address(address, old, new, is_here)
    for name in set(new.dns) - set(old.dns):
        _check_name(name, old, new, zones)


def _check_limits(key: str, old: Any, value: Any, new: VM) -> None:
    limits = VM_KEYS[key].own
    assert limits is not None
    many = isinstance(value, tuple)
    if many and len(value) > max(limits.number, len(old)):
        raise ConfigError(f"a VM's own branch may set {limits.number} values of it at most", new.place[0], key=key)
    for one in value if many else (value,):
        if isinstance(one, int | float) and not limits.least <= one <= limits.most:
            bounds = f"from {limits.least:.15g} to {limits.most:.15g}"
            message = f"a VM's own branch may not set it to {one:.15g}; write a number {bounds}"
            raise ConfigError(message, new.place[0], key=key)


def _check_address(address: Address, old: VM, new: VM, is_here: Callable[[str], bool]) -> None:
    if not any(address in network for network in old.own_ip):
        allowed = ", ".join(map(str, (*old.ip, *old.own_ip)))
        message = f"this VM's own branch may not take {address}, only {allowed}; the operator allows more by own_ip"
        raise ConfigError(message, new.place[0], key="ip")
    if is_here(str(address)):
        raise ConfigError(f"{address} is an address of Jitsu's own host; take another", new.place[0], key="ip")


def _check_name(name: bytes, old: VM, new: VM, zones: Zones) -> None:
    zone = zones.find(name)
    node = zone.get(name) if zone is not None else None
    if name.startswith(b"\1*") or (node is not None and node.rrsets):
        why = "a wildcard" if name.startswith(b"\1*") else "a name that the zone itself has"
        raise ConfigError(f"a VM's own branch may not take {to_text(name)}, {why}", new.dns_place[0])
    if not any(_covers(allowed, name) for allowed in old.own_dns):
        allowed = ", ".join(map(to_text, (*old.dns, *old.own_dns)))
        taken = f"this VM's own branch may not take {to_text(name)}, only {allowed}"
        raise ConfigError(f"{taken}; the operator allows more by own_dns", new.dns_place[0])


def _covers(allowed: bytes, name: bytes) -> bool:
    """Return whether *allowed* is *name*, or a wildcard above it."""
    allowed = allowed.lower()
    return parent(allowed) in ancestors(parent(name)) if allowed.startswith(b"\1*") else allowed == name


class Budgets:
    """How many requests each VM's own branches have had taken in the last minute."""

    def __init__(self) -> None:
        """Begin with full budgets."""
        self._full_at: dict[str, float] = {}

    def take(self, guest: str, now: float) -> bool:
        """Return whether one more request of *guest* is taken at *now*, in seconds; if so, it is counted."""
        if len(self._full_at) > _MOST_BUDGETS:
            self._full_at = {one: full_at for one, full_at in self._full_at.items() if full_at > now}
        full_at = max(self._full_at.get(guest, now), now) + _MINUTE / REQUESTS_PER_MINUTE
        if full_at - now > _MINUTE:
            return False
        self._full_at[guest] = full_at
        return True
