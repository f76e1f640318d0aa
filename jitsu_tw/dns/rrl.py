"""
Response rate limiting: we shall not be the ones whose answers flood somebody whose address a forger uses.

As in NSD and Knot, what is limited is not how much a network asks but how often it is told the same thing. A network
(/24 or /56), a kind of response and a name have a bucket of answers together, which is refilled evenly. What finds it
empty is suppressed; every so many-th of these is sent all the same, but as a truncated answer, no longer than the
question: an honest client then comes by TCP, which is never limited.

The buckets stand in a table of fixed size. Two that fall on one place take it from each other, and each begins anew
with a full bucket (as in NSD): the mistake is then always to answer. Nobody can aim at a place who does not know the
seed; whoever makes as many buckets as the table has places can displace most of the others. Nothing here does I/O,
reads a clock or is random: the time and the seed are arguments.
"""

from __future__ import annotations

import enum
from array import array
from typing import TYPE_CHECKING, Final

from siphashc import siphash

from jitsu_tw.networks import LOOPBACK, Networks, network, packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.dns.wire import Source
    from jitsu_tw.networks import Network

#: Responses per second, and every how many-th that is suppressed goes out truncated: NSD's defaults.
RATE: Final = 200
SLIP: Final = 2

#: Places in the table, a power of two. A place takes 20 octets.
PLACES: Final = 1 << 16

#: What sums of floats may be wrong by, in seconds.
_SLACK: Final = 1e-6


class Kind(bytes, enum.Enum):
    """
    Kinds of responses: each has buckets of its own, so that a flood of errors does not stop answers.

    What `Limiter.decide` gets as *key* must be something that the asker cannot vary at will.
    """

    POSITIVE = b"p"  # key: the owner of the answer: the question's name, or the wildcard that it came from
    NODATA = b"n"  # key: the zone's apex
    NXDOMAIN = b"x"  # key: the zone's apex
    REFERRAL = b"r"  # key: the name of the cut
    ERROR = b"e"  # key: the zone's apex, or the root where no zone of ours is meant


class Decision(enum.Enum):
    """What becomes of a response."""

    SEND = "send"
    SLIP = "send truncated"
    DROP = "drop"


class Limiter:
    """The rates of all clients."""

    def __init__(
        self,
        seed: bytes,
        rate: int = RATE,
        *,
        burst: int = 0,
        slip: int = SLIP,
        exempt: Iterable[Network] = (),
        places: int = PLACES,
    ) -> None:
        """
        Begin with every bucket full.

        Args:
            seed: 16 random octets, not told to anybody.
            rate: responses per second of one kind and key to one network; 0 for no limit.
            burst: how many may follow each other at once; 0 for as many as `rate`, that is one second's.
            slip: every how many-th suppressed response is sent truncated: 1 for all, 0 for none.
            exempt: networks that are not limited; loopback never is.
            places: in the table; a power of two.

        Raises:
            ValueError: the seed has not 16 octets, or the number of places is no power of two.
        """
        if len(seed) != 16:
            raise ValueError("the seed must have 16 octets")
        if places < 1 or places & (places - 1):
            raise ValueError(f"{places} places are no power of two")
        self._seed, self._slip, self._mask = seed, slip, places - 1
        self._one = 1 / rate if rate else 0.0  # seconds in which one answer is refilled
        self._whole = (burst or rate) * self._one + _SLACK  # the same, for a whole bucket
        self._exempt = Networks((*LOOPBACK, *exempt))
        #: For each place: whose it is, when its bucket will be full again, how many it suppressed since the last slip.
        self._hash = array("Q", bytes(8 * places))
        self._full_at = array("d", bytes(8 * places))
        self._suppressed = array("I", bytes(4 * places))

    def decide(self, source: Source, kind: Kind, key: bytes, now: float) -> Decision:
        """
        Say what becomes of a response, and count it.

        Args:
            source: who gets it.
            kind: what it says.
            key: a name, in lower case; which one, `Kind` says.
            now: in seconds of a clock that never goes back.

        Raises:
            ValueError: the source's host is no address.
        """
        if source.proven or not self._one:
            return Decision.SEND
        address = packed(source.host)
        # The name ends itself and the network's length tells its family: no two buckets read the same.
        whose = siphash(self._seed, kind + key + network(address))
        place = whose & self._mask
        if self._hash[place] != whose:
            self._hash[place] = whose
            self._full_at[place] = now
            self._suppressed[place] = 0
        full_at = max(self._full_at[place], now) + self._one
        if full_at - now <= self._whole:
            self._full_at[place] = full_at
            return Decision.SEND
        if address in self._exempt:  # asked last: few need it
            return Decision.SEND
        if not self._slip:
            return Decision.DROP
        self._suppressed[place] = suppressed = (self._suppressed[place] + 1) % self._slip
        return Decision.DROP if suppressed else Decision.SLIP
