"""
The guest of our own, frame by frame: QEMU sends and takes its frames as datagrams on loopback, without privileges.

Where a test needs no other habit, its guest has the address 10.99.0.10, and the test is 10.99.0.2 on its network.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dpkt
from dpkt import arp, ethernet, icmp, icmp6, ip, ip6, tcp, udp
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from demo import unikernel as guest
from test.support.netns_lab import PATIENCE, killed_late

if TYPE_CHECKING:
    from collections.abc import Callable

IP: Final = "10.99.0.10"
MAC: Final = "52:54:00:99:00:10"
OURS: Final = bytes.fromhex("525400990002")
OUR_IP: Final = socket.inet_aton(lab.CLIENT_IP)
ITS_IP: Final = socket.inet_aton(IP)
IP6: Final = "fd99::10"
ITS_IP6: Final = socket.inet_pton(socket.AF_INET6, IP6)
OUR_IP6: Final = socket.inet_pton(socket.AF_INET6, lab.CLIENT_IP6)
EVERYBODY: Final = b"\xff" * 6
NOBODY: Final = bytes(6)
GET: Final = b"GET / HTTP/1.0\r\n\r\n"


def mac(text: str) -> bytes:
    """Return the six octets of a MAC."""
    return bytes.fromhex(text.replace(":", ""))


class Wire:
    """A QEMU with the guest, and the other end of its cable."""

    def __init__(self, test: SynchronousTestCase, habits: str, *arguments: str) -> None:
        """Boot the guest, by a QEMU with these *arguments* besides; *test* ends it."""
        self._end = socket.socket(type=socket.SOCK_DGRAM)
        self._end.bind((lab.LOOPBACK, 0))
        test.addCleanup(self._end.close)
        self._peer = lab.LOOPBACK, lab.free_port()
        netdev = "socket,udp={}:{},localaddr={}:{}".format(*self._end.getsockname(), *self._peer)
        self.process = subprocess.Popen(
            [*guest.command(IP, MAC, netdev, habits), *arguments], stdout=subprocess.PIPE, text=True
        )
        test.addCleanup(self._reap)
        self.seen: list[ethernet.Ethernet] = []

    def _reap(self) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self, words: str) -> str:
        """Return the next line of the serial port that has *words* in it."""
        assert self.process.stdout is not None
        with killed_late(self.process):
            return next(line for line in self.process.stdout if words in line)

    def send(self, source: bytes, to: bytes, kind: int, data: dpkt.Packet | bytes) -> None:
        """Send a frame."""
        self._end.sendto(bytes(ethernet.Ethernet(src=source, dst=to, type=kind, data=data)), self._peer)

    def frame(
        self, condition: Callable[[ethernet.Ethernet], object] = lambda _: True, within: float = PATIENCE
    ) -> ethernet.Ethernet:
        """
        Return the next frame that meets the *condition*; answer questions for our MAC meanwhile.

        Raises:
            TimeoutError: the guest sends nothing for *within* seconds.
        """
        self._end.settimeout(within)
        while True:
            frame = ethernet.Ethernet(self._end.recv(4096))
            self.seen.append(frame)
            asked = frame.data
            if isinstance(asked, arp.ARP) and (asked.op, asked.tpa) == (arp.ARP_OP_REQUEST, OUR_IP):
                self.arp(arp.ARP_OP_REPLY, OUR_IP, asked.spa, to=frame.src)
            if condition(frame):
                return frame

    def arp(self, operation: int, source: bytes, target: bytes, sender: bytes = OURS, to: bytes = EVERYBODY) -> None:
        """Send ARP."""
        data = arp.ARP(op=operation, sha=sender, spa=source, tha=NOBODY, tpa=target)
        self.send(sender, to, ethernet.ETH_TYPE_ARP, data)

    def segment(
        self, flags: int, seq: int = 7, ack: int = 0, data: bytes = b"", *,
        port: int = 4711, to: str = MAC, dport: int = 80, damage: int = 0,
    ) -> None:
        """Send a TCP segment; *damage* is added to its checksum."""
        above = tcp.TCP(sport=port, dport=dport, seq=seq, ack=ack, flags=flags, win=64240, data=data)
        packet = ip.IP(src=OUR_IP, dst=ITS_IP, p=ip.IP_PROTO_TCP, data=above)
        octets = bytearray(bytes(packet))
        octets[-len(data) - 4] ^= damage
        self.send(OURS, mac(to), ethernet.ETH_TYPE_IP, bytes(octets))

    def ip6(self, data: dpkt.Packet, target: bytes = ITS_IP6, source: bytes = OUR_IP6, to: str = MAC) -> None:
        """Send an IPv6 packet with ICMPv6 or TCP."""
        protocol = ip.IP_PROTO_TCP if isinstance(data, tcp.TCP) else ip.IP_PROTO_ICMP6
        packet = ip6.IP6(src=source, dst=target, nxt=protocol, hlim=255, plen=len(data), data=data)
        packet.extension_hdrs, packet.all_extension_headers = {}, []
        self.send(OURS, mac(to), ethernet.ETH_TYPE_IP6, packet)

    def answer(self, flags: int, port: int = 4711, within: float = PATIENCE) -> tcp.TCP:
        """Return the next TCP segment to the test's *port* with exactly these *flags*."""

        def meets(frame: ethernet.Ethernet) -> bool:
            above = getattr(frame.data, "data", None)
            return isinstance(above, tcp.TCP) and (above.flags, above.dport) == (flags, port)

        above: tcp.TCP = self.frame(meets, within).data.data
        return above

    def connect(self, port: int = 4711, to: str = MAC) -> tcp.TCP:
        """Connect; return the SYN-ACK."""
        self.segment(tcp.TH_SYN, port=port, to=to)
        answer = self.answer(SYN_ACK, port)
        self.segment(tcp.TH_ACK, 8, answer.seq + 1, port=port, to=to)
        return answer

    def fetch(self, port: int = 4711, to: str = MAC) -> str:
        """Fetch the page, to its end."""
        syn = self.connect(port, to)
        self.segment(tcp.TH_PUSH | tcp.TH_ACK, 8, syn.seq + 1, GET, port=port, to=to)
        page = self.answer(PAGE, port)
        end = page.seq + len(page.data) + 1
        self.segment(tcp.TH_FIN | tcp.TH_ACK, 8 + len(GET), end, port=port, to=to)
        return str(page.data.decode())


