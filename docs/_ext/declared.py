"""
Reference pages made of what the program itself declares: keys, options, the HTTP interface, metrics, log lines.

Each directive writes Markdown and has it parsed where it stands, so that HTML and manual pages have the same text.
"""

from __future__ import annotations

import ast
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import yaml
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from jitsu_tw.backends.definition import PLACEHOLDERS
from jitsu_tw.backends.preset import PRESETS
from jitsu_tw.config.schema import (
    BACKEND_KEYS,
    CLUSTER_KEYS,
    DNSSEC_KEYS,
    HOST_KEYS,
    INHERITED,
    KEYS,
    OWN_TEMPLATE_KEYS,
    TEMPLATE_KEYS,
    VM_KEYS,
)
from jitsu_tw.readiness import READINESS
from jitsu_tw.tap import Options
from synjitsu_tw.tap import Options as SynjitsuOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docutils.nodes import Node  # type: ignore[import-untyped]
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from twisted.python import usage

    from jitsu_tw.backends.preset import Preset
    from jitsu_tw.keys import Key

ROOT: Final = Path(__file__).parents[2]

#: The programs that twistd runs.
PROGRAMS: Final[Mapping[str, type[usage.Options]]] = {"jitsu": Options, "synjitsu": SynjitsuOptions}

#: How many choices stand for the value of an option; where there are more, its text has them.
MOST_CHOICES: Final = 6


def declared() -> dict[str, tuple[Key, str]]:
    """Return each key and the group that it stands in, by the name of its entry."""
    own = {name: key for name, key in VM_KEYS.items() if name not in INHERITED}
    return {
        **{name: (key, "inherited" if name in INHERITED else "top") for name, key in KEYS.items()},
        **{f"vms.{name}" if name in KEYS else name: (key, "vms") for name, key in own.items()},
        **{f"templates.{name}": (key, "templates") for name, key in TEMPLATE_KEYS.items() if name in OWN_TEMPLATE_KEYS},
        **{f"cluster.{name}": (key, "cluster") for name, key in CLUSTER_KEYS.items()},
        **{f"dnssec.{name}": (key, "dnssec") for name, key in DNSSEC_KEYS.items()},
        **{f"hosts.{name}": (key, "hosts") for name, key in HOST_KEYS.items()},
    }


def kind_of(key: Key) -> str:
    """Return what kind of value a key takes."""
    kind = key.kind.removeprefix("list of: ")
    if key.pairs:
        return kind
    if key.unit:
        kind += f"; a plain number is in {key.unit}"
    return f"{kind}; one, or a list" if key.many else kind


def backends_of(name: str) -> list[str]:
    """Return the backends that declare a key."""
    return [backend for backend, keys in BACKEND_KEYS.items() if name in keys]


def not_of_template(name: str) -> str:
    """Return what is to be said of a key of VMs that a template has not; empty for one that it has."""
    return "" if name.rpartition(".")[2] in TEMPLATE_KEYS else ", not a template"


def branch_of(key: Key) -> str:
    """Return what a VM's own branch may set a key to (`sync.permissions`); empty for nothing."""
    if key.own is None:
        return ""
    least, most, number = key.own.least, key.own.most, key.own.number
    words = [f"from {least:,g}"] * (least > -math.inf) + [f"to {most:,g}"] * (most < math.inf)
    words += [key.unit] * bool(words) + [f"{number} values at most"] * (number > 1)
    return "; the VM's own branch may change it" + f" ({' '.join(words).strip()})" * bool(words)


