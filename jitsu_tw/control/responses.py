"""The metrics of the DNS server: its responses, by what operators of DNS ask for (`dns.counters`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from jitsu_tw.dns.rrl import Decision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from jitsu_tw.dns.counters import Counters

#: What became of a response that the limiter did not let out as it was.
ACTIONS: Final = {Decision.SLIP: "truncated", Decision.DROP: "dropped"}


class ResponseCollector(Collector):
    """The metrics of a server's counters. To be registered behind what gathers the uses of warm answers."""

    def __init__(self, counters: Counters) -> None:
        """Read the metrics from *counters*."""
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as they are now."""
        counters = self._counters
        yield _family(
            "jitsu_dns_responses", "Responses, by protocol, type of the question and response code.",
            ("protocol", "type", "rcode"), counters.responses.items(),
        )  # fmt: skip
        yield _family(
            "jitsu_dns_zone_responses", "The same responses, by zone and response code.", ("zone", "rcode"),
            counters.zones.items(),
        )  # fmt: skip
        yield _family("jitsu_dns_truncated", "Responses among them with TC.", (), [((), counters.truncated)])
        limited = [([name], counters.limited[decision]) for decision, name in ACTIONS.items()]
        yield _family("jitsu_dns_limited", "Responses over the rate limit, by what is done.", ("action",), limited)
        yield _family("jitsu_dns_ignored", "Packets that get no response.", (), [((), counters.ignored)])
        lines = [([name], count) for name, count in counters.logged.items()]
        yield _family("jitsu_query_log_lines", "Lines of the query log, by what became of them.", ("outcome",), lines)


def _family(name: str, help_: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], int]]) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family
