"""Jitsu's side and Synjitsu's side of the conversation, with fakes for the network and the kernel."""

from __future__ import annotations

import errno
import gc
import tempfile
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, LogLevel, LogPublisher, formatEvent, globalLogPublisher
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw import messages
from jitsu_tw import synjitsu_client as standin
from jitsu_tw.errors import NoStandIn
from jitsu_tw.parsers import description
from jitsu_tw.rules.flows import Flows
from jitsu_tw.synjitsu_client import SynjitsuClient
from synjitsu_tw import conversation, service, tap
from synjitsu_tw.counts import Counts, Port
from synjitsu_tw.kernel import Kernel, NotABridgeError
from synjitsu_tw.links import Interface
from synjitsu_tw.packets import ACK, RST, SYN
from synjitsu_tw.service import BEFORE_HELLO, ORPHANED, SUMMONS, Synjitsu
from synjitsu_tw.syns import EXPIRY
from synjitsu_tw.table import State
from test.support import BoundedClock
from test.support.control import Wire
from test.support.fakepcap import FakePcap
from test.unit.synjitsu.test_packets import CLIENT, GUEST, PEER, VM, arp_frame, tcp_frame

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 30.0

IP: Final = "10.0.0.10"
MAC: Final = GUEST.hex(":")

SECRET: Final = "a secret of the tests"  # noqa: S105

VERSION: Final = str(messages.VERSION).encode()

COMMANDS: Final = (
    messages.Hello, messages.Announce, messages.AnnouncedAll, messages.Ready, messages.Withdraw, messages.Summon,
    messages.Seen, messages.Listens, messages.Elsewhere, messages.Flows, messages.Packets, messages.Counters,
    messages.Status,
)  # fmt: skip


class ReadingClock(BoundedClock):
    """A clock that takes readers, and never finds that they have something to read."""

    def addReader(self, reader: Any) -> None:  # noqa: N802
        """Do nothing."""

    def removeReader(self, reader: Any) -> None:  # noqa: N802
        """Do nothing."""


class FakeKernel:
    """
    A kernel with one bridge.

    Attributes:
        entries: the changes of the neighbour table.
        changes: whether links and addresses have changed.
        own: the addresses of the bridge.
        routers: the default gateways.
        behind: addresses outside the bridge's networks that are neighbours on it.
        same: MACs behind the guest's port.
        fails: why Synjitsu cannot have its port.
        ports: the ports of MACs that the bridge has learnt.
    """

    def __init__(self) -> None:
        """Begin with no entries and no addresses."""
        self.entries: list[Any] = []
        self.changes = False
        self.own: tuple[str, ...] = ()
        self.routers: tuple[str, ...] = ()
        self.behind: tuple[str, ...] = ()
        self.same: set[bytes] = set()
        self.fails: OSError | None = None
        self.ports: dict[bytes, Port] = {}
        self.counts = Counts()

    def port_of(self, interface: str, mac: bytes) -> Port | None:  # noqa: ARG002
        """Return the port of a MAC in `ports`."""
        return self.ports.get(mac)

    def interface(self, name: str) -> Interface:
        """Return a bridge."""
        return Interface(7, name, "bridge", b"\2\0\0\0\0\xaa", 1500, 0, up=True, forwards=False, stp=False)

    def ensure_port(self, name: str, mac: bytes) -> tuple[Interface, list[Interface]]:  # noqa: ARG002
        """Return a bridge with no other port, or raise `fails`."""
        if self.fails is not None:
            raise self.fails
        return self.interface(name), []

    def links_changed(self) -> bool:
        """Return the value of `changes`."""
        return self.changes

    addresses_changed = links_changed

    def addresses(self) -> dict[str, list[Any]]:
        """Return the bridge's addresses."""
        return {"br0": list(map(ip_interface, self.own))}

    def gateways(self) -> frozenset[bytes]:
        """Return the value of `routers`."""
        return frozenset(ip_address(ip).packed for ip in self.routers)

    def is_behind(self, interface: str, ip: bytes) -> bool:  # noqa: ARG002
        """Return whether *ip* is in `behind`."""
        return str(ip_address(ip)) in self.behind

    def is_same_port(self, interface: str, mac: bytes, known: frozenset[bytes], domid: int | None) -> bool:  # noqa: ARG002
        """Return whether *mac* is in `same`."""
        return mac in self.same

    def set_neighbour(self, *what: Any, create: bool) -> None:
        """Store the entry."""
        self.entries.append((*what, create))

    def close(self) -> None:
        """Do nothing."""


