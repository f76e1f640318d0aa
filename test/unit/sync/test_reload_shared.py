"""A reload at one of several nodes that share their configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from jitsu_tw.config import build
from jitsu_tw.sync.reload import Reloads
from test.unit.sync.test_remote import FILE, NodesTestCase

if TYPE_CHECKING:
    from test.unit.sync.test_remote import Node


class SharedReloadTests(NodesTestCase):
    """What the file of one node changes is with the others."""

    async def reload(self, reloads: Reloads, node: Node, *pairs: str) -> list[str]:
        """Read a file of *node* that says *pairs*; return what has changed, in words."""
        options: Any = {"zones": [str(node.zone)], "backend": "memory", "persistdb": str(node.path), "delay": "0"}
        reading = build.load(options, pairs)
        outcome = await node.running.lock.run(lambda: Deferred.fromCoroutine(reloads.apply(*reading)))
        return list(outcome.lines)

    async def test_one_node(self) -> None:
        """The VMs that a reload changes, adds and removes do so at all nodes; the other's own reload agrees."""
        one, two = await self.pair()
        first, second = (Reloads(one_.running, one_.fleet, lambda *_: None, reactor) for one_ in (one, two))
        pairs = (f"{FILE[0]},ttl=7", "dns=late.jitsu.test,ip=10.0.0.9,name=late")
        self.assertEqual(["added: late", "changed: www", "removed: db"], await self.reload(first, one, *pairs))
        wanted = {"www": ("10.0.0.1", 7), "late": ("10.0.0.9", 60)}
        await self.until(lambda: one.runs() == two.runs() == wanted)
        await self.agreed()
        lines = await self.reload(second, two, *pairs)
        self.assertEqual([], [line for line in lines if "though" in line or "no longer" in line], lines)
        await self.agreed()
        self.assertEqual([wanted] * 2, [one.runs(), two.runs()])
