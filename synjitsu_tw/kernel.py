"""
Read and change interfaces, bridges and neighbour entries of this host's kernel by rtnetlink (pyroute2).

A frame that is sent on a bridge leaves by its ports and never reaches the host itself. So where the host is a peer (for
its own clients, or those that it routes for), Synjitsu changes the host's neighbour table instead.

Synjitsu has a port of its own in each bridge: one end of a veth pair, the other end of which is up and silent. With
this port the bridge has carrier while no VM runs; without carrier the kernel drops what the host sends before any
capture sees it. And the stand-in's MAC has a permanent entry in the bridge's forwarding table: without one, the bridge
floods frames for the stand-in to all ports, and a guest whose stack does not check the destination MAC answers them.
By this port Synjitsu sends to this host alone, and the bridge floods to it only what this host itself sends to all. The
port stays when Synjitsu ends, and is recognised by its name and MAC, so that neither a restart nor a crash takes the
carrier away.

A bridge whose MAC no operator has chosen takes the lowest MAC of its ports, which changes as taps come and go; then
this host's packets are lost until their peers have resolved its address again. So a bridge that has no ports but
guests' keeps the MAC that it has when Synjitsu's port is plugged in, as libvirt's own bridges do.

Changing anything takes CAP_NET_ADMIN; reading takes no privilege. A call takes less than a millisecond.
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

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from synjitsu_tw.counts import Counts, Port
from synjitsu_tw.links import Interface, Links

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Interface, IPv6Interface

#: Of <linux/rtnetlink.h>: the multicast groups for links, and for addresses and routes of IPv4 and IPv6.
_LINKS: Final = 0x1
_ADDRESSES: Final = 0x10 | 0x40 | 0x100 | 0x400

#: Of <linux/neighbour.h>: states of an entry.
_REACHABLE: Final = 0x02
_STALE: Final = 0x04
_PERMANENT: Final = 0x80

#: Of <linux/neighbour.h>: the entry is the bridge's, not the device's own.
_MASTER: Final = 0x04

#: Of <linux/rtnetlink.h>: the type of a route to neighbours or through a gateway.
_UNICAST: Final = 1

#: Of <linux/if.h>: an interface that is up, and one that does not use ARP.
_UP: Final = 0x1
_NOARP: Final = 0x80

#: The kinds of interfaces that lead to one guest; Xen's have no kind, but a name of their own. Others lead to a LAN.
_GUESTS: Final = frozenset({"tun", "veth"})

#: Of <linux/if_link.h>: the kernel generates no IPv6 address for the interface (IN6_ADDR_GEN_MODE_NONE).
_NO_IPV6_ADDRESS: Final = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}

#: The first octets of the MACs of Synjitsu's ports: high, as a bridge may take the lowest MAC of its ports.
_HIGHEST: Final = b"\xfe\xff\xff"

#: The first octet of the MAC for a bridge that has none because it lost its last port; locally administered.
_OWN: Final = b"\x06"

#: The first octet of the MAC of a tap that libvirt made; the others are the guest's (virNetDevTapCreateInBridgePort).
_TAP: Final = b"\xfe"

#: The longest name of an interface (IFNAMSIZ, without the zero octet); and the suffix of the name of the veth pair's
#: other end.
_LONGEST: Final = 15
_FAR: Final = "-i"

#: Addresses that no host has (RFC 5737; RFC 3849): the route to them is the default route.
_NOWHERE: Final = ("192.0.2.1", "2001:db8::1")

#: Distinguishes machines that have the same name (machine-id(5)).
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
    """An interface is no Linux bridge."""


class Kernel:
    """
    Reads and changes the network namespace that Synjitsu runs in.

    Attributes:
        counts: the packets of guests' conversations.
        interfaces: reads the interfaces.
    """

    def __init__(self) -> None:
        """Open the sockets."""
        self.counts = Counts()
        self.interfaces = Links()
        self._netlink = IPRoute()
        self._links, self._addresses = _listen(_LINKS), _listen(_ADDRESSES)

    def close(self) -> None:
        """Close the sockets."""
        self.counts.close_all()
        self.interfaces.close()
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
        """
        Return the interface called *name*.

        Raises:
            OSError: there is none.
        """
        return self.interfaces.called(name)

    def addresses(self) -> dict[str, list[IPv4Interface | IPv6Interface]]:
        """Return this host's addresses with the lengths of their prefixes, by interface."""
        found: dict[str, list[IPv4Interface | IPv6Interface]] = {}
        for message in self._do(self._netlink.get_addr):
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            with suppress(OSError):  # the interface has vanished meanwhile
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

    def set_neighbour(self, interface: str, ip: bytes, mac: bytes, *, create: bool) -> None:
        """
        Set the MAC of a neighbour; unless *create*, only if the kernel has an entry for it.

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

    @staticmethod
    def send_to_host(bridge: str, octets: bytes) -> None:
        """
        Send a frame to this host: it comes in on *bridge* by Synjitsu's port, from the other end of the veth pair.

        Raises:
            OSError: there is no such port, or the kernel does not allow it.
        """
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((port_name(bridge) + _FAR, 0))
            link.send(octets)

    def is_same_port(self, interface: str, mac: bytes, known: frozenset[bytes], domid: int | None) -> bool:
        """
        Return whether *mac* is behind the same port as the guest that has the *known* MACs.

        The guest's port is the one behind which the bridge has learnt a known MAC, or whose own MAC libvirt has derived
        from one, or which Xen has named after the guest's number *domid*.
        """
        try:
            bridge = self.interface(interface)
            at = self._learnt_at(bridge, mac)
            if at is None:
                return False
            port = self.interfaces.at(at)  # not all: any neighbour can cause many look-ups
            if domid is not None and port.name.startswith(f"vif{domid}."):
                return True
            taps = {_TAP + one[1:] for one in known}
            return port.kind in _GUESTS and (port.mac in taps or at in {self._learnt_at(bridge, one) for one in known})
        except OSError:  # the interface is no bridge, or has changed meanwhile
            return False

    def port_of(self, interface: str, mac: bytes) -> Port | None:
        """Return the port behind which the bridge *interface* has learnt *mac*; None if it has not."""
        with suppress(OSError):  # the interface is no bridge, or has changed meanwhile
            at = self._learnt_at(self.interface(interface), mac)
            return None if at is None else Port(at, socket.if_indextoname(at))
        return None

    def _learnt_at(self, bridge: Interface, mac: bytes) -> int | None:
        """Return the number of the port behind which a bridge has learnt a MAC."""
        try:
            (entry,) = self._do(self._netlink.fdb, "get", master=bridge.index, lladdr=mac.hex(":"))
        except OSError:
            return None
        return None if entry["state"] & _PERMANENT else entry["ifindex"]

    def ensure_port(self, name: str, mac: bytes) -> tuple[Interface, list[Interface]]:
        """
        Create Synjitsu's port in the bridge *name* where it is missing, and stop flooding of frames for *mac*.

        Returns:
            The bridge and its other ports.

        Raises:
            NotABridgeError: the interface is no Linux bridge.
            OSError: there is no such interface, the kernel does not allow it, or another interface has the port's name.
        """
        bridge, port = self.interface(name), port_name(name)
        if bridge.kind != "bridge":
            raise NotABridgeError(errno.EOPNOTSUPP, "it is no Linux bridge")
        ports = self.interfaces.ports(bridge.index)
        others = [one for one in ports if one.name != port]
        # A bridge whose MTU no operator has chosen takes the least of its ports: this port must not lower it.
        mtu = min((one.mtu for one in others), default=bridge.mtu)
        address = _HIGHEST + mac[-3:]
        found = next((one for one in ports if one.name == port), None)
        link = found or self._find_or_make_port(port, address, mtu, name)
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

    def _find_or_make_port(self, port: str, address: bytes, mtu: int, bridge: str) -> Interface:
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
        """Make *port* a port of *bridge* to which nothing is flooded, and the only one that gets frames for *mac*."""
        far = socket.if_nametoindex(port.name + _FAR)
        self._do(self._netlink.link, "set", index=far, flags=_UP | _NOARP, change=_UP | _NOARP)
        self._do(self._netlink.link, "set", index=port.index, master=bridge.index)
        flags = dict.fromkeys(("unicast_flood", "mcast_flood", "bcast_flood", "learning"), 0)
        self._do(self._netlink.brport, "set", index=port.index, **flags)
        entry = {"ifindex": port.index, "lladdr": mac.hex(":")}
        self._do(self._netlink.fdb, "replace", state=_PERMANENT, flags=_MASTER, **entry)
        self._do(self._netlink.link, "set", index=port.index, state="up")


def _listen(groups: int) -> socket.socket:
    """Return a socket that becomes readable when rtnetlink reports a change to one of its multicast *groups*."""
    reports = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    reports.bind((0, groups))
    return reports


def _drain(reports: socket.socket) -> bool:
    """Read all reports from a socket of `_listen`; return whether there were any."""
    changed = False
    while True:
        try:
            reports.recv(65536)
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # its buffer has overflowed: there were reports, and some are lost
                raise
        changed = True
