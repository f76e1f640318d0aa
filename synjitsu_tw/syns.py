"""
Packets that are held until their VM is up: bounded per VM and in all, by number and octets, and expiring.

Pure. A packet is held once per flow (source and ports), however often it is sent; the latest copy is kept, in the place
of the first.

Where everything is taken, source networks (a /24 of IPv4, a /56 of IPv6) have equal shares: a packet of a network that
holds less takes the place of one of a network that holds more. A client that waits sends again after a second or more,
which a flood from forged sources does not. So a packet whose flow has not been sent again in time gives way first; one
that has been sent again takes the place of any equal one, picked at random; and the flow of a packet that finds no
place, or loses it, is remembered by a number alone.
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

#: Seconds before which no client sends a SYN again (RFC 6298, 2.1, and something for clocks).
AGAIN: Final = 0.8

#: Seconds after which a client that waits has sent again: twice what it waited before, and something.
OVERDUE: Final = 1.5

#: How many flows are remembered by number that found no place.
TURNED_AWAY: Final = 16384

#: How many packets are looked at to find one that gives way.
PICKED: Final = 8


#: What tells a packet from the others of its VM: the flow, and what tells datagrams of one flow apart.
Key = tuple["Flow", int]


@attrs.frozen
class Limits:
    """How many packets may be held, and how many octets of them; each network's count is one VM's."""

    per_network: int = 64
    per_vm: int = 256
    total: int = 4096
    octets: int = 8 * 1024 * 1024


@attrs.define(eq=False)
class Held:
    """
    A packet that is held.

    Attributes:
        port: the interface that it came in on.
        at: when it was last sent.
        proven: it was sent again after the time that a client waits.
        since: when it was sent first.
        gap: seconds between the last two times that it was sent.
        distinct: tells apart packets of one flow that are all held; 0 for SYNs.
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
        """What tells the packet from the others of its VM."""
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
    """Things in no order, each once, any of which is picked at random in the same time."""

    def __init__(self) -> None:
        """Begin empty."""
        self._all: list[T] = []
        self._places: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, thing: T) -> None:
        """Put a new thing in."""
        self._places[thing] = len(self._all)
        self._all.append(thing)

    def remove(self, thing: T) -> None:
        """Take a thing out."""
        place, last = self._places.pop(thing), self._all.pop()
        if last is not thing:
            self._all[place] = last
            self._places[last] = place

    def pick(self, below: Callable[[int], int]) -> T:
        """Return one of them; *below* returns a number from 0 to less than its argument."""
        return self._all[below(len(self._all))]


@attrs.define
class _VM:
    """What is held for one VM, in the order in which it came; and by source network."""

    held: OrderedDict[Key, Held] = attrs.Factory(OrderedDict)
    bag: Bag[Held] = attrs.Factory(Bag)
    networks: dict[bytes, Bag[Held]] = attrs.Factory(dict)

    def share(self, source: bytes) -> int:
        """Return how many packets are held of the network of *source*."""
        bag = self.networks.get(network(source))
        return 0 if bag is None else len(bag)


class Syns:
    """
    All that is held, by VM (its address) and flow.

    Args:
        limits: how much.
        below: returns a random number from 0 to less than its argument.
    """

    def __init__(self, limits: Limits | None = None, below: Callable[[int], int] = secrets.randbelow) -> None:
        """Hold nothing yet."""
        self._limits, self._below = limits or Limits(), below
        self._vms: dict[bytes, _VM] = {}
        self._bag: Bag[Held] = Bag()
        self._turned_away: OrderedDict[int, float] = OrderedDict()
        self.octets = 0

    @property
    def total(self) -> int:
        """How many packets are held."""
        return len(self._bag)

    def count(self, ip: bytes) -> int:
        """Return how many are held for a VM."""
        return len(self._vms[ip].held) if ip in self._vms else 0

    def of(self, ip: bytes) -> list[Held]:
        """Return what is held for a VM, in the order in which it came."""
        return list(self._vms[ip].held.values()) if ip in self._vms else []

    def hold(self, held: Held) -> tuple[bool, bool]:
        """
        Hold a packet that has just come, if there is a place for it.

        Returns:
            Whether it is held now, and whether it was sent before, as long ago as a client waits.
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
        number = hash((ip, key))
        before = self._turned_away.get(number)
        held.proven = before is not None and now - before >= AGAIN
        if not self._has_room(vm, held):
            self._remember(number, now if before is None else before)
            return False, held.proven
        self._turned_away.pop(number, None)
        self._vms[ip] = vm
        vm.held[key] = held
        for bag in (self._bag, vm.bag, vm.networks.setdefault(network(held.packet.src), Bag())):
            bag.add(held)
        self.octets += held.octets
        return True, held.proven

    def _remember(self, number: int, since: float) -> None:
        """Remember a flow that has no place, and since when it wants one."""
        self._turned_away[number] = since
        if len(self._turned_away) > TURNED_AWAY:
            self._turned_away.popitem(last=False)

    def _has_room(self, vm: _VM, held: Held) -> bool:
        """Return whether there is a place for a packet, having made one if another has to give way."""
        limits, source = self._limits, held.packet.src
        if vm.share(source) >= limits.per_network:
            return self._gives_way(vm.networks[network(source)], vm, held)
        if len(vm.held) >= limits.per_vm:
            return self._gives_way(vm.bag, vm, held)
        while self.total >= limits.total or self.octets + held.octets > limits.octets:
            if not self._gives_way(self._bag, vm, held):
                return False
        return True

    def _gives_way(self, bag: Bag[Held], vm: _VM, held: Held) -> bool:
        """Drop a packet of *bag* that has less right to its place than *held*, which has just come for *vm*."""
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
        """Return what speaks against a packet that is held, the weightiest first."""
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
        """Drop the SYN that *packet*, a RST, takes back, and return it, if it is held."""
        key = (packet.flow, 0)
        held = self._vms[packet.dst].held.get(key) if packet.dst in self._vms else None
        if held is None or not packet.takes_back(held.packet):
            return None
        return self._drop(packet.dst, key)

    def release(self, ip: bytes) -> list[Held]:
        """Take out and return all that is held for a VM, in the order in which it came."""
        return [self._drop(ip, key) for key in list(self._vms[ip].held)] if ip in self._vms else []

    def expire(self, now: float) -> Iterator[Held]:
        """Drop and yield what has waited too long."""
        for ip, vm in list(self._vms.items()):
            for key in [key for key, held in vm.held.items() if now - held.at >= EXPIRY]:
                yield self._drop(ip, key)
