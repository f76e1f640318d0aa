"""
The control endpoint: JSON over HTTP, the metrics, and the dashboard. ``/v1/openapi.json`` describes all of it.

``GET /v1/vms`` lists all VMs; ``GET /v1/vms/NAME`` shows one, with why it is up or down. ``POST /v1/vms/NAME/start``,
``…/stop``, ``…/hold`` and ``…/release`` do what they say and answer when it is done, with the VM as it is then; so does
``…/move?host=HOST``. ``GET /v1/nodes`` and ``GET /v1/hosts`` list who serves the zones, and where VMs may run;
``POST …/NAME/drain`` and ``…/undrain`` take one out of service, and back.
``GET /v1/activations`` and ``GET /v1/refusals`` tell the last ones, ``GET /v1/events`` what happens as it happens.
``GET /v1/standins`` shows Synjitsu, ``GET /v1/dry-run`` what a dry run would have started. ``POST /v1/reload`` reads
the zones anew. Errors are ``{"error": "…"}`` with a status of 4xx or 5xx.

It says what is known in `vm`, and decides nothing. Who may ask is in `web`.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.control.cluster import Members
from jitsu_tw.control.describe import describe, explain
from jitsu_tw.control.events import Events
from jitsu_tw.control.files import add_files
from jitsu_tw.control.metrics import Metrics
from jitsu_tw.control.standins import standins
from jitsu_tw.control.web import FleetPage, Guarded, Page, Refusal, Rows, number, reply
from jitsu_tw.errors import JitsuError
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.vm.journal import MOST_ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from twisted.web.resource import Resource
    from twisted.web.server import Request

    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine


#: So many problems of VMs are told by `healthz`; there may be as many as VMs.
MOST_PROBLEMS: Final = 20


class Endpoint(Guarded):
    """The endpoint for a fleet."""

    def __init__(
        self,
        fleet: Fleet,
        reload: Callable[[], Coroutine[Any, Any, None]],
        token: str | None = None,
        reactor: Any = None,
        wall: Callable[[], float] = time.time,
        problems: Callable[[], list[str]] = list,
    ) -> None:
        """
        Build the tree of pages.

        Args:
            fleet: to see and steer.
            reload: reads the zones anew.
            token: who does not show it sees nothing; None: whoever gets here sees all.
            reactor: calls later.
            wall: seconds since 1970.
            problems: tells what is wrong that the fleet does not know of.
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        top, version = Page(), Page()
        add_files(top, version)
        top.putChild(b"v1", version)
        top.putChild(b"metrics", Metrics(fleet))
        top.putChild(b"healthz", Health(fleet, problems))
        version.putChild(b"vms", VMs(fleet, wall))
        version.putChild(b"nodes", Members(fleet, "nodes"))
        version.putChild(b"hosts", Members(fleet, "hosts"))
        version.putChild(b"activations", Activations(fleet))
        version.putChild(b"refusals", Refusals(fleet))
        version.putChild(b"events", Events(fleet, reactor))
        version.putChild(b"standins", Standins(fleet))
        version.putChild(b"dry-run", DryRun(fleet))
        version.putChild(b"reload", Reload(fleet, reload))
        super().__init__(top, token, reactor)


