"""The resolver that has VMs made for the names of templates."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.names import dns

from jitsu_tw.coroutines import deferred
from jitsu_tw.dns.lookup import MINIMAL_ANY, Found, NoData
from jitsu_tw.dns.resolver import SUMMONING, Authority
from jitsu_tw.dns.wire import RR, Answer
from jitsu_tw.errors import EDE_NOT_READY, BootFailed, ExistenceUnknown, Unanswerable

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.resolver import JitsuResolver
    from jitsu_tw.dns.wire import Question
    from jitsu_tw.ijitsu import ITemplates

#: The version of IP whose addresses a question of a type wants.
VERSIONS = {dns.A: 4, dns.AAAA: 6}


class TemplateResolver(Authority):
    """
    Answers for the names of templates that have no VM yet.

    The zones have the wildcards of a template as names without records, which belong to a VM of the template's name.
    """

    def __init__(
        self,
        zones: Zones,
        templates: ITemplates,
        summoning: JitsuResolver,
        reactor: Any,
        answer_by: Callable[[], float],
    ) -> None:
        """
        Find templates by their names in *zones*.

        Args:
            zones: have the names.
            templates: makes the VMs.
            summoning: answers for a VM that was made.
            reactor: keeps the time.
            answer_by: tells the seconds from a question to its answer.
        """
        super().__init__()
        self._zones, self._templates, self._summoning = zones, templates, summoning
        self._reactor, self._answer_by = reactor, answer_by

    def answer(self, question: Question) -> Deferred[Answer] | None:
        """
        Answer *question*, if its name is that of a template; return None if it is not.

        Raises:
            Unanswerable: (through the Deferred) there is no such name.
            JitsuError: (through the Deferred) as `ITemplates.make`.
        """
        outcome = question.outcome
        if outcome is None:
            outcome = question.outcome = self._zones.lookup(question.asked, question.type)
        if not isinstance(outcome, NoData) or outcome.vm is None or not self._templates.has(outcome.vm):
            return None
        name = (outcome.answer[-1].rdata if outcome.answer else question.asked).lower()
        if name.startswith(b"\1*"):  # it is the wildcard itself (RFC 4592, 2.3)
            return None
        return self._answer(question, outcome, outcome.vm, self._templates.label_of(name, outcome.vm))

    @deferred
    async def _answer(self, question: Question, outcome: NoData, template: str, label: str | None) -> Answer:
        source = question.source
        if label is None:
            return self._absent(question, outcome)
        if source is None:  # Jitsu itself asks, which makes no VM
            return Answer(outcome.answer, [outcome.soa])
        began = self._reactor.seconds()
        wants = question.type in SUMMONING and self._templates.serves(template, VERSIONS[question.type])
        found = self._templates.make if wants else self._templates.exists
        exists = await found(template, label, source).addTimeout(self._answer_by(), self._reactor, _late)
        latest = self._zones.lookup(question.asked, question.type)
        if isinstance(latest, NoData) and latest.vm == template:
            if not exists:
                return self._absent(question, latest)
            if wants:
                raise BootFailed(f"{label}.{template}: it has gone already; ask again")
            return self._without(question, latest)
        left = max(0.0, self._answer_by() - (self._reactor.seconds() - began))
        answer = self._summoning.answer_anew(question)
        return await answer.addTimeout(left, self._reactor, partial(_not_ready, question))

    def _absent(self, question: Question, outcome: NoData) -> Answer:
        """
        Return the answer for a name that its template does not have: a wildcard of the zone's file may have records.

        Raises:
            Unanswerable: there is no such name. (A frame that kept this error would be a cycle with its traceback: with
                many random names, much garbage.)
        """
        key = (outcome.answer[-1].rdata if outcome.answer else question.asked).lower()
        zone = self._zones.find(key)
        node = zone.match(key) if zone is not None else None
        if node is None or not node.rrsets:
            raise Unanswerable(dns.ENAME, outcome.answer, [outcome.soa])
        return self._without(question, outcome)

    @staticmethod
    def _without(question: Question, outcome: NoData) -> Answer:
        """Return the answer for a name that exists and has no records of the type; for ANY, see RFC 8482, 4.2."""
        if question.type != dns.ALL_RECORDS:
            return Answer(outcome.answer, [outcome.soa])
        owner = outcome.answer[-1].rdata if outcome.answer else question.asked
        return Answer([*outcome.answer, RR(owner, dns.HINFO, outcome.soa.ttl, MINIMAL_ANY)])


def _late(_: object, seconds: float) -> None:
    raise ExistenceUnknown(f"it was not made, or known to exist, within {seconds:g} s; ask again")


def _not_ready(question: Question, _: object, seconds: float) -> Answer:  # noqa: ARG001
    """Return the answer to *question* whose client has waited long enough, while the VM, which was made, starts."""
    outcome = question.outcome
    assert isinstance(outcome, Found)
    return Answer(outcome.answer, ede=((EDE_NOT_READY, f"{outcome.vm} is still starting"),))
