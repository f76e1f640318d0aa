"""
Answers for VMs that are up, as octets, found by the octets of the question: no parsing, no objects, no Deferred.

A packet is looked up without its id and without regard to case. So a packet that is found is, letter for letter, one
that was answered before: the same flags, type, class and EDNS. (Lower case changes only letters of the name, but for a
type, an EDNS size or version that happens to look like a letter; answers to such packets are kept only where they look
the same in lower case, so that none is taken for another.) The reply is the packet's own id and question, in the case
that the client chose, and the rest of an answer that `server` had written. Answers to questions with EDNS options are
not kept: cookies differ for each client.

A client can make up kinds of questions, and names below a wildcard, without end. So an answer that was little used
lately gives way to a new one; each use is counted anyway, so a hit costs nothing more. It is one of the VM that has the
most answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from zope.interface import implementer

from jitsu_tw.ijitsu import IAnswers
from jitsu_tw.networks import EVERYBODY, Networks, packed
from jitsu_tw.shares import Heaviest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jitsu_tw.dns.message import Query
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

#: Where the question begins: behind the header (RFC 1035, 4.1.1).
_QUESTION: Final = 12


@attrs.define(eq=False)
class WarmAnswer:
    """
    One answer, in pieces.

    Attributes:
        head: what stands between the id and the question.
        end: where the question ends.
        tail: what stands behind it.
        lease: of the VM; each use renews it.
        vm: the VM's name.
        use: what counts the uses of the name that was asked for (`Statistics.use_of`).
        limit_key: the name that the limiter of responses counts it by.
        count: how often it was used since `WarmAnswers.taken`.
        last: the id and the sender of the last question: the same again is a retransmission, and not counted.
    """

    head: bytes
    end: int
    tail: bytes
    lease: Lease
    vm: str
    use: object
    limit_key: bytes
    count: int = 0
    last: tuple[bytes, Any] | None = None


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


@implementer(IAnswers)
class WarmAnswers:
    """
    The answers of all VMs that are up.

    Attributes:
        now: the clock that leases are renewed by, in seconds.
        answers: by the packet's octets in lower case, without the id.
        used: those whose count is not 0.
        keepers: returns whether the questions of a client's address keep VMs up; None if those of all clients do.
    """

    def __init__(self, now: Callable[[], float], summon_from: Sequence[Network] = EVERYBODY) -> None:
        """Renew leases by *now*, for the clients in the networks *summon_from*."""
        self.now = now
        self.answers: dict[bytes, WarmAnswer] = {}
        self.used: list[WarmAnswer] = []
        self.keepers: Callable[[str], bool] | None = None
        if not set(EVERYBODY) <= set(summon_from):
            networks = Networks(summon_from)
            self.keepers = lambda host: packed(host) in networks
        self._exact, self._wild = _Share(), _Share()
        # There are few different heads: shared, they stay in the processor's cache, whatever is asked for.
        self._heads: dict[bytes, bytes] = {}

    def take(self, answer: WarmAnswer, octets: bytes, sender: tuple[Any, ...]) -> bytes:
        """Return the reply that *answer* makes to the packet *octets* of *sender*, and count that as a use."""
        asked = octets[:2], sender
        if self.keepers is None or self.keepers(sender[0]):
            answer.lease.used = self.now()
        if asked != answer.last:
            answer.last = asked
            if not answer.count:
                self.used.append(answer)
            answer.count += 1
        return octets[:2] + answer.head + octets[_QUESTION : answer.end] + answer.tail

    def put(
        self, octets: bytes, query: Query, reply: bytes, vm: str, lease: Lease, use: object, limit_key: bytes
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
        """
        end = _QUESTION + len(query.question.asked) + 4
        key = octets[2:].lower()
        if (
            query.tsig is not None
            or (query.edns is not None and query.edns.options)
            or key[end - 6 :] != octets[end - 4 :]
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
        head = self._heads.setdefault(reply[2:_QUESTION], reply[2:_QUESTION])
        self.answers[key] = WarmAnswer(head, end, reply[end:], lease, vm, use, limit_key)

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
        """Yield the uses of names since the last call (`IAnswers.taken`)."""
        used, self.used = self.used, []
        for answer in used:
            count, answer.count = answer.count, 0
            yield answer.vm, answer.use, count, answer.lease.used
