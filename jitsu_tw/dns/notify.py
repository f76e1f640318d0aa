"""
NOTIFY (RFC 1996): tells secondaries that a zone has changed, until they say that they know.

Each secondary has a UDP port of its own, chosen by the kernel, while it has something to be told; it is connected, so
that only the secondary is heard there. Whoever does not answer is asked again, ever more slowly, and is in the log
once, until he has answered again. A later change replaces an earlier one that was not answered yet.
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

#: How many zones a secondary is told of at the same time; the others wait for its answers.
AT_ONCE: Final = 16


class Notifier:
    """Tells all secondaries of all zones."""

    def __init__(
        self, secondaries: Iterable[Secondary], keys: Keyring, bind: Iterable[str], reactor: Any
    ) -> None:
        """
        Tell nobody yet.

        Args:
            secondaries: who is to be told.
            keys: has all their keys.
            bind: the addresses that we serve on. NOTIFY comes from the first of the secondary's family, since that is
                the one by which a secondary knows us.
            reactor: `IReactorUDP` and `IReactorTime`.
        """
        ours = tuple(bind)
        self._listeners = [
            Listener(each, keys.get(each.key) if each.key else None, _source(each.host, ours), reactor)
            for each in secondaries
        ]
        self._told: dict[bytes, int] = {}

    def tell(self, zones: Iterable[Zone]) -> None:
        """
        Tell the secondaries of each of *zones* whose serial is not what they were last told.

        To be called at the start, and whenever zones have changed: those that have not cost nothing.
        """
        for zone in zones:
            if self._told.get(zone.key) != zone.serial:
                self._told[zone.key] = zone.serial
                for listener in self._listeners:
                    listener.tell(zone)

    def stop(self) -> None:
        """Tell nobody any more."""
        for listener in self._listeners:
            listener.stop()


@attrs.define(eq=False)
class _News:
    """
    A zone that a secondary has not yet said it knows about.

    Attributes:
        zone, serial: what has changed, and to what.
        query: what is sent.
        octets: the same.
        tries: how often it was sent.
        call: what happens next.
    """

    zone: bytes
    serial: int
    query: dns.message.Message
    octets: bytes
    tries: int = 0
    call: IDelayedCall | None = None


class Listener(DatagramProtocol):
    """One secondary, as far as it has to be told something."""

    log = Logger()
    noisy = False

    def __init__(self, secondary: Secondary, key: Key | None, source: str, reactor: Any) -> None:
        """Have nothing to tell yet; send from *source*, an address."""
        self.secondary = secondary
        self._key, self._source, self._reactor = key, source, reactor
        self._waiting: dict[bytes, Zone] = {}
        self._sent: dict[int, _News] = {}
        self._port: Any = None
        self._silent = False
        self._heard = ""

    def tell(self, zone: Zone) -> None:
        """Tell it of *zone*, as soon as it does not have to answer too much else."""
        for news in [news for news in self._sent.values() if news.zone == zone.key]:
            self._drop(news)
        self._waiting[zone.key] = zone
        self._next()

    def stop(self) -> None:
        """Tell it nothing more."""
        self._waiting.clear()
        for news in list(self._sent.values()):
            self._drop(news)
        self._next()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: ARG002, N802
        """Take an answer. What is none, or not signed as it should be, is as if it had not come."""
        news = self._sent.get(int.from_bytes(datagram[:2])) if len(datagram) >= 2 else None
        if news is None:
            return
        try:
            reply = dns.message.from_wire(datagram, keyring=self._key, request_mac=news.query.mac)
        except dns.exception.DNSException as error:
            self._heard = f"; what came was not an answer: {error or type(error).__name__}"
            return
        # that a signature is missing, older dnspythons do not say
        if not news.query.is_response(reply) or (self._key is not None and not reply.had_tsig):
            self._heard = "; what came was not an answer, or not signed"
            return
        if reply.rcode() == dns.rcode.NOERROR:
            self.log.info("{who} knows of {zone}, serial {serial}", who=str(self.secondary), zone=to_text(news.zone),
                          serial=news.serial)  # fmt: skip
            self._silent = False
        else:
            self._complain(news, f"says {dns.rcode.to_text(reply.rcode())}")
        self._drop(news)
        self._next()

    def connectionRefused(self) -> None:  # noqa: N802
        """Take "port unreachable", after which RFC 1996, 3.6 ends: who starts later asks for the zones anyway."""
        for news in list(self._sent.values()):
            self._complain(news, "has nobody listening")
            self._drop(news)
        self._reactor.callLater(0, self._next)  # it may be the port's own `write` that calls this

    def stopProtocol(self) -> None:  # noqa: N802
        """Take a port that closes though nobody said so for "port unreachable": epoll's way of saying it in Twisted."""
        if self._port is not None:
            self._port = None
            self.connectionRefused()

    def _next(self) -> None:
        """Send what waits, as far as may be; have a port as long as it is needed."""
        while self._waiting and len(self._sent) < AT_ONCE:
            zone = self._waiting.pop(next(iter(self._waiting)))
            news = self._news(zone)
            self._sent[news.query.id] = news
            self._send(news)
        if not self._sent and self._port is not None:
            port, self._port = self._port, None
            port.stopListening()

    def _news(self, zone: Zone) -> _News:
        """Return what *zone* is told by: its SOA record as question, and as the answer that we have (RFC 1996, 3.7)."""
        apex = dns.name.from_wire(zone.soa.owner, 0)[0]
        query = dns.message.make_query(apex, SOA, flags=dns.flags.AA)
        query.set_opcode(dns.opcode.NOTIFY)
        query.answer.append(dns.rrset.from_rdata(apex, zone.soa.ttl, _rdata(zone.soa.rdata)))
        while query.id in self._sent:
            query.id = secrets.randbelow(2**16)
        if self._key is not None:
            query.use_tsig(self._key)
        return _News(zone.key, zone.serial, query, query.to_wire())

    def _send(self, news: _News) -> None:
        """Send *news* once more, or give up."""
        if news.tries == len(PAUSES):
            self._complain(news, f"does not answer{self._heard}")
            self._drop(news)
            self._next()
            return
        news.call = self._reactor.callLater(PAUSES[news.tries], partial(self._send, news))
        news.tries += 1
        try:
            if self._port is None:
                self._listen()
            self._port.write(news.octets)
        except (OSError, CannotListenError) as error:  # no way there, now
            self._heard = f"; {error}"

    def _listen(self) -> None:
        port = self._reactor.listenUDP(0, self, interface=self._source)
        try:
            port.connect(self.secondary.host, self.secondary.port)
        except OSError:
            port.stopListening()
            raise
        self._port = port

    def _drop(self, news: _News) -> None:
        self._sent.pop(news.query.id, None)
        if news.call is not None and news.call.active():
            news.call.cancel()

    def _complain(self, news: _News, what: str) -> None:
        """Say what is wrong with the secondary, unless that has been said."""
        if not self._silent:
            self._silent = True
            self.log.warn("{who}, told of {zone}, serial {serial}, {what}", who=str(self.secondary),
                          zone=to_text(news.zone), serial=news.serial, what=what)  # fmt: skip


def _rdata(octets: bytes) -> dns.rdata.Rdata:
    return dns.rdata.from_wire(IN, SOA, octets, 0, len(octets))


def _source(host: str, ours: tuple[str, ...]) -> str:
    """Return the first of *ours* that is of *host*'s family; if there is none, what lets the kernel choose."""
    six = ":" in host
    return next((each for each in ours if (":" in each) is six), "::" if six else "0.0.0.0")  # noqa: S104
