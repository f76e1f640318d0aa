"""Names that are not ours, asked of another server: for the clients that may, and for nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.names import client
from twisted.names.error import DomainError

from jitsu_tw.dns.authority import Authority
from jitsu_tw.dns.wire import RR, Answer, Question
from jitsu_tw.networks import Networks, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred

    from jitsu_tw.settings import Network


class Forwarder(Authority):
    """Asks one server, through twisted.names' own client."""

    def __init__(self, server: tuple[str, int], clients: Sequence[Network]) -> None:
        """Ask *server* (host, port) for *clients*."""
        super().__init__()
        self._client = client.Resolver(servers=[server])
        self._clients = Networks(clients)

    def answer(self, question: Question) -> Deferred[Answer]:
        """
        Ask the server.

        Raises:
            DomainError: the client may not have its questions forwarded; or the server's own, through the Deferred.
        """
        if question.source is None or packed(question.source.host) not in self._clients:
            raise DomainError(question)
        asked: Deferred[Any] = self._client.query(question)
        return asked.addCallback(
            lambda sections: Answer(*([RR.of(header) for header in section] for section in sections), aa=False, ra=True)
        )
