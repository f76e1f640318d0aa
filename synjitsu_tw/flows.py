"""
The TCP flows (connections) of the VMs that Synjitsu serves: bounded, fair, and expiring.

Pure: segments and the time come in. While a VM is up, only the segments with SYN, FIN or RST are captured; while it
sleeps, Synjitsu receives all segments of its peers, which are signs of life, too.

A flow is open when a SYN is answered with SYN and ACK. The SYN of a client alone makes no flow, so that a flood of them
changes nothing here; that of a guest does, as only it tells the answer to the guest from a forged one. The ACK that
completes the handshake is not captured; but a guest that has not received it answers again, after one second and three
(RFC 6298, 5.5). So a flow is not open if it was answered `ANSWERS` times: its SYN came from a forged address. A flow
ends with a RST, or when both sides have sent FIN.

An open flow that has given no sign of life for `LIFETIME` is no longer counted as open. But it may still be used, as
the data of a guest that is up are not captured: so it stays known while the guest is up, and for `REMEMBERED` while the
guest sleeps; a segment of it wakes the guest then, and opens it again.

When all slots are used, flows that are not open are displaced first, and displace none that are. Client networks (a
/24 of IPv4, a /56 of IPv6) of one VM, and VMs, have equal shares: a flow displaces one of a network, or VM, with more
flows, and of these rather one that has given no sign of life for long.
"""

from __future__ import annotations

import enum
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.networks import network
from synjitsu_tw.packets import ACK, FIN, RST, SYN
from synjitsu_tw.syns import AGAIN, PICKED, Bag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from synjitsu_tw.packets import Packet
    from synjitsu_tw.table import Peer

#: Seconds after its last sign of life for which an open flow is counted as open (RFC 5382, REQ-5: 2 h 4 min).
LIFETIME: Final = 7440.0

#: Seconds for which a half-closed flow is known (RFC 5382, REQ-5: 4 min).
TRANSITORY: Final = 240.0

#: Seconds for which a flow is known that is not open: longer than the longest gap between two SYNs, or two answers, of
#: a system that waits (Linux: 32 s).
HALF_OPEN: Final = 35.0

#: Seconds for which the flow of a guest that sleeps is known after `LIFETIME`: a day.
REMEMBERED: Final = 86400.0

#: How often a SYN is answered until the flow is taken for one from a forged address: a guest that has no ACK three
#: seconds after its first answer has neither been sent data.
ANSWERS: Final = 3

#: The most VLAN tags, in octets, of a frame whose flow is known: two.
TAGS: Final = 8


class Stage(enum.Enum):
    """What is known of a flow; `Flows` keeps the flows of each stage in the order in which they expire."""

    OPENING = 1  # the guest's SYN is not answered, or a client's SYN came from a forged address
    OPEN = 2
    CLOSING = 3  # one side has sent FIN
    SILENT = 4  # open, but without a sign of life for `LIFETIME`
    LOST = 5  # it was open, and the memory of the guest is gone


#: Seconds from `TcpFlow.since` until a flow leaves its stage.
LASTS: Final = {
    Stage.OPENING: HALF_OPEN,
    Stage.OPEN: LIFETIME,
    Stage.CLOSING: TRANSITORY,
    Stage.SILENT: REMEMBERED,
    Stage.LOST: LIFETIME,
}

#: Stages of flows that are counted as open.
COUNTED: Final = frozenset({Stage.OPEN, Stage.CLOSING})

#: Stages of flows that go on when the guest wakes.
ALIVE: Final = frozenset({Stage.OPEN, Stage.CLOSING, Stage.SILENT})

#: The far end of a flow, and the VM's port: they identify it among those of its VM.
Key = tuple[bytes, int, int]


@attrs.frozen
class Limits:
    """How many flows may be known, of one VM and in all."""

    per_vm: int = 4096
    total: int = 65536


