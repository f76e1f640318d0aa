"""Whose a VM is that comes up or goes down: `Adoption` alone, on a clock."""

from __future__ import annotations

from typing import Any, cast

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import STARTS_WITHIN
from jitsu_tw.vm.adoption import Adoption
from test.support import EPOCH, BoundedClock, vm

#: Seconds since the last use and the start of a VM that runs already.
USED_AGO = 100
STARTED_AGO = 500


class Fakes:
    """
    A VM and all that `Adoption` asks and tells: the state, the leases, and the owners.

    Attributes:
        done: what was done: a lease given, or the VM written down as stopped.
    """

    def __init__(self, clock: BoundedClock) -> None:
        """Begin with a VM that is off, on a node that is alone."""
        self.clock = clock
        self.vm, self.managed, self.reason, self.is_unsure = vm(idle=3 * USED_AGO), False, "", False
        self.state = State.OFF
        self.done: list[str] = []
        self.connected, self.known, self.own, self.recorded, self.suspended = True, False, True, False, False
        self.left = 0.0

    def note(self, *, managed: bool) -> None:
        """Note whether Jitsu may stop the VM."""
        self.managed = managed

    def is_own(self, _: Any) -> bool:
        """Return whether this node owns the VM."""
        return self.own

    def is_known(self, _: Any) -> bool:
        """Return whether one of the nodes has started the VM."""
        return self.known

    def times(self, _: Any) -> tuple[float, float]:
        """Return when it was used, and when it was started, as the nodes know."""
        return self.clock.seconds() - USED_AGO, self.clock.seconds() - STARTED_AGO

    @property
    def stats(self) -> Fakes:
        """What is counted of the VM."""
        return self

    def was_started(self, _: Any) -> bool:
        """Return whether Jitsu had started the VM, or was asked for it."""
        return self.recorded

    def may_come_up(self, _: Any) -> float:
        """Return for how many seconds a start call, whose end is not in the state, may bring the VM up."""
        return self.left

    def since(self, _: Any) -> tuple[float, float]:
        """Return when it was used, and when it was started, in seconds since 1970, as the state knows."""
        used, started = self.times(_)
        return EPOCH + used, EPOCH + started

    def grant(self, _: Any, used: float, started: float, *, is_new: bool) -> None:
        """Give a lease: a new one, or what is left of one."""
        ago = round(self.clock.seconds() - used), round(self.clock.seconds() - started)
        kinds = {(0, 0, True): "granted", (0, 0, False): "granted late", (USED_AGO, STARTED_AGO, False): "adopted"}
        self.done.append(kinds[(*ago, is_new)])

    def resume(self, *_: Any, is_new: bool) -> bool:
        """Give the lease back that was suspended, if there is one."""
        if self.suspended:
            self.done.append("resumed after a boot" if is_new else "resumed")
        return self.suspended

    def stopped(self, _: Any) -> None:
        """Write down that the VM is nobody's."""
        self.done.append("stopped")

    def needs(self, _: Any) -> list[Any]:
        """Return the VMs that it needs: none."""
        return []

    def replaced(self, _: Any) -> None:
        """Leave what is remembered to the VM that it was."""
        self.done.append("parted")


