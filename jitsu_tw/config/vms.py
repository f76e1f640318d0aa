"""
From the raw configuration of VMs and templates to `VM` and `Template`, each by itself and beside the others.

An error names the file, the line and the key, and what would be right.
"""

from __future__ import annotations

import re
import uuid as uuids
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs

from jitsu_tw.backends import BACKENDS
from jitsu_tw.backends.definition import fill, values_of
from jitsu_tw.config.schema import (
    BACKEND_KEYS,
    INHERITED,
    OWN_TEMPLATE_KEYS,
    STRICT,
    TEMPLATE_KEYS,
    VM_KEYS,
)
from jitsu_tw.config.source import COMMAND_LINE, RawConfig, RawValue, read_octets
from jitsu_tw.dns.wire import MAX_NAME, from_text, to_text
from jitsu_tw.errors import ConfigError, Mistakes
from jitsu_tw.keys import keys_of
from jitsu_tw.parsers import name as parse_name
from jitsu_tw.parsers import near
from jitsu_tw.readiness import READINESS, completed
from jitsu_tw.settings import HOSTS, KEEPS_MEMORY, VM, Asks, Boot, Host, Layer, Mode, Settings, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jitsu_tw.keys import Key

#: Any of the hosts.
ANY: Final = "any"

#: Seconds that a VM whose address may not be kept at all (a TTL of 0) is kept after a use, without an `idle`.
LEAST_IDLE: Final = 10.0

#: The key, in the state alone, of a VM that a template has made: the template's name.
TEMPLATE: Final = "template"

#: The namespace of the uuids of templates and of their VMs, which are made of names (RFC 9562, 5.5).
NAMESPACE: Final = uuids.uuid5(uuids.NAMESPACE_DNS, "templates.jitsu")

#: The characters that the path of `layers` may have: definitions for xl name such paths, and xl has no escapes.
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_./+@-]+")

#: In characters: a VM's name has a label (63) and a dot before it, and files are called by it (NAME_MAX is 255).
LONGEST_TEMPLATE: Final = 100

#: In octets: with a label of 63 in place of the ``*``, a name has 255 (RFC 1035, 2.3.4).
LONGEST_WILDCARD: Final = MAX_NAME - 62

#: The labels that VMs of templates may have (RFC 1123, 2.1): other names do not exist.
LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

#: The keys whose values are not in a field of a `VM` that has the key's name.
_OTHERS: Final = VM_KEYS.keys() - INHERITED.keys() - keys_of(VM).keys()

#: The keys of a VM that name a file, and those that are durations.
_PATHS: Final = frozenset(name for name, key in VM_KEYS.items() if key.path)
_DURATIONS: Final = frozenset(name for name, key in VM_KEYS.items() if key.unit)


def values_from(raw: RawConfig, keys: Mapping[str, Key], where: str = "") -> dict[str, Any]:
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
                value = beside(one, value)
            found.append(value)
        if found:
            values[name] = tuple(found) if key.many else found[0]
    mistakes.end()
    return values


def beside(one: RawValue, path: str) -> Path:
    """Return the *path* that *one* names: relative to the file that it stands in."""
    return Path(one.path).parent / path if one.path != COMMAND_LINE else Path(path)


def check_uri(kind: str, raw: RawConfig, where: str) -> None:
    """Refuse a URI that no hypervisor of this *kind* can have."""
    check = BACKENDS[kind].check_uri
    if check is None:
        return
    for one in raw.get("connect", ()):
        try:
            check(one.text)
        except ValueError as error:
            raise one.wrong(f"{where}connect", str(error)) from error


def vm_from(raw: RawConfig, settings: Settings) -> VM:
    """
    Return the VM or template that *raw* describes beside those of *settings*, of which only templates are looked at.

    Raises:
        ConfigError: the place, what is wrong there, and what would be right.
    """
    is_template = not (OWN_TEMPLATE_KEYS - VM_KEYS.keys()).isdisjoint(raw)
    keys = TEMPLATE_KEYS if is_template else VM_KEYS
    for key, ones in raw.items():
        if key not in keys and (key != TEMPLATE or is_template):
            raise ones[0].wrong(key, f"no such key{near(key, keys)}")
        if len(ones) > 1 and (key == TEMPLATE or not keys[key].many):
            raise ones[1].wrong(key, "is there twice; keep one")
    builder = Builder(settings, {}, keep=True)
    return builder.template(raw) if is_template else builder.vm(raw)


