"""
A real Xen: Jitsu runs in its dom0, clients are outside, guests boot.

One lab (`test.xenlab.lab`) serves all tests: it takes half a minute to come up. It is emulated, so everything is ten
times as slow as elsewhere; nothing is measured here.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo.lab import NetworkUnavailableError
from test.xenlab.lab import DOM0_IP, KERNEL, RAMDISK, XenLab, XenLabError, missing_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds: three times what it took, with all guests booting at once.
PATIENCE: Final = 300.0

#: The VMs that are asked for as soon as there is a Jitsu.
VMS: Final = {"pv": "10.99.0.21", "pvh": "10.99.0.22", "lpv": "10.99.0.23", "lpvh": "10.99.0.24"}

#: The guest that takes its SYNs from Xenstore.
SYN_IP: Final = "10.99.0.25"
SYN_MAC: Final = "00:16:3e:00:00:25"
SYN_NODE: Final = "/ip/10-99-0-25"

#: Has the client learn where that is.
DATAGRAM: Final = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('{SYN_IP}', 9))"

#: Fetches its page, and bears that there is no way to it for a while: for curl that is an error. It connects, and goes
#: on when it is told: what is lost then, its kernel sends again only after three times what the guest took to answer.
FETCH: Final = f"""
import socket
with socket.create_connection(('{SYN_IP}', 80)) as connection:
    input()
    connection.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
    print(connection.makefile().read())
"""

#: Where Jitsu finds Synjitsu, in dom0.
SOCKET: Final = "unix:/lab/run/synjitsu.sock"

#: What Jitsu's control endpoint wants to be shown.
TOKEN: Final = "a token of the laboratory"  # noqa: S105

CONFIGURATION: Final = f"""\
bind: {DOM0_IP}
answer_by: {PATIENCE}
idle: 3600
starts_per_minute: 0
synjitsu: {SOCKET}
vms:
  - name: pv
    dns: pv.jitsu.test
    ip: 10.99.0.21
    backend: libxl
    type: pv
    kernel: {KERNEL}
    ramdisk: {RAMDISK}
    memory: 98304
    cmdline: console=hvc0 quiet mitigations=off lab.ip=10.99.0.21 lab.key=data/ready
    nic: xenbr0
    disk: /lab/run/pv.img@xvda
    rumprun_config: /lab/run/rumprun.json
    wait_for_key: data/ready
    mode: pause
  - name: pvh
    dns: pvh.jitsu.test
    ip: 10.99.0.22
    backend: libxl
    type: pvh
    kernel: {KERNEL}
    ramdisk: {RAMDISK}
    memory: 128MiB
    cmdline: console=hvc0 quiet mitigations=off lab.ip=10.99.0.22
    nic: xenbr0
    mac: 00:16:3e:00:00:22
    wait_for_port: 80
    mode: save
  - name: lpv
    dns: lpv.jitsu.test
    ip: 10.99.0.23
    backend: libvirt
    connect: xen:///system
    define: /lab/run/lpv.xml
    wait_for_key: data/ready
    mode: shutdown
  - name: lpvh
    dns: lpvh.jitsu.test
    ip: 10.99.0.24
    backend: libvirt
    connect: xen:///system
    define: /lab/run/lpvh.xml
    wait_for_port: 80
    mode: save
  - name: syn
    dns: syn.jitsu.test
    ip: {SYN_IP}
    backend: libxl
    kernel: {KERNEL}
    ramdisk: {RAMDISK}
    memory: 128MiB
    cmdline: console=hvc0 quiet mitigations=off lab.ip={SYN_IP} lab.syns lab.key=data/ready
    nic: xenbr0
    mac: {SYN_MAC}
    wait_for_key: data/ready
    use_synjitsu: true
    handover: xenstore
    mode: destroy
"""

RUMPRUN: Final = '{, "cmdline": "www \\"quoted\\"", "net": {, "if": "xenif0", "method": "dhcp", }, }, \n'

DOMAIN: Final = f"""\
<domain type='xen'>
  <name>{{name}}</name>
  <memory unit='MiB'>128</memory>
  <vcpu cpuset='{{cpu}}'>1</vcpu>
  <os>
    <type arch='x86_64' machine='xen{{kind}}'>{{os}}</type>
    <kernel>{KERNEL}</kernel>
    <initrd>{RAMDISK}</initrd>
    <cmdline>console=hvc0 quiet mitigations=off lab.ip={{ip}} lab.key=data/ready</cmdline>
  </os>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <interface type='bridge'><source bridge='xenbr0'/><mac address='{{mac}}'/></interface>
    <console type='pty'><target type='xen'/></console>
  </devices>
