"""The ports of a Jitsu: DNS by UDP and TCP, the control endpoint, and the guests'; opened here, or by systemd."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import unix
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.python.systemd import ListenFDs

from jitsu_tw import sockets
from jitsu_tw.dns.binding import Addresses, to_bind
from jitsu_tw.dns.tcp import TCPFactory, TCPPort
from jitsu_tw.dns.udp import UDPPort
from jitsu_tw.errors import ConfigError
from jitsu_tw.settings import DEFAULT_CONTROL

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure
    from twisted.web.server import Site

    from jitsu_tw.dns.server import Server
    from jitsu_tw.settings import Settings


#: The kinds of sockets for DNS.
_TYPES: Final = frozenset({socket.SOCK_STREAM, socket.SOCK_DGRAM})


class _ControlPort(unix.Port):
    """A UNIX socket that systemd has opened: its file keeps its mode, where Twisted would open it to all users."""

    def __init__(self, path: str, factory: Site, reactor: Any) -> None:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        super().__init__(path, factory, mode=mode, reactor=reactor)  # type: ignore[arg-type]


class Listeners:
    """All ports that a Jitsu listens on."""

    def __init__(self, settings: Settings, server: Server, site: Site, guests: Site, reactor: Any) -> None:
        """Serve *server*, *site* and, to *guests*, theirs, on the addresses that *settings* name; `open` takes them."""
        self._settings, self._server, self._site, self._guests, self._reactor = settings, server, site, guests, reactor
        self._tcp = TCPFactory(server, reactor)
        self._addresses = Addresses(reactor)
        self._ports: list[Any] = []
        self._inherited: list[Any] = []

    def open(self) -> None:
        """
        Listen on the sockets of systemd's, and on the addresses of the configuration where there are none.

        Raises:
            ConfigError: an address cannot be had.
        """
        inherited = [_inherited(number) for number in from_systemd()]
        for one in inherited:
            self._adopt(one)
        if not any(one.family in {socket.AF_INET, socket.AF_INET6} for one in inherited):
            hosts = to_bind(self._settings.bind)
            for host in hosts:
                _or_refuse("bind", f"{host} port {self._settings.listen}", self._listen_dns, host)
            self._addresses.start(hosts)
        if not any(one.family == socket.AF_UNIX for one in inherited):
            for place in filter(None, self._settings.control):
                if place == DEFAULT_CONTROL:
                    place = f"unix:{sockets.control_socket()}"  # noqa: PLW2901
                _or_refuse("control", place, self._listen_control, place)
        for place in self._settings.guests:
            _or_refuse("guests", place, self._listen_guests, place)

    def problems(self) -> list[str]:
        """Return a sentence on each address that cannot be served."""
        return self._addresses.problems()

    def addresses(self) -> list[str]:
        """Return where is listened, such as ``UDP 192.0.2.1 port 53``."""
        return [_where(port.getHost()) for port in self._ports]

    def close(self) -> Deferred[Any]:
        """Listen no more; fires when the ports are closed, and the connections have ended."""
        self._addresses.stop()
        # To close systemd's sockets would shut them down, with the clients that wait in them for the next Jitsu.
        for port in self._inherited:
            port.stopReading()
        # The file of a socket may be gone, or stay where twistd has given root up: the next Jitsu replaces it.
        ports = [maybeDeferred(port.stopListening) for port in self._ports]
        return DeferredList([*ports, self._tcp.end()], consumeErrors=True)

    def _adopt(self, bound: socket.socket) -> None:
        """Serve on a socket of systemd's (sd_listen_fds(3)): a UNIX one is for control, the others are for DNS."""
        bound.setblocking(False)  # noqa: FBT003
        if bound.family == socket.AF_UNIX:
            _or_refuse("control", bound.getsockname(), self._adopt_control, bound)
        elif bound.type == socket.SOCK_STREAM:
            self._inherited.append(self._reactor.adoptStreamPort(bound.fileno(), bound.family, self._tcp))
        else:
            host, number = bound.getsockname()[:2]
            port = UDPPort(number, self._server, host, self._reactor, bound)
            port.startListening()
            self._ports.append(port)

    def _adopt_control(self, bound: socket.socket) -> None:
        port = _ControlPort._fromListeningDescriptor(self._reactor, bound.fileno(), self._site)  # noqa: SLF001
        port.startListening()
        self._inherited.append(port)

    def _listen_dns(self, host: str) -> None:
        number, reactor = self._settings.listen, self._reactor
        for port in (UDPPort(number, self._server, host, reactor), TCPPort(number, self._tcp, host, reactor)):
            port.startListening()
            self._ports.append(port)

    def _listen_control(self, place: str) -> None:
        if place.startswith("ssl:"):
            self._listen_tls(place)
        elif place.startswith("unix:"):
            path = Path(place.removeprefix("unix:")).absolute()
            self._ports.append(sockets.listen(path, self._site, self._reactor))
        else:
            host, _, port = place.rpartition(":")
            self._ports.append(self._reactor.listenTCP(int(port), self._site, interface=host.strip("[]")))

    def _listen_guests(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        self._ports.append(self._reactor.listenTCP(int(port), self._guests, interface=host.strip("[]")))

    def _listen_tls(self, place: str) -> None:
        """Listen at an endpoint of Twisted's (twisted.internet.endpoints.serverFromString)."""
        try:
            from OpenSSL import SSL, crypto  # noqa: PLC0415 -- who needs no TLS needs no OpenSSL
        except ImportError as error:
            message = f"TLS needs pyOpenSSL and service-identity: pip install 'jitsu-tw[tls]' ({error})"
            raise ConfigError(message, key="control") from error
        try:
            endpoint = serverFromString(self._reactor, place)
        except (OSError, LookupError, RuntimeError, TypeError, ValueError, SSL.Error, crypto.Error) as error:
            raise ConfigError(f"{place} is no endpoint that can be had: {error}", key="control") from error
        failures: list[Failure] = []
        endpoint.listen(self._site).addCallbacks(self._ports.append, failures.append)
        for failure in failures:
            failure.raiseException()


def _or_refuse(key: str, what: str, listen: Callable[[Any], None], address: Any) -> None:
    """
    Call *listen* with *address*.

    Raises:
        ConfigError: it cannot be had; the message names *what* of the *key*, the reason and the remedy.
    """
    try:
        listen(address)
    except (CannotListenError, OSError) as error:
        cause = getattr(error, "socketError", error)
        reason = getattr(cause, "strerror", None) or str(cause)
        or_end = ", or end the process that has it" if reason == os.strerror(errno.EADDRINUSE) else ""
        remedy = "" if "; " in reason else f"; choose another{or_end}"
        raise ConfigError(f"cannot listen on {what}: {reason}{remedy}", key=key) from error


def from_systemd() -> list[int]:
    """
    Return the numbers of the sockets that systemd has opened for this process.

    They are looked for in the environment that the process began with: twisted's endpoints take them out of the current
    one when they are imported.
    """
    lines = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return ListenFDs.fromEnvironment(dict(line.partition("=")[::2] for line in lines)).inheritedDescriptors()


def _inherited(number: int) -> socket.socket:
    """
    Return the socket of systemd's with this *number*.

    Raises:
        ConfigError: it is none that Jitsu can serve on.
    """
    try:
        found = socket.socket(fileno=number)
        if found.family == socket.AF_UNIX:  # an abstract one has no file whose mode says who may connect
            usable = found.type == socket.SOCK_STREAM and found.getsockname()[:1] == "/"
        else:
            usable = found.family in {socket.AF_INET, socket.AF_INET6} and found.type in _TYPES
    except OSError:
        usable = False
    if not usable:
        message = f"descriptor {number} of systemd's is no UDP or TCP socket, and no UNIX socket (stream) with a path"
        raise ConfigError(f"{message}; correct the units of kind .socket")
    return found


def _where(address: Any) -> str:
    """Return an address of Twisted's in words."""
    if isinstance(address, UNIXAddress):
        name = address.name
        return f"UNIX {name.decode(errors='replace') if isinstance(name, bytes) else name}"
    return f"{address.type} {address.host} port {address.port}"
