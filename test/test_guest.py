"""
The guest of our own, frame by frame: QEMU sends and takes its frames as datagrams on loopback, without privileges.

Where a test needs no other habit, its guest has the address 10.99.0.10, and the test is 10.99.0.2 on its network.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Final

import dpkt
from dpkt import arp, ethernet, icmp, ip, tcp
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from test import guest

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

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 30.0


def mac(text: str) -> bytes:
    """Return the six octets of a MAC."""
    return bytes.fromhex(text.replace(":", ""))


class Wire:
    """A QEMU with the guest, and the other end of its cable."""

    def __init__(self, test: SynchronousTestCase, habits: str) -> None:
        """Boot the guest; *test* ends it."""
        self._end = socket.socket(type=socket.SOCK_DGRAM)
        self._end.bind((lab.LOOPBACK, 0))
        test.addCleanup(self._end.close)
        self._end.settimeout(PATIENCE)
        self._peer = lab.LOOPBACK, lab.free_port()
        netdev = "socket,udp={}:{},localaddr={}:{}".format(*self._end.getsockname(), *self._peer)
        self.process = subprocess.Popen(
            [*guest.command(IP, MAC, netdev, habits), "-no-reboot"], stdout=subprocess.PIPE, text=True
        )
        test.addCleanup(self._reap)
        self.seen: list[ethernet.Ethernet] = []

    def _reap(self) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self, words: str) -> str:
        """Return the next line of the serial port that has *words* in it."""
        assert self.process.stdout is not None
        return next(line for line in self.process.stdout if words in line)

    def send(self, source: bytes, to: bytes, kind: int, data: dpkt.Packet | bytes) -> None:
        """Send a frame."""
        self._end.sendto(bytes(ethernet.Ethernet(src=source, dst=to, type=kind, data=data)), self._peer)

    def frame(self, condition: Callable[[ethernet.Ethernet], object] = lambda _: True) -> ethernet.Ethernet:
        """Return the next frame that meets the *condition*; answer questions for our MAC meanwhile."""
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

    def answer(self, flags: int, port: int = 4711) -> tcp.TCP:
        """Return the next TCP segment to our *port* with exactly these *flags*."""

        def meets(frame: ethernet.Ethernet) -> bool:
            above = getattr(frame.data, "data", None)
            return isinstance(above, tcp.TCP) and (above.flags, above.dport) == (flags, port)

        above: tcp.TCP = self.frame(meets).data.data
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
        if self.process.poll() is None:
            return str(page.data.decode())
        raise EOFError


SYN_ACK: Final = tcp.TH_SYN | tcp.TH_ACK
RST_ACK: Final = tcp.TH_RST | tcp.TH_ACK
PAGE: Final = tcp.TH_ACK | tcp.TH_PUSH | tcp.TH_FIN


class GuestTestCase(SynchronousTestCase):
    """Boots guests."""

    def setUp(self) -> None:
        """Need QEMU and gcc."""
        missing = [tool for tool in ("qemu-system-x86_64", "gcc") if shutil.which(tool) is None]
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")

    def boot(self, habits: str = "", until: str = "listening") -> Wire:
        """Boot a guest; wait for a line of its serial port."""
        wire = Wire(self, habits)
        if until:
            wire.line(until)
        return wire

    @staticmethod
    def since(page: str) -> float:
        """Return since when the guest has listened, in seconds after its entry, as its page says."""
        return float(page.partition("listening since: ")[2].split()[0])


class ServingTests(GuestTestCase):
    """What the guest does without a habit."""

    def test_page(self) -> None:
        """The page says who the guest is, how long it has been up, and since when it has listened."""
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
        """A SYN-ACK and a page that nobody acknowledges are sent again."""
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
        """After a burst of SYNs, more than its queues and its table have room for, the guest goes on serving."""
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
