"""Questions for the addresses of VMs: the answer waits until the VM is ready, or must wait no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import CancelledError
from twisted.names import dns

from jitsu_tw.dns.authority import Authority
from jitsu_tw.dns.lookup import Found
from jitsu_tw.dns.wire import Answer, Question, Source
from jitsu_tw.errors import EDE_NOT_READY
from jitsu_tw.shares import Places

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.vm.fleet import Fleet

#: Clients that want to connect ask for these types. A question for another type starts no VM (DESIGN, section 3).
SUMMONING: Final = frozenset({dns.A, dns.AAAA})

#: The most questions that wait for VMs, of all clients and of one client network. One takes 3 to 7 KB.
MOST_WAITING: Final = 10_000
MOST_OF_ONE: Final = 1000


class JitsuResolver(Authority):
    """Summons the VM that a question wants the address of."""

    def __init__(self, zones: Zones, fleet: Fleet) -> None:
        """Find VMs by their names in *zones*, and summon them from *fleet*."""
        super().__init__()
        self._zones, self._fleet = zones, fleet
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
        return self._patiently(self._fleet.summons.summon(name, question), question.source).addCallback(
            lambda ready: Answer(outcome.answer, vm=name)
            if ready
            else Answer(outcome.answer, ede=((EDE_NOT_READY, f"{name} is still starting"),))
        )

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
