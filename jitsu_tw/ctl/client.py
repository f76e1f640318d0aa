"""The control endpoint of a running Jitsu, over HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import attrs

from jitsu_tw.ctl.show import FailedError, NoAnswerError
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds to wait for an answer: a stop may take as long as a guest's shutdown. A stream is never silent that long.
PATIENCE: Final = 120.0

#: The most octets of an answer (that about 100,000 VMs has 60 million), of a refusal, of an event, and of one read.
LONGEST: Final = 100_000_000
LONGEST_REFUSAL: Final = 65536
LONGEST_EVENT: Final = 1_000_000
PIECE: Final = 65536


#: What helps when there is no answer, by the error.
REMEDIES: Final = {
    ssl.SSLCertVerificationError: "see --ca",
    FileNotFoundError: "is it running? see --control",
    PermissionError: "it is for root, Jitsu's user and the group jitsu: join that (usermod -aG jitsu USER, as root), "
    "and log in again",
}


class UnixConnection(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@attrs.frozen
class Control:
    """
    A Jitsu's control endpoint; each call connects anew.

    Attributes:
        place: ``host:port``, ``https://host:port`` or ``unix:PATH``.
        token: the control_token; None for none.
        authorities: a file with the certificates of the authorities for https; None for those of the system.
        patience: seconds to wait for an answer.
    """

    place: str
    token: str | None = attrs.field(default=None, repr=False)
    authorities: Path | None = None
    patience: float = PATIENCE

    def ask(self, method: str, path: str) -> Any:
        """
        Return what the endpoint answers.

        Raises:
            NoAnswerError: no process answers there, or not whole and in time, or not by HTTP.
            FailedError: Jitsu refuses, and the message is its own; or the answer is none of Jitsu's, or too long.
        """
        with self._asked(method, path, self.patience) as answer:
            return self._json(answer, LONGEST)

    def vm(self, name: str, action: str = "") -> Any:
        """Return a VM, or do something to it: start, stop, hold, release."""
        path = f"/v1/vms/{quote(name, safe='')}"
        return self.ask("POST", f"{path}/{action}") if action else self.ask("GET", path)

    def events(self, last: int, *, follow: bool) -> Iterator[dict[str, Any]]:
        """
        Yield the last events, and then, if *follow*, what happens.

        Raises:
            NoAnswerError, FailedError: as `ask`; also when the stream breaks off.
        """
        path = f"/v1/events?last={last}&follow={int(follow)}"
        with self._asked("GET", path, None if follow else self.patience) as answer:
            while line := answer.readline(LONGEST_EVENT):
                if not line.endswith(b"\n"):
                    raise self.strange("an event that is too long, or not whole")
                if line.startswith(b"data: "):
                    yield self._decoded(line[6:])
        if follow:
            raise NoAnswerError(f"Jitsu at {self.place} has ended")

    def strange(self, reason: object) -> FailedError:
        """Return the error for an answer that is none of Jitsu's."""
        message = f"what answers at {self.place} is no Jitsu that this jitsuctl understands: {reason}"
        return FailedError(printable(message))

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, seconds: float | None) -> Iterator[HTTPResponse]:
        """Send a request; the whole exchange may take *seconds*, or, if they are None, as long as octets come."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        late = Deadline(seconds)
        try:
            with closing(self._connect()) as connection, late.watching(connection):
                connection.request(method, path, headers=headers)
                late.sockets.append(connection.sock)
                answer = connection.getresponse()
                self._look_at_status(answer)
                yield answer
                late.check()
        except (OSError, HTTPException, ValueError, FailedError) as error:
            if isinstance(error, FailedError) and not late.passed:
                raise
            reason = f"no whole answer within {seconds:g} s" if late.passed else error
            remedy = next((words for kind, words in REMEDIES.items() if isinstance(error, kind)), "see --control")
            message = f"no Jitsu answers at {self.place} ({reason}); {remedy}"
            raise NoAnswerError(printable(message)) from error

    def _look_at_status(self, answer: HTTPResponse) -> None:
        if answer.status >= 400:
            body = self._json(answer, LONGEST_REFUSAL)
            error = str(body["error"] if isinstance(body, dict) and "error" in body else body)
            raise FailedError("\n  ".join(map(printable, error.split("\n"))))  # one line for each mistake of a file
        if answer.status != 200:
            raise self.strange(f"status {answer.status}")

    def _connect(self) -> HTTPConnection:
        if self.place.startswith("unix:"):
            return UnixConnection(self.place.removeprefix("unix:"), self.patience)
        if self.place.startswith("https://"):
            context = ssl.create_default_context(cafile=None if self.authorities is None else str(self.authorities))
            return HTTPSConnection(urlsplit(self.place).netloc, timeout=self.patience, context=context)
        return HTTPConnection(self.place, timeout=self.patience)

    def _json(self, answer: HTTPResponse, most: int) -> Any:
        """Return an answer's JSON; refuse one of more than *most* octets before all of it is in memory."""
        octets = bytearray()
        while piece := answer.read(PIECE):
            octets += piece
            if len(octets) > most:
                raise self.strange(f"an answer of more than {most} octets")
        if answer.length:
            raise HTTPException("the answer is not whole")
        return self._decoded(octets)

    def _decoded(self, octets: bytes | bytearray) -> Any:
        try:
            return json.loads(octets)
        except (ValueError, RecursionError) as error:
            raise self.strange(f"no JSON ({error})") from error


class Deadline:
    """
    Ends an exchange that takes too long.

    Attributes:
        sockets: shut down then, besides that of the connection.
        passed: whether the time has passed.
    """

    def __init__(self, seconds: float | None) -> None:
        """End it after *seconds*, or never."""
        self._seconds = seconds
        self.sockets: list[Any] = []
        self.passed = False

    @contextlib.contextmanager
    def watching(self, connection: HTTPConnection) -> Iterator[None]:
        """Watch *connection*, which may not be connected yet."""
        if self._seconds is None:
            yield
            return
        timer = threading.Timer(self._seconds, self._pass, (connection,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def check(self) -> None:
        """Raise TimeoutError if the time has passed: what looks like the end of an answer is none then."""
        if self.passed:
            raise TimeoutError

    def _pass(self, connection: HTTPConnection) -> None:
        self.passed = True
        for one in filter(None, [connection.sock, *self.sockets]):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
