"""`jitsuctl doctor` and `check --connect` with real bridges, libvirt, resolvers and name servers."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SkipTest

from bench.debian import UnavailableError, environment, unpacked
from demo import lab
from demo import unikernel as guest
from demo.server import Jitsu
from test.e2e.test_guests import IP, MAC, PATIENCE, LabTestCase

BIN: Final = Path(sys.executable).parent

#: Where the parent zone is served, and the address of a second bridge.
PARENT_IP: Final = "10.99.0.3"

PARENT_ZONE: Final = f"""\
$ORIGIN test.
$TTL 60
@         SOA  ns hostmaster 1 3600 600 86400 5
          NS   ns
ns        A    {PARENT_IP}
jitsu     NS   {{server}}.jitsu
{{server}}.jitsu  A  {{address}}
"""

MEMORY: Final = f"""\
bind: {lab.HOST_IP}
backend: memory
vms: [{{name: www, dns: www.jitsu.test, ip: {IP}}}]
"""

#: Defines the domains whose XML is in the files that follow a URI.
DEFINE: Final = """
import libvirt, sys, threading
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.open(sys.argv[1])
for path in sys.argv[2:]:
    connection.defineXML(open(path).read())
"""


class DoctorTestCase(LabTestCase):
    """Runs jitsuctl in the namespace of the host."""

    def jitsuctl(self, *arguments: str, configuration: str) -> tuple[int, list[tuple[str, str, str]]]:
        """Run a command with --json; return its exit status and, of each finding, check, level and text."""
        path = self.directory / "jitsu.yaml"
        if not path.exists():
            path.write_text(configuration)
        run = self.network.run("host", [BIN / "jitsuctl", *arguments, "--json", "--config", path], check=False)
        self.assertNotIn("Traceback", run.stderr)
        answer = json.loads(run.stdout)
        found = answer if isinstance(answer, list) else answer["findings"]
        return run.returncode, [(one["check"], one["level"], one["finding"]) for one in found]

    def doctor(self, configuration: str, check: str) -> tuple[int, list[tuple[str, str]]]:
        """Run doctor; return its exit status and, of the findings of *check*, level and text."""
        status, found = self.jitsuctl("doctor", configuration=configuration)
        return status, [(level, text) for name, level, text in found if name == check]

    def ip(self, arguments: str) -> None:
        """Change an interface of the host."""
        self.network.run("host", ["ip", *arguments.split()])

    def start(self, *command: str | Path, **more: Any) -> subprocess.Popen[Any]:
        """Start a program on the host; end it later."""
        process = self.network.popen("host", command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL, **more)  # fmt: skip
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def dnsmasq(self, address: str, *options: str) -> None:
        """Start dnsmasq, and wait until it has its port."""
        try:
            root = unpacked("dnsmasq-base")
        except UnavailableError as error:
            message = f"dnsmasq-base: {error}"
            raise SkipTest(message) from error
        self.start("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file=",
                   "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces", f"--listen-address={address}",
                   *options, env=environment(root))  # fmt: skip
        self.wait_for(address)

    def wait_for(self, address: str) -> None:
        """Wait until a program has port 53 of *address*."""
        self.until(lambda: f"{address}:53 " in self.network.run("host", ["ss", "-Hlun"]).stdout)

    def use_resolver(self, address: str) -> None:
        """Make *address* the resolver of the host's programs."""
        path = self.directory / "resolv.conf"
        path.write_text(f"nameserver {address}\n")
        self.network.run("host", ["mount", "--bind", path, "/etc/resolv.conf"])