@attrs.define(eq=False)
class TcpFlow:
    """
    A TCP connection of a VM.

    Times are seconds of the reactor's clock.

    Attributes:
        ip: the VM's address.
        remote: the address of the far end.
        remote_port: its port.
        port: the VM's port.
        peer: the neighbour through which its segments come: the far end itself, or a router.
        by_vm: whether the VM has opened it.
        stage: what is known of it.
        at: its last sign of life.
        since: when the time of its stage began.
        finished: which sides have sent FIN: 1 for the VM, 2 for the far end.
        answers: how often the SYN was answered, since the SYN was last sent.
        empty: the sequence number of the last segment without data that was received while the guest slept; and when.
        slot: its number, unique among all flows that are known.
    """

    ip: bytes
    remote: bytes
    remote_port: int
    port: int
    peer: Peer
    by_vm: bool
    stage: Stage
    at: float
    since: float
    finished: int = 0
    answers: int = 0
    empty: tuple[int, float] | None = None
    slot: int = -1

    @property
    def key(self) -> Key:
        """Identifies the flow among those of its VM."""
        return self.remote, self.remote_port, self.port


@attrs.define
class _VM:
    """The flows of one VM; those that are not open in the order in which they expire; and how many a network has."""

    flows: dict[Key, TcpFlow] = attrs.Factory(dict)
    opening: OrderedDict[TcpFlow, None] = attrs.Factory(OrderedDict)
    bag: Bag[TcpFlow] = attrs.Factory(Bag)
    networks: dict[bytes, int] = attrs.Factory(dict)

    def share(self, remote: bytes) -> int:
        """Return how many flows the network of *remote* has."""
        return self.networks.get(network(remote), 0)


