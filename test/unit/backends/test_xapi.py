"""The XAPI backend, against a pool of our own: `xapi_server` says what that is worth."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.backends import BACKENDS, xapi, xapi_session
from jitsu_tw.backends.xapi import XapiBackend
from jitsu_tw.backends.xapi_session import Login, Target, XapiError
from jitsu_tw.backends.xapi_vms import Seen
from jitsu_tw.errors import BackendError, BackendLost, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import Guest, Memory, Power, Start
from jitsu_tw.settings import Evidence, Mode
from test.contract import backends as contract_backends
from test.support import vm
from test.support.xapi_server import MIB, PASSWORD, Pool, Server

if TYPE_CHECKING:
    from jitsu_tw.settings import VM


class XapiTestCase(TestCase):
    """Has a pool with one host, a file with its password, and remembers what is logged."""

    def begin(self) -> None:
        """Make the pool."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.password = self.folder / "password"
        self.password.write_text(f"{PASSWORD}\n")
        self.password.chmod(0o600)
        self.pool = Pool()
        self.server = self.serve()
        self.logged: list[str] = []
        remember: Any = lambda event: self.logged.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(remember)
        self.addCleanup(globalLogPublisher.removeObserver, remember)


    def serve(self, host: str = "127.0.0.1", port: int = 0) -> Server:
        """Return another host of the pool, which listens."""
        server = Server(self.pool, self.folder, host, port)
        server.plug()
        self.addCleanup(server.unplug)
        return server

    def uri(self, *servers: Server) -> str:
        """Return the URI of the first of *servers*; all may be trusted."""
        servers = servers or (self.server,)
        ca = self.folder / "ca.pem"
        ca.write_text("".join(server.ca.read_text() for server in servers))
        return f"https://{servers[0].address}/?user=root&password_file={self.password}&ca={ca}"

    def hurry(self) -> None:
        """Make the deadlines short."""
        self.patch(xapi_session, "ANSWER_WITHIN", 0.4)
        self.patch(xapi_session, "CONNECT_WITHIN", 0.4)
        self.patch(xapi, "EVENTS_WITHIN", 0.1)

    def make_at(self, uri: str) -> XapiBackend:
        """Return a backend, which will be closed."""
        backend = XapiBackend(uri)
        self.addCleanup(backend.close)
        return backend


class ConnectedTestCase(XapiTestCase):
    """Has a backend that is connected, and a VM."""

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect."""
        self.begin()
        await self.connect(self.uri())

    async def connect(self, uri: str) -> None:
        """Connect, and find the VM."""
        self.ref = self.pool.add_vm("www", ("02:00:00:00:00:0A", "02:00:00:00:00:0B"))
        self.backend = self.make_at(uri)
        self.watcher = contract_backends.Watcher()
        self.backend.connect(self.watcher)
        await self.watcher.until(lambda: self.watcher.connections)
        self.uuid = await self.backend.look_up(vm())

    async def until_told(self, reason: str) -> None:
        """Wait until the VM's change has been told."""
        await self.watcher.until(lambda: (self.uuid, reason) in self.watcher.told)

    async def until_logged(self, words: str) -> None:
        """Wait until something has been logged."""
        for _ in range(500):
            if any(words in line for line in self.logged):
                return
            await deferLater(reactor, 0.01)
        self.fail(f"{words} is not in {self.logged}")

    @property
    def power(self) -> str:
        """What the pool knows of the VM."""
        return str(self.pool.rows[self.ref].record["power_state"])


class XapiContractTests(XapiTestCase, contract_backends.BackendContract):
    """The contract."""

    suspended, prepares, makes, has_disks = Power.SAVED, False, False, False

    def make(self) -> XapiBackend:
        """Return a backend at a new pool."""
        self.begin()
        return XapiBackend(self.uri())

    def new_vm(self) -> VM:
        """Return a VM that is in the pool."""
        name = f"vm-{uuid4().hex[:8]}"
        self.pool.add_vm(name)
        return vm(name)


