"""The numbers for Prometheus, read back with its own parser."""

from __future__ import annotations

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import __version__
from jitsu_tw.control.metrics import MOST_LABELLED
from jitsu_tw.ijitsu import Memory
from test.support import question, vm
from test.support.control import Desk


def samples(desk: Desk) -> dict[tuple[str, str], float]:
    """Return the numbers, by name and the values of labels."""
    text = desk.ask("/metrics").body.decode()
    return {
        (one.name, " ".join(one.labels.values())): one.value
        for family in text_string_to_metric_families(text) for one in family.samples
    }  # fmt: skip


class MetricsTests(SynchronousTestCase):
    """``/metrics``."""

    def test_numbers(self) -> None:
        """What has happened is counted."""
        desk = Desk(vm("www", boot_time=0.4), vm("bad", faults=["start"]), vm("db"), starts_per_minute=2)
        for name in ("www", "bad"):
            desk.fleet.summons.summon(name, question(name)).addErrback(lambda _: None)
        desk.fleet.summons.summon("db", question("db")).addErrback(lambda _: None)
        desk.pump(1)
        desk.fleet.summons.summon("www", question(host="192.0.2.2"))
        uses = [("www", desk.fleet.stats.use_of(desk.fleet.machines["www"], question().key), 5, desk.clock.seconds())]
        self.patch(desk.warm, "taken", lambda: [uses.pop()] if uses else [])
        desk.fleet.operator.hold("db")
        found = samples(desk)
        for key, value in {
            ("jitsu_build_info", __version__): 1, ("jitsu_vms", "up"): 2, ("jitsu_vms", "failed"): 1,
            ("jitsu_vms", "off"): 0,
            ("jitsu_leases", ""): 2, ("jitsu_held", ""): 1, ("jitsu_hypervisor_up", "memory"): 1,
            ("jitsu_queries_total", "cold"): 2, ("jitsu_queries_total", "warm"): 6,
            ("jitsu_refused_total", "over_budget"): 1, ("jitsu_refused_total", "outside"): 0,
            ("jitsu_activations_total", "up"): 2, ("jitsu_activations_total", "failed"): 1,
            ("jitsu_vm_up", "www"): 1, ("jitsu_vm_up", "bad"): 0, ("jitsu_vm_starts_total", "www"): 1,
            ("jitsu_vm_requests_total", "www"): 7,
            ("jitsu_cold_start_seconds_count", "booted"): 2, ("jitsu_cold_start_seconds_bucket", "booted 0.1"): 1,
            ("jitsu_cold_start_seconds_bucket", "booted 0.75"): 2, ("jitsu_cold_start_part_seconds_count", "guest"): 2,
        }.items():  # fmt: skip
            self.assertEqual(value, found.get(key, found.get((key[0], " ".join(key[1].split()[::-1])))), key)
        self.assertAlmostEqual(0.4, found["jitsu_cold_start_seconds_sum", "booted"], delta=0.11)
        self.assertEqual(119.5, round(found["jitsu_vm_lease_seconds", "www"] * 2) / 2 - 0.5)
        self.assertIn(("process_resident_memory_bytes", ""), found)

    def test_saved(self) -> None:
        """The time in which VMs did not run is counted, and so is the memory that was free meanwhile."""
        desk = Desk(vm("a"), vm("b"))
        desk.backend.guests[desk.machine("a").uuid].memory = Memory(1000, 9999)
        desk.pump(1)
        before = samples(desk)
        desk.pump(10)
        found = samples(desk)
        for name, more in (("jitsu_saved_seconds_total", 20), ("jitsu_saved_byte_seconds_total", 10000)):
            self.assertEqual(more, round(found[name, ""] - before[name, ""]))

    def test_lost(self) -> None:
        """A hypervisor that cannot be asked is seen."""
        desk = Desk(vm())
        desk.fleet.inventory.lost(desk.backend, "the wire is cut")
        self.assertEqual(0, samples(desk)["jitsu_hypervisor_up", "memory"])

    def test_formats(self) -> None:
        """The reader chooses the format; a strange wish gets the plain one."""
        desk = Desk(vm())
        answer = desk.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        self.assertTrue(answer.headers["content-type"].startswith("application/openmetrics-text"))
        self.assertNotEqual([], list(openmetrics.text_string_to_metric_families(answer.body.decode())))
        for strange in ("text/plain; version=x", "*/*", "application/openmetrics-text; version=;;=", ";"):
            answer = desk.ask("/metrics", Accept=strange)
            self.assertEqual(200, answer.status)

    def test_bounded(self) -> None:
        """Of many VMs only the first have numbers of their own."""
        desk = Desk(*(vm(f"vm{number}") for number in range(MOST_LABELLED + 7)))
        found = samples(desk)
        self.assertEqual(MOST_LABELLED, sum(name == "jitsu_vm_up" for name, _ in found))
        self.assertEqual(MOST_LABELLED + 7, found["jitsu_vms", "off"])

    def test_synjitsu(self) -> None:
        """Where there is a Synjitsu, its numbers are among them."""
        desk = Desk(vm())

        class Cover:
            @property
            def clients(self) -> dict[str, Cover]:
                return {"": self}

            def status(self) -> object:
                standins = [{"state": "asleep", "held": 2}, {"state": "asleep", "held": 0}, {"state": "up", "held": 1}]
                return succeed({"standins": standins, "counters": {"expired": 7, "held_now": 3}})

        desk.fleet.standins = Cover()  # type: ignore[assignment]
        found = samples(desk)
        for key, value in {("jitsu_synjitsu_up", ""): 1, ("jitsu_synjitsu_standins", "asleep"): 2,
                           ("jitsu_synjitsu_held", ""): 3, ("jitsu_synjitsu_events_total", "expired"): 7}.items():
            self.assertEqual(value, found[key], key)
        self.assertNotIn(("jitsu_synjitsu_events_total", "held_now"), found)

    def test_no_vms(self) -> None:
        """A server without VMs has numbers too."""
        self.assertEqual(0, samples(Desk())["jitsu_leases", ""])
