"""
How held SYNs reach their guest: as frames on the network, or through Xenstore.

`wire` is for any guest: Synjitsu sends the held packets to it. `XenstoreHandover` is for a guest with the original
Synjitsu's TCP stack, which reads its SYNs in Xenstore when it is up; `records` has their format. It works with any
implementation of `Xenstore`; `FakeXenstore` is one without a daemon.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jitsu_tw.errors import BackendError
from synjitsu_tw import records
from synjitsu_tw.table import Action, Handover, Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    from twisted.python.failure import Failure

    from synjitsu_tw.standins import Standins
    from synjitsu_tw.syns import Held
    from synjitsu_tw.table import Standin


def wire(standins: Standins, standin: Standin, held: Sequence[Held]) -> Iterator[Action]:
    """
    Yield the actions that hand over an address and its held packets to the guest.

    First the peers get the guest's MAC. Then the guest gets the MACs of the peers that wait, and each held packet.
    Nothing is sent to a guest that takes its SYNs from Xenstore.
    """
    if standin.handover is Handover.XENSTORE:
        return
    handed = [(one, standin.peers.get(Peer(one.port, one.frame.tags, one.frame.src))) for one in held]
    yield from standins.guest_takes_over(standin)
    yield from standins.deliver(standin, handed)


class Tree(Protocol):
    """Xenstore's tree within a transaction."""

    def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""

    def write(self, path: str, value: str) -> None:
        """Set the value of a node; create it and the nodes above it where they are missing."""

    def list(self, path: str) -> list[str]:
        """Return the names of a node's children; a missing node has none."""

    def remove(self, path: str) -> None:
        """Remove a node and all nodes below it. A missing node is no error."""

    def get_permissions(self, path: str) -> Sequence[str] | None:
        """Return a node's permissions, the owner's first, as Xenstore writes them; None where there is no such node."""

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Set a node's permissions, the owner's first: ``n0`` is dom0 alone, ``b7`` adds domain 7 (read and write)."""


class Xenstore(Protocol):
    """What `XenstoreHandover` needs of a Xenstore client; `jitsu_tw.xenstore` has one."""

    async def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""

    async def transaction(self, change: Callable[[Any], Any]) -> Any:
        """
        Run *change* with a `Tree` in one transaction, and return its result.

        *change* may run in a thread, and again after a conflict; all of its writes take effect, or none.
        """

    def watch(self, path: str, callback: Callable[[str], object]) -> Any:
        """Call *callback* with each path at or below *path* that changes, and with *path* whenever the watch is set."""


class XenstoreHandover:
    """
    Writes SYNs to Xenstore, each in one transaction; their guest reads and removes them.

    Only the guest of an address may read and write below the address's node.

    Args:
        xenstore: the client.
        managed: called with the address whose guest takes its SYNs itself from now on.
        reconnected: called when there is a new connection to Xenstore and all old nodes have been removed: every
            address must be announced again.
        random: returns 16 random bits.
    """

    log = Logger()

    def __init__(
        self,
        xenstore: Xenstore,
        managed: Callable[[bytes], object],
        reconnected: Callable[[], object],
        random: Callable[[], int] = lambda: secrets.randbits(16),
    ) -> None:
        """Store the arguments; `start` begins."""
        self._xenstore, self._managed, self._reconnected, self._random = xenstore, managed, reconnected, random

    def start(self) -> None:
        """Watch for guests, and remove leftover nodes, now and after each new connection."""
        self._xenstore.watch(records.ROOT, self._changed)

    def _changed(self, path: str) -> None:
        """Handle a change at or below `/ip`; the watch reports `/ip` itself when it is set."""
        if path == records.ROOT:
            self._do(self._clean())
            return
        ip = records.address(path)
        if ip is not None and path == records.node(ip):
            self._do(self._check_managed(ip))

    async def _clean(self) -> None:
        def clean(tree: Tree) -> None:
            for name in tree.list(records.ROOT):
                tree.remove(f"{records.ROOT}/{name}")
            # The watch reports a write even if it changes nothing, and a report of the root leads here again.
            if tree.read(records.ROOT) is None:
                tree.write(records.ROOT, "")
            if list(tree.get_permissions(records.ROOT) or ()) != ["n0"]:
                tree.set_permissions(records.ROOT, ["n0"])

        await self._xenstore.transaction(clean)
        self._reconnected()

    async def _check_managed(self, ip: bytes) -> None:
        if await self._xenstore.read(records.node(ip)) == records.MANAGED:
            self._managed(ip)

    def announce(self, standin: Standin, held: Iterable[Held]) -> None:
        """Replace an address's node by one that only its guest may access, with the held SYNs."""
        written: dict[str, str] = {}
        for one in held:
            written |= records.record(one.packet, self._random())
        node, domid = records.node(standin.ip), standin.domid

        def begin(tree: Tree) -> None:
            tree.remove(node)
            tree.write(node, "")
            # dom0 owns it, so that it outlives the guest; no other guest may read it.
            tree.set_permissions(node, ["n0"] if domid is None else ["n0", f"b{domid}"])
            for path, value in written.items():
                tree.write(path, value)

        self._do(self._xenstore.transaction(begin))

    def record(self, held: Held) -> None:
        """Write a SYN, unless its guest takes its SYNs from the network already."""
        node, written = records.node(held.packet.dst), records.record(held.packet, self._random())

        def write(tree: Tree) -> None:
            if tree.read(node) not in {None, records.MANAGED}:
                for path, value in written.items():
                    tree.write(path, value)

        self._do(self._xenstore.transaction(write))

    def erase(self, held: Held) -> None:
        """Remove a SYN, with the nodes above it that are empty then."""
        node, path = records.node(held.packet.dst), records.connection(held.packet)

        def remove(tree: Tree) -> None:
            tree.remove(path)
            above = path.rpartition("/")[0]
            while above != node and not tree.list(above):
                tree.remove(above)
                above = above.rpartition("/")[0]

        self._do(self._xenstore.transaction(remove))

    def forget(self, ip: bytes) -> None:
        """Remove an address's node."""
        self._do(self._xenstore.transaction(lambda tree: tree.remove(records.node(ip))))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        failure.trap(BackendError)  # also without a connection: `reconnected` has everything written again
        self.log.warn("Xenstore: {reason}", reason=failure.getErrorMessage())