class XapiVMTests(ConnectedTestCase):
    """What is done with VMs, and said of them."""

    async def test_start(self) -> None:
        """A start says what it did."""
        for mode, did in (
            (None, Start.BOOTED),
            (Mode.DESTROY, Start.BOOTED),
            (Mode.PAUSE, Start.RESUMED),
            (Mode.SUSPEND, Start.RESTORED),
            (Mode.SAVE, Start.RESTORED),
        ):
            if mode is not None:
                await self.backend.stop(self.uuid, mode)
            self.assertIs(did, await self.backend.start(self.uuid), mode)
            self.assertIs(Start.RAN, await self.backend.start(self.uuid))

    async def test_names(self) -> None:
        """A VM is found by name label or uuid, whatever the case of the uuid; the uuid wins."""
        self.assertEqual(self.uuid, await self.backend.look_up(vm("other", uuid=self.uuid.upper())))

    async def test_two_of_a_name(self) -> None:
        """A name label that two VMs have is an error that names both, and the remedy."""
        other = self.pool.rows[self.pool.add_vm("www")].record["uuid"]
        error = await self.assertFailure(self.backend.look_up(vm()), BackendError)
        for words in ("2 VMs", "'www'", "uuid", self.uuid, other):
            self.assertIn(words, str(error))
        self.assertEqual(other, await self.backend.look_up(vm(uuid=other)))

    async def test_no_vms(self) -> None:
        """Templates, snapshots and the control domain are none, even if their name label is a VM's."""
        self.pool.add_vm("www", is_a_template=True, is_a_snapshot=True)
        self.assertEqual(self.uuid, await self.backend.look_up(vm()))
        for name in ("Debian 12", "Control domain on host: xen1", "nobody"):
            error = await self.assertFailure(self.backend.look_up(vm(name)), NoSuchVM)
            self.assertIn(name, str(error))

    async def test_unknown_uuid(self) -> None:
        """A uuid that XAPI does not know is an error in its words."""
        uuid = str(uuid4())
        calls: list[Deferred[Any]] = [self.backend.look_up(vm(uuid=uuid)), self.backend.start(uuid)]
        for asked in (*calls, self.backend.guest(uuid)):
            error = await self.assertFailure(asked, NoSuchVM)
            self.assertEqual(f"UUID_INVALID(VM, {uuid})", str(error))

    async def test_guest(self) -> None:
        """The MACs come in the order of the interfaces, in small letters; the domain while there is one."""
        macs = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
        self.assertEqual(Guest(macs, None), await self.backend.guest(self.uuid))
        await self.backend.start(self.uuid)
        self.assertEqual(Guest(macs, 1), await self.backend.guest(self.uuid))

    async def test_obstacle(self) -> None:
        """What XAPI would refuse is told in its words; what passes is none, and a VM that is off has none."""
        for mode in Mode:
            self.assertIsNone(await self.backend.obstacle(self.uuid, mode))
        await self.backend.start(self.uuid)
        self.pool.drivers = False
        self.assertIn("PV_DRIVERS", str(await self.backend.obstacle(self.uuid, Mode.SHUTDOWN)))
        self.assertIsNone(await self.backend.obstacle(self.uuid, Mode.DESTROY))
        self.server.refuse("VM.assert_operation_valid", "VM_HAS_VGPU", self.ref)
        self.assertIn("VM_HAS_VGPU", str(await self.backend.obstacle(self.uuid, Mode.SAVE)))
        self.server.refuse("VM.assert_operation_valid", "OTHER_OPERATION_IN_PROGRESS", "VM", self.ref)
        self.assertIsNone(await self.backend.obstacle(self.uuid, Mode.SAVE))

    async def test_advice(self) -> None:
        """That XAPI counts no packets matters where these are to show whether a VM is used."""
        self.assertIn("does not count", (await self.backend.advice(self.uuid))[0])
        await self.backend.look_up(vm(evidence=Evidence.QUERIES))
        self.assertEqual((), await self.backend.advice(self.uuid))

    async def test_traffic(self) -> None:
        """XAPI does not count packets."""
        self.assertIsNone(await self.backend.traffic(self.uuid))

    async def test_memory(self) -> None:
        """A start takes the static maximum and the overhead, where the VM has not got it; free is the best host's."""
        self.assertEqual(Memory(65 * MIB, 1024 * MIB), await self.backend.memory(self.uuid))
        self.pool.free[self.pool.add("host", {})] = 2048 * MIB
        self.pool.add("host", {})
        await self.backend.start(self.uuid)
        await self.backend.stop(self.uuid, Mode.PAUSE)
        self.assertEqual(Memory(0, 2048 * MIB), await self.backend.memory(self.uuid))
        await self.backend.start(self.uuid)
        await self.backend.stop(self.uuid, Mode.SAVE)
        self.pool.free = dict.fromkeys(self.pool.free, 10 * MIB)
        self.assertEqual(Memory(65 * MIB, 10 * MIB), await self.backend.memory(self.uuid))

    async def test_own_words(self) -> None:
        """What XAPI refuses is an error in its words: code and parameters."""
        self.server.refuse("Async.VM.start", "NO_HOSTS_AVAILABLE")
        error = await self.assertFailure(self.backend.start(self.uuid), BackendError)
        self.assertEqual("NO_HOSTS_AVAILABLE", str(error))
        await self.backend.start(self.uuid)
        self.server.refuse("Async.VM.suspend", "VM_LACKS_FEATURE_SUSPEND", self.ref)
        stopping: Deferred[Any] = self.backend.stop(self.uuid, Mode.SAVE)
        error = await self.assertFailure(stopping, BackendError)
        self.assertEqual(f"VM_LACKS_FEATURE_SUSPEND({self.ref})", str(error))
        self.assertEqual("Running", self.power)

    async def test_bad_image(self) -> None:
        """What cannot be resumed is thrown away, logged and booted; and so is what cannot be unpaused."""
        for mode, method in ((Mode.SAVE, "resume"), (Mode.PAUSE, "unpause")):
            await self.backend.start(self.uuid)
            await self.backend.stop(self.uuid, mode)
            self.server.refuse(f"Async.VM.{method}", "INTERNAL_ERROR", f"{method} image is damaged")
            self.assertIs(Start.BOOTED, await self.backend.start(self.uuid))
            self.assertEqual("Running", self.power)
            await self.until_logged(f"INTERNAL_ERROR({method} image is damaged)")

    async def test_image_is_kept(self) -> None:
        """An error that passes is no reason to throw a saved guest away."""
        await self.backend.start(self.uuid)
        await self.backend.stop(self.uuid, Mode.SAVE)
        for code in ("HOST_NOT_ENOUGH_FREE_MEMORY", "NO_HOSTS_AVAILABLE", "SR_BACKEND_FAILURE_46"):
            self.server.refuse("Async.VM.resume", code)
            await self.assertFailure(self.backend.start(self.uuid), BackendError)
            self.assertEqual("Suspended", self.power)
        self.assertIs(Start.RESTORED, await self.backend.start(self.uuid))

    async def test_saved_is_stopped(self) -> None:
        """A stop of a VM that is saved does not throw the guest away."""
        await self.backend.start(self.uuid)
        await self.backend.stop(self.uuid, Mode.SAVE)
        for mode in Mode:
            await self.backend.stop(self.uuid, mode)
            self.assertEqual("Suspended", self.power)

    async def test_somebody_was_quicker(self) -> None:
        """A start or a stop that somebody else has done meanwhile is no error."""
        for method, state in (("start", "Running"), ("hard_shutdown", "Halted")):
            self.server.refuse(f"Async.VM.{method}", "VM_BAD_POWER_STATE", self.ref, "halted", "running")
            before = len(self.server.calls)
            done = self.backend.start(self.uuid) if method == "start" else self.backend.stop(self.uuid, Mode.DESTROY)
            while "VM.get_power_state" not in self.server.calls[before:]:
                await deferLater(reactor, 0)
            self.pool.power(self.ref, state)
            self.assertIs(Start.RAN if method == "start" else None, await done)

    async def test_shutdown_only_asks(self) -> None:
        """A guest that does not shut down holds up nobody, and can still be destroyed."""
        await self.backend.start(self.uuid)
        self.pool.stubborn = True
        await self.backend.stop(self.uuid, Mode.SHUTDOWN)
        self.assertEqual("Running", self.power)
        await self.backend.stop(self.uuid, Mode.DESTROY)
        self.assertEqual("Halted", self.power)
        await self.until_logged("TASK_CANCELLED")

    async def test_shutdown_without_drivers(self) -> None:
        """A guest that cannot be asked to shut down runs on, and why is logged."""
        await self.backend.start(self.uuid)
        self.pool.drivers = False
        await self.backend.stop(self.uuid, Mode.SHUTDOWN)
        await self.until_logged(f"VM_MISSING_PV_DRIVERS({self.ref})")
        self.assertEqual("Running", self.power)

    async def test_other_operation(self) -> None:
        """What somebody else is doing with the VM is said in XAPI's words."""
        self.pool.boot_time = 5.0
        starting = self.backend.start(self.uuid)
        while not self.pool.rows[self.ref].record["current_operations"]:
            await deferLater(reactor, 0.01)
        error = await self.assertFailure(self.backend.start(self.uuid), BackendError)
        self.assertEqual(f"OTHER_OPERATION_IN_PROGRESS(VM, {self.ref})", str(error))
        self.pool.finish()
        await starting

    async def test_tasks_are_cleared(self) -> None:
        """Tasks that have ended are not left behind in the pool."""
        await self.backend.start(self.uuid)
        self.server.refuse("Async.VM.pause", "INTERNAL_ERROR")
        await self.assertFailure(self.backend.stop(self.uuid, Mode.PAUSE), BackendError)
        while self.pool.all("task"):
            await deferLater(reactor, 0.01)

    async def test_task_ends_at_once(self) -> None:
        """A task that has ended before anybody could listen for its end is no longer waited for."""
        self.server.hang.add("event.from")
        self.server.refuse("Async.VM.start", "NO_HOSTS_AVAILABLE")
        await self.assertFailure(self.backend.start(self.uuid).addTimeout(5.0, reactor), XapiError)

    async def test_task_without_end(self) -> None:
        """A task that does not end is given up; it holds no thread meanwhile."""
        self.patch(xapi, "TASK_WITHIN", 0.1)
        self.pool.boot_time = 60.0
        error = await self.assertFailure(self.backend.start(self.uuid), BackendError)
        self.assertIn("Async.VM.start is still under way", str(error))
        self.pool.finish()

    async def test_image_of_a_ready_guest(self) -> None:
        """It keeps none, and says so."""
        self.assertFalse(BACKENDS["xapi"].images)
        await self.assertFailure(self.backend.keep_image(self.uuid), BackendError)
        await self.backend.drop_image(self.uuid)


