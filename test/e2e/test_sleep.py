"""Open connections of a VM that is paused or saved, all of it real: a guest on QEMU, and a client's kernel."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from ipaddress import ip_address
from threading import Thread
from typing import TYPE_CHECKING, Final

from demo import lab
from synjitsu_tw.flowfile import SIZE
from test.e2e.test_guests import IP
from test.e2e.test_standin import IP6, RouterTestCase, StandinTestCase
from test.support.echoes import PROGRAM, Echoes
from test.unit.synjitsu.test_packets import tcp_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demo.server import Jitsu

class SleepTestCase(StandinTestCase):
    """Has clients of a guest that sends back what it gets."""

    def connect_all(self, addresses: Sequence[str], *more: str, host: bool = False) -> Echoes:
        """Open a connection to each of *addresses*, as the client or the *host*."""
        words = [sys.executable, "-c", PROGRAM, json.dumps(list(addresses)), *more]
        line = self.network.command("host", words) if host else self.program(*words)
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, process)
        return Echoes(process)

    def round(self, echoes: Echoes, connections: int) -> list[float]:
        """Send on each connection, and check that each answers, with nothing lost or twice; return the seconds."""
        echoes.send()
        answers = echoes.answers()
        self.assertEqual(({}, [], connections), (answers["failed"], answers["extra"], len(answers["took"])),
                         self.standin.log()[-2000:])  # fmt: skip
        took: list[float] = answers["took"]
        return took

    @staticmethod
    def sleep(jitsu: Jitsu) -> None:
        """Put the guest to sleep, as its lease's end would."""
        jitsu.control.vm("www", "stop")

    def starts(self, jitsu: Jitsu) -> int:
        """Return how often the VM was started."""
        starts: int = jitsu.vm()["total_starts"]
        return starts


