"""
Machines that commands start, all of it real: containers of podman on the bridge, Synjitsu before them, `dig`, `curl`.

A machine that a magic packet wakes is a network namespace, which a listener for such packets makes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from twisted.trial.unittest import SkipTest

from demo import lab
from demo.server import Jitsu, Synjitsu
from test.e2e.test_guests import IP, MAC, NAME
from test.e2e.test_standin import StandinTestCase
from test.support import podmans

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
persistdb: state.git
synjitsu: {{place}}
ttl: 1
answer_by: 60
{{top}}
vms:
  - name: www
    dns: {NAME}
    ip: {IP}
    mac: "{MAC}"
    wait_for_port: 80
    {{more}}
"""

#: Reads from port 80 for as many seconds as its argument says, and prints how many octets came.
READ: Final = f"""
import socket, sys, time
octets, end = 0, time.monotonic() + float(sys.argv[1])
with socket.create_connection(("{IP}", 80)) as one:
    while time.monotonic() < end:
        octets += len(one.recv(4096))
print(octets)
"""

#: Serves the page as soon as there is a file that says so.
SLOW: Final = ("/busybox", "sh", "-c",
               "until [ -e /go ]; do /busybox sleep 0.05; done; exec /busybox httpd -f -p 80 -h /")  # fmt: skip

#: Sends some octets to each client, some twenty times a second: a few packets in a lease of seconds are no use.
TALKS: Final = ("/busybox", "nc", "-ll", "-p", "80", "-e", "/busybox", "sh", "-c",
                "while /busybox echo hello; do /busybox sleep 0.04; done")  # fmt: skip

#: Makes the machine when a magic packet for its MAC comes: a namespace with a port in the bridge, a page, and a file
#: that is removed when the machine is to end.
MACHINE: Final = f"""
import os, pathlib, socket, subprocess, sys, time
on = pathlib.Path(sys.argv[1])
magic = b"\\xff" * 6 + 16 * bytes.fromhex("{MAC.replace(':', '')}")
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("0.0.0.0", 9))
print("listening", flush=True)
while listener.recv(1000) != magic:
    pass
time.sleep(0.5)
script = '''ip link set lo up; ip link set dev eth0 address {MAC} up; ip address add {IP}/24 dev eth0
mkdir -p /tmp/www; echo up for a while > /tmp/www/index.html; exec {podmans.BUSYBOX} httpd -f -p 80 -h /tmp/www'''
hold = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c",
                         "mount -t tmpfs tmpfs /tmp; read x;" + script], stdin=subprocess.PIPE)
while os.readlink(f"/proc/{{hold.pid}}/ns/net") == os.readlink("/proc/self/ns/net"):
    time.sleep(0.01)
on.touch()
subprocess.run(["ip", "link", "add", "wol0", "master", "{lab.BRIDGE}", "up", "type", "veth", "peer", "name", "eth0",
                "netns", str(hold.pid)], check=True)
hold.stdin.write(b"\\n")
hold.stdin.close()
while on.exists():
    time.sleep(0.05)
hold.kill()
hold.wait()
"""


class CommandsTestCase(StandinTestCase):
    """Has a Synjitsu, and a Jitsu with one VM."""

    def begin_with(self, more: str, top: str = "", **environment: str) -> Jitsu:
        """Start both; *more* are the VM's keys, *top* Jitsu's."""
        changed = mock.patch.dict(os.environ, environment)
        changed.start()
        self.addCleanup(changed.stop)
        self.standin = Synjitsu(self.directory, self.network)
        self.addCleanup(self.end, self.standin)
        self.standin.start()
        configuration = CONFIGURATION.format(place=self.standin.place, more=more, top=top)
        jitsu = Jitsu(self.directory, configuration, lab.HOST_IP, self.network)
        self.addCleanup(self.end, jitsu)
        jitsu.start()
        self.until(lambda: "connected to Synjitsu" in jitsu.log())
        return jitsu


