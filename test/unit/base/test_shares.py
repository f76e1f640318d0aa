"""What one client can hold: `jitsu_tw.shares`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.wire import Source
from jitsu_tw.shares import Heaviest, Line, Places
from test.support.packets import bounded


def proven(host: str) -> Source:
    """Return a client that has proven its address."""
    return Source(host, 1, proven=True)


class PlacesTests(SynchronousTestCase):
    """`Places`."""

    def test_one_network(self) -> None:
        """One network has its share, whichever addresses it uses; others have theirs; a freed slot can be taken."""
        places = Places(10, 3)
        self.assertEqual([True] * 3 + [False] * 2, [places.take(proven(f"192.0.2.{n}")) for n in range(5)])
        self.assertTrue(places.take(proven("192.0.3.1")))
        self.assertTrue(places.take(proven("2001:db8::1")))
        places.leave(proven("192.0.2.1"))
        self.assertTrue(places.take(proven("::ffff:192.0.2.9")))
        self.assertFalse(places.take(proven("192.0.2.1")))

    def test_all(self) -> None:
        """There are no more slots than the limit, however many networks ask."""
        places = Places(10, 3)
        self.assertEqual(10, sum(places.take(proven(f"10.0.{n}.1")) for n in range(100)))

    def test_forged(self) -> None:
        """Clients without proof have half of the slots together: the others are for clients with proof."""
        places = Places(10, 3)
        self.assertEqual(5, sum(places.take(Source(f"10.0.{n}.1", 1)) for n in range(100)))
        self.assertEqual(5, sum(places.take(proven(f"10.1.{n}.1")) for n in range(100)))
        places.leave(proven("10.1.0.1"))
        self.assertFalse(places.take(Source("10.2.0.1", 1)))
        places.leave(Source("10.0.0.1", 1))
        self.assertTrue(places.take(Source("10.2.0.1", 1)))

    def test_forgets(self) -> None:
        """Of a network without a slot, nothing is remembered."""
        places = Places(10, 3)
        for number in range(100):
            self.assertTrue(places.take(Source(f"10.0.{number}.1", 1)))
            places.leave(Source(f"10.0.{number}.1", 1))
        self.assertEqual(0, len(places._taken))


class LineTests(SynchronousTestCase):
    """`Line`."""

    def test_in_turn(self) -> None:
        """Slots are limited in all and for each network; a freed slot goes to one waiting network after the other."""
        given: list[str] = []
        line = Line(3, 2, given.append)
        for one in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
            line.ask(one, one[:1].encode())
        self.assertEqual(["a1", "a2", "b1"], given)
        for one in ("b1", "a1", "a2", "a3", "c1", "a4", "b2", "nobody"):
            line.leave(one, one[:1].encode())
        self.assertEqual(["a1", "a2", "b1", "b2", "a3", "c1", "a4"], given)
        self.assertEqual(([], []), (list(line._taken), list(line._waiting)))

    def test_leaves_the_line(self) -> None:
        """A client that waits no more gets no slot."""
        given: list[str] = []
        line = Line(1, 1, given.append)
        for one in "xyz":
            line.ask(one, b"n")
        for one in "yx":
            line.leave(one, b"n")
        self.assertEqual(["x", "z"], given)


class HeaviestTests(SynchronousTestCase):
    """`Heaviest`."""

    @bounded
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))))
    def test_as_by_looking(self, moves: list[tuple[int, int]]) -> None:
        """Whatever weights change, one of those with the greatest is on top."""
        heaviest: Heaviest[int] = Heaviest()
        weights = dict.fromkeys(range(6), 0)
        for one, new in moves:
            heaviest.move(one, weights[one], new)
            weights[one] = new
            if any(weights.values()):
                self.assertEqual(max(weights.values()), weights[heaviest.top()])
            else:
                self.assertRaises(KeyError, heaviest.top)
