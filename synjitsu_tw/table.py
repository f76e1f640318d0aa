"""
What is known of the addresses that are stood in for, and what can be done about them: the words of `standins`.

Pure, and without a decision in it.
"""

from __future__ import annotations

import enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    from synjitsu_tw.packets import Flow
    from synjitsu_tw.syns import Held

#: Seconds between two notices that somebody claims an address.
CLAIM_EVERY: Final = 60.0

#: How many peers are remembered for an address.
PEERS: Final = 256

#: How many MACs of a guest are learnt in one boot.
LEARNT: Final = 8


class State(enum.Enum):
    """Where the VM of an address is, as far as Jitsu has told."""

    ASLEEP = "asleep"  # a SYN summons it
    BOOTING = "booting"
    UP = "up"
    FAILED = "failed"  # its start failed a moment ago


class Handover(enum.Enum):
    """How held SYNs reach the guest."""

    WIRE = "wire"  # we send them again
    XENSTORE = "xenstore"  # its own TCP stack reads them in Xenstore


class Refusal(enum.Enum):
    """What a SYN gets that comes for a VM whose start has just failed."""

    SILENCE = "silence"
    RST = "rst"
    UNREACHABLE = "unreachable"


@attrs.define
class Link:
    """
    An interface that frames come from and go to.

    Attributes:
        mac: the stand-in's own.
        host: the interface's, which this host sends from.
        addresses: this host's, on any interface.
        mtu: in octets.
        networks: this host's addresses on the interface, with their networks.
    """

    mac: bytes
    host: bytes = b""
    addresses: Collection[bytes] = frozenset()
    mtu: int = 1500
    networks: Sequence[IPv4Interface | IPv6Interface] = ()

    def knocks_from(self, ip: bytes) -> bytes | None:
        """Return the address of this host from which a neighbour at *ip* can be reached; None if there is none."""
        target = ip_address(ip)
        # Every IPv6 neighbour is on the link-local network too.
        local = [one.ip.packed for one in self.networks if one.version == target.version == 6 and one.ip.is_link_local]
        found = local or [one.ip.packed for one in self.networks if target in one.network]
        return found[0] if found else None

    def has(self, ip: bytes) -> bool:
        """Return whether *ip* is in one of the interface's networks, or this host has none of that IP version there."""
        target = ip_address(ip)
        networks = [one.network for one in self.networks if one.version == target.version and not one.ip.is_link_local]
        return not networks or any(target in one for one in networks)


@attrs.frozen
class Peer:
    """A neighbour that thinks it knows where an address is: its port, VLAN tags and MAC."""

    port: str
    tags: bytes
    mac: bytes


