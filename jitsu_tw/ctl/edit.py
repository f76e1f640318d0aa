"""
jitsuctl's commands that change VMs and templates by their names.

Each is a request, as anybody can push one with git: a commit on the state's last one, which the running Jitsu merges or
rejects with the reason. So it is in the history, and can be undone by ``jitsuctl revert``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click
import pygit2

from jitsu_tw.config.schema import OWN_TEMPLATE_KEYS, STRICT, TEMPLATE_KEYS, VM_KEYS
from jitsu_tw.config.source import COMMAND_LINE, RawValue, read_vm
from jitsu_tw.config.vms import TEMPLATE
from jitsu_tw.ctl import show
from jitsu_tw.ctl.history import ask, commit_at, opened, state_option, who_is, with_vms
from jitsu_tw.ctl.show import FailedError, NoAnswerError
from jitsu_tw.errors import ConfigError, Mistakes
from jitsu_tw.parsers import near
from jitsu_tw.settings import Asks, Existence
from jitsu_tw.store.bounds import Reader, RefusedError
from jitsu_tw.store.history import MAIN
from jitsu_tw.store.layout import NAME, UNKNOWN, came, files_of, in_folder, label, origin_path, sayings
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from jitsu_tw.config.source import RawConfig
    from jitsu_tw.keys import Key

#: The texts of the values of a VM or a template, by key.
Texts = dict[str, list[str]]


#: The keys that no request may set, or not all of their values.
_OPERATORS: Final = frozenset({"variables", *(key for key, row in VM_KEYS.items() if row.operator)})


@attrs.frozen
class Kind:
    """
    What has a folder in the state.

    Attributes:
        word: what it is called.
        required: the keys that each of them has.
        keys: all keys that it may have.
    """

    word: str
    required: tuple[str, ...]
    keys: Mapping[str, Key]


VM: Final = Kind("VM", ("dns", "ip", "name"), VM_KEYS)
A_TEMPLATE: Final = Kind("template", ("dns", "exists", "name", "pool"), TEMPLATE_KEYS)

#: The keys of a VM of a template that cannot be changed: its DNS names are made from its template's.
_MADE: Final = frozenset({"dns", TEMPLATE})

#: A VM that a template has made: it inherits the keys that it does not have itself.
MADE: Final = Kind(
    "VM of a template", ("ip", "name"), {name: key for name, key in VM_KEYS.items() if name not in _MADE}
)

#: What need not be quoted in YAML.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_./@+-]*")
_NULLS: Final = frozenset({"null", "Null", "NULL"})

#: What begins the lines of a document that tell why it was refused.
_ERROR: Final = "#! "


# What a VM is, and what a command makes of it.


def _kind_of(keys: Collection[str]) -> Kind:
    """Return what has these *keys*."""
    if TEMPLATE in keys:
        return MADE
    return VM if (OWN_TEMPLATE_KEYS - VM_KEYS.keys()).isdisjoint(keys) else A_TEMPLATE


def _no_such_key(key: str, kind: Kind) -> str:
    """Return what is wrong with *key*, which something of that *kind* has not."""
    if kind is MADE and key in _MADE:
        return "is the same for all VMs of the template; change the template, or leave it out"
    if key in TEMPLATE_KEYS.keys() | VM_KEYS.keys():
        return f"no key of a {kind.word}"
    return f"no such key{near(key, kind.keys)}"


def _found(repository: pygit2.Repository, name: str) -> tuple[str, dict[str, str]]:
    """
    Return the uuid and the files of the VM or the template *name*.

    Raises:
        FailedError: the state has none of that name.
    """
    reader, names = Reader(repository), []
    folders = reader.folders(commit_at(repository, MAIN))
    for uuid, entry in folders.items():
        tree = repository[entry[0]]
        if isinstance(tree, pygit2.Tree) and NAME in tree:
            names.append(reader.value(tree[NAME].id, NAME).strip())
            if names[-1] == name:
                return uuid, reader.values(uuid, entry)
    raise FailedError(f"the state has no VM {name}, only those that Jitsu has found{near(name, names)}")


def _texts(files: Mapping[str, str]) -> Texts:
    """Return what the *files* of a VM's folder say."""
    texts: Texts = {}
    for key, text, _ in sayings(files, files):
        texts.setdefault(key, []).append(text)
    return texts


