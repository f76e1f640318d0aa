"""
The raw configuration: the texts of a YAML file, or of ``key=value`` pairs, by their keys, each with its file and line.

What they mean is for `build`. An error names the file, the line and the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs
import yaml

from jitsu_tw.config.schema import CLUSTER_KEYS, DNSSEC_KEYS, HOST_KEYS, KEYS, OWN_TEMPLATE_KEYS, TEMPLATE_KEYS, VM_KEYS
from jitsu_tw.errors import ConfigError, Mistakes
from jitsu_tw.parsers import near
from jitsu_tw.text import abridged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from jitsu_tw.keys import Key

#: In octets: the largest file that is read. That of 100,000 VMs has 10 MB.
LARGEST: Final = 64 * 1024 * 1024

#: The values of a whole file: an alias (``*a``) makes many of a few octets.
MOST_VALUES: Final = 2_000_000

#: The characters of one value, as of a value in the state, and of what an error repeats of it.
LONGEST: Final = 65536
_SHOWN: Final = 400

#: The tag of a value that is not there, the words that are one unless they are quoted, and the tag of any other.
_NULL: Final = "tag:yaml.org,2002:null"
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TEXT: Final = "tag:yaml.org,2002:str"

#: What helps, by words of YAML's own errors.
_REMEDIES: Final = {
    "alphabetic or numeric character": '; quote what begins with *, as "*.example.org"',
    "tab character": "; indent with blanks, not with tabs",
    r"'\t'": "; indent with blanks, not with tabs",
    "mapping values are not allowed": "; quote a value that has a colon and a blank in it",
}

#: What is more than lines of the form "key: value".
GROUPS: Final = ("vms", "templates", "hosts", "cluster", "dnssec")


class RawValue(NamedTuple):
    """The text of one value, and where it stands: a file and its line, or the command line (no line)."""

    text: str
    path: str
    line: int | None = None

    def wrong(self, key: str, message: str) -> ConfigError:
        """Return the error for this value of *key*; a long *message* loses its middle."""
        return ConfigError(abridged(message, _SHOWN, " … "), self.path, self.line, key)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """
    Takes all values as text: numbers and dates are not told from it.

    It is libyaml's, if PyYAML was built with it: ten times as fast, which thousands of VMs notice.
    """

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        """Return the tag of a node that has none."""
        if kind is yaml.ScalarNode:
            return _NULL if implicit[0] and value in _NULLS else _TEXT
        return str(super().resolve(kind, value, implicit))


COMMAND_LINE: Final = "command line"

#: The raw configuration of one thing (Jitsu, a VM, a host): each key's values.
RawConfig = dict[str, list[RawValue]]


@attrs.define
class File:
    """
    The raw configuration of a whole file.

    Attributes:
        top: Jitsu's own keys.
        vms: each VM; read one by one.
        templates: each template.
        hosts: each host.
        cluster, dnssec: the groups of these names; empty if there are none.
        mistakes: what was left out of all these; the last is found when `vms` ends.
    """

    top: RawConfig
    vms: Iterable[RawConfig] = ()
    templates: list[RawConfig] = attrs.field(factory=list)
    hosts: list[RawConfig] = attrs.field(factory=list)
    cluster: RawConfig = attrs.field(factory=dict)
    dnssec: RawConfig = attrs.field(factory=dict)
    mistakes: Mistakes = attrs.field(factory=Mistakes)


def read_text(path: Path) -> str:
    """
    Return the text of a file, of which not more than `LARGEST` is read.

    Raises:
        ConfigError: it cannot be read, is larger, or is no text.
    """
    try:
        return read_octets(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError("is not text in UTF-8", path) from error


def read_octets(path: Path) -> bytes:
    """
    Return what is in a file, of which not more than `LARGEST` is read.

    Raises:
        ConfigError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            octets = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path) from error
    if len(octets) > LARGEST:
        raise ConfigError(f"is larger than {LARGEST // 1024**2} MiB; is it the right file?", path)
    return octets


@attrs.define
class _Source:
    """The file at *path*, and as many *left* as values may still be taken from it."""

    path: str
    left: int = attrs.field(factory=lambda: MOST_VALUES)