class XapiEventTests(ConnectedTestCase):
    """What is told without being asked for."""

    async def test_by_hand(self) -> None:
        """What somebody else does to a VM is told."""
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")
        self.pool.reboot(self.ref)
        await self.until_told("Running in a new domain, 2")
        self.pool.power(self.ref, "Halted")
        await self.until_told("Halted, was Running")
        self.pool.remove(self.ref)
        await self.until_told("the VM was removed")
        await self.assertFailure(self.backend.state(self.uuid), NoSuchVM)

    async def test_other_changes(self) -> None:
        """Of a VM that only has another name nobody is told; nor of the VMs that were there before."""
        self.pool.change(self.ref, name_label="new")
        self.pool.power(self.pool.add_vm("other"), "Running")
        await self.watcher.until(lambda: any(reason.startswith("Running") for _, reason in self.watcher.told))
        self.assertNotIn("Running, was Halted", [reason for uuid, reason in self.watcher.told if uuid == self.uuid])
        self.assertNotIn(str(self.pool.rows[self.pool.all("VM")[0]].record["uuid"]), dict(self.watcher.told))

    async def test_quiet(self) -> None:
        """While nothing happens, the stream goes on."""
        self.patch(xapi, "EVENTS_WITHIN", 0.05)
        self.pool.change(self.ref, name_label="new")
        while self.server.calls.count("event.from") < 5:
            await deferLater(reactor, 0.01)
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")


