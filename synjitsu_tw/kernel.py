"""
What this host's kernel knows of interfaces, bridges and neighbours, and what it can be told, by rtnetlink (pyroute2).

A frame that is sent on a bridge goes out of its ports and never comes back to the host itself. So where the host is a
peer (its own clients, or those that it routes for), its neighbour table is written instead.

Synjitsu has a port of its own in each bridge: one end of a veth pair, the other end of which is up and silent. With
this port the bridge has carrier while no VM runs; without carrier the kernel drops what the host sends before any
capture sees it. And the stand-in's MAC has a permanent entry in the bridge's forwarding table: without one, the bridge
floods frames for the stand-in to all ports, and a guest whose stack does not look at the destination answers them.
Nothing is sent by the port, and nothing is flooded to it but what this host itself sends to all. It stays when Synjitsu
ends, and is recognised by its name and MAC, so that neither a restart nor a crash takes the carrier away.

A bridge whose MAC no operator has chosen takes the lowest of its ports', which changes as taps come and go; then
this host's packets are lost until their peers have asked again. So a bridge that has no ports but guests' keeps the MAC
that it has when Synjitsu's port is plugged in, as libvirt's own bridges do.

Changing anything takes CAP_NET_ADMIN; asking takes no privilege. A call takes less than a millisecond.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Interface, IPv6Interface

#: Of <linux/rtnetlink.h>: the multicast groups that tell of links; and of addresses and routes, of IPv4 and IPv6.
_LINKS: Final = 0x1
_ADDRESSES: Final = 0x10 | 0x40 | 0x100 | 0x400

#: Of <linux/if_bridge.h>: the state of a port.
_FORWARDING: Final = 3

#: Of <linux/neighbour.h>: states of an entry.
_REACHABLE: Final = 0x02
_STALE: Final = 0x04
_PERMANENT: Final = 0x80

#: Of <linux/neighbour.h>: the entry is the bridge's, not the device's own.
_MASTER: Final = 0x04

#: Of <linux/rtnetlink.h>: a route to neighbours or through a gateway, and one to an address of this host.
_UNICAST: Final = 1
_LOCAL: Final = 2

#: Of <linux/if.h>: an interface that is up, one that does not use ARP, and one that has carrier.
_UP: Final = 0x1
_NOARP: Final = 0x80
_LOWER_UP: Final = 0x10000

#: The kinds of interfaces that lead to a guest alone; Xen's have none, but a name of their own. Behind others is a LAN.
_GUESTS: Final = frozenset({"tun", "veth"})

#: Of <linux/if_link.h>: the kernel gives an interface no IPv6 address of its own accord.
_NO_IPV6_ADDRESS: Final = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}

#: How the MACs of Synjitsu's ports begin: a bridge without a MAC that an operator chose takes the lowest of its ports.
_HIGHEST: Final = b"\xfe\xff\xff"

#: The first octet of the MAC that a bridge gets which has none, as it has lost its last port; locally administered.
_OWN: Final = b"\x06"

#: The first octet of the MAC of a tap that libvirt made; the others are the guest's (virNetDevTapCreateInBridgePort).
_TAP: Final = b"\xfe"

#: The longest name of an interface (IFNAMSIZ, without the zero octet), and what the far end's has after the port's.
_LONGEST: Final = 15
_FAR: Final = "-i"

#: Addresses that no host has (RFC 5737; RFC 3849): the route to them is the default route.
_NOWHERE: Final = ("192.0.2.1", "2001:db8::1")

#: Each machine's own, whatever it is called.
_MACHINE_ID: Final = Path("/etc/machine-id")


def own_mac(interface: str) -> bytes:
    """Return the stand-in's MAC on an interface: locally administered, and the same after a restart."""
    machine = _MACHINE_ID.read_bytes() if _MACHINE_ID.exists() else b""
    seed = b"\0".join((machine.strip(), socket.gethostname().encode(), interface.encode()))
    return b"\x02" + hashlib.sha256(b"synjitsu\0" + seed).digest()[:5]


def port_name(bridge: str) -> str:
    """Return the name of Synjitsu's port in a bridge: ``syn-virbr0``; a digest stands for a bridge's long name."""
    longest = _LONGEST - len(_FAR)
    plain = f"syn-{bridge}"
    return plain if len(plain) <= longest else f"syn-{hashlib.sha256(bridge.encode()).hexdigest()}"[:longest]


class NotABridgeError(OSError):
    """An interface is no bridge of Linux's."""