SYN_ACK: Final = tcp.TH_SYN | tcp.TH_ACK
RST_ACK: Final = tcp.TH_RST | tcp.TH_ACK
DATA: Final = tcp.TH_ACK | tcp.TH_PUSH
PAGE: Final = DATA | tcp.TH_FIN
SOLICITATION: Final = 135
ADVERTISEMENT: Final = 136
ALL_NODES: Final = socket.inet_pton(socket.AF_INET6, "ff02::1")
SOLICITED: Final = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:10"), "33:33:ff:00:00:10"


def neighbour(kind: int, target: bytes, option: bytes = b"", flags: int = 0) -> dpkt.Packet:
    """Return a solicitation or an advertisement (RFC 4861, section 4)."""
    return icmp6.ICMP6(type=kind, data=flags.to_bytes(4) + target + option)


class GuestTestCase(SynchronousTestCase):
    """Boots guests."""

    def setUp(self) -> None:
        """Need QEMU and gcc."""
        missing = [tool for tool in ("qemu-system-x86_64", "gcc") if shutil.which(tool) is None]
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")

    def boot(self, habits: str = "", *arguments: str, until: str = "listening") -> Wire:
        """Boot a guest; wait for a line of its serial port."""
        wire = Wire(self, habits, *arguments)
        wire.line(until)
        return wire

    def ends(self, habits: str, *arguments: str) -> int:
        """Boot a guest that ends by itself; return QEMU's exit status."""
        return Wire(self, habits, *arguments).process.wait(PATIENCE)

    @staticmethod
    def since(page: str) -> float:
        """Return since when the guest has listened, in seconds after its entry, as its page says."""
        return float(page.partition("listening since: ")[2].split()[0])


