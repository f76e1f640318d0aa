"""
Segments of known flows that are held while their guest sleeps or wakes: bounded by number and octets, and expiring.

Pure. A segment that has been sent again takes the place of the first copy, so that it is delivered once. One that finds
no slot is dropped, as on any network: its sender sends it again, and its guest is being woken by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from synjitsu_tw.flows import LIFETIME
from synjitsu_tw.packets import FIN, RST
from synjitsu_tw.syns import EXPIRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synjitsu_tw.packets import Flow, Packet
    from synjitsu_tw.syns import Held

#: Identifies a segment among those of its flow: sequence number, length, and whether it ends the flow.
Key = tuple[int, int, int]


@attrs.frozen
class Limits:
    """How many segments may be held, and how many octets: of one flow, of one VM, and in all."""

    per_flow: int = 64
    flow_octets: int = 256 * 1024
    vm_octets: int = 4 * 1024 * 1024
    total: int = 8192
    octets: int = 16 * 1024 * 1024


@attrs.define
class _VM:
    """The segments held for one VM, by flow."""

    flows: dict[Flow, dict[Key, Held]] = attrs.Factory(dict)
    octets: int = 0


class Segments:
    """
    All held segments.

    Attributes:
        total: how many there are.
        octets: how many octets they have together.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        """Hold nothing yet."""
        self._limits = limits or Limits()
        self._vms: dict[bytes, _VM] = {}
        self.total = self.octets = 0

    def count(self, ip: bytes) -> int:
        """Return how many segments are held for a VM."""
        return sum(map(len, self._vms[ip].flows.values())) if ip in self._vms else 0

    def has(self, packet: Packet) -> bool:
        """Return whether a segment of the flow of *packet* is held."""
        vm = self._vms.get(packet.dst)
        return vm is not None and packet.flow in vm.flows

    def hold(self, held: Held) -> bool:
        """Hold a segment, if there is a slot for it; return whether it is held now and was not before."""
        packet, limits = held.packet, self._limits
        vm = self._vms.get(packet.dst, _VM())
        flow = vm.flows.get(packet.flow, {})
        key = packet.sequence, packet.length, packet.flags & (FIN | RST)
        old = flow.get(key)
        if old is not None:
            held = attrs.evolve(held, since=old.since)
        more = held.octets - (0 if old is None else old.octets)
        fits = (
            len(flow) + (old is None) <= limits.per_flow
            and sum(one.octets for one in flow.values()) + more <= limits.flow_octets
            and vm.octets + more <= limits.vm_octets
            and self.total + (old is None) <= limits.total
            and self.octets + more <= limits.octets
        )
        if not fits:
            return False
        flow[key] = held
        vm.flows[packet.flow] = flow
        self._vms[packet.dst] = vm
        vm.octets += more
        self.octets += more
        self.total += old is None
        return old is None

    def release(self, ip: bytes) -> list[Held]:
        """Remove and return the segments held for a VM: those of each flow in their order (RFC 9293, 3.4)."""
        found = []
        for flow in list(self._vms[ip].flows) if ip in self._vms else ():
            segments = self.drop(ip, flow)
            first = segments[0].packet.sequence
            # A signed distance, as sequence numbers begin again at zero.
            segments.sort(key=lambda one: (one.packet.sequence - first + 2**31) % 2**32)
            found += segments
        return found

    def drop(self, ip: bytes, flow: Flow) -> list[Held]:
        """Remove and return the segments held of one flow of a VM, in the order of arrival."""
        if ip not in self._vms or flow not in self._vms[ip].flows:
            return []
        return [self._remove(ip, flow, key) for key in list(self._vms[ip].flows[flow])]

    def _remove(self, ip: bytes, flow: Flow, key: Key) -> Held:
        vm = self._vms[ip]
        held = vm.flows[flow].pop(key)
        if not vm.flows[flow]:
            del vm.flows[flow]
        if not vm.flows:
            del self._vms[ip]
        vm.octets -= held.octets
        self.octets -= held.octets
        self.total -= 1
        return held

    def expire(self, now: float) -> Iterator[Held]:
        """
        Drop and yield what was last received long ago.

        That is `EXPIRY` seconds for data, for which the guest was to be woken; and as long as an open flow lasts for
        FIN and RST, which wait until the guest wakes for another reason.
        """
        for ip, vm in list(self._vms.items()):
            for flow, segments in list(vm.flows.items()):
                for key, held in list(segments.items()):
                    if now - held.at >= (LIFETIME if key[2] and not key[1] else EXPIRY):
                        yield self._remove(ip, flow, key)
