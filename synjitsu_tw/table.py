"""
The data and the actions of `standins`: what is known of each address, and what the service is to do.

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

#: Seconds between two reports that an unknown MAC claims an address.
CLAIM_EVERY: Final = 60.0

#: How many peers are remembered for an address.
PEERS: Final = 256

#: How many MACs of a guest are learnt in one boot.
LEARNT: Final = 8


class State(enum.Enum):
    """The state of the VM of an address, according to Jitsu."""

    ASLEEP = "asleep"  # a SYN summons it
    BOOTING = "booting"
    UP = "up"
    FAILED = "failed"  # its start failed a moment ago


class Handover(enum.Enum):
    """How held SYNs reach the guest."""

    WIRE = "wire"  # Synjitsu sends them again
    XENSTORE = "xenstore"  # its own TCP stack reads them in Xenstore


class Refusal(enum.Enum):
    """The answer to a SYN for a VM whose start has just failed."""

    SILENCE = "silence"
    RST = "rst"
    UNREACHABLE = "unreachable"


@attrs.define
class Link:
    """
    An interface that frames come from and go to.

    Attributes:
        mac: the stand-in's MAC.
        host: the MAC of the interface, which this host sends from.
        addresses: this host's addresses, on any interface.
        mtu: in octets.
        networks: this host's addresses on the interface, with their networks.
    """

    mac: bytes
    host: bytes = b""
    addresses: Collection[bytes] = frozenset()
    mtu: int = 1500
    networks: Sequence[IPv4Interface | IPv6Interface] = ()

    def address_towards(self, ip: bytes) -> bytes | None:
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
    """A neighbour that has a MAC for an address in its cache: its port, VLAN tags and MAC."""

    port: str
    tags: bytes
    mac: bytes


@attrs.define(eq=False)
class Standin:
    """
    An address that was announced.

    Times are seconds of the reactor's clock.

    Attributes:
        macs: the guest's MACs as announced, those of its first interface first; empty while they are not known.
        learnt: MACs that turned out to be the guest's since it was announced.
        mac: the guest's MAC that hand-over goes to: the one that the guest was seen using for this address, else the
            first; empty while none is known.
        proven: whether the guest has been seen using *mac* for this address since it began to boot.
        ports: the TCP ports whose SYNs start the VM; None means all.
        wake_udp: the UDP ports whose first datagrams are held, and start the VM.
        domid: Xen's number of the guest.
        probe_port: the TCP port to which Synjitsu sends SYNs while the guest boots; None for no probing.
        memory: whether the memory of the guest, which does not run, is kept; None if that is not known, or it boots.
        seen_on: the port on which each of the guest's MACs has been seen since it was announced.
        heard_at: when the guest was last seen.
        probed_at: when it was last probed.
        introduced: whether this host has asked the guest for its address, from which it learns this host's MAC.
        asked_at: when Synjitsu last asked the network for the address; None if not since the announcement.
        ask_interval: seconds from then until it asks again.
        booted: whether it was announced as booting, and not as asleep since.
        elsewhere: the other address that the guest was seen using in place of this one; empty for none.
        elsewhere_since: when the guest was first seen using it; None once Jitsu has been told.
        peers: the neighbours with a MAC of this address in their caches, each with its own address if known.
        advertised_at: when the address's MAC was last advertised to each peer.
        waiting: the packets to deliver when the guest shows itself, each with its sender's address if known.
        handed: by flow, the SYNs that were handed over and not answered yet, each with its sender's address if known.
        handed_since: when they were first sent; None while the guest has not shown itself.
        resend_interval: seconds from then until they are sent again.
        refused: the flows that were held when the start failed.
        until: when a failed one is forgotten.
        claimed_at: when it was last reported that an unknown MAC claims the address.
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
    probe_port: int | None = None
    memory: bool | None = None
    seen_on: dict[bytes, str] = attrs.Factory(dict)
    heard_at: float = 0.0
    probed_at: float = 0.0
    introduced: bool = False
    asked_at: float | None = None
    ask_interval: float = 0.0
    booted: bool = False
    elsewhere: bytes = b""
    elsewhere_since: float | None = None
    peers: dict[Peer, bytes | None] = attrs.Factory(dict)
    advertised_at: dict[Peer, float] = attrs.Factory(dict)
    waiting: list[tuple[Held, bytes | None]] = attrs.Factory(list)
    handed: dict[Flow, tuple[Held, bytes | None]] = attrs.Factory(dict)
    handed_since: float | None = None
    resend_interval: float = 0.0
    refused: frozenset[Flow] = frozenset()
    until: float = 0.0
    claimed_at: float = -CLAIM_EVERY

    @property
    def stands(self) -> bool:
        """Whether Synjitsu answers for the address."""
        return self.state is not State.UP

    def is_guest(self, mac: bytes) -> bool:
        """Return whether *mac* is known to be the guest's."""
        return mac in self.macs or mac in self.learnt

    def answering_mac(self, link: Link) -> bytes:
        """Return the MAC that is advertised for the address on *link* as long as Synjitsu answers for it."""
        return self.mac if self.handover is Handover.XENSTORE and self.mac else link.mac

    def remember(self, peer: Peer, ip: bytes | None) -> None:
        """Remember that *peer*, whose own address is *ip*, has a MAC for this address in its cache."""
        known = self.peers.pop(peer, None)
        if len(self.peers) >= PEERS:
            oldest = next(iter(self.peers))
            del self.peers[oldest]
            self.advertised_at.pop(oldest, None)
        self.peers[peer] = ip or known


# Actions


@attrs.frozen
class Send:
    """Send a frame on a port."""

    port: str
    octets: bytes


@attrs.frozen
class SendToHost:
    """Send a frame to this host itself, as if it came in on the bridge *port*: what is sent on a bridge leaves it."""

    port: str
    octets: bytes


@attrs.frozen
class SetNeighbour:
    """Set an address's MAC in this host's neighbour table on a port; unless *create*, only if there is an entry."""

    port: str
    ip: bytes
    mac: bytes
    create: bool


@attrs.frozen
class Summon:
    """
    Tell Jitsu that *source* sends to a VM that is asleep.

    Attributes:
        proven: it has sent more than once, or on an open connection.
        flow: on an open connection.
    """

    ip: bytes
    source: bytes
    proven: bool
    flow: bool = False


@attrs.frozen
class Seen:
    """Tell Jitsu that the guest has announced itself."""

    ip: bytes


@attrs.frozen
class Listens:
    """The guest has answered a probe: hand over, unless packets are held until `Ready`, and tell Jitsu."""

    ip: bytes


@attrs.frozen
class LookUp:
    """
    Look up whether an unknown MAC is the guest's: whether it is behind the guest's port of the bridge.

    If so, the service calls `Standins.learn` before it takes the next action, which depends on it.
    """

    ip: bytes
    mac: bytes
    port: str


@attrs.frozen
class Claimed:
    """Report that an unknown MAC claims an address that was announced."""

    ip: bytes
    mac: bytes
    port: str


@attrs.frozen
class Elsewhere:
    """Tell Jitsu that the guest of *ip* uses the address *found* instead; empty when it uses *ip* after all."""

    ip: bytes
    found: bytes


@attrs.frozen
class Record:
    """Write a SYN to Xenstore, where the guest's own TCP stack will read it."""

    standin: Standin
    held: Held


@attrs.frozen
class Erase:
    """Remove a SYN from Xenstore."""

    standin: Standin
    held: Held


Action = Send | SendToHost | SetNeighbour | Summon | Seen | Listens | LookUp | Claimed | Elsewhere | Record | Erase
