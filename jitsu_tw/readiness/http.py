"""Ready when the guest answers an HTTP request from here."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from jitsu_tw.dns.wire import to_text
from jitsu_tw.keys import Key, Limits
from jitsu_tw.parsers import Parser
from jitsu_tw.readiness.port import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.settings import VM

#: How many answers are awaited at once, at most, and the seconds for which each is.
MOST_FETCHES: Final = 4
FETCHED_IN: Final = 2.0

#: A status line (RFC 9112, 4), and the octets within which it ends.
STATUS: Final = re.compile(rb"HTTP/\d\.\d (\d{3})\b")
LONGEST_STATUS: Final = 8192

#: The characters of a path.
LONGEST_PATH: Final = 1024


@attrs.frozen
class Http:
    """
    What a ready guest answers over HTTP.

    Attributes:
        path: that is fetched.
        status: that it answers with; None for any 2xx or 3xx.
    """

    path: str
    status: int | None = None

    @classmethod
    def parse(cls, text: str) -> Http:
        """
        Return the path, and the status if one follows: ``/healthz 204``.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        path, _, status = text.partition(" ")
        if not re.fullmatch(f"/[!-~]{{0,{LONGEST_PATH - 1}}}", path) or not re.fullmatch("([1-5][0-9]{2})?", status):
            example = "/healthz or, with the status to wait for, '/healthz 204'"
            raise ValueError(f"{text!r} is no path; write one like {example}")
        return cls(path, int(status) if status else None)


class Fetch(Protocol):
    """
    Asks for a VM's path over HTTP (RFC 9112) and reads no more than the status.

    Attributes:
        done: fires with this protocol when the status is the one that is waited for; fails with any other.
    """

    transport: Any

    def __init__(self, vm: VM) -> None:
        """Ask for the path of *vm*."""
        self._vm, self._http = vm, cast("Http", vm.readiness["wait_for_http"])
        self._received = b""
        self.done: Deferred[Fetch] = Deferred(lambda _: self._end())

    def connectionMade(self) -> None:  # noqa: N802
        """Ask."""
        host = to_text(self._vm.dns[0]).rstrip(".")
        request = f"GET {self._http.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        self.transport.write(request.encode())

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Read the status line."""
        self._received += data
        if self.done.called or (b"\n" not in self._received and len(self._received) < LONGEST_STATUS):
            return
        found = STATUS.match(self._received)
        status = int(found[1]) if found else 0
        if status == self._http.status or (self._http.status is None and 200 <= status < 400):
            self.done.callback(self)
        else:
            self._end()

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802
        """Fail: there will be no status."""
        if not self.done.called:
            self.done.errback(reason)

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


class HttpAnswer(Port):
    """`wait_for_http` is answered as it should be, on the port `wait_for_port`."""

    key = Key(
        Parser("path of a URL, or that and a status", "/healthz 204", Http.parse),
        "ready when a GET of this path is answered by 2xx, 3xx or the given status",
        own=Limits(),
    )
    uses: ClassVar[Mapping[str, Any]] = {"wait_for_port": 80}
    no_stand_in = "no HTTP gets through to a guest that is stood in for; use wait_for_port with use_synjitsu"

    def _knock(self, vm: VM, tries: set[Deferred[Any]], opened: Callable[[], None]) -> None:
        """Ask once more at each address, but only if few answers are awaited."""
        if len(tries) < MOST_FETCHES:
            super()._knock(vm, tries, opened)

    def _connect(self, vm: VM, endpoint: Any) -> Deferred[Any]:
        """Fire with a connection by which the right answer has come; else fail."""
        factory: Any = Factory.forProtocol(partial(Fetch, vm))
        factory.noisy = False
        connected: Deferred[Any] = endpoint.connect(factory)
        return connected.addCallback(lambda fetch: fetch.done.addTimeout(FETCHED_IN, self._reactor))
