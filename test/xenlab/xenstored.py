"""
Xen's own xenstored without Xen, and guests that are none but speak to it as guests do.

The daemon is Debian's, unpacked into a cache; `xsshim.c`, built into the same cache, stands in for the hypervisor. It
listens in a temporary directory, serves within milliseconds and ends with the test. A guest is a page that it and
the daemon share: requests and answers go through the page's two rings (xen/include/public/io/xs_wire.h), so that
the daemon knows which domain asks, and its permissions.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from bench.debian import CACHE, environment, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

#: This release of Debian's, by a pattern of apt's: the shim is for 4.17 (Debian 12) and 4.20 (Debian 13).
PACKAGE: Final = "^xen-utils-[0-9.]+$"

#: Seconds that anything here may take before it is a failure.
PATIENCE: Final = 10.0

#: Ports of the shim's events.
VIRQ_PORT: Final = 1
DOMAIN_PORTS: Final = 1000

#: The page: octets of each ring; where each begins, and which 32-bit words of the page are the indices of its consumer
#: and its producer (struct xenstore_domain_interface).
PAGE: Final = 4096
RING: Final = 1024
REQUESTS: Final = (0, 512, 513)
ANSWERS: Final = (1024, 514, 515)

HEAD: Final = struct.Struct("=IIII")  # type, request, transaction, length

#: Types of messages (xsd_sockmsg_type).
DIRECTORY: Final = 1
READ: Final = 2
INTRODUCE: Final = 8
WRITE: Final = 11
RM: Final = 13
SET_PERMS: Final = 14
WATCH_EVENT: Final = 15
ERROR: Final = 16


@functools.cache
def shim() -> Path:
    """Return the shim's library, built if need be."""
    source = Path(__file__).with_name("xsshim.c")
    library = CACHE.parent / f"xsshim-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as work:
            built = Path(work, library.name)
            subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
            built.rename(library)
    return library


class Xenstored:
    """
    A xenstored that runs, to be used with `with`.

    Attributes:
        path: of its socket, which it has from the beginning.
    """

    def __init__(self) -> None:
        """Make its directory; it runs within `with`, or from `start` on."""
        self._folder = tempfile.TemporaryDirectory(prefix="xenstored-")
        self.folder = Path(self._folder.name)
        self.path = str(self.folder / "socket")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and remove what it had."""
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it, with an empty tree, and wait until it serves."""
        root = unpacked(PACKAGE)
        program = next(root.glob("usr/lib/xen-*/bin/xenstored"))
        folder = str(self.folder)
        variables = {
            "LD_PRELOAD": str(shim()), "XSSHIM_DIR": folder,
            "XENSTORED_RUNDIR": folder, "XENSTORED_ROOTDIR": folder, "XENSTORED_PATH": self.path,
        }
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "--no-fork", "--pid-file", self.folder / "pid"], env={**environment(root), **variables},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + PATIENCE
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"xenstored does not serve: {(self.folder / 'log').read_text()}")
            time.sleep(0.001)

    def _serves(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.path) == 0

    def kill(self) -> None:
        """End it as a crash does: the socket's path stays, the tree is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def running(self) -> bool:
        """Whether it has been started, and not killed."""
        return self._process is not None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its process within a ``with`` block."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def event(self, port: int) -> None:
        """Send it an event, as a hypervisor would."""
        events = os.open(self.folder / "events", os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(events, struct.pack("=I", port))
        finally:
            os.close(events)

    def guest(self, domid: int, name: str = "") -> FakeGuest:
        """Return a guest, to be used with `with`."""
        return FakeGuest(self, domid, name)


class Caller(ABC):
    """
    A peer of the daemon.

    Its calls block until the daemon answers, which takes about a millisecond. Paths are absolute, or relative to the
    peer's own. What it may not do is an OSError with the daemon's number.
    """

    _number = 0

    def read(self, path: str) -> bytes:
        """Return a node's value."""
        return self.call(READ, path.encode() + b"\0")

    def write(self, path: str, value: bytes | str) -> None:
        """Set the value of a node."""
        self.call(WRITE, path.encode() + b"\0" + (value.encode() if isinstance(value, str) else value))

    def list(self, path: str) -> list[str]:
        """Return the names of a node's children."""
        return [name.decode() for name in self.call(DIRECTORY, path.encode() + b"\0").split(b"\0") if name]

    def remove(self, path: str) -> None:
        """Remove a node and all below it."""
        self.call(RM, path.encode() + b"\0")

    def call(self, command: int, payload: bytes) -> bytes:
        """Send one message and return the answer's payload."""
        self._number += 1
        self._put(HEAD.pack(command, self._number, 0, len(payload)) + payload)
        while True:
            kind, _, _, length = HEAD.unpack(self._get(HEAD.size))
            answer = self._get(length)
            if kind == ERROR:
                number = getattr(errno, answer.rstrip(b"\0").decode())
                raise OSError(number, os.strerror(number))
            if kind != WATCH_EVENT:
                return answer

    @abstractmethod
    def _put(self, octets: bytes) -> None:
        """Send octets."""

    @abstractmethod
    def _get(self, length: int) -> bytes:
        """Return the next *length* octets that the daemon sends."""


