"""The zones that are signed, at the control endpoint, and their metrics."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jitsu_tw.control.routes import RefusalError, argument, number

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.metrics_core import Metric
    from twisted.web.server import Request

    from jitsu_tw.control.routes import Route
    from jitsu_tw.idnssec import IDnssec, ZoneStatus

#: Seconds that caches keep DS records of a parent, if the client does not say how long, and the most that it may say.
DS_TTL: Final = 86400
LONGEST_DS_TTL: Final = 30 * 86400

#: The most zones with metrics of their own, the first.
MOST_LABELLED: Final = 200


def dnssec_routes(dnssec: IDnssec) -> Iterator[Route]:
    """Yield the routes that show and steer *dnssec*."""
    yield "GET", "/v1/dnssec", partial(_list, dnssec)
    yield "POST", "/v1/dnssec/rollover", partial(_change, dnssec.rollover)
    yield "POST", "/v1/dnssec/ds-seen", partial(_seen, dnssec)
    yield "POST", "/v1/dnssec/insecure", partial(_change, dnssec.leave)


async def _list(dnssec: IDnssec, _: Request) -> list[dict[str, Any]]:
    """List all signed zones, once those that come signed have been checked."""
    await dnssec.checked()
    return [one.as_json() for one in dnssec.statuses()]


async def _change(act: Callable[[str], Awaitable[ZoneStatus]], request: Request) -> dict[str, Any]:
    """Do something to the zone ``zone``, and return it."""
    return (await act(_zone(request))).as_json()


async def _seen(dnssec: IDnssec, request: Request) -> dict[str, Any]:
    """Go on with the rollover of the zone ``zone``; its old DS record has the TTL ``ds_ttl``."""
    ttl = number(request, "ds_ttl", DS_TTL, LONGEST_DS_TTL)
    return (await dnssec.ds_seen(_zone(request), ttl)).as_json()


def _zone(request: Request) -> str:
    zone = argument(request, "zone")
    if not zone:
        raise RefusalError(HTTPStatus.BAD_REQUEST, "say which: ?zone=NAME")
    return zone


class DnssecCollector(Collector):
    """The metrics of zones that are signed."""

    def __init__(self, dnssec: IDnssec) -> None:
        """Read the metrics from *dnssec*."""
        self._dnssec = dnssec

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as they are now."""
        expiry = GaugeMetricFamily(
            "jitsu_dnssec_earliest_expiry_seconds", "When the first signature of a zone expires.", labels=["zone"]
        )
        made = CounterMetricFamily("jitsu_dnssec_signatures", "Signatures that were made for a zone.", labels=["zone"])
        problems = GaugeMetricFamily("jitsu_dnssec_problems", "Problems of a signed zone.", labels=["zone"])
        for one in islice(self._dnssec.statuses(), MOST_LABELLED):
            if one.earliest_expiry is not None:
                expiry.add_metric([one.zone], one.earliest_expiry)
            if one.signer == "Jitsu":
                made.add_metric([one.zone], one.signatures)
            problems.add_metric([one.zone], len(one.problems))
        yield from (expiry, made, problems)