class MachineTests(DoctorTestCase):
    """This machine: bridges and ports."""

    def test_bridges(self) -> None:
        """
        No carrier, STP, a MAC that may change, and an address outside of all bridges are warnings.

        A bridge that is well is ok.
        """
        for number, kind in ((1, "stp_state 0"), (2, "stp_state 1 forward_delay 200")):
            self.ip(f"link add br{number} type bridge {kind}")
            if number != 1:
                self.ip(f"link set br{number} address 02:00:00:00:00:0{number}")
            self.ip(f"address add 10.99.{number}.1/24 dev br{number}")
            self.ip(f"link set br{number} up")
            # A bridge loses its carrier with its last port; one that never had any may have it.
            self.ip(f"link add port{number} type veth peer name far{number}")
            self.ip(f"link set port{number} master br{number} up")
            self.ip(f"link delete port{number}")
        places = {"well": IP, "asleep": "10.99.1.10", "late": "10.99.2.10", "far": "192.0.2.10"}
        vms = "".join(f"  - {{name: {name}, dns: {name}.jitsu.test, ip: {ip}}}\n" for name, ip in places.items())
        configuration = f"bind: {lab.HOST_IP}\nsynjitsu: unix:{self.directory}/s\nuse_synjitsu: true\n"
        status, found = self.doctor(f"{configuration}connect: {self.connect}\nvms:\n{vms}", "bridges")
        self.assertEqual(1, status, "libvirt knows none of them")
        self.assertIn(("ok", "the bridge br0 is up"), found)
        bad = [text.partition(":")[0] for level, text in found if level == "warning"]
        self.assertEqual(["the bridge br1 takes the lowest MAC of its ports", "the bridge br1 has no carrier",
                          "the bridge br2 has STP on", "the bridge br2 has no carrier",
                          "no interface of this host has a network with the address of far (192.0.2.10)"], bad)
        self.assertIn("silent for its first 4 s", str(found))

    def test_port(self) -> None:
        """A process that has Jitsu's port is named."""
        self.assertEqual([("ok", f"{lab.HOST_IP} port 53 is free")], self.doctor(MEMORY, "ports")[1])
        self.dnsmasq(lab.HOST_IP)
        status, ((level, text),) = self.doctor(MEMORY, "ports")
        self.assertEqual((1, "problem"), (status, level))
        self.assertRegex(text, rf"^(udp|tcp) port 53 of {lab.HOST_IP} is taken by dnsmasq \(process \d+\)$")


