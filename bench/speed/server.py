"""A name server under measurement: its processes, all on one core, from their start to their end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import attrs
import dns.exception
import dns.message
import dns.query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

HOST: Final = "127.0.0.1"

#: Seconds that a start may take on a slow machine, and an end.
PATIENCE: Final = 300.0
LAST_WORDS: Final = 10.0

#: Seconds after which one that does not answer at its start is asked again.
ASK_AGAIN: Final = 0.1

_CORES: Final = sorted(os.sched_getaffinity(0))
#: Everything that answers runs here, and what loads it on all others.
SERVER_CORE: Final = str(_CORES[-1])
LOAD_CORES: Final = ",".join(map(str, _CORES[:-1] or _CORES))

#: The command lines of one server, in the order of their start.
Commands = list[list[str]]


@attrs.frozen
class Place:
    """
    What a server is made from.

    Attributes:
        folder: its own.
        port: UDP and TCP.
        hosts: names and addresses.
        root: where its packages are (`debian.unpacked`).
    """

    folder: Path
    port: int
    hosts: Mapping[str, str]
    root: Path

    def write(self, name: str, text: str) -> Path:
        """Write a file; return its path."""
        path = self.folder / name
        path.write_text(text, encoding="ascii")
        return path


class Server:
    """
    A running server: all its processes, on one core.

    Attributes:
        port: UDP and TCP.
        seconds: from the start of the process to the first answer.
    """

    def __init__(self, commands: Commands, environment: Mapping[str, str], place: Place) -> None:
        """Start *commands* in turn and wait until the last serves; a SystemExit says why it does not."""
        self.port, self._log, self._processes = place.port, place.folder / "log", []
        begin = time.monotonic()
        for command in commands:
            begin = time.monotonic()
            with self._log.open("ab") as log:
                self._processes.append(subprocess.Popen(
                    ["taskset", "-c", SERVER_CORE, *command], env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                ))
            if command is not commands[-1]:
                self._wait(lambda: any(path.is_socket() for path in place.folder.iterdir()))
        name, address = next(iter(place.hosts.items()))
        self._wait(lambda: self._answers(name, address))
        self.seconds = time.monotonic() - begin

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.stop()

    def _wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end or any(process.poll() is not None for process in self._processes):
                self.stop()
                raise SystemExit(f"{self._processes[-1].args!r} does not serve:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self, name: str, address: str) -> bool:
        """Say whether it answers as it should; a wrong answer counts as none."""
        try:
            asked = dns.message.make_query(name, "A", use_edns=0)
            answer = dns.query.udp(asked, HOST, port=self.port, timeout=ASK_AGAIN)
        except (OSError, dns.exception.DNSException):
            return False
        return [record.to_text() for rrset in answer.answer for record in rrset] == [address]

    def _files(self, name: str) -> list[str]:
        """Return the texts of /proc/PID/*name* of all its processes."""
        sessions, texts = {process.pid for process in self._processes}, []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(folder.name)) in sessions:
                    texts.append((folder / name).read_text())
        return texts

    def cpu(self) -> float:
        """Return the seconds that its processes have worked."""
        ticks = (text.rpartition(")")[2].split()[11:13] for text in self._files("stat"))
        return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Return the memory that its processes have, in MB of 1e6 octets."""
        found = (re.findall(r"VmRSS:\s+(\d+) kB", text) for text in self._files("status"))
        return sum(int(kib) * 1024 for kibs in found for kib in kibs) / 1e6

    def stop(self) -> None:
        """End all its processes."""
        for process in self._processes:
            for how in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, how)
                    process.wait(LAST_WORDS)
