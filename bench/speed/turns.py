"""
Run twistd, and record the turns of its reactor: how long each takes, and what takes the time.

A turn is what the reactor does from the return of one poll to the next poll; meanwhile nothing is read. It is measured
by the CPU time of the reactor's thread, which other work on the machine hardly makes longer, and by the clock. What it
does is sampled: every `SAMPLE` seconds of CPU time its stack is noted. When the process ends, the report is written.
Run it as::

    python -m bench.speed.turns REPORT.json TWISTD-OPTIONS…

The report is an object with ``number``, of all turns; ``left``, the objects that only a collection of all garbage has
found in the end; and ``turns``, those of `LONG` or more, each as `Turn` has it.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet import reactor
from twisted.scripts.twistd import run

if TYPE_CHECKING:
    from types import FrameType

#: Seconds of CPU time between two samples; seconds, of CPU time or by the clock, from which on a turn is reported.
SAMPLE: Final = 0.002
LONG: Final = 0.005

#: The functions of a stack that are noted, those that were called last.
DEEPEST: Final = 4


@attrs.define
class Turn:
    """
    One turn.

    Attributes:
        began: on CLOCK_MONOTONIC.
        cpu: seconds of CPU time of the reactor's thread.
        wall: seconds of the clock.
        collector: seconds of CPU time in the garbage collector.
        stacks: how often each stack of Jitsu's functions was seen, the one that was called last in front.
    """

    began: float
    cpu: float = 0.0
    wall: float = 0.0
    collector: float = 0.0
    stacks: Counter[str] = attrs.field(factory=Counter)


class Recorder:
    """
    Records turns; it takes the place of the reactor's epoll object.

    Attributes:
        number: how many turns there were.
        turns: those of `LONG` or more.
    """

    def __init__(self, poller: Any) -> None:
        """Poll by *poller*."""
        self._poller = poller
        self._turn: Turn | None = None
        self._cpu = self._collected = 0.0
        self.number = 0
        self.turns: list[Turn] = []

    def __getattr__(self, name: str) -> Any:
        """Return what else the epoll object has."""
        return getattr(self._poller, name)

    def poll(self, *args: Any) -> Any:
        """End the turn, poll, and begin the next one."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cpu, turn.wall = time.thread_time() - self._cpu, time.monotonic() - turn.began
            self.number += 1
            if max(turn.cpu, turn.wall) >= LONG:
                self.turns.append(turn)
        try:
            return self._poller.poll(*args)
        finally:
            self._turn = Turn(time.monotonic())
            self._cpu = time.thread_time()

    def sample(self, _signal: int, frame: FrameType | None) -> None:
        """Note the stack."""
        if self._turn is None:
            return
        names: list[str] = []
        while frame is not None and len(names) < DEEPEST:
            module = str(frame.f_globals.get("__name__", ""))
            if module.startswith("jitsu_tw"):
                names.append(f"{module.removeprefix('jitsu_tw.')}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        self._turn.stacks[" < ".join(names)] += 1

    def collects(self, phase: str, _info: object) -> None:
        """Note the time of the garbage collector."""
        if phase == "start":
            self._collected = time.thread_time()
        elif self._turn is not None:
            self._turn.collector += time.thread_time() - self._collected

    def report(self, path: Path) -> None:
        """Write the report."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        gc.unfreeze()
        turns = [attrs.asdict(turn) for turn in self.turns]
        path.write_text(json.dumps({"number": self.number, "left": gc.collect(), "turns": turns}), encoding="utf-8")


def main() -> None:
    """Run twistd with a recorder."""
    path = Path(sys.argv.pop(1)).absolute()
    loop: Any = reactor
    recorder = loop._poller = Recorder(loop._poller)  # noqa: SLF001
    gc.callbacks.append(recorder.collects)
    signal.signal(signal.SIGPROF, recorder.sample)
    signal.siginterrupt(signal.SIGPROF, False)  # noqa: FBT003
    signal.setitimer(signal.ITIMER_PROF, SAMPLE, SAMPLE)
    loop.addSystemEventTrigger("after", "shutdown", recorder.report, path)
    sys.argv[0] = "twistd"
    run()


if __name__ == "__main__":
    main()
