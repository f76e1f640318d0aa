"""
The path of one query: octets in, the chain of resolvers, octets out. `udp` and `tcp` are the transports around it.

Every error of a query ends here, as a response code. An authority must never answer a response, forward for clients
that may not have that, or stay silent where a client waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.names import dns, error

from jitsu_tw.dns import secure, transfer
from jitsu_tw.dns.cookies import BADCOOKIE, CookieResult
from jitsu_tw.dns.message import COOKIE, NOERROR, Drop, Query, Reject, parse
from jitsu_tw.dns.querylog import fields, warm_fields
from jitsu_tw.dns.reply import TC, TCP_SIZE, Reply, truncated, udp_limit, write
from jitsu_tw.dns.rrl import Decision, Kind
from jitsu_tw.dns.transfer import Permissions
from jitsu_tw.dns.tsig import BadSignature, Keyring
from jitsu_tw.dns.wire import ROOT, RR, Answer, Source, from_text
from jitsu_tw.errors import EDE_NOT_AUTHORITATIVE, EDE_NOT_READY, EDE_OTHER, JitsuError, Unanswerable, Unproven

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jitsu_tw.dns.cookies import Cookies
    from jitsu_tw.dns.counters import Label
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.dns.message import Edns
    from jitsu_tw.dns.querylog import QueryLog
    from jitsu_tw.dns.resolver import Chain
    from jitsu_tw.dns.rrl import Limiter
    from jitsu_tw.dns.tsig import Signed
    from jitsu_tw.dns.warm import Received, Taken, WarmAnswers
    from jitsu_tw.dns.wire import Question
    from jitsu_tw.vm.fleet import Fleet

#: The EDNS option of a server's identity (RFC 5001, 2.3).
NSID: Final = 3

#: The errors of twisted.names' client, and the response codes of the other server that they stand for.
_CODES: Final = {
    error.DNSFormatError: dns.EFORMAT,
    error.DNSServerError: dns.ESERVER,
    error.DNSNameError: dns.ENAME,
    error.DNSNotImplementedError: dns.ENOTIMP,
    error.DNSQueryRefusedError: dns.EREFUSED,
}


def chaos(version: bytes | None, identity: bytes | None) -> dict[bytes, bytes]:
    """
    Return the names and texts of CH TXT records by which *version* and *identity* are asked for; None: not told.

    The names with ``bind`` are BIND's, those with ``server`` are for all servers alike (RFC 4892, 3).
    """
    texts = {"version.bind": version, "version.server": version, "hostname.bind": identity, "id.server": identity}
    return {from_text(name): text for name, text in texts.items() if text is not None}


@attrs.define
class Pending:
    """
    A query that is being answered.

    Attributes:
        octets: the packet.
        query: the packet, parsed.
        source: the client, and how sure its address is.
        send: sends the reply to the client.
        options: EDNS options of the reply.
        reserved: octets that the signature of the reply takes.
        logged: when the query came, in seconds, if it is to be logged; else None.
    """

    octets: bytes
    query: Query | Reject
    source: Source
    send: Callable[[bytes], None]
    options: tuple[tuple[int, bytes], ...] = ()
    reserved: int = 0
    logged: float | None = None


class Server:
    """
    Answers queries with a chain of resolvers.

    Attributes:
        resolver: the chain.
        warm: answers for VMs that are up.
        limiter: decides which responses go out by UDP; None: all do.
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
        chaos: Mapping[bytes, bytes] | None = None,
        keys: Keyring | None = None,
        allowed: Permissions | None = None,
        log: QueryLog | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """
        Ask *resolver*; keep its answers for the VMs of *fleet* in *warm* while these are up.

        Args:
            resolver: the chain.
            warm: keeps answers.
            fleet: has the VMs.
            zones: the zones that the resolver answers from.
            limiter: of responses by UDP.
            cookies: of this server; None: cookies are ignored.
            nsid: the identity of this server, for clients that want it (RFC 5001).
            chaos: what is answered to questions of the class CH for TXT records, by the name (`chaos`).
            keys: the keys that clients sign with.
            allowed: who may transfer zones; None: no client.
            log: the query log; None: there is none.
            wall: seconds since 1970, for cookies and signatures.
        """
        self.resolver, self.warm = resolver, warm
        self._fleet, self._zones, self._cookies, self._nsid, self._wall = fleet, zones, cookies, nsid, wall
        self._chaos, self._log = chaos or {}, log
        self.configure(keys or Keyring(), allowed or Permissions(), limiter)
        self._waiting: set[Deferred[Answer]] = set()
        self._is_ending = False

    def configure(self, keys: Keyring, allowed: Permissions, limiter: Limiter | None) -> None:
        """Go on with these, which `__init__` describes."""
        self._keys, self._allowed, self.limiter = keys, allowed, limiter

    def receive(
        self,
        octets: bytes,
        source: Source,
        send: Callable[[bytes], None],
        stream: Callable[[Iterator[bytes]], None] | None = None,
    ) -> bool:
        """
        Answer *octets* from *source* by *send*, now or later; or by *stream*, for a zone transfer (only over TCP).

        Return False if they get no answer.
        """
        query = parse(octets, source)
        if isinstance(query, Drop):
            self.warm.counters.ignored += 1
            return False
        pending = Pending(octets, query, source, send)
        if self._log is not None and self._log.chosen(1):
            pending.logged = self.warm.now()
        if query.edns is not None and query.edns.options:
            self._answer_options(pending, query.edns)
        signed = self._verify(pending)
        if isinstance(query, Reject):
            self._reply(pending, Reply(query.rcode))
        elif isinstance(signed, BadSignature):
            self._reply(pending, Reply(signed.rcode))
        elif query.question.cls != dns.IN:
            self._reply(pending, self._identify(query.question))
        elif query.question.type in transfer.TYPES:
            query.question.source = pending.source
            reply = transfer.answer(octets, query, self._zones, self._allowed, signed)
            if isinstance(reply, Reply):
                self._reply(pending, reply)
            elif stream is not None:
                self.log.info("{host}: {what}", host=source.host, what=transfer.describe(reply))
                stream(reply.packets(pending.options, signed, self._wall))
                self._note(pending, Reply())
        else:
            query.question.source = pending.source
            found = self.resolver.query(query.question)
            found.addCallbacks(self._answer, self._fail, callbackArgs=(pending,), errbackArgs=(pending,))
            found.addErrback(lambda failure: self.log.failure("a query could not be answered: {q}", failure, q=query))
            if not found.called or found.paused:
                self._waiting.add(found)
                found.addBoth(lambda _: self._waiting.discard(found))
                if self._is_ending:
                    found.cancel()
        return True

    def end(self) -> None:
        """Tell the clients that wait, and those that would have to wait from now on, that the server is stopped."""
        self._is_ending = True
        for found in list(self._waiting):
            found.cancel()

    def _identify(self, question: Question) -> Reply:
        """Return the reply to a question of a class other than IN: who this server is, if that is configured."""
        text = self._chaos.get(question.key)
        if text is None or (question.cls, question.type) != (dns.CH, dns.TXT):
            return Reply(dns.EREFUSED)
        return Reply(aa=True, answer=[RR(question.asked, dns.TXT, 0, bytes([len(text)]) + text, dns.CH)])

    def _verify(self, pending: Pending) -> Signed | BadSignature | None:
        """Verify the signature of a query that has one (RFC 8945); its reply is signed, too."""
        query = pending.query
        if not isinstance(query, Query) or query.tsig is None:
            return None
        signed = self._keys.verify(pending.octets, query, self._wall())
        send = pending.send
        pending.reserved, pending.send = signed.room, lambda packet: send(signed.sign(packet, self._wall()))
        return signed

    def _answer_options(self, pending: Pending, edns: Edns) -> None:
        """Handle the EDNS options of a query: note the proof of its address, and the options of the reply."""
        cookie = edns.option(COOKIE)
        if cookie is not None and self._cookies is not None:
            worth, answer = self._cookies.answer(cookie, pending.source.address, self._wall())
            pending.options += ((COOKIE, answer),)
            if worth is CookieResult.VALID:
                pending.source = attrs.evolve(pending.source, proven=True)
        if self._nsid is not None and edns.option(NSID) is not None:
            pending.options += ((NSID, self._nsid),)

    def _answer(self, answer: Answer, pending: Pending) -> None:
        records, authority, additional = answer
        reply = Reply(NOERROR, answer.aa, records, authority, additional, answer.ede, (), answer.ra, answer.glue)
        packet = self._reply(pending, reply)
        lease = self._fleet.summons.lease(answer.vm) if answer.vm is not None else None
        if answer.vm is not None and lease is not None and packet is not None and not pending.source.tcp:
            assert isinstance(pending.query, Query)
            use = self._fleet.stats.use_of(self._fleet.machines[answer.vm], pending.query.question.key)
            _, limit_key = self._limited_by(pending.query, reply)
            label = self._label(pending, NOERROR)
            self.warm.put(pending.octets, pending.query, packet, answer.vm, lease, use, limit_key, label)

    def _reply(self, pending: Pending, reply: Reply) -> bytes | None:
        """Send *reply*, unless there has been too much of its like: return the packet, or None."""
        query = pending.query
        if self.limiter is not None and not pending.source.proven:
            decision = self.limiter.decide(pending.source.address, *self._limited_by(query, reply), self.warm.now())
            if decision is not Decision.SEND:
                if decision is Decision.SLIP:
                    pending.send(truncated(query, pending.options))
                self._note(pending, reply, decision)
                return None
        do = query.edns is not None and query.edns.do
        if isinstance(query, Query) and (do or query.question.type in secure.TYPES):
            reply = secure.complete(query, reply, self._zones)
        if pending.options:
            reply = attrs.evolve(reply, options=pending.options)
        packet = write(query, reply, (TCP_SIZE if pending.source.tcp else udp_limit(query)) - pending.reserved)
        pending.send(packet)
        self._note(pending, reply, truncated=bool(packet[2] & TC >> 8))
        return packet

    def _note(
        self,
        pending: Pending,
        reply: Reply,
        decision: Decision = Decision.SEND,
        *,
        truncated: bool = False,
        refusal: str = "",
    ) -> None:
        """
        Count *reply*, and log it if the query was chosen for that.

        Args:
            pending: the query.
            reply: the reply to it.
            decision: of the limiter.
            truncated: it was sent with TC.
            refusal: why it asks for proof of the address; empty if it does not.
        """
        rcode = reply.rcode
        if decision is Decision.SLIP:  # what is sent is made of the query alone (`truncated`)
            rcode = pending.query.rcode if isinstance(pending.query, Reject) else NOERROR
        label = self._label(pending, rcode)
        if decision is Decision.SEND:
            self.warm.counters.add(label, truncated=truncated)
        else:
            self.warm.counters.limit(label, decision, sent=decision is Decision.SLIP)
        if self._log is not None and pending.logged is not None:
            line = fields(pending.source, pending.query, reply, decision, refusal)
            self._log.write(line, self.warm.now() - pending.logged)

    def _label(self, pending: Pending, rcode: int) -> Label:
        """Return what a response with *rcode* is counted by."""
        counters, query, tcp = self.warm.counters, pending.query, pending.source.tcp
        if isinstance(query, Reject):
            return counters.label(None, rcode, None, tcp=tcp)
        return counters.label(query.question.type, rcode, self._zones.find(query.question.key), tcp=tcp)

    def answer_warm(self, received: Received) -> Taken:
        """Answer the packets *received* by UDP that have warm answers (`WarmAnswers.take`)."""
        now = self.warm.now()
        taken, due = self.warm.take(received, now, self.limiter)
        if self._log is not None:
            self._log_warm(self._log, received, taken, now)
        for vm in due:
            self._fleet.leases.health.check(self._fleet.machines[vm])
        return taken

    def _log_warm(self, log: QueryLog, received: Received, taken: Taken, began: float) -> None:
        """Log those of the packets *received* that are chosen, and have warm answers; the others are logged later."""
        (packets, clients), (replies, _) = received, taken
        for index in log.chosen(len(packets)):
            query, reply = parse(bytes(2) + packets[index]), replies[index]
            answer = self.warm.answers.get(packets[index].lower())
            if isinstance(query, Query) and answer is not None:
                limited = reply is None or bool(reply[0] & ~answer.rest[0] & TC >> 8)
                line = warm_fields(Source.of_client(clients[index]), query, answer.vm, limited=limited)
                log.write(line, self.warm.now() - began)

    def _limited_by(self, query: Query | Reject, reply: Reply) -> tuple[Kind, bytes]:
        """Return what the limiter counts *reply* by: its kind, and a name that the client cannot vary at will."""
        key = query.question.key if isinstance(query, Query) else ROOT
        zone = self._zones.find(key)
        apex = ROOT if zone is None else zone.key
        if reply.answer:
            # A wildcard answers for any number of names, so these count as one.
            return Kind.POSITIVE, key if zone is not None and zone.get(key) is not None else apex
        if reply.rcode == dns.ENAME:
            return Kind.NXDOMAIN, apex
        if reply.rcode != NOERROR:
            return Kind.ERROR, apex
        if reply.aa or not reply.authority:
            return Kind.NODATA, apex
        return Kind.REFERRAL, reply.authority[0].owner.lower()

    def _fail(self, failure: Any, pending: Pending) -> None:
        """Answer a query whose resolvers failed: with the error, or with a request for proof of the address."""
        if isinstance(failure.value, Unproven):
            query = pending.query
            if query.edns is not None and query.edns.option(COOKIE) is not None:
                self._reply(pending, Reply(BADCOOKIE))
            else:
                pending.send(truncated(query, pending.options))
                self._note(pending, Reply(), truncated=True, refusal=str(failure.value))
        else:
            self._reply(pending, self._failed(failure))

    def _failed(self, failure: Any) -> Reply:
        """Return the reply to a failure. An unexpected exception is a fault of Jitsu, and SERVFAIL, not silence."""
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