def entry(name: str, key: Key, group: str, prose: str) -> str:
    """Return the entry of a key: what it is for, the *prose* of the page, and a line of facts about it."""
    default = f"{key.shown} {key.unit}".strip() if re.fullmatch("[0-9.]+", key.shown) else key.shown
    required = "none" if name in READINESS else "none; it is required"
    facts = {"Type": kind_of(key), "Default": default or required}
    example = "{{{}: {}}}".format(*key.example.split("=", 1)) if key.pairs else key.example
    facts["Example"] = f"`{name.rpartition('.')[2]}: {example}`"
    if group in {"top", "inherited"} and key.option is not None:
        long = f"--{name.replace('_', '-').removesuffix('s' if name == 'zones' else '')}"
        letter = {"zones": "z"}.get(name, key.option)
        facts["Option"] = f"`-{letter}`, `{long}`" if letter else f"`{long}`"
    backends = " or ".join(f"`{backend}`" for backend in backends_of(name))
    facts["Place"] = {
        "top": "top",
        "inherited": "top, for all VMs, or one VM",
        "vms": (f"a VM of the backend {backends}" if backends and name != "mac" else "a VM") + not_of_template(name),
        "templates": "an item of `templates`",
        "cluster": "the group `cluster`",
        "dnssec": "the group `dnssec`",
        "hosts": "an item of `hosts`",
    }[group] + branch_of(key)
    line = " · ".join(f"**{fact}:** {value}" for fact, value in facts.items())
    doc = key.doc.rstrip(".")
    return f":::::{{key}} {name}\n{doc[:1].upper()}{doc[1:]}.\n\n{prose}\n\n{line}\n:::::\n"


class Declared(SphinxDirective):
    """A directive that is replaced by Markdown."""

    def markdown(self) -> str:
        """Return the text to be parsed."""
        raise NotImplementedError

    def seen(self) -> set[str]:
        """Return the names of the keys that have an entry in this page so far."""
        return cast("set[str]", self.env.current_document.setdefault("jitsu_settings", set()))

    def run(self) -> list[Node]:
        """Parse the text."""
        return self.parse_text_to_nodes(self.markdown())


class Setting(Declared):
    """The entry of one key; the content is prose beside what is declared."""

    required_arguments = 1
    has_content = True

    def markdown(self) -> str:
        """Return the entry."""
        (name,) = self.arguments
        if name not in declared():
            raise self.error(f"there is no key {name}")
        seen = self.seen()
        if name in seen:
            raise self.error(f"the key {name} has two entries")
        seen.add(name)
        return entry(name, *declared()[name], "\n".join(self.content))


class OtherSettings(Declared):
    """The entries of all keys of a group, or of these names, that have had none in the page so far."""

    required_arguments = 1
    final_argument_whitespace = True

    def markdown(self) -> str:
        """Return the entries."""
        wanted = set(self.arguments[0].split())
        seen = self.seen()
        found = {
            name: (key, group)
            for name, (key, group) in declared().items()
            if name not in seen and wanted & {name, group, "all", *backends_of(name)}
        }
        seen.update(found)
        head = "**Further keys.**\n\n" if found and "all" in wanted else ""
        return head + "\n".join(entry(name, key, group, "") for name, (key, group) in found.items())


class Placeholders(Declared):
    """What stands for the values of a VM in the file that defines the VMs of a template."""

    def markdown(self) -> str:
        """Return a table of the placeholders."""
        rows = ["| placeholder | stands for |", "| --- | --- |"]
        rows += [f"| `${{{name}}}` | {meaning} |" for name, meaning in PLACEHOLDERS.items()]
        return "\n".join(rows)


class Presets(Declared):
    """The commands of each preset, their variables, what the words of `state` mean, and with what it was tried."""

    def markdown(self) -> str:
        """Return a paragraph and a block for each preset that has commands."""
        return "\n\n".join(map(preset_entry, filter(lambda preset: preset.commands, PRESETS.values())))


def preset_entry(preset: Preset) -> str:
    """Return what is to be known of a preset."""
    variables = "; ".join(
        f"`{name}`, {one.doc}{f' (`{one.default}`)' * bool(one.default)}" for name, one in preset.variables.items()
    )
    words = ", ".join(f"`{word}` {meaning.value}" for word, meaning in preset.words.items())
    lines = "\n".join(f"{name}: {shlex.join(argv)}" for name, argv in preset.commands.items())
    has = f"**Variables:** {variables}. " if variables else ""
    head = f"**{preset.name}.** {preset.doc} {has}**Words:** {words}. **Tried with:** {preset.tried}."
    return f"{head}\n\n```text\n{lines}\n```"