class ServingTests(GuestTestCase):
    """What the guest does without a habit."""

    def test_page(self) -> None:
        """The page has the guest's name and address, how long it has been up, and since when it has listened."""
        page = self.boot("name=mine").fetch()
        head, _, body = page.partition("\r\n\r\n")
        self.assertIn("200 OK", head)
        self.assertIn(f"Content-Length: {len(body)}\r\n", head + "\r\n")
        said = rf"^up for [0-9.]+ s\nname: mine\naddress: {IP} at {MAC}\nlistening since: 0\.[0-9]+ s\n"
        self.assertRegex(body, said)

    def test_announces(self) -> None:
        """The first frame is a gratuitous ARP request."""
        frame = self.boot().frame()
        self.assertEqual((EVERYBODY, mac(MAC)), (frame.dst, frame.src))
        self.assertEqual((arp.ARP_OP_REQUEST, ITS_IP, ITS_IP), (frame.data.op, frame.data.spa, frame.data.tpa))

    def test_arp_and_echo(self) -> None:
        """ARP requests for its address, and echo requests, are answered; those for another one are not."""
        wire = self.boot("silent")
        wire.arp(arp.ARP_OP_REQUEST, OUR_IP, socket.inet_aton("10.99.0.11"))
        wire.arp(arp.ARP_OP_REQUEST, OUR_IP, ITS_IP)
        frame = wire.frame()
        self.assertEqual((arp.ARP_OP_REPLY, ITS_IP, mac(MAC)), (frame.data.op, frame.data.spa, frame.data.sha))
        echo = icmp.ICMP(type=icmp.ICMP_ECHO, data=icmp.ICMP.Echo(id=1, seq=2, data=b"odd"))
        wire.send(OURS, mac(MAC), ethernet.ETH_TYPE_IP, ip.IP(src=OUR_IP, dst=ITS_IP, p=ip.IP_PROTO_ICMP, data=echo))
        frame = wire.frame()
        self.assertEqual((icmp.ICMP_ECHOREPLY, b"odd"), (frame.data.data.type, frame.data.data.data.data))

    def test_neighbour_is_asked_for(self) -> None:
        """A SYN is answered when the MAC of the client's address, or of the router, is known, and at once then."""
        wire = self.boot("silent")
        wire.segment(tcp.TH_SYN)
        wire.answer(SYN_ACK)
        self.assertEqual([arp.ARP, ip.IP], [type(frame.data) for frame in wire.seen])
        far = ip.IP(src=socket.inet_aton("192.0.2.1"), dst=ITS_IP, p=ip.IP_PROTO_TCP,
                    data=tcp.TCP(sport=1, dport=80, seq=7, flags=tcp.TH_SYN))
        wire.send(OURS, mac(MAC), ethernet.ETH_TYPE_IP, far)
        self.assertEqual(socket.inet_aton(lab.HOST_IP), wire.frame().data.tpa)

    def test_refuses(self) -> None:
        """A port that is not its own, and a segment of no connection, are answered with RST."""
        wire = self.boot("silent")
        wire.segment(tcp.TH_SYN, dport=81)
        answer = wire.answer(RST_ACK)
        self.assertEqual((0, 8), (answer.seq, answer.ack))
        wire.segment(tcp.TH_ACK, 8, 99)
        self.assertEqual(99, wire.answer(tcp.TH_RST).seq)

    def test_checksum(self) -> None:
        """A segment whose checksum is wrong, as that of an offloaded frame sent again as it was, is dropped."""
        wire = self.boot("silent")
        wire.segment(tcp.TH_SYN, port=1, damage=1)
        wire.segment(tcp.TH_SYN, port=2)
        wire.answer(SYN_ACK, 2)
        self.assertNotIn(1, {frame.data.data.dport for frame in wire.seen if isinstance(frame.data, ip.IP)})

    def test_other_mac(self) -> None:
        """A frame for another MAC is dropped."""
        wire = self.boot("silent")
        wire.segment(tcp.TH_SYN, port=1, dport=81, to="02:00:00:00:00:01")
        wire.segment(tcp.TH_SYN, port=2, dport=81)
        self.assertEqual(2, wire.frame().data.data.dport)

    def test_sends_again(self) -> None:
        """A SYN-ACK and a page that are not acknowledged are sent again."""
        wire = self.boot()
        wire.segment(tcp.TH_SYN)
        first, second = wire.answer(SYN_ACK), wire.answer(SYN_ACK)
        self.assertEqual(first.seq, second.seq)
        wire.segment(tcp.TH_PUSH | tcp.TH_ACK, 8, first.seq + 1, GET)
        self.assertEqual(wire.answer(PAGE).data, wire.answer(PAGE).data)

    def test_request_in_pieces(self) -> None:
        """A request is answered when all of it is there; a piece that comes too early or twice is acknowledged only."""
        wire = self.boot()
        syn = wire.connect()
        wire.segment(tcp.TH_ACK, 18, syn.seq + 1, GET[10:])
        self.assertEqual(8, wire.answer(tcp.TH_ACK).ack)
        wire.segment(tcp.TH_ACK, 8, syn.seq + 1, GET[:10])
        self.assertEqual(18, wire.answer(tcp.TH_ACK).ack)
        wire.segment(tcp.TH_ACK, 8, syn.seq + 1, GET[:10])
        self.assertEqual(18, wire.answer(tcp.TH_ACK).ack)
        wire.segment(tcp.TH_ACK, 18, syn.seq + 1, GET[10:])
        self.assertEqual(8 + len(GET), wire.answer(PAGE).ack)

    def test_half_closed(self) -> None:
        """A client that closes its side after the request gets the page, and its FIN is acknowledged."""
        wire = self.boot()
        syn = wire.connect()
        wire.segment(tcp.TH_ACK | tcp.TH_FIN, 8, syn.seq + 1, GET)
        self.assertEqual(8 + len(GET) + 1, wire.answer(PAGE).ack)

    def test_resets(self) -> None:
        """A RST ends a connection if its number is right; another one does not."""
        wire = self.boot()
        syn = wire.connect()
        wire.segment(tcp.TH_RST, 9)
        wire.segment(tcp.TH_PUSH | tcp.TH_ACK, 8, syn.seq + 1, b"G")
        self.assertEqual(9, wire.answer(tcp.TH_ACK).ack)
        wire.segment(tcp.TH_RST, 9)
        wire.segment(tcp.TH_ACK, 9, syn.seq + 1)
        self.assertEqual(syn.seq + 1, wire.answer(tcp.TH_RST).seq)

    def test_many_at_once(self) -> None:
        """After a burst of SYNs, more than its queues and its table can hold, the guest goes on serving."""
        wire = self.boot("silent")
        for port in range(1, 1500):
            wire.segment(tcp.TH_SYN, port=port)
            if port % 100 == 0:
                wire.answer(SYN_ACK, port - 50)
        wire.answer(SYN_ACK, 1400)
        self.assertIn("200 OK", wire.fetch(port=4711))

    def test_several(self) -> None:
        """Connections that are open at the same time each get their page."""
        wire = self.boot()
        syns = {port: wire.connect(port) for port in range(1, 21)}
        for port, syn in syns.items():
            wire.segment(tcp.TH_PUSH | tcp.TH_ACK, 8, syn.seq + 1, GET, port=port)
            self.assertIn(f"requests: {port}\n".encode(), wire.answer(PAGE, port).data)