def where_of(raw: RawConfig, group: str = "vms") -> str:
    """Return how an error begins that is about the VM, or what else a *group* lists, that *raw* describes."""
    name = raw["name"][0].text if "name" in raw else ""
    return f"{group}: {name}: " if name else f"{group}: "


class Builder:
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
        """Return the VM that *raw* describes; if it names a template, the VM inherits from the template."""
        first = next(iter(raw.values()))[0] if raw else RawValue("", COMMAND_LINE)
        where = where_of(raw)
        template = self._template_of(raw, where)
        own, raw = raw, raw if template is None else _inheriting(raw, template)
        values = vm_values(raw, first, where, ("dns", "ip", "name"))
        if template is None:
            return self._checked(values, raw, first, where, _check_definition)
        vm = self._checked(values, raw, first, where)
        kept = {key: vm.raw[key] for key in own if key in vm.raw and key not in {"dns", "uuid"}}
        layer = Layer(template.layers / f"{vm.uuid}.qcow2", template.disk) if template.disk is not None else None
        vm = attrs.evolve(vm, template=template.name, layer=layer, raw={**kept, TEMPLATE: (template.name,)})
        _check_definition(vm, raw, where, self._kind(vm))
        return vm

    def template(self, raw: RawConfig) -> Template:
        """Return the template that *raw* describes."""
        first = next(iter(raw.values()))[0] if raw else RawValue("", COMMAND_LINE)
        where = where_of(raw, "templates")
        if not self._keep:
            message = "the addresses of its VMs are kept in the state; say where that is, with persistdb"
            raise first.wrong(where.strip(": "), message)
        if self.settings.remote is not None and self.settings.cluster is None:
            message = "Jitsus that share it by remote must agree on the addresses of its VMs; make them a cluster"
            raise first.wrong(where.strip(": "), message)
        values = vm_values(raw, first, where, ("name", "dns", "pool", "exists"), TEMPLATE_KEYS)
        values["exists"] = tuple(
            attrs.evolve(said, text=str(beside(one, said.text).absolute())) if said.kind is Asks.PATH else said
            for one, said in zip(raw["exists"], values["exists"], strict=True)
        )
        own = {key: values.pop(key) for key in OWN_TEMPLATE_KEYS & values.keys()}
        own |= {key: own[key].absolute() for key in ("disk", "layers") if key in own}
        values |= {"ip": (), "uuid": str(uuids.uuid5(NAMESPACE, f"template {values['name']}"))}
        vm = self._checked(values, raw, first, where)
        kept = {**vm.raw, "exists": tuple(said.text for said in own["exists"])}
        kept |= {key: (str(own[key]),) for key in ("disk", "layers") if key in own}
        kept |= {"forget_after": (f"{own['forget_after']:.15g}",)} if "forget_after" in own else {}
        fields = {field.name: getattr(vm, field.name) for field in attrs.fields(VM)}
        template = Template(**{**fields, **own, "raw": kept})
        mistakes, kind = Mistakes(), self._kind(template)
        for check in (_check_wildcards, _check_made, _check_layers, _check_definition):
            with mistakes:
                check(template, raw, where, kind)
        mistakes.end()
        return template

    def _kind(self, vm: VM) -> str:
        """Return the kind of the hypervisor of *vm*, or of all hosts that it may run on."""
        return next((host.backend for host in self.settings.hosts if host.name in vm.hosts), vm.backend)

    def _template_of(self, raw: RawConfig, where: str) -> Template | None:
        """Return the template that *raw* names; None if it names none."""
        if TEMPLATE not in raw:
            return None
        one = raw[TEMPLATE][0]
        found = next((template for template in self.settings.templates if template.name == one.text), None)
        if found is None:
            raise one.wrong(f"{where}{TEMPLATE}", f"there is no template {one.text!r} in the configuration any more")
        return found

    def _checked(
        self, values: dict[str, Any], raw: RawConfig, first: RawValue, where: str, *checks: Callable[..., None]
    ) -> VM:
        """Return the VM of these *values*, if they can be beside each other, also for *checks*."""
        hosts = _check_hosts(values, raw, where, self.settings.hosts)
        kind = hosts[0].backend if hosts else values.get("backend", self.settings.backend)
        vm = self._assembled(values, raw, first, kind, hosts)
        mistakes = Mistakes()
        with mistakes:
            check_uri(kind, raw, where)
        always: tuple[Callable[..., None], ...] = (
            _check_boot, _check_prepare, _check_standin, check_times, _check_backend_keys, _check_machine,
        )  # fmt: skip
        for check in (*always, *checks):
            try:
                check(vm, raw, where, kind)
            except ConfigError as error:
                mistakes.add(error)
        mistakes.end()
        self._check_synjitsu(vm, raw, where)
        self._check_bind(vm, raw, where)
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

    def _check_synjitsu(self, vm: VM, raw: RawConfig, where: str) -> None:
        """Refuse a VM that wants Synjitsu where there is none."""
        if self.settings.synjitsu is not None or not vm.use_synjitsu:
            return
        ones = raw.get("use_synjitsu") or self._top.get("use_synjitsu")
        if ones and not any(host.synjitsu for host in self.settings.hosts if host.name in vm.hosts):
            message = "there is none; say where it listens, with synjitsu at the top, or leave this out"
            raise ones[0].wrong(f"{where}use_synjitsu", message)

    def _check_bind(self, vm: VM, raw: RawConfig, where: str) -> None:
        """Refuse a VM at one of the addresses that Jitsu itself serves at."""
        for number, address in enumerate(vm.ip):
            if address in self._served:
                message = f"{address} is what Jitsu serves at (bind); give the VM an address of its own"
                raise raw["ip"][min(number, len(raw["ip"]) - 1)].wrong(f"{where}ip", message)


