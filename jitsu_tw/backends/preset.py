"""
The commands that start, stop and observe a machine; and presets, which have the commands for one kind of machines.

A preset is a file in the folder ``presets``. A command is divided into words once, when it is read; then the values of
a machine are put into the words, each of which stays one argument. No shell is involved.
"""

from __future__ import annotations

import enum
import re
import shlex
import uuid as uuids
from pathlib import Path
from string import Template as Text
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import yaml

from jitsu_tw import parsers
from jitsu_tw.errors import ConfigError
from jitsu_tw.ijitsu import Power
from jitsu_tw.keys import setting
from jitsu_tw.settings import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jitsu_tw.settings import VM

T = TypeVar("T")

#: The files of the presets.
FOLDER: Final = Path(__file__).with_name("presets")

#: The commands that a machine may have.
COMMANDS: Final = (
    "start", "stop", "kill", "state", "pause", "resume", "save", "events", "packets", "run",
)  # fmt: skip

#: The commands that `run` makes up for.
_NOT_WITH_RUN: Final = frozenset(COMMANDS) - {"run", "packets"}

#: Seconds within which a command is to end; `stop` has these besides the VM's `stop_timeout`.
DEADLINES: Final = {"state": 10.0, "start": 60.0, "stop": 10.0}

#: Seconds between two calls of `state`, for a machine whose changes no stream of events tells.
POLL: Final = 30.0

#: The word for a `state` that writes nothing, and the beginnings of a word that is an exit status, and of one that
#: stands anywhere in what `state` writes.
NOTHING: Final = "nothing"
EXIT: Final = "exit "
HAS: Final = "has "

#: The values of every machine, and what they are.
VALUES: Final[Mapping[str, str]] = {
    "name": "the name of the VM",
    "ip": "its first address",
    "mac": "the first of its `mac`",
    "uuid": "its uuid",
    "stop_timeout": "its `stop_timeout`, in whole seconds",
}


class Meaning(enum.Enum):
    """What a word of `state` means."""

    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"
    OFF = "off"
    ABSENT = "absent"  # there is no such machine


#: The power states; ABSENT is none.
POWERS: Final = {
    Meaning.RUNNING: Power.RUNNING, Meaning.PAUSED: Power.PAUSED, Meaning.SAVED: Power.SAVED, Meaning.OFF: Power.OFF,
}  # fmt: skip


def _divided(text: str) -> tuple[str, ...]:
    """Return the words of a command."""
    try:
        words = tuple(shlex.split(parsers.text(text)))
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be divided into words ({error}); quote as in a shell") from error
    if not words:
        raise ValueError("is empty; leave the command out")
    for word in words:
        if not Text(word).is_valid():
            raise ValueError(f"{word!r} has a $ that begins no ${{variable}}; write $$ for the sign itself")
    return words


def _value(text: str) -> str:
    """Return the value of a variable."""
    if parsers.text(text).startswith("-"):
        raise ValueError(f"{text!r} begins with a dash, so a program would take it for an option; write another value")
    return text


def _pairs(kind: str, example: str, name: Callable[[str], str], value: Callable[[str], T]) -> parsers.Parser[Any]:
    """Return a parser of ``NAME=VALUE``; a name may have an equals sign in it if no value has one."""

    def parse(text: str) -> tuple[str, T]:
        left, equals, right = text.rpartition("=") if value is _MEANING else text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not of the form NAME=VALUE; write one like {example}")
        return name(left.strip()), value(right.strip())

    return parsers.Parser(kind, example, parse)


_MEANING: Final = parsers.one_of(Meaning)
_VARIABLE: Final = parsers.matching("variable", "unit", "[a-z][a-z0-9_]*", "is no name of a variable")


#: From ``NAME=COMMAND`` to a command's name and words.
read_pair: Final = _pairs(
    "mapping of commands", "start=mymachine start ${name}", parsers.choice(COMMANDS), _divided
)


@attrs.frozen(kw_only=True)
class CommandSettings:
    """The keys that only VMs with commands have. Each but the last is a mapping, kept as its pairs."""

    commands: tuple[tuple[str, tuple[str, ...]], ...] = setting(
        (), "the commands that start, stop and observe it", read_pair, pairs=True, operator=True,
        shown="those of the backend",
    )
    words: tuple[tuple[str, Meaning], ...] = setting(
        (), "what the words mean that its command `state` writes, or its exit statuses",
        _pairs("mapping of words to running, paused, saved, off or absent", "exit 3=off", parsers.text, _MEANING),
        pairs=True, operator=True, shown="those of the backend",
    )
    variables: tuple[tuple[str, str], ...] = setting(
        (), "the values of the variables in its commands",
        _pairs("mapping of variables", "unit=web.service", _VARIABLE, _value), pairs=True,
    )
    deadlines: tuple[tuple[str, float], ...] = setting(
        (), "how long its commands `state`, `start` and `stop` may take",
        _pairs("mapping of durations", "start=2m", parsers.choice(DEADLINES), parsers.duration(0.1, 3600)),
        pairs=True, shown="10, 60, and 10 more than `stop_timeout`, seconds",
    )
    poll: float = setting(
        POLL, "the time between two calls of its command `state`, where no stream of events tells its changes",
        parsers.duration(1, 86400, "30s"),
    )


