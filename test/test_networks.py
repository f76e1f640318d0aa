"""Addresses as octets, and the networks that they are in."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.networks import Networks, network, packed, to_text


class AddressTests(SynchronousTestCase):
    """`packed`, `network` and `to_text`."""

    def test_packed(self) -> None:
        """An address is 4 or 16 octets; a mapped one is the IPv4 address that it means; a zone is left out."""
        for host, expected in (
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::FFFF:C000:201", "192.0.2.1"),
            ("::192.0.2.1", "::c000:201"),
            ("fe80::1%eth0", "fe80::1"),
            ("::1", "::1"),
        ):
            self.assertEqual(ip_address(expected).packed, packed(host), host)

    def test_no_address(self) -> None:
        """What is no address is a ValueError that names it."""
        for host in ("", "localhost", "192.0.2", "192.0.2.256", "2001:db8::1::", "/run/socket"):
            self.assertIn(repr(host), str(self.assertRaises(ValueError, packed, host)))

    def test_network(self) -> None:
        """Addresses that differ only behind /24 or /56 are of one network, others are not."""
        for one, other, same in (
            ("192.0.2.1", "192.0.2.254", True),
            ("192.0.2.1", "192.0.3.1", False),
            ("192.0.2.1", "::ffff:192.0.2.9", True),
            ("2001:db8:0:12::1", "2001:db8:0:ff:ffff::1", True),
            ("2001:db8:0:12::1", "2001:db8:0:112::1", False),
            ("::1", "0.0.0.1", False),
        ):
            self.assertEqual(same, network(packed(one)) == network(packed(other)), (one, other))

    def test_to_text(self) -> None:
        """A network is shown with its prefix length."""
        for host, expected in (
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:23ff::1", "2001:db8:1:2300::/56"),
        ):
            self.assertEqual(expected, to_text(network(packed(host))))


class NetworksTests(SynchronousTestCase):
    """`Networks`."""

    def test_contains(self) -> None:
        """An address is in a list if it is in one of its networks, by its own family."""
        for listed, host, expected in (
            ((), "192.0.2.1", False),
            (("192.0.2.0/24",), "192.0.2.255", True),
            (("192.0.2.0/24",), "192.0.3.0", False),
            (("192.0.2.0/24",), "::ffff:192.0.2.1", True),
            (("198.51.100.0/24", "192.0.2.0/24"), "198.51.100.1", True),
            (("198.51.100.0/24", "192.0.2.0/25"), "192.0.2.128", False),
            (("198.51.100.0/24", "192.0.2.0/25"), "192.0.2.127", True),
            (("192.0.2.1/32",), "192.0.2.1", True),
            (("192.0.2.1/32",), "192.0.2.0", False),
            (("0.0.0.0/0",), "255.255.255.255", True),
            (("0.0.0.0/0",), "::1", False),
            (("::/0",), "192.0.2.1", False),
            (("::/0",), "::ffff:192.0.2.1", False),
            (("::/0",), "ffff::", True),
            (("2001:db8::/32",), "2001:db8:ffff::1", True),
            (("2001:db8::/32",), "2001:db9::1", False),
            (("::ffff:192.0.2.0/120",), "192.0.2.1", True),
            (("::ffff:192.0.2.0/120",), "192.0.3.1", False),
            (("::ffff:0:0/96",), "192.0.2.1", True),
            (("::1/128",), "::1", True),
        ):
            self.assertEqual(expected, packed(host) in Networks(map(ip_network, listed)), (listed, host))
