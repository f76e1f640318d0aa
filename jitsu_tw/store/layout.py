"""
The paths of the state: the tree of the original's Irmin database. Pure.

::

    jitsu/vm/<uuid>/{ip, stop_mode, response_delay, wait_for_key, use_synjitsu}
    jitsu/vm/<uuid>/dns/<name>/ttl
    jitsu/vm/<uuid>/config/<key>/<0..n>
    jitsu/origin/<uuid>
    jitsu/stats/<uuid>/{start_ts, call_ts, stop_ts, held_ts, used_ts, total_starts, backend, connect}
    jitsu/stats/<uuid>/dns/<name>/{last_request_ts, total_requests}
    jitsu/uptime
    jitsu/serial/<zone>
    jitsu/dnssec/<zone>

Each value has one path: a key without a file of its own is below ``config``, as in the configuration. A template has a
folder like that of a VM, without ``ip``; a VM that it has made has the template's name in ``config/template/0``, and of
the rest only what it does not inherit. The original has
no `stop_ts`: when Jitsu last saw the VM stop, so that a VM started later by another program is not taken for Jitsu's.
It has no `call_ts`: when the hypervisor's last start call ended; until then, a VM that is seen off may come up yet; and
no `held_ts`: until when the VM's guest holds it; and no `used_ts`: when the VM was used last, in any way, before Jitsu
ended. These are there only if they are not 0. Nor has it ``origin``: the request that a VM is from, if a request was
the last to change it. Times are seconds since 1970. ``backend`` and ``connect`` are the VM's hypervisor. ``uptime`` is
all VMs' (`vm.uptime`). Of a zone, ``serial`` is one later than all that were served (`sync.serials`), and ``dnssec``
has the keys that it is signed with (`sync.signed_zones`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import attrs

from jitsu_tw.dns.wire import ROOT, to_text
from jitsu_tw.settings import VM, Mode

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

#: How the messages of commits begin by which a template makes a VM, and by which one is forgotten.
MADE: Final = "Made by template"
FORGOTTEN: Final = "Forgotten"

#: The message of a commit that changes nothing but statistics.
STATISTICS: Final = "Statistics"

#: The folder that requests may change: it has one folder for each VM.
VMS: Final = "jitsu/vm"

#: The folder of the zones' serials.
SERIALS: Final = "jitsu/serial"

#: The folder of the keys that zones are signed with.
DNSSEC: Final = "jitsu/dnssec"

#: What stands for the root zone in a path: no other zone's name can be that.
_ROOT: Final = "@"

#: In a request, the folder of a new VM whose uuid the hypervisor knows.
UNKNOWN: Final = "00000000-0000-0000-0000-000000000000"

#: The file of a VM's name, in the VM's folder.
NAME: Final = "config/name/0"

#: The file of the name of the template that has made a VM.
TEMPLATE_OF: Final = "config/template/0"

#: The keys of a VM's configuration that have a file of their own.
FILES: Final = {
    "ip": "ip",
    "mode": "stop_mode",
    "response_delay": "response_delay",
    "wait_for_key": "wait_for_key",
    "use_synjitsu": "use_synjitsu",
}

#: The keys whose values are in the folder ``dns``.
_DNS: Final = frozenset({"dns", "ttl"})

#: Seconds for which a VM that was removed from the configuration is kept after its last use, if it had no `idle`.
REMOVED_IDLE: Final = 120.0

#: The end of ``origin`` for a VM that is in the configuration file, too: it is removed when the file no longer has it.
OVER_FILE: Final = ", over the file"

#: The most VMs that a commit's message names.
MOST_NAMED: Final = 20


@attrs.define
class NameUse:
    """How often, and when last, a name was asked for."""

    last_request_ts: float = 0.0
    total_requests: int = 0


@attrs.define
class Stats:
    """The persistent statistics of a VM."""

    start_ts: float = 0.0
    stop_ts: float = 0.0
    total_starts: int = 0
    dns: dict[str, NameUse] = attrs.field(factory=dict)
    backend: str = ""
    connect: str = ""
    call_ts: float = 0.0
    held_ts: float = 0.0
    used_ts: float = 0.0

    @property
    def last_request_ts(self) -> float:
        """When any of its names was last asked for; 0 if never."""
        return max((use.last_request_ts for use in self.dns.values()), default=0.0)

    @property
    def total_requests(self) -> int:
        """How often its names were asked for."""
        return sum(use.total_requests for use in self.dns.values())

    @property
    def last_use_ts(self) -> float:
        """When it was last started, stopped, asked for or used; 0 if that is not known."""
        return max(self.start_ts, self.stop_ts, self.last_request_ts, self.used_ts)

    @property
    def is_ours(self) -> bool:
        """Whether Jitsu has started it, or a client has asked Jitsu for it, since it was last seen down."""
        return max(self.start_ts, self.last_request_ts) > self.stop_ts


def stats_paths(uuid: str, stats: Stats) -> dict[str, str]:
    """Return the paths and values of *stats*."""
    base = f"jitsu/stats/{uuid}"
    paths = {
        f"{base}/start_ts": f"{stats.start_ts:.3f}",
        f"{base}/stop_ts": f"{stats.stop_ts:.3f}",
        f"{base}/total_starts": str(stats.total_starts),
    }
    if stats.call_ts:
        paths[f"{base}/call_ts"] = f"{stats.call_ts:.3f}"
    if stats.held_ts:
        paths[f"{base}/held_ts"] = f"{stats.held_ts:.3f}"
    if stats.used_ts:
        paths[f"{base}/used_ts"] = f"{stats.used_ts:.3f}"
    if stats.backend:
        paths[f"{base}/backend"] = stats.backend
    if stats.connect:
        paths[f"{base}/connect"] = stats.connect
    for name, use in stats.dns.items():
        paths[f"{base}/dns/{name}/last_request_ts"] = f"{use.last_request_ts:.3f}"
        paths[f"{base}/dns/{name}/total_requests"] = str(use.total_requests)
    return paths


def read_stats(tree: Mapping[str, str]) -> dict[str, Stats]:
    """Return the statistics in *tree*, by uuid. A value that is no number is ignored."""
    found: dict[str, Stats] = {}
    for path, value in tree.items():
        match path.split("/"):
            case ["jitsu", "stats", uuid, "backend" | "connect" as key]:
                setattr(found.setdefault(uuid, Stats()), key, value)
                continue
            case ["jitsu", "stats", uuid, "total_starts" as key]:
                target: Stats | NameUse = found.setdefault(uuid, Stats())
            case ["jitsu", "stats", uuid, "start_ts" | "call_ts" | "stop_ts" | "held_ts" | "used_ts" as key]:
                target = found.setdefault(uuid, Stats())
            case ["jitsu", "stats", uuid, "dns", name, "last_request_ts" | "total_requests" as key]:
                target = found.setdefault(uuid, Stats()).dns.setdefault(name, NameUse())
            case _:
                continue
        try:
            setattr(target, key, float(value) if key.endswith("_ts") else int(value))
        except ValueError:
            continue
    return found


def vm_files(vm: VM) -> dict[str, str]:
    """
    Return the configuration of *vm*, or a template: values by their paths below its folder.

    What a VM inherits from its template is not among them.
    """
    own = {"ip": tuple(map(str, vm.ip))} if vm.ip else {}
    if vm.template is None:
        own |= {"mode": (vm.mode.value,), "ttl": (str(vm.ttl),)}
    return files_of({**vm.raw, **own, "dns": tuple(map(label, vm.dns))})


def files_of(values: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return *values* by their paths below a VM's folder: the inverse of `sayings`. Names are as `label` has them."""
    ttl = values.get("ttl", ("",))[0]
    files = {f"dns/{name}/ttl": ttl for name in values.get("dns", ())}
    for key, texts in values.items():
        if key in FILES:
            files[FILES[key]] = " ".join(texts)
        elif key not in _DNS:
            for number, text in enumerate(texts):
                files[f"config/{key}/{number}"] = text
    return files


