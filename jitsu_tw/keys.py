"""
What a configuration key is: a field of an attrs class that carries its `Key`. The classes' fields are the declarations.

`jitsu_tw.settings` has Jitsu's keys and those of all VMs, a backend's own class those of its VMs alone, and a readiness
strategy its own one. Everything else about a key is derived from its declaration.
"""

from __future__ import annotations

import enum
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs

from jitsu_tw import parsers

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds: the most that a VM's own branch may set its TTL, and its time after the last use, to.
DAY: Final = 86400


@attrs.frozen
class Limits:
    """
    What a VM's own branch may set a key to.

    Attributes:
        least, most: of a number.
        number: of the values of a list.
    """

    least: float = -inf
    most: float = inf
    number: int = 1


@attrs.frozen
class Key:
    """
    What a key takes.

    Attributes:
        parse: makes its value of a text, and says what it takes.
        doc: what the key is for, as `twistd jitsu --help` has it.
        many: it may repeat, or be a list.
        path: it names a file, relative to the file that the key stands in.
        own: a VM's own branch may set it, within these limits (`sync.permissions`); None: it may not.
        option: the letter of its option on the command line; empty for an option without one, None for no option.
        shown: the default, as documentation has it.
        live: a reload applies a change; one of another key needs a restart, but for those that VMs have or inherit.
        example: a value; by default that of `parse`.
        pairs: a file may have it as a mapping, of which each line becomes ``NAME=VALUE``; it is `many`.
        operator: only a configuration file may set it: no request, and no configuration that is shared.
    """

    parse: parsers.Parser[Any]
    doc: str = ""
    many: bool = False
    path: bool = False
    own: Limits | None = None
    option: str | None = None
    shown: str = ""
    live: bool = False
    example: str = attrs.field(default=attrs.Factory(lambda key: key.parse.example, takes_self=True))
    pairs: bool = False
    operator: bool = False

    @property
    def kind(self) -> str:
        """What it takes, as documentation has it: ``duration``, ``list of: DNS name``."""
        kind = "path" if self.path else self.parse.kind
        return f"list of: {kind}" if self.many else kind

    @property
    def unit(self) -> str:
        """The unit of a number without one, and of the default; empty if there is none."""
        return self.parse.unit


def _shown(default: Any) -> str:
    """Return how documentation writes a default."""
    if default is attrs.NOTHING:
        return ""
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, enum.Enum):
        return str(default.value)
    return f"{default:g}" if isinstance(default, float) else str(default)


def setting(
    default: Any,
    doc: str,
    parse: parsers.Parser[Any] | None = None,
    *,
    many: bool | None = None,
    shown: str = "",
    secret: bool = False,
    converter: Callable[[Any], Any] | None = None,
    **more: Any,
) -> Any:
    """
    Return a field of an attrs class that is a key of the configuration.

    Args:
        default: its value where the configuration has none; attrs.NOTHING where it must have one.
        doc: what the key is for.
        parse: as `Key` has it; can be left out where the default is true, false, or of an enumeration.
        many: as `Key` has it; by default true where the default is a collection.
        shown: as `Key` has it; by default made of the default.
        secret: the value is left out where its class is shown.
        converter: makes the field's value of the key's, or of the tuple of its values.
        more: further attributes of `Key`.
    """
    if parse is None:
        parse = parsers.switch if isinstance(default, bool) else parsers.one_of(type(default))
    if many is None:
        many = isinstance(default, tuple | frozenset)
    about = Key(parse, doc, many=many, shown=shown or _shown(default), **more)
    return attrs.field(default=default, repr=not secret, converter=converter, metadata={"key": about})


def keys_of(kind: type[attrs.AttrsInstance] | None) -> dict[str, Key]:
    """Return the keys that the fields of *kind* are, by their names; none if there is no such class."""
    fields = attrs.fields(kind) if kind is not None else ()
    return {field.name: field.metadata["key"] for field in fields if "key" in field.metadata}
