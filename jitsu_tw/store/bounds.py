"""
Bounds for pushed objects: an object is read only if its header shows that it is small.

A tree of a thousand octets can have 10**7 paths below it, and a value of 1.5 GB is sent as 2 MB. So sizes are taken
from the headers of objects, paths are counted while they are walked, and objects that are only compared are compared by
their ids. The hook `push` and the running Jitsu both read pushed objects with this module only.
"""

from __future__ import annotations

import heapq
import sys
from math import inf
from typing import TYPE_CHECKING, Final
from uuid import UUID

import attrs
import pygit2
from pygit2.enums import FileMode, ObjectType

from jitsu_tw.errors import StoreError
from jitsu_tw.store.history import AUTHOR
from jitsu_tw.store.layout import STATISTICS, VMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    #: An entry of a tree: the object and its mode.
    Entry = tuple[pygit2.Oid, int]

#: The longest value, and the largest commit with its message, authors and parents, in octets.
LONGEST_VALUE: Final = 1 << 16
LARGEST_COMMIT: Final = 1 << 14

#: The largest tree of a VM (some 40 octets for an entry with a short name), of all VMs' folders, and above them, where
#: each commit is read; in octets.
LARGEST_TREE: Final = 1 << 20
LARGEST_FOLDER: Final = 1 << 24
LARGEST_TOP: Final = 1 << 12

#: The size of an entry of the tree of all VMs, in octets: mode, uuid, id.
_VM_ENTRY: Final = 64

#: The longest name of a file or folder, in octets; a DNS name has at most 253.
LONGEST_NAME: Final = 255

#: A VM's folder has at most this many levels below it: ``dns/NAME/ttl`` and ``config/KEY/0``.
DEEPEST: Final = 3

#: The most VMs that one request changes, and the most files and octets of values of one of them, and of all.
MOST_VMS: Final = 10_000
MOST_FILES: Final = 5_000
MOST_OCTETS: Final = 1 << 20
MOST_FILES_TOGETHER: Final = 100_000
MOST_OCTETS_TOGETHER: Final = 1 << 24

#: The most commits of one request, and the most of `main` since the commit that it was made on.
MOST_COMMITS: Final = 1_000
MOST_BEHIND: Final = 50_000

#: How many commits are read after the request's last, to find those of the same second, whose order is unknown.
MOST_AT_ONCE: Final = 1_000

_PLAIN: Final = frozenset({FileMode.BLOB, FileMode.BLOB_EXECUTABLE})

#: Flags: the commit is an ancestor of the request's, of `main`.
_THEIRS: Final = 1
_OURS: Final = 2


class RefusedError(Exception):
    """A request that cannot be merged; the message has the reason."""


class TooLargeError(RefusedError):
    """A request beyond the bounds of this module; its objects are not kept."""