class SleepTests(SleepTestCase):
    """A client on the bridge."""

    def sleeps(self, mode: str, sleeps: int) -> None:
        """Check that eight connections go on after each of some sleeps, with kills of Synjitsu and Jitsu between."""
        jitsu = self.begin(f"ttl: 60\nmode: {mode}", habits="echo")
        flows = self.directory / "synjitsu.flows"
        echoes = self.connect_all([IP] * 6 + [IP6] * 2)
        self.round(echoes, 8)
        self.until(lambda: jitsu.vm()["state"] == "up")
        for number in range(sleeps):
            self.sleep(jitsu)
            self.assertEqual({"pause": "paused", "save": "saved"}[mode], jitsu.vm()["state"])
            if number == 1:
                self.until(lambda: flows.stat().st_size >= 9 * SIZE)
                self.standin.stop(signal.SIGKILL)
                self.standin.start()
                self.until(lambda: jitsu.log().count("Synjitsu is there again") == 1)
            if number == 2:
                jitsu.stop(signal.SIGKILL)
                jitsu.start()
                self.until(lambda: jitsu.log().count("connected to Synjitsu") == 2)
            self.round(echoes, 8)
            self.round(echoes, 8)
            self.assertEqual(number + 2, self.starts(jitsu))
            self.until(lambda: jitsu.vm()["state"] == "up")
        self.assertEqual((0, 0), (self.count("TcpEstabResets"), self.count("TcpOutRsts")))

    def test_paused(self) -> None:
        """Connections of IPv4 and IPv6 to a paused guest go on, also if Synjitsu or Jitsu is killed meanwhile."""
        self.sleeps("pause", 3)

    def test_saved(self) -> None:
        """The same with a guest whose QEMU ends."""
        self.sleeps("save", 3)

    def test_while_stopping(self) -> None:
        """What is sent while the guest is being saved wakes it again."""
        jitsu = self.begin("ttl: 60\nmode: save", habits="echo")
        echoes = self.connect_all([IP] * 2)
        self.round(echoes, 2)
        self.until(lambda: jitsu.vm()["state"] == "up")
        stopping = Thread(target=self.sleep, args=(jitsu,))
        stopping.start()
        self.addCleanup(stopping.join)
        self.until(lambda: jitsu.vm()["state"] != "up")
        self.round(echoes, 2)
        stopping.join()
        self.round(echoes, 2)  # the guest may have answered the one before until it stood still
        self.until(lambda: self.starts(jitsu) == 2)
        self.assertEqual(0, self.count("TcpEstabResets"))

    def test_lease(self) -> None:
        """A guest that nobody uses is put to sleep though connections are open, and they go on."""
        jitsu = self.begin("ttl: 1\nidle: 2\nmode: pause", habits="echo")
        echoes = self.connect_all([IP] * 2)
        self.round(echoes, 2)
        jitsu.wait("paused")
        self.round(echoes, 2)
        self.assertEqual(2, self.starts(jitsu))

    def test_scanned(self) -> None:
        """Segments of no open connection, and the end of one that is, wake nothing; then data wakes."""
        jitsu = self.begin("ttl: 60\nmode: pause", "ports: [80]", habits="echo")
        echoes, ends = self.connect_all([IP] * 2), self.connect_all([IP])
        self.round(echoes, 2)
        self.sleep(jitsu)
        before = jitsu.control.ask("GET", "/v1/standins")["counters"]["held"]
        self.network.run("client", [sys.executable, "-c", SCAN, *scan()])
        ends.end()
        self.until(lambda: jitsu.control.ask("GET", "/v1/standins")["counters"]["held"] > before)
        self.assertEqual(("paused", 1), (jitsu.vm()["state"], self.starts(jitsu)))
        self.round(echoes, 2)
        self.assertEqual(2, self.starts(jitsu))

    def test_keepalive(self) -> None:
        """The keep-alive probes of idle clients are answered, and wake nothing."""
        jitsu = self.begin("ttl: 60\nmode: pause", habits="echo")
        all_ = [self.connect_all([IP, IP6], "keepalive", host=host) for host in (False, True)]
        for echoes in all_:
            self.round(echoes, 2)
        self.until(lambda: jitsu.vm()["state"] == "up")
        self.sleep(jitsu)
        before = self.count("TcpExtTCPKeepAlive")
        self.until(lambda: self.count("TcpExtTCPKeepAlive") >= before + 2 * 6)
        self.assertEqual(("paused", 1), (jitsu.vm()["state"], self.starts(jitsu)))
        for echoes in all_:
            self.round(echoes, 2)

    def test_host(self) -> None:
        """Connections of the host itself go on, too."""
        jitsu = self.begin("ttl: 60\nmode: pause", habits="echo")
        echoes = self.connect_all([IP, IP6], host=True)
        self.round(echoes, 2)
        for _ in range(2):
            self.until(lambda: jitsu.vm()["state"] == "up")
            self.sleep(jitsu)
            self.round(echoes, 2)
        self.assertEqual(3, self.starts(jitsu))

    def test_off(self) -> None:
        """Where the guest's memory is gone, clients are told at once, that of the host too, and can reconnect."""
        jitsu = self.begin("ttl: 60\nmode: destroy", habits="echo")
        both = [self.connect_all([IP, IP6], host=host) for host in (False, True)]
        for echoes in both:
            self.round(echoes, 2)
        self.until(lambda: jitsu.vm()["state"] == "up")
        self.sleep(jitsu)
        self.assertEqual("off", jitsu.vm()["state"])
        for echoes in both:
            echoes.send()
            self.assertEqual(["[Errno 104] Connection reset by peer"] * 2, list(echoes.answers()["failed"].values()))
        self.assertEqual(1, self.starts(jitsu))
        self.round(self.connect_all([IP, IP6]), 2)


class RouterSleepTests(SleepTestCase, RouterTestCase):
    """A client behind a router."""

    def test_router(self) -> None:
        """The router is sent the stand-in's MAC, and the connections behind it go on."""
        jitsu = self.begin("ttl: 60\nmode: pause", habits="echo", change=self.through_router)
        echoes = self.connect_all([IP] * 2)
        self.round(echoes, 2)
        for _ in range(2):
            self.until(lambda: jitsu.vm()["state"] == "up")
            self.sleep(jitsu)
            self.round(echoes, 2)
        self.assertEqual((3, 0), (self.starts(jitsu), self.count("TcpEstabResets")))


#: Sends the TCP segments that are its arguments.
SCAN: Final = f"""
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for segment in sys.argv[1:]:
    one.sendto(bytes.fromhex(segment), ("{IP}", 0))
"""


def scan() -> list[str]:
    """Return segments with ACK, FIN, RST and others, each with an octet, from ports that have no connection."""
    client, vm = ip_address(lab.CLIENT_IP).packed, ip_address(IP).packed
    return [
        tcp_frame(client, vm, sport=2000 + number, dport=port, flags=flags, data=b"x")[34:].hex()
        for number, flags in enumerate((0x10, 0x11, 1, 4, 0x18, 0, 0x29, 0x12)) for port in (80, 22, 443)
    ]