class TwistdOptions(Declared):
    """The options of one of the programs that twistd runs."""

    required_arguments = 1

    def markdown(self) -> str:
        """Return an entry for each option."""
        (program,) = self.arguments
        return "\n".join(f":::{{option}} {head}\n{doc}\n:::\n" for head, doc in options(PROGRAMS[program]()))


def options(parsed: usage.Options) -> Iterator[tuple[str, str]]:
    """Yield the head and the text of each option of *parsed*."""
    inside: Any = parsed
    letters = {name: letter for letter, name in inside.synonyms.items() if len(letter) == 1}
    for option in inside.longOpt:
        name = option.rstrip("=")
        doc = " ".join((inside.docs.get(name) or "").split())
        if name == "help":
            doc = "List the options, and exit."
        value = f" {placeholder(name, doc)}" if option.endswith("=") else ""
        heads = [f"-{letter}{value}" for letter in letters.get(name, "")] + [f"--{name}{value}"]
        default = inside.defaults.get(name) if option.endswith("=") else None
        yield ", ".join(heads), f"{doc} Default: `{default}`." if default else doc


def placeholder(name: str, doc: str) -> str:
    """Return what stands for the value of an option."""
    key = KEYS.get(name.replace("-", "_"))
    kind = key.kind.removeprefix("list of: ") if key is not None else ""
    if kind.startswith("one of "):
        choices = kind.removeprefix("one of ").split(", ")
        return "|".join(choices) if len(choices) <= MOST_CHOICES else name.upper()
    plain = re.match("(?:[A-Za-z]+ )*([a-z]+)(?:,|$)", kind)
    return plain[1].upper() if plain else "FILE" if "file" in doc.lower() else "VALUE"


class HttpApi(Declared):
    """The HTTP interface, from the OpenAPI document."""

    def markdown(self) -> str:
        """Return an entry for each request, and one for each type."""
        document = yaml.safe_load((ROOT / "jitsu_tw" / "control" / "openapi.yaml").read_text())
        parts = [document["info"]["description"], ""]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if method != "parameters":
                    common = item.get("parameters", [])
                    parts += request(document, f"{method.upper()} {path}", operation, common)
        parts += ["**Types.** A `?` means that the value may be null.", ""]
        for name, schema in document["components"]["schemas"].items():
            parts += [f"`{name}`", f": {described(schema)}", ""]
            parts += [f"  - {line}" for line in properties(schema)] + [""]
        return "\n".join(parts)


def request(document: Any, head: str, operation: Any, common: list[Any]) -> Iterator[str]:
    """Yield the lines of the entry of one request."""
    yield f"`{head}`"
    yield f": {operation['summary'].rstrip('.')}. {operation.get('description', '')}"
    yield ""
    for parameter in [*common, *operation.get("parameters", [])]:
        one = resolved(document, parameter)
        if one["in"] != "path":
            yield f"  - `{one['name']}` ({one['in']}): {one.get('description', shape(one['schema']))}"
    for status, answer in operation["responses"].items():
        one = resolved(document, answer)
        kinds = {shape(content["schema"]) for content in one["content"].values()}
        if status != "default":
            yield f"  - {status}: {one['description']}; {', '.join(sorted(kinds))}"
    yield ""


def resolved(document: Any, one: Any) -> Any:
    """Return what a reference is to, or the thing itself."""
    for part in one.get("$ref", "#").split("/")[1:]:
        document = document[part]
    return document if "$ref" in one else one