def _checked(raw: RawConfig, kind: Kind, *, whole: bool = False) -> Texts:
    """
    Return *raw*, keys of something of that *kind*, as the state has it; if it is *whole*, no required key is missing.

    Raises:
        ConfigError: all that is wrong with the values, or with the keys.
    """
    mistakes, texts = Mistakes(), Texts()
    for key in kind.required if whole else ():
        if key not in raw:
            mistakes.add(ConfigError(f"is missing; every {kind.word} needs its {key}", key=key))
    for key, ones in raw.items():
        if key not in kind.keys:
            mistakes.add(ones[0].wrong(key, _no_such_key(key, kind)))
            continue
        declared, found = kind.keys[key], texts.setdefault(key, [])
        if len(ones) > 1 and not declared.many:
            mistakes.add(ones[1].wrong(key, "takes one value"))
        for one in ones:
            try:
                value = declared.parse(one.text)
            except ValueError as error:
                mistakes.add(one.wrong(key, str(error)))
                continue
            if key == "dns":
                found.append(label(value.lower()))
            else:
                is_path = declared.path or (isinstance(value, Existence) and value.kind is Asks.PATH)
                found.append(str(Path(one.text).absolute()) if is_path else one.text)
    mistakes.end()
    return texts


def _pairs(pairs: Sequence[str]) -> RawConfig:
    """Return the raw values of ``key=value`` arguments; a key that repeats has several."""
    raw: RawConfig = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not of the form key=value", COMMAND_LINE)
        raw.setdefault(key, []).append(RawValue(text, COMMAND_LINE))
    return raw


def _send(
    repository: pygit2.Repository, uuid: str, before: Mapping[str, str], files: Mapping[str, str], message: str
) -> None:
    """
    Make a request that turns a VM's *files* from *before* into these; print the result, and what undoes it, if any.

    Raises:
        FailedError: it is rejected.
    """
    head = commit_at(repository, MAIN)
    tree = with_vms(repository, head.tree, in_folder(uuid, before), in_folder(uuid, files))
    if tree == head.tree_id:
        show.say("nothing has changed")
        return
    who, origin = who_is(repository), origin_path(uuid)
    made = repository.create_commit(None, who, who, message, tree, [head.id])
    is_in_file = before and not came(_text(repository, head, origin))
    merged = ask(repository, f"jitsuctl-{str(made)[:10]}", made)
    if not files and _OPERATORS & _texts(before).keys():
        show.say("a restart of Jitsu has it again, while jitsu.yaml has it; no request may, as it says what Jitsu runs")
        return
    show.say(f"undo it with: jitsuctl revert {str(merged.id)[:10]}")
    if is_in_file:
        what = "template" if _kind_of(_texts(before)) is A_TEMPLATE else "VM"
        show.say(f"jitsu.yaml has this {what}, too, and holds after a restart: change it there as well")


def _text(repository: pygit2.Repository, commit: pygit2.Commit, path: str) -> str | None:
    """Return the value at *path* in *commit*; None if there is none."""
    if path not in commit.tree:
        return None
    return Reader(repository).value(commit.tree[path].id, path)


def _change(state: Path, name: str, message: str, change: Callable[[Texts], None]) -> None:
    """Make the request that *change*s the VM or the template *name*."""
    try:
        with opened(state) as repository:
            uuid, before = _found(repository, name)
            texts = _texts(before)
            change(texts)
            _send(repository, uuid, before, files_of(texts), message)
    except (ConfigError, RefusedError, ValueError) as error:
        raise FailedError(str(error)) from error


# The commands.


@click.command()
@click.argument("name")
@click.argument("key")
@click.argument("values", nargs=-1, required=True)
@state_option
def set(name: str, key: str, values: Sequence[str], state: Path) -> None:  # noqa: A001 -- as the command is called
    """
    Set KEY of the VM or the template NAME to VALUES, and wait until the running Jitsu has taken that.

    The VMs of a template that do not have the key themselves follow. For example: jitsuctl set www ttl 5m, or jitsuctl
    set www ip 192.0.2.80 2001:db8::80
    """

    def change(texts: Texts) -> None:
        texts.update(_checked({key: [RawValue(value, COMMAND_LINE) for value in values]}, _kind_of(texts)))

    _change(state, name, f"{name}: set {key} to {' '.join(values)}", change)


@click.command()
@click.argument("name")
@click.argument("key")
@state_option
def unset(name: str, key: str, state: Path) -> None:
    """
    Remove KEY from the VM or the template NAME.

    It then has what its template or the top of the configuration says, or the default.
    """

    def change(texts: Texts) -> None:
        kind = _kind_of(texts)
        if key not in kind.keys:
            raise FailedError(f"{key}: {_no_such_key(key, kind)}")
        if key in kind.required:
            raise FailedError(f"{key}: every {kind.word} needs it; set it to what it should be")
        if texts.pop(key, None) is None:
            raise FailedError(f"{key}: is not set")

    _change(state, name, f"{name}: unset {key}", change)


