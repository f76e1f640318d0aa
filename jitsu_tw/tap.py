"""What `twistd jitsu` runs: the command line, and all wiring, nothing else."""

from __future__ import annotations

import errno
import gc
import os
import platform
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from twisted.application.service import Service
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred, DeferredList, DeferredLock, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.task import coiterate
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.systemd import ListenFDs

from jitsu_tw import __version__, logs, sockets
from jitsu_tw.backends import backends_for
from jitsu_tw.clocks import Clocks, install
from jitsu_tw.cluster.coordinator import coordinator_for
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.config import build
from jitsu_tw.config.schema import FLAGS, OPTIONS
from jitsu_tw.control.api import Endpoint
from jitsu_tw.dns.authority import ZoneAuthority
from jitsu_tw.dns.binding import Addresses, to_bind
from jitsu_tw.dns.connections import MOST_CONNECTIONS
from jitsu_tw.dns.cookies import Cookies
from jitsu_tw.dns.forward import Forwarder
from jitsu_tw.dns.notify import Notifier
from jitsu_tw.dns.resolver import JitsuResolver
from jitsu_tw.dns.rrl import Limiter
from jitsu_tw.dns.server import Chain, Server
from jitsu_tw.dns.tcp import TCPFactory, TCPPort
from jitsu_tw.dns.transfer import Permissions
from jitsu_tw.dns.tsig import Keyring
from jitsu_tw.dns.udp import UDPPort
from jitsu_tw.dns.warm import WarmAnswers
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import ConfigError, JitsuError
from jitsu_tw.settings import HOSTS
from jitsu_tw.store import store_at
from jitsu_tw.sync.reconfigure import LiveConfig
from jitsu_tw.sync.trigger import SyncTrigger
from jitsu_tw.text import printable
from jitsu_tw.twistd import cannot_write, open_files, stop_once
from jitsu_tw.vm.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from twisted.python.failure import Failure

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import Settings
    from jitsu_tw.store.git import GitStore
    from jitsu_tw.sync.change_requests import ChangeRequests
    from jitsu_tw.sync.config_sync import ConfigSync


#: Open files that Jitsu needs beside those of DNS: connections to the control endpoint, to hypervisors, to Synjitsu and
#: etcd, those by which guests are waited for, pipes of programs, the state and the log.
FILES: Final = 1000


class Options(usage.Options):
    """The original's options, and ours; positional arguments are VMs, as there."""

    synopsis = "[options] [dns=NAME,ip=ADDRESS,name=VM[,key=value...]]..."
    longdesc = "An authoritative DNS server that boots virtual machines on demand. Options beat the configuration file."
    optFlags = tuple(  # noqa: N815
        (name.replace("_", "-"), None, f"{key.doc[0].upper()}{key.doc[1:]}.") for name, key in FLAGS.items()
    )
    optParameters = (  # noqa: N815
        ("config", None, None, "The configuration, a YAML file; else jitsu.yaml beside the first zone."),
        *(
            (name.replace("_", "-"), key.option or None, None, f"{key.doc[0].upper()}{key.doc[1:]}. [{key.shown}]")
            for name, key in OPTIONS.items()
        ),
    )

    def __init__(self) -> None:
        """Begin with nothing said."""
        super().__init__()
        self["zones"] = []
        self.vms: tuple[str, ...] = ()

    def opt_zone(self, path: str) -> None:
        """A zone to serve, an RFC 1035 master file; may be given several times."""
        self["zones"].append(path)

    opt_z = opt_zone

    def opt_version(self) -> NoReturn:
        """Say the version and exit."""
        sys.stdout.write(f"Jitsu {__version__}\n")
        sys.exit(0)

    def parseArgs(self, *vms: str) -> None:  # noqa: N802
        """Take the VMs."""
        self.vms = vms

    def load(self) -> tuple[Settings, Zones]:
        """Return what all this and the files say; see `config.build.load`."""
        said = {key.replace("-", "_"): value for key, value in self.items() if value and key != "config"}
        said |= {flag: "true" for flag in FLAGS if said.get(flag)}
        return build.load(said, self.vms, Path(self["config"]) if self["config"] else None)