class SeenTests(SynchronousTestCase):
    """What events mean."""

    def event(self, ref: str, power: str = "", domid: str = "-1", operation: str = "mod") -> dict[str, Any]:
        """Return an event of a VM."""
        snapshot = {"snapshot": {"uuid": f"u{ref}", "power_state": power, "domid": domid}} if power else {}
        return {"class": "vm", "operation": operation, "ref": ref, **snapshot}

    def test_table(self) -> None:
        """Each batch tells what is new in it; a whole one, also what is not there any more."""
        seen = Seen()
        for batch, whole, news in (
            ([self.event("1", "Halted"), self.event("2", "Running", "7")], True,
             [("u1", "Halted"), ("u2", "Running")]),
            ([self.event("1", "Halted")], False, []),
            ([self.event("2", "Running", "8")], False, [("u2", "Running in a new domain, 8")]),
            ([self.event("1", "Running", "9")], False, [("u1", "Running, was Halted")]),
            ([self.event("3", operation="del")], False, []),
            ([self.event("2", operation="del")], False, [("u2", "the VM was removed")]),
            ([self.event("3", "Paused", "10")], True, [("u3", "Paused"), ("u1", "the VM was removed")]),
            ([], False, []),
        ):  # fmt: skip
            self.assertEqual(news, seen.take(batch, whole=whole))