class NameTests(DoctorTestCase):
    """The way of a name: resolver, parent zone, Jitsu."""

    def begin(self, server: str, address: str) -> None:  # type: ignore[override]
        """Start Jitsu, and the server of its parent zone, which delegates to *server* at *address*."""
        self.ip(f"address add {PARENT_IP}/24 dev br0")
        jitsu = Jitsu(self.directory, MEMORY, lab.HOST_IP, self.network)
        self.addCleanup(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        (self.directory / "test.zone").write_text(PARENT_ZONE.format(server=server, address=address))
        self.start(BIN / "twistd", "-n", "--pidfile=", f"--logfile={self.directory}/parent.log", "jitsu",
                   f"--zone={self.directory}/test.zone", f"--bind={PARENT_IP}", "--control=off",
                   "--config=/dev/null")  # fmt: skip
        self.wait_for(PARENT_IP)

    def test_well(self) -> None:
        """A resolver that follows the right delegation asks Jitsu, which serves its zone."""
        self.begin("ns", lab.HOST_IP)
        self.dnsmasq("127.0.0.1", f"--server=/test/{PARENT_IP}", f"--server=/jitsu.test/{lab.HOST_IP}")
        self.use_resolver("127.0.0.1")
        status, found = self.jitsuctl("doctor", configuration=MEMORY)
        levels = {name: level for name, level, _ in found}
        self.assertEqual(0, status, found)
        names = ("config", "service", "ports", "hypervisors", "delegation", "resolver")
        self.assertEqual(dict.fromkeys(names, "ok"), {name: levels[name] for name in names}, found)
        self.assertIn(("delegation", "ok", "jitsu.test is delegated to ns.jitsu.test"), found)

    def test_wrong(self) -> None:
        """A resolver that asks another server, and a delegation to another address, are warnings."""
        self.begin("ns", "192.0.2.53")
        self.dnsmasq("127.0.0.1", f"--server=/test/{PARENT_IP}", "--address=/jitsu.test/")
        self.use_resolver("127.0.0.1")
        _, found = self.jitsuctl("doctor", configuration=MEMORY)
        wrong = {name: text for name, level, text in found if level == "warning"}
        self.assertIn("(127.0.0.1) does not ask Jitsu for jitsu.test: NXDOMAIN", wrong["resolver"])
        self.assertIn(f"address of ns.jitsu.test is 192.0.2.53, the zone's own {lab.HOST_IP}", wrong["delegation"])

    def test_no_start(self) -> None:
        """Neither command starts a VM."""
        self.begin("ns", lab.HOST_IP)
        self.dnsmasq("127.0.0.1", f"--server={lab.HOST_IP}")
        self.use_resolver("127.0.0.1")
        self.jitsuctl("doctor", configuration=MEMORY)
        run = self.network.run("host", [BIN / "jitsuctl", "--control", f"unix:{self.directory}/control.sock", "status",
                                        "--json"])  # fmt: skip
        self.assertEqual([("off", 0)], [(vm["state"], vm["total_starts"]) for vm in json.loads(run.stdout)])


class ConnectTests(DoctorTestCase):
    """`check --connect`, with libvirt's QEMU driver and with a daemon that hangs."""

    def define(self, name: str, bridge: str) -> None:
        """Define a domain with the guest without a kernel."""
        xml = guest.domain_xml(name, IP, MAC, "", bridge=bridge).replace("<name>www<", f"<name>{name}<")
        (self.directory / f"{name}.xml").write_text(xml)
        uri, path = self.connect, self.directory / f"{name}.xml"
        self.network.run("host", [sys.executable, "-c", DEFINE, uri, path], timeout=PATIENCE)

    def test_libvirt(self) -> None:
        """A VM whose bridge is there is well; a missing bridge, and a VM that libvirt does not know, are problems."""
        self.define("www", lab.BRIDGE)
        self.define("lost", "br7")
        (self.directory / "new.xml").write_text(
            guest.domain_xml("new", IP, MAC, "", bridge=lab.BRIDGE).replace("<name>www<", "<name>new<")
        )
        vms = "".join(
            f"  - {{name: {name}, dns: {name}.jitsu.test, ip: 10.99.0.{number}{more}}}\n"
            for number, (name, more) in enumerate(
                (("www", ""), ("lost", ""), ("nobody", ""), ("new", ", define: new.xml")), 10
            )
        )
        status, found = self.jitsuctl(
            "check", "--connect", configuration=f"bind: {lab.HOST_IP}\nconnect: {self.connect}\nvms:\n{vms}"
        )
        self.assertEqual(1, status)
        self.assertEqual({"hypervisors", "bridges", "delegation"}, {name for name, *_ in found})
        problems = [text for _, level, text in found if level == "problem"]
        self.assertEqual(2, len(problems), found)
        self.assertRegex(problems[0], " cannot show nobody: .*no domain with matching name 'nobody'$")
        self.assertEqual("there is no bridge br7, which lost should be plugged into", problems[1])
        self.assertIn(f"libvirt {self.connect} can be asked, and knows 2 of 4 VMs", str(found))
        self.assertNotIn("new", [path.stem for path in Path(self.connect.partition("root=")[2]).rglob("new.xml")])

    def test_hangs(self) -> None:
        """A daemon that accepts and is silent is a problem; the command ends, and shows the rest."""
        place = self.directory / "libvirt-sock"
        with socket.socket(socket.AF_UNIX) as server, contextlib.closing(server):
            server.bind(str(place))
            server.listen()
            begun = time.monotonic()
            status, found = self.jitsuctl("check", "--connect", configuration=MEMORY.replace(
                "backend: memory", f"connect: qemu+unix:///system?socket={place}"))  # fmt: skip
            self.assertLess(time.monotonic() - begun, PATIENCE)
        self.assertEqual(1, status)
        self.assertIn("cannot be asked: no answer within 5 s", str(found))
        self.assertIn(("bridges", "ok", "the bridge br0 is up"), found)
