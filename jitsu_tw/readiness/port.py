"""
Ready when a TCP connection from here succeeds.

Two things would make this slow, and neither is the guest's fault. A SYN that is sent before the guest listens is lost,
and the kernel repeats it only after a second: so a new connection is tried every few milliseconds, and old ones are
given up soon. And Linux asks for an unknown neighbour's MAC only once a second: so, where that is allowed, the kernel
is made to ask anew (by iproute2's `ip`), and until there is an answer, a MAC that the guest should have is in the
neighbour table. Such a MAC may be wrong, as the guest's address may be on another interface, or at a MAC that no
hypervisor knows: none stays for longer than `PIN_EVERY` without the network being asked, and none replaces an answer.
"""

from __future__ import annotations

import json
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger

from jitsu_tw import parsers
from jitsu_tw.keys import Key, Limits
from jitsu_tw.readiness.strategy import EVERY, Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jitsu_tw.ijitsu import Guest
    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM

#: Seconds until a try without an answer is given up: longer than any round trip within a site.
GIVE_UP: Final = 0.25

#: What iproute2's `ip` ends with where the kernel says no.
REFUSED: Final = 2

#: Seconds from one question of the kernel's to the next, and for which it waits for an answer before a MAC is tried.
PIN_EVERY: Final = 1.0
ANSWERS_IN: Final = 0.1

#: Seconds until the kernel is made to ask at all: a guest that goes on where it was has answered by then.
PIN_AFTER: Final = 0.03

#: States of the kernel's neighbours without an answer.
UNANSWERED: Final = {"INCOMPLETE", "FAILED", "NONE"}

#: Makes connections that say nothing, to the guest and to the log.
QUIET: Final = Factory.forProtocol(Protocol)
QUIET.noisy = False


class Port(Strategy):
    """`wait_for_port` answers on one of the VM's addresses."""

    log = Logger()
    key = Key(parsers.port, "ready when this TCP port answers", own=Limits())
    by_network = tries_port = True
    _may_pin: ClassVar[bool] = True

    def wait(self, vm: VM, guest: Guest, every: float = EVERY) -> Deferred[None]:
        """Fire when the port answers, which is tried every *every* seconds. The connection is closed at once."""
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
        macs = cycle(dict.fromkeys((*vm.mac, *guest.macs)))
        calls = LoopingCall(self._pin, vm.ip, macs, tries), LoopingCall(self._knock, vm, tries, opened)
        for call, seconds in zip(calls, (PIN_EVERY, every), strict=True):
            call.clock = self._reactor
            call.start(seconds)
        return done

    def _knock(self, vm: VM, tries: set[Deferred[Any]], opened: Callable[[], None]) -> None:
        """Try one connection to each address."""
        for address in vm.ip:
            kind = TCP4ClientEndpoint if address.version == 4 else TCP6ClientEndpoint
            endpoint = kind(self._reactor, str(address), vm.readiness["wait_for_port"], GIVE_UP)
            attempt = self._connect(vm, endpoint)
            tries.add(attempt)
            attempt.addBoth(self._knocked, attempt, tries, opened)

    def _connect(self, vm: VM, endpoint: Any) -> Deferred[Any]:  # noqa: ARG002
        """Fire with a protocol, which is connected, if *vm*'s guest has answered as it should; else fail."""
        connected: Deferred[Any] = endpoint.connect(QUIET)
        return connected

    @staticmethod
    def _knocked(result: Any, attempt: Deferred[Any], tries: set[Deferred[Any]], opened: Callable[[], None]) -> None:
        tries.discard(attempt)
        if isinstance(result, Protocol):
            assert result.transport is not None
            result.transport.loseConnection()
            opened()

    def _pin(
        self, addresses: tuple[Address, ...], macs: Iterator[str], tries: set[Deferred[Any]]
    ) -> Deferred[None] | None:
        """Make the kernel ask for the guest, and try the next of its MACs, if it is a neighbour and that is allowed."""
        mac = next(macs, None)
        if mac is None or not Port._may_pin:
            return None
        pinned = Deferred.fromCoroutine(self._pin_all(addresses, mac))
        tries.add(pinned)
        pinned.addErrback(self._cannot_pin).addBoth(lambda _: tries.discard(pinned))
        return pinned

    async def _pin_all(self, addresses: tuple[Address, ...], mac: str) -> None:
        await deferLater(self._reactor, PIN_AFTER)
        for address in addresses:
            await pin(address, mac, self._reactor)

    def _cannot_pin(self, failure: Any) -> None:
        if failure.trap(OSError, CancelledError) is CancelledError:
            return
        Port._may_pin = False
        self.log.info(
            "guests' MACs cannot be told to the kernel ({error}): finding a booted guest may take a second more",
            error=failure.getErrorMessage(),
        )


class NoRouteError(OSError):
    """The kernel has no route to an address: others may have one."""


async def pin(address: Address, mac: str, reactor: Any) -> None:
    """
    Make the kernel ask for *address*; if there is no answer soon, put *mac* into its neighbour table.

    Nothing is done where the address is behind a router, here or nowhere.

    Raises:
        OSError: there is no `ip`, or it is not allowed.
    """
    family = f"-{address.version}"
    try:
        out = await _ip(reactor, family, "-json", "route", "get", str(address))
    except NoRouteError:
        return
    route = json.loads(out)[0]
    if "gateway" in route or "via" in route or route.get("type") == "local" or address.is_loopback:
        return
    entry = (str(address), "dev", route["dev"])
    await _ip(reactor, family, "neigh", "flush", "to", *entry)  # all but an entry that an operator has made
    await deferLater(reactor, ANSWERS_IN)  # the tries go on meanwhile, and the first of them makes the kernel ask
    found = json.loads(await _ip(reactor, family, "-json", "neigh", "show", "to", *entry) or "[]")
    if not found or UNANSWERED & set(found[0]["state"]):
        await _ip(reactor, family, "neigh", "replace", *entry, "lladdr", mac, "nud", "reachable")


async def _ip(reactor: Any, *arguments: str) -> bytes:
    """Run iproute2's `ip` and return what it prints; OSError with its own words where it fails."""
    out, err, code = await getProcessOutputAndValue("ip", arguments, env=None, reactor=reactor)
    if code == REFUSED and "route" in arguments:
        raise NoRouteError(err.decode(errors="replace").strip())
    if code:
        raise OSError(err.decode(errors="replace").strip() or f"ip ended with {code}")
    return bytes(out)
