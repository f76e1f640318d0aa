"""
The checks of `jitsuctl doctor` and `jitsuctl check --connect`.

All observations are made at once, each within a time of its own, so that nothing that hangs keeps the others from being
shown. Then the rules of `findings` draw their conclusions.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.names.dns import AAAA, NS, A
from twisted.python.failure import Failure

from jitsu_tw.backends.threaded import in_thread
from jitsu_tw.ctl import show
from jitsu_tw.ctl.diagnosis import findings, machine, resolving, templates
from jitsu_tw.ctl.diagnosis.findings import WILDCARDS, Finding, Level
from jitsu_tw.ctl.diagnosis.hypervisors import ask_all, hypervisors
from jitsu_tw.ctl.show import FailedError, NoAnswerError
from jitsu_tw.dns.connections import MOST_CONNECTIONS
from jitsu_tw.dns.wire import to_text
from jitsu_tw.sockets import SYSTEM
from jitsu_tw.store import lock
from jitsu_tw.tap import FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from jitsu_tw.ctl.client import Control
    from jitsu_tw.ctl.diagnosis.findings import Answer, Delegation, Link
    from jitsu_tw.ctl.diagnosis.hypervisors import Asked
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.settings import VM, Settings

#: Seconds for the VMs of a hypervisor, once it is connected, and for any other observation.
VMS_WITHIN: Final = 20.0
WITHIN: Final = 10.0

#: How many zones name servers are asked about.
MOST_ZONES: Final = 5


@attrs.frozen
class Context:
    """
    What is checked.

    Attributes:
        settings: the configuration.
        zones: those that it serves; none if it cannot be used.
        control: the control endpoint; None if it is off, or not to be asked.
    """

    settings: Settings
    zones: Zones | Sequence[Zone] = ()
    control: Control | None = None

    @property
    def some_zones(self) -> list[Zone]:
        """The zones that name servers are asked about."""
        return [zone for zone, _ in zip(self.zones, range(MOST_ZONES), strict=False)]

    @property
    def own_addresses(self) -> list[str]:
        """The addresses at which this host reaches Jitsu."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        return [loopback.get(host, host) for host in self.settings.bind]


@attrs.frozen
class Row:
    """
    A finding, and the check that it is of.

    Attributes:
        check: its name.
        looks_at: what it looks at.
    """

    check: str
    looks_at: str
    finding: Finding

    @property
    def is_problem(self) -> bool:
        """Whether Jitsu, or one of its VMs, does not work."""
        return self.finding.level is Level.PROBLEM

    def as_json(self) -> dict[str, str]:
        """Return it for programs."""
        found = self.finding
        return {"check": self.check, "looks_at": self.looks_at, "level": found.level.value, "finding": found.text,
                "remedy": found.remedy}  # fmt: skip

    def say(self) -> None:
        """Print it for people."""
        level = self.finding.level
        mark = level.value if level is Level.OK else level.value.upper()
        show.say(f"{mark:8} {self.check:12} {self.finding.text}")
        if self.finding.remedy:
            show.say(f"{'':21} -> {self.finding.remedy}")


# Observations


@attrs.frozen
class Health:
    """
    What a running Jitsu says of itself.

    Attributes:
        error: why it says nothing; empty if it does.
        remedy: what helps if this user may not ask it.
        problems: what it says is wrong.
        synjitsu: why it has no connection to Synjitsu; empty if it has, or needs none.
    """

    error: str = ""
    remedy: str = ""
    problems: tuple[str, ...] = ()
    synjitsu: str = ""


def _health(context: Context) -> Health:
    if context.control is None:
        return Health("its control endpoint is off")
    try:
        health = context.control.ask("GET", "/healthz")
        standins = context.control.ask("GET", "/v1/standins")
    except NoAnswerError as error:
        text, _, remedy = error.message.rpartition("; ")
        return Health(text, remedy if isinstance(error.__cause__, PermissionError) else "")
    except FailedError as error:
        return Health(error.message)
    return Health("", "", tuple(map(str, health["problems"])), str(standins["error"] or ""))


