"""
A VM per name, all of it real: a client asks for names, and QEMU guests that say their own names answer it.

After each failure, and after forgetting, a test looks at all that can be left of a VM: its definition, its disk, its
files in the state, its names, its process.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid5

import pygit2

from demo import lab
from demo import unikernel as guest
from demo.server import Jitsu, Synjitsu
from jitsu_tw.config.vms import NAMESPACE
from test.e2e.test_guests import LabTestCase, libvirt_root

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that the removal of a VM may take on a slow machine. Nothing is measured here.
GOES_WITHIN: Final = 20.0

ROOT: Final = Path(__file__).parents[2]
SITES: Final = "sites.jitsu.test"
CONFIGURATION: Final = """\
bind: {server}
connect: {connect}
persistdb: state.git
allow_transfer: {server}
answer_by: 60
starts_per_minute: 0
rate_limit: 0
max_booting: 2
{top}
templates:
  - name: site
    dns: "*.{sites}"
    pool: {pool}
    define: site.xml
    exists: {exists}
    new_per_minute: 0
    wait_for_port: 80
    {more}
"""

#: The names of the client's questions are its arguments. All are asked at once, and each page is fetched from the
#: address in the answer; prints what was seen, by name, as JSON.
ASKS: Final = f"""
import json, sys
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {str(ROOT)!r})
from demo.client import fetch
names = sys.argv[1:]
with ThreadPoolExecutor(len(names)) as threads:
    seen = threads.map(lambda name: fetch("{lab.HOST_IP}", 53, f"{{name}}.{SITES}", 80), names)
    print(json.dumps(dict(zip(names, seen))))
"""

#: Asks for as many random names as its argument says, 40 at a time, and prints the codes of the answers.
FLOODS: Final = f"""
import random, socket, sys, dns.message, dns.rcode
with socket.socket(type=socket.SOCK_DGRAM) as one:
    one.connect(("{lab.HOST_IP}", 53))
    one.settimeout(10)
    codes = set()
    for _ in range(int(sys.argv[1]) // 40):
        for _ in range(40):
            one.send(dns.message.make_query(f"{{random.randbytes(12).hex()}}.{SITES}", "A").to_wire())
        codes |= {{one.recv(4096)[3] & 15 for _ in range(40)}}
    print(*map(dns.rcode.to_text, codes))
"""

#: What a template's definition has more, if its VMs have disks.
DISK: Final = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='${disk}'/><target dev='vda' bus='virtio'/>
    </disk>
  </devices>"""


class SitesTestCase(LabTestCase):
    """Has a template, whose VMs boot the guest without a kernel."""

    def setUp(self) -> None:
        """Begin with no VM, and no Jitsu."""
        super().setUp()
        self.layers = self.directory / "layers"

    def begin_sites(
        self,
        exists: str = '"s*"',
        more: str = "",
        top: str = "",
        pool: str = "10.99.0.100-10.99.0.199",
        habits: str = "",
        change: Callable[[str], str] = lambda xml: xml,
        twistd: tuple[str, ...] = Jitsu.twistd,
    ) -> Jitsu:
        """Start a Jitsu with the template; *more* stands in it, and *change* is made to its definition."""
        xml = guest.domain_xml("${name}", "${ip}", "${mac}", habits, uuid="${uuid}", bridge=lab.BRIDGE)
        (self.directory / "site.xml").write_text(change(xml))
        configuration = CONFIGURATION.format(
            server=lab.HOST_IP, connect=self.connect, sites=SITES, exists=exists, more=more, top=top, pool=pool
        )
        self.jitsu = Jitsu(self.directory, configuration, lab.HOST_IP, self.network)
        self.jitsu.twistd = twistd
        self.addCleanup(lambda: self.jitsu.stop(signal.SIGKILL))
        self.jitsu.start()
        return self.jitsu

    def with_disk(self, **options: Any) -> Jitsu:
        """Start a Jitsu whose template has a disk, of a few MiB."""
        self.base = self.directory / "base.img"
        self.base.write_bytes(b"what all VMs share".ljust(1 << 22, b"\0"))
        return self.begin_sites(
            more=f"disk: base.img\n    layers: {self.layers}",
            change=lambda xml: xml.replace("</devices>", DISK.strip()), **options,
        )  # fmt: skip

    def ask(self, *labels: str) -> dict[str, dict[str, Any]]:
        """Ask for the names of *labels* at once, and fetch the pages, as the client; return what it saw, by label."""
        seen: dict[str, dict[str, Any]] = json.loads(
            self.network.run("client", [sys.executable, "-c", ASKS, *labels]).stdout
        )
        return seen

    def served(self, *labels: str) -> dict[str, str]:
        """Ask for *labels*; each has an address and a page of its own. Return the addresses."""
        addresses = {}
        for label, seen in self.ask(*labels).items():
            self.assertEqual("NOERROR", seen["rcode"], seen["remarks"])
            self.assertIn(f"\nname: {label.lower()}.site\naddress: {seen['address']} at 52:", seen["page"])
            addresses[label] = seen["address"]
        self.assertEqual(len(labels), len(set(addresses.values())))
        return addresses

    def refused(self, label: str, why: str) -> None:
        """Ask for *label*: its VM is not made, for the reason *why*."""
        seen = self.ask(label)[label]
        self.assertEqual("SERVFAIL", seen["rcode"])
        self.assertIn(why, " ".join(seen["remarks"]))

    def forget(self, *labels: str) -> None:
        """Forget VMs."""
        for label in labels:
            self.jitsu.control.ask("POST", f"/v1/vms/{label}.site/forget")

    def left(self) -> dict[str, set[str]]:
        """Return all that there is of the VMs of the template, by where it is; places without any are left out."""
        transfer = self.network.run("host", ["dig", f"@{lab.HOST_IP}", "jitsu.test", "AXFR"]).stdout
        places = {
            "definitions": {path.stem for path in libvirt_root().glob("etc/qemu/*.xml")},
            "running": {path.stem for path in libvirt_root().glob("run/qemu/*.xml")},
            "processes": set(map(str, self.qemus())),
            "disks": set(self.network.run("host", ["find", self.layers, "-type", "f"], check=False).stdout.split()),
            "state": self.in_state(),
            "names": set(re.findall(rf"^(\S+)\.{SITES}\.\s+\d+\s+IN\s+A\s", transfer, re.MULTILINE)),
            "vms": {vm["name"] for vm in self.jitsu.vms()},
        }
        return {place: found for place, found in places.items() if found}

    def in_state(self) -> set[str]:
        """Return the uuids that the state has anything of, but the template's own."""
        uuids: set[str] = set()
        repository = pygit2.Repository(str(self.directory / "state.git"))
        tree = repository.revparse_single("main").peel(pygit2.Tree)
        for folder in ("vm", "origin", "stats"):
            if f"jitsu/{folder}" in tree:
                below = tree[f"jitsu/{folder}"]
                assert isinstance(below, pygit2.Tree)
                uuids |= {one.name for one in below if one.name is not None}
        return uuids - {str(uuid5(NAMESPACE, "template site"))}

    def nothing_is_left(self) -> None:
        """See all that there was of any VM go."""
        end = time.monotonic() + GOES_WITHIN
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.1)
        log = [line for line in self.jitsu.log().splitlines() if "jitsu.test, serial" not in line]
        self.assertEqual({}, left, "\n".join(log[-20:]))


