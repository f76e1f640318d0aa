"""
Metrics for Prometheus, in a registry of their own. docs/reference/metrics.md has a table of them.

What the fleet counts anyway is read when a client asks; only the times of activations are gathered as they end.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from jitsu_tw import __version__
from jitsu_tw.control.describe import hosts, nodes, standins
from jitsu_tw.control.dnssec import DnssecCollector
from jitsu_tw.control.responses import ResponseCollector
from jitsu_tw.control.routes import header
from jitsu_tw.control.templates import statuses
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.policy import Verdict
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric
    from twisted.web.server import Request

    from jitsu_tw.dns.counters import Counters
    from jitsu_tw.idnssec import IDnssec
    from jitsu_tw.ijitsu import ITemplateControl
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.journal import Event

#: The most VMs with metrics of their own, the first of the configuration: each costs four series. The VMs of templates
#: have none, whose series would come and go with them; and the most templates: each costs some thirty.
MOST_LABELLED: Final = 200

#: In seconds: from a guest that is resumed to one that boots from a slow disk.
BUCKETS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)

#: The parts of an activation, each from one step to another.
PARTS: Final = {"turn": ("query", "start"), "hypervisor": ("start", "started"), "guest": ("started", "ready")}


class FleetCollector(Collector):
    """
    The metrics of a fleet.

    Attributes:
        synjitsu: what Synjitsu answered last (`describe.standins`).
    """

    def __init__(self, fleet: Fleet, templates: ITemplateControl) -> None:
        """Read the metrics from *fleet* and its *templates*."""
        self._fleet, self._templates = fleet, templates
        self.synjitsu: dict[str, Any] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as they are now."""
        fleet, journal = self._fleet, self._fleet.journal
        by_vm = list(self._by_vm())  # first: it gathers the uses of warm answers
        yield gauge("jitsu_build_info", "The version that runs.", {__version__: 1}, "version")
        states = Counter({state.shown: 0 for state in State})
        for state, count in journal.totals.states.items():
            states[state.shown] += count
        yield gauge("jitsu_vms", "VMs by state.", states, "state")
        yield gauge("jitsu_leases", "VMs that are kept because they are in use.", {"": fleet.leases.leases})
        yield gauge("jitsu_held", "VMs that a person keeps up.", {"": fleet.leases.wakeups.held})
        counts = fleet.context.problems.counts
        problems = {kind.value: counts[kind] for kind in Problem}
        yield gauge("jitsu_vm_problems", "VMs that have a problem, by kind.", problems, "kind")
        reachable = {name: int(reason is None) for name, reason in fleet.inventory.hypervisors.items()}
        yield gauge("jitsu_hypervisor_up", "Whether a hypervisor can be asked.", reachable, "hypervisor")
        for what, members in (("node", nodes(fleet)), ("host", hosts(fleet))):
            well = {one["name"]: int(one["problem"] is None) for one in members}
            yield gauge(f"jitsu_{what}_up", f"Whether a {what} is known to be well.", well, what)
            running = {one["name"]: one["vms"] for one in members}
            yield gauge(f"jitsu_{what}_vms", f"VMs that a {what} has.", running, what)
        yield gauge("jitsu_state_written", "Whether the state can be written.", {"": int(fleet.store.is_written)})
        queries = {"warm": journal.totals.warm, "cold": journal.totals.cold}
        yield counter("jitsu_queries", "Queries for VMs that were up (warm), and for others.", queries, "kind")
        refused = {one.name.lower(): journal.totals.refused[one] for one in Verdict if one is not Verdict.ADMITTED}
        yield counter("jitsu_refused", "Starts that were refused, by reason.", refused, "reason")
        saved = fleet.uptime.saved()
        seconds, octets = {"": saved["seconds"]}, {"": saved["byte_seconds"]}
        yield counter("jitsu_saved_seconds", "Seconds in which VMs did not run, of all VMs together.", seconds, "")
        yield counter("jitsu_saved_byte_seconds", "The same, times the memory that was free.", octets, "")
        totals = journal.totals
        outcomes = {one: totals.outcomes[one] for one in ("up", "failed", "stopped", "lost")}
        yield counter("jitsu_activations", "Ways from stopped to ready, by how they ended.", outcomes, "outcome")
        yield counter("jitsu_retries", "Starts that were tried once more by themselves.", {"": totals.retries}, "")
        yield from by_vm
        yield from self._by_template()
        yield from self._synjitsu()

    def _by_vm(self) -> Iterator[Metric]:
        fleet, of_file = self._fleet, (one for one in self._fleet.machines.values() if one.vm.template is None)
        some = list(islice(of_file, MOST_LABELLED))
        stats = {machine.vm.name: fleet.stats.current(machine) for machine in some}
        up = {machine.vm.name: int(machine.state is State.UP) for machine in some}
        yield gauge("jitsu_vm_up", "Whether the VM is up.", up, "vm")
        left = {one.vm.name: lease for one in some if (lease := fleet.leases.left(one)) is not None}
        yield gauge("jitsu_vm_lease_seconds", "Seconds until the VM is stopped if nobody uses it.", left, "vm")
        starts = {name: one.total_starts for name, one in stats.items()}
        yield counter("jitsu_vm_starts", "Starts of the VM, those that the state remembers among them.", starts, "vm")
        asked = {name: one.total_requests for name, one in stats.items()}
        yield counter("jitsu_vm_requests", "Questions for the VM, counted likewise.", asked, "vm")

    def _by_template(self) -> Iterator[Metric]:
        some = list(islice(statuses(self._fleet, self._templates), MOST_LABELLED))
        by_state = Counter({(one.template.name, state): 0 for one in some for state in {each.shown for each in State}})
        for one in some:
            for state, number in one.states.items():
                by_state[one.template.name, state.shown] += number
        yield labelled(GaugeMetricFamily, "jitsu_template_vms", "VMs of a template, by state.", by_state, "state")
        free = {(one.template.name,): one.free for one in some}
        yield labelled(GaugeMetricFamily, "jitsu_template_addresses_free", "Addresses for new VMs of a template.", free)
        for what, help_ in (
            ("made", "VMs that a template has made."),
            ("failed", "VMs of a template that could not be made, or whose first start has failed."),
            ("forgotten", "VMs of a template that are forgotten."),
        ):
            done = {(one.template.name,): getattr(one.counts, what) for one in some}
            yield labelled(CounterMetricFamily, f"jitsu_template_{what}", help_, done)
        refused = {(one.template.name, why): times for one in some for why, times in one.counts.refused.items()}
        help_ = "VMs of a template that were not made because of a limit, by the limit."
        yield labelled(CounterMetricFamily, "jitsu_template_refused", help_, refused, "reason")
        asked = {(one.template.name, answer): times for one in some for answer, times in one.counts.asked.items()}
        help_ = "Questions for names of a template that have no VM, by whether the name exists."
        yield labelled(CounterMetricFamily, "jitsu_template_asked", help_, asked, "answer")

    def _synjitsu(self) -> Iterator[Metric]:
        status = self.synjitsu
        if status.get("configured"):
            yield gauge("jitsu_synjitsu_up", "Whether Synjitsu can be asked.", {"": int(status["error"] is None)})
            states = Counter(one["state"] for one in status["standins"])
            yield gauge("jitsu_synjitsu_standins", "Addresses that are stood in for, by state.", states, "state")
            held = sum(one["held"] for one in status["standins"])
            yield gauge("jitsu_synjitsu_held", "Packets that are held.", {"": held})
            counts = {name: count for name, count in status["counters"].items() if not name.endswith("_now")}
            yield counter("jitsu_synjitsu_events", "What Synjitsu counts, by its own words.", counts, "event")