def read_file(path: Path) -> File:
    """
    Return the raw configuration of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is no YAML; keys that do not exist are among the `File.mistakes`.
    """
    root = _compose(read_text(path), path)
    if root is None:
        return File({})
    source, file = _Source(str(path)), File({})
    top = _mapping(root, source.path, "", file.mistakes)
    groups = {name: top.pop(name, (0, None))[1] for name in GROUPS}
    file.top = _raw(top, source, KEYS, "", file.mistakes)
    with file.mistakes:
        if (cluster := groups["cluster"]) is not None:
            file.cluster = _group(cluster, source, CLUSTER_KEYS, "cluster")
    with file.mistakes:
        if (dnssec := groups["dnssec"]) is not None:
            file.dnssec = _group(dnssec, source, DNSSEC_KEYS, "dnssec")
    file.hosts = list(_list(groups["hosts"], source, "hosts", HOST_KEYS, file.mistakes))
    file.templates = list(_list(groups["templates"], source, "templates", TEMPLATE_KEYS, file.mistakes))
    file.vms = _list(groups["vms"], source, "vms", VM_KEYS, file.mistakes)
    return file


def read_vm(text: str, path: Path, keys: Mapping[str, Key] = VM_KEYS) -> RawConfig:
    """
    Return the raw configuration of one VM in YAML, or of what else has these *keys*.

    Raises:
        ConfigError: it is none, or has keys that do not exist.
    """
    root, raw, mistakes = _compose(text, path), RawConfig(), Mistakes()
    if root is not None:
        raw = _raw(_mapping(root, str(path), "", mistakes), _Source(str(path)), keys, "", mistakes)
    mistakes.end()
    return raw


def _compose(text: str, path: Path) -> Any:
    """
    Return the root of the YAML *text* of the file at *path*; None if it is empty.

    Raises:
        ConfigError: it is no YAML.
    """
    try:
        return yaml.compose(text, Loader=_Loader)
    except RecursionError as error:
        raise ConfigError("is not YAML of a configuration: its lists are nested too deeply", path) from error
    except yaml.reader.ReaderError as error:
        at = text[: text.find(chr(error.character))].count("\n") + 1  # its position is in octets with libyaml
        message = f"is not YAML: the character #x{error.character:04x} cannot be in it; remove it"
        raise ConfigError(message, path, at) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        problem = str(error.problem or error.context)
        remedy = next((remedy for words, remedy in _REMEDIES.items() if words in problem), "")
        raise ConfigError(f"is not YAML: {problem}{remedy}", path, line) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", path) from error


def _list(
    listed: yaml.Node | None, source: _Source, name: str, keys: Mapping[str, Key], mistakes: Mistakes
) -> Iterator[RawConfig]:
    """Yield each of a list's items that has no *mistakes*."""
    if listed is None or _empty(listed):
        return
    if not isinstance(listed, yaml.SequenceNode):
        with mistakes:
            message = 'is a list: begin each with "- name: …"'
            raise ConfigError(message, source.path, listed.start_mark.line + 1, name)
        return
    nodes, listed.value = listed.value[::-1], []
    for number in range(len(nodes)):
        if source.left < 0:
            return
        # Each is freed as soon as it is built: 100,000 of them would be most of our memory.
        where, raw = f"{name}[{number}]", None
        with mistakes:
            raw = _group(nodes.pop(), source, keys, where)
        if raw is not None:
            yield raw


def _empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _group(node: yaml.Node, source: _Source, keys: Mapping[str, Key], where: str) -> RawConfig:
    """Return the keys of *node*, or raise all that is wrong with it."""
    mistakes = Mistakes()
    if not node.value:
        raise ConfigError("says nothing; give it its keys, or remove it", source.path, node.start_mark.line + 1, where)
    raw = _raw(_mapping(node, source.path, where, mistakes), source, keys, f"{where}.", mistakes)
    mistakes.end()
    return raw


