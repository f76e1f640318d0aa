"""
What all pages of the control endpoint share: JSON, who may ask, and what a browser is told to refuse.

A client that may connect to its UNIX socket may do everything. On TCP, every user of the machine can reach it: without
a token it only shows. Every page in their browsers can reach it as well. So a browser's request is taken only if it
comes from a page of ours: its Origin and its Host must name one place, and by address. With a token, which such a page
does not have, the place may have a name too.

A client has a share of the connections, a time to send its whole request in, and a time to take the answer in.
"""

from __future__ import annotations

import base64
import binascii
import json
from hmac import compare_digest
from http import HTTPStatus
from io import BytesIO
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.server import Request as WebRequest
from zope.interface import implementer

from jitsu_tw.dns.connections import Connections
from jitsu_tw.networks import of_peer
from jitsu_tw.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from twisted.python.failure import Failure

    from jitsu_tw.vm.fleet import Fleet

T = TypeVar("T")

#: Octets of a request's body; none of ours has one.
LONGEST_BODY: Final = 65536

#: How many connections there may be, and how many of one client network, or by UNIX sockets. DNS needs the other
#: descriptors of the process.
MOST_CONNECTIONS: Final = 200
MOST_FROM_ONE: Final = 100

#: Seconds in which the next request must come, all of it; and in which a client must read what it is sent.
ASK_WITHIN: Final = 30.0
READ_WITHIN: Final = 60.0

#: Values of a long list that are written in one go: a millisecond or two of work.
SLICE: Final = 25

NOTHING: Final = "there is nothing here"

SHOWS_ONLY: Final = (
    "by TCP without a control_token, Jitsu only shows: to change something, connect to its UNIX socket, or name a file "
    "with a secret by control_token"
)

UNPROVEN: Final = "this place wants the control_token: jitsuctl --token-file FILE, or the password of any user"

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


class Channel(HTTPChannel):
    """One connection, of a client that may be slow on purpose."""

    site: Guarded
    transport: Any
    _unread: Any = None
    _waits: Request | None = None

    def connectionMade(self) -> None:  # noqa: N802
        """Begin; if there are too many connections, another one gives way."""
        gone = self.site.connections.add(self, of_peer(self.transport.getPeer()))
        if gone is not None:
            gone.cut()
        super().connectionMade()

    def allContentReceived(self) -> None:  # noqa: N802
        """Answer a request that is whole."""
        self.site.connections.touch(self, waits=True)
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:  # noqa: N802
        """Wait for the next request."""
        self.site.connections.touch(self, waits=False)
        super().requestDone(request)

    def cut(self) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    timeoutConnection = cut  # noqa: N815

    def resetTimeout(self) -> None:  # noqa: N802
        """Do nothing: octets that trickle in give no more time, only a request that is whole does."""

    def headerReceived(self, line: bytes) -> bool:  # noqa: N802
        """Take a header; refuse a length of more digits than Python reads as a number."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self.refuse(HTTPStatus.BAD_REQUEST, "a header has a number that is none")
            return False

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer a request that has not come whole, and close the connection."""
        body = json.dumps({"error": reason}) + "\n"
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        self.loseConnection()

    def pauseProducing(self) -> None:  # noqa: N802
        """Wait for a client that does not read, but not for ever."""
        super().pauseProducing()
        self._unread = self._unread or self.callLater(READ_WITHIN, self.cut)

    def resumeProducing(self) -> None:  # noqa: N802
        """Go on, also with a request that waits until the client has read what it asked for before."""
        self._read()
        super().resumeProducing()
        request, self._waits = self._waits, None
        if request is not None:
            request.process()

    def is_read(self, request: Request) -> bool:
        """Return whether the client reads what it is sent; if not, *request* is processed when it does."""
        if self._unread is None:
            return True
        self._waits = request
        return False

    def _read(self) -> None:
        if self._unread is not None and self._unread.active():
            self._unread.cancel()
        self._unread = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """End."""
        self._read()
        self._waits = None
        self.site.connections.remove(self)
        super().connectionLost(reason)


