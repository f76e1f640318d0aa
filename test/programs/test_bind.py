"""The addresses of `bind`, in namespaces: both families, all addresses, several of them, and one that comes late."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.task import Clock
from twisted.python.monkey import MonkeyPatcher
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from jitsu_tw.dns import binding
from jitsu_tw.dns.binding import Addresses, to_bind
from test.support.netns_lab import PATIENCE, NetnsLab

if TYPE_CHECKING:
    from collections.abc import Callable

BIN: Final = Path(sys.executable).parent

#: Gives the program at its end two sockets as systemd does, at [::] for both families: UDP and TCP, port 53.
SYSTEMD: Final = """
import os, socket, sys
sockets = [socket.socket(socket.AF_INET6, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
for one in sockets:
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind(("::", 53))
sockets[1].listen()
numbers = [os.dup2(os.dup(one.fileno()), 40 + place) for place, one in enumerate(sockets)]
for place, number in enumerate(numbers):
    os.dup2(number, 3 + place, inheritable=True)
os.environ.update(LISTEN_FDS="2", LISTEN_FDNAMES="j:j", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"""

#: Sends 1,000 queries from port 0, by a socket that writes the UDP header itself.
FROM_PORT_0: Final = """
import dns.message, socket, struct
query = dns.message.make_query("www.jitsu.test", "A").to_wire()
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as one:
    for _ in range(1000):
        one.sendto(struct.pack("!HHHH", 0, 53, 8 + len(query), 0) + query, ("10.9.0.1", 0))
"""


class ToBindTests(SynchronousTestCase):
    """`to_bind`."""

    def test_covered(self) -> None:
        """What stands for all addresses of a family stands for each; one that is listed twice is bound once."""
        for hosts, expected in (
            (["0.0.0.0", "::"], ["0.0.0.0", "::"]),  # noqa: S104
            (["::1", "::", "127.0.0.1"], ["::", "127.0.0.1"]),
            (["10.0.0.1", "0.0.0.0", "fd00::1"], ["0.0.0.0", "fd00::1"]),  # noqa: S104
            (["10.0.0.1", "10.0.0.2", "10.0.0.1"], ["10.0.0.1", "10.0.0.2"]),
        ):
            self.assertEqual(expected, to_bind(hosts))


class AddressesTests(SynchronousTestCase):
    """Which addresses are missing."""

    def test_no_descriptor(self) -> None:
        """A look for which there is no descriptor finds nothing out; the next one does."""
        clock = Clock()
        addresses = Addresses(clock)
        self.addCleanup(addresses.stop)

        def nothing(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        addresses.start(["127.0.0.1", "192.0.2.1"])
        expected = addresses.problems()
        MonkeyPatcher((socket, "socket", nothing)).runWithPatches(clock.advance, binding.CHECK_EVERY)
        self.assertEqual(expected, addresses.problems())
        addresses.missing = []
        clock.advance(binding.CHECK_EVERY)
        self.assertEqual((1, expected), (len(expected), addresses.problems()))


class BindTests(SynchronousTestCase):
    """A Jitsu on a host of two networks, 10.9.0.0/24 and 10.8.0.0/24 (and fd09::, fd08::); a client is in the first."""

    def setUp(self) -> None:
        """Make the namespaces."""
        missing = [program for program in ("ip", "unshare", "nsenter", "dig") if not shutil.which(program)]
        if os.geteuid() != 0 or missing:
            raise SkipTest(f"only root can make namespaces; not installed: {', '.join(missing) or 'nothing'}")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.lab = NetnsLab(self.addCleanup)
        self.lab.plug("client", "10.9.0.2/24", "fd09::2/64")
        for address, network, gateway in (
            ("10.8.0.1/24", "10.8.0.0/24", "10.9.0.1"), ("fd08::1/64", "fd08::/64", "fd09::1"),
        ):
            self.lab.run("host", f"ip address add {address} dev br0{' nodad' * (':' in address)}")
            self.lab.run("client", f"ip route add {network} via {gateway}")

    def serve(self, configuration: str, *before: str) -> None:
        """Start a Jitsu on the host, by the command *before* if there is one, and wait until it serves."""
        (self.folder / "jitsu.yaml").write_text(
            f"{configuration}\ncontrol: unix:{self.folder}/control.sock\nbackend: memory\n"
            "vms: [{name: www, dns: www.jitsu.test, ip: 10.9.0.3}]\n"
        )
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                self.lab.command("host", *before, str(BIN / "twistd"), "-n", "--pidfile=", "jitsu", "--config",
                                  str(self.folder / "jitsu.yaml")),
                cwd=self.folder, stdout=log, stderr=log,
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.until(lambda: "serving" in self.log() or process.poll() is not None)
        self.assertIsNone(process.poll(), self.log())

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.05)

    def log(self) -> str:
        """Return what the server has logged."""
        return (self.folder / "log").read_text()

    def is_logged(self, words: str) -> bool:
        """Return whether the server has logged *words*."""
        return words in self.log()

    def ask(self, where: str, server: str, *options: str, tcp: bool) -> str:
        """Return the answer to one question, asked there; or dig's complaint."""
        words = ["dig", "+short", "+tries=1", "+time=3", "+tcp" if tcp else "+notcp", f"@{server}", "www.jitsu.test",
                 *options]
        return subprocess.run(
            self.lab.command(where, *words), check=False, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        ).stdout.strip()

    def served(self, where: str, server: str) -> list[bool]:
        """Return whether a question to *server* is answered by UDP, and by TCP."""
        return [self.ask(where, server, tcp=tcp) == "10.9.0.3" for tcp in (False, True)]

    def health(self) -> dict[str, Any]:
        """Return the answer of /healthz."""
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(self.folder / "control.sock"))
            one.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            octets = b"".join(iter(lambda: one.recv(65536), b""))
        answer: dict[str, Any] = json.loads(octets.partition(b"\r\n\r\n")[2])
        return answer

    def test_both_families(self) -> None:
        """All addresses of both families are served by both transports, each from the address that was asked."""
        for hosts in ('"0.0.0.0", "::"', '"::", "::1", "0.0.0.0"'):
            self.serve(f"bind: [{hosts}]")
            for server in ("10.9.0.1", "10.8.0.1", "fd09::1", "fd08::1"):
                self.assertEqual([True, True], self.served("client", server), server)
            self.assertEqual([True, True], self.served("host", "127.0.0.9"))
            self.doCleanups()
            self.setUp()

    def test_link_local(self) -> None:
        """A client on the link is answered from the link-local address that it asks, also at a global one."""
        self.serve("bind: '::'")
        found = self.lab.run("host", "ip -6 -oneline address show dev br0 scope link")
        server = found.split()[3].partition("/")[0]
        device = self.lab.run("client", "ip -6 -oneline route get fd09::1").split(" dev ")[1].split()[0]
        for source in ((), ("-b", "fd09::2")):
            for _ in range(2):  # the second answer is warm
                self.assertEqual("10.9.0.3", self.ask("client", f"{server}%{device}", *source, tcp=False))

    def test_port_0(self) -> None:
        """Queries from port 0, to which no reply can be sent, keep no other client from its answer."""
        self.serve("bind: '0.0.0.0'")
        self.assertEqual([True, True], self.served("client", "10.9.0.1"))
        subprocess.run(self.lab.command("client", sys.executable, "-c", FROM_PORT_0), check=True, timeout=PATIENCE)
        self.assertEqual([True, True], self.served("client", "10.9.0.1"))

    def test_one_family(self) -> None:
        """``::`` is IPv6 alone and ``0.0.0.0`` IPv4 alone, by both transports."""
        for host, four, six in (("::", False, True), ("0.0.0.0", True, False)):  # noqa: S104
            self.serve(f"bind: '{host}'")
            self.assertEqual([four, four], self.served("client", "10.8.0.1"), host)
            self.assertEqual([six, six], self.served("client", "fd08::1"), host)
            self.doCleanups()
            self.setUp()

    def test_from_systemd(self) -> None:
        """Sockets that accept both families are used, and an IPv4 client counts as one in lists of networks."""
        self.serve("summon_from: [10.9.0.0/24, fd09::/64]", sys.executable, "-c", SYSTEMD)
        for server in ("10.9.0.1", "10.8.0.1", "fd09::1", "fd08::1"):
            self.assertEqual([True, True], self.served("client", server), server)

    def test_late(self) -> None:
        """An address that the host does not have yet is named, served once it is there, and no other waits for it."""
        self.serve('bind: [10.9.0.1, 10.7.0.1, "fd07::1"]')
        self.assertEqual([True, True], self.served("client", "10.9.0.1"))
        self.assertEqual("degraded", self.health()["status"])
        for address in ("10.7.0.1", "fd07::1"):
            problem = f"bind: {address} is no address of this host"
            self.assertIn(problem, self.health()["problems"])
            self.assertEqual(1, self.log().count(problem))
        self.lab.run("host", "ip address add 10.7.0.1/24 dev br0")
        self.lab.run("host", "ip address add fd07::1/64 dev br0")  # the kernel looks for duplicates first
        for address in ("10.7.0.1", "fd07::1"):
            self.until(partial(self.is_logged, f"bind: {address} is an address of this host now"))
            self.assertEqual([True, True], self.served("host", address))
        self.assertEqual({"status": "ok", "problems": []}, self.health())
