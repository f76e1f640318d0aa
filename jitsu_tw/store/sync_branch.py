"""
The branch that several Jitsus share, in the repository of this node.

Its commits hold the configuration only: `main` has statistics, too, and is this node's alone. ``refs/jitsu/shared`` is
the last shared commit that is in `main` as well; from there on the two have diverged. It moves last, and each step
before may be repeated: a process that is killed in between begins again where it was. Every call may block; `remote`
talks to the repository elsewhere, and `sync.config_sync` decides what the values mean.
"""

from __future__ import annotations

import contextlib
import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs
import pygit2

from jitsu_tw.errors import StoreError
from jitsu_tw.store.bounds import Reader, RefusedError
from jitsu_tw.store.branches import REJECTED
from jitsu_tw.store.history import FAULTS, folder_id, subtree
from jitsu_tw.store.layout import MOST_NAMED, NAME, OVER_FILE, VMS, in_words, origin_path, vm_changes
from jitsu_tw.store.merge import Meeting, meet
from jitsu_tw.store.requests import SHARED, first_line, words
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitsu_tw.store.bounds import Entry
    from jitsu_tw.store.history import History
    from jitsu_tw.store.merge import Settled
    from jitsu_tw.store.requests import Requests

    #: What VMs were and are, by uuid.
    Changed = Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]

#: What was fetched last.
FETCHED: Final = "refs/jitsu/fetched"

#: The commit that is to be the shared branch's next.
OFFER: Final = "refs/jitsu/offer"

#: Branches that were put aside, and are to be pushed.
ASIDE: Final = "refs/jitsu/aside/"

#: The shared branch, in the repository elsewhere.
THERE: Final = "refs/heads/main"

#: The most commits that are searched for the one that has removed a VM.
MOST_SEARCHED: Final = 100

#: The most subjects of commits in a message.
MOST_SUBJECTS: Final = 10


@attrs.frozen
class Divergence:
    """
    How the shared branch and `main` differ.

    Attributes:
        commit: the shared branch's; None if there is none yet.
        tree: of this node's VMs.
        vms: the VMs that differ, by uuid.
        origins: where they are from, as the shared branch has it.
        unread: the folders of the shared branch that are no VMs, with the reason; they are left alone.
        subjects: of the commits that came, the oldest first.
    """

    commit: pygit2.Oid | None
    tree: pygit2.Oid | None
    vms: Mapping[str, Meeting]
    origins: Mapping[str, str]
    unread: Mapping[str, str]
    subjects: tuple[str, ...] = ()


