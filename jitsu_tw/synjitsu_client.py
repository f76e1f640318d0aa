"""
The client of Synjitsu: it announces the addresses that Synjitsu stands in for, and reports packets to them.

It has addresses and MACs, and does not know VMs. Announcements are kept, and sent again on each new connection: so
either side may be restarted at any time. Without Synjitsu everything else works, and first packets are lost.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed  # noqa: A004 -- it is no builtin one
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import cooperate, deferLater
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.protocols.policies import TimeoutMixin

from jitsu_tw import messages
from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import NoStandIn
from jitsu_tw.parsers import description
from jitsu_tw.reconnect import Reconnector, steady
from jitsu_tw.rules.flows import NO_FLOWS, Flows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from twisted.python.failure import Failure

#: Seconds until the first new try to connect, at most, and by how much longer each next one takes.
_PAUSE: Final = steady(0.05, 2.0, 1.5)

#: Seconds until a Synjitsu of another version or secret, or one whose messages make no sense, is tried again: it may
#: have been updated meanwhile.
AFTER_REFUSAL: Final = 5.0

#: Seconds that Synjitsu may take to answer a question about its state; and for which it may send nothing at all while
#: questions are open.
ANSWER_WITHIN: Final = 10.0

#: Seconds that it has to read the last messages when Jitsu ends.
ENDING: Final = 2.0

#: Characters of a reason that are kept.
LONGEST: Final = 200

#: How many announcements are sent in one go on a new connection.
BATCH: Final = 50


@attrs.frozen
class _Announced:
    """The last command about one address, to be sent again, and its arguments."""

    command: type[amp.Command]
    arguments: dict[str, Any]


class SynjitsuClient:
    """
    The connection to one Synjitsu.

    Args:
        endpoint: where it listens: ``unix:/run/jitsu/synjitsu.sock``, ``host:port``, or any other description of a
            client endpoint of Twisted's, as for TLS.
        on_summon: called with the address of a VM that is asleep, to which a packet was sent, the sender's, and whether
            it belongs to an open connection.
        on_seen: called with the address that a guest has announced itself.
        reactor: connects and waits.
        on_ready: called with the address whose guest has answered at its *knock*; it is handed over by then.
        on_elsewhere: called with the address that a guest does not use, and with the one that it uses in its place; or
            with an empty one when it has begun to use its own.
        secret: shown to Synjitsu; empty for none.
        on_change: called with this object when Synjitsu was connected or lost (`connected`), and when it refuses an
            address or no longer does.

    Attributes:
        refused: the addresses that Synjitsu does not stand in for, each with the reason.
    """

    log = Logger()

    def __init__(
        self,
        endpoint: str,
        on_summon: Callable[[str, str, bool], Any],
        on_seen: Callable[[str], Any],
        reactor: Any,
        on_ready: Callable[[str], Any] = lambda ip: None,  # noqa: ARG005
        on_elsewhere: Callable[[str, str], Any] = lambda ip, found: None,  # noqa: ARG005
        secret: str = "",
        on_change: Callable[[SynjitsuClient], Any] = lambda client: None,  # noqa: ARG005
    ) -> None:
        """
        Connect to nothing yet.

        Raises:
            ValueError: *endpoint* is none.
        """
        self.on_summon, self.on_seen, self._on_ready = on_summon, on_seen, on_ready
        self.on_elsewhere, self._secret, self._on_change = on_elsewhere, secret, on_change
        self.refused: dict[str, str] = {}
        self._where, self._reactor = endpoint, reactor
        self._announced: dict[str, _Announced] = {}
        self._protocol: _Conversation | None = None
        self._greeting: Deferred[None] = succeed(None)
        self._latest: Deferred[None] = succeed(None)
        self._is_away = self._was_cut = False
        self._open: _Conversation | None = None
        self._endpoint = clientFromString(reactor, description(endpoint))
        self._connecting: Deferred[Any] = succeed(None)
        self._ended: Deferred[None] = succeed(None)
        self._reconnector: Reconnector[_Conversation] = Reconnector(
            "Synjitsu", self._connect, lambda _: None, self._lost, lambda _: None, reactor, self._pause
        )

    def _connect(self) -> Deferred[_Conversation]:
        factory = Factory.forProtocol(_Conversation)
        factory.standin = self  # type: ignore[attr-defined]
        factory.noisy = False
        self._connecting = self._endpoint.connect(factory)
        return self._connecting

    def _pause(self, failures: int) -> float:
        """Return how many seconds to wait before Synjitsu is tried again, after *failures* to connect."""
        was_cut, self._was_cut = self._was_cut, False
        return AFTER_REFUSAL if was_cut else _PAUSE(failures)

    @property
    def reactor(self) -> Any:
        """The reactor that connects and waits."""
        return self._reactor

    @property
    def connected(self) -> bool:
        """Whether Synjitsu is there, and is sent the announcements."""
        return self._protocol is not None

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        self._reconnector.begin()

    def stop(self) -> Deferred[None]:
        """Disconnect for good. Synjitsu stands in for what was announced for a few seconds more."""
        self._is_away = True
        self._reconnector.end()
        self._connecting.cancel()
        if self._open is None:
            return succeed(None)
        self._ended = Deferred()
        self._open.transport.loseConnection()
        late = self._reactor.callLater(ENDING, self._open.transport.abortConnection)
        return self._ended.addCallback(lambda _: late.cancel() if late.active() else None)

    def announce(
        self,
        ip: str,
        macs: Iterable[str],
        *,
        asleep: bool,
        runs: bool = False,
        ports: Iterable[int] | None = None,
        wake_udp: Iterable[int] = (),
        handover: str = "wire",
        domid: int | None = None,
        knock: int | None = None,
        memory: bool | None = None,
    ) -> None:
        """
        Announce that Synjitsu is to stand in for *ip*.

        Args:
            ip: IPv4 or IPv6.
            macs: the guest's, the likeliest first; may be empty while they are not known.
            asleep: whether a SYN summons it; else it boots already.
            runs: whether its guest may run: then nothing is broadcast that a guest which probes its address would see.
            ports: the TCP ports that are worth a start; None means all.
            wake_udp: the UDP ports whose first datagrams are held, and are worth a start.
            handover: ``wire``, or ``xenstore`` for a guest with the Synjitsu TCP stack.
            domid: Xen's number of the guest.
            knock: the TCP port by which Synjitsu finds out that the guest is ready; `ready` need not be called then.
                It takes an address of Synjitsu's host on the guest's network.
            memory: whether the memory of the guest, which does not run, is kept, so that its connections go on; None if
                that is not known, or it boots.
        """
        arguments: dict[str, Any] = {
            "macs": list(macs),
            "asleep": asleep,
            "runs": runs,
            "handover": handover,
            "wake_udp": sorted(wake_udp),
        }
        if ports is not None:
            arguments["ports"] = sorted(ports)
        if domid is not None:
            arguments["domid"] = domid
        if knock is not None:
            arguments["knock"] = knock
        if memory is not None:
            arguments["memory"] = memory
        self._set(ip, _Announced(messages.Announce, arguments))

    def ready(self, ip: str, macs: Iterable[str] = ()) -> None:
        """Announce that the guest, which has *macs* (if empty, those announced), receives its packets now."""
        before = self._announced.get(_normal(ip))
        macs = list(macs) or (before.arguments["macs"] if before is not None else [])
        self._set(ip, _Announced(messages.Ready, {"macs": macs}))

    def withdraw(self, ip: str, *, failed: bool = False) -> None:
        """Announce that Synjitsu is to stand in for *ip* no longer; *failed* if its VM did not start."""
        if self._announced.pop(_normal(ip), None) is not None:
            self._send(messages.Withdraw, {"ip": _normal(ip), "failed": failed})

    def stop_announcing(self, ip: str) -> None:
        """Send no announcement of *ip* again: another node announces it."""
        self._announced.pop(_normal(ip), None)
        if self._open is not None:
            self._open.flows.pop(_normal(ip), None)

    def flows(self, ip: str) -> Flows | None:
        """Return the open TCP connections at *ip*; None while Synjitsu does not watch it, or has not told them yet."""
        ip = _normal(ip)
        told = self._protocol if self._greeting.called else None
        if told is None or ip in self.refused or ip not in self._announced:
            return None
        return told.flows.get(ip, NO_FLOWS)

    @deferred
    async def packets(self, ip: str) -> int | None:
        """Return how many packets of conversations the guest at *ip* has exchanged; None if nobody can count them."""
        if self._protocol is None or _normal(ip) in self.refused:
            return None
        try:
            count: int = (await self._ask(self._protocol, messages.Packets, ip=ip))["count"]
        except (ConnectionClosed, CancelledError, TimeoutError, *messages.NO_ANSWER):
            return None
        return count

    @deferred
    async def status(self) -> dict[str, Any]:
        """
        Return the addresses that Synjitsu stands in for, and its counters.

        The keys are ``standins``, a list of mappings with ``ip``, ``mac``, ``state`` (asleep, booting, up, failed),
        ``handover`` and ``held``; and ``counters``, a mapping.

        Raises:
            NoStandIn: (through the Deferred) there is no Synjitsu, or it went away meanwhile.
        """
        if self._protocol is None:
            raise NoStandIn(f"no Synjitsu answers at {self._where}")
        try:
            counters = await self._ask(self._protocol, messages.Counters)
            standins: dict[str, dict[str, Any]] = {}
            last = ""
            while True:
                page = (await self._ask(self._protocol, messages.Status, after=last))["standins"]
                before = len(standins)
                standins |= {one["ip"]: one for one in page}
                if len(page) < messages.PAGE or len(standins) == before:
                    break
                last = page[-1]["ip"]
        except (ConnectionClosed, CancelledError, TimeoutError) as error:
            raise NoStandIn(f"Synjitsu at {self._where} went away") from error
        except messages.NO_ANSWER as error:
            raise NoStandIn(f"Synjitsu at {self._where}: {error}") from error
        counted = {one["name"]: one["count"] for one in counters["counters"]}
        return {"standins": list(standins.values()), "counters": counted}

    def _ask(self, protocol: _Conversation, command: type[amp.Command], **arguments: Any) -> Deferred[dict[str, Any]]:
        """Return Synjitsu's answer, within `ANSWER_WITHIN` seconds."""
        answer: Deferred[dict[str, Any]] = protocol.callRemote(command, **arguments)
        return answer.addTimeout(ANSWER_WITHIN, self._reactor)

    # The conversation

    def listens(self, ip: str) -> None:
        """Handle that Synjitsu has handed a guest its packets, unless the address was announced anew meanwhile."""
        last = self._announced.get(ip)
        if last is None or (asleep := last.arguments.get("asleep")) is None:
            return
        if not asleep:
            self._announced[ip] = _Announced(messages.Ready, {"macs": last.arguments["macs"]})
        self._on_ready(ip)

    def flows_changed(self, ip: str, count: int, silent: int) -> None:
        """Store how many TCP connections are open at *ip*, and that the latest gave a sign *silent* seconds ago."""
        if ip in self._announced and self._open is not None:
            self._open.flows[ip] = Flows(count, self._reactor.seconds() - silent) if count else NO_FLOWS

    def _set(self, ip: str, announced: _Announced) -> None:
        """Keep an announcement, and send it, if it differs from the last."""
        ip = _normal(ip)
        # A guest that takes its SYNs from Xenstore has perhaps come between.
        if self._announced.get(ip) == announced:
            return
        self._announced[ip] = announced
        self._send(announced.command, {"ip": ip, **announced.arguments})

    def _send(self, command: type[amp.Command], arguments: dict[str, Any]) -> None:
        if self._protocol is not None:
            sent = self._protocol.callRemote(command, **arguments)
            sent.addCallbacks(self._sent, self._not_sent, (arguments["ip"],), errbackArgs=(command, arguments["ip"]))
            latest: Deferred[None] = Deferred()
            self._latest = latest
            sent.addCallback(lambda _: latest.callback(None))

    def heard(self) -> Deferred[None]:
        """Return a Deferred that fires when Synjitsu has carried out all that was sent; at once if it is away."""
        waiter: Deferred[None] = Deferred()
        self._latest.addCallback(waiter.callback)
        return waiter

    def _sent(self, _: dict[str, Any], ip: str) -> None:
        if self.refused.pop(ip, None) is not None:
            self._on_change(self)

    def _not_sent(self, failure: Failure, command: type[amp.Command], ip: str) -> None:
        if failure.check(ConnectionClosed) is not None:  # it is sent again on the next connection
            return
        reason = failure.getErrorMessage()[:LONGEST]
        if self.refused.get(ip) != reason:
            self.refused[ip] = reason
            self._on_change(self)
            self.log.error(
                "Synjitsu refuses {ip} ({command}), so clients wait for the answer instead: {reason}",
                command=command.__name__,
                ip=ip,
                reason=reason,
            )

    def begin(self, protocol: _Conversation) -> None:
        """Send all announcements on a new connection."""
        self._open = protocol
        self._greeting = self._greet(protocol)
        self._greeting.addErrback(self._greeting_failed, protocol)

    def _greeting_failed(self, failure: Failure, protocol: _Conversation) -> None:
        if failure.check(ConnectionClosed, CancelledError) is None:
            failure.trap(*messages.NO_ANSWER)
            protocol.cut(failure.getErrorMessage())

    @deferred
    async def _greet(self, protocol: _Conversation) -> None:
        try:
            await protocol.callRemote(messages.Hello, version=messages.VERSION, secret=self._secret)
        except (messages.WrongVersion, messages.Refused) as error:
            self._lost(str(error)[:LONGEST])
            await deferLater(self._reactor, AFTER_REFUSAL)
            assert protocol.transport is not None
            protocol.transport.loseConnection()
            return
        # Announcements from here on go out at once; one that is sent twice does no harm.
        self._protocol = protocol
        self._on_change(self)
        await cooperate(self._batches(list(self._announced))).whenDone()
        await protocol.callRemote(messages.AnnouncedAll)
        if self._is_away:
            self.log.info("Synjitsu is there again, at {place}: no SYN will be lost", place=self._where)
        else:
            self.log.info("connected to Synjitsu at {place}", place=self._where)
        self._is_away = False

    def _batches(self, ips: list[str]) -> Iterator[Deferred[None] | None]:
        """Send the announcements of *ips* again, some at a time."""
        for number, ip in enumerate(ips, 1):
            announced = self._announced.get(ip)
            if announced is not None:
                self._send(announced.command, {"ip": ip, **announced.arguments})
            if number % BATCH == 0:
                yield deferLater(self._reactor, 0)

    def ended(self) -> None:
        """Handle the end of the connection."""
        self._open = None
        was_there, self._protocol = self.connected, None
        self._greeting.cancel()
        self._reconnector.again("the connection was lost")
        if was_there:
            self._on_change(self)
        if not self._ended.called:
            self._ended.callback(None)

    def cut(self) -> None:
        """Note that the connection is cut, because Synjitsu's messages make no sense or do not come."""
        self._was_cut = True

    def _lost(self, reason: str) -> None:
        if not self._is_away:
            self._is_away = True
            self.log.warn(
                "no Synjitsu at {place} ({reason}): SYNs for VMs that boot will be lost until it is there",
                place=self._where,
                reason=reason,
            )


