"""
Answers for VMs that are up, as octets, found by the octets of the question: no parsing, no objects, no Deferred.

A packet is looked up without its id and without regard to case. So a packet that is found is, letter for letter, one
that was answered before: the same flags, type, class and EDNS. (Lower case changes only letters of the name, but for a
type, an EDNS size or version that happens to look like a letter; answers to such packets are kept only where they look
the same in lower case, so that none is taken for another.) The reply is the packet's own id and question, in the case
that the client chose, and the rest of an answer that `server` had written; in lower case, as most clients ask, nothing
is to be made but the id. Answers to questions with EDNS options are not kept: cookies differ for each client.

A client can make up kinds of questions, and names below a wildcard, without end. So an answer that was little used
lately gives way to a new one; each use is counted anyway, so a hit costs nothing more. It is one of the VM that has the
most answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
from zope.interface import implementer

from jitsu_tw.dns.counters import Counters
from jitsu_tw.dns.message import Query, parse
from jitsu_tw.dns.reply import TC, truncated
from jitsu_tw.dns.rrl import Decision, Kind
from jitsu_tw.dns.wire import CLIENT_IPV4, address_of
from jitsu_tw.ijitsu import IAnswers
from jitsu_tw.networks import EVERYBODY, Networks
from jitsu_tw.shares import Heaviest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jitsu_tw.dns.counters import Label
    from jitsu_tw.dns.rrl import Limiter
    from jitsu_tw.networks import Network
    from jitsu_tw.rules.lease import Lease
    from jitsu_tw.rules.lifecycle import State
    from jitsu_tw.vm.machine import Machine

#: The most answers for names that zones have: `LEAST_EXACT`, and `MOST_KINDS` more for each VM that is up, but never
#: more than `MOST_EXACT`. One is kept for each kind of question: with and without EDNS, DO, RD, AD, CD, and some sizes.
#: An answer takes about 600 octets.
LEAST_EXACT: Final = 4096
MOST_KINDS: Final = 32
MOST_EXACT: Final = 1 << 18

#: The most answers for names below wildcards, all together.
MOST_WILD: Final = 1 << 14

#: The answer that gives way is the least used of this many, those that were not considered for longest.
_MOST_LOOKS: Final = 64

#: Where the question of a packet begins that has no id: behind the rest of the header (RFC 1035, 4.1.1).
_QUESTION: Final = 10

#: Python 3.11 takes longer to find a member of an enumeration than an answer.
_POSITIVE: Final = Kind.POSITIVE
_SEND: Final = Decision.SEND

#: The first octet of IPv4's loopback addresses.
_LOOPBACK: Final = 127

#: Packets that came by UDP, without their ids; and for each, its client with its id (`Source.client`).
Received = tuple[Sequence[bytes], Sequence[bytes]]

#: For each packet a reply without its id, or None; and the indexes of those packets that have no warm answer. Of the
#: others, None is for one that the limiter has suppressed the reply to.
Taken = tuple[list[bytes | None], list[int]]


@attrs.define(eq=False)
class WarmAnswer:
    """
    One answer.

    Attributes:
        rest: the reply to a question in lower case, without its id.
        end: where the question ends there.
        lease: of the VM; each use renews it.
        vm: the VM's name.
        use: what counts the uses of the name that was asked for (`Statistics.use_of`).
        limit_key: the name that the limiter of responses counts it by.
        label: what the response is counted by.
        count: how often it was used, and sent, since `WarmAnswers.taken`.
        last: the client and id of the last question: the same again is a retransmission, and no use.
    """

    rest: bytes
    end: int
    lease: Lease
    vm: str
    use: object
    limit_key: bytes
    label: Label
    count: int = 0
    last: bytes = b""


class _Share:
    """
    The keys of the answers that share one limit, by VM, those first that were not considered for longest.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        """Begin with no key."""
        self.count = 0
        self._keys: dict[str, list[bytes]] = {}
        self._heaviest: Heaviest[str] = Heaviest()

    @property
    def vms(self) -> int:
        """Of how many VMs there are some."""
        return len(self._keys)

    def add(self, vm: str, key: bytes) -> None:
        """Add *key*, of an answer for *vm*."""
        keys = self._keys.setdefault(vm, [])
        self._heaviest.move(vm, len(keys), len(keys) + 1)
        keys.append(key)
        self.count += 1

    def drop(self, vm: str) -> list[bytes]:
        """Remove the keys of *vm* and return them."""
        keys = self._keys.pop(vm, [])
        self._heaviest.move(vm, len(keys), 0)
        self.count -= len(keys)
        return keys

    def give_way(self, answers: Mapping[bytes, WarmAnswer]) -> bytes:
        """Remove a key of the VM that has the most, and return it: of `_MOST_LOOKS`, the one that was used least."""
        vm = self._heaviest.top()
        keys = self._keys[vm]
        looked = keys[:_MOST_LOOKS]
        gone = min(looked, key=lambda key: answers[key].count)
        passed = looked[: looked.index(gone)]
        del keys[: len(passed) + 1]
        keys += passed
        self._heaviest.move(vm, len(keys) + 1, len(keys))
        if not keys:
            del self._keys[vm]
        self.count -= 1
        return gone


def _truncated(packet: bytes) -> bytes:
    """Return the truncated reply to *packet*, both without their id."""
    query = parse(bytes(2) + packet)
    assert isinstance(query, Query)
    return truncated(query)[2:]