class Health(FleetPage):
    """``/healthz``."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, problems: Callable[[], list[str]]) -> None:
        """Show what is wrong with *fleet*, and what *problems* returns."""
        super().__init__(fleet)
        self._problems = problems

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """
        Say that we serve, and what is wrong all the same.

        A hypervisor that cannot be asked is no reason to restart us, nor are others who share the zone: what is up is
        answered for.
        """
        hypervisors = self._fleet.inventory.hypervisors.items()
        problems = self._problems()
        problems += [f"{name} cannot be asked: {reason}" for name, reason in hypervisors if reason is not None]
        if self._fleet.cluster.problem:
            problems.append(f"nothing new is started here: {self._fleet.cluster.problem}")
        if not self._fleet.is_written:
            problems.append("the state is not written, only remembered")
        if self._fleet.trouble():
            problems.append(f"the configuration is not shared: {self._fleet.trouble()}")
        problems += islice(self._fleet.problems.degrading(), MOST_PROBLEMS)
        return reply(request, {"status": "degraded" if problems else "ok", "problems": problems})


class VMs(FleetPage):
    """``/v1/vms``."""

    def __init__(self, fleet: Fleet, wall: Callable[[], float]) -> None:
        """Show *fleet*."""
        super().__init__(fleet)
        self._wall = wall

    def getChild(self, path: bytes, request: Request) -> Resource:  # noqa: ARG002, N802
        """Return the page of the VM with that name."""
        if not path:
            return self
        machine = self._fleet.machines.get(path.decode(errors="replace"))
        if machine is None:
            return Refusal(HTTPStatus.NOT_FOUND, "no VM of that name; jitsuctl status lists all")
        return OneVM(self._fleet, machine, self._wall)

    def render_GET(self, request: Request) -> Any:  # noqa: N802
        """List the VMs, as an array."""
        return Rows.answer(request, list(self._fleet.machines.values()), lambda one: describe(self._fleet, one))


class OneVM(FleetPage):
    """``/v1/vms/NAME`` and what can be done to it."""

    def __init__(self, fleet: Fleet, machine: Machine, wall: Callable[[], float]) -> None:
        """Show *machine*."""
        super().__init__(fleet)
        self._machine, self._wall = machine, wall
        for name, action in ((b"start", self._start), (b"stop", self._stop), (b"hold", self._hold),
                             (b"release", self._release)):  # fmt: skip
            self.putChild(name, Action(fleet, machine, action))
        self.putChild(b"move", Move(fleet, machine, self._release))

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """Show the VM, and why it is up or down."""
        return reply(request, explain(self._fleet, self._machine, self._wall()))

    async def _start(self) -> None:
        await self._fleet.start_vm(self._machine.vm.name)

    async def _stop(self) -> None:
        if await self._fleet.stop_vm(self._machine.vm.name) is State.UP:
            raise JitsuError(self._machine.reason)

    async def _hold(self) -> None:
        await self._fleet.hold_vm(self._machine.vm.name)

    async def _release(self) -> None:
        self._fleet.release_vm(self._machine.vm.name)


class Action(FleetPage):
    """Something that can be done to a VM."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, machine: Machine, action: Callable[[], Awaitable[None]]) -> None:
        """Do *action* when posted to."""
        super().__init__(fleet)
        self._machine, self._action = machine, action

    def render_POST(self, request: Request) -> int:  # noqa: N802
        """Do it; answer with the VM as it is then, or with the reason why not."""
        return self.later(request, self._do(request))

    async def _do(self, request: Request) -> bytes:
        try:
            await self._action()
        except JitsuError as error:
            return reply(request, {"error": str(error)}, HTTPStatus.CONFLICT)
        return reply(request, describe(self._fleet, self._machine))


class Move(Action):
    """Lets a VM go to another host."""

    async def _do(self, request: Request) -> bytes:
        host = request.args.get(b"host", [b""])[0].decode(errors="replace")
        if not host:
            return reply(request, {"error": "say where to: ?host=NAME"}, HTTPStatus.BAD_REQUEST)
        self._action = lambda: self._fleet.cluster.move(self._machine, host)
        return await super()._do(request)


class Activations(FleetPage):
    """``/v1/activations``."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """List the last activations, newest first: of one ``vm``, or of all; as many as ``last`` says."""
        try:
            most = number(request, "last", 50, MOST_ACTIVATIONS)
        except ValueError as error:
            return reply(request, {"error": str(error)}, HTTPStatus.BAD_REQUEST)
        vm = request.args.get(b"vm")
        name = None if vm is None else vm[0].decode(errors="replace")
        return reply(request, [one.as_json() for one in self._fleet.journal.last_activations(name, most)])


class Refusals(FleetPage):
    """``/v1/refusals``."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """List who was refused a start last, and why, newest first."""
        return reply(request, [one.as_json() for one in reversed(self._fleet.journal.refusals.values())])


class Standins(FleetPage):
    """``/v1/standins``."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> int:  # noqa: N802
        """Show what Synjitsu says."""
        return self.later(request, self._say(request))

    async def _say(self, request: Request) -> bytes:
        return reply(request, await standins(self._fleet))


class DryRun(FleetPage):
    """``/v1/dry-run``."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """List what would have been started."""
        starts = self._fleet.would_start.items()
        return reply(
            request, [{"name": name, "network": net, "type": type_, "starts": n} for (name, net, type_), n in starts]
        )


class Reload(FleetPage):
    """``/v1/reload``."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, reload: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call *reload* when posted to."""
        super().__init__(fleet)
        self._reload = reload

    def render_POST(self, request: Request) -> int:  # noqa: N802
        """Read the zones anew; if one is bad, say why and serve the old ones."""
        return self.later(request, self._do(request))

    async def _do(self, request: Request) -> bytes:
        try:
            await self._reload()
        except JitsuError as error:
            return reply(request, {"error": str(error)}, HTTPStatus.CONFLICT)
        return reply(request, {"reloaded": True})
