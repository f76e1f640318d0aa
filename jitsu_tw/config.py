"""
From a YAML file, a command line and ``key=value`` pairs to `Settings` and the zones that go with them.

Everything is text until `_KEYS` and `_VM_KEYS` say what it means, wherever it came from: a file and a command line are
read by the same rules. Every error names the file, the line and the key, and what would be right. Nothing is started.
"""

from __future__ import annotations

import difflib
import uuid
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import attrs
import yaml

from jitsu_tw.backends import BACKENDS
from jitsu_tw.dns import tsig
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.notify import Secondary
from jitsu_tw.dns.transfer import Rule, split_key
from jitsu_tw.dns.wire import from_text, parent, to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ConfigError, ZoneError
from jitsu_tw.settings import VM, Fault, Mode, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: The file that is looked for beside the first zone.
FILE: Final = "jitsu.yaml"

#: libyaml's, if PyYAML was built with it: ten times as fast, which thousands of VMs notice.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: libvirt's name for the hypervisor of this machine.
CONNECT: Final = {"libvirt": "qemu:///system"}


@attrs.frozen
class Said:
    """One value as somebody wrote it, and where: a file and its line, or the command line (no line)."""

    text: str
    path: str
    line: int | None = None

    def wrong(self, key: str, message: str) -> ConfigError:
        """Return the error that says so."""
        return ConfigError(message, self.path, self.line, key)


COMMAND_LINE: Final = "command line"

#: What was said of one thing (of Jitsu, or of one VM): each key's values.
Sayings = dict[str, list[Said]]


# What values mean. Each takes text and raises ValueError with what would be right.


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        message = f"{text!r} is no number of seconds; write one like 0.5 or 60"
        raise ValueError(message)
    return value


