"""A template with `boot_from: snapshot`: its VMs are clones of one image, each with its own name and address."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

from demo import clones, lab
from demo.server import Jitsu
from test.e2e.test_guests import LabTestCase

DYING: Final = str(Path(__file__).parents[1] / "support" / "dying.py")

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
connect: {{connect}}
persistdb: state.git
images: images
answer_by: 30
max_booting: 2
templates:
  - name: site
    dns: "*.sites.jitsu.test"
    pool: 10.99.0.100-10.99.0.199
    exists: "*"
    define: site.xml
    boot_from: snapshot
    wait_for_port: 80
    new_per_minute: 0
    idle: 30
"""


class CloneTests(LabTestCase):
    """Clients that ask for names of a template."""

    def start(self) -> Jitsu:
        """Start a Jitsu with the template."""
        (self.directory / "site.xml").write_text(clones.definition(lab.BRIDGE))
        jitsu = Jitsu(self.directory, CONFIGURATION.format(connect=self.connect), lab.HOST_IP, self.network)
        self.addCleanup(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        return jitsu

    def seeded(self, jitsu: Jitsu) -> None:
        """Wait until VMs start as clones: the image is there, and its sum."""
        self.until(lambda: "its VMs start as clones" in jitsu.log())

    def site(self, *labels: str) -> dict[str, str]:
        """Ask for the names of *labels* at once, and fetch their pages; return the name in each."""
        clients = {}
        for label in labels:
            name = f"{label}.sites.jitsu.test"
            dig = f"dig @{lab.HOST_IP} +tries=1 +timeout=40 +short {name}"  # while libvirt has not answered, nothing
            script = f'until ip=$({dig}) && [ "$ip" ]; do sleep 0.1; done; curl -s --max-time 20 http://$ip/'
            command = self.network.command("client", ["sh", "-c", script])
            clients[label] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        pages = {label: client.communicate(timeout=90)[0] for label, client in clients.items()}
        return {label: page.partition("name: ")[2].strip() for label, page in pages.items()}

    def ended_by(self, process: subprocess.Popen[bytes], query: list[str]) -> bool:
        """Return whether *process* has ended; if not, the client asks *query*."""
        has_ended = process.poll() is not None
        if not has_ended:
            self.network.run("client", query, check=False)
        return has_ended

    def test_clones(self) -> None:
        """The first boots; once the image is made, the others are clones, with names and addresses of their own."""
        jitsu = self.start()
        self.assertEqual({"alice": "alice.site"}, self.site("alice"))
        self.seeded(jitsu)
        labels = [f"user{number}" for number in range(4)]
        self.assertEqual({label: f"{label}.site" for label in labels}, self.site(*labels))
        found = [jitsu.vm(f"{label}.site") for label in labels]
        self.assertEqual(4, len({one["addresses"][0] for one in found}))
        self.assertEqual(["cloned"] * 4, [one["reason"] for one in found])

    def test_killed(self) -> None:
        """If Jitsu is killed while the image is made, nothing is left of that once it is made again."""
        jitsu = self.start()
        self.site("alice")
        self.until(lambda: len(self.qemus()) == 2)  # the other one is that of the image
        jitsu.stop(signal.SIGKILL)
        self.assertFalse((self.directory / "images/site.seed").exists())
        jitsu.start()
        self.assertEqual({"bob": "bob.site"}, self.site("bob"))
        self.seeded(jitsu)
        self.until(lambda: len(self.qemus()) == 2)
        self.assertEqual({"site.seed", "site.sum"}, {path.name for path in (self.directory / "images").glob("site.*")})
        self.assertEqual({"carol": "carol.site"}, self.site("carol"))
        self.assertEqual("cloned", jitsu.vm("carol.site")["reason"])

    def test_killed_while_cloning(self) -> None:
        """If Jitsu is killed before a clone has its interface, or just after, the next query finds a whole one."""
        jitsu = self.start()
        self.site("alice")
        self.seeded(jitsu)
        for label, moment in (("bob", "before:libvirt.virDomain.attachDeviceFlags"),
                              ("carol", "after:libvirt.virDomain.attachDeviceFlags")):
            jitsu.stop(signal.SIGKILL)
            jitsu.twistd = (sys.executable, DYING, moment)
            jitsu.start()
            assert jitsu.process is not None
            query = ["dig", f"@{lab.HOST_IP}", "+tries=1", "+timeout=1", f"{label}.sites.jitsu.test"]
            self.until(partial(self.ended_by, jitsu.process, query))
            self.assertEqual(-signal.SIGKILL, jitsu.process.returncode)
            jitsu.twistd = Jitsu.twistd
            jitsu.start()
            self.assertEqual({label: f"{label}.site"}, self.site(label))
            self.assertEqual("cloned", jitsu.vm(f"{label}.site")["reason"])
        self.assertEqual([], list((self.directory / "images").glob("*.clone")))
