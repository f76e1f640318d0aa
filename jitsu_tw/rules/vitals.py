"""
Whether a guest whose port is silent gives any sign of life. Pure: observations come in, a verdict goes out.

A guest that hangs in a loop uses its virtual CPUs, so it gives a sign of life; so does an idle one that runs a timer,
and one that answers a neighbour's ARP while Jitsu tries nothing. A guest that gives none has stopped for good, as a
unikernel that halts while its machine goes on "running": it sends nothing at all.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Packets that a guest may send because of one try to connect: a refusal, and an answer to ARP; and the most packets in
#: one window that are put down to tries, so that these hide no traffic however many they are.
ANSWERS: Final = 2
MOST_ANSWERS: Final = 100

#: More seconds of CPU than this are a sign of life. Linux counts in ticks of 0.01 s (`CLK_TCK`), libvirt shows these; a
#: halted CPU that is woken by an interrupt which its guest does not take costs some microseconds.
LEAST_CPU: Final = 0.005


class Sign(enum.Enum):
    """What speaks for the life of a guest."""

    NONE = "it gives no sign of life"
    PACKETS = "its guest sends packets"
    CPU = "its guest uses CPU time"
    UNCOUNTED = "nobody counts its packets or its CPU time"


@attrs.frozen
class Counts:
    """
    What the hypervisor has counted of a guest since it started.

    Attributes:
        packets: that it has sent; None if they are not counted.
        cpu: seconds that its virtual CPUs have run; None if they are not counted.
    """

    packets: int | None
    cpu: float | None


@attrs.frozen
class Window:
    """
    Some seconds in which a guest was observed.

    Attributes:
        before, after: what was counted at its begin and its end.
        tries: how often Jitsu tried to connect meanwhile; 0, so that any packet counts, if that is not known.
    """

    before: Counts
    after: Counts
    tries: int = 0

    @property
    def is_counted(self) -> bool:
        """Whether both counters were read, and neither began again at 0."""
        a, b = self.before, self.after
        return (
            a.packets is not None and b.packets is not None and a.packets <= b.packets
            and a.cpu is not None and b.cpu is not None and a.cpu <= b.cpu
        )  # fmt: skip


def sign_of_life(windows: Sequence[Window]) -> Sign:
    """Return the sign of life that a guest has given in *windows*, which follow each other."""
    if not all(one.is_counted for one in windows):
        return Sign.UNCOUNTED
    for one in windows:
        if (one.after.packets or 0) - (one.before.packets or 0) > min(ANSWERS * one.tries, MOST_ANSWERS):
            return Sign.PACKETS
    if sum((one.after.cpu or 0.0) - (one.before.cpu or 0.0) for one in windows) > LEAST_CPU:
        return Sign.CPU
    return Sign.NONE
