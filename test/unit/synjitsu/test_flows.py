"""The flows of VMs: when they begin and end, what is counted, and which give way to others."""

from __future__ import annotations

from itertools import count
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw.flows import (
    HALF_OPEN,
    LIFETIME,
    REMEMBERED,
    TAGS,
    TRANSITORY,
    Flows,
    Limits,
    Stage,
    TcpFlow,
)
from synjitsu_tw.packets import ACK, FIN, RST, SYN, TCP, Packet
from synjitsu_tw.table import Peer

VM, OTHER, VM6 = b"\x0a\0\0\x0a", b"\x0a\0\0\x0b", bytes(15) + b"\x0a"
CLIENT, CLIENT6 = b"\x0a\0\0\2", bytes(15) + b"\2"
ROUTER: Final = Peer("br0", b"", b"\2\0\0\0\0\1")


class FlowsTestCase(SynchronousTestCase):
    """Has a table of flows, and segments for it."""

    def setUp(self) -> None:
        """Begin with no flow."""
        self.make()

    def make(self, per_vm: int = 8, total: int = 20) -> None:
        """Begin with no flow, and few slots."""
        self.now = 1000.0
        numbers = count()
        self.flows = Flows(Limits(per_vm, total), lambda below: next(numbers) % below)

    def say(self, flags: int, remote: bytes = CLIENT, port: int = 4711, ip: bytes = VM, **more: Any) -> None:
        """Note a segment to the VM, or from it."""
        by_vm = more.pop("by_vm", False)
        ends = (remote, ip, TCP, port, 80) if not by_vm else (ip, remote, TCP, 80, port)
        self.flows.segment(Packet(*ends, flags=flags), more.pop("peer", ROUTER), self.now, by_vm=by_vm)

    def open(self, remote: bytes = CLIENT, port: int = 4711, ip: bytes = VM) -> TcpFlow:
        """Open a flow."""
        self.say(SYN, remote, port, ip)
        self.say(SYN | ACK, remote, port, ip, by_vm=True)
        return self.found(remote, port, ip)

    def found(self, remote: bytes = CLIENT, port: int = 4711, ip: bytes = VM) -> TcpFlow:
        """Return a flow that is known."""
        flow = self.flows.find(Packet(remote, ip, TCP, port, 80))
        assert flow is not None
        return flow

    def stages(self, ip: bytes = VM) -> list[Stage]:
        """Return the stages of the VM's flows."""
        return [flow.stage for flow in self.flows.of(ip)]

    def count(self, ip: bytes = VM) -> tuple[int, int]:
        """Return what is counted, after what has expired."""
        self.flows.expire(self.now)
        return self.flows.count(ip, self.now)