@implementer(IAnswers)
class WarmAnswers:
    """
    The answers of all VMs that are up.

    Attributes:
        now: the clock that leases are renewed by, in seconds.
        answers: by the packet's octets in lower case, without the id.
        counters: of all responses of the server, warm or not.
    """

    def __init__(self, now: Callable[[], float], summon_from: Sequence[Network] = EVERYBODY) -> None:
        """Renew leases by *now*, for the clients in the networks *summon_from*."""
        self.now = now
        self.answers: dict[bytes, WarmAnswer] = {}
        self.counters = Counters()
        self._used: list[WarmAnswer] = []  # those whose count is not 0
        self.configure(summon_from)
        self._exact, self._wild = _Share(), _Share()

    def configure(self, summon_from: Sequence[Network]) -> None:
        """Renew leases for the clients in the networks *summon_from* from now on."""
        self._keepers = None if set(EVERYBODY) <= set(summon_from) else Networks(summon_from)

    def take(self, received: Received, now: float, limiter: Limiter | None = None) -> tuple[Taken, list[str]]:
        """
        Answer the packets *received* by UDP that have warm answers; each is a use.

        This is, for nearly all packets, all that is done, so it does nothing that it could leave.

        Args:
            received: the packets.
            now: the time, in seconds.
            limiter: decides which replies go out; None: all do.

        Returns:
            what comes of the packets; and the VMs of which it is time to see whether they are alive (`Lease.check_at`).
        """
        find, used, keepers = self.answers.get, self._used, self._keepers
        taken: Taken = [], []
        due: list[str] = []
        (packets, clients), (replies, others) = received, taken
        for index, packet in enumerate(packets):
            client = clients[index]
            answer = find(packet)
            if answer is None:
                answer = find(packet.lower())
                if answer is None:
                    others.append(index)
                    replies.append(None)
                    continue
                reply = answer.rest[:_QUESTION] + packet[_QUESTION : answer.end] + answer.rest[answer.end :]
            else:
                reply = answer.rest
            # The limiter itself exempts loopback, at ten times the cost.
            if limiter is not None and (client[2] != _LOOPBACK or len(client) != CLIENT_IPV4):
                decision = limiter.decide(address_of(client), _POSITIVE, answer.limit_key, now)
                if decision is not _SEND:
                    slips = decision is Decision.SLIP
                    self.counters.limit(answer.label, decision, sent=slips)
                    replies.append(_truncated(packet) if slips else None)
                    continue
            replies.append(reply)
            lease = answer.lease
            if keepers is None or address_of(client) in keepers:
                lease.used = now
            if client != answer.last:
                answer.last = client
                if not answer.count:
                    used.append(answer)
                answer.count += 1
            else:
                self._count(answer, 1)
            if now >= lease.check_at:
                due.append(answer.vm)
        return taken, due

    def put(
        self,
        octets: bytes,
        query: Query,
        reply: bytes,
        vm: str,
        lease: Lease,
        use: object,
        limit_key: bytes,
        label: Label,
    ) -> None:
        """
        Keep *reply*, which answers the packet *octets*, while *vm* is up; not if it is for this client only.

        If there are too many answers, one of the VM that has the most gives way. Names below wildcards have a limit of
        their own: their *limit_key* is not the name.

        Args:
            octets: the packet.
            query: the packet, parsed.
            reply: the answer to it.
            vm: the VM's name.
            lease: of the VM; each use renews it.
            use: what counts the uses of the name (`Statistics.use_of`).
            limit_key: the name that the limiter of responses counts the reply by.
            label: what the response is counted by.
        """
        end = _QUESTION + len(query.question.asked) + 4
        packet, reply = octets[2:], reply[2:]
        key = packet.lower()
        if (
            query.tsig is not None
            or (query.edns is not None and query.edns.options)
            or key[end - 4 :] != packet[end - 4 :]
            or key in self.answers
        ):
            return
        if limit_key == query.question.key:
            share, most = self._exact, min(LEAST_EXACT + MOST_KINDS * self._exact.vms, MOST_EXACT)
        else:
            share, most = self._wild, MOST_WILD
        if share.count >= most:
            del self.answers[share.give_way(self.answers)]
        share.add(vm, key)
        rest = reply[:_QUESTION] + key[_QUESTION:end] + reply[end:]
        self.answers[key] = WarmAnswer(rest, end, lease, vm, use, limit_key, label)

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Forget the answers of *machine*: it, or a VM that it needs, is in another state now, so is not ready."""
        self.drop(machine.vm.name)

    def drop(self, vm: str) -> None:
        """Forget the answers of *vm*: it is not up any more, or its addresses or names have changed."""
        for share in (self._exact, self._wild):
            for key in share.drop(vm):
                del self.answers[key]

    def clear(self) -> None:
        """Forget all answers: the zones that they were made from have changed."""
        self.answers.clear()
        self._exact, self._wild = _Share(), _Share()

    def taken(self) -> Iterator[tuple[str, Any, int, float]]:
        """Yield the uses of names since the last call (`IAnswers.taken`); count them as responses meanwhile."""
        used, self._used = self._used, []
        for answer in used:
            count, answer.count = answer.count, 0
            self._count(answer, count)
            yield answer.vm, answer.use, count, answer.lease.used

    def _count(self, answer: WarmAnswer, times: int) -> None:
        """Count *answer*, which may have TC itself, as a response that was sent *times* times."""
        self.counters.add(answer.label, times, truncated=bool(answer.rest[0] & TC >> 8))