def gauge(name: str, help_: str, values: dict[str, int] | dict[str, float], label: str = "") -> Metric:
    """Return numbers that go up and down, by the values of *label*."""
    return _family(GaugeMetricFamily(name, help_, labels=[label] if label else []), values)


def counter(name: str, help_: str, values: dict[str, int] | dict[str, float], label: str) -> Metric:
    """Return numbers that go up, by the values of *label*."""
    return _family(CounterMetricFamily(name, help_, labels=[label]), values)


def labelled(kind: Any, name: str, help_: str, values: Mapping[Any, float], label: str = "") -> Metric:
    """Return a family of that *kind* whose *values* are those of templates, and of *label* if there is one."""
    family: Metric = kind(name, help_, labels=["template", *filter(None, [label])])
    for labels, value in values.items():
        family.add_metric(labels, value)  # type: ignore[attr-defined]
    return family


def _family(family: Any, values: dict[str, int] | dict[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label] if label else [], value)
    metric: Metric = family
    return metric


class Metrics:
    """``/metrics``."""

    def __init__(self, fleet: Fleet, counters: Counters, templates: ITemplateControl, dnssec: IDnssec) -> None:
        """
        Count what happens in *fleet* from now on.

        Args:
            fleet: the VMs.
            counters: have the responses.
            templates: sees and steers the templates.
            dnssec: sees and steers the zones that are signed.
        """
        self._fleet = fleet
        disable_created_metrics()  # gauges of their own for when the process began
        self._registry = CollectorRegistry()
        self._collector = FleetCollector(fleet, templates)
        self._registry.register(self._collector)  # first: it gathers the uses of warm answers
        self._registry.register(ResponseCollector(counters))
        self._registry.register(DnssecCollector(dnssec))
        ProcessCollector(registry=self._registry)
        self._cold_start = Histogram(
            "jitsu_cold_start_seconds", "From the question to a VM that is ready.", ["how"],
            buckets=BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._part = Histogram(
            "jitsu_cold_start_part_seconds", "The parts of that: a turn to boot, the hypervisor, the guest.", ["part"],
            buckets=BUCKETS, registry=self._registry,
        )  # fmt: skip
        fleet.journal.on_event.append(self._hear)

    def _hear(self, event: Event) -> None:
        if event.kind != "activation" or event.facts["activation"]["outcome"] != "up":
            return
        activation = event.facts["activation"]
        steps: dict[str, float] = activation["steps"]
        if "ready" in steps:
            self._cold_start.labels(activation["how"] or "booted").observe(steps["ready"] / 1000)
        for part, (begin, end) in PARTS.items():
            if begin in steps and end in steps:
                self._part.labels(part).observe((steps[end] - steps[begin]) / 1000)

    async def show(self, request: Request) -> bytes:
        """Return all metrics, in the format that the client accepts."""
        self._collector.synjitsu = await standins(self._fleet)
        try:
            encode, kind = choose_encoder(header(request, b"accept"))
        except (TypeError, ValueError):  # the client asks for a version that does not exist
            encode, kind = choose_encoder("")
        request.setHeader("content-type", kind)
        return encode(self._registry)
