"""
The state in a bare git repository that any git can read: one file for each path, one commit for each step.

libgit2 (through pygit2) writes objects first and moves the branch last, by a rename: a write is whole or not there.
Statistics that follow statistics take the place of the commit before, so that a year of running does not grow without
end; commits of configurations stay for ever.
"""

from __future__ import annotations

from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Final

import pygit2
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from jitsu_tw.errors import StoreError
from jitsu_tw.ijitsu import IStore
from jitsu_tw.store.layout import STATISTICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BRANCH: Final = "refs/heads/main"
#: The tree without files, as git names it.
_EMPTY: Final = pygit2.Oid(hex="4b825dc642cb6eb9a060e54bf8d69288fbee4904")

# The state is ours alone: what git is told for somebody's own work, in places that we may not even read, is not for it.
for _level in (pygit2.enums.ConfigLevel.SYSTEM, pygit2.enums.ConfigLevel.XDG, pygit2.enums.ConfigLevel.GLOBAL):
    pygit2.settings.search_path[_level] = ""

# libgit2 would keep each object that was ever read: 5 MB for a thousand commits, 256 MB of contents at most.
pygit2.settings.enable_caching(False)  # noqa: FBT003

_AUTHOR: Final = ("Jitsu", "jitsu@localhost")


@implementer(IStore)
class GitStore:
    """A tree in the branch `main` of the bare repository at *path*."""

    lasting = True

    def __init__(self, path: Path) -> None:
        """Keep the state at *path*; `open` looks at it."""
        self._path = path
        self._lock = DeferredLock()
        self._repository: pygit2.Repository | None = None

    def open(self) -> Mapping[str, str]:
        """Open the repository, or make one where nothing is, and return the tree."""
        remedy = (
            f"see what `git -C {self._path} fsck` says and restore it from a copy, or move it away to begin anew"
        )
        try:
            if not self._path.exists() or (self._path.is_dir() and not any(self._path.iterdir())):
                self._repository = pygit2.init_repository(str(self._path), bare=True, initial_head="main")
                return {}
            self._repository = pygit2.Repository(str(self._path))
            return dict(self._read(self._tree())) if BRANCH in self._repository.references else self._empty(remedy)
        except (pygit2.GitError, KeyError, ValueError, OSError) as error:
            message = f"{self._path} is not a state that can be read ({error}): {remedy}"
            raise StoreError(message) from error

    def _empty(self, remedy: str) -> Mapping[str, str]:
        """Return the empty tree of a repository without `main`, if it is one that nobody has written to."""
        assert self._repository is not None
        if any(True for _ in self._repository):
            message = f"{self._path} has objects but no branch main: {remedy}"
            raise StoreError(message)
        return {}

    def _tree(self) -> pygit2.Tree:
        assert self._repository is not None
        return self._repository.references[BRANCH].peel(pygit2.Tree)

    def _read(self, tree: pygit2.Tree, base: str = "") -> Iterator[tuple[str, str]]:
        for entry in tree:
            if isinstance(entry, pygit2.Tree):
                yield from self._read(entry, f"{base}{entry.name}/")
            elif isinstance(entry, pygit2.Blob):
                yield f"{base}{entry.name}", entry.data.decode().removesuffix("\n")

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Commit *changes*, off the reactor's thread and one after the other."""
        return self._lock.run(deferToThread, self._commit, dict(changes), message)

    def _commit(self, changes: Mapping[str, str | None], message: str) -> None:
        repository = self._repository
        assert repository is not None
        try:
            # Nobody but us writes here: a lock on the branch is what a killed process has left.
            Path(repository.path, f"{BRANCH}.lock").unlink(missing_ok=True)
            head = repository.references[BRANCH].peel(pygit2.Commit) if BRANCH in repository.references else None
            tree = self._changed(head.tree if head else None, changes)
            if head is not None and tree == head.tree_id:
                return
            parents = [] if head is None else [head.id]
            if head is not None and message == STATISTICS and head.message == STATISTICS:
                parents = list(head.parent_ids)
            author = pygit2.Signature(*_AUTHOR)
            commit = repository.create_commit(None, author, author, message, tree, parents)
            repository.references.create(BRANCH, commit, force=True)
        except (pygit2.GitError, OSError, KeyError, ValueError) as error:
            reason = f"{self._path}: {error}"
            raise StoreError(reason) from error

    def _changed(self, tree: pygit2.Tree | None, changes: Mapping[str, str | None]) -> pygit2.Oid:
        """Write *tree* with *changes*; only the folders that they touch are made anew."""
        repository = self._repository
        assert repository is not None
        builder = repository.TreeBuilder(tree) if tree is not None else repository.TreeBuilder()
        below: dict[str, dict[str, str | None]] = {}
        for path, value in changes.items():
            step, _, rest = path.partition("/")
            name = intern(step)  # pygit2 1.21 keeps the string of each name that a tree is asked for: one and the same
            if rest:
                below.setdefault(name, {})[rest] = value
            elif value is None:
                if builder.get(name) is not None:
                    builder.remove(name)
            else:
                blob = repository.create_blob(f"{value}\n".encode())
                builder.insert(name, blob, pygit2.enums.FileMode.BLOB)
        for name, inner in below.items():
            old = tree[name] if tree is not None and name in tree else None
            new = self._changed(old if isinstance(old, pygit2.Tree) else None, inner)
            if new != _EMPTY:
                builder.insert(name, new, pygit2.enums.FileMode.TREE)
            elif builder.get(name) is not None:
                builder.remove(name)
        return builder.write()

    def close(self) -> Deferred[None]:
        """Wait until what is being written is written."""
        return self._lock.run(lambda: None)
