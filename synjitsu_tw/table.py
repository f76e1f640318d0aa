"""
What is known of the addresses that are stood in for, and what can be done about them: the words of `standins`.

Pure, and without a decision in it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from synjitsu_tw.packets import Flow
    from synjitsu_tw.syns import Held

#: Seconds between two notices that somebody claims an address.
CLAIM_EVERY: Final = 60.0

#: How many peers are remembered for an address.
PEERS: Final = 256


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
        knocks_from: this host's addresses on the interface, one of each length at most.
    """

    mac: bytes
    host: bytes = b""
    addresses: Collection[bytes] = frozenset()
    mtu: int = 1500
    knocks_from: Mapping[int, bytes] = attrs.Factory(dict)


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
        mac: the guest's; empty while nobody knows it.
        ports: the TCP ports that are worth a start; None means all.
        wake_udp: the UDP ports whose first datagrams are held, and are worth a start.
        domid: Xen's number of the guest.
        knock: the TCP port at which it is looked whether it listens, while it boots.
        keeps: what is held is not handed over because of that, but when Jitsu says so.
        alive: the guest itself has been seen since it was announced.
        knocked_since: when it was knocked at for the first time in this boot; None if it has not been yet.
        knocked_at: when it was for the last time.
        asked: this host has asked for it since it showed signs of life.
        peers: who thinks to know where it is, each with its own address, if it has told us.
        told: when each was told last.
        handed: by flow, the SYNs that were handed over and not answered yet, each with its sender's address if known.
        handed_since: when they began to be looked after; None if they have not been yet.
        again_after: so many seconds after that they are sent again.
        refused: the flows that were held when the start failed.
        until: when a failed one is forgotten.
        claimed_at: when it was last said that another claims the address.
        seen_at: when the guest was first seen in the second that counts.
        seen: how often, since then.
    """

    ip: bytes
    mac: bytes = b""
    state: State = State.ASLEEP
    handover: Handover = Handover.WIRE
    ports: frozenset[int] | None = None
    wake_udp: frozenset[int] = frozenset()
    domid: int | None = None
    knock: int | None = None
    keeps: bool = False
    alive: bool = False
    knocked_since: float | None = None
    knocked_at: float = 0.0
    asked: bool = False
    peers: dict[Peer, bytes | None] = attrs.Factory(dict)
    told: dict[Peer, float] = attrs.Factory(dict)
    handed: dict[Flow, tuple[Held, bytes | None]] = attrs.Factory(dict)
    handed_since: float | None = None
    again_after: float = 0.0
    refused: frozenset[Flow] = frozenset()
    until: float = 0.0
    claimed_at: float = -CLAIM_EVERY
    seen_at: float = 0.0
    seen: int = 0

    @property
    def stands(self) -> bool:
        """Whether we answer for it."""
        return self.state is not State.UP

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
class Claimed:
    """Somebody says that an address which we stand in for is at another MAC than its guest's."""

    ip: bytes
    mac: bytes
    port: str


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


Action = Send | Tell | Summon | Seen | Listens | Claimed | Record | Erase
