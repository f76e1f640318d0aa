"""The checks of `jitsuctl doctor`: each observation is made, and one that hangs or fails does not hide the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import memory
from jitsu_tw.ctl.client import Control
from jitsu_tw.ctl.diagnosis import checks, findings, hypervisors, machine
from jitsu_tw.ctl.diagnosis.checks import Check, Context, Health
from jitsu_tw.ctl.diagnosis.findings import Answer, Level
from jitsu_tw.ctl.diagnosis.hypervisors import Hypervisor
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.settings import Host, Settings
from jitsu_tw.sockets import SYSTEM
from test.support import vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.ctl.diagnosis.hypervisors import Asked


class Backend(memory.MemoryBackend):
    """A hypervisor whose answers a test chooses."""

    def __init__(self, clock: Clock, **answers: Callable[..., Any]) -> None:
        """Give *answers* in the place of the memory backend's own, by their methods."""
        super().__init__("", clock)
        self.asked: list[Any] = []
        for name, answer in answers.items():
            setattr(self, name, answer)

    def look_up(self, vm: Any) -> Deferred[str]:
        """Remember for which VM it is called."""
        self.asked.append(vm)
        return super().look_up(vm)


class HypervisorTests(SynchronousTestCase):
    """`ask_all`, with a clock."""

    def setUp(self) -> None:
        """Make the clock."""
        self.clock = Clock()

    def ask(self, backend: Backend, *names: str, seconds: float = 60.0) -> Asked:
        """Ask a hypervisor about VMs, for as long as it takes."""
        vms = tuple(vm(name, define="x.xml", prepare=True) for name in names or ("www",))
        asked = Deferred.fromCoroutine(
            hypervisors.ask_all([Hypervisor("qemu", backend, vms, is_here=True)], self.clock, 20.0)
        )
        self.clock.pump([0.01] * 100)
        self.clock.pump([1.0] * int(seconds))
        (answer,) = self.successResultOf(asked)
        return answer

    def test_changes_nothing(self) -> None:
        """A VM is looked up without its file, by which the backend would define it, and not as a prepared one."""
        backend = Backend(self.clock)
        answer = self.ask(backend)
        self.assertEqual(["www"], list(answer.seen))
        self.assertEqual("", answer.error + answer.seen["www"].error)
        self.assertEqual([(None, False)], [(one.define, one.prepare) for one in backend.asked])

    def test_hangs(self) -> None:
        """A hypervisor that never answers is given up after `CONNECTS_WITHIN` seconds."""
        answer = self.ask(Backend(self.clock, connect=lambda _: None), seconds=hypervisors.CONNECTS_WITHIN)
        self.assertEqual("no answer within 5 s", answer.error)

    def test_refuses(self) -> None:
        """One that cannot be connected to tells why."""
        backend = Backend(self.clock)
        backend.connect = lambda watcher: watcher.lost(backend, "Permission denied")  # type: ignore[method-assign]
        self.assertEqual("Permission denied", self.ask(backend).error)

    def test_slow(self) -> None:
        """VMs that it has not told of in time are missing; those that it has told of are there."""
        backend = Backend(self.clock)
        advice = backend.advice
        quick = backend.look_up(vm()).result
        backend.advice = (  # type: ignore[method-assign]
            lambda uuid: advice(uuid) if uuid == quick else Deferred()
        )
        self.assertEqual(["www"], list(self.ask(backend, "www", *map(str, range(20))).seen))

    def test_errors(self) -> None:
        """A VM that it does not know is told from a connection that is lost; a guest that is off may be unknown."""
        answer = self.ask(Backend(self.clock, advice=lambda _: fail(NoSuchVM("no www"))))
        self.assertEqual(("no www", False), (answer.seen["www"].error, answer.seen["www"].is_lost))
        answer = self.ask(Backend(self.clock, advice=lambda _: fail(BackendLost("closed"))))
        self.assertTrue(answer.seen["www"].is_lost)
        answer = self.ask(Backend(self.clock, guest=lambda _: fail(BackendError("it is off"))))
        self.assertEqual(("", None), (answer.seen["www"].error, answer.seen["www"].macs))

    def test_many(self) -> None:
        """It is asked about few VMs at once, and about all in the end."""
        waiting: list[Deferred[tuple[str, ...]]] = []

        def advice(_: str) -> Deferred[tuple[str, ...]]:
            waiting.append(Deferred())
            return waiting[-1]

        vms = tuple(vm(f"vm{number}") for number in range(100))
        one = Hypervisor("qemu", Backend(self.clock, advice=advice), vms, is_here=True)
        asked = Deferred.fromCoroutine(hypervisors.ask_all([one], self.clock, 20.0))
        while not asked.called:
            self.clock.pump([0.001] * 10)
            self.assertLessEqual(len(waiting), hypervisors.AT_ONCE)
            while waiting:
                waiting.pop().callback(())
        self.assertEqual(100, len(self.successResultOf(asked)[0].seen))

    def test_hosts(self) -> None:
        """Each of several hosts is asked about the VMs that may run there."""
        hosts = (Host(name="left", backend="memory", connect=""), Host(name="right", backend="memory", connect=""))
        vms = (vm(backend="hosts", hosts=("left",)), vm("db", backend="hosts", hosts=("left", "right")), vm("own"))
        found = hypervisors.hypervisors(Settings(hosts=hosts, vms=vms))
        self.assertEqual([("left", ["www", "db"]), ("right", ["db"]), ("memory", ["own"])],
                         [(one.name, [vm.name for vm in one.vms]) for one in found])  # fmt: skip


