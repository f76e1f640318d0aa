"""The ownership of VMs where this node is the only one: it owns all of them, and tells no other node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zope.interface import implementer

from jitsu_tw.ijitsu import IOwnership
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.ijitsu import IMachine


@implementer(IOwnership)
class Alone:
    """All VMs are this node's."""

    follows: Final = frozenset[State]()

    refusal = ""
    connected = True

    def is_own(self, machine: IMachine) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def is_others(self, machine: IMachine) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    is_known = is_others

    def owner(self, machine: IMachine) -> None:
        """Return None: there is no cluster."""

    def times(self, machine: IMachine) -> tuple[float, float]:  # noqa: ARG002
        """Return 0.0 twice: no VM `is_known`."""
        return 0.0, 0.0

    async def claim(self, machine: IMachine) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def prove(self, machine: IMachine) -> None:
        """Return: no other node can start *machine*."""

    def owner_ready(self, machine: IMachine) -> None:
        """Return None: this node finds out by itself."""

    def note_use(self, machine: IMachine, when: float) -> None:
        """Return: the lease alone counts."""

    def announce_stop(self, machine: IMachine) -> float:  # noqa: ARG002
        """Return 0.0: no other node need know."""
        return 0.0

    def withdraw_stop(self, machine: IMachine) -> None:
        """Return: no stop was announced."""

    def moved(self, machine: IMachine, old: State) -> None:
        """Return: no other node need know."""

    def forget(self, machine: IMachine) -> None:
        """Return: no other node need know."""

    def release(self, machines: Iterable[IMachine], why: str) -> None:
        """Return: there is no other node to adopt a VM."""

    async def stop(self) -> None:
        """Return: there is nothing to tell."""

    def told(self, path: str, value: str | None, before: str | None) -> None:
        """Return: the facts are about hosts."""

    def connect(self) -> None:
        """Return: nothing was missed."""

    def lose(self, reason: str) -> None:
        """Return: there is no node to lose."""
