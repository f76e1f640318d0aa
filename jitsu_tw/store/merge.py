"""
Three-way merges of a VM's files, and of all VMs where two histories meet. Pure: it knows nothing of git.

A file is one value, so there is nothing to merge inside one: a path that two sides have changed differently is a
conflict. Where histories meet, one of them was first, and holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: In characters: as much of a value that conflicts is shown.
MOST_SHOWN: Final = 80


def three_way(
    base: Mapping[str, str], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """
    Return what *ours* becomes with the changes that made *theirs* of *base*, and the conflicts, each as a line.

    Where there is a conflict, the value is that of *ours*.
    """
    merged = dict(ours)
    conflicts: list[str] = []
    for path in sorted(base.keys() | ours.keys() | theirs.keys()):
        was, mine, other = base.get(path), ours.get(path), theirs.get(path)
        if other in {was, mine}:
            continue
        if mine != was:
            conflicts.append(f"{path}: was {_said(was)}, is {_said(mine)} by now, should become {_said(other)}")
        elif other is None:
            del merged[path]
        else:
            merged[path] = other
    return merged, conflicts


def _said(value: str | None) -> str:
    if value is None:
        return "not there"
    return repr(value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}...")


@attrs.frozen
class Meeting:
    """
    One VM where two histories meet, theirs being first.

    Attributes:
        ours: its files with us; {} if it is not there.
        theirs: its files with them.
        merged: its files with both changes.
        new: whether they have changed it.
        conflicts: why there cannot be both, each as a line; then *merged* is *theirs*.
    """

    ours: Mapping[str, str]
    theirs: Mapping[str, str]
    merged: Mapping[str, str]
    new: bool
    conflicts: tuple[str, ...] = ()

    @property
    def is_offered(self) -> bool:
        """Whether we have something that they have not."""
        return self.merged != self.theirs


def meet(base: Mapping[str, str], ours: Mapping[str, str], theirs: Mapping[str, str]) -> Meeting:
    """
    Return what becomes of a VM that was *base*, and is *ours* and *theirs* by now.

    A VM that both have made, or that one has removed and the other changed, is a conflict as a whole.
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
        return "it is gone by now"
    return "another was there first" if ours else "it is another by now, and should go"


@attrs.frozen
class Settled:
    """
    What becomes of all VMs.

    Attributes:
        run: the files of those that change here; {} for one that goes.
        left: why those that the state has cannot be run here, by uuid.
        aside: why what we have changed goes aside, by uuid.
    """

    run: Mapping[str, Mapping[str, str]]
    left: Mapping[str, str]
    aside: Mapping[str, str]


def settle(
    meetings: Mapping[str, Meeting],
    refused: Callable[[Mapping[str, Mapping[str, str]]], str],
    unknown: Mapping[str, str],
) -> Settled:
    """
    Return what becomes of the VMs of *meetings*, by uuid, so that it is a configuration that can be had.

    What they have holds; what we have is kept as far as it can be beside that.

    Args:
        meetings: all VMs that differ.
        refused: says why VMs of these files cannot be had beside all others; "" if they can.
        unknown: why some VMs cannot be had in any case, by uuid.
    """
    aside = {uuid: "; ".join(one.conflicts) for uuid, one in meetings.items() if one.conflicts}
    run = {uuid: one.merged for uuid, one in meetings.items() if one.new and uuid not in unknown}
    if not unknown and not (run and refused(run)):
        return Settled(run, {}, aside)
    run = {uuid: one.theirs for uuid, one in meetings.items() if one.is_offered and not one.new}
    if run and refused(run):
        run = {}  # what we have changed was needed here: it cannot be put aside
    theirs = {uuid: one.theirs for uuid, one in meetings.items() if one.new and uuid not in unknown}
    left = _take(theirs, run, refused) | {uuid: why for uuid, why in unknown.items() if meetings[uuid].new}
    ours = {uuid: one.merged for uuid, one in meetings.items() if one.is_offered and uuid not in left}
    aside |= _take(ours, run, refused)
    aside |= {uuid: left[uuid] for uuid, one in meetings.items() if one.is_offered and uuid in left}
    return Settled({uuid: files for uuid, files in run.items() if _changes(meetings[uuid], files)}, left, aside)


def _changes(meeting: Meeting, files: Mapping[str, str]) -> bool:
    """Say whether these files change what runs; they may if they are new, though the state has them already."""
    return meeting.new or files != meeting.ours


def _take(
    wanted: Mapping[str, Mapping[str, str]],
    run: dict[str, Mapping[str, str]],
    refused: Callable[[Mapping[str, Mapping[str, str]]], str],
) -> dict[str, str]:
    """Put into *run* as many of *wanted* as can be had, and return why not the others."""
    left = _halve(wanted, run, refused)
    while left:  # one may need another that came after it
        again = _halve(_only(wanted, left), run, refused)
        if len(again) == len(left):
            break
        left = again
    return left


def _halve(
    wanted: Mapping[str, Mapping[str, str]],
    run: dict[str, Mapping[str, str]],
    refused: Callable[[Mapping[str, Mapping[str, str]]], str],
) -> dict[str, str]:
    why = refused({**run, **wanted}) if wanted else ""
    if not why:
        run.update(wanted)
        return {}
    if len(wanted) == 1:
        return dict.fromkeys(wanted, why)
    uuids = list(wanted)
    half = len(uuids) // 2
    return _halve(_only(wanted, uuids[:half]), run, refused) | _halve(_only(wanted, uuids[half:]), run, refused)


def _only(wanted: Mapping[str, Mapping[str, str]], uuids: Iterable[str]) -> dict[str, Mapping[str, str]]:
    return {uuid: wanted[uuid] for uuid in uuids}
