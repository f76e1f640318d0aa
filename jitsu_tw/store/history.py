"""
A tree of text in the branch `main` of a bare git repository: one file for each path, one commit for each step.

Every call here may block; `git` runs them in threads. libgit2 (through pygit2) writes objects first and moves the
branch last, by a rename: a step is complete or not there. Objects are on the disk before the branch moves, so that this
holds for a loss of power, too. Successive commits of statistics are squashed, except those that `Retention` keeps;
commits that change a configuration are kept for ever.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pygit2
from twisted.logger import Logger

from jitsu_tw.errors import StoreError
from jitsu_tw.settings import Retention
from jitsu_tw.store import hooks
from jitsu_tw.store.layout import STATISTICS
from jitsu_tw.store.trees import TEMPORARY, Trees, sync_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MAIN: Final = "refs/heads/main"

#: The branch to which a main that another program has moved is renamed.
ASIDE: Final = "refs/heads/rejected/main"

#: Seconds after which a lock on a branch was left by a killed process: git has such a lock for the time of a rename.
STALE: Final = 10.0

#: Seconds that a push may take: it may refer to a commit that was the head of `main` at its beginning.
PUSH_TAKES: Final = 600.0

#: The exceptions for a damaged or missing object, a full disk and the like.
FAULTS: Final = (pygit2.GitError, KeyError, ValueError, OSError)

AUTHOR: Final = ("Jitsu", "jitsu@localhost")

# Settings of git for users and the system are not for the state: Jitsu may not even be allowed to read their files. The
# operator names the repository, so any user may own it.
for _level in (pygit2.enums.ConfigLevel.SYSTEM, pygit2.enums.ConfigLevel.XDG, pygit2.enums.ConfigLevel.GLOBAL):
    pygit2.settings.search_path[_level] = ""
pygit2.settings.owner_validation = False

# libgit2 would keep each object that was ever read in memory: 5 MB for a thousand commits, 256 MB of contents at most.
pygit2.settings.enable_caching(False)  # noqa: FBT003


class History:
    """
    The branch `main` of the state's repository.

    Attributes:
        path: of the repository.
        repository: the repository, once it is open.
        loose: about how many loose objects there are.
        octets: about how many octets were written since `loose` was 0.
        recent: the last heads of `main`, each with the time of CLOCK_MONOTONIC when it was replaced: a client may be
            pushing commits on top of it.
    """

    log = Logger()

    def __init__(self, path: Path, past: Retention | None = None, now: Callable[[], float] = time.time) -> None:
        """Store the arguments; `open` opens the repository at *path*. *past* is how much of the statistics is kept."""
        self.path = path
        self.loose = self.octets = 0
        self.recent: list[tuple[float, str]] = []
        self._past, self._now = past or Retention(), now
        self._repository: pygit2.Repository | None = None
        self._head: pygit2.Oid | None = None
        self._chain: list[tuple[float, pygit2.Oid]] = []
        self._trees: Trees | None = None

    @property
    def repository(self) -> pygit2.Repository:
        """The repository, which is open."""
        assert self._repository is not None
        return self._repository

    @property
    def trees(self) -> Trees:
        """The writer of the repository's objects."""
        if self._trees is None:
            self._trees = Trees(self.repository)
        return self._trees

    @property
    def remedy(self) -> str:
        """The remedy for a repository that cannot be read, for an error's text."""
        return f"run `git -C {self.path} fsck` and restore it from a copy, or move it away to begin with an empty state"

    # Opening.

    def open(self, take: Callable[[], None] | None = None) -> dict[str, str]:
        """
        Open the repository, or create it if there is nothing, and return the tree.

        Args:
            take: locks it for this process; without it, the repository is only read.

        Raises:
            StoreError: it is damaged, no state, cannot be read, or another process has locked it.
        """
        try:
            if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
                self._repository = hooks.make(self.path)
                if take is not None:
                    take()
                return {}
            self.attach()
            if take is not None:
                take()
                self._renew_hooks()
            self._clean()
            head = self.at(MAIN) or self._unborn(repair=take is not None)
            if head is None:
                return {}
            self._head, self._chain = head.id, self._statistics(head)
            if take is not None:
                self.trees.remember(head.tree_id)
            return files(head.tree)
        except FAULTS as error:
            raise StoreError(f"{self.path} is not a state that can be read ({error}): {self.remedy}") from error

    def attach(self) -> None:
        """
        Open the repository without reading its tree.

        Raises:
            ValueError, GitError: it has a work tree, or is no repository.
        """
        self._repository = pygit2.Repository(str(self.path), pygit2.enums.RepositoryOpenFlag.NO_SEARCH)
        if not self._repository.is_bare:
            raise ValueError("it has a work tree, and Jitsu's state is a bare repository: name another path")

    def _renew_hooks(self) -> None:
        """Write the hooks of this version of Jitsu."""
        try:
            for foreign in hooks.renew(self.repository):
                self.log.warn("{hook} is not Jitsu's, so that Jitsu does not check pushes: move it away, and run "
                              "`jitsuctl init {path}`", hook=foreign, path=self.path)
        except FAULTS as error:
            self.log.warn("{path}: the hooks are not renewed: {error}", path=self.path, error=str(error))

    def _unborn(self, *, repair: bool) -> pygit2.Commit | None:
        """
        Return the commit of a repository without `main`, which a process has left that was killed in its first commit.

        None if the repository has no commit; it may have other objects. With *repair*, the commit becomes `main`.

        Raises:
            StoreError: the repository has more commits, or other branches: it is damaged.
        """
        odb = self.repository.odb
        found = (oid for oid in self.repository if odb.read_header(oid)[0] == pygit2.enums.ObjectType.COMMIT)
        commits = list(islice(found, 2))
        if not commits:
            return None
        first = self.repository[commits[0]].peel(pygit2.Commit)
        if len(commits) > 1 or first.parents or self.repository.references.objects:
            raise StoreError(f"{self.path} has commits but no branch main: {self.remedy}")
        if repair:
            self.repository.references.create(MAIN, first.id)
        return first

    def _clean(self) -> None:
        """Remove half-written objects of killed processes, and count loose objects."""
        for folder in self.path.glob("objects/??"):
            with contextlib.suppress(OSError):  # a git of a killed Jitsu may still be tidying
                for file in folder.iterdir():
                    if file.name.startswith((TEMPORARY, "tmp_object_git2_")):
                        file.unlink()
                    elif _is_whole(file.read_bytes()):
                        self.loose += 1
                    else:
                        self._put_away(file)

    def _put_away(self, file: Path) -> None:
        """
        Move a truncated loose object to the folder ``damaged``: libgit2 1.9 would read it for ever.

        If nothing refers to it, a loss of power has left it, and nothing is lost; else reading the state fails.
        """
        name = f"{file.parent.name}{file.name}"
        target = self.path / "damaged" / name
        try:
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
        except OSError as error:
            raise ValueError(f"the object {name} is truncated") from error
        self.log.error("{path}: the object {name} is truncated; it was moved to damaged/", path=self.path, name=name)

    def _statistics(self, head: pygit2.Commit) -> list[tuple[float, pygit2.Oid]]:
        """Return the successive commits of statistics up to *head*, the oldest first."""
        found: list[tuple[float, pygit2.Oid]] = []
        while head.message == STATISTICS and len(head.parent_ids) < 2:
            found.append((head.commit_time, head.id))
            if not head.parent_ids:
                break
            head = head.parents[0]
        return found[::-1]

    # Reading.

    @property
    def head(self) -> pygit2.Commit | None:
        """The last commit of `main`; None before the first."""
        return None if self._head is None else self.repository[self._head].peel(pygit2.Commit)

    def at(self, branch: str) -> pygit2.Commit | None:
        """Return the last commit of *branch*, by its full name; None if there is no such branch."""
        references = self.repository.references
        return references[branch].peel(pygit2.Commit) if branch in references else None

    # Writing.

    def commit(self, changes: Mapping[str, str | None], message: str, merged: pygit2.Oid | None = None) -> None:
        """
        Commit *changes* (None removes a path and all below it); do nothing if the tree does not change.

        Args:
            changes: new values by their paths.
            message: of the commit.
            merged: the commit of the request that the changes are from; it becomes a parent.

        Raises:
            StoreError: it cannot be written; the branch is unchanged.
        """
        with self.refused():
            self._restore_main()
            head = self.head
            self.trees.drop()
            tree = self.tree(head.tree if head is not None else None, changes)
            if head is not None and tree == head.tree_id and merged is None:
                return
            chain = list(self._chain)
            parents = self._parents(head, message, chain)
            if merged is not None:
                parents.append(merged)
            commit = self.make(tree, parents, message)
            self.move(MAIN, commit)
            if head is not None:
                self._replaced(head.id)
            self._head = commit
            self._chain = [*chain, (self._now(), commit)] if message == STATISTICS else []

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Raise a StoreError for each of `FAULTS`."""
        try:
            yield
        except FAULTS as error:
            reason = f"{self.path}: {error}"
            if "ermission denied" in reason:
                reason += self._foreign()
            raise StoreError(reason) from error

    def _foreign(self) -> str:
        """Return which folder another user has made, and the remedy; "" if none."""
        for folder, _, _ in os.walk(self.path):
            owner = Path(folder).stat().st_uid
            if owner != os.geteuid():
                me = hooks.user(os.geteuid())
                return (f": {folder} belongs to {hooks.user(owner)}, and Jitsu runs as {me}: as root, run "
                        f"`chown -R {me} {self.path}`; and push as {me} only")
        return ""

    def _restore_main(self) -> None:
        """Undo a move of `main` by another program, whose commit becomes `ASIDE`: only Jitsu writes `main`."""
        main = self.at(MAIN)
        now = main.id if main is not None else None
        if now == self._head:
            return
        if now is not None:
            message = "{path}: another program moved main to {commit}, which is rejected/main now; push to request/NAME"
            self.log.error(message, path=self.path, commit=str(now))
            self.move(ASIDE, now)
        if self._head is not None:
            self.move(MAIN, self._head)

    def _parents(
        self, head: pygit2.Commit | None, message: str, chain: list[tuple[float, pygit2.Oid]]
    ) -> list[pygit2.Oid]:
        """
        Return the parents of a commit that follows *head*.

        The *chain* of statistics before is cut to what `Retention` keeps, when half of it or more can be removed.
        """
        if head is None:
            return []
        if message != STATISTICS or not chain:
            return [head.id]
        kept = self._past.kept([when for when, _ in chain], self._now())
        if len(chain) < 2 * kept:
            return [head.id]
        parents = list(self.repository[chain[0][1]].peel(pygit2.Commit).parent_ids)
        chain[: len(chain) - kept] = []
        for index, (when, old) in enumerate(chain):
            commit = self.repository[old].peel(pygit2.Commit)
            parents = [self.make(commit.tree_id, parents, STATISTICS, commit.committer)]
            chain[index] = when, parents[0]
        return parents

    def tree(self, tree: pygit2.Tree | None, changes: Mapping[str, str | None]) -> pygit2.Oid:
        """Write *tree* with *changes* and return the new tree; no commit refers to it yet."""
        written = self.trees.octets
        new = self.trees.write(tree.id if tree is not None else None, changes)
        self.octets += self.trees.octets - written
        return new

    def make(
        self, tree: pygit2.Oid, parents: Sequence[pygit2.Oid], message: str, who: pygit2.Signature | None = None
    ) -> pygit2.Oid:
        """Write a commit by *who*, or by Jitsu, and return it; no branch refers to it yet."""
        author = who or pygit2.Signature(*AUTHOR, int(self._now()), 0)
        return self.trees.keep(self.repository.create_commit, None, author, author, message, tree, list(parents))

    def move(self, branch: str, commit: pygit2.Oid) -> None:
        """Set *branch* to *commit*, after all written objects are on the disk."""
        self.loose += self.trees.sync()
        self.unlock(branch)
        self.repository.references.create(branch, commit, force=True)
        sync_file(Path(self.repository.path, branch))

    def unlock(self, branch: str) -> None:
        """Remove the locks that a killed process has left on *branch*."""
        for name in (branch, "packed-refs"):
            lock = Path(self.repository.path, f"{name}.lock")
            with contextlib.suppress(FileNotFoundError):
                if abs(time.time() - lock.stat().st_mtime) > STALE:  # the clock may have been set back since
                    lock.unlink()

    def _replaced(self, head: pygit2.Oid) -> None:
        """Store that *head* is not the head any more."""
        now = time.monotonic()
        self.recent = [one for one in self.recent if one[0] > now - PUSH_TAKES]
        self.recent.append((now, str(head)))


def files(tree: pygit2.Tree | None) -> dict[str, str]:
    """
    Return the values in *tree* by their paths; {} without a tree.

    Raises:
        ValueError: a file is no text in UTF-8.
        KeyError, GitError: an object is missing or damaged.
    """
    known: dict[pygit2.Oid, str] = {}  # many VMs have the same values
    return {} if tree is None else dict(_read(tree, "", known))


def _read(tree: pygit2.Tree, base: str, known: dict[pygit2.Oid, str]) -> Iterator[tuple[str, str]]:
    for entry in tree:
        if isinstance(entry, pygit2.Tree):
            yield from _read(entry, f"{base}{entry.name}/", known)
        elif isinstance(entry, pygit2.Blob):
            value = known.get(entry.id)
            if value is None:
                value = known[entry.id] = entry.data.decode().removesuffix("\n")
            yield f"{base}{entry.name}", value


def _is_whole(octets: bytes) -> bool:
    """Return whether a loose object's zlib stream is complete."""
    stream = zlib.decompressobj()
    try:
        stream.decompress(octets)
    except zlib.error:
        return False
    return stream.eof


def subtree(tree: pygit2.Tree, path: str) -> pygit2.Tree | None:
    """Return the folder *path* in *tree*, if there is one."""
    found = tree[path] if path in tree else None  # noqa: SIM401 - a tree has no `get`
    return found if isinstance(found, pygit2.Tree) else None


def folder_id(commit: pygit2.Commit | None, path: str) -> pygit2.Oid | None:
    """Return the id of the folder *path* in *commit*, if there is one: it changes with what is in the folder."""
    found = subtree(commit.tree, path) if commit is not None else None
    return found.id if found is not None else None
