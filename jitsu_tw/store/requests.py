"""
Requests: branches below ``request/`` that somebody has pushed, to have their changes merged into `main`.

This room reads what a request would change, merges it or puts it aside with the reason; every call may block. What the
values mean, and whether they can be had, others say (`branches`).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final
from uuid import UUID

import attrs
import pygit2
from pygit2.enums import FileMode

from jitsu_tw.errors import printable
from jitsu_tw.store.history import AUTHOR, FAULTS, files, subtree
from jitsu_tw.store.layout import STATISTICS, VMS
from jitsu_tw.store.merge import three_way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitsu_tw.store.history import History

ASKED: Final = "refs/heads/request/"
REJECTED: Final = "refs/heads/rejected/"

#: The last commit of the branch that several Jitsus share which is in our `main`, too (`shared`).
SHARED: Final = "refs/jitsu/shared"

#: So many rejected requests are kept, the last ones.
MOST_REJECTED: Final = 100

#: In octets: the longest value that is read.
LONGEST: Final = 65536

_PLAIN: Final = frozenset({FileMode.BLOB, FileMode.BLOB_EXECUTABLE})


@attrs.frozen
class Change:
    """
    What a request would make of one VM.

    Attributes:
        was: its files now, by the path below its folder; {} if it is new.
        files: its files then; {} if it is to go.
    """

    was: Mapping[str, str]
    files: Mapping[str, str]


@attrs.frozen
class Request:
    """
    A branch that asks to be merged.

    Attributes:
        name: of the branch, behind ``request/``.
        commit: its last.
        author: of that.
        subject: the first line of its message.
        changes: what it would change, by uuid.
        refused: why it cannot be merged; empty if it can, as far as git knows.
    """

    name: str
    commit: pygit2.Oid
    author: str = "somebody"
    subject: str = ""
    changes: Mapping[str, Change] = attrs.field(factory=dict)
    refused: str = ""

    @property
    def guest(self) -> str:
        """The VM whose own branch it is, which may change nothing else; empty for an operator's."""
        return guest_of(self.name)


def guest_of(branch: str) -> str:
    """Return the VM whose own branch it is, by its name behind ``request/``; empty for an operator's."""
    return branch.partition("/")[0] if "/" in branch else ""


class RefusedError(Exception):
    """A request that cannot be merged; the message says why."""


