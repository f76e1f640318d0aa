"""
Etcd's own members, one or several, for the time of a test: Debian's program, installed or unpacked (`bench.debian`).

They keep their data in memory where they can, do not wait for disks, and hold elections quickly. They are used with
`with`, or by `start` and `close`; the caller of `start` calls `close`.
"""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from bench.debian import environment, unpacked
from demo.lab import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

PACKAGE: Final = "etcd-server"
LOOPBACK: Final = "127.0.0.1"

#: Milliseconds: from one word of the leader's to the next, and without one until an election.
HEARTBEAT: Final = 50
ELECTION: Final = 500

#: Seconds that anything here may take before it is a failure.
PATIENCE: Final = 20.0

#: Seconds that one question may take.
ANSWER: Final = 1.0


class Member:
    """
    One etcd.

    Attributes:
        url: where clients ask it.
        address, port: the same.
        peer: where the other members do.
        process: it, while it runs.
    """

    def __init__(self, name: str, folder: Path, scheme: str, address: str, ports: tuple[int, int]) -> None:
        """Store its name, folder and addresses; it does not run yet."""
        self.name, self.folder = name, folder
        self.address, self.port = address, ports[0]
        self.url = f"{scheme}://{address}:{ports[0]}"
        self.peer = f"http://{address}:{ports[1]}"
        self.process: subprocess.Popen[bytes] | None = None


class Etcds:
    """
    An etcd of several members.

    Args:
        addresses: of the members; by default, one on loopback.
        ports: for clients and for the other members, where the addresses differ; by default, free ones.
        runs: for each member, a function that turns a command line into one that runs in its namespace, as
            `demo.lab.Network.command` does; by default, members run in this namespace.
        options: more of the program's.
        scheme: of the URLs for clients.
    """

    def __init__(
        self,
        addresses: Sequence[str] = (LOOPBACK,),
        ports: tuple[int, int] | None = None,
        runs: Sequence[Callable[[Sequence[str | Path]], list[str]]] = (),
        options: Sequence[str] = (),
        scheme: str = "http",
    ) -> None:
        """Make their directory; they run within `with`, or from `start` on."""
        memory = Path("/dev/shm")  # noqa: S108 -- a directory of our own is made in it
        self._folder = tempfile.TemporaryDirectory(prefix="etcds-", dir=memory if memory.is_dir() else None)
        self._runs, self._options = list(runs), list(options)
        self.members = [
            Member(f"m{number}", Path(self._folder.name), scheme, address, ports or (free_port(), free_port()))
            for number, address in enumerate(addresses)
        ]

    def __enter__(self) -> Self:
        """Start them all."""
        self.start_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them, and remove what they had."""
        self.close()

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients ask them."""
        return tuple(member.url for member in self.members)

    def start_all(self) -> None:
        """Start them all, and wait until they serve."""
        for number in range(len(self.members)):
            self.start(number, wait=False)
        for number in range(len(self.members)):
            self.wait(number)

    def start(self, number: int, *, wait: bool = True) -> None:
        """Start one, with the data that it had, and wait until it serves."""
        member = self.members[number]
        root = unpacked(PACKAGE)
        command: list[str | Path] = [
            root / "usr/bin/etcd", "--name", member.name, "--data-dir", member.folder / member.name,
            "--listen-client-urls", member.url, "--advertise-client-urls", member.url,
            "--listen-peer-urls", member.peer, "--initial-advertise-peer-urls", member.peer,
            "--initial-cluster", ",".join(f"{other.name}={other.peer}" for other in self.members),
            "--heartbeat-interval", str(HEARTBEAT), "--election-timeout", str(ELECTION),
            "--unsafe-no-fsync", "--log-level", "error", *self._options,
        ]
        run = self._runs[number] if self._runs else None
        with (member.folder / f"{member.name}.log").open("ab") as log:
            member.process = subprocess.Popen(
                run(command) if run else [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=dict(environment(root)),
            )
        if wait:
            self.wait(number)

    def wait(self, number: int) -> None:
        """Wait until a member serves, which it does once there is a leader."""
        member = self.members[number]
        end = time.monotonic() + PATIENCE
        while not self._serves(number):
            assert member.process is not None
            if member.process.poll() is not None or time.monotonic() > end:
                log = (member.folder / f"{member.name}.log").read_text()
                self.close()
                raise RuntimeError(f"etcd {member.name} does not serve: {log[-2000:]}")
            time.sleep(0.02)

    def _serves(self, number: int) -> bool:
        """Return whether a member knows a leader; of one with certificates, whether it accepts connections."""
        member = self.members[number]
        if not member.url.startswith("http:"):
            with socket.socket() as probed:
                return probed.connect_ex((member.address, member.port)) == 0
        try:
            return int(self.ask(number, "maintenance/status").get("leader", 0)) != 0
        except OSError:
            return False

    def ask(self, number: int, call: str, **body: Any) -> dict[str, Any]:
        """
        Return a member's answer to a call of its JSON gateway.

        Raises:
            OSError: it does not answer, or not with what was asked for.
        """
        url, octets = f"{self.members[number].url}/v3/{call}", json.dumps(body).encode()
        said: dict[str, Any]
        if self._runs:
            command = ["curl", "--silent", "--show-error", "--fail", "--max-time", str(ANSWER), "--data", "@-", url]
            asked = subprocess.run(self._runs[number](command), check=False, capture_output=True, input=octets)
            if asked.returncode:
                raise OSError(asked.stderr.decode(errors="replace"))
            said = json.loads(asked.stdout)
            return said
        request = urllib.request.Request(url, octets)  # noqa: S310
        with urllib.request.urlopen(request, timeout=ANSWER) as answer:  # noqa: S310
            said = json.load(answer)
            return said

    def leader(self) -> int:
        """Return which one leads, waiting for an election if need be."""
        end = time.monotonic() + PATIENCE
        for number in itertools.cycle(range(len(self.members))):
            if time.monotonic() > end:
                break
            if self.members[number].process is None:
                continue
            try:
                said = self.ask(number, "maintenance/status")
            except OSError:
                time.sleep(0.02)
                continue
            if said.get("leader") == said["header"]["member_id"]:
                return number
        raise RuntimeError("etcd has no leader")

    def kill(self, number: int) -> None:
        """End one as a crash does: what it had on its disk stays."""
        process = self.members[number].process
        if process is not None:
            process.kill()
            process.wait()
            self.members[number].process = None

    def freeze(self, number: int) -> None:
        """Stop a member's process until `thaw`."""
        process = self.members[number].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """Continue a stopped member's process."""
        process = self.members[number].process
        assert process is not None
        process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End them all, and remove what they had."""
        for number in range(len(self.members)):
            self.kill(number)
        self._folder.cleanup()