class AdoptionTests(SynchronousTestCase):
    """`Adoption`."""

    def begin(self, *, dry_run: bool = False, seen: bool = True, **changes: Any) -> None:
        """Begin with a VM that has been *seen* in some state before, unless it has not."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.fakes = cast("Any", Fakes(self.clock))
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        self.adoption = Adoption(self.fakes, self.fakes, self.fakes, self.fakes, clocks, Logger(), dry_run=dry_run)
        self.adoption.enlist(self.fakes)
        if seen:
            self.adoption.moved(self.fakes, State.UNKNOWN)
        self.fakes.done.clear()
        for name, value in changes.items():
            setattr(self.fakes, name, value)

    def up(self, old: State = State.WAITING) -> tuple[list[str], bool]:
        """Let the VM come up; return what was done, and whether Jitsu may stop it."""
        self.fakes.state = State.UP
        self.adoption.moved(self.fakes, old)
        done, self.fakes.done = self.fakes.done, []
        return done, self.fakes.managed

    def down(self, old: State, state: State = State.OFF) -> tuple[list[str], bool]:
        """Let the VM go down; return what was done, and whether Jitsu may stop it."""
        self.fakes.state = state
        self.adoption.moved(self.fakes, old)
        done, self.fakes.done = self.fakes.done, []
        return done, self.fakes.managed

    def test_came_up(self) -> None:
        """Jitsu gives a lease to what was asked for, to what it finds that it had started, and to nothing else."""
        cases: tuple[tuple[dict[str, Any], list[str], bool], ...] = (
            ({"managed": True}, ["granted"], True),
            ({"managed": True, "seen": False}, ["granted late"], True),
            ({"managed": True, "suspended": True}, ["resumed after a boot"], True),
            ({"seen": False, "recorded": True}, ["adopted"], True),
            ({"seen": False, "recorded": True, "dry_run": True}, [], False),
            ({"seen": False}, ["stopped"], False),
            ({"seen": False, "dry_run": True}, [], False),
            ({"recorded": True}, ["stopped"], False),
            ({}, ["stopped"], False),
            ({"known": True, "own": False}, ["adopted"], True),
            ({"known": True, "own": False, "dry_run": True}, [], False),
            ({"known": True, "managed": True}, ["granted"], True),
            ({"connected": False, "recorded": True, "seen": False}, [], False),
            ({"connected": False, "managed": True}, [], True),
        )
        for changes, done, managed in cases:
            self.begin(**changes)
            self.assertEqual((done, managed), self.up(), changes)

    def test_owner_is_known_late(self) -> None:
        """What came up before the node had joined is whose it is from then on."""
        self.begin(seen=False, recorded=True, connected=False)
        self.up()
        self.fakes.connected = True
        self.assertEqual((["adopted"], True), self.up(State.UP))
        self.begin(known=True, managed=True)
        self.assertEqual((["adopted"], True), self.up(State.UP))

    def test_alone(self) -> None:
        """On a node that is alone, an owner that is known anew changes nothing for a stranger's VM."""
        self.begin()
        self.assertEqual(([], False), self.up(State.UP))
        self.begin(managed=True)
        self.assertEqual((["granted"], True), self.up(State.UP))

    def test_stop_failed(self) -> None:
        """A VM that could not be stopped goes on with its lease."""
        self.begin(managed=True, suspended=True)
        self.assertEqual((["resumed"], True), self.up(State.STOPPING))

    def test_found_once(self) -> None:
        """What is remembered of a VM counts for how it is found, not for who starts it later."""
        self.begin(seen=False, recorded=True)
        self.assertEqual((["adopted"], True), self.up())
        self.assertEqual((["stopped"], False), self.down(State.UP))
        self.fakes.recorded = True
        self.assertEqual((["stopped"], False), self.up())
        self.begin(seen=False)
        self.assertEqual((["stopped"], False), self.up())
        self.fakes.recorded = True
        self.assertEqual((["stopped"], False), self.up())

    def test_another(self) -> None:
        """A VM that turns out to be another is nobody's, and is found as any that was not seen yet."""
        self.begin(managed=True)
        self.adoption.replaced(self.fakes)
        self.assertEqual((["parted"], False), (self.fakes.done, self.fakes.managed))
        self.fakes.done.clear()
        self.fakes.recorded = True
        self.assertEqual((["adopted"], True), self.up())

    def test_unsure(self) -> None:
        """A VM of which a start or a stop has no end is Jitsu's until it can come up no more."""
        self.begin(managed=True, is_unsure=True)
        self.assertEqual(([], True), self.down(State.STARTING, State.UNKNOWN))
        self.fakes.is_unsure = False
        self.assertEqual(([], True), self.down(State.UNKNOWN))
        self.clock.advance(STARTS_WITHIN)
        self.assertEqual((["stopped"], False), (self.fakes.done, self.fakes.managed))

    def test_call_without_end(self) -> None:
        """A VM that is seen off while a start call of an earlier Jitsu may go on is adopted if that brings it up."""
        self.begin(seen=False, recorded=True, left=10.0)
        self.assertEqual(([], True), self.down(State.UNKNOWN))
        self.assertEqual((["granted"], True), self.up())
        self.begin(seen=False, recorded=True, left=10.0)
        self.down(State.UNKNOWN)
        self.clock.advance(10.0)
        self.assertEqual(["stopped"], self.fakes.done)
        self.fakes.done.clear()
        self.assertEqual((["stopped"], False), self.up())

    def test_comes_up_all_the_same(self) -> None:
        """A VM that comes up by a start that had no end is Jitsu's, and stays so."""
        self.begin(managed=True, is_unsure=True)
        self.down(State.STARTING, State.UNKNOWN)
        self.fakes.is_unsure = False
        self.assertEqual((["granted"], True), self.up())
        self.assertEqual((["stopped"], False), self.down(State.UP))
        self.clock.advance(STARTS_WITHIN + 1.0)
        self.assertEqual(([], False), (self.fakes.done, self.fakes.managed))

    def test_another_after_a_doubt(self) -> None:
        """What was begun of one VM says nothing of another."""
        self.begin(managed=True, is_unsure=True)
        self.down(State.STARTING, State.UNKNOWN)
        self.adoption.replaced(self.fakes)
        self.fakes.done.clear()
        self.fakes.is_unsure = False
        self.assertEqual((["stopped"], False), self.down(State.UNKNOWN))

    def test_unsure_for_long(self) -> None:
        """A VM of which nobody can say for long what it does stays Jitsu's: it may run."""
        self.begin(managed=True, is_unsure=True)
        self.down(State.STARTING, State.UNKNOWN)
        self.clock.advance(STARTS_WITHIN + 1.0)
        self.assertEqual(([], True), (self.fakes.done, self.fakes.managed))

    def test_lost_while_up(self) -> None:
        """A VM that is lost while it is up stays Jitsu's, however long that lasts."""
        self.begin(managed=True, is_unsure=True)
        self.assertEqual(([], True), self.down(State.UP, State.UNKNOWN))
        self.clock.advance(2 * STARTS_WITHIN)
        self.assertEqual(([], True), (self.fakes.done, self.fakes.managed))
        self.begin(managed=True, is_unsure=True)
        self.down(State.UP, State.UNKNOWN)
        self.fakes.is_unsure = False
        self.assertEqual((["stopped"], False), self.down(State.UNKNOWN))
