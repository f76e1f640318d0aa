"""
`twistd synjitsu` on a bridge between network namespaces, told by a `SynjitsuClient`: clients, routers and guests are
Linux.

The guest is a namespace whose interface and whose server come up when the test says so: as a VM, only sooner. What a
client must not notice is read from its kernel's counters and its sockets.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from jitsu_tw.synjitsu_client import SynjitsuClient
from test.support.netns_lab import PATIENCE, NetnsLab, Program
from test.unit.synjitsu.test_packets import TAG, arp_frame, tcp_frame

if TYPE_CHECKING:
    from collections.abc import Callable

BIN: Final = Path(sys.executable).parent
MAC: Final = "52:54:00:09:00:10"
IP: Final = "10.9.0.10"
IP6: Final = "fd09::10"


#: How the two below read frames. libpcap shows tags that the kernel hides.
READS: Final = """
import select, sys
from synjitsu_tw.capture import open_pcap
pcap, frames = open_pcap("eth0"), []
def take():
    while not frames:
        select.select([pcap], [], [])
        pcap.dispatch(1, lambda _, octets: frames.append(bytes(octets)))
    return frames.pop()
"""

#: Sends one frame, prints what comes back to its MAC, and sends another.
TAGGED: Final = f"""{READS}
first, second = map(bytes.fromhex, sys.argv[1:])
pcap.setfilter(f"ether dst {{first[6:12].hex(':')}}")
pcap.sendpacket(first)
print(take().hex(), flush=True)
pcap.sendpacket(second)
sys.stdin.read()
"""

#: Sends a frame, and prints the first IPv4 packet in a VLAN that it sees.
WATCHES: Final = f"""{READS}
pcap.setfilter("vlan and ip")
print("ready", flush=True)
pcap.sendpacket(bytes.fromhex(sys.argv[1]))
print(take().hex(), flush=True)
sys.stdin.read()
"""

#: Refuses whatever TCP comes, to whatever MAC, as some small stacks do while their program does not listen.
REFUSES: Final = """
import struct, socket
one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
one.bind(("eth0", 0))
print("ready", flush=True)
while True:
    octets = one.recv(65536)
    if octets[12:14] == b"\\x08\\0" and octets[23] == 6 and octets[47] & 2:
        ip, tcp = octets[14:34], octets[34:54]
        head = ip[16:20] + ip[12:16] + struct.pack(">HH", 6, 20)
        ack = int.from_bytes(tcp[4:8], "big") + 1
        body = tcp[2:4] + tcp[:2] + bytes(4) + struct.pack(">IBBHHH", ack, 0x50, 0x14, 0, 0, 0)
        def summed(data):
            total = sum(struct.unpack(f">{len(data) // 2}H", data))
            return 0xFFFF - ((total & 0xFFFF) + (total >> 16))
        body = body[:16] + struct.pack(">H", summed(head + body)) + body[18:]
        front = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
        front = front[:10] + struct.pack(">H", summed(front + ip[16:20] + ip[12:16])) + ip[16:20] + ip[12:16]
        one.send(octets[6:12] + octets[:6] + octets[12:14] + front + body)
"""

#: Counts frames until standard input ends: TCP, and others.
COUNTS: Final = """
import select, socket, sys
one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
one.bind(("eth0", 0))
print("ready", flush=True)
tcp = other = 0
while sys.stdin not in select.select([one, sys.stdin], [], [])[0]:
    octets, where = one.recvfrom(65536)
    if where[2] != 4:  # PACKET_OUTGOING
        is_tcp = octets[12:14] == b"\\x08\\0" and octets[23] == 6
        tcp, other = tcp + is_tcp, other + (not is_tcp)
