"""
Requests: branches below ``request/`` whose changes a client wants merged into `main`.

This module reads what a request would change, merges it, or puts it aside with the reason; every call may block. What
the values mean, and whether the configuration can be had, `sync.change_requests` decides.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

import attrs
import pygit2
from twisted.logger import Logger

from jitsu_tw.errors import StoreError
from jitsu_tw.store.bounds import Reader, RefusedError, TooLargeError
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.history import FAULTS
from jitsu_tw.store.layout import VMS
from jitsu_tw.store.merge import three_way
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitsu_tw.store.history import History

#: The last commit of the branch that several Jitsus share which is in `main`, too (`sync_branch`).
SHARED: Final = "refs/jitsu/shared"

#: The most rejected requests that are kept. Then the oldest of the sender that has the most is removed.
MOST_REJECTED: Final = 100

#: In octets: the longest name of a request. Longer ones, and names that cannot be printed, are passed over.
LONGEST_REQUEST: Final = 200

#: In characters: the longest name of an author or subject, and the longest reason, that is kept.
LONGEST_WORDS: Final = 200
LONGEST_REASON: Final = 4000


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
    A branch that is to be merged.

    Attributes:
        name: of the branch, without ``request/``.
        commit: the last of the branch.
        author: of that commit.
        subject: the first line of its message.
        changes: the VMs that it changes, by uuid.
        refused: why it cannot be merged; empty if it can, as far as git knows.
        kept: whether the commit stays when the request is put aside; not if it is beyond the bounds.
    """

    name: str
    commit: pygit2.Oid
    author: str = "an unknown author"
    subject: str = ""
    changes: Mapping[str, Change] = attrs.field(factory=dict)
    refused: str = ""
    kept: bool = True

    @property
    def guest(self) -> str:
        """The VM whose own branch it is, which may change nothing else; empty for an operator's."""
        return guest_of(self.name)


def guest_of(branch: str) -> str:
    """Return the VM whose own branch it is, by its name behind ``request/``; empty for an operator's."""
    return branch.partition("/")[0] if "/" in branch else ""