class ConversationTests(TestCase):
    """Both sides, on a UNIX socket."""

    timeout = PATIENCE

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        """Begin with a Jitsu and no Synjitsu."""
        self.place = str(Path(tempfile.mkdtemp(dir=self.mktemp_short())) / "socket")
        self.events: list[Any] = []
        self.said: list[str] = []
        observer: Any = self.observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.standin = SynjitsuClient(
            f"unix:{self.place}",
            lambda ip, source, flow: self.events.append(("summon", ip, source, flow)),
            lambda ip: self.events.append(("seen", ip)),
            reactor,
        )
        self.addCleanup(self.standin.stop)

    def mktemp_short(self) -> str:
        """Return a folder whose name is short, as names of UNIX sockets must be."""
        folder = tempfile.TemporaryDirectory(prefix="synjitsu-")
        self.addCleanup(folder.cleanup)
        return folder.name

    def observe(self, event: Any) -> None:
        """Store the beginning of each line that Jitsu's side logs."""
        if "jitsu_tw.synjitsu_client" in event.get("log_namespace", "") and event["log_level"] >= LogLevel.info:
            self.said.append(event["log_format"][:12])

    async def synjitsu(self) -> Synjitsu:
        """Start a Synjitsu with a fake interface."""
        self.pcap = FakePcap()
        synjitsu = Synjitsu(["br0"], reactor, kernel=FakeKernel(), opens=lambda _: self.pcap)  # type: ignore[arg-type]
        synjitsu.open()
        synjitsu.startService()
        self.port = await serverFromString(reactor, f"unix:{self.place}:lockfile=0").listen(synjitsu.factory)
        self.addCleanup(self.end, synjitsu)
        return synjitsu

    async def end(self, synjitsu: Synjitsu) -> None:
        """Stop *synjitsu* as if it had been killed: its connections are aborted."""
        if synjitsu.running:
            synjitsu.stopService()
            for conversation in set(synjitsu._owners.values()):
                transport: Any = conversation.transport
                transport.abortConnection()
            await self.port.stopListening()

    async def until(self, condition: Any) -> None:
        """Wait until *condition* returns something true."""
        while not condition():
            await deferLater(reactor, 0.005)

    async def test_says_all(self) -> None:
        """Announcements before the connection are sent when it is made, and again to a restarted Synjitsu."""
        self.standin.announce("10.0.0.10", [MAC], asleep=True, ports=[443, 80], wake_udp=[443])
        self.standin.announce("fd00:0::1", [], asleep=False)
        self.standin.announce("10.0.0.11", [MAC], asleep=True)
        self.standin.withdraw("10.0.0.11")
        self.standin.announce("10.0.0.12", [MAC], asleep=False)
        self.standin.ready("10.0.0.12")
        changes: list[bool] = []
        self.standin._on_change = lambda _: changes.append(self.standin.connected)
        self.standin.start()
        await self.until(lambda: self.said)
        for _ in range(2):
            synjitsu = await self.synjitsu()
            await self.until(lambda: len(synjitsu.standins.table) == 3)  # noqa: B023
            status = await self.standin.status()
            self.assertEqual(
                [("10.0.0.10", MAC, "asleep"), ("10.0.0.12", MAC, "up"), ("fd00::1", "", "booting")],
                [(one["ip"], one["mac"], one["state"]) for one in status["standins"]],
            )
            self.assertEqual(frozenset({80, 443}), synjitsu.standins.table[VM].ports)
            self.assertEqual(frozenset({443}), synjitsu.standins.table[VM].wake_udp)
            await self.end(synjitsu)
            await self.until(lambda: not self.standin.connected)
        self.assertEqual([True, False] * 2, changes)
        # Once that it is missing, once that it is there again.
        self.assertEqual(["no Synjitsu ", "Synjitsu is ", "no Synjitsu ", "Synjitsu is ", "no Synjitsu "], self.said)

    async def test_says_once(self) -> None:
        """An unchanged announcement is not sent again: a guest may have taken its address over without Jitsu."""
        synjitsu = await self.synjitsu()
        self.standin.start()
        self.standin.announce(IP, [MAC], asleep=False)
        await self.until(lambda: VM in synjitsu.standins.table)
        synjitsu.standins.ready(VM, (GUEST,))
        self.standin.announce(IP, [MAC], asleep=False)
        self.standin.announce("10.0.0.11", [MAC], asleep=False)
        await self.until(lambda: len(synjitsu.standins.table) > 1)
        self.assertIs(State.UP, synjitsu.standins.table[VM].state)
        self.standin.announce(IP, [MAC], asleep=True)
        await self.until(lambda: synjitsu.standins.table[VM].state is State.ASLEEP)

    async def test_summons_and_sees(self) -> None:
        """Synjitsu sends `Summon` for a SYN to a VM that is asleep, and `Seen` for the guest's own announcement."""
        self.standin.start()
        await self.synjitsu()
        self.standin.announce(IP, [MAC], asleep=True)
        await self.until(lambda: self.standin.connected)
        await self.standin.status()
        self.pcap.put(tcp_frame(), arp_frame(1, GUEST, VM, VM))
        await self.until(lambda: len(self.events) == 2)
        self.assertEqual([("summon", IP, "10.0.0.2", False), ("seen", IP)], self.events)

    async def test_packets(self) -> None:
        """Synjitsu tells how many packets of conversations a guest has exchanged, where it can count them."""
        self.standin.announce(IP, [MAC], asleep=False)
        self.standin.start()
        self.assertIsNone(await self.standin.packets(IP))
        synjitsu = await self.synjitsu()
        await self.until(lambda: self.standin.connected)
        await self.standin.status()
        self.assertIsNone(await self.standin.packets(IP))
        counter = FakePcap("vnet0")
        self.patch(synjitsu._kernel, "counts", Counts(lambda _: counter))
        self.patch(synjitsu._kernel, "ports", {GUEST: Port(9, "vnet0")})
        self.assertEqual(0, await self.standin.packets(IP))
        counter.count = 3
        self.assertEqual(3, await self.standin.packets(IP))
        self.assertIsNone(await self.standin.packets("10.0.0.77"))

    async def test_flows(self) -> None:
        """Connections that Synjitsu reports are known once all is announced, and until it is lost."""
        other, others = "fd00::10", "10.0.0.11"
        for ip in (IP, other):
            self.standin.announce(ip, [MAC], asleep=True)
        self.assertIsNone(self.standin.flows(IP))
        synjitsu = await self.synjitsu()
        self.standin.start()
        await self.until(lambda: self.standin.flows(IP))
        self.assertEqual((Flows(), Flows(), None), tuple(map(self.standin.flows, (IP, "fd00:0::10", others))))
        (jitsu,) = set(synjitsu._owners.values())
        for ip in (IP, others):
            await jitsu.callRemote(messages.Flows, ip=ip, open=2, silent=30)
        found = self.standin.flows(IP)
        assert found is not None
        self.assertEqual((2, True), (found.open, -31 < found.last - reactor.seconds() <= -30))
        self.standin.refused[other] = "it is a router"
        self.assertEqual((None, None), (self.standin.flows(other), self.standin.flows(others)))
        for wrong in ({"open": -1, "silent": 1}, {"open": 1, "silent": -1}):
            with self.assertRaises(messages.Refused):
                await jitsu.callRemote(messages.Flows, ip=IP, **wrong)
        self.assertEqual(found, self.standin.flows(IP))
        self.standin.stop_announcing(IP)
        self.standin.announce(IP, [MAC], asleep=True)
        self.assertEqual(Flows(), self.standin.flows(IP))
        await self.end(synjitsu)
        await self.until(lambda: not self.standin.connected)
        self.assertIsNone(self.standin.flows(IP))

    async def test_refused_addresses(self) -> None:
        """An address that Synjitsu refuses is known as refused, and logged once, until it is accepted."""
        changes: list[int] = []
        self.standin._on_change = lambda _: changes.append(len(self.standin.refused))
        self.standin.start()
        synjitsu = await self.synjitsu()
        self.patch(synjitsu, "_obstacle", lambda _: "it is the host's")
        await self.until(lambda: self.standin.connected)
        self.said.clear()
        for asleep in (True, False):
            self.standin.announce(IP, [MAC], asleep=asleep)
            await self.standin.status()
        self.assertEqual({IP: "it is the host's"}, self.standin.refused)
        self.patch(synjitsu, "_obstacle", lambda _: None)
        self.standin.announce(IP, [MAC], asleep=True)
        await self.standin.status()
        self.assertEqual(({}, [0, 1, 0]), (self.standin.refused, changes))
        self.assertEqual(["Synjitsu ref"], [words for words in self.said if "ref" in words])

    async def test_secret(self) -> None:
        """Without the secret no command is accepted; with it all are."""
        synjitsu = await self.synjitsu()
        factory: Any = synjitsu.factory
        factory.secret = self.place
        self.standin.announce(IP, [MAC], asleep=True)
        self.standin.start()
        await self.until(lambda: self.said)
        self.assertEqual({}, synjitsu.standins.table)
        other = SynjitsuClient(f"unix:{self.place}", print, print, reactor, secret=factory.secret)
        self.addCleanup(other.stop)
        other.announce(IP, [MAC], asleep=True)
        other.start()
        await self.until(lambda: VM in synjitsu.standins.table)

    async def test_many(self) -> None:
        """The status has all stand-ins, also more than fit into one answer."""
        synjitsu = await self.synjitsu()
        for number in range(2 * messages.PAGE):
            self.standin.announce(f"10.1.{number // 256}.{number % 256}", [MAC], asleep=True)
        self.standin.start()
        await self.until(lambda: len(synjitsu.standins.table) == 2 * messages.PAGE)
        status = await self.standin.status()
        self.assertEqual(2 * messages.PAGE, len({one["ip"] for one in status["standins"]}))

    async def test_no_status(self) -> None:
        """Without Synjitsu, `status` raises NoStandIn."""
        with self.assertRaises(NoStandIn):
            await self.standin.status()

    async def test_refused(self) -> None:
        """A refusal of Synjitsu is logged and does no harm."""
        self.standin.start()
        await self.synjitsu()
        await self.until(lambda: self.standin.connected)
        self.standin.announce(IP, ["52:54"], asleep=True)
        self.standin.announce(IP, [MAC], asleep=True, handover="xenstore")
        self.standin.announce("10.0.0.11", [], asleep=False)
        self.standin.ready("10.0.0.11")
        await self.standin.status()
        self.assertEqual(3, self.said.count("Synjitsu ref"))

    async def test_wrong_version(self) -> None:
        """A Synjitsu of another version is refused with a logged reason, and tried again: one may be updated."""
        self.patch(conversation, "messages", SimpleNamespace(VERSION=messages.VERSION + 1))
        self.standin.announce(IP, [MAC], asleep=True)
        synjitsu = await self.synjitsu()
        self.standin.start()
        await self.until(lambda: self.said)
        self.assertFalse(self.standin.connected)
        self.assertEqual({}, synjitsu.standins.table)
        self.assertEqual(["no Synjitsu "], self.said)
        self.assertFalse(self.standin.connected)