class PodmanTests(CommandsTestCase):
    """Containers."""

    podman: podmans.Podman
    backend = "podman"

    def container(self, more: str, *program: str) -> Jitsu:
        """Make the container, and start a Jitsu for it."""
        if missing := podmans.missing():
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        self.podman = podmans.Podman(self.network, self.directory / "podman")
        self.addCleanup(self.podman.close)
        self.podman.create("www", IP, MAC, *program)
        return self.begin_with(f"backend: {self.backend}\n    {self.serving()}\n    {more}", **self.podman.environment)

    def serving(self) -> str:
        """Return the keys that tell of a server."""
        return ""

    def test_cold(self) -> None:
        """A query starts the container, Synjitsu holds the client's SYN, and the container is stopped when idle."""
        jitsu = self.container("idle: 3\n    use_synjitsu: true", *SLOW)
        self.assertEqual("created", self.podman.state("www"))
        said = self.dig()
        self.assertIn(f"IN\tA\t{IP}", said)
        self.assertNotIn("EDE", said)
        curl = self.fetch()
        waiting = ["ss", "--no-header", "--numeric", "state", "syn-sent"]
        self.until(lambda: self.network.run("client", waiting).stdout)
        self.podman.run("exec", "www", "/busybox", "touch", "/go")
        self.page(curl)
        self.assertIn("handed over", self.standin.log())
        self.assertIn(MAC, self.network.run("client", ["ip", "neighbour", "show", IP]).stdout)
        self.assertEqual("running", self.podman.state("www"))
        vm = jitsu.wait("off")
        self.assertEqual(("exited", 1), (self.podman.state("www"), vm["total_starts"]))
        self.assertIn(f"IN\tA\t{IP}", self.dig())
        self.page(self.fetch())

    def test_paused(self) -> None:
        """With mode pause, the container is paused when idle, and goes on at the next query."""
        jitsu = self.container("idle: 2\n    use_synjitsu: true\n    mode: pause")
        self.dig()
        self.page(self.fetch())
        jitsu.wait("paused")
        self.assertEqual("paused", self.podman.state("www"))
        self.dig()
        self.page(self.fetch())
        self.until(lambda: "up (resumed)" in jitsu.log())

    def test_in_use(self) -> None:
        """A container that sends is kept, as its port in the bridge shows; one that has become silent is stopped."""
        jitsu = self.container("idle: 3", *TALKS)
        self.dig()
        jitsu.wait("up")
        reader = self.network.popen("client", [sys.executable, "-c", READ, "8"], stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, reader)
        while True:
            state = jitsu.vm()["state"]
            if reader.poll() is not None:
                break
            self.assertEqual("up", state, jitsu.log())
            time.sleep(0.1)
        assert reader.stdout is not None
        self.assertGreater(int(reader.stdout.read()), 100)
        self.assertEqual(1, jitsu.vm()["total_starts"])
        jitsu.wait("off")

    def test_by_hand(self) -> None:
        """Killed, removed, made again by hand: each is seen at once, and answered for what it is."""
        jitsu = self.container("idle: 60", *podmans.HTTPD)
        self.dig()
        jitsu.wait("up")
        self.podman.run("kill", "www")
        jitsu.wait("off", patience=5)
        self.assertIn(f"IN\tA\t{IP}", self.dig())
        jitsu.wait("up")
        self.podman.run("rm", "--force", "--time", "0", "www")
        self.until(lambda: f"{self.backend} knows no www" in jitsu.vm()["reason"])
        said = self.dig()
        self.assertIn("status: SERVFAIL", said)
        self.assertIn(f"{self.backend} knows no www; make it, and Jitsu finds it", said)
        self.podman.create("www", IP, MAC)
        jitsu.wait("off", patience=5)
        self.until(lambda: f"IN\tA\t{IP}" in self.dig())  # after the rest that follows a start that has failed
        jitsu.wait("up")
        self.assertEqual("running", self.podman.state("www"))


class ServerTests(PodmanTests):
    """The same containers by podman's server."""

    backend = "docker-api"

    def serving(self) -> str:
        """Start the server, and return the keys that tell of it."""
        self.podman.serve()
        return f"variables: {{socket: {self.podman.socket}}}"


class WakeTests(CommandsTestCase):
    """Wake-on-LAN."""

    def listen(self, on: Path) -> subprocess.Popen[Any]:
        """Start what waits for the magic packet, and makes the machine."""
        listener = self.network.popen("host", [sys.executable, "-c", MACHINE, on], stdout=subprocess.PIPE)
        self.addCleanup(self.reap, listener)
        assert listener.stdout is not None
        self.assertEqual(b"listening\n", listener.stdout.readline())
        return listener

    def test_woken(self) -> None:
        """A query sends the packet; Synjitsu stands in until the machine listens; idle, it is ended by a command."""
        on = self.directory / "on"
        listener = self.listen(on)
        jitsu = self.begin_with(
            f"backend: wol\n    use_synjitsu: true\n    idle: 3\n    mode: shutdown\n"
            f"    variables: {{broadcast: 10.99.0.255}}\n    commands: {{stop: rm {on}}}"
        )  # fmt: skip
        self.assertFalse(on.exists())
        said = self.dig()
        self.assertIn(f"IN\tA\t{IP}", said)
        self.page(self.fetch())
        self.assertTrue(on.exists())
        jitsu.wait("up")
        jitsu.wait("off")
        self.assertFalse(on.exists())
        self.assertEqual(0, listener.wait(5))


class ExecTests(CommandsTestCase):
    """Programs in the foreground."""

    def server(self) -> list[int]:
        """Return the process ids of the program that serves the page."""
        return self.network.processes("busybox")

    def test_restarts(self) -> None:
        """The program goes on when Jitsu ends, in order or not; the next one knows it, and its end."""
        (self.directory / "index.html").write_text(podmans.PAGE)
        self.network.run("host", ["ip", "address", "add", f"{IP}/32", "dev", lab.BRIDGE])
        serve = f"{podmans.BUSYBOX} httpd -f -p {IP}:80 -h {self.directory}"
        jitsu = self.begin_with(f"backend: exec\n    evidence: queries\n    idle: 60\n    commands: {{run: {serve}}}")
        self.assertIn(IP, self.dig())
        self.assertIn("up for", self.curl())
        jitsu.wait("up")
        (pid,) = self.server()
        for how in (signal.SIGTERM, signal.SIGKILL):
            jitsu.stop(how)
            self.assertEqual([pid], self.server())
            jitsu.start()
            self.assertEqual(1, jitsu.wait("up")["total_starts"])
        os.kill(pid, signal.SIGKILL)
        jitsu.wait("off", patience=5)
        self.assertIn(IP, self.dig())
        jitsu.wait("up")
        self.assertEqual(1, len(self.server()))
