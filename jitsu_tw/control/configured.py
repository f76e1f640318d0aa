"""What the configuration says of a VM, key by key, and where each value is from."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from jitsu_tw.backends import BACKENDS
from jitsu_tw.config.schema import VM_KEYS
from jitsu_tw.dns.wire import to_text
from jitsu_tw.settings import VM

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the values of a VM are where nothing sets them.
_DEFAULTS: Final = {
    field.name: field.default
    for kind in (VM, *(one.settings for one in BACKENDS.values() if one.settings is not None))
    for field in attrs.fields(cast("type[attrs.AttrsInstance]", kind))
}


def configured(vm: VM, origin: str | None, template: VM | None = None) -> Iterator[dict[str, str | None]]:
    """
    Yield each key of *vm* that is set, with its value as text and where it is from.

    Where there is no state, the raw values are not kept: it is not known then which of the keys stand at the VM, and
    which at the top of the file. Files are named by their paths; none of a VM's values is a secret.

    Args:
        vm: the settings.
        origin: the request or the template that the VM is from as it is now; None if it is as the file says.
        template: that has made it; None for none.
    """
    path, line = vm.place
    elsewhere = "inherited, or made of other keys" if vm.raw else None
    place = origin or (f"{path}, line {line}" if path and line else path)
    for key in dict.fromkeys(("name", "dns", "ip", *VM_KEYS)):
        value = _value(vm, key)
        if key in vm.raw:
            yield {"key": key, "value": ", ".join(vm.raw[key]), "from": place}
        elif template is not None and key in template.raw:
            yield {"key": key, "value": _text(value), "from": f"the template {template.name}"}
        elif value not in (None, "", _DEFAULTS.get(key)):
            yield {"key": key, "value": _text(value), "from": elsewhere}


def _value(vm: VM, key: str) -> Any:
    value = vm.value(key)
    return getattr(vm.backend_settings, key, None) if value is None else value


def _text(value: Any) -> str:
    """Return a value as a configuration would have it."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bytes):
        return to_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | frozenset | list):
        return ", ".join(map(_text, value))
    return str(value)