@attrs.frozen
class Interface:
    """
    What the kernel says of an interface.

    Attributes:
        index: its number.
        kind: ``bridge``, ``veth``, ``tun`` …; empty for hardware.
        mtu: in octets.
        master: the number of the bridge that it is a port of; 0 for none.
        up: it is up, and has carrier: of a veth pair, both ends are up.
        forwards: its bridge forwards to it.
        stp: it is a bridge with the spanning tree protocol, which forwards nothing to a new port for a while.
    """

    index: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    master: int
    up: bool
    forwards: bool
    stp: bool

    @classmethod
    def read(cls, message: Any) -> Interface:
        """Return what an RTM_NEWLINK message says."""
        mac, info = message.get_attr("IFLA_ADDRESS"), message.get_attr("IFLA_LINKINFO")
        kind, data, port = (
            info.get_attr(f"IFLA_INFO_{part}") if info else None for part in ("KIND", "DATA", "SLAVE_DATA")
        )
        return cls(
            message["index"],
            message.get_attr("IFLA_IFNAME"),
            kind or "",
            bytes.fromhex(mac.replace(":", "")) if mac else b"",
            message.get_attr("IFLA_MTU"),
            message.get_attr("IFLA_MASTER") or 0,
            message["flags"] & (_UP | _LOWER_UP) == _UP | _LOWER_UP,
            bool(port and port.get_attr("IFLA_BRPORT_STATE") == _FORWARDING),
            bool(kind == "bridge" and data and data.get_attr("IFLA_BR_STP_STATE")),
        )