class FakeXenstore:
    """
    A Xenstore in this process.

    Attributes:
        nodes: values by path.
        permissions: of the nodes whose permissions were set, by path.
        transactions: how many there have been.
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

    async def transaction(self, change: Callable[[Any], Any]) -> Any:
        """Run *change*; undo it if it raises. Then call the watches of the nodes that it has touched."""
        before, tree = dict(self.nodes), _FakeTree(self)
        self.transactions += 1
        try:
            result = change(tree)
        except Exception:
            self.nodes = before
            raise
        for path in tree.touched:
            self._report(path)
        return result

    def write(self, path: str, value: str) -> None:
        """Write a node as a guest does."""
        _FakeTree(self).write(path, value)
        self._report(path)

    def _report(self, path: str) -> None:
        for watched, callback in self._watches:
            if path == watched or path.startswith(f"{watched}/"):
                callback(path)

    def watch(self, path: str, callback: Callable[[str], object]) -> None:
        """Call *callback* with *path* now, and with each path at or below it that changes later."""
        self._watches.append((path, callback))
        callback(path)


class _FakeTree:
    """The tree of a `FakeXenstore`."""

    def __init__(self, store: FakeXenstore) -> None:
        self._store = store
        self.touched: dict[str, None] = {}

    def read(self, path: str) -> str | None:
        return self._store.nodes.get(path)

    def write(self, path: str, value: str) -> None:
        above = path.rpartition("/")[0]
        if above and above not in self._store.nodes:
            self.write(above, "")
        self._store.nodes[path] = value
        self.touched[path] = None

    def list(self, path: str) -> list[str]:
        start = f"{path}/"
        return sorted({one.removeprefix(start).split("/")[0] for one in self._store.nodes if one.startswith(start)})

    def remove(self, path: str) -> None:
        self.touched[path] = None
        for one in [one for one in self._store.nodes if one == path or one.startswith(f"{path}/")]:
            del self._store.nodes[one]
            self._store.permissions.pop(one, None)

    def get_permissions(self, path: str) -> Sequence[str] | None:
        return self._store.permissions.get(path, ["n0"]) if path in self._store.nodes else None

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        self.touched[path] = None
        self._store.permissions[path] = permissions