def _access(context: Context) -> tuple[str, bool] | None:
    """Return who may use the control socket of the Jitsu that is a service of this machine; None if it is not that."""
    is_system = context.control is not None and context.control.place == f"unix:{SYSTEM}"
    return machine.access(SYSTEM) if is_system else None


def _synjitsu(context: Context) -> str:
    """Return why the socket of Synjitsu cannot be connected to; empty if it can, or is elsewhere."""
    place = context.settings.synjitsu or ""
    return machine.connects(place.removeprefix("unix:")) if place.startswith("unix:") else ""


def _direct(context: Context) -> dict[str, Answer]:
    settings = context.settings
    return {to_text(zone.key): resolving.probe(to_text(zone.key), context.own_addresses, settings.listen)
            for zone in context.some_zones}  # fmt: skip


def _resolver(context: Context) -> dict[str, Answer]:
    servers, error = resolving.servers()
    if error:
        return {to_text(zone.key): findings.Answer(error) for zone in context.some_zones}
    return {to_text(zone.key): resolving.probe(to_text(zone.key), servers, recursive=True)
            for zone in context.some_zones}  # fmt: skip


def _delegations(context: Context) -> dict[str, Delegation]:
    return {to_text(zone.key): resolving.delegation(to_text(zone.key)) for zone in context.some_zones}


def _disks(context: Context) -> list[tuple[str, int, int]]:
    settings = context.settings
    paths = [settings.persistdb] if settings.persistdb is not None else []
    paths += {vm.images for vm in (*settings.vms, *settings.templates) if vm.boot_from.value == "snapshot"}
    paths += {template.layers for template in settings.templates if template.disk is not None}
    return list(dict.fromkeys(machine.disk(path) for path in paths))


def _template_files(context: Context) -> dict[str, templates.Files]:
    return {template.name: templates.look(template) for template in context.settings.templates}


def _holder(context: Context) -> int | None:
    return lock.holder(context.settings.persistdb) if context.settings.persistdb is not None else None


def _ahead(context: Context) -> float | None:
    return machine.ahead(context.settings.persistdb) if context.settings.persistdb is not None else None


#: What blocks; each runs in a thread.
OBSERVERS: Final[Mapping[str, Callable[[Context], Any]]] = {
    "health": _health,
    "access": _access,
    "synjitsu": _synjitsu,
    "held": lambda context: machine.held(context.settings.listen),
    "here": lambda context: machine.here(context.settings.bind),
    "links": lambda _: machine.links(),
    "nat": lambda _: machine.nat_networks(),
    "leased": lambda _: machine.leased(),
    "template_files": _template_files,
    "direct": _direct,
    "servers": lambda _: resolving.servers()[0],
    "resolver": _resolver,
    "delegations": _delegations,
    "holder": _holder,
    "ahead": _ahead,
    "disks": _disks,
    "may_open": lambda _: machine.may_open(),
    "synchronised": lambda _: machine.is_synchronised(),
    "kvm": lambda _: machine.kvm(),
}

#: What is asked through the reactor.
HYPERVISORS: Final = "hypervisors"


async def observe(context: Context, names: Iterable[str], reactor: Any) -> dict[str, Any]:
    """Make the observations *names* at once; return each result, or the Failure that it ended with."""
    made: dict[str, Deferred[Any]] = {}
    for name in dict.fromkeys(names):
        if name == HYPERVISORS:
            made[name] = Deferred.fromCoroutine(ask_all(hypervisors(context.settings), reactor, VMS_WITHIN))
        else:
            made[name] = in_thread(reactor, name, OBSERVERS[name], context).addTimeout(WITHIN, reactor)
    results = await DeferredList(list(made.values()), consumeErrors=True)
    return {name: result for name, (_, result) in zip(made, results, strict=True)}


# Conclusions


