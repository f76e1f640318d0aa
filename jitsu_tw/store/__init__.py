"""Stores of the state, implementations of `ijitsu.IStore`: in memory, or in a git repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.settings import Retention


def store_at(path: Path | None, past: Retention, changed: Callable[[], object]) -> IStore:
    """
    Return the store at *path*; without a path it is in memory, and libgit2 is not loaded.

    Args:
        path: of the repository.
        past: how much of the statistics' past is kept.
        changed: called when a configuration was written to the repository that did not come from other nodes.
    """
    if path is None:
        from jitsu_tw.store.memory import MemoryStore  # noqa: PLC0415 -- the hooks of git load this package, and not that

        return MemoryStore()
    from jitsu_tw.store.git import GitStore  # noqa: PLC0415

    return GitStore(path, past, changed)
