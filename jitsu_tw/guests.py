"""
Where guests ask for themselves: HTTP on addresses of the bridges (`guests`).

A guest is known by its address, and by the MAC that the host's kernel has for that neighbour: it must be one that the
VM's hypervisor, or its configuration, says. A guest sees and changes its own VM and no other; it is told of no other.

Each guest has a share of the connections and of the time, as clients of the control endpoint have (`control.web`).
"""

from __future__ import annotations

from http import HTTPStatus
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.task import LoopingCall
from twisted.web.server import NOT_DONE_YET

from jitsu_tw.control.events import STILL_HERE, Reader, written
from jitsu_tw.control.routes import RefusalError, argument, number
from jitsu_tw.control.web import Guarded
from jitsu_tw.dns.connections import Connections
from jitsu_tw.errors import BackendError
from jitsu_tw.neighbours import mac_of
from jitsu_tw.networks import packed
from jitsu_tw.vm.guests import LONGEST_HOLD

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.control.web import Channel, Request
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: The most connections, of all guests, and of one.
MOST_CONNECTIONS: Final = 500
MOST_FROM_ONE: Final = 4

#: How many requests a guest may make at once, and how many a second in the long run.
BURST: Final = 10.0
PER_SECOND: Final = 1.0

#: Seconds, at least, between two searches of all VMs for an address that none had before.
SEARCH_EVERY: Final = 10.0

UNKNOWN: Final = "only guests of this Jitsu may ask here, each for itself, and this address is none of theirs"
OTHER_MAC: Final = "this address is a guest's, but that guest has another MAC than the neighbour that asks"


