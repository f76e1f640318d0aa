"""
Xenstore, the tree that Xen's toolstack, its daemon and the guests share.

One connection to the daemon's UNIX socket, made again with back-off whenever it breaks. Paths and values are `str`
here and octets (UTF-8) there; what a guest writes that is no UTF-8 survives a reading and a writing, but for NULs at
the end.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.reconnect import Reconnector, steady
from jitsu_tw.xswire import Command, ConflictError, MissingError, TooLongError, Wire, octets_of, text_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from twisted.python.failure import Failure

T = TypeVar("T")

#: Where the daemon listens, if XENSTORED_PATH does not say (the second is the older name).
SOCKETS: Final = ("/run/xenstored/socket", "/var/run/xenstored/socket")

#: What to do where no daemon listens there.
REMEDY: Final = "Xenstore is in Xen's dom0, for root, while xenstored runs; XENSTORED_PATH names another socket"

#: Seconds until a broken connection is tried again, at first and at most.
BACK_OFF: Final = (0.05, 0.5)

#: Seconds after which an operation is given up.
ANSWERS_WITHIN: Final = 30.0

#: How often a transaction that conflicts with others is tried, and a list of children that change meanwhile.
TRIES: Final = 50


class Watch:
    """A callback that is called when a path changes."""

    def __init__(self, path: str, callback: Callable[[str], object], stop: Callable[[], None]) -> None:
        """Made by `Xenstore.watch`."""
        self.path, self.callback, self._stop = path, callback, stop

    def stop(self) -> None:
        """End it: no call comes after this one. Again is harmless."""
        self._stop()


class Tree(ABC):
    """
    What can be done to the tree.

    Every operation may raise BackendError with the daemon's message, or BackendLost.
    """

    @abstractmethod
    def ask(self, what: str, command: Command, *parts: bytes) -> Deferred[bytes]:
        """Return the daemon's answer to one request, as `Wire.ask` does."""

    async def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""
        try:
            return _text(await self.ask(f"read {path}", Command.READ, octets_of(path)))
        except MissingError:
            return None

    async def write(self, path: str, value: str) -> None:
        """Give a node its value, making it and those above it if need be."""
        octets = value.encode(errors="surrogateescape")
        await self.ask(f"write {path}", Command.WRITE, octets_of(path), octets)

    async def remove(self, path: str) -> None:
        """Remove a node and all below it. A missing one is no error."""
        with contextlib.suppress(MissingError):
            await self.ask(f"remove {path}", Command.RM, octets_of(path))

    async def get_permissions(self, path: str) -> list[str] | None:
        """
        Return who may do what with a node; None where there is no such node.

        Each is a letter (``n``: nothing, ``r``: read, ``w``: write, ``b``: both) and a domain's number. The first is
        the owner, who may do everything, and its letter is what everybody else may.
        """
        try:
            return _split(await self.ask(f"get the permissions of {path}", Command.GET_PERMS, octets_of(path)))
        except MissingError:
            return None

    async def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Set who may do what with a node, as `get_permissions` returns it. What is below stays as it is."""
        what = f"set the permissions of {path} to {' '.join(permissions)}"
        await self.ask(what, Command.SET_PERMS, octets_of(path), *(one.encode() + b"\0" for one in permissions))

    async def domain_path(self, domid: int) -> str:
        """Return the path that a domain's relative paths begin from."""
        return _text(await self.ask(f"path of domain {domid}", Command.GET_DOMAIN_PATH, b"%d\0" % domid))

    async def _list_in_parts(self, what: str, path: bytes) -> list[str] | None:
        """Return the children, where they do not fit in a message; None if they have changed meanwhile."""
        names, generations = b"", set()
        # Asks for the names after this number of octets. An answer is the node's generation, then names, each with a
        # NUL, and one more NUL after the last of all.
        while not (b"\0" + names).endswith(b"\0\0"):
            part = await self.ask(what, Command.DIRECTORY_PART, path, b"%d\0" % len(names))
            generation, _, more = part.partition(b"\0")
            generations.add(generation)
            if len(generations) > 1 or not more:
                return None
            names += more
        return _split(names)

    async def list(self, path: str) -> list[str]:
        """Return the names of a node's children; a node that is missing has none."""
        what, octets = f"list {path}", octets_of(path)
        try:
            return _split(await self.ask(what, Command.DIRECTORY, octets))
        except MissingError:
            return []
        except TooLongError:
            for _ in range(TRIES):
                names = await self._list_in_parts(what, octets)
                if names is not None:
                    return names
        raise BackendError(f"Xenstore: {what}: its children change again and again")


