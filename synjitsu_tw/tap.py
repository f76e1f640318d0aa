"""The plugin that `twistd synjitsu` runs: its command line and the wiring of its parts."""

from __future__ import annotations

import socket
import stat
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from twisted.application.service import Service
from twisted.internet import reactor as default_reactor
from twisted.internet.endpoints import serverFromString
from twisted.python import usage
from twisted.python.failure import Failure

from jitsu_tw import __version__, logs
from jitsu_tw.clocks import install
from jitsu_tw.errors import JitsuError
from jitsu_tw.sockets import make_way, umask
from jitsu_tw.text import printable
from jitsu_tw.twistd import cannot_write, stop_once
from jitsu_tw.xenstore import Xenstore

try:
    from synjitsu_tw.handover import XenstoreHandover
    from synjitsu_tw.service import Synjitsu
    from synjitsu_tw.table import Refusal
except ImportError as missing:
    sys.exit(f"synjitsu: needs what is not installed: pip install 'jitsu-tw[synjitsu]' ({missing})")

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

#: The endpoint for Jitsu without ``--listen``.
LISTEN: Final = "unix:/run/jitsu/synjitsu.sock"

#: The file of flows without ``--flows``, where ``--listen`` is no UNIX socket.
FLOWS: Final = "/run/jitsu/synjitsu.flows"

#: In characters; the same as Jitsu's for `synjitsu_secret`.
SHORTEST_SECRET: Final = 16


class Options(usage.Options):
    """Synjitsu's options."""

    synopsis = "-i BRIDGE [-i BRIDGE]... [--listen ENDPOINT] [--secret FILE] [--standin IP=MAC]... [options]"
    longdesc = "Stands in for virtual machines that are booting or asleep, and keeps their first packets."
    optFlags = (("xenstore", None, "Serve guests that read their SYNs in Xenstore."),)  # noqa: N815
    optParameters = (  # noqa: N815
        ("listen", None, LISTEN, "Where Jitsu connects: an endpoint of Twisted's."),
        ("secret", None, None, "A file with the secret that Jitsu has to show; for an endpoint on the network."),
        ("flows", None, None, "The file that keeps open connections known during a restart; else beside the socket."),
        ("refuse", None, "silence", "What SYNs get just after a start failed: silence, rst, unreachable."),
    )

    def __init__(self) -> None:
        """Begin with no interface."""
        super().__init__()
        self.interfaces: list[str] = []
        self.listed: dict[bytes, bytes] = {}

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        sys.stdout.write(f"Synjitsu {__version__}\n")
        sys.exit(0)

    def opt_interface(self, name: str) -> None:
        """A bridge to stand in on; may be given several times."""
        if name not in self.interfaces:
            self.interfaces.append(name)

    opt_i = opt_interface

    def opt_standin(self, pair: str) -> None:
        """An address to stand in for without Jitsu, until its guest shows itself, as IP=MAC; may be repeated."""
        ip, _, mac = pair.partition("=")
        try:
            address, octets = ip_address(ip).packed, bytes.fromhex(mac.replace(":", ""))
        except ValueError:
            address, octets = b"", b""
        if len(octets) != 6:
            message = f"--standin {pair}: write it like 10.0.0.1=52:54:00:12:34:56"
            raise usage.UsageError(message)
        self.listed[address] = octets

    def postOptions(self) -> None:  # noqa: N802
        """Check the options. Raises UsageError if one is wrong."""
        kinds = [kind.value for kind in Refusal]
        if self["refuse"] not in kinds:
            message = f"--refuse {self['refuse']}: write one of {', '.join(kinds)}"
            raise usage.UsageError(message)


