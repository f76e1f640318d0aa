"""
From what was said in a YAML file, on a command line and as pairs to `Settings` and the zones that go with them.

Everything is text until `KEYS` and `VM_KEYS` say what it means, wherever it came from: a file and a command line are
read by the same rules. Every error names the file, the line and the key, and what would be right. Nothing is started.
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
from jitsu_tw.dns import tsig
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import parent, to_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ConfigError, ZoneError
from jitsu_tw.sayings import COMMAND_LINE, File, Said, Sayings, read_file, read_pairs
from jitsu_tw.settings import HOSTS, VM, Boot, Cluster, Host, Mode, OnHostLoss, Settings
from jitsu_tw.values import CLUSTER_KEYS, HOST_KEYS, KEYS, SHARED, VM_KEYS, XEN_KEYS, near, require
from jitsu_tw.xen import XenGuest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitsu_tw.values import Key

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
        ConfigError: the place, what is wrong there, and what would be right.
    """
    given: Sayings = {
        key: [Said(text, COMMAND_LINE) for text in ([value] if isinstance(value, str) else value)]
        for key, value in options.items()
    }
    if path is None and (given.get("zones") or not pairs):
        beside = Path(given["zones"][0].text).with_name(FILE) if given.get("zones") else Path(FILE)
        path = beside if beside.exists() else None
    file = read_file(path) if path is not None else File({})
    file.top.update(given)
    file.vms = chain(file.vms, map(read_pairs, pairs))
    return _settings(file)


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


def _settings(file: File) -> tuple[Settings, Zones]:
    top = file.top
    values = _values(top, KEYS)
    port = values.pop("port", None)
    if port is not None and values.get("forwarder"):
        values["forwarder"] = (values["forwarder"][0], port)
    defaults: dict[str, Any] = {key: values.pop(key) for key in [*SHARED, "delay"] if key in values and key != "ttl"}
    defaults["ttl"] = values.get("ttl", attrs.fields(Settings).ttl.default)
    _check_keys(values, top)
    _check_secrets(values, top)
    values["cluster"] = _cluster(file.cluster) if file.cluster else None
    values["hosts"] = defaults["hosts"] = _hosts(file.hosts)
    _check_fence(values, top)
    if "remote" in values and "persistdb" not in values:
        message = "what is shared is kept in the state; say where that is, with persistdb"
        raise top["remote"][0].wrong("remote", message)
    keep = values.get("persistdb") is not None
    apart, vms = Apart(), []
    needs: dict[str, Said] = {}
    for said in file.vms:
        vms.append(_vm(said, defaults, keep=keep))
        apart.add(vms[-1], said)
        if values.get("synjitsu") is None:
            _check_no_synjitsu(vms[-1], said.get("use_synjitsu") or top.get("use_synjitsu"), values["hosts"])
        if vms[-1].needs:
            needs[vms[-1].name] = said["needs"][0]
    del apart  # of 100,000 VMs, that is a lot
    check_needs(vms, needs)
    settings = Settings(vms=tuple(vms), defaults=defaults, **values)
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


def _cluster(said: Sayings) -> Cluster:
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
            values["password"] = values["password"].read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise one.wrong("cluster.password", f"{one.text} should be a file with it: {error}") from error
    try:
        require("treq", "cluster")
    except ValueError as error:
        raise first.wrong("cluster", str(error)) from error
    return Cluster(**values)


def _hosts(listed: Sequence[Sayings]) -> tuple[Host, ...]:
    """Return the hosts that are *listed*."""
    found: dict[str, Host] = {}
    for number, said in enumerate(listed):
        where = f"hosts[{number}]."
        first = next(iter(said.values()))[0] if said else Said("", COMMAND_LINE)
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


def _check_fence(values: Mapping[str, Any], top: Sayings) -> None:
    """Refuse to start VMs elsewhere where nobody makes sure that they do not run any more."""
    if values.get("on_host_loss") is OnHostLoss.RESTART and not values.get("fence"):
        message = "without fence, a command that makes sure that a host is dead, a VM might run on two hosts"
        raise top["on_host_loss"][0].wrong("on_host_loss", message)


def vm_from(said: Sayings, settings: Settings) -> VM:
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
    return vm


def _check_no_synjitsu(vm: VM, said: Sequence[Said] | None, hosts: Sequence[Host]) -> None:
    """Refuse a VM that wants Synjitsu where there is none."""
    if vm.use_synjitsu and said and not any(host.synjitsu for host in hosts if host.name in vm.hosts):
        message = "there is none; say where it listens, with synjitsu at the top, or leave this out"
        raise said[0].wrong(f"vms: {vm.name}: use_synjitsu", message)