def shape(schema: Any) -> str:
    """Return the type that a schema describes, in one line."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        return f"{kind[0]}?"
    return f"list of {shape(schema['items'])}" if kind == "array" else str(kind)


def described(schema: Any) -> str:
    """Return the description of a type."""
    if "allOf" in schema:
        return "as " + " and ".join(shape(one) for one in schema["allOf"] if "$ref" in one) + ", and:"
    return str(schema.get("description", shape(schema)))


def properties(schema: Any) -> Iterator[str]:
    """Yield a line for each property of a type."""
    for part in schema.get("allOf", [schema]):
        for name, one in part.get("properties", {}).items():
            about = f": {one['description']}" if "description" in one else ""
            yield f"`{name}`, {shape(one)}{about}"


class MetricsTable(Declared):
    """The metrics, from the collectors that show them."""

    def markdown(self) -> str:
        """Return a table of names, types, labels and help texts."""
        from test.support import vm  # noqa: PLC0415
        from test.support.control import Desk, site  # noqa: PLC0415

        desk = Desk(vm(), templates=(site(),))
        functions = {path: function for _, path, function in desk.endpoint.routes}
        metrics: Any = getattr(functions["/metrics"], "__self__", None)
        metrics._collector.synjitsu = {"configured": True, "error": None, "standins": [], "counters": {}}  # noqa: SLF001
        declared_labels = {
            one._name: one._labelnames for one in metrics._registry._collector_to_names if hasattr(one, "_labelnames")  # noqa: SLF001
        }
        rows = ["| metric | type | | labels |", "| --- | --- | --- | --- |"]
        for family in sorted(metrics._registry.collect(), key=lambda one: str(one.name)):  # noqa: SLF001
            names = getattr(family, "_labelnames", ()) or declared_labels.get(family.name, ())
            labels = dict.fromkeys(filter(None, names), "")
            for label in labels:
                values = {sample.labels[label] for sample in family.samples if label in sample.labels}
                labels[label] = ", ".join(f"`{value}`" for value in sorted(values)) if len(values) > 1 else ""
            shown = "; ".join(f"`{label}`" + f": {values}" * bool(values) for label, values in labels.items())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append(f"| `{name}` | {family.type} | {family.documentation} | {shown} |")
        return "\n".join(rows)


class LogMessages(Declared):
    """The lines that a program logs, from its sources."""

    required_arguments = 1

    def markdown(self) -> str:
        """Return a table of levels and messages."""
        rows = ["| level | message |", "| --- | --- |"]
        found = set()
        for path in sorted((ROOT / self.arguments[0]).rglob("*.py")):
            found |= set(logged(path.read_text()))
        order = {"error": 0, "warn": 1, "info": 2}
        rows += [f"| {level} | {words} |" for level, words in sorted(found, key=lambda one: (order[one[0]], one[1]))]
        return "\n".join(rows)


def logged(text: str) -> Iterator[tuple[str, str]]:
    """Yield the level and the text of each line that a module logs."""
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        words = node.args[0]
        is_log = node.func.attr in {"error", "warn", "info"} and ast.unparse(node.func.value).endswith("log")
        if is_log and isinstance(words, ast.Constant) and re.search(r"[a-z]{2,} [a-z]", str(words.value)):
            yield node.func.attr, f"`{' '.join(str(words.value).split())}`".replace("|", "\\|")


def parse_key(_: BuildEnvironment, text: str, node: addnodes.desc_signature) -> str:
    """Write the head of a key's entry; return the name that references have."""
    group, name = text.rpartition(".")[::2]
    node += addnodes.desc_name("", name)
    if group:
        node += addnodes.desc_annotation("", f" (in {group})")
    return text


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.add_object_type("key", "key", "configuration key; %s", parse_key)
    for name, directive in (("setting", Setting), ("other-settings", OtherSettings), ("metrics", MetricsTable),
                            ("placeholders", Placeholders), ("presets", Presets),
                            ("twistd-options", TwistdOptions), ("http-api", HttpApi),
                            ("log-messages", LogMessages)):  # fmt: skip
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
