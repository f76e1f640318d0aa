"""
The state in a git repository (`history`), off the reactor's thread: one call after the other.

It is tidied now and then (`tidy`), beside what is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.errors import StoreError
from jitsu_tw.ijitsu import IStore
from jitsu_tw.store.history import History
from jitsu_tw.store.layout import STATISTICS
from jitsu_tw.store.lock import Lock
from jitsu_tw.store.requests import Request, Requests
from jitsu_tw.store.sync_branch import Shared
from jitsu_tw.store.tidy import Tidy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from jitsu_tw.settings import Retention
    from jitsu_tw.store.merge import Settled
    from jitsu_tw.store.sync_branch import News


@implementer(IStore)
class GitStore:
    """
    The branch `main` of the bare repository at a path, and the requests beside it.

    Attributes:
        path: of the repository.
        changed: called when a configuration was written that did not come from others.
    """

    log = Logger()
    lasting = True

    def __init__(self, path: Path, past: Retention | None = None) -> None:
        """Keep the state at *path*, and *past* of its statistics; `open` looks at it."""
        self.path = path
        self.changed: Callable[[], None] = lambda: None
        self._history = History(path, past)
        self._requests = Requests(self._history)
        self._tidy = Tidy(self._history)
        self._running = Lock(path)
        self._lock = DeferredLock()
        self._tidying: Deferred[None] | None = None

    def open(self) -> Mapping[str, str]:
        """
        Open the repository, or make one where nothing is, and return the tree.

        Raises:
            StoreError: it cannot be read, or another Jitsu runs with it.
        """
        return self._history.open(self._running.take)

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Commit *changes*, which the caller leaves as they are."""
        done = self._run(self._history.commit, changes, message)
        return done if message == STATISTICS else done.addCallback(self._tell)

    def _tell(self, result: None) -> None:
        self.changed()
        return result

    def waiting(self) -> list[str]:
        """Return the names of the branches that ask to be merged; this is quick."""
        return self._requests.waiting()

    def request(self, name: str) -> Deferred[Request | None]:
        """Return what the branch *name* asks for (`Requests.read`)."""
        return self._run(self._requests.read, name)

    def accept(self, request: Request, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Merge *request* as *changes* (`Requests.accept`)."""
        return self._run(self._requests.accept, request, dict(changes), message).addCallback(self._tell)

    def reject(self, request: Request, reason: str) -> Deferred[None]:
        """Put *request* aside, with the reason (`Requests.reject`)."""
        return self._run(self._requests.reject, request, reason)

    def end_requests(self) -> None:
        """Give up what is being read of a request, however long it is."""
        self._requests.ended = True

    def share(self, node: str) -> Sharer:
        """Return what shares the configuration with others, who know us as *node*."""
        return Sharer(Shared(self._history, self._requests, node), self._run)

    def _run(self, function: Any, *arguments: Any) -> Deferred[Any]:
        """Call *function* in a thread, when its turn comes."""
        done: Deferred[Any] = self._lock.run(deferToThread, function, *arguments)
        return done.addBoth(self._wrote)

    def _wrote(self, result: Any) -> Any:
        if self._tidying is None and self._tidy.is_due:
            tidying = Deferred.fromCoroutine(self._tidy_up()).addErrback(self._untidy)
            if not tidying.called:
                self._tidying = tidying
                tidying.addBoth(self._tidied)
        return result

    async def _tidy_up(self) -> None:
        await deferToThread(self._tidy.pack)
        await self._lock.run(deferToThread, self._tidy.drop)
        await deferToThread(self._tidy.prune)

    def _untidy(self, failure: Any) -> None:
        failure.trap(StoreError, OSError)
        self.log.error("the state is not tidied: {error}", error=failure.getErrorMessage())

    def _tidied(self, _: object) -> None:
        self._tidying = None

    def close(self) -> Deferred[None]:
        """Wait until what is being written is written."""
        self._tidy.stop()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await self._lock.run(lambda: None)
        if self._tidying is not None:
            await self._tidying
        self._running.release()


class Sharer:
    """`Shared`, each call of it in its turn with those of the store."""

    def __init__(self, shared: Shared, run: Callable[..., Deferred[Any]]) -> None:
        """Call *shared* by *run*."""
        self._shared, self._run = shared, run

    def ready(self) -> Deferred[None]:
        """Prepare for a fetch (`Shared.ready`)."""
        return self._run(self._shared.ready)

    def none(self) -> Deferred[None]:
        """Hear that there is no shared branch (`Shared.none`)."""
        return self._run(self._shared.none)

    def news(self, again: Iterable[str]) -> Deferred[News]:
        """Return how the shared branch and `main` differ (`Shared.news`)."""
        return self._run(self._shared.news, tuple(again))

    def take(self, news: News, settled: Settled, message: str) -> Deferred[Mapping[str, str | None] | None]:
        """Let `main` say what was settled (`Shared.take`)."""
        return self._run(self._shared.take, news, settled, message)

    def offer(self) -> Deferred[Mapping[str, str]]:
        """Return what is to be pushed (`Shared.offer`)."""
        return self._run(self._shared.offer)

    def shared(self, pushed: Iterable[str]) -> Deferred[str]:
        """Hear what was pushed (`Shared.shared`)."""
        return self._run(self._shared.shared, tuple(pushed))
