"""The kernel's neighbour table; with real neighbours in `test.e2e.test_guest_word`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.neighbours import mac_of


class NeighboursTests(SynchronousTestCase):
    """`mac_of`."""

    def test_none(self) -> None:
        """This host itself, an address that no machine has, and one behind a router have no MAC here."""
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "255.255.255.255", "203.0.113.1", "2001:db8::1"):
            self.assertIsNone(mac_of(host), host)

    def test_no_address(self) -> None:
        """What is no address, or names an interface that there is not, is an error of its own kind."""
        self.assertRaises(ValueError, mac_of, "www.example.org")
        self.assertRaises(OSError, mac_of, "fe80::1%nowhere")
