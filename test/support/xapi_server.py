"""
A XAPI pool for tests: XML-RPC over TLS on Twisted, after the published API; its guests are a table.

It is no XAPI, and was never held against one: no real pool was at hand. What it does is what the API's reference, its
wire protocol and the messages of its errors say: ints as strings, ``Status``, ``Value`` and ``ErrorDescription``,
sessions, refs that mean nothing outside, power states and the errors for the wrong one, ``Async`` tasks, and the
event stream with tokens and time-outs, which tells of each object only what it is now.

It does wrong what it is told to: `hang`, `drop`, `ill`, `refuse`, `forget_sessions`, `slave_of`, `unplug`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor as default_reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.web.server import Site
from twisted.web.xmlrpc import XMLRPC, withRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USER: Final = "root"
PASSWORD: Final = "correct horse battery staple"  # noqa: S105

#: What a VM must be for each operation, in the order that errors name them, and what it is afterwards.
OPERATIONS: Final = {
    "start": (("Halted",), "Running"),
    "pause": (("Running",), "Paused"),
    "unpause": (("Paused",), "Running"),
    "suspend": (("Running",), "Suspended"),
    "resume": (("Suspended",), "Running"),
    "clean_shutdown": (("Running",), "Halted"),
    "hard_shutdown": (("Paused", "Running", "Suspended"), "Halted"),
}

MIB: Final = 1024 * 1024


class Failure(Exception):  # noqa: N818
    """An error of the API's: its code and parameters."""


@attrs.define
class Row:
    """One object of the pool's database, and when it came, changed and went, in generations."""

    kind: str
    record: dict[str, Any]
    created: int = 0
    modified: int = 0
    deleted: int = 0


