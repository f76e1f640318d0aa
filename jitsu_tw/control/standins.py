"""What Synjitsu says of itself, where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from jitsu_tw.vm.fleet import Fleet


async def standins(fleet: Fleet) -> dict[str, Any]:
    """
    Return who is stood in for, and Synjitsu's counters.

    Returns:
        ``configured``: whether there is to be a Synjitsu; ``error``: why it cannot be asked, or None; ``standins``, a
        list of mappings with ``ip``, ``mac``, ``state``, ``handover`` and ``held``; ``counters``, a mapping of numbers.
    """
    clients = fleet.standins.clients
    said: dict[str, Any] = {"configured": bool(clients), "error": None, "standins": [], "counters": {}}
    for client in clients.values():
        try:
            status = await client.status()
        except JitsuError as error:
            said["error"] = str(error)
            continue
        said["standins"] += status["standins"]
        for name, count in status["counters"].items():
            said["counters"][name] = said["counters"].get(name, 0) + count
    return said
