"""
The first packet is never lost, and all of it is real: QEMU guests that know nothing of it, libvirt, `dig` and `curl`.

`twistd jitsu` and `twistd synjitsu` are in the host's namespace; clients are behind its bridge, or behind a router on
it. What a client must not notice is read from its kernel's counters. What takes no VM is in `test_e2e_synjitsu`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from demo import lab
from demo.server import Jitsu, Synjitsu
from test.e2e.test_guests import IP, MAC, NAME, PATIENCE, LabTestCase

if TYPE_CHECKING:
    from collections.abc import Callable

IP6: Final = "fd99::10"

#: A client behind the router that `client` is then.
FAR_IP: Final = "10.98.0.2"
FAR_ROUTER: Final = "10.98.0.1"

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
connect: {{connect}}
persistdb: state.git
synjitsu: {{place}}
{{top}}
vms:
  - name: www
    dns: {NAME}
    ip: [{IP}, {IP6}]
    define: www.xml
    use_synjitsu: true
    wait_for_port: 80
    {{more}}
"""

#: Seconds until Linux sends a SYN again, less a little.
RETRANSMITS: Final = 0.95

#: curl's exit status where nobody answers in time, and where nobody can be connected to.
TIMED_OUT: Final = 28
CANNOT_CONNECT: Final = 7

#: Sends one ICMP echo request, and a UDP datagram to port 443.
PING: Final = f"""
import socket
one = socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
one.sendto(bytes.fromhex("0800f7ff00000000"), ("{IP}", 0))
socket.socket(type=socket.SOCK_DGRAM).sendto(b"?", ("{IP}", 443))
"""


