"""Response rate limiting."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.rrl import Decision, Kind, Limiter
from jitsu_tw.dns.wire import ROOT, from_text
from jitsu_tw.networks import packed

SEED: Final = bytes(range(16))
WWW: Final = from_text("www.example.com")
MAIL: Final = from_text("mail.example.com")
VICTIM: Final = packed("192.0.2.1")

SEND, SLIP, DROP = Decision.SEND, Decision.SLIP, Decision.DROP


def flood(limiter: Limiter, number: int, now: float = 0, address: bytes = VICTIM) -> list[Decision]:
    """Return the decisions on *count* equal responses at one moment."""
    return [limiter.decide(address, Kind.POSITIVE, WWW, now) for _ in range(number)]


class LimiterTests(SynchronousTestCase):
    """`Limiter.decide`."""

    def test_burst(self) -> None:
        """`burst` responses of a kind are sent at once, then no more; without a burst, one second's."""
        for rate, burst, expected in ((5, 0, 5), (200, 0, 200), (7, 0, 7), (5, 12, 12), (200, 3, 3), (1, 1, 1)):
            for now in (0.0, 1e7 + 0.1):
                decisions = flood(Limiter(SEED, rate, burst=burst, slip=0), expected + 20, now)
                self.assertEqual([SEND] * expected + [DROP] * 20, decisions, (rate, burst, now))

    def test_rate(self) -> None:
        """A flood gets its burst and then its rate, however much of it there is."""
        for rate, burst in ((5, 5), (5, 20), (50, 10)):
            limiter = Limiter(SEED, rate, burst=burst, slip=0)
            sent = sum(flood(limiter, 10, tick / 100).count(SEND) for tick in range(1000))  # 10 s
            self.assertTrue(burst + 10 * rate - 1 <= sent <= burst + 10 * rate, (rate, burst, sent))

    def test_below_the_rate(self) -> None:
        """A client that asks no more often than the rate is never limited; a bucket holds no more than its burst."""
        limiter = Limiter(SEED, 5)
        self.assertEqual({SEND}, {limiter.decide(VICTIM, Kind.POSITIVE, WWW, tick / 5) for tick in range(1000)})
        self.assertEqual(5, flood(limiter, 50, 10_000).count(SEND))

    def test_no_limit(self) -> None:
        """A rate of 0 limits nothing."""
        self.assertEqual([SEND] * 1000, flood(Limiter(SEED, 0), 1000))

    def test_slip(self) -> None:
        """Every `slip`-th suppressed response is sent truncated: with 0 none, with 1 all."""
        for slip, expected in (
            (0, [DROP] * 6),
            (1, [SLIP] * 6),
            (2, [DROP, SLIP] * 3),
            (3, [DROP, DROP, SLIP] * 2),
        ):
            self.assertEqual([SEND, *expected], flood(Limiter(SEED, 1, slip=slip), 7), slip)

    def test_what_has_a_bucket(self) -> None:
        """Responses share a bucket if the network, the kind and the name are the same."""
        for address, kind, key, shared in (
            (VICTIM, Kind.POSITIVE, WWW, True),
            (packed("192.0.2.254"), Kind.POSITIVE, WWW, True),
            (packed("::ffff:192.0.2.7"), Kind.POSITIVE, WWW, True),
            (packed("192.0.3.1"), Kind.POSITIVE, WWW, False),
            (packed("2001:db8::1"), Kind.POSITIVE, WWW, False),
            (VICTIM, Kind.POSITIVE, MAIL, False),
            *((VICTIM, kind, WWW, False) for kind in Kind if kind is not Kind.POSITIVE),
        ):
            limiter = Limiter(SEED, 5, slip=0)
            flood(limiter, 100)
            expected = DROP if shared else SEND
            self.assertEqual(expected, limiter.decide(address, kind, key, 0), (address, kind, key))

    def test_ipv6_networks(self) -> None:
        """An IPv6 network is a /56."""
        for host, expected in (("2001:db8:0:ff::2", DROP), ("2001:db8:0:100::1", SEND)):
            limiter = Limiter(SEED, 1, slip=0)
            flood(limiter, 2, address=packed("2001:db8::1"))
            self.assertEqual([expected], flood(limiter, 1, address=packed(host)), host)

    def test_exempt(self) -> None:
        """Loopback and the exempt networks are never limited."""
        for address, expected in (
            (packed("127.0.0.1"), SEND),
            (packed("127.255.255.254"), SEND),
            (packed("::1"), SEND),
            (packed("::ffff:127.0.0.1"), SEND),
            (packed("198.51.100.9"), SEND),
            (packed("2001:db8::53"), SEND),
            (packed("198.51.101.9"), DROP),
            (packed("2001:db9::53"), DROP),
            (packed("::2"), DROP),
        ):
            limiter = Limiter(SEED, 2, slip=0, exempt=(ip_network("198.51.100.0/24"), ip_network("2001:db8::/32")))
            self.assertEqual(expected, flood(limiter, 20, address=address)[-1], address)

    def test_arguments(self) -> None:
        """A short seed or a table whose size is no power of two is an error."""
        self.assertRaises(ValueError, Limiter, SEED[1:])
        for places in (0, 3, 65535, -2):
            self.assertRaises(ValueError, Limiter, SEED, entries=places)


class TableTests(SynchronousTestCase):
    """`Limiter`, of its table."""

    def test_collision(self) -> None:
        """Two buckets of one entry displace each other and begin again with a full bucket and no slip counted."""
        limiter = Limiter(SEED, 2, slip=2, entries=1)
        self.assertEqual([SEND, SEND, DROP], flood(limiter, 3))
        self.assertEqual(SEND, limiter.decide(VICTIM, Kind.POSITIVE, MAIL, 0))
        self.assertEqual([SEND, SEND, DROP, SLIP], flood(limiter, 4))

    def test_fixed_size(self) -> None:
        """However many networks are answered, the table stays as it is."""
        limiter = Limiter(SEED, 2, entries=64)
        for number in range(2000):
            limiter.decide(packed(f"10.{number // 256}.{number % 256}.1"), Kind.NXDOMAIN, ROOT, 0)
        self.assertEqual([64] * 3, [len(each) for each in (limiter._hash, limiter._full_at, limiter._suppressed)])

    def test_spread(self) -> None:
        """Buckets for a tenth of the entries hardly disturb each other: nearly all of a flood is suppressed."""
        limiter = Limiter(SEED, 1, slip=0, entries=4096)
        addresses = [packed(f"10.{number // 256}.{number % 256}.1") for number in range(400)]
        count = Counter(limiter.decide(address, Kind.POSITIVE, WWW, 0) for _ in range(10) for address in addresses)
        self.assertTrue(count[SEND] < 1000, count)  # 400 if no two met; 4000 if nothing were held down

    def test_seed(self) -> None:
        """Which buckets share an entry depends on the seed, so that no client can know it."""

        def meets(seed: bytes) -> list[int]:
            """Return which networks displace the victim's bucket."""
            found = []
            for number in range(200):
                limiter = Limiter(seed, 1, slip=0, entries=16)
                flood(limiter, 1)
                flood(limiter, 1, address=packed(f"10.0.{number}.1"))
                if flood(limiter, 1) == [SEND]:
                    found.append(number)
            return found

        one, other = meets(SEED), meets(bytes(16))
        self.assertTrue(one)
        self.assertTrue(other)
        self.assertNotEqual(one, other)
