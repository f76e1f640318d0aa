"""Addresses as octets, the networks that they are in, and which can be no VM's."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.networks import Networks, network, packed, to_text, why_no_guest


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


class NoGuestTests(SynchronousTestCase):
    """`why_no_guest`."""

    def test_refused(self) -> None:
        """What reaches no one machine is no guest's, however it is written; the reason names it."""
        for text, words in (
            ("0.0.0.0", "no machine in particular"), ("0.0.0.9", "no machine in particular"),  # noqa: S104
            ("127.0.0.1", "loopback"), ("127.255.255.254", "loopback"), ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"), ("240.0.0.1", "class E"), ("255.255.255.255", "the broadcast address"),
            ("::", "no machine in particular"), ("::1", "loopback"), ("::2", "IPv4-compatible"),
            ("::10.0.0.1", "IPv4-compatible"), ("::ffff:10.0.0.1", "write 10.0.0.1"),
            ("::ffff:127.0.0.1", "write 127.0.0.1"), ("::ffff:0:10.0.0.1", "IPv4-translated"),
            ("64:ff9b::10.0.0.1", "stands for an IPv4 address"), ("100::1", "discarded"), ("ff02::1", "multicast"),
            ("ff0e::1", "multicast"), ("fe80::1%br0", "write it without %br0"), ("2002:7f00:1::1", "127.0.0.1 is a"),
        ):  # fmt: skip
            why = why_no_guest(ip_address(text)) or "it is one"
            self.assertTrue(why.startswith(str(ip_address(text))), why)
            self.assertIn(words, why)

    def test_legitimate(self) -> None:
        """Private, shared, link-local, documentation's and all other unicast addresses may be a guest's."""
        for text in ("10.0.0.1", "10.0.0.255", "172.16.0.0", "192.168.255.255", "100.64.0.1", "169.254.1.1",
                     "192.0.2.80", "198.51.100.1", "203.0.113.255", "198.18.0.1", "1.1.1.1", "223.255.255.255",
                     "fd00::1", "fe80::1", "2001:db8::1",
                     "2a00::", "64:ff9b:1::1", "fec0::1", "2002:c000:0201::1"):  # fmt: skip
            self.assertIsNone(why_no_guest(ip_address(text)), text)

    def test_networks(self) -> None:
        """Where a host's networks are known, their own addresses are no guest's; those of point-to-point links are."""
        interfaces = list(map(ip_interface, ("10.0.0.1/24", "10.1.0.0/31", "10.2.0.1/32", "fd00::1/64", "fd01::/127")))
        for text, words in (
            ("10.0.0.0", "the network 10.0.0.0/24 itself"), ("10.0.0.255", "the broadcast address of 10.0.0.0/24"),
            ("10.0.0.1", ""), ("10.0.1.255", ""), ("10.1.0.0", ""), ("10.1.0.1", ""), ("10.2.0.1", ""),
            ("fd00::", "the network fd00::/64 itself"), ("fd00::ffff:ffff:ffff:ffff", ""), ("fd01::", ""),
        ):  # fmt: skip
            self.assertIn(words, why_no_guest(ip_address(text), interfaces) or "")
            self.assertEqual(bool(words), why_no_guest(ip_address(text), interfaces) is not None, text)
