"""
Everything at once, and all of it real: QEMU guests on a bridge in a network namespace, libvirt, `dig` and `curl`.

Each test has a Jitsu and a VM of its own; the namespaces and libvirt's directory serve them all. The VM boots the
unikernel (`demo.unikernel`) unless the test is about what only a real operating system shows: then it is the demo's
Linux guest.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from demo import unikernel as guest
from demo.server import Jitsu
from test.support.cluster import qemus

if TYPE_CHECKING:
    from collections.abc import Callable

IP: Final = "10.99.0.10"
MAC: Final = "52:54:00:99:00:10"
NAME: Final = "www.jitsu.test"

CONFIGURATION: Final = f"""\
bind: {lab.HOST_IP}
connect: {{connect}}
persistdb: state.git
{{top}}
vms:
  - name: www
    dns: {NAME}
    ip: {IP}
    define: www.xml
    {{ready}}
"""

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 60.0

#: Sends a hundred questions at once from as many ports and prints the answers' addresses.
HUNDRED: Final = f"""
import select, socket, dns.message
sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(100)]
for one in sockets:
    one.connect(("{lab.HOST_IP}", 53))
for one in sockets:
    one.send(dns.message.make_query("{NAME}", "A").to_wire())
for one in sockets:
    one.settimeout({PATIENCE})
    print(dns.message.from_wire(one.recv(4096)).answer[0][0])
"""


@functools.cache
def libvirt_root() -> Path:
    """Return the directory of Jitsu's own libvirt: one for all tests, as learning of QEMU takes it seconds."""
    root = lab.directory()
    atexit.register(root.cleanup)
    return Path(root.name)


