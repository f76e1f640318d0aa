"""Questions for the addresses of VMs: the answer waits until the VM is ready, or must wait no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.names import dns
from twisted.names.error import DomainError

from jitsu_tw.dns.authority import Authority
from jitsu_tw.dns.lookup import Found
from jitsu_tw.dns.wire import Answer, Question
from jitsu_tw.errors import EDE_NOT_READY

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.vm.fleet import Fleet

#: What people want who want to connect. Anything else boots nothing (DESIGN, section 4).
SUMMONING: Final = frozenset({dns.A, dns.AAAA})


class JitsuResolver(Authority):
    """Summons the VM whose address is asked for."""

    def __init__(self, zones: Zones, fleet: Fleet) -> None:
        """Find VMs by their names in *zones* and summon them from *fleet*."""
        super().__init__()
        self._zones, self._fleet = zones, fleet

    def answer(self, question: Question) -> Deferred[Answer]:
        """
        Summon the VM that *question* wants, behind CNAMEs and wildcards too.

        Raises:
            DomainError: it wants none.
            BootFailed, BackendLost: (through the Deferred) the VM cannot be had.
        """
        if question.type not in SUMMONING:
            raise DomainError(question)
        outcome = self._zones.lookup(question.asked, question.type)
        if not isinstance(outcome, Found) or outcome.vm is None:
            raise DomainError(question)
        name = outcome.vm
        return self._fleet.summon(name, question).addCallback(
            lambda ready: Answer(outcome.answer, vm=name)
            if ready
            else Answer(outcome.answer, ede=((EDE_NOT_READY, f"{name} is still starting"),))
        )
