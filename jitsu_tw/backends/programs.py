"""The programs of commands: some at once, each in a group of its own, with a deadline and a limit of its output."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.processes import Child, Process
from jitsu_tw.reconnect import steady
from jitsu_tw.text import abridged, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jitsu_tw.processes import Ended

#: How many programs of a backend may run at once, of each use; further ones wait. Those that clients wait for ("start")
#: do not wait for those that end machines, which may take minutes, or only look at machines.
PROGRAMS: Final = 8
USES: Final = ("start", "stop", "state")

#: Seconds between SIGTERM and SIGKILL for a program that is to end.
GRACE: Final = 2.0

#: In octets: how much of a program's output is kept, and the longest line of a stream.
LONGEST_OUTPUT: Final = 65536

#: In lines and characters: how much of a program's messages an error repeats. DNS clients read that, too: it is short,
#: and no error has the program's arguments.
LAST_LINES: Final = 3
LONGEST_REASON: Final = 200

#: Seconds between two pieces, of 64 KiB at most, that are read of a stream: one may write without end.
READ_EVERY: Final = 0.05

#: Seconds until a stream that has ended is begun again, at first and at most.
AGAIN: Final = 1.0
AGAIN_AT_MOST: Final = 60.0

#: Where programs may be besides the places of PATH; Jitsu's own are beside its Python.
PLACES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")

#: Variables of Jitsu's environment that every program gets.
ENVIRONMENT: Final = ("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")


class OverdueError(BackendError):
    """A program has not ended within its time, and was killed."""


def environment(names: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment of programs, with the variables *names* of Jitsu's own, if they are there."""
    places = (*os.environ.get("PATH", "").split(":"), *PLACES, str(Path(sys.executable).parent))
    kept = {name: os.environ[name] for name in (*ENVIRONMENT, *names) if name in os.environ}
    return {"HOME": "/", **kept, "PATH": ":".join(dict.fromkeys(filter(None, places))), "LANG": "C.UTF-8"}


def why_not_there(program: str, path: str) -> str:
    """Return why *program*, which is looked for at the places of *path*, cannot be run; empty if it can."""
    if shutil.which(program, path=path) is not None:
        return ""
    if "/" in program:
        return f"{program} is {'no program that may be run' if Path(program).exists() else 'not there'}"
    return f"there is no program {program} here; install it, or give its whole path"


def tail(text: str, lines: int = LAST_LINES) -> str:
    """Return the last *lines* of a program's messages, printable, as one line; all for 0."""
    found = [printable(line.strip()) for line in text.splitlines() if line.strip()]
    return abridged("; ".join(found[-lines:]), LONGEST_REASON, " … ")


class Programs:
    """
    The programs of one backend.

    Attributes:
        environment: theirs.
    """

    log = Logger()

    def __init__(self, reactor: Any, names: Iterable[str] = ()) -> None:
        """Begin with no program; they get the variables *names* of Jitsu's environment."""
        self._reactor = reactor
        self.environment: Mapping[str, str] = environment(names)
        self._slots = {use: DeferredSemaphore(PROGRAMS) for use in USES}
        self._running: set[Process] = set()
        self._closed: Deferred[None] | None = None

    def resolve(self, program: str) -> str:
        """
        Return the path of *program*.

        Raises:
            BackendLost: it cannot be run.
        """
        path = self.environment["PATH"]
        if why := why_not_there(program, path):
            raise BackendLost(why)
        return str(shutil.which(program, path=path))

    def tied(self, argv: Sequence[str]) -> list[str]:
        """
        Return the arguments that have the kernel end a program, but not what that has begun, when Jitsu is killed.

        Where there is no setpriv(1) of util-linux (that of busybox cannot do it), they are *argv*.
        """
        setpriv = shutil.which("setpriv", path=self.environment["PATH"])
        if setpriv is None or Path(setpriv).resolve().name != "setpriv":
            return list(argv)
        return [setpriv, "--pdeathsig=TERM", *argv]

    def run(self, argv: Sequence[str], within: float, use: str, *, tied: bool = False) -> Deferred[Ended]:
        """
        Run a program, when a slot of its *use* is free, to its end or until its time is up; then end its whole group.

        A caller that does not wait any more changes nothing of that. A *tied* one ends with Jitsu: see `tied`.

        Raises:
            BackendLost: (through the Deferred) there is no such program.
            OverdueError: (through the Deferred) it has not ended within *within* seconds.
            BackendError: (through the Deferred) it cannot be run now.
        """
        waiter: Deferred[Ended] = Deferred()

        def tell(result: Any) -> None:
            if not waiter.called:
                waiter.callback(result)

        self._slots[use].run(self._run, argv, within, tied).addBoth(tell)
        return waiter

    def _run(self, argv: Sequence[str], within: float, is_tied: bool) -> Deferred[Ended]:  # noqa: FBT001
        if self._closed is not None:
            raise BackendError("Jitsu ends")
        program = self.resolve(argv[0])
        words = self.tied([program, *argv[1:]]) if is_tied else [program, *argv[1:]]
        try:
            process = Process(
                self._reactor, words, within=within, env=self.environment, grace=GRACE, most=LONGEST_OUTPUT, path="/",
                group=True,
            )  # fmt: skip
        except OSError as error:
            raise BackendError(f"{argv[0]} cannot be run: {error.strerror}") from error
        self._running.add(process)
        return process.ended.addCallback(self._ended, process, argv, within)

    def _ended(self, ended: Ended, process: Process, argv: Sequence[str], within: float) -> Ended:
        self._running.discard(process)
        self._is_closed()
        if ended.late and self._closed is not None:
            raise BackendError(f"Jitsu ends, and has ended {argv[0]}, which ran")
        if ended.late:
            raise OverdueError(f"{argv[0]} has not ended within {within:g} s, and was killed")
        return ended

    async def done(self, argv: Sequence[str], within: float, use: str, *, tied: bool = False) -> str:
        """
        Run a program that is to succeed, and return its output. Takes and raises what `run` does.

        Raises:
            BackendError: its exit status is not 0; with that, and its last lines.
        """
        ended = await self.run(argv, within, use, tied=tied)
        if ended.code != 0:
            raise BackendError(failed(argv, ended))
        return ended.out

    def close(self) -> Deferred[None]:
        """End all programs that run; the Deferred fires when they have ended."""
        self._closed = Deferred()
        for process in tuple(self._running):
            process.end()
        self._is_closed()
        return self._closed

    def _is_closed(self) -> None:
        if self._closed is not None and not (self._running or self._closed.called):
            self._closed.callback(None)