class XapiSessionTests(ConnectedTestCase):
    """Sessions, refs and masters that pass, and connections that break."""

    async def test_session_is_renewed(self) -> None:
        """XAPI may forget a session: there is one new one, however many calls need it, and nobody hears of it."""
        self.pool.forget_sessions()
        states = await DeferredList([self.backend.state(self.uuid) for _ in range(8)])
        self.assertEqual([(True, Power.OFF)] * 8, states)
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")
        self.assertEqual(2, self.pool.logins)
        self.assertEqual([], self.watcher.lost_reasons)

    async def test_missed_meanwhile(self) -> None:
        """What happens between two sessions is told."""
        self.pool.sessions.clear()
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")

    async def test_tokens_of_another_count(self) -> None:
        """With a new session all is asked for: the master may be another, which counts its changes otherwise."""
        self.patch(xapi, "EVENTS_WITHIN", 0.1)
        self.pool.rewind()
        self.pool.forget_sessions()
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")

    async def test_sessions_do_not_last(self) -> None:
        """A pool that ends each session at once is an error, not a circle."""
        for _ in range(20):
            self.server.refuse("VM.get_power_state", "SESSION_INVALID", "OpaqueRef:x")
        error = await self.assertFailure(self.backend.state(self.uuid), BackendError)
        self.assertIn("VM.get_power_state", str(error))

    async def test_another_ref(self) -> None:
        """A VM whose ref is none any more is looked up again by its uuid, and so is one that a task is about."""
        self.ref = self.pool.move_vm(self.ref)
        self.assertIs(Power.OFF, await self.backend.state(self.uuid))
        self.ref = self.pool.move_vm(self.ref)
        await self.backend.start(self.uuid)
        self.server.refuse("Async.VM.pause", "HANDLE_INVALID", "VM", self.ref)
        await self.backend.stop(self.uuid, Mode.PAUSE)
        self.assertEqual("Paused", self.power)

    async def test_another_handle(self) -> None:
        """A ref of something else that is none is XAPI's error, and no VM's absence."""
        self.server.refuse("VIF.get_record", "HANDLE_INVALID", "VIF", "OpaqueRef:x")
        error = await self.assertFailure(self.backend.guest(self.uuid), XapiError)
        self.assertEqual("HANDLE_INVALID(VIF, OpaqueRef:x)", str(error))

    async def test_reconnect(self) -> None:
        """A host that goes is told, calls say so, and when it comes back it is used again."""
        await self.server.unplug()
        await self.watcher.until(lambda: self.watcher.lost_reasons)
        await self.assertFailure(self.backend.state(self.uuid), BackendLost)
        await self.watcher.until(lambda: len(self.watcher.lost_reasons) > 2)
        self.assertIn("refused", self.watcher.lost_reasons[-1])
        self.server.plug()
        await self.watcher.until(lambda: self.watcher.connections == 2)
        self.assertIs(Power.OFF, await self.backend.state(self.uuid))
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")

    async def test_idle_connections_close(self) -> None:
        """A connection that was closed while it lay idle is no loss, unless the call that waits for events had it."""
        await DeferredList([self.backend.state(self.uuid) for _ in range(6)])
        self.server.cut(idle=True)
        await deferLater(reactor, 0.05)
        states = await DeferredList([self.backend.state(self.uuid) for _ in range(6)])
        self.assertEqual([(True, Power.OFF)] * 6, states)
        self.assertEqual([], self.watcher.lost_reasons)

    async def test_connection_breaks(self) -> None:
        """A call whose connection breaks on the way fails, is not made again, and all is looked at anew."""
        self.server.drop.add("Async.VM.start")
        await self.assertFailure(self.backend.start(self.uuid), BackendLost)
        self.assertEqual(1, self.server.calls.count("Async.VM.start"))
        await self.watcher.until(lambda: self.watcher.connections == 2)

    async def test_nobody_behind_the_proxy(self) -> None:
        """An answer of HTTP's that is none of XAPI's is a connection that is lost, in one line."""
        self.server.ill.add("VM.get_power_state")
        error = await self.assertFailure(self.backend.state(self.uuid), BackendLost)
        self.assertEqual("VM.get_power_state: HTTP 503 Service Unavailable", str(error))
        await self.watcher.until(lambda: self.watcher.connections == 2)

    async def test_stream_is_refused(self) -> None:
        """Where XAPI ends the stream of events, all is looked at anew, and the stream begins again."""
        self.server.refuse("event.from", "EVENTS_LOST")
        self.pool.change(self.ref, name_label="new")
        await self.watcher.until(lambda: self.watcher.connections == 2)
        self.assertEqual(["EVENTS_LOST"], self.watcher.lost_reasons)
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")

    async def test_task_is_removed(self) -> None:
        """A task that somebody removes has no end that could be waited for."""
        self.pool.boot_time = 60.0
        starting = self.backend.start(self.uuid)
        while not self.pool.rows[self.ref].record["current_operations"]:
            await deferLater(reactor, 0.01)
        self.pool.finish()
        self.pool.remove(self.pool.all("task")[0])
        error = await self.assertFailure(starting, BackendError)
        self.assertIn("HANDLE_INVALID(task", str(error))

    async def test_breaks_in_a_task(self) -> None:
        """Who waits for a task when the connection breaks is told that nobody knows."""
        self.pool.boot_time = 60.0
        starting = self.backend.start(self.uuid)
        while not self.pool.rows[self.ref].record["current_operations"]:
            await deferLater(reactor, 0.01)
        self.server.cut()
        await self.assertFailure(starting, BackendLost)
        self.pool.finish()

    async def test_call_hangs(self) -> None:
        """Calls that are never answered end together at the deadline, and their threads are free again."""
        self.hurry()
        await self.server.unplug()
        self.server.plug()
        await self.watcher.until(lambda: self.watcher.connections == 2)
        self.server.hang.add("VM.get_power_state")
        states = [self.backend.state(self.uuid) for _ in range(2 * xapi.THREADS)]
        results = await DeferredList(states, consumeErrors=True).addTimeout(3.0, reactor)
        for success, failure in results:
            self.assertFalse(success)
            self.assertIsInstance(failure.value, BackendLost)
        await self.watcher.until(lambda: self.watcher.connections == 3)
        self.assertEqual(self.uuid, await self.backend.look_up(vm()))

    async def test_call_takes_too_long(self) -> None:
        """A call that goes on, whatever keeps it, is given up, and the pool is connected to anew."""
        self.server.hang.add("VM.get_power_state")
        self.patch(xapi, "CALLS_WITHIN", 0.2)
        call: Deferred[Any] = self.backend.state(self.uuid)
        error = await self.assertFailure(call, BackendLost)
        self.assertIn("has not answered within 0.2 s", str(error))
        await self.watcher.until(lambda: self.watcher.connections == 2)

    async def test_event_stream_hangs(self) -> None:
        """A stream that is silent for longer than it may be is a connection that is lost."""
        self.hurry()
        await self.server.unplug()
        self.server.plug()
        await self.watcher.until(lambda: self.watcher.connections == 2)
        losses = len(self.watcher.lost_reasons)
        self.server.hang.add("event.from")
        await self.watcher.until(lambda: len(self.watcher.lost_reasons) > losses)
        self.server.hang.clear()
        await self.watcher.until(lambda: self.watcher.connections == 3)

    async def test_close(self) -> None:
        """The session is ended, and so are the threads; VMs go on."""
        await self.backend.start(self.uuid)
        await self.backend.close()
        self.assertEqual(set(), self.pool.sessions)
        self.assertEqual("Running", self.power)
        assert self.backend._stream is not None
        self.assertFalse(self.backend._stream.is_alive())
        await self.assertFailure(self.backend.state(self.uuid), BackendLost)

    async def test_close_in_a_call(self) -> None:
        """A call that hangs ends when the backend is closed, long before its deadline."""
        self.server.hang.add("VM.get_power_state")
        asked = self.backend.state(self.uuid)
        while "VM.get_power_state" not in self.server.calls:
            await deferLater(reactor, 0.01)
        await self.backend.close().addTimeout(3.0, reactor)
        await self.assertFailure(asked, BackendLost)

    async def test_close_while_connecting(self) -> None:
        """A host that takes a connection and says nothing does not hold up the end."""
        for module, deadline in ((xapi, "CLOSES_WITHIN"), (xapi_session, "ANSWER_WITHIN")):
            self.patch(module, deadline, 86400.0)
        self.server.hang.add("session.login_with_password")
        backend = self.make_at(self.uri())
        backend.connect(contract_backends.Watcher())
        while self.server.calls.count("session.login_with_password") < 2:
            await deferLater(reactor, 0.01)
        await backend.close()

    async def test_password_changes(self) -> None:
        """The password is read anew for each login; while it is wrong, that is said and tried again."""
        self.password.write_text("old")
        self.pool.forget_sessions()
        await self.watcher.until(lambda: self.watcher.lost_reasons)
        self.assertIn("SESSION_AUTHENTICATION_FAILED(root", self.watcher.lost_reasons[0])
        self.password.unlink()
        await self.watcher.until(lambda: "No such file" in self.watcher.lost_reasons[-1])
        self.password.write_text(PASSWORD)
        await self.watcher.until(lambda: self.watcher.connections == 2)

    async def test_no_secrets(self) -> None:
        """The password is in no line of the log, and in nothing that is told, whatever happens."""
        self.server.refuse("session.login_with_password", "INTERNAL_ERROR", "x")
        self.pool.forget_sessions()
        await self.watcher.until(lambda: self.watcher.connections == 2)
        self.server.drop.add("session.login_with_password")
        self.pool.forget_sessions()
        await self.watcher.until(lambda: len(self.watcher.lost_reasons) > 2)
        self.assertIn("login", self.watcher.lost_reasons[-1])
        for line in [*self.logged, *self.watcher.lost_reasons, repr(self.backend._connection), str(self.backend)]:
            self.assertNotIn(PASSWORD, line)


