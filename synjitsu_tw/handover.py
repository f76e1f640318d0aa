"""
How held SYNs reach their guest: as frames on the network, or through Xenstore.

`wire` is for any guest: Synjitsu sends the held packets to it. `XenstoreHandover` is for a guest with the original
Synjitsu's TCP stack, which reads its SYNs in Xenstore when it is up; `records` has their format. It works with any
implementation of `Xenstore`.
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
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    from twisted.python.failure import Failure

    from jitsu_tw.xenstore import Tree
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


class Xenstore(Protocol):
    """What `XenstoreHandover` needs of a Xenstore client; `jitsu_tw.xenstore` has one."""

    async def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""

    async def transaction(self, change: Callable[[Tree], Awaitable[Any]]) -> Any:
        """
        Run *change* with a `Tree` in one transaction, and return its result.

        *change* may run again after a conflict; all of its writes take effect, or none.
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
        async def clean(tree: Tree) -> None:
            for name in await tree.list(records.ROOT):
                await tree.remove(f"{records.ROOT}/{name}")
            # The watch reports a write even if it changes nothing, and a report of the root leads here again.
            if await tree.read(records.ROOT) is None:
                await tree.write(records.ROOT, "")
            if list(await tree.get_permissions(records.ROOT) or ()) != ["n0"]:
                await tree.set_permissions(records.ROOT, ["n0"])

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

        async def begin(tree: Tree) -> None:
            await tree.remove(node)
            await tree.write(node, "")
            # dom0 owns it, so that it outlives the guest; no other guest may read it.
            await tree.set_permissions(node, ["n0"] if domid is None else ["n0", f"b{domid}"])
            for path, value in written.items():
                await tree.write(path, value)

        self._do(self._xenstore.transaction(begin))

    def record(self, held: Held) -> None:
        """Write a SYN, unless its guest takes its SYNs from the network already."""
        node, written = records.node(held.packet.dst), records.record(held.packet, self._random())

        async def write(tree: Tree) -> None:
            if await tree.read(node) not in {None, records.MANAGED}:
                for path, value in written.items():
                    await tree.write(path, value)

        self._do(self._xenstore.transaction(write))

    def erase(self, held: Held) -> None:
        """Remove a SYN, with the nodes above it that are empty then."""
        node, path = records.node(held.packet.dst), records.connection(held.packet)

        async def remove(tree: Tree) -> None:
            await tree.remove(path)
            above = path.rpartition("/")[0]
            while above != node and not await tree.list(above):
                await tree.remove(above)
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
