"""
What the claim of a VM, and the VM's state, lead to at one node of a cluster. Nothing here does I/O or reads a clock.

What a node knows of a VM comes in as a `View`; what it is to do comes out, as an `Action` or several in their order.
`cluster.claims` carries them out.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from jitsu_tw.rules.lifecycle import DOWN, STOPS, State

if TYPE_CHECKING:
    from collections.abc import Iterator


class Phase(enum.Enum):
    """What the owner node tells of a VM. The values are part of what nodes tell each other."""

    STARTING = "starting"
    UP = "up"
    ENDING = "ending"  # it is to be stopped, or is being stopped
    FAILED = "failed"  # its start has failed; its claim is released next


class Owner(enum.Enum):
    """Which node has the claim of a VM, as the facts say."""

    NOBODY = enum.auto()
    THIS = enum.auto()
    OTHER = enum.auto()


@attrs.frozen
class View:
    """
    What a node knows of a VM.

    Attributes:
        connected: whether the node knows the facts at all.
        refuses: whether it starts nothing, because it is cut off or drained.
        state: of the VM, as its hypervisor tells this node.
        unsure: whether the VM may run although its state does not say so.
        holds: whether this node has the claim, and no other node can have it at this moment.
        owner: the node that has the claim.
        phase: what that node tells of the VM; None if there is no owner, or what it tells is not known here.
        started: whether a node has recorded a start of the VM, which has not been seen down since.
        known: whether the VM, if it runs, was started by a node of the cluster.
    """

    connected: bool
    refuses: bool
    state: State
    unsure: bool
    holds: bool
    owner: Owner
    phase: Phase | None
    started: bool
    known: bool


class Action(enum.Enum):
    """What a node does about a VM."""

    CLAIM = "try to claim the VM, which is queued"
    RELEASE = "release the claim of the VM, which does not run"
    RELEASE_ALL = "release the claims of all VMs that are up: this node is to own none"
    ADOPT = "claim the VM, which runs without an owner"
    TIDY = "remove what is recorded of a start that is over"
    SETTLE = "do what `settle` says of the VM as it is then"
    FORGET = "forget the VM's use, and that it was started by a node"
    TELL_UP = "tell the other nodes that the VM is up"
    TELL_ENDING = "tell the other nodes that the VM is being stopped"
    REPORT_USE = "report the use of VMs to the other nodes at once"
    CHANGE_OWNER = "give the VM, if it is up, the lease that its owner demands"
    OWNER_READY = "end the wait for the owner: it has told that the VM is ready"
    OWNER_SILENT = "end the wait for the owner: it will tell nothing any more"
    OWNER_FAILED = "fail the VM: the owner could not start it"
    OWNER_STOPS = "wait until the owner has stopped the VM, or keeps it"
    OWNER_KEEPS = "wait for its stop no longer"
    REFUSE = "fail those who wait for the VM: its claim cannot be had"


def settle(view: View) -> Action | None:
    """Return what gives the VM an owner if it runs, and none if it does not; None if nothing is to be done."""
    action = None
    if not view.connected:
        pass  # all VMs are settled when this node is connected again
    elif view.state in DOWN and not view.unsure:
        if view.holds:
            action = Action.RELEASE
        elif view.owner is Owner.NOBODY and view.started:
            action = Action.TIDY
    elif view.state is State.UP:
        if view.owner is Owner.NOBODY and view.known:
            action = Action.ADOPT
        elif view.owner is Owner.OTHER and view.phase is Phase.ENDING:
            action = Action.OWNER_STOPS
    return action


def entered(view: View) -> Iterator[Action]:
    """Yield what follows when the VM has entered its state."""
    if view.state in DOWN:
        yield Action.FORGET
    elif view.state is State.UP and view.holds:
        yield Action.TELL_UP
        if view.refuses:
            yield Action.RELEASE_ALL
    elif view.state in STOPS and view.holds:
        yield Action.TELL_ENDING
    yield Action.SETTLE


def claim_changed(view: View) -> Iterator[Action]:
    """Yield what follows when the claim of the VM has become what *view* says."""
    if not view.connected or view.owner is Owner.THIS:
        return
    if view.owner is Owner.NOBODY:
        yield Action.OWNER_SILENT
        yield Action.OWNER_KEEPS
        yield Action.CLAIM if view.state is State.QUEUED else Action.SETTLE
        return
    if view.phase is Phase.FAILED and view.state is State.QUEUED:
        yield Action.OWNER_FAILED
    elif view.phase is Phase.ENDING:
        yield Action.OWNER_STOPS
        yield Action.REPORT_USE
    elif view.phase is Phase.UP:
        yield Action.OWNER_READY
        yield Action.OWNER_KEEPS
    yield Action.CHANGE_OWNER


def connected(view: View) -> Iterator[Action]:
    """Yield what follows for the VM when this node knows the facts, for the first time or again."""
    if view.state is State.UP:
        yield Action.CHANGE_OWNER
        if view.holds and view.phase is not Phase.UP:  # the other nodes have not heard that it is up
            yield Action.TELL_UP
    elif view.state is State.QUEUED:
        yield Action.CLAIM
    yield Action.SETTLE


def lost(state: State) -> Iterator[Action]:
    """Yield what follows for a VM in *state* when this node does not know the facts any more."""
    if state in DOWN:
        return
    yield Action.OWNER_SILENT
    if state is State.QUEUED:
        yield Action.REFUSE
    elif state is State.UP:
        yield Action.CHANGE_OWNER
    yield Action.OWNER_KEEPS
