"""
Xenstore, blocking: pyxs, whose errors are ours, whose text is `str`, and whose connection does not end in silence.

pyxs by itself waits for ever when its connection is gone, refuses empty values and those outside of ASCII, lets its
numbers outgrow their 32 bits, lists no more children than fit in one message, and needs file descriptors below 1,024.
`Reader` and `Client` are its `Router` and `Client` without these. Nothing here knows a reactor: `jitsu_tw.xenstore`
calls it in threads.

The protocol: docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h in Xen's sources.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyxs
from pyxs.client import Packet, RVar
from pyxs.connection import UnixSocketConnection
from pyxs.helpers import error as refusal

from jitsu_tw.errors import BackendError, BackendLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

#: How often a transaction that conflicts with others is tried.
TRIES: Final = 50

#: Types of messages (xs_wire.h, xsd_sockmsg_type).
WATCH: Final = 4
UNWATCH: Final = 5
WATCH_EVENT: Final = 15
ERROR: Final = 16
DIRECTORY_PART: Final = 22

#: In octets (xs_wire.h, XENSTORE_ABS_PATH_MAX and XENSTORE_PAYLOAD_MAX).
PATH_MAX: Final = 3072
PAYLOAD_MAX: Final = 4096

#: Before each message: its type, number, transaction, and how many octets follow (struct xsd_sockmsg).
HEAD: Final = struct.Struct("=IIII")

_PATH: Final = re.compile("/|/?[A-Za-z0-9_@-]+(?:/[A-Za-z0-9_@-]+)*")


class _MissingError(BackendError):
    """There is no such node."""


class Transaction:
    """
    What can be done to the tree, all in one transaction, or each by itself where none has been begun.

    Every call may raise BackendError in the daemon's words, or BackendLost.
    """

    def __init__(self, client: Client) -> None:
        """Do it by *client*."""
        self.client = client

    def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""
        try:
            return text_of(self._do("read", path, self.client.read))
        except _MissingError:
            return None

    def write(self, path: str, value: str) -> None:
        """Give a node its value, making it and those above it if need be."""
        self._do("write", path, self.client.write, value.encode(errors="surrogateescape"))

    def remove(self, path: str) -> None:
        """Remove a node and all below it. A missing one is no error."""
        with contextlib.suppress(_MissingError):
            self._do("remove", path, self.client.delete)

    def get_permissions(self, path: str) -> list[str] | None:
        """
        Return who may do what with a node; None where there is no such node.

        Each is a letter (``n``: nothing, ``r``: read, ``w``: write, ``b``: both) and a domain's number. The first is
        the owner, who may do everything, and its letter is what everybody else may.
        """
        try:
            return [text_of(one) for one in self._do("get the permissions of", path, self.client.get_perms)]
        except _MissingError:
            return None

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Say who may do what with a node, as `get_permissions` does. What is below stays as it is."""
        self._do("set the permissions of", path, self.client.set_perms, [one.encode() for one in permissions])

    def list(self, path: str) -> list[str]:
        """Return the names of a node's children; a node that is missing has none."""
        try:
            return [text_of(name) for name in self._do("list", path, self.client.list)]
        except _MissingError:
            return []

    @staticmethod
    def _do(verb: str, path: str, function: Callable[..., Any], *arguments: Any) -> Any:
        octets = octets_of(path)
        with _ours(f"{verb} {path}"):
            return function(octets, *arguments)


def domain_path(tree: Transaction, domid: int) -> str:
    """Return the path that a domain's relative paths begin from."""
    with _ours(f"path of domain {domid}"):
        return text_of(tree.client.get_domain_path(domid))


def set_watch(tree: Transaction, path: str, token: str, command: int = WATCH) -> None:
    """Set a watch, or with `UNWATCH` end it; *token* comes with each event."""
    with _ours(f"watch {path}"):
        tree.client.ack(command, path.encode() + b"\0", token.encode() + b"\0")


def transact(tree: Transaction, change: Callable[[Transaction], T]) -> T:
    """
    Do *change* in a transaction, and again if it conflicts; return what it returns.

    Raises:
        BackendError: it conflicted `TRIES` times.
    """
    for _ in range(TRIES):
        with _ours("begin a transaction"):
            tree.client.transaction()
        try:
            result = change(tree)
        except BaseException:
            with contextlib.suppress(pyxs.PyXSError):
                tree.client.rollback()
            raise
        with _ours("end a transaction"):
            if tree.client.commit():
                return result
    message = f"Xenstore: others were quicker than a transaction, {TRIES} times"
    raise BackendError(message)


def apply(tree: Transaction, changes: Mapping[str, str | None]) -> None:
    """Write values by path; None removes."""
    for path, value in changes.items():
        if value is None:
            tree.remove(path)
        else:
            tree.write(path, value)


def octets_of(path: str) -> bytes:
    """Return a path as the daemon takes it."""
    if len(path) > PATH_MAX or not _PATH.fullmatch(path):
        message = f"{path!r} is no path of Xenstore: letters, digits, -, _ and @ between slashes, {PATH_MAX} in all"
        raise BackendError(message)
    return path.encode()


def text_of(octets: bytes) -> str:
    """Return what the daemon says, whatever a guest has written."""
    return octets.decode(errors="surrogateescape")