def _mapping(node: yaml.Node, path: str, where: str, mistakes: Mistakes) -> dict[str, tuple[int, yaml.Node]]:
    """Return the keys of *node*, in their order, each with its line and its value; a key twice is a mistake."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError('should be lines of the form "key: value"', path, node.start_mark.line + 1, where)
    found: dict[str, tuple[int, yaml.Node]] = {}
    for key, value in node.value:
        name, line = str(key.value) if isinstance(key, yaml.ScalarNode) else "", key.start_mark.line + 1
        if not name:
            mistakes.add(ConfigError("a key should be one word", path, line, where))
        elif name in found:
            mistakes.add(ConfigError("is there twice; keep one", path, line, f"{where}.{name}" if where else name))
        else:
            found[name] = line, value
    return found


def _raw(
    nodes: Mapping[str, tuple[int, yaml.Node]],
    source: _Source,
    keys: Mapping[str, Key],
    where: str,
    mistakes: Mistakes,
) -> RawConfig:
    """Return the values of *nodes*, without the *mistakes*."""
    raw: RawConfig = {}
    for name, (at, node) in nodes.items():
        key = keys.get(name)
        if key is None:
            mistakes.add(ConfigError(_no_such_key(name, keys), source.path, at, f"{where}{name}"))
            continue
        try:
            raw[name] = _values(node, source, key, at, where, name)
        except ConfigError as error:
            mistakes.add(error)
        if source.left < 0:
            break
    return raw


def _no_such_key(name: str, keys: Mapping[str, Key]) -> str:
    """Return what is wrong with the key *name*, which is none of *keys*."""
    if name == "<<":
        return "no such key; what holds for all VMs stands at the top of the file"
    if name in OWN_TEMPLATE_KEYS:
        return "no such key here; it is a template's, and stands in the list templates"
    if keys is KEYS and name in VM_KEYS:
        return "no such key here; it is a VM's, and stands in the list vms"
    if keys is VM_KEYS and name in KEYS:
        return "no such key here; it stands at the top of the file"
    return f"no such key{near(name, [*keys, *GROUPS] if keys is KEYS else keys)}"


def _values(node: yaml.Node, source: _Source, key: Key, at: int, where: str, name: str) -> list[RawValue]:
    """Return the values of the key *name*, which stands in line *at*."""
    if isinstance(node, yaml.MappingNode) and key.pairs:
        return _pairs(node, source, key, where, name)
    items = node.value if isinstance(node, yaml.SequenceNode) and key.many else [node]
    if not items:
        raise ConfigError("is an empty list; name one, or leave the key out", source.path, at, f"{where}{name}")
    found = []
    for item in items:
        line = item.start_mark.line + 1
        if not isinstance(item, yaml.ScalarNode):
            kind = "a list" if isinstance(item, yaml.SequenceNode) else "a group of keys"
            raise ConfigError(f"takes one value, not {kind}", source.path, line, f"{where}{name}")
        if item.tag == _NULL:
            raise ConfigError("has no value; give one or leave the key out", source.path, at, f"{where}{name}")
        if len(item.value) > LONGEST:
            raise ConfigError(f"is longer than {LONGEST} characters", source.path, line, f"{where}{name}")
        source.left -= 1
        if source.left < 0:
            raise ConfigError(f"the file says more than {MOST_VALUES} values", source.path, line, f"{where}{name}")
        found.append(RawValue(item.value, source.path, line))
    return found


def _pairs(node: yaml.MappingNode, source: _Source, key: Key, where: str, name: str) -> list[RawValue]:
    """Return the lines of a mapping, each as ``NAME=VALUE``."""
    mistakes, found = Mistakes(), []
    for left, (at, value) in _mapping(node, source.path, f"{where}{name}", mistakes).items():
        if not isinstance(value, yaml.ScalarNode):
            mistakes.add(ConfigError("takes one value", source.path, at, f"{where}{name}.{left}"))
        else:
            found += [one._replace(text=f"{left}={one.text}") for one in _values(value, source, key, at, where, name)]
    mistakes.end()
    if not found:
        line = node.start_mark.line + 1
        raise ConfigError("is empty; name one, or leave the key out", source.path, line, f"{where}{name}")
    return found


def read_pairs(text: str) -> RawConfig:
    """
    Return the raw configuration of a VM in ``key=value`` pairs.

    Raises:
        ConfigError: they are none, or have keys that do not exist.
    """
    raw: RawConfig = {}
    for pair in text.split(","):
        key, equals, value = pair.strip().partition("=")
        if not equals:
            remedy = "" if "=" in text else "; a file is named by --config"
            raise ConfigError(f"{pair!r} is not of the form key=value{remedy}", COMMAND_LINE, key=text)
        if key not in VM_KEYS:
            raise ConfigError(f"no such key{near(key, VM_KEYS)}", COMMAND_LINE, key=key)
        if key in raw and not VM_KEYS[key].many:
            raise ConfigError("is there twice; keep one", COMMAND_LINE, key=key)
        raw.setdefault(key, []).append(RawValue(value, COMMAND_LINE))
    return raw
