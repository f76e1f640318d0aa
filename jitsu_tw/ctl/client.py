"""What jitsuctl asks a running Jitsu by: its control endpoint, over HTTP."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds to wait for an answer: a stop may take as long as a guest's shutdown. A stream is never silent for as long.
PATIENCE: Final = 120.0


class _UnixConnection(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class NoAnswerError(ConnectionError):
    """There is no Jitsu at the place that was named."""


class RefusedError(Exception):
    """Jitsu said no; the message is its own."""


@attrs.frozen
class Control:
    """
    A Jitsu's control endpoint; each call connects anew.

    Attributes:
        place: ``host:port``, ``https://host:port`` or ``unix:PATH``.
        token: what is shown there; None for nothing.
        authorities: a file with the certificates of those who may vouch for it; None for those of the system.
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
            NoAnswerError: nobody answers there, or not in our language.
            RefusedError: it will not.
        """
        try:
            with closing(self._connect()) as connection:
                answer = self._request(connection, method, path)
                return json.loads(answer.read())
        except (OSError, HTTPException, ValueError) as error:
            raise self._nobody(error) from error

    def vm(self, name: str, action: str = "") -> Any:
        """Return a VM, or do something to it: start, stop, hold, release."""
        path = f"/v1/vms/{quote(name, safe='')}"
        return self.ask("POST", f"{path}/{action}") if action else self.ask("GET", path)

    def events(self, last: int, *, follow: bool) -> Iterator[dict[str, Any]]:
        """
        Yield the last events, and then, if *follow*, what happens.

        Raises:
            NoAnswerError, RefusedError: as `ask`; also when the stream breaks off.
        """
        try:
            with closing(self._connect()) as connection:
                answer = self._request(connection, "GET", f"/v1/events?last={last}&follow={int(follow)}")
                for line in answer:
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
        except (OSError, HTTPException, ValueError) as error:
            raise self._nobody(error) from error
        if follow:
            raise NoAnswerError(f"Jitsu at {self.place} has ended")

    def _connect(self) -> HTTPConnection:
        if self.place.startswith("unix:"):
            return _UnixConnection(self.place.removeprefix("unix:"), self.patience)
        if self.place.startswith("https://"):
            context = ssl.create_default_context(cafile=None if self.authorities is None else str(self.authorities))
            return HTTPSConnection(urlsplit(self.place).netloc, timeout=self.patience, context=context)
        return HTTPConnection(self.place, timeout=self.patience)

    def _request(self, connection: HTTPConnection, method: str, path: str) -> HTTPResponse:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        if answer.status >= 400:
            raise RefusedError(json.loads(answer.read())["error"])
        return answer

    def _nobody(self, error: Exception) -> NoAnswerError:
        return NoAnswerError(f"no Jitsu answers at {self.place} ({error}); see --control")