class JitsuService(Service):
    """Everything that runs, begun and ended in order."""

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        zones: Zones,
        reactor: Any = default_reactor,
        twistd: Mapping[str, Any] | None = None,
    ) -> None:
        """Wire the rooms; nothing is opened yet. *twistd* is what its own options say."""
        self._twistd = twistd
        self._settings, self._zones, self._reactor = settings, zones, reactor
        self._backends = backends_for(settings.vms, settings.hosts)
        self._trigger = SyncTrigger(reactor)
        self._store = store_at(settings.persistdb, settings.keep_history, self._trigger.changed)
        clocks = Clocks(reactor)
        make_cluster = partial(
            Membership,
            settings,
            cast("Pool | None", self._backends.get((HOSTS, ""))),
            coordinator_for(settings.cluster, reactor),
            clocks,
        )
        warm = WarmAnswers(clocks.now, settings.summon_from)
        self.fleet = Fleet(settings, self._backends, self._store, clocks, make_cluster, warm)
        self._running = LiveConfig(self.fleet, zones, self._changed)
        self._reloading = DeferredLock()
        self._requests: ChangeRequests | None = None
        self._sync: ConfigSync | None = None
        if settings.persistdb is not None:
            from jitsu_tw.sync.change_requests import ChangeRequests  # noqa: PLC0415

            store = cast("GitStore", self._store)
            self._requests = ChangeRequests(settings, store, self.fleet, zones, self._running, reactor)
            if settings.remote is not None:
                self._sync = self._share(settings.remote, store, self._requests)
        resolvers: list[Any] = [JitsuResolver(zones, self.fleet), ZoneAuthority(zones)]
        if settings.forwarder is not None:
            resolvers.append(Forwarder(settings.forwarder, settings.forward_for))
        keys = Keyring(settings.tsig_keys)
        self._notifier = Notifier(settings.notify, keys, settings.bind, reactor)
        limiter = Limiter(
            os.urandom(16), settings.rate_limit, slip=settings.rate_slip, exempt=settings.rate_exempt
        )
        self._server = Server(
            Chain(resolvers),
            warm,
            self.fleet,
            zones,
            limiter=limiter if settings.rate_limit else None,
            cookies=Cookies(os.urandom(16)),
            nsid=settings.nsid,
            keys=keys,
            allowed=Permissions(settings.allow_transfer),
        )
        self._tcp = TCPFactory(self._server, reactor)
        self._ports: list[Any] = []
        self._addresses = Addresses(reactor)
        self._site = Endpoint(self.fleet, self.reload, settings.control_token, reactor, problems=self._problems)

    def _share(self, url: str, store: GitStore, requests: ChangeRequests) -> ConfigSync:
        from jitsu_tw.store.remote import Remote  # noqa: PLC0415
        from jitsu_tw.sync.config_sync import ConfigSync  # noqa: PLC0415

        node = self._settings.cluster.node if self._settings.cluster is not None else platform.node()
        remote = Remote(url, store.path, self._reactor)
        self.fleet.peers.follow(self._trigger)
        return ConfigSync(store, requests, self._running, self.fleet, remote, node, self._trigger)

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802
        """Become *parent*'s service; the log is the application's."""
        logs.set_up(parent, self._twistd, as_json=self._settings.log_json)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:  # noqa: N802
        """Take the ports, while twistd has not given up its privileges; or end with a line that says what cannot be."""
        super().privilegedStartService()
        if problem := open_files(FILES + MOST_CONNECTIONS):
            self.log.warn("{problem}", problem=problem)
        try:
            self._listen()
        except JitsuError as error:
            give_up(error)

    def _listen(self) -> None:
        inherited = [socket.socket(fileno=number) for number in from_systemd()]
        for one in inherited:
            self._adopt(one)
        if not any(one.family in {socket.AF_INET, socket.AF_INET6} for one in inherited):
            hosts = to_bind(self._settings.bind)
            for host in hosts:
                self._take("bind", f"{host} port {self._settings.listen}", self._listen_dns, host)
            self._addresses.start(hosts)
        if not any(one.family == socket.AF_UNIX for one in inherited):
            for place in filter(None, self._settings.control):
                self._take("control", place, self._listen_control, place)

    def _adopt(self, bound: socket.socket) -> None:
        """Serve on a socket of systemd's (sd_listen_fds(3)): a UNIX one is for control, the others are for DNS."""
        bound.setblocking(False)  # noqa: FBT003
        if bound.family == socket.AF_UNIX:
            port = self._reactor.adoptStreamPort(bound.fileno(), bound.family, self._site)
        elif bound.type == socket.SOCK_STREAM:
            port = self._reactor.adoptStreamPort(bound.fileno(), bound.family, self._tcp)
        else:
            host, number = bound.getsockname()[:2]
            port = UDPPort(number, self._server, host, self._reactor, bound)
            port.startListening()
        self._ports.append(port)

    def _take(self, key: str, what: str, listen: Any, argument: str) -> None:
        try:
            listen(argument)
        except (CannotListenError, OSError) as error:
            cause = getattr(error, "socketError", error)
            reason = getattr(cause, "strerror", None) or str(cause)
            or_end = ", or end the process that has it" if reason == os.strerror(errno.EADDRINUSE) else ""
            remedy = "" if "; " in reason else f"; choose another{or_end}"
            raise ConfigError(f"cannot listen on {what}: {reason}{remedy}", key=key) from error

    def _listen_dns(self, host: str) -> None:
        port = self._settings.listen
        udp = UDPPort(port, self._server, host, self._reactor)
        udp.startListening()
        self._ports.append(udp)
        tcp = TCPPort(port, self._tcp, host, self._reactor)
        tcp.startListening()
        self._ports.append(tcp)

    def _listen_control(self, place: str) -> None:
        if place.startswith("ssl:"):
            self._listen_tls(place)
        elif place.startswith("unix:"):
            path = Path(place.removeprefix("unix:")).absolute()
            self._ports.append(sockets.listen(path, self._site, self._reactor))
        else:
            host, _, port = place.rpartition(":")
            self._ports.append(self._reactor.listenTCP(int(port), self._site, interface=host.strip("[]")))

    def _problems(self) -> list[str]:
        problems = self._addresses.problems()
        if self._requests is not None:
            problems += self._requests.problems()
        if self._sync is not None and self._sync.trouble:
            problems.append(f"the configuration is not shared: {self._sync.trouble}")
        return problems

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

    def startService(self) -> None:  # noqa: N802
        """Open the state and the hypervisors and begin to serve; or end with a line that says what cannot be had."""
        super().startService()
        try:
            remembered = self._store.open()
            if self._requests is not None:
                self._requests.restore(remembered)
        except JitsuError as error:
            give_up(error)
        for zone in self._zones:
            for warning in zone.warnings:
                self.log.warn("{warning}", warning=warning)
        if not self._settings.zones:
            names = ", ".join(to_text(zone.key) for zone in self._zones)
            self.log.info("no zone file was given; made up from the VMs' names: {names}", names=names)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hang_up))
        begun = self.fleet.start(remembered)
        if self._requests is not None:
            self._requests.start()
        if self._sync is not None:
            self._sync.start()
        self._notifier.tell(self._zones)
        gc.freeze()
        gc.enable()
        begun.addCallback(self._begun)

    def _begun(self, _: object) -> None:
        if self.running:
            self.log.info(
                "serving {names} names of {vms} VMs on {bind}, port {port}",
                names=sum(len(vm.dns) for vm in self._running.vms),
                vms=len(self._running.vms),
                bind=", ".join(self._settings.bind),
                port=self._settings.listen,
            )

    async def reload(self) -> None:
        """
        Read the zones anew, while the old ones are served; from then on the new ones are.

        Raises:
            ConfigError: one of them is bad; the old ones are served as before.
        """
        await self._reloading.acquire()
        try:
            await coiterate(self._reload())
        except ConfigError as error:
            for line in str(error).splitlines():
                self.log.error("the zones are not reloaded: {error}", error=line)
            raise
        finally:
            self._reloading.release()
        self.log.info("reloaded the zones")

    def _reload(self) -> Iterator[None]:
        self._zones.replace((yield from build.reading_zones(self._settings, lambda: self._running.vms)))
        self._server.warm.clear()
        self._notifier.tell(self._zones)

    def _changed(self, names: Iterable[str]) -> None:
        """Hear that the answers of the VMs *names* are not right any more."""
        for name in names:
            self._server.warm.drop(name)
        self._notifier.tell(self._zones)

    def _hang_up(self) -> None:
        """Reload because of SIGHUP: what is wrong has been logged."""
        Deferred.fromCoroutine(self.reload()).addErrback(lambda failure: failure.trap(ConfigError))

    def stopService(self) -> Deferred[None]:  # noqa: N802
        """Take no more queries, answer those that wait, write down what is remembered, leave the VMs as they are."""
        super().stopService()
        stop_once()
        self._server.end()
        self._notifier.stop()
        self._addresses.stop()
        # The file of a socket may be gone, or stay where twistd has given root up: the next Jitsu replaces it.
        ports = DeferredList([maybeDeferred(port.stopListening) for port in self._ports], consumeErrors=True)
        return Deferred.fromCoroutine(self._stop(ports, self._tcp.end()))

    async def _stop(self, *closed: Deferred[Any]) -> None:
        if self._sync is not None:
            await self._sync.stop()
        if self._requests is not None:
            await self._requests.stop()
        await self.fleet.stop()
        for one in closed:
            await one


def from_systemd() -> list[int]:
    """
    Return the numbers of the sockets that systemd has handed us.

    They are looked for in the environment that the process began with: twisted's endpoints take the news out of the
    current one when they are imported, for themselves.
    """
    lines = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return ListenFDs.fromEnvironment(dict(line.partition("=")[::2] for line in lines)).inheritedDescriptors()


def give_up(error: object) -> NoReturn:
    """End with one line. twistd has its log on standard error by now; people look at the terminal."""
    print("jitsu: " + "\n".join(map(printable, str(error).splitlines())), file=sys.__stderr__)
    raise SystemExit(1)


def makeService(options: Options) -> JitsuService:  # noqa: N802
    """Return the service that twistd runs."""
    # What is made from here to the start lives as long as the process: looking through it for garbage, again and again
    # while it grows, would take a third of the time that it takes to make.
    gc.disable()
    install(default_reactor)
    twistd = getattr(options, "parent", None)
    if reason := cannot_write(twistd):
        give_up(reason)
    try:
        return JitsuService(*options.load(), twistd=twistd)
    except ConfigError as error:
        give_up(error)
