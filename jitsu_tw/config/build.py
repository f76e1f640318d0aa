"""
From what was said in a YAML file, on a command line and as pairs to `Settings` and the zones that go with them.

Everything is text until `KEYS` and `VM_KEYS` say what it means, wherever it came from: a file and a command line are
read by the same rules. Every error names the file, the line and the key, and what would be right; all mistakes of a
file are found in one run, but for what depends on values that are wrong themselves. Nothing is started.
"""

from __future__ import annotations

import stat
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import attrs

from jitsu_tw.backends import backend_class
from jitsu_tw.config.schema import CLUSTER_KEYS, HOST_KEYS, KEYS, SHARED, VM_KEYS, XEN_KEYS, near, require
from jitsu_tw.config.source import (
    COMMAND_LINE,
    File,
    RawConfig,
    RawValue,
    read_file,
    read_octets,
    read_pairs,
    read_text,
)
from jitsu_tw.dns import tsig
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import ROOT, parent, to_text
from jitsu_tw.dns.zone import Zone, finish
from jitsu_tw.errors import ConfigError, Mistakes, ZoneError
from jitsu_tw.settings import HOSTS, VM, Boot, Cluster, Host, Mode, OnHostLoss, Settings
from jitsu_tw.xen import XenGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from jitsu_tw.config.schema import Key
    from jitsu_tw.networks import Address

#: The file that is looked for beside the first zone.
FILE: Final = "jitsu.yaml"

#: Characters of a token: fewer can be guessed.
SHORTEST_TOKEN: Final = 16

#: libvirt's name for the hypervisor of this machine.
CONNECT: Final = {"libvirt": "qemu:///system"}

#: Any of the hosts.
ANY: Final = "any"

#: Seconds that a VM whose address may not be kept at all (a TTL of 0) is kept after a use, if nobody says otherwise.
LEAST_IDLE: Final = 10.0

#: What holds where nothing is said.
_DEFAULTS: Final = Settings()


def load(
    options: Mapping[str, str | Sequence[str]], pairs: Sequence[str] = (), path: Path | None = None
) -> tuple[Settings, Zones]:
    """
    Return what a command line and the files that it leads to say.

    Args:
        options: long names of options and their values; they beat the file.
        pairs: positional VMs: ``dns=…,ip=…,name=…``.
        path: the YAML file; without one, `FILE` beside the first zone is read if it is there, or, where neither zones
            nor VMs are given, in this directory.

    Raises:
        ConfigError: the place, what is wrong there, and what would be right; of the first `Mistakes.MOST` mistakes.
    """
    given: RawConfig = {
        key: [RawValue(text, COMMAND_LINE) for text in ([value] if isinstance(value, str) else value)]
        for key, value in options.items()
    }
    if path is None and (given.get("zones") or not pairs):
        beside = Path(given["zones"][0].text).with_name(FILE) if given.get("zones") else Path(FILE)
        path = beside if beside.exists() else None
    file = read_file(path) if path is not None else File({})
    file.top.update(given)
    file.vms = chain(file.vms, map(read_pairs, pairs))
    return _settings(file)


def _values(said: RawConfig, keys: Mapping[str, Key], where: str = "") -> dict[str, Any]:
    """Return the value of each key that was said."""
    values: dict[str, Any] = {}
    mistakes = Mistakes()
    for name, sayings in said.items():
        key, found = keys[name], []
        for one in sayings:
            try:
                value = key.parse(one.text)
            except ValueError as error:
                mistakes.add(one.wrong(f"{where}{name}", str(error)))
                continue
            if key.path:
                value = Path(one.path).parent / value if one.path != COMMAND_LINE else Path(value)
            found.append(value)
        if found:
            values[name] = tuple(found) if key.many else found[0]
    mistakes.end()
    return values