def _whole(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            message = f"{text!r} is no {what}; write a number from {low} to {high}"
            raise ValueError(message)
        return int(text)

    return parse


def _switch(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in values:
        message = f"{text!r} is neither true nor false"
        raise ValueError(message)
    return values[text.lower()]


def _choice(names: Iterable[str]) -> Callable[[str], str]:
    known = sorted(names)

    def parse(text: str) -> str:
        if text not in known:
            message = f"{text!r} is not one of {', '.join(known)}{_near(text, known)}"
            raise ValueError(message)
        return text

    return parse


def _address(text: str) -> Any:
    try:
        return ip_address(text)
    except ValueError:
        message = f"{text!r} is no IP address; write one like 10.0.0.1 or 2001:db8::1"
        raise ValueError(message) from None


def _network(text: str) -> Any:
    try:
        return ip_network(text)
    except ValueError as error:
        message = f"{text!r} is no network ({error}); write one like 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(message) from None


def _octets(text: str) -> bytes:
    return text.encode()


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        message = f"{text!r} is no uuid"
        raise ValueError(message) from None


def _control(text: str) -> str | None:
    if text.lower() in {"", "off", "none", "false", "no"}:
        return None
    if not text.startswith("unix:"):
        host, port = _host_port(text, 8053)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return text


def _host_port(text: str, default: int) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port`` or ``[v6]:port``; the host is an address."""
    host, port = text, str(default)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, port = text.split(":")
    return str(_address("127.0.0.1" if host == "localhost" else host)), _port(port)


def _forwarder(text: str) -> tuple[str, int] | None:
    return None if text in {"", "0.0.0.0", "off", "none"} else _host_port(text, 53)  # noqa: S104


def _secondary(text: str) -> Secondary:
    place, key = split_key(text)
    host, port = _host_port(place, 53)
    return Secondary(host, port, key)


def _not_yet(text: str) -> None:
    if text.lower() not in {"", "0", "false", "no", "off", "none"}:
        message = "this release does not have it yet; leave it out"
        raise ValueError(message)


_port: Final = _whole(1, 65535, "port")
_ttl: Final = _whole(0, 2**31 - 1, "TTL in seconds (RFC 2181, section 8)")


@attrs.frozen
class Key:
    """
    What a key takes.

    Attributes:
        parse: makes a value of text.
        many: it may repeat, or be a list.
        path: it names a file, relative to the file that says so.
    """

    parse: Callable[[str], Any]
    many: bool = False
    path: bool = False


_SHARED: Final = {
    "backend": Key(_choice(BACKENDS)),
    "connect": Key(str),
    "mode": Key(lambda text: Mode(_choice(mode.value for mode in Mode)(text))),
    "ttl": Key(_ttl),
    "idle": Key(_seconds),
    "min_up": Key(_seconds),
    "stop_timeout": Key(_seconds),
}

_KEYS: Final[Mapping[str, Key]] = {
    **_SHARED,
    "zones": Key(str, many=True, path=True),
    "bind": Key(lambda text: str(_address(text)), many=True),
    "listen": Key(_port),
    "control": Key(_control),
    "persistdb": Key(str, path=True),
    "forwarder": Key(_forwarder),
    "port": Key(_port),
    "forward_for": Key(_network, many=True),
    "delay": Key(_seconds),
    "answer_by": Key(_seconds),
    "max_booting": Key(_whole(1, 100_000, "number of VMs")),
    "max_running": Key(_whole(0, 1_000_000, "number of VMs")),
    "summon_from": Key(_network, many=True),
    "starts_per_minute": Key(_whole(0, 1_000_000, "number of starts")),
    "verify_source": Key(_switch),
    "rate_limit": Key(_whole(0, 1_000_000, "number of responses in a second")),
    "rate_slip": Key(_whole(0, 100, "number of responses")),
    "rate_exempt": Key(_network, many=True),
    "nsid": Key(_octets),
    "tsig_keys": Key(tsig.Key.parse, many=True),
    "allow_transfer": Key(Rule.parse, many=True),
    "notify": Key(_secondary, many=True),
    "dry_run": Key(_switch),
    "synjitsu": Key(_not_yet),
}

_VM_KEYS: Final[Mapping[str, Key]] = {
    **_SHARED,
    "name": Key(str),
    "dns": Key(from_text, many=True),
    "ip": Key(_address, many=True),
    "uuid": Key(_uuid),
    "response_delay": Key(_seconds),
    "wait_for_port": Key(_port),
    "define": Key(str, path=True),
    "boot_time": Key(_seconds),
    "faults": Key(lambda text: Fault(_choice(fault.value for fault in Fault)(text)), many=True),
    "use_synjitsu": Key(_not_yet),
    "wait_for_key": Key(_not_yet),
}


def _near(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# Reading.


def load(
    options: Mapping[str, str | Sequence[str]], pairs: Sequence[str] = (), path: Path | None = None
) -> tuple[Settings, Zones]:
    """
    Return what a command line and the files that it leads to say.

    Args:
        options: long names of options and their values; they beat the file.
        pairs: positional VMs: ``dns=…,ip=…,name=…``.
        path: the YAML file; without one, `FILE` beside the first zone is read if it is there.

    Raises:
        ConfigError: the place, what is wrong there, and what would be right.
    """
    given: Sayings = {
        key: [Said(text, COMMAND_LINE) for text in ([value] if isinstance(value, str) else value)]
        for key, value in options.items()
    }
    if path is None and given.get("zones"):
        beside = Path(given["zones"][0].text).with_name(FILE)
        path = beside if beside.exists() else None
    top, vms = _read_file(path) if path is not None else ({}, [])
    top.update(given)
    vms += [_read_pairs(text) for text in pairs]
    return _settings(top, vms)


def _read_file(path: Path) -> tuple[Sayings, list[Sayings]]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not text in UTF-8", path) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        raise ConfigError(f"is not YAML: {error.problem or error.context}", path, line) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", path) from error
    if root is None:
        return {}, []
    top = _mapping(root, path, "")
    _, listed = top.pop("vms", (0, None))
    vms: list[Sayings] = []
    if listed is not None and not _empty(listed):
        if not isinstance(listed, yaml.SequenceNode):
            raise ConfigError('is a list: begin each VM with "- name: …"', path, listed.start_mark.line + 1, "vms")
        nodes, listed.value = listed.value[::-1], []
        while nodes:  # each is let go as soon as it is understood: of 100,000, they are most of our memory
            where = f"vms[{len(vms)}]"
            vms.append(_sayings(_mapping(nodes.pop(), path, where), path, _VM_KEYS, f"{where}."))
    return _sayings(top, path, _KEYS, ""), vms


def _empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _mapping(node: yaml.Node, path: Path, where: str) -> dict[str, tuple[int, yaml.Node]]:
    """Return the keys of *node*, in their order, each with its line and its value; a key twice is an error."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError('should be lines of the form "key: value"', path, node.start_mark.line + 1, where)
    found: dict[str, tuple[int, yaml.Node]] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in found:
            raise ConfigError("is there twice; keep one", path, line, f"{where}.{name}" if where else name)
        found[name] = line, value
    return found


def _sayings(nodes: Mapping[str, tuple[int, yaml.Node]], path: Path, keys: Mapping[str, Key], where: str) -> Sayings:
    said: Sayings = {}
    for name, (at, node) in nodes.items():
        if name not in keys:
            known = keys if where else [*keys, "vms"]
            raise ConfigError(f"no such key{_near(name, known)}", path, at, f"{where}{name}")
        items = node.value if isinstance(node, yaml.SequenceNode) and keys[name].many else [node]
        for item in items:
            line = item.start_mark.line + 1
            if not isinstance(item, yaml.ScalarNode):
                kind = "a list" if isinstance(item, yaml.SequenceNode) else "a group of keys"
                raise ConfigError(f"takes one value, not {kind}", path, line, f"{where}{name}")
            if _empty(item):
                raise ConfigError("has no value; give one or leave the key out", path, at, f"{where}{name}")
            said.setdefault(name, []).append(Said(item.value, str(path), line))
    return said


def _read_pairs(text: str) -> Sayings:
    said: Sayings = {}
    for pair in text.split(","):
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not of the form key=value", COMMAND_LINE, key=text)
        if key not in _VM_KEYS:
            raise ConfigError(f"no such key{_near(key, _VM_KEYS)}", COMMAND_LINE, key=key)
        if key in said and not _VM_KEYS[key].many:
            raise ConfigError("is there twice; keep one", COMMAND_LINE, key=key)
        said.setdefault(key, []).append(Said(value, COMMAND_LINE))
    return said


# Understanding.


def _values(said: Sayings, keys: Mapping[str, Key], where: str = "") -> dict[str, Any]:
    """Return the value of each key that was said."""
    values: dict[str, Any] = {}
    for name, sayings in said.items():
        key, found = keys[name], []
        for one in sayings:
            try:
                value = key.parse(one.text)
            except ValueError as error:
                raise one.wrong(f"{where}{name}", str(error)) from error
            if key.path:
                value = Path(one.path).parent / value if one.path != COMMAND_LINE else Path(value)
            found.append(value)
        values[name] = tuple(found) if key.many else found[0]
    return values


def _settings(top: Sayings, said_vms: list[Sayings]) -> tuple[Settings, Zones]:
    values = _values(top, _KEYS)
    values.pop("synjitsu", None)
    port = values.pop("port", None)
    if port is not None and values.get("forwarder"):
        values["forwarder"] = (values["forwarder"][0], port)
    defaults: dict[str, Any] = {key: values.pop(key) for key in [*_SHARED, "delay"] if key in values and key != "ttl"}
    defaults["ttl"] = values.get("ttl", attrs.fields(Settings).ttl.default)
    _check_keys(values, top)
    keep = values.get("persistdb") is not None
    apart, vms = _Apart(), []
    said_vms.reverse()
    while said_vms:  # each is let go, as its node was
        said = said_vms.pop()
        vms.append(_vm(said, defaults, keep=keep))
        apart.add(vms[-1], said)
    settings = Settings(vms=tuple(vms), **values)
    if not settings.vms and not settings.zones:
        message = "there is nothing to serve; name a zone file with --zone, or a VM with dns=…,ip=…,name=…"
        raise ConfigError(message)
    return settings, zones(settings)


def _check_keys(values: Mapping[str, Any], top: Sayings) -> None:
    """Refuse names of TSIG keys that are not there, and two keys of one name."""
    try:
        ring = tsig.Keyring(values.get("tsig_keys", ()))
    except ValueError as error:
        raise top["tsig_keys"][0].wrong("tsig_keys", str(error)) from error
    for name in ("allow_transfer", "notify"):
        for said, value in zip(top.get(name, ()), values.get(name, ()), strict=True):
            if value.key is not None and ring.get(value.key) is None:
                raise said.wrong(name, f"{to_text(value.key)} is none of the tsig_keys; add it there")


def _vm(said: Sayings, defaults: Mapping[str, Any], *, keep: bool) -> VM:
    """Return the VM that *said* describes; *keep* what was said for the state."""
    first = next(iter(said.values()))[0] if said else Said("", COMMAND_LINE)
    name = said["name"][0].text if "name" in said else ""
    where = f"vms: {name}: " if name else "vms: "
    for key in ("name", "dns", "ip"):
        if not said.get(key) or not said[key][0].text:
            raise first.wrong(f"{where}{key}", f"is missing; every VM needs its {key}")
    values = _values(said, _VM_KEYS, where)
    values.pop("use_synjitsu", None)
    values.pop("wait_for_key", None)
    backend = values.setdefault("backend", defaults.get("backend", "libvirt"))
    inherited = defaults.get("connect") if backend == defaults.get("backend", "libvirt") else None
    values.setdefault("connect", inherited or CONNECT.get(backend, ""))
    values.setdefault("ttl", defaults["ttl"])
    values.setdefault("mode", defaults.get("mode", Mode.DESTROY))
    values.setdefault("idle", defaults.get("idle", 2.0 * values["ttl"]))
    for key in ("min_up", "stop_timeout"):
        if key in defaults:
            values.setdefault(key, defaults[key])
    if "wait_for_port" not in values:
        values.setdefault("response_delay", defaults.get("delay", 0.1))
    if values.get("define"):
        _check_definition(values["define"], values["name"], said["define"][0], f"{where}define")
    values["dns"] = tuple(dict.fromkeys(name.lower() for name in values["dns"]))
    values["ip"] = tuple(dict.fromkeys(values["ip"]))
    values["faults"] = frozenset(values.get("faults", ()))
    values["place"] = (first.path, first.line)
    values["dns_place"] = (said["dns"][0].path, said["dns"][0].line)
    if keep:
        values["said"] = {key: tuple(one.text for one in sayings) for key, sayings in said.items()}
    return VM(**values)


def _check_definition(path: Path, name: str, said: Said, where: str) -> None:
    """See to it that a `define` file is one of libvirt's, and of this VM."""
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314
    except OSError as error:
        raise said.wrong(where, f"{path} cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise said.wrong(where, f"{path} is not XML: {error}") from error
    found = (root.findtext("name") or "").strip()
    if root.tag != "domain" or found != name:
        raise said.wrong(where, f"{path} should define a domain with the name {name!r}, not {found or root.tag!r}")


class _Apart:
    """Refuses two VMs with one name, one uuid, one DNS name or one address."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[Any, str]] = {"name": {}, "uuid": {}, "dns": {}, "ip": {}}

    def add(self, vm: VM, said: Sayings) -> None:
        """Take one more VM, and what was said of it."""
        mine = {"name": (vm.name,), "uuid": (vm.uuid,) if vm.uuid else (), "dns": vm.dns, "ip": vm.ip}
        for key, values in mine.items():
            owners = self._owners[key]
            for number, value in enumerate(values):
                if value in owners:
                    text = to_text(value) if isinstance(value, bytes) else str(value)
                    one = said[key][min(number, len(said[key]) - 1)]
                    whose = "another VM" if key == "name" else f"VM {owners[value]}"
                    raise one.wrong(f"vms: {vm.name}: {key}", f"{text} is that of {whose} already; each needs its own")
                owners[value] = vm.name


def zones(settings: Settings) -> Zones:
    """
    Read the zones, or make them up, and put the VMs' names into them.

    Raises:
        ConfigError: a zone file is bad, or a VM's name cannot be in its zone.
    """
    if settings.zones:
        read = [Zone.read(path) for path in settings.zones]
    else:
        served = [address for address in map(ip_address, settings.bind) if not address.is_unspecified]
        apexes = dict.fromkeys(parent(name) for vm in settings.vms for name in vm.dns)
        read = [Zone.made_up(apex, settings.ttl, served) for apex in apexes]
    found = Zones(read)
    for vm in settings.vms:
        for name in vm.dns:
            try:
                found.add_vm(name, vm.name, vm.ip, vm.ttl)
            except ZoneError as error:
                raise ConfigError(error.message, *vm.dns_place, f"vms: {vm.name}: dns") from error
    return found