@attrs.frozen
class Sides:
    """
    The folders of VMs in three commits, by uuid.

    Attributes:
        base: the commit that the other two come from.
        ours: of `main`.
        theirs: of a request, or of the branch that is shared.
    """

    base: Mapping[str, Entry]
    ours: Mapping[str, Entry]
    theirs: Mapping[str, Entry]

    def values(self, reader: Reader, uuid: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Return the values of a VM on each side; raises as `Reader.values` does."""
        was, ours, theirs = (reader.values(uuid, side.get(uuid)) for side in (self.base, self.ours, self.theirs))
        return was, ours, theirs


class Reader:
    """
    Reads the pushed objects of one request, within the bounds.

    Attributes:
        seen: how many objects were examined.
    """

    def __init__(self, repository: pygit2.Repository, ended: Callable[[], bool] = lambda: False) -> None:
        """Read *repository*; a long walk stops when *ended* returns True."""
        self._repository, self._odb, self._ended = repository, repository.odb, ended
        self._files = self._octets = self.seen = 0

    def _go_on(self) -> None:
        if self._ended():
            raise StoreError("Jitsu ends")

    def _sized(self, oid: pygit2.Oid, kind: ObjectType, largest: int, what: str) -> pygit2.Object:
        """
        Return the object *oid*.

        Args:
            oid: of the object.
            kind: the kind that it must have.
            largest: the largest size that it may have, in octets.
            what: its name in the error.

        Raises:
            RefusedError: the object is of another kind.
            TooLargeError: the object is larger.
            KeyError, GitError: the object is missing or damaged.
        """
        self.seen += 1
        found, size = self._odb.read_header(oid)
        if found != kind:
            raise RefusedError(f"{what} is no {kind.name.lower()}")
        if size > largest:
            raise TooLargeError(f"{what} has {size} octets; at most {largest} are read")
        return self._repository[oid]

    def commit(self, oid: pygit2.Oid, *, ours: bool = False) -> pygit2.Commit:
        """Return the commit *oid*, of any size if it is one of *ours*, Jitsu's; raises as `_sized` does."""
        largest = sys.maxsize if ours else LARGEST_COMMIT
        commit = self._sized(oid, ObjectType.COMMIT, largest, f"the commit {str(oid)[:10]}")
        assert isinstance(commit, pygit2.Commit)
        return commit

    def _entries(self, oid: pygit2.Oid, path: str, largest: int = LARGEST_TREE) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of the tree *oid* at *path* by their names; raises as `_sized` does."""
        self._go_on()
        tree = self._sized(oid, ObjectType.TREE, largest, path or "the root folder")
        assert isinstance(tree, pygit2.Tree)
        for entry in tree:
            raw = entry.raw_name or b""
            name = raw[:LONGEST_NAME].decode(errors="replace")
            if len(raw) > LONGEST_NAME:
                raise TooLargeError(f"{path}/{name}... is a name of {len(raw)} octets; the longest has {LONGEST_NAME}")
            yield name, (entry.id, entry.filemode)

    def top(self, commit: pygit2.Commit) -> tuple[dict[str, pygit2.Oid], pygit2.Oid | None]:
        """
        Return the objects of *commit* besides the VMs, by path, and the tree of all VMs, if there is one.

        ``jitsu/origin`` is not among them: a revert of Jitsu's own merge changes it, too.
        """
        others: dict[str, pygit2.Oid] = {}
        folder = None
        for name, (oid, mode) in self._entries(commit.tree_id, "", LARGEST_TOP):
            if name != "jitsu" or mode != FileMode.TREE:
                others[name] = oid
                continue
            for inner, (below, kind) in self._entries(oid, name, LARGEST_TOP):
                if inner == "vm" and kind == FileMode.TREE:
                    folder = below
                elif inner != "origin":
                    others[f"{name}/{inner}"] = below
        return others, folder

    def folders(self, commit: pygit2.Commit | None, largest: int = LARGEST_FOLDER) -> dict[str, Entry]:
        """Return the folders of VMs in *commit*, by name, if their tree has *largest* octets at most."""
        folder = self.top(commit)[1] if commit is not None else None
        return {} if folder is None else dict(self._entries(folder, VMS, largest))

    def width(self, head: pygit2.Oid | None) -> int:
        """Return how many octets the tree of all VMs has in *head*, a commit of `main`."""
        folder = self.top(self.commit(head, ours=True))[1] if head is not None else None
        return self._odb.read_header(folder)[1] if folder is not None else 0

    def check(self, uuid: str, entry: Entry | None) -> None:
        """
        Check that a folder's name is a uuid, and that the sizes of its files are within the bounds. No value is read.

        Raises:
            RefusedError: it is not; with the reason.
        """
        try:
            canonical = str(UUID(uuid))
        except ValueError:
            canonical = ""
        if canonical != uuid:
            raise RefusedError(f"{VMS}/{uuid}: a VM's folder is named by its uuid, in lower case; uuidgen makes one")
        files = octets = 0
        for path, size in self._sizes(f"{VMS}/{uuid}", entry):
            files, octets = files + 1, octets + size
            self._files, self._octets = self._files + 1, self._octets + size
            if size > LONGEST_VALUE:
                message = f"{path} is no value: it is too long, with {size} octets; the longest has {LONGEST_VALUE}"
                raise TooLargeError(message)
            if files > MOST_FILES or self._files > MOST_FILES_TOGETHER:
                message = (f"{VMS}/{uuid} has too many files: a VM has at most {MOST_FILES}, and all VMs that one "
                           f"request changes {MOST_FILES_TOGETHER}")
                raise TooLargeError(message)
            if octets > MOST_OCTETS or self._octets > MOST_OCTETS_TOGETHER:
                message = (f"{VMS}/{uuid} is too large: a VM's values have at most {MOST_OCTETS} octets, and those of "
                           f"all VMs that one request changes {MOST_OCTETS_TOGETHER}")
                raise TooLargeError(message)

    def _sizes(self, path: str, entry: Entry | None, depth: int = 0) -> Iterator[tuple[str, int]]:
        """Yield the path and the size of each file, and of each folder, in *entry*."""
        if entry is None:
            return
        oid, mode = entry
        if mode == FileMode.TREE and depth <= DEEPEST:
            if depth:
                yield path, 0
            for name, inner in self._entries(oid, path):
                yield from self._sizes(f"{path}/{name}", inner, depth + 1)
        elif mode == FileMode.TREE:
            raise TooLargeError(f"{path} is too deep: a VM has no folder that far down")
        elif not depth or mode not in _PLAIN:
            raise RefusedError(f"{path} is no plain file")
        else:
            self.seen += 1
            yield path, self._odb.read_header(oid)[1]

    def values(self, uuid: str, entry: Entry | None) -> dict[str, str]:
        """
        Return the values of the folder *entry* of the VM *uuid*, which was checked, by the path below it.

        Raises:
            RefusedError: a file is no text in UTF-8.
        """
        return dict(self._values(f"{VMS}/{uuid}/", "", entry))

    def _values(self, folder: str, base: str, entry: Entry | None) -> Iterator[tuple[str, str]]:
        for name, (oid, mode) in self._entries(entry[0], folder + base) if entry is not None else ():
            path = f"{base}{name}"
            if mode == FileMode.TREE:
                yield from self._values(folder, f"{path}/", (oid, mode))
                continue
            yield path, self.value(oid, folder + path)

    def value(self, oid: pygit2.Oid, path: str) -> str:
        """Return the value *oid*, which is at *path*; raises as `values` and `_sized` do."""
        try:
            value = self._sized(oid, ObjectType.BLOB, LONGEST_VALUE, path).read_raw().decode()
        except UnicodeDecodeError:
            value = "\0"
        if "\0" in value:
            raise RefusedError(f"{path} is no value: it is binary, or no UTF-8")
        return value.removesuffix("\n")

    def arrivals(self, commit: pygit2.Oid, known: Sequence[pygit2.Oid]) -> list[pygit2.Oid]:
        """
        Return the ancestors of *commit* that are no ancestors of *known*; libgit2's walk would read all of these.

        The walk goes from the newest to the oldest, as git's own does.

        Raises:
            TooLargeError: there are too many.
            StoreError: Jitsu ends.
        """
        flags: dict[pygit2.Oid, int] = {}
        times: dict[pygit2.Oid, int] = {}
        heap: list[tuple[int, pygit2.Oid]] = []
        queued: set[pygit2.Oid] = set()
        new: list[pygit2.Oid] = []
        left = 0  # how many commits in the heap are the request's only
        more = MOST_AT_ONCE
        oldest = inf

        def mark(oid: pygit2.Oid, flag: int) -> None:
            nonlocal left
            before = flags.get(oid, 0)
            if before | flag == before:
                return
            flags[oid] = before | flag
            if not before:
                times[oid] = self.commit(oid, ours=flag != _THEIRS).commit_time
                left += flag == _THEIRS
            elif before == _THEIRS and oid in queued:
                left -= 1
            if oid not in queued:
                queued.add(oid)
                heapq.heappush(heap, (-times[oid], oid))

        for one in known:
            mark(one, _OURS)
        mark(commit, _THEIRS)
        while left or (heap and more and -heap[0][0] >= oldest):
            _, oid = heapq.heappop(heap)
            queued.remove(oid)
            more -= not left
            if flags[oid] == _THEIRS:
                left -= 1
                oldest = min(oldest, times[oid])
                new.append(oid)
            if len(new) > MOST_COMMITS or len(flags) > MOST_BEHIND:
                what = f"has more than {MOST_COMMITS} commits" if len(new) > MOST_COMMITS else "is of too old a clone"
                raise TooLargeError(f"it {what}: clone the state anew, and make the change there")
            self._go_on()
            for parent in self.commit(oid, ours=flags[oid] != _THEIRS).parent_ids:
                mark(parent, flags[oid])
        return [oid for oid in new if flags[oid] == _THEIRS]

    def measure(
        self, commit: pygit2.Oid, head: pygit2.Oid | None, shared: Sequence[pygit2.Oid] = ()
    ) -> tuple[Sides, list[str]]:
        """
        Return the VMs that the request *commit* changes. No value is read.

        Args:
            commit: the request's last commit.
            head: the last commit of `main`.
            shared: the last commit of the shared branch, if there is one: a request may come from a clone of it.

        Returns:
            the folders of VMs in the commit that the request was made on, in `main` and in the request; and the uuids
            of those that it changes.

        Raises:
            RefusedError: it cannot be merged.
            TooLargeError: it is beyond the bounds.
            StoreError: Jitsu ends.
        """
        known = [head, *shared] if head is not None else []
        new = self.arrivals(commit, known)
        base = self._repository.merge_base_many([commit, *known]) if known else None
        if head is None or base is None:
            raise RefusedError("it has no commit in common with main: clone the state anew, and make the change there")
        for one in new:
            self._only_vms(self.commit(one))
        was, ours = (self.folders(self.commit(one, ours=True)) for one in (base, head))
        most = max(len(was), len(ours)) + MOST_VMS
        theirs = self.folders(self.commit(commit), min(most * _VM_ENTRY, LARGEST_FOLDER))
        changed = sorted(uuid for uuid in was.keys() | theirs.keys()
                         if theirs.get(uuid) not in (was.get(uuid), ours.get(uuid)))
        if len(changed) > MOST_VMS:
            raise TooLargeError(f"it changes {len(changed)} VMs; one request changes at most {MOST_VMS}")
        for uuid in changed:
            self.check(uuid, theirs.get(uuid))
        return Sides(was, ours, theirs), changed

    def _only_vms(self, commit: pygit2.Commit) -> None:
        """Raise RefusedError for a commit that changes anything but VMs; cloned commits of statistics are allowed."""
        others, _ = self.top(commit)
        if commit.raw_message == STATISTICS.encode() and commit.committer.raw_email == AUTHOR[1].encode():
            return
        if len(commit.parent_ids) != 1:
            return
        before, _ = self.top(self.commit(commit.parent_ids[0], ours=True))
        for path in sorted(before.keys() | others.keys()):
            if before.get(path) != others.get(path):
                raise RefusedError(f"{path} is not for requests; only what is below {VMS}/ can be changed by them")
