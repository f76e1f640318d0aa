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
import time
from typing import Any, Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo.lab import NetworkUnavailableError
from test.xenlab.lab import DOM0_IP, KERNEL, RAMDISK, XenLab, missing_commands

#: Seconds: three times what it took.
PATIENCE: Final = 90.0

CONFIGURATION: Final = f"""\
bind: {DOM0_IP}
control: {DOM0_IP}:8053
answer_by: {PATIENCE}
idle: 3600
starts_per_minute: 0
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
"""

RUMPRUN: Final = '{, "cmdline": "www \\"quoted\\"", "net": {, "if": "xenif0", "method": "dhcp", }, }, \n'

DOMAIN: Final = f"""\
<domain type='xen'>
  <name>{{name}}</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
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
def lab() -> XenLab:
    """Return the lab that serves all tests; it goes when the process does."""
    made = XenLab()
    made.__enter__()
    atexit.register(made.close)
    return made


@functools.cache
def jitsu() -> Jitsu:
    """Return the Jitsu that serves all tests, in the lab's dom0."""
    one = lab()
    one.run(["sh", "-c", "echo on the disk >/lab/run/pv.img; truncate -s 1M /lab/run/pv.img"])
    one.put("/lab/run/rumprun.json", RUMPRUN)
    for number, (name, kind, os) in enumerate([("lpv", "pv", "linux"), ("lpvh", "pvh", "xenpvh")], 23):
        xml = DOMAIN.format(name=name, kind=kind, os=os, ip=f"10.99.0.{number}", mac=f"00:16:3e:00:00:{number}")
        one.put(f"/lab/run/{name}.xml", xml)
    return Jitsu(one, CONFIGURATION)


class XenLabTestCase(SynchronousTestCase):
    """Has the lab."""

    lab: XenLab

    def setUp(self) -> None:
        """Have the lab up, with no domain in it."""
        missing = missing_commands()
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        try:
            self.lab = lab()
        except NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        self.addCleanup(self.clear)

    def clear(self) -> None:
        """Destroy all domains that are left."""
        for name in self.domains():
            self.lab.run(["xl", "destroy", name], check=False)

    def domains(self) -> dict[str, str]:
        """Return the flags of the domains that run, by name."""
        lines = self.lab.run(["xl", "list"]).stdout.splitlines()[2:]
        return {line.split()[0]: line.split()[4] for line in lines}


class InsideTests(XenLabTestCase):
    """The libxl backend by itself."""

    def test_inside(self) -> None:
        """What `test.xenlab.inside` says of it holds."""
        argv = ["-m", "twisted.trial", "--temp-directory=/lab/run/trial", "--reporter=verbose", "test.xenlab.inside"]
        done = self.lab.run(self.lab.python(*argv), check=False, timeout=300)
        self.assertEqual(0, done.returncode, f"{done.stdout}\n{done.stderr}")


class Jitsu:
    """A Jitsu in dom0."""

    def __init__(self, lab: XenLab, configuration: str) -> None:
        """Start it and wait until it serves."""
        self._lab = lab
        lab.put("/lab/run/jitsu.yaml", configuration)
        run = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
        argv = ["-c", run, "-n", "--pidfile=/lab/run/pid", "jitsu", "--config=/lab/run/jitsu.yaml"]
        self._process = lab.popen(
            lab.python(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        end = time.monotonic() + PATIENCE
        while not all(vm["uuid"] for vm in self.vms()) or not self.vms():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"Jitsu does not serve:\n{self.stop()}")
            time.sleep(0.2)

    def ask(self, method: str, path: str) -> Any:
        """Ask its control endpoint; an endpoint that does not answer yet has nothing to say."""
        url = f"http://{DOM0_IP}:8053/v1/{path}"
        argv = ["curl", "--silent", "--max-time", f"{PATIENCE}", "-X", method, url]
        said = self._lab.client(argv, check=False).stdout
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
        """End it and return its log."""
        self._lab.run(["sh", "-c", "kill $(cat /lab/run/pid)"], check=False)
        try:
            return str(self._process.communicate(timeout=30)[0])
        except subprocess.TimeoutExpired:
            self._process.kill()
            return str(self._process.communicate()[0])


class JitsuTestCase(XenLabTestCase):
    """Has a Jitsu in dom0."""

    def setUp(self) -> None:
        """Have it serve."""
        super().setUp()
        self.jitsu = jitsu()

    def stop(self, name: str, state: str) -> None:
        """Have it stop a VM, and see it in *state*."""
        self.jitsu.ask("POST", f"vms/{name}/stop")
        self.jitsu.wait(name, state)

    def summon(self, name: str, ip: str) -> None:
        """Ask for a name from outside; the answer comes when the guest is ready, so its page is there at once."""
        said = self.lab.query(f"{name}.jitsu.test", timeout=PATIENCE)
        self.assertIn(f"IN\tA\t{ip}", said)
        self.assertNotIn("EDE", said)
        self.assertEqual(f"hello from {ip}\n", self.lab.fetch(ip, within=10))


class LibxlTests(JitsuTestCase):
    """With the libxl backend."""

    def test_pv(self) -> None:
        """
        A query boots a PV guest, which finds its disk and its rumprun configuration, and writes its key; then the
        answer leaves. It is paused and continues. When it goes down by itself, that is known.
        """
        self.summon("pv", "10.99.0.21")
        self.assertEqual(RUMPRUN.strip(), self.lab.fetch("10.99.0.21", "/rumprun").strip())
        self.assertEqual("on the disk\n", self.lab.fetch("10.99.0.21", "/disk"))

        self.stop("pv", "paused")
        self.assertEqual({"pv": "--p---"}, self.domains())
        self.summon("pv", "10.99.0.21")
        self.assertNotIn("p", self.domains()["pv"])

        self.lab.run(["xl", "shutdown", "pv"])
        self.jitsu.wait("pv", "off")

    def test_pvh(self) -> None:
        """A query boots a PVH guest; it is saved, and the next query restores it; destroyed by hand, it is off."""
        self.summon("pvh", "10.99.0.22")
        before = float(self.lab.fetch("10.99.0.22", "/cgi-bin/uptime").split()[0])

        self.stop("pvh", "saved")
        self.assertEqual({}, self.domains())
        self.summon("pvh", "10.99.0.22")
        self.assertGreater(float(self.lab.fetch("10.99.0.22", "/cgi-bin/uptime").split()[0]), before)

        self.lab.run(["xl", "destroy", "pvh"])
        self.jitsu.wait("pvh", "off")


class LibvirtTests(JitsuTestCase):
    """With libvirt's driver for Xen."""

    def test_pv(self) -> None:
        """A query boots a PV guest, which writes its key to Xenstore; it shuts down."""
        self.summon("lpv", "10.99.0.23")
        self.stop("lpv", "off")

    def test_pvh(self) -> None:
        """A query boots a PVH guest; it is saved, and the next query restores it."""
        self.summon("lpvh", "10.99.0.24")
        self.stop("lpvh", "saved")
        self.summon("lpvh", "10.99.0.24")