def _service(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    health = seen["health"]
    runs = not health.error or any(answer.zone == zone for zone, answer in seen["direct"].items())
    if not health.error:
        yield findings.ok("Jitsu runs, and answers at its control endpoint")
        more = "jitsuctl status and the log (journalctl -u jitsu) have more"
        for text in health.problems:
            yield findings.problem(text, findings.remedy(text, more))
    elif context.control is not None:
        other = "name its endpoint with --control" if runs else "start it: systemctl start jitsu"
        yield findings.warning(health.error, health.remedy or other)
    if seen["access"] is not None:
        group, shared = seen["access"]
        yield findings.access(SYSTEM, group, shared=shared)
    for zone, answer in seen["direct"].items() if runs else ():
        yield findings.service(zone, f"{context.own_addresses[0]} port {context.settings.listen}", answer)


def _socket(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    yield from findings.missing((host for host in context.settings.bind if host not in WILDCARDS), seen["here"])
    yield from findings.ports(context.settings.bind, context.settings.listen, seen["held"])


def _asks_us(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    settings = context.settings
    hosts = [host for host in settings.bind if host not in WILDCARDS]
    forward_to = f"{hosts[0] if hosts else 'ADDRESS'} port {settings.listen}"
    for zone, answer in seen["resolver"].items():
        if seen["direct"][zone].zone == zone:  # else the resolver cannot have an answer either
            yield findings.resolver(zone, seen["direct"][zone].mname, seen["servers"], answer, forward_to)


def _delegated(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    for zone in context.some_zones:
        name = to_text(zone.key)
        yield findings.delegation(name, _name_servers(zone), seen["delegations"][name])


def _name_servers(zone: Zone) -> dict[str, list[str]]:
    """Return the names in the NS records of *zone*, each with its addresses if it is in the zone."""
    found: dict[str, list[str]] = {}
    node = zone.get(zone.key)
    for record in node.rrsets[NS].records() if node is not None and NS in node.rrsets else ():
        key = record.rdata.lower()
        server = zone.get(key) if key.endswith(zone.key) else None
        found[to_text(key)] = sorted(
            str(ip_address(one.rdata)) for kind in (A, AAAA) if server is not None and kind in server.rrsets
            for one in server.rrsets[kind].records()
        )  # fmt: skip
    return found


def _here(asked: Iterable[Asked]) -> Iterator[Asked]:
    return (one for one in asked if one.hypervisor.is_here)


def _used(asked: Iterable[Asked], links: Sequence[Link]) -> dict[str, list[VM]]:
    """Return the VMs of each bridge of this host: as their hypervisor says, or else by their addresses."""
    known = {link.name: link for link in links}
    used: dict[str, dict[str, VM]] = {}
    for one in _here(asked):
        for vm in one.hypervisor.vms:
            names = set(one.seen[vm.name].bridges) if vm.name in one.seen else set()
            near = {link.name for address in vm.ip if (link := findings.link_of(address, links)) is not None}
            for name in names or {name for name in near if known[name].is_bridge}:
                used.setdefault(name, {})[vm.name] = vm
    return {name: list(vms.values()) for name, vms in used.items()}


def _hypervisors(_: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    for one in seen[HYPERVISORS]:
        has_network = one.hypervisor.backend.reachable
        vms = one.hypervisor.vms
        yield from findings.hypervisor(one.hypervisor.name, one.error, one.seen, vms, network=has_network)


def _bridges(_: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    links, asked = seen["links"], seen[HYPERVISORS]
    used = _used(asked, links)
    yield from findings.bridges(used, links)
    yield from findings.nat(seen["nat"], used)
    for one in _here(asked):
        yield from findings.guests(one.hypervisor.vms, links)
        yield from templates.outside(one.hypervisor.templates, links)
        plugged = ((vm, one.seen[vm.name].bridges) for vm in one.hypervisor.vms if vm.name in one.seen)
        yield from findings.misplaced(plugged, links)


def _templates(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    settings = context.settings
    yield from templates.files(seen["template_files"])
    yield from templates.pools(settings.templates, settings.vms, seen["links"], seen["leased"])


def _standins(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    if context.settings.synjitsu is None:
        return
    why = seen["synjitsu"] if seen["health"].error else seen["health"].synjitsu
    remedy = "start it: systemctl start synjitsu, with -i BRIDGE"
    yield findings.problem(f"there is no connection to Synjitsu: {why}", remedy) if why else findings.ok(
        "Synjitsu can be reached"
    )


def _state(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    if context.settings.persistdb is not None:
        path = str(context.settings.persistdb)
        yield findings.state(path, seen["holder"], answers=not seen["health"].error)
    for disk in seen["disks"]:
        yield findings.disk(*disk)


def _kvm(context: Context, seen: Mapping[str, Any]) -> Iterator[Finding]:
    vms = (*context.settings.vms, *context.settings.templates)
    local = {vm.connect for vm in vms if vm.connect.startswith("qemu:///")}
    if local:
        yield findings.kvm(**seen["kvm"], session=any(not one.endswith("/system") for one in local))


@attrs.frozen
class Check:
    """
    A check.

    Attributes:
        name: one word.
        looks_at: what it looks at, in words.
        needs: the observations that its rule takes.
        rule: yields what it finds.
    """

    name: str
    looks_at: str
    needs: tuple[str, ...]
    rule: Callable[[Context, Mapping[str, Any]], Iterable[Finding]]


#: What the configuration says of the world outside of this process.
OUTSIDE: Final = (
    Check("hypervisors", "that they can be asked, know the VMs, and can do with them what is configured",
          (HYPERVISORS,), _hypervisors),
    Check("bridges", "that the VMs' bridges are there, up, with carrier, without STP, and have their networks",
          ("links", "nat", HYPERVISORS), _bridges),
    Check("templates", "that it can be found out which names exist, disks can be made, and addresses are for VMs alone",
          ("template_files", "links", "leased"), _templates),
    Check("delegation", "that the zones' parents delegate them as they say themselves",
          ("delegations",), _delegated),
)  # fmt: skip

#: All of it, this machine, and the service that runs here.
ALL: Final = (
    Check("service", "that Jitsu runs, can be asked, and serves its zones", ("health", "access", "direct"), _service),
    Check("ports", "that this host has the addresses of bind, and no other process has their port",
          ("here", "held"), _socket),
    *OUTSIDE,
    Check("resolver", "that this machine's own resolver asks Jitsu for the zones",
          ("direct", "resolver", "servers"), _asks_us),
    Check("synjitsu", "that Synjitsu is connected, if it is used", ("health", "synjitsu"), _standins),
    Check("state", "which process uses the state, and that its disk has space",
          ("health", "holder", "disks"), _state),
    Check("clock", "that the clock is synchronised, and was not set back", ("synchronised", "ahead"),
          lambda _, seen: findings.clock(synchronised=seen["synchronised"], ahead=seen["ahead"])),
    Check("limits", "that a process may open as many files as Jitsu needs", ("may_open",),
          lambda _, seen: [findings.open_files(seen["may_open"], FILES + MOST_CONNECTIONS)]),
    Check("kvm", "that guests run on the processor itself", ("kvm",), _kvm),
)  # fmt: skip


async def diagnose(context: Context, checks: Sequence[Check], reactor: Any) -> list[Row]:
    """Make the observations for *checks*, and return what these find."""
    seen = await observe(context, (name for check in checks for name in check.needs), reactor)
    rows = []
    for check in checks:
        failed = next((seen[name] for name in check.needs if isinstance(seen[name], Failure)), None)
        found = check.rule(context, seen) if failed is None else [_not_seen(failed)]
        rows += [Row(check.name, check.looks_at, one) for one in found]
    return rows


def _not_seen(failure: Failure) -> Finding:
    """Return the finding for an observation that could not be made."""
    late = failure.check(DeferredTimeout)
    why = f"it takes more than {WITHIN:g} s" if late else failure.getErrorMessage()
    return findings.warning(f"this could not be looked at: {why}", "try again, as root if need be")


def run(context: Context, checks: Sequence[Check]) -> list[Row]:
    """
    Run the reactor until *checks* have ended, and return what they find.

    Raises:
        KeyboardInterrupt: by Ctrl-C.
    """
    from twisted.internet import reactor  # noqa: PLC0415 -- importing it installs it

    results: list[Any] = []

    def begin() -> None:
        begun = Deferred.fromCoroutine(diagnose(context, checks, reactor))
        begun.addBoth(results.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if not results:
        raise KeyboardInterrupt
    if isinstance(results[0], Failure):
        results[0].raiseException()
    rows: list[Row] = results[0]
    return rows
