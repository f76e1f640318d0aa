"""
Answers for VMs that are up, as octets, found by the octets of the question: no parsing, no objects, no Deferred.

A packet is looked up without its id and without regard to case. What it is found by then stands in it already, letter
for letter: the same flags, the same type and class, the same EDNS. (Lower case changes no octet that is not a letter of
the name, but for a type, an EDNS size or version that happens to look like one; of those only such are kept as
look the same in lower case, so that none is taken for another.) The answer is the packet's own id and question, in the
case that the client chose, and the rest of an answer that was written the long way. Questions with EDNS options are not
kept: cookies differ for each client.

Any client can make up kinds of questions, and names below a wildcard, without end. So an answer that was used little
lately gives way, by what is counted of each use anyway: a hit costs nothing more. It is one of the VM that has most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from jitsu_tw.shares import Heaviest
from jitsu_tw.store.layout import NameUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jitsu_tw.dns.message import Query
    from jitsu_tw.rules.lease import Lease

#: The most answers for names that zones have: so many, and so many more for each VM that is up, but never more than the
#: last. One is kept for each kind of question: with and without EDNS, DO, RD, AD, CD, and a few sizes. An answer takes
#: 600 octets or so.
LEAST_EXACT: Final = 4096
MOST_KINDS: Final = 32
MOST_EXACT: Final = 1 << 18

#: The most answers for names that wildcards have made, all together.
MOST_WILD: Final = 1 << 14

#: Of so many answers, those that were not considered for longest, the one that was used least gives way.
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
        use: where it is written how often the name that was asked for was used.
        limit_key: the name that the limiter of responses counts it by.
        count: how often it was used since `WarmAnswers.taken`.
        last: the id and the sender of the last question: the same again is a retransmission, and not counted.
    """

    head: bytes
    end: int
    tail: bytes
    lease: Lease
    vm: str
    use: NameUse
    limit_key: bytes
    count: int = 0
    last: tuple[bytes, Any] | None = None


class _Share:
    """
    The keys of some of the answers, by VM, those first that were longest not considered.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        """Begin with none."""
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
        """Remove a key of the VM that has the most, and return it: of some, the one that was used least lately."""
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


class WarmAnswers:
    """
    The answers of all VMs that are up.

    Attributes:
        answers: by the packet's octets in lower case, without the id.
        used: those whose count is not 0.
        keepers: says of a client's address whether its questions are uses; None if all are.
        use_of: says where it is written how often a name, one of a VM's, was used.
        check: called with the name of a VM that is in use, when it is time to see whether it is alive.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Renew leases by *now*."""
        self.now = now
        self.answers: dict[bytes, WarmAnswer] = {}
        self.used: list[WarmAnswer] = []
        self.keepers: Callable[[str], bool] | None = None
        self.use_of: Callable[[str, bytes], NameUse] = lambda _vm, _key: NameUse()
        self.check: Callable[[str], None] = lambda _: None
        self._exact, self._wild = _Share(), _Share()
        # There are few different heads: shared, they stay in the processor's cache, whatever is asked for.
        self._heads: dict[bytes, bytes] = {}

    def get(self, octets: bytes, sender: Any = None) -> bytes | None:
        """Return the reply to the packet *octets*, if there is one, and count that as a use of the VM."""
        answer = self.answers.get(octets[2:].lower())
        return None if answer is None else self.take(answer, octets, sender)

    def take(self, answer: WarmAnswer, octets: bytes, sender: Any) -> bytes:
        """Return the reply that *answer* makes to the packet *octets* of *sender*, and count that as a use."""
        lease, asked = answer.lease, (octets[:2], sender)
        now = self.now()
        if self.keepers is None or sender is None or self.keepers(sender[0]):
            lease.used = now
        if asked != answer.last:
            answer.last = asked
            if not answer.count:
                self.used.append(answer)
            answer.count += 1
        if now >= lease.check_at:
            self.check(answer.vm)
        return octets[:2] + answer.head + octets[_QUESTION : answer.end] + answer.tail

    def put(self, octets: bytes, query: Query, reply: bytes, vm: str, lease: Lease, limit_key: bytes) -> None:
        """
        Keep *reply*, which answers the packet *octets*, while *vm* is up; not if it is for this client only.

        If there are too many, the VM that has the most gives one up. Names of wildcards are counted on their own: they
        have another *limit_key* than their own.
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
        use = self.use_of(vm, query.question.key)
        self.answers[key] = WarmAnswer(head, end, reply[end:], lease, vm, use, limit_key)

    def drop(self, vm: str) -> None:
        """Forget the answers of *vm*: it is not up any more, or is something else now."""
        for share in (self._exact, self._wild):
            for key in share.drop(vm):
                del self.answers[key]

    def clear(self) -> None:
        """Forget all answers: what they were made from has changed."""
        self.answers.clear()
        self._exact, self._wild = _Share(), _Share()

    def taken(self) -> Iterator[tuple[str, NameUse, int, float]]:
        """Yield the VM, what is counted of the name, how often it was used since the last call, and when last."""
        used, self.used = self.used, []
        for answer in used:
            count, answer.count = answer.count, 0
            yield answer.vm, answer.use, count, answer.lease.used
