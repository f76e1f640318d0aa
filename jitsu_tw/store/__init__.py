"""Where the state is kept: in memory, or in a git repository. One room each, one door: `ijitsu.IStore`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jitsu_tw.ijitsu import IStore
    from jitsu_tw.settings import Retention


def store_at(path: Path | None, past: Retention) -> IStore:
    """Return the store at *path*, which keeps *past*; in memory without a path, and then libgit2 is not loaded."""
    if path is None:
        from jitsu_tw.store.memory import MemoryStore  # noqa: PLC0415 -- the hooks of git load this package, and not that

        return MemoryStore()
    from jitsu_tw.store.git import GitStore  # noqa: PLC0415

    return GitStore(path, past)
