"""What Synjitsu says of itself, where there is one: as JSON, and as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from jitsu_tw.vm.fleet import Fleet

#: Synjitsu's counters that only grow, and what they mean; others are of this moment.
_COUNTERS: Final = {
    "held": "Packets held for VMs that boot or sleep.",
    "handed_over": "Held packets that their guests got.",
    "expired": "Held packets that waited too long.",
    "given_up": "Held packets whose clients gave up.",
    "refused": "Packets refused because the VM did not start.",
    "dropped": "Held packets dropped because the VM did not start, or is stood in for no longer.",
    "turned_away": "Packets that there was no room to hold.",
    "passed_on": "Frames passed on to guests whose peers did not know their MAC yet.",
}


async def standins(fleet: Fleet) -> dict[str, Any]:
    """
    Return who is stood in for, and Synjitsu's counters.

    Returns:
        ``configured``: whether there is to be a Synjitsu; ``error``: why it cannot be asked, or None; ``standins``, a
        list of mappings with ``ip``, ``mac``, ``state``, ``handover`` and ``held``; ``counters``, a mapping of numbers.
    """
    cover = fleet.cover
    said: dict[str, Any] = {"configured": cover is not None, "error": None, "standins": [], "counters": {}}
    if cover is not None:
        try:
            said |= await cover.standin.status()
        except JitsuError as error:
            said["error"] = str(error)
    return said


class _Counted:
    """Synjitsu's counters, in Prometheus' words."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        for name, meaning in _COUNTERS.items():
            if name in self._counters:
                yield CounterMetricFamily(f"jitsu_synjitsu_{name}", meaning, value=self._counters[name])
        for name in self._counters.keys() - _COUNTERS.keys():
            yield GaugeMetricFamily(f"jitsu_synjitsu_{name}", "At this moment.", value=self._counters[name])


async def metrics(fleet: Fleet) -> bytes:
    """Return Synjitsu's counters in Prometheus' text format; nothing where there is no Synjitsu."""
    registry = CollectorRegistry()
    registry.register(_Counted((await standins(fleet))["counters"]))
    return generate_latest(registry)
