"""
Etcd's JSON gateway, by treq: calls and streams, at one of its members at a time. Leases and facts are not its matter.

A call is a POST to ``/v3/…`` with a JSON object (etcd's documentation, "gRPC gateway"). A stream's answer is one JSON
object a line for as long as the connection lasts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.client import Agent, HTTPConnectionPool

from jitsu_tw.cluster.coordinator.connections import Connections, words
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import ClusterUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jitsu_tw.settings import Cluster

#: Seconds that an answer may take, at most; and as a share of a lease's time.
PATIENCE: Final = 2.0
SHARE: Final = 1 / 3

#: What etcd says of a token that it does not know (any more): ErrInvalidAuthToken, ErrAuthOldRevision, ErrUserEmpty.
STALE: Final = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",
)

Headers = Mapping[bytes | str, bytes | str]
NO_HEADERS: Final[Headers] = {}

#: Has etcd end a watch whose member has lost its leader (etcd's clientv3.WithRequireLeader).
REQUIRE_LEADER: Final[Headers] = {"Grpc-Metadata-hasleader": "true"}

#: How many connections to a member are kept for the next calls.
AT_ONCE: Final = 16


class Refused(ClusterUnavailable):
    """
    Etcd has answered with an error.

    Attributes:
        code: gRPC's number of the error.
        text: etcd's message.
    """

    def __init__(self, url: str, code: int, text: str) -> None:
        """Put the member's *url* before etcd's message."""
        super().__init__(f"{url}: {text}")
        self.code, self.text = code, text


class Stream:
    """
    An answer without an end, which is read line by line.

    Attributes:
        begun: fires when there is a first line; fails with ClusterUnavailable if there is none.
    """

    def __init__(
        self, url: str, told: Callable[[Mapping[str, Any]], None], ended: Callable[[ClusterUnavailable], None]
    ) -> None:
        """Call *told* with each result after the first, and *ended* when no more will come."""
        self._url, self._told, self._ended = url, told, ended
        self._rest = b""
        self._over = False
        self.begun: Deferred[None] = Deferred()

    def data(self, octets: bytes) -> None:
        """Read *octets*, the next of the answer."""
        *lines, self._rest = (self._rest + octets).split(b"\n")
        for line in lines:
            if self._over:
                return
            if line.strip():
                self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            result = message.get("result")
            if result is None:
                self.end(_refused(self._url, message))
            elif result.get("canceled"):
                compacted = f"compacted up to revision {result.get('compact_revision')}"
                self.end(ClusterUnavailable(f"{self._url}: {result.get('cancel_reason') or compacted}"))
            elif not self.begun.called:
                self.begun.callback(None)
            else:
                self._told(result)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.end(ClusterUnavailable(f"{self._url} does not talk as etcd does: {error!r}"))

    def over(self, reason: ClusterUnavailable) -> None:
        """Handle the end of the connection; etcd's last line has no line feed."""
        if self._rest.strip() and not self._over:
            self._line(self._rest)
        self.end(reason)

    def end(self, reason: ClusterUnavailable) -> None:
        """Read no more, because of *reason*."""
        if self._over:
            return
        self._over = True
        if self.begun.called:
            self._ended(reason)
        else:
            self.begun.errback(reason)

    def stop(self) -> None:
        """Read no more, and call nothing."""
        self._over = True


class _AsItIs(EncodedURL):
    """A URL that is written as it was read: hyperlink would take an IPv6 address for a name, and refuse it."""

    def to_uri(self) -> EncodedURL:
        """Return itself."""
        return self