def _check_secrets(values: dict[str, Any], top: Sayings) -> None:
    """Read the token and the secret; refuse a control endpoint for other machines without a token."""
    for key in ("control_token", "synjitsu_secret"):
        if key in values:
            values[key] = _secret(values[key], top[key][0], key)
    if "control_token" not in values and any(one.startswith("ssl:") for one in values.get("control", ())):
        message = "whoever gets there can start and stop VMs; name a file with a secret by control_token"
        raise top["control"][0].wrong("control", message)


def _secret(path: Path, said: Said, key: str) -> str:
    """Return the secret in a file; refuse one that is short, or that everybody may read."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise said.wrong(key, f"{path} cannot be read: {error}") from error
    if mode & stat.S_IROTH:
        raise said.wrong(key, f"everybody may read {path}; chmod o-r it")
    if len(secret) < SHORTEST_TOKEN:
        message = f"{path} should have {SHORTEST_TOKEN} characters or more; make one with: openssl rand -hex 32"
        raise said.wrong(key, message)
    return secret


def _vm(said: Sayings, defaults: Mapping[str, Any], *, keep: bool) -> VM:
    """Return the VM that *said* describes; *keep* what was said for the state."""
    first = next(iter(said.values()))[0] if said else Said("", COMMAND_LINE)
    name = said["name"][0].text if "name" in said else ""
    where = f"vms: {name}: " if name else "vms: "
    for key in ("name", "dns", "ip"):
        if not said.get(key) or not said[key][0].text:
            raise first.wrong(f"{where}{key}", f"is missing; every VM needs its {key}")
    values = _values(said, VM_KEYS, where)
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
    if not {"wait_for_port", "wait_for_key"} & values.keys():
        values.setdefault("response_delay", defaults.get("delay", 0.1))
    if "images" in values:
        values["images"] = values["images"].absolute()
    paths = {key: (str(values[key].absolute()),) for key in said if keep and VM_KEYS[key].path}
    _check_boot(values, said, where)
    _check_standin(values, said, where)
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
    values["dns"] = tuple(dict.fromkeys(name.lower() for name in values["dns"]))
    values["ip"] = tuple(dict.fromkeys(values["ip"]))
    if "faults" in values:
        values["faults"] = frozenset(values["faults"])
    values["place"] = (first.path, first.line)
    values["dns_place"] = (said["dns"][0].path, said["dns"][0].line)
    if keep:
        values["said"] = {key: tuple(one.text for one in sayings) for key, sayings in said.items()} | paths
    return VM(**values)


def _check_hosts(
    values: dict[str, Any], said: Sayings, where: str, hosts: Sequence[Host]
) -> tuple[Host, ...] | None:
    """Return the hosts that a VM may run on; None for one that is none of theirs."""
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
    if ANY not in named:
        return tuple(known[name] for name in dict.fromkeys(named))
    if not hosts:
        raise said["host"][0].wrong(f"{where}host", "there are no hosts; list them at the top, under hosts")
    return tuple(hosts)


def _check_boot(values: Mapping[str, Any], said: Sayings, where: str) -> None:
    """Refuse an image of the ready guest where there can be none, or where another one would be in its way."""
    if values.get("boot_from") is not Boot.SNAPSHOT:
        return
    if not backend_class(values["backend"]).images:
        raise said["boot_from"][0].wrong(f"{where}boot_from", f"{values['backend']} keeps no images; leave it out")
    if values["mode"] is Mode.SAVE:
        message = "with mode save, a VM starts from what it was when it was stopped; choose one of the two"
        raise said["boot_from"][0].wrong(f"{where}boot_from", message)


def _check_standin(values: Mapping[str, Any], said: Sayings, where: str) -> None:
    """Refuse what cannot be where packets are held until the guest's port answers."""
    if values.get("use_synjitsu"):
        if "wait_for_http" in values:
            message = "no HTTP gets through to a guest that is stood in for; use wait_for_port with use_synjitsu"
            raise said["wait_for_http"][0].wrong(f"{where}wait_for_http", message)
    elif "ports" in values or "wake_udp" in values:
        key = "ports" if "ports" in values else "wake_udp"
        message = "only Synjitsu looks at ports; set use_synjitsu: true, or leave this out"
        raise said[key][0].wrong(f"{where}{key}", message)


def check_needs(vms: Sequence[VM], said: Mapping[str, Said]) -> None:
    """Refuse VMs that need one that is not there, or, in the end, themselves."""
    needs = {vm.name: vm.needs for vm in vms}
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " needs ".join((*way[way.index(name) :], name))
            raise said[name].wrong(f"vms: {name}: needs", f"goes round in a circle: {circle}; take one of them out")
        if name in done:
            return
        for needed in needs[name]:
            if needed not in needs:
                raise said[name].wrong(f"vms: {name}: needs", f"there is no VM {needed!r}{near(needed, needs)}")
            follow(needed, (*way, name))
        done.add(name)

    for name in said:
        follow(name, ())


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


class Apart:
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
