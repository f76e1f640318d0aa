"""
IP addresses: the network of a client, lists of networks, and the addresses that no VM can have.

Budgets and rates are kept by network, not by address, because a client with one address usually has its neighbours,
too: a /24 of IPv4, a /56 of IPv6. An IPv4 client on an IPv6 socket (``::ffff:192.0.2.1``, RFC 4291, 2.5.5.2) counts as
an IPv4 client. Nothing here does I/O.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv6Interface

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

EVERYBODY: Final[tuple[Network, ...]] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
LOOPBACK: Final[tuple[Network, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

#: How many octets of an address are its network: 24 bits (as in NSD, Knot and BIND), and 56, the least that a home
#: gets (RFC 6177).
IPV4_OCTETS: Final = 3
IPV6_OCTETS: Final = 7

_MAPPED: Final = bytes(10) + b"\xff\xff"


def packed(host: str) -> bytes:
    """
    Return the address *host* in 4 or 16 octets, without its zone (``%eth0``).

    Raises:
        ValueError: *host* is no address.
    """
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except OSError as error:
        raise ValueError(f"{host!r} is no address") from error
    return unmapped(address)


def unmapped(address: bytes) -> bytes:
    """Return the IPv4 address that *address* stands for (RFC 4291, 2.5.5.2), or, if there is none, *address*."""
    return address[12:] if address.startswith(_MAPPED) else address


def parsed(text: str) -> tuple[Address, ...]:
    """Return the addresses in *text*, with blanks between them; none if one of them is no address."""
    try:
        return tuple(map(ip_address, text.split()))
    except ValueError:
        return ()


def host_of(address: bytes) -> str:
    """Return the text of *address*, a result of `packed`."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def network(address: bytes) -> bytes:
    """Return the network of *address*, a result of `packed`: the 3 or 7 octets that all its addresses begin with."""
    return address[:IPV4_OCTETS] if len(address) == 4 else address[:IPV6_OCTETS]


def of_peer(peer: object) -> bytes:
    """Return the network of *peer*, an address of Twisted's; empty for all peers on UNIX sockets."""
    host = getattr(peer, "host", "")
    return network(packed(host)) if host else b""


def to_text(network: bytes) -> str:
    """Return the text of *network*, a result of `network`: ``192.0.2.0/24``."""
    family, size = (AF_INET, 4) if len(network) == IPV4_OCTETS else (AF_INET6, 16)
    return f"{inet_ntop(family, network.ljust(size, bytes(1)))}/{8 * len(network)}"


@attrs.frozen
class AddressRange:
    """
    Addresses in a row.

    Attributes:
        first, last: of one family; both are in it.
    """

    first: Address
    last: Address

    @classmethod
    def parse(cls, text: str) -> AddressRange:
        """
        Return the range of ``10.1.0.0/16``, without the network's own addresses, or of ``10.1.0.16-10.1.0.99``.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        first, dash, last = text.partition("-")
        try:
            if not dash:
                return cls.of(ip_network(text))
            found = cls(ip_address(first.strip()), ip_address(last.strip()))
        except ValueError as error:
            message = f"{text!r} is no range of addresses ({error}); write one like 10.1.0.0/16 or 10.1.0.16-10.1.0.99"
            raise ValueError(message) from None
        if found.first.version != found.last.version or int(found.first) > int(found.last):
            raise ValueError(f"{text!r} ends before it begins, or in another family; write the first address first")
        return found

    @classmethod
    def of(cls, network: Network) -> AddressRange:
        """Return the addresses that machines in *network* can have (RFC 919; RFC 4291, 2.6.1; RFC 3021; RFC 6164)."""
        first, last = network[0], network[-1]
        if network.num_addresses > 2:
            first, last = network[1], network[-2] if network.version == 4 else last
        return cls(first, last)

    def __len__(self) -> int:
        """Return how many addresses are in it, or the most that Python counts."""
        return min(int(self.last) - int(self.first) + 1, sys.maxsize)

    def __getitem__(self, number: int) -> Address:
        """Return the address after *number* others."""
        return self.first + number

    def __contains__(self, address: Address) -> bool:
        """Return whether *address* is in it."""
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        """Return it as `parse` takes it."""
        return f"{self.first}-{self.last}"

    def overlaps(self, other: AddressRange) -> bool:
        """Return whether it has an address in common with *other*."""
        return other.first in self or self.first in other


class Networks:
    """
    A list of networks. ``address in networks`` is whether an address, a result of `packed`, is in one of them.

    The cost grows with the number of different prefix lengths, not of networks. ``::/0`` has no IPv4 addresses.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        """Store *networks*; one within ``::ffff:0:0/96`` becomes the IPv4 network that it stands for."""
        self._known: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}  # octets -> bits to drop -> prefixes
        for each in networks:
            prefix, bits = each.network_address.packed, each.prefixlen
            if isinstance(each, IPv6Network) and bits >= 96 and prefix.startswith(_MAPPED):
                prefix, bits = prefix[12:], bits - 96
            drop = 8 * len(prefix) - bits
            self._known[len(prefix)].setdefault(drop, set()).add(int.from_bytes(prefix) >> drop)

    def __contains__(self, address: bytes) -> bool:
        """Return whether *address* is in one of the networks."""
        number = int.from_bytes(address)
        for drop, known in self._known[len(address)].items():  # noqa: SIM110 - any() takes twice as long here
            if number >> drop in known:
                return True
        return False


