"""
Three-way merges of a VM's files, and of all VMs of two histories. Pure: it knows nothing of git.

A file is one value, so there is nothing to merge inside one: a path that two sides have changed differently is a
conflict. Of two histories, the one that was pushed first has precedence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    #: The files of VMs, by uuid and by their paths; and what returns why these are not valid beside all others.
    Files = Mapping[str, Mapping[str, str]]
    Refused = Callable[[Files], str]

#: The most characters of a conflicting value that are shown.
MOST_SHOWN: Final = 80


def three_way(
    base: Mapping[str, str], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """
    Apply the changes from *base* to *theirs* to *ours*.

    Returns:
        the merged files, with the values of *ours* where there is a conflict; and the conflicts, each as a line.
    """
    merged = dict(ours)
    conflicts: list[str] = []
    for path in sorted(base.keys() | ours.keys() | theirs.keys()):
        was, mine, other = base.get(path), ours.get(path), theirs.get(path)
        if other in {was, mine}:
            continue
        if mine != was:
            conflicts.append(f"{path}: was {_shown(was)}, is {_shown(mine)} by now, should become {_shown(other)}")
        elif other is None:
            del merged[path]
        else:
            merged[path] = other
    return merged, conflicts


def _shown(value: str | None) -> str:
    if value is None:
        return "not there"
    return repr(value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}...")


@attrs.frozen
class Meeting:
    """
    One VM in two histories, of which *theirs* has precedence.

    Attributes:
        ours: its files in this node's history; {} if it is not there.
        theirs: its files in the shared history.
        merged: its files with the changes of both.
        new: whether the shared history has changed it.
        conflicts: why the changes cannot be merged, each as a line; then *merged* is *theirs*.
    """

    ours: Mapping[str, str]
    theirs: Mapping[str, str]
    merged: Mapping[str, str]
    new: bool
    conflicts: tuple[str, ...] = ()

    @property
    def is_offered(self) -> bool:
        """Whether this node has changes that the shared history does not have."""
        return self.merged != self.theirs

    def changes(self, files: Mapping[str, str]) -> bool:
        """Return whether *files* change the running configuration: new ones may, though the state has them already."""
        return self.new or files != self.ours


def meet(base: Mapping[str, str], ours: Mapping[str, str], theirs: Mapping[str, str]) -> Meeting:
    """
    Merge a VM that was *base*, and is *ours* and *theirs* by now.

    A VM that both have added, or that one has removed and the other changed, is a conflict as a whole.
    """
    new = theirs != base
    if theirs in (ours, base):
        return Meeting(ours, theirs, ours, new)
    if ours == base:
        return Meeting(ours, theirs, theirs, new)
    if not (base and ours and theirs):
        return Meeting(ours, theirs, theirs, new, (_as_a_whole(ours, theirs),))
    merged, clashes = three_way(base, theirs, ours)
    return Meeting(ours, theirs, theirs if clashes else merged, new, tuple(clashes))


def _as_a_whole(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    if not theirs:
        return "it was removed meanwhile"
    return "another node has added it first" if ours else "it was changed meanwhile, and should be removed"


@attrs.frozen
class Settled:
    """
    The outcome of a merge of all VMs.

    Attributes:
        run: the files of the VMs that change on this node, by uuid; {} for one that is removed.
        left: why VMs of the state cannot be run on this node, by uuid.
        aside: why this node's changes are rejected, by uuid.
    """

    run: Files
    left: Mapping[str, str]
    aside: Mapping[str, str]


def settle(meetings: Mapping[str, Meeting], refused: Refused, unknown: Mapping[str, str]) -> Settled:
    """
    Merge the VMs of *meetings* so that the result is a valid configuration.

    The shared history has precedence; of this node's changes, as many are kept as are valid beside it.

    Args:
        meetings: all VMs that differ, by uuid.
        refused: returns why VMs with these files are not valid beside all others; "" if they are.
        unknown: why some VMs are not valid in any case, by uuid.
    """
    aside = {uuid: "; ".join(one.conflicts) for uuid, one in meetings.items() if one.conflicts}
    run = {uuid: one.merged for uuid, one in meetings.items() if one.new and uuid not in unknown}
    if not unknown and not (run and refused(run)):
        return Settled(run, {}, aside)
    run = {uuid: one.theirs for uuid, one in meetings.items() if one.is_offered and not one.new}
    if run and refused(run):
        run = {}  # the configuration needs a change of this node's, so that it cannot be rejected
    theirs = {uuid: one.theirs for uuid, one in meetings.items() if one.new and uuid not in unknown}
    left = _take(theirs, run, refused) | {uuid: why for uuid, why in unknown.items() if meetings[uuid].new}
    ours = {uuid: one.merged for uuid, one in meetings.items() if one.is_offered and uuid not in left}
    aside |= _take(ours, run, refused)
    aside |= {uuid: left[uuid] for uuid, one in meetings.items() if one.is_offered and uuid in left}
    return Settled({uuid: files for uuid, files in run.items() if meetings[uuid].changes(files)}, left, aside)


def _take(wanted: Files, run: dict[str, Mapping[str, str]], refused: Refused) -> dict[str, str]:
    """Add to *run* as many VMs of *wanted* as are valid; return why the others are not, by uuid."""
    left = _halve(wanted, run, refused)
    while left:  # a VM may need another that was added after it
        again = _halve(_only(wanted, left), run, refused)
        if len(again) == len(left):
            break
        left = again
    return left


def _halve(wanted: Files, run: dict[str, Mapping[str, str]], refused: Refused) -> dict[str, str]:
    why = refused({**run, **wanted}) if wanted else ""
    if not why:
        run.update(wanted)
        return {}
    if len(wanted) == 1:
        return dict.fromkeys(wanted, why)
    uuids = list(wanted)
    half = len(uuids) // 2
    return _halve(_only(wanted, uuids[:half]), run, refused) | _halve(_only(wanted, uuids[half:]), run, refused)


def _only(wanted: Files, uuids: Iterable[str]) -> dict[str, Mapping[str, str]]:
    return {uuid: wanted[uuid] for uuid in uuids}
