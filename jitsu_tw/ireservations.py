"""The interface between templates, which make VMs, and the cluster, whose nodes agree on them."""

from __future__ import annotations

from collections.abc import Collection, Container  # noqa: TC003 -- zope.interface wants it at run time
from math import inf
from typing import TYPE_CHECKING

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from jitsu_tw.networks import Address
    from jitsu_tw.rules.reservations import Step


class IReservations(Interface):
    """
    The VMs that templates have made at any node, and the addresses that are theirs at all nodes.

    Where this node is the only one, it has all of them, and nothing is told.
    """

    made: Collection[str] = Attribute("The names of the VMs that are made, and not being removed, as the others know.")

    taken: Container[Address] = Attribute("The addresses that are VMs' or are not free yet, as the others know.")

    def is_made(name: str) -> bool:
        """Return whether the VM *name* is made, and not being removed, as the others know."""

    def addresses(name: str) -> tuple[Address, ...]:
        """Return the addresses of the VM *name*, which is made or being removed, as all nodes know them."""

    def step(name: str, addresses: tuple[Address, ...] | None) -> Step:
        """Return what this node does about the VM *name*, which has these *addresses* here; None: it is not here."""

    def reserve(
        name: str, addresses: tuple[Address, ...]
    ) -> Awaitable[tuple[tuple[Address, ...], bool] | None]:
        """
        Agree with the other nodes that the VM *name* has *addresses*.

        Returns:
            the addresses that it has now, perhaps others, and whether that is new: it is not if another node was
            faster. None if one of *addresses* is another VM's.

        Raises:
            ClusterUnavailable: the nodes cannot agree.
            BootFailed: another node is removing a VM of that name.
        """

    def retire(name: str, addresses: tuple[Address, ...], before: float = inf) -> Awaitable[bool]:
        """
        Agree with the other nodes that this one removes the VM *name*; they drop it then.

        Args:
            name: of the VM.
            addresses: that it has here.
            before: in seconds since 1970; the VM is not removed if it was used then or later, or has an owner.

        Returns:
            whether this node is to remove it; if not, it was used, or another node removes it, or has done so.

        Raises:
            ClusterUnavailable: the nodes cannot agree.
        """

    def left(name: str) -> Awaitable[None]:
        """
        Wait until no other node owns the VM *name*, which is being removed.

        Raises:
            ClusterUnavailable: this node is cut off from the others meanwhile.
        """

    def release(name: str, addresses: tuple[Address, ...]) -> None:
        """
        Tell the other nodes that the VM *name*, which had *addresses* here, is removed, and its addresses are free.

        That is to be called after `retire`; nothing is told if another node has taken over from this one meanwhile.
        """

    def share_use(name: str, when: float, every: float) -> float:
        """
        Tell the other nodes that the VM *name* was used here.

        Args:
            name: of the VM.
            when: it was used last, in seconds since 1970.
            every: the others know of a use unless that was within as many seconds of the last that they know of.

        Returns:
            until when it may have been used, through any node, in seconds since 1970.
        """


class ISharedMembers(Interface):
    """What follows the VMs that templates make at other nodes."""

    def made_changed(name: str) -> None:
        """Handle that something has changed about the VM *name*."""