class XapiMasterTests(ConnectedTestCase):
    """Pools of several hosts. Their addresses differ, their port is one."""

    async def setUp(self) -> None:  # type: ignore[override]
        """Connect to a host that is not the master."""
        self.begin()
        self.other = self.serve("127.0.0.2", int(self.server.address.rpartition(":")[2]))
        self.other.slave_of = "127.0.0.1"
        await self.connect(self.uri(self.other, self.server))

    async def test_slave(self) -> None:
        """A host that is not the master names it, and that one is used."""
        self.assertEqual(["session.login_with_password"], self.other.calls)
        self.assertIs(Start.BOOTED, await self.backend.start(self.uuid))
        self.assertEqual([], self.watcher.lost_reasons)

    async def test_new_master(self) -> None:
        """When another host becomes the master, it is used from then on, and what it says is believed."""
        self.server.slave_of, self.other.slave_of = "127.0.0.2", None
        self.assertIs(Power.OFF, await self.backend.state(self.uuid))
        self.pool.power(self.ref, "Running")
        await self.until_told("Running, was Halted")
        self.assertIn("VM.get_power_state", self.other.calls)

    async def test_circle(self) -> None:
        """Hosts that each take the other for the master are no pool; that is said, and tried again."""
        self.server.slave_of = "127.0.0.2"
        await self.assertFailure(self.backend.state(self.uuid), BackendLost)
        self.assertIn("takes another for its master", self.watcher.lost_reasons[0])
        self.server.slave_of = None
        await self.watcher.until(lambda: self.watcher.connections == 2)


