"""The documentation: what its pages have readers write, run and open is tried as far as it can be here."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.dom import minidom

import click
import yaml
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import ctl
from jitsu_tw.config.build import load
from jitsu_tw.config.schema import VM_KEYS
from jitsu_tw.tap import Options
from synjitsu_tw.tap import Options as SynjitsuOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))

#: Languages of blocks that say what a program prints or another program reads; and Sphinx's own.
UNCHECKED: Final = {"text", "ini", "diff"}

#: Programs of the system.
SYSTEM: Final = frozenset({
    "apt", "cat", "cd", "chown", "cp", "curl", "cut", "dig", "echo", "eval", "export", "getent", "git",
    "install", "ip", "journalctl", "ln", "mkdir", "openssl", "pihole", "podman", "python3", "resolvectl", "ss",
    "ssh", "sudo", "systemctl", "systemd-sysusers", "umask", "useradd", "usermod", "virsh",
})  # fmt: skip


class Block(NamedTuple):
    """
    A fenced block.

    Attributes:
        place: the page and the line.
        language: as its first line says.
    """

    place: str
    language: str
    text: str


def blocks(*languages: str, pages: tuple[Path, ...] = PAGES) -> Iterator[Block]:
    """Yield the blocks of *languages*, of all if none is given."""
    for page in pages:
        text = page.read_text()
        for found in re.finditer(r"^( *)```([^`\n]*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
            indent, language, inside = found.groups()
            place = f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}"
            if not languages or language in languages:
                yield Block(place, language, re.sub(f"^{indent}", "", inside, flags=re.MULTILINE))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a shell's *text*, without what it is redirected to."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n|\s# .*$", "", text, flags=re.MULTILINE))
    for line in text.splitlines():
        if inner := re.search(r"\$\((\w.*?)\)", line):
            yield from commands(inner[1])
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        to_file = False
        for word in [*lexer, ";"]:
            if not re.fullmatch("[();<>|&]+", word):
                words += [word] * (not to_file)
                to_file = False
                continue
            to_file = set(word) <= {"<", ">"}
            if to_file:
                continue
            if words and not re.match(r"\w+=", words[0]):
                yield words
            words = []


class BlocksTests(SynchronousTestCase):
    """Each block of a page."""

    def test_languages(self) -> None:
        """Each block has a language that is checked here, or a reason not to be; README has pictures besides."""
        known = {"yaml", "zone", "sh", "xml", "python", *UNCHECKED}
        for block in blocks():
            if not (block.language.startswith("{") or block.place.startswith("README")):
                self.assertIn(block.language, known, block.place)

    def test_configurations(self) -> None:
        """Each configuration can be loaded, with the files that it names."""
        found = list(blocks("yaml"))
        self.assertGreater(len(found), 12)
        for block in found:
            folder = Path(tempfile.mkdtemp())
            self.addCleanup(shutil.rmtree, folder)
            said = yaml.safe_load(block.text)
            for name in said.get("zones", ()):
                zone = name.removesuffix(".zone")
                (folder / name).write_text(
                    f"$ORIGIN {zone}.\n@ 3600 IN SOA ns h 1 2 3 4 5\n@ 3600 IN NS ns\nns 3600 IN A 192.0.2.53\n"
                )
            (folder / "www.xml").write_text("<domain type='kvm'><name>www</name></domain>")
            (folder / "site.xml").write_text("<domain type='kvm'><name>${name}</name></domain>")
            (folder / "disk.xml").write_text("<domain type='kvm'><name>${name}</name><title>${disk}</title></domain>")
            for name in ("token", "synjitsu.secret", "webhook.secret", "xapi.password"):
                (folder / name).write_text("x" * 40)
                (folder / name).chmod(0o600)
            (folder / "jitsu.yaml").write_text(block.text.replace("/etc/jitsu", str(folder)))
            settings, _ = load({}, (), folder / "jitsu.yaml")
            numbers = [len(said.get(key, ())) for key in ("vms", "templates")]
            self.assertEqual(numbers, [len(settings.vms), len(settings.templates)], block.place)

    def test_tutorial(self) -> None:
        """Of the tutorial's configuration `jitsuctl check` prints what the page says."""
        page = DOCS / "tutorial" / "first-vm.md"
        (block,) = blocks("yaml", pages=(page,))
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        (folder / "jitsu.yaml").write_text(block.text)
        run = CliRunner().invoke(ctl.main, ["check", "--config", str(folder / "jitsu.yaml")])
        self.assertIn(f"`{run.output.strip()}`", page.read_text())

    def test_zones(self) -> None:
        """Each zone can be loaded, without a warning."""
        found = list(blocks("zone"))
        self.assertGreater(len(found), 3)
        for block in found:
            folder = Path(tempfile.mkdtemp())
            self.addCleanup(shutil.rmtree, folder)
            (folder / "a.zone").write_text(block.text)
            (origin,) = re.findall(r"\$ORIGIN (\S+)\.$", block.text, flags=re.MULTILINE)
            pair = f"name=a,dns=a.{origin},ip=192.0.2.80,backend=memory"
            _, zones = load({"zones": [str(folder / "a.zone")]}, (pair,))
            self.assertEqual([], [str(warning) for zone in zones for warning in zone.warnings], block.place)

    def test_commands(self) -> None:
        """Each command exists; ours take its options and arguments. Contributors have other tools."""
        pages = tuple(page for page in PAGES if page.name != "contributing.md")
        found = [(block.place, words) for block in blocks("sh", pages=pages) for words in commands(block.text)]
        self.assertGreater(len(found), 80)
        for place, words in found:
            self.check_command(place, *words)

    def check_command(self, place: str, name: str, *arguments: str) -> None:
        """Check one command."""
        if name == "twistd":
            name = next(word for word in arguments if word in {"jitsu", "synjitsu"})
            arguments = arguments[arguments.index(name) + 1 :]
        if name == "jitsuctl":
            self.check_jitsuctl(place, *arguments)
        elif name in {"jitsu", "synjitsu"}:
            {"jitsu": Options, "synjitsu": SynjitsuOptions}[name]().parseOptions(list(arguments))
        elif name == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            self.assertIn(arguments[0], targets, place)
        elif name.startswith("demo/"):
            self.assertTrue((ROOT / name).is_file(), place)
        elif not name.startswith(("/opt/jitsu/bin/", "packaging/")):
            self.assertIn(name, SYSTEM, place)

    def check_jitsuctl(self, place: str, *arguments: str) -> None:
        """Check that jitsuctl takes *arguments*."""
        try:
            context = ctl.main.make_context("jitsuctl", list(arguments))
            _, command, rest = ctl.main.resolve_command(context, [*context.protected_args, *context.args])
            assert command is not None
            command.make_context(command.name, rest, parent=context)
        except click.UsageError as error:
            self.fail(f"{place}: jitsuctl {shlex.join(arguments)}: {error.format_message()}")

    def test_syntax(self) -> None:
        """XML is well-formed, and Python compiles."""
        for block in blocks("xml"):
            minidom.parseString(block.text)  # noqa: S318 -- it is ours
        for block in blocks("python"):
            ast.parse(block.text)

    def test_links(self) -> None:
        """What README links to is there; Sphinx looks at the links of the other pages."""
        found = re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / "README.md").read_text())
        self.assertGreater(len(found), 8)
        for link in found:
            self.assertTrue((ROOT / link).is_file(), link)

    def test_length(self) -> None:
        """README is short."""
        self.assertLessEqual(len((ROOT / "README.md").read_text().splitlines()), 150)

    def test_lines(self) -> None:
        """The log lines that need an operator, and what `jitsuctl why` says, are lines of the programs."""
        page = (DOCS / "reference" / "messages.md").read_text()
        page += (DOCS / "troubleshooting.md").read_text().partition("(never-stops)=")[2].partition("\n## The VM is")[0]
        rows = re.findall(r"^\| `(.*?)` \|", page, flags=re.MULTILINE)
        sources = [path.read_text() for name in ("jitsu_tw", "synjitsu_tw") for path in (ROOT / name).rglob("*.py")]
        self.assertGreater(len(rows), 12)
        for row in rows:
            for part in filter(None, (part.strip(": ") for part in row.split("…"))):
                self.assertTrue(any(part in source for source in sources), part)

    def test_own_keys(self) -> None:
        """The page on users of one VM has each key that the VM's own branch may change."""
        page = (DOCS / "how-to" / "per-user-keys.md").read_text()
        for name, key in VM_KEYS.items():
            if key.own is not None:
                self.assertIn(f"{{key}}`{name}`", page)


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what Sphinx builds."""
    return tempfile.TemporaryDirectory()


def sphinx(builder: str) -> str:
    """Build the documentation, of which a warning is an error; return the folder."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", builder]
    run = subprocess.run([*command, "-d", f"{folder().name}/doctrees", DOCS, f"{folder().name}/{builder}"],
                         check=False, cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return f"{folder().name}/{builder}"


manual = functools.cache(functools.partial(sphinx, "man"))


class ManTests(SynchronousTestCase):
    """What Sphinx makes, above all each manual page."""

    def test_references(self) -> None:
        """Every reference of every page has its target."""
        sphinx("dummy")

    def page(self, name: str) -> str:
        """Return a page as it is read, without its emphasis; it is well-formed."""
        command = ["groff", "-t", "-man", "-ww", "-Kutf8", "-Tutf8", "-P-cbou", "-rLL=200n", f"{manual()}/{name}"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        self.assertEqual("", run.stderr)
        self.assertNotRegex(run.stdout, r"<(#[\w-]+)?>", "the target of a link inside")
        return run.stdout

    def test_options(self) -> None:
        """The pages of both servers have every option."""
        for name, options in (("jitsu.8", Options()), ("synjitsu.8", SynjitsuOptions())):
            page = self.page(name)
            for option in options.longOpt:
                self.assertRegex(page, rf"(?m)^ +(-\w( \S+)?, )?--{option.rstrip('=')}\b", name)

    def test_commands(self) -> None:
        """The page of jitsuctl has every command and every option."""
        page = self.page("jitsuctl.1")
        context = click.Context(ctl.main)
        for name in ctl.main.list_commands(context):
            command = ctl.main.get_command(context, name)
            assert command is not None
            self.assertRegex(page, rf"(?m)^ +{name}$")
            for parameter in (*command.params, *ctl.main.params):
                for option in parameter.opts:
                    if isinstance(parameter, click.Option):
                        self.assertIn(option, page, name)

    def test_keys(self) -> None:
        """The page of the configuration has every key of a VM."""
        page = self.page("jitsu.yaml.5")
        for name in VM_KEYS:
            self.assertRegex(page, rf"(?m)^ +{name}\b")
