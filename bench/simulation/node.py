"""
One of the Jitsus of `bench.simulation.cluster`: as twistd runs it, but its memory backend's VMs are those of the
bench's process.

The backend is a client of the socket of `bench.simulation.twohosts`: lines of JSON. Run it as twistd, with what
`SOCKET` and `NODE` name in the environment: where that is, and what this node is called there.
"""

from __future__ import annotations

import json
import os
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.scripts import twistd
from zope.interface import implementer

from jitsu_tw import backends
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start

if TYPE_CHECKING:

    from twisted.python.failure import Failure

    from jitsu_tw.settings import VM, Mode

#: Of the environment.
SOCKET: Final = "JITSU_BENCH_SOCKET"
NODE: Final = "JITSU_BENCH_NODE"

#: Seconds until a host is tried again, at first and at most.
BACK_OFF: Final = (0.1, 0.5)


class Line(LineOnlyReceiver):
    """A connection to a host."""

    delimiter = b"\n"

    def __init__(self, backend: RemoteBackend) -> None:
        self._backend = backend
        self._calls: dict[int, Deferred[Any]] = {}
        self._numbers = count(1)
        self._known = False

    def connectionMade(self) -> None:  # noqa: N802
        """Say who asks for which host; it is there once it has answered that."""
        self.call("hello", host=self._backend.host, by=os.environ[NODE]).addCallbacks(self._is_there, lambda _: None)

    def _is_there(self, _: Any) -> None:
        self._known = True
        self._backend.found(self)

    def call(self, what: str, **arguments: Any) -> Deferred[Any]:
        """Ask the host for something."""
        number, called = next(self._numbers), Deferred[Any]()
        self._calls[number] = called
        self.sendLine(json.dumps({"id": number, "call": what, **arguments}).encode())
        return called

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Hear an answer or an event."""
        said = json.loads(line)
        if "changed" in said:
            self._backend.changed(said["changed"], said["reason"])
            return
        called = self._calls.pop(said["id"])
        if "error" in said:
            called.errback(BackendError(said["error"]))
        else:
            called.callback(said["result"])

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]  # noqa: ARG002, N802
        """Fail what is under way."""
        calls, self._calls = self._calls, {}
        if self._known:
            self._backend.lost()
        for called in calls.values():
            called.errback(BackendLost(f"{self._backend.host}: the connection is lost"))


@implementer(IBackend)
class RemoteBackend:
    """A host of `bench.simulation.twohosts`."""

    reachable = False
    has_uuids = True

    def __init__(self, connect: str, reactor: Any = None) -> None:
        """Have the host that is called *connect*."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self.host = connect
        self._watcher: IWatcher | None = None
        self._line: Line | None = None
        endpoint = UNIXClientEndpoint(reactor, os.environ[SOCKET])
        factory = Factory.forProtocol(lambda: Line(self))
        self._service = ClientService(endpoint, factory, backoffPolicy(*BACK_OFF, jitter=lambda: 0.0))

    def __str__(self) -> str:
        """Say which it is, in messages."""
        return self.host

    def examine(self, vm: VM) -> tuple[str, ...]:  # noqa: ARG002
        """Return no advice."""
        return ()

    def connect(self, watcher: IWatcher) -> None:
        """Connect, again and again."""
        self._watcher = watcher
        self._service.startService()

    def close(self) -> Deferred[None]:
        """Connect no more."""
        self._watcher = None
        closed: Deferred[None] = self._service.stopService() or succeed(None)
        return closed

    def found(self, line: Line) -> None:
        """Have a connection."""
        self._line = line
        if self._watcher is not None:
            self._watcher.connected(self)

    def lost(self) -> None:
        """Have it no more."""
        self._line = None
        if self._watcher is not None:
            self._watcher.lost(self, "the connection is lost")

    def changed(self, uuid: str, reason: str) -> None:
        """Pass on what the host tells."""
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def _call(self, what: str, **arguments: Any) -> Deferred[Any]:
        if self._line is None:
            return fail(BackendLost(f"{self.host}: no connection"))
        return self._line.call(what, **arguments)

    def look_up(self, vm: VM) -> Deferred[str]:
        """Return the uuid, which is the same on all hosts."""
        return self._call("look_up", name=vm.name)

    def state(self, uuid: str) -> Deferred[Power]:
        """Return what the VM is there."""
        return self._call("state", uuid=uuid).addCallback(Power)

    def start(self, uuid: str) -> Deferred[Start]:
        """Start the VM there."""
        return self._call("start", uuid=uuid).addCallback(Start)

    def stop(self, uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the VM there."""
        return self._call("stop", uuid=uuid, mode=mode.value)

    def ready(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fire at once."""
        return succeed(None)

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Return one without MACs: there is no network."""
        return self.state(uuid).addCallback(lambda _: Guest())

    def traffic(self, uuid: str) -> Deferred[int | None]:
        """Return what the guest has sent."""
        return self._call("traffic", uuid=uuid)

    def cpu_time(self, uuid: str) -> Deferred[float | None]:  # noqa: ARG002
        """Return None: nobody counts it."""
        return succeed(None)

    def obstacle(self, uuid: str, mode: Mode) -> Deferred[str | None]:  # noqa: ARG002
        """Return None: any VM can be stopped."""
        return succeed(None)

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:  # noqa: ARG002
        """Return no advice."""
        return succeed(())

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Return what a start would take there."""
        return self._call("memory", uuid=uuid).addCallback(lambda said: Memory(*said))

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:  # noqa: ARG002
        """Fail: such a VM is stopped and started anew."""
        return fail(BackendError("a VM of this world does not move while it runs"))

    def keep_image(self, uuid: str, *, shared: bool = False) -> Deferred[None]:  # noqa: ARG002
        """Fail: there are no images."""
        return fail(BackendError(f"{self.host}: keeps no images"))

    def drop_image(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Do nothing."""
        return succeed(None)

    def remove(self, vm: VM) -> Deferred[None]:  # noqa: ARG002
        """Fail: no VM of the world is made by a template."""
        return fail(BackendError(f"{self.host}: removes nothing"))

    def prepare(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fail: no VM of the world is prepared."""
        return fail(BackendError(f"{self.host}: prepares nothing"))

    def stale(self, uuid: str) -> Deferred[str]:  # noqa: ARG002
        """Return that nothing is known against it: there is none."""
        return succeed("")


if __name__ == "__main__":
    memory = backends.BACKENDS["memory"]
    backends.BACKENDS["memory"] = attrs.evolve(memory, path="bench.simulation.node:RemoteBackend", images=False)
    twistd.run()