class Ipv6Tests(GuestTestCase):
    """IPv6."""

    def test_page(self) -> None:
        """A client is asked for by a solicitation, and gets the page."""
        wire = self.boot(f"silent ip6={IP6}/64")
        wire.ip6(tcp.TCP(sport=4711, dport=80, seq=7, flags=tcp.TH_SYN, win=64240))
        asked = wire.frame()
        self.assertEqual(SOLICITATION, asked.data.data.type)
        self.assertEqual(OUR_IP6, bytes(asked.data.data)[8:24])
        wire.ip6(neighbour(ADVERTISEMENT, OUR_IP6, b"\2\1" + OURS, 0x60000000))
        syn = wire.answer(SYN_ACK)
        wire.ip6(tcp.TCP(sport=4711, dport=80, seq=8, ack=syn.seq + 1, flags=DATA, win=64240, data=GET))
        self.assertIn(b"address: fd99:0:0:0:0:0:0:10 at", wire.answer(PAGE).data)

    def test_neighbour_and_echo(self) -> None:
        """A solicitation for its address, and an echo request, are answered; a solicitation for another one is not."""
        wire = self.boot(f"silent ip6={IP6}/64")
        wire.ip6(neighbour(SOLICITATION, OUR_IP6, b"\1\1" + OURS), *SOLICITED[:1], to=SOLICITED[1])
        wire.ip6(neighbour(SOLICITATION, ITS_IP6, b"\1\1" + OURS), *SOLICITED[:1], to=SOLICITED[1])
        frame = wire.frame()
        self.assertEqual((ADVERTISEMENT, ITS_IP6), (frame.data.data.type, bytes(frame.data.data)[8:24]))
        self.assertEqual(b"\2\1" + mac(MAC), bytes(frame.data.data)[24:32])
        wire.ip6(icmp6.ICMP6(type=icmp6.ICMP6_ECHO_REQUEST, data=b"\0\1\0\2odd"))
        frame = wire.frame()
        self.assertEqual(icmp6.ICMP6_ECHO_REPLY, frame.data.data.type)
        self.assertIn(b"odd", bytes(frame.data.data))

    def test_announces(self) -> None:
        """Its address is announced to all nodes."""
        frame = self.boot(f"ip6={IP6}/64").frame(lambda frame: frame.type == ethernet.ETH_TYPE_IP6)
        self.assertEqual((ALL_NODES, ADVERTISEMENT), (frame.data.dst, frame.data.data.type))

    def test_address_is_taken(self) -> None:
        """With `probe`, an address that another node has is given up, and the page at the other address shows that."""
        wire = Wire(self, f"ip6={IP6}/64 probe")
        probe = wire.frame(lambda frame: frame.type == ethernet.ETH_TYPE_IP6)
        self.assertEqual((bytes(16), SOLICITED[0]), (probe.data.src, probe.data.dst))
        self.assertEqual(SOLICITATION, probe.data.data.type)
        wire.ip6(neighbour(ADVERTISEMENT, ITS_IP6, b"\2\1" + OURS, 0x20000000), ALL_NODES, ITS_IP6, "33:33:00:00:00:01")
        self.assertIn("given up", wire.line("fd99:0:0:0:0:0:0:10"))
        wire.line("10.99.0.10 at")
        self.assertIn("given up: fd99:0:0:0:0:0:0:10\n", wire.fetch())