class LabTestCase(SynchronousTestCase):
    """Has a network, and a Jitsu in it."""

    network: lab.Network
    connect: str

    def setUp(self) -> None:
        """Begin with no machine running, in namespaces of its own."""
        missing = lab.missing_commands()
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        ends = contextlib.ExitStack()
        try:
            self.network = ends.enter_context(lab.Network())
        except lab.NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        self.addCleanup(ends.close)
        self.connect = lab.embed_root(libvirt_root())
        ends.callback(self.forget_vms)
        self.directory = Path(ends.enter_context(lab.directory()))

    @staticmethod
    def forget_vms() -> None:
        """End the VMs of Jitsu's own libvirt, and forget that there were any."""
        lab.stop_qemus(libvirt_root())
        for place in ("etc/qemu/*.xml", "run/qemu/*.xml", "lib/qemu/save/*"):
            for left in libvirt_root().glob(place):
                left.unlink()

    @staticmethod
    def definition(habits: str | None, **options: Any) -> str:
        """Return the XML of a VM with the guest without a kernel and these habits, or of the Linux guest for None."""
        if habits is None:
            return lab.domain_xml("www", IP, MAC, lab.guest(), bridge=lab.BRIDGE, **options)
        return guest.domain_xml("www", IP, MAC, habits, bridge=lab.BRIDGE, **options)

    def begin(
        self,
        top: str = "",
        ready: str = "wait_for_port: 80",
        habits: str | None = "",
        change: Callable[[str], str] = lambda xml: xml,
    ) -> Jitsu:
        """Start a Jitsu; *top* and *ready* go into its configuration; *change* is made to the VM's definition."""
        (self.directory / "www.xml").write_text(change(self.definition(habits)))
        configuration = CONFIGURATION.format(connect=self.connect, top=top, ready=ready)
        jitsu = Jitsu(self.directory, configuration, lab.HOST_IP, self.network)
        self.addCleanup(jitsu.stop, signal.SIGKILL)
        jitsu.start()
        return jitsu

    def dig(self, name: str = NAME, *more: str) -> str:
        """Run dig, as the client; return its output."""
        # Longer than any answer_by here: an answer at the last moment has the reason in it.
        program = ["dig", f"@{lab.HOST_IP}", "+tries=1", f"+timeout={PATIENCE + 15:.0f}", name, *more]
        return self.network.run("client", program).stdout

    def curl(self) -> str:
        """Fetch the page with curl, as the client, trying until there is one; return it."""
        retry = ["--retry", "100", "--retry-delay", "0", "--retry-all-errors", "--retry-max-time", str(int(PATIENCE))]
        program = ["curl", "--silent", "--fail", "--max-time", "20", *retry, f"http://{IP}/"]
        return self.network.run("client", program).stdout

    def qemus(self) -> list[int]:
        """Return the process ids of the QEMUs that run VMs; those by which libvirt learns what QEMU can do are none."""
        return sorted(pid for pids in qemus(self.network).values() for pid in pids)

    def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait until *condition* holds, *patience* seconds at most."""
        end = time.monotonic() + patience
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)


class ColdTests(LabTestCase):
    """From nothing to a page, and back to nothing."""

    def test_whole_life(self) -> None:
        """
        A query boots the VM and is answered within `answer_by`; the page can be fetched; an idle VM is stopped.

        The answer is sent before an emulated guest is up, with an EDE.
        """
        jitsu = self.begin("ttl: 3", habits=None)
        self.assertEqual([], self.qemus())
        said = self.dig()
        self.assertIn("still starting", said)
        self.assertIn(f"{NAME}.\t\t3\tIN\tA\t{IP}", said)
        self.assertIn("status: NOERROR", said)
        self.assertRegex(self.curl(), r"^up for [0-9.]+ s")
        self.assertEqual(1, len(self.qemus()))
        vm = jitsu.wait("off")
        self.assertEqual([], self.qemus())
        self.assertEqual((1, 1), (vm["total_starts"], vm["total_requests"]))
        self.assertGreaterEqual(vm["activation_ms"]["stop"] - vm["activation_ms"]["ready"], 6000)

    def test_port_readiness(self) -> None:
        """With time enough, the answer leaves when the guest's port answers: the client's first connection succeeds."""
        self.begin("answer_by: 60")
        self.assertIn(IP, self.dig())
        page = self.network.run("client", ["curl", "--silent", "--fail", "--max-time", "5", f"http://{IP}/"]).stdout
        self.assertIn("up for", page)

    def test_a_hundred_at_once(self) -> None:
        """A hundred queries at once start the VM once, and each is answered."""
        jitsu = self.begin()
        answers = self.network.run("client", [sys.executable, "-c", HUNDRED]).stdout.split()
        self.assertEqual([IP] * 100, answers)
        self.assertEqual(1, len(self.qemus()))
        self.assertEqual(1, jitsu.vm()["total_starts"])

    def test_starts_nothing(self) -> None:
        """Questions that want no address of the VM's start nothing."""
        jitsu = self.begin()
        for more in (["AAAA"], ["HTTPS"], ["TXT"], ["ANY"], ["A", "CH"], ["A", "+opcode=notify"]):
            self.dig(NAME, *more)
        for name in ("jitsu.test", "nobody.jitsu.test", "www.example.org"):
            self.dig(name)
        self.assertEqual((0, "off", []), (jitsu.vm()["total_starts"], jitsu.vm()["state"], self.qemus()))

    def test_tcp(self) -> None:
        """A query over TCP boots the VM too."""
        self.begin()
        self.assertIn(IP, self.dig(NAME, "+tcp"))
        self.assertEqual(1, len(self.qemus()))

    def test_shutdown(self) -> None:
        """With mode shutdown, the guest itself ends, by its power button."""
        jitsu = self.begin("ttl: 1\nmode: shutdown\nstop_timeout: 30\nanswer_by: 60", habits=None)
        self.dig()
        vm = jitsu.wait("off")
        self.assertEqual([], self.qemus())
        self.assertNotIn("destroyed", vm["reason"])
        self.assertNotIn("has not shut down", jitsu.log())

    def test_save(self) -> None:
        """With mode save, the next start restores what was there: the guest has been up all along."""
        jitsu = self.begin("ttl: 1\nmode: save\nanswer_by: 60", habits=None)
        self.dig()
        first = float(self.curl().split()[2])
        jitsu.wait("saved")
        self.assertEqual([], self.qemus())
        self.dig()
        again = float(self.curl().split()[2])
        self.assertGreater(again, first)
        self.until(lambda: "www: up (restored)" in jitsu.log())  # behind the answer
        self.assertEqual(2, jitsu.vm()["total_starts"])


