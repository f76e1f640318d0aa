"""
Keep the state in a git repository (`history`), in threads of the reactor's pool: one call after the other.

The repository is tidied now and then (`tidy`), while the store is in use.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import StoreError
from jitsu_tw.ijitsu import IStore
from jitsu_tw.store.history import History
from jitsu_tw.store.layout import STATISTICS
from jitsu_tw.store.lock import Lock
from jitsu_tw.store.requests import Requests
from jitsu_tw.store.tidy import Tidy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from jitsu_tw.settings import Retention
    from jitsu_tw.store.requests import Request

#: Octets of trees that commits of statistics write in a second, at most, but for the first `BURST` seconds' worth. With
#: 100,000 VMs a start is a tree of 6.3 MB, and a storm of starts would write 200 MB a second.
RATE: Final = 16e6
BURST: Final = 1.0

P = ParamSpec("P")
T = TypeVar("T")


@implementer(IStore)
class GitStore:
    """
    The branch `main` of the bare repository at a path, and the requests beside it.

    Attributes:
        path: of the repository.
        history: of `main`. Its methods block, as those of `requests` do: `run` calls them in a thread.
        requests: the branches that are to be merged.
    """

    log = Logger()
    lasting = True

    def __init__(
        self, path: Path, past: Retention | None = None, changed: Callable[[], object] = lambda: None
    ) -> None:
        """
        Prepare; `open` looks at the repository.

        Args:
            path: of the repository.
            past: how much of the statistics' past is kept.
            changed: called when a configuration was written that did not come from other nodes.
        """
        self.path = path
        self.history = History(path, past)
        self.requests = Requests(self.history)
        self._changed = changed
        self._tidy = Tidy(self.history)
        self._running = Lock(path)
        self._lock = DeferredLock()
        self._rests_until = 0.0  # on CLOCK_MONOTONIC; `BURST` seconds sooner it goes on
        self._ends = threading.Event()
        self._tidying: Deferred[None] | None = None

    def open(self) -> Mapping[str, str]:
        """
        Open the repository, or make one where nothing is, and return the tree.

        Raises:
            StoreError: it cannot be read, or another Jitsu runs with it.
        """
        return self.history.open(self._running.take)

    def write(self, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Commit *changes*, which the caller must not modify any more."""
        if message == STATISTICS:
            return self.run(self._commit_statistics, changes)
        return self.run(self.history.commit, changes, message).addCallback(self._report_change)

    def _commit_statistics(self, changes: Mapping[str, str | None]) -> None:
        """Commit statistics, after a rest if those before have written much."""
        self._ends.wait(self._rests_until - BURST - time.monotonic())
        trees = self.history.trees
        octets = trees.octets
        try:
            self.history.commit(changes, STATISTICS)
        finally:
            self._rests_until = max(self._rests_until, time.monotonic()) + (trees.octets - octets) / RATE

    def accept(self, request: Request, changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Merge *request* as *changes* (`Requests.accept`), which the caller must not modify any more."""
        return self.run(self.requests.accept, request, changes, message).addCallback(self._report_change)

    def _report_change(self, result: None) -> None:
        self._changed()
        return result

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function*, which blocks, in a thread; one call at a time, in their order.

        A caller that cancels the result does not stop the call: the next call begins when the thread has ended.
        """
        done: Deferred[T] = Deferred()
        called: Deferred[T] = self._lock.run(lambda: deferToThread(function, *args, **kwargs))
        called.addBoth(self._wrote).chainDeferred(done)
        return done

    def _wrote(self, result: Any) -> Any:
        if self._tidying is None and self._tidy.is_due:
            tidying = self._tidy_up()
            self._tidying = None if tidying.called else tidying
        return result

    @deferred
    async def _tidy_up(self) -> None:
        try:
            await deferToThread(self._tidy.pack)
            await self._lock.run(deferToThread, self._tidy.drop)
            await deferToThread(self._tidy.prune)
        except (StoreError, OSError) as error:
            self.log.error("the repository of the state is not packed, and grows: {error}", error=str(error))
        finally:
            self._tidying = None

    @deferred
    async def close(self) -> None:
        """Wait until all writing has ended, and release the lock."""
        self._tidy.stop()
        self._ends.set()
        await self._lock.run(lambda: None)
        if self._tidying is not None:
            await self._tidying
        self._running.release()
