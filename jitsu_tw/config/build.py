"""
From the raw configuration (a YAML file, a command line, pairs) to `Settings` and the zones that go with them.

Everything is text until the declarations of the keys (`schema`) parse it, wherever it came from: a file and a command
line are read by the same rules. Every error names the file, the line and the key, and what would be right; all mistakes
of a file are found in one run, but for what depends on values that are wrong themselves. Nothing is started.
"""

from __future__ import annotations

import stat
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from jitsu_tw.backends import BACKENDS
from jitsu_tw.config.schema import BACKEND_KEYS, CLUSTER_KEYS, HOST_KEYS, INHERITED, KEYS, STRICT, VM_KEYS
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
from jitsu_tw.keys import keys_of
from jitsu_tw.parsers import near, require
from jitsu_tw.readiness import READINESS, completed
from jitsu_tw.settings import HOSTS, KEEPS_MEMORY, VM, Boot, Cluster, Host, Mode, OnHostLoss, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from jitsu_tw.keys import Key

#: The file that is looked for beside the first zone.
FILE: Final = "jitsu.yaml"

#: Characters of a token: fewer can be guessed.
SHORTEST_TOKEN: Final = 16

#: Any of the hosts.
ANY: Final = "any"

#: Seconds that a VM whose address may not be kept at all (a TTL of 0) is kept after a use, without an `idle`.
LEAST_IDLE: Final = 10.0

#: The keys whose values are in no field of their own of a `VM`.
_OTHERS: Final = VM_KEYS.keys() - INHERITED.keys() - keys_of(VM).keys()

#: The keys of a VM that name a file, and those that are durations.
_PATHS: Final = frozenset(name for name, key in VM_KEYS.items() if key.path)
_DURATIONS: Final = frozenset(name for name, key in VM_KEYS.items() if key.unit)


def load(
    options: Mapping[str, str | Sequence[str]], pairs: Sequence[str] = (), path: Path | None = None
) -> tuple[Settings, Zones]:
    """
    Return the configuration of a command line and of the files that it leads to.

    Args:
        options: long names of options and their values; they beat the file.
        pairs: positional VMs: ``dns=…,ip=…,name=…``.
        path: the YAML file; without one, that of `found` is read.

    Raises:
        ConfigError: the place, what is wrong there, and what would be right; of the first `Mistakes.MOST` mistakes.
    """
    given: RawConfig = {
        key: [RawValue(text, COMMAND_LINE) for text in ([value] if isinstance(value, str) else value)]
        for key, value in options.items()
    }
    if path is None:
        path = found(options, pairs)
    file = read_file(path) if path is not None else File({})
    file.top.update(given)
    file.vms = chain(file.vms, map(read_pairs, pairs))
    return _settings(file, path)


def found(options: Mapping[str, str | Sequence[str]], pairs: Sequence[str] = ()) -> Path | None:
    """
    Return the YAML file of a command line that names none; None if there is none.

    It is `FILE` beside the first zone or, where neither zones nor VMs are given, in this directory.
    """
    zones = options.get("zones")
    if pairs and not zones:
        return None
    beside = Path(zones[0]).with_name(FILE) if zones else Path(FILE)
    return beside if beside.exists() else None


def _values(raw: RawConfig, keys: Mapping[str, Key], where: str = "") -> dict[str, Any]:
    """Return the value of each key of *raw*."""
    values: dict[str, Any] = {}
    mistakes = Mistakes()
    for name, ones in raw.items():
        key, found = keys[name], []
        for one in ones:
            try:
                value = key.parse(one.text)
            except ValueError as error:
                mistakes.add(one.wrong(f"{where}{name}", str(error)))
                continue
            if key.path:
                value = _beside(one, value)
            found.append(value)
        if found:
            values[name] = tuple(found) if key.many else found[0]
    mistakes.end()
    return values


def _beside(one: RawValue, path: str) -> Path:
    """Return the *path* that *one* names: relative to the file that it stands in."""
    return Path(one.path).parent / path if one.path != COMMAND_LINE else Path(path)


