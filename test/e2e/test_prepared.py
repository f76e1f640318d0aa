"""`prepare: true` with QEMU guests: the first client finds a clean guest, whatever has happened meanwhile."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from demo import lab
from test.e2e.test_guests import IP, NAME, LabTestCase
from test.e2e.test_standin import IP6, StandinTestCase

if TYPE_CHECKING:
    from demo.server import Jitsu

PREPARE = "ttl: 1\n    prepare: true"


class PreparedTests(LabTestCase):
    """A client that asks, and connects."""

    def prepared(self, more: str = "") -> Jitsu:
        """Begin, and wait until the VM is prepared."""
        jitsu = self.begin("idle: 2", f"wait_for_port: 80\n    prepare: true\n    {more}")
        jitsu.wait("prepared")
        return jitsu

    def page(self) -> float:
        """Ask and fetch the page by one connection, as the client; return for how long the guest says it is up."""
        self.assertIn(IP, self.dig())
        page = self.network.run("client", ["curl", "--silent", "--fail", "--max-time", "5", f"http://{IP}/"]).stdout
        return float(page.split()[2])

    def test_life(self) -> None:
        """Each client finds it at once, and no client's guest is another's: it is made anew after each use."""
        jitsu = self.prepared()
        first = self.qemus()
        self.assertEqual((1, 0), (len(first), jitsu.vm()["total_starts"]))
        self.page()
        self.assertEqual(("up", first), (jitsu.vm()["state"], self.qemus()))
        jitsu.wait("prepared")
        second = self.qemus()
        self.assertEqual((1, set()), (len(second), set(first) & set(second)))
        self.page()
        self.assertEqual((2, second), (jitsu.vm()["total_starts"], self.qemus()))

    def test_killed(self) -> None:
        """A kill of Jitsu leaves it prepared; a kill of its QEMU makes it anew."""
        jitsu = self.prepared()
        first = self.qemus()
        jitsu.stop(signal.SIGKILL)
        jitsu.start()
        jitsu.wait("prepared")
        self.assertEqual(first, self.qemus())
        os.kill(first[0], signal.SIGKILL)
        self.until(lambda: self.qemus() and self.qemus() != first)
        jitsu.wait("prepared")
        self.page()

    def test_changed(self) -> None:
        """If its definition changes, even while Jitsu does not run, no client gets the old guest."""
        jitsu = self.prepared()
        first = self.qemus()
        jitsu.stop(signal.SIGTERM)
        definition = self.directory / "www.xml"
        definition.write_text(definition.read_text().replace("</name>", "</name><title>another</title>", 1))
        jitsu.start()
        self.until(lambda: self.qemus() and self.qemus() != first)
        self.page()


class StandinTests(StandinTestCase):
    """A client whose packet comes without a query, or with a query that is answered before."""

    def test_packet(self) -> None:
        """A SYN to the address of a prepared VM gets to its guest at once, and so does the next one's after its use."""
        jitsu = self.begin("idle: 2", PREPARE)
        for number in range(3):
            jitsu.wait("prepared")
            (qemu,) = self.qemus()
            took = self.page(self.fetch(IP6 if number == 1 else IP))
            self.assertEqual([qemu], self.qemus())
            self.assertLess(took, 0.9, "its SYN was sent again")
        self.assertEqual((3, 0), (jitsu.vm()["total_starts"], self.count("TcpExtTCPSynRetrans")))

    def test_query(self) -> None:
        """A client that has asked connects by one SYN."""
        jitsu = self.begin("idle: 2", PREPARE)
        jitsu.wait("prepared")
        self.network.run("client", ["dig", f"@{lab.HOST_IP}", NAME, "+short"])
        self.once()

    def test_while_it_boots(self) -> None:
        """A packet that comes while the guest is being prepared gets to it when it is ready."""
        jitsu = self.begin("idle: 2", PREPARE, habits="listen_after=1000")
        self.until(lambda: jitsu.vm()["state"] == "preparing" and self.qemus())
        self.page(self.fetch())
        self.assertEqual(1, jitsu.vm()["total_starts"])
