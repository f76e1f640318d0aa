"""
The way of one query: octets in, the chain of resolvers, octets out; and DNS over TCP.

Everything that a query can do wrong ends here, as a response code. What an authority must never do is answer an answer,
forward for strangers, or stay silent where a client waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.names import dns, error
from twisted.names.resolve import FailureHandler, ResolverChain
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin

from jitsu_tw.dns.message import NOERROR, Drop, Reject, parse
from jitsu_tw.dns.reply import TCP_SIZE, Reply, udp_limit, write
from jitsu_tw.dns.wire import RR, Answer, Source
from jitsu_tw.errors import EDE_NOT_AUTHORITATIVE, EDE_OTHER, JitsuError, Unanswerable
from jitsu_tw.vm.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from jitsu_tw.dns.message import Query
    from jitsu_tw.dns.warm import WarmAnswers
    from jitsu_tw.vm.activation import Machine
    from jitsu_tw.vm.fleet import Fleet

#: Seconds after which a TCP connection on which nothing happens is closed (RFC 7766, 6.2.3).
IDLE: Final = 20.0

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

    def __init__(self, resolver: Chain, warm: WarmAnswers, fleet: Fleet) -> None:
        """Ask *resolver*; keep its answers for the VMs of *fleet* in *warm* while these are up."""
        self.resolver, self.warm, self._fleet = resolver, warm, fleet
        fleet.uses = warm.taken
        fleet.on_move.append(self._moved)

    def _moved(self, machine: Machine) -> None:
        if machine.state is not State.UP:
            self.warm.drop(machine.vm.name)

    def receive(self, octets: bytes, source: Source, send: Callable[[bytes], None]) -> None:
        """Answer *octets* from *source* by *send*, now, later or never."""
        query = parse(octets, source)
        if isinstance(query, Drop):
            return
        limit = TCP_SIZE if source.tcp else udp_limit(query)
        if isinstance(query, Reject):
            send(write(query, Reply(query.rcode), limit))
        elif query.question.cls != dns.IN or query.question.type in {dns.AXFR, dns.IXFR}:
            send(write(query, Reply(dns.EREFUSED), limit))
        else:
            found = self.resolver.query(query.question)
            found.addCallbacks(
                self._answer, self._fail, callbackArgs=(octets, query, limit, send), errbackArgs=(query, limit, send)
            )
            found.addErrback(lambda failure: self.log.failure("a query could not be answered: {q}", failure, q=query))

    def _answer(self, answer: Answer, octets: bytes, query: Query, limit: int, send: Callable[[bytes], None]) -> None:
        records, authority, additional = answer
        said = Reply(NOERROR, answer.aa, records, authority, additional, answer.ede, (), answer.ra, answer.glue)
        packet = write(query, said, limit)
        send(packet)
        lease = self._fleet.lease(answer.vm) if answer.vm is not None else None
        if answer.vm is not None and lease is not None and limit < TCP_SIZE:
            self.warm.put(octets, query, packet, answer.vm, lease)

    def _fail(self, failure: Any, query: Query, limit: int, send: Callable[[bytes], None]) -> None:
        send(write(query, self._failed(failure), limit))

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
