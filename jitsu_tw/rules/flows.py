"""The open TCP connections of one VM, as Synjitsu has seen them. Pure."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable


@attrs.frozen
class Flows:
    """
    The open TCP connections of one VM.

    Synjitsu captures the segments that open and close a connection, and all segments while the VM sleeps, but not the
    data while the VM is up: so a connection may have been used after `last`.

    Attributes:
        open: how many there are.
        last: when the latest of them gave its last sign of life, in seconds of the reactor's clock; minus infinity
            where there is none.
    """

    open: int = 0
    last: float = -inf


#: No connection is open.
NO_FLOWS: Final = Flows()


def together(parts: Iterable[Flows]) -> Flows:
    """Return the connections of a VM from those at each of its addresses."""
    found = list(parts)
    return Flows(sum(one.open for one in found), max((one.last for one in found), default=-inf))
