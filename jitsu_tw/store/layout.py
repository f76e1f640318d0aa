"""
Where things lie in the state: the tree of the original's Irmin database (DESIGN, section 10). Pure.

::

    jitsu/vm/<uuid>/{ip, stop_mode, response_delay, wait_for_key}
    jitsu/vm/<uuid>/dns/<name>/ttl
    jitsu/vm/<uuid>/config/<key>/<0..n>
    jitsu/stats/<uuid>/{start_ts, stop_ts, total_starts}
    jitsu/stats/<uuid>/dns/<name>/{last_request_ts, total_requests}

`stop_ts` is ours: a VM that was seen to stop after we had started it is not ours any more if somebody else starts it.
Times are seconds since 1970.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.dns.wire import to_text

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from jitsu_tw.settings import VM

#: The message of a commit that changes nothing but statistics.
STATISTICS: Final = "Statistics"


@attrs.define
class NameUse:
    """How often and when a name was asked for."""

    last_request_ts: float = 0.0
    total_requests: int = 0


@attrs.define
class Stats:
    """What is remembered of a VM's past."""

    start_ts: float = 0.0
    stop_ts: float = 0.0
    total_starts: int = 0
    dns: dict[str, NameUse] = attrs.field(factory=dict)

    @property
    def last_request_ts(self) -> float:
        """When any of its names was last asked for; 0 if never."""
        return max((use.last_request_ts for use in self.dns.values()), default=0.0)

    @property
    def total_requests(self) -> int:
        """How often its names were asked for."""
        return sum(use.total_requests for use in self.dns.values())


def stats_paths(uuid: str, stats: Stats) -> dict[str, str]:
    """Return the paths and values of *stats*."""
    base = f"jitsu/stats/{uuid}"
    paths = {
        f"{base}/start_ts": f"{stats.start_ts:.3f}",
        f"{base}/stop_ts": f"{stats.stop_ts:.3f}",
        f"{base}/total_starts": str(stats.total_starts),
    }
    for name, use in stats.dns.items():
        paths[f"{base}/dns/{name}/last_request_ts"] = f"{use.last_request_ts:.3f}"
        paths[f"{base}/dns/{name}/total_requests"] = str(use.total_requests)
    return paths


def read_stats(tree: Mapping[str, str]) -> dict[str, Stats]:
    """Return the statistics in *tree*, by uuid. A value that is no number is passed over."""
    found: dict[str, Stats] = {}
    for path, value in tree.items():
        match path.split("/"):
            case ["jitsu", "stats", uuid, "start_ts" | "stop_ts" | "total_starts" as key]:
                target: Stats | NameUse = found.setdefault(uuid, Stats())
            case ["jitsu", "stats", uuid, "dns", name, "last_request_ts" | "total_requests" as key]:
                target = found.setdefault(uuid, Stats()).dns.setdefault(name, NameUse())
            case _:
                continue
        try:
            setattr(target, key, float(value) if key.endswith("_ts") else int(value))
        except ValueError:
            continue
    return found


def vm_paths(uuid: str, vm: VM) -> dict[str, str]:
    """Return what the configuration says of *vm*, as paths and values."""
    base = f"jitsu/vm/{uuid}"
    paths = {f"{base}/ip": " ".join(map(str, vm.ip)), f"{base}/stop_mode": vm.mode.value}
    if vm.response_delay is not None:
        paths[f"{base}/response_delay"] = f"{vm.response_delay:g}"
    if vm.wait_for_key is not None:
        paths[f"{base}/wait_for_key"] = vm.wait_for_key
    for name in vm.dns:
        paths[f"{base}/dns/{label(name)}/ttl"] = str(vm.ttl)
    for key, values in vm.said.items():
        for number, value in enumerate(values):
            paths[f"{base}/config/{key}/{number}"] = value
    return paths


def label(name: bytes) -> str:
    """Return *name* as a step of a path: its text, which holds no slash."""
    return to_text(name).replace("/", "\\047")


def difference(tree: Mapping[str, str], wanted: Mapping[str, str], uuids: Container[str]) -> dict[str, str | None]:
    """Return the changes that make of *tree* what is *wanted* of the VMs *uuids*, and leave the rest alone."""
    changes: dict[str, str | None] = {path: value for path, value in wanted.items() if tree.get(path) != value}
    for path in tree:
        match path.split("/", 3):
            case ["jitsu", "vm", uuid, _] if uuid in uuids and path not in wanted:
                changes[path] = None
    return changes


def forgotten(tree: Mapping[str, str], kept: Container[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return the changes that remove from *tree* the configuration of all VMs but *kept*, and their names by uuid."""
    changes: dict[str, str | None] = {}
    names: dict[str, str] = {}
    for path, value in tree.items():
        match path.split("/"):
            case ["jitsu", "vm", uuid, *rest] if uuid not in kept:
                changes[f"jitsu/vm/{uuid}"] = None
                names.setdefault(uuid, uuid)
                if rest == ["config", "name", "0"]:
                    names[uuid] = value
    return changes, names
