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
from jitsu_tw.config.schema import (
    CLUSTER_KEYS,
    DNSSEC_KEYS,
    HOST_KEYS,
    KEYS,
)
from jitsu_tw.config.source import (
    COMMAND_LINE,
    File,
    RawConfig,
    RawValue,
    read_file,
    read_pairs,
    read_text,
)
from jitsu_tw.config.vms import (
    ANY,
    Builder,
    UniquenessCheck,
    beside,
    check_needs,
    check_times,
    check_uri,
    values_from,
    vm_values,
    where_of,
)
from jitsu_tw.dns import tsig
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import ROOT, parent, to_text
from jitsu_tw.dns.zone import Zone, finish
from jitsu_tw.errors import ConfigError, Mistakes, ZoneError
from jitsu_tw.parsers import require
from jitsu_tw.settings import (
    VM,
    Cluster,
    Dnssec,
    Host,
    OnHostLoss,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence


#: The file that is looked for beside the first zone.
FILE: Final = "jitsu.yaml"

#: Characters of a token: fewer can be guessed.
SHORTEST_TOKEN: Final = 16


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


def _settings(file: File, path: Path | None) -> tuple[Settings, Zones]:
    """Return the settings and zones of *file*, which is at *path*."""
    mistakes, builder = file.mistakes, None
    with mistakes:
        builder = Builder(_top(file), file.top)
    unique, vms = UniquenessCheck(), []
    needs: dict[str, RawValue] = {}
    templates = []
    for raw in file.templates:
        with mistakes:
            if builder is None:
                continue
            template = builder.template(raw)
            unique.add(template, raw)
            templates.append(template)
            if template.needs:
                needs[template.name] = raw["needs"][0]
    for raw in file.vms:
        with mistakes:
            if builder is None:  # what else holds for a VM depends on the top
                vm_values(raw, next(iter(raw.values()))[0], where_of(raw), ("dns", "ip", "name"))
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
                finish(Zone.reading(beside(one, one.text)))
        mistakes.end()
    assert builder is not None
    if not mistakes:
        check_needs([*vms, *templates], needs)
    settings = attrs.evolve(builder.settings, vms=tuple(vms), templates=tuple(templates))
    if not settings.vms and not settings.templates and not settings.zones and not mistakes:
        message = "there is nothing to serve; name a zone file with --zone, or a VM with dns=…,ip=…,name=…"
        raise ConfigError(message, path)
    with mistakes:
        found = zones(settings)
        if settings.dnssec is not None:
            _check_signed(found, settings.dnssec.zones, file.dnssec)
    mistakes.end()
    return settings, found


# The top, and the groups in it.


def _top(file: File) -> Settings:
    """Return the `Settings` without the VMs."""
    raw, mistakes = file.top, Mistakes()
    values: dict[str, Any] = {}
    with mistakes:
        values = values_from(raw, KEYS)
    with mistakes:
        values["cluster"] = _cluster(file.cluster) if file.cluster else None
    with mistakes:
        values["dnssec"] = _dnssec(file.dnssec, raw) if file.dnssec else None
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
        check_uri(settings.backend, raw, "")
    with mistakes:
        check_times(settings, raw, "")
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
    values = values_from(raw, CLUSTER_KEYS, "cluster.")
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


def _dnssec(raw: RawConfig, top: RawConfig) -> Dnssec:
    """Return the group `dnssec`; *top* has the keys of the top."""
    first = next(iter(raw.values()))[0]
    if "keys" not in raw:
        raise first.wrong("dnssec.keys", "is missing; name a directory for the keys, which Jitsu makes")
    if "persistdb" not in top:
        message = "the names of the keys are in the state, so that none is lost unnoticed; name one by persistdb"
        raise first.wrong("dnssec", message)
    values = values_from(raw, DNSSEC_KEYS, "dnssec.")
    try:
        require("jitsu_tw.dns.dnskeys", "dnssec")
    except ValueError as error:
        raise first.wrong("dnssec", str(error)) from error
    return Dnssec(**values)


def _check_signed(zones: Zones, wanted: Sequence[bytes], raw: RawConfig) -> None:
    """Refuse to sign zones that are not served, or that come signed."""
    served = {zone.key: zone for zone in zones}
    for name, one in zip(wanted, raw.get("zones", ()), strict=False):
        zone = served.get(name.lower())
        if zone is None:
            message = f"{to_text(name)} is none of the zones: {', '.join(map(to_text, served))}"
            raise one.wrong("dnssec.zones", message)
        if zone.security is not None:
            message = f"{to_text(name)} comes signed, in {zone.path}; leave it out here, or the signatures out there"
            raise one.wrong("dnssec.zones", message)


def _hosts(listed: Sequence[RawConfig]) -> tuple[Host, ...]:
    """Return the hosts that are *listed*."""
    found: dict[str, Host] = {}
    for number, raw in enumerate(listed):
        where = f"hosts[{number}]."
        first = next(iter(raw.values()))[0] if raw else RawValue("", COMMAND_LINE)
        if "name" not in raw:
            raise first.wrong(f"{where}name", "is missing; every host needs its name")
        values = values_from(raw, HOST_KEYS, where)
        if values["name"] in {*found, ANY}:
            raise raw["name"][0].wrong(f"{where}name", f"{values['name']} is taken already; each needs its own")
        host = Host(**{"connect": values["name"], **values})
        check_uri(host.backend, raw, where)
        if "connect" not in values and BACKENDS[host.backend].uris:
            raise first.wrong(f"{where}connect", "is missing; say the hypervisor's URI")
        found[host.name] = host
    return tuple(found.values())


# The zones.


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
        for apex in _apexes((*settings.vms, *settings.templates), mistakes):
            with mistakes:
                read.append(Zone.made_up(apex, settings.ttl, served))
    mistakes.end()
    found = Zones(read)
    for vm in (*settings.vms, *settings.templates):
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
