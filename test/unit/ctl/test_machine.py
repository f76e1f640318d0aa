"""Observations of this machine; of bridges and other programs in `test.e2e.test_doctor`."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import tempfile
import time
from ipaddress import ip_interface
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from demo.lab import free_port
from jitsu_tw.ctl.diagnosis import machine
from jitsu_tw.ctl.diagnosis.findings import Link


class SocketTests(SynchronousTestCase):
    """Sockets and their processes, as the kernel lists them."""

    def test_held(self) -> None:
        """Sockets of both protocols and families are found, with their process; a TCP client's is not."""
        port = free_port()
        with (socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_INET6) as tcp,
              socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as client):  # fmt: skip
            udp.bind(("127.0.0.1", port))
            client.bind(("127.0.0.1", port))
            client.connect(other.getsockname())
            tcp.bind(("::1", port))
            tcp.listen()
            found = machine.held(port)
        self.assertEqual([("udp", "127.0.0.1"), ("tcp", "::1")], [(held.protocol, held.host) for held in found])
        self.assertEqual({os.getpid()}, {held.pid for held in found})
        self.assertIn("twisted.trial", " ".join(found[0].process))
        self.assertEqual([], [held for held in machine.held(port) if held.protocol == "udp"])

    def test_here(self) -> None:
        """Of some addresses, those of this host are found."""
        self.assertEqual({"127.0.0.1"}, machine.here(["127.0.0.1", "192.0.2.53"]))

    def test_connects(self) -> None:
        """A UNIX socket that nothing listens on, or that is not there, tells why."""
        path = f"{tempfile.mkdtemp()}/s"
        self.assertEqual("No such file or directory", machine.connects(path))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            self.assertEqual("Connection refused", machine.connects(path))
            server.listen()
            self.assertEqual("", machine.connects(path))


    def test_access(self) -> None:
        """The group of a socket, and whether that may connect, are read; a socket that is not there has none."""
        path = Path(tempfile.mkdtemp(), "s")
        self.assertIsNone(machine.access(str(path)))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        group = grp.getgrgid(path.stat().st_gid).gr_name
        for mode, shared in ((0o660, True), (0o620, False), (0o600, False)):
            path.chmod(mode)
            self.assertEqual((group, shared), machine.access(str(path)))


class LinkTests(SynchronousTestCase):
    """Interfaces."""

    def test_here(self) -> None:
        """The loopback interface of this host is found, with its network."""
        (loopback,) = (link for link in machine.links() if link.name == "lo")
        self.assertIn(ip_interface("127.0.0.1/8"), loopback.addresses)
        self.assertFalse(loopback.is_bridge)

    def test_no_program(self) -> None:
        """Without ip(8), the error has the remedy."""
        self.patch(shutil, "which", lambda *_, **__: None)
        self.assertIn("install iproute2", str(self.assertRaises(OSError, machine.links)))

    def test_hangs(self) -> None:
        """A program that does not end is given up, as an error of the system."""
        program = Path(tempfile.mkdtemp(), "ip")
        program.write_text("#!/bin/sh\nexec sleep 60\n")
        program.chmod(0o755)
        self.patch(machine, "ANSWERS_WITHIN", 0.1)
        self.patch(shutil, "which", lambda *_, **__: str(program))
        self.assertRaises(OSError, machine.links)

    def test_bridge(self) -> None:
        """What ip(8) shows of a bridge is read, with times in seconds."""
        shown = {
            "ifname": "virbr0", "flags": ["NO-CARRIER", "BROADCAST", "UP"],
            "linkinfo": {"info_kind": "bridge", "info_data": {"forward_delay": 200, "stp_state": 1}},
            "addr_info": [{"local": "192.168.122.1", "prefixlen": 24}],
        }  # fmt: skip
        expected = Link("virbr0", is_bridge=True, up=True, carrier=False, stp=True, forward_delay=2.0,
                        addresses=(ip_interface("192.168.122.1/24"),))  # fmt: skip
        self.assertEqual(expected, machine._link(shown))


class RestTests(SynchronousTestCase):
    """libvirt's networks, the clock, disks and limits."""

    def test_nat(self) -> None:
        """Of libvirt's networks, those behind NAT are found by their bridges; a file that is no XML is left out."""
        folder = Path(tempfile.mkdtemp())
        forms = {"default": "<forward mode='nat'/>", "open": "<forward mode='open'/>", "isolated": ""}
        for number, (name, forward) in enumerate(forms.items()):
            (folder / f"{name}.xml").write_text(
                f"<networkstatus><network>{forward}<bridge name='virbr{number}'/></network></networkstatus>"
            )
        (folder / "bad.xml").write_text("<network")
        self.patch(machine, "NETWORKS", folder)
        self.assertEqual({"virbr0": "default"}, machine.nat_networks())

    def test_ahead(self) -> None:
        """The last change of a state is as far in the future as its branch main says."""
        state = Path(tempfile.mkdtemp())
        self.assertIsNone(machine.ahead(state))
        (state / "refs/heads").mkdir(parents=True)
        (state / "refs/heads/main").touch()
        os.utime(state / "refs/heads/main", (0, time.time() + 3600))
        found = machine.ahead(state)
        assert found is not None
        self.assertTrue(3000 < found <= 3600)

    def test_disk(self) -> None:
        """Of a folder that is not there yet, the disk of the one above it is looked at."""
        path, free, whole = machine.disk(Path("/tmp/nothing/here/state.git"))  # noqa: S108
        self.assertEqual("/tmp", path)  # noqa: S108
        self.assertTrue(0 <= free <= whole)

    def test_facts(self) -> None:
        """The kernel tells whether its clock is synchronised, how many files may be open, and of KVM."""
        self.assertIsInstance(machine.is_synchronised(), bool)
        self.assertGreater(machine.may_open(), 0)
        self.assertEqual({"present", "usable", "cpu"}, machine.kvm().keys())