class GuestSite(Guarded):
    """The guests' endpoint."""

    def __init__(self, fleet: Fleet, reactor: Any, mac_of: Callable[[str], str | None] = mac_of) -> None:
        """
        Serve the guests of *fleet*.

        Args:
            fleet: has their VMs.
            reactor: calls later.
            mac_of: returns the MAC of the neighbour with an address; None if it is none.
        """
        self._fleet, self._reactor, self._mac_of = fleet, reactor, mac_of
        self._names: dict[bytes, str] = {}
        self._searched = -SEARCH_EVERY
        self._spent: dict[str, tuple[float, float]] = {}
        self._readers: set[Reader] = set()
        self._still_here = LoopingCall(self._keep_alive)
        self._still_here.clock = reactor
        routes = (
            ("GET", "/self", self._for_itself(self._show)),
            ("POST", "/self/hold", self._for_itself(self._hold)),
            ("POST", "/self/release", self._for_itself(self._release)),
            ("POST", "/self/sleep", self._for_itself(self._sleep)),
            ("GET", "/self/events", self._for_itself(self._events)),
        )
        super().__init__(routes, {}, None, reactor)
        self.connections: Connections[Channel] = Connections(MOST_CONNECTIONS, MOST_FROM_ONE)

    def share_of(self, peer: object) -> bytes:
        """Return the address of *peer*: all guests are in few networks."""
        return packed(peer.host)  # type: ignore[attr-defined]

    def check(self, request: Request) -> None:
        """
        Look at what every request must have.

        Raises:
            RefusalError: a page from elsewhere has it sent, or this address is none of a guest's, or asks too often.
        """
        self.check_page(request, by_name=False)
        self._spend(request, self._named(request))

    # Which guest asks.

    def _named(self, request: Request) -> Machine:
        """
        Return the VM with the address that *request* is from.

        Raises:
            RefusalError: there is none.
        """
        address, now = packed(request.getClientAddress().host), self._reactor.seconds()
        machine = self._known(address)
        if machine is None and now - self._searched >= SEARCH_EVERY:
            self._searched = now
            self._names = {ip.packed: name for name, one in self._fleet.machines.items() for ip in one.vm.ip}
            machine = self._known(address)
        if machine is None:
            raise RefusalError(HTTPStatus.FORBIDDEN, UNKNOWN)
        return machine

    def _known(self, address: bytes) -> Machine | None:
        machine = self._fleet.machines.get(self._names.get(address, ""))
        return machine if machine is not None and any(ip.packed == address for ip in machine.vm.ip) else None

    def _spend(self, request: Request, machine: Machine) -> None:
        """
        Count *request* of the guest of *machine*.

        Raises:
            RefusalError: it asks too often.
        """
        now, name = self._reactor.seconds(), machine.vm.name
        level, at = self._spent.get(name, (0.0, now))
        level = max(0.0, level - (now - at) * PER_SECOND) + 1
        if level > BURST:
            request.setHeader("Retry-After", "1")
            raise RefusalError(HTTPStatus.TOO_MANY_REQUESTS, f"a guest may ask {PER_SECOND:g} times in a second")
        self._spent[name] = level, now
        if len(self._spent) > 2 * len(self._fleet.machines):
            self._spent = {one: spent for one, spent in self._spent.items() if one in self._fleet.machines}

    def _for_itself(self, function: Callable[[Request, Machine], object]) -> Callable[[Request], object]:
        """Return what calls *function* with the VM of the guest that asks."""

        async def answer(request: Request) -> object:
            machine, gone = self._named(request), request.notifyFinish()
            gone.addErrback(lambda _: None)
            try:
                guest = await machine.backend.guest(machine.uuid)
                # Now, not before: meanwhile the address may have become another neighbour's.
                mac = self._mac_of(request.getClientAddress().host)
            except (BackendError, OSError) as error:
                why = "which guest this is cannot be found out now; try again later"
                raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, why) from error
            if mac is None or mac not in {*guest.macs, *machine.vm.mac}:
                raise RefusalError(HTTPStatus.FORBIDDEN, OTHER_MAC)
            return b"" if gone.called else function(request, machine)

        return answer

    # What it may see and do.

    def _show(self, _: Request, machine: Machine) -> dict[str, Any]:
        """Return what the guest may know of its own VM; other VMs are in none of it."""
        leases = self._fleet.leases
        lease = leases.status(machine)
        return {
            "name": machine.vm.name,
            "state": machine.state.shown,
            "mode": machine.vm.mode.value,
            "idle": machine.vm.idle,
            "lease_left": lease.left if lease is not None and isfinite(lease.left) else None,
            "why": None if lease is None else lease.words,
            "held": leases.wakeups.is_held(machine.vm.name),
            "held_by_guest": leases.guests.held(machine),
            "connections": None if lease is None else lease.connections,
        }

    def _hold(self, request: Request, machine: Machine) -> dict[str, Any]:
        seconds = number(request, "seconds", 0, LONGEST_HOLD) if argument(request, "seconds") else 0
        if not seconds:
            raise RefusalError(HTTPStatus.BAD_REQUEST, f"say for how long: ?seconds=N, from 1 to {LONGEST_HOLD}")
        self._fleet.leases.guests.hold(machine, seconds)
        return self._show(request, machine)

    def _release(self, request: Request, machine: Machine) -> dict[str, Any]:
        self._fleet.leases.guests.release(machine)
        return self._show(request, machine)

    def _sleep(self, request: Request, machine: Machine) -> dict[str, Any]:
        self._fleet.leases.guests.sleep(machine)
        return self._show(request, machine)

    def _events(self, request: Request, machine: Machine) -> Any:
        """Send ``stop``, with the seconds left, before the VM is stopped, and ``stay`` if it is not after all."""
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        if request.method == b"HEAD":
            return b""
        request.write(b"retry: 1000\n\n")
        reader = Reader(request)
        end = self._fleet.leases.guests.listen(machine, lambda event: reader.send(written(event)))
        self._readers.add(reader)
        request.notifyFinish().addBoth(self._gone, reader, end)
        if not self._still_here.running:
            self._still_here.start(STILL_HERE, now=False)
        return NOT_DONE_YET

    def _gone(self, _: object, reader: Reader, end: Callable[[], None]) -> None:
        end()
        self._readers.discard(reader)
        if not self._readers and self._still_here.running:
            self._still_here.stop()

    def _keep_alive(self) -> None:
        for reader in list(self._readers):
            reader.send(b": still here\n\n")