class HabitTests(GuestTestCase):
    """Each word of its command line."""

    def test_listen_after(self) -> None:
        """Until it listens, a SYN is answered with RST."""
        wire = self.boot("listen_after=300", until="at")
        wire.segment(tcp.TH_SYN, port=1)
        wire.answer(RST_ACK, 1)
        wire.line("listening")
        self.assertGreaterEqual(self.since(wire.fetch()), 0.3)

    def test_net_after(self) -> None:
        """The network device starts late."""
        wire = self.boot("net_after=300", until="at")
        self.assertGreaterEqual(self.since(wire.fetch()), 0.3)

    def test_promiscuous(self) -> None:
        """Segments for another MAC are answered."""
        wire = self.boot("silent promiscuous listen_after=100000", until="at")
        wire.segment(tcp.TH_SYN, to="02:00:00:00:00:01")
        wire.answer(RST_ACK)

    def test_second_mac(self) -> None:
        """With a MAC of its own it announces, answers and sends from there, and takes nothing for its device's."""
        other = "02:00:00:00:00:07"
        wire = self.boot(f"mac={other}")
        wire.segment(tcp.TH_SYN, port=1, dport=81)
        self.assertIn(f"{IP} at {other}", wire.fetch(to=other))
        self.assertEqual({mac(other)}, {frame.src for frame in wire.seen})
        self.assertNotIn(1, {frame.data.data.dport for frame in wire.seen if isinstance(frame.data, ip.IP)})

    def test_port(self) -> None:
        """It listens on another port."""
        wire = self.boot("port=8080")
        wire.segment(tcp.TH_SYN, dport=8080)
        wire.answer(SYN_ACK)

    def test_second_device(self) -> None:
        """It uses its second network device."""
        wire = self.boot("nic=1", "-netdev", "user,id=first", "-device", "virtio-net-pci,netdev=first,addr=2,romfile=")
        self.assertIn(f"{IP} at {MAC}", wire.fetch())

    def test_probe(self) -> None:
        """With `probe`, the address is used and announced only when it is known to be free."""
        wire = self.boot("probe", until="at")
        wire.arp(arp.ARP_OP_REQUEST, OUR_IP, ITS_IP)
        wire.frame(lambda frame: frame.data.op == arp.ARP_OP_REPLY)
        spoken = [(frame.data.op, frame.data.spa) for frame in wire.seen]
        none = arp.ARP_OP_REQUEST, socket.inet_aton("0.0.0.0")  # noqa: S104 -- of a probe
        self.assertEqual([none] * 3 + [(arp.ARP_OP_REQUEST, ITS_IP), (arp.ARP_OP_REPLY, ITS_IP)], spoken)
        self.assertGreaterEqual(self.since(wire.fetch()), 0.3)

    def test_address_is_taken(self) -> None:
        """With `probe`, an address is given up if it is another machine's, or if another one probes it too."""
        for operation, source in ((arp.ARP_OP_REPLY, ITS_IP), (arp.ARP_OP_REQUEST, NOBODY[:4])):
            wire = Wire(self, "probe")
            wire.frame()
            wire.arp(operation, source, ITS_IP)
            self.assertIn(OURS.hex(":"), wire.line("given up"))

    def test_mute(self) -> None:
        """It accepts a request and answers nothing; it closes when the client does."""
        wire = self.boot("mute")
        syn = wire.connect()
        wire.segment(DATA, 8, syn.seq + 1, GET)
        wire.answer(tcp.TH_ACK)
        wire.segment(tcp.TH_ACK | tcp.TH_FIN, 8 + len(GET), syn.seq + 1)
        wire.answer(tcp.TH_ACK | tcp.TH_FIN)

    def test_stream(self) -> None:
        """After its page it goes on with single octets."""
        wire = self.boot("stream=20")
        syn = wire.connect()
        wire.segment(DATA, 8, syn.seq + 1, GET)
        page = wire.answer(DATA)
        self.assertIn(b"up for", page.data)
        following, seq = b"", page.seq + len(page.data)
        for _ in range(6):
            wire.segment(tcp.TH_ACK, 8 + len(GET), seq)
            octet = wire.answer(DATA)
            self.assertEqual(seq, octet.seq)
            following, seq = following + octet.data, seq + 1
        self.assertIn(b".\n.\n", following)

    def test_receive_only(self) -> None:
        """It takes datagrams, answers neither TCP nor echo requests, and can be reached by ARP."""
        wire = self.boot("silent receive_only")
        wire.segment(tcp.TH_SYN)
        datagram = udp.UDP(sport=9, dport=9, ulen=13, data=b"hello")
        wire.send(OURS, mac(MAC), ethernet.ETH_TYPE_IP, ip.IP(src=OUR_IP, dst=ITS_IP, p=ip.IP_PROTO_UDP, data=datagram))
        self.assertEqual(f"guest: 5 octets from {lab.CLIENT_IP}\n", wire.line("octets"))
        wire.arp(arp.ARP_OP_REQUEST, OUR_IP, ITS_IP)
        self.assertEqual(arp.ARP_OP_REPLY, wire.frame().data.op)

    def test_power(self) -> None:
        """The power button does nothing, unless the command line enables it."""
        with tempfile.TemporaryDirectory() as place:
            monitor = Path(place) / "qmp"
            wire = self.boot("power", "-qmp", f"unix:{monitor},server=on,wait=off")
            press(monitor)
            self.assertEqual(0, wire.process.wait(PATIENCE))
            monitor.unlink(missing_ok=True)
            wire = self.boot("", "-qmp", f"unix:{monitor},server=on,wait=off")
            press(monitor)
            self.assertIn("200 OK", wire.fetch())

    def test_exits(self) -> None:
        """It exits with its code at once, or with 0 when a client has got its pages; QEMU ends."""
        self.assertEqual(2 * 3 + 1, self.ends("exit=3"))
        wire = self.boot("exit_after=2")
        wire.fetch(1)
        wire.fetch(2)
        self.assertEqual(1, wire.process.wait(PATIENCE))

    def test_crashes(self) -> None:
        """A fault is one of the machine: it resets, or QEMU ends if it may not."""
        self.assertEqual(0, self.ends("crash", "-no-reboot"))

    def test_halts(self) -> None:
        """When its processor has stopped, QEMU goes on, and a SYN is not answered."""
        wire = self.boot("halt_after=1 silent")
        wire.fetch(1)
        wire.segment(tcp.TH_SYN, port=2)
        with self.assertRaises(TimeoutError):
            wire.answer(SYN_ACK, 2, within=1.5)
        self.assertIsNone(wire.process.poll())

    def test_halts_at_once(self) -> None:
        """It sends nothing at all, and QEMU goes on."""
        wire = Wire(self, "halt")
        with self.assertRaises(TimeoutError):
            wire.frame(within=1.5)
        self.assertIsNone(wire.process.poll())

    def test_reboots(self) -> None:
        """It reboots when a client has got its page."""
        wire = self.boot("reboot_after=1")
        self.assertIn("requests: 1\n", wire.fetch(1))
        wire.line("listening")
        self.assertIn("requests: 1\n", wire.fetch(2))


def press(monitor: Path) -> None:
    """Press the power button by QEMU's monitor (QMP)."""
    with socket.socket(socket.AF_UNIX) as qmp, qmp.makefile("rw") as lines:
        qmp.connect(str(monitor))
        for command in ("qmp_capabilities", "system_powerdown"):
            lines.readline()
            lines.write(json.dumps({"execute": command}))
            lines.flush()
        lines.readline()
