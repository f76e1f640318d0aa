"""
Ready when the guest has written a key to Xenstore.

The key is one below the domain's own path, as the guest itself names it: ``data/ready`` is
``/local/domain/<domid>/data/ready``. It is watched, not polled; its value does not matter.

A domain's number is of one boot: Xen gives a new one to each domain that it makes, be it booted, rebooted or restored,
and the tree of an old one goes with it. So a key that an earlier boot has written is never looked at, and one that is
there when the wait begins is this domain's own: it was quicker than we, or was paused when it was ready. A guest that
is restored from an image has a new number and an empty tree, and believes that it has written its key long since: who
restores it knows that it is ready, and does not wait for a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from jitsu_tw import parsers
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.keys import Key, Limits
from jitsu_tw.readiness.strategy import EVERY, Strategy
from jitsu_tw.xenstore import Xenstore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.python.failure import Failure

    from jitsu_tw.ijitsu import Guest
    from jitsu_tw.settings import VM

#: The octets that a path below a domain's own may have (xenstore.txt: XENSTORE_REL_PATH_MAX).
LONGEST_KEY: Final = 2048


class XenstoreKey(Strategy):
    """`wait_for_key` is there, and then `response_delay`, if that is given too, has passed."""

    key = Key(
        parsers.matching(
            "key in Xenstore",
            "data/ready",
            "[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*",
            "is no key in Xenstore below the VM's own",
            LONGEST_KEY,
        ),
        "Xen: ready when the guest has written this key to Xenstore",
        own=Limits(),
    )
    uses: ClassVar[Mapping[str, Any]] = {"response_delay": None}
    anew = False

    def __init__(self, reactor: Any, xenstore: Xenstore | None = None) -> None:
        """Wait on *reactor*'s clock; look into *xenstore*, or into this host's."""
        super().__init__(reactor)
        self._xenstore = xenstore or Xenstore(reactor)

    def start(self) -> None:
        """Connect to Xenstore."""
        self._xenstore.start()

    def stop(self) -> Deferred[None]:
        """Disconnect from Xenstore."""
        return self._xenstore.close()

    def wait(self, vm: VM, guest: Guest, every: float = EVERY) -> Deferred[None]:  # noqa: ARG002
        """
        Fire when the key is there. A Xenstore that is away is waited for.

        Raises:
            BackendError: (through the Deferred) the guest has no number, or the key is none.
        """
        return Deferred.fromCoroutine(self._wait(vm, guest))

    async def _wait(self, vm: VM, guest: Guest) -> None:
        if guest.domid is None:
            message = f"{vm.name}: wait_for_key needs a guest of Xen's, and this one has no domain number"
            raise BackendError(message)
        await self._appears(f"/local/domain/{guest.domid}/{vm.readiness['wait_for_key']}")
        if delay := vm.readiness.get("response_delay"):
            await deferLater(self._reactor, delay)

    def _appears(self, path: str) -> Deferred[None]:
        """Fire when there is a node at *path*."""
        there: Deferred[None] = Deferred()

        def seen(value: str | None) -> None:
            if value is not None and not there.called:
                there.callback(None)

        def unseen(failure: Failure) -> None:
            # The watch calls again once there is a connection again.
            if not failure.check(BackendLost) and not there.called:
                there.errback(failure)

        def look(_: str) -> None:
            Deferred.fromCoroutine(self._xenstore.read(path)).addCallbacks(seen, unseen)

        watch = self._xenstore.watch(path, look)

        def end(result: Any) -> Any:
            watch.stop()
            return result

        return there.addBoth(end)