class Flows:
    """
    All flows that are known.

    Attributes:
        changed: the VMs, by address, whose open flows have changed since the caller has last emptied it.
        unsaved: the slots that have changed since then, each with its flow; None where it is free now. A flow that is
            not open is not to be saved.
    """

    def __init__(self, limits: Limits | None = None, below: Callable[[int], int] = secrets.randbelow) -> None:
        """Begin with no flow; *below* returns a random number from 0 to less than its argument."""
        self._limits, self._below = limits or Limits(), below
        self._vms: dict[bytes, _VM] = {}
        self._stages: dict[Stage, OrderedDict[TcpFlow, None]] = {stage: OrderedDict() for stage in Stage}
        self._bag: Bag[TcpFlow] = Bag()
        self._free = list(range(self._limits.total - 1, -1, -1))
        self._asleep: set[bytes] = set()
        self.changed: set[bytes] = set()
        self.unsaved: dict[int, TcpFlow | None] = {}

    def __len__(self) -> int:
        return len(self._bag)

    def has(self, ip: bytes) -> bool:
        """Return whether any flow of the VM at *ip* is known."""
        return ip in self._vms

    def of(self, ip: bytes) -> Iterable[TcpFlow]:
        """Return the flows of the VM at *ip*."""
        return self._vms[ip].flows.values() if ip in self._vms else ()

    def find(self, packet: Packet) -> TcpFlow | None:
        """Return the flow of a segment to a VM; None if it is not known."""
        vm = self._vms.get(packet.dst)
        return None if vm is None else vm.flows.get((packet.src, packet.sport, packet.dport))

    def count(self, ip: bytes, now: float) -> tuple[int, int]:
        """Return how many flows of the VM at *ip* are open, and the seconds since the last sign of life of any."""
        counted = [flow.at for flow in self.of(ip) if flow.stage in COUNTED]
        return len(counted), max(0, int(now - max(counted, default=now)))

    # What happens

    def segment(self, packet: Packet, peer: Peer, now: float, *, by_vm: bool) -> None:
        """
        Note a segment with SYN, FIN or RST.

        Args:
            packet: the segment.
            peer: the neighbour that it came from, or was sent to.
            now: the time.
            by_vm: whether the VM has sent it; else it was sent to the VM.
        """
        if len(peer.tags) > TAGS:
            return
        ip, remote = (packet.src, packet.dst) if by_vm else (packet.dst, packet.src)
        remote_port, port = (packet.dport, packet.sport) if by_vm else (packet.sport, packet.dport)
        vm = self._vms.get(ip)
        flow = None if vm is None else vm.flows.get((remote, remote_port, port))
        if packet.flags & RST:
            if flow is not None:
                self.end(flow)
            return
        is_answer = packet.flags & (SYN | ACK) == SYN | ACK
        if flow is None:
            if packet.flags & SYN and by_vm:
                stage, ends = Stage.OPEN if is_answer else Stage.OPENING, (ip, remote, remote_port, port)
                self._add(TcpFlow(*ends, peer, not is_answer, stage, now, now, answers=int(is_answer)))
            return
        flow.peer = peer
        if is_answer:
            self._answered(flow, now, by_vm=by_vm)
        elif packet.flags & SYN:
            flow.answers = 0
            if flow.stage is Stage.OPENING and by_vm is flow.by_vm:
                self._enter(flow, Stage.OPENING, now)
        elif packet.flags & FIN and flow.stage is not Stage.LOST and (by_vm or flow.stage is not Stage.OPENING):
            flow.finished |= 1 if by_vm else 2
            if flow.finished == 3:
                self.end(flow)
            else:
                self._enter(flow, Stage.CLOSING, now)

    def _answered(self, flow: TcpFlow, now: float, *, by_vm: bool) -> None:
        """Handle SYN and ACK: the first answer, one sent again, or the first of a new flow with the same ports."""
        if flow.stage is Stage.OPENING:
            if by_vm is flow.by_vm:
                return
        elif not by_vm:
            return
        elif flow.stage is not Stage.OPEN or now - flow.at > HALF_OPEN:
            flow.answers, flow.finished = 0, 0
        if flow.answers and now - flow.at < AGAIN:
            return
        flow.answers += 1
        self._enter(flow, Stage.OPEN if flow.answers < ANSWERS else Stage.OPENING, now)

    def seen(self, flow: TcpFlow, peer: Peer, now: float) -> None:
        """Note a segment of a known flow, which came from *peer* while its guest did not run."""
        flow.peer = peer
        if flow.stage in ALIVE:
            self._enter(flow, Stage.CLOSING if flow.stage is Stage.CLOSING else Stage.OPEN, now)

    def sleeps(self, ip: bytes, now: float) -> None:
        """Note that the guest at *ip* sleeps: from now on, all segments to it are received."""
        if ip in self._vms:
            self._asleep.add(ip)
        for flow in self.of(ip):
            if flow.stage is Stage.SILENT:
                self._enter(flow, Stage.SILENT, now)

    def wakes(self, ip: bytes) -> None:
        """Note that the guest at *ip* runs: its data are not captured any more, and it answers lost flows itself."""
        self._asleep.discard(ip)
        for flow in [flow for flow in self.of(ip) if flow.stage is Stage.LOST]:
            self.end(flow)

    def lose(self, ip: bytes, now: float) -> None:
        """Note that the memory of the guest at *ip* is gone, with its flows."""
        self._asleep.discard(ip)
        for flow in list(self.of(ip)):
            if flow.stage is Stage.OPENING:
                self.end(flow)
            elif flow.stage is not Stage.LOST:
                self._enter(flow, Stage.LOST, now)

    def expire(self, now: float) -> None:
        """Forget expired flows; to be called each second."""
        for stage, flows in self._stages.items():
            while flows and now - (flow := next(iter(flows))).since >= LASTS[stage]:
                if stage is Stage.OPEN or (stage is Stage.SILENT and flow.ip not in self._asleep):
                    self._enter(flow, Stage.SILENT, now)
                else:
                    self.end(flow)

    # The table

    def end(self, flow: TcpFlow) -> None:
        """Forget a flow."""
        vm, source = self._vms[flow.ip], network(flow.remote)
        self._leave(vm, flow)
        del vm.flows[flow.key]
        for bag in (vm.bag, self._bag):
            bag.remove(flow)
        vm.networks[source] -= 1
        if not vm.networks[source]:
            del vm.networks[source]
        if not vm.flows:
            del self._vms[flow.ip]
            self._asleep.discard(flow.ip)
        self._free.append(flow.slot)

    def restore(self, saved: Iterable[TcpFlow]) -> None:
        """Add flows that were saved, each in its slot; to be called before any other method."""
        limits, used = self._limits, set[int]()
        for flow in sorted(saved, key=lambda flow: flow.since):
            vm = self._vms.get(flow.ip, _VM())
            is_new = flow.key not in vm.flows and flow.slot not in used and len(vm.flows) < limits.per_vm
            if is_new and flow.slot < limits.total:
                used.add(flow.slot)
                self._insert(flow)
        self._free = [slot for slot in self._free if slot not in used]
        self.unsaved.clear()

    def _add(self, flow: TcpFlow) -> None:
        """Add a new flow if there is a slot for it, or one can be had by displacing another."""
        vm = self._vms.get(flow.ip, _VM())
        if len(vm.flows) >= self._limits.per_vm:
            if not self._displace(vm.opening, vm.bag, vm, flow):
                return
        elif not self._free and not self._displace(self._stages[Stage.OPENING], self._bag, vm, flow):
            return
        flow.slot = self._free.pop()
        self._insert(flow)

    def _insert(self, flow: TcpFlow) -> None:
        vm = self._vms.setdefault(flow.ip, _VM())
        vm.flows[flow.key] = flow
        for bag in (vm.bag, self._bag):
            bag.add(flow)
        source = network(flow.remote)
        vm.networks[source] = vm.networks.get(source, 0) + 1
        self._enter(flow, flow.stage, flow.since)

    def _displace(self, opening: OrderedDict[TcpFlow, None], bag: Bag[TcpFlow], vm: _VM, flow: TcpFlow) -> bool:
        """
        Forget another flow in favour of *flow*, which is new and belongs to *vm*.

        Returns:
            Whether there was one that ranks below: the first of *opening*, or one picked from *bag*.
        """
        if opening:
            self.end(next(iter(opening)))
            return True
        if flow.stage is Stage.OPENING:
            return False
        picked = (bag.pick(self._below) for _ in range(PICKED))
        lower = [one for one in picked if self._ranks_below(one, vm, flow)]
        if not lower:
            return False
        self.end(max(lower, key=lambda one: (self._rank(one), -one.at)))
        return True

    def _ranks_below(self, other: TcpFlow, vm: _VM, flow: TcpFlow) -> bool:
        """Return whether *other* may be displaced by *flow*, which is new and belongs to *vm*."""
        joins_vm = self._vms[other.ip] is not vm
        joins_network = joins_vm or network(other.remote) != network(flow.remote)
        return self._rank(other) >= (False, len(vm.flows) + joins_vm, vm.share(flow.remote) + joins_network)

    def _rank(self, flow: TcpFlow) -> tuple[bool, int, int]:
        """Return the reasons to displace a flow, the most important first; the greatest is displaced first."""
        vm = self._vms[flow.ip]
        return flow.stage is Stage.LOST, len(vm.flows), vm.share(flow.remote)

    def _enter(self, flow: TcpFlow, stage: Stage, now: float) -> None:
        """Begin, or begin anew, the time of a stage for a flow."""
        vm, was = self._vms[flow.ip], flow.stage
        self._leave(vm, flow)
        flow.stage, flow.since = stage, now
        if stage is not Stage.SILENT and stage is not Stage.LOST:
            flow.at = now
        self._stages[stage][flow] = None
        if stage is Stage.OPENING:
            vm.opening[flow] = None
        else:
            self.unsaved[flow.slot] = flow
        if was in COUNTED or stage in COUNTED:
            self.changed.add(flow.ip)

    def _leave(self, vm: _VM, flow: TcpFlow) -> None:
        """Take a flow out of its stage."""
        self._stages[flow.stage].pop(flow, None)
        vm.opening.pop(flow, None)
        if flow.stage is not Stage.OPENING:
            self.unsaved[flow.slot] = None
        if flow.stage in COUNTED:
            self.changed.add(flow.ip)
