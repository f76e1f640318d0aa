"""
From a request to the function that answers it, by a table of (method, path, function).

A function gets the request, and the thing that each ``{kind}`` of its path names. It returns a JSON value, or octets
where it has set their type itself; or `NOT_DONE_YET`, and writes to the request. It may be a coroutine. What it raises
is answered in JSON, too.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IPullProducer
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from jitsu_tw.coroutines import report
from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from twisted.python.failure import Failure
    from twisted.web.server import Request

    Route = tuple[str, str, Callable[..., object]]

T = TypeVar("T")

#: Values of a long list that are written at once: a millisecond or two of work.
SLICE: Final = 25

NOTHING: Final = "there is nothing here"


class RefusalError(Exception):
    """A request that is not carried out; the message is the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        """Refuse with *status*."""
        super().__init__(reason)
        self.status = status


class Router(Resource):
    """Answers each request by the function of its route."""

    isLeaf = True  # noqa: N815
    log = Logger()

    def __init__(
        self,
        routes: Iterable[Route],
        kinds: Mapping[str, Callable[[str], object]],
        guard: Callable[[Any], None],
    ) -> None:
        """
        Serve *routes*.

        Args:
            routes: rows of method, path and function.
            kinds: for each kind that paths name, as ``{vm}``, what returns the thing of a name, or raises RefusalError.
            guard: raises RefusalError for a request that no function may see.
        """
        super().__init__()
        self._pages: dict[tuple[str, ...], dict[str, Callable[..., object]]] = {}
        for method, path, function in routes:
            self._pages.setdefault(tuple(filter(None, path.split("/"))), {})[method] = function
        self._kinds, self._guard = kinds, guard

    def render(self, request: Request) -> Any:
        """Answer *request*, now or later."""
        found = maybeDeferred(self._answer, request)
        found.addCallback(lambda value: value if isinstance(value, bytes | int) else reply(request, value))
        found.addErrback(self._failed, request)
        if found.called and not found.paused:
            return found.result
        gone = request.notifyFinish()
        gone.addErrback(lambda _: None)
        found.addCallback(
            lambda octets: gone.called or octets == NOT_DONE_YET or (request.write(octets), request.finish())
        )
        return NOT_DONE_YET

    def _answer(self, request: Request) -> Any:
        """
        Call the function of the route.

        Raises:
            RefusalError: there is none, or the request is refused.
        """
        self._guard(request)
        steps = [step.decode(errors="replace") for step in request.postpath or () if step]
        for pattern, functions in self._pages.items():
            pairs = list(zip(pattern, steps, strict=False))
            if len(pattern) == len(steps) and all(wanted == step or wanted in self._kinds for wanted, step in pairs):
                named = [self._kinds[wanted](step) for wanted, step in pairs if wanted in self._kinds]
                return _function(request, functions)(request, *named)
        raise RefusalError(HTTPStatus.NOT_FOUND, NOTHING)

    def _failed(self, failure: Failure, request: Request) -> bytes:
        """Answer with the reason. An unexpected exception is a fault of Jitsu, and answered, too."""
        error = failure.value
        if isinstance(error, RefusalError):
            return reply(request, {"error": str(error)}, error.status)
        if isinstance(error, JitsuError):
            return reply(request, {"error": str(error)}, HTTPStatus.CONFLICT)
        report(self.log, failure=failure)
        return reply(request, {"error": "a fault of Jitsu's; its log has more"}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _function(request: Request, functions: Mapping[str, Callable[..., object]]) -> Callable[..., object]:
    """
    Return the function for the method of *request*.

    Raises:
        RefusalError: there is none.
    """
    method = request.method.decode("latin-1")
    if method == "HEAD":
        method = "GET"
    if method not in functions:
        allowed = ", ".join([*functions, "HEAD"] if "GET" in functions else functions)
        request.setHeader(b"allow", allowed.encode())
        raise RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, f"this takes {allowed}")
    return functions[method]


def reply(request: Request, value: object, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    """Return *value* as JSON."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    return json.dumps(value).encode() + b"\n"


def header(request: Request, name: bytes) -> str:
    """Return a header's last value, each octet as a character; "" if there is none."""
    values = request.requestHeaders.getRawHeaders(name)
    return "" if values is None else values[-1].decode("latin-1")


def argument(request: Request, name: str) -> str | None:
    """Return an argument of the query string; None if it has none of that name."""
    values = request.args.get(name.encode())
    return None if values is None else values[0].decode(errors="replace")


def arguments(request: Request, name: str, most: int) -> list[str] | None:
    """
    Return all arguments of the query string of that name, each once; None if there is none.

    Raises:
        RefusalError: there are more than *most*.
    """
    values = request.args.get(name.encode())
    if values is not None and len(values) > most:
        raise RefusalError(HTTPStatus.BAD_REQUEST, f"{name} may be there {most} times at most")
    return None if values is None else list(dict.fromkeys(value.decode(errors="replace") for value in values))


def number(request: Request, name: str, default: int, most: int) -> int:
    """
    Return a number of the query string.

    Raises:
        RefusalError: it is none, or more than *most*.
    """
    text = argument(request, name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise RefusalError(HTTPStatus.BAD_REQUEST, f"{name} is a number from 0 to {most}")
    return int(text)


@implementer(IPullProducer)
class Rows(Generic[T]):
    """A long JSON array, written slice by slice, as fast as the client reads: DNS is answered between two slices."""

    def __init__(self, request: Request, items: Sequence[T], show: Callable[[T], object]) -> None:
        """Answer *request* with what *show* makes of each of *items*."""
        self._request = request
        self._pieces = self._slices(items, show)

    @classmethod
    def answer(cls, request: Request, items: Sequence[T], show: Callable[[T], object]) -> Any:
        """Return the array if it is short; else write it."""
        if len(items) <= SLICE:
            return [show(item) for item in items]
        request.setHeader(b"content-type", b"application/json")
        request.registerProducer(cls(request, items, show), streaming=False)
        return NOT_DONE_YET

    @staticmethod
    def _slices(items: Sequence[T], show: Callable[[T], object]) -> Iterator[bytes]:
        for begin in range(0, len(items), SLICE):
            rows = ",\n".join(json.dumps(show(item)) for item in items[begin : begin + SLICE])
            yield (",\n" if begin else "[").encode() + rows.encode()
        yield b"]\n"

    def resumeProducing(self) -> None:  # noqa: N802
        """Write one slice more, or end."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._request.write(piece)
        else:
            self._request.unregisterProducer()
            self._request.finish()

    def stopProducing(self) -> None:  # noqa: N802
        """Write no more: the client is gone."""
        self._pieces = iter(())
