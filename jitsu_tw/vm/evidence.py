"""What a hypervisor counts of a guest, which shows whether it is in use without a query for its name."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.rules.lease import Use, counted
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from jitsu_tw.rules.flows import Flows
    from jitsu_tw.rules.lease import Lease
    from jitsu_tw.vm.machine import Machine

#: What an operator reads of a VM whose use cannot be seen.
UNCOUNTED: Final = {
    Use.SENT: (
        "nobody counts the packets of its guest, so it is not stopped when it is idle; with evidence: queries it is, "
        "after its last question"
    ),
    Use.CPU: "nobody counts the CPU time of its guest, so it is not stopped when it is idle; without idle_cpu it is",
}


async def totals(machine: Machine, lease: Lease) -> dict[Use, float] | None:
    """Return what is counted of the guest; None, and *lease* cannot see its use, while that is not known."""
    kinds, backend = counted(machine.vm), machine.backend
    found: dict[Use, float | None] = {}
    try:
        for kind in kinds:
            count = backend.traffic if kind is Use.SENT else backend.cpu_time
            found[kind] = await count(machine.uuid)
    except NoSuchVM as error:
        machine.look(str(error))
    except BackendLost:
        pass
    except BackendError as error:
        what = f"what its guest does cannot be counted, so it is not stopped when idle: {error}"
        machine.problem(Problem.EVIDENCE, what)
    else:
        machine.problem(Problem.EVIDENCE, *(UNCOUNTED[kind] for kind, total in found.items() if total is None))
    known = {kind: total for kind, total in found.items() if total is not None}
    lease.seen_from = -inf if len(known) == len(kinds) else inf
    return known if len(known) == len(kinds) else None

def no_flows(machine: Machine) -> Flows | None:  # noqa: ARG001
    """Return None: nobody reports the connections of *machine*."""
    return None
