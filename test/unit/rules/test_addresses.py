"""Which address of a pool a new VM gets."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.networks import Address, AddressRange
from jitsu_tw.rules.addresses import choose, size


def pool(*texts: str) -> list[AddressRange]:
    """Return the ranges of *texts*."""
    return [AddressRange.parse(text) for text in texts]


class AddressesTests(SynchronousTestCase):
    """`choose` and `size`."""

    def test_by_name(self) -> None:
        """One name has one address, whatever was chosen before; other names most often have others."""
        here = pool("10.1.0.0/16")
        self.assertEqual(choose(here, "alice.site", ()), choose(here, "alice.site", ()))
        self.assertGreater(len({choose(here, f"user-{number}.site", ()) for number in range(100)}), 90)

    def test_taken(self) -> None:
        """Each free address is found, in all ranges, and None when there is none."""
        here, taken = pool("10.1.0.8-10.1.0.11", "10.2.0.1-10.2.0.2"), set[Address]()
        for _ in range(6):
            found = choose(here, "alice.site", taken)
            assert found is not None
            self.assertTrue(any(found[0] in one for one in here))
            self.assertNotIn(found[0], taken)
            taken.add(found[0])
        self.assertIsNone(choose(here, "alice.site", taken))

    def test_families(self) -> None:
        """An address of each family that the pool has; without one of a family there is none at all."""
        here = pool("2001:db8::/64", "10.1.0.5-10.1.0.5")
        found = choose(here, "alice.site", ())
        assert found is not None
        self.assertEqual([4, 6], [one.version for one in found])
        self.assertIsNone(choose(here, "alice.site", {ip_address("10.1.0.5")}))

    def test_size(self) -> None:
        """A pool has room for as many VMs as its smaller family has addresses."""
        self.assertEqual(254, size(pool("10.1.0.0/24")))
        self.assertEqual(4, size(pool("10.1.0.1-10.1.0.2", "10.2.0.0/30")))
        self.assertEqual(2, size(pool("10.1.0.1-10.1.0.2", "2001:db8::/64")))

    def test_networks(self) -> None:
        """The addresses of a network itself are no machine's."""
        table = {
            "10.1.0.0/30": "10.1.0.1-10.1.0.2", "10.1.0.0/31": "10.1.0.0-10.1.0.1", "10.1.0.7/32": "10.1.0.7-10.1.0.7",
            "2001:db8::/126": "2001:db8::1-2001:db8::3",
        }  # fmt: skip
        self.assertEqual(table, {text: str(pool(text)[0]) for text in table})
