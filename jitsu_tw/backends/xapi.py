"""
VMs of a XAPI pool: XCP-ng, XenServer, or XAPI by itself.

Every call blocks, so each is made in a thread of `threaded`, and none waits for a VM: a change of a VM is started as a
task (the API's ``Async``), whose end is an event. The events come through one call after the other of `event.from`, in
a thread of its own. A VM is known by its uuid; XAPI's refs are kept only as long as XAPI knows them.
"""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import defer
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from jitsu_tw.backends import xapi_vms
from jitsu_tw.backends.definition import NOT_MADE
from jitsu_tw.backends.threaded import ThreadedBackend, Workers, in_thread
from jitsu_tw.backends.xapi_session import CONNECT_WITHIN, PASSED, Login, Target, XapiError
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import BackendError, BackendLost, ConfigError, JitsuError, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, Memory, Power, Start
from jitsu_tw.settings import VM, Evidence, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How many calls to one pool may be under way at once.
THREADS: Final = 16

#: Seconds after which a call is given up, and a logout.
CALLS_WITHIN: Final = 60.0
CLOSES_WITHIN: Final = 10.0

#: The classes whose events are wanted: VMs, and the tasks that change them.
CLASSES: Final = ["vm", "task"]

#: Seconds until `event.from` answers that nothing has happened; well under the deadline of an answer.
EVENTS_WITHIN: Final = 10.0

#: Seconds that a task may take: a suspend writes the guest's whole memory to a disk, which may be a slow one.
TASK_WITHIN: Final = 600.0

#: How often a start is tried while other programs change the VM's state.
TRIES: Final = 3

#: The call that stops a VM in each mode, and what it leaves. In XAPI "suspend" is a save to disk.
_STOPS: Final = {
    Mode.DESTROY: ("hard_shutdown", Power.OFF),
    Mode.SHUTDOWN: ("clean_shutdown", Power.OFF),
    Mode.SUSPEND: ("suspend", Power.SAVED),
    Mode.PAUSE: ("pause", Power.PAUSED),
    Mode.SAVE: ("suspend", Power.SAVED),
}

#: Errors that a saved image has not caused: with more memory, another host or the disks back, it may be resumed.
_PASSING: Final = frozenset({
    "HANDLE_INVALID", "LICENCE_RESTRICTION", "NO_HOSTS_AVAILABLE", "OPERATION_BLOCKED", "OPERATION_NOT_ALLOWED",
    "OTHER_OPERATION_IN_PROGRESS", "RBAC_PERMISSION_DENIED", "TASK_CANCELLED", "TOO_MANY_PENDING_TASKS",
    "VM_BAD_POWER_STATE", "VM_REQUIRES_NETWORK", "VM_REQUIRES_SR",
})  # fmt: skip
_PASSING_KINDS: Final = ("HOST_", "SR_")


def _remedy(error: JitsuError, target: Target) -> str | None:
    """Return what an operator must mend after *error* of a login; None if it may pass by itself."""
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return "give the file of its authority with ca=FILE"
    if isinstance(error, XapiError) and error.code == "SESSION_AUTHENTICATION_FAILED":
        return f"mend user=, or {target.password_file}"
    return None


def _passes(refused: XapiError) -> bool:
    """Return whether what XAPI refuses now may go well later."""
    return refused.code in _PASSING or refused.code.startswith(_PASSING_KINDS)