class Transaction(Tree):
    """The tree within a transaction: all that is done to it is done at its end, or nothing."""

    def __init__(self, wire: Wire, begun: bytes) -> None:
        """Take the connection, and the daemon's answer to the transaction's beginning."""
        self._wire, self._number = wire, int(_text(begun))

    def ask(self, what: str, command: Command, *parts: bytes) -> Deferred[bytes]:
        """Return the daemon's answer to one request."""
        return self._wire.ask(what, command, *parts, transaction=self._number)


async def _transact(wire: Wire, change: Callable[[Transaction], Awaitable[T]]) -> T:
    """Do *change* in a transaction, and again if it conflicts; return what it returns."""
    for _ in range(TRIES):
        begun = await wire.ask("begin a transaction", Command.TRANSACTION_START, b"\0")
        tree = Transaction(wire, begun)
        try:
            result = await change(tree)
        except Exception:
            with contextlib.suppress(BackendError):
                await tree.ask("end a transaction", Command.TRANSACTION_END, b"F\0")
            raise
        with contextlib.suppress(ConflictError):
            await tree.ask("end a transaction", Command.TRANSACTION_END, b"T\0")
            return result
    raise BackendError(f"Xenstore: others were quicker than a transaction, {TRIES} times")


def _text(octets: bytes) -> str:
    """Return an answer, or a value, without NULs at its end."""
    return text_of(octets.rstrip(b"\0"))


def _split(octets: bytes) -> list[str]:
    """Return the strings that the daemon has put one behind the other, each with a NUL."""
    return [text_of(one) for one in octets.split(b"\0") if one]


