"""
The control endpoint: JSON over HTTP, the metrics, and the dashboard. ``/v1/openapi.json`` describes all of it.

`Endpoint` has the table of what there is. Errors are ``{"error": "…"}`` with a status of 4xx or 5xx. The endpoint shows
what `vm` knows, and decides nothing. Which clients are served is in `web`.
"""

from __future__ import annotations

import time
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import maybeDeferred

from jitsu_tw.control.describe import MEMBERS, about, describe, explain, hosts, nodes, standins
from jitsu_tw.control.dnssec import dnssec_routes
from jitsu_tw.control.events import Events
from jitsu_tw.control.files import file_routes
from jitsu_tw.control.metrics import Metrics
from jitsu_tw.control.routes import RefusalError, Rows, argument, arguments, number
from jitsu_tw.control.templates import NoTemplates, statuses, template_problems
from jitsu_tw.control.web import Guarded
from jitsu_tw.errors import JitsuError
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.vm.journal import MOST_ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from twisted.web.server import Request

    from jitsu_tw.control.routes import Route
    from jitsu_tw.dns.counters import Counters
    from jitsu_tw.idnssec import IDnssec
    from jitsu_tw.ijitsu import ITemplateControl
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine


#: The most problems of VMs, and of templates, that `healthz` lists; there may be as many as VMs.
MOST_PROBLEMS: Final = 20

#: The most VMs that a client may ask for by their names at once.
MOST_NAMED: Final = 200