#: Those of a VM whose configuration says nothing.
DEFAULTS: Final = CommandSettings()


@attrs.frozen
class Variable:
    """
    A variable of a preset.

    Attributes:
        doc: what its value is.
        default: its value where the configuration has none; empty for none.
        choices: the values that it may have; none for any.
        pattern: what its values look like, a regular expression.
        requests: a request by git may set it. Not one that names a file, a host or a program: Jitsu's user may do more
            than the sender of the request; so it has *choices* or a *pattern*.
    """

    doc: str
    default: str = ""
    choices: tuple[str, ...] = ()
    pattern: str = ".*"
    requests: bool = False


@attrs.frozen
class Preset:
    """
    The commands for one kind of machines.

    Attributes:
        name: of the backend.
        doc: which machines these are.
        tried: with what it was tried, and what was not.
        commands: the words of each command.
        words: what a word of `state` means.
        variables: those of its commands.
        environment: variables of Jitsu's environment that its commands get.
        at_once: a machine runs when `start` has ended well; if not, `state` is called until it runs.
        names: the names that its machines may have: no other one gets into a command or a URL.
    """

    name: str
    doc: str
    tried: str
    commands: Mapping[str, tuple[str, ...]]
    words: Mapping[str, Meaning]
    variables: Mapping[str, Variable]
    environment: tuple[str, ...] = ()
    at_once: bool = False
    names: Variable = Variable("any")

    @property
    def program(self) -> str:
        """The program of all its commands, without which the backend cannot be used; empty if it is not known."""
        program = self.commands.get("state", ("",))[0]
        return "" if "$" in program else program


def read_preset(path: Path) -> Preset:
    """Return the preset in the file at *path*."""
    found = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 -- all values are texts
    return Preset(
        path.stem, found["doc"], found["tried"],
        {name: _divided(text) for name, text in found.get("commands", {}).items()},
        {word: Meaning(meaning) for word, meaning in found.get("words", {}).items()},
        {name: _variable(**one) for name, one in found.get("variables", {}).items()},
        tuple(found.get("environment", ())), found.get("at_once") == "true",
        _variable(**found.get("names", {"doc": "any"})),
    )  # fmt: skip


def _variable(choices: Sequence[str] = (), requests: str = "", **others: str) -> Variable:
    return Variable(choices=tuple(choices), requests=requests == "true", **others)


#: By their names.
PRESETS: Final[Mapping[str, Preset]] = {path.stem: read_preset(path) for path in sorted(FOLDER.glob("*.yaml"))}


@attrs.frozen
class Commands:
    """
    The commands of one machine.

    Attributes:
        argv: the arguments of each command.
        words: what a word of `state` means.
        deadlines: seconds that `state`, `start` and `stop` may take.
        poll: seconds between two calls of `state`.
        at_once: it runs when `start` has ended well.
        repeatable: `start` does no harm to what runs already: it is a preset's.
        named: a line of `events` has the machine's name if it is about it: they are a preset's.
    """

    argv: Mapping[str, tuple[str, ...]]
    words: Mapping[str, Meaning]
    deadlines: Mapping[str, float]
    poll: float
    at_once: bool
    repeatable: bool
    named: bool

    def meaning(self, code: int | None, out: str, err: str) -> Meaning | None:
        """
        Return what `state` says; None for what is not among the words.

        An exit status that is a word counts; else all that a successful program has written, or the first word that it
        has; else, in the message of one that has failed, a word for a machine that is not there.
        """
        if (found := self.words.get(f"{EXIT}{code}")) is not None:
            return found
        if code == 0:
            said = " ".join(out.split()) or NOTHING
            has = (meaning for word, meaning in self.words.items() if word[:4] == HAS and word[4:] in said)
            return self.words.get(said) or next(has, None)
        absent = (
            word for word, meaning in self.words.items()
            if meaning is Meaning.ABSENT and word != NOTHING and not word.startswith((EXIT, HAS))
        )  # fmt: skip
        return Meaning.ABSENT if any(word.lower() in err.lower() for word in absent) else None


def uuid_of(vm: VM, preset: str) -> str:
    """Return the uuid of *vm*: the configuration's, or one that is always the same for the same name."""
    return vm.uuid or str(uuids.uuid5(uuids.NAMESPACE_DNS, f"{vm.name}.{preset}.jitsu"))


def check_vm(vm: VM, backend: str) -> None:
    """
    Check that *vm* can have the commands of this *backend*, and be stopped as it is to be.

    Raises:
        ConfigError: it cannot; without the place, but with the key.
    """
    argv = commands_of(vm, PRESETS[backend]).argv
    if vm.mode in {Mode.PAUSE, Mode.SUSPEND} and not ("run" in argv or {"pause", "resume"} <= argv.keys()):
        raise ConfigError("it has no commands pause and resume; take another mode, or give these commands", key="mode")
    if vm.mode is Mode.SAVE and "save" not in argv:
        raise ConfigError("it has no command save; take another mode, or give this command", key="mode")


