"""
Sizes of the product's classes and modules, by its syntax trees; `python -m test.structure.sizes` prints the largest.

- **Public methods** of a class: functions in its body, properties too, whose names have no leading underscore.
- **Attributes** of a class: names that its methods assign on self, its `__slots__`, and its annotated fields that are
  not `ClassVar` or `Final`. What a class inherits counts for the class that declares it.
- A line is **without I/O** if its module imports at run time nothing of Twisted, `os`, `socket`, `subprocess`,
  `threading` or `time`, and no module of the product that does. `VALUES` names what these have that does nothing:
  numbers, records, exceptions. Imports for types do not count. The adapters to a coordinator are counted as those to a
  hypervisor are: not as part of `vm/`, `cluster/` and `rules/`.
- A **hook** is an attribute that a module assigns on another object than self, if the attribute is declared to be
  callable anywhere, or is given a lambda, a `partial`, or what has the name of a method; but not if the module itself
  has a class with such an attribute.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING, Final

import attrs

from test.structure import modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: What does I/O, reads a clock, or waits.
IO: Final = frozenset({"os", "socket", "subprocess", "threading", "time", "twisted"})

#: What of these does none of it: records and codes of DNS, a failure, families and texts of addresses.
VALUES: Final = (
    "twisted.internet.endpoints.clientFromString", "twisted.names.dns", "twisted.names.error",
    "twisted.python.failure", "socket.AF_", "socket.inet_",
)

#: The packages whose decisions are to be without I/O, and the adapters among them.
DECIDING: Final = ("jitsu_tw.vm", "jitsu_tw.cluster", "jitsu_tw.rules")
ADAPTERS: Final = "jitsu_tw.cluster.coordinator"


@attrs.frozen
class Size:
    """
    The size of a class.

    Attributes:
        module: the name of its module.
        name: its own.
        methods: the number of its public methods.
        attributes: the number of its attributes.
    """

    module: str
    name: str
    methods: int
    attributes: int


def is_in(module: str, packages: Iterable[str]) -> bool:
    """Return whether *module* is one of *packages*, or in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@cache
def trees() -> Mapping[str, ast.Module]:
    """Return the syntax tree of each module of the product, by its name."""
    return {name: ast.parse(path.read_text()) for name, path in modules().items()}


def lines() -> dict[str, int]:
    """Return the number of lines of each module."""
    return {name: len(path.read_text().splitlines()) for name, path in modules().items()}


# Classes


def classes() -> Iterator[Size]:
    """Yield the size of each class of the product."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
                public = sum(not name.startswith("_") for name in methods)
                yield Size(module, node.name, public, len(_fields(node) | _on_self(node)))


def _fields(of: ast.ClassDef) -> set[str]:
    found = set()
    for node in of.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if not ast.unparse(node.annotation).startswith(("ClassVar", "Final")):
                found.add(node.target.id)
        elif isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["__slots__"]:
            found |= {one.value for one in ast.walk(node.value)
                      if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return found


def _on_self(of: ast.ClassDef) -> set[str]:
    return {node.attr for node in ast.walk(of) if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store) and _is_self(node.value)}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


# I/O


def pure() -> set[str]:
    """Return the names of the modules that are without I/O."""
    imports = {name: set(_imports(tree)) for name, tree in trees().items()}
    impure = {name for name, imported in imports.items()
              if any(one.partition(".")[0] in IO and not one.startswith(VALUES) for one in imported)}
    while more := {name for name, imported in imports.items() if name not in impure and imported & impure}:
        impure |= more
    return set(imports) - impure


def share_pure() -> float:
    """Return the share of lines without I/O of the deciding packages."""
    counted = {name: count for name, count in lines().items() if is_in(name, DECIDING) and not is_in(name, [ADAPTERS])}
    return sum(counted[name] for name in pure() & counted.keys()) / sum(counted.values())


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the names that are imported at run time, and the modules that they are imported from."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module is not None:
            if child.module in trees():
                yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child)


# Hooks


def hooks() -> Iterator[tuple[str, str]]:
    """Yield the module and the text, `object.attribute`, of each assignment of a hook."""
    methods, declared = set(), set()
    own: dict[str, set[str]] = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                methods |= {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
                            and not one.decorator_list}
                declared |= set(_callables(node))
                own.setdefault(module, set()).update(_fields(node) | _on_self(node))
    for module, tree in trees().items():
        for target, value in _assignments(tree):
            if not isinstance(target, ast.Attribute) or _is_self(target.value):
                continue
            is_callable = (isinstance(value, ast.Lambda) or (isinstance(value, ast.Attribute) and value.attr in methods)
                           or (isinstance(value, ast.Call) and ast.unparse(value.func) == "partial"))
            if (is_callable or target.attr in declared) and target.attr not in own.get(module, ()):
                yield module, ast.unparse(target)


def _callables(of: ast.ClassDef) -> Iterator[str]:
    """Yield the attributes of a class that its annotations, or those of its arguments, say to be callable."""
    for node in ast.walk(of):
        if isinstance(node, ast.AnnAssign) and "Callable[" in ast.unparse(node.annotation):
            yield node.target.attr if isinstance(node.target, ast.Attribute) else ast.unparse(node.target)
        elif isinstance(node, ast.FunctionDef):
            arguments = {one.arg for one in [*node.args.args, *node.args.kwonlyargs]
                         if one.annotation is not None and "Callable[" in ast.unparse(one.annotation)}
            for target, value in _assignments(node):
                if isinstance(target, ast.Attribute) and isinstance(value, ast.Name) and value.id in arguments:
                    yield target.attr


def _assignments(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield each target that is assigned and its value, None where that is not one expression."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Tuple):
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [None] * len(target.elts)
                yield from zip(target.elts, values, strict=True)
            else:
                yield target, node.value


def main() -> None:
    """Print the figures."""
    for packages in (DECIDING, ("jitsu_tw", "synjitsu_tw")):
        sizes = [size for size in classes() if is_in(size.module, packages)]
        print(f"{', '.join(packages)}:")
        for size in sorted(sizes, key=lambda size: -size.methods)[:3]:
            print(f"  {size.methods:4} public methods: {size.module}.{size.name}")
        for size in sorted(sizes, key=lambda size: -size.attributes)[:3]:
            print(f"  {size.attributes:4} attributes: {size.module}.{size.name}")
        of_module = sorted(((count, name) for name, count in lines().items() if is_in(name, packages)), reverse=True)
        for count, name in of_module[:3]:
            print(f"  {count:4} lines: {name}")
    print(f"lines without I/O of {', '.join(DECIDING)}: {share_pure():.1%}")
    print(f"hooks: {len(list(hooks()))}")
    for module, text in hooks():
        print(f"  {module}: {text}")


if __name__ == "__main__":
    main()
