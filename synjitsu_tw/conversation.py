"""
Synjitsu's side of the AMP connection to Jitsu; `jitsu_tw.messages` has the commands.

It turns text into values, refuses malformed ones, and calls the service with the rest. Before `Hello` with the right
secret no command is accepted, and no value is read.
"""

from __future__ import annotations

import heapq
from hmac import compare_digest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.protocols.policies import TimeoutMixin

from jitsu_tw import messages
from jitsu_tw.messages import Refused, WrongVersion
from jitsu_tw.networks import of_peer
from synjitsu_tw.table import Handover

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jitsu_tw.dns.connections import Connections
    from synjitsu_tw.standins import Standins


#: Seconds within which a Jitsu has to send `Hello`.
HELLO_WITHIN: Final = 10.0

_HELLO: Final = messages.Hello.commandName


class Service(Protocol):
    """
    What a Jitsu commands (`service.Synjitsu`).

    Attributes:
        standins: the addresses that Synjitsu stands in for.
        xenstore: writes SYNs to Xenstore for guests of Xen; None without ``--xenstore``.
    """

    standins: Standins
    xenstore: Any

    def announce(self, owner: Conversation | None, ip: bytes, macs: tuple[bytes, ...], **more: Any) -> None:
        """Stand in for an address."""

    def announced_all(self) -> None:
        """Forget the addresses that an earlier Jitsu has announced and this one has not."""

    def ready(self, owner: Conversation | None, ip: bytes, macs: tuple[bytes, ...]) -> None:
        """Hand an address over to its guest."""

    def withdraw(self, ip: bytes, *, failed: bool) -> None:
        """Stand in for an address no longer."""

    def packets(self, ip: bytes) -> int:
        """Return how many packets of conversations the guest at *ip* has exchanged, since it was first asked for."""

    def counters(self) -> dict[str, int]:
        """Return the counters, by their names."""

    def lost(self, owner: Conversation) -> None:
        """Handle the loss of the connection to *owner*."""


