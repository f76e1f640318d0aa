"""
Packets that are held until their VM is up: bounded per VM and in all, by number and octets, and expiring.

Pure. A packet is held once per flow (source and ports), however often it is sent; the latest copy is kept, in the slot
of the first.

When all slots are used, source networks (a /24 of IPv4, a /56 of IPv6) have equal shares: a packet of a network with
fewer slots displaces one of a network with more. A client that waits sends again after a second or more, which a flood
from forged sources does not. So a packet whose flow has not been sent again in time is displaced first; a packet that
has been sent again displaces any equal one, picked at random. Of a flow whose packet gets no slot, or loses it, only a
hash is remembered.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import attrs

from jitsu_tw.networks import network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from synjitsu_tw.packets import Flow, Frame, Packet

#: Seconds for which a packet is held: longer than the longest gap between two SYNs of a client that still waits (Linux
#: sends again after 1, 2, 3, 4, 8, 16 and 32 s).
EXPIRY: Final = 35.0

#: Seconds before which no client sends a SYN again (RFC 6298, 2.1: one second, with a margin for clocks).
AGAIN: Final = 0.8

#: Seconds that a client may be late to send again: it waits twice as long as before, and at most this much longer.
OVERDUE: Final = 1.5

#: How many flows without a slot are remembered by their hash.
TURNED_AWAY: Final = 16384

#: How many packets are compared to find one to displace.
PICKED: Final = 8


#: Identifies a packet among those of its VM: the flow, and a number that distinguishes datagrams of one flow.
Key = tuple["Flow", int]


@attrs.frozen
class Limits:
    """How many packets may be held, and how many octets in all; *per_network* is for each source network and VM."""

    per_network: int = 64
    per_vm: int = 256
    total: int = 4096
    octets: int = 8 * 1024 * 1024


@attrs.define(eq=False)
class Held:
    """
    A held packet.

    Attributes:
        port: the interface that it came in on.
        at: when it was last received.
        proven: whether it was received again after the time that a client waits.
        since: when it was first received.
        gap: seconds between the last two times that it was received.
        distinct: distinguishes packets of one flow that are all held; 0 for SYNs.
    """

    port: str
    frame: Frame
    packet: Packet
    at: float
    proven: bool = False
    since: float = attrs.field(default=attrs.Factory(lambda self: self.at, takes_self=True))
    gap: float = 0.0
    distinct: int = 0

    @property
    def key(self) -> Key:
        """Identifies the packet among those of its VM."""
        return self.packet.flow, self.distinct

    @property
    def octets(self) -> int:
        """The size of the frame's payload."""
        return len(self.frame.payload)

    def is_overdue(self, now: float) -> bool:
        """Return whether a client that waits would have sent it again by *now*."""
        return now - self.at > 2 * self.gap + OVERDUE


T = TypeVar("T")


class Bag(Generic[T]):
    """A set from which a random item is picked in constant time."""

    def __init__(self) -> None:
        """Begin empty."""
        self._all: list[T] = []
        self._indices: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, item: T) -> None:
        """Add an item that is not in the bag."""
        self._indices[item] = len(self._all)
        self._all.append(item)

    def remove(self, item: T) -> None:
        """Remove an item; the last one moves to its index."""
        index, last = self._indices.pop(item), self._all.pop()
        if last is not item:
            self._all[index] = last
            self._indices[last] = index

    def pick(self, below: Callable[[int], int]) -> T:
        """Return a random item; *below* returns a random number from 0 to less than its argument."""
        return self._all[below(len(self._all))]


@attrs.define
class _VM:
    """The packets held for one VM, in the order of arrival; and by source network."""

    held: OrderedDict[Key, Held] = attrs.Factory(OrderedDict)
    bag: Bag[Held] = attrs.Factory(Bag)
    networks: dict[bytes, Bag[Held]] = attrs.Factory(dict)

    def share(self, source: bytes) -> int:
        """Return how many packets from the network of *source* are held."""
        bag = self.networks.get(network(source))
        return 0 if bag is None else len(bag)


