"""Who may summon, and how much."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.wire import Source
from jitsu_tw.rules.policy import Policy, Verdict

ANYBODY: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))

ADMITTED, UNPROVEN, OVER_BUDGET = Verdict.ADMITTED, Verdict.UNPROVEN, Verdict.OVER_BUDGET


def policy(
    *summon_from: str, starts: int = 0, verify: bool = False, running: int = 0, room: bool = False, networks: int = 1000
) -> Policy:
    """Return a policy; without networks, anybody may summon."""
    allowed = tuple(map(ip_network, summon_from)) or ANYBODY
    return Policy(allowed, starts, verify_source=verify, max_running=running, makes_room=room, most_networks=networks)


def ask(policy: Policy, host: str, now: float = 0, running: int = 0, *, proven: bool = True) -> Verdict:
    """Ask for one start."""
    return policy.admit(Source(host, 4711, proven=proven), now, running)


def started(policy: Policy, host: str, now: float, tries: int = 100, *, proven: bool = True) -> int:
    """Return how many of so many starts are admitted at one moment."""
    return [ask(policy, host, now, proven=proven) for _ in range(tries)].count(ADMITTED)


class PolicyTests(SynchronousTestCase):
    """`Policy.admit`."""

    def test_verdicts(self) -> None:
        """Each limit says no for its own reason, the first of several counts, and 0 is no limit."""
        for limits, host, proven, running, expected in (
            (policy(), "192.0.2.1", False, 10_000, Verdict.ADMITTED),
            (policy("192.0.2.0/24"), "192.0.2.1", False, 0, Verdict.ADMITTED),
            (policy("192.0.2.0/24"), "198.51.100.1", True, 0, Verdict.OUTSIDE),
            (policy("192.0.2.0/24"), "2001:db8::1", True, 0, Verdict.OUTSIDE),
            (policy("192.0.2.0/24"), "::ffff:192.0.2.1", False, 0, Verdict.ADMITTED),
            (policy("2001:db8::/32"), "2001:db8::1", False, 0, Verdict.ADMITTED),
            (policy(verify=True), "192.0.2.1", False, 0, Verdict.UNPROVEN),
            (policy(verify=True), "192.0.2.1", True, 0, Verdict.ADMITTED),
            (policy(running=3), "192.0.2.1", True, 2, Verdict.ADMITTED),
            (policy(running=3), "192.0.2.1", True, 3, Verdict.FULL),
            (policy(running=3), "192.0.2.1", True, 4, Verdict.FULL),
            (policy(running=3), "192.0.2.1", False, 1, Verdict.ADMITTED),
            (policy(running=3), "192.0.2.1", False, 2, Verdict.UNPROVEN),
            (policy(running=3), "192.0.2.1", False, 3, Verdict.FULL),
            (policy(running=1), "192.0.2.1", False, 0, Verdict.UNPROVEN),
            (policy(running=100), "192.0.2.1", False, 74, Verdict.ADMITTED),
            (policy(running=100), "192.0.2.1", False, 75, Verdict.UNPROVEN),
            (policy(running=3, room=True), "192.0.2.1", True, 3, Verdict.ADMITTED),
            (policy(running=3, room=True), "192.0.2.1", False, 3, Verdict.UNPROVEN),
            (policy("192.0.2.0/24", verify=True, running=1), "198.51.100.1", False, 1, Verdict.OUTSIDE),
            (policy(verify=True, running=1), "192.0.2.1", False, 1, Verdict.UNPROVEN),
        ):
            self.assertEqual(expected, ask(limits, host, 0, running, proven=proven), limits)

    def test_no_address(self) -> None:
        """A host that is no address is an error, not a client that may start VMs."""
        self.assertRaises(ValueError, ask, policy(), "/run/socket")

    def test_nobody(self) -> None:
        """Without a network in `summon_from`, nobody may summon."""
        self.assertEqual(Verdict.OUTSIDE, Policy((), 0, verify_source=False, max_running=0).admit(
            Source("127.0.0.1", 1), 0, 0))

    def test_words(self) -> None:
        """Each verdict has words of its own, that fit into an Extended DNS Error."""
        self.assertEqual(len(Verdict), len({verdict.value for verdict in Verdict}))
        for verdict in Verdict:
            self.assertTrue(0 < len(verdict.value) < 64)


class BudgetTests(SynchronousTestCase):
    """`Policy.admit`, of budgets."""

    def test_as_many_as_it_says(self) -> None:
        """A network that has been quiet starts exactly its number of VMs at once, whatever the number and the time."""
        for number in (1, 2, 3, 7, 11, 29, 30, 59, 60, 61, 97, 600):
            for now in (0.0, 12345.678, 1e7 + 0.1):
                self.assertEqual(number, started(policy(starts=number), "192.0.2.1", now, number + 5), (number, now))

    def test_refill(self) -> None:
        """An empty bucket gets its number of starts back evenly in a minute, and never holds more."""
        for waited, expected in ((0, 0), (1.9, 0), (2, 1), (3.9, 1), (10, 5), (59.9, 29), (60, 30), (1e6, 30)):
            limits = policy(starts=30)
            started(limits, "192.0.2.1", 100)
            self.assertEqual(expected, started(limits, "192.0.2.1", 100 + waited), waited)

    def test_steady(self) -> None:
        """Who asks all the time gets its number at once and then its number a minute."""
        limits = policy(starts=10)
        verdicts = [ask(limits, "192.0.2.1", tick / 10) for tick in range(10 * 60 * 10)]
        self.assertEqual(10 + 10 * 10 - 1, verdicts.count(ADMITTED))

    def test_networks(self) -> None:
        """Neighbours share a bucket, others have their own."""
        for other, expected in (
            ("192.0.2.200", OVER_BUDGET),
            ("::ffff:192.0.2.3", OVER_BUDGET),
            ("192.0.3.1", ADMITTED),
            ("2001:db8::1", ADMITTED),
        ):
            limits = policy(starts=1)
            self.assertEqual(ADMITTED, ask(limits, "192.0.2.1"))
            self.assertEqual(expected, ask(limits, other), other)
        limits = policy(starts=1)
        self.assertEqual(
            [ADMITTED, OVER_BUDGET, ADMITTED],
            [ask(limits, host) for host in ("2001:db8::1", "2001:db8:0:ff::1", "2001:db8:0:100::1")],
        )

    def test_forged(self) -> None:
        """
        Clients without proof spend half of a network's budget, and are then asked for proof.

        However long a forger goes on, clients of the network that have proven their addresses start as many VMs as
        they would without the forger, but for that half.
        """
        for number, unproven in ((30, 15), (3, 1), (2, 1), (1, 0)):
            limits = policy(starts=number)
            self.assertEqual(unproven, started(limits, "192.0.2.1", 0, proven=False), number)
            self.assertEqual(UNPROVEN, ask(limits, "192.0.2.2", 0, proven=False))
            self.assertEqual(number - unproven, started(limits, "192.0.2.2", 0), number)
            self.assertEqual(OVER_BUDGET, ask(limits, "192.0.2.1", 0, proven=False))
        limits = policy(starts=30)
        for tick in range(6000):
            ask(limits, "192.0.2.1", tick / 10, proven=False)
        self.assertGreaterEqual(started(limits, "192.0.2.2", 600), 15)

    def test_proven_first(self) -> None:
        """What clients with proof have spent counts too: those without it are asked for it from half on."""
        limits = policy(starts=30)
        started(limits, "192.0.2.1", 0, 20)
        self.assertEqual(0, started(limits, "192.0.2.2", 0, proven=False))
        self.assertEqual(1, started(limits, "192.0.2.2", 12, proven=False))

    def test_starts_nothing(self) -> None:
        """A question that will start nothing, as of a VM that has failed and rests, asks for no proof."""
        limits = policy(starts=1, running=1)
        self.assertEqual(ADMITTED, limits.admit(Source("192.0.2.1", 1), 0, 0, free=True))

    def test_refusals_cost_nothing(self) -> None:
        """Who is refused for whatever reason spends nothing: neither forgers nor the impatient use up a budget."""
        limits = policy("192.0.2.0/24", starts=1, verify=True, running=1)
        for _ in range(100):
            ask(limits, "192.0.2.1", 0, 0, proven=False)
            ask(limits, "192.0.2.1", 0, 1, proven=True)
        self.assertEqual(ADMITTED, ask(limits, "192.0.2.1", 0, 0, proven=True))
        for tick in range(600):
            self.assertEqual(OVER_BUDGET, ask(limits, "192.0.2.1", tick / 10, 0, proven=True), tick)
        self.assertEqual(ADMITTED, ask(limits, "192.0.2.1", 60, 0, proven=True))


class MemoryTests(SynchronousTestCase):
    """`Policy`, of what it remembers."""

    def hosts(self, number: int) -> list[str]:
        """Return so many addresses of different networks, none of them of 192.0.2.0/24."""
        return [str(ip_address((10 << 24) + (each << 8))) for each in range(number)]

    def test_refused(self) -> None:
        """Of who is refused nothing is remembered."""
        limits = policy("192.0.2.0/24", starts=30)
        for host in self.hosts(50):
            ask(limits, host)
        self.assertEqual(0, len(limits._budgets._full_at))

    def test_full_buckets_go(self) -> None:
        """Buckets that are full again are forgotten as others are spent from."""
        limits = policy(starts=60)
        for host in self.hosts(100):
            ask(limits, host, 0)
        self.assertEqual(60, started(limits, "192.0.2.1", 1000))
        self.assertEqual(["192.0.2"], [".".join(map(str, each)) for each in limits._budgets._full_at])

    def test_bounded(self) -> None:
        """However many networks start VMs, no more than the limit are remembered."""
        limits = policy(starts=30, networks=100)
        for number, host in enumerate(self.hosts(5000)):
            ask(limits, host, number / 1000)
            self.assertTrue(len(limits._budgets._full_at) <= 100)

    def test_who_is_forgotten(self) -> None:
        """If all are in use, the one that was longest not spent from is forgotten; the others are held to account."""
        limits = policy(starts=2, networks=3)
        first, second, third, fourth = self.hosts(4)
        for host in (first, second, third):
            self.assertEqual(2, started(limits, host, 0))
        self.assertEqual(ADMITTED, ask(limits, first, 30))  # now second is the oldest
        self.assertEqual(ADMITTED, ask(limits, fourth, 30))
        self.assertEqual(OVER_BUDGET, ask(limits, first, 30))
        self.assertEqual(1, started(limits, third, 30))
        self.assertEqual(2, started(limits, second, 30))  # forgotten: it would have had one

    def test_full_before_used(self) -> None:
        """While there is a full bucket at the old end, one in use is not forgotten for a new one."""
        limits = policy(starts=2, networks=3)
        first, second, third, fourth = self.hosts(4)
        ask(limits, first, 0)
        for host in (second, third):
            started(limits, host, 20)
        ask(limits, fourth, 40)
        self.assertEqual([0, 0], [started(limits, host, 40) for host in (second, third)])