class LifeTests(SitesTestCase):
    """Names whose VMs are made."""

    def test_fifty(self) -> None:
        """Fifty names, asked for at once: fifty guests; idle ones are stopped; later the addresses are the same."""
        jitsu = self.begin_sites(more="idle: 3\n    ttl: 1")
        labels = [f"s{number}" for number in range(50)]
        addresses = self.served(*labels)
        self.until(lambda: {vm["state"] for vm in jitsu.vms()} == {"off"})
        self.assertEqual([], self.qemus())
        again = ("s7", "s42")
        self.assertEqual({label: addresses[label] for label in again}, self.served(*again))
        jitsu.stop()
        jitsu.start()
        self.assertEqual({"s3": addresses["s3"]}, self.served("s3"))
        self.assertEqual(set(labels), self.left()["names"])
        self.forget(*labels)
        self.nothing_is_left()

    def test_synjitsu(self) -> None:
        """With Synjitsu, the answer does not wait for the guest, and the first packet does; both end with the VM."""
        synjitsu = Synjitsu(self.directory, self.network)
        self.addCleanup(synjitsu.stop, signal.SIGKILL)
        synjitsu.start()
        jitsu = self.begin_sites(
            more="use_synjitsu: true", top=f"synjitsu: {synjitsu.place}", habits="listen_after=1000"
        )
        seen = self.ask("slow")["slow"]
        self.assertIn("\nname: slow.site\n", seen["page"])
        times = jitsu.vm("slow.site")["activation_ms"]
        self.assertLess(times["answered"], times["ready"])
        self.forget("slow")
        self.nothing_is_left()
        connect = ["curl", "--silent", "--max-time", "0.5", f"http://{seen['address']}/"]
        self.assertNotEqual(0, self.network.run("client", connect, check=False).returncode)
        self.assertEqual([], self.qemus())

    def test_disks(self) -> None:
        """Each VM has a disk of its own, above the image that all share; with the VM goes its own disk alone."""
        jitsu = self.with_disk()
        before = self.base.stat()
        self.served("s1", "s2")
        disks = {path.stem: path.read_bytes()[:4096] for path in self.layers.glob("*.qcow2")}
        self.assertEqual({jitsu.vm(f"{label}.site")["uuid"] for label in ("s1", "s2")}, disks.keys())
        for header in disks.values():
            self.assertTrue(header.startswith(b"QFI\xfb"))
            self.assertIn(bytes(self.base), header)
        kept = jitsu.vm("s2.site")["uuid"]
        self.forget("s1")
        self.assertEqual([kept], [path.stem for path in self.layers.glob("*.qcow2")])
        self.served("s2")
        self.forget("s2")
        self.nothing_is_left()
        self.assertEqual((before.st_size, before.st_mtime_ns), (self.base.stat().st_size, self.base.stat().st_mtime_ns))


