"""The layers: imports go down, those for types included (DESIGN, section 2)."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

from test.structure import modules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: The layers of Jitsu, the highest first. A name stands for a package or a module and all below it; the longest one
#: that fits a module counts.
LAYERS: Final = (
    ("jitsu_tw.tap", "jitsu_tw.ctl", "jitsu_tw.listeners"),
    ("jitsu_tw.guests",),
    ("jitsu_tw.control", "jitsu_tw.sync"),
    ("jitsu_tw.config",),
    ("jitsu_tw.dns",),
    ("jitsu_tw.vm", "jitsu_tw.cluster"),
    ("jitsu_tw.backends", "jitsu_tw.readiness", "jitsu_tw.store", "jitsu_tw.synjitsu_client", "jitsu_tw.slices"),
    ("jitsu_tw.rules", "jitsu_tw.ijitsu", "jitsu_tw.ireservations", "jitsu_tw.settings"),
    ("jitsu_tw",),
)

#: Packages of one layer that know of each other only what `ijitsu` says.
APART: Final = ("jitsu_tw.vm", "jitsu_tw.cluster")

#: Formats of the lowest layer: they do nothing, and everything reads and writes them.
FORMATS: Final = ("jitsu_tw.dns.wire", "jitsu_tw.dns.message", "jitsu_tw.dns.tsig")

#: What Synjitsu uses of Jitsu; Jitsu uses nothing of Synjitsu.
COMMON: Final = {"jitsu_tw", "jitsu_tw.clocks", "jitsu_tw.coroutines", "jitsu_tw.dns.connections", "jitsu_tw.errors",
                 "jitsu_tw.logs", "jitsu_tw.messages", "jitsu_tw.networks", "jitsu_tw.sockets", "jitsu_tw.text",
                 "jitsu_tw.twistd", "jitsu_tw.xenstore"}


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the *known* modules that the file at *path* imports, wherever in it, for types or at run time."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found = whole if whole in known else node.module
                if found in known:
                    yield found


def layer(module: str) -> int:
    """Return the number of the layer of *module*, 0 for the highest."""
    if module in FORMATS:
        return len(LAYERS) - 1
    names = {name: number for number, row in enumerate(LAYERS) for name in row}
    while module not in names:
        module = module.rpartition(".")[0]
    return names[module]


class LayersTests(SynchronousTestCase):
    """Reads the imports of all modules."""

    def setUp(self) -> None:
        """Read them."""
        files = modules()
        self.imports = {name: {one for one in imports(path, files) if one != name} for name, path in files.items()}

    def test_imports_go_down(self) -> None:
        """No module imports one of a higher layer."""
        wrong = [
            f"{name} imports {other}"
            for name, others in self.imports.items()
            for other in others
            if name.startswith("jitsu_tw") and other.startswith("jitsu_tw") and layer(other) < layer(name)
        ]
        self.assertEqual([], sorted(wrong))

    def test_apart(self) -> None:
        """Of the VMs' life and the cluster, neither imports the other."""
        wrong = [
            f"{name} imports {other}"
            for name, others in self.imports.items()
            for other in others
            for package in APART
            if name.startswith(f"{package}.") and other.startswith(APART) and not other.startswith(package)
        ]
        self.assertEqual([], sorted(wrong))

    def test_no_circle(self) -> None:
        """No module imports, through whichever others, itself."""
        below: dict[str, set[str]] = {}

        def reach(name: str, path: tuple[str, ...]) -> set[str]:
            self.assertNotIn(name, path, " imports ".join([*path, name]))
            if name not in below:
                direct = self.imports[name]
                below[name] = direct.union(*(reach(other, (*path, name)) for other in sorted(direct)))
            return below[name]

        for name in self.imports:
            reach(name, ())

    def test_synjitsu(self) -> None:
        """Jitsu imports nothing of Synjitsu, which imports of Jitsu what both need."""
        wrong = {
            f"{name} imports {other}"
            for name, others in self.imports.items()
            for other in others
            if name.split(".")[0] != other.split(".")[0] and other not in COMMON
        }
        self.assertEqual(set(), wrong)
