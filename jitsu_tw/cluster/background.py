"""Steps of a cluster that no caller waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import ClusterUnavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from twisted.internet.defer import Deferred

_log: Final = Logger()


def begin(step: Coroutine[Deferred[Any], Any, Any] | Deferred[Any]) -> None:
    """Run *step*; if the other nodes cannot be reached, what it was for is done when this node is connected again."""
    spawn(_log, step, ignore=(ClusterUnavailable,))