class XapiOpeningTests(XapiTestCase):
    """What is found while the pool is connected to, and by a look at the configuration."""

    def setUp(self) -> None:
        """Make the pool."""
        self.begin()
        self.ref = self.pool.add_vm("www")

    async def lost(self, uri: str) -> str:
        """Return why a backend cannot connect. There is no password in it."""
        backend, watcher = self.make_at(uri), contract_backends.Watcher()
        backend.connect(watcher)
        await watcher.until(lambda: watcher.lost_reasons)
        self.assertNotIn(PASSWORD, watcher.lost_reasons[0])
        await backend.close()
        return watcher.lost_reasons[0]

    async def test_unknown(self) -> None:
        """A VM that is not there, or is two, is an error with the remedy."""
        backend: Any = self.make_at(self.uri())
        watcher = contract_backends.Watcher()
        backend.connect(watcher)
        await watcher.until(lambda: watcher.connections)
        looked: Deferred[object] = backend.look_up(vm("nobody"))
        self.assertIn("mend the name", str(await self.assertFailure(looked, NoSuchVM)))
        self.pool.add_vm("www")
        looked = backend.look_up(vm())
        self.assertIn("say with uuid which", str(await self.assertFailure(looked, BackendError)))

    async def test_not_there(self) -> None:
        """A host that does not answer is tried again."""
        uri = self.uri()
        await self.server.unplug()
        backend, watcher = self.make_at(uri), contract_backends.Watcher()
        backend.connect(watcher)
        await watcher.until(lambda: len(watcher.lost_reasons) > 1)
        self.server.plug()
        await watcher.until(lambda: watcher.connections)

    async def test_still_booting(self) -> None:
        """A host that takes nobody yet is tried again."""
        self.server.refuse("session.login_with_password", "HOST_STILL_BOOTING")
        backend, watcher = self.make_at(self.uri()), contract_backends.Watcher()
        backend.connect(watcher)
        await watcher.until(lambda: watcher.connections)
        self.assertIn("HOST_STILL_BOOTING", watcher.lost_reasons[0])

    async def test_wrong_password(self) -> None:
        """A password that XAPI does not take is an error that names the file."""
        self.password.write_text("wrong")
        said = await self.lost(self.uri())
        self.assertIn("SESSION_AUTHENTICATION_FAILED", said)
        self.assertIn(str(self.password), said)

    async def test_password_file(self) -> None:
        """A file that is not there, is empty or is no text is an error with the remedy, before it is used too."""
        for content, words in ((b"", "is empty"), (b"\xff", "no text"), (None, "No such file")):
            if content is None:
                self.password.unlink()
            else:
                self.password.write_bytes(content)
            error = self.assertRaises(ConfigError, self.make_at(self.uri()).examine, vm())
            for said in (str(error), await self.lost(self.uri())):
                self.assertIn(words, said)
                self.assertIn(f"install -m 600 /dev/stdin {self.password}", said)

    async def test_exposed_password(self) -> None:
        """A file that everybody can read is warned of; one for a group is not."""
        self.password.chmod(0o640)
        self.assertEqual((), self.make_at(self.uri()).examine(vm()))
        self.password.chmod(0o644)
        self.assertIn("chmod 600", self.make_at(self.uri()).examine(vm())[0])
        backend, watcher = self.make_at(self.uri()), contract_backends.Watcher()
        backend.connect(watcher)
        await watcher.until(lambda: watcher.connections)
        self.assertEqual(1, len([line for line in self.logged if "chmod" in line]))

    async def test_stranger(self) -> None:
        """A host whose certificate nobody vouches for gets no password, and the remedy is named."""
        uri, _, _ = self.uri().partition("&ca=")
        said = await self.lost(uri)
        self.assertIn("self-signed certificate", said)
        self.assertIn("ca=FILE", said)
        stranger = Server(self.pool, self.folder)
        await self.lost(f"{uri}&ca={stranger.ca}")
        self.assertEqual([], self.server.calls)

    async def test_another_name(self) -> None:
        """A certificate must be for the name in the URI."""
        host = self.serve("127.0.0.3")
        self.assertIn("127.0.0.3", await self.lost(self.uri(host)))
        self.assertEqual([], host.calls)

    async def test_authorities(self) -> None:
        """A file of certificates that is not there, or has none, is an error that names it."""
        uri, _, _ = self.uri().partition("&ca=")
        for path in (self.password, self.folder / "nowhere"):
            backend = self.make_at(f"{uri}&ca={path}")
            self.assertIn(f"ca {path}", str(self.assertRaises(ConfigError, backend.examine, vm())))
            self.assertIn(f"ca {path}", await self.lost(f"{uri}&ca={path}"))


