"""What `twistd jitsu` runs: the command line, and how all parts are connected."""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from twisted.application.service import Service
from twisted.internet import reactor as default_reactor
from twisted.internet.task import coiterate
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python import usage

from jitsu_tw import __version__, garbage, logs
from jitsu_tw.backends import BACKENDS, backends_for
from jitsu_tw.clocks import Clocks, install
from jitsu_tw.cluster.coordinator import coordinator_for
from jitsu_tw.cluster.membership import Membership
from jitsu_tw.config import build
from jitsu_tw.config.schema import FLAGS, OPTIONS
from jitsu_tw.control.api import Endpoint
from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.dns.connections import MOST_CONNECTIONS
from jitsu_tw.dns.cookies import Cookies
from jitsu_tw.dns.forward import Forwarder
from jitsu_tw.dns.notify import Notifier
from jitsu_tw.dns.ondemand import TemplateResolver
from jitsu_tw.dns.querylog import QueryLog
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.rrl import Limiter
from jitsu_tw.dns.server import Server, chaos
from jitsu_tw.dns.transfer import Permissions
from jitsu_tw.dns.tsig import Keyring
from jitsu_tw.dns.warm import WarmAnswers
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import ConfigError, JitsuError
from jitsu_tw.guests import MOST_CONNECTIONS as MOST_GUESTS
from jitsu_tw.guests import GuestSite
from jitsu_tw.listeners import Listeners
from jitsu_tw.settings import HOSTS
from jitsu_tw.store import store_at
from jitsu_tw.sync.reconfigure import LiveConfig
from jitsu_tw.sync.reload import Reloads
from jitsu_tw.sync.signed_zones import SignedZones
from jitsu_tw.sync.trigger import SyncTrigger
from jitsu_tw.sync.zone_reload import reading_zone
from jitsu_tw.text import counted, printable
from jitsu_tw.twistd import cannot_write, open_files, stop_once
from jitsu_tw.vm.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.backends.pool import Pool
    from jitsu_tw.control.webhooks import Webhooks
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.settings import Settings
    from jitsu_tw.store.git import GitStore
    from jitsu_tw.sync.change_requests import ChangeRequests
    from jitsu_tw.sync.config_sync import ConfigSync
    from jitsu_tw.sync.reconfigure import Outcome
    from jitsu_tw.sync.serials import Serials
    from jitsu_tw.sync.templates import Templates


#: Open files that Jitsu needs beside those of DNS: connections to the control endpoint, to hypervisors, to Synjitsu and
#: etcd, those by which guests are waited for, pipes of programs, the state and the log.
FILES: Final = 1000

#: The most zones that the control endpoint names.
MOST_ZONES: Final = 100


class Options(usage.Options):
    """The original's options, and Jitsu's own; positional arguments are VMs, as there."""

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
        """Begin with no zone and no VM."""
        super().__init__()
        self["zones"] = []
        self.vms: tuple[str, ...] = ()
        self._path: Path | None = None

    def opt_zone(self, path: str) -> None:
        """A zone to serve, an RFC 1035 master file; may be given several times."""
        self["zones"].append(path)

    opt_z = opt_zone

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        sys.stdout.write(f"Jitsu {__version__}\n")
        sys.exit(0)

    def parseArgs(self, *vms: str) -> None:  # noqa: N802
        """Take the VMs."""
        self.vms = vms

    def load(self) -> tuple[Settings, Zones]:
        """
        Return the settings and zones of the options and the files (`config.build.load`).

        A file that was read once must be there from then on: without it, all its VMs would be gone.
        """
        given = {key.replace("-", "_"): value for key, value in self.items() if value and key != "config"}
        given |= {flag: "true" for flag in FLAGS if given.get(flag)}
        if self._path is None:
            self._path = Path(self["config"]) if self["config"] else build.found(given, self.vms)
        return build.load(given, self.vms, self._path)