def _settings(file: File) -> tuple[Settings, Zones]:
    mistakes, whole = file.mistakes, False
    with mistakes:
        values, defaults = _top(file)
        served = _served(values.get("bind", _DEFAULTS.bind))
        whole = True
    keep = whole and values.get("persistdb") is not None
    apart, vms = UniquenessCheck(), []
    needs: dict[str, RawValue] = {}
    for said in file.vms:
        with mistakes:
            if not whole:  # what else holds for a VM depends on the top
                _values(said, VM_KEYS, _where(said))
                continue
            vm = _vm(said, defaults, keep=keep)
            apart.add(vm, said)
            if values.get("synjitsu") is None:
                _check_no_synjitsu(vm, said.get("use_synjitsu") or file.top.get("use_synjitsu"), values["hosts"])
            _check_bind(vm, said, served)
            vms.append(vm)
            if vm.needs:
                needs[vm.name] = said["needs"][0]
    del apart  # of 100,000 VMs, that is a lot
    if not whole:
        mistakes.end()
    if not mistakes:
        check_needs(vms, needs)
    settings = Settings(vms=tuple(vms), defaults=defaults, **values)
    if not settings.vms and not settings.zones and not mistakes:
        message = "there is nothing to serve; name a zone file with --zone, or a VM with dns=…,ip=…,name=…"
        raise ConfigError(message)
    with mistakes:
        found = zones(settings)
    mistakes.end()
    return settings, found