class Conversation(messages.Peer, TimeoutMixin):
    """
    One connection to a Jitsu.

    Attributes:
        summons: how many summons Jitsu has not acknowledged yet.
    """

    log = Logger()
    complaints = messages.Complaints(log)
    factory: Any

    def __init__(self) -> None:
        """Expect `Hello` first."""
        super().__init__()
        self._greeted = False
        self.summons = 0

    @property
    def _synjitsu(self) -> Service:
        synjitsu: Service = self.factory.synjitsu
        return synjitsu

    def summoned(self, result: Any) -> None:
        """Handle Jitsu's answer to a summons, or the Failure to get one."""
        self.summons -= 1
        if result is not None and not isinstance(result, dict):
            self._not_summoned(result)

    def _not_summoned(self, failure: Failure) -> None:
        if failure.check(ConnectionClosed) is None:
            self.log.warn("Jitsu did not accept a summons: {reason}", reason=failure.getErrorMessage())

    def connectionMade(self) -> None:  # noqa: N802
        """Wait for `Hello`; if too many connections wait for theirs, abort one of them."""
        super().connectionMade()
        self._add_to(self.factory.before_hello)
        self.setTimeout(HELLO_WITHIN)

    def _add_to(self, connections: Connections[Conversation]) -> None:
        displaced = connections.add(self, of_peer(self.transport.getPeer()))
        if displaced is not None:
            displaced.cut()

    @property
    def reactor(self) -> Any:
        """Return the service's reactor."""
        return self.factory.reactor

    def timeoutConnection(self) -> None:  # noqa: N802
        """Abort the connection of a peer that has not sent `Hello` in time."""
        self.cut()

    def dispatchCommand(self, box: Any) -> Deferred[Any]:  # noqa: N802
        """Carry out a command; refuse all but `Hello` until the peer has shown the secret."""
        if not self._greeted:
            reason = ""
            if box[amp.COMMAND] != _HELLO:
                reason = "Hello must come first"
            elif not compare_digest(box.get(b"secret", b""), self.factory.secret.encode()):
                reason = "this Jitsu has not the same secret: see --secret of Synjitsu and synjitsu_secret of Jitsu"
            if reason:
                self.strange(reason)
                return fail(messages.refusal(reason))
        return super().dispatchCommand(box)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Handle the end of the connection: the service keeps its addresses for a while."""
        super().connectionLost(reason)
        self.setTimeout(None)
        self.factory.before_hello.remove(self)
        self.factory.jitsus.remove(self)
        self.factory.synjitsu.lost(self)

    @messages.Hello.responder
    def _hello(self, version: int, secret: str | None = None) -> dict[str, Any]:  # noqa: ARG002 -- it was compared
        if version != messages.VERSION:
            raise WrongVersion(f"Jitsu speaks version {version}, Synjitsu {messages.VERSION}: update the older one")
        if not self._greeted:
            self._greeted = True
            self.setTimeout(None)
            self.factory.before_hello.remove(self)
            self._add_to(self.factory.jitsus)
        return {}

    @messages.Announce.responder
    def _announce(
        self,
        ip: str,
        macs: list[str],
        asleep: bool,  # noqa: FBT001 -- AMP gives names
        runs: bool,  # noqa: FBT001
        handover: str,
        wake_udp: list[int],
        ports: list[int] | None = None,
        domid: int | None = None,
        knock: int | None = None,
        memory: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        synjitsu, address = self._synjitsu, ip_address(ip).packed
        if handover not in {kind.value for kind in Handover}:
            raise Refused(f"{handover[:50]!r} is no kind of handover")
        kind = Handover(handover)
        if kind is Handover.XENSTORE and (synjitsu.xenstore is None or len(address) != 4):
            raise Refused("handover by Xenstore is for IPv4, and where Synjitsu runs with --xenstore")
        synjitsu.announce(
            self,
            address,
            _macs(macs),
            asleep=asleep,
            runs=runs,
            handover=kind,
            ports=None if ports is None else frozenset(ports),
            wake_udp=frozenset(wake_udp),
            domid=domid,
            probe_port=knock,
            memory=memory,
        )
        return {}

    @messages.AnnouncedAll.responder
    def _announced_all(self) -> dict[str, Any]:
        self._synjitsu.announced_all()
        return {}

    @messages.Ready.responder
    def _ready(self, ip: str, macs: list[str]) -> dict[str, Any]:
        synjitsu, address = self._synjitsu, ip_address(ip).packed
        known = synjitsu.standins.table.get(address)
        if not macs and (known is None or not known.mac):
            raise Refused(f"the MAC of {ip} is not known")
        synjitsu.ready(self, address, _macs(macs))
        return {}

    @messages.Withdraw.responder
    def _withdraw(self, ip: str, failed: bool) -> dict[str, Any]:  # noqa: FBT001
        self._synjitsu.withdraw(ip_address(ip).packed, failed=failed)
        return {}

    @messages.Counters.responder
    def _counters(self) -> dict[str, Any]:
        return {"counters": [{"name": name, "count": count} for name, count in self._synjitsu.counters().items()]}

    @messages.Packets.responder
    def _packets(self, ip: str) -> dict[str, Any]:
        return {"count": self._synjitsu.packets(ip_address(ip).packed)}

    @messages.Status.responder
    def _status(self, after: str) -> dict[str, Any]:
        standins = self._synjitsu.standins
        start = _order(ip_address(after).packed if after else b"")
        ips = heapq.nsmallest(messages.PAGE, (ip for ip in standins.table if _order(ip) > start), key=_order)
        return {
            "standins": [
                {
                    "ip": str(ip_address(ip)),
                    "mac": standins.table[ip].mac.hex(":"),
                    "state": standins.table[ip].state.value,
                    "handover": standins.table[ip].handover.value,
                    "held": standins.syns.count(ip) + standins.segments.count(ip),
                }
                for ip in ips
            ]
        }


def _order(ip: bytes) -> tuple[int, bytes]:
    """Return the key by which `Status` sorts addresses: IPv4 before IPv6."""
    return len(ip), ip


def _macs(texts: list[str]) -> tuple[bytes, ...]:
    """Return MACs as packed octets."""
    return tuple(bytes.fromhex(text.replace(":", "")) for text in texts)
