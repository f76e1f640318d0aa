"""
What somebody has said of Jitsu and its VMs: text by its key, each with its place. What it means is `config`'s to know.

It comes from a YAML file, or from ``key=value`` pairs. An error names the file, the line and the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import yaml

from jitsu_tw.errors import ConfigError
from jitsu_tw.values import CLUSTER_KEYS, HOST_KEYS, KEYS, VM_KEYS, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from jitsu_tw.values import Key

#: libyaml's, if PyYAML was built with it: ten times as fast, which thousands of VMs notice.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: What is more than lines of the form "key: value".
GROUPS: Final = ("vms", "hosts", "cluster")


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


@attrs.define
class File:
    """
    What a file says.

    Attributes:
        top: of Jitsu itself.
        vms: of each of them; understood one by one.
        hosts: of each of them.
        cluster: of that; nothing if there is none.
    """

    top: Sayings
    vms: Iterable[Sayings] = ()
    hosts: list[Sayings] = attrs.field(factory=list)
    cluster: Sayings = attrs.field(factory=dict)


def read_file(path: Path) -> File:
    """
    Return what a YAML file says.

    Raises:
        ConfigError: it cannot be read, is no YAML, or says what nobody knows; of a VM, when that is looked at.
    """
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
        return File({})
    top = _mapping(root, path, "")
    groups = {name: top.pop(name, (0, None))[1] for name in GROUPS}
    cluster = groups["cluster"]
    return File(
        _sayings(top, path, KEYS, ""),
        _list(groups["vms"], path, "vms", VM_KEYS),
        list(_list(groups["hosts"], path, "hosts", HOST_KEYS)),
        {} if cluster is None else _sayings(_mapping(cluster, path, "cluster"), path, CLUSTER_KEYS, "cluster."),
    )


def _list(listed: yaml.Node | None, path: Path, name: str, keys: Mapping[str, Key]) -> Iterator[Sayings]:
    """Yield what each of a list's items says."""
    if listed is not None and not _empty(listed):
        if not isinstance(listed, yaml.SequenceNode):
            raise ConfigError('is a list: begin each with "- name: …"', path, listed.start_mark.line + 1, name)
        nodes, listed.value = listed.value[::-1], []
        for number in range(len(nodes)):
            # Each is let go as soon as it is understood: of 100,000, they are most of our memory.
            where = f"{name}[{number}]"
            yield _sayings(_mapping(nodes.pop(), path, where), path, keys, f"{where}.")


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
            known = keys if where else [*keys, *GROUPS]
            raise ConfigError(f"no such key{near(name, known)}", path, at, f"{where}{name}")
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


def read_pairs(text: str) -> Sayings:
    """
    Return what ``key=value`` pairs say of a VM.

    Raises:
        ConfigError: they are none, or say what nobody knows.
    """
    said: Sayings = {}
    for pair in text.split(","):
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not of the form key=value", COMMAND_LINE, key=text)
        if key not in VM_KEYS:
            raise ConfigError(f"no such key{near(key, VM_KEYS)}", COMMAND_LINE, key=key)
        if key in said and not VM_KEYS[key].many:
            raise ConfigError("is there twice; keep one", COMMAND_LINE, key=key)
        said.setdefault(key, []).append(Said(value, COMMAND_LINE))
    return said
