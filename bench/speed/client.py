"""A client of name servers on loopback: questions by UDP with EDNS, as many at once as there are."""

from __future__ import annotations

import contextlib
from typing import Any

import dns.edns
import dns.entropy
import dns.exception
import dns.flags
import dns.message
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import DatagramProtocol

from bench.simulation.nodes import DOMAIN
from bench.speed.server import HOST


class Client(DatagramProtocol):
    """Questions by UDP, and their answers."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: dict[tuple[int, int], tuple[Deferred[dns.message.Message], Any]] = {}

    def ask(self, name: str, port: int, patience: float) -> Deferred[dns.message.Message]:
        """Ask the server at *port* for a VM's address; what is not answered in time fails with TimeoutError."""
        question = dns.message.make_query(f"{name}.{DOMAIN}", "A", use_edns=0)
        question.flags &= ~dns.flags.RD
        while (key := (port, question.id)) in self._waiting:
            question.id = dns.entropy.random_16()
        waiting: Deferred[dns.message.Message] = Deferred()
        self._waiting[key] = waiting, self._reactor.callLater(patience, self._late, key)
        transport: Any = self.transport
        transport.write(question.to_wire(), (HOST, port))
        return waiting

    async def until_served(self, port: int) -> bool:
        """Ask for a name that summons nobody until the server at *port* answers; say whether it did, in a minute."""
        for _ in range(120):
            with contextlib.suppress(DeferredTimeout):
                await self.ask("nobody", port, 0.5)
                return True
        return False

    def _late(self, key: tuple[int, int]) -> None:
        waiting, _ = self._waiting.pop(key)
        waiting.errback(DeferredTimeout())

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:  # noqa: N802
        """Take an answer."""
        with contextlib.suppress(dns.exception.DNSException):
            answer = dns.message.from_wire(datagram)
            key = addr[1], answer.id
            if key in self._waiting:
                waiting, late = self._waiting.pop(key)
                late.cancel()
                waiting.callback(answer)


def reason(answer: dns.message.Message) -> str:
    """Return what an answer's extended errors say (RFC 8914)."""
    return "; ".join(
        option.text or str(option.code) for option in answer.options if isinstance(option, dns.edns.EDEOption)
    )
