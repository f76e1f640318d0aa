"""The stand-ins and counters of Synjitsu, where one is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from jitsu_tw.vm.fleet import Fleet


async def standins(fleet: Fleet) -> dict[str, Any]:
    """
    Return the addresses that Synjitsu stands in for, and its counters.

    Returns:
        ``configured``: whether a Synjitsu is configured; ``error``: why it cannot be asked, or None; ``standins``, a
        list of mappings with ``ip``, ``mac``, ``state``, ``handover`` and ``held``; ``counters``, a mapping of numbers.
    """
    clients = fleet.standins.clients
    found: dict[str, Any] = {"configured": bool(clients), "error": None, "standins": [], "counters": {}}
    for client in clients.values():
        try:
            status = await client.status()
        except JitsuError as error:
            found["error"] = str(error)
            continue
        found["standins"] += status["standins"]
        for name, count in status["counters"].items():
            found["counters"][name] = found["counters"].get(name, 0) + count
    return found
