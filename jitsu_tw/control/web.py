"""
What all pages of the control endpoint share: JSON, who may ask, and what a browser is told to refuse.

It listens on loopback, where every user of the machine and every page in their browsers can reach it. So a browser's
request is taken only if it comes from a page of ours: its Origin and its Host must name one place, and by address. With
a token, which such a page does not have, the place may have a name too.
"""

from __future__ import annotations

import base64
import binascii
import json
from hmac import compare_digest
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.logger import Logger
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.server import Request as WebRequest
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from jitsu_tw.vm.fleet import Fleet

T = TypeVar("T")

#: Octets of a request's body; none of ours has one.
LONGEST_BODY: Final = 65536

#: Values of a long list that are written in one go: a millisecond or two of work.
SLICE: Final = 25

NOTHING: Final = "there is nothing here"

#: What pages may load, all from here, and what they may not do (CSP 3, 6).
OURS: Final = "; ".join(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect"))
NOWHERE: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

#: What is said with every answer. Pages load nothing from elsewhere, and are shown in nobody's frame.
HEADERS: Final = (
    ("Content-Security-Policy", f"default-src 'none'; {OURS}; {NOWHERE}"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
    ("Server", "Jitsu"),
)


class Request(WebRequest):
    """A request without a long body."""

    _length = 0

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """Take a piece of the body; whoever sends too much is cut off."""
        self._length += len(data)
        if self._length > LONGEST_BODY:
            transport: Any = self.channel.transport
            transport.abortConnection()
        else:
            super().handleContentChunk(data)


class Guarded(Site):
    """A site that looks at each request before any page does. Its access log would tell nothing that is not logged."""

    noisy = False

    def __init__(self, top: Resource, token: str | None, reactor: Any = None) -> None:
        """Show *top* to who knows *token*; None: to everybody who gets here."""
        super().__init__(top, requestFactory=Request, reactor=reactor)
        self._token = None if token is None else token.encode()

    def getResourceFor(self, request: Request) -> Resource:  # noqa: N802
        """Return the page that was asked for, or the one that says why not."""
        for name, value in HEADERS:
            request.setHeader(name, value)
        if _is_foreign(request, by_name=self._token is not None):
            return Refusal(HTTPStatus.FORBIDDEN, "a page from elsewhere may not ask here")
        if self._token is not None and not compare_digest(_password(request), self._token):
            request.setHeader("WWW-Authenticate", 'Basic realm="Jitsu", charset="UTF-8"')
            return Refusal(HTTPStatus.UNAUTHORIZED, "show the token: as a bearer token, or as any user's password")
        page: Resource = super().getResourceFor(request)
        return page

    def log(self, request: Any) -> None:
        """Say nothing."""


def _is_foreign(request: Request, *, by_name: bool) -> bool:
    host = (request.getHeader("host") or "").strip()
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"
        by_address = by_name or name == "localhost" or bool(ip_address(name))
    except ValueError:
        by_address = False
    origin = request.getHeader("origin")
    return not by_address or (origin is not None and urlsplit(origin).netloc != host)


def _password(request: Request) -> bytes:
    """Return the token that a request shows, as Bearer (RFC 6750) or as the password of Basic (RFC 7617)."""
    scheme, _, value = (request.getHeader("authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            pass
    return b""


def reply(request: WebRequest, value: object, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    """Return *value* as JSON."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    return json.dumps(value).encode() + b"\n"


class Page(Resource):
    """What all pages share: every answer is JSON, also one that says no."""

    def getChild(self, path: bytes, request: WebRequest) -> Resource:  # noqa: ARG002, N802
        """Return the page below this one: none, but for itself with a slash."""
        return self if not path else Refusal(HTTPStatus.NOT_FOUND, NOTHING)

    def render(self, request: WebRequest) -> Any:
        """Answer."""
        try:
            return super().render(request)
        except UnsupportedMethod as error:
            allowed = b", ".join(sorted(error.allowedMethods))
            if allowed == b"HEAD":  # which `Resource` has by itself
                return reply(request, {"error": NOTHING}, HTTPStatus.NOT_FOUND)
            request.setHeader(b"allow", allowed)
            return reply(request, {"error": f"this takes {allowed.decode()}"}, HTTPStatus.METHOD_NOT_ALLOWED)


class Refusal(Page):
    """Why not."""

    isLeaf = True  # noqa: N815

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        """Say *reason*."""
        super().__init__()
        self._status, self._reason = status, reason

    def render(self, request: WebRequest) -> bytes:
        """Say so."""
        return reply(request, {"error": self._reason}, self._status)


class FleetPage(Page):
    """A page about a fleet."""

    log = Logger()

    def __init__(self, fleet: Fleet) -> None:
        """Show *fleet*."""
        super().__init__()
        self._fleet = fleet

    def later(self, request: WebRequest, answer: Coroutine[Any, Any, bytes]) -> int:
        """Answer with the octets that *answer* returns, unless the client is gone by then."""
        gone = request.notifyFinish()
        gone.addErrback(lambda _: None)
        found = Deferred.fromCoroutine(answer).addErrback(self._fault, request)
        found.addCallback(lambda octets: gone.called or (request.write(octets), request.finish()))
        return NOT_DONE_YET

    def _fault(self, failure: Any, request: WebRequest) -> bytes:
        """Say that we have a fault. Wide: the client does not wait for ever because of it."""
        self.log.failure("unexpected, please report", failure)
        return reply(request, {"error": "a fault of Jitsu's; its log has more"}, HTTPStatus.INTERNAL_SERVER_ERROR)


@implementer(IPullProducer)
class Rows(Generic[T]):
    """A long JSON array, written slice by slice, as fast as the client reads: DNS is answered between two slices."""

    def __init__(self, request: WebRequest, items: Sequence[T], show: Callable[[T], object]) -> None:
        """Answer *request* with what *show* makes of each of *items*."""
        self._request = request
        self._pieces = self._slices(items, show)

    @classmethod
    def answer(cls, request: WebRequest, items: Sequence[T], show: Callable[[T], object]) -> Any:
        """Write it, at once if it is short."""
        if len(items) <= SLICE:
            return reply(request, [show(item) for item in items])
        request.setHeader(b"content-type", b"application/json")
        request.registerProducer(cls(request, items, show), False)  # noqa: FBT003
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


def number(request: WebRequest, name: str, default: int, most: int) -> int:
    """
    Return a number of the query string.

    Raises:
        ValueError: it is none, or more than *most*.
    """
    text = request.args.get(name.encode(), [str(default).encode()])[0]
    if not (text.isdigit() and len(text) < 10 and int(text) <= most):
        message = f"{name} is a number from 0 to {most}"
        raise ValueError(message)
    return int(text)
