"""
The notice that the others have before a VM is stopped: time to say that it has been asked for.

From the moment when they have it, they do not answer for the VM, but say that it is used. It counts only if etcd was
there all the while: who could not be told could not have told us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.task import deferLater

from jitsu_tw.errors import ClusterUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from jitsu_tw.ijitsu import IMachine

#: The others hear so many seconds before it that a VM is to be stopped.
NOTICE: Final = 1.5

#: Whether that is over is asked again after so many seconds.
ASK_AGAIN: Final = NOTICE / 3

#: Where the others cannot be told something within so many seconds, they cannot have told us all either.
SWIFT: Final = 0.3


@attrs.define(eq=False)
class StopNotice:
    """
    That the others have of a VM's end.

    Attributes:
        is_over: they had the time to say that it is used.
        is_void: they had not, or could not.
    """

    is_over: bool = False
    is_void: bool = False


class StopNotices:
    """The notices that were given."""

    def __init__(
        self, say: Callable[[IMachine, str], Deferred[bool]], reactor: Any, now: Callable[[], float]
    ) -> None:
        """*say* tells the others how a machine of ours is, and fires with False if it is not ours."""
        self._say, self._reactor, self._now = say, reactor, now
        self._given: dict[str, StopNotice] = {}

    def is_over(self, machine: IMachine) -> bool:
        """Say whether the others have had notice of the end of *machine*."""
        notice = self._given.get(machine.vm.name)
        return notice is not None and notice.is_over

    def is_given(self, machine: IMachine) -> bool:
        """Say whether they are having it."""
        notice = self._given.get(machine.vm.name)
        return notice is not None and not notice.is_void

    async def give(self, machine: IMachine) -> None:
        """Give them notice of the end of *machine*."""
        notice = self._given[machine.vm.name] = StopNotice()
        try:
            notice.is_over = await self._is_heard(machine, notice)
        except ClusterUnavailable:
            notice.is_over = False
        notice.is_void = not notice.is_over

    async def _is_heard(self, machine: IMachine, notice: StopNotice) -> bool:
        """Tell the others that *machine* is to be stopped, until all had the time to say that it is used."""
        while await self._say(machine, "ending"):
            await deferLater(self._reactor, NOTICE)
            begin = self._now()
            if self._given.get(machine.vm.name) is not notice or not await self._say(machine, "ending"):
                return False
            if self._now() < begin + SWIFT:
                return True
        return False

    def drop(self, machine: IMachine) -> bool:
        """Let there be no notice of the end of *machine*; say whether there was one."""
        return self._given.pop(machine.vm.name, None) is not None

    def clear(self) -> None:
        """Let there be none at all."""
        self._given.clear()