class _Conversation(messages.Peer, TimeoutMixin):
    """
    One connection to Synjitsu.

    Attributes:
        flows: by address, the open TCP connections that Synjitsu has reported.
    """

    flows: dict[str, Flows]
    complaints = messages.Complaints(SynjitsuClient.log)
    factory: Any

    @property
    def reactor(self) -> Any:
        """Return that of the `SynjitsuClient`."""
        return self.factory.standin.reactor

    def connectionMade(self) -> None:  # noqa: N802
        """Begin the conversation."""
        super().connectionMade()
        self.flows = {}
        self.factory.standin.begin(self)

    def sendBox(self, box: Any) -> None:  # noqa: N802
        """Send a message; after a question, octets must come within `ANSWER_WITHIN` seconds."""
        super().sendBox(box)
        if amp.ASK in box and self.timeOut is None:
            self.setTimeout(ANSWER_WITHIN)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take octets; more must come in time while questions are open."""
        super().dataReceived(data)
        self.setTimeout(ANSWER_WITHIN if self._outstandingRequests else None)

    def timeoutConnection(self) -> None:  # noqa: N802
        """Cut the connection to a Synjitsu that hangs: SYNs would be lost that it should hold."""
        self.cut(f"it has said nothing for {ANSWER_WITHIN:g} s")

    def cut(self, reason: str = "") -> None:
        """Cut the connection; it is made again later."""
        self.factory.standin.cut()
        super().cut(reason)

    @messages.Summon.responder
    def _summon(self, ip: str, source: str, flow: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002
        self.factory.standin.on_summon(ip, source, flow)
        return {}

    @messages.Seen.responder
    def _seen(self, ip: str) -> dict[str, Any]:
        self.factory.standin.on_seen(ip)
        return {}

    @messages.Elsewhere.responder
    def _elsewhere(self, ip: str, found: str) -> dict[str, Any]:
        self.factory.standin.on_elsewhere(ip, found)
        return {}

    @messages.Flows.responder
    def _flows(self, ip: str, open: int, silent: int) -> dict[str, Any]:  # noqa: A002 -- AMP gives names
        self.factory.standin.flows_changed(_normal(ip), open, silent)
        return {}

    @messages.Listens.responder
    def _listens(self, ip: str) -> dict[str, Any]:
        self.factory.standin.listens(ip)
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Handle the end of the connection."""
        super().connectionLost(reason)
        self.setTimeout(None)
        self.factory.standin.ended()


def _normal(ip: str) -> str:
    """Return an address in its usual form, so that equal addresses have equal texts."""
    return str(ip_address(ip))
