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

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import IReadiness

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jitsu_tw.ijitsu import Guest
    from jitsu_tw.settings import VM
    from jitsu_tw.xenstore import Xenstore


@implementer(IReadiness)
class Key:
    """`wait_for_key` is there, and then `response_delay`, if that is given too, has passed."""

    anew = False

    def __init__(self, reactor: Any, xenstore: Xenstore) -> None:
        """Wait on *reactor*'s clock; look into *xenstore*, which somebody else starts and closes."""
        self._reactor, self._xenstore = reactor, xenstore

    def wait(self, vm: VM, guest: Guest) -> Deferred[None]:
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
        await self._appears(f"/local/domain/{guest.domid}/{vm.wait_for_key}")
        if vm.response_delay:
            await deferLater(self._reactor, vm.response_delay)

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
