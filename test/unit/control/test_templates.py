"""Templates at the control endpoint: what they have made, what is left for them, what is wrong, and the end of a VM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from jitsu_tw.control.templates import NoTemplates
from jitsu_tw.errors import BackendError, ConfigError
from jitsu_tw.ijitsu import ITemplateControl, TemplateCounts
from jitsu_tw.keys import DAY
from jitsu_tw.settings import Layer
from jitsu_tw.store.layout import made_by, origin_path
from test.support import EPOCH, question, vm
from test.support.control import Desk, member, site
from test.unit.control.test_metrics import samples

if TYPE_CHECKING:
    from typing import Any

DONE = TemplateCounts(5, 1, 2, {"max": 7}, {"exists": 6, "missing": 90})


class ListTests(SynchronousTestCase):
    """``/v1/templates``."""

    def test_shown(self) -> None:
        """A template is shown with its VMs by state, the addresses that are left, its limits and what it has done."""
        desk = Desk(vm(), member("a"), member("b", number=2), templates=(site(max=9),))
        desk.control.done["site"] = DONE
        desk.fleet.summons.summon("a.site", question("a"))
        (one,) = desk.ask("/v1/templates").value
        self.assertEqual({"up": 1, "off": 1}, one.pop("states"))
        counts = {"made": 5, "failed": 1, "forgotten": 2, "refused": {"max": 7}, "asked": {"exists": 6, "missing": 90}}
        self.assertEqual({
            "name": "site", "uuid": "uuid-of-site", "wildcards": ["*.site.test"], "max": 9, "new_per_minute": 10,
            "pool": {"addresses": ["10.1.0.0/24"], "size": 254, "free": 252}, "forget_after": 30.0 * DAY, "vms": 2,
            "counts": counts, "problems": [],
        }, one)  # fmt: skip
        self.assertEqual([None, "site", "site"], [each["template"] for each in desk.ask("/v1/vms").value])

    def test_shared_pool(self) -> None:
        """What a template has taken of a pool that another one has, too, is free for neither."""
        desk = Desk(member("a"), templates=(site(), site("shop"), site("six", "2001:db8::/64")))
        free = {one["name"]: one["pool"]["free"] for one in desk.ask("/v1/templates").value}
        self.assertEqual({"site": 253, "shop": 253}.items(), free.items() - {("six", free["six"])})

    def test_described(self) -> None:
        """The description of the endpoint has each of its fields, and of a VM's."""
        desk = Desk(member("a"), templates=(site(),))
        schemas = desk.ask("/v1/openapi.json").value["components"]["schemas"]
        (one,) = desk.ask("/v1/templates").value
        for value, schema in (
            (one, schemas["Template"]), (one["counts"], schemas["Template"]["properties"]["counts"]),
            (one["pool"], schemas["Template"]["properties"]["pool"]), (desk.ask("/v1/vms").value[0], schemas["VM"]),
        ):  # fmt: skip
            self.assertEqual(value.keys(), schema["properties"].keys())
            self.assertEqual(value.keys(), set(schema["required"]))

    def test_no_vm(self) -> None:
        """A template is no VM that could be started."""
        answer = Desk(templates=(site(),)).post("/v1/vms/site/start")
        self.assertEqual(404, answer.status)
        self.assertEqual({"error": "a template, no VM; jitsuctl templates shows it"}, answer.value)

    def test_none(self) -> None:
        """Without templates the list is empty."""
        self.assertEqual([], Desk(vm()).ask("/v1/templates").value)