class Endpoint(Guarded):
    """
    The endpoint for a fleet.

    Attributes:
        routes: rows of method, path and function. ``{vm}``, ``{node}`` and ``{host}`` name a thing for the function.
    """

    def __init__(
        self,
        fleet: Fleet,
        reload: Callable[[], Coroutine[Any, Any, list[str]]],
        token: str | None = None,
        reactor: Any = None,
        wall: Callable[[], float] = time.time,
        problems: Callable[[], list[str]] = list,
        served: Callable[[], Mapping[str, Any]] = dict,
        *,
        counters: Counters,
        reload_zone: Callable[[str], Coroutine[Any, Any, None]],
        dnssec: IDnssec,
        templates: ITemplateControl | None = None,
    ) -> None:
        """
        Build the table.

        Args:
            fleet: to see and steer.
            reload: reads the configuration anew, and returns what has changed, in words.
            token: a client that does not show it sees nothing; None: all clients that can connect see all.
            reactor: calls later.
            wall: seconds since 1970.
            problems: returns what is wrong that the fleet does not know of.
            served: returns the zones and the addresses, as ``/v1/about`` has them.
            counters: of the DNS server's responses.
            reload_zone: reads one zone anew.
            dnssec: sees and steers the zones that are signed.
            templates: sees and steers the templates; None where there is no state, and so no template.
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._fleet, self._wall, self._problems = fleet, wall, problems
        self._reload, self._reload_zone = reload, reload_zone
        self._began, self._served = wall(), served
        self._templates = templates or NoTemplates()
        self.routes: tuple[Route, ...] = (
            *file_routes(),
            ("GET", "/metrics", Metrics(fleet, counters, self._templates, dnssec).show),
            ("GET", "/healthz", self._health),
            ("GET", "/v1/about", self._about),
            ("GET", "/v1/vms", self._vms),
            ("GET", "/v1/vms/{vm}", self._vm),
            ("POST", "/v1/vms/{vm}/start", partial(self._do, fleet.operator.start)),
            ("POST", "/v1/vms/{vm}/stop", self._stop),
            ("POST", "/v1/vms/{vm}/hold", partial(self._do, fleet.operator.hold)),
            ("POST", "/v1/vms/{vm}/release", partial(self._do, fleet.operator.release)),
            ("POST", "/v1/vms/{vm}/move", self._move),
            ("POST", "/v1/vms/{vm}/forget", self._forget),
            ("GET", "/v1/templates", self._list_templates),
            *dnssec_routes(dnssec),
            ("GET", "/v1/nodes", lambda _: nodes(fleet)),
            ("POST", "/v1/nodes/{node}/drain", partial(self._drain, "nodes")),
            ("POST", "/v1/nodes/{node}/undrain", partial(self._drain, "nodes", undo=True)),
            ("GET", "/v1/hosts", lambda _: hosts(fleet)),
            ("POST", "/v1/hosts/{host}/drain", partial(self._drain, "hosts")),
            ("POST", "/v1/hosts/{host}/undrain", partial(self._drain, "hosts", undo=True)),
            ("GET", "/v1/activations", self._activations),
            ("GET", "/v1/refusals", self._refusals),
            ("GET", "/v1/events", Events(fleet, reactor).stream),
            ("GET", "/v1/standins", lambda _: standins(fleet)),
            ("GET", "/v1/dry-run", self._dry_run),
            ("POST", "/v1/reload", self._reloaded),
        )
        kinds: dict[str, Callable[[str], object]] = {
            "{vm}": self._machine,
            "{node}": partial(self._member, "nodes"),
            "{host}": partial(self._member, "hosts"),
        }
        super().__init__(self.routes, kinds, token, reactor)

    # What paths name.

    def _machine(self, name: str) -> Machine:
        machine = self._fleet.machines.get(name)
        if machine is None:
            why = "no VM of that name; jitsuctl status lists all"
            if name in self._fleet.templates:
                why = "a template, no VM; jitsuctl templates shows it"
            raise RefusalError(HTTPStatus.NOT_FOUND, why)
        return machine

    def _member(self, what: str, name: str) -> str:
        if not any(one["name"] == name for one in MEMBERS[what](self._fleet)):
            raise RefusalError(HTTPStatus.NOT_FOUND, f"no such {what.removesuffix('s')}")
        return name

    # What is shown.

    def _health(self, _: Request) -> dict[str, Any]:
        """
        Return that Jitsu serves, and what is wrong all the same.

        A hypervisor that cannot be asked is no reason to restart Jitsu, nor are unreachable nodes: queries for VMs that
        are up are answered.
        """
        fleet = self._fleet
        problems = self._problems()
        hypervisors = fleet.inventory.hypervisors.items()
        problems += [f"{name} cannot be asked: {reason}" for name, reason in hypervisors if reason is not None]
        if fleet.cluster.problem:
            problems.append(f"nothing new is started here: {fleet.cluster.problem}")
        if not fleet.store.is_written:
            problems.append("the state is not written, only remembered")
        problems += islice(template_problems(fleet, self._templates), MOST_PROBLEMS)
        problems += islice(fleet.context.problems.degrading(), MOST_PROBLEMS)
        return {"status": "degraded" if problems else "ok", "problems": problems}

    def _about(self, request: Request) -> dict[str, Any]:
        return {**about(self._fleet, self._began), **self._served(), "shows_only": self.shows_only(request)}

    def _vms(self, request: Request) -> Any:
        """List all VMs, or those of each ``name`` that there is."""
        machines, names = self._fleet.machines, arguments(request, "name", MOST_NAMED)
        some = list(machines.values()) if names is None else [machines[name] for name in names if name in machines]
        return Rows.answer(request, some, partial(describe, self._fleet))

    def _vm(self, _: Request, machine: Machine) -> dict[str, Any]:
        return explain(self._fleet, machine, self._wall())

    def _list_templates(self, _: Request) -> list[dict[str, Any]]:
        """List the templates."""
        return [one.as_json() for one in statuses(self._fleet, self._templates)]

    def _activations(self, request: Request) -> list[Any]:
        """List the last activations, newest first: of one ``vm``, or of all; at most ``last``."""
        most, vm = number(request, "last", 50, MOST_ACTIVATIONS), argument(request, "vm")
        return [one.as_json() for one in self._fleet.journal.last_activations(vm, most)]

    def _refusals(self, _: Request) -> list[Any]:
        """List the last refusals, newest first."""
        return [one.as_json() for one in reversed(self._fleet.journal.refusals.values())]

    def _dry_run(self, _: Request) -> list[Any]:
        starts = self._fleet.summons.would_start.items()
        return [{"name": name, "network": net, "type": type_, "starts": n} for (name, net, type_), n in starts]

    # What is done. Each answers when it is done.

    async def _do(self, action: Callable[[str], object], _: Request, machine: Machine) -> dict[str, Any]:
        await maybeDeferred(action, machine.vm.name)
        return describe(self._fleet, machine)

    async def _stop(self, _: Request, machine: Machine) -> dict[str, Any]:
        if await self._fleet.operator.stop(machine.vm.name) is State.UP:
            raise JitsuError(machine.reason)
        return describe(self._fleet, machine)

    async def _move(self, request: Request, machine: Machine) -> dict[str, Any]:
        host = argument(request, "host")
        if not host:
            raise RefusalError(HTTPStatus.BAD_REQUEST, "say where to: ?host=NAME")
        await self._fleet.cluster.move(machine, host)
        return describe(self._fleet, machine)

    async def _forget(self, _: Request, machine: Machine) -> dict[str, Any]:
        """Forget a VM that a template has made; it is no more then."""
        await self._templates.forget(machine.vm.name)
        return {"forgotten": True}

    async def _drain(self, what: str, _: Request, name: str, *, undo: bool = False) -> list[dict[str, Any]]:
        """Take the node or the host *name* out of service, or back; return all nodes or hosts."""
        await self._fleet.cluster.drain(what, name, undo=undo)
        return MEMBERS[what](self._fleet)

    async def _reloaded(self, request: Request) -> dict[str, Any]:
        """Read the configuration and the zones anew, or the zone ``zone``; what is bad changes nothing."""
        zone = argument(request, "zone")
        if zone is None:
            return {"reloaded": True, "changes": await self._reload()}
        await self._reload_zone(zone)
        return {"reloaded": True, "changes": []}
