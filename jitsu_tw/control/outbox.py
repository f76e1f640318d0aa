"""
Send JSON documents to an HTTP server, one after the other, without keeping anything waiting for it.

A document that the server does not take is sent again, a few times; while the server fails, each is tried once. What
does not fit into the queue is dropped, and the log says so once. Redirects are not followed, and of an answer no more
is read than a header has. The log names servers without the rest of the URL, which may be a secret.
"""

from __future__ import annotations

import json
from collections import deque
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool
from twisted.web.http_headers import Headers

from jitsu_tw import __version__
from jitsu_tw.bounded_web import ANSWERS_WITHIN, BoundedEndpoints, Unread
from jitsu_tw.coroutines import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.defer import Deferred

#: The most documents that wait for one server: those of some minutes. One has a few hundred octets.
MOST_WAITING: Final = 256

#: Seconds between a try and the next one.
PAUSES: Final = (1.0, 5.0, 25.0)

#: Refusals that are not for ever: the server wants to be asked again later.
AGAIN: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class NotTakenError(Exception):
    """The server has answered, and not taken the document; the message is the answer's status."""

    def __init__(self, status: int) -> None:
        """Store the *status*."""
        super().__init__(f"status {status}")
        self.is_final = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in AGAIN


class Outbox:
    """The documents for one URL."""

    log = Logger()

    def __init__(
        self,
        url: str,
        reactor: Any,
        sign: Callable[[bytes], Mapping[str, str]] = lambda _: {},
        agent: Any = None,
    ) -> None:
        """
        Send nothing yet.

        Args:
            url: where each document is posted to.
            reactor: connects, and calls later.
            sign: returns further headers of a document.
            agent: `IAgent`; None: one that makes a connection for each document.
        """
        self._url, self._reactor, self._sign = url, reactor, sign
        pool = HTTPConnectionPool(reactor, persistent=False)
        self._agent = agent or Agent.usingEndpointFactory(reactor, BoundedEndpoints(reactor), pool)
        self._server = urlsplit(url)._replace(path="", query="").geturl()
        self._waiting: deque[bytes] = deque()
        self._sending: Deferred[None] | None = None
        self._fails = self._is_stopped = False

    def put(self, document: Mapping[str, Any]) -> None:
        """Send *document* when those before it have been sent."""
        if self._is_stopped:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._complain("too many wait to be sent")
            return
        self._waiting.append(json.dumps(document).encode())
        if self._sending is None:
            self._sending = spawn(self.log, self._send(), ignore=(CancelledError,))
            self._sending.addCallback(self._sent)

    def stop(self) -> None:
        """Send nothing more."""
        self._is_stopped = True
        if self._sending is not None:
            self._sending.cancel()

    def _sent(self, _: object) -> None:
        self._sending = None

    async def _send(self) -> None:
        await deferLater(self._reactor, 0)  # whatever the document is about goes on first
        while self._waiting:
            await self._deliver(self._waiting.popleft())

    async def _deliver(self, document: bytes) -> None:
        """Send a document, again after each of `PAUSES` until the server takes it; give it up in the end."""
        for pause in (*PAUSES, None):
            try:
                await self._post(document)
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 -- connections break in many ways, each with its exception
                if pause is None or self._fails or (isinstance(error, NotTakenError) and error.is_final):
                    self._complain(_words(error))
                    return
                await deferLater(self._reactor, pause)
            else:
                if self._fails:
                    self._fails = False
                    self.log.info("{url} takes what it is sent again", url=self._server)
                return

    async def _post(self, document: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": f"Jitsu/{__version__}", **self._sign(document)}
        response = await self._agent.request(
            b"POST", self._url.encode(), Headers({name: [value] for name, value in headers.items()}),
            FileBodyProducer(BytesIO(document)),
        ).addTimeout(ANSWERS_WITHIN, self._reactor)  # fmt: skip
        response.deliverBody(Unread())
        if not HTTPStatus.OK <= response.code < HTTPStatus.MULTIPLE_CHOICES:
            raise NotTakenError(response.code)

    def _complain(self, reason: str) -> None:
        """Log, once until the server takes a document again, that documents for it are dropped."""
        if not self._fails:
            self._fails = True
            self.log.warn("{url} does not take what it is sent, which is dropped: {why}", url=self._server, why=reason)


def _words(error: Any) -> str:
    """Return why a document was not taken, for the log."""
    reasons = getattr(error, "reasons", None)  # of the Agent's errors
    return _words(reasons[0].value) if reasons else str(error) or type(error).__name__
