"""The floors of the house: imports go down only (DESIGN, section 2)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent

#: The rooms, floor by floor; within a floor a room may use those named before it.
FLOORS: Final = (
    ("jitsu_tw", "jitsu_tw.dns", "jitsu_tw.vm", "jitsu_tw.control", "jitsu_tw.errors", "jitsu_tw.dns.wire",
     "jitsu_tw.xen", "jitsu_tw.sockets", "jitsu_tw.settings", "jitsu_tw.messages", "jitsu_tw.logs", "jitsu_tw.clocks",
     "jitsu_tw.twistd"),
    ("jitsu_tw.ijitsu", "jitsu_tw.processes", "jitsu_tw.vm.week", "jitsu_tw.vm.turns",
     "jitsu_tw.dns.message", "jitsu_tw.dns.reply", "jitsu_tw.dns.masterfile", "jitsu_tw.dns.zone",
     "jitsu_tw.dns.lookup", "jitsu_tw.vm.lifecycle", "jitsu_tw.vm.lease", "jitsu_tw.store.layout",
     "jitsu_tw.store.merge",
     "jitsu_tw.dns.binding",
     "jitsu_tw.networks",  # before those that use it
     "jitsu_tw.shares",
     "jitsu_tw.vm.policy", "jitsu_tw.vm.problems", "jitsu_tw.vm.vitals",
     "jitsu_tw.dns.cookies",
     "jitsu_tw.dns.rrl",
     "jitsu_tw.dns.tsig", "jitsu_tw.dns.transfer"),
    ("jitsu_tw.xsclient", "jitsu_tw.xenstore",  # before those that use them
     "jitsu_tw.backends.memory", "jitsu_tw.backends.domain_xml", "jitsu_tw.backends.image",
     "jitsu_tw.backends.domain", "jitsu_tw.backends.workers", "jitsu_tw.backends.reconnect",
     "jitsu_tw.backends.libvirt",
     "jitsu_tw.backends.xl", "jitsu_tw.backends.xlvm", "jitsu_tw.backends.xlhost",
     "jitsu_tw.backends.libxl", "jitsu_tw.backends.xapi_session", "jitsu_tw.backends.xapi_vms",
     "jitsu_tw.backends.xapi", "jitsu_tw.backends.hosts", "jitsu_tw.backends", "jitsu_tw.readiness.delay",
     "jitsu_tw.readiness.port", "jitsu_tw.readiness.xenstore", "jitsu_tw.readiness", "jitsu_tw.store.memory",
     "jitsu_tw.store.hooks", "jitsu_tw.store.bulk", "jitsu_tw.store.lock", "jitsu_tw.store.history",
     "jitsu_tw.store.bounds", "jitsu_tw.store.requests", "jitsu_tw.store.push",
     "jitsu_tw.store.shared", "jitsu_tw.store.remote", "jitsu_tw.store.tidy", "jitsu_tw.store.git",
     "jitsu_tw.store",
     "jitsu_tw.coordinator.memory", "jitsu_tw.coordinator.local", "jitsu_tw.coordinator.kv",
     "jitsu_tw.coordinator.connections", "jitsu_tw.coordinator.gateway", "jitsu_tw.coordinator.session",
     "jitsu_tw.coordinator.etcd", "jitsu_tw.coordinator"),
    ("jitsu_tw.standin", "jitsu_tw.vm.waiters", "jitsu_tw.vm.activation", "jitsu_tw.vm.journal", "jitsu_tw.vm.record",
     "jitsu_tw.vm.facts", "jitsu_tw.vm.notices", "jitsu_tw.vm.uses", "jitsu_tw.vm.sharing", "jitsu_tw.vm.fencing",
     "jitsu_tw.vm.moves", "jitsu_tw.vm.sweep", "jitsu_tw.vm.groups",
     "jitsu_tw.vm.inventory", "jitsu_tw.vm.ownership", "jitsu_tw.vm.placement",
     "jitsu_tw.vm.admission", "jitsu_tw.vm.cover", "jitsu_tw.vm.fleet", "jitsu_tw.vm.change"),
    ("jitsu_tw.dns.authority", "jitsu_tw.dns.forward", "jitsu_tw.dns.resolver", "jitsu_tw.dns.warm",
     "jitsu_tw.dns.stream", "jitsu_tw.dns.connections", "jitsu_tw.dns.notify",
     "jitsu_tw.dns.server", "jitsu_tw.dns.udp", "jitsu_tw.dns.tcp",
     "jitsu_tw.control.web", "jitsu_tw.control.describe", "jitsu_tw.control.events", "jitsu_tw.control.standins",
     "jitsu_tw.control.cluster", "jitsu_tw.control.metrics", "jitsu_tw.control.files", "jitsu_tw.control.api"),
    ("jitsu_tw.values", "jitsu_tw.sayings", "jitsu_tw.config", "jitsu_tw.permissions",
     "jitsu_tw.branches", "jitsu_tw.shared", "jitsu_tw.tap",
     "jitsu_tw.ctl.client", "jitsu_tw.ctl.show", "jitsu_tw.ctl.check", "jitsu_tw.ctl.history", "jitsu_tw.ctl"),
    ("synjitsu_tw", "synjitsu_tw.packets"),
    ("synjitsu_tw.syns", "synjitsu_tw.table", "synjitsu_tw.standins", "synjitsu_tw.records"),
    ("synjitsu_tw.capture", "synjitsu_tw.kernel", "synjitsu_tw.handover"),
    ("synjitsu_tw.conversation", "synjitsu_tw.service", "synjitsu_tw.tap"),
)

#: Of the other house Synjitsu uses these, never the other way round.
SHARED: Final = {"jitsu_tw", "jitsu_tw.clocks", "jitsu_tw.dns", "jitsu_tw.dns.connections", "jitsu_tw.errors",
                  "jitsu_tw.logs", "jitsu_tw.messages", "jitsu_tw.networks", "jitsu_tw.sockets", "jitsu_tw.twistd",
                  "jitsu_tw.xenstore"}

ORDER: Final = {room: place for place, room in enumerate(room for floor in FLOORS for room in floor)}


def rooms() -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of every module of both houses."""
    for house in ("jitsu_tw", "synjitsu_tw"):
        for path in sorted((ROOT / house).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def used(path: Path) -> Iterator[str]:
    """Yield the modules of ours that the file at *path* imports, wherever in it, but not those for types only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in ORDER)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in ORDER:
                    yield whole
                elif node.module in ORDER:
                    yield node.module


class FloorsTests(SynchronousTestCase):
    """Reads the imports."""

    def test_every_room_has_a_floor(self) -> None:
        """A new module says on which floor it is."""
        self.assertEqual(set(ORDER), {name for name, _ in rooms()})

    def test_imports_go_down(self) -> None:
        """No room uses one of a higher floor, or one that comes after it on its own."""
        wrong = [f"{name} uses {other}" for name, path in rooms() for other in used(path)
                 if other != name and ORDER[other] >= ORDER[name]]
        self.assertEqual([], wrong)

    def test_houses(self) -> None:
        """Jitsu does not use Synjitsu; Synjitsu uses of Jitsu only what both need."""
        for name, path in rooms():
            for other in used(path):
                if name.startswith("jitsu_tw"):
                    self.assertFalse(other.startswith("synjitsu_tw"), f"{name} uses {other}")
                elif other.startswith("jitsu_tw"):
                    self.assertIn(other, SHARED, name)