def _top(file: File) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of `Settings` but the VMs, and what holds for a VM that does not say otherwise."""
    top, mistakes = file.top, Mistakes()
    values: dict[str, Any] = {}
    with mistakes:
        values = _values(top, KEYS)
    with mistakes:
        values["cluster"] = _cluster(file.cluster) if file.cluster else None
    with mistakes:
        values["hosts"] = _hosts(file.hosts)
    mistakes.end()
    port = values.pop("port", None)
    if port is not None and values.get("forwarder"):
        values["forwarder"] = (values["forwarder"][0], port)
    defaults: dict[str, Any] = {key: values.pop(key) for key in [*SHARED, "delay"] if key in values and key != "ttl"}
    defaults["ttl"] = values.get("ttl", _DEFAULTS.ttl)
    defaults["hosts"] = values["hosts"]
    for check in (_check_keys, _check_secrets, _check_fence, _check_remote, _check_forwarder, _check_listen):
        with mistakes:
            check(values, top)
    with mistakes:
        _check_times(defaults, top, "")
    mistakes.end()
    return values, defaults


def _check_remote(values: Mapping[str, Any], top: RawConfig) -> None:
    """Refuse to share a configuration that is kept nowhere."""
    if "remote" in values and "persistdb" not in values:
        message = "what is shared is kept in the state; say where that is, with persistdb"
        raise top["remote"][0].wrong("remote", message)


def _check_forwarder(values: Mapping[str, Any], top: RawConfig) -> None:
    """Refuse to forward questions to this server itself, which would forward them again, and so on."""
    if not values.get("forwarder"):
        return
    host, port = values["forwarder"]
    bind = values.get("bind", _DEFAULTS.bind)
    here = host in bind or (ip_address(host).is_loopback and any(ip_address(one).is_unspecified for one in bind))
    if here and port == values.get("listen", _DEFAULTS.listen):
        message = f"{host} port {port} is this server itself; name another one, or leave it out"
        raise top["forwarder"][0].wrong("forwarder", message)


def _check_listen(values: Mapping[str, Any], top: RawConfig) -> None:
    """Refuse one port for DNS and for the control endpoint."""
    listen, bind = str(values.get("listen", _DEFAULTS.listen)), values.get("bind", _DEFAULTS.bind)
    for place in values.get("control", ()):
        host, _, port = place.rpartition(":")
        if port == listen and host.strip("[]") in bind:
            key = "listen" if "listen" in top else "control"
            message = f"DNS and control cannot both be at {host} port {port}; choose another for one"
            raise top[key][0].wrong(key, message)


def _check_keys(values: Mapping[str, Any], top: RawConfig) -> None:
    """Refuse names of TSIG keys that are not there, and two keys of one name."""
    try:
        ring = tsig.Keyring(values.get("tsig_keys", ()))
    except ValueError as error:
        raise top["tsig_keys"][0].wrong("tsig_keys", str(error)) from error
    for name in ("allow_transfer", "notify"):
        for said, value in zip(top.get(name, ()), values.get(name, ()), strict=True):
            if value.key is not None and ring.get(value.key) is None:
                raise said.wrong(name, f"{to_text(value.key)} is none of the tsig_keys; add it there")


def _cluster(said: RawConfig) -> Cluster:
    """Return what *said* says of those that we share zones with."""
    first = next(iter(said.values()))[0]
    for key in ("etcd", "node"):
        if key not in said:
            raise first.wrong(f"cluster.{key}", "is missing; a cluster needs the URLs of etcd, and this node's name")
    values = _values(said, CLUSTER_KEYS, "cluster.")
    if ("user" in said) != ("password" in said) or ("cert" in said) != ("key" in said):
        raise first.wrong("cluster", "user and password go together, and so do cert and key; give both or neither")
    if "password" in values:
        one = said["password"][0]
        try:
            values["password"] = read_text(values["password"]).strip()
        except ConfigError as error:
            raise one.wrong("cluster.password", f"{one.text} should be a file with it: {error.message}") from error
    try:
        require("treq", "cluster")
    except ValueError as error:
        raise first.wrong("cluster", str(error)) from error
    return Cluster(**values)


def _hosts(listed: Sequence[RawConfig]) -> tuple[Host, ...]:
    """Return the hosts that are *listed*."""
    found: dict[str, Host] = {}
    for number, said in enumerate(listed):
        where = f"hosts[{number}]."
        first = next(iter(said.values()))[0] if said else RawValue("", COMMAND_LINE)
        if "name" not in said:
            raise first.wrong(f"{where}name", "is missing; every host needs its name")
        values = _values(said, HOST_KEYS, where)
        backend = values.setdefault("backend", "libvirt")
        if values["name"] in {*found, ANY}:
            raise said["name"][0].wrong(f"{where}name", f"{values['name']} is taken already; each needs its own")
        if "connect" not in values and backend != "memory":
            raise first.wrong(f"{where}connect", "is missing; say the hypervisor's URI")
        values.setdefault("connect", values["name"])
        found[values["name"]] = Host(**values)
    return tuple(found.values())


def _check_fence(values: Mapping[str, Any], top: RawConfig) -> None:
    """Refuse to start VMs elsewhere where nobody makes sure that they do not run any more."""
    if values.get("on_host_loss") is OnHostLoss.RESTART and not values.get("fence"):
        message = "without fence, a command that makes sure that a host is dead, a VM might run on two hosts"
        raise top["on_host_loss"][0].wrong("on_host_loss", message)


def vm_from(said: RawConfig, settings: Settings) -> VM:
    """
    Return the VM that *said* describes beside those of *settings*, which are not looked at.

    Raises:
        ConfigError: the place, what is wrong there, and what would be right.
    """
    for key, sayings in said.items():
        if key not in VM_KEYS:
            raise sayings[0].wrong(key, f"no such key{near(key, VM_KEYS)}")
        if len(sayings) > 1 and not VM_KEYS[key].many:
            raise sayings[1].wrong(key, "is there twice; keep one")
    vm = _vm(said, settings.defaults, keep=True)
    if settings.synjitsu is None:
        _check_no_synjitsu(vm, said.get("use_synjitsu"), settings.hosts)
    _check_bind(vm, said, _served(settings.bind))
    return vm


def _where(said: RawConfig) -> str:
    """Return how an error begins that is about the VM that *said* describes."""
    name = said["name"][0].text if "name" in said else ""
    return f"vms: {name}: " if name else "vms: "


def _served(bind: Sequence[str]) -> frozenset[Address]:
    """Return the addresses that Jitsu itself serves at."""
    return frozenset(ip_address(one.partition("%")[0]) for one in bind)


def _check_bind(vm: VM, said: RawConfig, served: frozenset[Address]) -> None:
    """Refuse a VM at one of the addresses that are *served*."""
    for number, address in enumerate(vm.ip):
        if address in served:
            message = f"{address} is what Jitsu serves at (bind); give the VM an address of its own"
            raise said["ip"][min(number, len(said["ip"]) - 1)].wrong(f"vms: {vm.name}: ip", message)


def _check_no_synjitsu(vm: VM, said: Sequence[RawValue] | None, hosts: Sequence[Host]) -> None:
    """Refuse a VM that wants Synjitsu where there is none."""
    if vm.use_synjitsu and said and not any(host.synjitsu for host in hosts if host.name in vm.hosts):
        message = "there is none; say where it listens, with synjitsu at the top, or leave this out"
        raise said[0].wrong(f"vms: {vm.name}: use_synjitsu", message)


def _check_secrets(values: dict[str, Any], top: RawConfig) -> None:
    """Read the token and the secret; refuse a control endpoint for other machines without a token."""
    for key in ("control_token", "synjitsu_secret"):
        if key in values:
            values[key] = _secret(values[key], top[key][0], key)
    if "control_token" not in values and any(one.startswith("ssl:") for one in values.get("control", ())):
        message = "clients that connect there can start and stop VMs; name a file with a secret by control_token"
        raise top["control"][0].wrong("control", message)


def _secret(path: Path, said: RawValue, key: str) -> str:
    """Return the secret in a file; refuse one that is short, or that everybody may read."""
    try:
        secret = read_text(path).strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise said.wrong(key, f"{path} cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise said.wrong(key, f"{path} {error.message}") from error
    if mode & stat.S_IROTH:
        raise said.wrong(key, f"everybody may read {path}; chmod o-r it")
    if len(secret) < SHORTEST_TOKEN:
        message = f"{path} should have {SHORTEST_TOKEN} characters or more; make one with: openssl rand -hex 32"
        raise said.wrong(key, message)
    return secret


def _vm(said: RawConfig, defaults: Mapping[str, Any], *, keep: bool) -> VM:
    """Return the VM that *said* describes; *keep* what was said for the state."""
    first = next(iter(said.values()))[0] if said else RawValue("", COMMAND_LINE)
    where = _where(said)
    values = _vm_values(said, first, where)
    hosts = _check_hosts(values, said, where, defaults.get("hosts", ()))
    if hosts is not None:
        values["backend"] = hosts[0].backend
    backend = values.setdefault("backend", defaults.get("backend", "libvirt"))
    inherited = defaults.get("connect") if backend == defaults.get("backend", "libvirt") else None
    values.setdefault("connect", inherited or CONNECT.get(backend, ""))
    values.setdefault("ttl", defaults["ttl"])
    values.setdefault("mode", defaults.get("mode", Mode.DESTROY))
    values.setdefault("idle", defaults.get("idle", 2.0 * values["ttl"] or LEAST_IDLE))
    for key in ("idle_packets", "evidence", "save_fallback", "min_up", "max_up", "check_every", "stop_timeout",
                "images", "use_synjitsu", "wake_by_packet", "handover"):
        if key in defaults:
            values.setdefault(key, defaults[key])
    if "wait_for_http" in values:
        values.setdefault("wait_for_port", 80)
    if "wait_for_port" not in values and "wait_for_key" not in values:
        values.setdefault("response_delay", defaults.get("delay", 0.1))
    if "images" in values:
        values["images"] = values["images"].absolute()
    paths = {key: (str(values[key].absolute()),) for key in said if keep and VM_KEYS[key].path}
    mistakes = Mistakes()
    for check in (_check_boot, _check_standin, _check_times):
        try:
            check(values, said, where)
        except ConfigError as error:
            mistakes.add(error)
    mistakes.end()
    guest = {key: values.pop(key) for key in XEN_KEYS if key in values}
    if "mac" in guest:
        values["mac"] = guest["mac"] if backend == "libxl" else guest.pop("mac")
    if guest and backend != "libxl":
        key = next(iter(guest))
        raise said[key][0].wrong(f"{where}{key}", "is for the backend libxl only")
    if guest:
        values["xen"] = XenGuest(**guest)
    if values.get("define") and backend == "libvirt":
        _check_definition(values["define"], values["name"], said["define"][0], f"{where}define")
    if hosts is not None:
        values["backend"], values["connect"] = HOSTS, ""
        values["hosts"] = tuple(host.name for host in hosts)
    values["dns"] = tuple(sorted({name.lower() for name in values["dns"]}))  # the state has them in no order
    values["ip"] = tuple(dict.fromkeys(values["ip"]))
    if "faults" in values:
        values["faults"] = frozenset(values["faults"])
    values["place"] = (first.path, first.line)
    values["dns_place"] = (said["dns"][0].path, said["dns"][0].line)
    if keep:
        values["said"] = {key: tuple(one.text for one in sayings) for key, sayings in said.items()} | paths
    return VM(**values)


def _vm_values(said: RawConfig, first: RawValue, where: str) -> dict[str, Any]:
    """Return the value of each key of a VM; those that each VM needs are among them."""
    missing = [key for key in ("dns", "ip", "name") if not said.get(key) or not said[key][0].text]
    if not missing:
        return _values(said, VM_KEYS, where)
    mistakes = Mistakes()
    for key in missing:
        mistakes.add(first.wrong(f"{where}{key}", f"is missing; every VM needs its {key}"))
    with mistakes:
        _values({key: ones for key, ones in said.items() if key not in missing}, VM_KEYS, where)
    mistakes.end()
    return {}


def _check_hosts(
    values: dict[str, Any], said: RawConfig, where: str, hosts: Sequence[Host]
) -> tuple[Host, ...] | None:
    """Return the hosts that a VM may run on; None for one that is none of theirs."""
    if values.keys().isdisjoint(("host", "prefer", "avoid")):
        return None
    named = values.pop("host", None)
    known = {host.name: host for host in hosts}
    for key in ("host", "prefer", "avoid"):
        for one in said.get(key, ()):
            if named is None:
                raise one.wrong(f"{where}{key}", "is for VMs with host; say host: any, or leave this out")
            if one.text not in known and (key, one.text) != ("host", ANY):
                known_names = [*known, ANY] if key == "host" else known
                raise one.wrong(f"{where}{key}", f"there is no host {one.text!r}{near(one.text, known_names)}")
    if named is None:
        return None
    for key in ("backend", "connect"):
        if key in said:
            raise said[key][0].wrong(f"{where}{key}", "is the host's; leave it out where there is host")
    if ANY in named and len(named) > 1:
        raise said["host"][0].wrong(f"{where}host", f"{ANY} is all hosts; say {ANY}, or the others")
    for key in ("prefer", "avoid"):
        for one in said.get(key, ()):
            if ANY not in named and one.text not in named:
                raise one.wrong(f"{where}{key}", f"{one.text} is none of its hosts; add it to host, or leave it out")
            if key == "avoid" and one.text in values.get("prefer", ()):
                raise one.wrong(f"{where}{key}", f"{one.text} is in prefer, too; keep one")
    if ANY not in named:
        return tuple(known[name] for name in dict.fromkeys(named))
    if not hosts:
        raise said["host"][0].wrong(f"{where}host", "there are no hosts; list them at the top, under hosts")
    return tuple(hosts)


def _check_boot(values: Mapping[str, Any], said: RawConfig, where: str) -> None:
    """Refuse an image of the ready guest where there can be none, or where another one would be in its way."""
    if values.get("boot_from") is not Boot.SNAPSHOT:
        return
    if not backend_class(values["backend"]).images:
        raise said["boot_from"][0].wrong(f"{where}boot_from", f"{values['backend']} keeps no images; leave it out")
    if values["mode"] is Mode.SAVE:
        message = "with mode save, a VM starts from what it was when it was stopped; choose one of the two"
        raise said["boot_from"][0].wrong(f"{where}boot_from", message)


def _check_times(values: Mapping[str, Any], said: RawConfig, where: str) -> None:
    """Refuse a VM that must be stopped while it may not be."""
    if 0 < values.get("max_up", 0) < values.get("min_up", 0):
        key = "max_up" if "max_up" in said else "min_up"
        message = f"max_up ({values['max_up']:g} s) is below min_up ({values['min_up']:g} s); change one of them"
        first = said.get(key) or next(iter(said.values()))
        raise first[0].wrong(f"{where}{key}", message)


def _check_standin(values: Mapping[str, Any], said: RawConfig, where: str) -> None:
    """Refuse what cannot be where packets are held until the guest's port answers."""
    if values.get("use_synjitsu"):
        if "wait_for_http" in values:
            message = "no HTTP gets through to a guest that is stood in for; use wait_for_port with use_synjitsu"
            raise said["wait_for_http"][0].wrong(f"{where}wait_for_http", message)
    elif "ports" in values or "wake_udp" in values:
        key = "ports" if "ports" in values else "wake_udp"
        message = "only Synjitsu looks at ports; set use_synjitsu: true, or leave this out"
        raise said[key][0].wrong(f"{where}{key}", message)


