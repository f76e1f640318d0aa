"""
The control endpoint: JSON over HTTP.

``GET /v1/vms`` lists all VMs. ``POST /v1/vms/NAME/start`` and ``…/stop`` do what they say and answer when it is done,
with the VM as it is then. ``GET /v1/standins`` shows what Synjitsu holds, ``GET /metrics`` its counters, for
Prometheus. ``GET /v1/dry-run`` lists what a dry run would have started. ``POST /v1/reload`` reads the
zones anew. Errors are ``{"error": "…"}`` with a status of 4xx or 5xx.

It listens on loopback, where every user of the machine and every page in their browsers can reach it. So a browser's
request is taken only if it comes from a page of ours: its Origin and its Host must name one place, and by address.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from jitsu_tw.control.standins import metrics, standins
from jitsu_tw.errors import JitsuError
from jitsu_tw.vm.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.web.server import Request

    from jitsu_tw.vm.activation import Machine
    from jitsu_tw.vm.fleet import Fleet


def describe(fleet: Fleet, machine: Machine) -> dict[str, Any]:
    """Return a VM as the endpoint shows it; times are in seconds, `last_request_ts` since 1970."""
    stats = fleet.stats(machine)
    begin = machine.marks.get("query", 0.0)
    return {
        "name": machine.vm.name,
        "uuid": machine.uuid,
        "state": machine.state.value,
        "reason": machine.reason,
        "total_starts": stats.total_starts,
        "total_requests": stats.total_requests,
        "last_request_ts": stats.last_request_ts or None,
        "lease_left": fleet.lease_left(machine),
        "activation_ms": {step: round((when - begin) * 1000, 1) for step, when in machine.marks.items()},
    }


class Endpoint(Site):
    """The endpoint for *fleet*; it keeps no access log, because everything worth a line is logged where it happens."""

    noisy = False

    def __init__(self, fleet: Fleet, reload: Callable[[], None]) -> None:
        """Build the tree of pages; *reload* reads the zones anew."""
        top, version = Resource(), Resource()
        top.putChild(b"v1", version)
        version.putChild(b"vms", VMs(fleet))
        version.putChild(b"dry-run", DryRun(fleet))
        version.putChild(b"reload", Reload(fleet, reload))
        version.putChild(b"standins", StandIns(fleet))
        top.putChild(b"metrics", Metrics(fleet))
        super().__init__(top)

    def log(self, request: Any) -> None:
        """Say nothing."""


class Page(Resource):
    """What all pages share: JSON, and no answer to strange pages."""

    log = Logger()

    def __init__(self, fleet: Fleet) -> None:
        """Show *fleet*."""
        super().__init__()
        self._fleet = fleet

    def render(self, request: Request) -> Any:
        """Answer, unless a page from elsewhere made a browser ask."""
        if _is_foreign(request):
            return reply(request, {"error": "a page from elsewhere may not ask here"}, HTTPStatus.FORBIDDEN)
        return super().render(request)


def _is_foreign(request: Request) -> bool:
    host = (request.getHeader("host") or "").strip()
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"
        by_address = name == "localhost" or bool(ip_address(name))
    except ValueError:
        by_address = False
    origin = request.getHeader("origin")
    return not by_address or (origin is not None and urlsplit(origin).netloc != host)


def reply(request: Request, value: object, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    """Return *value* as JSON."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    return json.dumps(value).encode() + b"\n"


class VMs(Page):
    """``/v1/vms``."""

    def getChild(self, path: bytes, request: Request) -> Resource:  # noqa: ARG002, N802
        """Return the page of the VM with that name."""
        if not path:
            return self
        machine = self._fleet.machines.get(path.decode(errors="replace"))
        return Missing(self._fleet) if machine is None else OneVM(self._fleet, machine)

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """List the VMs, as an array."""
        return reply(request, [describe(self._fleet, machine) for machine in self._fleet.machines.values()])


