"""
The way of one query: octets in, the chain of resolvers, octets out. `udp` and `tcp` are around it.

Everything that a query can do wrong ends here, as a response code. What an authority must never do is answer an answer,
forward for strangers, or stay silent where a client waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.names import dns, error
from twisted.names.resolve import FailureHandler, ResolverChain

from jitsu_tw.dns import transfer
from jitsu_tw.dns.cookies import BADCOOKIE, CookieResult
from jitsu_tw.dns.message import COOKIE, NOERROR, Drop, Query, Reject, parse
from jitsu_tw.dns.reply import TCP_SIZE, Reply, truncated, udp_limit, write
from jitsu_tw.dns.rrl import Decision, Kind
from jitsu_tw.dns.transfer import Permissions
from jitsu_tw.dns.tsig import BadSignature, Keyring
from jitsu_tw.dns.wire import ROOT, RR, Answer, Source
from jitsu_tw.errors import EDE_NOT_AUTHORITATIVE, EDE_NOT_READY, EDE_OTHER, JitsuError, Unanswerable, Unproven
from jitsu_tw.rules.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jitsu_tw.dns.cookies import Cookies
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.message import Edns
    from jitsu_tw.dns.rrl import Limiter
    from jitsu_tw.dns.tsig import Signed
    from jitsu_tw.dns.warm import WarmAnswer, WarmAnswers
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.machine import Machine

#: The EDNS option of a server's identity (RFC 5001, 2.3).
NSID: Final = 3

#: What twisted.names' client raises: the response code that the other server gave.
_CODES: Final = {
    error.DNSFormatError: dns.EFORMAT,
    error.DNSServerError: dns.ESERVER,
    error.DNSNameError: dns.ENAME,
    error.DNSNotImplementedError: dns.ENOTIMP,
    error.DNSQueryRefusedError: dns.EREFUSED,
}


@attrs.define
class Asked:
    """
    A query on its way.

    Attributes:
        octets: as it came.
        query: as it was understood.
        source: who asks, and how sure we may be of it.
        send: takes the reply.
        options: EDNS options that the reply carries.
        room: octets that the reply's signature will take.
    """

    octets: bytes
    query: Query | Reject
    source: Source
    send: Callable[[bytes], None]
    options: tuple[tuple[int, bytes], ...] = ()
    room: int = 0


class Chain(ResolverChain):
    """twisted.names' chain, which hands on the question as it came instead of what is left of it in text."""

    def query(self, query: Any, timeout: Sequence[int] | None = None) -> Deferred[Answer]:
        """Ask one resolver after the other until one does not say `DomainError`."""
        asked: Deferred[Answer] = self.resolvers[0].query(query, timeout)
        for resolver in self.resolvers[1:]:
            asked.addErrback(FailureHandler(resolver.query, query, timeout))
        return asked


