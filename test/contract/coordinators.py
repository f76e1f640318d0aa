"""
What every coordinator must do. A coordinator's tests inherit it; import this module, not the class, or it would run
too.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from jitsu_tw.ijitsu import ICoordinator, IPeer
from test.support import Hearer


@implementer(IPeer)
class Peer(Hearer):
    """
    Remembers what a coordinator tells.

    Attributes:
        changes: facts that changed: key, value, and value before.
        story: "connected", or why it was lost, in their order.
    """

    def __init__(self) -> None:
        """Begin with nothing told."""
        super().__init__()
        self.changes: list[tuple[str, str | None, str | None]] = []
        self.story: list[str] = []

    @property
    def connections(self) -> int:
        """How often it was connected."""
        return self.story.count("connected")

    @property
    def losses(self) -> list[str]:
        """Why it was lost, each time."""
        return [word for word in self.story if word != "connected"]

    def told(self, key: str, value: str | None, before: str | None) -> None:
        """Remember a change."""
        self.changes.append((key, value, before))
        self.look()

    def connected(self) -> None:
        """Remember an agreement."""
        self.story.append("connected")
        self.look()

    def lost(self, reason: str) -> None:
        """Remember a loss."""
        self.story.append(reason)
        self.look()


class CoordinatorContract(TestCase):
    """The tests; a subclass says how to make a coordinator that knows nothing."""

    timeout = 30
    coordinator: Any
    peer: Peer

    def make(self) -> Any:
        """Return the coordinator to be tested."""
        raise NotImplementedError

    async def setUp(self) -> None:  # type: ignore[override]
        """Join."""
        self.coordinator = self.make()
        self.peer = Peer()
        self.coordinator.start(self.peer)
        self.addCleanup(self.coordinator.stop)
        await self.peer.until(lambda: self.peer.connections)

    def test_interface(self) -> None:
        """It implements `ICoordinator`, and begins with no facts."""
        self.assertTrue(verifyObject(ICoordinator, self.coordinator))
        self.assertEqual({}, dict(self.coordinator.facts))
        self.assertIsInstance(self.coordinator.node, str)
        self.assertEqual("", self.coordinator.trouble)

    async def test_put(self) -> None:
        """Facts that are put are known when the Deferred fires; each change is told once."""
        self.assertTrue(await self.coordinator.put({"a/b": "1", "c": ""}))
        self.assertEqual({"a/b": "1", "c": ""}, dict(self.coordinator.facts))
        self.assertTrue(await self.coordinator.put({"a/b": "ü", "c": None, "never": None}))
        self.assertEqual({"a/b": "ü"}, dict(self.coordinator.facts))
        self.assertTrue(await self.coordinator.put({"a/b": "ü"}))
        expected = [("a/b", "1", None), ("c", "", None), ("a/b", "ü", "1"), ("c", None, "")]
        self.assertEqual(expected, self.peer.changes)
        self.assertEqual(["connected"], self.peer.story)

    async def test_one_step(self) -> None:
        """When the first of several facts is told, the others are known."""
        seen: list[dict[str, str]] = []
        told = self.peer.told

        def look(key: str, value: str | None, before: str | None) -> None:
            seen.append(dict(self.coordinator.facts))
            told(key, value, before)

        self.peer.told = look  # type: ignore[method-assign]
        await self.coordinator.put({"a": "1", "b": "2"})
        self.assertEqual([{"a": "1", "b": "2"}] * 2, seen)

    async def test_claim(self) -> None:
        """A claim is a fact that is held, until it is given up; to claim it again changes nothing."""
        self.assertFalse(self.coordinator.holds("claims/www"))
        self.assertTrue(await self.coordinator.claim("claims/www", "me"))
        self.assertTrue(self.coordinator.holds("claims/www"))
        self.assertEqual({"claims/www": "me"}, dict(self.coordinator.facts))
        self.assertTrue(await self.coordinator.claim("claims/www", "other"))
        self.assertEqual("me", self.coordinator.facts["claims/www"])
        self.assertTrue(await self.coordinator.put({"claims/www": None}, holding="claims/www"))
        self.assertFalse(self.coordinator.holds("claims/www"))
        self.assertEqual([("claims/www", "me", None), ("claims/www", None, "me")], self.peer.changes)
        self.assertTrue(await self.coordinator.claim("claims/www", "again"))
        self.assertTrue(self.coordinator.holds("claims/www"))

    async def test_claim_of_a_fact(self) -> None:
        """What is a lasting fact can be claimed by nobody."""
        await self.coordinator.put({"a": "1"})
        self.assertFalse(await self.coordinator.claim("a", "2"))
        self.assertFalse(self.coordinator.holds("a"))
        self.assertEqual("1", self.coordinator.facts["a"])

    async def test_claim_changes(self) -> None:
        """A claim stays one, whatever its value."""
        await self.coordinator.claim("a", "1")
        self.assertTrue(await self.coordinator.put({"a": "2", "b": "3"}, holding="a"))
        self.assertTrue(self.coordinator.holds("a"))
        self.assertFalse(self.coordinator.holds("b"))
        self.assertEqual({"a": "2", "b": "3"}, dict(self.coordinator.facts))

    async def test_holding(self) -> None:
        """What needs a claim is not done without it: not without any, and not with a fact that is none."""
        await self.coordinator.put({"a": "1"})
        for holding in ("a", "nothing"):
            self.assertFalse(await self.coordinator.put({"b": "1"}, holding=holding))
        self.assertEqual({"a": "1"}, dict(self.coordinator.facts))

    async def test_expected(self) -> None:
        """What expects facts is done if they are so at that moment, and not if one is other, there, or not there."""
        put, facts = self.coordinator.put, self.coordinator.facts
        self.assertTrue(await put({"a": "1", "b": "1"}, expected={"a": None, "b": None}))
        for expected in ({"a": None}, {"a": "2"}, {"a": "1", "b": None}, {"a": "1", "c": ""}):
            self.assertFalse(await put({"a": "3", "c": "3"}, expected=expected))
        self.assertEqual({"a": "1", "b": "1"}, dict(facts))
        self.assertTrue(await put({"a": None, "c": "ü"}, expected={"a": "1", "c": None}))
        self.assertTrue(await put({"c": "2"}, expected={"c": "ü", "a": None}))
        self.assertEqual({"b": "1", "c": "2"}, dict(facts))

    async def test_expected_and_holding(self) -> None:
        """What expects facts and needs a claim is done only with both."""
        put = self.coordinator.put
        self.assertFalse(await put({"b": "1"}, holding="a", expected={"b": None}))
        await self.coordinator.claim("a", "1")
        self.assertFalse(await put({"b": "1"}, holding="a", expected={"b": "1"}))
        self.assertTrue(await put({"b": "1"}, holding="a", expected={"b": None}))
        self.assertEqual({"a": "1", "b": "1"}, dict(self.coordinator.facts))

    async def test_nothing(self) -> None:
        """To change nothing tells whether a claim is held."""
        await self.coordinator.claim("a", "1")
        self.assertTrue(await self.coordinator.put({}))
        self.assertTrue(await self.coordinator.put({}, holding="a"))
        self.assertFalse(await self.coordinator.put({}, holding="b"))

    async def test_many(self) -> None:
        """300 facts in one call are all there, and all go."""
        facts = {f"many/{number}": str(number) for number in range(300)}
        await self.coordinator.claim("many/7", "mine")
        self.assertTrue(await self.coordinator.put(facts, holding="many/7"))
        self.assertEqual(facts, dict(self.coordinator.facts))
        self.assertTrue(self.coordinator.holds("many/7"))
        self.assertEqual(301, len(self.peer.changes))
        self.assertTrue(await self.coordinator.put(dict.fromkeys(facts)))
        self.assertEqual({}, dict(self.coordinator.facts))

    async def test_stop(self) -> None:
        """After its end nothing is held, and nobody is told."""
        await self.coordinator.claim("a", "1")
        told = len(self.peer.changes)
        await self.coordinator.stop()
        self.assertFalse(self.coordinator.holds("a"))
        self.assertEqual(told, len(self.peer.changes))
        self.assertEqual(["connected"], self.peer.story)
