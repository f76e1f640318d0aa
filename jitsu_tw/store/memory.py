"""Keep the state in memory, until the process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from jitsu_tw.ijitsu import IStore

if TYPE_CHECKING:
    from collections.abc import Mapping


@implementer(IStore)
class MemoryStore:
    """
    A tree in a dictionary.

    Attributes:
        tree: paths and values.
    """

    def __init__(self, *, lasting: bool = False) -> None:
        """Begin with an empty tree; *lasting* if the object outlives the Jitsu that writes to it, as in tests."""
        self.lasting = lasting
        self.tree: dict[str, str] = {}

    def open(self) -> Mapping[str, str]:
        """Return the tree."""
        return dict(self.tree)

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:  # noqa: ARG002
        """Change the tree."""
        for path, value in changes.items():
            if value is None:
                for removed in [known for known in self.tree if known == path or known.startswith(f"{path}/")]:
                    del self.tree[removed]
            else:
                self.tree[path] = value
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)
