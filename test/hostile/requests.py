"""
Change requests by git, with which a pusher wants more than it may.

`Row.input` makes the tree of the request in a repository that has the tree of `main`; `Row.expected` is a regular
expression for the reason of the rejection, as the pusher and ``rejected/…`` have it. `WWW` and `DB` are VMs of `main`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import pygit2
from pygit2.enums import FileMode

from test import hostile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Make = Callable[[pygit2.Repository, pygit2.Oid], pygit2.Oid]

WWW: Final = "00000000-0000-4000-8000-000000000001"
DB: Final = "00000000-0000-4000-8000-000000000002"

_DEFINED: Final = f"jitsu/vm/{WWW}"


@attrs.frozen
class Row(hostile.Row):
    """
    A request.

    Attributes:
        branch: behind ``request/``; ``www/…`` is the own branch of the VM www.
    """

    branch: str = "asked"


def put(repository: pygit2.Repository, tree: pygit2.Oid | None, path: str, what: pygit2.Oid, mode: int) -> pygit2.Oid:
    """Return *tree* (None: an empty one) with the object *what* at *path*."""
    first, _, rest = path.partition("/")
    below = repository[tree] if tree is not None else None
    assert below is None or isinstance(below, pygit2.Tree)
    builder = repository.TreeBuilder() if below is None else repository.TreeBuilder(below)
    if rest:
        inner = below[first].id if below is not None and first in below else None
        what, mode = put(repository, inner, rest, what, mode), FileMode.TREE
    builder.insert(first, what, mode)
    return builder.write()


def file(path: str, value: bytes, mode: int = FileMode.BLOB) -> Make:
    """Return what writes *value* to *path*."""
    return lambda repository, tree: put(repository, tree, path, repository.create_blob(value), mode)


def folder(path: str, make: Callable[[pygit2.Repository], pygit2.Oid]) -> Make:
    """Return what puts the tree that *make* returns at *path*."""
    return lambda repository, tree: put(repository, tree, path, make(repository), FileMode.TREE)


def gone(path: str) -> Make:
    """Return what replaces the folder at *path* by an empty tree."""
    return folder(path, lambda repository: repository.TreeBuilder().write())


def submodule(repository: pygit2.Repository, tree: pygit2.Oid) -> pygit2.Oid:
    """Replace a value by a commit of another repository."""
    return put(repository, tree, f"{_DEFINED}/config/x", pygit2.Oid(hex="1" * 40), FileMode.COMMIT)


def tree(repository: pygit2.Repository, names: Iterable[str], what: pygit2.Oid, mode: int) -> pygit2.Oid:
    """Return a tree that has the one object *what* under each of *names*."""
    builder = repository.TreeBuilder()
    for name in names:
        builder.insert(name, what, mode)
    return builder.write()


def paths(width: int, depth: int) -> Callable[[pygit2.Repository], pygit2.Oid]:
    """Return what makes a tree of width ** depth files, as *depth* trees of *width* entries each."""
    names = [f"{number}" for number in range(width)]

    def make(repository: pygit2.Repository) -> pygit2.Oid:
        made, mode = repository.create_blob(b"1"), FileMode.BLOB
        for _ in range(depth):
            made, mode = tree(repository, names, made, mode), FileMode.TREE
        return made

    return make


ROWS: Final = (
    Row("a TTL that is no number", file(f"{_DEFINED}/dns/www.jitsu.test/ttl", b"five"), "ttl.*five"),
    Row("a key that there is not", file(f"{_DEFINED}/config/nonsense/0", b"1"), "no such key"),
    Row("a value of 65537 octets", file(f"{_DEFINED}/config/idle/0", b"1" * 65537), "too long"),
    Row("a value that is binary", file(f"{_DEFINED}/config/idle/0", b"1\0\xff"), "binary"),
    Row("a symbolic link", file(f"{_DEFINED}/ip", b"/etc/passwd", FileMode.LINK), "no plain file"),
    Row("a submodule", submodule, "no plain file"),
    Row("a file beside the VMs", file("jitsu/stats/x/start_ts", b"1"), "not for requests"),
    Row("a file beside Jitsu", file("README", b"hello"), "not for requests"),
    Row("a folder that is no uuid", file("jitsu/vm/../ip".replace("..", "etc"), b"10.0.0.9"), "named by its uuid"),
    Row("a file among the VMs", file(f"jitsu/vm/{DB[:-1]}9", b"1"), "no plain file"),
    Row("an address that another VM has", file(f"{_DEFINED}/ip", b"10.0.0.2"), "10.0.0.2"),
    Row("another VM from a VM's own branch", file(f"jitsu/vm/{DB}/ip", b"10.0.0.9"), "the VM www only", "www/other"),
    Row("removal from a VM's own branch", gone(_DEFINED), "neither add nor remove", "www/gone"),
    Row("a definition from a VM's own branch", file(f"{_DEFINED}/config/define/0", b"/etc/passwd"),
        "a VM's own branch may not set define", "www/define"),
    Row("use of Synjitsu by a VM's own branch", file(f"{_DEFINED}/use_synjitsu", b"true"),
        "a VM's own branch may not set use_synjitsu", "www/synjitsu"),
    Row("a MAC from a VM's own branch", file(f"{_DEFINED}/config/mac/0", b"52:54:00:00:00:01"),
        "a VM's own branch may not set mac", "www/mac"),
    Row("another address by a VM's own branch", file(f"{_DEFINED}/ip", b"10.0.0.254"),
        "own branch may not take 10.0.0.254", "www/gateway"),
    Row("another name by a VM's own branch", file(f"{_DEFINED}/dns/y.jitsu.test/ttl", b"60"),
        "own branch may not take y.jitsu.test", "www/name"),
    Row("a million years by a VM's own branch", file(f"{_DEFINED}/dns/www.jitsu.test/ttl", b"2147483647"),
        "ttl: a VM's own branch may not set it to .*; write a number", "www/years"),
    Row("permissions from a VM's own branch", file(f"{_DEFINED}/config/own_ip/0", b"0.0.0.0/0"),
        "a VM's own branch may not set own_ip", "www/own"),
    *(
        Row(f"the address {address}", file(f"{_DEFINED}/ip", address.encode()), words)
        for address, words in (
            ("127.0.0.1", "loopback"), ("224.0.0.1", "multicast"), ("::ffff:10.0.0.2", "write 10.0.0.2"),
            ("255.255.255.255", "broadcast"), ("::", "no machine"), ("64:ff9b::a00:2", "stands for"),
        )
    ),
    Row("1200 nested folders", folder(f"{_DEFINED}/config/x", paths(1, 1200)), "too deep"),
    Row("ten million paths", folder(f"{_DEFINED}/config/x", paths(10, 7)), "too deep"),
    Row("ten million paths beside the VMs", folder("jitsu/x", paths(10, 7)), "not for requests"),
    Row("a million values", folder(f"{_DEFINED}/config", paths(1000, 2)), "too many files"),
    Row("a million empty folders", folder(f"{_DEFINED}/config", lambda repository: tree(
        repository, map(str, range(6000)), repository.TreeBuilder().write(), FileMode.TREE)), "too many files"),
    Row("a value of 50 MB that travels as 50 KB", file(f"{_DEFINED}/config/idle/0", bytes(50 << 20)), "too long"),
    Row("values of a megabyte together", folder(f"{_DEFINED}/config/x", lambda repository: tree(
        repository, map(str, range(20)), repository.create_blob(b"1" * 65536), FileMode.BLOB)), "too large"),
    Row("a root folder of 50000 files", lambda repository, _: tree(
        repository, map(str, range(50000)), repository.create_blob(b"1"), FileMode.BLOB), "at most 4096"),
    Row("a hundred thousand empty VMs", folder("jitsu/vm", lambda repository: tree(
        repository, (f"00000000-0000-4000-8000-{number:012}" for number in range(100000)),
        repository.TreeBuilder().write(), FileMode.TREE)), "octets; at most"),
    Row("ten thousand empty VMs", folder("jitsu/vm", lambda repository: tree(
        repository, (f"00000000-0000-4000-8000-{number:012}" for number in range(10, 10011)),
        repository.TreeBuilder().write(), FileMode.TREE)), "at most 10000"),
    Row("a name of 300 octets", file(f"{_DEFINED}/config/{'x' * 300}/0", b"1"), "a name of 300 octets"),
    Row("a name that clears the screen", file(f"{_DEFINED}/config/\x1b[2J/0", b"1"), r"\\x1b\[2J"),
    Row("the branch of a VM that there is not", file(f"{_DEFINED}/ip", b"10.0.0.9"), "may change the VM nobody only",
        "nobody/a"),
)
