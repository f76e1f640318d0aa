"""
The way of one query: octets in, the chain of resolvers, octets out; over UDP and TCP.

Everything that a query can do wrong ends here, as a response code. What an authority must never do is answer an answer,
forward for strangers, or stay silent where a client waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import DatagramProtocol, Factory, connectionDone
from twisted.logger import Logger
from twisted.names import dns, error
from twisted.names.resolve import FailureHandler, ResolverChain
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin

from jitsu_tw.dns.message import Drop, Reject, parse
from jitsu_tw.dns.reply import Reply, udp_limit, write
from jitsu_tw.dns.wire import RR, Answer, Source
from jitsu_tw.errors import EDE_NOT_AUTHORITATIVE, EDE_OTHER, JitsuError, Unanswerable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

#: Seconds after which a TCP connection on which nothing happens is closed (RFC 7766, 6.2.3).
IDLE: Final = 20.0

#: In octets: the longest message over TCP (RFC 1035, 4.2.2).
TCP_LIMIT: Final = 65535

#: What twisted.names' client raises: the response code that the other server gave.
_CODES: Final = {
    error.DNSFormatError: dns.EFORMAT,
    error.DNSServerError: dns.ESERVER,
    error.DNSNameError: dns.ENAME,
    error.DNSNotImplementedError: dns.ENOTIMP,
    error.DNSQueryRefusedError: dns.EREFUSED,
}


class Chain(ResolverChain):
    """twisted.names' chain, which hands on the question as it came instead of what is left of it in text."""

    def query(self, query: Any, timeout: Sequence[int] | None = None) -> Deferred[Answer]:
        """Ask one resolver after the other until one does not say `DomainError`."""
        asked: Deferred[Answer] = self.resolvers[0].query(query, timeout)
        for resolver in self.resolvers[1:]:
            asked.addErrback(FailureHandler(resolver.query, query, timeout))
        return asked


class Server:
    """Answers queries with a chain of resolvers."""

    log = Logger()

    def __init__(self, resolver: Chain) -> None:
        """Ask *resolver*."""
        self.resolver = resolver

    def receive(self, octets: bytes, source: Source, send: Callable[[bytes], None]) -> None:
        """Answer *octets* from *source* by *send*, now, later or never."""
        query = parse(octets, source)
        if isinstance(query, Drop):
            return
        limit = TCP_LIMIT if source.tcp else udp_limit(query)
        if isinstance(query, Reject):
            send(write(query, Reply(query.rcode), limit))
        elif query.question.cls != dns.IN or query.question.type in {dns.AXFR, dns.IXFR}:
            send(write(query, Reply(dns.EREFUSED), limit))
        else:
            found: Deferred[Reply] = self.resolver.query(query.question).addCallbacks(_answered, self._failed)
            found.addCallback(lambda reply: send(write(query, reply, limit)))
            found.addErrback(lambda failure: self.log.failure("a query could not be answered: {q}", failure, q=query))

    def _failed(self, failure: Any) -> Reply:
        """Return the reply that says what went wrong. Wide at the end: a fault of ours is SERVFAIL, not silence."""
        fault = failure.value
        if isinstance(fault, Unanswerable):
            return Reply(fault.rcode, aa=True, answer=fault.answer, authority=fault.authority)
        if isinstance(fault, JitsuError):
            self.log.warn("{error}", error=str(fault))
            return Reply(fault.rcode, ede=((fault.ede, str(fault)),))
        if type(fault) in _CODES:
            authority = [RR.of(header) for header in getattr(fault.args[0], "authority", ())] if fault.args else []
            return Reply(_CODES[type(fault)], authority=authority, ra=True)
        if isinstance(fault, error.DomainError):
            return Reply(dns.EREFUSED, ede=((EDE_NOT_AUTHORITATIVE, ""),))
        if isinstance(fault, (DeferredTimeout, error.ResolverError)):
            return Reply(dns.ESERVER, ede=((EDE_OTHER, "the forwarder does not answer"),), ra=True)
        self.log.failure("unexpected, please report", failure)
        return Reply(dns.ESERVER)


def _answered(answer: Answer) -> Reply:
    records, authority, additional = answer
    return Reply(
        aa=answer.aa,
        answer=records,
        authority=authority,
        additional=additional,
        glue=answer.glue,
        ede=answer.ede,
        ra=answer.ra,
    )


class UDP(DatagramProtocol):
    """DNS over UDP on one address."""

    noisy = False

    def __init__(self, server: Server) -> None:
        """Answer with *server*."""
        self._server = server

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: N802
        """Take one query."""
        self._server.receive(datagram, Source(addr[0], addr[1]), lambda reply: self._send(reply, addr))

    def _send(self, reply: bytes, addr: Any) -> None:
        if self.transport is not None:
            self.transport.write(reply, addr)


class TCP(Int16StringReceiver, TimeoutMixin):
    """DNS over TCP: any number of queries in a connection, each answered when it can be (RFC 7766)."""

    factory: TCPFactory

    def connectionMade(self) -> None:  # noqa: N802
        """Begin to count idle time."""
        assert self.transport is not None
        peer: Any = self.transport.getPeer()
        self._source = Source(peer.host, peer.port, tcp=True, proven=True)
        self.setTimeout(IDLE)

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Take one query."""
        self.resetTimeout()
        self.factory.server.receive(string, self._source, self._send)

    def _send(self, reply: bytes) -> None:
        if self.connected:
            self.resetTimeout()
            self.sendString(reply)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        """Stop counting."""
        self.setTimeout(None)


class TCPFactory(Factory):
    """Makes the protocol for each connection."""

    noisy = False

    def __init__(self, server: Server) -> None:
        """Answer with *server*."""
        self.server = server

    def buildProtocol(self, addr: Any) -> Any:  # noqa: ARG002, N802
        """Return the protocol of one connection."""
        protocol = TCP()
        protocol.factory = self
        return protocol