class SynjitsuService(Service):
    """All services of Synjitsu, started and stopped in order."""

    def __init__(self, options: Options, reactor: Any = default_reactor) -> None:
        """Make all parts; `privilegedStartService` opens interfaces and sockets."""
        self._twistd, self._reactor = getattr(options, "parent", None), reactor
        self._listen: str = options["listen"]
        try:
            self._endpoint = serverFromString(reactor, description(self._listen))
        except (ValueError, TypeError, LookupError, RuntimeError, OSError) as error:
            give_up(f"--listen {self._listen}: {error}")
        secret = "" if options["secret"] is None else read_secret(Path(options["secret"]))
        self._is_safe = bool(secret) and self._listen.startswith("ssl:")
        self.synjitsu = Synjitsu(
            options.interfaces, reactor, options.listed, Refusal(options["refuse"]), secret=secret,
            flows=flow_file(self._listen) if options["flows"] is None else options["flows"],
        )  # fmt: skip
        self._xenstore = Xenstore(reactor) if options["xenstore"] else None
        if self._xenstore is not None:
            self.synjitsu.xenstore = XenstoreHandover(
                self._xenstore, self.synjitsu.managed, self.synjitsu.announce_in_xenstore
            )
        self._port: Any = None

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802
        """Become a service of *parent*, the application, and set up its log."""
        logs.set_up(parent, self._twistd)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:  # noqa: N802
        """Open interfaces and sockets while twistd still has its privileges; exit with one line if that fails."""
        super().privilegedStartService()
        try:
            self.synjitsu.open()
        except JitsuError as error:
            give_up(str(error))
        if self._listen.startswith("unix:"):
            try:
                make_way(unix_socket(self._listen))
            except OSError as error:
                give_up(f"cannot listen on {self._listen}: {error.strerror}")
        self.synjitsu.read_flows()
        outcome: list[Any] = []
        with umask(0o177):
            self._endpoint.listen(self.synjitsu.factory).addBoth(outcome.append)
        (self._port,) = outcome  # every server endpoint listens, or fails, at once
        if isinstance(self._port, Failure):
            reason = getattr(self._port.value, "socketError", self._port.value)
            give_up(f"cannot listen on {self._listen}: {getattr(reason, 'strerror', None) or reason}")
        host = getattr(self._port.getHost(), "host", None)  # a UNIX socket has none
        if host is not None and not ip_address(host).is_loopback and not self._is_safe:
            give_up(
                f"--listen {self._listen}: other hosts can connect there and take over any address of the bridge; use "
                "a UNIX socket, or an endpoint that begins with ssl: together with --secret"
            )

    def startService(self) -> None:  # noqa: N802
        """Start Synjitsu, and the connection to Xenstore if it is used."""
        super().startService()
        self._reactor.callWhenRunning(stop_once)
        self.synjitsu.startService()
        if self._xenstore is not None:
            self._xenstore.start()
            assert self.synjitsu.xenstore is not None
            self.synjitsu.xenstore.start()

    def stopService(self) -> Deferred[None] | None:  # noqa: N802
        """Stop everything; the result fires when the connection to Xenstore is closed."""
        super().stopService()
        self.synjitsu.stopService()
        if self._port is not None:
            self._port.stopListening()
        if self._xenstore is not None:
            return self._xenstore.close()
        return None


def unix_socket(endpoint: str) -> Path:
    """Return the path of a UNIX socket, from the description of its endpoint."""
    return Path(endpoint.removeprefix("unix:").split(":")[0])


def flow_file(endpoint: str) -> str:
    """Return the name of the file of flows for a Synjitsu that listens at *endpoint*: beside a UNIX socket."""
    return str(unix_socket(endpoint).with_suffix(".flows")) if endpoint.startswith("unix:") else FLOWS


def read_secret(path: Path) -> str:
    """Return the secret in a file; exit with one line if it is unreadable, short, or readable for every user."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        give_up(f"--secret {path}: {getattr(error, 'strerror', None) or error}")
    if mode & stat.S_IROTH:
        give_up(f"--secret {path}: everybody may read it; chmod o-r it")
    if len(secret) < SHORTEST_SECRET:
        give_up(f"--secret {path}: write {SHORTEST_SECRET} characters or more; make one with: openssl rand -hex 32")
    return secret


def description(endpoint: str) -> str:
    """
    Return Twisted's description of a server endpoint.

    Args:
        endpoint: such a description, or ``host:port``. A UNIX socket without a mode is for its owner only.
    """
    if endpoint.startswith("unix:") and "mode=" not in endpoint:
        return f"{endpoint}:mode=600:lockfile=0"
    host, _, port = endpoint.rpartition(":")
    if host not in {"", "tcp", "tcp6"} and port.isdigit() and (host.startswith("[") or ":" not in host):
        host = host.strip("[]")
        return "tcp{}:{}:interface={}".format("6" if ":" in host else "", port, host.replace(":", r"\:"))
    return endpoint


def give_up(message: str) -> NoReturn:
    """Exit with one line on the standard error, wherever twistd has put its log."""
    print(f"synjitsu: {printable(message)}", file=sys.__stderr__)
    raise SystemExit(1)


def makeService(options: Options) -> SynjitsuService:  # noqa: N802
    """Return the service that twistd runs; exit with one line if an interface does not exist."""
    known = [name for _, name in socket.if_nameindex()]
    if not options.interfaces:
        give_up(f"name the bridge to stand in on, with -i; here are: {', '.join(known)}")
    for name in options.interfaces:
        if name not in known:
            give_up(f"there is no interface {name!r}; here are: {', '.join(known)}")
    if reason := cannot_write(getattr(options, "parent", None)):
        give_up(reason)
    install(default_reactor)
    return SynjitsuService(options)
