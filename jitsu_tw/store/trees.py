"""
Write the trees of the state; only the folders with changes are written.

A folder of 100,000 VMs is a tree of 6.3 MB, and git's format has it written anew for each start of a VM. By libgit2
that takes 300 ms, in which no other thread runs Python: reading, a sorted copy, a compression of what is mostly hashes.
So a wide tree is kept in memory and changed as octets, is hashed and written without Python's lock, and is not
compressed: 25 ms, half of it until it is on the disk. git compresses it when the repository is tidied (`tidy`).
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import secrets
import struct
import time
import zlib
from bisect import bisect_left
from itertools import islice
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import pygit2
from pygit2.enums import FileMode

from jitsu_tw.store import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    #: An entry of a tree: the object and its mode; None for one that is removed.
    Entry = tuple[pygit2.Oid, int] | None

T = TypeVar("T")

#: From this many objects on, one sync(2) costs less than one fdatasync(2) for each.
MANY: Final = 500

#: From this many changes on, git's own importer writes them: one pack instead of a file for each object.
BULK: Final = 2000

#: From this many changed entries on, the importer writes what is in a folder at once, not folder by folder below it.
FORKS: Final = 64

#: From this many octets on, a tree is wide: about a thousand VMs.
WIDE: Final = 1 << 16

#: How many wide trees are kept in memory: those of all VMs and of all statistics, here and as others have shared them.
KEPT: Final = 4

#: The names of half-written objects begin like this; git knows them, too (``git fsck``, ``git prune``).
TEMPORARY: Final = "tmp_obj_"

#: The most attempts to write one object.
TRIES: Final = 5

#: git's id of the tree without files.
_EMPTY: Final = pygit2.Oid(hex="4b825dc642cb6eb9a060e54bf8d69288fbee4904")

#: About the size of an entry of a tree, in octets: mode, a uuid, an id (gitformat-pack(5)).
_ENTRY: Final = 64

#: An entry for a folder with a uuid as its name: mode, the name, a zero, the id; and the sizes of these, in octets.
_MODE: Final = b"40000 "
_NAME: Final = 36
_ROW: Final = len(_MODE) + _NAME + 1 + 20

#: The header of a block of a zlib stream that is not compressed: whether it is the last, its size, and that inverted.
_BLOCK: Final = struct.Struct("<BHH")

#: The most octets in such a block.
_LONGEST: Final = 0xFFFF

#: Long work in a thread stops this many seconds after this many items: else the reactor waits 5 ms for Python's lock
#: (sys.getswitchinterval) after each of its own system calls.
_PAUSE: Final = 50e-6
_ITEMS: Final = 500


@attrs.frozen
class Rows:
    """
    A tree that has folders with uuids as names, and nothing else: all entries have one size, so bisection finds one.

    Attributes:
        octets: the tree, as git has it.
    """

    octets: bytes

    @classmethod
    def read(cls, octets: bytes) -> Rows | None:
        """Return the tree *octets*; None if it has other entries."""
        number, rest = divmod(len(octets), _ROW)
        end = len(_MODE) + _NAME
        is_regular = (
            not rest
            and all(octets[at::_ROW] == _MODE[at : at + 1] * number for at in range(len(_MODE)))
            and octets[end::_ROW] == bytes(number)
            and not any(0 in octets[at::_ROW] for at in range(len(_MODE), end))
        )
        return cls(octets) if is_regular else None

    def _name(self, row: int) -> bytes:
        begin = row * _ROW + len(_MODE)
        return self.octets[begin : begin + _NAME]

    def _find(self, name: bytes, after: int = 0) -> tuple[int, bool]:
        """Return the row of *name*, which is not before the row *after*, and whether it is there."""
        number = len(self.octets) // _ROW
        row = bisect_left(range(number), name, lo=after, key=self._name)
        return row, row < number and self._name(row) == name

    def get(self, name: str) -> pygit2.Oid | None:
        """Return the folder with *name*, if there is one."""
        row, is_there = self._find(name.encode())
        return pygit2.Oid(raw=self.octets[(row + 1) * _ROW - 20 : (row + 1) * _ROW]) if is_there else None

    @staticmethod
    def take(entries: Mapping[str, Entry]) -> bool:
        """Return whether all *entries* are folders with names like a uuid, or removed."""
        return all(
            len(name) == _NAME and name.isascii() and name.replace("-", "0").isalnum()
            and (entry is None or entry[1] == FileMode.TREE)
            for name, entry in _gently(entries.items())
        )  # fmt: skip

    def put(self, entries: Mapping[str, Entry]) -> Rows:
        """Return the tree with *entries*, of which `take` is true."""
        pieces: list[bytes] = []
        done = 0  # so many rows are in the pieces
        for name in _gently(_in_order(entries)):
            row, is_there = self._find(name.encode(), done)
            pieces.append(self.octets[done * _ROW : row * _ROW])
            entry = entries[name]
            if entry is not None:
                pieces.append(b"%b%b\0%b" % (_MODE, name.encode(), entry[0].raw))
            done = row + is_there
        pieces.append(self.octets[done * _ROW :])
        return Rows(b"".join(pieces))


class Trees:
    """
    Writes objects to a repository.

    Attributes:
        octets: about how many octets of trees were written.
    """

    def __init__(self, repository: pygit2.Repository) -> None:
        """Write to *repository*."""
        self._repository = repository
        self._written: list[pygit2.Oid] = []
        self._kept: dict[pygit2.Oid, Rows] = {}  # the one that was used last is the last
        self.octets = 0

    def write(self, tree: pygit2.Oid | None, changes: Mapping[str, str | None]) -> pygit2.Oid:
        """
        Write *tree* with *changes*, by path; None removes a path and all below it.

        Returns:
            the new tree. No commit refers to it yet.

        Raises:
            StoreError, GitError, ValueError, OSError: it cannot be written.
        """
        return self._folder(tree, changes, changes, 0)

    def remember(self, tree: pygit2.Oid) -> None:
        """Read the folders of *tree* that are wide, for the next writes. Other threads may wait 50 ms for each."""
        for folder in self._repository[tree].peel(pygit2.Tree):
            if folder.filemode == FileMode.TREE:
                for one in self._repository[folder.id].peel(pygit2.Tree):
                    if one.filemode == FileMode.TREE:
                        self._rows(one.id)

    def _folder(
        self, tree: pygit2.Oid | None, changes: Mapping[str, str | None], paths: Iterable[str], begin: int
    ) -> pygit2.Oid:
        """
        Write the folder *tree* with those of the *changes* that are in it.

        Args:
            tree: the folder as it is.
            changes: values by whole paths.
            paths: those in the folder.
            begin: where the names of the folder's entries begin in the *paths*.
        """
        files: dict[str, str | None] = {}
        below: dict[str, list[str]] = {}
        number = 0
        for path in _gently(paths):
            number += 1
            end = path.find("/", begin)
            if end < 0:
                files[path[begin:]] = changes[path]
            else:
                below.setdefault(path[begin:end], []).append(path)
        find = self._finder(tree)
        entries: dict[str, Entry] = {name: None for name, value in files.items() if value is None}
        kept = {name: value for name, value in files.items() if value is not None}
        is_fork = len(kept) + len(below) >= FORKS or all(len(inner) < BULK for inner in below.values())
        if number >= BULK and is_fork and bulk.possible():
            names = [*kept, *below]
            entries |= dict.fromkeys(below)
            imported = bulk.write(self._repository, self._parts(kept, below, changes, begin, find))
            entries |= {names[part]: entry for part, entry in imported}
        else:
            for name, value in kept.items():
                blob = self.keep(self._repository.create_blob, f"{value}\n".encode())
                entries[name] = blob, FileMode.BLOB
            for name, inner in below.items():
                new = self._folder(find(name), changes, inner, begin + len(name) + 1)
                entries[name] = (new, FileMode.TREE) if new != _EMPTY else None
        return self._merge(tree, entries)

    @staticmethod
    def _parts(
        files: Mapping[str, str],
        below: Mapping[str, Sequence[str]],
        changes: Mapping[str, str | None],
        begin: int,
        find: Callable[[str], pygit2.Oid | None],
    ) -> Iterator[bulk.Part]:
        """Yield what the importer is to write: the *files*, then the folders *below*."""
        for value in files.values():
            yield None, (("", value),)
        for name, paths in below.items():
            start = begin + len(name) + 1
            yield find(name), ((path[start:], changes[path]) for path in paths)

    def _finder(self, tree: pygit2.Oid | None) -> Callable[[str], pygit2.Oid | None]:
        """Return the function that finds a folder in *tree* by its name."""
        if tree is None:
            return lambda _: None
        rows = self._rows(tree)
        if rows is not None:
            return rows.get
        folder = self._repository[tree].peel(pygit2.Tree)

        def find(name: str) -> pygit2.Oid | None:
            name = intern(name)  # pygit2 1.21 keeps each string that is looked up in a tree: so it is always the same
            found = folder[name] if name in folder else None  # noqa: SIM401 - a tree has no `get`
            return found.id if found is not None and found.filemode == FileMode.TREE else None

        return find

    def _rows(self, tree: pygit2.Oid) -> Rows | None:
        """Return *tree* if it is wide and regular."""
        rows = self._kept.pop(tree, None)
        if rows is None:
            if self._repository.odb.read_header(tree)[1] < WIDE:
                return None
            rows = Rows.read(self._repository.odb.read(tree)[1])
        return None if rows is None else self._remembered(tree, rows)

    def _remembered(self, tree: pygit2.Oid, rows: Rows) -> Rows:
        self._kept[tree] = rows
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return rows

    def _merge(self, tree: pygit2.Oid | None, entries: Mapping[str, Entry]) -> pygit2.Oid:
        """Write *tree* with *entries*."""
        rows = self._rows(tree) if tree is not None else Rows(b"")
        if rows is not None and len(rows.octets) + len(entries) * _ROW >= WIDE and Rows.take(entries):
            new = rows.put(entries)
            self.octets += len(new.octets)
            written = self.keep(self._store, new.octets)
            if tree is not None:
                self._kept.pop(tree, None)
            self._remembered(written, new)
            return written
        repository = self._repository
        builder = repository.TreeBuilder(repository[tree].peel(pygit2.Tree)) if tree else repository.TreeBuilder()
        for step, entry in entries.items():
            name = intern(step)
            if entry is not None:
                builder.insert(name, *entry)
            elif builder.get(name) is not None:
                builder.remove(name)
        self.octets += len(builder) * _ENTRY
        return self.keep(builder.write)

    def _store(self, octets: bytes) -> pygit2.Oid:
        """
        Write the tree *octets* as a loose object that is not compressed, and return it.

        Its file has a temporary name until it is whole: a crash leaves no half of an object.
        """
        head = b"tree %d\0" % len(octets)
        digest = hashlib.sha1(head, usedforsecurity=False)
        digest.update(octets)
        name = digest.hexdigest()
        folder = Path(self._repository.path, "objects", name[:2])
        folder.mkdir(exist_ok=True)
        temporary = f"{folder}/{TEMPORARY}{secrets.token_hex(4)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(_stored(head, octets))
            os.replace(temporary, f"{folder}/{name[2:]}")  # noqa: PTH105 -- Python 3.12 keeps each part of a Path
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 -- the same
            raise
        return pygit2.Oid(hex=name)

    def keep(self, write: Callable[..., pygit2.Oid], *arguments: object, tries: int = TRIES) -> pygit2.Oid:
        """
        Return the object that *write* makes of *arguments*; `sync` waits for it.

        libgit2 makes the folder of an object and then moves the object there. A git that tidies removes empty folders,
        and may remove this one between the two steps: then the object is written again.
        """
        try:
            written = write(*arguments)
        except OSError:
            if tries == 1:
                raise
            return self.keep(write, *arguments, tries=tries - 1)
        self._written.append(written)
        return written

    def sync(self) -> int:
        """Wait until all written objects are on the disk; return how many they were."""
        number = len(self._written)
        if number > MANY:
            os.sync()
        else:
            for oid in self._written:
                name = str(oid)
                # A text instead of a Path: Python 3.12 keeps every part of a Path for ever.
                sync_file(f"{self._repository.path}/objects/{name[:2]}/{name[2:]}")
        self._written.clear()
        return number

    def drop(self) -> None:
        """Forget what was written, and is not used: `sync` does not wait for it."""
        self._written.clear()


def sync_file(path: Path | str) -> None:
    """Wait until the file at *path* is on the disk; do nothing if there is none."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)


def _stored(head: bytes, octets: bytes) -> Iterator[bytes | memoryview]:
    """Yield *head* and *octets* as a zlib stream that is not compressed (RFC 1950, RFC 1951 section 3.2.4)."""
    yield b"\x78\x01"
    yield _BLOCK.pack(0, len(head), len(head) ^ 0xFFFF)
    yield head
    view = memoryview(octets)
    for begin in range(0, len(octets), _LONGEST):
        block = view[begin : begin + _LONGEST]
        yield _BLOCK.pack(begin + _LONGEST >= len(octets), len(block), len(block) ^ 0xFFFF)
        yield block
    yield zlib.adler32(octets, zlib.adler32(head)).to_bytes(4, "big")


def _gently(items: Iterable[T]) -> Iterator[T]:
    """Yield the *items*, and let other threads run Python now and then."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _ITEMS == 0:
            time.sleep(_PAUSE)


def _in_order(names: Iterable[str]) -> Iterator[str]:
    """Yield *names* in their order; sorting 100,000 of them at once would block all threads for 40 ms."""
    left = iter(names)
    runs: list[list[str]] = []
    while run := sorted(islice(left, 1000)):
        runs.append(run)
    return heapq.merge(*runs)