class HealthTests(SynchronousTestCase):
    """``/healthz``."""

    def problems(self, desk: Desk) -> list[str]:
        """Return what is wrong."""
        found: list[str] = desk.ask("/healthz").value["problems"]
        return found

    def test_pool(self) -> None:
        """A pool with few addresses left for new VMs is told, with the remedy; not if no more VMs may be made."""
        vms = [member(f"vm{number}", number=number) for number in range(1, 14)]
        remedy = "enlarge its pool, or forget VMs: jitsuctl forget --template site"
        self.assertEqual([], self.problems(Desk(*vms, templates=(site(pool="10.1.0.0/27"),))))
        none = f"template site: it has 0 of 13 addresses left; {remedy}"
        self.assertEqual([none], self.problems(Desk(*vms, templates=(site(pool="10.1.0.1-10.1.0.13"),))))
        self.assertEqual([], self.problems(Desk(*vms, templates=(site(pool="10.1.0.1-10.1.0.13", max=13),))))
        twenty = [member(f"vm{number}", number=number) for number in range(1, 21)]
        (few,) = self.problems(Desk(*twenty, templates=(site(pool="10.1.0.1-10.1.0.21"),)))
        self.assertIn("it has 1 of 21 addresses left", few)

    def test_others(self) -> None:
        """What templates find wrong is told, of one that the configuration has no more, too."""
        desk = Desk(vm(), templates=(site(),))
        desk.control.wrong = {"site": ["/exists cannot be run"], "old": ["it is not there; its 2 VMs are not served"]}
        told = ["template site: /exists cannot be run", "template old: it is not there; its 2 VMs are not served"]
        self.assertEqual(told, self.problems(desk))
        self.assertEqual(["/exists cannot be run"], desk.ask("/v1/templates").value[0]["problems"])


class ForgetTests(SynchronousTestCase):
    """``/v1/vms/{vm}/forget``."""

    def test_forgotten(self) -> None:
        """A VM is forgotten; what cannot be is 409 with the reason, and a name without a VM 404."""
        desk = Desk(member("a"), templates=(site(),))
        answer = desk.post("/v1/vms/a.site/forget")
        self.assertEqual((200, {"forgotten": True}), (answer.status, answer.value))
        desk.control.refusal = BackendError("it cannot be removed: no disk")
        answer = desk.post("/v1/vms/a.site/forget")
        self.assertEqual((409, {"error": "it cannot be removed: no disk"}), (answer.status, answer.value))
        self.assertEqual(404, desk.post("/v1/vms/b.site/forget").status)
        self.assertEqual(["a.site"] * 2, desk.control.forgotten)

    def test_shows_only(self) -> None:
        """A client that may stop no VM may forget none."""
        desk = Desk(member("a"), templates=(site(),))
        talk = desk.talk("127.0.0.1")
        talk.say("POST", "/v1/vms/a.site/forget")
        self.assertEqual(403, talk.heard().status)
        self.assertEqual([], desk.control.forgotten)

    def test_without_state(self) -> None:
        """Where there is no state, and so no template, nothing is done, shown, or forgotten."""
        none = NoTemplates()
        verifyObject(ITemplateControl, none)
        self.assertEqual((TemplateCounts(), {}), (none.counts("site"), none.problems()))
        self.failureResultOf(none.forget("www"), ConfigError)