class Pool:
    """
    What a pool is, apart from the network.

    Attributes:
        rows: its objects, by ref.
        sessions: those that are valid.
        boot_time: seconds that each operation takes.
        stubborn: the guests do not shut down when they are asked to.
        drivers: the guests have what a clean shutdown needs.
    """

    def __init__(self, reactor: Any = default_reactor) -> None:
        """Begin with one host, its control domain, a template and a snapshot."""
        self.reactor = reactor
        self.rows: dict[str, Row] = {}
        self.sessions: set[str] = set()
        self.logins = 0
        self.generation = 1
        self.boot_time = 0.01
        self.stubborn = False
        self.drivers = True
        self._domid = 0
        self._ending: dict[str, Any] = {}
        self._waking: list[Callable[[], None]] = []
        self.host = self.add("host", {"name_label": "xen1", "enabled": True})
        self.free = {self.host: 1024 * MIB}
        self.add_vm("Control domain on host: xen1", power_state="Running", is_control_domain=True, domid="0")
        self.add_vm("Debian 12", is_a_template=True)

    # The database.

    def add(self, kind: str, record: dict[str, Any]) -> str:
        """Add an object; return its ref."""
        ref = f"OpaqueRef:{uuid4()}"
        self.generation += 1
        row = Row(kind, {"uuid": str(uuid4()), **record}, self.generation, self.generation)
        self.rows[ref] = row
        self._wake()
        return ref

    def change(self, ref: str, **fields: Any) -> None:
        """Change fields of an object."""
        self.generation += 1
        self.rows[ref].record.update(fields)
        self.rows[ref].modified = self.generation
        self._wake()

    def remove(self, ref: str) -> None:
        """Remove an object."""
        self.generation += 1
        self.rows[ref].deleted = self.generation
        self._wake()

    def get(self, kind: str, ref: str) -> dict[str, Any]:
        """Return a record."""
        row = self.rows.get(ref)
        if row is None or row.kind != kind or row.deleted:
            raise Failure("HANDLE_INVALID", kind, ref)
        return row.record

    def all(self, kind: str) -> list[str]:
        """Return the refs of all objects of a class."""
        return [ref for ref, row in self.rows.items() if row.kind == kind and not row.deleted]

    def add_vm(self, name: str, macs: tuple[str, ...] = (), memory: int = 64 * MIB, **fields: Any) -> str:
        """Add a VM that is off; return its ref."""
        record = {
            "name_label": name,
            "name_description": "",
            "power_state": "Halted",
            "domid": "-1",
            "is_a_template": False,
            "is_a_snapshot": False,
            "is_control_domain": False,
            "memory_static_max": str(memory),
            "memory_overhead": str(MIB),
            "VIFs": [],
            "current_operations": {},
        }
        ref = self.add("VM", {**record, **fields})
        # As XAPI does: a set has no order, so the last interface may well come first.
        vifs = [self.add("VIF", {"device": str(n), "MAC": mac, "VM": ref}) for n, mac in enumerate(macs)]
        self.rows[ref].record["VIFs"] = vifs[::-1]
        return ref

    def move_vm(self, ref: str) -> str:
        """Change a VM's ref; return the new one."""
        row = self.rows[ref]
        self.remove(ref)
        self.generation += 1
        new = f"OpaqueRef:{uuid4()}"
        self.rows[new] = Row(row.kind, row.record, self.generation, self.generation)
        return new

    # What happens to VMs.

    def power(self, ref: str, state: str) -> None:
        """Set a VM's power state, as an operation does at its end, or another client."""
        domid = self.rows[ref].record["domid"]
        if state in {"Halted", "Suspended"}:
            domid = "-1"
        elif domid == "-1":
            self._domid += 1
            domid = str(self._domid)
        self.change(ref, power_state=state, domid=domid)

    def reboot(self, ref: str) -> None:
        """Reboot a guest: it is in a new domain, and was Running all the time according to all events."""
        self._domid += 1
        self.change(ref, domid=str(self._domid))

    def allow(self, ref: str, operation: str) -> dict[str, Any]:
        """Return a VM's record if *operation* may begin."""
        vm = self.get("VM", ref)
        if vm["is_a_template"]:
            raise Failure("VM_IS_TEMPLATE", ref)
        if others := set(vm["current_operations"].values()):
            if operation != "hard_shutdown" or others != {"clean_shutdown"}:
                raise Failure("OTHER_OPERATION_IN_PROGRESS", "VM", ref)
            for task in vm["current_operations"]:
                self._end(task, ref, ["TASK_CANCELLED", task], "cancelled")
        expected, _ = OPERATIONS[operation]
        if vm["power_state"] not in expected:
            raise Failure("VM_BAD_POWER_STATE", ref, ", ".join(expected).lower(), vm["power_state"].lower())
        if operation == "clean_shutdown" and not self.drivers:
            raise Failure("VM_MISSING_PV_DRIVERS", ref)
        return vm

    def begin(self, operation: str, ref: str, fault: Failure | None = None) -> str:
        """Begin an operation as a task; return its ref. Its errors are in the task."""
        self.get("VM", ref)
        task = self.add("task", {"name_label": f"Async.VM.{operation}", "status": "pending", "error_info": []})
        try:
            if fault is not None:
                raise fault
            vm = self.allow(ref, operation)
        except Failure as failure:
            self.change(task, status="failure", error_info=list(failure.args))
            return task
        self.change(ref, current_operations={**vm["current_operations"], task: operation})
        if operation != "clean_shutdown" or not self.stubborn:
            self._ending[task] = self.reactor.callLater(self.boot_time, self._done, task, operation, ref)
        return task

    def finish(self) -> None:
        """End all operations that are under way, now."""
        for ending in list(self._ending.values()):
            ending.reset(0)

    def _done(self, task: str, operation: str, ref: str) -> None:
        self.power(ref, OPERATIONS[operation][1])
        self._end(task, ref)

    def _end(self, task: str, ref: str, error: list[str] | None = None, status: str = "success") -> None:
        ending = self._ending.pop(task, None)
        if ending is not None and ending.active():
            ending.cancel()
        left = {key: value for key, value in self.rows[ref].record["current_operations"].items() if key != task}
        self.change(ref, current_operations=left)
        self.change(task, status=status, error_info=error or [])

    # Events.

    def events(self, classes: list[str], since: int) -> list[dict[str, Any]]:
        """Return what has happened after *since*: each object once, as it is now."""
        found = []
        for ref, row in self.rows.items():
            kind = row.kind.lower()
            if kind not in {name.lower() for name in classes} or max(row.modified, row.deleted) <= since:
                continue
            if row.deleted and row.created > since:
                continue
            event: dict[str, Any] = {"id": str(self.generation), "timestamp": "0.0", "class": kind, "ref": ref}
            if row.deleted:
                found.append({**event, "operation": "del"})
            else:
                operation = "add" if row.created > since else "mod"
                found.append({**event, "operation": operation, "snapshot": dict(row.record)})
        return found

    def on_change(self, call: Callable[[], None]) -> None:
        """Schedule *call* once, soon after the next change."""
        self._waking.append(call)

    def _wake(self) -> None:
        waking, self._waking = self._waking, []
        for call in waking:
            call()

    def rewind(self) -> None:
        """Count changes from 1 again, as a master that has been made from a backup."""
        self.generation = 1
        for row in self.rows.values():
            row.created = row.modified = 1

    def forget_sessions(self, *which: str) -> None:
        """End sessions, all if none is named; pending calls for events get an error."""
        self.sessions -= set(which) or self.sessions
        self._wake()