class TroubleTests(LabTestCase):
    """Processes that are killed."""

    def test_guest_killed(self) -> None:
        """A QEMU that is killed by hand is noticed at once, and the next query boots it again."""
        jitsu = self.begin("answer_by: 60")
        self.dig()
        (pid,) = self.qemus()
        os.kill(pid, signal.SIGKILL)
        vm = jitsu.wait("off", patience=5)
        self.assertEqual(("off", None), (vm["state"], vm["lease_left"]))
        self.assertIn(IP, self.dig())
        self.assertIn("up for", self.curl())
        self.assertEqual((2, 1), (jitsu.vm()["total_starts"], len(self.qemus())))

    def test_jitsu_killed_during_a_boot(self) -> None:
        """Killed in the middle of a boot, Jitsu finds the VM again, adopts it, and stops it when its lease ends."""
        jitsu = self.begin("ttl: 5", habits="listen_after=3000")
        self.network.popen("client", ["dig", f"@{lab.HOST_IP}", "+tries=1", NAME], stdout=subprocess.DEVNULL)
        jitsu.wait("waiting")
        jitsu.stop(signal.SIGKILL)
        (pid,) = self.qemus()
        jitsu.start()
        jitsu.wait("up")
        self.assertEqual([pid], self.qemus())
        self.assertIn("adopted", jitsu.log())
        vm = jitsu.wait("off")
        self.assertEqual([], self.qemus())
        self.assertEqual(1, vm["total_starts"])

    def test_clean_restart(self) -> None:
        """A Jitsu that ends leaves its VMs running; the next one knows them and their counts."""
        jitsu = self.begin("answer_by: 60")
        self.dig()
        (pid,) = self.qemus()
        jitsu.stop()
        self.assertEqual([pid], self.qemus())
        jitsu.start()
        vm = jitsu.wait("up")
        self.assertEqual((1, 1), (vm["total_starts"], vm["total_requests"]))
        self.until(lambda: jitsu.vm()["lease_left"] is not None)  # when its packets have been counted
        self.assertLess(jitsu.vm()["lease_left"], 120)

    def test_start_fails(self) -> None:
        """A VM that libvirt cannot start is SERVFAIL, with libvirt's message."""
        jitsu = self.begin("answer_by: 60")
        jitsu.stop()
        xml = self.directory / "www.xml"
        words = xml.read_text().replace("<name>www", "<name>gone")
        xml.write_text(words.replace("<kernel>", "<kernel>/no-such-kernel"))
        yaml = self.directory / "jitsu.yaml"
        yaml.write_text(yaml.read_text().replace("name: www", "name: gone"))
        jitsu.start()
        said = self.dig()
        self.assertIn("status: SERVFAIL", said)
        self.assertIn("EDE: 0 (Other)", said)
        self.assertIn("no-such-kernel", said)
        self.assertEqual("failed", jitsu.vm("gone")["state"])


class SystemTestCase(LabTestCase):
    """Has ``qemu:///system``: a libvirtd, which can be killed. It has a /run, a /var/lib and a /etc of its own."""

    def setUp(self) -> None:
        """Start libvirtd."""
        super().setUp()
        for place in ("/run", "/var/lib/libvirt", "/var/cache/libvirt", "/etc/libvirt"):
            self.network.run("host", ["sh", "-c", f"mkdir -p {place} && mount -t tmpfs tmpfs {place}"])
        self.network.run("host", ["cp", libvirt_root() / "etc" / "qemu.conf", "/etc/libvirt/qemu.conf"])
        self.network.run("host", ["cp", "-rP", libvirt_root() / "cache" / "qemu", "/var/cache/libvirt"])
        self.connect = "qemu:///system"
        self.daemon = self.libvirtd()

    def libvirtd(self) -> subprocess.Popen[Any]:
        """Start a libvirtd and wait until it listens."""
        with (self.directory / "libvirtd.log").open("ab") as log:
            daemon = self.network.popen("host", ["libvirtd"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.addCleanup(self.end, daemon)
        self.network.run(
            "host", ["timeout", "60", "sh", "-c", "until [ -S /run/libvirt/libvirt-sock ]; do sleep 0.05; done"]
        )
        return daemon

    @staticmethod
    def end(daemon: subprocess.Popen[Any]) -> None:
        """End a libvirtd."""
        daemon.kill()
        daemon.wait()


class SystemTests(SystemTestCase):
    """A libvirtd that goes away."""

    def test_daemon_killed(self) -> None:
        """
        While libvirtd is down, warm answers go on; when it is back, so are its VMs.

        A VM that went down meanwhile is known to be off, and boots when asked for.
        """
        jitsu = self.begin("answer_by: 60")
        self.assertIn(IP, self.dig())
        self.daemon.kill()
        self.daemon.wait()
        self.until(lambda: "closed the connection" in jitsu.log())
        self.assertIn("status: NOERROR", self.dig())
        self.network.run("host", ["rm", "/run/libvirt/libvirt-sock"])
        (pid,) = self.qemus()
        os.kill(pid, signal.SIGKILL)
        self.libvirtd()
        jitsu.wait("off")
        self.assertIn(IP, self.dig())
        self.assertEqual((2, 1), (jitsu.vm()["total_starts"], len(self.qemus())))

    def test_daemon_is_gone(self) -> None:
        """A cold VM whose libvirtd is down is SERVFAIL, with the reason."""
        jitsu = self.begin()
        self.daemon.kill()
        self.daemon.wait()
        self.until(lambda: "closed the connection" in jitsu.log())
        said = self.dig()
        self.assertIn("status: SERVFAIL", said)
        self.assertIn("EDE: 14 (Not Ready)", said)