class JitsuService(Service):
    """Everything that runs, begun and ended in order."""

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        zones: Zones,
        load: Callable[[], tuple[Settings, Zones]],
        reactor: Any = default_reactor,
        twistd: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Connect the parts to each other; nothing is opened yet.

        Args:
            settings: the configuration.
            zones: its zones.
            load: reads both anew, for a reload.
            reactor: calls later.
            twistd: its own options.
        """
        self._twistd, self._load = twistd, load
        self._settings, self._zones, self._reactor = settings, zones, reactor
        # Without VMs yet, that of those which requests will add: it knows their uuids.
        first = (settings.backend, settings.connect or BACKENDS[settings.backend].connect)
        is_awaited = settings.persistdb is not None and not (settings.vms or settings.hosts)
        backends = backends_for(settings.vms, settings.hosts, (first,) * is_awaited)
        trigger = SyncTrigger(reactor)
        self._store = store_at(settings.persistdb, settings.keep_history, trigger.changed)
        clocks = Clocks(reactor)
        make_cluster = partial(
            Membership,
            settings,
            cast("Pool | None", backends.get((HOSTS, ""))),
            coordinator_for(settings.cluster, reactor),
            clocks,
        )
        warm = WarmAnswers(clocks.now, settings.summon_from)
        self.fleet = Fleet(settings, backends, self._store, clocks, make_cluster, warm)
        self._running = LiveConfig(settings, self.fleet, zones, self._changed)
        self._reloads = Reloads(self._running, self.fleet, self._replaced, reactor)
        self._requests: ChangeRequests | None = None
        self._serials: Serials | None = None
        self._sync: ConfigSync | None = None
        if settings.persistdb is not None:
            from jitsu_tw.sync.change_requests import ChangeRequests  # noqa: PLC0415
            from jitsu_tw.sync.serials import Serials  # noqa: PLC0415

            store = cast("GitStore", self._store)
            self._requests = ChangeRequests(store, self.fleet, zones, self._running, reactor)
            self._serials = Serials(zones, self._store, reactor)
            if settings.remote is not None:
                self._sync = self._share(settings.remote, store, self._requests, trigger)
        self._signing = self._signer(clocks)
        self._webhooks: Webhooks | None = None
        if settings.webhooks or settings.otlp is not None:
            from jitsu_tw.control.webhooks import Webhooks  # noqa: PLC0415

            self._webhooks = Webhooks(settings, self.fleet.journal, reactor)
        self._templates: Templates | None = None
        summoning = JitsuResolver(zones, self.fleet)
        resolvers: list[Any] = [summoning, ZoneAuthority(zones)]
        if settings.persistdb is not None:
            from jitsu_tw.sync.shared_members import SharedTemplates  # noqa: PLC0415 -- it makes nothing without a state
            from jitsu_tw.sync.templates import Templates  # noqa: PLC0415

            kind = Templates if settings.cluster is None else SharedTemplates
            self._templates = kind(self._running, self.fleet, self._store, clocks)
            answer_by = partial(getattr, self.fleet.context, "answer_by")
            resolvers.insert(1, TemplateResolver(zones, self._templates, summoning, reactor, answer_by))
        if settings.forwarder is not None:
            resolvers.append(Forwarder(settings.forwarder, settings.forward_for))
        keys = Keyring(settings.tsig_keys)
        self._notifier = Notifier(settings.notify, keys, settings.bind, reactor)
        self._query_log = _query_log(settings, warm, clocks)
        self._server = Server(
            Chain(resolvers),
            warm,
            self.fleet,
            zones,
            limiter=_limiter(settings),
            cookies=Cookies(os.urandom(16)),
            nsid=settings.nsid,
            chaos=chaos(settings.version, settings.identity),
            keys=keys,
            allowed=Permissions(settings.allow_transfer),
            log=self._query_log,
        )
        self._site = Endpoint(
            self.fleet, self.reload, settings.control_token, reactor, problems=self._problems, served=self._served,
            counters=warm.counters, reload_zone=self.reload_zone, dnssec=self._signing,
            templates=self._templates,
        )  # fmt: skip
        self._listeners = Listeners(settings, self._server, self._site, GuestSite(self.fleet, reactor), reactor)

    def _share(self, url: str, store: GitStore, requests: ChangeRequests, trigger: SyncTrigger) -> ConfigSync:
        from jitsu_tw.store.remote import Remote  # noqa: PLC0415
        from jitsu_tw.sync.config_sync import ConfigSync  # noqa: PLC0415

        node = self._settings.cluster.node if self._settings.cluster is not None else platform.node()
        remote = Remote(url, store.path, self._reactor)
        self.fleet.peers.follow(trigger)
        return ConfigSync(store, requests, self._running, self.fleet, remote, node, trigger)

    def _signer(self, clocks: Clocks) -> SignedZones:
        """Return what signs the zones, or what watches those that come signed, if Jitsu is to sign none."""
        if self._settings.dnssec is None:
            return SignedZones(self._zones, clocks.wall)
        from jitsu_tw.sync.zone_signing import ZoneSigning  # noqa: PLC0415 -- cryptography, which the rest does without

        return ZoneSigning(self._settings.dnssec, self._zones, self._store, clocks, self._renewed)

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802
        """Become *parent*'s service; the log is the application's."""
        logs.set_up(parent, self._twistd, as_json=self._settings.log_json)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:  # noqa: N802
        """Open the ports, while twistd has its privileges; or end with a line that says why that cannot be."""
        super().privilegedStartService()
        if problem := open_files(FILES + MOST_CONNECTIONS + MOST_GUESTS * bool(self._settings.guests)):
            self.log.warn("{problem}", problem=problem)
        try:
            self._listeners.open()
        except JitsuError as error:
            give_up(error)

    def _problems(self) -> list[str]:
        problems = self._listeners.problems()
        if self._requests is not None:
            problems += self._requests.problems()
        if self._sync is not None and self._sync.trouble:
            problems.append(f"the configuration is not shared: {self._sync.trouble}")
        problems += (f"{one.zone}: {problem}" for one in self._signing.statuses() for problem in one.problems)
        return problems

    def _served(self) -> dict[str, Any]:
        """Return the zones, the first of them, and the addresses, as ``/v1/about`` has them."""
        zones = [to_text(zone.key) for zone in islice(self._zones, MOST_ZONES)]
        return {"zones": zones, "zone_count": sum(1 for _ in self._zones), "addresses": self._listeners.addresses()}

    def startService(self) -> None:  # noqa: N802
        """Open the state, connect to the hypervisors and begin to serve; or end with a line that says what is wrong."""
        super().startService()
        try:
            remembered = self._store.open()
            if self._requests is not None:
                self._requests.restore(remembered)
            if self._serials is not None:
                self._serials.restore(remembered)
            self._signing.restore(remembered)
        except JitsuError as error:
            give_up(error)
        for zone in self._zones:
            for warning in zone.warnings:
                self.log.warn("{warning}", warning=warning)
        if not self._settings.zones:
            names = ", ".join(to_text(zone.key) for zone in self._zones)
            self.log.info("no zone file was given; made up from the VMs' names: {names}", names=names)
        self._reactor.callWhenRunning(stop_once)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hang_up))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        begun = self.fleet.start(remembered)
        if self._requests is not None:
            self._requests.start()
        if self._templates is not None:
            self._templates.start()
        if self._serials is not None:
            self._serials.start()
        self._signing.start()
        if self._sync is not None:
            self._sync.start()
        self._notifier.tell(self._zones)
        garbage.keep_short()
        vms = [machine.vm for machine in self.fleet.machines.values()]
        begun.addCallback(self._begun, sum(len(vm.dns) for vm in vms), len(vms))

    def _begun(self, _: object, names: int, vms: int) -> None:
        if self.running:
            self.log.info(
                "serving {names} of {vms} on {bind}, port {port}",
                names=counted(names, "name"),
                vms=counted(vms, "VM"),
                bind=", ".join(self._settings.bind),
                port=self._settings.listen,
            )

    async def reload(self) -> list[str]:
        """
        Read the configuration and the zones anew, while the old ones are served; from then on the new ones are.

        Returns:
            what has changed, in words.

        Raises:
            ConfigError: something is bad; nothing has changed.
        """
        try:
            outcome = await self._running.lock.run(self._reload)
        except ConfigError as error:
            for line in str(error).splitlines():
                self.log.error("not reloaded, all goes on as before: {error}", error=line)
            raise
        lines = outcome.lines
        self.log.info("reloaded: {changes}", changes="; ".join(lines) or "nothing has changed")
        return lines

    @deferred
    async def _reload(self) -> Outcome:
        with garbage.left_alone():
            return await self._reloads.apply(*await deferToThread(self._read))

    def _read(self) -> tuple[Settings, Zones]:
        """Read the configuration and the zones, and sign them; in a thread."""
        settings, zones = self._load()
        self._signing.secure(zones)
        return settings, zones

    def _replaced(self, settings: Settings, outcome: Outcome) -> None:
        """Drop all warm answers, notify the secondary servers, and go on with *settings*, if its top has changed."""
        self._server.warm.clear()
        if outcome.keys:
            keys = Keyring(settings.tsig_keys)
            self._server.configure(keys, Permissions(settings.allow_transfer), _limiter(settings))
            self._server.warm.configure(settings.summon_from)
            self._notifier.configure(settings.notify, keys)
            self._site.configure(settings.control_token)
        self._signing.replaced(self._zones)
        self._notifier.tell(self._zones)

    async def reload_zone(self, name: str) -> None:
        """
        Read the zone *name* anew, while the old one is served, and notify the secondary servers of it alone.

        Raises:
            ConfigError: it is not served, or bad; the old one is served as before.
        """
        await self._running.lock.run(coiterate, self._reload_zone(name))
        self.log.info("reloaded the zone {name}", name=name)

    def _reload_zone(self, name: str) -> Iterator[Deferred[None] | None]:
        zone = yield from reading_zone(self._zones, lambda: self._running.vms, name, self._secure)
        self._signing.replaced([zone])
        self._renewed([zone])

    def _secure(self, zone: Zone) -> Deferred[None]:
        """Sign *zone*, which is not served yet, in a thread."""
        return deferToThread(self._signing.secure, [zone])

    def _renewed(self, zones: Iterable[Zone]) -> None:
        """Drop all warm answers, as those from *zones* are stale, and notify the secondary servers of these."""
        self._server.warm.clear()
        self._notifier.tell(zones)

    def _changed(self, names: Iterable[str]) -> None:
        """Drop the warm answers of the VMs *names*, which are stale, and notify the secondary servers."""
        for name in names:
            self._server.warm.drop(name)
        self._notifier.tell(self._zones)

    def _hang_up(self) -> None:
        """Reload because of SIGHUP; `reload` logs what is wrong."""
        spawn(self.log, self.reload(), ignore=(ConfigError,))

    def stopService(self) -> Deferred[None]:  # noqa: N802
        """Take no more queries, answer those that wait, write the state down, and leave the VMs as they are."""
        super().stopService()
        self._server.end()
        self._notifier.stop()
        if self._webhooks is not None:
            self._webhooks.stop()
        return self._stop(self._listeners.close())

    @deferred
    async def _stop(self, closed: Deferred[Any]) -> None:
        if self._sync is not None:
            await self._sync.stop()
        if self._requests is not None:
            await self._requests.stop()
        if self._templates is not None:
            self._templates.stop()
        if self._serials is not None:
            await self._serials.stop()
        await self._signing.stop()
        await self.fleet.stop()
        await closed
        if self._query_log is not None:
            await self._query_log.stop()


def _query_log(settings: Settings, warm: WarmAnswers, clocks: Clocks) -> QueryLog | None:
    """Return the query log; None if there is to be none."""
    if settings.query_log is None:
        return None
    return QueryLog(
        settings.query_log, settings.query_log_sample, warm.counters, clocks.reactor, clocks.wall,
        as_json=settings.log_json,
    )  # fmt: skip


def _limiter(settings: Settings) -> Limiter | None:
    """Return a limiter of responses; None if there is to be none."""
    if not settings.rate_limit:
        return None
    return Limiter(os.urandom(16), settings.rate_limit, slip=settings.rate_slip, exempt=settings.rate_exempt)


def give_up(error: object) -> NoReturn:
    """End with one line, on the terminal: the log of twistd is on standard error by now."""
    print("jitsu: " + "\n".join(map(printable, str(error).splitlines())), file=sys.__stderr__)
    raise SystemExit(1)


def makeService(options: Options) -> JitsuService:  # noqa: N802
    """Return the service that twistd runs."""
    # What is made from here to the start lives as long as the process: to collect garbage while it grows would take a
    # third of the time.
    gc.disable()
    # Until there is a handler, SIGHUP would end Jitsu, and systemd takes that for a clean end: it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    install(default_reactor)
    twistd = getattr(options, "parent", None)
    if reason := cannot_write(twistd):
        give_up(reason)
    try:
        return JitsuService(*options.load(), options.load, twistd=twistd)
    except ConfigError as error:
        give_up(error)