def _settings(file: File, path: Path | None) -> tuple[Settings, Zones]:
    """Return the settings and zones of *file*, which is at *path*."""
    mistakes, builder = file.mistakes, None
    with mistakes:
        builder = _Builder(_top(file), file.top)
    unique, vms = UniquenessCheck(), []
    needs: dict[str, RawValue] = {}
    for raw in file.vms:
        with mistakes:
            if builder is None:  # what else holds for a VM depends on the top
                _vm_values(raw, next(iter(raw.values()))[0], _where(raw))
                continue
            vm = builder.vm(raw)
            unique.add(vm, raw)
            vms.append(vm)
            if vm.needs:
                needs[vm.name] = raw["needs"][0]
    del unique  # of 100,000 VMs, that is a lot
    if builder is None:
        for one in file.top.get("zones", ()):
            with mistakes:
                finish(Zone.reading(_beside(one, one.text)))
        mistakes.end()
    assert builder is not None
    if not mistakes:
        check_needs(vms, needs)
    settings = attrs.evolve(builder.settings, vms=tuple(vms))
    if not settings.vms and not settings.zones and not mistakes:
        message = "there is nothing to serve; name a zone file with --zone, or a VM with dns=…,ip=…,name=…"
        raise ConfigError(message, path)
    with mistakes:
        found = zones(settings)
    mistakes.end()
    return settings, found


# The top, and the groups in it.


def _top(file: File) -> Settings:
    """Return the `Settings` without the VMs."""
    raw, mistakes = file.top, Mistakes()
    values: dict[str, Any] = {}
    with mistakes:
        values = _values(raw, KEYS)
    with mistakes:
        values["cluster"] = _cluster(file.cluster) if file.cluster else None
    with mistakes:
        values["hosts"] = _hosts(file.hosts)
    mistakes.end()
    if values.get("forwarder") and "port" in values:
        values["forwarder"] = (values["forwarder"][0], values["port"])
    with mistakes:
        _read_secrets(values, raw)
    settings = Settings(**values)
    for check in (
        _check_keys, _check_token, _check_fence, _check_remote, _check_forwarder, _check_listen, _check_persistdb,
    ):  # fmt: skip
        with mistakes:
            check(settings, raw)
    with mistakes:
        _check_uri(settings.backend, raw, "")
    with mistakes:
        _check_times(settings, raw, "")
    mistakes.end()
    return settings


def _read_secrets(values: dict[str, Any], raw: RawConfig) -> None:
    """Read the token and the secret from the files that *values* name."""
    for key in ("control_token", "synjitsu_secret", "webhook_secret"):
        if key in values:
            values[key] = _secret(values[key], raw[key][0], key)


