"""Until when a VM is kept, and why."""

from __future__ import annotations

from math import inf
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.flows import NO_FLOWS, Flows
from jitsu_tw.rules.keep import Kept, Why, keep
from jitsu_tw.rules.lease import Lease, Use

#: The time at which each rule is asked.
NOW = 100.0


def kept(idle: float = 10, **facts: Any) -> Kept:
    """Return what is decided at `NOW` of a VM that was started at 50 and used at 95; *facts* are what else is known."""
    of_lease = ("max_up", "seen_from", "stop_again_at", "flows", "idle_connection", "held_until", "done_at")
    times = {name: facts.pop(name) for name in of_lease if name in facts}
    lease = Lease(10, facts.pop("min_up", 0), facts.pop("used", 95), started=50, **times)
    return keep(
        lease, NOW, idle=idle, **{"window": -inf, "is_own": True, "is_held": False, "is_needed": False, **facts}
    )


class KeepTests(SynchronousTestCase):
    """`keep`."""

    def test_why(self) -> None:
        """Each reason keeps a VM until its own time."""
        for facts, until, why in (
            ({}, 105, Why.USED),
            ({"used": 100}, 110, Why.USED),
            ({"used": 60}, 70, Why.USED),
            ({"min_up": 60}, 110, Why.MIN_UP),
            ({"min_up": 40}, 105, Why.USED),
            ({"window": 300}, 300, Why.WINDOW),
            ({"window": 101}, 105, Why.USED),
            ({"seen_from": inf}, inf, Why.UNSEEN),
            ({"seen_from": 120}, 120, Why.UNSEEN),
            ({"flows": Flows(2, 80), "idle_connection": 40}, 120, Why.CONNECTED),
            ({"flows": Flows(2, 80), "idle_connection": 20}, 105, Why.USED),
            ({"flows": Flows(2, 80)}, 105, Why.USED),
            ({"flows": NO_FLOWS, "idle_connection": 40}, 105, Why.USED),
            ({"held_until": 400}, 400, Why.GUEST),
            ({"held_until": 101}, 105, Why.USED),
            ({"done_at": 98}, 100, Why.DONE),
            ({"done_at": 98, "used": 60}, 98, Why.DONE),
            ({"done_at": 98, "seen_from": inf}, 100, Why.DONE),
            ({"done_at": 98, "flows": Flows(1, 60), "idle_connection": 600}, 100, Why.DONE),
            ({"done_at": 98, "min_up": 60}, 110, Why.MIN_UP),
            ({"done_at": 98, "window": 300}, 300, Why.WINDOW),
            ({"done_at": 98, "stop_again_at": 160}, 160, Why.STOP_FAILED),
            ({"done_at": 98, "is_needed": True}, 105, Why.NEEDED),
            ({"done_at": 98, "is_held": True}, inf, Why.HELD),
            ({"done_at": 98, "is_own": False}, inf, Why.OWNER),
            ({"is_needed": True}, 110, Why.NEEDED),
            ({"is_needed": True, "used": 100}, 110, Why.NEEDED),
            ({"stop_again_at": 160}, 160, Why.STOP_FAILED),
            ({"stop_again_at": 99, "used": 60}, 70, Why.USED),
            ({"max_up": 40}, 90, Why.MAX_UP),
            ({"max_up": 53}, 103, Why.USED),
            ({"is_held": True}, inf, Why.HELD),
            ({"is_own": False}, inf, Why.OWNER),
        ):
            self.assertEqual(Kept(until, why), kept(**facts), facts)

    def test_longest(self) -> None:
        """Of several reasons the one that keeps the VM longest counts."""
        for facts, until, why in (
            ({"min_up": 60, "window": 300}, 300, Why.WINDOW),
            ({"min_up": 600, "window": 300}, 650, Why.MIN_UP),
            ({"window": 300, "is_needed": True}, 300, Why.WINDOW),
            ({"window": 300, "seen_from": inf}, inf, Why.UNSEEN),
            ({"window": 300, "stop_again_at": 160}, 300, Why.WINDOW),
        ):
            self.assertEqual(Kept(until, why), kept(**facts), facts)

    def test_max_up(self) -> None:
        """`max_up` after its start a VM is stopped, whatever keeps it, but for an operator and its owner node."""
        also: list[dict[str, Any]] = [{"flows": Flows(1, 100), "idle_connection": 600}, {"held_until": 900}]
        also += [{"used": 100}, {"window": 300}, {"seen_from": inf}, {"is_needed": True}]
        for facts in also:
            self.assertEqual(Kept(90, Why.MAX_UP), kept(max_up=40, **facts), facts)
            self.assertEqual(109, kept(max_up=59, **{"used": 100, **facts}).until, facts)
        for why, facts in ((Why.HELD, {"is_held": True}), (Why.OWNER, {"is_own": False})):
            self.assertEqual(Kept(inf, why), kept(max_up=40, **facts), facts)

    def test_stop_failed_after_max_up(self) -> None:
        """A VM that is up for too long and cannot be stopped is kept until that is tried again."""
        self.assertEqual(Kept(160, Why.STOP_FAILED), kept(max_up=40, stop_again_at=160))
        self.assertEqual(Kept(90, Why.MAX_UP), kept(max_up=40, stop_again_at=99))

    def test_room(self) -> None:
        """To make room for another VM, one goes that is idle for less long than its lease allows, but never in use."""
        for facts, goes in (
            ({"used": 96}, False), ({"used": 95}, True), ({"used": 95, "min_up": 60}, False),
            ({"used": 95, "window": 300}, False), ({"used": 60, "is_needed": True}, False),
            ({"used": 60, "seen_from": inf}, False), ({"used": 60, "is_held": True}, False),
            ({"used": 60, "is_own": False}, False), ({"used": 60, "stop_again_at": 160}, False),
            ({"used": 60, "flows": Flows(1, 60), "idle_connection": 60}, False),
        ):  # fmt: skip
            self.assertEqual(goes, kept(5, **facts).until <= NOW, facts)

    def test_words(self) -> None:
        """What keeps a VM is told in words, with the figures that an operator knows from the configuration."""
        lease = Lease(10, 60, used=95, started=50, max_up=900)
        for why, words in (
            (Why.OWNER, "kept by ns2"), (Why.MIN_UP, "its min_up of 60 s"), (Why.USED, "asked for 5 s ago"),
            (Why.MAX_UP, "up for its max_up of 900 s"), (Why.WINDOW, "its time of the week"),
        ):  # fmt: skip
            self.assertEqual(words, Kept(inf, why).words(lease, NOW, "ns2"))

    def test_evidence(self) -> None:
        """The last use is told by its kind, and how many connections are open."""
        for kind, words in (
            (Use.KNOWN, "used 5 s ago"), (Use.PACKETS, "its guest had traffic 5 s ago"),
            (Use.CPU, "its guest took CPU time 5 s ago"),
            (Use.CONNECTION, "a connection to it was opened or closed 5 s ago"),
        ):  # fmt: skip
            lease = Lease(10, 0, 90, started=50)
            lease.use(95, kind)
            self.assertEqual(words, Kept(inf, Why.USED).words(lease, NOW, ""))
        lease = Lease(10, 0, 90, started=50, held_until=400)
        self.assertEqual("held by its guest for 300 s more", Kept(400, Why.GUEST).words(lease, NOW, ""))
        for number, words in ((1, "an open connection"), (3, "3 open connections")):
            lease.flows = Flows(number, 95)
            self.assertEqual(words, Kept(inf, Why.CONNECTED).words(lease, NOW, ""))
