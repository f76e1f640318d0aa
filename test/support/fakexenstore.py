"""A Xenstore without a daemon, for `synjitsu_tw.handover`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class FakeXenstore:
    """
    A Xenstore in this process.

    Attributes:
        nodes: values by path.
        permissions: of those nodes that were given some.
        transactions: how many there were.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.nodes: dict[str, str] = {}
        self.permissions: dict[str, Sequence[str]] = {}
        self.transactions = 0
        self._watches: list[tuple[str, Callable[[str], object]]] = []

    async def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""
        return self.nodes.get(path)

    async def transaction(self, change: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run *change*; undo it if it raises. Then call the watches of the nodes that it has touched."""
        before, tree = dict(self.nodes), _FakeTree(self)
        self.transactions += 1
        try:
            result = await change(tree)
        except Exception:
            self.nodes = before
            raise
        for path in tree.touched:
            self._tell(path)
        return result

    def write(self, path: str, value: str) -> None:
        """Write as a guest does."""
        _FakeTree(self).put(path, value)
        self._tell(path)

    def _tell(self, path: str) -> None:
        for watched, callback in self._watches:
            if path == watched or path.startswith(f"{watched}/"):
                callback(path)

    def watch(self, path: str, callback: Callable[[str], object]) -> None:
        """Call *callback* with *path*, now, and with what changes later."""
        self._watches.append((path, callback))
        callback(path)


class _FakeTree:
    """The tree of a `FakeXenstore`."""

    def __init__(self, store: FakeXenstore) -> None:
        self._store = store
        self.touched: dict[str, None] = {}

    async def read(self, path: str) -> str | None:
        return self._store.nodes.get(path)

    async def write(self, path: str, value: str) -> None:
        self.put(path, value)

    def put(self, path: str, value: str) -> None:
        above = path.rpartition("/")[0]
        if above and above not in self._store.nodes:
            self.put(above, "")
        self._store.nodes[path] = value
        self.touched[path] = None

    async def list(self, path: str) -> list[str]:
        start = f"{path}/"
        return sorted({one.removeprefix(start).split("/")[0] for one in self._store.nodes if one.startswith(start)})

    async def remove(self, path: str) -> None:
        self.touched[path] = None
        for one in [one for one in self._store.nodes if one == path or one.startswith(f"{path}/")]:
            del self._store.nodes[one]
            self._store.permissions.pop(one, None)

    async def get_permissions(self, path: str) -> Sequence[str] | None:
        return self._store.permissions.get(path, ["n0"]) if path in self._store.nodes else None

    async def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        self.touched[path] = None
        self._store.permissions[path] = permissions