class StandinTestCase(LabTestCase):
    """Has a Synjitsu, a Jitsu that knows it, and a client that tries once."""

    standin: Synjitsu

    def begin(
        self,
        top: str = "",
        more: str = "",
        habits: str | None = "",
        change: Callable[[str], str] = lambda xml: xml,
        *,
        synjitsu: bool = True,
    ) -> Jitsu:
        """Start both, or Jitsu alone; *top* and *more* go into its configuration, *change* is made to the VM's XML."""
        (self.directory / "www.xml").write_text(change(self.definition(habits, ip6=IP6)))
        self.standin = Synjitsu(self.directory, self.network)
        self.addCleanup(self.end, self.standin)
        if synjitsu:
            self.standin.start()
        configuration = CONFIGURATION.format(connect=self.connect, place=self.standin.place, top=top, more=more)
        jitsu = Jitsu(self.directory, configuration, lab.HOST_IP, self.network)
        self.addCleanup(self.end, jitsu)
        jitsu.start()
        if synjitsu:
            self.until(lambda: "connected to Synjitsu" in jitsu.log())
        return jitsu

    def end(self, service: Jitsu | Synjitsu) -> None:
        """End one of both, and see that it had no trouble."""
        service.stop(signal.SIGKILL)
        self.assertNotIn("Traceback", service.log())

    def program(self, *words: str) -> list[str]:
        """Return the command line that runs *words* as the client."""
        return self.network.command("client", words)

    def fetch(self, ip: str = IP, port: int = 80, within: float = PATIENCE) -> subprocess.Popen[str]:
        """Begin to fetch the page with curl, as the client, by one connection that is tried once."""
        host = f"[{ip}]" if ":" in ip else ip
        line = ["curl", "--silent", "--show-error", "--fail", "--max-time", f"{within:g}"]
        line += ["--write-out", "\n%{time_connect}", f"http://{host}:{port}/"]
        curl = subprocess.Popen(self.program(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, curl)
        return curl

    @staticmethod
    def reap(program: subprocess.Popen[str]) -> None:
        """End a program."""
        program.kill()
        program.communicate()

    def page(self, curl: subprocess.Popen[str]) -> float:
        """Check that a fetch ended well; return the seconds that the connection took."""
        out, err = curl.communicate(timeout=2 * PATIENCE)
        self.assertEqual((0, ""), (curl.returncode, err), self.standin.log())
        self.assertIn("up for", out)
        self.assertEqual(0, self.count("TcpAttemptFails"))
        return float(out.splitlines()[-1])

    def once(self) -> None:
        """Check that the page is fetched, by a SYN that is sent once; but a slow machine may take too long for that."""
        before = self.count("TcpExtTCPSynRetrans")
        if self.page(self.fetch()) < RETRANSMITS:
            self.assertEqual(before, self.count("TcpExtTCPSynRetrans"))

    def count(self, name: str, *, host: bool = False) -> int:
        """Return one of the client's kernel's counters, or of the host's (nstat(8))."""
        words = ["nstat", "-asz", name]
        program = self.network.command("host", words) if host else self.program(*words)
        line = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
        return int(line.stdout.splitlines()[-1].split()[1])



class QueryTests(StandinTestCase):
    """A query, and one try to connect."""

    def test_cold(self) -> None:
        """The answer is sent at once, without an EDE; one `curl` after it succeeds."""
        jitsu = self.begin()
        said = self.dig()
        self.assertIn(f"IN\tA\t{IP}", said)
        self.assertNotIn("EDE", said)
        self.page(self.fetch())
        marks = jitsu.wait("up")["activation_ms"]
        self.assertLess(marks["answered"], marks["started"])
        self.assertIn("handed over", self.standin.log())
        said = jitsu.control.ask("GET", "/v1/standins")
        self.assertEqual("up", {one["ip"]: one["state"] for one in said["standins"]}[IP])
        self.assertGreater(said["counters"]["handed_over"], 0)
        self.assertIn(MAC, self.network.run("client", ["ip", "neighbour", "show", IP]).stdout)

    def test_both_families(self) -> None:
        """A client that asks for AAAA is connected by its first SYN too, and one over IPv4 at the same time."""
        self.begin(habits=None)
        self.assertIn(f"IN\tAAAA\t{IP6}", self.dig(NAME, "AAAA"))
        for one in [self.fetch(ip) for ip in (IP6, IP)]:
            self.page(one)
        for ip in (IP6, IP):
            self.assertIn(f"{ip}: handed over", self.standin.log())

    def test_restored(self) -> None:
        """For a guest that comes back from a saved image in under a second, no SYN is sent twice."""
        jitsu = self.begin("ttl: 1\nmode: save", habits=None)
        self.dig()
        self.page(self.fetch())
        jitsu.wait("saved")
        self.assertIn(IP, self.dig())
        self.once()
        self.assertEqual(2, jitsu.vm()["total_starts"])

    def test_without(self) -> None:
        """Without Synjitsu, which is logged, a client that comes before the VM runs waits for a second at least."""
        # A guest that announced itself would end the client's wait: Linux asks for a MAC again after a second.
        jitsu = self.begin("ttl: 1\nidle: 8\nanswer_by: 0.01", habits="silent", synjitsu=False)
        self.assertIn("SYNs for VMs that boot will be lost", jitsu.log())
        curl = self.fetch()
        neighbour = ["ip", "neighbour", "show", IP]
        self.until(lambda: self.network.run("client", neighbour).stdout)  # the client has asked for the VM's MAC
        self.assertIn("still starting", self.dig())
        out, _ = curl.communicate(timeout=2 * PATIENCE)
        self.assertIn(curl.returncode, {0, CANNOT_CONNECT})
        self.assertGreater(float(out.splitlines()[-1]) if curl.returncode == 0 else 3.0, 1.0)
        self.curl()  # which tries again

    def test_snapshot(self) -> None:
        """With `boot_from: snapshot`, the image is made after the first client, and has no connection in it."""
        jitsu = self.begin("ttl: 1\nimages: images", "boot_from: snapshot", None)
        self.dig()
        self.page(self.fetch())
        self.until(lambda: list((self.directory / "images").glob("*.image")))
        jitsu.wait("off")
        before = self.count("TcpInSegs")
        self.dig()
        jitsu.wait("up")
        time.sleep(1.5)  # a guest with a connection would have sent something twice
        self.assertEqual(before, self.count("TcpInSegs"))
        self.page(self.fetch())


class WakeTests(StandinTestCase):
    """A client that still has the address, and asks nobody."""

    def test_syn(self) -> None:
        """Its SYN starts the VM, or has it go on if it is paused, and is what it is connected by."""
        jitsu = self.begin("ttl: 1\nmode: pause", "ports: [80]")
        self.page(self.fetch())
        self.until(lambda: f"for {lab.CLIENT_IP}, a packet" in jitsu.log())
        jitsu.wait("paused")
        self.once()
        vm = jitsu.vm()
        self.assertEqual((2, 0), (vm["total_starts"], vm["total_requests"]))

    def test_nothing_else(self) -> None:
        """ARP, ping, UDP, and a port that is not in `ports`, wake nothing."""
        jitsu = self.begin("", "ports: [80]")
        self.network.run("client", [sys.executable, "-c", PING])
        curl = self.fetch(port=81, within=2)
        curl.communicate()
        self.assertEqual(TIMED_OUT, curl.returncode)
        self.assertNotEqual("", self.network.run("client", ["ip", "neighbour", "show", IP]).stdout)
        self.assertEqual(("off", 0, []), (jitsu.vm()["state"], jitsu.vm()["total_starts"], self.qemus()))

    def test_killed(self) -> None:
        """Synjitsu is killed while the guest boots: its successor holds the client's next SYN and hands it over."""
        jitsu = self.begin(habits="net_after=8000")
        self.dig()
        curl = self.fetch()
        self.until(lambda: "lladdr" in self.network.run("client", ["ip", "neighbour", "show", IP]).stdout)
        self.standin.stop(signal.SIGKILL)
        self.assertNotIn("handed over", self.standin.log())
        self.standin.start()
        self.until(lambda: "Synjitsu is there again" in jitsu.log())
        tried = self.count("TcpActiveOpens", host=True)
        self.page(curl)
        jitsu.wait("up")  # the page may be there before Jitsu has read that the guest listens
        self.assertEqual(tried, self.count("TcpActiveOpens", host=True))  # Jitsu leaves it to Synjitsu again
        # Jitsu's earlier tries may be handed over, too, at either address: the kernel sends them when it has a MAC.
        self.assertIn(f"{IP}: handed over", self.standin.log())


class RouterTestCase(StandinTestCase):
    """Has a client behind a router on the bridge."""

    def setUp(self) -> None:
        """Make `client` the router, with a cable to a namespace of its own."""
        super().setUp()
        hold = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]
        self.far = subprocess.Popen(
            self.network.command("client", hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(self.reap, self.far)
        assert self.far.stdout is not None
        self.assertEqual("ready\n", self.far.stdout.readline())
        self.network.run("client", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        router = self.network.command("client", [])
        host = self.network.command("host", [])
        for where, line in (
            (router, f"link add far type veth peer name eth0 netns {self.far.pid}"),
            (router, "link set far up"),
            (router, f"address add {FAR_ROUTER}/24 dev far"),
            (self.program(), "link set eth0 up"),
            (self.program(), f"address add {FAR_IP}/24 dev eth0"),
            (self.program(), f"route add default via {FAR_ROUTER}"),
            (host, f"route add {FAR_IP} via {lab.CLIENT_IP}"),
        ):
            subprocess.run([*where, "ip", *line.split()], check=True)

    def program(self, *words: str) -> list[str]:
        """Return the command line that runs *words* as the client behind the router."""
        return ["nsenter", f"--target={self.far.pid}", "--net", *words]

    @staticmethod
    def through_router(xml: str) -> str:
        """Return the definition of a VM whose gateway is the router."""
        return xml.replace(f"gw={lab.HOST_IP}", f"gw={lab.CLIENT_IP}")


class RouterTests(RouterTestCase):
    """The client is behind a router on the bridge."""

    def test_router(self) -> None:
        """The first SYN is held and handed over, and the guest's frames go to the router."""
        jitsu = self.begin(change=self.through_router)
        self.page(self.fetch())
        self.until(lambda: f"for {FAR_IP}, a packet" in jitsu.log())