def vm_values(
    raw: RawConfig, first: RawValue, where: str, needed: Sequence[str], keys: Mapping[str, Key] = VM_KEYS
) -> dict[str, Any]:
    """Return the value of each of the *keys* of a VM or a template; those that each of them has *needed* are there."""
    missing = [key for key in needed if not raw.get(key) or not raw[key][0].text]
    if not missing:
        return values_from(raw, keys, where)
    mistakes = Mistakes()
    what = "VM" if keys is VM_KEYS else "template"
    for key in missing:
        mistakes.add(first.wrong(f"{where}{key}", f"is missing; every {what} needs its {key}"))
    with mistakes:
        values_from({key: ones for key, ones in raw.items() if key not in missing}, keys, where)
    mistakes.end()
    return {}


def _inheriting(raw: RawConfig, template: Template) -> RawConfig:
    """Return the *raw* configuration of a VM, with its names and all else that it inherits from its *template*."""
    path, line = str(template.place[0]), template.place[1]
    name = raw["name"][0] if "name" in raw else RawValue(f"example.{template.name}", path, line)
    label, _, rest = name.text.partition(".")
    if rest != template.name or not LABEL.fullmatch(label):
        raise name.wrong("name", f"is not that of a VM of the template {template.name}, LABEL.{template.name}")
    inherited = {
        key: [RawValue(text, path, line) for text in texts]
        for key, texts in template.raw.items()
        if key not in OWN_TEMPLATE_KEYS
    }
    own = {key: ones for key, ones in raw.items() if key != TEMPLATE}
    names = [RawValue(to_text(name_of(label, wildcard)), path, line) for wildcard in template.dns]
    return {**inherited, **own, "dns": names}


def uuid_of(label: str, template: Template) -> str:
    """Return the uuid of the VM that *template* makes for *label*: that of its first DNS name."""
    return str(uuids.uuid5(NAMESPACE, to_text(name_of(label, template.dns[0]))))


def name_of(label: str, wildcard: bytes) -> bytes:
    """Return the name that *label* makes of *wildcard*."""
    return from_text(label)[:-1] + wildcard[2:]


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


def check_times(settings: VM | Settings, raw: RawConfig, where: str, _kind: str = "") -> None:
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
    own = OWN_TEMPLATE_KEYS if "pool" in raw else frozenset()
    for key in raw.keys() - own if not STRICT.keys().isdisjoint(raw) else ():
        if kind not in STRICT.get(key, {kind}):
            backends = " or ".join(sorted(STRICT[key]))
            raise raw[key][0].wrong(f"{where}{key}", f"is for the backend {backends} only")


