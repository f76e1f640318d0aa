"""
Response rate limiting: an attacker who forges a victim's address shall not be able to flood it with answers.

As in NSD and Knot, the limit is not on how much a network asks, but on how often it gets the same response. A network
(/24 or /56), a kind of response and a name have one bucket of answers together, which is refilled evenly. A response is
suppressed if the bucket is empty; every `slip`-th suppressed one is sent all the same, but as a truncated answer, no
longer than the question: an honest client then asks by TCP, which is never limited.

The buckets are in a hash table of fixed size. Two that fall on one entry displace each other, and each begins again
with a full bucket (as in NSD): the error is then always to answer. Nobody can aim at an entry without the seed; an
attacker who makes as many buckets as the table has entries can displace most of the others. Nothing here does I/O,
reads a clock or is random: the time and the seed are arguments.
"""

from __future__ import annotations

import enum
from array import array
from typing import TYPE_CHECKING, Final

from siphashc import siphash

from jitsu_tw.networks import LOOPBACK, Networks, network

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.networks import Network

#: Responses per second; and of the suppressed ones, every `SLIP`-th is sent truncated: NSD's defaults.
RATE: Final = 200
SLIP: Final = 2

#: Entries of the table, a power of two. An entry takes 20 octets.
ENTRIES: Final = 1 << 16

#: The error that sums of floats may have, in seconds.
_SLACK: Final = 1e-6


class Kind(bytes, enum.Enum):
    """
    Kinds of responses: each has buckets of its own, so that a flood of errors does not stop answers.

    The *key* for `Limiter.decide` must be something that the client cannot vary at will.
    """

    POSITIVE = b"p"  # key: the owner of the answer: the question's name, or the wildcard that it came from
    NODATA = b"n"  # key: the zone's apex
    NXDOMAIN = b"x"  # key: the zone's apex
    REFERRAL = b"r"  # key: the name of the cut
    ERROR = b"e"  # key: the zone's apex, or the root where the name is in no served zone


class Decision(enum.Enum):
    """What to do with a response."""

    SEND = "send"
    SLIP = "send truncated"
    DROP = "drop"


#: Python 3.11 takes longer to find a member of an enumeration than a bucket.
_SEND: Final = Decision.SEND


class Limiter:
    """The buckets of all client networks."""

    def __init__(
        self,
        seed: bytes,
        rate: int = RATE,
        *,
        burst: int = 0,
        slip: int = SLIP,
        exempt: Iterable[Network] = (),
        entries: int = ENTRIES,
    ) -> None:
        """
        Begin with every bucket full.

        Args:
            seed: 16 random octets, kept secret.
            rate: responses per second of one kind and key to one network; 0 for no limit.
            burst: responses that may follow each other at once; 0 for one second's at `rate`.
            slip: every *slip*-th suppressed response is sent truncated: 1 for all, 0 for none.
            exempt: networks that are not limited; loopback never is.
            entries: of the table; a power of two.

        Raises:
            ValueError: the seed has not 16 octets, or the number of entries is no power of two.
        """
        if len(seed) != 16:
            raise ValueError("the seed must have 16 octets")
        if entries < 1 or entries & (entries - 1):
            raise ValueError(f"{entries} entries are no power of two")
        self._seed, self._slip, self._mask = seed, slip, entries - 1
        self._one = 1 / rate if rate else 0.0  # seconds in which one answer is refilled
        self._whole = (burst or rate) * self._one + _SLACK  # the same, for a whole bucket
        self._exempt = Networks((*LOOPBACK, *exempt))
        #: For each entry: its bucket's hash, when the bucket will be full again, the suppressed since the last slip.
        self._hash = array("Q", bytes(8 * entries))
        self._full_at = array("d", bytes(8 * entries))
        self._suppressed = array("I", bytes(4 * entries))

    def decide(self, address: bytes, kind: Kind, key: bytes, now: float) -> Decision:
        """
        Return whether to send a response, and count it.

        Args:
            address: of the client, which may be forged (`networks.packed`).
            kind: the kind of the response.
            key: a name, in lower case; `Kind` describes which one.
            now: in seconds of a clock that never goes back.
        """
        if not self._one:
            return Decision.SEND
        # A name has its end in it, and the network's length determines its family: no two buckets have the same octets.
        bucket = siphash(self._seed, kind + key + network(address))
        entry = bucket & self._mask
        if self._hash[entry] != bucket:
            self._hash[entry] = bucket
            self._full_at[entry] = now
            self._suppressed[entry] = 0
        full_at = max(self._full_at[entry], now) + self._one
        if full_at - now <= self._whole:
            self._full_at[entry] = full_at
            return _SEND
        if address in self._exempt:  # checked last: it matters to few
            return Decision.SEND
        if not self._slip:
            return Decision.DROP
        self._suppressed[entry] = suppressed = (self._suppressed[entry] + 1) % self._slip
        return Decision.DROP if suppressed else Decision.SLIP