class NamesTests(SitesTestCase):
    """Which names have VMs."""

    def test_names(self) -> None:
        """A label is one of a host, in any case, of 63 octets, or in another script; all others do not exist."""
        longest = "s" * 63
        self.begin_sites(exists='["s*", "xn--*", "a-b"]')
        self.assertEqual({longest, "xn--bcher-kva"}, self.served(longest, "xn--bcher-kva").keys())
        for label in ("other", "s_1", "-s", "s-", "deeper.s1", r"s\.1", r"s\000", "*"):
            answer = self.network.run("client", ["dig", f"@{lab.HOST_IP}", "-q", f"{label}.{SITES}"]).stdout
            self.assertNotRegex(answer, r"IN\s+A\s+10\.", label)
            if label != "*":
                self.assertIn("status: NXDOMAIN", answer, label)
        address = self.served("a-b")["a-b"]
        answer = self.network.run("client", ["dig", f"@{lab.HOST_IP}", "-q", f"A-b.{SITES}"]).stdout
        self.assertRegex(answer, rf"(?m)^A-b\.{SITES}\.\s+\d+\s+IN\s+A\s+{address}$")
        self.assertEqual({longest, "xn--bcher-kva", "a-b"}, self.left()["names"])

    def test_flood(self) -> None:
        """Ten thousand random names make nothing, and cost no memory; a VM that exists is served meanwhile."""
        (self.directory / "names").write_text("home\n")
        jitsu = self.begin_sites(exists="./names")
        address = self.served("home")
        self.flood(1000)
        before = self.memory(jitsu)
        flood = self.network.popen("client", [sys.executable, "-c", FLOODS, "10000"], stdout=subprocess.PIPE, text=True)
        self.addCleanup(flood.kill)
        self.assertEqual(address, self.served("home"))
        self.assertEqual("NXDOMAIN\n", flood.communicate()[0])
        self.assertLess(self.memory(jitsu) - before, 4 << 20)
        self.assertEqual(({"home"}, {"home.site"}), (self.left()["names"], self.left()["vms"]))

    def flood(self, number: int) -> None:
        """Ask for random names, none of which exists."""
        self.assertEqual("NXDOMAIN\n", self.network.run("client", [sys.executable, "-c", FLOODS, str(number)]).stdout)

    @staticmethod
    def memory(jitsu: Jitsu) -> int:
        """Return the resident memory of Jitsu, in octets."""
        assert jitsu.process is not None
        status = Path(f"/proc/{jitsu.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


class FailureTests(SitesTestCase):
    """VMs that cannot be made: the client reads why, and nothing of them is left."""

    def test_last_address(self) -> None:
        """Of two names that are asked for at once, one gets the last address; once it is forgotten, a third does."""
        self.begin_sites(pool="10.99.0.100")
        seen = self.ask("s1", "s2")
        self.assertEqual(["NOERROR", "SERVFAIL"], sorted(one["rcode"] for one in seen.values()))
        ((first, _), (_, refusal)) = sorted(seen.items(), key=lambda one: one[1]["rcode"])
        self.assertIn("all 1 addresses of site are taken", " ".join(refusal["remarks"]))
        left = self.left()
        self.assertEqual(({first}, {f"{first}.site"}), (left["names"], left["vms"]))
        self.assertEqual([1, 1, 1], [len(left[place]) for place in ("definitions", "processes", "state")])
        self.forget(first)
        self.nothing_is_left()
        self.served("s3")

    def test_neighbour_is_gone(self) -> None:
        """An address whose machine is not there any more, but which the kernel remembers, is free soon."""
        quick = [f"net.ipv4.neigh.{lab.BRIDGE}.{key}" for key in ("delay_first_probe_time=1", "ucast_solicit=1")]
        self.network.run("host", ["sysctl", "-w", *quick])
        old = ["ip", "neighbour", "replace", "10.99.0.100", "lladdr", "52:54:00:00:00:99", "dev", lab.BRIDGE]
        self.network.run("host", [*old, "nud", "stale"])
        self.begin_sites(pool="10.99.0.100", more="max: 1")
        self.refused("s1", "all 1 addresses of site are taken")
        self.until(lambda: self.ask("s1")["s1"]["rcode"] == "NOERROR")

    def test_disk_is_full(self) -> None:
        """Without room for a disk, there is no VM."""
        self.layers.mkdir()
        self.network.run("host", ["mount", "-t", "tmpfs", "-o", "size=4k", "none", self.layers])
        self.with_disk()
        self.refused("s1", "cannot be made")
        self.nothing_is_left()

    def test_base_is_missing(self) -> None:
        """Without the image that all disks are above, there is no VM."""
        self.with_disk()
        self.base.unlink()
        self.refused("s1", "No such file")
        self.nothing_is_left()

    def test_definition_is_refused(self) -> None:
        """What the hypervisor says about the definition is told to the client; the disk that was made goes again."""
        self.with_disk(habits="")
        definition = self.directory / "site.xml"
        definition.write_text(definition.read_text().replace("machine='q35'", "machine='nonsense'"))
        self.refused("s1", "XML error")
        self.nothing_is_left()

    def test_guest_ends(self) -> None:
        """A VM whose first start fails is forgotten, and its name is not tried again for a while."""
        self.begin_sites(habits="exit=0")
        self.refused("s1", "ended")
        self.nothing_is_left()
        self.refused("s1", "tried again in")
        self.assertEqual([], self.qemus())

    def test_exists_hangs(self) -> None:
        """A program that does not tell whether a name exists is ended; meanwhile other names are served."""
        program = self.directory / "exists"
        program.write_text('#!/bin/sh\n[ "$1" = s1 ] && exit 0\nexec sleep 4711\n')
        program.chmod(0o755)
        self.begin_sites(exists="./exists")
        with self.network.popen("client", [sys.executable, "-c", ASKS, "hangs"], stdout=subprocess.PIPE) as hanging:
            self.served("s1")
            seen = json.loads(hanging.communicate()[0])["hangs"]
        self.assertEqual("SERVFAIL", seen["rcode"])
        self.assertIn("has not answered within 5 s", " ".join(seen["remarks"]))
        self.assertEqual([], self.network.processes("sleep"))
        self.forget("s1")
        self.nothing_is_left()

    def test_exists_is_missing(self) -> None:
        """If what knows the names cannot be asked, there is no answer, and none that the name does not exist."""
        self.begin_sites(exists="./names")
        self.refused("s1", "No such file")
        self.nothing_is_left()
        (self.directory / "names").write_text("s1\n")
        self.until(lambda: self.ask("s1")["s1"]["rcode"] == "NOERROR")


class KilledTests(SitesTestCase):
    """Jitsu, killed while it makes a VM: what it left is nothing, or a VM like all others."""

    def killed(self, moment: str) -> None:
        """See Jitsu killed at the *moment*, and start another one."""
        dying = str(ROOT / "test" / "support" / "dying.py")
        jitsu = self.with_disk(twistd=(sys.executable, dying, moment))
        self.until((self.directory / "state.git" / "refs" / "heads" / "main").exists)
        with self.network.popen("client", ["dig", f"@{lab.HOST_IP}", f"s1.{SITES}"], stdout=subprocess.DEVNULL) as dig:
            assert jitsu.process is not None
            self.assertEqual(-signal.SIGKILL, jitsu.process.wait(20))
            dig.kill()
        jitsu.twistd = Jitsu.twistd
        jitsu.start()

    def is_whole(self, moment: str) -> None:
        """See that a kill at the *moment* leaves a VM that is served, and that can be forgotten."""
        self.killed(moment)
        (uuid,) = self.in_state()
        self.served("s1")
        left = self.left()
        self.assertEqual([uuid], [vm["uuid"] for vm in self.jitsu.vms()])
        self.assertEqual([f"{uuid}.qcow2"], [path.name for path in self.layers.glob("*.qcow2")])
        self.assertEqual([1, 1], [len(left[place]) for place in ("definitions", "processes")])
        self.forget("s1")
        self.nothing_is_left()

    def test_before(self) -> None:
        """Before its address is chosen, there is nothing."""
        self.killed("before:jitsu_tw.sync.templates.Templates._address")
        self.assertEqual({}, self.left())
        self.served("s1")

    def test_state(self) -> None:
        """It may be in the state alone."""
        self.is_whole("before:jitsu_tw.backends.layer.make")

    def test_disk(self) -> None:
        """It may have a disk, and no definition."""
        self.is_whole("after:jitsu_tw.backends.layer.make")

    def test_definition(self) -> None:
        """It may be defined, and off."""
        self.is_whole("after:libvirt.virConnect.defineXML")

    def test_start(self) -> None:
        """It may run, which another Jitsu does not know of."""
        self.is_whole("after:libvirt.virDomain.create")