class LifeTests(FlowsTestCase):
    """One flow."""

    def test_opens(self) -> None:
        """A SYN and its answer open a flow, either side's; with IPv4 and IPv6."""
        for remote, ip in ((CLIENT, VM), (CLIENT6, VM6)):
            for by_vm in (False, True):
                self.make()
                self.say(SYN, remote, ip=ip, by_vm=by_vm)
                self.assertEqual(([Stage.OPENING] * by_vm, (0, 0)), (self.stages(ip), self.count(ip)))
                self.now += 3
                self.say(SYN | ACK, remote, ip=ip, by_vm=not by_vm)
                self.now += 5.5
                self.assertEqual(([Stage.OPEN], (1, 5)), (self.stages(ip), self.count(ip)))
                self.assertEqual({ip}, self.flows.changed)

    def test_answers_alone(self) -> None:
        """The answer of a guest shows that it knows a flow whose SYN was not seen; that of a stranger shows nothing."""
        self.say(SYN | ACK)
        self.say(FIN | ACK)
        self.say(ACK | RST, by_vm=True)
        self.assertEqual((0, False), (len(self.flows), self.flows.has(VM)))
        self.say(SYN | ACK, by_vm=True)
        self.assertEqual([Stage.OPEN], self.stages())

    def test_guest_asks(self) -> None:
        """A guest that has sent a SYN does not answer it."""
        self.say(SYN, by_vm=True)
        self.say(SYN | ACK, by_vm=True)
        self.assertEqual([Stage.OPENING], self.stages())

    def test_half_open(self) -> None:
        """A guest's SYN that nobody answers is soon forgotten, but not while it is sent again."""
        self.say(SYN, by_vm=True)
        self.now += HALF_OPEN - 1
        self.say(SYN)
        self.say(SYN, by_vm=True)
        self.now += HALF_OPEN - 1
        self.assertEqual((0, 0), self.count())
        self.assertEqual(1, len(self.flows))
        self.now += 1
        self.count()
        self.assertEqual((0, False), (len(self.flows), self.flows.has(VM)))

    def test_forged(self) -> None:
        """A guest that answers again and again has received no ACK: the SYN was forged, and the flow is not open."""
        self.open()
        for stage, pause in ((Stage.OPEN, 0.1), (Stage.OPEN, 1), (Stage.OPENING, 2), (Stage.OPENING, 4)):
            self.now += pause
            self.say(SYN | ACK, by_vm=True)
            self.assertEqual([stage], self.stages(), pause)
        self.assertEqual((0, 0), self.count())
        self.now += HALF_OPEN + 1
        self.count()
        self.assertEqual(0, len(self.flows))

    def test_answers_lost(self) -> None:
        """If the client sends its SYN again, the answers were lost: the flow opens."""
        self.open()
        for pause in (1, 2, 4):
            self.now += pause
            self.say(SYN)
            self.say(SYN | ACK, by_vm=True)
        self.assertEqual([Stage.OPEN], self.stages())

    def test_ends(self) -> None:
        """A flow ends when both sides have sent FIN, in either order, or with a RST of either side."""
        for ends in (((FIN, False), (FIN, True)), ((FIN, True), (FIN, False)), ((RST, False),), ((RST, True),),
                     ((FIN, True), (RST | ACK, False))):  # fmt: skip
            self.open()
            for flags, by_vm in ends:
                self.assertEqual(1, self.count()[0])
                self.say(flags | ACK, by_vm=by_vm)
            self.assertEqual((0, 0), self.count())
            self.assertEqual((0, {0: None}), (len(self.flows), self.flows.unsaved))

    def test_half_closed(self) -> None:
        """A half-closed flow is counted for four minutes after the last FIN, which one side alone may send again."""
        self.open()
        for _ in range(2):
            self.say(FIN | ACK)
            self.assertEqual([Stage.CLOSING], self.stages())
            self.now += TRANSITORY - 1
        self.assertEqual((1, 239), self.count())
        self.now += 1
        self.assertEqual((0, 0), self.count())
        self.assertEqual(0, len(self.flows))

    def test_lifetime(self) -> None:
        """An open flow is counted for 2 h 4 min after its last sign of life (RFC 5382); it is known for longer."""
        self.open()
        self.now += LIFETIME - 1
        self.assertEqual((1, 7439), self.count())
        self.flows.changed.clear()
        self.now += 1
        self.assertEqual((0, 0), self.count())
        self.assertEqual({VM}, self.flows.changed)
        self.now += 10 * REMEMBERED
        self.count()
        self.assertEqual([Stage.SILENT], self.stages())

    def test_asleep(self) -> None:
        """While the guest sleeps, a silent flow is known for a day more; a segment opens it again."""
        flow = self.open()
        self.now += LIFETIME
        self.count()
        self.flows.sleeps(VM, self.now)
        self.now += REMEMBERED - 1
        self.assertEqual((0, 0), self.count())
        self.flows.seen(flow, ROUTER, self.now)
        self.assertEqual(([Stage.OPEN], (1, 0)), (self.stages(), self.count()))
        self.now += LIFETIME + 1
        self.count()
        self.now += REMEMBERED - 1
        self.count()
        self.assertEqual([Stage.SILENT], self.stages())
        self.now += 1
        self.count()
        self.assertEqual(0, len(self.flows))

    def test_sleeps_after_long(self) -> None:
        """What a guest that was up for long has open is known for a day of sleep, as its data were not captured."""
        self.open()
        self.now += LIFETIME
        self.count()
        self.now += 3 * REMEMBERED / 2
        self.flows.sleeps(VM, self.now)
        self.now += REMEMBERED - 1
        self.count()
        self.assertEqual([Stage.SILENT], self.stages())
        self.now += 1
        self.count()
        self.assertEqual([], self.stages())

    def test_seen(self) -> None:
        """A segment is a sign of life, and shows through which neighbour the far end is reached now."""
        flow, another = self.open(), Peer("br0", b"", b"\2\0\0\0\0\2")
        self.now += 100
        self.flows.seen(flow, another, self.now)
        self.assertEqual(((1, 0), another), (self.count(), flow.peer))
        self.say(FIN)
        self.now += 100
        self.flows.seen(flow, another, self.now)
        self.assertEqual(([Stage.CLOSING], (1, 0)), (self.stages(), self.count()))

    def test_lost(self) -> None:
        """When the guest's memory is gone, its flows are known for a while, but not open; until it is up again."""
        for wakes in (False, True):
            self.make()
            flow = self.open()
            self.say(SYN, port=1, by_vm=True)
            self.flows.lose(VM, self.now)
            self.flows.seen(flow, ROUTER, self.now)
            self.say(FIN)
            self.assertEqual(([Stage.LOST], (0, 0)), (self.stages(), self.count()))
            if wakes:
                self.flows.wakes(VM)
            self.now += LIFETIME - 1
            self.count()
            self.assertEqual([] if wakes else [Stage.LOST], self.stages())
            self.now += 1
            self.count()
            self.assertEqual([], self.stages())

    def test_again(self) -> None:
        """A flow may have the ports of an earlier one that was not seen to end; a SYN alone ends nothing."""
        flow = self.open()
        self.say(FIN)
        for stage in (Stage.CLOSING, Stage.LOST):
            self.say(SYN)
            self.assertEqual([stage], self.stages())
            self.say(SYN | ACK, by_vm=True)
            self.assertEqual(([Stage.OPEN], 0), (self.stages(), flow.finished))
            self.flows.lose(VM, self.now)
        self.say(SYN)
        self.say(SYN | ACK, by_vm=True)
        for _ in range(5):
            self.now += HALF_OPEN + 1
            self.say(SYN | ACK, by_vm=True)
        self.assertEqual([Stage.OPEN], self.stages())

    def test_tags(self) -> None:
        """Flows in more VLANs than two are not known: nobody uses them, and a frame may have hundreds of tags."""
        self.say(SYN | ACK, by_vm=True, peer=Peer("br0", bytes(TAGS + 4), b"\2\0\0\0\0\1"))
        self.assertEqual(0, len(self.flows))


