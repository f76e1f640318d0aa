"""What runs in the Xen lab's dom0, by trial there: the libxl backend on a real Xen. `test.xenlab.suite` starts it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.request import urlopen

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from jitsu_tw.backends import xen, xlvm
from jitsu_tw.backends.libxl import LibxlBackend
from jitsu_tw.ijitsu import Power, Start
from jitsu_tw.readiness.xenstore import XenstoreKey
from jitsu_tw.settings import Mode
from test.contract import backends as contract_backends
from test.support import vm
from test.xenlab.lab import KERNEL, RAMDISK

if TYPE_CHECKING:
    from jitsu_tw.settings import VM

IP: Final = "10.99.0.20"

#: Seconds that a boot may take: three times what it took.
PATIENCE: Final = 200


async def ready(backend: LibxlBackend, machine: VM) -> None:
    """Wait until the guest has written its key."""
    key = XenstoreKey(reactor, backend._host.xenstore)
    await key.wait(machine, await backend.guest(xlvm.uuid_of(machine))).addTimeout(PATIENCE, reactor)


def write_anew(disk: Path) -> None:
    """Make a disk, or change it."""
    disk.write_bytes(bytes(2**20))


async def uptime() -> float:
    """Return for how many seconds the guest has been up, according to itself."""

    def fetch() -> str:
        with urlopen(f"http://{IP}/cgi-bin/uptime", timeout=PATIENCE) as page:
            return str(page.read().decode())

    return float((await deferToThread(fetch)).split()[0])


class LibxlOnXenTests(TestCase):
    """With a backend at the real Xen, and a guest that goes away."""

    timeout = 3 * PATIENCE

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect."""
        self.backend = self.make()
        self.watcher = contract_backends.Watcher()
        self.backend.connect(self.watcher)
        self.addCleanup(self.backend.close)
        await self.watcher.until(lambda: self.watcher.connections)

    def make(self) -> LibxlBackend:
        """Return a backend."""
        self.images = Path(tempfile.mkdtemp(dir="/var/lib/xen"))
        return LibxlBackend()

    def new_vm(self, **changes: Any) -> VM:
        """Return a VM that is off."""
        values: dict[str, Any] = {
            "kernel": Path(KERNEL), "ramdisk": Path(RAMDISK), "nic": ("xenbr0",),
            "cmdline": f"quiet console=hvc0 mitigations=off lab.ip={IP} lab.key=data/ready",
        }  # fmt: skip
        machine = vm(
            "inside", backend="libxl", wait_for_key="data/ready", images=self.images,
            backend_settings=xen.XenGuest(**{**values, **changes}),
        )  # fmt: skip
        self.addCleanup(self.end, machine)
        return machine

    async def end(self, machine: VM) -> None:
        """Destroy a VM, if anybody has heard of it."""
        await self.backend.stop(await self.backend.look_up(machine), Mode.DESTROY)

    async def test_quoting(self) -> None:
        """Quoted texts are read unchanged by xl."""
        many = ('a="b c"', "'", "\\", '\\"', '"\\', "#", '";name="x', "é ٣ %s $(x) `x`", "x" * 1000, "\\x22\\n", '"')
        for text in (" ".join(many), "".join(many), '"\\'):
            machine = self.new_vm(cmdline=text, disk=(xen.Disk("/dev/loop0", "xvda"),))
            with xlvm.configured(machine) as file:
                read = json.loads(await self.backend._host.xl.run("create", "-n", file))
            self.assertEqual((text, machine.name), (read["b_info"]["cmdline"], read["c_info"]["name"]))

    async def test_life(self) -> None:
        """
        A guest is known by its number, its MACs and its traffic; its image, kept when it was up, is restored until a
        disk changes; it is paused, saved and shut down; what cannot be restored is booted. All of it is told.
        """
        disk = Path("/lab/run/inside.img")
        write_anew(disk)
        machine = self.new_vm(disk=(xen.Disk(str(disk), "xvda"),))
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        await ready(self.backend, machine)
        first = await self.backend.guest(uuid)
        assert machine.backend_settings is not None
        self.assertEqual(xen.macs(machine.backend_settings, uuid), first.macs)
        up = await uptime()
        self.assertGreater(await self.backend.traffic(uuid) or 0, 2)
        memory = await self.backend.memory(uuid)
        assert memory is not None
        self.assertEqual(0, memory.needed)
        self.assertGreater(memory.free, 64 * 2**20)

        await self.backend.keep_image(uuid)
        await uptime()
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        self.assertIs(Start.RESTORED, await self.backend.start(uuid))
        self.assertGreater(await uptime(), up)
        self.assertNotEqual(first.domid, (await self.backend.guest(uuid)).domid)

        for mode in (Mode.PAUSE, Mode.SUSPEND):
            await self.backend.stop(uuid, mode)
            self.assertIs(Power.PAUSED, await self.backend.state(uuid))
            self.assertIs(Start.RESUMED, await self.backend.start(uuid))
        self.assertIs(Start.RAN, await self.backend.start(uuid))
        before = len(self.watcher.told)
        await self.backend.stop(uuid, Mode.SHUTDOWN)
        await self.watcher.until(lambda: len(self.watcher.told) > before)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

        write_anew(disk)
        (self.images / f"{uuid}.saved").write_text("nonsense")
        self.assertIs(Power.SAVED, await self.backend.state(uuid))
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertEqual([], list(self.images.iterdir()))
        before = len(self.watcher.told)
        await self.backend.stop(uuid, Mode.DESTROY)
        await self.watcher.until(lambda: len(self.watcher.told) > before)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
