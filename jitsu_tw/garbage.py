"""
Keep the pauses of the garbage collector short, however many VMs there are.

CPython's full collection looks at all objects in one go: with 100,000 VMs for 0.8 s, in which nothing is answered. It
finds cycles of objects only; all else is freed when it is not referred to any more, and young cycles are found by the
collections of the youngest, which are short. So as soon as a full collection is long, what has survived it is left
alone from then on (`gc.freeze`), and the next one looks at what has come since. Cycles that become garbage later are
left, too, until the process has `GROWTH` times as much memory: then one collection looks at everything. That is more
than all VMs add when they come up; after 20,000 had, 157 objects were such garbage.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: The thresholds of `gc.set_threshold`: a full collection comes after some 5,000 new objects at the soonest. With
#: CPython's own, of which the last is 10, it would look at 70,000, for 25 ms.
THRESHOLDS: Final = (700, 3, 1)

#: A full collection that takes this many seconds of CPU time, or more, is long.
LONG: Final = 0.002

#: All objects are looked at when the process has this many times as much memory as after the last time.
GROWTH: Final = 4.0


#: Of proc(5): the second number is how many pages of memory this process has.
_STATM: Final = Path("/proc/self/statm")


def _pages() -> int:
    """Return how many pages of memory this process has; `sys.getallocatedblocks` would visit them all."""
    return int(_STATM.read_bytes().split()[1])


class Pauses:
    """Follows the collections, as one of `gc.callbacks`."""

    def __init__(
        self,
        memory: Callable[[], int] = _pages,
        clock: Callable[[], float] = time.thread_time,
        collector: Any = gc,
    ) -> None:
        """
        Leave alone what there is now.

        Args:
            memory: returns how much memory the process has.
            clock: returns the seconds of CPU time.
            collector: the module `gc`.
        """
        self._memory, self._clock, self._collector = memory, clock, collector
        self._began = 0.0
        self._is_whole = False
        collector.freeze()
        self._most = GROWTH * memory()

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        """Follow a collection, at its beginning and its end."""
        if info["generation"] < 2:
            return
        if phase == "start":
            self._began = self._clock()
        elif self._clock() - self._began >= LONG:
            self._ended()

    def _ended(self) -> None:
        """Leave alone what has survived a long collection, or have the next one look at everything."""
        if self._is_whole:
            self._most, self._is_whole = GROWTH * self._memory(), False
        if self._memory() < self._most:
            self._collector.freeze()
        else:
            self._is_whole = True
            self._collector.unfreeze()


@contextmanager
def left_alone() -> Iterator[None]:
    """
    Collect no garbage in the block, which makes many objects that stay, in whatever thread; then leave them alone.

    With 100,000 VMs, collections would look at them again and again, for up to a second each.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def keep_short() -> None:
    """Begin to collect garbage, in short pauses; what has been made before lives as long as the process."""
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(Pauses())
    gc.enable()
