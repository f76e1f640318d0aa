"""
A login at a XAPI pool, for blocking calls from many threads: sessions, masters and connections.

The SDK (PyPI's XenAPI) makes the messages of a connection. Added here are many connections for one login (a session of
XAPI's serves several calls at a time, and a pool has few sessions), verified TLS, a deadline for each call, a new
session where XAPI has forgotten the old one, and the search for the master. A connection that breaks ends the login.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import stat
import threading
import xmlrpc.client
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit
from xml.parsers.expat import ExpatError

import attrs
import XenAPI

from jitsu_tw.errors import BackendError, BackendLost, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds to reach a host and to agree on TLS, each.
CONNECT_WITHIN: Final = 5.0

#: Seconds that the pool may be silent before an answer. No call waits for a VM: tasks do.
ANSWER_WITHIN: Final = 20.0

#: How often a call is tried with sessions that have ended, or at hosts that are not the master.
TRIES: Final = 4

#: The SDK's code of an XML-RPC fault where a session is invalid and it may not log in by itself.
MUST_LOG_IN: Final = 401

#: Errors that are not the call's: it may be made again, in another session.
PASSED: Final = frozenset({"SESSION_INVALID", "HOST_IS_SLAVE"})

SYNTAX: Final = "https://HOST/?user=root&password_file=FILE&ca=FILE"


class XapiError(BackendError):
    """
    XAPI's own error.

    Attributes:
        code: as in the API's reference, ``VM_BAD_POWER_STATE``.
        parameters: as that code has them.
    """

    def __init__(self, details: Iterable[str]) -> None:
        """Take an ErrorDescription; write it as the API's reference does: ``CODE(parameter, parameter)``."""
        self.code, *self.parameters = (str(detail) for detail in details)
        super().__init__(f"{self.code}({', '.join(self.parameters)})" if self.parameters else self.code)