@click.command()
@click.argument("name")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@state_option
def add(name: str, pairs: Sequence[str], state: Path) -> None:
    """
    Add the VM NAME, which its hypervisor has by that name, or a template; a key that takes several values may repeat.

    For example: jitsuctl add www dns=www.example.org ip=192.0.2.80 wait_for_port=80, or, for a template, jitsuctl add
    site 'dns=*.sites.example.org' pool=10.1.0.0/16 exists=./names define=site.xml
    """
    try:
        raw = _pairs(pairs)
        named = {**raw, "name": [RawValue(name, COMMAND_LINE), *raw.get("name", ())]}
        texts = _checked(named, A_TEMPLATE if _kind_of(raw) is A_TEMPLATE else VM, whole=True)
        with opened(state) as repository:
            (uuid,) = texts.pop("uuid", [UNKNOWN])
            _send(repository, uuid, {}, files_of(texts), f"{name}: add it")
    except (ConfigError, RefusedError) as error:
        raise FailedError(str(error)) from error


@click.command()
@click.argument("name")
@state_option
def remove(name: str, state: Path) -> None:
    """
    Remove the VM or the template NAME from the configuration.

    A VM that is up is stopped, by its mode. A template must have no VMs: jitsuctl forget --template NAME --all
    """
    _change(state, name, f"{name}: remove it", dict.clear)


@click.command()
@click.argument("name")
@state_option
def edit(name: str, state: Path) -> None:
    """
    Edit all keys of the VM or the template NAME in $VISUAL or $EDITOR.

    What is wrong is told in the editor, which is opened again; leave it without a change to give up.
    """
    try:
        with opened(state) as repository:
            uuid, before = _found(repository, name)
            was = _texts(before)
            kind = _kind_of(was)
            kept = {key: texts for key, texts in was.items() if key not in kind.keys}
            text, error = _document(name, was, kind), ""
            while True:
                edited = _edited(error + text)
                if edited is None or _body(edited) == text:
                    break
                text = _body(edited)
                try:
                    texts = _checked(read_vm(text, Path(f"{name}.yaml"), kind.keys), kind, whole=True)
                    _send(repository, uuid, before, files_of({**kept, **texts}), f"{name}: edit it")
                except NoAnswerError:
                    raise
                except (ConfigError, FailedError) as wrong:
                    error = "".join(f"{_ERROR}{line}\n" for line in str(wrong).splitlines())
                else:
                    return
    except (RefusedError, ValueError) as wrong:
        raise FailedError(str(wrong)) from wrong
    if error:
        raise FailedError(error.replace(_ERROR, "").strip())
    show.say("nothing has changed")


def _edited(text: str) -> str | None:
    """
    Return what the user's editor makes of *text*; None if it has saved nothing.

    Raises:
        FailedError: it has ended badly, or what it leaves is no text.
    """
    try:
        return click.edit(text, extension=".yaml")
    except (click.ClickException, OSError, UnicodeError) as error:
        raise FailedError(f"the editor has failed, so nothing is changed: {error}") from error


def _body(text: str) -> str:
    """Return a document without the lines that tell why it was refused before."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_ERROR))


def _document(name: str, texts: Texts, kind: Kind) -> str:
    """Return the YAML in which *name* is edited: its keys, and, as comments, those that it could have."""
    made = f" of the template {texts[TEMPLATE][0]}, which has what is not here" if kind is MADE else ""
    head = f"{'template' if kind is A_TEMPLATE else 'VM'} {name}{made}"
    lines = [f"# The {printable(head)}. Durations are in seconds, or have units: 90s, 5m, 1h30m.\n"]
    for key in (*kind.required, *(key for key in texts if key in kind.keys and key not in kind.required)):
        values = texts.get(key, [])
        found = [_quoted(value) for value in values]
        shown = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
        lines.append(f"{f'{key}: {shown}':<40}  # {kind.keys[key].doc}\n")
    backend = texts.get("backend", [""])[0]
    lines.append("\n# What else there is, with an example each:\n")
    for key, declared in sorted(kind.keys.items()):
        own = kind is A_TEMPLATE and key in OWN_TEMPLATE_KEYS
        of_backend = own or backend in STRICT.get(key, {backend})
        if key not in texts and key not in {"backend", "connect", "uuid"} and of_backend and not declared.operator:
            lines.append(f"{f'# {key}: {_quoted(declared.example)}':<40}  # {declared.doc}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """Return *text* as a value in YAML."""
    return text if _PLAIN.fullmatch(text) and text not in _NULLS else json.dumps(text, ensure_ascii=False)


#: The commands, for `jitsu_tw.ctl`.
COMMANDS: Final = (set, unset, add, remove, edit)