print(tcp, other, flush=True)
"""

#: Seconds until Linux sends a SYN again, less a little.
RETRANSMITS: Final = 0.95

#: Sends one ICMP echo request.
PING: Final = """
import socket, sys
one = socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
one.sendto(bytes.fromhex("0800f7ff00000000"), (sys.argv[1], 0))
"""


async def pause(seconds: float) -> None:
    """Run the reactor."""
    await deferLater(reactor, seconds)


class SynjitsuTestCase(TestCase):
    """Has a lab with a client and a guest that is off, a Synjitsu, and a Jitsu's side of it."""

    timeout = 40
    arguments: tuple[str, ...] = ()

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        """Begin with a VM that is asleep."""
        missing = [program for program in ("ip", "unshare", "nsenter", "nstat", "sysctl") if not shutil.which(program)]
        if missing or os.geteuid() != 0:
            raise SkipTest(f"needs root and {', '.join(missing) or 'nothing else'}")
        self.folder = Path(tempfile.mkdtemp(prefix="synjitsu-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.lab = NetnsLab(self.addCleanup)
        self.lay_out()
        self.summoned: list[tuple[str, str, bool]] = []
        self.seen: list[str] = []
        self.synjitsu = self.begin()
        self.ready: list[str] = []
        self.standin = SynjitsuClient(
            f"unix:{self.folder}/socket",
            lambda *what: self.summoned.append(what),
            self.seen.append,
            reactor,
            self.ready.append,
        )
        self.standin.start()
        self.addCleanup(self.standin.stop)
        await self.until(lambda: self.standin.connected)

    def lay_out(self) -> None:
        """Plug in the client and the guest."""
        self.lab.plug("client", "10.9.0.2/24", "fd09::2/64")
        self.plug_guest()

    def plug_guest(self) -> None:
        """Plug in a guest that is off: its link is down."""
        self.lab.plug("guest", up=False)
        self.lab.run("guest", f"ip link set eth0 address {MAC}")
        self.guest = self.lab.guest()

    def begin(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start a Synjitsu and wait for its socket."""
        socket = self.folder / "socket"
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self.lab.command(
                    "host", *prefix, str(BIN / "twistd"), "-n", "--pidfile=", "synjitsu", "-i", "br0", "--listen",
                    f"unix:{socket}", *self.arguments,
                ),
                cwd=self.folder, stdout=log, stderr=log,
            )
        self.addCleanup(self.end, process)
        until = time.monotonic() + PATIENCE
        while not socket.exists():
            self.assertIsNone(process.poll(), self.log())
            self.assertLess(time.monotonic(), until, self.log())
            time.sleep(0.01)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End it, and see that it had no trouble."""
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        self.assertNotIn("Traceback", self.log())

    def log(self) -> str:
        """Return Synjitsu's log."""
        return (self.folder / "log").read_text()

    def own_mac(self) -> bytes:
        """Return the stand-in's MAC, which Synjitsu has logged."""
        return bytes.fromhex(self.log().partition("announces, at ")[2][:17].replace(":", ""))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something."""
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, self.log())
            await pause(0.005)

    async def held(self, count: int = 1) -> None:
        """Wait until *count* packets are held."""
        while (await self.counters())["held_now"] < count:
            await pause(0.01)

    async def counters(self) -> dict[str, int]:
        """Return Synjitsu's counters."""
        counters: dict[str, int] = (await self.standin.status())["counters"]
        return counters

    async def announce(self, *, asleep: bool = True, ip: str = IP, mac: str = MAC, **more: Any) -> None:
        """Announce the guest's address, and wait until Synjitsu stands in for it."""
        self.standin.announce(ip, [mac] if mac else [], asleep=asleep, **more)
        await self.counters()

    def boot(self, *more: str) -> None:
        """Bring up the guest's network, and run further commands of ip(8)."""
        addresses = (f"address add {IP}/24 dev eth0", f"address add {IP6}/64 dev eth0 nodad")
        self.lab.batch("guest", "link set eth0 up", *addresses, *more)

    async def serve(self, ip: str = IP, port: int = 80, mac: str = "", *, udp: bool = False) -> float:
        """Make the guest listen, and hand over at once; return when it listened."""
        at = NetnsLab.listen(self.guest, ip, port, udp=udp)
        self.standin.ready(ip, [mac] if mac else [])
        await pause(0)
        return at

    async def ends_well(
        self, client: Program, at: float = 0.0, where: str = "client", *, refuses: bool = False
    ) -> None:
        """
        Check that a client was connected, and that its kernel has sent nothing twice and was refused nothing.

        A guest *refuses* probes until it listens, and the end of a connection that a copy of a SYN with data, which
        comes when its client has gone, has opened (RFC 7413, 2.1).
        """
        while client.process.poll() is None:
            await pause(0.005)
        result = client.result()
        self.assertEqual(("hello", None), (result.get("said"), result.get("error")), self.log())
        self.assertGreaterEqual(result["connected"], at)
        self.assertEqual(0, self.lab.count(where, "TcpAttemptFails"))
        # On a slow machine the guest may come up later than the client's kernel waits for.
        if result["connected"] - result["begun"] < RETRANSMITS:
            for name in ("TcpRetransSegs", "TcpExtTCPSynRetrans"):
                self.assertEqual(0, self.lab.count(where, name), name)
        elif not result["fast"]:  # data of a SYN are sent again, too
            self.assertEqual(self.lab.count(where, "TcpExtTCPSynRetrans"), self.lab.count(where, "TcpRetransSegs"))
        if not refuses:
            self.assertEqual(0, self.lab.count("guest", "TcpOutRsts"))

    async def woken(self, where: str = "client", ip: str = IP, **more: Any) -> None:
        """Check the whole life: a client's SYN summons, is held while the guest boots, and is handed over."""
        await self.announce(ip=ip, **more)
        client = self.lab.connect(where, ip)
        await self.until(lambda: self.summoned)
        self.assertEqual(ip, self.summoned[0][0])
        await self.announce(ip=ip, asleep=False, **more)
        await pause(0.1)
        self.boot()
        await pause(0.1)
        at = await self.serve(ip)
        await self.ends_well(client, at, where)


class WakeTests(SynjitsuTestCase):
    """A client uses an address of a VM that is off."""

    async def test_ipv4(self) -> None:
        """Its first SYN is what it is connected by; afterwards it talks with the guest itself."""
        await self.woken(ports=[80])
        self.assertEqual((IP, "10.9.0.2", False), self.summoned[0])
        self.assertEqual(MAC, self.lab.neighbour("client", IP))
        counters = await self.counters()
        self.assertEqual((1, 1, 0), tuple(counters[key] for key in ("held", "handed_over", "held_now")))

    async def test_ipv6(self) -> None:
        """The same over IPv6."""
        await self.woken(ip=IP6)
        self.assertEqual((IP6, "fd09::2", False), self.summoned[0])
        self.assertEqual(MAC, self.lab.neighbour("client", IP6))

    async def test_stale_mac(self) -> None:
        """A client that still knows the guest's MAC from before wakes it as well."""
        self.lab.run("client", f"ip neigh replace {IP} lladdr {MAC} dev eth0 nud reachable")
        await self.woken()

    async def test_nothing_else_wakes(self) -> None:
        """ARP, ping, UDP and SYNs to other ports wake nothing; addresses that were not announced are not answered."""
        await self.announce(ports=[80])
        ping = self.lab.start("client", sys.executable, "-c", PING, IP)
        other = self.lab.connect("client", IP, 81, timeout=0.3)
        datagrams = self.lab.send("client", IP, 443, ["one"], timeout=0.3)
        stranger = self.lab.connect("client", "10.9.0.11", timeout=0.3)
        for program in (ping, other, datagrams, stranger):
            program.process.wait(PATIENCE)
        await pause(0.05)
        self.assertIsNotNone(self.lab.neighbour("client", IP))
        self.assertIsNone(self.lab.neighbour("client", "10.9.0.11"))
        self.assertEqual([], self.summoned)
        self.assertEqual(0, (await self.counters())["held"])

    async def test_fast_open(self) -> None:
        """A SYN with data (TCP Fast Open) is handed over with its data."""
        self.lab.sysctl("guest", net__ipv4__tcp_fastopen=3 | 0x200)
        self.lab.sysctl("client", net__ipv4__tcp_fastopen=1 | 4)
        await self.announce()
        client = self.lab.connect("client", IP, fast=True)
        await self.until(lambda: self.summoned)
        self.boot()
        await self.serve()
        await self.ends_well(client, refuses=True)

    async def test_udp(self) -> None:
        """The first datagrams to `wake_udp` are held and handed over in their order; those to others are not."""
        await self.announce(wake_udp=[443])
        sender = self.lab.send("client", IP, 443, ["one", "two", "three"])
        await self.until(lambda: self.summoned)
        await self.held(3)
        self.boot()
        await self.serve(port=443, udp=True)
        while sender.process.poll() is None:
            await pause(0.01)
        self.assertEqual(["one", "two", "three"], sender.result()["said"])

    async def test_vlan(self) -> None:
        """In a VLAN: an answer has the question's tag, and a SYN is handed over with its own."""
        await self.announce()
        mac = bytes.fromhex(self.lab.mac("client").replace(":", ""))
        client, vm = ip_address("10.9.0.2").packed, ip_address(IP).packed
        syn = tcp_frame(client, vm, self.own_mac(), TAG)
        frames = (arp_frame(1, mac, client, vm, tags=TAG), syn[:6] + mac + syn[12:])
        program = self.lab.start("client", sys.executable, "-c", TAGGED, *(frame.hex() for frame in frames))
        answer = bytes.fromhex(program.line())
        self.assertEqual((mac, self.own_mac(), TAG), (answer[:6], answer[6:12], answer[12:16]))
        await self.until(lambda: self.summoned)
        self.lab.run("guest", "ip link set eth0 up")
        own = bytes.fromhex(MAC.replace(":", ""))
        announcement = arp_frame(1, own, vm, vm, tags=TAG)
        guest = self.lab.start("guest", sys.executable, "-c", WATCHES, announcement.hex())
        guest.line()
        self.standin.ready(IP, [MAC])
        await pause(0.1)
        self.assertEqual(bytes.fromhex(MAC.replace(":", "")) + frames[1][6:], bytes.fromhex(guest.line()))


class CypcapTests(WakeTests):
    """The same by cypcap, which serves where pypcap cannot be installed."""

    def begin(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start a Synjitsu that finds no pypcap."""
        (self.folder / "pcap.py").write_text("raise ImportError")
        return super().begin(*prefix, "env", f"PYTHONPATH={self.folder}")


class BootTests(SynjitsuTestCase):
    """What may happen while a guest boots."""

    async def test_up_but_not_listening(self) -> None:
        """A guest that is on the network, and uses it, but does not listen yet, refuses nobody."""
        await self.announce()
        first = self.lab.connect("client", IP)
        await self.until(lambda: self.summoned)
        await self.announce(asleep=False)
        self.boot()
        other = self.lab.guest("client")
        NetnsLab.listen(other, "10.9.0.2", 8000)
        # The guest's own connection works: by it the client learns its MAC, and gets the stand-in's again.
        outward = self.lab.connect("guest", "10.9.0.2", 8000)
        while outward.process.poll() is None:
            await pause(0.005)
        self.assertEqual("hello", outward.result()["said"])
        second = self.lab.connect("client", IP)
        await self.held(2)
        at = await self.serve()
        await self.ends_well(first, at)
        await self.ends_well(second, at)

    async def test_ignores_gratuitous_arp(self) -> None:
        """A peer that believes nothing that it has not asked for is served all the same."""
        self.lab.sysctl("client", net__ipv4__conf__eth0__drop_gratuitous_arp=1)
        self.lab.sysctl("client", net__ipv4__neigh__eth0__locktime=100000)
        await self.woken()

    async def test_never_learns(self) -> None:
        """What a peer that never learns sends after the handover is passed on, however long a segment it makes."""
        mac = self.own_mac().hex(":")
        self.lab.run("client", f"ip neigh replace {IP} lladdr {mac} dev eth0 nud permanent")
        words = "x" * 50_000
        await self.announce(asleep=False)
        client = self.lab.connect("client", IP, words=words)
        await self.held()
        self.boot()
        await self.serve()
        while client.process.poll() is None:
            await pause(0.005)
        result = client.result()
        self.assertEqual((words, 0), (result["said"], result["lost"]))
        self.assertEqual(mac, self.lab.neighbour("client", IP))
        self.assertGreater((await self.counters())["passed_on"], 10)

    async def test_killed(self) -> None:
        """Synjitsu is killed in the middle: its successor stands in as it did, and holds the client's next SYN."""
        await self.announce()
        client = self.lab.connect("client", IP)
        await self.until(lambda: self.summoned)
        await self.announce(asleep=False)
        await pause(0.05)
        self.synjitsu.kill()
        self.synjitsu.wait()
        await self.until(lambda: not self.standin.connected)
        self.begin()
        await self.until(lambda: self.standin.connected)
        await self.held()
        self.boot()
        await self.serve()
        while client.process.poll() is None:
            await pause(0.005)
        result = client.result()
        self.assertEqual("hello", result["said"])
        self.assertEqual(0, self.lab.count("client", "TcpAttemptFails"))

    async def test_killed_after_the_handover(self) -> None:
        """Killed when peers may still have the stand-in's MAC for the guest: they get the guest's when they send."""
        await self.woken()
        self.synjitsu.kill()
        self.synjitsu.wait()
        stand_in = "02:00:00:00:00:01"
        self.lab.run("client", f"ip neigh replace {IP} lladdr {stand_in} dev eth0 nud reachable")
        await self.until(lambda: not self.standin.connected)
        self.begin()
        end = time.monotonic() + PATIENCE
        while self.lab.neighbour("client", IP) != MAC:
            self.assertLess(time.monotonic(), end, self.log())
            ping = self.lab.start("client", sys.executable, "-c", PING, IP)
            ping.process.wait(PATIENCE)
            await pause(0.1)

    async def test_moves(self) -> None:
        """An address that moves to another MAC: the next handover is to that one."""
        await self.woken()
        self.lab.run("guest", f"ip address del {IP}/24 dev eth0")
        moved = "52:54:00:09:00:11"
        self.lab.plug("guest", up=False, device="eth1")
        self.lab.run("guest", f"ip link set eth1 address {moved}")
        await self.announce()
        client = self.lab.connect("client", IP)
        await self.held()
        await self.announce(asleep=False, mac=moved)
        self.lab.run("guest", "ip link set eth0 down")
        self.lab.run("guest", "ip link set eth1 up")
        self.lab.address("guest", f"{IP}/24", "eth1")
        self.standin.ready(IP, [moved])
        await self.ends_well(client)
        self.assertEqual(moved, self.lab.neighbour("client", IP))

    async def test_two_at_once(self) -> None:
        """Two VMs boot at once; each gets its own."""
        self.lab.plug("second", up=False)
        other_mac, other_ip = "52:54:00:09:00:12", "10.9.0.12"
        self.lab.run("second", f"ip link set eth0 address {other_mac}")
        second = self.lab.guest("second")
        await self.announce(asleep=False)
        await self.announce(asleep=False, ip=other_ip, mac=other_mac)
        clients = [self.lab.connect("client", ip) for ip in (IP, other_ip)]
        await self.held(2)
        self.boot()
        self.lab.run("second", "ip link set eth0 up")
        self.lab.address("second", f"{other_ip}/24")
        NetnsLab.listen(second, other_ip)
        self.standin.ready(other_ip)
        await self.ends_well(clients[1])
        self.assertIsNone(clients[0].process.poll())
        await self.serve()
        await self.ends_well(clients[0])

    async def test_anothers_address(self) -> None:
        """A guest that claims another's address is logged and not served."""
        self.lab.plug("thief")
        await self.announce(asleep=False)
        client = self.lab.connect("client", IP)
        await self.held()
        self.lab.address("thief", f"{IP}/24")
        thief = self.lab.guest("thief")
        NetnsLab.listen(thief, IP)
        self.lab.connect("thief", "10.9.0.2", timeout=0.2).process.wait(PATIENCE)  # asks for the client, as IP
        await self.until(lambda: "the address of a VM that does not have this MAC" in self.log())
        self.assertIn(self.lab.mac("thief"), self.log())
        self.assertEqual([], self.seen)
        self.lab.run("thief", "ip link set eth0 down")
        self.boot()
        at = await self.serve()
        await self.ends_well(client, at)

    async def test_bridge_comes_back(self) -> None:
        """A bridge that goes and comes is captured again."""
        self.lab.run("host", "ip link del br0")
        await self.until(lambda: "br0 has vanished" in self.log())
        self.lab.bridge("br0", "10.9.0.1/24")
        for name in ("clienteth0", "guesteth0"):
            self.lab.run("host", f"ip link set {name} master br0")
        await self.until(lambda: "br0 is back" in self.log())
        await self.woken()


class KnockTests(SynjitsuTestCase):
    """Synjitsu finds out by itself when the guest listens."""

    async def test_probe(self) -> None:
        """While a guest only refuses, nothing is handed over; when it listens, at once, and Jitsu gets `Listens`."""
        for ip in (IP, IP6):
            await self.announce(ip=ip, asleep=False, knock=80)
        clients = [self.lab.connect("client", ip) for ip in (IP, IP6)]
        await self.held(2)
        self.boot()
        await pause(0.2)
        self.assertEqual([], self.ready)
        for ip, client in zip((IP, IP6), clients, strict=True):
            at = NetnsLab.listen(self.guest, ip, 80)
            while client.process.poll() is None:
                await pause(0.005)
            result = client.result()
            self.assertEqual("hello", result["said"])
            self.assertLess(at, result["connected"])
        await self.until(lambda: len(self.ready) >= 2)
        self.assertEqual([IP, IP6], self.ready)
        self.assertEqual(0, self.lab.count("client", "TcpAttemptFails"))
        self.assertEqual({"up"}, {one["state"] for one in (await self.standin.status())["standins"]})


class PortTests(SynjitsuTestCase):
    """Synjitsu's own port in the bridge."""

    def port(self) -> int | None:
        """Return the number of the port, if it is there."""
        links = json.loads(self.lab.run("host", "ip -json link show master br0"))
        return next((link["ifindex"] for link in links if link["ifname"] == "syn-br0"), None)

    async def test_stays(self) -> None:
        """It is found again after `kill -9` and after an orderly end, and made again when an operator removes it."""
        number = self.port()
        self.assertIsNotNone(number)
        for sign in (signal.SIGKILL, signal.SIGTERM):
            self.synjitsu.send_signal(sign)
            self.synjitsu.wait(PATIENCE)
            await self.until(lambda: not self.standin.connected)
            self.assertEqual(number, self.port())
            self.synjitsu = self.begin()
            await self.until(lambda: self.standin.connected)
            self.assertEqual(number, self.port())
        self.lab.run("host", "ip link del syn-br0")
        await self.until(lambda: self.port() not in {None, number})
        entries = self.lab.run("host", "bridge fdb show br br0 dev syn-br0")
        self.assertIn(self.own_mac().hex(":"), entries)
        await self.woken()

    async def test_unplugged(self) -> None:
        """It is plugged in again when it has been taken out of the bridge, or either end was set down."""
        for change in ("syn-br0 nomaster", "syn-br0 down", "syn-br0-i down"):
            self.lab.run("host", f"ip link set {change}")
            await self.until(lambda: "state forwarding" in self.lab.run("host", "bridge link show dev syn-br0"))

    async def test_mac(self) -> None:
        """The MAC of a bridge that has guests only is the same whatever taps come and go."""
        mac = self.lab.mac("host", "br0")
        self.lab.run("host", "ip link add lowest address 02:00:00:00:00:01 type veth peer name other")
        self.lab.run("host", "ip link set lowest master br0 up")
        self.assertEqual(mac, self.lab.mac("host", "br0"))
        for device in ("lowest", "clienteth0", "guesteth0"):
            self.lab.run("host", f"ip link del {device}")
        self.assertEqual(mac, self.lab.mac("host", "br0"))

    async def test_mtu(self) -> None:
        """The bridge's MTU is what it would be without that port."""
        for mtu in (1400, 9000):
            for device in ("clienteth0", "guesteth0"):
                self.lab.run("host", f"ip link set {device} mtu {mtu}")
            await self.until(lambda: f" mtu {mtu} " in self.lab.run("host", "ip link show br0"))  # noqa: B023

    async def test_sees_nothing(self) -> None:
        """Nothing is flooded to it from other ports, and its far end neither answers nor has an address."""
        entries = json.loads(self.lab.run("host", "bridge -json -details link show dev syn-br0"))
        flags = ("flood", "mcast_flood", "bcast_flood", "learning")
        self.assertEqual([False] * 4, [entries[0][flag] for flag in flags])
        for address in ("10.9.0.1", "10.9.0.99"):
            self.lab.connect("client", address, timeout=0.1).process.wait(PATIENCE)
        self.assertEqual(self.lab.mac("host", "br0"), self.lab.neighbour("client", "10.9.0.1"))
        far = json.loads(self.lab.run("host", "ip -json address show dev syn-br0-i"))[0]
        self.assertEqual([], far["addr_info"])
        self.assertIn("NOARP", far["flags"])

    async def test_anothers(self) -> None:
        """An interface that has the port's name and is not Synjitsu's is left alone, and reported."""
        self.lab.run("host", "ip link del syn-br0")
        await self.until(lambda: self.port() is not None)
        self.synjitsu.kill()
        self.synjitsu.wait(PATIENCE)
        await self.until(lambda: not self.standin.connected)
        self.lab.run("host", "ip link del syn-br0")
        self.lab.run("host", "ip link add syn-br0 type bridge")
        self.begin()
        await self.until(lambda: "an interface syn-br0 that is not Synjitsu's" in self.log())
        await self.until(lambda: self.standin.connected)
        await self.woken()


class AloneTests(SynjitsuTestCase):
    """A bridge with nothing plugged in, which has no carrier therefore."""

    def lay_out(self) -> None:
        """Put a client behind the host; the guest is plugged in when it boots. The bridge has lost its last port."""
        self.lab.plug("gone")
        self.lab.run("host", "ip link del goneeth0")
        self.lab.cable("host", "far")
        self.lab.run("host", "ip address add 10.8.0.1/24 dev far")
        self.lab.address("far", "10.8.0.2/24", "host")
        self.lab.run("far", "ip route add default via 10.8.0.1")
        self.lab.sysctl("host", net__ipv4__ip_forward=1)

    async def first(self, where: str) -> None:
        """Check that a client wakes the first VM."""
        await self.until(lambda: "LOWER_UP" in self.lab.run("host", "ip link show br0"))
        await self.announce(knock=80)
        client = self.lab.connect(where, IP)
        await self.until(lambda: self.summoned)
        await self.announce(asleep=False, knock=80)
        self.plug_guest()
        self.boot("route add default via 10.9.0.1")
        NetnsLab.listen(self.guest, IP)
        await self.ends_well(client, where=where, refuses=True)
        await self.until(lambda: len(self.ready) >= 1)
        self.assertEqual([IP], self.ready)

    async def test_host(self) -> None:
        """A client on the host wakes the first VM."""
        await self.first("host")

    async def test_routed(self) -> None:
        """So does one that the host routes for."""
        await self.first("far")


class SpanningTreeTests(AloneTests):
    """The same as libvirt makes it, with the spanning tree protocol."""

    def lay_out(self) -> None:
        """Make the bridge so."""
        super().lay_out()
        self.lab.run("host", "ip link set br0 type bridge stp_state 1 forward_delay 200")

    async def test_host(self) -> None:
        """That is reported."""
        await super().test_host()
        self.assertIn("spanning tree", self.log())


class StrictTests(SynjitsuTestCase):
    """A guest that refuses whatever TCP comes before it listens, to whatever MAC; clients of all kinds."""

    def lay_out(self) -> None:
        """Plug in a client, a guest, and one behind the host."""
        super().lay_out()
        AloneTests.lay_out(self)  # type: ignore[arg-type]

    async def refuses(self, where: str) -> None:
        """Check that a client that waits is refused nothing."""
        await self.announce(asleep=False)
        self.lab.run("guest", "ip link set eth0 up")
        strict = self.lab.start("guest", sys.executable, "-c", REFUSES)
        strict.line()
        client = self.lab.connect(where, IP)
        await self.held()
        await pause(1.2)  # the client has sent again
        strict.process.kill()
        self.boot("route add default via 10.9.0.1")
        await self.serve()
        while client.process.poll() is None:
            await pause(0.005)
        self.assertEqual("hello", client.result().get("said"), self.log())
        self.assertEqual(0, self.lab.count(where, "TcpAttemptFails"))

    async def test_client(self) -> None:
        """One on the bridge."""
        await self.refuses("client")

    async def test_host(self) -> None:
        """The host itself."""
        await self.refuses("host")

    async def test_routed(self) -> None:
        """One that the host routes for."""
        await self.refuses("far")

    async def test_probes(self) -> None:
        """No probe reaches another port; a silent guest gets some requests, and is found all the same."""
        self.lab.sysctl("guest", net__ipv6__conf__all__disable_ipv6=1)
        self.lab.run("guest", "ip link set eth0 up")
        counts = [self.lab.start(where, sys.executable, "-c", COUNTS) for where in ("client", "guest")]
        for count in counts:
            count.line()
        begin = time.monotonic()
        await self.announce(asleep=False, knock=80)
        await pause(0.6)
        assert counts[1].process.stdin is not None
        counts[1].process.stdin.close()
        tcp, other = map(int, counts[1].line().split())
        self.assertEqual(0, tcp)
        self.assertLess(other, 30 * (time.monotonic() - begin))
        self.lab.address("guest", f"{IP}/24")
        NetnsLab.listen(self.guest, IP)
        await self.until(lambda: self.ready)
        assert counts[0].process.stdin is not None
        counts[0].process.stdin.close()
        self.assertEqual("0", counts[0].line().split()[0])


class MACTests(SynjitsuTestCase):
    """A guest whose address is not at its first interface's MAC."""

    INNER: Final = "52:54:00:09:00:77"

    async def inner(self, **more: Any) -> None:
        """Check that an address on a bridge inside the guest is handed over to that bridge's MAC."""
        self.lab.batch("guest", f"link add inner address {self.INNER} type bridge", "link set eth0 master inner",
                        "link set eth0 up", "link set inner up")
        await self.announce(asleep=False, knock=80, **more)
        client = self.lab.connect("client", IP)
        await self.held()
        self.lab.address("guest", f"{IP}/24", "inner")
        NetnsLab.listen(self.guest, IP)
        await self.ends_well(client, refuses=True)
        self.assertEqual(self.INNER, self.lab.neighbour("client", IP))
        await self.until(lambda: len(self.ready) >= 1)
        self.assertEqual([IP], self.ready)

    async def test_learnt(self) -> None:
        """The bridge has seen the known MAC behind the same port: the guest has used it before."""
        await self.inner()
        self.assertIn(f"{self.INNER} is its guest's, too", self.log())

    async def test_tap(self) -> None:
        """The known MAC is never seen, but the port is a tap that libvirt has made for it."""
        self.lab.run("host", f"ip link set guesteth0 address fe{MAC[2:]}")
        self.lab.run("guest", "ip link set eth0 address 52:54:00:09:00:55")
        await self.inner()

    async def test_lan(self) -> None:
        """What is behind the same port as the known MAC is a stranger where that port leads to a LAN."""
        self.lab.batch("host", "link add uplink type veth peer name lan", "link set lan up", "link set uplink up",
                        "link add link uplink name up0 type macvlan mode passthru", "link set up0 master br0 up")
        frames = [arp_frame(1, bytes.fromhex(mac.replace(":", "")), ip_address(ip).packed, ip_address(IP).packed)
                  for mac, ip in ((MAC, "10.9.0.99"), (self.INNER, IP))]
        await self.announce(asleep=False, knock=80)
        for frame in frames:
            sends = ("import socket; one = socket.socket(17, 3); one.bind(('lan', 0)); "
                     f"one.send(bytes.fromhex('{frame.hex()}'))")
            self.lab.start("host", sys.executable, "-c", sends).process.wait(PATIENCE)
        await self.until(lambda: "the address of a VM that does not have this MAC" in self.log())
        self.assertNotIn("as well", self.log())

    async def test_configured(self) -> None:
        """Both MACs are known: nothing need be found out."""
        await self.inner(mac=self.INNER)
        self.assertNotIn("as well", self.log())


class LeastTests(SynjitsuTestCase):
    """With CAP_NET_RAW alone: the bridge may not be changed."""

    def begin(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start it so."""
        raw = "-all,+net_raw"
        return super().begin("setpriv", f"--bounding-set={raw}", f"--inh-caps={raw}", *prefix)

    async def test_reports(self) -> None:
        """That is reported, and clients on the bridge are served as before."""
        self.assertIn("cannot have a port of its own in this bridge (Operation not permitted; it takes CAP_NET_ADMIN)",
                      self.log())
        await self.woken()


class FailureTests(SynjitsuTestCase):
    """A start that fails: silence."""

    answer: int | str = "timed out"

    async def test_failed(self) -> None:
        """What was held is dropped, and the client's next SYN gets what was configured."""
        await self.announce()
        client = self.lab.connect("client", IP, timeout=3)
        await self.until(lambda: self.summoned)
        self.standin.withdraw(IP, failed=True)
        while client.process.poll() is None:
            await pause(0.01)
        self.assertEqual(self.answer, client.result()["error"])
        counters = await self.counters()
        self.assertEqual((0, 1), (counters["held_now"], counters["dropped"]))
        self.assertLessEqual(1, counters["refused"])


class RefusedTests(FailureTests):
    """The same, with RST."""

    arguments = ("--refuse", "rst")
    answer = errno.ECONNREFUSED


class UnreachableTests(FailureTests):
    """The same, with ICMP."""

    arguments = ("--refuse", "unreachable")
    answer = errno.EHOSTUNREACH


class RouterTests(SynjitsuTestCase):
    """Clients that are not neighbours of the guest."""

    def lay_out(self) -> None:
        """Put a client behind a router on the bridge, and another one behind the host."""
        self.lab.plug("router", "10.9.0.3/24", "fd09::3/64")
        for router, net in (("router", 1), ("host", 2)):
            far = f"far{net}"
            self.lab.cable(router, far)
            self.lab.address(router, f"10.{net}.0.1/24", far)
            self.lab.address(router, f"fd0{net}::1/64", far)
            self.lab.address(far, f"10.{net}.0.2/24", router)
            self.lab.address(far, f"fd0{net}::2/64", router)
            self.lab.run(far, f"ip route add default via 10.{net}.0.1")
            self.lab.run(far, f"ip -6 route add default via fd0{net}::1")
        self.lab.sysctl("router", net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
        self.plug_guest()

    def boot(self, *more: str) -> None:
        """The guest has routes, too."""
        routes = [
            route
            for net, via in ((1, 3), (2, 1))
            for route in (f"route add 10.{net}.0.0/24 via 10.9.0.{via}", f"route add fd0{net}::/64 via fd09::{via}")
        ]
        super().boot(*routes, *more)

    def forward(self) -> None:
        """Make the host a router."""
        self.lab.sysctl("host", net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)

    async def test_router(self) -> None:
        """Through a router on the bridge."""
        await self.woken("far1")
        self.assertEqual((IP, "10.1.0.2", False), self.summoned[0])
        self.assertEqual(MAC, self.lab.neighbour("router", IP))

    async def test_router_and_host_forwards(self) -> None:
        """The same, with a host that would route frames if they were for it."""
        self.forward()
        await self.woken("far1")

    async def test_router_ipv6(self) -> None:
        """The same over IPv6."""
        await self.woken("far1", ip=IP6)

    async def test_host_routes(self) -> None:
        """The host is the router, as with libvirt's own networks."""
        self.forward()
        await self.woken("far2")
        self.assertEqual(MAC, self.lab.neighbour("host", IP))

    async def test_host_routes_ipv6(self) -> None:
        """The same over IPv6."""
        self.forward()
        await self.woken("far2", ip=IP6)

    async def test_host_itself(self) -> None:
        """A client on the host."""
        await self.woken("host")

    async def test_host_itself_knows_the_guest(self) -> None:
        """A client on the host, which still knows the guest's MAC from before."""
        self.lab.run("host", f"ip neigh replace {IP} lladdr {MAC} dev br0 nud reachable")
        await self.woken("host")

    async def test_host_knows_the_guest(self) -> None:
        """A host that still knows the guest's MAC from before."""
        self.forward()
        self.lab.run("host", f"ip neigh replace {IP} lladdr {MAC} dev br0 nud stale")
        await self.woken("far2")


class PrivilegeTests(SynjitsuTestCase):
    """With CAP_NET_RAW and CAP_NET_ADMIN alone, as nobody."""

    def begin(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start it so."""
        if not shutil.which("setpriv"):
            raise SkipTest("needs setpriv of util-linux")
        shutil.chown(self.folder, "nobody")
        (self.folder / "log").touch()
        both = "-all,+net_raw,+net_admin"
        words = ("--reuid=nobody", "--clear-groups", f"--bounding-set={both}", f"--inh-caps={both}",
                 f"--ambient-caps={both}")
        return super().begin("setpriv", *words, *prefix)

    async def test_least(self) -> None:
        """Everything works, for the host itself too."""
        self.assertRegex(self.lab.run("host", f"cat /proc/{self.synjitsu.pid}/status"), r"CapEff:\t0000000000003000\n")
        await self.woken("host")


class FloodTests(SynjitsuTestCase):
    """SYNs from forged sources."""

    FLOOD: Final = """
import random, socket, struct, sys
mac, target = bytes.fromhex(sys.argv[1]), socket.inet_aton(sys.argv[2])
one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
one.bind(("eth0", 0))
for _ in range(int(sys.argv[3])):
    source = random.randbytes(4)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, target)
    tcp = struct.pack(">HHIIBBHHH", random.randrange(1024, 65536), 80, 1, 0, 0x50, 2, 1024, 0, 0)
    one.send(mac + b"\\x02\\0\\0\\0\\0\\x07" + b"\\x08\\0" + ip + tcp)
print("done")
"""

    async def test_bounded(self) -> None:
        """A flood of 10,000 is bounded in number, and a client that comes in the middle of it is served."""
        self.lab.plug("flood")
        await self.announce(asleep=False)
        status = Path(f"/proc/{self.synjitsu.pid}/status")

        def memory() -> int:
            return int(status.read_text().partition("VmRSS:")[2].split()[0])

        self.standin.announce("10.9.0.99", "", asleep=False)
        words = (sys.executable, "-c", self.FLOOD, MAC.replace(":", ""), IP)
        self.lab.start("flood", *words, "2000").process.wait(PATIENCE)
        before = memory()
        flood = self.lab.start("flood", *words, "10000")
        client = self.lab.connect("client", IP)
        flood.process.wait(PATIENCE)
        await pause(1.2)  # the client has sent again by now
        counters = await self.counters()
        self.assertLessEqual(counters["held_now"], 256)
        self.assertLess(memory() - before, 8 * 1024)  # KiB
        self.boot()
        await self.serve()
        while client.process.poll() is None:
            await pause(0.01)
        result = client.result()
        self.assertEqual("hello", result["said"], result)
        self.assertLess(result["connected"] - result["begun"], 10)