@attrs.frozen
class Target:
    """
    A pool, as a URI names it.

    Attributes:
        host: any of its hosts, ``HOST`` or ``HOST:PORT``.
        user: who logs in.
        password_file: has the password and nothing else but an end of line. It is read anew for each login.
        ca: certificates in PEM, those of authorities or of the hosts themselves; None for those that the system trusts.
    """

    host: str
    user: str
    password_file: Path
    ca: Path | None = None

    @classmethod
    def from_uri(cls, uri: str) -> Target:
        """
        Parse a URI. Its parts are not repeated in errors: one may be a password, by mistake.

        Raises:
            ConfigError: it is not of the form `SYNTAX`.
        """
        try:
            parts = urlsplit(uri)
            host, _ = parts.hostname, parts.port
            pairs = parse_qsl(parts.query, strict_parsing=True) if parts.query else []
        except ValueError as error:
            raise _wrong(f"is no URI; {SYNTAX} is its form") from error
        said = dict(pairs)
        if parts.scheme != "https" or not host:
            raise _wrong(f"must name a host of the pool and be reached by TLS: {SYNTAX}")
        if "@" in parts.netloc or "password" in said:
            raise _wrong(f"must not have a password in it, which others would see; put it into a file: {SYNTAX}")
        if parts.path not in {"", "/"} or parts.fragment or len(said) < len(pairs):
            raise _wrong(f"says more than XAPI can use; {SYNTAX} is all")
        if unknown := sorted(said.keys() - {"user", "password_file", "ca"}):
            raise _wrong(f"has {', '.join(unknown)}; known are user, password_file and ca")
        if "password_file" not in said:
            raise _wrong(f"must name a file with the password: {SYNTAX}")
        ca = Path(said["ca"]) if "ca" in said else None
        return cls(parts.netloc, said.get("user", "root"), Path(said["password_file"]), ca)

    def password(self) -> str:
        """
        Read the password.

        Raises:
            ConfigError: there is none; the message names the remedy.
        """
        remedy = f"make it with: install -m 600 /dev/stdin {self.password_file}"
        try:
            password = self.password_file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise _wrong(f"password_file {self.password_file} cannot be read: {reason}; {remedy}") from error
        if not password:
            raise _wrong(f"password_file {self.password_file} is empty; {remedy}")
        return password

    def exposed(self) -> bool:
        """Return whether others may read or write the password."""
        return bool(self.password_file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))

    def trust(self) -> ssl.SSLContext:
        """
        Return the TLS context with the authorities to trust.

        Raises:
            ConfigError: the certificates cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:  # ssl.SSLError is one
            raise _wrong(f"ca {self.ca} has no certificates in PEM that can be read: {error}") from error
        if self.ca is not None:
            # The file may have a certificate that a host has made for itself, which is no authority's.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


def _wrong(message: str) -> ConfigError:
    return ConfigError(message, key="connect")


class _Connection(http.client.HTTPSConnection):
    """A connection with one deadline until it is made, and another for answers. Another thread can cut it."""

    cut = False

    def connect(self) -> None:
        super().connect()
        if self.cut:
            raise ConnectionError("the connection was given up")
        self.sock.settimeout(ANSWER_WITHIN)

    def hang_up(self) -> None:
        """End the call that is under way."""
        self.cut = True
        if self.sock is not None:
            # The kernel wakes the thread that reads; SSLSocket's own method would take the state away from it.
            with suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class _Line(xmlrpc.client.SafeTransport):
    """One connection, which carries one call at a time."""

    context: ssl.SSLContext

    def make_connection(self, host: Any) -> _Connection:
        known, connection = self._connection
        if connection is None or host != known:
            self.close()
            connection = _Connection(host, timeout=CONNECT_WITHIN, context=self.context)
            self._connection = host, connection
        assert isinstance(connection, _Connection)
        return connection

    def closed(self) -> bool:
        """Return whether the pool has closed it while it was idle: then there is something to read, its end."""
        connection = self._connection[1]
        if connection is None or connection.sock is None:
            return True
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        return bool(poll.poll(0))

    def hang_up(self) -> None:
        """End the call that is under way."""
        connection = self._connection[1]
        if isinstance(connection, _Connection):
            connection.hang_up()


class _Lines(xmlrpc.client.Transport):
    """
    As many connections as there are calls at one time; the SDK takes it for one.

    A call whose connection breaks is not made again, as XML-RPC's own transport does: it may have been carried out.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context
        self._lock = threading.Lock()
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._ended = False

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Make one call."""
        line = self._take()
        good = False
        try:
            reply = line.single_request(host, handler, request_body, verbose)
            good = True
        finally:
            self._put_back(line, good=good)
        return reply

    def _take(self) -> _Line:
        with self._lock:
            if self._ended:
                raise ConnectionError("the connection was given up")
            while self._idle:
                line = self._idle.pop()
                if not line.closed():
                    break
                line.close()
            else:
                line = _Line(context=self._context)
            self._busy.add(line)
            return line

    def _put_back(self, line: _Line, *, good: bool) -> None:
        with self._lock:
            self._busy.discard(line)
            if good and not self._ended:
                self._idle.append(line)
                return
        line.close()

    def end(self) -> None:
        """Cut all connections, also those in use, and make no more."""
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for line in idle:
            line.close()
        for line in busy:
            line.hang_up()


class Login:
    """
    A session at a pool's master, which is found from any host of the pool.

    Attributes:
        number: how often it has logged in; refs and tokens of an earlier session may mean nothing any more.
        broken: why it can be used no more; empty while it can.
        snapshot: how all VMs were at its beginning: the answer of the first `event.from`.
    """

    snapshot: dict[str, Any]

    def __init__(self, target: Target) -> None:
        """Take the pool; nothing is connected yet."""
        self._target = target
        self._host = target.host
        self._lines = _Lines(target.trust())
        self._lock = threading.Lock()
        self._session: Any = None
        self.number = 0
        self.broken = ""

    def call(self, method: str, *arguments: Any) -> Any:
        """
        Call *method*, ``VM.start``, in a session.

        Raises:
            XapiError: XAPI refuses.
            BackendLost: there is no answer, and there will be none from this login.
            ConfigError: the password cannot be read.
        """
        for _ in range(TRIES):
            try:
                return self.once(method, *arguments)
            except XapiError as refused:
                if refused.code not in PASSED:
                    raise
        raise BackendError(f"{method}: XAPI ends each session at once")

    def once(self, method: str, *arguments: Any) -> Any:
        """Call as `call` does, but raise where the session or the master has changed (`PASSED`)."""
        session = self._logged_in()
        try:
            return self._ask(method, session.xenapi_request, method, arguments)
        except XapiError as refused:
            if refused.code in PASSED:
                self._leave(session, refused)
            raise

    def open(self) -> None:
        """Log in. Raises as `call` does."""
        self._logged_in()

    def _logged_in(self) -> Any:
        """Return the SDK's session, which all threads share."""
        with self._lock:
            for _ in range(TRIES):
                if self._session is not None or self.broken:
                    break
                self._log_in()
            if self._session is None:
                raise BackendLost(self.broken or "each host of the pool takes another for its master")
            return self._session

    def _log_in(self) -> None:
        """Log in at the host that is taken for the master, or learn which host is."""
        session = XenAPI.Session(f"https://{self._host}/", transport=self._lines)
        words = self._target.user, self._target.password(), XenAPI.API_VERSION_1_2, "jitsu"
        try:
            self._ask("login", session.login_with_password, *words)
        except XapiError as refused:
            if refused.code != "HOST_IS_SLAVE":
                self.abort(str(refused))
                raise
            self._move(refused)
            return
        # So the SDK keeps no password, and does not log in again by itself, in each thread.
        session.last_login_method = session.last_login_params = None
        self._session = session
        self.number += 1

    def _leave(self, session: Any, refused: XapiError) -> None:
        """Use *session* no more, unless another thread has replaced it already."""
        with self._lock:
            if session is self._session:
                self._session = None
                if refused.code == "HOST_IS_SLAVE":
                    self._move(refused)

    def _move(self, refused: XapiError) -> None:
        """Take the host that XAPI names for the master, by its address; it has the same port."""
        _, _, port = self._target.host.rpartition("]")[2].partition(":")
        address = refused.parameters[0] if refused.parameters else self._target.host
        bare = f"[{address}]" if ":" in address and not address.startswith("[") else address
        self._host = f"{bare}:{port}" if port else bare

    def _ask(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the SDK; turn its errors into Jitsu's, with XAPI's messages."""
        if self.broken:
            raise BackendLost(self.broken)
        try:
            return function(*arguments)
        except XenAPI.Failure as failure:
            raise XapiError(failure.details) from failure
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == MUST_LOG_IN:
                raise XapiError(["SESSION_INVALID"]) from fault
            raise BackendError(f"{what}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError) as error:
            self.abort(f"{what}: {_message(error)}")
            raise BackendLost(self.broken) from error

    def abort(self, reason: str) -> None:
        """End all calls that are under way, and let none begin."""
        self.broken = self.broken or reason
        self._lines.end()

    def close(self) -> None:
        """Log out, so that the pool need not remember the session, and disconnect."""
        session, broken = self._session, self.broken
        # First: or the thread that reads events, whose session ends, would log in again.
        self.broken = broken or "closed"
        if session is not None and not broken:
            with suppress(OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError):
                session.session.logout(session.handle)
        self._lines.end()


def _message(error: Exception) -> str:
    """Return the message of a connection's error, without the headers that XML-RPC's own has in it."""
    if isinstance(error, xmlrpc.client.ProtocolError):
        return f"HTTP {error.errcode} {error.errmsg}"
    return str(error) or type(error).__name__