def failed(argv: Sequence[str], ended: Ended) -> str:
    """Return why a program has failed."""
    how = "a signal" if ended.code is None else f"status {ended.code}"
    words = tail(f"{ended.out}\n{ended.err}") or "it wrote no message"
    return f"{argv[0]} ended with {how}: {words}"


class Stream:
    """A program that writes a line for each event, and is begun again, after a pause, when it ends."""

    log = Logger()
    def __init__(
        self,
        programs: Programs,
        argv: Sequence[str],
        told: Callable[[list[str]], None],
        begun: Callable[[], None],
        reactor: Any,
    ) -> None:
        """
        Begin no program yet.

        Args:
            programs: know the environment.
            argv: its arguments.
            told: is called with the lines that have come.
            begun: is called when it runs, again too, and when a line is too long: any machine may have changed.
            reactor: makes the timers.
        """
        self._programs, self._argv, self._told, self._begun, self._reactor = programs, argv, told, begun, reactor
        self._pause = steady(AGAIN, AGAIN_AT_MOST, 2.0)
        self._failures, self._since = 0, -inf
        self._rest, self._err = b"", b""
        self._child: Child | None = None
        self._again: Any = None
        self._reads: Any = None
        self._ended: Deferred[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether the program runs."""
        return self._child is not None

    def begin(self) -> None:
        """Begin the program."""
        self._since, self._rest, self._err = self._reactor.seconds(), b"", b""
        try:
            argv = self._programs.tied([self._programs.resolve(self._argv[0]), *self._argv[1:]])
            self._child = Child(
                self._reactor, argv, self._received, self._exited, self._is_over,
                env=self._programs.environment, path="/", group=True,
            )  # fmt: skip
        except (BackendError, OSError) as error:
            self._begin_again(str(error))
            return
        # It is not urgent: with normal priority, its work delays the start of a container by a tenth on two cores.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, self._child.pid, 19)
        self._begun()

    def _received(self, number: int, piece: bytes) -> None:
        """Tell the lines; keep the last of its messages; and read no more for a moment."""
        assert self._child is not None
        if number == 1:
            *lines, rest = (self._rest + piece).split(b"\n")
            self._rest = rest[-LONGEST_OUTPUT:]
            if self._rest != rest:
                self._begun()  # nobody knows whom the line is about
            self._told([line.decode(errors="replace") for line in lines])
        else:
            self._err = (self._err + piece)[-LONGEST_OUTPUT:]
        self._child.pause()
        if self._reads is None or not self._reads.active():
            self._reads = self._reactor.callLater(READ_EVERY, self._child.resume)

    def _exited(self) -> None:
        """End the rest of its group."""
        assert self._child is not None
        self._child.signal(signal.SIGKILL)

    def _is_over(self) -> None:
        """Begin it again after a pause."""
        assert self._child is not None
        code, self._child = self._child.code, None
        if self._reads is not None and self._reads.active():
            self._reads.cancel()
        if self._ended is not None:
            self._ended.callback(None)
            return
        self._begin_again(f"it ended with {'a signal' if code is None else f'status {code}'}"
                          f"{': ' if self._err else ''}{tail(self._err.decode(errors='replace'))}")

    def _begin_again(self, why: str) -> None:
        now = self._reactor.seconds()
        self._failures = 1 if now - self._since > AGAIN_AT_MOST else self._failures + 1
        pause = self._pause(self._failures)
        if self._failures == 1:
            message = "{events}: {why}; Jitsu begins it again, and calls state from time to time meanwhile"
            self.log.warn(message, events=" ".join(self._argv), why=why)
        self._again = self._reactor.callLater(pause, self.begin)

    def end(self) -> Deferred[None]:
        """End it for good; the Deferred fires when the program has ended."""
        ended: Deferred[None] = Deferred()
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._child is not None:
            self._ended = ended
            self._child.signal(signal.SIGTERM)
            late = self._reactor.callLater(GRACE, self._child.signal, signal.SIGKILL)
            ended.addCallback(lambda _: late.cancel() if late.active() else None)
        else:
            ended.callback(None)
        return ended