class Kernel:
    """Asks and tells the kernel of the network namespace that Synjitsu runs in."""

    def __init__(self) -> None:
        """Open the sockets."""
        self._netlink = IPRoute()
        self._links, self._addresses = _listen(_LINKS), _listen(_ADDRESSES)

    def close(self) -> None:
        """Close them."""
        self._netlink.close()
        self._links.close()
        self._addresses.close()

    def links_changed(self) -> bool:
        """Return whether interfaces may have changed since the last call."""
        return _drain(self._links)

    def addresses_changed(self) -> bool:
        """Return whether this host's addresses and routes may have changed since the last call."""
        return _drain(self._addresses)

    @staticmethod
    def _do(call: Callable[..., Any], *arguments: Any, **more: Any) -> list[Any]:
        """
        Make one request and return the kernel's answers.

        Raises:
            OSError: the kernel refuses it.
        """
        try:
            return list(call(*arguments, **more) or ())
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    def interface(self, name: str) -> Interface:
        """Return an interface. Raises OSError if it is not there."""
        return Interface.read(self._do(self._netlink.link, "get", ifname=name)[0])

    def addresses(self) -> dict[str, list[IPv4Interface | IPv6Interface]]:
        """Return this host's addresses with the lengths of their prefixes, by interface."""
        found: dict[str, list[IPv4Interface | IPv6Interface]] = {}
        for message in self._do(self._netlink.get_addr):
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            with suppress(OSError):  # the interface has gone meanwhile
                name = socket.if_indextoname(message["index"])
                found.setdefault(name, []).append(ip_interface(f"{address}/{message['prefixlen']}"))
        return found

    def gateways(self) -> frozenset[bytes]:
        """Return the gateways of this host's default routes."""
        found = (self._route(nowhere) for nowhere in _NOWHERE)
        return frozenset(ip_address(route[1]).packed for route in found if route is not None and route[1])

    def is_behind(self, interface: str, ip: bytes) -> bool:
        """Return whether this host reaches *ip* as a neighbour on *interface*."""
        route = self._route(str(ip_address(ip)))
        return route is not None and route == (_UNICAST, None, socket.if_nametoindex(interface))

    def _route(self, address: str) -> tuple[int, str | None, int] | None:
        """Return the type, the gateway and the interface of the route to an address; None if there is no route."""
        try:
            (message,) = self._do(self._netlink.route, "get", dst=address)
        except OSError:
            return None
        return message["type"], message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF")

    def tell(self, interface: str, ip: bytes, mac: bytes, *, create: bool) -> None:
        """
        Tell the kernel that a neighbour is at a MAC; unless *create*, only if it knows another one.

        Raises:
            OSError: the kernel does not allow it.
        """
        command, state = ("replace", _REACHABLE) if create else ("change", _STALE)
        entry = {"dst": str(ip_address(ip)), "lladdr": mac.hex(":"), "ifindex": socket.if_nametoindex(interface)}
        try:
            self._do(self._netlink.neigh, command, state=state, **entry)
        except OSError as error:
            if create or error.errno != errno.ENOENT:
                raise

    # Bridges

    def ports(self, bridge: Interface) -> Iterator[Interface]:
        """Yield the ports of a bridge."""
        found = map(Interface.read, self._do(self._netlink.link, "dump", master=bridge.index))
        return (port for port in found if port.master == bridge.index)

    def is_same_port(self, interface: str, mac: bytes, known: frozenset[bytes], domid: int | None) -> bool:
        """
        Return whether *mac* is behind the port of the guest that has the *known* MACs.

        The guest's port is that behind which the bridge has learnt one of these, or whose own MAC libvirt has made from
        one, or which Xen has named after the guest's number *domid*.
        """
        try:
            bridge = self.interface(interface)
            at = self._learnt_at(bridge, mac)
            if at is None:
                return False
            # Not among all ports of the bridge: reading a hundred takes 60 ms, and strangers can have many looked up.
            port = Interface.read(self._do(self._netlink.link, "get", index=at)[0])
            if domid is not None and port.name.startswith(f"vif{domid}."):
                return True
            taps = {_TAP + one[1:] for one in known}
            return port.kind in _GUESTS and (port.mac in taps or at in {self._learnt_at(bridge, one) for one in known})
        except OSError:  # it is no bridge, or has changed meanwhile
            return False

    def _learnt_at(self, bridge: Interface, mac: bytes) -> int | None:
        """Return the number of the port behind which a bridge has learnt a MAC."""
        try:
            (entry,) = self._do(self._netlink.fdb, "get", master=bridge.index, lladdr=mac.hex(":"))
        except OSError:
            return None
        return None if entry["state"] & _PERMANENT else entry["ifindex"]

    def have_port(self, name: str, mac: bytes) -> tuple[Interface, list[Interface]]:
        """
        See to it that Synjitsu has its port in a bridge, and that the bridge floods no frame for *mac*.

        Returns:
            The bridge and its other ports.

        Raises:
            NotABridgeError: the interface is no bridge of Linux's.
            OSError: there is no such interface, the kernel does not allow it, or another interface has the port's name.
        """
        bridge, port = self.interface(name), port_name(name)
        if bridge.kind != "bridge":
            raise NotABridgeError(errno.EOPNOTSUPP, "it is no bridge of Linux's")
        ports = list(self.ports(bridge))
        others = [one for one in ports if one.name != port]
        # A bridge whose MTU nobody has chosen takes the least of its ports: this one has no say in it.
        mtu = min((one.mtu for one in others), default=bridge.mtu)
        address = _HIGHEST + mac[-3:]
        link = next((one for one in ports if one.name == port), None) or self._found_or_made(port, address, mtu, name)
        if (link.kind, link.mac) != ("veth", address):
            raise OSError(errno.EEXIST, f"there is an interface {port} that is not Synjitsu's")
        if (link.master, link.up) != (bridge.index, True):
            if all(one.kind in _GUESTS for one in others):
                kept = bridge.mac if any(bridge.mac) else _OWN + mac[1:]
                self._do(self._netlink.link, "set", index=bridge.index, address=kept.hex(":"))
            self._plug(link, bridge, mac)
        if link.mtu != mtu:
            self._do(self._netlink.link, "set", index=link.index, mtu=mtu)
        return bridge, others

    def _found_or_made(self, port: str, address: bytes, mtu: int, bridge: str) -> Interface:
        with suppress(OSError):
            return self.interface(port)
        self._make_port(port, address, mtu, bridge)
        return self.interface(port)

    def _make_port(self, port: str, address: bytes, mtu: int, bridge: str) -> None:
        far = {"ifname": port + _FAR, "mtu": mtu}
        self._do(self._netlink.link, "add", ifname=port, kind="veth", peer=far, address=address.hex(":"), mtu=mtu)
        for end in (port, port + _FAR):
            index, alias = socket.if_nametoindex(end), f"Synjitsu's port in {bridge}"
            self._do(self._netlink.link, "set", index=index, IFLA_AF_SPEC=_NO_IPV6_ADDRESS, ifalias=alias)

    def _plug(self, port: Interface, bridge: Interface, mac: bytes) -> None:
        """Make *port* a port of *bridge*, to which nothing is flooded; have frames for *mac* flooded to none."""
        far = socket.if_nametoindex(port.name + _FAR)
        self._do(self._netlink.link, "set", index=far, flags=_UP | _NOARP, change=_UP | _NOARP)
        self._do(self._netlink.link, "set", index=port.index, master=bridge.index)
        flags = dict.fromkeys(("unicast_flood", "mcast_flood", "bcast_flood", "learning"), 0)
        self._do(self._netlink.brport, "set", index=port.index, **flags)
        entry = {"ifindex": port.index, "lladdr": mac.hex(":")}
        self._do(self._netlink.fdb, "replace", state=_PERMANENT, flags=_MASTER, **entry)
        self._do(self._netlink.link, "set", index=port.index, state="up")


def _listen(groups: int) -> socket.socket:
    """Return a socket that becomes readable when something of rtnetlink's multicast *groups* has changed."""
    listens = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    listens.bind((0, groups))
    return listens


def _drain(listens: socket.socket) -> bool:
    """Read everything from a socket of `_listen`; return whether there was something."""
    changed = False
    while True:
        try:
            listens.recv(65536)
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # there was more than it could keep
                raise
        changed = True
