"""
NOTIFY (RFC 1996): send secondaries a notification that a zone has changed, until they acknowledge it.

For each secondary with notifications, a UDP port is open that the kernel has chosen; it is connected, so that it
receives from this secondary alone. A notification without an answer is sent again, ever more slowly; that the secondary
is silent is logged once, until it has answered again. A later change replaces an earlier one that was not acknowledged
yet.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rrset
from dns.rdataclass import IN
from dns.rdatatype import SOA
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from jitsu_tw.dns.wire import to_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.dns.tsig import Key, Keyring
    from jitsu_tw.dns.zone import Zone
    from jitsu_tw.settings import Secondary

#: Seconds from each transmission to the next, the last to giving up. RFC 1996, 3.6 proposes five retransmissions and
#: allows exponential back-off; its 60 s are the mean, but a datagram that was merely lost costs five.
PAUSES: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)

#: How many notifications to one secondary may be unanswered; further zones wait.
AT_ONCE: Final = 16


class Notifier:
    """Notifies all secondaries of changes of all zones."""

    def __init__(
        self, secondaries: Iterable[Secondary], keys: Keyring, bind: Iterable[str], reactor: Any
    ) -> None:
        """
        Send nothing yet.

        Args:
            secondaries: the secondaries to notify.
            keys: has all their keys.
            bind: the addresses that the server is bound to. NOTIFY is sent from the first one of the secondary's
                family, since that is the primary's address for the secondary.
            reactor: `IReactorUDP` and `IReactorTime`.
        """
        self._own, self._reactor = tuple(bind), reactor
        self._listeners: list[Listener] = []
        self._sent_serials: dict[bytes, int] = {}
        self.configure(secondaries, keys)

    def configure(self, secondaries: Iterable[Secondary], keys: Keyring) -> None:
        """Notify *secondaries*, which sign with *keys*, from now on, in place of those before."""
        self.stop()
        self._listeners = [
            Listener(each, keys.get(each.key) if each.key else None, _source(each.host, self._own), self._reactor)
            for each in secondaries
        ]
        self._sent_serials.clear()

    def tell(self, zones: Iterable[Zone]) -> None:
        """
        Notify the secondaries of each of *zones* whose serial differs from the last one sent.

        To be called at the start, and whenever zones may have changed: unchanged zones cost nothing.
        """
        for zone in zones:
            if self._sent_serials.get(zone.key) != zone.serial:
                self._sent_serials[zone.key] = zone.serial
                for listener in self._listeners:
                    listener.notify(zone)

    def stop(self) -> None:
        """Stop all notifications."""
        for listener in self._listeners:
            listener.stop()


@attrs.define(eq=False)
class _Notification:
    """
    A NOTIFY query that a secondary has not acknowledged.

    Attributes:
        zone: the name of the zone that has changed.
        serial: its new serial.
        query: the query.
        octets: the same as a packet.
        tries: how often it was sent.
        call: sends it again, or gives up.
    """

    zone: bytes
    serial: int
    query: dns.message.Message
    octets: bytes
    tries: int = 0
    call: IDelayedCall | None = None


class Listener(DatagramProtocol):
    """Sends notifications to one secondary, and receives its answers."""

    log = Logger()
    noisy = False

    def __init__(self, secondary: Secondary, key: Key | None, source: str, reactor: Any) -> None:
        """Send nothing yet; *source* is the address to send from."""
        self.secondary = secondary
        self._key, self._source, self._reactor = key, source, reactor
        self._waiting: dict[bytes, Zone] = {}
        self._sent: dict[int, _Notification] = {}
        self._port: Any = None
        self._complained = False
        self._last_error = ""

    def notify(self, zone: Zone) -> None:
        """Notify the secondary of *zone*, as soon as fewer than `AT_ONCE` notifications are unanswered."""
        for sent in [sent for sent in self._sent.values() if sent.zone == zone.key]:
            self._drop(sent)
        self._waiting[zone.key] = zone
        self._next()

    def stop(self) -> None:
        """Stop all notifications to the secondary."""
        self._waiting.clear()
        for sent in list(self._sent.values()):
            self._drop(sent)
        self._next()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002, N802
        """Handle an answer; ignore a malformed one, and one without the right signature."""
        sent = self._sent.get(int.from_bytes(datagram[:2])) if len(datagram) >= 2 else None
        if sent is None:
            return
        try:
            reply = dns.message.from_wire(datagram, keyring=self._key, request_mac=sent.query.mac)
        except dns.exception.DNSException as error:
            self._last_error = f"; it sent no answer, but: {error or type(error).__name__}"
            return
        # Older versions of dnspython do not report a missing signature.
        if not sent.query.is_response(reply) or (self._key is not None and not reply.had_tsig):
            self._last_error = "; it sent no answer, or an unsigned one"
            return
        if reply.rcode() == dns.rcode.NOERROR:
            self.log.info("{who} has been notified of {zone}, serial {serial}", who=str(self.secondary),
                          zone=to_text(sent.zone), serial=sent.serial)  # fmt: skip
            self._complained = False
        else:
            self._complain(sent, f"answers {dns.rcode.to_text(reply.rcode())}")
        self._drop(sent)
        self._next()

    def connectionRefused(self) -> None:  # noqa: N802
        """Handle "port unreachable": drop all (RFC 1996, 3.6); a secondary asks for its zones when it starts."""
        for sent in list(self._sent.values()):
            self._complain(sent, "does not listen on that port")
            self._drop(sent)
        self._reactor.callLater(0, self._next)  # it may be the port's own `write` that calls this

    def stopProtocol(self) -> None:  # noqa: N802
        """Handle a port that Twisted has closed by itself as "port unreachable": so it reports that with epoll."""
        if self._port is not None:
            self._port = None
            self.connectionRefused()

    def _next(self) -> None:
        """Send waiting notifications, up to `AT_ONCE` unanswered ones; close the port when there are none."""
        while self._waiting and len(self._sent) < AT_ONCE:
            zone = self._waiting.pop(next(iter(self._waiting)))
            notification = self._notification(zone)
            self._sent[notification.query.id] = notification
            self._send(notification)
        if not self._sent and self._port is not None:
            port, self._port = self._port, None
            port.stopListening()

    def _notification(self, zone: Zone) -> _Notification:
        """Return the notification of *zone*: a question for its SOA record, with the record itself (RFC 1996, 3.7)."""
        apex = dns.name.from_wire(zone.soa.owner, 0)[0]
        query = dns.message.make_query(apex, SOA, flags=dns.flags.AA)
        query.set_opcode(dns.opcode.NOTIFY)
        query.answer.append(dns.rrset.from_rdata(apex, zone.soa.ttl, _rdata(zone.soa.rdata)))
        while query.id in self._sent:
            query.id = secrets.randbelow(2**16)
        if self._key is not None:
            query.use_tsig(self._key)
        return _Notification(zone.key, zone.serial, query, query.to_wire())

    def _send(self, notification: _Notification) -> None:
        """Send *notification* once more, or give up."""
        if notification.tries == len(PAUSES):
            self._complain(notification, f"does not answer{self._last_error}")
            self._drop(notification)
            self._next()
            return
        notification.call = self._reactor.callLater(PAUSES[notification.tries], partial(self._send, notification))
        notification.tries += 1
        try:
            if self._port is None:
                self._listen()
            self._port.write(notification.octets)
        except (OSError, CannotListenError) as error:  # there is no route to the secondary now
            self._last_error = f"; {error}"

    def _listen(self) -> None:
        port = self._reactor.listenUDP(0, self, interface=self._source)
        try:
            port.connect(self.secondary.host, self.secondary.port)
        except OSError:
            port.stopListening()
            raise
        self._port = port

    def _drop(self, notification: _Notification) -> None:
        self._sent.pop(notification.query.id, None)
        if notification.call is not None and notification.call.active():
            notification.call.cancel()

    def _complain(self, notification: _Notification, what: str) -> None:
        """Log what is wrong with the secondary, once until it answers again."""
        if not self._complained:
            self._complained = True
            self.log.warn("{who}, notified of {zone}, serial {serial}, {what}", who=str(self.secondary),
                          zone=to_text(notification.zone), serial=notification.serial, what=what)  # fmt: skip


def _rdata(octets: bytes) -> dns.rdata.Rdata:
    return dns.rdata.from_wire(IN, SOA, octets, 0, len(octets))


def _source(host: str, own: tuple[str, ...]) -> str:
    """Return the first of *own* that is of *host*'s family; if there is none, the wildcard: the kernel chooses."""
    six = ":" in host
    return next((each for each in own if (":" in each) is six), "::" if six else "0.0.0.0")  # noqa: S104