def in_folder(uuid: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return the *files* of a VM's folder by their paths in the state."""
    return {f"{VMS}/{uuid}/{path}": value for path, value in files.items()}


def vm_changes(uuid: str, was: Mapping[str, str], files: Mapping[str, str]) -> dict[str, str | None]:
    """Return the changes of the state that turn a VM's folder from *was* into *files*."""
    changed = {path: files.get(path) for path in {**was, **files} if was.get(path) != files.get(path)}
    return {f"{VMS}/{uuid}/{path}": value for path, value in changed.items()}


def sayings(files: Mapping[str, str], was: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """
    Yield each key, value and path of the *files* of one VM: the inverse of `vm_files`.

    A VM has one TTL, which is a file of each of its names: a changed file counts, and an empty one says nothing.

    Args:
        files: values by their paths below the VM's folder.
        was: the same before; *files* themselves if nothing has changed.

    Raises:
        ValueError: a path is none of a VM's, or its names have several new TTLs; with the remedy.
    """
    keys = {file: key for key, file in FILES.items()}
    ttls: dict[str, str] = {}
    new: dict[str, str] = {}
    for path in sorted(files, key=_in_order):
        value = files[path].strip()
        match path.split("/"):
            case [file] if file in keys:
                for one in value.split() if file == "ip" else [value]:
                    yield keys[file], one, path
            case ["dns", name, "ttl"]:
                yield "dns", name, path
                if value:
                    ttls[value] = path
                    if files[path] != was.get(path):
                        new[value] = path
            case ["config", key, number] if number.isdecimal() and key not in FILES.keys() | _DNS:
                yield key, value, path
            case ["config", key, _] if key in FILES.keys() | _DNS:
                message = f"{path} is the wrong path; write it to {FILES.get(key, 'dns/NAME/ttl')}, in the VM's folder"
                raise ValueError(message)
            case _:
                raise ValueError(f"{path} is no file of a VM's; a key of the configuration is at config/KEY/0")
    ttls = new or ttls
    if len(ttls) > 1:
        message = f"the names have new TTLs of {' and '.join(sorted(ttls))}; a VM has one, write it to one of them"
        raise ValueError(message)
    for value, path in ttls.items():
        yield "ttl", value, path


def differs_by_names_only(files: Mapping[str, str], vm: VM) -> bool:
    """Return whether *files* of a VM's folder are those of *vm*, except for its name and its DNS names."""

    def rest(known: Mapping[str, str]) -> dict[str, str]:
        return {path: value for path, value in known.items() if not path.startswith(("dns/", "config/name/"))}

    return rest(vm_files(vm)) == rest(files)


def removed_vm(uuid: str, files: Mapping[str, str], stats: Stats) -> VM:
    """
    Return a VM that was removed from the configuration, with what is needed to find it, and to stop it when it is idle.

    Args:
        uuid: at its hypervisor.
        files: its last configuration, by the path below its folder.
        stats: its statistics, with the hypervisor that it was started on.
    """
    try:
        mode = Mode(files.get("stop_mode", ""))
    except ValueError:
        mode = Mode.DESTROY
    try:
        ips = tuple(ip_address(ip) for ip in files.get("ip", "").split())
        idle = float(files.get("config/idle/0", REMOVED_IDLE))
    except ValueError:
        ips, idle = (), REMOVED_IDLE
    name = files.get(NAME, uuid)
    return VM(name=name, dns=(), ip=ips, ttl=0, mode=mode, backend=stats.backend, connect=stats.connect, idle=idle,
              uuid=uuid, removed=True)


def _in_order(path: str) -> tuple[str, int]:
    """Return the key by which paths are sorted, with numbers by value: 10 comes after 9."""
    folder, _, number = path.rpartition("/")
    return (folder, int(number)) if number.isdecimal() else (path, 0)


def origin_path(uuid: str) -> str:
    """Return the path of the request that a VM is from."""
    return f"jitsu/origin/{uuid}"


def made_by(template: str, at: float) -> str:
    """Return the origin of a VM that *template* has made *at* that time, in seconds since 1970."""
    return f"template {template}, {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def made_at(origin: str) -> float | None:
    """Return when the VM with this *origin* was made, in seconds since 1970; None if no template has made it."""
    head, _, at = origin.rpartition(", ")
    try:
        return datetime.fromisoformat(at).timestamp() if head.startswith("template ") else None
    except ValueError:
        return None


def came(origin: str | None) -> bool:
    """Return whether a request or a template has added the VM with this *origin*; requests change others, too."""
    return origin is not None and not origin.endswith(OVER_FILE)


def vms(tree: Mapping[str, str], uuids: Container[str] | None = None) -> dict[str, dict[str, str]]:
    """Return the files of each VM in *tree*, or of *uuids* in it, by uuid and by the path below the VM's folder."""
    found: dict[str, dict[str, str]] = {}
    for path, value in tree.items() if uuids is None or uuids else ():
        match path.split("/", 3):
            case ["jitsu", "vm", uuid, rest] if uuids is None or uuid in uuids:
                found.setdefault(uuid, {})[rest] = value
    return found


def in_words(what: str, names: Iterable[str], number: int = 0) -> str:
    """Return a line of a commit's message that names VMs, the first of *number*; empty if there are none."""
    listed = sorted(names)
    number = max(number, len(listed))
    more = f" and {number - MOST_NAMED} more" if number > MOST_NAMED else ""
    return f"{what}: {', '.join(listed[:MOST_NAMED])}{more}\n" if listed else ""


def zone_label(zone: bytes) -> str:
    """Return the name of *zone*, in lower case, as a part of a path."""
    return quote(to_text(zone), safe="") if zone != ROOT else _ROOT


def label(name: bytes) -> str:
    """Return *name* as a part of a path: its text, with slashes escaped."""
    return to_text(name).replace("/", "\\047")