class Gateway:
    """
    The members of etcd, of which one is the present one.

    A call that is not answered fails with ClusterUnavailable, and the message of the layer that knows why; one that
    etcd refuses, with Refused.

    Attributes:
        url: of the present member.
    """

    def __init__(self, cluster: Cluster, reactor: Any) -> None:
        """
        Begin without a connection.

        Raises:
            ConfigError: a certificate or a key cannot be read.
        """
        self._urls, self._reactor = cluster.etcd, reactor
        self._user, self._password = cluster.user, cluster.password
        self._token: str | None = None
        self._at = 0
        self.patience = min(cluster.ttl * SHARE, PATIENCE)
        self._connections = Connections(cluster, reactor, self.patience)
        self._pool = HTTPConnectionPool(reactor)
        self._pool.retryAutomatically = False
        self._pool.maxPersistentPerHost = AT_ONCE
        agent = Agent.usingEndpointFactory(reactor, self._connections, self._pool)
        self._client = HTTPClient(agent)
        self._asking: set[Deferred[Any]] = set()
        self._closed = False

    @property
    def url(self) -> str:
        """Where the present member is."""
        return self._urls[self._at].rstrip("/")

    def next(self) -> bool:
        """Leave this member for the next; return whether that one begins a new round."""
        self._leave()
        self._token = None
        self._at = (self._at + 1) % len(self._urls)
        return self._at == 0

    def _leave(self) -> Deferred[None]:
        """End all connections and the calls on them."""
        for asking in list(self._asking):
            asking.cancel()
        self._pool.closeCachedConnections()
        return self._connections.abort()

    def close(self) -> Deferred[None]:
        """End everything, and begin nothing more."""
        self._closed = True
        return self._leave()

    @deferred
    async def ask(self, call: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a call, such as ``kv/range``."""
        answer: dict[str, Any] = await self._signed(lambda: self._ask(call, body))
        return answer

    async def watch(
        self,
        request: Mapping[str, Any],
        told: Callable[[Mapping[str, Any]], None],
        ended: Callable[[ClusterUnavailable], None],
    ) -> Stream:
        """
        Begin a watch, and return its stream once etcd watches.

        Args:
            request: etcd's WatchCreateRequest.
            told: is called with each result of the watch.
            ended: is called with the reason when the watch ends by itself.

        Raises:
            ClusterUnavailable: etcd does not watch.
        """
        stream: Stream = await self._signed(lambda: self._watch(request, told, ended))
        return stream

    async def _signed(self, asking: Callable[[], Any]) -> Any:
        """Make a call as the user in the configuration, if there is one; a token that is too old is renewed."""
        if self._user is None:
            return await asking()
        if self._token is not None:
            try:
                return await asking()
            except Refused as refused:
                if refused.text not in STALE:
                    raise
        self._token = None
        signed = await self._ask("auth/authenticate", {"name": self._user, "password": self._password or ""})
        self._token = signed["token"]
        return await asking()

    async def _ask(self, call: str, body: Mapping[str, Any]) -> dict[str, Any]:
        url = self.url
        code, content = await self._patiently(self._post(url, call, body))
        try:
            parsed = json.loads(content)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            answer = f"it answers with status {code} and {content[:40]!r}"
            raise ClusterUnavailable(f"{url} does not talk as etcd does: {answer}")
        if code != HTTPStatus.OK or "error" in parsed:
            raise _refused(url, parsed)
        return parsed

    async def _watch(
        self,
        request: Mapping[str, Any],
        told: Callable[[Mapping[str, Any]], None],
        ended: Callable[[ClusterUnavailable], None],
    ) -> Stream:
        stream = Stream(self.url, told, ended)
        try:
            await self._patiently(self._stream(self.url, request, stream))
        except ClusterUnavailable:
            stream.stop()
            raise
        return stream

    async def _post(self, url: str, call: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        response = await self._send(url, call, body)
        return response.code, await response.content()

    async def _stream(self, url: str, request: Mapping[str, Any], stream: Stream) -> None:
        response = await self._send(url, "watch", {"create_request": request}, REQUIRE_LEADER)
        response.collect(stream.data).addBoth(lambda why: stream.over(ClusterUnavailable(f"{url}: {words(why)}")))
        await stream.begun

    def _send(self, url: str, call: str, body: Mapping[str, Any], more: Headers = NO_HEADERS) -> Any:
        headers: dict[bytes | str, bytes | str] = {"Content-Type": "application/json", **more}
        if self._token is not None and call != "auth/authenticate":
            headers["Authorization"] = self._token
        target = _AsItIs.from_text(f"{url}/v3/{call}")
        return self._client.post(target, data=json.dumps(body).encode(), headers=headers, unbuffered=True)

    async def _patiently(self, asking: Coroutine[Any, Any, Any]) -> Any:
        """Await *asking* for `patience` seconds at most; any exception of it becomes ClusterUnavailable."""
        url = self.url
        if self._closed:
            asking.close()
            raise ClusterUnavailable("this node has stopped")
        answer: Deferred[Any] = Deferred.fromCoroutine(asking)
        self._asking.add(answer)
        answer.addBoth(self._asked, answer)
        try:
            return await answer.addTimeout(self.patience, self._reactor, partial(self._late, url))
        except ClusterUnavailable:
            raise
        except Exception as error:
            # Connections break in many ways, and Twisted, treq and OpenSSL have an exception for each.
            raise ClusterUnavailable(f"{url}: {words(error)}") from error

    @staticmethod
    def _late(url: str, result: Any, seconds: float) -> Any:  # noqa: ARG004
        raise ClusterUnavailable(f"{url}: no answer within {seconds:.1f} s")

    def _asked(self, result: Any, answer: Deferred[Any]) -> Any:
        self._asking.discard(answer)
        return result


def _refused(url: str, answer: Mapping[str, Any]) -> Refused:
    """Return etcd's error: of a call, or, one level deeper, of a stream."""
    error = answer.get("error")
    inner = error if isinstance(error, dict) else answer
    text = inner.get("message") or inner.get("error") or "it says no, and not why"
    return Refused(url, int(inner.get("code") or inner.get("grpc_code") or 0), str(text))
