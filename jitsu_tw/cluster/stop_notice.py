"""
The notice that the other nodes have before a VM is stopped: time to tell its owner that it is used.

A node that has notice does not answer for the VM, but tells that it is used. A notice counts only if etcd could be
reached all the while: a node that could not be told could not have told anything either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.task import deferLater

from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import ClusterUnavailable
from jitsu_tw.rules.claims import Phase

if TYPE_CHECKING:
    from jitsu_tw.clocks import Clocks
    from jitsu_tw.cluster.cluster_state import ClusterState
    from jitsu_tw.ijitsu import IMachine

#: Seconds from a notice to the stop.
NOTICE: Final = 1.5

#: Seconds after which to ask again whether a notice is over.
ASK_AGAIN: Final = NOTICE / 3

#: If it takes longer than this, in seconds, to tell the other nodes something, they may have been unable to answer.
SWIFT: Final = 0.3


@attrs.define(eq=False)
class StopNotice:
    """
    A notice of the stop of one VM.

    Attributes:
        is_over: the other nodes had the time to tell that the VM is used.
        is_void: they had not, or could not.
    """

    is_over: bool = False
    is_void: bool = False


class StopNotices:
    """The notices that this node has given."""

    def __init__(self, state: ClusterState, clocks: Clocks) -> None:
        """Begin with none; the other nodes are told by *state*."""
        self._state, self._reactor, self._now = state, clocks.reactor, clocks.now
        self._given: dict[str, StopNotice] = {}

    def is_over(self, machine: IMachine) -> bool:
        """Return whether the other nodes have had notice of the stop of *machine*."""
        notice = self._given.get(machine.vm.name)
        return notice is not None and notice.is_over

    def is_given(self, machine: IMachine) -> bool:
        """Return whether the other nodes are having, or have had, notice of the stop of *machine*."""
        notice = self._given.get(machine.vm.name)
        return notice is not None and not notice.is_void

    @deferred
    async def give(self, machine: IMachine) -> None:
        """Give notice of the stop of *machine*."""
        notice = self._given[machine.vm.name] = StopNotice()
        try:
            notice.is_over = await self._is_heard(machine, notice)
        except ClusterUnavailable:
            notice.is_over = False
        notice.is_void = not notice.is_over

    async def _is_heard(self, machine: IMachine, notice: StopNotice) -> bool:
        """Tell the other nodes that *machine* is to be stopped; return whether all had the time to tell of a use."""
        while await self._state.tell(machine, Phase.ENDING):
            await deferLater(self._reactor, NOTICE)
            begin = self._now()
            is_dropped = self._given.get(machine.vm.name) is not notice
            if is_dropped or not await self._state.tell(machine, Phase.ENDING):
                return False
            if self._now() < begin + SWIFT:
                return True
        return False

    def drop(self, machine: IMachine) -> bool:
        """Take back the notice of the stop of *machine*; return whether there was one."""
        return self._given.pop(machine.vm.name, None) is not None

    def clear(self) -> None:
        """Take back all notices."""
        self._given.clear()