</domain>
"""


@functools.cache
def tried() -> XenLab | Exception:
    """Return the lab that serves all tests, or why there is none; it goes when the process does."""
    made = XenLab()
    try:
        made.__enter__()
    except (NetworkUnavailableError, XenLabError) as error:
        return error
    atexit.register(made.close)
    return made


def lab() -> XenLab:
    """Return the lab; raise, without another try, if it does not come up."""
    made = tried()
    if isinstance(made, Exception):
        raise made
    return made


@functools.cache
def jitsu() -> Jitsu:
    """Return the Jitsu that serves all tests, in the lab's dom0."""
    one = lab()
    one.run(["sh", "-c", "echo on the disk >/lab/run/pv.img; truncate -s 1M /lab/run/pv.img"])
    one.put("/lab/run/rumprun.json", RUMPRUN)
    for number, (name, kind, os) in enumerate([("lpv", "pv", "linux"), ("lpvh", "pvh", "xenpvh")], 23):
        cpu = 0 if kind == "pv" else 1  # as xl.conf has it for xl
        xml = DOMAIN.format(
            name=name, kind=kind, os=os, cpu=cpu, ip=f"10.99.0.{number}", mac=f"00:16:3e:00:00:{number}"
        )
        one.put(f"/lab/run/{name}.xml", xml)
    return Jitsu(one, CONFIGURATION)


