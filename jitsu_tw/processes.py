"""
Programs: a `Child` is one that runs; a `Process` is one that runs to its end, or until its time is up.

A process that such a program has begun, an ssh that others share perhaps, may outlive it and keep its pipes open: that
is not waited for.

The standard library's Popen begins them within half a millisecond, also in a session and a directory of their own,
where Twisted would fork: a fork of Jitsu takes 15 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from functools import partial
from io import FileIO
from math import inf
from subprocess import DEVNULL, PIPE, Popen
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO

#: Seconds after a program's end in which its output is still read.
OUTPUT_WITHIN: Final = 0.5

#: The signals that this process may ignore, and its programs do not; Popen itself resets SIGPIPE and SIGXFSZ.
_NOT_INHERITED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD)

#: In octets: how much of a program's output is read at once.
PIECE: Final = 65536


def begin(argv: Sequence[str], **options: Any) -> Popen[bytes]:
    """
    Begin a program without input; the *options* are Popen's.

    What this process ignores, as below nohup(1) or in the background of a shell, its programs do not: the signals get a
    handler that does nothing, which no program inherits.

    Raises:
        OSError: there is no such program, or there can be no further process.
    """
    for number in _NOT_INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        return Popen(argv, 0, stdin=DEVNULL, **options)  # noqa: S603
    except ValueError as error:
        raise OSError(errno.EINVAL, f"no program has such arguments: {error}") from error


@implementer(IReadDescriptor)
class Descriptor:
    """A file descriptor that the reactor observes, and that is closed with this object."""

    def __init__(self, reactor: Any, file: IO[bytes], readable: Callable[[], None]) -> None:
        """Call *readable* when *file* can be read, or its end has come."""
        self._reactor, self._file, self._readable = reactor, file, readable
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return its number; -1 when it is closed."""
        return -1 if self._file.closed else self._file.fileno()

    def doRead(self) -> None:  # noqa: N802
        """Handle that it can be read."""
        if not self._file.closed:
            self._readable()

    def connectionLost(self, reason: Any) -> None:  # noqa: ARG002, N802
        """Handle that its other end is closed."""
        self.doRead()

    def logPrefix(self) -> str:  # noqa: N802
        """Return the name for Twisted's log."""
        return "processes"

    def pause(self) -> None:
        """Observe it no longer, until `resume`."""
        self._reactor.removeReader(self)

    def resume(self) -> None:
        """Observe it again, if it is not closed."""
        if not self._file.closed:
            self._reactor.addReader(self)

    def close(self) -> None:
        """Close it."""
        if not self._file.closed:
            self._reactor.removeReader(self)
            self._file.close()


