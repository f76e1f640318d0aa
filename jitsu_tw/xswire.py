"""
One connection to xenstored: requests, answers and events of watches.

The protocol: docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h in Xen's sources. A message is 16 octets and
what belongs to its type; an answer has the number of its request.
"""

from __future__ import annotations

import errno
import os
import re
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Protocol, connectionDone

from jitsu_tw.errors import BackendError, BackendLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.python.failure import Failure

#: In octets (xs_wire.h, XENSTORE_ABS_PATH_MAX and XENSTORE_PAYLOAD_MAX).
PATH_MAX: Final = 3072
PAYLOAD_MAX: Final = 4096

#: Before each message: its type, number, transaction, and how many octets follow (struct xsd_sockmsg).
HEAD: Final = Struct("=IIII")

_PATH: Final = re.compile("/|/?[A-Za-z0-9_@-]+(?:/[A-Za-z0-9_@-]+)*")


class Command(IntEnum):
    """Types of messages (xs_wire.h, xsd_sockmsg_type)."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    GET_DOMAIN_PATH = 10
    WRITE = 11
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    DIRECTORY_PART = 22


class MissingError(BackendError):
    """There is no such node."""


class ConflictError(BackendError):
    """Others have changed what a transaction has read."""


class TooLongError(BackendError):
    """The answer does not fit in one message."""


#: The daemon's errors that are told apart.
_KINDS: Final = {"ENOENT": MissingError, "EAGAIN": ConflictError, "E2BIG": TooLongError}


class Wire(Protocol):
    """
    A connection.

    Attributes:
        ended: fires when the connection has ended.
    """

    transport: Any

    def __init__(
        self, changed: Callable[[Iterable[tuple[str, str]]], object], lost: Callable[[Wire, str], object]
    ) -> None:
        """
        Take the two listeners.

        Args:
            changed: is called with watches' tokens and paths that have changed. A path that has changed often in one
                reading from the socket is told once: a guest that writes without end cannot fill a queue.
            lost: is called with this object and the reason when the connection ends.
        """
        self._changed, self._lost = changed, lost
        self._rest = b""
        self._events: dict[tuple[str, str], None] = {}
        self._number = 0
        self._asked: dict[int, tuple[str, Deferred[bytes]]] = {}
        self._reason = ""
        self.ended: Deferred[None] = Deferred()

    def ask(self, what: str, command: Command, *parts: bytes, transaction: int = 0) -> Deferred[bytes]:
        """
        Send a request and return the payload of its answer.

        Args:
            what: it does, for messages.
            command: its type.
            parts: its payload.
            transaction: the number of the transaction that it belongs to.

        Raises:
            BackendError: (through the Deferred) with the daemon's message.
            BackendLost: (through the Deferred) the connection has ended.
        """
        payload = b"".join(parts)
        if self.ended.called:
            return fail(BackendLost(self._reason))
        if len(payload) > PAYLOAD_MAX:
            return fail(BackendError(f"Xenstore: {what}: longer than Xenstore's {PAYLOAD_MAX} octets"))
        self._number = (self._number + 1) % 2**32
        self.transport.write(HEAD.pack(command, self._number, transaction, len(payload)) + payload)
        answer: Deferred[bytes] = Deferred()
        self._asked[self._number] = what, answer
        return answer

    def abort(self) -> None:
        """End the connection without waiting for anything."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take octets."""
        try:
            self._rest += data
            while (message := self._next()) is not None:
                self._take(*message)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the messages that follow cannot be told apart any more.
            self._reason = f"cannot read what the daemon says: {error!r}"
            self._rest = b""
            self.abort()
        self._tell()

    def _next(self) -> tuple[int, int, bytes] | None:
        """Return the type, number and payload of the next message that has come as a whole."""
        if len(self._rest) < HEAD.size:
            return None
        kind, number, _, size = HEAD.unpack_from(self._rest)
        if size > PAYLOAD_MAX:
            raise ValueError(f"a message of {size} octets")
        end = HEAD.size + size
        if len(self._rest) < end:
            return None
        payload, self._rest = self._rest[HEAD.size : end], self._rest[end:]
        return kind, number, payload

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == Command.WATCH_EVENT:
            path, token = payload.split(b"\0")[:2]
            self._events[token.decode(), text_of(path)] = None
            return
        what, answer = self._asked.pop(number)
        self._tell()
        if kind == Command.ERROR:
            answer.errback(_refusal(what, text_of(payload)))
        else:
            answer.callback(payload)

    def _tell(self) -> None:
        events, self._events = self._events, {}
        if events:
            self._changed(events)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        """Tell the end; no answer comes any more."""
        self._reason = f"Xenstore: {self._reason or 'the daemon has closed the connection'}; trying to connect again"
        self.ended.callback(None)
        self._lost(self, self._reason)
        for _, answer in self._asked.values():
            answer.errback(BackendLost(self._reason))


def _refusal(what: str, name: str) -> BackendError:
    """Return the daemon's error, which has the name of a number of errno's."""
    name = name.rstrip("\0")
    number = getattr(errno, name, None)
    return _KINDS.get(name, BackendError)(f"Xenstore: {what}: {os.strerror(number) if number else name}")


def octets_of(path: str) -> bytes:
    """
    Return a path in the daemon's form.

    Raises:
        BackendError: *path* is none.
    """
    if len(path) > PATH_MAX or not _PATH.fullmatch(path):
        message = f"{path!r} is no path of Xenstore: letters, digits, -, _ and @ between slashes, {PATH_MAX} in all"
        raise BackendError(message)
    return path.encode() + b"\0"


def text_of(octets: bytes) -> str:
    """Return the text of a value or path, whatever octets a guest has written."""
    return octets.decode(errors="surrogateescape")
