"""What is counted of a guest, by Synjitsu or its hypervisor: it shows whether the guest is in use without a query."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.rules.lease import Use, counted
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from jitsu_tw.rules.lease import Lease
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.standins import StandIns

#: What an operator reads of a VM whose use cannot be seen.
UNCOUNTED: Final = {
    Use.PACKETS: (
        "nobody counts the packets of its guest, so it is not stopped when it is idle; with evidence: queries it is, "
        "after its last question"
    ),
    Use.CPU: "nobody counts the CPU time of its guest, so it is not stopped when it is idle; without idle_cpu it is",
}


async def totals(machine: Machine, lease: Lease, standins: StandIns) -> dict[Use, float] | None:
    """
    Return what is counted of the guest; None, and *lease* cannot see its use, while that is not known.

    Synjitsu counts the packets of its conversations, in both directions; a hypervisor can count only what it sends, as
    it does not tell what is sent to the guest from what the bridge floods.
    """
    kinds, backend = counted(machine.vm), machine.backend
    found: dict[Use, float | None] = {}
    try:
        for kind in kinds:
            if kind is Use.CPU:
                found[kind] = await backend.cpu_time(machine.uuid)
            elif (packets := await standins.packets(machine)) is not None:
                found[kind] = packets
            else:
                found[kind] = await backend.traffic(machine.uuid)
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
    is_seen = len(known) == len(kinds)
    lease.seen_from = -inf if is_seen else inf
    return known if is_seen else None