class FairTests(FlowsTestCase):
    """More flows than slots."""

    def networks(self, ip: bytes = VM) -> dict[bytes, int]:
        """Return how many flows each /24 has open."""
        found: dict[bytes, int] = {}
        for flow in self.flows.of(ip):
            found[flow.remote[:3]] = found.get(flow.remote[:3], 0) + 1
        return found

    def test_flood(self) -> None:
        """A flood of SYNs changes nothing: the flow of each begins with the guest's answer."""
        for port in range(1000):
            self.say(SYN, port=port)
        self.assertEqual((0, False), (len(self.flows), self.flows.has(VM)))

    def test_half_open_first(self) -> None:
        """Flows that are not open displace others that are not, and are displaced by open ones."""
        for port in range(6):
            self.open(port=port)
        for port in range(1000):
            self.say(SYN, b"\x0b\0\0\1", port, by_vm=True)
        self.assertEqual({CLIENT[:3]: 6, b"\x0b\0\0": 2}, self.networks())
        for port in (6, 7):
            self.say(SYN | ACK, port=port, by_vm=True)
        self.assertEqual({CLIENT[:3]: 8}, self.networks())
        self.say(SYN, b"\x0b\0\0\1", 1, by_vm=True)
        self.assertEqual(8, self.count()[0])

    def test_shares(self) -> None:
        """Open flows of one network displace those of a network with more, and of their own; of no other."""
        for port in range(8):
            self.open(port=port)
        for port in range(20):
            self.now += 1
            self.open(b"\x0b\0\0\1", port)
        self.assertEqual({CLIENT[:3]: 4, b"\x0b\0\0": 4}, self.networks())

    def test_longest_silent(self) -> None:
        """Among equals, one that has given no sign of life for long is displaced."""
        for port in range(8):
            self.now += 100
            self.open(port=port)
        self.open(port=100)
        ports = {flow.remote_port for flow in self.flows.of(VM)}
        self.assertEqual({1, 2, 3, 4, 5, 6, 7, 100}, ports)

    def test_vms(self) -> None:
        """VMs have equal shares of all slots, too; a flow that is lost gives way to any other."""
        self.make(per_vm=20, total=20)
        for port in range(20):
            self.open(port=port)
        for port in range(30):
            self.open(bytes([11, port, 0, 1]), port, OTHER)
        self.assertEqual((10, 10), (len(self.stages()), len(self.stages(OTHER))))
        self.flows.lose(VM, self.now)
        for port in range(30, 130):
            self.open(bytes([11, port, 0, 1]), port, OTHER)
        self.assertEqual((0, 20), (len(self.stages()), len(self.stages(OTHER))))

    def test_slots(self) -> None:
        """Each flow has a slot of its own, which is free again afterwards."""
        for _ in range(3):
            for ip in (VM, OTHER):
                for port in range(8):
                    self.open(port=port, ip=ip)
            slots = {flow.slot for ip in (VM, OTHER) for flow in self.flows.of(ip)}
            self.assertEqual(set(range(16)), slots)
            for ip in (VM, OTHER):
                for port in range(8):
                    self.say(RST, port=port, ip=ip)
        self.assertEqual(dict.fromkeys(range(16)), self.flows.unsaved)


class RestoreTests(FlowsTestCase):
    """What was saved."""

    def test_restored(self) -> None:
        """The flows that were saved are known again, each with its time, but for one whose slot is taken."""
        for port in range(3):
            self.open(port=port)
            self.now += 10
        self.say(FIN, port=1)
        self.say(SYN, port=9, by_vm=True)
        saved = [flow for flow in self.flows.unsaved.values() if flow is not None]
        self.assertEqual([0, 1, 2], sorted(flow.slot for flow in saved))
        again = Flows(Limits(8, 20))
        double = TcpFlow(VM, CLIENT, 5, 80, ROUTER, by_vm=False, stage=Stage.OPEN, at=1.0, since=2000.0, slot=2)
        beyond = TcpFlow(VM, CLIENT, 6, 80, ROUTER, by_vm=False, stage=Stage.OPEN, at=1.0, since=2000.0, slot=20)
        again.restore([*reversed(saved), double, beyond])
        self.flows = again
        self.assertEqual(({}, (3, 0)), (again.unsaved, self.count()))
        self.assertEqual([Stage.OPEN, Stage.CLOSING, Stage.OPEN], [self.found(port=port).stage for port in range(3)])
        self.open(port=7)
        self.assertEqual(3, self.found(port=7).slot)
        self.now = 1000.0 + LIFETIME
        self.assertEqual((2, 7410), self.count())
