"""
How held SYNs reach their guest: by the wire, or through Xenstore.

`wire` is for any guest: what was held is sent to it. `XenstoreHandover` is for a guest with the first Synjitsu's TCP
stack, which finds its SYNs in Xenstore when it is up; `records` has their form. It works with anything that has the
shape of `Xenstore`; `FakeXenstore` is one without a daemon.
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
    Yield what hands a guest its address and its packets.

    First its peers are told its MAC. Then it is told theirs, as far as they wait, and each packet is sent.
    Where the guest takes its SYNs from Xenstore, only other packets are sent: there are none.
    """
    if standin.handover is Handover.XENSTORE:
        return
    handed = [(one, standin.peers.get(Peer(one.port, one.frame.tags, one.frame.src))) for one in held]
    yield from standins.guest_takes_over(standin)
    yield from standins.deliver(standin, handed)


class Tree(Protocol):
    """What can be done with Xenstore's tree within a transaction."""

    def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""

    def write(self, path: str, value: str) -> None:
        """Give a node its value, making it and those above it if need be."""

    def list(self, path: str) -> list[str]:
        """Return the names of a node's children; a node that is missing has none."""

    def remove(self, path: str) -> None:
        """Remove a node and all below it. A missing one is no error."""

    def get_permissions(self, path: str) -> Sequence[str] | None:
        """Return who may do what with a node; None where there is no such node."""

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Say who may do what with a node."""


class Xenstore(Protocol):
    """What `XenstoreHandover` needs of a Xenstore client; `jitsu_tw.xenstore` has one."""

    async def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""

    async def transaction(self, change: Callable[[Any], Any]) -> Any:
        """Call *change* with a `Tree`, perhaps in a thread, perhaps again after a conflict; all of it or nothing."""

    def watch(self, path: str, callback: Callable[[str], object]) -> Any:
        """Call *callback* with each path at or below *path* that changes, and once it is watched, also again."""


class XenstoreHandover:
    """
    SYNs in Xenstore, each written in one transaction, and read and removed by their guest.

    Only the guest of an address may read and write below the address's node.

    Args:
        xenstore: the client.
        managed: called with the address whose guest takes its SYNs itself from now on.
        again: called when a connection to Xenstore has come about, and all has been cleaned: what there is must be
            announced and recorded again.
        random: returns 16 bits.
    """

    log = Logger()

    def __init__(
        self,
        xenstore: Xenstore,
        managed: Callable[[bytes], object],
        again: Callable[[], object],
        random: Callable[[], int] = lambda: secrets.randbits(16),
    ) -> None:
        """Do nothing yet."""
        self._xenstore, self._managed, self._again, self._random = xenstore, managed, again, random

    def start(self) -> None:
        """Watch for guests, and remove what was left over, now and after each new connection."""
        self._xenstore.watch(records.ROOT, self._changed)

    def _changed(self, path: str) -> None:
        """Look at what has changed below `/ip`; the root itself is told when the watch is set."""
        if path == records.ROOT:
            self._do(self._clean())
            return
        ip = records.address(path)
        if ip is not None and path == records.node(ip):
            self._do(self._look(ip))

    async def _clean(self) -> None:
        def clean(tree: Tree) -> None:
            for name in tree.list(records.ROOT):
                tree.remove(f"{records.ROOT}/{name}")
            # A write is told even if it changes nothing, and being told of the root brings us here again.
            if tree.read(records.ROOT) is None:
                tree.write(records.ROOT, "")
            if list(tree.get_permissions(records.ROOT) or ()) != ["n0"]:
                tree.set_permissions(records.ROOT, ["n0"])

        await self._xenstore.transaction(clean)
        self._again()

    async def _look(self, ip: bytes) -> None:
        if await self._xenstore.read(records.node(ip)) == records.MANAGED:
            self._managed(ip)

    def announce(self, standin: Standin, held: Iterable[Held]) -> None:
        """Make an address's node anew, for its guest alone, with what is held."""
        written: dict[str, str] = {}
        for one in held:
            written |= records.record(one.packet, self._random())
        node, domid = records.node(standin.ip), standin.domid

        def begin(tree: Tree) -> None:
            tree.remove(node)
            tree.write(node, "")
            # Owned by dom0, so that it outlives the guest, and no other guest may look.
            tree.set_permissions(node, ["n0"] if domid is None else ["n0", f"b{domid}"])
            for path, value in written.items():
                tree.write(path, value)

        self._do(self._xenstore.transaction(begin))

    def record(self, held: Held) -> None:
        """Write a SYN, unless its guest takes it from the wire already."""
        node, written = records.node(held.packet.dst), records.record(held.packet, self._random())

        def write(tree: Tree) -> None:
            if tree.read(node) not in {None, records.MANAGED}:
                for path, value in written.items():
                    tree.write(path, value)

        self._do(self._xenstore.transaction(write))

    def erase(self, held: Held) -> None:
        """Take a SYN back, with the nodes above it that are empty then."""
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
        failure.trap(BackendError)  # without a connection as well: all is said again when there is one
        self.log.warn("Xenstore: {reason}", reason=failure.getErrorMessage())


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

    async def transaction(self, change: Callable[[Any], Any]) -> Any:
        """Do *change*; if it raises, nothing has happened. Then tell who watches of all that was touched."""
        before, tree = dict(self.nodes), _FakeTree(self)
        self.transactions += 1
        try:
            result = change(tree)
        except Exception:
            self.nodes = before
            raise
        for path in tree.touched:
            self._tell(path)
        return result

    def write(self, path: str, value: str) -> None:
        """Write as a guest does."""
        _FakeTree(self).write(path, value)
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