class Child:
    """
    A program that runs, without input.

    Attributes:
        pid: of its process.
        code: its exit status; None while it runs, and if a signal has ended it.
    """

    def __init__(
        self,
        reactor: Any,
        argv: Sequence[str],
        received: Callable[[int, bytes], None],
        exited: Callable[[], None],
        ended: Callable[[], None],
        *,
        env: Mapping[str, str],
        program: str | None = None,
        path: str | None = None,
        group: bool = False,
    ) -> None:
        """
        Begin it.

        Args:
            reactor: observes it.
            argv: its arguments, of which the first is its name.
            received: is called with 1 and a piece of its standard output, or with 2 and one of its standard error.
            exited: is called when its process has ended; the rest of its output may still be on its way.
            ended: is called when that has been read too, or `OUTPUT_WITHIN` seconds after the end of the process.
            env: its environment.
            program: its path; without one it is looked for by its name.
            path: the directory that it runs in; without one Jitsu's.
            group: it leads a session, and so a group, of its own; signals are for all processes of the group.

        Raises:
            OSError: there is no such program, or there can be no further process.
        """
        self._reactor, self._received, self._exited, self._ended = reactor, received, exited, ended
        self._group, self._timer = group, None
        self.code: int | None = None
        self._process = begin(
            argv, executable=program, stdout=PIPE, stderr=PIPE, env=env, cwd=path, start_new_session=group
        )
        self.pid = self._process.pid
        try:
            handle = FileIO(os.pidfd_open(self.pid))
        except OSError:
            self._process.kill()
            raise
        self._handle = Descriptor(reactor, handle, self._is_over)
        self._pipes = [self._open(1, self._process.stdout), self._open(2, self._process.stderr)]

    def _open(self, number: int, pipe: Any) -> Descriptor:
        os.set_blocking(pipe.fileno(), False)
        return Descriptor(self._reactor, pipe, partial(self._read, number, pipe))

    def _read(self, number: int, pipe: FileIO) -> None:
        piece = pipe.read(PIECE)
        if piece:
            self._received(number, piece)
        elif piece is not None:
            self._pipes[number - 1].close()
            self._tell_end()

    def _is_over(self) -> None:
        status = self._process.poll()
        if status is not None:
            self.code = status if status >= 0 else None
            self._handle.close()
            self._timer = self._reactor.callLater(OUTPUT_WITHIN, self.close)
            self._exited()
            self._tell_end()

    def _tell_end(self) -> None:
        is_open = any(one.fileno() >= 0 for one in (self._handle, *self._pipes))
        if not is_open and self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
            self._ended()

    def pause(self) -> None:
        """Read its output no longer, until `resume`."""
        for pipe in self._pipes:
            pipe.pause()

    def resume(self) -> None:
        """Read its output again."""
        for pipe in self._pipes:
            pipe.resume()

    def signal(self, number: int) -> None:
        """Send a signal; one that has ended is no error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._group:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)

    def close(self) -> None:
        """Read its output no more."""
        for pipe in self._pipes:
            pipe.close()
        self._tell_end()


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


class Process:
    """
    A program that runs to its end.

    Attributes:
        ended: fires with an `Ended`.
    """

    def __init__(
        self,
        reactor: Any,
        argv: Sequence[str],
        *,
        within: float,
        grace: float = 0.0,
        most: float = inf,
        **more: Any,
    ) -> None:
        """
        Begin it.

        Args:
            reactor: observes it.
            argv: its arguments, of which the first is its name.
            within: seconds after which it is made to end.
            grace: seconds between SIGTERM and SIGKILL; without these it is killed at once.
            most: octets of its output that are kept, and a piece more; the rest is read and dropped.
            more: of `Child`.

        Raises:
            OSError: there is no such program, or there can be no further process.
        """
        self._reactor, self._grace, self._left = reactor, grace, most
        self._said: list[tuple[int, bytes]] = []
        self._late = False
        self.ended: Deferred[Ended] = Deferred()
        self._child = Child(reactor, argv, self._received, self._exited, self._is_over, **more)
        self._timer = reactor.callLater(within, self.end)

    def end(self) -> None:
        """Make it end."""
        self._late = True
        if self._grace:
            self._child.signal(signal.SIGTERM)
            self._then(self._grace, self._kill)
        else:
            self._kill()

    def _kill(self) -> None:
        self._child.signal(signal.SIGKILL)
        self._then(OUTPUT_WITHIN, self._is_over)

    def _then(self, seconds: float, what: Callable[[], None]) -> None:
        """Do *what* after *seconds*, in place of what was to be done before."""
        self._stop_waiting()
        if not self.ended.called:
            self._timer = self._reactor.callLater(seconds, what)

    def _stop_waiting(self) -> None:
        if self._timer.active():
            self._timer.cancel()

    def _received(self, number: int, piece: bytes) -> None:
        if self._left > 0:
            self._left -= len(piece)
            self._said.append((number, piece))

    def _exited(self) -> None:
        if self._late:
            self._child.signal(signal.SIGKILL)  # of its group, some may ignore SIGTERM
        self._stop_waiting()

    def _is_over(self) -> None:
        if self.ended.called:
            return
        out, err, said = (
            b"".join(piece for number, piece in self._said if number in of).decode(errors="replace")
            for of in ({1}, {2}, {1, 2})
        )
        ended, self._said = Ended(self._child.code, out, err, said, self._late), []
        self._child.close()
        self._stop_waiting()
        self.ended.callback(ended)
