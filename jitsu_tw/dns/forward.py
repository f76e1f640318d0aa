"""Names that are in none of the zones: another server is asked, for the clients that may have that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import maybeDeferred
from twisted.names import client

from jitsu_tw.dns.resolver import Authority
from jitsu_tw.dns.wire import RR, Answer, Question
from jitsu_tw.errors import JitsuError
from jitsu_tw.networks import Networks
from jitsu_tw.shares import Places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.wire import Source
    from jitsu_tw.networks import Network

#: The most questions that wait for the other server, of all clients and of one client network. Each has a UDP socket.
MOST_FORWARDED: Final = 200
MOST_OF_ONE: Final = 100


class Forwarder(Authority):
    """Asks one server, through twisted.names' own client."""

    def __init__(self, server: tuple[str, int], clients: Sequence[Network]) -> None:
        """Ask *server* (host, port) for *clients*."""
        super().__init__()
        self._client = client.Resolver(servers=[server])
        self._clients = Networks(clients)
        self._places = Places(MOST_FORWARDED, MOST_OF_ONE)

    def answer(self, question: Question) -> Deferred[Answer] | None:
        """
        Ask the server; return None if the client may not have its questions forwarded.

        Raises:
            JitsuError: too many questions wait for the server's answer.
            DomainError, ResolverError: (through the Deferred) the server's own error.
        """
        source = question.source
        if source is None or source.address not in self._clients:
            return None
        if not self._places.take(source):
            raise JitsuError("too many questions are being forwarded; ask again later")
        asked: Deferred[Any] = maybeDeferred(self._client.query, question)
        asked.addBoth(self._leave, source)
        return asked.addCallback(
            lambda sections: Answer(*([RR.of(header) for header in section] for section in sections), aa=False, ra=True)
        )

    def _leave(self, result: Any, source: Source) -> Any:
        self._places.leave(source)
        return result