@functools.cache
def inside() -> subprocess.Popen[str]:
    """Return the trial that runs in dom0, by the side of everything else."""
    argv = ["-m", "twisted.trial", "--temp-directory=/lab/run/trial", "--reporter=verbose", "test.xenlab.inside"]
    return lab().popen(
        lab().python(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


class XenLabTestCase(SynchronousTestCase):
    """Has the lab."""

    lab: XenLab

    def setUp(self) -> None:
        """Start the lab."""
        missing = missing_commands()
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        try:
            self.lab = lab()
        except NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error

    def domains(self) -> dict[str, str]:
        """Return the flags of the domains that run, by name."""
        lines = self.lab.run(["xl", "list"]).stdout.splitlines()[2:]
        return {line.split()[0]: line.split()[4] for line in lines}

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                self.fail(f"in vain: {what}")
            time.sleep(0.02)


class WithoutJitsuTests(XenLabTestCase):
    """The libxl backend by itself. Runs by the side of the others, and is looked at last."""

    def test_inside(self) -> None:
        """The tests of `test.xenlab.inside` pass."""
        said, _ = inside().communicate(timeout=3 * PATIENCE)
        self.assertEqual(0, inside().returncode, said)


class Jitsu:
    """
    A Jitsu in dom0, and perhaps a Synjitsu.

    Attributes:
        faults: how many guests the emulated processor has been seen to lose.
    """

    def __init__(self, lab: XenLab, configuration: str, ask: Iterable[str] = ()) -> None:
        """Start what there is in *configuration*, wait until Jitsu serves, and *ask* for some VMs, all at once."""
        self._lab = lab
        self.faults = 0
        lab.put("/lab/run/token", TOKEN)
        lab.run(["chmod", "600", "/lab/run/token"])
        lab.put("/lab/run/jitsu.yaml", f"control: 127.0.0.1:8053\ncontrol_token: /lab/run/token\n{configuration}")
        if "synjitsu:" in configuration:
            self._synjitsu = self._twistd("synjitsu", "-i", "xenbr0", "--xenstore", "--listen", SOCKET)
        self._process = self._twistd("jitsu", "--config=/lab/run/jitsu.yaml")
        self._control = lab.console.with_name("control.sock")
        self._forward = lab.forward(self._control, 8053)
        end = time.monotonic() + PATIENCE
        while not (vms := self.vms()) or not all(vm["uuid"] for vm in vms):
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"Jitsu does not serve:\n{self.stop()}")
            time.sleep(0.2)
        dig = ["dig", f"@{DOM0_IP}", "+tries=1", f"+timeout={PATIENCE:.0f}"]
        self._asked: dict[str, subprocess.Popen[str]] = {
            name: lab.network.popen("client", [*dig, f"{name}.jitsu.test"], stdout=subprocess.PIPE, text=True)
            for name in ask
        }

    def _twistd(self, *argv: str) -> subprocess.Popen[str]:
        # The client sends its SYN once, and on a busy machine the guest is slower than any that is meant.
        run = f"from synjitsu_tw import syns; syns.EXPIRY = {PATIENCE}; "
        run += "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
        argv = ("-c", run, "-n", f"--pidfile=/lab/run/{argv[0]}.pid", *argv)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return self._lab.popen(self._lab.python(*argv), text=True, **pipes)

    def query(self, name: str) -> str:
        """Return what the answer for a VM's name is; the question may have been asked at the beginning."""
        asked = self._asked.pop(name, None)
        if asked is None:
            return self._lab.query(f"{name}.jitsu.test", timeout=PATIENCE)
        return asked.communicate(timeout=PATIENCE)[0]

    def ask(self, method: str, path: str) -> Any:
        """Send a request to its control endpoint; return the JSON, empty while the endpoint does not answer yet."""
        url = f"http://localhost/v1/{path}"
        argv = ["curl", "--silent", "--max-time", f"{PATIENCE}", "-X", method, "-H", f"Authorization: Bearer {TOKEN}",
                "--unix-socket", f"{self._control}", url]  # fmt: skip
        said = self._lab.network.run("host", argv, check=False).stdout
        return json.loads(said) if said else []

    def vms(self) -> list[dict[str, Any]]:
        """Return its VMs."""
        found: list[dict[str, Any]] = self.ask("GET", "vms")
        return found

    def wait(self, name: str, state: str) -> None:
        """Wait until a VM is in *state*."""
        end = time.monotonic() + PATIENCE
        while (vm := next(vm for vm in self.vms() if vm["name"] == name))["state"] != state:
            if time.monotonic() > end:
                raise AssertionError(f"{name} is {vm['state']} ({vm['reason']}), not {state}")
            time.sleep(0.1)

    def stop(self) -> str:
        """End both and return Jitsu's log."""
        self._lab.run(["sh", "-c", "kill $(cat /lab/run/*jitsu.pid)"], check=False)
        self._forward.kill()
        self._forward.wait()
        try:
            return str(self._process.communicate(timeout=30)[0])
        except subprocess.TimeoutExpired:
            self._process.kill()
            return str(self._process.communicate()[0])


class JitsuTestCase(XenLabTestCase):
    """Has a Jitsu in dom0."""

    def setUp(self) -> None:
        """Start a Jitsu."""
        super().setUp()
        self.jitsu = jitsu()

    def stop(self, name: str, state: str) -> None:
        """Make it stop a VM, and wait for its *state*."""
        self.jitsu.ask("POST", f"vms/{name}/stop")
        self.jitsu.wait(name, state)

    def summon(self, name: str) -> None:
        """
        Ask for a name from outside; the answer comes when the guest is ready, so its page is there at once.

        The emulated processor, not Xen, lets a PVH guest fault now and then in its first milliseconds, when another
        guest runs at the same time. The answer has the failure then, and the next question boots it. If this machine is
        busy, booting takes longer than Jitsu waits, and the answer has an EDE with this reason.
        """
        said = self.jitsu.query(name)
        faults = self.lab.run(["xl", "dmesg"]).stdout.count("Triple fault") if "SERVFAIL" in said else 0
        if faults > self.jitsu.faults:
            self.jitsu.faults = faults
            self.assertIn("EDE", said)
            said = self.jitsu.query(name)
        late = "still starting" in said
        self.assertIn(f"IN\tA\t{VMS[name]}", said)
        self.assertEqual(late, "EDE" in said, said)
        self.assertEqual(f"hello from {VMS[name]}\n", self.lab.fetch(VMS[name], within=PATIENCE if late else 10))


class LibxlTests(JitsuTestCase):
    """With the libxl backend."""

    def test_pv(self) -> None:
        """
        A query boots a PV guest, which finds its disk and its rumprun configuration, and writes its key; then the
        answer leaves. It is paused and continues. When it goes down by itself, that is known.
        """
        self.summon("pv")
        self.assertEqual(RUMPRUN.strip(), self.lab.fetch("10.99.0.21", "/rumprun").strip())
        self.assertEqual("on the disk\n", self.lab.fetch("10.99.0.21", "/disk"))

        self.stop("pv", "paused")
        self.assertEqual("--p---", self.domains()["pv"])
        self.summon("pv")
        self.assertNotIn("p", self.domains()["pv"])

        self.lab.run(["xl", "shutdown", "pv"])
        self.jitsu.wait("pv", "off")

    def test_pvh(self) -> None:
        """A query boots a PVH guest; it is saved, and the next query restores it; destroyed by hand, it is off."""
        self.summon("pvh")
        before = float(self.lab.fetch("10.99.0.22", "/cgi-bin/uptime").split()[0])

        self.stop("pvh", "saved")
        self.assertNotIn("pvh", self.domains())
        self.summon("pvh")
        self.assertGreater(float(self.lab.fetch("10.99.0.22", "/cgi-bin/uptime").split()[0]), before)

        self.lab.run(["xl", "destroy", "pvh"])
        self.jitsu.wait("pvh", "off")


class LibvirtTests(JitsuTestCase):
    """With libvirt's driver for Xen."""

    def test_pv(self) -> None:
        """A query boots a PV guest, which writes its key to Xenstore; it shuts down."""
        self.summon("lpv")
        self.stop("lpv", "off")

    def test_pvh(self) -> None:
        """A query boots a PVH guest; it is saved, and the next query restores it."""
        self.summon("lpvh")
        self.stop("lpvh", "saved")
        self.summon("lpvh")


class SynjitsuTests(JitsuTestCase):
    """With a guest that takes its SYNs from Xenstore."""

    def tree(self) -> dict[str, str]:
        """Return what Synjitsu has in Xenstore, with permissions; there is no other such guest."""
        lines = self.lab.run(["xenstore-ls", "-fp", "/ip"], check=False).stdout.splitlines()
        return {path: value.strip() for path, _, value in (line.partition(" = ") for line in lines)}

    def client(self, *argv: str) -> str:
        """Run a command as a client and return what it prints."""
        return self.lab.client(argv).stdout

    def retransmitted(self) -> str:
        """Return how many SYNs the client has sent again since it began."""
        return self.client("nstat", "-asz", "TcpExtTCPSynRetrans").split()[-2]

    def is_connected(self) -> bool:
        """Return whether the client's connection is established, while it waits for the page."""
        self.assertIsNone(self.fetching.poll())
        return "ESTAB" in self.client("ss", "-Htn", "dst", SYN_IP)

    def test_takes_syn(self) -> None:
        """
        The answer comes at once; the SYN that follows is written down, with the guest's number when it has one, and
        makes the connection when the guest takes it. Nothing else can have made it: the client sends that one SYN
        before there is a guest, and no other packet until the connection is established. The guest keeps its own SYNs
        from then on; when it is gone, its node is empty and its number has no right to it.
        """
        self.until(lambda: SYN_NODE in self.tree(), "announced")
        self.assertEqual({SYN_NODE: '""   (n0)'}, self.tree())
        said = self.jitsu.query("syn")
        self.assertIn(f"IN\tA\t{SYN_IP}", said)
        # The first packet waits for ARP, and a SYN shall not: then there might be two.
        self.client(sys.executable, "-c", DATAGRAM)
        self.until(lambda: SYN_MAC in self.client("ip", "neigh", "show", SYN_IP), "ARP has the guest's MAC")
        before = self.retransmitted()
        self.fetching = self.lab.network.popen(
            "client", [sys.executable, "-c", FETCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(self.fetching.communicate)
        self.addCleanup(self.fetching.kill)
        self.until(lambda: "SYN-SENT" in self.client("ss", "-Htn", "dst", SYN_IP), "a SYN")
        self.client("ip", "route", "add", "blackhole", SYN_IP)
        self.addCleanup(self.lab.client, ["ip", "route", "del", "blackhole", SYN_IP], check=False)
        (vm,) = (vm for vm in self.jitsu.vms() if vm["name"] == "syn")
        self.assertIn(vm["state"], {"queued", "starting"})
        held = self.tree()
        self.until(self.is_connected, "connected")
        self.client("ip", "route", "del", "blackhole", SYN_IP)
        self.assertIn(f"hello from {SYN_IP}\n", self.fetching.communicate("\n", PATIENCE)[0])
        self.assertEqual(before, self.retransmitted())

        (at,) = (path.removesuffix("/syn") for path in held if path.endswith("/syn"))
        self.assertRegex(at, rf"^{SYN_NODE}/80/10-99-0-2/\d+$")
        syn = {path.rpartition("/")[2]: value.split('"')[1] for path, value in held.items() if f"{at}/syn/" in path}
        self.assertEqual({"tx_wnd", "sequence", "options", "tx_isn", "rx_wnd", "rx_wnd_scaleoffer"}, syn.keys())
        self.assertIn("((MSS 1460)SACK_ok(Timestamp ", syn["options"])

        self.jitsu.wait("syn", "up")
        self.assertEqual("1\n", self.lab.fetch(SYN_IP, "/syns"))
        number = self.lab.run(["xl", "domid", "syn"]).stdout.strip()
        self.assertEqual({SYN_NODE: f'"managed"   (n0,b{number})'}, self.tree())
        self.stop("syn", "off")
        self.assertEqual({SYN_NODE: '""   (n0)'}, self.tree())