class DryRun(Page):
    """``/v1/dry-run``."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """List what would have been started."""
        starts = self._fleet.would_start.items()
        return reply(
            request, [{"name": name, "network": net, "type": type_, "starts": n} for (name, net, type_), n in starts]
        )


class Asks(Page):
    """A page that has to ask somebody first."""

    isLeaf = True  # noqa: N815

    async def answer(self, request: Request) -> bytes:
        """Return what the page says."""
        raise NotImplementedError

    def render_GET(self, request: Request) -> int:  # noqa: N802
        """Answer when that is known."""
        gone = request.notifyFinish()
        gone.addErrback(lambda _: None)
        answered = Deferred.fromCoroutine(self.answer(request))
        answered.addCallback(lambda octets: gone.called or (request.write(octets), request.finish()))
        answered.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))
        return NOT_DONE_YET


class StandIns(Asks):
    """``/v1/standins``."""

    async def answer(self, request: Request) -> bytes:
        """Show who is stood in for, and what is held."""
        return reply(request, await standins(self._fleet))


class Metrics(Asks):
    """``/metrics``."""

    async def answer(self, request: Request) -> bytes:
        """Show Synjitsu's counters."""
        request.setHeader(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        return await metrics(self._fleet)


class Reload(Page):
    """``/v1/reload``."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, reload: Callable[[], None]) -> None:
        """Call *reload* when posted to."""
        super().__init__(fleet)
        self._reload = reload

    def render_POST(self, request: Request) -> bytes:  # noqa: N802
        """Read the zones anew; if one is bad, say why and serve the old ones."""
        try:
            self._reload()
        except JitsuError as error:
            return reply(request, {"error": str(error)}, HTTPStatus.CONFLICT)
        return reply(request, {"reloaded": True})


class Missing(Page):
    """No such VM."""

    isLeaf = True  # noqa: N815

    def render(self, request: Request) -> bytes:
        """Say so."""
        return reply(request, {"error": "no such VM"}, HTTPStatus.NOT_FOUND)


class OneVM(Page):
    """``/v1/vms/NAME`` and what can be done to it."""

    def __init__(self, fleet: Fleet, machine: Machine) -> None:
        """Show *machine*."""
        super().__init__(fleet)
        self._machine = machine
        self.putChild(b"start", Action(fleet, machine, self._start))
        self.putChild(b"stop", Action(fleet, machine, self._stop))

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """Show the VM."""
        return reply(request, describe(self._fleet, self._machine))

    async def _start(self) -> None:
        await self._fleet.start_vm(self._machine.vm.name)

    async def _stop(self) -> None:
        if await self._fleet.stop_vm(self._machine.vm.name) is State.UP:
            raise JitsuError(self._machine.reason)


class Action(Page):
    """Something that can be done to a VM."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, machine: Machine, action: Any) -> None:
        """Do *action*, a coroutine function, when posted to."""
        super().__init__(fleet)
        self._machine, self._action = machine, action

    def render_POST(self, request: Request) -> int:  # noqa: N802
        """Do it; answer with the VM as it is then, or with the reason why not."""
        gone = request.notifyFinish()
        gone.addErrback(lambda _: None)
        done = Deferred.fromCoroutine(self._action())
        done.addCallbacks(lambda _: (describe(self._fleet, self._machine), HTTPStatus.OK), self._refused)
        done.addCallback(lambda answer: gone.called or self._finish(request, *answer))
        done.addErrback(lambda failure: self.log.failure("unexpected, please report", failure))
        return NOT_DONE_YET

    @staticmethod
    def _refused(failure: Any) -> tuple[dict[str, Any], HTTPStatus]:
        failure.trap(JitsuError)
        return {"error": failure.getErrorMessage()}, HTTPStatus.CONFLICT

    @staticmethod
    def _finish(request: Request, value: object, status: HTTPStatus) -> None:
        request.write(reply(request, value, status))
        request.finish()