def commands_of(vm: VM, preset: Preset) -> Commands:
    """
    Return the commands of *vm*: its own ones, and those of *preset*.

    A command of the preset with a variable that has no value is left out.

    Raises:
        ConfigError: it has not all that it needs, or an unknown variable; without the place, but with the key.
    """
    own: CommandSettings = vm.backend_settings or DEFAULTS
    given = _mapping(own.commands, "commands")
    values, known = _values(vm, preset, given), {*VALUES, *preset.variables, *dict(own.variables)}
    argv = {}
    for name, line in {**preset.commands, **given}.items():
        missing = [one for word in line for one in Text(word).get_identifiers() if one not in values]
        if not missing:
            argv[name] = tuple(Text(word).substitute(values) for word in line)
        elif missing[0] not in known:
            listed = ", ".join(f"${{{one}}}" for one in sorted(known))
            raise ConfigError(f"{name} has ${{{missing[0]}}}, which is unknown; known are {listed}", key="commands")
        elif name in given or name in {"start", "state"}:
            key = missing[0] if missing[0] in VALUES else "variables"
            raise ConfigError(f"{missing[0]} is needed, {_doc(missing[0], preset)}, for the command {name}", key=key)
    _check_complete(argv, preset)
    stop = DEADLINES["stop"] + vm.stop_timeout
    deadlines = {**DEADLINES, "stop": stop, **_mapping(own.deadlines, "deadlines")}
    words = {**preset.words, **_mapping(own.words, "words")}
    at_once = preset.at_once and "start" not in given
    return Commands(argv, words, deadlines, own.poll, at_once, "start" not in given, "events" not in given)


def _doc(variable: str, preset: Preset) -> str:
    """Return what a variable is."""
    return VALUES.get(variable) or preset.variables[variable].doc


def _values(vm: VM, preset: Preset, given: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the values that the commands of *vm* may have in them."""
    settings: CommandSettings = vm.backend_settings or DEFAULTS
    own = _mapping(settings.variables, "variables")
    used = {one for words in given.values() for word in words for one in Text(word).get_identifiers()}
    for name, value in own.items():
        variable = preset.variables.get(name)
        if name in VALUES or (variable is None and name not in used):
            names = [*preset.variables, *used - VALUES.keys()]
            listed = ", ".join(sorted(names)) or "none"
            message = f"{name} is no variable of its commands; they have {listed}{parsers.near(name, names)}"
            raise ConfigError(message, key="variables")
        if variable is not None and variable.choices and value not in variable.choices:
            raise ConfigError(f"{name} should be one of {', '.join(variable.choices)}", key="variables")
        if variable is not None and not re.fullmatch(variable.pattern, value, re.ASCII | re.DOTALL):
            message = f"{name} should be {variable.doc}, of the form {variable.pattern}; {value!r} is not"
            raise ConfigError(message, key="variables")
    if vm.name.startswith("-"):
        raise ConfigError("begins with a dash, so a program would take it for an option; take another name", key="name")
    if not re.fullmatch(preset.names.pattern, vm.name, re.ASCII | re.DOTALL):
        raise ConfigError(f"is no name for {preset.name}, whose names are {preset.names.doc}; rename it", key="name")
    values = {
        "name": vm.name, "uuid": uuid_of(vm, preset.name), "stop_timeout": f"{vm.stop_timeout:.0f}",
        **{name: str(value[0]) for name, value in (("ip", vm.ip), ("mac", vm.mac)) if value},
    }  # fmt: skip
    return {**{name: one.default for name, one in preset.variables.items() if one.default}, **values, **own}


def _mapping(pairs: Iterable[tuple[str, T]], key: str) -> dict[str, T]:
    """Return the mapping that *pairs* are, of which none may be there twice."""
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise ConfigError(f"{name} is there twice; keep one", key=key)
        found[name] = value
    return found


def _check_complete(argv: Mapping[str, tuple[str, ...]], preset: Preset) -> None:
    """Refuse commands that lack one that every machine needs, or contradict each other."""
    if "run" in argv:
        if wrong := sorted(_NOT_WITH_RUN & argv.keys()):
            raise ConfigError(f"Jitsu itself keeps what run starts; leave {wrong[0]} out", key="commands")
        return
    needed = ("run",) if preset.name == "exec" else ("start", "state")
    for name in needed:
        if name not in argv:
            raise ConfigError(f"{name} is missing; give this command", key="commands")


def by_request(backend: str, name: str) -> bool:
    """Return whether a request by git may set the variable *name* of a VM of this *backend*."""
    preset = PRESETS.get(backend)
    return preset is not None and name in preset.variables and preset.variables[name].requests


