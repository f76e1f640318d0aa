"""
How held SYNs reach their guest: by the wire, or through Xenstore.

`wire` is for any guest: what was held is sent to it. `XenstoreHandover` is for a guest with the first Synjitsu's TCP
stack, which finds its SYNs in Xenstore when it is up; `records` has their form. It works with anything that has the
shape of `Xenstore`.
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
    Yield what hands a guest its address and its packets.

    First its peers are told its MAC. Then it is told theirs, as far as they wait, and each packet is sent.
    Where the guest takes its SYNs from Xenstore, only other packets are sent: there are none.
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
        """Call *change* with a `Tree`, perhaps again after a conflict; all of it or nothing."""

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
        async def clean(tree: Tree) -> None:
            for name in await tree.list(records.ROOT):
                await tree.remove(f"{records.ROOT}/{name}")
            # A write is told even if it changes nothing, and being told of the root brings us here again.
            if await tree.read(records.ROOT) is None:
                await tree.write(records.ROOT, "")
            if list(await tree.get_permissions(records.ROOT) or ()) != ["n0"]:
                await tree.set_permissions(records.ROOT, ["n0"])

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

        async def begin(tree: Tree) -> None:
            await tree.remove(node)
            await tree.write(node, "")
            # Owned by dom0, so that it outlives the guest, and no other guest may look.
            await tree.set_permissions(node, ["n0"] if domid is None else ["n0", f"b{domid}"])
            for path, value in written.items():
                await tree.write(path, value)

        self._do(self._xenstore.transaction(begin))

    def record(self, held: Held) -> None:
        """Write a SYN, unless its guest takes it from the wire already."""
        node, written = records.node(held.packet.dst), records.record(held.packet, self._random())

        async def write(tree: Tree) -> None:
            if await tree.read(node) not in {None, records.MANAGED}:
                for path, value in written.items():
                    await tree.write(path, value)

        self._do(self._xenstore.transaction(write))

    def erase(self, held: Held) -> None:
        """Take a SYN back, with the nodes above it that are empty then."""
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
        failure.trap(BackendError)  # without a connection as well: all is said again when there is one
        self.log.warn("Xenstore: {reason}", reason=failure.getErrorMessage())
