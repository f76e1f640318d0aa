"""The sizes of classes and modules, the share of lines without I/O, and hooks, as `sizes` counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

from test.structure.sizes import classes, hooks, is_in, lines, share_pure

if TYPE_CHECKING:
    from collections.abc import Callable

    from test.structure.sizes import Size

#: The packages with strict limits: those where each feature of the product passes.
STRICT: Final = ("jitsu_tw.vm", "jitsu_tw.cluster", "jitsu_tw.rules")

#: The most public methods of a class, in the strict packages and elsewhere: a backend has those of `IBackend`.
METHODS: Final = 20
METHODS_ELSEWHERE: Final = 21

#: The most attributes of a class, in the strict packages and elsewhere.
ATTRIBUTES: Final = 15
ATTRIBUTES_ELSEWHERE: Final = 20

#: The most lines of a module.
LINES: Final = 495
LINES_ELSEWHERE: Final = 744

#: The least share of lines without I/O in the strict packages.
PURE: Final = 0.45

#: Classes with more attributes than `ATTRIBUTES_ELSEWHERE`, and why.
MANY_ATTRIBUTES: Final = {
    "VM": "one for each key of a VM's configuration",
    "Settings": "one for each key of the configuration",
    "Standin": "one for each observation of the bridge and each instruction of Jitsu that Synjitsu's laws depend on",
}

#: Assignments that look like those of hooks, and why they are none.
NO_HOOKS: Final = {
    "reactor.seconds": "Twisted's reactor reads its clock from this attribute (twisted.internet.base.ReactorBase)",
    "stats.backend": "the kind of hypervisor, a text",
    "stats.connect": "the hypervisor's URI, a text",
}


class SizesTests(SynchronousTestCase):
    """Read the syntax trees of the product."""

    def _check(self, count: Callable[[Size], int], most: int, elsewhere: int, known: set[str]) -> None:
        wrong = {f"{size.module}.{size.name}": count(size) for size in classes()
                 if count(size) > (most if is_in(size.module, STRICT) else elsewhere) and size.name not in known}
        self.assertEqual({}, wrong)

    def test_methods(self) -> None:
        """No class has more public methods than the limit."""
        self._check(lambda size: size.methods, METHODS, METHODS_ELSEWHERE, set())

    def test_attributes(self) -> None:
        """No class has more attributes than the limit."""
        self._check(lambda size: size.attributes, ATTRIBUTES, ATTRIBUTES_ELSEWHERE, set(MANY_ATTRIBUTES))

    def test_lines(self) -> None:
        """No module has more lines than the limit."""
        self.assertEqual({}, {name: count for name, count in lines().items()
                              if count > (LINES if is_in(name, STRICT) else LINES_ELSEWHERE)})

    def test_pure(self) -> None:
        """Of the packages that decide, a large share is without I/O."""
        self.assertGreaterEqual(share_pure(), PURE)

    def test_hooks(self) -> None:
        """No module assigns a callable attribute of another module's object: a reader can jump to what runs."""
        found = [f"{module}: {text}" for module, text in hooks() if text not in NO_HOOKS]
        self.assertEqual([], found)
