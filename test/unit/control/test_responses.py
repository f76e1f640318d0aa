"""The metrics of the DNS server, read back with Prometheus's own parser."""

from __future__ import annotations

import dns.message
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.resolver import Chain, JitsuResolver
from jitsu_tw.dns.rrl import Decision
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.wire import Source, from_text
from jitsu_tw.dns.zone import Zone
from test.support import vm
from test.support.control import Desk


class ResponseMetricsTests(SynchronousTestCase):
    """``/metrics``, of responses."""

    def test_responses(self) -> None:
        """Responses are counted by protocol, type, response code and zone; warm ones when the metrics are read."""
        desk = Desk(vm())
        zones = Zones([Zone.made_up(from_text("jitsu.test"), 60, [])])
        zones.add_vm(from_text("www.jitsu.test"), "www", desk.fleet.machines["www"].vm.ip, 60)
        server = Server(Chain([JitsuResolver(zones, desk.fleet)]), desk.warm, desk.fleet, zones)
        octets = dns.message.make_query("www.jitsu.test", "A").to_wire()
        server.receive(octets, Source("192.0.2.1", 1), lambda _: None)
        server.receive(octets, Source("192.0.2.1", 1, tcp=True), lambda _: None)
        server.receive(b"", Source("192.0.2.1", 1), lambda _: None)
        for ident in (b"\0\1", b"\0\2"):
            server.answer_warm(([octets[2:]], [Source("192.0.2.1", 1).client(ident)]))
        desk.warm.counters.limited[Decision.DROP] += 5
        desk.warm.counters.logged["dropped"] += 3
        found = {
            (one.name, *sorted(one.labels.values())): one.value
            for family in text_string_to_metric_families(desk.ask("/metrics").body.decode()) for one in family.samples
        }  # fmt: skip
        for key, value in {
            ("jitsu_dns_responses_total", "A", "NOERROR", "udp"): 3,
            ("jitsu_dns_responses_total", "A", "NOERROR", "tcp"): 1,
            ("jitsu_dns_zone_responses_total", "NOERROR", "jitsu.test"): 4, ("jitsu_dns_truncated_total",): 0,
            ("jitsu_dns_limited_total", "dropped"): 5, ("jitsu_dns_limited_total", "truncated"): 0,
            ("jitsu_dns_ignored_total",): 1, ("jitsu_query_log_lines_total", "dropped"): 3,
        }.items():  # fmt: skip
            self.assertEqual(value, found[key], key)