class WhyTests(SynchronousTestCase):
    """Why there is a VM of a template, and until when."""

    def desk(self, origin: str, *, used: bool = True, **template: Any) -> Desk:
        """Return a desk with a VM of a template that is off, and whose *origin* is in the state."""
        desk = Desk(member("a", idle=10.0), templates=(site(**template),))
        desk.fleet.store.config.merged({origin_path(desk.machine("a.site").uuid): origin})
        if used:
            desk.fleet.summons.summon("a.site", question("a"))
        return desk

    def why(self, desk: Desk) -> str:
        """Return the words, in one line."""
        return " ".join(desk.ask("/v1/vms/a.site").value["why"])

    def test_made(self) -> None:
        """Which template has made it, for whom and when; after a restart, which and when."""
        desk = self.desk(made_by("site", EPOCH + 980))
        self.assertIn("The template site made it, 20 s ago.", self.why(desk))
        desk.fleet.journal.made("a.site", "site", "192.0.2.7")
        self.assertIn("The template site made it for 192.0.2.7, 20 s ago.", self.why(desk))
        self.assertEqual(EPOCH + 980, desk.ask("/v1/vms/a.site").value["made_ts"])
        desk.fleet.journal.made("a.site", "site", "192.0.2.8")
        self.assertIn("The template site made it for 192.0.2.8, 20 s ago.", self.why(desk), "made anew")
        self.assertIn("The template site made it.", self.why(self.desk("template site")))

    def test_kept(self) -> None:
        """Until when its name is kept: counted from its last use, once it is down."""
        desk = self.desk("template site", forget_after=3600.0)
        words = "Its name and its address are kept until 60 min after its last use (forget_after)."
        self.assertIn(words, self.why(desk))
        self.assertIsNone(desk.ask("/v1/vms/a.site").value["forgotten_ts"])
        desk.pump(600, 1)
        words = "Its name and its address are given up in 50 min if nobody uses it (forget_after)."
        self.assertIn(words, self.why(desk))
        expected = EPOCH + 1000 + 10 + 3600
        self.assertAlmostEqual(expected, desk.ask("/v1/vms/a.site").value["forgotten_ts"], delta=2)

    def test_for_ever(self) -> None:
        """Without `forget_after`, until it is forgotten by hand."""
        words = "Its name and its address are kept until an operator forgets it: jitsuctl forget a.site."
        self.assertIn(words, self.why(self.desk("template site", forget_after=0.0)))

    def test_unused(self) -> None:
        """Of a VM whose last use is not known, only for how long names are kept."""
        self.assertIn("are kept until 30 d after its last use", self.why(self.desk("template site", used=False)))

    def test_disk(self) -> None:
        """Its disk goes with it, if it has one."""
        desk = Desk(member("a", layer=Layer(Path("a.qcow2"), Path("base.qcow2"))), templates=(site(),))
        self.assertIn("Its name, its address and its disk are kept", self.why(desk))

    def test_configuration(self) -> None:
        """What it has from the template is told, and what is its own."""
        one = member("a", idle=300.0, ttl=30, raw={"name": ("a.site",), "ttl": ("30",)})
        desk = Desk(one, templates=(site(raw={"pool": ("10.1.0.0/24",), "idle": ("300",), "ttl": ("60",)}),))
        desk.fleet.store.config.merged({origin_path(desk.machine("a.site").uuid): made_by("site", EPOCH)})
        found = {one["key"]: one for one in desk.ask("/v1/vms/a.site").value["configuration"]}
        self.assertEqual({"key": "idle", "value": "300", "from": "the template site"}, found["idle"])
        self.assertEqual({"key": "ttl", "value": "30", "from": made_by("site", EPOCH)}, found["ttl"])
        self.assertNotIn("pool", found)

    def test_others(self) -> None:
        """Of a VM of the configuration nothing is said."""
        self.assertNotIn("template", " ".join(Desk(vm()).ask("/v1/vms/www").value["why"]))


class MetricsTests(SynchronousTestCase):
    """The numbers of templates."""

    def test_numbers(self) -> None:
        """Each template has its VMs by state, its free addresses, and what it has done; its VMs have no series."""
        desk = Desk(vm(), member("a"), member("b", number=2), templates=(site(),))
        desk.control.done["site"] = DONE
        desk.fleet.summons.summon("a.site", question("a"))
        found = samples(desk)
        for name, labels, value in (
            ("vms", "site up", 1), ("vms", "site off", 1), ("vms", "site failed", 0), ("addresses_free", "site", 252),
            ("made_total", "site", 5), ("failed_total", "site", 1), ("forgotten_total", "site", 2),
            ("refused_total", "site max", 7), ("asked_total", "site exists", 6), ("asked_total", "site missing", 90),
        ):  # fmt: skip
            key, turned = f"jitsu_template_{name}", " ".join(labels.split()[::-1])
            self.assertEqual(value, found.get((key, labels), found.get((key, turned))), (name, labels))
        self.assertEqual(["www"], [labels for name, labels in found if name == "jitsu_vm_up"])