class Server:
    """
    Answers queries with a chain of resolvers.

    Attributes:
        resolver: the chain.
        warm: answers for VMs that are up.
        limiter: what likes of responses go out by UDP; None for all.
    """

    log = Logger()

    def __init__(
        self,
        resolver: Chain,
        warm: WarmAnswers,
        fleet: Fleet,
        zones: Zones,
        *,
        limiter: Limiter | None = None,
        cookies: Cookies | None = None,
        nsid: bytes | None = None,
        keys: Keyring | None = None,
        allowed: Permissions | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """
        Ask *resolver*; keep its answers for the VMs of *fleet* in *warm* while these are up.

        Args:
            resolver: the chain.
            warm: where answers are kept.
            fleet: of whose VMs.
            zones: those that the resolver answers from.
            limiter: of responses by UDP.
            cookies: of this server; None to know none.
            nsid: what we say to a question for our identity (RFC 5001).
            keys: those that clients sign with.
            allowed: who may transfer zones; None for nobody.
            wall: seconds since 1970, for cookies and signatures.
        """
        self.resolver, self.warm, self.limiter = resolver, warm, limiter
        self._fleet, self._zones, self._cookies, self._nsid, self._wall = fleet, zones, cookies, nsid, wall
        self._keys, self._allowed = keys or Keyring(), allowed or Permissions()
        self._waiting: set[Deferred[Answer]] = set()
        self._is_ending = False
        fleet.uses = warm.taken
        warm.check, warm.use_of = fleet.check, fleet.use_of
        warm.keepers = fleet.keepers
        fleet.on_move.append(self._moved)

    def _moved(self, machine: Machine) -> None:
        if machine.state is not State.UP or self._fleet.lease(machine.vm.name) is None:
            self.warm.drop(machine.vm.name)

    def receive(
        self,
        octets: bytes,
        source: Source,
        send: Callable[[bytes], None],
        stream: Callable[[Iterator[bytes]], None] | None = None,
    ) -> bool:
        """
        Answer *octets* from *source* by *send*, now or later, or by *stream*, for what is long (only over TCP).

        Return False if they get no answer.
        """
        query = parse(octets, source)
        if isinstance(query, Drop):
            return False
        asked = Asked(octets, query, source, send)
        if query.edns is not None and query.edns.options:
            self._answer_options(asked, query.edns)
        signed = self._verify(asked)
        if isinstance(query, Reject):
            self._say(asked, Reply(query.rcode))
        elif isinstance(signed, BadSignature):
            self._say(asked, Reply(signed.rcode))
        elif query.question.cls != dns.IN:
            self._say(asked, Reply(dns.EREFUSED))
        elif query.question.type in transfer.TYPES:
            query.question.source = asked.source
            said = transfer.answer(octets, query, self._zones, self._allowed, signed)
            if isinstance(said, Reply):
                self._say(asked, said)
            elif stream is not None:
                self.log.info("{host}: {what}", host=source.host, what=transfer.describe(said))
                stream(said.packets(asked.options, signed, self._wall))
        else:
            query.question.source = asked.source
            found = self.resolver.query(query.question)
            found.addCallbacks(self._answer, self._fail, callbackArgs=(asked,), errbackArgs=(asked,))
            found.addErrback(lambda failure: self.log.failure("a query could not be answered: {q}", failure, q=query))
            if not found.called or found.paused:
                self._waiting.add(found)
                found.addBoth(lambda _: self._waiting.discard(found))
                if self._is_ending:
                    found.cancel()
        return True

    def end(self) -> None:
        """Answer the clients that wait, and from now on each that would have to, that the server is being stopped."""
        self._is_ending = True
        for found in list(self._waiting):
            found.cancel()

    def _verify(self, asked: Asked) -> Signed | BadSignature | None:
        """Look at the signature of a query that has one (RFC 8945), and have its reply signed too."""
        query = asked.query
        if not isinstance(query, Query) or query.tsig is None:
            return None
        signed = self._keys.verify(asked.octets, query, self._wall())
        send = asked.send
        asked.room, asked.send = signed.room, lambda packet: send(signed.sign(packet, self._wall()))
        return signed

    def _answer_options(self, asked: Asked, edns: Edns) -> None:
        """Take what the query's options say, and put into *asked* what they are answered with."""
        cookie = edns.option(COOKIE)
        if cookie is not None and self._cookies is not None:
            worth, answer = self._cookies.answer(cookie, asked.source.host, self._wall())
            asked.options += ((COOKIE, answer),)
            if worth is CookieResult.VALID:
                asked.source = attrs.evolve(asked.source, proven=True)
        if self._nsid is not None and edns.option(NSID) is not None:
            asked.options += ((NSID, self._nsid),)

    def _answer(self, answer: Answer, asked: Asked) -> None:
        records, authority, additional = answer
        said = Reply(NOERROR, answer.aa, records, authority, additional, answer.ede, (), answer.ra, answer.glue)
        packet = self._say(asked, said)
        lease = self._fleet.lease(answer.vm) if answer.vm is not None else None
        if answer.vm is not None and lease is not None and packet is not None and not asked.source.tcp:
            assert isinstance(asked.query, Query)
            self.warm.put(asked.octets, asked.query, packet, answer.vm, lease, self._like(asked.query, said)[1])

    def _say(self, asked: Asked, reply: Reply) -> bytes | None:
        """Send *reply*, unless there has been too much of its like: return the packet, or None."""
        query = asked.query
        if self.limiter is not None and not asked.source.tcp:
            decision = self.limiter.decide(asked.source, *self._like(query, reply), self.warm.now())
            if decision is Decision.DROP:
                return None
            if decision is Decision.SLIP:
                asked.send(truncated(query, asked.options))
                return None
        if asked.options:
            reply = attrs.evolve(reply, options=asked.options)
        packet = write(query, reply, (TCP_SIZE if asked.source.tcp else udp_limit(query)) - asked.room)
        asked.send(packet)
        return packet

    def may_say(self, answer: WarmAnswer, octets: bytes, source: Source, send: Callable[[bytes], None]) -> bool:
        """Say whether *answer* may go out by UDP; if not, a truncated one goes in its place, or nothing."""
        if self.limiter is None:
            return True
        decision = self.limiter.decide(source, Kind.POSITIVE, answer.limit_key, self.warm.now())
        if decision is Decision.SLIP:
            query = parse(octets, source)
            assert isinstance(query, Query)
            send(truncated(query))
        return decision is Decision.SEND

    def _like(self, query: Query | Reject, reply: Reply) -> tuple[Kind, bytes]:
        """Return what the limiter counts *reply* as: its kind, and a name that the asker cannot vary at will."""
        key = query.question.key if isinstance(query, Query) else ROOT
        zone = self._zones.find(key)
        apex = ROOT if zone is None else zone.key
        if reply.answer:
            # What a wildcard answers, it answers for any number of names.
            return Kind.POSITIVE, key if zone is not None and zone.get(key) is not None else apex
        if reply.rcode == dns.ENAME:
            return Kind.NXDOMAIN, apex
        if reply.rcode != NOERROR:
            return Kind.ERROR, apex
        if reply.aa or not reply.authority:
            return Kind.NODATA, apex
        return Kind.REFERRAL, reply.authority[0].owner.lower()

    def _fail(self, failure: Any, asked: Asked) -> None:
        """Say what went wrong."""
        if isinstance(failure.value, Unproven):
            query = asked.query
            if query.edns is not None and query.edns.option(COOKIE) is not None:
                self._say(asked, Reply(BADCOOKIE))
            else:
                asked.send(truncated(query, asked.options))
        else:
            self._say(asked, self._failed(failure))

    def _failed(self, failure: Any) -> Reply:
        """Return the reply to a failure. Wide at the end: a fault of ours is SERVFAIL, not silence."""
        fault = failure.value
        if isinstance(fault, Unanswerable):
            return Reply(fault.rcode, aa=True, answer=fault.answer, authority=fault.authority)
        if isinstance(fault, JitsuError):
            return Reply(fault.rcode, ede=((fault.ede, str(fault)),))
        if type(fault) in _CODES:
            authority = [RR.of(header) for header in getattr(fault.args[0], "authority", ())] if fault.args else []
            return Reply(_CODES[type(fault)], authority=authority, ra=True)
        if isinstance(fault, error.DomainError):
            return Reply(dns.EREFUSED, ede=((EDE_NOT_AUTHORITATIVE, ""),))
        if isinstance(fault, CancelledError):
            return Reply(dns.ESERVER, ede=((EDE_NOT_READY, "this server is being stopped; ask again, or another one"),))
        if isinstance(fault, (DeferredTimeout, error.ResolverError)):
            return Reply(dns.ESERVER, ede=((EDE_OTHER, "the forwarder does not answer"),), ra=True)
        self.log.failure("unexpected, please report", failure)
        return Reply(dns.ESERVER)
