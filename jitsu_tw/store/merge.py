"""
Three-way merges of a VM's files. Pure: it knows nothing of git.

A file is one value, so there is nothing to merge inside one: a path that two sides have changed differently is a
conflict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    return "not there" if value is None else repr(value)