class Xenstore(Tree):
    """
    The Xenstore of this host.

    Operations are coroutines. They are done in the order in which they are begun, one at a time, and fail with
    BackendError and the daemon's message, or, if there is no connection or it breaks meanwhile, with BackendLost; they
    do not wait for the next connection. One that is cancelled may have been done all the same. Watches outlive
    connections.
    """

    log = Logger()

    def __init__(self, reactor: Any, path: str | None = None) -> None:
        """Take the socket's *path*; without one, XENSTORED_PATH or the usual ones. Nothing is connected yet."""
        self._reactor, self._path = reactor, path
        self._wire: Wire | None = None
        self._why: str | None = "Xenstore has not been started"  # there is no connection; None during the first try
        self._jobs: deque[tuple[Callable[[Wire], Awaitable[Any]], Deferred[Any]]] = deque()
        self._busy = False
        self._watches: dict[str, Watch] = {}
        self._tokens = 0
        self._opening: Deferred[Wire] | None = None
        self._reconnector: Reconnector[Wire] = Reconnector(
            "Xenstore", self._open, self._opened, self._disconnected, Wire.abort, reactor, steady(*BACK_OFF)
        )

    # The connection.

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._wire is not None

    def start(self) -> None:
        """Begin to connect, and to connect again whenever it must. What is asked next waits for the first try."""
        self._why = None
        self._reconnector.begin()

    def close(self) -> Deferred[None]:
        """End the connection and the watches. What still waits fails."""
        self._why = "Xenstore has been closed"
        self._watches.clear()
        self._reconnector.end()
        if self._opening is not None:
            self._opening.cancel()
        wire, self._wire = self._wire, None
        self._work()
        if wire is None:
            return succeed(None)
        wire.abort()
        return wire.ended

    def _open(self) -> Deferred[Wire]:
        self._opening = self._try_sockets()
        return self._opening

    @deferred
    async def _try_sockets(self) -> Wire:
        path = self._path or os.environ.get("XENSTORED_PATH")
        factory = Factory.forProtocol(partial(Wire, self._changed, self._lost))
        factory.noisy, tried = False, []
        for socket in (path,) if path else SOCKETS:
            try:
                wire: Wire = await UNIXClientEndpoint(self._reactor, socket).connect(factory)
            except ConnectError as error:
                tried.append(f"{socket}: {os.strerror(error.osError) if error.osError else 'it accepts nobody'}")
            else:
                self.log.info("Xenstore: connected to {path}", path=socket)
                return wire
        raise BackendLost(f"no connection to Xenstore ({'; '.join(tried)}): {REMEDY}")

    def _opened(self, wire: Wire) -> None:
        self._wire, self._why = wire, ""
        for token, watch in self._watches.items():
            self._set(token, watch)
        self._work()

    def _lost(self, wire: Wire, reason: str) -> None:
        if wire is self._wire:
            self._wire = None
            self._reconnector.again(reason)

    def _disconnected(self, reason: str) -> None:
        self._why = reason
        if self._reconnector.failures == 1:
            self.log.error("{reason}", reason=reason)
        self._work()

    # Operations.

    def ask(self, what: str, command: Command, *parts: bytes) -> Deferred[bytes]:
        """Return the daemon's answer to one request, which is given up after `ANSWERS_WITHIN` seconds."""
        return self._put(lambda wire: wire.ask(what, command, *parts), ANSWERS_WITHIN)

    async def transaction(self, change: Callable[[Transaction], Awaitable[T]]) -> T:
        """
        Do *change* as one step, seen by others as a whole or not at all, and return what it returns.

        Args:
            change: a coroutine function, which is called again when others have changed what it has seen. Whatever it
                raises ends the transaction and changes nothing. Other operations wait for its end.

        Raises:
            BackendError: others were quicker `TRIES` times.
        """
        return await self._put(lambda wire: _transact(wire, change), ANSWERS_WITHIN)

    def _put(self, job: Callable[[Wire], Awaitable[T]], within: float | None = None) -> Deferred[T]:
        """Do *job* when all that was asked before is done; its result is not waited for *within* seconds."""
        result: Deferred[T] = Deferred()
        self._jobs.append((job, result))
        self._work()
        return result if within is None else result.addTimeout(within, self._reactor, self._late)

    @staticmethod
    def _late(_: object, within: float) -> NoReturn:
        raise BackendLost(f"xenstored has not answered within {within:g} s")

    def _work(self) -> None:
        """Begin to send the queued requests, unless that has begun already, or the first connection is being made."""
        if not self._busy and self._why is not None:
            self._busy = True
            spawn(self.log, self._do_all(), "Xenstore")

    async def _do_all(self) -> None:
        while self._jobs:
            job, result = self._jobs.popleft()
            if result.called:  # given up before its turn
                continue
            try:
                if self._wire is None:
                    raise BackendLost(self._why or "")  # noqa: TRY301
                value = await job(self._wire)
            except Exception:  # noqa: BLE001
                # Whatever it is, the operation fails by it: a transaction's function may raise anything.
                result.errback()
            else:
                result.callback(value)
        self._busy = False

    # Watches.

    def watch(self, path: str, callback: Callable[[str], object]) -> Watch:
        """
        Call *callback* with each path that changes: *path* or one below it.

        A call means: look again. The first comes once the watch is set, with *path* itself, whether or not there is
        such a node, and another one after each reconnect. Several changes of one path may be told by one call. Events
        are writes, removals and changes of permissions. ``@introduceDomain`` and ``@releaseDomain`` are told when any
        domain comes or goes.

        Raises:
            BackendError: *path* is none.
        """
        octets_of(path)
        self._tokens += 1
        token = str(self._tokens)
        watch = self._watches[token] = Watch(path, callback, lambda: self._stop(token))
        if self.connected:
            self._set(token, watch)
        return watch

    def _set(self, token: str, watch: Watch) -> None:
        """Tell the daemon of a watch."""
        self._tell(Command.WATCH, token, watch).addErrback(self._not_set, watch)

    def _tell(self, command: Command, token: str, watch: Watch) -> Deferred[bytes]:
        parts = octets_of(watch.path), token.encode() + b"\0"
        return self._put(lambda wire: wire.ask(f"watch {watch.path}", command, *parts))

    def _not_set(self, failure: Failure, watch: Watch) -> None:
        if not failure.check(BackendLost):
            failure.trap(BackendError)
            self.log.error("Xenstore: {path} is not watched: {error}", path=watch.path, error=failure.getErrorMessage())

    def _stop(self, token: str) -> None:
        watch = self._watches.pop(token, None)
        if watch is not None and self.connected:
            # Without the connection, or without the watch, there is nothing to end.
            self._tell(Command.UNWATCH, token, watch).addErrback(lambda failure: failure.trap(BackendError))

    def _changed(self, events: Iterable[tuple[str, str]]) -> None:
        """Call the callbacks of watches, by token, with what has changed."""
        for token, path in events:
            watch = self._watches.get(token)
            if watch is not None:
                try:
                    watch.callback(path)
                except Exception:  # noqa: BLE001
                    # The other callbacks are called, whatever this one does.
                    self.log.failure("Xenstore: telling of {path} failed", path=path)