class Requests:
    """The requests in a state."""

    log = Logger()

    def __init__(self, history: History) -> None:
        """Merge into *history*."""
        self._history = history
        self._packed: tuple[int, tuple[str, ...]] = (0, ())
        self._passed_over: set[str] = set()
        self._ended = False

    def end(self) -> None:
        """Give up the request that is being read, if there is one: the process ends."""
        self._ended = True

    def waiting(self) -> list[str]:
        """Return the names of the requests; quick, and may be called while threads work on the repository."""
        base = self._history.path / REQUEST
        found = set(self._among_packed())
        for folder, _, names in os.walk(base):
            inner = os.path.relpath(folder, base)
            found |= {os.path.normpath(os.path.join(inner, name)) for name in names if not name.endswith(".lock")}  # noqa: PTH118
        return sorted(name for name in found if not self._is_passed_over(name))

    def _is_passed_over(self, name: str) -> bool:
        """Return whether no request can have this *name*, and log that once."""
        if can_be_named(name):
            return False
        if name not in self._passed_over:
            self._passed_over.add(name)
            message = ("a branch below request/ is passed over, because its name is too long, or cannot be printed: "
                       "{name!a}; remove it by git update-ref -d")
            self.log.error(message, name=name[:LONGEST_REQUEST])
        return True

    def _among_packed(self) -> tuple[str, ...]:
        """Return the requests in git's file of packed branches, which is read when it has changed."""
        path = self._history.path / "packed-refs"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._packed[0]:
                lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
                names = [line.partition(" ")[2] for line in lines]
                self._packed = changed, tuple(name.removeprefix(REQUEST) for name in names if name.startswith(REQUEST))
        except OSError:
            return ()
        return self._packed[1]

    def read(self, name: str) -> Request | None:
        """
        Return the request of that *name*; None if its branch is gone.

        Raises:
            StoreError: the state itself cannot be read.
        """
        repository = self._history.repository
        with self._history.refused():
            if REQUEST + name not in repository.references:
                return None
            target = _target(repository.references[REQUEST + name])
            head = self._history.head
        request = Request(name, target)
        reader = Reader(repository, lambda: self._ended)
        try:
            commit = reader.commit(target)
            request = attrs.evolve(request, author=_author(commit), subject=words(first_line(commit.raw_message)))
            return attrs.evolve(request, changes=self._changes(reader, commit, head))
        except TooLargeError as error:
            return attrs.evolve(request, refused=str(error), kept=False)
        except RefusedError as error:
            return attrs.evolve(request, refused=str(error))
        except FAULTS as error:
            return attrs.evolve(request, refused=f"it cannot be read: {error}")
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- wide: one request must not stop those after it
            self.log.failure("request/{name}: unexpected, please report", name=name)
            return attrs.evolve(request, refused=f"it cannot be read: unexpected {type(error).__name__}", kept=False)
        finally:
            self._history.loose += reader.seen  # each new object has come as a file

    def _changes(self, reader: Reader, commit: pygit2.Commit, head: pygit2.Commit | None) -> dict[str, Change]:
        sides, changed = reader.measure(commit.id, None if head is None else head.id, self.shared())
        changes: dict[str, Change] = {}
        conflicts: list[str] = []
        for uuid in changed:
            was, ours, theirs = sides.values(reader, uuid)
            # The removal of a VM removes, too, what was added to it meanwhile.
            mine = ours if theirs else {path: value for path, value in ours.items() if path in was}
            merged, clashes = three_way(was, mine, theirs)
            conflicts += [f"{VMS}/{uuid}/{clash}" for clash in clashes]
            if merged != ours:
                changes[uuid] = Change(ours, merged)
        if conflicts:
            raise RefusedError("\n".join(["it conflicts with main:", *conflicts]))
        return changes

    def shared(self) -> list[pygit2.Oid]:
        """Return the last commit that nodes share, if there is one: a request may be made on a clone of that, too."""
        commit = self._history.at(SHARED)
        return [commit.id] if commit is not None else []

    def accept(self, request: Request, changes: Mapping[str, str | None], message: str) -> None:
        """
        Merge *request* into `main`, as *changes*, and remove its branch, and the rejected one of the same name.

        Raises:
            StoreError: that cannot be written; nothing has changed.
        """
        if changes:
            self._history.commit(changes, message, request.commit)
        references = self._history.repository.references
        with self._history.refused(), contextlib.suppress(KeyError):
            references.delete(REJECTED + request.name)
        self._remove(request)

    def reject(self, request: Request, reason: str) -> None:
        """
        Move *request* to a branch below ``rejected/`` whose last commit says why.

        Raises:
            StoreError: that cannot be written; the request stays.
        """
        history, message = self._history, f"Rejected: {shortened(reason)}\n"
        with history.refused():
            made = None
            if request.kept:
                with contextlib.suppress(RefusedError, *FAULTS):  # it is damaged: only the reason is kept
                    commit = Reader(history.repository).commit(request.commit)
                    made = history.make(commit.tree_id, [commit.id], message)
            self.put_aside(request.name, made or history.make(history.tree(None, {}), [], message))
        self._remove(request)

    def put_aside(self, name: str, commit: pygit2.Oid) -> None:
        """Move the branch *name* below ``rejected/`` to *commit*."""
        self._remove_rejected(REJECTED + name)
        self._history.move(REJECTED + name, commit)

    def _remove_rejected(self, branch: str) -> None:
        """Remove the rejected branches that a new one cannot stand beside, and those that are too many."""
        references = self._history.repository.references
        others = [name for name in references if name.startswith(REJECTED)]
        for other in others:
            if other.startswith(f"{branch}/") or branch.startswith(f"{other}/"):
                references.delete(other)
        left = [name for name in references if name.startswith(REJECTED)]
        left.sort(key=lambda name: references[name].peel(pygit2.Commit).commit_time)
        while len(left) >= MOST_REJECTED:
            senders = [guest_of(name.removeprefix(REJECTED)) for name in left]
            oldest = left.pop(senders.index(Counter(senders).most_common(1)[0][0]))
            references.delete(oldest)

    def _remove(self, request: Request) -> None:
        """Remove the branch of *request*, unless it has moved meanwhile."""
        references = self._history.repository.references
        branch = REQUEST + request.name
        with self._history.refused(), contextlib.suppress(KeyError):
            if _target(references[branch]) == request.commit:
                self._history.unlock(branch)
                references.delete(branch)


def _target(branch: pygit2.Reference) -> pygit2.Oid:
    target = branch.resolve().target
    assert isinstance(target, pygit2.Oid)
    return target


def shortened(reason: str) -> str:
    """Return *reason* as it may stand in a log, a commit's message and on a terminal: lines of printable text."""
    lines = "\n".join(printable(line) for line in reason[: LONGEST_REASON + 1].split("\n"))
    return lines if len(lines) <= LONGEST_REASON else f"{lines[:LONGEST_REASON]}..."


def first_line(message: bytes) -> bytes:
    """Return the first line of a commit's message."""
    return next(iter(message.strip().splitlines()), b"")


def words(raw: bytes) -> str:
    """Return text that a sender wrote: printable, and at most `LONGEST_WORDS` characters."""
    return printable(raw.decode(errors="replace"))[:LONGEST_WORDS]


def _author(commit: pygit2.Commit) -> str:
    return f"{words(commit.author.raw_name)} <{words(commit.author.raw_email)}>"


def can_be_named(name: str) -> bool:
    """Return whether a request may have this *name*: it is printed in logs, and is a path."""
    return name.isprintable() and len(name.encode(errors="replace")) <= LONGEST_REQUEST


def fairly(names: Iterable[str]) -> list[str]:
    """Return *names* of requests in the order in which they are handled: one of each sender, then one more of each."""
    of_each: dict[str, list[str]] = {}
    for name in names:
        of_each.setdefault(guest_of(name), []).append(name)
    return [name for round_ in zip_longest(*of_each.values()) for name in round_ if name is not None]
