"""
The control endpoint's connections and requests: which clients are served, how many, and what a browser must refuse.

A client that may connect to the UNIX socket may do everything. On TCP, every user of the machine can reach the
endpoint: without a token it only shows. Every web page in their browsers can reach it as well. So a browser's request
is taken only if it comes from a page of this endpoint: its Origin and its Host must be the same, and an address. With a
token, which a foreign page does not have, they may be a name, too.

A client has a share of the connections, a time to send its whole request in, and a time to read the answer in.
"""

from __future__ import annotations

import base64
import binascii
import json
from hmac import compare_digest
from http import HTTPStatus
from io import BytesIO
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import connectionDone
from twisted.web.http import HTTPChannel
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site

from jitsu_tw.control.routes import RefusalError, Router, header
from jitsu_tw.dns.connections import Connections
from jitsu_tw.networks import of_peer
from jitsu_tw.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from twisted.python.failure import Failure

    from jitsu_tw.control.routes import Route

#: The most octets of a request's body, which is dropped: no request needs one.
LONGEST_BODY: Final = 65536

#: The most connections, of all clients, and of one client network or by UNIX sockets. DNS needs the other descriptors
#: of the process.
MOST_CONNECTIONS: Final = 200
MOST_FROM_ONE: Final = 100

#: In seconds: the next request must have come whole, and a client must read what it is sent, within this time.
ASK_WITHIN: Final = 30.0
READ_WITHIN: Final = 60.0

SHOWS_ONLY: Final = (
    "by TCP without a control_token, Jitsu only shows: to change something, connect to its UNIX socket, or name a file "
    "with a secret by control_token"
)

UNPROVEN: Final = "this place wants the control_token: jitsuctl --token-file FILE, or the password of any user"

#: What pages may load, all from here, and what they may not do (CSP 3, 6).
OURS: Final = "; ".join(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect"))
NOWHERE: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

#: The headers of every answer. Pages load nothing from elsewhere, and no page has them in a frame.
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
        gone = self.site.connections.add(self, self.site.share_of(self.transport.getPeer()))
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
    """A request, whose body is dropped."""

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
        """Answer when there is time, unless the request was refused: one client may send a thousand at once."""
        site = self.channel.site
        whose = site.share_of(self.getClientAddress())
        if not self._refused and self.channel.is_read(self) and site.slices.has_time(self, whose):
            site.slices.begin()
            super().process()

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Forget a request that waits: the client is gone."""
        self.channel.site.slices.drop(self)
        super().connectionLost(reason)


class Guarded(Site):
    """
    A site that looks at each request before it is answered. It has no access log: what requests change is logged.

    Attributes:
        connections: all connections, within their limits.
        slices: shares the time in which requests are answered.
    """

    noisy = False
    protocol: Any = Channel

    def __init__(
        self,
        routes: Iterable[Route],
        kinds: Mapping[str, Callable[[str], object]],
        token: str | None,
        reactor: Any = None,
    ) -> None:
        """Serve *routes* (`Router`) to clients that know *token*; None: to all that can connect."""
        super().__init__(Router(routes, kinds, self.check), requestFactory=Request, reactor=reactor, timeout=ASK_WITHIN)
        self.configure(token)
        self.connections: Connections[Channel] = Connections(MOST_CONNECTIONS, MOST_FROM_ONE)
        self.slices: Slices[Request] = Slices(reactor, Request.process)

    def configure(self, token: str | None) -> None:
        """Serve clients that know *token* from now on; None: all that can connect."""
        self._token = None if token is None else token.encode()

    def share_of(self, peer: object) -> bytes:
        """Return whose share of the connections and of the time *peer*, an address of Twisted's, uses."""
        return of_peer(peer)

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """Return what may be spoken over TLS, for ALPN."""
        return [b"http/1.1"]

    def check(self, request: Request) -> None:
        """
        Set the headers of every answer, and look at who sends *request*.

        Raises:
            RefusalError: it is not for this client, or not from a page of this endpoint.
        """
        self.check_page(request, by_name=self._token is not None)
        if self._token is not None and not compare_digest(_password(request), self._token):
            request.setHeader("WWW-Authenticate", 'Basic realm="Jitsu", charset="UTF-8"')
            raise RefusalError(HTTPStatus.UNAUTHORIZED, UNPROVEN)
        if request.method == b"POST" and self.shows_only(request):
            raise RefusalError(HTTPStatus.FORBIDDEN, SHOWS_ONLY)

    def shows_only(self, request: WebRequest) -> bool:
        """Return whether the client that sends *request* may change nothing."""
        return self._token is None and not isinstance(request.getClientAddress(), UNIXAddress)

    @staticmethod
    def check_page(request: Request, *, by_name: bool) -> None:
        """
        Set the headers of every answer; *by_name*: this host may be asked by a name.

        Raises:
            RefusalError: a browser sends *request* for a page from elsewhere.
        """
        for name, value in HEADERS:
            request.setHeader(name, value)
        if _is_foreign(request, by_name=by_name):
            raise RefusalError(HTTPStatus.FORBIDDEN, "a page from elsewhere may not ask here")

    def log(self, request: Any) -> None:
        """Log nothing."""


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