@attrs.define(eq=False)
class Standin:
    """
    An address that is stood in for.

    Attributes:
        macs: the guest's, as announced, those of its first interface first; none while nobody knows any.
        learnt: MACs that turned out to be the guest's since it was announced.
        mac: the guest's MAC that hand-over goes to: the one that the guest was seen using for this address, else the
            first; empty while nobody knows one.
        proven: the guest has been seen using *mac* for this address since it began to boot.
        ports: the TCP ports that are worth a start; None means all.
        wake_udp: the UDP ports whose first datagrams are held, and are worth a start.
        domid: Xen's number of the guest.
        knock: the TCP port at which it is looked whether it listens, while it boots.
        keeps: what is held is not handed over because of that, but when Jitsu says so.
        seen_on: the port on which each of the guest's MACs has been seen since it was announced.
        heard_at: when the guest was last seen.
        knocked_at: when it was last knocked at.
        introduced: this host has asked the guest for its address, so that the guest knows where this host is.
        asked_at: when the network was last asked for the address; None if it has not been since the announcement.
        ask_after: so many seconds after that it is asked again.
        booted: it was announced as booting, and not as asleep since.
        elsewhere: the address that the guest uses in place of this one, as far as has been seen.
        elsewhere_since: when it was first seen using it; None once Jitsu has been told.
        peers: who thinks to know where it is, each with its own address, if it has told us.
        told: when each was told last.
        waiting: what was handed over and is delivered when the guest shows itself, with the same.
        handed: by flow, the SYNs that were handed over and not answered yet, each with its sender's address if known.
        handed_since: when they were first sent; None while the guest has not shown itself.
        again_after: so many seconds after that they are sent again.
        refused: the flows that were held when the start failed.
        until: when a failed one is forgotten.
        claimed_at: when it was last said that another claims the address.
    """

    ip: bytes
    macs: tuple[bytes, ...] = ()
    learnt: dict[bytes, None] = attrs.Factory(dict)
    mac: bytes = b""
    proven: bool = False
    state: State = State.ASLEEP
    handover: Handover = Handover.WIRE
    ports: frozenset[int] | None = None
    wake_udp: frozenset[int] = frozenset()
    domid: int | None = None
    knock: int | None = None
    keeps: bool = False
    seen_on: dict[bytes, str] = attrs.Factory(dict)
    heard_at: float = 0.0
    knocked_at: float = 0.0
    introduced: bool = False
    asked_at: float | None = None
    ask_after: float = 0.0
    booted: bool = False
    elsewhere: bytes = b""
    elsewhere_since: float | None = None
    peers: dict[Peer, bytes | None] = attrs.Factory(dict)
    told: dict[Peer, float] = attrs.Factory(dict)
    waiting: list[tuple[Held, bytes | None]] = attrs.Factory(list)
    handed: dict[Flow, tuple[Held, bytes | None]] = attrs.Factory(dict)
    handed_since: float | None = None
    again_after: float = 0.0
    refused: frozenset[Flow] = frozenset()
    until: float = 0.0
    claimed_at: float = -CLAIM_EVERY

    @property
    def stands(self) -> bool:
        """Whether we answer for it."""
        return self.state is not State.UP

    def is_guest(self, mac: bytes) -> bool:
        """Return whether *mac* is the guest's, as far as is known."""
        return mac in self.macs or mac in self.learnt

    def seat(self, link: Link) -> bytes:
        """Return the MAC that its address is at, on *link*, as long as we answer for it."""
        return self.mac if self.handover is Handover.XENSTORE and self.mac else link.mac

    def remember(self, peer: Peer, ip: bytes | None) -> None:
        """Remember that *peer*, which has the address *ip*, thinks to know where this one is."""
        known = self.peers.pop(peer, None)
        if len(self.peers) >= PEERS:
            oldest = next(iter(self.peers))
            del self.peers[oldest]
            self.told.pop(oldest, None)
        self.peers[peer] = ip or known


# Actions


@attrs.frozen
class Send:
    """Send a frame on a port."""

    port: str
    octets: bytes


@attrs.frozen
class Tell:
    """Tell this host's kernel that, on a port, an address is at a MAC; unless *create*, only if it knows another."""

    port: str
    ip: bytes
    mac: bytes
    create: bool


@attrs.frozen
class Summon:
    """Tell Jitsu that *source* wants a VM that is asleep; *proven* if it has sent more than once."""

    ip: bytes
    source: bytes
    proven: bool


@attrs.frozen
class Seen:
    """Tell Jitsu that the guest has announced itself."""

    ip: bytes


@attrs.frozen
class Listens:
    """The guest has answered a knock: hand over, unless it is to be kept, and tell Jitsu."""

    ip: bytes


@attrs.frozen
class LookUp:
    """
    Look up whether an unknown MAC is the guest's: it is behind the guest's port of the bridge.

    If so, `Standins.learn` is called before the next action is taken: that depends on it.
    """

    ip: bytes
    mac: bytes
    port: str


@attrs.frozen
class Claimed:
    """A stranger says that an address which is stood in for is at its own MAC."""

    ip: bytes
    mac: bytes
    port: str


@attrs.frozen
class Elsewhere:
    """Tell Jitsu that the guest of *ip* uses the address *found* in its place; empty: it uses *ip* after all."""

    ip: bytes
    found: bytes


@attrs.frozen
class Record:
    """Write a SYN to where the guest's own TCP stack will look for it."""

    standin: Standin
    held: Held


@attrs.frozen
class Erase:
    """Take that back."""

    standin: Standin
    held: Held


Action = Send | Tell | Summon | Seen | Listens | LookUp | Claimed | Elsewhere | Record | Erase
