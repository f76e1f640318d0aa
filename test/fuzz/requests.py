"""Requests by git: trees and commits as no git makes them, read, judged and, if they are good, merged by Jitsu."""

from __future__ import annotations

from typing import Any, Final

import atheris
import pygit2
from pygit2.enums import FileMode, ObjectType

from jitsu_tw.config.schema import VM_KEYS
from jitsu_tw.store.branches import REQUEST
from jitsu_tw.store.history import MAIN
from jitsu_tw.sync.permissions import REQUESTS_PER_MINUTE
from test.fuzz import faults
from test.hostile.requests import DB, WWW
from test.unit.sync.test_requests import NEW, RequestsTestCase

SEEDS: Final = [bytes([number, *range(200)]) for number in range(0, 250, 10)]

_NAMES: Final = (
    "", ".", "..", ".git", "jitsu", "vm", "stats", "origin", WWW, DB, NEW, NEW[:-1] + "A", "ip", "dns", "config", "ttl",
    "0", "1", "name", "stop_mode", "use_synjitsu", "www.jitsu.test", "a.jitsu.test", "\x1b[31m", "a\nb", "\u202e",
    "x" * 300, *VM_KEYS,
)  # fmt: skip

_VALUES: Final = (
    b"", b"1", b"0", b"-1", b"nan", b"5\n", b"10.0.0.1", b"10.0.0.9", b"127.0.0.1", b"224.0.0.1", b"::ffff:10.0.0.2",
    b"www", b"db", b"new", b"destroy", b"true", b"/x", b"a.jitsu.test", b"\0", b"\xff\xfe", b"\x1b]0;x\7", b"1" * 70000,
)  # fmt: skip

_MODES: Final = (
    *[FileMode.BLOB] * 6, FileMode.BLOB_EXECUTABLE, FileMode.LINK, FileMode.COMMIT, FileMode.TREE, 0o100600, 0,
)  # fmt: skip

_AUTHORS: Final = (
    *[b"Ann <ann@example.org> 1 +0000"] * 8, b"", b"\x1b[31m\n <> x", b"\xff <a> 99999999999999999999 +9999",
)  # fmt: skip

#: Below the folder of a VM.
_PLACES: Final = (("ip",), ("config", "x"), ("dns", "a", "ttl"), ("dns",), ())

_BRANCHES: Final = ("a", "www/a", "nobody/a", "www/a/b", "db/a")

#: The number of inputs after which a new repository is begun.
_MANY: Final = 200


WORDS: Final = [*(name.encode() for name in _NAMES[2:]), *_VALUES[1:-1]]


class _World(RequestsTestCase):
    """A Jitsu on a clock with a real repository."""

    age = 0

    def renew(self) -> None:
        """Begin with a new repository."""
        self.doCleanups()
        self.setUp()
        self.age = 0


_world: Final = _World()
_world.renew()


class _Maker:
    """Makes git objects of a fuzzer's octets, also objects that git would refuse."""

    def __init__(self, data: Any, repository: pygit2.Repository) -> None:
        """Make them in *repository*."""
        self.data, self.odb = data, repository.odb

    def pick(self, among: tuple[Any, ...]) -> Any:
        return self.data.PickValueInList(list(among))

    def blob(self) -> tuple[int, bytes]:
        value = self.pick(_VALUES) if self.data.ConsumeBool() else self.data.ConsumeBytes(20)
        return int(self.pick(_MODES)), self.odb.write(ObjectType.BLOB, value).raw

    def tree(self, entries: dict[bytes, tuple[int, bytes]]) -> bytes:
        """Return the id of a tree, with some more, in whatever order."""
        raw = [b"%o %s\0%s" % (mode, name, oid) for name, (mode, oid) in entries.items()]
        if self.data.ConsumeIntInRange(0, 15) == 0 and raw:
            raw.append(self.pick(tuple(raw)))
        return self.odb.write(ObjectType.TREE, b"".join(raw)).raw

    def folder(self, depth: int) -> tuple[int, bytes]:
        """Return a folder of files and folders."""
        found = {}
        for _ in range(self.data.ConsumeIntInRange(0, 4)):
            name = (self.pick(_NAMES) if self.data.ConsumeBool() else self.data.ConsumeUnicodeNoSurrogates(6)).encode()
            inner = depth < 5 and self.data.ConsumeBool()
            found[name] = self.folder(depth + 1) if inner else self.blob()
        made = int(FileMode.TREE), self.tree(found)
        if self.data.ConsumeIntInRange(0, 30) == 0:  # deeper than any stack
            for _ in range(self.pick((30, 300, 2000))):
                made = int(FileMode.TREE), self.tree({b"d": made})
        return made

    def changed(self, tree: pygit2.Tree, path: list[bytes]) -> bytes:
        """Return *tree* with something else at *path*, of which the last part is made, too."""
        entries = {str(entry.name).encode(): (int(entry.filemode), entry.id.raw) for entry in tree}
        name, *rest = path
        there = name.decode() in tree
        inner = tree[name.decode()] if there else None
        if rest and isinstance(inner, pygit2.Tree):
            entries[name] = int(FileMode.TREE), self.changed(inner, rest)
        else:
            entries[name] = self.folder(0) if self.data.ConsumeIntInRange(0, 3) == 0 else self.blob()
        return self.tree(entries)

    def commit(self, tree: bytes, parent: pygit2.Oid) -> pygit2.Oid:
        """Return a commit; now and then one that is not well-formed."""
        parents = [str(parent)] * self.pick((1,) * 12 + (0, 2)) + ["1" * 40] * self.pick((0,) * 12 + (1,))
        who = self.pick(_AUTHORS)
        lines = [b"tree " + tree.hex().encode(), *(b"parent " + one.encode() for one in parents), b"author " + who]
        said = self.pick((b"please",) * 4 + (b"", b"Statistics", b"\xff\0", b"\x1b[31m" * 9))
        return self.odb.write(ObjectType.COMMIT, b"\n".join([*lines, b"committer " + who, b"", said]))


def one(octets: bytes) -> None:
    """Push something; it is merged or rejected at once, and no internal error is logged."""
    if _world.age > _MANY:
        _world.renew()
    _world.age += 1
    data = atheris.FuzzedDataProvider(octets)
    repository = pygit2.Repository(str(_world.path))
    head = repository.references[MAIN].peel(pygit2.Commit)
    maker, tree = _Maker(data, repository), head.tree_id
    for _ in range(data.ConsumeIntInRange(1, 4)):
        known = ["jitsu", "vm", maker.pick((WWW, DB, NEW)), *maker.pick(_PLACES)]
        path = [part.encode() for part in known[: maker.pick((6, 6, 6, 3, 2, 1))]]
        base = repository[tree]
        if not isinstance(base, pygit2.Tree):
            break
        try:
            tree = pygit2.Oid(maker.changed(base, path))
        except (UnicodeDecodeError, pygit2.GitError):
            break  # libgit2 does not let us look at what we have made, either
    commit, branch = maker.commit(tree.raw, head.id), maker.pick(_BRANCHES)
    try:
        repository.references.create(REQUEST + branch, commit, force=True)
    except (pygit2.GitError, ValueError):
        return
    _world.clock.advance(60 / REQUESTS_PER_MINUTE)
    left = [name for name in pygit2.Repository(str(_world.path)).references if name.startswith(REQUEST)]
    merged = repository.references[MAIN].target != head.id
    if left or merged:
        _world.renew()
    assert not left, branch
    faults.check()
