"""
The branch that several Jitsus share, as our own repository knows it.

Its commits hold the configuration only: `main` has our statistics, too, and is ours alone. ``refs/jitsu/shared`` is the
last shared commit that is in `main` as well; from there on the two have gone apart. It moves last, and all that is done
before may be done again: who is killed in between begins where he was. Every call may block; who talks to the others
is `remote`, and what the values mean others say (`sync.config_sync`).
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

import attrs
import pygit2

from jitsu_tw.errors import StoreError
from jitsu_tw.store.bounds import Reader, RefusedError
from jitsu_tw.store.history import FAULTS, subtree
from jitsu_tw.store.layout import MOST_NAMED, OVER_FILE, VMS, difference, in_words, origin_path
from jitsu_tw.store.merge import Meeting, meet
from jitsu_tw.store.requests import REJECTED, SHARED, first_line, words
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitsu_tw.store.bounds import Entry
    from jitsu_tw.store.history import History
    from jitsu_tw.store.merge import Settled
    from jitsu_tw.store.requests import Requests

    #: What VMs were and are, by uuid.
    Sides = Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]

#: What was fetched last.
FETCHED: Final = "refs/jitsu/fetched"

#: What is to be the shared branch.
OFFER: Final = "refs/jitsu/offer"

#: What was put aside, and is to be known to the others.
ASIDE: Final = "refs/jitsu/aside/"

#: The shared branch, and what was put aside, where they are shared.
THERE: Final = "refs/heads/main"

#: So many commits are looked at for the one that has removed a VM.
MOST_LOOKED_AT: Final = 100

#: A message says so many subjects of what came.
MOST_SUBJECTS: Final = 10


@attrs.frozen
class News:
    """
    How the shared branch and `main` differ.

    Attributes:
        commit: the shared branch's; None if there is none yet.
        tree: of our VMs.
        vms: those that differ, by uuid.
        origins: where they are from, as the shared branch has it.
        unread: what is no VM there, by its folder, with the reason; it is left alone.
        words: what came, a line for each commit.
    """

    commit: pygit2.Oid | None
    tree: pygit2.Oid | None
    vms: Mapping[str, Meeting]
    origins: Mapping[str, str]
    unread: Mapping[str, str]
    words: tuple[str, ...] = ()


class Shared:
    """The shared branch, seen from *node*."""

    def __init__(self, history: History, requests: Requests, node: str) -> None:
        """Merge it into *history*, beside *requests*; *node* is what the others know us by."""
        self._history, self._requests = history, requests
        self._node = re.sub("[^A-Za-z0-9]+", "-", node).strip("-") or "jitsu"

    def ready(self) -> None:
        """Prepare for a fetch into `FETCHED`: what a killed one left is removed, so that no other is in the way."""
        with self._history.refused():
            self._history.unlock(FETCHED)

    def none(self) -> None:
        """Hear that there is no shared branch: everything is to be shared anew."""
        references = self._history.repository.references
        with self._history.refused():
            for name in (FETCHED, SHARED):
                if name in references:
                    references.delete(name)

    def _commit(self, name: str) -> pygit2.Commit | None:
        references = self._history.repository.references
        return references[name].peel(pygit2.Commit) if name in references else None

    def news(self, again: Iterable[str] = ()) -> News:
        """
        Return how what was fetched and `main` differ; and the VMs *again*, though they may not.

        Raises:
            StoreError: the state, or what was fetched, cannot be read.
        """
        with self._history.refused():
            theirs = self._commit(FETCHED)
            self._arrived(theirs)
            base = self._commit(SHARED)
            head = self._history.head
            trees = [self._folders(commit) for commit in (base, head, theirs)]
            again = set(again)
            vms: dict[str, Meeting] = {}
            unread: dict[str, str] = {}
            for uuid in sorted(trees[0].keys() | trees[1].keys() | trees[2].keys()):
                was, ours, other = (side.get(uuid) for side in trees)
                if ours == other and uuid not in again:
                    continue
                reader = Reader(self._history.repository)
                try:
                    reader.check(uuid, other)
                    was = was if _is_read(reader, uuid, was) else None
                    sides = [reader.values(uuid, side) for side in (was, ours, other)]
                except (RefusedError, *FAULTS) as error:
                    unread[uuid] = str(error)
                    continue
                one = meet(*sides)
                if uuid in again:
                    one = attrs.evolve(one, new=True)
                if one.new or one.is_offered:
                    vms[uuid] = one
            origins = self._origins(theirs, vms) if theirs is not None else {}
            return News(theirs.id if theirs is not None else None, _vms(head), vms, origins, unread,
                        self._words(base, theirs))

    def _folders(self, commit: pygit2.Commit | None) -> dict[str, Entry]:
        """Return the folders of VMs in *commit*, by name."""
        try:
            return Reader(self._history.repository).folders(commit)
        except RefusedError as error:
            message = f"what is shared cannot be read: {error}"
            raise StoreError(message) from error

    def _arrived(self, theirs: pygit2.Commit | None) -> None:
        """Note that our last offer is shared, if it is: we may have been killed, or cut off, before we heard."""
        offer = self._commit(OFFER)
        if offer is None or theirs is None:
            return
        if offer.id == theirs.id or self._history.repository.descendant_of(theirs.id, offer.id):
            self.shared([OFFER])

    def _words(self, base: pygit2.Commit | None, theirs: pygit2.Commit | None) -> tuple[str, ...]:
        """Return what the commits say that came, the oldest first."""
        if theirs is None or base is None or base.id == theirs.id:
            return ()
        walk = self._history.repository.walk(theirs.id)
        walk.hide(base.id)
        found = []
        for commit in walk:
            found.append(f"{words(commit.author.raw_name)}: {words(first_line(commit.raw_message))}")
            if len(found) == MOST_SUBJECTS:
                break
        return tuple(found[::-1])

    def take(self, news: News, settled: Settled, message: str) -> dict[str, str | None] | None:
        """
        Let `main` say what was *settled*; what goes aside is a branch.

        Returns:
            what has changed, by path; None if `main` is another by now than it was for *news*: then nothing is done.

        Raises:
            StoreError: it cannot be written.
        """
        history = self._history
        with history.refused():
            if _vms(history.head) != news.tree:
                return None
            if settled.aside:
                self._put_aside(news, settled.aside)
            tree: dict[str, str] = {}
            wanted: dict[str, str] = {}
            changed = []
            for uuid, one in news.vms.items():
                said = one.theirs if uuid in settled.aside else one.merged
                if said == one.ours:
                    continue
                changed.append(uuid)
                tree |= {f"{VMS}/{uuid}/{path}": value for path, value in one.ours.items()}
                wanted |= {f"{VMS}/{uuid}/{path}": value for path, value in said.items()}
                tree[origin_path(uuid)] = ""
                if said:
                    wanted[origin_path(uuid)] = news.origins.get(uuid, "what is shared")
            changes = difference(tree, wanted, changed) | dict.fromkeys(tree.keys() - wanted.keys())
            if changes:
                history.commit(changes, message)
            if news.commit is not None and self._at(SHARED) != news.commit:
                history.move(SHARED, news.commit)
            return changes

    def _at(self, name: str) -> pygit2.Oid | None:
        commit = self._commit(name)
        return commit.id if commit is not None else None

    def _put_aside(self, news: News, aside: Mapping[str, str]) -> None:
        """Make a branch of what we have changed in the VMs *aside*, on top of what is shared."""
        history, repository = self._history, self._history.repository
        assert news.commit is not None
        theirs = repository[news.commit].peel(pygit2.Commit)
        changes: dict[str, str | None] = {}
        for uuid in aside:
            one = news.vms[uuid]
            wanted = {f"{VMS}/{uuid}/{path}": value for path, value in one.ours.items()}
            have = {f"{VMS}/{uuid}/{path}": value for path, value in one.theirs.items()}
            changes |= difference(have, wanted, (uuid,))
        from_ = self._from(aside, self._asked(history.head, aside))
        lines = [f"{VMS}/{uuid}: {reason}" for uuid, reason in sorted(aside.items())]
        message = f"Rejected: {from_} came second\n\n" + "\n".join([*lines, "What others had shared before holds.", ""])
        commit = history.make(history.tree(theirs.tree, changes), [theirs.id], message, self._signature())
        asked = from_.split()[0].removeprefix("request/") if from_.startswith("request/") else "file"
        name = f"{asked.replace('/', '-')}-{self._node}-{str(commit)[:7]}"
        history.move(ASIDE + name, commit)
        self._requests.put_aside(name, commit)

    def _asked(self, head: pygit2.Commit | None, uuids: Iterable[str]) -> dict[str, str]:
        """Return where VMs are from as they are in *head*, or are no more; "" where nobody has asked for that."""
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
                    found[uuid] = origin.removesuffix(OVER_FILE)  # it is our file; others may have another
        return found

    def _from(self, uuids: Iterable[str], asked: Mapping[str, str]) -> str:
        """Return where these VMs are from as they are now: the one request, or our own configuration."""
        found = {asked.get(uuid, "") for uuid in uuids}
        one = found.pop() if len(found) == 1 else ""
        return one if one.startswith("request/") else f"the configuration of {self._node}"

    def _signature(self) -> pygit2.Signature:
        return pygit2.Signature(self._node, "jitsu@localhost")

    def offer(self) -> dict[str, str]:
        """
        Put what `main` has, and the shared branch has not, on top of that.

        Returns:
            what is to be pushed: our branches and theirs. `OFFER` is among them if there is something to share.

        Raises:
            StoreError: that cannot be written.
        """
        history = self._history
        with history.refused():
            asides = {name: REJECTED + name.removeprefix(ASIDE) for name in history.repository.references
                      if name.startswith(ASIDE)}
            base, head = self._commit(SHARED), history.head
            reader = Reader(self._history.repository)
            old, new = (self._folders(commit) for commit in (base, head))
            differ = [uuid for uuid in old.keys() | new.keys() if old.get(uuid) != new.get(uuid)]
            sides = {uuid: (reader.values(uuid, old.get(uuid)), reader.values(uuid, new.get(uuid)))
                     for uuid in differ if _is_read(Reader(self._history.repository), uuid, old.get(uuid))}
            sides = {uuid: (was, now) for uuid, (was, now) in sides.items() if was != now}
            if not sides:
                return asides
            asked = self._asked(head, sides)
            commit = history.make(
                history.tree(base.tree if base is not None else None, self._offered(sides, asked)),
                [base.id] if base is not None else [], self._message(sides, asked), self._signature(),
            )  # fmt: skip
            history.move(OFFER, commit)
            return {OFFER: THERE, **asides}

    def _offered(self, sides: Sides, asked: Mapping[str, str]) -> dict[str, str | None]:
        changes: dict[str, str | None] = {}
        for uuid, (was, now) in sides.items():
            have = {f"{VMS}/{uuid}/{path}": value for path, value in was.items()}
            wanted = {f"{VMS}/{uuid}/{path}": value for path, value in now.items()}
            changes |= difference(have, wanted, (uuid,))
            changes[origin_path(uuid)] = self._from((uuid,), asked) if now else None
        return changes

    def _message(self, sides: Sides, asked: Mapping[str, str]) -> str:
        names: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        for uuid, (was, now) in sides.items():
            how = "added" if not was else "removed" if not now else "changed"
            names[how].append((was or now).get("config/name/0", uuid))
        return f"From {self._from(sides, asked)}\n\n" + "".join(in_words(how, listed) for how, listed in names.items())

    def shared(self, pushed: Iterable[str]) -> str:
        """
        Hear that the branches *pushed* are with the others.

        Returns:
            the shared branch's commit, in hexadecimal; empty if it was not among them.
        """
        references = self._history.repository.references
        commit = ""
        with self._history.refused():
            for name in pushed:
                if name == OFFER:
                    self._history.move(SHARED, references[OFFER].peel(pygit2.Commit).id)
                    commit = str(self._at(SHARED))
                references.delete(name)
        return commit


def _vms(commit: pygit2.Commit | None) -> pygit2.Oid | None:
    """Return the tree of all VMs."""
    tree = subtree(commit.tree, VMS) if commit is not None else None
    return tree.id if tree is not None else None


def _removed_by(head: pygit2.Commit, uuid: str) -> str:
    """Return the request that has removed a VM; "" if it was none, or long ago."""
    for _ in range(MOST_LOOKED_AT):
        if not head.parent_ids or uuid in (subtree(head.parents[0].tree, VMS) or ()):
            break
        head = head.parents[0]
    found = re.match(r"Merge (request/[^:]*):.*\nasked for by ([^\n]*)\n$", head.message, re.DOTALL)
    return f"{found[1]} of {found[2]}" if found else ""


def _is_read(reader: Reader, uuid: str, entry: Entry | None) -> bool:
    """Return whether what is shared there is a VM; if not, it is left alone."""
    try:
        reader.check(uuid, entry)
        reader.values(uuid, entry)
    except (RefusedError, *FAULTS):
        return False
    return True