class KernelTests(SynchronousTestCase):
    """What Synjitsu reads from the kernel."""

    def test_port_of(self) -> None:
        """The port that a MAC is behind is the one where the bridge has learnt it, if it has."""
        kernel = Kernel()
        self.addCleanup(kernel.close)
        self.patch(kernel, "interface", lambda _: FakeKernel().interface("br0"))
        self.patch(kernel, "_learnt_at", lambda _bridge, mac: {GUEST: 1, PEER: 4711}.get(mac))
        self.assertEqual([Port(1, "lo"), None, None], [kernel.port_of("br0", mac) for mac in (GUEST, PEER, bytes(6))])

    def test_reads_one_port(self) -> None:
        """A look-up of a MAC reads one port, not all: a bridge may have hundreds, and any neighbour causes look-ups."""
        kernel = Kernel()
        self.addCleanup(kernel.close)
        bridge, read = FakeKernel().interface("br0"), list[int]()
        port = attrs.evolve(bridge, index=9, kind="tun", mac=b"\xfe" + GUEST[1:], master=bridge.index)

        def at(index: int) -> Interface:
            read.append(index)
            return port

        self.patch(kernel, "interface", lambda _: bridge)
        self.patch(kernel, "_learnt_at", lambda _bridge, _mac: 9)
        self.patch(kernel.interfaces, "at", at)
        self.assertTrue(kernel.is_same_port("br0", PEER, frozenset({GUEST}), None))
        self.assertEqual([9], read)


class OlderTests(SynchronousTestCase):
    """A Jitsu that is older than Synjitsu."""

    def test_hello(self) -> None:
        """A Jitsu that sends no secret gets WrongVersion."""
        kernel: Any = FakeKernel()
        synjitsu = Synjitsu(["br0"], BoundedClock(), kernel=kernel, opens=FakePcap)
        older, transport = synjitsu.factory.buildProtocol(None), StringTransport()
        assert older is not None
        older.makeConnection(transport)
        hello = {b"_ask": b"1", b"_command": b"Hello", b"version": b"1"}
        older.dataReceived(amp.Box(hello).serialize())
        self.assertIn(b"WRONG_VERSION", transport.value())


