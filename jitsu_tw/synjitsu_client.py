"""
Jitsu's side of Synjitsu: says whose addresses are to be stood in for, and hears who is wanted.

It knows addresses and MACs, nothing of VMs. What was said is remembered, and said again whenever a connection comes
about: so either side may start anew at any time. Without Synjitsu everything else works, and first packets are lost.
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
from jitsu_tw.reconnect import Reconnector, steady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from twisted.python.failure import Failure

#: Seconds until the first new try to connect, at most, and by how much longer each next one takes.
_PAUSE: Final = steady(0.05, 2.0, 1.5)

#: Seconds until a Synjitsu of another version or secret, or one that is not understood, is tried again: one of the two
#: may be updated.
AFTER_REFUSAL: Final = 5.0

#: Seconds that Synjitsu may take to answer a question about what it does; and for which it may say nothing at all while
#: it has questions to answer.
ANSWER_WITHIN: Final = 10.0

#: Seconds that it has to take what is left for it when Jitsu ends.
ENDING: Final = 2.0

#: Characters of a reason that are kept.
LONGEST: Final = 200

#: How many announcements are sent at once after a connection came about.
BATCH: Final = 50


@attrs.frozen
class _Announced:
    """What was said of one address, to be said again: one command and what goes with it."""

    command: type[amp.Command]
    arguments: dict[str, Any]


class SynjitsuClient:
    """
    One Synjitsu, as Jitsu sees it.

    Args:
        endpoint: where it listens: ``unix:/run/jitsu/synjitsu.sock``, ``host:port``, or any other description of a
            client endpoint of Twisted's, as for TLS.
        on_summon: called with the address that somebody sends to while its VM is asleep, and that somebody's.
        on_seen: called with the address that a guest has announced itself.
        reactor: connects and waits.
        on_ready: called with the address whose guest has answered at its *knock*; it is handed over by then.
        on_elsewhere: called with the address that a guest does not use, and with the one that it uses in its place; or
            with an empty one when it has begun to use its own.
        secret: what Synjitsu wants to be shown; empty for nothing.

    Attributes:
        on_change: called when it has come or gone (`connected`), and when it refuses an address or no longer does.
        refused: the addresses that Synjitsu does not stand in for, each with the reason.
    """

    log = Logger()

    def __init__(
        self,
        endpoint: str,
        on_summon: Callable[[str, str], Any],
        on_seen: Callable[[str], Any],
        reactor: Any,
        on_ready: Callable[[str], Any] = lambda ip: None,  # noqa: ARG005
        on_elsewhere: Callable[[str, str], Any] = lambda ip, found: None,  # noqa: ARG005
        secret: str = "",
    ) -> None:
        """Say nothing yet; raise ValueError if *endpoint* is none."""
        self.on_summon, self.on_seen, self._on_ready = on_summon, on_seen, on_ready
        self.on_elsewhere, self._secret = on_elsewhere, secret
        self.refused: dict[str, str] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._place, self._reactor = endpoint, reactor
        self._said: dict[str, _Announced] = {}
        self._protocol: _Conversation | None = None
        self._saying: Deferred[None] = succeed(None)
        self._latest: Deferred[None] = succeed(None)
        self._missed = self._was_cut = False
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
        """What connects and waits."""
        return self._reactor

    @property
    def connected(self) -> bool:
        """Whether Synjitsu is there, and knows what there is to know."""
        return self._protocol is not None

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        self._reconnector.begin()

    def stop(self) -> Deferred[None]:
        """Disconnect, and stay so. What was announced is stood in for a few seconds more."""
        self._missed = True
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
        keeps: bool = False,
    ) -> None:
        """
        Have *ip* stood in for.

        Args:
            ip: IPv4 or IPv6.
            macs: the guest's, the likeliest first; may be empty while they are not known.
            asleep: whether a SYN summons it; else it boots already.
            runs: whether its guest may run: then nothing is broadcast that a guest which probes its address would read.
            ports: the TCP ports that are worth a start; None means all.
            wake_udp: the UDP ports whose first datagrams are held, and are worth a start.
            handover: ``wire``, or ``xenstore`` for a guest with the Synjitsu TCP stack.
            domid: Xen's number of the guest.
            knock: the TCP port by which Synjitsu finds out that the guest is ready; `ready` need not be called then.
                It takes an address of Synjitsu's host on the guest's network.
            keeps: what is held is not handed over then, but when `ready` is called.
        """
        arguments: dict[str, Any] = {
            "macs": list(macs),
            "asleep": asleep,
            "runs": runs,
            "handover": handover,
            "wake_udp": sorted(wake_udp),
            "keeps": keeps,
        }
        if ports is not None:
            arguments["ports"] = sorted(ports)
        if domid is not None:
            arguments["domid"] = domid
        if knock is not None:
            arguments["knock"] = knock
        self._say(ip, _Announced(messages.Announce, arguments))

    def ready(self, ip: str, macs: Iterable[str] = ()) -> None:
        """Tell that the guest, which has *macs* (if empty, those announced), takes its packets now."""
        before = self._said.get(_normal(ip))
        macs = list(macs) or (before.arguments["macs"] if before is not None else [])
        self._say(ip, _Announced(messages.Ready, {"macs": macs}))

    def withdraw(self, ip: str, *, failed: bool = False) -> None:
        """Have *ip* stood in for no longer; *failed* if that is because its VM did not start."""
        if self._said.pop(_normal(ip), None) is not None:
            self._send(messages.Withdraw, {"ip": _normal(ip), "failed": failed})

    def hush(self, ip: str) -> None:
        """Do not say again what was said of *ip*: somebody else speaks for it."""
        self._said.pop(_normal(ip), None)

    @deferred
    async def status(self) -> dict[str, Any]:
        """
        Return who is stood in for, and the counters.

        The keys are ``standins``, a list of mappings with ``ip``, ``mac``, ``state`` (asleep, booting, up, failed),
        ``handover`` and ``held``; and ``counters``, a mapping.

        Raises:
            NoStandIn: (through the Deferred) there is no Synjitsu, or it went away meanwhile.
        """
        if self._protocol is None:
            raise NoStandIn(f"no Synjitsu answers at {self._place}")
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
            raise NoStandIn(f"Synjitsu at {self._place} went away") from error
        except messages.NO_ANSWER as error:
            raise NoStandIn(f"Synjitsu at {self._place}: {error}") from error
        counted = {one["name"]: one["count"] for one in counters["counters"]}
        return {"standins": list(standins.values()), "counters": counted}

    def _ask(self, protocol: _Conversation, command: type[amp.Command], **arguments: Any) -> Deferred[dict[str, Any]]:
        """Return what Synjitsu answers in time."""
        answer: Deferred[dict[str, Any]] = protocol.callRemote(command, **arguments)
        return answer.addTimeout(ANSWER_WITHIN, self._reactor)

    # The conversation

    def listens(self, ip: str) -> None:
        """Take note that a guest has been handed its packets, unless it is to be stood in for again already."""
        said = self._said.get(ip)
        if said is not None and said.arguments.get("asleep") is False:
            if said.arguments["keeps"]:
                self._on_ready(ip)
                return
            self._said[ip] = _Announced(messages.Ready, {"macs": said.arguments["macs"]})
            self._on_ready(ip)

    def _say(self, ip: str, said: _Announced) -> None:
        """Remember, and send if it is news and there is somebody to send it to."""
        ip = _normal(ip)
        # A guest that takes its SYNs from Xenstore has perhaps come between.
        if self._said.get(ip) == said:
            return
        self._said[ip] = said
        self._send(said.command, {"ip": ip, **said.arguments})

    def _send(self, command: type[amp.Command], arguments: dict[str, Any]) -> None:
        if self._protocol is not None:
            sent = self._protocol.callRemote(command, **arguments)
            sent.addCallbacks(self._sent, self._not_sent, (arguments["ip"],), errbackArgs=(command, arguments["ip"]))
            latest: Deferred[None] = Deferred()
            self._latest = latest
            sent.addCallback(lambda _: latest.callback(None))

    def heard(self) -> Deferred[None]:
        """Return a Deferred that fires when Synjitsu has done all that it has been told; at once if it is away."""
        waiter: Deferred[None] = Deferred()
        self._latest.addCallback(waiter.callback)
        return waiter

    def _sent(self, _: dict[str, Any], ip: str) -> None:
        if self.refused.pop(ip, None) is not None:
            self.on_change()

    def _not_sent(self, failure: Failure, command: type[amp.Command], ip: str) -> None:
        if failure.check(ConnectionClosed) is not None:  # it is said again on the next connection
            return
        reason = failure.getErrorMessage()[:LONGEST]
        if self.refused.get(ip) != reason:
            self.refused[ip] = reason
            self.on_change()
            self.log.error(
                "Synjitsu refuses {ip} ({command}), so clients wait for the answer instead: {reason}",
                command=command.__name__,
                ip=ip,
                reason=reason,
            )

    def begin(self, protocol: _Conversation) -> None:
        """Say everything on a new connection."""
        self._open = protocol
        self._saying = self._say_all(protocol)
        self._saying.addErrback(self._not_said, protocol)

    def _not_said(self, failure: Failure, protocol: _Conversation) -> None:
        if failure.check(ConnectionClosed, CancelledError) is None:
            failure.trap(*messages.NO_ANSWER)
            protocol.cut(failure.getErrorMessage())

    @deferred
    async def _say_all(self, protocol: _Conversation) -> None:
        try:
            await protocol.callRemote(messages.Hello, version=messages.VERSION, secret=self._secret)
        except (messages.WrongVersion, messages.Refused) as error:
            self._lost(str(error)[:LONGEST])
            await deferLater(self._reactor, AFTER_REFUSAL)
            assert protocol.transport is not None
            protocol.transport.loseConnection()
            return
        # What is said from here on goes out at once; what is said twice does no harm.
        self._protocol = protocol
        self.on_change()
        await cooperate(self._batches(list(self._said))).whenDone()
        await protocol.callRemote(messages.AnnouncedAll)
        if self._missed:
            self.log.info("Synjitsu is there again, at {place}: no SYN will be lost", place=self._place)
        else:
            self.log.info("connected to Synjitsu at {place}", place=self._place)
        self._missed = False

    def _batches(self, ips: list[str]) -> Iterator[Deferred[None] | None]:
        """Say again what was said of *ips*, some at a time."""
        for number, ip in enumerate(ips, 1):
            said = self._said.get(ip)
            if said is not None:
                self._send(said.command, {"ip": ip, **said.arguments})
            if number % BATCH == 0:
                yield deferLater(self._reactor, 0)

    def ended(self) -> None:
        """Take note that the connection is no more."""
        self._open = None
        was_there, self._protocol = self.connected, None
        self._saying.cancel()
        self._reconnector.again("the connection was lost")
        if was_there:
            self.on_change()
        if not self._ended.called:
            self._ended.callback(None)

    def cut(self) -> None:
        """Take note that the connection is cut off, because Synjitsu is not understood or says nothing."""
        self._was_cut = True

    def _lost(self, reason: str) -> None:
        if not self._missed:
            self._missed = True
            self.log.warn(
                "no Synjitsu at {place} ({reason}): SYNs for VMs that boot will be lost until it is there",
                place=self._place,
                reason=reason,
            )


class _Conversation(messages.Peer, TimeoutMixin):
    """One connection to Synjitsu."""

    complaints = messages.Complaints(SynjitsuClient.log)
    factory: Any

    @property
    def reactor(self) -> Any:
        """Return that of the `SynjitsuClient`."""
        return self.factory.standin.reactor

    def connectionMade(self) -> None:  # noqa: N802
        """Tell the `SynjitsuClient`."""
        super().connectionMade()
        self.factory.standin.begin(self)

    def sendBox(self, box: Any) -> None:  # noqa: N802
        """Send a message; if it is a question, wait for a sign of life."""
        super().sendBox(box)
        if amp.ASK in box and self.timeOut is None:
            self.setTimeout(ANSWER_WITHIN)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take octets; wait for the next ones while there are questions that have no answer."""
        super().dataReceived(data)
        self.setTimeout(ANSWER_WITHIN if self._outstandingRequests else None)

    def timeoutConnection(self) -> None:  # noqa: N802
        """Cut off a Synjitsu that hangs: SYNs would be lost that it is thought to hold."""
        self.cut(f"it has said nothing for {ANSWER_WITHIN:g} s")

    def cut(self, reason: str = "") -> None:
        """Cut the connection off; it is tried again later."""
        self.factory.standin.cut()
        super().cut(reason)

    @messages.Summon.responder
    def _summon(self, ip: str, source: str) -> dict[str, Any]:
        self.factory.standin.on_summon(ip, source)
        return {}

    @messages.Seen.responder
    def _seen(self, ip: str) -> dict[str, Any]:
        self.factory.standin.on_seen(ip)
        return {}

    @messages.Elsewhere.responder
    def _elsewhere(self, ip: str, found: str) -> dict[str, Any]:
        self.factory.standin.on_elsewhere(ip, found)
        return {}

    @messages.Listens.responder
    def _listens(self, ip: str) -> dict[str, Any]:
        self.factory.standin.listens(ip)
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Tell the `SynjitsuClient`."""
        super().connectionLost(reason)
        self.setTimeout(None)
        self.factory.standin.ended()


def description(place: str) -> str:
    """Return *place*, which may be ``host:port`` or ``[v6]:port``, as Twisted's description of a client endpoint."""
    host, _, port = place.rpartition(":")
    if host and port.isdigit() and (host.startswith("[") or ":" not in host):
        return "tcp:{}:{}".format(host.strip("[]").replace(":", r"\:"), port)
    return place


def _normal(ip: str) -> str:
    """Return an address in its usual form, so that one is one."""
    return str(ip_address(ip))
