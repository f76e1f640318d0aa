"""Whose a VM is that comes up or goes down: `Adoption` alone, on a clock."""

from __future__ import annotations

from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import STARTS_WITHIN
from jitsu_tw.vm.adoption import Adoption
from test.support import EPOCH, BoundedClock, vm


class Fakes:
    """
    A VM and all that `Adoption` asks and tells.

    Attributes:
        done: what was done: a lease given, or the VM written down as stopped.
    """

    def __init__(self, clock: BoundedClock) -> None:
        """Begin with a VM that is off, on a node that is alone."""
        self.clock = clock
        self.vm, self.held, self.reason, self.is_unsure = vm(), False, "", False
        self.state = State.OFF
        self.done: list[str] = []
        self.is_joined, self.shared, self.mine, self.recorded, self.suspended = True, False, True, False, False

    def is_ours(self, _: Any) -> bool:
        """Return whether this node may stop the VM (sharing)."""
        return self.mine

    def is_shared(self, _: Any) -> bool:
        """Return whether one of the nodes has started the VM (sharing)."""
        return self.shared

    def since(self, _: Any) -> tuple[float, float]:
        """Return when it was used, and when it was started."""
        return self.clock.seconds(), self.clock.seconds()

    def adopt(self, *_: Any) -> None:
        """Give what is left of a lease."""
        self.done.append("adopted")

    def grant(self, *_: Any, is_new: bool) -> None:
        """Give a lease."""
        self.done.append("granted" if is_new else "granted late")

    def resume(self, *_: Any, is_new: bool) -> bool:
        """Give the lease back that was suspended, if there is one."""
        if self.suspended:
            self.done.append("resumed after a boot" if is_new else "resumed")
        return self.suspended

    def stopped(self, _: Any) -> None:
        """Write down that the VM is nobody's."""
        self.done.append("stopped")

    def part(self, _: Any) -> None:
        """Leave what is remembered to the VM that it was."""
        self.done.append("parted")


class Record(Fakes):
    """What is remembered: the same, with another `is_ours`."""

    def __init__(self, fakes: Fakes) -> None:
        """Share what *fakes* has."""
        self.__dict__ = fakes.__dict__

    def is_ours(self, _: Any) -> bool:
        """Return whether Jitsu had started the VM, or was asked for it."""
        return self.recorded

    def since(self, _: Any) -> tuple[float, float]:
        """Return when it was used, and when it was started, in seconds since 1970."""
        return EPOCH + self.clock.seconds(), EPOCH + self.clock.seconds()