class StrangeTests(SynchronousTestCase):
    """Peers that send malformed messages, on a clock."""

    def setUp(self) -> None:
        """Make a Synjitsu, and capture what both sides log."""
        self.clock = BoundedClock()
        kernel: Any = FakeKernel()
        self.synjitsu = Synjitsu(["br0"], self.clock, kernel=kernel, opens=FakePcap, secret=SECRET)
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        log = Logger(observer=LogPublisher(observer))
        for side in (conversation.Conversation, standin._Conversation):
            self.patch(side, "complaints", messages.Complaints(log, self.clock.seconds))

    def connect(self, host: str = "192.0.2.1", *, met: bool = True) -> Any:
        """Return Synjitsu's side of a connection from *host*, and the connection."""
        side, wire = self.synjitsu.factory.buildProtocol(None), Wire(peerAddress=IPv4Address("TCP", host, 1))
        assert side is not None
        side.makeConnection(wire)
        if met:
            self.say(side, _command=b"Hello", version=VERSION, secret=SECRET.encode())
            wire.clear()
        return side, wire

    def say(self, side: Any, **box: bytes) -> None:
        """Send a message."""
        side.dataReceived(amp.Box({key.encode(): value for key, value in {"_ask": b"1", **box}.items()}).serialize())

    def lines(self) -> list[str]:
        """Return the lines logged since the last call."""
        lines, self.logged[:] = [str(formatEvent(event)) for event in self.logged], []
        return lines

    def test_goes_on(self) -> None:
        """A peer that keeps sending malformed messages is cut off, with two log lines; the rest is not read."""
        side, wire = self.connect()
        for number in range(messages.MOST_MALFORMED):
            self.assertFalse(wire.aborted, number)
            self.say(side, _command=b"Withdraw", ip=b"x", failed=b"True")
        self.assertTrue(wire.aborted)
        wire.clear()
        self.say(side, _command=b"Counters")
        self.assertEqual(b"", wire.value())
        first, last = self.lines()
        self.assertEqual("192.0.2.1 sent a malformed message: Withdraw: 'x' is no IP address", first)
        self.assertEqual("192.0.2.1 is cut off: Withdraw: 'x' is no IP address", last)

    def test_lines(self) -> None:
        """However many peers send malformed messages, the log lines of a minute are bounded."""
        for _ in range(50):
            side, _ = self.connect(met=False)
            self.say(side, _command=b"Exec\x1b")
        self.assertEqual(messages.MOST_LINES + 1, len(lines := self.lines()))
        self.assertEqual("further such lines are not logged for a minute", lines[-1])
        self.clock.advance(60)
        side, _ = self.connect("198.51.100.1", met=False)
        self.say(side, _command=b"Exec")
        self.assertEqual(["198.51.100.1 sent a malformed message: Hello must come first"], self.lines())

    def test_silent(self) -> None:
        """A peer that sends no Hello in time is cut off, even if octets trickle in; one that has sent it is not."""
        for met in (False, True):
            side, wire = self.connect(met=met)
            for _ in range(int(conversation.HELLO_WITHIN)):
                side.dataReceived(b"\0\1a\0\1a") if not met else None
                self.assertFalse(wire.aborted)
                self.clock.advance(1)
            self.assertEqual(not met, wire.aborted)

    def test_before_hello(self) -> None:
        """Peers before their Hello have a share of the connections, and displace no Jitsu's."""
        most, most_from_one = BEFORE_HELLO
        _, jitsu = self.connect()
        hosts = ["192.0.2.1"] * most_from_one + ["198.51.100.1"] * most_from_one
        strangers = [self.connect(host, met=False) for host in hosts]
        self.assertEqual((most, 0), (len(strangers), sum(wire.aborted for _, wire in strangers)))
        self.assertFalse(self.connect("203.0.113.1")[1].aborted)
        self.assertEqual(1, sum(wire.aborted for _, wire in strangers))
        for _ in range(most):
            self.connect("192.0.2.9", met=False)
        self.assertEqual([True] * most_from_one, [wire.aborted for _, wire in strangers[:most_from_one]])
        self.assertGreaterEqual(sum(not wire.aborted for _, wire in strangers), most_from_one - 1)
        self.assertFalse(jitsu.aborted)

    def test_secret_first(self) -> None:
        """Before the secret was shown no value is read, not even the rest of Hello."""
        read: list[Any] = []
        self.patch(messages.Address, "fromString", lambda _, text: read.append(text))
        self.patch(messages.Number, "fromString", lambda _, text: read.append(text))
        side, wire = self.connect(met=False)
        self.say(side, _command=b"Withdraw", ip=b"10.0.0.1", failed=b"True")
        self.say(side, _command=b"Hello", version=VERSION, secret=b"another")
        self.assertEqual([], read)
        self.assertEqual(2, wire.value().count(b"REFUSED"))

    def test_limits(self) -> None:
        """Addresses and UDP ports beyond their limits are refused; the earlier ones stay."""
        self.patch(service, "MOST_STANDINS", 2)
        self.patch(service, "MOST_UDP", 2)
        self.patch(self.synjitsu, "_obstacle", lambda _: None)
        side, wire = self.connect()
        for ip, port, words in (("10.0.0.1", 1, b""), ("10.0.0.2", 2, b""), ("10.0.0.3", 1, b"cannot for more"),
                                ("10.0.0.1", 3, b"2 different ports"), ("10.0.0.1", 2, b"")):  # fmt: skip
            wire.clear()
            udp = str(port).encode()
            self.say(side, _command=b"Announce", ip=ip.encode(), macs=b"", asleep=b"True", runs=b"False",
                     handover=b"wire", wake_udp=b"\0\1" + udp)  # fmt: skip
            self.assertIn(words or b"_answer", wire.value())
        self.assertEqual([f"10.0.0.{n}" for n in (1, 2)], [str(ip_address(ip)) for ip in self.synjitsu.standins.table])
        self.patch(self.synjitsu, "_obstacle", lambda _: "it is another's")
        for number in range(5):
            self.say(side, _command=b"Ready", ip=f"10.0.1.{number}".encode(), macs=b"\0\x11" + MAC.encode())
        self.assertEqual(2, len(self.synjitsu._refused))

    def test_any_octets(self) -> None:
        """Any octets, to either side, cause no traceback, and the memory that they take is bounded."""
        keys = st.sampled_from([name for command in COMMANDS for name, _ in command.arguments])
        odd = [b"", b"-1", b"0", b"65536", b"9" * 5000, b"True", b"10.0.0.1", b"::1", b"10.0.0.1\0", b"\0\1x",
               b"\0\0015", b"\xff", b"\0\x11" + MAC.encode(), b"wire", b"\0\0" * 5000, "²".encode()]  # fmt: skip
        values = st.sampled_from(odd) | st.binary(max_size=30)
        named = st.sampled_from([command.commandName for command in COMMANDS])
        own = st.sampled_from([b"_ask", b"_answer", b"_error", b"_error_code", b"_error_description", b"_command"])
        boxes = st.dictionaries(keys | own, values, min_size=1, max_size=12)
        asked = st.builds(lambda box, name: {**box, b"_command": name, b"_ask": b"1"}, boxes, named)
        jitsu = SimpleNamespace(
            begin=lambda _: None, ended=lambda: None, listens=print, on_seen=len, on_summon=max, on_elsewhere=max,
            cut=lambda: None, reactor=self.clock,
        )  # fmt: skip
        self.patch(self.synjitsu, "_obstacle", lambda _: None)

        @settings(max_examples=300, deadline=None, derandomize=True, database=None)
        @given(st.lists(boxes | asked, max_size=6), st.binary(max_size=30), st.booleans(), st.booleans())
        def hear(said: list[dict[bytes, bytes]], octets: bytes, met: bool, to_jitsu: bool) -> None:  # noqa: FBT001
            side, wire = self.connect(met=met)
            if to_jitsu:
                side, wire = standin._Conversation(), Wire()
                side.factory = SimpleNamespace(standin=jitsu)
                side.makeConnection(wire)
            for box in said:
                side.dataReceived(amp.Box(box).serialize())
            side.dataReceived(octets)
            side.connectionLost(Failure(ConnectionDone()))

        hear()
        self.assertEqual([], self.flushLoggedErrors())

    def test_bad_errors(self) -> None:
        """An error in place of an answer, or a malformed message, causes no traceback on either side."""
        side, wire = self.connect()
        side.callRemote(messages.Seen, ip=IP).addErrback(service._ignore_loss)
        self.say(side, _error=b"1", _error_code=b"ODD", _error_description=b"\xff")
        self.assertFalse(wire.aborted)
        error = amp.Box({b"_error": b"1", b"_error_code": b"ODD", b"_error_description": b"\xff"}).serialize()
        for octets in (b"\xff\xff", error):
            ours = SynjitsuClient("unix:socket", print, print, self.clock)
            jitsus: Any = standin._Conversation()
            jitsus.factory, wire = SimpleNamespace(standin=ours), Wire()
            jitsus.makeConnection(wire)
            jitsus.dataReceived(octets)
            self.assertTrue(wire.aborted)
            jitsus.connectionLost(Failure(ConnectionDone()))
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors())

    def ours(self, **told: Any) -> tuple[SynjitsuClient, Any, Wire]:
        """Return a SynjitsuClient, its side of a new connection, and the connection's wire."""
        ours = SynjitsuClient("unix:socket", told.get("on_summon", print), print, self.clock)
        side, wire = standin._Conversation(), Wire()
        side.factory = SimpleNamespace(standin=ours)
        side.makeConnection(wire)
        return ours, side, wire

    def test_hangs(self) -> None:
        """A Synjitsu that answers nothing is cut off, before Hello and after; one that answers is not."""
        for answers in (False, True):
            ours, side, wire = self.ours()
            if answers:
                self.clock.advance(standin.ANSWER_WITHIN - 1)
                side.dataReceived(amp.Box({b"_answer": b"1"}).serialize())
                self.clock.advance(10 * standin.ANSWER_WITHIN)
                self.assertEqual((False, True), (wire.aborted, ours.connected))
                ours.announce(IP, [MAC], asleep=True)
            self.clock.advance(standin.ANSWER_WITHIN - 1)
            self.assertFalse(wire.aborted)
            self.clock.advance(1)
            self.assertTrue(wire.aborted)
            side.connectionLost(Failure(ConnectionDone()))
            self.assertFalse(ours.connected)
            self.assertIn("is cut off: it has said nothing for 10 s", "".join(self.lines()))
            (again,) = self.clock.getDelayedCalls()
            self.assertEqual(standin.AFTER_REFUSAL, again.getTime() - self.clock.seconds())
            again.cancel()
            self.assertLess(ours._pause(1), 1.0)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_ends(self) -> None:
        """Jitsu ends though Synjitsu does not read the last messages; it waits for that only for `ENDING` seconds."""
        for takes in (False, True):
            ours, side, wire = self.ours()
            stopped = ours.stop()
            self.clock.advance(standin.ENDING / 2)
            if takes:
                side.connectionLost(Failure(ConnectionDone()))
            self.clock.advance(standin.ENDING / 2)
            self.assertEqual((not takes, takes), (wire.aborted, stopped.called))
            if not takes:
                side.connectionLost(Failure(ConnectionDone()))
            self.successResultOf(stopped)
            self.successResultOf(ours.stop())

    def test_flood(self) -> None:
        """A peer that sends very much at once is read for `SLICE` seconds at a time, and others are served between."""
        heard: list[str] = []

        def summoned(ip: str, *_: object) -> None:
            heard.append(ip)
            self.clock.rightNow += messages.SLICE / 4

        _, side, wire = self.ours(on_summon=summoned)
        box = amp.Box({b"_ask": b"1", b"_command": b"Summon", b"ip": IP.encode(), b"source": b"10.0.0.9"}).serialize()
        side.dataReceived(box * 100)
        self.assertEqual((4, "paused"), (len(heard), wire.producerState))
        self.clock.advance(0)
        self.assertEqual((100, "producing"), (len(heard), wire.producerState))
        side.dataReceived(box * 100)
        side.connectionLost(Failure(ConnectionDone()))
        self.clock.advance(0)
        self.assertEqual(104, len(heard))

    def test_endless_message(self) -> None:
        """A message that does not end is not kept."""
        side, wire = self.connect()
        for number in range(messages.MOST_KEYS + 5):
            self.assertEqual(number > messages.MOST_KEYS, wire.aborted)
            side.dataReceived(b"\0\3%03d\0\1x" % number)

    def test_answers(self) -> None:
        """Synjitsu's answers are checked, too: a malformed, missing or endless answer is logged in one line."""

        def counted(count: bytes) -> dict[bytes, bytes]:
            octets = amp.AmpList([(b"name", amp.Unicode()), (b"count", amp.String())]).toStringProto(
                [{"name": "held", "count": count}], None)  # fmt: skip
            return {b"counters": octets}

        one = {"ip": IP, "mac": "", "state": "asleep", "handover": "wire", "held": 0}
        response: Any = messages.Status.response[0][1]
        page = response.toStringProto([one] * messages.PAGE, None)
        for answers, words in (
            ([counted(b"-1")], "is no number"), ([counted(b"9" * 5000)], "is no number"), ([{}], "is missing"),
            ([counted(b"1"), {b"standins": b"\0\2ip\0\1x\0\0"}], "the answer is malformed"), ([], "went away"),
            ([counted(b"1"), {b"standins": page}, {b"standins": page}, {b"standins": page}], ""),
        ):  # fmt: skip
            side, wire = standin._Conversation(), Wire()
            ours = SynjitsuClient("unix:socket", print, print, self.clock)
            self.patch(ours, "begin", lambda _: None)
            side.factory = SimpleNamespace(standin=ours)
            side.makeConnection(wire)
            ours._protocol = side
            status = ours.status()
            for answer in answers:
                if not status.called:
                    (box,) = amp.parseString(wire.value())
                    wire.clear()
                    side.dataReceived(amp.Box({**answer, b"_answer": box[b"_ask"]}).serialize())
            self.clock.advance(standin.ANSWER_WITHIN)
            if words:
                self.assertRegex(self.failureResultOf(status, NoStandIn).getErrorMessage(), words)
            else:
                self.assertEqual([one], self.successResultOf(status)["standins"])