class Syns:
    """
    All held packets, by VM (its address) and flow.

    Args:
        limits: how many packets and octets may be held.
        below: returns a random number from 0 to less than its argument.
    """

    def __init__(self, limits: Limits | None = None, below: Callable[[int], int] = secrets.randbelow) -> None:
        """Hold nothing yet."""
        self._limits, self._below = limits or Limits(), below
        self._vms: dict[bytes, _VM] = {}
        self._bag: Bag[Held] = Bag()
        self._without_slot: OrderedDict[int, float] = OrderedDict()
        self.octets = 0

    @property
    def total(self) -> int:
        """How many packets are held."""
        return len(self._bag)

    def count(self, ip: bytes) -> int:
        """Return how many packets are held for a VM."""
        return len(self._vms[ip].held) if ip in self._vms else 0

    def of(self, ip: bytes) -> list[Held]:
        """Return the packets held for a VM, in the order of arrival."""
        return list(self._vms[ip].held.values()) if ip in self._vms else []

    def hold(self, held: Held) -> tuple[bool, bool]:
        """
        Hold a packet that has just been received, if there is a slot for it.

        Returns:
            Whether it is held now, and whether it was received before, as long ago as a client waits.
        """
        ip, key, now = held.packet.dst, held.key, held.at
        vm = self._vms.get(ip, _VM())
        old = vm.held.get(key)
        if old is not None:
            self.octets += held.octets - old.octets
            old.port, old.frame, old.packet = held.port, held.frame, held.packet
            old.proven = old.proven or now - old.since >= AGAIN
            old.gap, old.at = now - old.at, now
            return True, old.proven
        flow_hash = hash((ip, key))
        before = self._without_slot.get(flow_hash)
        held.proven = before is not None and now - before >= AGAIN
        if not self._make_slot(vm, held):
            self._remember(flow_hash, now if before is None else before)
            return False, held.proven
        self._without_slot.pop(flow_hash, None)
        self._vms[ip] = vm
        vm.held[key] = held
        for bag in (self._bag, vm.bag, vm.networks.setdefault(network(held.packet.src), Bag())):
            bag.add(held)
        self.octets += held.octets
        return True, held.proven

    def _remember(self, flow_hash: int, since: float) -> None:
        """Remember the hash of a flow that has no slot, and since when it wants one."""
        self._without_slot[flow_hash] = since
        if len(self._without_slot) > TURNED_AWAY:
            self._without_slot.popitem(last=False)

    def _make_slot(self, vm: _VM, held: Held) -> bool:
        """Make a slot for a packet, displacing others if need be; return whether there is one."""
        limits, source = self._limits, held.packet.src
        if vm.share(source) >= limits.per_network:
            return self._displace(vm.networks[network(source)], vm, held)
        if len(vm.held) >= limits.per_vm:
            return self._displace(vm.bag, vm, held)
        while self.total >= limits.total or self.octets + held.octets > limits.octets:
            if not self._displace(self._bag, vm, held):
                return False
        return True

    def _displace(self, bag: Bag[Held], vm: _VM, held: Held) -> bool:
        """
        Drop a packet of *bag* in favour of *held*, which has just been received for *vm*.

        Returns:
            Whether there was a packet that ranks below *held*.
        """
        if not bag:
            return False
        now = held.at
        other, worst = max(
            ((self._burden(one, now), one) for one in (bag.pick(self._below) for _ in range(PICKED))),
            key=itemgetter(0),
        )
        joins = self._vms[worst.packet.dst] is not vm or network(worst.packet.src) != network(held.packet.src)
        burden = (False, vm.share(held.packet.src) + joins, not held.proven)
        if burden > other or (burden == other and not held.proven):
            return False
        self._drop(worst.packet.dst, worst.key)
        self._remember(hash((worst.packet.dst, worst.key)), worst.since)
        return True

    def _burden(self, held: Held, now: float) -> tuple[bool, int, bool]:
        """Return the reasons to displace a held packet, the most important first; the greatest is displaced first."""
        share = self._vms[held.packet.dst].share(held.packet.src)
        return held.is_overdue(now), share, not held.proven

    def _drop(self, ip: bytes, key: Key) -> Held:
        vm = self._vms[ip]
        held = vm.held.pop(key)
        source = network(held.packet.src)
        for bag in (self._bag, vm.bag, vm.networks[source]):
            bag.remove(held)
        if not vm.networks[source]:
            del vm.networks[source]
        if not vm.held:
            del self._vms[ip]
        self.octets -= held.octets
        return held

    def drop(self, packet: Packet) -> Held | None:
        """Drop and return the held SYN whose connection *packet*, a RST, aborts; return None if there is none."""
        key = (packet.flow, 0)
        held = self._vms[packet.dst].held.get(key) if packet.dst in self._vms else None
        if held is None or not packet.takes_back(held.packet):
            return None
        return self._drop(packet.dst, key)

    def release(self, ip: bytes) -> list[Held]:
        """Remove and return the packets held for a VM, in the order of arrival."""
        return [self._drop(ip, key) for key in list(self._vms[ip].held)] if ip in self._vms else []

    def expire(self, now: float) -> Iterator[Held]:
        """Drop and yield the packets that were last received `EXPIRY` seconds ago or earlier."""
        for ip, vm in list(self._vms.items()):
            for key in [key for key, held in vm.held.items() if now - held.at >= EXPIRY]:
                yield self._drop(ip, key)
