"""The processes of `bench.simulation.cluster`: Jitsus, each with its own way to etcd, which can be cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from bench.simulation.node import NODE, SOCKET
from bench.speed.server import HOST
from demo.lab import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from twisted.python.failure import Failure

    from bench.simulation.audit import Kind

#: Seconds that an end in order may take.
PATIENCE: Final = 10.0

#: Seconds of a claim's life without its node.
TTL: Final = 2.0

#: Seconds from a question to its answer, ready or not.
ANSWER_BY: Final = 1.2

DOMAIN: Final = "cluster.test"

#: The hosts, as their Jitsus know them.
HOSTS: Final = ("left", "right")


class Pipe(Protocol):
    """One end of a connection that is passed on."""

    def __init__(self, way: Way, other: Pipe | None = None) -> None:
        self._way, self.other = way, other
        self._held: deque[bytes] = deque()

    def connectionMade(self) -> None:  # noqa: N802
        """Be passed on, now or when the way is free."""
        self._way.pipes.add(self)
        if self._way.is_blocked:
            self._transport.pauseProducing()
        if self.other is None:
            self._way.reach(self)
        else:
            for octets in self.other._held:  # noqa: SLF001 -- one of us
                self._transport.write(octets)
            self.other.other = self

    @property
    def _transport(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Pass on what has come."""
        if self.other is None:
            self._held.append(data)
        else:
            self.other._transport.write(data)  # noqa: SLF001 -- one of us

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]  # noqa: ARG002, N802
        """End the other end."""
        self._way.pipes.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other._transport.loseConnection()  # noqa: SLF001 -- one of us

    def abort(self) -> None:
        """End it at once."""
        if self.transport is not None:
            self._transport.abortConnection()

    def block(self, blocked: bool) -> None:  # noqa: FBT001
        """Let nothing through, or again."""
        if blocked:
            self._transport.pauseProducing()
        else:
            self._transport.resumeProducing()


class Way:
    """
    A node's way to one member of etcd.

    Attributes:
        url: where the node begins it.
        pipes: what is open.
        is_blocked: nothing goes through, and nobody is told.
    """

    def __init__(self, port: int, reactor: Any) -> None:
        """Lead to that port."""
        self._reactor, self._to = reactor, TCP4ClientEndpoint(reactor, HOST, port)
        self.pipes: set[Pipe] = set()
        self.is_blocked = False
        self._waiting: list[Pipe] = []
        self._factory = Factory.forProtocol(lambda: Pipe(self))
        self._port = reactor.listenTCP(0, self._factory, interface=HOST)
        self._number = self._port.getHost().port
        self.url = f"http://{HOST}:{self._number}"

    def reach(self, pipe: Pipe) -> None:
        """Let *pipe* lead on."""
        if self.is_blocked:
            self._waiting.append(pipe)
            return
        connecting = self._to.connect(Factory.forProtocol(lambda: Pipe(self, pipe)))
        connecting.addErrback(lambda _: pipe.abort())

    def cut(self, *, silently: bool) -> None:
        """Let nothing through; a silent way holds what is sent, another ends all connections and refuses others."""
        if silently:
            self.is_blocked = True
            for pipe in self.pipes:
                pipe.block(True)  # noqa: FBT003
        else:
            self._port.stopListening()
            for pipe in list(self.pipes):
                pipe.abort()

    def heal(self) -> None:
        """Let all through."""
        if self.is_blocked:
            self.is_blocked = False
            for pipe in list(self.pipes):
                pipe.block(False)  # noqa: FBT003
            waiting, self._waiting = self._waiting, []
            for pipe in waiting:
                self.reach(pipe)
        else:
            self._port = self._reactor.listenTCP(self._number, self._factory, interface=HOST)

    def close(self) -> None:
        """Lead nowhere any more."""
        self._port.stopListening()
        for pipe in list(self.pipes):
            pipe.abort()


class Node:
    """
    A Jitsu.

    Attributes:
        name: its.
        port: of its DNS.
        ways: to etcd's members; none if it is alone.
        process: it, while it runs.
    """

    def __init__(self, name: str, folder: Path, kinds: Iterable[Kind], etcds: Iterable[int], reactor: Any) -> None:
        """Write its configuration in *folder*, where the hosts' socket is; it does not run yet."""
        self.name, self.port, self._reactor = name, free_port(), reactor
        self.ways = [Way(port, reactor) for port in etcds]
        self._folder = folder / name
        self._folder.mkdir()
        self._config = self._folder / "jitsu.yaml"
        self._config.write_text(configuration(self.port, kinds, name, [way.url for way in self.ways]))
        self._environment = {**os.environ, SOCKET: str(folder / "hosts.sock"), NODE: name}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it."""
        words = ["--nodaemon", "--pidfile=", f"--rundir={self._folder}", "jitsu", f"--config={self._config}"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.simulation.node", *words], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def stop(self) -> bool:
        """End it in order; say whether it did so in time."""
        self.tell(signal.SIGTERM)
        for _ in range(round(PATIENCE / 0.05)):
            if self.process is None or self.process.poll() is not None:
                self.process = None
                return True
            await deferLater(self._reactor, 0.05)
        self.kill()
        return False

    def log(self) -> str:
        """Return what it has said."""
        return (self._folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End it, and its ways."""
        self.kill()
        for way in self.ways:
            way.close()


def configuration(port: int, kinds: Iterable[Kind], node: str, etcds: Iterable[str]) -> str:
    """Return a configuration for the VMs *kinds*, on all hosts; without etcd's URLs, for one that is alone."""
    urls = list(etcds)
    cluster: Mapping[str, Any] = {"etcd": urls, "node": node, "ttl": TTL}
    lines = [
        f"bind: {HOST}", f"listen: {port}", "control: off", "delay: 0", f"answer_by: {ANSWER_BY}",
        "starts_per_minute: 1000000",
        *([f"cluster: {dict(cluster)}"] if urls else []),
        "hosts:", *(f"  - {{name: {host}, backend: memory, connect: {host}}}" for host in HOSTS),
        "vms:",
    ]
    for kind in kinds:
        lines += [f"  - name: {kind.name}", f"    dns: {kind.name}.{DOMAIN}", f"    ip: {kind.address}",
                  "    host: any", f"    idle: {kind.idle:g}", f"    response_delay: {kind.delay:g}"]
    return "\n".join([*lines, ""])