class Requests:
    """The requests in a state."""

    def __init__(self, history: History) -> None:
        """Merge into *history*."""
        self._history = history
        self._packed: tuple[int, tuple[str, ...]] = (0, ())

    def waiting(self) -> list[str]:
        """Return the names of the branches that ask; quick, and may be called while others work on the repository."""
        base = self._history.path / ASKED
        found = set(self._among_packed())
        for folder, _, names in os.walk(base):
            inner = os.path.relpath(folder, base)
            found |= {os.path.normpath(os.path.join(inner, name)) for name in names if not name.endswith(".lock")}  # noqa: PTH118
        return sorted(found)

    def _among_packed(self) -> tuple[str, ...]:
        """Return those that git has put into its file of packed branches, which is read when it has changed."""
        path = self._history.path / "packed-refs"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._packed[0]:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                names = [line.partition(" ")[2] for line in lines]
                self._packed = changed, tuple(name.removeprefix(ASKED) for name in names if name.startswith(ASKED))
        except OSError:
            return ()
        return self._packed[1]

    def read(self, name: str) -> Request | None:
        """
        Return what the branch *name* asks for; None if it is there no more.

        Raises:
            StoreError: the state itself cannot be read.
        """
        repository = self._history.repository
        with self._history.refused():
            if ASKED + name not in repository.references:
                return None
            target = _target(repository.references[ASKED + name])
            head = self._history.head
        try:
            commit = repository[target].peel(pygit2.Commit)
            author = printable(f"{commit.author.name} <{commit.author.email}>")
            subject = printable(next(iter(commit.message.splitlines()), "").strip())
        except FAULTS as error:
            return Request(name, target, refused=f"its commit cannot be read: {error}")
        try:
            changes = self._changes(commit, head)
        except RefusedError as error:
            return Request(name, target, author, subject, refused=str(error))
        except FAULTS as error:
            return Request(name, target, author, subject, refused=f"it cannot be read: {error}")
        return Request(name, target, author, subject, changes)

    def _changes(self, commit: pygit2.Commit, head: pygit2.Commit | None) -> dict[str, Change]:
        known = [] if head is None else [head.id, *self._shared()]
        base = self._history.repository.merge_base_many([commit.id, *known]) if known else None
        if head is None or base is None:
            message = "it has no commit in common with main: clone the state anew, and make the change there"
            raise RefusedError(message)
        self._only_vms(commit, known)
        trees = [entries(self._history.repository[one].peel(pygit2.Commit).tree)
                 for one in (base, head.id, commit.id)]
        was, ours, theirs = trees
        changes: dict[str, Change] = {}
        conflicts: list[str] = []
        for uuid in sorted(was.keys() | theirs.keys()):
            if was.get(uuid) == theirs.get(uuid) or ours.get(uuid) == theirs.get(uuid):
                continue
            check_folder(uuid, theirs.get(uuid))
            sides = [files(tree if isinstance(tree := side.get(uuid), pygit2.Tree) else None) for side in trees]
            mine = sides[1]
            if not sides[2]:  # who removes a VM removes what we, or others, have added to it
                mine = {path: value for path, value in mine.items() if path in sides[0]}
            merged, clashes = three_way(sides[0], mine, sides[2])
            conflicts += [f"{VMS}/{uuid}/{clash}" for clash in clashes]
            if merged != sides[1]:
                changes[uuid] = Change(sides[1], merged)
        if conflicts:
            raise RefusedError("\n".join(["it conflicts with main:", *conflicts]))
        return changes

    def _shared(self) -> list[pygit2.Oid]:
        """Return the last commit that we share with others, if there is one: who has cloned that may ask, too."""
        references = self._history.repository.references
        return [references[SHARED].peel(pygit2.Commit).id] if SHARED in references else []

    def _only_vms(self, commit: pygit2.Commit, known: Sequence[pygit2.Oid]) -> None:
        """Refuse a request with commits that change anything but VMs; statistics that were cloned are no change."""
        walk = self._history.repository.walk(commit.id)
        for one in known:
            walk.hide(one)
        for made in walk:
            squashed = made.message == STATISTICS and made.committer.email == AUTHOR[1]
            if squashed or len(made.parent_ids) != 1:
                continue
            old, new = _others(made.parents[0].tree), _others(made.tree)
            for path in sorted(old.keys() | new.keys()):
                if old.get(path) != new.get(path):
                    message = f"{path} is not for requests; only what is below {VMS}/ can be changed by them"
                    raise RefusedError(message)

    def accept(self, request: Request, changes: Mapping[str, str | None], message: str) -> None:
        """
        Merge *request* into `main`, as *changes*, and remove it.

        Raises:
            StoreError: that cannot be written; nothing has changed.
        """
        if changes:
            self._history.commit(changes, message, request.commit)
        self._remove(request)

    def reject(self, request: Request, reason: str) -> None:
        """
        Put *request* aside as a branch below ``rejected/`` whose last commit says why.

        Raises:
            StoreError: that cannot be written; the request stays.
        """
        history, repository = self._history, self._history.repository
        with history.refused():
            try:
                tree, parents = repository[request.commit].peel(pygit2.Commit).tree_id, [request.commit]
            except FAULTS:
                tree, parents = history.tree(None, {}), []
            message = f"Rejected: {reason}\n"
            self.put_aside(request.name, history.make(tree, parents, message))
        self._remove(request)

    def put_aside(self, name: str, commit: pygit2.Oid) -> None:
        """Let the branch *name* below ``rejected/`` be *commit*."""
        self._make_room(REJECTED + name)
        self._history.move(REJECTED + name, commit)

    def _make_room(self, branch: str) -> None:
        """Remove the rejected branches that a new one cannot stand beside, and those that are too many."""
        references = self._history.repository.references
        others = [name for name in references if name.startswith(REJECTED)]
        for other in others:
            if other.startswith(f"{branch}/") or branch.startswith(f"{other}/"):
                references.delete(other)
        if len(others) >= MOST_REJECTED:
            left = [name for name in references if name.startswith(REJECTED)]
            left.sort(key=lambda name: references[name].peel(pygit2.Commit).commit_time)
            for other in left[: 1 - MOST_REJECTED]:
                references.delete(other)

    def _remove(self, request: Request) -> None:
        """Remove the branch, unless it asks for something else by now."""
        references = self._history.repository.references
        branch = ASKED + request.name
        with self._history.refused(), contextlib.suppress(KeyError):
            if _target(references[branch]) == request.commit:
                self._history.unlock(branch)
                references.delete(branch)


def _target(branch: pygit2.Reference) -> pygit2.Oid:
    target = branch.resolve().target
    assert isinstance(target, pygit2.Oid)
    return target


def entries(tree: pygit2.Tree) -> dict[str, pygit2.Object]:
    """Return the folders of VMs in *tree*, by name."""
    folder = subtree(tree, VMS)
    return {} if folder is None else {str(entry.name): entry for entry in folder}


def _others(tree: pygit2.Tree) -> dict[str, pygit2.Oid]:
    """Return what is in *tree* beside the VMs, and where they are from: who reverts our merge removes that, too."""
    found = {str(entry.name): entry.id for entry in tree if entry.name != "jitsu"}
    inner = subtree(tree, "jitsu")
    if inner is not None:
        found |= {f"jitsu/{entry.name}": entry.id for entry in inner if entry.name not in {"vm", "origin"}}
    return found


def check_folder(uuid: str, entry: pygit2.Object | None) -> None:
    """
    Refuse a folder whose name is no uuid, and what cannot be a value in it.

    Raises:
        RefusedError: says so.
    """
    try:
        canonical = str(UUID(uuid))
    except ValueError:
        canonical = ""
    if canonical != uuid:
        message = f"{VMS}/{uuid}: a VM's folder is named by its uuid, in lower case; uuidgen makes one"
        raise RefusedError(message)
    if entry is not None:
        _check_values(f"{VMS}/{uuid}", entry)


def _check_values(path: str, entry: pygit2.Object) -> None:
    if isinstance(entry, pygit2.Tree):
        for inner in entry:
            _check_values(f"{path}/{inner.name}", inner)
    elif not isinstance(entry, pygit2.Blob) or entry.filemode not in _PLAIN or path.count("/") < 3:
        message = f"{path} is no plain file"
        raise RefusedError(message)
    elif entry.size > LONGEST or entry.is_binary:
        message = f"{path} is no value: it is too long, or binary"
        raise RefusedError(message)
