"""Guests in use that nobody asks for by name, all of it real: a guest on QEMU, and a client's kernel."""

from __future__ import annotations

import sys
from time import sleep
from typing import Final

from test.e2e.test_guests import IP
from test.e2e.test_sleep import SleepTestCase

#: Sends a datagram to UDP port 514 each fifth of a second, for as many seconds as its argument says.
SYSLOG: Final = f"""
import socket, sys, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5 * int(sys.argv[1])):
    one.sendto(b"<13>hello", ("{IP}", 514))
    time.sleep(0.2)
"""


#: Tries to connect to closed ports, twenty a second, for as many seconds as its argument says.
SCAN: Final = f"""
import socket, sys, time
for number in range(20 * int(sys.argv[1])):
    with socket.socket() as one:
        one.settimeout(0.02)
        one.connect_ex(("{IP}", 1000 + number))
    time.sleep(0.03)
"""


class UseTests(SleepTestCase):
    """What keeps a VM whose lease is a few seconds."""

    def test_receives(self) -> None:
        """A guest that only receives is kept as long as it does, and then stopped."""
        jitsu = self.begin("ttl: 1\nidle: 4\nmode: destroy", habits="mute")
        jitsu.control.vm("www", "start")
        jitsu.wait("up")
        self.network.run("client", [sys.executable, "-c", SYSLOG, "12"])
        found = jitsu.control.vm("www")
        self.assertEqual(("up", 1), (found["state"], found["total_starts"]))
        self.assertIn("packets", found["uses"])
        jitsu.wait("off")

    def test_connection(self) -> None:
        """An open connection keeps a guest whose stop would end it, though nothing is sent on it."""
        jitsu = self.begin("ttl: 1\nidle: 4\nmode: destroy", habits="echo")
        echoes = self.connect_all([IP])
        self.round(echoes, 1)
        sleep(12.0)
        self.assertEqual(1, jitsu.control.vm("www")["connections"])
        self.round(echoes, 1)
        self.assertEqual(1, self.starts(jitsu))
        echoes.end()
        jitsu.wait("off")

    def test_scan(self) -> None:
        """A scan of closed ports, which the guest answers, neither keeps it nor wakes it."""
        jitsu = self.begin("ttl: 1\nidle: 4\nmode: destroy", "ports: [80]", habits="echo")
        jitsu.control.vm("www", "start")
        jitsu.wait("up")
        self.network.run("client", [sys.executable, "-c", SCAN, "12"])
        self.assertEqual(("off", 1), (jitsu.vm()["state"], self.starts(jitsu)))