class Tools(Caller):
    """Xen's tools in dom0, by the daemon's socket; to be used with `with`."""

    def __init__(self, path: str) -> None:
        """Connect to the socket at *path*."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._socket.close()

    def introduce(self, domid: int) -> None:
        """Introduce a domain to the daemon, with the page and the event port of the shim."""
        self.call(INTRODUCE, "\0".join([str(domid), "1", "1", ""]).encode())

    def give(self, path: str, *permissions: str) -> None:
        """Make a node for others, as `Transaction.set_permissions` has it."""
        self.write(path, "")
        self.call(SET_PERMS, "\0".join([path, *permissions, ""]).encode())

    def _put(self, octets: bytes) -> None:
        self._socket.sendall(octets)

    def _get(self, length: int) -> bytes:
        return self._socket.recv(length, socket.MSG_WAITALL) if length else b""


class FakeGuest(Caller):
    """A domain that the daemon takes for one, with the nodes that xl makes for it below ``/local/domain/<domid>``."""

    def __init__(self, daemon: Xenstored, domid: int, name: str = "") -> None:
        """Take its number; it is made by `create`, or within `with`."""
        self._daemon, self.domid, self.name = daemon, domid, name
        self._ring = daemon.folder / f"dom{domid}.ring"
        self._page: mmap.mmap | None = None
        # The daemon sees each index change at once, as a whole: `struct` would write zeros first.
        self._words: memoryview[int] | None = None

    def __enter__(self) -> Self:
        """Make it."""
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Destroy it, if it is there still."""
        self.destroy()

    def create(self) -> None:
        """Make the domain, introduce it, and give it its nodes, as xl does."""
        self._ring.write_bytes(bytes(PAGE))
        with self._ring.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), PAGE)
        self._words = memoryview(self._page).cast("I")
        home = f"/local/domain/{self.domid}"
        with Tools(self._daemon.path) as tools:
            tools.introduce(self.domid)
            tools.give(home, "n0", f"r{self.domid}")
            tools.give(f"{home}/data", f"n{self.domid}")
            if self.name:
                tools.write(f"{home}/name", self.name)

    def destroy(self) -> None:
        """End the domain as a hypervisor does: it is gone, and the daemon hears so. Then xl removes its nodes."""
        if self._page is not None and self._words is not None:
            self._words.release()
            self._page.close()
            self._page = self._words = None
            self._ring.unlink()
            self._daemon.event(VIRQ_PORT)
            if self._daemon.running:
                with Tools(self._daemon.path) as tools:
                    tools.remove(f"/local/domain/{self.domid}")

    def _put(self, octets: bytes) -> None:
        """Put octets into the ring of requests, as far as there is space."""
        page, words = self._shared()
        ring, consumer, producer = REQUESTS
        for octet in octets:
            self._until(lambda: words[producer] - words[consumer] < RING)
            page[ring + words[producer] % RING] = octet
            words[producer] += 1
        self._daemon.event(DOMAIN_PORTS + self.domid)

    def _get(self, length: int) -> bytes:
        """Take octets from the ring of answers, as they come."""
        page, words = self._shared()
        ring, consumer, producer = ANSWERS
        octets = bytearray()
        while len(octets) < length:
            self._until(lambda: words[producer] != words[consumer])
            octets.append(page[ring + words[consumer] % RING])
            words[consumer] += 1
        self._daemon.event(DOMAIN_PORTS + self.domid)
        return bytes(octets)

    def _shared(self) -> tuple[mmap.mmap, memoryview[int]]:
        if self._page is None or self._words is None:
            message = f"domain {self.domid} is not there"
            raise RuntimeError(message)
        return self._page, self._words

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait; an event makes the daemon read the rings."""
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"domain {self.domid} gets no answer from xenstored")
            self._daemon.event(DOMAIN_PORTS + self.domid)
            time.sleep(0.0005)