@implementer(IBackend)
class XapiBackend(ThreadedBackend[Login]):
    """The pool at one URI; see `xapi_session.SYNTAX`."""

    has_uuids = True

    def __init__(self, connect: str = "", reactor: Any = None) -> None:
        """Take the URI; nothing is connected yet."""
        self._uri = connect
        super().__init__(reactor)
        self._opening: Login | None = None
        self._calls = Workers(str(self), THREADS, self._logged_in, lambda _: None, self._reactor)
        self._pools = (self._calls,)
        self._stream: threading.Thread | None = None
        self._seen = xapi_vms.Seen()
        self._refs: dict[str, str] = {}
        self._evidence: dict[str, Evidence] = {}
        self._tasks: dict[str, Deferred[dict[str, Any] | None]] = {}

    def __str__(self) -> str:
        """Return its name for messages."""
        return f"XAPI at {self._uri.partition('?')[0]}"

    # Connecting.

    def examine(self, vm: VM) -> tuple[str, ...]:  # noqa: ARG002
        """Check that the URI is right, and that the files that it names can be read; return what is doubtful."""
        target = Target.from_uri(self._uri)
        target.trust()
        return self._warnings(target)

    @staticmethod
    def _warnings(target: Target) -> tuple[str, ...]:
        """
        Return what is doubtful about the files of *target*.

        Raises:
            ConfigError: the password cannot be read.
        """
        target.password()
        exposed = f"{target.password_file} can be read by everybody; mend it with: chmod 600"
        return (exposed,) if target.exposed() else ()

    def _open_events(self) -> Login:
        """Log in, and learn how all VMs are, with the token from which on events are wanted. Blocks."""
        for sentence in self._warnings(target := Target.from_uri(self._uri)):
            self.log.warn("{sentence}", sentence=sentence)
        self._opening = login = Login(target)
        try:
            if self._watcher is None:
                login.abort("closed")
            login.snapshot = login.call("event.from", CLASSES, "", 0.0)
        except JitsuError as error:
            login.close()
            remedy = _remedy(error, target)
            if remedy is not None:
                raise ConfigError(f"{error}; {remedy}", key="connect") from error
            raise
        return login

    def _connected(self, login: Login) -> None:
        self._seen = xapi_vms.Seen()
        self._seen.take(xapi_vms.of("vm", login.snapshot["events"]), whole=True)
        self._refs.clear()
        self._stream = threading.Thread(
            target=self._listen, args=(login, login.snapshot["token"]), name="xapi events", daemon=True
        )
        self._stream.start()
        super()._connected(login)

    def _discard(self, login: Login, reason: str = "closed") -> None:
        login.abort(reason)

    def _logged_in(self) -> Login:
        """Return the login that calls are made with, in a thread."""
        if self._connection is None:
            raise BackendLost(f"{self} cannot be reached")
        return self._connection

    def _listen(self, login: Login, token: str) -> None:
        """Read events until the login is broken; in a thread of its own."""
        number = login.number
        try:
            while True:
                if login.number != number:
                    # Another session may be one of another master, whose tokens are others: all VMs once more.
                    number, token = login.number, ""
                try:
                    batch = login.once("event.from", CLASSES, token, EVENTS_WITHIN)
                except XapiError as refused:
                    if refused.code not in PASSED or not token:
                        raise
                    login.open()
                    continue
                self._reactor.callFromThread(self._heard, login, batch["events"], whole=not token)
                token = batch["token"]
        except Exception as error:  # noqa: BLE001
            # Wide: whatever ends the stream, no event comes without it.
            self._reactor.callFromThread(self._lost, login, str(error) or repr(error))

    def _heard(self, login: Login, events: Sequence[dict[str, Any]], *, whole: bool) -> None:
        if login is self._connection:
            for uuid, reason in self._seen.take(xapi_vms.of("vm", events), whole=whole):
                self._changed(uuid, reason)
        for event in xapi_vms.of("task", events):
            task = event.get("snapshot") or {"status": "failure", "error_info": ["HANDLE_INVALID", "task"]}
            if event["ref"] in self._tasks and task["status"] not in {"pending", "cancelling"}:
                self._tasks.pop(event["ref"]).callback(task)

    def _lost(self, login: Login, reason: str) -> None:
        super()._lost(login, reason)
        if self._connection is None:
            self._forget_tasks()

    def _forget_tasks(self) -> None:
        """Fail all that waits for tasks: no event will tell their end."""
        tasks, self._tasks = self._tasks, {}
        for waiting in tasks.values():
            waiting.callback(None)

    def close(self) -> Deferred[None]:
        """Log out and end the threads."""
        if self._opening is not None and self._opening is not self._connection:
            self._opening.abort("closed")
        self._forget_tasks()
        return super().close()

    def _close_events(self, login: Login) -> Deferred[Any]:
        closing = in_thread(self._reactor, f"{self}, closing", self._log_out, login, self._stream)
        return closing.addTimeout(CLOSES_WITHIN, self._reactor, onTimeoutCancel=lambda *_: None)

    @staticmethod
    def _log_out(login: Login, stream: threading.Thread | None) -> None:
        login.close()
        if stream is not None:
            stream.join(CONNECT_WITHIN)

    # Calls.

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Call *function* with the login, in a thread."""
        return self._calls.call(CALLS_WITHIN, function, *arguments).addErrback(self._call_failed, self._connection)

    def _call_failed(self, failure: Any, login: Login | None) -> Any:
        if failure.check(BackendLost, ConfigError) and login is not None:
            self._lost(login, failure.getErrorMessage())
        return failure

    def _ask(self, method: str, *arguments: Any) -> Deferred[Any]:
        return self._run(Login.call, method, *arguments)

    @deferred
    async def _vm(self, uuid: str, ask: Callable[[str], Deferred[Any]]) -> Any:
        """Make the call *ask* with the VM's ref, which is looked up again where XAPI does not know it any more."""
        known = self._refs.get(uuid)
        try:
            ref = self._refs[uuid] = known or await self._ask("VM.get_by_uuid", uuid)
            return await ask(ref)
        except XapiError as refused:
            if refused.code not in {"HANDLE_INVALID", "UUID_INVALID"} or refused.parameters[:1] != ["VM"]:
                raise
            self._refs.pop(uuid, None)
            if known is None:
                raise NoSuchVM(str(refused)) from refused
        return await self._vm(uuid, ask)

    async def _change(self, uuid: str, method: str, *arguments: Any) -> None:
        """Change the VM by a task, and wait for its end."""
        await self._vm(uuid, lambda ref: self._task(f"Async.VM.{method}", ref, *arguments))

    @deferred
    async def _task(self, method: str, *arguments: Any) -> None:
        """Start a task, and wait for its end."""
        await self._ended(method, await self._ask(method, *arguments))

    @deferred
    async def _ended(self, method: str, task: str) -> None:
        """Wait for the end of *task*; fail with the error that it ended with."""
        waiting: Deferred[dict[str, Any] | None] = Deferred()
        self._tasks[task] = waiting
        try:
            # It may have ended before its events were waited for.
            record = await self._ask("task.get_record", task)
            if record["status"] in {"pending", "cancelling"}:
                record = await waiting.addTimeout(TASK_WITHIN, self._reactor)
        except defer.TimeoutError as error:
            raise BackendError(f"{method} is still under way after {TASK_WITHIN} s") from error
        finally:
            self._tasks.pop(task, None)
        if record is None:
            raise BackendLost(f"{method}: the connection broke while it was under way")
        # XAPI keeps a limited number of ended tasks, for a day. Nothing depends on the success of this.
        self._ask("task.destroy", task).addErrback(lambda _: None)
        if record["status"] != "success":
            raise XapiError(record["error_info"] or [f"task {record['status']}"])

    def look_up(self, vm: VM) -> Deferred[str]:
        """Find a VM by uuid or name label."""
        return self._run(xapi_vms.find, vm).addCallback(self._found, vm)

    def _found(self, uuid: str, vm: VM) -> str:
        self._evidence[uuid] = vm.evidence
        return uuid

    @deferred
    async def state(self, uuid: str) -> Power:
        """Return the power state; one that XAPI calls suspended is saved."""
        return xapi_vms.POWER[await self._vm(uuid, lambda ref: self._ask("VM.get_power_state", ref))]

    @deferred
    async def start(self, uuid: str) -> Start:
        """Start, resume or unpause the VM. XAPI chooses the host."""
        for last in (*[False] * (TRIES - 1), True):
            power = await self.state(uuid)
            try:
                if power is Power.RUNNING:
                    return Start.RAN
                if power is Power.OFF:
                    await self._change(uuid, "start", False, False)  # noqa: FBT003
                    return Start.BOOTED
                return await self._wake(uuid, power)
            except XapiError as refused:
                # Another program may have changed it meanwhile.
                if refused.code != "VM_BAD_POWER_STATE" or last:
                    raise
        raise AssertionError

    async def _wake(self, uuid: str, power: Power) -> Start:
        """Unpause or resume the VM; where that fails, throw its memory away, and boot."""
        try:
            if power is Power.PAUSED:
                await self._change(uuid, "unpause")
                return Start.RESUMED
            await self._change(uuid, "resume", False, False)  # noqa: FBT003
        except XapiError as refused:
            if _passes(refused):
                raise
            self.log.error(
                "{backend}: VM {uuid} is {power} and cannot go on, so that is thrown away and the VM boots: {error}",
                backend=self, uuid=uuid, power=power.value, error=str(refused),
            )  # fmt: skip
        else:
            return Start.RESTORED
        await self._change(uuid, "hard_shutdown")
        await self._change(uuid, "start", False, False)  # noqa: FBT003
        return Start.BOOTED

    @deferred
    async def stop(self, uuid: str, mode: Mode) -> None:
        """Stop the VM. What is saved already stays so."""
        method, leaves = _STOPS[mode]
        done = {Power.OFF, Power.SAVED, leaves}
        if await self.state(uuid) in done:
            return
        if mode is Mode.SHUTDOWN:
            asked = f"Async.VM.{method}"
            task = await self._vm(uuid, lambda ref: self._ask(asked, ref))
            self._ended(asked, task).addErrback(self._not_followed, uuid)
            return
        try:
            await self._change(uuid, method)
        except XapiError:
            # It may have gone down by itself meanwhile, which is what was wanted.
            if await self.state(uuid) not in done:
                raise

    def _not_followed(self, failure: Any, uuid: str) -> None:
        """Log why a guest does not shut down. The caller waits for the VM's end, with a deadline of its own."""
        failure.trap(BackendError)
        self.log.warn(
            "{backend}: VM {uuid} does not shut down: {error}",
            backend=self, uuid=uuid, error=failure.getErrorMessage(),
        )  # fmt: skip

    def ready(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fire at once: XAPI knows of a guest only what an agent in it reports, some seconds late."""
        return succeed(None)

    def guest(self, uuid: str) -> Deferred[Guest]:
        """Read the VIFs and the domain, which is one of the host that the VM is on."""
        return self._vm(uuid, lambda ref: self._run(xapi_vms.guest, ref))

    def traffic(self, uuid: str) -> Deferred[int | None]:  # noqa: ARG002
        """Return None: XAPI has rates in octets a second, no counts of packets (VIF_metrics, RRDs)."""
        return succeed(None)

    def cpu_time(self, uuid: str) -> Deferred[float | None]:  # noqa: ARG002
        """Return None: XAPI has how much of its virtual CPUs a VM uses now, no sum (VM_metrics, RRDs)."""
        return succeed(None)

    @deferred
    async def obstacle(self, uuid: str, mode: Mode) -> str | None:
        """Return why XAPI would refuse to stop the VM by *mode*: its own message."""
        method, leaves = _STOPS[mode]
        if await self.state(uuid) in {Power.OFF, Power.SAVED, leaves}:
            return None
        try:
            await self._vm(uuid, lambda ref: self._ask("VM.assert_operation_valid", ref, method))
        except XapiError as refused:
            return None if _passes(refused) else str(refused)
        return None

    def advice(self, uuid: str) -> Deferred[tuple[str, ...]]:
        """Return that packets are not counted, if these are to show whether the VM is used."""
        uncounted = "XAPI does not count the packets of its VMs; Jitsu cannot tell by them whether it is used"
        return succeed((uncounted,) if self._evidence.get(uuid) is Evidence.TRAFFIC else ())

    def memory(self, uuid: str) -> Deferred[Memory | None]:
        """Return the VM's static maximum and overhead, and what is free on the host that has the most."""
        return self._vm(uuid, lambda ref: self._run(xapi_vms.memory, ref))

    def keep_image(self, uuid: str, *, shared: bool = False) -> Deferred[None]:  # noqa: ARG002
        """Refuse: a pool keeps no images."""
        return fail(BackendError(f"{self} keeps no images of VM {uuid}"))

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:  # noqa: ARG002
        """Fail: such a VM is stopped and started anew."""
        return fail(BackendError(f"{self} does not move VMs that run"))

    def remove(self, vm: VM) -> Deferred[None]:  # noqa: ARG002
        """Fail: no template makes VMs here."""
        return fail(BackendError(NOT_MADE))

    def prepare(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fail: nothing would tell such a VM from one that another program has paused."""
        return fail(BackendError(f"{self} cannot prepare VMs"))

    def stale(self, uuid: str) -> Deferred[str]:  # noqa: ARG002
        """Return that nothing is known against it: there is none."""
        return succeed("")

    def drop_image(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Do nothing: there is none."""
        return succeed(None)