class SyncBranch:
    """The shared branch, seen from *node*."""

    def __init__(self, history: History, requests: Requests, node: str) -> None:
        """Merge it into *history*, beside *requests*; *node* is the name that other nodes read."""
        self._history, self._requests = history, requests
        self._node = re.sub("[^A-Za-z0-9]+", "-", node).strip("-") or "jitsu"

    def prepare_fetch(self) -> None:
        """Remove what a killed process has left of a fetch into `FETCHED`."""
        with self._history.refused():
            self._history.unlock(FETCHED)

    def forget(self) -> None:
        """Forget the shared branch, which is not there any more: everything is shared anew."""
        references = self._history.repository.references
        with self._history.refused():
            for name in (FETCHED, SHARED):
                if name in references:
                    references.delete(name)

    def compare(self, again: Iterable[str] = ()) -> Divergence:
        """
        Return how what was fetched and `main` differ; the VMs *again*, too, though they may not.

        Raises:
            StoreError: the state, or what was fetched, cannot be read.
        """
        with self._history.refused():
            theirs = self._history.at(FETCHED)
            self._note_arrival(theirs)
            base, head, again = self._history.at(SHARED), self._history.head, set(again)
            old, mine, other = (self._folders(commit) for commit in (base, head, theirs))
            vms: dict[str, Meeting] = {}
            unread: dict[str, str] = {}
            for uuid in sorted(old.keys() | mine.keys() | other.keys()):
                if mine.get(uuid) == other.get(uuid) and uuid not in again:
                    continue
                reader = Reader(self._history.repository)
                try:
                    reader.check(uuid, other.get(uuid))
                    was = self._values(uuid, old) or {}
                    one = meet(was, reader.values(uuid, mine.get(uuid)), reader.values(uuid, other.get(uuid)))
                except (RefusedError, *FAULTS) as error:
                    unread[uuid] = str(error)
                    continue
                if uuid in again:
                    one = attrs.evolve(one, new=True)
                if one.new or one.is_offered:
                    vms[uuid] = one
            origins = self._origins(theirs, vms) if theirs is not None else {}
            commit = theirs.id if theirs is not None else None
            return Divergence(commit, folder_id(head, VMS), vms, origins, unread, self._subjects(base, theirs))

    def _folders(self, commit: pygit2.Commit | None) -> dict[str, Entry]:
        """Return the folders of VMs in *commit*, by name."""
        try:
            return Reader(self._history.repository).folders(commit)
        except RefusedError as error:
            raise StoreError(f"what is shared cannot be read: {error}") from error

    def _values(self, uuid: str, folders: Mapping[str, Entry]) -> dict[str, str] | None:
        """Return the values of a folder, {} if it is not among *folders*; None if it is no VM's that can be read."""
        reader = Reader(self._history.repository)
        try:
            reader.check(uuid, folders.get(uuid))
            return reader.values(uuid, folders.get(uuid))
        except (RefusedError, *FAULTS):
            return None

    def _note_arrival(self, theirs: pygit2.Commit | None) -> None:
        """Note that the last offer is shared, if it is: its push may have gone well though git's answer was lost."""
        offer = self._history.at(OFFER)
        if offer is None or theirs is None:
            return
        if offer.id == theirs.id or self._history.repository.descendant_of(theirs.id, offer.id):
            self.pushed([OFFER])

    def _subjects(self, base: pygit2.Commit | None, theirs: pygit2.Commit | None) -> tuple[str, ...]:
        """Return author and subject of the commits that came, the oldest first."""
        if theirs is None or base is None or base.id == theirs.id:
            return ()
        walk = self._history.repository.walk(theirs.id)
        walk.hide(base.id)
        found = [
            f"{words(commit.author.raw_name)}: {words(first_line(commit.raw_message))}"
            for commit in islice(walk, MOST_SUBJECTS)
        ]
        return tuple(found[::-1])

    def merge(self, divergence: Divergence, settled: Settled, message: str) -> dict[str, str | None] | None:
        """
        Write to `main` what was *settled*; make a branch of what goes aside.

        Returns:
            the changes, by path; None if `main` has moved since *divergence* was found: then nothing is done.

        Raises:
            StoreError: it cannot be written.
        """
        history = self._history
        with history.refused():
            if folder_id(history.head, VMS) != divergence.tree:
                return None
            if settled.aside:
                self._put_aside(divergence, settled.aside)
            changes: dict[str, str | None] = {}
            for uuid, one in divergence.vms.items():
                files = one.theirs if uuid in settled.aside else one.merged
                if files != one.ours:
                    changes |= vm_changes(uuid, one.ours, files)
                    changes[origin_path(uuid)] = divergence.origins.get(uuid, "what is shared") if files else None
            if changes:
                history.commit(changes, message)
            shared = history.at(SHARED)
            if divergence.commit is not None and (shared is None or shared.id != divergence.commit):
                history.move(SHARED, divergence.commit)
            return changes

    def _put_aside(self, divergence: Divergence, aside: Mapping[str, str]) -> None:
        """Make a branch of what this node has changed in the VMs *aside*, on top of what is shared."""
        history, repository = self._history, self._history.repository
        assert divergence.commit is not None
        theirs = repository[divergence.commit].peel(pygit2.Commit)
        changes: dict[str, str | None] = {}
        for uuid in aside:
            changes |= vm_changes(uuid, divergence.vms[uuid].theirs, divergence.vms[uuid].ours)
        from_ = self._from(aside, self._requested(history.head, aside))
        lines = [f"{VMS}/{uuid}: {reason}" for uuid, reason in sorted(aside.items())]
        message = f"Rejected: {from_} came second\n\n" + "\n".join([*lines, "What others had shared before holds.", ""])
        commit = history.make(history.tree(theirs.tree, changes), [theirs.id], message, self._signature())
        request = from_.split()[0].removeprefix("request/") if from_.startswith("request/") else "file"
        name = f"{request.replace('/', '-')}-{self._node}-{str(commit)[:7]}"
        history.move(ASIDE + name, commit)
        self._requests.put_aside(name, commit)

    def _requested(self, head: pygit2.Commit | None, uuids: Iterable[str]) -> dict[str, str]:
        """Return the requests that made VMs what they are in *head*, or removed them; "" where none did."""
        if head is None:
            return {}
        uuids = tuple(uuids)
        there = subtree(head.tree, VMS) or ()
        found = self._origins(head, uuids)
        gone = [uuid for uuid in uuids if uuid not in there]
        return found | {uuid: _removed_by(head, uuid) for uuid in gone[:MOST_NAMED]}

    def _origins(self, commit: pygit2.Commit, uuids: Iterable[str]) -> dict[str, str]:
        """Return where VMs are from, as *commit* has it."""
        folder = subtree(commit.tree, "jitsu/origin")
        reader = Reader(self._history.repository)
        found: dict[str, str] = {}
        for uuid in uuids:
            if folder is not None and uuid in folder:
                with contextlib.suppress(RefusedError):
                    origin = printable(reader.value(folder[uuid].id, origin_path(uuid)))
                    found[uuid] = origin.removesuffix(OVER_FILE)  # other nodes have other files
        return found

    def _from(self, uuids: Iterable[str], requested: Mapping[str, str]) -> str:
        """Return where these VMs are from as they are now: the one request, or this node's own configuration."""
        found = {requested.get(uuid, "") for uuid in uuids}
        one = found.pop() if len(found) == 1 else ""
        return one if one.startswith("request/") else f"the configuration of {self._node}"

    def _signature(self) -> pygit2.Signature:
        return pygit2.Signature(self._node, "jitsu@localhost")

    def offer(self) -> dict[str, str]:
        """
        Commit what `main` has, and the shared branch has not, on top of that.

        Returns:
            the branches that are to be pushed, and their names there; `OFFER` is among them if there is something to
            share.

        Raises:
            StoreError: that cannot be written.
        """
        history = self._history
        with history.refused():
            asides = {name: REJECTED + name.removeprefix(ASIDE) for name in history.repository.references
                      if name.startswith(ASIDE)}
            base, head = history.at(SHARED), history.head
            reader = Reader(history.repository)
            old, new = (self._folders(commit) for commit in (base, head))
            changed: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {}
            for uuid in old.keys() | new.keys():
                if old.get(uuid) != new.get(uuid) and (theirs := self._values(uuid, old)) is not None:
                    ours = reader.values(uuid, new.get(uuid))
                    if ours != theirs:
                        changed[uuid] = theirs, ours
            if not changed:
                return asides
            requested = self._requested(head, changed)
            changes: dict[str, str | None] = {}
            for uuid, (was, now) in changed.items():
                changes |= vm_changes(uuid, was, now)
                changes[origin_path(uuid)] = self._from((uuid,), requested) if now else None
            tree = history.tree(base.tree if base is not None else None, changes)
            parents = [base.id] if base is not None else []
            history.move(OFFER, history.make(tree, parents, self._message(changed, requested), self._signature()))
            return {OFFER: THERE, **asides}

    def _message(self, changed: Changed, requested: Mapping[str, str]) -> str:
        names: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        for uuid, (was, now) in changed.items():
            how = "added" if not was else "removed" if not now else "changed"
            names[how].append((was or now).get(NAME, uuid))
        lines = "".join(in_words(how, listed) for how, listed in names.items())
        return f"From {self._from(changed, requested)}\n\n{lines}"

    def pushed(self, branches: Iterable[str]) -> str:
        """
        Note that *branches* were pushed.

        Returns:
            the shared branch's commit, in hexadecimal; empty if it was not among them.
        """
        references = self._history.repository.references
        shared = ""
        with self._history.refused():
            for name in branches:
                if name == OFFER:
                    commit = references[OFFER].peel(pygit2.Commit).id
                    self._history.move(SHARED, commit)
                    shared = str(commit)
                references.delete(name)
        return shared


def _removed_by(head: pygit2.Commit, uuid: str) -> str:
    """Return the request that has removed a VM; "" if it was none, or long ago."""
    for _ in range(MOST_SEARCHED):
        if not head.parent_ids or uuid in (subtree(head.parents[0].tree, VMS) or ()):
            break
        head = head.parents[0]
    found = re.match(r"Merge (request/[^:]*):.*\nasked for by ([^\n]*)\n$", head.message, re.DOTALL)
    return f"{found[1]} of {found[2]}" if found else ""