#: The networks whose addresses reach no machine, with the reason (RFC 6890 and IANA's registries of special addresses).
_NO_GUESTS: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(text), reason)
    for text, reason in (
        ("0.0.0.0/8", "means no machine in particular (RFC 1122, 3.2.1.3)"),
        ("127.0.0.0/8", "is a loopback address: each machine means itself by it"),
        ("224.0.0.0/4", "is a multicast address"),
        ("255.255.255.255/32", "is the broadcast address"),
        ("240.0.0.0/4", "is in class E, which is not in use (RFC 1112, 4)"),
        ("::/128", "means no machine in particular (RFC 4291, 2.5.2)"),
        ("::1/128", "is a loopback address: each machine means itself by it"),
        ("::/96", "is an IPv4-compatible address, which is not in use (RFC 4291, 2.5.5.1)"),
        ("::ffff:0:0:0/96", "is an IPv4-translated address; write the IPv4 address itself"),
        ("64:ff9b::/96", "stands for an IPv4 address (RFC 6052); write that itself"),
        ("100::/64", "is an address that is discarded (RFC 6666)"),
        ("ff00::/8", "is a multicast address"),
    )
)
_UNREACHABLE: Final = Networks(network for network, _ in _NO_GUESTS)


def why_no_guest(address: Address, interfaces: Iterable[IPv4Interface | IPv6Interface] = ()) -> str | None:
    """
    Return why no VM can have *address*, as a sentence that begins with the address; None if one can.

    A guest may have any unicast address: private, link-local, shared (RFC 6598), and those of documentation, which
    laboratories use. For a 6to4 address (RFC 3056), the IPv4 address in it decides.

    Args:
        address: in any form that `ipaddress` takes.
        interfaces: those of this host, whose networks' own addresses (RFC 919; RFC 4291, 2.6.1) are no VM's either.
    """
    if address.packed in _UNREACHABLE:
        reason = next(reason for network, reason in _NO_GUESTS if address in network)
        return f"{address} {reason}"
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return f"{address} names an interface, which no DNS answer can; write it without %{address.scope_id}"
        if address.ipv4_mapped is not None:
            return f"{address} is an IPv4 address in IPv6's form; write {address.ipv4_mapped}"
        if address.sixtofour is not None and (why := why_no_guest(address.sixtofour)):
            return f"{address} is made of an IPv4 address that no VM can have: {why}"
    for interface in interfaces:
        network = interface.network
        if address in network and network.max_prefixlen - network.prefixlen > 1:  # /31: RFC 3021; /127: RFC 6164
            if address == network.network_address:
                return f"{address} is the address of the network {network} itself"
            if address == network.broadcast_address and address.version == 4:
                return f"{address} is the broadcast address of {network}"
    return None