class ServiceTests(SynchronousTestCase):
    """Synjitsu's service, on a clock."""

    def setUp(self) -> None:
        """Begin with an interface, and a Jitsu that answers nothing."""
        self.clock, self.pcap, self.kernel = ReadingClock(), FakePcap(), FakeKernel()
        self.addCleanup(self.pcap.close)
        self.flow_file = ""
        self.synjitsu = self.make()
        self.jitsu: Any = self.Jitsu()

    class Jitsu:
        """A conversation that stores the calls of the service."""

        def __init__(self) -> None:
            """Begin with no calls."""
            self.summons = 0
            self.calls: list[Any] = []
            self.transport = self
            self.lost = False

        def loseConnection(self) -> None:  # noqa: N802
            """Store that the connection was closed."""
            self.lost = True

        def callRemote(self, command: Any, **arguments: Any) -> Any:  # noqa: N802
            """Store a call; it is never answered."""
            self.calls.append((command, arguments))
            return deferLater(BoundedClock(), 1)

        def summoned(self, result: Any) -> None:
            """Do nothing."""

    def test_many_ports(self) -> None:
        """Reading a bridge with very many ports, which takes long, leaves most of the time for packets."""
        looks: list[float] = []

        def ensure_port(name: str, _: bytes) -> tuple[Interface, list[Interface]]:
            looks.append(self.clock.seconds())
            self.clock.advance(0.1)
            return self.kernel.interface(name), []

        self.patch(self.kernel, "ensure_port", ensure_port)
        self.kernel.changes = True
        begin = self.clock.seconds()
        while self.clock.seconds() < begin + 5:
            self.synjitsu._read_host_changes()
            self.clock.advance(0.01)
        self.assertIn(len(looks), range(9, 12))

    def test_addresses_elsewhere(self) -> None:
        """A change of this host's addresses elsewhere, as with each tap, costs nothing for each stand-in."""
        self.kernel.changes = True
        self.synjitsu._read_host_changes()
        for number in range(1, 200):
            self.synjitsu.announce(None, bytes([10, 0, 0, number]), (), asleep=True)
        asked: list[bytes] = []
        self.patch(self.synjitsu, "_obstacle", asked.append)
        elsewhere = {"tap0": [ip_interface("fe80::1/64"), ip_interface("10.0.0.7/32")]}
        self.patch(self.kernel, "addresses", lambda: elsewhere)
        self.synjitsu._read_host_changes()
        self.assertEqual([bytes([10, 0, 0, 7])], asked)

    def refused(self, ip: str) -> str:
        """Return why Synjitsu refuses an address; empty if it does not."""
        try:
            self.synjitsu.announce(self.jitsu, ip_address(ip).packed, (GUEST,), asleep=True)
        except messages.Refused as error:
            return str(error).partition(" ")[2]
        return ""

    def make(self, listed: dict[bytes, bytes] | None = None) -> Synjitsu:
        """Return a service that runs."""
        synjitsu = Synjitsu(
            ["br0"], self.clock, listed, kernel=self.kernel, opens=lambda _: self.pcap,  # type: ignore[arg-type]
            flows=self.flow_file,
        )
        synjitsu.startService()
        self.addCleanup(synjitsu.stopService)
        return synjitsu

    def frame(self, *octets: bytes) -> None:
        """Receive frames."""
        self.synjitsu._receives("br0")(list(octets))

    def test_orphans(self) -> None:
        """After the loss of Jitsu's connection, its VMs keep stand-ins for a while; those that boot are handed over."""
        self.synjitsu.open()
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False)
        self.frame(tcp_frame())
        self.synjitsu.lost(self.jitsu)
        self.clock.pump([1.0] * int(ORPHANED - 1))
        self.assertEqual(1, self.synjitsu.standins.syns.total)
        self.clock.pump([1.0] * 2)
        self.assertEqual(1, self.synjitsu.standins.counters["handed_over"])
        self.assertIn(VM, self.synjitsu.standins.handed)
        self.frame(arp_frame(1, GUEST, VM, VM))  # the guest comes up late
        self.assertEqual(GUEST, self.pcap.sent[-1][:6])
        self.clock.pump([1.0] * int(EXPIRY + 2))
        self.assertEqual({}, self.synjitsu.standins.table)

    def test_busy_bridge(self) -> None:
        """Frames that come more often than guests are probed delay no probe."""
        self.kernel.own = ("10.0.0.1/24",)
        self.synjitsu.open()
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False, probe_port=80)
        self.frame(arp_frame(1, GUEST, VM, VM))
        self.clock.advance(0.01)
        sent = len(self.pcap.sent)
        for _ in range(50):
            self.clock.advance(0.001)
            self.frame(tcp_frame(dst=CLIENT))
        self.assertGreater(len(self.pcap.sent), sent + 2)

    def test_answer_before_timer(self) -> None:
        """A SYN that the guest has answered is not sent again by a timer which is late, before the answer is read."""
        self.synjitsu.open()
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False)
        self.frame(tcp_frame(), arp_frame(1, GUEST, VM, VM))
        self.synjitsu.ready(self.jitsu, VM, (GUEST,))
        self.clock.advance(0)
        handed = len(self.pcap.sent)
        answer = tcp_frame(VM, CLIENT, PEER, sport=80, dport=4711, flags=SYN | ACK, ack=8)
        self.pcap.put(answer[:6] + GUEST + answer[12:])
        self.clock.advance(0.05)
        self.assertEqual(handed, len(self.pcap.sent))
        self.assertEqual({}, self.synjitsu.standins.handed)

    def flow(self, *flags: int, sport: int = 4711, ip: bytes = VM) -> None:
        """Receive segments of the guest with these flags."""
        for one in flags:
            octets = tcp_frame(ip, CLIENT, PEER, sport=80, dport=sport, flags=one)
            self.frame(octets[:6] + GUEST + octets[12:])

    def flows(self, jitsu: Any = None) -> list[tuple[str, int, int]]:
        """Return the flows that a Jitsu was told of."""
        calls = (jitsu or self.jitsu).calls
        return [tuple(more.values()) for command, more in calls if command is messages.Flows]

    def test_flows(self) -> None:
        """Jitsu is told of a change of its VM's flows, at most once a second for a VM; on a new connection, at once."""
        other = bytes([10, 0, 0, 11])
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False)
        self.synjitsu.announce(self.jitsu, other, (GUEST,), asleep=False)
        self.synjitsu.ready(self.jitsu, VM, (GUEST,))
        self.flow(SYN | ACK)
        self.flow(SYN | ACK, sport=5)
        self.assertEqual([], self.flows())
        self.clock.advance(1)
        self.assertEqual([(IP, 2, 1)], self.flows())
        self.clock.pump([1] * 5)
        self.assertEqual(1, len(self.flows()))
        self.flow(RST)
        self.synjitsu.ready(self.jitsu, VM, (GUEST,))
        self.clock.advance(1)
        self.assertEqual((IP, 1, 7), self.flows()[-1])
        self.synjitsu.lost(self.jitsu)
        back: Any = self.Jitsu()
        for ip in (VM, other):
            self.synjitsu.announce(back, ip, (GUEST,), asleep=True)
        self.assertEqual([(IP, 1, 7)], self.flows(back))
        self.synjitsu.announce(back, VM, (GUEST,), asleep=False)
        self.flow(RST, sport=5)
        self.clock.advance(1)
        self.assertEqual([(IP, 1, 7), (IP, 0, 0)], self.flows(back))
        self.assertEqual(2, len(self.flows()))

    def begin_with_file(self) -> Synjitsu:
        """Begin with a file of flows, and a VM that boots."""
        self.flow_file = self.mktemp()
        self.synjitsu = self.make()
        self.synjitsu.open()
        self.synjitsu.read_flows()
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False)
        return self.synjitsu

    def test_flows_kept(self) -> None:
        """After a restart, even without an end, flows are known, and their segments captured, before Jitsu is there."""
        self.synjitsu.stopService()
        first = self.begin_with_file()
        self.flow(SYN | ACK)
        self.flow(SYN | ACK, sport=5)
        self.clock.advance(1)
        self.flow(SYN | ACK, sport=6)
        first._flow_file.close()  # as the kernel does
        self.synjitsu = self.make()
        self.pcap.filters.clear()
        self.synjitsu.open()
        self.synjitsu.read_flows()
        self.assertIn("tcp[13] & 7 != 0", self.pcap.filters[-1])
        self.assertNotIn("ip6", self.pcap.filters[-1])
        self.flow(RST, sport=5)
        back: Any = self.Jitsu()
        self.synjitsu.announce(back, VM, (GUEST,), asleep=True, memory=True)
        self.assertEqual([(IP, 1, 1)], self.flows(back))
        self.assertEqual(PEER, self.pcap.sent[-1][:6])
        self.frame(tcp_frame(flags=ACK, data=b"data"))
        self.assertIs(messages.Summon, back.calls[-1][0])

    def test_flows_saved(self) -> None:
        """Not more flows are saved in one tick than do not keep packets waiting; at the end, all are."""
        self.patch(service, "SAVED_PER_TICK", 5)
        synjitsu = self.begin_with_file()
        for port in range(20):
            self.flow(SYN | ACK, sport=port)
        for left in (15, 10):
            self.clock.advance(1)
            self.assertEqual(left, len(synjitsu.standins.flows.unsaved))
        synjitsu.stopService()
        self.synjitsu = self.make()
        self.synjitsu.open()
        self.synjitsu.read_flows()
        self.assertEqual(20, len(self.synjitsu.standins.flows))

    def test_flows_elsewhere(self) -> None:
        """Flows on an interface that Synjitsu no longer has are not known after a restart."""
        first = self.begin_with_file()
        self.flow(SYN | ACK)
        (flow,) = first.standins.flows.of(VM)
        flow.peer = attrs.evolve(flow.peer, port="br1")
        first._flow_file.write({flow.slot: flow})
        first._flow_file.close()
        again = self.make()
        again.open()
        again.read_flows()
        self.assertEqual(0, len(again.standins.flows))

    def test_comes_back(self) -> None:
        """A Jitsu that connects again keeps the addresses that it announces again, and loses the others."""
        other = bytes([10, 0, 0, 11])
        for ip in (VM, other):
            self.synjitsu.announce(self.jitsu, ip, (GUEST,), asleep=True)
        self.synjitsu.lost(self.jitsu)
        self.frame(tcp_frame())
        back: Any = self.Jitsu()
        self.synjitsu.announce(back, VM, (GUEST,), asleep=True)
        self.synjitsu.announced_all()
        self.assertEqual([VM], list(self.synjitsu.standins.table))
        self.assertEqual(1, self.synjitsu.standins.syns.total)
        self.frame(tcp_frame(sport=5))
        self.assertEqual(1, len(back.calls))
        self.clock.pump([1.0] * 20)
        self.assertEqual([VM], list(self.synjitsu.standins.table))

    def test_flood_of_summons(self) -> None:
        """A Jitsu that acknowledges no summons gets `SUMMONS` at most, half of them for clients that sent twice."""
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=True)
        for number in range(1000):
            self.frame(tcp_frame(number.to_bytes(4)))
        self.assertEqual(SUMMONS // 2, len(self.jitsu.calls))
        self.clock.advance(1.0)
        self.frame(tcp_frame((5).to_bytes(4)))
        self.assertEqual(SUMMONS // 2 + 1, len(self.jitsu.calls))

    def test_refuses(self) -> None:
        """Synjitsu stands in for no address of the host, of a router, or outside the bridge's networks."""
        self.kernel.own = ("10.0.0.1/24", "fd00::1/64", "fe80::1/64")
        self.kernel.routers, self.kernel.behind = ("10.0.0.254",), ("10.7.0.9",)
        self.synjitsu.open()
        network = "is in no network of br0: correct the VM's ip, or give the bridge its network"
        for ip, reason in (
            ("10.0.0.10", ""), ("10.0.0.1", "is an address of this host"), ("fe80::1", "is an address of this host"),
            ("10.0.0.254", "is the gateway of this host's default route"), ("10.0.1.10", network), ("10.7.0.9", ""),
            ("fd00::10", ""), ("fd01::10", network), ("10.0.0.255", "is the broadcast address of 10.0.0.0/24"),
        ):
            self.assertEqual(reason, self.refused(ip), ip)
            self.assertEqual(not reason, ip_address(ip).packed in self.synjitsu.standins.table)
        with self.assertRaises(messages.Refused):
            self.synjitsu.ready(self.jitsu, ip_address("10.0.0.1").packed, (GUEST,))

    def test_no_network(self) -> None:
        """Where the host has no address on the bridge, Synjitsu stands in for any address but a router's."""
        self.kernel.own, self.kernel.routers = ("fe80::1/64",), ("10.0.0.254",)
        self.synjitsu.open()
        self.assertEqual(["", "", "is the gateway of this host's default route"],
                         list(map(self.refused, ("10.0.0.10", "fd00::10", "10.0.0.254"))))
        for ip in ("127.0.0.1", "224.0.0.1", "::ffff:10.0.0.10", "::1", "ff02::1", "255.255.255.255", "0.0.0.0"):  # noqa: S104
            self.assertNotEqual("", self.refused(ip), ip)

    def test_networks_change(self) -> None:
        """An address that becomes the host's own is given up; a refused one is announced again when it may be."""
        self.kernel.own = ("10.0.0.1/24",)
        self.synjitsu.open()
        self.assertEqual("", self.refused("10.0.0.10"))
        self.assertNotEqual("", self.refused("10.1.0.10"))
        self.kernel.own, self.kernel.changes = ("10.0.0.1/24", "10.0.0.10/24"), True
        self.synjitsu._read_host_changes()
        self.assertEqual(({}, False), (self.synjitsu.standins.table, self.jitsu.lost))
        self.kernel.own = ("10.0.0.1/24", "10.1.0.1/24")
        self.synjitsu._read_host_changes()
        self.assertTrue(self.jitsu.lost)

    def test_learns(self) -> None:
        """A MAC is the guest's if it is behind the guest's port; another MAC gets nothing."""
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False)
        self.frame(arp_frame(1, PEER, VM, VM))
        self.assertEqual([], self.jitsu.calls)
        self.kernel.same = {PEER}
        self.frame(arp_frame(1, PEER, VM, VM))
        self.assertEqual([messages.Seen], [command for command, _ in self.jitsu.calls])
        self.assertEqual(PEER, self.synjitsu.standins.table[VM].mac)

    def test_elsewhere(self) -> None:
        """Synjitsu reports a guest that uses another address to Jitsu."""
        self.synjitsu.announce(self.jitsu, VM, (GUEST,), asleep=False)
        self.frame(arp_frame(1, GUEST, bytes([10, 0, 0, 77]), PEER[:4]))
        self.clock.pump([1.0] * 7)
        self.assertEqual([(messages.Elsewhere, {"ip": IP, "found": "10.0.0.77"})], self.jitsu.calls)

    def test_reports(self) -> None:
        """Why Synjitsu has no port in a bridge is logged, once."""
        said: list[Any] = []
        observer: Any = said.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.kernel.changes = True
        for fails, remedy in ((OSError(errno.EPERM, "no"), "it takes CAP_NET_ADMIN"), (NotABridgeError(), "no Linux")):
            said.clear()
            self.kernel.fails = fails
            self.synjitsu._read_host_changes()
            self.synjitsu._read_host_changes()
            self.assertEqual(1, len(said))
            self.assertIn(remedy, said[0]["report"])

    def test_listed(self) -> None:
        """Synjitsu stands in for an address of ``--standin`` from its start until the guest shows itself."""
        self.synjitsu = self.make({VM: GUEST})
        self.frame(tcp_frame())
        self.assertIs(State.BOOTING, self.synjitsu.standins.table[VM].state)
        self.frame(arp_frame(1, PEER, VM, VM), arp_frame(1, GUEST, VM, VM))
        self.assertIs(State.UP, self.synjitsu.standins.table[VM].state)
        self.assertEqual(1, self.synjitsu.standins.counters["handed_over"])


class DescriptionTests(SynchronousTestCase):
    """Endpoints as operators write them."""

    def test_client(self) -> None:
        """The client takes host:port as well as any description of Twisted's."""
        for text, expected in (
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("10.0.0.1:99", "tcp:10.0.0.1:99"),
            ("[fd00::1]:99", r"tcp:fd00\:\:1:99"),
            ("tls:example.org:99", "tls:example.org:99"),
        ):
            self.assertEqual(expected, description(text))

    def test_server(self) -> None:
        """The server takes the same; a UNIX socket is for its owner only, unless the description has a mode."""
        for text, expected in (
            ("unix:/run/x.sock", "unix:/run/x.sock:mode=600:lockfile=0"),
            ("unix:/run/x.sock:mode=660", "unix:/run/x.sock:mode=660"),
            ("10.0.0.1:99", "tcp:99:interface=10.0.0.1"),
            ("tcp:99", "tcp:99"),
            ("[fd00::1]:99", r"tcp6:99:interface=fd00\:\:1"),
        ):
            self.assertEqual(expected, tap.description(text))
