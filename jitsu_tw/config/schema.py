"""
The keys of a configuration, by the groups that they stand in. Each is declared once, and gathered here.

Jitsu's own and those of all VMs are declared in `settings`, those of one backend's VMs by the backend
(`backends.Declaration.settings`), and those that tell when a guest is ready by the strategies (`readiness.READINESS`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw import parsers
from jitsu_tw.backends import BACKENDS
from jitsu_tw.keys import keys_of
from jitsu_tw.readiness import READINESS
from jitsu_tw.settings import VM, Cluster, Dnssec, Host, Inherited, Settings, Template

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitsu_tw.keys import Key


def _backend(names: Iterable[str]) -> parsers.Parser[str]:
    """Return a parser of one of the backends *names*, which refuses those whose library is not installed."""
    choose = parsers.choice(names)

    def parse(text: str) -> str:
        declared = BACKENDS[choose(text)]
        if declared.extra:
            parsers.require(declared.path.partition(":")[0], declared.extra)
        return text

    return attrs.evolve(choose, function=parse)


def _keys_of(kind: type[attrs.AttrsInstance], backends: Iterable[str] = BACKENDS) -> dict[str, Key]:
    """Return the keys of *kind*; its key for a backend, if it has one, takes one of *backends*."""
    keys, names = keys_of(kind), sorted(backends)
    if "backend" in keys:
        doc = f"{keys['backend'].doc}: {', '.join(names)}"
        keys["backend"] = attrs.evolve(keys["backend"], parse=_backend(names), doc=doc)
    return keys


#: The keys of the top that hold for each VM that does not have them itself.
INHERITED: Final[Mapping[str, Key]] = _keys_of(Inherited)

KEYS: Final[Mapping[str, Key]] = _keys_of(Settings)

#: Those with an option on the command line: switches, and options that take a value.
FLAGS: Final[Mapping[str, Key]] = {
    name: key for name, key in KEYS.items() if key.option is not None and key.parse is parsers.switch
}
OPTIONS: Final[Mapping[str, Key]] = {
    name: key for name, key in KEYS.items() if key.option is not None and name not in FLAGS
}

#: The keys of the groups `cluster` and `dnssec`, and of each of the `hosts`.
CLUSTER_KEYS: Final[Mapping[str, Key]] = keys_of(Cluster)
DNSSEC_KEYS: Final[Mapping[str, Key]] = keys_of(Dnssec)
HOST_KEYS: Final[Mapping[str, Key]] = _keys_of(Host, (name for name, one in BACKENDS.items() if one.host))

#: The keys that only the VMs of one backend have, by the backend.
BACKEND_KEYS: Final[Mapping[str, Mapping[str, Key]]] = {
    name: keys_of(declared.settings) for name, declared in BACKENDS.items()
}

VM_KEYS: Final[Mapping[str, Key]] = {
    **{name: key for keys in BACKEND_KEYS.values() for name, key in keys.items()},
    **{name: strategy.key for name, strategy in READINESS.items()},
    **INHERITED,
    **_keys_of(VM),
}

#: The keys that a template has no use for: each of its VMs has its own.
_OF_ONE_VM: Final = frozenset({"ip", "uuid", "mac", "own_dns", "own_ip"})

#: The keys of a template: those that its VMs inherit, and its own.
TEMPLATE_KEYS: Final[Mapping[str, Key]] = {
    **{name: key for name, key in VM_KEYS.items() if name not in _OF_ONE_VM},
    **{name: key for name, key in keys_of(Template).items() if name not in keys_of(VM)},
}

#: Those that its VMs do not inherit; one of the same name may be a key of VMs (`disk`, of libxl), of another meaning.
OWN_TEMPLATE_KEYS: Final = keys_of(Template).keys() - keys_of(VM).keys()

#: The backends that a key is for, of the keys that VMs of other backends must not have.
STRICT: Final[Mapping[str, frozenset[str]]] = {
    key: frozenset(backend for backend, keys in BACKEND_KEYS.items() if key in keys)
    for backend, keys in BACKEND_KEYS.items()
    if BACKENDS[backend].strict
    for key in keys.keys() - keys_of(VM).keys()
}
