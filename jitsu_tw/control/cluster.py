"""``/v1/nodes`` and ``/v1/hosts``: who serves the zones with us, and where VMs may run; and who is drained."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

from jitsu_tw.control.web import FleetPage, Refusal, reply
from jitsu_tw.errors import JitsuError

if TYPE_CHECKING:
    from twisted.web.resource import Resource
    from twisted.web.server import Request

    from jitsu_tw.vm.fleet import Fleet


def nodes(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the nodes that serve the zones, this one among them, by name."""
    return [attrs.asdict(one) for one in fleet.cluster.nodes]


def hosts(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the hosts, in the order of the configuration."""
    return [attrs.asdict(one) for one in fleet.cluster.hosts]


class Members(FleetPage):
    """``/v1/nodes`` or ``/v1/hosts``."""

    def __init__(self, fleet: Fleet, what: str) -> None:
        """Show *what* there are."""
        super().__init__(fleet)
        self._what, self._list = what, {"nodes": nodes, "hosts": hosts}[what]

    def getChild(self, path: bytes, request: Request) -> Resource:  # noqa: ARG002, N802
        """Return the page of the one with that name."""
        name = path.decode(errors="replace")
        if not path:
            return self
        if not any(one["name"] == name for one in self._list(self._fleet)):
            return Refusal(HTTPStatus.NOT_FOUND, f"no such {self._what.removesuffix('s')}")
        page = FleetPage(self._fleet)
        for verb, undo in ((b"drain", False), (b"undrain", True)):
            page.putChild(verb, Drain(self._fleet, self._what, name, undo=undo))
        return page

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """List them."""
        return reply(request, self._list(self._fleet))


class Drain(FleetPage):
    """Takes a host or a node out of service, or back."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, what: str, name: str, *, undo: bool) -> None:
        """Drain the one of that *name* when posted to, or *undo* that."""
        super().__init__(fleet)
        self._what, self._name, self._undo = what, name, undo

    def render_POST(self, request: Request) -> int:  # noqa: N802
        """Do it; answer with all of them."""
        return self.later(request, self._do(request))

    async def _do(self, request: Request) -> bytes:
        try:
            await self._fleet.cluster.drain(self._what, self._name, undo=self._undo)
        except JitsuError as error:
            return reply(request, {"error": str(error)}, HTTPStatus.CONFLICT)
        return reply(request, {"nodes": nodes, "hosts": hosts}[self._what](self._fleet))