def _secret(path: Path, raw: RawValue, key: str) -> str:
    """Return the secret in a file; refuse one that is short, or that everybody may read."""
    try:
        secret = read_text(path).strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise raw.wrong(key, f"{path} cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise raw.wrong(key, f"{path} {error.message}") from error
    if mode & stat.S_IROTH:
        raise raw.wrong(key, f"everybody may read {path}; chmod o-r it")
    if len(secret) < SHORTEST_TOKEN:
        message = f"{path} should have {SHORTEST_TOKEN} characters or more; make one with: openssl rand -hex 32"
        raise raw.wrong(key, message)
    return secret


def _check_token(settings: Settings, raw: RawConfig) -> None:
    """Refuse a control endpoint for other machines without a token."""
    if settings.control_token is None and any(one.startswith("ssl:") for one in settings.control):
        message = "clients that connect there can start and stop VMs; name a file with a secret by control_token"
        raise raw["control"][0].wrong("control", message)


def _check_remote(settings: Settings, raw: RawConfig) -> None:
    """Refuse to share a configuration that is kept nowhere."""
    if settings.remote is not None and settings.persistdb is None:
        message = "what is shared is kept in the state; say where that is, with persistdb"
        raise raw["remote"][0].wrong("remote", message)


def _check_forwarder(settings: Settings, raw: RawConfig) -> None:
    """Refuse to forward questions to this server itself, which would forward them again, and so on."""
    if settings.forwarder is None:
        return
    (host, port), bind = settings.forwarder, settings.bind
    here = host in bind or (ip_address(host).is_loopback and any(ip_address(one).is_unspecified for one in bind))
    if here and port == settings.listen:
        message = f"{host} port {port} is this server itself; name another one, or leave it out"
        raise raw["forwarder"][0].wrong("forwarder", message)


def _check_listen(settings: Settings, raw: RawConfig) -> None:
    """Refuse one port for DNS and for the control endpoint."""
    for endpoint in settings.control:
        host, _, port = endpoint.rpartition(":")
        if port == str(settings.listen) and host.strip("[]") in settings.bind:
            key = "listen" if "listen" in raw else "control"
            message = f"DNS and control cannot both be at {host} port {port}; choose another for one"
            raise raw[key][0].wrong(key, message)


def _check_keys(settings: Settings, raw: RawConfig) -> None:
    """Refuse names of TSIG keys that are not there, and two keys of one name."""
    try:
        ring = tsig.Keyring(settings.tsig_keys)
    except ValueError as error:
        raise raw["tsig_keys"][0].wrong("tsig_keys", str(error)) from error
    for name in ("allow_transfer", "notify"):
        for one, value in zip(raw.get(name, ()), getattr(settings, name), strict=True):
            if value.key is not None and ring.get(value.key) is None:
                raise one.wrong(name, f"{to_text(value.key)} is none of the tsig_keys; add it there")


def _check_persistdb(settings: Settings, raw: RawConfig) -> None:
    """Refuse a file where the state is to be."""
    if settings.persistdb is not None and settings.persistdb.is_file():
        message = f"{settings.persistdb} is a file; name a folder, which Jitsu makes"
        raise raw["persistdb"][0].wrong("persistdb", message)


def _check_uri(kind: str, raw: RawConfig, where: str) -> None:
    """Refuse a URI that no hypervisor of this *kind* can have."""
    check = BACKENDS[kind].check_uri
    if check is None:
        return
    for one in raw.get("connect", ()):
        try:
            check(one.text)
        except ValueError as error:
            raise one.wrong(f"{where}connect", str(error)) from error


def _check_fence(settings: Settings, raw: RawConfig) -> None:
    """Refuse to start VMs elsewhere where nothing makes sure that they do not run any more."""
    if settings.on_host_loss is OnHostLoss.RESTART and not settings.fence:
        message = "without fence, a command that makes sure that a host is dead, a VM might run on two hosts"
        raise raw["on_host_loss"][0].wrong("on_host_loss", message)


def _cluster(raw: RawConfig) -> Cluster:
    """Return the group `cluster`."""
    first = next(iter(raw.values()))[0]
    for key in ("etcd", "node"):
        if key not in raw:
            raise first.wrong(f"cluster.{key}", "is missing; a cluster needs the URLs of etcd, and this node's name")
    values = _values(raw, CLUSTER_KEYS, "cluster.")
    if ("user" in raw) != ("password" in raw) or ("cert" in raw) != ("key" in raw):
        raise first.wrong("cluster", "user and password go together, and so do cert and key; give both or neither")
    if "password" in values:
        one = raw["password"][0]
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
    for number, raw in enumerate(listed):
        where = f"hosts[{number}]."
        first = next(iter(raw.values()))[0] if raw else RawValue("", COMMAND_LINE)
        if "name" not in raw:
            raise first.wrong(f"{where}name", "is missing; every host needs its name")
        values = _values(raw, HOST_KEYS, where)
        if values["name"] in {*found, ANY}:
            raise raw["name"][0].wrong(f"{where}name", f"{values['name']} is taken already; each needs its own")
        host = Host(**{"connect": values["name"], **values})
        _check_uri(host.backend, raw, where)
        if "connect" not in values and BACKENDS[host.backend].uris:
            raise first.wrong(f"{where}connect", "is missing; say the hypervisor's URI")
        found[host.name] = host
    return tuple(found.values())


# A VM.


def vm_from(raw: RawConfig, settings: Settings) -> VM:
    """
    Return the VM that *raw* describes beside those of *settings*, which are not looked at.

    Raises:
        ConfigError: the place, what is wrong there, and what would be right.
    """
    for key, ones in raw.items():
        if key not in VM_KEYS:
            raise ones[0].wrong(key, f"no such key{near(key, VM_KEYS)}")
        if len(ones) > 1 and not VM_KEYS[key].many:
            raise ones[1].wrong(key, "is there twice; keep one")
    return _Builder(settings, {}, keep=True).vm(raw)


def _where(raw: RawConfig) -> str:
    """Return how an error begins that is about the VM that *raw* describes."""
    name = raw["name"][0].text if "name" in raw else ""
    return f"vms: {name}: " if name else "vms: "


class _Builder:
    """
    Builds VMs, which inherit from the top of the configuration.

    Attributes:
        settings: the top.
    """

    def __init__(self, settings: Settings, top: RawConfig, *, keep: bool | None = None) -> None:
        """
        Build below *settings*.

        Args:
            settings: without VMs, or with others.
            top: the raw values of *settings*, for errors.
            keep: keep the raw values of the VMs; by default if there is a state to keep them in.
        """
        self.settings, self._top = settings, top
        self._keep = settings.persistdb is not None if keep is None else keep
        self._inherited = {key: getattr(settings, key) for key in INHERITED}
        self._inherited["images"] = settings.images.absolute()
        self._served = frozenset(ip_address(one.partition("%")[0]) for one in settings.bind)
        self._readiness: dict[tuple[tuple[str, Any], ...], Mapping[str, Any]] = {}

    def vm(self, raw: RawConfig) -> VM:
        """Return the VM that *raw* describes."""
        first = next(iter(raw.values()))[0] if raw else RawValue("", COMMAND_LINE)
        where = _where(raw)
        values = _vm_values(raw, first, where)
        hosts = _check_hosts(values, raw, where, self.settings.hosts)
        kind = hosts[0].backend if hosts else values.get("backend", self.settings.backend)
        vm = self._assembled(values, raw, first, kind, hosts)
        mistakes = Mistakes()
        with mistakes:
            _check_uri(kind, raw, where)
        for check in (
            _check_boot, _check_prepare, _check_standin, _check_times, _check_backend_keys, _check_definition,
        ):  # fmt: skip
            try:
                check(vm, raw, where, kind)
            except ConfigError as error:
                mistakes.add(error)
        mistakes.end()
        self._check_synjitsu(vm, raw)
        self._check_bind(vm, raw)
        return vm

    def _assembled(
        self, values: dict[str, Any], raw: RawConfig, first: RawValue, kind: str, hosts: Sequence[Host] | None
    ) -> VM:
        """Return the VM of these *values*, with what it inherits, on a hypervisor of this *kind*."""
        fields = {**self._inherited, **values}
        for key in _OTHERS & values.keys():
            del fields[key]
        if hosts is not None:
            fields |= {"backend": HOSTS, "connect": "", "hosts": tuple(host.name for host in hosts)}
        elif "connect" not in values:
            inherited = self.settings.connect if kind == self.settings.backend else None
            fields["connect"] = inherited or BACKENDS[kind].connect
        if fields["idle"] is None:
            fields["idle"] = 2.0 * fields["ttl"] or LEAST_IDLE
        if "images" in values:
            fields["images"] = values["images"].absolute()
        fields["dns"] = tuple(sorted({name.lower() for name in values["dns"]}))  # the state has them in no order
        fields["ip"] = tuple(dict.fromkeys(values["ip"]))
        chosen = tuple([(key, values[key]) for key in READINESS if key in values])
        if chosen not in self._readiness:  # VMs that are alike share it
            self._readiness[chosen] = completed(chosen, self.settings.delay)
        fields["readiness"] = self._readiness[chosen]
        declared = BACKENDS[kind].settings
        if declared is not None and (own := {key: values[key] for key in BACKEND_KEYS[kind] if key in values}):
            fields["backend_settings"] = declared(**own)
        if self._keep:
            fields["raw"] = {key: tuple([one.text for one in ones]) for key, ones in raw.items()}
            for key in _PATHS & raw.keys():
                fields["raw"][key] = (str(values[key].absolute()),)
            for key in _DURATIONS & raw.keys():  # the state has seconds, whatever their unit was
                fields["raw"][key] = (f"{values[key]:.15g}",)
        dns = raw["dns"][0]
        fields["place"], fields["dns_place"] = (first.path, first.line), (dns.path, dns.line)
        return VM(**fields)

    def _check_synjitsu(self, vm: VM, raw: RawConfig) -> None:
        """Refuse a VM that wants Synjitsu where there is none."""
        if self.settings.synjitsu is not None or not vm.use_synjitsu:
            return
        ones = raw.get("use_synjitsu") or self._top.get("use_synjitsu")
        if ones and not any(host.synjitsu for host in self.settings.hosts if host.name in vm.hosts):
            message = "there is none; say where it listens, with synjitsu at the top, or leave this out"
            raise ones[0].wrong(f"vms: {vm.name}: use_synjitsu", message)

    def _check_bind(self, vm: VM, raw: RawConfig) -> None:
        """Refuse a VM at one of the addresses that Jitsu itself serves at."""
        for number, address in enumerate(vm.ip):
            if address in self._served:
                message = f"{address} is what Jitsu serves at (bind); give the VM an address of its own"
                raise raw["ip"][min(number, len(raw["ip"]) - 1)].wrong(f"vms: {vm.name}: ip", message)


def _vm_values(raw: RawConfig, first: RawValue, where: str) -> dict[str, Any]:
    """Return the value of each key of a VM; those that each VM needs are among them."""
    missing = [key for key in ("dns", "ip", "name") if not raw.get(key) or not raw[key][0].text]
    if not missing:
        return _values(raw, VM_KEYS, where)
    mistakes = Mistakes()
    for key in missing:
        mistakes.add(first.wrong(f"{where}{key}", f"is missing; every VM needs its {key}"))
    with mistakes:
        _values({key: ones for key, ones in raw.items() if key not in missing}, VM_KEYS, where)
    mistakes.end()
    return {}


def _check_hosts(
    values: Mapping[str, Any], raw: RawConfig, where: str, hosts: Sequence[Host]
) -> tuple[Host, ...] | None:
    """Return the hosts that a VM may run on; None for one that is none of theirs."""
    if values.keys().isdisjoint(("host", "prefer", "avoid")):
        return None
    named: tuple[str, ...] = values.get("host", ())
    known = {host.name: host for host in hosts}
    _check_host_names(raw, where, named, known)
    for key in ("backend", "connect"):
        if key in raw:
            raise raw[key][0].wrong(f"{where}{key}", "is the host's; leave it out where there is host")
    if ANY in named and len(named) > 1:
        raise raw["host"][0].wrong(f"{where}host", f"{ANY} is all hosts; say {ANY}, or the others")
    _check_preferences(values, raw, where, named)
    if ANY not in named:
        return tuple(known[name] for name in dict.fromkeys(named))
    if not hosts:
        raise raw["host"][0].wrong(f"{where}host", "there are no hosts; list them at the top, under hosts")
    return tuple(hosts)


def _check_host_names(raw: RawConfig, where: str, named: Sequence[str], known: Mapping[str, Host]) -> None:
    """Refuse hosts that do not exist, and preferences among them without `host`."""
    for key in ("host", "prefer", "avoid"):
        for one in raw.get(key, ()):
            if not named:
                raise one.wrong(f"{where}{key}", "is for VMs with host; say host: any, or leave this out")
            if one.text not in known and (key, one.text) != ("host", ANY):
                known_names = [*known, ANY] if key == "host" else known
                raise one.wrong(f"{where}{key}", f"there is no host {one.text!r}{near(one.text, known_names)}")


def _check_preferences(values: Mapping[str, Any], raw: RawConfig, where: str, named: Sequence[str]) -> None:
    """Refuse preferences for hosts that the VM may not run on, and that contradict each other."""
    for key in ("prefer", "avoid"):
        for one in raw.get(key, ()):
            if ANY not in named and one.text not in named:
                raise one.wrong(f"{where}{key}", f"{one.text} is none of its hosts; add it to host, or leave it out")
            if key == "avoid" and one.text in values.get("prefer", ()):
                raise one.wrong(f"{where}{key}", f"{one.text} is in prefer, too; keep one")


def _check_boot(vm: VM, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse an image of the ready guest where there can be none, or where another one would be in its way."""
    if vm.boot_from is not Boot.SNAPSHOT:
        return
    if not BACKENDS[kind].images:
        raise raw["boot_from"][0].wrong(f"{where}boot_from", f"{kind} keeps no images; leave it out")
    if vm.mode is Mode.SAVE:
        message = "with mode save, a VM starts from what it was when it was stopped; choose one of the two"
        raise raw["boot_from"][0].wrong(f"{where}boot_from", message)


def _check_prepare(vm: VM, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse to prepare a VM that could not be told from another, that keeps its memory, or boots only with others."""
    if not vm.prepare:
        return
    if not BACKENDS[kind].prepares:
        raise raw["prepare"][0].wrong(f"{where}prepare", f"{kind} cannot prepare VMs; leave it out")
    if vm.mode in KEEPS_MEMORY:
        message = f"with mode {vm.mode.value}, it starts where its last client left it; choose one of the two"
        raise raw["prepare"][0].wrong(f"{where}prepare", message)
    if vm.needs:
        message = "it boots before anybody asks for it, and what it needs would have to run all the time; choose one"
        raise raw["prepare"][0].wrong(f"{where}prepare", message)


def _check_times(settings: VM | Settings, raw: RawConfig, where: str, _kind: str = "") -> None:
    """Refuse a VM that must be stopped while it may not be."""
    if 0 < settings.max_up < settings.min_up:
        key = "max_up" if "max_up" in raw else "min_up"
        message = f"max_up ({settings.max_up:g} s) is below min_up ({settings.min_up:g} s); change one of them"
        first = raw.get(key) or next(iter(raw.values()))
        raise first[0].wrong(f"{where}{key}", message)


def _check_standin(vm: VM, raw: RawConfig, where: str, _kind: str) -> None:
    """Refuse what cannot be where packets are held until the guest's port answers, and what is for that only."""
    if vm.use_synjitsu:
        for key in vm.readiness:
            if why := READINESS[key].no_stand_in:
                raise raw[key][0].wrong(f"{where}{key}", why)
    elif vm.ports or vm.wake_udp:
        key = "ports" if vm.ports else "wake_udp"
        message = "only Synjitsu looks at ports; set use_synjitsu: true, or leave this out"
        raise raw[key][0].wrong(f"{where}{key}", message)


def _check_backend_keys(_vm: VM, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse keys that only VMs of another backend have."""
    for key in raw if not STRICT.keys().isdisjoint(raw) else ():
        if STRICT.get(key, kind) != kind:
            raise raw[key][0].wrong(f"{where}{key}", f"is for the backend {STRICT[key]} only")


def _check_definition(vm: VM, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse a `define` file that does not define this VM, where the backend can tell."""
    check = BACKENDS[kind].check_definition
    if vm.define is None or check is None:
        return
    try:
        check(read_octets(vm.define), vm.name)
    except (ConfigError, ValueError) as error:
        why = error.message if isinstance(error, ConfigError) else error
        raise raw["define"][0].wrong(f"{where}define", f"{vm.define} {why}") from error


# All VMs together.


def check_needs(vms: Sequence[VM], raw: Mapping[str, RawValue]) -> None:
    """Refuse VMs that need one that is not there, or, in the end, themselves; *raw* has their `needs`, by name."""
    needs = {vm.name: vm.needs for vm in vms}
    done: set[str] = set()
    for start in raw:
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
                raise raw[name].wrong(f"vms: {name}: needs", f"there is no VM {needed!r}{near(needed, needs)}")
            elif needed in on_way:
                names = [one for one, _ in way]
                circle = " needs ".join([*names[names.index(needed) :], needed])
                message = f"goes round in a circle: {circle}; take one of them out"
                raise raw[needed].wrong(f"vms: {needed}: needs", message)
            elif needed not in done:
                way.append((needed, iter(needs[needed])))
                on_way.add(needed)


class UniquenessCheck:
    """Refuses two VMs with one name, one uuid, one DNS name or one address."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[Any, VM]] = {"name": {}, "uuid": {}, "dns": {}, "ip": {}}

    def add(self, vm: VM, raw: RawConfig) -> None:
        """Add one more VM, and its raw configuration, for the error."""
        mine = {"name": (vm.name,), "uuid": (vm.uuid,) if vm.uuid else (), "dns": vm.dns, "ip": vm.ip}
        for key, values in mine.items():
            owners = self._owners[key]
            for number, value in enumerate(values):
                owner = owners.setdefault(value, vm)
                if owner is not vm:
                    text = to_text(value) if isinstance(value, bytes) else str(value)
                    one = raw[key][min(number, len(raw[key]) - 1)]
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
                put_name(found, name, vm)
    mistakes.end()
    return found


def put_name(zones: Zones | Zone, name: bytes, vm: VM) -> None:
    """
    Give *name*, of one of the *zones*, to *vm*.

    Raises:
        ConfigError: the zone cannot have it; the error has the place of the VM's names.
    """
    try:
        zones.add_vm(name, vm.name, vm.ip, vm.ttl)
    except ZoneError as error:
        raise ConfigError(error.message, *vm.dns_place, f"vms: {vm.name}: dns") from error


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
