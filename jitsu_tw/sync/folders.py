"""What the folder of a VM, or of a template, in the state means: from its files to settings."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import attrs

from jitsu_tw.config.schema import TEMPLATE_KEYS
from jitsu_tw.config.source import RawValue
from jitsu_tw.config.vms import TEMPLATE, vm_from
from jitsu_tw.errors import ConfigError
from jitsu_tw.store.layout import NAME, UNKNOWN, VMS, sayings, vm_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.config.source import RawConfig
    from jitsu_tw.settings import VM, Settings


def vm_of(uuid: str, files: Mapping[str, str], was: Mapping[str, str], settings: Settings) -> tuple[VM, RawConfig]:
    """
    Return the VM or template that the *files* of its folder in the state describe, and their raw configuration.

    Args:
        uuid: the name of the folder.
        files: values by their paths in it.
        was: the same before a change; *files* themselves if there is none.
        settings: what it inherits, with the templates.

    Raises:
        ConfigError: they describe none.
    """
    folder = f"{VMS}/{uuid}"
    raw: RawConfig = defaultdict(list)
    try:
        for key, text, path in sayings(files, was):
            raw[key].append(RawValue(text, f"{folder}/{path}"))
    except ValueError as error:
        raise ConfigError(str(error), folder) from error
    raw = dict(raw)
    for key, one in ((key, one) for key, ones in raw.items() for one in ones):
        if key in TEMPLATE_KEYS and TEMPLATE_KEYS[key].path and not one.text.startswith("/"):
            raise one.wrong(key, f"{one.text} should be a whole path, beginning with /")
    if "name" not in raw:
        raise ConfigError("is missing: the hypervisor's name for the VM", f"{folder}/{NAME}")
    if TEMPLATE in raw:
        raw["uuid"] = [RawValue(uuid, folder)]
    vm = vm_from(raw, settings)
    if uuid == UNKNOWN:
        uuid = vm.uuid or uuid
    elif vm.uuid not in {None, uuid}:
        raise ConfigError(f"is not the name of the folder, {uuid}; leave it out", f"{folder}/config/uuid/0")
    return attrs.evolve(vm, uuid=uuid, place=(folder, None)), raw


def rebuilt(uuid: str, vm: VM, settings: Settings) -> VM | None:
    """Return *vm* as it is built below new *settings*; None if they leave all settings of the VM as they are."""
    files = vm_files(vm)
    new, _ = vm_of(uuid, files, files, settings)
    new = attrs.evolve(new, place=vm.place, dns_place=vm.dns_place)
    return new if new != vm else None
