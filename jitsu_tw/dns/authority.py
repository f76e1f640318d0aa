"""The zones' own word on a question, as a `twisted.names` resolver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.names import dns
from twisted.names.common import ResolverBase
from twisted.names.error import DomainError

from jitsu_tw.dns.lookup import Found, NoData, NxDomain, Referral, TooLong
from jitsu_tw.dns.wire import Answer, Question, from_text
from jitsu_tw.errors import Unanswerable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.dns.lookup import Zones

#: A name that should not exist does (RFC 2136, 2.2); of DNAME: the name that it makes is too long (RFC 6672, 2.2).
YXDOMAIN: Final = 6


class Authority(ResolverBase):
    """
    The shape that our resolvers share: one question in, one `Answer` or an error out.

    All the ``lookup…`` methods of `IResolver` lead to `query`, with the question in octets.
    """

    def query(self, query: Any, timeout: Sequence[int] | None = None) -> Deferred[Answer]:  # noqa: ARG002
        """Answer *query*, one of `dns.Query`."""
        return maybeDeferred(self.answer, Question.of(query))

    def _lookup(self, name: bytes | str, cls: int, type: int, timeout: Sequence[int] | None) -> Deferred[Answer]:
        """Answer `IResolver`'s other methods."""
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        return self.query(Question(from_text(text), type, cls), timeout)

    def answer(self, question: Question) -> Any:
        """Return an `Answer`, or a Deferred of one; raise `DomainError` for what others should be asked."""
        raise NotImplementedError


class ZoneAuthority(Authority):
    """Answers from our zones, and starts nothing."""

    def __init__(self, zones: Zones) -> None:
        """Speak for *zones*."""
        super().__init__()
        self._zones = zones

    def answer(self, question: Question) -> Answer:
        """
        Look *question* up.

        Raises:
            Unanswerable: there is no such name (RFC 8020), or DNAME makes one that is too long.
            DomainError: it is in none of our zones.
        """
        outcome = self._zones.lookup(question.asked, question.type)
        match outcome:
            case Found():
                return Answer(outcome.answer, (), outcome.additional, aa=outcome.aa)
            case NoData():
                return Answer(outcome.answer, [outcome.soa])
            case Referral():
                return Answer(
                    outcome.answer,
                    outcome.authority,
                    [*outcome.glue, *outcome.additional],
                    aa=bool(outcome.answer),
                    glue=len(outcome.glue),
                )
            case NxDomain():
                raise Unanswerable(dns.ENAME, outcome.answer, [outcome.soa])
            case TooLong():
                raise Unanswerable(YXDOMAIN, outcome.answer, [])
            case _:
                raise DomainError(question)