class OwnershipTests(SynchronousTestCase):
    """`Adoption`."""

    def begin(self, *, dry_run: bool = False, seen: bool = True, **changes: Any) -> None:
        """Begin with a VM that has been *seen* in some state before, unless it has not."""
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.fakes = cast("Any", Fakes(self.clock))
        record: Any = Record(self.fakes)
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds())
        self.ownership = Adoption(record, self.fakes, self.fakes, clocks, dry_run=dry_run)
        self.ownership.enlist(self.fakes)
        if seen:
            self.ownership.went_down(self.fakes, State.UNKNOWN)
        self.fakes.done.clear()
        for name, value in changes.items():
            setattr(self.fakes, name, value)

    def up(self, old: State = State.WAITING) -> tuple[list[str], bool]:
        """Let the VM come up; return what was done, and whether Jitsu may stop it."""
        self.fakes.state = State.UP
        self.ownership.came_up(self.fakes, old)
        done, self.fakes.done = self.fakes.done, []
        return done, self.fakes.held

    def down(self, old: State, state: State = State.OFF) -> tuple[list[str], bool]:
        """Let the VM go down; return what was done, and whether Jitsu may stop it."""
        self.fakes.state = state
        self.ownership.went_down(self.fakes, old)
        done, self.fakes.done = self.fakes.done, []
        return done, self.fakes.held

    def test_came_up(self) -> None:
        """Jitsu gives a lease to what was asked for, to what it finds that it had started, and to nothing else."""
        cases: tuple[tuple[dict[str, Any], list[str], bool], ...] = (
            ({"held": True}, ["granted"], True),
            ({"held": True, "seen": False}, ["granted late"], True),
            ({"held": True, "suspended": True}, ["resumed after a boot"], True),
            ({"seen": False, "recorded": True}, ["adopted"], True),
            ({"seen": False, "recorded": True, "dry_run": True}, [], False),
            ({"seen": False}, ["stopped"], False),
            ({"seen": False, "dry_run": True}, [], False),
            ({"recorded": True}, ["stopped"], False),
            ({}, ["stopped"], False),
            ({"shared": True, "mine": False}, ["adopted"], True),
            ({"shared": True, "mine": False, "dry_run": True}, [], False),
            ({"shared": True, "held": True}, ["granted"], True),
            ({"is_joined": False, "recorded": True, "seen": False}, [], False),
            ({"is_joined": False, "held": True}, [], True),
        )
        for changes, done, held in cases:
            self.begin(**changes)
            self.assertEqual((done, held), self.up(), changes)

    def test_owner_is_known_late(self) -> None:
        """What came up before the node had joined is whose it is from then on."""
        self.begin(seen=False, recorded=True, is_joined=False)
        self.up()
        self.fakes.is_joined = True
        self.assertEqual((["adopted"], True), self.up(State.UP))
        self.begin(shared=True, held=True)
        self.assertEqual((["adopted"], True), self.up(State.UP))

    def test_alone(self) -> None:
        """On a node that is alone, an owner that is known anew changes nothing for a stranger's VM."""
        self.begin()
        self.assertEqual(([], False), self.up(State.UP))
        self.begin(held=True)
        self.assertEqual((["granted"], True), self.up(State.UP))

    def test_stop_failed(self) -> None:
        """A VM that could not be stopped goes on with its lease."""
        self.begin(held=True, suspended=True)
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
        self.begin(held=True)
        self.ownership.is_another(self.fakes)
        self.assertEqual((["parted"], False), (self.fakes.done, self.fakes.held))
        self.fakes.done.clear()
        self.fakes.recorded = True
        self.assertEqual((["adopted"], True), self.up())

    def test_unsure(self) -> None:
        """A VM of which a start or a stop has no end is Jitsu's until it can come up no more."""
        self.begin(held=True, is_unsure=True)
        self.assertEqual(([], True), self.down(State.STARTING, State.UNKNOWN))
        self.fakes.is_unsure = False
        self.assertEqual(([], True), self.down(State.UNKNOWN))
        self.clock.advance(STARTS_WITHIN)
        self.assertEqual((["stopped"], False), (self.fakes.done, self.fakes.held))

    def test_comes_up_all_the_same(self) -> None:
        """A VM that comes up by a start that had no end is Jitsu's, and stays so."""
        self.begin(held=True, is_unsure=True)
        self.down(State.STARTING, State.UNKNOWN)
        self.fakes.is_unsure = False
        self.assertEqual((["granted"], True), self.up())
        self.assertEqual((["stopped"], False), self.down(State.UP))
        self.clock.advance(STARTS_WITHIN + 1.0)
        self.assertEqual(([], False), (self.fakes.done, self.fakes.held))

    def test_another_after_a_doubt(self) -> None:
        """What was begun of one VM says nothing of another."""
        self.begin(held=True, is_unsure=True)
        self.down(State.STARTING, State.UNKNOWN)
        self.ownership.is_another(self.fakes)
        self.fakes.done.clear()
        self.fakes.is_unsure = False
        self.assertEqual((["stopped"], False), self.down(State.UNKNOWN))

    def test_unsure_for_long(self) -> None:
        """A VM of which nobody can say for long what it does stays Jitsu's: it may run."""
        self.begin(held=True, is_unsure=True)
        self.down(State.STARTING, State.UNKNOWN)
        self.clock.advance(STARTS_WITHIN + 1.0)
        self.assertEqual(([], True), (self.fakes.done, self.fakes.held))

    def test_lost_while_up(self) -> None:
        """A VM that is lost while it is up stays Jitsu's, however long that lasts."""
        self.begin(held=True, is_unsure=True)
        self.assertEqual(([], True), self.down(State.UP, State.UNKNOWN))
        self.clock.advance(2 * STARTS_WITHIN)
        self.assertEqual(([], True), (self.fakes.done, self.fakes.held))
        self.begin(held=True, is_unsure=True)
        self.down(State.UP, State.UNKNOWN)
        self.fakes.is_unsure = False
        self.assertEqual((["stopped"], False), self.down(State.UNKNOWN))