def check_needs(vms: Sequence[VM], said: Mapping[str, RawValue]) -> None:
    """Refuse VMs that need one that is not there, or, in the end, themselves."""
    needs = {vm.name: vm.needs for vm in vms}
    done: set[str] = set()
    for start in said:
        way = [(start, iter(needs[start]))]  # from where we began to where we are
        on_way = {start}
        while way:
            name, others = way[-1]
            needed = next(others, None)
            if needed is None:
                done.add(name)
                on_way.remove(name)
                way.pop()
            elif needed not in needs:
                raise said[name].wrong(f"vms: {name}: needs", f"there is no VM {needed!r}{near(needed, needs)}")
            elif needed in on_way:
                names = [one for one, _ in way]
                circle = " needs ".join([*names[names.index(needed) :], needed])
                message = f"goes round in a circle: {circle}; take one of them out"
                raise said[needed].wrong(f"vms: {needed}: needs", message)
            elif needed not in done:
                way.append((needed, iter(needs[needed])))
                on_way.add(needed)


def _check_definition(path: Path, name: str, said: RawValue, where: str) -> None:
    """See to it that a `define` file is one of libvirt's, and of this VM."""
    try:
        root = ElementTree.fromstring(read_octets(path))  # noqa: S314
    except ConfigError as error:
        raise said.wrong(where, f"{path} {error.message}") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: of its encoding
        raise said.wrong(where, f"{path} is not XML: {error}") from error
    found = (root.findtext("name") or "").strip()
    if root.tag != "domain" or found != name:
        raise said.wrong(where, f"{path} should define a domain with the name {name!r}, not {found or root.tag!r}")