def _check_machine(vm: VM, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse a VM that cannot be one of its backend."""
    check = BACKENDS[kind].check_vm
    if check is not None:
        try:
            check(vm, kind)
        except ConfigError as error:
            ones = raw.get(error.key) or raw["name"]
            raise ones[0].wrong(f"{where}{error.key}", error.message) from error


def _check_definition(vm: VM, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse a `define` file that does not define this VM, or any VM of this template, where the backend can tell."""
    check = BACKENDS[kind].check_definition
    if vm.define is None or check is None:
        return
    try:
        octets, name = read_octets(vm.define), vm.name
        if isinstance(vm, Template):
            vm = example(vm)
            name = vm.name
        if vm.template is not None:
            octets = fill(octets.decode(), values_of(vm)).encode()
        check(octets, name)
    except (ConfigError, ValueError) as error:
        why = error.message if isinstance(error, ConfigError) else error
        raise raw["define"][0].wrong(f"{where}define", f"{vm.define} {why}") from error


# A template.


def example(template: Template) -> VM:
    """Return a VM as *template* makes them."""
    fields = {field.name: getattr(template, field.name) for field in attrs.fields(VM)}
    name, ips = f"example.{template.name}", {addresses.first.version: addresses.first for addresses in template.pool}
    dns = tuple(name_of("example", wildcard) for wildcard in template.dns)
    layer = Layer(template.layers / "example.qcow2", template.disk) if template.disk is not None else None
    ip = tuple(ips[version] for version in sorted(ips))
    return VM(**{**fields, "name": name, "dns": dns, "ip": ip, "template": template.name, "layer": layer})


def _check_wildcards(template: Template, raw: RawConfig, where: str, _kind: str) -> None:
    """Refuse names that no VM of a template could have, and a name that its VMs' names could not be made of."""
    for one in raw["dns"]:
        if not one.text.startswith("*."):
            message = f"{one.text} is no wildcard; write one like *.{one.text}, whose VMs are named by its first label"
            raise one.wrong(f"{where}dns", message)
        if len(from_text(one.text)) > LONGEST_WILDCARD:
            message = f"{one.text} is too long: with a label of 63 characters it would be no name (RFC 1035, 2.3.4)"
            raise one.wrong(f"{where}dns", message)
    try:
        parse_name(template.name)
    except ValueError as error:
        raise raw["name"][0].wrong(f"{where}name", str(error)) from error
    if "." in template.name:
        message = f"{template.name!r} has a dot, which stands between the label of a VM and this name; leave it out"
        raise raw["name"][0].wrong(f"{where}name", message)
    if len(template.name) > LONGEST_TEMPLATE:
        message = f"has more than {LONGEST_TEMPLATE} characters; its VMs' names are a label, a dot and this"
        raise raw["name"][0].wrong(f"{where}name", message)


def _check_made(template: Template, raw: RawConfig, where: str, kind: str) -> None:
    """Refuse a template whose VMs could not be made at their hypervisor."""
    declared = BACKENDS[kind]
    if not declared.makes:
        message = f"{kind} cannot make VMs, only use those that it has; take another backend"
        raise raw["name"][0].wrong(f"{where}backend", message)
    if template.define is None and declared.check_definition is not None:
        message = "is missing; give a file that defines its VMs, with ${name}, ${ip} and ${mac} for their own values"
        raise raw["name"][0].wrong(f"{where}define", message)


def _check_layers(template: Template, raw: RawConfig, where: str, _kind: str) -> None:
    """Refuse layers that could not be made, or would not be used."""
    if template.disk is None:
        return
    if template.hosts or urlsplit(template.connect).hostname is not None:
        message = "the layers are made on this machine, and its VMs run on another one; leave it out"
        raise raw["disk"][0].wrong(f"{where}disk", message)
    if not _PLAIN_PATH.fullmatch(str(template.layers)):
        message = f"{template.layers} should have no other characters than letters, digits and / . _ + @ -"
        raise raw["layers" if "layers" in raw else "disk"][0].wrong(f"{where}layers", message)
    if template.define is not None and b"${disk}" not in read_octets(template.define):
        message = f"{template.define} does not use it; write ${{disk}} there for the path of a VM's disk"
        raise raw["disk"][0].wrong(f"{where}disk", message)


# All VMs together.


def check_needs(vms: Sequence[VM], raw: Mapping[str, RawValue]) -> None:
    """
    Refuse VMs that need one that is not there, or, in the end, themselves; *raw* has their `needs`, by name.

    No VM may need a template, or a VM that a template has made, which is forgotten some day.
    """
    needs = {vm.name: vm.needs for vm in vms}
    passing = {vm.name for vm in vms if vm.template is not None or isinstance(vm, Template)} if raw else set()
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
            elif needed in passing:
                message = f"{needed} is a template, or made by one, and so not always there; list it under vms"
                raise raw[name].wrong(f"vms: {name}: needs", message)
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
