"""Signs of readiness: delay on a clock, port on loopback, and which of them a VM has."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from jitsu_tw.backends.memory import MemoryBackend
from jitsu_tw.ijitsu import Guest, IReadiness
from jitsu_tw.readiness import Strategies
from jitsu_tw.readiness import port as room
from jitsu_tw.readiness.delay import Delay
from jitsu_tw.readiness.port import Port, pin
from jitsu_tw.readiness.xenstore import XenstoreKey
from test.support import BoundedClock, vm


class ChoiceTests(SynchronousTestCase):
    """`Strategies`."""

    def test_signs(self) -> None:
        """A VM has the signs whose keys it has; a port only where its guest can be reached."""
        backend: Any = MemoryBackend(reactor=BoundedClock())
        for reachable, keys, expected in (
            (True, {}, []),
            (True, {"response_delay": 1.0}, [Delay]),
            (True, {"wait_for_port": 80}, [Port]),
            (True, {"response_delay": 1.0, "wait_for_port": 80}, [Delay, Port]),
            (False, {"response_delay": 1.0, "wait_for_port": 80}, [Delay]),
            (True, {"wait_for_key": "data/ready"}, [XenstoreKey]),
            (True, {"response_delay": 1.0, "wait_for_key": "data/ready", "wait_for_port": 80}, [Port, XenstoreKey]),
        ):
            backend.reachable = reachable
            signs = Strategies(BoundedClock()).of(vm(**keys), backend)
            self.assertEqual(expected, [type(sign) for sign in signs])
            for sign in signs:
                self.assertTrue(verifyObject(IReadiness, sign))


class DelayTests(SynchronousTestCase):
    """`Delay`."""

    def test_delay(self) -> None:
        """It is ready so many seconds later; a wait that is cancelled leaves nothing behind."""
        clock = BoundedClock()
        ready = Delay(clock).wait(vm(response_delay=0.5), Guest())
        clock.advance(0.4)
        self.assertNoResult(ready)
        clock.advance(0.1)
        self.successResultOf(ready)
        ready = Delay(clock).wait(vm(response_delay=0.5), Guest())
        ready.cancel()
        self.failureResultOf(ready, CancelledError)
        self.assertEqual([], clock.getDelayedCalls())


class PortTests(TestCase):
    """`Port`, on loopback; trial sees to it that nothing of a wait is left in the reactor."""

    def setUp(self) -> None:
        """Find a free port of an address of loopback that nobody else uses; loopback has no MACs to tell."""
        self.patch(Port, "_may_pin", False)  # noqa: FBT003
        self.host = "127.8.8.8"
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.number = probe.getsockname()[1]

    def listen(self, host: str = "") -> None:
        """Begin to listen on the port."""
        factory: Any = Factory.forProtocol(Protocol)
        factory.noisy = False
        port = reactor.listenTCP(self.number, factory, interface=host or self.host)
        self.addCleanup(port.stopListening)

    def wait(self, *more: str) -> Deferred[None]:
        """Wait for the port on the address, and on *more*."""
        addresses = tuple(ip_address(host) for host in (self.host, *more))
        return Port(reactor).wait(vm(ip=addresses, wait_for_port=self.number), Guest(("52:54:00:00:00:01",)))

    async def test_listens(self) -> None:
        """It is ready when the port answers, and not before."""
        ready = self.wait()
        await deferLater(reactor, 0.05)
        self.assertFalse(ready.called)
        self.listen()
        await ready.addTimeout(10, reactor)

    async def test_listens_already(self) -> None:
        """A port that answers already is ready at once."""
        self.listen()
        await self.wait().addTimeout(10, reactor)

    async def test_any_address(self) -> None:
        """One of the VM's addresses is enough."""
        self.listen("::1")
        await self.wait("::1").addTimeout(10, reactor)

    async def test_cancelled(self) -> None:
        """A wait that is cancelled ends, with all its tries."""
        ready = self.wait()
        await deferLater(reactor, 0.03)
        ready.cancel()
        await self.assertFailure(ready, CancelledError)

    async def test_cannot_pin(self) -> None:
        """Where the kernel cannot be told MACs, that is said once, and the wait goes on."""

        async def refused(*_: object) -> None:
            raise PermissionError("Operation not permitted")

        self.patch(room, "pin", refused)
        self.patch(Port, "_may_pin", True)  # noqa: FBT003
        ready = self.wait()
        await deferLater(reactor, 0.03)
        self.assertFalse(Port._may_pin)
        self.listen()
        await ready.addTimeout(10, reactor)

    async def test_no_way(self) -> None:
        """An address that there is no route to is passed over, and nobody else loses anything by that."""
        code = 2

        async def ip(*_: object, **__: object) -> tuple[bytes, bytes, int]:
            return b"", b"RTNETLINK answers: Network is unreachable", code

        self.patch(room, "getProcessOutputAndValue", ip)
        await pin(ip_address("2001:db8::1"), "52:54:00:00:00:01", reactor)
        code = 1
        await self.assertFailure(
            Deferred.fromCoroutine(pin(ip_address("2001:db8::1"), "52:54:00:00:00:01", reactor)), OSError
        )

    async def test_pins_neighbours_only(self) -> None:
        """Only a neighbour's MAC is told to the kernel, and only where nothing has answered."""
        asked: list[tuple[str, ...]] = []
        routes = {
            "127.8.8.8": b'[{"dev": "lo", "type": "local"}]',
            "192.0.2.1": b'[{"dev": "eth0", "gateway": "10.0.0.1"}]',
            "10.0.0.9": b'[{"dev": "br0"}]',
        }

        async def ip(_: object, *arguments: str) -> bytes:
            asked.append(arguments)
            return routes[arguments[-1]] if "get" in arguments else found

        self.patch(room, "_ip", ip)
        entry = ("10.0.0.9", "dev", "br0")
        for found in (b"[]", b'[{"dst": "10.0.0.9", "state": ["INCOMPLETE"]}]', b'[{"state": ["STALE"]}]'):
            asked.clear()
            for host in routes:
                await pin(ip_address(host), "52:54:00:00:00:01", reactor)
            told = [
                ("-4", "neigh", "flush", "to", *entry),
                ("-4", "-json", "neigh", "show", "to", *entry),
                ("-4", "neigh", "replace", *entry, "lladdr", "52:54:00:00:00:01", "nud", "reachable"),
            ]
            # What the network has answered is not replaced.
            expected = told[:2] if b"STALE" in found else told
            self.assertEqual(expected, [arguments for arguments in asked if "neigh" in arguments])

    async def test_tries_all_macs(self) -> None:
        """The guest's MACs are tried in turns, the configuration's and the hypervisor's: any may be wrong."""
        tried: list[str] = []

        async def pin(_: object, mac: str, __: object) -> None:
            tried.append(mac)

        self.patch(room, "pin", pin)
        self.patch(Port, "_may_pin", True)  # noqa: FBT003
        clock: Any = MemoryReactorClock()
        ready = Port(clock).wait(vm(wait_for_port=self.number, mac=("a",)), Guest(("b", "a")), 1000.0)
        clock.pump([0.05] * 63)
        ready.cancel()
        self.assertEqual(["a", "b", "a", "b"], tried)
        await self.assertFailure(ready, CancelledError)
        self.assertEqual([], clock.getDelayedCalls())

    async def test_ready_at_once(self) -> None:
        """For a guest that goes on where it was, and answers at once, no kernel is asked for anything."""
        tried: list[str] = []

        async def pin(_: object, mac: str, __: object) -> None:
            tried.append(mac)

        self.patch(room, "pin", pin)
        self.patch(Port, "_may_pin", True)  # noqa: FBT003
        self.listen()
        await self.wait().addTimeout(10, reactor)
        await deferLater(reactor, 2 * room.PIN_AFTER)
        self.assertEqual([], tried)
