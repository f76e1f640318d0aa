"""
Ready when a TCP connection from here succeeds.

Two things would make this slow, and neither is the guest's fault. A SYN that is sent before the guest listens is lost,
and the kernel repeats it only after a second: so a new connection is tried every few milliseconds, and old ones are
given up soon. And Linux asks for an unknown neighbour's MAC only once a second: so, where we may, the guest's MAC,
which the hypervisor knows, is put into the neighbour table first (by iproute2's `ip`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.ijitsu import IReadiness

if TYPE_CHECKING:
    from jitsu_tw.settings import VM, Address

#: Seconds from one try to the next.
EVERY: Final = 0.01

#: Seconds until a try that nobody answers is given up: longer than any round trip within a site.
GIVE_UP: Final = 0.25

#: Seconds for which the kernel keeps a neighbour without asking it (base_reachable_time is 30, of which it takes half).
PIN_EVERY: Final = 10.0


@implementer(IReadiness)
class Port:
    """`wait_for_port` answers on one of the VM's addresses."""

    log = Logger()
    _may_pin: ClassVar[bool] = True

    def __init__(self, reactor: Any) -> None:
        """Connect with *reactor*."""
        self._reactor = reactor
        self._factory = Factory.forProtocol(Protocol)
        self._factory.noisy = False

    def wait(self, vm: VM, macs: tuple[str, ...]) -> Deferred[None]:
        """Fire when a connection to the port has been made. It is closed at once."""
        assert vm.wait_for_port is not None
        tries: set[Deferred[Any]] = set()
        done: Deferred[None] = Deferred()

        def opened() -> None:
            if not done.called:
                done.callback(None)

        def end(result: Any) -> Any:
            for call in calls:
                call.stop()
            for attempt in list(tries):
                attempt.cancel()
            return result

        done.addBoth(end)
        calls = LoopingCall(self._pin, vm.ip, macs), LoopingCall(self._knock, vm.ip, vm.wait_for_port, tries, opened)
        for call, seconds in zip(calls, (PIN_EVERY, EVERY), strict=True):
            call.clock = self._reactor
            call.start(seconds)
        return done

    def _knock(self, addresses: tuple[Address, ...], port: int, tries: set[Deferred[Any]], opened: Any) -> None:
        """Try one connection to each address."""
        for address in addresses:
            kind = TCP4ClientEndpoint if address.version == 4 else TCP6ClientEndpoint
            attempt = kind(self._reactor, str(address), port, GIVE_UP).connect(self._factory)
            tries.add(attempt)
            attempt.addBoth(self._knocked, attempt, tries, opened)

    @staticmethod
    def _knocked(result: Any, attempt: Deferred[Any], tries: set[Deferred[Any]], opened: Any) -> None:
        tries.discard(attempt)
        if isinstance(result, Protocol):
            assert result.transport is not None
            result.transport.loseConnection()
            opened()

    def _pin(self, addresses: tuple[Address, ...], macs: tuple[str, ...]) -> None:
        """Tell the kernel the MAC of the guest's first interface, if that is a neighbour and we may."""
        if not (macs and Port._may_pin):
            return
        for address in addresses:
            pinned = Deferred.fromCoroutine(pin(address, macs[0], self._reactor))
            pinned.addErrback(self._cannot_pin)

    def _cannot_pin(self, failure: Any) -> None:
        failure.trap(OSError)
        Port._may_pin = False
        self.log.info(
            "guests' MACs cannot be told to the kernel ({error}): finding a booted guest may take a second more",
            error=failure.getErrorMessage(),
        )


async def pin(address: Address, mac: str, reactor: Any) -> None:
    """
    Put *address* and *mac* into the kernel's neighbour table, unless the address is behind a router or here.

    Raises:
        OSError: there is no `ip`, or we may not.
    """
    family = f"-{address.version}"
    out = await _ip(reactor, family, "-json", "route", "get", str(address))
    route = json.loads(out)[0]
    if "gateway" in route or "via" in route or route.get("type") == "local" or address.is_loopback:
        return
    await _ip(reactor, family, "neigh", "replace", str(address), "lladdr", mac, "nud", "reachable", "dev", route["dev"])


async def _ip(reactor: Any, *arguments: str) -> bytes:
    """Run iproute2's `ip` and return what it prints; OSError with its own words where it fails."""
    out, err, code = await getProcessOutputAndValue("ip", arguments, env=None, reactor=reactor)
    if code:
        raise OSError(err.decode(errors="replace").strip() or f"ip ended with {code}")
    return bytes(out)