class TargetTests(SynchronousTestCase):
    """The URI."""

    def test_right(self) -> None:
        """The user is root unless one is named; the port is HTTPS's."""
        path = Path("/etc/p")
        for uri, target in (
            ("https://xen1?password_file=/etc/p", Target("xen1", "root", path)),
            ("https://xen1/?password_file=/etc/p&user=jitsu", Target("xen1", "jitsu", path)),
            ("https://[fd00::1]:8443/?ca=/c&password_file=/etc/p", Target("[fd00::1]:8443", "root", path, Path("/c"))),
            ("https://xen1/?user=a%40b&password_file=/etc/p", Target("xen1", "a@b", path)),
        ):
            self.assertEqual(target, Target.from_uri(uri))

    def test_wrong(self) -> None:
        """Each error says what would be right, and repeats no password that was put there by mistake."""
        for uri, words in (
            ("", "must name a host"),
            ("xen1", "must name a host"),
            ("http://xen1/?password_file=/p", "reached by TLS"),
            ("https:///?password_file=/p", "must name a host"),
            ("https://xen1:x/?password_file=/p", "is no URI"),
            ("https://xen1/", "file with the password"),
            ("https://xen1/?user=root", "file with the password"),
            ("https://root:hunter2@xen1/?password_file=/p", "must not have a password"),
            ("https://xen1/?password=hunter2", "must not have a password"),
            ("https://xen1/?password_file=", "file with the password"),
            ("https://xen1/?hunter2", "is no URI"),
            ("https://xen1/?password_file=/p&verify=no", "known are user, password_file and ca"),
            ("https://xen1/?password_file=/p&password_file=/hunter2", "says more"),
            ("https://xen1/hunter2?password_file=/p", "says more"),
            ("https://xen1/?password_file=/p#hunter2", "says more"),
        ):
            error = self.assertRaises(ConfigError, Target.from_uri, uri)
            self.assertIn(words, str(error), uri)
            self.assertTrue(str(error).startswith("connect: "))
            self.assertNotIn("hunter2", str(error))

    def test_master(self) -> None:
        """A master is named by its address; its port is the one of the URI."""
        for host, address, master in (
            ("xen1", "10.0.0.2", "10.0.0.2"),
            ("xen1:8443", "10.0.0.2", "10.0.0.2:8443"),
            ("[fd00::1]:8443", "fd00::2", "[fd00::2]:8443"),
            ("[fd00::1]", "fd00::2", "[fd00::2]"),
        ):
            login = Login(Target(host, "root", Path("/etc/p")))
            login._move(XapiError(["HOST_IS_SLAVE", address]))
            self.assertEqual(master, login._host)

    def test_words(self) -> None:
        """XAPI's errors are written as its reference writes them."""
        self.assertEqual("VM_BAD_POWER_STATE(r, halted, running)", str(XapiError(["VM_BAD_POWER_STATE", "r", "halted",
                                                                                  "running"])))
        self.assertEqual("NO_HOSTS_AVAILABLE", str(XapiError(["NO_HOSTS_AVAILABLE"])))
