"""
Xenstore, the tree that Xen's toolstack, its daemon and the guests share: pyxs behind Deferreds.

One connection to the daemon's UNIX socket, made again with back-off whenever it breaks, and two threads: one reads what
the daemon says, one does what is asked, in the order in which it was asked. The reactor's thread waits for neither.
Paths and values are `str` here and octets (UTF-8) there; what a guest writes that is no UTF-8 survives a reading and a
writing, but for NULs at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.xsclient import UNWATCH, Client, Reader, Transaction, apply, domain_path, octets_of, set_watch, transact

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

#: Where the daemon listens, if XENSTORED_PATH does not say (the second is the older name).
SOCKETS: Final = ("/run/xenstored/socket", "/var/run/xenstored/socket")

#: What to do where nobody listens there.
REMEDY: Final = "Xenstore is in Xen's dom0, for root, while xenstored runs; XENSTORED_PATH names another socket"

#: Seconds until a broken connection is tried again, at first and at most.
BACK_OFF: Final = (0.05, 0.5)

#: Seconds after which an operation is given up.
ANSWERS_WITHIN: Final = 30.0

#: Seconds for which `Xenstore.close` waits for a daemon that does not read.
PATIENCE: Final = 1.0


class Watch:
    """Somebody who is told when a path changes."""

    def __init__(self, path: str, callback: Callable[[str], object], stop: Callable[[], None]) -> None:
        """Made by `Xenstore.watch`."""
        self.path, self.callback, self._stop = path, callback, stop

    def stop(self) -> None:
        """End it: no call comes after this one. Again is harmless."""
        self._stop()


class Xenstore:
    """
    The Xenstore of this host.

    Operations are coroutines. They are done in the order in which they are begun, and fail with BackendError in the
    daemon's words, or, if there is no connection or it breaks meanwhile, with BackendLost; they do not wait for the
    next connection. One that is cancelled may have been done all the same. Watches outlive connections.

    Attributes:
        connected: whether there is a connection, as far as is known.
    """

    log = Logger()

    def __init__(self, reactor: Any, path: str | None = None) -> None:
        """Take the socket's *path*; without one, XENSTORED_PATH or the usual ones. Nothing is connected yet."""
        self._reactor = reactor
        self._path = path
        self.connected = False
        self._reader: Reader | None = None  # the worker's; dead if the connection has broken
        self._why = "Xenstore has not been started"
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._watches: dict[str, Watch] = {}
        self._tokens = 0
        self._lock = threading.Lock()
        self._changed: dict[tuple[str, str], None] = {}  # (token, path): what the reactor has not been told of
        self._backoff = backoffPolicy(*BACK_OFF, jitter=lambda: 0.0)
        self._failures = 0
        self._retry: Any = None
        self._closed = False

    # The connection.

    def start(self) -> None:
        """Begin to connect, and to connect again whenever it must. What is asked next waits for the first try."""
        self._worker = threading.Thread(target=self._work, name="Xenstore", daemon=True)
        self._worker.start()
        self._jobs.put(self._open)

    def close(self) -> Deferred[None]:
        """End the connection, the watches and the threads. What still waits fails."""
        self._closed, self.connected, self._why = True, False, "Xenstore has been closed"
        self._watches.clear()
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._worker is None or not self._worker.is_alive():
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._jobs.put(partial(self._end, ended))
        self._jobs.put(None)
        if self._reader is not None:
            self._reader.stop()
        return ended.addTimeout(PATIENCE, self._reactor, onTimeoutCancel=lambda *_: None)

    def _end(self, ended: Deferred[None]) -> None:
        """End the reader, in the worker's thread."""
        if self._reader is not None:
            self._reader.stop()
            self._reader.thread.join()
        self._reactor.callFromThread(ended.callback, None)

    def _work(self) -> None:
        """Do what is asked: the worker's thread."""
        while (job := self._jobs.get()) is not None:
            job()

    def _open(self) -> None:
        """Connect, in the worker's thread."""
        tried = []
        for path in self._sockets():
            try:
                reader = Reader(path, self._heard, self._ended)
            except OSError as error:
                tried.append(f"{path}: {error.strerror or error}")
            else:
                self._reader = reader
                # In this order, the reactor hears of the beginning before it hears of the end.
                self._reactor.callFromThread(self._opened, path)
                reader.thread.start()
                return
        self._reader, self._why = None, f"no connection to Xenstore ({'; '.join(tried)}): {REMEDY}"
        self._reactor.callFromThread(self._not_opened, self._why)

    def _sockets(self) -> tuple[str, ...]:
        path = self._path or os.environ.get("XENSTORED_PATH")
        return (path,) if path else SOCKETS

    def _opened(self, path: str) -> None:
        if self._closed:
            return
        self.connected, self._failures = True, 0
        self.log.info("Xenstore: connected to {path}", path=path)
        for token, watch in self._watches.items():
            self._set(token, watch)

    def _not_opened(self, reason: str) -> None:
        if not self._failures:
            self.log.error("{reason}", reason=reason)
        self._again()

    def _ended(self, reason: str) -> None:
        """Hear from the reader's thread that its connection has ended. The next one is made after this."""
        self._reactor.callFromThread(self._lost, reason)

    def _lost(self, reason: str) -> None:
        if not self._closed:
            self.connected = False
            self.log.error("Xenstore: {reason}; trying to connect again", reason=reason)
            self._again()

    def _again(self) -> None:
        """Try to connect after a while that grows with each failure."""
        if not self._closed:
            self._retry = self._reactor.callLater(self._backoff(self._failures), self._jobs.put, self._open)
            self._failures += 1

    # Operations.

    async def read(self, path: str) -> str | None:
        """Return a node's value; None where there is no such node."""
        return await self._ask(Transaction.read, path)

    async def write(self, path: str, value: str) -> None:
        """Give a node its value, making it and those above it if need be."""
        await self._ask(Transaction.write, path, value)

    async def remove(self, path: str) -> None:
        """Remove a node and all below it. A missing one is no error."""
        await self._ask(Transaction.remove, path)

    async def get_permissions(self, path: str) -> list[str] | None:
        """Return who may do what with a node, as `Transaction.get_permissions` says."""
        return await self._ask(Transaction.get_permissions, path)

    async def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Say who may do what with a node. What is below stays as it is."""
        await self._ask(Transaction.set_permissions, path, permissions)

    async def domain_path(self, domid: int) -> str:
        """Return the path that a domain's relative paths begin from."""
        return await self._ask(domain_path, domid)

    @overload
    async def transaction(self, change: Mapping[str, str | None]) -> None: ...

    @overload
    async def transaction(self, change: Callable[[Transaction], T]) -> T: ...

    async def transaction(self, change: Callable[[Transaction], T] | Mapping[str, str | None]) -> T | None:
        """
        Do *change* as one step, seen by others as a whole or not at all, and return what it returns.

        Args:
            change: values by path, None to remove one; or a function, which is called in a thread, and again when
                others have changed what it has seen. Whatever it raises ends the transaction and changes nothing.

        Raises:
            BackendError: others were quicker `TRIES` times.
        """
        if isinstance(change, Mapping):
            return await self._ask(transact, lambda tree: apply(tree, change))
        return await self._ask(transact, change)

    async def list(self, path: str) -> list[str]:
        """Return the names of a node's children; a node that is missing has none."""
        return await self._ask(Transaction.list, path)

    def _ask(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Have the worker call *function* with the tree and *arguments*."""
        if self._worker is None or self._closed:
            raise BackendLost(self._why)
        result: Deferred[T] = Deferred()
        self._jobs.put(partial(self._do, result, function, arguments))
        # What comes too late is dropped.
        return result.addTimeout(ANSWERS_WITHIN, self._reactor, self._late)

    def _late(self, _: object, within: float) -> NoReturn:
        raise BackendLost(f"xenstored has not answered within {within:g} s")

    def _do(self, result: Deferred[T], function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        """Call *function*, in the worker's thread."""
        try:
            value = function(self._tree(), *arguments)
        except Exception:  # noqa: BLE001
            # Whatever it is, it belongs to who asked: a transaction's function may raise anything.
            self._reactor.callFromThread(result.errback, Failure())
        else:
            self._reactor.callFromThread(result.callback, value)

    def _tree(self) -> Transaction:
        if self._reader is None:
            raise BackendLost(self._why)
        return Transaction(Client(router=self._reader))

    # Watches.

    def watch(self, path: str, callback: Callable[[str], object]) -> Watch:
        """
        Have *callback* called, in the reactor's thread, with each path that changes: *path* or one below it.

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
        self._ask(set_watch, watch.path, token).addErrback(self._not_set, watch)

    def _not_set(self, failure: Failure, watch: Watch) -> None:
        if not failure.check(BackendLost):
            failure.trap(BackendError)
            self.log.error("Xenstore: {path} is not watched: {error}", path=watch.path, error=failure.getErrorMessage())

    def _stop(self, token: str) -> None:
        watch = self._watches.pop(token, None)
        if watch is not None and self.connected:
            # Without the connection, or without the watch, there is nothing to end.
            self._ask(set_watch, watch.path, token, UNWATCH).addErrback(lambda failure: failure.trap(BackendError))

    def _heard(self, token: str, path: str) -> None:
        """Hear of a change, in the reader's thread. Who writes without end cannot fill the reactor's queue."""
        with self._lock:
            wake = not self._changed
            self._changed[token, path] = None
        if wake:
            self._reactor.callFromThread(self._tell)

    def _tell(self) -> None:
        """Tell what has changed."""
        with self._lock:
            changed, self._changed = self._changed, {}
        for token, path in changed:
            watch = self._watches.get(token)
            if watch is not None:
                try:
                    watch.callback(path)
                except Exception:  # noqa: BLE001
                    # Others are waiting to be told, whatever this one does.
                    self.log.failure("Xenstore: telling of {path} failed", path=path)