class Request(WebRequest):
    """A request, whose body is not kept: none of ours has one."""

    channel: Channel
    _octets = 0
    _refused = False

    def gotLength(self, length: int | None) -> None:  # noqa: N802
        """Refuse a body that is too long before it comes."""
        self.content = BytesIO()
        self._limit(length or 0)

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """Drop a piece of the body."""
        self._octets += len(data)
        self._limit(self._octets)

    def _limit(self, octets: int) -> None:
        if octets > LONGEST_BODY and not self._refused:
            self._refused = True
            why = f"a request has a body of {LONGEST_BODY} octets at most"
            self.channel.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)

    def process(self) -> None:
        """Answer in its turn, unless the request was refused already: one client may send a thousand at once."""
        site, whose = self.channel.site, of_peer(self.getClientAddress())
        if not self._refused and self.channel.is_read(self) and site.slices.has_time(self, whose):
            site.slices.begin()
            super().process()

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Wait for no turn any more."""
        self.channel.site.slices.drop(self)
        super().connectionLost(reason)


class Guarded(Site):
    """
    A site that looks at each request before any page does. Its access log would tell nothing that is not logged.

    Attributes:
        connections: those that there are.
        slices: the time in which requests are answered.
    """

    noisy = False
    protocol: Any = Channel

    def __init__(self, top: Resource, token: str | None, reactor: Any = None) -> None:
        """Show *top* to clients that know *token*; None: to all that get here."""
        super().__init__(top, requestFactory=Request, reactor=reactor, timeout=ASK_WITHIN)
        self._token = None if token is None else token.encode()
        self.connections: Connections[Channel] = Connections(MOST_CONNECTIONS, MOST_FROM_ONE)
        self.slices: Slices[Request] = Slices(reactor, Request.process)

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """Return what may be spoken over TLS, for ALPN."""
        return [b"http/1.1"]

    def getResourceFor(self, request: Request) -> Resource:  # noqa: N802
        """Return the page that was asked for, or the one that says why not."""
        for name, value in HEADERS:
            request.setHeader(name, value)
        if _is_foreign(request, by_name=self._token is not None):
            return Refusal(HTTPStatus.FORBIDDEN, "a page from elsewhere may not ask here")
        if self._token is not None and not compare_digest(_password(request), self._token):
            request.setHeader("WWW-Authenticate", 'Basic realm="Jitsu", charset="UTF-8"')
            return Refusal(HTTPStatus.UNAUTHORIZED, UNPROVEN)
        shows_only = self._token is None and not isinstance(request.getClientAddress(), UNIXAddress)
        if shows_only and request.method == b"POST":
            return Refusal(HTTPStatus.FORBIDDEN, SHOWS_ONLY)
        page: Resource = super().getResourceFor(request)
        return page

    def log(self, request: Any) -> None:
        """Say nothing."""


def header(request: WebRequest, name: bytes) -> str:
    """Return a header's last value, each octet as a character; "" if there is none."""
    values = request.requestHeaders.getRawHeaders(name)
    return "" if values is None else values[-1].decode("latin-1")


def _is_foreign(request: Request, *, by_name: bool) -> bool:
    host, origin = header(request, b"host").strip(), header(request, b"origin")
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"
        return not (by_name or name == "localhost" or ip_address(name)) or (
            bool(origin) and urlsplit(origin).netloc != host
        )
    except ValueError:
        return True


def _password(request: Request) -> bytes:
    """Return the token that a request shows, as Bearer (RFC 6750) or as the password of Basic (RFC 7617)."""
    scheme, _, value = header(request, b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
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
        """Answer, if there is a method of that name here."""
        known = [name for name in ("GET", "POST") if hasattr(self, f"render_{name}")]
        allowed = ", ".join([*known, "HEAD"] if "GET" in known else known)
        if not known:
            return reply(request, {"error": NOTHING}, HTTPStatus.NOT_FOUND)
        if request.method.decode("latin-1") not in allowed.split(", "):
            request.setHeader(b"allow", allowed.encode())
            return reply(request, {"error": f"this takes {allowed}"}, HTTPStatus.METHOD_NOT_ALLOWED)
        return super().render(request)


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
