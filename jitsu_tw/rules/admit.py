"""What a query for a VM leads to. Pure: what is known of the VM comes in, one of four outcomes comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from jitsu_tw.errors import BackendLost, ClusterUnavailable, JitsuError, NoCapacity, Prohibited, Unproven
from jitsu_tw.rules.policy import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The errors that tell a client why a VM is not started for it.
REFUSALS = {Verdict.UNPROVEN: Unproven, Verdict.FULL: NoCapacity}


@attrs.frozen
class Join:
    """Wait for the VM, which is up, or is started if it is not on its way."""


@attrs.frozen
class JoinNeeds:
    """Wait for VMs that the VM, which is up, needs, and that are not up."""


@attrs.frozen
class Answer:
    """Answer at once; a VM that this one needs may not be started for the client."""


@attrs.frozen
class Refuse:
    """
    Answer with an error.

    Attributes:
        error: its kind.
        reason: in words.
    """

    error: type[JitsuError]
    reason: str


Outcome = Join | JoinNeeds | Answer | Refuse


def refuse(verdict: Verdict) -> Refuse:
    """Return the error for *verdict*, which is not `Verdict.ADMITTED`."""
    return Refuse(REFUSALS.get(verdict, Prohibited), verdict.value)


def admit(
    verdict: Verdict, *, is_up: bool, joinable: bool, needs_down: Sequence[object], lost: str | None, refusal: str
) -> Outcome:
    """
    Decide on a query.

    Args:
        verdict: of the policy on starts for this client; `Verdict.ADMITTED` if the query starts nothing.
        is_up: the VM is up. Then no client is refused, but what the VM needs may not be started for this one.
        joinable: the query starts nothing: the VM is up or on its way.
        needs_down: the VMs that it needs, and that are not up.
        lost: why its hypervisor cannot be asked; None if it can.
        refusal: why this node starts nothing; empty if it may.
    """
    if verdict is not Verdict.ADMITTED:
        return Answer() if is_up else refuse(verdict)
    if not is_up and lost is not None:
        return Refuse(BackendLost, lost)
    if not joinable and refusal:
        return Refuse(ClusterUnavailable, refusal)
    return JoinNeeds() if is_up and needs_down else Join()
