"""
Packets that are held until their VM is up: bounded per source, per VM and in all, by number and octets, and expiring.

Pure. One is held once per flow (source and ports), however often it is sent; the latest copy is kept, in the place of
the first. Who comes first stays: a flood can fill what there is, but not push out who waits. Who finds everything
taken is remembered by a number alone; a client that waits sends again, which a flood from forged sources does not, and
then has precedence over all who did not.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synjitsu_tw.packets import Flow, Frame, Packet

#: Seconds for which one is held: longer than the longest gap between two SYNs of a client that still waits (Linux
#: sends again after 1, 2, 3, 4, 8, 16 and 32 s).
EXPIRY: Final = 35.0

#: Seconds after which a client that waits has sent again (RFC 6298, 2.1, and some more).
OVERDUE: Final = 1.5

#: How many are remembered by number who found no place.
TURNED_AWAY: Final = 16384


@attrs.frozen
class Limits:
    """How many may be held, and how many octets of them; each source's count is one VM's."""

    per_source: int = 32
    per_vm: int = 256
    total: int = 4096
    octets: int = 8 * 1024 * 1024


@attrs.define
class Held:
    """
    One that is held.

    Attributes:
        port: the interface that it came in on.
        at: when it was last sent.
        proven: it was sent more than once.
        since: when it was sent first.
    """

    port: str
    frame: Frame
    packet: Packet
    at: float
    proven: bool = False
    since: float = attrs.field(default=attrs.Factory(lambda self: self.at, takes_self=True))

    @property
    def octets(self) -> int:
        """What it takes."""
        return len(self.frame.payload)


#: What tells one that is held from the others of its VM: the flow, and what tells datagrams of one flow apart.
Key = tuple["Flow", int]


@attrs.define
class _VM:
    """What is held for one VM: all, and which of it came only once; both in the order in which it came."""

    held: OrderedDict[Key, Held] = attrs.Factory(OrderedDict)
    once: OrderedDict[Key, None] = attrs.Factory(OrderedDict)


class Syns:
    """All that is held, by VM (its address) and flow."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Hold nothing yet."""
        self._limits = limits or Limits()
        self._vms: dict[bytes, _VM] = {}
        self._once: OrderedDict[tuple[bytes, Key], None] = OrderedDict()
        self._sources: Counter[tuple[bytes, bytes]] = Counter()
        self._turned_away: OrderedDict[int, None] = OrderedDict()
        self.total = 0
        self.octets = 0

    def count(self, ip: bytes) -> int:
        """Return how many are held for a VM."""
        return len(self._vms[ip].held) if ip in self._vms else 0

    def of(self, ip: bytes) -> list[Held]:
        """Return what is held for a VM, in the order in which it came."""
        return list(self._vms[ip].held.values()) if ip in self._vms else []

    def hold(self, held: Held, distinct: int = 0) -> tuple[bool, bool]:
        """
        Hold one, if there is a place for it.

        Args:
            held: the packet, just come.
            distinct: tells apart packets of one flow that are all to be held; 0 for SYNs.

        Returns:
            Whether it is held now, and whether it was sent before.
        """
        ip, key = held.packet.dst, (held.packet.flow, distinct)
        vm = self._vms.get(ip, _VM())
        old = vm.held.get(key)
        if old is not None:
            self._mark(ip, vm, key)
            self.octets += held.octets - old.octets
            old.port, old.frame, old.packet, old.at, old.proven = held.port, held.frame, held.packet, held.at, True
            return True, True
        number = hash((ip, key))
        held.proven = number in self._turned_away
        if not self._room(ip, vm, held):
            self._turned_away[number] = None
            if len(self._turned_away) > TURNED_AWAY:
                self._turned_away.popitem(last=False)
            return False, held.proven
        self._turned_away.pop(number, None)
        self._vms.setdefault(ip, vm).held[key] = held
        if not held.proven:
            vm.once[key] = self._once[ip, key] = None
        self._sources[ip, held.packet.src] += 1
        self.total += 1
        self.octets += held.octets
        return True, held.proven

    def _mark(self, ip: bytes, vm: _VM, key: Key) -> None:
        """Forget that one came only once."""
        vm.once.pop(key, None)
        self._once.pop((ip, key), None)

    def _room(self, ip: bytes, vm: _VM, held: Held) -> bool:
        """Return whether there is a place, having made one if somebody has to give way."""
        limits, src = self._limits, held.packet.src
        if self._sources[ip, src] >= limits.per_source:
            return self._give_way(ip, next((key for key in vm.once if key[0][1] == src), None), held)
        if len(vm.held) >= limits.per_vm:
            return self._give_way(ip, next(iter(vm.once), None), held)
        if self.total < limits.total and self.octets + held.octets <= limits.octets:
            return True
        other, key = next(iter(self._once), (ip, None))
        return self._give_way(other, key, held) and self.octets + held.octets <= limits.octets

    def _give_way(self, ip: bytes, key: Key | None, held: Held) -> bool:
        """Drop *key*, the first that came only once, if it has less right to its place than *held*."""
        if key is None or not (held.proven or held.at - self._vms[ip].held[key].at > OVERDUE):
            return False
        self._drop(ip, key)
        return True

    def _drop(self, ip: bytes, key: Key) -> Held:
        vm = self._vms[ip]
        held = vm.held.pop(key)
        self._mark(ip, vm, key)
        if not vm.held:
            del self._vms[ip]
        self._sources[ip, held.packet.src] -= 1
        if not self._sources[ip, held.packet.src]:
            del self._sources[ip, held.packet.src]
        self.total -= 1
        self.octets -= held.octets
        return held

    def drop(self, packet: Packet) -> Held | None:
        """Drop the SYN of the connection that *packet* belongs to, and return it, if it is held."""
        vm, key = self._vms.get(packet.dst), (packet.flow, 0)
        return self._drop(packet.dst, key) if vm is not None and key in vm.held else None

    def release(self, ip: bytes) -> list[Held]:
        """Take out and return all that is held for a VM, in the order in which it came."""
        return [self._drop(ip, key) for key in list(self._vms[ip].held)] if ip in self._vms else []

    def expire(self, now: float) -> Iterator[Held]:
        """Drop and yield what has waited too long."""
        for ip, vm in list(self._vms.items()):
            for key in [key for key, held in vm.held.items() if now - held.at >= EXPIRY]:
                yield self._drop(ip, key)
