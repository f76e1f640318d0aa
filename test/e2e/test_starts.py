"""
No client notices that a VM was off: a few cold starts in each network of `bench.speed.starts`, which counts hundreds.

Each client asks and connects once. A start is faulty if its connection fails or meets a TCP reset, or if its SYN was
sent again although the guest listened before.
"""

from __future__ import annotations

from typing import Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from bench.speed import paper, starts
from demo import lab

#: Starts of each guest.
COUNT: Final = 2

#: An address at another MAC than the device's.
BRIDGED: Final = "mac=02:00:00:00:00:{number:02x}"


class StartsTests(SynchronousTestCase):
    """The guest without a kernel, by habits and networks."""

    def check(self, network: str, *habits: str, family: int = 4) -> None:
        """Start VMs with these habits; check that no start is faulty."""
        missing = lab.missing_commands()
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        try:
            seen = list(starts.measure(network, [("own", habit) for habit in habits], COUNT, family))
        except lab.NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        self.assertEqual(COUNT * len(habits), len(seen))
        faults = [f"{habits[number]}: {fault}" for number, start in seen for fault in start.faults()]
        self.assertEqual([], faults)

    def test_habits(self) -> None:
        """A client on the bridge, and guests that reset early clients, take all frames, come late, have another MAC."""
        self.check("plain", "", "listen_after=200", "promiscuous listen_after=200", "net_after=200 silent", BRIDGED)

    def test_ipv6(self) -> None:
        """The same over IPv6."""
        self.check("plain", "", "promiscuous listen_after=200", family=6)

    def test_no_carrier(self) -> None:
        """The host itself is the client of a bridge that nothing is plugged into."""
        self.check("alone", "promiscuous listen_after=200")

    def test_spanning_tree(self) -> None:
        """The same with STP, where a new port forwards nothing for its first four seconds."""
        self.check("stp", "")

    def test_routed(self) -> None:
        """The client is in another subnet, the host is its router, and nothing is plugged into the bridge."""
        self.check("router", "promiscuous listen_after=200")

    def test_host(self) -> None:
        """The host itself is the client, while something is plugged into the bridge."""
        self.check("host", "", "listen_after=200")

    def test_kinds(self) -> None:
        """A client has its page by one SYN however its VM starts, but where its SYN is dropped."""
        if missing := lab.missing_commands():
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        kinds = ["warm", "prepared", "synjitsu", "dropped"]
        seen = list(paper.measure("own", kinds, 1, 0))
        self.assertEqual(kinds, [kind for kind, _ in seen])
        self.assertEqual({None}, {start.error for _, start in seen})
        again = {kind: start.again for kind, start in seen}
        self.assertLess(0, again.pop("dropped"))
        self.assertEqual({0}, set(again.values()))
