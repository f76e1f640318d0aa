"""
Clients' addresses as octets: which network a client belongs to, and whether a list of networks has it.

Budgets and rates are kept by network, not by address, because whoever has one address usually has its neighbours too:
a /24 of IPv4, a /56 of IPv6. An IPv4 client that comes through an IPv6 socket (``::ffff:192.0.2.1``, RFC 4291,
2.5.5.2) counts as what it is. Nothing here does I/O.
"""

from __future__ import annotations

from ipaddress import IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.settings import Network

#: How many octets of an address are its network: 24 bits (what NSD, Knot and BIND count by), and 56, of which a
#: household gets at least one (RFC 6177).
IPV4_OCTETS: Final = 3
IPV6_OCTETS: Final = 7

_MAPPED: Final = bytes(10) + b"\xff\xff"


def packed(host: str) -> bytes:
    """
    Return the address *host* in 4 or 16 octets; its zone (``%eth0``), if it has one, is left out.

    Raises:
        ValueError: *host* is no address.
    """
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except OSError as error:
        raise ValueError(f"{host!r} is no address") from error
    return address[12:] if address.startswith(_MAPPED) else address


def network(address: bytes) -> bytes:
    """Return the network of *address*, as `packed` makes it: the 3 or 7 octets that all its addresses begin with."""
    return address[:IPV4_OCTETS] if len(address) == 4 else address[:IPV6_OCTETS]


def to_text(network: bytes) -> str:
    """Return what `network` made, for people: ``192.0.2.0/24``."""
    family, size = (AF_INET, 4) if len(network) == IPV4_OCTETS else (AF_INET6, 16)
    return f"{inet_ntop(family, network.ljust(size, bytes(1)))}/{8 * len(network)}"


class Networks:
    """
    A list of networks that is asked whether an address, as `packed` makes it, is in one of them.

    The cost is that of the different prefix lengths in it, not that of its networks. ``::/0`` has no IPv4 addresses.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        """Keep *networks*; one within ``::ffff:0:0/96`` becomes the IPv4 network that it means."""
        self._known: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}  # octets -> bits to drop -> what is left
        for each in networks:
            prefix, bits = each.network_address.packed, each.prefixlen
            if isinstance(each, IPv6Network) and bits >= 96 and prefix.startswith(_MAPPED):
                prefix, bits = prefix[12:], bits - 96
            drop = 8 * len(prefix) - bits
            self._known[len(prefix)].setdefault(drop, set()).add(int.from_bytes(prefix) >> drop)

    def __contains__(self, address: bytes) -> bool:
        """Say whether *address* is in one of them."""
        number = int.from_bytes(address)
        for drop, known in self._known[len(address)].items():  # noqa: SIM110 - any() takes twice as long here
            if number >> drop in known:
                return True
        return False