@contextlib.contextmanager
def _ours(what: str) -> Iterator[None]:
    """Turn pyxs' errors into ours."""
    try:
        yield
    except pyxs.PyXSError as error:
        number, words = error.args if len(error.args) == 2 else (None, str(error))
        if isinstance(error, pyxs.ConnectionError) or number == errno.ECONNRESET:
            message = "the connection to Xenstore broke; it is being tried again"
            raise BackendLost(message) from error
        if isinstance(error, pyxs.InvalidPayload):
            words = f"longer than Xenstore's {PAYLOAD_MAX} octets"
        message = f"Xenstore: {what}: {words}"
        raise (_MissingError if number == errno.ENOENT else BackendError)(message) from error


class Client(pyxs.Client):  # type: ignore[misc]
    """pyxs' verbs, with any octets as a value, or none, and with as many children as there are."""

    def execute_command(self, op: int, *args: bytes, **_: Any) -> bytes:
        """Send a command; return the answer without NULs at its end, or raise what the daemon says."""
        return self._answer(op, b"".join(args)).rstrip(b"\0")

    def _answer(self, op: int, payload: bytes) -> bytes:
        if len(payload) > PAYLOAD_MAX:
            raise pyxs.InvalidPayload(payload)
        packet = self.router.send(Packet._make((op, 0, self.tx_id, len(payload), payload))).get()
        if packet.op == ERROR:
            raise refusal(packet.payload.rstrip(b"\0"))
        return bytes(packet.payload)

    def _list_in_parts(self, path: bytes) -> list[bytes] | None:
        """Return the children, where they do not fit in a message; None if they have changed meanwhile."""
        names, generations, last = b"", set(), False
        while not last:
            # Asks for what is behind so many octets of names. The answer is the node's generation, then names, each
            # with a NUL, and one more NUL after the last of all.
            part = self._answer(DIRECTORY_PART, b"%s\0%d\0" % (path, len(names)))
            generation, _, more = part.partition(b"\0")
            generations.add(generation)
            if len(generations) > 1 or not more:
                return None
            names += more
            last = more == b"\0" or more.endswith(b"\0\0")
        return [name for name in names.split(b"\0") if name]

    def list(self, path: bytes) -> list[bytes]:
        """Return the names of a node's children."""
        try:
            return list(super().list(path))
        except pyxs.PyXSError as error:
            if error.args[0] != errno.E2BIG:
                raise
        for _ in range(TRIES):
            names = self._list_in_parts(path)
            if names is not None:
                return names
        raise refusal(errno.EAGAIN)


class _Socket:
    """A connection's socket, in the shape that pyxs wants; who waits in it wakes when it ends."""

    def __init__(self, path: str) -> None:
        """Connect to *path*, blocking."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def recv(self, size: int) -> bytes:
        """Return so many octets; OSError where the connection ends before."""
        if size > PAYLOAD_MAX:
            message = f"a message of {size} octets"
            raise ValueError(message)
        octets = self._socket.recv(size, socket.MSG_WAITALL)
        if len(octets) < size:
            raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return octets

    def send(self, octets: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(octets)

    def end(self) -> None:
        """End the connection, from any thread, without waiting."""
        with contextlib.suppress(OSError):
            # It may have ended by itself.
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and give it back."""
        self.end()
        self._socket.close()


class Reader(pyxs.Router):  # type: ignore[misc]
    """
    A connection that tells its end, after which nobody waits for an answer.

    A thread reads, blocking; it ends with the connection, which `stop` ends.
    """

    def __init__(self, path: str, heard: Callable[[str, str], None], ended: Callable[[str], None]) -> None:
        """
        Connect to *path*, blocking. The thread calls *heard* with a watch's token and a path, and *ended* once.

        Raises:
            OSError: nobody listens there, or not to us.
        """
        connection = UnixSocketConnection(path)
        connection.transport = self._socket = _Socket(path)
        super().__init__(connection)
        for unused in (self.r_terminator, self.w_terminator):
            unused.close()
        self._heard, self._ended = heard, ended
        self._dead = False
        self._number = 0
        self.thread.name = "Xenstore reader"

    def __call__(self) -> None:
        """Read until the end."""
        try:
            while True:
                kind, number, transaction, size = HEAD.unpack(self._socket.recv(HEAD.size))
                self._take(Packet._make((kind, number, transaction, size, self._socket.recv(size) if size else b"")))
        except OSError:
            reason = "the daemon has closed the connection"
        except Exception as error:  # noqa: BLE001
            # Whatever it is, nobody reads any more, and who waits must hear of it.
            reason = f"cannot read what the daemon says: {error!r}"
        self.stop()
        with self.send_lock:
            self.connection.close()
            for number, answer in self.rvars.items():
                answer.set(Packet(ERROR, b"ECONNRESET", number))
            self.rvars.clear()
        self._ended(reason)

    def _take(self, packet: Packet) -> None:
        if packet.op == WATCH_EVENT:
            path, token = packet.payload.split(b"\0")[:2]
            self._heard(token.decode(), text_of(path))
        else:
            self.rvars.pop(packet.rq_id).set(packet)

    def send(self, packet: Packet) -> RVar:
        """Send a packet under a number of ours: pyxs' own outgrow the 32 bits that there are for them."""
        with self.send_lock:
            if self._dead:
                raise pyxs.ConnectionError(errno.ECONNRESET)
            self._number = (self._number + 1) % 2**32
            answer = self.rvars[self._number] = RVar()
            try:
                self.connection.send(packet._replace(rq_id=self._number))
            except pyxs.ConnectionError:
                self.stop()
                raise
            return answer

    def stop(self) -> None:
        """End the connection, from any thread, without waiting."""
        self._dead = True
        self._socket.end()
