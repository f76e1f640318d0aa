"""Where a VM is on several hosts, and where it may be started: each rule of `rules.pool` as a table."""

from __future__ import annotations

from itertools import product

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.rules.pool import IN_DOUBT, Located, Sighting, Unsure, locate, pinned, rank
from test.support import vm

RUNNING, PAUSED, SAVED, OFF, PREPARED = Power.RUNNING, Power.PAUSED, Power.SAVED, Power.OFF, Power.PREPARED

HOSTS = ("left", "right")
LOST = "the cable is out"
DOUBT = Unsure(f"it may run on right: {LOST}")


def seen(left: Power | None, right: Power | None, lost: str = "") -> list[Sighting]:
    """Return what two hosts tell; the *lost* one cannot be asked."""
    powers = {"left": left, "right": right}
    return [Sighting(host, power, LOST if host in lost.split() else "") for host, power in powers.items()]


class LocateTests(SynchronousTestCase):
    """Where a VM is."""

    def check(self, expected: Located | Unsure | None, sightings: list[Sighting], last: str | None = "") -> None:
        """Check where the VM is."""
        self.assertEqual(expected, locate(sightings, HOSTS, last, in_doubt=False), (sightings, last))

    def test_reached(self) -> None:
        """Of hosts that are asked, one that runs the VM counts before one that keeps it, and that before others."""
        self.check(Located(OFF, "left"), seen(OFF, OFF))
        self.check(Located(OFF, "right"), seen(None, OFF))
        self.check(Located(SAVED, "right"), seen(OFF, SAVED))
        self.check(Located(PAUSED, "right"), seen(SAVED, PAUSED))
        self.check(Located(RUNNING, "right", ("right",)), seen(PAUSED, RUNNING))
        self.check(None, seen(None, None))

    def test_twice(self) -> None:
        """That a VM runs on two hosts is told."""
        self.check(Located(RUNNING, "left", ("left", "right")), seen(RUNNING, RUNNING))

    def test_lost(self) -> None:
        """On a host that cannot be asked a VM may run, unless it was seen off there, or was started elsewhere."""
        cases: dict[tuple[Power | None, str | None], Located | Unsure] = {
            (None, None): DOUBT,
            (None, "right"): DOUBT,
            (None, ""): Located(OFF, "left"),
            (None, "left"): Located(OFF, "left"),
            (OFF, None): Located(OFF, "left"),
            (OFF, "right"): DOUBT,
            (OFF, ""): Located(OFF, "left"),
            (PAUSED, None): DOUBT,
            (PAUSED, ""): Located(PAUSED, "right"),
            (PREPARED, None): DOUBT,
            (PREPARED, "left"): Located(OFF, "left"),  # it can be made anew elsewhere
            (RUNNING, ""): DOUBT,
            (RUNNING, "left"): DOUBT,
        }
        for (power, last), expected in cases.items():
            self.check(expected, seen(OFF, power, "right"), last)

    def test_runs_elsewhere(self) -> None:
        """A VM that is seen to run is there, whatever a host that cannot be asked may do."""
        for power, last in product((None, *Power), ("right", "left", "", None)):
            self.check(Located(RUNNING, "left", ("left",)), seen(RUNNING, power, "right"), last)
            self.check(Located(RUNNING, "right", ("right",)), seen(power, RUNNING, "left"), last)

    def test_not_allowed(self) -> None:
        """A host that a VM may not run on any more counts if the VM runs there, or if it cannot be asked."""
        for power, lost, expected in (
            (OFF, "", None),
            (PAUSED, "", None),
            (SAVED, "", None),
            (RUNNING, "", Located(RUNNING, "right", ("right",))),
            (RUNNING, "right", DOUBT),
            (PAUSED, "right", Located(PAUSED, "right")),
        ):
            self.assertEqual(expected, locate(seen(None, power, lost), ("left",), "", in_doubt=False), (power, lost))

    def test_in_doubt(self) -> None:
        """A VM that does not run is not known to be down while a start may go on; one that runs is up."""
        for power in (OFF, PAUSED, SAVED):
            self.assertEqual(Unsure(IN_DOUBT), locate(seen(power, OFF), HOSTS, "", in_doubt=True))
        self.assertEqual(Located(RUNNING, "left", ("left",)), locate(seen(RUNNING, OFF), HOSTS, "", in_doubt=True))
        self.assertIsNone(locate(seen(None, None), HOSTS, "", in_doubt=True))

    def test_never_two(self) -> None:
        """Whatever is known: a VM is not said to be down if it was last seen to run where it cannot be asked now."""
        powers = (None, *Power)
        for left, right, last, lost in product(powers, powers, (None, "", "left", "right"), ("", "left", "left right")):
            found = locate(seen(left, right, lost), HOSTS, last, in_doubt=False)
            ran = [one.host for one in seen(left, right, lost) if one.power is RUNNING]
            if ran and not isinstance(found, Unsure):
                assert found is not None
                self.assertIs(RUNNING, found.power)
                self.assertNotIn(found.host, lost.split())


class PlaceTests(SynchronousTestCase):
    """Where a VM may be started."""

    def test_pinned(self) -> None:
        """A VM starts where it is kept; else where its last start was begun, unless that host is fenced."""
        cases = {("left", "right"): "left", (None, "right"): "right", (None, "away"): None, (None, ""): None,
                 (None, None): None}  # fmt: skip
        self.assertEqual(cases, {case: pinned(*case, HOSTS) for case in cases})

    def test_rank(self) -> None:
        """A host that is wanted goes first, then those that the VM prefers, those it does not avoid, the emptiest."""
        free = {"left": 10, "middle": 30, "right": 20, "spare": 40}
        one = vm(prefer=("right", "left"), avoid=("spare",))
        self.assertEqual(["right", "left", "middle", "spare"], rank(one, free, None))
        self.assertEqual(["spare", "right", "left", "middle"], rank(one, free, "spare"))
        self.assertEqual(["spare", "middle", "right", "left"], rank(vm(), free, "away"))

    def test_shortage(self) -> None:
        """A VM fits where as much is free as it needs."""
        self.assertEqual("", Memory(10, 10).shortage)
        self.assertEqual("it needs 64 MiB of memory, 63 are free", Memory(64 << 20, (64 << 20) - 1).shortage)