class UniquenessCheck:
    """Refuses two VMs with one name, one uuid, one DNS name or one address."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[Any, VM]] = {"name": {}, "uuid": {}, "dns": {}, "ip": {}}

    def add(self, vm: VM, said: RawConfig) -> None:
        """Take one more VM, and what was said of it."""
        mine = {"name": (vm.name,), "uuid": (vm.uuid,) if vm.uuid else (), "dns": vm.dns, "ip": vm.ip}
        for key, values in mine.items():
            owners = self._owners[key]
            for number, value in enumerate(values):
                owner = owners.setdefault(value, vm)
                if owner is not vm:
                    text = to_text(value) if isinstance(value, bytes) else str(value)
                    one = said[key][min(number, len(said[key]) - 1)]
                    whose = "another VM" if key == "name" else f"VM {owner.name}"
                    raise one.wrong(f"vms: {vm.name}: {key}", f"{text} is that of {whose} already; each needs its own")


def zones(settings: Settings) -> Zones:
    """
    Read the zones, or make them up, and put the VMs' names into them.

    Raises:
        ConfigError: a zone file is bad, or a VM's name cannot be in its zone.
    """
    return finish(reading_zones(settings, lambda: settings.vms))


def reading_zones(settings: Settings, vms: Callable[[], tuple[VM, ...]]) -> Generator[None, None, Zones]:
    """Do as `zones` does, with pauses while files are read; *vms* is called behind them."""
    mistakes = Mistakes()
    read = []
    for path in settings.zones:
        with mistakes:
            read.append((yield from Zone.reading(path)))
    settings = attrs.evolve(settings, vms=vms())
    if not settings.zones:
        served = [address for address in map(ip_address, settings.bind) if not address.is_unspecified]
        for apex in _apexes(settings.vms, mistakes):
            with mistakes:
                read.append(Zone.made_up(apex, settings.ttl, served))
    mistakes.end()
    found = Zones(read)
    for vm in settings.vms:
        for name in vm.dns:
            with mistakes:
                try:
                    found.add_vm(name, vm.name, vm.ip, vm.ttl)
                except ZoneError as error:
                    raise ConfigError(error.message, *vm.dns_place, f"vms: {vm.name}: dns") from error
    mistakes.end()
    return found


def _apexes(vms: Sequence[VM], mistakes: Mistakes) -> dict[bytes, None]:
    """
    Return the zones to make up for the VMs' names: those above them, but neither the root nor a top-level domain.

    Of a name right below a top-level domain, the zone is itself.
    """
    found: dict[bytes, None] = {}
    for vm in vms:
        for name in vm.dns:
            apex = parent(name)
            if apex == ROOT or parent(apex) == ROOT:
                apex = name
            with mistakes:
                if parent(apex) == ROOT or apex.startswith(b"\1*"):
                    above = to_text(parent(name))
                    message = f"Jitsu would answer for all of {above!r}; take a longer name, or give a zone file"
                    raise ConfigError(f"{to_text(name)}: {message}", *vm.dns_place, f"vms: {vm.name}: dns")
                found[apex] = None
    return found
