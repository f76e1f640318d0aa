"""What the libxl backend does, on an xl without Xen and a real xenstored. `test.xenlab.suite` does it on a real Xen."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock
from uuid import uuid4

import attrs
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from jitsu_tw.backends import definition, layer, xen, xl, xlhost, xlvm
from jitsu_tw.backends.libxl import LibxlBackend
from jitsu_tw.errors import BackendError, BackendLost, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import Guest, Memory, Power, Start
from jitsu_tw.settings import Mode
from test.contract import backends as contract_backends
from test.support import vm
from test.xenlab.fakexl import FakeXl

if TYPE_CHECKING:
    from jitsu_tw.settings import VM

CFG = '{"cmdline": "www"}'


class LibxlBackendTests(contract_backends.BackendContract):
    """The contract, and what else it does."""

    async def setUp(self) -> None:  # type: ignore[override]
        """Have an xl, a xenstored, a kernel, and a backend at them."""
        self.fake = FakeXl()
        self.fake.__enter__()
        self.addCleanup(self.fake.__exit__)
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        for name in ("kernel", "disk"):
            (self.folder / name).write_text(name)
        await super().setUp()

    def make(self) -> LibxlBackend:
        """Return a backend."""
        backend = LibxlBackend()
        backend.interfaces = self.folder / "net"
        return backend

    def new_vm(self, **changes: Any) -> VM:
        """Return a VM of which xl has never heard."""
        values: dict[str, Any] = {"kernel": self.folder / "kernel", "nic": ("xenbr0",)}
        guest = xen.XenGuest(**{**values, **changes})
        return vm(f"vm-{uuid4().hex[:8]}", backend="libxl", images=self.folder / "images", backend_settings=guest)

    async def run_one(self, **changes: Any) -> tuple[VM, str]:
        """Return a VM that runs, and its uuid."""
        machine = self.new_vm(**changes)
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        return machine, uuid

    # Starts.

    async def test_what_a_start_did(self) -> None:
        """A start says whether it booted, resumed or restored the VM, or found it running."""
        _, uuid = await self.run_one()
        self.assertIs(Start.RAN, await self.backend.start(uuid))
        await self.backend.stop(uuid, Mode.PAUSE)
        self.assertIs(Start.RESUMED, await self.backend.start(uuid))
        await self.backend.stop(uuid, Mode.SAVE)
        self.assertIs(Start.RESTORED, await self.backend.start(uuid))
        await self.backend.stop(uuid, Mode.SAVE)
        self.assertIs(Start.RESTORED, await self.backend.start(uuid))

    async def test_rumprun(self) -> None:
        """A guest with a configuration for rumprun is created paused, and runs once that is in Xenstore."""
        (self.folder / "cfg").write_text(CFG)
        await self.run_one(rumprun_config=self.folder / "cfg")
        self.assertEqual(["create", "-p"], self.fake.calls()[-2][:2])
        self.assertEqual(["unpause", "1"], self.fake.calls()[-1])
        self.assertEqual(CFG, await self.backend._host.xenstore.read("/local/domain/1/rumprun/cfg"))

    async def test_rumprun_unreadable(self) -> None:
        """A configuration that has gone bad is an error that names it, and no guest runs without it."""
        (self.folder / "cfg").write_text("{")
        uuid = await self.backend.look_up(self.new_vm(rumprun_config=self.folder / "cfg"))
        error = await self.assertFailure(self.backend.start(uuid), BackendError)
        self.assertIn(str(self.folder / "cfg"), str(error))
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_half_created(self) -> None:
        """A guest that was created and cannot be let run is destroyed."""
        (self.folder / "cfg").write_text(CFG)
        self.fake.fault("fail-unpause", "libxl: error: libxl_domain.c:1:f: Domain 1:no")
        uuid = await self.backend.look_up(self.new_vm(rumprun_config=self.folder / "cfg"))
        error = await self.assertFailure(self.backend.start(uuid), BackendError)
        self.assertEqual("xl unpause: Domain 1:no", str(error))
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_own_words(self) -> None:
        """What xl refuses is an error in its words, without its source's lines, the cause first."""
        said = "Parsing config from x\nlibxl: error: libxl_exec.c:117:f: /etc/xen/scripts/vif-bridge [12] failed\n"
        self.fake.fault("fail-create", said)
        uuid = await self.backend.look_up(self.new_vm())
        error = await self.assertFailure(self.backend.start(uuid), BackendError)
        self.assertEqual("xl create: /etc/xen/scripts/vif-bridge [12] failed", str(error))

    async def test_hangs(self) -> None:
        """A call that does not end is killed, and is an error."""
        self.fake.fault("hang-create")
        self.patch(xl, "DEADLINES", {"create": 0.5})
        uuid = await self.backend.look_up(self.new_vm())
        error = await self.assertFailure(self.backend.start(uuid), BackendError)
        self.assertIn("did not end in 0 s", str(error))
        self.flushLoggedErrors()

    async def test_remains(self) -> None:
        """A start waits until what is left of the domain before is gone."""
        _, uuid = await self.run_one()
        await self.backend.stop(uuid, Mode.SHUTDOWN)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertNotIn("destroy", [call[0] for call in self.fake.calls()])

    async def test_remains_for_good(self) -> None:
        """What does not go by itself is destroyed."""
        self.fake.fault("stays")
        self.patch(xlhost, "REMAINS", 0.2)
        _, uuid = await self.run_one()
        await self.backend.stop(uuid, Mode.SHUTDOWN)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        self.assertIn(["destroy", "1"], self.fake.calls())

    async def test_somebody_else(self) -> None:
        """A domain of our name that somebody else has started is the VM; a start with another uuid is left alone."""
        machine = self.new_vm()
        cfg = self.folder / "hand.cfg"
        cfg.write_text(f'name = "{machine.name}"\nuuid = "{uuid4()}"\n')
        uuid = await self.backend.look_up(machine)
        self.fake.xl("create", str(cfg))
        await self.watcher.until(lambda: (uuid, "it runs") in self.watcher.told)
        self.assertIs(Start.RAN, await self.backend.start(uuid))

    async def test_somebody_builds(self) -> None:
        """A domain that somebody is still building is not unpaused by us, and is known to run once it does."""
        self.patch(xlhost, "LOOK_AGAIN", 0.1)
        machine = self.new_vm()
        cfg = self.folder / "hand.cfg"
        cfg.write_text(f'name = "{machine.name}"\nuuid = "{uuid4()}"\n')
        uuid = await self.backend.look_up(machine)
        self.fake.xl("create", "-p", str(cfg))
        await self.watcher.until(lambda: (uuid, "paused") in self.watcher.told)
        starting = self.backend.start(uuid)
        await deferLater(reactor, 0.5)
        self.assertFalse(starting.called)
        self.fake.xl("unpause", "1")
        self.assertIs(Start.RAN, await starting)
        await self.watcher.until(lambda: (uuid, "it runs") in self.watcher.told)

    async def test_paused_for_good(self) -> None:
        """One that somebody has made and left paused is resumed in the end."""
        self.patch(xlhost, "LOOK_AGAIN", 0.1)
        self.patch(xlhost, "BUILDING", 0.3)
        machine = self.new_vm()
        cfg = self.folder / "hand.cfg"
        cfg.write_text(f'name = "{machine.name}"\nuuid = "{uuid4()}"\n')
        uuid = await self.backend.look_up(machine)
        self.fake.xl("create", "-p", str(cfg))
        self.assertIs(Start.RESUMED, await self.backend.start(uuid))

    async def test_other_uuid(self) -> None:
        """A VM with a uuid is none but that one, whatever has its name; xl says why it cannot be started."""
        cfg = self.folder / "hand.cfg"
        cfg.write_text(f'name = "www"\nuuid = "{uuid4()}"\n')
        self.fake.xl("create", str(cfg))
        machine = vm("www", uuid=str(uuid4()), backend_settings=xen.XenGuest(self.folder / "kernel"))
        uuid = await self.backend.look_up(machine)
        self.assertIs(Power.OFF, await self.backend.state(uuid))
        error = await self.assertFailure(self.backend.start(uuid), BackendError)
        self.assertIn('Domain with name "www" already exists.', str(error))
        self.assertIn("www", self.fake.xl("list"))

    # What is told and known.

    async def test_by_hand(self) -> None:
        """A VM that is destroyed by hand is told of."""
        _, uuid = await self.run_one()
        self.fake.xl("destroy", "1")
        await self.watcher.until(lambda: (uuid, "it is gone") in self.watcher.told)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_guest(self) -> None:
        """
        A guest has its domain's number and MACs: those that are given, and others that are always the same. They are
        known while it is off, and while xl makes it.
        """
        machine, uuid = await self.run_one(nic=("a", "b"), mac=("00:16:3e:aa:bb:cc",))
        assert machine.backend_settings is not None
        found = await self.backend.guest(uuid)
        self.assertEqual(Guest(xen.macs(machine.backend_settings, uuid), 1), found)
        self.assertEqual("00:16:3e:aa:bb:cc", found.macs[0])
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertEqual(Guest(found.macs), await self.backend.guest(uuid))
        await self.backend.start(uuid)
        self.assertEqual(Guest(found.macs, 2), await self.backend.guest(uuid))
        await self.backend._host.xenstore.remove("/local/domain/2/device/vif")
        self.assertEqual(Guest(found.macs, 2), await self.backend.guest(uuid))

    async def test_traffic(self) -> None:
        """What dom0's end of the interfaces has received was transmitted by the guest, if dom0 has an end of each."""
        _, uuid = await self.run_one(nic=("a", "b"))
        for name, count, total in (
            ("vif1.0", 5, None), ("vif10.1", 100, None), ("vif1.0-emu", 1, None), ("vif1.1", 7, 12),
        ):  # fmt: skip
            counters = self.folder / "net" / name / "statistics"
            counters.mkdir(parents=True)
            (counters / "rx_packets").write_text(f"{count}\n")
            self.assertEqual(total, await self.backend.traffic(uuid), name)
        await self.backend._host.xenstore.write("/local/domain/1/device/pci/0", "")
        self.assertIsNone(await self.backend.traffic(uuid))
        await self.backend._host.xenstore.remove("/local/domain/1/device")
        self.assertIsNone(await self.backend.traffic(uuid))

    async def test_memory(self) -> None:
        """A VM takes its memory and some more; none if it runs. Where dom0 has what is free, nobody can tell."""
        uuid = await self.backend.look_up(self.new_vm(memory=65536))
        self.assertEqual(Memory(65 * 2**20, 750 * 2**20), await self.backend.memory(uuid))
        await self.backend.start(uuid)
        self.assertEqual(Memory(0, 750 * 2**20), await self.backend.memory(uuid))
        self.fake.fault("unlimited")
        self.assertIsNone(await self.backend.memory(uuid))

    async def test_one_list(self) -> None:
        """However many ask at once, xl lists twice: for the first, and for all the others."""
        uuid = await self.backend.look_up(self.new_vm())
        before = (self.fake.folder / "calls").read_text().count("list")
        states = await gatherResults([self.backend.state(uuid) for _ in range(50)])
        self.assertEqual([Power.OFF] * 50, states)
        self.assertEqual(2, (self.fake.folder / "calls").read_text().count("list") - before)

    async def test_nothing_known(self) -> None:
        """A VM that does not run and has no definition is an error."""
        await self.assertFailure(self.backend.look_up(vm("nobody", backend="libxl")), NoSuchVM)

    async def test_lost(self) -> None:
        """An xl that no longer reaches Xen is told of, and told of again when it does."""
        uuid = await self.backend.look_up(self.new_vm())
        self.fake.fault("fail-list", "xencall: error: Could not obtain handle on privileged command interface")
        await self.assertFailure(self.backend.state(uuid), BackendLost)
        self.assertIn("privileged command interface", self.watcher.lost_reasons[0])
        before = self.watcher.connections
        self.fake.mend("fail-list")
        await self.watcher.until(lambda: self.watcher.connections > before)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    # Images.

    async def test_damaged_image(self) -> None:
        """A saved image that cannot be restored is thrown away, and the VM boots."""
        _, uuid = await self.run_one()
        await self.backend.stop(uuid, Mode.SAVE)
        (self.folder / "images" / f"{uuid}.saved").write_text("nonsense")
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIs(Power.OFF, await self.backend.state(uuid))

    async def test_no_room(self) -> None:
        """For want of memory no image is thrown away."""
        _, uuid = await self.run_one()
        await self.backend.stop(uuid, Mode.SAVE)
        self.fake.fault("free", "20")
        error = await self.assertFailure(self.backend.start(uuid), BackendError)
        self.assertIn("needs 129 MiB of memory, 20 are free", str(error))
        self.assertIs(Power.SAVED, await self.backend.state(uuid))

    async def test_calls_of_a_restore(self) -> None:
        """A restore asks xl once for the VM's domain, and once what memory is free."""
        _, uuid = await self.run_one()
        await self.backend.stop(uuid, Mode.SAVE)
        before, host = len(self.fake.calls()), self.backend._host
        with mock.patch.object(host, "find", side_effect=host.find) as find:
            self.assertIs(Start.RESTORED, await self.backend.start(uuid))
        find.assert_called_once_with(uuid)
        self.assertEqual(["info", "restore"], [call[0] for call in self.fake.calls()[before:]])

    async def test_save_fails(self) -> None:
        """A guest that cannot be saved runs on, and there is no image."""
        _, uuid = await self.run_one()
        self.fake.fault("fail-save", "libxl: error: a.c:1:f: Domain 1:guest didn't acknowledge suspend\n")
        await self.assertFailure(self.backend.stop(uuid, Mode.SAVE), BackendError)
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        self.assertEqual([], list((self.folder / "images").iterdir()))

    async def test_kept_image(self) -> None:
        """The image of the ready guest is restored at each start, and stays; dropped, the VM boots. None is shared."""
        _, uuid = await self.run_one()
        await self.backend.keep_image(uuid, shared=True)
        self.assertFalse((self.folder / "images").exists() and list((self.folder / "images").iterdir()))
        await self.backend.keep_image(uuid)
        self.assertIs(Power.RUNNING, await self.backend.state(uuid))
        for _ in range(2):
            await self.backend.stop(uuid, Mode.DESTROY)
            self.assertIs(Power.OFF, await self.backend.state(uuid))
            self.assertIs(Start.RESTORED, await self.backend.start(uuid))
        await self.backend.stop(uuid, Mode.DESTROY)
        await self.backend.drop_image(uuid)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))

    async def test_kept_image_is_old(self) -> None:
        """An image is not used, and goes, once the definition, the kernel or a disk has changed."""
        disk = xen.Disk(str(self.folder / "disk"), "xvda")
        machine, uuid = await self.run_one(disk=(disk,))
        assert machine.backend_settings is not None
        for change in ("kernel", "disk", "memory"):
            await self.backend.keep_image(uuid)
            await self.backend.stop(uuid, Mode.DESTROY)
            if change == "memory":
                changed = xen.XenGuest(self.folder / "kernel", memory=70000, disk=(disk,))
                await self.backend.look_up(vm(machine.name, images=machine.images, backend_settings=changed))
            else:
                (self.folder / change).write_text(f"new {change}")
            self.assertIs(Start.BOOTED, await self.backend.start(uuid), change)
            self.assertEqual([], list((self.folder / "images").iterdir()), change)

    async def test_prepared_is_stale(self) -> None:
        """A prepared domain is no use once its definition, its kernel or a disk has changed, or its guest has run."""
        disk = xen.Disk(str(self.folder / "disk"), "xvda")
        machine, uuid = await self.run_one(disk=(disk,))
        await self.backend.look_up(attrs.evolve(machine, prepare=True))
        await self.backend.stop(uuid, Mode.DESTROY)
        await self.backend.start(uuid)
        for change, why in (("kernel", "has changed"), ("disk", "has changed"), ("time", "let its guest run")):
            await self.backend.prepare(uuid)
            self.assertEqual("", await self.backend.stale(uuid))
            if change == "time":
                self.fake.fault("cpu-time", "5.0")
            else:
                (self.folder / change).write_text(f"new {change}")
            self.assertIn(why, await self.backend.stale(uuid))
            self.assertIs(Start.BOOTED, await self.backend.start(uuid), change)
        (self.folder / "kernel").write_text("another")
        await self.assertFailure(self.backend.prepare(uuid), BackendError)

    async def test_no_image_of_a_block_device(self) -> None:
        """Where nobody can see whether a disk has changed, no image is kept."""
        _, uuid = await self.run_one(disk=(xen.Disk("/dev/null", "xvda"),))
        await self.assertFailure(self.backend.keep_image(uuid), BackendError)
        self.assertNotIn("save", [call[0] for call in self.fake.calls()])

    # Definitions.

    async def test_define(self) -> None:
        """A whole xl configuration is used as it is, but for the name and the uuid."""
        path = self.folder / "whole.cfg"
        path.write_text('name = "other"\ntype = "pvh"\nmemory = 64\n')
        machine = vm("whole", backend="libxl", define=path)
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        created = (self.fake.folder / "created.cfg").read_text()
        self.assertEqual(f'{path.read_text()}\nname = "whole"\nuuid = "{uuid}"\n', created)
        self.assertEqual(65 * 2**20, xlvm.memory_of(machine))

    async def test_template(self) -> None:
        """A whole configuration of a template has what each VM has of its own, and its disk."""
        path = self.folder / "site.cfg"
        path.write_text('memory = 64\nextra = "ip=${ip} $$5"\nvif = [ "mac=${mac}" ]\ndisk = [ "target=${disk}" ]\n')
        machine = attrs.evolve(self.made_vm(disk=True), define=path, backend_settings=None)
        assert machine.layer is not None
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        created = (self.fake.folder / "created.cfg").read_text()
        for line in (f'extra = "ip={machine.ip[0]} $5"', f'"mac={definition.mac_of(uuid)}"',
                     f'"target={machine.layer.path}"', f'name = "{machine.name}"', f'uuid = "{uuid}"'):
            self.assertIn(line, created)
        path.write_text("${nobody}")
        self.assertIn("nobody", str(self.assertRaises(ConfigError, self.backend.examine, machine)))
        await self.backend.stop(uuid, Mode.DESTROY)
        self.assertIn("nobody", str(await self.assertFailure(self.backend.start(uuid), BackendError)))

    async def test_template_of_keys(self) -> None:
        """The command line and the rumprun configuration of a template have them, too; its disk is the first."""
        (self.folder / "cfg").write_text('{"cmdline": "www ${dns}", "net": {"addr": "${ip}"}}')
        machine = self.made_vm(disk=True)
        guest = attrs.evolve(machine.backend_settings, cmdline="ip=${ip} hw=${mac}",
                             rumprun_config=self.folder / "cfg")
        machine = attrs.evolve(machine, backend_settings=guest)
        assert machine.layer is not None
        self.assertEqual((), self.backend.examine(machine))
        self.assertFalse(machine.layer.path.parent.exists())
        uuid = await self.backend.look_up(machine)
        self.assertIs(Start.BOOTED, await self.backend.start(uuid))
        mac = definition.mac_of(uuid)
        created = (self.fake.folder / "created.cfg").read_text()
        for line in (f'cmdline = "ip={machine.ip[0]} hw={mac}"', f'vif = [ "mac={mac},bridge=xenbr0" ]',
                     f'disk = [ "vdev=xvda,access=rw,format=qcow2,target={machine.layer.path}" ]'):
            self.assertIn(line, created)
        self.assertEqual((mac,), (await self.backend.guest(uuid)).macs)
        read = await self.backend._host.xenstore.read("/local/domain/1/rumprun/cfg")
        self.assertIn(f"www {machine.name}.jitsu.test", str(read))
        self.assertIn(f'"addr": "{machine.ip[0]}"', str(read))
        (self.folder / "cfg").write_text('{"hostname": "${name}"}')
        self.assertEqual(r'{"hostname": "a\"b"}', xlvm.rumprun(attrs.evolve(machine, name='a"b')))

    async def test_template_is_wrong(self) -> None:
        """Nothing is made for a VM that cannot be, and the error says why."""
        machine = self.made_vm(disk=True)
        assert machine.layer is not None
        bad = attrs.evolve(machine.backend_settings, cmdline="ip=${pi}")
        for wrong, words in (
            (attrs.evolve(machine, backend_settings=bad), "cmdline has ${pi}"),
            (attrs.evolve(machine, name="x" * 81), "can have no domain called"),
        ):
            self.assertIn(words, str(await self.assertFailure(self.backend.look_up(wrong), BackendError)))
            self.assertIn(words, str(self.assertRaises(ConfigError, self.backend.examine, wrong)))
        self.assertFalse(machine.layer.path.parent.exists())

    async def test_disk_hangs(self) -> None:
        """A file system that does not answer is an error after a while, and holds up nothing else."""
        held = threading.Event()
        self.addCleanup(held.set)
        self.patch(xlhost, "DISK_ANSWERS_WITHIN", 0.05)
        self.patch(layer, "make", lambda _: held.wait(30))
        error = await self.assertFailure(self.backend.look_up(self.made_vm(disk=True)), BackendError)
        self.assertIn("has not answered", str(error))

    async def test_examine(self) -> None:
        """A file that is missing or wrong is an error of the configuration, and advice while Jitsu runs."""
        bad = self.folder / "bad"
        bad.write_text("[]")
        kernel, missing = self.folder / "kernel", self.folder / "missing"
        cases: list[tuple[dict[str, Any], str]] = [
            ({"backend_settings": xen.XenGuest(missing)}, str(missing)),
            ({"backend_settings": xen.XenGuest()}, "a pv guest needs a kernel"),
            ({"backend_settings": xen.XenGuest(kernel, disk=(xen.Disk(str(missing), "xvda"),))}, str(missing)),
            ({"backend_settings": xen.XenGuest(kernel, rumprun_config=bad)}, f"{bad} is no configuration"),
            ({"define": missing}, str(missing)),
        ]
        for changes, words in cases:
            machine = vm("www", place=("jitsu.yaml", 7), **changes)
            error = self.assertRaises(ConfigError, self.backend.examine, machine)
            self.assertIn("jitsu.yaml:7: vms: www:", str(error))
            self.assertIn(words, str(error))
            (sentence,) = await self.backend.advice(await self.backend.look_up(machine))
            self.assertIn(words, sentence)

    async def test_refused(self) -> None:
        """What xl does not take is advice, in its words."""
        path = self.folder / "bad.cfg"
        path.write_text("@")
        uuid = await self.backend.look_up(vm("www", define=path))
        self.assertEqual((), await self.backend.advice(uuid))
        self.fake.fault("fail-create", "x.cfg:1: config parsing error near `@': lexical error")
        (sentence,) = await self.backend.advice(uuid)
        self.assertIn("lexical error", sentence)

    async def test_without_xl(self) -> None:
        """Where there is no xl, the loss names the package."""
        backend, watcher = LibxlBackend(), contract_backends.Watcher()
        self.addCleanup(backend.close)
        with mock.patch.object(shutil, "which", return_value=None):
            backend.connect(watcher)
            await watcher.until(lambda: watcher.lost_reasons)
        self.assertIn("xen-utils-common", watcher.lost_reasons[0])

    async def test_cpu_time(self) -> None:
        """What xl lists as time is the virtual CPUs', and its growth is no change of the VM."""
        _, uuid = await self.run_one()
        self.assertIsInstance(await self.backend.cpu_time(uuid), float)
        first, second = (xl.Domain("www", 1, uuid, cpu_time=time) for time in (1.0, 2.0))
        self.assertEqual(first, second)

    def test_calls(self) -> None:
        """The fake is on the path, or nothing here means anything."""
        self.assertIn("Domain-0", subprocess.run(["xl", "list"], check=True, capture_output=True, text=True).stdout)
