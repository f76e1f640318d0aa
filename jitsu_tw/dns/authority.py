"""Resolvers for `twisted.names` that take and give octets: what they share, and the one that answers from the zones."""

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

    from jitsu_tw.dns.lookup import Outcome, Zones

#: A name that should not exist does (RFC 2136, 2.2); of DNAME: the name that it makes is too long (RFC 6672, 2.2).
YXDOMAIN: Final = 6


class Authority(ResolverBase):
    """
    A resolver of Jitsu's: one question in, one `Answer` or an error out.

    Jitsu's own chain (`server.Chain`) calls `answer`. All methods of `IResolver` lead to `query`, for any other caller.
    """

    def query(self, query: Any, timeout: Sequence[int] | None = None) -> Deferred[Answer]:  # noqa: ARG002
        """
        Answer *query*, any `dns.Query`.

        Raises:
            DomainError: (through the Deferred) the next resolver of a chain is to be asked.
        """
        return maybeDeferred(self._query, Question.of(query))

    def _query(self, question: Question) -> Any:
        answer = self.answer(question)
        if answer is None:
            raise DomainError(question)
        return answer

    def _lookup(self, name: bytes | str, cls: int, type: int, timeout: Sequence[int] | None) -> Deferred[Answer]:
        """Answer `IResolver`'s other methods."""
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        return self.query(Question(from_text(text), type, cls), timeout)

    def answer(self, question: Question) -> Answer | Deferred[Answer] | None:
        """Return an `Answer`, or a Deferred of one; None where the next resolver is to be asked."""
        raise NotImplementedError


class ZoneAuthority(Authority):
    """Answers from the zones, and starts no VM."""

    def __init__(self, zones: Zones) -> None:
        """Answer from *zones*."""
        super().__init__()
        self._zones = zones

    def answer(self, question: Question) -> Answer | None:
        """
        Answer by what `JitsuResolver` has found, or look *question* up; return None if it is in none of the zones.

        Raises:
            Unanswerable: there is no such name (RFC 8020), or DNAME makes one that is too long.
        """
        outcome: Outcome | None = question.outcome
        if outcome is None:
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
                return None
