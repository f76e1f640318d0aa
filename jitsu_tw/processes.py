"""
Programs that run to their end, or until their time is up.

A process that such a program has begun, an ssh that others share perhaps, may outlive it and keep its pipes open: that
is not waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
from math import inf
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.python.failure import Failure

#: Seconds after a program's end in which its output is still read.
OUTPUT_WITHIN: Final = 0.5


@attrs.frozen
class Ended:
    """
    How a program ended.

    Attributes:
        code: its exit status; None if a signal has ended it.
        out, err: its standard output and standard error.
        said: both, in the order in which they came.
        late: whether it was made to end.
    """

    code: int | None
    out: str
    err: str
    said: str
    late: bool


class Process(ProcessProtocol):
    """
    A program that runs.

    Attributes:
        ended: fires with an `Ended`.
    """

    transport: Any

    def __init__(self, reactor: Any, within: float, grace: float, most: float, *, group: bool = False) -> None:
        """
        Take the seconds until it is to end, and from SIGTERM to SIGKILL; without *grace* it is killed at once.

        With *group*, all processes of the group that it leads are made to end.
        """
        self._reactor, self._within, self._grace, self._left, self._group = reactor, within, grace, most, group
        self._said: list[tuple[int, bytes]] = []
        self._code: int | None = None
        self._leader = 0
        self._late = False
        self._timer: Any = None
        self.ended: Deferred[Ended] = Deferred()

    def end(self) -> None:
        """Make it end."""
        self._late = True
        if self._grace:
            self._signal("TERM")
            self._then(self._grace, self._kill)
        else:
            self._kill()

    def _kill(self) -> None:
        self._signal("KILL")
        self._then(OUTPUT_WITHIN, self._give_up)

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)  # it may not lead its group yet
        if self._group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader, getattr(signal, f"SIG{name}"))

    def _give_up(self) -> None:
        self.transport.loseConnection()
        self._is_over()

    def _then(self, seconds: float, what: Callable[[], None]) -> None:
        """Do *what* after *seconds*, in place of what was to be done before."""
        self._stop_waiting()
        if not self.ended.called:
            self._timer = self._reactor.callLater(seconds, what)

    def _stop_waiting(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    # What the reactor calls.

    def connectionMade(self) -> None:  # noqa: N802
        """Close its standard input; its time begins. It may end before `run` returns."""
        self._leader = self.transport.pid
        self.transport.closeStdin()
        self._then(self._within, self.end)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N802, N803
        """Keep a piece of its output, as far as there is room for it."""
        if self._left > 0:
            self._left -= len(data)
            self._said.append((childFD, data))

    def processExited(self, reason: Failure) -> None:  # noqa: N802
        """Handle its end; the rest of its output may still be on its way."""
        self._code = getattr(reason.value, "exitCode", None)
        if self._late:
            self._signal("KILL")  # of its group, some may ignore SIGTERM
        self._then(OUTPUT_WITHIN, self._give_up)

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        """Handle its end, after which no output comes."""
        self._code = getattr(reason.value, "exitCode", None)
        self._is_over()

    def _is_over(self) -> None:
        if self.ended.called:
            return
        out, err, said = (
            b"".join(data for number, data in self._said if number in of).decode(errors="replace")
            for of in ({1}, {2}, {1, 2})
        )
        ended, self._said = Ended(self._code, out, err, said, self._late), []
        self._stop_waiting()
        self.ended.callback(ended)


def run(
    reactor: Any,
    argv: Sequence[str],
    *,
    within: float,
    env: Mapping[str, str],
    program: str | None = None,
    path: str | None = None,
    grace: float = 0.0,
    most: float = inf,
    group: bool = False,
) -> Process:
    """
    Begin to run a program.

    Args:
        reactor: spawns it.
        argv: its arguments, of which the first is its name.
        within: seconds after which it is made to end.
        env: its environment.
        program: its path; without one it is looked for by its name.
        path: the directory that it runs in; without one Jitsu's.
        grace: seconds between SIGTERM and SIGKILL.
        most: octets of its output that are kept, and a piece more; the rest is read and dropped.
        group: it is `detached`; all processes of the group are made to end.

    Raises:
        OSError: there is no such program, or there can be no further process.
    """
    process = Process(reactor, within, grace, most, group=group)
    if group:
        argv = detached([program or argv[0], *argv[1:]])
        program = argv[0]
    reactor.spawnProcess(process, program or argv[0], argv, env=dict(env), path=path)
    return process


def detached(argv: Sequence[str]) -> list[str]:
    """
    Return the arguments that make a program lead a session, and so a group, of its own, and run in the root directory.

    They do it by programs, env(1) and setsid(1), as Twisted spawns at once (posix_spawn(3)) only what runs in Jitsu's
    own directory: a fork of Jitsu takes 15 ms before a program begins.
    """
    return ["env", "--chdir=/", "setsid", *argv]
