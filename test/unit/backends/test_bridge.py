"""How many packets a machine has sent, by the files that the kernel has of bridges."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends.bridge import Ports

MAC: Final = "52:54:00:99:00:10"
OTHER: Final = "52:54:00:99:00:11"


class PortsTests(SynchronousTestCase):
    """With a bridge of two ports."""

    def setUp(self) -> None:
        """Make the bridge."""
        self.interfaces = Path(self.mktemp())
        self.ports = Ports()
        self.ports.interfaces = self.interfaces
        for number, name in enumerate(("veth1", "veth2"), 1):
            self.plug(name, number, number + 10)
        self.learn((MAC, 1, False), (OTHER, 2, False))

    def plug(self, name: str, port: int, index: int, sent: int = 0) -> None:
        """Make a port, or another one of its name."""
        (self.interfaces / name / "statistics").mkdir(parents=True, exist_ok=True)
        (self.interfaces / name / "statistics" / "rx_packets").write_text(f"{sent}\n")
        (self.interfaces / name / "ifindex").write_text(f"{index}\n")
        (self.interfaces / "br0" / "brif" / name).mkdir(parents=True, exist_ok=True)
        (self.interfaces / "br0" / "brif" / name / "port_no").write_text(f"{port:#x}\n")

    def learn(self, *entries: tuple[str, int, bool]) -> None:
        """Write what the bridge has learnt: MACs, each with its port, and whether it is the port's own."""
        (self.interfaces / "br0" / "brforward").write_bytes(b"".join(
            struct.pack("=6sBBIBBH", bytes.fromhex(mac.replace(":", "")), port & 255, own, 0, port >> 8, 0, 0)
            for mac, port, own in entries
        ))  # fmt: skip

    def test_sent(self) -> None:
        """The port of a MAC counts; a MAC behind no port is not counted."""
        self.plug("veth1", 1, 11, sent=5)
        self.assertEqual((5, 0), (self.ports.sent(MAC), self.ports.sent(OTHER)))
        self.assertIsNone(self.ports.sent("52:54:00:99:00:12"))

    def test_forgotten(self) -> None:
        """A port that was found counts though the bridge has forgotten the MAC, but not one that came in its place."""
        self.assertEqual(0, self.ports.sent(MAC))
        self.learn()
        self.plug("veth1", 1, 11, sent=7)
        self.assertEqual(7, self.ports.sent(MAC))
        self.plug("veth1", 1, 12, sent=9)
        self.assertIsNone(self.ports.sent(MAC))

    def test_gone_and_back(self) -> None:
        """The port that a machine has after its next start counts, whatever its name and number."""
        self.assertEqual(0, self.ports.sent(MAC))
        for folder in (self.interfaces / "veth1", self.interfaces / "br0" / "brif" / "veth1"):
            shutil.rmtree(folder)
        self.assertIsNone(self.ports.sent(MAC))
        self.plug("veth3", 3, 13, sent=8)
        self.learn((MAC, 3, False))
        self.assertEqual(8, self.ports.sent(MAC))

    def test_renamed(self) -> None:
        """A port that is renamed goes on to count."""
        self.assertEqual(0, self.ports.sent(MAC))
        for folder in (self.interfaces, self.interfaces / "br0" / "brif"):
            (folder / "veth1").rename(folder / "lan1")
        self.assertEqual(0, self.ports.sent(MAC))

    def test_many_behind(self) -> None:
        """Behind a port with several MACs, as a cable to the LAN is, nobody knows whose packets they are."""
        self.learn((MAC, 1, False), (OTHER, 1, False))
        self.assertIsNone(self.ports.sent(MAC))
        self.learn((MAC, 1, False), (OTHER, 1, True))
        self.assertEqual(0, self.ports.sent(MAC))

    def test_high_port(self) -> None:
        """The number of a port has two octets."""
        self.plug("veth1", 257, 11, sent=3)
        self.learn((MAC, 257, False))
        self.assertEqual(3, self.ports.sent(MAC))