class DiagnosisTests(SynchronousTestCase):
    """`diagnose`, with a clock."""

    def diagnose(self, *them: Check, seconds: float = 0.0) -> list[tuple[str, str]]:
        """Run *them*; return the name of each row, and what it says."""
        clock = Clock()
        clock.callFromThread = lambda function, *arguments: function(*arguments)  # type: ignore[attr-defined]
        rows = Deferred.fromCoroutine(checks.diagnose(Context(Settings()), them, clock))
        clock.advance(seconds)
        return [(row.check, row.finding.text) for row in self.successResultOf(rows)]

    def observe(self, **results: Any) -> None:
        """Make observations end with *results*, at once."""
        self.patch(checks, "OBSERVERS", results)
        self.patch(checks, "in_thread", lambda _reactor, _name, result, _context: result)

    def test_all_at_once(self) -> None:
        """An observation is made once for all checks, and those that no check needs are not made."""
        self.observe(one=succeed(1), other=succeed(2), unused=None)
        rule = lambda _, seen: [findings.ok(str(seen))]  # noqa: E731
        self.assertEqual([("a", "{'one': 1, 'other': 2}"), ("b", "{'one': 1, 'other': 2}")],
                         self.diagnose(Check("a", "", ("one", "other"), rule), Check("b", "", ("one",), rule)))

    def test_hangs(self) -> None:
        """A check whose observation hangs tells so after `WITHIN` seconds; the others are shown."""
        self.observe(one=Deferred(), other=succeed(2))
        rule = lambda _, seen: [findings.ok(str(seen["other"]))]  # noqa: E731
        self.assertEqual([("a", "this could not be looked at: it takes more than 10 s"), ("b", "2")],
                         self.diagnose(Check("a", "", ("other", "one"), rule), Check("b", "", ("other",), rule),
                                       seconds=checks.WITHIN))  # fmt: skip

    def test_fails(self) -> None:
        """A check whose observation fails tells the reason."""
        self.observe(one=fail(OSError("there is no program ip")))
        self.assertEqual([("a", "this could not be looked at: there is no program ip")],
                         self.diagnose(Check("a", "", ("one",), lambda *_: [])))

    def test_table(self) -> None:
        """Each observation of the table is one that can be made; what looks outside is part of all."""
        known = {*checks.OBSERVERS, checks.HYPERVISORS}
        for check in checks.ALL:
            self.assertTrue(known.issuperset(check.needs), check.name)
        self.assertTrue(set(checks.ALL).issuperset(checks.OUTSIDE))


class RulesTests(SynchronousTestCase):
    """How rules are applied to observations."""

    def found(self, rule: Any, context: Context | None = None, **seen: Any) -> list[tuple[Level, str]]:
        """Apply a rule."""
        return [(one.level, one.text) for one in rule(context or Context(Settings()), seen)]

    def test_does_not_run(self) -> None:
        """Where no Jitsu runs, that is one warning, and nothing is concluded from what its absence explains."""
        seen: dict[str, Any] = {
            "health": Health("no Jitsu answers"), "access": None, "direct": {"vm.test": Answer("refused")},
            "servers": ["192.0.2.1"], "resolver": {"vm.test": Answer("", "SERVFAIL")},
        }  # fmt: skip
        self.assertEqual([], self.found(checks._asks_us, **seen))
        control: Any = object()
        context = Context(Settings(), control=control)
        self.assertEqual([(Level.WARNING, "no Jitsu answers")], self.found(checks._service, context, **seen))

    def test_not_allowed(self) -> None:
        """A user who may not use the control endpoint is told how that is changed."""
        control: Any = object()
        health = Health("no Jitsu answers (Permission denied)", "add yourself to the group jitsu")
        seen: dict[str, Any] = {"health": health, "access": None, "direct": {}}
        (found,) = checks._service(Context(Settings(), control=control), seen)
        self.assertEqual("add yourself to the group jitsu", found.remedy)

    def test_access(self) -> None:
        """The socket of the machine's Jitsu is looked at, and no other."""
        place = f"unix:{SYSTEM}"
        self.patch(machine, "access", lambda path: (path, True))
        self.assertEqual((SYSTEM, True), checks._access(Context(Settings(), control=Control(place))))
        self.assertIsNone(checks._access(Context(Settings(), control=Control("unix:/home/ann/control.sock"))))
        self.assertIn((Level.WARNING, f"only root and Jitsu's user may use {SYSTEM}"),
                      self.found(checks._service, health=Health(), access=("root", True), direct={}))

    def test_problems(self) -> None:
        """What the running Jitsu says is wrong is a problem each."""
        health = Health("", "", ("the state is not written, only remembered",))
        self.assertIn((Level.PROBLEM, "the state is not written, only remembered"),
                      self.found(checks._service, health=health, access=None, direct={}))

    def test_synjitsu(self) -> None:
        """A running Jitsu tells whether Synjitsu is connected; without one, its socket does; without a use, nothing."""
        context = Context(Settings(synjitsu="unix:/s"))
        rule = checks._standins
        self.assertEqual(Level.OK, self.found(rule, context, health=Health(), synjitsu="gone")[0][0])
        self.assertEqual(Level.PROBLEM, self.found(rule, context, health=Health(synjitsu="x"), synjitsu="")[0][0])
        self.assertEqual(Level.PROBLEM, self.found(rule, context, health=Health("none"), synjitsu="gone")[0][0])
        self.assertEqual(Level.OK, self.found(rule, context, health=Health("none"), synjitsu="")[0][0])
        self.assertEqual([], self.found(rule, health=Health(), synjitsu="gone"))
