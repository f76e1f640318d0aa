"""
The resolvers, in the shape of `twisted.names`: `JitsuResolver` summons VMs, `ZoneAuthority` answers from the zones.

A `Chain` asks one after the other. The answer to a question for a VM's address waits until the VM is ready, or as long
as it may. What the first resolver has looked up travels with the question: each name is looked up once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.names import dns
from twisted.names.common import ResolverBase
from twisted.names.error import DomainError
from twisted.names.resolve import ResolverChain

from jitsu_tw.dns.lookup import Found, NoData, NxDomain, Referral, TooLong
from jitsu_tw.dns.wire import Answer, Question, Source, from_text
from jitsu_tw.errors import EDE_NOT_READY, Unanswerable
from jitsu_tw.shares import Places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.python.failure import Failure

    from jitsu_tw.dns.lookup import Outcome, Zones
    from jitsu_tw.vm.fleet import Fleet

#: A name that should not exist does (RFC 2136, 2.2); of DNAME: the name that it makes is too long (RFC 6672, 2.2).
YXDOMAIN: Final = 6

#: Clients that want to connect ask for these types. A question for another type starts no VM (DESIGN, section 3).
SUMMONING: Final = frozenset({dns.A, dns.AAAA})

#: The most questions that wait for VMs, of all clients and of one client network. One takes 3 to 7 KB.
MOST_WAITING: Final = 10_000
MOST_OF_ONE: Final = 1000


class Authority(ResolverBase):
    """
    A resolver of Jitsu's: one question in, one `Answer` or an error out.

    Jitsu's own `Chain` calls `answer`. All methods of `IResolver` lead to `query`, for any other caller.
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


class Chain(Authority, ResolverChain):
    """twisted.names' chain, of resolvers that pass a question on without an exception, and take it as it came."""

    resolvers: list[Authority]

    def answer(self, question: Question) -> Answer | Deferred[Answer] | None:
        """Return the answer of the first resolver that has one."""
        for resolver in self.resolvers:
            answer = resolver.answer(question)
            if answer is not None:
                return answer
        return None


class JitsuResolver(Authority):
    """Summons the VM that a question wants the address of."""

    def __init__(self, zones: Zones, fleet: Fleet) -> None:
        """Find VMs by their names in *zones*, and summon them from *fleet*."""
        super().__init__()
        self._zones, self._fleet = zones, fleet
        self._authority = ZoneAuthority(zones)
        self._places = Places(MOST_WAITING, MOST_OF_ONE)

    def answer(self, question: Question) -> Deferred[Answer] | None:
        """
        Summon the VM that *question* wants, behind CNAMEs and wildcards too; return None if it wants none.

        What the zones say stays with the question, for the resolvers that are asked next. Where too many questions
        wait, of the client's network or of all, the answer does not wait for the VM.

        Raises:
            BootFailed, BackendLost: (through the Deferred) the VM cannot be had.
        """
        if question.type not in SUMMONING:
            return None
        outcome = question.outcome = self._zones.lookup(question.asked, question.type)
        if not isinstance(outcome, Found) or outcome.vm is None:
            return None
        name = outcome.vm
        state = self._fleet.machines[name].state
        question.met = state
        return self._patiently(self._fleet.summons.summon(name, question), question.source).addCallback(
            self._answered, question, outcome, self._zones.edition
        )

    def _answered(
        self, ready: bool, question: Question, outcome: Found, edition: object  # noqa: FBT001
    ) -> Answer | Deferred[Answer]:
        """
        Return the answer to *question*, when the VM is *ready* or the client has waited long enough.

        If the zones have changed since their *edition* had the *outcome*, the VM may have another address by now; if
        the name is not that VM's any more, *question* is answered anew: the zones cannot prove the old answer.
        """
        vm = outcome.vm
        if edition is not self._zones.edition:
            latest = self._zones.lookup(question.asked, question.type)
            if not isinstance(latest, Found) or latest.vm != vm:
                return self.answer_anew(question)
            outcome = latest
        if ready:
            return Answer(outcome.answer, vm=vm)
        return Answer(outcome.answer, ede=((EDE_NOT_READY, f"{vm} is still starting"),))

    def answer_anew(self, question: Question) -> Deferred[Answer]:
        """Answer *question*, whose client has waited, as the zones are now."""
        question.outcome = None
        return self.answer(question) or self._authority.query(question)

    def _patiently(self, ready: Deferred[bool], source: Source | None) -> Deferred[bool]:
        """Return *ready* if one more question of *source* may wait; else a Deferred that has fired with False."""
        if source is None or ready.called:
            return ready
        if self._places.take(source):
            return ready.addBoth(self._leave, source)
        ready.addErrback(_not_ready)
        ready.cancel()
        return ready

    def _leave(self, result: bool | Failure, source: Source) -> bool | Failure:  # noqa: FBT001
        self._places.leave(source)
        return result


def _not_ready(failure: Failure) -> bool:
    failure.trap(CancelledError)
    return False


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