class Server(XMLRPC):
    """
    One host's API.

    Attributes:
        calls: the methods that were called, in order.
        ca: the file of its certificate.
        slave_of: the master's address, where this host is none.
        hang: methods that are never answered.
        drop: methods at which the connection breaks.
        ill: methods that are answered with HTTP's 503, as by a proxy before a XAPI that is not there.
        wrong: errors to come, by method; one is used up by each call.
    """

    def __init__(self, pool: Pool, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        """Take what the host belongs to, a folder for its certificate, and where it shall listen."""
        super().__init__(allowNone=True)
        self.pool = pool
        self.host = host
        self.calls: list[str] = []
        self.slave_of: str | None = None
        self.hang: set[str] = set()
        self.drop: set[str] = set()
        self.ill: set[str] = set()
        self.wrong: dict[str, list[tuple[str, ...]]] = {}
        self.ca = folder / f"ca-{id(self)}.pem"
        self._certificate = make_certificate(self.ca)
        self._port: Any = None
        self._wires: set[Any] = set()
        self._busy: set[Any] = set()
        self._number = port
        self._late: list[Any] = []

    # The network.

    @property
    def address(self) -> str:
        """The host and port that it listens on, or listened on last."""
        return f"{self.host}:{self._number}"

    def plug(self) -> None:
        """Listen, on the same port as before."""
        site = Site(self)
        self._port = self.pool.reactor.listenSSL(
            self._number, site, self._certificate.options(), interface=self.host
        )
        self._number = self._port.getHost().port

    async def unplug(self) -> None:
        """Stop listening, break all connections, and drop pending calls for events."""
        port, self._port = self._port, None
        if port is not None:
            await port.stopListening()
        self.cut()
        for call in self._late:
            if call.active():
                call.cancel()

    def cut(self, *, idle: bool = False) -> None:
        """Break all connections, or close those that no call is under way on."""
        wires = self._wires - self._busy if idle else self._wires
        self._wires = self._wires - wires
        for wire in wires:
            if idle:
                wire.loseConnection()
            else:
                wire.abortConnection()

    # The API.

    def lookupProcedure(self, procedurePath: str) -> Any:  # noqa: N802, N803
        """Answer to every method."""

        def procedure(request: Any, *arguments: Any) -> Any:
            wire = request.channel.transport.transport
            self._wires.add(wire)
            self._busy.add(wire)
            request.notifyFinish().addBoth(lambda _: self._busy.discard(wire))
            return self._answer(request, procedurePath, list(arguments))

        return withRequest(procedure)

    def refuse(self, method: str, *details: str) -> None:
        """Make the next call of *method* fail; of an operation on a VM, its task."""
        self.wrong.setdefault(method, []).append(details)

    def _answer(self, request: Any, method: str, arguments: list[Any]) -> Any:
        self.calls.append(method)
        if method in self.hang:
            return Deferred()
        if method in self.drop:
            request.channel.transport.transport.abortConnection()
            return Deferred()
        if method in self.ill:
            request.setResponseCode(503)
        try:
            value = self._call(method, arguments)
        except Failure as failure:
            return _failure(failure)
        if isinstance(value, Deferred):
            return value.addCallbacks(_success, lambda reason: _failure(reason.value))
        return _success(value)

    def _call(self, method: str, arguments: list[Any]) -> Any:
        if self.slave_of is not None:
            raise Failure("HOST_IS_SLAVE", self.slave_of)
        fault = Failure(*self.wrong[method].pop(0)) if self.wrong.get(method) else None
        operation = method.removeprefix("Async.VM.")
        if fault is not None and operation == method:
            raise fault
        if method == "session.login_with_password":
            return self._log_in(*arguments)
        session, *arguments = arguments
        if session not in self.pool.sessions:
            raise Failure("SESSION_INVALID", session)
        if method == "session.logout":
            self.pool.forget_sessions(session)
            return ""
        if method == "event.from":
            return self._events(session, *arguments)
        if operation != method:
            return self.pool.begin(operation, arguments[0], fault)
        return self._get(method, arguments)

    def _log_in(self, user: str, password: str, _version: str, _originator: str) -> str:
        if (user, password) != (USER, PASSWORD):
            raise Failure("SESSION_AUTHENTICATION_FAILED", user, "Authentication failure")
        self.pool.logins += 1
        session = f"OpaqueRef:{uuid4()}"
        self.pool.sessions.add(session)
        return session

    def _get(self, method: str, arguments: list[Any]) -> Any:
        """Answer what is a look into the database, or little more."""
        pool = self.pool
        kind, _, name = method.partition(".")
        if method == "host.compute_free_memory":
            if arguments[0] not in pool.free:
                raise Failure("HOST_OFFLINE", arguments[0])
            return str(pool.free[arguments[0]])
        if method == "VM.get_possible_hosts":
            vm = pool.get("VM", arguments[0])
            return [host for host, free in pool.free.items() if free > int(vm["memory_static_max"])]
        if method == "VM.assert_operation_valid":
            pool.allow(*arguments)
            return ""
        if method == "task.destroy":
            pool.get("task", arguments[0])
            pool.remove(arguments[0])
            return ""
        if name == "get_all":
            return pool.all(kind)
        if name == "get_record":
            return pool.get(kind, arguments[0])
        if name == "get_by_name_label":
            return [ref for ref in pool.all(kind) if pool.rows[ref].record["name_label"] == arguments[0]]
        if name == "get_by_uuid":
            for ref in pool.all(kind):
                if pool.rows[ref].record["uuid"] == arguments[0]:
                    return ref
            raise Failure("UUID_INVALID", kind, arguments[0])
        if name.startswith("get_"):
            return pool.get(kind, arguments[0])[name.removeprefix("get_")]
        raise Failure("MESSAGE_METHOD_UNKNOWN", method)

    def _events(self, session: str, classes: list[str], token: str, timeout: float) -> Any:
        """Answer when there are events, or when *timeout* seconds have passed."""
        if not isinstance(timeout, float):
            raise Failure("FIELD_TYPE_ERROR", "timeout")
        try:
            since = int(token.partition(",")[0]) if token else 0
        except ValueError:
            raise Failure("EVENT_FROM_TOKEN_PARSE_FAILURE", token) from None
        done: Deferred[Any] = Deferred()

        def look() -> None:
            if done.called or not late.active():
                return
            events = self.pool.events(classes, since)
            if session not in self.pool.sessions:
                late.cancel()
                done.errback(Failure("SESSION_INVALID", session))
            elif events:
                late.cancel()
                done.callback(self._batch(events))
            else:
                self.pool.on_change(look)

        late = self.pool.reactor.callLater(timeout, lambda: done.callback(self._batch([])))
        self._late = [*(call for call in self._late if call.active()), late]
        look()
        return done

    def _batch(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        counts = {kind.lower(): len(self.pool.all(kind)) for kind in ("VM", "VIF", "task", "host")}
        return {"events": events, "valid_ref_counts": counts, "token": f"{self.pool.generation:020},{0:020}"}


def _success(value: Any) -> dict[str, Any]:
    return {"Status": "Success", "Value": value}


def _failure(failure: Failure) -> dict[str, Any]:
    return {"Status": "Failure", "ErrorDescription": list(failure.args)}


def make_certificate(path: Path) -> ssl.PrivateCertificate:
    """Return a certificate of a host's own for localhost, as XAPI makes one; write its public half to *path*."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "127.0.0.2")]
    names = [x509.DNSName("localhost"), *addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(public)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    loaded: ssl.PrivateCertificate = ssl.PrivateCertificate.loadPEM(public + private)
    return loaded
