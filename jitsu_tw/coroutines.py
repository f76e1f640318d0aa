"""Between coroutines and Deferreds: `async def` inside, a Deferred at each interface."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from twisted.logger import Logger
    from twisted.python.failure import Failure

P = ParamSpec("P")
T = TypeVar("T")


def deferred(function: Callable[P, Coroutine[Deferred[Any], Any, T]]) -> Callable[P, Deferred[T]]:
    """Make a coroutine function, or such a method, begin at once when it is called, and return a Deferred."""

    @wraps(function)
    def begin(*args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return begin


def spawn(
    log: Logger,
    work: Coroutine[Deferred[Any], Any, T] | Deferred[T],
    name: object = None,
    *,
    ignore: tuple[type[Exception], ...] = (),
) -> Deferred[T | None]:
    """
    Run *work* while the caller goes on, and log the exception that it ends with as a fault of Jitsu.

    Args:
        log: of the caller.
        work: a coroutine, or the Deferred of work that has begun.
        name: what the work is about, such as a VM's name; for the log.
        ignore: exceptions that are no faults, and are not logged.

    Returns:
        A Deferred that never fails: it fires with the result of *work*, or with None where that failed.
    """
    begun = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)

    def failed(failure: Failure) -> None:
        if not failure.check(*ignore):
            report(log, name, failure)

    return begun.addErrback(failed)


def report(log: Logger, name: object = None, failure: Failure | None = None) -> None:
    """
    Log an unexpected exception: a fault of Jitsu, with its traceback.

    Args:
        log: of the caller.
        name: what the failed work is about; for the log.
        failure: the exception; without one, the exception that is being handled.
    """
    if name is None:
        log.failure("unexpected, please report", failure)
    else:
        log.failure("{name}: unexpected, please report", failure, name=name)
